//! Forgets tracked UDP flows when host ports change.
//!
//! Connection tracking decides at a flow's first packet whether a host port applies. A UDP client that goes on sending
//! from one port would reach the old pod, or nobody, for up to two minutes after the port moved. TCP needs nothing:
//! its connections end with the pod.

use std::borrow::Cow;
use std::net::IpAddr;

use super::netlink::{NetlinkError, Socket};
use super::nft::{Attributes, write_message};
use super::ports::{HostPort, PortProtocol};

// Numbers of linux/netfilter/nfnetlink_conntrack.h, and of net/netfilter/nf_internals.h for the filter's flags.
const DELETE: u16 = 1 << 8 | 2;
const REQUEST_WITH_ACK: u16 = 1 | 4;
const ORIGINAL: u16 = 1;
const REPLY: u16 = 2;
const FILTER: u16 = 25;
const FLAG_SOURCE: u32 = 1 << 0;
const FLAG_PROTOCOL: u32 = 1 << 3;
const FLAG_DESTINATION_PORT: u32 = 1 << 5;
const FAMILY_V4: u8 = 2;
const FAMILY_V6: u8 = 10;
/// Makes the kernel heed the family of a delete (`ctnetlink_del_conntrack`).
const VERSION: u8 = 1;

/// When host ports lead to a pod from now on: flows to the ports that were tracked before.
///
/// Kernels before 6.9 have no such filter and refuse it; the flows then end by their timeout.
pub(super) fn forget_flows_to_ports(socket: &mut Socket, ports: &[HostPort]) -> Result<(), NetlinkError> {
    delete(socket, ports, |port, a| {
        a.nested(ORIGINAL, |a| {
            a.nested(2, |a| {
                a.bytes(1, &[port.protocol.number()]);
                a.bytes(3, &port.port.to_be_bytes());
            });
        });
        a.nested(FILTER, |a| a.bytes(1, &(FLAG_PROTOCOL | FLAG_DESTINATION_PORT).to_ne_bytes()));
    })
}

/// When they no longer do: flows that are answered from the pod's address.
pub(super) fn forget_flows_of_pod(socket: &mut Socket, ports: &[HostPort]) -> Result<(), NetlinkError> {
    delete(socket, ports, |port, a| {
        a.nested(REPLY, |a| {
            a.nested(1, |a| match port.target.ip() {
                IpAddr::V4(ip) => a.bytes(1, &ip.octets()),
                IpAddr::V6(ip) => a.bytes(3, &ip.octets()),
            });
            a.nested(2, |a| a.bytes(1, &[port.protocol.number()]));
        });
        a.nested(FILTER, |a| a.bytes(2, &(FLAG_SOURCE | FLAG_PROTOCOL).to_ne_bytes()));
    })
}

fn delete(
    socket: &mut Socket,
    ports: &[HostPort],
    fill: impl Fn(&HostPort, &mut Attributes<'_>),
) -> Result<(), NetlinkError> {
    for port in ports.iter().filter(|port| port.protocol == PortProtocol::Udp) {
        let sequence = socket.next_sequence();
        let family = if port.target.is_ipv6() { FAMILY_V6 } else { FAMILY_V4 };
        let mut bytes = Vec::with_capacity(128);
        write_message(&mut bytes, DELETE, REQUEST_WITH_ACK, sequence, [family, VERSION], 0, |a| {
            fill(port, a)
        });
        let what = format!("forget tracked flows of host port udp/{}", port.port);
        socket.transact(&bytes, &[(sequence, Cow::Owned(what))])?;
    }
    Ok(())
}
