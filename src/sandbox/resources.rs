//! The container's control groups: where they are, and the few things verbs do with them.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxResources};
use rustix::process::Pid;
use serde::Deserialize;

use super::cgroup::{Chosen, Manager, Unit, choose};
use super::error::Error;
use super::log;
use super::spec::{self, Config};
use crate::sys::cgroup::{Cgroup, CgroupError, Hierarchy, Mode};
use crate::sys::namespace::Kinds;
use crate::sys::process::{Fork, Forked, fork};
use crate::sys::systemd::{self, Started, Systemd, Value};

/// How a [`Manager`] is written in state.json and on the command line.
pub(super) fn manager_name(manager: Manager) -> &'static str {
    match manager {
        Manager::Cgroupfs => "cgroupfs",
        Manager::Systemd => "systemd",
        Manager::Disabled => "disabled",
    }
}

/// Whether a process was made inside its v2 cgroup.
#[derive(Debug, Clone, Copy)]
pub(super) enum Birth {
    Inside,
    Outside,
}

/// The cgroups of one container.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) cgroup: Cgroup,
    /// The unit that systemd makes of it.
    unit: Option<Unit>,
    /// What a unit that is still to be made shall be limited by: systemd makes none without a process.
    to_apply: Option<LinuxResources>,
}

fn failed(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::Cgroup(Box::new(error))
}

/// Makes the container's cgroups and sets its limits; a systemd unit is made when its first process is taken in. Undone
/// by [`Group::remove`].
pub(super) fn create(config: &Config, id: &str, manager: Manager) -> Result<Option<Group>, Error> {
    let Some(Chosen { path, unit }) =
        choose(config.linux.cgroups_path.as_deref(), manager, id).map_err(failed)?
    else {
        return Ok(None);
    };
    let hierarchy = Hierarchy::detect().map_err(failed)?;
    let mut resources = config.linux.resources.clone().unwrap_or_default();
    let mut devices = resources.devices().clone().unwrap_or_default();
    devices.extend(default_devices());
    resources.set_devices(Some(devices));
    if unit.is_some() {
        if hierarchy.mode() != Mode::V2 {
            return Err(Error::Unsupported(
                "the systemd cgroup manager on cgroup v1 (boot with systemd.unified_cgroup_hierarchy=1)"
                    .to_owned(),
            ));
        }
        let cgroup = Cgroup::named(&hierarchy, &path);
        return Ok(Some(Group { cgroup, unit, to_apply: Some(resources) }));
    }
    let cgroup = Cgroup::create(&hierarchy, &path).map_err(failed)?;
    let group = Group { cgroup, unit: None, to_apply: None };
    if let Err(error) = group.apply(&resources) {
        // The first error is the one to tell.
        let _ = group.remove();
        return Err(error);
    }
    Ok(Some(group))
}

/// What every container may use, whatever its config says: the default devices, terminals, and making nodes, which
/// gives no access by itself. Without any rule in the config all else is forbidden (GHSA-g54h-m393-cpwq).
fn default_devices() -> Vec<LinuxDeviceCgroup> {
    let rule = |kind: &str, major: i64, minor: i64, access: &str| {
        serde_json::from_value(serde_json::json!({
            "allow": true, "type": kind, "major": major, "minor": minor, "access": access,
        }))
        .expect("a rule in the form of the runtime specification")
    };
    let mut rules = vec![rule("c", -1, -1, "m"), rule("b", -1, -1, "m")];
    // null, zero, full, random, urandom; tty, console, ptmx; every pts.
    for (major, minor) in [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2), (136, -1)] {
        rules.push(rule("c", major, minor, "rwm"));
    }
    rules
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
    let Some(Chosen { path, unit }) =
        choose(only.linux.cgroups_path.as_deref(), manager, id).map_err(failed)?
    else {
        return Ok(None);
    };
    let hierarchy = Hierarchy::detect().map_err(failed)?;
    if unit.is_some() {
        // systemd removes the cgroup as soon as it is empty; the unit may still be known to it.
        return Ok(Some(Group { cgroup: Cgroup::named(&hierarchy, &path), unit, to_apply: None }));
    }
    match Cgroup::open(&hierarchy, &path) {
        Ok(cgroup) => Ok(Some(Group { cgroup, unit: None, to_apply: None })),
        Err(CgroupError::Missing { .. }) => Ok(None),
        Err(error) => Err(failed(error)),
    }
}

impl Group {
    /// Sets limits, all or none. systemd is told them too, and rounds what it writes, so ours are written last.
    pub(super) fn apply(&self, resources: &LinuxResources) -> Result<(), Error> {
        let warnings = self.cgroup.apply(resources).map_err(failed)?;
        if let Some(unit) = &self.unit {
            let properties = systemd::of_resources(resources);
            if !properties.is_empty() {
                let mut systemd = Systemd::connect().map_err(failed)?;
                systemd.set_properties(&unit.name, &properties).map_err(failed)?;
                self.cgroup.apply(resources).map_err(failed)?;
            }
        }
        for warning in warnings {
            log::warn(&warning.0);
        }
        Ok(())
    }

