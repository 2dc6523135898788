//! Containers: what they keep, their stats, their volumes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use brig::proto::v1::*;
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_change, unmount,
};

use super::{Check, Pod, Suite, bind, run, security};

pub(super) const CHECKS: &[Check] = &[
    (
        "Container runtime should support basic operations on container runtime should support preserving container attributes",
        attributes,
    ),
    (
        "Container runtime should support basic operations on container runtime should support removing created container",
        remove_created,
    ),
    (
        "Container runtime should support basic operations on container runtime should support removing running container",
        remove_running,
    ),
    (
        "Container runtime should support basic operations on container runtime should support removing stopped container",
        remove_stopped,
    ),
    (
        "Container runtime should support basic operations on container runtime should support listing container stats",
        stats_of_one,
    ),
    (
        "Container runtime should support basic operations on container runtime should support listing stats for started containers",
        stats_of_started,
    ),
    (
        "Container runtime should support basic operations on container runtime should support listing stats for started containers when filter is nil",
        stats_without_filter,
    ),
    (
        "Container runtime should support basic operations on container runtime should support listing stats for three created containers when filter is nil.",
        stats_of_three,
    ),
    (
        "Container runtime should support basic operations on container runtime should support listing stats for containers filtered by labels",
        stats_by_label,
    ),
    (
        "Container runtime should support adding volume and device runtime should support starting container with volume",
        volume,
    ),
    (
        "Container runtime should support adding volume and device runtime should support starting container with volume when host path is a symlink",
        volume_by_symlink,
    ),
    (
        "Container Mount Propagation runtime should support mount propagation mount with 'rprivate' should not support propagation",
        propagation_private,
    ),
    (
        "Container Mount Propagation runtime should support mount propagation mount with 'rshared' should support propagation from host to container and vice versa",
        propagation_shared,
    ),
    (
        "Container Mount Propagation runtime should support mount propagation mount with 'rslave' should support propagation from host to container",
        propagation_slave,
    ),
    (
        "Container Mount Readonly runtime should support readonly mounts should support non-recursive readonly mounts",
        readonly,
    ),
    (
        "Container Mount Readonly runtime should support readonly mounts should support recursive readonly mounts",
        recursive_readonly,
    ),
    (
        "Container Mount Readonly runtime should support readonly mounts should reject a recursive readonly mount with PROPAGATION_HOST_TO_CONTAINER",
        recursive_readonly_slave,
    ),
    (
        "Container Mount Readonly runtime should support readonly mounts should reject a recursive readonly mount with PROPAGATION_BIDIRECTIONAL",
        recursive_readonly_shared,
    ),
    (
        "Container Mount Readonly runtime should support readonly mounts should reject a recursive readonly mount with ReadOnly: false",
        recursive_readonly_writable,
    ),
];

#[test]
fn privileged_containers_keep_what_they_were_given_and_mount_what_they_ask_for() {
    run(CHECKS);
}

fn attributes(suite: &Suite) {
    let pod = suite.pod();
    let labels = BTreeMap::from([("tier".to_owned(), "front".to_owned())]);
    let annotations = BTreeMap::from([("note".to_owned(), "a\nb".to_owned())]);
    let metadata = Some(ContainerMetadata { name: suite.name("attributes"), attempt: 3 });
    let id = suite
        .created(&pod, "true", |config| {
            config.metadata = metadata.clone();
            (config.labels, config.annotations) = (labels.clone(), annotations.clone());
        })
        .expect("CreateContainer");
    let status = suite.node.status(&id);
    assert_eq!(status.metadata, metadata);
    assert_eq!((status.labels, status.annotations), (labels, annotations));
    assert_eq!(status.image.expect("an image").image, suite.node.image);
    assert!(!status.image_ref.is_empty() && !status.image_id.is_empty());
    assert_eq!((status.exit_code, status.started_at, status.finished_at), (0, 0, 0));
}

fn is_listed(suite: &Suite, id: &str) -> bool {
    let request = ListContainersRequest::default();
    let list = suite.node.call(suite.node.runtime.clone().list_containers(request)).expect("the list");
    list.into_inner().containers.iter().any(|container| container.id == id)
}

fn remove_created(suite: &Suite) {
    let id = suite.created(&suite.pod(), "true", |_| {}).expect("CreateContainer");
    suite.node.remove_container(&id);
    assert!(!is_listed(suite, &id));
}

fn remove_running(suite: &Suite) {
    let id = suite.waiting(&suite.pod(), |_| {});
    suite.node.remove_container(&id);
    assert!(!is_listed(suite, &id));
}

