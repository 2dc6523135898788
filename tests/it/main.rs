//! Integration tests: one binary, so that the fixture is compiled and linked once.
//!
//! Tests whose name begins with `privileged_` need root; `make test` runs them in private namespaces, so bridges, rules
//! and mounts vanish with them.

mod chaos;
mod cli;
mod fixture;
mod pods;
mod sandbox;
mod tidy;
mod wire;
