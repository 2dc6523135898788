//! Limits of a cgroup: LinuxContainerResources.

use std::collections::BTreeMap;

use super::{BadRequest, keyed_text, ranged, text};
use crate::container::spec::{HugepageLimit, Resources};
use crate::proto::v1;

/// Microseconds; the bounds are the kernel's (`min_cfs_quota_period`, `max_cfs_quota_period` in kernel/sched/core.c).
const CPU_PERIOD_US: (i64, i64) = (1_000, 1_000_000);
/// Microseconds; the kernel refuses less than 1 ms.
const CPU_QUOTA_US_MIN: i64 = 1_000;
/// `MIN_SHARES` and `MAX_SHARES` in kernel/sched/sched.h.
const CPU_SHARES: (i64, i64) = (2, 262_144);
/// See proc_pid_oom_score_adj(5).
const OOM_SCORE_ADJ: (i64, i64) = (-1000, 1000);
/// Bytes of a cpuset list; 8192 CPUs written out one by one need less.
const CPUSET_BYTES_MAX: usize = 64 * 1024;
/// The highest CPU or node number that any kernel is built for (`NR_CPUS` is at most 8192 on x86).
const CPUSET_NUMBER_MAX: u32 = 65_535;

/// Checks every limit. 0 and empty become `None`: leave the value as it is.
pub(crate) fn resources(field: &str, asked: v1::LinuxContainerResources) -> Result<Resources, BadRequest> {
    let unless_zero = |name: &str, value: i64, (min, max): (i64, i64)| {
        if value == 0 { Ok(None) } else { ranged(format_args!("{field}.{name}"), value, min, max).map(Some) }
    };
    let unless_negative = |name: &str, value: i64, min: i64| match value {
        0 => Ok(None),
        -1 => Ok(Some(-1)),
        value if value >= min => Ok(Some(value)),
        value => Err(BadRequest::malformed(
            format_args!("{field}.{name}"),
            &value.to_string(),
            if min > 1 {
                "must be -1 (no limit) or at least 1000"
            } else {
                "must be -1 (no limit) or positive"
            },
        )),
    };
    let unsigned = |value: i64| u64::try_from(value).expect("the range starts above 0");

    let memory = unless_negative("memory_limit_in_bytes", asked.memory_limit_in_bytes, 1)?;
    let swap = unless_negative("memory_swap_limit_in_bytes", asked.memory_swap_limit_in_bytes, 1)?;
    if let (Some(memory), Some(swap)) = (memory, swap)
        && swap != -1
        && (memory == -1 || swap < memory)
    {
        return Err(BadRequest::malformed(
            format_args!("{field}.memory_swap_limit_in_bytes"),
            &swap.to_string(),
            "counts memory and swap together and cannot be less than memory_limit_in_bytes",
        ));
    }
    Ok(Resources {
        cpu_period_us: unless_zero("cpu_period", asked.cpu_period, CPU_PERIOD_US)?.map(unsigned),
        cpu_quota_us: unless_negative("cpu_quota", asked.cpu_quota, CPU_QUOTA_US_MIN)?,
        cpu_shares: unless_zero("cpu_shares", asked.cpu_shares, CPU_SHARES)?.map(unsigned),
        memory_limit_bytes: memory,
        memory_swap_limit_bytes: swap,
        oom_score_adj: unless_zero("oom_score_adj", asked.oom_score_adj, OOM_SCORE_ADJ)?
            .map(|adj| i32::try_from(adj).expect("the range is within i32")),
        cpuset_cpus: cpuset(&format!("{field}.cpuset_cpus"), asked.cpuset_cpus)?,
        cpuset_mems: cpuset(&format!("{field}.cpuset_mems"), asked.cpuset_mems)?,
        hugepage_limits: hugepages(field, asked.hugepage_limits)?,
        unified: unified(&format!("{field}.unified"), asked.unified)?,
    })
}

/// The "List format" of cpuset(7): `0-4,9`.
fn cpuset(field: &str, list: String) -> Result<String, BadRequest> {
    let list = text(field, list, CPUSET_BYTES_MAX)?;
    let number = |digits: &str| {
        // FromStr of u32 takes a sign, the kernel does not.
        let plain = digits.bytes().all(|b| b.is_ascii_digit());
        digits.parse().ok().filter(|&n: &u32| plain && n <= CPUSET_NUMBER_MAX)
    };
    let fits = |range: &str| match range.split_once('-') {
        None => number(range).is_some(),
        Some((first, last)) => matches!((number(first), number(last)), (Some(a), Some(b)) if a <= b),
    };
    if list.is_empty() || list.split(',').all(fits) {
        Ok(list)
    } else {
        Err(BadRequest::malformed(field, &list, "must be a list of numbers and ranges such as \"0-3,7\""))
    }
}

fn hugepages(field: &str, limits: Vec<v1::HugepageLimit>) -> Result<Vec<HugepageLimit>, BadRequest> {
    let mut checked: Vec<HugepageLimit> = Vec::with_capacity(limits.len());
    for (i, v1::HugepageLimit { page_size, limit }) in limits.into_iter().enumerate() {
        let field = format!("{field}.hugepage_limits[{i}].page_size");
        // As hugetlb_cgroup in the kernel names its files: digits and KB, MB or GB.
        let digits = ["KB", "MB", "GB"].iter().find_map(|unit| page_size.strip_suffix(unit)).unwrap_or("");
        if digits.is_empty() || digits.len() > 4 || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return Err(BadRequest::malformed(
                field,
                &page_size,
                "must be a size such as \"2MB\" or \"1GB\"",
            ));
        }
        if checked.iter().any(|earlier| earlier.page_size == page_size) {
            return Err(BadRequest::malformed(field, &page_size, "each page size may be limited once"));
        }
        checked.push(HugepageLimit { page_size, limit_bytes: limit });
    }
    Ok(checked)
}

/// Files of cgroup v2 by name. The name is joined to the container's cgroup, so it must be a plain file of a controller;
/// files of the core (`cgroup.procs`, `cgroup.kill`) are not limits and would move or end processes.
fn unified(field: &str, files: BTreeMap<String, String>) -> Result<BTreeMap<String, String>, BadRequest> {
    for file in files.keys() {
        let plain = |part: &str| {
            !part.is_empty()
                && part
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'_' | b'.'))
        };
        let fits = file
            .split_once('.')
            .is_some_and(|(controller, rest)| controller != "cgroup" && plain(controller) && plain(rest));
        // Huge page files have upper case units: hugetlb.2MB.max.
        let hugetlb = file.starts_with("hugetlb.") && !file.contains('/');
        if !fits && !hugetlb {
            return Err(BadRequest::malformed(
                field,
                file,
                "must be a file of a controller such as \"memory.high\"",
            ));
        }
    }
    keyed_text(field, files)
}
