//! Which endpoints serve a registry, as containerd's `certs.d` directories say.
//!
//! ```text
//! <certs_dir>/<host>_<port>_/hosts.toml    the first of these three directories that exists, in the first
//! <certs_dir>/<host>[:<port>]/hosts.toml   certs_dir that has one, is the only one read
//! <certs_dir>/_default/hosts.toml
//!             └ ca.crt *.cert *.key        or Docker's layout, when there is no hosts.toml
//! ```
//!
//! The files are read at every pull, so a change needs no restart. `[host."URL"]` tables are tried in the order they
//! stand in the file, then `server`. containerd ignores keys that it does not know; here a misspelt `skip_verfiy` or
//! `capabilites` is an error that names the file, because it would otherwise silently change which host is asked, or
//! how safely. Nothing here opens a connection.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper::Uri;
use hyper::header::{HeaderName, HeaderValue};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use toml::de::{DeTable, DeValue};

use crate::image::reference::DEFAULT_DOMAIN;

/// Where the registry that is called docker.io really answers.
const DOCKER_HUB_HOST: &str = "registry-1.docker.io";
/// How long a connection may take to open unless `dial_timeout` says otherwise (containerd's default).
pub(super) const DIAL_TIMEOUT: Duration = Duration::from_secs(30);
/// Largest hosts.toml or PEM file that is read: far above any real one, far below harm.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// One place to ask for manifests and blobs.
#[derive(Debug, Clone)]
pub(crate) struct Endpoint {
    pub(crate) origin: Origin,
    /// What stands before `/<repository>/manifests/…`: `/v2` unless the file says otherwise; no slash at the end.
    pub(crate) prefix: String,
    /// Serves blobs, and manifests by digest.
    pub(crate) pull: bool,
    /// Is believed about which digest a tag means.
    pub(crate) resolve: bool,
    pub(crate) tls: Tls,
    /// Sent to this endpoint only, never to where it redirects.
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
    pub(crate) dial_timeout: Duration,
    /// Credentials may be sent in plain text: the operator wrote `http://`, or the host is this machine.
    pub(crate) plain_allowed: bool,
    /// Nobody said which scheme, and the host is this machine: if it does not speak TLS, speak plain HTTP to it.
    pub(crate) plain_fallback: bool,
    /// The registry itself rather than a mirror of it: the request's credentials are meant for it.
    pub(crate) is_server: bool,
}

/// Scheme, host and port: what decides whether a credential may be sent along.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Origin {
    pub(crate) https: bool,
    /// Lower case; an IPv6 address in brackets.
    pub(crate) host: String,
    /// Always set: 443 or 80 when the text has none.
    pub(crate) port: u16,
}

/// How TLS is spoken to one endpoint.
#[derive(Debug, Default)]
pub(crate) struct Tls {
    /// Trusted besides the machine's own authorities.
    pub(crate) authorities: Vec<CertificateDer<'static>>,
    pub(crate) client: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
    pub(crate) skip_verify: bool,
}

impl Clone for Tls {
    fn clone(&self) -> Self {
        let client = self.client.as_ref().map(|(chain, key)| (chain.clone(), key.clone_key()));
        Self { authorities: self.authorities.clone(), client, skip_verify: self.skip_verify }
    }
}

/// Why the settings of a registry cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HostsError {
    #[error("read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("parse {}", path.display())]
    Syntax { path: PathBuf, source: Box<toml::de::Error> },
    #[error("{}: unknown key {key:?}{}", path.display(), nearest.map(|n| format!("; did you mean {n:?}?")).unwrap_or_default())]
    UnknownKey { path: PathBuf, key: String, nearest: Option<&'static str> },
    #[error("{}: {key} {problem}", path.display())]
    Value { path: PathBuf, key: String, problem: String },
    #[error("registry {domain:?} does not form a URL")]
    Domain { domain: String },
}

impl Origin {
    /// From a URL with a host and the scheme http or https, and without a user name.
    pub(crate) fn of(uri: &Uri) -> Option<Self> {
        let https = match uri.scheme_str()? {
            "https" => true,
            "http" => false,
            _ => return None,
        };
        if uri.authority()?.as_str().contains('@') {
            return None;
        }
        let host = uri.host().filter(|host| !host.is_empty())?.to_ascii_lowercase();
        Some(Self { https, host, port: uri.port_u16().unwrap_or(if https { 443 } else { 80 }) })
    }

