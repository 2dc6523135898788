//! Paths and mount tables as tables; everything else in this host's own cgroups.

use std::process::{Command, Stdio};

use oci_spec::runtime::LinuxResources;
use serde_json::{Value, json};

use super::*;

const HYBRID: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
37 31 0:34 / /sys/fs/cgroup/freezer rw,relatime - cgroup cgroup rw,freezer
38 31 0:35 / /sys/fs/cgroup/net_cls rw,relatime - cgroup cgroup rw,net_cls
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw,nsdelegate
99 31 0:32 / /mnt/again\\040memory rw,relatime - cgroup cgroup rw,memory
";
const V2: &str = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";

#[test]
fn the_mount_table_says_which_controllers_are_where() {
    let hybrid = Hierarchy::parse(HYBRID, false);
    assert_eq!(hybrid.mode(), Mode::Hybrid);
    assert_eq!(hybrid.v1_root(Controller::Cpuacct), Some(Path::new("/sys/fs/cgroup/cpu,cpuacct")));
    assert_eq!(hybrid.v1_root(Controller::Memory), Some(Path::new("/sys/fs/cgroup/memory")));
    let roots: Vec<_> = hybrid.default_roots().collect();
    assert_eq!(
        roots,
        ["/sys/fs/cgroup/cpu,cpuacct", "/sys/fs/cgroup/memory", "/sys/fs/cgroup/unified"].map(Path::new)
    );
    let v2 = Hierarchy::parse(V2, true);
    assert_eq!((v2.mode(), v2.v2.as_deref()), (Mode::V2, Some(Path::new("/sys/fs/cgroup"))));
    // systemd's own hierarchy alone does not make a host hybrid.
    let named = "40 31 0:37 / /s rw - cgroup cgroup rw,name=systemd\n";
    assert_eq!(Hierarchy::parse(&format!("{named}{V2}"), true).mode(), Mode::V2);
}

#[test]
fn a_cgroup_path_cannot_leave_its_hierarchy() {
    for (text, expected) in [
        ("/kubepods/pod1/c", Ok("/kubepods/pod1/c")),
        ("kubepods//./c/", Ok("/kubepods/c")),
        ("/", Err("cgroup path \"/\" names no cgroup")),
        ("", Err("cgroup path \"\" names no cgroup")),
        ("/a/../../b", Err("cgroup path \"/a/../../b\" contains \"..\"")),
        ("/a\0b", Err("cgroup path \"/a\\0b\" contains a NUL or newline")),
    ] {
        let got =
            CgroupPath::new(Path::new(text)).map(|path| path.to_string()).map_err(|err| err.to_string());
        assert_eq!(got, expected.map(str::to_owned).map_err(str::to_owned), "{text:?}");
    }
    let long = "x".repeat(256);
    assert!(matches!(CgroupPath::new(Path::new(&long)), Err(PathError::TooLong { max: 255, .. })));
}

#[test]
fn a_systemd_path_lands_where_systemd_would_put_it() {
    for (slice, prefix, name, expected) in [
        (
            "kubepods-burstable-pod1.slice",
            "brig",
            "c1",
            Some("/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice/brig-c1.scope"),
        ),
        ("", "brig", "c1", Some("/system.slice/brig-c1.scope")),
        ("-.slice", "brig", "c1", Some("/brig-c1.scope")),
        ("a.slice", "", "c1", Some("/a.slice/c1.scope")),
        ("a.slice", "brig", "b.slice", Some("/a.slice/b.slice")),
        ("a--b.slice", "brig", "c1", None),
        ("a/../b.slice", "brig", "c1", None),
        ("a", "brig", "c1", None),
        ("a.slice", "brig", "../c1", None),
        ("a.slice", "brig", "", None),
    ] {
        let got = CgroupPath::from_systemd(slice, prefix, name).map(|path| path.to_string());
        assert_eq!(got.as_deref().ok(), expected, "{slice}:{prefix}:{name}");
    }
}

#[test]
fn a_pods_cgroup_is_found_by_either_form_of_its_parent() {
    for (parent, expected) in [
        ("/kubepods/pod1", Some("/kubepods/pod1")),
        ("kubepods-pod1.slice", Some("/kubepods.slice/kubepods-pod1.slice")),
        ("/kubepods.slice/kubepods-pod1.slice", Some("/kubepods.slice/kubepods-pod1.slice")),
        ("", None),
        ("../x", None),
    ] {
        let got = CgroupPath::from_parent(parent).ok().map(|path| path.to_string());
        assert_eq!(got.as_deref(), expected, "{parent}");
    }
}

