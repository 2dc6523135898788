//! Messages: on stderr and, with `--log`, in a file, as text or as one JSON object per line.
//!
//! Engines read the last error line of the file to tell their users why a verb failed, so its keys are those of runc:
//! `level`, `msg`, `time`.

use std::fs::File;
use std::io::Write;
use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

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
    let time = rfc3339(SystemTime::now());
    let quoted = serde_json::Value::from(message);
    if json {
        format!("{{\"level\":\"{level}\",\"msg\":{quoted},\"time\":\"{time}\"}}\n")
    } else {
        format!("time=\"{time}\" level={level} msg={quoted}\n")
    }
}

/// UTC with nanoseconds: `2026-01-31T12:00:00.000000001Z`.
pub(super) fn rfc3339(time: SystemTime) -> String {
    let elapsed = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (elapsed.as_secs() / 86400, elapsed.as_secs() % 86400);
    // Days since 0000-03-01 in the proleptic Gregorian calendar, split into 400-year eras.
    let z = days + 719_468;
    let (era, day_of_era) = (z / 146_097, z % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:09}Z",
        second / 3600,
        second / 60 % 60,
        second % 60,
        elapsed.subsec_nanos()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn times_are_rfc3339_in_utc() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.000000007Z"),
            (951_782_399, "2000-02-28T23:59:59.000000007Z"),
            (951_782_400, "2000-02-29T00:00:00.000000007Z"),
            (1_798_761_599, "2026-12-31T23:59:59.000000007Z"),
        ] {
            assert_eq!(rfc3339(UNIX_EPOCH + Duration::new(seconds, 7)), text);
        }
    }

    #[test]
    fn a_json_line_is_json_whatever_the_message() {
        let line = format_line(true, "error", "quote \" newline \n");
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["msg"], "quote \" newline \n");
        assert_eq!(value["level"], "error");
        assert_eq!(line.matches('\n').count(), 1);
    }
}
