//! What confines a container: namespaces, cgroup, resources, devices, seccomp, masked paths.

use std::collections::HashMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{
    Linux, LinuxBuilder, LinuxCpuBuilder, LinuxHugepageLimitBuilder, LinuxMemoryBuilder, LinuxNamespace,
    LinuxNamespaceBuilder, LinuxNamespaceType, LinuxPidsBuilder, LinuxResources, LinuxResourcesBuilder,
    LinuxSeccomp,
};

use super::devices::Devices;
use super::lsm::SelinuxLabels;
use super::process::CapabilitySets;
use super::seccomp_file;
use super::{BundleError, BundleInput};
use crate::container::seccomp_default;
use crate::container::spec::{NamespaceMode, Resources, Security, SecurityProfile};

/// What a container must not read: the host's hardware, keys and timings.
pub(crate) const MASKED: [&str; 13] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
    "/sys/fs/selinux",
];

/// What it may read but not write.
pub(crate) const READONLY: [&str; 5] =
    ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

pub(super) fn linux(
    input: &BundleInput<'_>,
    capabilities: &CapabilitySets,
    devices: Devices,
    labels: Option<&SelinuxLabels>,
    rootfs_propagation: Option<&'static str>,
    warnings: &mut Vec<String>,
) -> Result<Linux, BundleError> {
    let security = &input.spec.security;
    // No sysctls: the monitor set them when it made the namespaces, and runc, which the monitor calls from within them,
    // takes them for the host's and refuses.
    let mut resources = resources(&input.spec.resources)?;
    resources.set_devices(Some(devices.rules));
    if resources.hugepage_limits().is_some() && !input.host.huge_pages {
        // The kubelet limits every size to nothing for every container, so this is no error.
        if input.spec.resources.hugepage_limits.iter().any(|limit| limit.limit_bytes != 0) {
            warnings.push("huge pages are not limited: this host has no hugetlb controller".to_owned());
        }
        resources.set_hugepage_limits(None);
    }
    if let Some(limit) = input.pod.confines.pids_limit.or(input.host.pids_limit) {
        resources.set_pids(Some(LinuxPidsBuilder::default().limit(limit).build()?));
    }
    let mut builder = LinuxBuilder::default()
        .namespaces(namespaces(input)?)
        .resources(resources)
        .cgroups_path(cgroups_path(input.pod.cgroup_parent, input.id.as_str())?)
        .devices(devices.nodes)
        .masked_paths(paths(input, &security.masked_paths, &MASKED))
        .readonly_paths(paths(input, &security.readonly_paths, &READONLY));
    if let Some(propagation) = rootfs_propagation {
        builder = builder.rootfs_propagation(propagation);
    }
    if let Some(labels) = labels {
        builder = builder.mount_label(&labels.mount);
    }
    if let Some(profile) = seccomp(security, input, capabilities)? {
        builder = builder.seccomp(profile);
    }
    Ok(builder.build()?)
}

fn namespaces(input: &BundleInput<'_>) -> Result<Vec<LinuxNamespace>, BundleError> {
    let pod = input.pod;
    let mut all = Vec::new();
    let mut put = |kind: LinuxNamespaceType, path: Option<&PathBuf>| -> Result<(), BundleError> {
        let builder = LinuxNamespaceBuilder::default().typ(kind);
        all.push(match path {
            Some(path) => builder.path(path).build()?,
            None => builder.build()?,
        });
        Ok(())
    };
    // A user namespace owns the others, so it is entered first.
    if let Some(path) = &pod.user_ns {
        put(LinuxNamespaceType::User, Some(path))?;
    }
    put(LinuxNamespaceType::Mount, None)?;
    for (kind, name, mode, path) in [
        (LinuxNamespaceType::Network, "network", &pod.namespaces.network, &pod.network_ns),
        (LinuxNamespaceType::Ipc, "ipc", &pod.namespaces.ipc, &pod.ipc_ns),
    ] {
        match (mode, path) {
            (NamespaceMode::Node, _) => {}
            (_, Some(path)) => put(kind, Some(path))?,
            (mode, None) => {
                return Err(BundleError::Namespace { namespace: name, mode: format!("{mode:?}") });
            }
        }
    }
    // The hostname goes with the network: a pod in the host's network has the host's name.
    if let Some(path) = &pod.uts_ns {
        put(LinuxNamespaceType::Uts, Some(path))?;
    }
    match (&input.spec.security.namespaces.pid, &pod.pid_ns) {
        (NamespaceMode::Node, _) => {}
        (NamespaceMode::Container, _) => put(LinuxNamespaceType::Pid, None)?,
        (NamespaceMode::Pod | NamespaceMode::Target(_), Some(path)) => {
            put(LinuxNamespaceType::Pid, Some(path))?
        }
        (mode, None) => {
            return Err(BundleError::Namespace { namespace: "pid", mode: format!("{mode:?}") });
        }
    }
    // A privileged container is there to see the host's cgroups.
    if !input.spec.security.privileged {
        put(LinuxNamespaceType::Cgroup, None)?;
    }
    Ok(all)
}

