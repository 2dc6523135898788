//! The only unsafe code of the project: system calls behind safe functions.
//!
//! rustix comes first; what it does not wrap is called through libc here. Every function takes and returns owned or
//! borrowed file descriptors, never raw numbers, and its error names the call with its arguments.

pub(crate) mod bpf;
pub(crate) mod cgroup;
pub(crate) mod clock;
#[cfg(feature = "daemon")]
pub(crate) mod detached;
pub(crate) mod fd;
pub(crate) mod landlock;
pub(crate) mod mount;
pub(crate) mod namespace;
pub(crate) mod path;
pub(crate) mod process;
pub(crate) mod pty;
pub(crate) mod signal;
pub(crate) mod socket;
pub(crate) mod spawn;
pub(crate) mod sysctl;
pub(crate) mod systemd;
