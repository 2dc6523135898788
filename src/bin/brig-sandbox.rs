fn main() -> std::process::ExitCode {
    brig::sandbox_main()
}
