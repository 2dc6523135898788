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
use super::session::{Client, Outcome, Session, Sink, Source};
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
    let Some(session) = Session::open(client, options.streams).await else { return };
    let Session { mut connection, stdin, mut stdout, mut stderr, resize, mut end } = session;
    let outcome = match pods.containers().exec(container, options).await {
        Err(error) => {
            tracing::debug!(container, error = %chain(&error), "a command did not start");
            Outcome::Error(chain(&error))
        }
        Ok(command) => {
            end.ready(stdout.as_mut(), stderr.as_mut()).await;
            let streams = Streams { stdin, stdout, stderr, resize };
            tokio::select! {
                outcome = streams.carry(command) => outcome,
                () = connection.gone() => {
                    tracing::debug!(container, "a client left before its command ended");
                    return;
                }
                () = stop.cancelled() => {
                    Outcome::Error("brigd is stopping; the command goes on without its client".to_owned())
                }
            }
        }
    };
    end.goodbye(connection, &outcome).await;
}

/// A client's ends of a command's streams.
struct Streams {
    stdin: Option<Source>,
    stdout: Option<Sink>,
    stderr: Option<Sink>,
    resize: Option<Source>,
}

impl Streams {
    /// Moves bytes until the command has ended and all it wrote is passed on. Dropped earlier, it closes the streams.
    async fn carry(self, command: ExecSession) -> Outcome {
        match self.try_carry(command).await {
            Ok(outcome) => outcome,
            Err(error) => Outcome::Error(format!("cannot watch its streams: {error}")),
        }
    }

    async fn try_carry(self, command: ExecSession) -> io::Result<Outcome> {
        let process = Left(Some(command.process));
        let (over, is_over) = watch::channel(false);
        let terminal = match command.terminal {
            Some(fd) => Some(Watched::new(fd, Interest::READABLE | Interest::WRITABLE)?),
            None => None,
        };
        let pipe = |fd: Option<_>, interest| fd.map(|fd| Watched::new(fd, interest)).transpose();
        let stdin_pipe = pipe(command.stdin, Interest::WRITABLE)?;
        let stdout_pipe = pipe(command.stdout, Interest::READABLE)?;
        let stderr_pipe = pipe(command.stderr, Interest::READABLE)?;

        let written = async {
            tokio::join!(
                pump::output_or_drain(
                    terminal.as_ref().or(stdout_pipe.as_ref()),
                    self.stdout,
                    is_over.clone()
                ),
                pump::output_or_drain(stderr_pipe.as_ref(), self.stderr, is_over.clone()),
            )
        };
        let input = input(self.stdin, terminal.as_ref(), stdin_pipe);
        let mut sizes = Sizes::new(self.resize);
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
            () = async { tokio::join!(input, resized); } => unreachable!("sizes never end"),
        };
        Ok(match end {
            Ok(end) if end.code == 0 => Outcome::Success,
            Ok(end) => Outcome::ExitCode(end.code),
            Err(error) => Outcome::Error(chain(&error)),
        })
    }
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
