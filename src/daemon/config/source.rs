//! Where values come from: the file, its drop-ins and the command line, merged key by key with the place of each kept.
//!
//! Nothing is interpreted here beyond TOML itself; `keys.rs` knows which tables and keys there are.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use toml::de::{DeTable, DeValue};

use super::ConfigError;
use super::keys::Key;
use super::value::{Literal, Value};

/// A configuration file is a page or two; more is a wrong path.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Each drop-in is read at every start; more than a few is a mistake.
const DROP_INS_MAX: usize = 256;

/// Who set a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
    File {
        path: Arc<Path>,
        /// Counted from 1.
        line: usize,
    },
    /// A flag of `brigd`, with its dashes.
    Flag(&'static str),
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Flag(flag) => write!(f, "flag {flag}"),
            Self::Default => f.write_str("embedded default"),
        }
    }
}

/// A key's value and where it was written.
#[derive(Debug, Clone)]
pub(crate) struct RawValue {
    pub(crate) origin: Origin,
    pub(crate) literal: Literal,
}

/// One table as written: its keys and the place of its header.
#[derive(Debug, Clone)]
pub(crate) struct RawKeys {
    pub(crate) origin: Origin,
    pub(crate) keys: BTreeMap<String, RawValue>,
}

/// All tables as written, later sources over earlier ones.
#[derive(Debug, Default)]
pub(crate) struct Sources {
    /// By the name in the header, `handlers.NAME` for handlers.
    pub(crate) tables: BTreeMap<String, RawKeys>,
}

impl Sources {
    /// Reads `path` and then the `*.toml` files in `config.d` beside it, in the order of their names.
    ///
    /// # Errors
    /// Anything that cannot be read or is not TOML; a missing `path` only when it is `required`.
    pub(crate) fn read(path: &Path, required: bool) -> Result<Self, ConfigError> {
        let mut sources = Self::default();
        match read_bounded(path) {
            Ok(text) => sources.merge(path, &text)?,
            Err(err) if err.kind() == io::ErrorKind::NotFound && !required => {}
            Err(source) => return Err(ConfigError::Read { path: path.to_owned(), source }),
        }
        for drop_in in drop_ins(&path.with_file_name("config.d"))? {
            let text = read_bounded(&drop_in)
                .map_err(|source| ConfigError::Read { path: drop_in.clone(), source })?;
            sources.merge(&drop_in, &text)?;
        }
        Ok(sources)
    }

    /// Puts the keys of one file over those already here.
    pub(crate) fn merge(&mut self, path: &Path, text: &str) -> Result<(), ConfigError> {
        let path: Arc<Path> = path.into();
        let at = |span: Range<usize>| Origin::File {
            path: path.clone(),
            line: text.as_bytes()[..span.start.min(text.len())].iter().filter(|byte| **byte == b'\n').count()
                + 1,
        };
        let document = DeTable::parse(text).map_err(|err| ConfigError::Syntax {
            origin: at(err.span().unwrap_or_default()),
            message: err.message().to_owned(),
        })?;
        for (name, value) in document.get_ref() {
            let origin = at(name.span());
            match (name.get_ref().as_ref(), value.get_ref()) {
                ("handlers", DeValue::Table(handlers)) => {
                    for (handler, value) in handlers {
                        let origin = at(handler.span());
                        let DeValue::Table(keys) = value.get_ref() else {
                            let name = format!("handlers.{}", handler.get_ref());
                            return Err(ConfigError::NotATable { origin, name });
                        };
                        self.merge_table(format!("handlers.{}", handler.get_ref()), origin, keys, &at);
                    }
                }
                (name, DeValue::Table(keys)) => self.merge_table(name.to_owned(), origin, keys, &at),
                (name, _) => return Err(ConfigError::NotATable { origin, name: name.to_owned() }),
            }
        }
        Ok(())
    }

