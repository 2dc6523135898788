//! Several byte streams in one WebSocket, told apart by the first byte of each message.
//!
//! There is no flow control per channel: who does not read one channel stops the others too, as with every other
//! implementation of this protocol. A task reads the socket into the queues of the channels; writers take turns.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use futures_util::stream::SplitStream;
use futures_util::{Sink, SinkExt, StreamExt};
use hyper::body::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Notify, mpsc};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Message, Role};
use tokio_tungstenite::tungstenite::{Error, Utf8Bytes};
use tokio_util::task::AbortOnDropHandle;

use super::config;

/// What may wait on a channel for its reader; with more, the socket is not read on. As much as a stream of SPDY holds. A
/// message may be larger than this: it goes in whole, and is then the only one, so a channel whose reader is stuck holds
/// at most this much and one message.
const UNREAD_MAX: usize = 512 << 10;

/// What a queued piece costs beyond its bytes, roughly, so that pieces of one byte count.
const PIECE_COST: usize = 128;

/// Pieces smaller than this are copied, lest a few bytes hold a whole read buffer in memory.
const SMALL: usize = super::READ_BYTES / 4;

/// While the socket is not read, no ping is answered, and client-go gives a connection up after a minute without a
/// pong. So one is sent unasked, which is allowed (RFC 6455 section 5.5.3), and tells us whether the client is there.
const PONG_EVERY: Duration = Duration::from_secs(15);

/// How long the client may take to answer our close.
const CLOSE_WAIT: Duration = Duration::from_secs(2);

/// Says that the channel in the next byte will get no more (v5).
const END: u8 = 255;

/// Clients pad base64 or do not.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// How messages carry channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Coding {
    base64: bool,
    /// One channel can be ended before the others.
    ends: bool,
}

/// What a message says.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Said {
    Data(u8, Bytes),
    End(u8),
    /// A ping, a pong, an empty message.
    Nothing,
    Close,
}

/// Why a message makes no sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
enum Malformed {
    #[error("a message for channel {0} is not base64")]
    NotBase64(u8),
    #[error("a message ends no channel")]
    EndOfNothing,
}

impl Coding {
    fn of(protocol: &str) -> Self {
        Self { base64: protocol.contains("base64"), ends: protocol == "v5.channel.k8s.io" }
    }

    fn data(self, channel: u8, data: &[u8]) -> Message {
        if self.base64 {
            let mut text = String::with_capacity(2 + data.len().div_ceil(3) * 4);
            text.push(char::from(b'0'.wrapping_add(channel)));
            BASE64.encode_string(data, &mut text);
            return Message::Text(text.into());
        }
        let mut message = Vec::with_capacity(1 + data.len());
        message.push(channel);
        message.extend_from_slice(data);
        Message::Binary(message.into())
    }

    /// Text and binary are taken alike, as other implementations do.
    fn read(self, message: Message) -> Result<Said, Malformed> {
        let mut message: Bytes = match message {
            Message::Binary(bytes) => bytes,
            Message::Text(text) => text.into(),
            Message::Close(_) => return Ok(Said::Close),
            Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => return Ok(Said::Nothing),
        };
        if message.is_empty() {
            return Ok(Said::Nothing);
        }
        let first = message.split_to(1)[0];
        if self.ends && first == END {
            return match message[..] {
                [channel] => Ok(Said::End(channel)),
                _ => Err(Malformed::EndOfNothing),
            };
        }
        if !self.base64 {
            return Ok(Said::Data(first, message));
        }
        let channel = first.wrapping_sub(b'0');
        let data = BASE64.decode(&message).map_err(|_| Malformed::NotBase64(channel))?;
        Ok(Said::Data(channel, data.into()))
    }
}

/// The writing half of a socket, whatever is below it.
type Writer = std::pin::Pin<Box<dyn Sink<Message, Error = Error> + Send>>;

struct Outgoing {
    coding: Coding,
    role: Role,
    /// Held while one message is written.
    writer: tokio::sync::Mutex<Writer>,
}

impl fmt::Debug for Outgoing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outgoing").field("coding", &self.coding).finish_non_exhaustive()
    }
}

