//! Answering a challenge: which credential an endpoint has, and the token that is got for it.

use std::sync::Arc;
use std::time::Instant;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Method, Request, StatusCode, Uri};

use super::{Ask, Peer, RegistryConfig, Session, USER_AGENT};
use crate::image::reference::Reference;
use crate::image::registry::RegistryError;
use crate::image::registry::auth::{self, Auth, Credential};
use crate::image::registry::hosts::{Endpoint, Origin};
use crate::image::registry::token::{self, Challenge, TokenAnswer};

/// What is sent to an endpoint in `Authorization`.
#[derive(Clone)]
pub(super) struct Authorization {
    header: HeaderValue,
    until: Option<Instant>,
}

impl Session {
    /// Answers a challenge: finds out what to send from now on, and remembers it.
    pub(super) async fn authorize(
        &self,
        peer: &Peer,
        ask: &Ask<'_>,
        headers: &HeaderMap,
        used: Option<&HeaderValue>,
    ) -> Result<HeaderValue, RegistryError> {
        let mut current = peer.authorization.lock().await;
        // Another layer may have renewed it while this one waited.
        if let Some(current) = current.as_ref()
            && Some(&current.header) != used
        {
            return Ok(current.header.clone());
        }
        let values = headers.get_all(header::WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
        let challenges = token::challenges(values);
        let refused = |message: &str| RegistryError::Unauthorized {
            what: ask.what.to_owned(),
            endpoint: peer.endpoint.origin.to_string(),
            message: message.to_owned(),
        };
        let bearer = challenges.iter().find_map(|challenge| match challenge {
            Challenge::Bearer { realm, service, scope } => Some((realm, service, scope)),
            Challenge::Basic => None,
        });
        let fresh = match (&peer.credential, bearer) {
            (Some(Credential::Bearer(token)), _) => Authorization {
                header: secret(&format!("Bearer {token}"))
                    .ok_or_else(|| refused("the token has characters that no header may hold"))?,
                until: None,
            },
            (_, Some((realm, service, scope))) => {
                self.fetch_token(peer, ask, realm, service.as_deref(), scope.as_deref()).await?
            }
            (Some(Credential::Basic { username, password }), None)
                if challenges.contains(&Challenge::Basic) =>
            {
                let header = secret(&auth::basic_header(username, password))
                    .expect("base64 is made of header characters");
                Authorization { header, until: None }
            }
            (None, None) if challenges.contains(&Challenge::Basic) => {
                return Err(refused("it asks for a user name and password, and there are none for it"));
            }
            _ => return Err(refused("it asks for a kind of authorization that does not fit the credential")),
        };
        if let Some(used) = used
            && fresh.header == *used
        {
            return Err(refused("it does not accept the credential"));
        }
        let header = fresh.header.clone();
        *current = Some(fresh);
        Ok(header)
    }

    async fn fetch_token(
        &self,
        peer: &Peer,
        ask: &Ask<'_>,
        realm: &str,
        service: Option<&str>,
        scope: Option<&str>,
    ) -> Result<Authorization, RegistryError> {
        let endpoint = peer.endpoint.origin.to_string();
        let what = format!("token for {}", self.reference.name());
        let wrong = |problem: String| RegistryError::Verification {
            what: what.clone(),
            endpoint: endpoint.clone(),
            problem,
        };
        let realm_uri: Uri = realm.parse().map_err(|_| wrong(format!("realm {realm:?} is not a URL")))?;
        let origin = Origin::of(&realm_uri)
            .ok_or_else(|| wrong(format!("realm {realm:?} is not an http or https URL")))?;
        let own = peer.origin();
        let has_secret = peer.credential.is_some();
        if has_secret {
            let trusted = token::is_realm_trusted(&own.host, &origin.host, &self.config.token_realms)
                || token::is_realm_trusted(self.domain(), &origin.host, &self.config.token_realms);
            if !trusted {
                return Err(RegistryError::Realm { endpoint, realm: origin.to_string() });
            }
        }
        if origin.is_loopback() && !own.is_loopback() {
            return Err(wrong(format!("realm {origin} is this machine, and the registry is not")));
        }
        let other;
        let transport = if origin == own {
            &peer.transport
        } else {
            other = self.other(&origin)?;
            let own_host_in_plain = peer.endpoint.plain_allowed && origin.host == own.host;
            if !(origin.https || other.plain_allowed || own_host_in_plain) {
                return Err(wrong(format!("realm {origin} is plain HTTP, and a token is a secret")));
            }
            &other.transport
        };

        let scope = token::pull_scope(scope, self.reference.path());
        let mut pairs = Vec::new();
        pairs.extend(service.map(|service| ("service", service)));
        pairs.push(("scope", scope.as_str()));
        let mut builder = Request::builder().header(header::USER_AGENT, USER_AGENT);
        let mut body = Bytes::new();
        let mut uri = realm_uri.clone();
        if let Some(Credential::Identity(refresh)) = &peer.credential {
            pairs.extend([
                ("grant_type", "refresh_token"),
                ("client_id", "brig"),
                ("refresh_token", refresh),
            ]);
            body = Bytes::from(token::form(&pairs));
            builder = builder
                .method(Method::POST)
                .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded");
        } else {
            if let Some(Credential::Basic { username, password }) = &peer.credential {
                let value = secret(&auth::basic_header(username, password))
                    .expect("base64 is made of header characters");
                builder = builder.header(header::AUTHORIZATION, value);
                pairs.push(("account", username));
            }
            let joint = if realm_uri.query().is_some() { '&' } else { '?' };
            uri = format!("{realm_uri}{joint}{}", token::form(&pairs))
                .parse()
                .map_err(|_| wrong(format!("realm {realm:?} does not take a query")))?;
        }
        let request = builder.uri(uri).body(Full::new(body)).expect("parsed parts make a request");
        let response = self.send(transport, request, &what, &origin).await?;
        if response.status() != StatusCode::OK {
            let ask = Ask { what: &what, ..ask.clone() };
            return Err(self.failed(&ask, origin.to_string(), response).await);
        }
        let bytes =
            self.collect(response.into_body(), token::ANSWER_BYTES_MAX, &what, &origin.to_string()).await?;
        let answer: TokenAnswer = serde_json::from_slice(&bytes)
            .map_err(|_| wrong(format!("the answer of {origin} is not the expected JSON")))?;
        let (token, lifetime) =
            answer.into_parts().ok_or_else(|| wrong(format!("the answer of {origin} has no token")))?;
        let header = secret(&format!("Bearer {token}"))
            .ok_or_else(|| wrong(format!("the token of {origin} has characters that no header may hold")))?;
        Ok(Authorization { header, until: Some(Instant::now() + lifetime) })
    }
}

impl Peer {
    /// What is known to be accepted, unless it has run out.
    pub(super) async fn usable_authorization(&self) -> Option<HeaderValue> {
        let mut current = self.authorization.lock().await;
        if current.as_ref().and_then(|current| current.until).is_some_and(|until| until <= Instant::now()) {
            *current = None;
        }
        current.as_ref().map(|current| current.header.clone())
    }
}

/// The credential that may be sent to an endpoint; see the head of `mod.rs`.
pub(super) async fn credential_for(
    config: &RegistryConfig,
    reference: &Reference,
    auth: Option<&Auth>,
    endpoint: &Endpoint,
) -> Result<Option<Credential>, RegistryError> {
    let host = endpoint.origin.authority();
    let failed = |source| RegistryError::Credential { host: host.clone(), source: Arc::new(source) };
    if !endpoint.origin.https && !endpoint.plain_allowed {
        return Ok(None);
    }
    let from_request = match auth {
        // The server of docker.io has another name, and so may a configured server; both are the registry.
        Some(auth) if endpoint.is_server => {
            auth::from_request(auth, &[reference.domain(), &host]).map_err(failed)?
        }
        // A mirror is another host: only a credential that names it is for it.
        Some(auth) if !auth.server_address.is_empty() => {
            auth::from_request(auth, &[&host]).map_err(failed)?
        }
        _ => None,
    };
    if from_request.is_some() {
        return Ok(from_request);
    }
    let host = if endpoint.is_server { reference.domain() } else { &host };
    auth::from_files(&config.auth_files, host, reference).await.map_err(failed)
}

fn secret(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}
