//! Drives OCI runtimes: every call is a child of its own that the loop waits for, so a slow runtime holds nothing up.
//!
//! ```text
//! request ─▶ job (runtime process, deadline) ─▶ its end ─▶ reply
//!                                                │
//! create: Creating ──────────────────────────────┴─▶ Created ─ start ─▶ Running ⇄ Paused ─▶ Exited ─ delete ─▶ gone
//!                   └─▶ Failed ─ delete ─▶ gone                 (the end of a container's process is seen in mod.rs)
//! ```

use std::ffi::{CString, OsStr, OsString};
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::io::{Gone, MESSAGE_MAX, Streams, dev_null, output_pipe, tail};
use super::log::LogFile;
use super::reap::{self, End, OomWatch};
use super::serve::ReplyTo;
use super::sinks::{CLIENTS_MAX, Client};
use super::wire::{self, ContainerState, Created, Exit, Failure, Reply, Request, Runtime};
use super::{Supervisor, system};
use crate::sys::spawn::{self, Launch};
use crate::sys::{clock, signal, socket};

/// A container of the pod.
#[derive(Debug)]
pub(super) struct Container {
    pub(super) id: String,
    runtime: Runtime,
    bundle: PathBuf,
    pub(super) state: ContainerState,
    pub(super) pid: Option<i32>,
    process: Option<OwnedFd>,
    pub(super) start_time: u64,
    /// Nanoseconds since the epoch.
    pub(super) started_at: Option<i64>,
    pub(super) exit: Option<Exit>,
    pub(super) streams: Streams,
    pub(super) oom: Option<OomWatch>,
    /// The runtime has removed it, and its process is about to be reaped.
    pub(super) deleting: Option<ReplyTo>,
}

/// A process that was added to a container.
#[derive(Debug)]
pub(super) struct Exec {
    pub(super) id: String,
    container: String,
    /// 0 until the runtime has started it.
    pub(super) pid: i32,
    /// Its number in the runtime's own kernel, where that has one; `pid` is then a process that only waits for it.
    inner: Option<i32>,
    timeout: Option<Duration>,
    pub(super) deadline: Option<Instant>,
    pub(super) timed_out: bool,
    /// To be killed once it has started.
    killed: bool,
    /// Whoever asked for it may go away.
    pub(super) streams: bool,
}

/// A runtime at work.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) pid: i32,
    stage: &'static str,
    container: String,
    pub(super) deadline: Instant,
    timeout_ms: u64,
    pub(super) timed_out: bool,
    /// `None`: nobody waits.
    reply: Option<ReplyTo>,
    /// The runtime's own log.
    log: PathBuf,
    stderr: Option<OwnedFd>,
    then: Then,
}

impl Job {
    /// The monitor learns by its end which process it has left to us.
    pub(super) fn leaves_a_process(&self) -> bool {
        match self.then {
            Then::Create { .. } | Then::Exec { .. } => true,
            Then::Start | Then::State(_) | Then::Delete | Then::Nothing { .. } | Then::KillExec { .. } => {
                false
            }
        }
    }
}

/// What a job's end means.
#[derive(Debug)]
enum Then {
    Create {
        pid_file: PathBuf,
        console: Option<Console>,
    },
    Start,
    State(ContainerState),
    Delete,
    Nothing {
        file: Option<PathBuf>,
    },
    Exec {
        exec: String,
        pid_file: PathBuf,
        inner_pid_file: Option<PathBuf>,
        process_file: PathBuf,
        console: Option<Console>,
    },
    /// The exec's own process has got SIGKILL by the runtime.
    KillExec {
        exec: String,
    },
}

/// Where a runtime delivers the terminal of a new process.
#[derive(Debug)]
struct Console {
    listener: OwnedFd,
    path: PathBuf,
    /// What the runtime is told. It leads through our descriptor of the directory, since the path itself may be longer than
    /// the 107 bytes of a socket's address (unix(7)), and runtimes connect to what they are told.
    address: PathBuf,
    _directory: fs::File,
}

