//! A monitor as a process, with a runtime that is a shell script: what it answers, writes and leaves behind.
//!
//! The script does what an OCI runtime does as far as the monitor can see: it writes a pid file, leaves a process behind
//! and goes. What "runs" in the container is the bundle's `run` script, which waits for `start` to make a file.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use super::sinks::CLIENTS_MAX;
use super::wire::{
    self, AttachEnd, ContainerState, Create, Decoder, Event, Exec, Failure, FromMonitor, Hello, Namespaces,
    Ready, Reply, Request, Runtime, Status, ToMonitor,
};
use crate::sys::socket;

const RUNTIME: &str = r#"#!/bin/sh
# Global options first, then the subcommand; every option has a value except those named here.
while [ $# -gt 0 ]; do
    case $1 in
    create|start|kill|delete|exec|pause|resume|update) command=$1 ;;
    --bundle) bundle=$2; shift ;;
    --pid-file) pid_file=$2; shift ;;
    --internal-pid-file) inner=$2; shift ;;
    --pid) pid=$2; shift ;;
    --process) process=$2; shift ;;
    --log) log=$2; shift ;;
    --root) root=$2; shift ;;
    --log-format|--resources) shift ;;
    --force|--all|--detach) ;;
    *) id=$1 ;;
    esac
    shift
done
case $command in
create)
    if [ -e "$bundle/refuse" ]; then
        echo '{"level":"error","msg":"no such program"}' >> "$log"
        exit 1
    fi
    if [ -e "$bundle/hang" ]; then sleep 1000; fi
    echo "$bundle" > "$root/$id"
    # A shell gives what it starts in the background no input.
    exec 3<&0
    (read go < "$bundle/fifo"; exec sh "$bundle/run" <&3 3<&-) &
    echo $! > "$pid_file" ;;
start) echo go > "$(cat "$root/$id")/fifo" ;;
exec)
    bundle=$(cat "$root/$id")
    while [ -e "$bundle/hold" ]; do sleep 0.01; done
    if [ -e "$bundle/orphans" ]; then
        # Orphans are the monitor's from the start, the new process too, and all are reaped before this ends.
        for n in $(seq "$(cat "$bundle/orphans")"); do (true & echo $! >> "$bundle/pids"); done
        (sh "$bundle/exec" & echo $! > "$pid_file")
        # Not sooner, or the shell that started it would wait for it.
        touch "$bundle/exec.go"
        for pid in $(cat "$bundle/pids" "$pid_file"); do
            while kill -0 "$pid" 2> /dev/null; do sleep 0.01; done
        done
        exit 0
    fi
    exec 3<&0
    sh "$bundle/exec" <&3 3<&- &
    if [ "$inner" ]; then
        echo $! > "$inner"
        sh -c "while [ -d /proc/$! ]; do sleep 0.01; done" &
    fi
    echo $! > "$pid_file" ;;
kill) kill -9 "$pid" ;;
delete) kill -9 "$(cat "$(cat "$root/$id")/pid")" 2> /dev/null; rm -f "$root/$id" ;;
esac
exit 0
"#;

/// The binary, built without the daemon's dependencies.
fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        // `make test` has built it, small and static; cargo alone has not.
        if let Some(built) = std::env::var_os("BRIG_TEST_BIN_DIR") {
            return PathBuf::from(built).join("brig-monitor");
        }
        // target/PROFILE/deps/THIS
        let own = std::env::current_exe().expect("a test has a path");
        let target = own.ancestors().nth(2).expect("two directories above").to_owned();
        let status = Command::new(env!("CARGO"))
            .args([
                "build",
                "--quiet",
                "--offline",
                "--no-default-features",
                "--bin",
                "brig-monitor",
                "--target-dir",
            ])
            .arg(target.join("helpers"))
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .status();
        assert!(status.expect("cargo runs").success());
        target.join("helpers/debug/brig-monitor")
    })
}

/// A monitor, its scratch directory, and the test's end of its first connection.
struct Fixture {
    dir: tempfile::TempDir,
    child: Child,
    socket: OwnedFd,
    decoder: Decoder,
    ready: Ready,
    events: Vec<Event>,
    id: u64,
}

impl Drop for Fixture {
    fn drop(&mut self) {
        let known: Vec<String> = self.status().containers.into_iter().map(|container| container.id).collect();
        for container in known {
            self.ask(Request::Delete { container, timeout_ms: 10_000 }, &[]);
        }
        self.ask(Request::Shutdown, &[]);
        self.child.wait().expect("the monitor ends");
    }
}

impl Fixture {
    fn new(namespaces: Namespaces) -> Self {
        Self::greet(|hello| hello.namespaces = namespaces).expect("the monitor is ready")
    }

