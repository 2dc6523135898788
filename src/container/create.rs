//! CreateContainer: intent, rootfs, bundle, monitor, publish.
//!
//! Each step consumes the one before and knows how to take everything back, so a failure leaves nothing.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use oci_spec::image::ImageConfiguration;
use rustix::fs::CWD;

use super::bundle::{self, Bundle, BundleInput};
use super::record::{ContainerRecord, Saved};
use super::spec::{ContainerSpec, MountSource};
use super::state::State;
use super::user::ContainerUser;
use super::{ContainerError, Containers, Placement, now};
use crate::events::EventKind;
use crate::id::{ContainerId, PodId};
use crate::image::{Image, Rootfs, RootfsOptions, Store, StoreError};
use crate::monitor::client::{CreateRequest, LogTarget};
use crate::sys::mount::clone_tree;
use crate::task::blocking;

/// What makes a repeat the same call: the pod, the name and attempt, and the request itself.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pod: PodId,
    name: String,
    attempt: u32,
    request: String,
}

impl Containers {
    /// Creates a container in the pod of `placement`. A repeat of the same call gets the same id.
    ///
    /// Cancel-safe: the work goes on without its caller.
    pub(crate) async fn create(
        &self,
        placement: Placement,
        spec: ContainerSpec,
    ) -> Result<ContainerId, ContainerError> {
        let key = Key {
            pod: placement.pod.clone(),
            name: spec.name.clone(),
            attempt: spec.attempt,
            request: serde_json::to_string(&spec).expect("a spec has only string keys and finite numbers"),
        };
        let this = self.clone();
        self.0
            .creating
            .run(key, move || async move { this.create_once(placement, Arc::new(spec)).await })
            .await
    }

    async fn create_once(
        &self,
        placement: Placement,
        spec: Arc<ContainerSpec>,
    ) -> Result<ContainerId, ContainerError> {
        if let Some(id) = self.already_created(&placement.pod, &spec)? {
            return Ok(id);
        }
        let intended = Intended::new(self, placement, spec).await?;
        let rooted = intended.make_rootfs().await?;
        let bundled = rooted.write_bundle().await?;
        bundled.hand_to_monitor().await
    }

    /// The container that an earlier, equal call created and that has not been started since.
    fn already_created(
        &self,
        pod: &PodId,
        spec: &ContainerSpec,
    ) -> Result<Option<ContainerId>, ContainerError> {
        let table = self.table();
        let Some(id) = table.by_name.get(&(pod.clone(), spec.name.clone(), spec.attempt)) else {
            return Ok(None);
        };
        let existing = &table.by_id[id];
        if **existing.spec() == *spec && existing.live().state == State::Created {
            return Ok(Some(id.clone()));
        }
        Err(ContainerError::Exists {
            name: spec.name.clone(),
            attempt: spec.attempt,
            pod: pod.clone(),
            existing: id.clone(),
        })
    }

    /// Takes back all that a creation makes, in reverse order. What is missing is skipped.
    pub(crate) async fn take_back(&self, saved: &Saved) {
        let (store, dir, id) = (self.0.store.clone(), self.bundle_dir(&saved.id), saved.id.clone());
        let done = blocking(move || {
            remove_bundle(&dir)?;
            store.remove_container(&id).map(drop).map_err(io::Error::other)
        })
        .await;
        match done {
            Ok(()) => {
                if let Err(error) = self.0.records.remove(saved.id.to_string()).await {
                    tracing::error!(container = %saved.id, error = %error, "cannot remove the record");
                }
            }
            // The record stays, so the next start of the daemon tries again.
            Err(error) => {
                tracing::error!(container = %saved.id, error = %error, "cannot take back a container")
            }
        }
    }
}

/// The record says that the container is being made. Undone by [`Intended::fail`].
#[must_use]
struct Intended {
    all: Containers,
    placement: Placement,
    saved: Saved,
    image: Arc<Image>,
    config: ImageConfiguration,
}

