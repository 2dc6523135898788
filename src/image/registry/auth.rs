//! Which credential belongs to which registry.
//!
//! Two sources, in this order: what the CRI request carries, then Docker's config.json files. A credential is bound to
//! the host it was written for and is never tried on another: a request's `server_address` must name the registry,
//! keys in `auths` must equal its host, and a credential helper that fails ends the pull instead of letting it go on
//! with whatever comes next (CVE-2021-41092). How a credential is sent, and over what, is decided in `session/`.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use base64::engine::{DecodePaddingMode, general_purpose::STANDARD};
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::hosts::read_bounded;
use crate::image::reference::{DEFAULT_DOMAIN, Reference};

/// How long a credential helper may think. Cloud helpers call a metadata server and take a second or two.
const HELPER_TIMEOUT: Duration = Duration::from_secs(30);
/// The most a helper may print: a token is a few KiB.
const HELPER_OUTPUT_BYTES_MAX: u64 = 64 << 10;
/// What Docker's helpers know Docker Hub by.
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";

/// CRI's AuthConfig as it came: empty means not given.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct Auth {
    pub(crate) username: String,
    pub(crate) password: String,
    /// Base64 of `username:password`.
    pub(crate) auth: String,
    pub(crate) server_address: String,
    /// A refresh token, to be exchanged at the registry's token server.
    pub(crate) identity_token: String,
    /// A bearer token, sent to the registry as it is.
    pub(crate) registry_token: String,
}

impl fmt::Debug for Auth {
    /// Nothing secret: this ends up in logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Auth").field("server_address", &self.server_address).finish_non_exhaustive()
    }
}

/// One usable credential.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Credential {
    Basic { username: String, password: String },
    Identity(String),
    Bearer(String),
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Basic { .. } => "Basic(…)",
            Self::Identity(_) => "Identity(…)",
            Self::Bearer(_) => "Bearer(…)",
        })
    }
}

/// Why no credential could be found out. "There is none" is not an error.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AuthError {
    #[error("read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("parse {} as Docker's config.json", path.display())]
    Syntax { path: PathBuf, source: serde_json::Error },
    #[error("decode the auth field of {origin}: it is not the base64 of \"user:password\"")]
    NotBase64 { origin: String },
    #[error("use credential helper {0:?}: its name may hold letters, digits, \".\", \"_\" and \"-\" only")]
    HelperName(String),
    #[error("run docker-credential-{helper} for {server}")]
    HelperRun { helper: String, server: String, source: io::Error },
    #[error("docker-credential-{helper} gave no credential for {server}: {message}")]
    HelperFailed { helper: String, server: String, message: String },
}

impl Auth {
    fn credential(&self) -> Result<Option<Credential>, AuthError> {
        if !self.registry_token.is_empty() {
            return Ok(Some(Credential::Bearer(self.registry_token.clone())));
        }
        if !self.identity_token.is_empty() {
            return Ok(Some(Credential::Identity(self.identity_token.clone())));
        }
        if !self.username.is_empty() || !self.password.is_empty() {
            let (username, password) = (self.username.clone(), self.password.clone());
            return Ok(Some(Credential::Basic { username, password }));
        }
        if self.auth.is_empty() {
            return Ok(None);
        }
        decode_basic(&self.auth, "the request").map(Some)
    }

    /// Whether `server_address`, if given, names the host.
    fn is_for(&self, host: &str) -> bool {
        self.server_address.is_empty() || Key::parse(&self.server_address).host == canonical_host(host)
    }
}

/// The request's own credential, if it is meant for this host. Two hosts mean the same when the reference's domain has
/// a server of another name (docker.io): `aliases` lists them.
pub(super) fn from_request(auth: &Auth, aliases: &[&str]) -> Result<Option<Credential>, AuthError> {
    if aliases.iter().any(|host| auth.is_for(host)) { auth.credential() } else { Ok(None) }
}

