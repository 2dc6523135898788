//! What a cgroup uses, in one shape for both versions.
//!
//! A value is `None` where the host has no file for it; a file that vanishes while it is read counts as absent.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Cgroup, CgroupError, Controller, FILE_BYTES_MAX, gone, keyed, read_bounded};

/// Usage since the cgroup was made, its children included.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Stats {
    pub(crate) cpu: Option<CpuStats>,
    pub(crate) memory: Option<MemoryStats>,
    pub(crate) pids: Option<PidsStats>,
    /// By device, in the kernel's order.
    pub(crate) io: Vec<DeviceIo>,
    pub(crate) cpu_psi: Option<Psi>,
    pub(crate) memory_psi: Option<Psi>,
    pub(crate) io_psi: Option<Psi>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct CpuStats {
    pub(crate) usage_ns: u64,
    pub(crate) user_ns: u64,
    pub(crate) system_ns: u64,
    pub(crate) periods: u64,
    pub(crate) throttled_periods: u64,
    pub(crate) throttled_ns: u64,
}

/// Bytes, and events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct MemoryStats {
    /// Page cache included.
    pub(crate) usage: u64,
    /// Usage less what can be dropped at once (inactive file pages), as the kubelet counts for eviction.
    pub(crate) working_set: u64,
    /// Anonymous memory.
    pub(crate) rss: u64,
    /// `None` is no limit.
    pub(crate) limit: Option<u64>,
    /// Limit less working set; `None` without a limit.
    pub(crate) available: Option<u64>,
    pub(crate) page_faults: u64,
    pub(crate) major_page_faults: u64,
    pub(crate) cache: u64,
    /// `None` where the kernel does not account swap.
    pub(crate) swap_usage: Option<u64>,
    /// `None` is no limit of its own.
    pub(crate) swap_limit: Option<u64>,
    pub(crate) peak: Option<u64>,
    pub(crate) oom_kills: u64,
    /// Times the limit was hit.
    pub(crate) limit_hits: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct PidsStats {
    /// Processes and threads.
    pub(crate) current: u64,
    pub(crate) limit: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct DeviceIo {
    pub(crate) major: u32,
    pub(crate) minor: u32,
    pub(crate) read_bytes: u64,
    pub(crate) write_bytes: u64,
    pub(crate) reads: u64,
    pub(crate) writes: u64,
}

/// Pressure stall information of one resource (Documentation/accounting/psi.rst).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Psi {
    /// Some tasks stalled.
    pub(crate) some: PressureLine,
    /// All tasks stalled at once.
    pub(crate) full: PressureLine,
}

/// Shares of time in hundredths of a percent, so that they compare exactly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct PressureLine {
    pub(crate) avg10_centipercent: u32,
    pub(crate) avg60_centipercent: u32,
    pub(crate) avg300_centipercent: u32,
    pub(crate) total: Duration,
}

/// A resource that PSI knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pressure {
    Cpu,
    Memory,
    Io,
}

impl Pressure {
    fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Memory => "memory",
            Self::Io => "io",
        }
    }
}

impl Cgroup {
    /// Reads everything; some fifteen small files.
    ///
    /// # Errors
    ///
    /// [`CgroupError::Missing`] when the cgroup is gone, [`CgroupError::Read`] on a file that is there but unreadable.
    pub(crate) fn stats(&self) -> Result<Stats, CgroupError> {
        if self.dirs().next().is_none() {
            return Err(CgroupError::Missing { path: PathBuf::from(self.path.to_string()) });
        }
        let v2 = self.v2();
        let pressure = |resource: Pressure| match &v2 {
            Some(dir) => psi(&dir.join(format!("{}.pressure", resource.name()))),
            None => Ok(None),
        };
        Ok(Stats {
            cpu: self.cpu_stats()?,
            memory: self.memory_stats()?,
            pids: self.pids_stats()?,
            io: self.io_stats()?,
            cpu_psi: pressure(Pressure::Cpu)?,
            memory_psi: pressure(Pressure::Memory)?,
            io_psi: pressure(Pressure::Io)?,
        })
    }

