//! How much disk the store takes, cheaply: sums from records for images, a bounded and remembered walk for containers.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};

use super::Store;
use crate::id::ContainerId;
use crate::units::{Bytes, UnixNanos};

/// How long a walk's result is given out: the kubelet asks every 10 s, and several of its loops ask for the same.
const FRESH_FOR: Duration = Duration::from_secs(10);

/// Entries one walk looks at. A million take about a second; what a container wrote beyond that is not counted.
const WALK_ENTRIES_MAX: u64 = 1_000_000;

/// Open directories of a walk. What lies deeper is not counted.
const WALK_DEPTH_MAX: usize = 64;

/// What CRI's FilesystemUsage wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FsUsage {
    pub(crate) timestamp: UnixNanos,
    /// A folder on the filesystem in question.
    pub(crate) mountpoint: PathBuf,
    pub(crate) used_bytes: Bytes,
    pub(crate) inodes_used: u64,
}

/// What a writable layer was when it was last walked.
#[derive(Debug, Default)]
pub(super) struct WritableCache(Mutex<HashMap<ContainerId, (Instant, Bytes, u64)>>);

impl WritableCache {
    pub(super) fn forget(&self, id: &ContainerId) {
        self.lock().remove(id);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<ContainerId, (Instant, Bytes, u64)>> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// To whole blocks of 4 KiB.
pub(super) fn round_up(bytes: u64) -> u64 {
    bytes.next_multiple_of(4096)
}

impl Store {
    /// What the store takes: unpacked layers, manifests and configs, and the writable layers of containers as far as
    /// they were asked for. Does not touch the disk.
    pub(crate) fn usage(&self) -> FsUsage {
        let state = self.inner.state();
        let layers = state.layers.values();
        let (bytes, inodes) = layers.fold((state.blob_bytes, state.blob_files), |(bytes, inodes), layer| {
            (bytes + layer.disk_bytes.0, inodes + layer.inodes)
        });
        let writable = self.inner.writable.lock();
        let (bytes, inodes) = writable
            .values()
            .fold((bytes, inodes), |(bytes, inodes), (_, more, files)| (bytes + more.0, inodes + files));
        FsUsage {
            timestamp: UnixNanos::now(),
            mountpoint: self.inner.root.clone(),
            used_bytes: Bytes(bytes),
            inodes_used: inodes,
        }
    }

    /// What a container's writable layer takes: disk bytes and inodes, at most 10 s old. Blocking: it walks the
    /// layer. A container without one has nothing.
    pub(crate) fn writable_usage(&self, id: &ContainerId) -> io::Result<(Bytes, u64)> {
        if let Some((at, bytes, inodes)) = self.inner.writable.lock().get(id)
            && at.elapsed() < FRESH_FOR
        {
            return Ok((*bytes, *inodes));
        }
        let upper = self.container_path(id).join("upper");
        let directory = match super::unpack::open_directory(&upper) {
            Ok(directory) => directory,
            Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok((Bytes(0), 0)),
            Err(err) => return Err(err),
        };
        let mut sum = Sum::default();
        walk(directory.as_fd(), WALK_DEPTH_MAX, &mut sum)?;
        self.inner.writable.lock().insert(id.clone(), (Instant::now(), Bytes(sum.bytes), sum.inodes));
        Ok((Bytes(sum.bytes), sum.inodes))
    }
}

#[derive(Default)]
struct Sum {
    bytes: u64,
    inodes: u64,
}

fn walk(directory: BorrowedFd<'_>, depth: usize, sum: &mut Sum) -> io::Result<()> {
    let mut entries = Dir::read_from(directory)?;
    while let Some(entry) = entries.read() {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        // The container goes on removing files while they are counted.
        let Ok(stat) = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) else {
            continue;
        };
        let kind = FileType::from_raw_mode(stat.st_mode);
        sum.inodes += 1;
        // A file with several names is divided among them; a directory's link count means something else.
        let names = if kind == FileType::Directory { 1 } else { usize::try_from(stat.st_nlink).unwrap_or(1) };
        sum.bytes += stat.st_blocks.cast_unsigned() * 512 / names.max(1) as u64;
        if sum.inodes >= WALK_ENTRIES_MAX {
            return Ok(());
        }
        if kind == FileType::Directory && depth > 1 {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            if let Ok(child) = rustix::fs::openat(directory, name, flags, Mode::empty()) {
                walk(child.as_fd(), depth - 1, sum)?;
            }
        }
    }
    Ok(())
}
