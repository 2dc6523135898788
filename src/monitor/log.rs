//! A container's log in the kubelet's format, one line at a time:
//!
//! ```text
//! 2026-01-02T03:04:05.000000006Z stdout F a whole line
//! 2026-01-02T03:04:05.000000006Z stderr P a piece of one: 16 KiB of a longer line, or its stream or container ended
//! ```
//!
//! A piece of a line stays in memory until its end comes. When the disk is full, lines are dropped and the container
//! goes on: an undrained pipe would stop it.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};

use crate::sys::clock;

/// Content bytes of one log line; the kubelet's reader glues pieces (containerd's `max_container_log_line_size`).
pub(super) const LINE_MAX: usize = 16 << 10;

/// Which stream a line is from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stream {
    Stdout,
    Stderr,
}

/// Cuts one stream into lines of the log.
#[derive(Debug)]
pub(super) struct Lines {
    stream: Stream,
    /// The beginning of a line whose end has not come; at most [`LINE_MAX`].
    pending: Vec<u8>,
}

impl Lines {
    pub(super) fn new(stream: Stream) -> Self {
        Self { stream, pending: Vec::new() }
    }

    pub(super) fn stream(&self) -> Stream {
        self.stream
    }

    /// Adds what of `input` are whole lines, read at `now`, to `output`. Keeps the rest.
    pub(super) fn push(&mut self, mut input: &[u8], now: Duration, output: &mut Vec<u8>) {
        while !input.is_empty() {
            let room = LINE_MAX - self.pending.len();
            let end = input[..input.len().min(room + 1)].iter().position(|byte| *byte == b'\n');
            let (piece, tag, used) = match end {
                Some(end) => (&input[..end], b'F', end + 1),
                None if input.len() > room => (&input[..room], b'P', room),
                None => {
                    self.pending.extend_from_slice(input);
                    return;
                }
            };
            self.line(piece, tag, now, output);
            input = &input[used..];
        }
    }

    /// The stream has ended, or its container: what is kept becomes a piece.
    pub(super) fn finish(&mut self, now: Duration, output: &mut Vec<u8>) {
        if !self.pending.is_empty() {
            self.line(&[], b'P', now, output);
        }
    }

    fn line(&mut self, rest: &[u8], tag: u8, now: Duration, output: &mut Vec<u8>) {
        let stream: &[u8] = match self.stream {
            Stream::Stdout => b" stdout ",
            Stream::Stderr => b" stderr ",
        };
        output.extend_from_slice(&clock::rfc3339(now).0);
        output.extend_from_slice(stream);
        output.extend_from_slice(&[tag, b' ']);
        output.extend_from_slice(&self.pending);
        output.extend_from_slice(rest);
        output.push(b'\n');
        // Not clear(): an idle stream holds no memory.
        self.pending = Vec::new();
    }
}

/// The open log file.
#[derive(Debug)]
pub(super) struct LogFile {
    file: File,
    /// The last write was cut short: the file ends inside a line.
    torn: bool,
}

impl LogFile {
    /// Opens or makes `name` in `directory`, to append to. A symbolic link or a path is refused.
    pub(super) fn open(directory: impl AsFd, name: &str) -> io::Result<Self> {
        if name.is_empty() || name.contains('/') || name == ".." || name == "." {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{name:?} is no file name")));
        }
        let flags = OFlags::WRONLY
            | OFlags::APPEND
            | OFlags::CREATE
            | OFlags::CLOEXEC
            | OFlags::NOFOLLOW
            | OFlags::NONBLOCK
            | OFlags::NOCTTY;
        // Readable by the log collector's group.
        let file: OwnedFd = rustix::fs::openat(directory, name, flags, Mode::from_raw_mode(0o640))?;
        Ok(Self { file: File::from(file), torn: false })
    }

