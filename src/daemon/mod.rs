//! Stub.

mod args;
mod config;

use std::process::ExitCode;

pub fn main() -> ExitCode {
    ExitCode::FAILURE
}
