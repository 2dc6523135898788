//! What can be read about the machine: privileges, kernel, cgroups, binaries, CNI, disk.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use rustix::fs::{statfs, statvfs};

use super::Finding;
use crate::daemon::config::{Config, Level};
use crate::units::Bytes;

/// The magic numbers of statfs(2).
const CGROUP2_MAGIC: u64 = 0x6367_7270;
const TMPFS_MAGIC: u64 = 0x0102_1994;
const OVERLAYFS_MAGIC: u64 = 0x794c_7630;
const NFS_MAGIC: u64 = 0x6969;

/// Effective capabilities that brigd or its helpers use (capabilities(7)).
pub(super) fn privileges() -> Vec<Finding> {
    const CAP_NET_ADMIN: u32 = 12;
    const CAP_SYS_ADMIN: u32 = 21;
    const CAP_SYS_RESOURCE: u32 = 24;
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = effective_capabilities(&status);
    let has = |capability: u32| effective & (1 << capability) != 0;
    let mut findings = Vec::new();
    findings.push(if rustix::process::geteuid().is_root() && has(CAP_SYS_ADMIN) && has(CAP_NET_ADMIN) {
        Finding::ok("privileges", "root with CAP_SYS_ADMIN and CAP_NET_ADMIN")
    } else {
        Finding::fail(
            "privileges",
            "not root, or a root without CAP_SYS_ADMIN or CAP_NET_ADMIN",
            "run as root",
        )
    });
    findings.push(if has(CAP_SYS_RESOURCE) {
        Finding::ok("CAP_SYS_RESOURCE", "limits can be raised, oom_score_adj lowered")
    } else {
        Finding::warn(
            "CAP_SYS_RESOURCE",
            "missing: limits cannot be raised and the monitors' oom_score_adj cannot be lowered",
            "run brigd outside of a container, or give it the capability",
        )
    });
    findings
}

fn effective_capabilities(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0)
}

/// Version numbers say what probes do not try: id-mapped mounts and clone3 into a cgroup.
pub(super) fn kernel() -> Finding {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    match version(&release) {
        // mount_setattr(2) with MOUNT_ATTR_IDMAP: 5.12; the newest thing nothing works without.
        Some(found) if found < (5, 12) => Finding::fail("kernel", release, "Linux 5.12 or later is needed"),
        Some(found) if found < (5, 19) => Finding::warn(
            "kernel",
            release,
            "before Linux 5.19 overlayfs has no id-mapped layers, so pods with hostUsers: false cannot run",
        ),
        Some(_) => Finding::ok("kernel", release),
        None => Finding::warn(
            "kernel",
            format!("version {release:?} not understood"),
            "Linux 5.19 or later is wanted",
        ),
    }
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Which hierarchy there is and whether it has the controllers that pods are limited with.
pub(super) fn cgroups() -> Vec<Finding> {
    let unified = statfs("/sys/fs/cgroup").is_ok_and(|fs| fs.f_type as u64 == CGROUP2_MAGIC);
    let (layout, controllers) = if unified {
        ("v2", words(&fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default()))
    } else {
        let hybrid = Path::new("/sys/fs/cgroup/unified/cgroup.controllers").exists();
        let v1 = v1_controllers(&fs::read_to_string("/proc/mounts").unwrap_or_default());
        (if hybrid { "v1 with a v2 tree beside it" } else { "v1" }, v1)
    };
    let missing = |wanted: &[&str]| {
        let missing: Vec<_> = wanted.iter().copied().filter(|name| !controllers.contains(*name)).collect();
        missing.join(", ")
    };
    let mut findings = Vec::new();
    let vital = missing(&["cpu", "memory", "pids"]);
    findings.push(if controllers.is_empty() {
        Finding::fail("cgroups", "no hierarchy at /sys/fs/cgroup", "mount -t cgroup2 none /sys/fs/cgroup")
    } else if !vital.is_empty() {
        let remedy = "pods cannot be limited; enable the controllers on the kernel's command line, e.g. \
                      cgroup_enable=memory";
        Finding::fail("cgroups", format!("{layout} without {vital}"), remedy)
    } else if statvfs("/sys/fs/cgroup")
        .is_ok_and(|fs| unified && fs.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY))
    {
        Finding::fail("cgroups", format!("{layout}, read-only"), "mount -o remount,rw /sys/fs/cgroup")
    } else {
        Finding::ok("cgroups", layout)
    });
    let (block, optional) = (if unified { "io" } else { "blkio" }, missing(&["cpuset", "hugetlb"]));
    let optional =
        [missing(&[block]), optional].iter().filter(|it| !it.is_empty()).cloned().collect::<Vec<_>>();
    if !optional.is_empty() {
        findings.push(Finding::warn(
            "cgroup controllers",
            format!("without {}", optional.join(", ")),
            "the limits that need them are refused",
        ));
    }
    findings
}

