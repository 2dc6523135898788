//! `create`: everything up to the moment where the container's program would be executed.
//!
//! ```text
//! read and check config.json ─▶ reserve the id ─▶ open what the container needs of the host ─▶ cgroups ─▶ clone3
//!   ─▶ mappings, cgroups, oom score ─▶ Go ─▶ (init sets up; hooks) ─▶ Ready ─▶ rlimits, state.json, pid file
//! ```
//!
//! Nothing is changed before the whole config is checked, and a failure later takes back what was made.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::process::{WaitId, WaitIdOptions, waitid};

use super::caps::Sets;
use super::cgroup::Manager;
use super::error::{Attempt, Error};
use super::init::{self, Plan};
use super::launch::{self, Confinement};
use super::resources::{self, Birth, Group, manager_name};
use super::spec::{self, Config, IdMapping, Namespaces, StateDocument};
use super::state::{Directory, Identity, Record};
use super::sync::{self, End, Message};
use super::{devices, hooks, log, lsm, mounts, user};
use crate::sys::namespace::{self, Kind, Kinds};
use crate::sys::path::Proc;
use crate::sys::process::{Fork, Forked, exit_now, fork};
use crate::sys::signal;
use crate::sys::{clock, fd, mount};

/// What the command line of `create` and `run` says.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) root: PathBuf,
    pub(super) manager: Manager,
    pub(super) id: String,
    pub(super) bundle: PathBuf,
    /// Instead of `config.json` in the bundle.
    pub(super) config: Option<PathBuf>,
    pub(super) pid_file: Option<PathBuf>,
    pub(super) console_socket: Option<PathBuf>,
    /// A connected console socket, from `run`.
    pub(super) console_fd: Option<OwnedFd>,
    pub(super) preserve_fds: u32,
    pub(super) pivot: bool,
    pub(super) new_keyring: bool,
    /// Inherited detached mounts: the rootfs, and sources of mounts by their index.
    pub(super) rootfs_fd: Option<i32>,
    pub(super) mount_fds: Vec<(usize, i32)>,
}

/// Makes a container and returns its first process, and whether that has a terminal.
pub(super) fn create(mut request: Request) -> Result<(Identity, bool), Error> {
    let bundle = fs::canonicalize(&request.bundle)
        .attempt(|| format!("open the bundle {}", request.bundle.display()))?;
    let config_path = request.config.clone().unwrap_or_else(|| bundle.join("config.json"));
    let bytes = spec::read_bounded(&config_path)?;
    let config: Config = spec::parse(&bytes, config_path.display().to_string())?;
    let namespaces = spec::validate(&config, request.rootfs_fd.is_some())?;
    check_request(&request, &config)?;
    let terminal = config.process.as_ref().is_some_and(|process| process.terminal);
    launch::hide()?;

    let directory = Directory::reserve(&request.root, &request.id)?;
    let made = fs::write(directory.file("config.json"), &bytes)
        .attempt(|| format!("write {}/config.json", directory.path.display()))
        .and_then(|()| build(&mut request, &directory, bundle, config, namespaces));
    match made {
        Ok(identity) => Ok((identity, terminal)),
        Err(error) => {
            // The first error is the one to tell.
            let _ = directory.remove();
            Err(error)
        }
    }
}

/// What the command line and the host have to say about a valid config.
fn check_request(request: &Request, config: &Config) -> Result<(), Error> {
    let process = config.process.as_ref().expect("validation demands a process");
    match (process.terminal, &request.console_socket) {
        (true, None) if request.console_fd.is_none() => {
            return Err(Error::Usage("process.terminal is true, so --console-socket is needed".to_owned()));
        }
        (false, Some(_)) => {
            return Err(Error::Usage(
                "--console-socket is given, but process.terminal is not true".to_owned(),
            ));
        }
        _ => {}
    }
    if let Some((index, _)) = request.mount_fds.iter().find(|(index, _)| *index >= config.mounts.len()) {
        let count = config.mounts.len();
        return Err(Error::Usage(format!("--mount-fd {index}: config.json has {count} mounts")));
    }
    let (apparmor, selinux) = (process.apparmor_profile.as_deref(), process.selinux_label.as_deref());
    lsm::check(apparmor, selinux, config.mount_label())
}

