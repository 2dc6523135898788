//! Stub.

pub(crate) mod bundle;
pub(crate) mod seccomp_default;
pub(crate) mod spec;
pub(crate) mod user;
