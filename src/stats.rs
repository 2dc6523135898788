//! What containers and pods use, as plain data.
//!
//! One [`Usage`] is one reading of one cgroup. A part that the machine does not account for (PSI on cgroup v1, io
//! without the controller) is `None` and never 0.

use std::path::PathBuf;

use crate::units::{Bytes, UnixNanos};

/// One reading of a cgroup.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Usage {
    /// When it was read; never 0.
    pub(crate) at: UnixNanos,
    pub(crate) cpu: Option<CpuUsage>,
    pub(crate) memory: Option<MemoryUsage>,
    pub(crate) swap: Option<SwapUsage>,
    /// How long tasks waited for disks.
    pub(crate) io: Option<Pressure>,
    /// Tasks, threads included.
    pub(crate) processes: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct CpuUsage {
    /// All cores together, since the cgroup was made.
    pub(crate) total_ns: u64,
    /// Billionths of a core since the previous reading; `None` at the first.
    pub(crate) nano_cores: Option<u64>,
    pub(crate) pressure: Option<Pressure>,
}

#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct MemoryUsage {
    /// With all page cache.
    pub(crate) usage: Bytes,
    /// Usage without inactive page cache.
    pub(crate) working_set: Bytes,
    /// Limit minus working set; `None` without a limit.
    pub(crate) available: Option<Bytes>,
    /// Anonymous memory.
    pub(crate) rss: Bytes,
    pub(crate) page_faults: u64,
    pub(crate) major_page_faults: u64,
    pub(crate) pressure: Option<Pressure>,
}

#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct SwapUsage {
    pub(crate) usage: Bytes,
    /// `None` without a limit.
    pub(crate) available: Option<Bytes>,
}

/// Pressure stall information of one resource (cgroup v2).
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Pressure {
    pub(crate) some: Stall,
    pub(crate) full: Stall,
}

/// One line of a pressure file.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Stall {
    /// The file has microseconds.
    pub(crate) total_ns: u64,
    /// Per cent of the last 10, 60 and 300 seconds.
    pub(crate) avg10: f64,
    pub(crate) avg60: f64,
    pub(crate) avg300: f64,
}

/// A container's share.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct ContainerUsage {
    pub(crate) cgroup: Usage,
    pub(crate) writable_layer: Option<DiskUsage>,
}

/// A pod's share. Its cgroup holds the containers' and what the pod itself needs.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct PodUsage {
    pub(crate) cgroup: Usage,
    /// `None` in the host's network. The interface with the pod's address comes first.
    pub(crate) network: Option<Vec<InterfaceUsage>>,
}

#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct InterfaceUsage {
    pub(crate) name: String,
    pub(crate) rx_bytes: u64,
    pub(crate) rx_errors: u64,
    pub(crate) tx_bytes: u64,
    pub(crate) tx_errors: u64,
}

/// Space that a folder takes on its file system.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct DiskUsage {
    /// When it was measured; never 0.
    pub(crate) at: UnixNanos,
    /// A path on the file system, from which the kubelet finds the device.
    pub(crate) path: PathBuf,
    pub(crate) used: Bytes,
    pub(crate) inodes: u64,
}