/// Goal: v2's files and units, on hosts without v2 controllers too. Method: a folder with the files of a cgroup stands in for
/// one; what is written stays in them.
#[test]
fn resources_become_the_files_and_units_of_v2() {
    let root = tempfile::tempdir().unwrap();
    let hierarchy = Hierarchy { v1: Vec::new(), v2: Some(root.path().to_owned()), systemd: false };
    let dir = root.path().join("c");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("cgroup.controllers"), "cpuset cpu io memory hugetlb pids\n").unwrap();
    let files = [
        "cpu.max",
        "cpu.max.burst",
        "cpu.weight",
        "cpuset.cpus",
        "hugetlb.2MB.max",
        "hugetlb.2MB.rsvd.max",
        "io.max",
        "io.weight",
        "memory.high",
        "memory.low",
        "memory.max",
        "memory.swap.max",
        "pids.max",
    ];
    let clear = || {
        for file in files {
            fs::write(dir.join(file), if file == "cpu.max" { "max 50000" } else { "" }).unwrap();
        }
    };
    let cgroup = Cgroup::open(&hierarchy, &CgroupPath::new(Path::new("/c")).unwrap()).unwrap();
    let apply = |value: Value| cgroup.apply(&serde_json::from_value::<LinuxResources>(value).unwrap());
    for (resources, file, expected) in [
        (json!({"cpu": {"shares": 1024}}), "cpu.weight", "100"),
        (json!({"cpu": {"quota": 12_000_000, "period": 100_000}}), "cpu.max", "12000000 100000"),
        (json!({"cpu": {"quota": 1_000_000}}), "cpu.max", "1000000 50000"),
        (json!({"cpu": {"burst": 5}}), "cpu.max.burst", "5"),
        (json!({"cpu": {"cpus": "0-1"}}), "cpuset.cpus", "0-1"),
        (json!({"memory": {"limit": 100}}), "memory.max", "100"),
        (json!({"memory": {"limit": -1}}), "memory.max", "max"),
        (json!({"memory": {"limit": -1}}), "memory.swap.max", "max"),
        (json!({"memory": {"limit": 100, "swap": 100}}), "memory.swap.max", "0"),
        (json!({"memory": {"limit": 100, "swap": 300}}), "memory.swap.max", "200"),
        (json!({"memory": {"limit": 100, "swap": -1}}), "memory.swap.max", "max"),
        (json!({"memory": {"reservation": 50}}), "memory.low", "50"),
        (json!({"pids": {"limit": -1}}), "pids.max", "max"),
        (json!({"hugepageLimits": [{"pageSize": "2MB", "limit": 4}]}), "hugetlb.2MB.rsvd.max", "4"),
        (json!({"blockIO": {"weight": 500}}), "io.weight", "4950"),
        (
            json!({"blockIO": {"throttleWriteIOPSDevice": [{"major": 8, "minor": 0, "rate": 9}]}}),
            "io.max",
            "8:0 wiops=9",
        ),
        (json!({"unified": {"memory.high": "77"}}), "memory.high", "77"),
    ] {
        clear();
        assert_eq!(apply(resources.clone()).unwrap(), []);
        assert_eq!(fs::read_to_string(dir.join(file)).unwrap(), expected, "{resources}");
    }
    for (resources, expected) in [
        (
            json!({"memory": {"limit": 100, "swap": 50}}),
            "linux.resources.memory.swap \"50\" is not valid: it is the sum of memory and swap, but lies below the memory limit",
        ),
        (
            json!({"memory": {"swap": 50}}),
            "linux.resources.memory.swap \"50\" is not valid: it is the sum of memory and swap, so it needs a memory limit",
        ),
        (
            json!({"unified": {"memory.nonsense": "1"}}),
            "linux.resources.unified \"memory.nonsense\" is not valid: this host's cgroup v2 has no such file",
        ),
        (
            json!({"rdma": {"mlx5": {"hcaHandles": 1}}}),
            "linux.resources.rdma \"mlx5\" cannot be set: this host has no rdma cgroup controller",
        ),
    ] {
        assert_eq!(apply(resources).unwrap_err().to_string(), expected);
    }
    // Without swap accounting, a limit of memory alone is still kept, and a real limit on swap is not silently lost.
    fs::remove_file(dir.join("memory.swap.max")).unwrap();
    assert_eq!(apply(json!({"memory": {"limit": 100, "swap": 100}})).unwrap(), []);
    assert_eq!(
        apply(json!({"memory": {"limit": 100, "swap": 200}})).unwrap(),
        [Warning("linux.resources.memory.swap is ignored: this kernel does not account swap".to_owned())]
    );
}

