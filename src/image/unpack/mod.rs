//! Turning a layer's stream into a directory, whoever wrote the layer.
//!
//! ```text
//! source ─▶ stream: count, hash, inflate ─(queue of chunks)▶ stream: hash ─▶ entries: parse ─▶ tree: write
//!           the caller's thread                               a second thread
//! ```
//!
//! Nothing here knows images or records: [`unpack`] fills an empty directory and says what it wrote. A failure leaves
//! the directory half filled; the caller throws it away. Nothing is ever written outside the directory (`tree.rs`
//! says how), and every length is bounded (`stream.rs` for bytes, `entries.rs` for headers).
//!
//! Whiteouts become overlayfs's: `.wh.NAME` a character device 0:0 called NAME, `.wh..wh..opq` the attribute
//! `trusted.overlay.opaque=y` of its directory (kernel, Documentation/filesystems/overlayfs.rst, "whiteouts and
//! opaque directories").

mod entries;
mod stream;
mod tree;

#[cfg(test)]
mod hostile;
#[cfg(test)]
mod roundtrip;
#[cfg(test)]
pub(super) mod tarball;

use std::fmt;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::sync::mpsc::sync_channel;

use self::entries::{Entries, Kind, TarError};
pub(super) use self::stream::digest_of;
use self::stream::{BlobExpectation, ChunkReader, SourceError};
use self::tree::Tree;
pub(super) use self::tree::{open_directory, remove_tree};
use crate::id::Digest;

/// How a layer's blob is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "plain",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        })
    }
}

/// Limits of one layer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Plain bytes of the tar, and the sizes of all files in it (holes included).
    pub(crate) plain_bytes_max: u64,
}

impl Default for Limits {
    /// 64 GiB: twice the largest machine learning images seen; a bomb must not fill the disk of a node.
    fn default() -> Self {
        Self { plain_bytes_max: 64 << 30 }
    }
}

/// What is known about a blob before its first byte.
#[derive(Debug, Clone)]
pub(super) struct Expectation {
    /// `None` where only the plain content has a name, as in docker-archive files.
    pub(super) blob: Option<(Digest, u64)>,
    pub(super) diff_id: Option<Digest>,
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Unpacked {
    pub(super) diff_id: Digest,
    /// Disk space in blocks of 4 KiB, holes not counted.
    pub(super) disk_bytes: u64,
    pub(super) inodes: u64,
}

/// Why a layer was refused. The directory it was unpacked into holds a part of it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UnpackError {
    #[error("read the layer")]
    Read {
        #[source]
        source: io::Error,
    },
    #[error("decompress the {compression} layer")]
    Decompress {
        compression: Compression,
        #[source]
        source: io::Error,
    },
    #[error("the blob {digest} has more than the {size} bytes its manifest announces")]
    TooLong { digest: Digest, size: u64 },
    #[error("the blob {digest} ended after {actual} of the {size} bytes its manifest announces")]
    TooShort { digest: Digest, size: u64, actual: u64 },
    #[error("the blob's digest is {actual}, its manifest says {expected}")]
    WrongDigest { expected: Digest, actual: Digest },
    #[error("the uncompressed layer's digest is {actual}, the image's config says {expected}")]
    WrongDiffId { expected: Digest, actual: Digest },
    #[error("the layer unpacks to more than {limit_bytes} bytes; raise the limit if you trust it")]
    TooLarge { limit_bytes: u64 },
    #[error("{compressed_bytes} compressed bytes have become {plain_bytes}; this is a decompression bomb")]
    Bomb { plain_bytes: u64, compressed_bytes: u64 },
    #[error("unpack the layer's entry {path:?}")]
    Entry {
        path: String,
        #[source]
        source: EntryError,
    },
    #[error("{operation}")]
    Io {
        operation: &'static str,
        #[source]
        source: io::Error,
    },
}