    /// Writes whole lines at once. What does not fit is lost, and the next line starts on a new one.
    pub(super) fn write(&mut self, lines: &[u8]) {
        if self.torn {
            match self.file.write(b"\n") {
                Ok(1) => self.torn = false,
                _ => return,
            }
        }
        let mut rest = lines;
        while !rest.is_empty() {
            match self.file.write(rest) {
                Ok(0) => break,
                Ok(n) => rest = &rest[n..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        let written = &lines[..lines.len() - rest.len()];
        self.torn = !written.is_empty() && !written.ends_with(b"\n");
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(lines: &[(u8, &[u8])], stream: &str) -> Vec<u8> {
        let mut text = Vec::new();
        for (tag, content) in lines {
            text.extend_from_slice(
                format!("1970-01-01T00:00:00.000000001Z {stream} {} ", *tag as char).as_bytes(),
            );
            text.extend_from_slice(content);
            text.push(b'\n');
        }
        text
    }

    const NOW: Duration = Duration::from_nanos(1);

    #[test]
    fn lines_are_cut_at_newlines_at_16_kib_and_at_the_end() {
        let full = vec![b'x'; LINE_MAX];
        let with = |tail: &[u8]| [&full[..], tail].concat();
        type Case<'a> = (Vec<&'a [u8]>, Vec<(u8, &'a [u8])>);
        let cases: Vec<Case<'_>> = vec![
            (vec![b"a\n"], vec![(b'F', b"a")]),
            (vec![b"a", b"b\nc\n"], vec![(b'F', b"ab"), (b'F', b"c")]),
            (vec![b"\n\n"], vec![(b'F', b""), (b'F', b"")]),
            (vec![b"a"], vec![(b'P', b"a")]),
            (vec![], vec![]),
            (vec![b"a\r\n"], vec![(b'F', b"a\r")]),
            (vec![&full, b"\n"], vec![(b'F', &full)]),
        ];
        for (input, expected) in cases {
            let (mut lines, mut output) = (Lines::new(Stream::Stdout), Vec::new());
            input.iter().for_each(|chunk| lines.push(chunk, NOW, &mut output));
            lines.finish(NOW, &mut output);
            assert_eq!(output, text(&expected, "stdout"), "{input:?}");
        }
        for (input, expected) in [
            (with(b"\n"), vec![(b'F', &full[..])]),
            (with(b"y\n"), vec![(b'P', &full[..]), (b'F', b"y")]),
            (with(b""), vec![(b'P', &full[..])]),
        ] {
            let (mut lines, mut output) = (Lines::new(Stream::Stderr), Vec::new());
            lines.push(&input, NOW, &mut output);
            lines.finish(NOW, &mut output);
            assert!(output == text(&expected, "stderr"), "{} bytes", input.len());
        }
    }

    proptest! {
        #[test]
        fn no_byte_is_lost_however_the_stream_is_cut(
            content in proptest::collection::vec(prop_oneof![Just(b'\n'), Just(b'a'), any::<u8>()], 0..40_000),
            cut in 1usize..20_000,
        ) {
            let (mut lines, mut output) = (Lines::new(Stream::Stdout), Vec::new());
            content.chunks(cut).for_each(|chunk| lines.push(chunk, NOW, &mut output));
            lines.finish(NOW, &mut output);
            let mut again = Vec::new();
            for line in output.split_inclusive(|byte| *byte == b'\n') {
                let (head, body) = line.split_at(40);
                prop_assert!(body.len() - 1 <= LINE_MAX);
                again.extend_from_slice(&body[..body.len() - 1]);
                if head[38] == b'F' {
                    again.push(b'\n');
                }
            }
            prop_assert_eq!(again, content);
        }
    }

    #[test]
    fn a_log_name_that_leaves_its_directory_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let fd = File::open(directory.path()).unwrap();
        std::os::unix::fs::symlink("/dev/null", directory.path().join("link")).unwrap();
        for name in ["../x", "", ".", "..", "a/b", "link"] {
            LogFile::open(&fd, name).unwrap_err();
        }
        LogFile::open(&fd, "0.log").unwrap().write(b"line\n");
        LogFile::open(&fd, "0.log").unwrap().write(b"more\n");
        assert_eq!(std::fs::read(directory.path().join("0.log")).unwrap(), b"line\nmore\n");
    }

    #[test]
    fn a_full_disk_loses_lines_and_nothing_else() {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let mut log = LogFile { file: full, torn: false };
        log.write(b"lost\n");
        assert!(!log.torn);
    }
}
