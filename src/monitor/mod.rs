//! Stub.

#[cfg(feature = "daemon")]
pub(crate) mod client;
#[cfg(feature = "daemon")]
pub(crate) mod spawn;
pub(crate) mod wire;

use std::process::ExitCode;

pub fn main() -> ExitCode {
    ExitCode::FAILURE
}
