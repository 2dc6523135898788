//! Paths inside a directory that someone hostile controls: resolved by descriptors, never by a path string.
//!
//! A path is looked up with `openat2(RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)`: the directory acts as `/`, so neither
//! `..` nor a symbolic link leads out. What is missing is made component by component below a descriptor that is
//! already known to be inside.

use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path};

use rustix::fs::{
    FileType, Mode, OFlags, ResolveFlags, fstat, fstatfs, mkdirat, openat, openat2, readlinkat,
};
use rustix::io::Errno;

/// openat2(2) answers EAGAIN when a rename races with `..`; a hostile container could rename for ever.
const RETRIES_MAX: u32 = 128;
/// As many links as the kernel follows (path_resolution(7)).
const LINKS_MAX: u32 = 40;

/// What to make where a path ends in nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Missing {
    Directory,
    File,
}

/// Opens `path` with `root` as its `/`. With `O_PATH` in `flags` nothing is opened for I/O. A final symbolic link is
/// followed, inside, unless `O_NOFOLLOW` is given.
pub(crate) fn open_in(root: impl AsFd, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    open_with(root.as_fd(), path, flags, ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)
}

/// As [`open_in`], but a symbolic link anywhere in `path` is `ELOOP`.
pub(crate) fn open_in_without_links(root: impl AsFd, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    open_with(root.as_fd(), path, flags, ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS)
}

/// Opens a file of one filesystem: no links, no other mount on the way, nothing above `root`.
pub(crate) fn open_on_same_mount(root: impl AsFd, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    open_with(root.as_fd(), path, flags, resolve)
}

fn open_with(root: BorrowedFd<'_>, path: &Path, flags: OFlags, resolve: ResolveFlags) -> io::Result<OwnedFd> {
    // An empty path is the root itself; openat2 would answer ENOENT.
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let mut retries = 0;
    loop {
        match openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            Err(Errno::AGAIN | Errno::INTR) if retries < RETRIES_MAX => retries += 1,
            result => return Ok(result?),
        }
    }
}

/// Opens `path` inside `root` as `O_PATH`, making what is missing: directories 0755, and a last component as asked.
///
/// A dangling link is followed and its target made, inside `root`, as a shell in the container would find it.
pub(crate) fn ensure_in(root: impl AsFd, path: &Path, missing: Missing) -> io::Result<OwnedFd> {
    match open_in(&root, path, OFlags::PATH) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => walk(root.as_fd(), path, missing),
        result => result,
    }
}

/// The slow way of [`ensure_in`]: resolves links itself, with a stack of descriptors for `..`.
fn walk(root: BorrowedFd<'_>, path: &Path, missing: Missing) -> io::Result<OwnedFd> {
    // The last element is what to do next.
    let mut todo: Vec<OsString> = parts(path).rev().collect();
    let mut stack: Vec<OwnedFd> = Vec::new();
    let mut links = 0;
    while let Some(name) = todo.pop() {
        if name == ".." {
            stack.pop();
            continue;
        }
        let here = stack.last().map_or(root, |fd| fd.as_fd());
        let last = todo.is_empty();
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let next = match openat(here, name.as_os_str(), flags, Mode::empty()) {
            Err(Errno::NOENT) => {
                make(here, &name, if last { missing } else { Missing::Directory })?;
                openat(here, name.as_os_str(), flags, Mode::empty())?
            }
            result => result?,
        };
        match FileType::from_raw_mode(fstat(&next)?.st_mode) {
            FileType::Symlink => {
                links += 1;
                if links > LINKS_MAX {
                    return Err(Errno::LOOP.into());
                }
                let target = OsString::from_vec(readlinkat(&next, c"", Vec::new())?.into_bytes());
                if target.as_bytes().starts_with(b"/") {
                    stack.clear();
                }
                todo.extend(parts(Path::new(&target)).rev());
            }
            FileType::Directory => stack.push(next),
            _ if last => return Ok(next),
            _ => return Err(Errno::NOTDIR.into()),
        }
    }
    match stack.pop() {
        Some(fd) => Ok(fd),
        None => Ok(openat(root, c".", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?),
    }
}

fn parts(path: &Path) -> impl DoubleEndedIterator<Item = OsString> {
    path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    })
}

