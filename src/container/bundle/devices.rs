//! Devices of the host: nodes, and who may open which.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{
    LinuxDevice, LinuxDeviceBuilder, LinuxDeviceCgroup, LinuxDeviceCgroupBuilder, LinuxDeviceType,
};
use rustix::fs::{FileType, major, minor};

use super::{BundleError, BundleInput};
use crate::container::cdi::DeviceNode;
use crate::container::held::HeldFiles;
use crate::container::spec::{RunAsUser, Security};

/// The devices of a container.
#[derive(Debug)]
pub(super) struct Devices {
    pub(super) nodes: Vec<LinuxDevice>,
    pub(super) rules: Vec<LinuxDeviceCgroup>,
    /// Nodes of the host to bind where none can be made.
    pub(super) binds: Vec<Bind>,
}

/// A node of the host, and its place in the container.
#[derive(Debug)]
pub(super) struct Bind {
    host: PathBuf,
    pub(super) place: PathBuf,
    kind: LinuxDeviceType,
    major: i64,
    minor: i64,
}

impl Bind {
    /// Gets hold of the node, and makes sure that it is still the device that the container was allowed.
    pub(super) fn take(&self, held: &mut HeldFiles) -> Result<PathBuf, BundleError> {
        let failed = |source| BundleError::Device { path: self.host.clone(), source };
        let real = held.take(&self.host).map_err(failed)?;
        let file = held.get(&real).expect("taken above");
        let stat = rustix::fs::fstat(file).map_err(|err| failed(err.into()))?;
        let (major, minor) = (i64::from(major(stat.st_rdev)), i64::from(minor(stat.st_rdev)));
        if kind(stat.st_mode) == Some(self.kind) && (major, minor) == (self.major, self.minor) {
            Ok(real)
        } else {
            Err(BundleError::NotDevice(self.host.clone()))
        }
    }
}

/// A node, and where the host has it.
struct Found {
    node: LinuxDevice,
    host: PathBuf,
}

pub(super) fn devices(
    input: &BundleInput<'_>,
    cdi: &[DeviceNode],
    owner: u32,
    warnings: &mut Vec<String>,
) -> Result<Devices, BundleError> {
    let privileged = input.spec.security.privileged;
    let mut nodes = Vec::new();
    let mut rules = vec![rule(privileged, LinuxDeviceType::A, None, None, "rwm")];
    if privileged {
        // Devices come and go while this walks; one that vanishes is not worth failing for.
        if let Err(err) = walk(Path::new("/dev"), Path::new("/dev"), HOST_DEVICES_MAX, &mut nodes) {
            warnings.push(format!("not every device of the host is in the container: {err}"));
        }
        nodes.retain(|found| {
            let path = found.node.path();
            !path.starts_with("/dev/pts") && path != Path::new("/dev/console")
        });
    } else {
        use LinuxDeviceType::{B, C};
        rules.push(rule(true, C, None, None, "m"));
        rules.push(rule(true, B, None, None, "m"));
        // null, zero, full, random, urandom, tty, console, ptmx and the terminals of /dev/pts.
        for (major, minor) in [
            (1, Some(3)),
            (1, Some(5)),
            (1, Some(7)),
            (1, Some(8)),
            (1, Some(9)),
            (5, Some(0)),
            (5, Some(1)),
            (5, Some(2)),
            (136, None),
        ] {
            rules.push(rule(true, C, Some(major), minor, "rwm"));
        }
    }
    let mut asked = Vec::new();
    let mut take = |found: Vec<Found>, permissions: &str| -> Result<(), BundleError> {
        if !permissions.chars().all(|letter| "rwm".contains(letter)) {
            let path = found[0].host.clone();
            return Err(BundleError::DevicePermissions { path, permissions: permissions.to_owned() });
        }
        if !privileged {
            rules.extend(found.iter().map(|Found { node, .. }| {
                rule(true, node.typ(), Some(node.major()), Some(node.minor()), permissions)
            }));
        }
        asked.extend(found);
        Ok(())
    };
    for wanted in &input.spec.devices {
        let permissions = if wanted.permissions.is_empty() { "rwm" } else { wanted.permissions.as_str() };
        let metadata = std::fs::metadata(&wanted.host_path)
            .map_err(|source| BundleError::Device { path: wanted.host_path.clone(), source })?;
        let mut found = Vec::new();
        if metadata.is_dir() {
            walk(&wanted.host_path, &wanted.container_path, FOLDER_DEVICES_MAX, &mut found)?;
        } else if let Some(node) = node(&metadata, &wanted.container_path)? {
            found.push(Found { node, host: wanted.host_path.clone() });
        }
        if found.is_empty() {
            return Err(BundleError::NotDevice(wanted.host_path.clone()));
        }
        if input.host.device_ownership {
            found.iter_mut().for_each(|found| own(&mut found.node, &input.spec.security));
        }
        take(found, permissions)?;
    }
    for wanted in cdi {
        let permissions = wanted.permissions.as_deref().filter(|text| !text.is_empty()).unwrap_or("rwm");
        take(vec![of_cdi(wanted, owner)?], permissions)?;
    }
    // A later wish for the same place replaces the earlier, and what the host has there.
    let mut taken = BTreeSet::new();
    asked.reverse();
    asked.retain(|found| taken.insert(found.node.path().clone()));
    asked.reverse();
    nodes.retain(|found| !taken.contains(found.node.path()));
    // No node can be made in a user namespace. A runtime would bind the host's node of the same path, which may be
    // another one.
    let mut binds = Vec::new();
    if input.pod.user_ns.is_some() {
        if input.host.device_ownership && !asked.is_empty() {
            let why = "a user namespace shows the host's own nodes";
            warnings.push(format!("devices do not get the owner that the security context says: {why}"));
        }
        binds.extend(asked.into_iter().map(|Found { node, host }| Bind {
            host,
            place: node.path().clone(),
            kind: node.typ(),
            major: node.major(),
            minor: node.minor(),
        }));
    } else {
        nodes.extend(asked);
    }
    Ok(Devices { nodes: nodes.into_iter().map(|found| found.node).collect(), rules, binds })
}

