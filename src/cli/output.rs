//! Everything printed on stdout: tables for people, JSON for programs, and plain lines.
//!
//! Every write reports its error, so that a reader that goes away (`brig ps | head`) ends the command quietly instead
//! of with a panic, as `println!` would.

use std::io::{self, Write};
use std::time::Duration;

use serde_json::{Map, Value};

use super::error::CliError;
use crate::units::{Bytes, UnixNanos};

/// How lists are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Format {
    Table,
    Json,
}

/// Writes and flushes, so that text and following log lines keep their order.
pub(super) fn write(bytes: &[u8]) -> Result<(), CliError> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(bytes).and_then(|()| stdout.flush()).map_err(CliError::Output)
}

/// One line.
pub(super) fn line(text: impl AsRef<str>) -> Result<(), CliError> {
    write(format!("{}\n", text.as_ref()).as_bytes())
}

/// Indented JSON with a final newline.
pub(super) fn json(value: &Value) -> Result<(), CliError> {
    line(serde_json::to_string_pretty(value).expect("a JSON value always has a text form"))
}

/// A cell: what people see and what programs get.
#[derive(Debug, Clone)]
pub(super) struct Cell {
    text: String,
    json: Value,
}

impl Cell {
    pub(super) fn text(text: impl Into<String>) -> Self {
        let text = text.into();
        Self { json: Value::String(text.clone()), text }
    }

    /// People see `text`, programs `json`.
    pub(super) fn new(text: impl Into<String>, json: impl Into<Value>) -> Self {
        Self { text: text.into(), json: json.into() }
    }

    /// An id: 13 digits for people, all for programs.
    pub(super) fn id(id: &str) -> Self {
        let short = id.trim_start_matches("sha256:");
        Self::new(short.get(..13).unwrap_or(short), id)
    }

    /// Nanoseconds since the epoch: an age for people.
    pub(super) fn time(at: i64) -> Self {
        Self::new(age(at, UnixNanos::now().0), at)
    }

    pub(super) fn bytes(bytes: u64) -> Self {
        Self::new(Bytes(bytes).to_string(), bytes)
    }

    /// `-` for people, null for programs when there is nothing.
    pub(super) fn maybe<T>(value: Option<T>, cell: impl FnOnce(T) -> Self) -> Self {
        value.map_or_else(|| Self::new("-", Value::Null), cell)
    }
}

/// Rows under headers.
#[derive(Debug)]
pub(super) struct Table {
    headers: &'static [&'static str],
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// Headers in upper case; programs get them in lower case with `_` for the space.
    pub(super) fn new(headers: &'static [&'static str]) -> Self {
        Self { headers, rows: Vec::new() }
    }

    pub(super) fn row(&mut self, cells: Vec<Cell>) {
        assert_eq!(cells.len(), self.headers.len(), "a row has a cell for every header");
        self.rows.push(cells);
    }

    pub(super) fn print(&self, format: Format) -> Result<(), CliError> {
        match format {
            Format::Table => write(self.to_text().as_bytes()),
            Format::Json => json(&self.to_json()),
        }
    }

    fn to_text(&self) -> String {
        let width = |column: usize| {
            let cells = self.rows.iter().map(|row| row[column].text.chars().count());
            cells.chain([self.headers[column].len()]).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.headers.len()).map(width).collect();
        let mut text = String::new();
        let headers = self.headers.iter().map(|header| (*header).to_owned()).collect::<Vec<_>>();
        let rows = self.rows.iter().map(|row| row.iter().map(|cell| cell.text.clone()).collect());
        for cells in std::iter::once(headers).chain(rows) {
            let padded: Vec<_> =
                cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
            text.push_str(padded.join("   ").trim_end());
            text.push('\n');
        }
        text
    }

    fn to_json(&self) -> Value {
        let names: Vec<_> =
            self.headers.iter().map(|header| header.to_lowercase().replace(' ', "_")).collect();
        let object = |row: &Vec<Cell>| {
            let pairs = names.iter().cloned().zip(row.iter().map(|cell| cell.json.clone()));
            Value::Object(Map::from_iter(pairs))
        };
        Value::Array(self.rows.iter().map(object).collect())
    }
}

/// How long ago, in the largest whole unit: `5s`, `3m`, `2h`, `4d`.
fn age(at: i64, now: i64) -> String {
    if at == 0 {
        return "-".to_owned();
    }
    let seconds = Duration::from_nanos(u64::try_from(now.saturating_sub(at)).unwrap_or(0)).as_secs();
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86_400 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_table_aligns_its_columns_and_gives_programs_whole_values() {
        let mut table = Table::new(&["ID", "USED BYTES"]);
        table.row(vec![Cell::id(&"ab".repeat(32)), Cell::bytes(1536)]);
        table.row(vec![Cell::id("c"), Cell::maybe(None::<u64>, Cell::bytes)]);
        assert_eq!(
            table.to_text(),
            "ID              USED BYTES\nababababababa   1.5 KiB\nc               -\n"
        );
        assert_eq!(
            table.to_json(),
            json!([{"id": "ab".repeat(32), "used_bytes": 1536}, {"id": "c", "used_bytes": null}])
        );
    }

    #[test]
    fn ages_are_in_the_largest_whole_unit() {
        let second = 1_000_000_000;
        for (ago, text) in [(5, "5s"), (59, "59s"), (60, "1m"), (7200, "2h"), (86_400 * 4, "4d"), (-9, "0s")]
        {
            assert_eq!(age(1_000_000 * second, (1_000_000 + ago) * second), text);
        }
        assert_eq!(age(0, 5), "-");
    }
}
