//! Stub.

pub(crate) mod args;
pub(crate) mod config;

use std::process::ExitCode;

pub fn main() -> ExitCode {
    ExitCode::FAILURE
}
