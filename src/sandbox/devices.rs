//! Device nodes in the container's /dev.
//!
//! Made by mknod(2), or, where that is forbidden (in a user namespace), as binds of the host's nodes that the host's
//! side has opened and verified. /dev is opened once, without following links, and everything happens below that
//! descriptor (CVE-2026-41579 was a /dev that pointed to the host).

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, Dev, FileType, Mode, OFlags, chownat, fstat, makedev, mknodat, openat, statat, symlinkat,
    unlinkat,
};
use rustix::io::Errno;
use rustix::process::{Gid, Uid};

use super::error::{Attempt, Error};
use super::spec::Config;
use crate::sys::{mount, path};

/// Every container has these (runtime-spec, "Default Devices").
const DEFAULT: [(&str, u32, u32); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];
/// And these links (runtime-spec, "Dev symbolic links").
const LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

/// A node to be made.
#[derive(Debug)]
pub(super) struct Node {
    path: PathBuf,
    kind: FileType,
    number: Dev,
    mode: Mode,
    uid: u32,
    gid: u32,
    /// The host's node, detached, where mknod(2) will not do.
    bind: Option<OwnedFd>,
}

/// The nodes of a container; with `bind`, the host's are opened for each.
pub(super) fn prepare(config: &Config, bind: bool) -> Result<Vec<Node>, Error> {
    // A /dev of the host's is complete, and nothing may be added to it.
    if config.mounts.iter().any(|mount| {
        mount.destination.components().eq(Path::new("/dev").components())
            && (mount.kind.as_deref() == Some("bind")
                || mount.options.iter().any(|word| word == "bind" || word == "rbind"))
    }) {
        return Ok(Vec::new());
    }
    let mut nodes: Vec<Node> = Vec::new();
    for device in &config.linux.devices {
        let kind = match device.kind.as_str() {
            "b" => FileType::BlockDevice,
            "p" => FileType::Fifo,
            _ => FileType::CharacterDevice,
        };
        nodes.push(Node {
            path: device.path.clone(),
            kind,
            number: if kind == FileType::Fifo { 0 } else { makedev(device.major, device.minor) },
            mode: Mode::from_raw_mode(device.file_mode.unwrap_or(0o666) & 0o7777),
            uid: device.uid.unwrap_or(0),
            gid: device.gid.unwrap_or(0),
            bind: None,
        });
    }
    for (name, major, minor) in DEFAULT {
        if !nodes.iter().any(|node| node.path == Path::new(name)) {
            nodes.push(Node {
                path: name.into(),
                kind: FileType::CharacterDevice,
                number: makedev(major, minor),
                mode: Mode::from_raw_mode(0o666),
                uid: 0,
                gid: 0,
                bind: None,
            });
        }
    }
    if bind {
        for node in nodes.iter_mut().filter(|node| node.kind != FileType::Fifo) {
            node.bind = Some(host_node(&node.path, node.kind, node.number)?);
        }
    }
    Ok(nodes)
}

/// A detached clone of the host's device node at `path`, verified to be that device.
pub(super) fn host_node(path: &Path, kind: FileType, number: Dev) -> Result<OwnedFd, Error> {
    let attempted = || format!("bind the host's device {}", path.display());
    let clone = mount::clone_tree(CWD, path, false).attempt(attempted)?;
    let stat = fstat(&clone).attempt(attempted)?;
    if FileType::from_raw_mode(stat.st_mode) != kind || stat.st_rdev != number {
        return Err(Error::invalid(
            format!("the host's {}", path.display()),
            format!("{}:{}", rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev)),
            format!("device {}:{} is wanted", rustix::fs::major(number), rustix::fs::minor(number)),
        ));
    }
    Ok(clone)
}

/// The host's /dev/null as a detached mount.
pub(super) fn null() -> Result<OwnedFd, Error> {
    host_node(Path::new("/dev/null"), FileType::CharacterDevice, makedev(1, 3))
}

