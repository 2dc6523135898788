//! What runs: command, environment, working directory, capabilities, labels, stop signal.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use oci_spec::image::ImageConfiguration;
use oci_spec::runtime::{
    Capability, LinuxCapabilities, LinuxCapabilitiesBuilder, Process, ProcessBuilder, UserBuilder,
};
use serde::{Deserialize, Serialize};

use super::lsm::SelinuxLabels;
use super::{BundleError, BundleInput, Host};
use crate::container::cdi::Edits;
use crate::container::handler::Features;
use crate::container::spec::{ContainerSpec, Security};
use crate::container::user::Resolved;
use crate::sys::signal;

/// What a container gets that asks for nothing: the least that both CRI-O and containerd give.
const DEFAULT_CAPABILITIES: [Capability; 9] = [
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fsetid,
    Capability::Fowner,
    Capability::Setgid,
    Capability::Setuid,
    Capability::Setpcap,
    Capability::NetBindService,
    Capability::Kill,
];

/// By the kernel's number (linux/capability.h).
const BY_NUMBER: [Capability; 41] = [
    Capability::Chown,
    Capability::DacOverride,
    Capability::DacReadSearch,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Setgid,
    Capability::Setuid,
    Capability::Setpcap,
    Capability::LinuxImmutable,
    Capability::NetBindService,
    Capability::NetBroadcast,
    Capability::NetAdmin,
    Capability::NetRaw,
    Capability::IpcLock,
    Capability::IpcOwner,
    Capability::SysModule,
    Capability::SysRawio,
    Capability::SysChroot,
    Capability::SysPtrace,
    Capability::SysPacct,
    Capability::SysAdmin,
    Capability::SysBoot,
    Capability::SysNice,
    Capability::SysResource,
    Capability::SysTime,
    Capability::SysTtyConfig,
    Capability::Mknod,
    Capability::Lease,
    Capability::AuditWrite,
    Capability::AuditControl,
    Capability::Setfcap,
    Capability::MacOverride,
    Capability::MacAdmin,
    Capability::Syslog,
    Capability::WakeAlarm,
    Capability::BlockSuspend,
    Capability::AuditRead,
    Capability::Perfmon,
    Capability::Bpf,
    Capability::CheckpointRestore,
];

pub(super) fn capabilities_in(mask: u64) -> Vec<Capability> {
    BY_NUMBER.iter().enumerate().filter(|(n, _)| mask & (1 << n) != 0).map(|(_, one)| *one).collect()
}

/// A bit for each capability that is not among `known`, which has them by their names.
pub(crate) fn capabilities_but(known: &[String]) -> u64 {
    let unknown = BY_NUMBER.iter().map(|one| !known.contains(&format!("CAP_{one}")));
    unknown.enumerate().fold(0, |mask, (number, unknown)| mask | u64::from(unknown) << number)
}

/// The sets of one container: what it may use, and what survives an exec as non-root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CapabilitySets {
    pub(super) effective: HashSet<Capability>,
    pub(super) ambient: HashSet<Capability>,
}

impl CapabilitySets {
    /// Inheritable is empty (CVE-2022-24769) but for the ambient ones, which the kernel keeps only there.
    fn to_oci(&self) -> Result<LinuxCapabilities, BundleError> {
        Ok(LinuxCapabilitiesBuilder::default()
            .bounding(self.effective.clone())
            .effective(self.effective.clone())
            .permitted(self.effective.clone())
            .inheritable(self.ambient.clone())
            .ambient(self.ambient.clone())
            .build()?)
    }
}