impl Intended {
    async fn new(
        all: &Containers,
        placement: Placement,
        spec: Arc<ContainerSpec>,
    ) -> Result<Self, ContainerError> {
        let (store, name) = (all.0.store.clone(), spec.image.image.clone());
        let found = blocking(move || match store.find(&name)? {
            Some(image) => Ok(Some((store.config(&image)?, image))),
            None => Ok(None),
        });
        let (config, image) = found
            .await
            .map_err(|source: StoreError| ContainerError::Image {
                image: spec.image.image.clone(),
                source: Arc::new(source),
            })?
            .ok_or_else(|| ContainerError::NoImage(spec.image.image.clone()))?;
        let id = ContainerId::random();
        let log_path = match (&placement.log_directory, &spec.log_path) {
            (Some(directory), Some(path)) => Some(directory.join(path)),
            _ => None,
        };
        let saved = Saved {
            pod: placement.pod.clone(),
            created_at: now(),
            image_id: image.id.clone(),
            image_ref: image.repo_digests.first().cloned().unwrap_or_else(|| image.id.to_string()),
            image_name: image.tags.first().cloned().unwrap_or_else(|| spec.image.image.clone()),
            user: ContainerUser::default(),
            stop_signal: String::new(),
            log_path,
            mounted_images: Default::default(),
            cgroup: String::new(),
            spec,
            id,
        };
        let record =
            ContainerRecord { saved: saved.clone(), state: None, pid: None, resources: Default::default() };
        all.0.records.put(record).await.map_err(|source| ContainerError::Record {
            id: saved.id.to_string(),
            source: Arc::new(source),
        })?;
        Ok(Self { all: all.clone(), placement, saved, image, config })
    }

    async fn make_rootfs(self) -> Result<Rooted, ContainerError> {
        let (store, id, image) = (self.all.0.store.clone(), self.saved.id.clone(), Arc::clone(&self.image));
        match blocking(move || store.rootfs(&id, &image, &RootfsOptions::default())).await {
            Ok(rootfs) => Ok(Rooted { intended: self, rootfs }),
            Err(source) => {
                let name = self.saved.spec.name.clone();
                Err(self.fail(ContainerError::Rootfs { name, source: Arc::new(source) }).await)
            }
        }
    }

    async fn fail(self, cause: ContainerError) -> ContainerError {
        self.all.take_back(&self.saved).await;
        cause
    }
}

/// Adds the writable rootfs, mounted but attached nowhere. Undone by [`Intended::fail`].
#[must_use]
struct Rooted {
    intended: Intended,
    rootfs: Rootfs,
}

impl Rooted {
    async fn write_bundle(self) -> Result<Bundled, ContainerError> {
        let Self { mut intended, rootfs } = self;
        let dir = intended.all.bundle_dir(&intended.saved.id);
        let settings = intended.all.0.settings.bundle.clone();
        let store = intended.all.0.store.clone();
        let (mut saved, view, config) =
            (intended.saved.clone(), Arc::clone(&intended.placement.view), intended.config.clone());
        let handler = Arc::clone(&intended.placement.handler);
        let written = blocking(move || -> Result<_, ContainerError> {
            let image_mounts = image_mounts(&store, &mut saved)?;
            let bundle = bundle::generate(&BundleInput {
                spec: &saved.spec,
                pod: &view,
                image: &config,
                rootfs: &rootfs.mount,
                id: &saved.id,
                settings: &settings,
                handler: &handler,
            })
            .map_err(|source| ContainerError::Bundle {
                name: saved.spec.name.clone(),
                source: Arc::new(source),
            })?;
            for warning in &bundle.warnings {
                tracing::warn!(container = %saved.id, "{warning}");
            }
            let mount_fds = write_bundle(&dir, &bundle, &store, &rootfs, image_mounts, handler.bundled)?;
            Ok((bundle, rootfs, mount_fds, saved))
        })
        .await;
        match written {
            Ok((bundle, rootfs, mount_fds, saved)) => {
                intended.saved = saved;
                intended.saved.user = bundle.user.clone();
                intended.saved.stop_signal = bundle.stop_signal.clone();
                intended.saved.cgroup = bundle.cgroup_path.clone();
                Ok(Bundled { intended, rootfs, mount_fds })
            }
            Err(cause) => Err(intended.fail(cause).await),
        }
    }
}

/// Adds the bundle on disk and the sources of its mounts. Undone by [`Intended::fail`].
#[must_use]
struct Bundled {
    intended: Intended,
    rootfs: Rootfs,
    mount_fds: Vec<(usize, OwnedFd)>,
}

