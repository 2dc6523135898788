//! The streams of a container: pipes or a terminal, read into its log and for attached clients, written by these.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::pipe::{PipeFlags, pipe_with};
use rustix::termios::{Winsize, tcsetwinsize};

use super::log::{Lines, LogFile, Stream};
use super::sinks::{Client, Passed};
use crate::sys::clock;

/// One read of a stream. The buffer is kept while there is something to do.
pub(super) const READ_BYTES: usize = 32 << 10;

/// The streams of one container.
#[derive(Debug, Default)]
pub(super) struct Streams {
    sources: Vec<Source>,
    /// `None`: the output is read and dropped.
    log: Option<LogFile>,
    /// Held open so that the container does not see an end. None with a terminal.
    stdin: Option<OwnedFd>,
    /// The first client that ends its input, or goes, closes `stdin`.
    stdin_once: bool,
    /// One source, which is written to as well.
    terminal: bool,
    /// The container was made to be written to.
    pub(super) has_input: bool,
    pub(super) clients: Vec<Client>,
}

#[derive(Debug)]
struct Source {
    fd: OwnedFd,
    lines: Lines,
    ended: bool,
}

/// What the runtime, and with it the container, gets as standard streams.
#[derive(Debug)]
pub(super) struct ChildEnds {
    pub(super) stdin: OwnedFd,
    pub(super) stdout: OwnedFd,
    pub(super) stderr: OwnedFd,
}

/// Working memory of the reading: given back while idle.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    input: Vec<u8>,
    output: Vec<u8>,
}

impl Buffers {
    /// Of [`READ_BYTES`].
    fn input(&mut self) -> &mut [u8] {
        if self.input.is_empty() {
            self.input.resize(READ_BYTES, 0);
        }
        &mut self.input
    }

    pub(super) fn release(&mut self) {
        *self = Self::default();
    }
}

/// How a client went away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Gone {
    /// By itself, as its daemon says.
    Left,
    /// With its daemon, which may have been killed. The next daemon brings the client back, who goes on where it was.
    Lost,
}

/// What is left of a stream after a read.
enum Left {
    More,
    /// Nothing now.
    Empty,
    End,
}

impl Streams {
    /// Pipes for a container without a terminal.
    pub(super) fn pipes(
        log: Option<LogFile>,
        stdin: bool,
        stdin_once: bool,
    ) -> io::Result<(Self, ChildEnds)> {
        let (out, out_end) = output_pipe()?;
        let (err, err_end) = output_pipe()?;
        let (stdin_end, stdin) = if stdin {
            let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
            rustix::io::ioctl_fionbio(&write, true)?;
            (read, Some(write))
        } else {
            (dev_null()?, None)
        };
        let source = |fd, stream| Source { fd, lines: Lines::new(stream), ended: false };
        let sources = vec![source(out, Stream::Stdout), source(err, Stream::Stderr)];
        let ends = ChildEnds { stdin: stdin_end, stdout: out_end, stderr: err_end };
        Ok((Self { sources, log, has_input: stdin.is_some(), stdin, stdin_once, ..Self::default() }, ends))
    }

    /// For a container with a terminal, which comes later by [`Streams::set_terminal`].
    pub(super) fn awaiting_terminal(log: Option<LogFile>, has_input: bool) -> Self {
        Self { log, terminal: true, has_input, ..Self::default() }
    }

    pub(super) fn set_terminal(&mut self, master: OwnedFd) -> io::Result<()> {
        rustix::io::ioctl_fionbio(&master, true)?;
        self.sources = vec![Source { fd: master, lines: Lines::new(Stream::Stdout), ended: false }];
        Ok(())
    }

    /// What to wait for.
    pub(super) fn sources(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.sources.iter().map(|source| source.fd.as_fd())
    }

    /// Reads once from a source that is ready. Its number counts in the order of [`Streams::sources`] and stays the
    /// same until [`Streams::drop_ended`].
    pub(super) fn read(&mut self, number: usize, buffers: &mut Buffers) {
        if let Some(Left::End) = self.step(number, buffers) {
            self.sources[number].ended = true;
        }
    }

    pub(super) fn drop_ended(&mut self) {
        self.sources.retain(|source| !source.ended);
    }

    /// The container has ended: reads what it wrote. What a process that it left behind writes from now on is read
    /// later, as far as that process lives.
    pub(super) fn drain(&mut self, buffers: &mut Buffers) {
        // What the streams hold at this moment is no more than a pipe's size (pipe(7); F_SETPIPE_SZ is not used).
        const PIPE: usize = 64 << 10;
        let mut number = 0;
        while number < self.sources.len() {
            let mut rounds = PIPE / 4096;
            let left = loop {
                match self.step(number, buffers) {
                    Some(Left::More) if rounds > 0 => rounds -= 1,
                    left => break left,
                }
            };
            match left {
                Some(Left::End) => drop(self.sources.remove(number)),
                _ => {
                    // Whoever holds it open may never write again, and the container's last words would stay unsaid.
                    self.sources[number].lines.finish(clock::now(), &mut buffers.output);
                    self.write_log(buffers);
                    number += 1;
                }
            }
        }
    }

