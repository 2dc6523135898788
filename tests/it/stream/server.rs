//! Who is let in: tokens, verbs, protocols, TLS; and who is shown out: clients that are silent, or speak nonsense.

use std::path::Path;
use std::time::{Duration, Instant};

use brig::proto::v1::ContainerState;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::Ship;
use super::client::{Client, STDOUT, V5, address, websocket};
use crate::fixture::node::{Options, eventually};

/// Sends a request as it is and returns all that comes back.
async fn say(url: &str, request: &str) -> String {
    let mut stream = TcpStream::connect(address(url)).await.expect("the server listens");
    stream.write_all(request.as_bytes()).await.expect("the connection lasts");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.ok();
    String::from_utf8_lossy(&answer).into_owned()
}

fn path(url: &str) -> &str {
    &url[url.find("/exec/").or(url.find("/attach/")).or(url.find("/portforward/")).expect("a verb")..]
}

#[test]
fn privileged_a_url_works_once_for_its_own_verb_and_nothing_else() {
    let ship = Ship::sleeping("", "tokens");
    let node = &ship.node;
    let refused = |url: &str| node.call(websocket(url, V5)).expect_err("a refusal").0;
    let url = ship.exec_url("oe", &["echo", "once"]);
    assert!(url.starts_with("http://127.0.0.1:"), "{url}");
    let outcome = node.call(async { Client::open(&url, V5).await.finish().await });
    assert_eq!(outcome.text().0, "once\n");
    assert_eq!(refused(&url), 404);

    let url = ship.exec_url("oe", &["true"]);
    for wrong in ["/attach/", "/portforward/", "/exec/x"] {
        let other = url.replace("/exec/", wrong);
        assert_eq!(refused(&other), 404, "{other}");
    }
    // A token that came with another verb is used up too.
    assert_eq!(refused(&url), 404);
    for path in ["/", "/exec", "/exec/", "/exec/AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", "/..//exec/"] {
        assert_eq!(refused(&format!("http://{}{path}", address(&url))), 404, "{path}");
    }
}

