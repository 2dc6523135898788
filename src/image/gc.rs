//! Putting right what a crash left, and collecting what nobody needs.
//!
//! Needed are: layers and blobs that an image record names (even the record of an image that cannot be listed), layers
//! that a container's mount is made of, and layers under a lease. While any record is unreadable everything is needed.

use std::collections::{BTreeSet, HashSet};
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;

use super::layers::LayerState;
use super::unpack::{open_directory, remove_tree};
use super::{State, Store, StoreError, index::Image, random_name, usage};
use crate::id::{ContainerId, Digest};
use crate::records::Change;

impl Store {
    /// Removes the writable layers of all containers but `live`, then everything that nothing needs. For recovery, before
    /// any container is made: one that is being made is not in `live`. Blocking.
    pub(crate) fn gc(&self, live: &[ContainerId]) -> Result<(), StoreError> {
        let live: HashSet<&ContainerId> = live.iter().collect();
        for container in self.containers().iter().filter(|container| !live.contains(container)) {
            if let Err(err) = self.remove_container(container) {
                let cause = std::error::Error::source(&err).map(ToString::to_string).unwrap_or_default();
                tracing::warn!(%container, "{err}: {cause}; it stays until the next start");
            }
        }
        self.collect()
    }

    /// Removes layers and blobs that nothing needs, for instance after a pull that failed. Cheap when there are none.
    /// Blocking.
    pub(crate) fn collect(&self) -> Result<(), StoreError> {
        let inner = &*self.inner;
        let writing = inner.write();
        let mut doomed = Vec::new();
        let mut recorded = Vec::new();
        {
            let mut state = inner.state();
            if !state.unreadable.is_empty() {
                tracing::warn!(records = ?state.unreadable, "nothing is collected while records cannot be read");
                return Ok(());
            }
            let needed = needed_layers(&state, &self.known_images());
            let unneeded: Vec<Digest> = state
                .layers
                .iter()
                .filter(|(diff_id, layer)| layer.leases == 0 && !needed.contains(*diff_id))
                .map(|(diff_id, _)| diff_id.clone())
                .collect();
            for diff_id in unneeded {
                // Out of the way and out of the table in one step, so that a pull of the same layer starts afresh.
                let name = random_name("tmp-");
                let path = self.layer_path(&diff_id);
                match fs::rename(&path, path.with_file_name(&name)) {
                    Ok(()) => doomed.push(name),
                    Err(err) if err.kind() == io::ErrorKind::NotFound => {}
                    Err(err) => return Err(StoreError::io("move the unneeded layer", &path)(err)),
                }
                if state.layers.remove(&diff_id).is_some_and(|layer| layer.recorded) {
                    recorded.push(Change::Remove(diff_id.hex().to_owned()));
                }
            }
        }
        if !recorded.is_empty() {
            inner.layers.apply(recorded)?;
            inner.records.flush()?;
        }
        self.remove_unneeded_blobs()?;
        drop(writing);
        let folder = inner.root.join("layers");
        let opened = open_directory(&folder).map_err(StoreError::io("open", &folder))?;
        for name in doomed {
            remove_tree(opened.as_fd(), name.as_ref())
                .map_err(StoreError::io("remove the layer", &folder.join(name)))?;
        }
        Ok(())
    }

    /// What [`Store::open_with`] does with the disk it finds.
    pub(super) fn recover(&self) -> Result<(), StoreError> {
        let inner = &*self.inner;
        let mut state = State::default();
        let mut images: Vec<Arc<Image>> = Vec::new();
        for item in inner.images.iter() {
            match item {
                Ok((_, image)) => images.push(Arc::new(image)),
                Err(err) => state.unreadable.push(report(&err)),
            }
        }
        for item in inner.layers.iter() {
            let (key, record) = match item {
                Ok(item) => item,
                Err(err) => {
                    state.unreadable.push(report(&err));
                    continue;
                }
            };
            match format!("sha256:{key}").parse::<Digest>() {
                Ok(diff_id) => {
                    let layer = LayerState {
                        disk_bytes: record.disk_bytes,
                        inodes: record.inodes,
                        recorded: true,
                        leases: 0,
                    };
                    state.layers.insert(diff_id, layer);
                }
                Err(err) => state.unreadable.push(report(&err)),
            }
        }
        self.recover_containers(&mut state)?;
        self.recover_layers(&mut state)?;
        // Where two records claim a name, the later one has it.
        images.sort_by_key(|image| image.stored_at);
        for image in &images {
            match image.layers.iter().find(|diff_id| !state.layers.contains_key(*diff_id)) {
                None => state.index.insert(image.clone()),
                Some(layer) => tracing::warn!(
                    image = %image.id, tags = ?image.tags, %layer,
                    "an image lost a layer and is not listed; pull it again to repair it"
                ),
            }
        }
        *inner.state() = state;
        self.recover_blobs()?;
        self.collect()
    }

