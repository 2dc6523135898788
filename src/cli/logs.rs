//! `brig logs`: reads the CRI log file that the container's status names.
//!
//! The file holds one record a line, `TIMESTAMP STREAM TAG CONTENT`, where the tag `P` says that the next record of the
//! same stream goes on with this line and `F` that it ends here. The kubelet rotates by renaming the file and asking
//! for a new one under the old name; before it follows to the new file, the reader takes what is left in the old one.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::client::Client;
use super::error::CliError;
use super::resolve;
use crate::proto::v1;

/// How soon a followed log shows a new line. One read at the end of a file costs a microsecond, so this is quick to
/// the eye at no cost worth an inotify watch; the kubelet's own reader polls besides watching, too.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(50);
/// How often the container's state is asked for in case the event stream is gone or lost the event.
const STATE_INTERVAL: Duration = Duration::from_secs(1);
/// A record is at most 16 KiB of content and a header; a line beyond this is no record, and shown as it is.
const LINE_BYTES_MAX: usize = 1 << 20;

/// Which log, and how much of it.
#[derive(Debug, Args)]
pub(super) struct LogsArgs {
    /// The container, or a pod with one container, by name, id or unique prefix of an id.
    container: String,
    /// Go on until the container has exited.
    #[arg(short, long)]
    follow: bool,
    /// Only the last N lines.
    #[arg(long, value_name = "N")]
    tail: Option<usize>,
    /// The time of each line before it.
    #[arg(short, long)]
    timestamps: bool,
}

pub(super) async fn logs(client: Client, args: LogsArgs) -> Result<ExitCode, CliError> {
    let id = resolve::container(&client, &args.container).await?;
    let status = status(&client, &id).await?.ok_or(CliError::Incomplete("the container's status"))?;
    if status.log_path.is_empty() {
        return Err(CliError::NotFound { kind: "log", name: args.container, list: "brig inspect" });
    }
    let mut reader = LogReader::open(Path::new(&status.log_path))?;
    if let Some(lines) = args.tail {
        reader.skip_to_last(lines)?;
    }
    let mut printer = Printer { timestamps: args.timestamps, ..Printer::default() };
    if args.follow {
        follow(&client, &id, &mut reader, &mut printer).await?;
    } else {
        reader.drain(&mut printer)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints the log until the container has exited and its log is read to the end. Returns the last status, or `None`
/// when the container was removed meanwhile. Dropping the future stops following and nothing else.
pub(super) async fn follow(
    client: &Client,
    id: &str,
    reader: &mut LogReader,
    printer: &mut Printer,
) -> Result<Option<v1::ContainerStatus>, CliError> {
    let exit = exited(client, id);
    tokio::pin!(exit);
    let mut ticks = interval(FOLLOW_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            status = &mut exit => {
                // The log is complete before the state says exited, so one more look takes all of it.
                reader.drain(printer)?;
                return status;
            }
            _ = ticks.tick() => reader.drain(printer)?,
        }
    }
}

/// Waits for the exit of a container: told by the event stream, and asked for now and then in case that is lost.
pub(super) async fn exited(client: &Client, id: &str) -> Result<Option<v1::ContainerStatus>, CliError> {
    let subscription = client.runtime.clone().get_container_events(v1::GetEventsRequest {}).await;
    // Without events this is slower by STATE_INTERVAL and just as right.
    let mut events = subscription.ok().map(tonic::Response::into_inner);
    loop {
        match status(client, id).await? {
            None => return Ok(None),
            Some(status) => match status.state() {
                v1::ContainerState::ContainerExited | v1::ContainerState::ContainerUnknown => {
                    return Ok(Some(status));
                }
                v1::ContainerState::ContainerCreated | v1::ContainerState::ContainerRunning => {}
            },
        }
        let ours = async {
            let Some(stream) = &mut events else { return std::future::pending().await };
            loop {
                match stream.message().await {
                    Ok(Some(event)) if event.container_id == id => return true,
                    Ok(Some(_)) => {}
                    Ok(None) | Err(_) => return false,
                }
            }
        };
        if timeout(STATE_INTERVAL, ours).await == Ok(false) {
            events = None;
        }
    }
}

/// A container's status; `None` when there is no such container any more.
pub(super) async fn status(client: &Client, id: &str) -> Result<Option<v1::ContainerStatus>, CliError> {
    let request = v1::ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
    match client.runtime.clone().container_status(request).await {
        Ok(answer) => Ok(answer.into_inner().status),
        Err(status) if status.code() == tonic::Code::NotFound => Ok(None),
        Err(status) => Err(CliError::refused("read the container's status")(status)),
    }
}

/// One record of a log file.
#[derive(Debug, PartialEq, Eq)]
struct Record<'a> {
    time: &'a [u8],
    stderr: bool,
    /// Whether the line ends with this record.
    full: bool,
    content: &'a [u8],
}

