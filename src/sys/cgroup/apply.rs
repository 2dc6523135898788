//! OCI `linux.resources` to cgroup files.
//!
//! First a pure plan: which file gets which text, on v1 or v2. Then its execution, which remembers what stood in each file
//! and puts it back, last first, when a later write fails. Values that hold each other in bounds (quota and period, memory
//! and swap) are written in the order that the kernel accepts: it is tried, and at most six orders exist.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxHugepageLimit, LinuxMemory, LinuxResources};

use super::{
    Cgroup, CgroupError, Controller, Mode, delegate, devices, is_bare, keyed, read_file, write_file,
};
use crate::sys::bpf;

/// Something asked for that this host cannot do, and that does not weaken a limit the caller relies on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Warning(pub(crate) String);

/// One file and its new content.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Write {
    path: PathBuf,
    value: String,
}

/// Writes that any order may suit.
type Group = Vec<Write>;

impl Cgroup {
    /// Sets what `resources` names and leaves the rest. All or nothing: on failure every file holds what it held before.
    ///
    /// # Errors
    ///
    /// The first write that fails, naming file and value, or the field whose controller this host lacks.
    pub(crate) fn apply(&self, resources: &LinuxResources) -> Result<Vec<Warning>, CgroupError> {
        let mut plan = Plan { cgroup: self, groups: Vec::new(), warnings: Vec::new() };
        plan.cpu(resources.cpu().as_ref())?;
        plan.memory(resources.memory().as_ref())?;
        plan.pids(resources)?;
        plan.hugepages(resources.hugepage_limits().as_deref().unwrap_or_default())?;
        plan.block_io(resources.block_io().as_ref())?;
        plan.network(resources)?;
        plan.rdma(resources)?;
        plan.unified(resources)?;
        let Plan { groups, warnings, .. } = plan;

        let mut undo = Vec::new();
        let written = groups.iter().try_for_each(|group| write_in_some_order(group, &mut undo));
        // Devices come last: on v2 attaching the filter is one step that either happens or does not.
        let written = written.and_then(|()| match resources.devices() {
            Some(rules) if !rules.is_empty() => self.apply_devices(&devices::Policy::read(rules)?),
            _ => Ok(()),
        });
        written.map_err(|err| roll_back(undo, err)).map(|()| warnings)
    }

    fn apply_devices(&self, policy: &devices::Policy) -> Result<(), CgroupError> {
        if let Some(dir) = self.v1_dir(Controller::Devices) {
            let old = read_file(&dir.join("devices.list"))?;
            let mut files = DeviceFiles::open(&dir)?;
            return policy
                .v1_writes()
                .into_iter()
                .try_for_each(|(allow, rule)| files.write(allow, &rule))
                .map_err(|err| {
                    let mut back = vec![(false, "a")];
                    back.extend(old.lines().map(|line| (true, line)));
                    match back.into_iter().try_for_each(|(allow, rule)| files.write(allow, rule)) {
                        Err(CgroupError::Write { path, value, source: undo }) => {
                            CgroupError::Undo { path, value, undo, source: Box::new(err) }
                        }
                        _ => err,
                    }
                });
        }
        if self.hierarchy.mode() != Mode::V2 {
            return Err(no_controller("linux.resources.devices", "", "devices"));
        }
        let path = self.path.under(self.hierarchy.v2.as_deref().unwrap_or(Path::new("/")));
        let failed = |source| CgroupError::DeviceFilter { path: path.clone(), source };
        let dir =
            self.v2_dir_fd().map_err(failed)?.ok_or_else(|| CgroupError::Missing { path: path.clone() })?;
        bpf::replace_device_filter(std::os::fd::AsFd::as_fd(&dir), &policy.program()).map_err(failed)
    }
}

/// `devices.allow` and `devices.deny`, opened once: a container has a dozen rules.
struct DeviceFiles {
    allow: (PathBuf, File),
    deny: (PathBuf, File),
}

impl DeviceFiles {
    fn open(dir: &Path) -> Result<Self, CgroupError> {
        let open = |name: &str| {
            let path = dir.join(name);
            match OpenOptions::new().write(true).open(&path) {
                Ok(file) => Ok((path, file)),
                Err(source) => Err(CgroupError::Write { path, value: String::new(), source }),
            }
        };
        Ok(Self { allow: open("devices.allow")?, deny: open("devices.deny")? })
    }

