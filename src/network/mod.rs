//! The pod's network: an interface with addresses inside the pod's namespace, and host ports that lead to it.
//!
//! ```text
//! mod.rs        Network: which kind serves, and the five verbs (attach, detach, check, status, gc)
//! bridge.rs     built in: bridge, pairs of links, masquerade, host ports
//!   ipam.rs       its addresses               links.rs     its links, addresses and routes in rtnetlink's words
//!   ports.rs      who has which host port     nft.rs       its nftables table
//!   conntrack.rs  UDP flows that a change of host ports makes wrong
//! cni/          plugins, as soon as a configuration file exists
//! netns.rs      work inside another namespace
//! netlink.rs    the socket under links.rs and nft.rs
//! bandwidth.rs  the two bandwidth annotations
//! resolv.rs     the pod's /etc/resolv.conf
//! ```
//!
//! The namespaces themselves are made and kept by the pod's monitor; pods in the host's network never come here. The
//! built-in network serves while the CNI directory has no configuration file. A pod is detached by what attached it.

mod bandwidth;
mod bridge;
mod cni;
mod conntrack;
#[cfg(test)]
mod facade_tests;
mod ipam;
mod links;
mod netlink;
pub(crate) mod netns;
mod nft;
mod ports;
pub(crate) mod resolv;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::id::PodId;
use crate::pod::spec::{DnsConfig, PortMapping};

use bandwidth::{Bandwidth, BandwidthError};
use bridge::{BridgeError, Builtin};
use cni::{Cni, CniError, Readiness};
use ipam::IpamError;
use ports::{HostPort, PortError};

/// RFC 791 and RFC 8200: what every IPv4 and every IPv6 link must carry; and the largest packet there is.
const MTU_MIN_V4: u32 = 576;
const MTU_MIN_V6: u32 = 1280;
const MTU_MAX: u32 = 65_535;

/// What the configuration file says about networks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NetworkConfig {
    pub cni_conf_dir: PathBuf,
    /// Searched in order.
    pub cni_bin_dirs: Vec<PathBuf>,
    /// In the data directory: it must outlive a reboot, since plugins' own records do.
    pub cni_cache_dir: PathBuf,
    /// Whether the built-in network serves where there is no CNI configuration.
    pub builtin: bool,
    /// Names the nftables table too, so daemons side by side need different ones.
    pub bridge_name: String,
    /// At most one IPv4 and one IPv6 subnet; the pod's primary address is of the first.
    pub subnets: Vec<IpNet>,
    /// `None` takes the uplink's.
    pub mtu: Option<u32>,
    /// In the run directory.
    pub state_dir: PathBuf,
    /// For all plugins of a pod at DEL together; StopPodSandbox has two minutes.
    pub teardown_timeout: Duration,
}

impl Default for NetworkConfig {
    /// The subnets are ones that no common software takes: Docker has 172.17, podman 10.88, CRI-O 10.85, flannel
    /// 10.244, k3s 10.42, kubeadm's services 10.96. The IPv6 one is a unique local prefix (RFC 4193) spelling "brig".
    fn default() -> Self {
        let net = |text: &str| text.parse().expect("a constant");
        Self {
            cni_conf_dir: "/etc/cni/net.d".into(),
            cni_bin_dirs: ["/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni"].map(PathBuf::from).into(),
            cni_cache_dir: "/var/lib/brig/cni".into(),
            builtin: true,
            bridge_name: "brig0".to_owned(),
            subnets: vec![net("10.87.0.0/16"), net("fd62:7269:6700::/64")],
            mtu: None,
            state_dir: "/run/brig/network".into(),
            teardown_timeout: Duration::from_secs(60),
        }
    }
}

