//! PodSandboxStats: the pod's cgroup and its interfaces.

use std::sync::Arc;

use super::{Pod, PodError, Pods};
use crate::stats::{self, PodUsage};
use crate::task::blocking;

impl Pods {
    /// What a pod uses at this moment.
    pub(crate) async fn stats(&self, pod: &Arc<Pod>) -> Result<PodUsage, PodError> {
        let pod = Arc::clone(pod);
        blocking(move || {
            let live = pod.live();
            let failed = |source| PodError::Stats { id: pod.id().clone(), source: Arc::new(source) };
            let path = live.place.cgroup().map_err(|error| failed(error.into()))?;
            let cgroup = pod.sampler.read(&path).map_err(failed)?;
            let network = match (&live.link, &live.monitor) {
                (Some(link), Some(monitor)) => stats::interfaces(monitor.pid(), &link.interface).ok(),
                _ => None,
            };
            Ok(PodUsage { cgroup, network })
        })
        .await
    }
}
