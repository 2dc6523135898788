//! What is kept about a container between two verbs.
//!
//! ```text
//! <root>/<id>/            made by create (exclusively), locked by flock(2) while a verb changes it
//!   config.json           the bundle's, as it was at create
//!   state.json            the Record below, replaced by write and rename
//!   start                 fifo: one byte written by `start` releases the init
//!   outcome               fifo: the init writes why it could not execute the program; it closes on success
//! ```
//!
//! ```text
//!            create ──▶ creating ──▶ created ──start──▶ running ◀──pause/resume──▶ paused
//!                                       │                  │                          │
//!                                       └──────────────────┴── process gone ──▶ stopped ──delete──▶ (nothing)
//! ```
//!
//! The status is never stored, except "creating": it follows from whether the process lives, whether the fifo `start`
//! is still there, and the freezer. A process is named by pid and start time together, so a recycled pid is not it.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};

use super::cgroup::Manager;
use super::error::{Attempt, Error};
use super::resources;
use super::spec::{self, Config, StateDocument};

/// runc's limit on an id is the file name's.
const ID_BYTES_MAX: usize = 255;

/// The stored form. A new field needs `#[serde(default)]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Record {
    pub(super) oci_version: String,
    pub(super) id: String,
    pub(super) process: Identity,
    pub(super) bundle: PathBuf,
    pub(super) rootfs: PathBuf,
    pub(super) created: String,
    #[serde(default)]
    pub(super) annotations: BTreeMap<String, String>,
    /// cgroupfs, systemd or disabled.
    pub(super) manager: String,
    #[serde(default)]
    pub(super) creating: bool,
    #[serde(default)]
    pub(super) owner_uid: u32,
}

/// A process that is not confused with a later one of the same pid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Identity {
    pub(super) pid: i32,
    /// Clock ticks after boot: field 22 of /proc/PID/stat (proc_pid_stat(5)).
    pub(super) start_ticks: u64,
}

impl Identity {
    pub(super) fn of(pid: i32) -> Result<Self, Error> {
        let (start_ticks, _) = stat(pid).attempt(|| format!("read /proc/{pid}/stat"))?;
        Ok(Self { pid, start_ticks })
    }

    /// A descriptor of this very process, or `None` if it has ended (a zombie has).
    pub(super) fn open(&self) -> Option<OwnedFd> {
        let pidfd = pidfd_open(Pid::from_raw(self.pid)?, PidfdFlags::empty()).ok()?;
        // The pidfd is held, so the pid cannot be recycled between the two calls.
        let (start_ticks, state) = stat(self.pid).ok()?;
        (start_ticks == self.start_ticks && !matches!(state, b'Z' | b'X')).then_some(pidfd)
    }
}

/// Start time and state letter of a process.
fn stat(pid: i32) -> io::Result<(u64, u8)> {
    let text = fs::read(format!("/proc/{pid}/stat"))?;
    // The command in parentheses may hold anything, even parentheses.
    let malformed = || io::Error::new(io::ErrorKind::InvalidData, "unexpected form of /proc/PID/stat");
    let end = text.iter().rposition(|b| *b == b')').ok_or_else(malformed)?;
    let rest = std::str::from_utf8(&text[end + 1..]).map_err(|_| malformed())?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next().and_then(|s| s.bytes().next()).ok_or_else(malformed)?;
    // Field 3 was the state; 22 is 18 fields further on from field 4.
    let start = fields.nth(18).and_then(|s| s.parse().ok()).ok_or_else(malformed)?;
    Ok((start, state))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    Creating,
    Created,
    Running,
    Paused,
    Stopped,
}

impl Status {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        }
    }
}

/// A container's directory, with the lock on it.
#[derive(Debug)]
pub(super) struct Directory {
    pub(super) path: PathBuf,
    _lock: OwnedFd,
}

/// Ids become file names, cgroup names and host names of log lines.
pub(super) fn check_id(id: &str) -> Result<(), Error> {
    let fine = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'+' | b'-' | b'.');
    if id.is_empty() || id == "." || id == ".." || id.len() > ID_BYTES_MAX || !id.bytes().all(fine) {
        return Err(Error::invalid(
            "the container id",
            id,
            format!("ids are 1 to {ID_BYTES_MAX} letters, digits, '_', '+', '-' and '.'"),
        ));
    }
    Ok(())
}

