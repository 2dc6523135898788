//! Image references as Docker and containerd parse them.
//!
//! The grammar is that of the distribution project's `reference` package: `[domain[:port]/]path[:tag][@digest]`, with
//! `docker.io` and `library/` understood when they are left out and `latest` when there is neither tag nor digest.
//! A [`Reference`] has passed every check, so its parts may stand in a URL without escaping. Ids and short ids of
//! images are not references; the index knows those.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::id::Digest;

/// Where a reference without a domain leads.
pub(crate) const DEFAULT_DOMAIN: &str = "docker.io";
/// The old name of the same registry, still found in files and habits.
const LEGACY_DEFAULT_DOMAIN: &str = "index.docker.io";
/// The path of Docker Hub's own images.
const OFFICIAL_PREFIX: &str = "library/";
const DEFAULT_TAG: &str = "latest";
/// Longest path in bytes (distribution's RepositoryNameTotalLengthMax); a domain is held to the same length.
const NAME_BYTES_MAX: usize = 255;
/// Longest tag in bytes (distribution's tag grammar).
const TAG_BYTES_MAX: usize = 128;

/// A parsed, normalised image reference.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct Reference {
    domain: String,
    path: String,
    /// `None` only together with a digest.
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// The registry's host, with its port when one was given: `docker.io`, `localhost:5000`, `[::1]:5000`.
    pub(crate) fn domain(&self) -> &str {
        &self.domain
    }

    /// The repository inside the registry: `library/busybox`.
    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    /// The tag; `latest` when the text had neither tag nor digest.
    pub(crate) fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest. When there is one it alone decides which image is meant.
    pub(crate) fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// Domain and path: `docker.io/library/busybox`.
    pub(crate) fn name(&self) -> String {
        format!("{}/{}", self.domain, self.path)
    }

    /// The same repository with a digest instead of a tag: the form of CRI's `repo_digests`.
    pub(crate) fn with_digest(&self, digest: &Digest) -> Self {
        Self { domain: self.domain.clone(), path: self.path.clone(), tag: None, digest: Some(digest.clone()) }
    }

    /// The text a person would type: `busybox:latest` for `docker.io/library/busybox:latest`.
    pub(crate) fn familiar(&self) -> String {
        let text = self.to_string();
        let Some(rest) = text.strip_prefix("docker.io/") else { return text };
        let short = rest.strip_prefix(OFFICIAL_PREFIX).unwrap_or(rest);
        // `docker.io/localhost/a` and `docker.io/library/a/b` mean something else without their domain.
        if short.parse().as_ref() == Ok(self) { short.to_owned() } else { text }
    }

    /// Whether one of the names means this image, written in full or as a person would. A trailing `*` matches any rest.
    pub(crate) fn is_among(&self, names: &[String]) -> bool {
        let own = [self.to_string(), self.familiar()];
        names.iter().any(|name| match name.strip_suffix('*') {
            Some(prefix) => own.iter().any(|own| own.starts_with(prefix)),
            None => own.contains(name),
        })
    }
}

