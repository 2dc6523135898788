//! Mounts as descriptors: the mount API of Linux 5.2 to 5.12, where a mount is made, configured and attached by fd.
//!
//! A detached mount is one that no path reaches yet. Everything is set on it before [`attach`] shows it.
#![expect(unsafe_code, reason = "mount_setattr(2) has no wrapper in rustix")]

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::CWD;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree, unmount,
};
use rustix::path::Arg;

pub(crate) const RDONLY: u64 = libc::MOUNT_ATTR_RDONLY;
pub(crate) const NOSUID: u64 = libc::MOUNT_ATTR_NOSUID;
pub(crate) const NODEV: u64 = libc::MOUNT_ATTR_NODEV;
pub(crate) const NOEXEC: u64 = libc::MOUNT_ATTR_NOEXEC;
/// The mask of the three access-time modes; relatime is 0 in it.
pub(crate) const ATIME_MASK: u64 = libc::MOUNT_ATTR__ATIME;
pub(crate) const NOATIME: u64 = libc::MOUNT_ATTR_NOATIME;
pub(crate) const STRICTATIME: u64 = libc::MOUNT_ATTR_STRICTATIME;
pub(crate) const NODIRATIME: u64 = libc::MOUNT_ATTR_NODIRATIME;
pub(crate) const NOSYMFOLLOW: u64 = libc::MOUNT_ATTR_NOSYMFOLLOW;

/// How mount events travel between copies of a mount (mount_namespaces(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Propagation {
    Shared,
    Slave,
    Private,
    Unbindable,
}

/// A change of a mount's attributes: `set` after `clear`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Change {
    pub(crate) set: u64,
    pub(crate) clear: u64,
    pub(crate) propagation: Option<Propagation>,
}

/// A detached copy of the mount at `path` below `dir`, with all mounts below it if `recursive`.
pub(crate) fn clone_tree(dir: impl AsFd, path: impl Arg, recursive: bool) -> io::Result<OwnedFd> {
    let mut flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
    Ok(open_tree(dir, path, flags)?)
}

/// What `path` leads to now, by a descriptor that stays with it (O_PATH). Links are followed, and what is mounted on demand
/// is mounted.
#[cfg(any(feature = "daemon", test))]
pub(crate) fn hold(path: impl Arg) -> io::Result<OwnedFd> {
    Ok(open_tree(CWD, path, OpenTreeFlags::OPEN_TREE_CLOEXEC)?)
}

/// Changes the attributes of a mount, and of all below it if `recursive`. `mount` must be a mount's root.
pub(crate) fn change(mount: impl AsFd, recursive: bool, change: &Change) -> io::Result<()> {
    setattr(mount.as_fd(), recursive, change, None)
}

/// Shows the files of a detached mount with the ids that `user_namespace` maps them to.
pub(crate) fn map_ids(mount: impl AsFd, recursive: bool, user_namespace: BorrowedFd<'_>) -> io::Result<()> {
    let change = Change { set: libc::MOUNT_ATTR_IDMAP, ..Change::default() };
    setattr(mount.as_fd(), recursive, &change, Some(user_namespace))
}

fn setattr(
    mount: BorrowedFd<'_>,
    recursive: bool,
    change: &Change,
    user_namespace: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let propagation = match change.propagation {
        None => 0,
        Some(Propagation::Shared) => libc::MS_SHARED,
        Some(Propagation::Slave) => libc::MS_SLAVE,
        Some(Propagation::Private) => libc::MS_PRIVATE,
        Some(Propagation::Unbindable) => libc::MS_UNBINDABLE,
    };
    let attr = libc::mount_attr {
        attr_set: change.set,
        attr_clr: change.clear,
        propagation,
        userns_fd: user_namespace.map_or(0, |fd| fd.as_raw_fd() as u64),
    };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is an empty NUL-terminated literal, the structure outlives the call and its size is given.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A new, detached mount of a filesystem. `options` are keys with a value or without; `attributes` are the
/// `MOUNT_ATTR_…` bits above. The kernel's own words about a refused option are in the error.
pub(crate) fn new_filesystem(
    kind: &CStr,
    options: &[(String, Option<String>)],
    attributes: u64,
) -> io::Result<OwnedFd> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    let configured = options
        .iter()
        .try_for_each(|(key, value)| match value {
            Some(value) => fsconfig_set_string(&context, key.as_str(), value.as_str()),
            None => fsconfig_set_flag(&context, key.as_str()),
        })
        .and_then(|()| fsconfig_create(&context))
        .and_then(|()| {
            let attributes = MountAttrFlags::from_bits_retain(attributes as u32);
            fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
        });
    configured.map_err(|error| {
        // Each read of the context takes one message of the kernel, ENODATA when there is none (fsopen(2)).
        let mut message = [0u8; 256];
        match rustix::io::read(&context, &mut message) {
            Ok(length) if length > 0 => {
                let text = String::from_utf8_lossy(&message[..length]);
                io::Error::new(io::Error::from(error).kind(), format!("{} ({error})", text.trim_end()))
            }
            _ => error.into(),
        }
    })
}

/// Attaches a detached mount on top of whatever `target` is, by fd alone.
pub(crate) fn attach(mount: impl AsFd, target: impl AsFd) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(move_mount(mount, c"", target, c"", flags)?)
}

/// Attaches a detached mount over the root directory of the caller's mount namespace.
pub(crate) fn attach_over_root(mount: impl AsFd) -> io::Result<()> {
    Ok(move_mount(mount, c"", CWD, c"/", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
}

/// Makes every mount of this namespace a receiver of the host's events only, or cuts it off.
pub(crate) fn change_all(propagation: Propagation) -> io::Result<()> {
    let root = rustix::fs::open(c"/", rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC, 0.into())?;
    change(&root, true, &Change { propagation: Some(propagation), ..Change::default() })
}

/// pivot_root(2) into an attached mount, and drops the old root with everything on it.
///
/// The old root is stacked on the new one for a moment and then detached, so no directory for it is needed
/// (pivot_root(2), "pivot_root(".", ".")").
pub(crate) fn pivot_into(root: impl AsFd) -> io::Result<()> {
    rustix::process::fchdir(root.as_fd())?;
    rustix::process::pivot_root(c".", c".")?;
    unmount(c".", UnmountFlags::DETACH)?;
    rustix::process::chdir(c"/")?;
    Ok(())
}

/// As [`pivot_into`] where the root is an initramfs, which cannot be pivoted away: chroot(2) into the mount that
/// [`attach_over_root`] put over it.
pub(crate) fn chroot_into(root: impl AsFd) -> io::Result<()> {
    rustix::process::fchdir(root.as_fd())?;
    rustix::process::chroot(c".")?;
    rustix::process::chdir(c"/")?;
    Ok(())
}
