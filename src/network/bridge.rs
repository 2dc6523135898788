//! The built-in network: one bridge, a pair of links per pod, addresses, masquerade and host ports, without helpers.
//!
//! ```text
//! host namespace                                 pod's namespace
//!   uplink ── masquerade ── brig0 ── veth<pod> ══ eth0
//!                           .1, ::1                address, default route via the bridge
//! ```
//!
//! The bridge, its nftables table and forwarding are made by the first attach, and stay until [`Builtin::teardown`].
//! One pod costs four messages to rtnetlink and one thread that enters the pod's namespace; nftables is touched only
//! for pods with host ports. What is known lies in memory; what must outlive the daemon is the kernel's own state, the
//! address records (`ipam.rs`) and the pods' [`Link`](super::Link)s.
//!
//! Everything here blocks, for about a millisecond. Two things the kernel makes slow are kept off that path. Deleting a
//! link waits for a grace period of RCU (`rcu_barrier` in `netdev_run_todo`: 28 ms were measured), so a thread does it
//! after detach has returned; the address stays taken until it is done. And closing an nftables socket waits for the
//! memory of deleted elements (`nft_rcv_nl_event`: 20 ms), so one socket stays open.

use std::collections::{BTreeSet, VecDeque};
use std::fs::File;
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use ipnet::IpNet;
use rustix::fs::{Mode, OFlags};

use super::bandwidth::Bandwidth;
use super::conntrack;
use super::ipam::{self, Ipam, IpamError};
use super::links::{self, POD_INTERFACE, Veth};
use super::netlink::{NetlinkError, Socket};
use super::netns::{self, NetnsError};
use super::nft;
use super::ports::{self, HostPort, PortError, Ports};
use crate::id::PodId;
use crate::pod::spec::PortMapping;

/// Ethernet's packet size, for a host without a default route.
const MTU_DEFAULT: u32 = 1500;

/// Why the built-in network did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BridgeError {
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    #[error(transparent)]
    Netns(#[from] NetnsError),
    #[error(transparent)]
    Ipam(#[from] IpamError),
    #[error(transparent)]
    Port(#[from] PortError),
    #[error("interface {0} exists and is no bridge; set network.bridge to another name")]
    NotABridge(String),
    #[error(
        "subnet {subnet} of bridge {bridge} is in use: {route} is routed through {interface}; \
         set network.subnet to a free one"
    )]
    SubnetInUse { subnet: IpNet, bridge: String, route: IpNet, interface: String },
    #[error("write {value} to {}", .path.display())]
    Sysctl {
        path: PathBuf,
        value: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("interface {0} vanished while it was set up")]
    Vanished(String),
    #[error("{cause}; and undoing it failed: {cleanup}")]
    NotUndone {
        #[source]
        cause: Box<Self>,
        cleanup: Box<Self>,
    },
}

/// What a pod asks of the built-in network.
#[derive(Debug)]
pub(super) struct Wanted<'a> {
    pub pod: &'a PodId,
    pub netns: &'a Path,
    pub ports: &'a [PortMapping],
    pub bandwidth: Bandwidth,
}

/// What a pod got.
#[derive(Debug)]
pub(super) struct Attached {
    pub addresses: Vec<IpAddr>,
    pub veth: String,
    pub ports: Vec<HostPort>,
}

/// What a live pod has.
#[derive(Debug)]
pub(super) struct Held<'a> {
    pub pod: &'a PodId,
    pub addresses: &'a [IpAddr],
    pub ports: &'a [HostPort],
}

/// See the module's text.
#[derive(Debug)]
pub(super) struct Builtin {
    bridge: String,
    mtu: Option<u32>,
    addresses_dir: PathBuf,
    state: Mutex<State>,
    unplugging: Mutex<Unplugging>,
    unplugged: Condvar,
}

/// Pods whose links are still to be deleted. At most as many as there were pods.
#[derive(Debug, Default)]
struct Unplugging {
    queue: VecDeque<PodId>,
    /// Whether a thread works on the queue. It ends when there is nothing left.
    busy: bool,
}

#[derive(Debug)]
struct State {
    subnets: Vec<IpNet>,
    /// Set while the bridge is known to be there.
    ready: Option<Ready>,
    /// Loaded at the first use.
    ipam: Option<Ipam>,
    ports: Ports,
    /// Opened at the first use; see the module's text for why it stays open.
    nft: Option<Socket>,
}

