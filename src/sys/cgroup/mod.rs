//! Control groups through their file system: v1, hybrid and v2.
//!
//! Here are the hierarchies of this host, paths in them, and what a cgroup is good for: created, joined, frozen, killed,
//! removed. `apply.rs` writes OCI resources, `stats.rs` reads usage, `devices.rs` says which devices may be opened. Which
//! path a container gets is decided by callers.
//!
//! ```text
//! v2      /sys/fs/cgroup/PATH
//! v1      /sys/fs/cgroup/<controller>/PATH, once per hierarchy
//! hybrid  as v1, and /sys/fs/cgroup/unified/PATH for kill, freeze, pressure and what v1 does not have
//! ```
//!
//! Making a cgroup on v1 costs one mkdir per hierarchy (some 50 µs each), so hierarchies that hold nothing by default
//! (`net_cls`, `net_prio`, `rdma`, `perf_event`, and `freezer` where v2 can freeze) are joined only when asked for.
//!
//! A path is relative to each hierarchy's mount, as in every cgroupfs driver. Everything blocks, though not for long,
//! except where a function says so.

mod apply;
mod devices;
mod path;
mod stats;

use std::ffi::OsStr;
use std::fs;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
#[cfg(feature = "daemon")]
use std::sync::OnceLock;
#[cfg(feature = "daemon")]
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{Mode as FileMode, OFlags};
use rustix::io::Errno;
use rustix::process::{Pid, Signal};

#[cfg(test)]
pub(crate) use apply::Warning;
pub(crate) use path::{CgroupPath, PathError};
pub(crate) use stats::DeviceIo;
#[cfg(any(feature = "daemon", test))]
pub(crate) use stats::{PressureLine, Psi};

/// What went wrong with a cgroup: the file, what was written, why.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CgroupError {
    #[error("create cgroup {path}", path = .path.display())]
    Create {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("read {path}", path = .path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("write {value:?} to {path}", path = .path.display())]
    Write {
        path: PathBuf,
        value: String,
        #[source]
        source: io::Error,
    },
    /// Undoing came on top; the first failure is the source.
    #[error("restore {path} to {value:?} after a failed change ({undo})", path = .path.display())]
    Undo {
        path: PathBuf,
        value: String,
        undo: io::Error,
        #[source]
        source: Box<CgroupError>,
    },
    #[error("remove cgroup {path}: still in use after {waited:?}", path = .path.display())]
    Busy { path: PathBuf, waited: Duration },
    #[error("remove cgroup {path}", path = .path.display())]
    Remove {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{field} {value:?} cannot be set: this host has no {controller} cgroup controller")]
    NoController { field: &'static str, value: String, controller: &'static str },
    #[error("{field} {value:?} is not valid: {why}")]
    Invalid { field: &'static str, value: String, why: &'static str },
    #[error("cgroup {path} cannot be frozen within {waited:?}", path = .path.display())]
    NotFrozen { path: PathBuf, waited: Duration },
    #[error("cgroup {path} still has processes after {rounds} rounds of SIGKILL", path = .path.display())]
    Survivors { path: PathBuf, rounds: u32 },
    #[error("attach the device filter to {path}", path = .path.display())]
    DeviceFilter {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("no cgroup {path} in any hierarchy of this host", path = .path.display())]
    Missing { path: PathBuf },
    #[error("this is not the path of a cgroup")]
    Path(#[from] PathError),
}

/// How this host mounts its cgroups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    V1,
    /// v1 controllers, and a v2 hierarchy beside them.
    Hybrid,
    V2,
}

/// A v1 controller, or systemd's named hierarchy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Controller {
    Cpu,
    Cpuacct,
    Cpuset,
    Memory,
    Devices,
    Freezer,
    Blkio,
    Pids,
    Hugetlb,
    NetCls,
    NetPrio,
    PerfEvent,
    Rdma,
    /// `name=systemd`: holds no controller, but systemd finds a unit's processes by it.
    Systemd,
}