    /// This machine, reached without a network: containerd's MatchLocalhost.
    pub(crate) fn is_loopback(&self) -> bool {
        let bare = self.host.trim_start_matches('[').trim_end_matches(']');
        self.host == "localhost" || bare.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    }

    /// `host` or `host:port`, the port left out where it is the scheme's own.
    pub(crate) fn authority(&self) -> String {
        match (self.https, self.port) {
            (true, 443) | (false, 80) => self.host.clone(),
            (_, port) => format!("{}:{port}", self.host),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", if self.https { "https" } else { "http" }, self.authority())
    }
}

/// The endpoints of a registry, in the order to try them; the last is the registry's own server. Blocks on small files.
pub(crate) fn endpoints(certs_dirs: &[PathBuf], domain: &str) -> Result<Vec<Endpoint>, HostsError> {
    let Some(dir) = directory(certs_dirs, domain) else {
        return Ok(vec![default_server(domain)?]);
    };
    let file = dir.join("hosts.toml");
    let Some(text) = read_optional(&file)? else {
        let mut server = default_server(domain)?;
        server.tls = docker_layout(&dir)?;
        server.plain_fallback &= server.tls.authorities.is_empty() && server.tls.client.is_none();
        return Ok(vec![server]);
    };
    File { path: &file, dir: &dir }.endpoints(&text, domain)
}

/// The settings that were made for exactly this origin, as a redirect's target needs them; `None` if there are none.
pub(crate) fn settings_for(certs_dirs: &[PathBuf], origin: &Origin) -> Result<Option<Endpoint>, HostsError> {
    Ok(endpoints(certs_dirs, &origin.authority())?.into_iter().find(|endpoint| endpoint.origin == *origin))
}

/// The one directory that speaks for the domain.
fn directory(certs_dirs: &[PathBuf], domain: &str) -> Option<PathBuf> {
    let underscored = domain
        .rsplit_once(':')
        .filter(|(_, port)| !port.contains(']'))
        .map(|(host, port)| format!("{host}_{port}_"));
    certs_dirs
        .iter()
        .flat_map(|root| {
            underscored.iter().map(String::as_str).chain([domain, "_default"]).map(|name| root.join(name))
        })
        .find(|dir| dir.is_dir())
}

/// The registry itself when nothing is said about it.
fn default_server(domain: &str) -> Result<Endpoint, HostsError> {
    let host = if domain == DEFAULT_DOMAIN { DOCKER_HUB_HOST } else { domain };
    let origin = format!("https://{host}").parse().ok().and_then(|uri| Origin::of(&uri));
    let origin = origin.ok_or_else(|| HostsError::Domain { domain: domain.to_owned() })?;
    let loopback = origin.is_loopback();
    Ok(Endpoint {
        origin,
        prefix: "/v2".to_owned(),
        pull: true,
        resolve: true,
        tls: Tls::default(),
        headers: Vec::new(),
        dial_timeout: DIAL_TIMEOUT,
        plain_allowed: loopback,
        plain_fallback: loopback,
        is_server: true,
    })
}

/// Docker's `certs.d`: every `*.crt` is an authority, every `x.cert` with its `x.key` a client certificate.
fn docker_layout(dir: &Path) -> Result<Tls, HostsError> {
    let mut tls = Tls::default();
    let failed = |source| HostsError::Read { path: dir.to_owned(), source };
    let mut paths: Vec<PathBuf> = std::fs::read_dir(dir)
        .and_then(|entries| entries.map(|entry| entry.map(|entry| entry.path())).collect())
        .map_err(failed)?;
    paths.sort();
    for path in &paths {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("crt") => tls.authorities.extend(certificates(path, "the file")?),
            Some("cert") if tls.client.is_none() => {
                tls.client = Some(client_pair(path, &path.with_extension("key"), path, "the file")?);
            }
            _ => {}
        }
    }
    Ok(tls)
}

/// A hosts.toml and the directory its relative paths start from.
struct File<'a> {
    path: &'a Path,
    dir: &'a Path,
}

const HOST_KEYS: [&str; 7] =
    ["capabilities", "ca", "client", "skip_verify", "header", "override_path", "dial_timeout"];
