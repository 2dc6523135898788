//! As much of D-Bus as calls to systemd need: marshalling, and one connection that asks and waits.
//!
//! ```text
//! connect ─▶ "\0AUTH EXTERNAL <uid in hex>" ─▶ OK ─▶ BEGIN ─▶ (Hello, on a bus) ─▶ call, call, … ─▶ close
//! ```
//!
//! Little endian only, as the machines are that Brig runs on, and no file descriptors. Everything blocks, with a deadline.
//! From the D-Bus specification, chapters "Type system", "Message Protocol" and "Authentication Protocol".

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::sockopt::{self, Timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};

/// systemd's answers are short; the longest signal that reaches us names one job.
const MESSAGE_BYTES_MAX: usize = 1 << 20;
/// The reply to AUTH is one line.
const AUTH_BYTES_MAX: usize = 1024;

/// A value together with its type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Value {
    Bool(bool),
    U64(u64),
    Text(String),
    Bytes(Vec<u8>),
    U32s(Vec<u32>),
    Texts(Vec<String>),
}

impl Value {
    fn signature(&self) -> &'static str {
        match self {
            Self::Bool(_) => "b",
            Self::U64(_) => "t",
            Self::Text(_) => "s",
            Self::Bytes(_) => "ay",
            Self::U32s(_) => "au",
            Self::Texts(_) => "as",
        }
    }
}

/// A message body under construction. Alignment counts from its start, which a message puts on eight bytes.
#[derive(Debug, Default)]
pub(super) struct Body {
    bytes: Vec<u8>,
    signature: String,
}

impl Body {
    pub(super) fn text(mut self, text: &str) -> Self {
        self.signature.push('s');
        put_text(&mut self.bytes, text);
        self
    }

    pub(super) fn bool(mut self, yes: bool) -> Self {
        self.signature.push('b');
        put_u32(&mut self.bytes, yes.into());
        self
    }

    /// `a(sv)`.
    pub(super) fn properties(mut self, properties: &[(&str, Value)]) -> Self {
        self.signature.push_str("a(sv)");
        put_array(&mut self.bytes, 8, |bytes| {
            for (name, value) in properties {
                align(bytes, 8);
                put_text(bytes, name);
                put_variant(bytes, value);
            }
        });
        self
    }

    /// `a(sa(sv))`, empty: the auxiliary units of StartTransientUnit, which nobody uses.
    pub(super) fn no_units(mut self) -> Self {
        self.signature.push_str("a(sa(sv))");
        put_array(&mut self.bytes, 8, |_| {});
        self
    }
}

fn align(bytes: &mut Vec<u8>, to: usize) {
    bytes.resize(bytes.len().next_multiple_of(to), 0);
}

fn put_u32(bytes: &mut Vec<u8>, number: u32) {
    align(bytes, 4);
    bytes.extend(number.to_le_bytes());
}

fn length(len: usize) -> u32 {
    u32::try_from(len).expect("nothing that we send comes near 4 GiB")
}

fn put_text(bytes: &mut Vec<u8>, text: &str) {
    put_u32(bytes, length(text.len()));
    bytes.extend(text.as_bytes());
    bytes.push(0);
}

fn put_signature(bytes: &mut Vec<u8>, signature: &str) {
    bytes.push(u8::try_from(signature.len()).expect("our signatures are short"));
    bytes.extend(signature.as_bytes());
    bytes.push(0);
}

/// The length of an array leaves out the padding before its first element, which is there even when it is empty.
fn put_array(bytes: &mut Vec<u8>, element_align: usize, elements: impl FnOnce(&mut Vec<u8>)) {
    put_u32(bytes, 0);
    let length_at = bytes.len() - 4;
    align(bytes, element_align);
    let start = bytes.len();
    elements(bytes);
    let len = length(bytes.len() - start);
    bytes[length_at..length_at + 4].copy_from_slice(&len.to_le_bytes());
}

