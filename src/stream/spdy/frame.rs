//! SPDY/3.1 frames to bytes and back, without I/O and without compression.
//!
//! ```text
//! control  |1| version = 3 (15) | kind (16) | flags (8) | length (24) | what the kind says
//! data     |0|       stream (31)            | flags (8) | length (24) | bytes
//! ```
//!
//! A control frame is decoded once all of it is there, so its length is bounded. The bytes of a data frame are handed out
//! as they arrive, so it may be as long as 24 bits can say: Go's `io.Copy` can make one frame of a whole buffer.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// The longest control frame that is taken, in bytes after its first eight. Kubernetes' headers take less than 300.
pub(super) const CONTROL_BYTES_MAX: usize = 16 << 10;

/// The longest data frame that is sent. A longer one lets other streams wait, shorter ones cost more headers and, at a
/// peer written in Go, more handovers between goroutines.
pub(super) const DATA_BYTES_MAX: usize = 64 << 10;

/// The bytes before what a frame carries.
const HEAD: usize = 8;

/// The windows grow to at most this (draft 3.1, section 2.6.8).
pub(super) const WINDOW_MAX: i64 = 0x7fff_ffff;

const VERSION: u16 = 3;
const ID_MASK: u32 = 0x7fff_ffff;
const LENGTH_MASK: u32 = 0x00ff_ffff;

const FIN: u8 = 1;
const UNIDIRECTIONAL: u8 = 2;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const SETTINGS: u16 = 4;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const HEADERS: u16 = 8;
const WINDOW_UPDATE: u16 = 9;

/// The settings of which we know what they mean (draft 3.1, section 2.6.4).
pub(super) const MAX_CONCURRENT_STREAMS: u32 = 4;
pub(super) const INITIAL_WINDOW_SIZE: u32 = 7;

/// Why a stream is reset (draft 3.1, section 2.4.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Reset {
    ProtocolError = 1,
    InvalidStream = 2,
    RefusedStream = 3,
    Cancel = 5,
    FlowControlError = 7,
    StreamAlreadyClosed = 9,
}

/// Why a connection ends (draft 3.1, section 2.6.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum GoAway {
    Ok = 0,
    ProtocolError = 1,
}

/// A frame, or a piece of a data frame. Blocks of headers are compressed still.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Frame {
    SynStream { id: u32, fin: bool, unidirectional: bool, block: Bytes },
    SynReply { id: u32, fin: bool, block: Bytes },
    RstStream { id: u32, status: u32 },
    Settings(Vec<(u32, u32)>),
    Ping(u32),
    GoAway { last_id: u32, status: u32 },
    Headers { id: u32, fin: bool, block: Bytes },
    WindowUpdate { id: u32, delta: u32 },
    Data { id: u32, fin: bool, piece: Bytes },
}

/// What makes a connection unusable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum FrameError {
    #[error("the peer speaks version {0} of SPDY, not {VERSION}")]
    Version(u16),
    #[error("a control frame of {0} bytes is longer than {CONTROL_BYTES_MAX}")]
    TooLong(usize),
    #[error("a frame of kind {kind} has {length} bytes, which cannot be")]
    Length { kind: u16, length: usize },
    #[error("a frame is about stream 0")]
    StreamZero,
}

/// Takes frames from what was read.
#[derive(Debug, Default)]
pub(super) struct Decoder {
    /// The data frame whose bytes still arrive: how many are missing and what they belong to.
    rest: Option<Rest>,
}

#[derive(Debug)]
struct Rest {
    id: u32,
    fin: bool,
    missing: usize,
}

