fn main() -> std::process::ExitCode {
    brig::monitor_main()
}