fn put_variant(bytes: &mut Vec<u8>, value: &Value) {
    put_signature(bytes, value.signature());
    match value {
        Value::Bool(yes) => put_u32(bytes, (*yes).into()),
        Value::U64(number) => {
            align(bytes, 8);
            bytes.extend(number.to_le_bytes());
        }
        Value::Text(text) => put_text(bytes, text),
        Value::Bytes(own) => put_array(bytes, 1, |bytes| bytes.extend(own)),
        Value::U32s(numbers) => {
            put_array(bytes, 4, |bytes| numbers.iter().for_each(|number| put_u32(bytes, *number)));
        }
        Value::Texts(texts) => {
            put_array(bytes, 4, |bytes| texts.iter().for_each(|text| put_text(bytes, text)));
        }
    }
}

/// What is called.
#[derive(Debug, Clone, Copy)]
pub(super) struct Method<'a> {
    pub(super) destination: &'a str,
    pub(super) path: &'a str,
    pub(super) interface: &'a str,
    pub(super) member: &'a str,
}

const CALL: u8 = 1;
const RETURN: u8 = 2;
const ERROR: u8 = 3;
const SIGNAL: u8 = 4;

/// A method call. Its reply is expected.
fn call(method: Method<'_>, serial: u32, body: &Body) -> Vec<u8> {
    let mut bytes = vec![b'l', CALL, 0, 1];
    put_u32(&mut bytes, length(body.bytes.len()));
    put_u32(&mut bytes, serial);
    put_array(&mut bytes, 8, |bytes| {
        let fields = [
            (1, "o", method.path),
            (2, "s", method.interface),
            (3, "s", method.member),
            (6, "s", method.destination),
        ];
        for (code, signature, text) in fields.into_iter().filter(|(.., text)| !text.is_empty()) {
            align(bytes, 8);
            bytes.push(code);
            put_signature(bytes, signature);
            put_text(bytes, text);
        }
        if !body.signature.is_empty() {
            align(bytes, 8);
            bytes.push(8);
            put_signature(bytes, "g");
            put_signature(bytes, &body.signature);
        }
    });
    align(&mut bytes, 8);
    bytes.extend(&body.bytes);
    bytes
}

/// What came, as far as it matters to us.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Message {
    kind: u8,
    reply_to: Option<u32>,
    pub(super) member: Option<String>,
    error: Option<String>,
    signature: String,
    body: Vec<u8>,
}

impl Message {
    /// The texts and numbers of a body that holds nothing but `s`, `o` and `u`, the numbers as text.
    pub(super) fn words(&self) -> io::Result<Vec<String>> {
        let mut reader = Reader { bytes: &self.body, at: 0 };
        let word = |kind| match kind {
            's' | 'o' => reader.text(),
            'u' => reader.u32().map(|number| number.to_string()),
            _ => Err(malformed("a type that was not expected")),
        };
        self.signature.chars().map(word).collect()
    }
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("malformed D-Bus message: {what}"))
}

/// The fixed part of a header, and the length of its array of fields.
const HEADER_BYTES: usize = 16;

/// How many bytes follow the first [`HEADER_BYTES`].
fn rest_length(header: &[u8; HEADER_BYTES]) -> io::Result<usize> {
    if header[0] != b'l' || header[3] != 1 {
        return Err(malformed("neither little endian nor version 1"));
    }
    let number =
        |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]) as usize;
    let rest = number(12).next_multiple_of(8).saturating_add(number(4));
    if rest > MESSAGE_BYTES_MAX { Err(malformed("longer than 1 MiB")) } else { Ok(rest) }
}

