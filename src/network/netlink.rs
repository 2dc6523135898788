//! A blocking netlink socket: send a few requests at once, read every answer, name the request that was refused.
//!
//! What the requests mean is not here: links, addresses and routes are `bridge.rs`, nftables messages are `nft.rs`.
//!
//! A socket belongs for good to the network namespace of the thread that opened it. The kernel handles a request
//! within `sendmsg(2)`, so its answer is already queued when the send returns: the socket is non-blocking and an
//! empty queue is an error, never a wait.

use std::borrow::Cow;
use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{SocketAddr, protocols};

/// Room for one answer datagram. The kernel fills dumps in pieces of at most 32 KiB (`netlink_dump`).
const ANSWER_BYTES: usize = 64 << 10;
/// Messages one dump may have: 4096 pods have as many links; ten times that is a fault, not a host.
const DUMP_MESSAGES_MAX: usize = 65_536;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const HEADER_BYTES: usize = 16;
/// `NLM_F_ACK_TLVS` and the attribute with the kernel's own words (`linux/netlink.h`).
const ACK_HAS_ATTRIBUTES: u16 = 0x200;
const ACK_TEXT: u16 = 1;

/// Why a netlink exchange failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NetlinkError {
    /// No socket: the kernel has not this protocol, or descriptors ran out.
    #[error("open a netlink socket of protocol {protocol}")]
    Open {
        protocol: isize,
        #[source]
        source: io::Error,
    },
    /// The request never reached the kernel, or its answer never came.
    #[error("{call} netlink while asked to {what}")]
    Exchange {
        call: &'static str,
        what: String,
        #[source]
        source: io::Error,
    },
    /// The kernel said no.
    #[error("{what}{}", .text.as_deref().map(|t| format!(" (the kernel says: {t})")).unwrap_or_default())]
    Refused {
        what: String,
        text: Option<String>,
        #[source]
        source: io::Error,
    },
    /// An answer that is no netlink message, or too many of them.
    #[error("unreadable netlink answer to {what}: {why}")]
    Answer { what: String, why: String },
}

impl NetlinkError {
    /// The errno of a refused request.
    pub(super) fn errno(&self) -> Option<rustix::io::Errno> {
        match self {
            Self::Refused { source, .. } => rustix::io::Errno::from_io_error(source),
            Self::Open { .. } | Self::Exchange { .. } | Self::Answer { .. } => None,
        }
    }
}

/// One request, and the words an error about it uses.
#[derive(Debug)]
pub(super) struct Request {
    pub what: Cow<'static, str>,
    /// `NLM_F_*` beside REQUEST and ACK.
    pub flags: u16,
    pub message: RouteNetlinkMessage,
}

impl Request {
    pub(super) fn new(what: impl Into<Cow<'static, str>>, flags: u16, message: RouteNetlinkMessage) -> Self {
        Self { what: what.into(), flags, message }
    }
}

/// See the module's text.
#[derive(Debug)]
pub(super) struct Socket {
    inner: netlink_sys::Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Socket {
    /// A socket for links, addresses and routes of the calling thread's network namespace.
    pub(super) fn route() -> Result<Self, NetlinkError> {
        Self::open(protocols::NETLINK_ROUTE)
    }

    /// A socket for nftables of the calling thread's network namespace.
    pub(super) fn netfilter() -> Result<Self, NetlinkError> {
        Self::open(protocols::NETLINK_NETFILTER)
    }

    fn open(protocol: isize) -> Result<Self, NetlinkError> {
        let open = || {
            let mut inner = netlink_sys::Socket::new(protocol)?;
            inner.bind_auto()?;
            inner.connect(&SocketAddr::new(0, 0))?;
            inner.set_non_blocking(true)?;
            // Short answers with the kernel's words in them, both since 4.12.
            inner.set_cap_ack(true)?;
            inner.set_ext_ack(true)?;
            // A transaction of nftables answers every message of it: room for all answers of the largest one.
            inner.set_rx_buf_sz(4u32 << 20)?;
            Ok(inner)
        };
        match open() {
            Ok(inner) => Ok(Self { inner, sequence: 0, buffer: Vec::with_capacity(ANSWER_BYTES) }),
            Err(source) => Err(NetlinkError::Open { protocol, source }),
        }
    }

    /// The next sequence number, never 0.
    pub(super) fn next_sequence(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1).max(1);
        self.sequence
    }

