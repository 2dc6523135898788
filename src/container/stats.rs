//! ContainerStats: the container's cgroup and its writable layer.

use std::sync::Arc;

use super::{Container, ContainerError, Containers};
use crate::stats::{ContainerUsage, DiskUsage};
use crate::sys::cgroup::CgroupPath;
use crate::task::blocking;
use crate::units::UnixNanos;

impl Containers {
    /// What a container uses at this moment.
    pub(crate) async fn stats(&self, container: &Arc<Container>) -> Result<ContainerUsage, ContainerError> {
        let (store, own) = (self.0.store.clone(), Arc::clone(container));
        blocking(move || {
            let failed =
                |source| ContainerError::Stats { id: own.id().to_string(), source: Arc::new(source) };
            let path = CgroupPath::of_oci(&own.saved.cgroup).map_err(|error| failed(error.into()))?;
            let cgroup = own.sampler.read(&path).map_err(failed)?;
            let writable = store.writable_usage(own.id()).ok().map(|(used, inodes)| DiskUsage {
                at: UnixNanos::now(),
                path: store.root().to_owned(),
                used,
                inodes,
            });
            Ok(ContainerUsage { cgroup, writable_layer: writable })
        })
        .await
    }
}
