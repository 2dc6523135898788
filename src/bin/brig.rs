//! The operator's command line.

fn main() -> std::process::ExitCode {
    brig::cli_main()
}
