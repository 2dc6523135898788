//! Images and their names: what is kept of an image, and how one is found.
//!
//! An image's id is the digest of its config. Its manifest and config are kept as they came, under
//! `images/blobs/sha256/<hex>`; the record holds what lists need. Names are not records of their own: each image
//! record carries its tags and repo digests, so that an image and its names change in one atomic write. A tag belongs to one image: when it moves,
//! both records change in one batch.

use std::collections::HashMap;
use std::sync::Arc;

use oci_spec::image::ImageConfiguration;
use serde::{Deserialize, Serialize};

use crate::id::Digest;
use crate::units::{Bytes, UnixNanos};

/// Size of a manifest, index or config. The distribution specification asks registries to take manifests of 4 MiB and
/// no client needs more; CVE-2023-25153 is what happens without a limit.
pub(crate) const DOCUMENT_BYTES_MAX: usize = 4 << 20;

/// Layers of one image. overlayfs stacks at most 500 (OVL_MAX_STACK); docker makes at most 127.
pub(crate) const LAYERS_MAX: usize = 256;

/// An image, whole and verified. Cheap to share; also its own stored form.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Image {
    /// The digest of its config.
    pub(crate) id: Digest,
    pub(crate) manifest_digest: Digest,
    /// Media type of the manifest, if it says one.
    #[serde(default)]
    pub(crate) media_type: Option<String>,
    /// Normalised, such as `docker.io/library/busybox:1.36`.
    pub(crate) tags: Vec<String>,
    /// Normalised, such as `docker.io/library/busybox@sha256:…`.
    pub(crate) repo_digests: Vec<String>,
    /// Diff ids, the lowest layer first. The same layer may occur twice.
    pub(crate) layers: Vec<Digest>,
    /// Disk space of layers (shared ones included), manifest and config; never 0.
    pub(crate) size: Bytes,
    pub(crate) user: ImageUser,
    /// The image's own `created`, as written in its config.
    pub(crate) created: Option<String>,
    /// When it came to this store.
    pub(crate) stored_at: UnixNanos,
    #[serde(default)]
    pub(crate) architecture: String,
    /// Never to be removed by the kubelet's image collection.
    #[serde(default)]
    pub(crate) pinned: bool,
}

/// The user part of the config's `User`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ImageUser {
    None,
    /// Decimal, in the range of a Linux id.
    Uid(u32),
    /// A name to be looked up in the image's `/etc/passwd`.
    Name(String),
    /// Looks like a number and is no Linux id. Never to be looked up as a name (CVE-2026-46680) and never to be wrapped
    /// into range (CVE-2024-40635): creating a container from it must fail unless the request names a user.
    Invalid(String),
}

impl ImageUser {
    /// From the config's `User`: `user[:group]`.
    pub(crate) fn parse(text: &str) -> Self {
        let user = text.split_once(':').map_or(text, |(user, _)| user);
        if user.is_empty() {
            return if text.is_empty() { Self::None } else { Self::Invalid(text.to_owned()) };
        }
        if user.chars().any(|c| c.is_control() || c == '/') {
            return Self::Invalid(user.to_owned());
        }
        let numeric = user.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '-' | '+'));
        if !numeric {
            return Self::Name(user.to_owned());
        }
        let digits = user.bytes().all(|b| b.is_ascii_digit());
        match user.parse::<u32>() {
            // 2147483648 and above are negative in tools that use a signed id, and containerd refuses them too. Zeros in
            // front count for nothing, here as when the container runs.
            Ok(uid) if digits && i32::try_from(uid).is_ok() => Self::Uid(uid),
            // A user name may begin with a digit (useradd allows `--badname 1st`); one made of digits alone may not.
            _ if digits || user.starts_with(['-', '+']) || user.starts_with("0x") => {
                Self::Invalid(user.to_owned())
            }
            _ => Self::Name(user.to_owned()),
        }
    }
}

