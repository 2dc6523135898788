//! What brigd and a monitor say to each other: both ends of the wire.
//!
//! A stream of frames over a unix socket. A frame is an eight-byte header (length of the body and number of file
//! descriptors, both `u32` little-endian) and a JSON body. Descriptors travel with the frame's first byte by
//! `SCM_RIGHTS`, and where they are more than one message of the kernel's carries, with the next bytes too; the kernel keeps
//! them in order, so a queue of received descriptors and the count in the header say whose they are.
//!
//! ```text
//! brigd   ── Hello (only on the monitor's stdin) ─▶  monitor     ◀─ Ready ──
//! brigd   ── {id, request} ──────────────────────▶  monitor     ◀─ {id, reply} ──   any number in flight
//!                                                               ◀─ {event} ──
//! ```
//!
//! A monitor outlives the daemon that started it, so old readers meet new writers: unknown fields are ignored, an
//! unknown request is answered by [`Failure::Unsupported`], and an unknown reply or event is [`Reply::Unknown`] or
//! [`Event::Unknown`]. What needs more than that raises [`VERSION`]. The bytes of a choice of messages are fixed by a test.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::sys::socket;

/// Said in the first message of either side.
pub(crate) const VERSION: u32 = 1;

/// The longest body. The largest is an OCI process with its environment: execve(2) takes a quarter of the stack limit of
/// both, 2 MiB as a rule, and JSON may double that. A frame that claims more is a broken peer.
pub(crate) const FRAME_MAX: usize = 8 << 20;

/// The most descriptors with one frame, of which there is one per mount of a container: what fits with a header and one byte
/// more. Each is an open file in brigd, the monitor and the sandbox at the same time, and an argument of the last.
pub(crate) const FDS_MAX: usize = 2048;

/// What a monitor takes that does not say: `SCM_MAX_FD` of the kernel (unix(7)).
#[cfg(feature = "daemon")]
pub(crate) const FDS_MAX_UNSAID: usize = 253;

const _: () = assert!(FDS_MAX <= (HEADER + 1) * socket::FDS_MAX, "each message takes a byte along");

/// Bytes before each body.
pub(crate) const HEADER: usize = 8;

/// The first message to a new monitor, on its standard input. Descriptors: the listening socket, then the mount
/// namespace if `mount_namespace`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Hello {
    pub version: u32,
    pub pod: String,
    /// Removed by the monitor when it ends.
    pub socket: PathBuf,
    #[serde(default)]
    pub mount_namespace: bool,
    #[serde(default)]
    pub namespaces: Namespaces,
    #[serde(default)]
    pub hostname: Option<String>,
    #[serde(default)]
    pub sysctls: BTreeMap<String, String>,
    #[serde(default)]
    pub shm: Option<Shm>,
}

/// Which namespaces the pod has for itself.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Namespaces {
    pub net: bool,
    pub ipc: bool,
    pub uts: bool,
    /// One PID namespace for all containers, with an init of ours.
    pub shared_pid: bool,
    /// A user namespace that owns all of the above.
    pub user: Option<UserMappings>,
}

/// What goes into `uid_map` and `gid_map` of the pod's user namespace.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct UserMappings {
    pub uids: Vec<IdMap>,
    pub gids: Vec<IdMap>,
}

/// `length` ids from `host` appear as `container` and up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct IdMap {
    pub container: u32,
    pub host: u32,
    pub length: u32,
}

/// The tmpfs that the pod's containers find at /dev/shm.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Shm {
    pub path: PathBuf,
    pub size_bytes: u64,
    /// What SELinux sees on every file in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
}

/// Where the namespaces of the pod are pinned. `None` is the host's own.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Ready {
    pub version: u32,
    pub pid: i32,
    pub net: Option<PathBuf>,
    pub ipc: Option<PathBuf>,
    pub uts: Option<PathBuf>,
    pub pid_ns: Option<PathBuf>,
    pub user: Option<PathBuf>,
    /// The most descriptors that the monitor takes with a frame. 0 is [`FDS_MAX_UNSAID`]: it is older than this field.
    pub fds_max: usize,
}

