//! UpdatePodSandboxResources: limits of the pod's own cgroup.

use std::sync::Arc;

use super::state::Request;
use super::{PodError, Pods, cgroup};
use crate::container::bundle;
use crate::container::spec::Resources;
use crate::task::blocking;

impl Pods {
    /// Notes the new limits and the new overhead of a pod, and applies them where the pod's cgroup is ours: the kubelet
    /// owns the one it gave us and has set it already (CRI v1 UpdatePodSandboxResources, KEP-1287).
    pub(crate) async fn update_resources(
        &self,
        prefix: &str,
        overhead: Option<Resources>,
        resources: Option<Resources>,
    ) -> Result<(), PodError> {
        let pod = self.find(prefix)?;
        let _verb = pod.verb.lock().await;
        // A removal may have come between.
        self.find(pod.id().as_str())?;
        let denied = |denied| PodError::Denied { verb: "update", id: pod.id().clone(), denied };
        pod.live().state.admit(Request::Update).map_err(denied)?;
        let live = pod.live();
        let merge = |known: Option<Resources>, change: Option<Resources>| match change {
            Some(change) => Some(known.unwrap_or_default().merged(change)),
            None => known,
        };
        let (overhead, resources) = (merge(live.overhead, overhead), merge(live.resources, resources));
        if let (Some(_), Some(containers)) = (live.place.own_cgroup(), &resources) {
            // The pod's cgroup holds both, as the kubelet's would.
            let whole = match &overhead {
                Some(overhead) => with_overhead(containers, overhead),
                None => containers.clone(),
            };
            let limits = bundle::resources(&whole).map_err(|source| PodError::BadResources {
                id: pod.id().clone(),
                source: Arc::new(source),
            })?;
            let place = live.place;
            let applied = blocking(move || cgroup::limit(&place, &limits)).await;
            applied
                .map_err(|source| PodError::Resources { id: pod.id().clone(), source: Arc::new(source) })?;
        }
        {
            let mut live = pod.lock();
            live.overhead = overhead;
            live.resources = resources;
        }
        self.save(&pod).await
    }
}

/// What the cgroup of a whole pod is limited to. What only makes sense for all processes together (CPU sets, huge
/// pages, cgroup v2 files) is the containers'.
fn with_overhead(containers: &Resources, overhead: &Resources) -> Resources {
    /// The kernel's own default (`default_cfs_period`).
    const PERIOD_US: u64 = 100_000;
    /// The most that cpu.shares takes.
    const SHARES_MAX: u64 = 262_144;
    // Without a limit for the containers there is none for the pod, whatever the overhead is.
    let limit = |own: Option<i64>, more: Option<i64>| match (own, more) {
        (Some(own), Some(more)) if own > 0 && more > 0 => Some(own.saturating_add(more)),
        (own, _) => own,
    };
    // The overhead's quota in a period of the containers'.
    let period = containers.cpu_period_us.unwrap_or(PERIOD_US);
    let quota = overhead.cpu_quota_us.filter(|quota| *quota > 0).map(|quota| {
        let scaled =
            i128::from(quota) * i128::from(period) / i128::from(overhead.cpu_period_us.unwrap_or(PERIOD_US));
        i64::try_from(scaled).unwrap_or(i64::MAX)
    });
    Resources {
        cpu_quota_us: limit(containers.cpu_quota_us, quota),
        cpu_shares: match (containers.cpu_shares, overhead.cpu_shares) {
            (Some(own), Some(more)) => Some(own.saturating_add(more).min(SHARES_MAX)),
            (own, _) => own,
        },
        memory_limit_bytes: limit(containers.memory_limit_bytes, overhead.memory_limit_bytes),
        memory_swap_limit_bytes: limit(
            containers.memory_swap_limit_bytes,
            overhead.memory_swap_limit_bytes.or(overhead.memory_limit_bytes),
        ),
        ..containers.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_overhead_comes_on_top_of_what_is_limited_and_limits_nothing_else() {
        let overhead = Resources {
            cpu_period_us: Some(50_000),
            cpu_quota_us: Some(10_000),
            cpu_shares: Some(262_144),
            memory_limit_bytes: Some(20),
            ..Resources::default()
        };
        let containers = Resources {
            cpu_quota_us: Some(100_000),
            cpu_shares: Some(512),
            memory_limit_bytes: Some(100),
            memory_swap_limit_bytes: Some(100),
            cpuset_cpus: "0".into(),
            ..Resources::default()
        };
        let whole = Resources {
            cpu_quota_us: Some(120_000),
            cpu_shares: Some(262_144),
            memory_limit_bytes: Some(120),
            memory_swap_limit_bytes: Some(120),
            ..containers.clone()
        };
        assert_eq!(with_overhead(&containers, &overhead), whole);
        let unlimited =
            Resources { cpu_quota_us: Some(-1), memory_limit_bytes: Some(-1), ..Resources::default() };
        assert_eq!(with_overhead(&unlimited, &overhead), unlimited);
        assert_eq!(with_overhead(&Resources::default(), &overhead), Resources::default());
    }
}
