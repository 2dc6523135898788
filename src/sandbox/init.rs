//! The container's first process, between clone3(2) and execve(2).
//!
//! It never executes a program of the host's: it is a copy of the short-lived `create`, not dumpable, whose own
//! executable lies on a read-only mount (see `protect.rs`). It reads no path inside the rootfs as a string before it has
//! pivoted into it and dropped every descriptor of the host.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::OFlags;
use rustix::process::{Gid, Uid};

use super::error::{Attempt, Error};
use super::launch::{self, Confinement, Launch};
use super::mounts::{self, Inside, Prepared};
use super::spec::{Config, Namespaces, StateDocument};
use super::sync::{End, Message};
use super::{cgroupfs, devices, hooks, log, lsm};
use crate::sys::mount::{self, Change, Propagation};
use crate::sys::namespace::{self, Kind, Kinds};
use crate::sys::path::{self, Missing, Proc};
use crate::sys::process::{exit_now, join_new_session_keyring};
use crate::sys::sysctl;

/// Everything the first process needs, prepared on the host's side before it exists.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) id: String,
    pub(super) bundle: std::path::PathBuf,
    pub(super) config: Config,
    pub(super) namespaces: Namespaces,
    /// Namespaces still to be joined by the first process itself.
    pub(super) joined: Vec<(Kind, OwnedFd)>,
    pub(super) proc: Proc,
    pub(super) rootfs: OwnedFd,
    pub(super) mounts: Vec<Prepared>,
    pub(super) devices: Vec<devices::Node>,
    pub(super) null: Option<OwnedFd>,
    pub(super) console: Option<OwnedFd>,
    pub(super) confinement: Confinement,
    /// Reads one byte when `start` says so.
    pub(super) start: OwnedFd,
    /// Takes the reason why the program could not be executed.
    pub(super) outcome: OwnedFd,
    pub(super) pivot: bool,
    pub(super) new_keyring: bool,
}

/// The first process from its first instruction on.
pub(super) fn run(plan: Plan, sync: End) -> ! {
    let (start, outcome, hooks) =
        match (plan.start.try_clone(), plan.outcome.try_clone(), plan.config.hooks.start_container.clone()) {
            (Ok(start), Ok(outcome), hooks) => (start, outcome, hooks),
            _ => exit_now(1),
        };
    let (id, bundle, annotations) = (plan.id.clone(), plan.bundle.clone(), plan.config.annotations.clone());
    let needed = [start.as_raw_fd() as u32, outcome.as_raw_fd() as u32, sync.number()];
    let launch = match set_up(plan, &sync, &needed) {
        Ok(launch) => launch,
        Err(error) => {
            // If the creator is gone as well, nobody is left to tell.
            let _ = sync.send(&Message::Failed(error.chain()));
            exit_now(1);
        }
    };
    if sync.send(&Message::Ready).is_err() {
        exit_now(1);
    }
    drop(sync);
    let mut byte = [0u8; 1];
    if !matches!(rustix::io::retry_on_intr(|| rustix::io::read(&start, &mut byte)), Ok(1)) {
        exit_now(1);
    }
    let state = StateDocument {
        oci_version: super::spec::OCI_VERSION,
        id: &id,
        pid: Some(rustix::process::getpid().as_raw_nonzero().get()),
        status: "created",
        bundle: &bundle,
        rootfs: None,
        created: None,
        annotations: &annotations,
    };
    let (code, error) = match hooks::run("startContainer", &hooks, &state) {
        Ok(()) => launch.exec(),
        Err(error) => (1, error),
    };
    let text = error.chain();
    let _ = rustix::io::write(&outcome, text.as_bytes());
    exit_now(code);
}

