//! Brig is a Kubernetes container runtime: a CRI server with a sandbox of its own.
//!
//! This file is the map. Modules stand in reading order, and calls go down this list, never up; `tests/it/tidy.rs` holds
//! them to it.
//!
//! # Processes
//!
//! ```text
//! kubelet / crictl / brig ──gRPC, unix socket──▶ brigd ──unix socket──▶ brig-monitor (one per pod)
//!                                                                          │ exec
//!                                                                          ▼
//!                                            brig-sandbox | runc | crun | runsc  (create, start, …)
//!                                                                          ▼
//!                                                              the container's processes
//! ```
//!
//! `brigd` may be killed at any moment and nothing else stops: the monitor holds the pod's namespaces, pipes and exit
//! codes, and is found again by its socket. `brig-sandbox` is short-lived. `brig` speaks CRI to `brigd`.
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
//!
//! # Walks
//!
//! Each is a straight line; ⇒ is a process boundary.
//!
//! ```text
//! RunPodSandbox    cri/runtime → pod/run → pod/record → monitor/spawn ⇒ monitor/namespaces → network → publish
//! CreateContainer  cri/runtime → pod → container/create → container/record → image/rootfs → container/bundle
//!                  → monitor/client ⇒ monitor/driver ⇒ sandbox/create → sandbox/init → sys
//! PullImage        cri/image → image/pull → image/registry → image/unpack → image/layers → image/index
//! ExecSync         cri/runtime → container/exec → monitor/client ⇒ monitor/driver ⇒ sandbox/exec
//! Exec             cri/runtime → stream (a URL); later stream/server → stream/exec → container/exec → monitor/exec ⇒ …
//! Attach           the same, through stream/attach → container/attach → monitor/attach ⇒ monitor/io
//! PortForward      the same, through stream/forward → network/netns
//! ```
//!
//! # Decisions
//!
//! - The monitor comes before the network and lives inside the pod's namespaces, so that `/proc/PID/ns/…` of the monitor
//!   names them for as long as the pod lives. Nothing is mounted on the host to pin a namespace.
//! - Monitors of the bundled sandbox share one small mount namespace (`monitor/spawn.rs`). Starting a container copies
//!   its monitor's mount table; the host's grows with every pod and volume, this one does not. Host paths reach the
//!   sandbox as detached mounts, by descriptor. Foreign runtimes need paths and get the host's mount namespace.
//! - Overlays and our own files are reached through a detached mount of the directory they are in (`sys/detached.rs`):
//!   to copy a mount the kernel looks at all its children, and a node's big filesystem has thousands.
//! - The registry client is ours, on hyper, and not `oci-client`: containerd-style `hosts.toml` (path prefixes, headers,
//!   authorities and fallbacks per host) cannot be said through it, and which host sees a credential has to be decided in
//!   one place.
//! - nftables is spoken over netlink by a small writer of ours: calling `nft` would cost more than all the rest of a pod's
//!   network, and the crates for it lack the typed maps that host ports need.
//! - Where systemd runs on cgroup v2 it makes the cgroups: two writers in one tree put each other's limits back. It is
//!   asked over D-Bus by a small client of ours (`sys/systemd`): five calls, one signal and a dozen types are some three
//!   hundred lines, and the published clients bring an async runtime or a whole object model into the sandbox. On v1
//!   there is no systemd driver: a device rule by number cannot be said to it there without opening more.
//! - An event says what happened to whom; the edge adds statuses when it delivers it. A bus that carried statuses would
//!   have to know the modules above it.
//! - The feature `daemon` is the line between the daemon and the two helpers: without it nothing of tokio, tonic or prost
//!   can be linked into them.

#[cfg(feature = "daemon")]
mod cli;
#[cfg(feature = "daemon")]
mod daemon;

#[cfg(feature = "daemon")]
mod cri;
#[cfg(feature = "daemon")]
mod stream;
#[cfg(feature = "daemon")]
mod pod;
#[cfg(feature = "daemon")]
mod container;
#[cfg(feature = "daemon")]
mod image;
#[cfg(feature = "daemon")]
mod network;
#[cfg(feature = "daemon")]
mod events;
#[cfg(feature = "daemon")]
mod metrics;
#[cfg(feature = "daemon")]
mod stats;

mod monitor;
mod sandbox;

#[cfg(feature = "daemon")]
mod records;
#[cfg(feature = "daemon")]
mod task;
mod sys;

#[cfg(feature = "daemon")]
mod id;
#[cfg(feature = "daemon")]
mod units;
#[cfg(feature = "daemon")]
pub mod proto;

#[cfg(feature = "daemon")]
pub use cli::main as cli_main;
#[cfg(feature = "daemon")]
pub use daemon::main as daemon_main;
pub use monitor::main as monitor_main;
pub use sandbox::main as sandbox_main;

/// What tests/fuzz calls.
#[cfg(fuzzing)]
pub mod fuzz {
    use crate::stream::{spdy, websocket};

    pub fn spdy_frames(input: &[u8]) {
        spdy::fuzz::frames(input);
    }

    pub fn spdy_connection(input: &[u8]) {
        spdy::fuzz::connection(input);
    }

    pub fn websocket_channels(input: &[u8]) {
        websocket::fuzz::channels(input);
    }
}
