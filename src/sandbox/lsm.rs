//! Labels of AppArmor and SELinux, for the program to be executed.
//!
//! They are written through procfs, and a write that goes astray is an escape (CVE-2019-19921, CVE-2025-52881): the
//! file is opened beneath a /proc that was verified to be procfs, without following links or crossing mounts.

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags, XattrFlags};

use super::error::{Attempt, Error};
use crate::sys::path::Proc;

/// Errors if the host cannot honour what the process asks for.
pub(super) fn check(
    apparmor: Option<&str>,
    selinux: Option<&str>,
    mount_label: Option<&str>,
) -> Result<(), Error> {
    if let Some(profile) = wanted(apparmor)
        && !apparmor_enabled()
    {
        return Err(Error::invalid(
            "process.apparmorProfile",
            profile,
            "this host has no AppArmor; remove the profile",
        ));
    }
    for (field, label) in [("process.selinuxLabel", selinux), ("linux.mountLabel", mount_label)] {
        if let Some(label) = label.filter(|label| !label.is_empty())
            && !selinux_enabled()
        {
            return Err(Error::invalid(field, label, "this host has no SELinux; remove the label"));
        }
    }
    Ok(())
}

/// "unconfined" is what a process has without AppArmor.
fn wanted(apparmor: Option<&str>) -> Option<&str> {
    apparmor.filter(|profile| !profile.is_empty() && *profile != "unconfined")
}

pub(super) fn apparmor_enabled() -> bool {
    std::fs::read("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.starts_with(b"Y"))
}

pub(super) fn selinux_enabled() -> bool {
    std::path::Path::new("/sys/fs/selinux/enforce").exists()
}

/// Sets the labels that the next execve(2) of process `pid`, which must be the caller, takes on.
pub(super) fn apply(
    proc: &Proc,
    pid: i32,
    apparmor: Option<&str>,
    selinux: Option<&str>,
) -> Result<(), Error> {
    if let Some(profile) = apparmor.filter(|profile| !profile.is_empty())
        && (profile != "unconfined" || apparmor_enabled())
    {
        let text = format!("exec {profile}");
        // Since Linux 5.8 each module has a directory of its own; before, the first module owned attr/exec.
        proc.write(&format!("{pid}/attr/apparmor/exec"), text.as_bytes())
            .or_else(|_| proc.write(&format!("{pid}/attr/exec"), text.as_bytes()))
            .attempt(|| format!("set the AppArmor profile {profile:?}; is it loaded?"))?;
    }
    if let Some(label) = selinux.filter(|label| !label.is_empty()) {
        proc.write(&format!("{pid}/attr/exec"), label.as_bytes())
            .attempt(|| format!("set the SELinux label {label:?}"))?;
    }
    Ok(())
}

/// Gives the keys and keyrings that process `pid`, which must be the caller, makes until its next execve(2) the label that
/// it is about to have, or it could not use them afterwards.
pub(super) fn label_keys(proc: &Proc, pid: i32, selinux: Option<&str>) -> Result<(), Error> {
    let Some(label) = selinux.filter(|label| !label.is_empty()) else { return Ok(()) };
    proc.write(&format!("{pid}/attr/keycreate"), label.as_bytes())
        .attempt(|| format!("set the SELinux label {label:?} for new keys"))
}

/// Labels the root directory of a mount.
pub(super) fn set_label(mount: &OwnedFd, label: &str) -> io::Result<()> {
    // Of a descriptor that only names the directory no attribute can be set.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = rustix::fs::openat(mount, c".", flags, Mode::empty())?;
    // Kernel and tools count the final NUL as part of a label.
    let value = [label.as_bytes(), b"\0"].concat();
    Ok(rustix::fs::fsetxattr(&opened, c"security.selinux", &value, XattrFlags::empty())?)
}