#[test]
fn privileged_a_request_that_asks_for_no_stream_is_refused_and_the_connection_closed() {
    let ship = Ship::sleeping("", "requests");
    let ask = |build: &dyn Fn(&str) -> String| {
        let url = ship.exec_url("oe", &["true"]);
        ship.node.call(say(&url, &build(path(&url))))
    };
    let upgrade = |protocol: &str| {
        let protocol = protocol.to_owned();
        move |path: &str| {
            format!(
                "POST {path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n{protocol}\r\n"
            )
        }
    };
    for (request, status) in [
        (ask(&|path| format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")), "400"),
        (ask(&|path| format!("PUT {path} HTTP/1.1\r\nHost: x\r\n\r\n")), "405"),
        (
            ask(&|path| {
                format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n")
            }),
            "400",
        ),
        (ask(&upgrade("X-Stream-Protocol-Version: v9.channel.k8s.io\r\n")), "403"),
        (ask(&|path| format!("GET {path}\r\n\r\n")), "400"),
        (ask(&|_| format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "a".repeat(100_000))), "4"),
    ] {
        assert!(request.starts_with(&format!("HTTP/1.1 {status}")), "{status}: {request}");
    }
    let (status, text) = {
        let url = ship.exec_url("oe", &["true"]);
        ship.node.call(websocket(&url, "v9.channel.k8s.io")).expect_err("a refusal")
    };
    assert_eq!(status, 403);
    assert!(text.contains("v9.channel.k8s.io") && text.contains("v5.channel.k8s.io"), "{text}");
}

#[test]
fn privileged_nonsense_instead_of_spdy_ends_the_connection() {
    let ship = Ship::sleeping("", "nonsense");
    for nonsense in [
        // No frame at all, a frame that is too long, a stream with headers that are no zlib.
        "HELLO, IS ANYBODY THERE?\r\n\r\n".to_owned(),
        "\u{0}\u{0}\u{0}\u{1}\u{1}\u{7f}\u{7f}\u{7f}".to_owned(),
        "\u{1}".repeat(64),
    ] {
        let url = ship.exec_url("oe", &["sleep", "1000"]);
        let answer = ship.node.call(say(
            &url,
            &format!(
                "POST {} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\
                 X-Stream-Protocol-Version: v4.channel.k8s.io\r\n\r\n{nonsense}",
                path(&url)
            ),
        ));
        assert!(answer.starts_with("HTTP/1.1 101"), "{nonsense:?}: {answer}");
    }
    // The command never began, since the streams were never there.
    let running = ship.node.output(&ship.container, "ps | grep -c '[s]leep 1000'");
    assert_eq!(running.trim(), "1");
}

#[test]
fn privileged_a_thousand_urls_wait_and_no_more() {
    let ship = Ship::sleeping("", "thousand");
    for _ in 0..1000 {
        ship.exec_url("oe", &["true"]);
    }
    let refused = ship.try_exec_url("oe", &["true"]).expect_err("the thousand and first");
    assert_eq!(refused.code(), tonic::Code::ResourceExhausted, "{refused}");
}

#[test]
fn privileged_requests_without_sense_are_refused_before_there_is_a_url() {
    let ship = Ship::sleeping("", "sense");
    for (letters, command) in [("oe", &[][..]), ("", &["true"]), ("toe", &["true"]), ("oe", &["a\0b"])] {
        let refused = ship.try_exec_url(letters, command).expect_err("no sense");
        assert_eq!(refused.code(), tonic::Code::InvalidArgument, "{letters} {command:?}: {refused}");
    }
    ship.node.stop_container(&ship.container, 0);
    assert_eq!(ship.node.status(&ship.container).state(), ContainerState::ContainerExited);
    for refused in [ship.try_exec_url("oe", &["true"]), ship.try_attach_url("oe")] {
        assert_eq!(refused.expect_err("it has exited").code(), tonic::Code::FailedPrecondition);
    }
    let mut ghost = ship;
    ghost.container = "0123456789abcdef".to_owned();
    for refused in [ghost.try_exec_url("oe", &["true"]), ghost.try_attach_url("oe")] {
        assert_eq!(refused.expect_err("nobody").code(), tonic::Code::NotFound);
    }
}

#[test]
fn privileged_a_container_that_ends_before_its_client_comes_is_told_on_the_stream() {
    let ship = Ship::sleeping("", "late");
    let url = ship.exec_url("oe", &["true"]);
    ship.node.stop_container(&ship.container, 0);
    let outcome = ship.node.call(async { Client::open(&url, V5).await.finish().await });
    let status = outcome.status();
    assert_eq!(
        (&status["status"], &status["reason"]),
        (&"Failure".into(), &"InternalError".into()),
        "{status}"
    );
}

#[test]
fn privileged_a_stream_on_which_nothing_moves_is_closed() {
    let config = "[stream]\nidle_timeout = \"1s\"".to_owned();
    let ship = Ship::with(Options { config, ..Options::default() }, "idle").running("exec sleep 1000");
    let url = ship.exec_url("io", &["sh", "-c", "echo begin; cat; sleep 1000"]);
    let begin = Instant::now();
    ship.node.call(async {
        let mut client = Client::open(&url, V5).await;
        client.until(STDOUT, "begin").await;
        client.finish().await
    });
    assert!(begin.elapsed() >= Duration::from_secs(1), "{:?}", begin.elapsed());
    // A client that says nothing from the start is not waited for longer either.
    ship.node.call(async {
        let mut stream = TcpStream::connect(address(&url)).await.expect("the server listens");
        stream.read_to_end(&mut Vec::new()).await.ok();
    });
}

/// An authority, and what it signs for a server or a client.
struct Authority(rcgen::CertifiedIssuer<'static, rcgen::KeyPair>);

impl Authority {
    fn new() -> Self {
        let key = rcgen::KeyPair::generate().expect("a key");
        let mut params = rcgen::CertificateParams::new(Vec::new()).expect("parameters");
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        Self(rcgen::CertifiedIssuer::self_signed(params, key).expect("a certificate"))
    }

    fn issue(&self, name: &str) -> (String, String) {
        let key = rcgen::KeyPair::generate().expect("a key");
        let params = rcgen::CertificateParams::new(vec![name.to_owned()]).expect("parameters");
        let certificate = params.signed_by(&key, &self.0).expect("a certificate");
        (certificate.pem(), key.serialize_pem())
    }

    fn pem(&self) -> String {
        self.0.pem()
    }
}

/// An HTTP request over TLS; the server's certificate has to be of `authority`. Answers the first line.
async fn over_tls(
    url: &str,
    authority: &Authority,
    client: Option<(String, String)>,
) -> Result<String, std::io::Error> {
    use rustls_pki_types::pem::PemObject;
    use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
    let mut roots = rustls::RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(authority.pem().as_bytes()).expect("PEM"))
        .expect("an authority");
    let builder = rustls::ClientConfig::builder().with_root_certificates(roots);
    let config = match client {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let certificate = CertificateDer::from_pem_slice(certificate.as_bytes()).expect("PEM");
            let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("PEM");
            builder.with_client_auth_cert(vec![certificate], key).expect("a certificate")
        }
    };
    let address = url.strip_prefix("https://").and_then(|rest| rest.split('/').next()).expect("https://");
    let stream = TcpStream::connect(address).await.expect("the server listens");
    let name = ServerName::try_from("127.0.0.1").expect("a name");
    let mut stream =
        tokio_rustls::TlsConnector::from(std::sync::Arc::new(config)).connect(name, stream).await?;
    stream.write_all(format!("GET {} HTTP/1.1\r\nHost: x\r\n\r\n", path(url)).as_bytes()).await?;
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer).await {
        Err(error) if answer.is_empty() => Err(error),
        _ => Ok(String::from_utf8_lossy(&answer).lines().next().unwrap_or_default().to_owned()),
    }
}