impl Console {
    fn new(directory: &Path, number: u64) -> io::Result<Self> {
        let path = directory.join(format!("console-{number}"));
        let open = fs::File::open(directory)?;
        let (pid, fd) = (std::process::id(), open.as_raw_fd());
        let address = PathBuf::from(format!("/proc/{pid}/fd/{fd}/console-{number}"));
        Ok(Self { listener: socket::listen(&address)?, path, address, _directory: open })
    }

    /// After the runtime has ended: what it sent is in the queue.
    fn take(&self) -> io::Result<OwnedFd> {
        let connection = socket::accept(&self.listener)?;
        let (mut name, mut fds) = ([0; 4096], Vec::new());
        socket::receive(&connection, &mut name, &mut fds)?;
        fds.pop().ok_or_else(|| io::Error::other("the runtime sent no terminal"))
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        fs::remove_file(&self.path).ok();
    }
}

/// What a job needs besides the subcommand's own arguments.
struct Call<'a> {
    stage: &'static str,
    args: Vec<OsString>,
    timeout_ms: u64,
    reply: Option<ReplyTo>,
    then: Then,
    /// /dev/null and a pipe for error messages if `None`.
    stdio: Option<[BorrowedFd<'a>; 3]>,
    keep: &'a [BorrowedFd<'a>],
}

impl Supervisor {
    /// Begins a request. The answer is sent now or when the runtime has ended.
    pub(super) fn handle(&mut self, to: ReplyTo, request: Request, fds: Vec<OwnedFd>) {
        match self.begin(to, request, fds) {
            Ok(Some(reply)) => self.reply(to, reply, Vec::new()),
            Ok(None) => {}
            Err(failure) => self.reply(to, Reply::Failed(failure), Vec::new()),
        }
    }

    fn begin(&mut self, to: ReplyTo, request: Request, fds: Vec<OwnedFd>) -> Result<Option<Reply>, Failure> {
        use ContainerState::{Created, Exited, Paused, Running};
        match request {
            Request::Status { .. } => return Ok(Some(Reply::Status(self.status()))),
            Request::Create(create) => self.create(to, create, fds)?,
            Request::Start { container, timeout_ms } => {
                self.in_state(&container, &[Created])?;
                self.simple(to, &container, "start", "start", timeout_ms, Then::Start)?;
            }
            Request::Kill { container, signal, all, timeout_ms } => {
                return self.kill(to, &container, signal, all, timeout_ms);
            }
            Request::Delete { container, timeout_ms } => {
                self.find(&container)?;
                let call = Call {
                    stage: "delete",
                    args: vec!["--force".into(), container.clone().into()],
                    timeout_ms,
                    reply: Some(to),
                    then: Then::Delete,
                    stdio: None,
                    keep: &[],
                };
                self.call(&container, call)?;
            }
            Request::Pause { container, timeout_ms } => {
                self.in_state(&container, &[Created, Running])?;
                self.simple(to, &container, "pause", "pause", timeout_ms, Then::State(Paused))?;
            }
            Request::Resume { container, timeout_ms } => {
                self.in_state(&container, &[Paused])?;
                self.simple(to, &container, "resume", "resume", timeout_ms, Then::State(Running))?;
            }
            Request::Update { container, resources, timeout_ms } => {
                self.in_state(&container, &[Created, Running, Paused])?;
                let number = self.number();
                let file = self.find(&container)?.bundle.join(format!("resources-{number}.json"));
                fs::write(&file, resources).map_err(system("write the resources for the runtime"))?;
                let call = Call {
                    stage: "update",
                    args: vec!["--resources".into(), file.clone().into(), container.clone().into()],
                    timeout_ms,
                    reply: Some(to),
                    then: Then::Nothing { file: Some(file) },
                    stdio: None,
                    keep: &[],
                };
                self.call(&container, call)?;
            }
            Request::ReopenLog { container, name } => {
                // Before the file is made: a container that has ended gets no new one.
                self.in_state(&container, &[Created, Running, Paused])?;
                let directory = fds.first().ok_or_else(|| invalid("the log's directory is missing"))?;
                let log =
                    LogFile::open(directory, &name).map_err(system(&format!("open the log {name:?}")))?;
                if !self.find(&container)?.streams.set_log(log) {
                    return Err(invalid("the container has no log"));
                }
                return Ok(Some(Reply::Done));
            }
            Request::Exec(exec) => self.exec(to, exec, fds)?,
            Request::ExecKill { exec } => {
                if let Some(place) = self.execs.iter().position(|known| known.id == exec) {
                    self.execs[place].killed = true;
                    if self.execs[place].pid != 0 {
                        self.kill_exec(place);
                    }
                }
                return Ok(Some(Reply::Done));
            }
            Request::Resize { container, columns, rows } => {
                let sized = self
                    .in_state(&container, &[Created, Running, Paused, Exited])?
                    .streams
                    .resize(columns, rows);
                sized
                    .ok_or_else(|| invalid("the container has no terminal"))?
                    .map_err(system("resize a terminal"))?;
                return Ok(Some(Reply::Done));
            }
            Request::Shutdown => {
                if !self.containers.is_empty() {
                    let count = self.containers.len();
                    return Err(invalid(&format!("there are still {count} containers; delete them first")));
                }
                self.ending = true;
                return Ok(Some(Reply::Done));
            }
            Request::Attach(attach) => {
                self.attach(to, attach, fds)?;
                return Ok(Some(Reply::Done));
            }
            Request::FinishStdin { attach } => {
                self.finish_stdin(&attach);
                return Ok(Some(Reply::Done));
            }
            Request::Detach { attach } => {
                self.detach(Gone::Left, |client| client.attach == attach);
                return Ok(Some(Reply::Done));
            }
            Request::Unknown => return Err(Failure::Unsupported),
        }
        Ok(None)
    }

