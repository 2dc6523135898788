//! What the fuzz targets of `tests/fuzz` call, and a short run of it without any tool: the corpus, then simple mutations of it.
//!
//! A property that does not hold is a panic. The corpus is made by [`tests::seeds`]; what a long run finds is added to it.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::{JoinSet, yield_now};

use super::frame::{Decoder, Frame};
use super::headers::{self, Inflater};
use super::{Connection, NewStream, Role};

/// The input as frames, cut as its first byte says: whatever is a frame survives being written and read again.
pub(crate) fn frames(input: &[u8]) {
    let Some((&cut, mut rest)) = input.split_first() else { return };
    let (mut decoder, mut buffer, mut inflater) =
        (Decoder::default(), BytesMut::new(), Some(Inflater::default()));
    while !rest.is_empty() {
        let (chunk, more) = rest.split_at(rest.len().min(usize::from(cut) + 1));
        rest = more;
        buffer.extend_from_slice(chunk);
        loop {
            let frame = match decoder.decode(&mut buffer) {
                Ok(Some(frame)) => frame,
                Ok(None) => break,
                Err(_) => return,
            };
            let mut wire = BytesMut::new();
            frame.encode(&mut wire);
            assert_eq!(Decoder::default().decode(&mut wire), Ok(Some(frame.clone())));
            assert!(wire.is_empty());
            if let Frame::SynStream { block, .. }
            | Frame::SynReply { block, .. }
            | Frame::Headers { block, .. } = frame
            {
                let block = inflater.take().and_then(|mut unpacking| {
                    let block = unpacking.inflate(&block).ok()?;
                    inflater = Some(unpacking);
                    Some(block)
                });
                block.map(|block| headers::read(&block).ok());
            }
        }
    }
}

