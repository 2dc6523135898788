//! One attack per published way out of a container. Each returns what got out, if anything did.
//!
//! Containers ask for no seccomp profile, as they do on a cluster without `seccompDefault`: what stops an attack here must
//! not be the filter alone.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::*;
use crate::fixture::image::Kind;

type Attack = fn(&Arena) -> Result<(), String>;

/// By name; what it stands for in brackets.
pub(super) const ATTACKS: &[(&str, &str, Attack)] = &[
    ("a working directory of an open descriptor", "CVE-2024-21626", working_directory),
    ("descriptors and roots of other processes", "CVE-2016-9962", descriptors),
    ("overwriting the runtime by /proc/self/exe", "CVE-2019-5736", overwritten_runtime),
    ("/dev/null of the image is a link", "CVE-2025-31133, CVE-2026-88265", dev_null),
    ("/dev of the image is a link", "CVE-2026-41579", dev_link),
    ("/etc and mount targets of the image are links", "CVE-2024-5154, CVE-2019-18837", etc_link),
    ("/proc or /sys of the image is a link", "CVE-2023-27561, CVE-2023-28642", proc_link),
    ("/dev/console and /dev/pts of the image are links", "CVE-2025-52565, CVE-2026-88264", console),
    ("a mount target that is swapped while it is used", "CVE-2021-30465, CVE-2024-45310", swapped_target),
    ("mounts over /proc", "CVE-2019-16884, CVE-2019-19921, CVE-2025-52881", over_proc),
    ("a second sysctl in the value of the first", "CVE-2022-0811", sysctl),
    ("sysctls of the host's namespaces", "CVE-2022-0532", host_sysctl),
    ("release_agent and writable cgroups", "CVE-2022-0492, CVE-2023-25809", release_agent),
    ("exec into a rootfs that has changed", "CVE-2019-5736, CVE-2019-14271", hostile_exec),
    ("VOLUME paths of the image", "CVE-2022-23648", volumes),
    ("user numbers that overflow or are names", "CVE-2024-40635, CVE-2026-46680", user_overflow),
    ("the primary group is no way around a file's mode", "CVE-2022-2995, CVE-2023-25173", primary_group),
    ("groups of the runtime leak", "CVE-2022-2989", leaked_groups),
    (
        "inheritable and ambient capabilities",
        "CVE-2022-24769, CVE-2022-29162, CVE-2018-1000400",
        capabilities,
    ),
    ("signals to other pods and the host", "no single one", signals),
    ("abstract sockets of the runtime", "CVE-2020-15257", abstract_sockets),
    ("device nodes, made or brought", "GHSA-g54h-m393-cpwq", device_nodes),
    ("core_pattern, sysrq and other switches of the host", "no single one", switches),
    ("the host's session keyring", "no single one", keyring),
    (
        "annotations and labels that steer the runtime",
        "CVE-2024-3154, CVE-2023-6476, CVE-2026-53488",
        annotations,
    ),
    ("environments of containers that are made at once", "CVE-2021-21334", environments),
    ("strings that are longer than a message to init", "CVE-2021-43784", long_strings),
    ("setuid files of images for the host's users", "CVE-2021-41103, CVE-2024-25621", open_folders),
    ("output of exec without an end", "CVE-2022-1708, CVE-2022-31030", exec_flood),
    ("the pod's memory runs out", "CVE-2019-14891", out_of_memory),
    ("a line break in HOME", "CVE-2022-4318, CVE-2026-15809", home),
    (
        "/etc/passwd and /etc/group that never end",
        "CVE-2024-9676, CVE-2025-4437, CVE-2026-47262",
        endless_passwd,
    ),
    ("a log path that climbs", "CVE-2025-0750", log_path),
    ("processes outside the pod's cgroup", "CVE-2025-47291", cgroup),
];

#[test]
fn privileged_no_attack_gets_out_of_a_container_of_brig() {
    all_fail("brig");
}

#[test]
fn privileged_no_attack_gets_out_of_a_container_of_brig_hardened() {
    all_fail("brig-hardened");
}

fn all_fail(handler: &str) {
    let arena = Arena::new(handler);
    let out: Vec<String> = ATTACKS
        .iter()
        .filter_map(|(name, reference, attack)| {
            Some(format!("{name} ({reference}): {}", attack(&arena).err()?))
        })
        .collect();
    assert_eq!(out, Vec::<String>::new(), "what got out of {handler}");
}

/// Nothing that a container printed is the host's.
fn tells_nothing(arena: &Arena, out: &str) -> Result<(), String> {
    let scratch = arena.scratch.path().display().to_string();
    if out.contains(SECRET) {
        return Err(format!("it read the canary: {out}"));
    }
    match out.lines().find(|line| line.contains(&scratch) && !line.contains("can't open")) {
        Some(line) => Err(format!("it saw {line:?}")),
        None => Ok(()),
    }
}

fn working_directory(arena: &Arena) -> Result<(), String> {
    let canary = arena.canary();
    for number in 3..16 {
        let climb = "../".repeat(12);
        let command = format!(
            "cat {climb}{}/file /proc/self/cwd/{climb}{}/file 2>/dev/null",
            canary.display(),
            canary.display()
        );
        let mut config = arena.container(&arena.plain_image(), &command);
        config.working_dir = format!("/proc/self/fd/{number}");
        tells_nothing(arena, arena.run(&format!("cwd{number}"), config).out())?;
    }
    arena.untouched()
}

