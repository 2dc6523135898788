//! Port-forward: over WebSocket channels by [`super::client`], over SPDY by `brig port-forward` and [`super::spdy`].

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::{Child, ChildStdout, Stdio};

use super::client::{Client, websocket};
use super::spdy::{Frame, Spdy};
use super::{Ship, with_handlers};
use crate::cli::brig_on;
use crate::fixture::node::eventually;
use brig::proto::v1::*;

const CHANNELS: &str = "v4.channel.k8s.io";

/// A pod that answers on ports: 7 says what it hears, 9 says the digest of what it heard, 8081 is HTTP on ::1 only.
fn port_pod(handler: &str, name: &str) -> Ship {
    let ship = Ship::pod(handler, name).running(
        "mkdir /tmp/www; echo six > /tmp/www/index.html
         httpd -p '[::1]:8081' -h /tmp/www; httpd -p 127.0.0.1:8080 -h /tmp/www
         nc -ll -p 7 -e cat & nc -ll -p 9 -e md5sum & wait",
    );
    eventually(|| {
        let listening = ship.node.output(&ship.container, "cat /proc/net/tcp /proc/net/tcp6");
        [":0007", ":0009", ":1F90", ":1F91"].iter().all(|port| listening.contains(port)).then_some(())
    });
    ship
}

/// A pod on the host's network.
fn host_pod(handler: &str) -> Ship {
    let mut ship = Ship::pod(handler, "unused");
    let mut config = ship.node.pod_config("host");
    config.hostname.clear();
    let linux = config.linux.as_mut().and_then(|linux| linux.security_context.as_mut()).expect("a context");
    linux.namespace_options =
        Some(NamespaceOption { network: NamespaceMode::Node as i32, ..Default::default() });
    ship.pod = ship.node.run_pod(&config);
    ship
}

/// `brig port-forward`, ended when dropped.
struct Forward {
    brig: Child,
    _stdout: BufReader<ChildStdout>,
    /// What it listens on, in the order of the arguments, IPv4 and IPv6.
    addresses: Vec<String>,
}

impl Forward {
    fn start(ship: &Ship, ports: &[&str], addresses: usize) -> Self {
        let mut brig = brig_on(&ship.node)
            .args(["port-forward", &ship.pod])
            .args(ports)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("brig starts");
        let mut stdout = BufReader::new(brig.stdout.take().expect("a pipe"));
        let addresses = (0..addresses)
            .map(|_| {
                let mut line = String::new();
                stdout.read_line(&mut line).expect("a line");
                let line = line.strip_prefix("Forwarding from ").unwrap_or_else(|| panic!("{line:?}"));
                line.split_once(" -> ").expect("two ends").0.to_owned()
            })
            .collect();
        Self { brig, _stdout: stdout, addresses }
    }

    fn connect(&self, address: usize) -> TcpStream {
        TcpStream::connect(&self.addresses[address]).expect("brig listens")
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        self.brig.kill().ok();
        self.brig.wait().ok();
    }
}

fn ask(mut stream: TcpStream, text: &[u8]) -> Vec<u8> {
    stream.write_all(text).expect("the connection lasts");
    stream.shutdown(Shutdown::Write).expect("the connection lasts");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("an end");
    answer
}

#[test]
fn privileged_one_direction_ends_before_the_other() {
    with_handlers(|handler| {
        let ship = port_pod(handler, "half-close");
        let forward = Forward::start(&ship, &[":9", ":7"], 4);
        // The digest comes only after the end of what it is of.
        let answer = ask(forward.connect(0), b"hello");
        assert_eq!(String::from_utf8_lossy(&answer), "5d41402abc4b2a76b9719d911017c592  -\n");
        // On ::1 of this side too.
        assert_eq!(ask(forward.connect(3), b"over IPv6"), b"over IPv6");
        let data: Vec<u8> =
            (0..10_u32 << 20).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let (mut near, far) = (forward.connect(2), data.clone());
        let mut reading = near.try_clone().expect("a descriptor");
        let reader = std::thread::spawn(move || {
            let mut answer = Vec::new();
            reading.read_to_end(&mut answer).expect("an end");
            assert!(answer == far, "{} bytes came back", answer.len());
        });
        near.write_all(&data).expect("the connection lasts");
        near.shutdown(Shutdown::Write).expect("the connection lasts");
        reader.join().expect("the same bytes");
    });
}

