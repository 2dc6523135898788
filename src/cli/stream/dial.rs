//! From a URL of the streaming server to a connection that speaks something else than HTTP.

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, HOST, HeaderValue, UPGRADE};
use hyper::http::uri::Authority;
use hyper::upgrade::Upgraded;
use hyper::{Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;

use super::super::error::CliError;
use super::tls::{TlsArgs, failed};

/// Bytes of a refusal that are shown.
const REFUSAL_BYTES_MAX: usize = 4 << 10;

/// A WebSocket, up to the point where its frames begin.
pub(super) async fn websocket(
    url: &str,
    tls: &TlsArgs,
    protocol: &'static str,
) -> Result<TokioIo<Upgraded>, CliError> {
    let key = HeaderValue::from_str(&generate_key()).expect("base64 fits into a header");
    let headers = [
        ("upgrade", HeaderValue::from_static("websocket")),
        ("sec-websocket-version", HeaderValue::from_static("13")),
        ("sec-websocket-key", key),
        ("sec-websocket-protocol", HeaderValue::from_static(protocol)),
    ];
    upgrade(url, tls, headers.into()).await
}

/// A SPDY connection, up to the point where its frames begin.
pub(super) async fn spdy(
    url: &str,
    tls: &TlsArgs,
    protocol: &'static str,
) -> Result<TokioIo<Upgraded>, CliError> {
    let headers = [
        (UPGRADE.as_str(), HeaderValue::from_static("SPDY/3.1")),
        ("x-stream-protocol-version", HeaderValue::from_static(protocol)),
    ];
    upgrade(url, tls, headers.into()).await
}

async fn upgrade(
    url: &str,
    tls: &TlsArgs,
    headers: Vec<(&'static str, HeaderValue)>,
) -> Result<TokioIo<Upgraded>, CliError> {
    let uri: Uri = url.parse().map_err(|_| CliError::Incomplete("a URL for the stream"))?;
    let authority = uri.authority().ok_or(CliError::Incomplete("a host in the URL of the stream"))?;
    let failed = |source| CliError::Dial { address: authority.to_string(), source };
    let stream = TcpStream::connect(authority.as_str()).await.map_err(failed)?;
    stream.set_nodelay(true).map_err(failed)?;
    match uri.scheme_str() {
        Some("https") => ask(tls.connect(stream, authority).await?, authority, uri.path(), headers).await,
        Some("http") => ask(stream, authority, uri.path(), headers).await,
        _ => Err(CliError::Incomplete("http or https in the URL of the stream")),
    }
}

/// Asks over an open connection for another protocol.
async fn ask(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    authority: &Authority,
    path: &str,
    headers: Vec<(&'static str, HeaderValue)>,
) -> Result<TokioIo<Upgraded>, CliError> {
    let failed = |error| failed(authority, error);
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
    // Ends when the upgraded connection is taken over, or with it.
    tokio::spawn(connection.with_upgrades());
    let mut request = Request::post(path).body(Empty::<Bytes>::new()).expect("the path is a URL's");
    let host = HeaderValue::from_str(authority.as_str()).expect("an authority fits into a header");
    request.headers_mut().insert(HOST, host);
    request.headers_mut().insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    request.headers_mut().extend(
        headers.into_iter().map(|(name, value)| (hyper::header::HeaderName::from_static(name), value)),
    );
    if request.headers()[UPGRADE] == "websocket" {
        *request.method_mut() = hyper::Method::GET;
    }
    let mut response = sender.send_request(request).await.map_err(failed)?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        let status = response.status();
        let body = Limited::new(response.body_mut(), REFUSAL_BYTES_MAX).collect().await;
        let body = body.map(|body| body.to_bytes()).unwrap_or_default();
        let said = String::from_utf8_lossy(&body).trim().to_owned();
        return Err(CliError::Stream(format!("brigd answered {status} for the stream: {said}")));
    }
    Ok(TokioIo::new(hyper::upgrade::on(response).await.map_err(failed)?))
}
