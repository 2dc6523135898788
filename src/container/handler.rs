//! A handler: what a RuntimeClass names. An OCI runtime binary plus its settings.

use std::path::PathBuf;

use crate::monitor::wire::Runtime;

/// One `[handlers.NAME]` of the configuration, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Handler {
    pub name: String,
    /// Absolute.
    pub path: PathBuf,
    /// `--root` of the runtime: where it keeps its state.
    pub root: PathBuf,
    /// Global options before the subcommand.
    pub options: Vec<String>,
    /// Our own sandbox: takes mounts as file descriptors, so nothing of a pod shows in the host's mount table.
    pub bundled: bool,
    pub systemd_cgroup: bool,
    /// `Some` for a handler for pods that nobody vouches for. It is bundled then.
    pub hardened: Option<Hardened>,
    /// What stands behind `RuntimeDefault` instead of the embedded profile: a file.
    pub seccomp_profile: Option<PathBuf>,
    /// `Unconfined` is honoured; otherwise it becomes `RuntimeDefault`.
    pub allow_unconfined: bool,
    /// Before the node's own limit; `None` leaves that.
    pub pids_limit: Option<i64>,
    /// Pod and container annotations with these keys, or that begin with what stands before a `*`, reach the OCI config.
    pub allowed_annotations: Vec<String>,
    pub features: Features,
}

/// The settings of a hardened handler; the rest of its policy is fixed, in `hardened.rs`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Hardened {
    /// Folders that mounts may come from; a component `{uid}` is the pod's uid.
    pub host_paths: Vec<PathBuf>,
    pub proc: ProcView,
    pub hide_processes: bool,
}

/// What hardened containers see of /proc besides their processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum ProcView {
    /// Nothing.
    Processes,
    /// What programs size themselves by.
    #[default]
    Common,
    /// What other containers see.
    Whole,
}

/// What not every runtime can do. The first two are announced to the kubelet, which keeps such pods from the handlers that
/// cannot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Features {
    pub recursive_read_only: bool,
    pub user_namespaces: bool,
    /// It runs containers on a kernel of its own (gVisor), to which the namespaces of the pod mean nothing but its network.
    pub own_kernel: bool,
    /// A bit, by the kernel's number, for each capability that it does not know and refuses.
    pub unknown_capabilities: u64,
}

impl Handler {
    /// As the configuration has it.
    pub(crate) fn level(&self) -> &'static str {
        if self.hardened.is_some() { "hardened" } else { "standard" }
    }

    /// How a monitor calls it.
    pub(crate) fn runtime(&self) -> Runtime {
        Runtime {
            path: self.path.clone(),
            root: self.root.clone(),
            options: self.options.clone(),
            systemd_cgroup: self.systemd_cgroup,
            bundled: self.bundled,
            own_kernel: self.features.own_kernel,
        }
    }
}
