//! Manifests and indexes: what a registry's answer says, or why it cannot be trusted.
//!
//! One document must have one meaning for everybody who reads it. So the type that HTTP gave, the type the document
//! gives itself and the fields it has must agree, a field may stand only once, and a document that could be read as
//! an index and as an image is refused (CVE-2021-41190). Nothing here speaks HTTP.

use serde::Deserialize;

use super::platform::Platform;
use crate::id::Digest;
use crate::units::Bytes;

/// Largest manifest, index or config that is read. The distribution specification asks registries to take manifests
/// of 4 MiB at least, and no client relies on more.
pub(crate) const DOCUMENT_BYTES_MAX: u64 = 4 << 20;
/// Most layers in an image. Docker stops at 127; nobody mounts 500.
const LAYERS_MAX: usize = 500;

pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub(crate) const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// What a registry is told that we read, in order of preference.
pub(crate) const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
     application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, \
     application/vnd.docker.distribution.manifest.v2+json, */*;q=0.1";

/// A reference to content, with the fields that a pull needs.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Descriptor {
    #[serde(rename = "mediaType")]
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    #[serde(default)]
    pub(crate) platform: Option<Platform>,
    /// Where else foreign layers say they are found. Never followed: a manifest must not choose whom we talk to.
    #[serde(default)]
    pub(crate) urls: Vec<String>,
}

/// A document that passed every check of its shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Document {
    Image { config: Descriptor, layers: Vec<LayerDescriptor> },
    Index(Vec<Descriptor>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LayerDescriptor {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    pub(crate) compression: LayerCompression,
    /// It has `urls`: registries may not keep the blob themselves.
    pub(crate) foreign: bool,
}

/// How a layer's tar is packed, by its media type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum LayerCompression {
    None,
    Gzip,
    Zstd,
}

/// Why a manifest or config cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DocumentError {
    #[error("not the JSON of a manifest or index: {0}")]
    Json(String),
    #[error(
        "Docker schema 1, which has no content addresses and is obsolete; push the image again with a current tool"
    )]
    Schema1,
    #[error("schemaVersion is {0}, not 2")]
    SchemaVersion(u64),
    #[error("it is both an index (\"manifests\") and an image (\"config\", \"layers\")")]
    Ambiguous,
    #[error("it is neither an image (\"config\", \"layers\") nor an index (\"manifests\")")]
    Neither,
    #[error("its Content-Type is {content_type:?}, but it calls itself {own:?}")]
    TypesDiffer { content_type: String, own: String },
    #[error("its type is {0:?}, which is not a manifest or index that Brig reads")]
    UnknownType(String),
    #[error("its type is {media_type:?}, but it has the fields of {shape}")]
    WrongShape { media_type: String, shape: &'static str },
    #[error("it is an artifact with a config of type {0:?}, not a container image")]
    NotAnImage(String),
    #[error("layer {digest} has type {media_type:?}, which is not a tar layer")]
    LayerType { digest: Digest, media_type: String },
    #[error("it has {0} layers, more than {LAYERS_MAX}")]
    TooManyLayers(usize),
    #[error("layers and config add up to {total}, more than the limit of {limit}")]
    TooLarge { total: Bytes, limit: Bytes },
    #[error("its config lists {diff_ids} diff ids for {layers} layers")]
    DiffIds { diff_ids: usize, layers: usize },
}

#[derive(Deserialize)]
struct Raw {
    #[serde(rename = "schemaVersion", default)]
    schema_version: u64,
    #[serde(rename = "mediaType", default)]
    media_type: Option<String>,
    #[serde(default)]
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Option<Vec<Descriptor>>,
    #[serde(default)]
    manifests: Option<Vec<Descriptor>>,
    #[serde(rename = "fsLayers", default)]
    fs_layers: Option<serde::de::IgnoredAny>,
}

/// Reads a document that HTTP (or a parent index) called `content_type`; parameters after `;` do not count.
pub(crate) fn parse(bytes: &[u8], content_type: Option<&str>) -> Result<Document, DocumentError> {
    let raw: Raw = match serde_json::from_slice(bytes) {
        Ok(raw) => raw,
        // Schema 1 has fields of our names with other shapes; say what it is rather than where it broke.
        Err(_) if looks_like_schema1(bytes) => return Err(DocumentError::Schema1),
        Err(error) => return Err(DocumentError::Json(error.to_string())),
    };
    let content_type =
        content_type.map(|text| text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase());
    if raw.schema_version == 1 || raw.fs_layers.is_some() {
        return Err(DocumentError::Schema1);
    }
    if raw.schema_version != 2 {
        return Err(DocumentError::SchemaVersion(raw.schema_version));
    }
    // Registries that serve plain files know no better than these.
    let generic = |text: &str| {
        matches!(
            text,
            "" | "application/json" | "application/octet-stream" | "text/plain" | "binary/octet-stream"
        )
    };
    let media_type = match (content_type.filter(|text| !generic(text)), raw.media_type) {
        (Some(content_type), Some(own)) if content_type != own => {
            return Err(DocumentError::TypesDiffer { content_type, own });
        }
        (Some(one), _) | (None, Some(one)) => one,
        (None, None) => String::new(),
    };
    let wrong_shape = |shape| Err(DocumentError::WrongShape { media_type: media_type.clone(), shape });
    match (raw.manifests, raw.config, raw.layers) {
        (Some(_), Some(_), _) | (Some(_), _, Some(_)) => Err(DocumentError::Ambiguous),
        (Some(manifests), None, None) => match media_type.as_str() {
            OCI_INDEX | DOCKER_LIST | "" => Ok(Document::Index(manifests)),
            OCI_MANIFEST | DOCKER_MANIFEST => wrong_shape("an index"),
            _ => Err(DocumentError::UnknownType(media_type)),
        },
        (None, Some(config), Some(layers)) => match media_type.as_str() {
            OCI_MANIFEST | DOCKER_MANIFEST | "" => image(config, layers),
            OCI_INDEX | DOCKER_LIST => wrong_shape("an image"),
            _ => Err(DocumentError::UnknownType(media_type)),
        },
        (None, _, _) => Err(DocumentError::Neither),
    }
}

fn image(config: Descriptor, layers: Vec<Descriptor>) -> Result<Document, DocumentError> {
    if !matches!(
        config.media_type.as_str(),
        "application/vnd.oci.image.config.v1+json" | "application/vnd.docker.container.image.v1+json"
    ) {
        return Err(DocumentError::NotAnImage(config.media_type));
    }
    if layers.len() > LAYERS_MAX {
        return Err(DocumentError::TooManyLayers(layers.len()));
    }
    let layers = layers
        .into_iter()
        .map(|layer| {
            let Some(compression) = layer_compression(&layer.media_type) else {
                return Err(DocumentError::LayerType { digest: layer.digest, media_type: layer.media_type });
            };
            Ok(LayerDescriptor {
                foreign: !layer.urls.is_empty() || layer.media_type.contains("foreign"),
                digest: layer.digest,
                size: layer.size,
                compression,
            })
        })
        .collect::<Result<_, _>>()?;
    Ok(Document::Image { config, layers })
}

fn layer_compression(media_type: &str) -> Option<LayerCompression> {
    let rest = [
        "application/vnd.oci.image.layer.v1.tar",
        "application/vnd.oci.image.layer.nondistributable.v1.tar",
        "application/vnd.docker.image.rootfs.diff.tar",
        "application/vnd.docker.image.rootfs.foreign.diff.tar",
    ]
    .iter()
    .find_map(|prefix| media_type.strip_prefix(prefix))?;
    match rest {
        "" => Some(LayerCompression::None),
        "+gzip" | ".gzip" => Some(LayerCompression::Gzip),
        "+zstd" | ".zstd" => Some(LayerCompression::Zstd),
        _ => None,
    }
}

fn looks_like_schema1(bytes: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Version {
        #[serde(rename = "schemaVersion")]
        schema_version: u64,
    }
    serde_json::from_slice::<Version>(bytes).is_ok_and(|version| version.schema_version == 1)
}

/// The entry of an index that runs best on the wanted platform. Attestations (`unknown/unknown`) never match, and an
/// entry without a platform is taken only if no other suits.
pub(crate) fn choose<'a>(entries: &'a [Descriptor], wanted: &Platform) -> Option<&'a Descriptor> {
    let readable = |entry: &&Descriptor| {
        matches!(entry.media_type.as_str(), OCI_MANIFEST | DOCKER_MANIFEST | OCI_INDEX | DOCKER_LIST)
    };
    entries
        .iter()
        .filter(readable)
        .filter_map(|entry| match &entry.platform {
            Some(platform) => wanted.rank(platform).map(|rank| (rank, entry)),
            None => Some((usize::MAX, entry)),
        })
        // The first of equals, as containerd and Docker do.
        .min_by_key(|(rank, _)| *rank)
        .map(|(_, entry)| entry)
}

/// What a pull reads of an image's config; everything else is for whoever runs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ConfigHead {
    /// `None` when the config leaves it out.
    pub(crate) platform: Option<Platform>,
    pub(crate) diff_ids: Vec<Digest>,
}

/// Reads the config and checks that it fits its manifest.
pub(crate) fn parse_config(bytes: &[u8], layers: usize) -> Result<ConfigHead, DocumentError> {
    #[derive(Deserialize)]
    struct Config {
        #[serde(default)]
        os: String,
        #[serde(default)]
        architecture: String,
        #[serde(default)]
        variant: String,
        rootfs: RootFs,
    }
    #[derive(Deserialize)]
    struct RootFs {
        #[serde(default)]
        diff_ids: Vec<Digest>,
    }
    let config: Config =
        serde_json::from_slice(bytes).map_err(|error| DocumentError::Json(error.to_string()))?;
    let diff_ids = config.rootfs.diff_ids;
    if diff_ids.len() != layers {
        return Err(DocumentError::DiffIds { diff_ids: diff_ids.len(), layers });
    }
    let known = !config.os.is_empty() && !config.architecture.is_empty();
    let platform = Platform { os: config.os, architecture: config.architecture, variant: config.variant };
    Ok(ConfigHead { platform: known.then_some(platform), diff_ids })
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:0000000000000000000000000000000000000000000000000000000000000000";

    fn descriptor(media_type: &str) -> String {
        format!(r#"{{"mediaType":"{media_type}","digest":"{DIGEST}","size":1}}"#)
    }

    fn image_json(own: &str, layer: &str, more: &str) -> String {
        let own = if own.is_empty() { String::new() } else { format!(r#""mediaType":"{own}","#) };
        format!(
            r#"{{"schemaVersion":2,{own}"config":{},"layers":[{}]{more}}}"#,
            descriptor("application/vnd.oci.image.config.v1+json"),
            descriptor(layer)
        )
    }

    const TAR: &str = "application/vnd.oci.image.layer.v1.tar";

    #[test]
    fn a_document_is_read_when_its_types_and_fields_agree() {
        for (json, content_type) in [
            (image_json(OCI_MANIFEST, TAR, ""), Some(OCI_MANIFEST)),
            (image_json("", TAR, ""), Some("application/vnd.oci.image.manifest.v1+json; charset=utf-8")),
            (image_json(OCI_MANIFEST, TAR, ""), None),
            (image_json(DOCKER_MANIFEST, "application/vnd.docker.image.rootfs.diff.tar.gzip", ""), Some("")),
            (image_json("", TAR, ""), Some("application/json")),
        ] {
            assert!(matches!(parse(json.as_bytes(), content_type), Ok(Document::Image { .. })), "{json}");
        }
        let index = format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, descriptor(OCI_MANIFEST));
        assert!(
            matches!(parse(index.as_bytes(), Some(OCI_INDEX)), Ok(Document::Index(entries)) if entries.len() == 1)
        );
    }

    #[test]
    fn a_document_with_two_meanings_or_none_is_refused() {
        let ambiguous = image_json("", TAR, r#","manifests":[]"#);
        let twice = image_json("", TAR, r#","layers":[]"#);
        let schema1 = r#"{"schemaVersion":1,"fsLayers":[{"blobSum":"x"}],"config":5}"#.to_owned();
        type Check = fn(&DocumentError) -> bool;
        for (json, content_type, expected) in [
            (ambiguous.clone(), OCI_MANIFEST, (|e| *e == DocumentError::Ambiguous) as Check),
            (ambiguous, OCI_INDEX, |e| *e == DocumentError::Ambiguous),
            (twice, OCI_MANIFEST, |e| matches!(e, DocumentError::Json(_))),
            (schema1, OCI_MANIFEST, |e| *e == DocumentError::Schema1),
            (image_json("", TAR, ""), OCI_INDEX, |e| matches!(e, DocumentError::WrongShape { .. })),
            (image_json(OCI_MANIFEST, TAR, ""), DOCKER_MANIFEST, |e| {
                matches!(e, DocumentError::TypesDiffer { .. })
            }),
            (image_json("", TAR, ""), "text/html", |e| matches!(e, DocumentError::UnknownType(_))),
            (image_json("", "application/x-evil", ""), OCI_MANIFEST, |e| {
                matches!(e, DocumentError::LayerType { .. })
            }),
            ("{\"schemaVersion\":2}".to_owned(), OCI_MANIFEST, |e| *e == DocumentError::Neither),
            ("{\"schemaVersion\":3}".to_owned(), OCI_MANIFEST, |e| *e == DocumentError::SchemaVersion(3)),
            ("<html>".to_owned(), OCI_MANIFEST, |e| matches!(e, DocumentError::Json(_))),
            (image_json("", TAR, "").replace("0000", "../."), OCI_MANIFEST, |e| {
                matches!(e, DocumentError::Json(_))
            }),
            (image_json("", TAR, "").replace("image.config", "x.config"), OCI_MANIFEST, |e| {
                matches!(e, DocumentError::NotAnImage(_))
            }),
        ] {
            let error = parse(json.as_bytes(), Some(content_type)).unwrap_err();
            assert!(expected(&error), "{json} gave {error:?}");
        }
    }

    #[test]
    fn attestations_are_never_chosen() {
        let entry = |os: &str, architecture: &str, size| Descriptor {
            media_type: OCI_MANIFEST.to_owned(),
            digest: DIGEST.parse().unwrap(),
            size,
            platform: Some(Platform {
                os: os.to_owned(),
                architecture: architecture.to_owned(),
                variant: String::new(),
            }),
            urls: Vec::new(),
        };
        let host = Platform { os: "linux".into(), architecture: "amd64".into(), variant: String::new() };
        let entries = [
            entry("unknown", "unknown", 1),
            entry("linux", "arm64", 2),
            entry("linux", "amd64", 3),
            entry("linux", "amd64", 4),
        ];
        assert_eq!(choose(&entries, &host).unwrap().size, 3);
        assert_eq!(choose(&entries[..2], &host), None);
    }

    #[test]
    fn a_config_must_have_a_diff_id_per_layer() {
        let json = format!(
            r#"{{"os":"linux","architecture":"amd64","rootfs":{{"type":"layers","diff_ids":["{DIGEST}"]}}}}"#
        );
        assert_eq!(parse_config(json.as_bytes(), 1).unwrap().diff_ids.len(), 1);
        assert_eq!(parse_config(json.as_bytes(), 2), Err(DocumentError::DiffIds { diff_ids: 1, layers: 2 }));
        assert!(matches!(
            parse_config(json.replace("0000", "zzzz").as_bytes(), 1),
            Err(DocumentError::Json(_))
        ));
    }
}
