//! The seccomp profile behind `RuntimeDefault`.
//!
//! An allow-list: what is not named here fails with `EPERM`, and what is newer than anything named here with `ENOSYS`.
//! Groups that only make sense with a capability come with that capability. `seccomp_peers.rs` lists, name by name, how it
//! differs from the profiles of CRI-O and containerd. As in CRI-O's, no new namespace can be made, by clone, clone3 or
//! unshare, unless the container has CAP_SYS_ADMIN.
//!
//! Beyond both peers it refuses what no ordinary program needs and kernel bugs have been reached by:
//!
//! - Sockets are an allow-list of families, so vsock, AF_ALG, RxRPC, Bluetooth, CAN, TIPC, RDS and SMC are out of reach.
//!   Programs use AF_ALG only where it is there (OpenSSL and libkcapi fall back), and the others serve hosts, not pods.
//!   AF_PACKET and AF_XDP come with CAP_NET_RAW, without which the kernel refuses them anyway.
//! - `TCP_ULP`, which hands a connection to the kernel's TLS, fails with `ENOENT`: what a kernel without that module says,
//!   and what OpenSSL and GnuTLS answer by encrypting for themselves.
//! - x32 is no architecture of ours, and i386's `socketcall` makes no sockets and sets no options: its arguments lie in
//!   memory, where no filter sees them, and any 64-bit process can make i386 calls. The price is that 32-bit programs whose
//!   libc knows only `socketcall` (Debian's i386) have no network; such a pod needs a profile of its own.

use std::collections::HashSet;

use oci_spec::runtime::{
    Arch, Capability, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompArgBuilder,
    LinuxSeccompBuilder, LinuxSeccompOperator, LinuxSyscall, LinuxSyscallBuilder,
};

const EPERM: u32 = 1;
const ENOENT: u32 = 2;
const EINVAL: u32 = 22;
const ENOSYS: u32 = 38;

/// CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET (linux/sched.h).
const CLONE_NEW_ANY: u64 = 0x7e02_0000;
/// `domain` of socket(2) is an int: the upper half of the register is not part of it and must not hide it.
const INT: u64 = 0xffff_ffff;
const AF_UNIX: u64 = 1;
const AF_NETLINK: u64 = 16;
/// AF_UNIX, AF_INET, AF_INET6. AF_NETLINK has rules of its own.
const FAMILIES: [u64; 3] = [AF_UNIX, 2, 10];
/// AF_PACKET, AF_XDP.
const RAW_FAMILIES: [u64; 2] = [17, 44];
/// NETLINK_AUDIT (linux/netlink.h).
const NETLINK_AUDIT: u64 = 9;
/// SOL_TCP and TCP_ULP (linux/tcp.h).
const SOL_TCP: u64 = 6;
const TCP_ULP: u64 = 31;
/// SYS_SOCKET and SYS_SETSOCKOPT, and the last of their kind (linux/net.h).
const SOCKETCALL_SOCKET: u64 = 1;
const SOCKETCALL_SETSOCKOPT: u64 = 14;
const SOCKETCALL_LAST: u64 = 20;
/// PER_LINUX, PER_LINUX32, UNAME26 with each, and "tell me".
const PERSONALITIES: [u64; 5] = [0, 8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// For every container.
#[rustfmt::skip]
const ALWAYS: &[&str] = &[
    // Files and directories.
    "access", "chdir", "chmod", "chown", "chown32", "close", "close_range", "copy_file_range", "creat", "dup", "dup2",
    "dup3", "faccessat", "faccessat2", "fadvise64", "fadvise64_64", "fallocate", "fchdir", "fchmod", "fchmodat",
    "fchmodat2", "fchown", "fchown32", "fchownat", "fcntl", "fcntl64", "fdatasync", "fgetxattr", 
    "flistxattr", "flock", "fremovexattr", "fsetxattr", "fstat", "fstat64", "fstatat64", "fstatfs",
    "fstatfs64", "fsync", "ftruncate", "ftruncate64", "futimesat", "getcwd", "getdents", "getdents64", "getxattr",
    "getxattrat", "lchown", "lchown32", "lgetxattr", "link", "linkat", "listxattr", "listxattrat", "llistxattr",
    "lremovexattr", "lseek", "lsetxattr", "lstat", "lstat64", "mkdir", "mkdirat", "mknod", "mknodat", "name_to_handle_at",
    "newfstatat", "open", "openat", "openat2", "readahead", "readlink", "readlinkat", "removexattr",
    "removexattrat", "rename", "renameat", "renameat2", "rmdir", "setxattr", "setxattrat", "stat", "stat64", "statfs",
    "statfs64", "statx", "symlink", "symlinkat", "sync", "sync_file_range", "sync_file_range2", "syncfs", "truncate",
    "truncate64", "umask", "unlink", "unlinkat", "utime", "utimensat", "utimensat_time64", "utimes", "arm_fadvise64_64",
    "arm_sync_file_range",
    // Reading, writing, waiting.
    "_llseek", "_newselect", "epoll_create", "epoll_create1", "epoll_ctl", "epoll_ctl_old", "epoll_pwait",
    "epoll_pwait2", "epoll_wait", "epoll_wait_old", "eventfd", "eventfd2", "fanotify_mark", "inotify_add_watch",
    "inotify_init", "inotify_init1", "inotify_rm_watch", "io_cancel", "io_destroy", "io_getevents", "io_pgetevents",
    "io_pgetevents_time64", "io_setup", "io_submit", "ioctl", "ioprio_get", "ioprio_set", "pipe", "pipe2", "poll", "ppoll",
    "ppoll_time64", "pread64", "preadv", "preadv2", "pselect6", "pselect6_time64", "pwrite64", "pwritev", "pwritev2",
    "read", "readv", "select", "sendfile", "sendfile64", "signalfd", "signalfd4", "splice", "tee", "write",
    "writev",
    // Memory.
    "brk", "cachestat", "madvise", "map_shadow_stack", "membarrier", "memfd_create", "memfd_secret", "mincore", "mlock",
    "mlock2", "mlockall", "mmap", "mmap2", "mprotect", "mremap", "mseal", "msync", "munlock", "munlockall", "munmap",
    "pkey_alloc", "pkey_free", "pkey_mprotect", "process_mrelease", "remap_file_pages",
    // Processes and threads.
    "arch_prctl", "capget", "capset", "execve", "execveat", "exit", "exit_group", "fork", "futex", "futex_requeue",
    "futex_time64", "futex_wait", "futex_waitv", "futex_wake", "get_robust_list", "get_thread_area", "getcpu", "getegid",
    "getegid32", "geteuid", "geteuid32", "getgid", "getgid32", "getgroups", "getgroups32", "getpgid", "getpgrp", "getpid",
    "getppid", "getpriority", "getresgid", "getresgid32", "getresuid", "getresuid32", "getrlimit", "getrusage", "getsid",
    "gettid", "getuid", "getuid32", "landlock_add_rule", "landlock_create_ruleset", "landlock_restrict_self",
    "lsm_get_self_attr", "lsm_list_modules", "lsm_set_self_attr", "modify_ldt", "pidfd_open",
    "pidfd_send_signal", "prctl", "prlimit64", "process_vm_readv", "process_vm_writev", "ptrace", "rseq", "sched_get_priority_max", "sched_get_priority_min",
    "sched_getaffinity", "sched_getattr", "sched_getparam", "sched_getscheduler", "sched_rr_get_interval",
    "sched_rr_get_interval_time64", "sched_setaffinity", "sched_setattr", "sched_setparam", "sched_setscheduler",
    "sched_yield", "seccomp", "set_robust_list", "set_thread_area", "set_tid_address", "setfsgid", "setfsgid32",
    "setfsuid", "setfsuid32", "setgid", "setgid32", "setgroups", "setgroups32", "setpgid", "setpriority", "setregid",
    "setregid32", "setresgid", "setresgid32", "setresuid", "setresuid32", "setreuid", "setreuid32", "setrlimit", "setsid",
    "setuid", "setuid32", "sysinfo", "ugetrlimit", "uname", "uretprobe", "vfork", "wait4", "waitid", "waitpid",
    "breakpoint", "cacheflush", "set_tls",
    // Signals and time.
    "alarm", "clock_adjtime", "clock_adjtime64", "clock_getres", "clock_getres_time64", "clock_gettime",
    "clock_gettime64", "clock_nanosleep", "clock_nanosleep_time64", "adjtimex", "getitimer", "gettimeofday", "kill",
    "nanosleep", "pause", "restart_syscall", "rt_sigaction", "rt_sigpending", "rt_sigprocmask", "rt_sigqueueinfo",
    "rt_sigreturn", "rt_sigsuspend", "rt_sigtimedwait", "rt_sigtimedwait_time64", "rt_tgsigqueueinfo", "setitimer",
    "sigaltstack", "signal", "sigprocmask", "sigreturn", "tgkill", "time",
    "timer_create", "timer_delete", "timer_getoverrun", "timer_gettime", "timer_gettime64", "timer_settime",
    "timer_settime64", "timerfd_create", "timerfd_gettime", "timerfd_gettime64", "timerfd_settime", "timerfd_settime64",
    "times", "tkill",
    // Talking to other processes and machines. Making a socket is further down.
    "accept", "accept4", "bind", "connect", "getpeername", "getrandom", "getsockname", "getsockopt", "ipc", "listen",
    "mq_getsetattr", "mq_notify", "mq_open", "mq_timedreceive", "mq_timedreceive_time64", "mq_timedsend",
    "mq_timedsend_time64", "mq_unlink", "msgctl", "msgget", "msgrcv", "msgsnd", "recv", "recvfrom", "recvmmsg",
    "recvmmsg_time64", "recvmsg", "semctl", "semget", "semop", "semtimedop", "semtimedop_time64", "send", "sendmmsg",
    "sendmsg", "sendto", "shmat", "shmctl", "shmdt", "shmget", "shutdown",
];

/// With a capability.
#[rustfmt::skip]
const WITH_CAPABILITY: &[(Capability, &[&str])] = &[
    (Capability::Bpf, &["bpf"]),
    (Capability::DacReadSearch, &["open_by_handle_at"]),
    (Capability::Perfmon, &["perf_event_open"]),
    (Capability::SysAdmin, &[
        "bpf", "clone", "clone3", "fanotify_init", "fsconfig", "fsmount", "fsopen", "fspick", "listmount", "lookup_dcookie",
        "mount", "mount_setattr", "move_mount", "open_tree", "open_tree_attr", "perf_event_open", "quotactl",
        "quotactl_fd", "setdomainname", "sethostname", "setns", "statmount", "syslog", "umount", "umount2", "unshare",
    ]),
    (Capability::SysBoot, &["reboot"]),
    (Capability::SysChroot, &["chroot"]),
    (Capability::SysModule, &["delete_module", "finit_module", "init_module"]),
    (Capability::SysNice, &["get_mempolicy", "mbind", "set_mempolicy", "set_mempolicy_home_node"]),
    (Capability::SysPacct, &["acct"]),
    (Capability::SysPtrace, &["kcmp", "pidfd_getfd", "process_madvise"]),
    (Capability::SysRawio, &["ioperm", "iopl"]),
    (Capability::SysTime, &["clock_settime", "clock_settime64", "settimeofday", "stime"]),
    (Capability::SysTtyConfig, &["vhangup"]),
    (Capability::Syslog, &["syslog"]),
];

/// The default profile for a container with these capabilities.
pub(crate) fn profile(capabilities: &HashSet<Capability>) -> LinuxSeccomp {
    let mut rules = vec![rule(ALWAYS, None, &[])];
    for (capability, names) in WITH_CAPABILITY {
        if capabilities.contains(capability) {
            rules.push(rule(names, None, &[]));
        }
    }
    if !capabilities.contains(&Capability::SysAdmin) {
        rules.push(rule(&["clone"], None, &[masked(0, CLONE_NEW_ANY, 0)]));
        // clone3's flags lie in memory, where no filter sees them; libc falls back to clone on ENOSYS.
        rules.push(rule(&["clone3"], Some(ENOSYS), &[]));
    }
    rules.extend(sockets(capabilities));
    for personality in PERSONALITIES {
        rules.push(rule(
            &["personality"],
            None,
            &[argument(0, LinuxSeccompOperator::ScmpCmpEq, personality, None)],
        ));
    }
    let architectures = if cfg!(target_arch = "aarch64") {
        vec![Arch::ScmpArchAarch64, Arch::ScmpArchArm]
    } else {
        vec![Arch::ScmpArchX86_64, Arch::ScmpArchX86]
    };
    LinuxSeccompBuilder::default()
        .default_action(LinuxSeccompAction::ScmpActErrno)
        .default_errno_ret(EPERM)
        .architectures(architectures)
        .syscalls(rules)
        .build()
        .expect("every required field is set")
}

/// Who may make which sockets, and set what on them.
///
/// A filter compares whole registers but the kernel reads ints, and one argument can be compared once per rule, so "any
/// number but this one" is said bit by bit.
fn sockets(capabilities: &HashSet<Capability>) -> Vec<LinuxSyscall> {
    let mut rules = Vec::new();
    let mut allow = |name: &str, args: &[LinuxSeccompArg]| rules.push(rule(&[name], None, args));
    for family in FAMILIES {
        allow("socket", &[masked(0, INT, family)]);
    }
    if capabilities.contains(&Capability::NetRaw) {
        for family in RAW_FAMILIES {
            allow("socket", &[masked(0, INT, family)]);
        }
    }
    // Of the others TIPC's come in pairs too.
    allow("socketpair", &[masked(0, INT, AF_UNIX)]);
    let netlink = masked(0, INT, AF_NETLINK);
    if capabilities.contains(&Capability::AuditWrite) {
        allow("socket", &[netlink]);
    } else {
        // Protocols are below 32 (MAX_LINKS in linux/netlink.h).
        for bit in (0..5).map(|bit| 1 << bit) {
            allow("socket", &[netlink, masked(2, bit, !NETLINK_AUDIT & bit)]);
        }
    }
    // Levels end below 512 (linux/socket.h), options of TCP below 63; what these bits leave out nobody has.
    for bit in [1, 2, 4, 8, 0x100] {
        allow("setsockopt", &[masked(1, bit, !SOL_TCP & bit)]);
    }
    for bit in (0..5).map(|bit| 1 << bit) {
        allow("setsockopt", &[masked(1, INT, SOL_TCP), masked(2, bit, !TCP_ULP & bit)]);
    }
    for call in 1..=SOCKETCALL_LAST {
        if call != SOCKETCALL_SOCKET && call != SOCKETCALL_SETSOCKOPT {
            allow("socketcall", &[argument(0, LinuxSeccompOperator::ScmpCmpEq, call, None)]);
        }
    }
    rules.push(rule(&["setsockopt"], Some(ENOENT), &[masked(1, INT, SOL_TCP), masked(2, INT, TCP_ULP)]));
    if !capabilities.contains(&Capability::AuditWrite) {
        // PAM and sudo take this for a kernel without auditing, and go on (libaudit's `audit_open`).
        rules.push(rule(&["socket"], Some(EINVAL), &[netlink, masked(2, INT, NETLINK_AUDIT)]));
    }
    rules
}

/// Allows, or fails with `errno`.
fn rule(names: &[&str], errno: Option<u32>, args: &[LinuxSeccompArg]) -> LinuxSyscall {
    let mut builder = LinuxSyscallBuilder::default()
        .names(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>())
        .action(if errno.is_some() {
            LinuxSeccompAction::ScmpActErrno
        } else {
            LinuxSeccompAction::ScmpActAllow
        });
    if let Some(errno) = errno {
        builder = builder.errno_ret(errno);
    }
    if !args.is_empty() {
        builder = builder.args(args.to_vec());
    }
    builder.build().expect("names and action are set")
}

fn masked(index: usize, mask: u64, value: u64) -> LinuxSeccompArg {
    argument(index, LinuxSeccompOperator::ScmpCmpMaskedEq, mask, Some(value))
}

fn argument(index: usize, op: LinuxSeccompOperator, value: u64, two: Option<u64>) -> LinuxSeccompArg {
    let builder = LinuxSeccompArgBuilder::default().index(index).op(op).value(value);
    let builder = if let Some(two) = two { builder.value_two(two) } else { builder };
    builder.build().expect("index, operator and value are set")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(capabilities: &[Capability]) -> Vec<String> {
        let set = capabilities.iter().copied().collect();
        let profile = profile(&set);
        let rules = profile.syscalls().as_ref().unwrap().iter();
        rules
            .filter(|rule| rule.action() == LinuxSeccompAction::ScmpActAllow && rule.args().is_none())
            .flat_map(|rule| rule.names().clone())
            .collect()
    }

    #[test]
    fn what_lets_a_container_out_is_never_allowed_without_its_capability() {
        let plain = names(&[]);
        for name in [
            "add_key",
            "bpf",
            "clone",
            "clone3",
            "delete_module",
            "init_module",
            "io_uring_enter",
            "io_uring_register",
            "io_uring_setup",
            "kexec_load",
            "keyctl",
            "mount",
            "move_mount",
            "open_by_handle_at",
            "open_tree",
            "perf_event_open",
            "personality",
            "pivot_root",
            "quotactl",
            "reboot",
            "request_key",
            "setns",
            "socket",
            "socketcall",
            "swapon",
            "syslog",
            "umount2",
            "unshare",
            "userfaultfd",
            "vm86",
        ] {
            assert!(!plain.iter().any(|allowed| allowed == name), "{name}");
        }
        assert!(names(&[Capability::SysAdmin]).iter().any(|name| name == "unshare"));
        assert!(names(&[Capability::SysChroot]).iter().any(|name| name == "chroot"));
    }

    #[test]
    fn the_profile_compiles_with_and_without_capabilities() {
        for set in [HashSet::new(), WITH_CAPABILITY.iter().map(|(capability, _)| *capability).collect()] {
            let program = crate::sandbox::seccomp::compile(&profile(&set)).unwrap();
            assert!(program.len() < 500, "{}", program.len());
            assert!(!program.uses_notify());
        }
    }

    #[test]
    fn no_name_is_listed_twice() {
        let mut sorted = ALWAYS.to_vec();
        sorted.sort_unstable();
        let len = sorted.len();
        sorted.dedup();
        assert_eq!(sorted.len(), len);
    }
}