    fn create(&mut self, to: ReplyTo, create: wire::Create, fds: Vec<OwnedFd>) -> Result<(), Failure> {
        if self.containers.iter().any(|container| container.id == create.container) {
            return Err(invalid("the container exists already"));
        }
        let wanted = usize::from(create.log.is_some()) + usize::from(create.rootfs) + create.mounts.len();
        if fds.len() != wanted {
            return Err(invalid(&format!("{} descriptors came with the request, not {wanted}", fds.len())));
        }
        let mut fds = fds.into_iter();
        let log = match &create.log {
            Some(name) => {
                let directory = fds.next().expect("counted above");
                Some(LogFile::open(directory, name).map_err(system(&format!("open the log {name:?}")))?)
            }
            None => None,
        };
        let mounts: Vec<OwnedFd> = fds.collect();
        let number = self.number();
        let pid_file = create.bundle.join("pid");
        let mut args: Vec<OsString> = vec![
            "--bundle".into(),
            create.bundle.clone().into(),
            "--pid-file".into(),
            pid_file.clone().into(),
        ];
        let mut indexes = create.mounts.iter();
        for (position, mount) in mounts.iter().enumerate() {
            if create.rootfs && position == 0 {
                args.extend(["--rootfs-fd".into(), mount.as_raw_fd().to_string().into()]);
            } else {
                let index = indexes.next().expect("counted above");
                args.extend(["--mount-fd".into(), format!("{index}={}", mount.as_raw_fd()).into()]);
            }
        }
        let (streams, ends, console) = if create.terminal {
            let console = Console::new(&create.bundle, number).map_err(system("make a console socket"))?;
            args.extend(["--console-socket".into(), console.address.clone().into()]);
            (Streams::awaiting_terminal(log, create.stdin), None, Some(console))
        } else {
            let made = Streams::pipes(log, create.stdin, create.stdin_once);
            let (streams, ends) = made.map_err(system("make pipes"))?;
            (streams, Some(ends), None)
        };
        args.push(create.container.clone().into());
        self.containers.push(Container {
            id: create.container.clone(),
            runtime: create.runtime,
            bundle: create.bundle,
            state: ContainerState::Creating,
            pid: None,
            process: None,
            start_time: 0,
            started_at: None,
            exit: None,
            streams,
            oom: None,
            deleting: None,
        });
        let keep: Vec<BorrowedFd<'_>> = mounts.iter().map(AsFd::as_fd).collect();
        let call = Call {
            stage: "create",
            args,
            timeout_ms: create.timeout_ms,
            reply: Some(to),
            then: Then::Create { pid_file, console },
            stdio: ends.as_ref().map(|ends| [ends.stdin.as_fd(), ends.stdout.as_fd(), ends.stderr.as_fd()]),
            keep: &keep,
        };
        let called = self.call(&create.container, call);
        if called.is_err() {
            self.containers.retain(|container| container.id != create.container);
        }
        called
    }

