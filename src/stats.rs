//! What containers and pods use, in the shapes that CRI reports.
//!
//! Numbers come from `sys/cgroup` and `/proc/<pid>/net/dev`; the writable layer's size is handed in, since only the image
//! store can tell it cheaply. The one thing kept here is the last CPU reading of each cgroup, to tell a rate from two.
//! No proto types: `cri/to_proto` translates.

use std::collections::HashMap;
use std::io::Read;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::Pid;

use crate::sys::cgroup::{Cgroup, CgroupError, CgroupPath, DeviceIo, Hierarchy, Psi, Stats};
use crate::units::{Bytes, UnixNanos};

/// Why usage cannot be told.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StatsError {
    #[error("read the usage of cgroup {path}")]
    Cgroup {
        path: CgroupPath,
        #[source]
        source: CgroupError,
    },
    #[error("read the network counters in {path}", path = .path.display())]
    Network {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

/// CRI's ContainerStats, without its attributes.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ContainerStats {
    pub(crate) timestamp: UnixNanos,
    pub(crate) cpu: Option<CpuUsage>,
    pub(crate) memory: Option<MemoryUsage>,
    pub(crate) swap: Option<SwapUsage>,
    pub(crate) io: IoUsage,
    pub(crate) process_count: Option<u64>,
    pub(crate) writable_layer: Option<FilesystemUsage>,
}

