//! Compiles `proto/` to Rust with compilers written in Rust, so a build needs no `protoc`.
//!
//! Without the feature `daemon` nothing includes the result, and nothing is compiled.

use std::error::Error;

/// Messages that hold credentials; `src/proto.rs` gives them a `Debug` that does not print them.
const SECRET: [&str; 2] = [".runtime.v1.AuthConfig", ".brig.v1.PullRequest"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    if std::env::var_os("CARGO_FEATURE_DAEMON").is_none() {
        return Ok(());
    }
    let files = protox::compile(["runtime/v1/api.proto", "brig/v1/admin.proto"], ["proto"])?;
    tonic_prost_build::configure()
        // Maps in key order: the same message is always the same bytes, and our own types use them too.
        .btree_map(".")
        .skip_debug(SECRET)
        .emit_rerun_if_changed(false)
        .compile_fds(files)?;
    Ok(())
}
