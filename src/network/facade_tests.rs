//! [`Network`] as the pod's verbs use it: which kind serves when, and that nothing is lost between them.

use std::os::unix::fs::PermissionsExt;

use super::bridge::Swept;
use super::netlink::Socket;
use super::tests::{Namespace, in_new_netns};
use super::*;
use crate::pod::spec::Protocol;

/// A plugin with an address of its own; GC and DEL do nothing.
const PLUGIN: &str = r#"#!/bin/sh
cat > /dev/null
case $CNI_COMMAND in
VERSION) echo '{"cniVersion":"1.1.0","supportedVersions":["1.1.0"]}' ;;
ADD) echo '{"cniVersion":"1.1.0","ips":[{"address":"10.99.0.7/24"}]}' ;;
esac
"#;

fn config(dir: &Path) -> NetworkConfig {
    NetworkConfig {
        cni_conf_dir: dir.join("net.d"),
        cni_bin_dirs: vec![dir.join("bin")],
        cni_cache_dir: dir.join("cache"),
        state_dir: dir.join("state"),
        subnets: vec!["10.78.0.0/24".parse().unwrap()],
        ..NetworkConfig::default()
    }
}

fn install_plugin(dir: &Path) {
    std::fs::create_dir_all(dir.join("bin")).unwrap();
    std::fs::create_dir_all(dir.join("net.d")).unwrap();
    std::fs::write(dir.join("bin/fake"), PLUGIN).unwrap();
    std::fs::set_permissions(dir.join("bin/fake"), std::fs::Permissions::from_mode(0o755)).unwrap();
    let list = r#"{"name":"fake","cniVersion":"1.1.0","plugins":[{"type":"fake"}]}"#;
    std::fs::write(dir.join("half"), list).unwrap();
    std::fs::rename(dir.join("half"), dir.join("net.d/10-fake.conflist")).unwrap();
}

fn run<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(work)
}

async fn attach(
    network: &Network,
    pod: &PodId,
    netns: &Namespace,
    host_port: u16,
) -> Result<Link, NetworkError> {
    let ports = [PortMapping { protocol: Protocol::Tcp, container_port: 80, host_port, host_ip: None }];
    let attachment = Attachment {
        pod,
        name: "web",
        namespace: "shop",
        uid: "u",
        netns: netns.path(),
        ports: &ports,
        annotations: &BTreeMap::new(),
        dns: None,
        cgroup_parent: "",
    };
    network.attach(&attachment).await
}

fn veths() -> usize {
    links::all(&mut Socket::route().unwrap()).unwrap().iter().filter(|link| link.is_veth).count()
}

#[test]
fn an_impossible_configuration_is_refused_by_key_value_and_limit() {
    let error = |change: fn(&mut NetworkConfig)| {
        let mut config = NetworkConfig::default();
        change(&mut config);
        let err = Network::new(config).unwrap_err();
        std::error::Error::source(&err).map_or_else(|| err.to_string(), ToString::to_string)
    };
    Network::new(NetworkConfig::default()).unwrap();
    assert_eq!(
        error(|c| c.bridge_name = "a/b".to_owned()),
        "configuration network.bridge is \"a/b\", expected 1 to 15 letters, digits and ._-"
    );
    assert!(error(|c| c.bridge_name = "b".repeat(16)).starts_with("configuration network.bridge is"));
    assert_eq!(
        error(|c| c.subnets.push("10.1.0.0/16".parse().unwrap())),
        "configuration network.subnet is 10.87.0.0/16, fd62:7269:6700::/64, 10.1.0.0/16, \
         expected one IPv4 subnet, one IPv6 subnet, or one of each"
    );
    assert_eq!(
        error(|c| c.subnets = vec!["10.1.0.5/16".parse().unwrap()]),
        "configuration network.subnet is 10.1.0.5/16, expected a subnet without host bits"
    );
    assert_eq!(
        error(|c| c.subnets = vec!["10.1.0.0/31".parse().unwrap()]),
        "subnet 10.1.0.0/31 is too small for a bridge and one pod: at most /30"
    );
    assert_eq!(
        error(|c| c.mtu = Some(1000)),
        "configuration network.mtu is 1000, expected 1280 to 65535 bytes"
    );
}

#[test]
fn without_any_network_the_status_is_worded_as_the_kubelet_knows_it() {
    let dir = tempfile::tempdir().unwrap();
    let network = Network::new(NetworkConfig { builtin: false, ..config(dir.path()) }).unwrap();
    let not_ready = |message: &str| NetworkStatus {
        ready: false,
        reason: "NetworkPluginNotReady".to_owned(),
        message: format!("Network plugin returns error: cni plugin not initialized{message}"),
    };
    run(async {
        assert_eq!(network.status().await, not_ready(""));
        std::fs::create_dir_all(dir.path().join("net.d")).unwrap();
        std::fs::write(dir.path().join("net.d/x.conf"), "[]").unwrap();
        let file = dir.path().join("net.d/x.conf");
        let why = format!(": CNI configuration {}: the whole is [], expected an object", file.display());
        assert_eq!(network.status().await, not_ready(&why));
        install_plugin(dir.path());
        assert!(network.status().await.ready);
    });
}

