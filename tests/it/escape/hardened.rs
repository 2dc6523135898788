//! A hardened handler: what it refuses, and what its pods get.

use super::*;

/// Refused with a message that names the field, and nothing is left of the attempt.
fn refused(arena: &Arena, name: &str, config: ContainerConfig, field: &str) {
    match arena.run(name, config) {
        Ran::Refused(message) => {
            assert!(message.contains(field) && message.contains("hardened"), "{message}")
        }
        Ran::Exited { out, .. } => panic!("{field} was taken: {out}"),
    }
}

#[test]
fn privileged_a_hardened_handler_names_the_field_that_it_refuses() {
    let arena = Arena::new("brig-hardened");
    let plain = || arena.container(&arena.plain_image(), "true");
    let mut host_pid = plain();
    security(&mut host_pid).namespace_options.get_or_insert_default().pid = NamespaceMode::Node as i32;
    refused(&arena, "host-pid", host_pid, "namespace_options.pid");
    for name in ["SYS_ADMIN", "NET_RAW", "ALL"] {
        let mut added = plain();
        security(&mut added).capabilities =
            Some(Capability { add_capabilities: vec![name.into()], ..Default::default() });
        refused(&arena, &format!("cap-{}", name.to_lowercase().replace('_', "-")), added, "add_capabilities");
    }
    let mut device = plain();
    device.devices.push(Device {
        host_path: "/dev/null".into(),
        container_path: "/dev/x".into(),
        permissions: "r".into(),
    });
    refused(&arena, "device", device, "devices[0].host_path");
    // Outside the folders of the configuration: by name, by a climb, and by a link inside an allowed folder.
    let volumes = arena.volume("link-to").parent().expect("the folder of volumes").to_owned();
    std::os::unix::fs::symlink(arena.canary(), volumes.join("out")).expect("a link");
    for (n, path) in [arena.canary(), volumes.join("../canary"), volumes.join("out")].into_iter().enumerate()
    {
        let mut mount = plain();
        mount.mounts.push(Mount {
            container_path: "/x/../host".into(),
            host_path: path.display().to_string(),
            ..Default::default()
        });
        refused(&arena, &format!("mount{n}"), mount, "host_path");
    }
    let mut user = plain();
    security(&mut user).run_as_user = Some(Int64Value { value: 65_536 });
    refused(&arena, "user", user, "run_as_user");

    for (name, change) in [
        ("pod-privileged", (|context| context.privileged = true) as fn(&mut LinuxSandboxSecurityContext)),
        ("pod-network", |context| {
            context.namespace_options.get_or_insert_default().network = NamespaceMode::Node as i32
        }),
    ] {
        let mut config = arena.node.pod_config(name);
        change(config.linux.get_or_insert_default().security_context.get_or_insert_default());
        let status = arena.node.try_run_pod(&config).expect_err("a refusal");
        assert_eq!(status.code(), tonic::Code::InvalidArgument);
        assert!(status.message().contains("hardened"), "{}", status.message());
    }
    let ids = std::fs::read_dir(arena.node.run_dir().join("ids")).expect("the folder of ids").count();
    assert_eq!(ids, 0, "a refused pod keeps no ids");
}

#[test]
fn privileged_unconfined_turns_nothing_off_in_a_hardened_container() {
    let arena = Arena::new("brig-hardened");
    let mut config = arena.container(
        &arena.plain_image(),
        "grep -E '^(NoNewPrivs|Seccomp|CapBnd):' /proc/self/status; ulimit -c; \
         for f in /proc/[a-z]*; do [ -f $f ] && echo ${f##*/}; [ -d $f ] && [ \"$(ls $f)\" ] && echo ${f##*/}; done | tr '\\n' ' '; \
         ls /sys; unshare -r true 2>/dev/null && echo escaped; mknod /x p && echo fifo; mkdir /a /b; echo y > /a/f; \
         mv /a/f /b/ && echo moved; touch /sys/x 2>/dev/null && echo wrote; true",
    );
    let unconfined = SecurityProfile {
        profile_type: security_profile::ProfileType::Unconfined as i32,
        localhost_ref: String::new(),
    };
    security(&mut config).seccomp = Some(unconfined.clone());
    security(&mut config).apparmor = Some(unconfined);
    let ran = arena.run("unconfined", config);
    let out: Vec<&str> = ran.out().lines().map(str::trim).collect();
    assert_eq!(
        out,
        [
            "CapBnd:\t00000000000004eb".replace("4eb", "4fb").as_str(),
            "NoNewPrivs:\t1",
            "Seccomp:\t2",
            "0",
            "cgroups cpuinfo filesystems loadavg meminfo mounts net self stat sys sysvipc thread-self uptime version devices",
            "fs",
            "fifo",
            "moved",
        ]
    );
}

