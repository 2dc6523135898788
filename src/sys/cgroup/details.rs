//! What only the pod metrics want to know of a cgroup: the limits in force, and more of its memory than `stats.rs` reads.
//!
//! A value is `None` where the host has no file for it.

use std::fs;
use std::path::Path;

use super::stats::{Stats, V1_NO_LIMIT, number, text};
use super::{Cgroup, CgroupError, Controller, gone, keyed};

/// Usage and limits of a cgroup, its children included.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Details {
    pub(crate) stats: Stats,
    pub(crate) memory: MemoryDetails,
    pub(crate) cpu: CpuLimits,
    /// By page size, in the order of their names; only sizes that this host has.
    pub(crate) huge_pages: Vec<HugePages>,
}

/// Bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct MemoryDetails {
    pub(crate) mapped_file: Option<u64>,
    /// Stacks, page tables, slab, socket buffers. v2 sums it up since Linux 5.18.
    pub(crate) kernel: Option<u64>,
    /// Page faults of the cgroup without its children; v2 does not tell them apart.
    pub(crate) own_page_faults: Option<u64>,
    pub(crate) own_major_page_faults: Option<u64>,
    /// As the file has it: `memory.memsw.limit_in_bytes` (v1, memory and swap together), `memory.swap.max` (v2, swap
    /// alone). `None` is no limit.
    pub(crate) swap_limit: Option<u64>,
    /// What is left to the cgroup under pressure: `memory.soft_limit_in_bytes` (v1), `memory.min` (v2). `None` on v1 is no
    /// limit.
    pub(crate) reserved: Option<u64>,
}

/// How the processor is shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct CpuLimits {
    pub(crate) period_us: Option<u64>,
    /// `None` is no limit.
    pub(crate) quota_us: Option<u64>,
    /// On v2 from the weight, and so only near what was asked for.
    pub(crate) shares: Option<u64>,
}

/// Huge pages of one size.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct HugePages {
    /// As in the file's name: `2MB`.
    pub(crate) page_size: String,
    pub(crate) usage: u64,
    /// v2 does not keep it.
    pub(crate) max_usage: Option<u64>,
}

impl Cgroup {
    /// Reads everything; some thirty small files.
    ///
    /// # Errors
    ///
    /// As [`Cgroup::stats`].
    pub(crate) fn details(&self) -> Result<Details, CgroupError> {
        Ok(Details {
            stats: self.stats()?,
            memory: match (self.v1_dir(Controller::Memory), self.v2()) {
                (Some(dir), _) => memory_v1(&dir)?,
                (None, Some(dir)) => memory_v2(&dir)?,
                (None, None) => MemoryDetails::default(),
            },
            cpu: match (self.v1_dir(Controller::Cpu), self.v2()) {
                (Some(dir), _) => cpu_v1(&dir)?,
                (None, Some(dir)) => cpu_v2(&dir)?,
                (None, None) => CpuLimits::default(),
            },
            huge_pages: match self.v1_dir(Controller::Hugetlb).or_else(|| self.v2()) {
                Some(dir) => huge_pages(&dir)?,
                None => Vec::new(),
            },
        })
    }
}

fn memory_v1(dir: &Path) -> Result<MemoryDetails, CgroupError> {
    let stat = text(&dir.join("memory.stat"))?.unwrap_or_default();
    let bounded = |limit: Option<u64>| limit.filter(|limit| *limit < V1_NO_LIMIT);
    Ok(MemoryDetails {
        mapped_file: keyed(&stat, "total_mapped_file"),
        kernel: number(&dir.join("memory.kmem.usage_in_bytes"))?,
        own_page_faults: keyed(&stat, "pgfault"),
        own_major_page_faults: keyed(&stat, "pgmajfault"),
        swap_limit: bounded(number(&dir.join("memory.memsw.limit_in_bytes"))?),
        reserved: bounded(number(&dir.join("memory.soft_limit_in_bytes"))?),
    })
}

fn memory_v2(dir: &Path) -> Result<MemoryDetails, CgroupError> {
    let stat = text(&dir.join("memory.stat"))?.unwrap_or_default();
    Ok(MemoryDetails {
        mapped_file: keyed(&stat, "file_mapped"),
        kernel: keyed(&stat, "kernel"),
        own_page_faults: None,
        own_major_page_faults: None,
        swap_limit: number(&dir.join("memory.swap.max"))?,
        reserved: number(&dir.join("memory.min"))?,
    })
}

fn cpu_v1(dir: &Path) -> Result<CpuLimits, CgroupError> {
    Ok(CpuLimits {
        period_us: number(&dir.join("cpu.cfs_period_us"))?,
        // -1, no limit, is no number here.
        quota_us: number(&dir.join("cpu.cfs_quota_us"))?,
        shares: number(&dir.join("cpu.shares"))?,
    })
}

fn cpu_v2(dir: &Path) -> Result<CpuLimits, CgroupError> {
    let max = text(&dir.join("cpu.max"))?.unwrap_or_default();
    let mut fields = max.split_ascii_whitespace().map(|field| field.parse().ok());
    let (quota_us, period_us) = (fields.next().flatten(), fields.next().flatten());
    Ok(CpuLimits { period_us, quota_us, shares: number(&dir.join("cpu.weight"))?.map(shares_from_weight) })
}

