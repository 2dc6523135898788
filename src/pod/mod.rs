//! Pods: the table of them and one file per verb.
//!
//! ```text
//! run.rs      intent → monitor (makes the namespaces) → network → publish
//! stop.rs     containers, network, monitor
//! remove.rs   stop, containers, record
//! update.rs   resources of the whole pod
//! watch.rs    what a monitor reports, handed to the containers
//! oci.rs      a pod as an OCI config, for tools
//! ```
//!
//! A pod is a monitor process and a network attachment. The monitor lives inside the pod's namespaces, so
//! `/proc/PID/ns/…` of the monitor names them: nothing is mounted on the host to pin them.
//!
//! # Locks
//!
//! `Live` is behind a plain mutex held for assignments only. `verb` orders stop and remove of one pod, and
//! `creating` lets CreateContainer go on side by side but never beside a stop.

mod adopt;
mod cgroup;
pub(crate) mod ids;
mod metrics;
mod oci;
pub(crate) mod record;
mod remove;
pub(crate) mod run;
pub(crate) mod spec;
pub(crate) mod state;
mod stats;
pub(crate) mod status;
mod stop;
mod update;
mod view;
mod watch;

use std::collections::{HashMap, HashSet};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use crate::container::bundle::{BundleError, SecurityModules};
use crate::container::handler::Handler;
use crate::container::spec::{ContainerSpec, Resources};
use crate::container::{ContainerError, Containers, Placement};
use crate::events::{Bus, EventKind};
use crate::id::{self, ContainerId, FindError, PodId};
use crate::monitor::client::{Monitor, MonitorError};
use crate::network::{Link, Network, NetworkError};
use crate::stats::Sampler;
use crate::task::{Joined, detached};

use record::{PodRecord, Saved};
use spec::{PodIdentity, PodSpec};
use state::{Denied, Request, State};

/// One pod. What never changes is a plain field.
#[derive(Debug)]
pub(crate) struct Pod {
    pub saved: Saved,
    pub handler: Arc<Handler>,
    live: Mutex<Live>,
    verb: tokio::sync::Mutex<()>,
    /// Read-locked by CreateContainer, write-locked by a stop.
    creating: tokio::sync::RwLock<()>,
    sampler: Sampler,
}

/// What changes. Guarded by `Pod::live`.
#[derive(Debug, Clone)]
pub(crate) struct Live {
    pub state: State,
    /// `None` once the pod is stopped or its monitor is lost.
    pub monitor: Option<Monitor>,
    /// `None` in the host's network, and once the address has been given back.
    pub link: Option<Link>,
    /// Namespaces and files that containers are placed in.
    pub place: Arc<crate::container::place::PodPlace>,
    /// The sum of what the pod's containers may use, and what the pod needs beside them, as last told.
    pub resources: Option<Resources>,
    pub overhead: Option<Resources>,
}

impl Pod {
    pub(crate) fn id(&self) -> &PodId {
        &self.saved.id
    }

    pub(crate) fn spec(&self) -> &Arc<PodSpec> {
        &self.saved.spec
    }

    /// A copy of what changes, consistent in itself.
    pub(crate) fn live(&self) -> Live {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn record(&self) -> PodRecord {
        let live = self.live();
        PodRecord {
            saved: self.saved.clone(),
            state: Some(live.state),
            link: live.link,
            place: Some((*live.place).clone()),
            resources: live.resources,
            overhead: live.overhead,
        }
    }
}

/// Why a verb on a pod failed.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum PodError {
    #[error(transparent)]
    Find(#[from] FindError),
    #[error("cannot {verb} pod {id}: {denied}")]
    Denied { verb: &'static str, id: PodId, denied: Denied },
    #[error(
        "pod {namespace}/{name} (uid {uid}, attempt {attempt}) exists with other settings or is stopped, as {existing}; \
         remove it first"
    )]
    Exists { namespace: String, name: String, uid: String, attempt: u32, existing: PodId },
    #[error(
        "pod {namespace}/{name} (uid {uid}, attempt {attempt}) is being run with other settings; wait for it"
    )]
    Busy { namespace: String, name: String, uid: String, attempt: u32 },
    #[error("no runtime handler {wanted:?}; configured are {known}")]
    NoHandler { wanted: String, known: String },
    #[error(
        "the binary {path} of handler {handler:?} is missing; install it or change [handlers.{handler}] path"
    )]
    NoRuntime { handler: String, path: PathBuf },
    #[error("pod {name:?}")]
    Forbidden {
        name: String,
        #[source]
        source: crate::container::hardened::Forbidden,
    },
    #[error("cannot give pod {name:?} ids of its own")]
    Ids {
        name: String,
        #[source]
        source: Arc<ids::IdsError>,
    },
    #[error(
        "pod {name:?} asks for a user namespace, which handler {handler:?} does not support; use another handler"
    )]
    NoUserNamespaces { name: String, handler: String },
    #[error("cannot {action} {path}")]
    File {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: Arc<std::io::Error>,
    },
    #[error("label pod {name:?}")]
    Label {
        name: String,
        #[source]
        source: Arc<BundleError>,
    },
    #[error("cannot start the monitor of pod {name:?}")]
    Monitor {
        name: String,
        #[source]
        source: Arc<MonitorError>,
    },
    #[error("cannot {action} the network of pod {name:?}")]
    Network {
        action: &'static str,
        name: String,
        #[source]
        source: Arc<NetworkError>,
    },
    #[error("cannot save the record of pod {id}")]
    Record {
        id: PodId,
        #[source]
        source: Arc<crate::records::RecordsError>,
    },
    #[error(transparent)]
    Container(#[from] ContainerError),
    #[error("cannot read what pod {id} uses")]
    Stats {
        id: PodId,
        #[source]
        source: Arc<crate::sys::cgroup::CgroupError>,
    },
    #[error("cannot change the resources of pod {id}")]
    BadResources {
        id: PodId,
        #[source]
        source: Arc<crate::container::bundle::BundleError>,
    },
    #[error("cannot change the resources of pod {id}")]
    Resources {
        id: PodId,
        #[source]
        source: Arc<cgroup::OwnCgroupError>,
    },
}

