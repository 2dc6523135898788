//! The daemon's end of the wire: one [`Monitor`] per pod, any number of requests in flight.
//!
//! When the monitor ends, every request in flight and every later one answers [`MonitorError::Gone`]. How the connection is
//! kept is in `line.rs`.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::unix::pipe;
use tokio::sync::{mpsc, watch};

use super::line::Line;
use super::wire::{self, Create, Created, Exec, Failure, Ready, Reply, Request, Runtime, WireError};
use crate::sys::signal;
use crate::units::Bytes;

pub(crate) use super::wire::{ContainerState, ContainerStatus, Event, Status};

/// Commands at a time in one pod whose output we collect, further ones wait: each may hold 32 MiB of it, and a pod has a
/// few probes.
pub(super) const EXECS_MAX: usize = 32;

/// Commands with streams at a time in one pod, beside the former so that nobody's shells keep probes waiting. Further ones
/// are refused: a session may last for days. Each costs this process up to three pipes and no buffer.
pub(super) const SESSIONS_MAX: usize = 256;

/// What one read of a command's output takes at most.
const READ_BYTES: usize = 16 << 10;

/// A monitor answers what needs no OCI runtime at once; this long means that it hangs.
pub(super) const ANSWER_WAIT: Duration = Duration::from_secs(20);

/// For requests that the monitor itself bounds: it answers first.
pub(super) const ANSWER_MARGIN: Duration = Duration::from_secs(10);

/// How long the OCI runtime may take for start, kill, delete, pause, resume, update and the start of an exec.
pub(super) const RUNTIME_WAIT: Duration = Duration::from_secs(60);

/// How long a creation that nobody waits for may take to end: 10 s in all.
const UNFINISHED_TRIES: u32 = 200;
const UNFINISHED_AGAIN: Duration = Duration::from_millis(50);

