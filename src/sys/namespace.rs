//! Kinds of namespaces, joining and leaving them.
#![expect(unsafe_code, reason = "unshare(2) and interface ioctls have no safe wrapper")]

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::thread::{ThreadNameSpaceType, UnshareFlags, move_into_thread_name_spaces};

/// One kind of namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    User,
    Pid,
    Net,
    Ipc,
    Uts,
    Cgroup,
    Time,
    Mount,
}

impl Kind {
    /// In the order in which a process joins them: the user namespace first, because it owns the others, and the
    /// mount namespace last, because paths change with it.
    pub(crate) const ALL: [Self; 8] =
        [Self::User, Self::Pid, Self::Net, Self::Ipc, Self::Uts, Self::Cgroup, Self::Time, Self::Mount];

    /// The file in `/proc/PID/ns/`.
    pub(crate) fn file(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Pid => "pid",
            Self::Net => "net",
            Self::Ipc => "ipc",
            Self::Uts => "uts",
            Self::Cgroup => "cgroup",
            Self::Time => "time",
            Self::Mount => "mnt",
        }
    }

    fn flag(self) -> libc::c_int {
        match self {
            Self::User => libc::CLONE_NEWUSER,
            Self::Pid => libc::CLONE_NEWPID,
            Self::Net => libc::CLONE_NEWNET,
            Self::Ipc => libc::CLONE_NEWIPC,
            Self::Uts => libc::CLONE_NEWUTS,
            Self::Cgroup => libc::CLONE_NEWCGROUP,
            Self::Time => libc::CLONE_NEWTIME,
            Self::Mount => libc::CLONE_NEWNS,
        }
    }
}

/// A set of namespace kinds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Kinds(libc::c_int);

impl Kinds {
    pub(crate) fn insert(&mut self, kind: Kind) {
        self.0 |= kind.flag();
    }
    pub(crate) fn remove(&mut self, kind: Kind) {
        self.0 &= !kind.flag();
    }
    pub(crate) fn contains(self, kind: Kind) -> bool {
        self.0 & kind.flag() != 0
    }
    pub(crate) fn is_empty(self) -> bool {
        self.0 == 0
    }
    /// The `CLONE_NEW…` bits.
    pub(super) fn bits(self) -> u64 {
        self.0 as u64
    }
}

impl FromIterator<Kind> for Kinds {
    fn from_iter<T: IntoIterator<Item = Kind>>(kinds: T) -> Self {
        let mut set = Self::default();
        kinds.into_iter().for_each(|kind| set.insert(kind));
        set
    }
}

/// Joins the namespace that `file` (from `/proc/PID/ns/` or a pin of it) refers to; `EINVAL` if it is of another
/// kind. For [`Kind::Pid`] only children made afterwards are inside.
pub(crate) fn join(file: BorrowedFd<'_>, kind: Kind) -> io::Result<()> {
    // setns(2) takes the same flag for a namespace file as for a pidfd.
    Ok(move_into_thread_name_spaces(file, ThreadNameSpaceType::from_bits_retain(kind.flag() as u32))?)
}

/// Joins several namespaces of a process at once (Linux 5.8): all or none.
pub(crate) fn join_process(pidfd: impl AsFd, kinds: Kinds) -> io::Result<()> {
    Ok(move_into_thread_name_spaces(pidfd.as_fd(), ThreadNameSpaceType::from_bits_retain(kinds.0 as u32))?)
}

/// Leaves the named namespaces for new ones: unshare(2). PID and time namespaces take effect for children.
pub(crate) fn leave(kinds: Kinds) -> io::Result<()> {
    // SAFETY: the only unsound flag is CLONE_FILES, and Kinds cannot hold it.
    Ok(unsafe { rustix::thread::unshare_unsafe(UnshareFlags::from_bits_retain(kinds.0 as u32)) }?)
}

/// Brings the loopback interface of the current network namespace up: a new one has it down (netdevice(7)).
pub(crate) fn bring_loopback_up() -> io::Result<()> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
    use std::os::fd::AsRawFd;
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    // SAFETY: ifreq is plain data for which all zeroes is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as libc::c_char;
    request.ifr_name[1] = b'o' as libc::c_char;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads one ifreq, which outlives the call and names its interface with a NUL at the end.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
