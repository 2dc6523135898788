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
use super::session::{Client, Outcome, Session, Streams};
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
    let Some(session) = Session::open(client, wanted, "attaching to").await else { return };
    match pods.containers().attach(container, wanted).await {
        Ok(attached) => session.serve(|streams| carry(streams, attached, container, stop)).await,
        Err(error) => {
            let reason = chain(&error);
            tracing::debug!(container, reason, "a client is not attached");
            session.refuse(reason).await;
        }
    }
}

/// Moves bytes until the container has ended and all that the monitor had for this client is passed on. Dropped earlier, it
/// detaches.
async fn carry(
    streams: Streams,
    attached: AttachSession,
    container: &str,
    stop: &CancellationToken,
) -> io::Result<Outcome> {
    let control = attached.control;
    let stdin = Watched::maybe(attached.stdin, Interest::WRITABLE)?;
    let stdout = Watched::maybe(attached.stdout, Interest::READABLE)?;
    let stderr = Watched::maybe(attached.stderr, Interest::READABLE)?;
    // The monitor closes its ends when there is nothing more: nobody else holds them open.
    let (_over, over) = watch::channel(false);
    let written = async {
        tokio::join!(
            pump::output_or_drain(stdout.as_ref(), streams.stdout, over.clone()),
            pump::output_or_drain(stderr.as_ref(), streams.stderr, over.clone()),
        )
    };
    let input = async {
        if let (Some(mut from), Some(to)) = (streams.stdin, stdin) {
            pump::input(&mut from, &to).await;
            control.finish_stdin().await;
        }
    };
    let mut sizes = Sizes::new(streams.resize);
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
            AttachEnd::Slow => {
                tracing::info!(
                    container,
                    "a client is cut off: it takes output more slowly than the container makes it"
                );
                Err(Outcome::Error(SLOW.to_owned()))
            }
            AttachEnd::Gone => Err(Outcome::Error("the pod's monitor has ended".to_owned())),
        }
    };
    let whole = async { tokio::try_join!(end, async { Ok(written.await) }) };
    let idle = async { tokio::join!(input, resized) };
    Ok(tokio::select! {
        whole = whole => whole.map_or_else(|cut| cut, |_| Outcome::Success),
        () = stop.cancelled() => {
            // A client that would still type is not at its end.
            control.leave();
            Outcome::Error("brigd is stopping; the container goes on".to_owned())
        }
        _ = idle => unreachable!("sizes never end"),
    })
}
