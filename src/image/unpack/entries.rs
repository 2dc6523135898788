//! A tar stream as a sequence of checked entries.
//!
//! The `tar` crate knows the header's fields; the framing is ours, because every length in it is hostile: extension
//! headers, sparse maps, names and the number of entries are bounded here, and where formats overlap the order of
//! precedence is that of Go's archive/tar, which docker and containerd read layers with. Two readers that disagree about where an
//! entry starts are how one layer shows different files to a scanner and to a runtime.

use std::io::{self, BufRead};

use tar::{EntryType, Header};

use super::EntryError;

const BLOCK: usize = 512;

/// PAX records or a GNU long name of one entry. Go's archive/tar stops at the same size.
const EXTENSION_BYTES_MAX: u64 = 1 << 20;

/// Entries of one layer, extension headers included. The largest published images have about half a million files.
const ENTRIES_MAX: u64 = 2_000_000;

/// PATH_MAX of Linux.
const PATH_BYTES_MAX: usize = 4096;

/// Pieces of one sparse file; each costs 16 bytes here and one write.
const SPARSE_PIECES_MAX: usize = 64 << 10;

/// Extended attributes of one entry; real files have one or two.
const XATTRS_MAX: usize = 256;

/// What an entry makes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    File { size: u64, sparse: Option<Vec<Piece>> },
    Directory,
    Symlink { target: Vec<u8> },
    Hardlink { target: Vec<u8> },
    Device { block: bool, major: u32, minor: u32 },
    Fifo,
}

/// `length` bytes of data at `offset`; what lies between pieces is a hole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) offset: u64,
    pub(super) length: u64,
}

/// One entry, its data still in the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// As in the archive, unchecked except for its length and NUL.
    pub(super) path: Vec<u8>,
    pub(super) kind: Kind,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime_s: i64,
    pub(super) mtime_ns: u32,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Why the stream is no acceptable tar: the entry as far as its name is known, and what is wrong with it.
#[derive(Debug)]
pub(super) enum TarError {
    Read(io::Error),
    Entry { path: Vec<u8>, source: EntryError },
}

/// The reader. `R` delivers the plain bytes.
pub(super) struct Entries<R> {
    input: R,
    /// Data bytes of the current entry that were not read yet.
    data_left: u64,
    /// Zeros after it, up to the next block.
    padding: u64,
    headers: u64,
    ended: bool,
}

#[derive(Default)]
struct Extensions {
    long_path: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<(i64, u32)>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    sparse_name: Option<Vec<u8>>,
    sparse_size: Option<u64>,
    sparse_major: Option<u64>,
    sparse_map: Vec<u64>,
    is_sparse: bool,
}

impl<R: BufRead> Entries<R> {
    pub(super) fn new(input: R) -> Self {
        Self { input, data_left: 0, padding: 0, headers: 0, ended: false }
    }

    pub(super) fn into_inner(self) -> R {
        self.input
    }

    /// The next entry; what was not read of the one before is skipped.
    pub(super) fn next(&mut self) -> Result<Option<Entry>, TarError> {
        let mut extensions = Extensions::default();
        let mut extended = false;
        loop {
            self.skip_data().map_err(TarError::Read)?;
            if self.ended {
                return Ok(None);
            }
            let Some(header) = self.header()? else {
                self.ended = true;
                if extended {
                    return Err(bad(extensions.name(), EntryError::Truncated));
                }
                return Ok(None);
            };
            self.headers += 1;
            let name = header.path_bytes().into_owned();
            if self.headers > ENTRIES_MAX {
                return Err(bad(&name, EntryError::TooMany { limit: ENTRIES_MAX }));
            }
            let size = header.entry_size().map_err(|_| bad(&name, EntryError::Number { field: "size" }))?;
            if size > i64::MAX as u64 {
                return Err(bad(&name, EntryError::Number { field: "size" }));
            }
            let kind = header.entry_type();
            match kind {
                EntryType::XHeader | EntryType::GNULongName | EntryType::GNULongLink => {
                    if size > EXTENSION_BYTES_MAX {
                        return Err(bad(&name, EntryError::Extension { size, limit: EXTENSION_BYTES_MAX }));
                    }
                    self.expect_data(size);
                    let bytes = self.read_data(&name)?;
                    extended = true;
                    match kind {
                        EntryType::XHeader => {
                            extensions.parse_pax(&bytes).map_err(|source| bad(&name, source))?;
                        }
                        EntryType::GNULongName => extensions.long_path = Some(until_nul(&bytes)),
                        _ => extensions.long_link = Some(until_nul(&bytes)),
                    }
                }
                // Docker and containerd ignore global headers: git archive writes its commit id there.
                EntryType::XGlobalHeader => {
                    if size > EXTENSION_BYTES_MAX {
                        return Err(bad(&name, EntryError::Extension { size, limit: EXTENSION_BYTES_MAX }));
                    }
                    self.expect_data(size);
                }
                _ => return self.finish(&header, kind, size, extensions).map(Some),
            }
        }
    }

