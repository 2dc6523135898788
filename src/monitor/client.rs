//! The daemon's end of the wire: one [`Monitor`] per pod, any number of requests in flight.
//!
//! A task reads the socket and hands replies to whoever asked and events to whoever listens. When the monitor ends,
//! every request in flight and every later one answers [`MonitorError::Gone`].
//!
//! ```text
//! Up ─ the connection breaks ─▶ Broken ─ the monitor lives and answers ─▶ Up
//!                                 └──── it has ended, or [`CONNECTIONS_MAX`] were in vain ─▶ Closed
//! ```
//!
//! A connection that breaks (a message that one end does not understand, descriptors lost at a limit) costs what was in
//! flight on it, [`MonitorError::Broken`], and no container: what happened meanwhile is in the monitor's status.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::io::unix::AsyncFd;
use tokio::net::unix::pipe;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use super::wire::{
    self, Create, Created, Decoder, Exec, Failure, FromMonitor, Ready, Reply, Request, Runtime, ToMonitor,
    WireError,
};
use crate::sys::{signal, socket};
use crate::units::Bytes;

pub(crate) use super::wire::{ContainerState, ContainerStatus, Event, Status};

/// Events kept for a listener that is not there yet, as during recovery.
const EVENTS_MAX: usize = 256;

/// Commands at a time in one pod whose output we collect, further ones wait: each may hold 32 MiB of it, and a pod has a
/// few probes.
const EXECS_MAX: usize = 32;

/// Commands with streams at a time in one pod, beside the former so that nobody's shells keep probes waiting. Further ones
/// are refused: a session may last for days. Each costs this process up to three pipes and no buffer.
pub(super) const SESSIONS_MAX: usize = 256;

/// What one read of the socket takes at most.
const READ_BYTES: usize = 16 << 10;

/// A monitor answers what needs no OCI runtime at once; this long means that it hangs.
pub(super) const ANSWER_WAIT: Duration = Duration::from_secs(20);

/// For requests that the monitor itself bounds: it answers first.
pub(super) const ANSWER_MARGIN: Duration = Duration::from_secs(10);

/// How long the OCI runtime may take for start, kill, delete, pause, resume, update and the start of an exec.
pub(super) const RUNTIME_WAIT: Duration = Duration::from_secs(60);

/// Connections to a monitor that lives, made one after the other without an answer to the first question; then it is given
/// up, and its pod with it: nobody could stop it any more.
const CONNECTIONS_MAX: u32 = 10;

/// Before each. A monitor that ends closes its socket a moment before it is gone.
const CONNECT_AGAIN: Duration = Duration::from_millis(100);

/// How long a creation that nobody waits for may take to end: 10 s in all.
const UNFINISHED_TRIES: u32 = 200;
const UNFINISHED_AGAIN: Duration = Duration::from_millis(50);

/// Watches a descriptor. Needs a tokio runtime.
#[expect(deprecated, reason = "`new` is unsound for types that lie about their descriptor; OwnedFd does not")]
fn watched(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::new(fd)
}

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
pub(crate) struct Monitor(Option<Arc<Inner>>);

#[derive(Debug)]
pub(super) struct Inner {
    process: OnceLock<Process>,
    /// Where the monitor listens; `None` if it is not to be connected to again.
    path: Option<PathBuf>,
    /// The present connection.
    socket: Mutex<Arc<AsyncFd<OwnedFd>>>,
    /// Connections since the last that was of use.
    in_vain: AtomicU32,
    /// Held while a frame is written.
    sending: Arc<tokio::sync::Mutex<()>>,
    execs: Semaphore,
    pub(super) sessions: Arc<Semaphore>,
    next_id: AtomicU64,
    /// The most descriptors with one frame.
    fds_max: AtomicUsize,
    waiting: Mutex<Waiting>,
    events: Mutex<Option<mpsc::Receiver<Event>>>,
    /// Changed only with `waiting` locked.
    line: watch::Sender<Line>,
}

/// How it stands with the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Line {
    Up,
    /// A new one is being made.
    Broken,
    Closed,
}

#[derive(Debug)]
struct Process {
    pid: i32,
    /// Readable once the process has ended.
    pidfd: AsyncFd<OwnedFd>,
}

