//! Images: pulled, listed, removed, named by one id everywhere, and mounted as volumes.

use std::time::Duration;

use brig::proto::v1::*;

use super::{Check, Pod, Suite, run, spec};
use crate::fixture::image::{Entry, ImageBuilder};
use crate::fixture::node::put_image;
use crate::fixture::registry::Registry;

pub(super) const CHECKS: &[Check] = &[
    ("Image Manager public image without tag should be pulled and removed", without_tag),
    ("Image Manager public image with digest should be pulled and removed", with_digest),
    ("Image Manager public image should timeout if requested", timeout),
    ("Image Manager listImage should get exactly 3 image in the result list", three_images),
    ("Image Manager listImage should get exactly 3 repoTags in the result image", three_tags),
    ("Image Manager removing image by one tag should remove all tags", one_tag_removes_all),
    (
        "Image Manager removing image from one registry should remove all tags from other registries",
        one_registry_removes_all,
    ),
    ("Image Consistency should not list or get image status immediately after removal", gone_at_once),
    ("Image Consistency should list and get image status immediately after pulling", there_at_once),
    ("Image Consistency should not fail on simultaneous RemoveImage calls", removed_by_many),
    ("Image Identifier Consistency should return the same image identifier across all APIs", one_id),
    (
        "Image Identifier Consistency should return the same image identifier when pulled from different registries",
        one_id_from_all_registries,
    ),
    ("Image Volume should return image digest in ContainerStatus mounts", volume_digest),
    ("Image Volume should correctly mount image and enforce read-only", volume_is_read_only),
    ("Image Volume should reject Image Volume with Readonly set to false", volume_cannot_be_written),
    ("Image Volume subPath should succeed when using a valid subPath", volume_sub_path),
    ("Image Volume subPath should fail when subPath does not exist in the image", volume_without_sub_path),
];

#[test]
fn privileged_images_have_one_identity_and_can_be_mounted() {
    run(CHECKS);
}

fn without_tag(suite: &Suite) {
    let name = suite.put("untagged", "latest", "untagged");
    let plain = name.strip_suffix(":latest").expect("a tag");
    let id = suite.pull(plain).expect("the pull");
    let image = suite.image(plain).expect("the image");
    assert_eq!((image.id, image.repo_tags), (id, vec![name.clone()]));
    suite.remove_image(plain);
    assert_eq!(suite.image(&name), None);
}

fn with_digest(suite: &Suite) {
    let tagged = suite.put("digest", "any", "digest");
    suite.pull(&tagged).expect("the pull");
    let digest = suite.image(&tagged).expect("the image").repo_digests.pop().expect("a digest");
    suite.remove_image(&tagged);
    suite.pull(&digest).expect("the pull");
    let image = suite.image(&digest).expect("the image");
    assert_eq!((image.repo_tags, image.repo_digests), (vec![], vec![digest.clone()]));
    suite.remove_image(&digest);
    assert_eq!(suite.image(&digest), None);
}

fn timeout(suite: &Suite) {
    let name = suite.put("late", "latest", "late");
    let mut request = tonic::Request::new(PullImageRequest { image: spec(&name), ..Default::default() });
    request.set_timeout(Duration::from_micros(100));
    let error = suite.node.call(suite.node.images.clone().pull_image(request)).expect_err("no time");
    assert!(matches!(error.code(), tonic::Code::DeadlineExceeded | tonic::Code::Cancelled), "{error}");
    assert_eq!(suite.image(&name), None);
}

fn three_images(suite: &Suite) {
    let names = ["1", "2", "3"].map(|number| suite.put(&format!("one-of-{number}"), "latest", number));
    let ids = names.each_ref().map(|name| suite.pull(name).expect("the pull"));
    let images = suite.images();
    for (name, id) in names.iter().zip(&ids) {
        let found: Vec<_> = images.iter().filter(|image| image.id == *id).collect();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].repo_tags, std::slice::from_ref(name));
    }
    names.iter().for_each(|name| suite.remove_image(name));
}

/// One image under three tags.
fn tags(suite: &Suite, repository: &str) -> [String; 3] {
    ["1", "2", "3"].map(|tag| {
        let name = suite.put(repository, tag, repository);
        suite.pull(&name).expect("the pull");
        name
    })
}

fn three_tags(suite: &Suite) {
    let names = tags(suite, "tags");
    let images: Vec<_> =
        suite.images().into_iter().filter(|image| image.repo_tags.contains(&names[0])).collect();
    assert_eq!(images.len(), 1);
    let mut tags = images[0].repo_tags.clone();
    tags.sort();
    assert_eq!(tags, names);
    suite.remove_image(&names[0]);
}

fn one_tag_removes_all(suite: &Suite) {
    let names = tags(suite, "all-gone");
    suite.remove_image(&names[1]);
    assert_eq!(names.each_ref().map(|name| suite.image(name)), [None, None, None]);
}

/// The same image in this node's registry and in another; their names, and the other registry.
fn two_registries(suite: &Suite, repository: &str) -> ([String; 2], Registry) {
    let other = Registry::start();
    let image = ImageBuilder::new().layer(&[Entry::file("mark", repository, 0o644)]).build();
    let names = [&suite.node.registry, &other].map(|registry| put_image(registry, repository, "v1", &image));
    (names, other)
}

