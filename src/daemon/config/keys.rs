//! Every key of the configuration, each declared once: type, default, unit, limits and reason.
//!
//! A declaration becomes a field of the table's struct, a row of [`Table::KEYS`], the code that reads it and the
//! comment that `brig config` prints above it. There is no second list to keep in step.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use super::ConfigError;
use super::source::RawTable;
use super::value::{
    CgroupDriver, HostFolder, Level, LogFormat, LogLevel, Proc, Program, Ulimit, UnixAddress, Value,
};
use crate::units::Bytes;

/// What is known about one key besides its type.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Key {
    pub(crate) name: &'static str,
    /// What the value counts or names.
    pub(crate) unit: &'static str,
    /// As it would be written in the file.
    pub(crate) default: &'static str,
    /// The least and the greatest value allowed, as they would be written in the file.
    pub(crate) limits: Option<(&'static str, &'static str)>,
    /// Lines of text: what the key does and why its default is what it is.
    pub(crate) reason: &'static [&'static str],
}

/// A table of the configuration file.
pub(crate) trait Table: Sized {
    /// Lines of text printed above the table's header.
    const ABOUT: &'static [&'static str];
    const KEYS: &'static [Key];

    /// Reads every key, taking the default where the sources are silent.
    fn read(raw: &RawTable<'_>) -> Result<Self, ConfigError>;

    /// The values in the order of [`Table::KEYS`], as they would be written in the file.
    fn values(&self) -> Vec<String>;
}

