//! One byte stream in a WebSocket: each binary message is a piece of it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_util::{Sink, Stream};
use hyper::body::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Error;
use tokio_tungstenite::tungstenite::protocol::{Message, Role};

use super::config;

/// Bytes of one message that we send.
const PIECE: usize = 64 << 10;

/// A connection inside a WebSocket.
#[derive(Debug)]
pub(in crate::stream) struct Tunnel<S> {
    socket: WebSocketStream<S>,
    unread: Bytes,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Tunnel<S> {
    /// Over a connection that has been upgraded.
    pub(in crate::stream) async fn server(io: S) -> Self {
        let socket = WebSocketStream::from_raw_socket(io, Role::Server, Some(config())).await;
        Self { socket, unread: Bytes::new() }
    }
}

fn failed(error: Error) -> io::Error {
    match error {
        Error::Io(error) => error,
        Error::AlreadyClosed | Error::ConnectionClosed => io::ErrorKind::BrokenPipe.into(),
        error => io::Error::new(io::ErrorKind::InvalidData, error),
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Tunnel<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while this.unread.is_empty() {
            match ready!(Pin::new(&mut this.socket).poll_next(cx)) {
                Some(Ok(Message::Binary(piece))) => this.unread = piece,
                Some(Ok(Message::Text(_))) => {
                    let text = "a text message where the bytes of a tunnel were expected";
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, text)));
                }
                // The answer to a close is sent by the next read, which then ends.
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(failed(error))),
                None => return Poll::Ready(Ok(())),
            }
        }
        let piece = this.unread.split_to(this.unread.len().min(buf.remaining()));
        buf.put_slice(&piece);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Tunnel<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(Pin::new(&mut this.socket).poll_ready(cx)).map_err(failed)?;
        let piece = Bytes::copy_from_slice(&buf[..buf.len().min(PIECE)]);
        let length = piece.len();
        Pin::new(&mut this.socket).start_send(Message::Binary(piece)).map_err(failed)?;
        Poll::Ready(Ok(length))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_flush(cx).map_err(failed)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match ready!(Pin::new(&mut self.get_mut().socket).poll_close(cx)) {
            // The other side was first.
            Err(Error::AlreadyClosed | Error::ConnectionClosed) => Poll::Ready(Ok(())),
            closed => Poll::Ready(closed.map_err(failed)),
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{SinkExt, StreamExt};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn bytes_pass_both_ways_whatever_the_messages_and_the_end_is_a_close() {
        let (near, far) = tokio::io::duplex(1 << 10);
        let mut client = WebSocketStream::from_raw_socket(far, Role::Client, None).await;
        let server = async {
            let mut tunnel = Tunnel::server(near).await;
            let mut heard = vec![0; 9];
            tunnel.read_exact(&mut heard).await.unwrap();
            assert_eq!(heard, b"in pieces");
            tunnel.write_all(&vec![7; 3 * PIECE + 1]).await.unwrap();
            tunnel.flush().await.unwrap();
            assert_eq!(tunnel.read(&mut heard).await.unwrap(), 0);
            tunnel.shutdown().await.ok();
        };
        let client = async {
            for piece in ["in", " ", "", "pieces"] {
                client.send(Message::binary(piece)).await.unwrap();
                client.send(Message::Ping(Bytes::new())).await.unwrap();
            }
            let mut read = 0;
            while read < 3 * PIECE + 1 {
                if let Message::Binary(piece) = client.next().await.unwrap().unwrap() {
                    assert!(piece.len() <= PIECE && piece.iter().all(|byte| *byte == 7));
                    read += piece.len();
                }
            }
            client.close(None).await.unwrap();
            while client.next().await.is_some() {}
        };
        tokio::join!(server, client);
    }

    #[tokio::test]
    async fn a_text_message_breaks_it() {
        let (near, far) = tokio::io::duplex(1 << 10);
        let mut client = WebSocketStream::from_raw_socket(far, Role::Client, None).await;
        client.send(Message::text("hello")).await.unwrap();
        let error = Tunnel::server(near).await.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