    /// Which layers containers are mounted from.
    fn recover_containers(&self, state: &mut State) -> Result<(), StoreError> {
        let folder = self.inner.root.join("containers");
        for name in list(&folder)? {
            let path = folder.join(&name);
            let Some(id) = name.to_str().and_then(|name| name.parse::<ContainerId>().ok()) else {
                tracing::warn!(path = %path.display(), "not a container's folder; left as it is");
                continue;
            };
            match read_layers(&path.join("layers.json")) {
                Ok(layers) => {
                    state.containers.insert(id, layers);
                }
                // The folder is older than its list: a crash in between, before anything was mounted.
                Err(err) if err.kind() == io::ErrorKind::NotFound => {
                    state.containers.insert(id, BTreeSet::new());
                }
                Err(err) => {
                    tracing::warn!(path = %path.display(), error = %err, "a container's list of layers is unreadable");
                    state.unreadable.push(format!("{}/layers.json", path.display()));
                    state.containers.insert(id, BTreeSet::new());
                }
            }
        }
        Ok(())
    }

    /// Matches layer records with layer directories.
    fn recover_layers(&self, state: &mut State) -> Result<(), StoreError> {
        let folder = self.inner.root.join("layers");
        let opened = open_directory(&folder).map_err(StoreError::io("open", &folder))?;
        let mut found = HashSet::new();
        for name in list(&folder)? {
            let text = name.to_string_lossy();
            let leftover = match format!("sha256:{text}").parse::<Digest>() {
                Ok(diff_id) if state.layers.contains_key(&diff_id) => {
                    found.insert(diff_id);
                    false
                }
                Ok(diff_id) => {
                    state.unreadable.is_empty()
                        && !state.containers.values().any(|used| used.contains(&diff_id))
                }
                Err(_) if text.starts_with("tmp-") => true,
                Err(_) => {
                    tracing::warn!(path = %folder.join(&name).display(), "not a layer; left as it is");
                    false
                }
            };
            if leftover {
                tracing::info!(path = %folder.join(&name).display(), "removing an unfinished layer");
                remove_tree(opened.as_fd(), &name)
                    .map_err(StoreError::io("remove the unfinished layer", &folder.join(&name)))?;
            }
        }
        let lost: Vec<Digest> =
            state.layers.keys().filter(|diff_id| !found.contains(*diff_id)).cloned().collect();
        for diff_id in lost {
            tracing::warn!(layer = %diff_id, "a layer's directory is gone; forgetting its record");
            state.layers.remove(&diff_id);
            self.inner.layers.remove(diff_id.hex())?;
        }
        Ok(())
    }

    /// Counts blobs and removes unfinished ones.
    fn recover_blobs(&self) -> Result<(), StoreError> {
        let folder = self.inner.root.join("images/blobs/sha256");
        let (mut bytes, mut files) = (0, 0);
        for name in list(&folder)? {
            let path = folder.join(&name);
            if name.to_string_lossy().starts_with("tmp-") {
                fs::remove_file(&path).map_err(StoreError::io("remove the unfinished blob", &path))?;
            } else if let Ok(metadata) = fs::symlink_metadata(&path) {
                bytes += usage::round_up(metadata.len());
                files += 1;
            }
        }
        let mut state = self.inner.state();
        state.blob_bytes = bytes;
        state.blob_files = files;
        Ok(())
    }

    fn remove_unneeded_blobs(&self) -> Result<(), StoreError> {
        let needed: HashSet<String> = self
            .known_images()
            .iter()
            .flat_map(|image| [image.id.hex().to_owned(), image.manifest_digest.hex().to_owned()])
            .collect();
        let folder = self.inner.root.join("images/blobs/sha256");
        for name in list(&folder)? {
            let unneeded = name.to_str().is_some_and(|name| {
                format!("sha256:{name}").parse::<Digest>().is_ok() && !needed.contains(name)
            });
            if unneeded {
                let path = folder.join(&name);
                let size = fs::symlink_metadata(&path).map_or(0, |metadata| metadata.len());
                fs::remove_file(&path).map_err(StoreError::io("remove the blob", &path))?;
                let mut state = self.inner.state();
                state.blob_bytes = state.blob_bytes.saturating_sub(usage::round_up(size));
                state.blob_files = state.blob_files.saturating_sub(1);
            }
        }
        Ok(())
    }

    /// Every readable image record, listed or not.
    fn known_images(&self) -> Vec<Image> {
        self.inner.images.iter().filter_map(|item| item.ok().map(|(_, image)| image)).collect()
    }
}

fn needed_layers(state: &State, images: &[Image]) -> HashSet<Digest> {
    images
        .iter()
        .flat_map(|image| image.layers.iter())
        .chain(state.containers.values().flatten())
        .cloned()
        .collect()
}

fn list(folder: &Path) -> Result<Vec<OsString>, StoreError> {
    fs::read_dir(folder)
        .and_then(|entries| entries.map(|entry| Ok(entry?.file_name())).collect())
        .map_err(StoreError::io("list", folder))
}

fn read_layers(path: &Path) -> io::Result<BTreeSet<Digest>> {
    Ok(serde_json::from_slice(&super::read_bounded(path)?)?)
}

fn report(err: &dyn std::error::Error) -> String {
    let cause = err.source().map(|cause| format!(": {cause}")).unwrap_or_default();
    tracing::warn!("{err}{cause}; it is kept, and nothing is collected meanwhile");
    err.to_string()
}
