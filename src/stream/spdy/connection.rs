//! The task that owns a connection's socket: it reads frames into the [`State`] and writes what the state hands out.
//!
//! ```text
//! Open ──close()──▶ Closing ──all sent──▶ Goodbye ──GOAWAY written──▶ write side shut ──peer closes──▶ ended
//!   └──── a frame that must not be ──────────▲
//! ```
//!
//! From any phase the end of the peer, an error of the socket and the drop of all handles lead to the end at once.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, Sleep, sleep};
use tokio_util::io::poll_read_buf;

use super::frame::Decoder;
use super::state::{Phase, READ_BYTES, State};

/// How long a connection that is being closed may stand still while there is something to send. A client on a bad line
/// gets the end of its output; one that is stuck keeps nothing.
const CLOSE_WAIT: Duration = Duration::from_secs(10);

/// How long the peer may take to close its side. Without that wait the kernel would answer what the peer has sent meanwhile
/// with a reset, at which the peer's kernel may throw away our last words.
const LINGER: Duration = Duration::from_secs(2);

/// While the socket is not read, the end of the peer is not seen either; but what is written to a peer that is gone fails,
/// the first time or the next.
const POKE_EVERY: Duration = Duration::from_secs(15);

/// Slices of one write. The kernel takes 1024; a batch has less than this unless its pieces are small.
const SLICES: usize = 64;

/// The state, as the task and the handles share it. Nothing waits with the lock held.
#[derive(Debug)]
pub(super) struct Shared(Mutex<State>);

