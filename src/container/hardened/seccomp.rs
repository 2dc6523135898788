//! The seccomp profile of every container of a hardened handler.
//!
//! An allow-list for the native architecture. A program for another one is killed. What is left out fails with `EPERM`,
//! or, where libraries look for it, with the error on which they fall back: `ENOSYS` for clone3 and io_uring, `EINVAL` for
//! splice. Calls newer than any named here fail with `ENOSYS`.
//!
//! Arguments are judged where the rest of a call is needed:
//!
//! | call | only |
//! | --- | --- |
//! | socket | UNIX; INET and INET6 with TCP, UDP and ICMP; NETLINK_ROUTE |
//! | socketpair | UNIX |
//! | setsockopt | not TCP_ULP, which loads kernel TLS and its like |
//! | ioctl | not TIOCSTI and TIOCLINUX, which type into a terminal |
//! | clone | without a namespace flag |
//! | mknod | files, fifos and sockets |
//! | personality | Linux, as it is |

use std::sync::LazyLock;

use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompArgBuilder, LinuxSeccompBuilder,
    LinuxSeccompOperator, LinuxSyscall, LinuxSyscallBuilder,
};

const EPERM: u32 = 1;
const EINVAL: u32 = 22;
const ENOTTY: u32 = 25;
const ENOSYS: u32 = 38;
const ENOPROTOOPT: u32 = 92;

/// An int in a register: the upper half is not part of it and must not hide it.
const INT: u64 = 0xffff_ffff;
/// CLONE_NEWTIME, NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET (linux/sched.h).
const CLONE_NEW_ANY: u64 = 0x7e02_0080;
/// The low byte of clone(2)'s flags is the signal at the child's end, so CLONE_NEWTIME cannot be told from one there;
/// the kernel takes it by clone3 and unshare only.
const CLONE_NEW: u64 = CLONE_NEW_ANY & !0xff;
/// The kind of a file in its mode, and the kinds that are no devices: "regular" twice, FIFO, socket (inode(7)).
const KIND: u64 = 0o170_000;
const KINDS: [u64; 4] = [0, 0o100_000, 0o010_000, 0o140_000];
const AF_UNIX: u64 = 1;
const AF_INET: u64 = 2;
const AF_INET6: u64 = 10;
const AF_NETLINK: u64 = 16;
/// Family and protocol: any of the kernel's choice, ICMP, TCP, UDP, ICMPv6; NETLINK_ROUTE is 0.
const SOCKETS: [(u64, u64); 9] = [
    (AF_INET, 0),
    (AF_INET, 1),
    (AF_INET, 6),
    (AF_INET, 17),
    (AF_INET6, 0),
    (AF_INET6, 6),
    (AF_INET6, 17),
    (AF_INET6, 58),
    (AF_NETLINK, 0),
];
/// SOL_TCP and TCP_ULP (linux/tcp.h).
const TCP_ULP: (u64, u64) = (6, 31);
/// TIOCSTI, TIOCLINUX (asm-generic/ioctls.h).
const IOCTLS: [u64; 2] = [0x5412, 0x541c];
/// PER_LINUX, and "tell me".
const PERSONALITIES: [u64; 2] = [0, INT];

