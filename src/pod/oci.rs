//! A pod as an OCI config, for tools that read `info.runtimeSpec` of a verbose status.
//!
//! With other runtimes that is the config of the pause container, and what tools look up in it are the namespaces' paths,
//! the cgroup and the annotations. A pod of ours has no container of its own, so the config has no process, rootfs or mounts.

use std::collections::HashMap;
use std::path::PathBuf;

use oci_spec::OciSpecError;
use oci_spec::runtime::{
    LinuxBuilder, LinuxNamespace, LinuxNamespaceBuilder, LinuxNamespaceType, Spec, SpecBuilder,
};

use super::Pod;
use crate::container::place::PodPlace;

impl Pod {
    /// Namespaces have no paths once the pod's monitor has gone: its pid may be another process' by now.
    pub(crate) fn oci_config(&self) -> Result<Spec, OciSpecError> {
        let live = self.live();
        let mut linux = LinuxBuilder::default()
            .namespaces(namespaces(&live.place, live.monitor.is_some())?)
            .cgroups_path(live.place.parent())
            .sysctl(self.spec().sysctls.clone().into_iter().collect::<HashMap<_, _>>())
            .build()?;
        linux.set_devices(None).set_resources(None).set_masked_paths(None).set_readonly_paths(None);
        let mut spec = SpecBuilder::default()
            .version("1.2.0")
            .hostname(&live.place.hostname)
            .annotations(self.spec().annotations.clone().into_iter().collect::<HashMap<_, _>>())
            .linux(linux)
            .build()?;
        spec.set_process(None).set_root(None).set_mounts(None);
        Ok(spec)
    }
}

fn namespaces(place: &PodPlace, alive: bool) -> Result<Vec<LinuxNamespace>, OciSpecError> {
    let of_pod: [(LinuxNamespaceType, &Option<PathBuf>); 5] = [
        (LinuxNamespaceType::User, &place.user_ns),
        (LinuxNamespaceType::Network, &place.network_ns),
        (LinuxNamespaceType::Ipc, &place.ipc_ns),
        (LinuxNamespaceType::Uts, &place.uts_ns),
        (LinuxNamespaceType::Pid, &place.pid_ns),
    ];
    let own = of_pod.into_iter().filter_map(|(kind, path)| Some((kind, path.as_ref()?)));
    own.map(|(kind, path)| {
        let builder = LinuxNamespaceBuilder::default().typ(kind);
        if alive { builder.path(path).build() } else { builder.build() }
    })
    .collect()
}