fn descriptors(arena: &Arena) -> Result<(), String> {
    let pod_config = arena.node.pod_config("descriptors");
    let pod = arena.node.run_pod(&pod_config);
    // Looks at every process that appears, while others are being started.
    let watch = "exec > /seen 2>&1; touch /ready; while [ ! -e /stop ]; do \
        for p in /proc/[0-9]*; do ls -l $p/fd $p/cwd $p/root $p/exe; cat $p/root/SECRET; done; done; touch /stopped; sleep 1000"
        .replace("SECRET", format!("{}/file", arena.canary().display()).trim_start_matches('/'));
    let id = arena.node.create(&pod, &arena.container(&arena.plain_image(), &watch), &pod_config);
    arena.node.start(&id);
    let sh = |command: &str| arena.node.exec(&id, &["/bin/sh", "-c", command]);
    while sh("test -e /ready").exit_code != 0 {}
    for _ in 0..20 {
        sh("true");
    }
    sh("touch /stop");
    while sh("test -e /stopped").exit_code != 0 {}
    let seen = String::from_utf8_lossy(&sh("sort -u /seen | head -c 1000000").stdout).into_owned();
    arena.node.remove_pod(&pod);
    // Links of the kernel's (pipes, sockets, /dev/null) and of the image's are all there may be.
    let host = arena.node.dir.path().display().to_string();
    match seen.lines().find(|line| line.contains(&host) && line.contains("->")) {
        Some(line) => Err(format!("it saw {line:?}")),
        None => tells_nothing(arena, &seen),
    }
}

fn overwritten_runtime(arena: &Arena) -> Result<(), String> {
    let before = std::fs::read(&arena.runtime).expect("the runtime");
    let mut config = arena.container(&arena.plain_image(), "");
    config.command = vec!["/proc/self/exe".into(), "--version".into()];
    arena.run("exe", config);
    let script =
        arena.image("exe", |image| image.layer(&[Entry::file("bin/evil", "#!/proc/self/exe\n", 0o755)]));
    let mut config = arena.container(&script, "");
    config.command = vec!["/bin/evil".into()];
    arena.run("exe-script", config);
    let write =
        "for i in $(seq 200); do for p in /proc/[0-9]*/exe; do echo broken > $p; done; done 2>/dev/null";
    arena.run("exe-write", arena.container(&arena.plain_image(), write));
    if std::fs::read(&arena.runtime).ok().as_ref() == Some(&before) {
        Ok(())
    } else {
        Err("the binary changed".to_owned())
    }
}

fn core_pattern() -> String {
    std::fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap_or_default()
}

/// Runs `attack` and fails if the host's core_pattern is another afterwards, putting it right again.
fn with_core_pattern(attack: impl FnOnce() -> Result<(), String>) -> Result<(), String> {
    let before = core_pattern();
    let done = attack();
    if core_pattern() != before {
        std::fs::write("/proc/sys/kernel/core_pattern", before).ok();
        return Err("the host's core_pattern changed".to_owned());
    }
    done
}

fn dev_null(arena: &Arena) -> Result<(), String> {
    with_core_pattern(|| {
        let canary = format!("{}/file", arena.canary().display());
        for (n, target) in
            ["/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", &canary].into_iter().enumerate()
        {
            let image =
                arena.image(&format!("null{n}"), |image| image.layer(&[Entry::symlink("dev/null", target)]));
            let command = "stat -c %t:%T /dev/null; echo x > /dev/null; cat /proc/keys /proc/kcore /proc/timer_list 2>/dev/null | \
                head -c 100; for f in /proc/keys /proc/timer_list /proc/kcore; do echo '|/evil' > $f; done 2>/dev/null; true";
            let ran = arena.run(&format!("null{n}"), arena.container(&image, command));
            let wrong = matches!(&ran, Ran::Exited { .. }) && ran.out().lines().next() != Some("1:3");
            tells_nothing(arena, ran.out())?;
            if wrong {
                return Err(format!("/dev/null is {}", ran.out()));
            }
        }
        arena.untouched()
    })
}

fn dev_link(arena: &Arena) -> Result<(), String> {
    let canary = arena.canary();
    let climb = format!("{}{}", "../".repeat(12), canary.display());
    for (n, target) in [canary.display().to_string(), climb].iter().enumerate() {
        let image = arena.image(&format!("dev{n}"), |image| {
            image.layer(&[Entry::file(".wh.dev", "", 0o644)]).layer(&[Entry::symlink("dev", target)])
        });
        let ran = arena
            .run(&format!("dev{n}"), arena.container(&image, "ls /dev/; cat /dev/file; echo x > /dev/file"));
        tells_nothing(arena, ran.out())?;
        arena.untouched()?;
    }
    Ok(())
}

