//! Writing entries below one directory, and removing trees, without ever leaving it.
//!
//! Every path is split here and its parent opened by openat2(2) with `RESOLVE_IN_ROOT`: a symlink in the layer, even
//! an absolute one, leads somewhere inside the layer or nowhere. The last component is never followed: it is created
//! exclusively, and where something stands in its way that is unlinked first, as tar does (a directory onto a directory merges).
//! Attributes are set on the inode just created, never through a name that could be a link.
//!
//! The directory is private to this process (mode 0700, random name), so nobody changes it in between; even if
//! somebody could, the flags above hold for each call by itself.

use std::ffi::OsStr;
use std::io::{self, BufRead};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;

use super::EntryError;
use super::entries::{Entries, Entry, Kind, Piece};

/// What one directory or file costs at least, and the unit files are rounded up to.
const BLOCK_BYTES: u64 = 4096;

/// Directories whose modification time is put right at the end (their content changes it in between). Paths of
/// 60 bytes make this 16 MiB; further directories keep the time of unpacking.
const DIRECTORY_TIMES_MAX: usize = 200_000;

/// Open directories while removing or walking a tree. Deeper ones are first moved up.
const DEPTH_MAX: usize = 64;

/// Where missing parents are made: they are as the root of a fresh layer.
const PARENT_MODE: Mode = Mode::from_raw_mode(0o755);

const OPAQUE: &str = "trusted.overlay.opaque";

type Result<T, E = EntryError> = std::result::Result<T, E>;

/// The directory being filled.
pub(super) struct Tree {
    root: OwnedFd,
    /// The parent of the last entry: archives list a directory's files in one go.
    parent: Option<(Vec<u8>, OwnedFd)>,
    /// A directory or symlink was removed for the current entry, so its parent's path may mean something else now.
    replaced: bool,
    directory_times: Vec<(Vec<u8>, Timestamps)>,
    disk_bytes: u64,
    inodes: u64,
}

impl Tree {
    pub(super) fn new(root: OwnedFd) -> Self {
        Self {
            root,
            parent: None,
            replaced: false,
            directory_times: Vec::new(),
            disk_bytes: BLOCK_BYTES,
            inodes: 1,
        }
    }

