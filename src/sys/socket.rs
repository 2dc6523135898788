//! Bytes and file descriptors over unix sockets.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};

/// Bytes of control data for [`FDS_MAX`] descriptors: a 16-byte header and four bytes each (cmsg(3)).
const CONTROL: usize = 16 + 4 * FDS_MAX + 12;

/// `SCM_MAX_FD` of the kernel: one message carries no more (unix(7)).
pub(crate) const FDS_MAX: usize = 253;

/// Two connected stream sockets, close-on-exec.
#[cfg(any(feature = "daemon", test))]
pub(crate) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?)
}

/// A listening stream socket at `path`, close-on-exec and non-blocking. `path` must not exist yet and be shorter than
/// 108 bytes (unix(7)); its mode follows the umask, so its directory should be private.
pub(crate) fn listen(path: &Path) -> io::Result<OwnedFd> {
    // The longest queue: connections come from one daemon and an operator.
    const BACKLOG: i32 = 8;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket)
}

/// The next connection, close-on-exec and non-blocking.
pub(crate) fn accept(listener: impl AsFd) -> io::Result<OwnedFd> {
    Ok(rustix::net::accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?)
}

/// Sends some of `bytes` and the first [`FDS_MAX`] of `fds`, and says how many of each. More descriptors than that go with
/// the bytes that follow, one byte for each further message: there must be as many. Never raises SIGPIPE.
pub(crate) fn send(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<(usize, usize)> {
    let (fds, further) = fds.split_at(fds.len().min(FDS_MAX));
    let bytes = if further.is_empty() { bytes } else { &bytes[..1] };
    let mut space = [MaybeUninit::uninit(); CONTROL];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "more descriptors than one message carries"));
    }
    let flags = SendFlags::NOSIGNAL;
    let sent = rustix::io::retry_on_intr(|| {
        rustix::net::sendmsg(&socket, &[IoSlice::new(bytes)], &mut control, flags)
    })?;
    Ok((sent, fds.len()))
}

/// Receives some bytes into `buffer`, and the descriptors that came with them (close-on-exec). 0 is the end. Errors if this
/// process may not have as many files open: the kernel has dropped some then, and nobody could tell whose the others are.
pub(crate) fn receive(socket: impl AsFd, buffer: &mut [u8], fds: &mut Vec<OwnedFd>) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); CONTROL];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC;
    let received = rustix::io::retry_on_intr(|| {
        rustix::net::recvmsg(&socket, &mut [IoSliceMut::new(buffer)], &mut control, flags)
    })?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    if received.flags.contains(ReturnFlags::CTRUNC) {
        return Err(io::Error::other("descriptors got lost at the limit of open files; raise RLIMIT_NOFILE"));
    }
    Ok(received.bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_travel_with_the_bytes() {
        let (a, b) = pair().unwrap();
        let (read, write) = rustix::pipe::pipe().unwrap();
        assert_eq!(send(&a, b"x", &[write.as_fd()]).unwrap(), (1, 1));
        drop(write);
        let (mut buffer, mut fds) = ([0; 8], Vec::new());
        assert_eq!(receive(&b, &mut buffer, &mut fds).unwrap(), 1);
        assert_eq!(fds.len(), 1);
        rustix::io::write(&fds[0], b"through").unwrap();
        assert_eq!(rustix::io::read(&read, &mut buffer).unwrap(), 7);
        drop(a);
        assert_eq!(receive(&b, &mut buffer, &mut fds).unwrap(), 0);
    }
}
