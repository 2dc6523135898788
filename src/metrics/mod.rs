//! Metrics: of pods and containers for ListPodSandboxMetrics, and of the daemon itself for Prometheus.
//!
//! ```text
//! catalogue.rs  every metric of pods and containers: name, help, type, labels
//! reading.rs    one look at a container or a pod, and the samples that follow from it
//! proc.rs       what /proc tells of a container's processes
//! disk.rs       which device, how large the file system is, whether the host swaps
//! own.rs        what the daemon counts about itself
//! ```
//!
//! Names, labels and units are cAdvisor's, because dashboards and alerts are written against them. What the kernel does
//! not tell is left out: a missing sample can be seen, an invented 0 cannot. CRI values are whole numbers, so seconds
//! are whole seconds.

mod catalogue;
mod disk;
pub(crate) mod own;
mod proc;
mod reading;

pub(crate) use catalogue::{BASE_LABELS, Kind, Metric};
pub(crate) use disk::{FileSystem, device_name, host_swap};
pub(crate) use proc::Processes;
pub(crate) use reading::{ContainerReading, Sample, network_samples};
