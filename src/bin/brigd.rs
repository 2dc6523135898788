//! The daemon: see `brig::daemon_main`.

fn main() -> std::process::ExitCode {
    brig::daemon_main()
}
