//! What a connection knows: its streams, their queues and windows, and the frames that are owed. No I/O and no waiting:
//! the task feeds frames in and takes bytes out, the handles do the same for data, and whoever waits leaves a waker.
//!
//! # A stream
//!
//! ```text
//!             SYN_STREAM        reply               FIN of one side      FIN of the other
//! (nothing) ────────────▶ fresh ─────▶ open both ways ─────▶ half closed ─────▶ closed
//!                           └── refuse ──┴── RST_STREAM, or both handles dropped ──┘
//! ```
//!
//! A slot is forgotten when neither the wire nor a handle needs it. A side that has said FIN and has no handle left does not
//! wait for the other side's FIN: Kubernetes' clients never end the streams they only read from.
//!
//! # Flow control
//!
//! Go's spdystream, which is kubectl, the kubelet and crictl, keeps no windows: it neither grants any nor minds ours.
//! A peer that does keep them shows it by its first SETTINGS with an initial window or its first WINDOW_UPDATE. Until then
//! we send as much as TCP takes, and count, so that windows are right from their first grant. The window of the whole
//! connection (SPDY/3.1) comes into force by a WINDOW_UPDATE for stream 0, as peers of SPDY/3 do not know it.
//!
//! Towards us a peer with windows never has more than [`STREAM_WINDOW`] on its way on a stream, and one stream whose reader
//! is slow stops no other. A peer without windows is stopped by not reading from the connection while any stream is full,
//! which is what spdystream does too, with a queue of about the same length.

use std::collections::{HashMap, HashSet, VecDeque};
use std::io::{self, ErrorKind};
use std::task::{Context, Poll, Waker};

use bytes::{Bytes, BytesMut};

use super::Role;
use super::frame::{
    self, DATA_BYTES_MAX, Frame, FrameError, GoAway, INITIAL_WINDOW_SIZE, MAX_CONCURRENT_STREAMS, Reset,
    WINDOW_MAX,
};
use super::headers::{self, Deflater, Headers, InflateError, Inflater};

/// Streams at a time. A port-forward takes two for each connection; a browser through one opens some tens.
const STREAMS_MAX: usize = 2048;

/// Streams of the peer that were neither accepted nor refused. Each is answered as soon as the session gets to it.
const UNANSWERED_MAX: usize = 256;

/// What a peer may send ahead on one stream: at 1 ms of way there and back this is 250 MB/s.
const STREAM_WINDOW: u32 = 256 << 10;

/// What a peer may send ahead on all streams: 32 readers may be stuck before they stop the others.
const SESSION_WINDOW: u32 = 8 << 20;

/// The windows that peers have before any word about them (draft 3.1, section 2.6.8).
const WINDOW_AT_FIRST: i64 = 64 << 10;

/// A stream with this much unread is full. More than its window, since pieces are charged with more than their bytes.
const STREAM_IN_MAX: usize = 2 * STREAM_WINDOW as usize;

/// Unread data of all streams, beyond which the connection is not read from. Pieces may hold four times their size of a
/// read buffer, see [`SMALL`], so this is at most 64 MiB of memory.
const IN_MAX: usize = 16 << 20;

/// Data of one stream that waits for the wire: one batch, so that the next is ready when a batch is written.
const STREAM_OUT_MAX: usize = 256 << 10;

/// Data of all streams that waits for the wire: 64 clients of a port-forward may be stuck before they stop the others.
const OUT_MAX: usize = 16 << 20;

/// What a queued piece costs beyond its bytes, roughly, so that pieces of one byte count.
const PIECE_COST: usize = 128;

/// Control frames that wait for the wire, beyond which the connection is not read from: who wants thousands of answers
/// (pings, resets) must take some.
const CONTROL_MAX: usize = 64 << 10;

/// What is taken from all streams for one write.
const BATCH_BYTES: usize = 256 << 10;

/// Bytes that one read takes at most.
pub(super) const READ_BYTES: usize = 64 << 10;

/// Pieces smaller than this are copied, lest a few bytes hold a whole read buffer in memory.
const SMALL: usize = READ_BYTES / 4;