impl Decoder {
    /// The next frame, or the next piece of a data frame, off the front of `buffer`; `None` when more must be read.
    ///
    /// Pieces share memory with `buffer`. After an error the connection is of no more use.
    pub(super) fn decode(&mut self, buffer: &mut BytesMut) -> Result<Option<Frame>, FrameError> {
        loop {
            if let Some(rest) = &mut self.rest {
                if buffer.is_empty() {
                    return Ok(None);
                }
                let piece = buffer.split_to(rest.missing.min(buffer.len())).freeze();
                rest.missing -= piece.len();
                let frame = Frame::Data { id: rest.id, fin: rest.fin && rest.missing == 0, piece };
                if rest.missing == 0 {
                    self.rest = None;
                }
                return Ok(Some(frame));
            }
            let Some((mut head, _)) = buffer.split_at_checked(HEAD) else { return Ok(None) };
            let first = head.get_u32();
            let second = head.get_u32();
            let (flags, length) = ((second >> 24) as u8, (second & LENGTH_MASK) as usize);
            if first & !ID_MASK == 0 {
                if first == 0 {
                    return Err(FrameError::StreamZero);
                }
                buffer.advance(HEAD);
                let fin = flags & FIN != 0;
                if length == 0 {
                    return Ok(Some(Frame::Data { id: first, fin, piece: Bytes::new() }));
                }
                self.rest = Some(Rest { id: first, fin, missing: length });
                continue;
            }
            let (version, kind) = ((first >> 16) as u16 & 0x7fff, first as u16);
            if version != VERSION {
                return Err(FrameError::Version(version));
            }
            if length > CONTROL_BYTES_MAX {
                return Err(FrameError::TooLong(length));
            }
            if buffer.len() < HEAD + length {
                return Ok(None);
            }
            buffer.advance(HEAD);
            let body = buffer.split_to(length).freeze();
            if let Some(frame) = control(kind, flags, body)? {
                return Ok(Some(frame));
            }
        }
    }
}

/// `None` is a kind that we do not know, which is to be ignored (draft 3.1, section 2.2.1).
fn control(kind: u16, flags: u8, mut body: Bytes) -> Result<Option<Frame>, FrameError> {
    let length = body.len();
    // The part before headers and settings, whose length varies.
    let (fixed, exact) = match kind {
        SYN_STREAM => (10, false),
        SYN_REPLY | HEADERS | SETTINGS => (4, false),
        PING => (4, true),
        RST_STREAM | GOAWAY | WINDOW_UPDATE => (8, true),
        _ => return Ok(None),
    };
    let wrong = FrameError::Length { kind, length };
    if length < fixed || (exact && length != fixed) {
        return Err(wrong);
    }
    let (first, fin) = (body.get_u32(), flags & FIN != 0);
    let id = first & ID_MASK;
    if id == 0 && matches!(kind, SYN_STREAM | SYN_REPLY | HEADERS | RST_STREAM) {
        return Err(FrameError::StreamZero);
    }
    Ok(Some(match kind {
        SYN_STREAM => {
            // The stream it belongs to, a priority and a slot: nobody in Kubernetes uses them.
            body.advance(6);
            Frame::SynStream { id, fin, unidirectional: flags & UNIDIRECTIONAL != 0, block: body }
        }
        SYN_REPLY => Frame::SynReply { id, fin, block: body },
        HEADERS => Frame::Headers { id, fin, block: body },
        RST_STREAM => Frame::RstStream { id, status: body.get_u32() },
        GOAWAY => Frame::GoAway { last_id: id, status: body.get_u32() },
        WINDOW_UPDATE => Frame::WindowUpdate { id, delta: body.get_u32() & ID_MASK },
        PING => Frame::Ping(first),
        _ => {
            if body.len() as u64 != u64::from(first) * 8 {
                return Err(wrong);
            }
            let mut settings = Vec::with_capacity(body.len() / 8);
            while !body.is_empty() {
                settings.push((body.get_u32() & LENGTH_MASK, body.get_u32()));
            }
            Frame::Settings(settings)
        }
    }))
}

