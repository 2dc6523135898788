//! Paths of cgroups, safe to join to a mount.

use std::fmt;
use std::path::{Component, Path, PathBuf};

/// Why a text is not a cgroup path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PathError {
    #[error("cgroup path {0:?} names no cgroup")]
    Empty(PathBuf),
    #[error("cgroup path {0:?} contains \"..\"")]
    Parent(PathBuf),
    #[error("cgroup path {0:?} contains a NUL or newline")]
    Control(PathBuf),
    #[error("cgroup path {path:?} is longer than {max} bytes")]
    TooLong { path: PathBuf, max: usize },
    #[error("systemd slice {0:?} is not a name ending in \".slice\" with single dashes")]
    Slice(String),
    #[error("systemd unit {0:?} is not a plain name")]
    Unit(String),
}

/// A cgroup's place below every hierarchy's mount: at least one name, none of them `..`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct CgroupPath(PathBuf);

/// Leaves room for the mount point and the file name within PATH_MAX.
const PATH_BYTES_MAX: usize = 3072;
/// NAME_MAX.
const NAME_BYTES_MAX: usize = 255;
/// Where systemd puts units that name no slice.
pub(crate) const DEFAULT_SLICE: &str = "system.slice";

impl CgroupPath {
    /// From an absolute or relative path; both start at the hierarchy's mount.
    pub(crate) fn new(path: &Path) -> Result<Self, PathError> {
        let mut clean = PathBuf::new();
        let bytes = path.as_os_str().as_encoded_bytes();
        if bytes.contains(&0) || bytes.contains(&b'\n') {
            return Err(PathError::Control(path.to_owned()));
        }
        for component in path.components() {
            match component {
                Component::Normal(name) if name.len() > NAME_BYTES_MAX => {
                    return Err(PathError::TooLong { path: path.to_owned(), max: NAME_BYTES_MAX });
                }
                Component::Normal(name) => clean.push(name),
                Component::ParentDir => return Err(PathError::Parent(path.to_owned())),
                Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
            }
        }
        if clean.as_os_str().is_empty() {
            return Err(PathError::Empty(path.to_owned()));
        }
        if clean.as_os_str().len() > PATH_BYTES_MAX {
            return Err(PathError::TooLong { path: path.to_owned(), max: PATH_BYTES_MAX });
        }
        Ok(Self(clean))
    }

    /// From the systemd form `slice:prefix:name`, where systemd itself would put it: `a-b.slice` lies in `a.slice`, and the unit
    /// is `prefix-name.scope` (or `name`, when that is a slice). An empty slice is `system.slice`, `-.slice` the root.
    pub(crate) fn from_systemd(slice: &str, prefix: &str, name: &str) -> Result<Self, PathError> {
        let mut path = Self::slice_dirs(if slice.is_empty() { DEFAULT_SLICE } else { slice })?;
        let unit = if name.ends_with(".slice") {
            name.to_owned()
        } else if prefix.is_empty() {
            format!("{name}.scope")
        } else {
            format!("{prefix}-{name}.scope")
        };
        if name.is_empty() || unit.contains('/') || unit.starts_with('.') {
            return Err(PathError::Unit(unit));
        }
        path.push(unit);
        Self::new(&path)
    }

    /// A pod's cgroup from the kubelet's `cgroup_parent`: a path, or a slice by its name (or the path of nested ones).
    #[cfg(test)]
    pub(crate) fn from_parent(parent: &str) -> Result<Self, PathError> {
        if parent.ends_with(".slice") {
            return Self::new(&Self::slice_dirs(parent.rsplit('/').next().unwrap_or(parent))?);
        }
        Self::new(Path::new(parent))
    }

    /// A slice's directories: `a-b-c.slice` is `a.slice/a-b.slice/a-b-c.slice` (systemd.slice(5)). The root slice has none.
    pub(crate) fn slice_dirs(slice: &str) -> Result<PathBuf, PathError> {
        let bad = || PathError::Slice(slice.to_owned());
        let stem = slice.strip_suffix(".slice").ok_or_else(bad)?;
        if stem == "-" {
            return Ok(PathBuf::new());
        }
        if stem.is_empty()
            || stem.contains('/')
            || stem.split('-').any(str::is_empty)
            || stem.starts_with('.')
        {
            return Err(bad());
        }
        let mut path = PathBuf::new();
        for (at, _) in stem.match_indices('-') {
            path.push(format!("{}.slice", &stem[..at]));
        }
        path.push(slice);
        Ok(path)
    }

    /// From an OCI config's `linux.cgroupsPath`: `slice:prefix:name`, else a path.
    #[cfg(feature = "daemon")]
    pub(crate) fn of_oci(text: &str) -> Result<Self, PathError> {
        match text.split(':').collect::<Vec<_>>()[..] {
            [slice, prefix, name] => Self::from_systemd(slice, prefix, name),
            _ => Self::new(Path::new(text)),
        }
    }

    /// Without a leading slash.
    pub(crate) fn as_path(&self) -> &Path {
        &self.0
    }

    /// The last component: under systemd, the unit.
    pub(crate) fn name(&self) -> String {
        self.0.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
    }

    pub(super) fn under(&self, root: &Path) -> PathBuf {
        root.join(&self.0)
    }
}

impl fmt::Display for CgroupPath {
    /// Absolute.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}", self.0.display())
    }
}
