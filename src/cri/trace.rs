//! A layer around every call: a span named after the RPC, its outcome in the log, the client's deadline, and a net for
//! panics.
//!
//! In a release build a panic ends the process and recovery takes over. In a debug build it ends the one call, so a test
//! sees which it was.

use std::any::Any;
use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::{HeaderMap, Request, Response};
use tower::{Layer, Service};
use tracing::Instrument;

use super::status::{Kind, status};
use crate::metrics::own::{Answer, Own};

#[derive(Debug, Clone, Default)]
pub(super) struct TraceLayer {
    /// Where calls are counted.
    pub(super) own: Own,
}

impl<S> Layer<S> for TraceLayer {
    type Service = Trace<S>;

    fn layer(&self, inner: S) -> Trace<S> {
        Trace { inner, own: self.own.clone() }
    }
}

#[derive(Debug, Clone)]
pub(super) struct Trace<S> {
    inner: S,
    own: Own,
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
        let limit = request.headers().get("grpc-timeout").and_then(|text| timeout(text.to_str().ok()?));
        // The future owns all it works on, and what is shared behind locks recovers from poison. Tonic keeps deadlines
        // too, but says CANCELLED; this timer is set before its own.
        let answer = tokio::time::timeout(
            limit.unwrap_or(NO_LIMIT),
            AssertUnwindSafe(self.inner.call(request)).catch_unwind(),
        );
        let (began, own) = (Instant::now(), self.own.clone());
        Box::pin(
            async move {
                let response = match answer.await {
                    Ok(Ok(Ok(response))) => response,
                    Err(_) => Status::deadline_exceeded(format!("{rpc} was not done when its time was over"))
                        .into_http(),
                    Ok(Err(panic)) => {
                        let what = said(&*panic);
                        tracing::error!(panic = what, "the call panicked; this is a bug");
                        status(Kind::Internal, format!("{rpc} panicked: {what}; this is a bug")).into_http()
                    }
                };
                let answer = note(response.headers(), began);
                own.rpc(&rpc, began.elapsed(), answer);
                Ok(response)
            }
            .instrument(span),
        )
    }
}

/// A call without a deadline: a year, since the timer adds it to now.
const NO_LIMIT: Duration = Duration::from_secs(365 * 24 * 3600);

/// The header `grpc-timeout`: at most eight digits and a unit (gRPC over HTTP2, "Requests").
fn timeout(text: &str) -> Option<Duration> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let number: u64 = Some(number).filter(|number| number.len() <= 8)?.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

/// One line per call. The error itself goes to the client, who is the one to log it.
fn note(headers: &HeaderMap, began: Instant) -> Answer {
    let elapsed = began.elapsed();
    match Status::from_header_map(headers).filter(|status| status.code() != tonic::Code::Ok) {
        // The status of a call that succeeds comes after the body.
        None => {
            tracing::debug!(?elapsed, "answered");
            Answer::Done
        }
        Some(status) => {
            tracing::debug!(?elapsed, code = ?status.code(), message = status.message(), "refused");
            match status.code() {
                tonic::Code::Unimplemented => Answer::Unserved,
                code => Answer::Refused(format!("{code:?}")),
            }
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
    async fn a_call_that_is_not_done_in_its_time_answers_deadline_exceeded() {
        let service = TraceLayer::default().layer(service_fn(|_: Request<()>| std::future::pending()));
        let request = Request::builder().uri("/x.Y/Slow").header("grpc-timeout", "1500u").body(()).unwrap();
        let late = service.oneshot(request).await.unwrap();
        assert_eq!(Status::from_header_map(late.headers()).unwrap().code(), tonic::Code::DeadlineExceeded);
    }

    #[test]
    fn timeouts_are_read_as_grpc_writes_them() {
        let all = ["2H", "3M", "4S", "5m", "6u", "7n"].map(|text| timeout(text).map(|it| it.as_nanos()));
        let seconds = 1_000_000_000;
        let expected = [7200 * seconds, 180 * seconds, 4 * seconds, 5_000_000, 6_000, 7];
        assert_eq!(all, expected.map(Some));
        assert_eq!(["", "S", "1", "1s", "-1S", "123456789S"].map(timeout), [None; 6]);
    }

    #[tokio::test]
    async fn a_panic_ends_the_call_and_not_the_server() {
        let service = service_fn(|request: Request<()>| async move {
            assert_ne!(request.uri().path(), "/x.Y/Panics", "on purpose");
            Ok::<_, Infallible>(Response::new(Body::empty()))
        });
        let service = TraceLayer::default().layer(service);
        let call = |path: &str| service.clone().oneshot(Request::builder().uri(path).body(()).unwrap());
        let broken = call("/x.Y/Panics").await.unwrap();
        let status = Status::from_header_map(broken.headers()).unwrap();
        assert_eq!(status.code(), tonic::Code::Internal);
        assert!(status.message().starts_with("Panics panicked: "), "{status}");
        assert!(call("/x.Y/Fine").await.unwrap().headers().is_empty());
    }
}
