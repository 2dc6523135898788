//! CNI: pods attached by plugins, as the specification's versions 0.3.0 to 1.1.0 say.
//!
//! ```text
//! ADD     cache entry ─▶ plugin 1 ─result─▶ plugin 2 ─result─▶ … ─▶ addresses of eth0 ─▶ cache entry with result
//!           any failure ─▶ DEL of the whole list ─▶ cache entry deleted
//! DEL     cache entry ─▶ plugins in reverse, each given the result ─▶ cache entry deleted
//! ```
//!
//! `config.rs` reads the directory, `exec.rs` runs one plugin, `types.rs` checks what it prints, `cache.rs` keeps what
//! DEL needs. A DEL uses the configuration its ADD had, never the directory's.

mod cache;
mod config;
mod exec;
#[cfg(test)]
mod tests;
mod types;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use serde_json::{Map, Value, json};

use super::bandwidth::Bandwidth;
use super::links::POD_INTERFACE;
use super::ports::PortProtocol;
use crate::id::PodId;
use crate::pod::spec::{DnsConfig, PortMapping};
use crate::task::chain;

use cache::{Cache, CacheError, Entry};
use config::{ConfigError, Current, Directory, Loaded, NetworkList, Plugin};
use exec::{ExecError, Run};
use types::{PluginResult, ResultError, Version};

/// The whole list's time for ADD: RunPodSandbox has four minutes, and the DEL that undoes it must fit as well.
const ADD_LIMIT: Duration = Duration::from_secs(120);
/// STATUS and VERSION answer from memory; the kubelet asks for our status every few seconds.
const ASK_LIMIT: Duration = Duration::from_secs(10);
/// Longest text of one pair of `CNI_ARGS`; Kubernetes names have at most 253 bytes.
const ARGUMENT_BYTES_MAX: usize = 1024;

/// Why a CNI network did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CniError {
    #[error("cni plugin not initialized{}", .0.as_deref().map(|why| format!(": {why}")).unwrap_or_default())]
    NotReady(Option<String>),
    #[error("{verb} CNI network {network}")]
    Exec {
        verb: &'static str,
        network: String,
        #[source]
        source: ExecError,
    },
    #[error("plugin {plugin} of CNI network {network}")]
    Result {
        plugin: String,
        network: String,
        #[source]
        source: ResultError,
    },
    #[error("plugin {plugin} of CNI network {network} does not speak version {wanted}, only {spoken}")]
    Version { plugin: String, network: String, wanted: String, spoken: String },
    #[error("cached configuration of CNI network {network}")]
    Config {
        network: String,
        #[source]
        source: ConfigError,
    },
    #[error(transparent)]
    Cache(#[from] CacheError),
    #[error(
        "{field} is {value:?}, which CNI_ARGS cannot carry: no ; = or control characters, at most 1024 bytes"
    )]
    Argument { field: &'static str, value: String },
    #[error("{cause}; and undoing it failed: {cleanup}")]
    NotUndone {
        #[source]
        cause: Box<Self>,
        cleanup: Box<Self>,
    },
}

/// What a pod asks of a CNI network.
#[derive(Debug)]
pub(super) struct Wanted<'a> {
    pub pod: &'a PodId,
    pub name: &'a str,
    pub namespace: &'a str,
    pub uid: &'a str,
    pub netns: &'a Path,
    pub ports: &'a [PortMapping],
    pub bandwidth: Bandwidth,
    pub annotations: &'a BTreeMap<String, String>,
    pub dns: Option<&'a DnsConfig>,
    pub cgroup_parent: &'a str,
    pub pod_cidr: &'a [IpNet],
}

/// What a pod got.
#[derive(Debug)]
pub(super) struct Attached {
    pub network: String,
    pub addresses: Vec<IpAddr>,
}

