//! What a container sees: the kernel's file systems, the pod's files, the request's mounts.
//!
//! A request's mount replaces a default one at the same place. Parents come before their children, so nothing is hidden by
//! what is mounted later.

use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::{LinuxIdMapping, LinuxIdMappingBuilder, Mount, MountBuilder};

use super::devices::Bind;
use super::{BundleError, BundleInput};
use crate::container::cdi::CdiMount;
use crate::container::held::HeldFiles;
use crate::container::spec::{self, IdMapping, MountSource, NamespaceMode, Propagation};

/// The answer, ready for the spec.
#[derive(Debug)]
pub(super) struct Mounts {
    pub(super) mounts: Vec<Mount>,
    pub(super) sources: Vec<Option<PathBuf>>,
    /// Those sources that somebody else may change.
    pub(super) held: HeldFiles,
    /// Which of those get the container's SELinux label.
    pub(super) relabel: Vec<PathBuf>,
    pub(super) volumes: Vec<PathBuf>,
    /// What the rootfs itself needs for the widest propagation asked for.
    pub(super) rootfs_propagation: Option<&'static str>,
}

struct Planned {
    mount: Mount,
    source: Option<PathBuf>,
}

pub(super) fn mounts(
    input: &BundleInput<'_>,
    edits: &[CdiMount],
    devices: &[Bind],
) -> Result<Mounts, BundleError> {
    let mut planned = defaults(input)?;
    let mut held = HeldFiles::default();
    let mut relabel = Vec::new();
    let mut rootfs_propagation = None;
    let mut requested = Vec::new();
    for mount in &input.spec.mounts {
        let one = request(input, mount, &mut held)?;
        // Only what is the host's: an image's files have the rootfs' label.
        if let (true, MountSource::Host(_), Some(source)) =
            (mount.selinux_relabel, &mount.source, &one.source)
        {
            relabel.push(source.clone());
        }
        match mount.propagation {
            Propagation::Private => {}
            Propagation::HostToContainer => {
                rootfs_propagation.get_or_insert("rslave");
            }
            Propagation::Bidirectional => rootfs_propagation = Some("rshared"),
        }
        requested.push(one);
    }
    for mount in edits {
        requested.push(of_cdi(mount, &mut held)?);
    }
    for device in devices {
        let source = device.take(&mut held)?;
        requested.push(bind(destination(&device.place)?, source, &["rprivate", "nosuid", "noexec", "rw"])?);
    }
    planned.retain(|old| !requested.iter().any(|new| new.mount.destination() == old.mount.destination()));
    let mut volumes = Vec::new();
    if let Some(dir) = input.volumes_dir {
        let declared =
            input.image.config().as_ref().and_then(|config| config.volumes().as_deref()).unwrap_or_default();
        let mut declared: Vec<PathBuf> =
            declared.iter().filter_map(|path| destination(Path::new(path)).ok()).collect();
        declared.sort();
        declared.dedup();
        for (n, path) in declared.into_iter().enumerate() {
            if planned.iter().chain(&requested).any(|one| *one.mount.destination() == path) {
                continue;
            }
            // Numbered, because the image chose the name.
            let source = dir.join(n.to_string());
            planned.push(bind(path, source.clone(), &["rprivate", "rw"])?);
            volumes.push(source);
        }
    }
    planned.extend(requested);
    // Stable, so that of two mounts at one place the later one of the request still wins.
    planned.sort_by_key(|one| one.mount.destination().components().count());
    let (mounts, sources) = planned.into_iter().map(|one| (one.mount, one.source)).unzip();
    Ok(Mounts { mounts, sources, held, relabel, volumes, rootfs_propagation })
}

