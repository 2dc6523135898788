//! Labels of AppArmor and SELinux, for the program to be executed.
//!
//! They are written through procfs, and a write that goes astray is an escape (CVE-2019-19921, CVE-2025-52881): the
//! file is opened beneath a /proc that was verified to be procfs, without following links or crossing mounts.

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
