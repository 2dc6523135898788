//! Commands with streams, the daemon's end: one [`ExecSession`] each.
//!
//! The command itself holds the other ends of our pipes, or our terminal: no byte of it passes through the monitor, which
//! starts it and reports its end.
//!
//! # A client that goes away
//!
//! Its command is left to itself, as with containerd and CRI-O: the streaming library that they share does not cancel a
//! command when its connection breaks, and only the streams end. Without a terminal the command reads the end of its
//! input and writes into a broken pipe. A terminal is hung up, since we hold the only other side of it: SIGHUP reaches
//! the leader of its session and the group in its foreground (tty_hangup of the kernel), so a shell ends with what runs
//! in it, and `nohup` works as it does elsewhere. Whatever goes on ends with its container.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use tokio::sync::{OwnedSemaphorePermit, watch};

use super::client::{ANSWER_MARGIN, Monitor, MonitorError, RUNTIME_WAIT, millis, unexpected};
use super::wire::{Exec, Reply, Request};

pub(crate) use super::client::ExecEnd;

/// Bytes that a pipe of a client holds. Four times the default: a command that writes as fast as it can waits for our
/// next read a quarter as often. Pages are taken only for what is in it.
const PIPE_BYTES: usize = 256 << 10;

/// Which streams a client wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Streams {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    /// One terminal instead of three pipes; what it is written is on stdout.
    pub terminal: bool,
}

/// A command that runs, and our ends of its streams. None of them blocks.
#[derive(Debug)]
pub(crate) struct ExecSession {
    pub process: ExecProcess,
    /// Its controlling side. With it there are no pipes.
    pub terminal: Option<OwnedFd>,
    pub stdin: Option<OwnedFd>,
    pub stdout: Option<OwnedFd>,
    pub stderr: Option<OwnedFd>,
}

/// A command's process. Dropped, the command goes on; see the module about clients that go away.
#[derive(Debug)]
pub(crate) struct ExecProcess {
    monitor: Monitor,
    name: String,
    end: watch::Receiver<Option<ExecEnd>>,
    _place: OwnedSemaphorePermit,
}

impl Monitor {
    /// Starts `process` (an OCI Process, which says the same about a terminal as `streams`) in a container.
    pub(crate) async fn exec(
        &self,
        id: &str,
        process: String,
        streams: Streams,
    ) -> Result<ExecSession, MonitorError> {
        let line = self.line()?;
        let place = std::sync::Arc::clone(&line.sessions).try_acquire_owned();
        let _place = place.map_err(|_| MonitorError::TooManySessions)?;
        let piped = |wanted: bool| wanted && !streams.terminal;
        let (stdin, command_stdin) = input_pipe(piped(streams.stdin))?;
        let (stdout, command_stdout) = output_pipe(piped(streams.stdout))?;
        let (stderr, command_stderr) = output_pipe(piped(streams.stderr))?;
        let (name, end) = line.expect_exec()?;
        // From here on whatever goes wrong takes the name back.
        let process_of = ExecProcess { monitor: self.clone(), name: name.clone(), end, _place };
        let request = Request::Exec(Exec {
            exec: name,
            container: id.to_owned(),
            process,
            terminal: streams.terminal,
            stdin: command_stdin.is_some(),
            stdout: command_stdout.is_some(),
            stderr: command_stderr.is_some(),
            timeout_ms: 0,
            start_timeout_ms: millis(RUNTIME_WAIT),
            streams: true,
        });
        let ends: Vec<OwnedFd> =
            [command_stdin, command_stdout, command_stderr].into_iter().flatten().collect();
        let (reply, fds) = self.ask("exec", request, ends, RUNTIME_WAIT + ANSWER_MARGIN).await?;
        let Reply::ExecStarted { .. } = reply else { return Err(unexpected("exec", id, reply)) };
        let terminal = fds.into_iter().next().filter(|_| streams.terminal);
        if streams.terminal && terminal.is_none() {
            return Err(MonitorError::Confused { what: "exec" });
        }
        if let Some(terminal) = &terminal {
            unblock(terminal)?;
        }
        Ok(ExecSession { process: process_of, terminal, stdin, stdout, stderr })
    }
}

impl ExecProcess {
    /// Returns once the command's own process has ended, whoever else it left behind. Cancel-safe.
    pub(crate) async fn wait(&self) -> Result<ExecEnd, MonitorError> {
        self.monitor.line()?.wait("exec", &mut self.end.clone()).await
    }

    /// The client has gone away, and nobody will ask for the end.
    pub(crate) fn leave(self) {
        tracing::debug!(exec = self.name, "a command is left to itself");
    }
}

impl Drop for ExecProcess {
    fn drop(&mut self) {
        if let Ok(line) = self.monitor.line() {
            line.forget_exec(&self.name);
        }
    }
}

/// A pipe into a process: our end, which does not block, and the process's.
pub(super) fn input_pipe(wanted: bool) -> Result<(Option<OwnedFd>, Option<OwnedFd>), MonitorError> {
    if !wanted {
        return Ok((None, None));
    }
    let (read, write) = pipe()?;
    unblock(&write)?;
    Ok((Some(write), Some(read)))
}

/// A pipe out of a process: our end, which does not block, and the process's.
pub(super) fn output_pipe(wanted: bool) -> Result<(Option<OwnedFd>, Option<OwnedFd>), MonitorError> {
    if !wanted {
        return Ok((None, None));
    }
    let (read, write) = pipe()?;
    unblock(&read)?;
    Ok((Some(read), Some(write)))
}

fn pipe() -> Result<(OwnedFd, OwnedFd), MonitorError> {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .map_err(|error| MonitorError::Local { action: "make a pipe", source: error.into() })?;
    // Refused beyond the share of pipes that a user may have (pipe-user-pages-soft); a small one works as well.
    rustix::pipe::fcntl_setpipe_size(&read, PIPE_BYTES).ok();
    Ok((read, write))
}

fn unblock(fd: impl AsFd) -> Result<(), MonitorError> {
    rustix::io::ioctl_fionbio(fd, true)
        .map_err(|error| MonitorError::Local { action: "set up a stream", source: io::Error::from(error) })
}
