//! OCI's `linux.resources` as properties of a systemd unit, on cgroup v2.
//!
//! The files are written as well, exactly (`sys/cgroup`). The properties are for systemd, so that it does not put back
//! what it was not told: `daemon-reload`, and any change of a neighbour, make it write all values of a unit that it knows.
//! What it has no property for (huge pages, rdma, devices by number) it leaves alone.

use oci_spec::runtime::LinuxResources;

use super::{Property, Value};
use crate::sys::cgroup::weight_from_shares;

/// systemd's "infinity".
const NO_LIMIT: u64 = u64::MAX;
const US_PER_SECOND: u64 = 1_000_000;
/// systemd keeps a quota as per cent of a CPU, 10 ms of each second.
const QUOTA_STEP_US: u64 = 10_000;

/// The properties that say what `resources` says; what is not named is left.
pub(crate) fn of_resources(resources: &LinuxResources) -> Vec<Property> {
    let mut all: Vec<Property> = Vec::new();
    let limit = |n: i64| Value::U64(u64::try_from(n).unwrap_or(NO_LIMIT));
    if let Some(cpu) = resources.cpu() {
        if let Some(shares) = cpu.shares().filter(|shares| *shares != 0 && cpu.idle() != Some(1)) {
            all.push(("CPUWeight", Value::U64(weight_from_shares(shares))));
        }
        all.extend(bandwidth(cpu.quota().unwrap_or(0), cpu.period().unwrap_or(0)));
        for (name, list) in [("AllowedCPUs", cpu.cpus()), ("AllowedMemoryNodes", cpu.mems())] {
            if let Some(mask) = list.as_deref().filter(|list| !list.is_empty()).and_then(mask) {
                all.push((name, Value::Bytes(mask)));
            }
        }
    }
    if let Some(memory) = resources.memory() {
        let (max, swap) = (memory.limit().filter(|n| *n != 0), memory.swap().filter(|n| *n != 0));
        all.extend(max.map(|n| ("MemoryMax", limit(n))));
        all.extend(memory.reservation().filter(|n| *n != 0).map(|n| ("MemoryLow", limit(n))));
        // OCI's swap is the sum of both; a sum that cannot be is refused where the files are written.
        match (max, swap) {
            (_, Some(swap)) if swap < 0 => all.push(("MemorySwapMax", Value::U64(NO_LIMIT))),
            (Some(max), Some(swap)) if max >= 0 && swap >= max => {
                all.push(("MemorySwapMax", limit(swap - max)))
            }
            _ => {}
        }
    }
    if let Some(pids) = resources.pids().as_ref().map(oci_spec::runtime::LinuxPids::limit).filter(|n| *n != 0)
    {
        all.push(("TasksMax", limit(pids)));
    }
    if let Some(unified) = resources.unified() {
        let mut keys: Vec<_> = unified.iter().collect();
        keys.sort();
        all.extend(keys.into_iter().flat_map(|(key, value)| of_file(key, value.trim())));
    }
    all
}

/// `cpu.max` in systemd's terms. A quota below 0 is none; 0 is not said.
fn bandwidth(quota_us: i64, period_us: u64) -> Vec<Property> {
    let mut all: Vec<Property> = Vec::new();
    if period_us != 0 {
        all.push(("CPUQuotaPeriodUSec", Value::U64(period_us)));
    }
    // The kernel's default.
    let period_us = if period_us == 0 { 100_000 } else { period_us };
    match quota_us {
        0 => {}
        ..0 => all.push(("CPUQuotaPerSecUSec", Value::U64(NO_LIMIT))),
        quota_us => {
            let per_second = quota_us.unsigned_abs().saturating_mul(US_PER_SECOND) / period_us;
            // Up: a quota that systemd writes for a moment must not be tighter than the one asked for.
            let rounded = per_second.div_ceil(QUOTA_STEP_US).saturating_mul(QUOTA_STEP_US);
            all.push(("CPUQuotaPerSecUSec", Value::U64(rounded)));
        }
    }
    all
}