    fn merge_table(
        &mut self,
        name: String,
        origin: Origin,
        keys: &DeTable<'_>,
        at: &dyn Fn(Range<usize>) -> Origin,
    ) {
        let table = self
            .tables
            .entry(name)
            .and_modify(|table| table.origin = origin.clone())
            .or_insert(RawKeys { origin, keys: BTreeMap::new() });
        for (key, value) in keys {
            let raw = RawValue { origin: at(key.span()), literal: value.get_ref().into() };
            table.keys.insert(key.get_ref().clone().into_owned(), raw);
        }
    }

    /// Puts a flag's value over whatever the files say.
    pub(crate) fn set_flag(&mut self, table: &str, key: &str, flag: &'static str, text: String) {
        let origin = Origin::Flag(flag);
        let raw = RawValue { origin: origin.clone(), literal: Literal::Text(text) };
        self.tables
            .entry(table.to_owned())
            .or_insert(RawKeys { origin, keys: BTreeMap::new() })
            .keys
            .insert(key.to_owned(), raw);
    }

    /// A view of one table; a table nobody wrote is empty.
    pub(crate) fn table<'a>(&'a self, name: &'a str) -> RawTable<'a> {
        RawTable { name, keys: self.tables.get(name).map(|table| &table.keys) }
    }
}

/// One table, about to be read into its struct.
#[derive(Debug)]
pub(crate) struct RawTable<'a> {
    name: &'a str,
    keys: Option<&'a BTreeMap<String, RawValue>>,
}

impl RawTable<'_> {
    /// The value of a key, or its default, checked against its limits.
    pub(crate) fn read<T: Value>(&self, key: &Key) -> Result<T, ConfigError> {
        let embedded = |text: &str| {
            let value = DeValue::parse(text).expect("defaults and limits are TOML, which a test proves");
            T::from_literal(&value.get_ref().into())
                .expect("defaults and limits have their key's type, ditto")
        };
        let Some(raw) = self.keys.and_then(|keys| keys.get(key.name)) else {
            return Ok(embedded(key.default));
        };
        let value = T::from_literal(&raw.literal).map_err(|must| self.refuse(key.name, must))?;
        match key.limits {
            Some((least, most)) if value < embedded(least) || value > embedded(most) => {
                Err(self.refuse(key.name, format!("from {least} to {most}")))
            }
            _ => Ok(value),
        }
    }

    /// Whether somebody wrote the key.
    pub(crate) fn is_set(&self, key: &str) -> bool {
        self.keys.is_some_and(|keys| keys.contains_key(key))
    }

    /// The error for a key's value; `must` continues "must be …".
    pub(crate) fn refuse(&self, key: &str, must: String) -> ConfigError {
        let raw = self.keys.and_then(|keys| keys.get(key));
        ConfigError::BadValue {
            origin: raw.map_or(Origin::Default, |raw| raw.origin.clone()),
            table: self.name.into(),
            key: key.into(),
            value: raw.map_or_else(String::new, |raw| raw.literal.to_string()).into(),
            must: must.into(),
        }
    }
}

fn read_bounded(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    let read = File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)?;
    if read as u64 > FILE_BYTES_MAX {
        return Err(io::Error::other(format!("larger than {FILE_BYTES_MAX} bytes")));
    }
    Ok(text)
}

fn drop_ins(dir: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    let fail = |source| ConfigError::Read { path: dir.to_owned(), source };
    let mut files = Vec::new();
    match std::fs::read_dir(dir) {
        Err(err) if matches!(err.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
        Err(err) => return Err(fail(err)),
        Ok(entries) => {
            for entry in entries {
                let path = entry.map_err(fail)?.path();
                if path.extension().is_some_and(|extension| extension == "toml") {
                    files.push(path);
                }
            }
        }
    }
    if files.len() > DROP_INS_MAX {
        return Err(fail(io::Error::other(format!("more than {DROP_INS_MAX} drop-ins"))));
    }
    files.sort();
    Ok(files)
}
