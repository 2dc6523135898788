//! Challenges and tokens: what a 401 asks for, and whom we are willing to tell a credential.
//!
//! A registry names its token server in the `realm` of its challenge. A registry that is compromised, or an answer
//! that was tampered with, can name any host, and a client that obeys hands over its stored credential
//! (CVE-2026-33540). So a credential goes to a realm only over TLS (or to a plain host that the operator configured
//! so), and only if the realm is the registry's own host, a host of the same registrable domain, or a known pair:
//! Docker Hub's, a few others, and what the operator lists in `token_realms`. Otherwise the pull fails and says so;
//! asking anonymously instead would end in a "not found" that nobody understands.

use serde::Deserialize;
use std::time::Duration;

/// A token without `expires_in` lives this long (distribution's token specification).
const LIFETIME_DEFAULT: Duration = Duration::from_secs(60);
/// Renewed this long before it ends, so that it does not expire on the way.
const LIFETIME_MARGIN: Duration = Duration::from_secs(5);
/// Largest answer of a token server; tokens of cloud registries are a few KiB.
pub(super) const ANSWER_BYTES_MAX: u64 = 256 << 10;
/// Most challenges read from one answer.
const CHALLENGES_MAX: usize = 8;

/// Registry and realm hosts that belong together though their names do not show it.
const KNOWN_REALMS: [(&str, &str); 3] = [
    ("registry-1.docker.io", "auth.docker.io"),
    ("registry.connect.redhat.com", "sso.redhat.com"),
    ("nvcr.io", "authn.nvidia.com"),
];

/// Suffixes under which strangers are neighbours: a shared ending proves nothing here. A full public suffix list is
/// 15,000 rules that change weekly; these are the ones under which registries are rented out.
const SHARED_SUFFIXES: [&str; 16] = [
    "azurecr.io",
    "azurecr.cn",
    "amazonaws.com",
    "amazonaws.com.cn",
    "azurewebsites.net",
    "cloudfront.net",
    "digitaloceanspaces.com",
    "fly.dev",
    "github.io",
    "gitlab.io",
    "herokuapp.com",
    "jfrog.io",
    "pages.dev",
    "pkg.dev",
    "vercel.app",
    "workers.dev",
];

/// One entry of `WWW-Authenticate`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
}

/// Reads the values of `WWW-Authenticate`; schemes that we do not speak are left out.
pub(super) fn challenges<'a>(values: impl Iterator<Item = &'a str>) -> Vec<Challenge> {
    let mut found = Vec::new();
    for value in values {
        let mut rest = value.trim_start();
        while !rest.is_empty() && found.len() < CHALLENGES_MAX {
            let (scheme, after) = rest.split_at(rest.find(' ').unwrap_or(rest.len()));
            let (parameters, after) = parameters(after);
            let get =
                |name: &str| parameters.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
            if scheme.eq_ignore_ascii_case("basic") {
                found.push(Challenge::Basic);
            } else if scheme.eq_ignore_ascii_case("bearer")
                && let Some(realm) = get("realm")
            {
                found.push(Challenge::Bearer { realm, service: get("service"), scope: get("scope") });
            }
            // Always shorter than before: `scheme` was at least the text up to a space.
            rest = after.trim_start_matches([' ', ',']);
            if scheme.is_empty() {
                break;
            }
        }
    }
    found
}

/// `key=value` pairs up to the next scheme or the end; values may be quoted, with backslash escapes.
fn parameters(text: &str) -> (Vec<(String, String)>, &str) {
    let mut pairs = Vec::new();
    let mut rest = text;
    loop {
        rest = rest.trim_start_matches([' ', ',', '\t']);
        let Some(equals) = rest.find('=') else { return (pairs, "") };
        let key = &rest[..equals];
        if key.contains(' ') {
            // A new scheme stands before this key.
            return (pairs, rest);
        }
        let after = &rest[equals + 1..];
        let mut value = String::new();
        if let Some(quoted) = after.strip_prefix('"') {
            let mut characters = quoted.char_indices();
            let mut end = quoted.len();
            while let Some((at, c)) = characters.next() {
                match c {
                    '\\' => value.extend(characters.next().map(|(_, c)| c)),
                    '"' => {
                        end = at + 1;
                        break;
                    }
                    c => value.push(c),
                }
            }
            rest = &quoted[end..];
        } else {
            let end = after.find([',', ' ']).unwrap_or(after.len());
            value.push_str(&after[..end]);
            rest = &after[end..];
        }
        pairs.push((key.to_ascii_lowercase(), value));
    }
}