    fn exec(&mut self, to: ReplyTo, exec: wire::Exec, fds: Vec<OwnedFd>) -> Result<(), Failure> {
        if self.execs.iter().any(|known| known.id == exec.exec) {
            return Err(invalid("the exec exists already"));
        }
        let marked = [exec.stdin, exec.stdout, exec.stderr];
        if fds.len() != marked.iter().filter(|marked| **marked).count() {
            return Err(invalid("the number of descriptors does not fit the request"));
        }
        let container = self.in_state(&exec.container, &[ContainerState::Running])?;
        let (bundle, own_kernel) = (container.bundle.clone(), container.runtime.own_kernel);
        let number = self.number();
        let process_file = bundle.join(format!("exec-{number}.json"));
        let pid_file = bundle.join(format!("exec-{number}.pid"));
        fs::write(&process_file, &exec.process).map_err(system("write the process for the runtime"))?;
        let mut args: Vec<OsString> = vec![
            "--detach".into(),
            "--process".into(),
            process_file.clone().into(),
            "--pid-file".into(),
            pid_file.clone().into(),
        ];
        let inner_pid_file = own_kernel.then(|| bundle.join(format!("exec-{number}.inner")));
        if let Some(file) = &inner_pid_file {
            args.extend(["--internal-pid-file".into(), file.clone().into()]);
        }
        let console = match exec.terminal {
            true => {
                let console = Console::new(&bundle, number).map_err(system("make a console socket"))?;
                args.extend(["--console-socket".into(), console.address.clone().into()]);
                Some(console)
            }
            false => None,
        };
        args.push(exec.container.clone().into());
        let null = dev_null().map_err(system("open /dev/null"))?;
        let mut given = fds.iter();
        let stdio = marked.map(|marked| match marked {
            true => given.next().expect("counted above").as_fd(),
            false => null.as_fd(),
        });
        let call = Call {
            stage: "exec",
            args,
            timeout_ms: exec.start_timeout_ms,
            reply: Some(to),
            then: Then::Exec { exec: exec.exec.clone(), pid_file, inner_pid_file, process_file, console },
            stdio: (!exec.terminal).then_some(stdio),
            keep: &[],
        };
        self.call(&exec.container, call)?;
        let timeout = (exec.timeout_ms != 0).then(|| Duration::from_millis(exec.timeout_ms));
        self.execs.push(Exec {
            id: exec.exec,
            container: exec.container,
            pid: 0,
            inner: None,
            timeout,
            deadline: None,
            timed_out: false,
            killed: false,
            streams: exec.streams,
        });
        Ok(())
    }

    fn attach(&mut self, to: ReplyTo, attach: wire::Attach, fds: Vec<OwnedFd>) -> Result<(), Failure> {
        use ContainerState::{Created, Paused, Running};
        let marked = [attach.stdin, attach.stdout, attach.stderr];
        if fds.len() != marked.iter().filter(|marked| **marked).count() {
            return Err(invalid("the number of descriptors does not fit the request"));
        }
        let streams = &mut self.in_state(&attach.container, &[Created, Running, Paused])?.streams;
        if attach.stdin && !streams.has_input {
            return Err(invalid("the container was created without stdin"));
        }
        if streams.clients.len() >= CLIENTS_MAX {
            return Err(invalid(&format!(
                "the container has {CLIENTS_MAX} clients already; detach one first"
            )));
        }
        let mut given = fds.into_iter();
        let [stdin, stdout, stderr] = marked.map(|marked| if marked { given.next() } else { None });
        for pipe in [&stdin, &stdout, &stderr].into_iter().flatten() {
            rustix::io::ioctl_fionbio(pipe, true).map_err(|e| system("set up a client's pipe")(e.into()))?;
        }
        // Closed already where the first client has ended the input of all: such a client only listens.
        let stdin = stdin.filter(|_| streams.input().is_some());
        streams.clients.push(Client::new(attach.attach, to.connection, stdin, stdout, stderr));
        Ok(())
    }

