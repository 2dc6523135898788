//! The HTTP server of streams: listening, TLS, tokens, and handing an upgraded connection to what it is for.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::greeting::{Greeting, Greetings};
use super::handshake::{Agreed, Answer, negotiate, refusal};
use super::idle::Activity;
use super::session::Client;
use super::ticket::Tickets;
use super::tls::{Tls, TlsError, TlsFiles};
use super::websocket::TUNNEL;
use super::{Inner, Streams, Task, attach, exec, forward};
use crate::pod::Pods;

/// Streams at a time. Each holds a few descriptors and buffers; further ones are refused, and keep their tokens.
const STREAMS_MAX: usize = 1024;

/// For TLS, and then for the request and its answer. Our clients are on this machine or near it and take some
/// milliseconds.
const HELLO_WAIT: Duration = Duration::from_secs(5);

/// Bytes of all request headers. hyper refuses more with 431.
const HEADERS_BYTES_MAX: usize = 64 << 10;

/// After a failure to accept (EMFILE, ENFILE): long enough not to spin, short enough not to be noticed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// For clients to be told that the daemon stops; whoever is slower is cut off.
const GOODBYE_WAIT: Duration = Duration::from_secs(2);

/// What the configuration says about streams.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// Port 0 lets the kernel choose.
    pub listen: SocketAddr,
    pub tls: Option<TlsFiles>,
    /// A connection on which no data moves for so long is closed.
    pub idle_timeout: Duration,
}

/// Why streams cannot be served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServerError {
    #[error("cannot listen for streams on {address}; give [stream] listen another address")]
    Listen {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error("cannot serve streams with TLS")]
    Tls(#[from] TlsError),
}

/// A socket that listens; connections queue until [`Server::serve`].
#[derive(Debug)]
pub(crate) struct Server {
    listener: TcpListener,
    tls: Option<Arc<Tls>>,
    idle_timeout: Duration,
    streams: Streams,
}

/// Listens. Blocking for three small files if there is TLS. Must be called within the async runtime.
pub(crate) async fn bind(settings: Settings, pods: Pods) -> Result<Server, ServerError> {
    let failed = |source| ServerError::Listen { address: settings.listen, source };
    let tls = settings.tls.map(Tls::open).transpose()?.map(Arc::new);
    let listener = TcpListener::bind(settings.listen).await.map_err(failed)?;
    let address = reachable(listener.local_addr().map_err(failed)?);
    let inner = Inner { pods, tickets: Tickets::default(), address, tls: tls.is_some() };
    Ok(Server { listener, tls, idle_timeout: settings.idle_timeout, streams: Streams(Arc::new(inner)) })
}

/// An address that a client on this machine can connect to: a server on all addresses is told by loopback.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

impl Server {
    pub(crate) fn streams(&self) -> Streams {
        self.streams.clone()
    }

    /// Serves until `stop`, then closes every connection and returns when all their work has ended.
    pub(crate) async fn serve(self, stop: CancellationToken) {
        let (greetings, work) = (Greetings::default(), TaskTracker::new());
        let places = Arc::new(Semaphore::new(STREAMS_MAX));
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => break,
                accepted = self.listener.accept() => accepted,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection for a stream");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let connection = Connection {
                streams: self.streams.clone(),
                tls: self.tls.clone(),
                idle_timeout: self.idle_timeout,
                places: Arc::clone(&places),
                stop: stop.clone(),
            };
            work.spawn(connection.serve(stream, greetings.begin()));
        }
        drop(self.listener);
        work.close();
        work.wait().await;
    }
}

/// What every connection needs.
#[derive(Debug, Clone)]
struct Connection {
    streams: Streams,
    tls: Option<Arc<Tls>>,
    idle_timeout: Duration,
    /// For streams.
    places: Arc<Semaphore>,
    stop: CancellationToken,
}

impl Connection {
    async fn serve(self, stream: TcpStream, greeting: Greeting) {
        // Keystrokes and their echoes are small and must not wait for each other.
        stream.set_nodelay(true).ok();
        match self.tls.clone() {
            None => self.http(stream, &greeting).await,
            Some(tls) => {
                let config = crate::task::blocking(move || tls.current()).await;
                let accept = tokio_rustls::TlsAcceptor::from(config).accept(stream);
                let accepted = tokio::select! {
                    accepted = tokio::time::timeout(HELLO_WAIT, accept) => accepted,
                    () = greeting.displaced() => return displaced(),
                    () = self.stop.cancelled() => return,
                };
                match accepted {
                    Ok(Ok(stream)) => self.http(stream, &greeting).await,
                    Ok(Err(error)) => {
                        tracing::debug!(%error, "a client of the streaming server failed at TLS")
                    }
                    Err(_) => tracing::debug!("a client of the streaming server was silent at TLS"),
                }
            }
        }
    }

