//! One look at a container or at a pod's interfaces, and the samples that follow from it: pure, so every rule of what is
//! left out is a line here.

use super::catalogue::Metric;
use super::{FileSystem, Processes};
use crate::stats::InterfaceUsage;
use crate::sys::cgroup::{Details, Psi};
use crate::units::{Bytes, UnixNanos};

/// A value of a metric.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sample {
    pub(crate) metric: Metric,
    /// One for each of [`Metric::own_labels`].
    pub(crate) labels: Vec<String>,
    pub(crate) value: u64,
}

/// What a running container was like at one moment.
#[derive(Debug, Clone, Default)]
pub(crate) struct ContainerReading {
    /// Never 0.
    pub(crate) at: UnixNanos,
    pub(crate) started_at: UnixNanos,
    pub(crate) cgroup: Details,
    /// The name of each device in the cgroup's statistics of I/O, in their order.
    pub(crate) device_names: Vec<String>,
    pub(crate) processes: Option<Processes>,
    /// The file system and what the writable layer takes of it.
    pub(crate) disk: Option<(FileSystem, Bytes)>,
    /// The shares that were asked for: on cgroup v2 the kernel keeps only a rounded weight.
    pub(crate) shares_asked: Option<u64>,
    /// Bytes of swap that the host has; where it is 0, nobody swaps, whether the kernel accounts for it or not.
    pub(crate) host_swap: Option<Bytes>,
}

impl ContainerReading {
    pub(crate) fn samples(&self) -> Vec<Sample> {
        let mut out = Samples(Vec::with_capacity(Metric::ALL.len()));
        out.put(Metric::LastSeen, seconds(self.at));
        out.put(Metric::StartTimeSeconds, seconds(self.started_at));
        self.cpu(&mut out);
        self.memory(&mut out);
        self.io(&mut out);
        self.pressure(&mut out);
        self.count(&mut out);
        if let Some((disk, used)) = &self.disk {
            let device = [disk.device.as_str()];
            out.label(Metric::FsUsageBytes, &device, used.0);
            out.label(Metric::FsLimitBytes, &device, disk.bytes);
            out.label(Metric::FsInodes, &device, disk.inodes);
            out.label(Metric::FsInodesFree, &device, disk.inodes_free);
        }
        for pages in &self.cgroup.huge_pages {
            let size = [pages.page_size.as_str()];
            out.label(Metric::HugetlbUsageBytes, &size, pages.usage);
            if let Some(max) = pages.max_usage {
                out.label(Metric::HugetlbMaxUsageBytes, &size, max);
            }
        }
        out.0
    }

    fn cpu(&self, out: &mut Samples) {
        let limits = self.cgroup.cpu;
        if let Some(cpu) = self.cgroup.stats.cpu {
            out.label(Metric::CpuUsageSeconds, &["total"], whole_seconds(cpu.usage_ns));
            out.put(Metric::CpuUserSeconds, whole_seconds(cpu.user_ns));
            out.put(Metric::CpuSystemSeconds, whole_seconds(cpu.system_ns));
            // Without a quota there are no periods to count.
            if limits.quota_us.is_some() {
                out.put(Metric::CpuCfsPeriods, cpu.periods);
                out.put(Metric::CpuCfsThrottledPeriods, cpu.throttled_periods);
                out.put(Metric::CpuCfsThrottledSeconds, whole_seconds(cpu.throttled_ns));
            }
        }
        out.put_some(Metric::SpecCpuPeriod, limits.period_us);
        out.put_some(Metric::SpecCpuQuota, limits.quota_us);
        out.put_some(Metric::SpecCpuShares, self.shares_asked.or(limits.shares));
    }

    fn memory(&self, out: &mut Samples) {
        let Some(memory) = self.cgroup.stats.memory else { return };
        let details = self.cgroup.memory;
        out.put(Metric::MemoryUsageBytes, memory.usage);
        out.put(Metric::MemoryWorkingSetBytes, memory.working_set);
        out.put(Metric::MemoryRss, memory.rss);
        out.put(Metric::MemoryCache, memory.cache);
        out.put(Metric::MemoryFailcnt, memory.limit_hits);
        out.put(Metric::OomEvents, memory.oom_kills);
        out.put_some(Metric::MemoryMaxUsageBytes, memory.peak);
        out.put_some(Metric::MemoryKernelUsage, details.kernel);
        out.put_some(Metric::MemoryMappedFile, details.mapped_file);
        let no_swap = self.host_swap.filter(|swap| swap.0 == 0).map(|_| 0);
        out.put_some(Metric::MemorySwap, memory.swap_usage.or(no_swap));
        for (kind, own, all) in [
            ("pgfault", details.own_page_faults, memory.page_faults),
            ("pgmajfault", details.own_major_page_faults, memory.major_page_faults),
        ] {
            out.label(Metric::MemoryFailures, &[kind, "container"], own.unwrap_or(all));
            out.label(Metric::MemoryFailures, &[kind, "hierarchy"], all);
        }
        // cAdvisor writes 0 for no limit.
        out.put(Metric::SpecMemoryLimitBytes, memory.limit.unwrap_or(0));
        out.put(Metric::SpecMemorySwapLimitBytes, details.swap_limit.unwrap_or(0));
        out.put(Metric::SpecMemoryReservationLimitBytes, details.reserved.unwrap_or(0));
    }

