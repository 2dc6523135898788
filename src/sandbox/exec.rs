//! `exec`: one more process in a running container.
//!
//! The new process is a child of ours that joins all namespaces of the container's first process at once by its pidfd,
//! so a recycled pid cannot lead elsewhere. It is not dumpable until it executes, gets a session of its own, no
//! inheritable capabilities, and is in the container's cgroups before it is in its namespaces.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{Gid, Uid};

use super::caps::Sets;
use super::create::{ending, set_oom_score, write_pid_file};
use super::error::{Attempt, Error};
use super::launch::{self, Confinement};
use super::resources::Group;
use super::spec::{self, Config, Process};
use super::state::{Container, Status};
use super::sync::{self, End, Message};
use super::{foreground, log, lsm, user};
use crate::sys::namespace::{self, Kind, Kinds};
use crate::sys::path::{self, Proc};
use crate::sys::process::{Forked, exit_now};
use crate::sys::signal;

/// What the command line says.
#[derive(Debug, Default)]
pub(super) struct Request {
    pub(super) root: PathBuf,
    pub(super) id: String,
    /// A process document; else the container's own process with the changes below.
    pub(super) process: Option<PathBuf>,
    pub(super) args: Vec<String>,
    pub(super) env: Vec<String>,
    pub(super) cwd: Option<PathBuf>,
    /// `UID` or `UID:GID`.
    pub(super) user: Option<String>,
    pub(super) additional_gids: Vec<u32>,
    pub(super) caps: Vec<String>,
    pub(super) tty: bool,
    pub(super) no_new_privileges: bool,
    pub(super) apparmor: Option<String>,
    pub(super) selinux: Option<String>,
    pub(super) detach: bool,
    pub(super) pid_file: Option<PathBuf>,
    pub(super) console_socket: Option<PathBuf>,
    pub(super) preserve_fds: u32,
    pub(super) ignore_paused: bool,
}

/// Returns the exit code for our own process.
pub(super) fn exec(request: Request) -> Result<u8, Error> {
    let container = Container::load(&request.root, &request.id)?;
    let status = container.status();
    let refused =
        |remedy| Error::State { verb: "exec in", id: request.id.clone(), status: status.name(), remedy };
    match status {
        Status::Running | Status::Created => {}
        Status::Paused if request.ignore_paused => {}
        Status::Paused => return Err(refused("resume it first or use --ignore-paused")),
        Status::Creating | Status::Stopped => {
            return Err(refused("only a running container can run more processes"));
        }
    }
    let config = container.config()?;
    let process = process(&request, &config)?;
    spec::check_process(&process)?;
    lsm::check(process.apparmor_profile.as_deref(), process.selinux_label.as_deref(), None)?;
    if process.terminal && request.detach && request.console_socket.is_none() {
        return Err(Error::Usage("a detached process with a terminal needs --console-socket".to_owned()));
    }
    launch::hide()?;
    let init = container.init()?;
    let signals = match request.detach {
        true => None,
        false => Some(signal::block_all_into_fd().attempt(|| "block signals".to_owned())?),
    };
    let (mut console, mut own_console) = (None, None);
    if process.terminal {
        match &request.console_socket {
            Some(path) => console = Some(launch::connect(path)?),
            None => {
                let (ours, theirs) =
                    socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
                        .attempt(|| "make a socket pair".to_owned())?;
                (console, own_console) = (Some(theirs), Some(ours));
            }
        }
    }
    let rlimits = process.rlimits.clone();
    let oom_score_adj = process.oom_score_adj;
    let sets = Sets::new(process.capabilities.as_ref()).for_exec();
    let confinement = Confinement::prepare(&config, process, sets, request.preserve_fds)?;
    let proc = Proc::open().attempt(|| "open /proc".to_owned())?;
    let mut kinds = differing(container.record.process.pid)?;
    let (ours, theirs) = sync::pair().attempt(|| "make a socket pair".to_owned())?;
    let home = if kinds.contains(Kind::Pid) {
        kinds.remove(Kind::Pid);
        let home =
            std::fs::File::open("/proc/self/ns/pid").attempt(|| "open the own pid namespace".to_owned())?;
        namespace::join_process(&init, [Kind::Pid].into_iter().collect())
            .attempt(|| "join the container's pid namespace".to_owned())?;
        Some(home)
    } else {
        None
    };
    let join = Join {
        id: request.id.clone(),
        init,
        kinds,
        console,
        proc,
        document: spec::seccomp_document(&config, &container.document(status.name())),
        confinement,
    };
    let group = container.group()?;
    let (forked, birth) = Group::fork(group.as_ref(), Kinds::default()).attempt(|| "fork".to_owned())?;
    let (pid, pidfd) = match forked {
        Forked::Child => {
            // The others are closed by number before any path of the container's is used.
            drop((ours, home, signals, own_console));
            inside(join, &theirs)
        }
        Forked::Parent { pid, pidfd } => (pid, pidfd),
    };
    drop((theirs, join));
    if let Some(home) = home {
        namespace::join(home.as_fd(), Kind::Pid).attempt(|| "return to the own pid namespace".to_owned())?;
    }
    let led = (|| {
        if let Some(group) = &group {
            group.take_in(pid, birth)?;
        }
        set_oom_score(pid, oom_score_adj)?;
        lead(&ours, &pidfd, pid, &rlimits)?;
        if let Some(path) = &request.pid_file {
            write_pid_file(path, pid)?;
        }
        Ok(())
    })();
    if let Err(error) = led {
        let _ = signal::send(&pidfd, 9);
        let _ = ending(pidfd.as_fd());
        return Err(error);
    }
    match signals {
        None => Ok(0),
        Some(signals) => {
            let terminal = own_console.as_ref().map(foreground::receive_terminal).transpose()?;
            foreground::attend(pidfd.as_fd(), &signals, terminal)
        }
    }
}