fn parse(bytes: &[u8]) -> io::Result<Message> {
    let mut reader = Reader { bytes, at: 4 };
    let mut message =
        Message { kind: *bytes.get(1).ok_or_else(|| malformed("too short"))?, ..Message::default() };
    let (body_len, _serial, fields_len) = (reader.u32()? as usize, reader.u32()?, reader.u32()? as usize);
    let end = reader.at + fields_len;
    while reader.at < end {
        reader.align(8);
        let code = reader.take(1)?[0];
        match (reader.signature()?.as_str(), code) {
            ("u", 5) => message.reply_to = Some(reader.u32()?),
            ("u", _) => drop(reader.u32()?),
            ("g", 8) => message.signature = reader.signature()?,
            ("g", _) => drop(reader.signature()?),
            ("s", 3) => message.member = Some(reader.text()?),
            ("s", 4) => message.error = Some(reader.text()?),
            ("s" | "o", _) => drop(reader.text()?),
            _ => return Err(malformed("a header field of an unknown type")),
        }
    }
    reader.align(8);
    message.body = reader.take(body_len)?.to_vec();
    Ok(message)
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn align(&mut self, to: usize) {
        self.at = self.at.next_multiple_of(to);
    }

    fn take(&mut self, len: usize) -> io::Result<&'a [u8]> {
        let end = self.at.checked_add(len).ok_or_else(|| malformed("a length beyond its end"))?;
        let taken = self.bytes.get(self.at..end).ok_or_else(|| malformed("a length beyond its end"))?;
        self.at = end;
        Ok(taken)
    }

    fn u32(&mut self) -> io::Result<u32> {
        self.align(4);
        let bytes = self.take(4)?;
        Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    fn utf8(&mut self, len: usize) -> io::Result<String> {
        let text = std::str::from_utf8(self.take(len)?).map_err(|_| malformed("a text that is not UTF-8"))?;
        self.take(1)?;
        Ok(text.to_owned())
    }

    fn text(&mut self) -> io::Result<String> {
        let len = self.u32()? as usize;
        self.utf8(len)
    }

    fn signature(&mut self) -> io::Result<String> {
        let len = usize::from(self.take(1)?[0]);
        self.utf8(len)
    }
}

/// Why a call has no result.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    #[error("talk over D-Bus")]
    Io(#[from] io::Error),
    /// The other side's own words.
    #[error("{text} ({name})")]
    Refused { name: String, text: String },
}

/// A listener that has as many waiting as it wants makes `connect` wait, for as long as a write may take on the socket: a
/// unix socket that does not block would fail at once instead, with nothing to poll for.
fn connect(path: &Path, patience: Duration) -> io::Result<UnixStream> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    sockopt::set_socket_timeout(&socket, Timeout::Send, Some(patience))?;
    match rustix::net::connect(&socket, &SocketAddrUnix::new(path)?) {
        Ok(()) => Ok(socket.into()),
        Err(Errno::AGAIN) => {
            Err(io::Error::new(io::ErrorKind::TimedOut, "nobody took a D-Bus connection in time"))
        }
        Err(error) => Err(error.into()),
    }
}

/// A connection to a bus, or to systemd itself. Closed when dropped.
#[derive(Debug)]
pub(super) struct Connection {
    socket: UnixStream,
    serial: u32,
    /// When waiting is over, whatever is waited for.
    deadline: Instant,
    /// Signals that came while a reply was waited for; as many as [`Self::SIGNALS_MAX`].
    signals: Vec<Message>,
}

impl Connection {
    /// A node that starts a hundred pods at once makes some hundreds of jobs; more than this has lost its meaning.
    const SIGNALS_MAX: usize = 4096;

    /// Connects and authenticates as this process's user.
    pub(super) fn open(path: &Path, patience: Duration) -> io::Result<Self> {
        let deadline = Instant::now() + patience;
        let socket = connect(path, patience)?;
        let mut this = Self { socket, serial: 0, deadline, signals: Vec::new() };
        this.authenticate()?;
        Ok(this)
    }

