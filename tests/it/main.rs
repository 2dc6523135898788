//! Integration tests: one binary, so that the fixture is compiled and linked once.
//!
//! Tests whose name begins with `privileged_` need root; `make test` runs them in private namespaces, so bridges, rules
//! and mounts vanish with them.

mod chaos;
mod cli;
mod conformance;
mod escape;
mod fixture;
mod gvisor;
mod images;
mod metrics;
mod pods;
mod rpcs;
#[expect(clippy::unwrap_used, reason = "a panic is how a test fails")]
mod sandbox;
#[expect(clippy::unwrap_used, reason = "a panic is how a test fails")]
mod security;
mod stream;
mod tidy;
mod wire;
