//! From a container's spec, its pod and its image to the OCI `config.json`.
//!
//! Nothing is changed on the host here: files are read (the rootfs' passwd and group, a seccomp profile, device nodes,
//! whether a mount source exists), and the answer is a value. `process.rs` says what runs and as whom, `mounts.rs` what it
//! sees, `linux.rs` what confines it.
//!
//! What an image or an annotation says never becomes a host path, a host identity, a capability or a hook: image labels
//! are not annotations, and of the request's annotations only those the handler lists go through.

mod devices;
mod linux;
mod lsm;
mod mounts;
mod process;
mod seccomp_file;

use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use oci_spec::image::ImageConfiguration;
use oci_spec::runtime::{Capability, PosixRlimit, RootBuilder, Spec, SpecBuilder};

use super::cdi::{self, CdiError};
use super::handler::{Features, Hardened};
use super::hardened::{self, Forbidden};
use super::held::HeldFiles;
use super::spec::{ContainerSpec, Namespaces};
use super::user::{self, ContainerUser, UserError};
use crate::id::{ContainerId, PodId};
use crate::sys::cgroup::Hierarchy;

pub(crate) use linux::{MASKED, READONLY, cgroups_path, resources};
pub(crate) use lsm::{PodLabels, SecurityModules, SelinuxLabels};
pub(crate) use process::{StopSignal, capabilities_but, stop_signal};

/// What a container takes from its pod.
///
/// A namespace's path is `None` where the pod is in the host's.
#[derive(Debug, Clone)]
pub(crate) struct PodView<'a> {
    pub(crate) id: &'a PodId,
    pub(crate) name: &'a str,
    pub(crate) namespace: &'a str,
    pub(crate) uid: &'a str,
    /// What `HOSTNAME` says; the node's name for a pod in the host's network. Empty leaves it out.
    pub(crate) hostname: &'a str,
    pub(crate) namespaces: &'a Namespaces,
    pub(crate) network_ns: Option<PathBuf>,
    pub(crate) ipc_ns: Option<PathBuf>,
    pub(crate) uts_ns: Option<PathBuf>,
    pub(crate) user_ns: Option<PathBuf>,
    /// For [`NamespaceMode::Pod`](super::spec::NamespaceMode::Pod) and `Target`: the namespace to join.
    pub(crate) pid_ns: Option<PathBuf>,
    /// As the kubelet gave it; may be empty.
    pub(crate) cgroup_parent: &'a str,
    pub(crate) annotations: &'a BTreeMap<String, String>,
    /// Our files to bind over the image's; `None` leaves the image's.
    pub(crate) resolv_conf: Option<&'a Path>,
    pub(crate) hostname_file: Option<&'a Path>,
    /// The pod's shared memory; `None` gives the container one of its own.
    pub(crate) shm: Option<&'a Path>,
    pub(crate) privileged: bool,
    /// Annotation keys, or prefixes ending in `*`, that the handler lets through.
    pub(crate) allowed_annotations: &'a [String],
    pub(crate) confines: Confines<'a>,
}

/// How the pod's handler confines containers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Confines<'a> {
    pub(crate) hardened: Option<&'a Hardened>,
    /// Instead of the embedded default profile.
    pub(crate) seccomp_profile: Option<&'a Path>,
    pub(crate) allow_unconfined: bool,
    /// Before the host's.
    pub(crate) pids_limit: Option<i64>,
    pub(crate) features: Features,
}

impl Default for Confines<'_> {
    fn default() -> Self {
        let features = Features::default();
        Self { hardened: None, seccomp_profile: None, allow_unconfined: true, pids_limit: None, features }
    }
}

/// What this host can do and how the daemon is configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Host {
    /// The daemon's own bounding set: no container can have more.
    pub(crate) capabilities: Vec<Capability>,
    pub(crate) modules: SecurityModules,
    /// Where CDI specifications lie, the later going before the earlier.
    pub(crate) cdi_spec_dirs: Vec<PathBuf>,
    /// The least OOM score adjustment that a container can have.
    pub(crate) oom_score_adj_min: i32,
    /// There is a cgroup controller for huge pages.
    pub(crate) huge_pages: bool,
    /// Where relative Localhost seccomp profiles lie (the kubelet's `/var/lib/kubelet/seccomp`).
    pub(crate) seccomp_root: PathBuf,
    /// For a container whose request names none; `None` is no limit.
    pub(crate) pids_limit: Option<i64>,
    /// Of every container.
    pub(crate) rlimits: Vec<PosixRlimit>,
    /// Devices that a request names belong to the user and group that it runs as.
    pub(crate) device_ownership: bool,
}