/// Why a monitor did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MonitorError {
    #[error("the monitor has ended")]
    Gone,
    #[error(
        "the connection to the monitor broke, so it is not known whether {what} was done; repeat the call"
    )]
    Broken { what: &'static str },
    #[error("the monitor did not answer {what} within {after:?}; look at its log in the pod's directory")]
    NoAnswer { what: &'static str, after: Duration },
    #[error("the monitor does not know container {id}")]
    NoSuchContainer { id: String },
    #[error("the container is {state:?} in the monitor")]
    WrongState { state: ContainerState },
    #[error("the runtime failed to {stage}: {message}")]
    RuntimeFailed { stage: String, message: String },
    #[error("the runtime did not {stage} within {after:?} and was killed")]
    Timeout { stage: String, after: Duration },
    #[error("the monitor could not {action}: {message}")]
    System { action: String, message: String },
    #[error("the monitor refused the request: {message}")]
    Invalid { message: String },
    #[error("the monitor is older than this daemon and does not know {what}; run the pod anew")]
    Unsupported { what: &'static str },
    #[error("the monitor answered {what} with something else")]
    Confused { what: &'static str },
    #[error(
        "the container has {mounts} mounts, and its pod's monitor takes at most {max}; mount fewer, or folders instead of what \
         is in them"
    )]
    TooManyMounts { mounts: usize, max: usize },
    #[error("signal {0:?} is not known")]
    BadSignal(String),
    #[error("the pod has {SESSIONS_MAX} commands with streams already; end one of them first")]
    TooManySessions,
    #[error("cannot talk to the monitor at {}", path.display())]
    Connect {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot {action} for the monitor")]
    Local {
        action: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("cannot say it to the monitor")]
    Wire(#[from] WireError),
}

/// A container to create.
#[derive(Debug)]
pub(crate) struct CreateRequest {
    pub id: String,
    pub runtime: Runtime,
    pub bundle: PathBuf,
    pub log: Option<LogTarget>,
    pub terminal: bool,
    pub stdin: bool,
    pub stdin_once: bool,
    pub cgroup: String,
    /// A detached mount, for runtimes that take one.
    pub rootfs: Option<OwnedFd>,
    /// Detached mounts and the indexes of the mounts in the OCI config that they are the sources of.
    pub mounts: Vec<(usize, OwnedFd)>,
    pub timeout: Duration,
}

/// A log file: a name in an open directory.
#[derive(Debug)]
pub(crate) struct LogTarget {
    pub directory: OwnedFd,
    pub name: String,
}

/// What an ExecSync produced.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct ExecOutput {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    /// 128 + n for signal n.
    pub exit_code: i32,
    pub timed_out: bool,
}

/// A connection to a monitor. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Monitor(pub(super) Option<Arc<Line>>);

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ExecEnd {
    /// 128 + n for signal n.
    pub code: i32,
    pub timed_out: bool,
}

/// Why an attach is over that its client did not end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AttachEnd {
    /// The container has exited, and all it wrote is in the pipes, which are at their end.
    Exited,
    /// The client took output more slowly than the container made it, until its buffer was full.
    Slow,
    /// The monitor has gone, or has a reason that this daemon does not know.
    Gone,
}

impl From<wire::AttachEnd> for AttachEnd {
    fn from(end: wire::AttachEnd) -> Self {
        match end {
            wire::AttachEnd::Exited => Self::Exited,
            wire::AttachEnd::Slow => Self::Slow,
            wire::AttachEnd::Unknown => Self::Gone,
        }
    }
}

impl Monitor {
    /// A monitor that has ended: every request answers [`MonitorError::Gone`].
    pub(crate) fn gone() -> Self {
        Self(None)
    }

    /// Finds the monitor of an earlier daemon again.
    pub(crate) async fn connect(path: &Path) -> Result<(Self, Status), MonitorError> {
        let failed = |source: io::Error| MonitorError::Connect { path: path.to_owned(), source };
        let stream = tokio::net::UnixStream::connect(path).await.map_err(failed)?;
        // The peer's credentials are those of the daemon that made the listening socket, so the monitor is asked.
        let monitor = Self::over(stream.into_std().map_err(failed)?.into(), Some(path))?;
        let status = match monitor.status().await {
            // Somebody listened. If it was a monitor's last moment the next try will not find one.
            Err(MonitorError::Gone) => return Err(MonitorError::Broken { what: "status" }),
            status => status?,
        };
        monitor.know(status.ready.pid)?;
        monitor.line()?.learn(&status.ready);
        Ok((monitor, status))
    }

    /// Starts to read `socket`, a connection to a monitor that listens at `path`. Needs a tokio runtime.
    pub(super) fn over(socket: OwnedFd, path: Option<&Path>) -> Result<Self, MonitorError> {
        Ok(Self(Some(Line::open(socket, path)?)))
    }

    /// Tells which process the monitor is, so that it can be waited for and killed.
    pub(super) fn know(&self, pid: i32) -> Result<(), MonitorError> {
        self.line()?.know(pid)
    }

    /// 0 if it is gone.
    pub(crate) fn pid(&self) -> i32 {
        self.0.as_ref().map_or(0, |line| line.pid())
    }

    /// What happens from now on, and since the connection was made. Empty for all but the first caller.
    pub(crate) fn events(&self) -> mpsc::Receiver<Event> {
        let taken = self.0.as_ref().and_then(|line| line.events());
        taken.unwrap_or_else(|| mpsc::channel(1).1)
    }

    /// Returns once the monitor's process has ended. Cancel-safe.
    pub(crate) async fn closed(&self) {
        if let Some(line) = &self.0 {
            line.closed().await;
        }
    }

    /// SIGKILL.
    pub(crate) fn kill_process(&self) {
        if let Some(line) = &self.0 {
            line.kill_process();
        }
    }

    /// Errors if a container has more mounts than the monitor takes with one request.
    pub(crate) fn check_mounts(&self, mounts: usize) -> Result<(), MonitorError> {
        // Beside them are the log's directory and the rootfs.
        let max = self.line()?.fds_max() - 2;
        if mounts > max { Err(MonitorError::TooManyMounts { mounts, max }) } else { Ok(()) }
    }

    pub(crate) async fn create(&self, create: CreateRequest) -> Result<Created, MonitorError> {
        let CreateRequest {
            id,
            runtime,
            bundle,
            log,
            terminal,
            stdin,
            stdin_once,
            cgroup,
            rootfs,
            mounts,
            timeout,
        } = create;
        self.check_mounts(mounts.len())?;
        let request = Request::Create(Create {
            container: id.clone(),
            runtime,
            bundle,
            log: log.as_ref().map(|log| log.name.clone()),
            terminal,
            stdin,
            stdin_once,
            cgroup,
            rootfs: rootfs.is_some(),
            mounts: mounts.iter().map(|(index, _)| *index).collect(),
            timeout_ms: millis(timeout),
        });
        let fds: Vec<OwnedFd> = log
            .map(|log| log.directory)
            .into_iter()
            .chain(rootfs)
            .chain(mounts.into_iter().map(|(_, fd)| fd))
            .collect();
        match self.ask("create", request, fds, timeout + ANSWER_MARGIN).await? {
            (Reply::Created(created), _) => Ok(created),
            other => Err(unexpected("create", &id, other.0)),
        }
    }

    /// Deletes a container whose creation nobody waits for any more, once the monitor has finished with that; none is fine.
    pub(crate) async fn delete_unfinished(&self, id: &str) -> Result<(), MonitorError> {
        for _ in 0..UNFINISHED_TRIES {
            let creating = |seen: &ContainerStatus| seen.id == id && seen.state == ContainerState::Creating;
            if !self.status().await?.containers.iter().any(creating) {
                break;
            }
            tokio::time::sleep(UNFINISHED_AGAIN).await;
        }
        match self.delete(id).await {
            Err(MonitorError::NoSuchContainer { .. } | MonitorError::Gone) => Ok(()),
            deleted => deleted,
        }
    }

    pub(crate) async fn start(&self, id: &str) -> Result<(), MonitorError> {
        let request = Request::Start { container: id.to_owned(), timeout_ms: millis(RUNTIME_WAIT) };
        self.done("start", id, request, Vec::new()).await
    }

    /// `signal` is a name or a number.
    pub(crate) async fn kill(&self, id: &str, signal: &str, all: bool) -> Result<(), MonitorError> {
        let number = signal::parse(signal).ok_or_else(|| MonitorError::BadSignal(signal.to_owned()))?;
        let timeout_ms = millis(RUNTIME_WAIT);
        self.done(
            "kill",
            id,
            Request::Kill { container: id.to_owned(), signal: number, all, timeout_ms },
            Vec::new(),
        )
        .await
    }

    /// Kills what runs, removes what the runtime keeps, forgets the container.
    pub(crate) async fn delete(&self, id: &str) -> Result<(), MonitorError> {
        let request = Request::Delete { container: id.to_owned(), timeout_ms: millis(RUNTIME_WAIT) };
        self.done("delete", id, request, Vec::new()).await
    }

    /// `resources` is OCI LinuxResources as JSON.
    pub(crate) async fn update(&self, id: &str, resources: String) -> Result<(), MonitorError> {
        let timeout_ms = millis(RUNTIME_WAIT);
        self.done(
            "update",
            id,
            Request::Update { container: id.to_owned(), resources, timeout_ms },
            Vec::new(),
        )
        .await
    }

    pub(crate) async fn reopen_log(&self, id: &str, log: LogTarget) -> Result<(), MonitorError> {
        let request = Request::ReopenLog { container: id.to_owned(), name: log.name };
        self.done("reopen the log", id, request, vec![log.directory]).await
    }

    pub(crate) async fn status(&self) -> Result<Status, MonitorError> {
        let request = Request::Status { version: wire::VERSION };
        match self.ask("status", request, Vec::new(), ANSWER_WAIT).await? {
            (Reply::Status(status), _) => Ok(status),
            other => Err(unexpected("status", "", other.0)),
        }
    }

    /// Ends a monitor that has no containers any more.
    pub(crate) async fn shutdown(&self) -> Result<(), MonitorError> {
        match self.done("shutdown", "", Request::Shutdown, Vec::new()).await {
            Err(MonitorError::Gone) => Ok(()),
            answer => answer,
        }
    }

    /// Runs `process` (an OCI Process) in a container and waits for it. At most `cap` of each stream is kept, the rest
    /// is read and dropped. A child that holds a stream open after the process has ended is not waited for.
    pub(crate) async fn exec_sync(
        &self,
        id: &str,
        process: String,
        timeout: Option<Duration>,
        cap: Bytes,
    ) -> Result<ExecOutput, MonitorError> {
        let line = self.line()?;
        let _place = line.execs.acquire().await.map_err(|_| MonitorError::Gone)?;
        let local = |source: io::Error| MonitorError::Local { action: "make a pipe", source };
        let pipe = || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(|e| local(e.into()));
        let ((out_read, out_write), (err_read, err_write)) = (pipe()?, pipe()?);
        let out = pipe::Receiver::from_owned_fd(out_read).map_err(local)?;
        let err = pipe::Receiver::from_owned_fd(err_read).map_err(local)?;
        let (exec, mut ended) = line.expect_exec()?;
        let _forget = ForgetExec { line, exec: &exec };
        let request = Request::Exec(Exec {
            exec: exec.clone(),
            container: id.to_owned(),
            process,
            terminal: false,
            stdin: false,
            stdout: true,
            stderr: true,
            timeout_ms: timeout.map_or(0, millis),
            start_timeout_ms: millis(RUNTIME_WAIT),
            streams: false,
        });
        let (over, _) = watch::channel(false);
        let outputs =
            async { tokio::join!(collect(out, cap, over.subscribe()), collect(err, cap, over.subscribe())) };
        let run = async {
            let started =
                self.ask("exec", request, vec![out_write, err_write], RUNTIME_WAIT + ANSWER_MARGIN).await;
            let end = match started {
                Ok((Reply::ExecStarted { .. }, _)) => line.wait("exec", &mut ended).await,
                Ok((other, _)) => Err(unexpected("exec", id, other)),
                Err(error) => Err(error),
            };
            over.send_replace(true);
            end
        };
        let (end, (stdout, stderr)) = tokio::join!(run, outputs);
        let ExecEnd { code, timed_out } = end?;
        Ok(ExecOutput { stdout, stderr, exit_code: code, timed_out })
    }

    /// Kills every process of an exec; one that has ended is fine.
    pub(crate) async fn exec_kill(&self, exec: &str) -> Result<(), MonitorError> {
        self.done("kill the exec", "", Request::ExecKill { exec: exec.to_owned() }, Vec::new()).await
    }

    pub(super) fn line(&self) -> Result<&Arc<Line>, MonitorError> {
        self.0.as_ref().ok_or(MonitorError::Gone)
    }

    pub(super) async fn done(
        &self,
        what: &'static str,
        id: &str,
        request: Request,
        fds: Vec<OwnedFd>,
    ) -> Result<(), MonitorError> {
        match self.ask(what, request, fds, RUNTIME_WAIT + ANSWER_MARGIN).await? {
            (Reply::Done, _) => Ok(()),
            other => Err(unexpected(what, id, other.0)),
        }
    }

    pub(super) async fn ask(
        &self,
        what: &'static str,
        request: Request,
        fds: Vec<OwnedFd>,
        wait: Duration,
    ) -> Result<(Reply, Vec<OwnedFd>), MonitorError> {
        self.line()?.request(what, request, fds, wait).await
    }

    /// Sends the first message to a new monitor and waits until its namespaces are made.
    pub(super) async fn hello(
        &self,
        hello: &wire::Hello,
        fds: Vec<OwnedFd>,
        wait: Duration,
    ) -> Result<Ready, MonitorError> {
        let line = self.line()?;
        match tokio::time::timeout(wait, line.first(hello, fds)).await {
            Ok(Ok((Reply::Ready(ready), _))) => {
                line.learn(&ready);
                Ok(ready)
            }
            Ok(Ok((other, _))) => Err(unexpected("hello", "", other)),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(MonitorError::NoAnswer { what: "hello", after: wait }),
        }
    }
}

/// Takes an exec that nobody waits for any more out of the list.
struct ForgetExec<'a> {
    line: &'a Arc<Line>,
    exec: &'a str,
}