fn remove_stopped(suite: &Suite) {
    let id = suite.waiting(&suite.pod(), |_| {});
    suite.node.stop_container(&id, 0);
    suite.node.remove_container(&id);
    assert!(!is_listed(suite, &id));
}

fn stats(suite: &Suite, filter: Option<ContainerStatsFilter>) -> BTreeSet<String> {
    let request = ListContainerStatsRequest { filter };
    let list = suite.node.call(suite.node.runtime.clone().list_container_stats(request)).expect("the stats");
    let stats = list.into_inner().stats;
    for one in &stats {
        assert!(one.cpu.as_ref().is_some_and(|cpu| cpu.timestamp > 0), "{one:?}");
        assert!(one.memory.as_ref().is_some_and(|memory| memory.working_set_bytes.is_some()), "{one:?}");
    }
    stats.into_iter().filter_map(|stats| Some(stats.attributes?.id)).collect()
}

fn stats_of_one(suite: &Suite) {
    let id = suite.waiting(&suite.pod(), |_| {});
    let filter = ContainerStatsFilter { id: id.clone(), ..Default::default() };
    assert_eq!(stats(suite, Some(filter)), BTreeSet::from([id]));
}

fn stats_of_started(suite: &Suite) {
    let pod = suite.pod();
    let (a, b) = (suite.waiting(&pod, |_| {}), suite.waiting(&pod, |_| {}));
    let created = suite.created(&pod, "true", |_| {}).expect("CreateContainer");
    let filter = ContainerStatsFilter { pod_sandbox_id: pod.id, ..Default::default() };
    let seen = stats(suite, Some(filter));
    assert!(!seen.contains(&created), "it has not been started");
    assert_eq!(seen, BTreeSet::from([a, b]));
}

fn stats_without_filter(suite: &Suite) {
    let id = suite.waiting(&suite.pod(), |_| {});
    assert!(stats(suite, None).contains(&id));
}

fn stats_of_three(suite: &Suite) {
    let pod = suite.pod();
    let three = [(); 3].map(|()| suite.waiting(&pod, |_| {}));
    assert!(stats(suite, None).is_superset(&BTreeSet::from(three)));
}

fn stats_by_label(suite: &Suite) {
    let pod = suite.pod();
    let labelled = |value: &str| {
        let labels = BTreeMap::from([("stats".to_owned(), value.to_owned())]);
        suite.waiting(&pod, |config| config.labels = labels)
    };
    let (wanted, _other) = (labelled("yes"), labelled("no"));
    let label_selector = BTreeMap::from([("stats".to_owned(), "yes".to_owned())]);
    let filter = ContainerStatsFilter { label_selector, ..Default::default() };
    assert_eq!(stats(suite, Some(filter)), BTreeSet::from([wanted]));
}

/// A folder of the host with a file in it.
fn folder(suite: &Suite) -> PathBuf {
    let path = suite.node.dir.path().join(suite.name("folder"));
    std::fs::create_dir(&path).expect("a folder");
    std::fs::write(path.join("flag"), "here").expect("a file");
    path
}

fn volume(suite: &Suite) {
    let folder = folder(suite);
    let id = suite.waiting(&suite.pod(), |config| config.mounts = vec![bind(&folder, "/volume")]);
    assert_eq!(suite.node.output(&id, "cat /volume/flag; echo back > /volume/back"), "here");
    assert_eq!(std::fs::read_to_string(folder.join("back")).expect("the file"), "back\n");
}

fn volume_by_symlink(suite: &Suite) {
    let link = suite.node.dir.path().join(suite.name("link"));
    std::os::unix::fs::symlink(folder(suite), &link).expect("a link");
    let id = suite.waiting(&suite.pod(), |config| config.mounts = vec![bind(&link, "/volume")]);
    assert_eq!(suite.node.output(&id, "cat /volume/flag"), "here");
}

/// A mount of the host that vanishes with the check.
struct Mounted(PathBuf);

impl Mounted {
    /// `path` on itself, shared.
    fn shared(path: PathBuf) -> Self {
        mount_bind(&path, &path).expect("a bind mount");
        let mounted = Self(path);
        mount_change(&mounted.0, MountPropagationFlags::SHARED).expect("a shared mount");
        mounted
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        unmount(&self.0, UnmountFlags::DETACH).ok();
    }
}

