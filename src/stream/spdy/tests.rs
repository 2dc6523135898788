//! Connections as their users see them: two of ours against each other, and one against a peer that is driven frame by
//! frame, as well and as badly as peers can behave.

use std::io::ErrorKind;
use std::time::Duration;

use bytes::{BufMut, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::task::JoinSet;

use super::frame::tests::{GO, unhex};
use super::frame::{Decoder, Frame, GoAway, INITIAL_WINDOW_SIZE, Reset};
use super::headers::{Deflater, Inflater};
use super::*;

fn named(kind: &str) -> Headers {
    vec![("streamtype".to_owned(), kind.to_owned())]
}

/// A client and a server of ours.
fn pair() -> ((Connection, Incoming), (Connection, Incoming)) {
    let (a, b) = duplex(256 << 10);
    (Connection::new(a, Role::Client), Connection::new(b, Role::Server))
}

async fn read_all(mut receiver: Receiver) -> Vec<u8> {
    let mut all = Vec::new();
    while let Some(piece) = receiver.recv().await {
        all.extend_from_slice(&piece);
    }
    all
}

/// A stream of ours as both ends have it.
async fn opened(client: &Connection, incoming: &mut Incoming) -> (Stream, Stream) {
    let (there, here) = tokio::join!(client.open(named("data")), async {
        incoming.accept().await.unwrap().accept().await.unwrap()
    });
    (there.unwrap(), here)
}

/// A peer that is driven by a test.
struct Peer {
    io: DuplexStream,
    decoder: Decoder,
    buffer: BytesMut,
    inflater: Inflater,
    deflater: Deflater,
}

impl Peer {
    /// Such a client, and a server of ours. Whatever the server says first is read over.
    async fn client() -> (Self, Connection, Incoming) {
        let (io, server) = duplex(1 << 20);
        let (connection, incoming) = Connection::new(server, Role::Server);
        let (inflater, deflater) = Default::default();
        let mut peer = Self { io, decoder: Decoder::default(), buffer: BytesMut::new(), inflater, deflater };
        assert!(matches!(peer.hear().await, Some(Frame::Settings(_))));
        assert!(matches!(peer.hear().await, Some(Frame::WindowUpdate { id: 0, .. })));
        (peer, connection, incoming)
    }

    async fn say(&mut self, frame: Frame) {
        let mut wire = BytesMut::new();
        frame.encode(&mut wire);
        self.io.write_all(&wire).await.unwrap();
    }

    /// What the server says next; `None` when it closes.
    async fn hear(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.decoder.decode(&mut self.buffer).unwrap() {
                return Some(frame);
            }
            if self.io.read_buf(&mut self.buffer).await.unwrap() == 0 {
                return None;
            }
        }
    }

    async fn open(&mut self, id: u32) {
        let block = self.deflater.deflate(&named("data"));
        self.say(Frame::SynStream { id, fin: false, unidirectional: false, block }).await;
    }

    /// Opens a stream and has it accepted.
    async fn opened(&mut self, id: u32, incoming: &mut Incoming) -> Stream {
        self.open(id).await;
        let stream = incoming.accept().await.unwrap().accept().await.unwrap();
        assert!(matches!(self.hear().await, Some(Frame::SynReply { id: heard, .. }) if heard == id));
        stream
    }

    async fn data(&mut self, id: u32, fin: bool, bytes: &[u8]) {
        self.say(Frame::Data { id, fin, piece: Bytes::copy_from_slice(bytes) }).await;
    }

    /// `length` bytes of a stream, in however many frames, and whether they are its last.
    async fn hear_some(&mut self, id: u32, length: usize) -> bool {
        let mut left = length;
        loop {
            match self.hear().await {
                Some(Frame::Data { id: heard, fin, piece }) if heard == id && piece.len() <= left => {
                    left -= piece.len();
                    if left == 0 {
                        return fin;
                    }
                }
                other => panic!("{other:?} instead of {left} bytes"),
            }
        }
    }

    /// All data of a stream up to its end.
    async fn hear_all(&mut self, id: u32) -> Vec<u8> {
        let mut all = Vec::new();
        loop {
            match self.hear().await {
                Some(Frame::Data { id: heard, fin, piece }) if heard == id => {
                    all.extend_from_slice(&piece);
                    if fin {
                        return all;
                    }
                }
                other => panic!("{other:?} instead of data"),
            }
        }
    }
}

