//! The attacker's side of the isolation table: one static program without a crate, run inside a container.
//!
//! Prints one finding per line, `KIND NAME VALUE`, and judges nothing; `tests/it/escape` compares with the same program
//! run without any confinement. Every check is benign: arguments that no kernel takes, or the first step of a way in and
//! not the second. Each runs in a child of its own, so one that is killed costs nothing.
//!
//! Not issued, because they would end the prober whatever the filter says: exit, exit_group, rt_sigreturn, and fork and
//! vfork, of which every other check is proof.

use std::ffi::{CString, c_char, c_int, c_long, c_uint};
use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

unsafe extern "C" {
    fn syscall(number: c_long, ...) -> c_long;
    fn fork() -> c_int;
    fn waitpid(pid: c_int, status: *mut c_int, options: c_int) -> c_int;
    fn _exit(code: c_int) -> !;
    fn alarm(seconds: c_uint) -> c_uint;
    fn __errno_location() -> *mut c_int;
    fn open(path: *const c_char, flags: c_int, ...) -> c_int;
    fn close(fd: c_int) -> c_int;
}

const EPERM: i32 = 1;
/// Sent by alarm(2): the call was reached and waits.
const SIGALRM: i32 = 14;

#[cfg(target_arch = "x86_64")]
mod number {
    pub const SKIPPED: [i64; 5] = [15, 57, 58, 60, 231];
    pub const SOCKET: i64 = 41;
    pub const SETSOCKOPT: i64 = 54;
    pub const CLONE: i64 = 56;
    pub const SPLICE: i64 = 275;
    pub const UNSHARE: i64 = 272;
    pub const BPF: i64 = 321;
    pub const SYSLOG: i64 = 103;
    pub const FUTEX: i64 = 202;
    pub const MADVISE: i64 = 28;
    pub const KEYCTL: i64 = 250;
}
#[cfg(target_arch = "aarch64")]
mod number {
    pub const SKIPPED: [i64; 3] = [139, 93, 94];
    pub const SOCKET: i64 = 198;
    pub const SETSOCKOPT: i64 = 208;
    pub const CLONE: i64 = 220;
    pub const SPLICE: i64 = 76;
    pub const UNSHARE: i64 = 97;
    pub const BPF: i64 = 280;
    pub const SYSLOG: i64 = 116;
    pub const FUTEX: i64 = 98;
    pub const MADVISE: i64 = 233;
    pub const KEYCTL: i64 = 219;
}
use number::*;
/// From 424 up all architectures share one numbering.
const IO_URING_SETUP: i64 = 425;
const FSOPEN: i64 = 430;
const CLONE3: i64 = 435;
const NUMBERS: [std::ops::Range<i64>; 2] = [0..336, 424..476];

const NEWUSER: i64 = 0x1000_0000;
const NEWNET: i64 = 0x4000_0000;
const NEWNS: i64 = 0x2_0000;
const NAMESPACES: [(&str, i64); 8] = [
    ("user", NEWUSER),
    ("mount", NEWNS),
    ("pid", 0x2000_0000),
    ("net", NEWNET),
    ("ipc", 0x800_0000),
    ("uts", 0x400_0000),
    ("cgroup", 0x200_0000),
    ("time", 0x80),
];

const AF_UNIX: i64 = 1;
const AF_INET: i64 = 2;
const AF_RXRPC: i64 = 33;
const AF_ALG: i64 = 38;
const AF_VSOCK: i64 = 40;
const AF_PACKET: i64 = 17;
const FAMILIES: i64 = 46;
/// No type of socket: a kernel that is asked answers EINVAL before it looks for the family; a filter does not.
const NO_TYPE: i64 = 15;

fn main() {
    match std::env::args().nth(1).as_deref() {
        Some("reach") => reach(),
        Some("leaks") => leaks(),
        Some("keyring") => keyring(),
        other => {
            eprintln!("probe: reach, leaks or keyring, not {other:?}");
            std::process::exit(2);
        }
    }
}

/// How a check in a child ended.
#[derive(Clone, Copy, PartialEq)]
enum Ended {
    Code(i32),
    Signal(i32),
}

/// Runs `check` in a child; what it returns is the child's exit code.
fn apart(check: impl FnOnce() -> i32) -> Ended {
    // SAFETY: this program has one thread.
    unsafe {
        let child = fork();
        if child == 0 {
            alarm(1);
            let code = check();
            _exit(code);
        }
        let mut status = 0;
        waitpid(child, &mut status, 0);
        if status & 0x7f != 0 { Ended::Signal(status & 0x7f) } else { Ended::Code((status >> 8) & 0xff) }
    }
}

/// The error number of a call, or 0.
fn call(number: i64, args: [i64; 6]) -> i32 {
    // SAFETY: the arguments are numbers that the kernel refuses, or describe memory that outlives the call.
    unsafe {
        if syscall(number, args[0], args[1], args[2], args[3], args[4], args[5]) >= 0 {
            0
        } else {
            *__errno_location()
        }
    }
}

