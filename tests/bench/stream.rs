//! Streams: what it takes to run `true` for a client, and how fast bytes pass.
//!
//! The yardstick stands beside them, taken in the same run: the same file through one copying process (`cat FILE | cat`) into
//! the same reader. Both have three busy processes on however many cores there are.

#[path = "../it/stream/client.rs"]
#[expect(dead_code, reason = "shared with the integration tests, which use all of it")]
mod client;
#[path = "../it/stream/spdy.rs"]
#[expect(dead_code, reason = "shared with the integration tests, which use all of it")]
mod spdy;

use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use brig::proto::v1::*;

use super::fixture::node::{Node, Options, eventually, handlers};
use super::{row, times};
use client::{Client, V5};
use spdy::{Frame, From, Session, Spdy};

/// What kubectl and crictl speak over SPDY.
const V4: &str = "v4.channel.k8s.io";

/// What passes through.
const BYTES: usize = 1 << 30;

/// Passes of it per figure; each takes a second or two.
const PASSES: usize = 5;

/// Round trips per figure.
const EXECS: usize = 100;

pub(super) fn streams() {
    let mut file = tempfile::NamedTempFile::new().expect("a scratch file");
    std::io::copy(&mut std::io::repeat(0).take(BYTES as u64), &mut file).expect("room for a scratch file");
    for handler in handlers() {
        let node = Node::with(Options { handler: handler.into(), ..Options::default() });
        node.busybox();
        let config = node.pod_config("stream");
        let pod = node.run_pod(&config);
        // The file is the container's own and in the page cache.
        let script = format!(
            "dd if=/dev/zero of=/tmp/file bs=1M count={} && nc -ll -p 7 -e cat /tmp/file",
            BYTES >> 20
        );
        let id = node.run_container(&pod, &config, "main", &script);
        eventually(|| node.output(&id, "cat /proc/net/tcp /proc/net/tcp6").contains(":0007").then_some(()));

        let url = |command: &[&str]| {
            let request = ExecRequest {
                container_id: id.clone(),
                cmd: command.iter().map(ToString::to_string).collect(),
                stdout: true,
                stderr: true,
                ..Default::default()
            };
            node.call(node.runtime.clone().exec(request)).expect("Exec").into_inner().url
        };
        let round_trip = || {
            let url = url(&["true"]);
            assert_eq!(node.call(async { Client::open(&url, V5).await.finish().await }).code(), 0);
        };
        row(
            &format!("{handler}: exec of true over WebSocket, with its exit code"),
            &times(EXECS, Duration::ZERO, round_trip),
        );
        let round_trip = || {
            let url = url(&["true"]);
            let outcome = node.call(async { Session::open(&url, V4, "oe").await.finish().await });
            assert_eq!(outcome.code(), 0);
        };
        row(
            &format!("{handler}: exec of true over SPDY, with its exit code"),
            &times(EXECS, Duration::ZERO, round_trip),
        );

        let forward_url = || {
            let request = PortForwardRequest { pod_sandbox_id: pod.clone(), port: vec![7] };
            node.call(node.runtime.clone().port_forward(request)).expect("PortForward").into_inner().url
        };
        let (mut plain, mut exec, mut forward) = (Vec::new(), Vec::new(), Vec::new());
        let (mut spdy_exec, mut spdy_forward) = (Vec::new(), Vec::new());
        // Taken in turn, so that what else the machine does falls on all alike.
        for _ in 0..PASSES {
            plain.push(rate(|| through_a_pipe(file.path())));
            exec.push(rate(|| {
                let url = url(&["cat", "/tmp/file"]);
                node.call(read(&url, V5, client::STDOUT))
            }));
            spdy_exec.push(rate(|| node.call(read_spdy_exec(&url(&["cat", "/tmp/file"])))));
            // The port comes first, two bytes.
            forward.push(rate(|| node.call(read(&forward_url(), V4, 0)) - 2));
            spdy_forward.push(rate(|| node.call(read_spdy_port(&forward_url(), "7"))));
        }
        rates("plain pipe through one copying process (MB/s)", &plain);
        rates(&format!("{handler}: cat of 1 GiB, exec over WebSocket (MB/s)"), &exec);
        rates(&format!("{handler}: cat of 1 GiB, exec over SPDY (MB/s)"), &spdy_exec);
        rates(&format!("{handler}: 1 GiB, port-forward over WebSocket (MB/s)"), &forward);
        rates(&format!("{handler}: 1 GiB, port-forward over SPDY (MB/s)"), &spdy_forward);
        node.remove_pod(&pod);
    }
}

/// All that comes on a channel, counted.
async fn read(url: &str, protocol: &str, channel: u8) -> usize {
    let mut client = Client::open(url, protocol).await;
    let mut count = 0;
    while let Some((from, data)) = client.from.next().await {
        if from == channel {
            count += data.len();
        }
    }
    count
}

/// All that a command writes to stdout, counted.
async fn read_spdy_exec(url: &str) -> usize {
    let Spdy { mut to, from } = Spdy::open(url, V4).await.expect("the upgrade");
    to.stream(&[("streamtype", "error")]).await;
    let stdout = to.stream(&[("streamtype", "stdout")]).await;
    to.stream(&[("streamtype", "stderr")]).await;
    count(from, stdout).await
}

/// All that comes from a port, counted.
async fn read_spdy_port(url: &str, port: &str) -> usize {
    let Spdy { mut to, from } = Spdy::open(url, "portforward.k8s.io").await.expect("the upgrade");
    to.stream(&[("streamtype", "error"), ("port", port), ("requestid", "0")]).await;
    let data = to.stream(&[("streamtype", "data"), ("port", port), ("requestid", "0")]).await;
    count(from, data).await
}

/// To the end of a stream. The other half of the connection stays open meanwhile.
async fn count(mut from: From, wanted: u32) -> usize {
    let mut count = 0;
    while let Some(frame) = from.next().await {
        if let Frame::Data { stream, data, end } = frame
            && stream == wanted
        {
            count += data.len();
            if end {
                break;
            }
        }
    }
    count
}

fn through_a_pipe(file: &Path) -> usize {
    let mut first =
        Command::new("busybox").arg("cat").arg(file).stdout(Stdio::piped()).spawn().expect("cat runs");
    let pipe = first.stdout.take().expect("a pipe");
    let mut second =
        Command::new("busybox").arg("cat").stdin(pipe).stdout(Stdio::piped()).spawn().expect("cat runs");
    let (mut count, mut buffer) = (0, vec![0; 128 << 10]);
    let mut stdout = second.stdout.take().expect("a pipe");
    loop {
        match stdout.read(&mut buffer).expect("a pipe can be read") {
            0 => break,
            length => count += length,
        }
    }
    first.wait().expect("our child");
    second.wait().expect("our child");
    count
}

/// Megabytes per second of one pass.
fn rate(pass: impl FnOnce() -> usize) -> f64 {
    let begin = Instant::now();
    assert_eq!(pass(), BYTES);
    BYTES as f64 / 1e6 / begin.elapsed().as_secs_f64()
}

fn rates(name: &str, rates: &[f64]) {
    let mut sorted = rates.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (median, min, max) = (sorted[sorted.len() / 2], sorted[0], sorted[sorted.len() - 1]);
    println!("{name:<58} {median:>10.0} {min:>10.0} {max:>10.0} (median, min, max)");
}
