//! File descriptors that come from outside or must not reach the next program.
#![expect(
    unsafe_code,
    reason = "adopting an inherited descriptor number and close_range(2) have no safe wrapper"
)]

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

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

/// Marks every open descriptor from `first` up as close-on-exec: close_range(2) with `CLOSE_RANGE_CLOEXEC`, Linux
/// 5.11. None is closed now, so owners in this process stay valid.
pub(crate) fn cloexec_from(first: u32) -> io::Result<()> {
    // SAFETY: only flags of descriptors change; no memory is passed.
    let result = unsafe {
        libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC as libc::c_uint)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
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
}