/// What ends a connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum Violation {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Inflate(#[from] InflateError),
    #[error("the peer opens stream {0}, an id that is not its own or not its next")]
    Id(u32),
    #[error("the peer grants more than {WINDOW_MAX} bytes")]
    Window,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Open,
    /// What is queued is sent still; nothing new is taken.
    Closing,
    /// GOAWAY is queued or sent, and what comes from the peer no longer matters.
    Goodbye,
    Ended,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fin {
    No,
    Queued,
    Sent,
}

#[derive(Debug)]
struct Slot {
    /// Unread data, and what it is charged with.
    pieces: VecDeque<Bytes>,
    charge_in: usize,
    /// Bytes read since the last grant.
    taken: u32,
    /// The peer said FIN.
    ended: bool,

    /// Data for the wire, and what it is charged with.
    out: VecDeque<Bytes>,
    charge_out: usize,
    window: i64,
    fin: Fin,
    /// It has a place in `ready`.
    ready: bool,
    /// It has a place in `starved`.
    starved: bool,

    replied: bool,
    reset: bool,
    has_sender: bool,
    has_receiver: bool,
    send: Option<Waker>,
    recv: Option<Waker>,
}

impl Slot {
    fn new(window: i64) -> Self {
        Self {
            pieces: VecDeque::new(),
            charge_in: 0,
            taken: 0,
            ended: false,
            out: VecDeque::new(),
            charge_out: 0,
            window,
            fin: Fin::No,
            ready: false,
            starved: false,
            replied: false,
            reset: false,
            has_sender: true,
            has_receiver: true,
            send: None,
            recv: None,
        }
    }

    fn wake(&mut self) {
        for waker in [self.send.take(), self.recv.take()].into_iter().flatten() {
            waker.wake();
        }
    }
}

#[derive(Debug)]
pub(super) struct State {
    role: Role,
    phase: Phase,
    streams: HashMap<u32, Slot>,
    inflater: Inflater,
    deflater: Deflater,
    /// Encoded control frames for the wire.
    control: BytesMut,

    /// Streams of the peer that nobody has asked for yet.
    fresh: VecDeque<(u32, Headers)>,
    unanswered: usize,
    last_theirs: u32,
    next_ours: u32,
    gone_away: bool,
    /// The stream without a slot that was last answered by a reset: one is enough for all that is on its way.
    told: u32,

    /// Streams with something for the wire, each once, served in turn.
    ready: VecDeque<u32>,
    /// Streams whose senders wait for others to be written.
    starved: Vec<u32>,
    charge_out: usize,
    has_windows: bool,
    has_session_window: bool,
    window_at_first: i64,
    session_window: i64,

    /// Streams that have too much unread.
    full: HashSet<u32>,
    charge_in: usize,
    session_taken: u32,

    /// Of `Connection` and `Incoming`.
    handles: u8,
    task: Option<Waker>,
    accept: Option<Waker>,
}

impl State {
    /// The state of a new connection, which begins with our windows. spdystream skips these two frames.
    pub(super) fn new(role: Role) -> Self {
        let mut control = BytesMut::new();
        let settings =
            vec![(MAX_CONCURRENT_STREAMS, STREAMS_MAX as u32), (INITIAL_WINDOW_SIZE, STREAM_WINDOW)];
        Frame::Settings(settings).encode(&mut control);
        let more = SESSION_WINDOW - WINDOW_AT_FIRST as u32;
        Frame::WindowUpdate { id: 0, delta: more }.encode(&mut control);
        Self {
            role,
            phase: Phase::Open,
            streams: HashMap::new(),
            inflater: Inflater::default(),
            deflater: Deflater::default(),
            control,
            fresh: VecDeque::new(),
            unanswered: 0,
            last_theirs: 0,
            next_ours: if role == Role::Client { 1 } else { 2 },
            gone_away: false,
            told: 0,
            ready: VecDeque::new(),
            starved: Vec::new(),
            charge_out: 0,
            has_windows: false,
            has_session_window: false,
            window_at_first: WINDOW_AT_FIRST,
            session_window: WINDOW_AT_FIRST,
            full: HashSet::new(),
            charge_in: 0,
            session_taken: 0,
            handles: 2,
            task: None,
            accept: None,
        }
    }
}

/// The task's side.
impl State {
    pub(super) fn phase(&self) -> Phase {
        self.phase
    }