fn defaults(input: &BundleInput<'_>) -> Result<Vec<Planned>, BundleError> {
    let security = &input.spec.security;
    let pod = input.pod;
    let writable = if security.privileged { "rw" } else { "ro" };
    let mut all = vec![
        kernel("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"])?,
        kernel("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"])?,
        kernel(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        )?,
        kernel("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"])?,
    ];
    if pod.user_ns.is_some() && pod.network_ns.is_none() {
        // sysfs belongs to the network namespace, and the kernel lets only that one's owner mount it.
        all.push(bind("/sys".into(), "/sys".into(), &["rprivate", "nosuid", "noexec", "nodev", writable])?);
    } else {
        all.push(kernel("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", writable])?);
    }
    all.push(kernel(
        "/sys/fs/cgroup",
        "cgroup",
        "cgroup",
        &["nosuid", "noexec", "nodev", "relatime", writable],
    )?);
    let shm = ["nosuid", "noexec", "nodev"];
    all.push(match (pod.shm, &pod.namespaces.ipc) {
        (Some(path), _) => {
            bind("/dev/shm".into(), path.to_owned(), &["rprivate", "nosuid", "noexec", "nodev", "rw"])?
        }
        (None, NamespaceMode::Node) => bind("/dev/shm".into(), "/dev/shm".into(), &["rprivate", "rw"])?,
        (None, _) => {
            let mut options = shm.to_vec();
            options.extend(["mode=1777", "size=65536k"]);
            kernel("/dev/shm", "tmpfs", "shm", &options)?
        }
    });
    let file = if security.readonly_rootfs { "ro" } else { "rw" };
    for (place, path) in [("/etc/resolv.conf", pod.resolv_conf), ("/etc/hostname", pod.hostname_file)] {
        if let Some(path) = path {
            all.push(bind(place.into(), path.to_owned(), &["rprivate", "nosuid", "noexec", "nodev", file])?);
        }
    }
    Ok(all)
}

fn kernel(place: &str, kind: &str, source: &str, options: &[&str]) -> Result<Planned, BundleError> {
    let mount = MountBuilder::default()
        .destination(place)
        .typ(kind)
        .source(source)
        .options(options.iter().map(|option| (*option).to_owned()).collect::<Vec<_>>())
        .build()?;
    Ok(Planned { mount, source: None })
}

fn bind(place: PathBuf, source: PathBuf, options: &[&str]) -> Result<Planned, BundleError> {
    let options =
        std::iter::once("rbind").chain(options.iter().copied()).map(str::to_owned).collect::<Vec<_>>();
    let mount =
        MountBuilder::default().destination(place).typ("bind").source(&source).options(options).build()?;
    Ok(Planned { mount, source: Some(source) })
}

