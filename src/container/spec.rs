//! What a CreateContainer request asks for, parsed into types that cannot be wrong.
//!
//! `cri/from_proto` makes these values and refuses what does not fit; nothing below validates again. They are kept in
//! the container's record, so every type here is also its own stored form: a new field needs `#[serde(default)]`.
//! Types that a pod shares with its containers (resources, security, namespaces) live here because `pod` may import
//! from `container` and never the reverse.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// A container, as asked for.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct ContainerSpec {
    /// CRI `metadata.name`: unique in its pod together with `attempt`.
    pub name: String,
    pub attempt: u32,
    pub image: ImageSpec,
    /// Replaces the image's entrypoint when not empty.
    pub command: Vec<String>,
    /// Replaces the image's command when not empty.
    pub args: Vec<String>,
    pub working_dir: Option<String>,
    pub envs: Vec<(String, String)>,
    pub mounts: Vec<Mount>,
    pub devices: Vec<Device>,
    /// Fully qualified CDI names, `vendor/class=name`.
    pub cdi_devices: Vec<String>,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    /// Relative to the pod's log directory; contains no `..`.
    pub log_path: Option<PathBuf>,
    pub stdin: bool,
    /// Stdin closes when the first attached client has gone.
    pub stdin_once: bool,
    pub tty: bool,
    pub resources: Resources,
    pub security: Security,
    /// Overrides the image's stop signal; `SIGTERM` when both are silent. A name such as `SIGUSR1` or `SIGRTMIN+3`.
    pub stop_signal: Option<String>,
}

/// CRI's ImageSpec: how the request names the image.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct ImageSpec {
    /// The name or id as the kubelet sent it.
    pub image: String,
    /// As the pod's author wrote it, when the kubelet says so.
    pub user_specified_image: String,
    pub runtime_handler: String,
    pub annotations: BTreeMap<String, String>,
}

/// A mount into the container.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Mount {
    /// Absolute, resolved inside the rootfs.
    pub container_path: PathBuf,
    pub source: MountSource,
    pub readonly: bool,
    /// Needs `readonly` and private propagation (CRI v1 `Mount.recursive_read_only`).
    pub recursive_read_only: bool,
    pub selinux_relabel: bool,
    pub propagation: Propagation,
    pub uid_mappings: Vec<IdMapping>,
    pub gid_mappings: Vec<IdMapping>,
}

/// Where a mount comes from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum MountSource {
    /// A path on the host; it must exist.
    Host(PathBuf),
    /// The rootfs of an image, read-only, or a folder in it.
    Image { image: ImageSpec, sub_path: Option<PathBuf> },
}

/// CRI's MountPropagation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) enum Propagation {
    #[default]
    Private,
    HostToContainer,
    Bidirectional,
}

/// `length` ids from `host` appear as `container` and up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct IdMapping {
    pub host: u32,
    pub container: u32,
    pub length: u32,
}

/// A host device node inside the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Device {
    pub host_path: PathBuf,
    pub container_path: PathBuf,
    /// Some of `r`, `w` and `m`.
    pub permissions: String,
}

/// CRI's LinuxContainerResources. `None` leaves a value as it is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Resources {
    pub cpu_period_us: Option<u64>,
    /// -1 is no limit.
    pub cpu_quota_us: Option<i64>,
    pub cpu_shares: Option<u64>,
    /// -1 is no limit.
    pub memory_limit_bytes: Option<i64>,
    /// Memory and swap together; -1 is no limit.
    pub memory_swap_limit_bytes: Option<i64>,
    /// -1000 to 1000.
    pub oom_score_adj: Option<i32>,
    pub cpuset_cpus: String,
    pub cpuset_mems: String,
    pub hugepage_limits: Vec<HugepageLimit>,
    /// cgroup v2 files and what to write to them.
    pub unified: BTreeMap<String, String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HugepageLimit {
    /// As in the cgroup file's name: `2MB`, `1GB`.
    pub page_size: String,
    pub limit_bytes: u64,
}

/// The security context of a pod or a container. A pod has no capabilities, masked paths or `no_new_privs`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Security {
    pub privileged: bool,
    pub capabilities: Capabilities,
    pub namespaces: Namespaces,
    pub selinux: Option<SelinuxOptions>,
    pub run_as_user: Option<RunAsUser>,
    /// Needs `run_as_user`.
    pub run_as_group: Option<u32>,
    pub supplemental_groups: Vec<u32>,
    pub supplemental_groups_policy: SupplementalGroupsPolicy,
    pub readonly_rootfs: bool,
    pub no_new_privs: bool,
    pub masked_paths: Vec<PathBuf>,
    pub readonly_paths: Vec<PathBuf>,
    pub seccomp: SecurityProfile,
    pub apparmor: SecurityProfile,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum RunAsUser {
    Uid(u32),
    /// Looked up in the image's `/etc/passwd`.
    Name(String),
}

/// Names with the `CAP_` prefix, or `ALL`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Capabilities {
    pub add: Vec<String>,
    pub drop: Vec<String>,
    pub add_ambient: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) enum SupplementalGroupsPolicy {
    /// The image's groups of the user are added.
    #[default]
    Merge,
    Strict,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct SelinuxOptions {
    pub user: String,
    pub role: String,
    pub kind: String,
    pub level: String,
}

/// A seccomp or AppArmor profile.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) enum SecurityProfile {
    RuntimeDefault,
    /// What the request leaves unsaid: unconfined, as the CRI text has it.
    #[default]
    Unconfined,
    /// A file (seccomp) or a loaded profile's name (AppArmor); never empty.
    Localhost(String),
}

/// Which namespaces are shared with whom.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Namespaces {
    pub network: NamespaceMode,
    pub pid: NamespaceMode,
    pub ipc: NamespaceMode,
    /// `Some` is a user namespace of the pod's own with these mappings.
    pub user: Option<UserNamespace>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) enum NamespaceMode {
    #[default]
    Pod,
    Container,
    Node,
    /// The namespace of another container of the pod, by its id.
    Target(String),
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct UserNamespace {
    pub uids: Vec<IdMapping>,
    pub gids: Vec<IdMapping>,
}
