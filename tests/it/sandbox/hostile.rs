//! Root filesystems that want out. Each has a canary on the host that must not change.

use super::*;

/// A directory outside the rootfs, named by an absolute path and by a relative one from the rootfs.
fn canary(bundle: &Bundle) -> PathBuf {
    let canary = bundle.path("canary");
    fs::create_dir(&canary).unwrap();
    fs::write(canary.join("file"), "untouched").unwrap();
    canary
}

fn assert_untouched(canary: &Path) {
    let names: Vec<_> = fs::read_dir(canary).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["file"]);
    assert_eq!(fs::read_to_string(canary.join("file")).unwrap(), "untouched");
}

#[test]
fn privileged_a_linked_dev_makes_no_node_on_the_host() {
    for target in ["absolute", "../canary"] {
        let bundle = Bundle::new(&ours()).script("true").with(|config| {
            config["mounts"].as_array_mut().unwrap().retain(|mount| mount["destination"] == "/proc");
        });
        let canary = canary(&bundle);
        fs::remove_dir(bundle.rootfs().join("dev")).unwrap();
        let link = if target == "absolute" { canary.clone() } else { target.into() };
        symlink(link, bundle.rootfs().join("dev")).unwrap();
        assert!(!bundle.run().status.success());
        assert_untouched(&canary);
    }
}

#[test]
fn privileged_a_linked_proc_or_sys_is_refused() {
    for name in ["proc", "sys"] {
        let bundle = Bundle::new(&ours()).script("true");
        fs::remove_dir(bundle.rootfs().join(name)).unwrap();
        fs::create_dir(bundle.rootfs().join("elsewhere")).unwrap();
        symlink("/elsewhere", bundle.rootfs().join(name)).unwrap();
        let output = bundle.run();
        assert!(text(&output.stderr).contains("directory without links"), "{}", text(&output.stderr));
    }
}

#[test]
fn privileged_a_mount_target_behind_links_stays_inside() {
    let bundle = Bundle::new(&ours());
    let canary = canary(&bundle);
    let source = bundle.path("source");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("mounted"), "yes").unwrap();
    symlink(&canary, bundle.rootfs().join("absolute")).unwrap();
    symlink("../../../../../../..", bundle.rootfs().join("up")).unwrap();
    let bundle = bundle.script("cat /absolute/new/mounted").with(|config| {
        let mounts = config["mounts"].as_array_mut().unwrap();
        for destination in ["/absolute/new", "/up/tmp/x"] {
            mounts.push(
                json!({"destination": destination, "type": "bind", "source": source, "options": ["bind"]}),
            );
        }
    });
    assert_eq!(bundle.stdout(), "yes");
    assert_untouched(&canary);
}

#[test]
fn privileged_masked_files_are_the_real_null_whatever_the_image_has() {
    let bundle = Bundle::new(&ours())
        .script("stat -c %t:%T /proc/keys; cat /proc/keys; echo x 2>/dev/null > /proc/sys/kernel/core_pattern; echo $?")
        .with(|config| {
            config["mounts"].as_array_mut().unwrap().retain(|mount| mount["destination"] == "/proc");
        });
    fs::write(bundle.rootfs().join("dev/null"), "fake").unwrap();
    assert_eq!(bundle.stdout(), "1:3\n1\n");
}

#[test]
fn privileged_procfs_is_not_covered() {
    for (destination, kind) in [("/proc", "tmpfs"), ("/proc/self/attr", "tmpfs"), ("/proc/sys", "tmpfs")] {
        let bundle = Bundle::new(&ours()).script("true").with(|config| {
            let mounts = config["mounts"].as_array_mut().unwrap();
            mounts.push(json!({"destination": destination, "type": kind, "source": "x"}));
        });
        let output = bundle.run();
        assert!(
            text(&output.stderr).contains("mounts.destination"),
            "{destination}: {}",
            text(&output.stderr)
        );
    }
}

#[test]
fn privileged_our_executable_cannot_be_opened_for_writing_from_inside() {
    let bundle = Bundle::new(&ours())
        .with(|config| config["process"]["args"] = json!(["/proc/self/exe", "--version"]));
    let before = fs::metadata(&bundle.runtime.path).unwrap();
    let _ = bundle.run();
    let writer = Bundle::new(&ours()).script("echo x >> /proc/1/exe; true");
    let _ = writer.run();
    let after = fs::metadata(&bundle.runtime.path).unwrap();
    assert_eq!((before.len(), before.modified().unwrap()), (after.len(), after.modified().unwrap()));
}
