//! Attach over WebSocket: several clients at once, input once, terminals, a client that is too slow, a daemon that is killed.

use super::client::{Client, STDIN, STDOUT, V5};
use super::{Ship, with_handlers};
use crate::fixture::node::eventually;

#[test]
fn privileged_whoever_attaches_before_the_start_misses_nothing_and_the_log_has_it_too() {
    with_handlers(|handler| {
        let ship = Ship::pod(handler, "first").attachable("echo out; echo err >&2; exit 3", false, false);
        let url = ship.attach_url("oe");
        let outcome = ship.node.call(async {
            let mut client = Client::open(&url, V5).await;
            // The server says so when the client is attached.
            assert_eq!(
                client.from.next().await.map(|(channel, data)| (channel, data.len())),
                Some((STDOUT, 0))
            );
            client
        });
        ship.start();
        let outcome = ship.node.call(outcome.finish());
        assert_eq!(outcome.text(), ("out\n".into(), "err\n".into()));
        // An attach has no exit code: the container's is in its status.
        assert_eq!(outcome.code(), 0);
        assert_eq!(ship.node.wait_exited(&ship.container).exit_code, 3);
        let mut lines = ship.node.log_lines("first", "main");
        lines.sort();
        assert_eq!(lines, ["stderr F err", "stdout F out"]);
    });
}

#[test]
fn privileged_clients_share_one_container_and_come_and_go() {
    with_handlers(|handler| {
        let ship = Ship::pod(handler, "shared").attachable(
            "while read line; do echo got $line; done; echo end",
            false,
            false,
        );
        ship.start();
        let (first, second) = (ship.attach_url("ioe"), ship.attach_url("ioe"));
        ship.node.call(async {
            let mut one = Client::open(&first, V5).await;
            let mut two = Client::open(&second, V5).await;
            for client in [&mut one, &mut two] {
                assert_eq!(client.from.next().await.map(|(_, data)| data.len()), Some(0));
            }
            one.send(STDIN, b"one\n").await;
            one.until(STDOUT, "got one\n").await;
            two.until(STDOUT, "got one\n").await;
            two.send(STDIN, b"two\n").await;
            one.until(STDOUT, "got two\n").await;
            drop(one);
            two.until(STDOUT, "got two\n").await;
            // Without stdinOnce neither a client that leaves nor one that ends its input ends the container's.
            two.to.end(STDIN).await;
        });
        let third = ship.attach_url("io");
        ship.node.call(async {
            let mut client = Client::open(&third, V5).await;
            assert_eq!(client.from.next().await.map(|(_, data)| data.len()), Some(0));
            client.send(STDIN, b"three\n").await;
            client.until(STDOUT, "got three\n").await;
        });
        let lines = ship.node.log_lines("shared", "main");
        assert_eq!(lines, ["stdout F got one", "stdout F got two", "stdout F got three"]);
        assert_eq!(
            ship.node.status(&ship.container).state(),
            brig::proto::v1::ContainerState::ContainerRunning
        );
    });
}

#[test]
fn privileged_with_stdin_once_the_first_clients_end_of_input_is_the_containers() {
    with_handlers(|handler| {
        let ship = Ship::pod(handler, "once").attachable("md5sum; echo end >&2", false, true);
        ship.start();
        let url = ship.attach_url("ioe");
        let outcome = ship.node.call(async {
            let mut client = Client::open(&url, V5).await;
            client.send(STDIN, b"hello").await;
            client.to.end(STDIN).await;
            client.finish().await
        });
        assert_eq!(outcome.text(), ("5d41402abc4b2a76b9719d911017c592  -\n".into(), "end\n".into()));
        assert_eq!(outcome.code(), 0);
        // A client that just goes ends it as well.
        let ship = Ship::pod(handler, "once-gone").attachable("cat; exit 5", false, true);
        ship.start();
        let url = ship.attach_url("io");
        ship.node.call(async {
            let mut client = Client::open(&url, V5).await;
            client.send(STDIN, b"x").await;
            client.until(STDOUT, "x").await;
        });
        assert_eq!(ship.node.wait_exited(&ship.container).exit_code, 5);
    });
}

