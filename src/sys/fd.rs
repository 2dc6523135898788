//! File descriptors that come from outside or must not reach the next program.
#![expect(
    unsafe_code,
    reason = "adopting an inherited descriptor number and close_range(2) have no safe wrapper"
)]

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
#[cfg(feature = "daemon")]
use std::{fs::File, path::Path};

/// Opens a regular file for reading. Anything else is an error, at once: open(2) of a FIFO would wait for a writer, and for
/// good hold the thread that reads somebody's configuration.
#[cfg(feature = "daemon")]
pub(crate) fn open_regular(path: &Path) -> io::Result<File> {
    use rustix::fs::{CWD, Mode, OFlags};

    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = File::from(rustix::fs::openat(CWD, path, flags, Mode::empty())?);
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"))
    }
}

/// Takes ownership of a descriptor that this process inherited at exec.
///
/// The descriptor becomes close-on-exec. Errors with `EBADF` if the number is not open, and with `EINVAL` for the
/// three standard streams, which always have an owner in std.
pub(crate) fn adopt_inherited(number: RawFd) -> io::Result<OwnedFd> {
    if number <= libc::STDERR_FILENO {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: F_SETFD takes an integer and touches no memory; a closed number is answered by EBADF.
    if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the number is open (checked above) and was handed to us by whoever executed this program, so nothing
    // else in the process owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Closes every descriptor from `first` up, except those in `keep`: close_range(2), Linux 5.9.
///
/// For two moments only: first thing in `main`, before this process has opened or adopted anything in that range; and
/// in the child of a fork that ends by execve(2) or `_exit(2)`, where the parent's values are copies that are never
/// dropped. At any other time it would close files that have owners.
pub(crate) fn close_all_but(first: u32, keep: &[u32]) -> io::Result<()> {
    let mut kept: Vec<u32> = keep.iter().copied().filter(|fd| *fd >= first).collect();
    kept.sort_unstable();
    let mut next = first;
    for fd in kept.into_iter().map(Some).chain([None]) {
        let last = fd.map_or(u32::MAX, |fd| fd.wrapping_sub(1));
        if fd.is_none_or(|fd| fd > next) {
            // SAFETY: only descriptors are closed, no memory is passed; that nobody will use them is the caller's
            // promise above.
            if unsafe { libc::syscall(libc::SYS_close_range, next, last, 0) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        next = fd.map_or(next, |fd| fd.saturating_add(1).max(next));
    }
    Ok(())
}

/// Clears close-on-exec on an inherited number, so that the next program gets it. A closed number is `EBADF`.
pub(crate) fn keep_on_exec(number: RawFd) -> io::Result<()> {
    // SAFETY: F_SETFD takes an integer and touches no memory.
    if unsafe { libc::fcntl(number, libc::F_SETFD, 0) } < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_number_or_a_standard_stream_is_not_adopted() {
        assert_eq!(adopt_inherited(1 << 20).unwrap_err().raw_os_error(), Some(libc::EBADF));
        assert_eq!(adopt_inherited(1).unwrap_err().raw_os_error(), Some(libc::EINVAL));
    }

    #[cfg(feature = "daemon")]
    #[test]
    fn what_is_no_regular_file_is_refused_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let (fifo, file) = (dir.path().join("fifo"), dir.path().join("file"));
        rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, 0o600.into()).unwrap();
        std::fs::write(&file, "text").unwrap();
        for path in [fifo.as_path(), dir.path(), Path::new("/dev/null")] {
            assert_eq!(open_regular(path).unwrap_err().to_string(), "not a regular file", "{path:?}");
        }
        assert_eq!(io::read_to_string(open_regular(&file).unwrap()).unwrap(), "text");
    }
}
