//! Gives a volume of the host, with all in it, the SELinux label of the container that gets it (`:Z`).
//!
//! A volume may be written by a container while this walks it, so nothing is followed: the volume itself is the file that is
//! mounted (`held.rs`), every directory is opened beneath the one before, and what is not a directory is labelled by its name
//! in an open one.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, XattrFlags, fstat, openat, statat};
use rustix::io::Errno;

use crate::sys::mount::hold;

/// Where SELinux keeps a file's label.
const ATTRIBUTE: &str = "security.selinux";
/// Directories within each other; each costs a descriptor while the walk is below it.
const DEPTH_MAX: usize = 256;
/// The host's own: with another label there the host would no longer work. These with all below them,
const WHOLE: [&str; 9] = ["/bin", "/boot", "/dev", "/etc", "/lib", "/lib64", "/proc", "/sbin", "/sys"];
/// and these by themselves.
const ALONE: [&str; 13] = [
    "/", "/home", "/media", "/mnt", "/opt", "/root", "/run", "/srv", "/tmp", "/usr", "/var", "/var/lib",
    "/var/log",
];

/// Why a volume did not get its label.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RelabelError {
    #[error(
        "the host path {0:?} is part of the operating system and keeps its SELinux label; mount a folder below it"
    )]
    System(PathBuf),
    #[error("{0:?} has more than {DEPTH_MAX} directories within each other")]
    Deep(PathBuf),
    #[error("set the SELinux label of {path:?}")]
    Label {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Labels `file`, which is at `real`, and all below it, on its own file system and on those mounted in it. Blocking. File
/// systems without labels are left as they are.
pub(crate) fn relabel(file: BorrowedFd<'_>, real: &Path, label: &str) -> Result<(), RelabelError> {
    if is_system(real) {
        return Err(RelabelError::System(real.to_owned()));
    }
    let work = || {
        // A descriptor that only holds the file takes no attribute, but its link in /proc leads to the file.
        match rustix::fs::setxattr(link(file), ATTRIBUTE, &value(label), XattrFlags::empty()) {
            Err(Errno::OPNOTSUPP) => return Ok(()),
            result => result?,
        }
        if FileType::from_raw_mode(fstat(file)?.st_mode) != FileType::Directory {
            return Ok(());
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        walk(&openat(file, c".", flags, Mode::empty())?, label, 1)
    };
    work().map_err(|err| match err {
        Errno::MLINK => RelabelError::Deep(real.to_owned()),
        err => RelabelError::Label { path: real.to_owned(), source: err.into() },
    })
}

/// [`relabel`] for a path of ours, which nobody else can change.
pub(crate) fn relabel_own(path: &Path, label: &str) -> Result<(), RelabelError> {
    let file = hold(path).map_err(|source| RelabelError::Label { path: path.to_owned(), source })?;
    relabel(file.as_fd(), path, label)
}

fn is_system(real: &Path) -> bool {
    let usr = real.components().take(3).collect::<PathBuf>();
    WHOLE.iter().any(|path| real.starts_with(path))
        || ALONE.iter().any(|path| real == Path::new(path))
        // What Linux distributions install; `/usr/local` is the administrator's.
        || (real.starts_with("/usr") && usr != Path::new("/usr/local"))
}

/// Labels what is in an open directory. `MLINK` stands for "too deep"; no call below returns it.
fn walk(directory: &OwnedFd, label: &str, depth: usize) -> rustix::io::Result<()> {
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = Path::new(OsStr::new(entry.file_name().to_str().map_err(|_| Errno::ILSEQ)?));
        if name == Path::new(".") || name == Path::new("..") {
            continue;
        }
        // There is no call that takes a directory and a name, but the link of the directory's descriptor leads into it.
        let path = link(directory.as_fd()).join(name);
        match rustix::fs::lsetxattr(path, ATTRIBUTE, &value(label), XattrFlags::empty()) {
            // A file system that has no labels, or shows one label for all; or it went away meanwhile.
            Err(Errno::OPNOTSUPP | Errno::NOENT) => continue,
            result => result?,
        }
        match statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => continue,
            stat if FileType::from_raw_mode(stat?.st_mode) != FileType::Directory => continue,
            _ if depth == DEPTH_MAX => return Err(Errno::MLINK),
            _ => {}
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match openat(directory, name, flags, Mode::empty()) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
            opened => walk(&opened?, label, depth + 1)?,
        }
    }
    Ok(())
}

