//! Stand-in for the store until it is merged: layers and images in memory.

use std::collections::{HashMap, HashSet};
use std::io::{self, Read};
use std::sync::{Arc, Mutex};

use sha2::{Digest as _, Sha256};

use crate::id::Digest;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
}

#[derive(Debug, Clone)]
pub(crate) struct LayerExpectation {
    pub(crate) blob_digest: Digest,
    pub(crate) blob_size: u64,
    pub(crate) diff_id: Digest,
    pub(crate) compression: Compression,
}

#[derive(Debug, Clone)]
pub(crate) struct Layer {
    pub(crate) diff_id: Digest,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum UnpackError {
    #[error("read the layer")]
    Read(#[source] io::Error),
    #[error("wrong digest")]
    Digest,
}

#[derive(Debug, thiserror::Error)]
#[error("store")]
pub(crate) struct StoreError;

#[derive(Debug)]
pub(crate) struct NewImage {
    pub(crate) manifest: Vec<u8>,
    pub(crate) manifest_digest: Digest,
    pub(crate) config: Vec<u8>,
    pub(crate) config_digest: Digest,
    pub(crate) layers: Vec<Layer>,
    pub(crate) tags: Vec<String>,
    pub(crate) repo_digests: Vec<String>,
}

#[derive(Debug)]
pub(crate) struct Image {
    pub(crate) id: Digest,
    pub(crate) tags: Vec<String>,
    pub(crate) repo_digests: Vec<String>,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Store {
    pub(crate) inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
pub(crate) struct Inner {
    pub(crate) layers: HashSet<Digest>,
    pub(crate) unpacked: Vec<Digest>,
    pub(crate) images: HashMap<Digest, Arc<Image>>,
}

impl Store {
    pub(crate) fn lease_layer(&self, diff_id: &Digest) -> Option<Layer> {
        let inner = self.inner.lock().expect("no panic");
        inner.layers.contains(diff_id).then(|| Layer { diff_id: diff_id.clone() })
    }

    pub(crate) fn unpack_layer(
        &self,
        mut reader: impl Read,
        expect: LayerExpectation,
        progress: &dyn Fn(u64),
    ) -> Result<Layer, UnpackError> {
        let mut hash = Sha256::new();
        let mut buffer = vec![0; 64 << 10];
        let mut total = 0u64;
        loop {
            let got = reader.read(&mut buffer).map_err(UnpackError::Read)?;
            if got == 0 {
                break;
            }
            hash.update(&buffer[..got]);
            total += got as u64;
            progress(total);
        }
        if total != expect.blob_size || Digest::from_bytes(&hash.finalize().into()) != expect.blob_digest {
            return Err(UnpackError::Digest);
        }
        let mut inner = self.inner.lock().expect("no panic");
        inner.layers.insert(expect.diff_id.clone());
        inner.unpacked.push(expect.diff_id.clone());
        Ok(Layer { diff_id: expect.diff_id })
    }

    pub(crate) fn put_image(&self, new: NewImage) -> Result<Arc<Image>, StoreError> {
        let mut inner = self.inner.lock().expect("no panic");
        let (mut tags, mut repo_digests) = (new.tags, new.repo_digests);
        if let Some(old) = inner.images.get(&new.config_digest) {
            tags.extend(old.tags.clone());
            repo_digests.extend(old.repo_digests.clone());
        }
        let image = Arc::new(Image { id: new.config_digest.clone(), tags, repo_digests });
        inner.images.insert(new.config_digest, Arc::clone(&image));
        Ok(image)
    }
}