fn told(ended: Ended) -> String {
    match ended {
        Ended::Code(0) => "ok".to_owned(),
        Ended::Signal(SIGALRM) => "ok".to_owned(),
        Ended::Code(errno) => format!("errno{errno}"),
        Ended::Signal(signal) => format!("signal{signal}"),
    }
}

fn finding(kind: &str, name: impl std::fmt::Display, value: impl std::fmt::Display) {
    println!("{kind} {name} {value}");
}

fn reach() {
    for number in NUMBERS.into_iter().flatten() {
        if SKIPPED.contains(&number) {
            finding("syscall", number, "skipped");
            continue;
        }
        finding("syscall", number, told(apart(|| call(number, [-1; 6]))));
    }
    for family in 1..=FAMILIES {
        finding("family", family, told(apart(|| call(SOCKET, [family, NO_TYPE, 0, 0, 0, 0]))));
    }
    for (name, flag) in NAMESPACES {
        finding("namespace", name, told(apart(|| call(UNSHARE, [flag, 0, 0, 0, 0, 0]))));
        finding("namespace-in-user", name, told(apart(|| call(UNSHARE, [NEWUSER | flag, 0, 0, 0, 0, 0]))));
    }
    classes();
}

/// One benign check for each class of kernel bugs: `open` if its entry point is within reach.
fn classes() {
    let class = |name: &str, open: bool| finding("class", name, if open { "open" } else { "closed" });
    let reached = |check: &mut dyn FnMut() -> bool| apart(|| i32::from(!check())) == Ended::Code(0);
    let own_user = reached(&mut || call(UNSHARE, [NEWUSER, 0, 0, 0, 0, 0]) == 0)
        || reached(&mut || {
            // A child that shares nothing and ends at once: clone(NEWUSER | SIGCHLD).
            // SAFETY: without a stack clone(2) is fork(2).
            match unsafe { syscall(CLONE, NEWUSER | 17, 0_i64, 0_i64, 0_i64, 0_i64) } {
                0 => unsafe { _exit(0) },
                child => child > 0,
            }
        })
        || reached(&mut || {
            let args: [u64; 8] = [NEWUSER as u64, 0, 0, 0, 17, 0, 0, 0];
            // SAFETY: `clone_args` of 64 bytes, which outlives the call; without a stack it is fork(2).
            match unsafe { syscall(CLONE3, args.as_ptr(), 64_i64) } {
                0 => unsafe { _exit(0) },
                child => child > 0,
            }
        });
    let net_admin = capability(12);
    class("netadmin", own_user || net_admin);
    class("userns-mount", own_user || reached(&mut || {
        let name = c"tmpfs";
        call(FSOPEN, [name.as_ptr() as i64, 0, 0, 0, 0, 0]) == 0
    }));
    // A null pointer for the parameters.
    class("io_uring", reached(&mut || call(IO_URING_SETUP, [1, 0, 0, 0, 0, 0]) == 14));
    class("ktls", reached(&mut || {
        // SAFETY: numbers only.
        let tcp = unsafe { syscall(SOCKET, AF_INET, 1_i64, 0_i64) };
        let name = c"x";
        // A name of no bytes is invalid to a kernel that looks at it, while "no such protocol" may be a filter's answer.
        tcp >= 0 && call(SETSOCKOPT, [tcp, 6, 31, name.as_ptr() as i64, 0, 0]) == 22
    }));
    let packet = || call(SOCKET, [AF_PACKET, 3, 0, 0, 0, 0]) == 0;
    class("af_packet", reached(&mut || packet())
        || reached(&mut || call(UNSHARE, [NEWUSER | NEWNET, 0, 0, 0, 0, 0]) == 0 && packet()));
    for (name, family) in [("af_alg", AF_ALG), ("rxrpc", AF_RXRPC), ("vsock", AF_VSOCK)] {
        class(name, reached(&mut || call(SOCKET, [family, NO_TYPE, 0, 0, 0, 0]) == 22));
    }
    // A size beyond any: E2BIG before rights are looked at.
    class("bpf", reached(&mut || call(BPF, [0, 0, 1 << 20, 0, 0, 0]) == 7));
    class("pipe-splice", reached(&mut || call(SPLICE, [-1, 0, -1, 0, 1, 0]) == 9));
    class("kvm", reached(&mut || try_open("/dev/kvm", 2) >= 0));
    // FUTEX_WAKE of nobody, MADV_DONTNEED of nothing, a socket to oneself.
    let word = 0_i32;
    class("core-syscall", reached(&mut || call(FUTEX, [&raw const word as i64, 1, 1, 0, 0, 0]) == 0));
    class("core-mm", reached(&mut || call(MADVISE, [0, 0, 4, 0, 0, 0]) == 0));
    class("af_unix", reached(&mut || call(SOCKET, [AF_UNIX, 1, 0, 0, 0, 0]) == 0));
    class("lsm", reached(&mut || try_open("/proc/self/attr/current", 1) >= 0));
    // Nobody has said how to get there, so nothing is known to be in the way.
    class("unclear", true);
}