/// `ALL` first, then what is named, added before dropped.
pub(super) fn capabilities(
    security: &Security,
    host: &Host,
    features: Features,
    warnings: &mut Vec<String>,
) -> Result<CapabilitySets, BundleError> {
    let asked = &security.capabilities;
    let unknown = capabilities_in(features.unknown_capabilities);
    let there = |one: &Capability| host.capabilities.contains(one) && !unknown.contains(one);
    let all = |names: &[String]| names.iter().any(|name| name.eq_ignore_ascii_case("ALL"));
    let named = |names: &[String]| {
        names
            .iter()
            .filter(|name| !name.eq_ignore_ascii_case("ALL"))
            .map(|name| parse(name))
            .collect::<Result<Vec<_>, _>>()
    };
    let everything = || host.capabilities.iter().copied().filter(there).collect::<HashSet<_>>();
    let mut effective: HashSet<Capability> = if security.privileged {
        everything()
    } else {
        let mut set = DEFAULT_CAPABILITIES.into_iter().collect();
        if all(&asked.add) {
            set = everything();
        }
        if all(&asked.drop) {
            set = HashSet::new();
        }
        set.extend(named(&asked.add)?);
        for one in named(&asked.drop)? {
            set.remove(&one);
        }
        set
    };
    let ambient: HashSet<Capability> = if all(&asked.add_ambient) {
        effective.clone()
    } else {
        named(&asked.add_ambient)?.into_iter().collect()
    };
    effective.extend(&ambient);
    let mut missing: Vec<String> =
        effective.iter().filter(|one| !there(one)).map(ToString::to_string).collect();
    if !missing.is_empty() {
        missing.sort();
        warnings.push(format!(
            "capabilities {} are left out: this host or the handler's runtime does not have them",
            missing.join(", ")
        ));
    }
    let have = |set: HashSet<Capability>| set.into_iter().filter(there).collect();
    Ok(CapabilitySets { effective: have(effective), ambient: have(ambient) })
}

fn parse(name: &str) -> Result<Capability, BundleError> {
    let upper = name.to_ascii_uppercase();
    let short = upper.strip_prefix("CAP_").unwrap_or(&upper);
    Capability::from_str(short).map_err(|_| BundleError::Capability(name.to_owned()))
}

pub(super) fn process(
    input: &BundleInput<'_>,
    who: &Resolved,
    capabilities: &CapabilitySets,
    edits: &Edits,
    labels: Option<&SelinuxLabels>,
    warnings: &mut Vec<String>,
) -> Result<Process, BundleError> {
    let security = &input.spec.security;
    let user = UserBuilder::default()
        .uid(who.user.uid)
        .gid(who.user.gid)
        .additional_gids(who.user.supplemental_groups.clone())
        .build()?;
    let mut builder = ProcessBuilder::default()
        .terminal(input.spec.tty)
        .user(user)
        .args(args(input.spec, input.image)?)
        .env(env(input, &edits.env, &who.home)?)
        .cwd(cwd(input.spec, input.image))
        .capabilities(capabilities.to_oci()?)
        .no_new_privileges(security.no_new_privs);
    // Always said: the monitor, whose score it would inherit, is among the last that the kernel kills.
    let score = input.spec.resources.oom_score_adj.unwrap_or(0);
    if !(-1000..=1000).contains(&score) {
        let why = "-1000 to 1000 was expected";
        return Err(BundleError::Resource { field: "oom_score_adj", value: score.to_string(), why });
    }
    let least = input.host.oom_score_adj_min;
    if score < least {
        warnings.push(format!(
            "oom_score_adj is {least} instead of {score}: lowering it takes CAP_SYS_RESOURCE, which brigd lacks"
        ));
    }
    builder = builder.oom_score_adj(score.max(least));
    if let Some(profile) = input.host.modules.apparmor_profile(security)? {
        builder = builder.apparmor_profile(profile);
    }
    if let Some(labels) = labels {
        builder = builder.selinux_label(&labels.process);
    }
    let mut process = builder.build()?;
    // The builder's default is a limit on open files; what is not configured a container inherits from the daemon.
    process.set_rlimits((!input.host.rlimits.is_empty()).then(|| input.host.rlimits.clone()));
    Ok(process)
}