#[rustfmt::skip]
const ALLOWED: &[&str] = &[
    // Files and directories.
    "access", "chdir", "chmod", "chown", "close", "close_range", "copy_file_range", "creat", "dup", "dup2", "dup3",
    "faccessat", "faccessat2", "fadvise64", "fallocate", "fchdir", "fchmod", "fchmodat", "fchmodat2", "fchown", "fchownat",
    "fcntl", "fdatasync", "fgetxattr", "flistxattr", "flock", "fremovexattr", "fsetxattr", "fstat", "fstatfs", "fsync",
    "ftruncate", "futimesat", "getcwd", "getdents", "getdents64", "getxattr", "lchown", "lgetxattr", "link", "linkat",
    "listxattr", "llistxattr", "lremovexattr", "lseek", "lsetxattr", "lstat", "mkdir", "mkdirat", "newfstatat", "open",
    "openat", "openat2", "readahead", "readlink", "readlinkat", "removexattr", "rename", "renameat", "renameat2", "rmdir",
    "setxattr", "stat", "statfs", "statx", "symlink", "symlinkat", "sync", "sync_file_range", "syncfs", "truncate", "umask",
    "unlink", "unlinkat", "utime", "utimensat", "utimes",
    // Reading, writing, waiting.
    "epoll_create", "epoll_create1", "epoll_ctl", "epoll_pwait", "epoll_pwait2", "epoll_wait", "eventfd", "eventfd2",
    "inotify_add_watch", "inotify_init", "inotify_init1", "inotify_rm_watch", "io_cancel", "io_destroy", "io_getevents",
    "io_setup", "io_submit", "ioprio_get", "ioprio_set", "pipe", "pipe2", "poll", "ppoll", "pread64", "preadv", "preadv2",
    "pselect6", "pwrite64", "pwritev", "pwritev2", "read", "readv", "select", "sendfile", "signalfd", "signalfd4", "write",
    "writev",
    // Memory.
    "brk", "madvise", "membarrier", "memfd_create", "mincore", "mlock", "mlock2", "mlockall", "mmap", "mprotect", "mremap",
    "mseal", "msync", "munlock", "munlockall", "munmap", "pkey_alloc", "pkey_free", "pkey_mprotect",
    // Processes and threads.
    "arch_prctl", "capget", "capset", "execve", "execveat", "exit", "exit_group", "fork", "futex", "futex_requeue",
    "futex_wait", "futex_waitv", "futex_wake", "get_robust_list", "getcpu", "getegid", "geteuid", "getgid", "getgroups",
    "getpgid", "getpgrp", "getpid", "getppid", "getpriority", "getresgid", "getresuid", "getrlimit", "getrusage", "getsid",
    "gettid", "getuid", "landlock_add_rule", "landlock_create_ruleset", "landlock_restrict_self", "pidfd_open",
    "pidfd_send_signal", "prctl", "prlimit64", "rseq", "sched_get_priority_max", "sched_get_priority_min",
    "sched_getaffinity", "sched_getattr", "sched_getparam", "sched_getscheduler", "sched_rr_get_interval",
    "sched_setaffinity", "sched_setattr", "sched_setparam", "sched_setscheduler", "sched_yield", "seccomp",
    "set_robust_list", "set_tid_address", "setfsgid", "setfsuid", "setgid", "setgroups", "setpgid", "setpriority",
    "setregid", "setresgid", "setresuid", "setreuid", "setrlimit", "setsid", "setuid", "sysinfo", "uname", "vfork",
    "wait4", "waitid",
    // Signals and time.
    "alarm", "clock_getres", "clock_gettime", "clock_nanosleep", "getitimer", "gettimeofday", "kill", "nanosleep", "pause",
    "restart_syscall", "rt_sigaction", "rt_sigpending", "rt_sigprocmask", "rt_sigqueueinfo", "rt_sigreturn",
    "rt_sigsuspend", "rt_sigtimedwait", "rt_tgsigqueueinfo", "setitimer", "sigaltstack", "tgkill", "time", "timer_create",
    "timer_delete", "timer_getoverrun", "timer_gettime", "timer_settime", "timerfd_create", "timerfd_gettime",
    "timerfd_settime", "times", "tkill",
    // Talking to other processes and machines.
    "accept", "accept4", "bind", "connect", "getpeername", "getrandom", "getsockname", "getsockopt", "listen",
    "mq_getsetattr", "mq_notify", "mq_open", "mq_timedreceive", "mq_timedsend", "mq_unlink", "msgctl", "msgget", "msgrcv",
    "msgsnd", "recvfrom", "recvmmsg", "recvmsg", "semctl", "semget", "semop", "semtimedop", "sendmmsg", "sendmsg", "sendto",
    "shmat", "shmctl", "shmdt", "shmget", "shutdown",
];

/// Refused with an error on which their callers fall back.
const FALL_BACK: [(&[&str], u32); 2] = [
    (&["clone3", "io_uring_enter", "io_uring_register", "io_uring_setup"], ENOSYS),
    (&["splice", "tee", "vmsplice"], EINVAL),
];

/// The profile. It is the same for every container.
pub(crate) fn profile() -> LinuxSeccomp {
    static PROFILE: LazyLock<LinuxSeccomp> = LazyLock::new(build);
    PROFILE.clone()
}