    /// Reads data of the current entry; 0 at its end.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = usize::try_from(self.data_left).unwrap_or(usize::MAX).min(buffer.len());
        if want == 0 {
            return Ok(0);
        }
        let n = self.input.read(&mut buffer[..want])?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.data_left -= n as u64;
        Ok(n)
    }

    /// The buffered part of the current entry's data without a copy; empty at its end. To be consumed by
    /// [`Entries::consume`].
    pub(super) fn fill(&mut self) -> io::Result<&[u8]> {
        let left = usize::try_from(self.data_left).unwrap_or(usize::MAX);
        if left == 0 {
            return Ok(&[]);
        }
        let available = self.input.fill_buf()?;
        if available.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(&available[..available.len().min(left)])
    }

    pub(super) fn consume(&mut self, n: usize) {
        self.input.consume(n);
        self.data_left -= n as u64;
    }

    fn finish(
        &mut self,
        header: &Header,
        kind: EntryType,
        header_size: u64,
        mut extensions: Extensions,
    ) -> Result<Entry, TarError> {
        let path = extensions
            .long_path
            .take()
            .or_else(|| extensions.sparse_name.take())
            .or_else(|| extensions.path.take())
            .unwrap_or_else(|| header.path_bytes().into_owned());
        let fail = |source| bad(&path, source);
        if path.len() > PATH_BYTES_MAX {
            return Err(fail(EntryError::LongPath { limit: PATH_BYTES_MAX }));
        }
        if path.contains(&0) {
            return Err(fail(EntryError::Nul));
        }
        let link = extensions
            .long_link
            .take()
            .or_else(|| extensions.link.take())
            .or_else(|| header.link_name_bytes().map(std::borrow::Cow::into_owned))
            .unwrap_or_default();
        let id = |field, pax: Option<u64>, own: io::Result<u64>| {
            let value = match pax {
                Some(value) => value,
                None => own.map_err(|_| fail(EntryError::Number { field }))?,
            };
            // u32::MAX is chown's "leave it as it is".
            match u32::try_from(value) {
                Ok(id) if id != u32::MAX => Ok(id),
                _ => Err(fail(EntryError::Id { field, value })),
            }
        };
        let uid = id("uid", extensions.uid, header.uid())?;
        let gid = id("gid", extensions.gid, header.gid())?;
        let mode = header.mode().map_err(|_| fail(EntryError::Number { field: "mode" }))? & 0o7777;
        let (mtime_s, mtime_ns) = match extensions.mtime {
            Some(mtime) => mtime,
            None => {
                (header.mtime().map_err(|_| fail(EntryError::Number { field: "mtime" }))?.cast_signed(), 0)
            }
        };
        let size = extensions.size.unwrap_or(header_size);
        // A directory in the oldest format is a file whose name ends in a slash.
        let kind = match kind {
            EntryType::Regular if header.as_bytes()[156] == 0 && path.ends_with(b"/") => EntryType::Directory,
            kind => kind,
        };
        let kind = match kind {
            EntryType::Regular | EntryType::Continuous => {
                self.expect_data(size);
                let sparse = self.pax_sparse(&path, &mut extensions)?;
                let size = if sparse.is_some() { extensions.sparse_size.unwrap_or(0) } else { size };
                Kind::File { size, sparse }
            }
            EntryType::GNUSparse => {
                let (size_real, pieces) = self.gnu_sparse(&path, header)?;
                self.expect_data(size);
                check_pieces(&pieces, size_real, size).map_err(fail)?;
                Kind::File { size: size_real, sparse: Some(pieces) }
            }
            // Entries below have no data whatever their size says; Go's archive/tar reads them so.
            EntryType::Directory => Kind::Directory,
            EntryType::Symlink | EntryType::Link => {
                if link.contains(&0) {
                    return Err(fail(EntryError::Nul));
                }
                if link.len() > PATH_BYTES_MAX {
                    return Err(fail(EntryError::LongPath { limit: PATH_BYTES_MAX }));
                }
                if kind == EntryType::Link {
                    Kind::Hardlink { target: link }
                } else {
                    Kind::Symlink { target: link }
                }
            }
            EntryType::Char | EntryType::Block => {
                let number = |field, value: io::Result<Option<u32>>| match value {
                    Ok(Some(value)) => Ok(value),
                    _ => Err(fail(EntryError::Number { field })),
                };
                Kind::Device {
                    block: kind == EntryType::Block,
                    major: number("devmajor", header.device_major())?,
                    minor: number("devminor", header.device_minor())?,
                }
            }
            EntryType::Fifo => Kind::Fifo,
            other => return Err(fail(EntryError::Type { byte: other.as_byte() })),
        };
        Ok(Entry { path, kind, mode, uid, gid, mtime_s, mtime_ns, xattrs: extensions.xattrs })
    }

    /// The next header block; `None` at the end marker or where the stream ends between entries.
    fn header(&mut self) -> Result<Option<Header>, TarError> {
        let mut header = Header::new_old();
        let block = header.as_mut_bytes();
        let mut filled = 0;
        while filled < BLOCK {
            let n = self.input.read(&mut block[filled..]).map_err(TarError::Read)?;
            if n == 0 {
                break;
            }
            filled += n;
        }
        if filled == 0 {
            return Ok(None);
        }
        if filled < BLOCK {
            return Err(bad(b"", EntryError::Truncated));
        }
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let expected = header.cksum().map_err(|_| bad(&header.path_bytes(), EntryError::Checksum))?;
        let bytes = header.as_bytes();
        let sum = |value: fn(u8) -> i64| {
            let field = 148..156;
            bytes
                .iter()
                .enumerate()
                .map(|(at, byte)| if field.contains(&at) { i64::from(b' ') } else { value(*byte) })
                .sum::<i64>()
        };
        // Some old writers summed signed bytes.
        let expected = i64::from(expected);
        if sum(i64::from) != expected && sum(|byte| i64::from(byte.cast_signed())) != expected {
            return Err(bad(&header.path_bytes(), EntryError::Checksum));
        }
        Ok(Some(header))
    }

    fn expect_data(&mut self, size: u64) {
        self.data_left = size;
        self.padding = size.next_multiple_of(BLOCK as u64) - size;
    }

    fn skip_data(&mut self) -> io::Result<()> {
        let mut left = self.data_left.saturating_add(self.padding);
        while left > 0 {
            let available = self.input.fill_buf()?.len();
            if available == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let n = usize::try_from(left).unwrap_or(usize::MAX).min(available);
            self.input.consume(n);
            left -= n as u64;
        }
        self.data_left = 0;
        self.padding = 0;
        Ok(())
    }

    /// All data of an extension header, whose size was checked.
    fn read_data(&mut self, name: &[u8]) -> Result<Vec<u8>, TarError> {
        let mut bytes = Vec::new();
        loop {
            let part = self.fill().map_err(|err| truncated(name, err))?;
            if part.is_empty() {
                return Ok(bytes);
            }
            bytes.extend_from_slice(part);
            let n = part.len();
            self.consume(n);
        }
    }

    /// GNU's own sparse format: four pieces in the header, more in blocks before the data.
    fn gnu_sparse(&mut self, path: &[u8], header: &Header) -> Result<(u64, Vec<Piece>), TarError> {
        let fail = |source| bad(path, source);
        let gnu = header.as_gnu().ok_or_else(|| fail(EntryError::Sparse("it is not in a GNU header")))?;
        let size = gnu.real_size().map_err(|_| fail(EntryError::Number { field: "realsize" }))?;
        let mut pieces = Vec::new();
        let add = |pieces: &mut Vec<Piece>, sparse: &[tar::GnuSparseHeader]| {
            for piece in sparse.iter().take_while(|piece| !piece.is_empty()) {
                if pieces.len() == SPARSE_PIECES_MAX {
                    return Err(fail(EntryError::Sparse("it has too many pieces")));
                }
                let number = |value: io::Result<u64>| {
                    value.map_err(|_| fail(EntryError::Sparse("a number in its map is malformed")))
                };
                pieces.push(Piece { offset: number(piece.offset())?, length: number(piece.length())? });
            }
            Ok(())
        };
        add(&mut pieces, &gnu.sparse)?;
        let mut more = gnu.is_extended();
        while more {
            let mut block = tar::GnuExtSparseHeader::new();
            self.input.read_exact(block.as_mut_bytes()).map_err(|err| truncated(path, err))?;
            let before = pieces.len();
            add(&mut pieces, block.sparse())?;
            if pieces.len() == before && block.is_extended() {
                return Err(fail(EntryError::Sparse("its map goes on without a piece")));
            }
            more = block.is_extended();
        }
        Ok((size, pieces))
    }

    /// The three sparse formats in PAX records: 0.0 and 0.1 keep the map in the header, 1.0 before the data.
    fn pax_sparse(
        &mut self,
        path: &[u8],
        extensions: &mut Extensions,
    ) -> Result<Option<Vec<Piece>>, TarError> {
        let fail = |source| bad(path, source);
        if !extensions.is_sparse {
            return Ok(None);
        }
        let Some(size) = extensions.sparse_size else {
            return Err(fail(EntryError::Sparse("its real size is missing")));
        };
        let numbers = match extensions.sparse_major {
            Some(1) => self.sparse_map(path)?,
            Some(0) | None => std::mem::take(&mut extensions.sparse_map),
            Some(_) => return Err(fail(EntryError::Sparse("its format is none of 0.0, 0.1 and 1.0"))),
        };
        if !numbers.len().is_multiple_of(2) {
            return Err(fail(EntryError::Sparse("its map has an odd number of numbers")));
        }
        let pieces: Vec<Piece> =
            numbers.chunks_exact(2).map(|pair| Piece { offset: pair[0], length: pair[1] }).collect();
        check_pieces(&pieces, size, self.data_left).map_err(fail)?;
        Ok(Some(pieces))
    }

    /// The map of format 1.0: decimal numbers, one a line, the first the number of pieces, filled up to a block.
    fn sparse_map(&mut self, path: &[u8]) -> Result<Vec<u64>, TarError> {
        let fail = |text| bad(path, EntryError::Sparse(text));
        let mut numbers = Vec::new();
        let mut pieces = None;
        let mut number: Option<u64> = None;
        let mut block = [0u8; BLOCK];
        loop {
            let mut filled = 0;
            while filled < BLOCK {
                match self.read(&mut block[filled..]).map_err(|err| truncated(path, err))? {
                    0 => return Err(fail("its map is longer than its data")),
                    n => filled += n,
                }
            }
            for byte in block {
                match byte {
                    b'0'..=b'9' => {
                        number = number
                            .unwrap_or(0)
                            .checked_mul(10)
                            .and_then(|value| value.checked_add(u64::from(byte - b'0')));
                        if number.is_none() {
                            return Err(fail("a number in its map is too large"));
                        }
                    }
                    b'\n' => {
                        let value = number.take().ok_or_else(|| fail("its map has an empty line"))?;
                        match pieces {
                            None if value > SPARSE_PIECES_MAX as u64 => {
                                return Err(fail("it has too many pieces"));
                            }
                            None => pieces = Some(value as usize),
                            Some(_) => numbers.push(value),
                        }
                        if pieces.is_some_and(|pieces| numbers.len() == pieces * 2) {
                            return Ok(numbers);
                        }
                    }
                    _ => return Err(fail("its map is not made of decimal numbers")),
                }
            }
        }
    }
}

