//! What is known about a container at one moment, as plain data for the lists, the statuses and the events.
//!
//! The table makes a [`ContainerView`] under its lock and hands it out; nothing here refers back to the table.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use crate::container::spec::{ContainerSpec, Resources};
use crate::id::{ContainerId, PodId};
use crate::units::UnixNanos;

/// A container at one moment.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ContainerView {
    pub(crate) id: ContainerId,
    pub(crate) pod_id: PodId,
    pub(crate) spec: Arc<ContainerSpec>,
    pub(crate) state: Phase,
    /// Never 0.
    pub(crate) created_at: UnixNanos,
    /// 0 while [`Phase::Created`], and for a container that never started.
    pub(crate) started_at: UnixNanos,
    /// 0 until [`Phase::Exited`].
    pub(crate) finished_at: UnixNanos,
    /// 128 plus the signal's number when a signal ended it; 0 until [`Phase::Exited`].
    pub(crate) exit_code: i32,
    /// `Completed`, `Error`, `OOMKilled`, `StartError` or `Unknown` when exited; empty before.
    pub(crate) reason: String,
    /// For people; may be empty.
    pub(crate) message: String,
    /// Digest of the image's config as text, `sha256:…`: the same value as the image's own id. Never empty, and kept
    /// when the image is gone.
    pub(crate) image_id: String,
    /// A digest reference, `name@sha256:…`, or the id when the image has none. Never empty.
    pub(crate) image_ref: String,
    /// A tag of the image, or as in the request when it had none. Never empty, and kept when the image is gone.
    pub(crate) image_name: String,
    /// Whom the first process runs as.
    pub(crate) user: Option<UserIds>,
    /// The limits in force: the request's, then every update's.
    pub(crate) resources: Resources,
    /// Absolute; `None` when no log is kept.
    pub(crate) log_path: Option<PathBuf>,
    /// What StopContainer sends, from the request or the image; a name such as `SIGTERM` or `SIGRTMIN+3`.
    pub(crate) stop_signal: String,
    /// While [`Phase::Created`] or [`Phase::Running`].
    pub(crate) pid: Option<u32>,
    /// The id of the image behind each image mount, by the mount's path in the container.
    pub(crate) mounted_images: BTreeMap<PathBuf, String>,
}

/// Where a container stands, as the CRI sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Phase {
    Created,
    Running,
    Exited,
}

/// The ids a container's first process starts with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct UserIds {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Includes `gid`.
    pub(crate) groups: Vec<u32>,
}
