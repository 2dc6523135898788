//! Stub.

pub(crate) mod spec;
