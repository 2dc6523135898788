//! The store as its callers see it: images come, are found, move their names, survive crashes and go; containers get
//! filesystems from them.
//!
//! Crashes are simulated by leaving on disk what the interrupted step would leave, and opening the store again.

use std::fs;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use tar::EntryType;

use super::unpack::digest_of;
use super::unpack::tarball::{Item, Tarball, gzip, zstd};
use super::*;

/// A store in a scratch folder.
struct Bench {
    dir: tempfile::TempDir,
    store: Option<Store>,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Some(Store::open(&dir.path().join("data")).unwrap());
        Self { dir, store }
    }

    fn store(&self) -> &Store {
        self.store.as_ref().unwrap()
    }

    fn root(&self) -> std::path::PathBuf {
        self.dir.path().join("data")
    }

    /// Closes the store, lets `change` alter its files, and opens it again.
    fn reopen(&mut self, change: impl FnOnce(&Path)) {
        self.store = None;
        change(&self.root());
        self.store = Some(Store::open(&self.root()).unwrap());
    }

    fn layer(&self, plain: &[u8]) -> Layer {
        let blob = gzip(plain);
        let expect = LayerExpectation {
            blob_digest: digest_of(&blob),
            blob_size: blob.len() as u64,
            diff_id: digest_of(plain),
        };
        self.store().unpack_layer(&blob[..], expect, &|_| {}).unwrap()
    }

    fn new_image(&self, layers: &[Vec<u8>], user: &str, names: &[&str]) -> NewImage {
        let (manifest, config) = documents(layers, user);
        let manifest_digest = digest_of(&manifest);
        NewImage {
            config_digest: digest_of(&config),
            layers: layers.iter().map(|plain| self.layer(plain)).collect(),
            tags: names.iter().map(|name| (*name).to_owned()).collect(),
            repo_digests: names
                .iter()
                .map(|name| format!("{}@{manifest_digest}", name.rsplit_once(':').unwrap().0))
                .collect(),
            manifest,
            manifest_digest,
            config,
        }
    }

    fn put(&self, layers: &[Vec<u8>], user: &str, names: &[&str]) -> Arc<Image> {
        self.store().put_image(self.new_image(layers, user, names)).unwrap()
    }

    fn names_in(&self, folder: &str) -> Vec<String> {
        let entries = fs::read_dir(self.root().join(folder)).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

fn documents(layers: &[Vec<u8>], user: &str) -> (Vec<u8>, Vec<u8>) {
    let diff_ids: Vec<_> = layers.iter().map(|plain| digest_of(plain).to_string()).collect();
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux", "created": "2020-01-01T00:00:00Z",
        "config": {"User": user, "Env": null},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    let config = serde_json::to_vec(&config).unwrap();
    let layers: Vec<_> = layers
        .iter()
        .map(|plain| {
            let blob = gzip(plain);
            serde_json::json!({
                "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
                "digest": digest_of(&blob).as_str(), "size": blob.len(),
            })
        })
        .collect();
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": registry::manifest::OCI_MANIFEST,
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": digest_of(&config).as_str(), "size": config.len(),
        },
        "layers": layers,
    });
    (serde_json::to_vec(&manifest).unwrap(), config)
}

fn base() -> Vec<u8> {
    Tarball::default().directory("etc").file("etc/os", "base").file("etc/gone", "x").finish()
}

fn top() -> Vec<u8> {
    Tarball::default().directory("etc").file("etc/.wh.gone", "").file("etc/new", "top").finish()
}

/// Reads a file below a directory or detached mount.
fn read_at(root: impl AsFd, path: &str) -> std::io::Result<String> {
    let opened = rustix::fs::openat(root, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    std::io::read_to_string(fs::File::from(opened))
}

fn write_at(root: impl AsFd, path: &str, text: &str) -> std::io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC;
    let opened = rustix::fs::openat(root, path, flags, Mode::from_raw_mode(0o644))?;
    fs::File::from(opened).write_all(text.as_bytes())
}

fn list_at(root: &OwnedFd, path: &str) -> Vec<String> {
    let opened =
        rustix::fs::openat(root, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .unwrap();
    let entries = rustix::fs::Dir::new(opened).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().to_str().unwrap().to_owned())
        .filter(|name| !matches!(name.as_str(), "." | ".."))
        .collect();
    names.sort();
    names
}

