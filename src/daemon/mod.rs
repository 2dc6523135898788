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
mod scrape;
mod setup;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use args::Args;
use config::{Config, ConfigError};

/// Threads of the runtime that never block; blocking work has its own, at most [`BLOCKING_THREADS_MAX`].
const WORKERS_MAX: usize = 4;

/// Unpacking, mounts and records of many pods at once; more threads would only wait for the same disk.
const BLOCKING_THREADS_MAX: usize = 64;

/// Idle blocking threads go away: each keeps a stack and a part of the heap.
const BLOCKING_IDLE: Duration = Duration::from_secs(2);

/// How long streams, cut-off pulls and links may take to end once the calls have, or their grace is over. A pull ends as soon
/// as its thread notices; what is not undone by then is left as by a crash, and the next start does it.
const END: Duration = Duration::from_secs(3);

/// How long blocking work may go on after that: a layer that is removed, say, which a start removes as well. With the grace
/// and [`END`] this bounds how long a stop takes, whatever hangs on a disk.
const BLOCKING_END: Duration = Duration::from_secs(1);

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
    Streams(#[from] crate::stream::ServerError),
    #[error(transparent)]
    Serve(#[from] crate::cri::ServeError),
    #[error(transparent)]
    Scrape(#[from] scrape::ScrapeError),
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
    runtime.shutdown_timeout(BLOCKING_END);
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
    if let Some(address) = node.config.metrics.listen {
        scrape::serve(address, &node).await?;
    }
    let began = Instant::now();
    recover::recover(&node).await?;
    node.own.recovered(began.elapsed());
    let streams = crate::stream::bind(node.stream_settings(), node.pods.clone()).await?;
    let server = crate::cri::bind(&node.config.server.listen.0, node.services(streams.streams()))?;
    let stop_streams = CancellationToken::new();
    let streaming = tokio::spawn(streams.serve(stop_streams.clone()));
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
    let rest = async {
        stop_streams.cancel();
        streaming.await.ok();
        // A pull that is cut off is undone now rather than at the next start.
        node.puller.cancel_all();
        node.puller.idle().await;
        if let Err(error) = node.pods.network().settle().await {
            tracing::warn!(error = %crate::task::chain(&error), "the links of removed pods may be left");
        }
    };
    if tokio::time::timeout(END, rest).await.is_err() {
        tracing::warn!(
            "ending while a stream, a cut-off pull or a link is still being ended; the next start does it"
        );
    }
    Ok(served?)
}
