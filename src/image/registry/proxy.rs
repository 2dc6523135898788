//! The HTTP proxies that the environment names, and which requests go through one.
//!
//! The variables mean what Go's `net/http` makes of them, because that is what operators have written for CRI-O and
//! containerd (golang.org/x/net/http/httpproxy):
//!
//! - `HTTPS_PROXY` is for `https://`, `HTTP_PROXY` for `http://`; each also in lower case, where upper case wins; an empty
//!   one is as none. `ALL_PROXY` means nothing.
//! - The value is a URL, or `host:port` for a proxy that speaks plain HTTP. A user name and password in it are for the proxy.
//! - `NO_PROXY` lists what is asked directly, separated by commas: `example.com` is that host and all below it,
//!   `.example.com` and `*.example.com` only those below; an address or a network in CIDR form is compared with hosts that
//!   are written as addresses (no name is resolved for it); `:port` behind a host or an address limits it to that port; `*`
//!   is everything.
//! - `localhost` and loopback addresses are never asked through a proxy.
//!
//! Unlike Go's, a value that is no URL is an error of each pull that would need it: without the proxy that pull would
//! either hang or go a way that the operator did not want. SOCKS is refused the same way.

use std::fmt;
use std::net::IpAddr;

use hyper::Uri;
use hyper::header::HeaderValue;
use hyper_util::client::proxy::matcher::Matcher;
use ipnet::IpNet;

use super::hosts::Origin;

/// What the environment says. The default is no proxy.
#[derive(Debug, Clone, Default)]
pub(crate) struct Proxies {
    https: Setting,
    http: Setting,
    direct: Vec<Direct>,
}

/// Where a proxy is, and what it wants to hear.
#[derive(Clone)]
pub(super) struct Proxy {
    /// `http://host:port/` or `https://host:port/`, without user name and password.
    pub(super) uri: Uri,
    /// The value of `Proxy-Authorization`.
    pub(super) authorization: Option<HeaderValue>,
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proxy").field("uri", &self.uri).finish_non_exhaustive()
    }
}

/// Why the way to a host is unknown. The value may hold a password and is not shown.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{variable} is not a URL of an HTTP proxy, as http://proxy.example:3128, its password percent-encoded; correct it and restart brigd"
)]
pub(super) struct ProxyError {
    variable: String,
}

#[derive(Debug, Clone, Default)]
enum Setting {
    #[default]
    None,
    Proxy(Proxy),
    Unusable(ProxyError),
}

/// An entry of `NO_PROXY`.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Direct {
    Everything,
    Network(IpNet),
    Address(IpAddr, Option<u16>),
    Domain {
        /// Lower case, with a leading dot.
        suffix: String,
        /// The domain itself, too.
        itself: bool,
        port: Option<u16>,
    },
}

impl Proxies {
    /// From the environment of this process, which cannot change while it runs.
    pub(crate) fn from_env() -> Self {
        Self::read(|name| std::env::var(name).ok())
    }

    /// From any environment.
    pub(crate) fn read(variable: impl Fn(&str) -> Option<String>) -> Self {
        let first = |upper: &str| {
            [upper.to_owned(), upper.to_ascii_lowercase()]
                .into_iter()
                .find_map(|name| Some((variable(&name).filter(|value| !value.is_empty())?, name)))
        };
        let setting =
            |upper| first(upper).map_or(Setting::None, |(value, name)| Setting::parse(&value, name));
        let direct = first("NO_PROXY").map(|(value, _)| value).unwrap_or_default();
        Self {
            https: setting("HTTPS_PROXY"),
            http: setting("HTTP_PROXY"),
            direct: direct.split(',').filter_map(Direct::parse).collect(),
        }
    }

    /// The proxy between this machine and where `uri` points; `None` is the direct way.
    pub(super) fn between(&self, uri: &Uri) -> Result<Option<&Proxy>, ProxyError> {
        let Some(origin) = Origin::of(uri) else { return Ok(None) };
        let setting = if origin.https { &self.https } else { &self.http };
        if matches!(setting, Setting::None)
            || origin.is_loopback()
            || self.direct.iter().any(|entry| entry.matches(&origin))
        {
            return Ok(None);
        }
        match setting {
            Setting::None => Ok(None),
            Setting::Proxy(proxy) => Ok(Some(proxy)),
            Setting::Unusable(error) => Err(error.clone()),
        }
    }
}