/// Whether a later mount of the host arrives in the container, and one of the container on the host.
fn propagates(suite: &Suite, propagation: MountPropagation) -> (bool, bool) {
    let volume = folder(suite);
    for name in ["of-host", "of-container"] {
        std::fs::create_dir(volume.join(name)).expect("a folder");
    }
    let shared = Mounted::shared(volume.clone());
    let pod = suite.privileged_pod();
    let id = suite.waiting(&pod, |config| {
        security(config).privileged = true;
        let mount = Mount { propagation: propagation.into(), ..bind(&volume, "/volume") };
        config.mounts = vec![mount];
    });
    let status = suite.node.status(&id);
    assert_eq!(status.mounts[0].propagation(), propagation);
    mount_bind(folder(suite), volume.join("of-host")).expect("a bind mount");
    let of_host = Mounted(volume.join("of-host"));
    suite.node.output(&id, "mount -o bind /etc /volume/of-container");
    let arrived = (
        suite.node.output(&id, "ls /volume/of-host").contains("flag"),
        volume.join("of-container/passwd").exists(),
    );
    suite.node.remove_pod(&pod.id);
    drop(Mounted(volume.join("of-container")));
    drop((of_host, shared));
    arrived
}

fn propagation_private(suite: &Suite) {
    assert_eq!(propagates(suite, MountPropagation::PropagationPrivate), (false, false));
}

fn propagation_slave(suite: &Suite) {
    assert_eq!(propagates(suite, MountPropagation::PropagationHostToContainer), (true, false));
}

fn propagation_shared(suite: &Suite) {
    assert_eq!(propagates(suite, MountPropagation::PropagationBidirectional), (true, true));
}

/// A folder with a tmpfs below it.
fn folder_with_tmpfs(suite: &Suite) -> (PathBuf, Mounted) {
    let folder = folder(suite);
    let below = folder.join("tmpfs");
    std::fs::create_dir(&below).expect("a folder");
    mount("none", &below, "tmpfs", MountFlags::empty(), None).expect("a tmpfs");
    (folder, Mounted(below))
}

fn knows_recursive(suite: &Suite) -> bool {
    let status = suite.node.call(suite.node.runtime.clone().status(StatusRequest::default()));
    let handlers = status.expect("Status").into_inner().runtime_handlers;
    let own = handlers.into_iter().find(|handler| handler.name == suite.node.handler).expect("the handler");
    own.features.is_some_and(|features| features.recursive_read_only_mounts)
}

fn readonly(suite: &Suite) {
    let (folder, _tmpfs) = folder_with_tmpfs(suite);
    let id = suite.waiting(&suite.pod(), |config| {
        config.mounts = vec![Mount { readonly: true, ..bind(&folder, "/volume") }];
    });
    let error = suite.failing(&id, &["/bin/touch", "/volume/file"]);
    assert!(error.contains("Read-only file system"), "{error}");
    suite.node.output(&id, "touch /volume/tmpfs/file");
}

fn recursive_readonly(suite: &Suite) {
    let (folder, _tmpfs) = folder_with_tmpfs(suite);
    let mount = Mount { readonly: true, recursive_read_only: true, ..bind(&folder, "/volume") };
    let made = suite.created(&suite.pod(), "exec sleep 1000", |config| config.mounts = vec![mount]);
    if !knows_recursive(suite) {
        // What a runtime does not know must not be taken for done.
        made.expect_err("it is refused");
        return;
    }
    let id = made.expect("CreateContainer");
    suite.node.start(&id);
    for path in ["/volume/file", "/volume/tmpfs/file"] {
        let error = suite.failing(&id, &["/bin/touch", path]);
        assert!(error.contains("Read-only file system"), "{error}");
    }
}

fn is_refused(suite: &Suite, change: impl FnOnce(&mut Mount)) {
    let (folder, _tmpfs) = folder_with_tmpfs(suite);
    let mut mount = Mount { readonly: true, recursive_read_only: true, ..bind(&folder, "/volume") };
    change(&mut mount);
    let pod: Pod = suite.pod();
    let error = suite.created(&pod, "true", |config| config.mounts = vec![mount]).expect_err("it is refused");
    assert!(error.message().contains("recursive_read_only"), "{error}");
}

fn recursive_readonly_slave(suite: &Suite) {
    is_refused(suite, |mount| mount.propagation = MountPropagation::PropagationHostToContainer.into());
}

fn recursive_readonly_shared(suite: &Suite) {
    is_refused(suite, |mount| mount.propagation = MountPropagation::PropagationBidirectional.into());
}

fn recursive_readonly_writable(suite: &Suite) {
    is_refused(suite, |mount| mount.readonly = false);
}
