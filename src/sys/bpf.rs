//! Programs that run inside the kernel: seccomp filters (classic BPF) and the device filter of cgroup v2 (eBPF).
//!
//! Here are the instruction formats and the calls that load and attach. What a program says is decided elsewhere: seccomp
//! profiles are compiled in `sandbox/seccomp`, device rules in `sys/cgroup/devices.rs`.
#![expect(unsafe_code, reason = "seccomp(2) and bpf(2) take structs with pointers and have no safe wrapper")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// One classic BPF instruction, laid out as the kernel's `struct sock_filter`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Insn {
    pub(crate) code: u16,
    pub(crate) jt: u8,
    pub(crate) jf: u8,
    pub(crate) k: u32,
}

const _: () = {
    assert!(size_of::<Insn>() == size_of::<libc::sock_filter>());
    assert!(align_of::<Insn>() == align_of::<libc::sock_filter>());
};

/// The kernel refuses longer programs (`BPF_MAXINSNS`, linux/bpf_common.h).
pub(crate) const SECCOMP_INSNS_MAX: usize = 4096;

/// Flags of seccomp(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct SeccompFlags {
    pub(crate) log: bool,
    pub(crate) spec_allow: bool,
    pub(crate) tsync: bool,
    /// The call returns a listener for `SECCOMP_RET_USER_NOTIF`.
    pub(crate) new_listener: bool,
    /// Only together with `new_listener`; Linux 5.19.
    pub(crate) wait_killable_recv: bool,
}

impl SeccompFlags {
    fn bits(self) -> libc::c_ulong {
        let mut bits = 0;
        if self.log {
            bits |= libc::SECCOMP_FILTER_FLAG_LOG;
        }
        if self.spec_allow {
            bits |= libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW;
        }
        if self.tsync {
            bits |= libc::SECCOMP_FILTER_FLAG_TSYNC;
        }
        if self.new_listener {
            bits |= libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
            // Both at once need an error that cannot be mistaken for a listener (seccomp(2), Linux 5.7).
            if self.tsync {
                bits |= libc::SECCOMP_FILTER_FLAG_TSYNC_ESRCH;
            }
            if self.wait_killable_recv {
                bits |= libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV;
            }
        }
        bits
    }
}

/// Puts a filter on the calling thread (with `tsync` on all of its process). Needs `no_new_privs` or `CAP_SYS_ADMIN`.
///
/// Async-signal-safe: allocates nothing, takes no lock. The listener is close-on-exec, as the kernel makes it.
///
/// # Errors
///
/// What seccomp(2) says; `EINVAL` also for an empty or too long program.
pub(crate) fn load_seccomp(program: &[Insn], flags: SeccompFlags) -> io::Result<Option<OwnedFd>> {
    let len = match u16::try_from(program.len()) {
        Ok(len) if usize::from(len) <= SECCOMP_INSNS_MAX => len,
        _ => return Err(io::Error::from_raw_os_error(libc::EINVAL)),
    };
    let fprog = libc::sock_fprog { len, filter: program.as_ptr().cast_mut().cast() };
    // SAFETY: `fprog` and the `len` instructions behind it live through the call, `Insn` has the layout of `sock_filter`,
    // and the kernel only reads them.
    let ret = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::c_ulong::from(libc::SECCOMP_SET_MODE_FILTER),
            flags.bits(),
            &raw const fprog,
        )
    };
    if ret < 0 {
        return Err(io::Error::last_os_error());
    }
    if flags.new_listener {
        let fd = ret as RawFd;
        // SAFETY: with SECCOMP_FILTER_FLAG_NEW_LISTENER a successful call returns a new descriptor that nobody else owns.
        return Ok(Some(unsafe { OwnedFd::from_raw_fd(fd) }));
    }
    if ret > 0 {
        // TSYNC without ESRCH names a thread that could not follow; nothing was loaded.
        return Err(io::Error::from_raw_os_error(libc::ESRCH));
    }
    Ok(None)
}

/// One eBPF instruction, laid out as the kernel's `struct bpf_insn`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct EInsn {
    pub(crate) code: u8,
    /// Destination register in the low four bits, source register in the high four.
    pub(crate) regs: u8,
    pub(crate) off: i16,
    pub(crate) imm: i32,
}

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_ATTACH: libc::c_int = 8;
const BPF_PROG_DETACH: libc::c_int = 9;
const BPF_PROG_GET_FD_BY_ID: libc::c_int = 13;
const BPF_PROG_QUERY: libc::c_int = 16;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
const BPF_F_ALLOW_MULTI: u32 = 1 << 1;
/// The kernel attaches at most this many programs to one cgroup (`BPF_CGROUP_MAX_PROGS`, kernel/bpf/cgroup.c).
const ATTACHED_MAX: usize = 64;

/// `union bpf_attr` for BPF_PROG_LOAD, up to `kern_version`.
#[repr(C)]
struct AttrLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
}

