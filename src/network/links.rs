//! Links, addresses, routes and queueing disciplines: what the built-in bridge asks of rtnetlink(7).
//!
//! Each function is one exchange with the kernel on a socket the caller opened in the right namespace. Who calls them
//! in which order is `bridge.rs`.

use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use ipnet::IpNet;
use netlink_packet_core::{DefaultNla, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoBridgePort, InfoData, InfoKind, InfoPortData,
    InfoPortKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcMessage, TcOption};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rustix::io::Errno;

use super::netlink::{NetlinkError, Request, Socket};

/// The pod's side of its link, as the kubelet and every CNI user expect it.
pub(super) const POD_INTERFACE: &str = "eth0";
/// The longest name of an interface: `IFNAMSIZ` less the final zero.
pub(super) const NAME_BYTES_MAX: usize = 15;

/// What is known of an existing link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub index: u32,
    pub name: String,
    pub mtu: u32,
    pub is_bridge: bool,
    pub is_veth: bool,
    /// The bridge it is a port of.
    pub master: Option<u32>,
}

impl Found {
    fn of(message: LinkMessage) -> Self {
        let mut found = Self {
            index: message.header.index,
            name: String::new(),
            mtu: 0,
            is_bridge: false,
            is_veth: false,
            master: None,
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => found.name = name,
                LinkAttribute::Mtu(mtu) => found.mtu = mtu,
                LinkAttribute::Controller(index) => found.master = Some(index),
                LinkAttribute::LinkInfo(infos) => {
                    found.is_bridge |= infos.contains(&LinkInfo::Kind(InfoKind::Bridge));
                    found.is_veth |= infos.contains(&LinkInfo::Kind(InfoKind::Veth));
                }
                _ => {}
            }
        }
        found
    }
}

/// The link called `name`.
pub(super) fn find(socket: &mut Socket, name: &str) -> Result<Option<Found>, NetlinkError> {
    let message = RouteNetlinkMessage::GetLink(named(name));
    match socket.get(&format!("look up interface {name}"), message) {
        Ok(RouteNetlinkMessage::NewLink(link)) => Ok(Some(Found::of(link))),
        Ok(_) => Ok(None),
        Err(err) if err.errno() == Some(Errno::NODEV) => Ok(None),
        Err(err) => Err(err),
    }
}

/// Every link of the namespace.
pub(super) fn all(socket: &mut Socket) -> Result<Vec<Found>, NetlinkError> {
    let answers = socket.dump("list interfaces", RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
    let found = answers.into_iter().filter_map(|answer| match answer {
        RouteNetlinkMessage::NewLink(link) => Some(Found::of(link)),
        _ => None,
    });
    Ok(found.collect())
}

/// Makes a bridge, down. Its hardware address is fixed, or it would change with the ports that come and go.
pub(super) fn make_bridge(
    socket: &mut Socket,
    name: &str,
    mac: [u8; 6],
    mtu: u32,
) -> Result<(), NetlinkError> {
    let mut bridge = named(name);
    bridge.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]));
    bridge.attributes.push(LinkAttribute::Address(mac.to_vec()));
    bridge.attributes.push(LinkAttribute::Mtu(mtu));
    let message = RouteNetlinkMessage::NewLink(bridge);
    socket.execute(vec![Request::new(format!("make bridge {name}"), NLM_F_CREATE | NLM_F_EXCL, message)])
}

/// Gives the link its addresses (usable at once, without duplicate detection) and brings it up.
pub(super) fn bring_up(
    socket: &mut Socket,
    name: &str,
    index: u32,
    addresses: &[(IpAddr, IpNet)],
) -> Result<(), NetlinkError> {
    let mut requests = vec![up(name, index)];
    requests.extend(addresses.iter().map(|(ip, subnet)| address(name, index, *ip, subnet)));
    socket.execute(requests)
}

/// What a pair of links is made from.
#[derive(Debug)]
pub(super) struct Veth<'a> {
    pub host_name: &'a str,
    pub bridge: u32,
    pub mtu: u32,
    /// Of the pod's side.
    pub mac: [u8; 6],
    pub netns: BorrowedFd<'a>,
    /// Whether the bridge may send a frame back through the port it came from. Only pods with host ports get it: where
    /// `br_netfilter` is on, their own host port leads back to them. Others would see their own multicasts.
    pub hairpin: bool,
}