const ONE: &str = "docker.io/library/one:1";
const TWO: &str = "docker.io/library/two:2";

#[test]
fn privileged_an_image_is_found_by_every_name_and_survives_a_new_start() {
    let mut bench = Bench::new();
    let image = bench.put(&[base(), top()], "1000", &[ONE]);
    assert_eq!(image.user, ImageUser::Uid(1000));
    // Two layers: root and etc each, and two files or a file and a whiteout (no data).
    assert_eq!(
        image.size.0,
        (4 + 3) * 4096
            + (documents(&[base(), top()], "1000").0.len() as u64)
            + documents(&[base(), top()], "1000").1.len() as u64
    );
    for _ in 0..2 {
        let digest = &image.manifest_digest;
        for name in [
            image.id.as_str(),
            image.id.hex(),
            &image.id.hex()[..7],
            &format!("sha256:{}", &image.id.hex()[..12]),
            ONE,
            "one:1",
            "docker.io/one:1",
            &format!("docker.io/library/one@{digest}"),
            &format!("one:1@{digest}"),
            &format!("docker.io/library/one:other@{digest}"),
        ] {
            let found = bench.store().find(name).unwrap();
            assert_eq!(found.as_deref(), Some(&*image), "{name}");
        }
        for name in ["", "one", "one:2", "sha256:", "zzz", "docker.io/library/two:1"] {
            assert_eq!(bench.store().find(name).unwrap(), None, "{name}");
        }
        assert_eq!(bench.store().list(), std::slice::from_ref(&image));
        let config = bench.store().config(&image).unwrap();
        assert_eq!(config.config().as_ref().unwrap().user().as_deref(), Some("1000"));
        assert_eq!(bench.store().verify(), Verified { images: 1, layers: 2, findings: vec![] });
        bench.reopen(|_| {});
    }
}

#[test]
fn privileged_a_prefix_of_two_images_is_ambiguous() {
    let bench = Bench::new();
    for user in 0..40 {
        bench.put(&[], &user.to_string(), &[]);
    }
    let images = bench.store().list();
    assert_eq!(images.len(), 40);
    let digit = &images[0].id.hex()[..1];
    let count = images.iter().filter(|image| image.id.hex().starts_with(digit)).count();
    let want = Err(FindError::Ambiguous { prefix: digit.to_owned(), count });
    let found = bench.store().find(digit);
    assert!(found == want || (count == 1 && found.is_ok()), "{found:?}");
}

#[test]
fn privileged_names_merge_and_a_tag_moves_to_the_later_image() {
    let mut bench = Bench::new();
    let first = bench.put(&[base()], "0", &[ONE]);
    let both = bench.put(&[base()], "0", &[TWO]);
    assert_eq!(
        (both.id.clone(), both.tags.clone()),
        (first.id.clone(), vec![ONE.to_owned(), TWO.to_owned()])
    );
    let second = bench.put(&[base(), top()], "0", &[ONE]);
    for _ in 0..2 {
        let store = bench.store();
        assert_eq!(store.find(ONE).unwrap().unwrap().id, second.id);
        let left = store.find(TWO).unwrap().unwrap();
        assert_eq!((&left.id, &left.tags[..]), (&first.id, &[TWO.to_owned()][..]));
        assert_eq!(left.repo_digests.len(), 2);
        bench.reopen(|_| {});
    }
}

#[test]
fn privileged_removing_frees_what_nobody_else_needs() {
    let bench = Bench::new();
    bench.put(&[base(), top()], "0", &[ONE]);
    bench.put(&[base()], "0", &[TWO]);
    let both = bench.store().usage();
    assert_eq!(bench.store().remove(ONE).unwrap(), Removed::Now);
    assert_eq!(bench.store().remove(ONE).unwrap(), Removed::AlreadyGone);
    assert_eq!(bench.names_in("layers"), [digest_of(&base()).hex()]);
    assert_eq!(bench.names_in("images/blobs/sha256").len(), 2);
    let one = bench.store().usage();
    assert_eq!(
        (both.used_bytes.0 - one.used_bytes.0, both.inodes_used - one.inodes_used),
        (3 * 4096 + 2 * 4096, 4 + 2)
    );
    assert_eq!(bench.store().remove(TWO).unwrap(), Removed::Now);
    assert!(bench.names_in("layers").is_empty());
    assert!(bench.names_in("images/blobs/sha256").is_empty());
    let none = bench.store().usage();
    assert_eq!((none.used_bytes.0, none.inodes_used), (0, 0));
}