/// Why a text is not an image reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ReferenceError {
    #[error("image reference is empty")]
    Empty,
    #[error("image reference {0:?} has an upper-case letter in its repository; repositories are lower-case")]
    Uppercase(String),
    #[error("image reference {0:?} is 64 hex digits, which is an image id and not a name")]
    LooksLikeId(String),
    #[error(
        "image reference {text:?} names registry {domain:?}, which is not a host name, address or host:port"
    )]
    Domain { text: String, domain: String },
    #[error(
        "image reference {text:?} has path component {component:?}, which is not lower-case letters and digits \
         joined by single \".\", \"_\", \"__\" or dashes"
    )]
    Path { text: String, component: String },
    #[error(
        "image reference {text:?} has tag {tag:?}, which is not up to 128 letters, digits, \"_\", \".\" or \"-\""
    )]
    Tag { text: String, tag: String },
    #[error(
        "image reference {text:?} has digest {digest:?}; only sha256: and 64 lower-case hex digits is supported"
    )]
    Digest { text: String, digest: String },
    #[error("image reference starting {start:?} has a name of {bytes} bytes, more than {NAME_BYTES_MAX}")]
    TooLong { start: String, bytes: usize },
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        if text.is_empty() {
            return Err(ReferenceError::Empty);
        }
        // Three names and a digest cannot be longer than this, and nothing longer is worth echoing in a message.
        if text.len() > 2 * NAME_BYTES_MAX + TAG_BYTES_MAX + 256 {
            let start = text.chars().take(64).collect();
            return Err(ReferenceError::TooLong { start, bytes: text.len() });
        }
        let all = || text.to_owned();
        if text.len() == 64 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
            return Err(ReferenceError::LooksLikeId(all()));
        }
        let (named, digest) = match text.split_once('@') {
            None => (text, None),
            Some((named, digest)) => {
                let parsed = digest
                    .parse()
                    .map_err(|_| ReferenceError::Digest { text: all(), digest: digest.to_owned() })?;
                (named, Some(parsed))
            }
        };
        // A colon after the last slash starts the tag; any earlier one belongs to the domain.
        let last_component = named.rfind('/').map_or(0, |slash| slash + 1);
        let (name, tag) = match named[last_component..].split_once(':') {
            None => (named, None),
            Some((component, tag)) => {
                if !is_tag(tag) {
                    return Err(ReferenceError::Tag { text: all(), tag: tag.to_owned() });
                }
                (&named[..last_component + component.len()], Some(tag.to_owned()))
            }
        };
        let (domain, path) = split_domain(name);
        if domain.len() > NAME_BYTES_MAX || path.len() > NAME_BYTES_MAX {
            let start = text.chars().take(64).collect();
            return Err(ReferenceError::TooLong { start, bytes: domain.len().max(path.len()) });
        }
        if !is_domain(domain) {
            return Err(ReferenceError::Domain { text: all(), domain: domain.to_owned() });
        }
        if path.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(ReferenceError::Uppercase(all()));
        }
        if let Some(component) = path.split('/').find(|component| !is_path_component(component)) {
            return Err(ReferenceError::Path { text: all(), component: component.to_owned() });
        }
        let path = if domain == DEFAULT_DOMAIN && !path.contains('/') {
            format!("{OFFICIAL_PREFIX}{path}")
        } else {
            path.to_owned()
        };
        let tag = match (tag, &digest) {
            (None, None) => Some(DEFAULT_TAG.to_owned()),
            (tag, _) => tag,
        };
        Ok(Self { domain: domain.to_owned(), path, tag, digest })
    }
}

/// Distribution's splitDockerDomain: the part before the first slash is a domain if it could not be a path.
fn split_domain(name: &str) -> (&str, &str) {
    let (domain, path) = match name.split_once('/') {
        Some((first, rest))
            if first.contains(['.', ':'])
                || first == "localhost"
                || first.bytes().any(|b| b.is_ascii_uppercase()) =>
        {
            (first, rest)
        }
        _ => (DEFAULT_DOMAIN, name),
    };
    (if domain == LEGACY_DEFAULT_DOMAIN { DEFAULT_DOMAIN } else { domain }, path)
}

fn is_domain(domain: &str) -> bool {
    let (host, port) = if let Some(bracketed) = domain.strip_prefix('[') {
        let Some((address, rest)) = bracketed.split_once(']') else { return false };
        if address.parse::<Ipv6Addr>().is_err() {
            return false;
        }
        match rest.strip_prefix(':') {
            None if rest.is_empty() => return true,
            None => return false,
            Some(port) => ("", Some(port)),
        }
    } else {
        match domain.split_once(':') {
            None => (domain, None),
            Some((host, port)) => (host, Some(port)),
        }
    };
    let port_fits = port.is_none_or(|port| {
        port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port != 0)
    });
    let host_fits = domain.starts_with('[')
        || host.split('.').all(|label| {
            !label.is_empty()
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        });
    port_fits && host_fits
}