/// From brigd.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ToMonitor {
    pub id: u64,
    pub request: Request,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub(crate) enum Request {
    /// Everything the monitor knows; the first request of a reconnecting daemon.
    Status {
        version: u32,
    },
    Create(Create),
    Start {
        container: String,
        timeout_ms: u64,
    },
    /// `signal` is a number. `all` reaches every process of the container, not only its first.
    Kill {
        container: String,
        signal: i32,
        all: bool,
        timeout_ms: u64,
    },
    /// Kills what runs, removes what the runtime keeps, forgets the container.
    Delete {
        container: String,
        timeout_ms: u64,
    },
    Pause {
        container: String,
        timeout_ms: u64,
    },
    Resume {
        container: String,
        timeout_ms: u64,
    },
    /// `resources` is OCI LinuxResources as JSON text.
    Update {
        container: String,
        resources: String,
        timeout_ms: u64,
    },
    /// Descriptor: the log's directory.
    ReopenLog {
        container: String,
        name: String,
    },
    Exec(Exec),
    /// Kills the whole tree of an exec.
    ExecKill {
        exec: String,
    },
    /// Of a container with a terminal.
    Resize {
        container: String,
        columns: u16,
        rows: u16,
    },
    Attach(Attach),
    /// What is in the client's pipe for standard input is the last of it, whoever else holds the pipe open.
    FinishStdin {
        attach: String,
    },
    /// The client has gone: ends an attach, and its input with it. One that has ended is fine.
    Detach {
        attach: String,
    },
    /// Ends the monitor; refused while it has containers.
    Shutdown,
    /// A request of a newer daemon.
    #[serde(other)]
    Unknown,
}

/// Descriptors, in this order: the log's directory if `log`, the rootfs mount if `rootfs`, one mount per entry of
/// `mounts`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Create {
    pub container: String,
    pub runtime: Runtime,
    pub bundle: PathBuf,
    /// The log file's name in its directory.
    pub log: Option<String>,
    pub terminal: bool,
    pub stdin: bool,
    pub stdin_once: bool,
    /// As in the OCI config; only for messages, the monitor finds the cgroup by the process.
    pub cgroup: String,
    pub rootfs: bool,
    /// Indexes into the OCI config's `mounts`.
    pub mounts: Vec<usize>,
    pub timeout_ms: u64,
}

/// How the OCI runtime of a container is called.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Runtime {
    pub path: PathBuf,
    /// `--root`.
    pub root: PathBuf,
    /// Global options before the subcommand.
    pub options: Vec<String>,
    pub systemd_cgroup: bool,
    /// Our own sandbox: takes mounts by file descriptor.
    pub bundled: bool,
    /// What is in its containers are no processes of this machine's kernel (gVisor): a process here stands for each of
    /// them, and signals have to be passed on by the runtime.
    #[serde(default)]
    pub own_kernel: bool,
}

/// Descriptors: those of stdin, stdout and stderr that are marked here, in this order. With a terminal there are
/// none, and the answer carries the terminal's other end.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Exec {
    pub exec: String,
    pub container: String,
    /// An OCI Process as JSON text.
    pub process: String,
    pub terminal: bool,
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    /// From the start of the process; 0 is for ever.
    pub timeout_ms: u64,
    /// How long the runtime may take to start it.
    pub start_timeout_ms: u64,
    /// It goes on when who asked for it has gone, so it is not in [`Status::execs`].
    #[serde(default)]
    pub streams: bool,
}

/// Descriptors: the client's ends of the streams that are marked here, in this order: the reading end of a pipe for
/// stdin, the writing ends of pipes for stdout and stderr. A container with a terminal writes to stdout alone.
///
/// The attach ends with the connection that it was asked for on, but its input then does not: a daemon that is killed or
/// stops says nothing about its clients, and neither does a broken pipe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Attach {
    pub attach: String,
    pub container: String,
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
}

/// From the monitor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum FromMonitor {
    Reply { id: u64, reply: Reply },
    Event(Event),
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "snake_case")]
pub(crate) enum Reply {
    Ready(Ready),
    Done,
    Created(Created),
    ExecStarted {
        pid: i32,
    },
    Status(Status),
    Failed(Failure),
    #[serde(other)]
    Unknown,
}

