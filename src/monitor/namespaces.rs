//! Makes the pod's namespaces and pins them for the pod's life.
//!
//! Nothing is mounted to pin them. Network, IPC and UTS namespaces are the monitor's own (`/proc/PID/ns/…`); a user
//! namespace is an open file of it (`/proc/PID/fd/N`), for the monitor itself stays the host's root; a shared PID
//! namespace is that of its init. A user namespace has to own the others, so there a child makes them all at once and
//! the monitor joins them.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{Mode, OFlags, ResolveFlags};

use super::wire::{Hello, IdMap, Namespaces, Ready, Shm, VERSION};
use crate::sys::namespace::{self, Kind, Kinds};
use crate::sys::process::{Fork, Forked, fork};
use crate::sys::spawn;
use crate::sys::sysctl::{self, SysctlError};

/// What keeps the namespaces alive besides this process itself.
#[derive(Debug, Default)]
pub(super) struct Pins {
    _user: Option<OwnedFd>,
    /// PID 1 of the shared PID namespace.
    pub(super) init: Option<i32>,
}

/// Why a pod's namespaces cannot be made.
#[derive(Debug, thiserror::Error)]
pub(super) enum NamespaceError {
    #[error("{action}")]
    System {
        action: String,
        #[source]
        source: io::Error,
    },
    #[error("cannot set sysctl {key:?}: {why}")]
    Sysctl { key: String, why: SysctlError },
}

fn failed(action: impl Into<String>) -> impl FnOnce(io::Error) -> NamespaceError {
    let action = action.into();
    move |source| NamespaceError::System { action, source }
}

/// Moves this process into what `hello` asks for.
pub(super) fn make(hello: &Hello, mount_namespace: Option<OwnedFd>) -> Result<(Pins, Ready), NamespaceError> {
    // Before anything is made: a wrong request changes nothing.
    for (key, value) in &hello.sysctls {
        sysctl::check(key, value, |kind| own(&hello.namespaces, kind))
            .map_err(|why| NamespaceError::Sysctl { key: key.clone(), why })?;
    }
    if let Some(namespace) = &mount_namespace {
        namespace::join(namespace.as_fd(), Kind::Mount).map_err(failed("join the small mount namespace"))?;
    }
    if let Some(shm) = &hello.shm {
        mount_shm(shm, mount_namespace.is_some())?;
    }
    let (pins, ready) = make_namespaces(&hello.namespaces)?;
    if hello.namespaces.net {
        namespace::bring_loopback_up().map_err(failed("set the loopback interface up"))?;
    }
    if let Some(name) = hello.hostname.as_ref().filter(|_| hello.namespaces.uts) {
        rustix::system::sethostname(name.as_bytes())
            .map_err(|e| failed(format!("set the hostname to {name:?}"))(e.into()))?;
    }
    let root = hello
        .namespaces
        .user
        .as_ref()
        .and_then(|mappings| mappings.uids.iter().find(|map| map.container == 0).map(|map| map.host));
    let (net, ipc): (Vec<_>, Vec<_>) =
        hello.sysctls.iter().partition(|(key, _)| sysctl::path(key).starts_with("net/"));
    set_sysctls(&net)?;
    match root {
        Some(root) if !ipc.is_empty() => as_user(root, || set_sysctls(&ipc))?,
        _ => set_sysctls(&ipc)?,
    }
    Ok((pins, ready))
}

/// The mount goes with the monitor if the namespace is the monitor's own.
fn mount_shm(shm: &Shm, own: bool) -> Result<(), NamespaceError> {
    use rustix::mount::{MountFlags, mount};
    if own {
        namespace::leave(Kinds::from_iter([Kind::Mount])).map_err(failed("make a mount namespace"))?;
    }
    let mut options = format!("mode=1777,size={}", shm.size_bytes);
    if let Some(label) = &shm.label {
        // In quotation marks, because categories have commas between them.
        options += &format!(",context=\"{label}\"");
    }
    let options = std::ffi::CString::new(options).map_err(|_| {
        failed("write the options of the pod's shared memory")(io::ErrorKind::InvalidInput.into())
    })?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("shm", &shm.path, "tmpfs", flags, Some(options.as_c_str()))
        .map_err(|e| failed(format!("mount a tmpfs at {}", shm.path.display()))(e.into()))
}

fn make_namespaces(wanted: &Namespaces) -> Result<(Pins, Ready), NamespaceError> {
    let own = rustix::process::getpid().as_raw_nonzero().get();
    let mut pins = Pins::default();
    let asked = [(wanted.net, Kind::Net), (wanted.ipc, Kind::Ipc), (wanted.uts, Kind::Uts)];
    let mut kinds: Kinds = asked.into_iter().filter_map(|(asked, kind)| asked.then_some(kind)).collect();
    let mut user = None;
    match &wanted.user {
        None => {
            if !kinds.is_empty() {
                namespace::leave(kinds).map_err(failed("make the pod's namespaces"))?;
            }
            if wanted.shared_pid {
                pins.init = Some(start_init(Kinds::from_iter([Kind::Pid]))?);
            }
        }
        Some(mappings) => {
            kinds.insert(Kind::User);
            if wanted.shared_pid {
                kinds.insert(Kind::Pid);
            }
            // The child is the pod's init if there is to be one, and else only waits to be killed.
            let child = start_init(kinds)?;
            let joined = map_ids(child, &mappings.uids, &mappings.gids).and_then(|()| join(child, wanted));
            match joined {
                Ok(fd) if wanted.shared_pid => {
                    pins.init = Some(child);
                    user = Some(fd);
                }
                other => {
                    end(child);
                    user = Some(other?);
                }
            }
        }
    }
    let user_path = user.as_ref().map(|fd| PathBuf::from(format!("/proc/{own}/fd/{}", fd.as_raw_fd())));
    pins._user = user;
    let path = |asked: bool, file: &str| asked.then(|| PathBuf::from(format!("/proc/{own}/ns/{file}")));
    let ready = Ready {
        version: VERSION,
        pid: own,
        net: path(wanted.net, "net"),
        ipc: path(wanted.ipc, "ipc"),
        uts: path(wanted.uts, "uts"),
        pid_ns: pins.init.map(|init| PathBuf::from(format!("/proc/{init}/ns/pid"))),
        user: user_path,
        fds_max: super::wire::FDS_MAX,
    };
    Ok((pins, ready))
}