#[test]
fn privileged_a_leased_layer_stays_and_an_abandoned_one_goes() {
    let bench = Bench::new();
    let lease = bench.layer(&base());
    bench.store().collect().unwrap();
    assert!(bench.store().has_layer(lease.diff_id()));
    assert!(bench.store().lease_layer(lease.diff_id()).is_some());
    drop(lease);
    bench.store().collect().unwrap();
    assert!(!bench.store().has_layer(&digest_of(&base())));
    assert!(bench.names_in("layers").is_empty());
}

#[test]
fn privileged_the_same_layer_unpacked_twice_at_once_is_one_layer() {
    let bench = Bench::new();
    let plain = base();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| bench.layer(&plain))).collect();
        for thread in threads {
            assert_eq!(*thread.join().unwrap().diff_id(), digest_of(&plain));
        }
    });
    assert_eq!(bench.names_in("layers"), [digest_of(&plain).hex()]);
}

#[test]
fn privileged_a_refused_layer_leaves_nothing() {
    let bench = Bench::new();
    let plain = Tarball::default().file("ok", "1").file("../evil", "2").finish();
    let expect = LayerExpectation {
        blob_digest: digest_of(&plain),
        blob_size: plain.len() as u64,
        diff_id: digest_of(&plain),
    };
    let err = bench.store().unpack_layer(&plain[..], expect, &|_| {}).unwrap_err();
    assert_eq!(err.to_string(), "unpack the layer's entry \"../evil\"");
    assert!(bench.names_in("layers").is_empty());
}

#[test]
fn privileged_documents_that_do_not_fit_change_nothing() {
    let bench = Bench::new();
    let good = || bench.new_image(&[base()], "0", &[ONE]);
    let wrong_manifest = NewImage { manifest_digest: digest_of(b"x"), ..good() };
    let wrong_config = NewImage { config_digest: digest_of(b"x"), ..good() };
    let ambiguous = br#"{"manifests":[],"layers":[]}"#.to_vec();
    let ambiguous = NewImage { manifest_digest: digest_of(&ambiguous), manifest: ambiguous, ..good() };
    let no_layer = NewImage { layers: vec![], ..good() };
    for (new, want) in [
        (wrong_manifest, "the manifest has the digest"),
        (wrong_config, "the config has the digest"),
        (ambiguous, "the manifest has both"),
        (no_layer, "the config's diff ids are not those of the layers"),
    ] {
        let err = bench.store().put_image(new).unwrap_err();
        let cause = std::error::Error::source(&err).unwrap().to_string();
        assert!(cause.starts_with(want), "{cause}");
        assert_eq!(err.to_string(), format!("accept the image {ONE:?}"));
    }
    assert_eq!(bench.store().list(), []);
    assert!(bench.names_in("images/blobs/sha256").is_empty());
}

#[test]
fn privileged_what_a_crash_leaves_is_removed_and_what_counts_stays() {
    let mut bench = Bench::new();
    let image = bench.put(&[base()], "0", &[ONE]);
    // A layer that was renamed and whose image never came.
    drop(bench.layer(&top()));
    bench.reopen(|root| {
        fs::create_dir_all(root.join("layers/tmp-0123/fs/deep")).unwrap();
        fs::write(root.join("layers/tmp-0123/fs/deep/file"), "x").unwrap();
        fs::write(root.join("images/blobs/sha256/tmp-1"), "x").unwrap();
        // A blob that was written before a crash in put_image.
        fs::write(root.join("images/blobs/sha256").join(digest_of(b"orphan").hex()), "orphan").unwrap();
        fs::write(root.join("layers/README"), "somebody's").unwrap();
    });
    assert_eq!(bench.store().list(), [image]);
    let mut want = vec![digest_of(&base()).hex().to_owned(), "README".to_owned()];
    want.sort();
    assert_eq!(bench.names_in("layers"), want);
    assert_eq!(bench.names_in("images/blobs/sha256").len(), 2);
    assert_eq!(bench.store().verify().findings, []);
}