impl Host {
    /// Looks at `/proc` and `/sys`; `configured` says the rest. Blocking.
    pub(crate) fn detect(configured: Configured) -> Self {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let mask = |name| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            u64::from_str_radix(line.trim(), 16).ok()
        };
        let effective = process::capabilities_in(mask("CapEff:").unwrap_or(0));
        let own_score = std::fs::read_to_string("/proc/self/oom_score_adj");
        let own_score = own_score.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0);
        let Configured { seccomp_root, cdi_spec_dirs, pids_limit, rlimits, device_ownership } = configured;
        Self {
            capabilities: process::capabilities_in(mask("CapBnd:").unwrap_or(0)),
            modules: SecurityModules::of_host(),
            cdi_spec_dirs,
            // proc_pid_oom_score_adj(5).
            oom_score_adj_min: if effective.contains(&Capability::SysResource) { -1000 } else { own_score },
            huge_pages: Hierarchy::of_host().is_ok_and(|hierarchy| hierarchy.limits_huge_pages()),
            seccomp_root,
            pids_limit,
            rlimits,
            device_ownership,
        }
    }
}

/// What the configuration says about every container.
#[derive(Debug, Clone)]
pub(crate) struct Configured {
    pub(crate) seccomp_root: PathBuf,
    pub(crate) cdi_spec_dirs: Vec<PathBuf>,
    pub(crate) pids_limit: Option<i64>,
    pub(crate) rlimits: Vec<PosixRlimit>,
    pub(crate) device_ownership: bool,
}

/// Everything a bundle is made of.
#[derive(Debug, Clone)]
pub(crate) struct BundleInput<'a> {
    pub(crate) spec: &'a ContainerSpec,
    pub(crate) pod: &'a PodView<'a>,
    pub(crate) host: &'a Host,
    pub(crate) image: &'a ImageConfiguration,
    /// The rootfs as a mount, attached or not.
    pub(crate) rootfs: &'a OwnedFd,
    pub(crate) id: &'a ContainerId,
    /// From [`SecurityModules::selinux_labels`]: the rootfs is mounted with one of them.
    pub(crate) labels: Option<&'a SelinuxLabels>,
    /// Where the images behind [`MountSource::Image`](super::spec::MountSource::Image) are mounted, by container path.
    pub(crate) image_mounts: &'a BTreeMap<PathBuf, PathBuf>,
    /// Where to have a writable folder for each `VOLUME` of the image; `None` ignores them.
    pub(crate) volumes_dir: Option<&'a Path>,
}

/// A container as an OCI runtime understands it.
#[derive(Debug, Clone)]
pub(crate) struct Bundle {
    pub(crate) spec: Spec,
    pub(crate) user: ContainerUser,
    pub(crate) stop_signal: StopSignal,
    /// The host paths of bind mounts, aligned with `spec.mounts`; `None` for the kernel's own file systems.
    pub(crate) mount_sources: Vec<Option<PathBuf>>,
    /// Those among them that are not ours, as they were when the request was checked.
    pub(crate) held: HeldFiles,
    /// Folders to make (0755, owned by the container's root) before the runtime is called.
    pub(crate) volumes: Vec<PathBuf>,
    pub(crate) relabels: Option<Relabels>,
    /// For the log; the container works without.
    pub(crate) warnings: Vec<String>,
}