/// Why a network did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NetworkError {
    #[error("configuration network.{field} is {value}, expected {expected}")]
    Config { field: &'static str, value: String, expected: &'static str },
    #[error(transparent)]
    Bandwidth(#[from] BandwidthError),
    #[error("built-in network")]
    Builtin(#[source] Box<BridgeError>),
    #[error("CNI")]
    Cni(#[source] Box<CniError>),
    /// The built-in network is switched off and there is no CNI configuration.
    #[error("cni plugin not initialized")]
    NotInitialized,
    #[error("the daemon is stopping")]
    Stopping,
}

impl NetworkError {
    /// Whether the request itself is at fault, so that repeating it is pointless.
    pub(crate) fn is_bad_request(&self) -> bool {
        match self {
            Self::Bandwidth(_) => true,
            Self::Builtin(err) => match &**err {
                BridgeError::Port(PortError::Taken { .. }) => false,
                BridgeError::Port(_) => true,
                _ => false,
            },
            Self::Cni(err) => matches!(**err, CniError::Argument { .. }),
            Self::Config { .. } | Self::NotInitialized | Self::Stopping => false,
        }
    }

    /// Whether an address or a host port of which there is only so many was all taken.
    pub(crate) fn is_exhausted(&self) -> bool {
        let Self::Builtin(err) = self else { return false };
        matches!(
            **err,
            BridgeError::Ipam(IpamError::Exhausted { .. }) | BridgeError::Port(PortError::Taken { .. })
        )
    }
}

impl From<BridgeError> for NetworkError {
    fn from(err: BridgeError) -> Self {
        Self::Builtin(Box::new(err))
    }
}

impl From<CniError> for NetworkError {
    fn from(err: CniError) -> Self {
        Self::Cni(Box::new(err))
    }
}

/// What a pod asks for.
#[derive(Debug)]
pub(crate) struct Attachment<'a> {
    pub pod: &'a PodId,
    pub name: &'a str,
    pub namespace: &'a str,
    pub uid: &'a str,
    /// `/proc/<monitor>/ns/net`, with lo up.
    pub netns: PathBuf,
    pub ports: &'a [PortMapping],
    /// The bandwidth annotations count here; CNI plugins that ask for them get all.
    pub annotations: &'a BTreeMap<String, String>,
    pub dns: Option<&'a DnsConfig>,
    pub cgroup_parent: &'a str,
}

/// What a pod has; kept in its record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Link {
    /// The primary one first.
    pub addresses: Vec<IpAddr>,
    /// Inside the pod.
    pub interface: String,
    pub kind: LinkKind,
}

/// What attached the pod. What DEL needs of CNI lies in the CNI cache, which outlives a reboot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum LinkKind {
    Bridge { veth: String, ports: Vec<HostPort> },
    Cni { network: String },
}

/// The NetworkReady condition of the CRI's Status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NetworkStatus {
    pub ready: bool,
    /// Empty when ready.
    pub reason: String,
    pub message: String,
}

/// What [`Network::gc`] took back, and what it could not.
#[derive(Debug, Default)]
pub(crate) struct Collected {
    pub swept: bridge::Swept,
    pub failures: Vec<NetworkError>,
}

/// What became of the node's pod subnets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PodCidr {
    Applied,
    /// The built-in bridge has pods in other subnets and keeps them; CNI plugins get the new ones.
    InUse,
}

/// See the module's text. Shared by every task.
#[derive(Debug)]
pub(crate) struct Network {
    builtin: Option<Arc<Builtin>>,
    /// The same, also where it may not attach: what it attached before, it still detaches.
    bridge: Arc<Builtin>,
    cni: Cni,
    pod_cidr: Mutex<Vec<IpNet>>,
    /// Where the last one told is kept over a restart of the daemon.
    cidr_file: PathBuf,
}

impl Network {
    /// Checks the configuration and touches nothing: the bridge is made by the first attach.
    pub(crate) fn new(config: NetworkConfig) -> Result<Self, NetworkError> {
        check_config(&config)?;
        let addresses = config.state_dir.join("addresses");
        let bridge = Arc::new(Builtin::new(config.bridge_name, config.subnets, config.mtu, addresses));
        let cidr_file = config.state_dir.join("pod_cidr");
        let network = Self {
            builtin: config.builtin.then(|| bridge.clone()),
            bridge,
            cni: Cni::new(
                config.cni_conf_dir,
                config.cni_bin_dirs,
                config.cni_cache_dir,
                config.teardown_timeout,
            ),
            pod_cidr: Mutex::default(),
            cidr_file,
        };
        // The kubelet says it again only when it changes.
        let told = std::fs::read_to_string(&network.cidr_file).unwrap_or_default();
        let subnets: Vec<IpNet> = told.lines().filter_map(|line| line.parse().ok()).collect();
        if !subnets.is_empty() {
            network.set_pod_cidr(&subnets)?;
        }
        Ok(network)
    }

