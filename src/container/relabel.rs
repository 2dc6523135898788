//! Gives a volume of the host, with all in it, the SELinux label of the container that gets it (`:Z`).
//!
//! A volume may be written by a container while this walks it, so nothing is followed: every directory is opened beneath
//! the one before, and what is not a directory is labelled by its name in an open one.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, XattrFlags, openat, statat};
use rustix::io::Errno;

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

/// Labels `path` and all below it, on its own file system and on those mounted in it. Blocking. File systems without
/// labels are left as they are.
pub(crate) fn relabel(path: &Path, label: &str) -> Result<(), RelabelError> {
    let failed = |source: io::Error| RelabelError::Label { path: path.to_owned(), source };
    // The links of the path itself are the host's.
    let real = path.canonicalize().map_err(failed)?;
    if is_system(&real) {
        return Err(RelabelError::System(real));
    }
    let (Some(parent), Some(name)) = (real.parent(), real.file_name()) else {
        return Err(RelabelError::System(real));
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let parent = rustix::fs::open(parent, flags, Mode::empty()).map_err(|err| failed(err.into()))?;
    walk(parent.as_fd(), Path::new(name), label, 0).map_err(|err| match err {
        Errno::MLINK => RelabelError::Deep(real.clone()),
        err => failed(err.into()),
    })
}

fn is_system(real: &Path) -> bool {
    let usr = real.components().take(3).collect::<PathBuf>();
    WHOLE.iter().any(|path| real.starts_with(path))
        || ALONE.iter().any(|path| real == Path::new(path))
        // What Linux distributions install; `/usr/local` is the administrator's.
        || (real.starts_with("/usr") && usr != Path::new("/usr/local"))
}

/// `MLINK` stands for "too deep"; no call below returns it.
fn walk(dir: BorrowedFd<'_>, name: &Path, label: &str, depth: usize) -> rustix::io::Result<()> {
    debug_assert!(matches!(name.components().next(), Some(Component::Normal(_))));
    match set(dir, name, label) {
        // A file system that has no labels, or shows one label for all.
        Err(Errno::OPNOTSUPP) => return Ok(()),
        // It went away meanwhile.
        Err(Errno::NOENT) if depth > 0 => return Ok(()),
        result => result?,
    }
    let kind = match statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) if depth > 0 => return Ok(()),
        stat => FileType::from_raw_mode(stat?.st_mode),
    };
    if kind != FileType::Directory {
        return Ok(());
    }
    if depth == DEPTH_MAX {
        return Err(Errno::MLINK);
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened: OwnedFd = match openat(dir, name, flags, Mode::empty()) {
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) if depth > 0 => return Ok(()),
        opened => opened?,
    };
    for entry in Dir::read_from(&opened)? {
        let entry = entry?;
        let name = Path::new(std::ffi::OsStr::new(entry.file_name().to_str().map_err(|_| Errno::ILSEQ)?));
        if name != Path::new(".") && name != Path::new("..") {
            walk(opened.as_fd(), name, label, depth + 1)?;
        }
    }
    Ok(())
}

/// Of the file itself, whatever it is: there is no call that takes a directory and a name, but the link of the directory's
/// descriptor in /proc leads into it.
fn set(dir: BorrowedFd<'_>, name: &Path, label: &str) -> rustix::io::Result<()> {
    let path = Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string()).join(name);
    // Kernel and tools count the final NUL as part of a label.
    let value = [label.as_bytes(), b"\0"].concat();
    rustix::fs::lsetxattr(&path, ATTRIBUTE, &value, XattrFlags::empty())
}

#[cfg(test)]
mod tests {
    use super::*;

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
        for path in ["/var/lib/kubelet/pods/x", "/usr/local/share", "/home/me", "/run/x", "/etcetera"] {
            assert!(!is_system(Path::new(path)), "{path}");
        }
    }
}
