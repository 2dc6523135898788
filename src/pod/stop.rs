//! StopPodSandbox: no new containers, end those there are, give the network back, end the monitor.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;

use super::state::{Admission, Request, State};
use super::{MONITOR_END, Pod, PodError, Pods};
use crate::events::EventKind;
use crate::monitor::client::Monitor;

impl Pods {
    /// Stops a pod; unknown and stopped ones are fine. What an earlier call could not reclaim is tried again.
    ///
    /// Cancel-safe: the work goes on without its caller.
    pub(crate) async fn stop(&self, prefix: &str) -> Result<(), PodError> {
        self.exclusively(prefix, |this, pod| async move { this.stop_pod(&pod).await }).await
    }

    /// As [`Pods::stop`], for a caller that holds the verb lock.
    pub(super) async fn stop_pod(&self, pod: &Arc<Pod>) -> Result<(), PodError> {
        let admission = pod.live().state.admit(Request::Stop).map_err(|denied| PodError::Denied {
            verb: "stop",
            id: pod.id().clone(),
            denied,
        })?;
        if admission == Admission::AlreadyDone {
            return Ok(());
        }
        // From here no container is created; those in creation are waited for and then ended below.
        pod.lock().state = State::Stopping;
        drop(pod.creating.write().await);
        self.save(pod).await?;

        // CRI v1: "If there are any running containers in the sandbox, they must be forcibly terminated."
        let containers = self.0.containers.of_pod(pod.id());
        let ended = join_all(containers.iter().map(|container| async {
            self.0.containers.stop_container(container, Duration::ZERO).await?;
            self.0.containers.delete_in_runtime(container).await
        }));
        ended.await.into_iter().collect::<Result<Vec<_>, _>>()?;

        let live = pod.live();
        if let Some(link) = &live.link {
            let netns =
                live.monitor.as_ref().map(|monitor| PathBuf::from(format!("/proc/{}/ns/net", monitor.pid())));
            let detached = self.0.network.detach(pod.id(), Some(link), netns.as_deref()).await;
            detached.map_err(|source| PodError::Network {
                action: "give back",
                name: pod.spec().identity.name.clone(),
                source: Arc::new(source),
            })?;
            pod.lock().link = None;
        }
        if let Some(monitor) = &live.monitor {
            self.end_monitor(monitor).await;
            pod.lock().monitor = None;
        }
        pod.lock().state = State::Stopped;
        self.save(pod).await?;
        self.event(pod, EventKind::Stopped);
        Ok(())
    }

    /// Asks a monitor to end and waits for it; its containers are gone already.
    pub(super) async fn end_monitor(&self, monitor: &Monitor) {
        if let Err(error) = monitor.shutdown().await {
            tracing::warn!(monitor = monitor.pid(), error = %error, "a monitor refused to end");
        }
        self.await_monitor_end(monitor).await;
    }

    /// Kills a monitor that should end and does not.
    pub(super) async fn await_monitor_end(&self, monitor: &Monitor) {
        if tokio::time::timeout(MONITOR_END, monitor.closed()).await.is_err() {
            tracing::warn!(monitor = monitor.pid(), "killing a monitor that did not end");
            monitor.kill_process();
            if tokio::time::timeout(MONITOR_END, monitor.closed()).await.is_err() {
                tracing::error!(
                    monitor = monitor.pid(),
                    "a monitor survives SIGKILL; it hangs in the kernel"
                );
            }
        }
    }
}
