//! One look at a running container for ListPodSandboxMetrics.

use std::sync::Arc;

use super::{Container, ContainerError, Containers};
use crate::metrics::{ContainerReading, FileSystem, Processes, device_name, host_swap};
use crate::sys::cgroup::{Cgroup, CgroupError, CgroupPath, Hierarchy};
use crate::task::blocking;
use crate::units::UnixNanos;

impl Containers {
    /// What a container is like at this moment; its cgroup and its processes are looked at anew.
    pub(crate) async fn metrics(
        &self,
        container: &Arc<Container>,
    ) -> Result<ContainerReading, ContainerError> {
        let (store, own) = (self.0.store.clone(), Arc::clone(container));
        blocking(move || {
            let live = own.live();
            let (cgroup, pids) = look(&own.saved.cgroup).map_err(|source| ContainerError::Stats {
                id: own.id().to_string(),
                source: Arc::new(source),
            })?;
            let device_names = cgroup.stats.io.iter().map(|io| device_name(io.major, io.minor)).collect();
            let disk = || Some((FileSystem::of(store.root()).ok()?, store.writable_usage(own.id()).ok()?.0));
            Ok(ContainerReading {
                at: UnixNanos::now(),
                started_at: own.view().started_at,
                cgroup,
                device_names,
                processes: Some(Processes::read(&pids, live.pid)),
                disk: disk(),
                shares_asked: live.resources.cpu_shares,
                host_swap: host_swap(),
            })
        })
        .await
    }

    /// The container's cgroup below each hierarchy, as cAdvisor's label `id` has it.
    pub(crate) fn cgroup_path(container: &Container) -> String {
        CgroupPath::of_oci(&container.saved.cgroup).map(|path| path.to_string()).unwrap_or_default()
    }
}

fn look(cgroup: &str) -> Result<(crate::sys::cgroup::Details, Vec<i32>), CgroupError> {
    let cgroup = Cgroup::open(&Hierarchy::of_host()?, &CgroupPath::of_oci(cgroup)?)?;
    let pids = cgroup.pids()?.into_iter().map(|pid| pid.as_raw_nonzero().get()).collect();
    Ok((cgroup.details()?, pids))
}
