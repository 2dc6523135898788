//! Clients that are attached to a container: where its output goes besides its log, and where its input comes from.
//!
//! ```text
//! container ─▶ chunk ─▶ sink of each client: its pipe, and a buffer for what the pipe does not take
//! container ◀─ input of each client, as it comes: nothing is read that cannot be passed on
//! ```
//!
//! No client is ever waited for. One whose buffer is full is cut; one whose input the container does not take is not read
//! from. A container without clients costs nothing but an empty list.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::PollFlags;
use rustix::io::Errno;

use super::io::READ_BYTES;
use super::log::Stream;
use super::wire::AttachEnd;

/// Bytes of output that wait for one client, besides what its pipe holds (256 KiB as the daemon makes it). At 100 MB/s a
/// client may look away for a hundredth of a second, at the pace of a log for minutes.
const UNSENT_MAX: usize = 1 << 20;

/// Clients of one container: an operator or two and what follows the output. Bounds what they hold to 64 MiB.
pub(super) const CLIENTS_MAX: usize = 32;

/// Reads in a row from one client: more than its pipe holds, so that the rest of an input is taken at once.
const READS_MAX: usize = 32;

/// One client.
#[derive(Debug)]
pub(super) struct Client {
    /// Its name on the wire.
    pub(super) attach: String,
    /// Whose it is.
    pub(super) connection: u64,
    /// Set once it is over, and then all else is closed.
    pub(super) end: Option<AttachEnd>,
    input: Option<Input>,
    stdout: Option<Sink>,
    stderr: Option<Sink>,
}

/// A stream of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Slot {
    Input,
    /// One with a buffer that waits for room.
    Output(Stream),
    /// One that waits for nothing: all that can be told of it is that the client has closed its end.
    IdleOutput(Stream),
}

#[derive(Debug)]
struct Sink {
    pipe: OwnedFd,
    unsent: VecDeque<u8>,
}

#[derive(Debug)]
struct Input {
    /// `None` once nobody can write to it any more. That says nothing about the client: its daemon may have been killed.
    pipe: Option<OwnedFd>,
    /// Read, and not taken by the container yet; at most one read.
    unsent: Vec<u8>,
    /// The client has said that what is in the pipe is all that will come.
    last: bool,
}

/// How far an input went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Passed {
    /// All that there is now, or all that the container takes now.
    Waiting,
    /// To its end, as the client has said.
    Ended,
    /// The container reads no more.
    Refused,
}

impl Client {
    /// The pipes must not block.
    pub(super) fn new(
        attach: String,
        connection: u64,
        stdin: Option<OwnedFd>,
        stdout: Option<OwnedFd>,
        stderr: Option<OwnedFd>,
    ) -> Self {
        let sink = |pipe| Sink { pipe, unsent: VecDeque::new() };
        let input = stdin.map(|pipe| Input { pipe: Some(pipe), unsent: Vec::new(), last: false });
        Self { attach, connection, end: None, input, stdout: stdout.map(sink), stderr: stderr.map(sink) }
    }

    /// Adds what the container wrote.
    pub(super) fn push(&mut self, stream: Stream, bytes: &[u8]) {
        let place = self.sink(stream);
        match place.as_mut().map(|sink| sink.push(bytes)) {
            None | Some(Pushed::Taken) => {}
            Some(Pushed::Broken) => *place = None,
            Some(Pushed::Full) => self.close(AttachEnd::Slow),
        }
    }

    /// What to wait for. Without interest in anything, poll(2) still tells of a client that has closed its end.
    pub(super) fn sources(&self) -> impl Iterator<Item = (Slot, BorrowedFd<'_>, PollFlags)> {
        let input = self.input.iter().filter(|input| input.unsent.is_empty());
        let input =
            input.filter_map(|input| Some((Slot::Input, input.pipe.as_ref()?.as_fd(), PollFlags::IN)));
        let sinks = [(Stream::Stdout, &self.stdout), (Stream::Stderr, &self.stderr)];
        let sinks = sinks.into_iter().filter_map(|(stream, sink)| Some((stream, sink.as_ref()?)));
        input.chain(sinks.map(|(stream, sink)| {
            let (slot, flags) = match sink.unsent.is_empty() {
                true => (Slot::IdleOutput(stream), PollFlags::empty()),
                false => (Slot::Output(stream), PollFlags::OUT),
            };
            (slot, sink.pipe.as_fd(), flags)
        }))
    }

    /// Sends what an output takes now.
    pub(super) fn flush(&mut self, stream: Stream) {
        let place = self.sink(stream);
        if place.as_mut().is_some_and(|sink| sink.flush().is_err()) {
            *place = None;
        }
    }

    /// The client has closed its end of an output.
    pub(super) fn close_output(&mut self, stream: Stream) {
        *self.sink(stream) = None;
    }

    /// Whether the container is to take input of this client before there is more.
    pub(super) fn has_unsent_input(&self) -> bool {
        self.input.as_ref().is_some_and(|input| !input.unsent.is_empty())
    }

