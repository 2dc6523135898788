//! One pull's conversation with a registry: endpoints in order, credentials, redirects, retries.
//!
//! ```text
//! mod.rs        documents and blobs, from which endpoint, how often
//! redirect.rs   to which host a request goes, and with what
//! authorize.rs  credentials, challenges, tokens
//! ```
//!
//! Which host sees a credential is decided in this folder alone:
//!
//! - an `Authorization` header, and the headers of hosts.toml, go to the endpoint's own origin (scheme, host, port);
//!   a redirect to anywhere else is followed without them;
//! - the request's credential goes to the registry's own server, or to a mirror that its `server_address` names;
//!   credentials of Docker's config files go to the host they were written for;
//! - nothing secret is sent in plain text unless the operator configured that host so, or it is this machine;
//! - the token server that a challenge names is held to the rule in `registry/token.rs`.

mod authorize;
mod redirect;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Request, Response, StatusCode, Uri};
use rustls::RootCertStore;
use sha2::{Digest as _, Sha256};

use super::auth::{Auth, Credential};
use super::hosts::{self, Endpoint, Origin};
use super::manifest::{self, DOCUMENT_BYTES_MAX, Descriptor};
use super::platform::Platform;
use super::transport::{Transport, machine_roots};
use super::{Blob, Proxies, RegistryError};
use crate::id::Digest;
use crate::image::reference::Reference;
use crate::task::chain;

use authorize::{Authorization, credential_for};
use redirect::Other;

/// Longest text of a registry's error that ends up in ours.
const MESSAGE_CHARS_MAX: usize = 300;
/// Most bytes of an error's body that are read to find that text.
const ERROR_BODY_BYTES_MAX: u64 = 16 << 10;
/// The longest `Retry-After` that is honoured; whoever wants longer is unavailable.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(10);
/// Indexes inside an index: nested ones exist, deep ones do not.
const INDEX_DEPTH_MAX: usize = 3;

/// What all pulls share: where settings lie, and bounds.
#[derive(Debug, Clone)]
pub(crate) struct RegistryConfig {
    /// Directories of `<host>/hosts.toml`; the first that has the host counts.
    pub(crate) certs_dirs: Vec<PathBuf>,
    /// Docker config.json files.
    pub(crate) auth_files: Vec<PathBuf>,
    /// Pairs of a registry's host and a token server's that belong together.
    pub(crate) token_realms: Vec<(String, String)>,
    pub(crate) proxies: Arc<Proxies>,
    pub(crate) limits: Limits,
}

/// Bounds on a registry's behaviour.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    /// The longest silence.
    pub(crate) stall_timeout: Duration,
    /// Tries of one request, and of a blob between two megabytes that arrive.
    pub(crate) attempts: u32,
    /// The wait before the second try; it doubles each time.
    pub(crate) backoff: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        // A minute: object storage answers in milliseconds, and the kubelet's own deadline for a pull is minutes.
        Self { stall_timeout: Duration::from_secs(60), attempts: 4, backoff: Duration::from_millis(250) }
    }
}

/// A manifest or index as its registry served it, verified.
#[derive(Debug, Clone)]
pub(crate) struct Document {
    pub(crate) bytes: Bytes,
    pub(crate) digest: Digest,
    pub(crate) document: manifest::Document,
}

/// One pull's view of a registry. Share it by `Arc`; it lives no longer than the pull, so changed settings and revoked
/// credentials take effect with the next one.
pub(crate) struct Session {
    config: Arc<RegistryConfig>,
    reference: Reference,
    peers: Vec<Peer>,
    /// Transports to the hosts of redirects and token servers.
    others: Mutex<HashMap<Origin, Arc<Other>>>,
}

struct Peer {
    endpoint: Endpoint,
    transport: Transport,
    credential: Option<Credential>,
    /// Turned on when a loopback endpoint turned out not to speak TLS.
    plain: AtomicBool,
    /// It did not answer once; asked again only when there is nobody else.
    dead: AtomicBool,
    /// Held while a token is being fetched, so that parallel layers fetch one.
    authorization: tokio::sync::Mutex<Option<Authorization>>,
}

/// A request by what it asks for.
#[derive(Clone)]
pub(super) struct Ask<'a> {
    /// For messages: `manifest latest`, `blob sha256:…`.
    pub(super) what: &'a str,
    /// After the repository: `/manifests/latest`.
    pub(super) tail: &'a str,
    pub(super) accept: &'static str,
    /// First byte wanted.
    pub(super) from: u64,
}

