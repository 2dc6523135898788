//! Exec, by SPDY and WebSocket: every subprotocol, streams apart, ends of input, terminals, exit codes, clients that go away.

use futures_util::SinkExt;
use tokio_tungstenite::tungstenite::protocol::Message;

use super::client::{Client, STDIN, STDOUT, V5, websocket};
use super::spdy::{Frame, Session};
use super::{Ship, with_handlers};
use crate::fixture::node::eventually;

/// Bytes in which no shift, repetition or conversion of line ends goes unnoticed.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

#[test]
fn privileged_every_websocket_protocol_tells_streams_apart_and_the_exit_code() {
    with_handlers(|handler| {
        let ship = Ship::sleeping(handler, "protocols");
        let command = ["sh", "-c", "echo out; echo err >&2; exit 42"];
        for protocol in [V5, "v4.channel.k8s.io", "v4.base64.channel.k8s.io"] {
            let url = ship.exec_url("oe", &command);
            let outcome = ship.node.call(async { Client::open(&url, protocol).await.finish().await });
            assert_eq!(outcome.text(), ("out\n".into(), "err\n".into()), "{protocol}");
            assert_eq!(outcome.code(), 42, "{protocol}");
        }
        // Before v4 the error stream has a sentence, and nothing for success.
        for protocol in ["channel.k8s.io", "base64.channel.k8s.io", ""] {
            let url = ship.exec_url("oe", &command);
            let outcome = ship.node.call(async { Client::open(&url, protocol).await.finish().await });
            assert_eq!(outcome.text(), ("out\n".into(), "err\n".into()), "{protocol}");
            let error = String::from_utf8_lossy(&outcome.error).into_owned();
            assert!(
                error.contains("exit code 42") || error.contains("exit status 42"),
                "{protocol}: {error}"
            );
            let url = ship.exec_url("oe", &["true"]);
            let outcome = ship.node.call(async { Client::open(&url, protocol).await.finish().await });
            assert_eq!(outcome.error, b"", "{protocol}");
        }
        for code in [0, 1, 127, 255] {
            let url = ship.exec_url("oe", &["sh", "-c", &format!("exit {code}")]);
            let outcome = ship.node.call(async { Client::open(&url, V5).await.finish().await });
            assert_eq!(outcome.code(), code);
        }
        let url = ship.exec_url("oe", &["sh", "-c", "kill -9 $$"]);
        assert_eq!(ship.node.call(async { Client::open(&url, V5).await.finish().await }).code(), 137);
    });
}

/// What SPDY clients may name, the newest first, and whether the end is told by an object.
const SPDY: [(&str, bool); 6] = [
    ("v5.channel.k8s.io", true),
    ("v4.channel.k8s.io", true),
    ("v3.channel.k8s.io", false),
    ("v2.channel.k8s.io", false),
    ("channel.k8s.io", false),
    ("", false),
];

#[test]
fn privileged_every_spdy_protocol_tells_streams_apart_and_the_exit_code() {
    with_handlers(|handler| {
        let ship = Ship::sleeping(handler, "spdy");
        let exec = |protocol, command: &[&str]| {
            let url = ship.exec_url("oe", command);
            ship.node.call(async { Session::open(&url, protocol, "oe").await.finish().await })
        };
        for (protocol, object) in SPDY {
            let outcome = exec(protocol, &["sh", "-c", "echo out; echo err >&2; exit 42"]);
            assert_eq!(outcome.text(), ("out\n".into(), "err\n".into()), "{protocol}");
            let succeeded = exec(protocol, &["true"]);
            let failed = exec(protocol, &["/no/such/command"]);
            if object {
                assert_eq!((outcome.code(), succeeded.code()), (42, 0), "{protocol}");
                let status = failed.status();
                assert_eq!(status["reason"], "InternalError", "{protocol}: {status}");
                assert!(status["message"].as_str().expect("a message").contains("/no/such/command"));
            } else {
                let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
                let expected = "command terminated with non-zero exit code: exit status 42";
                assert_eq!(text(&outcome.error), expected, "{protocol}");
                assert_eq!(text(&succeeded.error), "", "{protocol}");
                let failed = text(&failed.error);
                let begin = "Internal error occurred: error executing command in container: ";
                assert!(
                    failed.starts_with(begin) && failed.contains("/no/such/command"),
                    "{protocol}: {failed}"
                );
            }
        }
    });
}

