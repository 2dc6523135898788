//! Starting a monitor, and the small mount namespace that monitors live in.
//!
//! The daemon never forks: a fork costs time in proportion to its memory. The monitor is spawned with vfork semantics
//! (std uses posix_spawn where nothing must run in the child) and gets everything else over its standard input.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{CWD, Mode, OFlags};

use super::client::{Monitor, MonitorError};
use super::wire;
use crate::sys::mount::{self, Change, Propagation};
use crate::sys::namespace::{self, Kind, Kinds};
use crate::sys::socket;
use crate::units::Bytes;

pub(crate) use super::wire::{IdMap, Namespaces, Ready, UserMappings};

/// Namespaces take a monitor about a millisecond; a machine under memory pressure may need seconds.
const READY_WAIT: Duration = Duration::from_secs(30);

/// A monitor to start.
#[derive(Debug)]
pub(crate) struct SpawnRequest {
    pub binary: PathBuf,
    pub pod: String,
    pub socket: PathBuf,
    /// Joined by the monitor; `None` leaves it in the host's.
    pub mount_namespace: Option<Arc<OwnedFd>>,
    pub namespaces: Namespaces,
    pub hostname: Option<String>,
    pub sysctls: BTreeMap<String, String>,
    pub shm: Option<Shm>,
    /// Where its standard error goes.
    pub log: PathBuf,
}

/// The pod's /dev/shm.
#[derive(Debug)]
pub(crate) struct Shm {
    pub path: PathBuf,
    pub size: Bytes,
    /// What SELinux sees on every file in it. The kernel has to know this label.
    pub label: Option<String>,
}

/// Starts a monitor and returns once it has made the pod's namespaces. If it fails nothing of it is left.
pub(crate) async fn spawn(request: SpawnRequest) -> Result<(Monitor, Ready), MonitorError> {
    let local = |action| move |source: io::Error| MonitorError::Local { action, source };
    let listener = socket::listen(&request.socket).map_err(local("listen on a socket"))?;
    let started = start(&request, listener).await;
    if started.is_err() {
        // Ours: it was bound above.
        std::fs::remove_file(&request.socket).ok();
    }
    started
}

async fn start(request: &SpawnRequest, listener: OwnedFd) -> Result<(Monitor, Ready), MonitorError> {
    let local = |action| move |source: io::Error| MonitorError::Local { action, source };
    let (ours, theirs) = socket::pair().map_err(local("make a socket pair"))?;
    let log = OpenOptions::new().create(true).append(true).mode(0o600).open(&request.log);
    let mut child = tokio::process::Command::new(&request.binary)
        // For people who read process lists; the monitor itself listens to its standard input.
        .arg(&request.socket)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::null())
        .stderr(log.map_err(local("open the monitor's log"))?)
        .spawn()
        .map_err(local("start the monitor's program"))?;
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).ok_or(MonitorError::Gone)?;
    let monitor = Monitor::over(ours, Some(&request.socket))?;
    monitor.know(pid)?;
    let hello = wire::Hello {
        version: wire::VERSION,
        pod: request.pod.clone(),
        socket: request.socket.clone(),
        mount_namespace: request.mount_namespace.is_some(),
        namespaces: request.namespaces.clone(),
        hostname: request.hostname.clone(),
        sysctls: request.sysctls.clone(),
        shm: request.shm.as_ref().map(|shm| wire::Shm {
            path: shm.path.clone(),
            size_bytes: shm.size.0,
            label: shm.label.clone(),
        }),
    };
    let mut fds = vec![listener];
    if let Some(namespace) = &request.mount_namespace {
        fds.push(namespace.try_clone().map_err(local("copy the mount namespace"))?);
    }
    let ready = monitor.hello(&hello, fds, READY_WAIT).await;
    if ready.is_err() {
        monitor.kill_process();
    }
    // Reaps it whenever it ends; while it runs this is one idle task.
    tokio::spawn(async move { child.wait().await });
    Ok((monitor, ready?))
}

/// Makes the mount namespace that monitors of the bundled sandbox join: the host's root without what is mounted below
/// it, and the few mounts that a monitor and its runtime need.
///
/// A container starts with a copy of its monitor's mount table, so the cost of a start grows with that table. The
/// host's has thousands of entries on a busy node (one per volume and rootfs); this one has some twenty, always. Mount
/// sources reach the runtime as descriptors instead of paths.
#[derive(Debug)]
pub(crate) struct SmallMountNamespace;