#[test]
fn statistics_of_v2_are_read_in_the_units_of_v1() {
    let root = tempfile::tempdir().unwrap();
    let hierarchy = Hierarchy { v1: Vec::new(), v2: Some(root.path().to_owned()), systemd: false };
    let dir = root.path().join("c");
    fs::create_dir(&dir).unwrap();
    for (file, text) in [
        (
            "cpu.stat",
            "usage_usec 5000\nuser_usec 3000\nsystem_usec 2000\nnr_periods 4\nnr_throttled 1\nthrottled_usec 9\n",
        ),
        ("memory.current", "1000\n"),
        ("memory.max", "4000\n"),
        ("memory.stat", "anon 600\nfile 400\ninactive_file 300\npgfault 7\npgmajfault 1\n"),
        ("memory.events", "low 0\nhigh 0\nmax 2\noom 1\noom_kill 3\noom_group_kill 0\n"),
        ("memory.swap.current", "10\n"),
        ("memory.swap.max", "max\n"),
        ("pids.current", "5\n"),
        ("pids.max", "max\n"),
        ("cpu.pressure", "some avg10=1.50 avg60=0.00 avg300=0.00 total=3\n"),
    ] {
        fs::write(dir.join(file), text).unwrap();
    }
    let path = CgroupPath::new(Path::new("/c")).unwrap();
    let stats = Cgroup::open(&hierarchy, &path).unwrap().stats().unwrap();
    let cpu = stats.cpu.unwrap();
    assert_eq!(
        (cpu.usage_ns, cpu.user_ns, cpu.system_ns, cpu.throttled_ns),
        (5_000_000, 3_000_000, 2_000_000, 9_000)
    );
    let memory = stats.memory.unwrap();
    assert_eq!(
        (memory.usage, memory.working_set, memory.rss, memory.available),
        (1000, 700, 600, Some(3300))
    );
    assert_eq!(
        (memory.swap_usage, memory.swap_limit, memory.oom_kills, memory.limit_hits),
        (Some(10), None, 3, 2)
    );
    assert_eq!(stats.pids.unwrap(), super::stats::PidsStats { current: 5, limit: None });
    assert_eq!(stats.cpu_psi.unwrap().some.avg10_centipercent, 150);
    assert_eq!((stats.memory_psi, stats.io), (None, Vec::new()));
    assert_eq!(OomCounter::open(&hierarchy, &path).unwrap().unwrap().count().unwrap(), 3);
}

/// A cgroup of this test's own, gone with it.
struct Scratch(Cgroup);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = format!("/brig-test-{}-{name}/c", std::process::id());
        let path = CgroupPath::new(Path::new(&path)).unwrap();
        Self(Cgroup::create(&Hierarchy::detect().unwrap(), &path).unwrap())
    }

    fn apply(&self, resources: Value) -> Result<Vec<Warning>, CgroupError> {
        let resources: LinuxResources = serde_json::from_value(resources).unwrap();
        self.0.apply(&resources)
    }

    /// The content of a v1 file, or `None` on a host with v2 only.
    fn v1(&self, controller: Controller, file: &str) -> Option<String> {
        Some(read_file(&self.0.v1_dir(controller)?.join(file)).unwrap().trim().to_owned())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        self.0.kill_all().unwrap();
        self.0.remove().unwrap();
        self.0.remove_empty_parents();
        assert_eq!(self.0.dirs().count(), 0);
    }
}

fn sleeper() -> std::process::Child {
    Command::new("sleep").arg("1000").stdout(Stdio::null()).spawn().unwrap()
}