/// Why a request was not done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "why", rename_all = "snake_case")]
pub(crate) enum Failure {
    NoSuchContainer,
    /// The container exists but is not in the state that the request needs.
    WrongState {
        state: ContainerState,
    },
    /// The OCI runtime said no. `stage` is its subcommand.
    Runtime {
        stage: String,
        message: String,
    },
    /// The OCI runtime was killed because it took too long.
    Timeout {
        stage: String,
        after_ms: u64,
    },
    /// A system call of the monitor failed.
    System {
        action: String,
        message: String,
    },
    /// The request itself makes no sense.
    Invalid {
        message: String,
    },
    /// A request of a newer daemon.
    Unsupported,
    /// A failure of a newer monitor.
    #[serde(other)]
    Unknown,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Created {
    pub pid: i32,
    /// Field 22 of /proc/PID/stat, in clock ticks since boot: tells a process from a later one of the same pid.
    pub start_time: u64,
}

/// Pushed to every connection; what they say is also in [`Status`], for who was not there. An end of an attach concerns
/// its own connection alone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(crate) enum Event {
    /// Sent after everything the container wrote is in its log and it is known whether the OOM killer ended it.
    ContainerExited {
        id: String,
        /// As a shell tells it: 128 + the signal if one ended it.
        code: i32,
        /// 0 if none.
        signal: i32,
        oom_killed: bool,
        /// Nanoseconds since the epoch.
        finished_at: i64,
    },
    ExecExited {
        exec: String,
        code: i32,
        signal: i32,
        timed_out: bool,
    },
    AttachEnded {
        attach: String,
        end: AttachEnd,
    },
    #[serde(other)]
    Unknown,
}

/// Why an attach is over that its client did not end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum AttachEnd {
    /// The container has exited, and what it wrote before is in the client's pipes.
    Exited,
    /// The client took its output more slowly than the container made it, and its buffer was full.
    Slow,
    /// A reason of a newer monitor.
    #[serde(other)]
    Unknown,
}

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Status {
    pub version: u32,
    pub pod: String,
    pub ready: Ready,
    pub containers: Vec<ContainerStatus>,
    /// The ids of execs that still run and whose output is for who asked alone: a daemon that takes over ends them.
    pub execs: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ContainerStatus {
    pub id: String,
    pub state: ContainerState,
    pub pid: Option<i32>,
    #[serde(default)]
    pub start_time: u64,
    /// Nanoseconds since the epoch.
    pub started_at: Option<i64>,
    pub exit: Option<Exit>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ContainerState {
    Creating,
    /// The runtime could not create it; only Delete is left.
    Failed,
    Created,
    Running,
    Paused,
    Exited,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Exit {
    pub code: i32,
    pub signal: i32,
    pub oom_killed: bool,
    /// Nanoseconds since the epoch.
    pub finished_at: i64,
}

/// Why a stream is not ours to read on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WireError {
    #[error(
        "cannot send a frame of {bytes} bytes and {fds} descriptors; at most {FRAME_MAX} and {FDS_MAX} fit"
    )]
    TooLarge { bytes: usize, fds: usize },
    #[error("a frame claims {bytes} bytes and {fds} descriptors; at most {FRAME_MAX} and {FDS_MAX} fit")]
    BadHeader { bytes: usize, fds: usize },
    #[error("a frame came without its {0} descriptors")]
    MissingFds(usize),
    #[error("a frame is not a message")]
    BadBody(#[source] serde_json::Error),
}

/// A whole frame, ready to be sent with `fds` descriptors.
pub(crate) fn encode(message: &impl Serialize, fds: usize) -> Result<Vec<u8>, WireError> {
    let mut frame = vec![0; HEADER];
    serde_json::to_writer(&mut frame, message)
        .expect("messages have only string keys and writing to memory works");
    let bytes = frame.len() - HEADER;
    if bytes > FRAME_MAX || fds > FDS_MAX {
        return Err(WireError::TooLarge { bytes, fds });
    }
    frame[..4].copy_from_slice(&(bytes as u32).to_le_bytes());
    frame[4..HEADER].copy_from_slice(&(fds as u32).to_le_bytes());
    Ok(frame)
}

/// Makes messages of what a socket delivers.
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    bytes: Vec<u8>,
    fds: VecDeque<OwnedFd>,
}

impl Decoder {
    /// Takes what one recvmsg(2) delivered.
    pub(crate) fn push(&mut self, bytes: &[u8], fds: impl IntoIterator<Item = OwnedFd>) {
        self.bytes.extend_from_slice(bytes);
        self.fds.extend(fds);
    }