/// Whether pods can be attached by CNI now.
#[derive(Debug)]
pub(super) enum Readiness {
    /// No configuration file: the built-in network may serve.
    Absent,
    Ready,
    NotReady(String),
}

/// See the module's text.
#[derive(Debug)]
pub(super) struct Cni {
    directory: Directory,
    bin_dirs: Vec<PathBuf>,
    cache: Cache,
    teardown_limit: Duration,
}

impl Cni {
    pub(super) fn new(
        conf_dir: PathBuf,
        bin_dirs: Vec<PathBuf>,
        cache_dir: PathBuf,
        teardown_limit: Duration,
    ) -> Self {
        Self { directory: Directory::new(conf_dir), bin_dirs, cache: Cache::new(cache_dir), teardown_limit }
    }

    /// Reads the configuration again at the next use, changed or not.
    pub(super) fn reload(&self) {
        self.directory.reload();
    }

    /// Whether there is any configuration file.
    pub(super) fn is_configured(&self) -> bool {
        !matches!(self.directory.current(), Current::None)
    }

    /// Asks the plugins: VERSION once per configuration, STATUS each time where the version has it.
    pub(super) async fn readiness(&self) -> Readiness {
        let loaded = match self.directory.current() {
            Current::None => return Readiness::Absent,
            Current::Invalid(why) => return Readiness::NotReady(why),
            Current::Network(loaded) => loaded,
        };
        let asked = async {
            self.verify(&loaded).await?;
            let list = &loaded.list;
            if list.version < Version::V1_1_0 {
                return Ok(());
            }
            for plugin in &list.plugins {
                let stdin = stdin(list, plugin, &BTreeMap::new(), None);
                self.exec("STATUS", list, plugin, Vec::new(), stdin, ASK_LIMIT).await?;
            }
            Ok::<(), CniError>(())
        };
        match asked.await {
            Ok(()) => Readiness::Ready,
            Err(err) => Readiness::NotReady(chain(&err)),
        }
    }

    /// Attaches one pod, or undoes what was begun.
    ///
    /// Not cancel-safe: a dropped future leaves a cache entry, which [`Self::sweep`] undoes.
    pub(super) async fn add(&self, wanted: &Wanted<'_>) -> Result<Attached, CniError> {
        let loaded = match self.directory.current() {
            Current::Network(loaded) => loaded,
            Current::Invalid(why) => return Err(CniError::NotReady(Some(why))),
            Current::None => return Err(CniError::NotReady(None)),
        };
        let list = &loaded.list;
        let mut entry =
            Entry::new(wanted.pod.clone(), list.name.clone(), list.text.clone(), POD_INTERFACE.to_owned());
        entry.netns = wanted.netns.to_string_lossy().into_owned();
        entry.cni_args = arguments(wanted)?;
        entry.capability_args = capabilities(wanted);
        self.verify(&loaded).await?;
        self.cache.write(&entry)?;
        let added = match self.run_add(list, &mut entry).await {
            Ok(addresses) => self.cache.write(&entry).map(|()| addresses).map_err(CniError::from),
            Err(err) => Err(err),
        };
        match added {
            Ok(addresses) => Ok(Attached { network: list.name.clone(), addresses }),
            Err(cause) => match self.delete(&entry, Some(wanted.netns)).await {
                Ok(()) => Err(cause),
                Err(cleanup) => {
                    Err(CniError::NotUndone { cause: Box::new(cause), cleanup: Box::new(cleanup) })
                }
            },
        }
    }