impl Directory {
    /// Makes the directory of a new container. Two creators of one id: the later gets [`Error::Exists`].
    pub(super) fn reserve(root: &Path, id: &str) -> Result<Self, Error> {
        check_id(id)?;
        let path = root.join(id);
        match fs::create_dir(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::create_dir_all(root).attempt(|| format!("make the directory {}", root.display()))?;
                fs::create_dir(&path)
            }
            result => result,
        }
        .map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists => Error::Exists(id.to_owned()),
            _ => Error::Os { attempted: format!("make the directory {}", path.display()), source },
        })?;
        rustix::fs::chmod(&path, Mode::from_raw_mode(0o711))
            .attempt(|| format!("chmod {}", path.display()))?;
        Self::lock(path, id)
    }

    /// Locks the directory of an existing container; waits for a verb that is under way.
    pub(super) fn open(root: &Path, id: &str) -> Result<Self, Error> {
        check_id(id)?;
        Self::lock(root.join(id), id)
    }

    fn lock(path: PathBuf, id: &str) -> Result<Self, Error> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = match rustix::fs::open(&path, flags, Mode::empty()) {
            Err(rustix::io::Errno::NOENT) => return Err(Error::Missing(id.to_owned())),
            result => result.attempt(|| format!("open {}", path.display()))?,
        };
        rustix::io::retry_on_intr(|| flock(&fd, FlockOperation::LockExclusive))
            .attempt(|| format!("lock {}", path.display()))?;
        Ok(Self { path, _lock: fd })
    }

    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Replaces state.json at once.
    pub(super) fn save(&self, record: &Record) -> Result<(), Error> {
        let text = serde_json::to_vec(record).expect("a record has string keys only");
        let (new, path) = (self.file("state.json.new"), self.file("state.json"));
        fs::write(&new, text)
            .and_then(|()| fs::rename(&new, &path))
            .attempt(|| format!("write {}", path.display()))
    }

    /// Removes the directory and the files we know of.
    pub(super) fn remove(&self) -> Result<(), Error> {
        fs::remove_dir_all(&self.path).attempt(|| format!("remove {}", self.path.display()))
    }
}

/// A container that `create` has made.
#[derive(Debug)]
pub(super) struct Container {
    pub(super) path: PathBuf,
    pub(super) record: Record,
}

impl Container {
    /// Reads without a lock: state.json is always whole.
    pub(super) fn load(root: &Path, id: &str) -> Result<Self, Error> {
        check_id(id)?;
        let path = root.join(id);
        let bytes = match fs::read(path.join("state.json")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Error::Missing(id.to_owned()));
            }
            result => result.attempt(|| format!("read {}/state.json", path.display()))?,
        };
        let record = spec::parse(&bytes, format!("{}/state.json", path.display()))?;
        Ok(Self { path, record })
    }

    /// The config.json of create's time.
    pub(super) fn config(&self) -> Result<Config, Error> {
        spec::parse(&spec::read_bounded(&self.path.join("config.json"))?, "config.json")
    }

    pub(super) fn status(&self) -> Status {
        if self.record.process.open().is_none() {
            return Status::Stopped;
        }
        if self.record.creating {
            return Status::Creating;
        }
        if self.path.join("start").exists() {
            return Status::Created;
        }
        let frozen = self.group().ok().flatten().is_some_and(|cgroup| cgroup.is_frozen());
        if frozen { Status::Paused } else { Status::Running }
    }

    pub(super) fn manager(&self) -> Manager {
        // Written by us from a Manager; a state of unknown origin gets the default.
        self.record.manager.parse().unwrap_or_default()
    }

    /// The container's cgroups, if they exist.
    pub(super) fn group(&self) -> Result<Option<resources::Group>, Error> {
        resources::open(self.manager(), &self.record.id, &self.path)
    }

    /// A descriptor of the init, or [`Error::NotRunning`].
    pub(super) fn init(&self) -> Result<OwnedFd, Error> {
        self.record.process.open().ok_or_else(|| Error::NotRunning(self.record.id.clone()))
    }

    pub(super) fn document<'a>(&'a self, status: &'a str) -> StateDocument<'a> {
        StateDocument {
            oci_version: &self.record.oci_version,
            id: &self.record.id,
            pid: (status != "stopped").then_some(self.record.process.pid),
            status,
            bundle: &self.record.bundle,
            rootfs: Some(&self.record.rootfs),
            created: Some(&self.record.created),
            annotations: &self.record.annotations,
        }
    }
}

/// `state`: prints what is known.
pub(super) fn print(root: &Path, id: &str) -> Result<(), Error> {
    let container = Container::load(root, id)?;
    let status = container.status();
    let mut value = serde_json::to_value(container.document(status.name())).expect("string keys only");
    if status == Status::Stopped {
        // runc prints 0, and engines parse it.
        value["pid"] = 0.into();
    }
    println!("{value:#}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_its_pid_and_its_start() {
        let me = Identity::of(std::process::id() as i32).unwrap();
        assert!(me.open().is_some());
        assert!(Identity { start_ticks: me.start_ticks + 1, ..me }.open().is_none());
    }

    #[test]
    fn an_id_that_could_leave_the_root_is_refused() {
        for bad in ["", ".", "..", "a/b", "../x", "a b", "ü", &"x".repeat(256)] {
            assert!(check_id(bad).is_err(), "{bad}");
        }
        assert!(check_id("pod_1-a.b+c").is_ok());
    }

    #[test]
    fn an_id_is_reserved_once() {
        let root = tempfile::tempdir().unwrap();
        let first = Directory::reserve(&root.path().join("deep"), "c1").unwrap();
        assert!(
            matches!(Directory::reserve(&root.path().join("deep"), "c1"), Err(Error::Exists(id)) if id == "c1")
        );
        first.remove().unwrap();
        assert!(matches!(Directory::open(&root.path().join("deep"), "c1"), Err(Error::Missing(_))));
    }
}