    /// Carries out `requests` in order with one system call. The kernel goes on after a refused one, so the caller
    /// undoes what it must; the first refusal is the error.
    pub(super) fn execute(&mut self, requests: Vec<Request>) -> Result<(), NetlinkError> {
        let mut bytes = Vec::with_capacity(1024);
        let mut names = Vec::with_capacity(requests.len());
        for Request { what, flags, message } in requests {
            let sequence = self.next_sequence();
            append(&mut bytes, sequence, NLM_F_REQUEST | NLM_F_ACK | flags, message);
            names.push((sequence, what));
        }
        self.transact(&bytes, &names)
    }

    /// Sends `bytes` and waits until each of `names` (sequence numbers in ascending order) is acknowledged.
    pub(super) fn transact(
        &mut self,
        bytes: &[u8],
        names: &[(u32, Cow<'static, str>)],
    ) -> Result<(), NetlinkError> {
        let whole = names.first().map_or("nothing", |(_, what)| what).to_owned();
        self.send(bytes, &whole)?;
        let mut refused: Option<(Option<usize>, NetlinkError)> = None;
        let mut missing = names.len();
        while missing > 0 {
            if let Err(err) = self.receive(&whole) {
                // After a refusal nftables answers for no later message; what was read is the whole story.
                return Err(refused.map_or(err, |(_, refusal)| refusal));
            }
            for (header, payload) in messages(&self.buffer) {
                if header.kind != NLMSG_ERROR {
                    continue;
                }
                let place = names.iter().position(|(sequence, _)| *sequence == header.sequence);
                let what = place.map_or(whole.as_str(), |place| &names[place].1);
                // nftables blames the first message of a batch, which has no name here, when the commit as a whole
                // fails, and then still acknowledges the others.
                if let Some(err) = refusal(&header, payload, what)
                    && refused.as_ref().is_none_or(|(first, _)| place < *first)
                {
                    refused = Some((place, err));
                }
                missing -= usize::from(place.is_some()).min(missing);
            }
        }
        refused.map_or(Ok(()), |(_, err)| Err(err))
    }

    /// Every answer to a dump request.
    pub(super) fn dump(
        &mut self,
        what: &str,
        message: RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        self.ask(what, NLM_F_DUMP, message)
    }

    /// The answer to a request for one thing; an error with `ENODEV` when there is none.
    pub(super) fn get(
        &mut self,
        what: &str,
        message: RouteNetlinkMessage,
    ) -> Result<RouteNetlinkMessage, NetlinkError> {
        let missing = || NetlinkError::Answer { what: what.to_owned(), why: "no answer".to_owned() };
        self.ask(what, NLM_F_ACK, message)?.into_iter().next().ok_or_else(missing)
    }

    fn ask(
        &mut self,
        what: &str,
        flags: u16,
        message: RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        let sequence = self.next_sequence();
        let mut bytes = Vec::with_capacity(256);
        append(&mut bytes, sequence, NLM_F_REQUEST | flags, message);
        self.send(&bytes, what)?;
        let mut answers = Vec::new();
        loop {
            self.receive(what)?;
            for (header, payload) in messages(&self.buffer) {
                if header.sequence != sequence {
                    continue;
                }
                match header.kind {
                    NLMSG_DONE => return Ok(answers),
                    NLMSG_ERROR => {
                        return match refusal(&header, payload, what) {
                            Some(err) => Err(err),
                            None => Ok(answers),
                        };
                    }
                    kind => {
                        let mut parsed = NetlinkHeader::default();
                        parsed.message_type = kind;
                        let answer = RouteNetlinkMessage::deserialize(&parsed, payload).map_err(|err| {
                            NetlinkError::Answer { what: what.to_owned(), why: err.to_string() }
                        })?;
                        if answers.len() == DUMP_MESSAGES_MAX {
                            let why = format!("more than {DUMP_MESSAGES_MAX} messages");
                            return Err(NetlinkError::Answer { what: what.to_owned(), why });
                        }
                        answers.push(answer);
                    }
                }
            }
        }
    }

    fn send(&self, bytes: &[u8], what: &str) -> Result<(), NetlinkError> {
        self.inner.send(bytes, 0).map(|_| ()).map_err(|source| NetlinkError::Exchange {
            call: "send to",
            what: what.to_owned(),
            source,
        })
    }

    fn receive(&mut self, what: &str) -> Result<(), NetlinkError> {
        loop {
            self.buffer.clear();
            match self.inner.recv(&mut self.buffer, 0) {
                Ok(_) => return Ok(()),
                Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => {
                    return Err(NetlinkError::Exchange {
                        call: "receive from",
                        what: what.to_owned(),
                        source,
                    });
                }
            }
        }
    }
}

fn append(bytes: &mut Vec<u8>, sequence: u32, flags: u16, message: RouteNetlinkMessage) {
    let mut header = NetlinkHeader::default();
    header.flags = flags;
    header.sequence_number = sequence;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
    message.finalize();
    let start = bytes.len();
    // Messages in one datagram begin at multiples of four.
    bytes.resize(start + message.buffer_len().next_multiple_of(4), 0);
    message.serialize(&mut bytes[start..]);
}

struct Header {
    kind: u16,
    flags: u16,
    sequence: u32,
}

/// Cuts a datagram into messages; a length that lies ends the walk.
fn messages(mut rest: &[u8]) -> impl Iterator<Item = (Header, &[u8])> {
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(rest.get(..4)?.try_into().ok()?) as usize;
        if length < HEADER_BYTES {
            return None;
        }
        let message = rest.get(..length)?;
        let u16_at = |at: usize| u16::from_ne_bytes([message[at], message[at + 1]]);
        let header = Header {
            kind: u16_at(4),
            flags: u16_at(6),
            sequence: u32::from_ne_bytes([message[8], message[9], message[10], message[11]]),
        };
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((header, &message[HEADER_BYTES..]))
    })
}

