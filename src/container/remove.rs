//! RemoveContainer: kill what runs, then runtime state, bundle, rootfs, record. The log file is the kubelet's.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::state::{Admission, Request};
use super::{Container, ContainerError, Containers, denied, monitor_error};
use crate::events::EventKind;
use crate::id::FindError;
use crate::monitor::client::MonitorError;
use crate::task::detached;

impl Containers {
    /// Removes a container, killing it first if it runs. An unknown one is fine. Runs to its end without its caller.
    pub(crate) async fn remove(&self, prefix: &str) -> Result<(), ContainerError> {
        let container = match self.find(prefix) {
            Err(ContainerError::Find(FindError::NotFound { .. })) => return Ok(()),
            found => found?,
        };
        self.remove_container(&container).await
    }

    /// As [`Containers::remove`].
    pub(crate) async fn remove_container(&self, container: &Arc<Container>) -> Result<(), ContainerError> {
        let (this, container) = (self.clone(), Arc::clone(container));
        detached(async move {
            let _removal = container.removal.lock().await;
            if !this.table().by_id.contains_key(container.id()) {
                return Ok(());
            }
            let admission =
                container.live().state.admit(Request::Remove).map_err(denied("remove", container.id()))?;
            if admission == Admission::KillFirst {
                this.stop_container(&container, Duration::ZERO).await?;
            }
            stop_is_over(&container).await;
            // No update may write the record again once it is gone.
            let _gate = container.gate.lock().await;
            this.delete_gated(&container).await?;
            this.take_back(&container.saved).await?;
            this.retract(&container);
            this.event(&container, EventKind::Deleted);
            Ok(())
        })
        .await
    }

    /// Removes what the OCI runtime keeps about an exited container: state and cgroup. Repeats are fine.
    pub(crate) async fn delete_in_runtime(&self, container: &Arc<Container>) -> Result<(), ContainerError> {
        stop_is_over(container).await;
        let _gate = container.gate.lock().await;
        self.delete_gated(container).await
    }

    /// As [`Containers::delete_in_runtime`], for a caller that holds the gate and has waited for [`stop_is_over`].
    ///
    /// Not beside a kill of all processes: on cgroup v1 runc freezes the container for it, and its delete refuses one that
    /// is frozen ("invalid state transition from stopped to paused").
    async fn delete_gated(&self, container: &Arc<Container>) -> Result<(), ContainerError> {
        match container.placement.monitor.delete(container.id().as_str()).await {
            // Without a monitor there is nobody to ask; recovery has cleaned up what it left.
            Ok(()) | Err(MonitorError::NoSuchContainer { .. } | MonitorError::Gone) => Ok(()),
            Err(error) => Err(monitor_error("delete", container)(error)),
        }
    }
}

/// Returns once no stop of an exited container is at work: the kill that ended it may come back after its end was seen. Not
/// to be called with the gate held, which the stop may want.
async fn stop_is_over(container: &Container) {
    let stop = {
        let stopping = container.stopping.lock().unwrap_or_else(PoisonError::into_inner);
        stopping.as_ref().map(|sender| sender.subscribe())
    };
    if let Some(mut stop) = stop {
        // A value is a new deadline, an error the end of the stop.
        while stop.changed().await.is_ok() {}
    }
}
