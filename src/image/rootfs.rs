//! An image's layers as one filesystem: a container's rootfs, or an image mounted read-only as a volume.
//!
//! The result is a detached mount (mount(2) "new mount API", Linux 5.2): a file descriptor and no entry in any mount table, so starting a
//! container stays as cheap on a host with thousands of mounts. Whoever holds it attaches it in the container's own mount namespace.
//!
//! ```text
//! containers/<id>/layers.json   written before anything is mounted: these layers are in use
//! containers/<id>/upper         what the container writes; starts with owner and mode of the image's own root
//! containers/<id>/work          overlayfs's scratch folder
//! ```
//!
//! Crash rules: nothing here is synced. The mount dies with the machine and the container with it, so after a power cut
//! the folder is only something to remove; overlayfs is told so (`volatile`) and skips its own syncs.
//! [`Store::rootfs`] for an id that has a folder starts with an empty one.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
};

use super::unpack::{open_directory, remove_tree};
use super::{Image, Removed, Store, random_name};
use crate::id::{ContainerId, Digest};

/// What fsconfig(2) takes as a string value, its final NUL included.
const FSCONFIG_VALUE_MAX: usize = 256;

/// How the rootfs is wanted.
#[derive(Debug, Default)]
pub(crate) struct RootfsOptions {
    /// The mount itself is read-only at once. Only for who needs to create no mount points in it.
    pub(crate) readonly: bool,
    /// A user namespace: the layers' files appear with the ids it maps theirs to. Needs idmapped mounts of the
    /// filesystem the store is on, and Linux 5.19, from which on overlayfs has layers on such mounts. The
    /// writable layer is not mapped: overlayfs works in it as the host's root, whom the namespace does not know.
    pub(crate) idmap: Option<OwnedFd>,
    /// What SELinux sees on every file in it. The kernel has to know this label.
    pub(crate) mount_label: Option<String>,
}

/// A container's root filesystem, not attached anywhere.
#[derive(Debug)]
pub(crate) struct Rootfs {
    /// A detached overlay mount.
    pub(crate) mount: OwnedFd,
    /// Where on the host the container's writes end up.
    pub(crate) upper: PathBuf,
}