impl Session {
    /// Reads settings and credentials as they are now; opens no connection.
    pub(crate) async fn open(
        config: Arc<RegistryConfig>,
        reference: Reference,
        auth: Option<&Auth>,
    ) -> Result<Self, RegistryError> {
        let domain = reference.domain().to_owned();
        let endpoints = {
            let (config, host) = (Arc::clone(&config), domain.clone());
            tokio::task::spawn_blocking(move || {
                let endpoints = hosts::endpoints(&config.certs_dirs, &host);
                // Here too because it reads files, and its first call takes milliseconds.
                roots();
                endpoints
            })
            .await
            .expect("reading settings does not panic")
            .map_err(|source| RegistryError::Settings { domain: domain.clone(), source: Arc::new(source) })?
        };
        let mut peers = Vec::with_capacity(endpoints.len());
        for endpoint in endpoints {
            let credential = credential_for(&config, &reference, auth, &endpoint).await?;
            let proxies = Arc::clone(&config.proxies);
            let transport =
                Transport::new(&endpoint.tls, roots(), endpoint.dial_timeout, proxies).map_err(|source| {
                    RegistryError::Tls { endpoint: endpoint.origin.to_string(), source: Arc::new(source) }
                })?;
            peers.push(Peer {
                endpoint,
                transport,
                credential,
                plain: AtomicBool::new(false),
                dead: AtomicBool::new(false),
                authorization: tokio::sync::Mutex::new(None),
            });
        }
        Ok(Self { config, reference, peers, others: Mutex::default() })
    }

    /// What the reference means: the document by its digest, or by its tag.
    pub(crate) async fn resolve(&self) -> Result<Document, RegistryError> {
        match (self.reference.digest(), self.reference.tag()) {
            (Some(digest), _) => self.document(digest.as_str(), Some(digest), None).await,
            (None, tag) => self.document(tag.unwrap_or("latest"), None, None).await,
        }
    }

    /// Follows indexes from `top` to the one image that suits the platform best.
    pub(crate) async fn select(&self, top: Document, wanted: &Platform) -> Result<Document, RegistryError> {
        let mut document = top;
        for _ in 0..=INDEX_DEPTH_MAX {
            let manifest::Document::Index(entries) = &document.document else { return Ok(document) };
            let Some(entry) = manifest::choose(entries, wanted) else {
                return Err(RegistryError::NoPlatform {
                    what: self.reference.to_string(),
                    wanted: wanted.clone(),
                    offered: offered(entries),
                });
            };
            let (digest, descriptor) = (entry.digest.clone(), entry.clone());
            document = self.document(digest.as_str(), Some(&digest), Some(&descriptor)).await?;
        }
        Err(RegistryError::Verification {
            what: format!("index of {}", self.reference),
            endpoint: self.reference.domain().to_owned(),
            problem: format!("indexes are nested more than {INDEX_DEPTH_MAX} deep"),
        })
    }

    /// A whole small blob, verified: the config.
    pub(crate) async fn small_blob(
        self: &Arc<Self>,
        digest: &Digest,
        size: u64,
    ) -> Result<Vec<u8>, RegistryError> {
        let mut blob = self.blob(digest, size);
        if size > DOCUMENT_BYTES_MAX {
            return Err(
                blob.wrong(format!("its size of {size} bytes is more than the {DOCUMENT_BYTES_MAX} allowed"))
            );
        }
        let mut bytes = Vec::new();
        while let Some(chunk) = blob.chunk().await? {
            bytes.extend_from_slice(&chunk);
        }
        let found = digest_of(&bytes);
        if found != *digest {
            return Err(blob.wrong(format!("its content has digest {found}")));
        }
        Ok(bytes)
    }

    /// A blob as a stream of exactly `size` bytes; the reader checks the digest.
    pub(crate) fn blob(self: &Arc<Self>, digest: &Digest, size: u64) -> Blob {
        Blob::new(Arc::clone(self), digest, size)
    }

    pub(super) fn limits(&self) -> &Limits {
        &self.config.limits
    }

    pub(super) fn domain(&self) -> &str {
        self.reference.domain()
    }