fn build(
    request: &mut Request,
    directory: &Directory,
    bundle: PathBuf,
    config: Config,
    namespaces: Namespaces,
) -> Result<Identity, Error> {
    let process = config.process.clone().expect("validation demands a process");
    let rootfs_path = config.root.as_ref().map_or_else(|| bundle.clone(), |root| bundle.join(&root.path));
    let mut record = Record {
        oci_version: config.oci_version.clone(),
        id: request.id.clone(),
        process: Identity { pid: 0, start_ticks: 0 },
        bundle: bundle.clone(),
        rootfs: rootfs_path.clone(),
        created: clock::rfc3339(clock::now()).to_string(),
        annotations: config.annotations.clone(),
        manager: manager_name(request.manager).to_owned(),
        creating: true,
        owner_uid: rustix::process::geteuid().as_raw(),
    };
    let plan = prepare(request, directory, &bundle, &rootfs_path, config, namespaces, process)?;
    let kept = Kept {
        hooks: plan.config.hooks.clone(),
        rlimits: plan.confinement.process.rlimits.clone(),
        oom_score_adj: plan.confinement.process.oom_score_adj,
    };
    let group = resources::create(&plan.config, &request.id, request.manager)?;
    let init = match spawn(plan, group.as_ref()) {
        Ok(init) => init,
        Err(error) => {
            let _ = group.as_ref().map(Group::remove);
            return Err(error);
        }
    };
    let finished = finish(request, directory, &mut record, &kept, &init);
    match finished {
        Ok(()) => Ok(record.process),
        Err(error) => {
            let error = take_back(error, &init, group.as_ref());
            if !kept.hooks.poststop.is_empty() {
                for failed in hooks::run_all("poststop", &kept.hooks.poststop, &document(&record, "stopped"))
                {
                    log::warn(&failed.chain());
                }
            }
            Err(error)
        }
    }
}

/// What is needed of the config after the plan has gone into the first process.
struct Kept {
    hooks: spec::Hooks,
    rlimits: Vec<spec::Rlimit>,
    oom_score_adj: Option<i32>,
}

/// Opens everything of the host that the container gets; changes nothing but the container's own directory.
fn prepare(
    request: &mut Request,
    directory: &Directory,
    bundle: &Path,
    rootfs_path: &Path,
    config: Config,
    mut namespaces: Namespaces,
    process: spec::Process,
) -> Result<Plan, Error> {
    let rootfs = match request.rootfs_fd {
        Some(number) => fd::adopt_inherited(number).attempt(|| format!("take --rootfs-fd {number}"))?,
        None => mount::clone_tree(rustix::fs::CWD, rootfs_path, true)
            .attempt(|| format!("open the root filesystem {}", rootfs_path.display()))?,
    };
    let kind = rustix::fs::fstat(&rootfs).attempt(|| "look at the root filesystem".to_owned())?.st_mode;
    if FileType::from_raw_mode(kind) != FileType::Directory {
        return Err(Error::invalid("root.path", rootfs_path, "it must be a directory"));
    }
    // Mounts made inside must not appear on the host.
    let cut = mount::Change { propagation: Some(mount::Propagation::Slave), ..mount::Change::default() };
    mount::change(&rootfs, true, &cut).attempt(|| "cut the root filesystem's propagation".to_owned())?;
    let mut given = Vec::new();
    for (index, number) in &request.mount_fds {
        given.push((
            *index,
            fd::adopt_inherited(*number).attempt(|| format!("take --mount-fd {index}={number}"))?,
        ));
    }
    let mounts = mounts::prepare(&config, bundle, |index| {
        let at = given.iter().position(|(other, _)| *other == index)?;
        Some(given.swap_remove(at).1)
    })?;
    let console = match (process.terminal, &request.console_socket) {
        (false, _) => None,
        (true, Some(path)) => Some(launch::connect(path)?),
        (true, None) => request.console_fd.take(),
    };
    let sets = Sets::new(process.capabilities.as_ref());
    let confinement = Confinement::prepare(&config, process, sets, request.preserve_fds)?;
    let joined = open_namespaces(&mut namespaces)?;
    let devices = devices::prepare(&config, namespaces.has(Kind::User))?;
    let null = (!config.linux.masked_paths.is_empty()).then(devices::null).transpose()?;
    Ok(Plan {
        id: request.id.clone(),
        bundle: bundle.to_owned(),
        joined,
        proc: Proc::open().attempt(|| "open /proc".to_owned())?,
        rootfs,
        mounts,
        devices,
        null,
        console,
        start: open_fifo(directory, "start", OFlags::RDWR)?,
        outcome: open_fifo(directory, "outcome", OFlags::WRONLY)?,
        pivot: request.pivot,
        new_keyring: request.new_keyring,
        confinement,
        namespaces,
        config,
    })
}

