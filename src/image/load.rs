//! Images from files: what `docker save`, `podman save`, `skopeo` and `buildctl` write.
//!
//! Three forms, told apart by what they contain: an OCI layout (`oci-layout`, `index.json`, `blobs/`) as a directory or as a tar,
//! and docker-archive (`manifest.json`), whose older writers name layers by directory. A file with both is read as an OCI layout,
//! because only that has the manifest's digest. A compressed archive is first inflated into an unnamed file.
//!
//! A file is trusted no more than a registry: documents are bounded, blobs are verified while they are unpacked, and
//! names come only from its own annotations or from the caller.

mod source;

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;

use self::source::Source;
use super::reference::Reference;
use super::registry::manifest::{self, Descriptor, Document};
use super::registry::platform::Platform;
use super::unpack::{Expectation, digest_of};
use super::{DOCUMENT_BYTES_MAX, Image, Layer, NewImage, Store, StoreError, UnpackError, index};
use crate::id::Digest;

/// Images in one file. `docker save` of a whole machine has dozens.
const IMAGES_MAX: usize = 1000;

/// Indexes inside indexes: a layout's own, an image's, and one to spare.
const INDEX_DEPTH_MAX: usize = 3;

/// Why a file is not loaded. Images before the one at fault are kept.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    #[error("open {}", path.display())]
    Open {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} is neither an OCI layout nor a docker-archive: it has no index.json and no manifest.json", path.display())]
    Unknown { path: PathBuf },
    #[error("{} has {count} images; the limit is {IMAGES_MAX}", path.display())]
    TooMany { path: PathBuf, count: usize },
    #[error("{} has no image for this machine's platform", path.display())]
    NoPlatform { path: PathBuf },
    #[error("{} has several images; load it without giving a name", path.display())]
    OneName { path: PathBuf },
    #[error("read {member:?} in the image file")]
    Member {
        member: String,
        #[source]
        source: io::Error,
    },
    #[error("{member:?} in the image file has more than {DOCUMENT_BYTES_MAX} bytes")]
    TooLarge { member: String },
    #[error("{member:?} in the image file has not the digest it is named by")]
    Digest { member: String },
    #[error("read {member:?} in the image file as JSON")]
    Json {
        member: String,
        #[source]
        source: serde_json::Error,
    },
    #[error("accept {member:?} in the image file")]
    Manifest {
        member: String,
        #[source]
        source: manifest::DocumentError,
    },
    #[error("accept {member:?} in the image file")]
    Document {
        member: String,
        #[source]
        source: index::DocumentError,
    },
    #[error("{member:?} has {layers} layers and {diff_ids} diff ids")]
    Layers { member: String, layers: usize, diff_ids: usize },
    #[error("unpack {member:?} of the image file")]
    Unpack {
        member: String,
        #[source]
        source: UnpackError,
    },
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Store {
    /// Loads every image in the file or directory at `path` that fits this machine. `name` replaces the names in the
    /// file and fits only a file with one image. Blocking.
    ///
    /// # Errors
    /// At the first image that is malformed; those before it stay.
    pub(crate) fn load(&self, path: &Path, name: Option<&Reference>) -> Result<Vec<Arc<Image>>, LoadError> {
        let source = Source::open(path, self.root(), self.inner.limits.plain_bytes_max)
            .map_err(|source| LoadError::Open { path: path.to_owned(), source })?;
        let loaded = self.load_from(path, &source, name);
        if loaded.is_err() {
            // Layers of the image that failed. Failing here as well changes nothing for the caller: the next collection gets them.
            if let Err(err) = self.collect() {
                tracing::warn!(error = %err, "layers of an image that was not loaded stay for now");
            }
        }
        loaded
    }

    fn load_from(
        &self,
        path: &Path,
        source: &Source,
        name: Option<&Reference>,
    ) -> Result<Vec<Arc<Image>>, LoadError> {
        let images = if source.has("index.json") {
            layout_images(path, source)?
        } else if source.has("manifest.json") {
            docker_images(source)?
        } else {
            return Err(LoadError::Unknown { path: path.to_owned() });
        };
        if images.len() > IMAGES_MAX {
            return Err(LoadError::TooMany { path: path.to_owned(), count: images.len() });
        }
        if name.is_some() && images.len() > 1 {
            return Err(LoadError::OneName { path: path.to_owned() });
        }
        let mut loaded: Vec<Arc<Image>> = Vec::new();
        for found in images {
            let image = self.load_one(source, found, name)?;
            // One image may stand in the file once for each of its names.
            loaded.retain(|known| known.id != image.id);
            loaded.push(image);
        }
        Ok(loaded)
    }

    fn load_one(
        &self,
        source: &Source,
        found: Found,
        name: Option<&Reference>,
    ) -> Result<Arc<Image>, LoadError> {
        let mut layers: Vec<Layer> = Vec::new();
        for (member, blob, diff_id) in found.layers {
            let expect = Expectation { blob, diff_id: Some(diff_id) };
            let reader = source
                .read(&member)
                .map_err(|source| LoadError::Member { member: member.clone(), source })?;
            let layer = self
                .unpack_expected(reader, &expect, &|_| {})
                .map_err(|source| LoadError::Unpack { member, source })?;
            layers.push(layer);
        }
        let names: Vec<&Reference> = name.map_or_else(|| found.names.iter().collect(), |name| vec![name]);
        let mut tags = Vec::new();
        let mut repo_digests = Vec::new();
        for name in names {
            if name.digest().is_none() {
                tags.push(name.to_string());
            }
            if let Some(digest) = &found.named_digest {
                repo_digests.push(name.with_digest(digest).to_string());
            }
        }
        Ok(self.put_image(NewImage {
            manifest_digest: digest_of(&found.manifest),
            manifest: found.manifest,
            config_digest: digest_of(&found.config),
            config: found.config,
            layers,
            tags,
            repo_digests,
        })?)
    }
}

