//! What was attached and how, so that DEL can be given what ADD was given: after a crash, a reboot, or a change of the
//! configuration.
//!
//! ```text
//! DIR/results/<network>-<pod id>-<interface>    JSON, the fields of libcni's cache ("kind": "cniCacheV1")
//! ```
//!
//! An entry without `result` is written before the first plugin runs, the result when all have; each time to a new
//! file that is flushed and renamed. The entry goes when DEL has succeeded. A file that is no entry is left alone.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::path::PathBuf;

use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::id::PodId;

const KIND: &str = "cniCacheV1";
/// A configuration (1 MiB) in base64, a result (1 MiB), annotations.
const ENTRY_BYTES_MAX: u64 = 8 << 20;

/// Why the cache did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[error("{call} cached CNI attachment {}", .path.display())]
pub(crate) struct CacheError {
    call: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// One attachment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Entry {
    kind: String,
    pub container_id: PodId,
    /// The list's text; base64 on disk, as Go writes bytes.
    #[serde(with = "as_base64")]
    pub config: String,
    pub if_name: String,
    pub network_name: String,
    #[serde(default)]
    pub netns: String,
    /// Pairs of `CNI_ARGS`, in order.
    #[serde(default)]
    pub cni_args: Vec<[String; 2]>,
    #[serde(default)]
    pub capability_args: BTreeMap<String, Value>,
    /// `None` until every plugin has added.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Map<String, Value>>,
}

impl Entry {
    pub(super) fn new(container_id: PodId, network_name: String, config: String, if_name: String) -> Self {
        Self {
            kind: KIND.to_owned(),
            container_id,
            config,
            if_name,
            network_name,
            netns: String::new(),
            cni_args: Vec::new(),
            capability_args: BTreeMap::new(),
            result: None,
        }
    }

    fn file_name(&self) -> String {
        // Network names have no slash (config.rs) and interface names are ours.
        format!("{}-{}-{}", self.network_name, self.container_id, self.if_name)
    }
}

/// The directory of entries.
#[derive(Debug)]
pub(super) struct Cache {
    dir: PathBuf,
}

impl Cache {
    pub(super) fn new(dir: PathBuf) -> Self {
        Self { dir: dir.join("results") }
    }

    /// On disk before this returns.
    pub(super) fn write(&self, entry: &Entry) -> Result<(), CacheError> {
        let path = self.dir.join(entry.file_name());
        // A leading dot keeps a half-written file from ever being read as an entry.
        let half = self.dir.join(format!(".{}", entry.file_name()));
        let write = || {
            std::fs::create_dir_all(&self.dir)?;
            let mut file = std::fs::File::create(&half)?;
            file.write_all(&serde_json::to_vec(entry)?)?;
            file.sync_data()?;
            std::fs::rename(&half, &path)
        };
        write().map_err(|source| {
            // Best effort: the write's own failure is the story.
            let _ = std::fs::remove_file(&half);
            CacheError { call: "write", path: path.clone(), source }
        })
    }

    /// Gone is fine.
    pub(super) fn delete(&self, entry: &Entry) -> Result<(), CacheError> {
        let path = self.dir.join(entry.file_name());
        match std::fs::remove_file(&path) {
            Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other.map_err(|source| CacheError { call: "delete", path, source }),
        }
    }

    /// Every entry, of one pod or of all.
    pub(super) fn entries(&self, pod: Option<&PodId>) -> Result<Vec<Entry>, CacheError> {
        let failed = |source| CacheError { call: "list", path: self.dir.clone(), source };
        let listing = match std::fs::read_dir(&self.dir) {
            Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(failed)?,
        };
        let mut entries = Vec::new();
        for file in listing {
            let file = file.map_err(failed)?;
            let name = file.file_name();
            let Some(name) = name.to_str().filter(|name| !name.starts_with('.')) else { continue };
            if pod.is_some_and(|pod| !name.contains(pod.as_str())) {
                continue;
            }
            let mut text = Vec::new();
            let read = std::fs::File::open(file.path())
                .and_then(|opened| opened.take(ENTRY_BYTES_MAX).read_to_end(&mut text));
            read.map_err(|source| CacheError { call: "read", path: file.path(), source })?;
            match serde_json::from_slice::<Entry>(&text) {
                Ok(entry) if entry.kind == KIND && entry.file_name() == name => entries.push(entry),
                _ => tracing::warn!("{} is no CNI cache entry and is left alone", file.path().display()),
            }
        }
        Ok(entries)
    }
}

mod as_base64 {
    use super::BASE64;
    use base64::Engine as _;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(text: &str, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&BASE64.encode(text))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
        let bytes = BASE64.decode(String::deserialize(deserializer)?).map_err(D::Error::custom)?;
        String::from_utf8(bytes).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_comes_back_as_written_and_junk_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::new(dir.path().to_owned());
        assert_eq!(cache.entries(None).unwrap(), []);
        let pod = PodId::random();
        let mut entry = Entry::new(pod.clone(), "net".into(), "{\"x\":1}".into(), "eth0".into());
        entry.cni_args = vec![["A".into(), "b".into()]];
        cache.write(&entry).unwrap();
        entry.result = Some(Map::new());
        cache.write(&entry).unwrap();
        std::fs::write(dir.path().join("results/junk"), "{").unwrap();
        std::fs::write(dir.path().join("results/.half"), "{").unwrap();
        assert_eq!(cache.entries(Some(&pod)).unwrap(), std::slice::from_ref(&entry));
        assert_eq!(cache.entries(Some(&PodId::random())).unwrap(), []);
        let text = std::fs::read_to_string(dir.path().join(format!("results/net-{pod}-eth0"))).unwrap();
        assert!(
            text.contains(r#""config":"eyJ4IjoxfQ==""#) && text.contains(r#""kind":"cniCacheV1""#),
            "{text}"
        );
        cache.delete(&entry).unwrap();
        cache.delete(&entry).unwrap();
        assert_eq!(cache.entries(None).unwrap(), []);
        assert!(dir.path().join("results/junk").exists());
    }
}