    fn cpu_stats(&self) -> Result<Option<CpuStats>, CgroupError> {
        let Some(acct) = self.v1_dir(Controller::Cpuacct) else {
            let Some(stat) = self.v2().map(|dir| text(&dir.join("cpu.stat"))).transpose()?.flatten() else {
                return Ok(None);
            };
            let us = |key| keyed(&stat, key).unwrap_or(0) * 1000;
            return Ok(Some(CpuStats {
                usage_ns: us("usage_usec"),
                user_ns: us("user_usec"),
                system_ns: us("system_usec"),
                periods: keyed(&stat, "nr_periods").unwrap_or(0),
                throttled_periods: keyed(&stat, "nr_throttled").unwrap_or(0),
                throttled_ns: us("throttled_usec"),
            }));
        };
        let Some(usage_ns) = number(&acct.join("cpuacct.usage"))? else { return Ok(None) };
        let mut cpu = CpuStats { usage_ns, ..CpuStats::default() };
        cpu.user_ns = number(&acct.join("cpuacct.usage_user"))?.unwrap_or(0);
        cpu.system_ns = number(&acct.join("cpuacct.usage_sys"))?.unwrap_or(0);
        if let Some(dir) = self.v1_dir(Controller::Cpu)
            && let Some(stat) = text(&dir.join("cpu.stat"))?
        {
            cpu.periods = keyed(&stat, "nr_periods").unwrap_or(0);
            cpu.throttled_periods = keyed(&stat, "nr_throttled").unwrap_or(0);
            cpu.throttled_ns = keyed(&stat, "throttled_time").unwrap_or(0);
        }
        Ok(Some(cpu))
    }

    fn memory_stats(&self) -> Result<Option<MemoryStats>, CgroupError> {
        match (self.v1_dir(Controller::Memory), self.v2()) {
            (Some(dir), _) => memory_v1(&dir),
            (None, Some(dir)) => memory_v2(&dir),
            (None, None) => Ok(None),
        }
    }

    fn pids_stats(&self) -> Result<Option<PidsStats>, CgroupError> {
        let Some(dir) = self.v1_dir(Controller::Pids).or_else(|| self.v2()) else { return Ok(None) };
        let Some(current) = number(&dir.join("pids.current"))? else { return Ok(None) };
        Ok(Some(PidsStats { current, limit: number(&dir.join("pids.max"))? }))
    }

    fn io_stats(&self) -> Result<Vec<DeviceIo>, CgroupError> {
        if let Some(dir) = self.v1_dir(Controller::Blkio) {
            // Counted below the scheduler, so they are right whichever one is in use.
            let read = |file: &str| text(&dir.join(file)).map(Option::unwrap_or_default);
            let bytes = read("blkio.throttle.io_service_bytes_recursive")?;
            let count = read("blkio.throttle.io_serviced_recursive")?;
            return Ok(io_v1(&bytes, &count));
        }
        match self.v2() {
            Some(dir) => Ok(io_v2(&text(&dir.join("io.stat"))?.unwrap_or_default())),
            None => Ok(Vec::new()),
        }
    }
}

/// v1 writes "no limit" as the largest number of whole pages.
pub(super) const V1_NO_LIMIT: u64 = 0x7fff_ffff_ffff_0000;