#[test]
fn privileged_an_image_without_its_layer_is_not_listed_until_it_is_pulled_again() {
    let mut bench = Bench::new();
    let image = bench.put(&[base()], "0", &[ONE]);
    bench.reopen(|root| fs::remove_dir_all(root.join("layers").join(digest_of(&base()).hex())).unwrap());
    assert_eq!(bench.store().list(), []);
    let lost = Finding::LostLayer { image: image.id.clone(), layer: digest_of(&base()) };
    assert_eq!(bench.store().verify().findings, [lost]);
    let again = bench.put(&[base()], "0", &[ONE]);
    assert_eq!(again.id, image.id);
    assert_eq!(bench.store().verify().findings, []);
}

#[test]
fn privileged_garbage_records_are_kept_stop_nothing_and_stop_collection() {
    let mut bench = Bench::new();
    let image = bench.put(&[base()], "0", &[ONE]);
    drop(bench.layer(&top()));
    bench.reopen(|root| {
        let records = Records::open(&root.join("images/records")).unwrap();
        let images: Tree<serde_json::Value> = records.tree("images").unwrap();
        images.put("garbage", &serde_json::json!({"id": 7})).unwrap();
        let layers: Tree<serde_json::Value> = records.tree("layers").unwrap();
        layers.put(digest_of(&top()).hex(), &serde_json::json!("nonsense")).unwrap();
        records.flush().unwrap();
    });
    assert_eq!(bench.store().list(), std::slice::from_ref(&image));
    assert_eq!(bench.names_in("layers").len(), 2, "the layer of the unreadable record must stay");
    let findings = bench.store().verify().findings;
    assert_eq!(findings.len(), 2, "{findings:?}");
    assert_eq!(
        findings[0].to_string(),
        "read the record \"garbage\" of \"images\"; remove it once nothing needs it"
    );
    // Removing an image works; its layers wait.
    assert_eq!(bench.store().remove(ONE).unwrap(), Removed::Now);
    assert_eq!(bench.names_in("layers").len(), 2);
    // A new pull takes the place of what had no readable record.
    let again = bench.put(&[base(), top()], "0", &[TWO]);
    assert_eq!(bench.store().list(), [again]);
}

#[test]
fn privileged_everything_made_is_closed_to_others() {
    let bench = Bench::new();
    bench.put(&[base()], "0", &[ONE]);
    for folder in
        ["", "images", "images/blobs", "images/blobs/sha256", "images/records", "layers", "containers"]
    {
        let mode = fs::metadata(bench.root().join(folder)).unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode, 0o700, "{folder}");
    }
    for layer in bench.names_in("layers") {
        let mode =
            fs::metadata(bench.root().join("layers").join(layer)).unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode, 0o700);
    }
}

#[test]
fn privileged_a_rootfs_shows_the_layers_and_keeps_writes_apart() {
    let mut bench = Bench::new();
    let root_entry = Item { name: "./", kind: EntryType::Directory, mode: 0o1750, gid: 9, ..Item::default() };
    let bottom = Tarball::default()
        .item(&root_entry)
        .directory("etc")
        .file("etc/os", "base")
        .file("etc/gone", "x")
        .finish();
    let image = bench.put(&[bottom, top()], "0", &[ONE]);
    let (a, b) = (ContainerId::random(), ContainerId::random());
    let first = bench.store().rootfs(&a, &image, &RootfsOptions::default()).unwrap();
    let second = bench.store().rootfs(&b, &image, &RootfsOptions::default()).unwrap();
    assert_eq!(list_at(&first.mount, "etc"), ["new", "os"]);
    let stat = rustix::fs::fstat(&first.mount).unwrap();
    assert_eq!((stat.st_mode & 0o7777, stat.st_uid, stat.st_gid), (0o1750, 0, 9));
    write_at(&first.mount, "etc/os", "mine").unwrap();
    assert_eq!(read_at(&first.mount, "etc/os").unwrap(), "mine");
    assert_eq!(read_at(&second.mount, "etc/os").unwrap(), "base");
    assert_eq!(fs::read_to_string(first.upper.join("etc/os")).unwrap(), "mine");
    // etc and os, a block each, and what the filesystem needs for overlayfs's attributes.
    let images = bench.store().usage().used_bytes;
    let (bytes, inodes) = bench.store().writable_usage(&a).unwrap();
    assert_eq!(inodes, 2);
    assert!((8192..=16384).contains(&bytes.0), "{bytes:?}");
    assert_eq!(bench.store().usage().used_bytes.0, images.0 + bytes.0);

    // While containers use them, the layers of a removed image stay, also over a new start.
    assert_eq!(bench.store().remove(ONE).unwrap(), Removed::Now);
    assert_eq!(bench.names_in("layers").len(), 2);
    bench.reopen(|_| {});
    assert_eq!(bench.names_in("layers").len(), 2);
    assert_eq!(read_at(&second.mount, "etc/new").unwrap(), "top");
    drop(first);
    assert_eq!(bench.store().remove_container(&a).unwrap(), Removed::Now);
    assert_eq!(bench.store().remove_container(&a).unwrap(), Removed::AlreadyGone);
    assert_eq!(bench.store().containers(), std::slice::from_ref(&b));
    drop(second);
    // Recovery knows no container: everything goes.
    bench.store().gc(&[]).unwrap();
    assert!(bench.names_in("containers").is_empty());
    assert!(bench.names_in("layers").is_empty());
}

