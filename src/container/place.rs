//! What a container takes from its pod, kept in the pod's record.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::bundle::{BundleError, Confines, PodLabels, PodView, cgroups_path};
use super::handler::Handler;
use super::spec::{NamespaceMode, Namespaces, SelinuxOptions};
use crate::id::PodId;
use crate::sys::cgroup::{CgroupPath, PathError};

/// The pod as its containers see it. A namespace's path is `None` where the pod is in the host's.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct PodPlace {
    pub id: PodId,
    pub name: String,
    pub namespace: String,
    pub uid: String,
    pub hostname: String,
    pub namespaces: Namespaces,
    pub network_ns: Option<PathBuf>,
    pub ipc_ns: Option<PathBuf>,
    pub uts_ns: Option<PathBuf>,
    pub pid_ns: Option<PathBuf>,
    pub user_ns: Option<PathBuf>,
    /// As the kubelet gave it; may be empty.
    pub cgroup_parent: String,
    /// A pod without a cgroup of the kubelet's gets a slice and not a directory of its own.
    #[serde(default)]
    pub systemd_cgroup: bool,
    pub privileged: bool,
    /// For containers that do not say otherwise.
    #[serde(default)]
    pub selinux: Option<SelinuxOptions>,
    pub annotations: BTreeMap<String, String>,
    pub resolv_conf: PathBuf,
    pub hostname_file: PathBuf,
    /// The pod's shared memory, visible in the monitor's mount namespace; `None` where the pod has the host's.
    pub shm: Option<PathBuf>,
}

impl PodPlace {
    /// What `bundle.rs` needs. `pid_ns` is the container's to say: it may want another container's.
    pub(super) fn view<'a>(
        &'a self,
        handler: &'a Handler,
        parent: &'a str,
        pid_ns: Option<PathBuf>,
    ) -> PodView<'a> {
        PodView {
            id: &self.id,
            name: &self.name,
            namespace: &self.namespace,
            uid: &self.uid,
            hostname: &self.hostname,
            namespaces: &self.namespaces,
            network_ns: self.network_ns.clone(),
            ipc_ns: self.ipc_ns.clone(),
            uts_ns: self.uts_ns.clone(),
            user_ns: self.user_ns.clone(),
            pid_ns,
            cgroup_parent: parent,
            annotations: &self.annotations,
            resolv_conf: Some(&self.resolv_conf),
            // The host's own name is in the host's file already.
            hostname_file: (self.namespaces.network != NamespaceMode::Node).then_some(&self.hostname_file),
            shm: self.shm.as_deref(),
            privileged: self.privileged,
            allowed_annotations: &handler.allowed_annotations,
            confines: Confines {
                hardened: handler.hardened.as_ref(),
                seccomp_profile: handler.seccomp_profile.as_deref(),
                allow_unconfined: handler.allow_unconfined,
                pids_limit: handler.pids_limit,
                features: handler.features,
            },
        }
    }

    pub(crate) fn labels(&self) -> PodLabels<'_> {
        PodLabels { id: &self.id, namespaces: &self.namespaces, options: self.selinux.as_ref() }
    }

    /// The cgroup that the pod's containers are below: the kubelet's, or one of the pod's own.
    pub(crate) fn parent(&self) -> String {
        match (self.cgroup_parent.as_str(), self.own_slice()) {
            ("", Some(slice)) => slice,
            ("", None) => format!("/brig/{}", self.id),
            (parent, _) => parent.to_owned(),
        }
    }

    /// OCI's `cgroupsPath` of a container.
    pub(super) fn cgroups_path(&self, container: &str) -> Result<PathBuf, BundleError> {
        cgroups_path(&self.parent(), container)
    }

    /// The cgroup of the whole pod.
    pub(crate) fn cgroup(&self) -> Result<CgroupPath, PathError> {
        let parent = self.parent();
        match parent.strip_suffix(".slice") {
            // The kubelet may send the whole path of nested slices; the last names them all.
            Some(_) => {
                let slice = parent.rsplit('/').next().unwrap_or(&parent);
                CgroupPath::new(&CgroupPath::slice_dirs(slice)?)
            }
            None => CgroupPath::new(parent.as_ref()),
        }
    }

    /// As [`PodPlace::cgroup`] if it is ours to limit and remove and not the kubelet's.
    pub(crate) fn own_cgroup(&self) -> Option<CgroupPath> {
        if self.cgroup_parent.is_empty() { self.cgroup().ok() } else { None }
    }

    /// The systemd unit of [`PodPlace::own_cgroup`], where systemd makes cgroups. It lies in `brig.slice`.
    pub(crate) fn own_slice(&self) -> Option<String> {
        (self.cgroup_parent.is_empty() && self.systemd_cgroup).then(|| format!("brig-{}.slice", self.id))
    }
}