/// What an `NLMSG_ERROR` says; `None` is success.
fn refusal(header: &Header, payload: &[u8], what: &str) -> Option<NetlinkError> {
    let errno = payload.get(..4).map_or(0, |b| i32::from_ne_bytes([b[0], b[1], b[2], b[3]]));
    if errno == 0 {
        return None;
    }
    let text = (header.flags & ACK_HAS_ATTRIBUTES != 0)
        .then(|| ack_text(payload.get(4 + HEADER_BYTES..)?))
        .flatten();
    Some(NetlinkError::Refused {
        what: what.to_owned(),
        text,
        source: io::Error::from_raw_os_error(errno.saturating_neg()),
    })
}

fn ack_text(mut rest: &[u8]) -> Option<String> {
    while let Some(head) = rest.get(..4) {
        let length = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        let kind = u16::from_ne_bytes([head[2], head[3]]) & 0x3fff;
        let value = rest.get(4..length)?;
        if kind == ACK_TEXT {
            return Some(String::from_utf8_lossy(value).trim_end_matches('\0').to_owned());
        }
        rest = rest.get(length.next_multiple_of(4)..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_that_lies_ends_the_walk_over_a_datagram() {
        let mut datagram = Vec::new();
        datagram.extend(20u32.to_ne_bytes());
        datagram.extend(2u16.to_ne_bytes());
        datagram.extend(0u16.to_ne_bytes());
        datagram.extend(7u32.to_ne_bytes());
        datagram.extend(0u32.to_ne_bytes());
        datagram.extend((-17i32).to_ne_bytes());
        let found: Vec<_> = messages(&datagram).map(|(h, p)| (h.kind, h.sequence, p.len())).collect();
        assert_eq!(found, [(2, 7, 4)]);
        for length in [0u32, 15, 21, u32::MAX] {
            datagram[..4].copy_from_slice(&length.to_ne_bytes());
            assert_eq!(messages(&datagram).count(), 0, "{length}");
        }
    }

    #[test]
    fn a_refusal_carries_the_kernels_errno_and_words() {
        let mut payload = (-22i32).to_ne_bytes().to_vec();
        payload.extend([0; HEADER_BYTES]);
        payload.extend(9u16.to_ne_bytes());
        payload.extend(ACK_TEXT.to_ne_bytes());
        payload.extend(b"nope\0\0\0\0");
        let header = Header { kind: NLMSG_ERROR, flags: ACK_HAS_ATTRIBUTES, sequence: 1 };
        let err = refusal(&header, &payload, "make a link").expect("an errno is a refusal");
        assert_eq!(err.to_string(), "make a link (the kernel says: nope)");
        assert_eq!(err.errno(), Some(rustix::io::Errno::INVAL));
    }
}