/// What is wrong with one entry of a layer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EntryError {
    #[error("its path is absolute")]
    Absolute,
    #[error("its path has a \"..\" component")]
    DotDot,
    #[error("its path is longer than {limit} bytes")]
    LongPath { limit: usize },
    #[error("its path holds a NUL byte")]
    Nul,
    #[error("the layer's root can only be a directory")]
    Root,
    #[error("its parent is no directory inside the layer")]
    Parent,
    #[error("the whiteout names nothing that can be removed")]
    Whiteout,
    #[error("its hard link target {target:?} is absolute or has a \"..\" component")]
    LinkTarget { target: String },
    #[error("its hard link target {target:?} is not a file of this layer")]
    LinkMissing { target: String },
    #[error("its header's checksum is wrong; this is no tar archive, or a damaged one")]
    Checksum,
    #[error("the archive ends inside it")]
    Truncated,
    #[error("its header field {field} is not a number in range")]
    Number { field: &'static str },
    #[error("its {field} {value} is not a Linux id (0 to 4294967294)")]
    Id { field: &'static str, value: u64 },
    #[error("its extension header has {size} bytes; the limit is {limit}")]
    Extension { size: u64, limit: u64 },
    #[error("its PAX records are malformed")]
    Pax,
    #[error("it has more than {limit} extended attributes")]
    Xattrs { limit: usize },
    #[error("its sparse map is invalid: {0}")]
    Sparse(&'static str),
    #[error("its type {:?} is not one a layer can have", char::from(*byte))]
    Type { byte: u8 },
    #[error("the layer has more than {limit} entries")]
    TooMany { limit: u64 },
    #[error("with it the layer's files exceed {limit_bytes} bytes; raise the limit if you trust it")]
    TooLarge { limit_bytes: u64 },
    #[error("{call}")]
    Call {
        call: &'static str,
        #[source]
        source: io::Error,
    },
}

/// Unpacks the layer in `source` into the empty directory `root` and verifies it against `expect`. `progress` is
/// called in this thread with the number of blob bytes that have come in so far. Blocking; nothing is synced.
///
/// # Errors
/// The first thing that was wrong, in the order of the stream. The entry at fault is named.
pub(super) fn unpack(
    source: impl Read,
    root: OwnedFd,
    expect: &Expectation,
    limits: Limits,
    progress: &dyn Fn(u64),
) -> Result<Unpacked, UnpackError> {
    let blob = expect.blob.clone().map(|(digest, size)| BlobExpectation { digest, size });
    let (chunks, queue) = sync_channel(stream::QUEUE_CHUNKS);
    let (spare, spares) = sync_channel(stream::QUEUE_CHUNKS + 2);
    std::thread::scope(|scope| {
        let writer = std::thread::Builder::new()
            .name("unpack".into())
            .spawn_scoped(scope, move || write_layer(ChunkReader::new(queue, spare), root, limits))
            .map_err(|source| UnpackError::Io {
                operation: "start the thread that writes the layer",
                source,
            })?;
        let read =
            stream::decompress(source, blob.as_ref(), limits.plain_bytes_max, progress, &chunks, &spares);
        drop(chunks);
        let written = writer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        match read {
            Err(SourceError::Unpack(err)) => Err(err),
            Err(SourceError::WriterGone) => match written {
                Err(err) => Err(err),
                Ok(_) => unreachable!("the writer reads until its source says that it ended"),
            },
            Ok(_) => written,
        }
    })
    .and_then(|unpacked| match &expect.diff_id {
        Some(expected) if *expected != unpacked.diff_id => {
            Err(UnpackError::WrongDiffId { expected: expected.clone(), actual: unpacked.diff_id })
        }
        _ => Ok(unpacked),
    })
}

/// The writing thread.
fn write_layer(plain: ChunkReader, root: OwnedFd, limits: Limits) -> Result<Unpacked, UnpackError> {
    let mut entries = Entries::new(plain);
    let mut tree = Tree::new(root);
    let mut file_bytes = 0u64;
    loop {
        let entry = match entries.next() {
            Ok(Some(entry)) => entry,
            Ok(None) => break,
            Err(TarError::Read(source)) => return Err(UnpackError::Read { source }),
            Err(TarError::Entry { path, source }) => return Err(named(&path, source)),
        };
        if let Kind::File { size, .. } = &entry.kind {
            file_bytes = file_bytes.saturating_add(*size);
            if file_bytes > limits.plain_bytes_max {
                return Err(named(&entry.path, EntryError::TooLarge { limit_bytes: limits.plain_bytes_max }));
            }
        }
        tree.add(&entry, &mut entries).map_err(|source| named(&entry.path, source))?;
    }
    let (disk_bytes, inodes) = tree.finish().map_err(|source| UnpackError::Io {
        operation: "set the times of the layer's directories",
        source,
    })?;
    let diff_id = entries.into_inner().finish().map_err(|source| UnpackError::Read { source })?;
    Ok(Unpacked { diff_id, disk_bytes, inodes })
}

fn named(path: &[u8], source: EntryError) -> UnpackError {
    UnpackError::Entry { path: String::from_utf8_lossy(path).into_owned(), source }
}
