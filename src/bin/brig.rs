fn main() -> std::process::ExitCode {
    brig::cli_main()
}