impl Shared {
    pub(super) fn new(state: State) -> Arc<Self> {
        Arc::new(Self(Mutex::new(state)))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Task<Io> {
    io: Io,
    shared: Arc<Shared>,
    decoder: Decoder,
    buffer: BytesMut,
    /// What is being written.
    batch: VecDeque<Bytes>,
    unflushed: bool,
    /// Our side of the socket is shut.
    shut: bool,
    /// Runs once the connection is being closed.
    patience: Option<Pin<Box<Sleep>>>,
    /// Runs while the socket is not read.
    poke: Option<Pin<Box<Sleep>>>,
}

/// Whether anything moved: if not, wakers are registered for all that may.
type Moved = bool;

/// Moves bytes until the connection has ended.
pub(super) async fn run(io: impl AsyncRead + AsyncWrite + Unpin, shared: Arc<Shared>) {
    let mut task = Task {
        io,
        shared,
        decoder: Decoder::default(),
        buffer: BytesMut::new(),
        batch: VecDeque::new(),
        unflushed: false,
        shut: false,
        patience: None,
        poke: None,
    };
    let ended = poll_fn(|cx| task.poll(cx)).await;
    if let Err(error) = ended {
        tracing::debug!(%error, "a SPDY connection breaks off");
    }
    task.shared.lock().end();
}

impl<Io: AsyncRead + AsyncWrite + Unpin> Task<Io> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.shared.lock().register(cx);
        loop {
            let phase = self.shared.lock().phase();
            if phase == Phase::Ended {
                return Poll::Ready(Ok(()));
            }
            let read = match phase {
                Phase::Goodbye => self.discard(cx)?,
                _ => self.read(cx)?,
            };
            let Some(read) = read else { return Poll::Ready(Ok(())) };
            self.poke(cx);
            let wrote = self.write(cx)?;
            if phase != Phase::Open {
                let patience = self.patience.get_or_insert_with(|| Box::pin(sleep(CLOSE_WAIT)));
                if wrote {
                    let wait = if self.shut { LINGER } else { CLOSE_WAIT };
                    patience.as_mut().reset(Instant::now() + wait);
                }
                if patience.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(Ok(()));
                }
            }
            if !read && !wrote && self.shared.lock().phase() == phase {
                return Poll::Pending;
            }
        }
    }

    /// Has something written from time to time while nothing is read.
    fn poke(&mut self, cx: &mut Context<'_>) {
        let mut state = self.shared.lock();
        if state.may_read() {
            self.poke = None;
            return;
        }
        let poke = self.poke.get_or_insert_with(|| Box::pin(sleep(POKE_EVERY)));
        while poke.as_mut().poll(cx).is_ready() {
            state.poke();
            poke.as_mut().reset(Instant::now() + POKE_EVERY);
        }
    }

    /// Takes what frames there are, then reads once. `None` is the end of the peer.
    fn read(&mut self, cx: &mut Context<'_>) -> io::Result<Option<Moved>> {
        {
            let mut state = self.shared.lock();
            loop {
                if !state.may_read() {
                    return Ok(Some(false));
                }
                let done = match self.decoder.decode(&mut self.buffer) {
                    Ok(None) => break,
                    Ok(Some(frame)) => state.receive(frame),
                    Err(error) => Err(error.into()),
                };
                if let Err(error) = done {
                    tracing::debug!(%error, "a SPDY connection is closed");
                    state.fail();
                    return Ok(Some(true));
                }
            }
        }
        self.read_once(cx)
    }

    /// Reads what no longer matters.
    fn discard(&mut self, cx: &mut Context<'_>) -> io::Result<Option<Moved>> {
        self.buffer.clear();
        self.read_once(cx)
    }

    fn read_once(&mut self, cx: &mut Context<'_>) -> io::Result<Option<Moved>> {
        if self.buffer.capacity() - self.buffer.len() < READ_BYTES / 4 {
            self.buffer.reserve(READ_BYTES);
        }
        match poll_read_buf(Pin::new(&mut self.io), cx, &mut self.buffer) {
            Poll::Pending => Ok(Some(false)),
            Poll::Ready(Ok(0)) => Ok(None),
            Poll::Ready(Ok(_)) => Ok(Some(true)),
            Poll::Ready(Err(error)) => Err(error),
        }
    }

    /// Writes a batch, or as much of it as the socket takes. With nothing to write it flushes, and goes on with closing.
    fn write(&mut self, cx: &mut Context<'_>) -> io::Result<Moved> {
        if self.batch.is_empty() {
            let mut state = self.shared.lock();
            state.fill(&mut self.batch);
            if self.batch.is_empty() && state.phase() == Phase::Closing && state.is_drained() {
                state.goodbye();
                state.fill(&mut self.batch);
            }
            drop(state);
            if self.batch.len() > 1 && !self.io.is_write_vectored() {
                // Each slice would be a packet or a TLS record of its own.
                let mut whole = BytesMut::with_capacity(self.batch.iter().map(Bytes::len).sum());
                self.batch.drain(..).for_each(|piece| whole.extend_from_slice(&piece));
                self.batch.push_back(whole.freeze());
            }
        }
        let mut moved = false;
        while !self.batch.is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES];
            let mut used = 0;
            for (slice, piece) in slices.iter_mut().zip(&self.batch) {
                *slice = IoSlice::new(piece);
                used += 1;
            }
            match Pin::new(&mut self.io).poll_write_vectored(cx, &slices[..used]) {
                Poll::Pending => return Ok(moved),
                Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(written)) => self.advance(written),
                Poll::Ready(Err(error)) => return Err(error),
            }
            (moved, self.unflushed) = (true, true);
        }
        if moved {
            return Ok(true);
        }
        if self.unflushed && Pin::new(&mut self.io).poll_flush(cx)?.is_ready() {
            self.unflushed = false;
        }
        let goodbye = self.shared.lock().phase() == Phase::Goodbye;
        if goodbye && !self.unflushed && !self.shut && Pin::new(&mut self.io).poll_shutdown(cx)?.is_ready() {
            self.shut = true;
            return Ok(true);
        }
        Ok(false)
    }

    fn advance(&mut self, mut written: usize) {
        while let Some(piece) = self.batch.front_mut() {
            if written < piece.len() {
                piece.advance(written);
                return;
            }
            written -= piece.len();
            self.batch.pop_front();
        }
    }
}
