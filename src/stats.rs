//! What containers and pods use, as plain data.
//!
//! One [`Usage`] is one reading of one cgroup. A part that the machine does not account for (PSI on cgroup v1, io
//! without the controller) is `None` and never 0.

use std::io;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use crate::sys::cgroup::{self, Cgroup, CgroupError, CgroupPath, Hierarchy};
use crate::units::{Bytes, UnixNanos};

/// One reading of a cgroup.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Usage {
    /// When it was read; never 0.
    pub(crate) at: UnixNanos,
    pub(crate) cpu: Option<CpuUsage>,
    pub(crate) memory: Option<MemoryUsage>,
    pub(crate) swap: Option<SwapUsage>,
    /// How long tasks waited for disks.
    pub(crate) io: Option<Pressure>,
    /// Tasks, threads included.
    pub(crate) processes: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct CpuUsage {
    /// All cores together, since the cgroup was made.
    pub(crate) total_ns: u64,
    /// Billionths of a core, over the time since an earlier reading; `None` at the first.
    pub(crate) nano_cores: Option<u64>,
    pub(crate) pressure: Option<Pressure>,
}

#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct MemoryUsage {
    /// With all page cache.
    pub(crate) usage: Bytes,
    /// Usage without inactive page cache.
    pub(crate) working_set: Bytes,
    /// Limit minus working set; `None` without a limit.
    pub(crate) available: Option<Bytes>,
    /// Anonymous memory.
    pub(crate) rss: Bytes,
    pub(crate) page_faults: u64,
    pub(crate) major_page_faults: u64,
    pub(crate) pressure: Option<Pressure>,
}

#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct SwapUsage {
    pub(crate) usage: Bytes,
    /// `None` without a limit.
    pub(crate) available: Option<Bytes>,
}

/// Pressure stall information of one resource (cgroup v2).
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Pressure {
    pub(crate) some: Stall,
    pub(crate) full: Stall,
}

/// One line of a pressure file.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Stall {
    /// The file has microseconds.
    pub(crate) total_ns: u64,
    /// Per cent of the last 10, 60 and 300 seconds.
    pub(crate) avg10: f64,
    pub(crate) avg60: f64,
    pub(crate) avg300: f64,
}

/// A container's share.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct ContainerUsage {
    pub(crate) cgroup: Usage,
    pub(crate) writable_layer: Option<DiskUsage>,
}

/// A pod's share. Its cgroup holds the containers' and what the pod itself needs.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct PodUsage {
    pub(crate) cgroup: Usage,
    /// `None` in the host's network. The interface with the pod's address comes first.
    pub(crate) network: Option<Vec<InterfaceUsage>>,
}

#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct InterfaceUsage {
    pub(crate) name: String,
    pub(crate) rx_bytes: u64,
    pub(crate) rx_packets: u64,
    pub(crate) rx_errors: u64,
    pub(crate) rx_dropped: u64,
    pub(crate) tx_bytes: u64,
    pub(crate) tx_packets: u64,
    pub(crate) tx_errors: u64,
    pub(crate) tx_dropped: u64,
}

/// Space that a folder takes on its file system.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct DiskUsage {
    /// When it was measured; never 0.
    pub(crate) at: UnixNanos,
    /// A path on the file system, from which the kubelet finds the device.
    pub(crate) path: PathBuf,
    pub(crate) used: Bytes,
    pub(crate) inodes: u64,
}

/// The reading before, from which the present rate of use is computed. One per container and per pod.
#[derive(Debug, Default)]
pub(crate) struct Sampler(Mutex<Option<Sample>>);

#[derive(Debug, Clone, Copy)]
struct Sample {
    at: UnixNanos,
    total_ns: u64,
    /// Up to this reading.
    rate: Option<u64>,
}

/// Two readings closer together than this say nothing about a rate: the clock ticks of v1 are 10 ms.
const RATE_APART_NS: i64 = 100_000_000;

