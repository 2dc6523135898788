//! The bus of lifecycle events that GetContainerEvents reads.
//!
//! Bounded: a subscriber that falls more than [`BACKLOG`] events behind is told so and must list again; publishing never
//! waits. An event says what happened to whom; the edge adds the statuses when it delivers it.

use tokio::sync::broadcast;

use crate::id::PodId;
use crate::units::UnixNanos;

/// Events kept for a slow subscriber: several times what 500 pods emit while the kubelet relists (1 s).
const BACKLOG: usize = 4096;

/// CRI's ContainerEventType.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EventKind {
    Created,
    Started,
    Stopped,
    Deleted,
}

/// Something happened to a container, or to a pod (then `id` is the pod's own).
#[derive(Debug, Clone)]
pub(crate) struct Event {
    pub id: String,
    pub pod: PodId,
    pub kind: EventKind,
    pub at: UnixNanos,
}

/// The bus.
#[derive(Debug, Clone)]
pub(crate) struct Bus(broadcast::Sender<Event>);

impl Default for Bus {
    fn default() -> Self {
        Self(broadcast::channel(BACKLOG).0)
    }
}

impl Bus {
    pub(crate) fn publish(&self, id: &str, pod: &PodId, kind: EventKind) {
        // An error means that nobody subscribes at this moment.
        self.0.send(Event { id: id.to_owned(), pod: pod.clone(), kind, at: UnixNanos::now() }).ok();
    }

    pub(crate) fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.0.subscribe()
    }
}