    /// Attaches a pod, or changes nothing. About a millisecond built in; at most two minutes, and a DEL, by CNI.
    ///
    /// Not cancel-safe: after a dropped future call [`Self::detach`] without a link.
    pub(crate) async fn attach(&self, wanted: &Attachment<'_>) -> Result<Link, NetworkError> {
        let bandwidth = Bandwidth::of(wanted.annotations)?;
        if self.cni.is_configured() {
            let pod_cidr = self.pod_cidr.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let wanted = cni::Wanted {
                pod: wanted.pod,
                name: wanted.name,
                namespace: wanted.namespace,
                uid: wanted.uid,
                netns: &wanted.netns,
                ports: wanted.ports,
                bandwidth,
                annotations: wanted.annotations,
                dns: wanted.dns,
                cgroup_parent: wanted.cgroup_parent,
                pod_cidr: &pod_cidr,
            };
            let cni::Attached { network, addresses } = self.cni.add(&wanted).await?;
            return Ok(Link {
                addresses,
                interface: links::POD_INTERFACE.to_owned(),
                kind: LinkKind::Cni { network },
            });
        }
        let builtin = self.builtin.clone().ok_or(NetworkError::NotInitialized)?;
        let (pod, netns, ports) = (wanted.pod.clone(), wanted.netns.clone(), wanted.ports.to_vec());
        let attached = blocking(move || {
            builtin.attach(&bridge::Wanted { pod: &pod, netns: &netns, ports: &ports, bandwidth })
        })
        .await?;
        Ok(Link {
            addresses: attached.addresses,
            interface: links::POD_INTERFACE.to_owned(),
            kind: LinkKind::Bridge { veth: attached.veth, ports: attached.ports },
        })
    }

    /// Takes back all a pod has. Idempotent. Built in, host ports are gone when this returns; the link and its address
    /// follow within some 30 ms, which [`Self::settle`] waits for. `link` is `None` where an attach was cut short: then both kinds look.
    /// `netns` is `None` where the namespace is gone, as after a reboot.
    pub(crate) async fn detach(
        &self,
        pod: &PodId,
        link: Option<&Link>,
        netns: Option<&Path>,
    ) -> Result<(), NetworkError> {
        let (by_bridge, by_cni) = match link.map(|link| &link.kind) {
            Some(LinkKind::Bridge { .. }) => (true, false),
            Some(LinkKind::Cni { .. }) => (false, true),
            None => (true, true),
        };
        // One failure must not keep the other kind from its work.
        let unplugged =
            if by_cni { self.cni.del(pod, netns).await.map_err(NetworkError::from) } else { Ok(()) };
        if by_bridge {
            let (bridge, pod) = (self.bridge.clone(), pod.clone());
            blocking(move || bridge.detach(&pod)).await?;
        }
        unplugged
    }

    /// Whether the pod's link is as attach left it; missing host ports of the built-in network are put back.
    pub(crate) async fn check(&self, pod: &PodId, link: &Link, netns: &Path) -> Result<(), NetworkError> {
        match &link.kind {
            LinkKind::Cni { .. } => Ok(self.cni.check(pod, netns).await?),
            LinkKind::Bridge { ports, .. } => {
                let (bridge, pod, ports) = (self.bridge.clone(), pod.clone(), ports.clone());
                blocking(move || bridge.check(&pod, &ports)).await
            }
        }
    }

    /// Whether pods can be attached now. Asks CNI 1.1 plugins, so it takes as long as they do, at most 10 s each. The
    /// built-in network puts its rules back if they were flushed: the kubelet asks every few seconds.
    pub(crate) async fn status(&self) -> NetworkStatus {
        let bridge = self.bridge.clone();
        let healed = blocking(move || bridge.heal()).await;
        let why = match (self.cni.readiness().await, &self.builtin) {
            (Readiness::NotReady(why), _) => format!(": {why}"),
            (Readiness::Absent, None) => String::new(),
            (Readiness::Absent, Some(_)) if let Err(err) = healed => {
                let cause = std::error::Error::source(&err).map(ToString::to_string).unwrap_or_default();
                format!(": {err}: {cause}")
            }
            (Readiness::Absent, Some(_)) | (Readiness::Ready, _) => {
                return NetworkStatus { ready: true, reason: String::new(), message: String::new() };
            }
        };
        NetworkStatus {
            ready: false,
            reason: "NetworkPluginNotReady".to_owned(),
            message: format!("Network plugin returns error: cni plugin not initialized{why}"),
        }
    }

    /// After a start of the daemon, before the first attach: learns which addresses and host ports the live pods have
    /// (`None` for those without a link). Takes nothing back.
    pub(crate) async fn adopt(&self, live: &[(PodId, Option<Link>)]) -> Result<(), NetworkError> {
        let (bridge, owned) = (self.bridge.clone(), live.to_vec());
        blocking(move || bridge.adopt(&held_on_bridge(&owned))).await
    }

    /// As [`Self::adopt`], and takes back what belongs to no live pod: addresses, links, host ports, CNI attachments.
    pub(crate) async fn gc(&self, live: &[(PodId, Option<Link>)]) -> Collected {
        let (bridge, owned) = (self.bridge.clone(), live.to_vec());
        let swept = blocking(move || bridge.sweep(&held_on_bridge(&owned)));
        let mut collected = Collected::default();
        match swept.await {
            Ok(swept) => collected.swept = swept,
            Err(err) => collected.failures.push(err),
        }
        let pods: BTreeSet<&PodId> = live.iter().map(|(pod, _)| pod).collect();
        let (gone, failures) = self.cni.sweep(|pod| pods.contains(pod)).await;
        collected.swept.cni = gone;
        collected.failures.extend(failures.into_iter().map(NetworkError::from));
        collected
    }