/// The scope to ask for: the challenge's, because a mirror's names differ from ours, cut down to reading.
pub(super) fn pull_scope(challenged: Option<&str>, repository: &str) -> String {
    let scopes: Vec<String> = challenged
        .unwrap_or_default()
        .split_ascii_whitespace()
        .filter_map(|scope| scope.rsplit_once(':'))
        .filter(|(resource, _)| resource.starts_with("repository:") || resource.starts_with("repository("))
        .map(|(resource, _)| format!("{resource}:pull"))
        .take(CHALLENGES_MAX)
        .collect();
    if scopes.is_empty() { format!("repository:{repository}:pull") } else { scopes.join(" ") }
}

/// Whether a registry's credential may be told to a realm's host. Ports do not count.
pub(super) fn is_realm_trusted(registry: &str, realm: &str, listed: &[(String, String)]) -> bool {
    registry == realm
        || KNOWN_REALMS.contains(&(registry, realm))
        || listed.iter().any(|(r, t)| r == registry && t == realm)
        || share_registrable_domain(registry, realm)
}

fn share_registrable_domain(a: &str, b: &str) -> bool {
    let is_address = |host: &str| {
        host.starts_with('[')
            || host.rsplit('.').next().is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()))
    };
    if is_address(a) || is_address(b) {
        return false;
    }
    match (registrable(a), registrable(b)) {
        (Some(a), Some(b)) => a == b,
        _ => false,
    }
}

/// The part of a host name that somebody registered: the public suffix and one label more.
fn registrable(host: &str) -> Option<&str> {
    let last_labels = |count: usize| {
        let mut starts = host.rmatch_indices('.').map(|(at, _)| at + 1);
        match starts.nth(count - 1) {
            Some(start) => Some(&host[start..]),
            None if host.split('.').count() == count => Some(host),
            None => None,
        }
    };
    if let Some(shared) = SHARED_SUFFIXES.iter().find(|suffix| {
        host == **suffix || host.strip_suffix(**suffix).is_some_and(|rest| rest.ends_with('.'))
    }) {
        return last_labels(shared.split('.').count() + 1);
    }
    let two = last_labels(2)?;
    let (second, top) = two.split_once('.')?;
    // co.uk, com.au, ac.jp: a short second level under a country belongs to nobody in particular.
    if top.len() == 2 && second.len() <= 3 { last_labels(3) } else { Some(two) }
}

/// What a token server answers.
#[derive(Deserialize)]
pub(super) struct TokenAnswer {
    #[serde(default)]
    token: String,
    #[serde(default)]
    access_token: String,
    #[serde(default)]
    expires_in: Option<u64>,
}

impl TokenAnswer {
    /// The token and how long it may be used; `None` if there is none.
    pub(super) fn into_parts(self) -> Option<(String, Duration)> {
        let token = if self.token.is_empty() { self.access_token } else { self.token };
        let lifetime = self.expires_in.map_or(LIFETIME_DEFAULT, Duration::from_secs).max(LIFETIME_DEFAULT);
        (!token.is_empty()).then_some((token, lifetime.saturating_sub(LIFETIME_MARGIN)))
    }
}