#[derive(Debug, Default)]
struct Waiting {
    replies: HashMap<u64, oneshot::Sender<(Reply, Vec<OwnedFd>)>>,
    execs: HashMap<String, watch::Sender<Option<ExecEnd>>>,
    attaches: HashMap<String, watch::Sender<Option<AttachEnd>>>,
}

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
        monitor.learn(&status.ready);
        Ok((monitor, status))
    }

    /// What this monitor can do; an old one does not say.
    fn learn(&self, ready: &Ready) {
        if let Some(inner) = self.0.as_ref().filter(|_| ready.fds_max != 0) {
            inner.fds_max.store(ready.fds_max.min(wire::FDS_MAX), Ordering::Relaxed);
        }
    }

    /// Starts to read `socket`, a connection to a monitor that listens at `path`. Needs a tokio runtime.
    pub(super) fn over(socket: OwnedFd, path: Option<&Path>) -> Result<Self, MonitorError> {
        let local = |action| move |source: io::Error| MonitorError::Local { action, source };
        rustix::io::ioctl_fionbio(&socket, true).map_err(|e| local("set up the socket")(e.into()))?;
        let (sender, receiver) = mpsc::channel(EVENTS_MAX);
        let inner = Arc::new(Inner {
            process: OnceLock::new(),
            path: path.map(Path::to_owned),
            socket: Mutex::new(Arc::new(watched(socket).map_err(local("watch the socket"))?)),
            in_vain: AtomicU32::new(0),
            sending: Arc::default(),
            execs: Semaphore::new(EXECS_MAX),
            sessions: Arc::new(Semaphore::new(SESSIONS_MAX)),
            next_id: AtomicU64::new(1),
            fds_max: AtomicUsize::new(wire::FDS_MAX_UNSAID),
            waiting: Mutex::default(),
            events: Mutex::new(Some(receiver)),
            line: watch::Sender::new(Line::Up),
        });
        tokio::spawn(read(Arc::clone(&inner), sender));
        Ok(Self(Some(inner)))
    }

    /// Tells which process the monitor is, so that it can be waited for and killed.
    pub(super) fn know(&self, pid: i32) -> Result<(), MonitorError> {
        let local = |source: io::Error| MonitorError::Local { action: "watch the process", source };
        let inner = self.0.as_ref().ok_or(MonitorError::Gone)?;
        let raw = rustix::process::Pid::from_raw(pid).ok_or(MonitorError::Gone)?;
        let pidfd = match rustix::process::pidfd_open(raw, rustix::process::PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            Err(rustix::io::Errno::SRCH) => return Err(MonitorError::Gone),
            Err(error) => return Err(local(error.into())),
        };
        // Whoever came first knows the same.
        inner.process.set(Process { pid, pidfd: watched(pidfd).map_err(local)? }).ok();
        Ok(())
    }

    /// 0 if it is gone.
    pub(crate) fn pid(&self) -> i32 {
        self.0.as_ref().map_or(0, |inner| inner.pid())
    }

    /// What happens from now on, and since the connection was made. Empty for all but the first caller.
    pub(crate) fn events(&self) -> mpsc::Receiver<Event> {
        let taken = self.0.as_ref().and_then(|inner| lock(&inner.events).take());
        taken.unwrap_or_else(|| mpsc::channel(1).1)
    }

    /// Returns once the monitor's process has ended. Cancel-safe.
    pub(crate) async fn closed(&self) {
        if let Some(inner) = &self.0 {
            // An error would mean that the runtime is ending.
            if let Some(process) = inner.process.get() {
                process.pidfd.readable().await.map(drop).ok();
            }
            inner.line.subscribe().wait_for(|line| *line == Line::Closed).await.map(drop).ok();
        }
    }

    /// SIGKILL.
    pub(crate) fn kill_process(&self) {
        if let Some(process) = self.0.as_ref().and_then(|inner| inner.process.get()) {
            // Only ESRCH is possible, and then it has ended.
            signal::send(process.pidfd.get_ref(), 9).ok();
        }
    }

    /// Errors if a container has more mounts than the monitor takes with one request.
    pub(crate) fn check_mounts(&self, mounts: usize) -> Result<(), MonitorError> {
        // Beside them are the log's directory and the rootfs.
        let max = self.inner()?.fds_max.load(Ordering::Relaxed) - 2;
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
        let inner = self.inner()?;
        let _place = inner.execs.acquire().await.map_err(|_| MonitorError::Gone)?;
        let local = |source: io::Error| MonitorError::Local { action: "make a pipe", source };
        let pipe = || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(|e| local(e.into()));
        let ((out_read, out_write), (err_read, err_write)) = (pipe()?, pipe()?);
        let out = pipe::Receiver::from_owned_fd(out_read).map_err(local)?;
        let err = pipe::Receiver::from_owned_fd(err_read).map_err(local)?;
        let (exec, mut ended) = inner.expect_exec()?;
        let _forget = ForgetExec { inner, exec: &exec };
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
                Ok((Reply::ExecStarted { .. }, _)) => inner.wait("exec", &mut ended).await,
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

    pub(super) fn inner(&self) -> Result<&Arc<Inner>, MonitorError> {
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
        let inner = self.0.as_ref().ok_or(MonitorError::Gone)?;
        let id = inner.next_id.fetch_add(1, Ordering::Relaxed);
        let frame = wire::encode(&ToMonitor { id, request }, fds.len())?;
        let answer = async {
            let reply = inner.expect_reply(id).await?;
            inner.send(frame, fds).await.ok();
            match reply.await {
                Ok(reply) => Ok(reply),
                Err(_) => Err(inner.lost(what).await),
            }
        };
        match tokio::time::timeout(wait, answer).await {
            Ok(answer) => answer,
            Err(_) => {
                lock(&inner.waiting).replies.remove(&id);
                Err(MonitorError::NoAnswer { what, after: wait })
            }
        }
    }

    /// Sends the first message to a new monitor and waits until its namespaces are made.
    pub(super) async fn hello(
        &self,
        hello: &wire::Hello,
        fds: Vec<OwnedFd>,
        wait: Duration,
    ) -> Result<Ready, MonitorError> {
        let inner = self.0.as_ref().ok_or(MonitorError::Gone)?;
        let frame = wire::encode(hello, fds.len())?;
        let answer = async {
            // The answer to Hello has the id 0.
            let reply = inner.expect_reply(0).await?;
            inner.send(frame, fds).await.ok();
            reply.await.map_err(|_| MonitorError::Gone)
        };
        match tokio::time::timeout(wait, answer).await {
            Ok(Ok((Reply::Ready(ready), _))) => {
                self.learn(&ready);
                Ok(ready)
            }
            Ok(Ok((other, _))) => Err(unexpected("hello", "", other)),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(MonitorError::NoAnswer { what: "hello", after: wait }),
        }
    }
}

