//! Images: how they come in, how they are kept, and how containers see them.
//!
//! The store below is blocking code; async callers reach it through their one bridge to blocking work. It is cheap to
//! clone and safe to share.
//!
//! ```text
//! ROOT/                                 every folder 0700
//!   images/records/                     the database: an image record each, a layer record each
//!   images/blobs/sha256/<hex>           manifests and configs as they came
//!   layers/<diff id hex>/fs/            one unpacked layer, shared by every image that has it
//!   layers/tmp-<random>/                a layer being unpacked, or one being removed
//!   empty/                              the lowest layer of images that have too few
//!   containers/<id>/{upper,work}        a container's writable layer
//!   containers/<id>/layers.json         the layers it is mounted from
//! ```
//!
//! Crash rules:
//! - A layer is unpacked in `tmp-…` and renamed when it is verified. It counts once its record is flushed, and
//!   that happens in [`Store::put_image`] after one syncfs(2): blobs, layers, then all records, then the image becomes visible. A
//!   power cut costs at most the pull in flight.
//! - What [`Store::open_with`] finds without a record (`tmp-…`, a layer without a record, a blob without an image) is
//!   a leftover and removed.
//! - A record that cannot be read is reported and kept, and until it is gone no layer or blob is removed at all: it may
//!   be what the record needs.
//! - An image whose layer directory is missing is reported and not listed; a new pull repairs it.
//! - Removing goes the other way: image record first, then files. What a crash leaves has no record.

pub(crate) mod pull;
pub(crate) mod reference;
pub(crate) mod registry;

mod gc;
mod index;
mod layers;
mod load;
mod rootfs;
mod unpack;
mod usage;
mod verify;

#[cfg(test)]
mod tests;

#[cfg(test)]
#[expect(dead_code, reason = "shared with the integration tests, which use other parts")]
#[path = "../../tests/it/fixture/image.rs"]
mod fake_image;
#[cfg(test)]
#[expect(dead_code, reason = "shared with the integration tests, which use other parts")]
#[path = "../../tests/it/fixture/registry.rs"]
mod fake_registry;

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use oci_spec::image::ImageConfiguration;

use self::index::Index;
pub(crate) use self::index::{
    DOCUMENT_BYTES_MAX, DocumentError, FindError, Image, ImageUser, check_manifest,
};
pub(crate) use self::layers::{Layer, LayerExpectation};
use self::layers::{LayerRecord, LayerState};
pub(crate) use self::load::LoadError;
pub(crate) use self::rootfs::{Rootfs, RootfsError, RootfsOptions};
pub(crate) use self::unpack::{Limits, UnpackError};
pub(crate) use self::usage::FsUsage;
#[cfg(test)]
pub(crate) use self::verify::{Finding, Verified};
use crate::id::{ContainerId, Digest};
use crate::records::{Change, Records, RecordsError, Tree};
use crate::sys::detached::Detached;
use crate::units::{Bytes, UnixNanos};

/// Why the store failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    #[error("{operation} {}", path.display())]
    Io {
        operation: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Records(#[from] RecordsError),
    #[error("accept the image {name:?}")]
    Document {
        name: String,
        #[source]
        source: DocumentError,
    },
    #[error(transparent)]
    Find(#[from] FindError),
    #[error("the image {id} lost its config; pull it again")]
    MissingConfig { id: Digest },
}

impl StoreError {
    fn io(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { operation, path: path.to_owned(), source }
    }
}

/// An image that is ready to be kept: its layers are unpacked and leased.
#[derive(Debug)]
pub(crate) struct NewImage {
    pub(crate) manifest: Vec<u8>,
    pub(crate) manifest_digest: Digest,
    pub(crate) config: Vec<u8>,
    /// Becomes the image's id.
    pub(crate) config_digest: Digest,
    /// In the order of the config's diff ids.
    pub(crate) layers: Vec<Layer>,
    /// Normalised names with a tag.
    pub(crate) tags: Vec<String>,
    /// Normalised names with a digest.
    pub(crate) repo_digests: Vec<String>,
}

/// What a removal found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Removed {
    Now,
    AlreadyGone,
}

/// The image store of one data directory.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    root: PathBuf,
    /// What overlays take their directories from, where the kernel can.
    detached: Option<Detached>,
    limits: Limits,
    records: Records,
    images: Tree<Image>,
    layers: Tree<LayerRecord>,
    /// Held while records and files change together; taken before `state`, never after.
    writing: Mutex<()>,
    /// Held for moments, never across a flush.
    state: Mutex<State>,
    writable: usage::WritableCache,
}

#[derive(Debug, Default)]
struct State {
    index: Index,
    layers: HashMap<Digest, LayerState>,
    /// Layers that containers' mounts are made of.
    containers: HashMap<ContainerId, BTreeSet<Digest>>,
    /// Why nothing may be collected: records that cannot be read.
    unreadable: Vec<String>,
    /// Manifests and configs.
    blob_bytes: u64,
    blob_files: u64,
}

