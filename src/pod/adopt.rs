//! Taking up pods that an earlier daemon left, for `daemon/recover.rs`.

use std::sync::{Arc, Mutex};

use super::record::PodRecord;
use super::state::State;
use super::{Live, Pod, PodError, Pods};
use crate::container::Placement;
use crate::id::{FindError, PodId};
use crate::monitor::client::Monitor;

impl Pods {
    /// Puts a recorded pod into the table. Without a monitor a Ready pod is Stopping from now on.
    pub(crate) fn adopt(&self, record: PodRecord, monitor: Option<Monitor>) -> Result<Arc<Pod>, PodError> {
        let PodRecord { saved, state, link, place, resources, overhead } = record;
        let no_handler = || PodError::NoHandler {
            wanted: saved.handler.clone(),
            known: self.handlers().keys().cloned().collect::<Vec<_>>().join(", "),
        };
        let handler = self.handlers().get(&saved.handler).cloned().ok_or_else(no_handler)?;
        let place = place.ok_or_else(|| FindError::not_found::<PodId>(saved.id.as_str()))?;
        let state = match (state, &monitor) {
            (Some(State::Ready) | None, None) => State::Stopping,
            (Some(state), _) => state,
            (None, Some(_)) => State::Ready,
        };
        let pod = Arc::new(Pod {
            handler,
            live: Mutex::new(Live { state, monitor, link, place: Arc::new(place), resources, overhead }),
            saved,
            verb: tokio::sync::Mutex::default(),
            creating: tokio::sync::RwLock::default(),
            sampler: Default::default(),
        });
        self.publish(&pod);
        Ok(pod)
    }

    /// Takes back a run that a crash cut off. Its network is given back by the network's own collection.
    pub(crate) async fn take_back_intent(&self, id: &PodId, monitor: Option<Monitor>) {
        if let Some(monitor) = monitor {
            self.end_monitor(&monitor).await;
        }
        if let Err(error) = self.forget(id).await {
            tracing::error!(pod = %id, error = %crate::task::chain(&error), "cannot take back a pod");
        }
    }
}

impl Pod {
    /// As [`Pod::placement`], with a monitor that answers nothing if the pod has none: containers of a stopped pod are
    /// still listed and removed.
    pub(crate) fn any_placement(&self) -> Placement {
        self.placement().unwrap_or_else(|| Placement {
            pod: self.id().clone(),
            monitor: Monitor::gone(),
            handler: Arc::clone(&self.handler),
            place: self.live().place,
            log_directory: self.spec().log_directory.clone(),
        })
    }
}