#[test]
fn privileged_many_connections_share_one_stream_set() {
    with_handlers(|handler| {
        // The server is this test's: busybox listens with a queue of one.
        let ship = host_pod(handler);
        let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let port = listener.local_addr().expect("an address").port();
        let server = std::thread::spawn(move || {
            let serving: Vec<_> = (0..60)
                .map(|_| {
                    let (mut stream, _) = listener.accept().expect("a connection");
                    std::thread::spawn(move || {
                        let mut copy = stream.try_clone().expect("a descriptor");
                        std::io::copy(&mut copy, &mut stream).ok();
                    })
                })
                .collect();
            for thread in serving {
                thread.join().expect("an echo");
            }
        });
        let forward = Forward::start(&ship, &[&format!(":{port}")], 2);
        // All open at the same time, and answered in another order than opened.
        let mut streams: Vec<_> = (0..60).map(|number| (number, forward.connect(number % 2))).collect();
        for (number, stream) in &mut streams {
            stream.write_all(format!("connection {number}\n").as_bytes()).expect("the connection lasts");
        }
        for (number, stream) in streams.into_iter().rev() {
            let mut line = String::new();
            BufReader::new(stream).read_line(&mut line).expect("a line");
            assert_eq!(line, format!("connection {number}\n"));
        }
        // Every end reached the other side.
        server.join().expect("the server ends");
    });
}

#[test]
fn privileged_a_port_is_found_on_ipv4_and_on_ipv6_and_a_refused_one_is_told() {
    with_handlers(|handler| {
        let ship = port_pod(handler, "families");
        for port in [8080, 8081] {
            let url = ship.forward_url(&[port]);
            let answer = ship.node.call(async {
                let mut client = Client::open(&url, CHANNELS).await;
                client.send(0, b"GET / HTTP/1.0\r\n\r\n").await;
                let answer = client.until(0, "six\n").await;
                // The server closes after its answer, and with the last connection everything ends.
                client.finish().await;
                answer
            });
            // First the port, low byte first.
            let port = u16::try_from(port).expect("a port").to_le_bytes();
            assert!(answer.as_bytes().starts_with(&String::from_utf8_lossy(&port).into_owned().into_bytes()));
            assert!(answer.contains("200 OK"), "{answer}");
        }
        let url = ship.forward_url(&[5, 7]);
        let (refused, echo) = ship.node.call(async {
            let mut client = Client::open(&url, CHANNELS).await;
            let refused = client.until(1, "cannot connect to localhost:5 ").await;
            client.send(2, b"and yet").await;
            (refused, client.until(2, "and yet").await)
        });
        assert!(refused.contains("error forwarding port 5 to pod"), "{refused}");
        assert!(echo.ends_with("and yet"), "{echo}");
    });
}

#[test]
fn privileged_base64_channels_carry_the_same() {
    let ship = port_pod("", "base64");
    for protocol in ["v4.base64.channel.k8s.io", ""] {
        let url = ship.forward_url(&[7]);
        let outcome = ship.node.call(async {
            let mut client = Client::open(&url, protocol).await;
            client.send(0, b"text").await;
            client.until(0, "text").await
        });
        assert_eq!(outcome.as_bytes(), b"\x07\0text", "{protocol:?}");
    }
}

#[test]
fn privileged_a_pod_on_the_hosts_network_has_the_hosts_ports() {
    with_handlers(|handler| {
        let ship = host_pod(handler);
        // On ::1 only, so that the second address is needed.
        let listener = TcpListener::bind("[::1]:0").expect("a listener");
        let port = listener.local_addr().expect("an address").port();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a connection");
            let mut text = Vec::new();
            stream.read_to_end(&mut text).expect("an end");
            text.reverse();
            stream.write_all(&text).expect("the connection lasts");
        });
        let forward = Forward::start(&ship, &[&format!(":{port}")], 2);
        assert_eq!(ask(forward.connect(0), b"olleh"), b"hello");
        server.join().expect("the server ends");
    });
}