#[test]
fn privileged_a_pod_is_detached_by_what_attached_it_whatever_is_configured_since() {
    in_new_netns(|| {
        let dir = tempfile::tempdir().unwrap();
        let network = Network::new(config(dir.path())).unwrap();
        let (a, b) = (Namespace::new(), Namespace::new());
        let (one, two) = (PodId::random(), PodId::random());
        run(async {
            assert!(network.status().await.ready);
            let built_in = attach(&network, &one, &a, 8080).await.unwrap();
            assert_eq!(built_in.addresses, ["10.78.0.2".parse::<IpAddr>().unwrap()]);
            assert!(matches!(&built_in.kind, LinkKind::Bridge { ports, .. } if ports.len() == 1));
            let text = serde_json::to_string(&built_in).unwrap();
            assert_eq!(serde_json::from_str::<Link>(&text).unwrap(), built_in);
            let other = ["10.79.0.0/24".parse().unwrap()];
            assert_eq!(network.set_pod_cidr(&other).unwrap(), PodCidr::InUse);
            // A reload of the machine's firewall: the next status puts our rules back.
            let nft = |arguments: &[&str]| {
                let output = std::process::Command::new("nft").args(arguments).output().unwrap();
                String::from_utf8(output.stdout).unwrap()
            };
            nft(&["flush", "ruleset"]);
            assert!(network.status().await.ready);
            let rules = nft(&["list", "ruleset"]);
            assert!(rules.contains("masquerade") && rules.contains("8080"), "{rules}");

            install_plugin(dir.path());
            let by_cni = attach(&network, &two, &b, 8080).await.unwrap();
            assert_eq!(by_cni.addresses, ["10.99.0.7".parse::<IpAddr>().unwrap()]);
            assert_eq!(by_cni.kind, LinkKind::Cni { network: "fake".to_owned() });
            for (pod, link, netns) in [(&one, &built_in, &a), (&two, &by_cni, &b)] {
                network.check(pod, link, &netns.path()).await.unwrap();
                network.detach(pod, Some(link), None).await.unwrap();
                network.detach(pod, Some(link), Some(&netns.path())).await.unwrap();
            }
            network.settle().await.unwrap();
            assert_eq!(veths(), 0);
            assert_eq!(std::fs::read_dir(dir.path().join("cache/results")).unwrap().count(), 0);
            network.teardown().await.unwrap();
            assert_eq!(network.set_pod_cidr(&other).unwrap(), PodCidr::Applied);
            std::fs::remove_dir_all(dir.path().join("net.d")).unwrap();
            let again = attach(&network, &one, &a, 0).await.unwrap();
            assert_eq!(again.addresses, ["10.79.0.2".parse::<IpAddr>().unwrap()]);
        });
    });
}

#[test]
fn privileged_gc_spares_the_living_of_both_kinds_and_takes_back_the_rest() {
    in_new_netns(|| {
        let dir = tempfile::tempdir().unwrap();
        let spaces: Vec<_> = (0..4).map(|_| Namespace::new()).collect();
        let pods: Vec<_> = (0..4).map(|_| PodId::random()).collect();
        run(async {
            let network = Network::new(config(dir.path())).unwrap();
            let mut links = Vec::new();
            for at in 0..4 {
                if at == 2 {
                    install_plugin(dir.path());
                }
                links.push(attach(&network, &pods[at], &spaces[at], 8000 + at as u16).await.unwrap());
            }
            drop(network);
            let network = Network::new(config(dir.path())).unwrap();
            let live = [(pods[0].clone(), Some(links[0].clone())), (pods[2].clone(), Some(links[2].clone()))];
            let collected = network.gc(&live).await;
            assert!(collected.failures.is_empty(), "{:?}", collected.failures);
            assert_eq!(collected.swept, Swept { addresses: 1, links: 1, ports: 0, cni: 1 });
            assert_eq!(
                (veths(), std::fs::read_dir(dir.path().join("cache/results")).unwrap().count()),
                (1, 1)
            );
            // As after a reboot: nobody lives, and the run directory is empty.
            std::fs::remove_dir_all(dir.path().join("state")).unwrap();
            let collected = Network::new(config(dir.path())).unwrap().gc(&[]).await;
            assert_eq!(collected.swept, Swept { addresses: 0, links: 1, ports: 0, cni: 1 });
        });
    });
}

#[test]
fn privileged_gc_on_a_machine_that_never_had_a_pod_makes_nothing() {
    in_new_netns(|| {
        let dir = tempfile::tempdir().unwrap();
        let network = Network::new(config(dir.path())).unwrap();
        let collected = run(network.gc(&[]));
        assert!(collected.failures.is_empty(), "{:?}", collected.failures);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        run(network.detach(&PodId::random(), None, None)).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    });
}

#[test]
fn privileged_many_pods_at_once_get_addresses_of_their_own_and_give_all_back() {
    const PODS: usize = 24;
    in_new_netns(|| {
        let dir = tempfile::tempdir().unwrap();
        let network = Arc::new(Network::new(config(dir.path())).unwrap());
        let spaces: Vec<_> = (0..PODS).map(|_| (PodId::random(), Arc::new(Namespace::new()))).collect();
        run(async {
            let mut tasks = tokio::task::JoinSet::new();
            for (at, (pod, netns)) in spaces.iter().cloned().enumerate() {
                let network = network.clone();
                tasks.spawn(async move {
                    let link = attach(&network, &pod, &netns, 9000 + at as u16).await.unwrap();
                    (pod, link)
                });
            }
            let attached = tasks.join_all().await;
            let addresses: BTreeSet<_> =
                attached.iter().flat_map(|(_, link)| link.addresses.clone()).collect();
            assert_eq!((addresses.len(), veths()), (PODS, PODS));
            let mut tasks = tokio::task::JoinSet::new();
            for (pod, link) in attached {
                let network = network.clone();
                tasks.spawn(async move { network.detach(&pod, Some(&link), None).await.unwrap() });
            }
            tasks.join_all().await;
            network.settle().await.unwrap();
        });
        assert_eq!(veths(), 0);
        assert_eq!(std::fs::read_dir(dir.path().join("state/addresses")).unwrap().count(), 0);
    });
}
