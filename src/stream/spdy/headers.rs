//! Headers of streams and their compression.
//!
//! All blocks of one direction are one zlib stream with a dictionary (draft 3.1, section 2.6.10.1), flushed after each
//! block. So a block must be taken apart even if nobody wants it, and one that cannot be ends the connection; what is
//! merely wrong *in* a block ends its stream.

use std::sync::LazyLock;

use bytes::{Buf, BufMut, Bytes};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

/// Pairs of name and value in the order of the wire. Names are in lower case, and each stands here once; several values
/// are one, with a NUL between them.
pub(crate) type Headers = Vec<(String, String)>;

/// The first value of a header.
pub(super) fn first<'a>(headers: &'a Headers, name: &str) -> Option<&'a str> {
    let (_, values) = headers.iter().find(|(known, _)| known == name)?;
    values.split('\0').next()
}

/// The longest block that is taken, unpacked. 16 KiB of deflate could become 16 MiB. Kubernetes' blocks take less than 300
/// bytes, and as long as a stream lives its headers do.
const BLOCK_BYTES_MAX: usize = 8 << 10;

/// Names in a block. Kubernetes gives a stream at most four.
const NAMES_MAX: usize = 64;

/// A window of 2 KiB, of which the dictionary needs 1423 bytes. The widest would cost 128 KiB more per connection, and no
/// two blocks are further apart.
const WINDOW_BITS: u8 = 11;

/// A block that cannot be unpacked: nothing after it can be either.
#[derive(Debug, thiserror::Error)]
pub(super) enum InflateError {
    #[error("a block of headers is not compressed as SPDY says")]
    Corrupt(#[source] flate2::DecompressError),
    #[error("a block of headers is cut off or ends the compressed stream")]
    Incomplete,
    #[error("a block of headers has more than {BLOCK_BYTES_MAX} bytes")]
    TooLong,
}

/// A block that says nothing meaningful.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum HeaderError {
    #[error("a block of headers ends early or late")]
    Length,
    #[error("a block has more than {NAMES_MAX} headers")]
    TooMany,
    #[error("the name of a header is empty, not lower case or there twice")]
    Name,
    #[error("a header is not UTF-8")]
    Text,
}

/// Unpacks the blocks of one direction.
#[derive(Debug)]
pub(super) struct Inflater(Decompress);

impl Default for Inflater {
    fn default() -> Self {
        Self(Decompress::new(true))
    }
}

impl Inflater {
    pub(super) fn inflate(&mut self, mut block: &[u8]) -> Result<Vec<u8>, InflateError> {
        let mut out = vec![0; BLOCK_BYTES_MAX];
        let mut length = 0;
        loop {
            let before = (self.0.total_in(), self.0.total_out());
            let result = self.0.decompress(block, &mut out[length..], FlushDecompress::Sync);
            let (taken, given) = (self.0.total_in() - before.0, self.0.total_out() - before.1);
            block = &block[taken as usize..];
            length += given as usize;
            match result {
                Err(error) if error.needs_dictionary().is_some() => {
                    self.0.set_dictionary(&DICTIONARY).map_err(InflateError::Corrupt)?;
                }
                Err(error) => return Err(InflateError::Corrupt(error)),
                Ok(Status::StreamEnd) => return Err(InflateError::Incomplete),
                // With room to spare, all that the block holds has come out.
                Ok(_) if block.is_empty() && length < out.len() => break,
                Ok(_) if length == out.len() => return Err(InflateError::TooLong),
                Ok(_) if taken == 0 && given == 0 => return Err(InflateError::Incomplete),
                Ok(_) => {}
            }
        }
        out.truncate(length);
        Ok(out)
    }
}

/// Packs the blocks of one direction. Made when the first is sent: its state takes more memory than all the rest of an
/// idle connection.
#[derive(Debug, Default)]
pub(super) struct Deflater(Option<Compress>);

impl Deflater {
    pub(super) fn deflate(&mut self, headers: &Headers) -> Bytes {
        let block = write(headers);
        let compress = self.0.get_or_insert_with(|| {
            let mut compress = Compress::new_with_window_bits(Compression::default(), true, WINDOW_BITS);
            compress.set_dictionary(&DICTIONARY).expect("a new compressor takes a dictionary");
            compress
        });
        let mut out = Vec::with_capacity(block.len() + 64);
        let start = compress.total_in();
        loop {
            let taken = (compress.total_in() - start) as usize;
            compress
                .compress_vec(&block[taken..], &mut out, FlushCompress::Sync)
                .expect("a compressor that is never finished takes any input");
            // zlib.h: a flush is complete when there is room left.
            if out.len() < out.capacity() {
                return out.into();
            }
            out.reserve(64);
        }
    }
}

