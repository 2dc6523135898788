//! Host ports: which port of the host leads to which pod, and who was first.
//!
//! Pure bookkeeping. `nft.rs` puts it into the kernel.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::id::PodId;
use crate::pod::spec::{PortMapping, Protocol};

/// Host ports one pod may ask for; Kubernetes names no limit, so this is far above any real pod.
const PORTS_MAX: usize = 4096;

/// Why a pod cannot have the host ports it asks for.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum PortError {
    #[error("host port {wanted} is taken by pod {holder}")]
    Taken { wanted: String, holder: PodId },
    #[error("host port {wanted} is asked for twice, for container ports {first} and {second}")]
    Twice { wanted: String, first: u16, second: u16 },
    #[error("host port {wanted} has container port 0")]
    NoTarget { wanted: String },
    #[error("host port {wanted} needs an {family} address, and the pod has none")]
    NoFamily { wanted: String, family: &'static str },
    #[error("{count} port mappings, the limit is {PORTS_MAX}")]
    TooMany { count: usize },
}

/// One port of the host that leads to a pod. The target's address family is the family of the host's side too.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct HostPort {
    pub protocol: PortProtocol,
    /// `None` is every local address of the family.
    pub host: Option<IpAddr>,
    pub port: u16,
    pub target: SocketAddr,
}

/// Transport protocols with ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum PortProtocol {
    Tcp,
    Udp,
    Sctp,
}

impl PortProtocol {
    /// The number in the IP header.
    pub(super) fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

impl From<Protocol> for PortProtocol {
    fn from(protocol: Protocol) -> Self {
        match protocol {
            Protocol::Tcp => Self::Tcp,
            Protocol::Udp => Self::Udp,
            Protocol::Sctp => Self::Sctp,
        }
    }
}

/// Turns the mappings of a pod into ports of the host, for each address family the pod has. A mapping without a host
/// port asks for nothing.
pub(super) fn resolve(mappings: &[PortMapping], addresses: &[IpAddr]) -> Result<Vec<HostPort>, PortError> {
    if mappings.len() > PORTS_MAX {
        return Err(PortError::TooMany { count: mappings.len() });
    }
    let mut resolved: Vec<HostPort> = Vec::new();
    for mapping in mappings.iter().filter(|mapping| mapping.host_port != 0) {
        let protocol = PortProtocol::from(mapping.protocol);
        let wanted = || describe(protocol, mapping.host_ip, mapping.host_port);
        if mapping.container_port == 0 {
            return Err(PortError::NoTarget { wanted: wanted() });
        }
        let matching = |ip: &&IpAddr| mapping.host_ip.is_none_or(|host| host.is_ipv4() == ip.is_ipv4());
        // The first address of each family is the pod's; further ones have no host ports.
        let v4 = addresses.iter().filter(matching).find(|ip| ip.is_ipv4());
        let v6 = addresses.iter().filter(matching).find(|ip| ip.is_ipv6());
        if v4.is_none() && v6.is_none() {
            let family = if mapping.host_ip.is_some_and(|ip| ip.is_ipv6()) { "IPv6" } else { "IPv4" };
            return Err(PortError::NoFamily { wanted: wanted(), family });
        }
        for address in [v4, v6].into_iter().flatten() {
            let port = HostPort {
                protocol,
                host: mapping.host_ip.filter(|ip| !ip.is_unspecified()),
                port: mapping.host_port,
                target: SocketAddr::new(*address, mapping.container_port),
            };
            match resolved.iter().find(|other| other.clashes(&port)) {
                None => resolved.push(port),
                Some(other) if *other == port => {}
                Some(other) => {
                    let (first, second) = (other.target.port(), port.target.port());
                    return Err(PortError::Twice { wanted: wanted(), first, second });
                }
            }
        }
    }
    Ok(resolved)
}

impl HostPort {
    /// Whether one packet could be meant for both.
    fn clashes(&self, other: &Self) -> bool {
        self.key() == other.key()
            && match (self.host, other.host) {
                (Some(a), Some(b)) => a == b,
                (None, _) | (_, None) => true,
            }
    }

    fn key(&self) -> Key {
        (self.protocol, self.port, self.target.is_ipv6())
    }
}

type Key = (PortProtocol, u16, bool);

/// The host ports of all pods.
#[derive(Debug, Default)]
pub(super) struct Ports {
    pods: BTreeMap<PodId, Vec<HostPort>>,
    by_port: BTreeMap<Key, Vec<(PodId, HostPort)>>,
}

impl Ports {
    /// Takes all of `wanted` for `pod`, or none. A repeat for the same pod replaces what it had.
    pub(super) fn take(&mut self, pod: &PodId, wanted: &[HostPort]) -> Result<(), PortError> {
        for port in wanted {
            let others = self.by_port.get(&port.key()).map_or(&[][..], Vec::as_slice);
            if let Some((holder, _)) =
                others.iter().find(|(holder, other)| holder != pod && other.clashes(port))
            {
                return Err(PortError::Taken {
                    wanted: describe(port.protocol, port.host, port.port),
                    holder: holder.clone(),
                });
            }
        }
        self.release(pod);
        if wanted.is_empty() {
            return Ok(());
        }
        for port in wanted {
            self.by_port.entry(port.key()).or_default().push((pod.clone(), port.clone()));
        }
        self.pods.insert(pod.clone(), wanted.to_vec());
        Ok(())
    }