impl Drop for ForgetExec<'_> {
    fn drop(&mut self) {
        if self.line.forget_exec(self.exec) {
            // The caller has gone away, and nobody else will ever read what the command says.
            let (monitor, exec) = (Monitor(Some(Arc::clone(self.line))), self.exec.to_owned());
            tokio::spawn(async move { monitor.exec_kill(&exec).await.ok() });
        }
    }
}

/// Reads until the end, or once it is `over` what is there at that moment. Keeps at most `cap`.
async fn collect(pipe: pipe::Receiver, cap: Bytes, mut over: watch::Receiver<bool>) -> Vec<u8> {
    let cap = usize::try_from(cap.0).unwrap_or(usize::MAX);
    let (mut kept, mut buffer) = (Vec::new(), vec![0; READ_BYTES]);
    let keep = |kept: &mut Vec<u8>, read: &[u8]| {
        let room = cap - kept.len();
        kept.extend_from_slice(&read[..read.len().min(room)]);
    };
    while !*over.borrow() {
        match pipe.try_read(&mut buffer) {
            Ok(0) => return kept,
            Ok(read) => keep(&mut kept, &buffer[..read]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => tokio::select! {
                ready = pipe.readable() => if ready.is_err() { return kept },
                // A dropped sender is the end too.
                changed = over.wait_for(|over| *over) => if changed.is_err() { break },
            },
            Err(_) => return kept,
        }
    }
    // Past tokio, who may not have heard yet that there is something to read and would not even look. At most what the
    // pipe holds: somebody who goes on writing is not waited for.
    let mut left = rustix::pipe::fcntl_getpipe_size(&pipe).unwrap_or(READ_BYTES);
    while left > 0 {
        match rustix::io::retry_on_intr(|| rustix::io::read(&pipe, &mut buffer[..])) {
            Ok(0) | Err(_) => break,
            Ok(read) => {
                keep(&mut kept, &buffer[..read]);
                left = left.saturating_sub(read);
            }
        }
    }
    kept
}

pub(super) fn unexpected(what: &'static str, id: &str, reply: Reply) -> MonitorError {
    let Reply::Failed(failure) = reply else { return MonitorError::Confused { what } };
    match failure {
        Failure::NoSuchContainer => MonitorError::NoSuchContainer { id: id.to_owned() },
        Failure::WrongState { state } => MonitorError::WrongState { state },
        Failure::Runtime { stage, message } => MonitorError::RuntimeFailed { stage, message },
        Failure::Timeout { stage, after_ms } => {
            MonitorError::Timeout { stage, after: Duration::from_millis(after_ms) }
        }
        Failure::System { action, message } => MonitorError::System { action, message },
        Failure::Invalid { message } => MonitorError::Invalid { message },
        Failure::Unsupported | Failure::Unknown => MonitorError::Unsupported { what },
    }
}

pub(super) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_written_before_the_end_is_collected_while_another_holds_the_pipe() {
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let pipe = pipe::Receiver::from_owned_fd(read).unwrap();
        rustix::io::write(&write, b"last words").unwrap();
        // The event loop has not run since, so only the pipe itself knows of them.
        let (_over, over) = watch::channel(true);
        assert_eq!(collect(pipe, Bytes(4), over).await, b"last");
    }
}