    fn authenticate(&mut self) -> io::Result<()> {
        let uid = rustix::process::geteuid().as_raw().to_string();
        let hex: String = uid.bytes().map(|digit| format!("{digit:02x}")).collect();
        // The one byte that comes before everything once carried the credentials.
        self.socket.write_all(format!("\0AUTH EXTERNAL {hex}\r\n").as_bytes())?;
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            let mut byte = [0];
            self.read(&mut byte)?;
            line.push(byte[0]);
            if line.len() > AUTH_BYTES_MAX {
                return Err(malformed("an endless answer to AUTH"));
            }
        }
        if !line.starts_with(b"OK ") {
            let said = String::from_utf8_lossy(&line).trim().to_owned();
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                format!("D-Bus said {said:?} to AUTH"),
            ));
        }
        self.socket.write_all(b"BEGIN\r\n")
    }

    /// Fills `buffer`, or fails when the deadline is over.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        let mut filled = 0;
        while filled < buffer.len() {
            let left = self.deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "no answer over D-Bus in time"));
            }
            self.socket.set_read_timeout(Some(left))?;
            match self.socket.read(&mut buffer[filled..]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => filled += n,
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn receive(&mut self) -> io::Result<Message> {
        let mut header = [0; HEADER_BYTES];
        self.read(&mut header)?;
        let mut message = header.to_vec();
        message.resize(HEADER_BYTES + rest_length(&header)?, 0);
        self.read(&mut message[HEADER_BYTES..])?;
        parse(&message)
    }

    /// Calls a method and waits for its result.
    pub(super) fn call(&mut self, method: Method<'_>, body: &Body) -> Result<Message, CallError> {
        let serial = self.send(method, body)?;
        loop {
            let message = self.receive()?;
            match message.kind {
                RETURN if message.reply_to == Some(serial) => return Ok(message),
                ERROR if message.reply_to == Some(serial) => {
                    let text = message.words().unwrap_or_default().into_iter().next().unwrap_or_default();
                    return Err(CallError::Refused { name: message.error.unwrap_or_default(), text });
                }
                SIGNAL if self.signals.len() < Self::SIGNALS_MAX => self.signals.push(message),
                _ => {}
            }
        }
    }

    /// Sends a call whose result does not matter.
    pub(super) fn send(&mut self, method: Method<'_>, body: &Body) -> io::Result<u32> {
        self.serial += 1;
        let bytes = call(method, self.serial, body);
        self.socket.set_write_timeout(Some(Duration::from_secs(10)))?;
        self.socket.write_all(&bytes)?;
        Ok(self.serial)
    }

    /// The first signal that `wanted` accepts, of those that came already and of those to come.
    pub(super) fn wait_signal<T>(&mut self, wanted: impl Fn(&Message) -> Option<T>) -> io::Result<T> {
        if let Some(found) = self.signals.iter().find_map(&wanted) {
            return Ok(found);
        }
        loop {
            let message = self.receive()?;
            if message.kind == SIGNAL
                && let Some(found) = wanted(&message)
            {
                return Ok(found);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    const STOP: Method<'_> = Method {
        destination: "org.freedesktop.systemd1",
        path: "/org/freedesktop/systemd1",
        interface: "org.freedesktop.systemd1.Manager",
        member: "StopUnit",
    };

    #[test]
    fn a_listener_that_takes_nobody_is_waited_for_no_longer_than_patience() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bus");
        let listener = UnixListener::bind(&path).unwrap();
        // Room for one.
        rustix::net::listen(&listener, 0).unwrap();
        let _first = UnixStream::connect(&path).unwrap();
        let error = connect(&path, Duration::from_millis(20)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{error}");
        drop(listener.accept().unwrap());
        connect(&path, Duration::from_millis(20)).unwrap();
    }

    /// The golden bytes of these tests were written by another implementation (jeepney 0.9).
    fn joined(parts: &[&[u8]]) -> Vec<u8> {
        parts.concat()
    }

    #[test]
    fn a_call_has_these_very_bytes() {
        let expected = joined(&[
            b"l\x01\0\x01\x18\0\0\0\x07\0\0\0\xa0\0\0\0\x01\x01o\0\x19\0\0\0/org/freedesktop/syste",
            b"md1\0\0\0\0\0\0\0\x02\x01s\0 \0\0\0org.freedesktop.systemd1.Manager\0\0\0\0\0\0\0\0",
            b"\x03\x01s\0\x08\0\0\0StopUnit\0\0\0\0\0\0\0\0\x06\x01s\0\x18\0\0\0org.freedesktop.sy",
            b"stemd1\0\0\0\0\0\0\0\0\x08\x01g\0\x02ss\0\x07\0\0\0a.scope\0\x07\0\0\0replace\0",
        ]);
        let body = Body::default().text("a.scope").text("replace");
        assert_eq!(call(STOP, 7, &body), expected);
    }

    #[test]
    fn properties_have_these_very_bytes() {
        let properties = [
            ("TasksMax", Value::U64(5)),
            ("PIDs", Value::U32s(vec![42])),
            ("Delegate", Value::Bool(true)),
            ("AllowedCPUs", Value::Bytes(vec![3])),
            ("Wants", Value::Texts(vec!["a.slice".to_owned()])),
        ];
        let expected = joined(&[
            b"\x88\0\0\0\0\0\0\0\x08\0\0\0TasksMax\0\x01t\0\x05\0\0\0\0\0\0\0\x04\0\0\0PIDs\0\x02a",
            b"u\0\0\0\0\x04\0\0\0*\0\0\0\x08\0\0\0Delegate\0\x01b\0\x01\0\0\0\0\0\0\0\x0b\0\0\0All",
            b"owedCPUs\0\x02ay\0\x01\0\0\0\x03\0\0\0\0\0\0\0\x05\0\0\0Wants\0\x02as\0\0\0\x0c\0\0",
            b"\0\x07\0\0\0a.slice\0",
        ]);
        let body = Body::default().properties(&properties);
        assert_eq!(body.signature, "a(sv)");
        assert_eq!(body.bytes, expected, "{:?}", String::from_utf8_lossy(&body.bytes));
    }

    #[test]
    fn a_signal_is_read_with_its_words() {
        let bytes = joined(&[
            b"l\x04\0\x01%\0\0\0\x09\0\0\0b\0\0\0\x01\x01o\0\x02\0\0\0/x\0\0\0\0\0\0\x02\x01s\0 \0",
            b"\0\0org.freedesktop.systemd1.Manager\0\0\0\0\0\0\0\0\x03\x01s\0\x0a\0\0\0JobRemoved",
            b"\0\0\0\0\0\0\x08\x01g\0\x04uoss\0\0\0\0\0\0\0\x05\0\0\0\x04\0\0\0/j/5\0\0\0\0\x07\0",
            b"\0\0a.scope\0\x04\0\0\0done\0",
        ]);
        let mut header = [0; HEADER_BYTES];
        header.copy_from_slice(&bytes[..HEADER_BYTES]);
        let message = parse(&bytes).unwrap_or_else(|error| panic!("{error}: {}", bytes.len()));
        assert_eq!((message.kind, message.member.as_deref()), (SIGNAL, Some("JobRemoved")));
        assert_eq!(message.words().unwrap(), ["5", "/j/5", "a.scope", "done"]);
    }

    #[test]
    fn a_message_that_lies_about_its_lengths_is_refused() {
        let good = call(STOP, 1, &Body::default().text("a"));
        for at in 4..good.len() {
            for value in [0xff, 0x7f] {
                let mut bad = good.clone();
                bad[at] = value;
                // Whatever it says, it is read or refused and never panics.
                let _ = parse(&bad).and_then(|message| message.words());
            }
            let _ = parse(&good[..at]);
        }
        let mut long = [0; HEADER_BYTES];
        long.copy_from_slice(&good[..HEADER_BYTES]);
        long[7] = 0x10;
        assert_eq!(rest_length(&long).unwrap_err().to_string(), "malformed D-Bus message: longer than 1 MiB");
        long[0] = b'B';
        assert!(rest_length(&long).is_err());
    }

    #[test]
    fn a_refused_call_keeps_the_words_and_a_silent_peer_ends_with_the_deadline() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bus");
        let listener = UnixListener::bind(&path).unwrap();
        let server = std::thread::spawn(move || {
            let (mut peer, _) = listener.accept().unwrap();
            let mut auth = [0; 64];
            let n = peer.read(&mut auth).unwrap();
            assert!(auth[..n].starts_with(b"\0AUTH EXTERNAL 3"), "{:?}", &auth[..n]);
            peer.write_all(b"OK 1234\r\n").unwrap();
            let mut rest = vec![0; 7];
            peer.read_exact(&mut rest).unwrap();
            assert_eq!(rest, b"BEGIN\r\n");
            let mut request = [0; 512];
            let _ = peer.read(&mut request).unwrap();
            let error = joined(&[
                b"l\x03\0\x01\x09\0\0\0\x01\0\0\0\x1f\0\0\0\x04\x01s\0\x03\0\0\0a.b\0\0\0\0\0\x05\x01u",
                b"\0\x01\0\0\0\x08\x01g\0\x01s\0\0\x04\0\0\0nope\0",
            ]);
            peer.write_all(&error).unwrap();
            // Until the other side gives up.
            let _ = peer.read(&mut request);
            let _ = peer.read(&mut request);
        });
        let mut connection = Connection::open(&path, Duration::from_millis(300)).unwrap();
        let refused = connection.call(STOP, &Body::default()).unwrap_err();
        assert_eq!(refused.to_string(), "nope (a.b)");
        assert!(matches!(connection.call(STOP, &Body::default()), Err(CallError::Io(error))
            if error.kind() == io::ErrorKind::TimedOut));
        drop(connection);
        server.join().unwrap();
    }
}
