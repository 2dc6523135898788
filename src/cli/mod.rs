//! `brig`, the operator's command line: speaks CRI to `brigd` and never touches the store behind its back.
//!
//! One file per command or small family. A command takes a connected [`client::Client`] and its arguments and returns
//! an exit code; every error ends here as one line. What needs no daemon (`check`, `config`, `completions`) does not
//! connect.

mod check;
mod image;
mod inspect;
mod lifecycle;
mod lists;
mod logs;
mod run;
mod stream;
mod system;

mod client;
mod error;
mod output;
mod resolve;

use std::error::Error as _;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use self::client::Client;
use self::error::CliError;
use self::output::Format;

/// Where `brigd` listens unless its configuration says otherwise.
const ADDRESS: &str = "unix:///run/brig/brig.sock";

/// Runs pods and containers with brigd, the Kubernetes container runtime.
#[derive(Debug, Parser)]
#[command(name = "brig", disable_version_flag = true)]
struct Cli {
    /// The daemon's socket.
    #[arg(long, global = true, env = "BRIG_ADDRESS", default_value = ADDRESS, value_name = "unix://PATH")]
    address: String,
    /// How lists are printed.
    #[arg(long, short, global = true, value_enum, default_value_t = Format::Table)]
    output: Format,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a command in a pod of its own, follow its log and pass its exit code on.
    Run(Box<run::RunArgs>),
    /// List pods.
    Pods(lists::PodsArgs),
    /// List containers.
    Ps(lists::PsArgs),
    /// Print a container's log.
    Logs(logs::LogsArgs),
    /// Execute a command in a running container.
    Exec(stream::ExecArgs),
    /// Show what a container prints from now on, and type into it.
    Attach(stream::AttachArgs),
    /// Forward ports of this machine's loopback into a pod.
    PortForward(stream::PortForwardArgs),
    /// Stop pods or containers.
    Stop(lifecycle::StopArgs),
    /// Remove pods or containers.
    Rm(lifecycle::RmArgs),
    /// Print everything about a pod, a container or an image.
    Inspect(inspect::InspectArgs),
    /// Print what containers use.
    Stats(lists::StatsArgs),
    /// Pull an image from its registry.
    Pull(image::PullArgs),
    /// Load images from an archive.
    Load(image::LoadArgs),
    /// List images.
    Images,
    /// Remove images.
    Rmi(image::RmiArgs),
    /// Print whether the daemon is up and ready.
    Status,
    /// Find out whether this machine can run pods.
    Check(check::CheckArgs),
    /// Print the configuration, every key explained.
    Config(system::ConfigArgs),
    /// Remove the built-in network from this machine, once there are no pods.
    Teardown,
    /// Print the versions of brig and brigd.
    Version,
    /// Print a completion script for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

/// The main function of `brig`.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    // A probe changes its own namespaces, which works only before there are threads.
    if let Command::Check(args) = &cli.command
        && let Some(code) = check::run_if_probe(args)
    {
        return code;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(dispatch(cli)),
        Err(err) => Err(CliError::Local("start", err)),
    };
    match result {
        Ok(code) => code,
        Err(err) if err.is_broken_pipe() => ExitCode::SUCCESS,
        Err(err) => {
            let mut message = err.to_string();
            let mut source = err.source();
            while let Some(cause) = source {
                message.push_str(&format!(": {cause}"));
                source = cause.source();
            }
            eprintln!("brig: {message}");
            err.exit_code()
        }
    }
}

async fn dispatch(cli: Cli) -> Result<ExitCode, CliError> {
    let Cli { address, output, command } = cli;
    let connect = || Client::connect(&address);
    match command {
        Command::Run(args) => run::run(connect().await?, *args).await,
        Command::Pods(args) => lists::pods(connect().await?, args, output).await,
        Command::Ps(args) => lists::ps(connect().await?, args, output).await,
        Command::Logs(args) => logs::logs(connect().await?, args).await,
        Command::Exec(args) => stream::exec(connect().await?, args).await,
        Command::Attach(args) => stream::attach(connect().await?, args).await,
        Command::PortForward(args) => stream::port_forward(connect().await?, args).await,
        Command::Stop(args) => lifecycle::stop(connect().await?, args).await,
        Command::Rm(args) => lifecycle::rm(connect().await?, args).await,
        Command::Inspect(args) => inspect::inspect(connect().await?, args).await,
        Command::Stats(args) => lists::stats(connect().await?, args, output).await,
        Command::Pull(args) => image::pull(connect().await?, args).await,
        Command::Load(args) => image::load(connect().await?, args).await,
        Command::Images => lists::images(connect().await?, output).await,
        Command::Rmi(args) => image::rmi(connect().await?, args).await,
        Command::Status => system::status(connect().await?, output).await,
        Command::Check(args) => check::check(&address, args, output).await,
        Command::Config(args) => system::config(&address, args).await,
        Command::Teardown => system::teardown(connect().await?).await,
        Command::Version => system::version(&address, output).await,
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "brig", &mut script);
            output::write(&script)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_of_the_promised_list_exists() {
        let commands: Vec<_> = Cli::command().get_subcommands().map(|it| it.get_name().to_owned()).collect();
        for name in [
            "status",
            "check",
            "config",
            "pull",
            "load",
            "images",
            "rmi",
            "run",
            "pods",
            "ps",
            "logs",
            "exec",
            "attach",
            "port-forward",
            "stop",
            "rm",
            "inspect",
            "stats",
            "version",
            "completions",
        ] {
            assert!(commands.contains(&name.to_owned()), "{name}");
        }
    }
}