/// Why there is no rootfs.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RootfsError {
    #[error("{operation} {}", path.display())]
    Io {
        operation: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{call} for the overlay of {layers} layers of image {image}")]
    Mount {
        call: &'static str,
        image: Digest,
        layers: usize,
        #[source]
        source: io::Error,
    },
    #[error("the image {image} has lost the layer {layer}; pull it again")]
    LayerGone { image: Digest, layer: Digest },
    #[error("open {} in the image {image}", sub_path.display())]
    SubPath {
        sub_path: PathBuf,
        image: Digest,
        #[source]
        source: io::Error,
    },
    #[error("attach the rootfs at {}", target.display())]
    Attach {
        target: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl RootfsError {
    fn io(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { operation, path: path.to_owned(), source }
    }
}

impl Store {
    /// A fresh writable rootfs for `container` on top of `image`. Undone by [`Store::remove_container`]. Blocking:
    /// about a millisecond.
    pub(crate) fn rootfs(
        &self,
        container: &ContainerId,
        image: &Image,
        options: &RootfsOptions,
    ) -> Result<Rootfs, RootfsError> {
        self.use_layers(container, image)?;
        let folder = self.container_path(container);
        let opened = open_directory(&folder).map_err(RootfsError::io("open", &folder))?;
        let (upper, work) = (folder.join("upper"), folder.join("work"));
        let make_empty = |path: &Path| {
            let name = path.file_name().expect("both have a name");
            remove_tree(opened.as_fd(), name)?;
            fs::DirBuilder::new().mode(0o700).create(path)
        };
        for path in [&upper, &work] {
            make_empty(path).map_err(RootfsError::io("make an empty directory at", path))?;
        }
        self.inner.writable.forget(container);
        let lower = self.lower(image)?;
        let attributes =
            if options.readonly { MountAttrFlags::MOUNT_ATTR_RDONLY } else { MountAttrFlags::empty() };
        let failed =
            |call, source| RootfsError::Mount { call, image: image.id.clone(), layers: lower.len(), source };
        let shown = self
            .show(&lower, options.idmap.as_ref())
            .map_err(|source| failed("map the ids of the layers", source))?;
        let own = self.near(&[upper.clone(), work.clone()]);
        // The merged root shows the owner and mode of its uppermost directory.
        root_owner(&lower)
            .and_then(|layer| fs::metadata(&shown.paths[layer]))
            .and_then(|root| {
                std::os::unix::fs::chown(&upper, Some(root.uid()), Some(root.gid()))?;
                fs::set_permissions(&upper, fs::Permissions::from_mode(root.mode() & 0o7777))
            })
            .map_err(RootfsError::io("set owner and mode of", &upper))?;
        let overlay = Overlay {
            lower: &shown.paths,
            upper: Some((&own.paths[0], &own.paths[1])),
            attributes,
            label: options.mount_label.as_deref(),
        };
        let mount = overlay.mount_mapped(&shown.mapped, &folder, || make_empty(&work));
        let mount = mount.map_err(|(call, source)| failed(call, source.into()))?;
        Ok(Rootfs { mount, upper })
    }

    /// Attaches a rootfs at `target`, an empty directory, or a file for a file, for runtimes that need a path. Undone by umount2(2). Blocking.
    pub(crate) fn rootfs_attach(&self, mount: impl AsFd, target: &Path) -> Result<(), RootfsError> {
        let attach = || {
            let kind = FileType::from_raw_mode(rustix::fs::fstat(&mount)?.st_mode);
            let mut flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            flags.set(OFlags::DIRECTORY, kind == FileType::Directory);
            let place = rustix::fs::openat(CWD, target, flags, Mode::empty())?;
            let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
            rustix::mount::move_mount(mount, "", place, "", flags)
        };
        attach().map_err(|source| RootfsError::Attach { target: target.to_owned(), source: source.into() })
    }

    /// A read-only detached mount of `image`, or of the directory or file `sub_path` in it, for `container`, with ids and
    /// label as for a rootfs. The image's layers stay until the container is removed. Blocking.
    ///
    /// # Errors
    /// When `sub_path` does not exist in the image; it is resolved inside it.
    pub(crate) fn image_mount(
        &self,
        container: &ContainerId,
        image: &Image,
        sub_path: Option<&Path>,
        options: &RootfsOptions,
    ) -> Result<OwnedFd, RootfsError> {
        self.use_layers(container, image)?;
        let mut lower = self.lower(image)?;
        // overlayfs without an upper wants two lower layers.
        while lower.len() < 2 {
            lower.push(self.inner.root.join("empty"));
        }
        let failed =
            |call, source| RootfsError::Mount { call, image: image.id.clone(), layers: lower.len(), source };
        let shown = self
            .show(&lower, options.idmap.as_ref())
            .map_err(|source| failed("map the ids of the layers", source))?;
        let overlay = Overlay {
            lower: &shown.paths,
            upper: None,
            attributes: MountAttrFlags::MOUNT_ATTR_RDONLY,
            label: options.mount_label.as_deref(),
        };
        let scratch = self.container_path(container);
        let mount = overlay
            .mount_mapped(&shown.mapped, &scratch, || Ok(()))
            .map_err(|(call, source)| failed(call, source.into()))?;
        let Some(sub_path) = sub_path.filter(|path| !path.as_os_str().is_empty()) else {
            return Ok(mount);
        };
        let place = open_part(&mount, sub_path).map_err(|source| RootfsError::SubPath {
            sub_path: sub_path.to_owned(),
            image: image.id.clone(),
            source: source.into(),
        })?;
        match clone_of(&place) {
            // Before Linux 6.15 only mounts in the caller's namespace can be copied.
            Err(Errno::INVAL) => Attached::at(&scratch, &[&mount])
                .and_then(|attached| attached.part(sub_path))
                .map_err(|(call, source)| failed(call, source.into())),
            cloned => cloned.map_err(|source| failed("open_tree", source.into())),
        }
    }

    /// Removes a container's writable layer and releases its layers. The rootfs must be unmounted. Blocking.
    pub(crate) fn remove_container(&self, container: &ContainerId) -> Result<Removed, RootfsError> {
        let folder = self.inner.root.join("containers");
        let path = self.container_path(container);
        // In one step, so that a crash leaves a whole folder or none.
        let name = random_name("tmp-");
        let layers = self.inner.root.join("layers");
        let removed = match fs::rename(&path, layers.join(&name)) {
            Ok(()) => Removed::Now,
            Err(err) if err.kind() == io::ErrorKind::NotFound => Removed::AlreadyGone,
            Err(err) => return Err(RootfsError::io("move away", &path)(err)),
        };
        self.inner.writable.forget(container);
        self.inner.state().containers.remove(container);
        if removed == Removed::Now {
            let opened = open_directory(&layers).map_err(RootfsError::io("open", &folder))?;
            remove_tree(opened.as_fd(), name.as_ref())
                .map_err(RootfsError::io("remove", &layers.join(&name)))?;
        }
        Ok(removed)
    }

    /// The containers that have something here, so that recovery can remove those it does not know.
    pub(crate) fn containers(&self) -> Vec<ContainerId> {
        self.inner.state().containers.keys().cloned().collect()
    }

    /// `containers/<id>`.
    pub(super) fn container_path(&self, container: &ContainerId) -> PathBuf {
        self.inner.root.join("containers").join(container.as_str())
    }

    /// Notes, on disk first, that a container needs the image's layers.
    fn use_layers(&self, container: &ContainerId, image: &Image) -> Result<(), RootfsError> {
        let folder = self.container_path(container);
        let mut used: BTreeSet<Digest> = {
            let mut state = self.inner.state();
            if let Some(layer) = image.layers.iter().find(|diff_id| !state.layers.contains_key(*diff_id)) {
                return Err(RootfsError::LayerGone { image: image.id.clone(), layer: layer.clone() });
            }
            // In memory first too: from here on the collector leaves them alone.
            let used = state.containers.entry(container.clone()).or_default();
            used.extend(image.layers.iter().cloned());
            used.clone()
        };
        used.extend(image.layers.iter().cloned());
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)
            .map_err(RootfsError::io("create", &folder))?;
        let path = folder.join("layers.json");
        let partial = folder.join("layers.json.tmp");
        let text = serde_json::to_vec(&used).expect("digests are strings");
        fs::write(&partial, text)
            .and_then(|()| fs::rename(&partial, &path))
            .map_err(RootfsError::io("write", &path))
    }

    /// The directories to stack, the uppermost first. Never empty.
    fn lower(&self, image: &Image) -> Result<Vec<PathBuf>, RootfsError> {
        let mut lower: Vec<PathBuf> = Vec::new();
        for diff_id in image.layers.iter().rev() {
            let path = self.layer_path(diff_id).join("fs");
            // A layer may stand in an image twice; overlayfs wants each directory once, and the upper one decides.
            if lower.contains(&path) {
                continue;
            }
            let mut value = [0u8; 1];
            let opaque = match rustix::fs::lgetxattr(&path, "trusted.overlay.opaque", &mut value) {
                Ok(1) => value == *b"y",
                Ok(_) | Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::RANGE) => false,
                Err(Errno::NOENT) => {
                    return Err(RootfsError::LayerGone { image: image.id.clone(), layer: diff_id.clone() });
                }
                Err(err) => return Err(RootfsError::io("look at the layer", &path)(err.into())),
            };
            lower.push(path);
            // overlayfs looks at this attribute everywhere but at the root of a layer.
            if opaque {
                break;
            }
        }
        if lower.is_empty() {
            lower.push(self.inner.root.join("empty"));
        }
        Ok(lower)
    }
}