fn write(headers: &Headers) -> Vec<u8> {
    let mut block = Vec::new();
    block.put_u32(headers.len() as u32);
    for text in headers.iter().flat_map(|(name, value)| [name, value]) {
        block.put_u32(text.len() as u32);
        block.put_slice(text.as_bytes());
    }
    block
}

/// Takes an unpacked block apart.
pub(super) fn read(mut block: &[u8]) -> Result<Headers, HeaderError> {
    fn text(block: &mut &[u8]) -> Result<String, HeaderError> {
        let length = block.try_get_u32().map_err(|_| HeaderError::Length)? as usize;
        let (text, rest) = block.split_at_checked(length).ok_or(HeaderError::Length)?;
        *block = rest;
        String::from_utf8(text.to_owned()).map_err(|_| HeaderError::Text)
    }
    let names = block.try_get_u32().map_err(|_| HeaderError::Length)?;
    if names as usize > NAMES_MAX {
        return Err(HeaderError::TooMany);
    }
    let mut headers = Headers::new();
    for _ in 0..names {
        let (name, value) = (text(&mut block)?, text(&mut block)?);
        let unusual = name.is_empty() || name.bytes().any(|byte| byte.is_ascii_uppercase());
        if unusual || first(&headers, &name).is_some() {
            return Err(HeaderError::Name);
        }
        headers.push((name, value));
    }
    if block.is_empty() { Ok(headers) } else { Err(HeaderError::Length) }
}

/// Draft 3.1, section 2.6.10.1: words with their lengths, then a text.
static DICTIONARY: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut dictionary = Vec::with_capacity(1423);
    for word in DICTIONARY_WORDS {
        dictionary.put_u32(word.len() as u32);
        dictionary.put_slice(word.as_bytes());
    }
    dictionary.put_slice(DICTIONARY_TEXT.as_bytes());
    dictionary
});

#[rustfmt::skip]
const DICTIONARY_WORDS: [&str; 65] = [
    "options", "head", "post", "put", "delete", "trace", "accept", "accept-charset", "accept-encoding",
    "accept-language", "accept-ranges", "age", "allow", "authorization", "cache-control", "connection",
    "content-base", "content-encoding", "content-language", "content-length", "content-location",
    "content-md5", "content-range", "content-type", "date", "etag", "expect", "expires", "from", "host",
    "if-match", "if-modified-since", "if-none-match", "if-range", "if-unmodified-since", "last-modified",
    "location", "max-forwards", "pragma", "proxy-authenticate", "proxy-authorization", "range", "referer",
    "retry-after", "server", "te", "trailer", "transfer-encoding", "upgrade", "user-agent", "vary", "via",
    "warning", "www-authenticate", "method", "get", "status", "200 OK", "version", "HTTP/1.1", "url",
    "public", "set-cookie", "keep-alive", "origin",
];