    async fn document(
        &self,
        name: &str,
        digest: Option<&Digest>,
        descriptor: Option<&Descriptor>,
    ) -> Result<Document, RegistryError> {
        let what = format!("manifest {name} of {}", self.reference.name());
        let tail = format!("/manifests/{name}");
        let ask = Ask { what: &what, tail: &tail, accept: manifest::ACCEPT, from: 0 };
        // Whoever only serves content may not say what a tag means.
        let needed = if digest.is_some() { Needed::Pull } else { Needed::Resolve };
        let (what, ask) = (&what, &ask);
        self.first_of(needed, |peer, is_last| async move {
            let response = self.ask(peer, is_last, ask).await?;
            self.read_document(peer, what, response, digest, descriptor).await
        })
        .await
    }

    async fn read_document(
        &self,
        peer: &Peer,
        what: &str,
        response: Response<Incoming>,
        digest: Option<&Digest>,
        descriptor: Option<&Descriptor>,
    ) -> Result<Document, RegistryError> {
        let endpoint = peer.endpoint.origin.to_string();
        let wrong = |problem| RegistryError::Verification {
            what: what.to_owned(),
            endpoint: endpoint.clone(),
            problem,
        };
        let (head, body) = response.into_parts();
        let text = |name| head.headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        let bytes = self.collect(body, DOCUMENT_BYTES_MAX, what, &endpoint).await?;
        let found = digest_of(&bytes);
        if let Some(digest) = digest
            && found != *digest
        {
            return Err(wrong(format!("its content has digest {found}")));
        }
        if let Some(claimed) = text("docker-content-digest").and_then(|text| text.parse::<Digest>().ok())
            && claimed != found
        {
            return Err(wrong(format!("its header claims digest {claimed}, its content has {found}")));
        }
        if let Some(descriptor) = descriptor
            && descriptor.size != bytes.len() as u64
        {
            return Err(wrong(format!("it has {} bytes, the index says {}", bytes.len(), descriptor.size)));
        }
        let content_type = text(header::CONTENT_TYPE.as_str());
        let unusable = |source| RegistryError::Document { what: what.to_owned(), source };
        let document = manifest::parse(&bytes, content_type).map_err(unusable)?;
        if let Some(descriptor) = descriptor {
            // What the index calls it must be what it is.
            let again = manifest::parse(&bytes, Some(&descriptor.media_type)).map_err(unusable)?;
            debug_assert_eq!(again, document);
        }
        Ok(Document { bytes, digest: found, document })
    }

    /// What `attempt` gets from the first endpoint that it succeeds with; if there is none, why the last one failed.
    async fn first_of<'a, T, F>(
        &'a self,
        needed: Needed,
        attempt: impl Fn(&'a Peer, bool) -> F,
    ) -> Result<T, RegistryError>
    where
        F: Future<Output = Result<T, RegistryError>>,
    {
        let mut failure = None;
        for (peer, is_last) in self.candidates(needed)? {
            match attempt(peer, is_last).await {
                Ok(found) => return Ok(found),
                Err(error) if is_last => failure = Some(error),
                Err(error) => {
                    tracing::warn!(endpoint = %peer.endpoint.origin, error = %chain(&error), "trying the next endpoint");
                }
            }
        }
        Err(failure.expect("candidates has a last one"))
    }

    /// The endpoints that may serve this, live ones first; the flag marks the last.
    fn candidates(&self, needed: Needed) -> Result<Vec<(&Peer, bool)>, RegistryError> {
        let fits = |peer: &&Peer| match needed {
            Needed::Pull => peer.endpoint.pull,
            Needed::Resolve => peer.endpoint.resolve,
        };
        let mut peers: Vec<&Peer> = self.peers.iter().filter(fits).collect();
        peers.sort_by_key(|peer| peer.dead.load(Ordering::Relaxed));
        let last = peers.len().saturating_sub(1);
        if peers.is_empty() {
            let capability = match needed {
                Needed::Pull => "pull",
                Needed::Resolve => "resolve",
            };
            return Err(RegistryError::NoEndpoint { domain: self.domain().to_owned(), capability });
        }
        Ok(peers.into_iter().enumerate().map(|(at, peer)| (peer, at == last)).collect())
    }

    /// The head of a blob's answer from the first endpoint that has it, and that endpoint's name.
    pub(super) async fn ask_for_blob(
        &self,
        ask: &Ask<'_>,
    ) -> Result<(Response<Incoming>, String), RegistryError> {
        self.first_of(Needed::Pull, |peer, is_last| async move {
            let response = self.ask(peer, is_last, ask).await?;
            Ok((response, peer.endpoint.origin.to_string()))
        })
        .await
    }