impl Bundled {
    async fn hand_to_monitor(self) -> Result<ContainerId, ContainerError> {
        let Self { intended, rootfs, mount_fds } = self;
        let Intended { all, placement, saved, .. } = &intended;
        let log = match saved.log_path.as_deref().map(open_log_directory).transpose() {
            Ok(log) => log,
            Err(cause) => return Err(intended.fail(cause).await),
        };
        let spec = &saved.spec;
        let request = CreateRequest {
            id: saved.id.to_string(),
            runtime: placement.handler.runtime(),
            bundle: all.bundle_dir(&saved.id),
            log,
            terminal: spec.tty,
            stdin: spec.stdin,
            stdin_once: spec.stdin_once,
            cgroup: saved.cgroup.clone(),
            rootfs: placement.handler.bundled.then_some(rootfs.mount),
            mounts: if placement.handler.bundled { mount_fds } else { Vec::new() },
            timeout: all.0.settings.runtime_timeout,
        };
        let created = match placement.monitor.create(request).await {
            Ok(created) => created,
            Err(source) => {
                let name = spec.name.clone();
                placement.monitor.delete(saved.id.as_str()).await.ok();
                let cause = ContainerError::Monitor { verb: "create", name, source: Arc::new(source) };
                return Err(intended.fail(cause).await);
            }
        };
        let record = ContainerRecord {
            saved: saved.clone(),
            state: Some(State::Created),
            pid: Some(created.pid),
            resources: spec.resources.clone(),
        };
        if let Err(source) = all.0.records.put(record.clone()).await {
            placement.monitor.delete(saved.id.as_str()).await.ok();
            let cause = ContainerError::Record { id: saved.id.to_string(), source: Arc::new(source) };
            return Err(intended.fail(cause).await);
        }
        let container = all.adopt(record, placement.clone());
        all.event(&container, EventKind::Created);
        Ok(saved.id.clone())
    }
}

/// Writes `config.json` and gets hold of every mount source while the host's paths are in sight.
fn write_bundle(
    dir: &Path,
    bundle: &Bundle,
    store: &Store,
    rootfs: &Rootfs,
    mut image_mounts: Vec<(usize, OwnedFd)>,
    bundled: bool,
) -> Result<Vec<(usize, OwnedFd)>, ContainerError> {
    let file = |action, path: &Path, source: io::Error| ContainerError::File {
        action,
        path: path.to_owned(),
        source: Arc::new(source),
    };
    let root = dir.join("rootfs");
    std::fs::create_dir_all(&root).map_err(|e| file("create directory", &root, e))?;
    let config = dir.join("config.json");
    let text = serde_json::to_vec(&bundle.spec).expect("an OCI spec has only string keys");
    std::fs::write(&config, text).map_err(|e| file("write", &config, e))?;
    if !bundled {
        store
            .rootfs_attach(&rootfs.mount, &root)
            .map_err(|e| file("mount the rootfs at", &root, io::Error::other(e)))?;
        return Ok(Vec::new());
    }
    for (index, source) in bundle.mount_sources.iter().enumerate() {
        let Some(source) = source else { continue };
        let fd = clone_tree(CWD, source, true).map_err(|e| file("open the mount source", source, e))?;
        image_mounts.push((index, fd));
    }
    Ok(image_mounts)
}

/// Mounts the images that the request wants inside the container. The indexes are into the request's mounts.
fn image_mounts(store: &Store, saved: &mut Saved) -> Result<Vec<(usize, OwnedFd)>, ContainerError> {
    let mut mounts = Vec::new();
    let spec = Arc::clone(&saved.spec);
    for (index, mount) in spec.mounts.iter().enumerate() {
        let MountSource::Image { image: wanted, sub_path } = &mount.source else { continue };
        let name = wanted.image.clone();
        let found = store.find(&name).map_err(|source| ContainerError::Image {
            image: name.clone(),
            source: Arc::new(source.into()),
        })?;
        let image = found.ok_or(ContainerError::NoImage(name))?;
        let fd = store.image_mount(&saved.id, &image, sub_path.as_deref());
        mounts.push((
            index,
            fd.map_err(|source| ContainerError::Rootfs {
                name: spec.name.clone(),
                source: Arc::new(source),
            })?,
        ));
        let reference = image.repo_digests.first().cloned().unwrap_or_else(|| image.id.to_string());
        saved.mounted_images.insert(mount.container_path.clone(), reference);
    }
    Ok(mounts)
}

/// Makes the directory of a log file (the kubelet does; crictl does not) and opens it.
pub(super) fn open_log_directory(path: &Path) -> Result<LogTarget, ContainerError> {
    let file = |action, path: &Path, source: io::Error| ContainerError::File {
        action,
        path: path.to_owned(),
        source: Arc::new(source),
    };
    let (directory, name) = (path.parent().unwrap_or(Path::new("/")), path.file_name().unwrap_or_default());
    std::fs::create_dir_all(directory).map_err(|e| file("create the log directory", directory, e))?;
    let fd = std::fs::File::open(directory).map_err(|e| file("open the log directory", directory, e))?;
    Ok(LogTarget { directory: OwnedFd::from(fd), name: name.to_string_lossy().into_owned() })
}

/// Removes a bundle directory and what a foreign runtime had mounted there.
pub(super) fn remove_bundle(dir: &Path) -> io::Result<()> {
    let root: PathBuf = dir.join("rootfs");
    match rustix::mount::unmount(&root, rustix::mount::UnmountFlags::DETACH) {
        // Not a mount point, or not there.
        Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