/// Why a request cannot become a container. Every one is the caller's to mend, unless said otherwise.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BundleError {
    #[error(
        "no command: the request has neither command nor args, and the image has neither entrypoint nor cmd"
    )]
    NoCommand,
    #[error("resolve the container's user")]
    User(#[source] UserError),
    #[error("environment variable {0:?} contains a NUL")]
    BadEnv(String),
    #[error("capability {0:?} is not one that Linux knows")]
    Capability(String),
    #[error(
        "privileged container in a pod that is not privileged; set privileged in the pod's security context too"
    )]
    Privileged,
    #[error("stop signal {0:?} is not a signal such as SIGTERM, 15 or SIGRTMIN+3")]
    StopSignal(String),
    #[error("mount source {path} of {destination} cannot be used", path = .path.display(), destination = .destination.display())]
    MountSource {
        path: PathBuf,
        destination: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("mount destination {0:?} is not an absolute path below the root")]
    MountDestination(PathBuf),
    #[error("mount at {0:?} is recursively read-only, which needs readonly and private propagation")]
    RecursiveReadOnly(PathBuf),
    #[error("mount at {0:?} has uid mappings without gid mappings, or the reverse")]
    MountMappings(PathBuf),
    #[error(
        "mount at {destination:?} wants {wanted} propagation, but {path:?} lies on a mount that is not {wanted}"
    )]
    Propagation { destination: PathBuf, path: PathBuf, wanted: &'static str },
    #[error("mount at {0:?} names an image that has not been mounted")]
    ImageNotMounted(PathBuf),
    #[error("device {path}", path = .path.display())]
    Device {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("device {0:?} is neither a character or block device nor a folder with some")]
    NotDevice(PathBuf),
    #[error("device {path:?} has permissions {permissions:?}, but only r, w and m exist")]
    DevicePermissions { path: PathBuf, permissions: String },
    #[error("folder {path:?} has more than {max} devices")]
    TooManyDevices { path: PathBuf, max: usize },
    #[error("use the devices of the Container Device Interface")]
    Cdi(#[source] CdiError),
    #[error("cgroup parent {parent:?} is not usable: {why}")]
    CgroupParent { parent: String, why: &'static str },
    #[error("resource {field} {value:?} is not valid: {why}")]
    Resource { field: &'static str, value: String, why: &'static str },
    #[error("namespace mode {mode} of {namespace} needs a namespace to join, but the pod has none")]
    Namespace { namespace: &'static str, mode: String },
    #[error("Localhost seccomp profile without a name; name a file below {root}", root = .0.display())]
    SeccompEmpty(PathBuf),
    #[error("seccomp profile {0:?} leads out of its folder")]
    SeccompPath(String),
    #[error("read seccomp profile {path}", path = .path.display())]
    SeccompRead {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("seccomp profile {path} is larger than {max} bytes", path = .path.display())]
    SeccompTooLarge { path: PathBuf, max: u64 },
    #[error("parse seccomp profile {path}", path = .path.display())]
    SeccompParse {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error("AppArmor profile {0:?} is asked for, but this host has no AppArmor")]
    NoAppArmor(String),
    #[error("AppArmor profile {0:?} is not loaded on this host; load it with apparmor_parser")]
    AppArmorNotLoaded(String),
    #[error(transparent)]
    Forbidden(#[from] Forbidden),
    #[error(
        "AppArmor profile {name:?} is asked for, but the loaded ones cannot be listed; mount securityfs at /sys/kernel/security"
    )]
    AppArmorUnreadable {
        name: String,
        #[source]
        source: std::io::Error,
    },
    #[error(
        "selinux_options {0:?} are asked for, but this host has no SELinux; remove them, or choose nodes that have it"
    )]
    NoSelinux(String),
    #[error("SELinux label {label:?} is not one that this host's policy knows; correct selinux_options")]
    SelinuxLabel {
        label: String,
        #[source]
        source: std::io::Error,
    },
    #[error("build the OCI spec")]
    Build(#[from] oci_spec::OciSpecError),
}

/// Makes the OCI spec of a container. Blocking, and pure but for what it reads.
///
/// # Errors
///
/// The first [`BundleError`] found; nothing has been changed.
pub(crate) fn generate(input: &BundleInput<'_>) -> Result<Bundle, BundleError> {
    let security = &input.spec.security;
    if security.privileged && !input.pod.privileged {
        return Err(BundleError::Privileged);
    }
    let edits = cdi::edits(&input.host.cdi_spec_dirs, &input.spec.cdi_devices).map_err(BundleError::Cdi)?;
    let mut warnings = Vec::new();
    let image_user = input.image.config().as_ref().and_then(|config| config.user().as_deref());
    let mut who = user::resolve(input.rootfs.as_fd(), security, image_user).map_err(BundleError::User)?;
    for gid in &edits.additional_gids {
        if !who.user.supplemental_groups.contains(gid) {
            who.user.supplemental_groups.push(*gid);
        }
    }
    let stop_signal = stop_signal(input.spec, input.image)?;

    let features = input.pod.confines.features;
    let capabilities = process::capabilities(security, input.host, features, &mut warnings)?;
    let labels = input.labels;
    let process = process::process(input, &who, &capabilities, &edits, labels, &mut warnings)?;
    let devices = devices::devices(input, &edits.devices, who.user.uid, &mut warnings)?;
    let mounts = mounts::mounts(input, &edits.mounts, &devices.binds)?;
    let propagation = mounts.rootfs_propagation;
    let linux = linux::linux(input, &capabilities, devices, labels, propagation, &mut warnings)?;

    let mut spec = SpecBuilder::default()
        .version("1.2.0")
        .root(RootBuilder::default().path("rootfs").readonly(security.readonly_rootfs).build()?)
        .process(process)
        .mounts(mounts.mounts)
        .linux(linux)
        .annotations(annotations(input))
        .build()?;
    // The pod's monitor named its UTS namespace; the builder would name it once more. A kernel of the runtime's own has
    // not heard of that one.
    let hostname =
        (features.own_kernel && !input.pod.hostname.is_empty()).then(|| input.pod.hostname.to_owned());
    spec.set_hostname(hostname);
    let mut sources = mounts.sources;
    if let Some(own) = input.pod.confines.hardened {
        let (masked, readonly) = (&linux::MASKED, &linux::READONLY);
        let asked = hardened::Asked { spec: input.spec, own, pod_uid: input.pod.uid, masked, readonly };
        hardened::confine(&mut spec, &mut sources, &asked)?;
    }
    if edits.hooks != Default::default() {
        spec.set_hooks(Some(edits.hooks));
    }
    let relabels = labels.map(|labels| Relabels {
        label: labels.mount.clone(),
        paths: mounts.relabel.into_iter().chain(mounts.volumes.clone()).collect(),
    });
    Ok(Bundle {
        spec,
        user: who.user,
        stop_signal,
        mount_sources: sources,
        held: mounts.held,
        volumes: mounts.volumes,
        relabels: relabels.filter(|relabels| !relabels.paths.is_empty()),
        warnings,
    })
}

/// What gets the container's SELinux label, with all below it, before the runtime is called: of the bundle's held files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Relabels {
    pub(crate) label: String,
    pub(crate) paths: Vec<PathBuf>,
}