    /// Passes input on to `target`, as far as it goes. `buffer` holds [`READ_BYTES`].
    pub(super) fn pass_input(&mut self, target: BorrowedFd<'_>, buffer: &mut [u8]) -> Passed {
        let passed = self.input.as_mut().map_or(Passed::Waiting, |input| input.pass(target, buffer));
        if passed != Passed::Waiting {
            self.input = None;
        }
        passed
    }

    /// The client says that no more will come than what is in the pipe now. False if there is no input, or none any more.
    pub(super) fn finish_input(&mut self) -> bool {
        self.input.as_mut().map(|input| input.last = true).is_some()
    }

    pub(super) fn close_input(&mut self) {
        self.input = None;
    }

    /// The container has ended. What is buffered is still sent; an output without that is at its end.
    pub(super) fn finish(&mut self) {
        self.input = None;
        for place in [&mut self.stdout, &mut self.stderr] {
            place.take_if(|sink| sink.unsent.is_empty());
        }
        if self.stdout.is_none() && self.stderr.is_none() && self.end.is_none() {
            self.end = Some(AttachEnd::Exited);
        }
    }

    fn close(&mut self, end: AttachEnd) {
        (self.input, self.stdout, self.stderr) = (None, None, None);
        self.end = Some(end);
    }

    fn sink(&mut self, stream: Stream) -> &mut Option<Sink> {
        match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        }
    }
}

enum Pushed {
    Taken,
    /// The buffer has no room.
    Full,
    /// Nobody reads.
    Broken,
}

impl Sink {
    fn push(&mut self, bytes: &[u8]) -> Pushed {
        if self.flush().is_err() {
            return Pushed::Broken;
        }
        let mut rest = bytes;
        if self.unsent.is_empty() {
            match write(&self.pipe, rest) {
                Ok(written) => rest = &rest[written..],
                Err(_) => return Pushed::Broken,
            }
        }
        if self.unsent.len() + rest.len() > UNSENT_MAX {
            return Pushed::Full;
        }
        self.unsent.extend(rest);
        Pushed::Taken
    }

    fn flush(&mut self) -> Result<(), Errno> {
        while !self.unsent.is_empty() {
            match write(&self.pipe, self.unsent.as_slices().0)? {
                0 => return Ok(()),
                written => drop(self.unsent.drain(..written)),
            }
        }
        // Not clear(): a client that keeps up holds no memory.
        self.unsent = VecDeque::new();
        Ok(())
    }
}

impl Input {
    fn pass(&mut self, target: BorrowedFd<'_>, buffer: &mut [u8]) -> Passed {
        for _ in 0..READS_MAX {
            match write(target, &self.unsent) {
                Ok(written) => drop(self.unsent.drain(..written)),
                Err(_) => return Passed::Refused,
            }
            if !self.unsent.is_empty() {
                return Passed::Waiting;
            }
            self.unsent = Vec::new();
            let nothing = if self.last { Passed::Ended } else { Passed::Waiting };
            let Some(pipe) = &self.pipe else { return nothing };
            let read = match rustix::io::read(pipe, &mut buffer[..READ_BYTES]) {
                Ok(read @ 1..) => &buffer[..read],
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => return nothing,
                Ok(0) | Err(_) => {
                    self.pipe = None;
                    return nothing;
                }
            };
            match write(target, read) {
                Ok(written) => self.unsent.extend_from_slice(&read[written..]),
                Err(_) => return Passed::Refused,
            }
        }
        Passed::Waiting
    }
}

