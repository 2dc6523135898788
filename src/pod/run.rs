//! RunPodSandbox: intent, monitor (which makes the namespaces), network, publish.
//!
//! Each step consumes the one before and knows how to take everything back, so a failure leaves nothing.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};

use super::record::{PodRecord, Saved};
use super::spec::{PodIdentity, PodSpec};
use super::state::State;
use super::{Live, Pod, PodError, Pods};
use crate::container::bundle::PodLabels;
use crate::container::handler::Handler;
use crate::container::hardened;
use crate::container::place::PodPlace;
use crate::container::relabel::relabel_own;
use crate::container::spec::{IdMapping, NamespaceMode, UserNamespace};
use crate::events::EventKind;
use crate::id::PodId;
use crate::monitor::client::Monitor;
use crate::monitor::spawn::{self, IdMap, Ready, Shm, SpawnRequest, UserMappings};
use crate::network::{Attachment, Link, resolv};
use crate::task::{blocking, expect_new_process};
use crate::units::UnixNanos;

/// What makes a repeat the same call: who the pod is, and the request itself.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    identity: PodIdentity,
    request: String,
}

/// The answer to a wish for an identity.
enum Reserved {
    Existing(PodId),
    New(Making),
}

/// An identity that is kept until this is dropped; by then the pod has it, or nobody.
struct Making {
    all: Pods,
    identity: PodIdentity,
}

impl Drop for Making {
    fn drop(&mut self) {
        self.all.table().making.remove(&self.identity);
    }
}

impl Pods {
    /// Runs a pod. A repeat of the same call gets the same id.
    ///
    /// Cancel-safe: the work goes on without its caller.
    pub(crate) async fn run(&self, spec: PodSpec) -> Result<PodId, PodError> {
        let key = Key {
            identity: spec.identity.clone(),
            request: serde_json::to_string(&spec).expect("a spec has only string keys and finite numbers"),
        };
        let this = self.clone();
        self.0.running.run(key, move || async move { this.run_once(Arc::new(spec)).await }).await
    }

    async fn run_once(&self, spec: Arc<PodSpec>) -> Result<PodId, PodError> {
        let _making = match self.reserve(&spec)? {
            Reserved::Existing(id) => return Ok(id),
            Reserved::New(making) => making,
        };
        // Its first container is usually created at once.
        expect_new_process();
        let intended = Intended::new(self, spec).await?;
        let monitored = intended.start_monitor().await?;
        let networked = monitored.attach_network().await?;
        networked.publish().await
    }

    /// Keeps the identity for this run, or finds the pod that an earlier, equal call made and that is still Ready.
    fn reserve(&self, spec: &PodSpec) -> Result<Reserved, PodError> {
        let mut table = self.table();
        let PodIdentity { name, uid, namespace, attempt } = spec.identity.clone();
        if let Some(id) = table.by_identity.get(&spec.identity) {
            let existing = &table.by_id[id];
            if **existing.spec() == *spec && existing.live().state.is_ready() {
                return Ok(Reserved::Existing(id.clone()));
            }
            return Err(PodError::Exists { name, uid, namespace, attempt, existing: id.clone() });
        }
        if !table.making.insert(spec.identity.clone()) {
            return Err(PodError::Busy { name, uid, namespace, attempt });
        }
        Ok(Reserved::New(Making { all: self.clone(), identity: spec.identity.clone() }))
    }

    /// Removes the pod's files and record; what is missing is skipped. If a file cannot be removed the record stays,
    /// so the next start of the daemon tries again.
    pub(super) async fn forget(&self, id: &PodId) -> Result<(), PodError> {
        let (dir, socket) = (self.pod_dir(id), self.socket(id));
        blocking(move || remove_pod_files(&dir, &socket)).await?;
        let removed = self.0.records.remove(id.to_string()).await;
        removed.map_err(|source| PodError::Record { id: id.clone(), source: Arc::new(source) })?;
        let given_back = self.ids().give_back(id);
        given_back.map_err(|source| PodError::Ids { name: id.to_string(), source: Arc::new(source) })
    }
}