impl Setting {
    fn parse(value: &str, variable: String) -> Self {
        // hyper-util reads the URL and decodes what stands before the @. Of NO_PROXY it knows curl's rules, without ports.
        let matcher = Matcher::builder().http(value.trim()).build();
        let found = matcher.intercept(&Uri::from_static("http://any.example/"));
        let is_usable = |uri: &Uri| {
            // A second @ is left in the host, and with it the end of a password that was not percent-encoded.
            matches!(uri.scheme_str(), Some("http" | "https"))
                && uri.authority().is_some_and(|authority| !authority.as_str().contains('@'))
        };
        match found.filter(|found| is_usable(found.uri())) {
            Some(found) => {
                Self::Proxy(Proxy { uri: found.uri().clone(), authorization: found.basic_auth().cloned() })
            }
            None => Self::Unusable(ProxyError { variable }),
        }
    }
}

impl Direct {
    fn parse(entry: &str) -> Option<Self> {
        let entry = entry.trim().to_ascii_lowercase();
        if entry == "*" {
            return Some(Self::Everything);
        }
        if let Ok(network) = entry.parse() {
            return Some(Self::Network(network));
        }
        if let Ok(address) = bare(&entry).parse() {
            return Some(Self::Address(address, None));
        }
        let (host, port) = match entry.rsplit_once(':') {
            // What follows the colon is no port: the entry names nothing that could be asked.
            Some((host, port)) => (host, Some(port.parse().ok()?)),
            None => (entry.as_str(), None),
        };
        if let Ok(address) = bare(host).parse() {
            return Some(Self::Address(address, port));
        }
        let host = host.strip_prefix('*').filter(|rest| rest.starts_with('.')).unwrap_or(host);
        let itself = !host.starts_with('.');
        let name = host.trim_start_matches('.');
        (!name.is_empty()).then(|| Self::Domain { suffix: format!(".{name}"), itself, port })
    }

    fn matches(&self, origin: &Origin) -> bool {
        let address = bare(&origin.host).parse::<IpAddr>().ok();
        let on = |port: &Option<u16>| port.is_none_or(|port| port == origin.port);
        match self {
            Self::Everything => true,
            Self::Network(network) => address.is_some_and(|address| network.contains(&address)),
            Self::Address(own, port) => address == Some(*own) && on(port),
            Self::Domain { suffix, itself, port } => {
                let below = origin.host.ends_with(suffix);
                (below || (*itself && suffix[1..] == origin.host)) && on(port)
            }
        }
    }
}

