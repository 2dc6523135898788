//! Making processes, naming them without races, and the process attributes that rustix does not set.
#![expect(unsafe_code, reason = "clone3(2), execve(2) and a few attribute calls have no safe wrapper")]

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use super::namespace::Kinds;

/// linux/sched.h; libc's constant has too narrow a type.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// What clone3(2) shall make.
#[derive(Debug, Default)]
pub(crate) struct Fork<'a> {
    /// Namespaces that the child gets anew.
    pub(crate) new: Kinds,
    /// A cgroup v2 directory that the child starts in (`CLONE_INTO_CGROUP`, Linux 5.7).
    pub(crate) cgroup: Option<BorrowedFd<'a>>,
    /// The child becomes a sibling: its parent is our parent.
    pub(crate) sibling: bool,
}

/// Which side of the fork this is.
#[derive(Debug)]
pub(crate) enum Forked {
    Child,
    /// The new process. `pid` is as seen from the caller's PID namespace.
    Parent {
        pid: i32,
        pidfd: OwnedFd,
    },
}

/// Forks by one clone3(2). Memory is copied as by fork(2).
///
/// Errors with `EBUSY` if this process has more than one thread: the child of a threaded process may only make
/// async-signal-safe calls, and callers here allocate.
pub(crate) fn fork(request: &Fork<'_>) -> io::Result<Forked> {
    if !single_threaded()? {
        return Err(io::Error::from_raw_os_error(libc::EBUSY));
    }
    let mut pidfd: libc::c_int = -1;
    // SAFETY: clone_args is plain numbers, for which all zeroes is a valid value and means "unused".
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = request.new.bits() | libc::CLONE_PIDFD as u64;
    args.pidfd = std::ptr::from_mut(&mut pidfd) as u64;
    if request.sibling {
        // clone3 demands exit_signal 0 here; the sibling inherits ours.
        args.flags |= libc::CLONE_PARENT as u64;
    } else {
        args.exit_signal = libc::SIGCHLD as u64;
    }
    if let Some(cgroup) = request.cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: the structure outlives the call and its size is given; `pidfd` is writable. Without CLONE_VM the child
    // gets a copy of this stack, so returning twice is what fork(2) does. There is only one thread (checked), so no
    // lock of the allocator can be left held in the child.
    let result = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>()) };
    match result {
        0 => Ok(Forked::Child),
        pid if pid > 0 => {
            // SAFETY: with CLONE_PIDFD the kernel stored a new descriptor that only we know.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Forked::Parent { pid: pid as i32, pidfd })
        }
        _ => Err(io::Error::last_os_error()),
    }
}

/// Whether the calling thread is the only one: /proc/self/task has one sub-directory, so three links.
fn single_threaded() -> io::Result<bool> {
    Ok(rustix::fs::stat("/proc/self/task")?.st_nlink == 3)
}

/// Pointers to C strings, ended by a null pointer, as execve(2) takes them.
struct Vector<'a> {
    pointers: Vec<*const libc::c_char>,
    _strings: &'a [CString],
}

impl<'a> Vector<'a> {
    fn new(strings: &'a [CString]) -> Self {
        let mut pointers: Vec<_> = strings.iter().map(|s| s.as_ptr()).collect();
        pointers.push(std::ptr::null());
        Self { pointers, _strings: strings }
    }
}

/// A program with its arguments and environment, laid out before the calls that may forbid allocation.
pub(crate) struct Program<'a> {
    path: &'a CStr,
    args: Vector<'a>,
    env: Vector<'a>,
}

impl std::fmt::Debug for Program<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Program").field("path", &self.path).finish_non_exhaustive()
    }
}

impl<'a> Program<'a> {
    pub(crate) fn new(path: &'a CStr, args: &'a [CString], env: &'a [CString]) -> Self {
        Self { path, args: Vector::new(args), env: Vector::new(env) }
    }

    /// execve(2): returns only on failure. Does not allocate.
    pub(crate) fn exec(&self) -> io::Error {
        // SAFETY: path and all strings end in NUL and live as long as self; both vectors end in a null pointer.
        unsafe { libc::execve(self.path.as_ptr(), self.args.pointers.as_ptr(), self.env.pointers.as_ptr()) };
        io::Error::last_os_error()
    }

    /// execveat(2) of an open file, by `AT_EMPTY_PATH`: returns only on failure.
    pub(crate) fn exec_fd(&self, file: impl AsFd) -> io::Error {
        // SAFETY: as in `exec`; the empty path is a NUL-terminated literal.
        unsafe {
            libc::syscall(
                libc::SYS_execveat,
                file.as_fd().as_raw_fd(),
                c"".as_ptr(),
                self.args.pointers.as_ptr(),
                self.env.pointers.as_ptr(),
                libc::AT_EMPTY_PATH,
            );
        }
        io::Error::last_os_error()
    }
}

/// Ends the process at once, without running destructors or flushing anything: for the child of a fork.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: _exit(2) has no preconditions.
    unsafe { libc::_exit(code) }
}

/// Joins a new session keyring of the given name, so that the container does not share ours: keyctl(2)
/// `KEYCTL_JOIN_SESSION_KEYRING`.
pub(crate) fn join_new_session_keyring(name: &CStr) -> io::Result<()> {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_int = 1;
    // SAFETY: the name is NUL-terminated and outlives the call.
    check(unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, name.as_ptr()) })
}

/// Sets the execution domain: personality(2).
pub(crate) fn set_personality(value: u32) -> io::Result<()> {
    // SAFETY: takes a number only.
    check(unsafe { libc::syscall(libc::SYS_personality, libc::c_ulong::from(value)) })
}

/// The I/O class (1 real-time, 2 best effort, 3 idle) and level (0 to 7) of this process: ioprio_set(2).
pub(crate) fn set_io_priority(class: u32, level: u32) -> io::Result<()> {
    const IOPRIO_WHO_PROCESS: libc::c_int = 1;
    // SAFETY: takes numbers only.
    check(unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, (class << 13) | level) })
}

/// What sched_setattr(2) takes. Times are in nanoseconds.
#[repr(C)]
#[derive(Debug, Default)]
pub(crate) struct Scheduling {
    pub(crate) size: u32,
    pub(crate) policy: u32,
    pub(crate) flags: u64,
    pub(crate) nice: i32,
    pub(crate) priority: u32,
    pub(crate) runtime_ns: u64,
    pub(crate) deadline_ns: u64,
    pub(crate) period_ns: u64,
}

/// Sets the scheduling policy of this process: sched_setattr(2).
pub(crate) fn set_scheduling(mut scheduling: Scheduling) -> io::Result<()> {
    scheduling.size = size_of::<Scheduling>() as u32;
    // SAFETY: the structure has the layout of sched_attr version 0 and says its size.
    check(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const scheduling, 0) })
}

fn check(result: libc::c_long) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_threaded_process_is_not_forked() {
        let (send, receive) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || receive.recv());
        let error = fork(&Fork::default()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EBUSY));
        drop(send);
        assert!(thread.join().unwrap().is_err());
    }
}