/// The record says that the pod is being made. Undone by [`Intended::fail`].
#[must_use]
struct Intended {
    all: Pods,
    saved: Saved,
    handler: Arc<Handler>,
}

impl Intended {
    async fn new(all: &Pods, spec: Arc<PodSpec>) -> Result<Self, PodError> {
        let handler = all.handler(&spec.handler)?;
        if spec.namespaces().user.is_some() && !handler.features.user_namespaces {
            let (name, handler) = (spec.identity.name.clone(), handler.name.clone());
            return Err(PodError::NoUserNamespaces { name, handler });
        }
        let id = PodId::random();
        let mut first_id = None;
        if handler.hardened.is_some() {
            let name = || spec.identity.name.clone();
            hardened::check_pod(&spec.security)
                .map_err(|source| PodError::Forbidden { name: name(), source })?;
            if spec.namespaces().user.is_none() {
                let taken = all.ids().take(&id);
                first_id =
                    Some(taken.map_err(|source| PodError::Ids { name: name(), source: Arc::new(source) })?);
            }
        }
        let handler_name = handler.name.clone();
        let saved = Saved { id, created_at: UnixNanos::now(), handler: handler_name, spec, first_id };
        let record = PodRecord {
            saved: saved.clone(),
            state: None,
            link: None,
            place: None,
            resources: None,
            overhead: None,
        };
        if let Err(source) = all.0.records.put(record).await {
            let id = saved.id;
            // A range that stays taken is collected by the next start.
            all.ids().give_back(&id).ok();
            return Err(PodError::Record { id, source: Arc::new(source) });
        }
        Ok(Self { all: all.clone(), saved, handler })
    }

    async fn start_monitor(self) -> Result<Monitored, PodError> {
        let spec = &self.saved.spec;
        let dir = self.all.pod_dir(&self.saved.id);
        let namespaces = self.saved.namespaces();
        let files = {
            let (dir, spec) = (dir.clone(), Arc::clone(spec));
            let (modules, id, namespaces) =
                (self.all.0.settings.modules.clone(), self.saved.id.clone(), namespaces.clone());
            blocking(move || {
                let options = spec.security.selinux.as_ref();
                let labels = PodLabels { id: &id, namespaces: &namespaces, options };
                let label = modules.pod_mount_label(labels).map_err(|source| PodError::Label {
                    name: spec.identity.name.clone(),
                    source: Arc::new(source),
                })?;
                write_pod_files(&dir, &spec, label.as_deref())?;
                Ok(label)
            })
            .await
        };
        let label = match files {
            Ok(label) => label,
            Err(cause) => return Err(self.fail(cause, None).await),
        };
        let host_network = namespaces.network == NamespaceMode::Node;
        let own_ipc = namespaces.ipc != NamespaceMode::Node;
        let settings = &self.all.0.settings;
        let request = SpawnRequest {
            binary: settings.monitor.clone(),
            pod: self.saved.id.to_string(),
            socket: self.all.socket(&self.saved.id),
            mount_namespace: if self.handler.bundled { settings.small_mounts.clone() } else { None },
            namespaces: spawn::Namespaces {
                net: !host_network,
                ipc: own_ipc,
                uts: !host_network,
                shared_pid: namespaces.pid == NamespaceMode::Pod,
                user: namespaces.user.as_ref().map(user_mappings),
            },
            hostname: (!spec.hostname.is_empty() && !host_network).then(|| spec.hostname.clone()),
            sysctls: spec.sysctls.clone(),
            shm: own_ipc.then(|| Shm { path: dir.join("shm"), size: settings.shm_size, label }),
            log: dir.join("monitor.log"),
        };
        match spawn::spawn(request).await {
            Ok((monitor, ready)) => {
                protect(&monitor, settings.monitor_oom_score_adj);
                Ok(Monitored { place: self.place(&dir, &ready), intended: self, monitor, ready })
            }
            Err(source) => {
                let cause = PodError::Monitor { name: spec.identity.name.clone(), source: Arc::new(source) };
                Err(self.fail(cause, None).await)
            }
        }
    }