impl Extensions {
    /// The best name so far, for an error about an entry whose header is missing.
    fn name(&self) -> &[u8] {
        self.long_path.as_deref().or(self.path.as_deref()).unwrap_or_default()
    }

    fn parse_pax(&mut self, mut bytes: &[u8]) -> Result<(), EntryError> {
        while !bytes.is_empty() {
            let space = bytes.iter().take(20).position(|byte| *byte == b' ').ok_or(EntryError::Pax)?;
            let length = usize::try_from(decimal(&bytes[..space]).ok_or(EntryError::Pax)?)
                .map_err(|_| EntryError::Pax)?;
            if length <= space + 1 || length > bytes.len() || bytes[length - 1] != b'\n' {
                return Err(EntryError::Pax);
            }
            let record = &bytes[space + 1..length - 1];
            bytes = &bytes[length..];
            let equals = record.iter().position(|byte| *byte == b'=').ok_or(EntryError::Pax)?;
            self.set(&record[..equals], &record[equals + 1..])?;
        }
        Ok(())
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), EntryError> {
        let number = |field| {
            if value.is_empty() {
                return Ok(None);
            }
            decimal(value).map(Some).ok_or(EntryError::Number { field })
        };
        // An empty value takes back what an earlier record said (pax(1), "extended header keyword/value pairs").
        let text = || (!value.is_empty()).then(|| value.to_vec());
        match key {
            b"path" => self.path = text(),
            b"linkpath" => self.link = text(),
            b"size" => {
                self.size = number("size")?;
                if self.size.is_some_and(|size| size > i64::MAX as u64) {
                    return Err(EntryError::Number { field: "size" });
                }
            }
            b"uid" => self.uid = number("uid")?,
            b"gid" => self.gid = number("gid")?,
            b"mtime" => {
                self.mtime = if value.is_empty() {
                    None
                } else {
                    Some(pax_time(value).ok_or(EntryError::Number { field: "mtime" })?)
                };
            }
            b"GNU.sparse.major" => {
                self.is_sparse = true;
                self.sparse_major = number("GNU.sparse.major")?;
            }
            b"GNU.sparse.name" => self.sparse_name = text(),
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => self.sparse_size = number("GNU.sparse.size")?,
            b"GNU.sparse.map" => {
                self.is_sparse = true;
                self.sparse_map.clear();
                for part in value.split(|byte| *byte == b',').filter(|part| !part.is_empty()) {
                    let value = decimal(part).ok_or(EntryError::Number { field: "GNU.sparse.map" })?;
                    self.push_sparse(value)?;
                }
            }
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => {
                self.is_sparse = true;
                let even = self.sparse_map.len().is_multiple_of(2);
                if even != (key == b"GNU.sparse.offset") {
                    return Err(EntryError::Sparse("its offsets and sizes do not alternate"));
                }
                let value = decimal(value).ok_or(EntryError::Number { field: "GNU.sparse.offset" })?;
                self.push_sparse(value)?;
            }
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    if name.is_empty() || name.contains(&0) {
                        return Err(EntryError::Pax);
                    }
                    self.xattrs.retain(|(known, _)| known != name);
                    if self.xattrs.len() == XATTRS_MAX {
                        return Err(EntryError::Xattrs { limit: XATTRS_MAX });
                    }
                    self.xattrs.push((name.to_vec(), value.to_vec()));
                }
            }
        }
        Ok(())
    }

    fn push_sparse(&mut self, value: u64) -> Result<(), EntryError> {
        if self.sparse_map.len() == SPARSE_PIECES_MAX * 2 {
            return Err(EntryError::Sparse("it has too many pieces"));
        }
        self.sparse_map.push(value);
        Ok(())
    }
}