fn link(file: BorrowedFd<'_>) -> PathBuf {
    Path::new("/proc/self/fd").join(file.as_raw_fd().to_string())
}

/// Kernel and tools count the final NUL as part of a label.
fn value(label: &str) -> Vec<u8> {
    [label.as_bytes(), b"\0"].concat()
}

#[cfg(test)]
mod tests {
    use super::super::held::HeldFiles;
    use super::*;

    fn relabel(path: &Path, label: &str) -> Result<(), RelabelError> {
        let mut held = HeldFiles::default();
        let real = held.take(path).unwrap();
        super::relabel(held.get(&real).unwrap(), &real, label)
    }

    fn label(path: &Path) -> Option<String> {
        let mut value = [0u8; 256];
        let length = rustix::fs::lgetxattr(path, ATTRIBUTE, &mut value).ok()?;
        Some(String::from_utf8_lossy(&value[..length]).into_owned())
    }

    /// The attribute is only a name to a kernel without SELinux, so what is set can be looked at anywhere.
    #[test]
    fn privileged_a_volume_is_labelled_with_all_in_it_and_nothing_that_links_lead_to() {
        let (dir, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let volume = dir.path().join("volume");
        std::fs::create_dir_all(volume.join("a/b")).unwrap();
        std::fs::write(volume.join("a/b/file"), "").unwrap();
        std::fs::write(outside.path().join("secret"), "").unwrap();
        std::os::unix::fs::symlink(outside.path(), volume.join("a/link")).unwrap();
        std::os::unix::fs::symlink(&volume, dir.path().join("by-link")).unwrap();
        let text = "system_u:object_r:container_file_t:s0:c1,c2";
        relabel(&dir.path().join("by-link"), text).unwrap();
        let expected = Some(format!("{text}\0"));
        for path in ["", "a", "a/b", "a/b/file", "a/link"] {
            assert_eq!(label(&volume.join(path)), expected, "{path}");
        }
        for path in [outside.path(), &outside.path().join("secret"), dir.path()] {
            assert_eq!(label(path), None, "{path:?}");
        }
        relabel(&volume.join("a/b/file"), "other").unwrap();
        assert_eq!(label(&volume.join("a/b/file")).as_deref(), Some("other\0"));
    }

    #[test]
    fn privileged_a_volume_is_labelled_that_was_looked_up_though_its_path_leads_elsewhere_by_then() {
        let dir = tempfile::tempdir().unwrap();
        for path in ["volume/sub", "secret/sub"] {
            std::fs::create_dir_all(dir.path().join(path)).unwrap();
        }
        let mut held = HeldFiles::default();
        let real = held.take(&dir.path().join("volume/sub")).unwrap();
        std::fs::rename(dir.path().join("volume"), dir.path().join("away")).unwrap();
        std::os::unix::fs::symlink("secret", dir.path().join("volume")).unwrap();
        super::relabel(held.get(&real).unwrap(), &real, "x").unwrap();
        assert_eq!(label(&dir.path().join("away/sub")).as_deref(), Some("x\0"));
        assert_eq!(label(&dir.path().join("secret/sub")), None);
    }

    #[test]
    fn the_hosts_own_files_keep_their_labels() {
        // CVE-2021-43816: /etc/hosts and its like.
        for path in
            ["/", "/etc", "/etc/hosts", "/etc/resolv.conf", "/usr", "/usr/bin", "/proc/self", "/var/lib"]
        {
            let real = Path::new(path).canonicalize().unwrap();
            assert!(
                matches!(relabel(Path::new(path), "x"), Err(RelabelError::System(at)) if at == real),
                "{path}"
            );
        }
        for path in ["/var/lib/kubelet/pods/x", "/usr/local/share", "/run/x", "/etcetera"] {
            assert!(!is_system(Path::new(path)), "{path}");
        }
    }
}
