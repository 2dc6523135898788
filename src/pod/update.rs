//! UpdatePodSandboxResources: limits of the pod's own cgroup.

use std::sync::Arc;

use super::state::Request;
use super::{PodError, Pods, cgroup};
use crate::container::bundle;
use crate::container::spec::Resources;
use crate::task::blocking;

impl Pods {
    /// Notes the new limits of a pod and applies them where the pod's cgroup is ours: the kubelet owns the one it gave
    /// us and has set it already (CRI v1 UpdatePodSandboxResources).
    pub(crate) async fn update_resources(
        &self,
        prefix: &str,
        _overhead: Option<Resources>,
        resources: Option<Resources>,
    ) -> Result<(), PodError> {
        let pod = self.find(prefix)?;
        let _verb = pod.verb.lock().await;
        // A removal may have come between.
        self.find(pod.id().as_str())?;
        let denied = |denied| PodError::Denied { verb: "update", id: pod.id().clone(), denied };
        pod.live().state.admit(Request::Update).map_err(denied)?;
        let Some(change) = resources else { return Ok(()) };
        let merged = pod.live().resources.unwrap_or_default().merged(change);
        let place = pod.live().place;
        if place.own_cgroup().is_some() {
            let limits = bundle::resources(&merged).map_err(|source| PodError::BadResources {
                id: pod.id().clone(),
                source: Arc::new(source),
            })?;
            let applied = blocking(move || cgroup::limit(&place, &limits)).await;
            applied
                .map_err(|source| PodError::Resources { id: pod.id().clone(), source: Arc::new(source) })?;
        }
        pod.lock().resources = Some(merged);
        self.save(&pod).await
    }
}
