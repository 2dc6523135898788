//! Devices of the host: by path, and by name through the Container Device Interface.

use std::os::unix::fs::symlink;

use super::*;

fn device(host: &str, place: &str, permissions: &str) -> Device {
    Device { host_path: host.into(), container_path: place.into(), permissions: permissions.into() }
}

/// A device node that no container has by itself and anyone may open: 10:229.
const NODE: &str = "/dev/fuse";

#[test]
fn privileged_devices_are_those_asked_for_with_the_permissions_asked_for() {
    on_every_handler(|node| {
        if !std::path::Path::new(NODE).exists() {
            eprintln!("this host has no {NODE}");
            return;
        }
        let pod = Pod::new(node, "devices");
        let dir = folder(node, "devices");
        symlink(NODE, dir.join("link")).unwrap();
        let nodes = dir.join("nodes/sub");
        std::fs::create_dir_all(&nodes).unwrap();
        for (name, minor) in [("nodes/one", 5), ("nodes/sub/two", 7)] {
            let made = rustix::fs::mknodat(
                rustix::fs::CWD,
                dir.join(name),
                rustix::fs::FileType::CharacterDevice,
                rustix::fs::Mode::from_raw_mode(0o666),
                rustix::fs::makedev(1, minor),
            );
            made.expect("mknod");
        }
        let path = |name: &str| dir.join(name).display().to_string();
        let look = "stat -c '%t:%T' /dev/mine; (: > /dev/mine) 2>/dev/null && echo writable; \
            (: < /dev/mine) 2>/dev/null && echo readable; true";
        let with = |devices: Vec<Device>| move |c: &mut ContainerConfig| c.devices = devices;
        assert_eq!(pod.sh(look, with(vec![device(NODE, "/dev/mine", "rwm")])), "a:e5\nwritable\nreadable");
        assert_eq!(pod.sh(look, with(vec![device(NODE, "/dev/mine", "r")])), "a:e5\nreadable");
        assert_eq!(
            pod.sh(look, with(vec![device(&path("link"), "/dev/mine", "rw")])),
            "a:e5\nwritable\nreadable"
        );
        // GHSA-g54h-m393-cpwq: without it, not even a node that the container makes can be opened.
        let own = "mknod /tmp/k c 10 229 2>/dev/null; cat /tmp/k 2>&1 >/dev/null | head -1";
        let denied = pod.sh(own, |c| {
            let caps = &mut context(c).capabilities;
            caps.get_or_insert_default().add_capabilities = vec!["MKNOD".into()];
        });
        assert!(denied.contains("Operation not permitted"), "{denied}");
        let folder = pod.sh(
            "cd /dev/many && find . -type c | sort | tr '\\n' ' '; head -c1 sub/two 2>&1",
            with(vec![device(&path("nodes"), "/dev/many", "rw")]),
        );
        assert!(folder.starts_with("./one ./sub/two"), "{folder}");
        for (bad, expected) in [
            (device("/dev/no-such", "/dev/mine", "rw"), "/dev/no-such"),
            (device("/etc/passwd", "/dev/mine", "rw"), "/etc/passwd"),
            (device(NODE, "/dev/mine", "rx"), "devices[0].permissions"),
            (device(NODE, "/dev/mine", ""), "devices[0].permissions"),
            (device("dev/null", "/dev/mine", "r"), "devices[0].host_path"),
            (device(NODE, "mine", "r"), "devices[0].container_path"),
        ] {
            let why = pod.refused(with(vec![bad]));
            assert!(why.contains(expected), "{why}");
        }
    });
}

#[test]
fn privileged_devices_belong_to_the_containers_user_where_the_node_is_configured_so() {
    for handler in handlers() {
        for (configured, expected) in [("false", "0:0"), ("true", "1234:567")] {
            let config = format!("[runtime]\ndevice_ownership_from_security_context = {configured}\n");
            on_handler(handler, &config, |node| {
                let pod = Pod::new(node, "owner");
                let dir = folder(node, "devices");
                let path = dir.join("null");
                let (kind, number) = (rustix::fs::FileType::CharacterDevice, rustix::fs::makedev(1, 3));
                let mode = rustix::fs::Mode::from_raw_mode(0o600);
                rustix::fs::mknodat(rustix::fs::CWD, &path, kind, mode, number).expect("mknod");
                let text = pod.sh(
                    "stat -c %u:%g:%a /dev/mine; (echo x >/dev/mine) 2>&1 | grep -c denied; true",
                    |c| {
                        c.devices = vec![device(&path.display().to_string(), "/dev/mine", "rw")];
                        context(c).run_as_user = Some(Int64Value { value: 1234 });
                        context(c).run_as_group = Some(Int64Value { value: 567 });
                    },
                );
                let denied = if configured == "true" { "0" } else { "1" };
                assert_eq!(text, format!("{expected}:600\n{denied}"));
            });
        }
    }
}

