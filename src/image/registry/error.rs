//! What can go wrong between us and a registry, by what the caller can do about it.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use super::auth::AuthError;
use super::hosts::HostsError;
use super::manifest::DocumentError;
use super::platform::Platform;

/// Why something could not be had from a registry. Cloned to everybody who waits for the same pull.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum RegistryError {
    #[error("read the settings of registry {domain}")]
    Settings { domain: String, source: Arc<HostsError> },
    #[error("set up TLS for {endpoint}")]
    Tls { endpoint: String, source: Arc<rustls::Error> },
    #[error("find a credential for {host}")]
    Credential { host: String, source: Arc<AuthError> },
    #[error("no endpoint of registry {domain} may {capability}; see its hosts.toml")]
    NoEndpoint { domain: String, capability: &'static str },
    #[error("{what}: not found at {endpoint}{}", detail(.message))]
    NotFound { what: String, endpoint: String, message: String },
    #[error("{what}: {endpoint} refuses access{}", detail(.message))]
    Unauthorized { what: String, endpoint: String, message: String },
    #[error("{what}: {endpoint} cannot be reached")]
    Unreachable { what: String, endpoint: String, source: Arc<dyn Error + Send + Sync> },
    #[error("{what}: {endpoint} is unavailable{}", detail(.message))]
    Unavailable { what: String, endpoint: String, message: String, retry_after: Option<Duration> },
    #[error("{what}: {endpoint} sent nothing for {after:?}")]
    Stalled { what: String, endpoint: String, after: Duration },
    #[error("{what}: {endpoint} answered with status {status}{}", detail(.message))]
    Status { what: String, endpoint: String, status: u16, message: String },
    #[error("{what} from {endpoint} is not what it should be: {problem}")]
    Verification { what: String, endpoint: String, problem: String },
    #[error("{what} cannot be used")]
    Document { what: String, source: DocumentError },
    #[error("{what} has no image for {wanted}; it has {offered}")]
    NoPlatform { what: String, wanted: Platform, offered: String },
    #[error("{what}: redirect from {endpoint} refused: {problem}")]
    Redirect { what: String, endpoint: String, problem: String },
    #[error(
        "{endpoint} wants its credentials sent to {realm}, a host of another domain; if that is right, list it in token_realms"
    )]
    Realm { endpoint: String, realm: String },
}

fn detail(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(": {message}") }
}

impl RegistryError {
    /// Whether the same request may succeed a moment later.
    pub(super) fn is_transient(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Unavailable { .. })
    }

    /// Whether the host did not answer at all, so that asking it for the next blob is a waste of time.
    pub(super) fn is_dead_host(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Stalled { .. })
    }
}
