//! The policy of hardened handlers: what a pod that nobody vouches for may ask for, and what it gets.
//!
//! Two halves, both pure. [`check_pod`] and [`check_container`] refuse a request that would undo the confinement, by
//! field and reason, before anything is made. [`confine`] takes the OCI spec that any handler would get and tightens it.
//! What it does is in the spec, for anyone to read; only Landlock has no word there and goes by an annotation
//! ([`LANDLOCK`]), as does the profile below one of the node's own ([`SECCOMP_FLOOR`]).
//!
//! | of the kernel | a hardened container has |
//! | --- | --- |
//! | ids | 65536 of its pod's own, mapped by the pod's user namespace; files of image and volumes by idmapped mounts |
//! | system calls | an allow-list for the native architecture (`seccomp.rs`), whatever the pod asks for |
//! | files | no ioctl on devices but terminals, no device nodes (nodev), no setuid, nothing outside its root, not even by a leaked descriptor |
//! | capabilities | eight, which count in its user namespace only, and no way to gain one (no_new_privs) |
//! | /proc | its own processes, and what programs size themselves by ([`ProcView`]) |
//! | /sys | its cgroup and the list of processors |
//! | the rest | six devices, no core dumps, 1024 processes, IPC and keyring of its own |
//!
//! # What does not work
//!
//! setuid programs (sudo, ping with file capabilities), debuggers and strace, FUSE and any mount, nested containers,
//! programs for another architecture, io_uring and splice (libraries fall back), users and groups above 65535, and volumes on
//! file systems without idmapped mounts (NFS). An exec session is in a Landlock domain beside that of the container's own processes: it may signal them
//! but not read their environment or memory.

mod seccomp;

use std::collections::HashSet;
use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::{
    Capability, LinuxPidsBuilder, Mount as OciMount, MountBuilder, PosixRlimitBuilder, PosixRlimitType, Spec,
};

use super::handler::{Hardened, ProcView};
use super::spec::{
    Capabilities, ContainerSpec, IdMapping, MountSource, NamespaceMode, Propagation, RunAsUser, Security,
    SecurityProfile, UserNamespace,
};

pub(crate) use seccomp::profile;

/// Annotation of the OCI config: brig-sandbox puts the process into a Landlock domain (`sandbox/landlock.rs`).
pub(crate) const LANDLOCK: &str = "brig.sandbox/landlock";
/// Annotation of the OCI config: a seccomp profile that brig-sandbox loads below `linux.seccomp`, as OCI has it in JSON.
pub(crate) const SECCOMP_FLOOR: &str = "brig.sandbox/seccomp-floor";

/// Ids of one pod. All that programs and images use fit in, and it is what the kubelet gives (user namespaces, KEP-127).
pub(crate) const IDS_PER_POD: u32 = 65_536;

/// Processes of a container where nobody set a limit. A web server has a few hundred; a fork bomb wants all.
const PIDS_LIMIT: i64 = 1024;

/// What a container gets that asks for nothing, less what only serves to hand capabilities on (CAP_SETPCAP).
const CAPABILITIES: [Capability; 8] = [
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::NetBindService,
    Capability::Setgid,
    Capability::Setuid,
];

/// What it may ask for in addition: nothing that opens a part of the kernel.
const ADDABLE: [&str; 2] = ["CAP_SETPCAP", "CAP_AUDIT_WRITE"];

/// What glibc and the runtimes of several languages ask for how many threads to start.
const SYS_FILES: [&str; 2] = ["/sys/devices/system/cpu/online", "/sys/devices/system/cpu/possible"];

/// What programs size themselves by, and what is the pod's own: Java finds its limits by /proc/cgroups, Node.js its processors
/// by /proc/stat and /proc/cpuinfo, and /proc/sys (read-only) has what the pod itself may have set.
const COMMON_IN_PROC: [&str; 10] = [
    "cgroups",
    "cpuinfo",
    "filesystems",
    "loadavg",
    "meminfo",
    "stat",
    "sys",
    "sysvipc",
    "uptime",
    "version",
];

/// A request that a hardened handler does not take.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} {value:?} is refused by a hardened handler: {reason}")]
pub(crate) struct Forbidden {
    pub(crate) field: String,
    pub(crate) value: String,
    pub(crate) reason: &'static str,
}

fn forbidden<T>(
    field: impl Into<String>,
    value: impl ToString,
    reason: &'static str,
) -> Result<T, Forbidden> {
    Err(Forbidden { field: field.into(), value: value.to_string(), reason })
}

