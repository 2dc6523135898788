//! The streams of an exec or attach, whichever way the client speaks: one shape for both transports.

use std::io;
use std::time::Duration;

use hyper::body::Bytes;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::handshake::{Agreed, Offer};
use super::idle::Activity;
use super::{spdy, websocket};
use crate::container::exec::Streams as Wanted;

/// What exec and attach speak. SPDY clients that name nothing speak the first version; v5 over SPDY is v4.
pub(super) const OFFER: Offer = Offer {
    spdy: &[
        "v5.channel.k8s.io",
        "v4.channel.k8s.io",
        "v3.channel.k8s.io",
        "v2.channel.k8s.io",
        "channel.k8s.io",
        "",
    ],
    websocket: websocket::REMOTE_COMMAND,
};

/// How long a SPDY client may take to open its streams (k8s.io/apimachinery DefaultStreamCreationTimeout).
const STREAMS_WAIT: Duration = Duration::from_secs(30);

/// For the last words. A client that was cut off does not read, or it would not have been.
const GOODBYE_WAIT: Duration = Duration::from_secs(30);

/// The header that says what a SPDY stream is for.
pub(super) const STREAM_TYPE: &str = "streamtype";

/// Who comes with a URL and has just been upgraded.
#[derive(Debug)]
pub(super) struct Client {
    pub agreed: Agreed,
    pub io: TokioIo<Upgraded>,
    pub activity: Activity,
}

/// What comes from a client on one stream.
#[derive(Debug)]
pub(super) struct Source {
    from: Receiver,
    activity: Activity,
}

#[derive(Debug)]
enum Receiver {
    Spdy(spdy::Receiver),
    WebSocket(websocket::Receiver),
}

impl Source {
    pub(super) fn spdy(from: spdy::Receiver, activity: &Activity) -> Self {
        Self { from: Receiver::Spdy(from), activity: activity.clone() }
    }

    pub(super) fn websocket(from: websocket::Receiver, activity: &Activity) -> Self {
        Self { from: Receiver::WebSocket(from), activity: activity.clone() }
    }

    /// The next piece; `None` once the client has ended the stream or is gone. Cancel-safe.
    pub(super) async fn recv(&mut self) -> Option<Bytes> {
        let piece = match &mut self.from {
            Receiver::Spdy(stream) => stream.recv().await,
            Receiver::WebSocket(channel) => channel.recv().await,
        }?;
        self.activity.moved();
        Some(piece)
    }
}

/// What goes to a client on one stream.
#[derive(Debug)]
pub(super) struct Sink {
    to: Sender,
    activity: Activity,
}

#[derive(Debug)]
enum Sender {
    Spdy(spdy::Sender),
    WebSocket(websocket::Sender),
}

impl Sink {
    pub(super) fn spdy(to: spdy::Sender, activity: &Activity) -> Self {
        Self { to: Sender::Spdy(to), activity: activity.clone() }
    }

    pub(super) fn websocket(to: websocket::Sender, activity: &Activity) -> Self {
        Self { to: Sender::WebSocket(to), activity: activity.clone() }
    }

    /// Returns when the piece is in the connection's hands; fails if the client is gone or wants no more.
    pub(super) async fn send(&mut self, data: Bytes) -> io::Result<()> {
        match &mut self.to {
            Sender::Spdy(stream) => stream.send(data).await,
            Sender::WebSocket(channel) => channel.send(data).await,
        }?;
        self.activity.moved();
        Ok(())
    }

    /// Says that nothing more will come.
    pub(super) async fn finish(&mut self) -> io::Result<()> {
        match &mut self.to {
            Sender::Spdy(stream) => stream.finish().await,
            Sender::WebSocket(channel) => channel.finish().await,
        }
    }

    /// Whether this stream has an end of its own, which the client hears before that of the connection.
    pub(super) fn has_ends(&self) -> bool {
        matches!(self.to, Sender::Spdy(_))
    }
}

/// The connection below the streams.
#[derive(Debug)]
enum Connection {
    Spdy(spdy::Connection, spdy::Incoming),
    WebSocket(websocket::Channels),
}

impl Connection {
    /// Returns when the client is gone. Cancel-safe.
    async fn gone(&mut self) {
        match self {
            Self::Spdy(_, incoming) => {
                // Streams beyond those of the session have no meaning.
                while let Some(stream) = incoming.accept().await {
                    stream.refuse().await.ok();
                }
            }
            Self::WebSocket(channels) => channels.closed().await,
        }
    }

    /// Sends what is still to be sent and closes.
    async fn close(self) {
        match self {
            Self::Spdy(connection, _) => connection.close().await,
            Self::WebSocket(channels) => channels.close().await,
        }
    }
}

/// How the error stream tells the end of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// A `Status` object of the Kubernetes API as JSON, for success too (v4 and v5).
    Status,
    /// A sentence, and nothing for success (up to v3).
    Text,
}

