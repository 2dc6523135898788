//! The connection to one monitor: who waits for what on it, and how it is made again.
//!
//! A task reads the socket and hands replies to whoever asked and events to whoever listens.
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
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use super::client::{AttachEnd, EXECS_MAX, ExecEnd, Monitor, MonitorError, SESSIONS_MAX};
use super::wire::{self, Decoder, Event, FromMonitor, Ready, Reply, Request, ToMonitor};
use crate::sys::{signal, socket};

/// What one read of the socket takes at most.
const READ_BYTES: usize = 16 << 10;

/// Events kept for a listener that is not there yet, as during recovery.
const EVENTS_MAX: usize = 256;

/// Connections to a monitor that lives, made one after the other without an answer to the first question; then it is given
/// up, and its pod with it: nobody could stop it any more.
const CONNECTIONS_MAX: u32 = 10;

/// Before each. A monitor that ends closes its socket a moment before it is gone.
const CONNECT_AGAIN: Duration = Duration::from_millis(100);

/// Watches a descriptor. Needs a tokio runtime.
#[expect(deprecated, reason = "`new` is unsound for types that lie about their descriptor; OwnedFd does not")]
fn watched(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::new(fd)
}

/// The connection, and whoever waits for something on it.
#[derive(Debug)]
pub(super) struct Line {
    process: OnceLock<Process>,
    /// Where the monitor listens; `None` if it is not to be connected to again.
    path: Option<PathBuf>,
    /// The present connection.
    socket: Mutex<Arc<AsyncFd<OwnedFd>>>,
    /// Connections since the last that was of use.
    in_vain: AtomicU32,
    /// Held while a frame is written.
    sending: Arc<tokio::sync::Mutex<()>>,
    /// One for each command whose output is collected.
    pub(super) execs: Semaphore,
    /// One for each command with streams.
    pub(super) sessions: Arc<Semaphore>,
    next_id: AtomicU64,
    /// The most descriptors with one frame.
    fds_max: AtomicUsize,
    waiting: Mutex<Waiting>,
    events: Mutex<Option<mpsc::Receiver<Event>>>,
    /// Changed only with `waiting` locked.
    state: watch::Sender<State>,
}

/// How it stands with the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
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

impl Line {
    /// Starts to read `socket`, a connection to a monitor that listens at `path`. Needs a tokio runtime.
    pub(super) fn open(socket: OwnedFd, path: Option<&Path>) -> Result<Arc<Self>, MonitorError> {
        let local = |action| move |source: io::Error| MonitorError::Local { action, source };
        rustix::io::ioctl_fionbio(&socket, true).map_err(|e| local("set up the socket")(e.into()))?;
        let (sender, receiver) = mpsc::channel(EVENTS_MAX);
        let line = Arc::new(Self {
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
            state: watch::Sender::new(State::Up),
        });
        tokio::spawn(read(Arc::clone(&line), sender));
        Ok(line)
    }

    /// Which process the monitor is.
    pub(super) fn know(&self, pid: i32) -> Result<(), MonitorError> {
        let local = |source: io::Error| MonitorError::Local { action: "watch the process", source };
        let raw = rustix::process::Pid::from_raw(pid).ok_or(MonitorError::Gone)?;
        let pidfd = match rustix::process::pidfd_open(raw, rustix::process::PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            Err(rustix::io::Errno::SRCH) => return Err(MonitorError::Gone),
            Err(error) => return Err(local(error.into())),
        };
        // Whoever came first knows the same.
        self.process.set(Process { pid, pidfd: watched(pidfd).map_err(local)? }).ok();
        Ok(())
    }

    /// What this monitor can do; an old one does not say.
    pub(super) fn learn(&self, ready: &Ready) {
        if ready.fds_max != 0 {
            self.fds_max.store(ready.fds_max.min(wire::FDS_MAX), Ordering::Relaxed);
        }
    }

    /// The most descriptors with one frame.
    pub(super) fn fds_max(&self) -> usize {
        self.fds_max.load(Ordering::Relaxed)
    }

