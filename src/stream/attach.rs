//! Attach: the streams of a container's own process at a client, one of several.
//!
//! ```text
//! streams open → attached in the monitor → bytes both ways → the container ends → output drained → closed
//!                                            ├ client too slow → cut by the monitor, told why → closed
//!                                            └ client gone → detached; the container feels nothing
//! ```

use std::io;

use tokio::io::Interest;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::pump::{self, Sizes, Watched};
use super::session::{Client, Outcome, Session, Sink, Source};
use crate::container::exec::Streams as Wanted;
use crate::monitor::attach::{AttachEnd, AttachSession};
use crate::pod::Pods;
use crate::task::chain;

/// What a client is told that was cut off.
const SLOW: &str =
    "this client took output more slowly than the container made it, and was cut off; the log has all of it";

/// Attaches a client that has just been upgraded, to the end of either.
pub(super) async fn run(
    pods: &Pods,
    container: &str,
    wanted: Wanted,
    client: Client,
    stop: &CancellationToken,
) {
    let Some(session) = Session::open(client, wanted).await else { return };
    let Session { mut connection, stdin, mut stdout, mut stderr, resize, mut end } = session;
    let outcome = match pods.containers().attach(container, wanted).await {
        Err(error) => {
            tracing::debug!(container, error = %chain(&error), "a client is not attached");
            Outcome::Error(chain(&error))
        }
        Ok(attached) => {
            end.ready(stdout.as_mut(), stderr.as_mut()).await;
            let streams = Streams { stdin, stdout, stderr, resize };
            tokio::select! {
                outcome = streams.carry(attached) => outcome,
                () = connection.gone() => {
                    tracing::debug!(container, "a client detached");
                    return;
                }
                () = stop.cancelled() => Outcome::Error("brigd is stopping; the container goes on".to_owned()),
            }
        }
    };
    if outcome == Outcome::Error(SLOW.to_owned()) {
        tracing::info!(
            container,
            "a client is cut off: it takes output more slowly than the container makes it"
        );
    }
    end.goodbye(connection, &outcome).await;
}

/// A client's ends of a container's streams.
struct Streams {
    stdin: Option<Source>,
    stdout: Option<Sink>,
    stderr: Option<Sink>,
    resize: Option<Source>,
}

impl Streams {
    /// Moves bytes until the container has ended and all that the monitor had for this client is passed on.
    async fn carry(self, attached: AttachSession) -> Outcome {
        match self.try_carry(attached).await {
            Ok(outcome) => outcome,
            Err(error) => Outcome::Error(format!("cannot watch its streams: {error}")),
        }
    }

    async fn try_carry(self, attached: AttachSession) -> io::Result<Outcome> {
        let AttachSession { stdin, stdout, stderr, control } = attached;
        let pipe = |fd: Option<_>, interest| fd.map(|fd| Watched::new(fd, interest)).transpose();
        let stdin = pipe(stdin, Interest::WRITABLE)?;
        let (stdout, stderr) = (pipe(stdout, Interest::READABLE)?, pipe(stderr, Interest::READABLE)?);
        // The monitor closes its ends when there is nothing more: nobody else holds them open.
        let (_over, over) = watch::channel(false);
        let written = async {
            tokio::join!(
                pump::output_or_drain(stdout.as_ref(), self.stdout, over.clone()),
                pump::output_or_drain(stderr.as_ref(), self.stderr, over.clone()),
            )
        };
        let input = async {
            if let (Some(mut from), Some(to)) = (self.stdin, stdin) {
                pump::input(&mut from, &to).await;
                control.finish_stdin().await;
            }
        };
        let mut sizes = Sizes::new(self.resize);
        let resized = async {
            loop {
                let pump::Size { columns, rows } = sizes.next().await;
                if let Err(error) = control.resize(columns, rows).await {
                    tracing::debug!(error = %chain(&error), "cannot resize a container's terminal");
                }
            }
        };
        let end = async {
            match control.ended().await {
                AttachEnd::Exited => Ok(()),
                AttachEnd::Slow => Err(Outcome::Error(SLOW.to_owned())),
                AttachEnd::Gone => Err(Outcome::Error("the pod's monitor has ended".to_owned())),
            }
        };
        let whole = async { tokio::try_join!(end, async { Ok(written.await) }) };
        let idle = async { tokio::join!(input, resized) };
        Ok(tokio::select! {
            whole = whole => whole.map_or_else(|cut| cut, |_| Outcome::Success),
            _ = idle => unreachable!("sizes never end"),
        })
    }
}
