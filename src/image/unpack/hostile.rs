//! Layers that mean harm, one test each: nothing outside the layer's directory changes, the entry is named, and memory and disk
//! stay bounded. Layers that only look odd follow, with what they must become.
//!
//! Method: [`Bench`] has a canary tree beside the layer's directory, as an attacker would aim at it; every unpack
//! compares the canary before and after.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tar::EntryType;

use super::tarball::{Item, Tarball, digest, gzip, zstd};
use super::*;

struct Bench {
    dir: tempfile::TempDir,
    limits: Limits,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("canary/etc")).unwrap();
        fs::write(dir.path().join("canary/etc/passwd"), "root").unwrap();
        fs::create_dir(dir.path().join("layer")).unwrap();
        Self { dir, limits: Limits::default() }
    }

    fn layer(&self) -> PathBuf {
        self.dir.path().join("layer")
    }

    fn canary(&self) -> String {
        self.dir.path().join("canary").to_str().unwrap().to_owned()
    }

    fn unpack_as(&self, bytes: &[u8], expect: &Expectation) -> Result<Unpacked, UnpackError> {
        let before = listing(&self.dir.path().join("canary"));
        let root = open_directory(&self.layer()).unwrap();
        let result = unpack(bytes, root, expect, self.limits, &|_| {});
        assert_eq!(listing(&self.dir.path().join("canary")), before, "the canary changed");
        assert_eq!(fs::read_dir(self.dir.path()).unwrap().count(), 2, "something appeared beside the layer");
        result
    }

    fn unpack(&self, tarball: Tarball) -> Result<Unpacked, UnpackError> {
        self.unpack_as(&tarball.finish(), &Expectation { blob: None, diff_id: None })
    }
}

