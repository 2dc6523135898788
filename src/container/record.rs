//! What is kept about a container, in the run directory's database.
//!
//! Crash rules: the record is written with `state: None` (an intent) before the first side effect and again once the
//! container is Created. Recovery takes back an intent and adopts the rest. The record is removed last, after
//! everything it speaks of is gone. New fields need `#[serde(default)]`: an older daemon's records must stay readable.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::spec::{ContainerSpec, Resources};
use super::state::State;
use super::user::ContainerUser;
use crate::id::{ContainerId, Digest, PodId};
use crate::records::Rows;
use crate::units::UnixNanos;

/// What never changes about a container.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Saved {
    pub id: ContainerId,
    pub pod: PodId,
    pub spec: Arc<ContainerSpec>,
    pub created_at: UnixNanos,
    pub image_id: Digest,
    /// A repo digest if the image has one, else its id: stays when the image goes (the kubelet needs it non-empty).
    pub image_ref: String,
    /// How the status names the image: a tag of it, or what the request said.
    pub image_name: String,
    pub user: ContainerUser,
    /// A name such as `SIGTERM`.
    pub stop_signal: String,
    /// Absolute.
    pub log_path: Option<PathBuf>,
    /// The id of the image behind each image mount, by the mount's path in the container.
    #[serde(default)]
    pub mounted_images: BTreeMap<PathBuf, String>,
    /// cgroup path in the form of the OCI config.
    pub cgroup: String,
}

/// The stored form of a container.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ContainerRecord {
    pub saved: Saved,
    /// `None`: creation was intended and not finished.
    pub state: Option<State>,
    #[serde(default)]
    pub pid: Option<i32>,
    #[serde(default)]
    pub resources: Resources,
}

/// The records of all containers, by id.
pub(crate) type Records = Rows<ContainerRecord>;

impl crate::records::Row for ContainerRecord {
    const TREE: &'static str = "containers";

    fn key(&self) -> String {
        self.saved.id.to_string()
    }
}
