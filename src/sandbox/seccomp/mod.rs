//! OCI seccomp profiles: from `linux.seccomp` to a classic BPF program.
//!
//! `rules.rs` turns a profile into one verdict per system call and architecture; `compile.rs` lays these out as a balanced
//! search tree. `syscalls.rs` is the table of numbers. Loading is in `sys/bpf.rs`.
//!
//! # Which rule wins
//!
//! As with libseccomp behind runc and crun:
//!
//! - A rule whose action (and errno) equals the default says nothing and is dropped.
//! - A rule without conditions beats every rule with conditions of the same call, wherever it stands; of two without
//!   conditions the first wins.
//! - Rules with conditions are tried in the order of the profile, and the first whose conditions all hold wins.
//!   (libseccomp sorts them by argument instead, so it differs where two overlap with unlike actions; a profile whose
//!   meaning hangs on that is ambiguous there as well.)
//! - A rule with several conditions on one argument counts as one rule per condition, so any one of them suffices. This is
//!   how runc and crun have always read it, because libseccomp took one condition per argument.
//! - Names that no table knows are skipped, so one profile serves old and new kernels.
//! - Where the default action refuses, a call newer than every call the profile names for that architecture returns
//!   `ENOSYS`, so that a newer libc falls back instead of giving up on `EPERM` (as runc does since 1.0-rc93).
//! - A program of an architecture that is not listed is killed, with its process.
//!
//! i386 has `socketcall` and `ipc`, which carry many calls. A rule about, say, `socket` also covers `socketcall(1, …)`. Their
//! arguments lie in memory, out of a filter's reach, so there a rule with conditions counts as one without when it
//! refuses, and does not count when it permits.

mod compile;
mod rules;
mod syscalls;

use std::io;
use std::os::fd::OwnedFd;

use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompFilterFlag};

use crate::sys::bpf::{self, Insn, SeccompFlags};

/// Why a profile cannot become a filter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SeccompError {
    #[error("seccomp profile lists architecture {0}, which is not one of x86_64, x86, x32, aarch64 and arm")]
    Architecture(String),
    #[error(
        "seccomp rule for {syscall} has a condition on argument {index}, but a system call has arguments 0 to 5"
    )]
    ArgumentIndex { syscall: String, index: usize },
    #[error("seccomp rule for {syscall} gives errnoRet {errno}, which is above 4095")]
    Errno { syscall: String, errno: u32 },
    #[error(
        "seccomp rule for {syscall} gives errnoRet {errno}, but its action {action} returns no error number"
    )]
    ErrnoWithoutErrno { syscall: String, action: String, errno: u32 },
    #[error("seccomp profile uses SCMP_ACT_NOTIFY as its default action, so nothing could ever answer")]
    NotifyDefault,
    #[error("seccomp profile uses SCMP_ACT_NOTIFY for {0}, which handing over the listener needs")]
    NotifyReserved(String),
    #[error("seccomp profile compiles to {0} instructions, but the kernel takes at most {max}", max = bpf::SECCOMP_INSNS_MAX)]
    TooLong(usize),
}

/// A machine whose system calls a profile can judge. The order is that of the table's columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Machine {
    X86_64,
    X86,
    X32,
    Aarch64,
    Arm,
}

impl Machine {
    #[cfg(target_arch = "x86_64")]
    const NATIVE: Self = Self::X86_64;
    #[cfg(target_arch = "aarch64")]
    const NATIVE: Self = Self::Aarch64;

    /// `seccomp_data.arch` (`AUDIT_ARCH_*`, linux/audit.h). x32 shares x86_64's.
    fn audit(self) -> u32 {
        match self {
            Self::X86_64 | Self::X32 => 0xc000_003e,
            Self::X86 => 0x4000_0003,
            Self::Aarch64 => 0xc000_00b7,
            Self::Arm => 0x4000_0028,
        }
    }

    /// Arguments are 32 bits wide; the high halves in `seccomp_data` are zero.
    fn narrow(self) -> bool {
        matches!(self, Self::X86 | Self::Arm)
    }
}

/// A compiled filter, ready to load.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Program {
    insns: Vec<Insn>,
    flags: SeccompFlags,
}

impl Program {
    /// Loads the filter on the calling thread; the listener when [`Self::uses_notify`]. Async-signal-safe.
    ///
    /// # Errors
    ///
    /// What seccomp(2) says: `EACCES` without `no_new_privs` and `CAP_SYS_ADMIN`, `EBUSY` when another listener exists.
    pub(crate) fn load(&self) -> io::Result<Option<OwnedFd>> {
        bpf::load_seccomp(&self.insns, self.flags)
    }

    /// Some call's verdict is left to a listener.
    pub(crate) fn uses_notify(&self) -> bool {
        self.flags.new_listener
    }

    /// Instructions, at most [`bpf::SECCOMP_INSNS_MAX`].
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.insns.len()
    }
}

/// Compiles a profile. Pure; about 0.1 ms for a profile of 400 calls.
///
/// # Errors
///
/// Every [`SeccompError`]; none is about the host.
pub(crate) fn compile(profile: &LinuxSeccomp) -> Result<Program, SeccompError> {
    let verdicts = rules::read(profile)?;
    let insns = compile::layout(&verdicts)?;
    let has = |flag| profile.flags().as_ref().is_some_and(|flags| flags.contains(&flag));
    let flags = SeccompFlags {
        log: has(LinuxSeccompFilterFlag::SeccompFilterFlagLog),
        spec_allow: has(LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow),
        tsync: has(LinuxSeccompFilterFlag::SeccompFilterFlagTsync),
        new_listener: insns.iter().any(|insn| *insn == compile::ret(rules::RET_USER_NOTIF)),
        wait_killable_recv: has(LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv),
    };
    Ok(Program { insns, flags })
}

#[cfg(test)]
pub(crate) mod tests;