const TOP_KEYS: [&str; 9] = [
    "server",
    "host",
    "capabilities",
    "ca",
    "client",
    "skip_verify",
    "header",
    "override_path",
    "dial_timeout",
];

impl File<'_> {
    fn endpoints(&self, text: &str, domain: &str) -> Result<Vec<Endpoint>, HostsError> {
        let document = DeTable::parse(text)
            .map_err(|source| HostsError::Syntax { path: self.path.to_owned(), source: Box::new(source) })?;
        let top = document.get_ref();
        self.known_keys(top, "", &TOP_KEYS)?;

        let mut endpoints = Vec::new();
        if let Some(hosts) = top.get("host") {
            let hosts = hosts.get_ref().as_table().ok_or_else(|| self.value("host", "is not a table"))?;
            // The parser sorts keys; the order of mirrors is the order in the file.
            let mut ordered: Vec<_> = hosts.iter().collect();
            ordered.sort_by_key(|(key, _)| key.span().start);
            for (url, settings) in ordered {
                let (url, key) = (url.get_ref().as_ref(), format!("host.{:?}", url.get_ref()));
                let settings =
                    settings.get_ref().as_table().ok_or_else(|| self.value(&key, "is not a table"))?;
                self.known_keys(settings, &format!("{key}."), &HOST_KEYS)?;
                let mut endpoint = self.at_url(url, &key)?;
                self.fill(&mut endpoint, settings, &format!("{key}."))?;
                endpoints.push(endpoint);
            }
        }
        let mut server = match self.string(top, "server", "")? {
            Some(url) => self.at_url(url, "server")?,
            None => default_server(domain)?,
        };
        server.is_server = true;
        self.fill(&mut server, top, "")?;
        // `server` may repeat a host table to say it comes last; asking it twice helps nobody.
        match endpoints.iter_mut().find(|e| e.origin == server.origin && e.prefix == server.prefix) {
            Some(twin) => twin.is_server = true,
            None => endpoints.push(server),
        }
        Ok(endpoints)
    }

    /// An endpoint with nothing but its URL; `https` is understood.
    fn at_url(&self, url: &str, key: &str) -> Result<Endpoint, HostsError> {
        let explicit = url.contains("://");
        let full = if explicit { url.to_owned() } else { format!("https://{url}") };
        let problem =
            || self.value(key, &format!("{url:?} is not an http or https URL of a host and a path"));
        let uri: Uri = full.parse().map_err(|_| problem())?;
        let origin = Origin::of(&uri).filter(|_| uri.query().is_none()).ok_or_else(problem)?;
        let loopback = origin.is_loopback();
        Ok(Endpoint {
            prefix: uri.path().trim_end_matches('/').to_owned(),
            pull: true,
            resolve: true,
            tls: Tls::default(),
            headers: Vec::new(),
            dial_timeout: DIAL_TIMEOUT,
            plain_allowed: loopback || !origin.https,
            plain_fallback: loopback && !explicit,
            is_server: false,
            origin,
        })
    }

    /// Reads the keys that host tables and the top level share.
    fn fill(&self, endpoint: &mut Endpoint, table: &DeTable<'_>, at: &str) -> Result<(), HostsError> {
        if !self.boolean(table, "override_path", at)?.unwrap_or(false) && !endpoint.prefix.ends_with("/v2") {
            endpoint.prefix.push_str("/v2");
        }
        if table.contains_key("capabilities") {
            (endpoint.pull, endpoint.resolve) = (false, false);
            for capability in self.strings(table, "capabilities", at)? {
                match capability {
                    "pull" => endpoint.pull = true,
                    "resolve" => endpoint.resolve = true,
                    // Brig never pushes and reads no referrers.
                    "push" | "referrers" => {}
                    other => {
                        let problem = format!("has {other:?}; known are \"pull\", \"resolve\" and \"push\"");
                        return Err(self.value(&format!("{at}capabilities"), &problem));
                    }
                }
            }
        }
        for path in self.strings(table, "ca", at)? {
            let found = certificates(&self.dir.join(path), &format!("{at}ca"))?;
            endpoint.tls.authorities.extend(found);
        }
        endpoint.tls.client = self.client(table, at)?;
        endpoint.tls.skip_verify = self.boolean(table, "skip_verify", at)?.unwrap_or(false);
        if endpoint.tls.skip_verify || endpoint.tls.client.is_some() || !endpoint.tls.authorities.is_empty() {
            // Whoever configures TLS means TLS.
            endpoint.plain_fallback = false;
        }
        endpoint.headers.extend(self.headers(table, at)?);
        if let Some(text) = self.string(table, "dial_timeout", at)? {
            endpoint.dial_timeout = duration(text).ok_or_else(|| {
                self.value(
                    &format!("{at}dial_timeout"),
                    &format!("{text:?} is not a duration such as \"500ms\" or \"30s\""),
                )
            })?;
        }
        Ok(())
    }

    /// `client` is a file with both, a list of such files, or a list of pairs; one identity is enough for one host.
    fn client(
        &self,
        table: &DeTable<'_>,
        at: &str,
    ) -> Result<Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>, HostsError> {
        let key = format!("{at}client");
        let Some(value) = table.get("client").map(|value| value.get_ref()) else { return Ok(None) };
        let problem =
            || self.value(&key, "is not a PEM file, or a list of one file or one [certificate, key] pair");
        let pair = match value {
            DeValue::String(both) => (both.as_ref(), both.as_ref()),
            DeValue::Array(entries) if entries.len() == 1 => match entries[0].get_ref() {
                DeValue::String(both) => (both.as_ref(), both.as_ref()),
                DeValue::Array(pair) if pair.len() == 2 => {
                    let part = |at: usize| pair[at].get_ref().as_str().ok_or_else(problem);
                    (part(0)?, part(1)?)
                }
                _ => return Err(problem()),
            },
            _ => return Err(problem()),
        };
        client_pair(&self.dir.join(pair.0), &self.dir.join(pair.1), self.path, &key).map(Some)
    }

    fn headers(&self, table: &DeTable<'_>, at: &str) -> Result<Vec<(HeaderName, HeaderValue)>, HostsError> {
        let Some(value) = table.get("header") else { return Ok(Vec::new()) };
        let header =
            value.get_ref().as_table().ok_or_else(|| self.value(&format!("{at}header"), "is not a table"))?;
        let at = format!("{at}header.");
        let mut headers = Vec::new();
        for name in header.keys() {
            let name = name.get_ref().as_ref();
            let parsed: HeaderName =
                name.parse().map_err(|_| self.value(&format!("{at}{name}"), "is not a header name"))?;
            for text in self.strings(header, name, &at)? {
                let mut value = HeaderValue::from_str(text)
                    .map_err(|_| self.value(&format!("{at}{name}"), "is not a header value"))?;
                // It may be a credential: keep it out of logs and HPACK tables.
                value.set_sensitive(true);
                headers.push((parsed.clone(), value));
            }
        }
        Ok(headers)
    }

    fn known_keys(&self, table: &DeTable<'_>, at: &str, known: &[&'static str]) -> Result<(), HostsError> {
        match table.keys().find(|key| !known.contains(&key.get_ref().as_ref())) {
            None => Ok(()),
            Some(key) => Err(HostsError::UnknownKey {
                path: self.path.to_owned(),
                key: format!("{at}{}", key.get_ref()),
                nearest: nearest(key.get_ref(), known),
            }),
        }
    }

    fn string<'t>(&self, table: &'t DeTable<'_>, key: &str, at: &str) -> Result<Option<&'t str>, HostsError> {
        table
            .get(key)
            .map(|v| v.get_ref().as_str().ok_or_else(|| self.value(&format!("{at}{key}"), "is not a string")))
            .transpose()
    }

    fn boolean(&self, table: &DeTable<'_>, key: &str, at: &str) -> Result<Option<bool>, HostsError> {
        table
            .get(key)
            .map(|v| {
                v.get_ref().as_bool().ok_or_else(|| self.value(&format!("{at}{key}"), "is not true or false"))
            })
            .transpose()
    }

    /// A string or a list of strings; nothing when the key is absent.
    fn strings<'t>(&self, table: &'t DeTable<'_>, key: &str, at: &str) -> Result<Vec<&'t str>, HostsError> {
        let problem = || self.value(&format!("{at}{key}"), "is not a string or a list of strings");
        match table.get(key).map(|value| value.get_ref()) {
            None => Ok(Vec::new()),
            Some(DeValue::String(one)) => Ok(vec![one.as_ref()]),
            Some(DeValue::Array(many)) => {
                many.iter().map(|one| one.get_ref().as_str().ok_or_else(problem)).collect()
            }
            Some(_) => Err(problem()),
        }
    }

    fn value(&self, key: &str, problem: &str) -> HostsError {
        HostsError::Value { path: self.path.to_owned(), key: key.to_owned(), problem: problem.to_owned() }
    }
}