const DICTIONARY_TEXT: &str = "\
    100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505203 Non-Au\
    thoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidd\
    en404 Not Found500 Internal Server Error501 Not Implemented503 Service UnavailableJan Feb Mar Apr Ma\
    y Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,imag\
    e/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,text/javascript,publicpri\
    vatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::frame::tests::{GO, unhex};
    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> Headers {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    /// The blocks of Go's frames, in the order in which they were packed.
    fn blocks() -> [Bytes; 4] {
        [(0, 18), (1, 18), (2, 12), (3, 12)]
            .map(|(i, head): (usize, usize)| unhex(GO[i].1).split_off(head).freeze())
    }

    #[test]
    fn the_dictionary_is_that_of_the_draft() {
        assert_eq!(DICTIONARY.len(), 1423);
        // Adler-32, by which the zlib streams of all implementations name it.
        let id = Compress::new(Compression::fast(), true).set_dictionary(&DICTIONARY).unwrap();
        assert_eq!(id, 0xe3c6_a7c2);
    }

    #[test]
    fn the_headers_of_gos_implementation_are_read() {
        let mut inflater = Inflater::default();
        let got = blocks().map(|block| read(&inflater.inflate(&block).unwrap()).unwrap());
        let expected = [
            headers(&[("streamtype", "error")]),
            headers(&[("streamtype", "stdin\0again")]),
            headers(&[]),
            headers(&[("port", "8080")]),
        ];
        assert_eq!(got, expected);
        assert_eq!(first(&got[1], "streamtype"), Some("stdin"));
        assert_eq!(first(&got[1], "port"), None);
    }

    #[test]
    fn our_blocks_name_the_dictionary_and_end_with_a_flush() {
        let block = Deflater::default().deflate(&headers(&[("streamtype", "stdin")]));
        assert_eq!(
            (&block[2..6], &block[block.len() - 4..]),
            (&[0xe3, 0xc6, 0xa7, 0xc2][..], &[0, 0, 0xff, 0xff][..])
        );
    }

    #[test]
    fn what_cannot_be_unpacked_is_refused() {
        let whole = &blocks()[0];
        let cases: [(&[u8], &str); 6] = [
            (b"\xff\xff\xff\xff", "not compressed"),
            (b"\x78\xf9\0\0\0\x01\x62", "not compressed"),
            (b"plain text", "not compressed"),
            (&[&whole[..6], &[0xff; 9]].concat(), "not compressed"),
            // An empty last block and the checksum of nothing end the stream.
            (b"\x78\x9c\x03\0\0\0\0\x01", "ends the compressed stream"),
            (b"\x78\x9c\x03\0\0\0\0\x02", "not compressed"),
        ];
        for (block, text) in cases {
            let error = Inflater::default().inflate(block).unwrap_err().to_string();
            assert!(error.contains(text), "{block:x?}: {error}");
        }
        // What is cut off makes no sense as headers, if it is anything at all.
        // The last six bytes are the flush.
        for length in 0..whole.len() - 6 {
            let cut = Inflater::default().inflate(&whole[..length]);
            assert!(cut.is_err() || read(&cut.unwrap()).is_err(), "{length} bytes");
        }
    }

    #[test]
    fn a_small_block_that_unpacks_to_a_huge_one_is_refused() {
        let mut bomb = Vec::with_capacity(60_000);
        let mut compress = Compress::new(Compression::best(), true);
        compress.compress_vec(&vec![0; 10 << 20], &mut bomb, FlushCompress::Sync).unwrap();
        assert!(bomb.len() < super::super::frame::CONTROL_BYTES_MAX, "{}", bomb.len());
        assert!(matches!(Inflater::default().inflate(&bomb), Err(InflateError::TooLong)));
    }

    #[test]
    fn what_is_wrong_in_a_block_is_told_apart() {
        let block = |pairs: &[(&[u8], &[u8])]| {
            let mut block = (pairs.len() as u32).to_be_bytes().to_vec();
            for text in pairs.iter().flat_map(|(name, value)| [name, value]) {
                block.put_u32(text.len() as u32);
                block.put_slice(text);
            }
            block
        };
        assert_eq!(read(b""), Err(HeaderError::Length));
        assert_eq!(read(b"\0\0\0\x01"), Err(HeaderError::Length));
        assert_eq!(read(b"\0\0\0\x01\xff\xff\xff\xffa"), Err(HeaderError::Length));
        assert_eq!(read(b"\0\0\0\0\0"), Err(HeaderError::Length));
        assert_eq!(read(b"\0\0\0\x41"), Err(HeaderError::TooMany));
        assert_eq!(read(&block(&[(b"", b"a")])), Err(HeaderError::Name));
        assert_eq!(read(&block(&[(b"Port", b"a")])), Err(HeaderError::Name));
        assert_eq!(read(&block(&[(b"port", b"a"), (b"port", b"b")])), Err(HeaderError::Name));
        assert_eq!(read(&block(&[(b"port", b"\xff")])), Err(HeaderError::Text));
        assert_eq!(read(&block(&[(b"port", b"")])), Ok(headers(&[("port", "")])));
    }

    proptest! {
        #[test]
        fn headers_survive_compression_block_after_block(
            blocks in prop::collection::vec(prop::collection::btree_map("[a-z0-9:-]{1,12}", ".{0,300}", 0..6), 1..6),
        ) {
            let (mut deflater, mut inflater) = (Deflater::default(), Inflater::default());
            for block in blocks {
                let block: Headers = block.into_iter().collect();
                prop_assert_eq!(read(&inflater.inflate(&deflater.deflate(&block)).unwrap()), Ok(block));
            }
        }

        #[test]
        fn no_block_makes_the_reader_panic(block in prop::collection::vec(any::<u8>(), 0..200)) {
            read(&block).ok();
        }
    }
}
