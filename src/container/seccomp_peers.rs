//! How our default seccomp profile differs from those of the peers, and what that is worth against known kernel bugs.
//!
//! Goal: whoever changes our profile sees what becomes tighter or looser than with CRI-O or containerd, and says why.
//! Method: the names that each peer allows on x86_64 to a container with the default capabilities stand here as data
//! (containerd main of 2026-08; CRI-O main of 2026-08, which takes containers-common's profile and its own namespace rules
//! on top); both differences must be exactly those listed. What depends on arguments is decided by our compiled filter.

use std::collections::{BTreeSet, HashSet};

use oci_spec::runtime::{Capability, LinuxSeccompAction};

use super::seccomp_default::profile;
use crate::sandbox::seccomp::tests::decide;

/// Allowed by CRI-O and by containerd, whatever the arguments.
const BOTH: &str = "\
    _llseek _newselect accept accept4 access adjtimex alarm arch_prctl bind brk capget capset chdir chmod chown \
    chown32 clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64 \
    clock_nanosleep clock_nanosleep_time64 close close_range connect copy_file_range creat dup dup2 dup3 \
    epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old \
    eventfd eventfd2 execve execveat exit exit_group faccessat faccessat2 fadvise64 fadvise64_64 fallocate \
    fanotify_mark fchdir fchmod fchmodat fchmodat2 fchown fchown32 fchownat fcntl fcntl64 fdatasync fgetxattr \
    flistxattr flock fork fremovexattr fsetxattr fstat fstat64 fstatat64 fstatfs fstatfs64 fsync ftruncate \
    ftruncate64 futex futex_time64 futimesat get_robust_list get_thread_area getcpu getcwd getdents getdents64 \
    getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 getitimer getpeername getpgid \
    getpgrp getpid getppid getpriority getrandom getresgid getresgid32 getresuid getresuid32 getrlimit getrusage \
    getsid getsockname getsockopt gettid gettimeofday getuid getuid32 getxattr inotify_add_watch inotify_init \
    inotify_init1 inotify_rm_watch io_cancel io_destroy io_getevents io_setup io_submit ioctl ioprio_get \
    ioprio_set ipc kill landlock_add_rule landlock_create_ruleset landlock_restrict_self lchown lchown32 \
    lgetxattr link linkat listen listxattr llistxattr lremovexattr lseek lsetxattr lstat lstat64 madvise \
    membarrier memfd_create memfd_secret mincore mkdir mkdirat mknod mknodat mlock mlock2 mlockall mmap mmap2 \
    modify_ldt mprotect mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend \
    mq_timedsend_time64 mq_unlink mremap msgctl msgget msgrcv msgsnd msync munlock munlockall munmap \
    name_to_handle_at nanosleep newfstatat open openat openat2 pause pidfd_open pidfd_send_signal pipe pipe2 \
    pkey_alloc pkey_free pkey_mprotect poll ppoll ppoll_time64 prctl pread64 preadv preadv2 prlimit64 \
    process_mrelease process_vm_readv process_vm_writev pselect6 pselect6_time64 ptrace pwrite64 pwritev \
    pwritev2 read readahead readlink readlinkat readv recv recvfrom recvmmsg recvmmsg_time64 recvmsg \
    remap_file_pages removexattr rename renameat renameat2 restart_syscall rmdir rseq rt_sigaction rt_sigpending \
    rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 \
    rt_tgsigqueueinfo sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr \
    sched_getparam sched_getscheduler sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity \
    sched_setattr sched_setparam sched_setscheduler sched_yield seccomp select semctl semget semop semtimedop \
    semtimedop_time64 send sendfile sendfile64 sendmmsg sendmsg sendto set_robust_list set_thread_area \
    set_tid_address setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups setgroups32 setitimer \
    setpgid setpriority setregid setregid32 setresgid setresgid32 setresuid setresuid32 setreuid setreuid32 \
    setrlimit setsid setsockopt setuid setuid32 setxattr shmat shmctl shmdt shmget shutdown sigaltstack signalfd \
    signalfd4 sigprocmask sigreturn socketcall socketpair splice stat stat64 statfs statfs64 statx symlink \
    symlinkat sync sync_file_range syncfs sysinfo tee tgkill time timer_create timer_delete timer_getoverrun \
    timer_gettime timer_gettime64 timer_settime timer_settime64 timerfd_create timerfd_gettime timerfd_gettime64 \
    timerfd_settime timerfd_settime64 times tkill truncate truncate64 ugetrlimit umask uname unlink unlinkat \
    utime utimensat utimensat_time64 utimes vfork wait4 waitid waitpid write writev";