fn memory_v1(dir: &Path) -> Result<Option<MemoryStats>, CgroupError> {
    let Some(usage) = number(&dir.join("memory.usage_in_bytes"))? else { return Ok(None) };
    let stat = text(&dir.join("memory.stat"))?.unwrap_or_default();
    let stat = |key| keyed(&stat, key).unwrap_or(0);
    let bounded = |limit: Option<u64>| limit.filter(|limit| *limit < V1_NO_LIMIT);
    let limit = bounded(number(&dir.join("memory.limit_in_bytes"))?);
    let sum_limit = bounded(number(&dir.join("memory.memsw.limit_in_bytes"))?);
    let accounts_swap = number(&dir.join("memory.memsw.usage_in_bytes"))?.is_some();
    let working_set = usage.saturating_sub(stat("total_inactive_file"));
    Ok(Some(MemoryStats {
        usage,
        working_set,
        rss: stat("total_rss"),
        limit,
        available: limit.map(|limit| limit.saturating_sub(working_set)),
        page_faults: stat("total_pgfault"),
        major_page_faults: stat("total_pgmajfault"),
        cache: stat("total_cache"),
        swap_usage: accounts_swap.then(|| stat("total_swap")),
        swap_limit: sum_limit.zip(limit).map(|(sum, limit)| sum.saturating_sub(limit)),
        peak: number(&dir.join("memory.max_usage_in_bytes"))?,
        oom_kills: text(&dir.join("memory.oom_control"))?
            .and_then(|text| keyed(&text, "oom_kill"))
            .unwrap_or(0),
        limit_hits: number(&dir.join("memory.failcnt"))?.unwrap_or(0),
    }))
}

fn memory_v2(dir: &Path) -> Result<Option<MemoryStats>, CgroupError> {
    let Some(usage) = number(&dir.join("memory.current"))? else { return Ok(None) };
    let stat = text(&dir.join("memory.stat"))?.unwrap_or_default();
    let stat = |key| keyed(&stat, key).unwrap_or(0);
    let events = text(&dir.join("memory.events"))?.unwrap_or_default();
    let limit = number(&dir.join("memory.max"))?;
    let working_set = usage.saturating_sub(stat("inactive_file"));
    Ok(Some(MemoryStats {
        usage,
        working_set,
        rss: stat("anon"),
        limit,
        available: limit.map(|limit| limit.saturating_sub(working_set)),
        page_faults: stat("pgfault"),
        major_page_faults: stat("pgmajfault"),
        cache: stat("file"),
        swap_usage: number(&dir.join("memory.swap.current"))?,
        swap_limit: number(&dir.join("memory.swap.max"))?,
        peak: number(&dir.join("memory.peak"))?,
        oom_kills: keyed(&events, "oom_kill").unwrap_or(0),
        limit_hits: keyed(&events, "max").unwrap_or(0),
    }))
}

/// `8:0 Read 4096` lines, one for each device and operation.
fn io_v1(bytes: &str, count: &str) -> Vec<DeviceIo> {
    let mut devices: Vec<DeviceIo> = Vec::new();
    for (text, is_bytes) in [(bytes, true), (count, false)] {
        for line in text.lines() {
            let mut fields = line.split(' ');
            let (Some(device), Some(operation), Some(value)) = (fields.next(), fields.next(), fields.next())
            else {
                continue;
            };
            let (Some((major, minor)), Ok(value)) = (numbers(device), value.parse()) else { continue };
            let one = entry(&mut devices, major, minor);
            match (operation, is_bytes) {
                ("Read", true) => one.read_bytes = value,
                ("Write", true) => one.write_bytes = value,
                ("Read", false) => one.reads = value,
                ("Write", false) => one.writes = value,
                _ => {}
            }
        }
    }
    devices
}

/// `8:0 rbytes=… wbytes=… rios=… wios=… dbytes=… dios=…` lines.
fn io_v2(stat: &str) -> Vec<DeviceIo> {
    let mut devices = Vec::new();
    for line in stat.lines() {
        let mut fields = line.split(' ');
        let Some((major, minor)) = fields.next().and_then(numbers) else { continue };
        let one = entry(&mut devices, major, minor);
        for (key, value) in fields.filter_map(|field| field.split_once('=')) {
            let value = value.parse().unwrap_or(0);
            match key {
                "rbytes" => one.read_bytes = value,
                "wbytes" => one.write_bytes = value,
                "rios" => one.reads = value,
                "wios" => one.writes = value,
                _ => {}
            }
        }
    }
    devices
}

