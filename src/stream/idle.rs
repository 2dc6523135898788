//! A connection that knows when something moved on it last.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

/// Passes everything on and notes the time of every byte.
#[derive(Debug)]
pub(super) struct Idle<S> {
    stream: S,
    last: Last,
}

/// The time of the last byte.
#[derive(Debug, Clone)]
pub(super) struct Last {
    start: Instant,
    /// Milliseconds after `start`.
    moved_ms: Arc<AtomicU64>,
}

impl<S> Idle<S> {
    pub(super) fn watch(stream: S) -> (Self, Last) {
        let last = Last { start: Instant::now(), moved_ms: Arc::default() };
        (Self { stream, last: last.clone() }, last)
    }
}

impl Last {
    fn moved(&self) {
        // Two days in milliseconds are far below u64.
        self.moved_ms.store(self.start.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    /// Returns when nothing has moved for `time`, and not before.
    pub(super) async fn for_so_long(&self, time: Duration) {
        loop {
            let end = self.start + Duration::from_millis(self.moved_ms.load(Ordering::Relaxed)) + time;
            if end <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(end).await;
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Idle<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.stream).poll_read(cx, buf);
        if polled.is_ready() {
            this.last.moved();
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Idle<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.stream).poll_write(cx, buf);
        if polled.is_ready() {
            this.last.moved();
        }
        polled
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.stream).poll_write_vectored(cx, bufs);
        if polled.is_ready() {
            this.last.moved();
        }
        polled
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn every_byte_either_way_puts_the_end_off() {
        let (near, mut far) = tokio::io::duplex(64);
        let (mut near, last) = Idle::watch(near);
        let (start, hour) = (Instant::now(), Duration::from_secs(3600));
        let talk = async {
            tokio::time::sleep(hour / 2).await;
            near.write_all(b"a").await.unwrap();
            tokio::time::sleep(hour / 2).await;
            far.write_all(b"b").await.unwrap();
            assert_eq!(near.read_u8().await.unwrap(), b'b');
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = talk => unreachable!("pending"),
            () = last.for_so_long(hour) => assert_eq!(start.elapsed(), 2 * hour),
        }
    }
}
