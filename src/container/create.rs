//! CreateContainer: intent, rootfs, bundle, monitor, publish.
//!
//! Each step consumes the one before and knows how to take everything back, so a failure leaves nothing.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use oci_spec::image::ImageConfiguration;
use oci_spec::runtime::Spec;
use rustix::fs::{CWD, FileType};

use super::bundle::{self, Bundle, BundleInput, SelinuxLabels};
use super::handler::Handler;
use super::hardened;
use super::held::HeldFiles;
use super::place::PodPlace;
use super::record::{ContainerRecord, Saved};
use super::relabel::{relabel, relabel_own};
use super::spec::{ContainerSpec, IdMapping, ImageSpec, MountSource, NamespaceMode, UserNamespace};
use super::state::State;
use super::user::ContainerUser;
use super::{ContainerError, Containers, Placement, now};
use crate::events::EventKind;
use crate::id::{ContainerId, PodId};
use crate::image::reference::Reference;
use crate::image::{Image, Rootfs, RootfsOptions, Store, StoreError};
use crate::monitor::client::{CreateRequest, LogTarget};
use crate::sys::detached::Detached;
use crate::sys::mount::{self, Change, clone_tree};
use crate::task::{blocking, chain, expect_new_process};

/// What makes a repeat the same call: the pod, the name and attempt, and the request itself.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pod: PodId,
    name: String,
    attempt: u32,
    request: String,
}

/// The answer to a wish for a name.
enum Reserved {
    Existing(ContainerId),
    New(Making),
}

/// A name that is kept until this is dropped; by then the container has it, or nobody.
struct Making {
    all: Containers,
    name: (PodId, String, u32),
}

impl Drop for Making {
    fn drop(&mut self) {
        self.all.table().making.remove(&self.name);
    }
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
        let _making = match self.reserve(&placement.pod, &spec)? {
            Reserved::Existing(id) => return Ok(id),
            Reserved::New(making) => making,
        };
        if let Some(own) = &placement.handler.hardened {
            hardened::check_container(&spec, own, &placement.place.uid).map_err(|forbidden| {
                ContainerError::Bundle { name: spec.name.clone(), source: Arc::new(forbidden.into()) }
            })?;
        }
        if let Some(mount) = spec.mounts.iter().find(|mount| mount.recursive_read_only)
            && !placement.handler.features.recursive_read_only
        {
            let (destination, handler) = (mount.container_path.clone(), placement.handler.name.clone());
            return Err(ContainerError::RecursiveReadOnly { destination, handler });
        }
        if placement.handler.bundled {
            // Before each of them is an open file.
            placement.monitor.check_mounts(spec.mounts.len()).map_err(|source| ContainerError::Monitor {
                verb: "create",
                name: spec.name.clone(),
                source: Arc::new(source),
            })?;
        }
        let target = self.target(&placement.pod, &spec)?;
        expect_new_process();
        let intended = Intended::new(self, placement, spec, target).await?;
        let rooted = intended.make_rootfs().await?;
        let bundled = rooted.write_bundle().await?;
        bundled.hand_to_monitor().await
    }

    /// The PID namespace of the running container of the same pod that the request targets, if it targets one.
    fn target(&self, pod: &PodId, spec: &ContainerSpec) -> Result<Option<PathBuf>, ContainerError> {
        let NamespaceMode::Target(target) = &spec.security.namespaces.pid else { return Ok(None) };
        let found = self.find(target).ok().filter(|found| found.placement.pod == *pod);
        let running =
            found.map(|found| found.live()).filter(|live| matches!(live.state, State::Running { .. }));
        match running.and_then(|live| live.pid) {
            Some(pid) => Ok(Some(PathBuf::from(format!("/proc/{pid}/ns/pid")))),
            None => Err(ContainerError::Target { name: spec.name.clone(), target: target.clone() }),
        }
    }

    /// Keeps the name for this creation, or finds the container that an earlier, equal call created and that has not
    /// been started since.
    fn reserve(&self, pod: &PodId, spec: &ContainerSpec) -> Result<Reserved, ContainerError> {
        let mut table = self.table();
        let name = (pod.clone(), spec.name.clone(), spec.attempt);
        if let Some(id) = table.by_name.get(&name) {
            let existing = &table.by_id[id];
            if **existing.spec() == *spec && existing.live().state == State::Created {
                return Ok(Reserved::Existing(id.clone()));
            }
            let (pod, name, attempt) = name;
            return Err(ContainerError::Exists { name, attempt, pod, existing: id.clone() });
        }
        if !table.making.insert(name.clone()) {
            let (pod, name, attempt) = name;
            return Err(ContainerError::Busy { name, attempt, pod });
        }
        Ok(Reserved::New(Making { all: self.clone(), name }))
    }

    /// Takes back all that a creation makes, in reverse order. What is missing is skipped. If something stays, so does
    /// the record, and the next start of the daemon tries again.
    pub(crate) async fn take_back(&self, saved: &Saved) -> Result<(), ContainerError> {
        let (store, dir, id) = (self.0.store.clone(), self.bundle_dir(&saved.id), saved.id.clone());
        blocking(move || {
            remove_bundle(&dir).map_err(|e| file_error("remove the bundle", &dir, e))?;
            store
                .remove_container(&id)
                .map(drop)
                .map_err(|source| ContainerError::Rootfs { name: id.to_string(), source: Arc::new(source) })
        })
        .await?;
        let removed = self.0.records.remove(saved.id.to_string()).await;
        removed
            .map_err(|source| ContainerError::Record { id: saved.id.to_string(), source: Arc::new(source) })
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
    /// The PID namespace to join: the pod's, or that of the container it targets.
    pid_ns: Option<PathBuf>,
}

