//! The per-pod supervisor: the process `brig-monitor`, and the daemon's end of its wire.
//!
//! The process is one loop over poll(2), with no thread but one. It makes the pod's namespaces and lives in them, runs
//! the OCI runtime, is the parent of what the runtime leaves behind (child subreaper), writes the logs, and knows every
//! exit code. It outlives brigd: whoever connects to its socket finds everything in the status.
//!
//! ```text
//! wire.rs        messages, both ends
//! client.rs      the daemon's end        line.rs   its connection
//! spawn.rs       starting a monitor
//! exec.rs        commands with streams   attach.rs clients at a container's own streams
//! ─────────────  the process ─────────────────────────────────────────
//! namespaces.rs  made at the start
//! serve.rs       connections             driver.rs  requests ─▶ OCI runtime ─▶ replies
//! io.rs          a container's streams   log.rs     the kubelet's log format
//!                                        sinks.rs   attached clients
//! reap.rs        exit codes, OOM, killing a tree
//! ```
//!
//! Memory is what counts for a process that there is one of per pod: nothing is allocated while idle, and what a burst
//! of work has used goes back to the kernel [`QUIET`] later.

#[cfg(feature = "daemon")]
pub(crate) mod attach;
#[cfg(feature = "daemon")]
pub(crate) mod client;
mod driver;
#[cfg(feature = "daemon")]
pub(crate) mod exec;
mod io;
#[cfg(feature = "daemon")]
mod line;
mod log;
mod namespaces;
mod reap;
mod serve;
mod sinks;
#[cfg(feature = "daemon")]
pub(crate) mod spawn;
#[cfg(test)]
mod tests;
pub(crate) mod wire;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use self::driver::{Container, Exec, Job};
use self::io::{Buffers, Gone};
use self::namespaces::Pins;
use self::reap::End;
use self::serve::{Connection, ReplyTo};
use self::sinks::{Client, Slot};
use self::wire::{
    ContainerState, ContainerStatus, Decoder, Event, Exit, Failure, FromMonitor, Hello, Ready, Reply, Status,
};
use crate::sys::{socket, spawn as launching};

/// After this long without work, memory goes back to the kernel.
const QUIET: Duration = Duration::from_millis(200);

/// Peers at once: the daemon, one that takes over from it, an operator's tool.
const CONNECTIONS_MAX: usize = 8;

/// The id of the answer to [`Hello`].
const HELLO: u64 = 0;

/// Why a monitor cannot begin.
#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error("cannot {action}")]
    System {
        action: &'static str,
        #[source]
        source: std::io::Error,
    },
    #[error("standard input is not the socket of a brigd that says what to do")]
    NoHello,
    #[error("brigd speaks version {theirs} of the wire, this monitor {}", wire::VERSION)]
    Version { theirs: u32 },
    #[error("the daemon was told why")]
    Told,
}

/// Runs the monitor of one pod; brigd is at standard input.
pub fn main() -> ExitCode {
    // Whatever a careless parent left open would reach every runtime and container of the pod.
    if let Err(error) = crate::sys::fd::close_all_but(3, &[]) {
        eprintln!("brig-monitor: cannot close inherited descriptors: {error}");
        return ExitCode::FAILURE;
    }
    match start() {
        Ok(supervisor) => {
            supervisor.run();
            ExitCode::SUCCESS
        }
        Err(error) => {
            let source =
                std::error::Error::source(&error).map(|source| format!(": {source}")).unwrap_or_default();
            eprintln!("brig-monitor: {error}{source}");
            ExitCode::FAILURE
        }
    }
}

fn start() -> Result<Supervisor, StartError> {
    let failed = |action| move |error: rustix::io::Errno| StartError::System { action, source: error.into() };
    // A leader of a session already: then it has no terminal of brigd's either.
    rustix::process::setsid().ok();
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .map_err(failed("become the parent of orphans"))?;
    let socket =
        rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3).map_err(failed("copy standard input"))?;
    let null = io::dev_null().map_err(|source| StartError::System { action: "open /dev/null", source })?;
    rustix::stdio::dup2_stdin(&null).map_err(failed("replace standard input"))?;

    let mut decoder = Decoder::default();
    let (hello, fds) = receive_hello(&socket, &mut decoder)?;
    let mut fds = fds.into_iter();
    let listener = fds.next().ok_or(StartError::NoHello)?;
    rustix::io::ioctl_fionbio(&socket, true).map_err(failed("set up the socket"))?;
    let mut connection = Connection::new(0, socket, decoder);
    if hello.version != wire::VERSION {
        return Err(StartError::Version { theirs: hello.version });
    }
    let made = namespaces::make(&hello, fds.next().filter(|_| hello.mount_namespace));
    let (pins, ready) = match made {
        Ok(made) => made,
        Err(error) => {
            let failure = match &error {
                namespaces::NamespaceError::System { action, source } => {
                    Failure::System { action: action.clone(), message: source.to_string() }
                }
                namespaces::NamespaceError::Sysctl { .. } => Failure::Invalid { message: error.to_string() },
            };
            let reply = Reply::Failed(failure);
            connection.send(&FromMonitor::Reply { id: HELLO, reply }, Vec::new());
            std::fs::remove_file(&hello.socket).ok();
            return Err(StartError::Told);
        }
    };
    let signals = launching::child_signals()
        .map_err(|source| StartError::System { action: "watch for ends of children", source })?;
    connection.send(&FromMonitor::Reply { id: HELLO, reply: Reply::Ready(ready.clone()) }, Vec::new());
    Ok(Supervisor {
        pod: hello.pod,
        socket: hello.socket,
        ready,
        pins,
        signals,
        listener,
        connections: vec![connection],
        connections_made: 1,
        containers: Vec::new(),
        leaving: Vec::new(),
        execs: Vec::new(),
        jobs: Vec::new(),
        unclaimed: BTreeMap::new(),
        buffers: Buffers::default(),
        numbers: 0,
        ending: false,
    })
}