    /// Makes what `entry` says, reading its data from `entries`.
    pub(super) fn add<R: BufRead>(&mut self, entry: &Entry, entries: &mut Entries<R>) -> Result<()> {
        let path = split(&entry.path)?;
        let Some((name, parent)) = path.split_last() else {
            if entry.kind != Kind::Directory {
                return Err(EntryError::Root);
            }
            let root = self.root.try_clone().map_err(|source| EntryError::Call { call: "dup", source })?;
            return self.finish_directory(&root, Vec::new(), entry);
        };
        let parent_path = parent.join(&b'/');
        if let Some(hidden) = name.strip_prefix(b".wh.") {
            return self.whiteout(&parent_path, hidden);
        }
        let parent = self.open_parent(parent_path)?;
        match &entry.kind {
            Kind::File { size, sparse } => {
                let file = self.create(&parent, name, &|| {
                    let flags =
                        OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                    rustix::fs::openat(&parent.1, *name, flags, Mode::from_raw_mode(0o600))
                })?;
                let file = std::fs::File::from(file);
                let written = match sparse {
                    None => copy(entries, &file, 0, *size)?,
                    Some(pieces) => copy_sparse(entries, &file, *size, pieces)?,
                };
                self.disk_bytes += written.next_multiple_of(BLOCK_BYTES);
                self.own(file.as_fd(), entry)?;
            }
            Kind::Directory => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let opened = self.make_directory(&parent, name)?;
                let directory = match opened {
                    Some(directory) => directory,
                    None => {
                        rustix::fs::openat(&parent.1, *name, flags, Mode::empty()).map_err(call("openat"))?
                    }
                };
                let mut path = parent.0.clone();
                if !path.is_empty() {
                    path.push(b'/');
                }
                path.extend_from_slice(name);
                self.keep(parent);
                return self.finish_directory(&directory, path, entry);
            }
            Kind::Symlink { target } => {
                self.create(&parent, name, &|| {
                    rustix::fs::symlinkat(OsStr::from_bytes(target), &parent.1, *name)
                })?;
                self.own_by_name(&parent.1, name, entry, None)?;
            }
            Kind::Hardlink { target } => self.hardlink(&parent, name, target)?,
            Kind::Device { block, major, minor } => {
                let kind = if *block { FileType::BlockDevice } else { FileType::CharacterDevice };
                let number = rustix::fs::makedev(*major, *minor);
                self.create(&parent, name, &|| {
                    rustix::fs::mknodat(&parent.1, *name, kind, Mode::from_raw_mode(0o600), number)
                })?;
                self.own_by_name(&parent.1, name, entry, Some(entry.mode))?;
            }
            Kind::Fifo => {
                self.create(&parent, name, &|| {
                    rustix::fs::mknodat(&parent.1, *name, FileType::Fifo, Mode::from_raw_mode(0o600), 0)
                })?;
                self.own_by_name(&parent.1, name, entry, Some(entry.mode))?;
            }
        }
        self.keep(parent);
        Ok(())
    }

    /// Sets the directories' times, in the order of the archive: of two entries the later counts. Returns disk bytes
    /// and inodes.
    pub(super) fn finish(mut self) -> io::Result<(u64, u64)> {
        for (path, times) in std::mem::take(&mut self.directory_times) {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            match open_in(&self.root, if path.is_empty() { b"." } else { &path }, flags) {
                Ok(directory) => rustix::fs::futimens(&directory, &times)?,
                // A later entry has replaced it.
                Err(_) => continue,
            }
        }
        Ok((self.disk_bytes, self.inodes))
    }

    /// The directory that `path` names, made where it is missing. Takes the cached one when it is the same.
    fn open_parent(&mut self, path: Vec<u8>) -> Result<(Vec<u8>, OwnedFd)> {
        if let Some(cached) = self.parent.take_if(|(cached, _)| *cached == path) {
            return Ok(cached);
        }
        self.parent = None;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match open_in(&self.root, if path.is_empty() { b"." } else { &path }, flags) {
            Ok(directory) => return Ok((path, directory)),
            Err(Errno::NOENT) => {}
            Err(Errno::NOTDIR | Errno::LOOP) => return Err(EntryError::Parent),
            Err(err) => return Err(call("openat2")(err)),
        }
        // The deepest parent that exists, by bisection: resolving every prefix of a path of 2000 components takes long.
        let ends: Vec<usize> = (0..path.len()).filter(|at| path[*at] == b'/').chain([path.len()]).collect();
        let mut at = open_in(&self.root, b".", flags).map_err(call("openat2"))?;
        let (mut existing, mut missing) = (0, ends.len());
        while existing < missing {
            let middle = usize::midpoint(existing, missing);
            match open_in(&self.root, &path[..ends[middle]], flags) {
                Ok(directory) => {
                    at = directory;
                    existing = middle + 1;
                }
                Err(Errno::NOENT) => missing = middle,
                Err(Errno::NOTDIR | Errno::LOOP) => return Err(EntryError::Parent),
                Err(err) => return Err(call("openat2")(err)),
            }
        }
        let start = if existing == 0 { 0 } else { ends[existing - 1] + 1 };
        for name in path[start..].split(|byte| *byte == b'/') {
            match rustix::fs::mkdirat(&at, name, PARENT_MODE) {
                Ok(()) => {}
                // There is something, and it leads nowhere: a dangling symlink.
                Err(Errno::EXIST) => return Err(EntryError::Parent),
                Err(err) => return Err(call("mkdirat")(err)),
            }
            self.count(1);
            let made = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            at = rustix::fs::openat(&at, name, made, Mode::empty()).map_err(call("openat"))?;
            // The umask is this process's affair, not the layer's.
            rustix::fs::fchmod(&at, PARENT_MODE).map_err(call("fchmod"))?;
        }
        Ok((path, at))
    }

    /// Keeps the parent open for the next entry.
    fn keep(&mut self, parent: (Vec<u8>, OwnedFd)) {
        self.parent = (!std::mem::take(&mut self.replaced)).then_some(parent);
    }

    /// Runs `make`, and again after removing what stands in its way.
    fn create<T>(
        &mut self,
        parent: &(Vec<u8>, OwnedFd),
        name: &[u8],
        make: &dyn Fn() -> rustix::io::Result<T>,
    ) -> Result<T> {
        let made = match make() {
            Err(Errno::EXIST) => {
                self.remove(parent, name)?;
                make()
            }
            other => other,
        };
        let made = made.map_err(call("create it"))?;
        self.inodes += 1;
        Ok(made)
    }

    /// Makes a directory or keeps the one that is there. Returns it opened where it had to be.
    fn make_directory(&mut self, parent: &(Vec<u8>, OwnedFd), name: &[u8]) -> Result<Option<OwnedFd>> {
        let make = || rustix::fs::mkdirat(&parent.1, name, Mode::from_raw_mode(0o700));
        match make() {
            Ok(()) => {
                self.count(1);
                return Ok(None);
            }
            Err(Errno::EXIST) => {}
            Err(err) => return Err(call("mkdirat")(err)),
        }
        let found = stat(&parent.1, name)?;
        if FileType::from_raw_mode(found.st_mode) == FileType::Directory {
            return Ok(None);
        }
        let was_whiteout = is_whiteout(&found);
        self.remove(parent, name)?;
        make().map_err(call("mkdirat"))?;
        self.count(1);
        if !was_whiteout {
            return Ok(None);
        }
        // The same layer removed what was there before and made it new: nothing of the old may show through.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = rustix::fs::openat(&parent.1, name, flags, Mode::empty()).map_err(call("openat"))?;
        set_opaque(&directory)?;
        Ok(Some(directory))
    }

    /// `hidden` is what follows `.wh.` in the name.
    fn whiteout(&mut self, parent_path: &[u8], hidden: &[u8]) -> Result<()> {
        if hidden == b".wh..opq" {
            let parent = self.open_parent(parent_path.to_vec())?;
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let directory =
                rustix::fs::openat(&parent.1, ".", flags, Mode::empty()).map_err(call("openat"))?;
            set_opaque(&directory)?;
            self.keep(parent);
            return Ok(());
        }
        // Bookkeeping of aufs (`.wh..wh.plnk`, `.wh..wh.aufs`): means nothing, and docker skips it too.
        if hidden.starts_with(b".wh.") {
            return Ok(());
        }
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(EntryError::Whiteout);
        }
        let parent = self.open_parent(parent_path.to_vec())?;
        match rustix::fs::mknodat(&parent.1, hidden, FileType::CharacterDevice, Mode::empty(), 0) {
            Ok(()) => self.inodes += 1,
            // A whiteout speaks of the layers below (image-spec, layer.md, "whiteouts"): what this layer itself brings
            // stays, and of a directory only what it brings.
            Err(Errno::EXIST) => {
                let found = stat(&parent.1, hidden)?;
                if FileType::from_raw_mode(found.st_mode) == FileType::Directory {
                    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                    let directory = rustix::fs::openat(&parent.1, hidden, flags, Mode::empty())
                        .map_err(call("openat"))?;
                    set_opaque(&directory)?;
                }
            }
            Err(err) => return Err(call("mknodat")(err)),
        }
        self.keep(parent);
        Ok(())
    }

    /// The target must be in this layer; a symlink at its end is itself what gets another name.
    fn hardlink(&mut self, parent: &(Vec<u8>, OwnedFd), name: &[u8], target: &[u8]) -> Result<()> {
        let shown = || String::from_utf8_lossy(target).into_owned();
        let missing = || EntryError::LinkMissing { target: shown() };
        let path = split(target).map_err(|_| EntryError::LinkTarget { target: shown() })?;
        let Some((target_name, target_parent)) = path.split_last() else {
            return Err(missing());
        };
        let target_path = target_parent.join(&b'/');
        let opened;
        let target_parent = if target_path == parent.0 {
            &parent.1
        } else {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            opened = open_in(&self.root, if target_path.is_empty() { b"." } else { &target_path }, flags)
                .map_err(|_| missing())?;
            &opened
        };
        let found = rustix::fs::statat(target_parent, *target_name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|_| missing())?;
        if FileType::from_raw_mode(found.st_mode) == FileType::Directory || is_whiteout(&found) {
            return Err(missing());
        }
        // A link to itself: making it would first remove the target.
        if let Ok(existing) = rustix::fs::statat(&parent.1, name, AtFlags::SYMLINK_NOFOLLOW)
            && (existing.st_dev, existing.st_ino) == (found.st_dev, found.st_ino)
        {
            return Ok(());
        }
        self.create(parent, name, &|| {
            rustix::fs::linkat(target_parent, *target_name, &parent.1, name, AtFlags::empty())
        })?;
        self.inodes -= 1;
        Ok(())
    }

    /// Removes what `name` is, a whole tree if need be.
    fn remove(&mut self, parent: &(Vec<u8>, OwnedFd), name: &[u8]) -> Result<()> {
        let found = stat(&parent.1, name)?;
        match FileType::from_raw_mode(found.st_mode) {
            FileType::Directory => {
                self.replaced = true;
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
                let base =
                    rustix::fs::openat(&parent.1, ".", flags, Mode::empty()).map_err(call("openat"))?;
                let mut counted = Removed::default();
                remove_counted(base.as_fd(), name, &mut counted).map_err(|source| EntryError::Call {
                    call: "remove the directory it replaces",
                    source,
                })?;
                self.inodes = self.inodes.saturating_sub(counted.inodes);
                self.disk_bytes = self.disk_bytes.saturating_sub(counted.disk_bytes);
                let mut path = parent.0.clone();
                if !path.is_empty() {
                    path.push(b'/');
                }
                path.extend_from_slice(name);
                let below = |candidate: &[u8]| {
                    candidate
                        .strip_prefix(path.as_slice())
                        .is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
                };
                self.directory_times.retain(|(candidate, _)| !below(candidate));
            }
            kind => {
                self.replaced |= kind == FileType::Symlink;
                rustix::fs::unlinkat(&parent.1, name, AtFlags::empty()).map_err(call("unlinkat"))?;
                let mut counted = Removed::default();
                counted.add(&found);
                self.inodes = self.inodes.saturating_sub(counted.inodes);
                self.disk_bytes = self.disk_bytes.saturating_sub(counted.disk_bytes);
            }
        }
        Ok(())
    }

    fn finish_directory(&mut self, directory: &OwnedFd, path: Vec<u8>, entry: &Entry) -> Result<()> {
        self.own(directory.as_fd(), entry)?;
        if self.directory_times.len() < DIRECTORY_TIMES_MAX {
            self.directory_times.push((path, times(entry)));
        }
        Ok(())
    }

    /// Owner, attributes, mode, time, in this order: chown takes setuid bits and capabilities away.
    fn own(&self, inode: BorrowedFd<'_>, entry: &Entry) -> Result<()> {
        rustix::fs::fchown(inode, Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)))
            .map_err(call("fchown"))?;
        for (name, value) in &entry.xattrs {
            if !is_wanted_xattr(name) {
                continue;
            }
            match rustix::fs::fsetxattr(inode, OsStr::from_bytes(name), value, XattrFlags::empty()) {
                Ok(()) => {}
                // user.* where the filesystem has none; containerd goes on as well.
                Err(Errno::OPNOTSUPP) if name.starts_with(b"user.") => {}
                Err(err) => return Err(call("fsetxattr")(err)),
            }
        }
        rustix::fs::fchmod(inode, Mode::from_raw_mode(entry.mode)).map_err(call("fchmod"))?;
        rustix::fs::futimens(inode, &times(entry)).map_err(call("futimens"))
    }

    /// As [`Tree::own`] for an inode that cannot be opened. It was created by this call's caller, exclusively, so the
    /// name is that inode; `mode` is `None` for symlinks, which have none.
    fn own_by_name(&self, parent: &OwnedFd, name: &[u8], entry: &Entry, mode: Option<u32>) -> Result<()> {
        let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
        rustix::fs::chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(call("fchownat"))?;
        if let Some(mode) = mode {
            rustix::fs::chmodat(parent, name, Mode::from_raw_mode(mode), AtFlags::empty())
                .map_err(call("fchmodat"))?;
        }
        rustix::fs::utimensat(parent, name, &times(entry), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(call("utimensat"))
    }

    fn count(&mut self, directories: u64) {
        self.inodes += directories;
        self.disk_bytes += directories * BLOCK_BYTES;
    }
}