    async fn run_add(&self, list: &NetworkList, entry: &mut Entry) -> Result<Vec<IpAddr>, CniError> {
        let started = tokio::time::Instant::now();
        let netns = entry.netns.clone();
        let mut last: Option<PluginResult> = None;
        for plugin in &list.plugins {
            let stdin = stdin(list, plugin, &entry.capability_args, entry.result.as_ref());
            let limit = ADD_LIMIT.saturating_sub(started.elapsed());
            let environment = environment(entry, Some(netns.as_ref()));
            let printed = self.exec("ADD", list, plugin, environment, stdin, limit).await?;
            let result = PluginResult::parse(&printed, list.version)
                .map_err(|source| result_error(list, plugin, source))?;
            entry.result = Some(result.json.clone());
            last = Some(result);
        }
        let last = last.expect("a list has at least one plugin");
        let plugin = list.plugins.last().expect("a list has at least one plugin");
        last.addresses(POD_INTERFACE).map_err(|source| result_error(list, plugin, source))
    }

    /// Detaches a pod from every network it was, or began to be, attached to. None is fine.
    pub(super) async fn del(&self, pod: &PodId, netns: Option<&Path>) -> Result<(), CniError> {
        for entry in self.cache.entries(Some(pod))? {
            self.delete(&entry, netns).await?;
        }
        Ok(())
    }

    async fn delete(&self, entry: &Entry, netns: Option<&Path>) -> Result<(), CniError> {
        let list = self.cached_list(entry)?;
        // The specification: an empty CNI_NETNS tells the plugin that the namespace is gone.
        let netns = netns.filter(|path| path.exists());
        let started = tokio::time::Instant::now();
        let previous = entry.result.as_ref().filter(|_| list.version >= Version::V0_4_0);
        for plugin in list.plugins.iter().rev() {
            let stdin = stdin(&list, plugin, &entry.capability_args, previous);
            let limit = self.teardown_limit.saturating_sub(started.elapsed());
            self.exec("DEL", &list, plugin, environment(entry, netns), stdin, limit).await?;
        }
        Ok(self.cache.delete(entry)?)
    }

    /// Asks the plugins whether the pod's attachment is as ADD left it.
    pub(super) async fn check(&self, pod: &PodId, netns: &Path) -> Result<(), CniError> {
        for entry in self.cache.entries(Some(pod))? {
            let list = self.cached_list(&entry)?;
            if list.disable_check || list.version < Version::V0_4_0 || entry.result.is_none() {
                continue;
            }
            for plugin in &list.plugins {
                let stdin = stdin(&list, plugin, &entry.capability_args, entry.result.as_ref());
                self.exec("CHECK", &list, plugin, environment(&entry, Some(netns)), stdin, ASK_LIMIT).await?;
            }
        }
        Ok(())
    }

    /// Detaches every cached pod that `is_live` does not know, then lets the plugins collect what we know nothing of.
    /// Goes on after failures: how many attachments went, and every failure.
    pub(super) async fn sweep(&self, is_live: impl Fn(&PodId) -> bool) -> (usize, Vec<CniError>) {
        let (mut gone, mut failures) = (0, Vec::new());
        match self.cache.entries(None) {
            Err(err) => failures.push(err.into()),
            Ok(entries) => {
                for entry in entries.iter().filter(|entry| !is_live(&entry.container_id)) {
                    match self.delete(entry, None).await {
                        Ok(()) => gone += 1,
                        Err(err) => failures.push(err),
                    }
                }
            }
        }
        let Current::Network(loaded) = self.directory.current() else { return (gone, failures) };
        let list = &loaded.list;
        if list.version < Version::V1_1_0 || list.disable_gc || !failures.is_empty() {
            // An attachment whose DEL failed must not be collected half: its entry is still the plugins' to know.
            return (gone, failures);
        }
        let valid: Vec<Value> = match self.cache.entries(None) {
            Ok(entries) => entries
                .iter()
                .filter(|entry| entry.network_name == list.name)
                .map(|entry| json!({"containerID": entry.container_id, "ifname": entry.if_name}))
                .collect(),
            Err(err) => {
                failures.push(err.into());
                return (gone, failures);
            }
        };
        for plugin in &list.plugins {
            let mut stdin = stdin(list, plugin, &BTreeMap::new(), None);
            // The specification's key, and the one libcni wrote before it was settled.
            stdin.insert("cni.dev/valid-attachments".to_owned(), valid.clone().into());
            stdin.insert("cni.dev/attachments".to_owned(), valid.clone().into());
            if let Err(err) = self.exec("GC", list, plugin, Vec::new(), stdin, self.teardown_limit).await {
                failures.push(err);
            }
        }
        (gone, failures)
    }

