//! Where mounts come from, where they go, and how mount events travel.

use std::os::unix::fs::symlink;
use std::process::Command;

use super::*;
use crate::fixture::image::Entry;
use crate::fixture::node::eventually;

/// `mount(8)`, in the namespace that the node's daemon is in too.
fn mount(arguments: &[&str]) {
    let status = Command::new("mount").args(arguments).status().expect("mount(8) runs");
    assert!(status.success(), "mount {arguments:?}");
}

/// Unmounts all at and below a path when it goes out of scope.
struct Mounted(std::path::PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        Command::new("umount").args(["-R", "-l"]).arg(&self.0).status().ok();
    }
}

/// A tmpfs of its own at a folder of the node, with the propagation that mount(8) calls so.
fn tmpfs(node: &Node, name: &str, propagation: &str) -> (std::path::PathBuf, Mounted) {
    let path = folder(node, name);
    let text = path.display().to_string();
    mount(&["-t", "tmpfs", "none", &text]);
    mount(&[propagation, &text]);
    (path.clone(), Mounted(path))
}

#[test]
fn privileged_mount_events_travel_as_the_propagation_says() {
    on_every_handler(|node| {
        let pod = Pod::with(node, "propagation", |c| pod_context(c).privileged = true);
        let (shared, _shared) = tmpfs(node, "shared", "--make-shared");
        for name in ["private", "slave", "both"] {
            std::fs::create_dir_all(shared.join(name)).unwrap();
        }
        let with = |propagation: MountPropagation, place: &str| Mount {
            propagation: propagation as i32,
            ..bind(&shared, place)
        };
        let id = pod.keep(|c| {
            context(c).privileged = true;
            c.mounts = vec![
                with(MountPropagation::PropagationPrivate, "/private"),
                with(MountPropagation::PropagationHostToContainer, "/slave"),
                with(MountPropagation::PropagationBidirectional, "/both"),
            ];
        });
        // What a runtime was given to mount is not kept in use beside the container's own mount.
        let of_host = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!of_host.contains("/sources"), "{of_host}");
        // From the host into the container.
        let late = shared.join("late");
        std::fs::create_dir(&late).unwrap();
        mount(&["-t", "tmpfs", "none", &late.display().to_string()]);
        std::fs::write(late.join("mark"), "").unwrap();
        assert_eq!(
            node.output(&id, "ls /private/late /slave/late /both/late | tr '\\n' ' '").trim(),
            "/both/late: mark  /private/late:  /slave/late: mark"
        );
        // And back: only from where it was asked for.
        node.output(
            &id,
            "for d in private slave both; do mount -t tmpfs none /$d/$d; touch /$d/$d/mark; done",
        );
        let seen = |name: &str| shared.join(name).join("mark").exists();
        assert_eq!([seen("private"), seen("slave"), seen("both")], [false, false, true]);
        node.remove_container(&id);
        // The host must take part.
        let (own, _own) = tmpfs(node, "own", "--make-private");
        for propagation in
            [MountPropagation::PropagationHostToContainer, MountPropagation::PropagationBidirectional]
        {
            let why = pod.refused(|c| {
                context(c).privileged = true;
                c.mounts = vec![Mount { propagation: propagation as i32, ..bind(&own, "/own") }];
            });
            assert!(why.contains("propagation") && why.contains("/own") && why.contains("shared"), "{why}");
        }
    });
}

