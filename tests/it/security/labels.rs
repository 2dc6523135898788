//! AppArmor and SELinux, where the kernel has one of them: in the machines of `tests/vm`, and on hosts that use them.

use std::path::Path;
use std::process::{Command, Stdio};

use super::confinement::profile;
use super::*;

/// Whether this kernel enforces `module`. A machine that is there to test it has it, or the test fails.
fn enforces(module: &str) -> bool {
    let on = match module {
        "apparmor" => std::fs::read("/sys/module/apparmor/parameters/enabled").is_ok_and(|it| it[0] == b'Y'),
        _ => std::fs::read("/sys/fs/selinux/enforce").is_ok_and(|it| it[0] == b'1'),
    };
    let expected = std::env::var("BRIG_TEST_LSM").unwrap_or_default();
    assert!(on || expected != module, "this machine is to have {module}");
    on
}

/// A profile in the kernel that goes with the value.
struct Loaded(String);

impl Loaded {
    /// In which everything is allowed but writing below /tmp.
    fn new(name: &str) -> Self {
        let name = format!("brig-test-{}-{name}", std::process::id());
        let this = Self(name);
        this.parser("--replace");
        this
    }

    fn parser(&self, what: &str) {
        let text = format!(
            "profile {} flags=(attach_disconnected,mediate_deleted) {{\n  file,\n  capability,\n  network,\n  signal,\n  \
             ptrace,\n  umount,\n  mount,\n  deny /tmp/** w,\n}}\n",
            self.0
        );
        let mut parser = Command::new("apparmor_parser");
        parser.args([what, "--skip-cache"]).stdin(Stdio::piped());
        parser.env("PATH", format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default()));
        let mut child = parser.spawn().expect("apparmor_parser is installed where AppArmor is used");
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), text.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success());
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        self.parser("--remove");
    }
}

const CURRENT: &str = "tr -d '\\000' </proc/self/attr/current";

#[test]
fn privileged_containers_run_in_the_apparmor_profile_that_they_ask_for() {
    use security_profile::ProfileType::{Localhost, RuntimeDefault, Unconfined};
    if !enforces("apparmor") {
        return;
    }
    let loaded = Loaded::new("web");
    let name = loaded.0.as_str();
    let own = format!("{name} (enforce)");
    const DEFAULT: &str = "brig-default (enforce)";
    on_every_handler(|node| {
        let pod = Pod::with(node, "apparmor", |c| pod_context(c).privileged = true);
        let seen = |edit: &dyn Fn(&mut LinuxContainerSecurityContext)| pod.sh(CURRENT, |c| edit(context(c)));
        assert_eq!(seen(&|_| {}), DEFAULT);
        assert_eq!(seen(&|c| c.apparmor = profile(RuntimeDefault, "")), DEFAULT);
        assert_eq!(seen(&|c| c.apparmor = profile(Unconfined, "")), "unconfined");
        assert_eq!(seen(&|c| c.apparmor = profile(Localhost, name)), own);
        // As critest writes it.
        assert_eq!(seen(&|c| c.apparmor = profile(Localhost, &format!("localhost/{name}"))), own);
        #[expect(deprecated, reason = "the older form is what this tests")]
        for (words, expected) in
            [("runtime/default", DEFAULT), ("unconfined", "unconfined"), (&format!("localhost/{name}"), &own)]
        {
            assert_eq!(seen(&|c| c.apparmor_profile = words.into()), expected, "{words}");
        }
        #[expect(deprecated, reason = "the older form is what this tests")]
        let both = seen(&|c| {
            c.apparmor = profile(Localhost, name);
            c.apparmor_profile = "localhost/brig-test-none".into();
        });
        assert_eq!(both, own, "the newer field counts");
        // With all that could come in the way of the change.
        let confined = seen(&|c| {
            c.apparmor = profile(Localhost, name);
            c.seccomp = profile(RuntimeDefault, "");
            c.no_new_privs = true;
            c.run_as_user = Some(Int64Value { value: 1000 });
        });
        assert_eq!(confined, own);
        // A privileged container is confined only if it says so.
        assert_eq!(seen(&|c| c.privileged = true), "unconfined");
        let named = seen(&|c| {
            c.privileged = true;
            c.apparmor = profile(Localhost, name);
        });
        assert_eq!(named, own);

        let writes = "touch /x && touch /tmp/x";
        let (code, text) = pod.try_sh(writes, |c| context(c).apparmor = profile(Localhost, name));
        assert!(code != 0 && text.contains("/tmp/x: Permission denied"), "{text}");
        assert_eq!(pod.sh(writes, |_| {}), "");
        // An exec is confined as its container is.
        let id = pod.keep(|c| context(c).apparmor = profile(Localhost, name));
        assert_eq!(node.output(&id, CURRENT).trim(), own);
        let id = pod.keep(|_| {});
        assert_eq!(node.output(&id, CURRENT).trim(), DEFAULT);
        // From outside and from within.
        assert_eq!(node.output(&id, "sleep 100 & kill $!; wait $!; echo $?").trim(), "143");
        node.stop_container(&id, 10);
        assert_eq!(
            node.status(&id).exit_code,
            137,
            "the shell's sleep is the first process, which ignores SIGTERM"
        );

        for reference in ["brig-test-none", "localhost/brig-test-none"] {
            let why = pod.refused(|c| context(c).apparmor = profile(Localhost, reference));
            assert!(why.contains("brig-test-none") && why.contains("not loaded"), "{why}");
            #[expect(deprecated, reason = "the older form is what this tests")]
            let why = pod.refused(|c| context(c).apparmor_profile = "localhost/brig-test-none".into());
            assert!(why.contains("not loaded"), "{why}");
        }
    });
}

