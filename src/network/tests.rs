//! The built-in network in namespaces of its own: nothing here touches the machine's interfaces or rules.
//!
//! [`Host`] is a thread in a new network namespace that plays the host; pods and the world outside are further
//! namespaces. Traffic is real: TCP and UDP through the bridge, NAT and host ports.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use rustix::thread::UnshareFlags;

use super::bandwidth::Bandwidth;
use super::bridge::{Attached, BridgeError, Builtin, Held, Swept, Wanted};
use super::ipam::IpamError;
use super::links;
use super::netlink::Socket;
use super::netns;
use super::ports::PortError;
use crate::id::PodId;
use crate::pod::spec::{PortMapping, Protocol};

/// No exchange in these tests takes longer unless it never ends.
const PATIENCE: Duration = Duration::from_secs(5);

/// Runs `test` in a new network namespace with lo up.
pub(super) fn in_new_netns<T: Send>(test: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let inside = || {
            #[expect(
                deprecated,
                reason = "CLONE_NEWNET alone touches no memory or descriptor of other threads"
            )]
            rustix::thread::unshare(UnshareFlags::NEWNET).unwrap();
            links::set_up(&mut Socket::route().unwrap(), "lo").unwrap();
            test()
        };
        scope.spawn(inside).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// A namespace that stays while this does.
pub(super) struct Namespace(OwnedFd);

impl Namespace {
    pub(super) fn new() -> Self {
        in_new_netns(|| Self(std::fs::File::open("/proc/thread-self/ns/net").unwrap().into()))
    }

    pub(super) fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.0.as_raw_fd()).into()
    }

    pub(super) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        netns::within(self.0.as_fd(), work).unwrap()
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn pod(n: u8) -> PodId {
    format!("{n:02x}").repeat(32).parse().unwrap()
}

fn nets(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().map(|t| t.parse().unwrap()).collect()
}

struct Fixture {
    dir: tempfile::TempDir,
    subnets: Vec<IpNet>,
}

impl Fixture {
    fn new(subnets: &[&str]) -> Self {
        Self { dir: tempfile::tempdir().unwrap(), subnets: nets(subnets) }
    }

    /// As after a start of the daemon: what is on disk and in the kernel stays.
    fn network(&self) -> Arc<Builtin> {
        let builtin =
            Builtin::new("brig0".to_owned(), self.subnets.clone(), None, self.dir.path().join("addresses"));
        Arc::new(builtin)
    }

    fn records(&self) -> usize {
        std::fs::read_dir(self.dir.path().join("addresses")).map_or(0, Iterator::count)
    }
}

fn attach(
    network: &Builtin,
    n: u8,
    netns: &Namespace,
    ports: &[PortMapping],
) -> Result<Attached, BridgeError> {
    network.attach(&Wanted { pod: &pod(n), netns: &netns.path(), ports, bandwidth: Bandwidth::default() })
}

fn port(protocol: Protocol, host_ip: Option<&str>, host_port: u16, container_port: u16) -> PortMapping {
    PortMapping { protocol, container_port, host_port, host_ip: host_ip.map(|ip| ip.parse().unwrap()) }
}

fn output(command: &str, arguments: &[&str]) -> String {
    // A child is in the namespace of the thread that starts it.
    let output = Command::new(command).args(arguments).output().unwrap();
    assert!(output.status.success(), "{command} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn ruleset() -> String {
    output("nft", &["list", "ruleset"])
}

fn link_names() -> Vec<String> {
    let mut names: Vec<_> =
        links::all(&mut Socket::route().unwrap()).unwrap().into_iter().map(|link| link.name).collect();
    names.sort();
    names
}

/// A listener inside the namespace; sockets belong to the namespace they are made in.
fn listen(at: &Namespace, address: &str) -> TcpListener {
    at.run(|| TcpListener::bind(address).unwrap())
}

/// Connects from the calling thread's namespace and returns what the server behind `listener` saw as the peer.
fn connect(to: SocketAddr, listener: &TcpListener) -> IpAddr {
    let mut client =
        TcpStream::connect_timeout(&to, PATIENCE).unwrap_or_else(|err| panic!("connect {to}: {err}"));
    let (mut server, peer) = listener.accept().unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    client.write_all(b"ping").unwrap();
    let mut got = [0; 4];
    server.read_exact(&mut got).unwrap();
    server.write_all(b"pong").unwrap();
    client.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"pong");
    peer.ip()
}