impl Inner {
    fn pid(&self) -> i32 {
        self.process.get().map_or(0, |process| process.pid)
    }

    /// A name for a new exec, and where its end will be told. To be taken back by [`Inner::forget_exec`].
    pub(super) fn expect_exec(&self) -> Result<(String, watch::Receiver<Option<ExecEnd>>), MonitorError> {
        let mut waiting = self.expecting()?;
        let (name, (sender, end)) = (random_name(), watch::channel(None));
        waiting.execs.insert(name.clone(), sender);
        Ok((name, end))
    }

    /// Whether it has not ended.
    pub(super) fn forget_exec(&self, exec: &str) -> bool {
        lock(&self.waiting).execs.remove(exec).is_some()
    }

    /// As [`Inner::expect_exec`], for an attach.
    pub(super) fn expect_attach(&self) -> Result<(String, watch::Receiver<Option<AttachEnd>>), MonitorError> {
        let mut waiting = self.expecting()?;
        let (name, (sender, end)) = (random_name(), watch::channel(None));
        waiting.attaches.insert(name.clone(), sender);
        Ok((name, end))
    }

    /// Whether it has not ended.
    pub(super) fn forget_attach(&self, attach: &str) -> bool {
        lock(&self.waiting).attaches.remove(attach).is_some()
    }

