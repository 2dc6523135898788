//! Every metric of pods and containers, as cAdvisor names, describes and types it.

/// The labels that every metric has, before its own.
///
/// `id` is the cgroup, `name` the id of the container or pod; `container` and `image` are empty for a pod.
pub(crate) const BASE_LABELS: [&str; 6] = ["container", "id", "image", "name", "namespace", "pod"];

/// How a value moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Only ever up.
    Counter,
    Gauge,
}

macro_rules! catalogue {
    ($($metric:ident $kind:ident $name:literal [$($label:literal),*] $help:literal;)*) => {
        /// One metric. In the order of the names.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub(crate) enum Metric {
            $($metric,)*
        }

        impl Metric {
            pub(crate) const ALL: &[Self] = &[$(Self::$metric,)*];

            pub(crate) fn name(self) -> &'static str {
                match self {
                    $(Self::$metric => $name,)*
                }
            }

            pub(crate) fn help(self) -> &'static str {
                match self {
                    $(Self::$metric => $help,)*
                }
            }

            pub(crate) fn kind(self) -> Kind {
                match self {
                    $(Self::$metric => Kind::$kind,)*
                }
            }

            /// Those after [`BASE_LABELS`].
            pub(crate) fn own_labels(self) -> &'static [&'static str] {
                match self {
                    $(Self::$metric => &[$($label),*],)*
                }
            }
        }
    };
}