fn numbers(device: &str) -> Option<(u32, u32)> {
    let (major, minor) = device.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

fn entry(devices: &mut Vec<DeviceIo>, major: u32, minor: u32) -> &mut DeviceIo {
    let at = devices.iter().position(|one| (one.major, one.minor) == (major, minor)).unwrap_or_else(|| {
        devices.push(DeviceIo { major, minor, ..DeviceIo::default() });
        devices.len() - 1
    });
    &mut devices[at]
}

fn psi(path: &Path) -> Result<Option<Psi>, CgroupError> {
    match read_bounded(path, FILE_BYTES_MAX) {
        Ok(text) => Ok(Some(parse_psi(&text))),
        Err(err) if gone(&err) => Ok(None),
        // Booted with psi=0: the file is there and says EOPNOTSUPP.
        Err(err) if err.raw_os_error() == Some(rustix::io::Errno::OPNOTSUPP.raw_os_error()) => Ok(None),
        Err(source) => Err(CgroupError::Read { path: path.to_owned(), source }),
    }
}

fn parse_psi(text: &str) -> Psi {
    let mut psi = Psi::default();
    for line in text.lines() {
        let mut fields = line.split(' ');
        let target = match fields.next() {
            Some("some") => &mut psi.some,
            Some("full") => &mut psi.full,
            _ => continue,
        };
        for (key, value) in fields.filter_map(|field| field.split_once('=')) {
            // The kernel prints exactly two decimals.
            let hundredths = || value.replace('.', "").parse().unwrap_or(0);
            match key {
                "avg10" => target.avg10_centipercent = hundredths(),
                "avg60" => target.avg60_centipercent = hundredths(),
                "avg300" => target.avg300_centipercent = hundredths(),
                "total" => target.total = Duration::from_micros(value.parse().unwrap_or(0)),
                _ => {}
            }
        }
    }
    psi
}

pub(super) fn text(path: &Path) -> Result<Option<String>, CgroupError> {
    match read_bounded(path, FILE_BYTES_MAX) {
        Ok(text) => Ok(Some(text)),
        Err(err) if gone(&err) => Ok(None),
        Err(source) => Err(CgroupError::Read { path: path.to_owned(), source }),
    }
}

/// A file with one number; `None` also for `max`.
pub(super) fn number(path: &Path) -> Result<Option<u64>, CgroupError> {
    Ok(text(path)?.and_then(|text| text.trim().parse().ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pressure_reads_to_the_hundredth() {
        let psi = parse_psi(
            "some avg10=0.31 avg60=12.00 avg300=100.00 total=19482872\nfull avg10=0.05 avg60=0.00 avg300=0.00 total=7\n",
        );
        assert_eq!(
            psi.some,
            PressureLine {
                avg10_centipercent: 31,
                avg60_centipercent: 1200,
                avg300_centipercent: 10_000,
                total: Duration::from_micros(19_482_872),
            }
        );
        assert_eq!((psi.full.avg10_centipercent, psi.full.total), (5, Duration::from_micros(7)));
    }

    #[test]
    fn both_versions_of_io_statistics_read_alike() {
        let expected =
            [DeviceIo { major: 254, minor: 0, read_bytes: 4096, write_bytes: 8192, reads: 1, writes: 2 }];
        let v1 = io_v1(
            "254:0 Read 4096\n254:0 Write 8192\n254:0 Sync 12288\n254:0 Total 12288\nTotal 12288\n",
            "254:0 Read 1\n254:0 Write 2\nTotal 3\n",
        );
        assert_eq!(v1, expected);
        assert_eq!(io_v2("254:0 rbytes=4096 wbytes=8192 rios=1 wios=2 dbytes=0 dios=0\n"), expected);
    }
}