/// The credential that Docker's config files hold for a repository on a host: the first file that has one decides.
pub(super) async fn from_files(
    files: &[PathBuf],
    host: &str,
    reference: &Reference,
) -> Result<Option<Credential>, AuthError> {
    for path in files {
        let Some(config) = read_config(path)? else { continue };
        if let Some(found) = config.find(path, host, reference.path()).await? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// The parts of Docker's config.json that matter here; the file has many others.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Config {
    auths: BTreeMap<String, Entry>,
    #[serde(rename = "credHelpers")]
    helpers: BTreeMap<String, String>,
    #[serde(rename = "credsStore")]
    store: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Entry {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
    registrytoken: String,
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Entry(…)")
    }
}

/// Blocks on one small local file, which is not worth a thread.
fn read_config(path: &Path) -> Result<Option<Config>, AuthError> {
    match read_bounded(path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|source| AuthError::Syntax { path: path.to_owned(), source }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(AuthError::Read { path: path.to_owned(), source }),
    }
}

impl Config {
    /// As Docker does: the host's helper, else the helper for all, else the file itself.
    async fn find(&self, path: &Path, host: &str, repository: &str) -> Result<Option<Credential>, AuthError> {
        let host = canonical_host(host);
        let helper =
            self.helpers.iter().find(|(key, _)| Key::parse(key).host == host).map(|(_, helper)| helper);
        let helper = helper.or((!self.store.is_empty()).then_some(&self.store));
        if let Some(helper) = helper {
            let server = if host == DEFAULT_DOMAIN { DOCKER_HUB_KEY } else { &host };
            if let Some(found) = ask_helper(helper, server).await? {
                return Ok(Some(found));
            }
        }
        let matching = self.auths.iter().filter_map(|(text, entry)| {
            let key = Key::parse(text);
            (key.host == host && key.covers(repository)).then_some((key.path.len(), text, entry))
        });
        // The longest path is the most particular one.
        let Some((_, text, entry)) = matching.max_by_key(|(length, ..)| *length) else { return Ok(None) };
        let auth = Auth {
            username: entry.username.clone(),
            password: entry.password.clone(),
            auth: String::new(),
            server_address: String::new(),
            identity_token: entry.identitytoken.clone(),
            registry_token: entry.registrytoken.clone(),
        };
        match auth.credential()? {
            None if entry.auth.is_empty() => Ok(None),
            None => decode_basic(&entry.auth, &format!("{text:?} in {}", path.display())).map(Some),
            found => Ok(found),
        }
    }
}

/// A key of `auths`: a host, or a URL of one, perhaps with the beginning of a repository's path.
struct Key {
    host: String,
    path: String,
}

impl Key {
    fn parse(text: &str) -> Self {
        let bare = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")).unwrap_or(text);
        let (host, path) = bare.split_once('/').unwrap_or((bare, ""));
        let path = path.trim_end_matches('/');
        // `/v1/` and `/v2/` are addresses of the API and not of a repository.
        let path = if matches!(path, "v1" | "v2") { "" } else { path };
        Self { host: canonical_host(host), path: path.to_owned() }
    }

    fn covers(&self, repository: &str) -> bool {
        match repository.strip_prefix(&self.path) {
            Some(rest) => self.path.is_empty() || rest.is_empty() || rest.starts_with('/'),
            None => false,
        }
    }
}

/// One name for all names of Docker Hub, and for a host with its scheme's own port.
fn canonical_host(host: &str) -> String {
    let host = host.to_ascii_lowercase();
    match host.as_str() {
        "index.docker.io" | "registry-1.docker.io" => DEFAULT_DOMAIN.to_owned(),
        _ => host.strip_suffix(":443").unwrap_or(&host).to_owned(),
    }
}

fn decode_basic(text: &str, origin: &str) -> Result<Credential, AuthError> {
    // Docker writes padding, some hands leave it out.
    let lenient = GeneralPurpose::new(
        &base64::alphabet::STANDARD,
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
    );
    let failed = || AuthError::NotBase64 { origin: origin.to_owned() };
    let decoded = lenient.decode(text.trim()).map_err(|_| failed())?;
    let decoded = String::from_utf8(decoded).map_err(|_| failed())?;
    let (username, password) = decoded.split_once(':').ok_or_else(failed)?;
    // Docker's own decoder strips NULs that old clients appended.
    let password = password.trim_end_matches('\0').to_owned();
    Ok(Credential::Basic { username: username.to_owned(), password })
}

/// The value of an `Authorization` header with a name and a password.
pub(super) fn basic_header(username: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{username}:{password}")))
}

#[derive(Deserialize)]
struct HelperAnswer {
    #[serde(rename = "Username", default)]
    username: String,
    #[serde(rename = "Secret", default)]
    secret: String,
}

/// Docker's helper protocol: the server's name on stdin, JSON on stdout. `None` is the helper's "I have none".
async fn ask_helper(helper: &str, server: &str) -> Result<Option<Credential>, AuthError> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    if helper.is_empty() || !helper.bytes().all(plain) {
        return Err(AuthError::HelperName(helper.to_owned()));
    }
    let run_failed =
        |source| AuthError::HelperRun { helper: helper.to_owned(), server: server.to_owned(), source };
    let exchange = async {
        let mut child = tokio::process::Command::new(format!("docker-credential-{helper}"))
            .arg("get")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        let (mut stdin, stdout) = (child.stdin.take(), child.stdout.take());
        if let Some(stdin) = &mut stdin {
            // A helper that exits without reading has its say by its exit status.
            let _ = stdin.write_all(format!("{server}\n").as_bytes()).await;
        }
        drop(stdin);
        let mut output = Vec::new();
        if let Some(stdout) = stdout {
            stdout.take(HELPER_OUTPUT_BYTES_MAX).read_to_end(&mut output).await?;
        }
        Ok::<_, io::Error>((child.wait().await?, output))
    };
    let (status, output) = tokio::time::timeout(HELPER_TIMEOUT, exchange)
        .await
        .unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut)))
        .map_err(run_failed)?;
    let failed = |message: String| AuthError::HelperFailed {
        helper: helper.to_owned(),
        server: server.to_owned(),
        message,
    };
    if !status.success() {
        let said: String = String::from_utf8_lossy(&output).trim().chars().take(200).collect();
        // The one message that docker-credential-helpers fixes as "not found".
        if said.contains("credentials not found in native keychain") {
            return Ok(None);
        }
        return Err(failed(if said.is_empty() { status.to_string() } else { said }));
    }
    let answer: HelperAnswer = serde_json::from_slice(&output)
        .map_err(|_| failed("its answer is not the expected JSON".to_owned()))?;
    if answer.secret.is_empty() {
        return Err(failed("its answer has no Secret".to_owned()));
    }
    Ok(Some(match answer.username.as_str() {
        "<token>" => Credential::Identity(answer.secret),
        _ => Credential::Basic { username: answer.username, password: answer.secret },
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn basic(username: &str, password: &str) -> Option<Credential> {
        Some(Credential::Basic { username: username.to_owned(), password: password.to_owned() })
    }

    async fn find(config: &str, host: &str, repository: &str) -> Result<Option<Credential>, AuthError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        std::fs::write(&path, config).unwrap();
        let reference = format!("r.io/{repository}").parse().unwrap();
        from_files(&[dir.path().join("absent.json"), path], host, &reference).await
    }

    #[tokio::test]
    async fn the_longest_matching_path_of_the_same_host_wins() {
        let config = format!(
            r#"{{"auths": {{
                "https://index.docker.io/v1/": {{"auth": "{}"}},
                "r.io": {{"username": "host", "password": "1"}},
                "r.io/team": {{"username": "team", "password": "2"}},
                "https://r.io/team/app/": {{"username": "app", "password": "3"}},
                "other.io:5000": {{"identitytoken": "refresh"}},
                "bearer.io": {{"registrytoken": "bear"}},
                "empty.io": {{}}
            }}, "HttpHeaders": {{}}}}"#,
            STANDARD.encode("hub:pa:ss")
        );
        let config = config.as_str();
        for (host, repository, expected) in [
            ("docker.io", "library/x", basic("hub", "pa:ss")),
            ("registry-1.docker.io", "library/x", basic("hub", "pa:ss")),
            ("r.io", "x", basic("host", "1")),
            ("r.io:443", "x", basic("host", "1")),
            ("r.io", "teams/x", basic("host", "1")),
            ("r.io", "team/x", basic("team", "2")),
            ("r.io", "team/app", basic("app", "3")),
            ("r.io", "team/apple", basic("team", "2")),
            ("r.io:5000", "x", None),
            ("x.r.io", "x", None),
            ("other.io:5000", "x", Some(Credential::Identity("refresh".to_owned()))),
            ("bearer.io", "x", Some(Credential::Bearer("bear".to_owned()))),
            ("empty.io", "x", None),
        ] {
            assert_eq!(find(config, host, repository).await.unwrap(), expected, "{host} {repository}");
        }
    }

    #[tokio::test]
    async fn a_file_or_field_that_cannot_be_read_is_an_error_and_not_an_anonymous_pull() {
        assert!(matches!(find("{", "r.io", "x").await, Err(AuthError::Syntax { .. })));
        let bad = r#"{"auths": {"r.io": {"auth": "***"}}}"#;
        assert!(matches!(find(bad, "r.io", "x").await, Err(AuthError::NotBase64 { .. })));
        let evil = r#"{"credHelpers": {"r.io": "../../bin/sh"}}"#;
        assert!(matches!(find(evil, "r.io", "x").await, Err(AuthError::HelperName(_))));
    }

    #[tokio::test]
    async fn a_failing_helper_is_fatal_and_no_other_credential_is_used() {
        let config = r#"{"credHelpers": {"r.io": "brig-test-absent"}, "auths": {"r.io": {"username": "u"}}}"#;
        assert!(matches!(find(config, "r.io", "x").await, Err(AuthError::HelperRun { .. })));
        // Another host is not concerned.
        assert_eq!(find(config, "q.io", "x").await.unwrap(), None);
    }

    #[test]
    fn a_request_credential_is_used_only_for_the_server_it_names() {
        let auth = Auth { username: "u".into(), password: "p".into(), ..Auth::default() };
        let at = |server: &str, hosts: &[&str]| {
            from_request(&Auth { server_address: server.to_owned(), ..auth.clone() }, hosts).unwrap()
        };
        assert_eq!(at("", &["r.io"]), basic("u", "p"));
        assert_eq!(at("https://r.io/v2/", &["r.io"]), basic("u", "p"));
        assert_eq!(
            at("https://index.docker.io/v1/", &["docker.io", "registry-1.docker.io"]),
            basic("u", "p")
        );
        assert_eq!(at("q.io", &["r.io"]), None);
        assert_eq!(at("r.io.evil.example", &["r.io"]), None);
        let encoded = Auth { auth: STANDARD.encode("a:b").replace('=', ""), ..Auth::default() };
        assert_eq!(from_request(&encoded, &["r.io"]).unwrap(), basic("a", "b"));
        assert_eq!(format!("{auth:?}"), "Auth { server_address: \"\", .. }");
    }
}
