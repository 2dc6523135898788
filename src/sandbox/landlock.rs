//! Landlock for containers whose config asks for it by an annotation, `brig.sandbox/landlock`: `container`.
//!
//! Namespaces and mounts decide what a container can name. Landlock adds what holds even for what it cannot name:
//!
//! - No file outside its root, not even beneath a directory of the host whose descriptor leaked (CVE-2024-21626).
//! - No device node can be made, and no ioctl reaches a device but the container's terminals (`/dev/pts`, `/dev/tty`,
//!   `/dev/console`): an open device is little use without.
//! - No mount, move of a mount or pivot (landlock(7): a restricted process cannot change the mount topology).
//! - No look into processes of another domain: an exec session and the container's own cannot trace each other.
//!
//! All other rights are given back for the container's root and with it for everything mounted below. Signals and
//! abstract sockets are not scoped: the PID and network namespaces do that, and an exec session must reach the container.
//! Rules are made from descriptors opened after the pivot; a kernel without Landlock leaves the rest of the confinement.

use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, openat};

use super::error::{Attempt, Error};
use super::log;
use super::spec::Config;
use crate::sys::landlock::{self, Ruleset};
use crate::sys::path;

const ANNOTATION: &str = "brig.sandbox/landlock";

/// Where ioctls on devices go on: terminals.
const TERMINALS: [&str; 3] = ["/dev/pts", "/dev/tty", "/dev/console"];

/// Whether a config asks for it.
pub(super) fn wanted(config: &Config) -> Result<bool, Error> {
    match config.annotations.get(ANNOTATION).map(String::as_str) {
        None => Ok(false),
        Some("container") => Ok(true),
        Some(other) => {
            Err(Error::invalid(format!("annotations[{ANNOTATION:?}]"), other, "only \"container\" is known"))
        }
    }
}

/// Puts the calling process into a domain. Called inside the container's root, with no_new_privs set.
pub(super) fn restrict() -> Result<(), Error> {
    let version = landlock::version();
    if version == 0 {
        log::warn("this kernel has no Landlock; the container goes without");
        return Ok(());
    }
    let all = landlock::all_rights(version);
    let attempted = || "make a Landlock domain".to_owned();
    let ruleset = Ruleset::new(all).attempt(attempted)?;
    let root = openat(CWD, c"/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .attempt(attempted)?;
    let withheld = landlock::FS_MAKE_CHAR | landlock::FS_MAKE_BLOCK | landlock::FS_IOCTL_DEV;
    ruleset.allow(&root, all & !withheld).attempt(attempted)?;
    if all & landlock::FS_IOCTL_DEV != 0 {
        for place in TERMINALS {
            // An image without it needs no rule, and a link to elsewhere gets none.
            let Ok(terminal) = path::open_in_without_links(&root, Path::new(place), OFlags::PATH) else {
                continue;
            };
            let mode = fstat(&terminal).attempt(attempted)?.st_mode;
            let directory = FileType::from_raw_mode(mode) == FileType::Directory;
            if !directory && FileType::from_raw_mode(mode) != FileType::CharacterDevice {
                continue;
            }
            ruleset.allow(&terminal, landlock::FS_IOCTL_DEV & landlock::FILE_RIGHTS).attempt(attempted)?;
        }
    }
    ruleset.restrict_self().attempt(|| "enter the Landlock domain".to_owned())
}