/// `name=value` pairs for a query or a form.
pub(super) fn form(pairs: &[(&str, &str)]) -> String {
    use std::fmt::Write;
    let mut text = String::new();
    for (name, value) in pairs {
        if !text.is_empty() {
            text.push('&');
        }
        text.push_str(name);
        text.push('=');
        for byte in value.bytes() {
            if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
                text.push(byte as char);
            } else {
                write!(text, "%{byte:02X}").expect("writing to a String cannot fail");
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Challenge {
        Challenge::Bearer {
            realm: realm.to_owned(),
            service: service.map(str::to_owned),
            scope: scope.map(str::to_owned),
        }
    }

    #[test]
    fn challenges_are_read_in_every_form_that_registries_send() {
        let cases: [(&[&str], Vec<Challenge>); 7] = [
            (
                &[r#"Bearer realm="https://a/t",service="s",scope="repository:x:pull,push""#],
                vec![bearer("https://a/t", Some("s"), Some("repository:x:pull,push"))],
            ),
            (&["Basic realm=\"x\""], vec![Challenge::Basic]),
            (&["basic"], vec![Challenge::Basic]),
            (&["BEARER realm=https://a/t , service=s"], vec![bearer("https://a/t", Some("s"), None)]),
            (
                &[r#"Negotiate abc=, Basic realm="a, b", Bearer realm="r\"q""#],
                vec![Challenge::Basic, bearer("r\"q", None, None)],
            ),
            (&["Digest qop=1", "Basic realm=x"], vec![Challenge::Basic]),
            (&["Bearer", "", ",,,", "Bearer service=\"unfinished"], vec![]),
        ];
        for (values, expected) in cases {
            assert_eq!(challenges(values.iter().copied()), expected, "{values:?}");
        }
    }

    #[test]
    fn only_pull_is_ever_asked_for() {
        assert_eq!(pull_scope(None, "a/b"), "repository:a/b:pull");
        assert_eq!(pull_scope(Some("repository:hub/a/b:pull,push,delete"), "a/b"), "repository:hub/a/b:pull");
        assert_eq!(pull_scope(Some("registry:catalog:*"), "a/b"), "repository:a/b:pull");
    }

    #[test]
    fn a_credential_goes_only_to_realms_of_the_registry() {
        let listed = [("r.example".to_owned(), "login.other.example".to_owned())];
        for (registry, realm, trusted) in [
            ("ghcr.io", "ghcr.io", true),
            ("registry-1.docker.io", "auth.docker.io", true),
            ("registry.gitlab.com", "gitlab.com", true),
            ("registry.example.com", "sso.example.com", true),
            ("r.example", "login.other.example", true),
            ("q.example", "login.other.example", false),
            ("registry.example.com", "example.com.evil.net", false),
            ("registry.example.com", "evil.com", false),
            ("good.co.uk", "evil.co.uk", false),
            ("a.good.co.uk", "b.good.co.uk", true),
            ("victim.azurecr.io", "evil.azurecr.io", false),
            ("victim.azurecr.io", "azurecr.io", false),
            ("127.0.0.1", "127.0.0.2", false),
            ("10.0.0.1", "9.0.0.1", false),
            ("localhost", "evil.localhost", false),
            ("[::1]", "[::2]", false),
        ] {
            assert_eq!(is_realm_trusted(registry, realm, &listed), trusted, "{registry} {realm}");
        }
    }

    #[test]
    fn a_token_is_renewed_before_it_ends() {
        let parse = |json: &str| serde_json::from_str::<TokenAnswer>(json).unwrap().into_parts();
        assert_eq!(parse(r#"{"token":"t"}"#), Some(("t".to_owned(), Duration::from_secs(55))));
        assert_eq!(
            parse(r#"{"access_token":"a","expires_in":300}"#),
            Some(("a".to_owned(), Duration::from_secs(295)))
        );
        assert_eq!(parse("{}"), None);
    }

    proptest! {
        #[test]
        fn any_header_is_read_without_panic(text in "[A-Za-z \"=,\\\\:/.]{0,80}") {
            prop_assert!(challenges([text.as_str()].into_iter()).len() <= CHALLENGES_MAX);
        }
    }
}
