//! Images and the file systems they are on.

use crate::image::{FsUsage, Image, ImageUser};
use crate::proto::v1;

use super::text;

pub(crate) fn image(of: &Image) -> v1::Image {
    let (uid, username) = match &of.user {
        ImageUser::None => (None, String::new()),
        ImageUser::Uid(uid) => (Some(v1::Int64Value { value: i64::from(*uid) }), String::new()),
        // A text that is neither is shown as it is: the kubelet then refuses it where runAsNonRoot is asked for.
        ImageUser::Name(name) | ImageUser::Invalid(name) => (None, name.clone()),
    };
    v1::Image {
        id: of.id.to_string(),
        repo_tags: of.tags.clone(),
        repo_digests: of.repo_digests.clone(),
        // Clients refuse an image of no size.
        size: of.size.0.max(1),
        uid,
        username,
        spec: Some(v1::ImageSpec { image: of.id.to_string(), ..Default::default() }),
        pinned: of.pinned,
    }
}

pub(crate) fn fs_usage(of: &FsUsage) -> v1::FilesystemUsage {
    v1::FilesystemUsage {
        timestamp: of.timestamp.0,
        fs_id: Some(v1::FilesystemIdentifier { mountpoint: text(&of.mountpoint) }),
        used_bytes: Some(v1::UInt64Value { value: of.used_bytes.0 }),
        inodes_used: Some(v1::UInt64Value { value: of.inodes_used }),
    }
}
