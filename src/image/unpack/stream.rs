//! From the bytes of a registry to the bytes of a tar: counted, hashed, decompressed, bounded.
//!
//! [`decompress`] runs in the caller's thread, reading, hashing and inflating; what it makes goes through a short queue
//! of chunks to a [`ChunkReader`] in another thread, which hashes the plain bytes and feeds the tar reader. So inflating
//! and writing files overlap, and neither gets more than [`QUEUE_CHUNKS`] chunks ahead.

use std::io::{self, BufRead, BufReader, Read};
use std::sync::mpsc::{Receiver, SyncSender};

use sha2::{Digest as _, Sha256};

use super::{Compression, UnpackError};
use crate::id::Digest;

/// One hand-over between the two threads. Smaller costs wake-ups, larger costs cache misses and memory:
/// a pull of four layers holds 4 × (QUEUE_CHUNKS + 2) of these.
pub(super) const CHUNK_BYTES: usize = 256 << 10;

/// Chunks that may wait between the two threads.
pub(super) const QUEUE_CHUNKS: usize = 4;

/// Compressed bytes read from the source at once.
const READ_BYTES: usize = 128 << 10;

/// A layer may always grow to this before [`RATIO_MAX`] is looked at.
const RATIO_FREE_BYTES: u64 = 4 << 30;

/// Plain bytes per compressed byte. Deflate cannot exceed 1032:1, so only zstd can be refused by this, and only where
/// more than [`RATIO_FREE_BYTES`] came from a few MiB: nothing but a bomb looks like that.
const RATIO_MAX: u64 = 1100;

/// zstd's window: 128 MiB, the most `zstd --ultra` makes without `--long`. It is also the memory one layer can claim.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;

/// What travels from the inflating to the writing thread.
pub(super) enum Chunk {
    Data(Vec<u8>),
    /// The stream ended as it should. Without this the writer must not believe in the end.
    End,
}

/// Why reading or inflating stopped.
#[derive(Debug)]
pub(super) enum SourceError {
    Unpack(UnpackError),
    /// The writing thread has gone; its own error tells why.
    WriterGone,
}

/// What the registry announced about the bytes of a blob.
#[derive(Debug, Clone)]
pub(super) struct BlobExpectation {
    pub(super) digest: Digest,
    pub(super) size: u64,
}

/// Reads `source` to its end, checks it against `expect`, and sends its plain bytes to `chunks`. Buffers come back
/// through `spare`. Blocking.
pub(super) fn decompress(
    source: impl Read,
    expect: Option<&BlobExpectation>,
    plain_bytes_max: u64,
    progress: &dyn Fn(u64),
    chunks: &SyncSender<Chunk>,
    spare: &Receiver<Vec<u8>>,
) -> Result<Compression, SourceError> {
    let counted = Counted {
        source,
        hash: expect.map(|_| Sha256::new()),
        bytes: 0,
        bytes_max: expect.map_or(u64::MAX, |expect| expect.size),
        too_long: false,
        progress,
    };
    let mut input = BufReader::with_capacity(READ_BYTES, counted);
    let result = pump(&mut input, plain_bytes_max, chunks, spare);
    let counted = input.get_mut();
    if let (Some(expect), true) = (expect, counted.too_long) {
        return Err(SourceError::Unpack(UnpackError::TooLong {
            digest: expect.digest.clone(),
            size: expect.size,
        }));
    }
    let compression = result?;
    // Decoders stop at the end of what they understand; what follows belongs to the digest all the same.
    let rest = io::copy(&mut input, &mut io::sink());
    let counted = input.get_mut();
    if let Some(expect) = expect {
        if counted.too_long {
            return Err(SourceError::Unpack(UnpackError::TooLong {
                digest: expect.digest.clone(),
                size: expect.size,
            }));
        }
        rest.map_err(|source| SourceError::Unpack(UnpackError::Read { source }))?;
        if counted.bytes != expect.size {
            return Err(SourceError::Unpack(UnpackError::TooShort {
                digest: expect.digest.clone(),
                size: expect.size,
                actual: counted.bytes,
            }));
        }
        let actual = finish(counted.hash.take().expect("a hash is made whenever a digest is expected"));
        if actual != expect.digest {
            return Err(SourceError::Unpack(UnpackError::WrongDigest {
                expected: expect.digest.clone(),
                actual,
            }));
        }
    } else {
        rest.map_err(|source| SourceError::Unpack(UnpackError::Read { source }))?;
    }
    chunks.send(Chunk::End).map_err(|_| SourceError::WriterGone)?;
    Ok(compression)
}

/// Inflates by the magic number, as every registry client does: media types are often wrong, and the diff id proves
/// that the right bytes came out.
fn pump<R: Read>(
    input: &mut BufReader<Counted<'_, R>>,
    plain_bytes_max: u64,
    chunks: &SyncSender<Chunk>,
    spare: &Receiver<Vec<u8>>,
) -> Result<Compression, SourceError> {
    let compression = sniff(input).map_err(|source| SourceError::Unpack(UnpackError::Read { source }))?;
    let decompress = |source| SourceError::Unpack(UnpackError::Decompress { compression, source });
    match compression {
        Compression::None => send_all(input, Compression::None, plain_bytes_max, chunks, spare),
        Compression::Gzip => send_all(
            &mut flate2::bufread::MultiGzDecoder::new(input),
            compression,
            plain_bytes_max,
            chunks,
            spare,
        ),
        Compression::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(input).map_err(decompress)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG_MAX).map_err(decompress)?;
            send_all(&mut decoder, compression, plain_bytes_max, chunks, spare)
        }
    }
}