/// The ids of a pod whose range begins at `first`.
pub(crate) fn ids(first: u32) -> UserNamespace {
    let all = vec![IdMapping { host: first, container: 0, length: IDS_PER_POD }];
    UserNamespace { uids: all.clone(), gids: all }
}

/// Errors if a pod asks for what its handler forbids.
pub(crate) fn check_pod(security: &Security) -> Result<(), Forbidden> {
    check_common("linux.security_context", security)
}

/// Errors if a container asks for what its handler forbids. `pod_uid` is CRI's `metadata.uid` of its pod.
///
/// A mount's path is checked as it is written here, and once more in [`confine`] as it was resolved.
pub(crate) fn check_container(spec: &ContainerSpec, own: &Hardened, pod_uid: &str) -> Result<(), Forbidden> {
    let security = &spec.security;
    check_common("linux.security_context", security)?;
    let Capabilities { add, add_ambient, .. } = &security.capabilities;
    for (field, names) in [("add_capabilities", add), ("add_ambient_capabilities", add_ambient)] {
        for name in names {
            let known = CAPABILITIES.iter().any(|one| *name == format!("CAP_{one}"));
            if !known && !ADDABLE.contains(&name.as_str()) {
                let field = format!("linux.security_context.capabilities.{field}");
                return forbidden(field, name, "it opens parts of the kernel that the handler keeps shut");
            }
        }
    }
    if let Some(device) = spec.devices.first() {
        let path = device.host_path.display();
        return forbidden("devices[0].host_path", path, "devices of the host are not for its pods");
    }
    if let Some(name) = spec.cdi_devices.first() {
        return forbidden("CDI_devices[0].name", name, "devices of the host are not for its pods");
    }
    for (i, mount) in spec.mounts.iter().enumerate() {
        if mount.propagation == Propagation::Bidirectional {
            let field = format!("mounts[{i}].propagation");
            return forbidden(field, "PROPAGATION_BIDIRECTIONAL", "a mount made inside would reach the host");
        }
        if let MountSource::Host(path) = &mount.source
            && !allowed(path, own, pod_uid)
        {
            return forbidden(format!("mounts[{i}].host_path"), path.display(), OUTSIDE);
        }
    }
    Ok(())
}

const OUTSIDE: &str = "it is in none of the handler's host_paths";

fn check_common(at: &str, security: &Security) -> Result<(), Forbidden> {
    if security.privileged {
        let reason = "a privileged container is not confined at all";
        return forbidden(format!("{at}.privileged"), true, reason);
    }
    let namespaces = &security.namespaces;
    for (name, mode) in [("network", &namespaces.network), ("pid", &namespaces.pid), ("ipc", &namespaces.ipc)]
    {
        if *mode == NamespaceMode::Node {
            let field = format!("{at}.namespace_options.{name}");
            return forbidden(field, "NODE", "its pods have namespaces of their own");
        }
    }
    let beyond = |id: u32| id >= IDS_PER_POD;
    const UNMAPPED: &str = "a pod has the ids 0 to 65535";
    if let Some(RunAsUser::Uid(uid)) = &security.run_as_user
        && beyond(*uid)
    {
        return forbidden(format!("{at}.run_as_user"), uid, UNMAPPED);
    }
    if let Some(gid) = security.run_as_group.filter(|gid| beyond(*gid)) {
        return forbidden(format!("{at}.run_as_group"), gid, UNMAPPED);
    }
    if let Some(gid) = security.supplemental_groups.iter().find(|gid| beyond(**gid)) {
        return forbidden(format!("{at}.supplemental_groups"), gid, UNMAPPED);
    }
    Ok(())
}

/// Whether `path` lies in one of the handler's folders. `..` is never followed: a path with one lies nowhere.
fn allowed(path: &Path, own: &Hardened, pod_uid: &str) -> bool {
    // A uid that is no plain name would move the folder.
    let plain = !pod_uid.is_empty() && !pod_uid.contains('/') && !matches!(pod_uid, "." | "..");
    if path.components().any(|part| part == Component::ParentDir) {
        return false;
    }
    own.host_paths.iter().any(|folder| {
        let mut parts = path.components();
        folder.components().all(|wanted| {
            let wanted = if wanted.as_os_str() == "{uid}" {
                if !plain {
                    return false;
                }
                std::ffi::OsStr::new(pod_uid)
            } else {
                wanted.as_os_str()
            };
            parts.next().is_some_and(|part| part.as_os_str() == wanted)
        })
    })
}