impl Frame {
    /// Appends the frame to `out`. A data frame must not be longer than 24 bits can say; of ours none is longer than
    /// [`DATA_BYTES_MAX`], and those go out as [`data_head`] and the bytes themselves.
    pub(super) fn encode(&self, out: &mut BytesMut) {
        let fin = |fin: &bool| if *fin { FIN } else { 0 };
        match self {
            Self::SynStream { id, fin: last, unidirectional, block } => {
                let one_way = if *unidirectional { UNIDIRECTIONAL } else { 0 };
                control_head(out, SYN_STREAM, fin(last) | one_way, 10 + block.len());
                out.put_u32(*id);
                out.put_bytes(0, 6);
                out.put_slice(block);
            }
            Self::SynReply { id, fin: last, block } => {
                control_head(out, SYN_REPLY, fin(last), 4 + block.len());
                out.put_u32(*id);
                out.put_slice(block);
            }
            Self::Headers { id, fin: last, block } => {
                control_head(out, HEADERS, fin(last), 4 + block.len());
                out.put_u32(*id);
                out.put_slice(block);
            }
            Self::RstStream { id, status } => pair(out, RST_STREAM, *id, *status),
            Self::GoAway { last_id, status } => pair(out, GOAWAY, *last_id, *status),
            Self::WindowUpdate { id, delta } => pair(out, WINDOW_UPDATE, *id, *delta),
            Self::Ping(id) => {
                control_head(out, PING, 0, 4);
                out.put_u32(*id);
            }
            Self::Settings(settings) => {
                control_head(out, SETTINGS, 0, 4 + 8 * settings.len());
                out.put_u32(settings.len() as u32);
                for (id, value) in settings {
                    out.put_u32(*id);
                    out.put_u32(*value);
                }
            }
            Self::Data { id, fin: last, piece } => {
                out.put_slice(&data_head(*id, piece.len(), *last));
                out.put_slice(piece);
            }
        }
    }
}

fn control_head(out: &mut BytesMut, kind: u16, flags: u8, length: usize) {
    out.put_u16(0x8000 | VERSION);
    out.put_u16(kind);
    out.put_u32(u32::from(flags) << 24 | length as u32);
}

fn pair(out: &mut BytesMut, kind: u16, first: u32, second: u32) {
    control_head(out, kind, 0, 8);
    out.put_u32(first);
    out.put_u32(second);
}