fn read_optional(path: &Path) -> Result<Option<String>, HostsError> {
    match read_bounded(path) {
        Ok(bytes) => String::from_utf8(bytes).map(Some).map_err(|error| HostsError::Read {
            path: path.to_owned(),
            source: io::Error::new(io::ErrorKind::InvalidData, error),
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(HostsError::Read { path: path.to_owned(), source }),
    }
}

/// A whole small file; one that is larger than any real one is an error and not a surprise.
pub(super) fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    use std::io::Read;
    let mut bytes = Vec::new();
    crate::sys::fd::open_regular(path)?.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "larger than 1 MiB"));
    }
    Ok(bytes)
}

fn certificates(path: &Path, key: &str) -> Result<Vec<CertificateDer<'static>>, HostsError> {
    let pem = read_bounded(path).map_err(|source| HostsError::Read { path: path.to_owned(), source })?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        _ => Err(HostsError::Value {
            path: path.to_owned(),
            key: key.to_owned(),
            problem: "has no PEM certificate".to_owned(),
        }),
    }
}

fn client_pair(
    certificate: &Path,
    key_file: &Path,
    settings: &Path,
    key: &str,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), HostsError> {
    let chain = certificates(certificate, key)?;
    let pem =
        read_bounded(key_file).map_err(|source| HostsError::Read { path: key_file.to_owned(), source })?;
    let private = PrivateKeyDer::from_pem_slice(&pem).map_err(|_| HostsError::Value {
        path: settings.to_owned(),
        key: key.to_owned(),
        problem: format!("leads to {}, which has no PEM private key", key_file.display()),
    })?;
    Ok((chain, private))
}