/// Everything about a tree that a layer could change.
fn listing(root: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let mut pending = vec![root.to_owned()];
    while let Some(path) = pending.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        let content = if meta.is_file() { fs::read(&path).unwrap() } else { Vec::new() };
        lines.push(format!(
            "{} {:o} {}:{} {}.{} {} {content:?}",
            path.display(),
            meta.mode(),
            meta.uid(),
            meta.gid(),
            meta.mtime(),
            meta.mtime_nsec(),
            meta.nlink(),
        ));
        if meta.is_dir() {
            pending.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
    lines.sort();
    lines
}

/// The entry's name and what is wrong with it.
fn refused(result: Result<Unpacked, UnpackError>) -> (String, EntryError) {
    match result {
        Err(UnpackError::Entry { path, source }) => (path, source),
        other => panic!("not refused for an entry: {other:?}"),
    }
}

macro_rules! assert_refused {
    ($tarball:expr, $name:expr, $pattern:pat) => {{
        let bench = Bench::new();
        let (name, error) = refused(bench.unpack($tarball(&bench)));
        assert_eq!(name, $name);
        assert!(matches!(error, $pattern), "{error:?}");
        bench
    }};
}

#[test]
fn privileged_absolute_and_parent_paths_are_refused_by_name() {
    for name in ["../evil", "a/../../evil", "a/..", ".."] {
        assert_refused!(|_: &Bench| Tarball::default().file(name, "x"), name, EntryError::DotDot);
    }
    let bench = Bench::new();
    let absolute = format!("{}/etc/passwd", bench.canary());
    let (name, error) = refused(bench.unpack(Tarball::default().file(&absolute, "x")));
    assert_eq!(name, absolute);
    assert!(matches!(error, EntryError::Absolute), "{error:?}");
}

#[test]
fn privileged_a_symlinked_parent_leads_nowhere_outside() {
    assert_refused!(
        |bench: &Bench| Tarball::default().symlink("x", &bench.canary()).file("x/etc/passwd", "evil"),
        "x/etc/passwd",
        EntryError::Parent
    );
    assert_refused!(
        |_: &Bench| Tarball::default().symlink("x", "../canary").directory("x/etc"),
        "x/etc",
        EntryError::Parent
    );
    // With a target that exists in the layer it is the layer's own.
    let bench = Bench::new();
    bench
        .unpack(Tarball::default().directory("usr/lib").symlink("lib", "/usr/lib").file("lib/x", "1"))
        .unwrap();
    assert_eq!(fs::read_to_string(bench.layer().join("usr/lib/x")).unwrap(), "1");
    // ".." in a link's target stops at the layer's root.
    let bench = Bench::new();
    bench
        .unpack(Tarball::default().directory("etc").symlink("up", "../../../..").file("up/etc/x", "1"))
        .unwrap();
    assert_eq!(fs::read_to_string(bench.layer().join("etc/x")).unwrap(), "1");
}

#[test]
fn privileged_hard_links_reach_only_files_of_the_layer() {
    for target in ["../canary/etc/passwd", "a/../../canary/etc/passwd", "/etc/passwd"] {
        assert_refused!(
            |_: &Bench| Tarball::default().hardlink("evil", target),
            "evil",
            EntryError::LinkTarget { .. }
        );
    }
    assert_refused!(
        |_: &Bench| Tarball::default().hardlink("evil", "gone"),
        "evil",
        EntryError::LinkMissing { .. }
    );
    assert_refused!(
        |_: &Bench| Tarball::default().directory("d").hardlink("evil", "d"),
        "evil",
        EntryError::LinkMissing { .. }
    );
    assert_refused!(
        |bench: &Bench| Tarball::default().symlink("s", &bench.canary()).hardlink("evil", "s/etc/passwd"),
        "evil",
        EntryError::LinkMissing { .. }
    );
}

#[test]
fn privileged_a_hard_link_to_a_symlink_is_the_symlink_itself() {
    let bench = Bench::new();
    let target = format!("{}/etc/passwd", bench.canary());
    // The entry after it writes through neither name.
    let tarball = Tarball::default().symlink("s", &target).hardlink("h", "s").file("h", "mine");
    bench.unpack(tarball).unwrap();
    assert_eq!(fs::read_link(bench.layer().join("s")).unwrap(), Path::new(&target));
    assert_eq!(fs::read_to_string(bench.layer().join("h")).unwrap(), "mine");
}

#[test]
fn privileged_a_directory_entry_over_a_symlink_replaces_it_and_chmods_nothing_else() {
    // CVE-2021-32760.
    let bench = Bench::new();
    let tarball = Tarball::default().symlink("d", &format!("{}/etc", bench.canary())).item(&Item {
        name: "d/",
        kind: EntryType::Directory,
        mode: 0o777,
        ..Item::default()
    });
    bench.unpack(tarball).unwrap();
    let meta = fs::symlink_metadata(bench.layer().join("d")).unwrap();
    assert!(meta.is_dir());
    assert_eq!(meta.mode() & 0o7777, 0o777);
}

#[test]
fn privileged_the_root_can_only_be_a_directory() {
    // CVE-2021-29136.
    for name in [".", "./", "", ".//."] {
        assert_refused!(|_: &Bench| Tarball::default().symlink(name, "/etc"), name, EntryError::Root);
    }
    let bench = Bench::new();
    bench
        .unpack(Tarball::default().item(&Item {
            name: "./",
            kind: EntryType::Directory,
            mode: 0o1711,
            mtime: 5,
            ..Item::default()
        }))
        .unwrap();
    let meta = fs::metadata(bench.layer()).unwrap();
    assert_eq!((meta.mode() & 0o7777, meta.mtime()), (0o1711, 5));
}

#[test]
fn privileged_what_is_no_directory_is_no_parent() {
    let device = Item { name: "p", kind: EntryType::Char, device: (1, 3), ..Item::default() };
    let fifo = Item { name: "p", kind: EntryType::Fifo, ..Item::default() };
    for tarball in [
        Tarball::default().item(&device),
        Tarball::default().item(&fifo),
        Tarball::default().file("p", "x"),
        Tarball::default().symlink("p", "p"),
    ] {
        let bench = Bench::new();
        let (name, error) = refused(bench.unpack(tarball.file("p/x", "1")));
        assert_eq!(name, "p/x");
        assert!(matches!(error, EntryError::Parent), "{error:?}");
    }
}

#[test]
fn privileged_a_fifo_or_device_in_the_way_is_replaced_not_opened() {
    let bench = Bench::new();
    let fifo = Item { name: "p", kind: EntryType::Fifo, ..Item::default() };
    bench.unpack(Tarball::default().item(&fifo).file("p", "data")).unwrap();
    assert_eq!(fs::read_to_string(bench.layer().join("p")).unwrap(), "data");
}

#[test]
fn privileged_huge_extension_headers_are_refused_before_they_are_read() {
    for kind in [EntryType::XHeader, EntryType::GNULongName, EntryType::GNULongLink, EntryType::XGlobalHeader]
    {
        assert_refused!(
            |_: &Bench| Tarball::default().item(&Item {
                name: "big",
                kind,
                size: Some(3 << 30),
                ..Item::default()
            }),
            "big",
            EntryError::Extension { size: 0xc000_0000, limit: 0x10_0000 }
        );
    }
    assert_refused!(
        |_: &Bench| Tarball::default().file(&"d/".repeat(3000), ""),
        "d/".repeat(3000),
        EntryError::LongPath { limit: 4096 }
    );
    for records in [&b"6 a=\n"[..], b"x path=1\n", b"99 path=a\n", b"10 path=abc", b"3 a\n"] {
        assert_refused!(|_: &Bench| Tarball::default().raw(b'x', "p", records), "p", EntryError::Pax);
    }
}

#[test]
fn privileged_sparse_maps_that_lie_are_refused() {
    let sparse = |map: &'static [u8], size: &'static [u8]| {
        move |_: &Bench| {
            Tarball::default().pax(&[("GNU.sparse.map", map), ("GNU.sparse.size", size)]).item(&Item {
                name: "s",
                data: b"12345678",
                ..Item::default()
            })
        }
    };
    assert_refused!(sparse(b"0,4,2,4", b"100"), "s", EntryError::Sparse(_));
    assert_refused!(sparse(b"0,4,98,4", b"100"), "s", EntryError::Sparse(_));
    assert_refused!(sparse(b"0,4", b"100"), "s", EntryError::Sparse(_));
    assert_refused!(sparse(b"0,4,8", b"100"), "s", EntryError::Sparse(_));
    assert_refused!(sparse(b"8,18446744073709551615", b"100"), "s", EntryError::Sparse(_));
    // A hole of 8 EiB counts as what a reader would get.
    assert_refused!(sparse(b"0,8", b"9223372036854775807"), "s", EntryError::TooLarge { .. });
    // The map of format 1.0 that never ends (CVE-2025-58183).
    assert_refused!(
        |_: &Bench| Tarball::default()
            .pax(&[
                ("GNU.sparse.major", b"1"),
                ("GNU.sparse.minor", b"0"),
                ("GNU.sparse.realsize", b"10"),
                ("GNU.sparse.name", b"real")
            ])
            .item(&Item { name: "s", data: b"2147483648\n", ..Item::default() }),
        "real",
        EntryError::Sparse(_)
    );
}

#[test]
fn privileged_all_sparse_formats_become_files_with_holes() {
    let expected = |bench: &Bench| {
        let mut content = vec![0u8; 1 << 20];
        content[..4].copy_from_slice(b"head");
        content[(1 << 20) - 4..].copy_from_slice(b"tail");
        assert_eq!(fs::read(bench.layer().join("s")).unwrap(), content);
        assert!(
            fs::metadata(bench.layer().join("s")).unwrap().blocks() * 512 < 64 << 10,
            "the hole was written"
        );
    };
    let data = Item { name: "s", data: b"headtail", ..Item::default() };
    let bench = Bench::new();
    bench
        .unpack(
            Tarball::default()
                .pax(&[("GNU.sparse.map", b"0,4,1048572,4"), ("GNU.sparse.size", b"1048576")])
                .item(&data),
        )
        .unwrap();
    expected(&bench);
    let bench = Bench::new();
    let offsets: [(&str, &[u8]); 5] = [
        ("GNU.sparse.size", b"1048576"),
        ("GNU.sparse.offset", b"0"),
        ("GNU.sparse.numbytes", b"4"),
        ("GNU.sparse.offset", b"1048572"),
        ("GNU.sparse.numbytes", b"4"),
    ];
    bench.unpack(Tarball::default().pax(&offsets).item(&data)).unwrap();
    expected(&bench);
    let bench = Bench::new();
    let mut mapped = b"2\n0\n4\n1048572\n4\n".to_vec();
    mapped.resize(512, 0);
    mapped.extend_from_slice(b"headtail");
    bench
        .unpack(
            Tarball::default()
                .pax(&[
                    ("GNU.sparse.major", b"1"),
                    ("GNU.sparse.minor", b"0"),
                    ("GNU.sparse.realsize", b"1048576"),
                    ("GNU.sparse.name", b"s"),
                ])
                .item(&Item { name: "GNUSparseFile.0/s", data: &mapped, ..Item::default() }),
        )
        .unwrap();
    expected(&bench);
    // GNU's own, as `tar --sparse --format=gnu` writes it.
    let bench = Bench::new();
    let file = bench.dir.path().join("layer/s");
    fs::write(&file, "head").unwrap();
    let opened = fs::OpenOptions::new().write(true).open(&file).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&opened, b"tail", (1 << 20) - 4).unwrap();
    let tarred = std::process::Command::new("tar")
        .args(["--sparse", "--format=gnu", "-cC"])
        .arg(bench.layer())
        .arg("s")
        .output()
        .unwrap();
    assert!(tarred.status.success());
    fs::remove_file(&file).unwrap();
    bench.unpack_as(&tarred.stdout, &Expectation { blob: None, diff_id: None }).unwrap();
    expected(&bench);
}

