//! The container's filesystem: rootfs, mounts, masked and read-only paths, all by descriptor.
//!
//! ```text
//! host's side (create)                         container's side (init)
//! open_tree clone of each bind source   ──▶    target opened in the rootfs by openat2(RESOLVE_IN_ROOT),
//! attributes, propagation, id mapping          or made beneath it; move_mount(fd → fd)
//! ```
//!
//! Sources are prepared on the host's side because there we have the host's rights even when the container has a
//! user namespace; they carry their attributes before anyone sees them. Targets are resolved when the mounts before
//! them are in place, and a target that a hostile image or a racing sibling turns into a link is still inside.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, OFlags, fstat};

use super::error::{Attempt, Error};
use super::spec::{Config, IdMapping, Mount};
use super::{log, lsm};
use crate::sys::mount::{self, Change, Propagation};
use crate::sys::path::{self, Missing};

/// fsconfig(2): a string value and its NUL fit in 256 bytes.
const OPTION_BYTES_MAX: usize = 255;
/// A tmpfs that starts as a copy of what it covers is for /run and the like.
const COPY_UP_ENTRIES_MAX: usize = 100_000;

/// The options of one mount, sorted by what they act on.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Options {
    /// Of the mount itself.
    change: Change,
    /// Of the mount and all below it.
    recursive: Change,
    /// A bind mount, with what is below it or without.
    bind: Option<bool>,
    remount: bool,
    propagation: Vec<(Propagation, bool)>,
    copy_up: bool,
    /// Map ids like the container's user namespace, with what is below it or without.
    id_map: Option<bool>,
    /// For the filesystem.
    data: Vec<(String, Option<String>)>,
}

/// Shared, slave, private and unbindable, `true` with an `r` in front.
pub(super) fn propagation(word: &str) -> Option<(Propagation, bool)> {
    let (word, recursive) = match word.strip_prefix('r') {
        Some(rest) => (rest, true),
        None => (word, false),
    };
    let mode = match word {
        "shared" => Propagation::Shared,
        "slave" => Propagation::Slave,
        "private" => Propagation::Private,
        "unbindable" => Propagation::Unbindable,
        _ => return None,
    };
    Some((mode, recursive))
}

/// Every word that names a mount attribute, for `features` too: bits to clear, bits to set.
pub(super) const ATTRIBUTES: [(&str, u64, u64); 20] = [
    ("ro", 0, mount::RDONLY),
    ("rw", mount::RDONLY, 0),
    ("nosuid", 0, mount::NOSUID),
    ("suid", mount::NOSUID, 0),
    ("nodev", 0, mount::NODEV),
    ("dev", mount::NODEV, 0),
    ("noexec", 0, mount::NOEXEC),
    ("exec", mount::NOEXEC, 0),
    ("noatime", mount::ATIME_MASK, mount::NOATIME),
    ("atime", mount::ATIME_MASK, 0),
    ("relatime", mount::ATIME_MASK, 0),
    ("norelatime", mount::ATIME_MASK, mount::STRICTATIME),
    ("strictatime", mount::ATIME_MASK, mount::STRICTATIME),
    ("nostrictatime", mount::ATIME_MASK, 0),
    ("nodiratime", 0, mount::NODIRATIME),
    ("diratime", mount::NODIRATIME, 0),
    ("nosymfollow", 0, mount::NOSYMFOLLOW),
    ("symfollow", mount::NOSYMFOLLOW, 0),
    ("defaults", 0, 0),
    ("loud", 0, 0),
];

impl Options {
    pub(super) fn parse(words: &[String], kind: Option<&str>) -> Self {
        let mut options = Self::default();
        for word in words {
            options.add(word);
        }
        if kind == Some("bind") && options.bind.is_none() {
            options.bind = Some(false);
        }
        options
    }

