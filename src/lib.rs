//! Brig is a Kubernetes container runtime: a CRI server with a sandbox of its own.
//!
//! This file is the map. Modules stand in reading order, and calls go down this list, never up.
//!
//! # Processes
//!
//! ```text
//! kubelet / crictl / brig ──gRPC, unix socket──▶ brigd ──unix socket──▶ brig-monitor (one per pod)
//!                                                                          │ exec
//!                                                                          ▼
//!                                            brig-sandbox | runc | crun | runsc  (create, start, …)
//! ```
//!
//! # Words
//!
//! | word | means |
//! | --- | --- |
//! | pod | CRI's PodSandbox |
//! | container | CRI's Container |
//! | handler | what a RuntimeClass names: an OCI runtime binary plus its settings |
//! | sandbox | our bundled OCI runtime, the binary `brig-sandbox` |
//! | monitor | the per-pod supervisor process, the binary `brig-monitor` |
//! | image, layer, blob | as in the OCI image specification |
//! | record | what we keep about a pod, a container or an image |

#[cfg(feature = "daemon")]
mod cli;
#[cfg(feature = "daemon")]
mod daemon;

#[cfg(feature = "daemon")]
mod container;
#[cfg(feature = "daemon")]
mod cri;
#[cfg(feature = "daemon")]
mod events;
#[cfg(feature = "daemon")]
mod image;
#[cfg(feature = "daemon")]
mod network;
#[cfg(feature = "daemon")]
mod pod;
#[cfg(feature = "daemon")]
mod stats;

mod monitor;
mod sandbox;

#[cfg(feature = "daemon")]
mod records;
mod sys;
#[cfg(feature = "daemon")]
mod task;

#[cfg(feature = "daemon")]
mod id;
#[cfg(feature = "daemon")]
pub mod proto;
#[cfg(feature = "daemon")]
mod units;

#[cfg(feature = "daemon")]
pub use cli::main as cli_main;
#[cfg(feature = "daemon")]
pub use daemon::main as daemon_main;
pub use monitor::main as monitor_main;
pub use sandbox::main as sandbox_main;
