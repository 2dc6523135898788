//! A client of the channel protocols over WebSocket, as client-go is one.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::Message;
use tokio_tungstenite::tungstenite::{Bytes, Error};

pub(crate) const V5: &str = "v5.channel.k8s.io";
pub(crate) const STDIN: u8 = 0;
pub(crate) const STDOUT: u8 = 1;
pub(crate) const RESIZE: u8 = 4;

/// A session, both directions.
pub(crate) struct Client {
    pub(crate) to: To,
    pub(crate) from: From,
}

/// What is sent.
pub(crate) struct To {
    base64: bool,
    socket: SplitSink<WebSocketStream<TcpStream>, Message>,
}

/// What comes.
pub(crate) struct From {
    base64: bool,
    socket: SplitStream<WebSocketStream<TcpStream>>,
    /// What has come on each channel so far.
    pub(crate) seen: [Vec<u8>; 8],
}

/// All that came, to the end.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    pub(crate) error: Vec<u8>,
}

/// The answer to a request that was not for a stream: status and text.
pub(crate) type Refusal = (u16, String);

/// Where a URL leads.
pub(crate) fn address(url: &str) -> &str {
    url.split_once("://").and_then(|(_, rest)| rest.split('/').next()).expect("http://ADDRESS/… or https://")
}

/// The socket of a WebSocket with this subprotocol; an empty one is not named.
pub(crate) async fn websocket(url: &str, protocol: &str) -> Result<WebSocketStream<TcpStream>, Refusal> {
    let stream = TcpStream::connect(address(url)).await.expect("the server listens");
    let mut request = url.replacen("http", "ws", 1).into_client_request().expect("a URL");
    if !protocol.is_empty() {
        request.headers_mut().insert("sec-websocket-protocol", protocol.parse().expect("a header"));
    }
    match tokio_tungstenite::client_async(request, stream).await {
        Ok((socket, response)) => {
            let chosen =
                response.headers().get("sec-websocket-protocol").and_then(|value| value.to_str().ok());
            assert_eq!(chosen.unwrap_or_default(), protocol.rsplit(',').next().unwrap_or_default());
            Ok(socket)
        }
        Err(Error::Http(response)) => {
            let body = response.body().clone().unwrap_or_default();
            Err((response.status().as_u16(), String::from_utf8_lossy(&body).into_owned()))
        }
        Err(error) => panic!("{error}"),
    }
}

impl Client {
    pub(crate) async fn open(url: &str, protocol: &str) -> Self {
        Self::try_open(url, protocol).await.expect("the upgrade")
    }

    pub(crate) async fn try_open(url: &str, protocol: &str) -> Result<Self, Refusal> {
        Ok(Self::over(websocket(url, protocol).await?, protocol))
    }

    pub(crate) fn over(socket: WebSocketStream<TcpStream>, protocol: &str) -> Self {
        let base64 = protocol.contains("base64");
        let (to, from) = socket.split();
        Self { to: To { base64, socket: to }, from: From { base64, socket: from, seen: Default::default() } }
    }

    pub(crate) async fn send(&mut self, channel: u8, data: &[u8]) {
        self.to.send(channel, data).await;
    }

    /// Reads until `channel` has `needle` in what came since the last time.
    pub(crate) async fn until(&mut self, channel: u8, needle: &str) -> String {
        self.from.until(channel, needle).await
    }

    /// Everything to the end of the connection.
    pub(crate) async fn finish(self) -> Outcome {
        let Self { to, from } = self;
        let outcome = from.finish().await;
        drop(to);
        outcome
    }
}

impl To {
    pub(crate) async fn send(&mut self, channel: u8, data: &[u8]) {
        self.try_send(channel, data).await.expect("the connection lasts");
    }

    pub(crate) async fn try_send(&mut self, channel: u8, data: &[u8]) -> Result<(), Error> {
        let message = if self.base64 {
            Message::text(format!("{}{}", char::from(b'0' + channel), STANDARD.encode(data)))
        } else {
            Message::binary([&[channel], data].concat())
        };
        self.socket.send(message).await
    }