impl Store {
    /// Opens or creates the store in `root`, removes what interrupted work left, and loads its records. Blocking.
    ///
    /// # Errors
    /// When the folders or the database cannot be made or opened. Never because of the content of a record or a leftover.
    #[cfg(test)]
    pub(crate) fn open(root: &Path) -> Result<Self, StoreError> {
        Self::open_with(root, Limits::default())
    }

    /// Opens the store in `root`, or makes it, with these limits for layers. Takes back what a crash left. Blocking.
    pub(crate) fn open_with(root: &Path, limits: Limits) -> Result<Self, StoreError> {
        for folder in ["", "images", "images/blobs", "images/blobs/sha256", "layers", "empty", "containers"] {
            let path = root.join(folder);
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&path)
                .map_err(StoreError::io("create the folder", &path))?;
        }
        // The root of a container of an image without layers: everybody may look into it.
        let empty = root.join("empty");
        fs::set_permissions(&empty, std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .map_err(StoreError::io("set the mode of", &empty))?;
        let root = fs::canonicalize(root).map_err(StoreError::io("resolve the path", root))?;
        let records = Records::open(&root.join("images/records"))?;
        let images = records.tree("images")?;
        let layers = records.tree("layers")?;
        let store = Self {
            inner: Arc::new(Inner {
                detached: Detached::of(&root),
                root,
                limits,
                records,
                images,
                layers,
                writing: Mutex::new(()),
                state: Mutex::new(State::default()),
                writable: usage::WritableCache::default(),
            }),
        };
        store.recover()?;
        Ok(store)
    }

    /// Keeps an image: verifies its documents, makes everything durable, then makes it visible. An image that is already there
    /// gets the new names; a tag that another image has moves here. Blocking: it waits for the disk.
    ///
    /// # Errors
    /// When a document is not what its digest says, is ambiguous, too large, or does not fit the layers; nothing has
    /// changed then.
    pub(crate) fn put_image(&self, new: NewImage) -> Result<Arc<Image>, StoreError> {
        let facts = check(&new).map_err(|source| StoreError::Document {
            name: new
                .tags
                .first()
                .or(new.repo_digests.first())
                .cloned()
                .unwrap_or_else(|| new.config_digest.to_string()),
            source,
        })?;
        let inner = &*self.inner;
        let _writing = inner.write();
        self.put_blob(&new.manifest_digest, &new.manifest)?;
        self.put_blob(&new.config_digest, &new.config)?;

        let known = inner.state().index.get(&new.config_digest).cloned();
        let mut image = match known.as_deref() {
            Some(known) => known.clone(),
            None => Image {
                id: new.config_digest.clone(),
                manifest_digest: new.manifest_digest.clone(),
                media_type: None,
                tags: Vec::new(),
                repo_digests: Vec::new(),
                size: Bytes(size_of_image(&new)),
                layers: facts.diff_ids,
                user: facts.user,
                created: facts.created,
                stored_at: UnixNanos::now(),
                architecture: facts.architecture,
                pinned: false,
            },
        };
        add_names(&mut image.tags, &new.tags);
        add_names(&mut image.repo_digests, &new.repo_digests);

        // Other images give up the names that move.
        let mut changed: HashMap<Digest, Image> = HashMap::new();
        {
            let state = inner.state();
            for name in new.tags.iter().chain(&new.repo_digests) {
                if let Some(other) = state.index.by_name(name).filter(|other| other.id != image.id) {
                    let other = changed.entry(other.id.clone()).or_insert_with(|| (**other).clone());
                    other.tags.retain(|tag| tag != name);
                    other.repo_digests.retain(|digest| digest != name);
                }
            }
        }

        self.publish_layers(&new.layers)?;
        let image = Arc::new(image);
        let changes = changed.values().chain([&*image]);
        inner.images.apply(changes.map(|image| Change::Put(image.id.hex().to_owned(), image.clone())))?;
        inner.records.flush()?;

        let mut state = inner.state();
        for other in changed.into_values() {
            state.index.insert(Arc::new(other));
        }
        state.index.insert(image.clone());
        Ok(image)
    }

    /// The image that `text` names: an id, a tag, a name with a digest (and perhaps a tag), or a prefix of an id, tried
    /// in this order. Names need not be normalised. Does not touch the disk.
    pub(crate) fn find(&self, text: &str) -> Result<Option<Arc<Image>>, FindError> {
        let normalised = text.parse::<reference::Reference>().map(|reference| reference.to_string());
        let state = self.inner.state();
        let exact = state.index.exact(text).or_else(|| state.index.exact(normalised.as_deref().ok()?));
        match exact {
            Some(image) => Ok(Some(image.clone())),
            None => Ok(state.index.prefix(text)?.cloned()),
        }
    }

    /// All images, the newest first. Does not touch the disk.
    pub(crate) fn list(&self) -> Vec<Arc<Image>> {
        let mut images: Vec<_> = self.inner.state().index.iter().cloned().collect();
        images.sort_by(|a, b| b.stored_at.cmp(&a.stored_at).then_with(|| a.id.cmp(&b.id)));
        images
    }

