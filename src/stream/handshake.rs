//! The HTTP side of a stream: which protocol a request asks for, and what it is answered.
//!
//! Kubernetes' clients come in two kinds. SPDY clients name what they speak in `X-Stream-Protocol-Version`, WebSocket
//! clients in `Sec-WebSocket-Protocol`; both list what they know in order of preference, and the first one that we know
//! too is taken (k8s.io/streaming, httpstream.Handshake; RFC 6455 section 4).

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{CONNECTION, HeaderMap, HeaderName, HeaderValue, UPGRADE};
use hyper::{Request, Response, StatusCode};

use super::websocket;

/// What a SPDY client says that it speaks, and what we answer that we speak.
const STREAM_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");
/// All that we speak, in a refusal.
const ACCEPTED_PROTOCOLS: HeaderName = HeaderName::from_static("x-accepted-stream-protocol-versions");
const WEBSOCKET_PROTOCOL: HeaderName = HeaderName::from_static("sec-websocket-protocol");
const WEBSOCKET_KEY: HeaderName = HeaderName::from_static("sec-websocket-key");
const WEBSOCKET_VERSION: HeaderName = HeaderName::from_static("sec-websocket-version");
const WEBSOCKET_ACCEPT: HeaderName = HeaderName::from_static("sec-websocket-accept");

/// What the two sides agreed on: the name of the subprotocol, empty if the client named none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Agreed {
    Spdy(&'static str),
    WebSocket(&'static str),
}

/// The subprotocols of one kind of stream, the empty one where the client may name none.
#[derive(Debug, Clone, Copy)]
pub(super) struct Offer {
    pub spdy: &'static [&'static str],
    pub websocket: &'static [&'static str],
}

pub(super) type Answer = Response<Full<Bytes>>;

/// Looks at the headers of a request for a stream. Either way there is an answer: one that switches protocols, or one
/// that says what is wrong.
pub(super) fn negotiate<B>(request: &Request<B>, offer: Offer) -> Result<(Agreed, Answer), Box<Answer>> {
    let headers = request.headers();
    if !lists(headers, CONNECTION, "upgrade") {
        return Err(refusal(StatusCode::BAD_REQUEST, "this URL needs `Connection: Upgrade`"));
    }
    if lists(headers, UPGRADE, "websocket") {
        return websocket(headers, offer);
    }
    if lists(headers, UPGRADE, "spdy/3.1") {
        return spdy(headers, offer);
    }
    let asked =
        headers.get(UPGRADE).map_or("nothing".into(), |value| String::from_utf8_lossy(value.as_bytes()));
    Err(refusal(
        StatusCode::BAD_REQUEST,
        &format!("this URL needs `Upgrade: SPDY/3.1` or `Upgrade: websocket`, not {asked}"),
    ))
}

fn spdy(headers: &HeaderMap, offer: Offer) -> Result<(Agreed, Answer), Box<Answer>> {
    let Some(chosen) = choose(headers, &STREAM_PROTOCOL, offer.spdy) else {
        return Err(unknown_protocol(headers, &STREAM_PROTOCOL, offer.spdy));
    };
    let mut answer = switch("SPDY/3.1");
    if !chosen.is_empty() {
        answer.headers_mut().insert(STREAM_PROTOCOL, HeaderValue::from_static(chosen));
    }
    Ok((Agreed::Spdy(chosen), answer))
}

fn websocket(headers: &HeaderMap, offer: Offer) -> Result<(Agreed, Answer), Box<Answer>> {
    if !lists(headers, WEBSOCKET_VERSION, "13") {
        let mut answer = refusal(StatusCode::UPGRADE_REQUIRED, "only WebSocket version 13 is spoken here");
        answer.headers_mut().insert(WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        return Err(answer);
    }
    let Some(key) = headers.get(WEBSOCKET_KEY) else {
        return Err(refusal(StatusCode::BAD_REQUEST, "a WebSocket request needs Sec-WebSocket-Key"));
    };
    let Some(chosen) = choose(headers, &WEBSOCKET_PROTOCOL, offer.websocket) else {
        return Err(unknown_protocol(headers, &WEBSOCKET_PROTOCOL, offer.websocket));
    };
    let mut answer = switch("websocket");
    answer.headers_mut().insert(WEBSOCKET_ACCEPT, websocket::accept_key(key));
    if !chosen.is_empty() {
        answer.headers_mut().insert(WEBSOCKET_PROTOCOL, HeaderValue::from_static(chosen));
    }
    Ok((Agreed::WebSocket(chosen), answer))
}

/// The first that the client names and `ours` has. A client that names none gets the empty one, if there is one.
fn choose(headers: &HeaderMap, name: &HeaderName, ours: &'static [&'static str]) -> Option<&'static str> {
    let mut named = words(headers, name).peekable();
    if named.peek().is_none() {
        return ours.iter().copied().find(|our| our.is_empty());
    }
    named.find_map(|word| ours.iter().copied().find(|our| *our == word))
}