/// Go's duration text, as far as one number and one unit go.
fn duration(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let number: u64 = text[..digits].parse().ok().filter(|&number| number > 0)?;
    match &text[digits..] {
        "ms" => Some(Duration::from_millis(number)),
        "s" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_secs(number.checked_mul(60)?)),
        _ => None,
    }
}

/// The known key most like the unknown one, if any is within two edits.
fn nearest(unknown: &str, known: &[&'static str]) -> Option<&'static str> {
    let distance = |known: &str| {
        let known: Vec<char> = known.chars().collect();
        let mut row: Vec<usize> = (0..=known.len()).collect();
        for (i, a) in unknown.chars().take(64).enumerate() {
            let mut diagonal = std::mem::replace(&mut row[0], i + 1);
            for (j, b) in known.iter().enumerate() {
                let cost = (diagonal + usize::from(a != *b)).min(row[j] + 1).min(row[j + 1] + 1);
                diagonal = std::mem::replace(&mut row[j + 1], cost);
            }
        }
        row[known.len()]
    };
    known
        .iter()
        .copied()
        .map(|key| (distance(key), key))
        .filter(|(edits, _)| *edits <= 2)
        .min()
        .map(|(_, key)| key)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(domain: &str, text: &str) -> Result<Vec<Endpoint>, HostsError> {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join(domain);
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(dir.join("hosts.toml"), text).unwrap();
        endpoints(&[root.path().to_owned()], domain)
    }

    fn shown(endpoints: &[Endpoint]) -> Vec<String> {
        endpoints.iter().map(|e| format!("{}{}", e.origin, e.prefix)).collect()
    }

    #[test]
    fn without_settings_a_registry_is_its_own_https_server() {
        for (domain, url, plain) in [
            ("docker.io", "https://registry-1.docker.io/v2", false),
            ("quay.io:8443", "https://quay.io:8443/v2", false),
            ("localhost:5000", "https://localhost:5000/v2", true),
            ("127.0.0.1:5000", "https://127.0.0.1:5000/v2", true),
            ("[::1]:5000", "https://[::1]:5000/v2", true),
        ] {
            let found = endpoints(&[], domain).unwrap();
            assert_eq!(shown(&found), [url]);
            assert_eq!((found[0].plain_fallback, found[0].plain_allowed), (plain, plain), "{domain}");
        }
    }

    #[test]
    fn mirrors_come_in_file_order_and_the_server_last() {
        let found = read(
            "docker.io",
            r#"
            server = "https://registry-1.docker.io"
            [host."https://z.example/hub"]
              capabilities = ["pull"]
              dial_timeout = "500ms"
            [host."http://a.example:5000/base/v2/"]
              capabilities = ["pull", "resolve", "push"]
              skip_verify = true
              [host."http://a.example:5000/base/v2/".header]
                x-one = "1"
                x-two = ["2", "3"]
            [host."m.example/raw"]
              override_path = true
            "#,
        )
        .unwrap();
        assert_eq!(
            shown(&found),
            [
                "https://z.example/hub/v2",
                "http://a.example:5000/base/v2",
                "https://m.example/raw",
                "https://registry-1.docker.io/v2"
            ]
        );
        assert_eq!((found[0].pull, found[0].resolve, found[0].plain_allowed), (true, false, false));
        assert_eq!(found[0].dial_timeout, Duration::from_millis(500));
        assert_eq!((found[1].plain_allowed, found[1].tls.skip_verify, found[1].resolve), (true, true, true));
        assert_eq!(found[1].headers.len(), 3);
        assert_eq!(found.iter().map(|e| e.is_server).collect::<Vec<_>>(), [false, false, false, true]);
    }

    #[test]
    fn a_default_directory_serves_domains_without_their_own() {
        let root = tempfile::tempdir().unwrap();
        let dirs = [root.path().to_owned()];
        for (dir, host) in
            [("_default", "d.example"), ("q.io:5", "own.example"), ("q.io_6_", "under.example")]
        {
            std::fs::create_dir(root.path().join(dir)).unwrap();
            std::fs::write(root.path().join(dir).join("hosts.toml"), format!("[host.\"https://{host}\"]\n"))
                .unwrap();
        }
        let at = |domain: &str| shown(&endpoints(&dirs, domain).unwrap());
        assert_eq!(at("r.io"), ["https://d.example/v2", "https://r.io/v2"]);
        assert_eq!(at("q.io:5"), ["https://own.example/v2", "https://q.io:5/v2"]);
        assert_eq!(at("q.io:6"), ["https://under.example/v2", "https://q.io:6/v2"]);
    }

    #[test]
    fn errors_name_the_file_and_the_key() {
        for (text, part) in [
            ("serve = \"x\"", "hosts.toml: unknown key \"serve\"; did you mean \"server\"?"),
            (
                "[host.\"https://a\"]\nskip_verfy = true",
                "unknown key \"host.\\\"https://a\\\".skip_verfy\"; did you mean \"skip_verify\"?",
            ),
            ("[host.\"https://a\"]\nzzz = 1", "unknown key"),
            ("[host.\"ftp://a\"]", "is not an http or https URL"),
            ("[host.\"https://user:pw@a\"]", "is not an http or https URL"),
            ("server = 5", "server is not a string"),
            ("skip_verify = \"yes\"", "skip_verify is not true or false"),
            ("capabilities = [\"fly\"]", "capabilities has \"fly\""),
            ("ca = [1]", "ca is not a string or a list of strings"),
            ("ca = \"none.pem\"", "none.pem"),
            ("client = [[\"a\"]]", "client is not"),
            ("dial_timeout = \"fast\"", "dial_timeout \"fast\" is not a duration"),
            ("[header]\n\"a b\" = \"x\"", "header.a b is not a header name"),
            ("= broken", "parse "),
        ] {
            let message = read("r.io", text).unwrap_err().to_string();
            assert!(message.contains(part), "{text:?} gave {message}");
            assert!(message.contains("r.io/"), "{message}");
        }
    }

    #[test]
    fn an_origin_with_a_user_name_or_another_scheme_is_none() {
        for bad in ["https://u@h/", "ftp://h/", "/path"] {
            assert_eq!(Origin::of(&bad.parse().unwrap()), None, "{bad}");
        }
        let origin = Origin::of(&"http://H.Example/".parse().unwrap()).unwrap();
        assert_eq!(origin.to_string(), "http://h.example");
        assert_eq!(origin.port, 80);
    }
}