    fn place(&self, dir: &Path, ready: &Ready) -> PodPlace {
        let spec = &self.saved.spec;
        let own_ipc = spec.namespaces().ipc != NamespaceMode::Node;
        PodPlace {
            id: self.saved.id.clone(),
            name: spec.identity.name.clone(),
            namespace: spec.identity.namespace.clone(),
            uid: spec.identity.uid.clone(),
            hostname: hostname(spec),
            namespaces: self.saved.namespaces(),
            network_ns: ready.net.clone(),
            ipc_ns: ready.ipc.clone(),
            uts_ns: ready.uts.clone(),
            pid_ns: ready.pid_ns.clone(),
            user_ns: ready.user.clone(),
            cgroup_parent: spec.cgroup_parent.clone(),
            systemd_cgroup: self.handler.systemd_cgroup,
            privileged: spec.security.privileged,
            selinux: spec.security.selinux.clone(),
            annotations: spec.annotations.clone(),
            resolv_conf: dir.join("resolv.conf"),
            hostname_file: dir.join("hostname"),
            shm: own_ipc.then(|| dir.join("shm")),
        }
    }

    async fn fail(self, cause: PodError, monitor: Option<Monitor>) -> PodError {
        if let Some(monitor) = monitor {
            self.all.end_monitor(&monitor).await;
        }
        if let Err(error) = self.all.forget(&self.saved.id).await {
            tracing::error!(pod = %self.saved.id, error = %error, "cannot take back a pod; the next start tries again");
        }
        cause
    }
}

/// Adds the monitor and with it the namespaces. Undone by [`Intended::fail`].
#[must_use]
struct Monitored {
    intended: Intended,
    monitor: Monitor,
    ready: Ready,
    place: PodPlace,
}

impl Monitored {
    async fn attach_network(self) -> Result<Networked, PodError> {
        let Some(netns) = self.ready.net.clone() else {
            return Ok(Networked { monitored: self, link: None });
        };
        let Saved { id, spec, .. } = &self.intended.saved;
        let attachment = Attachment {
            pod: id,
            name: &spec.identity.name,
            namespace: &spec.identity.namespace,
            uid: &spec.identity.uid,
            netns,
            ports: &spec.ports,
            annotations: &spec.annotations,
            dns: spec.dns.as_ref(),
            cgroup_parent: &spec.cgroup_parent,
        };
        match self.intended.all.0.network.attach(&attachment).await {
            Ok(link) => Ok(Networked { monitored: self, link: Some(link) }),
            Err(source) => {
                let name = spec.identity.name.clone();
                let cause = PodError::Network { action: "attach", name, source: Arc::new(source) };
                Err(self.intended.fail(cause, Some(self.monitor)).await)
            }
        }
    }
}

/// Adds the network, if the pod has one of its own. Undone by giving it back, then [`Intended::fail`].
#[must_use]
struct Networked {
    monitored: Monitored,
    link: Option<Link>,
}

impl Networked {
    async fn publish(self) -> Result<PodId, PodError> {
        let Self { monitored: Monitored { intended, monitor, ready, place }, link } = self;
        let pod = Arc::new(Pod {
            handler: Arc::clone(&intended.handler),
            live: Mutex::new(Live {
                state: State::Ready,
                monitor: Some(monitor.clone()),
                link: link.clone(),
                place: Arc::new(place),
                resources: intended.saved.spec.resources.clone(),
                overhead: intended.saved.spec.overhead.clone(),
            }),
            saved: intended.saved.clone(),
            verb: tokio::sync::Mutex::default(),
            creating: tokio::sync::RwLock::default(),
            sampler: Default::default(),
        });
        if let Err(cause) = intended.all.save(&pod).await {
            if let Some(link) = &link {
                let detached =
                    intended.all.0.network.detach(pod.id(), Some(link), ready.net.as_deref()).await;
                if let Err(error) = detached {
                    tracing::error!(pod = %pod.id(), error = %error, "cannot give the network back");
                }
            }
            return Err(intended.fail(cause, Some(monitor)).await);
        }
        intended.all.publish(&pod);
        intended.all.watch(&pod, &monitor);
        intended.all.event(&pod, EventKind::Created);
        intended.all.event(&pod, EventKind::Started);
        Ok(pod.id().clone())
    }
}

