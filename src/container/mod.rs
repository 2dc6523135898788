//! Containers: the table of them and one file per verb.
//!
//! ```text
//! create.rs   record → rootfs → bundle → monitor → publish
//! start.rs    Created → Running
//! stop.rs     stop signal, deadline, SIGKILL
//! remove.rs   runtime state, rootfs, record
//! exec.rs     ExecSync, Exec, Attach
//! update.rs   resources, log file
//! exit.rs     what the monitor reports
//! ```
//!
//! A container knows nothing of its pod but the [`Placement`] it was created with. `state.rs` is the policy, `record.rs`
//! what survives a restart of the daemon, `bundle.rs` makes the OCI config.
//!
//! # Locks
//!
//! `Live` is behind a plain mutex held for assignments only. Two async mutexes order verbs of one container: `gate` is
//! held while a start is in flight, so an exit that comes early is applied after it; `removal` is held by the one
//! removal. Stop takes neither while it waits, so a remove or a shorter stop never queues behind it.

pub(crate) mod bundle;
pub(crate) mod cdi;
pub(crate) mod create;
pub(crate) mod exec;
mod exit;
pub(crate) mod handler;
pub(crate) mod hardened;
mod held;
mod metrics;
pub(crate) mod place;
mod reclaim;
pub(crate) mod record;
pub(crate) mod relabel;
mod remove;
pub(crate) mod seccomp_default;
#[cfg(test)]
mod seccomp_peers;
pub(crate) mod spec;
mod start;
pub(crate) mod state;
mod stats;
pub(crate) mod status;
mod stop;
mod update;
pub(crate) mod user;
mod view;

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::events::Bus;
use crate::id::{self, ContainerId, FindError, PodId};
use crate::image::{RootfsError, Store, StoreError};
use crate::monitor::client::{Monitor, MonitorError};
use crate::stats::Sampler;
use crate::sys::cgroup::CgroupError;
use crate::sys::detached::Detached;
use crate::task::{Joined, blocking};
use crate::units::UnixNanos;

use bundle::BundleError;
use handler::Handler;
use place::PodPlace;
use record::{ContainerRecord, Saved};
use spec::{ContainerSpec, Resources};
use state::{Denied, State};

/// Where a container is put: all it knows of its pod.
#[derive(Debug, Clone)]
pub(crate) struct Placement {
    pub pod: PodId,
    pub monitor: Monitor,
    pub handler: Arc<Handler>,
    /// Namespaces, cgroup parent, files of the pod: what `bundle.rs` needs.
    pub place: Arc<PodPlace>,
    /// Where log files go; `None` keeps no logs.
    pub log_directory: Option<PathBuf>,
}

/// One container. What never changes is a plain field.
#[derive(Debug)]
pub(crate) struct Container {
    pub saved: Saved,
    pub placement: Placement,
    live: Mutex<Live>,
    /// True once the container is Exited.
    exited: watch::Sender<bool>,
    gate: tokio::sync::Mutex<()>,
    removal: tokio::sync::Mutex<()>,
    /// The deadline of the stop in progress; later stops may only bring it forward.
    stopping: Mutex<Option<watch::Sender<Instant>>>,
    sampler: Sampler,
}

/// What changes. Guarded by `Container::live`.
#[derive(Debug, Clone)]
pub(crate) struct Live {
    pub state: State,
    /// Of the container's first process; `None` once it has exited.
    pub pid: Option<i32>,
    pub resources: Resources,
}

impl Container {
    pub(crate) fn id(&self) -> &ContainerId {
        &self.saved.id
    }

    pub(crate) fn spec(&self) -> &Arc<ContainerSpec> {
        &self.saved.spec
    }

