//! The bus of lifecycle events that GetContainerEvents reads.
//!
//! Bounded: a subscriber that falls more than [`BACKLOG`] events behind is told so and must list again; publishing never
//! waits. An event says what happened to whom; the edge adds the statuses when it delivers it.

use std::any::Any;
use std::sync::Arc;

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
    /// What has to live until every subscriber has heard of its end.
    _kept: Option<Kept>,
}

/// Something that is in no table any more and has to be spoken of once more.
pub(crate) type Kept = Arc<dyn Any + Send + Sync>;

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
        self.send(id, pod, kind, None);
    }

    /// The last event of a pod. `kept` lives until every subscriber of this moment has received it or is gone.
    pub(crate) fn publish_end(&self, pod: &PodId, kept: Kept) {
        self.send(pod.as_str(), pod, EventKind::Deleted, Some(kept));
    }

    fn send(&self, id: &str, pod: &PodId, kind: EventKind, kept: Option<Kept>) {
        let event = Event { id: id.to_owned(), pod: pod.clone(), kind, at: UnixNanos::now(), _kept: kept };
        // An error means that nobody subscribes at this moment.
        self.0.send(event).ok();
    }

    pub(crate) fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.0.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_has_ended_lives_until_the_last_subscriber_has_heard_of_it() {
        let (bus, pod) = (Bus::default(), PodId::random());
        let (mut first, mut second) = (bus.subscribe(), bus.subscribe());
        let kept = Arc::new(());
        let seen = Arc::downgrade(&kept);
        bus.publish_end(&pod, kept);
        drop(first.recv().await.expect("the event"));
        assert!(seen.upgrade().is_some(), "the second has not heard of it");
        let event = second.recv().await.expect("the event");
        assert!(seen.upgrade().is_some(), "the event is still looked at");
        drop(event);
        assert!(seen.upgrade().is_none());
        bus.publish_end(&pod, Arc::new(()));
    }
}