#[test]
fn privileged_a_containers_terminal_is_shared_resized_and_logged() {
    with_handlers(|handler| {
        let ship = Ship::pod(handler, "tty").attachable("exec sh", true, false);
        ship.start();
        let refused = ship.try_attach_url("io").expect_err("tty has to be the container's");
        assert_eq!(refused.code(), tonic::Code::InvalidArgument, "{refused}");
        let (first, second) = (ship.attach_url("iot"), ship.attach_url("ot"));
        ship.node.call(async {
            let mut one = Client::open(&first, V5).await;
            let mut two = Client::open(&second, V5).await;
            for client in [&mut one, &mut two] {
                assert_eq!(client.from.next().await.map(|(_, data)| data.len()), Some(0));
            }
            one.to.resize(111, 22).await;
            one.send(STDIN, b"until stty size | grep '22 111'; do :; done\n").await;
            one.until(STDOUT, "22 111\r\n").await;
            two.until(STDOUT, "22 111\r\n").await;
            one.send(STDIN, b"sh -c 'echo begin; exec sleep 1000'\n").await;
            one.until(STDOUT, "begin\r\n").await;
            one.send(STDIN, b"\x03").await;
            one.send(STDIN, b"echo code=$?\n").await;
            one.until(STDOUT, "code=130").await;
            // A client that leaves hangs nothing up.
            drop(one);
        });
        let third = ship.attach_url("iot");
        ship.node.call(async {
            let mut client = Client::open(&third, V5).await;
            client.send(STDIN, b"echo sti''ll; exit 6\n").await;
            let outcome = client.finish().await;
            assert!(outcome.text().0.contains("still"), "{:?}", outcome.text());
        });
        assert_eq!(ship.node.wait_exited(&ship.container).exit_code, 6);
        assert!(ship.node.log_lines("tty", "main").iter().any(|line| line.contains("22 111")));
    });
}

#[test]
fn privileged_a_client_that_reads_nothing_is_cut_and_holds_up_nobody() {
    with_handlers(|handler| {
        let script = "seq 1 12000 > /tmp/chunk; while read go; do cat /tmp/chunk; done; echo end >&2";
        let ship = Ship::pod(handler, "slow").attachable(script, false, true);
        ship.start();
        let (slow, quick) = (ship.attach_url("oe"), ship.attach_url("ioe"));
        let (slow, rounds) = ship.node.call(async {
            let mut slow = Client::open(&slow, V5).await;
            let mut quick = Client::open(&quick, V5).await;
            for client in [&mut slow, &mut quick] {
                assert_eq!(client.from.next().await.map(|(_, data)| data.len()), Some(0));
            }
            // The one that reads gets every round to its end, until the other has more waiting than is kept for it.
            let mut rounds = 0;
            while !ship.node.log().contains("a client is cut off") {
                quick.send(STDIN, b"go\n").await;
                quick.until(STDOUT, "\n12000\n").await;
                rounds += 1;
            }
            quick.to.end(STDIN).await;
            let quick = quick.finish().await;
            assert_eq!(quick.text().1, "end\n");
            (slow, rounds)
        });
        assert_eq!(ship.node.wait_exited(&ship.container).exit_code, 0);
        // The slow one gets what was on its way until then, and why it is no more.
        let slow = ship.node.call(slow.finish());
        let lines = slow.text().0.lines().count();
        assert!(lines < rounds * 12_000, "{lines} lines in {rounds} rounds");
        let status = slow.status();
        assert!(status["message"].as_str().expect("a reason").contains("cut off"), "{status}");
        assert_eq!(ship.node.log_lines("slow", "main").len(), rounds * 12_000 + 1);
    });
}