/// Makes both sides, down: ours a port of the bridge, the other inside the pod's namespace.
pub(super) fn make_veth(socket: &mut Socket, veth: &Veth<'_>) -> Result<(), NetlinkError> {
    let mut peer = named(POD_INTERFACE);
    peer.attributes.push(LinkAttribute::NetNsFd(veth.netns.as_raw_fd()));
    peer.attributes.push(LinkAttribute::Address(veth.mac.to_vec()));
    peer.attributes.push(LinkAttribute::Mtu(veth.mtu));
    let mut host = named(veth.host_name);
    host.attributes.push(LinkAttribute::Mtu(veth.mtu));
    host.attributes.push(LinkAttribute::Controller(veth.bridge));
    host.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Veth),
        LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
    ]));
    // A port of a bridge needs no address of its own; without this the kernel makes a link-local one.
    let mut port = named(veth.host_name);
    port.attributes.push(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![
        AfSpecInet6::AddrGenMode(In6AddrGenMode::None),
    ])]));
    if veth.hairpin {
        port.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::PortKind(InfoPortKind::Bridge),
            LinkInfo::PortData(InfoPortData::BridgePort(vec![InfoBridgePort::HairpinMode(true)])),
        ]));
    }
    let what = format!("make {POD_INTERFACE} of the pod and its bridge port {}", veth.host_name);
    socket.execute(vec![Request::new(
        what,
        NLM_F_CREATE | NLM_F_EXCL,
        RouteNetlinkMessage::NewLink(host),
    )])?;
    if !ipv6_is_on() {
        port.attributes.retain(|attribute| !matches!(attribute, LinkAttribute::AfSpecUnspec(_)));
        if port.attributes.len() == 1 {
            return Ok(());
        }
    }
    let what = format!("set up bridge port {}", veth.host_name);
    socket.execute(vec![Request::new(what, 0, RouteNetlinkMessage::NewLink(port))])
}

/// Whether this kernel speaks IPv6 at all: a decision of its start (`ipv6.disable=1`).
pub(super) fn ipv6_is_on() -> bool {
    static ON: std::sync::LazyLock<bool> =
        std::sync::LazyLock::new(|| std::path::Path::new("/proc/sys/net/ipv6").exists());
    *ON
}

/// Brings a link up by name.
pub(super) fn set_up(socket: &mut Socket, name: &str) -> Result<(), NetlinkError> {
    let mut link = named(name);
    link.header.flags = LinkFlags::Up;
    link.header.change_mask = LinkFlags::Up;
    socket.execute(vec![Request::new(format!("bring {name} up"), 0, RouteNetlinkMessage::NewLink(link))])
}

/// Addresses and default routes of the pod's side, which is up.
pub(super) fn configure_pod(
    socket: &mut Socket,
    index: u32,
    addresses: &[(IpAddr, IpNet)],
) -> Result<(), NetlinkError> {
    let mut requests = Vec::with_capacity(addresses.len() * 2);
    for (ip, subnet) in addresses {
        requests.push(address(POD_INTERFACE, index, *ip, subnet));
        let gateway = super::ipam::gateway(subnet);
        let mut route = RouteMessage::default();
        route.header.address_family = family(gateway);
        route.header.table = RouteHeader::RT_TABLE_MAIN;
        route.header.protocol = RouteProtocol::Boot;
        route.header.scope = RouteScope::Universe;
        route.header.kind = RouteType::Unicast;
        route.attributes.push(RouteAttribute::Gateway(gateway.into()));
        route.attributes.push(RouteAttribute::Oif(index));
        let what = format!("add the pod's default route via {gateway}");
        requests.push(Request::new(what, NLM_F_CREATE | NLM_F_REPLACE, RouteNetlinkMessage::NewRoute(route)));
    }
    socket.execute(requests)
}

/// Deletes a link by name; false when there was none. The other side of a pair goes with it.
pub(super) fn delete(socket: &mut Socket, name: &str) -> Result<bool, NetlinkError> {
    let request =
        Request::new(format!("delete interface {name}"), 0, RouteNetlinkMessage::DelLink(named(name)));
    match socket.execute(vec![request]) {
        Ok(()) => Ok(true),
        Err(err) if err.errno() == Some(Errno::NODEV) => Ok(false),
        Err(err) => Err(err),
    }
}

/// The largest packet of the interface that leads out: that of the default route with the lowest metric, IPv4 first.
pub(super) fn uplink_mtu(socket: &mut Socket) -> Result<Option<u32>, NetlinkError> {
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let leads_out = |route: &RouteMessage| route.header.destination_prefix_length == 0;
        let candidates = routes(socket, family)?.into_iter().filter(leads_out).filter_map(|route| {
            let metric = route.attributes.iter().find_map(|a| match a {
                RouteAttribute::Priority(metric) => Some(*metric),
                _ => None,
            });
            Some((metric.unwrap_or(0), out_interface(&route)?))
        });
        if let Some((_, index)) = candidates.min() {
            return Ok(all(socket)?.into_iter().find(|link| link.index == index).map(|link| link.mtu));
        }
    }
    Ok(None)
}

/// A route of the main table into `subnet` or a part of it, through another interface than `bridge`: destination and
/// interface index.
pub(super) fn route_within(
    socket: &mut Socket,
    subnet: &IpNet,
    bridge: Option<u32>,
) -> Result<Option<(IpNet, u32)>, NetlinkError> {
    let family = family(subnet.addr());
    for route in routes(socket, family)? {
        let Some(index) = out_interface(&route).filter(|index| Some(*index) != bridge) else { continue };
        let destination = route.attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(ip)) => Some(IpAddr::V4(*ip)),
            RouteAttribute::Destination(RouteAddress::Inet6(ip)) => Some(IpAddr::V6(*ip)),
            _ => None,
        });
        let Some(destination) = destination else { continue };
        let Ok(destination) = IpNet::new(destination, route.header.destination_prefix_length) else {
            continue;
        };
        if subnet.contains(&destination) {
            return Ok(Some((destination, index)));
        }
    }
    Ok(None)
}

