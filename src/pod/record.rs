//! What is kept about a pod, in the run directory's database.
//!
//! Crash rules: the record is written with `state: None` (an intent) before the first side effect, again once the pod
//! is Ready, and removed last. Recovery takes back an intent and adopts the rest. New fields need `#[serde(default)]`.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::spec::PodSpec;
use super::state::State;
use crate::container::hardened;
use crate::container::place::PodPlace;
use crate::container::spec::{Namespaces, Resources};
use crate::id::PodId;
use crate::network::Link;
use crate::records::Rows;
use crate::units::UnixNanos;

/// What never changes about a pod.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Saved {
    pub id: PodId,
    pub spec: Arc<PodSpec>,
    pub created_at: UnixNanos,
    /// Name of the handler that was chosen; never empty.
    pub handler: String,
    /// The first of the host ids that the node gave the pod; `None` where the pod named its own or has the host's.
    #[serde(default)]
    pub first_id: Option<u32>,
}

impl Saved {
    /// The pod's namespaces: as asked for, with the ids that the node gave.
    pub(crate) fn namespaces(&self) -> Namespaces {
        let mut namespaces = self.spec.namespaces().clone();
        if let Some(first) = self.first_id {
            namespaces.user = Some(hardened::ids(first));
        }
        namespaces
    }
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
    pub place: Option<PodPlace>,
    #[serde(default)]
    pub resources: Option<Resources>,
    #[serde(default)]
    pub overhead: Option<Resources>,
}

/// The records of all pods, by id.
pub(crate) type Records = Rows<PodRecord>;

impl crate::records::Row for PodRecord {
    const TREE: &'static str = "pods";

    fn key(&self) -> String {
        self.saved.id.to_string()
    }
}
