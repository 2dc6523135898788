//! Pods with a user namespace of their own. Only for handlers that say they can.

use std::os::unix::fs::MetadataExt;

use super::*;

const BASE: u32 = 200_000;
const COUNT: u32 = 65_536;

fn mapping(host_id: u32, length: u32) -> Vec<IdMapping> {
    vec![IdMapping { host_id, container_id: 0, length }]
}

fn own_users(config: &mut PodSandboxConfig) {
    let user = UserNamespace {
        mode: NamespaceMode::Pod as i32,
        uids: mapping(BASE, COUNT),
        gids: mapping(BASE, COUNT),
    };
    pod_context(config).namespace_options.get_or_insert_default().userns_options = Some(user);
}

const MAP: &str = "tr -s ' ' < /proc/self/uid_map; cat /proc/self/gid_map | tr -s ' '";

#[test]
fn privileged_root_of_a_pod_is_nobody_on_the_host() {
    on_handler("brig", "", |node| {
        let pod = Pod::with(node, "users", own_users);
        let both = format!(" 0 {BASE} {COUNT}\n 0 {BASE} {COUNT}");
        assert_eq!(pod.sh(MAP, |_| {}), both);
        // The image's files belong to the container's root, and what it writes to a mapped volume to the host's.
        let volume = folder(node, "volume");
        std::fs::write(volume.join("theirs"), "").unwrap();
        let mapped = Mount {
            uid_mappings: mapping(BASE, COUNT),
            gid_mappings: mapping(BASE, COUNT),
            ..bind(&volume, "/volume")
        };
        let plain = folder(node, "plain");
        std::fs::set_permissions(&plain, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
        let text = pod.sh(
            "stat -c '%u:%g' /bin/busybox /volume/theirs; touch /volume/new /plain/new /root/new && id -u; \
             chown 1000:1000 /volume/new; stat -c '%u' /volume/new; cat /etc/hostname; ls -d /dev/shm; \
             echo x > /dev/null; head -c1 /dev/zero | wc -c; mount | grep -c ' /proc '",
            |c| c.mounts = vec![mapped.clone(), bind(&plain, "/plain")],
        );
        assert_eq!(text, "0:0\n0:0\n0\n1000\nusers\n/dev/shm\n1\n1");
        let owner =
            |path: std::path::PathBuf| std::fs::metadata(path).map(|file| (file.uid(), file.gid())).unwrap();
        assert_eq!(owner(volume.join("new")), (1000, 1000));
        assert_eq!(owner(plain.join("new")), (BASE, BASE));
        // CVE-2025-47291: the container is below the pod's cgroup as any other.
        let id = pod.keep(|c| c.mounts = vec![mapped.clone()]);
        let pid = {
            let request = ContainerStatusRequest { container_id: id.clone(), verbose: true };
            let info = node.call(node.runtime.clone().container_status(request)).unwrap().into_inner().info;
            let info: serde_json::Value = serde_json::from_str(&info["info"]).unwrap();
            info["pid"].as_u64().expect("a pid")
        };
        let cgroups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        let place = if systemd_cgroups() {
            format!("brig.slice/brig-{}.slice/brig-{id}.scope", pod.id)
        } else {
            format!("brig/{}/{id}", pod.id)
        };
        assert!(cgroups.contains(&place), "{cgroups}");
        assert_eq!(node.output(&id, MAP).trim_end(), both);
        // As another user, with a device of the host's at a place of its own, and with the default profile.
        let text = pod.sh("id -u; echo x > /dev/mine && echo written", |c| {
            context(c).run_as_user = Some(Int64Value { value: 1234 });
            c.devices = vec![Device {
                host_path: "/dev/null".into(),
                container_path: "/dev/mine".into(),
                permissions: "rw".into(),
            }];
            context(c).seccomp = Some(SecurityProfile {
                profile_type: security_profile::ProfileType::RuntimeDefault as i32,
                localhost_ref: String::new(),
            });
        });
        assert_eq!(text, "1234\nwritten");
        let (code, _) = pod.try_sh("true", |c| context(c).run_as_user = Some(Int64Value { value: 1000 }));
        assert_eq!(code, 0);
        // Ids that the namespace does not have cannot be become.
        let why = pod.refused(|c| context(c).run_as_user = Some(Int64Value { value: i64::from(COUNT) + 1 }));
        assert!(why.contains("65537"), "{why}");
        // procMount: Unmasked is an empty list, and only here.
        assert_ne!(pod.sh("ls /sys/firmware | wc -l; grep -c . /proc/interrupts", |_| {}), "");
        let why = pod.refused(|c| {
            let options = context(c).namespace_options.get_or_insert_default();
            options.userns_options.as_mut().unwrap().uids = mapping(BASE + 1, COUNT);
            options.userns_options.as_mut().unwrap().gids = mapping(BASE + 1, COUNT);
        });
        assert!(why.contains("userns_options"), "{why}");
    });
}

#[test]
fn privileged_a_user_namespace_goes_with_the_hosts_network_and_a_shared_pid_namespace() {
    on_handler("brig", "", |node| {
        let pod = Pod::with(node, "hostnet", |c| {
            own_users(c);
            c.hostname.clear();
            let options = pod_context(c).namespace_options.as_mut().unwrap();
            options.network = NamespaceMode::Node as i32;
            options.pid = NamespaceMode::Pod as i32;
        });
        let host = std::fs::read_link("/proc/self/ns/net").unwrap().display().to_string();
        let text = pod.sh(&format!("{MAP}; readlink /proc/self/ns/net; ls /sys/class/net | head -1"), |_| {});
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[..3], [&format!(" 0 {BASE} {COUNT}"), &format!(" 0 {BASE} {COUNT}"), &host]);
        // Its root is not the network's.
        let (code, text) = pod.try_sh("ip link add dummy9 type dummy 2>&1", |c| {
            context(c).capabilities.get_or_insert_default().add_capabilities = vec!["NET_ADMIN".into()];
        });
        assert!(code != 0 && text.contains("not permitted"), "{text}");
        let status = node.call(node.runtime.clone().status(StatusRequest::default())).unwrap().into_inner();
        let features = status.features.expect("features");
        assert!(features.user_namespaces_host_network);
        let handler = status.runtime_handlers.iter().find(|one| one.name == "brig").expect("listed");
        assert!(handler.features.as_ref().is_some_and(|features| features.user_namespaces));
    });
}

