//! The nftables of the built-in bridge, written to the kernel as nfnetlink messages by a small encoder of ours.
//!
//! Crates were looked at: `rustables` has no typed data maps (the host ports need `dnat to … map`), and `nft -f` is a
//! helper process of several milliseconds. The few expressions used here are a page of code.
//!
//! ```text
//! table inet brig-<bridge>
//!   map  ports4     l4proto . port           → address . port     host ports on every IPv4 address
//!   map  ports4_at  l4proto . address . port → address . port     host ports on one address
//!   map  ports6, ports6_at                                        the same for IPv6
//!   chain guard        prerouting, raw: no packet of a pod may have a 127.0.0.0/8 address, since route_localnet
//!                      lets them in (Kubernetes CVE-2020-8558)
//!   chain prerouting   dnat for packets to an address of this host (CVE-2025-67499: never for others)
//!   chain output       the same for connections the host makes
//!   chain forward      accepts the subnets' traffic
//!   chain postrouting  masquerade: what leaves the subnet; what a host port sends back to its own subnet; localhost
//! ```
//!
//! An accept in our table does not overrule a drop in another one (firewalld, ufw, Docker): their administrators must
//! let the bridge through there. `[::1]:port` cannot work: the kernel drops ::1 on every interface but lo.
//! Rules never change after the table is made; pods only add and delete map elements, so the tables of several daemons
//! and of other software never meet.

use std::borrow::Cow;
use std::net::IpAddr;

use ipnet::IpNet;

use super::netlink::{NetlinkError, Socket};
use super::ports::HostPort;

// Numbers of linux/netfilter/nf_tables.h, nfnetlink.h and netlink.h.
const SUBSYSTEM: u16 = 10 << 8;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NEW_TABLE: u16 = SUBSYSTEM;
const GET_TABLE: u16 = SUBSYSTEM | 1;
const DELETE_TABLE: u16 = SUBSYSTEM | 2;
const NEW_CHAIN: u16 = SUBSYSTEM | 3;
const NEW_RULE: u16 = SUBSYSTEM | 6;
const NEW_SET: u16 = SUBSYSTEM | 9;
const NEW_ELEMENTS: u16 = SUBSYSTEM | 12;
const DELETE_ELEMENTS: u16 = SUBSYSTEM | 14;
const REQUEST: u16 = 1;
const ACK: u16 = 4;
const CREATE: u16 = 0x400;
const APPEND: u16 = 0x800;
const NESTED: u16 = 0x8000;
const FAMILY_INET: u8 = 1;
const FAMILY_V4: u8 = 2;
const FAMILY_V6: u8 = 10;
/// The four-byte registers (`NFT_REG32_00` and on); concatenations lie in neighbours.
const REGISTER: u32 = 8;
const VERDICT_REGISTER: u32 = 0;
const META_IIFNAME: u32 = 6;
const META_OIFNAME: u32 = 7;
const META_NFPROTO: u32 = 15;
const META_L4PROTO: u32 = 16;
const CT_STATUS: u32 = 2;
/// `IPS_DST_NAT`: the connection was led to a pod by a host port.
const STATUS_DNAT: u32 = 1 << 5;
const EQUAL: u32 = 0;
const NOT_EQUAL: u32 = 1;
const ACCEPT: u32 = 1;
const DROP: u32 = 0;
const PREROUTING: u32 = 0;
const FORWARD: u32 = 2;
const OUTPUT: u32 = 3;
const POSTROUTING: u32 = 4;
const SET_IS_MAP: u32 = 8;
/// Types of keys as nft(8) prints them: six bits per field of a concatenation.
const TYPE_V4: u32 = 7;
const TYPE_V6: u32 = 8;
const TYPE_PROTOCOL: u32 = 12;
const TYPE_PORT: u32 = 13;

/// Map elements per message: an attribute's length has 16 bits, an element takes at most 80 bytes.
const ELEMENTS_PER_MESSAGE: usize = 400;

/// Whose table, and for what.
#[derive(Debug, Clone)]
pub(super) struct Table<'a> {
    pub bridge: &'a str,
    pub subnets: &'a [IpNet],
}