    #[expect(clippy::result_large_err, reason = "a few calls of a test")]
    fn greet(change: impl FnOnce(&mut Hello)) -> Result<Self, Reply> {
        let dir = tempfile::tempdir().expect("a scratch directory");
        fs::create_dir(dir.path().join("state")).expect("a directory");
        let runtime = dir.path().join("runtime");
        fs::write(&runtime, RUNTIME).expect("a script");
        fs::set_permissions(&runtime, fs::Permissions::from_mode(0o755)).expect("made executable");
        let path = dir.path().join("socket");
        let listener = socket::listen(&path).expect("a socket");
        let (socket, theirs) = socket::pair().expect("two sockets");
        let child = Command::new(binary()).stdin(Stdio::from(theirs)).spawn().expect("the monitor starts");
        let mut hello = Hello {
            version: wire::VERSION,
            pod: "pod".into(),
            socket: path,
            mount_namespace: false,
            namespaces: Namespaces::default(),
            hostname: None,
            sysctls: Default::default(),
            shm: None,
        };
        change(&mut hello);
        send(&socket, &wire::encode(&hello, 1).expect("fits"), &[listener.as_fd()]);
        drop(listener);
        let (decoder, events) = (Decoder::default(), Vec::new());
        let ready = Ready::default();
        let mut fixture =
            std::mem::ManuallyDrop::new(Self { dir, child, socket, decoder, ready, events, id: 0 });
        match fixture.answer(0).0 {
            Reply::Ready(ready) => {
                fixture.ready = ready;
                Ok(std::mem::ManuallyDrop::into_inner(fixture))
            }
            other => {
                fixture.child.wait().expect("the monitor ends");
                fs::remove_dir_all(fixture.dir.path()).expect("the scratch directory goes");
                Err(other)
            }
        }
    }

    fn next(&mut self) -> (FromMonitor, Vec<OwnedFd>) {
        loop {
            if let Some(message) = self.decoder.next().expect("a message") {
                return message;
            }
            let (mut buffer, mut fds) = ([0; 4096], Vec::new());
            let n = socket::receive(&self.socket, &mut buffer, &mut fds).expect("a connection");
            assert_ne!(n, 0, "the monitor ended");
            self.decoder.push(&buffer[..n], fds);
        }
    }

    fn answer(&mut self, wanted: u64) -> (Reply, Vec<OwnedFd>) {
        loop {
            match self.next() {
                (FromMonitor::Reply { id, reply }, fds) if id == wanted => return (reply, fds),
                (FromMonitor::Reply { id, .. }, _) => panic!("answer to {id}, not {wanted}"),
                (FromMonitor::Event(event), _) => self.events.push(event),
            }
        }
    }

    fn ask(&mut self, request: Request, fds: &[OwnedFd]) -> Reply {
        let id = self.tell(request, fds);
        self.answer(id).0
    }

    /// Sends a request, whose answer has the id that this returns.
    fn tell(&mut self, request: Request, fds: &[OwnedFd]) -> u64 {
        self.id += 1;
        let id = self.id;
        let frame = wire::encode(&ToMonitor { id, request }, fds.len()).expect("fits");
        send(&self.socket, &frame, &fds.iter().map(AsFd::as_fd).collect::<Vec<_>>());
        id
    }

    fn event(&mut self) -> Event {
        while self.events.is_empty() {
            match self.next() {
                (FromMonitor::Event(event), _) => self.events.push(event),
                (other, _) => panic!("{other:?} was not asked for"),
            }
        }
        self.events.remove(0)
    }

    fn status(&mut self) -> Status {
        match self.ask(Request::Status { version: wire::VERSION }, &[]) {
            Reply::Status(status) => status,
            other => panic!("{other:?}"),
        }
    }

    fn directory(&self) -> OwnedFd {
        fs::File::open(self.dir.path()).expect("the directory").into()
    }

    /// Makes a bundle whose container runs `script`, and asks for it.
    fn create(&mut self, id: &str, script: &str, timeout_ms: u64) -> Reply {
        self.create_with(id, script, |create| create.timeout_ms = timeout_ms)
    }

    fn create_with(&mut self, id: &str, script: &str, change: impl FnOnce(&mut Create)) -> Reply {
        let bundle = self.dir.path().join(id);
        fs::create_dir_all(&bundle).expect("a bundle");
        fs::write(bundle.join("run"), script).expect("a script");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            bundle.join("fifo"),
            rustix::fs::FileType::Fifo,
            0o600.into(),
            0,
        )
        .expect("a fifo");
        let runtime = Runtime {
            path: self.dir.path().join("runtime"),
            root: self.dir.path().join("state"),
            options: Vec::new(),
            systemd_cgroup: false,
            bundled: false,
            own_kernel: false,
        };
        let mut create = Create {
            container: id.into(),
            runtime,
            bundle,
            log: Some(format!("{id}.log")),
            terminal: false,
            stdin: false,
            stdin_once: false,
            cgroup: String::new(),
            rootfs: false,
            mounts: Vec::new(),
            timeout_ms: 10_000,
        };
        change(&mut create);
        let directory = self.directory();
        self.ask(Request::Create(create), &[directory])
    }

    fn run(&mut self, id: &str, script: &str) {
        let created = self.create(id, script, 10_000);
        assert!(matches!(created, Reply::Created(_)), "{created:?}");
        self.start(id);
    }

    fn start(&mut self, id: &str) {
        assert_eq!(self.ask(Request::Start { container: id.into(), timeout_ms: 10_000 }, &[]), Reply::Done);
    }

    /// A container that can be written to, created and not started.
    fn create_with_input(&mut self, id: &str, script: &str, once: bool) {
        let created = self.create_with(id, script, |create| (create.stdin, create.stdin_once) = (true, once));
        assert!(matches!(created, Reply::Created(_)), "{created:?}");
    }

    /// Attaches to input and output.
    fn attach(&mut self, attach: &str, container: &str) -> Client {
        let ((input_end, input), (output, output_end)) = (pipe(), pipe());
        let request = wire::Attach {
            attach: attach.into(),
            container: container.into(),
            stdin: true,
            stdout: true,
            stderr: false,
        };
        assert_eq!(self.ask(Request::Attach(request), &[input_end, output_end]), Reply::Done);
        Client { input: Some(input.into()), output: output.into() }
    }

    /// Descriptors of the monitor's process.
    fn descriptors(&mut self) -> usize {
        // Once it answers this it has closed all that earlier requests took.
        self.status();
        fs::read_dir(format!("/proc/{}/fd", self.child.id())).expect("descriptors").count()
    }

    /// What a container wrote: stream, tag and content of each line.
    fn log(&self, name: &str) -> Vec<String> {
        let text = fs::read_to_string(self.dir.path().join(name)).expect("a log");
        text.lines().map(|line| line[31..].to_owned()).collect()
    }
}