#[test]
fn privileged_a_decompression_bomb_stops_at_the_limit() {
    let zeros = vec![0u8; 8 << 20];
    let tarball = Tarball::default().item(&Item { name: "zeros", data: &zeros, ..Item::default() }).finish();
    for bytes in [gzip(&tarball), zstd(&tarball)] {
        let bench = Bench { limits: Limits { plain_bytes_max: 1 << 20 }, ..Bench::new() };
        let result = bench.unpack_as(&bytes, &Expectation { blob: None, diff_id: None });
        assert!(
            matches!(
                result,
                Err(UnpackError::TooLarge { limit_bytes: 0x10_0000 }
                    | UnpackError::Entry { source: EntryError::TooLarge { .. }, .. })
            ),
            "{result:?}"
        );
        let written = fs::metadata(bench.layer().join("zeros")).map_or(0, |meta| meta.len());
        assert!(written <= 1 << 20, "{written}");
    }
}

#[test]
fn privileged_sizes_that_lie_are_refused() {
    // The entry is longer than the archive.
    let bench = Bench::new();
    let tarball =
        Tarball::default().item(&Item { name: "long", size: Some(1 << 20), data: b"abc", ..Item::default() });
    let (name, error) =
        refused(bench.unpack_as(&tarball.unfinished(), &Expectation { blob: None, diff_id: None }));
    assert_eq!(name, "long");
    assert!(matches!(error, EntryError::Truncated), "{error:?}");
    // The blob is longer or shorter than announced.
    let bytes = gzip(&Tarball::default().file("a", "1").finish());
    for (size, want) in [(bytes.len() as u64 - 1, "has more than"), (bytes.len() as u64 + 1, "ended after")] {
        let result = Bench::new()
            .unpack_as(&bytes, &Expectation { blob: Some((digest(&bytes), size)), diff_id: None });
        assert!(result.as_ref().unwrap_err().to_string().contains(want), "{result:?}");
    }
    // A size beyond what a file can have.
    assert_refused!(
        |_: &Bench| Tarball::default().pax(&[("size", b"9223372036854775808")]).file("a", ""),
        "pax",
        EntryError::Number { field: "size" }
    );
}