#[derive(Debug, Clone, Copy)]
struct Ready {
    index: u32,
    mtu: u32,
}

impl Builtin {
    /// Touches nothing yet.
    pub(super) fn new(bridge: String, subnets: Vec<IpNet>, mtu: Option<u32>, addresses_dir: PathBuf) -> Self {
        let state = State { subnets, ready: None, ipam: None, ports: Ports::default(), nft: None };
        Self {
            bridge,
            mtu,
            addresses_dir,
            state: Mutex::new(state),
            unplugging: Mutex::default(),
            unplugged: Condvar::new(),
        }
    }

    /// Attaches one pod, or changes nothing.
    pub(super) fn attach(&self, wanted: &Wanted<'_>) -> Result<Attached, BridgeError> {
        match self.attach_once(wanted) {
            // The bridge was deleted behind our back: make it again, once. The kernel's errno for a missing one varies.
            Err(BridgeError::Netlink(err)) if self.forget_missing_bridge() => {
                self.undo(wanted.pod, err.into(), |_| ())?;
                self.attach_once(wanted)
            }
            other => other,
        }
        .or_else(|cause| self.undo(wanted.pod, cause, Err)?)
    }

    /// Whether the bridge is gone, which is then forgotten.
    fn forget_missing_bridge(&self) -> bool {
        let mut state = self.lock();
        let Some(ready) = state.ready else { return false };
        let found = Socket::route().and_then(|mut host| links::find(&mut host, &self.bridge));
        let gone = found.is_ok_and(|link| link.is_none_or(|link| link.index != ready.index));
        if gone {
            state.ready = None;
        }
        gone
    }

    fn undo<T>(
        &self,
        pod: &PodId,
        cause: BridgeError,
        done: impl FnOnce(BridgeError) -> T,
    ) -> Result<T, BridgeError> {
        match self.detach_now(pod) {
            Ok(()) => Ok(done(cause)),
            Err(cleanup) => {
                Err(BridgeError::NotUndone { cause: Box::new(cause), cleanup: Box::new(cleanup) })
            }
        }
    }

    fn attach_once(&self, wanted: &Wanted<'_>) -> Result<Attached, BridgeError> {
        let netns = netns::open(wanted.netns)?;
        let veth = veth_name(wanted.pod);
        let (ready, given, ports) = {
            let mut state = self.lock();
            let ready = self.ensure_bridge(&mut state)?;
            let given = self.ipam(&mut state)?.allocate(wanted.pod)?;
            let addresses: Vec<IpAddr> = given.iter().map(|(ip, _)| *ip).collect();
            let ports = ports::resolve(wanted.ports, &addresses)?;
            state.ports.take(wanted.pod, &ports)?;
            (ready, given, ports)
        };
        let addresses: Vec<IpAddr> = given.iter().map(|(ip, _)| *ip).collect();
        let mut host = Socket::route()?;
        let plug = || {
            // The message with both sides is sent from the pod's namespace on the host's socket.
            links::make_veth(
                &mut host,
                &Veth {
                    host_name: &veth,
                    bridge: ready.index,
                    mtu: ready.mtu,
                    mac: links::mac_of(addresses[0]),
                    netns: netns.as_fd(),
                    hairpin: !ports.is_empty(),
                },
            )?;
            let mut inside = Socket::route()?;
            let vanished = || BridgeError::Vanished(POD_INTERFACE.to_owned());
            let eth0 = links::find(&mut inside, POD_INTERFACE)?.ok_or_else(vanished)?;
            quieten_ipv6(POD_INTERFACE, addresses.iter().any(IpAddr::is_ipv6))?;
            // The pod's side first, so that the bridge port has carrier when it comes up and forwards at once.
            links::set_up(&mut inside, POD_INTERFACE)?;
            links::set_up(&mut host, &veth)?;
            links::configure_pod(&mut inside, eth0.index, &given)?;
            if let Some(bits) = wanted.bandwidth.egress {
                links::limit_rate(&mut inside, eth0.index, bits)?;
            }
            if let Some(bits) = wanted.bandwidth.ingress {
                let port =
                    links::find(&mut host, &veth)?.ok_or_else(|| BridgeError::Vanished(veth.clone()))?;
                links::limit_rate(&mut host, port.index, bits)?;
            }
            Ok::<(), BridgeError>(())
        };
        netns::within(netns.as_fd(), plug)??;
        if !ports.is_empty() {
            let mut state = self.lock();
            match self.nft(&mut state, |table, socket, _| table.add(socket, &ports)) {
                // Somebody flushed the whole ruleset: ours comes back with every pod's ports.
                Err(err) if err.errno() == Some(rustix::io::Errno::NOENT) => {
                    self.replace_table(&mut state)?
                }
                other => other?,
            }
            let forgotten =
                self.nft(&mut state, |_, socket, _| conntrack::forget_flows_to_ports(socket, &ports));
            log_unforgotten(forgotten);
        }
        Ok(Attached { addresses, veth, ports })
    }