/// An image in a file, its layers not yet read.
struct Found {
    manifest: Vec<u8>,
    config: Vec<u8>,
    layers: Vec<FoundLayer>,
    names: Vec<Reference>,
    /// What a registry would serve under the names: the index's digest, or the manifest's.
    named_digest: Option<Digest>,
}

/// A layer in a file: where it is, what the file announces of its blob, and what it must unpack to.
type FoundLayer = (String, Option<Announced>, Digest);

/// Digest and size of a blob.
type Announced = (Digest, u64);

fn layout_images(path: &Path, source: &Source) -> Result<Vec<Found>, LoadError> {
    #[derive(Deserialize)]
    struct Index {
        #[serde(default)]
        manifests: Vec<Named>,
    }
    #[derive(Deserialize)]
    struct Named {
        #[serde(flatten)]
        descriptor: Descriptor,
        #[serde(default)]
        annotations: Option<std::collections::HashMap<String, String>>,
    }
    let index: Index = json(source, "index.json")?;
    if index.manifests.len() > IMAGES_MAX {
        return Err(LoadError::TooMany { path: path.to_owned(), count: index.manifests.len() });
    }
    let host = Platform::host();
    let mut images = Vec::new();
    for named in &index.manifests {
        if named.descriptor.platform.as_ref().is_some_and(|platform| host.rank(platform).is_none()) {
            continue;
        }
        let mut descriptor = named.descriptor.clone();
        for _ in 0..=INDEX_DEPTH_MAX {
            let member = blob(&descriptor.digest);
            let bytes = document(source, &member)?;
            if digest_of(&bytes) != descriptor.digest {
                return Err(LoadError::Digest { member });
            }
            let parsed = manifest::parse(&bytes, Some(&descriptor.media_type))
                .map_err(|source| LoadError::Manifest { member: member.clone(), source })?;
            match parsed {
                Document::Index(entries) => match manifest::choose(&entries, &host) {
                    Some(chosen) => descriptor = chosen.clone(),
                    None => break,
                },
                Document::Image { config, layers } => {
                    let config_member = blob(&config.digest);
                    let config_bytes = document(source, &config_member)?;
                    if digest_of(&config_bytes) != config.digest {
                        return Err(LoadError::Digest { member: config_member });
                    }
                    let layers = layers
                        .iter()
                        .map(|layer| (blob(&layer.digest), Some((layer.digest.clone(), layer.size))))
                        .collect();
                    images.push(Found {
                        manifest: bytes,
                        layers: with_diff_ids(&config_member, layers, &config_bytes)?,
                        config: config_bytes,
                        names: annotated_names(named.annotations.as_ref()),
                        named_digest: Some(named.descriptor.digest.clone()),
                    });
                    break;
                }
            }
        }
    }
    if images.is_empty() {
        return Err(LoadError::NoPlatform { path: path.to_owned() });
    }
    Ok(images)
}