    /// One request to one endpoint. An endpoint with a successor is asked once, the last one several times.
    async fn ask(
        &self,
        peer: &Peer,
        is_last: bool,
        ask: &Ask<'_>,
    ) -> Result<Response<Incoming>, RegistryError> {
        let limits = self.limits();
        let attempts = if is_last { limits.attempts } else { 1 };
        let mut wait = limits.backoff;
        for attempt in 1.. {
            let error = match self.ask_once(peer, ask).await {
                Ok(response) => return Ok(response),
                Err(error) => error,
            };
            if error.is_dead_host() {
                peer.dead.store(true, Ordering::Relaxed);
            }
            if !error.is_transient() || attempt >= attempts {
                return Err(error);
            }
            let asked = match &error {
                RegistryError::Unavailable { retry_after: Some(asked), .. } if *asked > RETRY_AFTER_MAX => {
                    return Err(error);
                }
                RegistryError::Unavailable { retry_after, .. } => retry_after.unwrap_or_default(),
                _ => Duration::ZERO,
            };
            tokio::time::sleep(wait.max(asked)).await;
            wait *= 2;
        }
        unreachable!("the loop has no end but its returns")
    }

    /// One request with whatever it takes: authorization, a second one if the first is refused, redirects.
    async fn ask_once(&self, peer: &Peer, ask: &Ask<'_>) -> Result<Response<Incoming>, RegistryError> {
        let mut refused: Option<HeaderValue> = None;
        // Once without or with what we have, once with what the challenge asks for, once more if that had expired.
        for _ in 0..3 {
            let authorization = peer.usable_authorization().await;
            let response = self.follow(peer, ask, authorization.as_ref()).await?;
            let (status, endpoint) = (response.status(), peer.endpoint.origin.to_string());
            match status {
                StatusCode::OK | StatusCode::PARTIAL_CONTENT => return Ok(response),
                StatusCode::UNAUTHORIZED if authorization.is_none() || authorization != refused => {
                    let fresh = self.authorize(peer, ask, response.headers(), authorization.as_ref()).await?;
                    if Some(&fresh) == authorization.as_ref() {
                        return Err(self.failed(ask, endpoint, response).await);
                    }
                    refused = authorization;
                }
                _ => return Err(self.failed(ask, endpoint, response).await),
            }
        }
        Err(RegistryError::Unauthorized {
            what: ask.what.to_owned(),
            endpoint: peer.endpoint.origin.to_string(),
            message: "it refuses the token that its own token server gave".to_owned(),
        })
    }

    async fn send(
        &self,
        transport: &Transport,
        request: Request<Full<Bytes>>,
        what: &str,
        origin: &Origin,
    ) -> Result<Response<Incoming>, RegistryError> {
        self.try_send(transport, request, what, origin).await.map_err(SendFailure::into_error)
    }

    async fn try_send(
        &self,
        transport: &Transport,
        request: Request<Full<Bytes>>,
        what: &str,
        origin: &Origin,
    ) -> Result<Response<Incoming>, SendFailure> {
        let after = self.limits().stall_timeout;
        match tokio::time::timeout(after, transport.send(request)).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => {
                let not_tls = error.is_not_tls();
                let error = RegistryError::Unreachable {
                    what: what.to_owned(),
                    endpoint: origin.to_string(),
                    source: Arc::new(error),
                };
                Err(if not_tls { SendFailure::NotTls(error) } else { SendFailure::Failed(error) })
            }
            Err(_) => Err(SendFailure::Failed(RegistryError::Stalled {
                what: what.to_owned(),
                endpoint: origin.to_string(),
                after,
            })),
        }
    }

    /// Reads a body that must be small.
    async fn collect(
        &self,
        mut body: Incoming,
        max: u64,
        what: &str,
        endpoint: &str,
    ) -> Result<Bytes, RegistryError> {
        let after = self.limits().stall_timeout;
        let mut bytes = Vec::new();
        loop {
            let frame = match tokio::time::timeout(after, body.frame()).await {
                Ok(None) => return Ok(Bytes::from(bytes)),
                Ok(Some(Ok(frame))) => frame,
                Ok(Some(Err(source))) => {
                    return Err(RegistryError::Unreachable {
                        what: what.to_owned(),
                        endpoint: endpoint.to_owned(),
                        source: Arc::new(source),
                    });
                }
                Err(_) => {
                    return Err(RegistryError::Stalled {
                        what: what.to_owned(),
                        endpoint: endpoint.to_owned(),
                        after,
                    });
                }
            };
            let Ok(data) = frame.into_data() else { continue };
            if bytes.len() as u64 + data.len() as u64 > max {
                return Err(RegistryError::Verification {
                    what: what.to_owned(),
                    endpoint: endpoint.to_owned(),
                    problem: format!("it is larger than {max} bytes"),
                });
            }
            bytes.extend_from_slice(&data);
        }
    }

    /// Turns an answer that is not a success into an error with what the registry says about it.
    async fn failed(&self, ask: &Ask<'_>, endpoint: String, response: Response<Incoming>) -> RegistryError {
        let what = ask.what.to_owned();
        let status = response.status();
        let retry_after = response
            .headers()
            .get(header::RETRY_AFTER)
            .and_then(|value| value.to_str().ok()?.trim().parse().ok())
            .map(Duration::from_secs);
        let body = self.collect(response.into_body(), ERROR_BODY_BYTES_MAX, &what, &endpoint).await;
        let message = error_message(&body.unwrap_or_default());
        match status {
            StatusCode::NOT_FOUND => RegistryError::NotFound { what, endpoint, message },
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                RegistryError::Unauthorized { what, endpoint, message }
            }
            StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => {
                RegistryError::Unavailable { what, endpoint, message, retry_after }
            }
            _ if status.is_server_error() => {
                let message =
                    if message.is_empty() { status.to_string() } else { format!("{status}: {message}") };
                RegistryError::Unavailable { what, endpoint, message, retry_after }
            }
            _ => RegistryError::Status { what, endpoint, status: status.as_u16(), message },
        }
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("reference", &self.reference).finish_non_exhaustive()
    }
}