/// An absolute path below the root, without `.` and `..`. The rootfs resolves symbolic links in it later.
fn destination(path: &Path) -> Result<PathBuf, BundleError> {
    let bad = || BundleError::MountDestination(path.to_owned());
    if !path.is_absolute() || path.as_os_str().as_encoded_bytes().contains(&0) {
        return Err(bad());
    }
    let mut clean = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => {
                clean.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    if clean == Path::new("/") { Err(bad()) } else { Ok(clean) }
}

fn request(
    input: &BundleInput<'_>,
    mount: &spec::Mount,
    held: &mut HeldFiles,
) -> Result<Planned, BundleError> {
    let place = destination(&mount.container_path)?;
    if mount.recursive_read_only && !(mount.readonly && mount.propagation == Propagation::Private) {
        return Err(BundleError::RecursiveReadOnly(place));
    }
    if mount.uid_mappings.is_empty() != mount.gid_mappings.is_empty() {
        return Err(BundleError::MountMappings(place));
    }
    let unusable = |path: &Path, source| BundleError::MountSource {
        path: path.to_owned(),
        destination: place.clone(),
        source,
    };
    let (source, readonly) = match &mount.source {
        MountSource::Host(path) => {
            if !path.is_absolute() {
                return Err(unusable(path, std::io::Error::other("not an absolute path")));
            }
            // What is checked from here on is what is mounted.
            let real = held.take(path).map_err(|err| unusable(path, err))?;
            check_propagation(&real, &place, mount.propagation)?;
            (real, mount.readonly)
        }
        // The sub path was followed inside the image when it was mounted.
        MountSource::Image { .. } => {
            let mounted = input.image_mounts.get(&mount.container_path);
            (mounted.ok_or_else(|| BundleError::ImageNotMounted(place.clone()))?.clone(), true)
        }
    };
    let propagation = match mount.propagation {
        Propagation::Private => "rprivate",
        Propagation::HostToContainer => "rslave",
        Propagation::Bidirectional => "rshared",
    };
    let access = match (readonly, mount.recursive_read_only) {
        (_, true) => "rro",
        (true, false) => "ro",
        (false, false) => "rw",
    };
    let mut planned = bind(place, source, &[propagation, access])?;
    // An image's layers have the pod's ids already; the overlay of them takes no mapping.
    let mapped = matches!(mount.source, MountSource::Image { .. });
    if !mount.uid_mappings.is_empty() && !mapped {
        planned.mount.set_uid_mappings(Some(mappings(&mount.uid_mappings)?));
        planned.mount.set_gid_mappings(Some(mappings(&mount.gid_mappings)?));
    }
    Ok(planned)
}

/// A mount that a device needs, with the words of the OCI.
fn of_cdi(wanted: &CdiMount, held: &mut HeldFiles) -> Result<Planned, BundleError> {
    let place = destination(&wanted.container_path)?;
    let is_bind = |word: &String| word == "bind" || word == "rbind";
    let kind = wanted.kind.as_deref().filter(|kind| !kind.is_empty());
    let mut options = wanted.options.clone();
    let source = if matches!(kind, None | Some("bind")) || options.iter().any(is_bind) {
        if !options.iter().any(is_bind) {
            options.push("rbind".to_owned());
        }
        let real = held.take(&wanted.host_path).map_err(|source| BundleError::MountSource {
            path: wanted.host_path.clone(),
            destination: place.clone(),
            source,
        })?;
        Some(real)
    } else {
        None
    };
    let mount = MountBuilder::default()
        .destination(place)
        .typ(if source.is_some() { "bind" } else { kind.unwrap_or("bind") })
        .source(source.as_ref().unwrap_or(&wanted.host_path))
        .options(options)
        .build()?;
    Ok(Planned { mount, source })
}

fn mappings(all: &[IdMapping]) -> Result<Vec<LinuxIdMapping>, BundleError> {
    all.iter()
        .map(|one| {
            Ok(LinuxIdMappingBuilder::default()
                .container_id(one.container)
                .host_id(one.host)
                .size(one.length)
                .build()?)
        })
        .collect()
}

/// Mounts can only travel along a mount that takes part: shared for both ways, shared or slave for one.
fn check_propagation(real: &Path, place: &Path, wanted: Propagation) -> Result<(), BundleError> {
    if wanted == Propagation::Private {
        return Ok(());
    }
    let table = std::fs::read_to_string("/proc/self/mountinfo").map_err(|source| {
        BundleError::MountSource { path: real.to_owned(), destination: place.to_owned(), source }
    })?;
    let options = propagation_of(&table, real);
    let (fits, name) = match wanted {
        Propagation::Bidirectional => (options.contains("shared:"), "shared"),
        _ => (options.contains("shared:") || options.contains("master:"), "shared or slave"),
    };
    if fits {
        Ok(())
    } else {
        Err(BundleError::Propagation { destination: place.to_owned(), path: real.to_owned(), wanted: name })
    }
}

/// The optional fields of the mount that `path` lies on.
fn propagation_of(mountinfo: &str, path: &Path) -> String {
    let mut best: (usize, String) = (0, String::new());
    for line in mountinfo.lines() {
        let Some((left, _)) = line.split_once(" - ") else { continue };
        let mut fields = left.split(' ');
        let Some(point) = fields.nth(4) else { continue };
        let point =
            point.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\");
        // Equal length means mounted over: the later line is the visible one.
        if path.starts_with(&point) && point.len() >= best.0 {
            best = (point.len(), fields.skip(1).collect::<Vec<_>>().join(" "));
        }
    }
    best.1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_innermost_mount_decides_on_propagation() {
        let table = "27 1 254:0 / / rw shared:1 - ext4 /dev/vda rw\n\
            40 27 0:30 / /var/lib rw,relatime - ext4 /dev/vdb rw\n\
            41 40 0:31 / /var/lib/kubelet rw master:7 - tmpfs tmpfs rw\n";
        for (path, expected) in [
            ("/srv/x", "shared:1"),
            ("/var/lib/x", ""),
            ("/var/lib/kubelet/pods", "master:7"),
            ("/var/library", "shared:1"),
        ] {
            assert_eq!(propagation_of(table, Path::new(path)), expected, "{path}");
        }
    }

    #[test]
    fn a_destination_is_below_the_root() {
        for (text, expected) in [
            ("/data", Some("/data")),
            ("/a/../b/./c/", Some("/b/c")),
            ("/", None),
            ("/..", None),
            ("data", None),
        ] {
            assert_eq!(destination(Path::new(text)).ok(), expected.map(PathBuf::from), "{text}");
        }
    }
}
