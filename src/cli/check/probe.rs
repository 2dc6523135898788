//! Kernel features, found out by using them in namespaces of this process's own.
//!
//! Each probe runs in a process started for it alone (`brig check --probe NAME`): leaving namespaces again is not
//! possible, and a user namespace cannot be made once there are threads. A probe returns a fragment to show.

use std::fs;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkInfo, LinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen, mount, mount_change, move_mount,
    open_tree,
};
use rustix::process::{PidfdFlags, getpid, pidfd_open};
use rustix::thread::UnshareFlags;

use super::Finding;

/// A feature that pods need.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Probe {
    Namespaces,
    UserNamespaces,
    MountApi,
    IdmappedMounts,
    Overlayfs,
    Openat2,
    Pidfd,
    Seccomp,
    Bridge,
    Veth,
    Nftables,
}

impl Probe {
    pub(super) const ALL: [Self; 11] = [
        Self::Namespaces,
        Self::UserNamespaces,
        Self::MountApi,
        Self::IdmappedMounts,
        Self::Overlayfs,
        Self::Openat2,
        Self::Pidfd,
        Self::Seccomp,
        Self::Bridge,
        Self::Veth,
        Self::Nftables,
    ];

    /// The word on the command line, as clap derives it.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Namespaces => "namespaces",
            Self::UserNamespaces => "user-namespaces",
            Self::MountApi => "mount-api",
            Self::IdmappedMounts => "idmapped-mounts",
            Self::Overlayfs => "overlayfs",
            Self::Openat2 => "openat2",
            Self::Pidfd => "pidfd",
            Self::Seccomp => "seccomp",
            Self::Bridge => "bridge",
            Self::Veth => "veth",
            Self::Nftables => "nftables",
        }
    }

    /// The probe's result as a line of the report.
    pub(super) fn finding(self, works: bool, detail: String) -> Finding {
        if works {
            return Finding::ok(self.as_str(), detail);
        }
        match self {
            Self::UserNamespaces => Finding::warn(
                self.as_str(),
                detail,
                "pods with hostUsers: false cannot run; raise user.max_user_namespaces or use a kernel with USER_NS",
            ),
            Self::Namespaces => Finding::fail(
                self.as_str(),
                detail,
                "run as root with CAP_SYS_ADMIN, on a kernel with NET_NS, PID_NS, IPC_NS, UTS_NS",
            ),
            Self::MountApi => {
                Finding::fail(self.as_str(), detail, "needs Linux 5.2 or later and CAP_SYS_ADMIN")
            }
            Self::IdmappedMounts => Finding::warn(
                self.as_str(),
                detail,
                "pods with hostUsers: false cannot run; needs Linux 5.12 or later and a file system that knows them",
            ),
            Self::Overlayfs => Finding::fail(self.as_str(), detail, "modprobe overlay"),
            Self::Openat2 => Finding::fail(self.as_str(), detail, "needs Linux 5.6 or later"),
            Self::Pidfd => Finding::fail(self.as_str(), detail, "needs Linux 5.3 or later"),
            Self::Seccomp => Finding::fail(self.as_str(), detail, "needs a kernel with SECCOMP_FILTER"),
            Self::Bridge => Finding::warn(
                self.as_str(),
                detail,
                "the built-in network cannot work: modprobe bridge, or use a CNI plugin without bridge",
            ),
            Self::Veth => Finding::warn(
                self.as_str(),
                detail,
                "the built-in network cannot work: modprobe veth, or use a CNI plugin without veth",
            ),
            Self::Nftables => Finding::warn(
                self.as_str(),
                detail,
                "the built-in network can neither masquerade nor publish ports: modprobe nf_tables",
            ),
        }
    }

    /// Uses the feature in this process, which should end afterwards.
    pub(super) fn run(self) -> io::Result<String> {
        match self {
            Self::Namespaces => {
                unshare(
                    UnshareFlags::NEWNS
                        | UnshareFlags::NEWNET
                        | UnshareFlags::NEWIPC
                        | UnshareFlags::NEWUTS
                        | UnshareFlags::NEWPID
                        | UnshareFlags::NEWCGROUP,
                )?;
                Ok("mount, network, ipc, uts, pid, cgroup".to_owned())
            }
            Self::UserNamespaces => {
                unshare(UnshareFlags::NEWUSER)?;
                Ok("can be made".to_owned())
            }
            Self::MountApi => {
                private_mounts()?;
                let tree = open_tree(
                    CWD,
                    "/proc",
                    OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC,
                )?;
                let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
                move_mount(&tree, "", CWD, "/tmp", flags)?;
                Ok("detached mounts work".to_owned())
            }
            Self::IdmappedMounts => idmapped_mounts(),
            Self::Overlayfs => overlayfs(),
            Self::Openat2 => {
                let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
                openat2(CWD, "/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve)?;
                Ok("resolves inside a root".to_owned())
            }
            Self::Pidfd => {
                pidfd_open(getpid(), PidfdFlags::empty())?;
                Ok("works".to_owned())
            }
            Self::Seccomp => {
                let actions = fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail")?;
                let filters = actions.split_whitespace().any(|action| action == "errno");
                if filters {
                    Ok("filters with errno".to_owned())
                } else {
                    Err(io::Error::other("no filters"))
                }
            }
            Self::Bridge => link("brigprobe0", LinkInfo::Kind(InfoKind::Bridge), None),
            Self::Veth => {
                let mut peer = LinkMessage::default();
                peer.attributes.push(LinkAttribute::IfName("brigprobe1".to_owned()));
                let data = LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer)));
                link("brigprobe0", LinkInfo::Kind(InfoKind::Veth), Some(data))
            }
            Self::Nftables => nftables(),
        }
    }
}

