//! A client of the channel protocols over SPDY/3.1, frame by frame, as Go's spdystream is one: it keeps no windows.
//!
//! Headers are packed without SPDY's dictionary, which zlib leaves to the sender, and those of replies are not looked at.
//! crictl and critest bring the dictionary to the same server.

use bytes::{Buf, Bytes, BytesMut};
use flate2::{Compress, Compression, FlushCompress};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use super::client::{Outcome, Refusal, address};

const FIN: u8 = 1;
const SYN_STREAM: u8 = 1;
const SYN_REPLY: u8 = 2;
const RST_STREAM: u8 = 3;
const PING: u8 = 6;
const GOAWAY: u8 = 7;

/// Bytes of one read: what the server puts into a frame.
const READ_BYTES: usize = 64 << 10;

/// What comes from the server.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Frame {
    /// All or a piece of a frame; `end` says that the stream gets no more.
    Data {
        stream: u32,
        data: Bytes,
        end: bool,
    },
    /// The stream is accepted.
    Reply(u32),
    /// The stream is refused or broken off, for this reason.
    Reset(u32, u32),
    Ping(u32),
    GoAway,
    /// SETTINGS, WINDOW_UPDATE.
    Other(u8),
}

/// A connection after the upgrade.
pub(crate) struct Spdy {
    pub(crate) to: To,
    pub(crate) from: From,
}

/// What is sent.
pub(crate) struct To {
    socket: OwnedWriteHalf,
    deflate: Compress,
    /// Of the next stream; a client's are odd.
    next: u32,
}

/// What comes.
pub(crate) struct From {
    socket: OwnedReadHalf,
    buffer: BytesMut,
    /// Of the data frame that is being read: its stream, what is missing, and whether it is the last.
    data: Option<(u32, usize, bool)>,
}

impl Spdy {
    /// Upgrades with this subprotocol; an empty one is not named.
    pub(crate) async fn open(url: &str, protocol: &str) -> Result<Self, Refusal> {
        let mut socket = TcpStream::connect(address(url)).await.expect("the server listens");
        let named = match protocol {
            "" => String::new(),
            protocol => format!("X-Stream-Protocol-Version: {protocol}\r\n"),
        };
        let path = &url[url.find(address(url)).expect("an address") + address(url).len()..];
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n{named}\r\n"
        );
        socket.write_all(request.as_bytes()).await.expect("the connection lasts");
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            answer.push(socket.read_u8().await.expect("an answer"));
        }
        let answer = String::from_utf8(answer).expect("text");
        if !answer.starts_with("HTTP/1.1 101 ") {
            let mut text = String::new();
            socket.read_to_string(&mut text).await.expect("a reason");
            return Err((answer[9..12].parse().expect("a status"), text));
        }
        let chosen = answer.lines().find_map(|line| line.strip_prefix("x-stream-protocol-version: "));
        assert_eq!(chosen.unwrap_or_default(), protocol);
        let (from, to) = socket.into_split();
        Ok(Self {
            to: To { socket: to, deflate: Compress::new(Compression::default(), true), next: 1 },
            from: From { socket: from, buffer: BytesMut::new(), data: None },
        })
    }
}

impl To {
    /// Opens a stream for something, by its number.
    pub(crate) async fn stream(&mut self, headers: &[(&str, &str)]) -> u32 {
        let mut block = u32::try_from(headers.len()).expect("a few").to_be_bytes().to_vec();
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            block.extend(u32::try_from(text.len()).expect("short").to_be_bytes());
            block.extend(text.as_bytes());
        }
        // Room enough for a few headers, however badly they pack.
        let mut packed = Vec::with_capacity(1024);
        self.deflate.compress_vec(&block, &mut packed, FlushCompress::Sync).expect("zlib packs");
        let id = self.next;
        self.next += 2;
        let mut body = id.to_be_bytes().to_vec();
        // Neither an associated stream nor a priority.
        body.extend([0; 6]);
        body.extend(packed);
        self.control(SYN_STREAM, &body).await;
        id
    }

    pub(crate) async fn send(&mut self, stream: u32, data: &[u8]) {
        self.try_data(stream, data, 0).await.expect("the connection lasts");
    }

    /// The end of one direction of one stream.
    pub(crate) async fn end(&mut self, stream: u32) {
        self.try_data(stream, b"", FIN).await.expect("the connection lasts");
    }

    pub(crate) async fn ping(&mut self, id: u32) -> std::io::Result<()> {
        self.try_control(PING, &id.to_be_bytes()).await
    }

    async fn try_data(&mut self, stream: u32, data: &[u8], flags: u8) -> std::io::Result<()> {
        let mut frame = stream.to_be_bytes().to_vec();
        frame.extend((u32::from(flags) << 24 | u32::try_from(data.len()).expect("short")).to_be_bytes());
        frame.extend(data);
        self.socket.write_all(&frame).await
    }

    async fn control(&mut self, kind: u8, body: &[u8]) {
        self.try_control(kind, body).await.expect("the connection lasts");
    }

    async fn try_control(&mut self, kind: u8, body: &[u8]) -> std::io::Result<()> {
        let mut frame = vec![0x80, 3, 0, kind];
        frame.extend(u32::try_from(body.len()).expect("short").to_be_bytes());
        frame.extend(body);
        self.socket.write_all(&frame).await
    }
}