/// Directories of the store as an overlay takes them.
struct Shown {
    paths: Vec<PathBuf>,
    /// Detached mounts that the paths name; empty if no ids are mapped.
    mapped: Vec<OwnedFd>,
    /// Other descriptors that they name. Both are open until the overlay has references of its own.
    _opened: Vec<OwnedFd>,
}

impl Shown {
    fn opened(opened: Vec<OwnedFd>) -> Self {
        Self { paths: Self::names(&opened), mapped: Vec::new(), _opened: opened }
    }

    fn names(opened: &[OwnedFd]) -> Vec<PathBuf> {
        opened.iter().map(|opened| PathBuf::from(fd_path(opened.as_fd()))).collect()
    }
}

impl Store {
    /// `paths` through the store's own mount if all of them can be reached there, else as they are.
    fn near(&self, paths: &[PathBuf]) -> Shown {
        let open = |path: &PathBuf| self.inner.detached.as_ref()?.open(path);
        match paths.iter().map(open).collect::<Option<Vec<OwnedFd>>>() {
            Some(opened) => Shown::opened(opened),
            None => Shown { paths: paths.to_vec(), mapped: Vec::new(), _opened: Vec::new() },
        }
    }

    /// Layers, with ids as `idmap` maps them.
    fn show(&self, lower: &[PathBuf], idmap: Option<&OwnedFd>) -> io::Result<Shown> {
        let near = self.near(lower);
        let Some(user_namespace) = idmap else { return Ok(near) };
        let map = |path: &PathBuf| map_ids(path, user_namespace);
        let mapped = near.paths.iter().map(map).collect::<io::Result<Vec<_>>>()?;
        Ok(Shown { paths: Shown::names(&mapped), mapped, _opened: Vec::new() })
    }
}