impl Controller {
    fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "cpu" => Self::Cpu,
            "cpuacct" => Self::Cpuacct,
            "cpuset" => Self::Cpuset,
            "memory" => Self::Memory,
            "devices" => Self::Devices,
            "freezer" => Self::Freezer,
            "blkio" => Self::Blkio,
            "pids" => Self::Pids,
            "hugetlb" => Self::Hugetlb,
            "net_cls" => Self::NetCls,
            "net_prio" => Self::NetPrio,
            "perf_event" => Self::PerfEvent,
            "rdma" => Self::Rdma,
            "name=systemd" => Self::Systemd,
            _ => return None,
        })
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct V1Mount {
    root: PathBuf,
    controllers: Vec<Controller>,
}

/// Where this host's hierarchies are mounted. Cheap to make (one read of mountinfo) and worth keeping.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hierarchy {
    v1: Vec<V1Mount>,
    v2: Option<PathBuf>,
    /// systemd runs here, so its named hierarchy matters.
    systemd: bool,
}

/// mountinfo is as long as the host has mounts; more than this is no host but an attack.
const MOUNTINFO_BYTES_MAX: u64 = 64 << 20;
/// Ordinary cgroup files: `memory.stat` is the longest at some 2 KiB, `cgroup.procs` grows with the processes.
const FILE_BYTES_MAX: u64 = 8 << 20;

impl Hierarchy {
    /// Reads `/proc/self/mountinfo`.
    ///
    /// # Errors
    ///
    /// When it cannot be read, or names no cgroup mount at all (`NotFound`).
    pub(crate) fn detect() -> io::Result<Self> {
        let text = read_bounded(Path::new("/proc/self/mountinfo"), MOUNTINFO_BYTES_MAX)?;
        let found = Self::parse(&text, Path::new("/run/systemd/system").exists());
        if found.v1.is_empty() && found.v2.is_none() {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                "no cgroup hierarchy is mounted; mount cgroup2 at /sys/fs/cgroup",
            ));
        }
        Ok(found)
    }

    fn parse(mountinfo: &str, systemd: bool) -> Self {
        let mut found = Self { v1: Vec::new(), v2: None, systemd };
        for line in mountinfo.lines() {
            // proc_pid_mountinfo(5): id parent dev root mountpoint options [optional…] - type source superoptions
            let Some((left, right)) = line.split_once(" - ") else { continue };
            let Some(root) = left.split(' ').nth(4) else { continue };
            let root = PathBuf::from(unescape(root));
            let mut right = right.split(' ');
            match (right.next(), right.nth(1)) {
                (Some("cgroup2"), _) if found.v2.is_none() => found.v2 = Some(root),
                (Some("cgroup"), Some(options)) => {
                    let controllers: Vec<_> = options.split(',').filter_map(Controller::parse).collect();
                    let known = |c: &Controller| found.v1.iter().any(|mount| mount.controllers.contains(c));
                    if !controllers.is_empty() && !controllers.iter().any(known) {
                        found.v1.push(V1Mount { root, controllers });
                    }
                }
                _ => {}
            }
        }
        found
    }

    /// As [`Hierarchy::detect`], with an error that names what was read. Found once per process: a node's list of mounts
    /// can have thousands of lines, and where the hierarchies are does not change.
    #[cfg(feature = "daemon")]
    pub(crate) fn of_host() -> Result<Self, CgroupError> {
        static FOUND: OnceLock<Hierarchy> = OnceLock::new();
        if let Some(found) = FOUND.get() {
            return Ok(found.clone());
        }
        let read = |source| CgroupError::Read { path: "/proc/self/mountinfo".into(), source };
        let found = Self::detect().map_err(read)?;
        Ok(FOUND.get_or_init(|| found).clone())
    }

    pub(crate) fn mode(&self) -> Mode {
        let controllers = self.v1.iter().any(|mount| mount.controllers != [Controller::Systemd]);
        match (&self.v2, controllers) {
            (Some(_), true) => Mode::Hybrid,
            (Some(_), false) => Mode::V2,
            (None, _) => Mode::V1,
        }
    }

    /// Whether a container's huge pages can be limited here.
    #[cfg(feature = "daemon")]
    pub(crate) fn limits_huge_pages(&self) -> bool {
        match (&self.v2, self.mode()) {
            (Some(root), Mode::V2) => std::fs::read_to_string(root.join("cgroup.controllers"))
                .is_ok_and(|text| text.split_whitespace().any(|name| name == "hugetlb")),
            _ => self.v1_root(Controller::Hugetlb).is_some(),
        }
    }

    fn v1_root(&self, controller: Controller) -> Option<&Path> {
        self.v1.iter().find(|mount| mount.controllers.contains(&controller)).map(|mount| mount.root.as_path())
    }

    /// Every mount a new cgroup gets a directory in. See the head of this file for what is left out.
    fn default_roots(&self) -> impl Iterator<Item = &Path> {
        let wanted = move |controller: &Controller| match controller {
            Controller::NetCls | Controller::NetPrio | Controller::PerfEvent | Controller::Rdma => false,
            Controller::Freezer => self.v2.is_none(),
            Controller::Systemd => self.systemd,
            _ => true,
        };
        self.v1
            .iter()
            .filter(move |mount| mount.controllers.iter().any(wanted))
            .map(|mount| mount.root.as_path())
            .chain(self.v2.as_deref())
    }
}