#[test]
fn privileged_a_truncated_or_damaged_stream_is_refused() {
    let plain = Tarball::default().file("a", &"x".repeat(5000)).finish();
    for (bytes, name) in [(gzip(&plain), "gzip"), (zstd(&plain), "zstd")] {
        let cut = &bytes[..bytes.len() - 4];
        let result = Bench::new().unpack_as(cut, &Expectation { blob: None, diff_id: None });
        assert!(matches!(result, Err(UnpackError::Decompress { .. })), "{name}: {result:?}");
    }
    // gzip followed by something that is none.
    let mut bytes = gzip(&plain);
    bytes.extend_from_slice(b"garbage");
    let result = Bench::new().unpack_as(&bytes, &Expectation { blob: None, diff_id: None });
    assert!(matches!(result, Err(UnpackError::Decompress { .. })), "{result:?}");
    // Not a tar at all.
    let (_, error) =
        refused(Bench::new().unpack_as(&[b'x'; 1024], &Expectation { blob: None, diff_id: None }));
    assert!(matches!(error, EntryError::Checksum), "{error:?}");
    let (_, error) =
        refused(Bench::new().unpack_as(&[b'x'; 100], &Expectation { blob: None, diff_id: None }));
    assert!(matches!(error, EntryError::Truncated), "{error:?}");
}