/// `union bpf_attr` for BPF_PROG_ATTACH and BPF_PROG_DETACH.
#[repr(C)]
struct AttrAttach {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
    replace_bpf_fd: u32,
}

/// `union bpf_attr` for BPF_PROG_QUERY.
#[repr(C)]
struct AttrQuery {
    target_fd: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_cnt: u32,
    _pad: u32,
}

/// `union bpf_attr` for BPF_PROG_GET_FD_BY_ID.
#[repr(C)]
struct AttrGetFd {
    prog_id: u32,
    next_id: u32,
    open_flags: u32,
}

/// bpf(2). `T` is the part of `union bpf_attr` that `command` reads; the kernel takes the missing rest as zeros.
fn bpf<T>(command: libc::c_int, attr: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: `attr` is a live, exclusively borrowed `#[repr(C)]` prefix of `union bpf_attr` of exactly the size given;
    // every pointer its callers put in it points to memory that outlives this call.
    let ret = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attr, size_of::<T>()) };
    if ret < 0 { Err(io::Error::last_os_error()) } else { Ok(ret) }
}

/// Makes `program` the only device filter attached to the cgroup v2 directory `cgroup`.
///
/// The new filter is attached before the old ones go, so no access slips through in between. Needs Linux 4.15 and
/// `CAP_SYS_ADMIN` (or `CAP_BPF` and `CAP_NET_ADMIN`).
///
/// # Errors
///
/// What bpf(2) says; the text names the step.
pub(crate) fn replace_device_filter(cgroup: BorrowedFd<'_>, program: &[EInsn]) -> io::Result<()> {
    let step =
        |what: &'static str| move |err: io::Error| io::Error::new(err.kind(), format!("bpf({what}): {err}"));
    let old = attached_device_filters(cgroup).map_err(step("BPF_PROG_QUERY"))?;
    let fd = load_device_filter(program).map_err(step("BPF_PROG_LOAD, BPF_PROG_TYPE_CGROUP_DEVICE"))?;
    let mut attr = AttrAttach {
        target_fd: cgroup.as_raw_fd() as u32,
        attach_bpf_fd: fd.as_raw_fd() as u32,
        attach_type: BPF_CGROUP_DEVICE,
        attach_flags: BPF_F_ALLOW_MULTI,
        replace_bpf_fd: 0,
    };
    bpf(BPF_PROG_ATTACH, &mut attr).map_err(step("BPF_PROG_ATTACH, BPF_CGROUP_DEVICE"))?;
    for id in old {
        let mut get = AttrGetFd { prog_id: id, next_id: 0, open_flags: 0 };
        let raw = bpf(BPF_PROG_GET_FD_BY_ID, &mut get).map_err(step("BPF_PROG_GET_FD_BY_ID"))?;
        // SAFETY: BPF_PROG_GET_FD_BY_ID returned a new descriptor that nobody else owns.
        let old = unsafe { OwnedFd::from_raw_fd(raw as RawFd) };
        let mut attr = AttrAttach {
            target_fd: cgroup.as_raw_fd() as u32,
            attach_bpf_fd: old.as_raw_fd() as u32,
            attach_type: BPF_CGROUP_DEVICE,
            attach_flags: 0,
            replace_bpf_fd: 0,
        };
        bpf(BPF_PROG_DETACH, &mut attr).map_err(step("BPF_PROG_DETACH, BPF_CGROUP_DEVICE"))?;
    }
    Ok(())
}

fn load_device_filter(program: &[EInsn]) -> io::Result<OwnedFd> {
    let insn_cnt = u32::try_from(program.len()).map_err(|_| io::Error::from_raw_os_error(libc::E2BIG))?;
    let mut attr = AttrLoad {
        prog_type: BPF_PROG_TYPE_CGROUP_DEVICE,
        insn_cnt,
        insns: program.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log_buf: 0,
        kern_version: 0,
        prog_flags: 0,
    };
    let fd = bpf(BPF_PROG_LOAD, &mut attr)? as RawFd;
    // SAFETY: BPF_PROG_LOAD returned a new descriptor that nobody else owns. The kernel makes it close-on-exec.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Ids of the device filters attached to exactly this cgroup.
pub(crate) fn attached_device_filters(cgroup: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    let mut ids = vec![0u32; ATTACHED_MAX];
    let mut attr = AttrQuery {
        target_fd: cgroup.as_raw_fd() as u32,
        attach_type: BPF_CGROUP_DEVICE,
        query_flags: 0,
        attach_flags: 0,
        prog_ids: ids.as_mut_ptr() as u64,
        prog_cnt: ATTACHED_MAX as u32,
        _pad: 0,
    };
    bpf(BPF_PROG_QUERY, &mut attr)?;
    ids.truncate(attr.prog_cnt as usize);
    Ok(ids)
}