    /// One request, and what becomes of its connection.
    async fn http(self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, greeting: &Greeting) {
        let (stop, idle_timeout) = (self.stop.clone(), self.idle_timeout);
        let activity = Activity::begin();
        // What an upgraded connection is for.
        let begun = Mutex::new(None);
        let service = service_fn(|request: Request<Incoming>| {
            let (answer, work) = match self.answer(request, activity.clone()) {
                Ok((answer, work)) => {
                    greeting.over();
                    (answer, Some(work))
                }
                Err(refusal) => (*refusal, None),
            };
            // One connection carries one stream: after an upgrade there is no second request, and after a refusal none.
            *lock(&begun) = work;
            std::future::ready(Ok::<_, Infallible>(answer))
        });
        let served = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HELLO_WAIT)
            .max_buf_size(HEADERS_BYTES_MAX)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades();
        let whole = async {
            tokio::select! {
                served = tokio::time::timeout(HELLO_WAIT, served) => match served {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => tracing::debug!(%error, "a client of the streaming server failed at HTTP"),
                    Err(_) => {
                        tracing::debug!("a client of the streaming server was silent at HTTP");
                        return;
                    }
                },
                () = greeting.displaced() => return displaced(),
                () = stop.cancelled() => return,
            }
            let work = lock(&begun).take();
            if let Some(work) = work {
                work.await;
            }
        };
        tokio::select! {
            () = whole => {}
            () = activity.idle_for(idle_timeout) => tracing::info!("a stream is closed: no data moved for {idle_timeout:?}"),
            () = async { stop.cancelled().await; tokio::time::sleep(GOODBYE_WAIT).await } => {}
        }
    }
}

fn displaced() {
    tracing::debug!("a client of the streaming server gives way to newer ones: it has shown no token");
}

type Work = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

impl Connection {
    /// The answer to a request, and what is to be done after the upgrade.
    fn answer(
        &self,
        mut request: Request<Incoming>,
        activity: Activity,
    ) -> Result<(Answer, Work), Box<Answer>> {
        let not_found = || refusal(StatusCode::NOT_FOUND, "no stream is waiting under this URL");
        if request.method() != Method::GET && request.method() != Method::POST {
            return Err(refusal(StatusCode::METHOD_NOT_ALLOWED, "a stream is asked for by GET or POST"));
        }
        let path = request.uri().path();
        let Some((verb, token)) = path.strip_prefix('/').and_then(|path| path.split_once('/')) else {
            return Err(not_found());
        };
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            let said = format!("{STREAMS_MAX} streams are open already; close some and try again");
            return Err(refusal(StatusCode::SERVICE_UNAVAILABLE, &said));
        };
        let task = self.streams.0.tickets.redeem(token, Instant::now()).ok_or_else(not_found)?;
        if task.verb() != verb {
            return Err(not_found());
        }
        let offer = match &task {
            Task::Exec { .. } | Task::Attach { .. } => super::session::OFFER,
            Task::Forward { .. } => forward::OFFER,
        };
        let (agreed, answer) = negotiate(&request, offer)?;
        if let (Task::Forward { ports, .. }, Agreed::WebSocket(protocol)) = (&task, &agreed)
            && ports.is_empty()
            && *protocol != TUNNEL
        {
            let said = "the request for this URL named no port, which a WebSocket client needs";
            return Err(refusal(StatusCode::BAD_REQUEST, said));
        }
        let (pods, stop) = (self.streams.0.pods.clone(), self.stop.clone());
        let upgrade = hyper::upgrade::on(&mut request);
        let work = Box::pin(async move {
            match upgrade.await {
                Ok(upgraded) => {
                    let io = TokioIo::new(upgraded);
                    run(pods, task, Client { agreed, io, activity }, &stop).await;
                }
                Err(error) => tracing::debug!(%error, "a stream's client went away at the upgrade"),
            }
            drop(place);
        });
        Ok((answer, work))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn run(pods: Pods, task: Task, client: Client, stop: &CancellationToken) {
    match task {
        Task::Exec { container, options } => exec::run(&pods, &container, options, client, stop).await,
        Task::Attach { container, streams } => attach::run(&pods, &container, streams, client, stop).await,
        Task::Forward { pod, ports } => forward::run(&pods, &pod, &ports, client, stop).await,
    }
}