/// Makes a fifo and opens it without waiting for a peer.
fn open_fifo(directory: &Directory, name: &str, flags: OFlags) -> Result<OwnedFd, Error> {
    let path = directory.file(name);
    let attempted = || format!("make the fifo {}", path.display());
    rustix::fs::mknodat(rustix::fs::CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o600), 0)
        .attempt(attempted)?;
    // Opened for both first, so that the other open finds a peer (fifo(7)).
    let both = rustix::fs::open(&path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).attempt(attempted)?;
    if flags == OFlags::RDWR {
        return Ok(both);
    }
    rustix::fs::open(&path, flags | OFlags::CLOEXEC, Mode::empty()).attempt(attempted)
}

/// Opens the namespaces to be joined. Our own user namespace is not joined: the kernel refuses to enter it again.
fn open_namespaces(namespaces: &mut Namespaces) -> Result<Vec<(Kind, OwnedFd)>, Error> {
    let mut opened = Vec::new();
    for (kind, path) in std::mem::take(&mut namespaces.joined) {
        let attempted = || format!("open the {} namespace {}", kind.file(), path.display());
        let file =
            rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).attempt(attempted)?;
        if kind == Kind::User {
            let (theirs, ours) = (rustix::fs::fstat(&file), rustix::fs::stat("/proc/self/ns/user"));
            let (theirs, ours) = (theirs.attempt(attempted)?, ours.attempt(attempted)?);
            if (theirs.st_dev, theirs.st_ino) == (ours.st_dev, ours.st_ino) {
                continue;
            }
        }
        opened.push((kind, file));
        namespaces.joined.push((kind, path));
    }
    Ok(opened)
}

/// The first process, waiting for `Go` or further on.
struct Init {
    pid: i32,
    pidfd: OwnedFd,
    sync: End,
}