/// Makes all nodes and links. Called in the container's namespaces, before the pivot, with umask 0.
pub(super) fn make(root: BorrowedFd<'_>, nodes: &[Node]) -> Result<(), Error> {
    if nodes.is_empty() {
        return Ok(());
    }
    let dev = open_dev(root)?;
    for node in nodes {
        let attempted = || format!("make the device {}", node.path.display());
        let (dir, name) = match (node.path.parent(), node.path.file_name()) {
            (Some(parent), Some(name)) if parent == Path::new("/dev") => (None, name),
            (Some(parent), Some(name)) => {
                let dir = path::ensure_in(root, parent, path::Missing::Directory).attempt(attempted)?;
                (Some(dir), name)
            }
            _ => return Err(Error::invalid("linux.devices.path", &node.path, "it must name a file")),
        };
        let dir = dir.as_ref().unwrap_or(&dev).as_fd();
        make_one(dir, name, node).attempt(attempted)?;
    }
    for (name, target) in LINKS {
        match symlinkat(target, &dev, name) {
            // The image or a mount brought its own; it stays in the container.
            Ok(()) | Err(Errno::EXIST | Errno::ROFS) => {}
            Err(error) => return Err(error).attempt(|| format!("link /dev/{name} to {target}")),
        }
    }
    Ok(())
}

fn open_dev(root: BorrowedFd<'_>) -> Result<OwnedFd, Error> {
    match path::open_in_without_links(root, Path::new("/dev"), OFlags::PATH | OFlags::DIRECTORY) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            path::ensure_in(root, Path::new("/dev"), path::Missing::Directory)
        }
        result => result,
    }
    .attempt(|| "open the container's /dev, which must be a directory and no link".to_owned())
}

fn make_one(dir: BorrowedFd<'_>, name: &OsStr, node: &Node) -> rustix::io::Result<()> {
    if let Some(bind) = &node.bind {
        let target = placeholder(dir, name)?;
        return mount::attach(bind, &target)
            .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO));
    }
    let make = || mknodat(dir, name, node.kind, node.mode, node.number);
    match make() {
        Err(Errno::EXIST) => {
            let stat = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
            if FileType::from_raw_mode(stat.st_mode) == node.kind && stat.st_rdev == node.number {
                return Ok(());
            }
            // Whatever the image put there is not the device.
            unlinkat(dir, name, AtFlags::empty())?;
            make()?;
        }
        result => result?,
    }
    // No chmod: the umask is 0, and fchmodat(2) would follow a link that someone put there meanwhile.
    chownat(
        dir,
        name,
        Some(Uid::from_raw(node.uid)),
        Some(Gid::from_raw(node.gid)),
        AtFlags::SYMLINK_NOFOLLOW,
    )?;
    Ok(())
}

/// A plain file to mount a device on. What is there and is no plain file makes way.
fn placeholder(dir: BorrowedFd<'_>, name: &OsStr) -> rustix::io::Result<OwnedFd> {
    let create = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::WRONLY | OFlags::CLOEXEC;
    match openat(dir, name, create, Mode::from_raw_mode(0o666)) {
        Err(Errno::EXIST) => {
            let stat = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
            if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
                unlinkat(dir, name, AtFlags::empty())?;
                drop(openat(dir, name, create, Mode::from_raw_mode(0o666))?);
            }
        }
        result => drop(result?),
    }
    openat(dir, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

/// Shows a terminal's slave as /dev/console.
pub(super) fn attach_console(root: BorrowedFd<'_>, slave: &OwnedFd) -> Result<(), Error> {
    let attempted = || "show the terminal as /dev/console".to_owned();
    let dev = open_dev(root)?;
    let target = placeholder(dev.as_fd(), OsStr::new("console")).attempt(attempted)?;
    let clone = mount::clone_tree(slave, c"", false).attempt(attempted)?;
    mount::attach(&clone, &target).attempt(attempted)
}