#[tokio::test]
async fn gos_frames_open_streams_and_carry_data() {
    let (mut peer, _connection, mut incoming) = Peer::client().await;
    for i in [0, 1, 3, 6, 9] {
        peer.io.write_all(&unhex(GO[i].1)).await.unwrap();
    }
    let first = incoming.accept().await.unwrap();
    assert_eq!((first.id, first.header("streamtype"), first.header("port")), (1, Some("error"), None));
    let second = incoming.accept().await.unwrap();
    assert_eq!((second.id, second.header("streamtype")), (3, Some("stdin")));
    let (mut sender, mut receiver) = first.accept().await.unwrap().split();
    // HEADERS with FIN came before the data.
    assert_eq!(receiver.recv().await, None);
    sender.send("bye".into()).await.ok();

    assert_eq!(peer.hear().await, Some(Frame::Ping(1)));
    assert_eq!(
        peer.hear().await,
        Some(Frame::RstStream { id: 1, status: Reset::StreamAlreadyClosed as u32 })
    );
    let (_, mut receiver) = second.accept().await.unwrap().split();
    assert_eq!(receiver.recv().await, None);
    let Some(Frame::SynReply { id: 3, block, .. }) = peer.hear().await else { panic!("no reply") };
    assert_eq!(headers::read(&peer.inflater.inflate(&block).unwrap()), Ok(Headers::new()));
}

#[tokio::test]
async fn a_stream_is_accepted_with_its_headers_or_refused() {
    let ((client, _a), (_server, mut incoming)) = pair();
    let headers = vec![("port".to_owned(), "80\x0081".to_owned()), ("requestid".to_owned(), "0".to_owned())];
    let (opened, ()) = tokio::join!(client.open(headers.clone()), async {
        let stream = incoming.accept().await.unwrap();
        assert_eq!((stream.id, &stream.headers), (1, &headers));
        let stream = stream.accept().await.unwrap();
        assert_eq!((stream.header("port"), stream.header("nothing")), (Some("80"), None));
    });
    assert_eq!(opened.unwrap().id, 1);
    for refuse in [true, false] {
        let (opened, ()) = tokio::join!(client.open(named("x")), async {
            let stream = incoming.accept().await.unwrap();
            if refuse { stream.refuse().await.unwrap() } else { drop(stream) }
        });
        assert_eq!(opened.unwrap_err().kind(), ErrorKind::ConnectionRefused);
    }
}