impl Outgoing {
    async fn send(&self, message: Message) -> io::Result<()> {
        self.writer.lock().await.send(message).await.map_err(|error| match error {
            Error::Io(error) => error,
            error => io::Error::new(io::ErrorKind::BrokenPipe, error),
        })
    }

    async fn close(&self, code: CloseCode, reason: String) {
        // A control frame has room for 123 bytes of reason.
        let end = reason.floor_char_boundary(123);
        let reason = Utf8Bytes::from(&reason[..end]);
        self.send(Message::Close(Some(CloseFrame { code, reason }))).await.ok();
    }
}

/// What is sent on one channel.
#[derive(Debug)]
pub(crate) struct Sender {
    channel: u8,
    to: Arc<Outgoing>,
}

impl Sender {
    /// Returns when the socket has taken the piece.
    pub(crate) async fn send(&mut self, data: Bytes) -> io::Result<()> {
        self.to.send(self.to.coding.data(self.channel, &data)).await
    }

    /// Says that nothing more will come, where the protocol can say so: only clients do, on v5.
    pub(crate) async fn finish(&mut self) -> io::Result<()> {
        if self.to.coding.ends && self.to.role == Role::Client {
            return self.to.send(Message::Binary(vec![END, self.channel].into())).await;
        }
        Ok(())
    }
}

/// What has come on one channel.
#[derive(Debug)]
pub(crate) struct Receiver {
    pieces: mpsc::UnboundedReceiver<Bytes>,
    unread: Arc<Unread>,
    /// What the last piece is charged with: its reader is at work on it until it asks for the next.
    held: usize,
}

impl Receiver {
    /// The next piece; `None` once the channel has ended or the other side is gone. Cancel-safe.
    pub(crate) async fn recv(&mut self) -> Option<Bytes> {
        self.unread.less(std::mem::take(&mut self.held));
        let piece = self.pieces.recv().await?;
        self.held = charge(&piece);
        Some(piece)
    }
}

/// The other end of a [`Receiver`]. The channel itself has no bound; the reader of the socket, which is the only one that
/// fills it, waits for room after every piece.
#[derive(Debug)]
struct Queue {
    pieces: mpsc::UnboundedSender<Bytes>,
    unread: Arc<Unread>,
}

fn queue() -> (Queue, Receiver) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let unread = Arc::<Unread>::default();
    let queue = Queue { pieces: sender, unread: Arc::clone(&unread) };
    (queue, Receiver { pieces: receiver, unread, held: 0 })
}

fn charge(piece: &Bytes) -> usize {
    piece.len() + PIECE_COST
}

/// How much waits on a channel.
#[derive(Debug, Default)]
struct Unread {
    charge: AtomicUsize,
    taken: Notify,
}

impl Unread {
    fn more(&self, charge: usize) {
        self.charge.fetch_add(charge, Ordering::AcqRel);
    }

    fn less(&self, charge: usize) {
        if charge > 0 {
            self.charge.fetch_sub(charge, Ordering::AcqRel);
            // Only the reader of the socket waits; told too early, it looks once more.
            self.taken.notify_one();
        }
    }

    /// Returns when there is room. Cancel-safe.
    async fn room(&self) {
        while self.charge.load(Ordering::Acquire) >= UNREAD_MAX {
            self.taken.notified().await;
        }
    }
}

/// A connection with channels. Dropped, it is closed without a word.
#[derive(Debug)]
pub(crate) struct Channels {
    to: Arc<Outgoing>,
    reader: AbortOnDropHandle<()>,
}

