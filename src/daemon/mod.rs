//! `brigd`: arguments → configuration → log → stores → recovery → serving → drain.
//!
//! The daemon may be killed at any moment: everything it knows is in the records, and everything that runs is held by
//! the monitors. Stopping it drains the RPCs in progress and touches nothing else.

mod apparmor;
pub(crate) mod args;
pub(crate) mod config;
mod features;
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

/// How long blocking work may go on after everything else has ended.
const RUNTIME_END: Duration = Duration::from_secs(10);

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
    #[error("the image store has {0} findings")]
    Damaged(usize),
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
    if args.verify {
        return verify(&config);
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(cores.min(WORKERS_MAX))
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .thread_keep_alive(BLOCKING_IDLE)
        .thread_name("brigd")
        .enable_all()
        .build()
        .map_err(DaemonError::Runtime)?;
    let ended = runtime.block_on(run(config));
    // Blocking work that hangs on a disk must not keep a stopped daemon alive.
    runtime.shutdown_timeout(RUNTIME_END);
    ended
}

/// `brigd --verify`.
fn verify(config: &Config) -> Result<(), DaemonError> {
    let found = setup::open_store(config)?.verify();
    for finding in &found.findings {
        println!("{}", crate::task::chain(finding));
    }
    println!("{} images, {} layers, {} findings", found.images, found.layers, found.findings.len());
    if found.findings.is_empty() { Ok(()) } else { Err(DaemonError::Damaged(found.findings.len())) }
}

async fn run(config: Config) -> Result<(), DaemonError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(DaemonError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(DaemonError::Signals)?;
    let mut hangup = signal(SignalKind::hangup()).map_err(DaemonError::Signals)?;
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
    let pods = node.pods.clone();
    let stop = async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                _ = hangup.recv() => {
                    tracing::info!("reading the CNI configuration again");
                    pods.network().reload();
                }
            }
        }
        tracing::info!("stopping; pods and containers go on");
        notify::stopping();
    };
    let served = server.serve(stop, grace).await;
    // A pull that is cut off is undone now rather than at the next start.
    node.puller.cancel_all();
    node.puller.idle().await;
    if let Err(error) = node.pods.network().settle().await {
        tracing::warn!(error = %crate::task::chain(&error), "the links of removed pods may be left");
    }
    Ok(served?)
}
