//! Files of the host that a container gets, looked up once.
//!
//! A path is looked up when the request is checked, and the file is mounted and labelled later. In between a pod that may write
//! to a folder on the way (a volume whose sub path another container gets) can put a symbolic link there. So what a path leads
//! to is kept by descriptor from the look on, everything is decided on where that descriptor is, and nobody walks the path again.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD};

use crate::sys::mount;

/// What the kernel puts behind the path of a file that is no longer there (proc_pid_fd(5)).
const DELETED: &[u8] = b" (deleted)";

/// The files of one container by where they are. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct HeldFiles(BTreeMap<PathBuf, Arc<OwnedFd>>);

impl HeldFiles {
    /// Looks `path` up, keeps what is there and says where that is: a path without links. Blocking.
    pub(crate) fn take(&mut self, path: &Path) -> io::Result<PathBuf> {
        let file = mount::hold(path)?;
        let real = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
        if !real.is_absolute() {
            return Err(io::Error::other("it lies outside of the daemon's root"));
        }
        if real.as_os_str().as_bytes().ends_with(DELETED) && !is_at(file.as_fd(), &real) {
            return Err(io::ErrorKind::NotFound.into());
        }
        // Of two looks that ended at the same place the first is kept; both were there.
        self.0.entry(real.clone()).or_insert_with(|| Arc::new(file));
        Ok(real)
    }

    /// What was at `real`, as [`HeldFiles::take`] answered it.
    pub(crate) fn get(&self, real: &Path) -> Option<BorrowedFd<'_>> {
        self.0.get(real).map(|file| file.as_fd())
    }
}

/// A file may be called so.
fn is_at(file: BorrowedFd<'_>, path: &Path) -> bool {
    let (Ok(ours), Ok(there)) =
        (rustix::fs::fstat(file), rustix::fs::statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW))
    else {
        return false;
    };
    (ours.st_dev, ours.st_ino) == (there.st_dev, there.st_ino)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn inode(file: BorrowedFd<'_>) -> u64 {
        rustix::fs::fstat(file).unwrap().st_ino
    }

    #[test]
    fn what_was_looked_up_stays_what_it_was_when_its_path_leads_elsewhere() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        std::fs::create_dir_all(dir.join("volume/sub")).unwrap();
        std::fs::create_dir_all(dir.join("secret/sub")).unwrap();
        symlink(dir.join("volume"), dir.join("by-link")).unwrap();
        let expected = rustix::fs::stat(dir.join("volume/sub")).unwrap().st_ino;
        let mut held = HeldFiles::default();
        let real = held.take(&dir.join("by-link/sub")).unwrap();
        assert_eq!(real, dir.join("volume/sub"));
        std::fs::rename(dir.join("volume"), dir.join("away")).unwrap();
        symlink(dir.join("secret"), dir.join("volume")).unwrap();
        assert_eq!(inode(held.get(&real).unwrap()), expected);
        // Another look goes by where the path leads then.
        assert_eq!(held.take(&dir.join("volume/sub")).unwrap(), dir.join("secret/sub"));
    }

    #[test]
    fn a_file_that_is_gone_or_has_no_path_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let mut held = HeldFiles::default();
        assert_eq!(held.take(&dir.path().join("x")).unwrap_err().kind(), io::ErrorKind::NotFound);
        let named = dir.path().canonicalize().unwrap().join("x (deleted)");
        std::fs::write(&named, "").unwrap();
        assert_eq!(held.take(&named).unwrap(), named);
        let open = std::fs::File::open(&named).unwrap();
        std::fs::remove_file(&named).unwrap();
        let link = format!("/proc/self/fd/{}", open.as_raw_fd());
        assert_eq!(held.take(Path::new(&link)).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert!(held.take(Path::new("/proc/self/ns/net")).is_err());
    }
}