fn etc_link(arena: &Arena) -> Result<(), String> {
    let canary = arena.canary();
    let climb = format!("{}{}", "../".repeat(12), canary.display());
    let volume = arena.volume("for-links");
    std::fs::write(volume.join("mounted"), "mounted").expect("a file");
    for (n, target) in [canary.display().to_string(), climb].iter().enumerate() {
        let image = arena.image(&format!("etc{n}"), |image| {
            image
                .layer(&[Entry::file(".wh.etc", "", 0o644)])
                .layer(&[Entry::symlink("etc", target), Entry::symlink("data", target)])
        });
        // The runtime's own files go to /etc, the pod's volume to a link and below one.
        let command =
            "cat /etc/file /data/file /data/below/file; echo x > /etc/made; echo x > /data/made; true";
        let mut config = arena.container(&image, &format!("({command}) 2>/dev/null"));
        config.mounts = ["/data", "/data/below"]
            .map(|place| Mount {
                container_path: place.into(),
                host_path: volume.display().to_string(),
                ..Default::default()
            })
            .into();
        tells_nothing(arena, arena.run(&format!("etc{n}"), config).out())?;
        arena.untouched()?;
    }
    Ok(())
}

fn proc_link(arena: &Arena) -> Result<(), String> {
    for name in ["proc", "sys"] {
        let image = arena.image(&format!("link-{name}"), |image| {
            image
                .layer(&[Entry::file(&format!(".wh.{name}"), "", 0o644)])
                .layer(&[Entry::dir("elsewhere", 0o755), Entry::symlink(name, "/elsewhere")])
        });
        let ran = arena.run(&format!("link-{name}"), arena.container(&image, "ls -d /elsewhere/*"));
        ran.must_not_succeed(&format!("a container whose /{name} is a link"))?;
    }
    Ok(())
}

fn console(arena: &Arena) -> Result<(), String> {
    let canary = arena.canary().display().to_string();
    for (n, entries) in [
        vec![Entry::symlink("dev/console", &format!("{canary}/file")), Entry::symlink("dev/pts", &canary)],
        vec![
            Entry::symlink("dev/console", "/proc/sys/kernel/core_pattern"),
            Entry::symlink("dev/ptmx", &format!("{canary}/file")),
        ],
    ]
    .into_iter()
    .enumerate()
    {
        let image = arena.image(&format!("console{n}"), |image| image.layer(&entries));
        let mut config = arena.container(
            &image,
            "tty; echo x > /dev/console; stat -c '%F' /dev/console; cat /dev/pts/file 2>/dev/null",
        );
        config.tty = true;
        let ran = with_core_pattern(|| {
            let ran = arena.run(&format!("console{n}"), config);
            tells_nothing(arena, ran.out())
        });
        ran?;
        arena.untouched()?;
    }
    Ok(())
}

fn swapped_target(arena: &Arena) -> Result<(), String> {
    let (shared, inner) = (arena.volume("shared"), arena.volume("inner"));
    std::fs::write(inner.join("mounted"), "mounted").expect("a file");
    std::os::unix::fs::symlink(arena.canary(), shared.join("link")).expect("a link");
    std::fs::create_dir(shared.join("target")).expect("a folder");
    let stop = std::sync::atomic::AtomicBool::new(false);
    let tries = std::thread::scope(|scope| {
        // On the host's side, which is faster than any container could be.
        scope.spawn(|| {
            use rustix::fs::{CWD, RenameFlags, renameat_with};
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                renameat_with(CWD, shared.join("link"), CWD, shared.join("target"), RenameFlags::EXCHANGE)
                    .ok();
            }
        });
        let mut tries = Vec::new();
        for number in 0..12 {
            let mut config = arena.container(
                &arena.plain_image(),
                "cat /shared/target/file /shared/link/file 2>/dev/null; true",
            );
            let mount = |host: &Path, place: &str| Mount {
                container_path: place.into(),
                host_path: host.display().to_string(),
                ..Default::default()
            };
            config.mounts = vec![
                mount(&shared, "/shared"),
                mount(&inner, "/shared/target"),
                mount(&inner, "/shared/target/new/one"),
            ];
            tries.push(arena.run(&format!("swap{number}"), config));
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        tries
    });
    for ran in &tries {
        tells_nothing(arena, ran.out())?;
    }
    arena.untouched()
}

fn over_proc(arena: &Arena) -> Result<(), String> {
    let fake = arena.volume("fake-proc");
    for (n, place) in ["/proc", "/proc/self", "/proc/self/attr", "/proc/sys/kernel"].into_iter().enumerate() {
        let mut config = arena.container(&arena.plain_image(), "true");
        config.mounts.push(Mount {
            container_path: place.into(),
            host_path: fake.display().to_string(),
            ..Default::default()
        });
        let ran = arena.run(&format!("over-proc{n}"), config);
        ran.must_not_succeed(&format!("a mount on {place}"))?;
    }
    if std::fs::read_dir(&fake).expect("the folder").next().is_some() {
        return Err("something was written to a faked /proc".to_owned());
    }
    Ok(())
}