    fn add(&mut self, word: &str) {
        let apply = |change: &mut Change, clear: u64, set: u64| {
            change.set = change.set & !clear & !opposite(set) | set;
            change.clear |= clear;
            if set != 0 && clear == 0 {
                change.clear &= !set;
            }
        };
        let find = |word: &str| ATTRIBUTES.iter().find(|(name, ..)| *name == word);
        if let Some((_, clear, set)) = find(word) {
            return apply(&mut self.change, *clear, *set);
        }
        if let Some(mode) = propagation(word) {
            return self.propagation.push(mode);
        }
        match word {
            "bind" => self.bind = Some(false),
            "rbind" => self.bind = Some(true),
            "remount" => self.remount = true,
            "tmpcopyup" => self.copy_up = true,
            "idmap" => self.id_map = Some(false),
            "ridmap" => self.id_map = Some(true),
            "silent" | "copy-symlink" => {}
            _ => match word.strip_prefix('r').and_then(find) {
                Some((_, clear, set)) => apply(&mut self.recursive, *clear, *set),
                None => {
                    let (key, value) = match word.split_once('=') {
                        Some((key, value)) => (key, Some(value.to_owned())),
                        None => (word, None),
                    };
                    self.data.push((key.to_owned(), value));
                }
            },
        }
    }
}

/// Access-time modes exclude each other, everything else stands alone.
fn opposite(set: u64) -> u64 {
    if set & mount::ATIME_MASK != 0 { mount::ATIME_MASK } else { 0 }
}

/// A mount, as far as the host's side can prepare it.
#[derive(Debug)]
pub(super) struct Prepared {
    destination: PathBuf,
    kind: String,
    options: Options,
    /// The detached mount of a bind.
    source: Option<OwnedFd>,
    uid_mappings: Vec<IdMapping>,
    gid_mappings: Vec<IdMapping>,
    /// The SELinux label that its root is to get once it is mounted.
    label_later: Option<String>,
}

/// The mount, whether all below it too, and the uid and gid mappings of its own.
type IdMapped<'a> = (BorrowedFd<'a>, bool, Option<(&'a [IdMapping], &'a [IdMapping])>);

impl Prepared {
    /// Whether ids are to be mapped, and whether with mappings of its own.
    pub(super) fn id_map(&self) -> Option<IdMapped<'_>> {
        let own = (!self.uid_mappings.is_empty()).then_some((&self.uid_mappings[..], &self.gid_mappings[..]));
        let recursive = match (self.options.id_map, own) {
            (Some(recursive), _) => recursive,
            (None, Some(_)) => false,
            (None, None) => return None,
        };
        Some((self.source.as_ref()?.as_fd(), recursive, own))
    }
}

/// Opens all bind sources. `given(i)` is a detached mount that replaces the source of mount `i`.
pub(super) fn prepare(
    config: &Config,
    bundle: &Path,
    mut given: impl FnMut(usize) -> Option<OwnedFd>,
) -> Result<Vec<Prepared>, Error> {
    let default = match config.linux.rootfs_propagation.as_deref() {
        Some("private" | "rprivate") => Propagation::Private,
        _ => Propagation::Slave,
    };
    let label = config.mount_label();
    config
        .mounts
        .iter()
        .enumerate()
        .map(|(index, mount)| prepare_one(index, mount, bundle, default, label, given(index)))
        .collect()
}