fn receive_hello(socket: &OwnedFd, decoder: &mut Decoder) -> Result<(Hello, Vec<OwnedFd>), StartError> {
    let (mut buffer, mut fds) = ([0; 4096], Vec::new());
    loop {
        match decoder.next() {
            Ok(Some(hello)) => return Ok(hello),
            Ok(None) => {}
            Err(_) => return Err(StartError::NoHello),
        }
        match socket::receive(socket, &mut buffer, &mut fds) {
            Ok(n) if n > 0 => decoder.push(&buffer[..n], std::mem::take(&mut fds)),
            _ => return Err(StartError::NoHello),
        }
    }
}

/// The whole state of a monitor.
#[derive(Debug)]
struct Supervisor {
    pod: String,
    socket: PathBuf,
    ready: Ready,
    pins: Pins,
    signals: OwnedFd,
    listener: OwnedFd,
    connections: Vec<Connection>,
    connections_made: u64,
    containers: Vec<Container>,
    /// Of containers that have ended: who has not taken all of the output yet.
    leaving: Vec<Client>,
    execs: Vec<Exec>,
    jobs: Vec<Job>,
    /// Ends of children while a runtime is about to say whose they are. None may be lost, whatever orphans a container leaves
    /// meanwhile; there is one per pid at most, and only for as long as a runtime may take.
    unclaimed: BTreeMap<i32, End>,
    buffers: Buffers,
    /// For file names.
    numbers: u64,
    /// Ends once every answer is sent.
    ending: bool,
}

/// What poll(2) waits for.
#[derive(Debug, Clone, Copy)]
enum Source {
    Signals,
    Listener,
    /// By its place in the list.
    Connection(usize),
    /// A container's place, and the stream's there.
    Stream(usize, usize),
    /// A container's place, the client's there, and one of its streams.
    Client(usize, usize, Slot),
    /// A container's place: it takes input again.
    Input(usize),
    /// By its place among the leaving ones.
    Leaving(usize, Slot),
}

impl Supervisor {
    fn run(mut self) {
        let mut quiet = false;
        while !(self.ending && self.connections.iter().all(|connection| !connection.wants_to_send())) {
            let now = Instant::now();
            let deadlines = self.jobs.iter().filter(|job| !job.timed_out).map(|job| job.deadline);
            let deadlines = deadlines.chain(self.execs.iter().filter_map(|exec| exec.deadline));
            let next = deadlines.min().map(|deadline| deadline.saturating_duration_since(now));
            let timeout = if quiet { next } else { Some(next.map_or(QUIET, |next| next.min(QUIET))) };
            let ready = self.wait(timeout);
            if ready.is_empty() && !quiet {
                self.buffers.release();
                launching::trim_memory();
                quiet = true;
            } else if !ready.is_empty() {
                quiet = false;
            }
            self.dispatch(&ready);
            self.strike_deadlines();
            self.drop_broken_connections();
        }
        std::fs::remove_file(&self.socket).ok();
        if let Some(init) = self.pins.init {
            namespaces::end(init);
        }
    }