/// Writes what goes now, perhaps nothing.
fn write(pipe: impl AsFd, mut bytes: &[u8]) -> Result<usize, Errno> {
    let length = bytes.len();
    while !bytes.is_empty() {
        match rustix::io::write(&pipe, bytes) {
            Ok(0) | Err(Errno::AGAIN) => break,
            Ok(written) => bytes = &bytes[written..],
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length - bytes.len())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rustix::pipe::{PipeFlags, pipe_with};

    use super::*;

    fn pipe() -> (OwnedFd, OwnedFd) {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).unwrap();
        rustix::pipe::fcntl_setpipe_size(&write, 4096).unwrap();
        (read, write)
    }

    /// What is in a pipe now.
    fn take(pipe: &OwnedFd, most: usize) -> Vec<u8> {
        let mut taken = vec![0; most];
        let read = rustix::io::read(pipe, &mut taken[..]).unwrap_or(0);
        taken.truncate(read);
        taken
    }

    #[derive(Debug, Clone)]
    enum Step {
        Push(usize),
        Take(usize),
        Flush,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..120_000usize).prop_map(Step::Push),
            (1..9000usize).prop_map(Step::Take),
            Just(Step::Flush)
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        /// The model is one queue: what was pushed before the cut comes out in order, and the cut comes exactly when the
        /// buffer would outgrow its bound.
        #[test]
        fn a_client_gets_every_byte_in_order_until_it_is_cut(steps in prop::collection::vec(step(), 0..120)) {
            let (read, write) = pipe();
            let mut client = Client::new("a".into(), 0, None, Some(write), None);
            let (mut pushed, mut taken, mut next) = (Vec::new(), Vec::new(), 0u8);
            for step in steps {
                match step {
                    Step::Push(length) => {
                        next = next.wrapping_add(1);
                        let chunk = [&[next][..], &vec![!next; length]].concat();
                        client.push(Stream::Stdout, &chunk);
                        // Nobody wants it.
                        client.push(Stream::Stderr, &chunk);
                        if client.end.is_some() {
                            prop_assert_eq!(client.end, Some(AttachEnd::Slow));
                            prop_assert!(pushed.len() + chunk.len() - taken.len() > UNSENT_MAX);
                            break;
                        }
                        pushed.extend(chunk);
                    }
                    Step::Take(most) => taken.extend(take(&read, most)),
                    Step::Flush => {
                        client.flush(Stream::Stdout);
                        prop_assert!(client.stdout.is_some());
                    }
                }
            }
            if client.end.is_none() {
                client.finish();
                while client.end.is_none() {
                    taken.extend(take(&read, 4096));
                    client.flush(Stream::Stdout);
                    client.finish();
                }
                prop_assert_eq!(client.end, Some(AttachEnd::Exited));
            }
            loop {
                let rest = take(&read, 4096);
                if rest.is_empty() { break }
                taken.extend(rest);
            }
            // Of a client that was cut the buffer is lost, and nothing in between.
            let whole = client.end == Some(AttachEnd::Exited);
            prop_assert!(pushed.starts_with(&taken));
            prop_assert!(!whole || pushed.len() == taken.len());
        }
    }

    #[test]
    fn a_client_that_closes_one_output_keeps_the_other() {
        let ((out, out_end), (err, err_end)) = (pipe(), pipe());
        let mut client = Client::new("a".into(), 0, None, Some(out_end), Some(err_end));
        drop(out);
        client.push(Stream::Stdout, b"lost");
        client.push(Stream::Stderr, b"kept");
        assert_eq!(take(&err, 16), b"kept");
        let slots: Vec<Slot> = client.sources().map(|(slot, ..)| slot).collect();
        assert_eq!(slots, [Slot::IdleOutput(Stream::Stderr)]);
        client.close_output(Stream::Stderr);
        assert_eq!((client.sources().count(), client.end), (0, None));
    }

    #[test]
    fn input_waits_for_the_container_and_ends_after_its_last_byte() {
        let ((pipe_end, client_end), (container, target)) = (pipe(), pipe());
        let mut client = Client::new("a".into(), 0, Some(pipe_end), None, None);
        let mut buffer = vec![0; READ_BYTES];
        let mut pass = |client: &mut Client| client.pass_input(target.as_fd(), &mut buffer);
        let text: Vec<u8> = (0..6000u32).map(|n| n as u8).collect();
        rustix::io::write(&client_end, &text[..4000]).unwrap();
        assert_eq!(pass(&mut client), Passed::Waiting);
        rustix::io::write(&client_end, &text[4000..]).unwrap();
        assert_eq!(pass(&mut client), Passed::Waiting);
        assert!(client.has_unsent_input());
        assert_eq!(client.sources().count(), 0, "a client whose input waits is not read from");
        assert!(client.finish_input());
        let mut taken = take(&container, 4096);
        assert_eq!(pass(&mut client), Passed::Ended);
        taken.extend(take(&container, 4096));
        assert_eq!(taken, text);
        assert!(!client.finish_input());
    }

    #[test]
    fn input_ends_when_its_client_says_so_or_the_container_goes_and_not_with_its_pipe() {
        let mut buffer = vec![0; READ_BYTES];
        let ((pipe_end, client_end), (container, target)) = (pipe(), pipe());
        let mut client = Client::new("a".into(), 0, Some(pipe_end), None, None);
        rustix::io::write(&client_end, b"last words").unwrap();
        drop(client_end);
        for _ in 0..2 {
            assert_eq!(client.pass_input(target.as_fd(), &mut buffer), Passed::Waiting);
        }
        assert_eq!(client.sources().count(), 0, "a pipe at its end is always ready");
        assert_eq!(take(&container, 64), b"last words");
        assert!(client.finish_input());
        assert_eq!(client.pass_input(target.as_fd(), &mut buffer), Passed::Ended);
        assert!(!client.finish_input());
        let (pipe_end, client_end) = pipe();
        let mut client = Client::new("b".into(), 0, Some(pipe_end), None, None);
        drop(container);
        rustix::io::write(&client_end, b"to nobody").unwrap();
        assert_eq!(client.pass_input(target.as_fd(), &mut buffer), Passed::Refused);
        assert_eq!(rustix::io::write(&client_end, b"x"), Err(Errno::PIPE));
    }
}
