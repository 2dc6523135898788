//! `start`: releases the first process and waits until the program runs, or says why it does not.

use std::os::fd::AsFd;
use std::path::Path;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags};

use super::error::{Attempt, Error};
use super::state::{Container, Directory, Status};
use super::{hooks, log};
use crate::sys::signal;

/// The reason is one line of text.
const OUTCOME_BYTES_MAX: usize = 4096;

pub(super) fn start(root: &Path, id: &str) -> Result<(), Error> {
    let directory = Directory::open(root, id)?;
    let container = Container::load(root, id)?;
    let status = container.status();
    let refused = |status: Status| Error::State {
        verb: "start",
        id: id.to_owned(),
        status: status.name(),
        remedy: "only a created container can be started",
    };
    if status != Status::Created {
        return Err(refused(status));
    }
    let config = container.config()?;
    let open = |name: &str, flags: OFlags| {
        rustix::fs::open(directory.file(name), flags | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())
    };
    let outcome = open("outcome", OFlags::RDONLY).attempt(|| "open the fifo outcome".to_owned())?;
    let go = match open("start", OFlags::WRONLY) {
        // No reader: a start before this one was interrupted after it had released the process.
        Err(rustix::io::Errno::NXIO) => {
            forget_fifos(&directory);
            return Err(refused(container.status()));
        }
        result => result.attempt(|| "open the fifo start".to_owned())?,
    };
    rustix::io::write(&go, b"1").attempt(|| "release the container's first process".to_owned())?;
    // The writer's end closes with execve(2), or with the process's death.
    let mut text = Vec::new();
    loop {
        let mut wait = [PollFd::from_borrowed_fd(outcome.as_fd(), PollFlags::IN)];
        match poll(&mut wait, None) {
            Err(rustix::io::Errno::INTR) => continue,
            result => result.attempt(|| "wait for the program to start".to_owned())?,
        };
        let mut bytes = [0u8; OUTCOME_BYTES_MAX];
        match rustix::io::read(&outcome, &mut bytes) {
            Ok(0) => break,
            Ok(length) if text.len() < OUTCOME_BYTES_MAX => text.extend_from_slice(&bytes[..length]),
            Ok(_) | Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).attempt(|| "read the fifo outcome".to_owned()),
        }
    }
    forget_fifos(&directory);
    if !text.is_empty() {
        return Err(Error::Init(String::from_utf8_lossy(&text).into_owned()));
    }
    if let Err(error) = hooks::run("poststart", &config.hooks.poststart, &container.document("running")) {
        // Runtime-spec 1.2, "Lifecycle" 11: generate an error and stop the container.
        if let Some(init) = container.record.process.open() {
            let _ = signal::send(&init, 9);
        }
        return Err(error);
    }
    Ok(())
}

fn forget_fifos(directory: &Directory) {
    for name in ["start", "outcome"] {
        if let Err(error) = std::fs::remove_file(directory.file(name)) {
            log::warn(&format!("cannot remove the fifo {name}: {error}"));
        }
    }
}