/// The ids as the request says them: names and groups of the image have no say in who owns a device.
fn own(node: &mut LinuxDevice, security: &Security) {
    if let Some(RunAsUser::Uid(uid)) = &security.run_as_user {
        node.set_uid(Some(*uid));
    }
    if let Some(gid) = security.run_as_group {
        node.set_gid(Some(gid));
    }
}

/// What the specification leaves out, the host's node says; a node without an owner is the container's user's.
fn of_cdi(wanted: &DeviceNode, owner: u32) -> Result<Found, BundleError> {
    let host = wanted.host_path.clone().unwrap_or_else(|| wanted.path.clone());
    let known = match (wanted.kind.as_deref(), wanted.major, wanted.minor) {
        (Some("b"), Some(major), Some(minor)) => Some((LinuxDeviceType::B, major, minor)),
        (Some("c" | "u"), Some(major), Some(minor)) => Some((LinuxDeviceType::C, major, minor)),
        _ => None,
    };
    let (kind, major, minor) = match known {
        Some(known) => known,
        None => {
            let metadata = std::fs::metadata(&host)
                .map_err(|source| BundleError::Device { path: host.clone(), source })?;
            let Some(node) = node(&metadata, &host)? else { return Err(BundleError::NotDevice(host)) };
            (node.typ(), node.major(), node.minor())
        }
    };
    let node = LinuxDeviceBuilder::default()
        .path(&wanted.path)
        .typ(kind)
        .major(major)
        .minor(minor)
        .file_mode(wanted.file_mode.unwrap_or(0o666))
        .uid(wanted.uid.unwrap_or(owner))
        .gid(wanted.gid.unwrap_or(0))
        .build()?;
    Ok(Found { node, host })
}

/// `/dev/dri`, `/dev/snd` and `/dev/infiniband` have a few dozen.
const FOLDER_DEVICES_MAX: usize = 1024;
/// A host with thousands of disks and ttys.
const HOST_DEVICES_MAX: usize = 65_536;

/// Every device below `from`, at the same place below `to`. Symbolic links are not followed.
fn walk(from: &Path, to: &Path, max: usize, nodes: &mut Vec<Found>) -> Result<(), BundleError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| BundleError::Device { path, source }
    };
    let start = nodes.len();
    let mut folders = vec![(from.to_owned(), to.to_owned())];
    while let Some((from, to)) = folders.pop() {
        for entry in std::fs::read_dir(&from).map_err(failed(&from))? {
            let entry = entry.map_err(failed(&from))?;
            let Ok(metadata) = entry.metadata() else { continue };
            let to = to.join(entry.file_name());
            if metadata.is_dir() {
                // Their own file systems in every container.
                if !["/dev/pts", "/dev/shm", "/dev/mqueue", "/dev/fd"]
                    .iter()
                    .any(|skip| entry.path() == Path::new(skip))
                {
                    folders.push((entry.path(), to));
                }
            } else {
                nodes.extend(node(&metadata, &to)?.map(|node| Found { node, host: entry.path() }));
            }
            if nodes.len() - start > max || folders.len() > max {
                return Err(BundleError::TooManyDevices { path: from, max });
            }
        }
    }
    Ok(())
}

/// `None` for what is no device.
fn node(metadata: &std::fs::Metadata, path: &Path) -> Result<Option<LinuxDevice>, BundleError> {
    let Some(kind) = kind(metadata.mode()) else { return Ok(None) };
    Ok(Some(
        LinuxDeviceBuilder::default()
            .path(path)
            .typ(kind)
            .major(i64::from(major(metadata.rdev())))
            .minor(i64::from(minor(metadata.rdev())))
            .file_mode(metadata.mode() & 0o7777)
            .uid(metadata.uid())
            .gid(metadata.gid())
            .build()?,
    ))
}

fn kind(mode: u32) -> Option<LinuxDeviceType> {
    match FileType::from_raw_mode(mode) {
        FileType::CharacterDevice => Some(LinuxDeviceType::C),
        FileType::BlockDevice => Some(LinuxDeviceType::B),
        _ => None,
    }
}

/// `None` is any number.
fn rule(
    allow: bool,
    kind: LinuxDeviceType,
    major: Option<i64>,
    minor: Option<i64>,
    access: &str,
) -> LinuxDeviceCgroup {
    let mut builder = LinuxDeviceCgroupBuilder::default().allow(allow).typ(kind).access(access);
    if let Some(major) = major {
        builder = builder.major(major);
    }
    if let Some(minor) = minor {
        builder = builder.minor(minor);
    }
    builder.build().expect("every required field is set")
}