fn prepare_one(
    index: usize,
    wanted: &Mount,
    bundle: &Path,
    default: Propagation,
    mount_label: Option<&str>,
    given: Option<OwnedFd>,
) -> Result<Prepared, Error> {
    let options = Options::parse(&wanted.options, wanted.kind.as_deref());
    let mut prepared = Prepared {
        destination: Path::new("/").join(&wanted.destination),
        kind: wanted.kind.clone().unwrap_or_default(),
        source: None,
        uid_mappings: wanted.uid_mappings.clone(),
        gid_mappings: wanted.gid_mappings.clone(),
        label_later: None,
        options,
    };
    if prepared.options.bind.is_none()
        && given.is_none()
        && !prepared.options.remount
        && let Some(label) = mount_label
    {
        match prepared.kind.as_str() {
            // The kernel labels what is in these by itself.
            "proc" | "sysfs" | "cgroup" | "cgroup2" => {}
            // There is one for all containers that share the IPC namespace, and it takes no label when it is mounted.
            "mqueue" => prepared.label_later = Some(label.to_owned()),
            _ if prepared.options.data.iter().any(|(key, _)| key == "context") => {}
            _ => prepared.options.data.push(("context".to_owned(), Some(label.to_owned()))),
        }
    }
    for (key, value) in &prepared.options.data {
        if value.as_ref().is_some_and(|value| value.len() > OPTION_BYTES_MAX) {
            return Err(Error::invalid(
                format!("mounts[{index}].options"),
                format!("{key}=…"),
                format!("the kernel takes at most {OPTION_BYTES_MAX} bytes per value"),
            ));
        }
    }
    if prepared.options.remount {
        return Ok(prepared);
    }
    if prepared.options.bind.is_none() && given.is_none() {
        if prepared.kind.is_empty() {
            let limit = "a mount needs a type, or bind among its options";
            return Err(Error::invalid(format!("mounts[{index}].type"), "missing", limit));
        }
        return Ok(prepared);
    }
    let what = || format!("mounts[{index}] on {}", prepared.destination.display());
    let recursive = prepared.options.bind.unwrap_or(true);
    let source = match given {
        Some(fd) => fd,
        None => {
            let Some(source) = &wanted.source else {
                return Err(Error::invalid(
                    format!("mounts[{index}].source"),
                    "missing",
                    "a bind mount needs one",
                ));
            };
            let source = bundle.join(source);
            mount::clone_tree(rustix::fs::CWD, &source, recursive)
                .attempt(|| format!("open the source {} of {}", source.display(), what()))?
        }
    };
    let options = &prepared.options;
    if options.change.set | options.change.clear != 0 {
        mount::change(&source, false, &options.change).attempt(|| format!("set attributes of {}", what()))?;
    }
    if options.recursive.set | options.recursive.clear != 0 {
        mount::change(&source, true, &options.recursive)
            .attempt(|| format!("set recursive attributes of {}", what()))?;
    }
    let modes = if options.propagation.is_empty() { &[(default, true)][..] } else { &options.propagation };
    for (mode, recursive) in modes {
        let change = Change { propagation: Some(*mode), ..Change::default() };
        mount::change(&source, *recursive, &change).attempt(|| format!("set propagation of {}", what()))?;
    }
    prepared.source = Some(source);
    Ok(prepared)
}

/// What only the container's side knows.
#[derive(Debug)]
pub(super) struct Inside<'a> {
    pub(super) root: BorrowedFd<'a>,
    /// The container has a user namespace, in which some gids may not be mapped.
    pub(super) user_namespace: bool,
    pub(super) cgroups: &'a super::cgroupfs::View,
    /// What SELinux sees on the file systems that are made for the container.
    pub(super) label: Option<&'a str>,
    pub(super) readonly_later: Vec<OwnedFd>,
}

