fn main() -> std::process::ExitCode {
    brig::daemon_main()
}