impl From {
    /// The next frame, or the next piece of one; `None` at the end of the connection.
    pub(crate) async fn next(&mut self) -> Option<Frame> {
        loop {
            if let Some((stream, missing, last)) = self.data
                && (missing == 0 || !self.buffer.is_empty())
            {
                let length = missing.min(self.buffer.len());
                let data = self.buffer.split_to(length).freeze();
                let whole = length == missing;
                self.data = (!whole).then_some((stream, missing - length, last));
                return Some(Frame::Data { stream, data, end: whole && last });
            }
            if self.data.is_none() {
                if let Some(frame) = self.control() {
                    return Some(frame);
                }
                if self.data.is_some() {
                    continue;
                }
            }
            self.buffer.reserve(READ_BYTES);
            match self.socket.read_buf(&mut self.buffer).await {
                Ok(0) | Err(_) => return None,
                Ok(_) => {}
            }
        }
    }

    /// A whole control frame of the buffer. The head of a data frame is taken note of.
    fn control(&mut self) -> Option<Frame> {
        let word = |at: usize| {
            self.buffer.get(at..at + 4).map(|word| u32::from_be_bytes(word.try_into().expect("four bytes")))
        };
        let (first, second) = (word(0)?, word(4)?);
        let (flags, length) = ((second >> 24) as u8, (second & 0x00ff_ffff) as usize);
        if first >> 31 == 0 {
            self.data = Some((first, length, flags & FIN != 0));
            self.buffer.advance(8);
            return None;
        }
        if self.buffer.len() < 8 + length {
            return None;
        }
        let frame = match first as u8 {
            SYN_REPLY => Frame::Reply(word(8)?),
            RST_STREAM => Frame::Reset(word(8)?, word(12)?),
            PING => Frame::Ping(word(8)?),
            GOAWAY => Frame::GoAway,
            kind => Frame::Other(kind),
        };
        self.buffer.advance(8 + length);
        Some(frame)
    }
}

/// An exec or attach with all its streams open.
pub(crate) struct Session {
    pub(crate) to: To,
    pub(crate) from: From,
    stdin: Option<u32>,
    stdout: Option<u32>,
    stderr: Option<u32>,
    error: u32,
    resize: Option<u32>,
    /// What came on stdout, stderr and the error stream so far.
    seen: [Vec<u8>; 3],
    /// By [`Session::seen_at_least`].
    awaited: usize,
}

impl Session {
    /// Opens the streams that `letters` has, as [`super::Ship::exec_url`] has them; `r` is one for sizes.
    pub(crate) async fn open(url: &str, protocol: &str, letters: &str) -> Self {
        let Spdy { mut to, from } = Spdy::open(url, protocol).await.expect("the upgrade");
        // The order is client-go's.
        let error = to.stream(&[("streamtype", "error")]).await;
        let (mut stdin, mut stdout, mut stderr, mut resize) = (None, None, None, None);
        for (letter, kind, place) in [
            ('i', "stdin", &mut stdin),
            ('o', "stdout", &mut stdout),
            ('e', "stderr", &mut stderr),
            ('r', "resize", &mut resize),
        ] {
            if letters.contains(letter) {
                *place = Some(to.stream(&[("streamtype", kind)]).await);
            }
        }
        Self { to, from, stdin, stdout, stderr, error, resize, seen: Default::default(), awaited: 0 }
    }

    pub(crate) async fn send(&mut self, data: &[u8]) {
        self.to.send(self.stdin.expect("there is an input"), data).await;
    }

    pub(crate) async fn end_input(&mut self) {
        self.to.end(self.stdin.expect("there is an input")).await;
    }

    pub(crate) async fn resize(&mut self, columns: u16, rows: u16) {
        let size = format!("{{\"Width\":{columns},\"Height\":{rows}}}");
        self.to.send(self.resize.expect("there is a stream for it"), size.as_bytes()).await;
    }

    /// The stream for sizes.
    pub(crate) fn sizes(&self) -> u32 {
        self.resize.expect("there is a stream for it")
    }

    /// The next frame, whose data is kept too.
    pub(crate) async fn next(&mut self) -> Option<Frame> {
        let frame = self.from.next().await;
        if let Some(Frame::Data { stream, data, .. }) = &frame {
            let streams = [self.stdout, self.stderr, Some(self.error)];
            let at = streams.iter().position(|known| *known == Some(*stream)).expect("a stream to read from");
            self.seen[at].extend_from_slice(data);
        }
        frame
    }

    /// Reads until stdout has `needle`.
    pub(crate) async fn until(&mut self, needle: &str) {
        while !String::from_utf8_lossy(&self.seen[0]).contains(needle) {
            let next = tokio::time::timeout(*crate::fixture::node::PATIENCE / 2, self.next()).await;
            if next.ok().flatten().is_none() {
                panic!("no {needle:?} in {:?}", String::from_utf8_lossy(&self.seen[0]));
            }
        }
    }

    /// Reads until `more` bytes have come on stdout since the last time.
    pub(crate) async fn seen_at_least(&mut self, more: usize) {
        self.awaited += more;
        while self.seen[0].len() < self.awaited {
            self.next().await.expect("the connection lasts");
        }
    }

    /// Everything to the end of the connection.
    pub(crate) async fn finish(mut self) -> Outcome {
        while self.next().await.is_some() {}
        let [stdout, stderr, error] = self.seen;
        Outcome { stdout, stderr, error }
    }
}
