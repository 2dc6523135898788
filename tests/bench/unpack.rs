//! Unpacking: a large gzip layer from a registry on loopback, against `tar xzf` of the same bytes.
//!
//! The layer is a part of this machine's /usr, so files have the sizes and the contents that images have. Both sides write
//! into the same file system, by turns, and each begins with nothing left to write back. A pull does more than tar: it
//! receives the blob over HTTP, proves two digests, and has everything on disk when it returns. So tar is shown alone
//! and with a `sync` after it.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use brig::proto::v1::*;

use super::fixture::image::ImageBuilder;
use super::fixture::node::{Node, eventually, put_image};
use super::{at, cpu_time, row};

/// Bytes of files in the layer; a gzip of about a third of that, as distributions' base images.
const PLAIN_BYTES: u64 = 900 << 20;

/// Pairs of a pull and a tar.
const PAIRS: usize = 7;

pub(super) fn unpack() {
    let node = Node::new();
    let scratch = tempfile::tempdir_in(node.dir.path()).expect("a scratch directory");
    let (name, blob) = layer(&node, scratch.path());
    let megabytes = std::fs::metadata(&blob).expect("the layer").len() as f64 / 1e6;
    println!("{:<58} {megabytes:>10.0}", "the gzip layer (MB)");

    let (mut pulled, mut untarred, mut synced) = (Vec::new(), Vec::new(), Vec::new());
    let (mut pull_cpu, mut tar_cpu) = (Vec::new(), Vec::new());
    // The first pair warms the page cache and is not counted.
    for pair in 0..=PAIRS {
        let ours = || pull(&node, &name);
        let theirs = || untar(&blob, scratch.path());
        // Who goes first changes, so that neither always follows the other's deletions.
        let (pull, tar) = if pair % 2 == 0 {
            let pull = ours();
            (pull, theirs())
        } else {
            let tar = theirs();
            (ours(), tar)
        };
        if pair > 0 {
            pulled.push(pull.took);
            pull_cpu.push(pull.cpu);
            untarred.push(tar.took);
            synced.push(tar.synced);
            tar_cpu.push(tar.cpu);
        }
    }
    row("PullImage of it", &pulled);
    row("    processor time of brigd", &pull_cpu);
    row("tar xzf of it", &untarred);
    row("tar xzf of it and sync", &synced);
    row("    processor time of tar and gzip", &tar_cpu);
    println!("{:<58} {:>10} {:>10}", "RATIO of PullImage", "medians", "minima");
    let pairs = [
        ("to tar xzf", &pulled, &untarred),
        ("to tar xzf and sync", &pulled, &synced),
        ("in processor time, to tar xzf", &pull_cpu, &tar_cpu),
    ];
    for (name, own, other) in pairs {
        let ratio = |part| at(own, part) / at(other, part);
        println!("    {name:<54} {:>10.2} {:>10.2}", ratio(50), ratio(0));
    }
}

struct Pull {
    took: Duration,
    cpu: Duration,
}

/// One pull; the image and its layer are gone again afterwards.
fn pull(node: &Node, name: &str) -> Pull {
    write_back();
    let image = Some(ImageSpec { image: name.to_owned(), ..Default::default() });
    let request = PullImageRequest { image: image.clone(), ..Default::default() };
    let (begin, cpu) = (Instant::now(), cpu_time(node.brigd_pid()));
    node.call(node.images.clone().pull_image(request)).expect("the pull");
    let (took, cpu) = (begin.elapsed(), cpu_time(node.brigd_pid()) - cpu);
    node.call(node.images.clone().remove_image(RemoveImageRequest { image })).expect("the removal");
    let layers = node.root().join("layers");
    eventually(|| std::fs::read_dir(&layers).expect("the layers").next().is_none().then_some(()));
    Pull { took, cpu }
}

struct Tar {
    took: Duration,
    /// Until everything is on disk.
    synced: Duration,
    cpu: Duration,
}

fn untar(blob: &Path, scratch: &Path) -> Tar {
    let into = scratch.join("untarred");
    std::fs::create_dir(&into).expect("a directory");
    write_back();
    // The harness only waits meanwhile, so what it and its children compute is what tar and gzip do.
    let (begin, cpu) = (Instant::now(), cpu_time(std::process::id()));
    let tar = Command::new("tar").arg("xzf").arg(blob).arg("-C").arg(&into).status().expect("tar runs");
    let (took, cpu) = (begin.elapsed(), cpu_time(std::process::id()) - cpu);
    let sync = Command::new("sync").arg("-f").arg(&into).status().expect("sync runs");
    let synced = begin.elapsed();
    assert!(tar.success() && sync.success(), "tar {tar}, sync {sync}");
    std::fs::remove_dir_all(&into).expect("it can be removed");
    Tar { took, synced, cpu }
}

fn write_back() {
    assert!(Command::new("sync").status().expect("sync runs").success());
}

/// Publishes the layer as an image and keeps its blob as a file.
fn layer(node: &Node, scratch: &Path) -> (String, PathBuf) {
    let (list, plain, blob) = (scratch.join("list"), scratch.join("plain"), scratch.join("layer.tar.gz"));
    let (mut paths, mut bytes) = (Vec::new(), 0);
    walk(Path::new("/usr"), &mut paths, &mut bytes);
    std::fs::write(&list, paths).expect("the list of files");
    let made = Command::new("tar")
        .args(["--create", "--null", "--no-recursion", "--directory", "/", "--files-from"])
        .arg(&list)
        .arg("--file")
        .arg(&plain)
        .stderr(Stdio::inherit())
        .status();
    assert!(made.expect("tar runs").success());
    let tar = std::fs::read(&plain).expect("the tar");
    std::fs::remove_file(&plain).expect("it can be removed");
    let image = ImageBuilder::new().raw_layer(tar).build();
    std::fs::write(&blob, &image.layers[0].1).expect("room for the layer");
    (put_image(&node.registry, "bench/usr", "latest", &image), blob)
}

/// Names with a NUL after each, parents first, in the order of their names, until the files have [`PLAIN_BYTES`].
fn walk(directory: &Path, paths: &mut Vec<u8>, bytes: &mut u64) {
    let name = directory.strip_prefix("/").expect("the walk began below /");
    paths.extend_from_slice(name.as_os_str().as_bytes());
    paths.push(0);
    let mut entries: Vec<_> = std::fs::read_dir(directory).expect("a directory").flatten().collect();
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        if *bytes >= PLAIN_BYTES {
            return;
        }
        let kind = entry.file_type().expect("the type of a file in /usr");
        if kind.is_dir() {
            walk(&entry.path(), paths, bytes);
        } else if kind.is_file() || kind.is_symlink() {
            *bytes += entry.metadata().expect("the size of a file in /usr").len();
            let path = entry.path();
            let name = path.strip_prefix("/").expect("the walk began below /");
            paths.extend_from_slice(name.as_os_str().as_bytes());
            paths.push(0);
        }
    }
}