/// Why a manifest or config is refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DocumentError {
    #[error("the {kind} has {size} bytes; the limit is {DOCUMENT_BYTES_MAX}")]
    TooLarge { kind: &'static str, size: usize },
    #[error("read the {kind} as JSON")]
    Json {
        kind: &'static str,
        #[source]
        source: serde_json::Error,
    },
    #[error(
        "the manifest has both \"manifests\" and \"layers\" or \"config\"; such a document means different things to different readers"
    )]
    Ambiguous,
    #[error("the {kind} has the digest {actual}, not {expected}")]
    Digest { kind: &'static str, expected: Digest, actual: Digest },
    #[error("the config's diff ids are not those of the layers: {config:?}, not {layers:?}")]
    DiffIds { config: Vec<Digest>, layers: Vec<Digest> },
    #[error("the image has {count} layers; the limit is {LAYERS_MAX}")]
    TooManyLayers { count: usize },
    #[error("the config's {field:?} is malformed: {value:?}")]
    Field { field: &'static str, value: String },
}

/// What the store itself needs of a config; everything else is parsed when somebody asks.
#[derive(Debug)]
pub(super) struct ConfigFacts {
    pub(super) diff_ids: Vec<Digest>,
    pub(super) user: ImageUser,
    pub(super) created: Option<String>,
    pub(super) architecture: String,
}

/// Refuses a document that is an index and a manifest at once (CVE-2021-41190).
pub(crate) fn check_manifest(bytes: &[u8]) -> Result<(), DocumentError> {
    let value = parse("manifest", bytes)?;
    let has = |key| value.get(key).is_some();
    if has("manifests") && (has("layers") || has("config") || has("fsLayers")) {
        return Err(DocumentError::Ambiguous);
    }
    Ok(())
}

pub(super) fn config_facts(bytes: &[u8]) -> Result<ConfigFacts, DocumentError> {
    let config = config(bytes)?;
    let diff_ids = config
        .rootfs()
        .diff_ids()
        .iter()
        .map(|text| {
            text.parse().map_err(|_| DocumentError::Field { field: "rootfs.diff_ids", value: text.clone() })
        })
        .collect::<Result<Vec<Digest>, _>>()?;
    if diff_ids.len() > LAYERS_MAX {
        return Err(DocumentError::TooManyLayers { count: diff_ids.len() });
    }
    let user = config.config().as_ref().and_then(|config| config.user().as_deref()).unwrap_or_default();
    Ok(ConfigFacts {
        diff_ids,
        user: ImageUser::parse(user),
        created: config.created().clone(),
        architecture: config.architecture().to_string(),
    })
}

/// The whole config. Fields that are `null` count as absent: docker writes `"Env": null`, the types do not expect it.
pub(super) fn config(bytes: &[u8]) -> Result<ImageConfiguration, DocumentError> {
    let mut value = parse("config", bytes)?;
    drop_nulls(&mut value);
    if let Some(config) = value.as_object_mut() {
        // Both are required by the types; images from scratch and by old tools lack them.
        config.entry("rootfs").or_insert_with(|| serde_json::json!({"type": "layers", "diff_ids": []}));
        config.entry("os").or_insert_with(|| "linux".into());
        config.entry("architecture").or_insert_with(|| "".into());
        if let Some(rootfs) = config.get_mut("rootfs").and_then(serde_json::Value::as_object_mut) {
            rootfs.entry("type").or_insert_with(|| "layers".into());
            rootfs.entry("diff_ids").or_insert_with(|| serde_json::json!([]));
        }
    }
    serde_json::from_value(value).map_err(|source| DocumentError::Json { kind: "config", source })
}

fn parse(kind: &'static str, bytes: &[u8]) -> Result<serde_json::Value, DocumentError> {
    if bytes.len() > DOCUMENT_BYTES_MAX {
        return Err(DocumentError::TooLarge { kind, size: bytes.len() });
    }
    serde_json::from_slice(bytes).map_err(|source| DocumentError::Json { kind, source })
}

fn drop_nulls(value: &mut serde_json::Value) {
    // serde_json refuses documents nested deeper than 128, so this recursion is bounded.
    match value {
        serde_json::Value::Object(map) => {
            map.retain(|_, value| !value.is_null());
            map.values_mut().for_each(drop_nulls);
        }
        serde_json::Value::Array(values) => values.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

/// Why a name finds nothing certain.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FindError {
    #[error("the image id prefix {prefix:?} fits {count} images; give more digits")]
    Ambiguous { prefix: String, count: usize },
}

/// All images in memory, by id and by name.
#[derive(Debug, Default)]
pub(super) struct Index {
    images: HashMap<Digest, Arc<Image>>,
    names: HashMap<String, Digest>,
}

impl Index {
    pub(super) fn insert(&mut self, image: Arc<Image>) {
        if let Some(old) = self.images.remove(&image.id) {
            self.forget_names(&old);
        }
        for name in image.tags.iter().chain(&image.repo_digests) {
            self.names.insert(name.clone(), image.id.clone());
        }
        self.images.insert(image.id.clone(), image);
    }

    pub(super) fn remove(&mut self, id: &Digest) -> Option<Arc<Image>> {
        let image = self.images.remove(id)?;
        self.forget_names(&image);
        Some(image)
    }

    fn forget_names(&mut self, image: &Image) {
        for name in image.tags.iter().chain(&image.repo_digests) {
            if self.names.get(name) == Some(&image.id) {
                self.names.remove(name);
            }
        }
    }

    pub(super) fn get(&self, id: &Digest) -> Option<&Arc<Image>> {
        self.images.get(id)
    }

    pub(super) fn by_name(&self, name: &str) -> Option<&Arc<Image>> {
        self.images.get(self.names.get(name)?)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<Image>> {
        self.images.values()
    }

    /// By id, by name, or `name:tag@digest` as `name@digest`.
    pub(super) fn exact(&self, text: &str) -> Option<&Arc<Image>> {
        let hex = text.strip_prefix("sha256:").unwrap_or(text);
        if let Ok(id) = format!("sha256:{hex}").parse::<Digest>()
            && let Some(image) = self.get(&id)
        {
            return Some(image);
        }
        if let Some(image) = self.by_name(text) {
            return Some(image);
        }
        let (name, digest) = text.split_once('@')?;
        // A colon after the last slash starts a tag; before it, a port.
        let slash = name.rfind('/').map_or(0, |at| at + 1);
        let colon = name[slash..].find(':')?;
        self.by_name(&format!("{}@{digest}", &name[..slash + colon]))
    }

    /// By the first digits of an id.
    pub(super) fn prefix(&self, text: &str) -> Result<Option<&Arc<Image>>, FindError> {
        let hex = text.strip_prefix("sha256:").unwrap_or(text);
        if hex.is_empty() || !hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Ok(None);
        }
        let mut fitting = self.images.values().filter(|image| image.id.hex().starts_with(hex));
        let first = fitting.next();
        match fitting.count() {
            0 => Ok(first),
            more => Err(FindError::Ambiguous { prefix: hex.to_owned(), count: more + 1 }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numeric_users_are_ids_or_invalid_and_never_names() {
        let invalid = |text: &str| ImageUser::Invalid(text.to_owned());
        for (text, want) in [
            ("", ImageUser::None),
            ("0", ImageUser::Uid(0)),
            ("1000:1000", ImageUser::Uid(1000)),
            ("2147483647", ImageUser::Uid(2_147_483_647)),
            ("2147483648", invalid("2147483648")),
            ("4294967296", invalid("4294967296")),
            ("-1", invalid("-1")),
            ("+1", invalid("+1")),
            ("0x0", invalid("0x0")),
            ("007", ImageUser::Uid(7)),
            ("000:5", ImageUser::Uid(0)),
            (":0", invalid(":0")),
            ("a\nb", invalid("a\nb")),
            ("nobody:nogroup", ImageUser::Name("nobody".to_owned())),
            ("1st", ImageUser::Name("1st".to_owned())),
        ] {
            assert_eq!(ImageUser::parse(text), want, "{text:?}");
        }
    }

    #[test]
    fn a_document_that_is_index_and_manifest_at_once_is_refused() {
        for text in [r#"{"manifests":[],"layers":[]}"#, r#"{"manifests":[],"config":{}}"#] {
            assert!(matches!(check_manifest(text.as_bytes()), Err(DocumentError::Ambiguous)), "{text}");
        }
        check_manifest(br#"{"layers":[],"config":{}}"#).unwrap();
        let long = vec![b' '; DOCUMENT_BYTES_MAX + 1];
        assert!(matches!(check_manifest(&long), Err(DocumentError::TooLarge { size: 4_194_305, .. })));
    }

    #[test]
    fn configs_with_nulls_and_without_optional_parts_are_read() {
        let facts =
            config_facts(br#"{"config":{"Env":null,"User":"7"},"history":null,"created":null}"#).unwrap();
        assert_eq!((facts.diff_ids, facts.user, facts.created), (vec![], ImageUser::Uid(7), None));
        let bad = br#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":["../x"]}}"#;
        assert!(matches!(config_facts(bad), Err(DocumentError::Field { field: "rootfs.diff_ids", .. })));
    }
}
