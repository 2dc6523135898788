//! Mounts of the cgroup filesystems inside a container, in the shape that the host has.
//!
//! ```text
//! v2             one cgroup2 mount
//! v1, hybrid     a tmpfs with a directory per hierarchy, and a link per controller where several share one
//! ```
//!
//! What is mounted is the container's own directory of each hierarchy, so that the host's tree is never in the container.
//! It is bound, also where a cgroup namespace would make a mount anew show the same: to mount a v1 hierarchy the kernel
//! looks through every cgroup of the host (`cgroup_lock_and_drain_offline`), for each hierarchy of each container. Where
//! the directory cannot be reached, and on v2, a container with a cgroup namespace gets the mount anew.

use std::ffi::CString;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat, symlinkat};

use super::error::{Attempt, Error};
use crate::sys::mount;

/// What /proc/self/cgroup and mountinfo say about this process.
#[derive(Debug, Default)]
pub(super) struct View {
    v1: Vec<Own>,
    v2: Option<Option<PathBuf>>,
    /// The process has a cgroup namespace of its own.
    pub(super) own_namespace: bool,
}

/// This process in one v1 hierarchy.
#[derive(Debug, PartialEq)]
struct Own {
    /// Controllers, or `name=…`.
    controllers: String,
    /// On the host, if it is visible.
    directory: Option<PathBuf>,
    /// The process was never given a directory there: all it could be shown is the host's whole tree.
    is_root: bool,
}

impl View {
    /// Reads the files of the calling process, by the host's /proc.
    pub(super) fn read() -> io::Result<Self> {
        let own = std::fs::read_to_string("/proc/self/cgroup")?;
        let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
        Ok(Self::parse(&own, &mounts))
    }

    fn parse(own: &str, mounts: &str) -> Self {
        // Mount point, root of the mount, filesystem, super-block options (proc_pid_mountinfo(5)).
        let mounts: Vec<(&str, &str, &str, &str)> = mounts
            .lines()
            .filter_map(|line| {
                let (left, right) = line.split_once(" - ")?;
                let (left, right): (Vec<_>, Vec<_>) = (left.split(' ').collect(), right.split(' ').collect());
                let kind = *right.first()?;
                kind.starts_with("cgroup").then_some((*left.get(4)?, *left.get(3)?, kind, *right.get(2)?))
            })
            .collect();
        let directory = |kind: &str, controller: &str, path: &str| {
            let (point, root, ..) = mounts.iter().find(|(_, _, found, options)| {
                *found == kind
                    && (controller.is_empty() || options.split(',').any(|option| option == controller))
            })?;
            let below = PathBuf::from(path).strip_prefix(root).ok()?.to_owned();
            Some(PathBuf::from(point).join(below))
        };
        let mut view = Self::default();
        for line in own.lines() {
            let mut fields = line.splitn(3, ':');
            let (Some(_), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next())
            else {
                continue;
            };
            if controllers.is_empty() {
                view.v2 = Some(directory("cgroup2", "", path));
            } else {
                let first = controllers.split(',').next().unwrap_or(controllers);
                view.v1.push(Own {
                    controllers: controllers.to_owned(),
                    directory: directory("cgroup", first, path),
                    is_root: path == "/",
                });
            }
        }
        view
    }
}

/// A detached mount for `cgroup` or `cgroup2`.
/// `label` is what SELinux sees on a tmpfs.
pub(super) fn make(view: &View, kind: &str, attributes: u64, label: Option<&str>) -> Result<OwnedFd, Error> {
    if !is_tree(view, kind) {
        return unified(view, attributes).attempt(|| "mount cgroup2".to_owned());
    }
    let mut data = vec![("mode".to_owned(), Some("755".to_owned()))];
    data.extend(label.map(|label| ("context".to_owned(), Some(label.to_owned()))));
    // Read-only once it is populated.
    mount::new_filesystem(c"tmpfs", &data, attributes & !mount::RDONLY)
        .attempt(|| "make the tmpfs for the cgroup hierarchies".to_owned())
}

