//! What is kept about a pod, in the run directory's database.
//!
//! Crash rules: the record is written with `state: None` (an intent) before the first side effect, again once the pod
//! is Ready, and removed last. Recovery takes back an intent and adopts the rest. New fields need `#[serde(default)]`.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::spec::PodSpec;
use super::state::State;
use crate::container::bundle::PodView;
use crate::container::spec::Resources;
use crate::id::PodId;
use crate::network::Link;
use crate::records::{RecordError, Tree};
use crate::units::UnixNanos;

/// What never changes about a pod.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Saved {
    pub id: PodId,
    pub spec: Arc<PodSpec>,
    pub created_at: UnixNanos,
    /// Name of the handler that was chosen; never empty.
    pub handler: String,
}

/// The stored form of a pod.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct PodRecord {
    pub saved: Saved,
    /// `None`: the run was intended and not finished.
    pub state: Option<State>,
    #[serde(default)]
    pub link: Option<Link>,
    #[serde(default)]
    pub view: Option<PodView>,
    #[serde(default)]
    pub resources: Option<Resources>,
}

/// The records of all pods.
#[derive(Debug, Clone)]
pub(crate) struct Records(pub(crate) Tree<PodRecord>);

impl Records {
    /// Durable when it returns.
    pub(crate) async fn put(&self, record: PodRecord) -> Result<(), RecordError> {
        self.0.put_async(record.saved.id.to_string(), record).await
    }

    pub(crate) async fn remove(&self, id: &PodId) -> Result<(), RecordError> {
        self.0.remove_async(id.to_string()).await
    }
}
