//! From a configuration to a node: log, directories, lock, stores, tables.

use std::collections::HashMap;
use std::fs::{File, OpenOptions, Permissions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use oci_spec::runtime::{PosixRlimit, PosixRlimitBuilder, PosixRlimitType};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::SubscriberInitExt;

use super::config::{self, CgroupDriver, Config, Level, LogFormat, Proc};
use super::{apparmor, features};
use crate::container::handler::{Features, Handler, Hardened, ProcView};
use crate::container::{self, Containers};
use crate::cri::{About, Services};
use crate::events::Bus;
use crate::image::pull::{PullConfig, Puller};
use crate::image::reference::Reference;
use crate::image::registry::Proxies;
use crate::image::{Limits, Store, StoreError};
use crate::metrics::own::Own;
use crate::monitor::spawn::SmallMountNamespace;
use crate::network::{Network, NetworkConfig, NetworkError};
use crate::pod::ids::{IdPool, IdsError};
use crate::pod::{self, Pods};
use crate::records::{Records, RecordsError, Rows};
use crate::stream;
use crate::sys::cgroup::{Hierarchy, Mode};
use crate::sys::systemd;
use crate::task::blocking;

/// Everything the daemon is made of.
#[derive(Debug)]
pub(super) struct Node {
    pub config: Arc<Config>,
    pub store: Store,
    pub puller: Puller,
    pub pods: Pods,
    pub pod_records: pod::record::Records,
    pub container_records: container::record::Records,
    pub bus: Bus,
    /// What the daemon counts about itself.
    pub own: Own,
    systemd_cgroups: bool,
    /// Held until the process ends, so two daemons never share a directory.
    _locks: [File; 2],
}

/// Why the daemon cannot be set up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SetupError {
    #[error("cannot {action} {}", path.display())]
    File {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("another brigd uses {}; stop it or give this one its own --root, --run and --listen", .0.display())]
    InUse(PathBuf),
    #[error("the binary {name} is not beside brigd in {}; install all of Brig's binaries together", dir.display())]
    NoSibling { name: &'static str, dir: PathBuf },
    #[error("cannot open the image store in {}", path.display())]
    Store {
        path: PathBuf,
        #[source]
        source: StoreError,
    },
    #[error("cannot open the records in {}", path.display())]
    Records {
        path: PathBuf,
        #[source]
        source: RecordsError,
    },
    #[error("cannot set the network up")]
    Network(#[source] NetworkError),
    #[error(
        "runtime.cgroup_driver is systemd, but systemd is not this machine's first process; set it to cgroupfs"
    )]
    NoSystemd,
    #[error("cannot read which ids pods have")]
    Ids(#[source] IdsError),
    #[error("cannot raise the limit of open files to the hard one")]
    FileLimit(#[source] io::Error),
    #[error("cannot make a small mount namespace for monitors")]
    Mounts(#[source] io::Error),
}

/// Starts the log on standard error.
pub(super) fn log(server: &config::Server) {
    let filter = EnvFilter::builder().parse_lossy(format!("warn,brig={}", server.log_level.as_str()));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_target(false);
    match server.log_format {
        LogFormat::Text => log.with_ansi(false).finish().init(),
        LogFormat::Json => log.json().finish().init(),
    }
}

/// Opens directories, lock, stores and tables. Touches no pod.
pub(super) async fn open(config: Config) -> Result<Node, SetupError> {
    let (root, run) = (config.server.root.clone(), config.server.run.clone());
    // On the way to a rootfs: a foreign runtime looks for it as the root of a user namespace, who owns nothing here.
    for dir in [run.clone(), run.join("containers")] {
        make_dir(&dir, 0o711)?;
    }
    let private = ["pods", "monitors", "runtimes", "network"].map(|name| run.join(name));
    for dir in [root.clone()].iter().chain(&private) {
        make_dir(dir, 0o700)?;
    }
    let locks = [lock(&root)?, lock(&run)?];
    let store = {
        let config = config.clone();
        blocking(move || open_store(&config)).await?
    };
    let records = {
        let path = run.join("records");
        blocking(move || Records::open(&path).map_err(|source| SetupError::Records { path, source })).await?
    };
    let opened = |source: RecordsError| SetupError::Records { path: run.join("records"), source };
    let pod_records = Rows::open(&records).map_err(opened)?;
    let container_records = Rows::open(&records).map_err(opened)?;
    let systemd_cgroups = systemd_cgroups(&config)?;
    let bin = binaries();
    let monitor = sibling(&bin, "brig-monitor")?;
    sibling(&bin, config::BUNDLED_BINARY)?;
    let small_mounts = {
        let (paths, bin) = ([root.clone(), run.clone()], bin.clone());
        blocking(move || SmallMountNamespace::prepare(&paths, &bin)).await.map_err(SetupError::Mounts)?
    };
    let network = Network::new(NetworkConfig {
        cni_conf_dir: config.network.cni_conf_dir.clone(),
        cni_bin_dirs: config.network.cni_bin_dirs.clone(),
        cni_cache_dir: root.join("cni"),
        builtin: config.network.builtin,
        bridge_name: config.network.bridge.clone(),
        subnets: config.network.subnets.clone(),
        mtu: (config.network.mtu != 0).then_some(config.network.mtu),
        state_dir: run.join("network"),
        teardown_timeout: config.network.cni_timeout,
    })
    .map_err(SetupError::Network)?;
    let own = Own::default();
    let puller = Puller::new(
        store.clone(),
        PullConfig {
            certs_dirs: config.registries.certs_dir.clone(),
            auth_files: config.images.auth_files.clone(),
            parallel_layers: config.images.parallel_layers as usize,
            stall_timeout: config.images.stall_timeout,
            pinned: config.images.pinned.clone(),
            proxies: Proxies::from_env(),
            own: own.clone(),
            ..PullConfig::default()
        },
    );
    let ids = {
        let (dir, runtime) = (run.join("ids"), config.runtime.clone());
        blocking(move || IdPool::open(dir, runtime.id_pool_first, runtime.id_pool_pods)).await
    };
    let bus = Bus::default();
    let mut limits = rlimits(&config);
    raise_file_limit(&mut limits).map_err(SetupError::FileLimit)?;
    blocking(|| apparmor::ensure_default_profile(&container::bundle::SecurityModules::of_host())).await;
    let containers = Containers::new(
        container_records.clone(),
        store.clone(),
        bus.clone(),
        container::Settings {
            run: run.clone(),
            host: container::bundle::Host::detect(container::bundle::Configured {
                seccomp_root: config.runtime.seccomp_root.clone(),
                cdi_spec_dirs: config.runtime.cdi_spec_dirs.clone(),
                pids_limit: (config.runtime.pids_limit != 0).then(|| i64::from(config.runtime.pids_limit)),
                rlimits: limits,
                device_ownership: config.runtime.device_ownership_from_security_context,
            }),
            runtime_timeout: config.runtime.create_timeout,
            kill_timeout: config.runtime.kill_timeout,
        },
    );
    let pods = Pods::new(
        pod_records.clone(),
        containers,
        network,
        bus.clone(),
        pod::Settings {
            run: run.clone(),
            monitor,
            handlers: handlers(&config, &bin, systemd_cgroups).await,
            default_handler: config.runtime.default_handler.clone(),
            small_mounts: Some(Arc::new(small_mounts)),
            shm_size: config.runtime.shm_size,
            modules: container::bundle::SecurityModules::of_host(),
            ids: Arc::new(ids.map_err(SetupError::Ids)?),
            monitor_oom_score_adj: config.runtime.monitor_oom_score_adj,
        },
    );
    Ok(Node {
        config: Arc::new(config),
        store,
        puller,
        pods,
        pod_records,
        container_records,
        bus,
        own,
        systemd_cgroups,
        _locks: locks,
    })
}

/// Opens the image store of a configuration, and nothing else. Blocking.
pub(super) fn open_store(config: &Config) -> Result<Store, SetupError> {
    let path = config.server.root.clone();
    let limits = Limits { plain_bytes_max: config.images.max_unpacked_size.0 };
    let store =
        Store::open_with(&path, limits).map_err(|source| SetupError::Store { path: path.clone(), source })?;
    // Images that came under an earlier configuration.
    for image in store.list() {
        let names =
            image.tags.iter().chain(&image.repo_digests).filter_map(|name| name.parse::<Reference>().ok());
        let pinned = names.into_iter().any(|name| name.is_among(&config.images.pinned));
        let set = store.set_pinned(&image.id, pinned);
        set.map_err(|source| SetupError::Store { path: path.clone(), source })?;
    }
    Ok(store)
}

impl Node {
    /// What the gRPC edge works on.
    pub(super) fn services(&self, streams: stream::Streams) -> Services {
        Services {
            about: About {
                root: self.config.server.root.clone(),
                run: self.config.server.run.clone(),
                systemd_cgroups: self.systemd_cgroups,
                toml: self.config.to_toml(),
            },
            pods: self.pods.clone(),
            store: self.store.clone(),
            puller: self.puller.clone(),
            bus: self.bus.clone(),
            own: self.own.clone(),
            streams,
        }
    }

    /// What the configuration says about streams.
    pub(super) fn stream_settings(&self) -> stream::Settings {
        let config::Stream { listen, tls_cert, tls_key, tls_client_ca, idle_timeout } =
            self.config.stream.clone();
        let tls = tls_cert.zip(tls_key).map(|(cert, key)| stream::tls::TlsFiles {
            cert,
            key,
            client_ca: tls_client_ca,
        });
        stream::Settings { listen, tls, idle_timeout }
    }
}

/// Whether systemd makes the cgroups. `auto` chooses as systemd's developers ask for: who is not told otherwise leaves the
/// v2 tree to systemd where it runs (systemd, CGROUP_DELEGATION). On v1 both can write without harm.
fn systemd_cgroups(config: &Config) -> Result<bool, SetupError> {
    match config.runtime.cgroup_driver {
        CgroupDriver::Cgroupfs => Ok(false),
        CgroupDriver::Systemd if !systemd::is_running() => Err(SetupError::NoSystemd),
        CgroupDriver::Systemd => Ok(true),
        CgroupDriver::Auto => {
            Ok(systemd::is_running() && Hierarchy::of_host().is_ok_and(|found| found.mode() == Mode::V2))
        }
    }
}

/// `runtime.default_ulimits` as the OCI has it.
fn rlimits(config: &Config) -> Vec<PosixRlimit> {
    let limit = |limit: &config::Ulimit| {
        let kind: PosixRlimitType = limit.kind.parse().expect("the configuration knows only the OCI's kinds");
        rlimit(kind, limit.soft, limit.hard)
    };
    config.runtime.default_ulimits.iter().map(limit).collect()
}

fn rlimit(kind: PosixRlimitType, soft: u64, hard: u64) -> PosixRlimit {
    PosixRlimitBuilder::default().typ(kind).soft(soft).hard(hard).build().expect("all fields are set")
}

/// Lets this process, and with it monitors and runtimes, have as many files open as its hard limit says: a container's mounts
/// are an open file each. Containers keep the limit from before, which programs that loop over every number count on.
fn raise_file_limit(limits: &mut Vec<PosixRlimit>) -> io::Result<()> {
    let before = getrlimit(Resource::Nofile);
    if before.current == before.maximum {
        return Ok(());
    }
    let raised = Rlimit { current: before.maximum, maximum: before.maximum };
    setrlimit(Resource::Nofile, raised)?;
    if !limits.iter().any(|limit| limit.typ() == PosixRlimitType::RlimitNofile) {
        let [soft, hard] = [before.current, before.maximum].map(|limit| limit.unwrap_or(u64::MAX));
        limits.push(rlimit(PosixRlimitType::RlimitNofile, soft, hard));
    }
    Ok(())
}

/// The configured handlers with their binaries found. A missing binary is an error only when a pod asks for it.
async fn handlers(config: &Config, bin: &Path, systemd_cgroups: bool) -> HashMap<String, Arc<Handler>> {
    const USUAL: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let search_path = std::env::var_os("PATH").unwrap_or_else(|| USUAL.into());
    let resolve = |name: &str, handler: &config::Handler| {
        let path = handler.usual_path(bin, &search_path);
        let bundled = path.file_name().is_some_and(|file| file == config::BUNDLED_BINARY);
        Handler {
            name: name.to_owned(),
            root: handler.root.clone().unwrap_or_else(|| config.server.run.join("runtimes").join(name)),
            options: handler.options.clone(),
            allowed_annotations: handler.allowed_annotations.clone(),
            systemd_cgroup: handler.systemd_cgroup && systemd_cgroups,
            hardened: (handler.level == Level::Hardened).then(|| Hardened {
                host_paths: handler.host_paths.iter().map(|folder| folder.0.clone()).collect(),
                proc: match handler.proc {
                    Proc::Processes => ProcView::Processes,
                    Proc::Common => ProcView::Common,
                    Proc::Whole => ProcView::Whole,
                },
                hide_processes: handler.hide_processes,
            }),
            seccomp_profile: handler.seccomp_profile.clone(),
            allow_unconfined: handler.allow_unconfined,
            pids_limit: (handler.pids_limit != 0).then(|| i64::from(handler.pids_limit)),
            features: if bundled { features::of_bundled() } else { Features::default() },
            bundled,
            path,
        }
    };
    let asked = config.handlers.iter().map(|(name, handler)| {
        let mut handler = resolve(name, handler);
        async move {
            if !handler.bundled {
                handler.features = features::ask(&handler.path).await;
            }
            (name.clone(), Arc::new(handler))
        }
    });
    futures_util::future::join_all(asked).await.into_iter().collect()
}

/// The directory of this binary; its siblings are found there.
fn binaries() -> PathBuf {
    let own = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("/usr/bin/brigd"));
    own.parent().map_or_else(|| PathBuf::from("/usr/bin"), Path::to_owned)
}

fn sibling(dir: &Path, name: &'static str) -> Result<PathBuf, SetupError> {
    let path = dir.join(name);
    if path.is_file() { Ok(path) } else { Err(SetupError::NoSibling { name, dir: dir.to_owned() }) }
}

/// Makes a directory with exactly `mode`, or gives it to one that is there.
fn make_dir(path: &Path, mode: u32) -> Result<(), SetupError> {
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.and_then(|()| std::fs::set_permissions(path, Permissions::from_mode(mode)))
        .map_err(|source| SetupError::File { action: "create directory", path: path.to_owned(), source })
}

fn lock(dir: &Path) -> Result<File, SetupError> {
    let path = dir.join("brigd.lock");
    let error = |action, source| SetupError::File { action, path: path.clone(), source };
    // Who can read it can lock it.
    let options = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path);
    let file = options.map_err(|source| error("create", source))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(SetupError::InUse(dir.to_owned())),
        Err(TryLockError::Error(source)) => Err(error("lock", source)),
    }
}