/// Whose owner and mode the image's root has: the uppermost layer that says something about its root.
fn root_owner(lower: &[PathBuf]) -> io::Result<usize> {
    for (at, path) in lower.iter().enumerate() {
        let root = fs::symlink_metadata(path)?;
        if (root.uid(), root.gid(), root.mode() & 0o7777) != (0, 0, 0o755) {
            return Ok(at);
        }
    }
    Ok(0)
}

/// An overlay to be mounted.
struct Overlay<'a> {
    /// The uppermost first; at least one, and two without `upper`.
    lower: &'a [PathBuf],
    /// Upper and work directory.
    upper: Option<(&'a Path, &'a Path)>,
    attributes: MountAttrFlags,
    label: Option<&'a str>,
}

type CallResult<T> = Result<T, (&'static str, Errno)>;

impl Overlay<'_> {
    /// `scratch` is a folder that the fallback for old kernels may mount in for a moment.
    fn mount(&self, scratch: &Path) -> CallResult<OwnedFd> {
        // Once known, not tried again: each refusal is a line in the kernel's log.
        static BY_PATH_ONLY: AtomicBool = AtomicBool::new(false);
        if BY_PATH_ONLY.load(Ordering::Relaxed) {
            return self.mount_by_path(scratch);
        }
        match self.mount_by_fsconfig() {
            // Before Linux 6.7 (b36a5780cb44) overlayfs does not know `lowerdir+`. Before 6.5 it has no parameters of
            // its own: fsconfig collects any, within a page, and the last step finds the unknown one.
            Err((_, Errno::INVAL)) => {
                let mounted = self.mount_by_path(scratch);
                if mounted.is_ok() {
                    BY_PATH_ONLY.store(true, Ordering::Relaxed);
                }
                mounted
            }
            other => other,
        }
    }

    /// As [`Overlay::mount`], where the layers are `mapped`, if any is. `again` makes the work directory new.
    fn mount_mapped(
        &self,
        mapped: &[OwnedFd],
        scratch: &Path,
        again: impl FnOnce() -> io::Result<()>,
    ) -> CallResult<OwnedFd> {
        match self.mount(scratch) {
            // Before Linux 6.15 overlayfs takes layers only from mounts in the caller's namespace.
            Err(_) if !mapped.is_empty() => {
                // The kernel marks it as `volatile` before it looks at the layers, and then takes it only once.
                again().map_err(|err| ("empty the work directory", errno(&err)))?;
                Attached::at(scratch, mapped).and_then(|attached| attached.overlay(self, scratch))
            }
            mounted => mounted,
        }
    }

    fn mount_by_fsconfig(&self) -> CallResult<OwnedFd> {
        let context =
            rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).map_err(|err| ("fsopen", err))?;
        // Directories opened for values that do not fit; the kernel resolves them in fsconfig itself.
        let set = |key: &'static str, name: &'static str, path: &Path| -> CallResult<()> {
            let fits = path.as_os_str().len() < FSCONFIG_VALUE_MAX
                && !path.as_os_str().as_bytes().iter().any(|byte| matches!(byte, b'\\' | b':' | b','));
            let result = if fits {
                rustix::mount::fsconfig_set_string(context.as_fd(), key, path)
            } else {
                let opened = open_path(path).map_err(|err| ("open a layer", err))?;
                rustix::mount::fsconfig_set_string(context.as_fd(), key, fd_path(opened.as_fd()))
            };
            result.map_err(|err| (name, err))
        };
        for path in self.lower {
            set("lowerdir+", "fsconfig lowerdir+", path)?;
        }
        if let Some((upper, work)) = self.upper {
            set("upperdir", "fsconfig upperdir", upper)?;
            set("workdir", "fsconfig workdir", work)?;
            // Linux 5.10. Without it overlayfs syncs the whole upper filesystem at unmount.
            rustix::mount::fsconfig_set_flag(context.as_fd(), "volatile")
                .map_err(|err| ("fsconfig volatile", err))?;
        }
        if let Some(label) = self.label {
            rustix::mount::fsconfig_set_string(context.as_fd(), "context", label)
                .map_err(|err| ("fsconfig context", err))?;
        }
        rustix::mount::fsconfig_create(context.as_fd()).map_err(|err| ("fsconfig create", err))?;
        rustix::mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, self.attributes)
            .map_err(|err| ("fsmount", err))
    }

    /// By mount(2), whose options fit one page: layers are named by descriptor, 18 bytes each.
    fn mount_by_path(&self, scratch: &Path) -> CallResult<OwnedFd> {
        let open = |path: &Path| open_path(path).map_err(|err| ("open a layer", err));
        let lower = self.lower.iter().map(|path| open(path)).collect::<CallResult<Vec<_>>>()?;
        let names: Vec<_> = lower.iter().map(|opened| fd_path(opened.as_fd())).collect();
        let mut options = format!("lowerdir={}", names.join(":"));
        let upper = self.upper.map(|(upper, work)| Ok((open(upper)?, open(work)?))).transpose()?;
        if let Some((upper, work)) = &upper {
            let (upper, work) = (fd_path(upper.as_fd()), fd_path(work.as_fd()));
            options += &format!(",upperdir={upper},workdir={work},volatile");
        }
        if let Some(label) = self.label {
            // In quotation marks, because categories have commas between them.
            options += &format!(",context=\"{label}\"");
        }
        let target = scratch.join(random_name("mount-"));
        fs::DirBuilder::new().mode(0o700).create(&target).map_err(|err| ("mkdir", errno(&err)))?;
        let options = std::ffi::CString::new(options).expect("numbers, fixed words and labels hold no NUL");
        let flags = if self.attributes.contains(MountAttrFlags::MOUNT_ATTR_RDONLY) {
            MountFlags::RDONLY
        } else {
            MountFlags::empty()
        };
        let mounted = rustix::mount::mount("overlay", &target, "overlay", flags, options.as_c_str())
            .map_err(|err| ("mount", err))
            .and_then(|()| {
                let cloned =
                    open_path(&target).and_then(|root| clone_of(&root)).map_err(|err| ("open_tree", err));
                let unmounted =
                    rustix::mount::unmount(&target, UnmountFlags::DETACH).map_err(|err| ("umount2", err));
                cloned.and_then(|cloned| unmounted.map(|()| cloned))
            });
        let removed = fs::remove_dir(&target).map_err(|err| ("rmdir", errno(&err)));
        mounted.and_then(|mount| removed.map(|()| mount))
    }
}