    /// The image's whole config, read and verified anew. Blocking: one small file.
    pub(crate) fn config(&self, image: &Image) -> Result<ImageConfiguration, StoreError> {
        let bytes =
            self.read_blob(&image.id)?.ok_or_else(|| StoreError::MissingConfig { id: image.id.clone() })?;
        index::config(&bytes).map_err(|source| StoreError::Document { name: image.id.to_string(), source })
    }

    /// The image's manifest or config as it came; `None` when it is lost or no longer has its digest.
    pub(crate) fn read_blob(&self, digest: &Digest) -> Result<Option<Vec<u8>>, StoreError> {
        let path = self.blob_path(digest);
        match read_bounded(&path) {
            Ok(bytes) => Ok((unpack::digest_of(&bytes) == *digest).then_some(bytes)),
            Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(err) => Err(StoreError::io("read the blob", &path)(err)),
        }
    }

    /// Removes the image that `text` names with all its names, and every layer that no other image and no container
    /// needs. Blocking.
    ///
    /// # Errors
    /// When a prefix fits several images, or the disk fails; the image is gone or whole.
    pub(crate) fn remove(&self, text: &str) -> Result<Removed, StoreError> {
        let inner = &*self.inner;
        {
            let _writing = inner.write();
            let Some(image) = self.find(text)? else {
                return Ok(Removed::AlreadyGone);
            };
            inner.images.remove(image.id.hex())?;
            inner.records.flush()?;
            inner.state().index.remove(&image.id);
        }
        self.collect()?;
        Ok(Removed::Now)
    }

    /// Pins or unpins an image. Returns whether there is such an image. Blocking.
    pub(crate) fn set_pinned(&self, id: &Digest, pinned: bool) -> Result<bool, StoreError> {
        let inner = &*self.inner;
        let _writing = inner.write();
        let Some(image) = inner.state().index.get(id).cloned() else {
            return Ok(false);
        };
        if image.pinned != pinned {
            let image = Image { pinned, ..(*image).clone() };
            inner.images.put(id.hex(), &image)?;
            inner.records.flush()?;
            inner.state().index.insert(Arc::new(image));
        }
        Ok(true)
    }

    /// Where the store lives, symlinks resolved.
    pub(crate) fn root(&self) -> &Path {
        &self.inner.root
    }

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.inner.root.join("images/blobs/sha256").join(digest.hex())
    }

    /// Writes a blob under a temporary name and renames it; the caller syncs. One that is there is replaced only when
    /// it is damaged.
    fn put_blob(&self, digest: &Digest, bytes: &[u8]) -> Result<(), StoreError> {
        if self.read_blob(digest)?.is_some() {
            return Ok(());
        }
        let path = self.blob_path(digest);
        let fresh = !path.exists();
        let partial = path.with_file_name(random_name("tmp-"));
        let written = (|| {
            let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&partial)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&partial, &path)?;
            fs::File::open(path.parent().expect("a blob has a folder"))?.sync_all()
        })();
        if let Err(err) = written {
            // The error that matters is the first; open removes what stays.
            let _ = fs::remove_file(&partial);
            return Err(StoreError::io("write the blob", &path)(err));
        }
        if fresh {
            let mut state = self.inner.state();
            state.blob_bytes += usage::round_up(bytes.len() as u64);
            state.blob_files += 1;
        }
        Ok(())
    }
}

impl Inner {
    fn write(&self) -> MutexGuard<'_, ()> {
        self.writing.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each change of the state is complete when its guard is dropped, so a panic elsewhere left it whole.
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

fn check(new: &NewImage) -> Result<index::ConfigFacts, DocumentError> {
    for (kind, bytes, expected) in
        [("manifest", &new.manifest, &new.manifest_digest), ("config", &new.config, &new.config_digest)]
    {
        if bytes.len() > DOCUMENT_BYTES_MAX {
            return Err(DocumentError::TooLarge { kind, size: bytes.len() });
        }
        let actual = unpack::digest_of(bytes);
        if actual != *expected {
            return Err(DocumentError::Digest { kind, expected: expected.clone(), actual });
        }
    }
    check_manifest(&new.manifest)?;
    let facts = index::config_facts(&new.config)?;
    let layers: Vec<_> = new.layers.iter().map(|layer| layer.diff_id().clone()).collect();
    if facts.diff_ids != layers {
        return Err(DocumentError::DiffIds { config: facts.diff_ids, layers });
    }
    Ok(facts)
}

fn size_of_image(new: &NewImage) -> u64 {
    let mut seen = BTreeSet::new();
    let layers: u64 = new
        .layers
        .iter()
        .filter(|layer| seen.insert(layer.diff_id()))
        .map(|layer| layer.disk_bytes().0)
        .sum();
    layers + (new.manifest.len() + new.config.len()) as u64
}

fn add_names(names: &mut Vec<String>, new: &[String]) {
    for name in new {
        if !names.contains(name) {
            names.push(name.clone());
        }
    }
}

/// Reads a file of at most [`DOCUMENT_BYTES_MAX`]; a longer one is cut, and then fails its digest.
fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    use std::io::Read;
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(DOCUMENT_BYTES_MAX as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// `prefix` and 16 random hex digits.
fn random_name(prefix: &str) -> String {
    format!("{prefix}{}", &ContainerId::random().as_str()[..16])
}