/// All pods of this daemon. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Pods(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    table: Mutex<Table>,
    records: record::Records,
    containers: Containers,
    network: Network,
    bus: Bus,
    settings: Settings,
    running: Joined<run::Key, Result<PodId, PodError>>,
}

/// What the configuration says about pods.
#[derive(Debug)]
pub(crate) struct Settings {
    /// The run directory; each pod has `pods/ID` and `monitors/ID.sock` below it.
    pub run: PathBuf,
    /// The binary `brig-monitor`.
    pub monitor: PathBuf,
    pub handlers: HashMap<String, Arc<Handler>>,
    pub default_handler: String,
    /// A mount namespace with few mounts, for monitors of bundled handlers: starting a container copies the mount
    /// table of its monitor, and a busy host's has thousands of entries.
    pub small_mounts: Option<Arc<OwnedFd>>,
    pub shm_size: crate::units::Bytes,
    pub modules: SecurityModules,
    /// Host ids for pods of hardened handlers.
    pub ids: Arc<ids::IdPool>,
    /// So that the kernel kills a container before its monitor.
    pub monitor_oom_score_adj: i32,
}

#[derive(Debug, Default)]
struct Table {
    by_id: HashMap<PodId, Arc<Pod>>,
    by_identity: HashMap<PodIdentity, PodId>,
    /// Pods that are being made.
    making: HashSet<PodIdentity>,
    /// Removed pods of which events are still to be delivered; the events keep them (`events.rs`).
    ended: HashMap<PodId, Weak<Pod>>,
}