/// What stands before the bytes of a data frame.
pub(super) fn data_head(id: u32, length: usize, fin: bool) -> [u8; HEAD] {
    let flags = if fin { u64::from(FIN) << 24 } else { 0 };
    (u64::from(id) << 32 | flags | length as u64).to_be_bytes()
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What moby/spdystream 0.5 wrote, in this order with one compressor, built by Go 1.26.
    pub(in super::super) const GO: [(&str, &str); 10] = [
        (
            "SYN_STREAM 1, Streamtype: error",
            "80030001000000290000000100000000000078f9e3c6a7c26260606004a7b392a2d4c45c6851c29a0a0a6800000000ffff",
        ),
        (
            "SYN_STREAM 3, priority 3, FIN and UNIDIRECTIONAL, Streamtype: stdin and again",
            "800300010300001e00000003000000006000c22ac55d5c929299c790989e989907000000ffff",
        ),
        ("SYN_REPLY 1", "800300020000000e000000016260606000000000ffff"),
        ("HEADERS 1, FIN, Port: 8080", "800300080100001700000001822a6229c82f0267150b030b0300000000ffff"),
        ("RST_STREAM 1, cancel", "80030003000000080000000100000005"),
        (
            "SETTINGS, persist initial window 262144, 100 streams",
            "80030004000000140000000201000007000400000000000400000064",
        ),
        ("PING 1", "800300060000000400000001"),
        ("GOAWAY 3, protocol error", "80030007000000080000000300000001"),
        ("WINDOW_UPDATE 3, 65536", "80030009000000080000000300010000"),
        ("DATA 1, FIN, hello", "000000010100000568656c6c6f"),
    ];

    pub(in super::super) fn unhex(text: &str) -> BytesMut {
        let digits: Vec<_> = text.chars().map(|c| c.to_digit(16).unwrap() as u8).collect();
        digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
    }

    fn only(bytes: &[u8]) -> Result<Option<Frame>, FrameError> {
        let mut buffer = BytesMut::from(bytes);
        let frame = Decoder::default().decode(&mut buffer)?;
        assert!(frame.is_none() || buffer.is_empty(), "{} bytes are left", buffer.len());
        Ok(frame)
    }

    #[test]
    fn the_frames_of_gos_implementation_are_read() {
        let blocks: Vec<Bytes> = [(0, 18), (1, 18), (2, 12), (3, 12)]
            .map(|(i, head): (usize, usize)| unhex(GO[i].1).split_off(head).freeze())
            .into();
        let block = |i: usize| blocks[i].clone();
        let expected = [
            Frame::SynStream { id: 1, fin: false, unidirectional: false, block: block(0) },
            Frame::SynStream { id: 3, fin: true, unidirectional: true, block: block(1) },
            Frame::SynReply { id: 1, fin: false, block: block(2) },
            Frame::Headers { id: 1, fin: true, block: block(3) },
            Frame::RstStream { id: 1, status: Reset::Cancel as u32 },
            Frame::Settings(vec![(INITIAL_WINDOW_SIZE, 262_144), (MAX_CONCURRENT_STREAMS, 100)]),
            Frame::Ping(1),
            Frame::GoAway { last_id: 3, status: GoAway::ProtocolError as u32 },
            Frame::WindowUpdate { id: 3, delta: 65536 },
            Frame::Data { id: 1, fin: true, piece: "hello".into() },
        ];
        for ((name, bytes), frame) in GO.iter().zip(expected) {
            assert_eq!(only(&unhex(bytes)), Ok(Some(frame)), "{name}");
        }
    }

    #[test]
    fn our_frames_have_the_bytes_of_gos_implementation() {
        // Without those that have flags or a priority which we never send.
        for i in [0, 2, 3, 4, 6, 7, 8, 9] {
            let (name, bytes) = GO[i];
            let bytes = unhex(bytes);
            let mut out = BytesMut::new();
            only(&bytes).unwrap().unwrap().encode(&mut out);
            assert_eq!(out, bytes, "{name}");
        }
    }

    #[test]
    fn what_cannot_be_a_frame_is_refused() {
        let length = |kind, length| FrameError::Length { kind, length };
        for (bytes, error) in [
            ("8002000600000004 00000001", FrameError::Version(2)),
            ("ffffffff00000000", FrameError::Version(0x7fff)),
            ("8003000100004001", FrameError::TooLong(0x4001)),
            ("80030063ff ffffff", FrameError::TooLong(0xff_ffff)),
            ("8003000100000009 000000010000000000", length(SYN_STREAM, 9)),
            ("8003000200000003 000000", length(SYN_REPLY, 3)),
            ("8003000300000004 00000001", length(RST_STREAM, 4)),
            ("800300030000000c 000000010000000500000000", length(RST_STREAM, 12)),
            ("8003000400000000", length(SETTINGS, 0)),
            ("8003000400000004 ffffffff", length(SETTINGS, 4)),
            ("800300040000000c 000000020000000700000000", length(SETTINGS, 12)),
            ("8003000600000000", length(PING, 0)),
            ("8003000700000004 00000000", length(GOAWAY, 4)),
            ("8003000800000000", length(HEADERS, 0)),
            ("8003000900000004 00000001", length(WINDOW_UPDATE, 4)),
            ("800300010000000a 00000000000000000000", FrameError::StreamZero),
            ("8003000100 00000a 80000000000000000000", FrameError::StreamZero),
            ("8003000300000008 0000000000000001", FrameError::StreamZero),
            ("0000000000000005", FrameError::StreamZero),
        ] {
            assert_eq!(only(&unhex(&bytes.replace(' ', ""))), Err(error), "{bytes}");
        }
    }

    #[test]
    fn kinds_that_are_not_known_are_skipped() {
        let mut buffer = unhex(
            "8003000a00000003aabbcc80030005000000008003000600000004000000 07".replace(' ', "").as_str(),
        );
        assert_eq!(Decoder::default().decode(&mut buffer), Ok(Some(Frame::Ping(7))));
    }

    #[test]
    fn a_data_frame_longer_than_any_buffer_comes_in_pieces_and_ends_once() {
        let (length, mut seen, mut ends) = (0xff_ffff, 0, 0);
        let mut decoder = Decoder::default();
        let mut buffer = BytesMut::from(&data_head(5, length, true)[..]);
        while seen < length {
            buffer.extend_from_slice(&[7; 4000][..4000.min(length - seen)]);
            while let Some(Frame::Data { id: 5, fin, piece }) = decoder.decode(&mut buffer).unwrap() {
                seen += piece.len();
                ends += usize::from(fin);
            }
        }
        assert_eq!((seen, ends, decoder.rest.is_none()), (length, 1, true));
    }

    fn frames() -> impl Strategy<Value = Frame> {
        let (id, block) = (1..=ID_MASK, || prop::collection::vec(any::<u8>(), 0..300).prop_map(Bytes::from));
        prop_oneof![
            (id.clone(), any::<bool>(), any::<bool>(), block()).prop_map(
                |(id, fin, unidirectional, block)| Frame::SynStream { id, fin, unidirectional, block }
            ),
            (id.clone(), any::<bool>(), block()).prop_map(|(id, fin, block)| Frame::SynReply {
                id,
                fin,
                block
            }),
            (id.clone(), any::<bool>(), block()).prop_map(|(id, fin, block)| Frame::Headers {
                id,
                fin,
                block
            }),
            (id.clone(), any::<u32>()).prop_map(|(id, status)| Frame::RstStream { id, status }),
            (0..=ID_MASK, any::<u32>()).prop_map(|(last_id, status)| Frame::GoAway { last_id, status }),
            (0..=ID_MASK, 0..=ID_MASK).prop_map(|(id, delta)| Frame::WindowUpdate { id, delta }),
            any::<u32>().prop_map(Frame::Ping),
            prop::collection::vec((0..=LENGTH_MASK, any::<u32>()), 0..9).prop_map(Frame::Settings),
            (id, any::<bool>(), block()).prop_map(|(id, fin, piece)| Frame::Data { id, fin, piece }),
        ]
    }

    proptest! {
        /// Whatever the network cuts them into, the same frames come out; of data frames the same bytes.
        #[test]
        fn frames_survive_the_wire_in_pieces_of_any_size(
            frames in prop::collection::vec(frames(), 1..12),
            cuts in prop::collection::vec(1..200_usize, 1..20),
        ) {
            let mut wire = BytesMut::new();
            for frame in &frames {
                frame.encode(&mut wire);
            }
            let (mut decoder, mut buffer, mut got) = (Decoder::default(), BytesMut::new(), Vec::<Frame>::new());
            let mut open = false;
            for cut in cuts.iter().cycle() {
                if wire.is_empty() {
                    break;
                }
                buffer.unsplit(wire.split_to((*cut).min(wire.len())));
                while let Some(frame) = decoder.decode(&mut buffer).unwrap() {
                    match (got.last_mut(), frame) {
                        (Some(Frame::Data { fin, piece, .. }), Frame::Data { fin: last, piece: more, .. }) if open => {
                            *piece = [&piece[..], &more[..]].concat().into();
                            *fin = last;
                        }
                        (_, frame) => got.push(frame),
                    }
                    open = decoder.rest.is_some();
                }
            }
            prop_assert!(buffer.is_empty());
            prop_assert_eq!(got, frames);
        }

        #[test]
        fn no_bytes_make_the_decoder_panic_or_stand_still(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let (mut decoder, mut buffer) = (Decoder::default(), BytesMut::from(&bytes[..]));
            while let Ok(Some(_)) = decoder.decode(&mut buffer) {}
        }
    }
}