/// Makes the first process and gives it what only its parent can give: mappings, cgroups, mapped mounts.
fn spawn(mut plan: Plan, group: Option<&Group>) -> Result<Init, Error> {
    let (ours, theirs) = sync::pair().attempt(|| "make a socket pair".to_owned())?;
    let new = {
        let mut new = plan.namespaces.new;
        // Entered when the process is in its cgroup, which becomes the root of the namespace.
        new.remove(Kind::Cgroup);
        new
    };
    // A user namespace must be entered before the others are made, so that it owns them; namespaces of the host's must
    // be entered before a new user namespace takes the rights away. Both need a process in between, and so does a
    // time namespace, whose clocks are set before anyone is inside.
    let staged = plan.namespaces.joins(Kind::User)
        || new.contains(Kind::Time)
        || (new.contains(Kind::User) && !plan.joined.is_empty());
    let late = LateIds::of(&plan)?;
    let (pid, pidfd, birth) = if staged {
        let stage = fork(&Fork::default()).attempt(|| "fork".to_owned())?;
        match stage {
            Forked::Child => {
                drop(ours);
                stage_main(plan, new, theirs)
            }
            Forked::Parent { pidfd: stage, .. } => {
                drop(theirs);
                let heard = ours.receive().attempt(|| "hear from the stage process".to_owned())?;
                let _ = waitid(WaitId::PidFd(stage.as_fd()), WaitIdOptions::EXITED);
                let pid = match heard {
                    Message::Forked(pid) => pid,
                    Message::Failed(text) => return Err(Error::Init(text)),
                    _ => return Err(Error::InitDied("the container's first process", "no pid".to_owned())),
                };
                let raw = rustix::process::Pid::from_raw(pid).expect("clone3 returns positive pids");
                let pidfd = rustix::process::pidfd_open(raw, rustix::process::PidfdFlags::empty())
                    .attempt(|| format!("open a pidfd of {pid}"))?;
                (pid, pidfd, Birth::Outside)
            }
        }
    } else {
        // Joining a PID namespace is for children only; ours goes back afterwards, for the hooks.
        let pid_namespace = plan.joined.iter().position(|(kind, _)| *kind == Kind::Pid);
        let home = match pid_namespace {
            Some(at) => {
                let (_, file) = plan.joined.swap_remove(at);
                let home = fs::File::open("/proc/self/ns/pid")
                    .attempt(|| "open the own pid namespace".to_owned())?;
                namespace::join(file.as_fd(), Kind::Pid).attempt(|| "join the pid namespace".to_owned())?;
                Some(home)
            }
            None => None,
        };
        let (forked, birth) = Group::fork(group, new)
            .attempt(|| "make the container's first process with its namespaces".to_owned())?;
        match forked {
            Forked::Child => {
                drop(ours);
                init::run(plan, theirs)
            }
            Forked::Parent { pid, pidfd } => {
                if let Some(home) = home {
                    namespace::join(home.as_fd(), Kind::Pid)
                        .attempt(|| "return to the own pid namespace".to_owned())?;
                }
                (pid, pidfd, birth)
            }
        }
    };
    let init = Init { pid, pidfd, sync: ours };
    let equipped = late.apply(&init, new.contains(Kind::User)).and_then(|()| match group {
        Some(group) => group.take_in(init.pid, birth),
        None => Ok(()),
    });
    match equipped {
        Ok(()) => Ok(init),
        Err(error) => Err(take_back(error, &init, None)),
    }
}

/// The process in between: joins, makes the rest, and leaves the first process as our child.
fn stage_main(mut plan: Plan, new: Kinds, sync: End) -> ! {
    let staged = (|| {
        for (kind, file) in std::mem::take(&mut plan.joined) {
            namespace::join(file.as_fd(), kind).attempt(|| format!("join the {} namespace", kind.file()))?;
        }
        let mut new = new;
        if new.contains(Kind::Time) {
            new.remove(Kind::Time);
            namespace::leave([Kind::Time].into_iter().collect())
                .attempt(|| "make a time namespace".to_owned())?;
            let own = rustix::process::getpid().as_raw_nonzero();
            for (clock, offset) in &plan.config.linux.time_offsets {
                let line = format!("{clock} {} {}\n", offset.secs, offset.nanosecs);
                plan.proc
                    .write(&format!("{own}/timens_offsets"), line.as_bytes())
                    .attempt(|| format!("set linux.timeOffsets[{clock:?}]"))?;
            }
        }
        fork(&Fork { new, sibling: true, ..Fork::default() })
            .attempt(|| "make the container's first process with its namespaces".to_owned())
    })();
    match staged {
        Ok(Forked::Child) => init::run(plan, sync),
        Ok(Forked::Parent { pid, .. }) => {
            let _ = sync.send(&Message::Forked(pid));
            exit_now(0)
        }
        Err(error) => {
            let _ = sync.send(&Message::Failed(error.chain()));
            exit_now(1)
        }
    }
}

type LateMount = (OwnedFd, bool, Option<(Vec<IdMapping>, Vec<IdMapping>)>);

