//! The text of a pod's /etc/resolv.conf: what its configuration says, else what the host's says.

use std::io::Read;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use crate::pod::spec::DnsConfig;

/// resolv.conf(5): MAXNS; further servers are never asked.
const SERVERS_MAX: usize = 3;
/// The kubelet's limits (`MaxDNSSearchPaths`, `MaxDNSSearchListChars`); resolv.conf(5) has none since glibc 2.26.
const SEARCHES_MAX: usize = 32;
const SEARCH_CHARS_MAX: usize = 2048;
/// Options there are: about 20.
const OPTIONS_MAX: usize = 64;
/// More than any resolver reads.
const HOST_BYTES_MAX: u64 = 64 << 10;
const HOST: &str = "/etc/resolv.conf";
/// systemd-resolved's true servers, where /etc/resolv.conf names only its stub on the host's loopback.
const RESOLVED: &str = "/run/systemd/resolve/resolv.conf";

/// Why there is no text.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ResolvError {
    #[error("dns_config.{field} has {count} {unit}, the limit is {limit}")]
    TooMany { field: &'static str, count: usize, unit: &'static str, limit: usize },
    #[error("dns_config.{field}: {value:?} is no {expected}")]
    Value { field: &'static str, value: String, expected: &'static str },
    #[error("read {} for the pod's DNS", .path.display())]
    Host {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

/// The text for a pod. Without a configuration (or with an empty one) it is the host's; a pod in the host's network
/// may use a resolver on the host's loopback, another cannot.
pub(crate) fn text(dns: Option<&DnsConfig>, host_network: bool) -> Result<String, ResolvError> {
    match dns {
        Some(dns) if *dns != DnsConfig::default() => of_config(dns),
        _ => of_host(Path::new(HOST), Path::new(RESOLVED), host_network),
    }
}

fn of_config(dns: &DnsConfig) -> Result<String, ResolvError> {
    let limit = |field, count, unit, limit| match count > limit {
        true => Err(ResolvError::TooMany { field, count, unit, limit }),
        false => Ok(()),
    };
    limit("servers", dns.servers.len(), "entries", SERVERS_MAX)?;
    limit("searches", dns.searches.len(), "entries", SEARCHES_MAX)?;
    limit("options", dns.options.len(), "entries", OPTIONS_MAX)?;
    let search = dns.searches.join(" ");
    limit("searches", search.len(), "characters", SEARCH_CHARS_MAX)?;
    for (field, list, expected) in
        [("searches", &dns.searches, "domain name"), ("options", &dns.options, "resolver option")]
    {
        // A space or a line break would say something else than was asked for.
        let bad = |value: &&String| {
            value.is_empty() || value.contains(|c: char| c.is_whitespace() || c.is_control())
        };
        if let Some(value) = list.iter().find(bad) {
            return Err(ResolvError::Value { field, value: value.clone(), expected });
        }
    }
    let mut text = String::new();
    if !search.is_empty() {
        text += &format!("search {search}\n");
    }
    for server in &dns.servers {
        let (address, zone) =
            server.split_once('%').map_or((server.as_str(), ""), |(address, zone)| (address, zone));
        let plain_zone = zone.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
        if address.parse::<IpAddr>().is_err() || !plain_zone {
            return Err(ResolvError::Value {
                field: "servers",
                value: server.clone(),
                expected: "IP address",
            });
        }
        text += &format!("nameserver {server}\n");
    }
    if !dns.options.is_empty() {
        text += &format!("options {}\n", dns.options.join(" "));
    }
    Ok(text)
}

fn of_host(host: &Path, resolved: &Path, host_network: bool) -> Result<String, ResolvError> {
    let text = read(host)?;
    if host_network || !servers(&text).any(is_loopback) {
        return Ok(text);
    }
    let text = if resolved.exists() { read(resolved)? } else { text };
    // What is left on loopback is the pod's own, where nobody answers: better to fail at once than after a timeout.
    let reachable = |line: &&str| !server_of(line).is_some_and(is_loopback);
    Ok(text.lines().filter(reachable).flat_map(|line| [line, "\n"]).collect())
}

fn read(path: &Path) -> Result<String, ResolvError> {
    let mut bytes = Vec::new();
    match std::fs::File::open(path).and_then(|file| file.take(HOST_BYTES_MAX).read_to_end(&mut bytes)) {
        Ok(_) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        // resolv.conf(5): without the file, the resolver's defaults hold.
        Err(err) if err.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        Err(source) => Err(ResolvError::Host { path: path.to_owned(), source }),
    }
}

fn servers(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter_map(server_of)
}

fn server_of(line: &str) -> Option<&str> {
    let mut words = line.split_whitespace();
    (words.next() == Some("nameserver")).then(|| words.next()).flatten()
}

fn is_loopback(server: &str) -> bool {
    server.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(servers: &[&str], searches: &[&str], options: &[&str]) -> DnsConfig {
        let own = |list: &[&str]| list.iter().map(ToString::to_string).collect();
        DnsConfig { servers: own(servers), searches: own(searches), options: own(options) }
    }

    #[test]
    fn a_configuration_is_written_line_by_line() {
        let dns = config(&["10.0.0.10", "fe80::1%eth0"], &["a.local", "b"], &["ndots:5", "edns0"]);
        let expected =
            "search a.local b\nnameserver 10.0.0.10\nnameserver fe80::1%eth0\noptions ndots:5 edns0\n";
        assert_eq!(text(Some(&dns), false).unwrap(), expected);
    }

    #[test]
    fn what_resolv_conf_cannot_say_is_refused_by_name() {
        let error = |dns: DnsConfig| text(Some(&dns), false).unwrap_err().to_string();
        assert_eq!(
            error(config(&["1.1.1.1"; 4], &[], &[])),
            "dns_config.servers has 4 entries, the limit is 3"
        );
        assert_eq!(error(config(&["x"], &[], &[])), "dns_config.servers: \"x\" is no IP address");
        assert_eq!(
            error(config(&["fe80::1%a\nb"], &[], &[])),
            "dns_config.servers: \"fe80::1%a\\nb\" is no IP address"
        );
        assert_eq!(
            error(config(&[], &["a\nnameserver 6.6.6.6"], &[])),
            "dns_config.searches: \"a\\nnameserver 6.6.6.6\" is no domain name"
        );
        assert_eq!(
            error(config(&[], &[&"x".repeat(2049)], &[])),
            "dns_config.searches has 2049 characters, the limit is 2048"
        );
        assert_eq!(error(config(&[], &[], &[""])), "dns_config.options: \"\" is no resolver option");
    }

    #[test]
    fn a_stub_on_the_hosts_loopback_is_replaced_by_the_true_servers() {
        let dir = tempfile::tempdir().unwrap();
        let (host, resolved) = (dir.path().join("host"), dir.path().join("resolved"));
        assert_eq!(of_host(&host, &resolved, false).unwrap(), "");
        let stub = "# x\nnameserver 127.0.0.53\nsearch lan\n";
        std::fs::write(&host, stub).unwrap();
        assert_eq!(of_host(&host, &resolved, true).unwrap(), stub);
        assert_eq!(of_host(&host, &resolved, false).unwrap(), "# x\nsearch lan\n");
        std::fs::write(&resolved, "nameserver 9.9.9.9\nnameserver ::1\n").unwrap();
        assert_eq!(of_host(&host, &resolved, false).unwrap(), "nameserver 9.9.9.9\n");
    }
}
