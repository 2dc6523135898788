//! config.json: what we read of it, and what must hold before anything is changed.
//!
//! The types are ours rather than oci-spec's where a value may be wrong in a way that deserves a better message than
//! the deserializer's (an unknown capability is a warning, not an error), and oci-spec's where they are handed on.

use std::collections::{BTreeMap, HashSet};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxResources, LinuxSeccomp};
use serde::{Deserialize, Serialize};

use super::error::{Attempt, Error};
use crate::sys::namespace::{Kind, Kinds};
use crate::sys::sysctl;

/// The version of the runtime specification that this runtime follows.
pub(super) const OCI_VERSION: &str = "1.2.0";
/// Kubernetes keeps whole pods in annotations, at most 256 KiB of them; seccomp profiles add some 40 KiB.
const CONFIG_BYTES_MAX: u64 = 4 << 20;
/// `UTS_LEN`, uname(2).
const HOSTNAME_BYTES_MAX: usize = 64;
/// user_namespaces(7): lines in uid_map.
const MAPPINGS_MAX: usize = 340;

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Config {
    pub(super) oci_version: String,
    pub(super) root: Option<Root>,
    #[serde(default)]
    pub(super) mounts: Vec<Mount>,
    pub(super) process: Option<Process>,
    pub(super) hostname: Option<String>,
    pub(super) domainname: Option<String>,
    #[serde(default)]
    pub(super) hooks: Hooks,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) annotations: BTreeMap<String, String>,
    #[serde(default)]
    pub(super) linux: Linux,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct Root {
    pub(super) path: PathBuf,
    #[serde(default)]
    pub(super) readonly: bool,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Mount {
    pub(super) destination: PathBuf,
    #[serde(rename = "type")]
    pub(super) kind: Option<String>,
    pub(super) source: Option<PathBuf>,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) options: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) uid_mappings: Vec<IdMapping>,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) gid_mappings: Vec<IdMapping>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct IdMapping {
    #[serde(rename = "containerID")]
    pub(super) container_id: u32,
    #[serde(rename = "hostID")]
    pub(super) host_id: u32,
    pub(super) size: u32,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Process {
    #[serde(default)]
    pub(super) terminal: bool,
    pub(super) console_size: Option<ConsoleSize>,
    #[serde(default)]
    pub(super) user: User,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) args: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) env: Vec<String>,
    pub(super) cwd: PathBuf,
    pub(super) capabilities: Option<Capabilities>,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) rlimits: Vec<Rlimit>,
    #[serde(default)]
    pub(super) no_new_privileges: bool,
    pub(super) apparmor_profile: Option<String>,
    pub(super) oom_score_adj: Option<i32>,
    pub(super) selinux_label: Option<String>,
    pub(super) io_priority: Option<IoPriority>,
    pub(super) scheduler: Option<Scheduler>,
    #[serde(rename = "execCPUAffinity")]
    pub(super) exec_cpu_affinity: Option<serde_json::Value>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
