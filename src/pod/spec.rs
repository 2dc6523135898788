//! What a RunPodSandbox request asks for, parsed. The rules of `container/spec.rs` hold here too.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::container::spec::{Namespaces, Resources, Security};

/// A pod, as asked for.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct PodSpec {
    pub identity: PodIdentity,
    /// The RuntimeClass handler; empty is the configured default.
    pub handler: String,
    /// Empty for a pod in the host's network.
    pub hostname: String,
    /// Absolute; where the containers' logs go.
    pub log_directory: Option<PathBuf>,
    pub dns: Option<DnsConfig>,
    pub ports: Vec<PortMapping>,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    /// As the kubelet gives it: `/kubepods/burstable/pod…` or `kubepods-burstable-pod….slice`; may be empty.
    pub cgroup_parent: String,
    pub sysctls: BTreeMap<String, String>,
    pub security: Security,
    pub overhead: Option<Resources>,
    pub resources: Option<Resources>,
}

impl PodSpec {
    pub(crate) fn namespaces(&self) -> &Namespaces {
        &self.security.namespaces
    }
}

/// CRI's PodSandboxMetadata: at most one pod with the same four values exists.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub(crate) struct PodIdentity {
    pub name: String,
    pub uid: String,
    pub namespace: String,
    pub attempt: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct DnsConfig {
    pub servers: Vec<String>,
    pub searches: Vec<String>,
    pub options: Vec<String>,
}

/// A port of the host that leads to a port of the pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PortMapping {
    pub protocol: Protocol,
    pub container_port: u16,
    /// 0 asks for no host port.
    pub host_port: u16,
    /// `None` is every address of the host.
    pub host_ip: Option<IpAddr>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) enum Protocol {
    Tcp,
    Udp,
    Sctp,
}