    pub(super) fn register(&mut self, cx: &Context<'_>) {
        register(&mut self.task, cx);
    }

    /// Whether there is room for what more the peer may have sent.
    pub(super) fn may_read(&self) -> bool {
        self.full.is_empty() && self.charge_in < IN_MAX && self.control.len() < CONTROL_MAX
    }

    /// Queues a frame that changes nothing, unless others wait for the peer anyway. Not a ping: spdystream answers one in
    /// the task that reads, which would then wait behind the very write that we do not take, and no longer take our data.
    pub(super) fn poke(&mut self) {
        if self.phase == Phase::Open && self.control.is_empty() {
            Frame::Settings(vec![(INITIAL_WINDOW_SIZE, STREAM_WINDOW)]).encode(&mut self.control);
        }
    }

    /// What the peer says. After an error the connection must be ended by [`State::fail`].
    pub(super) fn receive(&mut self, frame: Frame) -> Result<(), Violation> {
        match frame {
            Frame::Data { id, fin, piece } => self.receive_data(id, fin, piece),
            Frame::SynStream { id, fin, unidirectional, block } => {
                let block = self.inflater.inflate(&block)?;
                self.receive_stream(id, fin, unidirectional, &block)?;
            }
            Frame::SynReply { id, fin, block } => {
                self.inflater.inflate(&block)?;
                let ours = self.is_ours(id);
                let Some(slot) = self.streams.get_mut(&id) else { return Ok(()) };
                if ours && !slot.replied {
                    slot.replied = true;
                    slot.ended |= fin;
                    slot.wake();
                } else {
                    self.reset(id, Reset::ProtocolError);
                }
            }
            Frame::Headers { id, fin, block } => {
                // Nothing in Kubernetes has use for them.
                self.inflater.inflate(&block)?;
                if fin {
                    self.receive_data(id, fin, Bytes::new());
                }
            }
            Frame::RstStream { id, .. } => self.forget(id),
            Frame::Ping(id) => {
                // Of the other parity it is an answer, to a ping that we do not send.
                if !self.is_ours(id) {
                    Frame::Ping(id).encode(&mut self.control);
                }
            }
            Frame::Settings(settings) => {
                if let Some((_, window)) = settings.iter().find(|(id, _)| *id == INITIAL_WINDOW_SIZE) {
                    let window = i64::from(*window);
                    if window > WINDOW_MAX {
                        return Err(Violation::Window);
                    }
                    self.has_windows = true;
                    let change = window - self.window_at_first;
                    self.window_at_first = window;
                    for id in self.streams.keys().copied().collect::<Vec<_>>() {
                        self.widen(id, change);
                    }
                }
            }
            Frame::WindowUpdate { id: 0, delta } => {
                self.has_session_window = true;
                self.session_window += i64::from(delta);
                if self.session_window > WINDOW_MAX {
                    return Err(Violation::Window);
                }
            }
            Frame::WindowUpdate { id, delta } => {
                self.has_windows = true;
                self.widen(id, i64::from(delta));
            }
            Frame::GoAway { last_id, .. } => {
                self.gone_away = true;
                let unseen = self.streams.keys().copied().filter(|id| self.is_ours(*id) && *id > last_id);
                for id in unseen.collect::<Vec<_>>() {
                    self.forget(id);
                }
            }
        }
        // A peer that has said goodbye opens nothing more.
        if self.gone_away && self.streams.is_empty() {
            self.close();
        }
        Ok(())
    }

    fn receive_stream(&mut self, id: u32, fin: bool, one_way: bool, block: &[u8]) -> Result<(), Violation> {
        if self.is_ours(id) || id <= self.last_theirs {
            return Err(Violation::Id(id));
        }
        self.last_theirs = id;
        let headers = match headers::read(block) {
            Ok(headers) => headers,
            Err(error) => {
                tracing::debug!(%error, "stream {id} of a peer is refused");
                self.say_reset(id, Reset::ProtocolError);
                return Ok(());
            }
        };
        let full = self.streams.len() >= STREAMS_MAX || self.unanswered >= UNANSWERED_MAX;
        if full || self.phase != Phase::Open {
            self.say_reset(id, Reset::RefusedStream);
            return Ok(());
        }
        let mut slot = Slot::new(self.window_at_first);
        slot.ended = fin;
        if one_way {
            slot.fin = Fin::Sent;
        }
        self.streams.insert(id, slot);
        self.unanswered += 1;
        self.fresh.push_back((id, headers));
        wake(&mut self.accept);
        Ok(())
    }

