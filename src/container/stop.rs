//! StopContainer: the stop signal once, a deadline that later calls may only bring forward, then SIGKILL until it is
//! gone.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::state::{Admission, Request, State};
use super::{Container, ContainerError, Containers, denied, monitor_error};
use crate::id::FindError;
use crate::monitor::client::MonitorError;

/// SIGKILL is repeated this often while a container does not go away.
const KILL_AGAIN: Duration = Duration::from_millis(500);

/// The longest grace that is kept; longer ones mean "for ever" and would overflow the clock.
const GRACE_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

impl Containers {
    /// Ends a container: its stop signal now, SIGKILL after `grace` (0: at once). Unknown and exited ones are fine.
    ///
    /// Cancel-safe: the kill goes on without its caller.
    pub(crate) async fn stop(&self, prefix: &str, grace: Duration) -> Result<(), ContainerError> {
        let container = match self.find(prefix) {
            Err(ContainerError::Find(FindError::NotFound { .. })) => return Ok(()),
            found => found?,
        };
        self.stop_container(&container, grace).await
    }

    /// As [`Containers::stop`].
    pub(crate) async fn stop_container(
        &self,
        container: &Arc<Container>,
        grace: Duration,
    ) -> Result<(), ContainerError> {
        let admission =
            container.live().state.admit(Request::Stop).map_err(denied("stop", container.id()))?;
        if admission == Admission::AlreadyDone {
            return Ok(());
        }
        let deadline = Instant::now() + grace.min(GRACE_MAX);
        let (first, deadlines) = {
            let mut stopping = container.stopping.lock().unwrap_or_else(PoisonError::into_inner);
            match &*stopping {
                Some(earlier) => {
                    earlier.send_if_modified(|current| {
                        let sooner = deadline < *current;
                        *current = deadline.min(*current);
                        sooner
                    });
                    (false, earlier.subscribe())
                }
                None => {
                    let sender = watch::Sender::new(deadline);
                    let deadlines = sender.subscribe();
                    *stopping = Some(sender);
                    (true, deadlines)
                }
            }
        };
        if first {
            let (this, own) = (self.clone(), Arc::clone(container));
            // A process that waits for its start has no handler yet: as PID 1 it would sleep through any signal.
            let grace = if own.live().state == State::Created { Duration::ZERO } else { grace };
            tokio::spawn(async move {
                this.end(&own, deadlines, grace).await;
                own.stopping.lock().unwrap_or_else(PoisonError::into_inner).take();
            });
        }
        self.wait_for_end(container).await
    }

    async fn wait_for_end(&self, container: &Arc<Container>) -> Result<(), ContainerError> {
        loop {
            let stop = {
                let stopping = container.stopping.lock().unwrap_or_else(PoisonError::into_inner);
                stopping.as_ref().map(|sender| sender.subscribe())
            };
            let Some(mut stop) = stop else {
                // The task has ended: either the container did too or it could not be killed.
                return match container.live().state.is_exited() {
                    true => Ok(()),
                    false => Err(ContainerError::Unkillable {
                        id: container.id().to_string(),
                        waited_s: self.0.settings.kill_timeout.as_secs(),
                    }),
                };
            };
            tokio::select! {
                () = container.wait_exited() => return Ok(()),
                // An error is the end of the task; a value is a new deadline. Both are looked at above.
                _ = stop.changed() => {}
            }
        }
    }

    /// Signals until the container is gone or SIGKILL has been repeated for the configured time.
    async fn end(
        &self,
        container: &Arc<Container>,
        mut deadlines: watch::Receiver<Instant>,
        grace: Duration,
    ) {
        let patience = self.0.settings.kill_timeout;
        let monitor = &container.placement.monitor;
        let id = container.id().as_str();
        if !grace.is_zero() {
            // A frozen container would sleep through its signal.
            let signal = &container.saved.stop_signal;
            if let Err(error) = monitor.kill(id, signal, false).await {
                let error = monitor_error("signal", container)(error);
                tracing::warn!(container = id, signal, error = %crate::task::chain(&error), "the stop signal failed");
            }
            loop {
                let deadline = *deadlines.borrow_and_update();
                tokio::select! {
                    () = container.wait_exited() => return,
                    () = tokio::time::sleep_until(deadline) => break,
                    changed = deadlines.changed() => if changed.is_err() { break },
                }
            }
        }
        let give_up = Instant::now() + patience;
        while Instant::now() < give_up {
            if let Err(error) = monitor.kill(id, "SIGKILL", true).await {
                if matches!(error, MonitorError::Gone) {
                    return self.lose(container, "the monitor of the pod is gone").await;
                }
                let error = monitor_error("kill", container)(error);
                tracing::warn!(container = id, error = %crate::task::chain(&error), "SIGKILL failed");
            }
            if tokio::time::timeout(KILL_AGAIN, container.wait_exited()).await.is_ok() {
                return;
            }
            self.ask_monitor(container).await;
        }
    }
}