/// Attaches one mount. Called in order, in the container's namespaces, before the pivot.
pub(super) fn attach(inside: &mut Inside<'_>, wanted: &Prepared) -> Result<(), Error> {
    let what = || format!("mount {:?} on {}", wanted.kind, wanted.destination.display());
    let destination = wanted.destination.as_path();
    if wanted.options.remount {
        let target = path::open_in(inside.root, destination, OFlags::PATH)
            .attempt(|| format!("open {} to remount it", destination.display()))?;
        return mount::change(&target, false, &wanted.options.change).attempt(what);
    }
    // What stands for /sys in a container that may not see the kernel's counts too.
    let kernel_view = matches!(wanted.kind.as_str(), "proc" | "sysfs") || destination == Path::new("/sys");
    let fresh_kernel_view = kernel_view && wanted.source.is_none();
    let missing = match &wanted.source {
        Some(source) if !is_dir(source).attempt(what)? => Missing::File,
        _ => Missing::Directory,
    };
    let target = path::ensure_in(inside.root, destination, missing)
        .attempt(|| format!("open the mount target {}", destination.display()))?;
    if fresh_kernel_view {
        // An image that links /proc or /sys elsewhere would get our labels written to files of its own
        // (CVE-2023-27561, CVE-2019-19921).
        path::open_in_without_links(inside.root, destination, OFlags::PATH | OFlags::DIRECTORY)
            .attempt(|| format!("{}: the target must be a directory without links on the way", what()))?;
    }
    check_proc(wanted, &target)?;
    if let Some(source) = &wanted.source {
        return mount::attach(source, &target).attempt(what);
    }
    let attributes = wanted.options.change.set | wanted.options.recursive.set;
    let made = match wanted.kind.as_str() {
        "cgroup" | "cgroup2" => {
            super::cgroupfs::make(inside.cgroups, &wanted.kind, attributes, inside.label)?
        }
        "tmpfs" => tmpfs(wanted, &target, attributes).attempt(what)?,
        kind => {
            let name =
                CString::new(kind).map_err(|_| Error::invalid("mounts.type", kind, "it holds a NUL"))?;
            // What mountinfo shows as the source.
            let mut data = vec![("source".to_owned(), Some(kind.to_owned()))];
            data.extend(wanted.options.data.iter().cloned());
            match mount::new_filesystem(&name, &data, attributes) {
                Err(_)
                    if kind == "devpts"
                        && inside.user_namespace
                        && data.iter().any(|(key, _)| key == "gid") =>
                {
                    // The tty group (5) may have no mapping; the terminals then belong to the opener's group.
                    data.retain(|(key, _)| key != "gid");
                    mount::new_filesystem(&name, &data, attributes)
                }
                result => result,
            }
            .attempt(what)?
        }
    };
    mount::attach(&made, &target).attempt(what)?;
    if let Some(label) = &wanted.label_later {
        match lsm::set_label(&made, label) {
            // It belongs to who made the IPC namespace, whom the user namespace may not know. The container has its
            // message queues all the same; what it may do with them the policy says.
            Err(error) if inside.user_namespace && error.kind() == io::ErrorKind::PermissionDenied => {
                log::debug(|| format!("no SELinux label on {}: {error}", wanted.destination.display()));
            }
            result => result.attempt(|| format!("set the SELinux label of {}", what()))?,
        }
    }
    if super::cgroupfs::is_tree(inside.cgroups, &wanted.kind) {
        super::cgroupfs::populate(inside.cgroups, &made, attributes)?;
    }
    for (mode, recursive) in &wanted.options.propagation {
        let change = Change { propagation: Some(*mode), ..Change::default() };
        mount::change(&made, *recursive, &change).attempt(|| format!("set propagation of {}", what()))?;
    }
    if destination == Path::new("/dev") && attributes & mount::RDONLY != 0 {
        // Device nodes are still to be made in it.
        let writable = Change { clear: mount::RDONLY, ..Change::default() };
        mount::change(&made, false, &writable).attempt(what)?;
        inside.readonly_later.push(made);
    }
    Ok(())
}

/// What may be mounted into a procfs: files that tools fake to show a container's limits.
const PROC_FILES: [&str; 11] = [
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/uptime",
    "/proc/loadavg",
    "/proc/slabinfo",
    "/proc/net/dev",
    "/proc/sys/kernel/ns_last_pid",
    "/proc/sys/crypto/fips_enabled",
];

/// A mount that hides procfs, or part of it, would fool whoever writes labels there (CVE-2019-16884).
fn check_proc(wanted: &Prepared, target: &OwnedFd) -> Result<(), Error> {
    let refused = |limit: &str| Err(Error::invalid("mounts.destination", &wanted.destination, limit));
    let on_proc = path::is_procfs(target).attempt(|| "look at a mount target".to_owned())?;
    let clean: PathBuf = wanted.destination.components().collect();
    if clean == Path::new("/proc") {
        let is_proc = match &wanted.source {
            Some(source) => path::is_procfs(source).attempt(|| "look at a mount source".to_owned())?,
            None => wanted.kind == "proc",
        };
        return if is_proc { Ok(()) } else { refused("only a procfs may be mounted there") };
    }
    if on_proc && !PROC_FILES.iter().any(|file| clean == Path::new(file)) {
        return refused("it is inside procfs, where only files such as /proc/meminfo may be covered");
    }
    Ok(())
}