/// What [`confine`] needs besides the spec.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked<'a> {
    pub(crate) spec: &'a ContainerSpec,
    pub(crate) own: &'a Hardened,
    pub(crate) pod_uid: &'a str,
    /// The paths that are masked and read-only in every container.
    pub(crate) masked: &'a [&'a str],
    pub(crate) readonly: &'a [&'a str],
}

/// Tightens the spec of a container. `sources` is aligned with its mounts and stays so.
///
/// # Errors
///
/// [`Forbidden`] for what only the image or the resolved paths tell.
pub(crate) fn confine(
    spec: &mut Spec,
    sources: &mut Vec<Option<PathBuf>>,
    asked: &Asked<'_>,
) -> Result<(), Forbidden> {
    confine_process(spec, asked)?;
    // Nothing is shown that cannot be judged.
    let uncommon = match asked.own.proc {
        ProcView::Common => uncommon_in(Path::new("/proc")).ok(),
        ProcView::Processes => None,
        ProcView::Whole => Some(Vec::new()),
    };
    confine_mounts(spec, sources, asked, uncommon.is_none())?;
    confine_linux(spec, asked, &uncommon.unwrap_or_default());
    let mut annotations = spec.annotations().clone().unwrap_or_default();
    annotations.insert(LANDLOCK.to_owned(), "container".to_owned());
    if let SecurityProfile::Localhost(_) = asked.spec.security.seccomp {
        // Of two filters the stricter verdict holds, so a profile of the node's can only take away.
        let floor = serde_json::to_string(&profile()).expect("a profile has only string keys");
        annotations.insert(SECCOMP_FLOOR.to_owned(), floor);
    } else if let Some(linux) = spec.linux_mut() {
        linux.set_seccomp(Some(profile()));
    }
    spec.set_annotations(Some(annotations));
    Ok(())
}

fn confine_process(spec: &mut Spec, asked: &Asked<'_>) -> Result<(), Forbidden> {
    let Some(process) = spec.process_mut() else { return Ok(()) };
    let user = process.user().clone();
    let groups = user.additional_gids().iter().flatten();
    if let Some(id) = [user.uid(), user.gid()].iter().chain(groups).find(|id| **id >= IDS_PER_POD) {
        return forbidden("image USER", id, "a pod has the ids 0 to 65535");
    }
    process.set_no_new_privileges(Some(true));
    let mut limits = process.rlimits().clone().unwrap_or_default();
    limits.retain(|limit| limit.typ() != PosixRlimitType::RlimitCore);
    limits.push(
        PosixRlimitBuilder::default()
            .typ(PosixRlimitType::RlimitCore)
            .soft(0_u64)
            .hard(0_u64)
            .build()
            .expect("all fields are set"),
    );
    process.set_rlimits(Some(limits));
    let added: Vec<String> = asked
        .spec
        .security
        .capabilities
        .add
        .iter()
        .chain(&asked.spec.security.capabilities.add_ambient)
        .cloned()
        .collect();
    let may = |one: &Capability| CAPABILITIES.contains(one) || added.contains(&format!("CAP_{one}"));
    if let Some(mut sets) = process.capabilities().clone() {
        let within = |set: &Option<HashSet<Capability>>| {
            Some(set.iter().flatten().filter(|one| may(one)).copied().collect::<HashSet<_>>())
        };
        let (bounding, effective, permitted) =
            (within(sets.bounding()), within(sets.effective()), within(sets.permitted()));
        let (inheritable, ambient) = (within(sets.inheritable()), within(sets.ambient()));
        sets.set_bounding(bounding);
        sets.set_effective(effective);
        sets.set_permitted(permitted);
        sets.set_inheritable(inheritable);
        sets.set_ambient(ambient);
        process.set_capabilities(Some(sets));
    }
    Ok(())
}