/// The input as all that a client says, to a server that accepts, refuses, echoes, holds and drops streams in turn: it comes
/// to its end, nothing is left, and what the server said makes sense.
pub(crate) fn connection(input: &[u8]) {
    let Some((&mode, said)) = input.split_first() else { return };
    let heard = Arc::default();
    let script = Script {
        input: said.to_vec().into(),
        chunk: 1 << (mode & 15),
        takes: if mode & 16 == 0 { usize::MAX } else { 7 },
        stuck: mode & 32 != 0,
        busy: false,
        heard: Arc::clone(&heard),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    runtime.expect("a runtime without I/O needs nothing").block_on(async {
        let (connection, mut incoming) = Connection::new(script, Role::Server);
        let mut work = JoinSet::new();
        while let Some(stream) = incoming.accept().await {
            work.spawn(serve(stream));
        }
        work.join_all().await;
        let shared = Arc::clone(&connection.shared);
        connection.close().await;
        assert!(shared.lock().is_empty(), "{:?}", shared.lock());
    });

    let mut heard = std::mem::take(&mut *heard.lock().unwrap_or_else(PoisonError::into_inner));
    let (mut decoder, mut inflater) = (Decoder::default(), Inflater::default());
    while let Some(frame) = decoder.decode(&mut heard).expect("a frame of ours can be read") {
        if let Frame::SynReply { block, .. } = frame {
            let block = inflater.inflate(&block).expect("headers of ours can be unpacked");
            headers::read(&block).expect("headers of ours can be read");
        }
    }
}

async fn serve(stream: NewStream) {
    stream.header("streamtype");
    match stream.id / 2 % 6 {
        0 => drop(stream.refuse().await),
        1 => drop(stream),
        2 => drop(stream.accept().await),
        3 => {
            // The reader is stuck for a while.
            let Ok(stream) = stream.accept().await else { return };
            for _ in 0..20 {
                yield_now().await;
            }
            let (mut sender, mut receiver) = stream.split();
            receiver.recv().await;
            drop(receiver);
            sender.send(Bytes::from_static(&[3; 100_000])).await.ok();
        }
        _ => {
            let Ok(stream) = stream.accept().await else { return };
            let (mut sender, mut receiver) = stream.split();
            while let Some(piece) = receiver.recv().await {
                sender.send(piece).await.ok();
            }
            sender.finish().await.ok();
        }
    }
}

/// A client that says what it was given, in chunks, and then is gone.
struct Script {
    input: VecDeque<u8>,
    chunk: usize,
    /// Bytes that one write takes.
    takes: usize,
    /// After its first write it takes no more.
    stuck: bool,
    /// Every second call finds it busy.
    busy: bool,
    heard: Arc<Mutex<BytesMut>>,
}

impl Script {
    fn is_busy(&mut self, cx: &Context<'_>) -> bool {
        self.busy = !self.busy;
        if self.busy {
            cx.waker().wake_by_ref();
        }
        self.busy
    }
}

impl AsyncRead for Script {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.is_busy(cx) {
            return Poll::Pending;
        }
        let length = self.chunk.min(self.input.len()).min(buffer.remaining());
        let bytes: Vec<u8> = self.input.drain(..length).collect();
        buffer.put_slice(&bytes);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Script {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        if self.stuck && !heard.is_empty() {
            return Poll::Pending;
        }
        let length = bytes.len().min(self.takes);
        heard.extend_from_slice(&bytes[..length]);
        drop(heard);
        if self.takes < usize::MAX && self.is_busy(cx) {
            // It was taken, and looks like a socket that is slow.
            return Poll::Ready(Ok(length));
        }
        Poll::Ready(Ok(length))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use super::super::frame::tests::{GO, unhex};
    use super::super::headers::Deflater;
    use super::*;

    /// Mutations of the short run, per target: about a second in a debug build.
    const MUTATIONS: usize = 4000;

    fn corpus(target: &str) -> PathBuf {
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(target)
    }

    /// What the corpus begins with: conversations that go well, and some that do not.
    pub(super) fn seeds() -> Vec<(&'static str, Vec<u8>)> {
        let go: Vec<_> = GO.iter().flat_map(|(_, hex)| unhex(hex)).collect();
        let talk = |frames: &[Frame]| {
            let mut wire = BytesMut::new();
            frames.iter().for_each(|frame| frame.encode(&mut wire));
            wire.to_vec()
        };
        let mut deflater = Deflater::default();
        let mut open = |id, kind: &str| {
            let block = deflater.deflate(&vec![("streamtype".to_owned(), kind.to_owned())]);
            Frame::SynStream { id, fin: false, unidirectional: false, block }
        };
        let data = |id, fin, length| Frame::Data { id, fin, piece: vec![b'x'; length].into() };
        let exec = [
            open(1, "error"),
            open(3, "stdin"),
            open(5, "stdout"),
            open(7, "resize"),
            data(7, false, 24),
            data(3, false, 700),
            Frame::Ping(1),
            data(3, true, 0),
            Frame::RstStream { id: 7, status: 5 },
            Frame::GoAway { last_id: 0, status: 0 },
        ];
        let mut deflater = Deflater::default();
        let mut open = |id| Frame::SynStream {
            id,
            fin: id % 4 == 1,
            unidirectional: id % 8 == 3,
            block: deflater.deflate(&vec![
                ("port".to_owned(), "80".to_owned()),
                ("requestid".to_owned(), id.to_string()),
            ]),
        };
        let forward: Vec<_> = (0..24)
            .map(|i| open(2 * i + 1))
            .chain((0..24).map(|i| data(2 * i + 1, i % 3 == 0, 60)))
            .collect();
        let windows = [
            Frame::Settings(vec![(7, 10), (4, 1)]),
            open(49),
            open(51),
            data(49, false, 3000),
            Frame::WindowUpdate { id: 49, delta: 900 },
            Frame::WindowUpdate { id: 0, delta: 900 },
            Frame::WindowUpdate { id: 49, delta: 0x7fff_ffff },
            Frame::Settings(vec![(7, 0)]),
            data(51, true, 50),
        ];
        let strange = [
            data(9, false, 5),
            data(2, false, 5),
            Frame::SynReply { id: 2, fin: false, block: Bytes::new() },
        ];
        let with = |mode: u8, bytes: &[u8]| [&[mode], bytes].concat();
        vec![
            ("go", with(15, &go)),
            ("exec", with(15, &talk(&exec))),
            ("exec-in-small-pieces", with(0x13, &talk(&exec))),
            ("exec-that-reads-nothing", with(0x2f, &talk(&exec))),
            ("forward", with(15, &talk(&forward))),
            ("windows", with(15, &talk(&[forward, windows.to_vec()].concat()))),
            ("strange", with(15, &talk(&strange))),
            ("http", with(15, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")),
        ]
    }

    /// Runs a target over its corpus and mutations of it. Always the same ones: what fails here fails everywhere.
    fn run(target: &str, function: fn(&[u8])) {
        let folder = corpus(target);
        if std::env::var_os("BRIG_WRITE_CORPUS").is_some() {
            fs::create_dir_all(&folder).unwrap();
            for (name, bytes) in seeds() {
                fs::write(folder.join(name), bytes).unwrap();
            }
        }
        for (name, bytes) in seeds() {
            let message = "the corpus is not that of the test: run it with BRIG_WRITE_CORPUS=1";
            assert_eq!(fs::read(folder.join(name)).ok(), Some(bytes), "{target}/{name}: {message}");
        }
        let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        let corpus: Vec<_> = files.iter().map(|path| fs::read(path).unwrap()).collect();
        corpus.iter().for_each(|input| function(input));
        // xorshift64 with its usual constants.
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        let mut below = |bound: usize| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            (random % bound.max(1) as u64) as usize
        };
        for i in 0..MUTATIONS {
            let mut input = corpus[i % corpus.len()].clone();
            for _ in 0..=below(3) {
                let (at, length) = (below(input.len()), below(40));
                let end = (at + length).min(input.len());
                match below(5) {
                    0 => input[at] ^= 1 << below(8),
                    1 => input[at] = below(256) as u8,
                    2 => drop(input.drain(at..end)),
                    3 => input.extend_from_within(at..),
                    _ => {
                        let other = &corpus[below(corpus.len())];
                        let from = below(other.len());
                        input.splice(at..end, other[from..(from + length).min(other.len())].iter().copied());
                    }
                }
                if input.is_empty() {
                    break;
                }
            }
            function(&input);
        }
    }

    #[test]
    fn no_bytes_confuse_the_frames() {
        run("spdy_frames", frames);
    }

    #[test]
    fn no_client_confuses_a_connection() {
        run("spdy_connection", connection);
    }
}