    fn cached_list(&self, entry: &Entry) -> Result<NetworkList, CniError> {
        NetworkList::parse(&entry.config, true)
            .map_err(|source| CniError::Config { network: entry.network_name.clone(), source })
    }

    /// Whether every plugin is there and speaks the list's version; asked until it is so, then never again.
    async fn verify(&self, loaded: &Arc<Loaded>) -> Result<(), CniError> {
        let list = &loaded.list;
        let ask = || async {
            for plugin in &list.plugins {
                let stdin = Map::from_iter([("cniVersion".to_owned(), list.version.as_str().into())]);
                let printed = self.exec("VERSION", list, plugin, Vec::new(), stdin, ASK_LIMIT).await?;
                let answer: types::VersionAnswer = serde_json::from_slice(&printed)
                    .map_err(|err| result_error(list, plugin, ResultError::NotJson(err.to_string())))?;
                if !answer.supported.iter().any(|version| version == list.version.as_str()) {
                    return Err(CniError::Version {
                        plugin: plugin.kind.clone(),
                        network: list.name.clone(),
                        wanted: list.version.to_string(),
                        spoken: answer.supported.join(", "),
                    });
                }
            }
            Ok(())
        };
        loaded.verified.get_or_try_init(ask).await?;
        Ok(())
    }

