//! The directory of CNI configurations: which network pods get.
//!
//! Files ending in .conflist, .conf and .json are read in the order of their names; the first valid one counts, as in
//! every CRI server. The directory is looked at again at every use (names, sizes and times only), so a change needs no
//! restart.

use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Map, Value};

use super::types::Version;

/// The largest configuration file; real ones have a few KiB.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Plugins in one list.
const PLUGINS_MAX: usize = 64;
/// Longest name of a network: it becomes part of a file name in the cache.
const NAME_BYTES_MAX: usize = 128;

/// One network: a list of plugins to run in order.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct NetworkList {
    pub name: String,
    pub version: Version,
    pub disable_check: bool,
    pub disable_gc: bool,
    pub plugins: Vec<Plugin>,
    /// The whole text as a list, kept for DEL when the file is long gone.
    pub text: String,
}

/// One plugin of a list.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Plugin {
    /// The name of its binary, without any path.
    pub kind: String,
    pub json: Map<String, Value>,
    /// What it declares to understand in runtimeConfig.
    pub capabilities: Vec<String>,
}

/// Why a file is no configuration.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error("read it")]
    Read(#[source] std::io::Error),
    #[error("it is larger than {FILE_BYTES_MAX} bytes")]
    TooLarge,
    #[error("it is no JSON")]
    NotJson(#[source] serde_json::Error),
    #[error("{field} is {value}, expected {expected}")]
    Field { field: String, value: String, expected: &'static str },
}

impl NetworkList {
    /// Reads a list, or one plugin's configuration as a list of one.
    pub(super) fn parse(text: &str, is_list: bool) -> Result<Self, ConfigError> {
        let value: Value = serde_json::from_str(text).map_err(ConfigError::NotJson)?;
        let Value::Object(json) = &value else { return Err(wrong("the whole", Some(&value), "an object")) };
        let name = json.get("name");
        let valid_name = name.and_then(Value::as_str).filter(|name| is_name(name));
        let name = valid_name.ok_or_else(|| {
            wrong("name", name, "up to 128 letters, digits and ._- that begin with a letter or digit")
        })?;
        let version = version(json)?;
        let whole;
        let (plugins, text) = if is_list {
            let list = json.get("plugins");
            let plugins =
                list.and_then(Value::as_array).filter(|list| (1..=PLUGINS_MAX).contains(&list.len()));
            (
                &plugins.ok_or_else(|| wrong("plugins", list, "a list of 1 to 64 plugins"))?[..],
                text.to_owned(),
            )
        } else {
            whole = [value.clone()];
            let list = serde_json::json!({"name": name, "cniVersion": version.as_str(), "plugins": [value]});
            (&whole[..], list.to_string())
        };
        let plugins = plugins
            .iter()
            .enumerate()
            .map(|(at, plugin)| Plugin::parse(plugin, at))
            .collect::<Result<_, _>>()?;
        let flag = |key: &str| match json.get(key) {
            None | Some(Value::Null) => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            // Both spellings are in the wild since libcni 0.8.
            Some(Value::String(flag)) if flag == "true" || flag == "false" => Ok(flag == "true"),
            other => Err(wrong(key, other, "true or false")),
        };
        let (disable_check, disable_gc) = (flag("disableCheck")?, flag("disableGC")?);
        Ok(Self { name: name.to_owned(), version, disable_check, disable_gc, plugins, text })
    }

    fn read(path: &Path) -> Result<Self, ConfigError> {
        let mut text = String::new();
        let file = crate::sys::fd::open_regular(path).map_err(ConfigError::Read)?;
        file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(ConfigError::Read)?;
        if text.len() as u64 > FILE_BYTES_MAX {
            return Err(ConfigError::TooLarge);
        }
        Self::parse(&text, path.extension().is_some_and(|ext| ext == "conflist"))
    }
}

impl Plugin {
    fn parse(value: &Value, at: usize) -> Result<Self, ConfigError> {
        let Value::Object(json) = value else {
            return Err(wrong(&format!("plugins[{at}]"), Some(value), "an object"));
        };
        let kind = json.get("type");
        // A path here would run any binary of the host (CVE-2021-20206).
        let valid = kind.and_then(Value::as_str).filter(|kind| is_name(kind));
        let valid =
            valid.ok_or_else(|| wrong(&format!("plugins[{at}].type"), kind, "the bare name of a binary"))?;
        let capabilities = match json.get("capabilities") {
            None | Some(Value::Null) => Vec::new(),
            Some(Value::Object(map)) => {
                map.iter().filter(|(_, on)| **on == Value::Bool(true)).map(|(name, _)| name.clone()).collect()
            }
            other => return Err(wrong(&format!("plugins[{at}].capabilities"), other, "an object")),
        };
        Ok(Self { kind: valid.to_owned(), json: json.clone(), capabilities })
    }
}

/// The newest version in `cniVersions` (since 1.1.0) that is spoken here, else `cniVersion`.
fn version(json: &Map<String, Value>) -> Result<Version, ConfigError> {
    let offered = json.get("cniVersions").and_then(Value::as_array);
    let newest =
        offered.and_then(|list| list.iter().filter_map(Value::as_str).filter_map(Version::parse).max());
    if let Some(newest) = newest {
        return Ok(newest);
    }
    let stated = json.get("cniVersion");
    let parsed = stated.and_then(Value::as_str).and_then(Version::parse);
    parsed.ok_or_else(|| wrong("cniVersion", stated, "a version from 0.3.0 to 1.1.0"))
}

fn is_name(text: &str) -> bool {
    text.len() <= NAME_BYTES_MAX
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
        && text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
}

fn wrong(field: &str, value: Option<&Value>, expected: &'static str) -> ConfigError {
    const SHOWN_CHARS: usize = 80;
    let value = value.map_or_else(|| "missing".to_owned(), Value::to_string);
    ConfigError::Field { field: field.to_owned(), value: value.chars().take(SHOWN_CHARS).collect(), expected }
}

/// What the directory says now.
#[derive(Debug, Clone)]
pub(super) enum Current {
    /// No configuration file at all: the built-in network may serve.
    None,
    Network(Arc<Loaded>),
    /// Files, and none of them valid: the text says why for the first.
    Invalid(String),
}

/// A network, and whether its plugins were asked for their versions already.
#[derive(Debug)]
pub(super) struct Loaded {
    pub list: NetworkList,
    pub verified: tokio::sync::OnceCell<()>,
}

/// Name, inode, size and time of each file.
type Fingerprint = Vec<(PathBuf, u64, u64, i64, i64)>;

/// The directory, read when it changes.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    seen: Mutex<Option<(Fingerprint, Current)>>,
}

impl Directory {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, seen: Mutex::new(None) }
    }

    /// Forgets what was read, so that the next use reads again.
    pub(super) fn reload(&self) {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// The network pods get now.
    pub(super) fn current(&self) -> Current {
        let fingerprint = self.fingerprint();
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((before, current)) = &*seen
            && *before == fingerprint
        {
            return current.clone();
        }
        let mut complaints = Vec::new();
        let mut current = None;
        for (path, ..) in &fingerprint {
            match NetworkList::read(path) {
                Ok(list) => {
                    let verified = tokio::sync::OnceCell::new();
                    current = Some(Current::Network(Arc::new(Loaded { list, verified })));
                    break;
                }
                Err(err) => {
                    let cause = std::error::Error::source(&err).map(|c| format!(": {c}")).unwrap_or_default();
                    let complaint = format!("CNI configuration {}: {err}{cause}", path.display());
                    tracing::warn!("{complaint}");
                    complaints.push(complaint);
                }
            }
        }
        let current = current.unwrap_or_else(|| match complaints.into_iter().next() {
            Some(first) => Current::Invalid(first),
            None => Current::None,
        });
        *seen = Some((fingerprint, current.clone()));
        current
    }

    fn fingerprint(&self) -> Fingerprint {
        let entries = std::fs::read_dir(&self.path).into_iter().flatten().flatten();
        let mut files: Fingerprint = entries
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|e| e == "conflist" || e == "conf" || e == "json"))
            .filter_map(|path| {
                let meta = std::fs::metadata(&path).ok().filter(std::fs::Metadata::is_file)?;
                Some((path, meta.ino(), meta.size(), meta.mtime(), meta.mtime_nsec()))
            })
            .collect();
        files.sort();
        files
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        NetworkList::parse(text, true).unwrap_err().to_string()
    }

    #[test]
    fn a_list_that_could_run_any_binary_or_name_any_file_is_refused() {
        for kind in ["../../bin/sh", "/bin/sh", "a/b", "..", ".", ""] {
            let text = serde_json::json!({"name": "n", "cniVersion": "1.0.0", "plugins": [{"type": kind}]})
                .to_string();
            assert_eq!(
                error(&text),
                format!("plugins[0].type is {}, expected the bare name of a binary", Value::from(kind))
            );
        }
        for name in ["../x", "", "-x", "a b", &"x".repeat(129)] {
            let text = serde_json::json!({"name": name, "cniVersion": "1.0.0", "plugins": [{"type": "x"}]})
                .to_string();
            assert!(error(&text).starts_with("name is "), "{name}");
        }
        assert_eq!(
            error(r#"{"name":"n","cniVersion":"1.0.0","plugins":[]}"#),
            "plugins is [], expected a list of 1 to 64 plugins"
        );
        assert_eq!(error(r#"{"name":"n"}"#), "cniVersion is missing, expected a version from 0.3.0 to 1.1.0");
    }

    #[test]
    fn the_first_valid_file_counts_and_changes_are_seen_without_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let directory = Directory::new(dir.path().join("net.d"));
        assert!(matches!(directory.current(), Current::None));
        let write = |name: &str, text: &str| {
            std::fs::create_dir_all(dir.path().join("net.d")).unwrap();
            // As editors and installers do: a new file in the place of the old one.
            std::fs::write(dir.path().join("new"), text).unwrap();
            std::fs::rename(dir.path().join("new"), dir.path().join("net.d").join(name)).unwrap();
        };
        write("notes.txt", "x");
        assert!(matches!(directory.current(), Current::None));
        write("10-bad.conflist", "{");
        assert!(
            matches!(directory.current(), Current::Invalid(why) if why.contains("10-bad.conflist: it is no JSON"))
        );
        write("20-one.conf", r#"{"name":"one","cniVersion":"0.4.0","type":"ptp"}"#);
        let Current::Network(one) = directory.current() else { panic!() };
        assert_eq!((one.list.name.as_str(), one.list.plugins[0].kind.as_str()), ("one", "ptp"));
        assert_eq!(NetworkList::parse(&one.list.text, true).unwrap().plugins, one.list.plugins);
        write(
            "10-bad.conflist",
            r#"{"name":"two","cniVersion":"0.4.0","cniVersions":["0.4.0","1.1.0","9.0.0"],"disableGC":true,"disableCheck":"true",
                "plugins":[{"type":"a","capabilities":{"dns":true,"bandwidth":false}}]}"#,
        );
        let Current::Network(two) = directory.current() else { panic!() };
        assert_eq!(
            (two.list.version, two.list.disable_gc, two.list.disable_check),
            (Version::V1_1_0, true, true)
        );
        assert_eq!(two.list.plugins[0].capabilities, ["dns"]);
        let Current::Network(again) = directory.current() else { panic!() };
        assert!(Arc::ptr_eq(&two, &again));
    }
}