#[test]
fn privileged_the_default_apparmor_profile_is_the_second_line_and_nobody_notices() {
    use security_profile::ProfileType::Unconfined;
    if !enforces("apparmor") {
        return;
    }
    on_every_handler(|node| {
        let pod = Pod::with(node, "default", |c| pod_context(c).privileged = true);
        // Who may mount, and may write to what steers the host, is still kept from both.
        let open = |c: &mut ContainerConfig| {
            context(c).capabilities.get_or_insert_default().add_capabilities = vec!["ALL".into()];
        };
        let mount = "mount -t tmpfs none /tmp";
        let (code, text) = pod.try_sh(mount, open);
        assert!(code != 0 && text.contains("ermission denied"), "{text}");
        let free = |c: &mut ContainerConfig| {
            open(c);
            context(c).apparmor = profile(Unconfined, "");
        };
        assert_eq!(pod.sh(mount, free), "");
        // Users, files of every kind, sockets, signals, /proc and /dev work as ever.
        let usual = "su -s /bin/sh nobody -c id >/dev/null; mkdir /d && mkfifo /d/p && ln -s p /d/l && chown 1:1 /d/p && \
            ip -o link | grep -c lo && ls /proc/self/fd >/dev/null && cat /sys/class/net/lo/address && \
            : >/dev/null && head -c1 /dev/urandom | wc -c && busybox ps >/dev/null && echo x >/dev/shm/x && echo fine";
        assert!(pod.sh(usual, |_| {}).ends_with("fine"));
    });
    on_handler("brig-hardened", "", |node| {
        let pod = Pod::new(node, "hardened");
        let id = pod.keep(|_| {});
        for text in [pod.sh(CURRENT, |_| {}), node.output(&id, CURRENT)] {
            assert_eq!(text.trim(), "brig-default (enforce)");
        }
    });
}

/// What SELinux has on a file that a container sees.
fn file_label(node: &Node, container: &str, path: &str) -> String {
    let request = ContainerStatusRequest { container_id: container.into(), verbose: true };
    let answer = node.call(node.runtime.clone().container_status(request)).expect("the status");
    let info: serde_json::Value = serde_json::from_str(&answer.into_inner().info["info"]).expect("JSON");
    let path =
        Path::new("/proc").join(info["pid"].to_string()).join("root").join(path.trim_start_matches('/'));
    let mut value = [0u8; 256];
    let length = rustix::fs::lgetxattr(&path, c"security.selinux", &mut value[..]).expect("a label");
    String::from_utf8_lossy(&value[..length]).trim_end_matches('\0').to_owned()
}

