//! A file or directory with named members: a tar whose index is read once, or an OCI layout on disk.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use tar::EntryType;

/// Members of one archive; a layer has three in the oldest form.
const MEMBERS_MAX: usize = 100_000;

/// Symlinks from a layer to the same layer of another image, as `docker save` once wrote them.
const LINKS_MAX: usize = 8;

pub(super) enum Source {
    Archive { file: File, members: HashMap<String, Member> },
    Layout { directory: OwnedFd },
}

#[derive(Debug, Clone)]
pub(super) enum Member {
    Data { offset: u64, size: u64 },
    Link { target: String },
}

impl Source {
    /// `scratch` is a folder for inflating a compressed archive, of which at most `plain_bytes_max` are accepted.
    pub(super) fn open(path: &Path, scratch: &Path, plain_bytes_max: u64) -> io::Result<Self> {
        // Nonblocking, so that a FIFO does not hang the call.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let opened = rustix::fs::openat(CWD, path, flags, Mode::empty())?;
        let mut file = File::from(opened);
        let metadata = file.metadata()?;
        if metadata.is_dir() {
            return Ok(Self::Layout { directory: file.into() });
        }
        if !metadata.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is neither a file nor a directory"));
        }
        let mut magic = [0u8; 4];
        let n = file.read_at(&mut magic, 0)?;
        match &magic[..n] {
            [0x1f, 0x8b, ..] => {
                let plain = flate2::read::MultiGzDecoder::new(io::BufReader::new(file));
                file = inflate(plain, scratch, plain_bytes_max)?;
            }
            [0x28, 0xb5, 0x2f, 0xfd] => file = inflate(zstd::Decoder::new(file)?, scratch, plain_bytes_max)?,
            _ => {}
        }
        let members = index(&mut file)?;
        Ok(Self::Archive { file, members })
    }

    pub(super) fn has(&self, member: &str) -> bool {
        self.size(member).is_ok()
    }

    pub(super) fn size(&self, member: &str) -> io::Result<u64> {
        match self {
            Self::Archive { members, .. } => Ok(find(members, member)?.1),
            Self::Layout { directory } => Ok(open_member(directory, member)?.metadata()?.len()),
        }
    }

    pub(super) fn read(&self, member: &str) -> io::Result<Box<dyn Read + '_>> {
        Ok(match self {
            Self::Archive { file, members } => {
                let (offset, size) = find(members, member)?;
                Box::new(Section { file, at: offset, end: offset + size })
            }
            Self::Layout { directory } => Box::new(open_member(directory, member)?),
        })
    }
}

/// A regular file below the directory; symlinks and `..` are refused.
fn open_member(directory: &OwnedFd, member: &str) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let file = File::from(rustix::fs::openat2(directory, member, flags, Mode::empty(), resolve)?);
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a file"));
    }
    Ok(file)
}

fn inflate(plain: impl Read, scratch: &Path, plain_bytes_max: u64) -> io::Result<File> {
    let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
    let mut file = File::from(rustix::fs::openat(CWD, scratch, flags, Mode::from_raw_mode(0o600))?);
    if io::copy(&mut plain.take(plain_bytes_max + 1), &mut file)? > plain_bytes_max {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("it inflates to more than {plain_bytes_max} bytes"),
        ));
    }
    Ok(file)
}

fn index(file: &mut File) -> io::Result<HashMap<String, Member>> {
    let length = file.seek(SeekFrom::End(0))?;
    file.rewind()?;
    let mut members = HashMap::new();
    let mut archive = tar::Archive::new(&mut *file);
    for entry in archive.entries_with_seek()? {
        let entry = entry?;
        if members.len() == MEMBERS_MAX {
            return Err(io::Error::other(format!("it has more than {MEMBERS_MAX} members")));
        }
        let Some(name) = normalise(&String::from_utf8_lossy(&entry.path_bytes()), "") else { continue };
        match entry.header().entry_type() {
            EntryType::Regular | EntryType::Continuous => {
                let (offset, size) = (entry.raw_file_position(), entry.size());
                if offset.checked_add(size).is_none_or(|end| end > length) {
                    return Err(io::Error::new(
                        io::ErrorKind::UnexpectedEof,
                        format!("it ends inside {name:?}"),
                    ));
                }
                members.insert(name, Member::Data { offset, size });
            }
            EntryType::Symlink | EntryType::Link => {
                let target = entry.link_name_bytes().unwrap_or_default();
                let folder = match entry.header().entry_type() {
                    EntryType::Symlink => name.rsplit_once('/').map_or("", |(folder, _)| folder),
                    _ => "",
                };
                if let Some(target) = normalise(&String::from_utf8_lossy(&target), folder) {
                    members.insert(name, Member::Link { target });
                }
            }
            _ => {}
        }
    }
    Ok(members)
}

fn find(members: &HashMap<String, Member>, name: &str) -> io::Result<(u64, u64)> {
    let missing = || io::Error::new(io::ErrorKind::NotFound, "the file has no such member");
    let mut name = normalise(name, "").ok_or_else(missing)?;
    for _ in 0..LINKS_MAX {
        match members.get(&name).ok_or_else(missing)? {
            Member::Data { offset, size } => return Ok((*offset, *size)),
            Member::Link { target } => name.clone_from(target),
        }
    }
    Err(missing())
}

/// `path` seen from `folder`, without `.` and `..`; `None` when it leaves the archive.
fn normalise(path: &str, folder: &str) -> Option<String> {
    let mut components: Vec<&str> = Vec::new();
    if !path.starts_with('/') {
        components.extend(folder.split('/').filter(|component| !component.is_empty()));
    }
    for component in path.split('/') {
        match component {
            "" | "." => {}
            ".." => {
                components.pop()?;
            }
            name => components.push(name),
        }
    }
    (!components.is_empty()).then(|| components.join("/"))
}

/// A part of a file, read without moving the file's own position.
struct Section<'a> {
    file: &'a File,
    at: u64,
    end: u64,
}

impl Read for Section<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end - self.at).unwrap_or(usize::MAX);
        let want = buffer.len().min(left);
        let n = self.file.read_at(&mut buffer[..want], self.at)?;
        if n == 0 && want > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.at += n as u64;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn member_names_never_leave_the_archive() {
        for (path, folder, want) in [
            ("./a//b", "", Some("a/b")),
            ("../x/layer.tar", "y", Some("x/layer.tar")),
            ("../../x", "y", None),
            ("..", "", None),
            ("/a", "y", Some("a")),
            (".", "", None),
        ] {
            assert_eq!(normalise(path, folder).as_deref(), want, "{path} from {folder}");
        }
    }

    #[test]
    fn links_in_a_circle_end() {
        let members = HashMap::from([
            ("a".to_owned(), Member::Link { target: "b".to_owned() }),
            ("b".to_owned(), Member::Link { target: "a".to_owned() }),
        ]);
        assert_eq!(find(&members, "a").unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