    fn step(&mut self, number: usize, buffers: &mut Buffers) -> Option<Left> {
        let source = self.sources.get_mut(number)?;
        let (left, now) = match rustix::io::read(&source.fd, buffers.input()) {
            Ok(0) => (Left::End, clock::now()),
            Ok(n) => {
                let now = clock::now();
                source.lines.push(&buffers.input[..n], now, &mut buffers.output);
                for client in &mut self.clients {
                    client.push(source.lines.stream(), &buffers.input[..n]);
                }
                (Left::More, now)
            }
            Err(rustix::io::Errno::AGAIN) => (Left::Empty, clock::now()),
            Err(rustix::io::Errno::INTR) => (Left::More, clock::now()),
            // A terminal whose other end is closed says EIO.
            Err(_) => (Left::End, clock::now()),
        };
        if let Left::End = left {
            source.lines.finish(now, &mut buffers.output);
        }
        self.write_log(buffers);
        Some(left)
    }

    fn write_log(&mut self, buffers: &mut Buffers) {
        if let Some(log) = &mut self.log {
            log.write(&buffers.output);
        }
        buffers.output.clear();
    }

    /// Where clients' input goes, while the container takes any.
    pub(super) fn input(&self) -> Option<BorrowedFd<'_>> {
        input(self.terminal, self.has_input, &self.sources, self.stdin.as_ref())
    }

    /// Passes on what a client has written, as far as the container takes it.
    pub(super) fn pass_input(&mut self, client: usize, buffers: &mut Buffers) {
        let target = input(self.terminal, self.has_input, &self.sources, self.stdin.as_ref());
        let passed = match (target, self.clients.get_mut(client)) {
            (_, None) => return,
            (None, _) => Passed::Refused,
            (Some(target), Some(client)) => client.pass_input(target, buffers.input()),
        };
        match passed {
            Passed::Waiting => {}
            Passed::Ended => self.input_ended(),
            Passed::Refused => self.close_input(),
        }
    }

    /// Passes on what waits for the container.
    pub(super) fn pass_unsent_input(&mut self, buffers: &mut Buffers) {
        for client in 0..self.clients.len() {
            if self.clients[client].has_unsent_input() {
                self.pass_input(client, buffers);
            }
        }
    }

    /// Takes the last of a client's input, as far as the container takes it now, and forgets the client. That ends the
    /// client's input, unless it was lost.
    pub(super) fn detach(&mut self, client: usize, gone: Gone, buffers: &mut Buffers) {
        match gone {
            Gone::Lost => self.pass_input(client, buffers),
            Gone::Left => {
                if self.clients[client].finish_input() {
                    self.pass_input(client, buffers);
                    if self.clients[client].finish_input() {
                        self.input_ended();
                    }
                }
            }
        }
        self.clients.remove(client);
    }

    /// A client's input has ended. A terminal has no end that its other side could read; a person types Ctrl-D.
    fn input_ended(&mut self) {
        if self.stdin_once && !self.terminal {
            self.close_input();
        }
    }

    fn close_input(&mut self) {
        self.stdin = None;
        self.clients.iter_mut().for_each(Client::close_input);
    }

    /// The container has ended, and its output is drained: the clients, who may still have to take some of it.
    pub(super) fn let_clients_go(&mut self) -> Vec<Client> {
        self.stdin = None;
        let mut clients = std::mem::take(&mut self.clients);
        clients.iter_mut().for_each(Client::finish);
        clients
    }

    /// Takes what the runtime itself wrote to a container that did not come to be.
    pub(super) fn said(&self) -> Vec<u8> {
        self.sources.last().map(|source| tail(&source.fd)).unwrap_or_default()
    }

    /// From now on every byte goes to `log`. False if there never was a log.
    pub(super) fn set_log(&mut self, log: LogFile) -> bool {
        self.log.is_some() && self.log.replace(log).is_some()
    }

    /// `None` if there is no terminal.
    pub(super) fn resize(&self, columns: u16, rows: u16) -> Option<io::Result<()>> {
        let terminal = self.sources.first().filter(|_| self.terminal)?;
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        Some(tcsetwinsize(&terminal.fd, size).map_err(Into::into))
    }
}

/// Where the input of a container with these streams goes.
fn input<'a>(
    terminal: bool,
    has_input: bool,
    sources: &'a [Source],
    stdin: Option<&'a OwnedFd>,
) -> Option<BorrowedFd<'a>> {
    match terminal {
        true => sources.first().filter(|_| has_input).map(|source| source.fd.as_fd()),
        false => stdin.map(AsFd::as_fd),
    }
}

/// A pipe whose first end does not block.
pub(super) fn output_pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&read, true)?;
    Ok((read, write))
}

/// /dev/null for reading and writing.
pub(super) fn dev_null() -> io::Result<OwnedFd> {
    use rustix::fs::{Mode, OFlags};
    Ok(rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?)
}

/// The last of what is in a non-blocking pipe now, at most [`MESSAGE_MAX`] bytes.
pub(super) fn tail(pipe: impl AsFd) -> Vec<u8> {
    let (mut said, mut buffer) = (Vec::new(), [0; 4096]);
    // A pipe holds no more than this many buffers of a page.
    for _ in 0..16 {
        match rustix::io::read(&pipe, &mut buffer[..]) {
            Ok(n) if n > 0 => said.extend_from_slice(&buffer[..n]),
            _ => break,
        }
    }
    said.split_off(said.len().saturating_sub(MESSAGE_MAX))
}

/// Of a runtime's words in an error: enough for a chain of causes, little enough for an event of a pod.
pub(super) const MESSAGE_MAX: usize = 4096;
