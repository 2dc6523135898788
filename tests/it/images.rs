//! Images through the CRI and Brig's own service, against a registry on loopback.

use brig::proto::admin::admin_client::AdminClient;
use brig::proto::admin::{LoadRequest, TeardownRequest};
use brig::proto::v1::*;

use crate::fixture::image::{Entry, ImageBuilder};
use crate::fixture::node::{Node, Options, eventually, put_image};
use crate::fixture::registry::Access;

fn spec(name: &str) -> Option<ImageSpec> {
    Some(ImageSpec { image: name.into(), ..Default::default() })
}

fn pull(node: &Node, name: &str, auth: Option<AuthConfig>) -> Result<String, tonic::Status> {
    let request = PullImageRequest { image: spec(name), auth, sandbox_config: None };
    Ok(node.call(node.images.clone().pull_image(request))?.into_inner().image_ref)
}

fn status(node: &Node, name: &str) -> Option<Image> {
    let request = ImageStatusRequest { image: spec(name), verbose: false };
    node.call(node.images.clone().image_status(request)).expect("ImageStatus").into_inner().image
}

fn list(node: &Node) -> Vec<Image> {
    node.call(node.images.clone().list_images(ListImagesRequest::default()))
        .expect("ListImages")
        .into_inner()
        .images
}

fn remove(node: &Node, name: &str) {
    let request = RemoveImageRequest { image: spec(name) };
    node.call(node.images.clone().remove_image(request)).expect("RemoveImage");
}

#[test]
fn privileged_an_image_is_pulled_found_by_every_name_and_removed_by_one() {
    let node = Node::new();
    let id = pull(&node, &node.image, None).expect("the pull");
    let image = status(&node, &node.image).expect("the image");
    assert_eq!(image.id, id);
    assert_eq!(image.repo_tags, std::slice::from_ref(&node.image));
    assert!(image.size > 1 << 19, "{}", image.size);
    let digest = image.repo_digests.first().expect("a digest").clone();
    for name in [id.as_str(), &id["sha256:".len()..][..12], digest.as_str()] {
        assert_eq!(status(&node, name).map(|found| found.id).as_deref(), Some(id.as_str()), "{name}");
    }
    // The same content under another name is the same image.
    let other = put_image(&node.registry, "team/tools", "v2", &ImageBuilder::busybox().build());
    assert_eq!(pull(&node, &other, None).expect("the pull"), id);
    let both = status(&node, &other).expect("the image");
    assert_eq!((both.repo_tags.len(), both.repo_digests.len()), (2, 2));
    remove(&node, &other);
    assert_eq!(status(&node, &node.image), None, "one name removes the image");
    assert_eq!(list(&node), []);
    remove(&node, &other);
}

#[test]
fn privileged_a_private_registry_wants_the_right_password() {
    let node = Node::new();
    node.registry.set_access(Access::Basic { username: "ann".into(), password: "secret".into() });
    let auth = |password: &str| {
        Some(AuthConfig { username: "ann".into(), password: password.into(), ..Default::default() })
    };
    let error = pull(&node, &node.image, None).expect_err("no password");
    assert!(error.message().contains(&node.image), "{error}");
    pull(&node, &node.image, auth("wrong")).expect_err("a wrong password");
    assert_eq!(list(&node), [], "a failed pull leaves nothing");
    pull(&node, &node.image, auth("secret")).expect("the pull");
    // What one credential brought is not given to another for nothing.
    pull(&node, &node.image, None).expect_err("the image is there, the permission is not");
}

#[test]
fn privileged_the_image_filesystem_is_reported_for_an_empty_and_a_filled_store() {
    let node = Node::new();
    let usage = || {
        let answer =
            node.call(node.images.clone().image_fs_info(ImageFsInfoRequest {})).expect("ImageFsInfo");
        let answer = answer.into_inner();
        assert_eq!(answer.container_filesystems.len(), 1);
        let filesystem = answer.image_filesystems.first().expect("a filesystem").clone();
        assert!(filesystem.timestamp > 0);
        assert!(std::path::Path::new(&filesystem.fs_id.expect("an id").mountpoint).is_dir());
        filesystem.used_bytes.expect("a value").value
    };
    let empty = usage();
    node.busybox();
    assert!(usage() > empty + (1 << 19));
}

#[test]
fn privileged_the_users_of_images_are_reported_as_they_will_run() {
    let node = Node::new();
    for (number, (user, uid, username)) in [
        ("1002", Some(1002), ""),
        ("www-data:33", None, "www-data"),
        ("", None, ""),
        // A number all the same, as for every other runtime; the kubelet's check of runAsNonRoot depends on it.
        ("007", Some(7), ""),
        ("000:5", Some(0), ""),
    ]
    .into_iter()
    .enumerate()
    {
        let tag = format!("u{number}");
        let image = ImageBuilder::busybox().user(user).build();
        let name = put_image(&node.registry, "users", &tag, &image);
        pull(&node, &name, None).expect("the pull");
        let image = status(&node, &name).expect("the image");
        assert_eq!((image.uid.map(|uid| uid.value), image.username.as_str()), (uid, username), "{user:?}");
        let Some(uid) = uid else { continue };
        let config = node.pod_config(&tag);
        let pod = node.run_pod(&config);
        let mut container = node.container_config("c", "sleep 1000");
        container.image = Some(ImageSpec { image: name, ..Default::default() });
        let id = node.create(&pod, &container, &config);
        node.start(&id);
        assert_eq!(node.output(&id, "id -u").trim(), uid.to_string(), "{user:?}");
        node.remove_pod(&pod);
    }
}

