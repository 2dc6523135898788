//! RemovePodSandbox: stop, remove the containers, then files and record.

use std::sync::Arc;

use futures_util::future::join_all;

use super::state::{Admission, Request};
use super::{PodError, Pods, cgroup};
use crate::id::FindError;
use crate::task::{blocking, detached};

impl Pods {
    /// Removes a pod with all its containers; an unknown one is fine.
    ///
    /// Cancel-safe: the work goes on without its caller.
    pub(crate) async fn remove(&self, prefix: &str) -> Result<(), PodError> {
        let pod = match self.find(prefix) {
            Err(PodError::Find(FindError::NotFound { .. })) => return Ok(()),
            found => found?,
        };
        let this = self.clone();
        detached(async move {
            let _verb = pod.verb.lock().await;
            if this.find(pod.id().as_str()).is_err() {
                return Ok(());
            }
            let denied = |denied| PodError::Denied { verb: "remove", id: pod.id().clone(), denied };
            if pod.live().state.admit(Request::Remove).map_err(denied)? == Admission::StopFirst {
                this.stop_pod(&pod).await?;
            }
            let containers = this.0.containers.of_pod(pod.id());
            let removed = join_all(containers.iter().map(|c| this.0.containers.remove_container(c))).await;
            removed.into_iter().collect::<Result<Vec<_>, _>>()?;
            let place = pod.live().place;
            blocking(move || cgroup::remove(&place))
                .await
                .map_err(|source| PodError::Resources { id: pod.id().clone(), source: Arc::new(source) })?;
            this.forget(pod.id()).await?;
            this.retract(&pod);
            Ok(())
        })
        .await
    }
}
