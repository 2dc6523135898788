//! HTTP to one host: hyper with the host's own TLS settings. Knows nothing of registries or their credentials.
//!
//! ```text
//! https://registry ─▶ the host's TLS ─▶ Way ─▶ TCP                       directly
//!                                        ├───▶ TCP ─▶ CONNECT            through a proxy: what it carries is TLS to the host
//! http://registry ─────────────────────▶ └───▶ TCP ─▶ absolute requests  through a proxy: it reads and asks itself
//! ```
//!
//! A proxy that is itself reached by TLS is held to the machine's authorities, never to the settings of the host behind it.

use std::error::Error;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header;
use hyper::rt::ReadBufCursor;
use hyper::{Request, Response, Uri};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder, MaybeHttpsStream};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use super::hosts::Tls;
use super::proxy::{Proxies, Proxy, ProxyError};

/// Idle connections kept per host: as many as layers are fetched at once by default, and one for tokens.
const IDLE_CONNECTIONS_MAX: usize = 4;
/// How long an idle connection is kept. A pull asks again within seconds or is over.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// A pool of connections that share TLS settings.
#[derive(Clone)]
pub(super) struct Transport {
    client: Client<HttpsConnector<Way>, Full<Bytes>>,
    proxies: Arc<Proxies>,
}

impl Transport {
    /// Reads no file; `roots` are the machine's own authorities.
    pub(super) fn new(
        tls: &Tls,
        roots: &RootCertStore,
        dial_timeout: Duration,
        proxies: Arc<Proxies>,
    ) -> Result<Self, rustls::Error> {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(dial_timeout));
        // HTTP/1 alone: CONNECT and absolute requests are its.
        let to_proxy = HttpsConnectorBuilder::new()
            .with_tls_config(client_config(&Tls::default(), roots)?)
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp.clone());
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(client_config(tls, roots)?)
            .https_or_http()
            .enable_all_versions()
            .wrap_connector(Way { proxies: Arc::clone(&proxies), tcp, to_proxy });
        let client = Client::builder(TokioExecutor::new())
            .pool_max_idle_per_host(IDLE_CONNECTIONS_MAX)
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_timer(TokioTimer::new())
            .build(connector);
        Ok(Self { client, proxies })
    }

    /// One request and the head of its answer. Cancel-safe; bounded by the caller's timeout.
    pub(super) async fn send(
        &self,
        mut request: Request<Full<Bytes>>,
    ) -> Result<Response<Incoming>, SendError> {
        // Inside a tunnel this header would reach the host; there the CONNECT carries it.
        if request.uri().scheme_str() == Some("http")
            && let Some(Proxy { authorization: Some(value), .. }) = self.proxies.between(request.uri())?
        {
            request.headers_mut().insert(header::PROXY_AUTHORIZATION, value.clone());
        }
        self.client.request(request).await.map_err(SendError::Client)
    }
}

/// Connects to a host, or to the proxy before it. The TLS of https hosts comes on top, whichever it was.
#[derive(Clone)]
struct Way {
    proxies: Arc<Proxies>,
    tcp: HttpConnector,
    to_proxy: HttpsConnector<HttpConnector>,
}

/// What hyper-util's connectors return, boxed.
type BoxError = Box<dyn Error + Send + Sync>;

impl tower::Service<Uri> for Way {
    type Response = Line;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Line, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        // Neither connector has a limit of its own that it could wait for.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        let mut way = self.clone();
        Box::pin(async move {
            let Some(proxy) = way.proxies.between(&to)? else {
                let stream = MaybeHttpsStream::Http(way.tcp.call(to).await?);
                return Ok(Line { stream, asks_proxy: false });
            };
            let failed = |source| WayError { proxy: proxy.uri.clone(), source };
            if to.scheme_str() == Some("http") {
                let stream = way.to_proxy.call(proxy.uri.clone()).await.map_err(failed)?;
                return Ok(Line { stream, asks_proxy: true });
            }
            let mut tunnel = Tunnel::new(proxy.uri.clone(), way.to_proxy);
            if let Some(value) = &proxy.authorization {
                tunnel = tunnel.with_auth(value.clone());
            }
            let stream = tunnel.call(to).await.map_err(|error| failed(error.into()))?;
            Ok(Line { stream, asks_proxy: false })
        })
    }
}

#[derive(Debug, thiserror::Error)]
#[error("go through the proxy {proxy}; the environment of brigd names it")]
struct WayError {
    proxy: Uri,
    source: BoxError,
}

/// A connection that knows whether a proxy at its other end wants absolute requests.
struct Line {
    stream: MaybeHttpsStream<TokioIo<tokio::net::TcpStream>>,
    asks_proxy: bool,
}

impl Connection for Line {
    fn connected(&self) -> Connected {
        self.stream.connected().proxy(self.asks_proxy)
    }
}

impl hyper::rt::Read for Line {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, into)
    }
}

impl hyper::rt::Write for Line {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }
}

#[derive(Debug, thiserror::Error)]
pub(super) enum SendError {
    #[error(transparent)]
    Client(hyper_util::client::legacy::Error),
    #[error(transparent)]
    Proxy(#[from] ProxyError),
}

impl SendError {
    /// The other side accepted the connection and does not speak TLS. A certificate that does not verify is not this:
    /// that must never lead to plain HTTP.
    pub(super) fn is_not_tls(&self) -> bool {
        let Self::Client(client) = self else { return false };
        let mut cause: Option<&(dyn Error + 'static)> = Some(client);
        while let Some(error) = cause {
            if let Some(tls) = error.downcast_ref::<rustls::Error>() {
                return matches!(tls, rustls::Error::InvalidMessage(_));
            }
            cause = error.source();
            if let Some(io) = error.downcast_ref::<io::Error>() {
                let hung_up =
                    matches!(io.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset);
                if client.is_connect() && hung_up {
                    return true;
                }
                // io::Error's source() is the source of what it wraps and not the wrapped error itself.
                if let Some(inner) = io.get_ref() {
                    cause = Some(inner);
                }
            }
        }
        false
    }
}

fn client_config(tls: &Tls, roots: &RootCertStore) -> Result<ClientConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder =
        ClientConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions()?;
    let builder = if tls.skip_verify {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
    } else {
        let mut roots = roots.clone();
        for authority in &tls.authorities {
            roots.add(authority.clone())?;
        }
        builder.with_root_certificates(roots)
    };
    match &tls.client {
        Some((chain, key)) => builder.with_client_auth_cert(chain.clone(), key.clone_key()),
        None => Ok(builder.with_no_client_auth()),
    }
}

/// The machine's certificate authorities. Blocks on files; one that does not parse is left out, as OpenSSL does.
pub(super) fn machine_roots() -> RootCertStore {
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::debug!(%error, "certificate authority left out");
    }
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    roots
}

/// `skip_verify`: any certificate will do, but the handshake must still be signed with its key.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