    fn write(&mut self, allow: bool, rule: &str) -> Result<(), CgroupError> {
        use std::io::Write;
        let (path, file) = if allow { &mut self.allow } else { &mut self.deny };
        match file.write_all(rule.as_bytes()) {
            Ok(()) => Ok(()),
            Err(source) => Err(CgroupError::Write { path: path.clone(), value: rule.to_owned(), source }),
        }
    }
}

fn no_controller(field: &'static str, value: impl ToString, controller: &'static str) -> CgroupError {
    CgroupError::NoController { field, value: value.to_string(), controller }
}

/// Writes a group; pushes what undoes it.
fn write_in_some_order(group: &Group, undo: &mut Vec<Write>) -> Result<(), CgroupError> {
    let mut first = None;
    for order in orders(group.len()) {
        let mut done = Vec::new();
        let result = order.iter().try_for_each(|&i| {
            let write = &group[i];
            let before = read_back(&write.path, &write.value);
            write_file(&write.path, &write.value)?;
            done.extend(before.map(|value| Write { path: write.path.clone(), value }));
            Ok(())
        });
        match result {
            Ok(()) => {
                undo.extend(done);
                return Ok(());
            }
            Err(err) if order.len() == 1 => return Err(err),
            Err(err) => {
                let err = roll_back(done, err);
                if matches!(err, CgroupError::Undo { .. }) {
                    return Err(err);
                }
                first.get_or_insert(err);
            }
        }
    }
    match first {
        Some(err) => Err(err),
        None => Ok(()),
    }
}

/// The permutations of up to three things, the given order first.
fn orders(len: usize) -> &'static [&'static [usize]] {
    match len {
        0 => &[],
        1 => &[&[0]],
        2 => &[&[0, 1], &[1, 0]],
        _ => &[&[0, 1, 2], &[1, 0, 2], &[2, 0, 1], &[2, 1, 0], &[0, 2, 1], &[1, 2, 0]],
    }
}

/// What to write to have a file as it is now; `None` when it cannot be read (`memory.reclaim`).
fn read_back(path: &Path, new: &str) -> Option<String> {
    let text = read_file(path).ok()?;
    let name = path.file_name()?.to_str()?;
    // One line for each device: only the one that is about to change matters, and it may not be there yet.
    if let Some((device, setting)) = new.split_once(' ').filter(|(device, _)| device.contains(':')) {
        let before =
            text.lines().find(|line| line.strip_prefix(device).is_some_and(|rest| rest.starts_with(' ')));
        return Some(match (before, name, setting.split_once('=')) {
            (Some(line), _, _) => line.to_owned(),
            (None, "io.max", Some((key, _))) => format!("{device} {key}=max"),
            (None, "io.weight" | "io.bfq.weight", _) => format!("{device} default"),
            (None, _, _) => format!("{device} 0"),
        });
    }
    // `memory.oom_control` reads as a table but takes one number.
    if name == "memory.oom_control" {
        return keyed(&text, "oom_kill_disable").map(|n| n.to_string());
    }
    let text = text.trim_end();
    // An empty cpuset is written as a newline; writing nothing at all does not reach the kernel.
    Some(if text.is_empty() { "\n".to_owned() } else { text.to_owned() })
}

fn roll_back(undo: Vec<Write>, cause: CgroupError) -> CgroupError {
    let mut failed = None;
    for write in undo.into_iter().rev() {
        if let Err(CgroupError::Write { path, value, source }) = write_file(&write.path, &write.value) {
            failed.get_or_insert((path, value, source));
        }
    }
    match failed {
        Some((path, value, undo)) => CgroupError::Undo { path, value, undo, source: Box::new(cause) },
        None => cause,
    }
}

struct Plan<'a> {
    cgroup: &'a Cgroup,
    groups: Vec<Group>,
    warnings: Vec<Warning>,
}

