//! Landlock (landlock(7)): a process gives up rights on files that it can never get back.
#![expect(unsafe_code, reason = "the three system calls have no wrapper in rustix or libc")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// Rights on files, linux/landlock.h; each from the version of the interface that brought it.
pub(crate) const FS_MAKE_CHAR: u64 = 1 << 6;
pub(crate) const FS_MAKE_BLOCK: u64 = 1 << 11;
/// Version 5, Linux 6.10.
pub(crate) const FS_IOCTL_DEV: u64 = 1 << 15;

/// Every right that a version of the interface knows.
pub(crate) fn all_rights(version: u32) -> u64 {
    match version {
        0 => 0,
        1 => (1 << 13) - 1,
        // FS_REFER; a rename into another folder is refused where it is not granted, whatever the version.
        2 => (1 << 14) - 1,
        // FS_TRUNCATE.
        3 | 4 => (1 << 15) - 1,
        _ => (1 << 16) - 1,
    }
}

/// The rights that make sense for what is no directory; a rule for a file may hold no others.
pub(crate) const FILE_RIGHTS: u64 = 1 | 1 << 1 | 1 << 2 | 1 << 14 | FS_IOCTL_DEV;

const CREATE_RULESET_VERSION: libc::c_uint = 1;
const RULE_PATH_BENEATH: libc::c_int = 1;

/// `struct landlock_path_beneath_attr`, which is packed.
#[repr(C, packed)]
struct PathBeneath {
    allowed_access: u64,
    parent_fd: i32,
}

/// The version of the kernel's interface; 0 where there is none or it is turned off.
pub(crate) fn version() -> u32 {
    // SAFETY: with this flag the kernel demands and gets a null pointer of size 0 and only returns a number.
    let version = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<libc::c_void>(),
            0_usize,
            CREATE_RULESET_VERSION,
        )
    };
    u32::try_from(version).unwrap_or(0)
}

/// Rights that are gone except where a rule gives them back.
#[derive(Debug)]
pub(crate) struct Ruleset(OwnedFd);

impl Ruleset {
    /// Over the rights on files in `handled`.
    pub(crate) fn new(handled: u64) -> io::Result<Self> {
        // SAFETY: the first field of `struct landlock_ruleset_attr` is `__u64 handled_access_fs`, and the size says that
        // it is the only one given; the kernel reads it during the call.
        let fd = unsafe {
            libc::syscall(
                libc::SYS_landlock_create_ruleset,
                std::ptr::from_ref(&handled),
                size_of::<u64>(),
                0 as libc::c_uint,
            )
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call has just returned this descriptor (close-on-exec), which nobody else knows.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd as i32) }))
    }

    /// Gives `rights` back for the file, or the directory and all below it, that `place` is.
    pub(crate) fn allow(&self, place: impl AsFd, rights: u64) -> io::Result<()> {
        let rule = PathBeneath { allowed_access: rights, parent_fd: place.as_fd().as_raw_fd() };
        // SAFETY: `rule` has the layout of `struct landlock_path_beneath_attr` and outlives the call; both descriptors are
        // open.
        let added = unsafe {
            libc::syscall(
                libc::SYS_landlock_add_rule,
                self.0.as_raw_fd(),
                RULE_PATH_BENEATH,
                std::ptr::from_ref(&rule),
                0 as libc::c_uint,
            )
        };
        if added == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Puts the calling thread into the domain, for ever. Needs no_new_privs.
    pub(crate) fn restrict_self(self) -> io::Result<()> {
        // SAFETY: no memory is passed, and the descriptor is open.
        let done =
            unsafe { libc::syscall(libc::SYS_landlock_restrict_self, self.0.as_raw_fd(), 0 as libc::c_uint) };
        if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_rule_gives_back_is_gone_for_the_thread_and_only_for_it() {
        if version() == 0 {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), "x").unwrap();
        let (inside, outside) = (dir.path().to_owned(), dir.path().join("file"));
        std::fs::create_dir(inside.join("allowed")).unwrap();
        let seen = std::thread::spawn(move || {
            let all = all_rights(version());
            let ruleset = Ruleset::new(all).unwrap();
            ruleset.allow(std::fs::File::open(inside.join("allowed")).unwrap(), all).unwrap();
            rustix::thread::set_no_new_privs(true).unwrap();
            ruleset.restrict_self().unwrap();
            (
                std::fs::write(inside.join("allowed/new"), "y").map_err(|error| error.kind()),
                std::fs::read(outside).map_err(|error| error.kind()),
            )
        })
        .join()
        .unwrap();
        assert_eq!(seen, (Ok(()), Err(io::ErrorKind::PermissionDenied)));
        assert_eq!(std::fs::read(dir.path().join("file")).unwrap(), b"x");
    }
}