impl Pods {
    pub(crate) fn new(
        records: record::Records,
        containers: Containers,
        network: Network,
        bus: Bus,
        settings: Settings,
    ) -> Self {
        Self(Arc::new(Inner {
            table: Mutex::default(),
            records,
            containers,
            network,
            bus,
            settings,
            running: Joined::default(),
        }))
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn containers(&self) -> &Containers {
        &self.0.containers
    }

    pub(crate) fn network(&self) -> &Network {
        &self.0.network
    }

    /// The pod whose id is or begins with `prefix`.
    pub(crate) fn find(&self, prefix: &str) -> Result<Arc<Pod>, PodError> {
        Ok(id::find(&self.table().by_id, prefix).cloned()?)
    }

    /// Does `work` on a pod while no other stop or removal is at it; an unknown pod is fine.
    ///
    /// Cancel-safe: the work goes on without its caller.
    async fn exclusively<F>(
        &self,
        prefix: &str,
        work: impl FnOnce(Self, Arc<Pod>) -> F + Send + 'static,
    ) -> Result<(), PodError>
    where
        F: Future<Output = Result<(), PodError>> + Send,
    {
        let pod = match self.find(prefix) {
            Err(PodError::Find(FindError::NotFound { .. })) => return Ok(()),
            found => found?,
        };
        let this = self.clone();
        detached(async move {
            let _verb = pod.verb.lock().await;
            work(this, Arc::clone(&pod)).await
        })
        .await
    }

    /// The pod that an event speaks of, even if it has been removed since.
    pub(crate) fn of_event(&self, id: &PodId) -> Option<Arc<Pod>> {
        let table = self.table();
        table.by_id.get(id).cloned().or_else(|| table.ended.get(id)?.upgrade())
    }

    /// Every pod, newest first.
    pub(crate) fn list(&self) -> Vec<Arc<Pod>> {
        let mut all: Vec<_> = self.table().by_id.values().cloned().collect();
        all.sort_by(|a, b| {
            b.saved.created_at.cmp(&a.saved.created_at).then_with(|| a.saved.id.cmp(&b.saved.id))
        });
        all
    }

    /// Creates a container in a pod. Holds off a stop of the pod meanwhile.
    pub(crate) async fn create_container(
        &self,
        pod: &str,
        spec: ContainerSpec,
    ) -> Result<ContainerId, PodError> {
        let (this, pod) = (self.clone(), self.find(pod)?);
        detached(async move {
            let _creating = pod.creating.read().await;
            let live = pod.live();
            let denied =
                |denied| PodError::Denied { verb: "create a container in", id: pod.id().clone(), denied };
            live.state.admit(Request::CreateContainer).map_err(denied)?;
            let Some(placement) = pod.placement() else { return Err(denied(Denied::Stopped)) };
            Ok(this.0.containers.create(placement, spec).await?)
        })
        .await
    }

    /// The whole id of a pod whose ports can be reached now.
    pub(crate) fn check_forward(&self, prefix: &str) -> Result<String, PodError> {
        let pod = self.find(prefix)?;
        pod.live().state.admit(Request::PortForward).map_err(|denied| PodError::Denied {
            verb: "forward ports of",
            id: pod.id().clone(),
            denied,
        })?;
        Ok(pod.id().to_string())
    }

    /// Where the network namespace of a ready pod is; `None` is the host's.
    pub(crate) fn network_namespace(&self, id: &str) -> Result<Option<PathBuf>, PodError> {
        self.check_forward(id)?;
        Ok(self.find(id)?.live().place.network_ns.clone())
    }

    /// The handler that a request names; empty is the default one.
    fn handler(&self, wanted: &str) -> Result<Arc<Handler>, PodError> {
        let settings = &self.0.settings;
        let name = if wanted.is_empty() { settings.default_handler.as_str() } else { wanted };
        let Some(handler) = settings.handlers.get(name) else {
            let mut known: Vec<_> = settings.handlers.keys().map(String::as_str).collect();
            known.sort_unstable();
            return Err(PodError::NoHandler { wanted: wanted.to_owned(), known: known.join(", ") });
        };
        if !handler.path.exists() {
            return Err(PodError::NoRuntime { handler: name.to_owned(), path: handler.path.clone() });
        }
        Ok(Arc::clone(handler))
    }

    /// All configured handlers, by name.
    pub(crate) fn handlers(&self) -> &HashMap<String, Arc<Handler>> {
        &self.0.settings.handlers
    }

    pub(crate) fn default_handler(&self) -> &str {
        &self.0.settings.default_handler
    }

    pub(crate) fn ids(&self) -> &Arc<ids::IdPool> {
        &self.0.settings.ids
    }

    fn pod_dir(&self, id: &PodId) -> PathBuf {
        self.0.settings.run.join("pods").join(id.as_str())
    }

    pub(crate) fn socket(&self, id: &PodId) -> PathBuf {
        // Not the whole id: a socket's path has at most 107 bytes (unix(7)), and the run directory can be long.
        self.0.settings.run.join("monitors").join(format!("{}.sock", &id.as_str()[..32]))
    }

    fn publish(&self, pod: &Arc<Pod>) {
        let mut table = self.table();
        table.by_identity.insert(pod.spec().identity.clone(), pod.id().clone());
        table.by_id.insert(pod.id().clone(), Arc::clone(pod));
    }

    fn retract(&self, pod: &Arc<Pod>) {
        {
            let mut table = self.table();
            table.by_identity.remove(&pod.spec().identity);
            table.by_id.remove(pod.id());
            table.ended.retain(|_, pod| pod.strong_count() > 0);
            table.ended.insert(pod.id().clone(), Arc::downgrade(pod));
        }
        self.0.bus.publish_end(pod.id(), pod.clone());
    }

    fn event(&self, pod: &Pod, kind: EventKind) {
        self.0.bus.publish(pod.id().as_str(), pod.id(), kind);
    }

    async fn save(&self, pod: &Pod) -> Result<(), PodError> {
        let saved = self.0.records.put(pod.record()).await;
        saved.map_err(|source| PodError::Record { id: pod.id().clone(), source: Arc::new(source) })
    }
}

impl Pod {
    /// Where this pod puts a container; `None` once it has no monitor.
    pub(crate) fn placement(&self) -> Option<Placement> {
        let live = self.live();
        Some(Placement {
            pod: self.id().clone(),
            monitor: live.monitor?,
            handler: Arc::clone(&self.handler),
            place: live.place,
            log_directory: self.spec().log_directory.clone(),
        })
    }
}

/// How long a monitor may take to end after its last container has.
const MONITOR_END: Duration = Duration::from_secs(5);