impl Table<'_> {
    fn name(&self) -> String {
        format!("brig-{}", self.bridge)
    }

    /// Makes the table anew with exactly these host ports, in one transaction: no packet sees a half.
    pub(super) fn replace(&self, socket: &mut Socket, ports: &[HostPort]) -> Result<(), NetlinkError> {
        let mut batch = Batch::new(socket, self.name());
        batch.table(NEW_TABLE, "make");
        batch.table(DELETE_TABLE, "delete");
        batch.table(NEW_TABLE, "make");
        for map in MAPS {
            batch.map(map);
        }
        batch.chain("guard", "filter", PREROUTING, -300);
        batch.chain("prerouting", "nat", PREROUTING, -100);
        batch.chain("output", "nat", OUTPUT, -100);
        batch.chain("forward", "filter", FORWARD, 0);
        batch.chain("postrouting", "nat", POSTROUTING, 100);
        self.rules(&mut batch);
        batch.elements(NEW_ELEMENTS, ports);
        batch.commit()
    }

    fn rules(&self, batch: &mut Batch<'_>) {
        let loopback: IpNet = IpNet::V4(ipnet::Ipv4Net::new_assert(std::net::Ipv4Addr::new(127, 0, 0, 0), 8));
        for side in [Side::Source, Side::Destination] {
            batch.rule("guard", |r| {
                r.interface(META_IIFNAME, EQUAL, self.bridge).within(side, EQUAL, &loopback).verdict(DROP);
            });
        }
        for chain in ["prerouting", "output"] {
            for map in MAPS {
                batch.rule(chain, |r| r.dnat(map));
            }
        }
        for subnet in self.subnets {
            batch.rule("forward", |r| {
                r.interface(META_IIFNAME, EQUAL, self.bridge)
                    .within(Side::Source, EQUAL, subnet)
                    .verdict(ACCEPT);
            });
            batch.rule("forward", |r| {
                r.interface(META_OIFNAME, EQUAL, self.bridge)
                    .within(Side::Destination, EQUAL, subnet)
                    .verdict(ACCEPT);
            });
            batch.rule("postrouting", |r| {
                r.within(Side::Source, EQUAL, subnet)
                    .within(Side::Destination, NOT_EQUAL, subnet)
                    .within(Side::Destination, NOT_EQUAL, &multicast(subnet))
                    .masquerade();
            });
            // Without it, the reply would go from pod to pod over the bridge and miss the way back through the map.
            batch.rule("postrouting", |r| {
                r.interface(META_OIFNAME, EQUAL, self.bridge)
                    .within(Side::Source, EQUAL, subnet)
                    .led_by_a_host_port()
                    .masquerade();
            });
        }
        batch.rule("postrouting", |r| {
            r.interface(META_OIFNAME, EQUAL, self.bridge).within(Side::Source, EQUAL, &loopback).masquerade();
        });
    }

    /// Adds host ports. `ENOENT` when the table is gone.
    pub(super) fn add(&self, socket: &mut Socket, ports: &[HostPort]) -> Result<(), NetlinkError> {
        let mut batch = Batch::new(socket, self.name());
        batch.elements(NEW_ELEMENTS, ports);
        batch.commit()
    }

    /// Deletes host ports. `ENOENT` when one of them, or the table, is gone.
    pub(super) fn remove(&self, socket: &mut Socket, ports: &[HostPort]) -> Result<(), NetlinkError> {
        let mut batch = Batch::new(socket, self.name());
        batch.elements(DELETE_ELEMENTS, ports);
        batch.commit()
    }

    /// Whether the table is there: not after somebody's `nft flush ruleset`.
    pub(super) fn exists(&self, socket: &mut Socket) -> Result<bool, NetlinkError> {
        let (name, sequence, mut bytes) = (self.name(), socket.next_sequence(), Vec::with_capacity(64));
        write_message(&mut bytes, GET_TABLE, REQUEST | ACK, sequence, [FAMILY_INET, 0], 0, |a| {
            a.text(1, &name)
        });
        match socket.transact(&bytes, &[(sequence, format!("look for nftables table inet {name}").into())]) {
            Err(err) if err.errno() == Some(rustix::io::Errno::NOENT) => Ok(false),
            other => other.map(|()| true),
        }
    }

    /// Deletes the table; none is fine.
    pub(super) fn delete(&self, socket: &mut Socket) -> Result<(), NetlinkError> {
        let mut batch = Batch::new(socket, self.name());
        batch.table(DELETE_TABLE, "delete");
        match batch.commit() {
            Err(err) if err.errno() == Some(rustix::io::Errno::NOENT) => Ok(()),
            other => other,
        }
    }
}