/// An IPv6 address without the brackets that a URL has around it.
fn bare(host: &str) -> &str {
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxies(variables: &[(&str, &str)]) -> Proxies {
        Proxies::read(|asked| {
            variables.iter().find(|(name, _)| *name == asked).map(|(_, value)| (*value).to_owned())
        })
    }

    /// The proxy's URL, or `direct`.
    fn way(proxies: &Proxies, uri: &str) -> String {
        let uri = uri.parse().unwrap();
        proxies.between(&uri).unwrap().map_or_else(|| "direct".to_owned(), |proxy| proxy.uri.to_string())
    }

    #[test]
    fn each_scheme_has_its_variable_and_upper_case_wins() {
        let both = proxies(&[
            ("HTTPS_PROXY", "http://secure:1"),
            ("https_proxy", "http://not-this:1"),
            ("HTTP_PROXY", ""),
            ("http_proxy", "plain:3128"),
            ("ALL_PROXY", "http://nor-this:1"),
        ]);
        assert_eq!(way(&both, "https://registry.example/v2/"), "http://secure:1/");
        assert_eq!(way(&both, "http://registry.example/v2/"), "http://plain:3128/");
        let one = proxies(&[("https_proxy", "https://secure")]);
        assert_eq!(way(&one, "https://registry.example/"), "https://secure/");
        assert_eq!(way(&one, "http://registry.example/"), "direct");
    }

    #[test]
    fn this_machine_is_never_asked_through_a_proxy() {
        let all = proxies(&[("HTTPS_PROXY", "http://proxy:1"), ("HTTP_PROXY", "http://proxy:1")]);
        for host in ["localhost", "LOCALHOST:5000", "127.0.0.1:5000", "127.9.9.9", "[::1]:5000"] {
            assert_eq!(way(&all, &format!("https://{host}/")), "direct", "{host}");
            assert_eq!(way(&all, &format!("http://{host}/")), "direct", "{host}");
        }
        assert_eq!(way(&all, "https://localhost.example/"), "http://proxy:1/");
    }

    #[test]
    fn no_proxy_names_domains_addresses_networks_and_ports() {
        // As the tables of golang.org/x/net/http/httpproxy's own tests have it.
        let table = [
            ("example.com", "example.com", true),
            ("example.com", "EXAMPLE.com:5000", true),
            ("example.com", "a.b.example.com", true),
            ("example.com", "notexample.com", false),
            (".example.com", "example.com", false),
            (".example.com", "a.example.com", true),
            ("*.example.com", "example.com", false),
            ("*.example.com", "a.example.com", true),
            ("example.com:5000", "example.com:5000", true),
            ("example.com:5000", "a.example.com:5000", true),
            ("example.com:5000", "example.com", false),
            ("example.com:443", "example.com", true),
            ("example.com:http", "example.com", false),
            ("10.1.2.3", "10.1.2.3:5000", true),
            ("10.1.2.3", "10.1.2.30", false),
            ("10.1.2.3:5000", "10.1.2.3:5000", true),
            ("10.1.2.3:5000", "10.1.2.3", false),
            ("10.0.0.0/8", "10.250.0.1", true),
            ("10.0.0.0/8", "11.0.0.1", false),
            ("10.0.0.0/8", "ten.example", false),
            ("fd00::/8", "[fd12::1]:5000", true),
            ("fd12::1", "[fd12::1]", true),
            ("[fd12::1]:5000", "[fd12::1]:5000", true),
            ("[fd12::1]:5000", "[fd12::1]", false),
            ("[fd12::1]", "[fd12::1]:5000", true),
            ("*", "anything.example", true),
            ("*", "10.1.2.3", true),
            ("", "anything.example", false),
            (" , ,:5000,.,", "anything.example:5000", false),
            ("first.example , Second.Example", "second.example", true),
        ];
        for (no_proxy, host, direct) in table {
            let proxies = proxies(&[("HTTPS_PROXY", "http://proxy:1"), ("NO_PROXY", no_proxy)]);
            let expected = if direct { "direct" } else { "http://proxy:1/" };
            assert_eq!(way(&proxies, &format!("https://{host}/")), expected, "{no_proxy:?} {host}");
        }
        let lower = proxies(&[("HTTPS_PROXY", "http://proxy:1"), ("no_proxy", "example.com")]);
        assert_eq!(way(&lower, "https://example.com/"), "direct");
    }

    #[test]
    fn a_user_name_and_password_are_decoded_and_never_printed() {
        let proxies = proxies(&[("HTTPS_PROXY", "http://us%40er:p%3Ass@proxy:3128")]);
        let uri = Uri::from_static("https://registry.example/");
        let proxy = proxies.between(&uri).unwrap().unwrap();
        // printf 'us@er:p:ss' | base64
        assert_eq!(proxy.authorization.as_ref().unwrap(), "Basic dXNAZXI6cDpzcw==");
        assert_eq!(proxy.uri, "http://proxy:3128/");
        let printed = format!("{proxies:?}");
        assert!(!printed.contains("p%3Ass") && !printed.contains("dXNAZXI"), "{printed}");
    }

    #[test]
    fn what_is_no_http_proxy_is_an_error_of_the_requests_that_would_need_it() {
        for value in ["socks5://proxy:1080", "http://", "ht tp://proxy", "http://user:secret@@proxy"] {
            let proxies = proxies(&[("https_proxy", value), ("NO_PROXY", "near.example")]);
            let error = proxies.between(&Uri::from_static("https://far.example/")).unwrap_err();
            assert_eq!(error, ProxyError { variable: "https_proxy".into() }, "{value}");
            assert!(!error.to_string().contains("secret"));
            assert_eq!(way(&proxies, "https://near.example/"), "direct");
            assert_eq!(way(&proxies, "http://far.example/"), "direct");
        }
    }
}