#[tokio::test]
async fn servers_open_streams_too() {
    let ((_client, mut incoming), (server, _b)) = pair();
    let (there, here) = tokio::join!(server.open(named("x")), async {
        incoming.accept().await.unwrap().accept().await.unwrap()
    });
    assert_eq!((there.unwrap().id, here.id), (2, 2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn much_data_goes_both_ways_at_once_byte_for_byte() {
    const PIECES: usize = 1024;
    let ((client, _a), (_server, mut incoming)) = pair();
    let (there, here) = opened(&client, &mut incoming).await;
    let piece = |i: usize| -> Bytes { (0..64 << 10).map(|j| (i * 7 + j * j) as u8).collect() };
    let mut work = JoinSet::new();
    for stream in [there, here] {
        let (mut sender, mut receiver) = stream.split();
        work.spawn(async move {
            for i in 0..PIECES {
                sender.send(piece(i)).await.unwrap();
            }
            sender.finish().await.unwrap();
        });
        work.spawn(async move {
            let mut rest = BytesMut::new();
            for i in 0..PIECES {
                while rest.len() < 64 << 10 {
                    rest.extend_from_slice(&receiver.recv().await.unwrap());
                }
                assert_eq!(rest.split_to(64 << 10), piece(i), "piece {i}");
            }
            assert!(rest.is_empty() && receiver.recv().await.is_none());
        });
    }
    work.join_all().await;
}

#[tokio::test]
async fn each_side_may_finish_first_and_still_hear_the_other() {
    let ((client, _a), (_server, mut incoming)) = pair();
    for client_first in [true, false] {
        let (there, here) = opened(&client, &mut incoming).await;
        let (first, second) = if client_first { (there, here) } else { (here, there) };
        let ((mut to, from), (mut back, heard)) = (first.split(), second.split());
        to.send("question".into()).await.unwrap();
        to.finish().await.unwrap();
        to.finish().await.unwrap();
        assert_eq!(to.send("more".into()).await.unwrap_err().kind(), ErrorKind::BrokenPipe);
        assert_eq!(read_all(heard).await, b"question");
        back.send("answer".into()).await.unwrap();
        back.finish().await.unwrap();
        assert_eq!(read_all(from).await, b"answer");
    }
}

#[tokio::test]
async fn a_dropped_half_tells_nothing_and_both_reset_the_stream() {
    let (mut peer, _connection, mut incoming) = Peer::client().await;
    let (sender, receiver) = peer.opened(1, &mut incoming).await.split();
    drop(sender);
    peer.data(1, false, b"heard").await;
    let mut receiver = receiver;
    assert_eq!(receiver.recv().await, Some("heard".into()));
    peer.say(Frame::Ping(1)).await;
    assert_eq!(peer.hear().await, Some(Frame::Ping(1)));
    drop(receiver);
    assert_eq!(peer.hear().await, Some(Frame::RstStream { id: 1, status: Reset::Cancel as u32 }));
    // What was on its way is answered once.
    peer.data(1, false, b"late").await;
    peer.data(1, true, b"later").await;
    peer.say(Frame::Ping(3)).await;
    assert_eq!(
        peer.hear().await,
        Some(Frame::RstStream { id: 1, status: Reset::StreamAlreadyClosed as u32 })
    );
    assert_eq!(peer.hear().await, Some(Frame::Ping(3)));
}

#[tokio::test]
async fn a_finished_sender_may_be_dropped_before_its_data_is_written() {
    let (mut peer, connection, mut incoming) = Peer::client().await;
    let (mut sender, receiver) = peer.opened(1, &mut incoming).await.split();
    drop(receiver);
    sender.send(vec![5; 200_000].into()).await.unwrap();
    sender.finish().await.unwrap();
    drop(sender);
    assert_eq!(peer.hear_all(1).await, vec![5; 200_000]);
    assert!(connection.shared.lock().is_empty());
}

#[tokio::test]
async fn a_reset_by_the_peer_ends_both_directions() {
    let (mut peer, _connection, mut incoming) = Peer::client().await;
    let (mut sender, mut receiver) = peer.opened(1, &mut incoming).await.split();
    peer.data(1, false, b"last words").await;
    peer.say(Frame::RstStream { id: 1, status: Reset::Cancel as u32 }).await;
    assert_eq!(receiver.recv().await, Some("last words".into()));
    assert_eq!(receiver.recv().await, None);
    assert_eq!(sender.send("x".into()).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert_eq!(sender.finish().await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    // A stream that was reset before it was accepted is accepted, and over.
    peer.open(3).await;
    peer.say(Frame::RstStream { id: 3, status: Reset::Cancel as u32 }).await;
    peer.say(Frame::Ping(1)).await;
    assert_eq!(peer.hear().await, Some(Frame::Ping(1)));
    let (_, mut receiver) = incoming.accept().await.unwrap().accept().await.unwrap().split();
    assert_eq!(receiver.recv().await, None);
}

#[tokio::test]
async fn a_peer_that_is_gone_wakes_everybody() {
    let (mut peer, connection, mut incoming) = Peer::client().await;
    let stream = peer.opened(1, &mut incoming).await;
    let unanswered = {
        peer.open(3).await;
        incoming.accept().await.unwrap()
    };
    let (mut sender, mut receiver) = stream.split();
    peer.data(1, false, b"unread").await;
    peer.say(Frame::Ping(1)).await;
    peer.hear().await;
    let stuck = tokio::spawn(async move {
        // More than the queues and the pipe hold.
        for _ in 0..100 {
            sender.send(vec![0; 64 << 10].into()).await?;
        }
        io::Result::Ok(())
    });
    drop(peer);
    assert_eq!(stuck.await.unwrap().unwrap_err().kind(), ErrorKind::NotConnected);
    assert_eq!(receiver.recv().await, Some("unread".into()));
    assert_eq!(receiver.recv().await, None);
    assert!(incoming.accept().await.is_none());
    assert!(unanswered.accept().await.is_err());
    assert_eq!(connection.open(named("x")).await.unwrap_err().kind(), ErrorKind::NotConnected);
    drop(receiver);
    assert!(connection.shared.lock().is_empty());
    connection.close().await;
}

#[tokio::test]
async fn closing_sends_what_is_queued_and_waits_for_the_peer() {
    let (mut peer, connection, mut incoming) = Peer::client().await;
    let (mut sender, _receiver) = peer.opened(1, &mut incoming).await.split();
    sender.send(vec![1; 250_000].into()).await.unwrap();
    sender.finish().await.unwrap();
    let closing = tokio::spawn(connection.close());
    assert_eq!(peer.hear_all(1).await, vec![1; 250_000]);
    assert_eq!(peer.hear().await, Some(Frame::GoAway { last_id: 1, status: GoAway::Ok as u32 }));
    assert_eq!(peer.hear().await, None);
    // What the client still says is read over.
    peer.data(1, false, &[0; 600_000]).await;
    assert!(incoming.accept().await.is_none());
    drop(peer);
    closing.await.unwrap();
}

#[tokio::test]
async fn dropping_both_handles_ends_the_connection_and_one_does_not() {
    let (mut peer, connection, mut incoming) = Peer::client().await;
    let stream = peer.opened(1, &mut incoming).await;
    drop(connection);
    peer.say(Frame::Ping(1)).await;
    assert_eq!(peer.hear().await, Some(Frame::Ping(1)));
    drop(incoming);
    assert_eq!(peer.hear().await, None);
    assert!(stream.split().0.send("x".into()).await.is_err());
}

#[tokio::test]
async fn a_peers_goodbye_closes_once_its_streams_are_done() {
    let (mut peer, _connection, mut incoming) = Peer::client().await;
    let (mut sender, receiver) = peer.opened(1, &mut incoming).await.split();
    peer.say(Frame::GoAway { last_id: 0, status: 0 }).await;
    peer.data(1, true, b"done").await;
    assert_eq!(read_all(receiver).await, b"done");
    sender.send("too".into()).await.unwrap();
    sender.finish().await.unwrap();
    drop(sender);
    assert_eq!(peer.hear_all(1).await, b"too");
    assert_eq!(peer.hear().await, Some(Frame::GoAway { last_id: 1, status: 0 }));
    assert_eq!(peer.hear().await, None);
    assert!(incoming.accept().await.is_none());
}

#[tokio::test]
async fn a_peer_without_windows_gets_everything() {
    let (mut peer, _connection, mut incoming) = Peer::client().await;
    let (mut sender, _receiver) = peer.opened(1, &mut incoming).await.split();
    let sending = tokio::spawn(async move {
        for _ in 0..100 {
            sender.send(vec![7; 32 << 10].into()).await.unwrap();
        }
        sender.finish().await.unwrap();
        sender
    });
    assert_eq!(peer.hear_all(1).await.len(), 100 * (32 << 10));
    sending.await.unwrap();
}

#[tokio::test]
async fn a_peer_with_windows_gets_what_it_grants() {
    let (mut peer, _connection, mut incoming) = Peer::client().await;
    peer.say(Frame::Settings(vec![(INITIAL_WINDOW_SIZE, 1000)])).await;
    let (mut sender, _receiver) = peer.opened(1, &mut incoming).await.split();
    sender.send(vec![7; 2000].into()).await.unwrap();
    sender.finish().await.unwrap();
    assert!(!peer.hear_some(1, 1000).await);
    peer.say(Frame::Ping(1)).await;
    assert_eq!(peer.hear().await, Some(Frame::Ping(1)), "nothing beyond the window");
    // Less for all takes from what was sent already.
    peer.say(Frame::Settings(vec![(INITIAL_WINDOW_SIZE, 900)])).await;
    peer.say(Frame::WindowUpdate { id: 1, delta: 100 }).await;
    peer.say(Frame::Ping(3)).await;
    assert_eq!(peer.hear().await, Some(Frame::Ping(3)));
    peer.say(Frame::WindowUpdate { id: 1, delta: 500 }).await;
    assert!(!peer.hear_some(1, 500).await);
    // The window of the connection counts from its first 64 KiB and from the first byte.
    peer.say(Frame::WindowUpdate { id: 0, delta: 1 }).await;
    peer.say(Frame::WindowUpdate { id: 1, delta: 5000 }).await;
    assert!(peer.hear_some(1, 500).await);
    let (mut sender, _receiver) = peer.opened(3, &mut incoming).await.split();
    peer.say(Frame::WindowUpdate { id: 3, delta: 1 << 20 }).await;
    sender.send(vec![7; 100_000].into()).await.unwrap();
    sender.finish().await.unwrap();
    let granted = (64 << 10) + 1 - 2000;
    assert!(!peer.hear_some(3, granted).await);
    peer.say(Frame::Ping(5)).await;
    assert_eq!(peer.hear().await, Some(Frame::Ping(5)));
    peer.say(Frame::WindowUpdate { id: 0, delta: 1 << 20 }).await;
    assert_eq!(granted + peer.hear_all(3).await.len(), 100_000);
}

#[tokio::test]
async fn a_grant_of_too_much_resets_the_stream() {
    let (mut peer, _connection, mut incoming) = Peer::client().await;
    let _stream = peer.opened(1, &mut incoming).await;
    peer.say(Frame::WindowUpdate { id: 1, delta: 0x7fff_ffff }).await;
    assert_eq!(peer.hear().await, Some(Frame::RstStream { id: 1, status: Reset::FlowControlError as u32 }));
}

#[tokio::test]
async fn a_slow_reader_stops_its_own_stream_and_no_other_if_the_peer_keeps_windows() {
    let ((client, _a), (_server, mut incoming)) = pair();
    let (slow, stuck) = opened(&client, &mut incoming).await;
    let (mut slow, _) = slow.split();
    let sending = tokio::spawn(async move {
        for _ in 0..64 {
            slow.send(vec![1; 64 << 10].into()).await.unwrap();
        }
        slow.finish().await.unwrap();
    });
    for _ in 0..50 {
        let (there, here) = opened(&client, &mut incoming).await;
        let ((mut sender, _), (_, receiver)) = (there.split(), here.split());
        sender.send(vec![2; 100_000].into()).await.unwrap();
        sender.finish().await.unwrap();
        assert_eq!(read_all(receiver).await, vec![2; 100_000]);
    }
    assert!(!sending.is_finished());
    assert_eq!(read_all(stuck.split().1).await.len(), 64 * (64 << 10));
    sending.await.unwrap();
}

#[tokio::test]
async fn a_peer_without_windows_is_stopped_by_a_stream_that_is_full_and_goes_on_when_it_is_not() {
    let (mut peer, connection, mut incoming) = Peer::client().await;
    let (_sender, receiver) = peer.opened(1, &mut incoming).await.split();
    let mut wire = BytesMut::new();
    for _ in 0..256 {
        Frame::Data { id: 1, fin: false, piece: vec![9; 32 << 10].into() }.encode(&mut wire);
    }
    Frame::Data { id: 1, fin: true, piece: Bytes::new() }.encode(&mut wire);
    let (mut from, mut to) = tokio::io::split(peer.io);
    let hearing = tokio::spawn(async move { from.read_to_end(&mut Vec::new()).await });
    let saying = tokio::spawn(async move {
        to.write_all(&wire).await.unwrap();
        to
    });
    // The peer stands still because our side does.
    while connection.shared.lock().may_read() {
        tokio::task::yield_now().await;
    }
    assert!(!saying.is_finished());
    assert_eq!(read_all(receiver).await.len(), 256 * (32 << 10));
    drop(saying.await.unwrap());
    drop((connection, incoming));
    hearing.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_goes_while_it_is_stopped_by_a_full_stream_is_noticed() {
    let (mut peer, connection, mut incoming) = Peer::client().await;
    let (_sender, _receiver) = peer.opened(1, &mut incoming).await.split();
    let started = tokio::time::Instant::now();
    for _ in 0..20 {
        peer.data(1, false, &[9; 32 << 10]).await;
    }
    for _ in 0..3 {
        assert!(matches!(peer.hear().await, Some(Frame::Settings(_))));
    }
    assert_eq!(started.elapsed().as_secs(), 3 * 15);
    assert!(!connection.shared.lock().may_read());
    drop(peer);
    assert!(incoming.accept().await.is_none());
    assert_eq!(started.elapsed().as_secs(), 4 * 15);
}

#[tokio::test]
async fn a_reader_that_gives_up_lets_a_stopped_peer_go_on() {
    let (mut peer, _connection, mut incoming) = Peer::client().await;
    let (_sender, receiver) = peer.opened(1, &mut incoming).await.split();
    for _ in 0..16 {
        peer.data(1, false, &[9; 64 << 10]).await;
    }
    peer.say(Frame::Ping(1)).await;
    drop(receiver);
    loop {
        match peer.hear().await {
            Some(Frame::WindowUpdate { .. }) => {}
            heard => break assert_eq!(heard, Some(Frame::Ping(1))),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_streams_at_once_echo() {
    let ((client, _a), (server, mut incoming)) = pair();
    let echo = tokio::spawn(async move {
        let mut work = JoinSet::new();
        while let Some(stream) = incoming.accept().await {
            work.spawn(async move {
                let (mut sender, mut receiver) = stream.accept().await.unwrap().split();
                while let Some(piece) = receiver.recv().await {
                    sender.send(piece).await.unwrap();
                }
                sender.finish().await.unwrap();
            });
        }
        work.join_all().await;
        server
    });
    let client = Arc::new(client);
    let mut work = JoinSet::new();
    for i in 0..1000_usize {
        let client = Arc::clone(&client);
        work.spawn(async move {
            // As many at a time as may be unanswered are let through; the others try again.
            let stream = loop {
                match client.open(named("echo")).await {
                    Ok(stream) => break stream,
                    Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionRefused),
                }
            };
            let (mut sender, receiver) = stream.split();
            sender.send(vec![i as u8; i * 10].into()).await.unwrap();
            sender.finish().await.unwrap();
            assert_eq!(read_all(receiver).await, vec![i as u8; i * 10]);
        });
    }
    work.join_all().await;
    assert!(client.shared.lock().is_empty());
    Arc::into_inner(client).unwrap().close().await;
    let server = echo.await.unwrap();
    assert!(server.shared.lock().is_empty());
}

#[tokio::test]
async fn streams_beyond_the_bound_are_refused_and_the_others_live() {
    let (mut peer, _connection, mut incoming) = Peer::client().await;
    for i in 0..300 {
        peer.open(2 * i + 1).await;
    }
    for i in 256..300 {
        let refused = Frame::RstStream { id: 2 * i + 1, status: Reset::RefusedStream as u32 };
        assert_eq!(peer.hear().await, Some(refused));
    }
    let stream = incoming.accept().await.unwrap();
    stream.accept().await.unwrap().split().0.send("hello".into()).await.unwrap();
    assert!(matches!(peer.hear().await, Some(Frame::SynReply { id: 1, .. })));
}

#[tokio::test]
async fn who_asks_for_endless_answers_must_take_some() {
    let (peer, connection, _incoming) = Peer::client().await;
    let (mut from, mut to) = tokio::io::split(peer.io);
    let mut pings = BytesMut::new();
    for i in 0..400_000 {
        Frame::Ping(2 * i + 1).encode(&mut pings);
    }
    let length = pings.len();
    let saying = tokio::spawn(async move {
        to.write_all(&pings).await.unwrap();
        to
    });
    while connection.shared.lock().may_read() {
        tokio::task::yield_now().await;
    }
    assert!(!saying.is_finished());
    // And all are answered to who does.
    from.read_exact(&mut vec![0; length]).await.unwrap();
    saying.await.unwrap();
}

#[tokio::test]
async fn what_must_not_be_ends_the_connection_with_a_word() {
    let good = Deflater::default().deflate(&named("data"));
    let syn = |id| Frame::SynStream { id, fin: false, unidirectional: false, block: good.clone() };
    let bytes = |frames: &[Frame]| {
        let mut wire = BytesMut::new();
        frames.iter().for_each(|frame| frame.encode(&mut wire));
        wire
    };
    let plain = |kind: u16, length: u32| {
        let mut wire = BytesMut::new();
        wire.put_u16(0x8003);
        wire.put_u16(kind);
        wire.put_u32(length);
        wire.put_bytes(0xff, length as usize);
        wire
    };
    let bad_block = |block: &'static [u8]| {
        bytes(&[Frame::SynStream { id: 1, fin: false, unidirectional: false, block: block.into() }])
    };
    let hello = || BytesMut::from(&b"GET /exec HTTP/1.1\r\nHost: localhost\r\n\r\n\xff"[..]);
    for (name, wire) in [
        ("another version", unhex("800200060000000400000001")),
        ("an endless control frame", plain(1, 0x00ff_fff0)),
        ("a short control frame", plain(3, 4)),
        ("settings that lie about their number", plain(4, 12)),
        ("data on stream 0", unhex("0000000000000001ff")),
        ("headers that are not compressed", bad_block(b"\0\0\0\0")),
        ("headers that end the compression", bad_block(b"\x78\x9c\x03\0\0\0\0\x01")),
        ("a stream with an id of ours", bytes(&[syn(2)])),
        (
            "the same stream twice",
            bytes(&[
                syn(1),
                Frame::SynStream {
                    id: 1,
                    fin: false,
                    unidirectional: false,
                    block: b"\x62\x60\x60\x60\0\0\0\0\xff\xff"[..].into(),
                },
            ]),
        ),
        ("too wide windows", bytes(&[Frame::Settings(vec![(INITIAL_WINDOW_SIZE, 0x8000_0000)])])),
        ("too much for the connection", bytes(&[Frame::WindowUpdate { id: 0, delta: 0x7fff_ffff }])),
    ] {
        let (mut peer, connection, mut incoming) = Peer::client().await;
        peer.io.write_all(&wire).await.unwrap();
        let last = loop {
            match peer.hear().await {
                Some(Frame::GoAway { status, .. }) => break status,
                Some(_) => {}
                None => panic!("{name}: no GOAWAY"),
            }
        };
        assert_eq!((last, peer.hear().await), (GoAway::ProtocolError as u32, None), "{name}");
        assert!(incoming.accept().await.is_none(), "{name}");
        drop(peer);
        let shared = Arc::clone(&connection.shared);
        connection.close().await;
        assert!(shared.lock().is_empty(), "{name}");
    }
    // HTTP looks like a long data frame of an unknown stream: it is answered, and ends with its sender.
    let (mut peer, _connection, mut incoming) = Peer::client().await;
    peer.io.write_all(&hello()).await.unwrap();
    assert!(matches!(peer.hear().await, Some(Frame::RstStream { status: 2, .. })));
    peer.io.shutdown().await.unwrap();
    assert!(incoming.accept().await.is_none());
}

#[tokio::test]
async fn what_is_wrong_with_one_stream_ends_only_that_one() {
    let (mut peer, _connection, mut incoming) = Peer::client().await;
    let reset = |id, why: Reset| Some(Frame::RstStream { id, status: why as u32 });
    let block = peer.deflater.deflate(&vec![("Upper".to_owned(), "case".to_owned())]);
    peer.say(Frame::SynStream { id: 1, fin: false, unidirectional: false, block }).await;
    assert_eq!(peer.hear().await, reset(1, Reset::ProtocolError));
    peer.say(Frame::SynStream { id: 3, fin: false, unidirectional: false, block: Bytes::new() }).await;
    assert_eq!(peer.hear().await, reset(3, Reset::ProtocolError));
    peer.data(9, false, b"to nobody").await;
    assert_eq!(peer.hear().await, reset(9, Reset::InvalidStream));
    let _stream = peer.opened(11, &mut incoming).await;
    peer.data(11, true, b"").await;
    peer.data(11, false, b"after the end").await;
    assert_eq!(peer.hear().await, reset(11, Reset::StreamAlreadyClosed));
    let _stream = peer.opened(13, &mut incoming).await;
    let block = peer.deflater.deflate(&Headers::new());
    peer.say(Frame::SynReply { id: 13, fin: false, block }).await;
    assert_eq!(peer.hear().await, reset(13, Reset::ProtocolError));
    // Frames about streams that are gone are no more than late.
    peer.say(Frame::RstStream { id: 11, status: 5 }).await;
    peer.say(Frame::WindowUpdate { id: 11, delta: 5 }).await;
    peer.data(11, true, b"").await;
    let (_, receiver) = peer.opened(15, &mut incoming).await.split();
    peer.data(15, true, b"fine").await;
    assert_eq!(read_all(receiver).await, b"fine");
}

#[tokio::test]
async fn a_stream_of_one_direction_takes_no_data_of_ours() {
    let (mut peer, _connection, mut incoming) = Peer::client().await;
    let block = peer.deflater.deflate(&named("data"));
    peer.say(Frame::SynStream { id: 1, fin: false, unidirectional: true, block }).await;
    peer.data(1, true, b"heard").await;
    let (mut sender, receiver) = incoming.accept().await.unwrap().accept().await.unwrap().split();
    assert_eq!(sender.send("x".into()).await.unwrap_err().kind(), ErrorKind::BrokenPipe);
    assert_eq!(read_all(receiver).await, b"heard");
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_takes_nothing_does_not_hold_up_closing_for_ever() {
    let (mut peer, connection, mut incoming) = Peer::client().await;
    let (mut sender, _receiver) = peer.opened(1, &mut incoming).await.split();
    let started = tokio::time::Instant::now();
    while let Ok(sent) =
        tokio::time::timeout(Duration::from_secs(1), sender.send(vec![0; 64 << 10].into())).await
    {
        sent.unwrap();
    }
    connection.close().await;
    assert_eq!(started.elapsed().as_secs(), 1 + 10);
    drop(peer);
}

/// Listens on the address in `BRIG_SPDY_LISTEN` and serves what comes as the interoperability programs of other languages
/// expect: a stream's header `streamtype` says what is done with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "serves a client that is started by hand, until it says \"quit\""]
async fn serves_clients_of_other_implementations() {
    let address = std::env::var("BRIG_SPDY_LISTEN").expect("BRIG_SPDY_LISTEN=127.0.0.1:PORT");
    let listener = tokio::net::TcpListener::bind(address).await.unwrap();
    loop {
        let (socket, _) = listener.accept().await.unwrap();
        socket.set_nodelay(true).unwrap();
        let (connection, mut incoming) = Connection::new(socket, Role::Server);
        let mut work = JoinSet::new();
        let mut quit = false;
        while let Some(stream) = incoming.accept().await {
            let kind = stream.header("streamtype").unwrap_or_default().to_owned();
            match kind.as_str() {
                "refuse" => stream.refuse().await.unwrap(),
                "quit" => {
                    stream.accept().await.unwrap().split().0.finish().await.unwrap();
                    quit = true;
                    break;
                }
                "echo" => {
                    let (mut sender, mut receiver) = stream.accept().await.unwrap().split();
                    work.spawn(async move {
                        while let Some(piece) = receiver.recv().await {
                            sender.send(piece).await.ok();
                        }
                        sender.finish().await.ok();
                    });
                }
                "sink" => {
                    let (mut sender, mut receiver) = stream.accept().await.unwrap().split();
                    work.spawn(async move {
                        let mut length = 0;
                        while let Some(piece) = receiver.recv().await {
                            length += piece.len();
                        }
                        sender.send(length.to_string().into()).await.ok();
                        sender.finish().await.ok();
                    });
                }
                source => {
                    let length: usize = source.parse().unwrap();
                    let (mut sender, _) = stream.accept().await.unwrap().split();
                    work.spawn(async move {
                        let chunk = Bytes::from(vec![b's'; 64 << 10]);
                        let mut left = length;
                        while left > 0 {
                            let piece = chunk.slice(..left.min(chunk.len()));
                            left -= piece.len();
                            if sender.send(piece).await.is_err() {
                                return;
                            }
                        }
                        sender.finish().await.ok();
                    });
                }
            }
        }
        work.join_all().await;
        connection.close().await;
        if quit {
            return;
        }
    }
}