#[test]
fn privileged_several_gzip_members_and_zstd_frames_are_one_layer() {
    let plain = Tarball::default().file("a", "1").file("b", &"2".repeat(3000)).finish();
    for compress in [gzip, zstd] {
        let bytes = [compress(&plain[..700]), compress(&plain[700..])].concat();
        let bench = Bench::new();
        let expect =
            Expectation { blob: Some((digest(&bytes), bytes.len() as u64)), diff_id: Some(digest(&plain)) };
        let unpacked = bench.unpack_as(&bytes, &expect).unwrap();
        assert_eq!(unpacked, Unpacked { diff_id: digest(&plain), disk_bytes: 3 * 4096, inodes: 3 });
        assert_eq!(fs::read_to_string(bench.layer().join("b")).unwrap().len(), 3000);
    }
}

#[test]
fn privileged_a_wrong_digest_or_diff_id_is_refused() {
    let plain = Tarball::default().file("a", "1").finish();
    let bytes = gzip(&plain);
    let other = digest(b"other");
    let expect = Expectation { blob: Some((other.clone(), bytes.len() as u64)), diff_id: None };
    let result = Bench::new().unpack_as(&bytes, &expect);
    assert!(
        matches!(&result, Err(UnpackError::WrongDigest { expected, actual }) if *expected == other && *actual == digest(&bytes)),
        "{result:?}"
    );
    let expect =
        Expectation { blob: Some((digest(&bytes), bytes.len() as u64)), diff_id: Some(other.clone()) };
    let result = Bench::new().unpack_as(&bytes, &expect);
    assert!(
        matches!(&result, Err(UnpackError::WrongDiffId { expected, actual }) if *expected == other && *actual == digest(&plain)),
        "{result:?}"
    );
}