#[test]
fn privileged_limits_are_written_raised_and_lowered_whatever_the_order_they_need() {
    let scratch = Scratch::new("limits");
    scratch
        .apply(json!({
            "cpu": {"shares": 512, "quota": 50_000, "period": 100_000},
            "memory": {"limit": 64 << 20, "swap": 64 << 20},
            "pids": {"limit": 50},
            "hugepageLimits": [{"pageSize": "2MB", "limit": 0}],
        }))
        .unwrap();
    if scratch.0.hierarchy.mode() == Mode::V2 {
        return;
    }
    let memory = |file| scratch.v1(Controller::Memory, file).unwrap();
    assert_eq!(scratch.v1(Controller::Cpu, "cpu.shares").unwrap(), "512");
    assert_eq!(scratch.v1(Controller::Cpu, "cpu.cfs_quota_us").unwrap(), "50000");
    assert_eq!(scratch.v1(Controller::Pids, "pids.max").unwrap(), "50");
    assert_eq!(memory("memory.memsw.limit_in_bytes"), (64 << 20).to_string());
    for (limit, swap) in
        [(128 << 20, 256i64 << 20), (32 << 20, 32 << 20), (32 << 20, -1), (96 << 20, 96 << 20)]
    {
        scratch.apply(json!({"memory": {"limit": limit, "swap": swap}})).unwrap();
        assert_eq!(memory("memory.limit_in_bytes"), limit.to_string());
    }
    scratch.apply(json!({"memory": {"limit": -1}})).unwrap();
    assert_eq!(scratch.0.stats().unwrap().memory.unwrap().limit, None);
    // A period below the quota's old ratio, then back.
    scratch.apply(json!({"cpu": {"quota": 1_000, "period": 1_000}})).unwrap();
    scratch.apply(json!({"cpu": {"quota": 200_000, "period": 100_000, "burst": 100_000}})).unwrap();
    scratch.apply(json!({"cpu": {"quota": 10_000, "period": 100_000, "burst": 0}})).unwrap();
    assert_eq!(scratch.v1(Controller::Cpu, "cpu.cfs_quota_us").unwrap(), "10000");
    scratch.apply(json!({"cpu": {"quota": -1}})).unwrap();
    assert_eq!(scratch.v1(Controller::Cpu, "cpu.cfs_quota_us").unwrap(), "-1");
}

#[test]
fn privileged_a_change_that_fails_half_way_leaves_everything_as_it_was() {
    let scratch = Scratch::new("undo");
    scratch
        .apply(json!({"cpu": {"shares": 100}, "memory": {"limit": 64 << 20}, "pids": {"limit": 9}}))
        .unwrap();
    let before = scratch.0.stats().unwrap();
    let err = scratch
        .apply(
            json!({"cpu": {"shares": 200, "cpus": "0"}, "memory": {"limit": 32 << 20}, "pids": {"limit": 10},
            "blockIO": {"throttleReadBpsDevice": [{"major": 4095, "minor": 4095, "rate": 1}]}}),
        )
        .unwrap_err();
    assert!(matches!(&err, CgroupError::Write { value, .. } if value.starts_with("4095:4095")), "{err}");
    let after = scratch.0.stats().unwrap();
    assert_eq!(after.memory.unwrap().limit, before.memory.unwrap().limit);
    assert_eq!(after.pids.unwrap().limit, Some(9));
    if let Some(shares) = scratch.v1(Controller::Cpu, "cpu.shares") {
        assert_eq!(shares, "100");
    }
}

#[test]
fn privileged_a_limit_for_a_device_is_taken_back_when_a_later_one_fails() {
    let scratch = Scratch::new("io");
    let disks = std::fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let disk = disks.filter_map(|disk| std::fs::read_to_string(disk.path().join("dev")).ok()).next();
    let Some((major, minor)) = disk.as_deref().and_then(|text| text.trim().split_once(':')) else { return };
    let rate = |n: u64| json!({"major": major.parse::<i64>().unwrap(), "minor": minor.parse::<i64>().unwrap(), "rate": n});
    let bad = json!({"major": 4095, "minor": 4095, "rate": 1});
    let limit = || scratch.v1(Controller::Blkio, "blkio.throttle.read_bps_device");
    scratch.apply(json!({"blockIO": {"throttleReadBpsDevice": [rate(1 << 20), bad]}})).unwrap_err();
    assert!(limit().is_none_or(|text| text.is_empty()));
    scratch.apply(json!({"blockIO": {"throttleReadBpsDevice": [rate(1 << 20)]}})).unwrap();
    scratch.apply(json!({"blockIO": {"throttleReadBpsDevice": [rate(2 << 20), bad]}})).unwrap_err();
    assert!(limit().is_none_or(|text| text == format!("{major}:{minor} {}", 1 << 20)));
}

