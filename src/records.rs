//! The embedded database behind one small interface: named trees of JSON values under text keys.
//!
//! There are two databases: pods and containers in the run directory, images and layers in the data directory. What
//! the values mean is the business of the modules that own them; nothing here knows a type.
//!
//! Crash rules:
//! - A `put` survives a crash of this process as soon as [`Records::flush`] has returned, and a power cut too: sled
//!   itself only asks for `sync_file_range(2)`, which neither flushes the disk's cache nor the file's size, so `flush`
//!   adds an fsync(2) of every file and folder of the database.
//! - [`Tree::apply`] changes several records of one tree together or not at all.
//! - A record that cannot be read is reported by [`Tree::iter`] and kept; it never stops a start.
//!
//! ```text
//! DIR/db       sled's log and pages
//! DIR/blobs/   values too large for a page
//! DIR/conf     sled's own parameters
//! DIR/snap.*   where recovery starts reading
//! ```

use std::fs;
use std::io;
use std::marker::PhantomData;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::task::blocking;

/// What sled may keep of its pages. Records are a few KiB each and mostly live in their owners' tables, so the cache
/// only has to hold the tree's inner nodes; each MiB here is a MiB of resident memory.
const CACHE_BYTES: u64 = 1 << 20;

/// Size of sled's log buffers (several exist) and of its unit of reuse. sled's default of 512 KiB costs
/// resident memory and makes an empty database larger than all our records.
const SEGMENT_BYTES: usize = 64 << 10;

/// How long an opening waits for the lock of another one that is ending, and how often it looks.
const LOCK_WAIT: Duration = Duration::from_secs(2);
const LOCK_AGAIN: Duration = Duration::from_millis(20);

/// Why the database failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecordsError {
    #[error("create the record folder {}", dir.display())]
    CreateDir {
        dir: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("open the records in {}; is another brigd using this directory?", dir.display())]
    Open {
        dir: PathBuf,
        #[source]
        source: sled::Error,
    },
    #[error("{operation} in the record tree {tree:?}")]
    Database {
        operation: &'static str,
        tree: String,
        #[source]
        source: sled::Error,
    },
    #[error("write the record {key:?} of {tree:?} as JSON")]
    Encode {
        tree: String,
        key: String,
        #[source]
        source: serde_json::Error,
    },
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
    #[error("make the records in {} durable", dir.display())]
    Sync {
        dir: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// A record that exists and cannot be read. It is still in the database.
#[derive(Debug, thiserror::Error)]
#[error("read the record {key:?} of {tree:?}")]
pub(crate) struct Unreadable {
    pub(crate) tree: String,
    /// Empty when the database could not even tell the key.
    pub(crate) key: String,
    #[source]
    pub(crate) source: UnreadableCause,
}

/// What is wrong with an unreadable record.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UnreadableCause {
    #[error("its key is not text")]
    Key,
    #[error("its value is not what this version expects")]
    Decode(#[source] serde_json::Error),
    #[error("the database cannot read it")]
    Database(#[source] sled::Error),
}

/// One database: a folder that one process at a time may open.
#[derive(Debug, Clone)]
pub(crate) struct Records {
    db: sled::Db,
    dir: PathBuf,
}

impl Records {
    /// Opens or creates the database in `dir` (created with mode 0700). Blocking.
    ///
    /// # Errors
    /// When the folder cannot be made, another process holds it, or sled cannot recover its log.
    pub(crate) fn open(dir: &Path) -> Result<Self, RecordsError> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(|source| RecordsError::CreateDir { dir: dir.to_owned(), source })?;
        let config = sled::Config::new()
            .path(dir)
            .cache_capacity(CACHE_BYTES)
            .segment_size(SEGMENT_BYTES)
            .mode(sled::Mode::LowSpace)
            .use_compression(false)
            // No timer thread: whoever needs durability calls flush, and waits for it.
            .flush_every_ms(None);
        let mut waited = Duration::ZERO;
        let db = loop {
            match config.open() {
                Ok(db) => break db,
                // sled lets go of its lock a moment after its last handle is dropped, on a thread of its own; and a
                // daemon that is just ending holds it until it has ended.
                Err(sled::Error::Io(_)) if waited < LOCK_WAIT => {
                    std::thread::sleep(LOCK_AGAIN);
                    waited += LOCK_AGAIN;
                }
                Err(source) => return Err(RecordsError::Open { dir: dir.to_owned(), source }),
            }
        };
        Ok(Self { db, dir: dir.to_owned() })
    }

    /// The tree called `name`, created when absent. Its values are `V` as JSON.
    pub(crate) fn tree<V: Serialize + DeserializeOwned>(&self, name: &str) -> Result<Tree<V>, RecordsError> {
        let tree = self.db.open_tree(name).map_err(|source| RecordsError::Database {
            operation: "open",
            tree: name.to_owned(),
            source,
        })?;
        Ok(Tree { tree, name: name.to_owned(), value: PhantomData })
    }

    /// Returns when everything put or removed before has left this process, so that it survives `kill -9`. Blocking.
    pub(crate) fn write_out(&self) -> Result<(), RecordsError> {
        let failed = |source| RecordsError::Database { operation: "write out", tree: String::new(), source };
        self.db.flush().map(drop).map_err(failed)
    }

    /// Returns when everything put or removed before is on the disk. Blocking: one to tens of milliseconds.
    pub(crate) fn flush(&self) -> Result<(), RecordsError> {
        self.db.flush().map_err(|source| RecordsError::Database {
            operation: "flush",
            tree: String::new(),
            source,
        })?;
        sync_tree(&self.dir).map_err(|source| RecordsError::Sync { dir: self.dir.clone(), source })
    }
}

/// fsync(2) of every file in `dir` and its subfolders, then of the folders.
fn sync_tree(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        let synced = if kind.is_dir() {
            sync_tree(&entry.path())
        } else if kind.is_file() {
            fs::File::open(entry.path()).and_then(|file| file.sync_all())
        } else {
            Ok(())
        };
        match synced {
            // sled replaces its snapshot files in the background; the new one carries the same facts.
            Err(err) if err.kind() == io::ErrorKind::NotFound => {}
            other => other?,
        }
    }
    fs::File::open(dir)?.sync_all()
}

