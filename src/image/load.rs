//! Stub.
#[derive(Debug)]
pub(crate) enum LoadError {}