#[test]
fn privileged_ports_that_are_none_are_refused_before_there_is_a_url() {
    let ship = Ship::pod("", "ports");
    for port in [0, -1, 65536] {
        let refused = ship.try_forward_url(&[port]).expect_err("no port");
        assert_eq!(refused.code(), tonic::Code::InvalidArgument, "{refused}");
        assert!(refused.message().contains("port[0]"), "{refused}");
    }
    // Over WebSocket the ports have to be known from the start.
    let url = ship.forward_url(&[]);
    let (status, text) = ship.node.call(websocket(&url, CHANNELS)).expect_err("a refusal");
    assert_eq!(status, 400, "{text}");
    ship.node.stop_pod(&ship.pod);
    let refused = ship.try_forward_url(&[80]).expect_err("a stopped pod");
    assert_eq!(refused.code(), tonic::Code::FailedPrecondition, "{refused}");
}

#[test]
fn privileged_streams_for_ports_that_are_none_are_refused_and_others_go_on() {
    with_handlers(|handler| {
        let ship = port_pod(handler, "spdy-ports");
        let url = ship.forward_url(&[7]);
        ship.node.call(async {
            let Spdy { mut to, mut from } =
                Spdy::open(&url, "portforward.k8s.io").await.expect("the upgrade");
            const REFUSED_STREAM: u32 = 3;
            let nonsense: [&[(&str, &str)]; 7] = [
                &[("streamtype", "data"), ("port", "0"), ("requestid", "0")],
                &[("streamtype", "data"), ("port", "65536"), ("requestid", "0")],
                &[("streamtype", "data"), ("port", "-7"), ("requestid", "0")],
                &[("streamtype", "data"), ("port", "seven"), ("requestid", "0")],
                &[("streamtype", "data"), ("requestid", "0")],
                &[("streamtype", "shell"), ("port", "7"), ("requestid", "0")],
                &[("port", "7"), ("requestid", "0")],
            ];
            for headers in nonsense {
                let id = to.stream(headers).await;
                let answer = loop {
                    match from.next().await.expect("the connection lasts") {
                        Frame::Other(_) => {}
                        answer => break answer,
                    }
                };
                assert_eq!(answer, Frame::Reset(id, REFUSED_STREAM), "{headers:?}");
            }
            // A stream whose other half does not come keeps nothing from the next pair, and two with one role are no pair.
            let headers = |kind, id| [("streamtype", kind), ("port", "7"), ("requestid", id)];
            let half = to.stream(&headers("error", "1")).await;
            let twice = to.stream(&headers("error", "1")).await;
            to.stream(&headers("error", "2")).await;
            let data = to.stream(&headers("data", "2")).await;
            to.send(data, b"echo").await;
            to.end(data).await;
            let (mut echo, mut answers, mut ended) = (Vec::new(), Vec::new(), false);
            while !ended {
                match from.next().await.expect("the connection lasts") {
                    Frame::Data { stream, data: piece, end } if stream == data => {
                        echo.extend(piece);
                        ended = end;
                    }
                    answer => answers.push(answer),
                }
            }
            assert_eq!(echo, b"echo");
            assert!(answers.contains(&Frame::Reply(half)), "{answers:?}");
            assert!(answers.contains(&Frame::Reset(twice, REFUSED_STREAM)), "{answers:?}");
        });
    });
}

#[test]
fn privileged_a_pod_that_stops_ends_its_connections() {
    let ship = port_pod("", "stops");
    let forward = Forward::start(&ship, &[":7"], 2);
    let mut stream = forward.connect(0);
    stream.write_all(b"x").expect("the connection lasts");
    let mut byte = [0];
    stream.read_exact(&mut byte).expect("the echo");
    ship.node.stop_pod(&ship.pod);
    assert_eq!(stream.read(&mut byte).unwrap_or(0), 0);
    // A new one is told, and ends.
    assert_eq!(ask(forward.connect(0), b""), b"");
}
