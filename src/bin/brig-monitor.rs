//! The monitor of one pod.

fn main() -> std::process::ExitCode {
    brig::monitor_main()
}
