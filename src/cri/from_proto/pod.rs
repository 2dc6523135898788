//! RunPodSandbox: PodSandboxConfig to [`PodSpec`].

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;

use super::{
    ARG_BYTES_MAX, BadRequest, NAME_BYTES_MAX, PATH_BYTES_MAX, absolute, annotations, at_most, enumerated,
    keyed_text, labels, name, ranged, resources, security, text,
};
use crate::container::spec::{NamespaceMode, Namespaces, Resources};
use crate::pod::spec::{DnsConfig, PodIdentity, PodSpec, PortMapping, Protocol};
use crate::proto::v1;
use crate::sys::namespace::Kind;
use crate::sys::sysctl;

/// Bytes of a hostname, HOST_NAME_MAX in limits.h(0p).
const HOSTNAME_BYTES_MAX: usize = 64;
/// Bytes of one label of a hostname, RFC 1123.
const HOSTNAME_LABEL_BYTES_MAX: usize = 63;
/// The limits that the kubelet applies to a pod's resolv.conf.
const DNS_SERVERS_MAX: usize = 3;
const DNS_SEARCHES_MAX: usize = 32;
const DNS_SEARCH_BYTES_MAX: usize = 2048;
/// More options than resolv.conf(5) knows.
const DNS_OPTIONS_MAX: usize = 64;
/// Ports of one pod; each is a rule in the host's packet filter.
const PORTS_MAX: usize = 10_000;

/// Checks a whole RunPodSandbox request.
pub(crate) fn pod_spec(request: v1::RunPodSandboxRequest) -> Result<PodSpec, BadRequest> {
    let handler = text("runtime_handler", request.runtime_handler, NAME_BYTES_MAX)?;
    let config = request.config.ok_or_else(|| BadRequest::missing("config"))?;
    if config.windows.is_some() {
        return Err(BadRequest::unsupported("config.windows", "this server runs Linux pods"));
    }
    let linux = config.linux.unwrap_or_default();
    let security =
        security::of_pod("config.linux.security_context", linux.security_context.unwrap_or_default())?;
    Ok(PodSpec {
        identity: identity(config.metadata)?,
        handler,
        hostname: hostname(config.hostname)?,
        log_directory: match config.log_directory {
            none if none.is_empty() => None,
            directory => Some(absolute("config.log_directory", directory)?),
        },
        dns: config.dns_config.map(dns).transpose()?,
        ports: ports(config.port_mappings)?,
        labels: labels("config.labels", config.labels)?,
        annotations: annotations("config.annotations", config.annotations)?,
        cgroup_parent: cgroup_parent(linux.cgroup_parent)?,
        sysctls: sysctls(linux.sysctls, &security.namespaces)?,
        security,
        overhead: linux.overhead.map(|it| resources("config.linux.overhead", it)).transpose()?,
        resources: linux.resources.map(|it| resources("config.linux.resources", it)).transpose()?,
    })
}

/// What UpdatePodSandboxResources asks for.
#[derive(Debug, PartialEq)]
pub(crate) struct PodUpdate {
    pub(crate) overhead: Option<Resources>,
    pub(crate) resources: Option<Resources>,
}

pub(crate) fn pod_update(
    overhead: Option<v1::LinuxContainerResources>,
    asked: Option<v1::LinuxContainerResources>,
) -> Result<PodUpdate, BadRequest> {
    Ok(PodUpdate {
        overhead: overhead.map(|it| resources("overhead", it)).transpose()?,
        resources: asked.map(|it| resources("resources", it)).transpose()?,
    })
}

fn identity(metadata: Option<v1::PodSandboxMetadata>) -> Result<PodIdentity, BadRequest> {
    let metadata = metadata.ok_or_else(|| BadRequest::missing("config.metadata"))?;
    Ok(PodIdentity {
        name: name("config.metadata.name", metadata.name)?,
        uid: name("config.metadata.uid", metadata.uid)?,
        namespace: name("config.metadata.namespace", metadata.namespace)?,
        attempt: metadata.attempt,
    })
}