fn set_up(mut plan: Plan, sync: &End, needed: &[u32]) -> Result<Launch, Error> {
    let Message::Go(pid) = sync.receive().attempt(|| "hear from the creator".to_owned())? else {
        exit_now(1)
    };
    if let Some((_, bytes)) = &mut plan.confinement.listener {
        let state = StateDocument {
            oci_version: super::spec::OCI_VERSION,
            id: &plan.id,
            pid: Some(pid),
            status: "creating",
            bundle: &plan.bundle,
            rootfs: None,
            created: None,
            annotations: &plan.config.annotations,
        };
        *bytes = super::spec::seccomp_document(&plan.config, &state).with_pid(pid);
    }
    enter_namespaces(&plan)?;
    // Before the cgroup namespace changes what the files say.
    let mut view = cgroupfs::View::default();
    if plan.config.mounts.iter().any(|mount| matches!(mount.kind.as_deref(), Some("cgroup" | "cgroup2"))) {
        view = cgroupfs::View::read().attempt(|| "read /proc/self/cgroup".to_owned())?;
    }
    if plan.namespaces.new.contains(Kind::Cgroup) {
        namespace::leave([Kind::Cgroup].into_iter().collect::<Kinds>())
            .attempt(|| "make a cgroup namespace".to_owned())?;
    }
    view.own_namespace = plan.namespaces.has(Kind::Cgroup);
    rustix::process::setsid().attempt(|| "make a session".to_owned())?;
    if plan.new_keyring {
        lsm::label_keys(&plan.proc, pid, plan.confinement.process.selinux_label.as_deref())?;
        let name = std::ffi::CString::new(format!("_ses.{}", plan.id)).expect("ids hold no NUL");
        if let Err(error) = join_new_session_keyring(&name) {
            // A kernel without keyrings, or a full quota: the container then shares the creator's, as it would have
            // with --no-new-keyring.
            log::debug(|| format!("no session keyring of its own: {error}"));
        }
    }
    set_names(&plan.config)?;
    if plan.namespaces.new.contains(Kind::Net) {
        namespace::bring_loopback_up().attempt(|| "bring the loopback interface up".to_owned())?;
    }
    for (key, value) in &plan.config.linux.sysctl {
        let file = format!("sys/{}", sysctl::path(key));
        plan.proc.write(&file, value.as_bytes()).attempt(|| format!("set the sysctl {key} to {value:?}"))?;
    }

    let private = matches!(plan.config.linux.rootfs_propagation.as_deref(), Some("private" | "rprivate"));
    mount::change_all(if private { Propagation::Private } else { Propagation::Slave })
        .attempt(|| "cut mount propagation to the host".to_owned())?;
    mount::attach_over_root(&plan.rootfs).attempt(|| "attach the root filesystem".to_owned())?;
    // The modes of nodes and directories are meant as written.
    rustix::process::umask(rustix::fs::Mode::empty());
    let mut inside = Inside {
        root: plan.rootfs.as_fd(),
        user_namespace: plan.namespaces.has(Kind::User),
        cgroups: &view,
        label: plan.config.mount_label(),
        readonly_later: Vec::new(),
    };
    for prepared in &plan.mounts {
        mounts::attach(&mut inside, prepared)?;
    }
    let readonly_later = inside.readonly_later;
    devices::make(plan.rootfs.as_fd(), &plan.devices)?;
    if let Some(console) = plan.console.take() {
        let devpts = path::open_in_without_links(
            &plan.rootfs,
            Path::new("/dev/pts"),
            OFlags::PATH | OFlags::DIRECTORY,
        )
        .attempt(|| "open /dev/pts, where a terminal needs a devpts mount".to_owned())?;
        let slave = launch::take_terminal(devpts, &plan.confinement.process, &console)?;
        devices::attach_console(plan.rootfs.as_fd(), &slave)?;
    }
    for mount in &readonly_later {
        mount::change(mount, false, &Change { set: mount::RDONLY, ..Change::default() })
            .attempt(|| "make /dev read-only".to_owned())?;
    }
    let hooks = &plan.config.hooks;
    if !hooks.prestart.is_empty() || !hooks.create_runtime.is_empty() {
        sync.send(&Message::Hooks).attempt(|| "ask for the hooks".to_owned())?;
        if !matches!(sync.receive(), Ok(Message::Go(_))) {
            exit_now(1);
        }
    }
    let state = StateDocument {
        oci_version: super::spec::OCI_VERSION,
        id: &plan.id,
        pid: Some(rustix::process::getpid().as_raw_nonzero().get()),
        status: "creating",
        bundle: &plan.bundle,
        rootfs: None,
        created: None,
        annotations: &plan.config.annotations,
    };
    hooks::run("createContainer", &hooks.create_container, &state)?;

    let linux = &plan.config.linux;
    if let Some(null) = plan.null.take() {
        mounts::mask(plan.rootfs.as_fd(), &linux.masked_paths, &null, plan.config.mount_label())?;
    }
    mounts::make_readonly(plan.rootfs.as_fd(), &linux.readonly_paths)?;
    let cwd = &plan.confinement.process.cwd;
    match path::ensure_in(&plan.rootfs, cwd, Missing::Directory) {
        // A read-only image without its own working directory: the change to it will say so.
        Err(error) if error.kind() == std::io::ErrorKind::ReadOnlyFilesystem => {}
        result => {
            result.attempt(|| format!("open the working directory {}", cwd.display()))?;
        }
    }
    if plan.pivot {
        mount::pivot_into(&plan.rootfs).attempt(|| "pivot into the root filesystem".to_owned())?;
    } else {
        mount::chroot_into(&plan.rootfs).attempt(|| "chroot into the root filesystem".to_owned())?;
    }
    if plan.config.root.as_ref().is_some_and(|root| root.readonly) {
        mount::change(&plan.rootfs, false, &Change { set: mount::RDONLY, ..Change::default() })
            .attempt(|| "make the root filesystem read-only".to_owned())?;
    }
    if let Some((mode, recursive)) = linux.rootfs_propagation.as_deref().and_then(mounts::propagation) {
        mount::change(&plan.rootfs, recursive, &Change { propagation: Some(mode), ..Change::default() })
            .attempt(|| "set the propagation of the root filesystem".to_owned())?;
    }
    // Every descriptor of the host's that is still open is dropped here or in `settle`, before any path of the
    // container's is used.
    let Plan { confinement, proc, rootfs, mounts, devices, joined, console, null, start, outcome, .. } = plan;
    drop((rootfs, mounts, devices, joined, console, null, start, outcome, readonly_later));
    launch::settle(confinement, proc, pid, needed)
}

