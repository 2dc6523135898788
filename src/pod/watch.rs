//! What a monitor reports, handed to the containers it is about.

use std::sync::Arc;

use super::state::State;
use super::{Pod, Pods};
use crate::container::state::Ended;
use crate::events::EventKind;
use crate::monitor::client::{Event, Monitor};
use crate::units::UnixNanos;

impl Pods {
    /// Follows a monitor until it ends.
    pub(crate) fn watch(&self, pod: &Arc<Pod>, monitor: &Monitor) {
        let (this, pod, monitor) = (self.clone(), Arc::clone(pod), monitor.clone());
        let mut events = monitor.events();
        tokio::spawn(async move {
            while let Some(event) = events.recv().await {
                match event {
                    Event::ContainerExited { id, code, oom_killed, finished_at, .. } => {
                        let ended = Ended::Process { code, oom_killed, at: UnixNanos(finished_at) };
                        let Some(container) = this.0.containers.find_or_note(&id, &ended) else { continue };
                        // Not awaited: a start that is in flight holds this back, and other containers must not wait.
                        let containers = this.0.containers.clone();
                        tokio::spawn(async move { containers.on_exit(&container, ended).await });
                    }
                    // The caller of the exec or attach has it already.
                    Event::ExecExited { .. } | Event::AttachEnded { .. } | Event::Unknown => {}
                }
            }
            // Without a connection nobody could ever end it: it does so itself, or is killed.
            this.await_monitor_end(&monitor).await;
            this.on_monitor_end(&pod).await;
        });
    }

    /// After a stop this is the expected end. Otherwise the monitor was killed: nobody reaps, logs or knows exit codes
    /// any more, so what runs is ended and the pod is no longer Ready.
    async fn on_monitor_end(&self, pod: &Arc<Pod>) {
        let was_ready = {
            let mut live = pod.lock();
            let was_ready = live.state.is_ready();
            if was_ready {
                live.state = State::Stopping;
            }
            live.monitor = None;
            was_ready
        };
        let left =
            self.0.containers.of_pod(pod.id()).iter().any(|container| !container.live().state.is_exited());
        if !was_ready && !left {
            return;
        }
        tracing::error!(pod = %pod.id(), "the monitor of a pod has gone; ending the pod");
        self.lose_containers(pod, "the monitor of the pod was killed").await;
        if !was_ready {
            return;
        }
        let _verb = pod.verb.lock().await;
        if self.find(pod.id().as_str()).is_err() {
            return;
        }
        if let Err(error) = self.save(pod).await {
            tracing::error!(pod = %pod.id(), error = %crate::task::chain(&error), "cannot save that a pod has ended");
        }
        self.event(pod, EventKind::Stopped);
    }

    /// Ends containers that have no monitor: kills what is left in their cgroups, takes their runtime state back.
    pub(crate) async fn lose_containers(&self, pod: &Arc<Pod>, why: &str) {
        let containers = self.0.containers.of_pod(pod.id());
        let running = containers.iter().filter(|container| !container.live().state.is_exited());
        futures_util::future::join_all(running.map(|container| self.0.containers.lose(container, why))).await;
    }
}