/// Id mappings, which can be written only once the process exists.
struct LateIds {
    uid_mappings: Vec<IdMapping>,
    gid_mappings: Vec<IdMapping>,
    /// Clones of mount descriptors: the mount, recursively or not, mappings of its own.
    mounts: Vec<LateMount>,
    proc: Proc,
}

impl LateIds {
    fn of(plan: &Plan) -> Result<Self, Error> {
        let mut mounts = Vec::new();
        for (fd, recursive, own) in plan.mounts.iter().filter_map(mounts::Prepared::id_map) {
            // The same open mount: what is set through the copy holds for the child's as well.
            let fd = fd.try_clone_to_owned().attempt(|| "duplicate a mount".to_owned())?;
            mounts.push((fd, recursive, own.map(|(uids, gids)| (uids.to_vec(), gids.to_vec()))));
        }
        Ok(Self {
            uid_mappings: plan.config.linux.uid_mappings.clone(),
            gid_mappings: plan.config.linux.gid_mappings.clone(),
            mounts,
            proc: Proc::open().attempt(|| "open /proc".to_owned())?,
        })
    }

    fn apply(&self, init: &Init, new_user_namespace: bool) -> Result<(), Error> {
        if new_user_namespace {
            write_mappings(&self.proc, init.pid, &self.uid_mappings, &self.gid_mappings)?;
        }
        for (mount, recursive, own) in &self.mounts {
            let attempted =
                || "map the ids of a mount; its filesystem must support idmapped mounts".to_owned();
            let user_namespace = match own {
                Some((uids, gids)) => user_namespace_of(&self.proc, uids, gids)?,
                None => self
                    .proc
                    .link(&format!("{}/ns/user", init.pid), OFlags::RDONLY)
                    .attempt(|| "open the container's user namespace".to_owned())?,
            };
            mount::map_ids(mount, *recursive, user_namespace.as_fd()).attempt(attempted)?;
        }
        Ok(())
    }
}

fn write_mappings(proc: &Proc, pid: i32, uids: &[IdMapping], gids: &[IdMapping]) -> Result<(), Error> {
    if !rustix::process::geteuid().is_root() {
        // Without CAP_SETGID in the parent namespace, giving up setgroups is the price (user_namespaces(7)).
        proc.write(&format!("{pid}/setgroups"), b"deny").attempt(|| "deny setgroups".to_owned())?;
    }
    for (file, mappings) in [("uid_map", uids), ("gid_map", gids)] {
        let text: String = mappings
            .iter()
            .map(|mapping| format!("{} {} {}\n", mapping.container_id, mapping.host_id, mapping.size))
            .collect();
        proc.write(&format!("{pid}/{file}"), text.as_bytes()).attempt(|| {
            format!("write the {file} of the container ({})", text.trim_end().replace('\n', ", "))
        })?;
    }
    Ok(())
}

/// A user namespace that exists only to describe mappings.
fn user_namespace_of(proc: &Proc, uids: &[IdMapping], gids: &[IdMapping]) -> Result<OwnedFd, Error> {
    let (ours, theirs) = sync::pair().attempt(|| "make a socket pair".to_owned())?;
    let new = [Kind::User].into_iter().collect();
    match fork(&Fork { new, ..Fork::default() }).attempt(|| "make a user namespace".to_owned())? {
        Forked::Child => {
            drop(ours);
            let _ = theirs.receive();
            exit_now(0)
        }
        Forked::Parent { pid, pidfd } => {
            let opened = write_mappings(proc, pid, uids, gids).and_then(|()| {
                proc.link(&format!("{pid}/ns/user"), OFlags::RDONLY)
                    .attempt(|| "open the user namespace of a mount".to_owned())
            });
            drop(ours);
            let _ = waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED);
            opened
        }
    }
}

