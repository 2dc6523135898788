//! Port-forward: connections to ports inside a pod, made in its network namespace without a helper program.
//!
//! A SPDY client opens two streams per connection, data and error, that name their port and belong together by a request
//! id. A WebSocket client has a pair of channels per port, or tunnels a SPDY connection. A connection is tried on the
//! loopback addresses of the pod, IPv4 first.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_util::sync::CancellationToken;

use super::handshake::{Agreed, Offer};
use super::idle::Activity;
use super::session::{Client, STREAM_TYPE, Sink, Source};
use super::websocket::TUNNEL;
use super::{spdy, websocket};
use crate::network::netns;
use crate::pod::Pods;
use crate::task::{blocking, chain};

pub(super) const OFFER: Offer =
    Offer { spdy: &["portforward.k8s.io", ""], websocket: websocket::PORT_FORWARD };

const PORT: &str = "port";
const REQUEST_ID: &str = "requestid";

/// Connections at a time through one client. A browser opens tens; each takes a descriptor here and two streams.
const CONNECTIONS_MAX: usize = 512;

/// How long the second stream of a pair may be missing (k8s.io/apimachinery DefaultStreamCreationTimeout).
const PAIR_WAIT: Duration = Duration::from_secs(30);

/// How long a connection may take. It never leaves the machine.
const CONNECT_WAIT: Duration = Duration::from_secs(10);

/// What one read takes.
const CHUNK: usize = 64 << 10;