/// Detached mounts, shown in a folder for as long as it takes to mount an overlay of them or to copy a part. Both are
/// independent of them.
struct Attached(Vec<PathBuf>);

impl Attached {
    fn at(folder: &Path, mounts: &[impl AsFd]) -> CallResult<Self> {
        let mut attached = Self(Vec::with_capacity(mounts.len()));
        for mount in mounts {
            let target = folder.join(random_name("layer-"));
            fs::DirBuilder::new().mode(0o700).create(&target).map_err(|err| ("mkdir", errno(&err)))?;
            attached.0.push(target.clone());
            let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
            rustix::mount::move_mount(mount, "", CWD, &target, flags).map_err(|err| ("move_mount", err))?;
        }
        Ok(attached)
    }

    fn overlay(&self, overlay: &Overlay<'_>, scratch: &Path) -> CallResult<OwnedFd> {
        Overlay { lower: &self.0, ..*overlay }.mount(scratch)
    }

    /// A detached mount of what `path` is in the first.
    fn part(&self, path: &Path) -> CallResult<OwnedFd> {
        // What is attached shows the same mount as its descriptor, so the path is resolved in it once more.
        let root = open_path(&self.0[0]).map_err(|err| ("open the image", err))?;
        open_part(&root, path).and_then(|place| clone_of(&place)).map_err(|err| ("open_tree", err))
    }
}