    /// Takes back all a pod has; a pod that has nothing is fine. Its host ports are gone when this returns, its link
    /// and addresses soon after: see [`Self::settle`].
    pub(super) fn detach(self: &Arc<Self>, pod: &PodId) -> Result<(), BridgeError> {
        self.unmap(&mut self.lock(), pod)?;
        if !self.addresses_dir.exists() && self.lock().ready.is_none() {
            return Ok(());
        }
        let mut unplugging = self.unplugging.lock().unwrap_or_else(PoisonError::into_inner);
        if !unplugging.queue.contains(pod) {
            unplugging.queue.push_back(pod.clone());
        }
        if unplugging.busy {
            return Ok(());
        }
        unplugging.busy = true;
        drop(unplugging);
        let worker = self.clone();
        // A thread starts in the network namespace of the one that started it.
        let started =
            std::thread::Builder::new().name("unplug".to_owned()).spawn(move || worker.unplug_queue());
        if started.is_err() {
            self.unplug_queue();
        }
        Ok(())
    }

    /// Deletes the links of the queue's pods, one after the other, until none is left.
    fn unplug_queue(&self) {
        loop {
            let next = {
                let mut unplugging = self.unplugging.lock().unwrap_or_else(PoisonError::into_inner);
                let next = unplugging.queue.front().cloned();
                if next.is_none() {
                    unplugging.busy = false;
                    self.unplugged.notify_all();
                }
                next
            };
            let Some(pod) = next else { return };
            if let Err(err) = self.unplug(&pod) {
                // The address stays taken, so nobody suffers; the next sweep tries again.
                let cause = std::error::Error::source(&err).map(ToString::to_string).unwrap_or_default();
                tracing::warn!(%pod, "the pod's link remains: {err}: {cause}");
            }
            let mut unplugging = self.unplugging.lock().unwrap_or_else(PoisonError::into_inner);
            unplugging.queue.pop_front();
        }
    }

    /// Waits until the links of all detached pods are gone.
    pub(super) fn settle(&self) {
        let unplugging = self.unplugging.lock().unwrap_or_else(PoisonError::into_inner);
        // The kernel ends every deletion, so this ends.
        drop(self.unplugged.wait_while(unplugging, |unplugging| unplugging.busy));
    }

    /// As [`Self::detach`], with nothing left when it returns. Goes on after a failure and returns the first.
    fn detach_now(&self, pod: &PodId) -> Result<(), BridgeError> {
        let unmapped = self.unmap(&mut self.lock(), pod);
        let unplugged = self.unplug(pod);
        unmapped.and(unplugged)
    }

    fn unplug(&self, pod: &PodId) -> Result<(), BridgeError> {
        links::delete(&mut Socket::route()?, &veth_name(pod))?;
        // The addresses are free only now that nothing uses them. Without a directory none was ever given out.
        if !self.addresses_dir.exists() {
            return Ok(());
        }
        Ok(self.ipam(&mut self.lock())?.release(pod)?)
    }

    fn unmap(&self, state: &mut State, pod: &PodId) -> Result<(), BridgeError> {
        let ports = state.ports.release(pod);
        if ports.is_empty() {
            return Ok(());
        }
        let removed = self.nft(state, |table, socket, _| table.remove(socket, &ports));
        log_unforgotten(self.nft(state, |_, socket, _| conntrack::forget_flows_of_pod(socket, &ports)));
        match removed {
            // An attach that failed had not added them, or the table is gone. What remains is put right as a whole.
            Err(err) if err.errno() == Some(rustix::io::Errno::NOENT) => match state.ready {
                Some(_) => self.replace_table(state),
                None => Ok(()),
            },
            Ok(()) => Ok(()),
            Err(err) => {
                // Still in the kernel, so still the pod's: the next detach tries again.
                let _ = state.ports.take(pod, &ports);
                Err(err.into())
            }
        }
    }