    fn io(&self, out: &mut Samples) {
        for (io, device) in self.cgroup.stats.io.iter().zip(&self.device_names) {
            let (major, minor) = (io.major.to_string(), io.minor.to_string());
            for (operation, bytes) in [("Read", io.read_bytes), ("Write", io.write_bytes)] {
                out.label(Metric::BlkioDeviceUsage, &[device, &major, &minor, operation], bytes);
            }
            out.label(Metric::FsReadsBytes, &[device], io.read_bytes);
            out.label(Metric::FsReads, &[device], io.reads);
            out.label(Metric::FsWritesBytes, &[device], io.write_bytes);
            out.label(Metric::FsWrites, &[device], io.writes);
        }
    }

    fn pressure(&self, out: &mut Samples) {
        let stats = &self.cgroup.stats;
        let mut put = |waiting, stalled, psi: Option<Psi>| {
            if let Some(psi) = psi {
                out.put(waiting, psi.some.total.as_secs());
                out.put(stalled, psi.full.total.as_secs());
            }
        };
        put(Metric::PressureCpuWaitingSeconds, Metric::PressureCpuStalledSeconds, stats.cpu_psi);
        put(Metric::PressureMemoryWaitingSeconds, Metric::PressureMemoryStalledSeconds, stats.memory_psi);
        put(Metric::PressureIoWaitingSeconds, Metric::PressureIoStalledSeconds, stats.io_psi);
    }

    fn count(&self, out: &mut Samples) {
        if let Some(pids) = self.cgroup.stats.pids {
            out.put(Metric::Threads, pids.current);
            // cAdvisor writes 0 for no limit.
            out.put(Metric::ThreadsMax, pids.limit.unwrap_or(0));
        }
        let Some(processes) = &self.processes else { return };
        out.put(Metric::Processes, processes.count);
        if let Some(descriptors) = processes.descriptors {
            out.put(Metric::FileDescriptors, descriptors.open);
            out.put(Metric::Sockets, descriptors.sockets);
        }
        if let Some(max) = processes.open_files_max {
            out.label(Metric::UlimitsSoft, &["max_open_files"], max);
        }
    }
}

/// The counters of a pod's interfaces.
pub(crate) fn network_samples(interfaces: &[InterfaceUsage]) -> Vec<Sample> {
    let mut out = Samples(Vec::new());
    for interface in interfaces {
        for (metric, value) in [
            (Metric::NetworkReceiveBytes, interface.rx_bytes),
            (Metric::NetworkReceivePackets, interface.rx_packets),
            (Metric::NetworkReceiveErrors, interface.rx_errors),
            (Metric::NetworkReceivePacketsDropped, interface.rx_dropped),
            (Metric::NetworkTransmitBytes, interface.tx_bytes),
            (Metric::NetworkTransmitPackets, interface.tx_packets),
            (Metric::NetworkTransmitErrors, interface.tx_errors),
            (Metric::NetworkTransmitPacketsDropped, interface.tx_dropped),
        ] {
            out.label(metric, &[&interface.name], value);
        }
    }
    out.0
}

struct Samples(Vec<Sample>);

impl Samples {
    fn put(&mut self, metric: Metric, value: u64) {
        self.label(metric, &[], value);
    }

    fn put_some(&mut self, metric: Metric, value: Option<u64>) {
        if let Some(value) = value {
            self.put(metric, value);
        }
    }

    fn label(&mut self, metric: Metric, labels: &[&str], value: u64) {
        debug_assert_eq!(labels.len(), metric.own_labels().len(), "{}", metric.name());
        self.0.push(Sample {
            metric,
            labels: labels.iter().map(|label| (*label).to_owned()).collect(),
            value,
        });
    }
}

fn whole_seconds(ns: u64) -> u64 {
    ns / 1_000_000_000
}