#[test]
fn privileged_mappings_that_cannot_be_are_refused_before_anything_is_made() {
    on_every_handler(|node| {
        let try_with = |uids: Vec<IdMapping>, gids: Vec<IdMapping>| {
            let mut config = node.pod_config("bad");
            own_users(&mut config);
            let options = pod_context(&mut config).namespace_options.as_mut().unwrap();
            (options.userns_options.as_mut().unwrap().uids, options.userns_options.as_mut().unwrap().gids) =
                (uids, gids);
            node.try_run_pod(&config).expect_err("a refusal").message().to_owned()
        };
        let two =
            [mapping(BASE, 10), vec![IdMapping { host_id: BASE + 5, container_id: 10, length: 10 }]].concat();
        for (uids, expected) in [
            (mapping(0, COUNT), "host_id"),
            (mapping(u32::MAX - 5, 10), "length"),
            (mapping(BASE, 0), "length"),
            (two, "entries"),
            (Vec::new(), "uids is required"),
        ] {
            let why = try_with(uids.clone(), uids);
            assert!(why.contains(expected), "{why}");
        }
        assert!(try_with(mapping(BASE, 10), mapping(BASE, 11)).contains("same as uids"));
        if node.handler != "brig" {
            let why = try_with(mapping(BASE, COUNT), mapping(BASE, COUNT));
            assert!(why.contains("user namespace") && why.contains(&node.handler), "{why}");
        }
        let pods = node.call(node.runtime.clone().list_pod_sandbox(ListPodSandboxRequest::default()));
        assert_eq!(pods.unwrap().into_inner().items, []);
    });
}