    /// A copy of what changes, consistent in itself.
    pub(crate) fn live(&self) -> Live {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns once the container is Exited. Cancel-safe.
    pub(crate) async fn wait_exited(&self) {
        // The sender lives as long as `self`, so waiting cannot fail.
        self.exited.subscribe().wait_for(|exited| *exited).await.ok();
    }

    fn record(&self) -> ContainerRecord {
        let live = self.live();
        ContainerRecord {
            saved: self.saved.clone(),
            state: Some(live.state),
            pid: live.pid,
            resources: live.resources,
        }
    }
}

/// Why a verb on a container failed.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum ContainerError {
    #[error(transparent)]
    Find(#[from] FindError),
    #[error("cannot {verb} container {id}: {denied}")]
    Denied { verb: &'static str, id: String, denied: Denied },
    #[error(
        "container {name:?} attempt {attempt} exists in pod {pod} with other settings or has been started, as {existing}; \
         remove it first"
    )]
    Exists { name: String, attempt: u32, pod: PodId, existing: ContainerId },
    #[error(
        "container {name:?} attempt {attempt} is being created in pod {pod} with other settings; wait for it"
    )]
    Busy { name: String, attempt: u32, pod: PodId },
    #[error("image {0:?} is not present; pull it first")]
    NoImage(String),
    #[error("cannot make the rootfs of container {name:?}")]
    Rootfs {
        name: String,
        #[source]
        source: Arc<RootfsError>,
    },
    #[error("cannot use image {image:?}")]
    Image {
        image: String,
        #[source]
        source: Arc<StoreError>,
    },
    #[error("cannot make the OCI bundle of container {name:?}")]
    Bundle {
        name: String,
        #[source]
        source: Arc<BundleError>,
    },
    #[error("cannot label a volume of container {name:?}")]
    Relabel {
        name: String,
        #[source]
        source: Arc<relabel::RelabelError>,
    },
    #[error("cannot {action} {path}")]
    File {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: Arc<std::io::Error>,
    },
    #[error("cannot {verb} container {name:?}")]
    Monitor {
        verb: &'static str,
        name: String,
        #[source]
        source: Arc<MonitorError>,
    },
    #[error("cannot save the record of container {id}")]
    Record {
        id: String,
        #[source]
        source: Arc<crate::records::RecordsError>,
    },
    #[error("cannot read what container {id} uses")]
    Stats {
        id: String,
        #[source]
        source: Arc<CgroupError>,
    },
    #[error(
        "the container whose PID namespace container {name:?} targets, {target:?}, is not a running container of its pod"
    )]
    Target { name: String, target: String },
    #[error(
        "mount at {destination:?} is recursively read-only, which handler {handler:?} does not support; use another handler"
    )]
    RecursiveReadOnly { destination: PathBuf, handler: String },
    #[error("exec command is empty")]
    EmptyCommand,
    #[error("cannot {verb} container {id} without a stream: ask for stdin, stdout or stderr")]
    NoStreams { verb: &'static str, id: String },
    #[error(
        "cannot {verb} container {id} with tty and stderr: a terminal has one output, ask for stdout alone"
    )]
    TerminalAndStderr { verb: &'static str, id: String },
    #[error("cannot attach to container {id} with tty {asked}: it was created with tty {}", !asked)]
    OtherTerminal { id: String, asked: bool },
    #[error("cannot attach to the stdin of container {id}: it was created without one")]
    NoStdin { id: String },
    #[error("command {command:?} in container {id} timed out after {timeout_s} s")]
    ExecTimeout { command: Vec<String>, id: String, timeout_s: u64 },
    #[error("container {id} has no log file: it was created without log_path")]
    NoLog { id: String },
    #[error("container {id} survived SIGKILL for {waited_s} s; a process in uninterruptible sleep holds it")]
    Unkillable { id: String, waited_s: u64 },
}

/// All containers of this daemon. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Containers(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    table: Mutex<Table>,
    records: record::Records,
    store: Store,
    bus: Bus,
    settings: Settings,
    /// The run directory, for the sources of mounts that are files of ours.
    run_mount: Option<Arc<Detached>>,
    creating: Joined<create::Key, Result<ContainerId, ContainerError>>,
}

/// What the configuration says about containers.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// The run directory; bundles are in `containers/ID` below it.
    pub run: PathBuf,
    pub host: bundle::Host,
    /// How long the OCI runtime may take for one command.
    pub runtime_timeout: std::time::Duration,
    /// How long SIGKILL is repeated before a container is called unkillable.
    pub kill_timeout: std::time::Duration,
}

#[derive(Debug, Default)]
struct Table {
    by_id: HashMap<ContainerId, Arc<Container>>,
    by_name: HashMap<(PodId, String, u32), ContainerId>,
    /// Names of containers that are being created.
    making: HashSet<(PodId, String, u32)>,
    /// Ends of containers that were not published when they came.
    early: HashMap<String, state::Ended>,
}