/// By CRI-O alone.
const CRIO_ONLY: &str = "\
    fanotify_init fsconfig fsmount fsopen fspick get_mempolicy keyctl mbind mount mount_setattr move_mount \
    open_tree pidfd_getfd pivot_root reboot set_mempolicy setns signal syslog umount umount2";

/// By containerd alone.
const CONTAINERD_ONLY: &str = "\
    cachestat futex_requeue futex_wait futex_waitv futex_wake getxattrat io_pgetevents io_pgetevents_time64 \
    listmount listxattrat lsm_get_self_attr lsm_list_modules lsm_set_self_attr map_shadow_stack mseal \
    removexattrat setxattrat statmount uretprobe vmsplice";

/// The peers allow these whatever the arguments, we do for some.
const CONDITIONAL: [&str; 3] = ["setsockopt", "socketcall", "socketpair"];

/// Allowed by a peer, refused by us.
const REFUSED: [(&str, &str); 5] = [
    (
        "fsconfig fsmount fsopen fspick mount mount_setattr move_mount open_tree pivot_root setns umount umount2",
        "need CAP_SYS_ADMIN in some user namespace, which our containers cannot make; without it they only reach code",
    ),
    ("listmount statmount", "tell about mounts, as /proc/self/mountinfo does; new, and used by no libc"),
    (
        "fanotify_init keyctl pidfd_getfd reboot syslog",
        "containerd and Docker refuse them too: keyrings are not namespaced, the others need a capability to be of use",
    ),
    (
        "get_mempolicy mbind set_mempolicy",
        "as in containerd and Docker with CAP_SYS_NICE; programs go on without",
    ),
    ("vmsplice", "CRI-O refuses it too: gifts pages to pipes, which no ordinary program does"),
];

/// Refused by CRI-O, allowed by us and by containerd.
const ALLOWED_WITH_CONTAINERD: [(&str, &str); 5] = [
    ("cachestat", "Linux 6.5: about files that the caller has open for reading"),
    ("futex_requeue futex_wait futex_waitv futex_wake", "the futex of today's libcs and of Wine"),
    ("io_pgetevents io_pgetevents_time64", "the wait of libaio, whose other calls all three allow"),
    (
        "getxattrat listxattrat removexattrat setxattrat mseal map_shadow_stack uretprobe",
        "newer forms of allowed calls, and what the loader and the kernel's own trampolines use",
    ),
    ("lsm_get_self_attr lsm_list_modules lsm_set_self_attr", "what /proc/self/attr offers"),
];

/// Refused by containerd, allowed by us and by CRI-O.
const ALLOWED_WITH_CRIO: [(&str, &str); 1] = [("signal", "i386's oldest form of rt_sigaction")];

/// Allowed on arm, by the peers too; not to be found on x86_64.
const ARM: &str = "arm_fadvise64_64 arm_sync_file_range breakpoint cacheflush set_tls sync_file_range2";

/// Container capabilities without any group of their own in the profile.
fn plain() -> HashSet<Capability> {
    use Capability::{Chown, DacOverride, Fowner, Fsetid, Kill, NetBindService, Setgid, Setpcap, Setuid};
    [Chown, DacOverride, Fsetid, Fowner, Setgid, Setuid, Setpcap, NetBindService, Kill].into()
}

fn words<'a>(lists: impl IntoIterator<Item = &'a str>) -> BTreeSet<String> {
    lists.into_iter().flat_map(str::split_whitespace).map(str::to_owned).collect()
}

/// What our profile allows whatever the arguments.
fn ours(capabilities: &HashSet<Capability>) -> BTreeSet<String> {
    let profile = profile(capabilities);
    let rules = profile.syscalls().iter().flatten();
    rules
        .filter(|rule| rule.action() == LinuxSeccompAction::ScmpActAllow && rule.args().is_none())
        .flat_map(|rule| rule.names().clone())
        .collect()
}

