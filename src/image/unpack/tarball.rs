//! Writes layers for tests, malformed ones included: every field is set by hand and nothing is checked.

use std::io::Write;

use tar::{EntryType, Header};

use crate::id::Digest;

/// A tar being written.
#[derive(Default, Clone)]
pub(crate) struct Tarball {
    bytes: Vec<u8>,
}

/// One entry with good defaults, to be changed before it is added.
pub(crate) struct Item<'a> {
    pub(crate) name: &'a str,
    pub(crate) kind: EntryType,
    pub(crate) link: &'a str,
    pub(crate) mode: u32,
    pub(crate) uid: u64,
    pub(crate) gid: u64,
    pub(crate) mtime: u64,
    /// In the header; the data is as long as it is.
    pub(crate) size: Option<u64>,
    pub(crate) data: &'a [u8],
    pub(crate) device: (u32, u32),
}

impl Default for Item<'_> {
    fn default() -> Self {
        Self {
            name: "file",
            kind: EntryType::Regular,
            link: "",
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: 1_000_000_000,
            size: None,
            data: b"",
            device: (0, 0),
        }
    }
}

impl Tarball {
    pub(crate) fn item(mut self, item: &Item<'_>) -> Self {
        let mut header = Header::new_gnu();
        header.as_old_mut().name[..item.name.len().min(100)]
            .copy_from_slice(&item.name.as_bytes()[..item.name.len().min(100)]);
        header.as_old_mut().linkname[..item.link.len()].copy_from_slice(item.link.as_bytes());
        header.set_entry_type(item.kind);
        header.set_mode(item.mode);
        header.set_uid(item.uid);
        header.set_gid(item.gid);
        header.set_mtime(item.mtime);
        header.set_size(item.size.unwrap_or(item.data.len() as u64));
        if matches!(item.kind, EntryType::Char | EntryType::Block) {
            header.set_device_major(item.device.0).unwrap();
            header.set_device_minor(item.device.1).unwrap();
        }
        if item.name.len() > 100 {
            self = self.raw(b'L', "././@LongLink", format!("{}\0", item.name).as_bytes());
        }
        header.set_cksum();
        self.block(&header, item.data)
    }

    pub(crate) fn file(self, name: &str, data: &str) -> Self {
        self.item(&Item { name, data: data.as_bytes(), ..Item::default() })
    }

    pub(crate) fn directory(self, name: &str) -> Self {
        self.item(&Item { name, kind: EntryType::Directory, mode: 0o755, ..Item::default() })
    }

    pub(crate) fn symlink(self, name: &str, link: &str) -> Self {
        self.item(&Item { name, link, kind: EntryType::Symlink, mode: 0o777, ..Item::default() })
    }

    pub(crate) fn hardlink(self, name: &str, link: &str) -> Self {
        self.item(&Item { name, link, kind: EntryType::Link, ..Item::default() })
    }

    /// PAX records for the next entry.
    pub(crate) fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut data = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut length = rest + 1;
            while length.to_string().len() + rest != length {
                length += 1;
            }
            data.extend_from_slice(format!("{length} {key}=").as_bytes());
            data.extend_from_slice(value);
            data.push(b'\n');
        }
        self.raw(b'x', "pax", &data)
    }

    /// An entry of any type with any data.
    pub(crate) fn raw(self, kind: u8, name: &str, data: &[u8]) -> Self {
        let mut header = Header::new_gnu();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(EntryType::new(kind));
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(data.len() as u64);
        header.set_cksum();
        self.block(&header, data)
    }

    pub(crate) fn block(mut self, header: &Header, data: &[u8]) -> Self {
        self.bytes.extend_from_slice(header.as_bytes());
        self.bytes.extend_from_slice(data);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self
    }

    /// The archive with its end marker.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.bytes.resize(self.bytes.len() + 1024, 0);
        self.bytes
    }

    /// The archive as it is, without an end.
    pub(crate) fn unfinished(self) -> Vec<u8> {
        self.bytes
    }
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub(crate) fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).unwrap()
}

pub(crate) fn digest(bytes: &[u8]) -> Digest {
    super::digest_of(bytes)
}