/// mountinfo writes blank, tab, newline and backslash as three octal digits.
fn unescape(field: &str) -> String {
    let mut out = String::with_capacity(field.len());
    let mut rest = field;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        match rest.get(at + 1..at + 4).and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                out.push(char::from(byte));
                rest = &rest[at + 4..];
            }
            None => {
                out.push('\\');
                rest = &rest[at + 1..];
            }
        }
    }
    out.push_str(rest);
    out
}

/// One cgroup: the same path in every hierarchy that it needs.
#[derive(Debug, Clone)]
pub(crate) struct Cgroup {
    hierarchy: Hierarchy,
    path: CgroupPath,
}

impl Cgroup {
    /// Makes the directories, with missing parents. One that exists is taken as it is.
    ///
    /// On v1 a new cpuset gets its parent's CPUs and memory nodes, without which no process may enter. On v2 every controller
    /// the parents have is handed down.
    ///
    /// # Errors
    ///
    /// [`CgroupError::Create`], after removing what this call made of the cgroup itself.
    pub(crate) fn create(hierarchy: &Hierarchy, path: &CgroupPath) -> Result<Self, CgroupError> {
        let cgroup = Self { hierarchy: hierarchy.clone(), path: path.clone() };
        let mut made: Vec<PathBuf> = Vec::new();
        for root in hierarchy.default_roots() {
            match cgroup.create_in(root) {
                Ok(true) => made.push(path.under(root)),
                Ok(false) => {}
                Err(err) => {
                    for dir in made {
                        // The failure to report is the one above; an empty directory left is found by the next create.
                        let _ = fs::remove_dir(dir);
                    }
                    return Err(err);
                }
            }
        }
        Ok(cgroup)
    }

    /// An existing cgroup.
    ///
    /// # Errors
    ///
    /// [`CgroupError::Missing`] when no hierarchy has it.
    pub(crate) fn open(hierarchy: &Hierarchy, path: &CgroupPath) -> Result<Self, CgroupError> {
        let cgroup = Self { hierarchy: hierarchy.clone(), path: path.clone() };
        if cgroup.dirs().next().is_none() {
            return Err(CgroupError::Missing { path: Path::new("/").join(path.as_path()) });
        }
        Ok(cgroup)
    }

    #[cfg(test)]
    pub(crate) fn path(&self) -> &CgroupPath {
        &self.path
    }

    /// The directories that exist.
    fn dirs(&self) -> impl Iterator<Item = PathBuf> {
        self.hierarchy
            .v1
            .iter()
            .map(|mount| mount.root.as_path())
            .chain(self.hierarchy.v2.as_deref())
            .map(|root| self.path.under(root))
            .filter(|dir| dir.exists())
    }

    fn v1_dir(&self, controller: Controller) -> Option<PathBuf> {
        Some(self.path.under(self.hierarchy.v1_root(controller)?)).filter(|dir| dir.exists())
    }

    fn v2(&self) -> Option<PathBuf> {
        Some(self.path.under(self.hierarchy.v2.as_deref()?)).filter(|dir| dir.exists())
    }