/// Leads the first process through its set-up and makes the container known.
fn finish(
    request: &Request,
    directory: &Directory,
    record: &mut Record,
    kept: &Kept,
    init: &Init,
) -> Result<(), Error> {
    record.process = Identity::of(init.pid)?;
    set_oom_score(init.pid, kept.oom_score_adj)?;
    if !kept.hooks.prestart.is_empty() || !kept.hooks.create_runtime.is_empty() {
        // Hooks may ask for the state.
        directory.save(record)?;
    }
    let hear = || "hear from the container's first process".to_owned();
    init.sync.send(&Message::Go(init.pid)).attempt(hear)?;
    loop {
        match init.sync.receive().attempt(hear)? {
            Message::Hooks => {
                hooks::run("prestart", &kept.hooks.prestart, &document(record, "creating"))?;
                hooks::run("createRuntime", &kept.hooks.create_runtime, &document(record, "creating"))?;
                init.sync.send(&Message::Go(init.pid)).attempt(hear)?;
            }
            Message::Ready => break,
            Message::Failed(text) => return Err(Error::Init(text)),
            Message::End | Message::Go(_) | Message::Forked(_) => {
                return Err(Error::InitDied("the container's first process", ending(init.pidfd.as_fd())));
            }
        }
    }
    if user::may_raise_limits() {
        user::set_rlimits(Some(init.pid), &kept.rlimits)?;
    }
    record.creating = false;
    directory.save(record)?;
    if let Some(path) = &request.pid_file {
        write_pid_file(path, init.pid)?;
    }
    Ok(())
}

pub(super) fn document<'a>(record: &'a Record, status: &'a str) -> StateDocument<'a> {
    StateDocument {
        oci_version: &record.oci_version,
        id: &record.id,
        pid: Some(record.process.pid).filter(|pid| *pid != 0 && status != "stopped"),
        status,
        bundle: &record.bundle,
        rootfs: Some(&record.rootfs),
        created: Some(&record.created),
        annotations: &record.annotations,
    }
}

/// How a child ended, in words.
pub(super) fn ending(pidfd: BorrowedFd<'_>) -> String {
    match waitid(WaitId::PidFd(pidfd), WaitIdOptions::EXITED) {
        Ok(Some(status)) => match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => format!("exit status {code}"),
            (None, Some(signal)) => format!("signal {signal}"),
            (None, None) => "unknown ending".to_owned(),
        },
        _ => "unknown ending".to_owned(),
    }
}

/// Without CAP_SYS_RESOURCE the score cannot be lowered; a container that is killed sooner is not less confined.
pub(super) fn set_oom_score(pid: i32, adjust: Option<i32>) -> Result<(), Error> {
    let Some(adjust) = adjust else { return Ok(()) };
    let proc = Proc::open().attempt(|| "open /proc".to_owned())?;
    match proc.write(&format!("{pid}/oom_score_adj"), adjust.to_string().as_bytes()) {
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            log::warn(&format!("oom_score_adj cannot be set to {adjust} without CAP_SYS_RESOURCE: {error}"));
            Ok(())
        }
        result => result.attempt(|| format!("set oom_score_adj to {adjust}")),
    }
}

/// Readers see all of the number or no file.
pub(super) fn write_pid_file(path: &Path, pid: i32) -> Result<(), Error> {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let new = path.with_file_name(format!(".{name}.{}", std::process::id()));
    fs::write(&new, pid.to_string())
        .and_then(|()| fs::rename(&new, path))
        .attempt(|| format!("write the pid file {}", path.display()))
}

/// Ends a first process that shall not be, and removes the cgroups; what fails on the way joins the cause.
fn take_back(mut cause: Error, init: &Init, group: Option<&Group>) -> Error {
    let _ = signal::send(&init.pidfd, 9);
    let _ = waitid(WaitId::PidFd(init.pidfd.as_fd()), WaitIdOptions::EXITED);
    if let Some(group) = group
        && let Err(error) = group.kill_all().and_then(|()| group.remove())
    {
        cause = Error::Init(format!("{}; and after that: {}", cause.chain(), error.chain()));
    }
    cause
}
