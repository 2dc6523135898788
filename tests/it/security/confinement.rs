//! Seccomp, masked and read-only paths, read-only rootfs, privileged containers, labels.

use super::*;

pub(super) fn profile(kind: security_profile::ProfileType, reference: &str) -> Option<SecurityProfile> {
    Some(SecurityProfile { profile_type: kind as i32, localhost_ref: reference.into() })
}

#[test]
fn privileged_seccomp_is_what_the_profile_says_in_both_forms() {
    use security_profile::ProfileType::{Localhost, RuntimeDefault, Unconfined};
    on_every_handler(|node| {
        let pod = Pod::with(node, "seccomp", |c| pod_context(c).privileged = true);
        let files = folder(node, "profiles");
        let path = |name: &str| files.join(name).display().to_string();
        let no_chmod = r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls":
            [{"names": ["chmod", "fchmodat", "fchmodat2"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13}]}"#;
        std::fs::write(files.join("no-chmod.json"), no_chmod).unwrap();
        std::fs::write(files.join("broken.json"), "{").unwrap();
        let mode = "grep ^Seccomp: /proc/self/status | cut -f2";
        let probe = format!("{mode}; chmod 777 /tmp 2>&1; unshare -U true 2>&1 || echo no namespace");
        let seen = |edit: &dyn Fn(&mut LinuxContainerSecurityContext)| pod.sh(&probe, |c| edit(context(c)));
        // Where the kernel allows it, an unconfined process can make a user namespace.
        let free = seen(&|c| c.seccomp = profile(Unconfined, ""));
        assert!(free.starts_with('0'), "{free}");
        assert_eq!(seen(&|_| {}), free);
        let default = seen(&|c| c.seccomp = profile(RuntimeDefault, ""));
        assert_eq!(default, "2\nunshare: unshare(0x10000000): Operation not permitted\nno namespace");
        let local = seen(&|c| c.seccomp = profile(Localhost, &path("no-chmod.json")));
        assert!(local.contains("chmod: /tmp: Permission denied") && local.starts_with('2'), "{local}");
        #[expect(deprecated, reason = "the older form is what this tests")]
        for (words, expected) in [
            ("runtime/default".to_owned(), &default),
            ("docker/default".to_owned(), &default),
            ("unconfined".to_owned(), &free),
            (format!("localhost/{}", path("no-chmod.json")), &local),
        ] {
            assert_eq!(&seen(&|c| c.seccomp_profile_path = words.clone()), expected, "{words}");
        }
        assert!(
            seen(&|c| {
                c.privileged = true;
                c.seccomp = profile(RuntimeDefault, "");
            })
            .starts_with('0'),
            "a privileged container is not confined"
        );
        // An exec is confined as its container is.
        let id = pod.keep(|c| context(c).seccomp = profile(RuntimeDefault, ""));
        assert_eq!(node.output(&id, mode).trim(), "2");
        for (reference, expected) in [
            // CVE-2023-2431.
            (String::new(), "localhost_ref is required".to_owned()),
            ("profile.json".to_owned(), "localhost_ref".to_owned()),
            (path("gone.json"), path("gone.json")),
            (path("broken.json"), path("broken.json")),
            (path("../profiles"), "..".to_owned()),
            (files.display().to_string(), "not a regular file".to_owned()),
        ] {
            let why = pod.refused(|c| context(c).seccomp = profile(Localhost, &reference));
            assert!(why.contains(&expected), "{reference}: {why}");
        }
    });
}

#[test]
fn privileged_sockets_of_rare_families_are_out_of_reach_by_default() {
    // busybox has applets for exactly these: `ip` needs netlink, `wget` inet, `vconfig` and `arping` packet sockets.
    on_every_handler(|node| {
        let pod = Pod::new(node, "sockets");
        let default = |c: &mut ContainerConfig| {
            context(c).seccomp = profile(security_profile::ProfileType::RuntimeDefault, "");
        };
        assert!(pod.sh("ip -o link", default).contains("lo"));
        assert!(pod.sh("wget -O- http://127.0.0.1:1/ 2>&1 || true", default).contains("Connection refused"));
        assert!(pod.sh("ping -c1 127.0.0.1 2>&1 || true", default).contains("PING 127.0.0.1"));
    });
}