#[test]
fn privileged_a_killed_daemon_ends_the_clients_and_not_the_container() {
    with_handlers(|handler| {
        let mut ship =
            Ship::pod(handler, "killed").attachable("while read line; do echo got $line; done", false, false);
        ship.start();
        let url = ship.attach_url("io");
        let client = ship.node.call(async {
            let mut client = Client::open(&url, V5).await;
            client.send(STDIN, b"one\n").await;
            client.until(STDOUT, "got one\n").await;
            client
        });
        ship.node.kill_brigd();
        // The end of the connection, at once.
        let outcome = ship.node.call(client.finish());
        assert_eq!(outcome.error, b"");
        ship.node.restart_brigd();
        // Nor has the container noticed.
        let url = ship.attach_url("io");
        ship.node.call(async {
            let mut client = Client::open(&url, V5).await;
            client.send(STDIN, b"two\n").await;
            client.until(STDOUT, "got two\n").await;
        });
        eventually(|| {
            let lines = ship.node.log_lines("killed", "main");
            (lines == ["stdout F got one", "stdout F got two"]).then_some(())
        });
    });
}

/// The container reads its input to its end, and says what it was.
fn once(handler: &str, name: &str) -> Ship {
    let ship = Ship::pod(handler, name).attachable("cat; echo end; exit 5", false, true);
    ship.start();
    ship
}

/// Goes on where a client was that went with its daemon, and ends the input.
fn go_on(ship: &Ship) {
    let url = ship.attach_url("io");
    let outcome = ship.node.call(async {
        let mut client = Client::open(&url, V5).await;
        client.send(STDIN, b"two\n").await;
        client.until(STDOUT, "two\n").await;
        client.to.end(STDIN).await;
        client.finish().await
    });
    assert_eq!(outcome.text().0, "end\n");
    assert_eq!(ship.node.wait_exited(&ship.container).exit_code, 5);
}

#[test]
fn privileged_with_stdin_once_a_daemon_that_ends_does_not_end_the_input() {
    with_handlers(|handler| {
        let begin = |ship: &Ship| {
            let url = ship.attach_url("io");
            ship.node.call(async {
                let mut client = Client::open(&url, V5).await;
                client.send(STDIN, b"one\n").await;
                client.until(STDOUT, "one\n").await;
                client
            })
        };
        let mut ship = once(handler, "once-killed");
        let client = begin(&ship);
        ship.node.kill_brigd();
        ship.node.call(client.finish());
        ship.node.restart_brigd();
        go_on(&ship);
        assert_eq!(
            ship.node.log_lines("once-killed", "main"),
            ["stdout F one", "stdout F two", "stdout F end"]
        );

        let mut ship = once(handler, "once-stopped");
        let client = begin(&ship);
        ship.node.stop_brigd();
        let status = ship.node.call(client.finish()).status();
        let message =
            "Internal error occurred: error attaching to container: brigd is stopping; the container goes on";
        assert_eq!(status["message"], message);
        ship.node.restart_brigd();
        go_on(&ship);
    });
}

#[test]
fn privileged_a_daemon_that_stops_says_so() {
    let mut ship = Ship::pod("", "stop").attachable("while :; do sleep 1000; done", false, false);
    ship.start();
    let url = ship.attach_url("oe");
    let client = ship.node.call(async {
        let mut client = Client::open(&url, V5).await;
        assert_eq!(client.from.next().await.map(|(_, data)| data.len()), Some(0));
        client
    });
    ship.node.stop_brigd();
    let outcome = ship.node.call(client.finish());
    let status = outcome.status();
    assert!(status["message"].as_str().expect("a reason").contains("brigd is stopping"), "{status}");
    ship.node.restart_brigd();
    assert_eq!(ship.node.status(&ship.container).state(), brig::proto::v1::ContainerState::ContainerRunning);
}