    fn expecting(&self) -> Result<MutexGuard<'_, Waiting>, MonitorError> {
        let waiting = lock(&self.waiting);
        if *self.line.borrow() == Line::Closed { Err(MonitorError::Gone) } else { Ok(waiting) }
    }

    /// Where the answer to request `id` will come, which is to be sent now: there is a connection.
    async fn expect_reply(&self, id: u64) -> Result<oneshot::Receiver<(Reply, Vec<OwnedFd>)>, MonitorError> {
        let mut line = self.line.subscribe();
        loop {
            line.wait_for(|line| *line != Line::Broken).await.map_err(|_| MonitorError::Gone)?;
            let mut waiting = self.expecting()?;
            // It may have broken again since.
            if *self.line.borrow() == Line::Up {
                let (sender, reply) = oneshot::channel();
                waiting.replies.insert(id, sender);
                return Ok(reply);
            }
        }
    }

    /// Why nobody will tell any more, once that is known.
    async fn lost(&self, what: &'static str) -> MonitorError {
        match self.line.subscribe().wait_for(|line| *line != Line::Broken).await.map(|line| *line) {
            Ok(Line::Up) => MonitorError::Broken { what },
            _ => MonitorError::Gone,
        }
    }

    /// What `end` is told. Cancel-safe.
    pub(super) async fn wait<T: Copy>(
        &self,
        what: &'static str,
        end: &mut watch::Receiver<Option<T>>,
    ) -> Result<T, MonitorError> {
        match end.wait_for(Option::is_some).await.ok().and_then(|end| *end) {
            Some(end) => Ok(end),
            None => Err(self.lost(what).await),
        }
    }

    fn socket(&self) -> Arc<AsyncFd<OwnedFd>> {
        Arc::clone(&lock(&self.socket))
    }

    /// Ends what waits for something to come on the present connection.
    fn end_waits(&self, line: Line) {
        let mut waiting = lock(&self.waiting);
        self.line.send_replace(line);
        waiting.replies.clear();
        waiting.execs.clear();
        waiting.attaches.clear();
    }

    /// Makes a new connection. False once the monitor has ended or is given up.
    async fn connect_again(&self) -> bool {
        let Some(path) = &self.path else { return false };
        let ended = async || match self.process.get() {
            // An error would mean that the runtime is ending.
            Some(process) => process.pidfd.readable().await.map(drop).unwrap_or(()),
            None => std::future::pending().await,
        };
        while self.in_vain.fetch_add(1, Ordering::Relaxed) < CONNECTIONS_MAX {
            tokio::select! {
                () = ended() => return false,
                () = tokio::time::sleep(CONNECT_AGAIN) => {}
            }
            let connected = tokio::net::UnixStream::connect(path).await;
            match connected.and_then(|stream| watched(stream.into_std()?.into())) {
                Ok(socket) => {
                    *lock(&self.socket) = Arc::new(socket);
                    let _waiting = lock(&self.waiting);
                    self.line.send_replace(Line::Up);
                    return true;
                }
                Err(error) => {
                    tracing::warn!(monitor = self.pid(), %error, "cannot connect to a monitor that lives");
                }
            }
        }
        tracing::error!(monitor = self.pid(), "giving a monitor up that does not answer");
        false
    }

    /// Sends a whole frame or, given up before its turn, nothing of it. Given up later it is sent all the same: whatever
    /// came after half a frame would be taken for the rest of it.
    async fn send(self: &Arc<Self>, frame: Vec<u8>, fds: Vec<OwnedFd>) -> io::Result<()> {
        let sending = Arc::clone(&self.sending).lock_owned().await;
        let this = Arc::clone(self);
        let written = tokio::spawn(async move {
            let _sending = sending;
            let socket = this.socket();
            let written = write(&socket, &frame, &fds).await;
            if written.is_err() {
                // The rest of the frame is missing, so nothing can follow it; the reader sees the end.
                rustix::net::shutdown(socket.get_ref(), rustix::net::Shutdown::Both).ok();
            }
            written
        });
        written.await.map_err(io::Error::other)?
    }
}

async fn write(socket: &AsyncFd<OwnedFd>, frame: &[u8], fds: &[OwnedFd]) -> io::Result<()> {
    let mut rest = frame;
    let fds: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
    let mut fds = &fds[..];
    while !rest.is_empty() {
        let mut ready = socket.writable().await?;
        match ready.try_io(|socket| socket::send(socket.get_ref(), rest, fds)) {
            Ok(sent) => {
                let (sent, with) = sent?;
                (rest, fds) = (&rest[sent..], &fds[with..]);
            }
            Err(_would_block) => {}
        }
    }
    Ok(())
}

/// Hands out what the monitor says until it has ended or is given up.
async fn read(inner: Arc<Inner>, events: mpsc::Sender<Event>) {
    loop {
        converse(&inner, &events).await;
        inner.end_waits(Line::Broken);
        if !inner.connect_again().await {
            break;
        }
        tokio::spawn(catch_up(Arc::clone(&inner), inner.socket(), events.clone()));
    }
    inner.end_waits(Line::Closed);
}