/// OCI's `cgroupsPath` for a container below the pod's parent: `/parent/<id>`, or `slice:brig:<id>` for a systemd slice.
///
/// # Errors
///
/// [`BundleError::CgroupParent`] for a parent with `..`, control characters or a path to a slice instead of its name.
pub(crate) fn cgroups_path(parent: &str, id: &str) -> Result<PathBuf, BundleError> {
    let bad = |why| BundleError::CgroupParent { parent: parent.to_owned(), why };
    if parent.contains("..") {
        return Err(bad("it contains \"..\""));
    }
    if parent.chars().any(char::is_control) || parent.contains(':') {
        return Err(bad("it contains a colon or a control character"));
    }
    if parent.is_empty() {
        return Ok(Path::new("/brig").join(id));
    }
    if parent.ends_with(".slice") {
        let name = parent.trim_start_matches('/');
        // The kubelet may send the whole path of nested slices; the last names them all.
        let slice = name.rsplit('/').next().unwrap_or(name);
        return Ok(PathBuf::from(format!("{slice}:brig:{id}")));
    }
    if !parent.starts_with('/') {
        return Err(bad("it is neither an absolute path nor a systemd slice"));
    }
    Ok(Path::new(parent).join(id))
}

/// CRI's resources as OCI's; what is unset stays unset. Also for `UpdateContainerResources`.
///
/// # Errors
///
/// [`BundleError::Resource`] naming the field.
pub(crate) fn resources(resources: &Resources) -> Result<LinuxResources, BundleError> {
    let invalid = |field, value: String, why| BundleError::Resource { field, value, why };
    let mut builder = LinuxResourcesBuilder::default();
    let r = resources;
    let mut cpu = LinuxCpuBuilder::default();
    let mut has_cpu = false;
    // 0 is proto's "not said".
    if let Some(shares) = r.cpu_shares.filter(|n| *n != 0) {
        (cpu, has_cpu) = (cpu.shares(shares), true);
    }
    if let Some(quota) = r.cpu_quota_us.filter(|n| *n != 0) {
        (cpu, has_cpu) = (cpu.quota(quota), true);
    }
    if let Some(period) = r.cpu_period_us.filter(|n| *n != 0) {
        (cpu, has_cpu) = (cpu.period(period), true);
    }
    for (field, text) in [("cpuset_cpus", &r.cpuset_cpus), ("cpuset_mems", &r.cpuset_mems)] {
        if !text.bytes().all(|b| b.is_ascii_digit() || matches!(b, b',' | b'-')) {
            return Err(invalid(field, text.clone(), "a list such as 0-3,7 was expected"));
        }
    }
    if !r.cpuset_cpus.is_empty() {
        (cpu, has_cpu) = (cpu.cpus(r.cpuset_cpus.clone()), true);
    }
    if !r.cpuset_mems.is_empty() {
        (cpu, has_cpu) = (cpu.mems(r.cpuset_mems.clone()), true);
    }
    if has_cpu {
        builder = builder.cpu(cpu.build()?);
    }
    let limit = r.memory_limit_bytes.filter(|n| *n != 0);
    let swap = r.memory_swap_limit_bytes.filter(|n| *n != 0);
    if let (Some(limit), Some(swap)) = (limit, swap)
        && swap > 0
        && (limit < 0 || swap < limit)
    {
        let why = "memory and swap together cannot be less than memory";
        return Err(invalid("memory_swap_limit_in_bytes", swap.to_string(), why));
    }
    if limit.is_some() || swap.is_some() {
        let mut memory = LinuxMemoryBuilder::default();
        if let Some(limit) = limit {
            memory = memory.limit(limit);
        }
        if let Some(swap) = swap {
            memory = memory.swap(swap);
        }
        builder = builder.memory(memory.build()?);
    }
    if !r.hugepage_limits.is_empty() {
        let limits = r
            .hugepage_limits
            .iter()
            .map(|one| {
                let bad =
                    |why| invalid("hugepage_limits", format!("{}={}", one.page_size, one.limit_bytes), why);
                let unit = ["KB", "MB", "GB"].into_iter().find_map(|unit| one.page_size.strip_suffix(unit));
                if !unit
                    .is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()))
                {
                    return Err(bad("a page size such as 2MB was expected"));
                }
                let limit = i64::try_from(one.limit_bytes).map_err(|_| bad("the limit is above 2^63-1"))?;
                Ok(LinuxHugepageLimitBuilder::default()
                    .page_size(one.page_size.clone())
                    .limit(limit)
                    .build()?)
            })
            .collect::<Result<Vec<_>, BundleError>>()?;
        builder = builder.hugepage_limits(limits);
    }
    for key in r.unified.keys() {
        if key.is_empty() || key.contains('/') || key.contains("..") || !key.contains('.') {
            return Err(invalid("unified", key.clone(), "the name of a cgroup v2 file was expected"));
        }
    }
    if !r.unified.is_empty() {
        builder = builder.unified(r.unified.clone().into_iter().collect::<HashMap<_, _>>());
    }
    let mut built = builder.build()?;
    // The builder starts from "deny every device", which an update must not repeat.
    built.set_devices(None);
    Ok(built)
}