/// A named map from text keys to `V`.
#[derive(Debug, Clone)]
pub(crate) struct Tree<V> {
    tree: sled::Tree,
    name: String,
    value: PhantomData<fn() -> V>,
}

/// One change of [`Tree::apply`].
#[derive(Debug, Clone)]
pub(crate) enum Change<V> {
    Put(String, V),
    Remove(String),
}

impl<V: Serialize + DeserializeOwned> Tree<V> {
    /// The record under `key`, if there is one.
    ///
    /// # Errors
    /// [`RecordsError::Unreadable`] when it exists and is not a `V`.
    #[cfg(test)]
    pub(crate) fn get(&self, key: &str) -> Result<Option<V>, RecordsError> {
        let Some(bytes) = self.tree.get(key).map_err(|source| self.failed("get", source))? else {
            return Ok(None);
        };
        serde_json::from_slice(&bytes).map(Some).map_err(|source| {
            Unreadable {
                tree: self.name.clone(),
                key: key.to_owned(),
                source: UnreadableCause::Decode(source),
            }
            .into()
        })
    }

    /// Writes or replaces the record under `key`. Durable after [`Records::flush`].
    pub(crate) fn put(&self, key: &str, value: &V) -> Result<(), RecordsError> {
        let bytes = self.encode(key, value)?;
        self.tree.insert(key, bytes).map_err(|source| self.failed("put", source))?;
        Ok(())
    }

    /// Removes the record under `key`, readable or not; true when there was one.
    pub(crate) fn remove(&self, key: &str) -> Result<bool, RecordsError> {
        Ok(self.tree.remove(key).map_err(|source| self.failed("remove", source))?.is_some())
    }

    /// Makes all changes together or none.
    pub(crate) fn apply(&self, changes: impl IntoIterator<Item = Change<V>>) -> Result<(), RecordsError> {
        let mut batch = sled::Batch::default();
        for change in changes {
            match change {
                Change::Put(key, value) => batch.insert(key.as_str(), self.encode(&key, &value)?),
                Change::Remove(key) => batch.remove(key.as_str()),
            }
        }
        self.tree.apply_batch(batch).map_err(|source| self.failed("apply changes", source))
    }

    /// Every record in the order of its key. One that cannot be read is an `Err` item and does not end the walk,
    /// unless the database itself fails, which ends it after that item.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Result<(String, V), Unreadable>> + '_ {
        let mut inner = self.tree.iter();
        let mut failed = false;
        std::iter::from_fn(move || {
            if failed {
                return None;
            }
            let item = inner.next()?;
            let unreadable =
                |key: &str, source| Unreadable { tree: self.name.clone(), key: key.to_owned(), source };
            Some(match item {
                Err(source) => {
                    failed = true;
                    Err(unreadable("", UnreadableCause::Database(source)))
                }
                Ok((key, bytes)) => match std::str::from_utf8(&key) {
                    Err(_) => Err(unreadable(&String::from_utf8_lossy(&key), UnreadableCause::Key)),
                    Ok(key) => serde_json::from_slice(&bytes)
                        .map(|value| (key.to_owned(), value))
                        .map_err(|source| unreadable(key, UnreadableCause::Decode(source))),
                },
            })
        })
    }

    fn encode(&self, key: &str, value: &V) -> Result<Vec<u8>, RecordsError> {
        serde_json::to_vec(value).map_err(|source| RecordsError::Encode {
            tree: self.name.clone(),
            key: key.to_owned(),
            source,
        })
    }

    fn failed(&self, operation: &'static str, source: sled::Error) -> RecordsError {
        RecordsError::Database { operation, tree: self.name.clone(), source }
    }
}

/// A type that has a tree of its own in a database.
pub(crate) trait Row: Serialize + DeserializeOwned + Send + Sync + 'static {
    /// The tree's name.
    const TREE: &'static str;

    fn key(&self) -> String;
}