impl Intended {
    async fn new(
        all: &Containers,
        placement: Placement,
        spec: Arc<ContainerSpec>,
        target: Option<PathBuf>,
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
            image_name: image_name(&image.tags, &spec.image),
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
        let pid_ns = target.or_else(|| placement.place.pid_ns.clone());
        Ok(Self { all: all.clone(), placement, saved, image, config, pid_ns })
    }

    async fn make_rootfs(self) -> Result<Rooted, ContainerError> {
        let (store, id, image) = (self.all.0.store.clone(), self.saved.id.clone(), Arc::clone(&self.image));
        let (spec, place) = (Arc::clone(&self.saved.spec), Arc::clone(&self.placement.place));
        let modules = self.all.0.settings.host.modules.clone();
        let hardened = self.placement.handler.hardened.is_some();
        let made = blocking(move || {
            let name = spec.name.clone();
            let labels = modules
                .selinux_labels(&spec.security, place.labels())
                .map_err(|source| ContainerError::Bundle { name: name.clone(), source: Arc::new(source) })?;
            let options = rootfs_options(&place, labels.as_ref())?;
            let rootfs = store
                .rootfs(&id, &image, &options)
                .map_err(|source| ContainerError::Rootfs { name, source: Arc::new(source) })?;
            if hardened {
                // There are no device nodes for it to open, and no_new_privs has made setuid programs plain ones already.
                let change = Change { set: mount::NODEV | mount::NOSUID, ..Change::default() };
                mount::change(&rootfs.mount, false, &change).map_err(|e| {
                    file_error("take setuid and devices from the rootfs of", &rootfs.upper, e)
                })?;
            }
            Ok((rootfs, labels))
        });
        match made.await {
            Ok((rootfs, labels)) => Ok(Rooted { intended: self, rootfs, labels }),
            Err(cause) => Err(self.fail(cause).await),
        }
    }

    async fn fail(self, cause: ContainerError) -> ContainerError {
        if let Err(error) = self.all.take_back(&self.saved).await {
            tracing::error!(container = %self.saved.id, error = %chain(&error), "cannot take back a container");
        }
        cause
    }
}

/// Adds the writable rootfs, mounted but attached nowhere. Undone by [`Intended::fail`].
#[must_use]
struct Rooted {
    intended: Intended,
    rootfs: Rootfs,
    labels: Option<SelinuxLabels>,
}

