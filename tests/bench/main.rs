//! What starting, stopping and asking costs, printed as a table. `make bench` runs it; nothing here can fail for being
//! slow. Every figure is a median over `RUNS` calls through the CRI socket, one at a time, image present.

#[path = "../it/fixture/mod.rs"]
#[expect(dead_code, reason = "shared with the integration tests, which use all of it")]
mod fixture;

use std::process::Command;
use std::time::{Duration, Instant};

use brig::proto::v1::*;

use fixture::node::{Node, Options, handlers};

/// Calls per figure: enough for a stable median in a few seconds each.
const RUNS: usize = 30;

/// Longer than what the kernel does in the background after a pod has gone (grace periods of RCU).
const PAUSE: Duration = Duration::from_millis(100);

/// Which figures to take: words on the command line (`make bench ONLY="life crowd"`), all of them if none is given.
const PARTS: [(&str, fn()); 3] = [("life", handlers_life), ("mounts", mounts), ("crowd", crowd)];

fn main() {
    // Cargo adds options of its own, as `--bench`.
    let wanted: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    println!("{}", machine());
    println!("{:<58} {:>10} {:>10} {:>10}", "figure (ms unless said otherwise)", "median", "min", "p90");
    for (name, part) in PARTS {
        if wanted.is_empty() || wanted.iter().any(|word| word == name) {
            part();
        }
    }
}

/// One pod at a time, on every handler.
fn handlers_life() {
    // The hardened one beside the standard one, because what it costs in addition is the question.
    let mut all = handlers();
    all.insert(1, "brig-hardened");
    for handler in all {
        let node = Node::with(Options { handler: handler.into(), ..Options::default() });
        node.busybox();
        life(&node, "plain", Duration::ZERO).rows(handler, "");
        row(&format!("{handler}: ExecSync true"), &exec(&node, Duration::ZERO));
        // What a quiet node sees: the kernel has forgotten the last move between cgroups by then.
        life(&node, "paused", PAUSE).rows(handler, ", each after a pause");
        row(&format!("{handler}: ExecSync true, each after a pause"), &exec(&node, PAUSE));
    }
}

/// One pod at a time on a host with many mounts. Runs with few mounts before and after tell growth from noise.
fn mounts() {
    let node = Node::new();
    node.busybox();
    life(&node, "before", Duration::ZERO).rows("brig", ", few host mounts");
    let mounts = Mounts::make(3000);
    life(&node, "mounts", Duration::ZERO).rows("brig", ", 3000 host mounts");
    drop(mounts);
    life(&node, "after", Duration::ZERO).rows("brig", ", few host mounts again");
}

/// One pod at a time beside many, and what the many cost.
fn crowd() {
    let node = Node::new();
    node.busybox();
    println!("{:<58} {:>10.1}", "brigd at rest, RSS (MiB)", rss_mib(node.brigd_pid()));
    life(&node, "alone", Duration::ZERO).rows("brig", ", no other pod");
    let mut pods = fill(&node, 0, 50);
    println!("{:<58} {:>10.1}", "brigd with 50 pods, RSS (MiB)", rss_mib(node.brigd_pid()));
    println!(
        "{:<58} {:>10.3}",
        "brig-monitor, 50 pods of one container, PSS each (MiB)",
        monitors_pss_mib(&node) / 50.0
    );
    pods.extend(fill(&node, 50, 100));
    row(
        "ListContainers with 100 containers",
        &times(RUNS, Duration::ZERO, || {
            let answer = node.call(node.runtime.clone().list_containers(ListContainersRequest::default()));
            assert_eq!(answer.expect("the list").into_inner().containers.len(), 100);
        }),
    );
    pods.extend(fill(&node, 100, 200));
    life(&node, "crowd", Duration::ZERO).rows("brig", ", 200 pods running");
    let begin = Instant::now();
    for pod in &pods {
        node.remove_pod(pod);
    }
    println!("{:<58} {:>10.1}", "RemovePodSandbox of 200 running pods, each", ms(begin.elapsed()) / 200.0);
    life(&node, "alone-again", Duration::ZERO).rows("brig", ", no other pod again");
}

/// What each step of a pod's life took, a figure per run.
#[derive(Default)]
struct Life {
    run: Vec<Duration>,
    create: Vec<Duration>,
    start: Vec<Duration>,
    started: Vec<Duration>,
    ended: Vec<Duration>,
}

