//! Limits that are part of a container's request: OOM score, rlimits, huge pages, swap, files of cgroup v2.

use std::collections::BTreeMap;

use super::*;

fn resources(config: &mut ContainerConfig) -> &mut LinuxContainerResources {
    config.linux.get_or_insert_default().resources.get_or_insert_default()
}

#[test]
fn privileged_an_oom_score_is_set_as_far_as_the_daemon_may() {
    on_every_handler(|node| {
        let pod = Pod::new(node, "oom");
        let score = |adj: i64| pod.sh("cat /proc/self/oom_score_adj", |c| resources(c).oom_score_adj = adj);
        assert_eq!(score(777), "777");
        assert_eq!(score(0), "0");
        // Lowering it takes CAP_SYS_RESOURCE (proc_pid_oom_score_adj(5)); without, the container has the daemon's.
        let own: i32 = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap().trim().parse().unwrap();
        let low: i32 = score(-900).parse().unwrap();
        assert!(low == -900 || low == own, "{low}");
        assert!(pod.refused(|c| resources(c).oom_score_adj = 1001).contains("oom_score_adj"));
    });
}

#[test]
fn privileged_resource_limits_are_those_configured() {
    for handler in handlers() {
        let config = "[runtime]\ndefault_ulimits = [\"nofile=512:1024\", \"core=0\"]\n";
        on_handler(handler, config, |node| {
            let pod = Pod::new(node, "ulimits");
            assert_eq!(pod.sh("ulimit -Sn; ulimit -Hn; ulimit -c", |_| {}), "512\n1024\n0");
            let id = pod.keep(|_| {});
            assert_eq!(node.output(&id, "ulimit -Hn").trim(), "1024");
        });
    }
}

/// The file of a controller of a container, wherever the hierarchy has it; `None` where the host lacks it.
fn cgroup_file(node: &Node, id: &str, v1: &str, v2: &str) -> Option<String> {
    let pid = node.output(id, "true");
    assert_eq!(pid, "");
    let walk = |root: &str| {
        let output =
            std::process::Command::new("find").args([root, "-type", "d", "-name", id]).output().unwrap();
        String::from_utf8(output.stdout).unwrap().lines().next().map(std::path::PathBuf::from)
    };
    if std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        return std::fs::read_to_string(walk("/sys/fs/cgroup")?.join(v2)).ok();
    }
    let (controller, _) = v1.split_once('.').unwrap();
    std::fs::read_to_string(walk(&format!("/sys/fs/cgroup/{controller}"))?.join(v1)).ok()
}

#[test]
fn privileged_huge_pages_and_swap_are_limited_where_the_kernel_counts_them() {
    on_every_handler(|node| {
        let pod = Pod::new(node, "pages");
        if std::path::Path::new("/sys/kernel/mm/hugepages/hugepages-2048kB").exists() {
            let id = pod.keep(|c| {
                resources(c).hugepage_limits =
                    vec![HugepageLimit { page_size: "2MB".into(), limit: 4 << 20 }];
            });
            if let Some(limit) = cgroup_file(node, &id, "hugetlb.2MB.limit_in_bytes", "hugetlb.2MB.max") {
                assert_eq!(limit.trim(), (4u64 << 20).to_string());
            }
        }
        let why = pod.refused(|c| {
            resources(c).hugepage_limits = vec![HugepageLimit { page_size: "2mb".into(), limit: 1 }];
        });
        assert!(why.contains("hugepage_limits[0].page_size"), "{why}");
        let id = pod.keep(|c| {
            resources(c).memory_limit_in_bytes = 64 << 20;
            resources(c).memory_swap_limit_in_bytes = 64 << 20;
        });
        let limit =
            cgroup_file(node, &id, "memory.limit_in_bytes", "memory.max").expect("the memory controller");
        assert_eq!(limit.trim(), (64u64 << 20).to_string());
        if let Some(swap) = cgroup_file(node, &id, "memory.memsw.limit_in_bytes", "memory.swap.max") {
            assert!(swap.trim() == (64u64 << 20).to_string() || swap.trim() == "0", "{swap}");
        }
        let why = pod.refused(|c| {
            resources(c).memory_limit_in_bytes = 64 << 20;
            resources(c).memory_swap_limit_in_bytes = 32 << 20;
        });
        assert!(why.contains("memory_swap_limit_in_bytes"), "{why}");
    });
}

#[test]
fn privileged_files_of_cgroup_v2_are_written_there_and_refused_elsewhere() {
    on_every_handler(|node| {
        let pod = Pod::new(node, "unified");
        let unified = |key: &str, value: &str| {
            let files = BTreeMap::from([(key.to_owned(), value.to_owned())]);
            move |c: &mut ContainerConfig| resources(c).unified.clone_from(&files)
        };
        if std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
            let id = pod.keep(unified("memory.high", "50000000"));
            let high = cgroup_file(node, &id, "memory.high", "memory.high").expect("the memory controller");
            assert!(high.trim().parse::<u64>().unwrap() >= 49_000_000, "{high}");
        } else {
            let why = pod.refused(unified("memory.high", "50000000"));
            assert!(why.contains("unified"), "{why}");
        }
        for file in ["cgroup.procs", "../memory.high", "memory"] {
            let why = pod.refused(unified(file, "1"));
            assert!(why.contains("unified") && why.contains(file), "{why}");
        }
        // CVE-2023-6476: an annotation is no way around.
        let annotated = |c: &mut ContainerConfig| {
            for key in [
                "io.kubernetes.cri-o.UnifiedCgroup.c",
                "unified-cgroup.crio.io/c",
                "org.systemd.property.MemoryMax",
            ] {
                c.annotations.insert(key.into(), "memory.max=1".into());
            }
        };
        assert_eq!(pod.sh("echo fine", annotated), "fine");
    });
}