impl Rooted {
    async fn write_bundle(self) -> Result<Bundled, ContainerError> {
        let Self { mut intended, rootfs, labels } = self;
        let work = BundleWork {
            dir: intended.all.bundle_dir(&intended.saved.id),
            run_mount: intended.all.0.run_mount.clone(),
            host: intended.all.0.settings.host.clone(),
            store: intended.all.0.store.clone(),
            saved: intended.saved.clone(),
            place: Arc::clone(&intended.placement.place),
            pid_ns: intended.pid_ns.clone(),
            handler: Arc::clone(&intended.placement.handler),
            config: intended.config.clone(),
            rootfs,
            labels,
        };
        match blocking(move || work.run()).await {
            Ok(Written { saved, rootfs, mount_fds }) => {
                intended.saved = saved;
                Ok(Bundled { intended, rootfs, mount_fds })
            }
            Err(cause) => Err(intended.fail(cause).await),
        }
    }
}

/// What the blocking part of a creation needs.
struct BundleWork {
    dir: PathBuf,
    run_mount: Option<Arc<Detached>>,
    host: bundle::Host,
    store: Store,
    saved: Saved,
    place: Arc<PodPlace>,
    pid_ns: Option<PathBuf>,
    handler: Arc<Handler>,
    config: ImageConfiguration,
    rootfs: Rootfs,
    labels: Option<SelinuxLabels>,
}

/// What comes of it.
struct Written {
    saved: Saved,
    rootfs: Rootfs,
    /// Sources of mounts, by their index in the OCI config.
    mount_fds: Vec<(usize, OwnedFd)>,
}

impl BundleWork {
    fn run(self) -> Result<Written, ContainerError> {
        let Self { dir, run_mount, host, store, mut saved, place, pid_ns, handler, config, rootfs, labels } =
            self;
        let root = dir.join("rootfs");
        make_bundle_dir(&dir, place.namespaces.user.as_ref())
            .and_then(|()| std::fs::create_dir_all(&root))
            .map_err(|e| file_error("create directory", &root, e))?;
        let options = rootfs_options(&place, labels.as_ref())?;
        let images = ImageMounts::make(&store, &mut saved, &dir, handler.bundled, &options)?;
        let bad = |source| ContainerError::Bundle { name: saved.spec.name.clone(), source: Arc::new(source) };
        let volumes = rootfs.upper.parent().map(|folder| folder.join("volumes"));
        let parent = place.parent();
        let Bundle { mut spec, user, stop_signal, mount_sources, held, volumes, relabels, warnings } =
            bundle::generate(&BundleInput {
                spec: &saved.spec,
                pod: &place.view(&handler, &parent, pid_ns),
                host: &host,
                image: &config,
                rootfs: &rootfs.mount,
                id: &saved.id,
                labels: labels.as_ref(),
                image_mounts: &images.paths,
                // The rootfs is writable where it is not read-only, and what the image has there stays in sight.
                volumes_dir: volumes.as_deref().filter(|_| saved.spec.security.readonly_rootfs),
            })
            .map_err(bad)?;
        for warning in &warnings {
            tracing::warn!(container = %saved.id, "{warning}");
        }
        for volume in &volumes {
            std::fs::create_dir_all(volume)
                .and_then(|()| match &place.namespaces.user {
                    // The host's root is nobody in there, unless the mount maps ids, as a hardened handler's all do.
                    Some(user) if handler.hardened.is_none() => {
                        chown(volume, host_root(&user.uids), host_root(&user.gids))
                    }
                    _ => Ok(()),
                })
                .map_err(|e| file_error("create the volume", volume, e))?;
        }
        for (path, label) in relabels.iter().flat_map(|all| all.paths.iter().map(|path| (path, &all.label))) {
            // The other ones are the folders for volumes of the image.
            let labelled = match held.get(path) {
                Some(file) => relabel(file, path, label),
                None => relabel_own(path, label),
            };
            labelled.map_err(|source| ContainerError::Relabel {
                name: saved.spec.name.clone(),
                source: Arc::new(source),
            })?;
        }
        let mount_fds = if handler.bundled {
            images.open_sources(&mount_sources, &held, place.shm.as_deref(), run_mount.as_deref())?
        } else {
            let attached = store.rootfs_attach(&rootfs.mount, &root);
            attached.map_err(|e| file_error("mount the rootfs at", &root, io::Error::other(e)))?;
            attach_sources(&store, &mut spec, &mount_sources, &held, &dir)?;
            Vec::new()
        };
        let path = dir.join("config.json");
        let text = serde_json::to_vec(&spec).expect("an OCI spec has only string keys");
        // The environment has secrets.
        let file =
            std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path);
        file.and_then(|mut file| file.write_all(&text)).map_err(|e| file_error("write", &path, e))?;
        saved.cgroup = place.cgroups_path(saved.id.as_str()).map_err(bad)?.display().to_string();
        saved.user = user;
        saved.stop_signal = stop_signal.to_string();
        Ok(Written { saved, rootfs, mount_fds })
    }
}

