//! Moving bytes between a client's streams and the pipes, terminals and sockets on this side.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use hyper::body::Bytes;
use serde::Deserialize;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

use super::session::{Sink, Source};
use crate::sys::pty;

/// What one read takes: a pipe's worth. More does not make it faster, and each client may hold a few of these.
const CHUNK: usize = 64 << 10;

/// The longest run of resize messages that is not yet one whole message.
const RESIZE_BYTES_MAX: usize = 4 << 10;

/// One of our ends of a pipe or terminal, watched by the runtime.
#[derive(Debug)]
pub(super) struct Watched(AsyncFd<OwnedFd>);

impl AsFd for Watched {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.get_ref().as_fd()
    }
}

impl Watched {
    /// `fd` must be non-blocking. Needs a tokio runtime.
    #[expect(
        deprecated,
        reason = "it is unsound for types that lie about their descriptor; OwnedFd does not"
    )]
    pub(super) fn new(fd: OwnedFd, interest: Interest) -> io::Result<Self> {
        Ok(Self(AsyncFd::with_interest(fd, interest)?))
    }

    /// The same, where there is one.
    pub(super) fn maybe(fd: Option<OwnedFd>, interest: Interest) -> io::Result<Option<Self>> {
        fd.map(|fd| Self::new(fd, interest)).transpose()
    }

    /// What there is, at most a chunk; `None` at the end. A terminal ends with EIO: nobody has its other side open.
    fn try_read(&self) -> io::Result<Option<Bytes>> {
        let mut chunk = Vec::with_capacity(CHUNK);
        match rustix::io::retry_on_intr(|| {
            rustix::io::read(&self.0, rustix::buffer::spare_capacity(&mut chunk))
        }) {
            Ok(0) | Err(rustix::io::Errno::IO) => Ok(None),
            // A keystroke's echo must not hold a whole chunk while it waits.
            Ok(length) if length < CHUNK / 8 => Ok(Some(Bytes::copy_from_slice(&chunk))),
            Ok(_) => Ok(Some(chunk.into())),
            Err(error) => Err(error.into()),
        }
    }

    /// The next chunk; `None` at the end, and once there is nothing more after `over`. From then on at most what a pipe
    /// holds is read, counted down in `left`: a descendant that goes on writing is not listened to.
    async fn read(&self, over: &mut watch::Receiver<bool>, left: &mut Option<usize>) -> Option<Bytes> {
        let failed = |error: io::Error| {
            tracing::debug!(%error, "cannot read the output of a command");
            None
        };
        loop {
            let is_over = *over.borrow() || over.has_changed().is_err();
            if is_over {
                // A terminal is no pipe and holds less than one.
                let holds = || rustix::pipe::fcntl_getpipe_size(self).unwrap_or(CHUNK);
                if *left.get_or_insert_with(holds) == 0 {
                    return None;
                }
            }
            // Not only when the runtime says so: a terminal's last bytes are on their way in the kernel and come with
            // the read that asks for them.
            match self.try_read() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return failed(error),
                Ok(chunk) => {
                    if let (Some(left), Some(chunk)) = (left, &chunk) {
                        *left = left.saturating_sub(chunk.len());
                    }
                    return chunk;
                }
            }
            if is_over {
                return None;
            }
            let ready = tokio::select! {
                ready = self.0.readable() => ready,
                _ = over.wait_for(|over| *over) => continue,
            };
            // Readiness is forgotten only when a read in its scope would block.
            match ready.map(|mut ready| ready.try_io(|_| self.try_read())) {
                Ok(Err(_would_block)) => {}
                Ok(Ok(Err(error))) | Err(error) => return failed(error),
                Ok(Ok(Ok(chunk))) => return chunk,
            }
        }
    }

    async fn write_all(&self, mut data: &[u8]) -> io::Result<()> {
        while !data.is_empty() {
            let mut ready = self.0.writable().await?;
            match ready.try_io(|fd| Ok(rustix::io::retry_on_intr(|| rustix::io::write(fd, data))?)) {
                Ok(written) => data = &data[written?..],
                Err(_would_block) => {}
            }
        }
        Ok(())
    }
}

/// Passes what a command writes on to the client, to the end of the stream.
///
/// Once `over` is true nothing is waited for any more: what the command wrote is passed on, and a descendant of it that
/// holds the stream open is not. A client that wants no more closes the stream here, and the command sees a broken pipe.
async fn output(from: &Watched, to: &mut Sink, mut over: watch::Receiver<bool>) {
    let mut left = None;
    while let Some(chunk) = from.read(&mut over, &mut left).await {
        if to.send(chunk).await.is_err() {
            return;
        }
    }
    to.finish().await.ok();
}