pub(super) struct ConsoleSize {
    pub(super) height: u16,
    pub(super) width: u16,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct User {
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) umask: Option<u32>,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) additional_gids: Vec<u32>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Capabilities {
    #[serde(deserialize_with = "or_default")]
    pub(super) bounding: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub(super) effective: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub(super) inheritable: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub(super) permitted: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub(super) ambient: Vec<String>,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct Rlimit {
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) soft: u64,
    pub(super) hard: u64,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct IoPriority {
    pub(super) class: String,
    #[serde(default)]
    pub(super) priority: i64,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct Scheduler {
    pub(super) policy: String,
    #[serde(default)]
    pub(super) nice: i32,
    #[serde(default)]
    pub(super) priority: i32,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) flags: Vec<String>,
    #[serde(default)]
    pub(super) runtime: u64,
    #[serde(default)]
    pub(super) deadline: u64,
    #[serde(default)]
    pub(super) period: u64,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Hooks {
    #[serde(deserialize_with = "or_default")]
    pub(super) prestart: Vec<Hook>,
    #[serde(deserialize_with = "or_default")]
    pub(super) create_runtime: Vec<Hook>,
    #[serde(deserialize_with = "or_default")]
    pub(super) create_container: Vec<Hook>,
    #[serde(deserialize_with = "or_default")]
    pub(super) start_container: Vec<Hook>,
    #[serde(deserialize_with = "or_default")]
    pub(super) poststart: Vec<Hook>,
    #[serde(deserialize_with = "or_default")]
    pub(super) poststop: Vec<Hook>,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct Hook {
    pub(super) path: PathBuf,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) args: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) env: Vec<String>,
    /// Seconds.
    pub(super) timeout: Option<u64>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Linux {
    #[serde(deserialize_with = "or_default")]
    pub(super) uid_mappings: Vec<IdMapping>,
    #[serde(deserialize_with = "or_default")]
    pub(super) gid_mappings: Vec<IdMapping>,
    #[serde(deserialize_with = "or_default")]
    pub(super) sysctl: BTreeMap<String, String>,
    pub(super) resources: Option<LinuxResources>,
    pub(super) cgroups_path: Option<PathBuf>,
    #[serde(deserialize_with = "or_default")]
    pub(super) namespaces: Vec<Namespace>,
    #[serde(deserialize_with = "or_default")]
    pub(super) devices: Vec<Device>,
    pub(super) seccomp: Option<LinuxSeccomp>,
    pub(super) rootfs_propagation: Option<String>,
    #[serde(deserialize_with = "or_default")]
    pub(super) masked_paths: Vec<PathBuf>,
    #[serde(deserialize_with = "or_default")]
    pub(super) readonly_paths: Vec<PathBuf>,
    pub(super) mount_label: Option<String>,
    pub(super) intel_rdt: Option<serde_json::Value>,
    pub(super) personality: Option<Personality>,
    #[serde(deserialize_with = "or_default")]
    pub(super) time_offsets: BTreeMap<String, TimeOffset>,
    pub(super) net_devices: Option<serde_json::Value>,
    pub(super) memory_policy: Option<serde_json::Value>,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct Namespace {
    #[serde(rename = "type")]
    pub(super) kind: String,
    #[serde(default)]
    pub(super) path: PathBuf,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Device {
    pub(super) path: PathBuf,
    #[serde(rename = "type")]
    pub(super) kind: String,
    #[serde(default)]
    pub(super) major: u32,
    #[serde(default)]
    pub(super) minor: u32,
    pub(super) file_mode: Option<u32>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct Personality {
    pub(super) domain: String,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) flags: Vec<String>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
pub(super) struct TimeOffset {
    #[serde(default)]
    pub(super) secs: i64,
    #[serde(default)]
    pub(super) nanosecs: u32,
}

/// Go writes an empty list as `null`.
fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

/// What `state` prints and hooks read.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct StateDocument<'a> {
    pub(super) oci_version: &'a str,
    pub(super) id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) pid: Option<i32>,
    pub(super) status: &'a str,
    pub(super) bundle: &'a Path,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) rootfs: Option<&'a Path>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) created: Option<&'a str>,
    pub(super) annotations: &'a BTreeMap<String, String>,
}

/// What a seccomp agent gets with the listener (runtime-spec, "The Container Process State").
#[derive(Debug)]
pub(super) struct SeccompDocument(serde_json::Value);

pub(super) fn seccomp_document(config: &Config, state: &StateDocument<'_>) -> SeccompDocument {
    let metadata = config.linux.seccomp.as_ref().and_then(|profile| profile.listener_metadata().clone());
    SeccompDocument(serde_json::json!({
        "ociVersion": OCI_VERSION,
        "fds": ["seccompFd"],
        "pid": 0,
        "metadata": metadata.unwrap_or_default(),
        "state": state,
    }))
}

impl Config {
    /// What SELinux is to see on the file systems that are made for the container, if anything.
    pub(super) fn mount_label(&self) -> Option<&str> {
        self.linux.mount_label.as_deref().filter(|label| !label.is_empty())
    }
}

impl SeccompDocument {
    /// The document's bytes for the process of that pid.
    pub(super) fn with_pid(mut self, pid: i32) -> Vec<u8> {
        self.0["pid"] = pid.into();
        self.0.to_string().into_bytes()
    }
}

/// Reads a document of bounded size.
pub(super) fn read_bounded(path: &Path) -> Result<Vec<u8>, Error> {
    let file = std::fs::File::open(path).attempt(|| format!("open {}", path.display()))?;
    let mut bytes = Vec::new();
    file.take(CONFIG_BYTES_MAX + 1).read_to_end(&mut bytes).attempt(|| format!("read {}", path.display()))?;
    if bytes.len() as u64 > CONFIG_BYTES_MAX {
        return Err(Error::invalid(
            path.display().to_string(),
            format!("more than {CONFIG_BYTES_MAX} bytes"),
            "that is the limit",
        ));
    }
    Ok(bytes)
}

pub(super) fn parse<'a, T: Deserialize<'a>>(bytes: &'a [u8], what: impl Into<String>) -> Result<T, Error> {
    serde_json::from_slice(bytes).map_err(|source| Error::Json { what: what.into(), source })
}

/// The namespaces of a container.
#[derive(Debug, Default)]
pub(super) struct Namespaces {
    pub(super) new: Kinds,
    /// In the order of [`Kind::ALL`].
    pub(super) joined: Vec<(Kind, PathBuf)>,
}

impl Namespaces {
    pub(super) fn joins(&self, kind: Kind) -> bool {
        self.joined.iter().any(|(joined, _)| *joined == kind)
    }
    /// Whether the container has such a namespace apart from ours.
    pub(super) fn has(&self, kind: Kind) -> bool {
        self.new.contains(kind) || self.joins(kind)
    }
}

/// Everything that can be known to be wrong by reading alone.
pub(super) fn validate(config: &Config, rootfs_given: bool) -> Result<Namespaces, Error> {
    if !(config.oci_version.starts_with("1.") && config.oci_version.len() <= 32) {
        return Err(Error::invalid("ociVersion", &config.oci_version, "this runtime reads versions 1.x"));
    }
    match &config.root {
        None if !rootfs_given => {
            return Err(Error::invalid("root", "missing", "a container needs a root.path"));
        }
        Some(root) if root.path.as_os_str().is_empty() && !rootfs_given => {
            return Err(Error::invalid("root.path", "", "it must name a directory"));
        }
        _ => {}
    }
    let namespaces = namespaces(&config.linux)?;
    if !namespaces.new.contains(Kind::Mount) {
        return Err(Error::invalid(
            "linux.namespaces",
            "without a new mount namespace",
            "the root filesystem is set up in a mount namespace of the container's own",
        ));
    }
    for (field, name) in [("hostname", &config.hostname), ("domainname", &config.domainname)] {
        let Some(name) = name.as_ref().filter(|name| !name.is_empty()) else { continue };
        if name.len() > HOSTNAME_BYTES_MAX {
            return Err(Error::invalid(field, name, format!("the limit is {HOSTNAME_BYTES_MAX} bytes")));
        }
        if !namespaces.has(Kind::Uts) {
            return Err(Error::invalid(field, name, "there is no uts namespace to set it in"));
        }
    }
    let linux = &config.linux;
    let mapped = !linux.uid_mappings.is_empty() || !linux.gid_mappings.is_empty();
    if namespaces.new.contains(Kind::User) {
        for (field, mappings) in
            [("linux.uidMappings", &linux.uid_mappings), ("linux.gidMappings", &linux.gid_mappings)]
        {
            if mappings.is_empty() {
                return Err(Error::invalid(
                    field,
                    "empty",
                    "a new user namespace needs at least one mapping",
                ));
            }
            check_mappings(field, mappings)?;
        }
    } else if mapped && !namespaces.joins(Kind::User) {
        return Err(Error::invalid("linux.uidMappings", "given", "there is no user namespace to map into"));
    }
    if !linux.time_offsets.is_empty() {
        if !namespaces.new.contains(Kind::Time) {
            return Err(Error::invalid(
                "linux.timeOffsets",
                "given",
                "there is no new time namespace to set them in",
            ));
        }
        for clock in linux.time_offsets.keys() {
            if clock != "monotonic" && clock != "boottime" {
                return Err(Error::invalid(
                    "linux.timeOffsets",
                    clock,
                    "the clocks are monotonic and boottime",
                ));
            }
        }
    }
    for (index, mount) in config.mounts.iter().enumerate() {
        let field = |name: &str| format!("mounts[{index}].{name}");
        check_text(&field("destination"), mount.destination.as_os_str().as_bytes())?;
        if mount.destination.as_os_str().is_empty() {
            return Err(Error::invalid(field("destination"), "", "it must be an absolute path"));
        }
        if mount.uid_mappings.is_empty() != mount.gid_mappings.is_empty() {
            return Err(Error::invalid(
                field("uidMappings"),
                "one-sided",
                "uid and gid mappings go together",
            ));
        }
        check_mappings(&field("uidMappings"), &mount.uid_mappings)?;
        check_mappings(&field("gidMappings"), &mount.gid_mappings)?;
    }
    for (field, paths) in
        [("linux.maskedPaths", &linux.masked_paths), ("linux.readonlyPaths", &linux.readonly_paths)]
    {
        for path in paths {
            check_text(field, path.as_os_str().as_bytes())?;
            if !path.is_absolute() {
                return Err(Error::invalid(field, path, "paths must be absolute"));
            }
        }
    }
    if let Some(mode) = &linux.rootfs_propagation
        && super::mounts::propagation(mode).is_none()
        && !mode.is_empty()
    {
        return Err(Error::invalid(
            "linux.rootfsPropagation",
            mode,
            "the modes are shared, slave, private and unbindable, with an r in front for all mounts below",
        ));
    }
    for (index, device) in linux.devices.iter().enumerate() {
        if !["c", "u", "b", "p"].contains(&device.kind.as_str()) {
            return Err(Error::invalid(
                format!("linux.devices[{index}].type"),
                &device.kind,
                "the types are c, u, b and p",
            ));
        }
        if !device.path.is_absolute() {
            return Err(Error::invalid(
                format!("linux.devices[{index}].path"),
                &device.path,
                "it must be absolute",
            ));
        }
    }
    check_sysctls(&linux.sysctl, &namespaces)?;
    for (field, value) in [
        ("linux.intelRdt", &linux.intel_rdt),
        ("linux.netDevices", &linux.net_devices),
        ("linux.memoryPolicy", &linux.memory_policy),
    ] {
        if value.as_ref().is_some_and(|value| !value.is_null()) {
            return Err(Error::Unsupported(field.to_owned()));
        }
    }
    for (name, hooks) in [
        ("prestart", &config.hooks.prestart),
        ("createRuntime", &config.hooks.create_runtime),
        ("createContainer", &config.hooks.create_container),
        ("startContainer", &config.hooks.start_container),
        ("poststart", &config.hooks.poststart),
        ("poststop", &config.hooks.poststop),
    ] {
        for (index, hook) in hooks.iter().enumerate() {
            if !hook.path.is_absolute() {
                return Err(Error::invalid(
                    format!("hooks.{name}[{index}].path"),
                    &hook.path,
                    "it must be absolute",
                ));
            }
            if hook.timeout == Some(0) {
                return Err(Error::invalid(
                    format!("hooks.{name}[{index}].timeout"),
                    0,
                    "it must be at least 1 s",
                ));
            }
        }
    }
    if config.annotations.contains_key("") {
        return Err(Error::invalid("annotations", "", "a key must not be empty"));
    }
    match &config.process {
        None => Err(Error::invalid("process", "missing", "there would be nothing to start")),
        Some(process) => {
            check_process(process)?;
            Ok(namespaces)
        }
    }
}

fn namespaces(linux: &Linux) -> Result<Namespaces, Error> {
    let mut found = Namespaces::default();
    let mut seen = HashSet::new();
    for (index, namespace) in linux.namespaces.iter().enumerate() {
        let kind = match namespace.kind.as_str() {
            "user" => Kind::User,
            "pid" => Kind::Pid,
            "network" => Kind::Net,
            "ipc" => Kind::Ipc,
            "uts" => Kind::Uts,
            "cgroup" => Kind::Cgroup,
            "time" => Kind::Time,
            "mount" => Kind::Mount,
            other => {
                return Err(Error::invalid(
                    format!("linux.namespaces[{index}].type"),
                    other,
                    "the types are cgroup, ipc, mount, network, pid, time, user and uts",
                ));
            }
        };
        if !seen.insert(kind) {
            return Err(Error::invalid("linux.namespaces", &namespace.kind, "each type may be given once"));
        }
        if namespace.path.as_os_str().is_empty() {
            found.new.insert(kind);
        } else if namespace.path.is_absolute() {
            found.joined.push((kind, namespace.path.clone()));
        } else {
            return Err(Error::invalid(
                format!("linux.namespaces[{index}].path"),
                &namespace.path,
                "it must be absolute",
            ));
        }
    }
    found.joined.sort_by_key(|(kind, _)| Kind::ALL.iter().position(|other| other == kind));
    Ok(found)
}

fn check_mappings(field: &str, mappings: &[IdMapping]) -> Result<(), Error> {
    if mappings.len() > MAPPINGS_MAX {
        let count = format!("{} mappings", mappings.len());
        return Err(Error::invalid(field, count, format!("the kernel takes at most {MAPPINGS_MAX}")));
    }
    for mapping in mappings {
        let fits = |first: u32| first.checked_add(mapping.size).is_some();
        if mapping.size == 0 || !fits(mapping.container_id) || !fits(mapping.host_id) {
            return Err(Error::invalid(
                field,
                mapping,
                "a mapping has a size of at least 1 and stays below 2^32",
            ));
        }
    }
    Ok(())
}

/// Only sysctls that belong to a namespace which the container does not share with the host may be set.
fn check_sysctls(sysctls: &BTreeMap<String, String>, namespaces: &Namespaces) -> Result<(), Error> {
    for (key, value) in sysctls {
        sysctl::check(key, value, |kind| namespaces.has(kind))
            .map_err(|why| Error::invalid(format!("linux.sysctl[{key:?}]"), value, why.to_string()))?;
    }
    Ok(())
}

/// The checks that `create` and `exec` share.
pub(super) fn check_process(process: &Process) -> Result<(), Error> {
    if process.args.is_empty() || process.args[0].is_empty() {
        return Err(Error::invalid("process.args", &process.args, "it must name a program"));
    }
    for arg in &process.args {
        check_text("process.args", arg.as_bytes())?;
    }
    for env in &process.env {
        check_text("process.env", env.as_bytes())?;
        if !matches!(env.find('='), Some(1..)) {
            return Err(Error::invalid("process.env", env, "each entry must be NAME=VALUE"));
        }
    }
    check_text("process.cwd", process.cwd.as_os_str().as_bytes())?;
    if !process.cwd.is_absolute() {
        return Err(Error::invalid("process.cwd", &process.cwd, "it must be an absolute path"));
    }
    if let Some(umask) = process.user.umask.filter(|umask| *umask > 0o777) {
        return Err(Error::invalid("process.user.umask", format!("0{umask:o}"), "the limit is 0777"));
    }
    if let Some(adjust) = process.oom_score_adj.filter(|adjust| !(-1000..=1000).contains(adjust)) {
        return Err(Error::invalid("process.oomScoreAdj", adjust, "the range is -1000 to 1000"));
    }
    if let Some(priority) = &process.io_priority
        && (super::user::io_class(&priority.class).is_none() || !(0..=7).contains(&priority.priority))
    {
        return Err(Error::invalid(
            "process.ioPriority",
            priority,
            "classes are IOPRIO_CLASS_RT, _BE and _IDLE, priorities 0 to 7",
        ));
    }
    if let Some(scheduler) = &process.scheduler {
        super::user::scheduling(scheduler)?;
    }
    if process.exec_cpu_affinity.as_ref().is_some_and(|value| !value.is_null()) {
        return Err(Error::Unsupported("process.execCPUAffinity".to_owned()));
    }
    let mut seen = HashSet::new();
    for (index, limit) in process.rlimits.iter().enumerate() {
        let field = format!("process.rlimits[{index}]");
        if super::user::resource(&limit.kind).is_none() {
            return Err(Error::invalid(
                field,
                &limit.kind,
                "it is not a limit of getrlimit(2), as in RLIMIT_NOFILE",
            ));
        }
        if limit.soft > limit.hard {
            return Err(Error::invalid(field, limit, "the soft limit must not exceed the hard one"));
        }
        if !seen.insert(&limit.kind) {
            return Err(Error::invalid(field, &limit.kind, "each limit may be given once"));
        }
    }
    Ok(())
}

fn check_text(field: &str, text: &[u8]) -> Result<(), Error> {
    if text.contains(&0) {
        return Err(Error::invalid(
            field,
            String::from_utf8_lossy(text),
            "a NUL byte cannot be passed to the kernel",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn base() -> Value {
        json!({
            "ociVersion": "1.2.0",
            "root": {"path": "rootfs"},
            "process": {"user": {"uid": 0, "gid": 0}, "args": ["/bin/true"], "cwd": "/"},
            "linux": {"namespaces": [{"type": "mount"}, {"type": "pid"}]}
        })
    }

    fn message(change: impl FnOnce(&mut Value)) -> String {
        let mut value = base();
        change(&mut value);
        let config: Config = parse(&serde_json::to_vec(&value).unwrap(), "config.json").unwrap();
        validate(&config, false).map_or_else(|error| error.to_string(), |_| "valid".to_owned())
    }

    #[test]
    fn a_bad_field_is_named_with_its_value_and_limit() {
        assert_eq!(message(|_| {}), "valid");
        type Case = (&'static str, fn(&mut Value));
        let cases: [Case; 12] = [
            ("ociVersion is \"0.9\", but this runtime reads versions 1.x", |v| {
                v["ociVersion"] = json!("0.9")
            }),
            ("process.cwd is \"x\", but it must be an absolute path", |v| v["process"]["cwd"] = json!("x")),
            ("process.args is [], but it must name a program", |v| v["process"]["args"] = json!([])),
            ("process.env is \"=x\", but each entry must be NAME=VALUE", |v| {
                v["process"]["env"] = json!(["=x"])
            }),
            ("process.oomScoreAdj is -1001, but the range is -1000 to 1000", |v| {
                v["process"]["oomScoreAdj"] = json!(-1001)
            }),
            ("hostname is \"x\", but there is no uts namespace to set it in", |v| v["hostname"] = json!("x")),
            ("linux.namespaces is \"pid\", but each type may be given once", |v| {
                v["linux"]["namespaces"] = json!([{"type": "mount"}, {"type": "pid"}, {"type": "pid"}])
            }),
            ("linux.uidMappings is \"empty\", but a new user namespace needs at least one mapping", |v| {
                v["linux"]["namespaces"] = json!([{"type": "mount"}, {"type": "user"}])
            }),
            ("linux.intelRdt is not supported", |v| v["linux"]["intelRdt"] = json!({})),
            ("linux.maskedPaths is \"proc\", but paths must be absolute", |v| {
                v["linux"]["maskedPaths"] = json!(["proc"])
            }),
            (
                "process.rlimits[0] is \"RLIMIT_X\", but it is not a limit of getrlimit(2), as in RLIMIT_NOFILE",
                |v| v["process"]["rlimits"] = json!([{"type": "RLIMIT_X", "soft": 1, "hard": 1}]),
            ),
            ("process is \"missing\", but there would be nothing to start", |v| v["process"] = Value::Null),
        ];
        for (expected, change) in cases {
            assert_eq!(message(change), expected);
        }
    }

    #[test]
    fn only_sysctls_of_an_own_namespace_may_be_set() {
        let with = |key: &str, kind: &str| {
            message(|v| {
                v["linux"]["sysctl"] = json!({key: "1"});
                v["linux"]["namespaces"] = json!([{"type": "mount"}, {"type": kind}]);
            })
        };
        assert_eq!(with("net.ipv4.ip_forward", "network"), "valid");
        assert_eq!(with("kernel.shmmax", "ipc"), "valid");
        assert!(with("net.ipv4.ip_forward", "ipc").contains("needs an own net namespace"));
        assert!(with("kernel.core_pattern", "ipc").contains("would change the whole host"));
    }
}