impl Plan<'_> {
    fn put(&mut self, path: PathBuf, value: impl ToString) {
        self.groups.push(vec![Write { path, value: value.to_string() }]);
    }

    fn warn(&mut self, text: String) {
        self.warnings.push(Warning(text));
    }

    /// The directory of a controller, on whichever version this host has it. `true` means v1.
    fn dir(
        &self,
        controller: Controller,
        name: &'static str,
        field: &'static str,
        value: impl ToString,
    ) -> Result<(PathBuf, bool), CgroupError> {
        if let Some(dir) = self.cgroup.v1_dir(controller) {
            return Ok((dir, true));
        }
        // A hierarchy that is joined only on demand.
        if let Some(root) = self.cgroup.hierarchy.v1_root(controller) {
            self.cgroup.create_in(root)?;
            let dir = self.cgroup.path.under(root);
            for pid in self.cgroup.pids()? {
                write_file(&dir.join("cgroup.procs"), &pid.as_raw_nonzero().to_string())?;
            }
            return Ok((dir, true));
        }
        match (self.cgroup.v2(), self.cgroup.hierarchy.v2.as_deref()) {
            (Some(dir), Some(root)) => {
                let has = |dir: &Path| {
                    read_file(&dir.join("cgroup.controllers"))
                        .is_ok_and(|have| have.split_whitespace().any(|one| one == name))
                };
                if !has(&dir) && has(root) {
                    // On a hybrid host nobody hands v2's few controllers down before they are needed.
                    let mut parent = root.to_owned();
                    for step in self.cgroup.path.as_path() {
                        delegate(&parent)?;
                        parent.push(step);
                    }
                }
                if has(&dir) { Ok((dir, false)) } else { Err(no_controller(field, value, name)) }
            }
            _ => Err(no_controller(field, value, name)),
        }
    }

    fn cpu(&mut self, cpu: Option<&LinuxCpu>) -> Result<(), CgroupError> {
        let Some(cpu) = cpu else { return Ok(()) };
        if let Some(idle) = cpu.idle() {
            let (dir, _) = self.dir(Controller::Cpu, "cpu", "linux.resources.cpu.idle", idle)?;
            self.put(dir.join("cpu.idle"), idle);
        }
        // An idle group has no weight; the kernel refuses one.
        if let Some(shares) = cpu.shares().filter(|shares| *shares != 0 && cpu.idle() != Some(1)) {
            let (dir, v1) = self.dir(Controller::Cpu, "cpu", "linux.resources.cpu.shares", shares)?;
            if v1 {
                self.put(dir.join("cpu.shares"), shares);
            } else {
                self.put(dir.join("cpu.weight"), weight_from_shares(shares));
            }
        }
        self.cpu_bandwidth(cpu)?;
        self.cpu_realtime(cpu)?;
        for (file, field, value) in [
            ("cpuset.cpus", "linux.resources.cpu.cpus", cpu.cpus()),
            ("cpuset.mems", "linux.resources.cpu.mems", cpu.mems()),
        ] {
            if let Some(value) = value.as_deref().filter(|value| !value.is_empty()) {
                if !value.bytes().all(|b| b.is_ascii_digit() || matches!(b, b',' | b'-')) {
                    let why = "a list such as 0-3,7 was expected";
                    return Err(CgroupError::Invalid { field, value: value.to_owned(), why });
                }
                let (dir, _) = self.dir(Controller::Cpuset, "cpuset", field, value)?;
                self.put(dir.join(file), value);
            }
        }
        Ok(())
    }

    fn cpu_bandwidth(&mut self, cpu: &LinuxCpu) -> Result<(), CgroupError> {
        let period = cpu.period().filter(|period| *period != 0);
        let quota = cpu.quota().filter(|quota| *quota != 0);
        let (field, value) = match (quota, period, cpu.burst()) {
            (Some(quota), _, _) => ("linux.resources.cpu.quota", quota.to_string()),
            (None, Some(period), _) => ("linux.resources.cpu.period", period.to_string()),
            (None, None, Some(burst)) => ("linux.resources.cpu.burst", burst.to_string()),
            (None, None, None) => return Ok(()),
        };
        let (dir, v1) = self.dir(Controller::Cpu, "cpu", field, value)?;
        let mut group = Vec::new();
        if v1 {
            let files = [
                ("cpu.cfs_period_us", period.map(|n| n.to_string())),
                ("cpu.cfs_quota_us", quota.map(|n| n.max(-1).to_string())),
                ("cpu.cfs_burst_us", cpu.burst().map(|n| n.to_string())),
            ];
            group.extend(
                files
                    .into_iter()
                    .filter_map(|(file, value)| Some(Write { path: dir.join(file), value: value? })),
            );
        } else {
            if quota.is_some() || period.is_some() {
                let now = read_file(&dir.join("cpu.max"))?;
                let (now_quota, now_period) = now.trim().split_once(' ').unwrap_or(("max", "100000"));
                let quota = match quota {
                    Some(quota) if quota < 0 => "max".to_owned(),
                    Some(quota) => quota.to_string(),
                    None => now_quota.to_owned(),
                };
                let period = period.map_or_else(|| now_period.to_owned(), |period| period.to_string());
                group.push(Write { path: dir.join("cpu.max"), value: format!("{quota} {period}") });
            }
            if let Some(burst) = cpu.burst() {
                group.push(Write { path: dir.join("cpu.max.burst"), value: burst.to_string() });
            }
        }
        self.groups.push(group);
        Ok(())
    }

    fn cpu_realtime(&mut self, cpu: &LinuxCpu) -> Result<(), CgroupError> {
        let period = cpu.realtime_period().filter(|period| *period != 0);
        let runtime = cpu.realtime_runtime().filter(|runtime| *runtime != 0);
        if period.is_none() && runtime.is_none() {
            return Ok(());
        }
        let field = "linux.resources.cpu.realtimeRuntime";
        let value = runtime.unwrap_or_default();
        let Some(dir) = self.cgroup.v1_dir(Controller::Cpu) else {
            return Err(no_controller(field, value, "realtime cpu (v1)"));
        };
        let files = [
            ("cpu.rt_period_us", period.map(|n| n.to_string())),
            ("cpu.rt_runtime_us", runtime.map(|n| n.to_string())),
        ];
        self.groups.push(
            files
                .into_iter()
                .filter_map(|(file, value)| Some(Write { path: dir.join(file), value: value? }))
                .collect(),
        );
        Ok(())
    }

    fn memory(&mut self, memory: Option<&LinuxMemory>) -> Result<(), CgroupError> {
        let Some(memory) = memory else { return Ok(()) };
        let limit = memory.limit().filter(|limit| *limit != 0);
        let swap = match (limit, memory.swap().filter(|swap| *swap != 0)) {
            // No limit on memory with a limit on the sum of memory and swap contradicts itself.
            (Some(limit), None) if limit < 0 => Some(-1),
            (_, swap) => swap,
        };
        let reservation = memory.reservation().filter(|reservation| *reservation != 0);
        let any = limit.or(swap).or(reservation);
        if let Some(any) = any {
            let (dir, v1) = self.dir(Controller::Memory, "memory", "linux.resources.memory", any)?;
            if let (Some(limit), Some(true)) = (limit, memory.check_before_update()) {
                let usage = self.cgroup.memory_usage()?.unwrap_or(0);
                if limit > 0 && usage > limit.unsigned_abs() {
                    return Err(CgroupError::Invalid {
                        field: "linux.resources.memory.limit",
                        value: limit.to_string(),
                        why: "the container already uses more, and checkBeforeUpdate is set",
                    });
                }
            }
            if v1 {
                self.memory_v1(&dir, limit, swap)?;
            } else {
                self.memory_v2(&dir, limit, swap)?;
            }
            if let Some(reservation) = reservation {
                let (file, value) = match (v1, reservation) {
                    (true, n) => ("memory.soft_limit_in_bytes", n.max(-1).to_string()),
                    (false, n) if n < 0 => ("memory.low", "max".to_owned()),
                    (false, n) => ("memory.low", n.to_string()),
                };
                self.put(dir.join(file), value);
            }
        }
        if let Some(kernel) = memory.kernel().filter(|kernel| *kernel != 0) {
            // Linux 5.16 took the limit away; runc has ignored it since 1.0-rc94.
            self.warn(format!(
                "linux.resources.memory.kernel {kernel} is ignored: the kernel no longer has it"
            ));
        }
        let v1 = self.cgroup.v1_dir(Controller::Memory);
        if let Some(tcp) = memory.kernel_tcp().filter(|tcp| *tcp != 0) {
            match &v1 {
                Some(dir) => self.put(dir.join("memory.kmem.tcp.limit_in_bytes"), tcp.max(-1)),
                None => self.warn(format!(
                    "linux.resources.memory.kernelTCP {tcp} is ignored: cgroup v2 has no such limit"
                )),
            }
        }
        if let Some(swappiness) = memory.swappiness() {
            let field = "linux.resources.memory.swappiness";
            if swappiness > 200 {
                let why = "0 to 200 was expected";
                return Err(CgroupError::Invalid { field, value: swappiness.to_string(), why });
            }
            match &v1 {
                Some(dir) => self.put(dir.join("memory.swappiness"), swappiness),
                None => self.warn(format!("{field} {swappiness} is ignored: cgroup v2 has no such setting")),
            }
        }
        if let Some(disable) = memory.disable_oom_killer() {
            match &v1 {
                Some(dir) => self.put(dir.join("memory.oom_control"), u8::from(disable)),
                None if disable => self.warn(
                    "linux.resources.memory.disableOOMKiller is ignored: cgroup v2 has no such setting"
                        .to_owned(),
                ),
                None => {}
            }
        }
        Ok(())
    }

    fn memory_v1(&mut self, dir: &Path, limit: Option<i64>, swap: Option<i64>) -> Result<(), CgroupError> {
        let memory =
            limit.map(|n| Write { path: dir.join("memory.limit_in_bytes"), value: n.max(-1).to_string() });
        let total = dir.join("memory.memsw.limit_in_bytes");
        let swap = match swap {
            Some(_) if !total.exists() => {
                // Booted with swapaccount=0. The memory limit itself stands.
                if swap != Some(-1) {
                    self.warn(
                        "linux.resources.memory.swap is ignored: this kernel does not account swap"
                            .to_owned(),
                    );
                }
                None
            }
            swap => swap,
        };
        let sum = swap.map(|n| Write { path: total.clone(), value: n.max(-1).to_string() });
        // The sum may never be below the memory limit. The right order first, since a refused limit costs the kernel a round
        // of reclaim.
        let raising = match swap {
            Some(swap) if swap < 0 => true,
            Some(swap) => {
                read_file(&total)?.trim().parse::<u64>().map_or(true, |now| swap.unsigned_abs() > now)
            }
            None => false,
        };
        let group = if raising { [sum, memory] } else { [memory, sum] };
        self.groups.push(group.into_iter().flatten().collect());
        Ok(())
    }

    /// On v2 swap is limited by itself; OCI's `swap` is the sum.
    fn memory_v2(&mut self, dir: &Path, limit: Option<i64>, swap: Option<i64>) -> Result<(), CgroupError> {
        let field = "linux.resources.memory.swap";
        let invalid = |value: i64, why| CgroupError::Invalid { field, value: value.to_string(), why };
        let only_swap = match (limit, swap) {
            (_, None) => None,
            (_, Some(swap)) if swap < 0 => Some("max".to_owned()),
            (None, Some(swap)) => {
                return Err(invalid(swap, "it is the sum of memory and swap, so it needs a memory limit"));
            }
            (Some(limit), Some(swap)) if limit < 0 => {
                return Err(invalid(swap, "it limits the sum of memory and swap, but memory has no limit"));
            }
            (Some(limit), Some(swap)) if swap < limit => {
                return Err(invalid(
                    swap,
                    "it is the sum of memory and swap, but lies below the memory limit",
                ));
            }
            (Some(limit), Some(swap)) => Some((swap - limit).to_string()),
        };
        if let Some(limit) = limit {
            self.put(dir.join("memory.max"), if limit < 0 { "max".to_owned() } else { limit.to_string() });
        }
        if let Some(value) = only_swap {
            let file = dir.join("memory.swap.max");
            if file.exists() {
                self.put(file, value);
            } else if value != "0" && value != "max" {
                self.warn(format!("{field} is ignored: this kernel does not account swap"));
            }
        }
        Ok(())
    }

    fn pids(&mut self, resources: &LinuxResources) -> Result<(), CgroupError> {
        let Some(limit) = resources.pids().as_ref().map(oci_spec::runtime::LinuxPids::limit) else {
            return Ok(());
        };
        if limit == 0 {
            return Ok(());
        }
        let (dir, _) = self.dir(Controller::Pids, "pids", "linux.resources.pids.limit", limit)?;
        self.put(dir.join("pids.max"), if limit < 0 { "max".to_owned() } else { limit.to_string() });
        Ok(())
    }

    fn hugepages(&mut self, limits: &[LinuxHugepageLimit]) -> Result<(), CgroupError> {
        let field = "linux.resources.hugepageLimits";
        for one in limits {
            let (size, limit) = (one.page_size(), one.limit());
            let digits = size.trim_end_matches(|c: char| c.is_ascii_uppercase());
            if digits.is_empty()
                || !digits.bytes().all(|b| b.is_ascii_digit())
                || !["KB", "MB", "GB"].contains(&&size[digits.len()..])
            {
                let why = "a page size such as 2MB was expected";
                return Err(CgroupError::Invalid { field, value: size.clone(), why });
            }
            let (dir, v1) = match self.dir(Controller::Hugetlb, "hugetlb", field, limit) {
                Ok(found) => found,
                // The kubelet sends 0 for every size; a host without the controller keeps that promise anyway, since
                // without hugetlbfs mounts there is nothing to use.
                Err(CgroupError::NoController { .. }) if limit == 0 => continue,
                Err(err) => return Err(err),
            };
            let (plain, reserved) = if v1 {
                (format!("hugetlb.{size}.limit_in_bytes"), format!("hugetlb.{size}.rsvd.limit_in_bytes"))
            } else {
                (format!("hugetlb.{size}.max"), format!("hugetlb.{size}.rsvd.max"))
            };
            if limit == 0 && !dir.join(&plain).exists() {
                continue;
            }
            self.put(dir.join(plain), limit);
            // Reservations are counted since Linux 5.7; without their limit a mapping is promised and dies of SIGBUS.
            if dir.join(&reserved).exists() {
                self.put(dir.join(reserved), limit);
            }
        }
        Ok(())
    }

    fn block_io(&mut self, io: Option<&LinuxBlockIo>) -> Result<(), CgroupError> {
        let Some(io) = io else { return Ok(()) };
        let weights = io.weight_device().as_deref().unwrap_or_default();
        if io.weight().is_some_and(|weight| weight != 0) || io.leaf_weight().is_some() || !weights.is_empty()
        {
            let weight = io.weight().unwrap_or(0);
            let (dir, v1) = self.dir(Controller::Blkio, "io", "linux.resources.blockIO.weight", weight)?;
            let first = |files: [&str; 2]| {
                files.into_iter().map(|file| dir.join(file)).find(|path| path.exists()).ok_or_else(|| {
                    no_controller("linux.resources.blockIO.weight", weight, "proportional io (bfq or iocost)")
                })
            };
            if weight != 0 {
                let path = first(if v1 {
                    ["blkio.weight", "blkio.bfq.weight"]
                } else {
                    ["io.bfq.weight", "io.weight"]
                })?;
                let native = path.ends_with("io.weight").then(|| io_weight(weight));
                self.put(path, native.unwrap_or(u64::from(weight)));
            }
            if let Some(leaf) = io.leaf_weight().filter(|_| v1 && dir.join("blkio.leaf_weight").exists()) {
                self.put(dir.join("blkio.leaf_weight"), leaf);
            }
            for one in weights {
                let Some(weight) = one.weight() else { continue };
                let path = first(if v1 {
                    ["blkio.weight_device", "blkio.bfq.weight_device"]
                } else {
                    ["io.bfq.weight", "io.weight"]
                })?;
                let value = if path.ends_with("io.weight") { io_weight(weight) } else { u64::from(weight) };
                self.put(path, format!("{}:{} {value}", one.major(), one.minor()));
            }
        }
        for (list, v1_file, v2_key) in [
            (io.throttle_read_bps_device(), "blkio.throttle.read_bps_device", "rbps"),
            (io.throttle_write_bps_device(), "blkio.throttle.write_bps_device", "wbps"),
            (io.throttle_read_iops_device(), "blkio.throttle.read_iops_device", "riops"),
            (io.throttle_write_iops_device(), "blkio.throttle.write_iops_device", "wiops"),
        ] {
            for one in list.iter().flatten() {
                let device = format!("{}:{}", one.major(), one.minor());
                let (dir, v1) = self.dir(Controller::Blkio, "io", "linux.resources.blockIO", &device)?;
                match (v1, one.rate()) {
                    (true, rate) => self.put(dir.join(v1_file), format!("{device} {rate}")),
                    (false, 0) => self.put(dir.join("io.max"), format!("{device} {v2_key}=max")),
                    (false, rate) => self.put(dir.join("io.max"), format!("{device} {v2_key}={rate}")),
                }
            }
        }
        Ok(())
    }

    fn network(&mut self, resources: &LinuxResources) -> Result<(), CgroupError> {
        let Some(network) = resources.network() else { return Ok(()) };
        if self.cgroup.hierarchy.mode() == Mode::V2 {
            if network.class_id().is_some() || network.priorities().is_some() {
                // v2 has neither; classification is done with BPF or nftables' "socket cgroupv2" there.
                self.warn("linux.resources.network is ignored: cgroup v2 has no such controller".to_owned());
            }
            return Ok(());
        }
        if let Some(class) = network.class_id() {
            let (dir, _) =
                self.dir(Controller::NetCls, "net_cls", "linux.resources.network.classID", class)?;
            self.put(dir.join("net_cls.classid"), class);
        }
        for one in network.priorities().iter().flatten() {
            let field = "linux.resources.network.priorities";
            if one.name().split_whitespace().count() != 1 {
                let why = "the name of one interface was expected";
                return Err(CgroupError::Invalid { field, value: one.name().clone(), why });
            }
            let (dir, _) = self.dir(Controller::NetPrio, "net_prio", field, one.name())?;
            self.put(dir.join("net_prio.ifpriomap"), format!("{} {}", one.name(), one.priority()));
        }
        Ok(())
    }

    fn rdma(&mut self, resources: &LinuxResources) -> Result<(), CgroupError> {
        for (device, limits) in resources.rdma().iter().flatten() {
            let field = "linux.resources.rdma";
            if device.split_whitespace().count() != 1 {
                let why = "the name of one device was expected";
                return Err(CgroupError::Invalid { field, value: device.clone(), why });
            }
            let (dir, _) = self.dir(Controller::Rdma, "rdma", field, device)?;
            let number = |n: Option<u32>| n.map_or_else(|| "max".to_owned(), |n| n.to_string());
            self.put(
                dir.join("rdma.max"),
                format!(
                    "{device} hca_handle={} hca_object={}",
                    number(limits.hca_handles()),
                    number(limits.hca_objects())
                ),
            );
        }
        Ok(())
    }

    fn unified(&mut self, resources: &LinuxResources) -> Result<(), CgroupError> {
        let Some(unified) = resources.unified().as_ref().filter(|unified| !unified.is_empty()) else {
            return Ok(());
        };
        let field = "linux.resources.unified";
        let mut keys: Vec<_> = unified.iter().collect();
        keys.sort();
        for (key, value) in keys {
            let invalid = |why| CgroupError::Invalid { field, value: key.clone(), why };
            if !is_bare(key) || !key.contains('.') {
                return Err(invalid("the name of a cgroup v2 file was expected"));
            }
            // The core files move, kill and hand over processes; what limits is a controller's.
            if key.starts_with("cgroup.") && key != "cgroup.max.depth" && key != "cgroup.max.descendants" {
                return Err(invalid("only files of controllers may be set"));
            }
            let Some(dir) = self.cgroup.v2().filter(|_| self.cgroup.hierarchy.mode() == Mode::V2) else {
                return Err(no_controller(field, key, "v2"));
            };
            let path = dir.join(key);
            if !path.exists() {
                return Err(invalid("this host's cgroup v2 has no such file"));
            }
            self.put(path, value);
        }
        Ok(())
    }
}

/// `cpu.shares` (2 to 262144) as `cpu.weight` (1 to 10000), so that 1024 is 100 and small requests keep their granularity.
///
/// The quadratic formula that runc 1.3.2 and crun 1.24 agreed on; the older linear one gave a whole CPU the weight 39.
pub(crate) fn weight_from_shares(shares: u64) -> u64 {
    match shares {
        0..=2 => 1,
        262_144.. => 10_000,
        _ => {
            let log = (shares as f64).log2();
            let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
            // 1024 must not become 101 for an error in the last bit.
            (10f64.powf(exponent) - 1e-9).ceil() as u64
        }
    }
}

/// `blkio.weight` (10 to 1000) as `io.weight` (1 to 10000).
fn io_weight(weight: u16) -> u64 {
    1 + u64::from(weight.clamp(10, 1000) - 10) * 9999 / 990
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_become_weights_that_keep_the_ends_and_the_default() {
        for (shares, weight) in [(2, 1), (3, 2), (1024, 100), (262_144, 10_000), (u64::MAX, 10_000)] {
            assert_eq!(weight_from_shares(shares), weight, "{shares}");
        }
        assert_eq!((io_weight(10), io_weight(1000), io_weight(500)), (1, 10_000, 4950));
    }
}