fn sysctl(arena: &Arena) -> Result<(), String> {
    with_core_pattern(|| {
        for (n, (key, value)) in [
            ("kernel.shm_rmid_forced", "0+kernel.core_pattern=|/evil"),
            ("kernel.shm_rmid_forced", "0\nkernel.core_pattern=|/evil"),
            ("kernel.shm_rmid_forced=0+kernel.core_pattern", "|/evil"),
            ("kernel.core_pattern", "|/evil"),
            ("net/../kernel/core_pattern", "|/evil"),
            ("net.ipv4....kernel.core_pattern", "|/evil"),
        ]
        .into_iter()
        .enumerate()
        {
            let mut config = arena.node.pod_config(&format!("sysctl{n}"));
            let linux = config.linux.get_or_insert_default();
            linux.sysctls = HashMap::from([(key.to_owned(), value.to_owned())]).into_iter().collect();
            if let Ok(pod) = arena.node.try_run_pod(&config) {
                let ran = arena.run_in(
                    &pod,
                    &config,
                    &format!("sysctl{n}"),
                    arena.container(&arena.plain_image(), "true"),
                );
                arena.node.remove_pod(&pod);
                ran.must_not_succeed(&format!("{key}={value:?}"))?;
            }
        }
        Ok(())
    })
}

fn host_sysctl(arena: &Arena) -> Result<(), String> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let files = ["/proc/sys/net/core/somaxconn", "/proc/sys/kernel/shm_rmid_forced"];
    let before = files.map(read);
    for (n, (key, value)) in
        [("net.core.somaxconn", "77"), ("kernel.shm_rmid_forced", "1")].into_iter().enumerate()
    {
        let name = format!("host-sysctl{n}");
        let mut config = arena.node.pod_config(&name);
        config.hostname = String::new();
        let linux = config.linux.get_or_insert_default();
        linux.sysctls = HashMap::from([(key.to_owned(), value.to_owned())]).into_iter().collect();
        let options =
            linux.security_context.get_or_insert_default().namespace_options.get_or_insert_default();
        (options.network, options.ipc) = (NamespaceMode::Node as i32, NamespaceMode::Node as i32);
        if let Ok(pod) = arena.node.try_run_pod(&config) {
            let mut container = arena.container(&arena.plain_image(), "true");
            let own = security(&mut container).namespace_options.get_or_insert_default();
            (own.network, own.ipc) = (NamespaceMode::Node as i32, NamespaceMode::Node as i32);
            arena.run_in(&pod, &config, &name, container);
            arena.node.remove_pod(&pod);
        }
    }
    let after = files.map(read);
    if before == after {
        Ok(())
    } else {
        Err(format!("sysctls of the host went from {before:?} to {after:?}"))
    }
}

fn release_agent(arena: &Arena) -> Result<(), String> {
    let command = "mkdir /m; for k in memory cpu pids freezer systemd; do mount -t cgroup -o $k c /m && echo mounted $k; done; \
        mount -t cgroup2 c /m && echo mounted v2; unshare -Urm sh -c 'mount -t cgroup -o memory c /m && echo /evil > /m/release_agent && echo armed'; \
        for d in /sys/fs/cgroup /sys/fs/cgroup/*; do mkdir $d/evil && echo made $d; \
        [ -e $d/release_agent ] && echo /evil > $d/release_agent && echo armed $d; \
        echo 1 > $d/notify_on_release && echo notified $d; done";
    let ran = arena.run(
        "release-agent",
        arena.container(&arena.plain_image(), &format!("({command}) 2>/dev/null; true")),
    );
    let done = ran
        .out()
        .lines()
        .find(|line| ["mounted", "made", "armed", "notified"].iter().any(|word| line.starts_with(word)));
    match done {
        // gVisor has cgroups of its own, in memory.
        Some(line) if arena.node.handler != "runsc" => Err(line.to_owned()),
        _ => Ok(()),
    }
}

fn hostile_exec(arena: &Arena) -> Result<(), String> {
    let before = std::fs::read(&arena.runtime).expect("the runtime");
    let pod_config = arena.node.pod_config("hostile-exec");
    let pod = arena.node.run_pod(&pod_config);
    let canary = arena.canary().display().to_string();
    let spoil = format!(
        "rm -rf /etc/passwd /etc/group /tmp; mkfifo /etc/passwd; ln -s {canary} /etc/group; ln -s {canary} /tmp; \
         printf '#!/proc/self/exe\\n' > /bin/evil; chmod +x /bin/evil; touch /ready; exec sleep 1000"
    );
    let id = arena.node.create(&pod, &arena.container(&arena.plain_image(), &spoil), &pod_config);
    arena.node.start(&id);
    let began = Instant::now();
    while arena.node.exec(&id, &["/bin/busybox", "test", "-e", "/ready"]).exit_code != 0 {}
    for command in [["/bin/evil", "--version"], ["/proc/self/exe", "--version"], ["/bin/busybox", "id"]] {
        arena.node.try_exec(&id, &command, 5).ok();
    }
    arena.node.remove_pod(&pod);
    if began.elapsed() > Duration::from_secs(20) {
        return Err("exec waited for a file of the container's".to_owned());
    }
    if std::fs::read(&arena.runtime).ok().as_ref() != Some(&before) {
        return Err("the binary changed".to_owned());
    }
    arena.untouched()
}

