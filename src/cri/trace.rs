//! A layer around every call: a span named after the RPC, its outcome in the log, and a net for panics.
//!
//! In a release build a panic ends the process and recovery takes over. In a debug build it ends the one call, so a test
//! sees which it was.

use std::any::Any;
use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use futures_util::FutureExt;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::{HeaderMap, Request, Response};
use tower::{Layer, Service};
use tracing::Instrument;

use super::status::{Kind, status};

#[derive(Debug, Clone, Copy)]
pub(super) struct TraceLayer;

impl<S> Layer<S> for TraceLayer {
    type Service = Trace<S>;

    fn layer(&self, inner: S) -> Trace<S> {
        Trace { inner }
    }
}

#[derive(Debug, Clone)]
pub(super) struct Trace<S> {
    inner: S,
}

impl<S, B> Service<Request<B>> for Trace<S>
where
    S: Service<Request<B>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        // The path is "/package.Service/Method".
        let rpc = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
        let span = tracing::info_span!("rpc", name = %rpc);
        // The future owns all it works on, and what is shared behind locks recovers from poison.
        let answer = AssertUnwindSafe(self.inner.call(request)).catch_unwind();
        let began = Instant::now();
        Box::pin(
            async move {
                let response = match answer.await {
                    Ok(Ok(response)) => response,
                    Err(panic) => {
                        let what = said(&*panic);
                        tracing::error!(panic = what, "the call panicked; this is a bug");
                        status(Kind::Internal, format!("{rpc} panicked: {what}; this is a bug")).into_http()
                    }
                };
                note(response.headers(), began);
                Ok(response)
            }
            .instrument(span),
        )
    }
}

/// One line per call. The error itself goes to the client, who is the one to log it.
fn note(headers: &HeaderMap, began: Instant) {
    let elapsed = began.elapsed();
    match Status::from_header_map(headers).filter(|status| status.code() != tonic::Code::Ok) {
        // The status of a call that succeeds comes after the body.
        None => tracing::debug!(?elapsed, "answered"),
        Some(status) => {
            tracing::debug!(?elapsed, code = ?status.code(), message = status.message(), "refused")
        }
    }
}

fn said(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

#[cfg(test)]
mod tests {
    use tower::{ServiceExt, service_fn};

    use super::*;

    #[tokio::test]
    async fn a_panic_ends_the_call_and_not_the_server() {
        let service = service_fn(|request: Request<()>| async move {
            assert_ne!(request.uri().path(), "/x.Y/Panics", "on purpose");
            Ok::<_, Infallible>(Response::new(Body::empty()))
        });
        let service = TraceLayer.layer(service);
        let call = |path: &str| service.clone().oneshot(Request::builder().uri(path).body(()).unwrap());
        let broken = call("/x.Y/Panics").await.unwrap();
        let status = Status::from_header_map(broken.headers()).unwrap();
        assert_eq!(status.code(), tonic::Code::Internal);
        assert!(status.message().starts_with("Panics panicked: "), "{status}");
        assert!(call("/x.Y/Fine").await.unwrap().headers().is_empty());
    }
}