/// Why a port was not reached.
#[derive(Debug, thiserror::Error)]
enum ForwardError {
    #[error("cannot find the pod's network")]
    Pod(#[source] crate::pod::PodError),
    #[error("cannot enter the pod's network")]
    Namespace(#[source] netns::NetnsError),
    #[error("cannot make a socket in the pod's network")]
    Socket(#[source] io::Error),
    #[error("cannot connect to localhost:{port} inside the pod, on 127.0.0.1 nor on ::1")]
    Connect {
        port: u16,
        #[source]
        source: io::Error,
    },
    #[error("{CONNECTIONS_MAX} connections are open through this client already; close some")]
    TooMany,
}

/// Where connections are made.
#[derive(Debug, Clone)]
struct Target {
    pods: Pods,
    pod: String,
    /// Of the client that wants them.
    activity: Activity,
}

/// Serves a client that has just been upgraded, until it is gone.
pub(super) async fn run(pods: &Pods, pod: &str, ports: &[u16], client: Client, stop: &CancellationToken) {
    let Client { agreed, io, activity } = client;
    let target = Target { pods: pods.clone(), pod: pod.to_owned(), activity };
    let work = async {
        match agreed {
            Agreed::Spdy(_) => over_spdy(target, io).await,
            Agreed::WebSocket(TUNNEL) => over_spdy(target, websocket::Tunnel::server(io).await).await,
            Agreed::WebSocket(protocol) => over_websocket(target, protocol, ports, io).await,
        }
    };
    tokio::select! {
        () = work => {}
        () = stop.cancelled() => {}
    }
}

/// The streams of one connection that have come so far.
#[derive(Debug)]
struct Pair {
    since: Instant,
    data: Option<spdy::Stream>,
    error: Option<spdy::Stream>,
}

async fn over_spdy(target: Target, io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
    let (connection, mut incoming) = spdy::Connection::new(io, spdy::Role::Server);
    let mut pairs: HashMap<String, Pair> = HashMap::new();
    let mut work = JoinSet::new();
    loop {
        let oldest = pairs.values().map(|pair| pair.since).min().map(|since| since + PAIR_WAIT);
        let stream = tokio::select! {
            stream = incoming.accept() => stream,
            () = until(oldest) => {
                let now = Instant::now();
                // Dropped streams are reset, which tells the client.
                pairs.retain(|_, pair| pair.since + PAIR_WAIT > now);
                continue;
            }
            Some(_) = work.join_next() => continue,
        };
        let Some(stream) = stream else { break };
        let Some((port, id, is_data)) = meant(&stream) else {
            tracing::debug!("a client's stream for a port-forward is refused: {:?}", stream.headers);
            stream.refuse().await.ok();
            continue;
        };
        let pair = pairs.entry(id.clone()).or_insert_with(|| Pair {
            since: Instant::now(),
            data: None,
            error: None,
        });
        let place = if is_data { &mut pair.data } else { &mut pair.error };
        if place.is_some() {
            stream.refuse().await.ok();
            continue;
        }
        let Ok(stream) = stream.accept().await else { break };
        *place = Some(stream);
        if let Pair { data: Some(_), error: Some(_), .. } = pair
            && let Some(Pair { data: Some(data), error: Some(error), .. }) = pairs.remove(&id)
        {
            let full = work.len() >= CONNECTIONS_MAX;
            let ((to, from), (error, _)) = (data.split(), error.split());
            let target = target.clone();
            work.spawn(async move {
                let (from, to) = (Source::spdy(from, &target.activity), Sink::spdy(to, &target.activity));
                let error = Sink::spdy(error, &target.activity);
                forward(&target, port, full, from, to, error).await;
            });
        }
    }
    drop(work);
    drop(connection);
}

async fn until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// The port, the request and the role of a stream, if its headers say so.
///
/// Clients before Kubernetes 1.3 give no request id: their streams come in pairs, error first, and stream ids of a client
/// are two apart (k8s.io/kubelet portforward/httpstream.go).
fn meant(stream: &spdy::NewStream) -> Option<(u16, String, bool)> {
    let port = stream.header(PORT)?.parse().ok().filter(|port| *port != 0)?;
    let is_data = match stream.header(STREAM_TYPE)? {
        "data" => true,
        "error" => false,
        _ => return None,
    };
    let id = match stream.header(REQUEST_ID) {
        Some(id) if !id.is_empty() => id.to_owned(),
        _ => format!("stream {}", if is_data { stream.id.checked_sub(2)? } else { stream.id }),
    };
    Some((port, id, is_data))
}

/// A connection per port that was asked for, begun at once: channels 2n and 2n + 1 are its data and its errors, and the
/// first message on each is the port, low byte first (k8s.io/kubelet portforward/websocket.go). A channel cannot be ended
/// by itself, so the client is there as long as any connection is.
async fn over_websocket(
    target: Target,
    protocol: &str,
    ports: &[u16],
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) {
    // At most 127 ports come through the edge.
    let channels = (0..=u8::MAX).step_by(2).zip(ports);
    let inputs: Vec<u8> = channels.clone().map(|(channel, _)| channel).collect();
    let (mut connection, receivers) = websocket::Channels::over(io, Role::Server, protocol, &inputs).await;
    let mut work = JoinSet::new();
    for ((channel, &port), from) in channels.zip(receivers) {
        let [mut to, mut error] = [channel, channel + 1]
            .map(|channel| Sink::websocket(connection.sender(channel), &target.activity));
        for sink in [&mut to, &mut error] {
            sink.send(Bytes::copy_from_slice(&port.to_le_bytes())).await.ok();
        }
        let target = target.clone();
        let from = Source::websocket(from, &target.activity);
        work.spawn(async move { forward(&target, port, false, from, to, error).await });
    }
    let over = async { while work.join_next().await.is_some() {} };
    let all_over = tokio::select! {
        () = over => true,
        () = connection.closed() => false,
    };
    if all_over {
        connection.close().await;
    }
}

/// One connection from its first byte to its last. What went wrong goes to `error`; a client that reads something there
/// closes all its connections (client-go), so a connection that merely breaks is only ended.
async fn forward(target: &Target, port: u16, full: bool, mut from: Source, mut to: Sink, mut error: Sink) {
    let connected = if full { Err(ForwardError::TooMany) } else { target.connect(port).await };
    match connected {
        Ok(stream) => carry(stream, &mut from, &mut to).await,
        Err(reason) => {
            let reason = chain(&reason);
            tracing::debug!(pod = target.pod, port, %reason, "a port is not reached");
            let text = format!("error forwarding port {port} to pod {}: {reason}", target.pod);
            error.send(text.into()).await.ok();
        }
    }
    error.finish().await.ok();
    to.finish().await.ok();
}

/// Moves bytes both ways. Each side may end its half first; but WebSocket cannot tell a client that the pod's half has ended,
/// so there that is the end of the connection, as with other runtimes.
async fn carry(stream: TcpStream, from: &mut Source, to: &mut Sink) {
    let halves = to.has_ends();
    let (mut read, mut write) = stream.into_split();
    let there = async {
        while let Some(piece) = from.recv().await {
            if let Err(error) = write.write_all(&piece).await {
                tracing::debug!(%error, "a forwarded port takes no more");
                return;
            }
        }
        write.shutdown().await.ok();
    };
    let back = async {
        loop {
            let mut chunk = Vec::with_capacity(CHUNK);
            match read.read_buf(&mut chunk).await {
                Ok(0) => break,
                Ok(length) => {
                    let piece =
                        if length < CHUNK / 8 { Bytes::copy_from_slice(&chunk) } else { chunk.into() };
                    if to.send(piece).await.is_err() {
                        return;
                    }
                }
                Err(error) => {
                    tracing::debug!(%error, "a forwarded port broke off");
                    break;
                }
            }
        }
        to.finish().await.ok();
    };
    if halves {
        tokio::join!(there, back);
        return;
    }
    tokio::pin!(back);
    tokio::select! {
        () = &mut back => {}
        () = there => back.await,
    }
}

impl Target {
    async fn connect(&self, port: u16) -> Result<TcpStream, ForwardError> {
        // Asked each time: the pod may have been stopped meanwhile.
        let namespace = self.pods.network_namespace(&self.pod).map_err(ForwardError::Pod)?;
        let namespace = match namespace {
            None => None,
            Some(path) => {
                let opened = blocking(move || netns::open(&path)).await;
                Some(Arc::new(opened.map_err(ForwardError::Namespace)?))
            }
        };
        let mut failure = None;
        for ip in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
            let socket = match socket(namespace.clone(), ip).await {
                Ok(socket) => socket,
                // A kernel without IPv6.
                Err(ForwardError::Socket(_)) if failure.is_some() => continue,
                Err(error) => return Err(error),
            };
            let connecting = tokio::time::timeout(CONNECT_WAIT, socket.connect(SocketAddr::new(ip, port)));
            match connecting.await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
                Ok(stream) => {
                    stream.set_nodelay(true).ok();
                    return Ok(stream);
                }
                // The first failure says more: often nothing listens on IPv6.
                Err(error) => _ = failure.get_or_insert(error),
            }
        }
        Err(ForwardError::Connect { port, source: failure.expect("two addresses were tried") })
    }
}

/// A socket belongs for good to the network namespace that it was made in.
async fn socket(namespace: Option<Arc<OwnedFd>>, ip: IpAddr) -> Result<TcpSocket, ForwardError> {
    let make = move || if ip.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
    match namespace {
        None => make().map_err(ForwardError::Socket),
        Some(namespace) => {
            let made = blocking(move || netns::within(namespace.as_fd(), make)).await;
            made.map_err(ForwardError::Namespace)?.map_err(ForwardError::Socket)
        }
    }
}