fn allowed(capabilities: &HashSet<Capability>, name: &str, args: &[u64]) -> bool {
    decide(&profile(capabilities), name, false, args) == 0
}

#[test]
fn every_difference_from_the_peers_is_known_and_has_a_reason() {
    let known = |table: &[(&'static str, &'static str)]| words(table.iter().map(|(names, _)| *names));
    let (crio, containerd) = (words([BOTH, CRIO_ONLY]), words([BOTH, CONTAINERD_ONLY]));
    let mut ours = ours(&plain());
    for name in words([ARM]) {
        assert!(ours.remove(&name), "{name}");
    }
    let theirs: BTreeSet<String> = crio.union(&containerd).cloned().collect();
    let refused: BTreeSet<String> = theirs.difference(&ours).cloned().collect();
    let conditional = words(CONDITIONAL);
    assert_eq!(refused, known(&REFUSED).union(&conditional).cloned().collect());
    assert_eq!(ours.difference(&theirs).collect::<Vec<_>>(), Vec::<&String>::new(), "looser than both");
    assert_eq!(ours.difference(&crio).cloned().collect::<BTreeSet<_>>(), known(&ALLOWED_WITH_CONTAINERD));
    assert_eq!(ours.difference(&containerd).cloned().collect::<BTreeSet<_>>(), known(&ALLOWED_WITH_CRIO));
}

#[test]
fn what_depends_on_arguments_is_decided_by_all_their_bits() {
    const UPPER: u64 = 0xdead_beef_0000_0000;
    let (plain, mut raw) = (plain(), plain());
    raw.insert(Capability::NetRaw);
    // unix, inet, inet6, netlink; nfc, ipx, ax25, alg, rxrpc, can, tipc, bluetooth, vsock, xdp, smc.
    for (family, expected) in [(1, true), (2, true), (10, true), (16, true), (17, false)] {
        assert_eq!(allowed(&plain, "socket", &[family, 1, 0]), expected, "{family}");
        assert_eq!(allowed(&plain, "socket", &[UPPER | family, 1, 0]), expected, "{family}");
    }
    for family in [0, 3, 4, 21, 29, 30, 31, 33, 38, 39, 40, 41, 42, 43, 44, 45] {
        assert!(!allowed(&plain, "socket", &[family, 1, 0]), "{family}");
        assert!(!allowed(&plain, "socketpair", &[family, 1, 0]), "{family}");
    }
    assert!(allowed(&plain, "socketpair", &[1, 1, 0]));
    assert!(allowed(&raw, "socket", &[17, 3, 0]) && allowed(&raw, "socket", &[44, 3, 0]));
    assert!(!allowed(&raw, "socket", &[40, 1, 0]), "a raw socket is no vsock");
    // Every protocol of netlink but the kernel's audit log.
    for protocol in 0..32 {
        assert_eq!(allowed(&plain, "socket", &[16, 3, protocol]), protocol != 9, "{protocol}");
        assert_eq!(allowed(&plain, "socket", &[16, 3, UPPER | protocol]), protocol != 9, "{protocol}");
    }
    assert_eq!(decide(&profile(&plain), "socket", false, &[16, 3, 9]), 22);
    let mut audit = plain.clone();
    audit.insert(Capability::AuditWrite);
    assert!(allowed(&audit, "socket", &[16, 3, 9]));
    // Every level of linux/socket.h, every option of TCP, but TCP_ULP.
    for level in [0, 1, 2, 17, 41, 58, 103, 115, 132, 136, 255, 263, 269, 270, 271, 281, 283, 284] {
        assert!(allowed(&plain, "setsockopt", &[3, level, 31]), "{level}");
        assert!(allowed(&plain, "setsockopt", &[3, UPPER | level, UPPER | 31]), "{level}");
    }
    for option in 0..63 {
        assert_eq!(allowed(&plain, "setsockopt", &[3, 6, option]), option != 31, "{option}");
        assert_eq!(allowed(&plain, "setsockopt", &[3, UPPER | 6, UPPER | option]), option != 31, "{option}");
    }
    assert_eq!(
        decide(&profile(&plain), "setsockopt", false, &[3, 6, 31]),
        2,
        "as a kernel without the module"
    );
    // i386: all of socketcall but socket and setsockopt.
    for call in 0..=21 {
        let expected = (2..=20).contains(&call) && call != 14;
        assert_eq!(decide(&profile(&plain), "socketcall", true, &[call, 0]) == 0, expected, "{call}");
    }
    // Threads and forks, but no namespace; clone3 sends libc to clone.
    assert!(allowed(&plain, "clone", &[0x003d_0f00]) && allowed(&plain, "clone", &[17]));
    for namespace in
        [0x0002_0000, 0x0200_0000, 0x0400_0000, 0x0800_0000, 0x1000_0000, 0x2000_0000, 0x4000_0000]
    {
        assert!(!allowed(&plain, "clone", &[namespace | 17]), "{namespace:#x}");
    }
    assert_eq!(decide(&profile(&plain), "clone3", false, &[0, 88]), 38);
    for (persona, expected) in
        [(0, true), (8, true), (0x2_0000, true), (0xffff_ffff, true), (0x4_0000, false)]
    {
        assert_eq!(allowed(&plain, "personality", &[persona]), expected, "{persona:#x}");
    }
}

