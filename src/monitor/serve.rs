//! Connections of the monitor's process: frames in, frames out, never blocking.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::wire::{self, Decoder, FromMonitor, ToMonitor};
use crate::sys::socket;

/// Answers that a peer does not read. Beyond it the connection is dropped; a reconnecting daemon asks for the status.
const UNREAD_MAX: usize = 4 << 20;

/// Who gets the answer to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ReplyTo {
    pub(super) connection: u64,
    pub(super) request: u64,
}

/// One peer.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) id: u64,
    socket: OwnedFd,
    decoder: Decoder,
    unsent: VecDeque<(Vec<u8>, Vec<OwnedFd>)>,
    /// Of the first frame in `unsent`.
    sent: usize,
    pub(super) broken: bool,
}

impl Connection {
    /// `socket` does not block.
    pub(super) fn new(id: u64, socket: OwnedFd, decoder: Decoder) -> Self {
        Self { id, socket, decoder, unsent: VecDeque::new(), sent: 0, broken: false }
    }

    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    pub(super) fn wants_to_send(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// Queues a message and sends what fits.
    pub(super) fn send(&mut self, message: &FromMonitor, fds: Vec<OwnedFd>) {
        let unread: usize = self.unsent.iter().map(|(frame, _)| frame.len()).sum();
        match wire::encode(message, fds.len()) {
            Ok(frame) if unread + frame.len() <= UNREAD_MAX => self.unsent.push_back((frame, fds)),
            _ => self.broken = true,
        }
        self.flush();
    }

    /// Sends what fits.
    pub(super) fn flush(&mut self) {
        while let Some((frame, fds)) = self.unsent.front_mut() {
            let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
            match socket::send(&self.socket, &frame[self.sent..], &borrowed) {
                Ok((n, with)) => {
                    fds.drain(..with);
                    self.sent += n;
                    if self.sent == frame.len() {
                        self.unsent.pop_front();
                        self.sent = 0;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => {
                    self.broken = true;
                    return;
                }
            }
        }
        self.unsent = VecDeque::new();
    }

    /// Takes what has arrived. After an error or the end the connection is broken.
    pub(super) fn receive(&mut self) {
        let (mut buffer, mut fds) = ([0; 4096], Vec::new());
        match socket::receive(&self.socket, &mut buffer, &mut fds) {
            Ok(0) => self.broken = true,
            Ok(n) => self.decoder.push(&buffer[..n], fds),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                eprintln!("brig-monitor: dropping a connection: {error}");
                self.broken = true;
            }
        }
    }

    /// The next whole request.
    pub(super) fn next(&mut self) -> Option<(ToMonitor, Vec<OwnedFd>)> {
        match self.decoder.next() {
            Ok(next) => next,
            Err(error) => {
                eprintln!("brig-monitor: dropping a connection: {error}");
                self.broken = true;
                None
            }
        }
    }
}