fn confine_mounts(
    spec: &mut Spec,
    sources: &mut Vec<Option<PathBuf>>,
    asked: &Asked<'_>,
    only_processes: bool,
) -> Result<(), Forbidden> {
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    for (mount, source) in mounts.iter_mut().zip(sources.iter_mut()) {
        let mut options = mount.options().clone().unwrap_or_default();
        let place = mount.destination().clone();
        match (source.as_deref(), mount.typ().as_deref()) {
            (None, Some("proc")) => {
                if only_processes {
                    options.push("subset=pid".to_owned());
                }
                if asked.own.hide_processes {
                    options.push("hidepid=2".to_owned());
                }
            }
            (_, kind) if place == Path::new("/sys") && (kind == Some("sysfs") || is(source, "/sys")) => {
                *source = None;
                *mount =
                    made("/sys", "tmpfs", "tmpfs", &["nosuid", "noexec", "nodev", "mode=0555", "size=64k"]);
                continue;
            }
            // The pod's own shared memory is a tmpfs made for it; what is in there has the pod's ids already.
            (Some(_), _) if place == Path::new("/dev/shm") => {}
            (Some(path), _) => {
                let mut requested =
                    asked.spec.mounts.iter().filter(|one| clean(&one.container_path) == place);
                let of_request = requested.clone().any(|one| matches!(one.source, MountSource::Host(_)));
                let of_image = requested.any(|one| matches!(one.source, MountSource::Image { .. }));
                if of_request && !allowed_resolved(path, asked) {
                    return forbidden("mounts.host_path", path.display(), OUTSIDE);
                }
                for option in ["nosuid", "nodev"] {
                    if !options.iter().any(|known| known == option) {
                        options.push(option.to_owned());
                    }
                }
                // An overlay, as an image volume is, takes no mapping; its layers have one.
                if mount.uid_mappings().is_none() && !of_image {
                    options.push("ridmap".to_owned());
                }
            }
            _ => {}
        }
        mount.set_options(Some(options));
    }
    if mounts
        .iter()
        .any(|mount| mount.destination() == Path::new("/sys") && mount.typ().as_deref() == Some("tmpfs"))
    {
        for file in SYS_FILES.iter().filter(|file| Path::new(file).exists()) {
            mounts.push(made(file, "bind", file, &["bind", "ro", "nosuid", "noexec", "nodev", "rprivate"]));
            sources.push(Some(PathBuf::from(file)));
        }
        // Last: until now mount points were made in it.
        mounts.push(made("/sys", "tmpfs", "tmpfs", &["remount", "ro", "nosuid", "noexec", "nodev"]));
        sources.push(None);
    }
    spec.set_mounts(Some(mounts));
    Ok(())
}

/// A place in the container as the spec names it: without `.` and `..`.
fn clean(path: &Path) -> PathBuf {
    path.components().fold(PathBuf::new(), |mut clean, part| {
        match part {
            Component::ParentDir => {
                clean.pop();
            }
            Component::CurDir => {}
            other => clean.push(other),
        }
        clean
    })
}

fn is(source: &Option<PathBuf>, path: &str) -> bool {
    source.as_deref() == Some(Path::new(path))
}

fn made(place: &str, kind: &str, source: &str, options: &[&str]) -> OciMount {
    MountBuilder::default()
        .destination(place)
        .typ(kind)
        .source(source)
        .options(options.iter().map(|option| (*option).to_owned()).collect::<Vec<_>>())
        .build()
        .expect("all fields are set")
}

/// As [`allowed`], for a path without links; the handler's folders may be behind some.
fn allowed_resolved(path: &Path, asked: &Asked<'_>) -> bool {
    let resolved = |folder: &PathBuf| {
        let fixed: PathBuf = folder.components().take_while(|part| part.as_os_str() != "{uid}").collect();
        let rest = folder.strip_prefix(&fixed).map(Path::to_owned).unwrap_or_default();
        fixed.canonicalize().unwrap_or(fixed).join(rest)
    };
    let own =
        Hardened { host_paths: asked.own.host_paths.iter().map(resolved).collect(), ..asked.own.clone() };
    allowed(path, &own, asked.pod_uid)
}

fn confine_linux(spec: &mut Spec, asked: &Asked<'_>, uncommon: &[String]) {
    let Some(linux) = spec.linux_mut() else { return };
    let security = &asked.spec.security;
    // The kubelet's "nothing masked" (procMount: Unmasked) is not taken.
    let all = |asked: &[PathBuf], ours: &[&str], more: &[String]| {
        let mut all: Vec<String> = asked.iter().map(|path| path.to_string_lossy().into_owned()).collect();
        all.extend(ours.iter().map(|path| (*path).to_owned()));
        all.extend_from_slice(more);
        all.sort();
        all.dedup();
        Some(all)
    };
    linux.set_masked_paths(all(&security.masked_paths, asked.masked, uncommon));
    linux.set_readonly_paths(all(&security.readonly_paths, asked.readonly, &[]));
    let Some(mut resources) = linux.resources().clone() else { return };
    if let Some(rules) = resources.devices_mut() {
        // "Make any node" is for file systems that are unpacked inside; here no node can be made anyway.
        rules.retain(|rule| !(rule.allow() && rule.major().is_none()));
    }
    if resources.pids().is_none() {
        let limit = LinuxPidsBuilder::default().limit(PIDS_LIMIT).build().expect("the limit is set");
        resources.set_pids(Some(limit));
    }
    linux.set_resources(Some(resources));
}