#[test]
fn privileged_over_every_spdy_protocol_input_ends_and_only_some_have_sizes() {
    with_handlers(|handler| {
        let ship = Ship::sleeping(handler, "spdy-input");
        let node = &ship.node;
        let data = noise(10 << 20);
        for (protocol, object) in SPDY {
            let url = ship.exec_url("io", &["sh", "-c", "sum=$(md5sum); echo after; echo $sum"]);
            let outcome = node.call(async {
                let mut session = Session::open(&url, protocol, "io").await;
                session.send(b"hel").await;
                session.send(b"lo").await;
                session.end_input().await;
                session.finish().await
            });
            assert_eq!(outcome.text().0, "after\n5d41402abc4b2a76b9719d911017c592 -\n", "{protocol}");

            let has_sizes = object || protocol.starts_with("v3.");
            let url = ship.exec_url("iot", &["sh"]);
            node.call(async {
                let mut session = Session::open(&url, protocol, "ior").await;
                if has_sizes {
                    session.resize(101, 37).await;
                    session.send(b"until stty size | grep '37 101'; do :; done\n").await;
                    session.until("37 101\r\n").await;
                } else {
                    // Such a stream has no meaning there: it is refused, and the terminal is there without it.
                    const REFUSED_STREAM: u32 = 3;
                    while session.next().await.expect("a refusal")
                        != Frame::Reset(session.sizes(), REFUSED_STREAM)
                    {}
                    session.send(b"echo $((40 + 2))\n").await;
                    session.until("42\r\n").await;
                }
                session.send(b"exit 0\n").await;
                session.finish().await;
            });
        }
        let url = ship.exec_url("io", &["cat"]);
        let outcome = node.call(async {
            let mut session = Session::open(&url, "v4.channel.k8s.io", "io").await;
            // No more is under way than pipes and queues hold, or both sides would wait for each other.
            for piece in data.chunks(32 << 10) {
                session.send(piece).await;
                session.seen_at_least(piece.len()).await;
            }
            session.end_input().await;
            session.finish().await
        });
        assert!(outcome.stdout == data, "{} bytes came back", outcome.stdout.len());
        assert_eq!(outcome.code(), 0);
    });
}

#[test]
fn privileged_a_command_that_does_not_start_says_why() {
    with_handlers(|handler| {
        let ship = Ship::sleeping(handler, "missing");
        let url = ship.exec_url("oe", &["/no/such/command"]);
        let outcome = ship.node.call(async { Client::open(&url, V5).await.finish().await });
        let status = outcome.status();
        assert_eq!(status["status"], "Failure");
        assert!(status["message"].as_str().expect("a message").contains("/no/such/command"), "{status}");
    });
}

#[test]
fn privileged_the_end_of_input_reaches_the_command_while_its_output_goes_on() {
    with_handlers(|handler| {
        let ship = Ship::sleeping(handler, "half");
        let url = ship.exec_url("io", &["sh", "-c", "sum=$(md5sum); echo after; echo $sum"]);
        let outcome = ship.node.call(async {
            let mut client = Client::open(&url, V5).await;
            client.send(STDIN, b"hel").await;
            client.send(STDIN, b"lo").await;
            client.to.end(STDIN).await;
            client.finish().await
        });
        assert_eq!(outcome.text().0, "after\n5d41402abc4b2a76b9719d911017c592 -\n");
        assert_eq!(outcome.code(), 0);
        // A command that reads no input does not hold up a client that sends some.
        let url = ship.exec_url("io", &["sh", "-c", "exec <&-; echo deaf"]);
        let outcome = ship.node.call(async {
            let Client { mut to, from } = Client::open(&url, V5).await;
            let chunk = vec![7; 32 << 10];
            let send = async { while to.try_send(STDIN, &chunk).await.is_ok() {} };
            let (outcome, ()) = tokio::join!(from.finish(), send);
            outcome
        });
        assert_eq!((outcome.text().0.as_str(), outcome.code()), ("deaf\n", 0));
    });
}

#[test]
fn privileged_ten_megabytes_go_both_ways_byte_for_byte() {
    with_handlers(|handler| {
        let ship = Ship::sleeping(handler, "binary");
        let data = noise(10 << 20);
        for protocol in [V5, "v4.base64.channel.k8s.io"] {
            // Without v5 the end of the input cannot be said, so the command is told how much there is.
            let command = ["sh", "-c", "head -c 10485760"];
            let url = ship.exec_url("io", &command);
            let outcome = ship.node.call(async {
                let Client { mut to, from } = Client::open(&url, protocol).await;
                let send = async {
                    for piece in data.chunks(32 << 10) {
                        to.send(STDIN, piece).await;
                    }
                };
                tokio::join!(from.finish(), send).0
            });
            assert!(outcome.stdout == data, "{protocol}: {} bytes came back", outcome.stdout.len());
            assert_eq!(outcome.code(), 0);
        }
    });
}