/// Takes a line without its newline apart; `None` for a line that is no record.
fn parse(line: &[u8]) -> Option<Record<'_>> {
    let mut parts = line.splitn(4, |byte| *byte == b' ');
    let (time, stream, tags) = (parts.next()?, parts.next()?, parts.next()?);
    let content = parts.next().unwrap_or_default();
    let stderr = match stream {
        b"stdout" => false,
        b"stderr" => true,
        _ => return None,
    };
    // More tags may follow the first after a colon; none is defined yet.
    let full = match tags.split(|byte| *byte == b':').next()? {
        b"F" => true,
        b"P" => false,
        _ => return None,
    };
    Some(Record { time, stderr, full, content })
}

/// Where records go.
pub(super) trait Sink {
    fn record(&mut self, line: &[u8]) -> Result<(), CliError>;
}

/// Prints records on the streams they came from, partial ones joined.
#[derive(Debug, Default)]
pub(super) struct Printer {
    timestamps: bool,
    /// Per stream, stdout first: whether the last record left its line unfinished.
    unfinished: [bool; 2],
}

impl Sink for Printer {
    fn record(&mut self, line: &[u8]) -> Result<(), CliError> {
        let Some(record) = parse(line) else {
            return print(false, &[line, b"\n"]);
        };
        let unfinished = &mut self.unfinished[usize::from(record.stderr)];
        let time: &[u8] = if self.timestamps && !*unfinished { record.time } else { b"" };
        let space: &[u8] = if time.is_empty() { b"" } else { b" " };
        let end: &[u8] = if record.full { b"\n" } else { b"" };
        *unfinished = !record.full;
        print(record.stderr, &[time, space, record.content, end])
    }
}

fn print(stderr: bool, parts: &[&[u8]]) -> Result<(), CliError> {
    let bytes = parts.concat();
    if stderr {
        io::stderr().lock().write_all(&bytes).map_err(CliError::Output)
    } else {
        super::output::write(&bytes)
    }
}

/// A log file that may be rotated while it is read.
#[derive(Debug)]
pub(super) struct LogReader {
    path: PathBuf,
    file: BufReader<File>,
    /// Bytes of a line whose end is not written yet.
    partial: Vec<u8>,
}

impl LogReader {
    pub(super) fn open(path: &Path) -> Result<Self, CliError> {
        let file = File::open(path).map_err(|source| fail(path, source))?;
        Ok(Self {
            path: path.to_owned(),
            file: BufReader::with_capacity(64 << 10, file),
            partial: Vec::new(),
        })
    }

    /// Leaves out all but the last `lines` lines, where partial records count with the line they belong to.
    fn skip_to_last(&mut self, lines: usize) -> Result<(), CliError> {
        /// Offsets kept: 8 bytes each, so 8 MiB.
        const LINES_MAX: usize = 1 << 20;
        let keep = lines.min(LINES_MAX);
        let mut starts = std::collections::VecDeque::new();
        let (mut offset, mut starts_line, mut line) = (0, true, Vec::new());
        loop {
            line.clear();
            let bytes = self.read_line(&mut line)?;
            if bytes == 0 {
                break;
            }
            if starts_line {
                starts.push_back(offset);
                if starts.len() > keep {
                    starts.pop_front();
                }
            }
            starts_line = parse(line.strip_suffix(b"\n").unwrap_or(&line)).is_none_or(|record| record.full);
            offset += bytes as u64;
        }
        let start = starts.front().copied().unwrap_or(offset);
        self.file.seek(SeekFrom::Start(start)).map(drop).map_err(|source| fail(&self.path, source))
    }

    /// Hands on every record there is now, also those in the file that has taken the place of this one.
    pub(super) fn drain(&mut self, sink: &mut impl Sink) -> Result<(), CliError> {
        loop {
            // Looked at before reading to the end: once a successor is there, nothing is added to this file.
            let successor = self.successor();
            self.drain_file(sink)?;
            match successor {
                None => return Ok(()),
                Some(file) => {
                    if !self.partial.is_empty() {
                        sink.record(&std::mem::take(&mut self.partial))?;
                    }
                    self.file = BufReader::with_capacity(64 << 10, file);
                }
            }
        }
    }

    fn drain_file(&mut self, sink: &mut impl Sink) -> Result<(), CliError> {
        loop {
            let mut line = std::mem::take(&mut self.partial);
            let bytes = self.read_line(&mut line)?;
            match line.strip_suffix(b"\n") {
                Some(line) => sink.record(line)?,
                None if line.len() >= LINE_BYTES_MAX => sink.record(&line)?,
                None => self.partial = line,
            }
            if bytes == 0 {
                return Ok(());
            }
        }
    }