    /// One transaction on the open socket; after a failure the next one gets a new socket, without stale answers.
    fn nft(
        &self,
        state: &mut State,
        work: impl FnOnce(&nft::Table<'_>, &mut Socket, &Ports) -> Result<(), NetlinkError>,
    ) -> Result<(), NetlinkError> {
        let mut socket = match state.nft.take() {
            Some(socket) => socket,
            None => Socket::netfilter()?,
        };
        let table = nft::Table { bridge: &self.bridge, subnets: &state.subnets };
        work(&table, &mut socket, &state.ports)?;
        state.nft = Some(socket);
        Ok(())
    }

    /// Puts the rules back when somebody flushed them. Costs one message when they are there.
    pub(super) fn heal(&self) -> Result<(), BridgeError> {
        let mut state = self.lock();
        if state.ready.is_none() {
            return Ok(());
        }
        let mut there = true;
        self.nft(&mut state, |table, socket, _| {
            there = table.exists(socket)?;
            Ok(())
        })?;
        if !there {
            tracing::warn!("the nftables rules of bridge {} were deleted; they are put back", self.bridge);
            self.replace_table(&mut state)?;
        }
        Ok(())
    }

    /// Makes the table anew with the host ports of all pods.
    fn replace_table(&self, state: &mut State) -> Result<(), BridgeError> {
        Ok(self.nft(state, |table, socket, ports| table.replace(socket, &ports.all()))?)
    }

    /// Whether the pod's bridge port is there and the table is as it should be.
    pub(super) fn check(&self, pod: &PodId, held: &[HostPort]) -> Result<(), BridgeError> {
        let mut host = Socket::route()?;
        let veth = veth_name(pod);
        if links::find(&mut host, &veth)?.is_none() {
            return Err(BridgeError::Vanished(veth));
        }
        if !held.is_empty() {
            let mut state = self.lock();
            match self.nft(&mut state, |table, socket, _| table.add(socket, held)) {
                Err(err) if err.errno() == Some(rustix::io::Errno::NOENT) => {
                    self.replace_table(&mut state)?
                }
                other => other?,
            }
        }
        Ok(())
    }

    /// Knows the live pods again after a restart.
    pub(super) fn adopt(&self, live: &[Held<'_>]) -> Result<(), BridgeError> {
        let mut state = self.lock();
        for Held { pod, addresses, ports } in live {
            // Not for none: reading the records makes their directory.
            if !addresses.is_empty() {
                self.ipam(&mut state)?.adopt(pod, addresses)?;
            }
            if !ports.is_empty() {
                state.ports.take(pod, ports)?;
            }
        }
        Ok(())
    }

    /// As [`Self::adopt`], and takes back what others left: ports, links, addresses.
    pub(super) fn sweep(&self, live: &[Held<'_>]) -> Result<Swept, BridgeError> {
        self.settle();
        self.adopt(live)?;
        let mut state = self.lock();
        let pods: BTreeSet<PodId> = live.iter().map(|held| held.pod.clone()).collect();
        let mut swept = Swept::default();
        let stale: Vec<PodId> = state.ports.pods().filter(|pod| !pods.contains(*pod)).cloned().collect();
        for pod in stale {
            swept.ports += state.ports.release(&pod).len();
        }
        let mut host = Socket::route()?;
        let bridge = links::find(&mut host, &self.bridge)?.filter(|link| link.is_bridge);
        if let Some(bridge) = &bridge {
            let ours: BTreeSet<String> = pods.iter().map(veth_name).collect();
            for link in links::all(&mut host)? {
                let stray = link.is_veth && link.master == Some(bridge.index) && is_veth_name(&link.name);
                if stray && !ours.contains(&link.name) {
                    swept.links += usize::from(links::delete(&mut host, &link.name)?);
                }
            }
            // Ports of dead pods go, and what a flush took comes back.
            self.replace_table(&mut state)?;
        }
        if self.addresses_dir.exists() {
            let ipam = self.ipam(&mut state)?;
            for pod in ipam.pods().difference(&pods) {
                ipam.release(pod)?;
                swept.addresses += 1;
            }
        }
        Ok(swept)
    }

    /// Deletes the bridge with its ports, the table and the address records. Forwarding stays as it is: others may
    /// have come to rely on it.
    pub(super) fn teardown(&self) -> Result<(), BridgeError> {
        self.settle();
        let mut state = self.lock();
        state.ready = None;
        state.ipam = None;
        state.ports = Ports::default();
        self.nft(&mut state, |table, socket, _| table.delete(socket))?;
        let mut host = Socket::route()?;
        if let Some(bridge) = links::find(&mut host, &self.bridge)?.filter(|link| link.is_bridge) {
            for link in links::all(&mut host)? {
                if link.is_veth && link.master == Some(bridge.index) && is_veth_name(&link.name) {
                    links::delete(&mut host, &link.name)?;
                }
            }
            links::delete(&mut host, &self.bridge)?;
        }
        std::fs::remove_dir_all(&self.addresses_dir).or_else(|source| match source.kind() {
            io::ErrorKind::NotFound => Ok(()),
            _ => Err(IpamError::Record { call: "delete", path: self.addresses_dir.clone(), source }.into()),
        })
    }

    /// Uses other subnets from now on, unless the bridge is in use: then false.
    pub(super) fn set_subnets(&self, subnets: &[IpNet]) -> bool {
        let mut state = self.lock();
        if state.subnets == subnets {
            return true;
        }
        if state.ready.is_some() || state.ipam.as_ref().is_some_and(|ipam| !ipam.pods().is_empty()) {
            return false;
        }
        state.subnets = subnets.to_vec();
        state.ipam = None;
        true
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change of the state is complete before anything can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ipam<'s>(&self, state: &'s mut State) -> Result<&'s mut Ipam, BridgeError> {
        let State { ipam, subnets, .. } = state;
        if ipam.is_none() {
            *ipam = Some(Ipam::load(self.addresses_dir.clone(), subnets)?);
        }
        Ok(ipam.as_mut().expect("it was just loaded"))
    }

    /// The bridge with its addresses, table and forwarding. Once it is there this costs nothing.
    fn ensure_bridge(&self, state: &mut State) -> Result<Ready, BridgeError> {
        if let Some(ready) = state.ready {
            return Ok(ready);
        }
        let mut host = Socket::route()?;
        let name = &self.bridge;
        let existing = links::find(&mut host, name)?;
        if existing.as_ref().is_some_and(|link| !link.is_bridge) {
            return Err(BridgeError::NotABridge(name.clone()));
        }
        if !links::ipv6_is_on() && state.subnets.iter().any(|subnet| matches!(subnet, IpNet::V4(_))) {
            state.subnets.retain(|subnet| matches!(subnet, IpNet::V4(_)));
            state.ipam = None;
        }
        let index = existing.as_ref().map(|link| link.index);
        for subnet in &state.subnets {
            if let Some((route, through)) = links::route_within(&mut host, subnet, index)? {
                let interface = links::all(&mut host)?.into_iter().find(|link| link.index == through);
                let interface = interface.map_or_else(|| format!("interface {through}"), |link| link.name);
                return Err(BridgeError::SubnetInUse {
                    subnet: *subnet,
                    bridge: name.clone(),
                    route,
                    interface,
                });
            }
        }
        let addresses: Vec<(IpAddr, IpNet)> =
            state.subnets.iter().map(|net| (ipam::gateway(net), *net)).collect();
        let ready = match existing {
            Some(link) => Ready { index: link.index, mtu: self.mtu.unwrap_or(link.mtu) },
            None => {
                let mtu = match self.mtu {
                    Some(mtu) => mtu,
                    None => links::uplink_mtu(&mut host)?.unwrap_or(MTU_DEFAULT),
                };
                links::make_bridge(&mut host, name, links::mac_of(addresses[0].0), mtu)?;
                let made =
                    links::find(&mut host, name)?.ok_or_else(|| BridgeError::Vanished(name.clone()))?;
                Ready { index: made.index, mtu }
            }
        };
        // The guard chain stands before route_localnet opens what it guards.
        self.replace_table(state)?;
        quieten_ipv6(name, addresses.iter().any(|(ip, _)| ip.is_ipv6()))?;
        links::bring_up(&mut host, name, ready.index, &addresses)?;
        enable_forwarding(name, &addresses)?;
        state.ready = Some(ready);
        Ok(ready)
    }
}

/// What a sweep took back.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Swept {
    pub addresses: usize,
    pub links: usize,
    pub ports: usize,
    pub cni: usize,
}

/// Our side of a pod's link: fits `IFNAMSIZ`, and 44 bits of the id keep pods apart.
fn veth_name(pod: &PodId) -> String {
    format!("veth{}", &pod.as_str()[..11])
}

fn is_veth_name(name: &str) -> bool {
    name.len() == links::NAME_BYTES_MAX
        && name.strip_prefix("veth").is_some_and(|rest| rest.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// No addresses from router advertisements (CVE-2020-10749), no duplicate detection for addresses we gave out
/// ourselves; no IPv6 at all where the pod has no IPv6 address (CVE-2024-32473).
fn quieten_ipv6(interface: &str, has_v6: bool) -> Result<(), BridgeError> {
    if !links::ipv6_is_on() {
        return Ok(());
    }
    let wanted: &[(&str, &str)] = match has_v6 {
        false => &[("disable_ipv6", "1")],
        true => &[("accept_ra", "0"), ("accept_dad", "0"), ("disable_ipv6", "0")],
    };
    // Opened once: each name on the way exists in every pod's network, and the kernel goes through all of those that it
    // remembers to find this one's (`proc_sys_compare`).
    let path = PathBuf::from(format!("/proc/sys/net/ipv6/conf/{interface}"));
    let failed = |key: &str, value| {
        let path = path.join(key);
        move |source: io::Error| BridgeError::Sysctl { path, value, source }
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::open(&path, flags, Mode::empty())
        .map_err(|errno| failed("", wanted[0].1)(errno.into()))?;
    for &(key, value) in wanted {
        let open = |access| rustix::fs::openat(&directory, key, access | OFlags::CLOEXEC, Mode::empty());
        let there = || io::read_to_string(File::from(open(OFlags::RDONLY)?));
        if there().is_ok_and(|text| text.trim_end() == value) {
            continue;
        }
        let written = open(OFlags::WRONLY)
            .map_err(io::Error::from)
            .and_then(|file| File::from(file).write_all(value.as_bytes()));
        written.map_err(failed(key, value))?;
    }
    Ok(())
}

/// The host port itself works either way.
fn log_unforgotten(forgotten: Result<(), NetlinkError>) {
    if let Err(err) = forgotten {
        tracing::debug!("UDP flows of the past go on until they time out: {err}");
    }
}

fn enable_forwarding(bridge: &str, addresses: &[(IpAddr, IpNet)]) -> Result<(), BridgeError> {
    if addresses.iter().any(|(ip, _)| ip.is_ipv4()) {
        write_sysctl("/proc/sys/net/ipv4/ip_forward".into(), "1")?;
        // So that 127.0.0.1:PORT of the host leads to a pod; see the guard chain.
        write_sysctl(format!("/proc/sys/net/ipv4/conf/{bridge}/route_localnet").into(), "1")?;
    }
    if addresses.iter().any(|(ip, _)| ip.is_ipv6()) {
        let forwarding = PathBuf::from("/proc/sys/net/ipv6/conf/all/forwarding");
        if sysctl_is(&forwarding, "1") {
            return Ok(());
        }
        // A host that forwards ignores router advertisements unless told 2 (ip-sysctl.rst), and would lose its own
        // default route.
        let interfaces = std::fs::read_dir("/proc/sys/net/ipv6/conf").into_iter().flatten().flatten();
        for interface in interfaces {
            let accept = interface.path().join("accept_ra");
            if interface.file_name() != "all" && sysctl_is(&accept, "1") {
                write_sysctl(accept, "2")?;
            }
        }
        write_sysctl(forwarding, "1")?;
    }
    Ok(())
}

fn sysctl_is(path: &Path, value: &str) -> bool {
    std::fs::read_to_string(path).is_ok_and(|text| text.trim_end() == value)
}

/// Writes unless the value is there already, so that a read-only /proc/sys with good values will do.
fn write_sysctl(path: PathBuf, value: &'static str) -> Result<(), BridgeError> {
    if sysctl_is(&path, value) {
        return Ok(());
    }
    std::fs::write(&path, value).map_err(|source| BridgeError::Sysctl { path, value, source })
}