/// Annotations that steer a runtime on the host's side; no handler can let them through from a pod.
const NEVER: [&str; 8] = [
    // Ours between the daemon and brig-sandbox.
    "brig.sandbox/",
    // runc hands these to systemd as unit properties, ExecStop among them (CVE-2024-3154).
    "org.systemd.property.",
    // crun's: other OCI hooks, handlers, and where their output goes.
    "run.oci.",
    "org.criu.",
    "io.kubernetes.cri.",
    "io.kubernetes.cri-o.",
    "io.container.",
    "bundle",
];

fn annotations(input: &BundleInput<'_>) -> HashMap<String, String> {
    let pod = input.pod;
    let allowed = |key: &str| {
        !NEVER.iter().any(|prefix| key.starts_with(prefix))
            && pod.allowed_annotations.iter().any(|pattern| match pattern.strip_suffix('*') {
                Some(prefix) => key.starts_with(prefix),
                None => key == pattern,
            })
    };
    let mut all: HashMap<String, String> = pod
        .annotations
        .iter()
        // The container's own speak last.
        .chain(&input.spec.annotations)
        .filter(|(key, _)| allowed(key))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    // The keys that containerd made common. gVisor and Kata start their kernel for what is called a sandbox, and put what
    // is called a container into the one that runs already; as a pod of ours has no container of its own, each of its
    // containers is a sandbox to them.
    for (key, value) in [
        ("io.kubernetes.cri.container-type", "sandbox"),
        ("io.kubernetes.cri.container-name", input.spec.name.as_str()),
        ("io.kubernetes.cri.sandbox-id", pod.id.as_str()),
        ("io.kubernetes.cri.sandbox-name", pod.name),
        ("io.kubernetes.cri.sandbox-namespace", pod.namespace),
        ("io.kubernetes.cri.sandbox-uid", pod.uid),
    ] {
        all.insert(key.to_owned(), value.to_owned());
    }
    all
}

#[cfg(test)]
mod tests;
