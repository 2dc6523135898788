//! Images as requests name them, and what a pull is allowed to show to a registry.

use super::{BadRequest, NAME_BYTES_MAX, annotations, text};
use crate::container::spec::ImageSpec;
use crate::image::registry::auth::Auth;
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

/// PullImage's `auth`, for `image/` to make sense of; `None` when it says nothing.
pub(crate) fn auth(asked: Option<v1::AuthConfig>) -> Result<Option<Auth>, BadRequest> {
    let Some(asked) = asked else { return Ok(None) };
    let secret = |name: &str, value| text(format_args!("auth.{name}"), value, CREDENTIAL_BYTES_MAX);
    let auth = Auth {
        username: secret("username", asked.username)?,
        password: secret("password", asked.password)?,
        auth: secret("auth", asked.auth)?,
        server_address: text("auth.server_address", asked.server_address, REFERENCE_BYTES_MAX)?,
        identity_token: secret("identity_token", asked.identity_token)?,
        registry_token: secret("registry_token", asked.registry_token)?,
    };
    if auth.username.is_empty() && !auth.password.is_empty() {
        return Err(BadRequest::needs("auth.password", "username"));
    }
    Ok((auth != Auth::default()).then_some(auth))
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
    fn empty_credentials_are_none_and_a_password_needs_a_username() {
        let asked = |username: &str, password: &str| {
            let (username, password) = (username.to_owned(), password.to_owned());
            auth(Some(v1::AuthConfig { username, password, ..Default::default() }))
        };
        let both = Auth { username: "u".into(), password: "p".into(), ..Auth::default() };
        assert_eq!(asked("u", "p"), Ok(Some(both)));
        assert_eq!(asked("", ""), Ok(None));
        assert_eq!(asked("", "p").unwrap_err().to_string(), "auth.password is set: it needs username");
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