/// A client's ends of its pipes.
struct Client {
    input: Option<fs::File>,
    output: fs::File,
}

impl Client {
    fn write(&mut self, text: &[u8]) {
        self.input.as_mut().expect("not closed").write_all(text).expect("written");
    }

    fn read(&mut self, length: usize) -> Vec<u8> {
        let mut read = vec![0; length];
        self.output.read_exact(&mut read).expect("so much output");
        read
    }

    fn rest(mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        self.output.read_to_end(&mut rest).expect("output");
        rest
    }
}

fn pipe() -> (OwnedFd, OwnedFd) {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).expect("a pipe")
}

fn attach_ended(attach: &str, end: AttachEnd) -> Event {
    Event::AttachEnded { attach: attach.into(), end }
}

fn send(socket: &OwnedFd, mut bytes: &[u8], fds: &[std::os::fd::BorrowedFd<'_>]) {
    let mut fds = fds;
    while !bytes.is_empty() {
        let (n, with) = socket::send(socket, bytes, fds).expect("sent");
        (bytes, fds) = (&bytes[n..], &fds[with..]);
    }
}

fn exited(event: Event) -> (String, i32, i32) {
    match event {
        Event::ContainerExited { id, code, signal, .. } => (id, code, signal),
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_exit_is_told_after_the_log_is_whole_and_is_in_the_status() {
    let mut monitor = Fixture::new(Namespaces::default());
    monitor.run("c", "echo out; printf rest; exit 3");
    assert_eq!(exited(monitor.event()), ("c".into(), 3, 0));
    assert_eq!(monitor.log("c.log"), ["stdout F out", "stdout P rest"]);
    let status = monitor.status();
    let exit = status.containers[0].exit.expect("an exit");
    assert_eq!((status.containers[0].state, exit.code, exit.oom_killed), (ContainerState::Exited, 3, false));
}

#[test]
fn what_a_child_that_is_left_behind_holds_open_delays_nothing() {
    let mut monitor = Fixture::new(Namespaces::default());
    monitor.run("c", "echo before; printf rest; sleep 1000 & echo $! > $(dirname $0)/child; kill -9 $$");
    assert_eq!(exited(monitor.event()), ("c".into(), 137, 9));
    assert_eq!(monitor.log("c.log"), ["stdout F before", "stdout P rest"]);
    let child = fs::read_to_string(monitor.dir.path().join("c/child")).expect("a pid");
    let child = rustix::process::Pid::from_raw(child.trim().parse().expect("a number")).expect("a pid");
    rustix::process::kill_process(child, rustix::process::Signal::KILL).expect("killed");
}

#[test]
fn a_runtime_that_fails_is_quoted_and_one_that_hangs_is_killed() {
    let mut monitor = Fixture::new(Namespaces::default());
    for (id, marker, timeout_ms) in [("a", "refuse", 10_000), ("b", "hang", 100)] {
        let bundle = monitor.dir.path().join(id);
        fs::create_dir(&bundle).expect("a bundle");
        fs::write(bundle.join(marker), "").expect("a marker");
        let stage = "create".to_owned();
        let expected = match marker {
            "refuse" => Failure::Runtime { stage, message: "no such program".into() },
            _ => Failure::Timeout { stage, after_ms: 100 },
        };
        assert_eq!(monitor.create(id, "", timeout_ms), Reply::Failed(expected));
        let start = Request::Start { container: id.into(), timeout_ms: 1000 };
        let state = ContainerState::Failed;
        assert_eq!(monitor.ask(start, &[]), Reply::Failed(Failure::WrongState { state }));
    }
}

#[test]
fn a_log_is_reopened_only_while_the_container_runs() {
    let mut monitor = Fixture::new(Namespaces::default());
    // A file and not the fifo: that one still has its reader of the start for a moment.
    monitor.run("c", "echo one; until [ -e $(dirname $0)/go ]; do sleep 0.01; done; echo two");
    let reopen = Request::ReopenLog { container: "c".into(), name: "new.log".into() };
    let directory = monitor.directory();
    assert_eq!(monitor.ask(reopen, &[directory]), Reply::Done);
    fs::write(monitor.dir.path().join("c/go"), "").expect("the container goes on");
    assert_eq!(exited(monitor.event()), ("c".into(), 0, 0));
    assert_eq!(monitor.log("new.log").last().map(String::as_str), Some("stdout F two"));
    let reopen = Request::ReopenLog { container: "c".into(), name: "late.log".into() };
    let (directory, state) = (monitor.directory(), ContainerState::Exited);
    assert_eq!(monitor.ask(reopen, &[directory]), Reply::Failed(Failure::WrongState { state }));
    assert!(!monitor.dir.path().join("late.log").exists());
}

/// Of a command whose output is collected, and which gets 100 ms.
fn short_exec() -> Exec {
    Exec {
        exec: "e".into(),
        container: "c".into(),
        process: "{}".into(),
        terminal: false,
        stdin: false,
        stdout: true,
        stderr: false,
        timeout_ms: 100,
        start_timeout_ms: 10_000,
        streams: false,
    }
}

#[test]
fn the_timeout_of_an_exec_kills_its_whole_tree() {
    let mut monitor = Fixture::new(Namespaces::default());
    monitor.run("c", "exec sleep 1000");
    fs::write(monitor.dir.path().join("c/exec"), "sleep 1000 & sleep 1000").expect("a script");
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).expect("a pipe");
    let exec = short_exec();
    assert!(matches!(monitor.ask(Request::Exec(exec), &[write]), Reply::ExecStarted { .. }));
    let expected = Event::ExecExited { exec: "e".into(), code: 137, signal: 9, timed_out: true };
    assert_eq!(monitor.event(), expected);
    // The end of the pipe is the end of every process of the tree.
    assert_eq!(fs::File::from(read).read_to_end(&mut Vec::new()).expect("read"), 0);
}

#[test]
fn the_timeout_of_an_exec_reaches_into_a_runtimes_own_kernel() {
    let mut monitor = Fixture::new(Namespaces::default());
    monitor.create_with("c", "exec sleep 1000", |create| create.runtime.own_kernel = true);
    monitor.start("c");
    fs::write(monitor.dir.path().join("c/exec"), "exec sleep 1000").expect("a script");
    let (read, write) = pipe();
    let exec = short_exec();
    assert!(matches!(monitor.ask(Request::Exec(exec), &[write]), Reply::ExecStarted { .. }));
    let event = monitor.event();
    assert!(matches!(event, Event::ExecExited { timed_out: true, .. }), "{event:?}");
    // The process that the runtime was told to kill is nobody's child that the monitor knows of, and it has ended.
    assert_eq!(fs::File::from(read).read(&mut [0]).expect("the end of its output"), 0);
    let left: Vec<_> = fs::read_dir(monitor.dir.path().join("c"))
        .expect("the bundle")
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with("exec-"))
        .collect();
    assert_eq!(left, Vec::<String>::new());
}

#[test]
fn an_exec_that_is_killed_while_it_starts_ends_as_soon_as_it_has() {
    let mut monitor = Fixture::new(Namespaces::default());
    monitor.run("c", "exec sleep 1000");
    fs::write(monitor.dir.path().join("c/exec"), "exec sleep 1000").expect("a script");
    let hold = monitor.dir.path().join("c/hold");
    fs::write(&hold, "").expect("a file");
    let exec = Exec {
        exec: "e".into(),
        container: "c".into(),
        process: "{}".into(),
        terminal: false,
        stdin: false,
        stdout: false,
        stderr: false,
        timeout_ms: 0,
        start_timeout_ms: 10_000,
        streams: true,
    };
    let starting = monitor.tell(Request::Exec(exec), &[]);
    assert_eq!(monitor.status().execs, Vec::<String>::new(), "one with streams is its client's alone");
    assert_eq!(monitor.ask(Request::ExecKill { exec: "e".into() }, &[]), Reply::Done);
    fs::remove_file(hold).expect("the runtime goes on");
    assert!(matches!(monitor.answer(starting).0, Reply::ExecStarted { .. }));
    let expected = Event::ExecExited { exec: "e".into(), code: 137, signal: 9, timed_out: false };
    assert_eq!(monitor.event(), expected);
}

#[test]
fn an_end_that_came_before_its_process_was_known_is_told_whatever_else_has_ended_meanwhile() {
    let mut fixture = Fixture::new(Namespaces::default());
    fixture.run("c", "exec sleep 1000");
    fs::write(fixture.dir.path().join("c/exec"), "until [ -e \"$0.go\" ]; do sleep 0.01; done; exit 7")
        .unwrap();
    fs::write(fixture.dir.path().join("c/orphans"), "600").unwrap();
    let exec = Exec {
        exec: "e".into(),
        container: "c".into(),
        process: "{}".into(),
        terminal: false,
        stdin: false,
        stdout: false,
        stderr: false,
        timeout_ms: 0,
        start_timeout_ms: 60_000,
        streams: false,
    };
    assert!(matches!(fixture.ask(Request::Exec(exec), &[]), Reply::ExecStarted { .. }));
    let event = fixture.event();
    assert_eq!(event, Event::ExecExited { exec: "e".into(), code: 7, signal: 0, timed_out: false });
}

#[test]
fn clients_see_the_same_from_when_they_attach_until_the_container_ends() {
    let mut monitor = Fixture::new(Namespaces::default());
    monitor.create_with_input("c", "while read line; do echo got $line; done; printf end; exit 4", false);
    let mut first = monitor.attach("a", "c");
    monitor.start("c");
    let quiet = monitor.descriptors();
    first.write(b"one\n");
    assert_eq!(first.read(8), b"got one\n");
    let mut second = monitor.attach("b", "c");
    second.write(b"two\n");
    assert_eq!((first.read(8), second.read(8)), (b"got two\n".to_vec(), b"got two\n".to_vec()));
    // The end of one client's input is not the container's.
    first.input = None;
    second.write(b"three\n");
    assert_eq!(first.read(10), b"got three\n");
    assert_eq!(monitor.ask(Request::Detach { attach: "a".into() }, &[]), Reply::Done);
    assert_eq!(first.rest(), b"");
    assert_eq!(monitor.descriptors(), quiet, "the monitor closed what was the client's");
    monitor.ask(Request::Kill { container: "c".into(), signal: 9, all: false, timeout_ms: 1000 }, &[]);
    assert_eq!(exited(monitor.event()), ("c".into(), 137, 9));
    assert_eq!(monitor.event(), attach_ended("b", AttachEnd::Exited));
    assert_eq!(second.rest(), b"got three\n");
    assert_eq!(monitor.log("c.log"), ["stdout F got one", "stdout F got two", "stdout F got three"]);
}

/// The container waits for a line after each burst, so the client that reads is never behind by more than one.
#[test]
fn a_client_that_does_not_read_is_cut_and_nobody_else_notices() {
    const BURST: usize = 300_000;
    let mut monitor = Fixture::new(Namespaces::default());
    let script = format!("for i in 1 2 3 4 5 6; do head -c {BURST} /dev/zero; read line; done");
    monitor.create_with_input("c", &script, false);
    let (mut keen, lazy) = (monitor.attach("keen", "c"), monitor.attach("lazy", "c"));
    monitor.start("c");
    for _ in 0..6 {
        assert_eq!(keen.read(BURST), vec![0; BURST]);
        keen.write(b"\n");
    }
    assert_eq!(monitor.event(), attach_ended("lazy", AttachEnd::Slow));
    assert_eq!(exited(monitor.event()), ("c".into(), 0, 0));
    assert_eq!(monitor.event(), attach_ended("keen", AttachEnd::Exited));
    assert_eq!(keen.rest(), b"");
    assert!(lazy.rest().len() < BURST, "only what its pipe held");
}

#[test]
fn a_client_gets_what_it_has_not_read_yet_after_the_container_is_gone() {
    let mut monitor = Fixture::new(Namespaces::default());
    monitor.create_with_input("c", "head -c 500000 /dev/zero; exit 6", false);
    let client = monitor.attach("a", "c");
    monitor.start("c");
    assert_eq!(exited(monitor.event()), ("c".into(), 6, 0));
    let delete = Request::Delete { container: "c".into(), timeout_ms: 10_000 };
    assert_eq!(monitor.ask(delete, &[]), Reply::Done);
    assert!(monitor.events.is_empty(), "the client has not read yet: {:?}", monitor.events);
    assert_eq!(client.rest(), vec![0; 500_000]);
    assert_eq!(monitor.event(), attach_ended("a", AttachEnd::Exited));
}

#[test]
fn the_first_client_whose_input_ends_closes_that_of_a_container_that_wants_it_once() {
    let mut monitor = Fixture::new(Namespaces::default());
    monitor.create_with_input("c", "cat; echo over; read line < $(dirname $0)/fifo; echo $line", true);
    let (mut first, mut second) = (monitor.attach("a", "c"), monitor.attach("b", "c"));
    monitor.start("c");
    first.write(b"last words ");
    assert_eq!(monitor.ask(Request::FinishStdin { attach: "a".into() }, &[]), Reply::Done);
    assert_eq!(second.read(16), b"last words over\n");
    let refused = second.input.as_mut().expect("a pipe").write_all(b"x").expect_err("nobody reads");
    assert_eq!(refused.kind(), std::io::ErrorKind::BrokenPipe);
    // Both still see what comes, and so does who attaches now.
    let mut third = monitor.attach("d", "c");
    fs::write(monitor.dir.path().join("c/fifo"), "more\n").expect("the container goes on");
    assert_eq!((second.rest(), third.read(5)), (b"more\n".to_vec(), b"more\n".to_vec()));
    assert_eq!(first.rest(), b"last words over\nmore\n");
}

#[test]
fn a_daemon_that_goes_takes_its_clients_along_and_the_container_goes_on() {
    let mut monitor = Fixture::new(Namespaces::default());
    monitor.create_with_input("c", "cat; echo after", true);
    let quiet = monitor.descriptors();
    let daemon =
        std::os::unix::net::UnixStream::connect(monitor.dir.path().join("socket")).expect("connected");
    let mine = std::mem::replace(&mut monitor.socket, daemon.into());
    let mut client = monitor.attach("a", "c");
    monitor.start("c");
    client.write(b"typed\n");
    assert_eq!(client.read(6), b"typed\n");
    // As the kernel does with all that a killed process has open.
    client.write(b"unread\n");
    drop((client, std::mem::replace(&mut monitor.socket, mine)));
    // It asks until it sees that the daemon's connection and the pipes are closed.
    while monitor.descriptors() > quiet {
        monitor.status();
    }
    // What comes late would be the next client's too.
    while !monitor.log("c.log").contains(&"stdout F unread".to_owned()) {
        monitor.status();
    }
    // Nobody has ended the container's input: the next client goes on with it.
    let mut client = monitor.attach("b", "c");
    client.write(b"more\n");
    assert_eq!(client.read(5), b"more\n");
    assert_eq!(monitor.ask(Request::Detach { attach: "b".into() }, &[]), Reply::Done);
    assert_eq!(exited(monitor.event()), ("c".into(), 0, 0));
    let lines = ["stdout F typed", "stdout F unread", "stdout F more", "stdout F after"];
    assert_eq!(monitor.log("c.log"), lines);
}

#[test]
fn an_attach_that_cannot_be_is_refused_and_costs_nothing() {
    let mut monitor = Fixture::new(Namespaces::default());
    monitor.run("c", "exec sleep 1000");
    let quiet = monitor.descriptors();
    let attach = |container: &str, stdin| wire::Attach {
        attach: "a".into(),
        container: container.into(),
        stdin,
        stdout: true,
        stderr: false,
    };
    let nobody = monitor.ask(Request::Attach(attach("x", false)), &[pipe().1]);
    assert_eq!(nobody, Reply::Failed(Failure::NoSuchContainer));
    let unwritable = monitor.ask(Request::Attach(attach("c", true)), &[pipe().0, pipe().1]);
    assert!(matches!(unwritable, Reply::Failed(Failure::Invalid { .. })), "{unwritable:?}");
    let miscounted = monitor.ask(Request::Attach(attach("c", true)), &[pipe().1]);
    assert!(matches!(miscounted, Reply::Failed(Failure::Invalid { .. })), "{miscounted:?}");
    let mut clients = Vec::new();
    for _ in 0..CLIENTS_MAX {
        let (read, write) = pipe();
        assert_eq!(monitor.ask(Request::Attach(attach("c", false)), &[write]), Reply::Done);
        clients.push(read);
    }
    let crowd = monitor.ask(Request::Attach(attach("c", false)), &[pipe().1]);
    assert!(matches!(crowd, Reply::Failed(Failure::Invalid { .. })), "{crowd:?}");
    assert_eq!(monitor.ask(Request::Detach { attach: "a".into() }, &[]), Reply::Done);
    assert_eq!(monitor.descriptors(), quiet);
}

#[test]
fn a_second_connection_finds_everything_and_a_request_of_the_future_is_refused() {
    let mut monitor = Fixture::new(Namespaces::default());
    monitor.run("c", "exec sleep 1000");
    let expected = monitor.status();
    let second =
        std::os::unix::net::UnixStream::connect(monitor.dir.path().join("socket")).expect("connected");
    let first = std::mem::replace(&mut monitor.socket, second.into());
    drop(first);
    assert_eq!(monitor.status(), expected);
    let body = br#"{"id":77,"request":{"op":"fly","height":3}}"#;
    let header = [(body.len() as u32).to_le_bytes(), 0u32.to_le_bytes()].concat();
    send(&monitor.socket, &[&header[..], body].concat(), &[]);
    assert_eq!(monitor.answer(77).0, Reply::Failed(Failure::Unsupported));
}

#[test]
fn privileged_the_pods_namespaces_are_the_monitors_and_a_foreign_sysctl_is_refused() {
    let namespaces = Namespaces { net: true, ipc: true, uts: true, shared_pid: true, user: None };
    let monitor = Fixture::greet(|hello| {
        hello.namespaces = namespaces.clone();
        hello.hostname = Some("pod-host".into());
        hello.sysctls.insert("net.core.somaxconn".into(), "77".into());
    })
    .unwrap_or_else(|reply| panic!("{reply:?}"));
    let own = |file: &str| fs::read_link(format!("/proc/self/ns/{file}")).expect("a namespace");
    let ready = monitor.ready.clone();
    for (path, file) in [(ready.net, "net"), (ready.ipc, "ipc"), (ready.uts, "uts"), (ready.pid_ns, "pid")] {
        assert_ne!(fs::read_link(path.expect("a path")).expect("a namespace"), own(file), "{file}");
    }
    assert_eq!(ready.user, None);
    let refused = Fixture::greet(|hello| {
        hello.namespaces = namespaces.clone();
        hello.sysctls.insert("kernel.core_pattern".into(), "x".into());
    });
    match refused.err().expect("refused") {
        Reply::Failed(Failure::Invalid { message }) => {
            assert!(message.contains("kernel.core_pattern"), "{message}")
        }
        other => panic!("{other:?}"),
    }
}

/// With OCI runtimes that are no script, and the daemon's end of the wire.
#[cfg(feature = "daemon")]
mod streams {
    use super::*;
    use crate::monitor::client::{Monitor, MonitorError};
    use crate::monitor::exec::{ExecSession, Streams};
    use crate::sys::pty;

    const PIPES: Streams = Streams { stdin: true, stdout: true, stderr: true, terminal: false };
    const TERMINAL: Streams = Streams { stdin: true, stdout: true, stderr: false, terminal: true };

    /// The bundled sandbox as `make test` builds it, and runc where it is installed.
    fn runtimes() -> Vec<PathBuf> {
        let sandbox = binary().with_file_name("brig-sandbox");
        let runc = ["/usr/bin/runc", "/usr/sbin/runc", "/usr/local/sbin/runc"].map(PathBuf::from);
        [sandbox].into_iter().chain(runc).filter(|path| path.exists()).collect()
    }

    fn process(command: &[&str], terminal: bool) -> serde_json::Value {
        serde_json::json!({
            "terminal": terminal, "user": {"uid": 0, "gid": 0}, "args": command, "cwd": "/",
            "env": ["PATH=/usr/bin:/bin"],
        })
    }

    /// The host's programs in a container of their own.
    fn config() -> String {
        let bound = ["/usr", "/bin", "/lib", "/lib64"].into_iter().filter(|path| Path::new(path).exists());
        let bound = bound.map(|path| {
            serde_json::json!({"destination": path, "source": path, "type": "bind", "options": ["rbind", "ro"]})
        });
        let mut mounts = vec![
            serde_json::json!({"destination": "/proc", "type": "proc", "source": "proc"}),
            serde_json::json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"]}),
            serde_json::json!({"destination": "/dev/pts", "type": "devpts", "source": "devpts",
                "options": ["newinstance", "ptmxmode=0666", "mode=0620"]}),
        ];
        mounts.extend(bound);
        serde_json::json!({
            "ociVersion": "1.0.2",
            "process": process(&["sleep", "1000"], false),
            "root": {"path": "rootfs"},
            "mounts": mounts,
            "linux": {"namespaces": [{"type": "pid"}, {"type": "mount"}]},
        })
        .to_string()
    }

    /// Runs a container `c` in a monitor.
    fn container(runtime: &Path) -> Fixture {
        let mut monitor = Fixture::new(Namespaces::default());
        let bundle = monitor.dir.path().join("c");
        fs::create_dir_all(bundle.join("rootfs")).expect("a rootfs");
        fs::write(bundle.join("config.json"), config()).expect("a config");
        let id = format!("brig-test-{}", monitor.child.id());
        let created = monitor.create_with("c", "", |create| {
            create.container.clone_from(&id);
            create.runtime.path = runtime.to_owned();
        });
        assert!(matches!(created, Reply::Created(_)), "{created:?}");
        monitor.start(&id);
        monitor
    }

    /// A container and the daemon's connection to its monitor.
    struct Node {
        fixture: Fixture,
        monitor: Monitor,
        id: String,
    }

    impl Node {
        async fn new(runtime: &Path) -> Self {
            let fixture = container(runtime);
            let path = fixture.dir.path().join("socket");
            let (monitor, status) = Monitor::connect(&path).await.expect("connected");
            let id = status.containers[0].id.clone();
            Self { fixture, monitor, id }
        }

        async fn exec(&self, script: &str, streams: Streams) -> ExecSession {
            let process = process(&["sh", "-c", script], streams.terminal).to_string();
            self.monitor.exec(&self.id, process, streams).await.expect("started")
        }

        /// Names in the bundle, descriptors of the monitor, and places for further sessions. This process's own
        /// descriptors are not counted: other tests may run in it.
        fn held(&mut self) -> (usize, usize, usize) {
            let bundle = fs::read_dir(self.fixture.dir.path().join("c")).expect("a bundle").count();
            let places = self.monitor.line().expect("connected").sessions.available_permits();
            (bundle, self.fixture.descriptors(), places)
        }
    }

    /// As a file that blocks.
    fn file(fd: Option<OwnedFd>) -> fs::File {
        let fd = fd.expect("a stream that was asked for");
        rustix::io::ioctl_fionbio(&fd, false).expect("made to block");
        fd.into()
    }

    /// Until `text` has come.
    fn read_until(terminal: &mut fs::File, text: &str) {
        let mut said = Vec::new();
        while !String::from_utf8_lossy(&said).contains(text) {
            let mut byte = [0];
            terminal.read_exact(&mut byte).unwrap_or_else(|error| {
                panic!("{error} before {text:?} in {:?}", String::from_utf8_lossy(&said))
            });
            said.push(byte[0]);
        }
    }

    #[tokio::test]
    async fn privileged_a_command_has_pipes_of_its_own_and_tells_its_exit_code() {
        for runtime in runtimes() {
            let node = Node::new(&runtime).await;
            let session = node.exec("cat; echo err >&2; exit 7", PIPES).await;
            let mut stdin = file(session.stdin);
            stdin.write_all(b"typed").expect("written");
            drop(stdin);
            let (mut out, mut err) = (String::new(), String::new());
            file(session.stdout).read_to_string(&mut out).expect("output");
            file(session.stderr).read_to_string(&mut err).expect("errors");
            assert_eq!((out.as_str(), err.as_str()), ("typed", "err\n"), "{}", runtime.display());
            assert_eq!(session.process.wait().await.expect("an end").code, 7);
            // Somebody who holds the pipes open is not waited for.
            let session = node.exec("sleep 1000 & kill -9 $$", PIPES).await;
            assert_eq!(session.process.wait().await.expect("an end").code, 137);
            let process = process(&["no-such-program"], false).to_string();
            match node.monitor.exec(&node.id, process, PIPES).await {
                Err(MonitorError::RuntimeFailed { stage, message }) => {
                    assert!(stage == "exec" && message.contains("no-such-program"), "{message}");
                }
                other => panic!("{other:?}"),
            }
        }
    }

    #[tokio::test]
    async fn privileged_a_terminal_has_its_clients_size_and_hangs_up_with_it() {
        for runtime in runtimes() {
            let mut node = Node::new(&runtime).await;
            let session = node.exec("read line; stty size; read line; exit 3", TERMINAL).await;
            assert!(session.stdin.is_none() && session.stdout.is_none() && session.stderr.is_none());
            let mut terminal = file(session.terminal);
            pty::set_size(&terminal, 33, 111).expect("sized");
            terminal.write_all(b"\n").expect("typed");
            read_until(&mut terminal, "33 111");
            terminal.write_all(b"\n").expect("typed");
            assert_eq!(session.process.wait().await.expect("an end").code, 3, "{}", runtime.display());
            // Not a shell: whether ^C ends one depends on when it comes.
            let session = node.exec("exec cat", TERMINAL).await;
            let mut terminal = file(session.terminal);
            terminal.write_all(b"ping\n").expect("typed");
            read_until(&mut terminal, "ping\r\nping");
            terminal.write_all(b"\x03").expect("typed");
            assert_eq!(session.process.wait().await.expect("an end").code, 130);
            let session = node.exec("echo ready; sleep 1000", TERMINAL).await;
            let mut terminal = file(session.terminal);
            read_until(&mut terminal, "ready");
            drop(terminal);
            session.process.leave();
            while !node.fixture.status().execs.is_empty() {}
        }
    }

    #[tokio::test]
    async fn privileged_many_commands_at_once_leave_nothing_behind() {
        /// More would only take longer.
        const ROUNDS: usize = 3;
        const AT_ONCE: usize = 20;
        for runtime in runtimes() {
            let mut node = Node::new(&runtime).await;
            node.exec("true", PIPES).await.process.wait().await.expect("an end");
            let before = node.held();
            for round in 0..ROUNDS {
                let streams = if round % 2 == 0 { PIPES } else { TERMINAL };
                let all = (0..AT_ONCE).map(async |number| {
                    let session = node.exec(&format!("exit {number}"), streams).await;
                    session.process.wait().await.expect("an end").code
                });
                let codes = futures_util::future::join_all(all).await;
                assert_eq!(codes, (0..AT_ONCE as i32).collect::<Vec<_>>(), "{}", runtime.display());
            }
            assert_eq!(node.held(), before, "{}", runtime.display());
        }
    }

    #[tokio::test]
    async fn an_attach_ends_with_its_session_its_container_or_its_monitor() {
        use crate::monitor::attach::AttachEnd;
        const OUTPUT: Streams = Streams { stdin: false, stdout: true, stderr: true, terminal: false };
        let mut fixture = Fixture::new(Namespaces::default());
        fixture.create_with_input("c", "read line; echo out $line; echo err >&2; read line", true);
        fixture.start("c");
        let path = fixture.dir.path().join("socket");
        let (monitor, _) = Monitor::connect(&path).await.expect("connected");
        drop(monitor.attach("c", PIPES).await.expect("attached"));
        // The first client that goes takes the input along; this container has read nothing and sees its end.
        let missing = monitor.attach("x", OUTPUT).await;
        assert!(matches!(missing, Err(MonitorError::NoSuchContainer { .. })), "{missing:?}");
        while fixture.status().containers[0].exit.is_none() {
            // Detaching is a task of its own.
            tokio::task::yield_now().await;
        }
        fixture.create_with_input("d", "read line; echo out $line; echo err >&2; read line", true);
        fixture.start("d");
        let session = monitor.attach("d", PIPES).await.expect("attached");
        let mut stdin = file(session.stdin);
        stdin.write_all(b"typed\n").expect("written");
        session.control.finish_stdin().await;
        let (mut out, mut err) = (String::new(), String::new());
        file(session.stdout).read_to_string(&mut out).expect("output");
        file(session.stderr).read_to_string(&mut err).expect("errors");
        assert_eq!((out.as_str(), err.as_str()), ("out typed\n", "err\n"));
        assert_eq!(session.control.ended().await, AttachEnd::Exited);
        assert!(session.control.resize(80, 24).await.is_err(), "there is no terminal");
        fixture.run("e", "exec sleep 1000");
        let session = monitor.attach("e", OUTPUT).await.expect("attached");
        drop(fixture);
        assert_ne!(session.control.ended().await, AttachEnd::Slow);
    }
}