/// Pieces must rise, not overlap, lie in the file, and take exactly the data there is.
fn check_pieces(pieces: &[Piece], size: u64, data: u64) -> Result<(), EntryError> {
    let mut end = 0u64;
    let mut sum = 0u64;
    for piece in pieces {
        let piece_end = piece
            .offset
            .checked_add(piece.length)
            .filter(|piece_end| *piece_end <= size && piece.offset >= end)
            .ok_or(EntryError::Sparse("its pieces overlap or leave the file"))?;
        end = piece_end;
        // Cannot overflow: the sum is at most `end`.
        sum += piece.length;
    }
    if sum == data { Ok(()) } else { Err(EntryError::Sparse("its pieces and its data differ in size")) }
}

fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// `-1.5` is half a second before -1: seconds round down, nanoseconds are never negative.
fn pax_time(text: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(text).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let negative = whole.starts_with('-');
    let seconds: i64 = whole.parse().ok()?;
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let nanos = fraction
        .bytes()
        .chain(std::iter::repeat(b'0'))
        .take(9)
        .fold(0u32, |nanos, digit| nanos * 10 + u32::from(digit - b'0'));
    if negative && nanos > 0 {
        Some((seconds.checked_sub(1)?, 1_000_000_000 - nanos))
    } else {
        Some((seconds, nanos))
    }
}

fn until_nul(bytes: &[u8]) -> Vec<u8> {
    bytes.iter().take_while(|byte| **byte != 0).copied().collect()
}

fn bad(path: &[u8], source: EntryError) -> TarError {
    TarError::Entry { path: path.to_vec(), source }
}

fn truncated(path: &[u8], err: io::Error) -> TarError {
    if err.kind() == io::ErrorKind::UnexpectedEof {
        bad(path, EntryError::Truncated)
    } else {
        TarError::Read(err)
    }
}