impl Life {
    fn rows(&self, handler: &str, when: &str) {
        row(&format!("{handler}: run pod + create + start{when}"), &self.started);
        row("    of it RunPodSandbox", &self.run);
        row("    of it CreateContainer", &self.create);
        row("    of it StartContainer", &self.start);
        row(&format!("{handler}: stop(0) + remove, both{when}"), &self.ended);
    }
}

/// The whole life of a pod of one container, `RUNS` times.
fn life(node: &Node, name: &str, pause: Duration) -> Life {
    let mut life = Life::default();
    for run in 0..=RUNS {
        let config = node.pod_config(&format!("{name}{run}"));
        let container = node.container_config("main", "exec sleep 1000");
        std::thread::sleep(pause);
        let begin = Instant::now();
        let pod = node.run_pod(&config);
        let ran = Instant::now();
        let id = node.create(&pod, &container, &config);
        let created = Instant::now();
        node.start(&id);
        let started = Instant::now();
        node.stop_container(&id, 0);
        node.remove_container(&id);
        node.stop_pod(&pod);
        node.remove_pod(&pod);
        // The first run warms caches and is not counted.
        if run > 0 {
            life.run.push(ran - begin);
            life.create.push(created - ran);
            life.start.push(started - created);
            life.started.push(started - begin);
            life.ended.push(started.elapsed());
        }
    }
    life
}

fn exec(node: &Node, pause: Duration) -> Vec<Duration> {
    let config = node.pod_config(&format!("exec{}", pause.as_millis()));
    let pod = node.run_pod(&config);
    let id = node.run_container(&pod, &config, "main", "exec sleep 1000");
    let figures = times(RUNS, pause, || assert_eq!(node.exec(&id, &["/bin/true"]).exit_code, 0));
    node.remove_pod(&pod);
    figures
}

fn fill(node: &Node, from: usize, to: usize) -> Vec<String> {
    (from..to)
        .map(|number| {
            let config = node.pod_config(&format!("fill{number}"));
            let pod = node.run_pod(&config);
            node.run_container(&pod, &config, "main", "exec sleep 1000");
            pod
        })
        .collect()
}

fn times(runs: usize, pause: Duration, mut work: impl FnMut()) -> Vec<Duration> {
    work();
    (0..runs)
        .map(|_| {
            std::thread::sleep(pause);
            let begin = Instant::now();
            work();
            begin.elapsed()
        })
        .collect()
}

fn row(name: &str, figures: &[Duration]) {
    let mut sorted = figures.to_vec();
    sorted.sort();
    let at = |part: usize| ms(sorted[(sorted.len() * part / 100).min(sorted.len() - 1)]);
    println!("{name:<58} {:>10.2} {:>10.2} {:>10.2}", at(50), at(0), at(90));
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn rss_mib(pid: u32) -> f64 {
    field_kib(&format!("/proc/{pid}/status"), "VmRSS:") / 1024.0
}

/// The proportional set sizes of all monitors of this node, summed.
fn monitors_pss_mib(node: &Node) -> f64 {
    let needle = node.dir.path().display().to_string();
    let mut sum = 0.0;
    for entry in std::fs::read_dir("/proc").expect("/proc").flatten() {
        let name = std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        let environment = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if name.trim() == "brig-monitor" && String::from_utf8_lossy(&environment).contains(&needle) {
            sum += field_kib(&entry.path().join("smaps_rollup").display().to_string(), "Pss:");
        }
    }
    sum / 1024.0
}

fn field_kib(path: &str, field: &str) -> f64 {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(field)).unwrap_or("0");
    line.trim().trim_end_matches("kB").trim().parse().unwrap_or(0.0)
}

fn machine() -> String {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("");
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    format!("{cores} cores, {}, kernel {}", model.trim_start_matches([' ', '\t', ':']), kernel.trim())
}

/// Mounts on the host, taken back when dropped.
struct Mounts(tempfile::TempDir);

impl Mounts {
    fn make(count: usize) -> Self {
        let dir = tempfile::tempdir().expect("a scratch directory");
        for number in 0..count {
            let path = dir.path().join(number.to_string());
            std::fs::create_dir(&path).expect("a directory");
            let bound = Command::new("mount").arg("--bind").arg(dir.path()).arg(&path).status();
            assert!(bound.expect("mount(8) runs").success());
        }
        Self(dir)
    }
}

impl Drop for Mounts {
    fn drop(&mut self) {
        for entry in std::fs::read_dir(self.0.path()).expect("the directory").flatten() {
            rustix::mount::unmount(entry.path(), rustix::mount::UnmountFlags::DETACH).ok();
        }
    }
}