/// Output that nobody asked for has no pipe, and a client that wants none of a terminal's is not sent any, but the
/// terminal is read all the same, or the command would stop when it is full.
pub(super) async fn output_or_drain(
    from: Option<&Watched>,
    to: Option<Sink>,
    mut over: watch::Receiver<bool>,
) {
    match (from, to) {
        (Some(from), Some(mut to)) => output(from, &mut to, over).await,
        (Some(from), None) => {
            let mut left = None;
            while from.read(&mut over, &mut left).await.is_some() {}
        }
        (None, _) => {}
    }
}

/// Passes what the client sends on to a command, to the client's end of the stream or until the command reads no more;
/// then whatever else the client sends is thrown away.
pub(super) async fn input(from: &mut Source, to: &Watched) {
    while let Some(chunk) = from.recv().await {
        if let Err(error) = to.write_all(&chunk).await {
            tracing::debug!(%error, "the command reads no more");
            discard(from).await;
            return;
        }
    }
}

/// Reads to the end, so that the client is never held up by what nobody wants.
pub(super) async fn discard(from: &mut Source) {
    while from.recv().await.is_some() {}
}

/// A window, as clients send it whenever it changes: client-go's `TerminalSize`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(super) struct Size {
    #[serde(rename = "Width", alias = "width")]
    pub columns: u16,
    #[serde(rename = "Height", alias = "height")]
    pub rows: u16,
}

/// Takes resize messages apart: JSON objects one after the other, in pieces of any size.
#[derive(Debug)]
pub(super) struct Sizes {
    from: Option<Source>,
    unread: Vec<u8>,
}

impl Sizes {
    pub(super) fn new(from: Option<Source>) -> Self {
        Self { from, unread: Vec::new() }
    }

    /// The next size. Never returns after the last one, or after something that is no size. Cancel-safe.
    pub(super) async fn next(&mut self) -> Size {
        loop {
            match take_size(&mut self.unread) {
                Ok(Some(size)) => return size,
                Ok(None) if self.unread.len() <= RESIZE_BYTES_MAX => {}
                _ => {
                    tracing::debug!(
                        "a client sends something else than terminal sizes; it is not listened to"
                    );
                    self.from = None;
                    self.unread.clear();
                }
            }
            let Some(from) = &mut self.from else { std::future::pending().await };
            match from.recv().await {
                Some(piece) => self.unread.extend_from_slice(&piece),
                None => self.from = None,
            }
        }
    }
}

/// The first whole size in `unread`, which is taken out. Sizes without width or height are skipped: some clients send
/// them while they have no window.
fn take_size(unread: &mut Vec<u8>) -> Result<Option<Size>, serde_json::Error> {
    let mut sizes = serde_json::Deserializer::from_slice(unread).into_iter::<Size>();
    let found = loop {
        match sizes.next() {
            Some(Ok(Size { columns: 0, .. } | Size { rows: 0, .. })) => {}
            Some(Ok(size)) => break Some(size),
            Some(Err(error)) if error.is_eof() => break None,
            Some(Err(error)) => return Err(error),
            None => break None,
        }
    };
    let read = sizes.byte_offset();
    unread.drain(..read);
    Ok(found)
}

/// Sets the size of a terminal by its own or its other side.
pub(super) fn resize(terminal: &Watched, size: Size) {
    if let Err(error) = pty::set_size(terminal, size.rows, size.columns) {
        tracing::debug!(%error, "cannot resize a terminal");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_come_in_pieces_of_any_size() {
        let mut unread = br#"{"Width":0,"Height":0} {"Width":80,"Height":24}
            {"width":1,"height":2}{"Width":3,"#
            .to_vec();
        assert_eq!(take_size(&mut unread).unwrap(), Some(Size { columns: 80, rows: 24 }));
        assert_eq!(take_size(&mut unread).unwrap(), Some(Size { columns: 1, rows: 2 }));
        assert_eq!(take_size(&mut unread).unwrap(), None);
        unread.extend_from_slice(br#""Height":4}"#);
        assert_eq!(take_size(&mut unread).unwrap(), Some(Size { columns: 3, rows: 4 }));
        assert!(unread.is_empty());
        for wrong in
            [r#"{"Width":65536,"Height":1}"#, r#"{"Width":-1,"Height":1}"#, r#"{"Width":1}"#, "[1,2,3]", "x"]
        {
            assert!(take_size(&mut wrong.as_bytes().to_vec()).is_err(), "{wrong}");
        }
    }
}