fn selinux(kind: &str, level: &str) -> Option<SeLinuxOption> {
    Some(SeLinuxOption { r#type: kind.into(), level: level.into(), ..Default::default() })
}

#[test]
fn privileged_containers_and_their_files_have_the_selinux_labels_of_their_pod() {
    if !enforces("selinux") {
        return;
    }
    for handler in handlers().into_iter().chain(["brig-hardened"]) {
        on_handler(handler, "", |node| {
            let pod = Pod::new(node, "labels");
            let id = pod.keep(|_| {});
            let process = node.output(&id, CURRENT);
            let level = process.strip_prefix("system_u:system_r:container_t:").expect(&process).to_owned();
            assert!(level.starts_with("s0:c") && level.contains(",c"), "{level}");
            assert_eq!(pod.sh(CURRENT, |_| {}), process, "all containers of a pod have one label");
            let other = Pod::new(node, "other");
            assert_ne!(other.sh(CURRENT, |_| {}), process);
            let mount = format!("system_u:object_r:container_file_t:{level}");
            for path in [
                "/",
                "/bin/busybox",
                "/dev",
                "/dev/null",
                "/dev/pts",
                "/dev/shm",
                "/etc/hostname",
                "/etc/resolv.conf",
            ] {
                // A pod with ids of its own has the host's nodes.
                if path != "/dev/null" || handler != "brig-hardened" {
                    assert_eq!(file_label(node, &id, path), mount, "{path}");
                }
            }
            if handler == "brig" {
                assert_eq!(file_label(node, &id, "/dev/mqueue"), mount);
            }
            let wanted = format!("context=\"{mount}\"");
            for place in ["/", "/dev", "/dev/shm"] {
                let line = node.output(&id, &format!("grep ' / {place} ' /proc/self/mountinfo"));
                assert!(line.contains(&wanted), "{line}");
            }
        });
    }
}

#[test]
fn privileged_selinux_options_are_followed_and_wrong_ones_refused() {
    if !enforces("selinux") {
        return;
    }
    on_every_handler(|node| {
        let pod = Pod::with(node, "options", |c| pod_context(c).privileged = true);
        let of = |kind: &'static str, level: &'static str| {
            move |c: &mut ContainerConfig| context(c).selinux_options = selinux(kind, level)
        };
        assert_eq!(pod.sh(CURRENT, of("confined_t", "s0:c1,c2")), "system_u:system_r:confined_t:s0:c1,c2");
        assert_eq!(pod.sh(CURRENT, of("", "s0")), "system_u:system_r:container_t:s0");
        let privileged = |c: &mut ContainerConfig| context(c).privileged = true;
        assert_eq!(pod.sh(CURRENT, privileged), "system_u:system_r:spc_t:s0");
        for (kind, level) in
            [("confined_t", "s0,c4,c5"), ("no_such_t", "s0"), ("confined_t", "s0:c1\",lowerdir=/")]
        {
            let why = pod.refused(of(kind, level));
            assert!(why.contains("SELinux label") && why.contains(level.split('"').next().unwrap()), "{why}");
        }
        let of_pod = Pod::with(node, "of-pod", |c| pod_context(c).selinux_options = selinux("", "s0:c8,c9"));
        assert_eq!(of_pod.sh(CURRENT, |_| {}), "system_u:system_r:container_t:s0:c8,c9");
        let of_host = Pod::with(node, "of-host", |c| {
            let namespaces = pod_context(c).namespace_options.get_or_insert_default();
            namespaces.pid = NamespaceMode::Node as i32;
        });
        assert_eq!(of_host.sh(CURRENT, |_| {}), "system_u:system_r:spc_t:s0");
    });
}

/// The policy of the test machine confines `confined_t` to files of containers with its own categories.
#[test]
fn privileged_selinux_keeps_a_container_to_its_own_files() {
    if !enforces("selinux") || std::env::var_os("BRIG_TEST_LSM").is_none() {
        return;
    }
    for handler in handlers().into_iter().chain(["brig-hardened"]) {
        let host_paths = tempfile::tempdir().unwrap();
        let config = format!("[handlers.brig-hardened]\nhost_paths = [{:?}]\n", host_paths.path());
        on_handler(handler, &config, |node| {
            let name = image(node, "volumes", |image| {
                image.config("Volumes", serde_json::json!({"/var/lib/db": {}}))
            });
            let level = "s0:c1,c2";
            let pod = Pod::with(node, "confined", |c| {
                pod_context(c).selinux_options = selinux("confined_t", level);
            });
            let volume = |label: &str| {
                let path = host_paths.path().join(format!("{handler}-{label}"));
                std::fs::create_dir_all(&path).unwrap();
                std::fs::write(path.join("file"), "text\n").unwrap();
                path
            };
            let (plain, mine) = (volume("plain"), volume("mine"));
            let own = "for f in /x /dev/shm/x /dev/x; do echo x >$f && cat $f; done; \
                cat /etc/hostname; ls /proc/scsi /sys/firmware /dev/mqueue 2>&1; : >/dev/null; cat /proc/keys | wc -c";
            let text = pod.sh(own, |c| c.image = of_image(&name));
            assert!(!text.contains("ermission denied"), "{text}");
            assert_eq!(text.matches("x\n").count(), 3, "{text}");
            let readonly = pod.sh("echo x >/var/lib/db/x && cat /var/lib/db/x", |c| {
                c.image = of_image(&name);
                context(c).readonly_rootfs = true;
            });
            assert_eq!(readonly, "x");
            let seen = "cat /data/file 2>&1; cat /image/bin/busybox >/dev/null && echo image";
            let with = |path: &Path, relabel: bool| {
                let data = Mount { selinux_relabel: relabel, ..bind(path, "/data") };
                let image = Mount {
                    container_path: "/image".into(),
                    image: of_image(&name),
                    readonly: true,
                    ..Default::default()
                };
                move |c: &mut ContainerConfig| c.mounts = vec![data, image]
            };
            let text = pod.sh(seen, with(&plain, false));
            assert!(text.contains("Permission denied") && text.ends_with("image"), "{text}");
            assert_eq!(pod.sh(seen, with(&mine, true)), "text\nimage");
            // Another pod's categories do not reach it.
            let other = Pod::with(node, "other", |c| {
                pod_context(c).selinux_options = selinux("confined_t", "s0:c3,c4");
            });
            let text = other.sh(seen, with(&mine, false));
            assert!(text.contains("Permission denied") && text.ends_with("image"), "{text}");
            let id = pod.keep(|_| {});
            assert_eq!(node.output(&id, CURRENT), format!("system_u:system_r:confined_t:{level}"));
        });
    }
}
