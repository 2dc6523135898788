//! Images as requests name them, and what a pull is allowed to show to a registry.

use std::fmt;

use super::{BadRequest, NAME_BYTES_MAX, annotations, text};
use crate::container::spec::ImageSpec;
use crate::proto::v1;

/// Bytes of a reference: a registry's name, a repository of at most 255, a tag of at most 128 and a digest.
const REFERENCE_BYTES_MAX: usize = 1024;
/// Bytes of one credential. Tokens of cloud registries have a few KiB.
const CREDENTIAL_BYTES_MAX: usize = 64 * 1024;

/// How a request names an image; the name must be there. Whether it is a well-formed reference is for `image/`.
pub(crate) fn image_spec(field: &str, asked: Option<v1::ImageSpec>) -> Result<ImageSpec, BadRequest> {
    let asked = asked.unwrap_or_default();
    if asked.image.is_empty() {
        return Err(BadRequest::missing(format_args!("{field}.image")));
    }
    let part = |name: &str, value| text(format_args!("{field}.{name}"), value, REFERENCE_BYTES_MAX);
    Ok(ImageSpec {
        image: part("image", asked.image)?,
        user_specified_image: part("user_specified_image", asked.user_specified_image)?,
        runtime_handler: text(
            format_args!("{field}.runtime_handler"),
            asked.runtime_handler,
            NAME_BYTES_MAX,
        )?,
        annotations: annotations(format_args!("{field}.annotations"), asked.annotations)?,
    })
}

/// What a PullImage request brings for its registry.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Credentials {
    Basic {
        username: String,
        password: String,
    },
    /// `user:password` in base64, as Docker's config.json has it; not decoded here.
    Encoded(String),
    /// Exchanged for an access token.
    Identity(String),
    /// Sent as it is.
    Bearer(String),
}

/// Says which kind they are and no more.
impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Basic { .. } => "Basic(…)",
            Self::Encoded(_) => "Encoded(…)",
            Self::Identity(_) => "Identity(…)",
            Self::Bearer(_) => "Bearer(…)",
        })
    }
}

/// PullImage's `auth`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Auth {
    pub(crate) credentials: Credentials,
    /// The only registry that may see them; empty is the registry of the image.
    pub(crate) server_address: String,
}

/// `None` when the request brings no credentials. A token wins over a name and password, as the more specific one.
pub(crate) fn auth(asked: Option<v1::AuthConfig>) -> Result<Option<Auth>, BadRequest> {
    let Some(asked) = asked else { return Ok(None) };
    let secret = |name: &str, value| text(format_args!("auth.{name}"), value, CREDENTIAL_BYTES_MAX);
    let server_address = text("auth.server_address", asked.server_address, REFERENCE_BYTES_MAX)?;
    let (username, password) = (secret("username", asked.username)?, secret("password", asked.password)?);
    let (encoded, identity) = (secret("auth", asked.auth)?, secret("identity_token", asked.identity_token)?);
    let bearer = secret("registry_token", asked.registry_token)?;
    let credentials = if !bearer.is_empty() {
        Credentials::Bearer(bearer)
    } else if !identity.is_empty() {
        Credentials::Identity(identity)
    } else if !username.is_empty() {
        Credentials::Basic { username, password }
    } else if !encoded.is_empty() {
        Credentials::Encoded(encoded)
    } else if !password.is_empty() {
        return Err(BadRequest::needs("auth.password", "username"));
    } else {
        return Ok(None);
    };
    Ok(Some(Auth { credentials, server_address }))
}

/// The reference that ListImages filters by; `None` lists all.
pub(crate) fn image_filter(filter: Option<v1::ImageFilter>) -> Result<Option<String>, BadRequest> {
    let wanted = filter.and_then(|filter| filter.image).unwrap_or_default().image;
    let wanted = text("filter.image.image", wanted, REFERENCE_BYTES_MAX)?;
    Ok((!wanted.is_empty()).then_some(wanted))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_has_a_name() {
        assert_eq!(image_spec("image", None).unwrap_err().to_string(), "image.image is required");
        let named = v1::ImageSpec { image: "busybox".into(), ..Default::default() };
        assert_eq!(image_spec("image", Some(named)).unwrap().image, "busybox");
        let nul = v1::ImageSpec { image: "busy\0box".into(), ..Default::default() };
        assert!(image_spec("image", Some(nul)).is_err());
    }

    #[test]
    fn a_token_wins_over_a_password_and_nothing_is_no_credentials() {
        let asked = |username: &str, password: &str, identity: &str| {
            auth(Some(v1::AuthConfig {
                username: username.into(),
                password: password.into(),
                identity_token: identity.into(),
                ..Default::default()
            }))
            .map(|auth| auth.map(|auth| auth.credentials))
        };
        let basic = Credentials::Basic { username: "u".into(), password: "p".into() };
        assert_eq!(asked("u", "p", ""), Ok(Some(basic)));
        assert_eq!(asked("u", "p", "t"), Ok(Some(Credentials::Identity("t".into()))));
        assert_eq!(asked("", "", ""), Ok(None));
        assert!(asked("", "p", "").is_err());
        assert_eq!(auth(None), Ok(None));
    }

    #[test]
    fn credentials_are_never_printed() {
        let auth = auth(Some(v1::AuthConfig {
            username: "u".into(),
            password: "secret".into(),
            ..Default::default()
        }));
        assert!(!format!("{auth:?}").contains("secret"));
        let raw = v1::AuthConfig { auth: "c2VjcmV0".into(), password: "secret".into(), ..Default::default() };
        assert_eq!(format!("{raw:?}"), r#"AuthConfig { username: "", server_address: "", .. }"#);
    }
}