#[test]
fn privileged_read_only_covers_what_is_mounted_below_only_when_asked_to() {
    on_every_handler(|node| {
        let pod = Pod::new(node, "rro");
        let (top, _top) = tmpfs(node, "top", "--make-private");
        std::fs::create_dir(top.join("below")).unwrap();
        mount(&["-t", "tmpfs", "none", &top.join("below").display().to_string()]);
        let write = "for f in /top/x /top/below/x; do (echo > $f) 2>/dev/null && echo $f; done; true";
        let how = |readonly, recursive| {
            let mount = Mount { readonly, recursive_read_only: recursive, ..bind(&top, "/top") };
            pod.sh(write, |c| c.mounts = vec![mount])
        };
        assert_eq!(how(false, false), "/top/x\n/top/below/x");
        assert_eq!(how(true, false), "/top/below/x");
        assert_eq!(how(true, true), "");
        let why = pod.refused(|c| {
            c.mounts = vec![Mount { recursive_read_only: true, ..bind(&top, "/top") }];
        });
        assert!(why.contains("recursive_read_only"), "{why}");
        let id = pod.keep(|c| {
            c.mounts = vec![Mount { readonly: true, recursive_read_only: true, ..bind(&top, "/top") }];
        });
        let mount = node.status(&id).mounts.into_iter().find(|mount| mount.container_path == "/top").unwrap();
        assert!(mount.readonly && mount.recursive_read_only);
        let status = node.call(node.runtime.clone().status(StatusRequest::default())).unwrap().into_inner();
        let handler = status.runtime_handlers.iter().find(|one| one.name == node.handler).expect("listed");
        assert!(handler.features.as_ref().is_some_and(|features| features.recursive_read_only_mounts));
    });
}

#[test]
fn privileged_a_mount_lands_where_it_is_wanted_and_its_source_must_exist() {
    on_every_handler(|node| {
        let name = image(node, "linked", |image| {
            image.layer(&[
                Entry::dir("real", 0o755),
                Entry::symlink("link", "/real"),
                Entry::symlink("out", "../../../../../../tmp"),
                Entry::file("file", "of the image", 0o644),
            ])
        });
        let pod = Pod::new(node, "places");
        let host = folder(node, "host");
        std::fs::write(host.join("a"), "host's a").unwrap();
        std::fs::create_dir_all(host.join("deep")).unwrap();
        std::fs::write(host.join("deep/b"), "host's b").unwrap();
        symlink(host.join("a"), host.join("link-to-a")).unwrap();
        let hosts = host.join("hosts");
        std::fs::write(&hosts, "127.0.0.1 mine").unwrap();
        let text = pod.sh(
            "cat /file /linked/deep/b /link/a /etc/hosts /etc/resolv.conf /new/nested/place/a; ls /dev/shm; \
             cat /real/a; ls -d /tmp/deep",
            |c| {
                c.image = of_image(&name);
                c.mounts = vec![
                    // Children before parents, and yet both are seen.
                    bind(&host.join("deep"), "/linked/deep"),
                    bind(&folder(node, "parent"), "/linked"),
                    bind(&host.join("link-to-a"), "/file"),
                    bind(&host, "/link"),
                    bind(&hosts, "/etc/hosts"),
                    bind(&hosts, "/etc/resolv.conf"),
                    bind(&host, "/new/nested/place"),
                    bind(&host.join("deep"), "/dev/shm"),
                    bind(&host, "/out"),
                ];
            },
        );
        let expected = ["host's ahost's bhost's a127.0.0.1 mine127.0.0.1 minehost's ab", "host's a/tmp/deep"];
        assert_eq!(text, expected.join("\n"));
        assert!(!std::path::Path::new("/tmp/deep").exists());
        let gone = host.join("gone");
        let why = pod.refused(|c| c.mounts = vec![bind(&gone, "/x")]);
        assert!(why.contains(&gone.display().to_string()) && why.contains("/x"), "{why}");
        assert!(!gone.exists(), "a missing source is not made");
        symlink("loop", host.join("loop")).unwrap();
        let why = pod.refused(|c| c.mounts = vec![bind(&host.join("loop"), "/x")]);
        assert!(why.contains("loop"), "{why}");
        // CVE-2019-16884.
        for place in ["/proc", "/proc/self/attr", "/proc/sys"] {
            let why = pod.refused(|c| c.mounts = vec![bind(&host, place)]);
            assert!(why.contains("proc"), "{place}: {why}");
        }
        // A folder over a file cannot be, and takes nothing along.
        pod.refused(|c| c.mounts = vec![bind(&host, "/bin/busybox")]);
    });
}

