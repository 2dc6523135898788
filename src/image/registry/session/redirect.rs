//! Following redirects: to which host a request goes, and with what.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use hyper::body::Incoming;
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Response, StatusCode, Uri};

use super::{Ask, Peer, SendFailure, Session, request, roots};
use crate::image::registry::RegistryError;
use crate::image::registry::hosts::{self, Origin};
use crate::image::registry::token;
use crate::image::registry::transport::Transport;

/// Redirects followed for one request. Real registries need one, to their blob storage.
const REDIRECTS_MAX: usize = 5;

/// The way to a host that is not an endpoint.
pub(super) struct Other {
    pub(super) transport: Transport,
    pub(super) plain_allowed: bool,
}

impl Session {
    /// Sends a request and follows redirects, with credentials only while the origin is the endpoint's own.
    pub(super) async fn follow(
        &self,
        peer: &Peer,
        ask: &Ask<'_>,
        authorization: Option<&HeaderValue>,
    ) -> Result<Response<Incoming>, RegistryError> {
        let refused = |problem: String| RegistryError::Redirect {
            what: ask.what.to_owned(),
            endpoint: peer.endpoint.origin.to_string(),
            problem,
        };
        let mut target: Option<(Uri, Origin)> = None;
        for _ in 0..=REDIRECTS_MAX {
            let own = peer.origin();
            let (response, sent_to) = match &target {
                Some((uri, origin)) if *origin != own => {
                    let other = self.other(origin)?;
                    let request = request(uri, ask, HeaderMap::new());
                    (self.send(&other.transport, request, ask.what, origin).await?, uri.clone())
                }
                _ => {
                    let mut headers = HeaderMap::new();
                    for (name, value) in &peer.endpoint.headers {
                        headers.append(name, value.clone());
                    }
                    if let Some(value) = authorization {
                        headers.insert(header::AUTHORIZATION, value.clone());
                    }
                    let uri = target.as_ref().map(|(uri, _)| uri.clone());
                    self.send_to_peer(peer, ask, uri, headers).await?
                }
            };
            if !response.status().is_redirection() || response.status() == StatusCode::NOT_MODIFIED {
                return Ok(response);
            }
            let location = response.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
            let location = location.ok_or_else(|| refused("it has no readable Location".to_owned()))?;
            let uri =
                join(&sent_to, location).ok_or_else(|| refused("its Location is not a URL".to_owned()))?;
            let origin = Origin::of(&uri).ok_or_else(|| {
                refused("its Location is not an http or https URL without a user name".to_owned())
            })?;
            let from = Origin::of(&sent_to).unwrap_or_else(|| peer.origin());
            if origin.is_loopback() && !from.is_loopback() {
                return Err(refused(format!("{origin} is this machine, and {from} is not")));
            }
            if from.https && !origin.https && !origin.is_loopback() && !self.other(&origin)?.plain_allowed {
                return Err(refused(format!(
                    "{origin} is plain HTTP; if that is wanted, give it a hosts.toml with an http:// server"
                )));
            }
            target = Some((uri, origin));
        }
        Err(refused(format!("more than {REDIRECTS_MAX} in a row")))
    }

    /// Sends to the endpoint itself, at its own address for this request or at one that it redirected to.
    async fn send_to_peer(
        &self,
        peer: &Peer,
        ask: &Ask<'_>,
        uri: Option<Uri>,
        headers: HeaderMap,
    ) -> Result<(Response<Incoming>, Uri), RegistryError> {
        let at = |origin: &Origin| match &uri {
            Some(uri) => uri.clone(),
            None => {
                let ns = if peer.endpoint.is_server {
                    String::new()
                } else {
                    format!("?{}", token::form(&[("ns", self.domain())]))
                };
                let path = format!("{}/{}{}{ns}", peer.endpoint.prefix, self.reference.path(), ask.tail);
                let text = format!("{origin}{path}");
                text.parse()
                    .expect("an origin, a parsed prefix, a reference's path and a digest or tag are a URL")
            }
        };
        let origin = peer.origin();
        let target = at(&origin);
        let sent =
            self.try_send(&peer.transport, request(&target, ask, headers.clone()), ask.what, &origin).await;
        match sent {
            Err(SendFailure::NotTls(_)) if origin.https && peer.endpoint.plain_fallback => {
                peer.plain.store(true, Ordering::Relaxed);
                let origin = peer.origin();
                let target = at(&origin);
                let response =
                    self.send(&peer.transport, request(&target, ask, headers), ask.what, &origin).await?;
                Ok((response, target))
            }
            sent => Ok((sent.map_err(SendFailure::into_error)?, target)),
        }
    }

    /// The transport to a host that is not an endpoint, with the settings that hosts.toml has for exactly that host.
    pub(super) fn other(&self, origin: &Origin) -> Result<Arc<Other>, RegistryError> {
        let mut others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(other) = others.get(origin) {
            return Ok(Arc::clone(other));
        }
        let settings = hosts::settings_for(&self.config.certs_dirs, origin).map_err(|source| {
            RegistryError::Settings { domain: origin.authority(), source: Arc::new(source) }
        })?;
        let (tls, dial_timeout, plain_allowed) = match settings {
            Some(endpoint) => (endpoint.tls, endpoint.dial_timeout, endpoint.plain_allowed),
            None => (hosts::Tls::default(), hosts::DIAL_TIMEOUT, origin.is_loopback()),
        };
        let proxies = Arc::clone(&self.config.proxies);
        let transport = Transport::new(&tls, roots(), dial_timeout, proxies).map_err(|source| {
            RegistryError::Tls { endpoint: origin.to_string(), source: Arc::new(source) }
        })?;
        let other = Arc::new(Other { transport, plain_allowed });
        others.insert(origin.clone(), Arc::clone(&other));
        Ok(other)
    }
}

/// A `Location` seen from the URL that sent it: absolute, or starting with `//` or `/`.
fn join(base: &Uri, location: &str) -> Option<Uri> {
    let location = location.split('#').next()?;
    if location.contains("://") && !location.starts_with('/') {
        return location.parse().ok();
    }
    let scheme = base.scheme_str()?;
    if let Some(rest) = location.strip_prefix("//") {
        return format!("{scheme}://{rest}").parse().ok();
    }
    let authority = base.authority()?;
    if location.starts_with('/') {
        return format!("{scheme}://{authority}{location}").parse().ok();
    }
    let (folder, _) = base.path().rsplit_once('/')?;
    format!("{scheme}://{authority}{folder}/{location}").parse().ok()
}