    /// Makes the directory under one mount; `false` when it was there.
    fn create_in(&self, root: &Path) -> Result<bool, CgroupError> {
        let dir = self.path.under(root);
        let failed = |path: &Path, source| CgroupError::Create { path: path.to_owned(), source };
        let cpuset = self.hierarchy.v1_root(Controller::Cpuset) == Some(root);
        let v2_controllers = self.hierarchy.v2.as_deref() == Some(root) && self.hierarchy.mode() == Mode::V2;
        match fs::create_dir(&dir) {
            Ok(()) if !cpuset && !v2_controllers => return Ok(true),
            Ok(()) => {}
            Err(err) if err.kind() == io::ErrorKind::AlreadyExists => return Ok(false),
            Err(err) if err.kind() == io::ErrorKind::NotFound => {
                fs::create_dir_all(&dir).map_err(|err| failed(&dir, err))?;
            }
            Err(err) => return Err(failed(&dir, err)),
        }
        let mut parent = root.to_owned();
        for name in self.path.as_path() {
            let child = parent.join(name);
            if cpuset {
                inherit_cpuset(&parent, &child)?;
            }
            if v2_controllers {
                delegate(&parent)?;
            }
            parent = child;
        }
        Ok(true)
    }

    /// Moves a process in, all its threads with it.
    ///
    /// Slow: see [`hasten_moves`]. A process that is born in the cgroup ([`Self::v2_dir_fd`]) needs no move.
    ///
    /// # Errors
    ///
    /// [`CgroupError::Write`] with the first hierarchy that refuses.
    pub(crate) fn add_pid(&self, pid: Pid) -> Result<(), CgroupError> {
        move_into(self.dirs(), pid)
    }

    /// As [`Self::add_pid`], for a process that is in the v2 directory from its birth.
    pub(crate) fn add_pid_to_v1(&self, pid: Pid) -> Result<(), CgroupError> {
        let v2 = self.v2();
        move_into(self.dirs().filter(|dir| Some(dir) != v2.as_ref()), pid)
    }