/// Joins what is given by path, and becomes root of the user namespace if there is one.
fn enter_namespaces(plan: &Plan) -> Result<(), Error> {
    for (kind, file) in &plan.joined {
        namespace::join(file.as_fd(), *kind).attempt(|| format!("join the {} namespace", kind.file()))?;
    }
    if plan.namespaces.has(Kind::User) {
        // Files that we make belong to the container's root. Where it is not mapped we stay who we are.
        let (uid, gid) = (Uid::from_raw(0), Gid::from_raw(0));
        let _ = rustix::thread::set_thread_groups(&[]);
        let _ = rustix::thread::set_thread_res_gid(gid, gid, gid);
        let _ = rustix::thread::set_thread_res_uid(uid, uid, uid);
        launch::hide()?;
    }
    Ok(())
}

fn set_names(config: &Config) -> Result<(), Error> {
    if let Some(name) = config.hostname.as_ref().filter(|name| !name.is_empty()) {
        rustix::system::sethostname(name.as_bytes()).attempt(|| format!("set the hostname {name:?}"))?;
    }
    if let Some(name) = config.domainname.as_ref().filter(|name| !name.is_empty()) {
        rustix::system::setdomainname(name.as_bytes()).attempt(|| format!("set the domain name {name:?}"))?;
    }
    Ok(())
}
