//! The container's control groups: where they are, and the few things verbs do with them.

use std::path::Path;

use oci_spec::runtime::LinuxResources;
use rustix::process::Pid;
use serde::{Deserialize, Serialize};

use super::error::Error;
use super::log;
use super::spec::{self, Config};
use crate::sys::cgroup::{Cgroup, CgroupError, CgroupPath, Hierarchy};

/// Who makes the cgroups, and how `linux.cgroupsPath` is to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Manager {
    /// A path below each hierarchy.
    Cgroupfs,
    /// `slice:prefix:name`; placed where systemd would place it.
    Systemd,
    /// The container stays in its creator's cgroups.
    Disabled,
}

/// The cgroups of one container.
#[derive(Debug)]
pub(super) struct Group(pub(super) Cgroup);

fn failed(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::Cgroup(Box::new(error))
}

fn path(cgroups_path: Option<&Path>, id: &str, manager: Manager) -> Result<Option<CgroupPath>, Error> {
    let given = cgroups_path.filter(|path| !path.as_os_str().is_empty());
    let path = match manager {
        Manager::Disabled => return Ok(None),
        Manager::Cgroupfs => CgroupPath::new(given.unwrap_or(Path::new(id))).map_err(failed)?,
        Manager::Systemd => {
            let text = given.map_or_else(|| format!(":brig:{id}"), |path| path.to_string_lossy().into_owned());
            let parts: Vec<_> = text.split(':').collect();
            let [slice, prefix, name] = parts[..] else {
                return Err(Error::invalid(
                    "linux.cgroupsPath",
                    &text,
                    "with --systemd-cgroup it must have the form slice:prefix:name",
                ));
            };
            CgroupPath::from_systemd(slice, prefix, name).map_err(failed)?
        }
    };
    Ok(Some(path))
}

/// Makes the container's cgroups and sets its limits. Undone by [`Group::remove`].
pub(super) fn create(config: &Config, id: &str, manager: Manager) -> Result<Option<Group>, Error> {
    let Some(path) = path(config.linux.cgroups_path.as_deref(), id, manager)? else { return Ok(None) };
    let hierarchy = Hierarchy::detect().map_err(failed)?;
    let group = Group(Cgroup::create(&hierarchy, &path).map_err(failed)?);
    let resources = config.linux.resources.clone().unwrap_or_default();
    if let Err(error) = group.apply(&resources) {
        // The first error is the one to tell.
        let _ = group.remove();
        return Err(error);
    }
    Ok(Some(group))
}

/// The cgroups of an existing container, if they still exist.
pub(super) fn open(manager: Manager, id: &str, directory: &Path) -> Result<Option<Group>, Error> {
    /// The one field that is needed; a whole config may hold a large seccomp profile.
    #[derive(Deserialize, Default)]
    #[serde(rename_all = "camelCase")]
    struct Linux {
        cgroups_path: Option<std::path::PathBuf>,
    }
    #[derive(Deserialize)]
    struct Only {
        #[serde(default)]
        linux: Linux,
    }
    let only: Only = spec::parse(&spec::read_bounded(&directory.join("config.json"))?, "config.json")?;
    let Some(path) = path(only.linux.cgroups_path.as_deref(), id, manager)? else { return Ok(None) };
    let hierarchy = Hierarchy::detect().map_err(failed)?;
    match Cgroup::open(&hierarchy, &path) {
        Ok(cgroup) => Ok(Some(Group(cgroup))),
        Err(CgroupError::Missing { .. }) => Ok(None),
        Err(error) => Err(failed(error)),
    }
}

impl Group {
    pub(super) fn apply(&self, resources: &LinuxResources) -> Result<(), Error> {
        for warning in self.0.apply(resources).map_err(failed)? {
            log::warn(&warning.to_string());
        }
        Ok(())
    }
    pub(super) fn add(&self, pid: i32) -> Result<(), Error> {
        let pid = Pid::from_raw(pid).expect("pids of children are positive");
        self.0.add_pid(pid).map_err(failed)
    }
    pub(super) fn pids(&self) -> Result<Vec<i32>, Error> {
        Ok(self.0.pids().map_err(failed)?.into_iter().map(|pid| pid.as_raw_nonzero().get()).collect())
    }
    pub(super) fn kill_all(&self) -> Result<(), Error> {
        self.0.kill_all().map_err(failed)
    }
    pub(super) fn freeze(&self, frozen: bool) -> Result<(), Error> {
        self.0.freeze(frozen).map_err(failed)
    }
    pub(super) fn is_frozen(&self) -> bool {
        // Without a freezer nothing can be frozen.
        self.0.is_frozen().unwrap_or(false)
    }
    pub(super) fn remove(&self) -> Result<(), Error> {
        self.0.remove().map_err(failed)
    }
}