    /// Some for the first caller.
    pub(super) fn events(&self) -> Option<mpsc::Receiver<Event>> {
        lock(&self.events).take()
    }

    /// Returns once the monitor's process has ended and nothing more will come. Cancel-safe.
    pub(super) async fn closed(&self) {
        // An error would mean that the runtime is ending.
        if let Some(process) = self.process.get() {
            process.pidfd.readable().await.map(drop).ok();
        }
        self.state.subscribe().wait_for(|state| *state == State::Closed).await.map(drop).ok();
    }

    /// SIGKILL.
    pub(super) fn kill_process(&self) {
        if let Some(process) = self.process.get() {
            // Only ESRCH is possible, and then it has ended.
            signal::send(process.pidfd.get_ref(), 9).ok();
        }
    }

    /// Asks, and waits for the answer.
    pub(super) async fn request(
        self: &Arc<Self>,
        what: &'static str,
        request: Request,
        fds: Vec<OwnedFd>,
        wait: Duration,
    ) -> Result<(Reply, Vec<OwnedFd>), MonitorError> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let frame = wire::encode(&ToMonitor { id, request }, fds.len())?;
        let answer = async {
            let reply = self.expect_reply(id).await?;
            self.send(frame, fds).await.ok();
            match reply.await {
                Ok(reply) => Ok(reply),
                Err(_) => Err(self.lost(what).await),
            }
        };
        match tokio::time::timeout(wait, answer).await {
            Ok(answer) => answer,
            Err(_) => {
                lock(&self.waiting).replies.remove(&id);
                Err(MonitorError::NoAnswer { what, after: wait })
            }
        }
    }

    /// Says the first message to a new monitor, and waits for the answer.
    pub(super) async fn first(
        self: &Arc<Self>,
        hello: &wire::Hello,
        fds: Vec<OwnedFd>,
    ) -> Result<(Reply, Vec<OwnedFd>), MonitorError> {
        let frame = wire::encode(hello, fds.len())?;
        // The answer to Hello has the id 0.
        let reply = self.expect_reply(0).await?;
        self.send(frame, fds).await.ok();
        reply.await.map_err(|_| MonitorError::Gone)
    }

    /// 0 if it is not known yet.
    pub(super) fn pid(&self) -> i32 {
        self.process.get().map_or(0, |process| process.pid)
    }

    /// A name for a new exec, and where its end will be told. To be taken back by [`Line::forget_exec`].
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

    /// As [`Line::expect_exec`], for an attach.
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
        if *self.state.borrow() == State::Closed { Err(MonitorError::Gone) } else { Ok(waiting) }
    }

    /// Where the answer to request `id` will come, which is to be sent now: there is a connection.
    async fn expect_reply(&self, id: u64) -> Result<oneshot::Receiver<(Reply, Vec<OwnedFd>)>, MonitorError> {
        let mut line = self.state.subscribe();
        loop {
            line.wait_for(|state| *state != State::Broken).await.map_err(|_| MonitorError::Gone)?;
            let mut waiting = self.expecting()?;
            // It may have broken again since.
            if *self.state.borrow() == State::Up {
                let (sender, reply) = oneshot::channel();
                waiting.replies.insert(id, sender);
                return Ok(reply);
            }
        }
    }

    /// Why nobody will tell any more, once that is known.
    async fn lost(&self, what: &'static str) -> MonitorError {
        match self.state.subscribe().wait_for(|state| *state != State::Broken).await.map(|state| *state) {
            Ok(State::Up) => MonitorError::Broken { what },
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
    fn end_waits(&self, state: State) {
        let mut waiting = lock(&self.waiting);
        self.state.send_replace(state);
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
                    self.state.send_replace(State::Up);
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
async fn read(line: Arc<Line>, events: mpsc::Sender<Event>) {
    loop {
        converse(&line, &events).await;
        line.end_waits(State::Broken);
        if !line.connect_again().await {
            break;
        }
        tokio::spawn(catch_up(Arc::clone(&line), line.socket(), events.clone()));
    }
    line.end_waits(State::Closed);
}

/// Tells what was to be told while there was no connection, and ends execs whose answer nobody will get.
async fn catch_up(line: Arc<Line>, socket: Arc<AsyncFd<OwnedFd>>, events: mpsc::Sender<Event>) {
    let monitor = Monitor(Some(Arc::clone(&line)));
    let status = match monitor.status().await {
        Ok(status) => status,
        Err(error) => {
            tracing::warn!(monitor = line.pid(), error = %crate::task::chain(&error), "a new connection to a monitor is of no use");
            // A monitor that says nothing at all is given up as one that cannot be connected to.
            rustix::net::shutdown(socket.get_ref(), rustix::net::Shutdown::Both).ok();
            return;
        }
    };
    line.in_vain.store(0, Ordering::Relaxed);
    tracing::warn!(monitor = line.pid(), "the connection to a monitor broke and was made anew");
    for container in status.containers {
        let Some(wire::Exit { code, signal, oom_killed, finished_at }) = container.exit else { continue };
        // Who knows of this end already takes no notice.
        let id = container.id;
        events.send(Event::ContainerExited { id, code, signal, oom_killed, finished_at }).await.ok();
    }
    for exec in status.execs {
        let awaited = lock(&line.waiting).execs.contains_key(&exec);
        if !awaited {
            monitor.exec_kill(&exec).await.ok();
        }
    }
}

/// Hands out what the monitor says until the connection is of no more use.
async fn converse(line: &Line, events: &mpsc::Sender<Event>) {
    let socket = line.socket();
    let mut decoder = Decoder::default();
    let mut buffer = vec![0; READ_BYTES];
    loop {
        let Ok(mut ready) = socket.readable().await else { return };
        let mut fds = Vec::new();
        let received = match ready.try_io(|socket| socket::receive(socket.get_ref(), &mut buffer, &mut fds)) {
            Ok(Ok(0)) => return,
            Ok(Err(error)) => {
                tracing::error!(monitor = line.pid(), %error, "cannot read what a monitor says");
                return;
            }
            Ok(Ok(received)) => received,
            Err(_would_block) => continue,
        };
        decoder.push(&buffer[..received], fds);
        loop {
            match decoder.next::<FromMonitor>() {
                Ok(None) => break,
                Ok(Some((message, fds))) => deliver(line, events, message, fds).await,
                Err(error) => {
                    tracing::error!(monitor = line.pid(), error = %crate::task::chain(&error), "a monitor talks nonsense");
                    return;
                }
            }
        }
    }
}

async fn deliver(line: &Line, events: &mpsc::Sender<Event>, message: FromMonitor, fds: Vec<OwnedFd>) {
    match message {
        FromMonitor::Reply { id, reply } => {
            let waiting = lock(&line.waiting).replies.remove(&id);
            if let Some(waiting) = waiting {
                // The caller may have gone away.
                waiting.send((reply, fds)).ok();
            }
        }
        FromMonitor::Event(Event::ExecExited { exec, code, timed_out, .. }) => {
            let waiting = lock(&line.waiting).execs.remove(&exec);
            if let Some(waiting) = waiting {
                waiting.send_replace(Some(ExecEnd { code, timed_out }));
            }
        }
        FromMonitor::Event(Event::AttachEnded { attach, end }) => {
            let waiting = lock(&line.waiting).attaches.remove(&attach);
            if let Some(waiting) = waiting {
                waiting.send_replace(Some(end.into()));
            }
        }
        FromMonitor::Event(event) => {
            events.send(event).await.ok();
        }
    }
}

/// A name for an exec or attach: others of the pod have others, those of an earlier daemon too.
fn random_name() -> String {
    crate::id::ContainerId::random().short().to_string()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::super::wire::{ContainerState, ContainerStatus, Status};
    use super::*;

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