    /// The node's pod subnets, as UpdateRuntimeConfig tells: CNI plugins get them as `ipRanges`, the built-in network
    /// uses them unless it has pods in others.
    pub(crate) fn set_pod_cidr(&self, subnets: &[IpNet]) -> Result<PodCidr, NetworkError> {
        let subnets: Vec<IpNet> = subnets.iter().map(IpNet::trunc).collect();
        check_subnets("pod_cidr", &subnets)?;
        let text: String = subnets.iter().map(|subnet| format!("{subnet}\n")).collect();
        let kept = self.cidr_file.parent().map_or(Ok(()), std::fs::create_dir_all);
        if let Err(error) = kept.and_then(|()| std::fs::write(&self.cidr_file, text)) {
            tracing::warn!(file = %self.cidr_file.display(), error = %error, "cannot keep the pod subnets over a restart");
        }
        self.pod_cidr.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&subnets);
        Ok(if self.bridge.set_subnets(&subnets) { PodCidr::Applied } else { PodCidr::InUse })
    }

    /// Reads the CNI directory anew at the next use. Changes are seen without it.
    pub(crate) fn reload(&self) {
        self.cni.reload();
    }

    /// Waits until the links of all detached pods are gone from the kernel: before the daemon ends.
    pub(crate) async fn settle(&self) -> Result<(), NetworkError> {
        let bridge = self.bridge.clone();
        let settle = move || {
            bridge.settle();
            Ok(())
        };
        blocking(settle).await
    }

    /// Deletes the bridge, its ports, its nftables table and its records. Pods lose the network.
    pub(crate) async fn teardown(&self) -> Result<(), NetworkError> {
        let bridge = self.bridge.clone();
        blocking(move || bridge.teardown()).await
    }
}

/// What each pod has of the built-in network: nothing, where CNI or nobody attached it.
fn held_on_bridge(live: &[(PodId, Option<Link>)]) -> Vec<bridge::Held<'_>> {
    let held = live.iter().map(|(pod, link)| match link {
        Some(Link { addresses, kind: LinkKind::Bridge { ports, .. }, .. }) => {
            bridge::Held { pod, addresses, ports }
        }
        Some(Link { kind: LinkKind::Cni { .. }, .. }) | None => {
            bridge::Held { pod, addresses: &[], ports: &[] }
        }
    });
    held.collect()
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, BridgeError> + Send + 'static,
) -> Result<T, NetworkError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => Ok(done?),
        Err(err) => match err.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(NetworkError::Stopping),
        },
    }
}

fn check_config(config: &NetworkConfig) -> Result<(), NetworkError> {
    let name = &config.bridge_name;
    // As the kernel's dev_valid_name; beyond that, what nft(8) can print as a table's name.
    let valid = (1..=links::NAME_BYTES_MAX).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        && name != "."
        && name != "..";
    if !valid {
        let expected = "1 to 15 letters, digits and ._-";
        return Err(NetworkError::Config { field: "bridge", value: format!("{name:?}"), expected });
    }
    check_subnets("subnet", &config.subnets)?;
    let v6 = config.subnets.iter().any(|subnet| matches!(subnet, IpNet::V6(_)));
    let least = if v6 { MTU_MIN_V6 } else { MTU_MIN_V4 };
    if let Some(mtu) = config.mtu.filter(|mtu| !(least..=MTU_MAX).contains(mtu)) {
        let expected = if v6 { "1280 to 65535 bytes" } else { "576 to 65535 bytes" };
        return Err(NetworkError::Config { field: "mtu", value: mtu.to_string(), expected });
    }
    Ok(())
}

fn check_subnets(field: &'static str, subnets: &[IpNet]) -> Result<(), NetworkError> {
    let value = || subnets.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let fail = |expected| Err(NetworkError::Config { field, value: value(), expected });
    let v4 = subnets.iter().filter(|subnet| matches!(subnet, IpNet::V4(_))).count();
    if subnets.is_empty() || v4 > 1 || subnets.len() - v4 > 1 {
        return fail("one IPv4 subnet, one IPv6 subnet, or one of each");
    }
    if subnets.iter().any(|subnet| subnet.trunc() != *subnet) {
        return fail("a subnet without host bits");
    }
    subnets
        .iter()
        .try_for_each(|subnet| ipam::check_subnet(subnet).map_err(|err| BridgeError::from(err).into()))
}