#[test]
fn privileged_pods_have_ids_of_their_own_over_restarts_until_they_are_removed() {
    let mut arena = Arena::new("brig-hardened");
    let ids = |arena: &Arena| {
        let dir = arena.node.run_dir().join("ids");
        let mut all: Vec<u32> = std::fs::read_dir(dir)
            .expect("the folder of ids")
            .map(|entry| entry.expect("an entry").file_name().to_string_lossy().parse().expect("a number"))
            .collect();
        all.sort_unstable();
        all
    };
    let run = |arena: &Arena, name: &str| {
        let config = arena.node.pod_config(name);
        let pod = arena.node.run_pod(&config);
        let id = arena.node.create(&pod, &arena.container(&arena.plain_image(), "exec sleep 1000"), &config);
        arena.node.start(&id);
        let map = arena.node.output(&id, "cat /proc/self/uid_map");
        let fields: Vec<u32> = map.split_whitespace().map(|field| field.parse().expect("a number")).collect();
        assert_eq!((fields[0], fields[2]), (0, 65_536), "{map}");
        (pod, id, fields[1])
    };
    let (first, _, first_id) = run(&arena, "first");
    arena.node.kill_brigd();
    arena.node.restart_brigd();
    let (second, container, second_id) = run(&arena, "second");
    assert!(first_id.abs_diff(second_id) >= 65_536);
    assert_eq!(ids(&arena), [first_id.min(second_id), first_id.max(second_id)]);
    // On the host, its processes are nobody's.
    let request = ContainerStatusRequest { container_id: container, verbose: true };
    let answer = arena.node.call(arena.node.runtime.clone().container_status(request)).expect("the status");
    let info: serde_json::Value = serde_json::from_str(&answer.into_inner().info["info"]).expect("JSON");
    let status = std::fs::read_to_string(format!("/proc/{}/status", info["pid"])).expect("the process");
    assert!(status.contains(&format!("Uid:\t{second_id}\t")), "{status}");
    arena.node.remove_pod(&first);
    assert_eq!(ids(&arena), [second_id]);
    arena.node.remove_pod(&second);
    assert_eq!(ids(&arena), Vec::<u32>::new());
}

#[test]
fn privileged_a_hardened_pods_volume_keeps_its_owners_on_disk() {
    use std::os::unix::fs::MetadataExt;
    let arena = Arena::new("brig-hardened");
    let volume = arena.volume("data");
    std::fs::write(volume.join("old"), "old").expect("a file");
    let mut config = arena.container(
        &arena.plain_image(),
        "stat -c %u:%g /data/old; echo new > /data/new; chown 7:8 /data/new",
    );
    config.mounts.push(Mount {
        container_path: "/data".into(),
        host_path: volume.display().to_string(),
        ..Default::default()
    });
    assert_eq!(arena.run("volume", config).out().trim(), "0:0");
    let owner =
        |name: &str| volume.join(name).metadata().map(|meta| (meta.uid(), meta.gid())).expect("a file");
    assert_eq!((owner("old"), owner("new")), ((0, 0), (7, 8)));
}

#[test]
fn privileged_a_hardened_root_and_image_volume_have_owners_but_no_setuid_and_no_devices() {
    let arena = Arena::new("brig-hardened");
    let volume = arena.image("volume", |image| {
        image.layer(&[Entry::file("owned", "1", 0o640).owned_by(7, 8), Entry::file("roots", "2", 0o600)])
    });
    let mut config = arena.container(
        &arena.plain_image(),
        "stat -c %u:%g /volume/owned /volume/roots; cat /volume/owned; \
         for place in / /volume; do grep \" $place \" /proc/self/mounts | cut -d' ' -f4 | tr , '\\n' | grep -E 'nosuid|nodev' | sort | tr '\\n' ' '; done",
    );
    config.mounts.push(Mount {
        container_path: "/volume".into(),
        image: Some(ImageSpec { image: volume, ..Default::default() }),
        readonly: true,
        ..Default::default()
    });
    let ran = arena.run("image-volume", config);
    assert_eq!(ran.out(), "7:8\n0:0\n1nodev nosuid nodev nosuid ");
}

#[test]
fn privileged_an_exec_session_reaches_the_containers_processes_but_not_their_memory() {
    let arena = Arena::new("brig-hardened");
    let config = arena.node.pod_config("exec");
    let pod = arena.node.run_pod(&config);
    let id = arena.node.create(&pod, &arena.container(&arena.plain_image(), "exec sleep 1000"), &config);
    arena.node.start(&id);
    assert_eq!(
        arena.node.output(&id, "ps | grep -c '[s]leep 1000'; kill -0 1 && echo seen").trim(),
        "1\nseen"
    );
    assert_ne!(arena.node.exec(&id, &["/bin/sh", "-c", "cat /proc/1/environ"]).exit_code, 0);
    assert_eq!(arena.node.output(&id, "grep Seccomp: /proc/self/status").trim(), "Seccomp:\t2");
    arena.node.stop_container(&id, 0);
    arena.node.remove_pod(&pod);
}
