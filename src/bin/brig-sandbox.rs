//! The bundled OCI runtime.

fn main() -> std::process::ExitCode {
    brig::sandbox_main()
}