/// A world outside the host: 192.0.2.1 and 2001:db8::1 there, .2 and ::2 on the host's `up0`.
fn outside() -> Namespace {
    let outside = Namespace::new();
    let inside = outside.fd();
    output("ip", &["link", "add", "up0", "mtu", "1400", "type", "veth", "peer", "name", "up1"]);
    // ip(8) takes a process id or a name; the descriptor of this process serves as a path.
    let fd = format!("/proc/{}/fd/{}", std::process::id(), inside.as_raw_fd());
    output("ip", &["link", "set", "up1", "netns", &fd]);
    for arguments in
        ["address add 192.0.2.2/24 dev up0", "address add 2001:db8::2/64 dev up0 nodad", "link set up0 up"]
    {
        output("ip", &arguments.split(' ').collect::<Vec<_>>());
    }
    outside.run(|| {
        for arguments in [
            "address add 192.0.2.1/24 dev up1",
            "address add 2001:db8::1/64 dev up1 nodad",
            "link set up1 mtu 1400 up",
        ] {
            output("ip", &arguments.split(' ').collect::<Vec<_>>());
        }
    });
    output("ip", &["route", "add", "default", "via", "192.0.2.1"]);
    outside
}

#[test]
fn privileged_pods_reach_each_other_and_nothing_remains_after_detach_and_teardown() {
    in_new_netns(|| {
        let fixture = Fixture::new(&["10.77.0.0/24", "fd77::/64"]);
        let network = fixture.network();
        let (a, b) = (Namespace::new(), Namespace::new());
        let first = attach(&network, 1, &a, &[]).unwrap();
        let second = attach(&network, 2, &b, &[]).unwrap();
        assert_eq!(first.addresses, ["10.77.0.2".parse::<IpAddr>().unwrap(), "fd77::2".parse().unwrap()]);
        assert_eq!(link_names(), ["brig0", "lo", "veth01010101010", "veth02020202020"]);
        let server = listen(&b, "[::]:7000");
        for (mine, theirs) in first.addresses.iter().zip(&second.addresses) {
            let seen = a.run(|| connect(SocketAddr::new(*theirs, 7000), &server));
            assert_eq!(seen.to_canonical(), *mine);
            // The host reaches its pods too.
            connect(SocketAddr::new(*theirs, 7000), &server);
        }
        let mac = a.run(|| output("cat", &["/proc/thread-self/net/dev"]));
        assert!(mac.contains("eth0"), "{mac}");
        assert!(a.run(|| output("ip", &["link", "show", "eth0"])).contains("0a:62:0a:4d:00:02"));
        for n in [1, 2, 1] {
            network.detach(&pod(n)).unwrap();
        }
        network.settle();
        assert_eq!(link_names(), ["brig0", "lo"]);
        assert_eq!(fixture.records(), 0);
        network.teardown().unwrap();
        network.teardown().unwrap();
        assert_eq!(link_names(), ["lo"]);
        assert_eq!(ruleset(), "");
    });
}

#[test]
fn privileged_what_leaves_the_subnet_bears_the_hosts_address_and_the_uplinks_mtu() {
    in_new_netns(|| {
        let world = outside();
        let fixture = Fixture::new(&["10.77.0.0/24", "fd77::/64"]);
        let network = fixture.network();
        let a = Namespace::new();
        attach(&network, 1, &a, &[]).unwrap();
        assert!(a.run(|| output("ip", &["link", "show", "eth0"])).contains("mtu 1400"));
        let server = listen(&world, "[::]:7000");
        for (to, host) in [("192.0.2.1", "192.0.2.2"), ("2001:db8::1", "2001:db8::2")] {
            let seen = a.run(|| connect(SocketAddr::new(to.parse().unwrap(), 7000), &server));
            assert_eq!(seen.to_canonical(), host.parse::<IpAddr>().unwrap());
        }
        let rules = ruleset();
        assert!(rules.contains("ip saddr 10.77.0.0/24"), "{rules}");
        assert!(rules.contains("masquerade"), "{rules}");
    });
}

