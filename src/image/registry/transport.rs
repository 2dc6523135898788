//! HTTP to one host: hyper with the host's own TLS settings. Knows nothing of registries or credentials.

use std::error::Error;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::{Request, Response};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use super::hosts::Tls;

/// Idle connections kept per host: as many as layers are fetched at once by default, and one for tokens.
const IDLE_CONNECTIONS_MAX: usize = 4;
/// How long an idle connection is kept. A pull asks again within seconds or is over.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// A pool of connections that share TLS settings.
#[derive(Clone)]
pub(super) struct Transport {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
}

impl Transport {
    /// Reads no file; `roots` are the machine's own authorities.
    pub(super) fn new(
        tls: &Tls,
        roots: &RootCertStore,
        dial_timeout: Duration,
    ) -> Result<Self, rustls::Error> {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(dial_timeout));
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(client_config(tls, roots)?)
            .https_or_http()
            .enable_all_versions()
            .wrap_connector(tcp);
        let client = Client::builder(TokioExecutor::new())
            .pool_max_idle_per_host(IDLE_CONNECTIONS_MAX)
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_timer(TokioTimer::new())
            .build(connector);
        Ok(Self { client })
    }

    /// One request and the head of its answer. Cancel-safe; bounded by the caller's timeout.
    pub(super) async fn send(&self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, SendError> {
        self.client.request(request).await.map_err(SendError)
    }
}

#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub(super) struct SendError(hyper_util::client::legacy::Error);

impl SendError {
    /// The other side accepted the connection and does not speak TLS. A certificate that does not verify is not this:
    /// that must never lead to plain HTTP.
    pub(super) fn is_not_tls(&self) -> bool {
        let mut cause: Option<&(dyn Error + 'static)> = Some(&self.0);
        while let Some(error) = cause {
            if let Some(tls) = error.downcast_ref::<rustls::Error>() {
                return matches!(tls, rustls::Error::InvalidMessage(_));
            }
            cause = error.source();
            if let Some(io) = error.downcast_ref::<io::Error>() {
                let hung_up =
                    matches!(io.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset);
                if self.0.is_connect() && hung_up {
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
