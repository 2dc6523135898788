//! `run` and `exec` without `--detach`: we stay, pass signals and the terminal on, and end as the process ends.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::process::{WaitId, WaitIdOptions, waitid};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr, tcsetwinsize};

use super::error::{Attempt, Error};
use crate::sys::signal;

const COPY_BYTES: usize = 16 << 10;

/// Receives the master of the terminal that the first process has sent.
pub(super) fn receive_terminal(socket: &OwnedFd) -> Result<OwnedFd, Error> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = [0u8; 64];
    let mut iov = [io::IoSliceMut::new(&mut bytes)];
    recvmsg(socket, &mut iov, &mut control, RecvFlags::CMSG_CLOEXEC)
        .attempt(|| "receive the terminal".to_owned())?;
    control
        .drain()
        .find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        })
        .ok_or_else(|| Error::Init("the container's first process sent no terminal".to_owned()))
}

/// Puts our own terminal back as it was.
struct Raw(Option<Termios>);

impl Raw {
    fn enter() -> Self {
        let stdin = rustix::stdio::stdin();
        let Ok(before) = tcgetattr(stdin) else { return Self(None) };
        let mut raw = before.clone();
        raw.make_raw();
        // A terminal that cannot be made raw is still usable.
        let _ = tcsetattr(stdin, OptionalActions::Now, &raw);
        Self(Some(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            let _ = tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, before);
        }
    }
}

/// Waits for a child of ours, passing on signals (from a descriptor of [`signal::block_all_into_fd`]) and, with a
/// terminal, bytes and window size. Returns its exit code, 128 + n for a death by signal n.
pub(super) fn attend(
    pidfd: BorrowedFd<'_>,
    signals: &OwnedFd,
    terminal: Option<OwnedFd>,
) -> Result<u8, Error> {
    const SIGCHLD: i32 = 17;
    const SIGWINCH: i32 = 28;
    let raw = terminal.as_ref().map(|_| Raw::enter());
    let mut stdin_open = terminal.is_some();
    let mut terminal_open = terminal.is_some();
    let resize = || {
        if let (Some(terminal), Ok(size)) = (&terminal, tcgetwinsize(rustix::stdio::stdin())) {
            let _ = tcsetwinsize(terminal, size);
        }
    };
    resize();
    let mut exit = None;
    while exit.is_none() || terminal_open {
        let none = PollFlags::empty();
        let mut wait = vec![
            PollFd::from_borrowed_fd(signals.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(pidfd, if exit.is_none() { PollFlags::IN } else { none }),
        ];
        if let Some(terminal) = &terminal {
            wait.push(PollFd::new(terminal, if terminal_open { PollFlags::IN } else { none }));
            let stdin = if stdin_open { PollFlags::IN } else { none };
            wait.push(PollFd::from_borrowed_fd(rustix::stdio::stdin(), stdin));
        }
        rustix::io::retry_on_intr(|| poll(&mut wait, None)).attempt(|| "wait for the process".to_owned())?;
        let ready: Vec<bool> = wait.iter().map(|fd| !fd.revents().is_empty()).collect();
        drop(wait);
        if ready[0] {
            match signal::take(signals).attempt(|| "take a signal".to_owned())? {
                SIGCHLD => {}
                SIGWINCH => resize(),
                number => {
                    // It may have ended in between.
                    let _ = signal::send(pidfd, number);
                }
            }
        }
        if ready[1] && exit.is_none() {
            let status = waitid(WaitId::PidFd(pidfd), WaitIdOptions::EXITED)
                .attempt(|| "wait for the process".to_owned())?
                .ok_or_else(|| Error::Init("the process ended without a status".to_owned()))?;
            let code = status.exit_status().or(status.terminating_signal().map(|signal| 128 + signal));
            exit = Some(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(255));
        }
        if let Some(terminal) = &terminal {
            if ready[2] && terminal_open {
                terminal_open = copy(terminal.as_fd(), rustix::stdio::stdout());
            } else if exit.is_some() {
                // All that was written has been read.
                terminal_open = false;
            }
            if ready[3] && stdin_open {
                stdin_open = copy(rustix::stdio::stdin(), terminal.as_fd());
            }
        }
    }
    drop(raw);
    Ok(exit.unwrap_or(255))
}

/// Copies what is there; `false` at the end or on an error (a terminal without slaves answers EIO).
fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> bool {
    let mut bytes = [0u8; COPY_BYTES];
    match rustix::io::read(from, &mut bytes) {
        Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => true,
        Ok(0) | Err(_) => false,
        Ok(length) => {
            let mut rest = &bytes[..length];
            while !rest.is_empty() {
                match rustix::io::retry_on_intr(|| rustix::io::write(to, rest)) {
                    Ok(written) => rest = &rest[written..],
                    Err(_) => return false,
                }
            }
            true
        }
    }
}