/// RFC 1123 with underscores, which some clusters have. The CRI text wants a hostname unless the pod is in the host's
/// network, but clients do leave it out, so an empty one is let through.
fn hostname(hostname: String) -> Result<String, BadRequest> {
    let field = "config.hostname";
    let hostname = text(field, hostname, HOSTNAME_BYTES_MAX)?;
    let fits = |label: &str| {
        (1..=HOSTNAME_LABEL_BYTES_MAX).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if hostname.is_empty() || hostname.split('.').all(fits) {
        Ok(hostname)
    } else {
        let limit =
            "must be labels of letters, digits and inner hyphens, at most 63 bytes each, joined by dots";
        Err(BadRequest::malformed(field, &hostname, limit))
    }
}

fn dns(asked: v1::DnsConfig) -> Result<DnsConfig, BadRequest> {
    at_most("config.dns_config.servers", &asked.servers, DNS_SERVERS_MAX)?;
    at_most("config.dns_config.searches", &asked.searches, DNS_SEARCHES_MAX)?;
    at_most("config.dns_config.options", &asked.options, DNS_OPTIONS_MAX)?;
    for (i, server) in asked.servers.iter().enumerate() {
        // A link-local server carries its interface: fe80::1%eth0.
        let (address, zone) = server.split_once('%').unwrap_or((server, "eth0"));
        let zone_fits = zone.bytes().all(|b| b.is_ascii_graphic()) && !zone.is_empty();
        if address.parse::<IpAddr>().is_err() || !zone_fits {
            let field = format!("config.dns_config.servers[{i}]");
            return Err(BadRequest::malformed(field, server, "must be an IP address"));
        }
    }
    let bytes = asked.searches.iter().map(|domain| domain.len() + 1).sum::<usize>().saturating_sub(1);
    if bytes > DNS_SEARCH_BYTES_MAX {
        let field = "config.dns_config.searches".to_owned();
        return Err(BadRequest::TooLong { field, bytes, bytes_max: DNS_SEARCH_BYTES_MAX });
    }
    // Each entry becomes a word of a line, so a space or a newline would become another setting.
    for (field, words) in [("searches", &asked.searches), ("options", &asked.options)] {
        for (i, word) in words.iter().enumerate() {
            if word.is_empty() || !word.chars().all(|c| !c.is_whitespace() && !c.is_control()) {
                let field = format!("config.dns_config.{field}[{i}]");
                return Err(BadRequest::malformed(field, word, "must be one word"));
            }
        }
    }
    Ok(DnsConfig { servers: asked.servers, searches: asked.searches, options: asked.options })
}

fn ports(asked: Vec<v1::PortMapping>) -> Result<Vec<PortMapping>, BadRequest> {
    at_most("config.port_mappings", &asked, PORTS_MAX)?;
    let mut taken = HashSet::new();
    let mut checked = Vec::with_capacity(asked.len());
    for (i, port) in asked.into_iter().enumerate() {
        let at = format!("config.port_mappings[{i}]");
        let number = |field: &str, value: i32, min: i64| {
            let number = ranged(format_args!("{at}.{field}"), i64::from(value), min, 65_535)?;
            Ok(u16::try_from(number).expect("the range is that of u16"))
        };
        let host_port = number("host_port", port.host_port, 0)?;
        let mapping = PortMapping {
            protocol: match enumerated(format_args!("{at}.protocol"), port.protocol)? {
                v1::Protocol::Tcp => Protocol::Tcp,
                v1::Protocol::Udp => Protocol::Udp,
                v1::Protocol::Sctp => Protocol::Sctp,
            },
            // A host port must lead somewhere; without one the number only informs, and 0 is "not specified".
            container_port: number("container_port", port.container_port, i64::from(host_port > 0))?,
            host_port,
            host_ip: match port.host_ip {
                any if any.is_empty() => None,
                ip => match ip.parse() {
                    Ok(ip) => Some(ip),
                    Err(_) => {
                        return Err(BadRequest::malformed(
                            format_args!("{at}.host_ip"),
                            &ip,
                            "must be an IP address",
                        ));
                    }
                },
            },
        };
        if host_port > 0 && !taken.insert((mapping.protocol, mapping.host_port, mapping.host_ip)) {
            let limit = "is mapped twice by this pod";
            return Err(BadRequest::malformed(format_args!("{at}.host_port"), &host_port.to_string(), limit));
        }
        checked.push(mapping);
    }
    Ok(checked)
}

/// `/kubepods/burstable/pod1` or `kubepods-burstable-pod1.slice`; joined to the cgroup root, so nothing in it climbs.
fn cgroup_parent(parent: String) -> Result<String, BadRequest> {
    let field = "config.linux.cgroup_parent";
    let parent = text(field, parent, PATH_BYTES_MAX)?;
    if parent.split('/').any(|part| part == "..") || parent.chars().any(char::is_control) {
        let limit = "must be a path below the cgroup root, without \"..\"";
        return Err(BadRequest::malformed(field, &parent, limit));
    }
    Ok(parent)
}

/// Only kernel parameters that belong to a namespace of the pod's own may be set: any other is the whole host's.
fn sysctls(
    asked: BTreeMap<String, String>,
    namespaces: &Namespaces,
) -> Result<BTreeMap<String, String>, BadRequest> {
    let field = "config.linux.sysctls";
    let own = |kind| match kind {
        Kind::Net | Kind::Uts => namespaces.network != NamespaceMode::Node,
        Kind::Ipc => namespaces.ipc != NamespaceMode::Node,
        _ => false,
    };
    for (key, value) in &asked {
        let value = text(format_args!("{field}[{key:?}]"), value.clone(), ARG_BYTES_MAX)?;
        sysctl::check(key, &value, own).map_err(|why| BadRequest::Sysctl {
            field: format!("{field}[{key:?}]"),
            value: super::quoted(&value),
            why,
        })?;
    }
    keyed_text(field, asked)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> v1::RunPodSandboxRequest {
        v1::RunPodSandboxRequest {
            config: Some(v1::PodSandboxConfig {
                metadata: Some(v1::PodSandboxMetadata {
                    name: "web".into(),
                    uid: "5f2b".into(),
                    namespace: "default".into(),
                    attempt: 3,
                }),
                ..Default::default()
            }),
            runtime_handler: String::new(),
        }
    }

    fn with(edit: impl FnOnce(&mut v1::PodSandboxConfig)) -> Result<PodSpec, String> {
        let mut request = request();
        edit(request.config.as_mut().unwrap());
        pod_spec(request).map_err(|err| err.to_string())
    }

    fn linux(edit: impl FnOnce(&mut v1::LinuxPodSandboxConfig)) -> Result<PodSpec, String> {
        with(|config| edit(config.linux.get_or_insert_default()))
    }

    #[test]
    fn a_pod_needs_a_name_a_uid_and_a_namespace_and_nothing_else() {
        let spec = pod_spec(request()).unwrap();
        assert_eq!(
            spec.identity,
            PodIdentity { name: "web".into(), uid: "5f2b".into(), namespace: "default".into(), attempt: 3 }
        );
        assert_eq!(spec.log_directory, None);
        let without = |edit: fn(&mut v1::PodSandboxMetadata)| with(|c| edit(c.metadata.as_mut().unwrap()));
        assert_eq!(without(|m| m.name.clear()), Err("config.metadata.name is required".into()));
        assert_eq!(without(|m| m.uid.clear()), Err("config.metadata.uid is required".into()));
        assert_eq!(without(|m| m.namespace.clear()), Err("config.metadata.namespace is required".into()));
        assert_eq!(
            without(|m| m.name = "../x".into()),
            Err(r#"config.metadata.name is "../x": no slash and no control character may be in it"#.into())
        );
        assert_eq!(with(|c| c.metadata = None), Err("config.metadata is required".into()));
        assert_eq!(
            pod_spec(v1::RunPodSandboxRequest::default()).unwrap_err().to_string(),
            "config is required"
        );
    }

    #[test]
    fn a_hostname_has_at_most_64_bytes_and_63_per_label() {
        let host = |hostname: &str| with(|c| c.hostname = hostname.to_owned()).map(|spec| spec.hostname);
        let longest = format!("{}.{}", "a".repeat(61), "bc");
        for good in ["", "web-0", "web.default.svc", "a_b", &"a".repeat(63), &longest] {
            assert_eq!(host(good).as_deref(), Ok(good));
        }
        for bad in ["-web", "web-", "a..b", ".a", "a b", "a/b", "é", &"a".repeat(64)] {
            assert!(host(bad).unwrap_err().starts_with("config.hostname is"), "{bad}");
        }
        assert_eq!(host(&"a".repeat(65)), Err("config.hostname has 65 bytes: at most 64 are allowed".into()));
    }

    #[test]
    fn ports_are_in_range_and_mapped_once() {
        let port = |protocol, host_port, container_port, host_ip: &str| v1::PortMapping {
            protocol,
            host_port,
            container_port,
            host_ip: host_ip.into(),
        };
        let ports =
            |list: &[v1::PortMapping]| with(|c| c.port_mappings = list.to_vec()).map(|spec| spec.ports);
        assert_eq!(
            ports(&[port(2, 8080, 80, "::1"), port(0, 0, 0, "")]),
            Ok(vec![
                PortMapping {
                    protocol: Protocol::Sctp,
                    container_port: 80,
                    host_port: 8080,
                    host_ip: Some("::1".parse().unwrap())
                },
                PortMapping { protocol: Protocol::Tcp, container_port: 0, host_port: 0, host_ip: None },
            ])
        );
        for (bad, error) in [
            (port(0, 65_536, 80, ""), "host_port is 65536: must be 0 to 65535"),
            (port(0, -1, 80, ""), "host_port is -1: must be 0 to 65535"),
            (port(0, 80, 0, ""), "container_port is 0: must be 1 to 65535"),
            (port(0, 80, 80, "localhost"), r#"host_ip is "localhost": must be an IP address"#),
            (port(9, 80, 80, ""), r#"protocol is "9": is none of the enum's values in the CRI's version 1"#),
        ] {
            assert_eq!(ports(&[bad]), Err(format!("config.port_mappings[0].{error}")));
        }
        assert_eq!(
            ports(&[port(0, 80, 80, ""), port(1, 80, 80, ""), port(0, 80, 81, "")]),
            Err(r#"config.port_mappings[2].host_port is "80": is mapped twice by this pod"#.into())
        );
    }

    #[test]
    fn sysctls_of_the_host_are_refused() {
        let sysctl = |key: &str, node: bool| {
            linux(|l| {
                l.sysctls.insert(key.to_owned(), "1".to_owned());
                let mode = if node { v1::NamespaceMode::Node } else { v1::NamespaceMode::Pod };
                l.security_context.get_or_insert_default().namespace_options = Some(v1::NamespaceOption {
                    network: mode.into(),
                    ipc: mode.into(),
                    ..Default::default()
                });
            })
        };
        for good in
            ["net.ipv4.ip_forward", "kernel.shm_rmid_forced", "fs.mqueue.msg_max", "net/ipv4/conf/eth0.1/mtu"]
        {
            assert!(sysctl(good, false).is_ok(), "{good}");
            assert!(sysctl(good, true).unwrap_err().contains("and this one is the host's"), "{good}");
        }
        assert_eq!(
            sysctl("kernel.core_pattern", false).unwrap_err(),
            r#"config.linux.sysctls["kernel.core_pattern"] is "1": it belongs to no namespace and would change the whole host"#
        );
        let two_lines = linux(|l| {
            l.sysctls.insert("kernel.sem".into(), "1\nkernel.core_pattern=x".into());
        });
        assert_eq!(
            two_lines.unwrap_err(),
            r#"config.linux.sysctls["kernel.sem"] is "1\nkernel.core_pattern=x": a value is one line"#
        );
    }

    #[test]
    fn resolv_conf_cannot_be_given_lines_of_its_own() {
        let dns = |servers: &[&str], searches: &[&str], options: &[&str]| {
            let list = |words: &[&str]| words.iter().map(|&w| w.to_owned()).collect();
            with(|c| {
                c.dns_config = Some(v1::DnsConfig {
                    servers: list(servers),
                    searches: list(searches),
                    options: list(options),
                });
            })
        };
        assert!(dns(&["10.0.0.10", "fe80::1%eth0"], &["svc.cluster.local", "."], &["ndots:5"]).is_ok());
        assert_eq!(
            dns(&["dns.example"], &[], &[]).unwrap_err(),
            r#"config.dns_config.servers[0] is "dns.example": must be an IP address"#
        );
        assert_eq!(
            dns(&[], &["a\nnameserver 6.6.6.6"], &[]).unwrap_err(),
            r#"config.dns_config.searches[0] is "a\nnameserver 6.6.6.6": must be one word"#
        );
        assert!(dns(&["1.1.1.1"; 4], &[], &[]).is_err());
        assert!(dns(&[], &[&"a".repeat(2049)], &[]).is_err());
        assert!(dns(&[], &[], &[""]).is_err());
    }

    #[test]
    fn limits_of_cgroups_are_checked_one_by_one() {
        use v1::LinuxContainerResources as R;
        let asked = |r: R| linux(|l| l.resources = Some(r)).map(|spec| spec.resources.unwrap());
        let all = asked(R {
            cpu_period: 100_000,
            cpu_quota: -1,
            cpu_shares: 2,
            memory_limit_in_bytes: 1 << 20,
            memory_swap_limit_in_bytes: 1 << 20,
            oom_score_adj: -997,
            cpuset_cpus: "0-3,7".into(),
            unified: BTreeMap::from([
                ("memory.high".into(), "max".into()),
                ("hugetlb.2MB.max".into(), "0".into()),
            ]),
            hugepage_limits: vec![v1::HugepageLimit { page_size: "2MB".into(), limit: 0 }],
            ..R::default()
        })
        .unwrap();
        assert_eq!((all.cpu_quota_us, all.oom_score_adj), (Some(-1), Some(-997)));
        assert_eq!(asked(R::default()), Ok(Resources::default()));
        let at = "config.linux.resources";
        for (bad, error) in [
            (R { cpu_period: 999, ..R::default() }, "cpu_period is 999: must be 1000 to 1000000"),
            (
                R { cpu_quota: 500, ..R::default() },
                r#"cpu_quota is "500": must be -1 (no limit) or at least 1000"#,
            ),
            (R { cpu_shares: 1, ..R::default() }, "cpu_shares is 1: must be 2 to 262144"),
            (R { oom_score_adj: 1001, ..R::default() }, "oom_score_adj is 1001: must be -1000 to 1000"),
            (
                R { memory_limit_in_bytes: -2, ..R::default() },
                r#"memory_limit_in_bytes is "-2": must be -1 (no limit) or positive"#,
            ),
            (
                R { memory_limit_in_bytes: 2, memory_swap_limit_in_bytes: 1, ..R::default() },
                "memory_swap_limit_in_bytes is \"1\": counts memory and swap together and cannot be less than \
                 memory_limit_in_bytes",
            ),
            (
                R { cpuset_cpus: "3-1".into(), ..R::default() },
                r#"cpuset_cpus is "3-1": must be a list of numbers and ranges such as "0-3,7""#,
            ),
            (
                R { cpuset_mems: "+1".into(), ..R::default() },
                r#"cpuset_mems is "+1": must be a list of numbers and ranges such as "0-3,7""#,
            ),
        ] {
            assert_eq!(asked(bad), Err(format!("{at}.{error}")));
        }
        for file in ["cgroup.procs", "cgroup.kill", "../memory.max", "memory", "hugetlb./x", ".memory.max"] {
            let unified = BTreeMap::from([(file.to_owned(), "1".to_owned())]);
            assert!(asked(R { unified, ..R::default() }).is_err(), "{file}");
        }
        for page_size in ["", "MB", "2mb", "2MB/../x", "+2MB"] {
            let hugepage_limits = vec![v1::HugepageLimit { page_size: page_size.into(), limit: 1 }];
            assert!(asked(R { hugepage_limits, ..R::default() }).is_err(), "{page_size}");
        }
    }

    #[test]
    fn cgroup_parents_and_log_directories_stay_where_they_belong() {
        for good in ["", "/kubepods/burstable/pod1", "kubepods-burstable-pod1.slice"] {
            assert_eq!(linux(|l| l.cgroup_parent = good.into()).unwrap().cgroup_parent, good);
        }
        assert!(linux(|l| l.cgroup_parent = "/kubepods/../../x".into()).is_err());
        assert_eq!(
            with(|c| c.log_directory = "var/log".into()),
            Err(r#"config.log_directory is "var/log": must be an absolute path"#.into())
        );
        assert_eq!(
            with(|c| c.log_directory = "/var\0".into()),
            Err("config.log_directory contains a NUL byte: no text of a request may".into())
        );
        assert_eq!(
            with(|c| c.windows = Some(v1::WindowsPodSandboxConfig::default())),
            Err("config.windows is set: this server runs Linux pods".into())
        );
    }
}
