//! What starting, stopping and asking costs, printed as a table. `make bench` runs it; nothing here can fail for being
//! slow. Every figure is a median over `RUNS` calls through the CRI socket, one at a time, image present.

#[path = "../it/fixture/mod.rs"]
#[expect(dead_code, reason = "shared with the integration tests, which use all of it")]
mod fixture;
mod stream;
mod unpack;

use std::time::{Duration, Instant};

use brig::proto::v1::*;

use fixture::node::{Node, Options, handlers};

/// Calls per figure: enough for a stable median in a few seconds each.
const RUNS: usize = 30;

/// Turns that the comparisons take: a noisy minute of the machine then meets both sides.
const ROUNDS: usize = 3;

/// Lives of a pod per turn: processor time is counted in steps of 10 ms, so half a millisecond of each life shows.
const LIVES_PER_TURN: usize = 20;

/// Longer than what the kernel does in the background after a pod has gone (grace periods of RCU).
const PAUSE: Duration = Duration::from_millis(100);

/// Which figures to take: words on the command line (`make bench ONLY="life crowd"`), all of them if none is given.
const PARTS: [(&str, fn()); 5] = [
    ("life", handlers_life),
    ("mounts", mounts),
    ("crowd", crowd),
    ("stream", stream::streams),
    ("unpack", unpack::unpack),
];

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

/// One pod at a time on a host with few and with many mounts, by turns.
fn mounts() {
    let node = Node::new();
    node.busybox();
    let (mut few, mut many) = (Life::default(), Life::default());
    for round in 0..ROUNDS {
        few.extend(&node, &format!("few{round}"), Duration::ZERO, LIVES_PER_TURN);
        let mounts = Mounts::make(3000);
        many.extend(&node, &format!("many{round}"), Duration::ZERO, LIVES_PER_TURN);
        drop(mounts);
    }
    few.rows("brig", ", few host mounts");
    many.rows("brig", ", 3000 host mounts");
    many.growth(&few, "3000 host mounts to few");
}

/// One pod at a time alone and beside many, by turns, and what the many cost.
fn crowd() {
    let node = Node::new();
    node.busybox();
    println!("{:<58} {:>10.1}", "brigd at rest, RSS (MiB)", rss_mib(node.brigd_pid()));
    let (mut alone, mut beside) = (Life::default(), Life::default());
    for round in 0..ROUNDS {
        alone.extend(&node, &format!("alone{round}"), Duration::ZERO, LIVES_PER_TURN);
        let mut pods = fill(&node, 0, 50);
        if round == 0 {
            crowd_of_50(&node);
        }
        pods.extend(fill(&node, 50, 100));
        if round == 0 {
            row(
                "ListContainers with 100 containers",
                &times(RUNS, Duration::ZERO, || {
                    let answer =
                        node.call(node.runtime.clone().list_containers(ListContainersRequest::default()));
                    assert_eq!(answer.expect("the list").into_inner().containers.len(), 100);
                }),
            );
        }
        pods.extend(fill(&node, 100, 200));
        beside.extend(&node, &format!("beside{round}"), Duration::ZERO, LIVES_PER_TURN);
        let begin = Instant::now();
        for pod in &pods {
            node.remove_pod(pod);
        }
        if round == 0 {
            let each = ms(begin.elapsed()) / 200.0;
            println!("{:<58} {each:>10.1}", "RemovePodSandbox of 200 running pods, each");
        }
    }
    alone.rows("brig", ", no other pod");
    beside.rows("brig", ", 200 pods running");
    beside.growth(&alone, "200 pods to none");
}

fn crowd_of_50(node: &Node) {
    println!("{:<58} {:>10.1}", "brigd with 50 pods, RSS (MiB)", rss_mib(node.brigd_pid()));
    println!(
        "{:<58} {:>10.3}",
        "brig-monitor, 50 pods of one container, PSS each (MiB)",
        monitors_pss_mib(node) / 50.0
    );
}

/// What each step of a pod's life took, a figure per run.
#[derive(Default)]
struct Life {
    run: Vec<Duration>,
    create: Vec<Duration>,
    start: Vec<Duration>,
    started: Vec<Duration>,
    ended: Vec<Duration>,
    /// Processor time of the daemon, its monitors and their runtimes, a figure per turn: for a whole life of a pod.
    cpu: Vec<Duration>,
}

impl Life {
    /// The whole life of a pod of one container, `runs` times. `name` makes its pods unique.
    fn extend(&mut self, node: &Node, name: &str, pause: Duration, runs: usize) {
        let mut cpu_before = Duration::ZERO;
        for run in 0..=runs {
            let config = node.pod_config(&format!("{name}-{run}"));
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
                self.run.push(ran - begin);
                self.create.push(created - ran);
                self.start.push(started - created);
                self.started.push(started - begin);
                self.ended.push(started.elapsed());
            } else {
                cpu_before = cpu_time(node.brigd_pid());
            }
        }
        self.cpu.push((cpu_time(node.brigd_pid()) - cpu_before) / u32::try_from(runs).expect("a few"));
    }

    fn rows(&self, handler: &str, when: &str) {
        row(&format!("{handler}: run pod + create + start{when}"), &self.started);
        row("    of it RunPodSandbox", &self.run);
        row("    of it CreateContainer", &self.create);
        row("    of it StartContainer", &self.start);
        row(&format!("{handler}: stop(0) + remove, both{when}"), &self.ended);
        row("    processor time of a whole life", &self.cpu);
    }

    /// How much more everything takes than in `other`, of which the figures were taken by turns with these.
    fn growth(&self, other: &Self, of_what: &str) {
        println!("{:<58} {:>10} {:>10}", format!("RATIO of {of_what}"), "medians", "minima");
        let pairs = [
            ("run pod + create + start", &self.started, &other.started),
            ("RunPodSandbox", &self.run, &other.run),
            ("CreateContainer", &self.create, &other.create),
            ("StartContainer", &self.start, &other.start),
            ("stop(0) + remove, both", &self.ended, &other.ended),
            ("processor time of a whole life", &self.cpu, &other.cpu),
        ];
        for (name, own, others) in pairs {
            let ratio = |part| at(own, part) / at(others, part);
            println!("    {name:<54} {:>10.2} {:>10.2}", ratio(50), ratio(0));
        }
    }
}

fn life(node: &Node, name: &str, pause: Duration) -> Life {
    let mut life = Life::default();
    life.extend(node, name, pause, RUNS);
    life
}

/// What a process and its waited-for descendants have computed so far: proc_pid_stat(5), fields 14 to 17.
fn cpu_time(pid: u32) -> Duration {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("brigd runs");
    let fields = text.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11).take(4);
    let ticks: u64 = fields.filter_map(|field| field.parse::<u64>().ok()).sum();
    // USER_HZ is 100 on every architecture that we build for.
    Duration::from_millis(ticks * 10)
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
    println!("{name:<58} {:>10.2} {:>10.2} {:>10.2}", at(figures, 50), at(figures, 0), at(figures, 90));
}

/// The figure in ms that `part` per cent of the others are below.
fn at(figures: &[Duration], part: usize) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort();
    ms(sorted[(sorted.len() * part / 100).min(sorted.len() - 1)])
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
            rustix::mount::mount_bind(dir.path(), &path).expect("a bind mount");
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