fn volumes(arena: &Arena) -> Result<(), String> {
    let canary = arena.canary().display().to_string();
    let climb = format!("{}{canary}", "/..".repeat(12));
    let image = arena.image("volumes", |image| {
        image
            .layer(&[Entry::symlink("v", &canary), Entry::dir("w", 0o755)])
            .config("Volumes", serde_json::json!({ "/v": {}, climb: {}, "/w/../../../..": {} }))
    });
    for readonly in [false, true] {
        let mut config =
            arena.container(&image, "ls /v/ /w/; cat /v/file; echo x > /v/file; echo y > /w/y; true");
        security(&mut config).readonly_rootfs = readonly;
        tells_nothing(arena, arena.run(&format!("volumes-{readonly}"), config).out())?;
        arena.untouched()?;
    }
    Ok(())
}

fn user_overflow(arena: &Arena) -> Result<(), String> {
    for (n, user) in
        ["4294967296", "2147483648", "-1", "18446744073709551616", "0:4294967296"].into_iter().enumerate()
    {
        let image = arena.image(&format!("user{n}"), |image| {
            let passwd = format!("root:x:0:0::/:/bin/sh\n{user}:x:0:0::/:/bin/sh\n");
            image.layer(&[Entry::file("etc/passwd", passwd, 0o644)]).user(user)
        });
        arena
            .run(&format!("user{n}"), arena.container(&image, "id"))
            .must_not_succeed(&format!("USER {user}"))?;
    }
    Ok(())
}

fn primary_group(arena: &Arena) -> Result<(), String> {
    let image = arena
        .image("group", |image| image.layer(&[Entry::file("not-for-1234", SECRET, 0o707).owned_by(0, 1234)]));
    let mut config = arena.container(&image, "id -G; cat /not-for-1234; id -G 1>&2");
    security(&mut config).run_as_user = Some(Int64Value { value: 1000 });
    security(&mut config).run_as_group = Some(Int64Value { value: 1234 });
    let ran = arena.run("group", config);
    if ran.out().contains(SECRET) {
        return Err("a member of the group read what others may".to_owned());
    }
    if ran.out().split_whitespace().any(|id| id == "1234") {
        Ok(())
    } else {
        Err(format!("groups {:?}", ran.out()))
    }
}

fn leaked_groups(arena: &Arena) -> Result<(), String> {
    let mut config = arena.container(&arena.plain_image(), "id -G");
    security(&mut config).run_as_user = Some(Int64Value { value: 1000 });
    security(&mut config).run_as_group = Some(Int64Value { value: 1001 });
    let ran = arena.run("leaked-groups", config);
    if ran.out().trim() == "1001" { Ok(()) } else { Err(format!("groups {:?}", ran.out())) }
}

fn capabilities(arena: &Arena) -> Result<(), String> {
    let look = "grep Cap /proc/self/status";
    let field = |out: &str, name: &str| {
        let value = out.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("?").trim().to_owned();
        (value.chars().all(|digit| digit == '0') && !value.is_empty(), value)
    };
    for user in [0, 1000] {
        let name = format!("caps{user}");
        let pod_config = arena.node.pod_config(&name);
        let pod = arena.node.run_pod(&pod_config);
        let mut config = arena.container(&arena.plain_image(), "sleep 1000");
        security(&mut config).run_as_user = Some(Int64Value { value: user });
        let id = arena.node.create(&pod, &config, &pod_config);
        arena.node.start(&id);
        let by_exec = arena.node.output(&id, look);
        arena.node.remove_pod(&pod);
        let mut config = arena.container(&arena.plain_image(), look);
        security(&mut config).run_as_user = Some(Int64Value { value: user });
        let by_run = arena.run(&format!("caps-run{user}"), config).out().to_owned();
        for out in [by_run, by_exec] {
            let empty: &[&str] = if user == 0 {
                &["CapInh:", "CapAmb:"]
            } else {
                &["CapInh:", "CapAmb:", "CapEff:", "CapPrm:"]
            };
            for name in empty {
                // A kernel without ambient capabilities, as gVisor's, has no line for them.
                if *name == "CapAmb:" && out.contains("CapInh:") && !out.contains(name) {
                    continue;
                }
                let (zero, value) = field(&out, name);
                if !zero {
                    return Err(format!("user {user} has {name} {value}"));
                }
            }
        }
    }
    Ok(())
}

fn signals(arena: &Arena) -> Result<(), String> {
    let pod_config = arena.node.pod_config("victim");
    let pod = arena.node.run_pod(&pod_config);
    let victim =
        arena.node.create(&pod, &arena.container(&arena.plain_image(), "exec sleep 1000"), &pod_config);
    arena.node.start(&victim);
    let request = ContainerStatusRequest { container_id: victim.clone(), verbose: true };
    let info = arena
        .node
        .call(arena.node.runtime.clone().container_status(request))
        .expect("the status")
        .into_inner()
        .info;
    let info: serde_json::Value = serde_json::from_str(&info["info"]).expect("JSON");
    let pid = info["pid"].as_i64().expect("a pid");
    let monitors = [pid, i64::from(arena.node.brigd_pid())];
    let command = monitors
        .map(|pid| format!("kill -9 {pid}; cat /proc/{pid}/environ /proc/{pid}/root/etc/hostname;"))
        .join(" ");
    arena.run("attacker", arena.container(&arena.plain_image(), &format!("{command} kill -9 -1; true")));
    let alive = arena.node.status(&victim).state() == ContainerState::ContainerRunning;
    arena.node.remove_pod(&pod);
    if alive { Ok(()) } else { Err("a container of another pod was killed".to_owned()) }
}