    fn receive_data(&mut self, id: u32, fin: bool, piece: Bytes) {
        let length = piece.len();
        let Some(slot) = self.streams.get_mut(&id) else {
            self.credit(length);
            if length > 0 && self.told != id {
                self.told = id;
                let known = if self.is_ours(id) { id < self.next_ours } else { id <= self.last_theirs };
                self.say_reset(id, if known { Reset::StreamAlreadyClosed } else { Reset::InvalidStream });
            }
            return;
        };
        if slot.ended && !slot.reset {
            self.credit(length);
            if length > 0 {
                self.reset(id, Reset::StreamAlreadyClosed);
            }
            return;
        }
        slot.ended |= fin;
        if length == 0 || slot.reset || !slot.has_receiver {
            if slot.ended {
                wake(&mut slot.recv);
            }
            self.credit(length);
            return;
        }
        let charge = length + PIECE_COST;
        slot.pieces.push_back(if length < SMALL { Bytes::copy_from_slice(&piece) } else { piece });
        slot.charge_in += charge;
        self.charge_in += charge;
        if slot.charge_in >= STREAM_IN_MAX {
            self.full.insert(id);
        }
        wake(&mut slot.recv);
    }

    /// Grants the whole connection what was read or thrown away.
    fn credit(&mut self, length: usize) {
        self.session_taken += length as u32;
        if self.session_taken >= SESSION_WINDOW / 2 {
            Frame::WindowUpdate { id: 0, delta: std::mem::take(&mut self.session_taken) }
                .encode(&mut self.control);
        }
    }

    /// The peer grants more on a stream, or less.
    fn widen(&mut self, id: u32, change: i64) {
        let Some(slot) = self.streams.get_mut(&id) else { return };
        slot.window += change;
        if slot.window > WINDOW_MAX {
            self.reset(id, Reset::FlowControlError);
        } else if !slot.out.is_empty() && slot.window > 0 {
            self.make_ready(id);
        }
    }

    /// Moves what is to be written next to `batch`; nothing when nothing is to be or may be.
    pub(super) fn fill(&mut self, batch: &mut VecDeque<Bytes>) {
        if !self.control.is_empty() {
            batch.push_back(self.control.split().freeze());
        }
        let mut room = BATCH_BYTES;
        while room > 0 && self.phase != Phase::Goodbye {
            let Some(id) = self.ready.pop_front() else { break };
            let Some(slot) = self.streams.get_mut(&id) else { continue };
            slot.ready = false;
            let Some(piece) = slot.out.front_mut() else {
                if slot.fin == Fin::Queued {
                    slot.fin = Fin::Sent;
                    batch.push_back(Bytes::copy_from_slice(&frame::data_head(id, 0, true)));
                    self.tidy(id);
                }
                continue;
            };
            let granted = if self.has_windows { slot.window } else { i64::MAX };
            let granted_in_all = if self.has_session_window { self.session_window } else { i64::MAX };
            if granted_in_all <= 0 {
                slot.ready = true;
                self.ready.push_front(id);
                break;
            }
            if granted <= 0 {
                // The next grant makes it ready again.
                continue;
            }
            let most = granted.min(granted_in_all).min(DATA_BYTES_MAX as i64) as usize;
            let length = piece.len().min(most);
            let part = piece.split_to(length);
            let mut charge = length;
            if piece.is_empty() {
                slot.out.pop_front();
                charge += PIECE_COST;
            }
            let last = slot.out.is_empty() && slot.fin == Fin::Queued;
            batch.push_back(Bytes::copy_from_slice(&frame::data_head(id, length, last)));
            batch.push_back(part);
            room = room.saturating_sub(length);
            slot.window -= length as i64;
            self.session_window -= length as i64;
            slot.charge_out -= charge;
            self.charge_out -= charge;
            if slot.charge_out < STREAM_OUT_MAX {
                wake(&mut slot.send);
            }
            if last {
                slot.fin = Fin::Sent;
                self.tidy(id);
            } else if !slot.out.is_empty() {
                self.make_ready(id);
            }
        }
        if self.charge_out < OUT_MAX {
            for id in std::mem::take(&mut self.starved) {
                if let Some(slot) = self.streams.get_mut(&id) {
                    slot.starved = false;
                    wake(&mut slot.send);
                }
            }
        }
    }