impl Sampler {
    /// Reads a cgroup. One that is gone uses nothing. Blocking: some fifteen small files.
    pub(crate) fn read(&self, path: &CgroupPath) -> Result<Usage, CgroupError> {
        let at = UnixNanos::now();
        let stats = match Cgroup::open(&Hierarchy::of_host()?, path).and_then(|cgroup| cgroup.stats()) {
            Ok(stats) => stats,
            Err(CgroupError::Missing { .. }) => return Ok(Usage { at, ..Usage::default() }),
            Err(error) => return Err(error),
        };
        Ok(Usage {
            at,
            cpu: stats.cpu.map(|cpu| CpuUsage {
                total_ns: cpu.usage_ns,
                nano_cores: self.rate(at, cpu.usage_ns),
                pressure: stats.cpu_psi.map(Pressure::from),
            }),
            swap: stats.memory.and_then(|memory| {
                let usage = memory.swap_usage?;
                let available = memory.swap_limit.map(|limit| Bytes(limit.saturating_sub(usage)));
                Some(SwapUsage { usage: Bytes(usage), available })
            }),
            memory: stats.memory.map(|memory| MemoryUsage {
                usage: Bytes(memory.usage),
                working_set: Bytes(memory.working_set),
                available: memory.available.map(Bytes),
                rss: Bytes(memory.rss),
                page_faults: memory.page_faults,
                major_page_faults: memory.major_page_faults,
                pressure: stats.memory_psi.map(Pressure::from),
            }),
            io: stats.io_psi.map(Pressure::from),
            processes: stats.pids.map(|pids| pids.current),
        })
    }

    /// Billionths of a core since the reading before, or up to that one if it is too near; `None` at the first.
    fn rate(&self, at: UnixNanos, total_ns: u64) -> Option<u64> {
        let mut before = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let rate = match *before {
            None => None,
            // Several clients ask, and none may lose its answer to another.
            Some(then) if at.0 - then.at.0 < RATE_APART_NS => return then.rate,
            Some(then) => {
                let used = u128::from(total_ns.saturating_sub(then.total_ns));
                let apart = u128::from((at.0 - then.at.0).unsigned_abs());
                u64::try_from(used * 1_000_000_000 / apart).ok()
            }
        };
        *before = Some(Sample { at, total_ns, rate });
        rate
    }
}

impl From<cgroup::Psi> for Pressure {
    fn from(psi: cgroup::Psi) -> Self {
        Self { some: psi.some.into(), full: psi.full.into() }
    }
}

impl From<cgroup::PressureLine> for Stall {
    fn from(line: cgroup::PressureLine) -> Self {
        let percent = |hundredths: u32| f64::from(hundredths) / 100.0;
        Self {
            total_ns: u64::try_from(line.total.as_nanos()).unwrap_or(u64::MAX),
            avg10: percent(line.avg10_centipercent),
            avg60: percent(line.avg60_centipercent),
            avg300: percent(line.avg300_centipercent),
        }
    }
}

/// The interfaces of the network namespace that `pid` lives in, `first` first, loopback left out. Blocking.
pub(crate) fn interfaces(pid: i32, first: &str) -> io::Result<Vec<InterfaceUsage>> {
    let mut all = parse_interfaces(&std::fs::read_to_string(format!("/proc/{pid}/net/dev"))?);
    all.sort_by_key(|interface| interface.name != first);
    Ok(all)
}

/// proc_pid_net(5): two lines of headings, then `name: rx_bytes packets errs drop … (8 columns) tx_bytes packets errs`.
fn parse_interfaces(text: &str) -> Vec<InterfaceUsage> {
    text.lines()
        .skip(2)
        .filter_map(|line| {
            let (name, numbers) = line.split_once(':')?;
            let numbers: Vec<u64> = numbers.split_ascii_whitespace().filter_map(|n| n.parse().ok()).collect();
            let number = |at: usize| numbers.get(at).copied();
            Some(InterfaceUsage {
                name: name.trim().to_owned(),
                rx_bytes: number(0)?,
                rx_packets: number(1)?,
                rx_errors: number(2)?,
                rx_dropped: number(3)?,
                tx_bytes: number(8)?,
                tx_packets: number(9)?,
                tx_errors: number(10)?,
                tx_dropped: number(11)?,
            })
        })
        .filter(|interface| interface.name != "lo")
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_needs_two_readings_that_are_apart() {
        let sampler = Sampler::default();
        assert_eq!(sampler.rate(UnixNanos(1_000_000_000), 5), None);
        assert_eq!(sampler.rate(UnixNanos(1_000_000_001), 6), None);
        assert_eq!(sampler.rate(UnixNanos(3_000_000_000), 1_000_000_005), Some(500_000_000));
        // A second client, asking right after the first.
        assert_eq!(sampler.rate(UnixNanos(3_000_000_001), 1_000_000_006), Some(500_000_000));
    }

    #[test]
    fn interface_counters_are_read_without_loopback() {
        let text = "Inter-|   Receive\n face |bytes\n    lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n  \
                    eth0:  10 2 3 4 0 0 0 0 40 5 6 7 0 0 0 0\n";
        let expected = InterfaceUsage {
            name: "eth0".into(),
            rx_bytes: 10,
            rx_packets: 2,
            rx_errors: 3,
            rx_dropped: 4,
            tx_bytes: 40,
            tx_packets: 5,
            tx_errors: 6,
            tx_dropped: 7,
        };
        assert_eq!(parse_interfaces(text), [expected]);
    }
}