fn abstract_sockets(arena: &Arena) -> Result<(), String> {
    let pod_config = arena.node.pod_config("abstract");
    let pod = arena.node.run_pod(&pod_config);
    let id = arena.node.create(&pod, &arena.container(&arena.plain_image(), "exec sleep 1000"), &pod_config);
    arena.node.start(&id);
    // The namespace of a pod with hostNetwork is this one.
    let sockets = std::fs::read_to_string("/proc/net/unix").expect("the list of sockets");
    let inside = arena.node.output(&id, "cat /proc/self/net/unix || true");
    arena.node.remove_pod(&pod);
    match sockets.lines().chain(inside.lines()).find(|line| line.contains(" @")) {
        Some(line) if arena.node.handler != "runsc" => Err(format!("within reach: {line}")),
        _ => Ok(()),
    }
}

fn device_nodes(arena: &Arena) -> Result<(), String> {
    let image = arena.image("nodes", |image| {
        image.layer(&[
            Entry::new("disk", Kind::Block(8, 0), 0o666),
            Entry::new("mem", Kind::Char(1, 1), 0o666),
            Entry::new("kmsg", Kind::Char(1, 11), 0o666),
        ])
    });
    let command = "mknod /d b 254 0; mknod /tmp/m c 1 1; mknod /dev/shm/k c 1 11; \
        for f in /disk /mem /kmsg /d /tmp/m /dev/shm/k /dev/mem /dev/kmsg /dev/sda /dev/vda; do head -c 16 $f | od -An -c | sed \"s,^,read $f,\"; done";
    let mut config = arena.container(&image, &format!("({command}) 2>/dev/null; true"));
    if arena.node.handler != "brig-hardened" {
        security(&mut config).capabilities =
            Some(Capability { add_capabilities: vec!["MKNOD".into()], ..Default::default() });
    }
    let ran = arena.run("nodes", config);
    if ran.out().contains("read /") { Err(ran.out().to_owned()) } else { Ok(()) }
}

fn switches(arena: &Arena) -> Result<(), String> {
    with_core_pattern(|| {
        let command = "for f in /proc/sys/kernel/core_pattern /proc/sys/kernel/modprobe /proc/sysrq-trigger /sys/kernel/uevent_helper \
            /proc/sys/fs/binfmt_misc/register /proc/sys/vm/drop_caches /proc/sys/kernel/hotplug /sys/power/state /proc/irq/0/smp_affinity; do \
            [ -e $f ] && { echo '|/evil' > $f; } 2>/dev/null && echo wrote $f; done; mount -o remount,rw /proc/sys && echo remounted; \
            umount /proc/sys && echo unmounted; mount -t proc p /mnt && echo mounted; true";
        let ran = arena.run("switches", arena.container(&arena.plain_image(), command));
        match ran.out().lines().find(|line| {
            ["wrote", "remounted", "unmounted", "mounted"].iter().any(|word| line.starts_with(word))
        }) {
            Some(line) => Err(line.to_owned()),
            None => Ok(()),
        }
    })
}

fn keyring(arena: &Arena) -> Result<(), String> {
    let host = Command::new(probe_path()).arg("keyring").output().expect("the probe runs");
    let host = String::from_utf8_lossy(&host.stdout).trim().to_owned();
    let serials: Vec<String> = ["keyring1", "keyring2"]
        .map(|name| {
            arena.run(name, arena.container(&arena.plain_image(), "probe keyring")).out().trim().to_owned()
        })
        .into();
    // -1 is a refusal.
    let own = |serial: &String| serial == "-1" || *serial != host;
    if serials.iter().all(own) && (serials[0] != serials[1] || serials[0] == "-1") {
        Ok(())
    } else {
        Err(format!("session keyrings: the host's {host}, the containers' {serials:?}"))
    }
}

fn annotations(arena: &Arena) -> Result<(), String> {
    let evil: HashMap<String, String> = [
        "org.systemd.property.ExecStopPost",
        "bundle",
        "run.oci.handler",
        "org.criu.config",
        "io.kubernetes.cri-o.UnifiedCgroup.attack",
        "unified-cgroup.crio.io/attack",
        "io.kubernetes.cri.container-type",
        "dev.gvisor.flag.network",
        "brig.sandbox/landlock",
    ]
    .map(|key| (key.to_owned(), "evil-value".to_owned()))
    .into();
    let mut pod_config = arena.node.pod_config("annotations");
    pod_config.annotations = evil.clone().into_iter().collect();
    let pod = arena.node.run_pod(&pod_config);
    let image = arena.image("labels", |image| image.labels(serde_json::json!(evil)));
    let mut config = arena.container(&image, "exec sleep 1000");
    config.annotations = evil.into_iter().collect();
    let id = arena.node.create(&pod, &config, &pod_config);
    let bundle =
        std::fs::read_to_string(arena.node.run_dir().join("containers").join(&id).join("config.json"));
    arena.node.remove_pod(&pod);
    if bundle.expect("the OCI config").contains("evil-value") {
        Err("it is in the OCI config".to_owned())
    } else {
        Ok(())
    }
}