/// A file of cgroup v2 that has a property; none for all others.
fn of_file(name: &str, value: &str) -> Vec<Property> {
    let number = |property| {
        let value = if value == "max" { Some(NO_LIMIT) } else { value.parse().ok() };
        value.map(|value| vec![(property, Value::U64(value))]).unwrap_or_default()
    };
    match name {
        "memory.min" => number("MemoryMin"),
        "memory.low" => number("MemoryLow"),
        "memory.high" => number("MemoryHigh"),
        "memory.max" => number("MemoryMax"),
        "memory.swap.max" => number("MemorySwapMax"),
        "pids.max" => number("TasksMax"),
        "cpu.weight" => number("CPUWeight"),
        "io.weight" => number("IOWeight"),
        "cpu.max" => {
            let (quota, period) = value.split_once(' ').unwrap_or((value, "0"));
            let quota = if quota == "max" { -1 } else { quota.parse().unwrap_or(0) };
            bandwidth(quota, period.parse().unwrap_or(0))
        }
        "cpuset.cpus" => {
            mask(value).map(|mask| vec![("AllowedCPUs", Value::Bytes(mask))]).unwrap_or_default()
        }
        "cpuset.mems" => {
            mask(value).map(|mask| vec![("AllowedMemoryNodes", Value::Bytes(mask))]).unwrap_or_default()
        }
        _ => Vec::new(),
    }
}

/// A list such as `0-3,7` as bits, the lowest first. `None` if it is no list.
fn mask(list: &str) -> Option<Vec<u8>> {
    /// The kernel's NR_CPUS is at most 8192.
    const BITS_MAX: usize = 8192;
    let mut bits = Vec::new();
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (first.parse::<usize>().ok()?, last.parse::<usize>().ok()?);
        if last >= BITS_MAX || first > last {
            return None;
        }
        for bit in first..=last {
            if bits.len() <= bit / 8 {
                bits.resize(bit / 8 + 1, 0);
            }
            bits[bit / 8] |= 1 << (bit % 8);
        }
    }
    Some(bits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn properties(resources: serde_json::Value) -> Vec<Property> {
        of_resources(&serde_json::from_value(resources).unwrap())
    }

    #[test]
    fn every_limit_that_systemd_knows_is_told_to_it() {
        let all = properties(json!({
            "cpu": {"shares": 1024, "quota": 150_000, "period": 100_000, "cpus": "0-1,9", "mems": "0"},
            "memory": {"limit": 1 << 20, "reservation": 1 << 19, "swap": 3 << 20},
            "pids": {"limit": 10},
            "unified": {"memory.high": "max", "cpu.weight": "50", "hugetlb.2MB.max": "0"},
        }));
        let expected = [
            ("CPUWeight", Value::U64(100)),
            ("CPUQuotaPeriodUSec", Value::U64(100_000)),
            ("CPUQuotaPerSecUSec", Value::U64(1_500_000)),
            ("AllowedCPUs", Value::Bytes(vec![3, 2])),
            ("AllowedMemoryNodes", Value::Bytes(vec![1])),
            ("MemoryMax", Value::U64(1 << 20)),
            ("MemoryLow", Value::U64(1 << 19)),
            ("MemorySwapMax", Value::U64(2 << 20)),
            ("TasksMax", Value::U64(10)),
            ("CPUWeight", Value::U64(50)),
            ("MemoryHigh", Value::U64(NO_LIMIT)),
        ];
        assert_eq!(all, expected);
    }

    #[test]
    fn no_limit_and_not_said_are_not_the_same() {
        assert_eq!(
            properties(json!({"cpu": {"quota": 0, "shares": 0}, "memory": {}, "pids": {"limit": 0}})),
            []
        );
        let all = properties(json!({
            "cpu": {"quota": -1}, "memory": {"limit": -1, "swap": -1}, "pids": {"limit": -1},
        }));
        let expected = ["CPUQuotaPerSecUSec", "MemoryMax", "MemorySwapMax", "TasksMax"];
        assert_eq!(all, expected.map(|name| (name, Value::U64(NO_LIMIT))));
    }

    #[test]
    fn a_quota_is_rounded_up_to_a_whole_per_cent() {
        for (quota, period, per_second) in
            [(1_000, 100_000, 10_000), (1_001, 100_000, 20_000), (33_333, 0, 340_000)]
        {
            let told = bandwidth(quota, period).pop();
            assert_eq!(told, Some(("CPUQuotaPerSecUSec", Value::U64(per_second))), "{quota}/{period}");
        }
    }

    #[test]
    fn a_list_of_cpus_is_a_mask_or_nothing() {
        for (list, expected) in [
            ("0", Some(vec![1])),
            ("8", Some(vec![0, 1])),
            ("0-7,15", Some(vec![0xff, 0x80])),
            ("3-1", None),
            ("x", None),
            ("99999", None),
        ] {
            assert_eq!(mask(list), expected, "{list}");
        }
    }
}
