//! `run`: create and start, and without `--detach` also wait and delete.

use std::os::fd::AsFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use super::create::{self, Request};
use super::error::{Attempt, Error};
use super::{delete, foreground, start};
use crate::sys::signal;

/// Returns the exit code for our own process.
pub(super) fn run(mut request: Request, detach: bool, keep: bool) -> Result<u8, Error> {
    let (root, id) = (request.root.clone(), request.id.clone());
    if detach {
        create::create(request)?;
        return match start::start(&root, &id) {
            Ok(()) => Ok(0),
            Err(error) => {
                let _ = delete::delete(&root, &id, true);
                Err(error)
            }
        };
    }
    let signals = signal::block_all_into_fd().attempt(|| "block signals".to_owned())?;
    // If the config wants a terminal and no socket is given, we are the other end of it ourselves.
    let mut console = None;
    if request.console_socket.is_none() {
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
            .attempt(|| "make a socket pair".to_owned())?;
        request.console_fd = Some(theirs);
        console = Some(ours);
    }
    let (identity, terminal) = create::create(request)?;
    let finished = (|| {
        let master = match (terminal, &console) {
            (true, Some(socket)) => Some(foreground::receive_terminal(socket)?),
            _ => None,
        };
        let init = identity.open().ok_or_else(|| Error::NotRunning(id.clone()))?;
        start::start(&root, &id)?;
        foreground::attend(init.as_fd(), &signals, master)
    })();
    if !keep || finished.is_err() {
        let deleted = delete::delete(&root, &id, true);
        if finished.is_ok() {
            deleted?;
        }
    }
    finished
}