/// How many compressed bytes a decoder has taken so far.
trait Consumed: Read {
    fn consumed(&self) -> u64;
}

impl<R: Read> Consumed for &mut BufReader<Counted<'_, R>> {
    fn consumed(&self) -> u64 {
        self.get_ref().bytes
    }
}

impl<R: Read> Consumed for BufReader<Counted<'_, R>> {
    fn consumed(&self) -> u64 {
        self.get_ref().bytes
    }
}

impl<R: Read> Consumed for flate2::bufread::MultiGzDecoder<&mut BufReader<Counted<'_, R>>> {
    fn consumed(&self) -> u64 {
        self.get_ref().get_ref().bytes
    }
}

impl<R: Read> Consumed for zstd::stream::read::Decoder<'_, &mut BufReader<Counted<'_, R>>> {
    fn consumed(&self) -> u64 {
        self.get_ref().get_ref().bytes
    }
}

fn send_all(
    plain: &mut impl Consumed,
    compression: Compression,
    plain_bytes_max: u64,
    chunks: &SyncSender<Chunk>,
    spare: &Receiver<Vec<u8>>,
) -> Result<Compression, SourceError> {
    let mut total = 0u64;
    loop {
        let mut buffer = spare.try_recv().unwrap_or_default();
        buffer.resize(CHUNK_BYTES, 0);
        let filled = fill(plain, &mut buffer).map_err(|source| {
            SourceError::Unpack(match compression {
                Compression::None => UnpackError::Read { source },
                _ => UnpackError::Decompress { compression, source },
            })
        })?;
        if filled == 0 {
            return Ok(compression);
        }
        total += filled as u64;
        if total > plain_bytes_max {
            return Err(SourceError::Unpack(UnpackError::TooLarge { limit_bytes: plain_bytes_max }));
        }
        if total > RATIO_FREE_BYTES && total / plain.consumed().max(1) > RATIO_MAX {
            return Err(SourceError::Unpack(UnpackError::Bomb {
                plain_bytes: total,
                compressed_bytes: plain.consumed(),
            }));
        }
        buffer.truncate(filled);
        chunks.send(Chunk::Data(buffer)).map_err(|_| SourceError::WriterGone)?;
    }
}

fn sniff(input: &mut impl BufRead) -> io::Result<Compression> {
    let head = input.fill_buf()?;
    Ok(match head {
        [0x1f, 0x8b, ..] => Compression::Gzip,
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Compression::Zstd,
        // A zstd skippable frame (RFC 8878 §3.1.2), which zstd:chunked puts first.
        [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Compression::Zstd,
        _ => Compression::None,
    })
}

fn fill(source: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match source.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
            Err(err) => return Err(err),
        }
    }
    Ok(filled)
}

fn finish(hash: Sha256) -> Digest {
    Digest::from_bytes(&hash.finalize().into())
}

/// The digest of `bytes`.
pub(crate) fn digest_of(bytes: &[u8]) -> Digest {
    finish(Sha256::new_with_prefix(bytes))
}

/// Counts and hashes what is read, and refuses the first byte beyond the announced size.
struct Counted<'a, R> {
    source: R,
    hash: Option<Sha256>,
    bytes: u64,
    bytes_max: u64,
    too_long: bool,
    progress: &'a dyn Fn(u64),
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        // At the start a magic number must arrive whole, and a large read costs fewer turns of the progress bar.
        let n = if self.bytes == 0 { fill(&mut self.source, buffer)? } else { self.source.read(buffer)? };
        self.bytes += n as u64;
        if self.bytes > self.bytes_max {
            self.too_long = true;
            return Err(io::Error::other("more bytes than announced"));
        }
        if let Some(hash) = &mut self.hash {
            hash.update(&buffer[..n]);
        }
        if n > 0 {
            (self.progress)(self.bytes);
        }
        Ok(n)
    }
}

/// The writing thread's end of the queue: a reader that hashes what it hands out.
pub(super) struct ChunkReader {
    chunks: Receiver<Chunk>,
    spare: SyncSender<Vec<u8>>,
    current: Vec<u8>,
    at: usize,
    ended: bool,
    hash: Sha256,
}

impl ChunkReader {
    pub(super) fn new(chunks: Receiver<Chunk>, spare: SyncSender<Vec<u8>>) -> Self {
        Self { chunks, spare, current: Vec::new(), at: 0, ended: false, hash: Sha256::new() }
    }

    /// Reads what follows the archive's end marker and returns the digest of everything.
    pub(super) fn finish(mut self) -> io::Result<Digest> {
        while !self.fill_buf()?.is_empty() {
            let n = self.current.len() - self.at;
            self.consume(n);
        }
        Ok(finish(self.hash))
    }
}

impl BufRead for ChunkReader {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.at == self.current.len() && !self.ended {
            match self.chunks.recv() {
                Ok(Chunk::Data(data)) => {
                    self.hash.update(&data);
                    // A full return queue means enough buffers exist already.
                    let _ = self.spare.try_send(std::mem::replace(&mut self.current, data));
                    self.at = 0;
                }
                Ok(Chunk::End) => self.ended = true,
                Err(_) => return Err(io::Error::new(io::ErrorKind::BrokenPipe, "the source failed")),
            }
        }
        Ok(&self.current[self.at..])
    }

    fn consume(&mut self, n: usize) {
        self.at += n;
    }
}

impl Read for ChunkReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let n = available.len().min(buffer.len());
        buffer[..n].copy_from_slice(&available[..n]);
        self.consume(n);
        Ok(n)
    }
}