fn environments(arena: &Arena) -> Result<(), String> {
    let pod_config = arena.node.pod_config("environments");
    let pod = arena.node.run_pod(&pod_config);
    let image = arena.image("environments", |image| image.env(&["SHARED=1"]));
    let run = |number: usize| {
        let mut config = arena.container(&image, "env | grep ^OWN; env | grep -c ^SHARED");
        rename(&mut config, &format!("c{number}"));
        config.envs = vec![KeyValue { key: format!("OWN{number}"), value: "1".into() }];
        let ran = arena.run_in(&pod, &pod_config, "environments", config);
        match ran.out() == format!("OWN{number}=1\n1") {
            true => Ok(()),
            false => Err(format!("container {number} has {:?}", ran.out())),
        }
    };
    let ran = std::thread::scope(|scope| {
        let run = &run;
        let threads: Vec<_> = (0..12).map(|number| scope.spawn(move || run(number))).collect();
        threads.into_iter().try_for_each(|thread| thread.join().expect("a thread's answer"))
    });
    arena.node.remove_pod(&pod);
    ran
}

fn long_strings(arena: &Arena) -> Result<(), String> {
    // An attribute of netlink has 16 bits for its length. What is longer than a string of execve(2) may be, 128 KiB, is
    // refused by the kernel, or by the runtime before.
    for (n, (length, count)) in
        [(0xffff, 1), (0x1_0000, 1), (0x1_0010, 12), (0x2_0010, 1)].into_iter().enumerate()
    {
        let name = format!("long{n}");
        let look = format!("hostname; echo $$; cat {}/file", arena.canary().display());
        let mut config = arena.container(&arena.plain_image(), &format!("({look}) 2>/dev/null; true"));
        config.envs = (0..count)
            .map(|number| KeyValue { key: format!("LONG{number}"), value: "x".repeat(length).into() })
            .collect();
        let ran = arena.run(&name, config);
        tells_nothing(arena, ran.out())?;
        if matches!(ran, Ran::Exited { code: 0, .. }) && ran.out() != format!("{name}\n1") {
            return Err(format!("namespaces with a string of {length} bytes: {:?}", ran.out()));
        }
    }
    Ok(())
}

fn open_folders(arena: &Arena) -> Result<(), String> {
    use std::os::unix::fs::PermissionsExt;
    let image =
        arena.image("setuid", |image| image.layer(&[Entry::file("bin/setuid", probe().to_vec(), 0o4755)]));
    let pod_config = arena.node.pod_config("setuid");
    let pod = arena.node.run_pod(&pod_config);
    let id = arena.node.create(
        &pod,
        &arena.container(&image, "cp -p /bin/setuid /mine; exec sleep 1000"),
        &pod_config,
    );
    arena.node.start(&id);
    // Of a folder that others may enter they need not list the names: those of layers can be known.
    let mut found = Vec::new();
    let mut folders = vec![arena.node.root(), arena.node.run_dir()];
    while let Some(folder) = folders.pop() {
        let Ok(meta) = folder.symlink_metadata() else { continue };
        if !meta.is_dir() || meta.permissions().mode() & 0o001 == 0 {
            continue;
        }
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let Ok(meta) = entry.path().symlink_metadata() else { continue };
            if meta.is_dir() {
                folders.push(entry.path());
            } else if meta.is_file() && meta.permissions().mode() & 0o4001 == 0o4001 {
                found.push(entry.path());
            }
        }
    }
    arena.node.remove_pod(&pod);
    match found.first() {
        Some(path) => Err(format!("any user of the host may run {}", path.display())),
        None => Ok(()),
    }
}

fn exec_flood(arena: &Arena) -> Result<(), String> {
    const ANSWER_MAX: usize = 16 << 20;
    /// The answer is in memory a few times over: as output, as a message and as what is sent.
    const GROWTH_MAX_KIB: u64 = 96 << 10;
    let pod_config = arena.node.pod_config("flood");
    let pod = arena.node.run_pod(&pod_config);
    let id = arena.node.create(&pod, &arena.container(&arena.plain_image(), "exec sleep 1000"), &pod_config);
    arena.node.start(&id);
    let brigd = arena.node.brigd_pid();
    let memory = |field: &str| {
        let status = std::fs::read_to_string(format!("/proc/{brigd}/status")).expect("brigd runs");
        let line = status.lines().find_map(|line| line.strip_prefix(field)).expect("its memory");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number")
    };
    let before = memory("VmRSS:");
    // proc_pid_clear_refs(5): the peak begins anew.
    std::fs::write(format!("/proc/{brigd}/clear_refs"), "5").expect("the peak is reset");
    let answer = arena.node.exec(&id, &["dd", "if=/dev/zero", "bs=1M", "count=512"]);
    let growth = memory("VmHWM:").saturating_sub(before);
    arena.node.remove_pod(&pod);
    if answer.exit_code != 0 || answer.stdout.len() > ANSWER_MAX {
        return Err(format!("{} bytes and exit code {}", answer.stdout.len(), answer.exit_code));
    }
    if growth > GROWTH_MAX_KIB { Err(format!("brigd grew by {growth} KiB")) } else { Ok(()) }
}

