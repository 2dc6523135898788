//! Messages: on stderr and, with `--log`, in a file, as text or as one JSON object per line.
//!
//! Engines read the last error line of the file to tell their users why a verb failed, so its keys are those of runc:
//! `level`, `msg`, `time`.

use std::fs::File;
use std::io::Write;
use std::sync::OnceLock;

use crate::sys::clock;

/// Where messages go. Set once by `main`.
#[derive(Debug)]
pub(super) struct Log {
    pub(super) file: Option<File>,
    pub(super) json: bool,
    pub(super) debug: bool,
}

static LOG: OnceLock<Log> = OnceLock::new();

pub(super) fn set_up(log: Log) {
    // A second call would be a bug of main; the first log wins.
    let _ = LOG.set(log);
}

/// The number of the log file's descriptor.
pub(super) fn descriptor() -> Option<u32> {
    use std::os::fd::AsRawFd;
    LOG.get().and_then(|log| log.file.as_ref()).map(|file| file.as_raw_fd() as u32)
}

pub(super) fn error(message: &str) {
    let line = match LOG.get() {
        Some(log) => {
            let line = format_line(log.json, "error", message);
            write_file(log, &line);
            line
        }
        None => format_line(false, "error", message),
    };
    // Nothing is left to do if stderr is closed.
    let _ = std::io::stderr().write_all(line.as_bytes());
}

/// A warning goes to the file if there is one, else to stderr.
pub(super) fn warn(message: &str) {
    emit("warning", message);
}

pub(super) fn debug(message: impl FnOnce() -> String) {
    if LOG.get().is_some_and(|log| log.debug) {
        emit("debug", &message());
    }
}

fn emit(level: &str, message: &str) {
    let Some(log) = LOG.get() else { return };
    let line = format_line(log.json, level, message);
    if log.file.is_some() {
        write_file(log, &line);
    } else {
        let _ = std::io::stderr().write_all(line.as_bytes());
    }
}

fn write_file(log: &Log, line: &str) {
    if let Some(mut file) = log.file.as_ref() {
        // A full disk must not turn into another failure.
        let _ = file.write_all(line.as_bytes());
    }
}

fn format_line(json: bool, level: &str, message: &str) -> String {
    let time = clock::rfc3339(clock::now());
    let quoted = serde_json::Value::from(message);
    if json {
        format!("{{\"level\":\"{level}\",\"msg\":{quoted},\"time\":\"{time}\"}}\n")
    } else {
        format!("time=\"{time}\" level={level} msg={quoted}\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_json_line_is_json_whatever_the_message() {
        let line = format_line(true, "error", "quote \" newline \n");
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["msg"], "quote \" newline \n");
        assert_eq!(value["level"], "error");
        assert_eq!(line.matches('\n').count(), 1);
    }
}
