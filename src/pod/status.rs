//! What is known about a pod at one moment, as plain data for the lists, the statuses and the events.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use crate::id::PodId;
use crate::pod::spec::PodSpec;
use crate::units::UnixNanos;

/// A pod at one moment.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct PodView {
    pub(crate) id: PodId,
    pub(crate) spec: Arc<PodSpec>,
    /// False once stopped, or when its monitor is gone; never true again.
    pub(crate) ready: bool,
    /// Never 0.
    pub(crate) created_at: UnixNanos,
    /// The primary address first; empty in the host's network.
    pub(crate) addresses: Vec<IpAddr>,
    /// The pinned network namespace; `None` in the host's network.
    pub(crate) netns: Option<PathBuf>,
    /// While the pod has a monitor.
    pub(crate) monitor_pid: Option<u32>,
}