catalogue! {
    BlkioDeviceUsage Counter "container_blkio_device_usage_total" ["device", "major", "minor", "operation"] "Blkio Device bytes usage";
    CpuCfsPeriods Counter "container_cpu_cfs_periods_total" [] "Number of elapsed enforcement period intervals.";
    CpuCfsThrottledPeriods Counter "container_cpu_cfs_throttled_periods_total" [] "Number of throttled period intervals.";
    CpuCfsThrottledSeconds Counter "container_cpu_cfs_throttled_seconds_total" [] "Total time duration the container has been throttled.";
    CpuSystemSeconds Counter "container_cpu_system_seconds_total" [] "Cumulative system cpu time consumed in seconds.";
    CpuUsageSeconds Counter "container_cpu_usage_seconds_total" ["cpu"] "Cumulative cpu time consumed in seconds.";
    CpuUserSeconds Counter "container_cpu_user_seconds_total" [] "Cumulative user cpu time consumed in seconds.";
    FileDescriptors Gauge "container_file_descriptors" [] "Number of open file descriptors for the container.";
    FsInodesFree Gauge "container_fs_inodes_free" ["device"] "Number of available Inodes";
    FsInodes Gauge "container_fs_inodes_total" ["device"] "Number of Inodes";
    FsLimitBytes Gauge "container_fs_limit_bytes" ["device"] "Number of bytes that can be consumed by the container on this filesystem.";
    FsReadsBytes Counter "container_fs_reads_bytes_total" ["device"] "Cumulative count of bytes read";
    FsReads Counter "container_fs_reads_total" ["device"] "Cumulative count of reads completed";
    FsUsageBytes Gauge "container_fs_usage_bytes" ["device"] "Number of bytes that are consumed by the container on this filesystem.";
    FsWritesBytes Counter "container_fs_writes_bytes_total" ["device"] "Cumulative count of bytes written";
    FsWrites Counter "container_fs_writes_total" ["device"] "Cumulative count of writes completed";
    HugetlbMaxUsageBytes Gauge "container_hugetlb_max_usage_bytes" ["pagesize"] "Maximum hugepage usage recorded in bytes";
    HugetlbUsageBytes Gauge "container_hugetlb_usage_bytes" ["pagesize"] "Current hugepage usage in bytes";
    LastSeen Gauge "container_last_seen" [] "Last time a container was seen by the exporter";
    MemoryCache Gauge "container_memory_cache" [] "Number of bytes of page cache memory.";
    MemoryFailcnt Counter "container_memory_failcnt" [] "Number of memory usage hits limits";
    MemoryFailures Counter "container_memory_failures_total" ["failure_type", "scope"] "Cumulative count of memory allocation failures.";
    MemoryKernelUsage Gauge "container_memory_kernel_usage" [] "Size of kernel memory allocated in bytes.";
    MemoryMappedFile Gauge "container_memory_mapped_file" [] "Size of memory mapped files in bytes.";
    MemoryMaxUsageBytes Gauge "container_memory_max_usage_bytes" [] "Maximum memory usage recorded in bytes";
    MemoryRss Gauge "container_memory_rss" [] "Size of RSS in bytes.";
    MemorySwap Gauge "container_memory_swap" [] "Container swap usage in bytes.";
    MemoryUsageBytes Gauge "container_memory_usage_bytes" [] "Current memory usage in bytes, including all memory regardless of when it was accessed";
    MemoryWorkingSetBytes Gauge "container_memory_working_set_bytes" [] "Current working set in bytes.";
    NetworkReceiveBytes Counter "container_network_receive_bytes_total" ["interface"] "Cumulative count of bytes received";
    NetworkReceiveErrors Counter "container_network_receive_errors_total" ["interface"] "Cumulative count of errors encountered while receiving";
    NetworkReceivePacketsDropped Counter "container_network_receive_packets_dropped_total" ["interface"] "Cumulative count of packets dropped while receiving";
    NetworkReceivePackets Counter "container_network_receive_packets_total" ["interface"] "Cumulative count of packets received";
    NetworkTransmitBytes Counter "container_network_transmit_bytes_total" ["interface"] "Cumulative count of bytes transmitted";
    NetworkTransmitErrors Counter "container_network_transmit_errors_total" ["interface"] "Cumulative count of errors encountered while transmitting";
    NetworkTransmitPacketsDropped Counter "container_network_transmit_packets_dropped_total" ["interface"] "Cumulative count of packets dropped while transmitting";
    NetworkTransmitPackets Counter "container_network_transmit_packets_total" ["interface"] "Cumulative count of packets transmitted";
    OomEvents Counter "container_oom_events_total" [] "Count of out of memory events observed for the container";
    PressureCpuStalledSeconds Counter "container_pressure_cpu_stalled_seconds_total" [] "Total time duration no tasks in the container could make progress due to CPU congestion.";
    PressureCpuWaitingSeconds Counter "container_pressure_cpu_waiting_seconds_total" [] "Total time duration tasks in the container have waited due to CPU congestion.";
    PressureIoStalledSeconds Counter "container_pressure_io_stalled_seconds_total" [] "Total time duration no tasks in the container could make progress due to IO congestion.";
    PressureIoWaitingSeconds Counter "container_pressure_io_waiting_seconds_total" [] "Total time duration tasks in the container have waited due to IO congestion.";
    PressureMemoryStalledSeconds Counter "container_pressure_memory_stalled_seconds_total" [] "Total time duration no tasks in the container could make progress due to memory congestion.";
    PressureMemoryWaitingSeconds Counter "container_pressure_memory_waiting_seconds_total" [] "Total time duration tasks in the container have waited due to memory congestion.";
    Processes Gauge "container_processes" [] "Number of processes running inside the container.";
    Sockets Gauge "container_sockets" [] "Number of open sockets for the container.";
    SpecCpuPeriod Gauge "container_spec_cpu_period" [] "CPU period of the container.";
    SpecCpuQuota Gauge "container_spec_cpu_quota" [] "CPU quota of the container.";
    SpecCpuShares Gauge "container_spec_cpu_shares" [] "CPU share of the container.";
    SpecMemoryLimitBytes Gauge "container_spec_memory_limit_bytes" [] "Memory limit for the container.";
    SpecMemoryReservationLimitBytes Gauge "container_spec_memory_reservation_limit_bytes" [] "Memory reservation limit for the container.";
    SpecMemorySwapLimitBytes Gauge "container_spec_memory_swap_limit_bytes" [] "Memory swap limit for the container.";
    StartTimeSeconds Gauge "container_start_time_seconds" [] "Start time of the container since unix epoch in seconds.";
    Threads Gauge "container_threads" [] "Number of threads running inside the container";
    ThreadsMax Gauge "container_threads_max" [] "Maximum number of threads allowed inside the container, infinity if value is zero";
    UlimitsSoft Gauge "container_ulimits_soft" ["ulimit"] "Soft ulimit values for the container root process. Unlimited if -1, except priority and nice";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_say_what_the_type_is() {
        let names: Vec<_> = Metric::ALL.iter().map(|metric| metric.name()).collect();
        assert_eq!(names.len(), 56);
        // Sorted without a repeat.
        assert!(names.is_sorted_by(|a, b| a < b), "{names:?}");
        for metric in Metric::ALL {
            // cAdvisor's exceptions from Prometheus' rule that a counter, and nothing else, ends in _total.
            let odd = matches!(metric, Metric::MemoryFailcnt | Metric::FsInodes);
            let total = metric.name().ends_with("_total");
            assert_eq!(total != odd, metric.kind() == Kind::Counter, "{}", metric.name());
            assert!(!metric.help().is_empty());
            assert!(
                metric.own_labels().iter().all(|label| !BASE_LABELS.contains(label)),
                "{}",
                metric.name()
            );
        }
    }
}