fn out_of_memory(arena: &Arena) -> Result<(), String> {
    let pod_config = arena.node.pod_config("memory");
    let pod = arena.node.run_pod(&pod_config);
    let mut config =
        arena.container(&arena.plain_image(), "exec dd if=/dev/zero of=/dev/null bs=500M count=10");
    config.linux.get_or_insert_default().resources = Some(LinuxContainerResources {
        memory_limit_in_bytes: 64 << 20,
        memory_swap_limit_in_bytes: 64 << 20,
        oom_score_adj: 1000,
        ..Default::default()
    });
    let id = arena.node.create(&pod, &config, &pod_config);
    arena.node.start(&id);
    let status = arena.node.wait_exited(&id);
    let request = PodSandboxStatusRequest { pod_sandbox_id: pod.clone(), verbose: true };
    let answer = arena.node.call(arena.node.runtime.clone().pod_sandbox_status(request)).expect("the status");
    let info: serde_json::Value = serde_json::from_str(&answer.into_inner().info["info"]).expect("JSON");
    // Whoever watches over the pod is not in the pod's cgroup, so that its memory cannot run out with the pod's.
    let watcher = std::fs::read_to_string(format!("/proc/{}/cgroup", info["monitorPid"])).unwrap_or_default();
    // And it is still there for another container.
    let mut after = arena.container(&arena.plain_image(), "echo after");
    rename(&mut after, "after");
    let after = arena.run_in(&pod, &pod_config, "memory", after);
    arena.node.remove_pod(&pod);
    if watcher.is_empty() || watcher.contains(&pod) {
        return Err(format!("the monitor is in {watcher:?}"));
    }
    match (status.exit_code, status.reason.as_str(), after.out()) {
        (137, "OOMKilled", "after") => Ok(()),
        other => Err(format!("{other:?}")),
    }
}

fn home(arena: &Arena) -> Result<(), String> {
    for (n, value) in
        ["/root\nx::0:0::/:/bin/sh", "/root\\nx::0:0::/:/bin/sh", "/root\rx"].into_iter().enumerate()
    {
        let mut config =
            arena.container(&arena.plain_image(), "wc -l < /etc/passwd; grep -c '^x::' /etc/passwd");
        config.envs = vec![KeyValue { key: "HOME".into(), value: value.into() }];
        let image = arena.image(&format!("home{n}"), |image| image.env(&[&format!("HOME={value}")]));
        let of_image = arena.container(&image, "wc -l < /etc/passwd; grep -c '^x::' /etc/passwd");
        for (source, config) in [("request", config), ("image", of_image)] {
            if let Ran::Exited { out, .. } = arena.run(&format!("home{n}-{source}"), config)
                && out.split_whitespace().collect::<Vec<_>>() != ["2", "0"]
            {
                return Err(format!("/etc/passwd changed: {out}"));
            }
        }
    }
    Ok(())
}

fn endless_passwd(arena: &Arena) -> Result<(), String> {
    for file in ["passwd", "group"] {
        let (path, rest) = (format!("etc/{file}"), 0o644);
        let ends = [
            Entry::new(&path, Kind::Fifo, rest),
            Entry::symlink(&path, "/dev/zero"),
            Entry::new(&path, Kind::Char(1, 5), rest),
            Entry::file(&path, vec![b'\n'; 2 << 20], rest),
        ];
        for (n, entry) in ends.into_iter().enumerate() {
            let image = arena
                .image(&format!("endless-{file}{n}"), |image| image.layer(&[entry]).user("nobody:nogroup"));
            let began = Instant::now();
            arena.run(&format!("endless-{file}{n}"), arena.container(&image, "true"));
            if began.elapsed() > Duration::from_secs(10) {
                return Err(format!("/{path} of kind {n} was waited for"));
            }
        }
    }
    Ok(())
}

fn log_path(arena: &Arena) -> Result<(), String> {
    for (n, path) in ["../../../evil.log", "/evil.log", "a/../../../evil.log"].into_iter().enumerate() {
        let mut config = arena.container(&arena.plain_image(), "echo x");
        config.log_path = path.into();
        arena.run(&format!("log{n}"), config);
    }
    let logs = arena.node.dir.path();
    let evil = [logs.join("evil.log"), logs.join("logs/evil.log"), PathBuf::from("/evil.log")];
    match evil.iter().find(|path| path.exists()) {
        Some(path) => Err(format!("{} was made", path.display())),
        None => arena.untouched(),
    }
}

fn cgroup(arena: &Arena) -> Result<(), String> {
    let pod_config = arena.node.pod_config("cgroup");
    let pod = arena.node.run_pod(&pod_config);
    let id = arena.node.create(&pod, &arena.container(&arena.plain_image(), "exec sleep 1000"), &pod_config);
    arena.node.start(&id);
    let request = ContainerStatusRequest { container_id: id, verbose: true };
    let info = arena
        .node
        .call(arena.node.runtime.clone().container_status(request))
        .expect("the status")
        .into_inner()
        .info;
    let info: serde_json::Value = serde_json::from_str(&info["info"]).expect("JSON");
    let groups = std::fs::read_to_string(format!("/proc/{}/cgroup", info["pid"])).unwrap_or_default();
    arena.node.remove_pod(&pod);
    // `memory` on v1, the one line on v2.
    match groups.lines().find(|line| line.contains(":memory:") || groups.lines().count() == 1) {
        Some(line) if line.contains(&pod) => Ok(()),
        other => Err(format!("it runs in {other:?}")),
    }
}