macro_rules! tables {
    ($(
        $(#[doc = $about:literal])+
        struct $name:ident {
            $(
                $(#[doc = $reason:literal])+
                $key:ident: $ty:ty = $default:literal, $unit:literal $(, $least:literal to $most:literal)?;
            )+
        }
    )+) => {$(
        $(#[doc = $about])+
        #[derive(Debug, Clone, PartialEq)]
        pub(crate) struct $name {
            $($(#[doc = $reason])+ pub(crate) $key: $ty,)+
        }

        impl Table for $name {
            const ABOUT: &'static [&'static str] = &[$($about),+];
            const KEYS: &'static [Key] = &[$(Key {
                name: stringify!($key),
                unit: $unit,
                default: $default,
                limits: {
                    let limits: &[(&str, &str)] = &[$(($least, $most))?];
                    if limits.is_empty() { None } else { Some(limits[0]) }
                },
                reason: &[$($reason),+],
            }),+];

            fn read(raw: &RawTable<'_>) -> Result<Self, ConfigError> {
                let mut keys = Self::KEYS.iter();
                Ok(Self { $($key: raw.read::<$ty>(keys.next().expect("one row per field"))?),+ })
            }

            fn values(&self) -> Vec<String> {
                vec![$(self.$key.to_toml()),+]
            }
        }
    )+};
}

tables! {
    /// Where brigd keeps things and how it is reached. Instances side by side need their own root, run and listen.
    struct Server {
        /// Images, layers and their records. Needs a file system that overlayfs accepts as an upper layer.
        root: PathBuf = "\"/var/lib/brig\"", "absolute path";
        /// Sockets, and the records of pods and containers. A tmpfs, so that a reboot empties it as it ends the pods.
        run: PathBuf = "\"/run/brig\"", "absolute path";
        /// The socket of the CRI, for the kubelet, crictl and brig.
        listen: UnixAddress = "\"unix:///run/brig/brig.sock\"", "unix:// and an absolute path";
        /// Log this and what is graver.
        log_level: LogLevel = "\"info\"", "error, warn, info, debug or trace";
        /// `text` for people and the journal, `json` for collectors.
        log_format: LogFormat = "\"text\"", "text or json";
        /// How long running calls may take to end once brigd is told to stop. Pods are not affected. Well under the
        /// 90 s after which systemd kills the service.
        shutdown_grace: Duration = "\"10s\"", "duration", "\"0s\"" to "\"10m\"";
    }

    /// How pods and containers are run, whatever their handler.
    struct Runtime {
        /// The handler of a pod that names none.
        default_handler: String = "\"brig\"", "name of a [handlers.NAME] table";
        /// Who makes cgroups. The kubelet asks for this and follows (RuntimeConfig). `auto` is systemd where it runs on
        /// cgroup v2, and cgroupfs everywhere else.
        cgroup_driver: CgroupDriver = "\"auto\"", "cgroupfs, systemd or auto";
        /// Relative names of Localhost seccomp profiles are looked up here; the kubelet's own directory.
        seccomp_root: PathBuf = "\"/var/lib/kubelet/seccomp\"", "absolute path";
        /// Specifications of the Container Device Interface, for devices named vendor/class=name. Of two that describe
        /// the same device the one in the later directory counts; the files are read for every container that names one.
        cdi_spec_dirs: Vec<PathBuf> = "[\"/etc/cdi\", \"/var/run/cdi\"]", "list of absolute paths";
        /// Size of /dev/shm of a pod. What Docker and containerd give, so images behave the same.
        shm_size: Bytes = "\"64 MiB\"", "size", "\"64 KiB\"" to "\"64 GiB\"";
        /// Most processes and threads in a container whose pod sets no limit; 0 is no limit, because the kubelet sets
        /// its own limit on the pod's cgroup.
        pids_limit: u32 = "0", "processes", "0" to "4194304";
        /// Resource limits of containers, as `name=soft:hard` or `name=both`; what is not named is inherited from
        /// brigd.
        default_ulimits: Vec<Ulimit> = "[]", "list of name=soft:hard";
        /// Whether devices that a container asks for belong to the runAsUser and runAsGroup of its security context, so
        /// that a user other than root can open them. When false they keep the host's owner. The name is containerd's and
        /// CRI-O's.
        device_ownership_from_security_context: bool = "false", "true or false";
        /// How long the OCI runtime may take to create a container, hooks included. Under the kubelet's 2 minutes, so
        /// that it hears the reason rather than its own timeout.
        create_timeout: Duration = "\"100s\"", "duration", "\"1s\"" to "\"30m\"";
        /// How long a container may take to end after SIGKILL before the stop is reported as failed; it is tried
        /// again. A process in uninterruptible sleep is the usual cause.
        kill_timeout: Duration = "\"30s\"", "duration", "\"1s\"" to "\"10m\"";
        /// First host id of the ids that pods of hardened handlers get, 65536 each. The default range is the one that no
        /// common allocator touches: the kubelet's own pods, Docker's and Podman's subordinate ids and systemd's
        /// containers all end below it, and systemd's foreign ids begin above it.
        id_pool_first: u32 = "1879048192", "user and group id", "65536" to "2147418112";
        /// How many such pods there can be at a time.
        id_pool_pods: u32 = "4094", "pods", "1" to "32767";
        /// oom_score_adj of the monitors, so that the kernel kills a container before its monitor. Where the
        /// privilege to lower it is missing, brigd says so once and goes on.
        monitor_oom_score_adj: i32 = "-999", "as in /proc/PID/oom_score_adj", "-1000" to "1000";
    }

    /// A handler: what a RuntimeClass names. `brig`, `brig-hardened` and `runc` exist without being declared.
    struct Handler {
        /// The OCI runtime's binary: empty for brig-sandbox beside brigd (handler `brig` and every hardened one) or for
        /// the handler's own name (any other); a bare name is looked up in PATH. When it is missing the handler is not ready and pods
        /// that name it are refused; brigd serves all others.
        path: Program = "\"\"", "absolute path, or a name in PATH";
        /// The OCI runtime's state directory (its --root); empty for `runtimes/NAME` in the run directory.
        root: Option<PathBuf> = "\"\"", "absolute path, or empty";
        /// Options put before the OCI runtime's subcommand, one per item.
        options: Vec<String> = "[]", "list of options";
        /// Pod annotations with these keys are passed to the OCI runtime, and those that begin with what stands
        /// before a trailing *; none by default, because
        /// some runtimes obey annotations as root (CVE-2024-3154).
        allowed_annotations: Vec<String> = "[]", "list of keys or prefixes with *";
        /// Pass --systemd-cgroup when the cgroup driver is systemd. For runtimes that do not know the option, set
        /// this to false.
        systemd_cgroup: bool = "true", "true or false";
        /// `standard` gives a pod what it asks for. `hardened` is for pods that nobody vouches for: ids of the pod's own,
        /// a seccomp profile that cannot be turned off, Landlock, and a refusal of every request that would undo it. It
        /// needs brig-sandbox. The handler `brig-hardened` is always hardened.
        level: Level = "\"standard\"", "standard or hardened";
        /// Whether a container may run without a seccomp profile, which is what the kubelet asks for when a pod says
        /// nothing. When false it gets the default one instead; privileged containers are not affected. A hardened
        /// handler never allows it.
        allow_unconfined: bool = "true", "true or false";
        /// A file in OCI's or Docker's format that is the default seccomp profile instead of the embedded one; empty is
        /// the embedded one. Not for hardened handlers, whose profile is fixed.
        seccomp_profile: Option<PathBuf> = "\"\"", "absolute path, or empty";
        /// Most processes and threads in a container of this handler; 0 is runtime.pids_limit, or 1024 if the handler is
        /// hardened and that is 0 too.
        pids_limit: u32 = "0", "processes", "0" to "4194304";
        /// Hardened only: folders of the host from which a pod may mount. `{uid}` is the pod's own uid; the default is where
        /// the kubelet keeps a pod's volumes, so that a hostPath to anywhere else is refused.
        host_paths: Vec<HostFolder> = "[\"/var/lib/kubelet/pods/{uid}\"]", "list of absolute paths";
        /// Hardened only: what /proc has besides the container's processes. `processes`: nothing (`subset=pid`), for
        /// workloads that allow it; free and top end there, Java takes the node's memory for its own, and Node.js counts no
        /// processors. `common`: what programs size themselves by (cgroups, cpuinfo, filesystems, loadavg, meminfo, stat,
        /// uptime, version) and /proc/sys to read. `whole`: all that other containers see, masked as usual.
        proc: Proc = "\"common\"", "processes, common or whole";
        /// Hardened only: hide processes of other users in /proc (`hidepid=2`). A command run by exec is in a Landlock
        /// domain of its own and then sees only itself, which breaks probes such as `pgrep`; hence false.
        hide_processes: bool = "false", "true or false";
    }

    /// Pulling and keeping images.
    struct Images {
        /// Layers of one pull that are downloaded and unpacked at the same time. More helps only where the registry
        /// is slower than the disk.
        parallel_layers: u32 = "3", "layers", "1" to "32";
        /// A download that receives nothing for so long is given up: the kubelet sets no deadline of its own.
        stall_timeout: Duration = "\"1m\"", "duration", "\"1s\"" to "\"1h\"";
        /// Docker-style config.json files with credentials, in order, used when the request carries none. Missing
        /// files are skipped.
        auth_files: Vec<PathBuf> = "[\"/etc/brig/auth.json\", \"/var/lib/kubelet/config.json\", \"/root/.docker/config.json\"]", "list of absolute paths";
        /// Images that the kubelet's garbage collection must keep. A trailing `*` matches any rest.
        pinned: Vec<String> = "[]", "list of image names";
        /// Most that one image may unpack to; a larger one is refused while it unpacks. Guards the node against
        /// decompression bombs and is far above any sane image.
        max_unpacked_size: Bytes = "\"64 GiB\"", "size", "\"1 MiB\"" to "\"16 TiB\"";
    }

    /// How registries are reached.
    struct Registries {
        /// Directories with HOST/hosts.toml files (mirrors, CAs, plain HTTP), as containerd reads them. The first
        /// directory that knows the host decides; the files are read at every pull.
        certs_dir: Vec<PathBuf> = "[\"/etc/brig/certs.d\", \"/etc/containerd/certs.d\", \"/etc/docker/certs.d\"]", "list of absolute paths";
    }

    /// How pods get their addresses.
    struct Network {
        /// As soon as this directory holds a CNI configuration, CNI is used; it is looked at for every pod.
        cni_conf_dir: PathBuf = "\"/etc/cni/net.d\"", "absolute path";
        /// Where CNI plugins are looked up, in order: upstream's directory, then Debian's.
        cni_bin_dirs: Vec<PathBuf> = "[\"/opt/cni/bin\", \"/usr/lib/cni\"]", "list of absolute paths";
        /// How long one CNI operation may take. Half of what the kubelet waits for StopPodSandbox.
        cni_timeout: Duration = "\"1m\"", "duration", "\"1s\"" to "\"4m\"";
        /// Use the built-in bridge when there is no CNI configuration. When false, pods wait until one appears.
        builtin: bool = "true", "true or false";
        /// The built-in bridge's interface.
        bridge: String = "\"brig0\"", "interface name, at most 15 bytes";
        /// Addresses of the built-in bridge and its pods: at most one IPv4 and one IPv6 network. Private ranges that
        /// Docker, Podman and the usual cluster networks leave alone.
        subnets: Vec<IpNet> = "[\"10.127.0.0/16\", \"fd62:7269:6700::/64\"]", "list of networks";
        /// MTU of the built-in network; 0 takes that of the interface with the default route.
        mtu: u32 = "0", "bytes", "0" to "65535";
    }

    /// Metrics for Prometheus.
    struct Metrics {
        /// Where /metrics is served over HTTP; empty is nowhere, because anyone who reaches the port can read it. Dashboard: grafana.json.
        listen: Option<SocketAddr> = "\"\"", "IP:PORT, or empty";
    }

    /// Exec, attach and port-forward, which the API server streams over HTTP through the kubelet.
    struct Stream {
        /// Where streams are served. The kubelet connects from the same machine; port 0 lets the kernel choose.
        listen: SocketAddr = "\"127.0.0.1:0\"", "IP:PORT";
        /// The server's certificate, PEM. Needed with tls_key when the address can be reached from other machines:
        /// without TLS everyone on the way reads along. The files are read again when they change.
        tls_cert: Option<PathBuf> = "\"\"", "absolute path, or empty";
        /// The private key of tls_cert, PEM.
        tls_key: Option<PathBuf> = "\"\"", "absolute path, or empty";
        /// Authorities that clients must have a certificate of, PEM. Empty lets in whoever has a URL.
        tls_client_ca: Option<PathBuf> = "\"\"", "absolute path, or empty";
        /// A stream on which no data moves for so long is closed, pings or not. The kubelet's own default.
        idle_timeout: Duration = "\"4h\"", "duration", "\"1s\"" to "\"168h\"";
    }
}