/// How a session ended, in the words of its clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    Success,
    /// The command ended with an exit code that is not 0.
    ExitCode(i32),
    /// There is no exit code, for this reason.
    Error(String),
}

/// A client with all its streams open.
#[derive(Debug)]
pub(super) struct Session {
    connection: Connection,
    streams: Streams,
    end: End,
}

/// A client's ends of all streams but the last one to speak.
#[derive(Debug)]
pub(super) struct Streams {
    pub stdin: Option<Source>,
    pub stdout: Option<Sink>,
    pub stderr: Option<Sink>,
    pub resize: Option<Source>,
}

/// The error stream.
#[derive(Debug)]
struct End {
    sink: Sink,
    verdict: Verdict,
    /// For sentences about what failed.
    doing: &'static str,
}

impl End {
    /// Tells a WebSocket client that the command runs or that it is attached: an empty message on the first channel that
    /// it can read. Other runtimes send it too, when the streams are open. SPDY has the replies to its streams for that.
    async fn ready(&mut self, streams: &mut Streams) {
        let first = streams.stdout.as_mut().or(streams.stderr.as_mut()).unwrap_or(&mut self.sink);
        if matches!(first.to, Sender::WebSocket(_)) {
            first.send(Bytes::new()).await.ok();
        }
    }

    /// Tells the client how it ended, and closes. A client that is gone, or that reads nothing, does not hear it.
    async fn goodbye(mut self, connection: Connection, outcome: &Outcome) {
        let goodbye = async {
            if let Some(text) = self.verdict.text(self.doing, outcome) {
                self.sink.send(text.into()).await.ok();
            }
            self.sink.finish().await.ok();
            connection.close().await;
        };
        tokio::time::timeout(GOODBYE_WAIT, goodbye).await.ok();
    }
}

impl Verdict {
    fn of(protocol: &str) -> Self {
        if protocol.starts_with("v4.") || protocol.starts_with("v5.") { Self::Status } else { Self::Text }
    }

    /// The objects are those that `kubectl` and client-go take apart: `NonZeroExitCode` with a cause `ExitCode`, or an
    /// internal error (k8s.io/apimachinery pkg/util/remotecommand, pkg/api/errors).
    fn text(self, doing: &str, outcome: &Outcome) -> Option<String> {
        let failed = |code: i32| format!("command terminated with non-zero exit code: exit status {code}");
        let cause = |message: &str| format!("error {doing} container: {message}");
        let error = |message: &str| format!("Internal error occurred: {}", cause(message));
        let status = match (self, outcome) {
            (Self::Text, Outcome::Success) => return None,
            (Self::Text, Outcome::ExitCode(code)) => return Some(failed(*code)),
            (Self::Text, Outcome::Error(message)) => return Some(error(message)),
            (Self::Status, Outcome::Success) => json!({"metadata": {}, "status": "Success"}),
            (Self::Status, Outcome::ExitCode(code)) => json!({
                "metadata": {},
                "status": "Failure",
                "message": failed(*code),
                "reason": "NonZeroExitCode",
                "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
            }),
            (Self::Status, Outcome::Error(message)) => json!({
                "metadata": {},
                "status": "Failure",
                "message": error(message),
                "reason": "InternalError",
                "details": {"causes": [{"message": cause(message)}]},
                "code": 500,
            }),
        };
        Some(status.to_string())
    }
}

impl Session {
    /// Opens the streams of a client that has just been upgraded. `None` when it did not open those it asked for.
    ///
    /// `doing` is for the sentence "error … container" when it fails, in the words of other runtimes.
    pub(super) async fn open(client: Client, wanted: Wanted, doing: &'static str) -> Option<Self> {
        let Client { agreed, io, activity } = client;
        match agreed {
            Agreed::Spdy(protocol) => {
                let opened = Self::over_spdy(protocol, wanted, doing, io, &activity);
                match tokio::time::timeout(STREAMS_WAIT, opened).await {
                    Ok(session) => session,
                    Err(_) => {
                        tracing::debug!("a client did not open its streams within {STREAMS_WAIT:?}");
                        None
                    }
                }
            }
            Agreed::WebSocket(protocol) => {
                Some(Self::over_websocket(protocol, wanted, doing, io, &activity).await)
            }
        }
    }

    /// Tells the client that there is nothing to serve it with, and closes.
    pub(super) async fn refuse(self, reason: String) {
        self.end.goodbye(self.connection, &Outcome::Error(reason)).await;
    }

    /// Tells the client that it is served, and by `carry` moves bytes to an outcome, which it is told too; or until it is
    /// gone, at which `carry` is dropped.
    pub(super) async fn serve<Carry>(self, carry: impl FnOnce(Streams) -> Carry)
    where
        Carry: Future<Output = io::Result<Outcome>>,
    {
        let Self { mut connection, mut streams, mut end } = self;
        end.ready(&mut streams).await;
        let outcome = tokio::select! {
            outcome = carry(streams) => outcome,
            () = connection.gone() => {
                tracing::debug!("a client left while {} a container", end.doing);
                return;
            }
        };
        let outcome =
            outcome.unwrap_or_else(|error| Outcome::Error(format!("cannot watch its streams: {error}")));
        end.goodbye(connection, &outcome).await;
    }