/// systemd writes all that it was told again, and puts programs of its own beside ours.
#[test]
fn privileged_the_device_filter_outlives_a_reload_of_systemd() {
    if !systemd_cgroups() {
        return;
    }
    on_every_handler(|node| {
        let pod = Pod::new(node, "reload");
        let id = pod.keep(|c| {
            context(c).capabilities.get_or_insert_default().add_capabilities = vec!["MKNOD".into()];
            c.devices = vec![device(NODE, "/dev/mine", "r")];
        });
        // 1:11 is /dev/kmsg.
        let look = "rm -f /tmp/k; mknod /tmp/k c 1 11; head -c1 /tmp/k 2>&1; (: </dev/mine) && echo read; \
            (: >/dev/mine) 2>&1; head -c1 /dev/zero | wc -c";
        let filtered = node.output(&id, look);
        assert_eq!(filtered.matches("Operation not permitted").count(), 2, "{filtered}");
        assert!(filtered.contains("read\n") && filtered.ends_with("1\n"), "{filtered}");
        let reload = || {
            let reloaded = std::process::Command::new("systemctl").arg("daemon-reload").status();
            assert!(reloaded.expect("systemctl runs").success());
        };
        reload();
        assert_eq!(node.output(&id, look), filtered);
        let request = UpdateContainerResourcesRequest {
            container_id: id.clone(),
            linux: Some(LinuxContainerResources { cpu_shares: 512, ..Default::default() }),
            ..Default::default()
        };
        node.call(node.runtime.clone().update_container_resources(request)).expect("the update");
        assert_eq!(node.output(&id, look), filtered);
        reload();
        assert_eq!(node.output(&id, look), filtered);
    });
}

/// A CDI specification in both formats; the second kind refers to what is not there.
fn write_specs(dir: &std::path::Path, marker: &std::path::Path) {
    std::fs::create_dir_all(dir).unwrap();
    let json = serde_json::json!({
        "cdiVersion": "0.6.0",
        "kind": "vendor.example/gadget",
        "containerEdits": {"env": ["GADGETS=yes"]},
        "devices": [
            {"name": "one", "containerEdits": {
                "env": ["GADGET=one"],
                "deviceNodes": [{"path": "/dev/gadget", "hostPath": "/dev/null", "permissions": "rw"}],
                "mounts": [{"hostPath": marker, "containerPath": "/gadget/file", "options": ["ro", "nosuid", "nodev", "bind"]}],
                "additionalGids": [4321],
            }},
            {"name": "all", "containerEdits": {"env": ["GADGET=all"]}},
        ],
    });
    std::fs::write(dir.join("gadget.json"), json.to_string()).unwrap();
    let yaml = "cdiVersion: \"0.5.0\"\nkind: vendor.example/net\ndevices:\n- name: \"0\"\n  containerEdits:\n    env:\n    - NET=zero\n";
    std::fs::write(dir.join("net.yaml"), yaml).unwrap();
    std::fs::write(dir.join("broken.json"), "{").unwrap();
}

#[test]
fn privileged_cdi_devices_bring_what_their_specification_says() {
    for handler in handlers() {
        let specs = tempfile::tempdir().unwrap();
        let marker = specs.path().join("marker");
        std::fs::write(&marker, "from the vendor").unwrap();
        let first = specs.path().join("first");
        write_specs(&first, &marker);
        let second = specs.path().join("second");
        let config = format!("[runtime]\ncdi_spec_dirs = [{first:?}, {second:?}]\n");
        on_handler(handler, &config, |node| {
            let pod = Pod::new(node, "cdi");
            let named = |name: &str| {
                let cdi_devices = vec![CdiDevice { name: name.into() }];
                move |c: &mut ContainerConfig| c.cdi_devices.clone_from(&cdi_devices)
            };
            let look = "echo $GADGETS $GADGET $NET; cat /gadget/file 2>/dev/null; \
                stat -c '%t:%T' /dev/gadget 2>/dev/null; id -G; true";
            assert_eq!(
                pod.sh(look, named("vendor.example/gadget=one")),
                "yes one\nfrom the vendor1:3\n0 4321"
            );
            assert_eq!(pod.sh("echo $NET", named("vendor.example/net=0")), "zero");
            // The older way, by annotation.
            let annotated = |c: &mut ContainerConfig| {
                let value = "vendor.example/gadget=all,vendor.example/net=0";
                c.annotations.insert("cdi.k8s.io/plugin".into(), value.into());
            };
            assert_eq!(pod.sh("echo $GADGET $NET", annotated), "all zero");
            for (name, expected) in [
                ("vendor.example/gadget=two", "vendor.example/gadget=two"),
                ("other.example/x=y", "other.example/x=y"),
                ("nonsense", "CDI_devices[0].name"),
            ] {
                let why = pod.refused(named(name));
                assert!(why.contains(expected), "{why}");
            }
            let why = pod.refused(|c| {
                c.annotations.insert("cdi.k8s.io/plugin".into(), "nonsense".into());
            });
            assert!(why.contains("cdi.k8s.io/plugin"), "{why}");
            // New files are found without a restart, and a later folder goes before an earlier one.
            std::fs::create_dir_all(&second).unwrap();
            let newer = r#"{"cdiVersion": "0.8.0", "kind": "vendor.example/net", "devices":
                [{"name": "0", "containerEdits": {"env": ["NET=newer"]}}]}"#;
            std::fs::write(second.join("net.json"), newer).unwrap();
            assert_eq!(pod.sh("echo $NET", named("vendor.example/net=0")), "newer");
            // Two files of one folder that claim the same device leave it undecided.
            std::fs::write(second.join("again.json"), newer).unwrap();
            let why = pod.refused(named("vendor.example/net=0"));
            assert!(why.contains("net.json") && why.contains("again.json"), "{why}");
        });
    }
}