/// containerd and docker write the full name beside the tag; podman and skopeo write it as the tag.
fn annotated_names(annotations: Option<&std::collections::HashMap<String, String>>) -> Vec<Reference> {
    let get = |key| {
        annotations.and_then(|annotations: &std::collections::HashMap<String, String>| annotations.get(key))
    };
    let full = get("io.containerd.image.name")
        .or_else(|| get("org.opencontainers.image.ref.name").filter(|name| name.contains([':', '/'])));
    // A name that is none is left out: the image still has its id.
    full.and_then(|name| name.parse().ok()).into_iter().collect()
}

fn docker_images(source: &Source) -> Result<Vec<Found>, LoadError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Saved {
        config: String,
        #[serde(default)]
        repo_tags: Option<Vec<String>>,
        #[serde(default)]
        layers: Option<Vec<String>>,
    }
    let saved: Vec<Saved> = json(source, "manifest.json")?;
    let mut images = Vec::new();
    for saved in saved.into_iter().take(IMAGES_MAX + 1) {
        let config = document(source, &saved.config)?;
        let members = saved.layers.unwrap_or_default().into_iter().map(|member| (member, None)).collect();
        let layers = with_diff_ids(&saved.config, members, &config)?;
        let tags = saved.repo_tags.unwrap_or_default();
        images.push(Found {
            manifest: made_up_manifest(source, &config, &layers)?,
            layers,
            config,
            names: tags.iter().filter_map(|tag| tag.parse().ok()).collect(),
            named_digest: None,
        });
    }
    Ok(images)
}

/// docker-archive has no manifest; this one describes its layers as they are in the file.
fn made_up_manifest(source: &Source, config: &[u8], layers: &[FoundLayer]) -> Result<Vec<u8>, LoadError> {
    let mut described = Vec::new();
    for (member, _, diff_id) in layers {
        let size =
            source.size(member).map_err(|source| LoadError::Member { member: member.clone(), source })?;
        described.push(serde_json::json!({
            "mediaType": "application/vnd.oci.image.layer.v1.tar",
            "digest": diff_id.as_str(),
            "size": size,
        }));
    }
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": manifest::OCI_MANIFEST,
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": digest_of(config).as_str(),
            "size": config.len(),
        },
        "layers": described,
    });
    Ok(serde_json::to_vec(&manifest).expect("a JSON value can be written"))
}

fn with_diff_ids(
    config_member: &str,
    members: Vec<(String, Option<Announced>)>,
    config: &[u8],
) -> Result<Vec<FoundLayer>, LoadError> {
    let facts = index::config_facts(config)
        .map_err(|source| LoadError::Document { member: config_member.to_owned(), source })?;
    if facts.diff_ids.len() != members.len() {
        return Err(LoadError::Layers {
            member: config_member.to_owned(),
            layers: members.len(),
            diff_ids: facts.diff_ids.len(),
        });
    }
    Ok(members
        .into_iter()
        .zip(facts.diff_ids)
        .map(|((member, blob), diff_id)| (member, blob, diff_id))
        .collect())
}

fn blob(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// A whole small member.
fn document(source: &Source, member: &str) -> Result<Vec<u8>, LoadError> {
    let failed = |source| LoadError::Member { member: member.to_owned(), source };
    let mut bytes = Vec::new();
    source
        .read(member)
        .and_then(|reader| reader.take(DOCUMENT_BYTES_MAX as u64 + 1).read_to_end(&mut bytes))
        .map_err(failed)?;
    if bytes.len() > DOCUMENT_BYTES_MAX {
        return Err(LoadError::TooLarge { member: member.to_owned() });
    }
    Ok(bytes)
}

fn json<T: serde::de::DeserializeOwned>(source: &Source, member: &str) -> Result<T, LoadError> {
    serde_json::from_slice(&document(source, member)?)
        .map_err(|source| LoadError::Json { member: member.to_owned(), source })
}
