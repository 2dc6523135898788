//! Whose namespaces a container is in, and sysctls, which belong to them.

use super::*;

fn options(network: NamespaceMode, pid: NamespaceMode, ipc: NamespaceMode) -> Option<NamespaceOption> {
    Some(NamespaceOption { network: network as i32, pid: pid as i32, ipc: ipc as i32, ..Default::default() })
}

fn host(kind: &str) -> String {
    std::fs::read_link(format!("/proc/self/ns/{kind}")).unwrap().display().to_string()
}

const NAMESPACES: &str = "for ns in net pid ipc uts mnt; do readlink /proc/self/ns/$ns; done";

#[test]
fn privileged_a_pod_is_in_the_hosts_namespaces_that_it_asks_for_and_no_others() {
    use NamespaceMode::{Container, Node as Host, Pod as Own};
    on_every_handler(|node| {
        for (n, (network, pid, ipc)) in
            [(Own, Container, Own), (Host, Host, Host), (Own, Host, Own), (Own, Own, Host)]
                .into_iter()
                .enumerate()
        {
            let pod = Pod::with(node, &format!("ns{n}"), |c| {
                pod_context(c).namespace_options = options(network, pid, ipc);
                if network == Host {
                    c.hostname.clear();
                }
            });
            let text = pod.sh(NAMESPACES, |_| {});
            let seen: Vec<bool> = ["net", "pid", "ipc", "uts", "mnt"]
                .into_iter()
                .zip(text.lines())
                .map(|(kind, link)| link == host(kind))
                .collect();
            let expected = [network == Host, pid == Host, ipc == Host, network == Host, false];
            assert_eq!(seen, expected, "{network:?} {pid:?} {ipc:?}");
            node.remove_pod(&pod.id);
        }
    });
}

#[test]
fn privileged_a_debug_container_joins_the_processes_of_its_target() {
    on_every_handler(|node| {
        let pod = Pod::new(node, "target");
        let (target, stranger) = (pod.keep(|_| {}), Pod::new(node, "stranger").keep(|_| {}));
        let at = |id: &str| {
            let mut wanted = options(NamespaceMode::Pod, NamespaceMode::Target, NamespaceMode::Pod);
            wanted.as_mut().unwrap().target_id = id.into();
            move |c: &mut ContainerConfig| context(c).namespace_options = wanted.clone()
        };
        let theirs = node.output(&target, "readlink /proc/self/ns/pid");
        assert_eq!(pod.sh("readlink /proc/self/ns/pid", at(&target)), theirs.trim());
        assert!(pod.sh("tr '\\0' ' ' < /proc/1/cmdline", at(&target)).starts_with("sleep 1000"));
        for id in [&stranger, &"0".repeat(64)] {
            let why = pod.refused(at(id));
            assert!(why.contains("not a running container of its pod"), "{why}");
        }
        node.stop_container(&target, 0);
        let why = pod.refused(at(&target));
        assert!(why.contains(&target), "{why}");
    });
}

#[test]
fn privileged_sysctls_are_set_in_the_pods_namespaces_and_never_on_the_host() {
    on_every_handler(|node| {
        let read = |path: &str| std::fs::read_to_string(format!("/proc/sys/{path}")).unwrap();
        let watched = ["kernel/core_pattern", "kernel/shm_rmid_forced", "net/ipv4/ip_local_port_range"];
        let before: Vec<String> = watched.into_iter().map(read).collect();
        let sysctls = |c: &mut PodSandboxConfig, all: &[(&str, &str)]| {
            c.linux.as_mut().unwrap().sysctls =
                all.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        };
        let pod = Pod::with(node, "sysctl", |c| {
            sysctls(
                c,
                &[
                    ("net.ipv4.ip_local_port_range", "2000 3000"),
                    ("kernel.shm_rmid_forced", "1"),
                    ("fs.mqueue.msg_max", "20"),
                ],
            );
        });
        let command =
            "cd /proc/sys; cat net/ipv4/ip_local_port_range kernel/shm_rmid_forced fs/mqueue/msg_max";
        assert_eq!(pod.sh(command, |_| {}), "2000\t3000\n1\n20");
        // CVE-2022-0532 and CVE-2022-0811.
        for (key, value, network, ipc) in [
            ("net.ipv4.ip_local_port_range", "2000 3000", NamespaceMode::Node, NamespaceMode::Pod),
            ("kernel.shm_rmid_forced", "1", NamespaceMode::Pod, NamespaceMode::Node),
            ("kernel.core_pattern", "|/x", NamespaceMode::Pod, NamespaceMode::Pod),
            ("kernel.shm_rmid_forced", "1\nkernel.core_pattern=|/x", NamespaceMode::Pod, NamespaceMode::Pod),
            ("kernel.shm_rmid_forced", "0+kernel.core_pattern=|/x", NamespaceMode::Pod, NamespaceMode::Pod),
            ("kernel.shm_rmid_forced+kernel.core_pattern", "1", NamespaceMode::Pod, NamespaceMode::Pod),
        ] {
            let mut config = node.pod_config("bad");
            sysctls(&mut config, &[(key, value)]);
            pod_context(&mut config).namespace_options = options(network, NamespaceMode::Container, ipc);
            let error = node.try_run_pod(&config).expect_err(key);
            assert!(error.message().contains(key), "{error}");
        }
        let pods = node.call(node.runtime.clone().list_pod_sandbox(ListPodSandboxRequest::default()));
        assert_eq!(pods.unwrap().into_inner().items.len(), 1);
        assert_eq!(watched.into_iter().map(read).collect::<Vec<_>>(), before);
    });
}