/// An empty list from the kubelet means either "nothing said" or an unmasked `/proc`, which Kubernetes allows only in a
/// user namespace; so it means that only there. A given list is completed by ours, which may be newer.
fn paths(input: &BundleInput<'_>, asked: &[PathBuf], ours: &[&str]) -> Vec<String> {
    if input.spec.security.privileged || (asked.is_empty() && input.pod.user_ns.is_some()) {
        return Vec::new();
    }
    let mut all: Vec<String> = asked.iter().map(|path| path.to_string_lossy().into_owned()).collect();
    all.extend(ours.iter().map(|path| (*path).to_owned()));
    all.sort();
    all.dedup();
    all
}

/// A profile of 1 MiB would be some 10,000 rules; the kernel takes 4096 instructions.
const SECCOMP_BYTES_MAX: u64 = 1 << 20;

fn seccomp(
    security: &Security,
    input: &BundleInput<'_>,
    capabilities: &CapabilitySets,
) -> Result<Option<LinuxSeccomp>, BundleError> {
    let (host, confines) = (input.host, input.pod.confines);
    if security.privileged {
        return Ok(None);
    }
    let path = match (&security.seccomp, confines.seccomp_profile) {
        (SecurityProfile::Unconfined, _) if confines.allow_unconfined => return Ok(None),
        (SecurityProfile::Unconfined | SecurityProfile::RuntimeDefault, None) => {
            return Ok(Some(seccomp_default::profile(&capabilities.effective)));
        }
        (SecurityProfile::Unconfined | SecurityProfile::RuntimeDefault, Some(path)) => path.to_owned(),
        (SecurityProfile::Localhost(name), _) => {
            let name = name.strip_prefix("localhost/").unwrap_or(name);
            // CVE-2023-2431: an empty name must never end up unconfined.
            if name.is_empty() {
                return Err(BundleError::SeccompEmpty(host.seccomp_root.clone()));
            }
            if Path::new(name).components().any(|part| part == std::path::Component::ParentDir) {
                return Err(BundleError::SeccompPath(name.to_owned()));
            }
            host.seccomp_root.join(name)
        }
    };
    let failed = |source| BundleError::SeccompRead { path: path.clone(), source };
    let mut text = Vec::new();
    let file = crate::sys::fd::open_regular(&path).map_err(failed)?;
    file.take(SECCOMP_BYTES_MAX + 1).read_to_end(&mut text).map_err(failed)?;
    if text.len() as u64 > SECCOMP_BYTES_MAX {
        return Err(BundleError::SeccompTooLarge { path, max: SECCOMP_BYTES_MAX });
    }
    seccomp_file::parse(&text, &capabilities.effective)
        .map(Some)
        .map_err(|source| BundleError::SeccompParse { path, source })
}
