//! What confines a process: user, capabilities, limits, namespaces, filters.

use super::*;

#[test]
fn privileged_capabilities_groups_and_names_are_as_configured() {
    for runtime in runtimes() {
        let bundle = Bundle::new(&runtime)
            .script("hostname; id -G; grep -E 'CapEff|CapBnd|CapAmb|NoNewPrivs' /proc/self/status")
            .with(|config| {
                config["process"]["user"] = json!({"uid": 0, "gid": 5, "additionalGids": [7, 9]});
                for set in ["bounding", "effective", "permitted"] {
                    config["process"]["capabilities"][set] = json!(["CAP_CHOWN", "CAP_KILL"]);
                }
            });
        let expected = "inside\n5 7 9\nCapEff:\t0000000000000021\nCapBnd:\t0000000000000021\nCapAmb:\t0000000000000000\nNoNewPrivs:\t1\n";
        assert_eq!(bundle.stdout(), expected, "{runtime:?}");
    }
}

#[test]
fn privileged_a_lowered_limit_holds() {
    for runtime in runtimes() {
        let bundle = Bundle::new(&runtime).script("ulimit -n").with(|config| {
            config["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200}]);
        });
        assert_eq!(bundle.stdout(), "100\n", "{runtime:?}");
    }
}

#[test]
fn privileged_a_user_namespace_maps_root_and_owns_its_mounts() {
    let bundle = Bundle::new(&ours())
        .script("cat /proc/self/uid_map | tr -s ' '; id -u; echo x > /tmp/made; stat -c %t:%T /dev/null")
        .with(|config| {
            config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "user"}));
            for ids in ["uidMappings", "gidMappings"] {
                config["linux"][ids] = json!([{"containerID": 0, "hostID": 100_000, "size": 65536}]);
            }
        });
    symlink("busybox", bundle.rootfs().join("bin/tr")).unwrap();
    std::os::unix::fs::chown(bundle.rootfs().join("tmp"), Some(100_000), Some(100_000)).unwrap();
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    fs::set_permissions(bundle.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(bundle.stdout(), " 0 100000 65536\n0\n1:3\n");
    assert_eq!(fs::metadata(bundle.rootfs().join("tmp/made")).unwrap().uid(), 100_000);
}

#[test]
fn privileged_a_read_only_root_and_mount_refuse_writes() {
    for runtime in runtimes() {
        let bundle = Bundle::new(&runtime)
            .script("echo x 2>/dev/null > /file; echo $?; echo x 2>/dev/null > /data/file; echo $?")
            .with(|config| config["root"]["readonly"] = json!(true));
        let source = bundle.path("source");
        fs::create_dir(&source).unwrap();
        fs::create_dir(bundle.rootfs().join("data")).unwrap();
        let bundle = bundle.with(|config| {
            let mounts = config["mounts"].as_array_mut().unwrap();
            mounts.push(
                json!({"destination": "/data", "type": "bind", "source": source, "options": ["rbind", "ro"]}),
            );
        });
        assert_eq!(bundle.stdout(), "1\n1\n", "{runtime:?}");
    }
}

#[test]
fn privileged_a_filtered_call_gets_its_errno() {
    for runtime in runtimes() {
        let bundle = Bundle::new(&runtime)
            .script("cd /tmp; hostname x 2>&1; mkdir y 2>/dev/null; echo $?")
            .with(|config| {
                config["linux"]["seccomp"] = json!({
                    "defaultAction": "SCMP_ACT_ALLOW",
                    "architectures": ["SCMP_ARCH_X86_64"],
                    "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}],
                });
            });
        symlink("busybox", bundle.rootfs().join("bin/mkdir")).unwrap();
        assert!(bundle.stdout().ends_with("1\n"), "{runtime:?}");
    }
}

#[test]
fn privileged_a_host_sysctl_is_refused_and_an_own_one_set() {
    let refused =
        Bundle::new(&ours()).with(|config| config["linux"]["sysctl"] = json!({"kernel.core_pattern": "x"}));
    assert!(text(&refused.run().stderr).contains("would change the whole host"));
    let own = Bundle::new(&ours()).script("cat /proc/sys/net/ipv4/ip_forward").with(|config| {
        config["linux"]["sysctl"] = json!({"net.ipv4.ip_forward": "1"});
    });
    assert_eq!(own.stdout(), "1\n");
}

#[test]
fn privileged_a_device_that_is_not_allowed_cannot_be_opened() {
    for runtime in runtimes() {
        let bundle = Bundle::new(&runtime)
            .script("mknod /dev/sda b 8 0 && cat /dev/sda 2>&1 | grep -o 'not permitted'; echo ok > /dev/null && echo fine");
        assert_eq!(bundle.stdout(), "not permitted\nfine\n", "{runtime:?}");
    }
}