/// Takes the new process from its fork to its program.
fn lead(sync: &End, pidfd: &OwnedFd, pid: i32, rlimits: &[spec::Rlimit]) -> Result<(), Error> {
    let hear = || "hear from the new process".to_owned();
    sync.send(&Message::Go(pid)).attempt(hear)?;
    let died = || Error::InitDied("the new process", ending(pidfd.as_fd()));
    match sync.receive().attempt(hear)? {
        Message::Ready => {}
        Message::Failed(text) => return Err(Error::Init(text)),
        _ => return Err(died()),
    }
    if user::may_raise_limits() {
        user::set_rlimits(Some(pid), rlimits)?;
    }
    sync.send(&Message::Go(pid)).attempt(hear)?;
    match sync.receive().attempt(hear)? {
        // execve(2) closed the socket.
        Message::End => Ok(()),
        Message::Failed(text) => Err(Error::Init(text)),
        _ => Err(died()),
    }
}

/// What the new process needs.
struct Join {
    id: String,
    init: OwnedFd,
    kinds: Kinds,
    console: Option<OwnedFd>,
    proc: Proc,
    document: spec::SeccompDocument,
    confinement: Confinement,
}

fn inside(join: Join, sync: &End) -> ! {
    let settled = (|| {
        let Join { id, init, kinds, console, proc, document, mut confinement } = join;
        let Message::Go(pid) = sync.receive().attempt(|| "hear from exec".to_owned())? else { exit_now(1) };
        if !kinds.is_empty() {
            namespace::join_process(&init, kinds).attempt(|| "join the container's namespaces".to_owned())?;
        }
        drop(init);
        if kinds.contains(Kind::User) {
            let (uid, gid) = (Uid::from_raw(0), Gid::from_raw(0));
            let _ = rustix::thread::set_thread_groups(&[]);
            let _ = rustix::thread::set_thread_res_gid(gid, gid, gid);
            let _ = rustix::thread::set_thread_res_uid(uid, uid, uid);
            launch::hide()?;
        }
        rustix::process::setsid().attempt(|| "make a session".to_owned())?;
        lsm::label_keys(&proc, pid, confinement.process.selinux_label.as_deref())?;
        let name = std::ffi::CString::new(format!("_ses.{id}")).expect("ids hold no NUL");
        if let Err(error) = crate::sys::process::join_new_session_keyring(&name) {
            log::debug(|| format!("no session keyring: {error}"));
        }
        if let Some(console) = console {
            let open = |path: &Path| -> std::io::Result<OwnedFd> {
                let root = rustix::fs::open(c"/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
                path::open_in_without_links(&root, path, OFlags::PATH | OFlags::DIRECTORY)
            };
            let devpts = open(Path::new("/dev/pts"))
                .attempt(|| "open /dev/pts, where a terminal needs a devpts mount".to_owned())?;
            launch::take_terminal(devpts, &confinement.process, &console)?;
        }
        if let Some((_, bytes)) = &mut confinement.listener {
            *bytes = document.with_pid(pid);
        }
        launch::settle(confinement, proc, pid, &[sync.number()])
    })();
    let launch = match settled {
        Ok(launch) => launch,
        Err(error) => {
            let error: Error = error;
            let _ = sync.send(&Message::Failed(error.chain()));
            exit_now(1)
        }
    };
    if sync.send(&Message::Ready).is_err() || !matches!(sync.receive(), Ok(Message::Go(_))) {
        exit_now(1);
    }
    let (code, error) = launch.exec();
    let _ = sync.send(&Message::Failed(error.chain()));
    exit_now(code)
}

/// The namespaces in which a process differs from us.
fn differing(pid: i32) -> Result<Kinds, Error> {
    let mut kinds = Kinds::default();
    for kind in Kind::ALL {
        let id = |who: &str| {
            rustix::fs::stat(format!("/proc/{who}/ns/{}", kind.file())).map(|s| (s.st_dev, s.st_ino))
        };
        match (id("self"), id(&pid.to_string())) {
            // A kernel without this kind of namespace.
            (Err(rustix::io::Errno::NOENT), _) => {}
            (ours, theirs) => {
                let attempted = || format!("look at the {} namespace of process {pid}", kind.file());
                if ours.attempt(attempted)? != theirs.attempt(attempted)? {
                    kinds.insert(kind);
                }
            }
        }
    }
    Ok(kinds)
}

/// The process document with the command line's changes.
fn process(request: &Request, config: &Config) -> Result<Process, Error> {
    if let Some(path) = &request.process {
        let mut process: Process = spec::parse(&spec::read_bounded(path)?, path.display().to_string())?;
        process.terminal |= request.tty;
        return Ok(process);
    }
    let mut process = config.process.clone().expect("create has validated the config");
    process.args.clone_from(&request.args);
    process.terminal = request.tty;
    process.env.extend(request.env.iter().cloned());
    if let Some(cwd) = &request.cwd {
        process.cwd.clone_from(cwd);
    }
    if let Some(text) = &request.user {
        (process.user.uid, process.user.gid) = parse_user(text, process.user.gid)?;
    }
    process.user.additional_gids.extend(&request.additional_gids);
    if !request.caps.is_empty() {
        let caps = process.capabilities.get_or_insert_default();
        for set in [&mut caps.bounding, &mut caps.effective, &mut caps.permitted] {
            set.extend(request.caps.iter().cloned());
        }
    }
    process.no_new_privileges |= request.no_new_privileges;
    if request.apparmor.is_some() {
        process.apparmor_profile.clone_from(&request.apparmor);
    }
    if request.selinux.is_some() {
        process.selinux_label.clone_from(&request.selinux);
    }
    Ok(process)
}

/// Numbers only, in canonical decimal: "01" or "+1" is refused rather than guessed at (CVE-2026-30892).
fn parse_user(text: &str, gid: u32) -> Result<(u32, u32), Error> {
    let number = |part: &str| -> Option<u32> {
        let number: u32 = part.parse().ok()?;
        (number.to_string() == part).then_some(number)
    };
    let parsed = match text.split_once(':') {
        None => number(text).map(|uid| (uid, gid)),
        Some((uid, gid)) => number(uid).zip(number(gid)),
    };
    parsed.ok_or_else(|| Error::invalid("--user", text, "it must be UID or UID:GID in decimal"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_numbers_or_an_error() {
        assert_eq!(parse_user("1", 7).unwrap(), (1, 7));
        assert_eq!(parse_user("1:0", 7).unwrap(), (1, 0));
        for bad in ["", "01", "+1", "1:", ":1", "root", "1:2:3", "4294967296", "-1"] {
            assert!(parse_user(bad, 7).is_err(), "{bad}");
        }
    }
}
