//! `brigd`: arguments → configuration → log → stores → recovery → serving → drain.
//!
//! The daemon may be killed at any moment: everything it knows is in the records, and everything that runs is held by
//! the monitors. Stopping it drains the RPCs in progress and touches nothing else.

pub(crate) mod args;
pub(crate) mod config;
mod notify;
mod recover;
mod setup;

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};

use args::Args;
use config::{Config, ConfigError};

/// Threads of the runtime that never block; blocking work has its own, at most [`BLOCKING_THREADS_MAX`].
const WORKERS_MAX: usize = 4;

/// Unpacking, mounts and records of many pods at once; more threads would only wait for the same disk.
const BLOCKING_THREADS_MAX: usize = 64;

/// Idle blocking threads go away: each keeps a stack and a part of the heap.
const BLOCKING_IDLE: Duration = Duration::from_secs(2);

/// Why the daemon ends without being asked to.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DaemonError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("cannot start the async runtime")]
    Runtime(#[source] std::io::Error),
    #[error(transparent)]
    Setup(#[from] setup::SetupError),
    #[error("cannot read the records")]
    Records(#[from] crate::records::RecordsError),
    #[error(transparent)]
    Serve(#[from] crate::cri::ServeError),
    #[error("cannot listen for signals")]
    Signals(#[source] std::io::Error),
}

/// The whole program.
pub fn main() -> ExitCode {
    let args = Args::parse();
    match Config::load(&args).map_err(DaemonError::from).and_then(|config| start(&args, config)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("brigd: {}", crate::task::chain(&error));
            ExitCode::FAILURE
        }
    }
}

fn start(args: &Args, config: Config) -> Result<(), DaemonError> {
    if args.print_config {
        print!("{}", config.to_toml());
        return Ok(());
    }
    setup::log(&config.server);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(cores.min(WORKERS_MAX))
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .thread_keep_alive(BLOCKING_IDLE)
        .thread_name("brigd")
        .enable_all()
        .build()
        .map_err(DaemonError::Runtime)?;
    runtime.block_on(run(config))
}

async fn run(config: Config) -> Result<(), DaemonError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(DaemonError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(DaemonError::Signals)?;
    let grace = config.server.shutdown_grace;
    let node = setup::open(config).await?;
    recover::recover(&node).await?;
    let server = crate::cri::bind(&node.config.server.listen.0, node.services())?;
    notify::ready();
    tracing::info!(
        listen = %node.config.server.listen,
        pods = node.pods.list().len(),
        "brigd {} is ready",
        env!("CARGO_PKG_VERSION")
    );
    let stop = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping; pods and containers go on");
        notify::stopping();
    };
    server.serve(stop, grace).await?;
    Ok(())
}