/// The records of one type, for async callers: written out before a call returns, so they survive `kill -9` of this
/// process. (A database in the run directory has no power cut to survive: it is gone then with what it speaks of.)
#[derive(Debug)]
pub(crate) struct Rows<R> {
    records: Records,
    tree: Arc<Tree<R>>,
}

impl<R> Clone for Rows<R> {
    fn clone(&self) -> Self {
        Self { records: self.records.clone(), tree: Arc::clone(&self.tree) }
    }
}

/// What [`Rows::read_all`] found.
#[derive(Debug)]
pub(crate) struct Read<R> {
    pub(crate) values: Vec<R>,
    pub(crate) unreadable: Vec<Unreadable>,
}

impl<R: Row> Rows<R> {
    pub(crate) fn open(records: &Records) -> Result<Self, RecordsError> {
        Ok(Self { records: records.clone(), tree: Arc::new(records.tree(R::TREE)?) })
    }

    /// Writes or replaces a record.
    pub(crate) async fn put(&self, row: R) -> Result<(), RecordsError> {
        let this = self.clone();
        blocking(move || {
            this.tree.put(&row.key(), &row)?;
            this.records.write_out()
        })
        .await
    }

    /// Removes a record; one that is not there is fine.
    pub(crate) async fn remove(&self, key: String) -> Result<(), RecordsError> {
        let this = self.clone();
        blocking(move || {
            this.tree.remove(&key)?;
            this.records.write_out()
        })
        .await
    }

    /// Every record, and what could not be read. Blocking, for the start.
    pub(crate) fn read_all(&self) -> Read<R> {
        let (mut values, mut unreadable) = (Vec::new(), Vec::new());
        for row in self.tree.iter() {
            match row {
                Ok((_, value)) => values.push(value),
                Err(damage) => unreadable.push(damage),
            }
        }
        Read { values, unreadable }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Clone, PartialEq, Serialize, serde::Deserialize)]
    struct Pet {
        legs: u32,
    }

    #[test]
    fn what_was_flushed_is_there_after_a_copy_of_the_files_is_opened() {
        // A copy of the folder is what a power cut right after flush would leave.
        let dir = tempfile::tempdir().unwrap();
        let records = Records::open(&dir.path().join("a")).unwrap();
        let pets: Tree<Pet> = records.tree("pets").unwrap();
        pets.put("cat", &Pet { legs: 4 }).unwrap();
        pets.put("ant", &Pet { legs: 6 }).unwrap();
        assert!(pets.remove("ant").unwrap());
        assert!(!pets.remove("ant").unwrap());
        records.flush().unwrap();
        let copied = std::process::Command::new("cp")
            .arg("-r")
            .args([dir.path().join("a"), dir.path().join("b")])
            .status()
            .unwrap();
        assert!(copied.success());
        let again: Tree<Pet> = Records::open(&dir.path().join("b")).unwrap().tree("pets").unwrap();
        let all: Vec<_> = again.iter().map(Result::unwrap).collect();
        assert_eq!(all, [("cat".to_owned(), Pet { legs: 4 })]);
    }

    #[test]
    fn an_unreadable_record_is_reported_kept_and_does_not_hide_the_others() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::open(dir.path()).unwrap();
        let raw = records.db.open_tree("pets").unwrap();
        raw.insert("a", b"{not json".as_slice()).unwrap();
        raw.insert("b", br#"{"legs":2}"#.as_slice()).unwrap();
        raw.insert([0xff, 0xfe], b"{}".as_slice()).unwrap();
        let pets: Tree<Pet> = records.tree("pets").unwrap();
        for _ in 0..2 {
            let texts: Vec<_> = pets
                .iter()
                .map(|item| {
                    item.map_or_else(|err| err.to_string(), |(key, pet)| format!("{key} {}", pet.legs))
                })
                .collect();
            assert_eq!(
                texts,
                [
                    "read the record \"a\" of \"pets\"",
                    "b 2",
                    "read the record \"\u{fffd}\u{fffd}\" of \"pets\""
                ]
            );
        }
        assert!(matches!(pets.get("a"), Err(RecordsError::Unreadable(_))));
    }

    #[test]
    fn a_second_opener_is_told_that_the_folder_is_in_use() {
        let dir = tempfile::tempdir().unwrap();
        let _first = Records::open(dir.path()).unwrap();
        let err = Records::open(dir.path()).unwrap_err();
        assert!(err.to_string().ends_with("is another brigd using this directory?"), "{err}");
    }

    #[test]
    fn a_batch_is_applied_whole() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::open(dir.path()).unwrap();
        let pets: Tree<Pet> = records.tree("pets").unwrap();
        pets.put("old", &Pet { legs: 1 }).unwrap();
        pets.apply([Change::Put("new".into(), Pet { legs: 2 }), Change::Remove("old".into())]).unwrap();
        assert_eq!(pets.get("old").unwrap(), None);
        assert_eq!(pets.get("new").unwrap(), Some(Pet { legs: 2 }));
    }
}
