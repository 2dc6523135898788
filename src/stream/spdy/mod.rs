//! Stand-in until the SPDY transport is merged: a connection that is closed at once.

use std::io;

use hyper::body::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};

#[derive(Debug, Clone, Copy)]
pub(crate) enum Role {
    Server,
    Client,
}
#[derive(Debug)]
pub(crate) struct Connection;
#[derive(Debug)]
pub(crate) struct Incoming;
#[derive(Debug)]
pub(crate) struct NewStream {
    pub(crate) id: u32,
    pub(crate) headers: Vec<(String, String)>,
}
#[derive(Debug)]
pub(crate) enum Stream {}
#[derive(Debug)]
pub(crate) enum Sender {}
#[derive(Debug)]
pub(crate) enum Receiver {}

impl Connection {
    pub(crate) fn new<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(_: S, _: Role) -> (Self, Incoming) {
        (Self, Incoming)
    }
    pub(crate) async fn open(&self, _: Vec<(String, String)>) -> io::Result<Stream> {
        Err(io::ErrorKind::Unsupported.into())
    }
    pub(crate) async fn close(self) {}
}
impl Incoming {
    pub(crate) async fn accept(&mut self) -> Option<NewStream> {
        None
    }
}
impl NewStream {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
    pub(crate) async fn accept(self) -> io::Result<Stream> {
        Err(io::ErrorKind::Unsupported.into())
    }
    pub(crate) async fn refuse(self) -> io::Result<()> {
        Ok(())
    }
}
impl Stream {
    pub(crate) fn split(self) -> (Sender, Receiver) {
        match self {}
    }
}
impl Sender {
    pub(crate) async fn send(&mut self, _: Bytes) -> io::Result<()> {
        match *self {}
    }
    pub(crate) async fn finish(&mut self) -> io::Result<()> {
        match *self {}
    }
}
impl Receiver {
    pub(crate) async fn recv(&mut self) -> Option<Bytes> {
        match *self {}
    }
}
