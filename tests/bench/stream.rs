//! Streams: what it takes to run `true` for a client, and how fast bytes pass.
//!
//! The yardstick stands beside them, taken in the same run: the same file through one copying process (`cat FILE | cat`) into
//! the same reader. Both have three busy processes on however many cores there are.

#[path = "../it/stream/client.rs"]
#[expect(dead_code, reason = "shared with the integration tests, which use all of it")]
mod client;

use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use brig::proto::v1::*;

use super::fixture::node::{Node, Options, eventually, handlers};
use super::{row, times};
use client::{Client, V5};

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
            &format!("{handler}: exec of true over a stream, with its exit code"),
            &times(EXECS, Duration::ZERO, round_trip),
        );

        let (mut plain, mut exec, mut forward) = (Vec::new(), Vec::new(), Vec::new());
        // Taken in turn, so that what else the machine does falls on all alike.
        for _ in 0..PASSES {
            plain.push(rate(|| through_a_pipe(file.path())));
            exec.push(rate(|| {
                let url = url(&["cat", "/tmp/file"]);
                node.call(read(&url, V5, client::STDOUT))
            }));
            forward.push(rate(|| {
                let request = PortForwardRequest { pod_sandbox_id: pod.clone(), port: vec![7] };
                let url = node
                    .call(node.runtime.clone().port_forward(request))
                    .expect("PortForward")
                    .into_inner()
                    .url;
                // The port comes first, two bytes.
                node.call(read(&url, "v4.channel.k8s.io", 0)) - 2
            }));
        }
        rates("plain pipe through one copying process (MB/s)", &plain);
        rates(&format!("{handler}: cat of 1 GiB through exec (MB/s)"), &exec);
        rates(&format!("{handler}: 1 GiB through port-forward (MB/s)"), &forward);
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
