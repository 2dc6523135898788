//! `kill`, `pause` and `resume`: signals by pidfd, and the freezer.

use std::path::Path;

use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::error::{Attempt, Error};
use super::resources::Group;
use super::state::{Container, Status};
use crate::sys::signal;

const SIGKILL: i32 = 9;

/// Sends a signal to the first process, or with `all` to every process in the container's cgroup.
pub(super) fn kill(root: &Path, id: &str, signal: &str, all: bool) -> Result<(), Error> {
    let number = signal::parse(signal).ok_or_else(|| {
        Error::invalid("the signal", signal, "signals are 1 to 64, or names such as SIGTERM")
    })?;
    let container = Container::load(root, id)?;
    let group = container.group()?;
    if all && let Some(group) = &group {
        return send_all(group, number);
    }
    let init = container.init()?;
    match signal::send(&init, number) {
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => {
            return Err(Error::NotRunning(id.to_owned()));
        }
        result => {
            result.attempt(|| format!("send signal {number} to process {}", container.record.process.pid))?
        }
    }
    if number == SIGKILL
        && let Some(group) = group.filter(Group::is_frozen)
    {
        // A frozen process of cgroup v1 dies only when it thaws.
        group.freeze(false)?;
    }
    Ok(())
}

fn send_all(group: &Group, number: i32) -> Result<(), Error> {
    if number == SIGKILL {
        return group.kill_all();
    }
    for pid in group.pids()? {
        let Some(pidfd) = Pid::from_raw(pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok()) else {
            continue;
        };
        // The pid may have been recycled before it was opened; it is ours only if it is still in the cgroup.
        if group.pids()?.contains(&pid)
            && let Err(error) = signal::send(&pidfd, number)
            && error.raw_os_error() != Some(rustix::io::Errno::SRCH.raw_os_error())
        {
            return Err(error).attempt(|| format!("send signal {number} to process {pid}"));
        }
    }
    Ok(())
}

/// `pause` and `resume`.
pub(super) fn freeze(root: &Path, id: &str, frozen: bool) -> Result<(), Error> {
    let container = Container::load(root, id)?;
    let status = container.status();
    let (verb, wanted, remedy) = if frozen {
        ("pause", &[Status::Running, Status::Created][..], "only a running container can be paused")
    } else {
        ("resume", &[Status::Paused][..], "only a paused container can be resumed")
    };
    if !wanted.contains(&status) {
        return Err(Error::State { verb, id: id.to_owned(), status: status.name(), remedy });
    }
    match container.group()? {
        Some(group) => group.freeze(frozen),
        None => Err(Error::Unsupported(format!("{verb} without control groups"))),
    }
}