/// The components of an entry's path; none is the root itself.
fn split(path: &[u8]) -> Result<Vec<&[u8]>> {
    if path.starts_with(b"/") {
        return Err(EntryError::Absolute);
    }
    let mut components = Vec::new();
    for component in path.split(|byte| *byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." => return Err(EntryError::DotDot),
            name => components.push(name),
        }
    }
    Ok(components)
}

fn open_in(root: &OwnedFd, path: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    loop {
        match rustix::fs::openat2(root, path, flags, Mode::empty(), resolve) {
            // openat2(2): a rename anywhere raced with the walk; only ".." in a symlink's target can meet it.
            Err(Errno::AGAIN) => {}
            other => return other,
        }
    }
}

fn stat(parent: &OwnedFd, name: &[u8]) -> Result<rustix::fs::Stat> {
    rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).map_err(call("fstatat"))
}

fn is_whiteout(stat: &rustix::fs::Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

fn set_opaque(directory: &OwnedFd) -> Result<()> {
    rustix::fs::fsetxattr(directory, OPAQUE, b"y", XattrFlags::empty())
        .map_err(call("fsetxattr trusted.overlay.opaque"))
}

/// An image may bring file capabilities and user attributes. overlayfs's own attributes would redirect directories of
/// the layers below; labels and signatures (`security.selinux`, `security.ima`) are the host's to give.
fn is_wanted_xattr(name: &[u8]) -> bool {
    name == b"security.capability" || (name.starts_with(b"user.") && !name.starts_with(b"user.overlay."))
}

fn times(entry: &Entry) -> Timestamps {
    let time = Timespec { tv_sec: entry.mtime_s, tv_nsec: entry.mtime_ns.into() };
    Timestamps { last_access: time, last_modification: time }
}

fn call(name: &'static str) -> impl Fn(Errno) -> EntryError {
    move |err| EntryError::Call { call: name, source: err.into() }
}

/// Writes `length` bytes of the entry's data at `offset`.
fn copy<R: BufRead>(entries: &mut Entries<R>, file: &std::fs::File, offset: u64, length: u64) -> Result<u64> {
    use std::os::unix::fs::FileExt;
    let mut done = 0u64;
    while done < length {
        let part = entries.fill().map_err(|source| match source.kind() {
            io::ErrorKind::UnexpectedEof => EntryError::Truncated,
            _ => EntryError::Call { call: "read its data", source },
        })?;
        if part.is_empty() {
            return Err(EntryError::Truncated);
        }
        let n = part.len().min(usize::try_from(length - done).unwrap_or(usize::MAX));
        file.write_all_at(&part[..n], offset + done)
            .map_err(|source| EntryError::Call { call: "write its data", source })?;
        entries.consume(n);
        done += n as u64;
    }
    Ok(done)
}

fn copy_sparse<R: BufRead>(
    entries: &mut Entries<R>,
    file: &std::fs::File,
    size: u64,
    pieces: &[Piece],
) -> Result<u64> {
    let mut written = 0;
    for piece in pieces {
        written += copy(entries, file, piece.offset, piece.length)?;
    }
    rustix::fs::ftruncate(file, size).map_err(call("ftruncate"))?;
    Ok(written)
}

/// What a removal freed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::image) struct Removed {
    pub(in crate::image) inodes: u64,
    pub(in crate::image) disk_bytes: u64,
}

