//! What the monitor reports about a container's end.

use std::sync::Arc;

use super::state::Ended;
use super::{Container, Containers};
use crate::events::EventKind;

impl Containers {
    /// Makes a container Exited. Later reports about the same container change nothing.
    pub(crate) async fn on_exit(&self, container: &Arc<Container>, ended: Ended) {
        let _gate = container.gate.lock().await;
        self.apply_exit(container, ended).await;
    }

    /// As [`Containers::on_exit`], for a caller that holds the gate.
    pub(super) async fn apply_exit(&self, container: &Arc<Container>, ended: Ended) {
        {
            let mut live = container.lock();
            if live.state.is_exited() {
                return;
            }
            live.state = live.state.clone().exited(ended);
            live.pid = None;
        }
        if let Err(error) = self.save(container).await {
            // The monitor still knows: recovery asks it again.
            tracing::error!(container = %container.id(), error = %crate::task::chain(&error), "cannot save an exit");
        }
        container.exited.send_replace(true);
        self.event(container, EventKind::Stopped);
    }
}
