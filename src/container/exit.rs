//! What the monitor reports about a container's end.

use std::sync::Arc;

use super::spec::NamespaceMode;
use super::state::Ended;
use super::{Container, Containers};
use crate::events::EventKind;
use crate::monitor::client::MonitorError;
use crate::units::UnixNanos;

/// Exits that came before their container was published, at most; each waits for the moment that a creation takes.
const EARLY_MAX: usize = 64;

impl Containers {
    /// The container that a monitor speaks of. One that is not published yet will find its end when it is.
    pub(crate) fn find_or_note(&self, id: &str, ended: &Ended) -> Option<Arc<Container>> {
        let mut table = self.table();
        let known = id.parse().ok().and_then(|id| table.by_id.get(&id).cloned());
        if known.is_none() && table.early.len() < EARLY_MAX {
            table.early.insert(id.to_owned(), ended.clone());
        }
        known
    }

    /// Ends a container whose monitor is gone: kills what is left of it, takes its runtime state back.
    pub(crate) async fn lose(&self, container: &Arc<Container>, why: &str) {
        self.reclaim_unmonitored(container).await;
        self.on_exit(container, Ended::Lost { message: why.to_owned(), at: UnixNanos::now() }).await;
    }

    /// Asks the monitor what became of a container that should have ended, in case its report was lost.
    pub(super) async fn ask_monitor(&self, container: &Arc<Container>) {
        let status = match container.placement.monitor.status().await {
            Ok(status) => status,
            Err(MonitorError::Gone) => return self.lose(container, "the monitor of the pod is gone").await,
            Err(_) => return,
        };
        match status.containers.iter().find(|seen| seen.id == container.id().as_str()) {
            Some(seen) => {
                if let Some(exit) = &seen.exit {
                    let at = UnixNanos(exit.finished_at);
                    let ended = Ended::Process { code: exit.code, oom_killed: exit.oom_killed, at };
                    self.on_exit(container, ended).await;
                }
            }
            None => {
                let message = "the monitor does not know it".to_owned();
                self.on_exit(container, Ended::Lost { message, at: UnixNanos::now() }).await;
            }
        }
    }

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
        self.end_stragglers(container);
    }

    /// Where the first process was not PID 1 of a namespace of its own, the others of the container outlive it: they
    /// are killed now, or they would hold ports and files until the container is removed.
    fn end_stragglers(&self, container: &Arc<Container>) {
        if container.spec().security.namespaces.pid == NamespaceMode::Container {
            return;
        }
        let container = Arc::clone(container);
        tokio::spawn(async move {
            // Not beside a removal: on cgroup v1 runc freezes the container for this, and its delete refuses one that
            // is frozen.
            let _gate = container.gate.lock().await;
            // A monitor that is gone leaves this to the reclaim.
            container.placement.monitor.kill(container.id().as_str(), "SIGKILL", true).await.ok();
        });
    }
}
