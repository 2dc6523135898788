//! Which cgroup a container gets: OCI's `linux.cgroupsPath` read for one of three managers.
//!
//! What a cgroup can do is in `sys/cgroup`; this is only the choice of its path.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::sys::cgroup::{CgroupPath, DEFAULT_SLICE, PathError};

/// Who makes cgroups (`--cgroup-manager`, `--systemd-cgroup`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Manager {
    /// We do, by mkdir.
    #[default]
    Cgroupfs,
    /// systemd does, as a transient scope; the path is in its form.
    Systemd,
    /// Nobody: the container stays in the caller's cgroup.
    Disabled,
}

/// Why a container's cgroup cannot be chosen.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CgroupsPathError {
    #[error("read linux.cgroupsPath")]
    Path(#[from] PathError),
    #[error("linux.cgroupsPath {0:?} is not of the form slice:prefix:name, which the systemd manager needs")]
    NotSystemd(PathBuf),
    #[error("cgroup manager {0:?} is none of cgroupfs, systemd and disabled")]
    Manager(String),
}

impl FromStr for Manager {
    type Err = CgroupsPathError;
    fn from_str(text: &str) -> Result<Self, CgroupsPathError> {
        match text {
            "cgroupfs" => Ok(Self::Cgroupfs),
            "systemd" => Ok(Self::Systemd),
            "disabled" => Ok(Self::Disabled),
            other => Err(CgroupsPathError::Manager(other.to_owned())),
        }
    }
}

/// A chosen cgroup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Chosen {
    pub(crate) path: CgroupPath,
    /// Whom systemd makes it for; `None` where we do.
    pub(crate) unit: Option<Unit>,
}

/// A container's unit: a scope, or a slice where the path says so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unit {
    pub(crate) name: String,
    pub(crate) slice: String,
}

/// The cgroup of container `id`; `None` when it gets none of its own.
///
/// Without a path it is `/brig/<id>` (`system.slice` for systemd). A path of the form `slice:prefix:name` is understood
/// under cgroupfs too: no kubelet means a directory with two colons in its name.
pub(crate) fn choose(
    cgroups_path: Option<&Path>,
    manager: Manager,
    id: &str,
) -> Result<Option<Chosen>, CgroupsPathError> {
    let given = cgroups_path.filter(|path| !path.as_os_str().is_empty());
    let parts = match (manager, given) {
        (Manager::Disabled, _) => return Ok(None),
        (Manager::Cgroupfs, None) => {
            let path = CgroupPath::new(&Path::new("/brig").join(id))?;
            return Ok(Some(Chosen { path, unit: None }));
        }
        (Manager::Systemd, None) => ["", "brig", id],
        (_, Some(path)) => match systemd_parts(path) {
            Some(parts) => parts,
            None if manager == Manager::Systemd => return Err(CgroupsPathError::NotSystemd(path.to_owned())),
            None => return Ok(Some(Chosen { path: CgroupPath::new(path)?, unit: None })),
        },
    };
    let [slice, prefix, name] = parts;
    let path = CgroupPath::from_systemd(slice, prefix, name)?;
    let unit = (manager == Manager::Systemd).then(|| Unit {
        name: path.name(),
        slice: if slice.is_empty() { DEFAULT_SLICE } else { slice }.to_owned(),
    });
    Ok(Some(Chosen { path, unit }))
}

fn systemd_parts(path: &Path) -> Option<[&str; 3]> {
    let text = path.to_str().filter(|text| !text.starts_with('/'))?;
    let mut parts = text.split(':');
    let three = [parts.next()?, parts.next()?, parts.next()?];
    if parts.next().is_none() { Some(three) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_a_path_leads_to_one_cgroup_or_a_reason() {
        for (path, manager, expected) in [
            (None, Manager::Cgroupfs, Ok(Some("/brig/c1"))),
            (Some(""), Manager::Cgroupfs, Ok(Some("/brig/c1"))),
            (None, Manager::Systemd, Ok(Some("/system.slice/brig-c1.scope"))),
            (Some("/kubepods/pod1/c1"), Manager::Cgroupfs, Ok(Some("/kubepods/pod1/c1"))),
            (Some("a-b.slice:brig:c1"), Manager::Cgroupfs, Ok(Some("/a.slice/a-b.slice/brig-c1.scope"))),
            (Some("a-b.slice:brig:c1"), Manager::Systemd, Ok(Some("/a.slice/a-b.slice/brig-c1.scope"))),
            (Some("/kubepods/pod1/c1"), Manager::Disabled, Ok(None)),
            (
                Some("/kubepods/c1"),
                Manager::Systemd,
                Err(
                    "linux.cgroupsPath \"/kubepods/c1\" is not of the form slice:prefix:name, which the systemd manager needs",
                ),
            ),
            (Some("/a/../b"), Manager::Cgroupfs, Err("read linux.cgroupsPath")),
        ] {
            let got = choose(path.map(Path::new), manager, "c1");
            let got =
                got.map(|chosen| chosen.map(|chosen| chosen.path.to_string())).map_err(|err| err.to_string());
            let expected = expected.map(|path| path.map(str::to_owned)).map_err(str::to_owned);
            assert_eq!(got, expected, "{path:?} {manager:?}");
        }
    }

    #[test]
    fn a_unit_is_named_only_where_systemd_makes_it() {
        let unit =
            |path: Option<&str>, manager| choose(path.map(Path::new), manager, "c1").unwrap().unwrap().unit;
        let expected = |name: &str, slice: &str| Some(Unit { name: name.into(), slice: slice.into() });
        assert_eq!(unit(None, Manager::Systemd), expected("brig-c1.scope", "system.slice"));
        assert_eq!(unit(Some("a-b.slice:brig:c1"), Manager::Systemd), expected("brig-c1.scope", "a-b.slice"));
        assert_eq!(unit(Some("a-b.slice:brig:c1"), Manager::Cgroupfs), None);
    }
}