#[derive(Clone, Copy)]
enum Needed {
    Pull,
    Resolve,
}

enum SendFailure {
    NotTls(RegistryError),
    Failed(RegistryError),
}

impl SendFailure {
    fn into_error(self) -> RegistryError {
        match self {
            Self::NotTls(error) | Self::Failed(error) => error,
        }
    }
}

impl Peer {
    /// The endpoint's origin with the scheme that is really spoken.
    fn origin(&self) -> Origin {
        let mut origin = self.endpoint.origin.clone();
        if self.plain.load(Ordering::Relaxed) {
            origin.https = false;
        }
        origin
    }
}

const USER_AGENT: &str = concat!("brig/", env!("CARGO_PKG_VERSION"));

fn request(uri: &Uri, ask: &Ask<'_>, headers: HeaderMap) -> Request<Full<Bytes>> {
    let mut request = Request::new(Full::new(Bytes::new()));
    *request.uri_mut() = uri.clone();
    *request.headers_mut() = headers;
    let headers = request.headers_mut();
    headers.insert(header::USER_AGENT, HeaderValue::from_static(USER_AGENT));
    headers.insert(header::ACCEPT, HeaderValue::from_static(ask.accept));
    // A transfer that is packed once more would have another digest.
    headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    if ask.from > 0 {
        let range = format!("bytes={}-", ask.from);
        headers.insert(header::RANGE, HeaderValue::try_from(range).expect("digits are header characters"));
    }
    request
}

fn roots() -> &'static RootCertStore {
    // Once per process, as Go's crypto/x509 does, whose users are used to restart after changing the machine's trust.
    static ROOTS: OnceLock<RootCertStore> = OnceLock::new();
    ROOTS.get_or_init(machine_roots)
}

fn digest_of(bytes: &[u8]) -> Digest {
    Digest::from_bytes(&Sha256::digest(bytes).into())
}

/// The platforms of an index, for the message that none of them fits.
fn offered(entries: &[Descriptor]) -> String {
    let mut names: Vec<String> =
        entries.iter().filter_map(|entry| entry.platform.as_ref()).map(Platform::to_string).collect();
    names.sort();
    names.dedup();
    names.retain(|name| name != "unknown/unknown");
    names.truncate(32);
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

/// The first message of the distribution specification's error document, cleaned for a log line.
fn error_message(body: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Errors {
        errors: Vec<Entry>,
    }
    #[derive(serde::Deserialize)]
    struct Entry {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let Ok(parsed) = serde_json::from_slice::<Errors>(body) else { return String::new() };
    let Some(first) = parsed.errors.first() else { return String::new() };
    let text = match (first.code.as_str(), first.message.as_str()) {
        (code, "") => code.to_owned(),
        ("", message) => message.to_owned(),
        (code, message) => format!("{code}: {message}"),
    };
    text.chars().filter(|c| !c.is_control()).take(MESSAGE_CHARS_MAX).collect()
}