#[test]
fn privileged_what_tells_about_the_host_is_masked_and_what_steers_it_is_read_only() {
    on_every_handler(|node| {
        let pod = Pod::with(node, "masked", |c| pod_context(c).privileged = true);
        let secret = "cat /proc/kcore /proc/keys /proc/timer_list /proc/interrupts 2>/dev/null | wc -c; \
            ls /sys/firmware /proc/scsi /proc/acpi /sys/devices/virtual/powercap 2>/dev/null | grep -v : | tr -d '\\n'";
        assert_eq!(pod.sh(secret, |_| {}), "0");
        let write = "for f in /proc/sys/kernel/hostname /proc/sysrq-trigger /proc/irq/x /sys/x; do \
            (echo x > $f) 2>/dev/null && echo wrote $f; done; echo done";
        assert_eq!(pod.sh(write, |_| {}), "done");
        // A given list adds to ours, which may be newer.
        let own = |c: &mut ContainerConfig| {
            context(c).masked_paths = vec!["/etc/passwd".into(), "/tmp".into(), "/not/there".into()];
            context(c).readonly_paths = vec!["/etc".into()];
        };
        assert_eq!(pod.sh("cat /etc/passwd /proc/keys | wc -c", own), "0");
        let (code, text) = pod.try_sh("touch /etc/x", own);
        assert!(code != 0 && text.contains("Read-only file system"), "{text}");
        let why = pod.refused(|c| context(c).masked_paths = vec!["relative".into()]);
        assert!(why.contains("masked_paths[0]"), "{why}");
        let all = pod.sh(
            "head -c 1 /proc/keys | wc -c; grep ' /sys ' /proc/mounts | cut -d' ' -f4 | cut -d, -f1",
            |c| {
                context(c).privileged = true;
            },
        );
        assert!(all.ends_with("rw"), "{all}");
        // CVE-2023-25809: the cgroup tree is not to be written by whoever is not privileged.
        let cgroup = "grep -E '^[^ ]+ [^ ]+ cgroup2? ' /proc/mounts | cut -d' ' -f4 | grep -v ^ro; echo end";
        assert_eq!(pod.sh(cgroup, |_| {}), "end");
    });
}

#[test]
fn privileged_a_read_only_rootfs_takes_writes_only_where_something_is_mounted() {
    on_every_handler(|node| {
        let name = image(node, "volumes", |image| {
            image.config("Volumes", serde_json::json!({"/var/lib/db": {}, "/../../etc/shadow-volume": {}}))
        });
        let pod = Pod::new(node, "readonly");
        let data = folder(node, "data");
        let readonly = |c: &mut ContainerConfig| {
            context(c).readonly_rootfs = true;
            c.image = of_image(&name);
            c.mounts = vec![bind(&data, "/data")];
        };
        let write = "for f in /x /etc/x /etc/hostname /data/x /dev/shm/x /var/lib/db/x; do \
            (echo x > $f) 2>/dev/null && echo $f; done; true";
        assert_eq!(pod.sh(write, readonly), "/data/x\n/dev/shm/x\n/var/lib/db/x");
        assert_eq!(std::fs::read_to_string(data.join("x")).unwrap(), "x\n");
        // CVE-2022-23648: a volume outside the image is one inside it.
        assert!(!std::path::Path::new("/etc/shadow-volume").exists());
    });
}

