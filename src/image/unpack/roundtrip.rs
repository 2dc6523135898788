//! Trees of any shape, written as layers and unpacked, are the trees they were.
//!
//! Method: a tree is a map from path to node, generated so that every parent is a directory. It is written by this
//! crate's own tar writer and by the system's tar in its three formats; what is unpacked is read back into the same map.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use proptest::prelude::*;
use tar::EntryType;

use super::tarball::{Item, Tarball, digest, gzip, zstd};
use super::*;

#[derive(Debug, Clone, PartialEq)]
enum Node {
    Directory { mode: u32, mtime: u32 },
    File { mode: u32, mtime: u32, uid: u32, data: Vec<u8> },
    Symlink { target: String },
}

type Shape = BTreeMap<String, Node>;

fn node() -> impl Strategy<Value = Node> {
    let mode = 0u32..0o10000;
    prop_oneof![
        // Its owner must be able to go in, or a test that is not root could not look.
        (mode.clone(), any::<u32>()).prop_map(|(mode, mtime)| Node::Directory { mode: mode | 0o700, mtime }),
        (mode, any::<u32>(), 0u32..u32::MAX, proptest::collection::vec(any::<u8>(), 0..2000))
            .prop_map(|(mode, mtime, uid, data)| Node::File { mode, mtime, uid, data }),
        "[a-z./]{1,120}".prop_map(|target| Node::Symlink { target }),
    ]
}

/// Names of up to 200 bytes, so that some paths need long-name headers.
fn shape() -> impl Strategy<Value = Shape> {
    let name = prop_oneof![4 => "[a-c]{1,2}", 1 => "[a-z é\\\\]{1,60}", 1 => "n{150,200}"]
        .prop_filter("not a dot name or whiteout", |name| !name.starts_with(".wh.") && name.trim() == name);
    let path = proptest::collection::vec(name, 1..4).prop_map(|names| names.join("/"));
    proptest::collection::vec((path, node()), 0..24).prop_map(|nodes| {
        let mut shape = Shape::new();
        for (path, node) in nodes {
            let mut parents =
                Path::new(&path).ancestors().skip(1).filter(|path| !path.as_os_str().is_empty());
            let fits = parents.all(|parent| {
                let known = shape.get(parent.to_str().unwrap());
                known.is_none_or(|node| matches!(node, Node::Directory { .. }))
            });
            if fits && !shape.contains_key(&path) {
                for parent in Path::new(&path).ancestors().skip(1).filter(|path| !path.as_os_str().is_empty())
                {
                    let parent = parent.to_str().unwrap().to_owned();
                    shape.entry(parent).or_insert(Node::Directory { mode: 0o755, mtime: 1 });
                }
                shape.insert(path, node);
            }
        }
        shape
    })
}

fn write(shape: &Shape) -> Vec<u8> {
    shape
        .iter()
        .fold(Tarball::default(), |tarball, (name, node)| match node {
            Node::Directory { mode, mtime } => tarball.item(&Item {
                name,
                kind: EntryType::Directory,
                mode: *mode,
                mtime: (*mtime).into(),
                ..Item::default()
            }),
            Node::File { mode, mtime, uid, data } => tarball.item(&Item {
                name,
                mode: *mode,
                mtime: (*mtime).into(),
                uid: (*uid).into(),
                data,
                ..Item::default()
            }),
            Node::Symlink { target } => {
                // The writer has no long link names.
                tarball
                    .pax(&[("linkpath", target.as_bytes()), ("path", name.as_bytes())])
                    .symlink("short", "x")
            }
        })
        .finish()
}

fn read(root: &Path) -> Shape {
    let mut shape = Shape::new();
    let mut pending = vec![root.to_owned()];
    while let Some(folder) = pending.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            let meta = fs::symlink_metadata(&path).unwrap();
            let (mode, mtime) = (meta.mode() & 0o7777, u32::try_from(meta.mtime()).unwrap());
            shape.insert(
                name,
                if meta.is_dir() {
                    pending.push(path);
                    Node::Directory { mode, mtime }
                } else if meta.is_symlink() {
                    let target = fs::read_link(&path).unwrap().into_os_string().into_vec();
                    Node::Symlink { target: String::from_utf8(target).unwrap() }
                } else {
                    Node::File { mode, mtime, uid: meta.uid(), data: fs::read(&path).unwrap() }
                },
            );
        }
    }
    shape
}

fn unpacked(bytes: &[u8]) -> (tempfile::TempDir, Unpacked) {
    let dir = tempfile::tempdir().unwrap();
    let expect = Expectation { blob: Some((digest(bytes), bytes.len() as u64)), diff_id: None };
    let unpacked =
        unpack(bytes, open_directory(dir.path()).unwrap(), &expect, Limits::default(), &|_| {}).unwrap();
    (dir, unpacked)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn privileged_a_tree_comes_out_as_it_went_in(shape in shape()) {
        let plain = write(&shape);
        for bytes in [plain.clone(), gzip(&plain), zstd(&plain)] {
            let (dir, unpacked) = unpacked(&bytes);
            prop_assert_eq!(&read(dir.path()), &shape);
            prop_assert_eq!(unpacked.inodes, shape.len() as u64 + 1);
            prop_assert_eq!(unpacked.diff_id, digest(&plain));
        }
    }

    #[test]
    fn privileged_what_the_systems_tar_writes_unpacks_to_the_same_tree(
        shape in shape(),
        format in prop_oneof![Just("gnu"), Just("pax"), Just("ustar")],
    ) {
        let (dir, _) = unpacked(&write(&shape));
        let output = std::process::Command::new("tar")
            .args(["--sort=name", &format!("--format={format}"), "-cC"])
            .arg(dir.path())
            .arg(".")
            .output()
            .unwrap();
        // ustar cannot hold every name and owner; tar says so and leaves the entry out.
        if output.status.success() {
            let (again, _) = unpacked(&output.stdout);
            prop_assert_eq!(read(again.path()), read(dir.path()));
        }
    }

    #[test]
    fn privileged_no_bytes_escape_or_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..64), at in any::<u64>(), shape in shape()) {
        // A valid archive with some bytes replaced: most checks are behind a checksum, so it is put right again.
        let mut plain = write(&shape);
        let start = usize::try_from(at % plain.len() as u64).unwrap();
        bytes.truncate(plain.len() - start);
        plain[start..start + bytes.len()].copy_from_slice(&bytes);
        let block = start / 512 * 512;
        if plain.len() >= block + 512 {
            let header = &mut plain[block..block + 512];
            let mut fixed = tar::Header::new_old();
            fixed.as_mut_bytes().copy_from_slice(header);
            fixed.set_cksum();
            header.copy_from_slice(fixed.as_bytes());
        }
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("layer")).unwrap();
        let root = open_directory(&dir.path().join("layer")).unwrap();
        let limits = Limits { plain_bytes_max: 1 << 20 };
        let _ = unpack(&plain[..], root, &Expectation { blob: None, diff_id: None }, limits, &|_| {});
        prop_assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        let parent = open_directory(dir.path()).unwrap();
        remove_tree(std::os::fd::AsFd::as_fd(&parent), std::ffi::OsStr::from_bytes(b"layer")).unwrap();
    }
}