/// What is in /proc but processes, links to the reader's own, and what is common. By what this kernel has and not by a list, so
/// that a newer one adds nothing.
fn uncommon_in(proc: &Path) -> std::io::Result<Vec<String>> {
    let mut uncommon = Vec::new();
    for entry in std::fs::read_dir(proc)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let process = name.bytes().all(|byte| byte.is_ascii_digit());
        if !process && !COMMON_IN_PROC.contains(&name.as_str()) && !entry.file_type()?.is_symlink() {
            uncommon.push(format!("/proc/{name}"));
        }
    }
    Ok(uncommon)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::spec::Namespaces;

    fn own(folders: &[&str]) -> Hardened {
        Hardened { host_paths: folders.iter().map(PathBuf::from).collect(), ..Hardened::default() }
    }

    #[test]
    fn a_mount_comes_from_the_pods_own_folder_or_not_at_all() {
        let own = own(&["/var/lib/kubelet/pods/{uid}", "/srv/shared"]);
        for (path, uid, expected) in [
            ("/var/lib/kubelet/pods/u-1/volumes/x", "u-1", true),
            ("/var/lib/kubelet/pods/u-1", "u-1", true),
            ("/var/lib/kubelet/pods/u-2/volumes/x", "u-1", false),
            ("/var/lib/kubelet/pods/u-11", "u-1", false),
            ("/var/lib/kubelet/pods", "u-1", false),
            ("/var/lib/kubelet/pods/u-1/../u-2", "u-1", false),
            ("/var/lib/kubelet/pods/../x", "..", false),
            ("/var/lib/kubelet/pods/x", "", false),
            ("/srv/shared/x", "", true),
            ("/srv/sharedness", "u-1", false),
            ("/", "u-1", false),
        ] {
            assert_eq!(allowed(Path::new(path), &own, uid), expected, "{path} of {uid:?}");
        }
    }

    #[test]
    fn what_is_not_common_in_proc_is_found_by_looking() {
        let proc = tempfile::tempdir().unwrap();
        for name in ["stat", "1", "brand-new", "kallsyms"] {
            std::fs::write(proc.path().join(name), "").unwrap();
        }
        std::fs::create_dir(proc.path().join("irq")).unwrap();
        std::os::unix::fs::symlink("1", proc.path().join("self")).unwrap();
        let mut uncommon = uncommon_in(proc.path()).unwrap();
        uncommon.sort();
        assert_eq!(uncommon, ["/proc/brand-new", "/proc/irq", "/proc/kallsyms"]);
        assert!(uncommon_in(&proc.path().join("missing")).is_err());
    }

    #[test]
    fn a_pod_is_refused_by_the_field_that_undoes_its_confinement() {
        let node = |set: fn(&mut Namespaces)| {
            let mut security = Security::default();
            set(&mut security.namespaces);
            security
        };
        for (security, field) in [
            (Security { privileged: true, ..Security::default() }, "linux.security_context.privileged"),
            (
                node(|all| all.network = NamespaceMode::Node),
                "linux.security_context.namespace_options.network",
            ),
            (node(|all| all.pid = NamespaceMode::Node), "linux.security_context.namespace_options.pid"),
            (node(|all| all.ipc = NamespaceMode::Node), "linux.security_context.namespace_options.ipc"),
            (
                Security { run_as_user: Some(RunAsUser::Uid(65_536)), ..Security::default() },
                "linux.security_context.run_as_user",
            ),
            (
                Security { supplemental_groups: vec![1, 70_000], ..Security::default() },
                "linux.security_context.supplemental_groups",
            ),
        ] {
            assert_eq!(check_pod(&security).unwrap_err().field, field);
        }
        assert_eq!(check_pod(&Security::default()), Ok(()));
    }

    #[test]
    fn a_container_may_add_no_capability_that_opens_a_part_of_the_kernel() {
        let with = |name: &str| {
            let capabilities = Capabilities { add: vec![name.to_owned()], ..Capabilities::default() };
            let security = Security { capabilities, ..Security::default() };
            check_container(&ContainerSpec { security, ..ContainerSpec::default() }, &own(&[]), "u").is_ok()
        };
        for name in ["CAP_CHOWN", "CAP_NET_BIND_SERVICE", "CAP_SETPCAP", "CAP_AUDIT_WRITE"] {
            assert!(with(name), "{name}");
        }
        for name in
            ["ALL", "CAP_SYS_ADMIN", "CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_SYS_PTRACE", "CAP_MKNOD", "CAP_BPF"]
        {
            assert!(!with(name), "{name}");
        }
    }
}