fn is_dir(file: impl AsFd) -> io::Result<bool> {
    Ok(FileType::from_raw_mode(fstat(file)?.st_mode) == FileType::Directory)
}

fn tmpfs(wanted: &Prepared, target: &OwnedFd, attributes: u64) -> io::Result<OwnedFd> {
    let mut data = wanted.options.data.clone();
    if !data.iter().any(|(key, _)| key == "mode") {
        // Cover a directory by one that looks the same.
        data.push(("mode".to_owned(), Some(format!("{:o}", fstat(target)?.st_mode & 0o7777))));
    }
    if !wanted.options.copy_up {
        return mount::new_filesystem(c"tmpfs", &data, attributes);
    }
    let made = mount::new_filesystem(c"tmpfs", &data, attributes & !mount::RDONLY)?;
    let mut left = COPY_UP_ENTRIES_MAX;
    copy_up(target.as_fd(), made.as_fd(), &mut left)?;
    if attributes & mount::RDONLY != 0 {
        mount::change(&made, false, &Change { set: mount::RDONLY, ..Change::default() })?;
    }
    Ok(made)
}

/// Copies a directory's content, by descriptors: directories, files, links; what is neither stays behind.
fn copy_up(from: BorrowedFd<'_>, to: BorrowedFd<'_>, left: &mut usize) -> io::Result<()> {
    use rustix::fs::{Dir, Mode, fchown, mkdirat, openat, readlinkat, symlinkat};
    use rustix::process::{Gid, Uid};
    let readable = openat(from, c".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    for entry in Dir::read_from(&readable)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        *left = left.checked_sub(1).ok_or_else(|| {
            io::Error::other(format!("tmpcopyup copies at most {COPY_UP_ENTRIES_MAX} entries"))
        })?;
        let source = openat(from, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
        let stat = fstat(&source)?;
        let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
        let owner = (Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)));
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                mkdirat(to, name, mode)?;
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let made = openat(to, name, flags, Mode::empty())?;
                copy_up(source.as_fd(), made.as_fd(), left)?;
                fchown(&made, owner.0, owner.1)?;
                rustix::fs::fchmod(&made, mode)?;
            }
            FileType::Symlink => {
                symlinkat(readlinkat(&source, c"", Vec::new())?, to, name)?;
            }
            FileType::RegularFile => {
                let read = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
                let mut source = std::fs::File::from(openat(from, name, read, Mode::empty())?);
                let write = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                let mut made = std::fs::File::from(openat(to, name, write, mode)?);
                io::copy(&mut source, &mut made)?;
                fchown(&made, owner.0, owner.1)?;
                rustix::fs::fchmod(&made, mode)?;
            }
            _ => {}
        }
    }
    Ok(())
}

/// Hides files under a private /dev/null and directories under an empty read-only tmpfs.
///
/// `null` is a detached clone of the host's /dev/null, verified to be device 1:3 when it was opened; the container's
/// own could be anything (CVE-2025-31133).
pub(super) fn mask(
    root: BorrowedFd<'_>,
    paths: &[PathBuf],
    null: &OwnedFd,
    label: Option<&str>,
) -> Result<(), Error> {
    // A detached mount can be attached once; then it is in this namespace and can be cloned for the next.
    let (mut file_mask, mut dir_mask): (Option<OwnedFd>, Option<OwnedFd>) = (None, None);
    for path in paths {
        let attempted = || format!("mask {}", path.display());
        let Some(target) = existing(root, path).attempt(attempted)? else { continue };
        if is_dir(&target).attempt(attempted)? {
            let cover = match &dir_mask {
                Some(first) => mount::clone_tree(first, c"", false),
                None => {
                    let data = [("nr_blocks", "1"), ("nr_inodes", "1"), ("mode", "755")];
                    let label = label.map(|label| ("context", label));
                    let data: Vec<_> = data
                        .into_iter()
                        .chain(label)
                        .map(|(key, value)| (key.to_owned(), Some(value.to_owned())))
                        .collect();
                    let attributes = mount::RDONLY | mount::NOSUID | mount::NODEV | mount::NOEXEC;
                    mount::new_filesystem(c"tmpfs", &data, attributes)
                }
            }
            .attempt(attempted)?;
            mount::attach(&cover, &target).attempt(attempted)?;
            dir_mask.get_or_insert(cover);
        } else {
            match &file_mask {
                Some(first) => {
                    let cover = mount::clone_tree(first, c"", false).attempt(attempted)?;
                    mount::attach(&cover, &target).attempt(attempted)?;
                }
                None => {
                    mount::attach(null, &target).attempt(attempted)?;
                    let own = null.as_fd().try_clone_to_owned().attempt(attempted)?;
                    file_mask = Some(own);
                }
            }
        }
    }
    Ok(())
}

