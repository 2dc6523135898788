//! SPDY/3.1 as Kubernetes uses it: streams of bytes with headers, many over one connection.
//!
//! ```text
//!  Connection::open ─────────┐                     ┌──▶ Incoming::accept ─▶ NewStream ─accept─▶ Stream
//!                            ▼                     │                                              │ split
//!  Sender::send ──▶ queue of the stream ─┐   ┌─▶ queue of the stream ──▶ Receiver::recv ◀─────────┤
//!       ▲                       state.rs │   │ state.rs                                           │
//!       └────────────────────────────────┼───┼────────────────────────────────────────────────────┘
//!                                        ▼   │
//!                  connection.rs: the one task that owns the socket
//!                  frame.rs: bytes of frames      headers.rs: their compression
//! ```
//!
//! There is no maintained crate for it. The other side is nearly always Go's moby/spdystream (kubectl, the kubelet, the API
//! server, crictl), so what that does decides where the draft leaves a choice; [`state`] says how flow control lives with
//! its having none. The draft is "SPDY Protocol - Draft 3.1" of the Chromium project.
//!
//! # Bounds
//!
//! Each has its reason where it stands: the length of control frames ([`frame`]), of header blocks packed and unpacked and
//! the number of headers ([`headers`]), streams, unanswered streams, unread and unsent data and queued control frames
//! ([`state`]), and the time that closing takes ([`connection`]). A peer that exceeds one of the first kind is sent away,
//! one that exceeds one of the second is made to wait or has its stream refused.
//!
//! Priorities, associated streams, credentials and persisted settings are read over; trailing HEADERS are too.

mod connection;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
pub(crate) mod headers;
mod frame;
mod state;
#[cfg(test)]
mod tests;

use std::future::poll_fn;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinHandle;
use tracing::Instrument;

pub(crate) use headers::Headers;

use connection::Shared;
use state::State;

/// Which side of a connection we are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Server,
    Client,
}

/// A connection. When it and its [`Incoming`] are dropped, the connection ends at once, whatever is queued.
#[derive(Debug)]
pub(crate) struct Connection {
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

/// The streams that the peer opens.
#[derive(Debug)]
pub(crate) struct Incoming(Arc<Shared>);

impl Connection {
    /// Spawns the one task that owns `io`.
    pub(crate) fn new(
        io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        role: Role,
    ) -> (Self, Incoming) {
        let shared = Shared::new(State::new(role));
        let task = tokio::spawn(connection::run(io, Arc::clone(&shared)).in_current_span());
        (Self { shared: Arc::clone(&shared), task }, Incoming(shared))
    }

    /// Opens a stream and waits until the peer has accepted it.
    ///
    /// Cancelling it resets the stream.
    ///
    /// # Errors
    ///
    /// The peer refuses it or is gone, or too many streams are open.
    pub(crate) async fn open(&self, headers: Headers) -> io::Result<Stream> {
        let id = self.shared.lock().open(&headers)?;
        let stream = Stream::new(&self.shared, id, headers);
        poll_fn(|cx| self.shared.lock().poll_opened(id, cx)).await?;
        Ok(stream)
    }

    /// Sends what is queued and GOAWAY, and closes. A peer that takes nothing for a while is not waited for.
    pub(crate) async fn close(mut self) {
        self.shared.lock().close();
        // It fails only when the runtime ends.
        (&mut self.task).await.ok();
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.shared.lock().drop_handle();
    }
}

impl Incoming {
    /// The next stream that the peer opens; `None` once the connection is at its end. Cancel-safe.
    pub(crate) async fn accept(&mut self) -> Option<NewStream> {
        let (id, headers) = poll_fn(|cx| self.0.lock().poll_accept(cx)).await?;
        Some(NewStream { id, headers, shared: Arc::clone(&self.0), answered: false })
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        self.0.lock().drop_handle();
    }
}

/// A stream that the peer wants to open. Dropped unanswered it is refused.
#[derive(Debug)]
pub(crate) struct NewStream {
    pub id: u32,
    pub headers: Headers,
    shared: Arc<Shared>,
    answered: bool,
}

impl NewStream {
    /// The first value of a header, by its name in lower case.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        headers::first(&self.headers, name)
    }

    /// Accepts it. If the peer has thought better of it meanwhile, the stream is at its end already.
    ///
    /// # Errors
    ///
    /// The connection is at its end.
    pub(crate) async fn accept(mut self) -> io::Result<Stream> {
        self.answered = true;
        self.shared.lock().reply(self.id)?;
        Ok(Stream::new(&self.shared, self.id, std::mem::take(&mut self.headers)))
    }

    /// Refuses it.
    ///
    /// # Errors
    ///
    /// None at present: at the end of the connection all are refused.
    pub(crate) async fn refuse(self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for NewStream {
    fn drop(&mut self) {
        if !self.answered {
            self.shared.lock().refuse(self.id);
        }
    }
}

/// An open stream. Dropped before it was finished it is reset.
#[derive(Debug)]
#[cfg_attr(
    not(test),
    expect(dead_code, reason = "whoever splits it knew the headers before; tests look at them")
)]
pub(crate) struct Stream {
    pub id: u32,
    pub headers: Headers,
    sender: Sender,
    receiver: Receiver,
}

impl Stream {
    fn new(shared: &Arc<Shared>, id: u32, headers: Headers) -> Self {
        let (sender, receiver) =
            (Sender { shared: Arc::clone(shared), id }, Receiver { shared: Arc::clone(shared), id });
        Self { id, headers, sender, receiver }
    }

    /// The first value of a header, by its name in lower case.
    #[cfg(test)]
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        headers::first(&self.headers, name)
    }

    /// The two directions. Dropping one of them tells the peer nothing, dropping both resets the stream, unless the sender
    /// was finished: then the stream ends as soon as all was sent.
    pub(crate) fn split(self) -> (Sender, Receiver) {
        (self.sender, self.receiver)
    }
}

/// What goes to the peer on a stream.
#[derive(Debug)]
pub(crate) struct Sender {
    shared: Arc<Shared>,
    id: u32,
}

impl Sender {
    /// Returns once the piece is in the connection's hands; waits while the stream has enough queued. Cancel-safe: a piece is
    /// queued whole or not at all.
    ///
    /// # Errors
    ///
    /// The stream was finished or reset, or the connection is at its end.
    pub(crate) async fn send(&mut self, mut piece: Bytes) -> io::Result<()> {
        poll_fn(|cx| self.shared.lock().poll_send(self.id, &mut piece, cx)).await
    }

    /// Says that nothing more will come, after what is queued. Does not wait for that.
    ///
    /// # Errors
    ///
    /// The stream was reset, or the connection is at its end.
    pub(crate) async fn finish(&mut self) -> io::Result<()> {
        self.shared.lock().finish(self.id)
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.shared.lock().drop_sender(self.id);
    }
}

/// What comes from the peer on a stream.
#[derive(Debug)]
pub(crate) struct Receiver {
    shared: Arc<Shared>,
    id: u32,
}

impl Receiver {
    /// The next piece; `None` when the peer has finished or reset the stream or is gone, and all that came is read. Cancel-safe.
    pub(crate) async fn recv(&mut self) -> Option<Bytes> {
        poll_fn(|cx| self.shared.lock().poll_recv(self.id, cx)).await
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.shared.lock().drop_receiver(self.id);
    }
}