fn one_registry_removes_all(suite: &Suite) {
    let (names, _other) = two_registries(suite, "twice");
    names.iter().for_each(|name| drop(suite.pull(name).expect("the pull")));
    suite.remove_image(&names[0]);
    assert_eq!(names.each_ref().map(|name| suite.image(name)), [None, None]);
}

fn one_id_from_all_registries(suite: &Suite) {
    let (names, _other) = two_registries(suite, "same");
    let ids = names.each_ref().map(|name| suite.pull(name).expect("the pull"));
    assert_eq!(ids[0], ids[1]);
    for name in &names {
        assert_eq!(suite.image(name).expect("the image").id, ids[0]);
    }
    suite.remove_image(&names[0]);
}

fn is_listed(suite: &Suite, name: &str) -> bool {
    suite.images().iter().any(|image| image.repo_tags.iter().any(|tag| tag == name))
}

fn gone_at_once(suite: &Suite) {
    let name = suite.put("gone", "test", "gone");
    suite.pull(&name).expect("the pull");
    suite.remove_image(&name);
    assert_eq!((is_listed(suite, &name), suite.image(&name)), (false, None));
}

fn there_at_once(suite: &Suite) {
    let name = suite.put("there", "test", "there");
    suite.pull(&name).expect("the pull");
    assert!(is_listed(suite, &name));
    assert!(suite.image(&name).is_some());
    suite.remove_image(&name);
}

fn removed_by_many(suite: &Suite) {
    let name = suite.put("many", "test", "many");
    suite.pull(&name).expect("the pull");
    let calls: Vec<_> = (0..5)
        .map(|_| {
            let (mut images, request) =
                (suite.node.images.clone(), RemoveImageRequest { image: spec(&name) });
            suite.node.spawn(async move { images.remove_image(request).await })
        })
        .collect();
    for call in calls {
        suite.node.call(call).expect("the task").expect("RemoveImage");
    }
    assert_eq!(suite.image(&name), None);
}

fn one_id(suite: &Suite) {
    let name = suite.node.image.clone();
    let id = suite.pull(&name).expect("the pull");
    assert_eq!(suite.image(&name).expect("the image").id, id);
    let listed = suite.images().into_iter().find(|image| image.repo_tags.contains(&name));
    assert_eq!(listed.expect("the image").id, id);
    let container = suite.waiting(&suite.pod(), |config| config.image = spec(&id));
    let status = suite.node.status(&container);
    assert_eq!(status.image_id, id);
    let filter = Some(ContainerFilter { id: container, ..Default::default() });
    let request = ListContainersRequest { filter };
    let list = suite.node.call(suite.node.runtime.clone().list_containers(request)).expect("the list");
    assert_eq!(list.into_inner().containers[0].image_id, id);
}

/// A container with the busybox image as a volume at `/volume`, as `change` wants it.
fn with_volume(suite: &Suite, pod: &Pod, change: impl FnOnce(&mut Mount)) -> Result<String, tonic::Status> {
    let image = suite.pull(&suite.node.image).expect("the pull");
    suite.created(pod, "exec sleep 1000", |config| {
        let mut mount = Mount {
            container_path: "/volume".into(),
            image: spec(&image),
            readonly: true,
            ..Default::default()
        };
        change(&mut mount);
        config.mounts = vec![mount];
    })
}

fn volume_digest(suite: &Suite) {
    let id = with_volume(suite, &suite.pod(), |_| {}).expect("CreateContainer");
    let mounts = suite.node.status(&id).mounts;
    let mount = mounts.iter().find(|mount| mount.container_path == "/volume").expect("the mount");
    let image = suite.pull(&suite.node.image).expect("the pull");
    assert_eq!(mount.image.as_ref().expect("an image").image_ref, image);
}

fn volume_is_read_only(suite: &Suite) {
    let id = with_volume(suite, &suite.pod(), |_| {}).expect("CreateContainer");
    suite.node.start(&id);
    suite.node.output(&id, "ls -A /volume/bin/sh");
    let error = suite.failing(&id, &["/bin/touch", "/volume/new"]);
    assert!(error.contains("Read-only file system"), "{error}");
    // Its programs may be run.
    suite.node.output(&id, "/volume/bin/busybox true");
}

fn volume_cannot_be_written(suite: &Suite) {
    let error = with_volume(suite, &suite.pod(), |mount| mount.readonly = false).expect_err("it is refused");
    assert_eq!(error.code(), tonic::Code::InvalidArgument, "{error}");
}

fn volume_sub_path(suite: &Suite) {
    let id = with_volume(suite, &suite.pod(), |mount| mount.image_sub_path = "etc".into())
        .expect("CreateContainer");
    suite.node.start(&id);
    assert_eq!(suite.node.output(&id, "ls /volume"), "group\npasswd\n");
}

fn volume_without_sub_path(suite: &Suite) {
    let pod = suite.pod();
    let made = with_volume(suite, &pod, |mount| mount.image_sub_path = "no/such/folder".into());
    // It may be refused at the start as well.
    let error = made.and_then(|id| suite.node.try_start(&id)).expect_err("there is no such folder");
    assert!(error.message().contains("no/such/folder"), "{error}");
}