    /// A descriptor of the v2 directory, for `clone3` with `CLONE_INTO_CGROUP`; `None` where there is no v2.
    ///
    /// On a hybrid host the other hierarchies still need [`Self::add_pid_to_v1`].
    pub(crate) fn v2_dir_fd(&self) -> io::Result<Option<OwnedFd>> {
        let Some(dir) = self.v2() else { return Ok(None) };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Some(rustix::fs::open(&dir, flags, FileMode::empty())?))
    }

    /// The processes in this cgroup and below, in no order; a zombie is none.
    pub(crate) fn pids(&self) -> Result<Vec<Pid>, CgroupError> {
        let mut pids = Vec::new();
        if let Some(dir) = self.v2().or_else(|| self.dirs().next()) {
            for dir in tree(&dir)? {
                let path = dir.join("cgroup.procs");
                match read_bounded(&path, FILE_BYTES_MAX) {
                    Ok(text) => pids.extend(text.lines().filter_map(|l| Pid::from_raw(l.parse().ok()?))),
                    // Gone in between, or a threaded cgroup, whose processes its parent lists.
                    Err(err) if gone(&err) || err.raw_os_error() == Some(Errno::OPNOTSUPP.raw_os_error()) => {
                    }
                    Err(source) => return Err(CgroupError::Read { path, source }),
                }
            }
        }
        Ok(pids)
    }

    /// SIGKILL to everything in this cgroup and below, new forks included. Does not wait for the processes to be reaped.
    ///
    /// # Errors
    ///
    /// [`CgroupError::Survivors`] when, without `cgroup.kill` (Linux 5.14), processes keep appearing.
    pub(crate) fn kill_all(&self) -> Result<(), CgroupError> {
        /// One round kills all that stand still; more are for a fork that won the race.
        const ROUNDS_MAX: u32 = 64;
        if let Some(dir) = self.v2() {
            match write_file(&dir.join("cgroup.kill"), "1") {
                Ok(()) => return Ok(()),
                Err(CgroupError::Write { source, .. }) if gone(&source) => {}
                Err(err) => return Err(err),
            }
        }
        // Frozen processes cannot fork away. A freezer that fails or is missing only costs further rounds.
        let frozen = self.freeze(true).is_ok();
        for _ in 0..ROUNDS_MAX {
            let pids = self.pids()?;
            for pid in &pids {
                // A process that has just gone needs no signal.
                let _ = rustix::process::kill_process(*pid, Signal::KILL);
            }
            if frozen {
                self.freeze(false)?;
                return Ok(());
            }
            if pids.is_empty() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let path = Path::new("/").join(self.path.as_path());
        Err(CgroupError::Survivors { path, rounds: ROUNDS_MAX })
    }

    /// Stops or continues every process in this cgroup and below. Blocks until they have stopped, at most two seconds.
    ///
    /// # Errors
    ///
    /// [`CgroupError::NotFrozen`] when one does not stop in time (it is thawed again), [`CgroupError::NoController`].
    pub(crate) fn freeze(&self, frozen: bool) -> Result<(), CgroupError> {
        /// A process in an uninterruptible sleep can hold a freeze up without end.
        const WAIT_MAX: Duration = Duration::from_secs(2);
        let started = Instant::now();
        let (dir, file, states) = self.freezer()?;
        let write = |on: bool| write_file(&dir.join(file), states[usize::from(on)]);
        write(frozen)?;
        if !frozen {
            return Ok(());
        }
        let mut pause = Duration::from_micros(50);
        loop {
            if self.is_frozen()? {
                return Ok(());
            }
            if started.elapsed() > WAIT_MAX {
                write(false)?;
                return Err(CgroupError::NotFrozen { path: dir, waited: started.elapsed() });
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(20));
            // v1 can stick half-way when a process forks meanwhile; writing again makes it go on
            // (Documentation/admin-guide/cgroup-v1/freezer-subsystem.rst).
            if file == "freezer.state" {
                write(true)?;
            }
        }
    }

    /// Whether all processes are stopped.
    pub(crate) fn is_frozen(&self) -> Result<bool, CgroupError> {
        let (dir, file, _) = self.freezer()?;
        if file == "freezer.state" {
            return Ok(read_file(&dir.join(file))?.trim() == "FROZEN");
        }
        Ok(keyed(&read_file(&dir.join("cgroup.events"))?, "frozen") == Some(1))
    }

    /// The directory, the file, and what means thawed and frozen.
    fn freezer(&self) -> Result<(PathBuf, &'static str, [&'static str; 2]), CgroupError> {
        if let Some(dir) = self.v2().filter(|dir| dir.join("cgroup.freeze").exists()) {
            return Ok((dir, "cgroup.freeze", ["0", "1"]));
        }
        match self.v1_dir(Controller::Freezer) {
            Some(dir) => Ok((dir, "freezer.state", ["THAWED", "FROZEN"])),
            None => Err(CgroupError::NoController {
                field: "freeze",
                value: self.path.to_string(),
                controller: "freezer",
            }),
        }
    }

    /// Removes the cgroup and its children from every hierarchy. One that is gone is no error.
    ///
    /// Blocks up to two seconds per hierarchy while the kernel lets go of processes that have just died.
    ///
    /// # Errors
    ///
    /// [`CgroupError::Busy`] when processes stay.
    pub(crate) fn remove(&self) -> Result<(), CgroupError> {
        for dir in self.dirs().collect::<Vec<_>>() {
            let mut below = tree(&dir)?;
            below.reverse();
            for dir in below {
                remove_dir(&dir)?;
            }
        }
        Ok(())
    }

    /// Removes those parents that hold nothing any more, nearest first. For parents that are ours alone.
    #[cfg(feature = "daemon")]
    pub(crate) fn remove_empty_parents(&self) {
        let roots = self.hierarchy.v1.iter().map(|mount| mount.root.as_path());
        for root in roots.chain(self.hierarchy.v2.as_deref()) {
            for parent in self.path.as_path().ancestors().skip(1).filter(|path| !path.as_os_str().is_empty())
            {
                // A cgroup with children or processes refuses, which is what decides here.
                match fs::remove_dir(root.join(parent)) {
                    Err(err) if !gone(&err) => break,
                    _ => {}
                }
            }
        }
    }

    /// How many processes of this cgroup the kernel killed for want of memory, since its creation.
    pub(crate) fn oom_kills(&self) -> Result<u64, CgroupError> {
        match OomCounter::open(&self.hierarchy, &self.path)? {
            Some(counter) => counter.count(),
            None => Ok(0),
        }
    }

    /// Bytes of memory charged, page cache included; `None` without a memory controller.
    pub(crate) fn memory_usage(&self) -> Result<Option<u64>, CgroupError> {
        let file = match (self.v1_dir(Controller::Memory), self.v2()) {
            (Some(dir), _) => dir.join("memory.usage_in_bytes"),
            (None, Some(dir)) if dir.join("memory.current").exists() => dir.join("memory.current"),
            _ => return Ok(None),
        };
        Ok(read_file(&file)?.trim().parse().ok())
    }
}