/// The images that the request mounts into the container.
struct ImageMounts {
    /// By the mount's path in the container: where it is attached for a foreign runtime; for ours only a name.
    paths: BTreeMap<PathBuf, PathBuf>,
    /// For our own runtime, by that name.
    detached: BTreeMap<PathBuf, OwnedFd>,
}

impl ImageMounts {
    fn make(
        store: &Store,
        saved: &mut Saved,
        dir: &Path,
        bundled: bool,
        options: &RootfsOptions,
    ) -> Result<Self, ContainerError> {
        let (mut paths, mut detached) = (BTreeMap::new(), BTreeMap::new());
        let spec = Arc::clone(&saved.spec);
        for (number, mount) in spec.mounts.iter().enumerate() {
            let MountSource::Image { image: wanted, sub_path } = &mount.source else { continue };
            let name = wanted.image.clone();
            let found = store.find(&name).map_err(|source| ContainerError::Image {
                image: name.clone(),
                source: Arc::new(source.into()),
            })?;
            let image = found.ok_or(ContainerError::NoImage(name))?;
            let made = store.image_mount(&saved.id, &image, sub_path.as_deref(), options);
            let fd = made.map_err(|source| ContainerError::Rootfs {
                name: spec.name.clone(),
                source: Arc::new(source),
            })?;
            // What PullImage answered for it: critest compares the two.
            saved.mounted_images.insert(mount.container_path.clone(), image.id.to_string());
            let path = dir.join(IMAGES).join(number.to_string());
            if bundled {
                detached.insert(path.clone(), fd);
            } else {
                attach(store, &fd, &path)?;
            }
            paths.insert(mount.container_path.clone(), path);
        }
        Ok(Self { paths, detached })
    }

    /// Gets hold of every mount source while the host's paths are in sight: the runtime is called in a mount namespace
    /// that does not have them. `shm` is the one source that exists only there.
    fn open_sources(
        mut self,
        sources: &[Option<PathBuf>],
        held: &HeldFiles,
        shm: Option<&Path>,
        run_mount: Option<&Detached>,
    ) -> Result<Vec<(usize, OwnedFd)>, ContainerError> {
        let mut fds = Vec::new();
        for (index, source) in sources.iter().enumerate() {
            let Some(source) = source.as_deref().filter(|source| Some(*source) != shm) else { continue };
            let fd = match self.detached.remove(source) {
                Some(fd) => fd,
                None => clone_source(held, source, run_mount)?,
            };
            fds.push((index, fd));
        }
        Ok(fds)
    }
}

fn is_file(opened: &OwnedFd) -> bool {
    rustix::fs::fstat(opened).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile)
}

/// A detached mount of a source: of what was there when the request was checked, or of our own file at its path.
/// Ours, as resolv.conf, is reached through `run_mount`.
fn clone_source(
    held: &HeldFiles,
    source: &Path,
    run_mount: Option<&Detached>,
) -> Result<OwnedFd, ContainerError> {
    let cloned = match held.get(source) {
        Some(file) => clone_tree(file, c"", true),
        // A directory may have mounts below it that only the host's tree shows.
        None => match run_mount.and_then(|mount| mount.open(source)).filter(is_file) {
            Some(file) => clone_tree(file, c"", false),
            None => clone_tree(CWD, source, true),
        },
    };
    cloned.map_err(|e| file_error("open the mount source", source, e))
}