#[test]
fn privileged_a_hostile_layer_fails_the_pull_and_touches_nothing() {
    let node = Node::new();
    let canary = node.dir.path().join("canary");
    std::fs::write(&canary, "alive").expect("the canary");
    let entry = format!("../../../../../..{}", canary.display());
    let image = ImageBuilder::new().layer(&[Entry::file(&entry, "dead", 0o644)]).build();
    let name = put_image(&node.registry, "hostile", "latest", &image);
    let error = pull(&node, &name, None).expect_err("hostile");
    assert!(error.message().contains("canary"), "the entry is named: {error}");
    assert_eq!(std::fs::read_to_string(&canary).expect("the canary"), "alive");
    assert_eq!(list(&node), []);
    let left = std::fs::read_dir(node.root().join("layers")).expect("the layers").count();
    assert_eq!(left, 0, "nothing of the layer is left");
}

#[test]
fn privileged_archives_are_loaded_under_their_names() {
    let node = Node::new();
    let image = ImageBuilder::busybox().build();
    let archive = node.dir.path().join("image.tar");
    std::fs::write(&archive, image.docker_archive(&["example.com/loaded:1"])).expect("the archive");
    let layout = node.dir.path().join("layout");
    image.write_layout(&layout, "example.com/layout:2");
    for (path, name) in [(&archive, "example.com/loaded:1"), (&layout, "example.com/layout:2")] {
        let request = LoadRequest { path: path.display().to_string(), name: String::new() };
        let loaded = node.call(admin(&node).load(request)).expect("Load").into_inner().images;
        assert!(loaded[0].names.iter().any(|known| known == name), "{loaded:?}");
        assert!(status(&node, name).is_some());
    }
    let request = LoadRequest { path: "/no/such/archive".into(), name: String::new() };
    let error = node.call(admin(&node).load(request)).expect_err("no such file");
    assert!(error.message().contains("/no/such/archive"), "{error}");
}

#[test]
fn privileged_the_builtin_network_can_be_taken_away_when_no_pod_needs_it() {
    let node = Node::new();
    let config = node.pod_config("net");
    let pod = node.run_pod(&config);
    assert!(has_link(&node.bridge));
    let error = node.call(admin(&node).teardown(TeardownRequest {})).expect_err("a pod uses it");
    assert_eq!(error.code(), tonic::Code::FailedPrecondition);
    node.remove_pod(&pod);
    node.call(admin(&node).teardown(TeardownRequest {})).expect("Teardown");
    assert!(!has_link(&node.bridge));
}

fn admin(node: &Node) -> AdminClient<tonic::transport::Channel> {
    AdminClient::new(node.channel.clone())
}

/// Whether this network namespace has the link. (/sys/class/net shows that of whoever mounted sysfs.)
fn has_link(name: &str) -> bool {
    let links = std::fs::read_to_string("/proc/thread-self/net/dev").expect("the list of links");
    links.lines().any(|line| line.trim_start().starts_with(&format!("{name}:")))
}

#[test]
fn privileged_a_stop_is_not_held_up_by_work_that_hangs_on_a_disk() {
    let mut node =
        Node::with(Options { config: "[server]\nshutdown_grace = \"0s\"".into(), ..Options::default() });
    let image = Some(ImageSpec { image: node.busybox(), ..Default::default() });
    let request = ImageStatusRequest { image, verbose: true };
    let status = node.call(node.images.clone().image_status(request.clone())).expect("an answer");
    let id = status.into_inner().image.expect("it was pulled").id;
    // Whoever reads the image's config hangs as on a disk that has gone.
    let config = node.root().join("images/blobs/sha256").join(id.trim_start_matches("sha256:"));
    let (fifo, aside) = (config.clone(), config.with_extension("aside"));
    std::fs::rename(&config, &aside).expect("the config's file");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0).expect("a fifo");
    let (mut client, again) = (node.images.clone(), request.clone());
    let hanging = node.spawn(async move { client.image_status(again).await });
    // It opens once somebody reads (fifo(7)).
    let writer = eventually(|| {
        let flags = rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::NONBLOCK;
        rustix::fs::open(&fifo, flags, rustix::fs::Mode::empty()).ok()
    });
    let began = std::time::Instant::now();
    node.stop_brigd();
    let took = began.elapsed();
    assert!(took < std::time::Duration::from_secs(8), "the stop took {took:?}");
    node.call(hanging).expect("the task ends").expect_err("the call was cut off");
    drop(writer);
    std::fs::rename(&aside, &config).expect("the fifo is replaced");
    node.restart_brigd();
    assert!(
        !node
            .call(node.images.clone().image_status(request))
            .expect("an answer")
            .into_inner()
            .info
            .is_empty()
    );
}