/// Reads the count of OOM kills again and again through one descriptor, which stays readable until the cgroup is removed.
#[derive(Debug)]
pub(crate) struct OomCounter {
    file: fs::File,
    path: PathBuf,
}

impl OomCounter {
    /// `None` where the host counts no memory for this cgroup.
    pub(crate) fn open(hierarchy: &Hierarchy, path: &CgroupPath) -> Result<Option<Self>, CgroupError> {
        let file = match (hierarchy.v1_root(Controller::Memory), hierarchy.v2.as_deref()) {
            (Some(root), _) => path.under(root).join("memory.oom_control"),
            (None, Some(root)) => path.under(root).join("memory.events"),
            (None, None) => return Ok(None),
        };
        match fs::File::open(&file) {
            Ok(open) => Ok(Some(Self { file: open, path: file })),
            Err(err) if gone(&err) => Ok(None),
            Err(source) => Err(CgroupError::Read { path: file, source }),
        }
    }

    /// Kills so far. v1 counts the victim's own cgroup, v2 also those below.
    ///
    /// # Errors
    ///
    /// [`CgroupError::Read`], with `ENODEV` when the cgroup has been removed.
    pub(crate) fn count(&self) -> Result<u64, CgroupError> {
        // Both files are a few short lines.
        let mut text = [0u8; 1024];
        let len = self
            .file
            .read_at(&mut text, 0)
            .map_err(|source| CgroupError::Read { path: self.path.clone(), source })?;
        Ok(keyed(&String::from_utf8_lossy(&text[..len]), "oom_kill").unwrap_or(0))
    }
}

fn move_into(dirs: impl Iterator<Item = PathBuf>, pid: Pid) -> Result<(), CgroupError> {
    let pid = pid.as_raw_nonzero().to_string();
    for dir in dirs {
        write_file(&dir.join("cgroup.procs"), &pid)?;
    }
    Ok(())
}

/// Makes moves of processes between cgroups fast for the next moments, where v1 makes them necessary. Blocks as long as
/// a slow move would, so it belongs on a thread of its own while other work goes on.
///
/// A move takes the kernel's `cgroup_threadgroup_rwsem` for writing. The first one waits for a grace period of RCU
/// (`rcu_sync_enter`; 6 to 20 ms were measured at 250 Hz), those that follow until about another grace period later do
/// not. Moving this process to where it is changes nothing and counts as a move. On v2 alone processes are
/// born where they belong and nothing is done.
#[cfg(feature = "daemon")]
pub(crate) fn hasten_moves() {
    /// One at a time: those that come meanwhile profit from it as well.
    static BUSY: AtomicBool = AtomicBool::new(false);
    if BUSY.swap(true, Ordering::Relaxed) {
        return;
    }
    move_nowhere();
    BUSY.store(false, Ordering::Relaxed);
}

#[cfg(feature = "daemon")]
fn move_nowhere() {
    let Ok(hierarchy) = Hierarchy::of_host() else { return };
    let root = [Controller::Pids, Controller::Cpu].into_iter().find_map(|one| hierarchy.v1_root(one));
    // Looked up each time: an administrator may move us.
    let Some(own) = root.and_then(own_v1_path) else { return };
    // Only speed is lost.
    let _ = write_file(&own.join("cgroup.procs"), "0");
}

/// Where this process is below the v1 mount at `root`, whose last component names the controllers (cgroups(7)).
#[cfg(feature = "daemon")]
fn own_v1_path(root: &Path) -> Option<PathBuf> {
    let controllers = root.file_name()?.to_str()?;
    let text = read_bounded(Path::new("/proc/self/cgroup"), FILE_BYTES_MAX).ok()?;
    let own = text.lines().find_map(|line| {
        let (_, rest) = line.split_once(':')?;
        let (names, path) = rest.split_once(':')?;
        (names == controllers).then(|| path.to_owned())
    })?;
    Some(root.join(own.trim_start_matches('/')))
}

/// Copies the parent's CPUs and memory nodes into a v1 cpuset that has none.
fn inherit_cpuset(parent: &Path, child: &Path) -> Result<(), CgroupError> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let path = child.join(file);
        if read_file(&path)?.trim().is_empty() {
            write_file(&path, read_file(&parent.join(file))?.trim())?;
        }
    }
    Ok(())
}