fn words(text: &str) -> BTreeSet<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

/// Controllers of the v1 hierarchies in a mount table.
fn v1_controllers(mounts: &str) -> BTreeSet<String> {
    mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>())
        .filter(|fields| fields.get(2) == Some(&"cgroup"))
        .flat_map(|fields| {
            fields.get(3).map(|options| options.split(',').map(str::to_owned).collect::<Vec<_>>())
        })
        .flatten()
        .collect()
}

/// AppArmor and SELinux: neither is needed.
pub(super) fn security_modules() -> Vec<Finding> {
    let apparmor =
        fs::read_to_string("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.starts_with('Y'));
    let selinux = Path::new("/sys/fs/selinux/enforce").exists();
    let on = [("AppArmor", apparmor), ("SELinux", selinux)];
    on.into_iter()
        .map(|(name, on)| {
            Finding::ok(name, if on { "enabled" } else { "not enabled; profiles for it are refused" })
        })
        .collect()
}

/// Our helpers and the binaries of all handlers.
pub(super) fn binaries(config: &Config, siblings: &Path, search_path: &OsStr) -> Vec<Finding> {
    let mut findings = Vec::new();
    for name in ["brigd", "brig-monitor"] {
        let path = siblings.join(name);
        findings.push(if path.is_file() {
            Finding::ok(name, path.display().to_string())
        } else {
            let detail = format!("not in {}", siblings.display());
            Finding::fail(name, detail, "install the four binaries into one folder: make install")
        });
    }
    for (name, handler) in &config.handlers {
        let what = format!("handler {name}");
        findings.push(match handler.locate(siblings, search_path) {
            Some(path) => {
                let level = if handler.level == Level::Hardened { ", hardened" } else { "" };
                Finding::ok(what, format!("{}{level}", path.display()))
            }
            None if *name == config.runtime.default_handler => Finding::fail(
                what,
                "its binary is missing, and it is the default",
                format!("install it, or set path in [handlers.{name}]"),
            ),
            None => Finding::warn(
                what,
                "its binary is missing",
                format!("pods that name it are refused; install it, or set path in [handlers.{name}]"),
            ),
        });
    }
    findings
}

/// The CNI configuration that would be used, and whether its plugins are there.
pub(super) fn cni(config: &Config) -> Finding {
    /// A network configuration is a few hundred bytes.
    const CONFIG_BYTES_MAX: u64 = 1 << 20;
    let what = "pod network";
    let dir = &config.network.cni_conf_dir;
    let is_config = |path: &PathBuf| {
        path.extension()
            .is_some_and(|extension| ["conf", "conflist", "json"].iter().any(|it| extension == *it))
    };
    let mut files: Vec<_> = fs::read_dir(dir)
        .map(|entries| entries.flatten().map(|entry| entry.path()).filter(is_config).collect())
        .unwrap_or_default();
    files.sort();
    // As every runtime has it: the first by name.
    let Some(file) = files.first() else {
        return if config.network.builtin {
            Finding::ok(what, format!("built-in bridge {}, no CNI configuration", config.network.bridge))
        } else {
            let remedy =
                format!("put a configuration into {}, or set builtin = true in [network]", dir.display());
            Finding::fail(what, "no CNI configuration, and the built-in network is off", remedy)
        };
    };
    if file.metadata().is_ok_and(|meta| meta.len() > CONFIG_BYTES_MAX) {
        return Finding::fail(what, format!("{} is too large", file.display()), "correct or remove the file");
    }
    let text = fs::read_to_string(file).unwrap_or_default();
    let Some(types) = plugin_types(&text) else {
        let detail = format!("{} is no CNI configuration", file.display());
        return Finding::fail(what, detail, "correct or remove the file");
    };
    let missing: Vec<_> = types
        .into_iter()
        .filter(|plugin| !config.network.cni_bin_dirs.iter().any(|dir| dir.join(plugin).is_file()))
        .collect();
    if missing.is_empty() {
        return Finding::ok(what, format!("CNI, {}", file.display()));
    }
    Finding::fail(
        what,
        format!("{} needs {}", file.display(), missing.join(", ")),
        "install the plugins (Debian: containernetworking-plugins), or set cni_bin_dirs in [network]",
    )
}

/// The plugins a configuration or list names, IPAM included; `None` when it names none.
fn plugin_types(text: &str) -> Option<Vec<String>> {
    let document: serde_json::Value = serde_json::from_str(text).ok()?;
    let one = std::slice::from_ref(&document);
    let plugins = document.get("plugins").and_then(|plugins| plugins.as_array()).map_or(one, Vec::as_slice);
    let mut types = Vec::new();
    for plugin in plugins {
        for value in [Some(plugin), plugin.get("ipam")].into_iter().flatten() {
            types.extend(value.get("type").and_then(|it| it.as_str()).map(str::to_owned));
        }
    }
    (!types.is_empty()).then_some(types)
}

/// Room and kind of the file systems of data and run directory.
pub(super) fn disk(config: &Config) -> Vec<Finding> {
    const FREE_MIN: Bytes = Bytes::mib(512);
    const FREE_WANTED: Bytes = Bytes::mib(5 << 10);
    let mut findings = Vec::new();
    let root = existing(&config.server.root);
    let what = "data directory";
    let remedy = format!("make room, or set root in [server] (now {})", config.server.root.display());
    findings.push(match (statvfs(root), statfs(root)) {
        (Ok(space), Ok(kind)) => {
            let free = Bytes(space.f_bavail.saturating_mul(space.f_frsize));
            let detail = format!("{free} free at {}", root.display());
            match kind.f_type as u64 {
                OVERLAYFS_MAGIC | NFS_MAGIC => Finding::fail(
                    what,
                    format!("{} is on overlayfs or NFS, which cannot hold overlayfs layers", root.display()),
                    "set root in [server] to a directory on a local file system such as ext4 or xfs",
                ),
                _ if free < FREE_MIN => Finding::fail(what, detail, remedy),
                _ if free < FREE_WANTED => Finding::warn(what, detail, remedy),
                _ if space.f_files != 0 && space.f_favail < space.f_files / 20 => Finding::warn(
                    what,
                    format!("only {} inodes free at {}", space.f_favail, root.display()),
                    remedy,
                ),
                _ => Finding::ok(what, detail),
            }
        }
        _ => Finding::fail(what, format!("cannot look at {}", root.display()), remedy),
    });
    let run = existing(&config.server.run);
    let tmpfs = statfs(run).is_ok_and(|fs| fs.f_type as u64 == TMPFS_MAGIC);
    findings.push(if tmpfs {
        Finding::ok("run directory", format!("on tmpfs at {}", run.display()))
    } else {
        Finding::warn(
            "run directory",
            format!("{} is not on a tmpfs", run.display()),
            "a reboot would leave records of pods that are gone; set run in [server] to a directory below /run",
        )
    });
    findings
}

/// The path, or the nearest folder above it that exists.
fn existing(path: &Path) -> &Path {
    path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::check::Verdict;

    #[test]
    fn kernel_versions_are_read_from_releases() {
        assert_eq!(version("6.1.0-13-amd64"), Some((6, 1)));
        assert_eq!(version("5.15"), Some((5, 15)));
        assert_eq!(version("unknown"), None);
    }

    #[test]
    fn capabilities_are_read_from_the_status() {
        assert_eq!(effective_capabilities("Name:\tx\nCapEff:\t0000000000001000\n"), 1 << 12);
        assert_eq!(effective_capabilities(""), 0);
    }

    #[test]
    fn v1_controllers_are_the_options_of_their_mounts() {
        let mounts =
            "cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,cpu,cpuacct 0 0\nproc /proc proc rw,memory 0 0\n";
        let found = v1_controllers(mounts);
        assert!(found.contains("cpu") && found.contains("cpuacct") && !found.contains("memory"));
    }

    #[test]
    fn plugins_of_a_list_are_named_with_their_ipam() {
        let list = r#"{"plugins":[{"type":"bridge","ipam":{"type":"host-local"}},{"type":"portmap"}]}"#;
        assert_eq!(plugin_types(list).unwrap(), ["bridge", "host-local", "portmap"]);
        assert_eq!(plugin_types(r#"{"type":"ptp"}"#).unwrap(), ["ptp"]);
        assert_eq!(plugin_types("{}"), None);
        assert_eq!(plugin_types("nonsense"), None);
    }

    #[test]
    fn a_missing_plugin_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.network.cni_conf_dir = dir.path().join("net.d");
        config.network.cni_bin_dirs = vec![dir.path().to_owned()];
        assert_eq!(cni(&config).verdict, Verdict::Ok);
        config.network.builtin = false;
        assert_eq!(cni(&config).verdict, Verdict::Fail);
        fs::create_dir(&config.network.cni_conf_dir).unwrap();
        let file = config.network.cni_conf_dir.join("10-x.conf");
        fs::write(&file, r#"{"type":"ptp","ipam":{"type":"dhcp"}}"#).unwrap();
        fs::write(dir.path().join("ptp"), "").unwrap();
        let finding = cni(&config);
        assert_eq!(
            (finding.verdict, finding.detail),
            (Verdict::Fail, format!("{} needs dhcp", file.display()))
        );
    }

    #[test]
    fn the_nearest_existing_folder_is_looked_at() {
        assert_eq!(existing(Path::new("/proc/self/nothing/here")), Path::new("/proc/self"));
    }
}