    /// Whether all that was queued has been handed out.
    pub(super) fn is_drained(&self) -> bool {
        self.control.is_empty()
            && self.streams.values().all(|slot| slot.out.is_empty() && slot.fin != Fin::Queued)
    }

    /// Says goodbye after an ordinary end.
    pub(super) fn goodbye(&mut self) {
        self.leave(GoAway::Ok);
    }

    /// Says goodbye to a peer that did what must not be. What is queued is no longer sent.
    pub(super) fn fail(&mut self) {
        self.leave(GoAway::ProtocolError);
    }

    fn leave(&mut self, status: GoAway) {
        Frame::GoAway { last_id: self.last_theirs, status: status as u32 }.encode(&mut self.control);
        self.phase = Phase::Goodbye;
        self.release();
    }

    /// The connection is no more. Unread data stays for its readers.
    pub(super) fn end(&mut self) {
        self.phase = Phase::Ended;
        self.control.clear();
        self.release();
    }

    /// Lets go of everything that waits for the wire and of everybody who waits for the peer.
    fn release(&mut self) {
        for (id, _) in std::mem::take(&mut self.fresh) {
            self.unanswered -= 1;
            self.remove(id);
        }
        self.ready.clear();
        self.starved.clear();
        self.charge_out = 0;
        for slot in self.streams.values_mut() {
            slot.out.clear();
            slot.charge_out = 0;
            slot.reset = true;
            slot.wake();
        }
        self.streams.retain(|_, slot| slot.has_sender || slot.has_receiver);
        wake(&mut self.accept);
    }
}

/// The handles' side.
impl State {
    /// A stream of the peer; `Ready(None)` once there will be no more.
    pub(super) fn poll_accept(&mut self, cx: &Context<'_>) -> Poll<Option<(u32, Headers)>> {
        if let Some(fresh) = self.fresh.pop_front() {
            return Poll::Ready(Some(fresh));
        }
        if matches!(self.phase, Phase::Goodbye | Phase::Ended) {
            return Poll::Ready(None);
        }
        register(&mut self.accept, cx);
        Poll::Pending
    }

    /// Accepts a stream of the peer. One that the peer has reset meanwhile is accepted too, and at its end already.
    pub(super) fn reply(&mut self, id: u32) -> io::Result<()> {
        self.unanswered -= 1;
        if matches!(self.phase, Phase::Goodbye | Phase::Ended) {
            self.remove(id);
            return Err(lost());
        }
        if let Some(slot) = self.streams.get_mut(&id)
            && !slot.reset
        {
            slot.replied = true;
            let block = self.deflater.deflate(&Headers::new());
            Frame::SynReply { id, fin: false, block }.encode(&mut self.control);
            wake_task(&self.task);
        }
        Ok(())
    }

    pub(super) fn refuse(&mut self, id: u32) {
        self.unanswered -= 1;
        let reset = self.streams.get(&id).is_some_and(|slot| slot.reset);
        self.remove(id);
        if !reset {
            self.say_reset(id, Reset::RefusedStream);
        }
    }

    /// Opens a stream of ours; [`State::poll_opened`] says what became of it.
    pub(super) fn open(&mut self, headers: &Headers) -> io::Result<u32> {
        if self.phase != Phase::Open || self.gone_away {
            return Err(lost());
        }
        if self.streams.len() >= STREAMS_MAX || i64::from(self.next_ours) > WINDOW_MAX {
            return Err(io::Error::new(ErrorKind::QuotaExceeded, "a SPDY connection has no stream left"));
        }
        let id = self.next_ours;
        self.next_ours += 2;
        self.streams.insert(id, Slot::new(self.window_at_first));
        let block = self.deflater.deflate(headers);
        Frame::SynStream { id, fin: false, unidirectional: false, block }.encode(&mut self.control);
        wake_task(&self.task);
        Ok(id)
    }