#[test]
fn privileged_owners_beyond_linux_are_refused() {
    for value in ["4294967295", "4294967296", "99999999999"] {
        for field in ["uid", "gid"] {
            assert_refused!(
                |_: &Bench| Tarball::default().pax(&[(field, value.as_bytes())]).file("a", "1"),
                "a",
                EntryError::Id { .. }
            );
        }
    }
    // The same in the header, base-256.
    assert_refused!(
        |_: &Bench| Tarball::default().item(&Item { name: "a", uid: 1 << 33, ..Item::default() }),
        "a",
        EntryError::Id { field: "uid", value: 0x2_0000_0000 }
    );
    let bench = Bench::new();
    bench
        .unpack(Tarball::default().item(&Item {
            name: "a",
            uid: 4_294_967_294,
            gid: 7,
            mode: 0o6755,
            ..Item::default()
        }))
        .unwrap();
    let meta = fs::metadata(bench.layer().join("a")).unwrap();
    assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o7777), (4_294_967_294, 7, 0o6755));
}

#[test]
fn privileged_a_nul_in_a_name_is_refused() {
    assert_refused!(
        |_: &Bench| Tarball::default().pax(&[("path", b"a\0b")]).file("x", "1"),
        "a\0b",
        EntryError::Nul
    );
    assert_refused!(
        |_: &Bench| Tarball::default().pax(&[("linkpath", b"a\0b")]).symlink("x", "y"),
        "x",
        EntryError::Nul
    );
}

#[test]
fn privileged_unknown_entry_types_are_refused() {
    for kind in [b'V', b'M', b'D', b'?'] {
        assert_refused!(|_: &Bench| Tarball::default().raw(kind, "t", b""), "t", EntryError::Type { .. });
    }
}

#[test]
fn privileged_later_entries_replace_earlier_ones_and_directories_merge() {
    let bench = Bench::new();
    let tarball = Tarball::default()
        .file("f", "old")
        .file("f", "new")
        .directory("d")
        .file("d/x", "1")
        .item(&Item { name: "d", kind: EntryType::Directory, mode: 0o700, mtime: 42, ..Item::default() })
        .directory("gone/deep/er")
        .file("gone/deep/er/f", "1")
        .file("gone", "a file now")
        .file("dir-now", "x")
        .directory("dir-now");
    let unpacked = bench.unpack(tarball).unwrap();
    let layer = bench.layer();
    assert_eq!(fs::read_to_string(layer.join("f")).unwrap(), "new");
    assert_eq!(fs::read_to_string(layer.join("d/x")).unwrap(), "1");
    assert_eq!(fs::read_to_string(layer.join("gone")).unwrap(), "a file now");
    assert!(layer.join("dir-now").is_dir());
    let meta = fs::metadata(layer.join("d")).unwrap();
    assert_eq!((meta.mode() & 0o7777, meta.mtime()), (0o700, 42));
    assert_eq!((unpacked.inodes, unpacked.disk_bytes), (6, 6 * 4096));
}

#[test]
fn privileged_whiteouts_become_overlayfs_whiteouts() {
    let bench = Bench::new();
    let tarball = Tarball::default()
        .file("etc/.wh.gone", "")
        .directory("opaque")
        .file("opaque/.wh..wh..opq", "")
        .file(".wh..wh.plnk", "")
        .file(".wh..wh.aufs", "")
        .file("kept", "this layer's")
        .file(".wh.kept", "")
        .file(".wh.replaced", "")
        .directory("replaced");
    bench.unpack(tarball).unwrap();
    let layer = bench.layer();
    let meta = fs::symlink_metadata(layer.join("etc/gone")).unwrap();
    assert!(meta.file_type().is_char_device() && meta.rdev() == 0);
    let opaque = |name: &str| {
        let mut value = [0u8; 8];
        rustix::fs::lgetxattr(layer.join(name), "trusted.overlay.opaque", &mut value)
            .map(|n| value[..n].to_vec())
    };
    assert_eq!(opaque("opaque"), Ok(b"y".to_vec()));
    assert_eq!(opaque("replaced"), Ok(b"y".to_vec()));
    assert!(layer.join("replaced").is_dir());
    assert_eq!(fs::read_to_string(layer.join("kept")).unwrap(), "this layer's");
    let mut names: Vec<_> = fs::read_dir(&layer)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["etc", "kept", "opaque", "replaced"]);
}