    /// Gives back what `pod` had, and returns it.
    pub(super) fn release(&mut self, pod: &PodId) -> Vec<HostPort> {
        let held = self.pods.remove(pod).unwrap_or_default();
        for port in &held {
            if let Some(holders) = self.by_port.get_mut(&port.key()) {
                holders.retain(|(holder, _)| holder != pod);
                if holders.is_empty() {
                    self.by_port.remove(&port.key());
                }
            }
        }
        held
    }

    pub(super) fn pods(&self) -> impl Iterator<Item = &PodId> {
        self.pods.keys()
    }

    /// Every host port there is.
    pub(super) fn all(&self) -> Vec<HostPort> {
        self.pods.values().flatten().cloned().collect()
    }
}

fn describe(protocol: PortProtocol, host: Option<IpAddr>, port: u16) -> String {
    match host {
        None => format!("{}/{port}", protocol.name()),
        Some(ip) => format!("{}/{}", protocol.name(), SocketAddr::new(ip, port)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(n: u8) -> PodId {
        format!("{n:064x}").parse().unwrap()
    }

    fn mapping(protocol: Protocol, host: Option<&str>, host_port: u16, container_port: u16) -> PortMapping {
        PortMapping { protocol, container_port, host_port, host_ip: host.map(|h| h.parse().unwrap()) }
    }

    fn both() -> Vec<IpAddr> {
        vec!["10.1.0.2".parse().unwrap(), "fd00::2".parse().unwrap()]
    }

    #[test]
    fn a_mapping_leads_to_every_family_the_pod_has_unless_its_host_address_says_which() {
        let ports = resolve(&[mapping(Protocol::Tcp, None, 80, 8080)], &both()).unwrap();
        let targets: Vec<_> = ports.iter().map(|p| (p.host, p.target.to_string())).collect();
        assert_eq!(targets, [(None, "10.1.0.2:8080".to_owned()), (None, "[fd00::2]:8080".to_owned())]);
        let ports = resolve(&[mapping(Protocol::Udp, Some("0.0.0.0"), 53, 53)], &both()).unwrap();
        assert_eq!((ports.len(), ports[0].host), (1, None));
        let ports = resolve(&[mapping(Protocol::Sctp, Some("::1"), 53, 53)], &both()).unwrap();
        assert_eq!((ports.len(), ports[0].host), (1, Some("::1".parse().unwrap())));
        assert_eq!(resolve(&[mapping(Protocol::Tcp, None, 0, 8080)], &both()), Ok(vec![]));
    }

    #[test]
    fn impossible_mappings_name_the_port() {
        let v4 = &both()[..1];
        let err = |m: &[PortMapping]| resolve(m, v4).unwrap_err().to_string();
        assert_eq!(
            err(&[mapping(Protocol::Tcp, Some("fd00::9"), 80, 80)]),
            "host port tcp/[fd00::9]:80 needs an IPv6 address, and the pod has none"
        );
        assert_eq!(err(&[mapping(Protocol::Tcp, None, 80, 0)]), "host port tcp/80 has container port 0");
        assert_eq!(
            err(&[mapping(Protocol::Tcp, None, 80, 1), mapping(Protocol::Tcp, Some("10.0.0.1"), 80, 2)]),
            "host port tcp/10.0.0.1:80 is asked for twice, for container ports 1 and 2"
        );
        let same = mapping(Protocol::Tcp, None, 80, 1);
        assert_eq!(resolve(&[same.clone(), same], v4).unwrap().len(), 1);
    }

    #[test]
    fn a_host_port_has_one_pod_and_a_refusal_changes_nothing() {
        let mut ports = Ports::default();
        let any = resolve(&[mapping(Protocol::Tcp, None, 80, 1)], &both()).unwrap();
        let one = resolve(&[mapping(Protocol::Tcp, Some("10.0.0.1"), 80, 1)], &both()).unwrap();
        let two = resolve(&[mapping(Protocol::Tcp, Some("10.0.0.2"), 80, 1)], &both()).unwrap();
        let udp = resolve(&[mapping(Protocol::Udp, None, 80, 1)], &both()).unwrap();
        ports.take(&pod(1), &one).unwrap();
        ports.take(&pod(2), &two).unwrap();
        let mixed: Vec<_> = udp.iter().chain(&any).cloned().collect();
        let err = ports.take(&pod(3), &mixed).unwrap_err();
        assert_eq!(err, PortError::Taken { wanted: "tcp/80".to_owned(), holder: pod(1) });
        ports.take(&pod(4), &udp).unwrap();
        ports.take(&pod(1), &one).unwrap();
        assert_eq!(ports.release(&pod(1)), one);
        ports.release(&pod(2));
        ports.take(&pod(3), &any).unwrap();
        assert_eq!(ports.all().len(), 4);
    }
}
