//! Looking at everything the store keeps and saying what is wrong with it. Changes nothing.

use std::collections::HashSet;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::Store;
use crate::id::Digest;

/// Folders one layer's check has noted but not yet opened; what lies beyond is not counted.
const WALK_PENDING_MAX: usize = 1_000_000;

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Verified {
    pub(crate) images: usize,
    pub(crate) layers: usize,
    pub(crate) findings: Vec<Finding>,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Finding {
    #[error("{0}; remove it once nothing needs it")]
    UnreadableRecord(String),
    #[error("the image {image} has lost its {kind}; pull it again")]
    LostBlob { image: Digest, kind: &'static str },
    #[error("the image {image} has lost the layer {layer}; pull it again")]
    LostLayer { image: Digest, layer: Digest },
    #[error(
        "the layer {layer} has {actual} files instead of {expected}; remove its images and pull them again"
    )]
    ChangedLayer { layer: Digest, expected: u64, actual: u64 },
    #[error("the layer {layer} cannot be read: {error}")]
    UnreadableLayer { layer: Digest, error: String },
}

impl Store {
    /// Checks every image's documents against their digests and every layer's number of files against its record.
    /// Blocking: it walks all layers.
    pub(crate) fn verify(&self) -> Verified {
        let (mut findings, layers): (Vec<_>, Vec<_>) = {
            let state = self.inner.state();
            let findings = state.unreadable.iter().cloned().map(Finding::UnreadableRecord).collect();
            (findings, state.layers.iter().map(|(diff_id, layer)| (diff_id.clone(), layer.inodes)).collect())
        };
        let known: HashSet<&Digest> = layers.iter().map(|(diff_id, _)| diff_id).collect();
        let images: Vec<_> =
            self.inner.images.iter().filter_map(|item| item.ok().map(|(_, image)| image)).collect();
        for image in &images {
            for (kind, digest) in [("config", &image.id), ("manifest", &image.manifest_digest)] {
                if !matches!(self.read_blob(digest), Ok(Some(_))) {
                    findings.push(Finding::LostBlob { image: image.id.clone(), kind });
                }
            }
            for layer in image.layers.iter().filter(|layer| !known.contains(layer)) {
                findings.push(Finding::LostLayer { image: image.id.clone(), layer: layer.clone() });
            }
        }
        for (layer, expected) in &layers {
            match count_inodes(&self.layer_path(layer).join("fs")) {
                Ok(actual) if actual == *expected => {}
                Ok(actual) => {
                    findings.push(Finding::ChangedLayer { layer: layer.clone(), expected: *expected, actual })
                }
                Err(err) => {
                    findings.push(Finding::UnreadableLayer { layer: layer.clone(), error: err.to_string() });
                }
            }
        }
        Verified { images: images.len(), layers: layers.len(), findings }
    }
}

/// Inodes at and below `root`; one with several names counts once.
fn count_inodes(root: &Path) -> io::Result<u64> {
    let mut linked = HashSet::new();
    let mut count = 1;
    let mut pending = vec![root.to_owned()];
    std::fs::symlink_metadata(root)?;
    while let Some(folder) = pending.pop() {
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            // Does not follow symlinks.
            let metadata = entry.metadata()?;
            if metadata.is_dir() {
                if pending.len() < WALK_PENDING_MAX {
                    pending.push(entry.path());
                }
            } else if metadata.nlink() > 1 && !linked.insert(metadata.ino()) {
                continue;
            }
            count += 1;
        }
    }
    Ok(count)
}
