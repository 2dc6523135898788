//! Stats: readings of cgroups, interfaces and folders to the CRI's usage messages.

use super::{container_metadata, pod_metadata, text};
use crate::container::status::ContainerView;
use crate::pod::status::PodView;
use crate::proto::v1;
use crate::stats::{ContainerUsage, DiskUsage, InterfaceUsage, PodUsage, Pressure, Stall, Usage};
use crate::units::Bytes;

pub(crate) fn container_stats(view: &ContainerView, usage: &ContainerUsage) -> v1::ContainerStats {
    let of = Messages::new(&usage.cgroup);
    v1::ContainerStats {
        attributes: Some(v1::ContainerAttributes {
            id: view.id.to_string(),
            metadata: Some(container_metadata(&view.spec)),
            labels: view.spec.labels.clone(),
            annotations: view.spec.annotations.clone(),
        }),
        cpu: of.cpu(),
        memory: of.memory(),
        writable_layer: usage.writable_layer.as_ref().map(filesystem_usage),
        swap: of.swap(),
        io: of.io(),
    }
}

pub(crate) fn pod_stats(
    view: &PodView,
    usage: &PodUsage,
    containers: Vec<v1::ContainerStats>,
) -> v1::PodSandboxStats {
    let of = Messages::new(&usage.cgroup);
    let timestamp = usage.cgroup.at.0;
    v1::PodSandboxStats {
        attributes: Some(v1::PodSandboxAttributes {
            id: view.id.to_string(),
            metadata: Some(pod_metadata(&view.spec.identity)),
            labels: view.spec.labels.clone(),
            annotations: view.spec.annotations.clone(),
        }),
        linux: Some(v1::LinuxPodSandboxStats {
            cpu: of.cpu(),
            memory: of.memory(),
            network: usage.network.as_ref().map(|all| v1::NetworkUsage {
                timestamp,
                default_interface: all.first().map(interface),
                interfaces: all.iter().skip(1).map(interface).collect(),
            }),
            process: usage
                .cgroup
                .processes
                .map(|count| v1::ProcessUsage { timestamp, process_count: number(count) }),
            containers,
            io: of.io(),
        }),
        windows: None,
    }
}

fn filesystem_usage(usage: &DiskUsage) -> v1::FilesystemUsage {
    v1::FilesystemUsage {
        timestamp: usage.at.0,
        fs_id: Some(v1::FilesystemIdentifier { mountpoint: text(&usage.path) }),
        used_bytes: number(usage.used.0),
        inodes_used: number(usage.inodes),
    }
}

/// The messages of one reading; each carries the reading's time.
struct Messages<'a> {
    usage: &'a Usage,
    timestamp: i64,
}

impl<'a> Messages<'a> {
    fn new(usage: &'a Usage) -> Self {
        Self { usage, timestamp: usage.at.0 }
    }

    fn cpu(&self) -> Option<v1::CpuUsage> {
        self.usage.cpu.as_ref().map(|cpu| v1::CpuUsage {
            timestamp: self.timestamp,
            usage_core_nano_seconds: number(cpu.total_ns),
            usage_nano_cores: cpu.nano_cores.and_then(number),
            psi: cpu.pressure.as_ref().map(pressure),
        })
    }

    fn memory(&self) -> Option<v1::MemoryUsage> {
        self.usage.memory.as_ref().map(|memory| v1::MemoryUsage {
            timestamp: self.timestamp,
            working_set_bytes: number(memory.working_set.0),
            available_bytes: optional(memory.available),
            usage_bytes: number(memory.usage.0),
            rss_bytes: number(memory.rss.0),
            page_faults: number(memory.page_faults),
            major_page_faults: number(memory.major_page_faults),
            psi: memory.pressure.as_ref().map(pressure),
        })
    }

    fn swap(&self) -> Option<v1::SwapUsage> {
        self.usage.swap.as_ref().map(|swap| v1::SwapUsage {
            timestamp: self.timestamp,
            swap_available_bytes: optional(swap.available),
            swap_usage_bytes: number(swap.usage.0),
        })
    }

    fn io(&self) -> Option<v1::IoUsage> {
        let psi = self.usage.io.as_ref().map(pressure)?;
        Some(v1::IoUsage { timestamp: self.timestamp, psi: Some(psi) })
    }
}

#[expect(clippy::unnecessary_wraps, reason = "every number field of a usage message is optional")]
fn number(value: u64) -> Option<v1::UInt64Value> {
    Some(v1::UInt64Value { value })
}

fn optional(value: Option<Bytes>) -> Option<v1::UInt64Value> {
    value.and_then(|bytes| number(bytes.0))
}

fn pressure(of: &Pressure) -> v1::PsiStats {
    let stall =
        |it: &Stall| v1::PsiData { total: it.total_ns, avg10: it.avg10, avg60: it.avg60, avg300: it.avg300 };
    v1::PsiStats { full: Some(stall(&of.full)), some: Some(stall(&of.some)) }
}

fn interface(of: &InterfaceUsage) -> v1::NetworkInterfaceUsage {
    v1::NetworkInterfaceUsage {
        name: of.name.clone(),
        rx_bytes: number(of.rx_bytes),
        rx_errors: number(of.rx_errors),
        tx_bytes: number(of.tx_bytes),
        tx_errors: number(of.tx_errors),
    }
}