    fn finish_stdin(&mut self, attach: &str) {
        for container in &mut self.containers {
            let clients = &mut container.streams.clients;
            if let Some(client) = clients.iter().position(|client| client.attach == attach) {
                if clients[client].finish_input() {
                    container.streams.pass_input(client, &mut self.buffers);
                }
                return;
            }
        }
    }

    /// Forgets clients.
    pub(super) fn detach(&mut self, gone: Gone, is_gone: impl Fn(&Client) -> bool) {
        for container in &mut self.containers {
            let streams = &mut container.streams;
            while let Some(client) = streams.clients.iter().position(&is_gone) {
                streams.detach(client, gone, &mut self.buffers);
            }
        }
        self.leaving.retain(|client| !is_gone(client));
    }

    fn kill(
        &mut self,
        to: ReplyTo,
        id: &str,
        number: i32,
        all: bool,
        timeout_ms: u64,
    ) -> Result<Option<Reply>, Failure> {
        const SIGKILL: i32 = 9;
        let container = self.find(id)?;
        let frozen = container.state == ContainerState::Paused && number == SIGKILL;
        match (container.state, container.pid, &container.process) {
            // Where the first process was not PID 1, others of the container may have outlived it.
            (ContainerState::Exited, ..) if all => {}
            (ContainerState::Exited, ..) => return Ok(Some(Reply::Done)),
            (_, Some(pid), Some(process)) => {
                // Where the first process is PID 1, the kernel ends the others with it (pid_namespaces(7)).
                // Before the start there are no others, and some runtimes (gVisor's) signal nothing that is not started.
                let alone = container.state == ContainerState::Created;
                if !all || alone || (number == SIGKILL && reap::is_init(pid)) {
                    match signal::send(process, number) {
                        // Reaped just now.
                        Err(error)
                            if error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => {}
                        other => other.map_err(system(&format!("send signal {number}")))?,
                    }
                    if frozen {
                        // Even SIGKILL waits for a frozen process (cgroup v1 freezer).
                        self.simple_unanswered(id, "resume", timeout_ms)?;
                    }
                    return Ok(Some(Reply::Done));
                }
            }
            (state, ..) => return Err(Failure::WrongState { state }),
        }
        let call = Call {
            stage: "kill",
            args: vec!["--all".into(), id.into(), number.to_string().into()],
            timeout_ms,
            reply: Some(to),
            then: Then::Nothing { file: None },
            stdio: None,
            keep: &[],
        };
        self.call(id, call)?;
        if frozen {
            self.simple_unanswered(id, "resume", timeout_ms)?;
        }
        Ok(None)
    }

    /// Kills the tree of an exec's process; in a runtime's own kernel its first process, all that the runtime can reach.
    pub(super) fn kill_exec(&mut self, place: usize) {
        /// It is one message to a process that waits for such.
        const KILL_MS: u64 = 10_000;
        let Exec { id, container, pid, inner, .. } = &self.execs[place];
        let (pid, container, exec) = (*pid, container.clone(), id.clone());
        let Some(inner) = inner else { return reap::kill_tree(pid) };
        let call = Call {
            stage: "kill",
            args: vec![
                "--pid".into(),
                inner.to_string().into(),
                container.clone().into(),
                rustix::process::Signal::KILL.as_raw().to_string().into(),
            ],
            timeout_ms: KILL_MS,
            reply: None,
            then: Then::KillExec { exec },
            stdio: None,
            keep: &[],
        };
        if self.call(&container, call).is_err() {
            reap::kill_tree(pid);
        }
    }

