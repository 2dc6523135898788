//! The counters of a pod's interfaces for ListPodSandboxMetrics.

use std::sync::Arc;

use super::{Pod, Pods};
use crate::metrics::{Sample, network_samples};
use crate::stats;
use crate::task::blocking;

impl Pods {
    /// Nothing for a pod in the host's network: the host's traffic is not the pod's.
    pub(crate) async fn metrics(&self, pod: &Arc<Pod>) -> Vec<Sample> {
        let live = pod.live();
        let (Some(link), Some(monitor)) = (live.link, live.monitor) else { return Vec::new() };
        blocking(move || {
            // A pod that has just ended has no interfaces any more.
            let interfaces = stats::interfaces(monitor.pid(), &link.interface).unwrap_or_default();
            network_samples(&interfaces)
        })
        .await
    }
}

impl Pod {
    /// The pod's cgroup below each hierarchy, as cAdvisor's label `id` has it.
    pub(crate) fn cgroup_path(&self) -> String {
        self.live().place.cgroup().map(|path| path.to_string()).unwrap_or_default()
    }
}