impl Channels {
    /// Speaks `protocol` over a connection that has been upgraded. Of what comes, only the channels of `inputs` are kept;
    /// their receivers are returned in the same order. Needs a tokio runtime.
    pub(crate) async fn over<S>(io: S, role: Role, protocol: &str, inputs: &[u8]) -> (Self, Vec<Receiver>)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let coding = Coding::of(protocol);
        let (writer, reader) = WebSocketStream::from_raw_socket(io, role, Some(config())).await.split();
        let to = Arc::new(Outgoing { coding, role, writer: tokio::sync::Mutex::new(Box::pin(writer)) });
        let (queues, receivers) = inputs
            .iter()
            .map(|channel| {
                let (queue, receiver) = queue();
                ((*channel, queue), receiver)
            })
            .unzip();
        let reader = tokio::spawn(read(reader, Arc::clone(&to), queues));
        (Self { to, reader: AbortOnDropHandle::new(reader) }, receivers)
    }

    pub(crate) fn sender(&self, channel: u8) -> Sender {
        Sender { channel, to: Arc::clone(&self.to) }
    }

    /// Returns when the other side is gone, or has said something that makes no sense. Cancel-safe.
    pub(crate) async fn closed(&mut self) {
        if !self.reader.is_finished() {
            (&mut self.reader).await.ok();
        }
    }

    /// Says goodbye and waits a moment for the answer: a connection that is closed with something unread in it is reset,
    /// and then the other side may lose what it has not read yet.
    pub(crate) async fn close(mut self) {
        let goodbye = async {
            self.to.close(CloseCode::Normal, String::new()).await;
            self.closed().await;
        };
        tokio::time::timeout(CLOSE_WAIT, goodbye).await.ok();
    }
}

/// Reads until the other side is gone, or says something wrong, which it is told.
async fn read<S>(mut from: SplitStream<WebSocketStream<S>>, to: Arc<Outgoing>, mut queues: Vec<(u8, Queue)>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    while let Some(message) = from.next().await {
        let (code, wrong) = match message.map(|message| to.coding.read(message)) {
            Ok(Ok(Said::Data(channel, data))) => {
                let queue = queues.iter().find(|(number, _)| *number == channel).map(|(_, queue)| queue);
                // What nobody wants is thrown away; so is what comes for a channel that does not exist.
                match queue {
                    Some(queue) if enqueue(queue, data, &to).await.is_err() => return,
                    _ => continue,
                }
            }
            Ok(Ok(Said::End(channel))) => {
                queues.retain(|(number, _)| *number != channel);
                continue;
            }
            // The answer to a close is sent by the next read, which then ends.
            Ok(Ok(Said::Nothing | Said::Close)) => continue,
            Ok(Err(malformed)) => (CloseCode::Protocol, malformed.to_string()),
            Err(Error::Capacity(error)) => (CloseCode::Size, error.to_string()),
            Err(Error::Protocol(error)) => (CloseCode::Protocol, error.to_string()),
            Err(Error::Utf8(error)) => (CloseCode::Invalid, error),
            Err(error) => {
                tracing::debug!(%error, "a WebSocket broke off");
                return;
            }
        };
        tracing::debug!(wrong, "a WebSocket is closed");
        tokio::time::timeout(CLOSE_WAIT, to.close(code, wrong)).await.ok();
        return;
    }
}