    /// The next message with its descriptors, once it is whole. After an error the stream is of no more use.
    pub(crate) fn next<T: DeserializeOwned>(&mut self) -> Result<Option<(T, Vec<OwnedFd>)>, WireError> {
        let Some((header, rest)) = self.bytes.split_at_checked(HEADER) else {
            return Ok(None);
        };
        let number = |at: usize| {
            u32::from_le_bytes(header[at..at + 4].try_into().expect("four bytes of an eight byte header"))
                as usize
        };
        let (bytes, fds) = (number(0), number(4));
        if bytes > FRAME_MAX || fds > FDS_MAX {
            return Err(WireError::BadHeader { bytes, fds });
        }
        let Some(body) = rest.get(..bytes) else {
            return Ok(None);
        };
        if self.fds.len() < fds {
            return Err(WireError::MissingFds(fds));
        }
        let message = serde_json::from_slice(body).map_err(WireError::BadBody)?;
        self.bytes.drain(..HEADER + bytes);
        if self.bytes.is_empty() {
            // An idle connection holds no memory.
            self.bytes = Vec::new();
        }
        Ok(Some((message, self.fds.drain(..fds).collect())))
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use proptest::prelude::*;

    use super::*;

    fn body(message: &impl Serialize) -> String {
        let frame = encode(message, 0).unwrap();
        assert_eq!(frame[..4], ((frame.len() - HEADER) as u32).to_le_bytes());
        String::from_utf8(frame[HEADER..].to_vec()).unwrap()
    }

    /// Changing one of these breaks pods that run: raise [`VERSION`] or make the change readable by old peers.
    #[test]
    fn the_bytes_of_messages_are_fixed() {
        let container = || "c".to_owned();
        for (request, text) in [
            (Request::Status { version: 1 }, r#"{"op":"status","version":1}"#),
            (
                Request::Start { container: container(), timeout_ms: 5 },
                r#"{"op":"start","container":"c","timeout_ms":5}"#,
            ),
            (
                Request::Kill { container: container(), signal: 9, all: true, timeout_ms: 5 },
                r#"{"op":"kill","container":"c","signal":9,"all":true,"timeout_ms":5}"#,
            ),
            (
                Request::Delete { container: container(), timeout_ms: 5 },
                r#"{"op":"delete","container":"c","timeout_ms":5}"#,
            ),
            (
                Request::ReopenLog { container: container(), name: "l".into() },
                r#"{"op":"reopen_log","container":"c","name":"l"}"#,
            ),
            (
                Request::Attach(Attach {
                    attach: "a".into(),
                    container: container(),
                    stdin: true,
                    stdout: true,
                    stderr: false,
                }),
                r#"{"op":"attach","attach":"a","container":"c","stdin":true,"stdout":true,"stderr":false}"#,
            ),
            (Request::FinishStdin { attach: "a".into() }, r#"{"op":"finish_stdin","attach":"a"}"#),
            (Request::Detach { attach: "a".into() }, r#"{"op":"detach","attach":"a"}"#),
            (Request::Shutdown, r#"{"op":"shutdown"}"#),
        ] {
            assert_eq!(body(&ToMonitor { id: 7, request }), format!(r#"{{"id":7,"request":{text}}}"#));
        }
        for (message, text) in [
            (FromMonitor::Reply { id: 7, reply: Reply::Done }, r#"{"reply":{"id":7,"reply":{"is":"done"}}}"#),
            (
                FromMonitor::Reply { id: 7, reply: Reply::Created(Created { pid: 2, start_time: 3 }) },
                r#"{"reply":{"id":7,"reply":{"is":"created","pid":2,"start_time":3}}}"#,
            ),
            (
                FromMonitor::Reply { id: 7, reply: Reply::Failed(Failure::NoSuchContainer) },
                r#"{"reply":{"id":7,"reply":{"is":"failed","why":"no_such_container"}}}"#,
            ),
            (
                FromMonitor::Event(Event::ContainerExited {
                    id: "c".into(),
                    code: 137,
                    signal: 9,
                    oom_killed: true,
                    finished_at: 8,
                }),
                r#"{"event":{"event":"container_exited","id":"c","code":137,"signal":9,"oom_killed":true,"finished_at":8}}"#,
            ),
            (
                FromMonitor::Event(Event::AttachEnded { attach: "a".into(), end: AttachEnd::Exited }),
                r#"{"event":{"event":"attach_ended","attach":"a","end":"exited"}}"#,
            ),
            (
                FromMonitor::Event(Event::AttachEnded { attach: "a".into(), end: AttachEnd::Slow }),
                r#"{"event":{"event":"attach_ended","attach":"a","end":"slow"}}"#,
            ),
        ] {
            assert_eq!(body(&message), text);
            assert_eq!(serde_json::from_str::<FromMonitor>(text).unwrap(), message);
        }
    }

    #[test]
    fn messages_of_another_version_are_understood_as_far_as_known() {
        let read = |text: &str| serde_json::from_str::<ToMonitor>(text).unwrap().request;
        assert_eq!(read(r#"{"id":1,"request":{"op":"fly","high":true}}"#), Request::Unknown);
        let more = r#"{"id":1,"trace":"x","request":{"op":"status","version":1,"verbose":true}}"#;
        assert_eq!(read(more), Request::Status { version: 1 });
        let event = serde_json::from_str::<FromMonitor>(r#"{"event":{"event":"sneezed"}}"#).unwrap();
        assert_eq!(event, FromMonitor::Event(Event::Unknown));
        let event = r#"{"event":{"event":"attach_ended","attach":"a","end":"bored"}}"#;
        let end = AttachEnd::Unknown;
        let expected = FromMonitor::Event(Event::AttachEnded { attach: "a".into(), end });
        assert_eq!(serde_json::from_str::<FromMonitor>(event).unwrap(), expected);
    }

    #[test]
    fn an_exec_of_a_daemon_that_does_not_know_streams_is_one_without() {
        let text = r#"{"id":1,"request":{"op":"exec","exec":"e","container":"c","process":"{}","terminal":false,"stdin":false,"stdout":true,"stderr":true,"timeout_ms":0,"start_timeout_ms":5}}"#;
        let Request::Exec(exec) = serde_json::from_str::<ToMonitor>(text).unwrap().request else { panic!() };
        assert!(!exec.streams);
    }

    #[test]
    fn more_descriptors_than_one_message_carries_come_in_order_and_with_their_own_frame() {
        let (ours, theirs) = socket::pair().unwrap();
        // The limit of open files is 1024 as a rule, and they are open at both ends.
        let files: Vec<_> = (0..400).map(|_| tempfile::tempfile().unwrap()).collect();
        let inode = |file: &OwnedFd| rustix::fs::fstat(file).unwrap().st_ino;
        let files: Vec<OwnedFd> = files.into_iter().map(OwnedFd::from).collect();
        let message = |id| ToMonitor { id, request: Request::Status { version: 1 } };
        for (id, files) in [(1, &files[..300]), (2, &files[300..]), (3, &[])] {
            let (frame, mut fds) = (encode(&message(id), files.len()).unwrap(), Vec::new());
            fds.extend(files.iter().map(AsFd::as_fd));
            let (mut bytes, mut fds) = (&frame[..], &fds[..]);
            while !bytes.is_empty() {
                let (sent, with) = socket::send(&ours, bytes, fds).unwrap();
                (bytes, fds) = (&bytes[sent..], &fds[with..]);
            }
            assert!(fds.is_empty());
        }
        drop(ours);
        let (mut decoder, mut buffer, mut received) = (Decoder::default(), [0; 4096], Vec::new());
        loop {
            let mut fds = Vec::new();
            match socket::receive(&theirs, &mut buffer, &mut fds).unwrap() {
                0 => break,
                n => decoder.push(&buffer[..n], fds),
            }
            while let Some((message, fds)) = decoder.next::<ToMonitor>().unwrap() {
                received.push((message.id, fds.iter().map(inode).collect::<Vec<_>>()));
            }
        }
        let inodes = |files: &[OwnedFd]| files.iter().map(inode).collect::<Vec<_>>();
        assert_eq!(received, [(1, inodes(&files[..300])), (2, inodes(&files[300..])), (3, vec![])]);
    }

    #[test]
    fn a_monitor_that_does_not_say_how_many_descriptors_it_takes_is_an_old_one() {
        let ready = serde_json::from_str::<Ready>(r#"{"version":1,"pid":7}"#).unwrap();
        assert_eq!(ready, Ready { version: 1, pid: 7, ..Ready::default() });
        assert_eq!(ready.fds_max, 0);
    }

    #[test]
    fn a_header_that_claims_too_much_ends_the_stream() {
        let mut decoder = Decoder::default();
        decoder.push(&[0xff; HEADER], []);
        assert!(matches!(decoder.next::<ToMonitor>(), Err(WireError::BadHeader { .. })));
    }

    proptest! {
        #[test]
        fn messages_survive_however_the_stream_is_cut(
            names in proptest::collection::vec(".{0,40}", 1..8),
            cut in 1usize..64,
        ) {
            let sent: Vec<_> = names
                .into_iter()
                .map(|container| ToMonitor { id: 1, request: Request::Pause { container, timeout_ms: u64::MAX } })
                .collect();
            let bytes: Vec<u8> = sent.iter().flat_map(|message| encode(message, 0).unwrap()).collect();
            let (mut decoder, mut received) = (Decoder::default(), Vec::new());
            for chunk in bytes.chunks(cut) {
                decoder.push(chunk, []);
                while let Some((message, _)) = decoder.next::<ToMonitor>().unwrap() {
                    received.push(message);
                }
            }
            prop_assert_eq!(received, sent);
        }
    }
}