    async fn over_spdy(
        protocol: &str,
        wanted: Wanted,
        doing: &'static str,
        io: TokioIo<Upgraded>,
        activity: &Activity,
    ) -> Option<Self> {
        // Before v3 a terminal could not be resized.
        let resizes = wanted.terminal && !matches!(protocol, "" | "channel.k8s.io" | "v2.channel.k8s.io");
        let (connection, mut incoming) = spdy::Connection::new(io, spdy::Role::Server);
        let (mut stdin, mut stdout, mut stderr, mut resize, mut error) = (None, None, None, None, None);
        while (wanted.stdin && stdin.is_none())
            || (wanted.stdout && stdout.is_none())
            || (wanted.stderr && stderr.is_none())
            || (resizes && resize.is_none())
            || error.is_none()
        {
            let stream = incoming.accept().await?;
            let kind = stream.header(STREAM_TYPE).unwrap_or_default().to_owned();
            let place = match kind.as_str() {
                "stdin" if wanted.stdin => &mut stdin,
                "stdout" if wanted.stdout => &mut stdout,
                "stderr" if wanted.stderr => &mut stderr,
                "resize" if resizes => &mut resize,
                "error" => &mut error,
                _ => {
                    tracing::debug!("a client's stream {kind:?} is refused");
                    stream.refuse().await.ok()?;
                    continue;
                }
            };
            *place = Some(stream.accept().await.ok()?);
        }
        let sink = |stream: spdy::Stream| Sink::spdy(stream.split().0, activity);
        let source = |stream: spdy::Stream| Source::spdy(stream.split().1, activity);
        Some(Self {
            streams: Streams {
                stdin: stdin.map(source),
                stdout: stdout.map(sink),
                stderr: stderr.map(sink),
                resize: resize.map(source),
            },
            end: End { sink: sink(error?), verdict: Verdict::of(protocol), doing },
            connection: Connection::Spdy(connection, incoming),
        })
    }

    async fn over_websocket(
        protocol: &str,
        wanted: Wanted,
        doing: &'static str,
        io: TokioIo<Upgraded>,
        activity: &Activity,
    ) -> Self {
        use websocket::{ERROR, RESIZE, STDERR, STDIN, STDOUT};
        let inputs = [(wanted.stdin, STDIN), (wanted.terminal, RESIZE)];
        let inputs: Vec<u8> =
            inputs.into_iter().filter_map(|(wanted, channel)| wanted.then_some(channel)).collect();
        let (channels, receivers) = websocket::Channels::over(io, Role::Server, protocol, &inputs).await;
        let (mut stdin, mut resize) = (None, None);
        for (channel, receiver) in inputs.into_iter().zip(receivers) {
            let place = if channel == STDIN { &mut stdin } else { &mut resize };
            *place = Some(Source::websocket(receiver, activity));
        }
        let to = |channel| Sink::websocket(channels.sender(channel), activity);
        let sink = |wanted: bool, channel| wanted.then(|| to(channel));
        Self {
            streams: Streams {
                stdin,
                stdout: sink(wanted.stdout, STDOUT),
                stderr: sink(wanted.stderr, STDERR),
                resize,
            },
            end: End { sink: to(ERROR), verdict: Verdict::of(protocol), doing },
            connection: Connection::WebSocket(channels),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_told_as_clients_take_it_apart() {
        let status = |outcome| -> serde_json::Value {
            serde_json::from_str(&Verdict::Status.text("testing a", &outcome).unwrap()).unwrap()
        };
        assert_eq!(status(Outcome::Success), json!({"metadata": {}, "status": "Success"}));
        let failed = status(Outcome::ExitCode(42));
        assert_eq!(failed["reason"], "NonZeroExitCode");
        assert_eq!(failed["details"]["causes"][0], json!({"reason": "ExitCode", "message": "42"}));
        let error = status(Outcome::Error("no such file".into()));
        assert_eq!((&error["reason"], &error["code"]), (&json!("InternalError"), &json!(500)));
        assert_eq!(error["message"], "Internal error occurred: error testing a container: no such file");
        assert_eq!(error["details"]["causes"][0]["message"], "error testing a container: no such file");

        assert_eq!(Verdict::of("v3.channel.k8s.io"), Verdict::Text);
        assert_eq!(Verdict::of("v5.channel.k8s.io"), Verdict::Status);
        assert_eq!(Verdict::Text.text("", &Outcome::Success), None);
        assert!(Verdict::Text.text("", &Outcome::ExitCode(3)).unwrap().ends_with("exit status 3"));
    }
}