impl Drop for Attached {
    /// Whatever stays is removed with the container's folder; a mount of a private directory of ours has no other user.
    fn drop(&mut self) {
        for path in &self.0 {
            rustix::mount::unmount(path, UnmountFlags::DETACH).ok();
            fs::remove_dir(path).ok();
        }
    }
}

/// A detached mount of the directory at `path` with ids as `user_namespace` maps them.
fn map_ids(path: &Path, user_namespace: &OwnedFd) -> io::Result<OwnedFd> {
    let mount = clone_of(&open_path(path)?)?;
    crate::sys::mount::map_ids(&mount, false, user_namespace.as_fd())?;
    Ok(mount)
}

/// A detached copy of the mount at `place`, rooted there.
fn clone_of(place: &OwnedFd) -> rustix::io::Result<OwnedFd> {
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    rustix::mount::open_tree(place, "", flags)
}

/// What `path` is inside the mount `root`, whatever links in it say.
fn open_part(root: &OwnedFd, path: &Path) -> rustix::io::Result<OwnedFd> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    rustix::fs::openat2(root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve)
}

/// Follows links: a layer with mapped ids is named by its descriptor in /proc.
fn open_path(path: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, path, flags, Mode::empty())
}

fn fd_path(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

fn errno(err: &io::Error) -> Errno {
    Errno::from_io_error(err).unwrap_or(Errno::IO)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn privileged_layers_can_be_attached_for_a_moment_for_kernels_before_6_15() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for name in ["top", "bottom", "upper", "work", "scratch"] {
            fs::create_dir_all(path(name)).unwrap();
        }
        fs::write(path("top/f"), "top").unwrap();
        fs::write(path("bottom/g"), "bottom").unwrap();
        let mapped: Vec<OwnedFd> =
            ["top", "bottom"].map(|name| clone_of(&open_path(&path(name)).unwrap()).unwrap()).into();
        let (upper, work) = (path("upper"), path("work"));
        let none = Overlay {
            lower: &[],
            upper: Some((&upper, &work)),
            attributes: MountAttrFlags::empty(),
            label: None,
        };
        let attached = Attached::at(&path("scratch"), &mapped).unwrap();
        let mount = attached.overlay(&none, &path("scratch")).unwrap();
        drop((attached, mapped));
        for (name, text) in [("f", "top"), ("g", "bottom")] {
            let file = rustix::fs::openat(&mount, name, OFlags::RDONLY, Mode::empty()).unwrap();
            assert_eq!(io::read_to_string(fs::File::from(file)).unwrap(), text);
        }
        assert_eq!(fs::read_dir(path("scratch")).unwrap().count(), 0);
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(dir.path().to_str().unwrap()), "something stayed mounted");
    }

    #[test]
    fn privileged_a_part_of_an_image_can_be_copied_on_kernels_before_6_15_too() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for name in ["top/data", "scratch"] {
            fs::create_dir_all(path(name)).unwrap();
        }
        fs::write(path("top/data/f"), "f").unwrap();
        let mount = clone_of(&open_path(&path("top")).unwrap()).unwrap();
        let attached = Attached::at(&path("scratch"), &[&mount]).unwrap();
        let part = attached.part(Path::new("../data")).unwrap();
        drop((attached, mount));
        let file = rustix::fs::openat(&part, "f", OFlags::RDONLY, Mode::empty()).unwrap();
        assert_eq!(io::read_to_string(fs::File::from(file)).unwrap(), "f");
        assert_eq!(fs::read_dir(path("scratch")).unwrap().count(), 0);
    }

    #[test]
    fn privileged_the_way_for_old_kernels_makes_the_same_mount() {
        let dir = tempfile::tempdir().unwrap();
        // A name that neither fsconfig nor mount(2) would take as it is.
        let folder = dir.path().join(format!("a:b,c\\d{}", "x".repeat(240)));
        let path = |name: &str| folder.join(name);
        for name in ["top", "bottom", "upper", "work", "scratch"] {
            fs::create_dir_all(path(name)).unwrap();
        }
        fs::write(path("top/f"), "top").unwrap();
        fs::write(path("bottom/f"), "bottom").unwrap();
        fs::write(path("bottom/g"), "g").unwrap();
        let (lower, upper, work) = ([path("top"), path("bottom")], path("upper"), path("work"));
        for way in [Overlay::mount, Overlay::mount_by_path] {
            for attributes in [MountAttrFlags::empty(), MountAttrFlags::MOUNT_ATTR_RDONLY] {
                for name in ["upper", "work"] {
                    fs::remove_dir_all(path(name)).unwrap();
                    fs::create_dir(path(name)).unwrap();
                }
                let overlay =
                    Overlay { lower: &lower, upper: Some((&upper, &work)), attributes, label: None };
                let mount = way(&overlay, &path("scratch")).unwrap();
                let open = |name: &str, flags| {
                    rustix::fs::openat(&mount, name, flags, Mode::from_raw_mode(0o600)).map(fs::File::from)
                };
                let read = |name| io::read_to_string(open(name, OFlags::RDONLY).unwrap()).unwrap();
                assert_eq!((read("f"), read("g")), ("top".to_owned(), "g".to_owned()));
                let made = open("new", OFlags::WRONLY | OFlags::CREATE);
                assert_eq!(made.is_ok(), attributes.is_empty());
                assert_eq!(fs::read_dir(path("scratch")).unwrap().count(), 0);
            }
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(dir.path().to_str().unwrap()), "something stayed mounted");
    }
}