#[test]
fn privileged_a_terminal_has_a_size_an_echo_and_keys() {
    with_handlers(|handler| {
        let ship = Ship::sleeping(handler, "tty");
        let url = ship.exec_url("iot", &["sh"]);
        let outcome = ship.node.call(async {
            let mut client = Client::open(&url, V5).await;
            client.to.resize(101, 37).await;
            client.send(STDIN, b"until stty size | grep '37 101'; do :; done; tty; echo $TERM\n").await;
            client.until(STDOUT, "37 101\r\n").await;
            client.until(STDOUT, "/dev/pts/").await;
            client.until(STDOUT, "xterm").await;
            // Sizes that are none change nothing and break nothing.
            client.to.resize(0, 0).await;
            client.to.resize(0, 50).await;
            client.to.resize(90, 20).await;
            client.send(STDIN, b"until stty size | grep '20 90'; do :; done\n").await;
            client.until(STDOUT, "20 90\r\n").await;
            // CTRL-C ends what runs in the foreground, not the shell.
            client.send(STDIN, b"sh -c 'echo begin; exec sleep 1000'\n").await;
            client.until(STDOUT, "begin\r\n").await;
            client.send(STDIN, b"\x03").await;
            client.send(STDIN, b"echo code=$?\n").await;
            client.until(STDOUT, "code=130").await;
            // CTRL-Z stops it.
            client.send(STDIN, b"sh -c 'echo again; exec sleep 1000'\n").await;
            client.until(STDOUT, "again\r\n").await;
            client.send(STDIN, b"\x1a").await;
            client.until(STDOUT, "Stopped").await;
            client
                .send(
                    STDIN,
                    b"kill -9 %1; while jobs > /tmp/jobs; grep -q Stop /tmp/jobs; do :; done; echo fin''ished\n",
                )
                .await;
            client.until(STDOUT, "finished").await;
            // The prompt comes when the shell reads keys again; before that CTRL-D would be the end of a line.
            client.until(STDOUT, "# ").await;
            // CTRL-D is the end.
            client.send(STDIN, b"\x04").await;
            client.finish().await
        });
        assert!(outcome.stderr.is_empty());
        // What the shell ended with is its last command's.
        outcome.code();
    });
}

#[test]
fn privileged_output_is_whole_even_if_a_descendant_keeps_the_streams() {
    with_handlers(|handler| {
        let ship = Ship::sleeping(handler, "descendant");
        for letters in ["oe", "ot"] {
            let url = ship.exec_url(letters, &["sh", "-c", "seq 1 2000; (trap '' HUP; sleep 1000) & exit 3"]);
            let outcome = ship.node.call(async { Client::open(&url, V5).await.finish().await });
            let lines: Vec<String> = outcome.text().0.lines().map(str::to_owned).collect();
            assert_eq!((lines.len(), lines.last().map(String::as_str)), (2000, Some("2000")), "{letters}");
            assert_eq!(outcome.code(), 3, "{letters}");
        }
        // Nor does one that never stops to write.
        let url = ship.exec_url("oe", &["sh", "-c", "yes & exit 4"]);
        let outcome = ship.node.call(async { Client::open(&url, V5).await.finish().await });
        assert_eq!(outcome.code(), 4);
        assert!(outcome.stdout.len() < 8 << 20, "{}", outcome.stdout.len());
    });
}

#[test]
fn privileged_a_command_goes_on_without_its_client_and_a_shell_on_a_terminal_is_hung_up() {
    with_handlers(|handler| {
        let ship = Ship::sleeping(handler, "gone");
        // Its input ends, which it may notice.
        let url = ship.exec_url("io", &["sh", "-c", "echo begin; cat; echo went on > /tmp/after"]);
        ship.node.call(async {
            let mut client = Client::open(&url, V5).await;
            client.until(STDOUT, "begin").await;
        });
        eventually(|| {
            ship.node.try_exec(&ship.container, &["cat", "/tmp/after"], 0).ok().filter(|r| r.exit_code == 0)
        });
        let url = ship.exec_url("iot", &["sh", "-c", "echo $$ > /tmp/shell; exec sh"]);
        ship.node.call(async {
            let mut client = Client::open(&url, V5).await;
            client.send(STDIN, b"echo be''gin\n").await;
            client.until(STDOUT, "begin").await;
        });
        eventually(|| {
            let alive = ship.node.exec(&ship.container, &["sh", "-c", "kill -0 $(cat /tmp/shell)"]);
            (alive.exit_code != 0).then_some(())
        });
    });
}