#[test]
fn privileged_tls_wants_a_client_certificate_and_takes_new_files_as_they_come() {
    let scratch = tempfile::tempdir().expect("a scratch directory");
    let (servers, clients) = (Authority::new(), Authority::new());
    let file = |name: &str| scratch.path().join(name);
    // By rename, as everyone who replaces a certificate does it.
    let put = |name: &str, text: &str| {
        let new = scratch.path().join("new");
        std::fs::write(&new, text).expect("a file");
        std::fs::rename(new, file(name)).expect("a file");
    };
    let (certificate, key) = servers.issue("127.0.0.1");
    put("cert.pem", &certificate);
    put("key.pem", &key);
    put("ca.pem", &clients.pem());
    let quoted = |path: &Path| format!("\"{}\"", path.display());
    let config = format!(
        "[stream]\ntls_cert = {}\ntls_key = {}\ntls_client_ca = {}",
        quoted(&file("cert.pem")),
        quoted(&file("key.pem")),
        quoted(&file("ca.pem"))
    );
    let ship = Ship::with(Options { config, ..Options::default() }, "tls").running("exec sleep 1000");
    let ask = |authority, client| {
        let url = ship.exec_url("oe", &["true"]);
        ship.node.call(over_tls(&url, authority, client))
    };
    // Let in, and told that a stream needs an upgrade.
    let answer = ask(&servers, Some(clients.issue("kubelet"))).expect("TLS");
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    ask(&servers, None).expect_err("a client without a certificate");
    ask(&servers, Some(servers.issue("kubelet"))).expect_err("a client of another authority");

    let others = Authority::new();
    let (certificate, key) = others.issue("127.0.0.1");
    put("key.pem", &key);
    // The pair does not fit, and the former one stays in force.
    ask(&servers, Some(clients.issue("kubelet"))).expect("TLS");
    put("cert.pem", &certificate);
    let answer = ask(&others, Some(clients.issue("kubelet"))).expect("TLS with the new certificate");
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    eventually(|| ship.node.log().contains("keeps its former certificate").then_some(()));
}