/// CRI: `command` replaces the entrypoint, `args` the image's cmd; a command alone takes the image's cmd with it.
fn args(spec: &ContainerSpec, image: &ImageConfiguration) -> Result<Vec<String>, BundleError> {
    let config = image.config().as_ref();
    let entrypoint = config.and_then(|config| config.entrypoint().clone()).unwrap_or_default();
    let cmd = config.and_then(|config| config.cmd().clone()).unwrap_or_default();
    let mut all = if spec.command.is_empty() { entrypoint } else { spec.command.clone() };
    if !spec.args.is_empty() {
        all.extend(spec.args.iter().cloned());
    } else if spec.command.is_empty() {
        all.extend(cmd);
    }
    match all.first() {
        Some(first) if !first.is_empty() => Ok(all),
        _ => Err(BundleError::NoCommand),
    }
}

/// Defaults, then the image's, the request's, and what devices need: the later wins, in the place of the first.
fn env(input: &BundleInput<'_>, devices: &[String], home: &Path) -> Result<Vec<String>, BundleError> {
    let mut all: Vec<(String, String)> =
        vec![("PATH".to_owned(), "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned())];
    if input.spec.tty {
        all.push(("TERM".to_owned(), "xterm".to_owned()));
    }
    if !input.pod.hostname.is_empty() {
        all.push(("HOSTNAME".to_owned(), input.pod.hostname.to_owned()));
    }
    let mut set = |key: &str, value: &str| -> Result<(), BundleError> {
        if key.contains('\0') || value.contains('\0') {
            return Err(BundleError::BadEnv(key.to_owned()));
        }
        match all.iter_mut().find(|(known, _)| known == key) {
            Some((_, old)) => *old = value.to_owned(),
            None => all.push((key.to_owned(), value.to_owned())),
        }
        Ok(())
    };
    let image = input.image.config().as_ref().and_then(|config| config.env().as_deref()).unwrap_or_default();
    for line in image {
        // An entry without '=' is no variable; one that starts with it has no name.
        if let Some((key, value)) = line.split_once('=').filter(|(key, _)| !key.is_empty()) {
            set(key, value)?;
        }
    }
    for (key, value) in &input.spec.envs {
        set(key, value)?;
    }
    for (key, value) in devices.iter().filter_map(|line| line.split_once('=')) {
        set(key, value)?;
    }
    if !all.iter().any(|(key, _)| key == "HOME") {
        all.push(("HOME".to_owned(), home.to_string_lossy().into_owned()));
    }
    Ok(all.into_iter().map(|(key, value)| format!("{key}={value}")).collect())
}

fn cwd(spec: &ContainerSpec, image: &ImageConfiguration) -> PathBuf {
    let image = image.config().as_ref().and_then(|config| config.working_dir().as_deref());
    let asked = spec.working_dir.as_deref().filter(|dir| !dir.is_empty()).or(image).unwrap_or("/");
    // `join` keeps an absolute path as it is.
    Path::new("/").join(asked)
}

/// How a container is asked to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct StopSignal(pub(crate) i32);

impl FromStr for StopSignal {
    type Err = BundleError;

    /// A name with or without `SIG`, `SIGRTMIN+n`, `SIGRTMAX-n`, or a number.
    fn from_str(text: &str) -> Result<Self, BundleError> {
        signal::parse(text).map(Self).ok_or_else(|| BundleError::StopSignal(text.to_owned()))
    }
}

impl std::fmt::Display for StopSignal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&signal::name(self.0))
    }
}

/// The request's, else the image's, else SIGTERM.
pub(crate) fn stop_signal(
    spec: &ContainerSpec,
    image: &ImageConfiguration,
) -> Result<StopSignal, BundleError> {
    let image = image.config().as_ref().and_then(|config| config.stop_signal().as_deref());
    match spec.stop_signal.as_deref().or(image).filter(|text| !text.is_empty()) {
        Some(text) => text.parse(),
        None => Ok(StopSignal(15)),
    }
}
