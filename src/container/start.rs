//! StartContainer: Created → Running.

use super::state::{Ended, Request};
use super::{ContainerError, Containers, denied, monitor_error, now};
use crate::events::EventKind;
use crate::monitor::client::{ContainerState, MonitorError};
use crate::task::chain;

impl Containers {
    /// Starts a created container. If it fails, the container is Exited with code 128 and reason `StartError`.
    pub(crate) async fn start(&self, prefix: &str) -> Result<(), ContainerError> {
        let container = self.find(prefix)?;
        // Held to the end: an exit that the monitor reports meanwhile is applied after this.
        let _gate = container.gate.lock().await;
        container.live().state.admit(Request::Start).map_err(denied("start", container.id()))?;
        let monitor = &container.placement.monitor;
        // Taken before: a short-lived process may have ended when the monitor answers.
        let at = now();
        let started = match monitor.start(container.id().as_str()).await {
            // An earlier daemon's start that was done and never answered.
            Err(MonitorError::WrongState { state: ContainerState::Running }) => Ok(()),
            started => started,
        };
        if let Err(error) = started {
            // After a timeout it may run all the same.
            monitor.kill(container.id().as_str(), "SIGKILL", true).await.ok();
            let error = monitor_error("start", &container)(error);
            let ended = Ended::StartFailed { message: chain(&error), at: now() };
            self.apply_exit(&container, ended).await;
            return Err(error);
        }
        {
            let mut live = container.lock();
            live.state = live.state.clone().started(at);
        }
        if let Err(error) = self.save(&container).await {
            // It runs, and the monitor knows since when: recovery asks it.
            tracing::error!(container = %container.id(), error = %chain(&error), "cannot save a start");
        }
        self.event(&container, EventKind::Started);
        Ok(())
    }
}