#[test]
fn privileged_malformed_messages_close_the_connection_with_a_reason() {
    let ship = Ship::sleeping("", "malformed");
    let node = &ship.node;
    let closed = |protocol: &'static str, message: Message| {
        let url = ship.exec_url("io", &["cat"]);
        node.call(async move {
            let Client { mut to, mut from } = Client::open(&url, protocol).await;
            to.raw(message).await;
            from.closed().await
        })
    };
    let (code, reason) = closed(V5, Message::binary(vec![255])).expect("a reason");
    assert_eq!((code, reason.as_str()), (1002, "a message ends no channel"));
    let (code, reason) = closed("v4.base64.channel.k8s.io", Message::text("0!!!")).expect("a reason");
    assert_eq!((code, reason.as_str()), (1002, "a message for channel 0 is not base64"));

    // Channels that do not exist, and messages without one, mean nothing.
    let url = ship.exec_url("io", &["cat"]);
    let outcome = node.call(async {
        let mut client = Client::open(&url, V5).await;
        client.to.raw(Message::binary(vec![])).await;
        client.send(77, b"nothing").await;
        client.send(STDIN, b"something").await;
        client.to.end(STDIN).await;
        client.finish().await
    });
    assert_eq!((outcome.text().0.as_str(), outcome.code()), ("something", 0));

    // A frame that RFC 6455 does not have, and one that is too long by its own account.
    for (frame, code) in [
        (&[0xf7, 0x80, 0, 0, 0, 0][..], 1002_u16),
        (&[0x82, 0xff, 0, 0, 0, 0, 0x80, 0, 0, 0, 0, 0, 0, 0][..], 1009),
    ] {
        let url = ship.exec_url("io", &["cat"]);
        node.call(async {
            use tokio::io::{AsyncReadExt, AsyncWriteExt};
            let mut stream = websocket(&url, V5).await.expect("the upgrade").into_inner();
            stream.write_all(frame).await.expect("the connection lasts");
            let mut rest = Vec::new();
            stream.read_to_end(&mut rest).await.ok();
            let found = rest.windows(4).any(|window| window[0] == 0x88 && window[2..] == code.to_be_bytes());
            assert!(found, "{code}: {rest:?}");
        });
    }
}

#[test]
fn privileged_a_flood_of_pings_is_answered_and_costs_no_memory() {
    let ship = Ship::sleeping("", "pings");
    let url = ship.exec_url("io", &["cat"]);
    let rss = || {
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", ship.node.brigd_pid())).expect("brigd runs");
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("a size").to_owned();
        line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).expect("a number")
    };
    let before = rss();
    ship.node.call(async {
        let mut socket = websocket(&url, V5).await.expect("the upgrade");
        // Nobody reads the pongs meanwhile.
        for _ in 0..20_000 {
            let ping = socket.feed(Message::Ping(vec![9; 125].into()));
            if tokio::time::timeout(std::time::Duration::from_secs(5), ping).await.is_err() {
                break;
            }
        }
        let mut client = Client::over(socket, V5);
        client.send(STDIN, b"still there\n").await;
        client.until(STDOUT, "still there").await;
    });
    let grown = rss().saturating_sub(before);
    assert!(grown < 16 << 10, "{grown} KiB");
}

#[test]
fn privileged_a_command_outlives_the_daemon_that_started_it() {
    with_handlers(|handler| {
        let mut ship = Ship::sleeping(handler, "outlives");
        let command = "echo begun; until [ -e /go ]; do sleep 0.05; done; echo alive > /done";
        let url = ship.exec_url("oe", &["sh", "-c", command]);
        let client = ship.node.call(async {
            let mut client = Client::open(&url, V5).await;
            client.until(STDOUT, "begun\n").await;
            client
        });
        ship.node.kill_brigd();
        ship.node.call(client.finish());
        ship.node.restart_brigd();
        ship.node.output(&ship.container, "touch /go");
        eventually(|| {
            let said = ship.node.exec(&ship.container, &["cat", "/done"]).stdout;
            (said == b"alive\n").then_some(())
        });
    });
}