    pub(super) fn poll_opened(&mut self, id: u32, cx: &Context<'_>) -> Poll<io::Result<()>> {
        match self.streams.get_mut(&id) {
            Some(slot) if slot.replied => Poll::Ready(Ok(())),
            Some(slot) if !slot.reset => {
                register(&mut slot.recv, cx);
                Poll::Pending
            }
            _ if self.phase == Phase::Open => {
                Poll::Ready(Err(io::Error::new(ErrorKind::ConnectionRefused, "the peer refused a stream")))
            }
            _ => Poll::Ready(Err(lost())),
        }
    }

    /// Queues `piece` unless the queue is full.
    pub(super) fn poll_send(&mut self, id: u32, piece: &mut Bytes, cx: &Context<'_>) -> Poll<io::Result<()>> {
        let open = self.phase == Phase::Open;
        let Some(slot) = self.streams.get_mut(&id).filter(|slot| open && !slot.reset && slot.fin == Fin::No)
        else {
            return Poll::Ready(Err(self.no_sending(id)));
        };
        if piece.is_empty() {
            return Poll::Ready(Ok(()));
        }
        if slot.charge_out >= STREAM_OUT_MAX || self.charge_out >= OUT_MAX {
            register(&mut slot.send, cx);
            if self.charge_out >= OUT_MAX && !slot.starved {
                slot.starved = true;
                self.starved.push(id);
            }
            return Poll::Pending;
        }
        let charge = piece.len() + PIECE_COST;
        slot.charge_out += charge;
        self.charge_out += charge;
        slot.out.push_back(std::mem::take(piece));
        self.make_ready(id);
        wake_task(&self.task);
        Poll::Ready(Ok(()))
    }

    /// Queues the end. Once is enough; again is no error.
    pub(super) fn finish(&mut self, id: u32) -> io::Result<()> {
        let open = self.phase == Phase::Open;
        match self.streams.get_mut(&id) {
            Some(slot) if open && !slot.reset => {
                if slot.fin == Fin::No {
                    slot.fin = Fin::Queued;
                    self.make_ready(id);
                    wake_task(&self.task);
                }
                Ok(())
            }
            _ => Err(self.no_sending(id)),
        }
    }

    fn no_sending(&self, id: u32) -> io::Error {
        match self.streams.get(&id) {
            Some(slot) if !slot.reset && slot.fin != Fin::No => {
                io::Error::new(ErrorKind::BrokenPipe, "a stream was finished already")
            }
            Some(slot) if slot.reset && self.phase == Phase::Open => {
                io::Error::new(ErrorKind::ConnectionReset, "the peer has reset a stream")
            }
            _ => lost(),
        }
    }

    /// The next piece; `Ready(None)` at the end, by whatever it came.
    pub(super) fn poll_recv(&mut self, id: u32, cx: &Context<'_>) -> Poll<Option<Bytes>> {
        let Some(slot) = self.streams.get_mut(&id) else { return Poll::Ready(None) };
        let Some(piece) = slot.pieces.pop_front() else {
            if slot.ended || slot.reset {
                return Poll::Ready(None);
            }
            register(&mut slot.recv, cx);
            return Poll::Pending;
        };
        let charge = piece.len() + PIECE_COST;
        slot.charge_in -= charge;
        slot.taken += piece.len() as u32;
        let was_reading = self.full.is_empty() && self.charge_in < IN_MAX;
        self.charge_in -= charge;
        if slot.charge_in < STREAM_IN_MAX {
            self.full.remove(&id);
        }
        if self.phase == Phase::Open {
            let control = self.control.len();
            if slot.taken >= STREAM_WINDOW / 2 && !slot.ended && !slot.reset {
                Frame::WindowUpdate { id, delta: std::mem::take(&mut slot.taken) }.encode(&mut self.control);
            }
            self.credit(piece.len());
            if self.control.len() != control || !was_reading {
                wake_task(&self.task);
            }
        }
        Poll::Ready(Some(piece))
    }

    pub(super) fn drop_sender(&mut self, id: u32) {
        if let Some(slot) = self.streams.get_mut(&id) {
            slot.has_sender = false;
            self.drop_half(id);
        }
    }