fn try_open(path: &str, flags: i32) -> i32 {
    let Ok(path) = CString::new(path) else { return -EPERM };
    const NONBLOCK_CLOEXEC: i32 = 0o4000 | 0o2000000;
    // SAFETY: the path ends with a NUL and outlives the call.
    unsafe { open(path.as_ptr(), flags | NONBLOCK_CLOEXEC, 0) }
}

fn status(field: &str) -> String {
    let text = fs::read_to_string("/proc/self/status").unwrap_or_default();
    text.lines().find_map(|line| line.strip_prefix(field)).unwrap_or("").trim().to_owned()
}

fn capability(number: u32) -> bool {
    u64::from_str_radix(&status("CapBnd:"), 16).is_ok_and(|set| set & (1 << number) != 0)
}

/// The serial number of the session keyring, as keyctl(KEYCTL_GET_KEYRING_ID, KEY_SPEC_SESSION_KEYRING) tells it.
fn keyring() {
    // SAFETY: numbers only.
    let serial = unsafe { syscall(KEYCTL, 0_i64, -3_i64, 0_i64) };
    println!("{serial}");
}

fn leaks() {
    for field in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:", "NoNewPrivs:", "Seccomp:"] {
        finding("status", field.trim_end_matches(':'), status(field));
    }
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    finding("status", "uid_map", map.split_whitespace().collect::<Vec<_>>().join(","));
    for path in [
        "/proc/cmdline", "/proc/config.gz", "/proc/cpuinfo", "/proc/crypto", "/proc/diskstats", "/proc/interrupts",
        "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/loadavg", "/proc/meminfo", "/proc/modules",
        "/proc/partitions", "/proc/sched_debug", "/proc/slabinfo", "/proc/stat", "/proc/timer_list", "/proc/uptime",
        "/proc/version", "/proc/vmallocinfo", "/proc/zoneinfo", "/sys/class/dmi/id/product_uuid",
        "/sys/firmware/acpi/tables/DSDT", "/sys/kernel/debug/sched/debug", "/sys/kernel/notes", "/sys/kernel/vmcoreinfo",
        "/sys/module/kernel/parameters/panic", "/sys/devices/virtual/powercap/dtpm/uevent", "/dev/kmsg", "/dev/mem",
    ] {
        let mut first = [0; 64];
        let read = fs::File::open(path).and_then(|mut file| file.read(&mut first)).unwrap_or(0);
        finding("readable", path, if read > 0 { "yes" } else { "no" });
    }
    let symbols = fs::read_to_string("/proc/kallsyms").unwrap_or_default();
    let addresses = symbols.lines().any(|line| !line.starts_with("0000000000000000"));
    finding("readable", "kallsyms-addresses", if addresses { "yes" } else { "no" });
    let mut log = [0_u8; 256];
    let dmesg = call(SYSLOG, [3, log.as_mut_ptr() as i64, 256, 0, 0, 0]);
    finding("readable", "dmesg", if dmesg == 0 { "yes" } else { "no" });
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let told = mounts.lines().any(|line| line.contains("upperdir=/") || line.contains("lowerdir=/"));
    finding("readable", "host-paths-in-mountinfo", if told { "yes" } else { "no" });
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = pids.filter(|entry| entry.file_name().to_string_lossy().bytes().all(|b| b.is_ascii_digit()));
    finding("count", "processes-in-proc", pids.count());
    for (name, root) in [("proc", "/proc"), ("sys", "/sys")] {
        let mut writable = Vec::new();
        walk(Path::new(root), 0, &mut writable);
        finding("count", format!("writable-in-{name}"), writable.len());
        for path in writable.iter().take(20) {
            finding("writable", path, "yes");
        }
    }
}

/// Files that open for writing; none is written to. /proc/PID and /proc/sys/net are the container's own.
fn walk(folder: &Path, depth: usize, writable: &mut Vec<String>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        let own = name.bytes().all(|b| b.is_ascii_digit()) || path.starts_with("/proc/sys/net");
        if own || name == "self" || name == "thread-self" {
            continue;
        }
        match entry.file_type() {
            Ok(kind) if kind.is_dir() && depth < 12 => walk(&path, depth + 1, writable),
            // Where no mode allows it, root may open and the kernel still takes no write. A masked file is /dev/null, which
            // the folder does not tell.
            Ok(kind) if kind.is_file() && entry.metadata().is_ok_and(|meta| meta.is_file() && meta.mode() & 0o222 != 0) => {
                let fd = try_open(&path.to_string_lossy(), 1);
                if fd >= 0 {
                    // SAFETY: just opened, and nobody else has it.
                    unsafe { close(fd) };
                    writable.push(path.display().to_string());
                }
            }
            _ => {}
        }
    }
}
