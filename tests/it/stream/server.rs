//! Who is let in: tokens, verbs, protocols; and who is shown out: clients that are silent, or speak nonsense.

use std::time::{Duration, Instant};

use brig::proto::v1::ContainerState;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::protocol::Message;

use super::Ship;
use super::client::{Client, STDIN, STDOUT, V5, address, websocket};
use super::spdy::{Frame, Session};
use crate::fixture::node::{Options, eventually};

/// Port-forward that needs no port.
const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";

/// Sends a request as it is and returns all that comes back.
async fn say(url: &str, request: impl AsRef<[u8]>) -> String {
    let mut stream = TcpStream::connect(address(url)).await.expect("the server listens");
    stream.write_all(request.as_ref()).await.expect("the connection lasts");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.ok();
    String::from_utf8_lossy(&answer).into_owned()
}

/// The path of a URL of the server.
pub(super) fn path(url: &str) -> &str {
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
    for (what, nonsense) in [
        ("another version", &[0x80, 2, 0, 1, 0, 0, 0, 4, 0, 0, 0, 1][..]),
        ("a control frame of 16 MiB", &[0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff]),
        (
            "a stream whose headers are no zlib",
            &[0x80, 3, 0, 1, 0, 0, 0, 14, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 9, 9, 9, 9],
        ),
        ("a ping without a number", &[0x80, 3, 0, 6, 0, 0, 0, 0]),
    ] {
        let url = ship.exec_url("oe", &["sleep", "1000"]);
        let upgrade = format!(
            "POST {} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\
             X-Stream-Protocol-Version: v4.channel.k8s.io\r\n\r\n",
            path(&url)
        );
        // The client waits for the end of the connection, and says none.
        let answer = ship.node.call(say(&url, [upgrade.as_bytes(), nonsense].concat()));
        assert!(answer.starts_with("HTTP/1.1 101"), "{what}: {answer}");
    }
    assert!(!ship.node.log().contains("did not open its streams"), "it ended at once");
    // The command never began, since the streams were never there.
    let running = ship.node.output(&ship.container, "ps | grep -c '[s]leep 1000'");
    assert_eq!(running.trim(), "1");
}

#[test]
fn privileged_a_client_that_opens_only_some_streams_is_not_waited_for() {
    let config = "[stream]\nidle_timeout = \"1s\"".to_owned();
    let ship = Ship::with(Options { config, ..Options::default() }, "half-open").running("exec sleep 1000");
    let url = ship.exec_url("ioe", &["touch", "/began"]);
    ship.node.call(async {
        let mut session = Session::open(&url, "v4.channel.k8s.io", "o").await;
        while session.next().await.is_some() {}
    });
    assert_ne!(ship.node.exec(&ship.container, &["ls", "/began"]).exit_code, 0);
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
fn privileged_a_crowd_without_tokens_keeps_nobody_out() {
    let ship = Ship::sleeping("", "crowd");
    let url = ship.exec_url("oe", &["echo", "let in"]);
    let mut crowd = ship.node.call(async {
        let mut crowd = Vec::new();
        for _ in 0..300 {
            crowd.push(TcpStream::connect(address(&url)).await.expect("the server listens"));
        }
        crowd
    });
    let outcome = ship.node.call(async { Client::open(&url, V5).await.finish().await });
    assert_eq!(outcome.text().0, "let in\n");
    // 256 may be there at a time, and that one was the 301st.
    assert_eq!(ship.node.call(crowd[0].read(&mut [0])).expect("an end"), 0);
    assert!(
        !ship.node.log().contains("was silent at HTTP"),
        "the oldest gave way before it had waited long enough"
    );
    assert_eq!(ship.node.log().matches("gives way to newer ones").count(), 45);
}

#[test]
fn privileged_with_all_streams_open_another_is_told_and_keeps_its_token() {
    // One descriptor each, here and in the daemon, which inherits the limit.
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let limit = rustix::process::Rlimit { current: limit.maximum, ..limit };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).expect("up to the hard limit");
    let ship = Ship::pod("", "full");
    let open = |url: &str| ship.node.call(websocket(url, TUNNEL));
    let mut streams: Vec<_> = (0..1024).map(|_| open(&ship.forward_url(&[])).expect("a place")).collect();
    let url = ship.forward_url(&[]);
    let (status, text) = open(&url).expect_err("there is no place");
    assert_eq!((status, text.as_str()), (503, "1024 streams are open already; close some and try again\n"));
    streams.truncate(1023);
    eventually(|| open(&url).ok());
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
fn privileged_a_stream_on_which_no_data_moves_is_closed_however_alive_its_client_is() {
    let config = "[stream]\nidle_timeout = \"1s\"".to_owned();
    let ship = Ship::with(Options { config, ..Options::default() }, "idle").running("exec sleep 1000");
    let deaf = ["sh", "-c", "echo begin; exec sleep 1000"];
    let url = ship.exec_url("io", &deaf);
    let begin = Instant::now();
    let often = Duration::from_millis(50);
    ship.node.call(async {
        let mut client = Client::open(&url, V5).await;
        client.until(STDOUT, "begin").await;
        let Client { mut to, from } = client;
        let pings = async {
            while to.try_raw(Message::Ping(Vec::new().into())).await.is_ok() {
                tokio::time::sleep(often).await;
            }
        };
        tokio::join!(from.finish(), pings)
    });
    let url = ship.exec_url("io", &deaf);
    ship.node.call(async {
        let mut session = Session::open(&url, "v4.channel.k8s.io", "io").await;
        session.until("begin").await;
        // The server pings back for as long as it is there.
        let mut pings = 0;
        while session.to.ping(1).await.is_ok() {
            match session.next().await {
                Some(Frame::Ping(_)) => pings += 1,
                Some(_) => {}
                None => break,
            }
            tokio::time::sleep(often).await;
        }
        assert!(pings > 1, "{pings}");
    });
    // Nor is a client whose input is stuck waited for.
    let url = ship.exec_url("io", &deaf);
    ship.node.call(async {
        let mut client = Client::open(&url, V5).await;
        client.until(STDOUT, "begin").await;
        let (Client { mut to, from }, chunk) = (client, vec![7; 32 << 10]);
        let stuff = async { while to.try_send(STDIN, &chunk).await.is_ok() {} };
        tokio::join!(from.finish(), stuff)
    });
    assert!(begin.elapsed() >= Duration::from_secs(3), "{:?}", begin.elapsed());
    // A client that says nothing from the start is not waited for longer either.
    ship.node.call(async {
        let mut stream = TcpStream::connect(address(&url)).await.expect("the server listens");
        stream.read_to_end(&mut Vec::new()).await.ok();
    });
    // Data alone keeps a stream open: of the command, and of the client.
    let url = ship.exec_url("oe", &["sh", "-c", "for n in 1 2 3 4 5 6; do sleep 0.4; echo $n; done; exit 9"]);
    assert_eq!(ship.node.call(async { Client::open(&url, V5).await.finish().await }).code(), 9);
    let url = ship.exec_url("io", &["sh", "-c", "wc -c"]);
    let outcome = ship.node.call(async {
        let mut client = Client::open(&url, V5).await;
        for _ in 0..6 {
            tokio::time::sleep(Duration::from_millis(400)).await;
            client.send(STDIN, b"x").await;
        }
        client.to.end(STDIN).await;
        client.finish().await
    });
    assert_eq!(outcome.text().0, "6\n");
}