/// The inverse of the kubelet's older conversion, which every dashboard of shares on v2 stands on: 2 to 262144 shares are
/// 1 to 10000 of weight, linearly (KEP-2254).
fn shares_from_weight(weight: u64) -> u64 {
    2 + (weight.clamp(1, 10_000) - 1) * 262_142 / 9_999
}

/// `hugetlb.2MB.usage_in_bytes` (v1), `hugetlb.2MB.current` (v2).
fn huge_pages(dir: &Path) -> Result<Vec<HugePages>, CgroupError> {
    let failed = |source| CgroupError::Read { path: dir.to_owned(), source };
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(err) if gone(&err) => return Ok(Vec::new()),
        Err(source) => return Err(failed(source)),
    };
    let mut all = Vec::new();
    for entry in entries {
        let name = entry.map_err(failed)?.file_name();
        let Some(rest) = name.to_str().and_then(|name| name.strip_prefix("hugetlb.")) else { continue };
        // Sizes with `rsvd.` count what is reserved, not what is used.
        let size = rest.strip_suffix(".usage_in_bytes").or_else(|| rest.strip_suffix(".current"));
        let Some(size) = size.filter(|size| !size.contains('.')) else { continue };
        let Some(usage) = number(&dir.join(&name))? else { continue };
        let max_usage = number(&dir.join(format!("hugetlb.{size}.max_usage_in_bytes")))?;
        all.push(HugePages { page_size: size.to_owned(), usage, max_usage });
    }
    all.sort_by(|a, b| a.page_size.cmp(&b.page_size));
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dir(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, content) in files {
            fs::write(dir.path().join(name), content).unwrap();
        }
        dir
    }

    #[test]
    fn memory_reads_alike_from_both_versions_as_far_as_both_tell_it() {
        let v1 = dir(&[
            ("memory.stat", "cache 1\nmapped_file 7\npgfault 5\npgmajfault 1\ntotal_mapped_file 8192\n"),
            ("memory.kmem.usage_in_bytes", "4096\n"),
            ("memory.memsw.limit_in_bytes", "9223372036854771712\n"),
            ("memory.soft_limit_in_bytes", "1048576\n"),
        ]);
        let expected = MemoryDetails {
            mapped_file: Some(8192),
            kernel: Some(4096),
            own_page_faults: Some(5),
            own_major_page_faults: Some(1),
            swap_limit: None,
            reserved: Some(1 << 20),
        };
        assert_eq!(memory_v1(v1.path()).unwrap(), expected);
        let v2 = dir(&[
            ("memory.stat", "anon 1\nfile_mapped 8192\nkernel 4096\npgfault 5\n"),
            ("memory.swap.max", "max\n"),
            ("memory.min", "1048576\n"),
        ]);
        let expected = MemoryDetails { own_page_faults: None, own_major_page_faults: None, ..expected };
        assert_eq!(memory_v2(v2.path()).unwrap(), expected);
        assert_eq!(memory_v2(dir(&[]).path()).unwrap(), MemoryDetails::default());
    }

    #[test]
    fn processor_limits_read_alike_from_both_versions() {
        let v1 =
            dir(&[("cpu.cfs_period_us", "100000\n"), ("cpu.cfs_quota_us", "20000\n"), ("cpu.shares", "2\n")]);
        let v2 = dir(&[("cpu.max", "20000 100000\n"), ("cpu.weight", "1\n")]);
        let expected = CpuLimits { period_us: Some(100_000), quota_us: Some(20_000), shares: Some(2) };
        assert_eq!((cpu_v1(v1.path()).unwrap(), cpu_v2(v2.path()).unwrap()), (expected, expected));
        let v1 = dir(&[("cpu.cfs_period_us", "100000\n"), ("cpu.cfs_quota_us", "-1\n")]);
        let v2 = dir(&[("cpu.max", "max 100000\n")]);
        let expected = CpuLimits { period_us: Some(100_000), quota_us: None, shares: None };
        assert_eq!((cpu_v1(v1.path()).unwrap(), cpu_v2(v2.path()).unwrap()), (expected, expected));
        assert_eq!([1, 39, 10_000].map(shares_from_weight), [2, 998, 262_144]);
    }

    #[test]
    fn huge_pages_are_listed_by_size_without_reservations() {
        let v1 = dir(&[
            ("hugetlb.2MB.usage_in_bytes", "4194304\n"),
            ("hugetlb.2MB.max_usage_in_bytes", "8388608\n"),
            ("hugetlb.2MB.rsvd.usage_in_bytes", "1\n"),
            ("hugetlb.1GB.usage_in_bytes", "0\n"),
        ]);
        let pages = |size: &str, usage, max_usage| HugePages { page_size: size.into(), usage, max_usage };
        assert_eq!(
            huge_pages(v1.path()).unwrap(),
            [pages("1GB", 0, None), pages("2MB", 4_194_304, Some(8_388_608))]
        );
        let v2 = dir(&[("hugetlb.2MB.current", "0\n"), ("hugetlb.2MB.rsvd.current", "0\n")]);
        assert_eq!(huge_pages(v2.path()).unwrap(), [pages("2MB", 0, None)]);
    }
}