fn seconds(at: UnixNanos) -> u64 {
    whole_seconds(at.0.unsigned_abs())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::Duration;

    use super::super::proc::Descriptors;
    use super::*;
    use crate::sys::cgroup::{
        CpuLimits, CpuStats, DeviceIo, HugePages, MemoryDetails, MemoryStats, PidsStats, PressureLine, Stats,
    };

    fn whole() -> ContainerReading {
        let psi = |some: u64, full: u64| {
            let line =
                |secs| PressureLine { total: Duration::from_millis(secs * 1000 + 999), ..Default::default() };
            Some(Psi { some: line(some), full: line(full) })
        };
        ContainerReading {
            at: UnixNanos(1_700_000_009_999_999_999),
            started_at: UnixNanos(1_700_000_000_500_000_000),
            cgroup: Details {
                stats: Stats {
                    cpu: Some(CpuStats {
                        usage_ns: 3_999_999_999,
                        user_ns: 2_000_000_000,
                        system_ns: 1_000_000_000,
                        periods: 10,
                        throttled_periods: 4,
                        throttled_ns: 5_500_000_000,
                    }),
                    memory: Some(MemoryStats {
                        usage: 100,
                        working_set: 90,
                        rss: 80,
                        limit: Some(1000),
                        available: Some(910),
                        page_faults: 7,
                        major_page_faults: 2,
                        cache: 15,
                        swap_usage: None,
                        swap_limit: None,
                        peak: Some(120),
                        oom_kills: 1,
                        limit_hits: 3,
                    }),
                    pids: Some(PidsStats { current: 6, limit: None }),
                    io: vec![DeviceIo {
                        major: 0,
                        minor: 999_999,
                        read_bytes: 11,
                        write_bytes: 12,
                        reads: 13,
                        writes: 14,
                    }],
                    cpu_psi: psi(1, 0),
                    memory_psi: psi(2, 3),
                    io_psi: psi(4, 5),
                },
                memory: MemoryDetails {
                    mapped_file: Some(21),
                    kernel: Some(22),
                    own_page_faults: Some(5),
                    own_major_page_faults: Some(1),
                    swap_limit: None,
                    reserved: Some(23),
                },
                cpu: CpuLimits { period_us: Some(100_000), quota_us: Some(20_000), shares: Some(998) },
                huge_pages: vec![HugePages { page_size: "2MB".into(), usage: 31, max_usage: Some(32) }],
            },
            device_names: vec!["/dev/vdb".into()],
            processes: Some(Processes {
                count: 2,
                descriptors: Some(Descriptors { open: 41, sockets: 4 }),
                open_files_max: Some(1024),
            }),
            disk: Some((
                FileSystem { device: "/dev/vda".into(), bytes: 51, inodes: 52, inodes_free: 53 },
                Bytes(54),
            )),
            shares_asked: Some(1024),
            host_swap: Some(Bytes(0)),
        }
    }

    fn lines(samples: &[Sample]) -> Vec<String> {
        let line = |s: &Sample| format!("{} {:?} {}", s.metric.name(), s.labels, s.value);
        let mut lines: Vec<_> = samples.iter().map(line).collect();
        lines.sort();
        lines
    }

    #[test]
    fn a_whole_reading_has_every_metric_with_its_value() {
        let expected = [
            r#"container_blkio_device_usage_total ["/dev/vdb", "0", "999999", "Read"] 11"#,
            r#"container_blkio_device_usage_total ["/dev/vdb", "0", "999999", "Write"] 12"#,
            "container_cpu_cfs_periods_total [] 10",
            "container_cpu_cfs_throttled_periods_total [] 4",
            "container_cpu_cfs_throttled_seconds_total [] 5",
            "container_cpu_system_seconds_total [] 1",
            r#"container_cpu_usage_seconds_total ["total"] 3"#,
            "container_cpu_user_seconds_total [] 2",
            "container_file_descriptors [] 41",
            r#"container_fs_inodes_free ["/dev/vda"] 53"#,
            r#"container_fs_inodes_total ["/dev/vda"] 52"#,
            r#"container_fs_limit_bytes ["/dev/vda"] 51"#,
            r#"container_fs_reads_bytes_total ["/dev/vdb"] 11"#,
            r#"container_fs_reads_total ["/dev/vdb"] 13"#,
            r#"container_fs_usage_bytes ["/dev/vda"] 54"#,
            r#"container_fs_writes_bytes_total ["/dev/vdb"] 12"#,
            r#"container_fs_writes_total ["/dev/vdb"] 14"#,
            r#"container_hugetlb_max_usage_bytes ["2MB"] 32"#,
            r#"container_hugetlb_usage_bytes ["2MB"] 31"#,
            "container_last_seen [] 1700000009",
            "container_memory_cache [] 15",
            "container_memory_failcnt [] 3",
            r#"container_memory_failures_total ["pgfault", "container"] 5"#,
            r#"container_memory_failures_total ["pgfault", "hierarchy"] 7"#,
            r#"container_memory_failures_total ["pgmajfault", "container"] 1"#,
            r#"container_memory_failures_total ["pgmajfault", "hierarchy"] 2"#,
            "container_memory_kernel_usage [] 22",
            "container_memory_mapped_file [] 21",
            "container_memory_max_usage_bytes [] 120",
            "container_memory_rss [] 80",
            "container_memory_swap [] 0",
            "container_memory_usage_bytes [] 100",
            "container_memory_working_set_bytes [] 90",
            "container_oom_events_total [] 1",
            "container_pressure_cpu_stalled_seconds_total [] 0",
            "container_pressure_cpu_waiting_seconds_total [] 1",
            "container_pressure_io_stalled_seconds_total [] 5",
            "container_pressure_io_waiting_seconds_total [] 4",
            "container_pressure_memory_stalled_seconds_total [] 3",
            "container_pressure_memory_waiting_seconds_total [] 2",
            "container_processes [] 2",
            "container_sockets [] 4",
            "container_spec_cpu_period [] 100000",
            "container_spec_cpu_quota [] 20000",
            "container_spec_cpu_shares [] 1024",
            "container_spec_memory_limit_bytes [] 1000",
            "container_spec_memory_reservation_limit_bytes [] 23",
            "container_spec_memory_swap_limit_bytes [] 0",
            "container_start_time_seconds [] 1700000000",
            "container_threads [] 6",
            "container_threads_max [] 0",
            r#"container_ulimits_soft ["max_open_files"] 1024"#,
        ];
        assert_eq!(lines(&whole().samples()), expected);
    }

    #[test]
    fn what_the_kernel_does_not_tell_is_left_out() {
        let bare = ContainerReading { at: UnixNanos(1_000_000_000), ..Default::default() };
        assert_eq!(lines(&bare.samples()), ["container_last_seen [] 1", "container_start_time_seconds [] 0"]);
        let mut some = whole();
        some.cgroup.cpu.quota_us = None;
        some.cgroup.stats.io_psi = None;
        some.host_swap = Some(Bytes(1));
        some.processes.as_mut().unwrap().descriptors = None;
        let all: BTreeSet<_> = whole().samples().into_iter().map(|sample| sample.metric.name()).collect();
        let left: BTreeSet<_> = some.samples().into_iter().map(|sample| sample.metric.name()).collect();
        assert_eq!(
            all.difference(&left).copied().collect::<Vec<_>>(),
            [
                "container_cpu_cfs_periods_total",
                "container_cpu_cfs_throttled_periods_total",
                "container_cpu_cfs_throttled_seconds_total",
                "container_file_descriptors",
                "container_memory_swap",
                "container_pressure_io_stalled_seconds_total",
                "container_pressure_io_waiting_seconds_total",
                "container_sockets",
                "container_spec_cpu_quota",
            ]
        );
    }

    #[test]
    fn together_a_container_and_its_pod_have_the_whole_catalogue() {
        let eth0 = InterfaceUsage {
            name: "eth0".into(),
            rx_bytes: 1,
            rx_packets: 2,
            rx_errors: 3,
            rx_dropped: 4,
            tx_bytes: 5,
            tx_packets: 6,
            tx_errors: 7,
            tx_dropped: 8,
        };
        let network = network_samples(&[eth0]);
        assert_eq!(
            lines(&network),
            [
                r#"container_network_receive_bytes_total ["eth0"] 1"#,
                r#"container_network_receive_errors_total ["eth0"] 3"#,
                r#"container_network_receive_packets_dropped_total ["eth0"] 4"#,
                r#"container_network_receive_packets_total ["eth0"] 2"#,
                r#"container_network_transmit_bytes_total ["eth0"] 5"#,
                r#"container_network_transmit_errors_total ["eth0"] 7"#,
                r#"container_network_transmit_packets_dropped_total ["eth0"] 8"#,
                r#"container_network_transmit_packets_total ["eth0"] 6"#,
            ]
        );
        let seen: BTreeSet<_> =
            whole().samples().iter().chain(&network).map(|sample| sample.metric.name()).collect();
        assert_eq!(seen, Metric::ALL.iter().map(|metric| metric.name()).collect());
    }
}
