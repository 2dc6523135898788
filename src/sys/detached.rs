//! Directories of our own as mounts without company.
//!
//! Whoever copies a mount makes the kernel look at every mount whose parent it is (`has_locked_children` and `copy_tree`
//! in fs/namespace.c): open_tree(2) does, and overlayfs does for each of its directories. On a node whose one big
//! filesystem carries thousands of volumes that is a tenth of a millisecond each time. Below this mount there is nothing to look at.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, fstat, lstat, openat2};

use super::mount::clone_tree;

/// A directory as a mount of its own, attached nowhere and with no mount below it.
#[derive(Debug)]
pub(crate) struct Detached {
    path: PathBuf,
    mount: OwnedFd,
}

impl Detached {
    /// None where the kernel cannot copy what is not attached (before Linux 6.15).
    pub(crate) fn of(path: &Path) -> Option<Self> {
        let mount = clone_tree(CWD, path, false).ok()?;
        clone_tree(&mount, c"", false).ok()?;
        Some(Self { path: path.to_owned(), mount })
    }

    /// The directory or file that is at `path` on the host, through this mount. None when `path` is not in here, has
    /// links in it, or when the host shows something else there because a mount covers it.
    pub(crate) fn open(&self, path: &Path) -> Option<OwnedFd> {
        let name = path.strip_prefix(&self.path).ok()?;
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let opened = openat2(&self.mount, name, flags, Mode::empty(), resolve).ok()?;
        let (here, there) = (fstat(&opened).ok()?, lstat(path).ok()?);
        ((here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)).then_some(opened)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::fd::AsRawFd;

    use rustix::mount::{UnmountFlags, unmount};

    use super::*;

    #[test]
    fn privileged_a_detached_directory_shows_what_the_host_shows_or_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for name in ["in/plain", "in/covered", "other"] {
            fs::create_dir_all(path(name)).unwrap();
        }
        fs::write(path("in/plain/file"), "text").unwrap();
        std::os::unix::fs::symlink("plain", path("in/link")).unwrap();
        let Some(detached) = Detached::of(&path("in")) else {
            let release = rustix::system::uname().release().to_string_lossy().into_owned();
            let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
            let version = (numbers.next(), numbers.next());
            assert!(version < (Some(6), Some(15)), "Linux {release} can copy what is not attached");
            return;
        };
        rustix::mount::mount_bind(path("other"), path("in/covered")).unwrap();
        let file = detached.open(&path("in/plain/file")).unwrap();
        let copy = clone_tree(file, c"", false).unwrap();
        let read = fs::read_to_string(format!("/proc/self/fd/{}", copy.as_raw_fd())).unwrap();
        let covered = detached.open(&path("in/covered"));
        unmount(path("in/covered"), UnmountFlags::DETACH).unwrap();
        assert_eq!(read, "text");
        assert!(covered.is_none(), "a mount covers it on the host");
        assert!(detached.open(&path("in/covered")).is_some());
        for name in ["in/link/file", "in/missing", "other", "in/plain/../../other"] {
            assert!(detached.open(&path(name)).is_none(), "{name}");
        }
    }
}