/// Mounts what is held into the bundle's directory and has the config name it there: a foreign runtime walks paths, and
/// nobody else can change one that is ours. Undone by [`detach_sources`] once the runtime has created the container, so that
/// a volume of a container that has ended is not in use.
fn attach_sources(
    store: &Store,
    spec: &mut Spec,
    sources: &[Option<PathBuf>],
    held: &HeldFiles,
    dir: &Path,
) -> Result<(), ContainerError> {
    let folder = dir.join(SOURCES);
    let mounts = spec.mounts_mut().iter_mut().flatten().zip(sources).enumerate();
    let mounts = mounts.filter_map(|(number, (mount, source))| Some((number, mount, source.as_deref()?)));
    let mut mounts = mounts.filter(|(_, _, source)| held.get(source).is_some()).peekable();
    if mounts.peek().is_none() {
        return Ok(());
    }
    // On a mount of its own that is private: below one that is shared, as /run is, a copy of the host's whole tree would
    // appear with every receiver of the host's mounts.
    std::fs::create_dir_all(&folder).map_err(|e| file_error("create directory", &folder, e))?;
    let private = mount::Change { propagation: Some(mount::Propagation::Private), ..Default::default() };
    let own = clone_tree(CWD, &folder, false).map_err(|e| file_error("mount", &folder, e))?;
    attach(store, &own, &folder)?;
    mount::change(&own, false, &private).map_err(|e| file_error("make private", &folder, e))?;
    for (number, mount, source) in mounts {
        let path = folder.join(number.to_string());
        attach(store, &clone_source(held, source, None)?, &path)?;
        mount.set_source(Some(path));
    }
    Ok(())
}

/// Attaches a detached mount at a new path. A mount point is of the kind of what is mounted, which may be a file.
fn attach(store: &Store, mount: &OwnedFd, path: &Path) -> Result<(), ContainerError> {
    let stat = rustix::fs::fstat(mount).map_err(|e| file_error("look at the mount for", path, e.into()))?;
    let folder = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
    std::fs::create_dir_all(if folder { path } else { path.parent().unwrap_or(path) })
        .map_err(|e| file_error("create directory", path, e))?;
    if !folder {
        std::fs::File::create_new(path).map_err(|e| file_error("create", path, e))?;
    }
    store.rootfs_attach(mount, path).map_err(|e| file_error("mount at", path, io::Error::other(e)))
}

/// Where images are mounted for a foreign runtime, in the bundle's directory,
const IMAGES: &str = "images";
/// and, until it has created the container, what is the host's.
const SOURCES: &str = "sources";

/// Makes a bundle's directory. Users of the host may not pass through it: for a foreign runtime the rootfs is mounted there,
/// setuid programs of the image and all (CVE-2021-41103). Such a runtime looks for it as the root of the pod's user
/// namespace, who owns nothing here and has a group.
fn make_bundle_dir(dir: &Path, user: Option<&UserNamespace>) -> io::Result<()> {
    let group = user.and_then(|user| host_root(&user.gids));
    match std::fs::DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    if group.is_some() {
        chown(dir, None, group)?;
    }
    let mode = if group.is_some() { 0o710 } else { 0o700 };
    std::fs::set_permissions(dir, PermissionsExt::from_mode(mode))
}

/// How the pod wants what is mounted of images: with the ids of its user namespace and SELinux's label, if it has them.
fn rootfs_options(place: &PodPlace, labels: Option<&SelinuxLabels>) -> Result<RootfsOptions, ContainerError> {
    let open = |path: &PathBuf| {
        let opened = std::fs::File::open(path).map(OwnedFd::from);
        opened.map_err(|e| file_error("open the pod's user namespace", path, e))
    };
    Ok(RootfsOptions {
        idmap: place.user_ns.as_ref().map(open).transpose()?,
        mount_label: labels.map(|labels| labels.mount.clone()),
        ..RootfsOptions::default()
    })
}

