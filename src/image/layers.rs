//! Layers on disk: unpacking one, and keeping it while a pull or a load still needs it.
//!
//! ```text
//! layers/tmp-<random>/fs ──verified──▶ layers/<diff id hex>/fs ──put_image: syncfs, record, flush──▶ counts
//!        │ failed or crashed                  │ crashed, or no image came of it
//!        ▼ removed                            ▼ removed at the next open or collection
//! ```
//!
//! A layer is addressed by its diff id and knows nothing of the layers below it, so layers of one image unpack in
//! parallel and images share them. A [`Layer`] is a lease: while one exists the layer is not collected.

use std::fs;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::unpack::{self, Expectation, UnpackError, open_directory, remove_tree};
use super::{Inner, Store, StoreError, random_name};
use crate::id::Digest;
use crate::records::Change;
use crate::units::{Bytes, UnixNanos};

/// What is kept of a layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LayerRecord {
    pub(super) disk_bytes: Bytes,
    pub(super) inodes: u64,
    pub(super) stored_at: UnixNanos,
}

/// A layer that is there.
#[derive(Debug, Clone)]
pub(super) struct LayerState {
    pub(super) disk_bytes: Bytes,
    pub(super) inodes: u64,
    /// Its record is durable.
    pub(super) recorded: bool,
    pub(super) leases: u32,
}

/// What the manifest and the config say about a layer.
#[derive(Debug, Clone)]
pub(crate) struct LayerExpectation {
    pub(crate) blob_digest: Digest,
    pub(crate) blob_size: u64,
    pub(crate) diff_id: Digest,
}

/// A layer that is unpacked, and stays so while this value lives. Dropping it removes nothing; [`Store::gc`] does.
#[derive(Debug)]
pub(crate) struct Layer {
    inner: Arc<Inner>,
    diff_id: Digest,
    disk_bytes: Bytes,
}

impl Layer {
    /// The digest of the uncompressed layer.
    pub(crate) fn diff_id(&self) -> &Digest {
        &self.diff_id
    }

    /// What it takes on disk.
    pub(crate) fn disk_bytes(&self) -> Bytes {
        self.disk_bytes
    }
}

impl Drop for Layer {
    fn drop(&mut self) {
        if let Some(layer) = self.inner.state().layers.get_mut(&self.diff_id) {
            layer.leases -= 1;
        }
    }
}

impl Store {
    /// Whether the layer is unpacked. It may be collected a moment later; [`Store::lease_layer`] prevents that.
    #[cfg(test)]
    pub(crate) fn has_layer(&self, diff_id: &Digest) -> bool {
        self.inner.state().layers.contains_key(diff_id)
    }

    /// Keeps a layer that is already unpacked; `None` when it has to be fetched.
    pub(crate) fn lease_layer(&self, diff_id: &Digest) -> Option<Layer> {
        let mut state = self.inner.state();
        let layer = state.layers.get_mut(diff_id)?;
        layer.leases += 1;
        Some(Layer { inner: self.inner.clone(), diff_id: diff_id.clone(), disk_bytes: layer.disk_bytes })
    }

    /// Unpacks a layer from `reader`, verifying size, digest and diff id, and leases it. `progress` is called with the
    /// number of blob bytes that came in so far. A layer that is there is leased and `reader` left unread. Blocking,
    /// with a second thread for writing; nothing is durable before [`Store::put_image`].
    ///
    /// # Errors
    /// The first thing wrong with the stream or an entry in it; nothing stays behind.
    pub(crate) fn unpack_layer(
        &self,
        reader: impl Read,
        expect: LayerExpectation,
        progress: &dyn Fn(u64),
    ) -> Result<Layer, UnpackError> {
        let expectation =
            Expectation { blob: Some((expect.blob_digest, expect.blob_size)), diff_id: Some(expect.diff_id) };
        self.unpack_expected(reader, &expectation, progress)
    }