    fn wait(&self, timeout: Option<Duration>) -> Vec<Source> {
        let connections = self.connections.iter().enumerate().map(|(place, connection)| {
            let flags =
                if connection.wants_to_send() { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
            (Source::Connection(place), connection.socket(), flags)
        });
        let streams = self.containers.iter().enumerate().flat_map(|(place, container)| {
            // Until it is created what comes is the runtime's own; see `Streams::said`.
            let creating = container.state == ContainerState::Creating;
            let sources = container.streams.sources().enumerate().filter(move |_| !creating);
            sources.map(move |(stream, fd)| (Source::Stream(place, stream), fd, PollFlags::IN))
        });
        let clients = self.containers.iter().enumerate().flat_map(|(place, container)| {
            let clients = container.streams.clients.iter().enumerate().flat_map(move |(number, client)| {
                client
                    .sources()
                    .map(move |(slot, fd, flags)| (Source::Client(place, number, slot), fd, flags))
            });
            let full = container.streams.clients.iter().any(Client::has_unsent_input);
            let input = container.streams.input().filter(|_| full);
            clients.chain(input.map(|fd| (Source::Input(place), fd, PollFlags::OUT)))
        });
        let leaving = self.leaving.iter().enumerate().flat_map(|(number, client)| {
            client.sources().map(move |(slot, fd, flags)| (Source::Leaving(number, slot), fd, flags))
        });
        let fixed: [(Source, BorrowedFd<'_>, PollFlags); 2] = [
            (Source::Signals, self.signals.as_fd(), PollFlags::IN),
            (Source::Listener, self.listener.as_fd(), PollFlags::IN),
        ];
        let (mut sources, mut fds) = (Vec::new(), Vec::new());
        for (source, fd, flags) in
            fixed.into_iter().chain(connections).chain(streams).chain(clients).chain(leaving)
        {
            sources.push(source);
            fds.push(PollFd::from_borrowed_fd(fd, flags));
        }
        let timeout = timeout.map(|timeout| Timespec {
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: timeout.subsec_nanos().into(),
        });
        if poll(&mut fds, timeout.as_ref()).is_err() {
            // EINTR; whatever is ready is ready in the next round too.
            return Vec::new();
        }
        let ready = sources.into_iter().zip(&fds).filter(|(_, fd)| !fd.revents().is_empty());
        ready.map(|(source, _)| source).collect()
    }

    fn dispatch(&mut self, ready: &[Source]) {
        for source in ready {
            match *source {
                Source::Stream(container, stream) => {
                    self.containers[container].streams.read(stream, &mut self.buffers);
                }
                Source::Client(container, client, slot) => {
                    let streams = &mut self.containers[container].streams;
                    match slot {
                        Slot::Input => streams.pass_input(client, &mut self.buffers),
                        // By what was waited for: a read of this round may have emptied or filled the buffer.
                        Slot::Output(stream) => streams.clients[client].flush(stream),
                        Slot::IdleOutput(stream) => streams.clients[client].close_output(stream),
                    }
                }
                Source::Input(container) => {
                    self.containers[container].streams.pass_unsent_input(&mut self.buffers);
                }
                Source::Leaving(client, Slot::Output(stream)) => {
                    self.leaving[client].flush(stream);
                    self.leaving[client].finish();
                }
                Source::Leaving(_, _) | Source::Signals | Source::Listener | Source::Connection(_) => {}
            }
        }
        self.containers.iter_mut().for_each(|container| container.streams.drop_ended());
        self.tell_ended_clients();
        // Requests before ends of children, and both after the streams: their places in the lists do not hold longer.
        for source in ready {
            match *source {
                Source::Connection(place) => self.serve(place),
                Source::Listener => self.accept(),
                _ => {}
            }
        }
        if ready.iter().any(|source| matches!(source, Source::Signals)) {
            // struct signalfd_siginfo has 128 bytes; what they say is not needed, only that they are taken.
            let mut taken = [0; 1024];
            while rustix::io::read(&self.signals, &mut taken[..]).is_ok_and(|n| n > 0) {}
            while let Some((pid, end)) = reap::next() {
                self.child_ended(pid, end);
            }
        }
    }

    fn accept(&mut self) {
        let Ok(socket) = socket::accept(&self.listener) else { return };
        if self.connections.len() < CONNECTIONS_MAX {
            self.connections.push(Connection::new(self.connections_made, socket, Decoder::default()));
            self.connections_made += 1;
        }
    }

    fn serve(&mut self, place: usize) {
        let Some(connection) = self.connections.get_mut(place) else { return };
        connection.flush();
        connection.receive();
        let id = connection.id;
        while let Some((message, fds)) = self.connections.get_mut(place).and_then(Connection::next) {
            self.handle(ReplyTo { connection: id, request: message.id }, message.request, fds);
        }
    }

    fn reply(&mut self, to: ReplyTo, reply: Reply, fds: Vec<OwnedFd>) {
        if let Some(connection) =
            self.connections.iter_mut().find(|connection| connection.id == to.connection)
        {
            connection.send(&FromMonitor::Reply { id: to.request, reply }, fds);
        }
    }

    /// Forgets clients whose attach is over, and tells them why.
    fn tell_ended_clients(&mut self) {
        let of_containers = self.containers.iter_mut().map(|container| &mut container.streams.clients);
        for clients in of_containers.chain([&mut self.leaving]) {
            for client in clients.extract_if(.., |client| client.end.is_some()) {
                let connection =
                    self.connections.iter_mut().find(|connection| connection.id == client.connection);
                if let (Some(connection), Some(end)) = (connection, client.end) {
                    let event = Event::AttachEnded { attach: client.attach, end };
                    connection.send(&FromMonitor::Event(event), Vec::new());
                }
            }
        }
    }

    /// With them go the clients that attached through them.
    fn drop_broken_connections(&mut self) {
        if self.connections.iter().any(|connection| connection.broken) {
            self.connections.retain(|connection| !connection.broken);
            let left: Vec<u64> = self.connections.iter().map(|connection| connection.id).collect();
            self.detach(Gone::Lost, |client| !left.contains(&client.connection));
        }
    }

    fn tell_all(&mut self, event: &Event) {
        for connection in &mut self.connections {
            connection.send(&FromMonitor::Event(event.clone()), Vec::new());
        }
    }

    fn child_ended(&mut self, pid: i32, end: End) {
        if let Some(place) = self.jobs.iter().position(|job| job.pid == pid) {
            let job = self.jobs.remove(place);
            self.job_ended(job, end);
        } else if let Some(place) =
            self.containers.iter().position(|c| c.pid == Some(pid) && c.exit.is_none())
        {
            self.container_ended(place, end);
        } else if let Some(place) = self.execs.iter().position(|exec| exec.pid == pid) {
            let exec = self.execs.remove(place);
            let End { code, signal } = end;
            self.tell_all(&Event::ExecExited { exec: exec.id, code, signal, timed_out: exec.timed_out });
        } else if self.jobs.iter().any(Job::leaves_a_process) {
            // Of a pid that was used twice the later end is the one to be asked for.
            self.unclaimed.insert(pid, end);
        }
    }

    /// Gives ends that came before their process was known to whom they belong to.
    fn claim(&mut self) {
        let containers = self.containers.iter().filter(|container| container.exit.is_none());
        let known = containers.filter_map(|container| container.pid);
        let known = known.chain(self.execs.iter().map(|exec| exec.pid));
        let claimed: Vec<i32> = known.filter(|pid| self.unclaimed.contains_key(pid)).collect();
        for pid in claimed {
            let end = self.unclaimed.remove(&pid);
            // A child that is there has not ended: an orphan had its pid before.
            if let Some(end) = end.filter(|_| !reap::is_our_child(pid)) {
                self.child_ended(pid, end);
            }
        }
        if !self.jobs.iter().any(Job::leaves_a_process) {
            self.unclaimed = BTreeMap::new();
        }
    }

    fn container_ended(&mut self, place: usize, end: End) {
        let container = &mut self.containers[place];
        let finished_at = driver::nanos();
        // Both before anyone hears of the end: the kubelet then reads the log, and the reason may not change later.
        container.streams.drain(&mut self.buffers);
        let oom_killed = container.oom.as_ref().is_some_and(|oom| oom.killed(end));
        let End { code, signal } = end;
        container.exit = Some(Exit { code, signal, oom_killed, finished_at });
        container.state = ContainerState::Exited;
        self.leaving.extend(container.streams.let_clients_go());
        let id = container.id.clone();
        let deleting = container.deleting.take();
        if deleting.is_some() {
            self.containers.remove(place);
        }
        self.tell_all(&Event::ContainerExited { id, code, signal, oom_killed, finished_at });
        self.tell_ended_clients();
        if let Some(to) = deleting {
            self.reply(to, Reply::Done, Vec::new());
        }
    }

    fn strike_deadlines(&mut self) {
        let now = Instant::now();
        for job in self.jobs.iter_mut().filter(|job| !job.timed_out && job.deadline <= now) {
            job.timed_out = true;
            reap::kill_tree(job.pid);
        }
        for place in 0..self.execs.len() {
            let exec = &mut self.execs[place];
            if exec.deadline.is_some_and(|deadline| deadline <= now) {
                (exec.deadline, exec.timed_out) = (None, true);
                self.kill_exec(place);
            }
        }
    }

    fn status(&self) -> Status {
        let containers = self.containers.iter().map(|container| ContainerStatus {
            id: container.id.clone(),
            state: container.state,
            pid: container.pid,
            start_time: container.start_time,
            started_at: container.started_at,
            exit: container.exit,
        });
        Status {
            version: wire::VERSION,
            pod: self.pod.clone(),
            ready: self.ready.clone(),
            containers: containers.collect(),
            execs: self.execs.iter().filter(|exec| !exec.streams).map(|exec| exec.id.clone()).collect(),
        }
    }

    fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }
}

/// A failed system call as the answer to a request.
fn system(action: &str) -> impl FnOnce(std::io::Error) -> Failure {
    let action = action.to_owned();
    move |error| Failure::System { action, message: error.to_string() }
}
