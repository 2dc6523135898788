//! Keeps the container from writing to our executable.
//!
//! A container's program may be `/proc/self/exe`, or a script or ELF file whose interpreter is: executing it executes
//! whatever binary the first process was made from, inside the container, where it can then be opened by
//! `/proc/PID/exe` and overwritten once it is no longer busy (CVE-2019-5736). No check of the path helps, because the
//! kernel follows the interpreter itself.
//!
//! So the binary must come from a mount that nobody can write through. If it does not, we clone the mount of our own
//! executable, detached and read-only, and execute that once more; it costs a third of a millisecond for a static
//! binary and no memory. A caller can spare us this by executing such a descriptor itself: `open_tree` with
//! `OPEN_TREE_CLONE`, `mount_setattr` with `MOUNT_ATTR_RDONLY`, `execveat` with `AT_EMPTY_PATH`.

use std::ffi::CString;
use std::os::unix::ffi::OsStringExt;

use rustix::fs::{CWD, Mode, OFlags, StatVfsMountFlags, fstatvfs, open};

use super::error::{Attempt, Error};
use super::log;
use crate::sys::mount::{self, Change};
use crate::sys::process::Program;

/// Set for the second execution, so that a read-only flag that does not stick cannot make a loop.
const MARK: &str = "_BRIG_SANDBOX_PROTECTED";

/// Returns in a process whose executable is on a read-only mount, or fails.
pub(super) fn ensure_read_only_self() -> Result<(), Error> {
    let exe = open(c"/proc/self/exe", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .attempt(|| "open /proc/self/exe".to_owned())?;
    let flags = fstatvfs(&exe).attempt(|| "look at the mount of /proc/self/exe".to_owned())?.f_flag;
    if flags.contains(StatVfsMountFlags::RDONLY) {
        return Ok(());
    }
    if !rustix::process::geteuid().is_root() {
        // Without the right to mount; nor has the container's root, which is our user, the right to write to a binary
        // that an administrator installed.
        log::debug(|| "not root: the executable is not protected by a read-only mount".to_owned());
        return Ok(());
    }
    let attempted = || "execute a read-only clone of the own executable".to_owned();
    if std::env::var_os(MARK).is_some() {
        return Err(Error::Unsupported("a read-only mount of the own executable".to_owned()));
    }
    let clone = mount::clone_tree(CWD, c"/proc/self/exe", false).attempt(attempted)?;
    mount::change(&clone, false, &Change { set: mount::RDONLY, ..Change::default() }).attempt(attempted)?;
    // NUL cannot occur in what execve once took.
    let c_string = |text: Vec<u8>| CString::new(text).unwrap_or_default();
    let args: Vec<CString> = std::env::args_os().map(|arg| c_string(arg.into_vec())).collect();
    let mut env: Vec<CString> = std::env::vars_os()
        .map(|(key, value)| c_string([key.into_vec(), b"=".to_vec(), value.into_vec()].concat()))
        .collect();
    env.push(c_string(format!("{MARK}=1").into_bytes()));
    let error = Program::new(c"", &args, &env).exec_fd(&clone);
    Err(error).attempt(attempted)
}