impl SmallMountNamespace {
    /// Blocking. `needed` are directories that must be there at their paths. `programs` is that of our binaries: it is
    /// read-only there, so the bundled sandbox need not make such a mount of itself at each start (`protect.rs`).
    pub(crate) fn prepare(needed: &[PathBuf], programs: &Path) -> io::Result<OwnedFd> {
        // unshare(2) affects the calling thread alone, and the thread ends with this.
        std::thread::scope(|scope| {
            let built = scope.spawn(|| build(needed, programs)).join();
            built.unwrap_or_else(|_| {
                Err(io::Error::other("the thread that makes the mount namespace panicked"))
            })
        })
    }
}

fn build(needed: &[PathBuf], programs: &Path) -> io::Result<OwnedFd> {
    const WITH_ALL_BELOW: [&str; 3] = ["/proc", "/sys", "/dev"];
    const ALONE: [&str; 3] = ["/usr", "/run", "/tmp"];
    namespace::leave(Kinds::from_iter([Kind::Mount]))?;
    mount::change_all(Propagation::Private)?;
    let root = mount::clone_tree(CWD, "/", false)?;
    let mut mounts = Vec::new();
    for path in WITH_ALL_BELOW {
        mounts.push((PathBuf::from(path), mount::clone_tree(CWD, path, true)?));
    }
    // Resolved now: below the new root a link may lead elsewhere.
    let programs = programs.canonicalize()?;
    let needed = needed.iter().map(|path| path.canonicalize()).collect::<io::Result<Vec<_>>>()?;
    // A path is there when the filesystem that it lies on is, and those which that one is mounted on.
    let ancestors = needed.iter().flat_map(|path| path.ancestors()).chain(programs.ancestors());
    let alone: BTreeSet<&Path> = ALONE.iter().map(Path::new).chain(ancestors).collect();
    for path in alone.into_iter().filter(|path| *path != Path::new("/") && is_mount_point(path)) {
        if !WITH_ALL_BELOW.iter().any(|whole| path.starts_with(whole)) {
            mounts.push((path.to_owned(), mount::clone_tree(CWD, path, false)?));
        }
    }
    let tree = mount::clone_tree(CWD, &programs, false)?;
    mount::change(&tree, false, &Change { set: mount::RDONLY, ..Change::default() })?;
    mounts.push((programs, tree));
    // Parents first: what is attached later would hide what is below its mount point.
    mounts.sort_by_key(|(path, _)| path.components().count());
    mount::attach_over_root(&root)?;
    mount::pivot_into(&root)?;
    for (path, tree) in mounts {
        let target = rustix::fs::open(&path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        mount::attach(&tree, target.as_fd())?;
    }
    Ok(rustix::fs::open("/proc/thread-self/ns/mnt", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
}

/// Whether something is mounted at `path`; a path that cannot be looked at is none.
fn is_mount_point(path: &Path) -> bool {
    use rustix::fs::{AtFlags, StatxAttributes, StatxFlags, statx};
    statx(CWD, path, AtFlags::empty(), StatxFlags::empty())
        .is_ok_and(|stat| stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn privileged_the_small_mount_namespace_has_few_mounts_and_the_needed_paths() {
        let dir = tempfile::tempdir().expect("a scratch directory");
        std::fs::write(dir.path().join("file"), "here").expect("a file");
        let programs = dir.path().join("bin");
        std::fs::create_dir(&programs).expect("a directory");
        let namespace =
            SmallMountNamespace::prepare(&[dir.path().to_owned()], &programs).expect("a namespace");
        let file = dir.path().join("file");
        let (mounts, text, written) = std::thread::spawn(move || {
            namespace::leave(Kinds::from_iter([Kind::Mount])).expect("a namespace of this thread's own");
            namespace::join(namespace.as_fd(), Kind::Mount).expect("joined");
            let mounts = std::fs::read_to_string("/proc/thread-self/mountinfo").expect("mountinfo");
            let written = std::fs::write(programs.join("program"), "changed").map_err(|error| error.kind());
            (mounts, std::fs::read_to_string(file).expect("the file at its path"), written)
        })
        .join()
        .expect("the thread ends");
        assert_eq!(text, "here");
        assert_eq!(written, Err(io::ErrorKind::ReadOnlyFilesystem));
        assert!(mounts.lines().count() < 40, "{mounts}");
    }
}