    fn simple_unanswered(&mut self, id: &str, stage: &'static str, timeout_ms: u64) -> Result<(), Failure> {
        let then = Then::Nothing { file: None };
        self.call(
            id,
            Call { stage, args: vec![id.into()], timeout_ms, reply: None, then, stdio: None, keep: &[] },
        )
    }

    fn simple(
        &mut self,
        to: ReplyTo,
        id: &str,
        stage: &'static str,
        command: &'static str,
        timeout_ms: u64,
        then: Then,
    ) -> Result<(), Failure> {
        debug_assert_eq!(stage, command, "a stage is named after the runtime's subcommand");
        let reply = Some(to);
        self.call(id, Call { stage, args: vec![id.into()], timeout_ms, reply, then, stdio: None, keep: &[] })
    }

    /// Starts the runtime of a container: `RUNTIME --root … --log … SUBCOMMAND ARGS`.
    fn call(&mut self, id: &str, call: Call<'_>) -> Result<(), Failure> {
        let number = self.number();
        let container = self.find(id)?;
        let runtime = &container.runtime;
        let log = container.bundle.join(format!("runtime-{number}.log"));
        let systemd = runtime.systemd_cgroup.then(|| OsString::from("--systemd-cgroup"));
        let words = std::iter::once(runtime.path.clone().into_os_string())
            .chain(runtime.options.iter().map(OsString::from))
            .chain(["--root".into(), runtime.root.clone().into_os_string()])
            .chain(systemd)
            .chain(["--log".into(), log.clone().into_os_string(), "--log-format".into(), "json".into()])
            .chain([OsString::from(call.stage)])
            .chain(call.args);
        let args = words
            .map(|word| CString::new(word.as_bytes()))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_| invalid("an argument of the runtime contains a NUL"))?;
        let null = dev_null().map_err(system("open /dev/null"))?;
        let (errors, errors_end) = match call.stdio {
            None => {
                output_pipe().map(|(read, write)| (Some(read), Some(write))).map_err(system("make a pipe"))?
            }
            Some(_) => (None, None),
        };
        let [stdin, stdout, stderr] = match call.stdio {
            Some(stdio) => stdio,
            None => [null.as_fd(), null.as_fd(), errors_end.as_ref().map_or(null.as_fd(), AsFd::as_fd)],
        };
        let program: &OsStr = runtime.path.as_os_str();
        let launch = Launch { program, args: &args, stdin, stdout, stderr, keep: call.keep };
        let pid = spawn::launch(&launch).map_err(system(&format!("start {}", runtime.path.display())))?;
        self.jobs.push(Job {
            pid,
            stage: call.stage,
            container: id.to_owned(),
            deadline: Instant::now() + Duration::from_millis(call.timeout_ms.min(DAY_MS)),
            timeout_ms: call.timeout_ms,
            timed_out: false,
            reply: call.reply,
            log,
            stderr: errors,
            then: call.then,
        });
        Ok(())
    }

    /// A runtime has ended.
    pub(super) fn job_ended(&mut self, job: Job, end: End) {
        let words = || {
            let said = job.stderr.as_ref().map(tail).unwrap_or_default();
            let said = match (&job.then, said.is_empty()) {
                // A container without a terminal has the runtime's standard error as its own.
                (Then::Create { .. }, true) => self
                    .containers
                    .iter()
                    .find(|c| c.id == job.container)
                    .map(|c| c.streams.said())
                    .unwrap_or_default(),
                _ => said,
            };
            message(&job.log, &said, end)
        };
        let failure = match (job.timed_out, end.code) {
            (true, _) => Some(Failure::Timeout { stage: job.stage.to_owned(), after_ms: job.timeout_ms }),
            (false, 0) => None,
            (false, _) => Some(Failure::Runtime { stage: job.stage.to_owned(), message: words() }),
        };
        fs::remove_file(&job.log).ok();
        let (reply, fds) = self.finish(&job, failure);
        if let (Some(to), Some(reply)) = (job.reply, reply) {
            self.reply(to, reply, fds);
        }
        self.claim();
    }

    /// What the end of a job changes, and the answer; `None` if that comes later.
    fn finish(&mut self, job: &Job, failure: Option<Failure>) -> (Option<Reply>, Vec<OwnedFd>) {
        let answer =
            |failure: Option<Failure>| (Some(failure.map_or(Reply::Done, Reply::Failed)), Vec::new());
        match &job.then {
            Then::Create { pid_file, console } => {
                let created = match failure {
                    Some(failure) => Err(failure),
                    None => self.created(&job.container, pid_file, console.as_ref()),
                };
                let container = self.containers.iter_mut().find(|c| c.id == job.container);
                match (created, container) {
                    (Ok(created), _) => (Some(Reply::Created(created)), Vec::new()),
                    (Err(failure), container) => {
                        if let Some(container) = container {
                            container.state = ContainerState::Failed;
                        }
                        (Some(Reply::Failed(failure)), Vec::new())
                    }
                }
            }
            Then::Start => {
                let container = self.containers.iter_mut().find(|c| c.id == job.container);
                if let (None, Some(container)) = (&failure, container) {
                    container.started_at = Some(nanos());
                    if container.state == ContainerState::Created {
                        container.state = ContainerState::Running;
                    }
                }
                answer(failure)
            }
            Then::State(state) => {
                let container = self.containers.iter_mut().find(|c| c.id == job.container);
                if let (None, Some(container)) = (&failure, container)
                    && container.state != ContainerState::Exited
                {
                    container.state = match (state, container.started_at) {
                        (ContainerState::Running, None) => ContainerState::Created,
                        (state, _) => *state,
                    };
                }
                answer(failure)
            }
            Then::Nothing { file } => {
                if let Some(file) = file {
                    fs::remove_file(file).ok();
                }
                answer(failure)
            }
            Then::Delete => (self.deleted(job, failure), Vec::new()),
            Then::KillExec { exec } => {
                // Ended already, unless it could not be reached. What stood for it here is then all that is left to end.
                if let Some(exec) = self.execs.iter().find(|known| known.id == *exec) {
                    reap::kill_tree(exec.pid);
                }
                answer(failure)
            }
            Then::Exec { exec, pid_file, inner_pid_file, process_file, console } => {
                let started = match failure {
                    Some(failure) => Err(failure),
                    None => self.exec_started(exec, pid_file, inner_pid_file.as_deref(), console.as_ref()),
                };
                for file in
                    [Some(process_file), Some(pid_file), inner_pid_file.as_ref()].into_iter().flatten()
                {
                    fs::remove_file(file).ok();
                }
                match started {
                    Ok((pid, terminal)) => (Some(Reply::ExecStarted { pid }), terminal.into_iter().collect()),
                    Err(failure) => {
                        self.execs.retain(|known| known.id != *exec);
                        (Some(Reply::Failed(failure)), Vec::new())
                    }
                }
            }
        }
    }

    fn created(&mut self, id: &str, pid_file: &Path, console: Option<&Console>) -> Result<Created, Failure> {
        let pid = read_pid(pid_file)?;
        let container = self.find(id)?;
        if let Some(console) = console {
            let master = console.take().map_err(system("take the container's terminal"))?;
            container.streams.set_terminal(master).map_err(system("set up the container's terminal"))?;
        }
        // A child of ours cannot vanish before it is reaped, and reaping it comes after this.
        let raw =
            rustix::process::Pid::from_raw(pid).ok_or_else(|| invalid("the runtime wrote the pid 0"))?;
        let process = rustix::process::pidfd_open(raw, rustix::process::PidfdFlags::empty()).ok();
        container.pid = Some(pid);
        container.process = process;
        container.start_time = reap::stat(pid).map_or(0, |(_, _, start)| start);
        container.oom = OomWatch::of(pid);
        container.state = ContainerState::Created;
        Ok(Created { pid, start_time: container.start_time })
    }

    fn exec_started(
        &mut self,
        id: &str,
        pid_file: &Path,
        inner_pid_file: Option<&Path>,
        console: Option<&Console>,
    ) -> Result<(i32, Option<OwnedFd>), Failure> {
        let pid = read_pid(pid_file)?;
        let inner = inner_pid_file.map(read_pid).transpose()?;
        let terminal =
            console.map(|console| console.take().map_err(system("take the terminal"))).transpose()?;
        if let Some(place) = self.execs.iter().position(|exec| exec.id == id) {
            let exec = &mut self.execs[place];
            (exec.pid, exec.inner) = (pid, inner);
            exec.deadline = exec.timeout.map(|timeout| Instant::now() + timeout);
            if exec.killed {
                // Its end is reported as that of any other.
                self.kill_exec(place);
            }
        }
        Ok((pid, terminal))
    }

    fn deleted(&mut self, job: &Job, failure: Option<Failure>) -> Option<Reply> {
        match failure {
            // Deleted by an earlier call whose answer was lost, or never made: a failed create leaves nothing.
            Some(Failure::Runtime { message, .. }) if message.contains("does not exist") => {}
            Some(failure) => return Some(Reply::Failed(failure)),
            None => {}
        }
        let Some(container) = self.containers.iter_mut().find(|c| c.id == job.container) else {
            return Some(Reply::Done);
        };
        if let (Some(_), None, Some(process)) = (container.pid, container.exit, &container.process) {
            // The runtime has killed it; its end must be seen before it is forgotten. Only ESRCH is possible.
            signal::send(process, 9).ok();
            container.deleting = job.reply;
            return None;
        }
        self.containers.retain(|container| container.id != job.container);
        Some(Reply::Done)
    }

    fn find(&mut self, id: &str) -> Result<&mut Container, Failure> {
        self.containers.iter_mut().find(|container| container.id == id).ok_or(Failure::NoSuchContainer)
    }

    fn in_state(&mut self, id: &str, states: &[ContainerState]) -> Result<&mut Container, Failure> {
        let container = self.find(id)?;
        match states.contains(&container.state) {
            true => Ok(container),
            false => Err(Failure::WrongState { state: container.state }),
        }
    }
}