#[test]
fn privileged_whiteouts_of_dots_are_refused_and_follow_no_link() {
    for name in [".wh.", ".wh..", ".wh...", "d/.wh..", "d/.wh..."] {
        assert_refused!(
            |_: &Bench| Tarball::default().directory("d").file(name, ""),
            name,
            EntryError::Whiteout
        );
    }
    assert_refused!(
        |bench: &Bench| Tarball::default().symlink("x", &bench.canary()).file("x/.wh.etc", ""),
        "x/.wh.etc",
        EntryError::Parent
    );
    // A directory that is called like a whiteout is a parent like any other, and the entry in it an entry.
    let bench = Bench::new();
    bench.unpack(Tarball::default().file(".wh.a/b", "1")).unwrap();
    assert_eq!(fs::read_to_string(bench.layer().join(".wh.a/b")).unwrap(), "1");
}

#[test]
fn privileged_only_harmless_attributes_are_taken() {
    let capability: &[u8] = b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let bench = Bench::new();
    let tarball = Tarball::default()
        .pax(&[
            ("SCHILY.xattr.security.capability", capability),
            ("SCHILY.xattr.user.note", b"hello"),
            ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
            ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
            ("SCHILY.xattr.user.overlay.opaque", b"y"),
            ("SCHILY.xattr.security.selinux", b"system_u:object_r:shadow_t:s0"),
        ])
        .item(&Item { name: "ping", uid: 5, mode: 0o755, ..Item::default() });
    bench.unpack(tarball).unwrap();
    let mut names = [0u8; 1024];
    let n = rustix::fs::llistxattr(bench.layer().join("ping"), &mut names).unwrap();
    let mut names: Vec<_> = names[..n].split(|byte| *byte == 0).filter(|name| !name.is_empty()).collect();
    names.sort();
    assert_eq!(names, [&b"security.capability"[..], b"user.note"]);
}

#[test]
fn privileged_a_tree_deeper_than_any_path_is_removed() {
    // A symlink to the end of a deep directory makes deeper ones reachable by short names.
    let deep = "d/".repeat(1500);
    let mut tarball = Tarball::default().directory("top").directory(&format!("top/{deep}"));
    tarball = tarball
        .symlink("s", &format!("top/{}", "d/".repeat(40)))
        .directory(&format!("s/{}", "e/".repeat(1500)));
    let bench = Bench::new();
    let unpacked = bench.unpack(tarball.clone()).unwrap();
    assert_eq!(unpacked.inodes, 1 + 1 + 1500 + 1 + 1500);
    let bench = Bench::new();
    let unpacked = bench.unpack(tarball.file("top", "a file now")).unwrap();
    assert_eq!(unpacked.inodes, 3);
    let parent = open_directory(bench.dir.path()).unwrap();
    remove_tree(std::os::fd::AsFd::as_fd(&parent), "layer".as_ref()).unwrap();
    remove_tree(std::os::fd::AsFd::as_fd(&parent), "layer".as_ref()).unwrap();
    assert!(!bench.layer().exists());
    fs::set_permissions(bench.dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
}

#[test]
fn privileged_long_names_and_odd_bytes_survive() {
    let bench = Bench::new();
    let long = format!("{}/{}", "a".repeat(200), "b".repeat(255));
    bench
        .unpack(
            Tarball::default()
                .file(&long, "gnu")
                .pax(&[("path", b"\xff\xfe name\n"), ("mtime", b"-1.5")])
                .file("short", "pax"),
        )
        .unwrap();
    assert_eq!(fs::read_to_string(bench.layer().join(&long)).unwrap(), "gnu");
    let odd = bench.layer().join(std::ffi::OsStr::from_bytes(b"\xff\xfe name\n"));
    let meta = fs::metadata(&odd).unwrap();
    assert_eq!((meta.mtime(), meta.mtime_nsec()), (-2, 500_000_000));
    assert_eq!(fs::read_to_string(&odd).unwrap(), "pax");
}