impl Removed {
    fn add(&mut self, stat: &rustix::fs::Stat) {
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                self.inodes += 1;
                self.disk_bytes += BLOCK_BYTES;
            }
            _ if stat.st_nlink > 1 => {}
            kind => {
                self.inodes += 1;
                if kind == FileType::RegularFile {
                    // As much as was counted when it was written; delayed allocation makes st_blocks useless here.
                    self.disk_bytes += stat.st_size.cast_unsigned().next_multiple_of(BLOCK_BYTES);
                }
            }
        }
    }
}

/// Removes the file or tree `name` in the directory `base`; nothing there is fine. Follows no symlink, needs at most [`DEPTH_MAX`] file
/// descriptors however deep the tree is. Blocking.
pub(in crate::image) fn remove_tree(base: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    match remove_counted(base, name.as_bytes(), &mut Removed::default()) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn remove_counted(base: BorrowedFd<'_>, name: &[u8], counted: &mut Removed) -> io::Result<()> {
    let stat = rustix::fs::statat(base, name, AtFlags::SYMLINK_NOFOLLOW)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        counted.add(&stat);
        return Ok(rustix::fs::unlinkat(base, name, AtFlags::empty())?);
    }
    let mut hoisted = Vec::new();
    remove_directory(base, base, name, DEPTH_MAX, &mut hoisted, counted)?;
    while let Some(name) = hoisted.pop() {
        remove_directory(base, base, name.as_bytes(), DEPTH_MAX, &mut hoisted, counted)?;
    }
    Ok(())
}