impl Containers {
    pub(crate) fn new(records: record::Records, store: Store, bus: Bus, settings: Settings) -> Self {
        Self(Arc::new(Inner {
            run_mount: Detached::of(&settings.run).map(Arc::new),
            table: Mutex::default(),
            records,
            store,
            bus,
            settings,
            creating: Joined::default(),
        }))
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The container whose id is or begins with `prefix`.
    pub(crate) fn find(&self, prefix: &str) -> Result<Arc<Container>, ContainerError> {
        Ok(id::find(&self.table().by_id, prefix).cloned()?)
    }

    /// Every container, newest first.
    pub(crate) fn list(&self) -> Vec<Arc<Container>> {
        self.those(|_| true)
    }

    /// The containers of one pod, newest first.
    pub(crate) fn of_pod(&self, pod: &PodId) -> Vec<Arc<Container>> {
        // Sorting everybody's at each step of a pod's life would make it dearer with every other pod.
        self.those(|container| container.placement.pod == *pod)
    }

    fn those(&self, wanted: impl Fn(&Container) -> bool) -> Vec<Arc<Container>> {
        let mut all: Vec<_> =
            self.table().by_id.values().filter(|container| wanted(container)).cloned().collect();
        all.sort_by(|a, b| {
            b.saved.created_at.cmp(&a.saved.created_at).then_with(|| a.saved.id.cmp(&b.saved.id))
        });
        all
    }

    /// Ids of all containers: what the image store must not collect.
    pub(crate) fn ids(&self) -> Vec<ContainerId> {
        self.table().by_id.keys().cloned().collect()
    }

    /// Puts a container that recovery found into the table.
    pub(crate) fn adopt(&self, record: ContainerRecord, placement: Placement) -> Arc<Container> {
        let state = record.state.unwrap_or(State::Created);
        let container = Arc::new(Container {
            exited: watch::Sender::new(state.is_exited()),
            live: Mutex::new(Live { state, pid: record.pid, resources: record.resources }),
            saved: record.saved,
            placement,
            gate: tokio::sync::Mutex::default(),
            removal: tokio::sync::Mutex::default(),
            stopping: Mutex::default(),
            sampler: Sampler::default(),
        });
        self.publish(&container);
        container
    }

    fn publish(&self, container: &Arc<Container>) {
        let mut table = self.table();
        let name = (container.placement.pod.clone(), container.spec().name.clone(), container.spec().attempt);
        table.by_name.insert(name, container.id().clone());
        table.by_id.insert(container.id().clone(), Arc::clone(container));
    }

    fn retract(&self, container: &Container) {
        let mut table = self.table();
        table.by_name.remove(&(
            container.placement.pod.clone(),
            container.spec().name.clone(),
            container.spec().attempt,
        ));
        table.by_id.remove(container.id());
    }

    /// Where the bundle of a container is.
    pub(crate) fn bundle_dir(&self, id: &ContainerId) -> PathBuf {
        self.0.settings.run.join("containers").join(id.as_str())
    }

    /// The OCI config that a container was created with, as a `Spec` or in whatever form it is wanted.
    pub(crate) async fn oci_config<T>(&self, id: &ContainerId) -> Result<T, ContainerError>
    where
        T: DeserializeOwned + Send + 'static,
    {
        let path = self.bundle_dir(id).join("config.json");
        blocking(move || {
            let read = std::fs::read(&path).and_then(|text| Ok(serde_json::from_slice(&text)?));
            read.map_err(|source| ContainerError::File { action: "read", path, source: Arc::new(source) })
        })
        .await
    }

    fn event(&self, container: &Container, kind: crate::events::EventKind) {
        self.0.bus.publish(container.id().as_str(), &container.placement.pod, kind);
    }

    /// Saves what changes about a container, durable across a crash of this daemon.
    async fn save(&self, container: &Container) -> Result<(), ContainerError> {
        self.0.records.put(container.record()).await.map_err(|source| ContainerError::Record {
            id: container.id().to_string(),
            source: Arc::new(source),
        })
    }
}

fn monitor_error(verb: &'static str, container: &Container) -> impl FnOnce(MonitorError) -> ContainerError {
    let name = container.spec().name.clone();
    move |source| ContainerError::Monitor { verb, name, source: Arc::new(source) }
}

fn denied(verb: &'static str, id: &ContainerId) -> impl FnOnce(Denied) -> ContainerError {
    let id = id.to_string();
    move |denied| ContainerError::Denied { verb, id, denied }
}

fn now() -> UnixNanos {
    UnixNanos::now()
}