/// One class of kernel bugs from 2016 to 2026, by the entry point that it needs from inside a pod.
struct Class {
    name: &'static str,
    /// Published bugs and exploits, from the public record that gVisor keeps; the classification is ours.
    entries: u32,
    /// The calls without which none of them is reached; empty where any program can.
    entry: &'static [(&'static str, &'static [u64])],
}

const NEW_USER_NAMESPACE: &[(&str, &[u64])] = &[("unshare", &[0x1000_0000]), ("clone", &[0x1000_0011])];

const CLASSES: [Class; 16] = [
    Class {
        name: "nf_tables, qdisc, xfrm: CAP_NET_ADMIN by an own user namespace",
        entries: 55,
        entry: NEW_USER_NAMESPACE,
    },
    Class { name: "io_uring", entries: 10, entry: &[("io_uring_setup", &[])] },
    Class { name: "kernel TLS", entries: 8, entry: &[("setsockopt", &[3, 6, 31])] },
    Class { name: "AF_PACKET", entries: 4, entry: &[("socket", &[17, 3, 0])] },
    Class { name: "mounts in an own user namespace", entries: 4, entry: NEW_USER_NAMESPACE },
    Class { name: "AF_ALG", entries: 4, entry: &[("socket", &[38, 5, 0])] },
    Class { name: "AF_UNIX", entries: 3, entry: &[] },
    Class { name: "futex, timers, wait", entries: 3, entry: &[] },
    Class { name: "AF_VSOCK", entries: 2, entry: &[("socket", &[40, 1, 0])] },
    Class { name: "bpf", entries: 1, entry: &[("bpf", &[])] },
    Class { name: "RxRPC", entries: 1, entry: &[("socket", &[33, 2, 0])] },
    Class { name: "memory management", entries: 1, entry: &[] },
    Class { name: "pipes and splice", entries: 1, entry: &[("splice", &[])] },
    Class { name: "security modules", entries: 1, entry: &[] },
    Class { name: "unclear", entries: 1, entry: &[] },
    Class { name: "KVM, with /dev/kvm", entries: 1, entry: &[("open", &[])] },
];

#[test]
fn of_a_hundred_kernel_bugs_ten_have_an_open_entry_point() {
    let plain = plain();
    let open = |class: &Class| {
        // The device cgroup decides about /dev/kvm, not the filter.
        class.name != "KVM, with /dev/kvm"
            && (class.entry.is_empty() || class.entry.iter().any(|(name, args)| allowed(&plain, name, args)))
    };
    assert_eq!(CLASSES.iter().map(|class| class.entries).sum::<u32>(), 100);
    let names: Vec<&str> = CLASSES.iter().filter(|class| open(class)).map(|class| class.name).collect();
    assert_eq!(
        names,
        [
            "AF_UNIX",
            "futex, timers, wait",
            "memory management",
            "pipes and splice",
            "security modules",
            "unclear"
        ]
    );
    // CRI-O's default leaves 23 open: kernel TLS, AF_ALG and RxRPC besides.
    assert_eq!(CLASSES.iter().filter(|class| open(class)).map(|class| class.entries).sum::<u32>(), 10);
}
