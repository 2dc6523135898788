//! The file system that containers write to, the names of block devices, the host's swap. Blocking.

use std::fs;
use std::io;
use std::path::Path;

use rustix::fs::{major, minor};

use crate::units::Bytes;

/// A file system at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct FileSystem {
    /// `/dev/vda1`, or `0:45` where no block device is behind it.
    pub(crate) device: String,
    pub(crate) bytes: u64,
    /// 0 where the file system makes inodes as it needs them.
    pub(crate) inodes: u64,
    pub(crate) inodes_free: u64,
}

impl FileSystem {
    /// The one that `path` is on.
    pub(crate) fn of(path: &Path) -> io::Result<Self> {
        let about = rustix::fs::statvfs(path)?;
        let device = rustix::fs::stat(path)?.st_dev;
        Ok(Self {
            device: device_name(major(device), minor(device)),
            bytes: about.f_blocks * about.f_frsize,
            inodes: about.f_files,
            inodes_free: about.f_ffree,
        })
    }
}

/// `/dev/vda`, as the kernel calls the block device, or its number.
pub(crate) fn device_name(major: u32, minor: u32) -> String {
    let number = format!("{major}:{minor}");
    let about = fs::read_to_string(format!("/sys/dev/block/{number}/uevent")).unwrap_or_default();
    match about.lines().find_map(|line| line.strip_prefix("DEVNAME=")) {
        Some(name) => format!("/dev/{name}"),
        None => number,
    }
}

/// Bytes of swap that this host has, used or free.
pub(crate) fn host_swap() -> Option<Bytes> {
    total_swap(&fs::read_to_string("/proc/meminfo").ok()?)
}

/// proc_meminfo(5): `SwapTotal:       0 kB`.
fn total_swap(meminfo: &str) -> Option<Bytes> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("SwapTotal:"))?;
    let kib: u64 = line.split_ascii_whitespace().next()?.parse().ok()?;
    Some(Bytes(kib << 10))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_system_of_a_folder_has_a_device_and_a_size() {
        let dir = tempfile::tempdir().unwrap();
        let found = FileSystem::of(dir.path()).unwrap();
        assert!(found.bytes > 0 && found.inodes_free <= found.inodes, "{found:?}");
        assert!(found.device.starts_with("/dev/") || found.device.contains(':'), "{found:?}");
        assert!(FileSystem::of(&dir.path().join("missing")).is_err());
    }

    #[test]
    fn swap_is_read_in_bytes() {
        assert_eq!(total_swap("MemFree: 1 kB\nSwapTotal:       2 kB\n"), Some(Bytes(2048)));
        assert_eq!(total_swap("MemFree: 1 kB\n"), None);
    }

    #[test]
    fn a_number_without_a_block_device_stays_a_number() {
        assert_eq!(device_name(0, 999_999), "0:999999");
    }
}
