//! RemoveContainer: kill what runs, then runtime state, bundle, rootfs, record. The log file is the kubelet's.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::state::{Admission, Request};
use super::{Container, ContainerError, Containers, denied, monitor_error};
use crate::events::EventKind;
use crate::monitor::client::MonitorError;
use crate::task::detached;

impl Containers {
    /// Removes a container, killing it first if it runs. An unknown one is fine. Runs to its end without its caller.
    pub(crate) async fn remove(&self, prefix: &str) -> Result<(), ContainerError> {
        let container = match self.find(prefix) {
            Err(ContainerError::NotFound(_)) => return Ok(()),
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
            // No update may write the record again once it is gone.
            let _gate = container.gate.lock().await;
            this.delete_in_runtime(&container).await?;
            this.take_back(&container.saved).await?;
            this.retract(&container);
            this.event(&container, EventKind::Deleted);
            Ok(())
        })
        .await
    }

    /// Removes what the OCI runtime keeps about an exited container: state and cgroup. Repeats are fine.
    pub(crate) async fn delete_in_runtime(&self, container: &Arc<Container>) -> Result<(), ContainerError> {
        let stop = {
            let stopping = container.stopping.lock().unwrap_or_else(PoisonError::into_inner);
            stopping.as_ref().map(|sender| sender.subscribe())
        };
        if let Some(mut stop) = stop {
            // The container has ended, but the kill that ended it may be at work still. For a kill of all processes runc
            // freezes the cgroup (v1), and a delete meanwhile fails: "invalid state transition from stopped to paused".
            while stop.changed().await.is_ok() {}
        }
        match container.placement.monitor.delete(container.id().as_str()).await {
            // Without a monitor there is nobody to ask; recovery has cleaned up what it left.
            Ok(()) | Err(MonitorError::NoSuchContainer { .. } | MonitorError::Gone) => Ok(()),
            Err(error) => Err(monitor_error("delete", container)(error)),
        }
    }
}