/// Who the container's root is on the host.
fn host_root(mappings: &[IdMapping]) -> Option<u32> {
    mappings.iter().find(|mapping| mapping.container == 0).map(|mapping| mapping.host)
}

fn file_error(action: &'static str, path: &Path, source: io::Error) -> ContainerError {
    ContainerError::File { action, path: path.to_owned(), source: Arc::new(source) }
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
        let log = match &saved.log_path {
            None => None,
            Some(path) => match open_log_directory(path).await {
                Ok(log) => Some(log),
                Err(cause) => return Err(intended.fail(cause).await),
            },
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
            Ok(created) => {
                if !placement.handler.bundled {
                    let dir = all.bundle_dir(&saved.id);
                    if let Err(error) = blocking(move || detach_sources(&dir)).await {
                        let id = &saved.id;
                        tracing::warn!(container = %id, %error, "volumes are in use until the container is removed");
                    }
                }
                created
            }
            Err(source) => {
                let name = spec.name.clone();
                // Without an answer the monitor may be at it still.
                placement.monitor.delete_unfinished(saved.id.as_str()).await.ok();
                if let Some(path) = saved.log_path.clone() {
                    blocking(move || remove_empty_log(&path)).await;
                }
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
        let early = all.table().early.remove(saved.id.as_str());
        if let Some(ended) = early {
            all.on_exit(&container, ended).await;
        }
        Ok(saved.id.clone())
    }
}

/// How the status names an image: the tag that the pod's author wrote, else its first tag, else what the request says. The
/// kubelet requests an image by its id, and shows what the status says to people.
fn image_name(tags: &[String], asked: &ImageSpec) -> String {
    let written = [&asked.user_specified_image, &asked.image].into_iter().find_map(|name| {
        let tag = name.parse::<Reference>().ok()?.to_string();
        tags.iter().find(|known| **known == tag)
    });
    written.or(tags.first()).unwrap_or(&asked.image).clone()
}

/// Makes the directory of a log file (the kubelet does; crictl does not) and opens it. Off the async threads: logs may lie
/// on a filesystem that hangs.
pub(super) async fn open_log_directory(path: &Path) -> Result<LogTarget, ContainerError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let directory = path.parent().unwrap_or(Path::new("/")).to_owned();
    blocking(move || {
        std::fs::create_dir_all(&directory)
            .map_err(|e| file_error("create the log directory", &directory, e))?;
        let opened = std::fs::File::open(&directory);
        let fd = opened.map_err(|e| file_error("open the log directory", &directory, e))?;
        Ok(LogTarget { directory: OwnedFd::from(fd), name })
    })
    .await
}

/// Removes the log file that the monitor made for a container that never came to be. One with content is another's.
fn remove_empty_log(path: &Path) {
    if std::fs::symlink_metadata(path).is_ok_and(|it| it.is_file() && it.len() == 0) {
        std::fs::remove_file(path).ok();
    }
}

/// Removes a bundle directory and what a foreign runtime had mounted there.
pub(crate) fn remove_bundle(dir: &Path) -> io::Result<()> {
    detach_sources(dir)?;
    let images = std::fs::read_dir(dir.join(IMAGES)).into_iter().flatten().flatten();
    images.map(|entry| entry.path()).try_for_each(|image| detach(&image))?;
    detach(&dir.join("rootfs"))?;
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Takes back what [`attach_sources`] has mounted, with all below it; nothing is fine.
fn detach_sources(dir: &Path) -> io::Result<()> {
    let sources = dir.join(SOURCES);
    let opened = match mount::hold(&sources) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        opened => opened?,
    };
    // A shared volume's copy is its peer: what is unmounted below the one would be unmounted below the other too.
    let private = Change { propagation: Some(mount::Propagation::Private), ..Change::default() };
    match mount::change(&opened, true, &private) {
        // Nothing is mounted there.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
        changed => changed.and_then(|()| detach(&sources)),
    }
}