    /// As [`Store::unpack_layer`] where the blob or even the diff id has no announced digest.
    pub(super) fn unpack_expected(
        &self,
        reader: impl Read,
        expect: &Expectation,
        progress: &dyn Fn(u64),
    ) -> Result<Layer, UnpackError> {
        if let Some(layer) = expect.diff_id.as_ref().and_then(|diff_id| self.lease_layer(diff_id)) {
            return Ok(layer);
        }
        let io = |operation| move |source| UnpackError::Io { operation, source };
        let folder = self.inner.root.join("layers");
        let name = random_name("tmp-");
        let partial = folder.join(&name);
        let unpacked = (|| {
            let root = partial.join("fs");
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&root)
                .map_err(io("create the layer's folder"))?;
            // What a container sees as the mode of `/` unless the layer says otherwise.
            fs::set_permissions(&root, fs::Permissions::from_mode(0o755))
                .map_err(io("set the folder's mode"))?;
            let root = open_directory(&root).map_err(io("open the layer's folder"))?;
            unpack::unpack(reader, root, expect, self.inner.limits, progress)
        })();
        let published = unpacked.and_then(|unpacked| {
            let mut state = self.inner.state();
            if let Some(layer) = state.layers.get_mut(&unpacked.diff_id) {
                // Somebody else was faster; ours is removed below.
                layer.leases += 1;
                let disk_bytes = layer.disk_bytes;
                return Ok(Layer { inner: self.inner.clone(), diff_id: unpacked.diff_id, disk_bytes });
            }
            let path = self.layer_path(&unpacked.diff_id);
            if path.exists() {
                // A directory without a readable record. What was verified just now takes its place.
                fs::rename(&path, folder.join(random_name("tmp-"))).map_err(io("move the old layer away"))?;
            }
            fs::rename(&partial, &path).map_err(io("rename the finished layer"))?;
            let disk_bytes = Bytes(unpacked.disk_bytes);
            let layer = LayerState { disk_bytes, inodes: unpacked.inodes, recorded: false, leases: 1 };
            state.layers.insert(unpacked.diff_id.clone(), layer);
            Ok(Layer { inner: self.inner.clone(), diff_id: unpacked.diff_id, disk_bytes })
        });
        let cleaned = open_directory(&folder).and_then(|folder| remove_tree(folder.as_fd(), name.as_ref()));
        match (published, cleaned) {
            (Ok(layer), Ok(())) => Ok(layer),
            (Err(err), Ok(())) => Err(err),
            (published, Err(cleanup)) => {
                // The next open removes it; the caller's result stands.
                tracing::warn!(path = %partial.display(), error = %cleanup, "an unfinished layer stays behind");
                published
            }
        }
    }

    /// Makes unpacked layers durable and writes their records; the caller flushes. Holds the writing lock.
    pub(super) fn publish_layers(&self, layers: &[Layer]) -> Result<(), StoreError> {
        let mut fresh: Vec<(Digest, LayerRecord)> = Vec::new();
        {
            let state = self.inner.state();
            for layer in layers {
                let known = state.layers.get(&layer.diff_id).expect("a leased layer is in the table");
                if !known.recorded && fresh.iter().all(|(diff_id, _)| *diff_id != layer.diff_id) {
                    let record = LayerRecord {
                        disk_bytes: known.disk_bytes,
                        inodes: known.inodes,
                        stored_at: UnixNanos::now(),
                    };
                    fresh.push((layer.diff_id.clone(), record));
                }
            }
        }
        if fresh.is_empty() {
            return Ok(());
        }
        // One syncfs(2) for all layers: an fsync for each of thousands of files would take minutes.
        let folder = self.inner.root.join("layers");
        open_directory(&folder)
            .and_then(|folder| Ok(rustix::fs::syncfs(folder)?))
            .map_err(StoreError::io("sync the layers in", &folder))?;
        self.inner.layers.apply(
            fresh.iter().map(|(diff_id, record)| Change::Put(diff_id.hex().to_owned(), record.clone())),
        )?;
        self.inner.records.flush()?;
        let mut state = self.inner.state();
        for (diff_id, _) in fresh {
            if let Some(layer) = state.layers.get_mut(&diff_id) {
                layer.recorded = true;
            }
        }
        Ok(())
    }

    /// `layers/<diff id hex>`.
    pub(super) fn layer_path(&self, diff_id: &Digest) -> PathBuf {
        self.inner.root.join("layers").join(diff_id.hex())
    }
}