    /// Appends to `line` up to and with the next newline, the end of the file or the bound.
    fn read_line(&mut self, line: &mut Vec<u8>) -> Result<usize, CliError> {
        let room = LINE_BYTES_MAX.saturating_sub(line.len()) as u64;
        self.file.by_ref().take(room).read_until(b'\n', line).map_err(|source| fail(&self.path, source))
    }

    /// The file that now has our path, if that is another one. While a rotation is under way there may be none.
    fn successor(&self) -> Option<File> {
        let ours = self.file.get_ref().metadata().ok()?;
        let file = File::open(&self.path).ok()?;
        let theirs = file.metadata().ok()?;
        ((ours.dev(), ours.ino()) != (theirs.dev(), theirs.ino())).then_some(file)
    }
}

fn fail(path: &Path, source: io::Error) -> CliError {
    CliError::File { what: "read the log", path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Joins what a printer would print, with the stream's initial before each finished line.
    #[derive(Default)]
    struct Collect {
        lines: Vec<String>,
        open: String,
    }

    impl Sink for Collect {
        fn record(&mut self, line: &[u8]) -> Result<(), CliError> {
            let Some(record) = parse(line) else {
                self.lines.push(format!("?{}", String::from_utf8_lossy(line)));
                return Ok(());
            };
            self.open.push_str(&String::from_utf8_lossy(record.content));
            if record.full {
                let stream = if record.stderr { 'e' } else { 'o' };
                self.lines.push(format!("{stream}{}", std::mem::take(&mut self.open)));
            }
            Ok(())
        }
    }

    fn drained(reader: &mut LogReader) -> Vec<String> {
        let mut sink = Collect::default();
        reader.drain(&mut sink).unwrap();
        sink.lines
    }

    const T: &str = "2026-01-02T03:04:05.000000006Z";

    #[test]
    fn a_record_has_time_stream_tag_and_content_with_spaces() {
        let line = format!("{T} stderr F two  words ");
        assert_eq!(
            parse(line.as_bytes()),
            Some(Record { time: T.as_bytes(), stderr: true, full: true, content: b"two  words " })
        );
        assert!(!parse(format!("{T} stdout P x").as_bytes()).unwrap().full);
        assert_eq!(parse(format!("{T} stdout F").as_bytes()).unwrap().content, b"");
        for bad in ["", "x", "t stdin F x", "t stdout Q x"] {
            assert_eq!(parse(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn partial_records_are_joined_and_an_unfinished_one_waits_for_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        std::fs::write(&path, format!("{T} stdout P ab\n{T} stdout F cd\n{T} stderr F e\n{T} stdout F half"))
            .unwrap();
        let mut reader = LogReader::open(&path).unwrap();
        assert_eq!(drained(&mut reader), ["oabcd", "ee"]);
        assert_eq!(drained(&mut reader), Vec::<String>::new());
        let mut file = File::options().append(true).open(&path).unwrap();
        file.write_all(b" and half\n").unwrap();
        assert_eq!(drained(&mut reader), ["ohalf and half"]);
    }

    #[test]
    fn a_rotation_loses_and_repeats_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        std::fs::write(&path, format!("{T} stdout F 1\n")).unwrap();
        let mut reader = LogReader::open(&path).unwrap();
        assert_eq!(drained(&mut reader), ["o1"]);
        let mut old = File::options().append(true).open(&path).unwrap();
        std::fs::rename(&path, dir.path().join("0.log.rotated")).unwrap();
        // Renamed, and the monitor still writes to it.
        old.write_all(format!("{T} stdout F 2\n").as_bytes()).unwrap();
        assert_eq!(drained(&mut reader), ["o2"]);
        old.write_all(format!("{T} stdout F 3\n").as_bytes()).unwrap();
        std::fs::write(&path, format!("{T} stdout F 4\n")).unwrap();
        assert_eq!(drained(&mut reader), ["o3", "o4"]);
    }

    #[test]
    fn the_tail_counts_whole_lines() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        std::fs::write(&path, format!("{T} stdout F 1\n{T} stdout P 2\n{T} stdout F 2\n{T} stdout F 3\n"))
            .unwrap();
        for (tail, lines) in
            [(0, vec![]), (1, vec!["o3"]), (2, vec!["o22", "o3"]), (9, vec!["o1", "o22", "o3"])]
        {
            let mut reader = LogReader::open(&path).unwrap();
            reader.skip_to_last(tail).unwrap();
            assert_eq!(drained(&mut reader), lines, "{tail}");
        }
    }

    #[test]
    fn a_line_without_end_is_handed_on_in_bounded_pieces() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        std::fs::write(&path, vec![b'x'; LINE_BYTES_MAX + 5]).unwrap();
        let mut reader = LogReader::open(&path).unwrap();
        assert_eq!(drained(&mut reader), [format!("?{}", "x".repeat(LINE_BYTES_MAX))]);
        assert_eq!(reader.partial.len(), 5);
    }
}