/// Limits what the link sends to `bits_per_second` by a token bucket (tc-tbf(8)).
pub(super) fn limit_rate(socket: &mut Socket, index: u32, bits_per_second: u64) -> Result<(), NetlinkError> {
    // linux/pkt_sched.h: TCA_TBF_PARMS, TCA_TBF_RATE64, TCA_TBF_BURST; TC_LINKLAYER_ETHERNET.
    const PARAMETERS: u16 = 1;
    const RATE64: u16 = 4;
    const BURST: u16 = 6;
    const ETHERNET: u8 = 1;
    let rate = (bits_per_second / 8).max(1);
    let low = u32::try_from(rate).unwrap_or(u32::MAX);
    // 20 ms worth of bytes covers two ticks of the slowest kernel clock (100 Hz); 64 KiB is one segment as offloads make them.
    let burst = u32::try_from(rate / 50).unwrap_or(u32::MAX).clamp(64 << 10, 1 << 30);
    // What may wait: the burst and 50 ms more.
    let limit = u32::try_from(u64::from(burst) + rate / 20).unwrap_or(u32::MAX);
    let mut parameters = vec![0, ETHERNET, 0, 0, 0, 0, 0, 0];
    parameters.extend(low.to_ne_bytes());
    parameters.extend([0; 12]);
    parameters.extend(limit.to_ne_bytes());
    parameters.extend([0; 8]);
    let option = |kind, bytes: Vec<u8>| TcOption::Other(DefaultNla::new(kind, bytes));
    let mut options = vec![option(PARAMETERS, parameters), option(BURST, burst.to_ne_bytes().to_vec())];
    if rate > u64::from(u32::MAX) {
        options.push(option(RATE64, rate.to_ne_bytes().to_vec()));
    }
    let mut message = TcMessage::with_index(i32::try_from(index).unwrap_or(i32::MAX));
    message.header.parent = TcHandle::ROOT;
    message.attributes = vec![TcAttribute::Kind("tbf".to_owned()), TcAttribute::Options(options)];
    let what = format!("limit interface {index} to {bits_per_second} bits per second");
    let message = RouteNetlinkMessage::NewQueueDiscipline(message);
    socket.execute(vec![Request::new(what, NLM_F_CREATE | NLM_F_REPLACE, message)])
}

/// A hardware address that follows from the IP address: locally administered, and the same again after a restart.
pub(super) fn mac_of(ip: IpAddr) -> [u8; 6] {
    let [a, b, c, d] = match ip {
        IpAddr::V4(v4) => v4.octets(),
        IpAddr::V6(v6) => {
            let octets = v6.octets();
            [octets[12], octets[13], octets[14], octets[15]]
        }
    };
    [0x0a, 0x62, a, b, c, d]
}

fn named(name: &str) -> LinkMessage {
    let mut link = LinkMessage::default();
    link.attributes.push(LinkAttribute::IfName(name.to_owned()));
    link
}

fn up(name: &str, index: u32) -> Request {
    let mut link = LinkMessage::default();
    link.header.index = index;
    link.header.flags = LinkFlags::Up;
    link.header.change_mask = LinkFlags::Up;
    Request::new(format!("bring {name} up"), 0, RouteNetlinkMessage::SetLink(link))
}

fn address(name: &str, index: u32, ip: IpAddr, subnet: &IpNet) -> Request {
    let mut message = AddressMessage::default();
    message.header.family = family(ip);
    message.header.prefix_len = subnet.prefix_len();
    message.header.index = index;
    message.attributes.push(AddressAttribute::Local(ip));
    message.attributes.push(AddressAttribute::Address(ip));
    if let (IpAddr::V4(_), IpAddr::V4(broadcast)) = (ip, subnet.broadcast()) {
        message.attributes.push(AddressAttribute::Broadcast(broadcast));
    }
    if ip.is_ipv6() {
        message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
    }
    let what = format!("give {name} address {ip}/{}", subnet.prefix_len());
    Request::new(what, NLM_F_CREATE | NLM_F_REPLACE, RouteNetlinkMessage::NewAddress(message))
}

fn routes(socket: &mut Socket, family: AddressFamily) -> Result<Vec<RouteMessage>, NetlinkError> {
    let mut request = RouteMessage::default();
    request.header.address_family = family;
    let answers = socket.dump("list routes", RouteNetlinkMessage::GetRoute(request))?;
    let routes = answers.into_iter().filter_map(|answer| match answer {
        RouteNetlinkMessage::NewRoute(route)
            if route.header.table == RouteHeader::RT_TABLE_MAIN
                && route.header.kind == RouteType::Unicast =>
        {
            Some(route)
        }
        _ => None,
    });
    Ok(routes.collect())
}

fn out_interface(route: &RouteMessage) -> Option<u32> {
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    })
}

fn family(ip: IpAddr) -> AddressFamily {
    match ip {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}