/// Longer waits mean "for ever" and would overflow the clock.
const DAY_MS: u64 = 24 * 3600 * 1000;

fn invalid(message: &str) -> Failure {
    Failure::Invalid { message: message.to_owned() }
}

/// Now, in nanoseconds since the epoch.
pub(super) fn nanos() -> i64 {
    i64::try_from(clock::now().as_nanos()).unwrap_or(i64::MAX)
}

fn read_pid(file: &Path) -> Result<i32, Failure> {
    let read = fs::read_to_string(file).map_err(system("read the runtime's pid file"))?;
    read.trim().parse().map_err(|_| invalid(&format!("the runtime's pid file says {read:?}")))
}

/// Why a runtime failed, in its own words: the last error of its log, else what it wrote to its standard error.
fn message(log: &Path, stderr: &[u8], end: End) -> String {
    /// One line of a log.
    #[derive(serde::Deserialize)]
    struct Line {
        level: String,
        msg: String,
    }
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text[text.len().saturating_sub(16 * MESSAGE_MAX)..]).into_owned();
    let mut lines = text.lines().filter_map(|line| serde_json::from_str::<Line>(line).ok());
    let logged = lines.rfind(|line| line.level == "error" || line.level == "fatal").map(|line| line.msg);
    let said = String::from_utf8_lossy(stderr).trim().to_owned();
    let mut message = match (logged, said.is_empty()) {
        (Some(logged), _) => logged,
        (None, false) => said,
        (None, true) if end.signal != 0 => format!("ended by signal {} without a word", end.signal),
        (None, true) => format!("exit code {} without a word", end.code),
    };
    if message.len() > MESSAGE_MAX {
        let mut cut = MESSAGE_MAX;
        while !message.is_char_boundary(cut) {
            cut -= 1;
        }
        message.truncate(cut);
    }
    message
}