/// Queues a piece and waits for room for the next: a piece that waited for room itself would be held beyond the bound.
/// Fails when the other side turns out to be gone meanwhile.
async fn enqueue(queue: &Queue, data: Bytes, to: &Outgoing) -> io::Result<()> {
    let piece = if data.len() < SMALL { Bytes::copy_from_slice(&data) } else { data };
    queue.unread.more(charge(&piece));
    // An error means that nobody wants it; then nobody is waited for below either.
    queue.pieces.send(piece).ok();
    loop {
        let room = async {
            tokio::select! {
                () = queue.unread.room() => {}
                () = queue.pieces.closed() => {}
            }
        };
        if tokio::time::timeout(PONG_EVERY, room).await.is_ok() {
            return Ok(());
        }
        // Whoever is writing now keeps the connection alive, or waits for the client as we would.
        if let Ok(mut writer) = to.writer.try_lock() {
            let pong = writer.send(Message::Pong(Bytes::new()));
            if let Ok(Err(error)) = tokio::time::timeout(PONG_EVERY, pong).await {
                return Err(io::Error::other(error));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

    use super::*;

    const V5: &str = "v5.channel.k8s.io";

    async fn pair(protocol: &str, inputs: &[u8]) -> (Channels, Vec<Receiver>, Channels, Vec<Receiver>) {
        let (near, far) = tokio::io::duplex(1 << 20);
        let (server, to_server) = Channels::over(near, Role::Server, protocol, inputs).await;
        let (client, to_client) = Channels::over(far, Role::Client, protocol, inputs).await;
        (server, to_server, client, to_client)
    }

    #[tokio::test]
    async fn channels_arrive_apart_and_in_order_in_every_coding() {
        for protocol in [V5, "v4.channel.k8s.io", "v4.base64.channel.k8s.io", ""] {
            let (server, mut at_server, client, mut at_client) = pair(protocol, &[0, 4]).await;
            for (from, to) in [(&server, &mut at_client), (&client, &mut at_server)] {
                from.sender(4).send("later".into()).await.unwrap();
                from.sender(0).send(Bytes::from_static(&[0, 255, 10])).await.unwrap();
                from.sender(7).send("nobody wants this".into()).await.unwrap();
                from.sender(0).send("second".into()).await.unwrap();
                let (mut four, mut zero) = (to.pop().unwrap(), to.pop().unwrap());
                assert_eq!(zero.recv().await.unwrap()[..], [0, 255, 10], "{protocol}");
                assert_eq!(zero.recv().await.unwrap(), "second", "{protocol}");
                assert_eq!(four.recv().await.unwrap(), "later", "{protocol}");
            }
        }
    }

    #[tokio::test]
    async fn one_channel_ends_before_the_others_on_v5_only() {
        let (_server, mut at_server, client, _) = pair(V5, &[0, 4]).await;
        let (mut four, mut zero) = (at_server.pop().unwrap(), at_server.pop().unwrap());
        client.sender(0).send("a".into()).await.unwrap();
        client.sender(0).finish().await.unwrap();
        client.sender(4).send("b".into()).await.unwrap();
        assert_eq!((zero.recv().await, zero.recv().await), (Some("a".into()), None));
        assert_eq!(four.recv().await, Some("b".into()));

        let (server, mut at_server, client, mut at_client) = pair("v4.channel.k8s.io", &[0]).await;
        for (from, to) in [(&server, &mut at_client), (&client, &mut at_server)] {
            from.sender(0).finish().await.unwrap();
            from.sender(0).send("still".into()).await.unwrap();
            assert_eq!(to.pop().unwrap().recv().await, Some("still".into()));
        }
    }

    #[tokio::test]
    async fn both_sides_learn_of_the_end() {
        let (server, mut at_server, mut client, mut at_client) = pair(V5, &[0]).await;
        let (closed, ()) = tokio::join!(at_client[0].recv(), server.close());
        assert_eq!(closed, None);
        client.closed().await;
        assert_eq!(at_server[0].recv().await, None);
        assert!(client.sender(0).send("x".into()).await.is_err());

        let (mut server, mut at_server, client, _) = pair(V5, &[0]).await;
        drop(client);
        server.closed().await;
        assert_eq!(at_server[0].recv().await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_whose_input_waits_is_told_that_we_are_alive_and_noticed_when_it_goes() {
        let (mut server, at_server, client, _) = pair(V5, &[0]).await;
        // The last piece stays in the socket: the duplex has room for it.
        for _ in 0..UNREAD_MAX / (64 << 10) + 1 {
            client.sender(0).send(vec![0; 64 << 10].into()).await.unwrap();
        }
        // The clock jumps, since everything waits: pongs pass without harm.
        assert!(tokio::time::timeout(4 * PONG_EVERY, server.closed()).await.is_err());
        drop(client);
        server.closed().await;
        drop(at_server);
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_reads_is_bounded_in_bytes_and_a_large_message_passes_alone() {
        let (server, mut at_server, client, _) = pair(V5, &[0]).await;
        let (mut sender, unread) = (client.sender(0), Arc::clone(&at_server[0].unread));
        let waiting = || unread.charge.load(Ordering::Acquire);
        let large = Bytes::from(vec![1; 4 * UNREAD_MAX]);
        let small = Bytes::from(vec![2; 100]);
        let sent = {
            let (large, small) = (large.clone(), small.clone());
            tokio::spawn(async move {
                sender.send(large.clone()).await.unwrap();
                sender.send(large).await.unwrap();
                for _ in 0..3 * UNREAD_MAX / small.len() {
                    sender.send(small.clone()).await.unwrap();
                }
            })
        };
        // The clock moves when everything stands still.
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(waiting(), charge(&large));
        assert_eq!(at_server[0].recv().await.as_ref(), Some(&large));
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(waiting(), charge(&large), "its reader is at work on the first");
        assert_eq!(at_server[0].recv().await, Some(large));
        let first = at_server[0].recv().await.unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!((UNREAD_MAX..UNREAD_MAX + charge(&small)).contains(&waiting()), "{}", waiting());
        let mut count = 1;
        while count < 3 * UNREAD_MAX / first.len() {
            assert_eq!(at_server[0].recv().await.as_ref(), Some(&small));
            count += 1;
        }
        sent.await.unwrap();
        drop((server, client));
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_gives_up_lets_the_other_channels_go_on() {
        let (_server, mut at_server, client, _) = pair(V5, &[0, 4]).await;
        client.sender(0).send(vec![0; UNREAD_MAX].into()).await.unwrap();
        client.sender(4).send("size".into()).await.unwrap();
        let (mut four, zero) = (at_server.pop().unwrap(), at_server.pop().unwrap());
        assert!(tokio::time::timeout(Duration::from_secs(1), four.recv()).await.is_err());
        drop(zero);
        assert_eq!(four.recv().await, Some("size".into()));
    }

    /// What a server answers to these bytes, until it closes.
    async fn answer(protocol: &str, bytes: &[u8]) -> Vec<u8> {
        let (near, mut far): (_, DuplexStream) = tokio::io::duplex(1 << 20);
        let (mut server, _receivers) = Channels::over(near, Role::Server, protocol, &[0]).await;
        far.write_all(bytes).await.unwrap();
        server.closed().await;
        drop(server);
        let mut answer = Vec::new();
        far.read_to_end(&mut answer).await.unwrap();
        answer
    }

    /// A frame of a client, masked with zeroes.
    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        assert!(payload.len() < 126, "one byte of length");
        [&[first, 0x80 | payload.len() as u8, 0, 0, 0, 0], payload].concat()
    }

    #[tokio::test]
    async fn what_makes_no_sense_is_answered_with_a_reason() {
        let close = |code: u16| [0x88_u8].into_iter().chain(code.to_be_bytes()).collect::<Vec<_>>();
        for (bytes, code) in [
            // The end of no channel; a frame without a mask; reserved bits; an unknown kind; a continuation of nothing.
            (frame(0x82, &[END]), 1002),
            (vec![0x82, 1, 0], 1002),
            (frame(0xf2, &[0]), 1002),
            (frame(0x83, &[0]), 1002),
            (frame(0x80, &[0]), 1002),
            // A ping in pieces; a text that is none; more than we take, by its length alone.
            (frame(0x09, &[0]), 1002),
            (frame(0x81, &[0x30, 0xff]), 1007),
            (vec![0x82, 0xff, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0], 1009),
        ] {
            let answer = answer(V5, &bytes).await;
            let found = [answer.first().copied().unwrap_or(0), answer[2], answer[3]];
            assert_eq!(found[..], close(code), "{bytes:?}: {answer:?}");
        }
        let answer = answer("base64.channel.k8s.io", &frame(0x81, b"0*")).await;
        assert_eq!(&answer[4..], b"a message for channel 0 is not base64");
    }

    #[tokio::test]
    async fn pings_are_answered_between_the_pieces_of_a_message() {
        let (near, mut far) = tokio::io::duplex(1 << 20);
        let (_server, mut receivers) = Channels::over(near, Role::Server, V5, &[0]).await;
        far.write_all(&[frame(0x02, &[0, b'a']), frame(0x89, b"ping"), frame(0x80, b"b")].concat())
            .await
            .unwrap();
        assert_eq!(receivers[0].recv().await, Some("ab".into()));
        let mut pong = [0; 6];
        far.read_exact(&mut pong).await.unwrap();
        assert_eq!(&pong, b"\x8a\x04ping");
    }
}