/// Hands every controller that a v2 cgroup has down to its children.
fn delegate(parent: &Path) -> Result<(), CgroupError> {
    let have = read_file(&parent.join("cgroup.controllers"))?;
    let control = parent.join("cgroup.subtree_control");
    let given = read_file(&control)?;
    let missing: Vec<String> = have
        .split_whitespace()
        .filter(|name| !given.split_whitespace().any(|one| one == *name))
        .map(|name| format!("+{name}"))
        .collect();
    if missing.is_empty() || write_file(&control, &missing.join(" ")).is_ok() {
        return Ok(());
    }
    // All or nothing; one controller that cannot be handed down (cpu with realtime processes about, say) must not keep
    // the others back. One that a limit needs later fails there, with the limit's name.
    for one in missing {
        let _ = write_file(&control, &one);
    }
    Ok(())
}

/// A directory and all below it, parents first.
fn tree(dir: &Path) -> Result<Vec<PathBuf>, CgroupError> {
    /// A container may make cgroups below its own; this many is far above the kernel's own default of use.
    const DIRS_MAX: usize = 100_000;
    let mut all = vec![dir.to_owned()];
    let mut next = 0;
    while next < all.len() && all.len() < DIRS_MAX {
        let read = |source| CgroupError::Read { path: all[next].clone(), source };
        match fs::read_dir(&all[next]) {
            Ok(entries) => {
                let mut below = Vec::new();
                for entry in entries {
                    let entry = entry.map_err(read)?;
                    if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                        below.push(entry.path());
                    }
                }
                all.extend(below);
            }
            Err(err) if gone(&err) => {}
            Err(err) => return Err(read(err)),
        }
        next += 1;
    }
    Ok(all)
}

fn remove_dir(dir: &Path) -> Result<(), CgroupError> {
    /// The kernel takes its time to let go of the last task; longer than this is no longer that.
    const WAIT_MAX: Duration = Duration::from_secs(2);
    let started = Instant::now();
    let mut pause = Duration::from_micros(100);
    loop {
        match fs::remove_dir(dir) {
            Ok(()) => return Ok(()),
            Err(err) if gone(&err) => return Ok(()),
            Err(err) if err.raw_os_error() == Some(Errno::BUSY.raw_os_error()) => {
                if started.elapsed() > WAIT_MAX {
                    return Err(CgroupError::Busy { path: dir.to_owned(), waited: started.elapsed() });
                }
                std::thread::sleep(pause);
                pause = (pause * 2).min(Duration::from_millis(50));
            }
            Err(source) => return Err(CgroupError::Remove { path: dir.to_owned(), source }),
        }
    }
}

fn gone(err: &io::Error) -> bool {
    err.kind() == io::ErrorKind::NotFound || err.raw_os_error() == Some(Errno::NODEV.raw_os_error())
}

fn read_bounded(path: &Path, bytes_max: u64) -> io::Result<String> {
    use io::Read;
    // A page holds nearly every cgroup file, and then one read(2) does instead of one for each doubling.
    let mut text = String::with_capacity(4096);
    fs::File::open(path)?.take(bytes_max).read_to_string(&mut text)?;
    Ok(text)
}

fn read_file(path: &Path) -> Result<String, CgroupError> {
    read_bounded(path, FILE_BYTES_MAX).map_err(|source| CgroupError::Read { path: path.to_owned(), source })
}

/// One write(2): the kernel parses each on its own.
fn write_file(path: &Path, value: &str) -> Result<(), CgroupError> {
    let written =
        fs::OpenOptions::new().write(true).open(path).and_then(|mut file| file.write(value.as_bytes()));
    match written {
        Ok(_) => Ok(()),
        Err(source) => Err(CgroupError::Write { path: path.to_owned(), value: value.to_owned(), source }),
    }
}

/// The number after `key` in a file of `key number` lines.
fn keyed(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(' ')?;
        if name == key { value.trim().parse().ok() } else { None }
    })
}

/// A name that stays in the directory it is used in.
fn is_bare(name: &str) -> bool {
    !name.is_empty()
        && name != "."
        && name != ".."
        && !name.contains('/')
        && !name.contains('\0')
        && Path::new(name).file_name() == Some(OsStr::new(name))
}

#[cfg(test)]
mod tests;
