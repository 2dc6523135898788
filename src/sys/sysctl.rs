//! Which kernel parameters (sysctls) belong to a namespace, and how their names are spelled.
//!
//! Everything else in `/proc/sys` is the whole host's. The lists are those of the kernel's per-namespace tables:
//! `ipc/ipc_sysctl.c`, `ipc/mq_sysctl.c`, `kernel/utsname_sysctl.c` and all of `net/`.

use super::namespace::Kind;

/// In the IPC namespace, beside all of `fs/mqueue`.
const IPC: [&str; 12] = [
    "kernel/auto_msgmni",
    "kernel/msg_next_id",
    "kernel/msgmax",
    "kernel/msgmnb",
    "kernel/msgmni",
    "kernel/sem",
    "kernel/sem_next_id",
    "kernel/shm_next_id",
    "kernel/shm_rmid_forced",
    "kernel/shmall",
    "kernel/shmmax",
    "kernel/shmmni",
];

/// Why a sysctl may not be set for a pod or a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SysctlError {
    #[error("a name is words of letters, digits, \"_\" and \"-\", joined by dots")]
    Name,
    /// A line feed could end up as a setting of its own.
    #[error("a value is one line")]
    Value,
    #[error("it belongs to no namespace and would change the whole host")]
    Host,
    #[error("the host name has a field of its own")]
    Hostname,
    #[error("it needs an own {} namespace, and this one is the host's", .0.file())]
    Shared(Kind),
}

/// Refuses whatever would reach beyond the namespaces that `own` says yes to.
pub(crate) fn check(key: &str, value: &str, own: impl Fn(Kind) -> bool) -> Result<(), SysctlError> {
    let path = path(key);
    // A dot inside a part is an interface's, as in `net/ipv4/conf/eth0.100`; a part of dots alone leads elsewhere.
    let fits = |part: &str| {
        part.bytes().any(|b| b != b'.')
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'))
    };
    if !path.split('/').all(fits) {
        return Err(SysctlError::Name);
    }
    // Several numbers are joined by blanks or tabs.
    if value.contains(|c: char| c.is_control() && c != '\t') {
        return Err(SysctlError::Value);
    }
    let kind = match path.as_str() {
        "kernel/hostname" => return Err(SysctlError::Hostname),
        "kernel/domainname" => Kind::Uts,
        path if path.starts_with("net/") => Kind::Net,
        path if path.starts_with("fs/mqueue/") || IPC.contains(&path) => Kind::Ipc,
        _ => return Err(SysctlError::Host),
    };
    if own(kind) { Ok(()) } else { Err(SysctlError::Shared(kind)) }
}

/// The file below `/proc/sys`. As sysctl(8) reads a name, the first separator decides and the other one stands for itself:
/// `net.ipv4.conf.eth0/100.forwarding` and `net/ipv4/conf/eth0.100/forwarding` are one file.
pub(crate) fn path(key: &str) -> String {
    if key.find(['.', '/']).is_none_or(|at| key.as_bytes()[at] == b'/') {
        return key.to_owned();
    }
    let swapped = key.chars().map(|c| match c {
        '.' => '/',
        '/' => '.',
        other => other,
    });
    swapped.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sysctl_belongs_to_one_kind_of_namespace_or_to_the_host() {
        use SysctlError::{Host, Hostname, Name, Shared};
        for (key, kind) in [
            ("net.ipv4.ip_forward", Kind::Net),
            ("net/ipv4/conf/eth0.100/forwarding", Kind::Net),
            ("net.ipv4.conf.eth0/100.forwarding", Kind::Net),
            ("kernel.shm_rmid_forced", Kind::Ipc),
            ("kernel.sem", Kind::Ipc),
            ("kernel/msgmax", Kind::Ipc),
            ("fs.mqueue.msg_max", Kind::Ipc),
            ("kernel.domainname", Kind::Uts),
        ] {
            assert_eq!(check(key, "1", |own| own == kind), Ok(()), "{key}");
            assert_eq!(check(key, "1", |_| false), Err(Shared(kind)), "{key}");
        }
        for (key, why) in [
            ("kernel.core_pattern", Host),
            ("kernel.semaphore", Host),
            ("kernel.shmoo", Host),
            ("vm.overcommit_memory", Host),
            ("fs.file-max", Host),
            ("net", Host),
            ("kernel.hostname", Hostname),
            ("net/../kernel/core_pattern", Name),
            ("net.ipv4.//..//core", Name),
            ("net...kernel.core_pattern", Name),
            ("net..x", Name),
            ("/net/core/somaxconn", Name),
            ("net.ipv4.ip forward", Name),
            ("net.ipv4.ip_forward+kernel.core_pattern", Name),
            ("net.core.\0", Name),
            ("", Name),
        ] {
            assert_eq!(check(key, "1", |_| true), Err(why), "{key:?}");
        }
    }

    #[test]
    fn a_value_is_one_line() {
        assert_eq!(check("kernel.sem", "250\t32000 32 128", |_| true), Ok(()));
        for value in ["1\nkernel.core_pattern=x", "1\0", "\u{1b}"] {
            assert_eq!(check("kernel.sem", value, |_| true), Err(SysctlError::Value), "{value:?}");
        }
    }

    #[test]
    fn the_first_separator_decides_how_a_name_is_read() {
        for (key, file) in [
            ("net.ipv4.ip_forward", "net/ipv4/ip_forward"),
            ("net.ipv4.conf.eth0/1.forwarding", "net/ipv4/conf/eth0.1/forwarding"),
            ("net/ipv4/conf/eth0.1/forwarding", "net/ipv4/conf/eth0.1/forwarding"),
            ("word", "word"),
        ] {
            assert_eq!(path(key), file);
        }
    }
}
