//! What a thousand execs leave behind: nothing, counted before and after in the daemon, the monitor and the container.

use std::fmt;

use super::client::{Client, STDIN, V5};
use super::{Ship, with_handlers};
use crate::fixture::node::{PATIENCE, eventually, handlers};

/// What could leak.
#[derive(PartialEq, Eq, PartialOrd, Ord, Clone)]
struct Count {
    brigd_fds: usize,
    brigd_threads: usize,
    monitor_fds: usize,
    monitor_threads: usize,
    monitor_children: usize,
    container_processes: usize,
    container_ptys: usize,
}

impl fmt::Debug for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "brigd {} fds {} threads, monitor {} fds {} threads {} children, container {} processes {} ptys",
            self.brigd_fds,
            self.brigd_threads,
            self.monitor_fds,
            self.monitor_threads,
            self.monitor_children,
            self.container_processes,
            self.container_ptys
        )
    }
}

impl Count {
    fn of(ship: &Ship) -> Self {
        let outside = Self::outside(ship);
        let inside = ship.node.output(&ship.container, "ls -d /proc/[0-9]*; ls /dev/pts");
        Self {
            container_processes: inside.lines().filter(|line| line.starts_with("/proc/")).count(),
            container_ptys: inside.lines().filter(|line| !line.starts_with("/proc/")).count(),
            ..outside
        }
    }

    /// All but what is in the container.
    fn outside(ship: &Ship) -> Self {
        let (brigd, monitor) = (ship.node.brigd_pid(), monitor(ship));
        let entries = |path: String| std::fs::read_dir(path).map_or(0, Iterator::count);
        let children =
            std::fs::read_to_string(format!("/proc/{monitor}/task/{monitor}/children")).unwrap_or_default();
        Self {
            brigd_fds: entries(format!("/proc/{brigd}/fd")),
            brigd_threads: entries(format!("/proc/{brigd}/task")),
            monitor_fds: entries(format!("/proc/{monitor}/fd")),
            monitor_threads: entries(format!("/proc/{monitor}/task")),
            monitor_children: children.split_whitespace().count(),
            container_processes: 0,
            container_ptys: 0,
        }
    }

    fn within(&self, before: &Self) -> bool {
        self.brigd_fds <= before.brigd_fds
            && self.brigd_threads <= before.brigd_threads
            && self.monitor_fds <= before.monitor_fds
            && self.monitor_threads <= before.monitor_threads
            && self.monitor_children <= before.monitor_children
            && self.container_processes <= before.container_processes
            && self.container_ptys <= before.container_ptys
    }
}

/// The monitor of a node with one pod.
fn monitor(ship: &Ship) -> u32 {
    let needle = ship.node.dir.path().display().to_string();
    for entry in std::fs::read_dir("/proc").expect("/proc").flatten() {
        let read = |name| std::fs::read(entry.path().join(name)).unwrap_or_default();
        let comm = String::from_utf8_lossy(&read("comm")).trim().to_owned();
        if comm == "brig-monitor" && String::from_utf8_lossy(&read("cmdline")).contains(&needle) {
            return entry.file_name().to_string_lossy().parse().expect("a process");
        }
    }
    panic!("no monitor of {needle}");
}

/// Waits until what is counted is what it was; idle threads and closing connections take a moment.
fn assert_within(ship: &Ship, before: &Count) {
    // Without asking the daemon anything: every call would keep one of its idle threads alive.
    let end = std::time::Instant::now() + *PATIENCE;
    while !Count::outside(ship).within(before) && std::time::Instant::now() < end {
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    let after = Count::of(ship);
    assert!(after.within(before), "before {before:?}, after {after:?}");
}

/// One exec, in one of the ways that clients have: pipes, a terminal, input, a command that does not start, a client that
/// goes away.
async fn one(number: usize, url: String) {
    let client = Client::open(&url, V5).await;
    match number % 5 {
        0 => assert_eq!(client.finish().await.code(), 0),
        1 => assert_eq!(client.finish().await.code(), 3),
        2 => {
            let mut client = client;
            client.to.resize(80, 24).await;
            client.send(STDIN, b"exit 0\n").await;
            client.finish().await;
        }
        3 => assert_eq!(client.finish().await.status()["status"], "Failure"),
        _ => drop(client),
    }
}

fn url(ship: &Ship, number: usize) -> String {
    match number % 5 {
        0 => ship.exec_url("oe", &["true"]),
        1 => ship.exec_url("ioe", &["sh", "-c", "exit 3"]),
        2 => ship.exec_url("iot", &["sh"]),
        3 => ship.exec_url("oe", &["/no/such/command"]),
        _ => ship.exec_url("io", &["cat"]),
    }
}

/// How many execs one after the other have to leave nothing. `BRIG_TEST_EXECS` is for long runs, and for slow machines.
fn runs() -> usize {
    std::env::var("BRIG_TEST_EXECS").map_or(1000, |runs| runs.parse().expect("BRIG_TEST_EXECS is a number"))
}

fn one_after_the_other(handler: &str) {
    let ship = Ship::sleeping(handler, "thousand");
    for number in 0..10 {
        let url = url(&ship, number);
        ship.node.call(one(number, url));
    }
    eventually(|| (Count::of(&ship).container_processes == 2).then_some(()));
    let before = Count::of(&ship);
    for number in 0..runs() {
        let url = url(&ship, number);
        ship.node.call(one(number, url));
    }
    assert_within(&ship, &before);
}

#[test]
fn privileged_a_thousand_execs_one_after_the_other_leave_nothing() {
    one_after_the_other("brig");
}

/// A test of its own, so that both have time enough.
#[test]
fn privileged_a_thousand_execs_by_runc_one_after_the_other_leave_nothing() {
    if handlers().contains(&"runc") {
        one_after_the_other("runc");
    }
}

#[test]
fn privileged_a_hundred_execs_at_once_leave_nothing() {
    with_handlers(|handler| {
        let ship = Ship::sleeping(handler, "hundred");
        let hundred = || {
            let urls: Vec<_> = (0..100).map(|number| url(&ship, number)).collect();
            let all: Vec<_> =
                urls.into_iter().enumerate().map(|(number, url)| ship.node.spawn(one(number, url))).collect();
            for exec in all {
                ship.node.call(exec).expect("an exec");
            }
        };
        eventually(|| (Count::of(&ship).container_processes == 2).then_some(()));
        let before = Count::of(&ship);
        hundred();
        assert_within(&ship, &before);
    });
}

#[test]
fn privileged_clients_that_attach_and_go_leave_nothing() {
    let ship = Ship::pod("", "attached").attachable("while read line; do echo $line; done", false, false);
    ship.start();
    let attach = || {
        let url = ship.attach_url("ioe");
        ship.node.call(async {
            let mut client = Client::open(&url, V5).await;
            client.send(STDIN, b"x\n").await;
            client.until(super::client::STDOUT, "x").await;
        });
    };
    attach();
    eventually(|| (Count::of(&ship).container_processes == 2).then_some(()));
    let before = Count::of(&ship);
    for _ in 0..200 {
        attach();
    }
    assert_within(&ship, &before);
}