/// Tells what was to be told while there was no connection, and ends execs whose answer nobody will get.
async fn catch_up(inner: Arc<Inner>, socket: Arc<AsyncFd<OwnedFd>>, events: mpsc::Sender<Event>) {
    let monitor = Monitor(Some(Arc::clone(&inner)));
    let status = match monitor.status().await {
        Ok(status) => status,
        Err(error) => {
            tracing::warn!(monitor = inner.pid(), error = %crate::task::chain(&error), "a new connection to a monitor is of no use");
            // A monitor that says nothing at all is given up as one that cannot be connected to.
            rustix::net::shutdown(socket.get_ref(), rustix::net::Shutdown::Both).ok();
            return;
        }
    };
    inner.in_vain.store(0, Ordering::Relaxed);
    tracing::warn!(monitor = inner.pid(), "the connection to a monitor broke and was made anew");
    for container in status.containers {
        let Some(wire::Exit { code, signal, oom_killed, finished_at }) = container.exit else { continue };
        // Who knows of this end already takes no notice.
        let id = container.id;
        events.send(Event::ContainerExited { id, code, signal, oom_killed, finished_at }).await.ok();
    }
    for exec in status.execs {
        let awaited = lock(&inner.waiting).execs.contains_key(&exec);
        if !awaited {
            monitor.exec_kill(&exec).await.ok();
        }
    }
}

/// Hands out what the monitor says until the connection is of no more use.
async fn converse(inner: &Inner, events: &mpsc::Sender<Event>) {
    let socket = inner.socket();
    let mut decoder = Decoder::default();
    let mut buffer = vec![0; READ_BYTES];
    loop {
        let Ok(mut ready) = socket.readable().await else { return };
        let mut fds = Vec::new();
        let received = match ready.try_io(|socket| socket::receive(socket.get_ref(), &mut buffer, &mut fds)) {
            Ok(Ok(0)) => return,
            Ok(Err(error)) => {
                tracing::error!(monitor = inner.pid(), %error, "cannot read what a monitor says");
                return;
            }
            Ok(Ok(received)) => received,
            Err(_would_block) => continue,
        };
        decoder.push(&buffer[..received], fds);
        loop {
            match decoder.next::<FromMonitor>() {
                Ok(None) => break,
                Ok(Some((message, fds))) => deliver(inner, events, message, fds).await,
                Err(error) => {
                    tracing::error!(monitor = inner.pid(), error = %crate::task::chain(&error), "a monitor talks nonsense");
                    return;
                }
            }
        }
    }
}

async fn deliver(inner: &Inner, events: &mpsc::Sender<Event>, message: FromMonitor, fds: Vec<OwnedFd>) {
    match message {
        FromMonitor::Reply { id, reply } => {
            let waiting = lock(&inner.waiting).replies.remove(&id);
            if let Some(waiting) = waiting {
                // The caller may have gone away.
                waiting.send((reply, fds)).ok();
            }
        }
        FromMonitor::Event(Event::ExecExited { exec, code, timed_out, .. }) => {
            let waiting = lock(&inner.waiting).execs.remove(&exec);
            if let Some(waiting) = waiting {
                waiting.send_replace(Some(ExecEnd { code, timed_out }));
            }
        }
        FromMonitor::Event(Event::AttachEnded { attach, end }) => {
            let waiting = lock(&inner.waiting).attaches.remove(&attach);
            if let Some(waiting) = waiting {
                waiting.send_replace(Some(end.into()));
            }
        }
        FromMonitor::Event(event) => {
            events.send(event).await.ok();
        }
    }
}

/// Takes an exec that nobody waits for any more out of the list.
struct ForgetExec<'a> {
    inner: &'a Arc<Inner>,
    exec: &'a str,
}