/// Whether [`make`] returns a tmpfs to be populated.
pub(super) fn is_tree(view: &View, kind: &str) -> bool {
    kind == "cgroup" && !view.v1.is_empty()
}

/// Attaches every v1 hierarchy in which the container has a directory below the mounted tmpfs; done after it is attached, because a mount on a detached one
/// needs Linux 6.15.
pub(super) fn populate(view: &View, tmpfs: &OwnedFd, attributes: u64) -> Result<(), Error> {
    let text = |key: &str| (key.to_owned(), None);
    for Own { controllers, directory, .. } in view.v1.iter().filter(|own| !own.is_root) {
        let attempted = || format!("mount the cgroup hierarchy {controllers}");
        let name = controllers.strip_prefix("name=").unwrap_or(controllers);
        let target = directory_in(tmpfs, name).attempt(attempted)?;
        let anew = || {
            let data: Vec<_> = match controllers.strip_prefix("name=") {
                Some(name) => vec![text("none"), ("name".to_owned(), Some(name.to_owned()))],
                None => controllers.split(',').map(text).collect(),
            };
            mount::new_filesystem(c"cgroup", &data, attributes)
        };
        let made = match bound(directory.as_ref(), attributes) {
            Err(_) if view.own_namespace => anew(),
            bound => bound,
        }
        .attempt(attempted)?;
        mount::attach(&made, &target).attempt(attempted)?;
        for controller in
            controllers.split(',').filter(|controller| *controller != name && !controller.contains('='))
        {
            let controller = CString::new(controller).expect("a line of procfs holds no NUL");
            symlinkat(name, tmpfs, &controller).attempt(attempted)?;
        }
    }
    if view.v2.is_some() {
        let attempted = || "mount the unified cgroup hierarchy".to_owned();
        let target = directory_in(tmpfs, "unified").attempt(attempted)?;
        let made = unified(view, attributes).attempt(attempted)?;
        mount::attach(&made, &target).attempt(attempted)?;
    }
    if attributes & mount::RDONLY != 0 {
        let readonly = mount::Change { set: mount::RDONLY, ..mount::Change::default() };
        mount::change(tmpfs, false, &readonly).attempt(|| "make the cgroup tmpfs read-only".to_owned())?;
    }
    Ok(())
}

fn unified(view: &View, attributes: u64) -> io::Result<OwnedFd> {
    match (&view.v2, view.own_namespace) {
        (Some(directory), false) => bound(directory.as_ref(), attributes),
        _ => mount::new_filesystem(c"cgroup2", &[], attributes),
    }
}

fn bound(directory: Option<&PathBuf>, attributes: u64) -> io::Result<OwnedFd> {
    let directory =
        directory.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "it is not mounted here"))?;
    let clone = mount::clone_tree(CWD, directory, false)?;
    mount::change(&clone, false, &mount::Change { set: attributes, ..mount::Change::default() })?;
    Ok(clone)
}

fn directory_in(tmpfs: &OwnedFd, name: &str) -> io::Result<OwnedFd> {
    mkdirat(tmpfs, name, Mode::from_raw_mode(0o755))?;
    Ok(openat(
        tmpfs,
        name,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_hierarchy_is_found_with_the_directory_of_this_process() {
        let own = "7:freezer:/\n5:cpu,cpuacct:/pods/a\n1:name=systemd:/pods/a\n0::/x\n";
        let mounts = "30 25 0:26 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
                      31 25 0:27 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n\
                      32 25 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let view = View::parse(own, mounts);
        let own = |controllers: &str, directory: Option<&str>, is_root| Own {
            controllers: controllers.to_owned(),
            directory: directory.map(PathBuf::from),
            is_root,
        };
        assert_eq!(
            view.v1,
            [
                own("freezer", None, true),
                own("cpu,cpuacct", Some("/sys/fs/cgroup/cpu,cpuacct/pods/a"), false),
                own("name=systemd", Some("/sys/fs/cgroup/systemd/pods/a"), false),
            ]
        );
        assert_eq!(view.v2, Some(Some("/sys/fs/cgroup/unified/x".into())));
    }
}