    pub(super) fn drop_receiver(&mut self, id: u32) {
        let Some(slot) = self.streams.get_mut(&id) else { return };
        slot.has_receiver = false;
        let unread: usize = slot.pieces.drain(..).map(|piece| piece.len()).sum();
        self.charge_in -= std::mem::take(&mut slot.charge_in);
        self.full.remove(&id);
        self.credit(unread);
        wake_task(&self.task);
        self.drop_half(id);
    }

    fn drop_half(&mut self, id: u32) {
        let Some(slot) = self.streams.get(&id) else { return };
        if slot.has_sender || slot.has_receiver {
            return;
        }
        if slot.fin == Fin::No && !slot.reset {
            self.remove(id);
            self.say_reset(id, Reset::Cancel);
        } else {
            self.tidy(id);
        }
    }

    /// Sends what is queued and ends.
    pub(super) fn close(&mut self) {
        if self.phase == Phase::Open {
            self.phase = Phase::Closing;
            wake_task(&self.task);
        }
    }

    pub(super) fn drop_handle(&mut self) {
        self.handles -= 1;
        if self.handles == 0 {
            self.end();
            wake_task(&self.task);
        }
    }
}

impl State {
    /// Clients have the odd ids, of streams and of pings.
    fn is_ours(&self, id: u32) -> bool {
        (id % 2 == 1) == (self.role == Role::Client)
    }

    fn say_reset(&mut self, id: u32, why: Reset) {
        if matches!(self.phase, Phase::Open | Phase::Closing) {
            Frame::RstStream { id, status: why as u32 }.encode(&mut self.control);
            wake_task(&self.task);
        }
    }

    /// Resets a stream that has a slot.
    fn reset(&mut self, id: u32, why: Reset) {
        if self.streams.get(&id).is_some_and(|slot| !slot.reset) {
            self.say_reset(id, why);
            self.forget(id);
        }
    }

    /// The wire knows a stream no more. Its handles may.
    fn forget(&mut self, id: u32) {
        let Some(slot) = self.streams.get_mut(&id) else { return };
        slot.reset = true;
        slot.out.clear();
        self.charge_out -= std::mem::take(&mut slot.charge_out);
        slot.wake();
        self.tidy(id);
    }

    /// Removes a slot that nobody needs.
    fn tidy(&mut self, id: u32) {
        let Some(slot) = self.streams.get(&id) else { return };
        if !slot.has_sender && !slot.has_receiver && (slot.reset || slot.fin == Fin::Sent) {
            self.remove(id);
        }
    }

    fn remove(&mut self, id: u32) {
        if let Some(slot) = self.streams.remove(&id) {
            self.charge_in -= slot.charge_in;
            self.charge_out -= slot.charge_out;
            self.full.remove(&id);
            self.credit(slot.pieces.iter().map(Bytes::len).sum());
            if self.gone_away && self.streams.is_empty() {
                self.close();
            }
            wake_task(&self.task);
        }
    }

    fn make_ready(&mut self, id: u32) {
        if let Some(slot) = self.streams.get_mut(&id)
            && !slot.ready
        {
            slot.ready = true;
            self.ready.push_back(id);
        }
    }

    /// Whether nothing is held for streams: for tests, at the end of a connection.
    #[cfg(any(test, fuzzing))]
    pub(super) fn is_empty(&self) -> bool {
        self.streams.is_empty()
            && self.fresh.is_empty()
            && self.full.is_empty()
            && (self.charge_in, self.charge_out, self.unanswered) == (0, 0, 0)
    }
}

fn lost() -> io::Error {
    io::Error::new(ErrorKind::NotConnected, "the SPDY connection is closed")
}

fn register(place: &mut Option<Waker>, cx: &Context<'_>) {
    match place {
        Some(waker) => waker.clone_from(cx.waker()),
        None => *place = Some(cx.waker().clone()),
    }
}

fn wake(place: &mut Option<Waker>) {
    if let Some(waker) = place.take() {
        waker.wake();
    }
}

/// The task's waker stays: it registers only when it runs.
fn wake_task(task: &Option<Waker>) {
    if let Some(waker) = task {
        waker.wake_by_ref();
    }
}