fn remove_directory(
    base: BorrowedFd<'_>,
    parent: BorrowedFd<'_>,
    name: &[u8],
    depth: usize,
    hoisted: &mut Vec<String>,
    counted: &mut Removed,
) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = rustix::fs::openat(parent, name, flags, Mode::empty())?;
    let mut children = Dir::read_from(&directory)?;
    while let Some(child) = children.read() {
        let child = child?;
        let child_name = child.file_name().to_bytes();
        if matches!(child_name, b"." | b"..") {
            continue;
        }
        let stat = rustix::fs::statat(&directory, child_name, AtFlags::SYMLINK_NOFOLLOW)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            counted.add(&stat);
            rustix::fs::unlinkat(&directory, child_name, AtFlags::empty())?;
        } else if depth > 1 {
            remove_directory(base, directory.as_fd(), child_name, depth - 1, hoisted, counted)?;
        } else {
            let unique = super::super::random_name("tmp-deep-");
            rustix::fs::renameat(&directory, child_name, base, unique.as_str())?;
            hoisted.push(unique);
        }
    }
    drop(children);
    rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)?;
    counted.inodes += 1;
    counted.disk_bytes += BLOCK_BYTES;
    Ok(())
}

/// Opens a directory for [`unpack`](super::unpack) and [`remove_tree`].
pub(in crate::image) fn open_directory(path: &std::path::Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::openat(
        CWD,
        path,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )?)
}
