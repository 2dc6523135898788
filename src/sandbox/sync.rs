//! What the creating process and the container's first process tell each other during set-up.
//!
//! ```text
//! create                      init
//!   Go(pid) ──────────────────▶   mappings, cgroups, oom score are in place; pid is the init's on the host
//!   ◀──────────────────── Hooks   namespaces and mounts are there: run prestart and createRuntime
//!   Go ───────────────────────▶
//!   ◀──────────────────── Ready   all but seccomp and exec is done
//! ```
//!
//! or `Failed(text)` at any time. The other end's death is the end of the conversation. It is a pair of
//! sequenced-packet sockets, so a message is read whole or not at all.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair};

/// Error texts are a few lines; what is longer is cut.
const MESSAGE_BYTES_MAX: usize = 16 << 10;

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Message {
    Go(i32),
    Forked(i32),
    Hooks,
    Ready,
    Failed(String),
    /// The other end is gone.
    End,
}

#[derive(Debug)]
pub(super) struct End(OwnedFd);

pub(super) fn pair() -> io::Result<(End, End)> {
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    Ok((End(ours), End(theirs)))
}

impl End {
    /// The descriptor's number.
    pub(super) fn number(&self) -> u32 {
        use std::os::fd::AsRawFd;
        self.0.as_raw_fd() as u32
    }

    pub(super) fn send(&self, message: &Message) -> io::Result<()> {
        let bytes = match message {
            Message::Go(pid) => [b"G".as_slice(), &pid.to_ne_bytes()].concat(),
            Message::Forked(pid) => [b"P".as_slice(), &pid.to_ne_bytes()].concat(),
            Message::Hooks => b"H".to_vec(),
            Message::Ready => b"R".to_vec(),
            Message::Failed(text) => {
                [b"E".as_slice(), &text.as_bytes()[..text.len().min(MESSAGE_BYTES_MAX - 1)]].concat()
            }
            Message::End => return Ok(()),
        };
        rustix::io::retry_on_intr(|| send(self.0.as_fd(), &bytes, SendFlags::NOSIGNAL))?;
        Ok(())
    }

    /// Blocks until the other end says something or is gone.
    pub(super) fn receive(&self) -> io::Result<Message> {
        let mut bytes = vec![0u8; MESSAGE_BYTES_MAX];
        let (length, _) =
            rustix::io::retry_on_intr(|| recv(self.0.as_fd(), bytes.as_mut_slice(), RecvFlags::empty()))?;
        let number = |rest: &[u8]| rest.try_into().map(i32::from_ne_bytes);
        Ok(match bytes[..length].split_first() {
            None => Message::End,
            Some((b'G', rest)) => Message::Go(number(rest).map_err(|_| io::ErrorKind::InvalidData)?),
            Some((b'P', rest)) => Message::Forked(number(rest).map_err(|_| io::ErrorKind::InvalidData)?),
            Some((b'H', _)) => Message::Hooks,
            Some((b'R', _)) => Message::Ready,
            Some((b'E', text)) => Message::Failed(String::from_utf8_lossy(text).into_owned()),
            Some(_) => return Err(io::ErrorKind::InvalidData.into()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_arrive_whole_and_the_end_is_seen() {
        let (a, b) = pair().unwrap();
        for message in [
            Message::Go(77),
            Message::Forked(i32::MAX),
            Message::Hooks,
            Message::Ready,
            Message::Failed("x".into()),
        ] {
            a.send(&message).unwrap();
            assert_eq!(b.receive().unwrap(), message);
        }
        a.send(&Message::Failed("y".repeat(1 << 20))).unwrap();
        assert!(matches!(b.receive().unwrap(), Message::Failed(text) if text.len() == MESSAGE_BYTES_MAX - 1));
        drop(a);
        assert_eq!(b.receive().unwrap(), Message::End);
    }
}