fn start_init(new: Kinds) -> Result<i32, NamespaceError> {
    // Closed by the init once it will notice our death; one that does not would outlive the pod.
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .map_err(|e| failed("make a pipe")(e.into()))?;
    match fork(&Fork { new, ..Fork::default() }).map_err(failed("start the pod's init"))? {
        Forked::Child => spawn::run_init(),
        Forked::Parent { pid, .. } => {
            drop(write);
            rustix::io::retry_on_intr(|| rustix::io::read(&read, &mut [0u8; 1][..]))
                .map_err(|e| failed("wait for the pod's init")(e.into()))?;
            Ok(pid)
        }
    }
}

/// Kills a child of ours and reaps it.
pub(super) fn end(child: i32) {
    let Some(pid) = rustix::process::Pid::from_raw(child) else { return };
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).ok();
    rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty()).ok();
}

fn map_ids(child: i32, uids: &[IdMap], gids: &[IdMap]) -> Result<(), NamespaceError> {
    for (file, maps) in [("uid_map", uids), ("gid_map", gids)] {
        let path = format!("/proc/{child}/{file}");
        let text: String =
            maps.iter().map(|m| format!("{} {} {}\n", m.container, m.host, m.length)).collect();
        // One write: the kernel takes no second one (user_namespaces(7)).
        let written =
            File::options().write(true).open(&path).and_then(|mut file| file.write_all(text.as_bytes()));
        written.map_err(failed(format!("write {:?} to {path}", text.trim_end())))?;
    }
    Ok(())
}

/// Joins what the child made, and opens its user namespace.
fn join(child: i32, wanted: &Namespaces) -> Result<OwnedFd, NamespaceError> {
    let open = |file: &str| {
        let path = format!("/proc/{child}/ns/{file}");
        File::open(&path).map(OwnedFd::from).map_err(failed(format!("open {path}")))
    };
    for (asked, kind) in [(wanted.net, Kind::Net), (wanted.ipc, Kind::Ipc), (wanted.uts, Kind::Uts)] {
        if asked {
            let file = kind.file();
            namespace::join(open(file)?.as_fd(), kind)
                .map_err(failed(format!("join the {file} namespace of the pod's user namespace")))?;
        }
    }
    open("user")
}

/// Whether the pod has a namespace of this kind for itself.
fn own(namespaces: &Namespaces, kind: Kind) -> bool {
    match kind {
        Kind::Net => namespaces.net,
        Kind::Ipc => namespaces.ipc,
        Kind::Uts => namespaces.uts,
        _ => false,
    }
}

/// Runs `work` with the effective id of the pod's root, who alone may write the sysctls of an IPC namespace that the
/// pod's user namespace owns: no capability of the host's root counts there (Linux 6.1, `ipc_permissions`). For those of a
/// network namespace it is the reverse.
fn as_user(uid: u32, work: impl FnOnce() -> Result<(), NamespaceError>) -> Result<(), NamespaceError> {
    use rustix::process::{DumpableBehavior, Uid, set_dumpable_behavior};
    use rustix::thread::set_thread_res_uid;
    let switch = |effective| set_thread_res_uid(Uid::ROOT, effective, Uid::ROOT);
    switch(Uid::from_raw(uid)).map_err(|e| failed("take the id of the pod's root")(e.into()))?;
    let done = work();
    switch(Uid::ROOT).map_err(|e| failed("take the id of the host's root back")(e.into()))?;
    // Changing ids clears it, and with it who may look at /proc/PID/ns.
    set_dumpable_behavior(DumpableBehavior::Dumpable).map_err(|e| failed("be dumpable again")(e.into()))?;
    done
}

/// The files of /proc/sys show the namespaces of who opens them, so this comes after joining them.
fn set_sysctls(sysctls: &[(&String, &String)]) -> Result<(), NamespaceError> {
    if sysctls.is_empty() {
        return Ok(());
    }
    let directory =
        rustix::fs::open("/proc/sys", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|e| failed("open /proc/sys")(e.into()))?;
    for (key, value) in sysctls {
        let set = || -> io::Result<()> {
            let flags = OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
            let file = rustix::fs::openat2(&directory, sysctl::path(key), flags, Mode::empty(), resolve)?;
            File::from(file).write_all(value.as_bytes())
        };
        set().map_err(failed(format!("set sysctl {key:?} to {value:?}")))?;
    }
    Ok(())
}
