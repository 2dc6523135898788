//! StartContainer: Created → Running.

use super::state::{Ended, Request};
use super::{ContainerError, Containers, denied, monitor_error, now};
use crate::events::EventKind;
use crate::task::chain;

impl Containers {
    /// Starts a created container. If it fails, the container is Exited with code 128 and reason `StartError`.
    pub(crate) async fn start(&self, prefix: &str) -> Result<(), ContainerError> {
        let container = self.find(prefix)?;
        // Held to the end: an exit that the monitor reports meanwhile is applied after this.
        let _gate = container.gate.lock().await;
        container.live().state.admit(Request::Start).map_err(denied("start", container.id()))?;
        // Taken before: a short program has ended, at a time that the monitor takes, before its start is answered.
        let at = now();
        if let Err(error) = container.placement.monitor.start(container.id().as_str()).await {
            let error = monitor_error("start", &container)(error);
            let ended = Ended::StartFailed { message: chain(&error), at: now() };
            self.apply_exit(&container, ended).await;
            return Err(error);
        }
        {
            let mut live = container.lock();
            live.state = live.state.clone().started(at);
        }
        self.save(&container).await?;
        self.event(&container, EventKind::Started);
        Ok(())
    }
}