/// Makes paths, with all that is mounted below them, read-only.
pub(super) fn make_readonly(root: BorrowedFd<'_>, paths: &[PathBuf]) -> Result<(), Error> {
    for path in paths {
        let attempted = || format!("make {} read-only", path.display());
        let Some(target) = existing(root, path).attempt(attempted)? else { continue };
        let clone = mount::clone_tree(&target, c"", true).attempt(attempted)?;
        mount::change(&clone, true, &Change { set: mount::RDONLY, ..Change::default() })
            .attempt(attempted)?;
        mount::attach(&clone, &target).attempt(attempted)?;
    }
    Ok(())
}

/// What is not there needs no protection.
fn existing(root: BorrowedFd<'_>, target: &Path) -> io::Result<Option<OwnedFd>> {
    match path::open_in(root, target, OFlags::PATH) {
        Ok(fd) => Ok(Some(fd)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Options {
        Options::parse(&words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>(), None)
    }

    #[test]
    fn the_last_of_two_opposite_options_wins() {
        assert_eq!(parse(&["ro", "rw"]).change, Change { set: 0, clear: mount::RDONLY, propagation: None });
        assert_eq!(parse(&["rw", "ro"]).change, Change { set: mount::RDONLY, clear: 0, propagation: None });
        let atime = parse(&["noatime", "strictatime"]).change;
        assert_eq!((atime.set, atime.clear), (mount::STRICTATIME, mount::ATIME_MASK));
    }

    #[test]
    fn a_mount_label_goes_to_the_file_systems_that_take_one() {
        let given = |kind: &str, options: &[&str]| {
            let wanted = Mount {
                destination: "/x".into(),
                kind: Some(kind.to_owned()),
                source: None,
                options: options.iter().map(|w| (*w).to_owned()).collect(),
                uid_mappings: Vec::new(),
                gid_mappings: Vec::new(),
            };
            prepare_one(0, &wanted, Path::new("/"), Propagation::Slave, Some("u:r:t:s0:c1,c2"), None).unwrap()
        };
        for kind in ["tmpfs", "devpts"] {
            let expected = [("context".to_owned(), Some("u:r:t:s0:c1,c2".to_owned()))];
            assert_eq!(given(kind, &[]).options.data, expected);
            assert_eq!(
                given(kind, &["context=own"]).options.data,
                [("context".to_owned(), Some("own".to_owned()))]
            );
        }
        for kind in ["proc", "sysfs", "cgroup", "cgroup2", "mqueue"] {
            let prepared = given(kind, &[]);
            assert_eq!(prepared.options.data, []);
            assert_eq!(prepared.label_later.is_some(), kind == "mqueue", "{kind}");
        }
    }

    #[test]
    fn recursive_options_and_propagation_are_told_from_data() {
        let options = parse(&["rbind", "rro", "rslave", "size=64k", "inode64", "ridmap", "relatime"]);
        assert_eq!(options.bind, Some(true));
        assert_eq!(options.recursive.set, mount::RDONLY);
        assert_eq!(options.propagation, [(Propagation::Slave, true)]);
        assert_eq!(options.id_map, Some(true));
        assert_eq!(options.data, [("size".to_owned(), Some("64k".to_owned())), ("inode64".to_owned(), None)]);
    }
}