    /// The end of one channel, which only v5 has.
    pub(crate) async fn end(&mut self, channel: u8) {
        self.socket.send(Message::binary(vec![255, channel])).await.expect("the connection lasts");
    }

    pub(crate) async fn resize(&mut self, columns: u16, rows: u16) {
        self.send(RESIZE, format!("{{\"Width\":{columns},\"Height\":{rows}}}").as_bytes()).await;
    }

    /// Anything, however wrong.
    pub(crate) async fn raw(&mut self, message: Message) {
        self.try_raw(message).await.expect("the connection lasts");
    }

    pub(crate) async fn try_raw(&mut self, message: Message) -> Result<(), Error> {
        self.socket.send(message).await
    }
}

impl From {
    /// The next message; `None` at the end.
    pub(crate) async fn next(&mut self) -> Option<(u8, Bytes)> {
        loop {
            let message = match self.socket.next().await? {
                Ok(Message::Binary(message)) if !self.base64 => message,
                Ok(Message::Text(text)) if self.base64 => {
                    let (channel, data) = text.split_at(1);
                    let data = STANDARD.decode(data).expect("base64");
                    return Some((channel.as_bytes()[0] - b'0', data.into()));
                }
                Ok(Message::Ping(_) | Message::Pong(_) | Message::Close(_)) => continue,
                Ok(other) => panic!("unexpected {other:?}"),
                // The server is gone without a word.
                Err(_) => return None,
            };
            return Some((message[0], message.slice(1..)));
        }
    }

    /// Reads until `channel` has `needle` in what came since the last time, and returns that.
    pub(crate) async fn until(&mut self, channel: u8, needle: &str) -> String {
        loop {
            let seen = &mut self.seen[usize::from(channel)];
            if let Some(at) = seen.windows(needle.len()).position(|window| window == needle.as_bytes()) {
                // What came after it is for the next time.
                let found: Vec<u8> = seen.drain(..at + needle.len()).collect();
                return String::from_utf8_lossy(&found).into_owned();
            }
            // Well before the whole test gives up, so that it can be told what came instead.
            let next = tokio::time::timeout(*crate::fixture::node::PATIENCE / 2, self.next()).await;
            let (from, data) =
                next.ok().flatten().unwrap_or_else(|| panic!("no {needle:?} in {:?}", self.seen()));
            self.seen[usize::from(from)].extend_from_slice(&data);
        }
    }

    fn seen(&self) -> Vec<String> {
        self.seen.iter().map(|seen| String::from_utf8_lossy(seen).into_owned()).collect()
    }

    /// The frame that closes the connection: its code and reason.
    pub(crate) async fn closed(&mut self) -> Option<(u16, String)> {
        loop {
            match self.socket.next().await? {
                Ok(Message::Close(frame)) => {
                    return frame.map(|frame| (frame.code.into(), frame.reason.to_string()));
                }
                Ok(_) => {}
                Err(_) => return None,
            }
        }
    }

    pub(crate) async fn finish(mut self) -> Outcome {
        while let Some((channel, data)) = self.next().await {
            self.seen[usize::from(channel)].extend_from_slice(&data);
        }
        let [_, stdout, stderr, error, ..] = self.seen;
        Outcome { stdout, stderr, error }
    }
}

impl Outcome {
    pub(crate) fn status(&self) -> Value {
        let text = String::from_utf8_lossy(&self.error);
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text:?} of {self:?}"))
    }

    /// The exit code as client-go takes it from the status.
    pub(crate) fn code(&self) -> i32 {
        let status = self.status();
        if status["status"] == "Success" {
            return 0;
        }
        assert_eq!(status["reason"], "NonZeroExitCode", "{status}");
        let cause = &status["details"]["causes"][0];
        assert_eq!(cause["reason"], "ExitCode", "{status}");
        cause["message"].as_str().and_then(|code| code.parse().ok()).expect("a number")
    }

    pub(crate) fn text(&self) -> (String, String) {
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        (text(&self.stdout), text(&self.stderr))
    }
}