#[test]
fn privileged_volumes_of_the_image_are_writable_with_ids_of_the_pods_own() {
    let mapping = vec![IdMapping { container_id: 0, host_id: 1_000_000, length: 65_536 }];
    let users = UserNamespace { mode: NamespaceMode::Pod as i32, uids: mapping.clone(), gids: mapping };
    for (handler, users) in [("brig", Some(users)), ("brig-hardened", None)] {
        on_handler(handler, "", |node| {
            let name = image(node, "volumes", |image| {
                image.config("Volumes", serde_json::json!({"/var/lib/db": {}}))
            });
            let pod = Pod::with(node, "volumes", |c| {
                pod_context(c).namespace_options.get_or_insert_default().userns_options.clone_from(&users);
            });
            let text = pod.sh("echo x >/var/lib/db/x && stat -c %u:%g /var/lib/db /var/lib/db/x", |c| {
                c.image = of_image(&name);
                context(c).readonly_rootfs = true;
            });
            assert_eq!(text, "0:0\n0:0");
        });
    }
}

#[test]
fn privileged_a_privileged_container_needs_a_privileged_pod_and_sees_the_hosts_devices() {
    on_every_handler(|node| {
        let plain = Pod::new(node, "plain");
        let why = plain.refused(|c| context(c).privileged = true);
        assert!(why.contains("privileged"), "{why}");
        let pod = Pod::with(node, "priv", |c| pod_context(c).privileged = true);
        let devices = pod.sh("ls /dev | wc -l", |_| {}).parse::<u32>().unwrap();
        let all = pod.sh("ls /dev | wc -l", |c| context(c).privileged = true).parse::<u32>().unwrap();
        assert!(all >= devices, "{all} {devices}");
        let mounted = pod.sh(
            "mount -t tmpfs none /tmp && mknod /tmp/null c 1 3 && echo x > /tmp/null && echo ok",
            |c| {
                context(c).privileged = true;
            },
        );
        assert_eq!(mounted, "ok");
        let (code, _) = pod.try_sh("mount -t tmpfs none /tmp", |_| {});
        assert_ne!(code, 0);
    });
}

/// Where the kernel has one of them, `labels.rs` tests it.
#[test]
fn privileged_labels_are_refused_where_the_host_has_no_module_for_them() {
    use security_profile::ProfileType::{Localhost, RuntimeDefault, Unconfined};
    let enabled = std::path::Path::new("/sys/module/apparmor/parameters/enabled");
    if std::fs::read(enabled).is_ok_and(|text| text.starts_with(b"Y"))
        || std::path::Path::new("/sys/fs/selinux/enforce").exists()
    {
        return;
    }
    on_every_handler(|node| {
        let pod = Pod::new(node, "labels");
        for kind in [RuntimeDefault, Unconfined] {
            assert_eq!(pod.sh("echo fine", |c| context(c).apparmor = profile(kind, "")), "fine");
        }
        let why = pod.refused(|c| context(c).apparmor = profile(Localhost, "web"));
        assert!(why.contains("\"web\"") && why.contains("no AppArmor"), "{why}");
        #[expect(deprecated, reason = "the older form is what this tests")]
        let why = pod.refused(|c| context(c).apparmor_profile = "localhost/web".into());
        assert!(why.contains("no AppArmor"), "{why}");
        let label = |kind: &str| {
            Some(SeLinuxOption { r#type: kind.into(), level: "s0:c1,c2".into(), ..Default::default() })
        };
        let why = pod.refused(|c| context(c).selinux_options = label("container_t"));
        assert!(why.contains("selinux_options") && why.contains("no SELinux"), "{why}");
        // Cilium and others ask for this type everywhere; it means "not confined".
        assert_eq!(pod.sh("echo fine", |c| context(c).selinux_options = label("spc_t")), "fine");
        let data = folder(node, "labelled");
        let relabel = |c: &mut ContainerConfig| {
            c.mounts = vec![Mount { selinux_relabel: true, ..bind(&data, "/data") }];
        };
        assert_eq!(pod.sh("echo fine", relabel), "fine");
    });
}
