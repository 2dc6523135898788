//! Exec, attach and port-forward: what `kubectl` streams through the API server and the kubelet to this machine.

#[cfg_attr(not(test), expect(dead_code, reason = "the streaming server, which comes next, is its user"))]
pub(crate) mod spdy;
