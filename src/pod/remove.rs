//! RemovePodSandbox: stop, remove the containers, then files and record.

use std::sync::Arc;

use futures_util::future::join_all;

use super::state::{Admission, Request};
use super::{Pod, PodError, Pods, cgroup};
use crate::task::blocking;

impl Pods {
    /// Removes a pod with all its containers; an unknown one is fine.
    ///
    /// Cancel-safe: the work goes on without its caller.
    pub(crate) async fn remove(&self, prefix: &str) -> Result<(), PodError> {
        self.exclusively(prefix, |this, pod| async move { this.remove_pod(&pod).await }).await
    }

    async fn remove_pod(&self, pod: &Arc<Pod>) -> Result<(), PodError> {
        // Another removal may have been first.
        if self.find(pod.id().as_str()).is_err() {
            return Ok(());
        }
        let denied = |denied| PodError::Denied { verb: "remove", id: pod.id().clone(), denied };
        if pod.live().state.admit(Request::Remove).map_err(denied)? == Admission::StopFirst {
            self.stop_pod(pod).await?;
        }
        let containers = self.0.containers.of_pod(pod.id());
        let removed = join_all(containers.iter().map(|c| self.0.containers.remove_container(c))).await;
        removed.into_iter().collect::<Result<Vec<_>, _>>()?;
        let place = pod.live().place;
        blocking(move || cgroup::remove(&place))
            .await
            .map_err(|source| PodError::Resources { id: pod.id().clone(), source: Arc::new(source) })?;
        self.forget(pod.id()).await?;
        self.retract(pod);
        Ok(())
    }
}