fn detach(mounted: &Path) -> io::Result<()> {
    match rustix::mount::unmount(mounted, rustix::mount::UnmountFlags::DETACH) {
        // Not a mount point, or not there.
        Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn privileged_a_source_is_mounted_that_was_checked_though_its_path_leads_elsewhere_by_then() {
        let dir = tempfile::tempdir().unwrap();
        for path in ["volume/sub/mine", "secret/sub/theirs"] {
            std::fs::create_dir_all(dir.path().join(path)).unwrap();
        }
        let mut held = HeldFiles::default();
        let real = held.take(&dir.path().join("volume/sub")).unwrap();
        std::fs::rename(dir.path().join("volume"), dir.path().join("away")).unwrap();
        std::os::unix::fs::symlink("secret", dir.path().join("volume")).unwrap();
        let images = ImageMounts { paths: BTreeMap::new(), detached: BTreeMap::new() };
        let opened = images.open_sources(&[None, Some(real)], &held, None, None).unwrap();
        let [(1, mount)] = &opened[..] else { panic!("{opened:?}") };
        let there = |name: &str| rustix::fs::statat(mount, name, rustix::fs::AtFlags::empty()).is_ok();
        assert!(there("mine") && !there("theirs"));
    }

    #[test]
    fn privileged_a_shared_volume_keeps_the_mounts_below_it_when_its_copy_is_taken_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for name in ["volume", "bundle/sources"] {
            std::fs::create_dir_all(path(name)).unwrap();
        }
        let tmpfs = |at: &Path| {
            let mount = mount::new_filesystem(c"tmpfs", &[], 0).unwrap();
            mount::attach(mount, mount::hold(at).unwrap()).unwrap();
        };
        tmpfs(&path("volume"));
        let shared = Change { propagation: Some(mount::Propagation::Shared), ..Change::default() };
        mount::change(mount::hold(path("volume")).unwrap(), false, &shared).unwrap();
        std::fs::create_dir(path("volume/below")).unwrap();
        tmpfs(&path("volume/below"));
        let attach = |from: &str, to: &str, recursive| {
            let copy = clone_tree(CWD, path(from), recursive).unwrap();
            mount::attach(&copy, mount::hold(path(to)).unwrap()).unwrap();
        };
        attach("bundle/sources", "bundle/sources", false);
        std::fs::create_dir(path("bundle/sources/0")).unwrap();
        attach("volume", "bundle/sources/0", true);
        let mounts = || {
            let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
            let points = || table.lines().filter_map(|line| line.split(' ').nth(4));
            let ours = |name: &str| points().filter(|point| Path::new(point).starts_with(path(name))).count();
            (ours("volume"), ours("bundle/sources"))
        };
        assert_eq!(mounts(), (2, 3));
        detach_sources(&path("bundle")).unwrap();
        let left = mounts();
        // Again, where nothing is mounted and where nothing is.
        detach_sources(&path("bundle")).unwrap();
        detach_sources(&path("elsewhere")).unwrap();
        rustix::mount::unmount(path("volume"), rustix::mount::UnmountFlags::DETACH).unwrap();
        assert_eq!(left, (2, 0));
    }

    #[test]
    fn the_status_names_an_image_as_its_author_did_when_the_request_says_its_id() {
        let name = |tags: &[&str], image: &str, user_specified_image: &str| {
            let tags: Vec<String> = tags.iter().map(ToString::to_string).collect();
            let (image, user_specified_image) = (image.to_owned(), user_specified_image.to_owned());
            image_name(&tags, &ImageSpec { image, user_specified_image, ..ImageSpec::default() })
        };
        let id = "sha256:0000000000000000000000000000000000000000000000000000000000000000";
        let tags = ["docker.io/library/a:1", "docker.io/library/busybox:latest"];
        assert_eq!(name(&tags, id, "busybox"), tags[1]);
        assert_eq!(name(&tags, "busybox", ""), tags[1]);
        assert_eq!(name(&tags, id, "gone:2"), tags[0]);
        assert_eq!(name(&[], id, "busybox"), id);
    }
}