fn make(here: BorrowedFd<'_>, name: &OsStr, missing: Missing) -> io::Result<()> {
    let made = match missing {
        Missing::Directory => mkdirat(here, name, Mode::from_raw_mode(0o755)),
        Missing::File => {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::WRONLY | OFlags::CLOEXEC;
            openat(here, name, flags, Mode::from_raw_mode(0o644)).map(drop)
        }
    };
    match made {
        // Someone else made it meanwhile; what it is will be seen when it is opened.
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The host's /proc, verified to be procfs, for writes that must not be redirected (labels, mappings, sysctls).
#[derive(Debug)]
pub(crate) struct Proc(OwnedFd);

impl Proc {
    /// Opens /proc. Errors if it is another filesystem.
    pub(crate) fn open() -> io::Result<Self> {
        let fd =
            rustix::fs::open(c"/proc", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        if !is_procfs(&fd)? {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "/proc is not procfs"));
        }
        Ok(Self(fd))
    }

    /// Opens a file of this procfs: no links, and no mount over any part of it.
    pub(crate) fn file(&self, path: &str, flags: OFlags) -> io::Result<OwnedFd> {
        open_on_same_mount(&self.0, Path::new(path), flags)
    }

    /// Writes all of `data` by one write(2), as procfs demands.
    pub(crate) fn write(&self, path: &str, data: &[u8]) -> io::Result<()> {
        let file = self.file(path, OFlags::WRONLY)?;
        match rustix::io::write(&file, data)? {
            written if written == data.len() => Ok(()),
            _ => Err(io::ErrorKind::WriteZero.into()),
        }
    }

    /// Opens a magic link such as `PID/ns/net` of this procfs.
    pub(crate) fn link(&self, path: &str, flags: OFlags) -> io::Result<OwnedFd> {
        let (dir, name) = path.rsplit_once('/').unwrap_or((".", path));
        let dir = open_on_same_mount(&self.0, Path::new(dir), OFlags::PATH)?;
        Ok(openat(&dir, name, flags | OFlags::CLOEXEC, Mode::empty())?)
    }
}

/// Whether the file is on procfs (`PROC_SUPER_MAGIC`, statfs(2)).
pub(crate) fn is_procfs(file: impl AsFd) -> io::Result<bool> {
    Ok(fstatfs(file)?.f_type == rustix::fs::PROC_SUPER_MAGIC)
}

/// A path as the kernel takes it; `InvalidInput` if it holds a NUL.
pub(crate) fn c_path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn root() -> (tempfile::TempDir, OwnedFd) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("root")).unwrap();
        let fd = rustix::fs::open(dir.path().join("root"), OFlags::PATH | OFlags::DIRECTORY, Mode::empty())
            .unwrap();
        (dir, fd)
    }

    #[test]
    fn a_target_behind_links_and_dots_is_made_inside_the_root() {
        let (dir, fd) = root();
        let inside = dir.path().join("root");
        symlink("/outside", inside.join("absolute")).unwrap();
        symlink("../../../up", inside.join("upwards")).unwrap();
        symlink("dangling/a/b", inside.join("chain")).unwrap();
        for (path, made) in [
            ("/absolute/x", "outside/x"),
            ("/upwards/y", "up/y"),
            ("/chain", "dangling/a/b"),
            ("/../../z", "z"),
            ("/new/../other", "other"),
        ] {
            let made_fd = ensure_in(&fd, Path::new(path), Missing::File).unwrap();
            let expected = rustix::fs::stat(inside.join(made)).unwrap();
            assert_eq!(fstat(&made_fd).unwrap().st_ino, expected.st_ino, "{path}");
        }
        let mut outside: Vec<_> =
            std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        outside.sort();
        assert_eq!(outside, ["root"]);
    }

    #[test]
    fn a_loop_of_links_is_an_error() {
        let (dir, fd) = root();
        symlink("b", dir.path().join("root/a")).unwrap();
        symlink("a", dir.path().join("root/b")).unwrap();
        let error = ensure_in(&fd, Path::new("/a"), Missing::Directory).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(Errno::LOOP.raw_os_error()));
    }

    #[test]
    fn a_magic_link_is_not_followed() {
        let proc = Proc::open().unwrap();
        let error = proc.file("self/status", OFlags::RDONLY).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(Errno::LOOP.raw_os_error()));
        let pid = std::process::id();
        assert!(proc.file(&format!("{pid}/status"), OFlags::RDONLY).is_ok());
        assert!(proc.file(&format!("{pid}/cwd/x"), OFlags::RDONLY).is_err());
    }
}