impl Drop for ForgetExec<'_> {
    fn drop(&mut self) {
        if self.inner.forget_exec(self.exec) {
            // The caller has gone away, and nobody else will ever read what the command says.
            let (monitor, exec) = (Monitor(Some(Arc::clone(self.inner))), self.exec.to_owned());
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

/// A name for an exec or attach: others of the pod have others, those of an earlier daemon too.
fn random_name() -> String {
    crate::id::ContainerId::random().short().to_string()
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

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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

    /// A monitor in this process: for each connection, one after the other, what it answers to the first request.
    fn fake(answers: Vec<Vec<Vec<u8>>>) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = socket::listen(&path).unwrap();
        rustix::io::ioctl_fionbio(&listener, false).unwrap();
        std::thread::spawn(move || {
            let mut last = None;
            for answer in answers {
                let connection = socket::accept(&listener).unwrap();
                rustix::io::ioctl_fionbio(&connection, false).unwrap();
                let (mut decoder, mut buffer) = (Decoder::default(), vec![0; READ_BYTES]);
                while decoder.next::<ToMonitor>().unwrap().is_none() {
                    let n = socket::receive(&connection, &mut buffer, &mut Vec::new()).unwrap();
                    decoder.push(&buffer[..n], []);
                }
                for frame in answer {
                    socket::send(&connection, &frame, &[]).unwrap();
                }
                last = Some(connection);
            }
            // The last one stays until the client leaves it.
            if let Some(last) = last {
                socket::receive(&last, &mut [0; 64], &mut Vec::new()).ok();
            }
        });
        (dir, path)
    }

    fn status_reply(id: u64, exit: Option<wire::Exit>) -> Vec<u8> {
        let container = ContainerStatus {
            id: "c".into(),
            state: ContainerState::Exited,
            pid: Some(1),
            start_time: 0,
            started_at: Some(1),
            exit,
        };
        // This process stands for the monitor's: it lives.
        let pid = i32::try_from(std::process::id()).unwrap();
        let ready = Ready { version: wire::VERSION, pid, ..Ready::default() };
        let containers = exit.map(|_| container).into_iter().collect();
        let status = Status { version: wire::VERSION, ready, containers, ..Status::default() };
        wire::encode(&FromMonitor::Reply { id, reply: Reply::Status(status) }, 0).unwrap()
    }

    #[tokio::test]
    async fn a_connection_that_breaks_is_made_anew_and_what_happened_meanwhile_is_told() {
        let exit = wire::Exit { code: 7, signal: 0, oom_killed: false, finished_at: 9 };
        let nonsense = vec![0xff; wire::HEADER];
        let answers = vec![vec![status_reply(1, None), nonsense], vec![status_reply(2, Some(exit))]];
        let (_dir, path) = fake(answers);
        let (monitor, status) = Monitor::connect(&path).await.unwrap();
        assert_eq!(status.containers, []);
        let event = monitor.events().recv().await;
        let expected =
            Event::ContainerExited { id: "c".into(), code: 7, signal: 0, oom_killed: false, finished_at: 9 };
        assert_eq!(event, Some(expected));
    }

    #[tokio::test]
    async fn a_monitor_that_lives_and_never_answers_is_given_up_after_a_bounded_number_of_connections() {
        let nonsense = vec![0xff; wire::HEADER];
        let mut answers = vec![vec![status_reply(1, None), nonsense.clone()]];
        answers.extend((0..CONNECTIONS_MAX).map(|_| vec![nonsense.clone()]));
        let (_dir, path) = fake(answers);
        let (monitor, _) = Monitor::connect(&path).await.unwrap();
        assert_eq!(monitor.events().recv().await, None);
        assert!(matches!(monitor.start("c").await, Err(MonitorError::Gone)));
    }

    #[tokio::test]
    async fn a_request_that_is_given_up_half_way_is_sent_whole_before_the_next_one() {
        let (ours, theirs) = socket::pair().unwrap();
        let monitor = Monitor::over(ours, None).unwrap();
        let peer = watched(theirs).unwrap();
        {
            // Far more than a socket holds, so what has come is a part of it.
            let long = monitor.update("c", "x".repeat(4 << 20));
            tokio::select! {
                _ = long => panic!("nobody answers"),
                ready = peer.readable() => drop(ready.unwrap()),
            }
        }
        let next = tokio::spawn(async move { monitor.status().await });
        let theirs = peer.into_inner();
        let requests = tokio::task::spawn_blocking(move || {
            let (mut decoder, mut buffer, mut requests) =
                (Decoder::default(), vec![0; READ_BYTES], Vec::new());
            while requests.len() < 2 {
                let mut fds = Vec::new();
                let received = socket::receive(&theirs, &mut buffer, &mut fds).unwrap();
                decoder.push(&buffer[..received], fds);
                while let Some((message, _)) = decoder.next::<ToMonitor>().unwrap() {
                    requests.push(message.request);
                }
            }
            requests
        });
        let requests = requests.await.unwrap();
        assert!(
            matches!(&requests[0], Request::Update { resources, .. } if resources.len() == 4 << 20),
            "the first"
        );
        assert_eq!(requests[1], Request::Status { version: wire::VERSION });
        assert!(matches!(next.await.unwrap(), Err(MonitorError::Gone)));
    }
}
