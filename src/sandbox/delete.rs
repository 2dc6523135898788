//! `delete`: ends what is left and removes every trace. Repeating it after an interruption finishes the work.

use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};

use super::error::{Attempt, Error};
use super::state::{Container, Directory, Status};
use super::{hooks, log, resources};
use crate::sys::signal;

/// A killed process that has not ended by then hangs in the kernel.
const DEATH_WAIT: Duration = Duration::from_secs(10);

pub(super) fn delete(root: &Path, id: &str, force: bool) -> Result<(), Error> {
    let directory = match Directory::open(root, id) {
        Err(Error::Missing(_)) if force => return Ok(()),
        result => result?,
    };
    let container = match Container::load(root, id) {
        Ok(container) => container,
        Err(Error::Missing(_)) if directory.path.exists() => return forget_unfinished(&directory, id),
        Err(Error::Missing(_)) if force => return Ok(()),
        Err(error) => return Err(error),
    };
    let status = container.status();
    match status {
        Status::Stopped | Status::Created => {}
        Status::Creating | Status::Running | Status::Paused if force => {}
        Status::Creating | Status::Running | Status::Paused => {
            return Err(Error::State {
                verb: "delete",
                id: id.to_owned(),
                status: status.name(),
                remedy: "stop it first or use --force",
            });
        }
    }
    let group = container.group()?;
    if let Some(init) = container.record.process.open() {
        signal::send(&init, 9).attempt(|| "kill the container's first process".to_owned())?;
        if status == Status::Paused
            && let Some(group) = &group
        {
            group.freeze(false)?;
        }
        let mut wait = [PollFd::new(&init, PollFlags::IN)];
        let timeout = DEATH_WAIT.try_into().ok();
        let ended = rustix::io::retry_on_intr(|| poll(&mut wait, timeout.as_ref()))
            .attempt(|| "wait for the container's first process to end".to_owned())?;
        if ended == 0 {
            return Err(Error::State {
                verb: "delete",
                id: id.to_owned(),
                status: "dying",
                remedy: "its process does not end after SIGKILL; look at its state in ps",
            });
        }
    }
    if let Some(group) = &group {
        // Processes that share a PID namespace with others do not die with the first.
        group.kill_all()?;
        group.remove()?;
    }
    if let Ok(config) = container.config() {
        for error in hooks::run_all("poststop", &config.hooks.poststop, &container.document("stopped")) {
            log::warn(&error.chain());
        }
    }
    directory.remove()
}

/// A create that was killed half-way: its first process ended with it, for it saw the end of the socket.
fn forget_unfinished(directory: &Directory, id: &str) -> Result<(), Error> {
    for manager in [super::cgroup::Manager::Cgroupfs, super::cgroup::Manager::Systemd] {
        if let Ok(Some(group)) = resources::open(manager, id, &directory.path) {
            group.kill_all()?;
            group.remove()?;
        }
    }
    directory.remove()
}
