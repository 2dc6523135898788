//! A blob as a stream: exactly the promised number of bytes, whatever the connection does.
//!
//! A lost connection is taken up again where it broke, with a ranged request to whichever endpoint answers first;
//! content addresses make them interchangeable. A server that ignores the range is read from the start and the part
//! we have is skipped. The digest is checked by whoever reads the whole, so bytes are hashed once.

use std::sync::Arc;

use http_body_util::BodyExt;
use hyper::body::{Bytes, Incoming};
use hyper::{Response, StatusCode, header};

use super::session::{Ask, Session};
use super::{RegistryError, session};
use crate::id::Digest;

/// So many new bytes make a connection worth as much as a first one: the count of failures starts anew.
const PROGRESS_BYTES: u64 = 1 << 20;
/// A silent connection is replaced once; the second silence ends the pull.
const STALLS_MAX: u32 = 1;

/// A blob on its way.
#[derive(Debug)]
pub(crate) struct Blob {
    session: Arc<Session>,
    what: String,
    tail: String,
    size: u64,
    received: u64,
    /// Bytes of the current body that are already received.
    skip: u64,
    body: Option<Incoming>,
    endpoint: String,
    failures: u32,
    stalls: u32,
    /// `received` when the failures were last counted from zero.
    counted_from: u64,
}

impl Blob {
    pub(super) fn new(session: Arc<Session>, digest: &Digest, size: u64) -> Self {
        Self {
            endpoint: session.domain().to_owned(),
            session,
            what: format!("blob {digest}"),
            tail: format!("/blobs/{digest}"),
            size,
            received: 0,
            skip: 0,
            body: None,
            failures: 0,
            stalls: 0,
            counted_from: 0,
        }
    }

    /// The next bytes, or `None` after exactly `size` of them. Cancel-safe: no byte is lost with a dropped call.
    pub(crate) async fn chunk(&mut self) -> Result<Option<Bytes>, RegistryError> {
        loop {
            // What a server sends after the last byte is its own affair; who reads checks the digest.
            if self.received == self.size {
                return Ok(None);
            }
            let Some(body) = &mut self.body else {
                self.connect().await?;
                continue;
            };
            let after = self.session.limits().stall_timeout;
            let frame = match tokio::time::timeout(after, body.frame()).await {
                Err(_) => {
                    self.body = None;
                    self.stalls += 1;
                    if self.stalls > STALLS_MAX {
                        let (what, endpoint) = (self.what.clone(), self.endpoint.clone());
                        return Err(RegistryError::Stalled { what, endpoint, after });
                    }
                    continue;
                }
                Ok(None) => {
                    let message =
                        format!("the transfer ended after {} of {} bytes", self.received, self.size);
                    self.lost(self.unavailable(message)).await?;
                    continue;
                }
                Ok(Some(Err(source))) => {
                    let error = RegistryError::Unreachable {
                        what: self.what.clone(),
                        endpoint: self.endpoint.clone(),
                        source: Arc::new(source),
                    };
                    self.lost(error).await?;
                    continue;
                }
                Ok(Some(Ok(frame))) => frame,
            };
            let Ok(mut data) = frame.into_data() else { continue };
            if self.skip > 0 {
                let known = usize::try_from(self.skip).unwrap_or(usize::MAX).min(data.len());
                let _ = data.split_to(known);
                self.skip -= known as u64;
            }
            if data.is_empty() {
                continue;
            }
            if data.len() as u64 > self.size - self.received {
                self.body = None;
                return Err(
                    self.wrong(format!("it is longer than the {} bytes its manifest says", self.size))
                );
            }
            self.received += data.len() as u64;
            if self.received - self.counted_from >= PROGRESS_BYTES {
                (self.counted_from, self.failures, self.stalls) = (self.received, 0, 0);
            }
            return Ok(Some(data));
        }
    }

    /// That the content is not what the manifest promised.
    pub(super) fn wrong(&self, problem: String) -> RegistryError {
        RegistryError::Verification { what: self.what.clone(), endpoint: self.endpoint.clone(), problem }
    }

    fn unavailable(&self, message: String) -> RegistryError {
        let (what, endpoint) = (self.what.clone(), self.endpoint.clone());
        RegistryError::Unavailable { what, endpoint, message, retry_after: None }
    }

    /// Counts a broken transfer; waits before the next, or gives up.
    async fn lost(&mut self, error: RegistryError) -> Result<(), RegistryError> {
        self.body = None;
        self.failures += 1;
        let session::Limits { attempts, backoff, .. } = *self.session.limits();
        if self.failures >= attempts {
            return Err(error);
        }
        tracing::debug!(what = %self.what, received = self.received, %error, "transfer broke, resuming");
        tokio::time::sleep(backoff * 2u32.saturating_pow(self.failures - 1).min(64)).await;
        Ok(())
    }

    async fn connect(&mut self) -> Result<(), RegistryError> {
        let ask = Ask { what: &self.what, tail: &self.tail, accept: "*/*", from: self.received };
        let (response, endpoint) = self.session.ask_for_blob(&ask).await?;
        self.endpoint = endpoint;
        let start = self.start_of(&response)?;
        let length = response
            .headers()
            .get(header::CONTENT_LENGTH)
            .and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
        if let Some(length) = length
            && length != self.size - start
        {
            return Err(self.wrong(format!(
                "the registry has {} bytes of it, the manifest says {}",
                start.saturating_add(length),
                self.size
            )));
        }
        self.skip = self.received - start;
        self.body = Some(response.into_body());
        Ok(())
    }

    /// Where in the blob the answer begins.
    fn start_of(&self, response: &Response<Incoming>) -> Result<u64, RegistryError> {
        if response.status() == StatusCode::OK {
            return Ok(0);
        }
        let start = response
            .headers()
            .get(header::CONTENT_RANGE)
            .and_then(|value| value.to_str().ok()?.strip_prefix("bytes ")?.split('-').next()?.parse().ok());
        match start {
            Some(start) if start == self.received => Ok(start),
            _ => Err(self.wrong("the registry sent another range than asked for".to_owned())),
        }
    }
}