/// unshare(2) of this process, which has one thread.
fn unshare(flags: UnshareFlags) -> io::Result<()> {
    #[expect(
        deprecated,
        reason = "deprecated because of CLONE_FILES, which no probe uses; its successor cannot be called outside of sys"
    )]
    rustix::thread::unshare(flags)
        .map_err(|err| io::Error::new(err.kind(), format!("unshare {flags:?}: {err}")))
}

/// A mount namespace of our own from which nothing spreads to the host.
fn private_mounts() -> io::Result<()> {
    unshare(UnshareFlags::NEWNS)?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    Ok(())
}

/// Maps the ids of a detached clone of /var by a user namespace that another process holds meanwhile.
fn idmapped_mounts() -> io::Result<String> {
    let mut holder = Command::new("unshare")
        .args(["--user", "sh", "-c", "echo; read -r _"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let mapped = map_clone(&mut holder);
    // Closing its standard input ends the holder.
    drop(holder.stdin.take());
    holder.wait()?;
    mapped
}

fn map_clone(holder: &mut Child) -> io::Result<String> {
    let mut ready = [0; 1];
    holder.stdout.take().expect("a pipe was asked for").read_exact(&mut ready)?;
    for file in ["uid_map", "gid_map"] {
        fs::write(format!("/proc/{}/{file}", holder.id()), "0 100000 65536")?;
    }
    let user_namespace = fs::File::open(format!("/proc/{}/ns/user", holder.id()))?;
    private_mounts()?;
    let tree = open_tree(CWD, "/var", OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)?;
    crate::sys::mount::map_ids(&tree, false, user_namespace.as_fd())?;
    Ok("work on the file system of /var".to_owned())
}

/// Mounts an overlay of two lower directories with the option that Brig uses (`lowerdir+`, since Linux 6.5).
fn overlayfs() -> io::Result<String> {
    private_mounts()?;
    mount("tmpfs", "/tmp", "tmpfs", MountFlags::empty(), None)?;
    for dir in ["/tmp/a", "/tmp/b", "/tmp/upper", "/tmp/work"] {
        fs::create_dir(dir)?;
    }
    let try_with = |lower: &[(&str, &str)]| -> io::Result<()> {
        let overlay = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
        for (key, value) in lower.iter().chain(&[("upperdir", "/tmp/upper"), ("workdir", "/tmp/work")]) {
            fsconfig_set_string(&overlay, *key, *value)?;
        }
        fsconfig_create(&overlay)?;
        fsmount(&overlay, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
        Ok(())
    };
    // Before Linux 6.5 an unknown key is taken at first and refused at the end.
    if try_with(&[("lowerdir+", "/tmp/a"), ("lowerdir+", "/tmp/b")]).is_ok() {
        return Ok("works, any number of layers".to_owned());
    }
    try_with(&[("lowerdir", "/tmp/a:/tmp/b")])?;
    Ok("works, limited by the length of the paths".to_owned())
}

/// Makes a link in a network namespace of our own.
fn link(name: &str, kind: LinkInfo, data: Option<LinkInfo>) -> io::Result<String> {
    unshare(UnshareFlags::NEWNET)?;
    let mut link = LinkMessage::default();
    link.attributes.push(LinkAttribute::IfName(name.to_owned()));
    link.attributes.push(LinkAttribute::LinkInfo(std::iter::once(kind).chain(data).collect()));
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
    let mut message =
        NetlinkMessage::new(header, NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)));
    message.finalize();
    let mut request = vec![0; message.buffer_len()];
    message.serialize(&mut request);
    netlink(protocols::NETLINK_ROUTE, &request)?;
    Ok("can be made".to_owned())
}

/// Asks nftables for its generation in a network namespace of our own: the smallest question it answers.
fn nftables() -> io::Result<String> {
    /// `NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETGEN` (linux/netfilter/nfnetlink.h, nf_tables.h).
    const GETGEN: u16 = 10 << 8 | 16;
    unshare(UnshareFlags::NEWNET)?;
    // struct nlmsghdr (length, type, flags, sequence, port) and an empty struct nfgenmsg.
    let mut request = Vec::new();
    request.extend(20u32.to_ne_bytes());
    request.extend(GETGEN.to_ne_bytes());
    request.extend(NLM_F_REQUEST.to_ne_bytes());
    request.extend([0; 12]);
    netlink(protocols::NETLINK_NETFILTER, &request)?;
    Ok("answers".to_owned())
}

/// Sends one request and reads one answer; an answer of type error with a number is an error.
fn netlink(protocol: isize, request: &[u8]) -> io::Result<()> {
    /// `NLMSG_ERROR` (netlink(7)); 0 in its field is the acknowledgement.
    const ERROR: u16 = 2;
    let socket = Socket::new(protocol)?;
    socket.send_to(request, &SocketAddr::new(0, 0), 0)?;
    let (answer, _) = socket.recv_from_full()?;
    let field =
        |at: usize| answer.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map(i32::from_ne_bytes);
    let kind = answer.get(4..6).and_then(|bytes| bytes.try_into().ok()).map(u16::from_ne_bytes);
    match (kind, field(16)) {
        (Some(ERROR), Some(errno)) if errno != 0 => Err(io::Error::from_raw_os_error(-errno)),
        (Some(_), _) => Ok(()),
        (None, _) => Err(io::Error::other("an answer too short for netlink")),
    }
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;

    use super::*;

    #[test]
    fn every_probe_is_called_by_its_name() {
        for probe in Probe::value_variants() {
            assert_eq!(Probe::from_str(probe.as_str(), false), Ok(*probe));
            assert!(Probe::ALL.contains(probe), "{probe:?}");
        }
    }
}