#[test]
fn privileged_a_host_port_leads_to_its_pod_from_outside_the_host_localhost_and_pods() {
    in_new_netns(|| {
        let world = outside();
        let fixture = Fixture::new(&["10.77.0.0/24", "fd77::/64"]);
        let network = fixture.network();
        let (a, b) = (Namespace::new(), Namespace::new());
        let ports = [
            port(Protocol::Tcp, None, 8080, 80),
            port(Protocol::Tcp, Some("192.0.2.2"), 8081, 80),
            port(Protocol::Udp, None, 5353, 53),
        ];
        attach(&network, 1, &a, &ports).unwrap();
        attach(&network, 2, &b, &[]).unwrap();
        let server = listen(&a, "[::]:80");
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        // From outside the pod sees the true peer.
        for (to, from) in [
            ("192.0.2.2:8080", "192.0.2.1"),
            ("[2001:db8::2]:8080", "2001:db8::1"),
            ("192.0.2.2:8081", "192.0.2.1"),
        ] {
            let seen = world.run(|| connect(at(to), &server));
            assert_eq!(seen.to_canonical(), from.parse::<IpAddr>().unwrap(), "{to}");
        }
        for to in ["127.0.0.1:8080", "192.0.2.2:8080", "[2001:db8::2]:8080", "10.77.0.1:8080"] {
            connect(at(to), &server);
        }
        for from in [&a, &b] {
            for to in ["192.0.2.2:8080", "[2001:db8::2]:8080"] {
                from.run(|| connect(at(to), &server));
            }
        }
        // Not this host's address, so none of our business.
        let elsewhere = listen(&world, "192.0.2.1:8080");
        b.run(|| connect(at("192.0.2.1:8080"), &elsewhere));
        // 8081 is on one address only.
        let refused = TcpStream::connect_timeout(&at("127.0.0.1:8081"), PATIENCE).unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
        let echo = a.run(|| UdpSocket::bind("0.0.0.0:53").unwrap());
        echo.set_read_timeout(Some(PATIENCE)).unwrap();
        let client = world.run(|| UdpSocket::bind("0.0.0.0:0").unwrap());
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.connect("192.0.2.2:5353").unwrap();
        client.send(b"ping").unwrap();
        let mut got = [0; 16];
        let (length, peer) = echo.recv_from(&mut got).unwrap();
        echo.send_to(&got[..length], peer).unwrap();
        assert_eq!(client.recv(&mut got).unwrap(), 4);

        network.detach(&pod(1)).unwrap();
        assert!(!ruleset().contains("8080"), "{}", ruleset());
        let gone = TcpStream::connect_timeout(&at("127.0.0.1:8080"), PATIENCE).unwrap_err();
        assert_eq!(gone.kind(), std::io::ErrorKind::ConnectionRefused);
    });
}