#[test]
fn privileged_devices_are_denied_unless_listed_and_a_bad_list_changes_nothing() {
    let scratch = Scratch::new("devices");
    let dev_null = json!({"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm"});
    scratch.apply(json!({"devices": [{"allow": false, "access": "rwm"}, dev_null]})).unwrap();
    if let Some(list) = scratch.v1(Controller::Devices, "devices.list") {
        assert_eq!(list, "c 1:3 rwm");
    }
    assert!(scratch.apply(json!({"devices": [{"allow": true, "type": "c", "access": "x"}]})).is_err());
    if let Some(list) = scratch.v1(Controller::Devices, "devices.list") {
        assert_eq!(list, "c 1:3 rwm");
    }
}

#[test]
fn privileged_unified_keys_are_names_of_controller_files() {
    let scratch = Scratch::new("unified");
    for (key, why) in [
        ("../cgroup.procs", "the name of a cgroup v2 file was expected"),
        ("a/memory.max", "the name of a cgroup v2 file was expected"),
        ("cgroup.procs", "only files of controllers may be set"),
        ("cgroup.subtree_control", "only files of controllers may be set"),
    ] {
        assert_eq!(
            scratch.apply(json!({"unified": {key: "1"}})).unwrap_err().to_string(),
            format!("linux.resources.unified {key:?} is not valid: {why}")
        );
    }
}

#[test]
fn privileged_a_member_is_seen_frozen_thawed_killed_and_its_cgroup_removed() {
    let scratch = Scratch::new("members");
    let mut child = sleeper();
    let pid = Pid::from_raw(child.id() as i32).unwrap();
    scratch.0.add_pid(pid).unwrap();
    assert_eq!(scratch.0.pids().unwrap(), [pid]);
    scratch.0.freeze(true).unwrap();
    assert!(scratch.0.is_frozen().unwrap());
    scratch.0.freeze(false).unwrap();
    assert!(!scratch.0.is_frozen().unwrap());
    let stats = scratch.0.stats().unwrap();
    assert_eq!(stats.pids.unwrap().current, 1);
    assert!(stats.memory.is_some() && stats.cpu.is_some());
    assert_eq!(scratch.0.oom_kills().unwrap(), 0);
    scratch.0.kill_all().unwrap();
    use std::os::unix::process::ExitStatusExt;
    assert_eq!(child.wait().unwrap().signal(), Some(9));
    assert_eq!(scratch.0.pids().unwrap(), []);
}

#[test]
fn privileged_killing_works_without_a_v2_hierarchy_too() {
    let mut hierarchy = Hierarchy::detect().unwrap();
    if hierarchy.mode() == Mode::V2 {
        return;
    }
    hierarchy.v2 = None;
    let path = CgroupPath::new(format!("/brig-test-{}-v1kill", std::process::id()).as_ref()).unwrap();
    let cgroup = Cgroup::create(&hierarchy, &path).unwrap();
    let mut child = sleeper();
    cgroup.add_pid(Pid::from_raw(child.id() as i32).unwrap()).unwrap();
    cgroup.freeze(true).unwrap();
    assert!(cgroup.is_frozen().unwrap());
    cgroup.kill_all().unwrap();
    child.wait().unwrap();
    cgroup.remove().unwrap();
    assert!(matches!(Cgroup::open(&hierarchy, &path), Err(CgroupError::Missing { .. })));
}

#[test]
fn privileged_an_oom_kill_is_counted() {
    let scratch = Scratch::new("oom");
    if scratch.0.memory_usage().unwrap().is_none() {
        return;
    }
    scratch.apply(json!({"memory": {"limit": 8 << 20, "swap": 8 << 20}})).unwrap();
    let counter = OomCounter::open(&scratch.0.hierarchy, scratch.0.path()).unwrap().unwrap();
    assert_eq!(counter.count().unwrap(), 0);
    // It waits for its standard input, so that it is inside before it grows.
    let mut child = Command::new("sh")
        .args(["-c", "read go; x=x; while :; do x=$x$x; done"])
        .stdin(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    scratch.0.add_pid(Pid::from_raw(child.id() as i32).unwrap()).unwrap();
    child.stdin.take().unwrap().write_all(b"go\n").unwrap();
    child.wait().unwrap();
    assert_eq!(counter.count().unwrap(), 1);
    assert_eq!(scratch.0.oom_kills().unwrap(), 1);
    assert_eq!(scratch.0.stats().unwrap().memory.unwrap().oom_kills, 1);
}