/// One of the four maps of host ports. Those on one address come first: they are the exact match.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Map {
    name: &'static str,
    v6: bool,
    one_address: bool,
}

const MAPS: [Map; 4] = [
    Map { name: "ports4_at", v6: false, one_address: true },
    Map { name: "ports4", v6: false, one_address: false },
    Map { name: "ports6_at", v6: true, one_address: true },
    Map { name: "ports6", v6: true, one_address: false },
];

impl Map {
    fn address_bytes(self) -> u32 {
        if self.v6 { 16 } else { 4 }
    }

    fn key_bytes(self) -> u32 {
        8 + if self.one_address { self.address_bytes() } else { 0 }
    }

    fn holds(self, port: &HostPort) -> bool {
        self.v6 == port.target.is_ipv6() && self.one_address == port.host.is_some()
    }
}

#[derive(Debug, Clone, Copy)]
enum Side {
    Source,
    Destination,
}

fn multicast(like: &IpNet) -> IpNet {
    match like {
        IpNet::V4(_) => "224.0.0.0/4".parse().expect("a constant"),
        IpNet::V6(_) => "ff00::/8".parse().expect("a constant"),
    }
}

/// Messages that take effect together or not at all.
struct Batch<'a> {
    socket: &'a mut Socket,
    table: String,
    bytes: Vec<u8>,
    names: Vec<(u32, Cow<'static, str>)>,
}

impl<'a> Batch<'a> {
    fn new(socket: &'a mut Socket, table: String) -> Self {
        let mut batch = Self { socket, table, bytes: Vec::with_capacity(4096), names: Vec::new() };
        let sequence = batch.socket.next_sequence();
        batch.message(BATCH_BEGIN, 0, 0, sequence, |_| {});
        batch
    }

    fn commit(mut self) -> Result<(), NetlinkError> {
        if self.names.is_empty() {
            return Ok(());
        }
        let sequence = self.socket.next_sequence();
        self.message(BATCH_END, 0, 0, sequence, |_| {});
        self.socket.transact(&self.bytes, &self.names)
    }