#[test]
fn privileged_a_rootfs_without_layers_or_read_only_works() {
    let bench = Bench::new();
    let empty = bench.put(&[], "0", &[ONE]);
    let id = ContainerId::random();
    let rootfs = bench.store().rootfs(&id, &empty, &RootfsOptions::default()).unwrap();
    write_at(&rootfs.mount, "file", "1").unwrap();
    assert_eq!(list_at(&rootfs.mount, "."), ["file"]);
    drop(rootfs);
    let options = RootfsOptions { readonly: true, ..RootfsOptions::default() };
    let rootfs = bench.store().rootfs(&id, &empty, &options).unwrap();
    assert_eq!(list_at(&rootfs.mount, "."), Vec::<String>::new(), "a rootfs starts fresh");
    let err = write_at(&rootfs.mount, "file", "1").unwrap_err();
    assert_eq!(err.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
}

#[test]
fn privileged_an_opaque_root_hides_all_layers_below() {
    let bench = Bench::new();
    let opaque = Tarball::default().file(".wh..wh..opq", "").file("only", "1").finish();
    let image = bench.put(&[base(), opaque], "0", &[ONE]);
    let rootfs = bench.store().rootfs(&ContainerId::random(), &image, &RootfsOptions::default()).unwrap();
    assert_eq!(list_at(&rootfs.mount, "."), ["only"]);
}

#[test]
fn privileged_a_hundred_layers_and_one_twice_are_mounted() {
    let bench = Bench::new();
    let mut layers: Vec<_> = (0..100)
        .map(|n| Tarball::default().file("which", &n.to_string()).file(&format!("f{n}"), "").finish())
        .collect();
    layers.push(layers[5].clone());
    let image = bench.put(&layers, "0", &[ONE]);
    let rootfs = bench.store().rootfs(&ContainerId::random(), &image, &RootfsOptions::default()).unwrap();
    assert_eq!(read_at(&rootfs.mount, "which").unwrap(), "5");
    assert_eq!(list_at(&rootfs.mount, ".").len(), 101);
}

#[test]
fn privileged_an_image_volume_is_read_only_and_its_sub_path_stays_inside() {
    let bench = Bench::new();
    let layer = Tarball::default()
        .directory("data/deep")
        .file("data/deep/f", "1")
        .symlink("up", "../../../data/deep")
        .symlink("host", "/proc/self/root/etc")
        .finish();
    let image = bench.put(&[layer], "0", &[ONE]);
    let id = ContainerId::random();
    let options = RootfsOptions::default();
    let mount = |path: Option<&str>| bench.store().image_mount(&id, &image, path.map(Path::new), &options);
    let whole = mount(None).unwrap();
    assert_eq!(read_at(&whole, "data/deep/f").unwrap(), "1");
    let err = write_at(&whole, "x", "1").unwrap_err();
    assert_eq!(err.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    for path in ["data/deep", "/data/deep", "up", "../../data/deep"] {
        let part = mount(Some(path)).unwrap();
        assert_eq!(list_at(&part, "."), ["f"], "{path}");
        assert!(write_at(&part, "x", "1").is_err());
    }
    for path in ["missing", "host", "data/deep/f/x"] {
        let err = mount(Some(path)).unwrap_err();
        assert!(matches!(err, RootfsError::SubPath { .. }), "{path}: {err:?}");
    }
}

#[test]
fn privileged_files_of_a_rootfs_or_an_image_volume_appear_as_a_user_namespace_maps_them() {
    let bench = Bench::new();
    let image = bench.put(&[base()], "0", &[ONE]);
    // A process in a user namespace of its own lends its namespace.
    let mut child = std::process::Command::new("unshare")
        .args(["--user", "sh", "-c", "echo ready; read line"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut ready = [0u8; 6];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut ready).unwrap();
    for file in ["uid_map", "gid_map"] {
        fs::write(format!("/proc/{}/{file}", child.id()), "0 100000 65536").unwrap();
    }
    let namespace = OwnedFd::from(fs::File::open(format!("/proc/{}/ns/user", child.id())).unwrap());
    let id = ContainerId::random();
    let options = RootfsOptions { idmap: Some(namespace), ..RootfsOptions::default() };
    let rootfs = bench.store().rootfs(&id, &image, &options).unwrap();
    let stat = rustix::fs::statat(&rootfs.mount, "etc/os", rustix::fs::AtFlags::empty()).unwrap();
    assert_eq!((stat.st_uid, stat.st_gid), (100_000, 100_000));
    let root = rustix::fs::fstat(&rootfs.mount).unwrap();
    assert_eq!((root.st_uid, root.st_gid, root.st_mode & 0o7777), (100_000, 100_000, 0o755));
    // Copied up when it is changed, and still the container's.
    write_at(&rootfs.mount, "etc/os", "mine").unwrap();
    assert_eq!(fs::metadata(rootfs.upper.join("etc/os")).unwrap().uid(), 100_000);
    for path in [None, Some(Path::new("etc"))] {
        let volume = bench.store().image_mount(&id, &image, path, &options).unwrap();
        let name = if path.is_some() { "os" } else { "etc/os" };
        let stat = rustix::fs::statat(&volume, name, rustix::fs::AtFlags::empty()).unwrap();
        assert_eq!((stat.st_uid, stat.st_gid), (100_000, 100_000), "{path:?}");
    }
    child.stdin.take();
    child.wait().unwrap();
}

#[test]
fn privileged_attaching_needs_a_directory_and_no_symlink() {
    let bench = Bench::new();
    let image = bench.put(&[base()], "0", &[ONE]);
    let rootfs = bench.store().rootfs(&ContainerId::random(), &image, &RootfsOptions::default()).unwrap();
    let link = bench.dir.path().join("link");
    std::os::unix::fs::symlink("/tmp", &link).unwrap();
    for target in [link, bench.dir.path().join("missing")] {
        let err = bench.store().rootfs_attach(&rootfs.mount, &target).unwrap_err();
        assert!(matches!(err, RootfsError::Attach { .. }), "{err:?}");
    }
}

/// A docker-archive as `docker save` writes it.
fn docker_archive(layers: &[Vec<u8>], tags: &[&str]) -> Vec<u8> {
    let (_, config) = documents(layers, "0");
    let config_name = format!("{}.json", digest_of(&config).hex());
    let members: Vec<_> = (0..layers.len()).map(|n| format!("layer{n}/layer.tar")).collect();
    let manifest = serde_json::json!([{"Config": config_name, "RepoTags": tags, "Layers": members}]);
    let mut tarball = Tarball::default();
    for (plain, member) in layers.iter().zip(&members) {
        tarball = tarball.item(&Item { name: member, data: plain, ..Item::default() });
    }
    tarball
        .item(&Item { name: &config_name, data: &config, ..Item::default() })
        .item(&Item {
            name: "manifest.json",
            data: &serde_json::to_vec(&manifest).unwrap(),
            ..Item::default()
        })
        .finish()
}

/// The members of an OCI layout.
fn layout(layers: &[Vec<u8>], name: &str) -> Vec<(String, Vec<u8>)> {
    let (manifest, config) = documents(layers, "0");
    let index = serde_json::json!({
        "schemaVersion": 2,
        "manifests": [{
            "mediaType": registry::manifest::OCI_MANIFEST,
            "digest": digest_of(&manifest).as_str(), "size": manifest.len(),
            "annotations": {"org.opencontainers.image.ref.name": name},
        }],
    });
    let mut members = vec![
        ("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()),
        ("index.json".to_owned(), serde_json::to_vec(&index).unwrap()),
    ];
    for blob in layers.iter().map(|plain| gzip(plain)).chain([manifest, config]) {
        members.push((format!("blobs/sha256/{}", digest_of(&blob).hex()), blob));
    }
    members
}

fn archive(members: &[(String, Vec<u8>)]) -> Vec<u8> {
    members
        .iter()
        .fold(Tarball::default(), |tarball, (name, data)| {
            tarball.item(&Item { name, data, ..Item::default() })
        })
        .finish()
}

#[test]
fn privileged_docker_archives_and_oci_layouts_load_as_the_same_image() {
    let layers = [base(), top()];
    let bench = Bench::new();
    let file = bench.dir.path().join("image");
    let load = |bytes: &[u8], name: Option<&str>| {
        fs::write(&file, bytes).unwrap();
        let name = name.map(|name| name.parse::<reference::Reference>().unwrap());
        bench.store().load(&file, name.as_ref())
    };
    let docker = docker_archive(&layers, &["one:1"]);
    for bytes in [docker.clone(), gzip(&docker), zstd(&docker)] {
        let loaded = load(&bytes, None).unwrap();
        assert_eq!(loaded.len(), 1);
        assert_eq!((&loaded[0].tags[..], &loaded[0].repo_digests[..]), (&[ONE.to_owned()][..], &[][..]));
        assert_eq!(loaded[0].id, digest_of(&documents(&layers, "0").1));
    }
    assert_eq!(bench.store().remove(ONE).unwrap(), Removed::Now);
    let oci = layout(&layers, "two:2");
    let loaded = load(&archive(&oci), None).unwrap();
    let digest = digest_of(&documents(&layers, "0").0);
    assert_eq!(loaded[0].tags, [TWO]);
    assert_eq!(loaded[0].repo_digests, [format!("docker.io/library/two@{digest}")]);
    assert_eq!(load(&archive(&oci), Some("mine:3")).unwrap()[0].tags, [TWO, "docker.io/library/mine:3"]);
    let folder = bench.dir.path().join("layout");
    fs::create_dir_all(folder.join("blobs/sha256")).unwrap();
    for (name, data) in &oci {
        fs::write(folder.join(name), data).unwrap();
    }
    assert_eq!(bench.store().remove(TWO).unwrap(), Removed::Now);
    assert_eq!(bench.store().load(&folder, None).unwrap()[0].tags, [TWO]);
    let image = bench.store().find("two:2").unwrap().unwrap();
    let rootfs = bench.store().rootfs(&ContainerId::random(), &image, &RootfsOptions::default()).unwrap();
    assert_eq!(list_at(&rootfs.mount, "etc"), ["new", "os"]);
}

#[test]
fn privileged_image_files_that_lie_are_refused_and_leave_nothing() {
    let bench = Bench::new();
    let file = bench.dir.path().join("image");
    let load = |bytes: &[u8]| {
        fs::write(&file, bytes).unwrap();
        bench.store().load(&file, None).unwrap_err()
    };
    let layers = [base(), top()];
    // A layer that is not the one its name says.
    let mut lying = layout(&layers, "one:1");
    let other = gzip(&Tarball::default().file("evil", "1").finish());
    lying[3].1.clone_from(&other);
    let err = load(&archive(&lying));
    assert!(matches!(err, LoadError::Unpack { .. }), "{err:?}");
    // A config that is not.
    let mut lying = layout(&layers, "one:1");
    lying.last_mut().unwrap().1.push(b' ');
    assert!(matches!(load(&archive(&lying)), LoadError::Digest { .. }));
    // A layer with an entry that leaves it.
    let err = load(&docker_archive(&[Tarball::default().file("../evil", "1").finish()], &[]));
    assert!(
        matches!(&err, LoadError::Unpack { source: UnpackError::Entry { path, .. }, .. } if path == "../evil"),
        "{err:?}"
    );
    // Members that are missing, no image at all, and a file that is cut.
    let missing = archive(&layout(&layers, "one:1")[..3]);
    assert!(matches!(load(&missing), LoadError::Member { .. }));
    assert!(matches!(load(&base()), LoadError::Unknown { .. }));
    let whole = docker_archive(&layers, &["one:1"]);
    assert!(matches!(load(&whole[..700]), LoadError::Open { .. }));
    assert!(matches!(load(b""), LoadError::Unknown { .. }));
    assert_eq!(bench.store().list(), []);
    assert!(bench.names_in("layers").is_empty());
    assert!(bench.names_in("images/blobs/sha256").is_empty());
}
