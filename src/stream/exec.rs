//! Exec: a command in a container with its streams at a client.
//!
//! ```text
//! streams open → command starts → bytes both ways → it ends → output drained → exit code told → closed
//!                     └ does not start → reason told → closed
//!                                        └ client gone → streams closed, the command left to itself
//! ```

use std::io;

use tokio::io::Interest;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::pump::{self, Sizes, Watched};
use super::session::{Client, Outcome, Session, Source, Streams};
use crate::container::exec::ExecOptions;
use crate::monitor::exec::{ExecProcess, ExecSession};
use crate::pod::Pods;
use crate::task::chain;

/// Runs a command for a client that has just been upgraded, to the end of either.
pub(super) async fn run(
    pods: &Pods,
    container: &str,
    options: ExecOptions,
    client: Client,
    stop: &CancellationToken,
) {
    let doing = "executing command in";
    let Some(session) = Session::open(client, options.streams, doing).await else { return };
    match pods.containers().exec(container, options).await {
        Ok(command) => session.serve(|streams| carry(streams, command, stop)).await,
        Err(error) => {
            let reason = chain(&error);
            tracing::debug!(container, reason, "a command did not start");
            session.refuse(reason).await;
        }
    }
}

/// Moves bytes until the command has ended and all it wrote is passed on. Dropped earlier, it closes the streams.
async fn carry(streams: Streams, command: ExecSession, stop: &CancellationToken) -> io::Result<Outcome> {
    let process = Left(Some(command.process));
    let (over, is_over) = watch::channel(false);
    let terminal = Watched::maybe(command.terminal, Interest::READABLE | Interest::WRITABLE)?;
    let stdin_pipe = Watched::maybe(command.stdin, Interest::WRITABLE)?;
    let stdout_pipe = Watched::maybe(command.stdout, Interest::READABLE)?;
    let stderr_pipe = Watched::maybe(command.stderr, Interest::READABLE)?;

    let written = async {
        tokio::join!(
            pump::output_or_drain(
                terminal.as_ref().or(stdout_pipe.as_ref()),
                streams.stdout,
                is_over.clone()
            ),
            pump::output_or_drain(stderr_pipe.as_ref(), streams.stderr, is_over.clone()),
        )
    };
    let input = input(streams.stdin, terminal.as_ref(), stdin_pipe);
    let mut sizes = Sizes::new(streams.resize);
    let resized = async {
        loop {
            let size = sizes.next().await;
            if let Some(terminal) = &terminal {
                pump::resize(terminal, size);
            }
        }
    };
    let ended = async {
        let end = process.wait().await;
        // What it wrote is in the pipes by now; the readers stop when they are empty.
        over.send_replace(true);
        end
    };
    let both = async { tokio::join!(ended, written) };
    let (end, _) = tokio::select! {
        both = both => both,
        () = stop.cancelled() => {
            let reason = "brigd is stopping; the command goes on without its client";
            return Ok(Outcome::Error(reason.to_owned()));
        }
        () = async { tokio::join!(input, resized); } => unreachable!("sizes never end"),
    };
    Ok(match end {
        Ok(end) if end.code == 0 => Outcome::Success,
        Ok(end) => Outcome::ExitCode(end.code),
        Err(error) => Outcome::Error(chain(&error)),
    })
}

/// A pipe is closed at the client's end of input. A terminal has no such end; a person types Ctrl-D.
async fn input(from: Option<Source>, terminal: Option<&Watched>, pipe: Option<Watched>) {
    match (from, terminal, pipe) {
        (Some(mut from), Some(terminal), _) => pump::input(&mut from, terminal).await,
        (Some(mut from), None, Some(pipe)) => {
            pump::input(&mut from, &pipe).await;
        }
        _ => {}
    }
}

/// A command that is left to itself when its client goes.
struct Left(Option<ExecProcess>);

impl std::ops::Deref for Left {
    type Target = ExecProcess;

    fn deref(&self) -> &ExecProcess {
        self.0.as_ref().expect("there until dropped")
    }
}

impl Drop for Left {
    fn drop(&mut self) {
        if let Some(process) = self.0.take() {
            process.leave();
        }
    }
}