/// Sets a monitor's place in the order in which the kernel kills for memory. Where that takes a privilege which this
/// daemon lacks (CAP_SYS_RESOURCE, proc_pid_oom_score_adj(5)) the monitor keeps the daemon's, and it is said once.
fn protect(monitor: &Monitor, oom_score_adj: i32) {
    static SAID: std::sync::Once = std::sync::Once::new();
    let path = format!("/proc/{}/oom_score_adj", monitor.pid());
    if let Err(error) = std::fs::write(&path, oom_score_adj.to_string()) {
        SAID.call_once(|| {
            tracing::warn!(oom_score_adj, error = %error, "cannot protect monitors from the kernel's OOM killer");
        });
    }
}

fn user_mappings(namespace: &UserNamespace) -> UserMappings {
    let maps = |all: &[IdMapping]| {
        all.iter().map(|m| IdMap { container: m.container, host: m.host, length: m.length }).collect()
    };
    UserMappings { uids: maps(&namespace.uids), gids: maps(&namespace.gids) }
}

/// The pod's directory: what containers find as /etc/resolv.conf, /etc/hostname and /dev/shm.
/// `label` is what SELinux sees on them.
fn write_pod_files(dir: &Path, spec: &PodSpec, label: Option<&str>) -> Result<(), PodError> {
    let file = |action, path: &Path, source: io::Error| PodError::File {
        action,
        path: path.to_owned(),
        source: Arc::new(source),
    };
    let shm = dir.join("shm");
    std::fs::create_dir_all(&shm).map_err(|e| file("create directory", &shm, e))?;
    let resolv_conf = dir.join("resolv.conf");
    let text = resolv::text(spec.dns.as_ref(), spec.namespaces().network == NamespaceMode::Node)
        .map_err(|e| file("make", &resolv_conf, io::Error::other(e)))?;
    std::fs::write(&resolv_conf, text).map_err(|e| file("write", &resolv_conf, e))?;
    let path = dir.join("hostname");
    std::fs::write(&path, format!("{}\n", hostname(spec))).map_err(|e| file("write", &path, e))?;
    for path in [&resolv_conf, &path] {
        label
            .map_or(Ok(()), |label| relabel_own(path, label))
            .map_err(|e| file("set the SELinux label of", path, io::Error::other(e)))?;
    }
    Ok(())
}

/// The pod's name for itself; without one, as in the host's network, the node's.
fn hostname(spec: &PodSpec) -> String {
    match spec.hostname.as_str() {
        "" => rustix::system::uname().nodename().to_string_lossy().into_owned(),
        name => name.to_owned(),
    }
}

fn remove_pod_files(dir: &Path, socket: &Path) -> Result<(), PodError> {
    let file = |action, path: &Path, source: io::Error| PodError::File {
        action,
        path: path.to_owned(),
        source: Arc::new(source),
    };
    let shm = dir.join("shm");
    // Mounted here only for foreign runtimes; usually the mount is inside the monitor's namespace and gone with it.
    match rustix::mount::unmount(&shm, rustix::mount::UnmountFlags::DETACH) {
        Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {}
        Err(error) => return Err(file("unmount", &shm, error.into())),
    }
    for result in [
        std::fs::remove_dir_all(dir).map_err(|e| (dir, e)),
        std::fs::remove_file(socket).map_err(|e| (socket, e)),
    ] {
        match result {
            Err((path, error)) if error.kind() != io::ErrorKind::NotFound => {
                return Err(file("remove", path, error));
            }
            _ => {}
        }
    }
    Ok(())
}