#[test]
fn privileged_a_udp_client_that_goes_on_sending_reaches_the_pod_that_has_the_port_now() {
    in_new_netns(|| {
        let world = outside();
        let fixture = Fixture::new(&["10.77.0.0/24", "fd77::/64"]);
        let network = fixture.network();
        let ports = [port(Protocol::Udp, None, 5353, 53)];
        for (from, host) in [("0.0.0.0:0", "192.0.2.2:5353"), ("[::]:0", "[2001:db8::2]:5353")] {
            let client = world.run(|| UdpSocket::bind(from).unwrap());
            client.connect(host).unwrap();
            // Tracked before any pod has the port. The host's refusal is awaited, then dropped.
            attach(&network, 9, &Namespace::new(), &[]).unwrap();
            client.send(b"early").unwrap();
            client.set_read_timeout(Some(PATIENCE)).unwrap();
            assert_eq!(client.recv(&mut [0; 8]).unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
            for n in [1, 2] {
                let netns = Namespace::new();
                attach(&network, n, &netns, &ports).unwrap();
                let server = netns.run(|| UdpSocket::bind("[::]:53").unwrap());
                server.set_read_timeout(Some(PATIENCE)).unwrap();
                client.send(b"ping").unwrap();
                assert_eq!(server.recv(&mut [0; 8]).unwrap_or_else(|err| panic!("{host} pod {n}: {err}")), 4);
                network.detach(&pod(n)).unwrap();
                network.settle();
            }
            network.detach(&pod(9)).unwrap();
            network.settle();
        }
    });
}

#[test]
fn privileged_a_taken_host_port_is_refused_and_the_loser_has_nothing() {
    in_new_netns(|| {
        let fixture = Fixture::new(&["10.77.0.0/24"]);
        let network = fixture.network();
        let (a, b) = (Namespace::new(), Namespace::new());
        attach(&network, 1, &a, &[port(Protocol::Tcp, None, 8080, 80)]).unwrap();
        let before = (link_names(), ruleset(), fixture.records());
        let err = attach(&network, 2, &b, &[port(Protocol::Tcp, Some("127.0.0.1"), 8080, 80)]).unwrap_err();
        let BridgeError::Port(PortError::Taken { wanted, holder }) = err else { panic!("{err}") };
        assert_eq!((wanted.as_str(), holder), ("tcp/127.0.0.1:8080", pod(1)));
        assert_eq!((link_names(), ruleset(), fixture.records()), before);
        network.detach(&pod(1)).unwrap();
        attach(&network, 2, &b, &[port(Protocol::Tcp, Some("127.0.0.1"), 8080, 80)]).unwrap();
    });
}

#[test]
fn privileged_a_full_subnet_names_itself_and_leaves_nothing_half_done() {
    in_new_netns(|| {
        let fixture = Fixture::new(&["10.77.0.0/30"]);
        let network = fixture.network();
        let (a, b) = (Namespace::new(), Namespace::new());
        attach(&network, 1, &a, &[]).unwrap();
        let err = attach(&network, 2, &b, &[]).unwrap_err();
        assert!(matches!(err, BridgeError::Ipam(IpamError::Exhausted { size: 1, .. })), "{err}");
        assert_eq!(link_names(), ["brig0", "lo", "veth01010101010"]);
        // A pod of IPv4 alone has no IPv6.
        let off = a.run(|| output("cat", &["/proc/sys/net/ipv6/conf/eth0/disable_ipv6"]));
        assert_eq!(off, "1\n");
    });
}

#[test]
fn privileged_after_a_crash_the_living_keep_everything_and_the_dead_nothing() {
    in_new_netns(|| {
        let fixture = Fixture::new(&["10.77.0.0/24"]);
        let (a, b, c) = (Namespace::new(), Namespace::new(), Namespace::new());
        let network = fixture.network();
        let lives = attach(&network, 1, &a, &[port(Protocol::Tcp, None, 8080, 80)]).unwrap();
        attach(&network, 2, &b, &[port(Protocol::Tcp, None, 8081, 80)]).unwrap();
        drop(network);
        // Worse still: an administrator flushed all rules.
        output("nft", &["flush", "ruleset"]);
        let network = fixture.network();
        let swept = network
            .sweep(&[Held { pod: &pod(1), addresses: &lives.addresses, ports: &lives.ports }])
            .unwrap();
        assert_eq!(swept, Swept { addresses: 1, links: 1, ports: 0, cni: 0 });
        assert_eq!(link_names(), ["brig0", "lo", "veth01010101010"]);
        assert!(ruleset().contains("8080") && !ruleset().contains("8081"), "{}", ruleset());
        let server = listen(&a, "0.0.0.0:80");
        connect("127.0.0.1:8080".parse().unwrap(), &server);
        let err = attach(&network, 3, &c, &[port(Protocol::Tcp, None, 8080, 80)]).unwrap_err();
        assert!(matches!(err, BridgeError::Port(PortError::Taken { .. })), "{err}");
        let third = attach(&network, 3, &c, &[port(Protocol::Tcp, None, 8081, 80)]).unwrap();
        // .3 was the dead pod's and .4 the refused one's: neither comes back at once.
        assert_eq!(third.addresses, ["10.77.0.5".parse::<IpAddr>().unwrap()]);
    });
}

#[test]
fn privileged_flushed_rules_come_back_with_the_next_host_port() {
    in_new_netns(|| {
        let fixture = Fixture::new(&["10.77.0.0/24"]);
        let network = fixture.network();
        let (a, b) = (Namespace::new(), Namespace::new());
        attach(&network, 1, &a, &[port(Protocol::Tcp, None, 8080, 80)]).unwrap();
        output("nft", &["flush", "ruleset"]);
        attach(&network, 2, &b, &[port(Protocol::Tcp, None, 8081, 80)]).unwrap();
        assert!(ruleset().contains("8080") && ruleset().contains("8081"), "{}", ruleset());
        output("nft", &["flush", "ruleset"]);
        network.detach(&pod(1)).unwrap();
        assert!(!ruleset().contains("8080") && ruleset().contains("8081"), "{}", ruleset());
    });
}

#[test]
fn privileged_a_deleted_bridge_is_made_again() {
    in_new_netns(|| {
        let fixture = Fixture::new(&["10.77.0.0/24"]);
        let network = fixture.network();
        let (a, b) = (Namespace::new(), Namespace::new());
        attach(&network, 1, &a, &[]).unwrap();
        output("ip", &["link", "delete", "brig0"]);
        let second = attach(&network, 2, &b, &[]).unwrap();
        let server = listen(&b, "0.0.0.0:80");
        connect(SocketAddr::new(second.addresses[0], 80), &server);
    });
}

#[test]
fn privileged_a_subnet_that_is_in_use_is_refused_before_anything_is_made() {
    in_new_netns(|| {
        output("ip", &["link", "add", "other", "type", "bridge"]);
        output("ip", &["address", "add", "10.77.0.9/25", "dev", "other"]);
        output("ip", &["link", "set", "other", "up"]);
        let fixture = Fixture::new(&["10.77.0.0/24"]);
        let err = attach(&fixture.network(), 1, &Namespace::new(), &[]).unwrap_err();
        assert_eq!(
            err.to_string(),
            "subnet 10.77.0.0/24 of bridge brig0 is in use: 10.77.0.0/25 is routed through other; \
             set network.subnet to a free one"
        );
        assert_eq!(link_names(), ["lo", "other"]);
        assert_eq!(ruleset(), "");
        output("ip", &["link", "set", "other", "name", "brig0"]);
        output("ip", &["link", "delete", "brig0"]);
        output("ip", &["link", "add", "brig0", "type", "veth"]);
        let err = attach(&fixture.network(), 1, &Namespace::new(), &[]).unwrap_err();
        assert!(matches!(err, BridgeError::NotABridge(_)), "{err}");
    });
}

#[test]
fn privileged_a_pod_cannot_talk_to_the_hosts_loopback() {
    in_new_netns(|| {
        let fixture = Fixture::new(&["10.77.0.0/24"]);
        let network = fixture.network();
        let a = Namespace::new();
        attach(&network, 1, &a, &[]).unwrap();
        let _server = TcpListener::bind("127.0.0.1:7000").unwrap();
        a.run(|| {
            output("ip", &["link", "set", "lo", "down"]);
            output("ip", &["route", "add", "127.0.0.0/8", "via", "10.77.0.1"]);
            let to = "127.0.0.1:7000".parse().unwrap();
            let err = TcpStream::connect_timeout(&to, Duration::from_millis(200)).unwrap_err();
            assert_eq!(err.kind(), std::io::ErrorKind::TimedOut, "{err}");
        });
        assert!(ruleset().contains("iifname \"brig0\" ip daddr 127.0.0.0/8 drop"), "{}", ruleset());
    });
}

#[test]
fn privileged_bandwidth_limits_both_ends_of_the_link() {
    in_new_netns(|| {
        let fixture = Fixture::new(&["10.77.0.0/24"]);
        let network = fixture.network();
        let a = Namespace::new();
        let bandwidth = Bandwidth { ingress: Some(10_000_000), egress: Some(80_000_000_000) };
        network.attach(&Wanted { pod: &pod(1), netns: &a.path(), ports: &[], bandwidth }).unwrap();
        let (tc, arguments) = ("tc", ["qdisc", "show"]);
        let host = output(tc, &arguments);
        assert!(host.contains("tbf") && host.contains("rate 10Mbit"), "{host}");
        let inside = a.run(|| output(tc, &arguments));
        assert!(inside.contains("rate 80Gbit"), "{inside}");
    });
}

/// Prints medians; run with `--ignored --nocapture`, best in a release build.
#[test]
#[ignore = "a measurement"]
fn privileged_measure_attach_and_detach() {
    in_new_netns(|| {
        let fixture = Fixture::new(&["10.77.0.0/16", "fd77::/64"]);
        let network = fixture.network();
        let count = 200;
        let pods: Vec<_> = (0..count).map(|_| (PodId::random(), Namespace::new())).collect();
        for mapped in [false, true] {
            let mut times = (Vec::new(), Vec::new());
            for (at, (id, netns)) in pods.iter().enumerate() {
                let one = [port(Protocol::Tcp, None, 10_000 + u16::try_from(at).unwrap(), 80)];
                let ports = if mapped { &one[..] } else { &[] };
                let wanted = Wanted { pod: id, netns: &netns.path(), ports, bandwidth: Bandwidth::default() };
                let start = Instant::now();
                network.attach(&wanted).unwrap();
                times.0.push(start.elapsed());
            }
            for (id, _) in &pods {
                let start = Instant::now();
                network.detach(id).unwrap();
                times.1.push(start.elapsed());
            }
            let start = Instant::now();
            network.settle();
            println!(
                "{} links left after {:?}",
                links::all(&mut Socket::route().unwrap()).unwrap().len(),
                start.elapsed()
            );
            let median = |t: &[Duration]| {
                let mut sorted = t.to_vec();
                sorted.sort();
                sorted[sorted.len() / 2]
            };
            let (first, last) = (median(&times.0[..30]), median(&times.0[count - 30..]));
            println!("attach p50 of the first 30 pods {first:?}, of the last 30 {last:?}");
            times.0.sort();
            times.1.sort();
            let spread = |t: &[Duration]| format!("p50 {:?} p95 {:?}", t[t.len() / 2], t[t.len() * 95 / 100]);
            println!("host port {mapped}: attach {}, detach {}", spread(&times.0), spread(&times.1));
        }
    });
}