    /// Has systemd make the unit around the container's first process.
    fn start(&self, unit: &Unit, limits: &LinuxResources, pid: i32) -> Result<(), Error> {
        let scope = !unit.name.ends_with(".slice");
        let mut properties = vec![
            ("Description", Value::Text(format!("container {}", unit.name.trim_end_matches(".scope")))),
            // Else the shutdown of the machine waits for it, and its start for basic.target.
            ("DefaultDependencies", Value::Bool(false)),
            // One whose process the OOM killer took is forgotten like any other.
            ("CollectMode", Value::Text("inactive-or-failed".to_owned())),
            ("CPUAccounting", Value::Bool(true)),
            ("IOAccounting", Value::Bool(true)),
            ("MemoryAccounting", Value::Bool(true)),
            ("TasksAccounting", Value::Bool(true)),
        ];
        if scope {
            // What lies inside is the container's and not systemd's, which then keeps its hands off a process that is
            // killed for want of memory while others live (OOMPolicy=continue).
            properties.push(("Delegate", Value::Bool(true)));
            properties.push(("Slice", Value::Text(unit.slice.clone())));
            properties.push(("PIDs", Value::U32s(vec![pid.unsigned_abs()])));
        } else {
            properties.push(("Wants", Value::Texts(vec![unit.slice.clone()])));
        }
        properties.extend(systemd::of_resources(limits));
        let mut systemd = Systemd::connect().map_err(failed)?;
        if systemd.start_transient(&unit.name, &properties).map_err(failed)? == Started::Already {
            // Left over from a container of the same id that could not be deleted; its processes are none of ours.
            systemd.stop(&unit.name).map_err(failed)?;
            systemd.start_transient(&unit.name, &properties).map_err(failed)?;
        }
        if !scope {
            self.add(pid)?;
        }
        for warning in self.cgroup.apply(limits).map_err(failed)? {
            log::warn(&warning.0);
        }
        Ok(())
    }

    pub(super) fn add(&self, pid: i32) -> Result<(), Error> {
        let pid = Pid::from_raw(pid).expect("pids of children are positive");
        self.cgroup.add_pid(pid).map_err(failed)
    }

    /// Forks a child that is born in the v2 cgroup, which spares the slow move, and says whether it was.
    ///
    /// Where it cannot be born there, for a limit of processes that counts only births say, it still may be moved in.
    pub(super) fn fork(group: Option<&Self>, new: Kinds) -> io::Result<(Forked, Birth)> {
        if let Some(nursery) = group.and_then(|group| group.cgroup.v2_dir_fd().ok().flatten()) {
            let request = Fork { new, cgroup: Some(nursery.as_fd()), ..Fork::default() };
            if let Ok(forked) = fork(&request) {
                return Ok((forked, Birth::Inside));
            }
        }
        Ok((fork(&Fork { new, ..Fork::default() })?, Birth::Outside))
    }

    /// Moves a child to where it was not born.
    pub(super) fn take_in(&self, pid: i32, birth: Birth) -> Result<(), Error> {
        if let (Some(unit), Some(limits)) = (&self.unit, &self.to_apply) {
            return self.start(unit, limits, pid);
        }
        match birth {
            Birth::Outside => self.add(pid),
            Birth::Inside => {
                let pid = Pid::from_raw(pid).expect("pids of children are positive");
                self.cgroup.add_pid_to_v1(pid).map_err(failed)
            }
        }
    }

    pub(super) fn pids(&self) -> Result<Vec<i32>, Error> {
        Ok(self.cgroup.pids().map_err(failed)?.into_iter().map(|pid| pid.as_raw_nonzero().get()).collect())
    }
    pub(super) fn kill_all(&self) -> Result<(), Error> {
        self.cgroup.kill_all().map_err(failed)
    }
    pub(super) fn freeze(&self, frozen: bool) -> Result<(), Error> {
        self.cgroup.freeze(frozen).map_err(failed)
    }
    pub(super) fn is_frozen(&self) -> bool {
        // Without a freezer nothing can be frozen.
        self.cgroup.is_frozen().unwrap_or(false)
    }
    pub(super) fn remove(&self) -> Result<(), Error> {
        // Where systemd does not run there is nobody to have made a unit: a delete that tries every manager comes here.
        if let Some(unit) = self.unit.as_ref().filter(|_| systemd::is_running()) {
            Systemd::connect().and_then(|mut systemd| systemd.stop(&unit.name)).map_err(failed)?;
        }
        self.cgroup.remove().map_err(failed)
    }
}