    async fn exec(
        &self,
        verb: &'static str,
        list: &NetworkList,
        plugin: &Plugin,
        mut environment: Vec<(&'static str, OsString)>,
        stdin: Map<String, Value>,
        limit: Duration,
    ) -> Result<Vec<u8>, CniError> {
        let failed = |source| CniError::Exec { verb, network: list.name.clone(), source };
        let path = self.find(&plugin.kind).map_err(failed)?;
        environment.push(("CNI_COMMAND", verb.into()));
        let dirs = std::env::join_paths(&self.bin_dirs).unwrap_or_default();
        environment.push(("CNI_PATH", dirs));
        let stdin = Value::Object(stdin).to_string().into_bytes();
        exec::run(Run { path, environment, stdin, limit }).await.map_err(failed)
    }

    fn find(&self, kind: &str) -> Result<PathBuf, ExecError> {
        let found = self.bin_dirs.iter().map(|dir| dir.join(kind)).find(|path| path.is_file());
        found.ok_or_else(|| ExecError::Missing {
            kind: kind.to_owned(),
            dirs: self.bin_dirs.iter().map(|dir| dir.display().to_string()).collect::<Vec<_>>().join(", "),
        })
    }
}

fn result_error(list: &NetworkList, plugin: &Plugin, source: ResultError) -> CniError {
    CniError::Result { plugin: plugin.kind.clone(), network: list.name.clone(), source }
}

/// The plugin's configuration as it gets it (specification, section 3, "Deriving execution configuration").
fn stdin(
    list: &NetworkList,
    plugin: &Plugin,
    capability_args: &BTreeMap<String, Value>,
    previous: Option<&Map<String, Value>>,
) -> Map<String, Value> {
    let mut stdin = plugin.json.clone();
    stdin.remove("capabilities");
    stdin.insert("name".to_owned(), list.name.as_str().into());
    stdin.insert("cniVersion".to_owned(), list.version.as_str().into());
    let declared = capability_args.iter().filter(|(name, _)| plugin.capabilities.contains(name));
    let runtime: Map<String, Value> = declared.map(|(name, value)| (name.clone(), value.clone())).collect();
    if !runtime.is_empty() {
        stdin.insert("runtimeConfig".to_owned(), runtime.into());
    }
    if let Some(previous) = previous {
        stdin.insert("prevResult".to_owned(), previous.clone().into());
    }
    stdin
}

fn environment(entry: &Entry, netns: Option<&Path>) -> Vec<(&'static str, OsString)> {
    let pairs: Vec<String> = entry.cni_args.iter().map(|[key, value]| format!("{key}={value}")).collect();
    vec![
        ("CNI_CONTAINERID", entry.container_id.as_str().into()),
        ("CNI_NETNS", netns.map(OsString::from).unwrap_or_default()),
        ("CNI_IFNAME", entry.if_name.as_str().into()),
        ("CNI_ARGS", pairs.join(";").into()),
    ]
}

/// What every Kubernetes plugin expects in `CNI_ARGS`.
fn arguments(wanted: &Wanted<'_>) -> Result<Vec<[String; 2]>, CniError> {
    let values = [
        ("K8S_POD_NAMESPACE", wanted.namespace),
        ("K8S_POD_NAME", wanted.name),
        ("K8S_POD_INFRA_CONTAINER_ID", wanted.pod.as_str()),
        ("K8S_POD_UID", wanted.uid),
    ];
    let mut pairs = vec![["IgnoreUnknown".to_owned(), "1".to_owned()]];
    for (field, value) in values {
        // A semicolon would smuggle in a pair of its own.
        if value.len() > ARGUMENT_BYTES_MAX
            || value.contains(|c: char| c == ';' || c == '=' || c.is_control())
        {
            return Err(CniError::Argument { field, value: value.chars().take(80).collect() });
        }
        pairs.push([field.to_owned(), value.to_owned()]);
    }
    Ok(pairs)
}

/// Everything we could tell a plugin; each gets what it declares (CNI's CONVENTIONS.md).
fn capabilities(wanted: &Wanted<'_>) -> BTreeMap<String, Value> {
    /// The largest burst the bandwidth plugin takes, in bits: we limit the rate only.
    const BURST_BITS: u32 = i32::MAX as u32;
    let mut all = BTreeMap::new();
    let ports: Vec<Value> = wanted
        .ports
        .iter()
        .filter(|port| port.host_port != 0)
        .map(|port| {
            json!({
                "hostPort": port.host_port,
                "containerPort": port.container_port,
                "protocol": PortProtocol::from(port.protocol).name(),
                "hostIP": port.host_ip.map(|ip| ip.to_string()).unwrap_or_default(),
            })
        })
        .collect();
    if !ports.is_empty() {
        all.insert("portMappings".to_owned(), ports.into());
    }
    let mut bandwidth = Map::new();
    for (name, bits) in [("ingress", wanted.bandwidth.ingress), ("egress", wanted.bandwidth.egress)] {
        if let Some(bits) = bits {
            bandwidth.insert(format!("{name}Rate"), bits.into());
            bandwidth.insert(format!("{name}Burst"), BURST_BITS.into());
        }
    }
    if !bandwidth.is_empty() {
        all.insert("bandwidth".to_owned(), bandwidth.into());
    }
    if let Some(dns) = wanted.dns {
        let value = json!({"servers": dns.servers, "searches": dns.searches, "options": dns.options});
        all.insert("dns".to_owned(), value);
    }
    if !wanted.pod_cidr.is_empty() {
        // One range set per address: a pod gets one of each family.
        let sets: Vec<Value> =
            wanted.pod_cidr.iter().map(|net| json!([{"subnet": net.to_string()}])).collect();
        all.insert("ipRanges".to_owned(), sets.into());
    }
    if !wanted.annotations.is_empty() {
        all.insert("io.kubernetes.cri.pod-annotations".to_owned(), json!(wanted.annotations));
    }
    if !wanted.cgroup_parent.is_empty() {
        all.insert("cgroupPath".to_owned(), wanted.cgroup_parent.into());
    }
    all
}