/// CRI's LinuxPodSandboxStats, without its containers.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct PodStats {
    pub(crate) timestamp: UnixNanos,
    pub(crate) cpu: Option<CpuUsage>,
    pub(crate) memory: Option<MemoryUsage>,
    pub(crate) swap: Option<SwapUsage>,
    pub(crate) io: IoUsage,
    pub(crate) process_count: Option<u64>,
    /// `None` for a pod in the host's network: the counters would be the host's.
    pub(crate) network: Option<NetworkUsage>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct CpuUsage {
    pub(crate) usage_core_nano_seconds: u64,
    /// Over the time since the reading before; `None` at the first.
    pub(crate) usage_nano_cores: Option<u64>,
    pub(crate) throttled: Duration,
    pub(crate) psi: Option<Psi>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct MemoryUsage {
    pub(crate) usage: Bytes,
    pub(crate) working_set: Bytes,
    pub(crate) rss: Bytes,
    /// `None` without a limit.
    pub(crate) available: Option<Bytes>,
    pub(crate) page_faults: u64,
    pub(crate) major_page_faults: u64,
    pub(crate) psi: Option<Psi>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SwapUsage {
    pub(crate) usage: Bytes,
    /// `None` without a limit of its own.
    pub(crate) available: Option<Bytes>,
}

#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct IoUsage {
    pub(crate) devices: Vec<DeviceIo>,
    pub(crate) psi: Option<Psi>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FilesystemUsage {
    pub(crate) mountpoint: PathBuf,
    pub(crate) used: Bytes,
    pub(crate) inodes_used: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NetworkUsage {
    pub(crate) default_interface: InterfaceUsage,
    /// Every other but the loopback.
    pub(crate) interfaces: Vec<InterfaceUsage>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct InterfaceUsage {
    pub(crate) name: String,
    pub(crate) rx_bytes: u64,
    pub(crate) rx_errors: u64,
    pub(crate) tx_bytes: u64,
    pub(crate) tx_errors: u64,
}

/// Reads usage. Share one: it remembers the last CPU reading of each cgroup. All of it blocks for some twenty file reads.
#[derive(Debug)]
pub(crate) struct Sampler {
    hierarchy: Hierarchy,
    readings: Mutex<HashMap<CgroupPath, Reading>>,
}

/// The reading that the next rate is told from, and the last rate told.
#[derive(Debug, Clone, Copy)]
struct Reading {
    at: Instant,
    usage_ns: u64,
    nano_cores: Option<u64>,
}

/// Ten times the containers of a node at Kubernetes' documented limit of 110 pods. At 80 bytes each this is small; beyond
/// it the oldest readings go, and their containers report no rate once.
const READINGS_MAX: usize = 10_000;

/// A rate over less than this is noise, since the scheduler accounts in ticks of up to 10 ms. A caller that asks again
/// sooner gets the rate it got before.
const INTERVAL_MIN: Duration = Duration::from_millis(500);

impl Sampler {
    pub(crate) fn new(hierarchy: Hierarchy) -> Self {
        Self { hierarchy, readings: Mutex::new(HashMap::new()) }
    }

    /// The usage of one container.
    ///
    /// # Errors
    ///
    /// [`StatsError::Cgroup`], with [`CgroupError::Missing`] as its source when the container has just gone.
    pub(crate) fn container(
        &self,
        path: &CgroupPath,
        writable_layer: Option<FilesystemUsage>,
    ) -> Result<ContainerStats, StatsError> {
        let (stats, usage_nano_cores) = self.read(path)?;
        Ok(ContainerStats {
            timestamp: UnixNanos::now(),
            cpu: cpu(&stats, usage_nano_cores),
            memory: memory(&stats),
            swap: swap(&stats),
            process_count: stats.pids.map(|pids| pids.current),
            io: IoUsage { psi: stats.io_psi, devices: stats.io },
            writable_layer,
        })
    }

    /// The usage of a pod, its containers included. `member` is a process in the pod's network namespace (its monitor has
    /// one pinned there); `None` for a pod in the host's network.
    ///
    /// # Errors
    ///
    /// As [`Self::container`], and [`StatsError::Network`] when `member` has gone.
    pub(crate) fn pod(&self, path: &CgroupPath, member: Option<Pid>) -> Result<PodStats, StatsError> {
        let (stats, usage_nano_cores) = self.read(path)?;
        Ok(PodStats {
            timestamp: UnixNanos::now(),
            cpu: cpu(&stats, usage_nano_cores),
            memory: memory(&stats),
            swap: swap(&stats),
            process_count: stats.pids.map(|pids| pids.current),
            io: IoUsage { psi: stats.io_psi, devices: stats.io },
            network: member.map(network).transpose()?.flatten(),
        })
    }

    /// Drops what is remembered of a cgroup that is no more.
    pub(crate) fn forget(&self, path: &CgroupPath) {
        self.readings.lock().unwrap_or_else(PoisonError::into_inner).remove(path);
    }

    fn read(&self, path: &CgroupPath) -> Result<(Stats, Option<u64>), StatsError> {
        let failed = |source| StatsError::Cgroup { path: path.clone(), source };
        let stats = Cgroup::open(&self.hierarchy, path).and_then(|cgroup| cgroup.stats()).map_err(failed)?;
        let rate = stats.cpu.and_then(|cpu| self.rate(path, cpu.usage_ns, Instant::now()));
        Ok((stats, rate))
    }

    /// Nanoseconds of CPU per second since the reading before.
    fn rate(&self, path: &CgroupPath, usage_ns: u64, now: Instant) -> Option<u64> {
        let mut readings = self.readings.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(last) = readings.get_mut(path) else {
            if readings.len() >= READINGS_MAX {
                let oldest =
                    readings.iter().min_by_key(|(_, reading)| reading.at).map(|(path, _)| path.clone());
                if let Some(oldest) = oldest {
                    readings.remove(&oldest);
                }
            }
            readings.insert(path.clone(), Reading { at: now, usage_ns, nano_cores: None });
            return None;
        };
        let elapsed = now.saturating_duration_since(last.at);
        // Less than before: a new container by the same path.
        if usage_ns < last.usage_ns {
            *last = Reading { at: now, usage_ns, nano_cores: None };
        } else if elapsed >= INTERVAL_MIN {
            let used = u128::from(usage_ns - last.usage_ns) * 1_000_000_000 / elapsed.as_nanos();
            *last = Reading { at: now, usage_ns, nano_cores: Some(u64::try_from(used).unwrap_or(u64::MAX)) };
        }
        last.nano_cores
    }
}

fn cpu(stats: &Stats, usage_nano_cores: Option<u64>) -> Option<CpuUsage> {
    let cpu = stats.cpu?;
    Some(CpuUsage {
        usage_core_nano_seconds: cpu.usage_ns,
        usage_nano_cores,
        throttled: Duration::from_nanos(cpu.throttled_ns),
        psi: stats.cpu_psi,
    })
}

fn memory(stats: &Stats) -> Option<MemoryUsage> {
    let memory = stats.memory?;
    Some(MemoryUsage {
        usage: Bytes(memory.usage),
        working_set: Bytes(memory.working_set),
        rss: Bytes(memory.rss),
        available: memory.available.map(Bytes),
        page_faults: memory.page_faults,
        major_page_faults: memory.major_page_faults,
        psi: stats.memory_psi,
    })
}

fn swap(stats: &Stats) -> Option<SwapUsage> {
    let memory = stats.memory?;
    let usage = memory.swap_usage?;
    let available = memory.swap_limit.map(|limit| Bytes(limit.saturating_sub(usage)));
    Some(SwapUsage { usage: Bytes(usage), available })
}

/// A pod has a handful of interfaces of some 130 bytes each; a CNI plugin may make more, but not thousands.
const NET_DEV_BYTES_MAX: u64 = 1 << 20;

fn network(member: Pid) -> Result<Option<NetworkUsage>, StatsError> {
    let path = PathBuf::from(format!("/proc/{}/net/dev", member.as_raw_nonzero()));
    let mut text = String::new();
    std::fs::File::open(&path)
        .and_then(|file| file.take(NET_DEV_BYTES_MAX).read_to_string(&mut text))
        .map_err(|source| StatsError::Network { path, source })?;
    Ok(parse_net_dev(&text))
}

/// `eth0` is the default interface, by CNI's convention; else the first. `None` with a loopback only.
fn parse_net_dev(text: &str) -> Option<NetworkUsage> {
    let mut interfaces: Vec<InterfaceUsage> = text
        .lines()
        .filter_map(|line| {
            // proc(5): name, then eight counters received and eight sent: bytes, packets, errors, …
            let (name, counters) = line.split_once(':')?;
            let counters: Vec<u64> =
                counters.split_whitespace().map_while(|field| field.parse().ok()).collect();
            let [rx_bytes, _, rx_errors, .., tx_bytes, _, tx_errors, _, _, _, _, _] = counters[..] else {
                return None;
            };
            Some(InterfaceUsage { name: name.trim().to_owned(), rx_bytes, rx_errors, tx_bytes, tx_errors })
        })
        .filter(|interface| interface.name != "lo")
        .collect();
    if interfaces.is_empty() {
        return None;
    }
    let default = interfaces.iter().position(|interface| interface.name == "eth0").unwrap_or(0);
    let default_interface = interfaces.remove(default);
    Some(NetworkUsage { default_interface, interfaces })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn path(text: &str) -> CgroupPath {
        CgroupPath::new(Path::new(text)).unwrap()
    }

    #[test]
    fn a_rate_is_told_from_two_readings_far_enough_apart() {
        let sampler = Sampler::new(Hierarchy::detect().unwrap());
        let (start, second) = (Instant::now(), 1_000_000_000);
        let ask = |usage, after_ms| sampler.rate(&path("/a"), usage, start + Duration::from_millis(after_ms));
        assert_eq!(ask(5 * second, 0), None);
        assert_eq!(ask(5 * second + 100, 100), None);
        assert_eq!(ask(7 * second, 4_000), Some(second / 2));
        // Too soon: as before, and the basis stays.
        assert_eq!(ask(9 * second, 4_100), Some(second / 2));
        assert_eq!(ask(9 * second, 5_000), Some(2 * second));
        // A new container under the same path.
        assert_eq!(ask(1, 9_000), None);
        sampler.forget(&path("/a"));
        assert_eq!(ask(2, 20_000), None);
    }

    #[test]
    fn what_is_remembered_has_a_bound_and_the_oldest_goes() {
        let sampler = Sampler::new(Hierarchy::detect().unwrap());
        let start = Instant::now();
        for n in 0..=READINGS_MAX as u64 {
            sampler.rate(&path(&format!("/{n}")), 0, start + Duration::from_millis(n));
        }
        let readings = sampler.readings.lock().unwrap();
        assert_eq!(readings.len(), READINGS_MAX);
        assert!(!readings.contains_key(&path("/0")));
        assert!(readings.contains_key(&path("/1")));
    }

    #[test]
    fn network_counters_are_eth0s_first_and_never_the_loopbacks() {
        let text = "Inter-|   Receive                            |  Transmit\n\
            \x20face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n\
            \x20   lo:     100       1    0    0    0     0          0         0      100       1    0    0    0     0       0          0\n\
            \x20 net1:      10       1    2    0    0     0          0         0       30       1    4    0    0     0       0          0\n\
            \x20 eth0:    1000      10    5    0    0     0          0         0     2000      20    6    0    0     0       0          0\n";
        let network = parse_net_dev(text).unwrap();
        assert_eq!(
            network.default_interface,
            InterfaceUsage {
                name: "eth0".into(),
                rx_bytes: 1000,
                rx_errors: 5,
                tx_bytes: 2000,
                tx_errors: 6
            }
        );
        assert_eq!(network.interfaces.len(), 1);
        assert_eq!((network.interfaces[0].rx_errors, network.interfaces[0].tx_errors), (2, 4));
        assert_eq!(parse_net_dev(text.split("\x20 net1").next().unwrap()), None);
    }

    #[test]
    fn privileged_a_real_cgroup_has_stats_and_a_removed_one_says_so() {
        let hierarchy = Hierarchy::detect().unwrap();
        let path = path(&format!("/brig-test-{}-stats", std::process::id()));
        let cgroup = Cgroup::create(&hierarchy, &path).unwrap();
        let sampler = Sampler::new(hierarchy);
        let layer = FilesystemUsage { mountpoint: "/x".into(), used: Bytes(7), inodes_used: 1 };
        let stats = sampler.container(&path, Some(layer.clone())).unwrap();
        assert_eq!(stats.writable_layer, Some(layer));
        assert_eq!(stats.process_count, Some(0));
        assert!(stats.cpu.is_some() && stats.memory.is_some());
        assert!(sampler.pod(&path, None).unwrap().network.is_none());
        cgroup.remove().unwrap();
        let err = sampler.container(&path, None).unwrap_err();
        assert!(matches!(err, StatsError::Cgroup { source: CgroupError::Missing { .. }, .. }), "{err}");
    }
}