fn build() -> LinuxSeccomp {
    use LinuxSeccompAction::{ScmpActAllow as Allow, ScmpActErrno as Errno};
    let always = || masked(0, 0, 0);
    let mut rules = vec![rule(ALLOWED, Allow, None, vec![])];
    for (names, errno) in FALL_BACK {
        rules.push(rule(names, Errno, Some(errno), vec![]));
    }
    rules.push(rule(&["clone"], Allow, None, vec![masked(0, CLONE_NEW, 0)]));
    for name in ["socket", "socketpair"] {
        rules.push(rule(&[name], Allow, None, vec![masked(0, INT, AF_UNIX)]));
    }
    for (family, protocol) in SOCKETS {
        rules.push(rule(&["socket"], Allow, None, vec![masked(0, INT, family), masked(2, INT, protocol)]));
    }
    // Rules with conditions are tried in order, so the refusals come first.
    let (level, option) = TCP_ULP;
    let ulp = vec![masked(1, INT, level), masked(2, INT, option)];
    rules.push(rule(&["setsockopt"], Errno, Some(ENOPROTOOPT), ulp));
    rules.push(rule(&["setsockopt"], Allow, None, vec![always()]));
    for ioctl in IOCTLS {
        rules.push(rule(&["ioctl"], Errno, Some(ENOTTY), vec![masked(1, INT, ioctl)]));
    }
    rules.push(rule(&["ioctl"], Allow, None, vec![always()]));
    for kind in KINDS {
        rules.push(rule(&["mknod"], Allow, None, vec![masked(1, KIND, kind)]));
        rules.push(rule(&["mknodat"], Allow, None, vec![masked(2, KIND, kind)]));
    }
    for personality in PERSONALITIES {
        rules.push(rule(&["personality"], Allow, None, vec![masked(0, INT, personality)]));
    }
    let native = if cfg!(target_arch = "aarch64") { Arch::ScmpArchAarch64 } else { Arch::ScmpArchX86_64 };
    LinuxSeccompBuilder::default()
        .default_action(LinuxSeccompAction::ScmpActErrno)
        .default_errno_ret(EPERM)
        .architectures(vec![native])
        .syscalls(rules)
        .build()
        .expect("every required field is set")
}

fn rule(
    names: &[&str],
    action: LinuxSeccompAction,
    errno: Option<u32>,
    args: Vec<LinuxSeccompArg>,
) -> LinuxSyscall {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut builder = LinuxSyscallBuilder::default().names(names).action(action);
    if let Some(errno) = errno {
        builder = builder.errno_ret(errno);
    }
    if !args.is_empty() {
        builder = builder.args(args);
    }
    builder.build().expect("names and action are set")
}

fn masked(index: usize, mask: u64, value: u64) -> LinuxSeccompArg {
    LinuxSeccompArgBuilder::default()
        .index(index)
        .op(LinuxSeccompOperator::ScmpCmpMaskedEq)
        .value(mask)
        .value_two(value)
        .build()
        .expect("index, operator and value are set")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_call_of_another_kernel_subsystem_is_allowed() {
        for name in [
            "acct",
            "add_key",
            "adjtimex",
            "bpf",
            "chroot",
            "clone",
            "clone3",
            "clock_settime",
            "delete_module",
            "fanotify_init",
            "finit_module",
            "fsconfig",
            "fsmount",
            "fsopen",
            "fspick",
            "get_mempolicy",
            "init_module",
            "io_uring_enter",
            "io_uring_register",
            "io_uring_setup",
            "ioctl",
            "ioperm",
            "iopl",
            "kcmp",
            "kexec_load",
            "keyctl",
            "listmount",
            "lookup_dcookie",
            "mbind",
            "memfd_secret",
            "migrate_pages",
            "mknod",
            "mknodat",
            "modify_ldt",
            "mount",
            "mount_setattr",
            "move_mount",
            "move_pages",
            "name_to_handle_at",
            "open_by_handle_at",
            "open_tree",
            "open_tree_attr",
            "perf_event_open",
            "personality",
            "pidfd_getfd",
            "pivot_root",
            "process_madvise",
            "process_mrelease",
            "process_vm_readv",
            "process_vm_writev",
            "ptrace",
            "quotactl",
            "reboot",
            "remap_file_pages",
            "request_key",
            "set_mempolicy",
            "setdomainname",
            "sethostname",
            "setns",
            "setsockopt",
            "socket",
            "socketpair",
            "splice",
            "statmount",
            "swapon",
            "syslog",
            "tee",
            "umount2",
            "unshare",
            "uretprobe",
            "userfaultfd",
            "vhangup",
            "vmsplice",
        ] {
            assert!(!ALLOWED.contains(&name), "{name} is allowed without a condition");
        }
    }

    #[test]
    fn the_profile_compiles_for_the_native_architecture_alone() {
        let program = crate::sandbox::seccomp::compile(&profile()).unwrap();
        assert!(program.len() < 400, "{}", program.len());
        assert_eq!(profile().architectures().as_ref().map(Vec::len), Some(1));
    }

    #[test]
    fn no_name_is_listed_twice() {
        let mut sorted = ALLOWED.to_vec();
        sorted.sort_unstable();
        let len = sorted.len();
        sorted.dedup();
        assert_eq!(sorted.len(), len);
    }
}