fn is_path_component(component: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = component.as_bytes();
    let (Some(&first), Some(&last)) = (bytes.first(), bytes.last()) else { return false };
    if !alphanumeric(first) || !alphanumeric(last) {
        return false;
    }
    bytes.split(|&b| alphanumeric(b)).all(|separator| {
        matches!(separator, [] | b"." | b"_" | b"__") || separator.iter().all(|&b| b == b'-')
    })
}

fn is_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    (1..=TAG_BYTES_MAX).contains(&tag.len())
        && tag.bytes().enumerate().all(|(at, b)| word(b) || (at > 0 && matches!(b, b'.' | b'-')))
}

impl fmt::Display for Reference {
    /// The normalised form: `docker.io/library/busybox:latest`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.domain, self.path)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl TryFrom<String> for Reference {
    type Error = ReferenceError;
    fn try_from(text: String) -> Result<Self, ReferenceError> {
        text.parse()
    }
}

impl From<Reference> for String {
    fn from(reference: Reference) -> String {
        reference.to_string()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Result<Reference, ReferenceError> {
        text.parse()
    }

    #[test]
    fn references_are_normalised_as_docker_does() {
        let digest = format!("sha256:{}", "0a".repeat(32));
        for (text, normal, familiar) in [
            ("busybox", "docker.io/library/busybox:latest", "busybox:latest"),
            ("busybox:1.36", "docker.io/library/busybox:1.36", "busybox:1.36"),
            ("library/busybox", "docker.io/library/busybox:latest", "busybox:latest"),
            ("index.docker.io/busybox", "docker.io/library/busybox:latest", "busybox:latest"),
            ("docker.io/me/app:v1", "docker.io/me/app:v1", "me/app:v1"),
            ("me/app", "docker.io/me/app:latest", "me/app:latest"),
            ("localhost/app", "localhost/app:latest", "localhost/app:latest"),
            ("localhost:5000", "docker.io/library/localhost:5000", "localhost:5000"),
            ("localhost:5000/app", "localhost:5000/app:latest", "localhost:5000/app:latest"),
            ("[::1]:5000/a/b:T_1.x-", "[::1]:5000/a/b:T_1.x-", "[::1]:5000/a/b:T_1.x-"),
            ("[fe80::1]/a", "[fe80::1]/a:latest", "[fe80::1]/a:latest"),
            ("127.0.0.1:1/a", "127.0.0.1:1/a:latest", "127.0.0.1:1/a:latest"),
            ("Example.com/a", "Example.com/a:latest", "Example.com/a:latest"),
            ("docker.io/localhost/a", "docker.io/localhost/a:latest", "docker.io/localhost/a:latest"),
            ("docker.io/library/a/b", "docker.io/library/a/b:latest", "docker.io/library/a/b:latest"),
            ("UPPER/a", "UPPER/a:latest", "UPPER/a:latest"),
            ("quay.io/a/b__c/d--e.f_g", "quay.io/a/b__c/d--e.f_g:latest", "quay.io/a/b__c/d--e.f_g:latest"),
        ] {
            let parsed = parse(text).unwrap();
            assert_eq!(parsed.to_string(), normal, "{text}");
            assert_eq!(parsed.familiar(), familiar, "{text}");
            assert_eq!(parse(normal).as_ref(), Ok(&parsed), "{text}");
            assert_eq!(parse(familiar).as_ref(), Ok(&parsed), "{text}");
        }
        let pinned = parse(&format!("busybox@{digest}")).unwrap();
        assert_eq!((pinned.tag(), pinned.digest().unwrap().as_str()), (None, digest.as_str()));
        assert_eq!(pinned.to_string(), format!("docker.io/library/busybox@{digest}"));
        let both = parse(&format!("q.io:80/x:t@{digest}")).unwrap();
        assert_eq!((both.domain(), both.path(), both.tag()), ("q.io:80", "x", Some("t")));
        assert_eq!(
            parse("busybox").unwrap().with_digest(both.digest().unwrap()).to_string(),
            pinned.to_string()
        );
    }

    #[test]
    fn what_is_not_a_reference_is_refused_by_kind() {
        let sha512 = format!("a@sha512:{}", "0".repeat(128));
        let upper_digest = format!("a@sha256:{}", "A".repeat(64));
        type Check = fn(&ReferenceError) -> bool;
        let domain: Check = |e| matches!(e, ReferenceError::Domain { .. });
        let path: Check = |e| matches!(e, ReferenceError::Path { .. });
        let tag: Check = |e| matches!(e, ReferenceError::Tag { .. });
        let digest: Check = |e| matches!(e, ReferenceError::Digest { .. });
        let upper: Check = |e| matches!(e, ReferenceError::Uppercase(_));
        let long: Check = |e| matches!(e, ReferenceError::TooLong { .. });
        for (text, expected) in [
            ("", (|e| *e == ReferenceError::Empty) as Check),
            ("Busybox", upper),
            ("docker.io/Lib/a", upper),
            (&"0a".repeat(32), |e| matches!(e, ReferenceError::LooksLikeId(_))),
            ("a:", tag),
            ("a:.x", tag),
            ("a:b:c", tag),
            (&format!("a:{}", "t".repeat(129)), tag),
            (&sha512, digest),
            (&upper_digest, digest),
            ("a@sha256:../../etc/passwd", digest),
            ("a@", digest),
            ("a@b@c", digest),
            ("-x.io/a", domain),
            ("x..io/a", domain),
            ("x.io:/a", domain),
            ("x.io:70000/a", domain),
            ("[::g]/a", domain),
            ("[::1]x/a", domain),
            ("user:pw/a", domain),
            ("x.io/", path),
            ("x.io//a", path),
            ("../a", domain),
            ("x.io/../a", path),
            ("a/..", path),
            ("a___b", path),
            ("a._b", path),
            ("a b", path),
            ("a%2f", path),
            ("a\u{e9}", path),
            ("https://x.io/a", domain),
            (&format!("x.io/{}", "a".repeat(256)), long),
            (&"a/".repeat(5000), long),
        ] {
            let error = parse(text).unwrap_err();
            assert!(expected(&error), "{text:?} gave {error:?}");
        }
        assert!(parse(&format!("x.io/{}", "a".repeat(255))).is_ok());
        assert!(parse(&format!("a:{}", "t".repeat(128))).is_ok());
    }

    proptest! {
        #[test]
        fn any_text_parses_to_a_fixed_point_or_is_refused(text in "[a-zA-Z0-9._:/@\\[\\] -]{0,60}") {
            if let Ok(reference) = parse(&text) {
                prop_assert_eq!(parse(&reference.to_string()), Ok(reference.clone()));
                prop_assert_eq!(parse(&reference.familiar()), Ok(reference));
            }
        }

        #[test]
        fn a_well_formed_reference_keeps_its_parts(
            domain in "[a-z0-9]{1,8}\\.[a-z]{2,3}(:[1-9][0-9]{0,3})?",
            path in "[a-z0-9]{1,5}([._-][a-z0-9]{1,4})?(/[a-z0-9]{1,5}){0,3}",
            tag in "[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}",
        ) {
            let reference = parse(&format!("{domain}/{path}:{tag}")).unwrap();
            prop_assert_eq!(reference.domain(), domain);
            prop_assert_eq!(reference.path(), path);
            prop_assert_eq!(reference.tag(), Some(tag.as_str()));
        }
    }

    #[test]
    fn an_image_is_meant_by_its_full_and_its_familiar_name_and_by_a_pattern() {
        let reference: Reference = "docker.io/library/busybox:1".parse().unwrap();
        for (name, expected) in [
            ("busybox:1", true),
            ("docker.io/library/busybox:1", true),
            ("busybox*", true),
            ("docker.io/*", true),
            ("busybox", false),
            ("busybox:2", false),
            ("quay.io/*", false),
        ] {
            assert_eq!(reference.is_among(&[name.to_owned()]), expected, "{name}");
        }
    }
}