    fn message(
        &mut self,
        kind: u16,
        family: u8,
        flags: u16,
        sequence: u32,
        fill: impl FnOnce(&mut Attributes<'_>),
    ) {
        // The begin and the end of a batch name the subsystem here.
        let resource = if family == 0 { SUBSYSTEM >> 8 } else { 0 };
        write_message(&mut self.bytes, kind, REQUEST | flags, sequence, [family, 0], resource, fill);
    }

    fn step(&mut self, what: String, kind: u16, flags: u16, fill: impl FnOnce(&mut Attributes<'_>)) {
        let sequence = self.socket.next_sequence();
        self.names.push((sequence, Cow::Owned(what)));
        self.message(kind, FAMILY_INET, ACK | flags, sequence, fill);
    }

    fn table(&mut self, kind: u16, verb: &str) {
        let table = self.table.clone();
        self.step(format!("{verb} nftables table inet {table}"), kind, CREATE, |a| a.text(1, &table));
    }

    fn chain(&mut self, name: &str, kind: &str, hook: u32, priority: i32) {
        let table = self.table.clone();
        self.step(format!("make nftables chain {table} {name}"), NEW_CHAIN, CREATE, |a| {
            a.text(1, &table);
            a.text(3, name);
            a.nested(4, |a| {
                a.number(1, hook);
                a.bytes(2, &priority.to_be_bytes());
            });
            a.text(7, kind);
        });
    }

    fn map(&mut self, map: Map) {
        let table = self.table.clone();
        let id = u32::try_from(self.names.len()).expect("a batch has few messages");
        let address = if map.v6 { TYPE_V6 } else { TYPE_V4 };
        let key = if map.one_address {
            (TYPE_PROTOCOL << 6 | address) << 6 | TYPE_PORT
        } else {
            TYPE_PROTOCOL << 6 | TYPE_PORT
        };
        self.step(format!("make nftables map {table} {}", map.name), NEW_SET, CREATE, |a| {
            a.text(1, &table);
            a.text(2, map.name);
            a.number(3, SET_IS_MAP);
            a.number(4, key);
            a.number(5, map.key_bytes());
            a.number(6, address << 6 | TYPE_PORT);
            a.number(7, map.address_bytes() + 4);
            a.number(10, id);
        });
    }

    fn rule(&mut self, chain: &str, fill: impl FnOnce(&mut Expressions<'_, '_>)) {
        let table = self.table.clone();
        self.step(format!("add a rule to nftables chain {table} {chain}"), NEW_RULE, CREATE | APPEND, |a| {
            a.text(1, &table);
            a.text(2, chain);
            a.nested(4, |a| fill(&mut Expressions(a)));
        });
    }

    fn elements(&mut self, kind: u16, ports: &[HostPort]) {
        let table = self.table.clone();
        let verb = if kind == NEW_ELEMENTS { "add host ports to" } else { "delete host ports from" };
        for map in MAPS {
            let mine: Vec<&HostPort> = ports.iter().filter(|port| map.holds(port)).collect();
            for some in mine.chunks(ELEMENTS_PER_MESSAGE) {
                self.step(format!("{verb} nftables map {table} {}", map.name), kind, CREATE, |a| {
                    a.text(1, &table);
                    a.text(2, map.name);
                    a.nested(3, |a| {
                        for port in some {
                            a.nested(1, |a| {
                                a.nested(1, |a| a.bytes(1, &key(port)));
                                if kind == NEW_ELEMENTS {
                                    a.nested(2, |a| a.bytes(1, &target(port)));
                                }
                            });
                        }
                    });
                });
            }
        }
    }
}

/// The key of a host port in its map: each field padded to four bytes, as registers are.
fn key(port: &HostPort) -> Vec<u8> {
    let mut key = vec![port.protocol.number(), 0, 0, 0];
    if let Some(host) = port.host {
        extend_address(&mut key, host);
    }
    key.extend(port.port.to_be_bytes());
    key.extend([0, 0]);
    key
}

fn target(port: &HostPort) -> Vec<u8> {
    let mut data = Vec::with_capacity(20);
    extend_address(&mut data, port.target.ip());
    data.extend(port.target.port().to_be_bytes());
    data.extend([0, 0]);
    data
}

fn extend_address(bytes: &mut Vec<u8>, address: IpAddr) {
    match address {
        IpAddr::V4(v4) => bytes.extend(v4.octets()),
        IpAddr::V6(v6) => bytes.extend(v6.octets()),
    }
}

/// Appends one message of nfnetlink: header, `struct nfgenmsg` (family and version, resource), attributes.
pub(super) fn write_message(
    bytes: &mut Vec<u8>,
    kind: u16,
    flags: u16,
    sequence: u32,
    family_and_version: [u8; 2],
    resource: u16,
    fill: impl FnOnce(&mut Attributes<'_>),
) {
    let start = bytes.len();
    bytes.extend([0; 4]);
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend([0; 4]);
    bytes.extend(family_and_version);
    bytes.extend(resource.to_be_bytes());
    fill(&mut Attributes(bytes));
    let length = u32::try_from(bytes.len() - start).expect("a message is far below 4 GiB");
    bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
}

/// Writes netlink attributes.
pub(super) struct Attributes<'a>(&'a mut Vec<u8>);

impl Attributes<'_> {
    pub(super) fn bytes(&mut self, kind: u16, value: &[u8]) {
        let length =
            u16::try_from(4 + value.len()).expect("values are short and elements are sent in chunks");
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    fn text(&mut self, kind: u16, value: &str) {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes);
    }

    pub(super) fn number(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    pub(super) fn nested(&mut self, kind: u16, fill: impl FnOnce(&mut Attributes<'_>)) {
        let start = self.0.len();
        self.0.extend([0; 2]);
        self.0.extend((kind | NESTED).to_ne_bytes());
        fill(&mut Attributes(self.0));
        let length = u16::try_from(self.0.len() - start).expect("elements are sent in chunks");
        self.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
    }
}

/// The expressions of one rule, each a condition or, last, what happens.
struct Expressions<'a, 'b>(&'a mut Attributes<'b>);

impl Expressions<'_, '_> {
    fn expression(&mut self, name: &str, fill: impl FnOnce(&mut Attributes<'_>)) -> &mut Self {
        self.0.nested(1, |a| {
            a.text(1, name);
            a.nested(2, fill);
        });
        self
    }

    fn meta(&mut self, key: u32, register: u32) -> &mut Self {
        self.expression("meta", |a| {
            a.number(1, register);
            a.number(2, key);
        })
    }

    fn compare(&mut self, how: u32, value: &[u8]) -> &mut Self {
        self.expression("cmp", |a| {
            a.number(1, REGISTER);
            a.number(2, how);
            a.nested(3, |a| a.bytes(1, value));
        })
    }

    fn mask(&mut self, mask: &[u8]) -> &mut Self {
        let length = u32::try_from(mask.len()).expect("an address has at most 16 bytes");
        self.expression("bitwise", |a| {
            a.number(1, REGISTER);
            a.number(2, REGISTER);
            a.number(3, length);
            a.nested(4, |a| a.bytes(1, mask));
            a.nested(5, |a| a.bytes(1, &vec![0; mask.len()]));
        })
    }

    fn payload(&mut self, register: u32, base: u32, offset: u32, length: u32) -> &mut Self {
        self.expression("payload", |a| {
            a.number(1, register);
            a.number(2, base);
            a.number(3, offset);
            a.number(4, length);
        })
    }

    fn address(&mut self, register: u32, v6: bool, side: Side) -> &mut Self {
        const NETWORK_HEADER: u32 = 1;
        let (offset, length) = match (v6, side) {
            (false, Side::Source) => (12, 4),
            (false, Side::Destination) => (16, 4),
            (true, Side::Source) => (8, 16),
            (true, Side::Destination) => (24, 16),
        };
        self.payload(register, NETWORK_HEADER, offset, length)
    }

    fn interface(&mut self, key: u32, how: u32, name: &str) -> &mut Self {
        let mut padded = [0; 16];
        padded[..name.len()].copy_from_slice(name.as_bytes());
        self.meta(key, REGISTER).compare(how, &padded)
    }

    fn family(&mut self, v6: bool) -> &mut Self {
        self.meta(META_NFPROTO, REGISTER).compare(EQUAL, &[if v6 { FAMILY_V6 } else { FAMILY_V4 }])
    }

    fn within(&mut self, side: Side, how: u32, net: &IpNet) -> &mut Self {
        let v6 = matches!(net, IpNet::V6(_));
        let (mut mask, mut network) = (Vec::new(), Vec::new());
        extend_address(&mut mask, net.netmask());
        extend_address(&mut network, net.network());
        self.family(v6).address(REGISTER, v6, side).mask(&mask).compare(how, &network)
    }

    fn led_by_a_host_port(&mut self) -> &mut Self {
        self.expression("ct", |a| {
            a.number(1, REGISTER);
            a.number(2, CT_STATUS);
        })
        .mask(&STATUS_DNAT.to_ne_bytes())
        .compare(NOT_EQUAL, &[0; 4])
    }

    fn verdict(&mut self, code: u32) {
        self.expression("immediate", |a| {
            a.number(1, VERDICT_REGISTER);
            a.nested(2, |a| a.nested(2, |a| a.number(1, code)));
        });
    }

    fn masquerade(&mut self) {
        self.expression("masq", |_| {});
    }

    /// Looks the packet up in `map` and leads it to what is found there.
    fn dnat(&mut self, map: Map) {
        const RESULT_ADDRESS_TYPE: u32 = 3;
        const OF_DESTINATION: u32 = 1 << 1;
        const LOCAL: u32 = 2;
        const TRANSPORT_HEADER: u32 = 2;
        const TO_DESTINATION: u32 = 1;
        self.family(map.v6)
            .expression("fib", |a| {
                a.number(1, REGISTER);
                a.number(2, RESULT_ADDRESS_TYPE);
                a.number(3, OF_DESTINATION);
            })
            .compare(EQUAL, &LOCAL.to_ne_bytes())
            .meta(META_L4PROTO, REGISTER);
        let mut next = REGISTER + 1;
        if map.one_address {
            self.address(next, map.v6, Side::Destination);
            next += map.address_bytes() / 4;
        }
        self.payload(next, TRANSPORT_HEADER, 2, 2)
            .expression("lookup", |a| {
                a.text(1, map.name);
                a.number(2, REGISTER);
                a.number(3, REGISTER);
            })
            .expression("nat", |a| {
                a.number(1, TO_DESTINATION);
                a.number(2, u32::from(if map.v6 { FAMILY_V6 } else { FAMILY_V4 }));
                a.number(3, REGISTER);
                a.number(5, REGISTER + map.address_bytes() / 4);
            });
    }
}