#[test]
fn privileged_an_image_is_mounted_whole_or_from_a_folder_of_it() {
    on_every_handler(|node| {
        let volume = image(node, "volume", |image| {
            image.layer(&[
                Entry::dir("data", 0o755),
                Entry::file("data/f", "of the volume", 0o644),
                Entry::symlink("data/out", "../../../../../etc"),
            ])
        });
        let pod = Pod::new(node, "imagevolume");
        let with = |sub_path: &str, place: &str| Mount {
            container_path: place.into(),
            image: of_image(&volume),
            image_sub_path: sub_path.into(),
            readonly: true,
            ..Default::default()
        };
        let mounts = vec![with("", "/whole"), with("data", "/part"), with("data/f", "/file")];
        let command = "cat /whole/data/f /part/f /file; echo; touch /whole/x 2>/dev/null || echo read-only";
        let seen = pod.sh(command, |c| c.mounts.clone_from(&mounts));
        assert_eq!(seen, "of the volumeof the volumeof the volume\nread-only");
        let id = pod.keep(|c| c.mounts.clone_from(&mounts));
        let status = node.status(&id);
        let image = node.call(
            node.images.clone().image_status(ImageStatusRequest { image: of_image(&volume), verbose: false }),
        );
        let image = image.unwrap().into_inner().image.expect("the image");
        for place in ["/whole", "/part", "/file"] {
            let mount = status.mounts.iter().find(|mount| mount.container_path == place).expect(place);
            assert_eq!(mount.image.as_ref().map(|image| &image.image_ref), Some(&image.id), "{place}");
            assert!(mount.readonly && mount.host_path.is_empty());
        }
        for (bad, expected) in [
            ("nothing", "ImageVolumeMountFailed"),
            ("data/out/nothing", "ImageVolumeMountFailed"),
            ("../x", "image_sub_path"),
            ("/data", "image_sub_path"),
        ] {
            let why = pod.refused(|c| c.mounts = vec![with(bad, "/x")]);
            assert!(why.starts_with(expected) || why.contains(expected), "{bad}: {why}");
        }
        let why = pod.refused(|c| {
            c.mounts = vec![Mount { image: of_image("localhost/none:1"), ..with("", "/x") }];
        });
        assert!(why.contains("localhost/none:1"), "{why}");
        // The image stays as long as a container has it, and goes with it.
        node.remove_container(&id);
        eventually(|| pod.leftovers().is_empty().then_some(()));
    });
}

#[test]
fn privileged_a_working_directory_cannot_lead_out_of_the_container() {
    on_every_handler(|node| {
        let pod = Pod::new(node, "cwd");
        // CVE-2024-21626.
        for fd in 0..24 {
            let mut container = pod.container("pwd; ls /proc/self/cwd/");
            container.working_dir = format!("/proc/self/fd/{fd}");
            if let Ok(id) = node.try_create(&pod.id, &container, &pod.config) {
                if node.try_start(&id).is_ok() {
                    let status = node.wait_exited(&id);
                    let name = container.metadata.unwrap().name;
                    let lines = node.log_lines("cwd", &name).join("\n");
                    assert!(!lines.contains("brigd"), "{fd}: {} {lines}", status.exit_code);
                }
                node.remove_container(&id);
            }
        }
    });
}

#[test]
fn privileged_a_container_may_have_a_thousand_mounts_and_keeps_its_limit_of_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    const COUNT: usize = 1000;
    // What a shell and most service managers give.
    let hard = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: Some(1024), maximum: hard }).expect("lowered");
    on_every_handler(|node| {
        let pod = Pod::new(node, "thousand");
        let files = folder(node, "thousand");
        let mounts: Vec<_> = (0..COUNT)
            .map(|n| {
                std::fs::write(files.join(n.to_string()), format!("{n}\n")).unwrap();
                bind(&files.join(n.to_string()), &format!("/many/{n}"))
            })
            .collect();
        let said = pod.sh("ulimit -Sn; cat /many/* | sort -n | uniq | wc -l", |c| c.mounts = mounts.clone());
        assert_eq!(said, format!("1024\n{COUNT}"));
        if node.handler == "runc" {
            // It walks paths, so nothing is handed over.
            return;
        }
        let why = pod.refused(|c| {
            let elsewhere = |n| {
                let place = move |mount: &Mount| format!("/more-{n}{}", mount.container_path);
                mounts.iter().map(move |mount| Mount { container_path: place(mount), ..mount.clone() })
            };
            c.mounts = (0..3).flat_map(elsewhere).collect();
        });
        assert!(why.contains("3000 mounts, and its pod's monitor takes at most 2046"), "{why}");
    });
}