/// The items of a header that is a list, over all its lines.
fn words<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let lines = headers.get_all(name).into_iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(',')).map(str::trim).filter(|word| !word.is_empty())
}

fn lists(headers: &HeaderMap, name: HeaderName, word: &str) -> bool {
    words(headers, &name).any(|item| item.eq_ignore_ascii_case(word))
}

fn switch(protocol: &'static str) -> Answer {
    let mut answer = Response::new(Full::default());
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    answer.headers_mut().insert(UPGRADE, HeaderValue::from_static(protocol));
    answer
}

/// 403 as upstream has it: clients take it as a reason to try an older protocol.
fn unknown_protocol(headers: &HeaderMap, name: &HeaderName, ours: &'static [&'static str]) -> Box<Answer> {
    let named: Vec<_> = words(headers, name).collect();
    let known: Vec<_> = ours.iter().copied().filter(|our| !our.is_empty()).collect();
    let said = format!(
        "none of the protocols in {name} is spoken here: the client named {}, known are {}",
        if named.is_empty() { "none".to_owned() } else { named.join(", ") },
        known.join(", ")
    );
    let mut answer = refusal(StatusCode::FORBIDDEN, &said);
    for our in known {
        answer.headers_mut().append(ACCEPTED_PROTOCOLS, HeaderValue::from_static(our));
    }
    answer
}

/// An answer that ends the connection.
pub(super) fn refusal(status: StatusCode, message: &str) -> Box<Answer> {
    let mut answer = Response::new(Full::from(format!("{message}\n")));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    answer.headers_mut().insert("content-type", HeaderValue::from_static("text/plain; charset=utf-8"));
    Box::new(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OFFER: Offer = Offer {
        spdy: &["v4.channel.k8s.io", "v3.channel.k8s.io", ""],
        websocket: &["v5.channel.k8s.io", "v4.channel.k8s.io"],
    };

    fn ask(headers: &[(&str, &str)]) -> Result<(Agreed, Answer), Box<Answer>> {
        let builder =
            headers.iter().fold(Request::builder(), |builder, (name, value)| builder.header(*name, *value));
        negotiate(&builder.body(()).unwrap(), OFFER)
    }

    fn refused(headers: &[(&str, &str)]) -> StatusCode {
        ask(headers).unwrap_err().status()
    }

    #[test]
    fn the_clients_first_choice_that_we_know_is_taken_over_all_header_lines() {
        let base = [("connection", "keep-alive, Upgrade"), ("upgrade", "SPDY/3.1")];
        let asked = |more: &[(&str, &str)]| ask(&[&base[..], more].concat()).map(|(agreed, _)| agreed).ok();
        let name = "X-Stream-Protocol-Version";
        assert_eq!(
            asked(&[(name, "v9.channel.k8s.io, v3.channel.k8s.io"), (name, "v4.channel.k8s.io")]),
            Some(Agreed::Spdy("v3.channel.k8s.io"))
        );
        assert_eq!(asked(&[]), Some(Agreed::Spdy("")));
        let refusal = ask(&[&base[..], &[(name, "v9.channel.k8s.io")]].concat()).unwrap_err();
        assert_eq!(refusal.status(), StatusCode::FORBIDDEN);
        let accepted: Vec<_> = refusal.headers().get_all(ACCEPTED_PROTOCOLS).iter().collect();
        assert_eq!(accepted, ["v4.channel.k8s.io", "v3.channel.k8s.io"]);
    }

    #[test]
    fn a_websocket_is_answered_as_the_rfc_has_it() {
        let (agreed, answer) = ask(&[
            ("connection", "Upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
            ("sec-websocket-protocol", "v5.channel.k8s.io,v4.channel.k8s.io"),
        ])
        .unwrap();
        assert_eq!(agreed, Agreed::WebSocket("v5.channel.k8s.io"));
        assert_eq!(answer.status(), StatusCode::SWITCHING_PROTOCOLS);
        assert_eq!(answer.headers()["sec-websocket-accept"], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert_eq!(answer.headers()["sec-websocket-protocol"], "v5.channel.k8s.io");
    }

    #[test]
    fn every_lack_has_its_status() {
        let websocket = [("connection", "Upgrade"), ("upgrade", "websocket")];
        assert_eq!(refused(&[]), StatusCode::BAD_REQUEST);
        assert_eq!(refused(&[("connection", "upgrade"), ("upgrade", "h2c")]), StatusCode::BAD_REQUEST);
        assert_eq!(refused(&[("upgrade", "SPDY/3.1")]), StatusCode::BAD_REQUEST);
        assert_eq!(refused(&websocket), StatusCode::UPGRADE_REQUIRED);
        let version = ("sec-websocket-version", "13");
        assert_eq!(refused(&[&websocket[..], &[version]].concat()), StatusCode::BAD_REQUEST);
        let key = ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
        assert_eq!(refused(&[&websocket[..], &[version, key]].concat()), StatusCode::FORBIDDEN);
    }
}
