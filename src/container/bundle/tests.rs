//! Tables over one fixture: an image, a pod with every namespace, a host that has everything.

use serde_json::{Value, json};

use super::*;
use crate::container::handler::ProcView;
use crate::container::spec::{
    Device, HugepageLimit, ImageSpec, Mount, MountSource, NamespaceMode, Propagation, Resources, RunAsUser,
    SecurityProfile, SelinuxOptions,
};

struct Fixture {
    spec: ContainerSpec,
    image: Value,
    namespaces: Namespaces,
    host: Host,
    pod_privileged: bool,
    pod_selinux: Option<SelinuxOptions>,
    user_ns: Option<PathBuf>,
    cgroup_parent: &'static str,
    pod_annotations: BTreeMap<String, String>,
    allowed: Vec<String>,
    image_mounts: BTreeMap<PathBuf, PathBuf>,
    volumes_dir: Option<PathBuf>,
    hardened: Option<Hardened>,
    seccomp_profile: Option<PathBuf>,
    never_unconfined: bool,
    features: Features,
    scratch: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        let scratch = tempfile::tempdir().unwrap();
        std::fs::create_dir(scratch.path().join("seccomp")).unwrap();
        Self {
            spec: ContainerSpec {
                name: "app".into(),
                command: vec!["/bin/sh".into()],
                ..ContainerSpec::default()
            },
            image: json!({}),
            namespaces: Namespaces::default(),
            host: Host {
                rlimits: Vec::new(),
                device_ownership: false,
                capabilities: process::capabilities_in(u64::MAX),
                modules: SecurityModules::at(&scratch.path().join("sys")),
                cdi_spec_dirs: vec![scratch.path().join("cdi")],
                oom_score_adj_min: -1000,
                huge_pages: true,
                seccomp_root: scratch.path().join("seccomp"),
                pids_limit: None,
            },
            pod_privileged: false,
            pod_selinux: None,
            user_ns: None,
            cgroup_parent: "/kubepods/pod1",
            pod_annotations: BTreeMap::new(),
            allowed: Vec::new(),
            image_mounts: BTreeMap::new(),
            volumes_dir: None,
            hardened: None,
            seccomp_profile: None,
            never_unconfined: false,
            features: Features::default(),
            scratch,
        }
    }

    fn confines(&self) -> Confines<'_> {
        Confines {
            hardened: self.hardened.as_ref(),
            seccomp_profile: self.seccomp_profile.as_deref(),
            allow_unconfined: !self.never_unconfined,
            pids_limit: None,
            features: self.features,
        }
    }

    fn generate(&self) -> Result<Bundle, BundleError> {
        let ns = |name: &str| Some(PathBuf::from(format!("/run/ns/{name}")));
        let pod_id = "11".repeat(32).parse().unwrap();
        let pod = PodView {
            id: &pod_id,
            name: "web",
            namespace: "default",
            uid: "u-1",
            hostname: "web-0",
            namespaces: &self.namespaces,
            network_ns: ns("net").filter(|_| self.namespaces.network != NamespaceMode::Node),
            ipc_ns: ns("ipc").filter(|_| self.namespaces.ipc != NamespaceMode::Node),
            uts_ns: ns("uts").filter(|_| self.namespaces.network != NamespaceMode::Node),
            user_ns: self.user_ns.clone(),
            pid_ns: ns("pid"),
            cgroup_parent: self.cgroup_parent,
            annotations: &self.pod_annotations,
            resolv_conf: Some(Path::new("/run/pod/resolv.conf")),
            hostname_file: Some(Path::new("/run/pod/hostname")),
            shm: Some(Path::new("/run/pod/shm")),
            privileged: self.pod_privileged,
            allowed_annotations: &self.allowed,
            confines: self.confines(),
        };
        let image = serde_json::from_value(json!({
            "architecture": "amd64", "os": "linux", "config": self.image,
            "rootfs": {"type": "layers", "diff_ids": []},
        }))
        .unwrap();
        let rootfs = std::fs::File::open(self.scratch.path()).unwrap().into();
        let options = self.pod_selinux.as_ref();
        let labels = PodLabels { id: &pod_id, namespaces: &self.namespaces, options };
        let labels = self.host.modules.selinux_labels(&self.spec.security, labels)?;
        generate(&BundleInput {
            labels: labels.as_ref(),
            spec: &self.spec,
            pod: &pod,
            host: &self.host,
            image: &image,
            rootfs: &rootfs,
            id: &"22".repeat(32).parse().unwrap(),
            image_mounts: &self.image_mounts,
            volumes_dir: self.volumes_dir.as_deref(),
        })
    }

    /// Makes the host look as if it had a security module: files below `/sys`, by name and content.
    fn sys(&self, files: &[(&str, &str)]) {
        for (name, text) in files {
            let path = self.scratch.path().join("sys").join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
    }

    /// The document as a runtime reads it.
    fn json(&self) -> Value {
        serde_json::to_value(self.generate().unwrap().spec).unwrap()
    }

    fn error(&self) -> String {
        self.generate().unwrap_err().to_string()
    }
}

fn strings(value: &Value) -> Vec<&str> {
    value.as_array().map(|all| all.iter().map(|one| one.as_str().unwrap()).collect()).unwrap_or_default()
}

fn texts(all: &[&str]) -> Vec<String> {
    all.iter().map(|one| (*one).to_owned()).collect()
}

#[test]
fn the_command_of_request_and_image_combine_as_cri_says() {
    for (entrypoint, cmd, command, args, expected) in [
        (&["/e"][..], &["c"][..], &[][..], &[][..], Some(&["/e", "c"][..])),
        (&["/e"], &["c"], &[], &["a"], Some(&["/e", "a"])),
        (&["/e"], &["c"], &["/x"], &[], Some(&["/x"])),
        (&["/e"], &["c"], &["/x"], &["a"], Some(&["/x", "a"])),
        (&[], &["/c"], &[], &[], Some(&["/c"])),
        (&[], &[], &[], &["/a"], Some(&["/a"])),
        (&[], &[], &[], &[], None),
    ] {
        let mut fixture = Fixture::new();
        fixture.image = json!({"Entrypoint": entrypoint, "Cmd": cmd});
        fixture.spec.command = texts(command);
        fixture.spec.args = texts(args);
        match expected {
            Some(expected) => assert_eq!(strings(&fixture.json()["process"]["args"]), expected),
            None => assert!(matches!(fixture.generate(), Err(BundleError::NoCommand))),
        }
    }
}

#[test]
fn the_environment_takes_the_last_word_and_fills_in_what_programs_expect() {
    let mut fixture = Fixture::new();
    std::fs::create_dir(fixture.scratch.path().join("etc")).unwrap();
    std::fs::write(fixture.scratch.path().join("etc/passwd"), "root:x:0:0::/root:/bin/sh\n").unwrap();
    assert_eq!(
        strings(&fixture.json()["process"]["env"]),
        ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOSTNAME=web-0", "HOME=/root",]
    );
    fixture.spec.tty = true;
    fixture.image = json!({"Env": ["PATH=/opt/bin", "A=image", "broken", "=nameless", "B=x=y"]});
    fixture.spec.envs = vec![("A".into(), "request".into()), ("HOME".into(), "/h".into())];
    assert_eq!(
        strings(&fixture.json()["process"]["env"]),
        ["PATH=/opt/bin", "TERM=xterm", "HOSTNAME=web-0", "A=request", "B=x=y", "HOME=/h",]
    );
}

#[test]
fn a_working_directory_is_absolute_and_the_request_goes_first() {
    for (image, request, expected) in [
        (None, None, "/"),
        (Some("/srv"), None, "/srv"),
        (Some("srv"), None, "/srv"),
        (Some("/srv"), Some("/tmp"), "/tmp"),
        (Some("/srv"), Some(""), "/srv"),
    ] {
        let mut fixture = Fixture::new();
        fixture.image = json!({"WorkingDir": image});
        fixture.spec.working_dir = request.map(str::to_owned);
        assert_eq!(fixture.json()["process"]["cwd"], expected);
    }
}

#[test]
fn capabilities_start_from_nine_and_none_is_ever_inheritable() {
    let sets = |add: &[&str], drop: &[&str], ambient: &[&str]| {
        let mut fixture = Fixture::new();
        fixture.spec.security.capabilities.add = texts(add);
        fixture.spec.security.capabilities.drop = texts(drop);
        fixture.spec.security.capabilities.add_ambient = texts(ambient);
        let value = fixture.json()["process"]["capabilities"].clone();
        let count = |set: &str| value[set].as_array().map_or(0, Vec::len);
        (count("bounding"), count("effective"), count("permitted"), count("inheritable"), count("ambient"))
    };
    assert_eq!(sets(&[], &[], &[]), (9, 9, 9, 0, 0));
    assert_eq!(sets(&["CAP_NET_ADMIN", "net_raw"], &["KILL"], &[]), (10, 10, 10, 0, 0));
    assert_eq!(sets(&["ALL"], &["SYS_ADMIN"], &[]), (40, 40, 40, 0, 0));
    assert_eq!(sets(&["CHOWN"], &["ALL"], &[]), (1, 1, 1, 0, 0));
    assert_eq!(sets(&[], &[], &["NET_BIND_SERVICE"]), (9, 9, 9, 1, 1));
    let mut fixture = Fixture::new();
    fixture.spec.security.capabilities.add = texts(&["CAP_FLY"]);
    assert_eq!(fixture.error(), "capability \"CAP_FLY\" is not one that Linux knows");
    fixture.spec.security.capabilities.add = texts(&["SYS_RESOURCE"]);
    fixture.host.capabilities.retain(|one| *one != Capability::SysResource);
    assert_eq!(
        fixture.generate().unwrap().warnings,
        ["capabilities SYS_RESOURCE are left out: this host or the handler's runtime does not have them"]
    );
}

#[test]
fn a_runtime_with_its_own_kernel_is_told_the_pods_name_and_no_capability_that_it_does_not_know() {
    let mut fixture = Fixture::new();
    assert_eq!(fixture.json().get("hostname"), None);
    let known: Vec<String> = ["CAP_CHOWN", "CAP_SYS_ADMIN"].map(str::to_owned).into();
    fixture.features.own_kernel = true;
    fixture.features.unknown_capabilities = capabilities_but(&known);
    fixture.spec.security.capabilities.add = texts(&["ALL"]);
    let spec = fixture.json();
    assert_eq!(spec["hostname"], "web-0");
    let mut capabilities = strings(&spec["process"]["capabilities"]["bounding"]);
    capabilities.sort_unstable();
    assert_eq!(capabilities, ["CAP_CHOWN", "CAP_SYS_ADMIN"]);
}

#[test]
fn an_unprivileged_container_is_confined_in_every_way() {
    let mut fixture = Fixture::new();
    fixture.spec.security.seccomp = SecurityProfile::RuntimeDefault;
    fixture.spec.security.no_new_privs = true;
    fixture.spec.security.readonly_rootfs = true;
    let spec = fixture.json();
    assert_eq!(spec["process"]["noNewPrivileges"], true);
    assert_eq!(spec["root"]["readonly"], true);
    assert_eq!(spec["process"].get("rlimits"), None);
    assert_eq!(spec["linux"]["seccomp"]["defaultAction"], "SCMP_ACT_ERRNO");
    assert_eq!(spec["linux"]["cgroupsPath"], format!("/kubepods/pod1/{}", "22".repeat(32)));
    for path in
        ["/proc/kcore", "/proc/keys", "/proc/interrupts", "/sys/firmware", "/sys/devices/virtual/powercap"]
    {
        assert!(strings(&spec["linux"]["maskedPaths"]).contains(&path), "{path}");
    }
    assert_eq!(
        strings(&spec["linux"]["readonlyPaths"]),
        ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]
    );
    assert_eq!(
        spec["linux"]["resources"]["devices"][0],
        json!({"allow": false, "type": "a", "access": "rwm"})
    );
    let kinds: Vec<_> = spec["linux"]["namespaces"]
        .as_array()
        .unwrap()
        .iter()
        .map(|ns| (ns["type"].as_str().unwrap(), ns["path"].as_str()))
        .collect();
    assert_eq!(
        kinds,
        [
            ("mount", None),
            ("network", Some("/run/ns/net")),
            ("ipc", Some("/run/ns/ipc")),
            ("uts", Some("/run/ns/uts")),
            ("pid", Some("/run/ns/pid")),
            ("cgroup", None),
        ]
    );
}

#[test]
fn a_privileged_container_gets_the_host_and_its_pod_must_allow_it() {
    let mut fixture = Fixture::new();
    fixture.spec.security.privileged = true;
    fixture.spec.security.seccomp = SecurityProfile::RuntimeDefault;
    assert!(matches!(fixture.generate(), Err(BundleError::Privileged)));
    fixture.pod_privileged = true;
    let spec = fixture.json();
    assert_eq!(spec["process"]["capabilities"]["effective"].as_array().unwrap().len(), 41);
    assert_eq!(spec["linux"].get("seccomp"), None);
    assert_eq!(strings(&spec["linux"]["maskedPaths"]), [""; 0]);
    assert_eq!(strings(&spec["linux"]["readonlyPaths"]), [""; 0]);
    assert_eq!(spec["linux"]["resources"]["devices"], json!([{"allow": true, "type": "a", "access": "rwm"}]));
    let devices = spec["linux"]["devices"].as_array().unwrap();
    assert!(
        devices.iter().any(|node| node["path"] == "/dev/null" && node["major"] == 1 && node["minor"] == 3)
    );
    for mount in spec["mounts"].as_array().unwrap() {
        assert!(!strings(&mount["options"]).contains(&"ro"), "{mount}");
    }
}

#[test]
fn an_unmasked_proc_is_given_in_a_user_namespace_only() {
    let mut fixture = Fixture::new();
    assert!(!strings(&fixture.json()["linux"]["maskedPaths"]).is_empty());
    fixture.user_ns = Some("/run/ns/user".into());
    let spec = fixture.json();
    assert_eq!(strings(&spec["linux"]["maskedPaths"]), [""; 0]);
    assert_eq!(spec["linux"]["namespaces"][0], json!({"type": "user", "path": "/run/ns/user"}));
    fixture.spec.security.masked_paths = vec!["/proc/secret".into()];
    let spec = fixture.json();
    assert!(strings(&spec["linux"]["maskedPaths"]).contains(&"/proc/secret"));
    assert!(strings(&spec["linux"]["maskedPaths"]).contains(&"/proc/interrupts"));
}

fn host_mount(place: &str, path: &Path) -> Mount {
    Mount {
        container_path: place.into(),
        source: MountSource::Host(path.to_owned()),
        readonly: false,
        recursive_read_only: false,
        selinux_relabel: false,
        propagation: Propagation::Private,
        uid_mappings: Vec::new(),
        gid_mappings: Vec::new(),
    }
}

#[test]
fn mounts_replace_defaults_and_parents_come_first() {
    let mut fixture = Fixture::new();
    let dir = fixture.scratch.path().canonicalize().unwrap();
    fixture.spec.mounts = vec![
        host_mount("/data/deep/er", &dir),
        Mount { readonly: true, ..host_mount("/data", &dir) },
        host_mount("/dev/shm/", &dir),
        Mount { readonly: true, recursive_read_only: true, ..host_mount("/rro", &dir) },
    ];
    let bundle = fixture.generate().unwrap();
    let mounts = bundle.spec.mounts().as_ref().unwrap();
    let places: Vec<_> = mounts.iter().map(|mount| mount.destination().to_str().unwrap()).collect();
    assert_eq!(
        places,
        [
            "/proc",
            "/dev",
            "/sys",
            "/data",
            "/rro",
            "/dev/pts",
            "/dev/mqueue",
            "/etc/resolv.conf",
            "/etc/hostname",
            "/dev/shm",
            "/sys/fs/cgroup",
            "/data/deep/er",
        ]
    );
    let options = |place: &str| {
        let mount = mounts.iter().find(|mount| mount.destination() == Path::new(place)).unwrap();
        mount.options().clone().unwrap().join(",")
    };
    assert_eq!(options("/data"), "rbind,rprivate,ro");
    assert_eq!(options("/rro"), "rbind,rprivate,rro");
    assert_eq!(options("/dev/shm"), "rbind,rprivate,rw");
    assert_eq!(options("/sys/fs/cgroup"), "nosuid,noexec,nodev,relatime,ro");
    assert_eq!(bundle.mount_sources.len(), mounts.len());
    for (mount, source) in mounts.iter().zip(&bundle.mount_sources) {
        assert_eq!(source.is_some(), mount.typ().as_deref() == Some("bind"), "{:?}", mount.destination());
        if let Some(source) = source {
            assert_eq!(mount.source().as_ref(), Some(source));
        }
    }
}

#[test]
fn a_mount_that_cannot_be_is_refused_by_its_place() {
    let mut fixture = Fixture::new();
    let dir = fixture.scratch.path().canonicalize().unwrap();
    let gone = dir.join("gone");
    for (mount, expected) in [
        (host_mount("/x", &gone), format!("mount source {} of /x cannot be used", gone.display())),
        (host_mount("/", &dir), "mount destination \"/\" is not an absolute path below the root".to_owned()),
        (
            Mount { recursive_read_only: true, ..host_mount("/x", &dir) },
            "mount at \"/x\" is recursively read-only, which needs readonly and private propagation"
                .to_owned(),
        ),
        (
            Mount {
                source: MountSource::Image { image: ImageSpec::default(), sub_path: None },
                ..host_mount("/x", &dir)
            },
            "mount at \"/x\" names an image that has not been mounted".to_owned(),
        ),
    ] {
        fixture.spec.mounts = vec![mount];
        assert_eq!(fixture.error(), expected);
    }
}

#[test]
fn an_image_volume_is_a_folder_of_ours_unless_something_is_mounted_there() {
    let mut fixture = Fixture::new();
    let dir = fixture.scratch.path().canonicalize().unwrap();
    fixture.image = json!({"Volumes": {"/var/lib/db": {}, "/data": {}, "relative": {}}});
    assert!(fixture.generate().unwrap().volumes.is_empty());
    fixture.volumes_dir = Some("/run/c/volumes".into());
    fixture.spec.mounts = vec![host_mount("/data", &dir)];
    assert_eq!(fixture.generate().unwrap().volumes, [PathBuf::from("/run/c/volumes/1")]);
}

#[test]
fn a_localhost_seccomp_profile_is_read_or_refused_but_never_left_out() {
    let mut fixture = Fixture::new();
    let root = fixture.host.seccomp_root.clone();
    std::fs::write(root.join("good.json"), r#"{"defaultAction": "SCMP_ACT_LOG"}"#).unwrap();
    std::fs::write(root.join("bad.json"), "{").unwrap();
    for (name, expected) in [
        ("", format!("Localhost seccomp profile without a name; name a file below {}", root.display())),
        (
            "localhost/",
            format!("Localhost seccomp profile without a name; name a file below {}", root.display()),
        ),
        ("gone.json", format!("read seccomp profile {}", root.join("gone.json").display())),
        ("bad.json", format!("parse seccomp profile {}", root.join("bad.json").display())),
        ("../x.json", "seccomp profile \"../x.json\" leads out of its folder".to_owned()),
    ] {
        fixture.spec.security.seccomp = SecurityProfile::Localhost(name.to_owned());
        assert_eq!(fixture.error(), expected, "{name}");
    }
    for name in ["good.json".to_owned(), root.join("good.json").display().to_string()] {
        fixture.spec.security.seccomp = SecurityProfile::Localhost(name);
        assert_eq!(fixture.json()["linux"]["seccomp"]["defaultAction"], "SCMP_ACT_LOG");
    }
}

#[test]
fn apparmor_profiles_are_those_loaded_now_or_the_container_is_refused() {
    let mut fixture = Fixture::new();
    let profile = |fixture: &Fixture| fixture.json()["process"].get("apparmorProfile").cloned();
    fixture.spec.security.apparmor = SecurityProfile::RuntimeDefault;
    assert_eq!(profile(&fixture), None);
    fixture.spec.security.apparmor = SecurityProfile::Localhost("localhost/web".into());
    assert_eq!(
        fixture.error(),
        "AppArmor profile \"localhost/web\" is asked for, but this host has no AppArmor"
    );
    fixture.sys(&[("module/apparmor/parameters/enabled", "Y\n")]);
    assert_eq!(
        fixture.error(),
        "AppArmor profile \"web\" is asked for, but the loaded ones cannot be listed; mount securityfs at /sys/kernel/security"
    );
    let list = "kernel/security/apparmor/profiles";
    fixture.sys(&[(list, "webserver (enforce)\n")]);
    assert_eq!(
        fixture.error(),
        "AppArmor profile \"web\" is not loaded on this host; load it with apparmor_parser"
    );
    // Loaded while the daemon runs.
    fixture.sys(&[(list, "webserver (enforce)\nweb (complain)\na (b) (enforce)\n")]);
    assert_eq!(profile(&fixture), Some(json!("web")));
    fixture.spec.security.apparmor = SecurityProfile::Localhost("a (b)".into());
    assert_eq!(profile(&fixture), Some(json!("a (b)")));
    fixture.spec.security.apparmor = SecurityProfile::RuntimeDefault;
    assert_eq!(
        fixture.error(),
        "AppArmor profile \"brig-default\" is not loaded on this host; load it with apparmor_parser"
    );
    fixture.sys(&[(list, "brig-default (enforce)\n")]);
    assert_eq!(profile(&fixture), Some(json!("brig-default")));
    fixture.spec.security.apparmor = SecurityProfile::Unconfined;
    assert_eq!(profile(&fixture), None);
    fixture.spec.security.apparmor = SecurityProfile::RuntimeDefault;
    (fixture.spec.security.privileged, fixture.pod_privileged) = (true, true);
    assert_eq!(profile(&fixture), None);
}

#[test]
fn selinux_labels_come_from_container_pod_and_default_in_this_order() {
    let mut fixture = Fixture::new();
    let options = |kind: &str, level: &str| {
        Some(SelinuxOptions { kind: kind.into(), level: level.into(), ..SelinuxOptions::default() })
    };
    fixture.spec.security.selinux = options("container_t", "s0:c1,c2");
    assert_eq!(
        fixture.error(),
        "selinux_options \"::container_t:s0:c1,c2\" are asked for, but this host has no SELinux; remove them, or choose \
         nodes that have it"
    );
    fixture.spec.security.selinux = options("spc_t", "s0");
    assert_eq!(fixture.json()["process"].get("selinuxLabel"), None);
    fixture.spec.security.selinux = None;
    let dir = fixture.scratch.path().canonicalize().unwrap();
    fixture.spec.mounts =
        vec![Mount { selinux_relabel: true, ..host_mount("/a", &dir) }, host_mount("/b", &dir)];
    assert_eq!(fixture.generate().unwrap().relabels, None);
    fixture.sys(&[("fs/selinux/enforce", "1")]);
    let labels = |fixture: &Fixture| {
        let spec = fixture.json();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        (text(&spec["process"]["selinuxLabel"]), text(&spec["linux"]["mountLabel"]))
    };
    let label = |kind: &str, level: &str| {
        (format!("system_u:system_r:{kind}:{level}"), format!("system_u:object_r:container_file_t:{level}"))
    };
    // 0x11111111 of the pod's id.
    let own = "s0:c273,c615";
    assert_eq!(labels(&fixture), label("container_t", own));
    let relabels = fixture.generate().unwrap().relabels.unwrap();
    assert_eq!(relabels, Relabels { label: label("", own).1, paths: vec![dir] });
    fixture.pod_selinux = options("", "s0:c7,c8");
    assert_eq!(labels(&fixture), label("container_t", "s0:c7,c8"));
    fixture.spec.security.selinux = options("web_t", "");
    assert_eq!(labels(&fixture), label("web_t", "s0:c7,c8"));
    fixture.spec.security.selinux = options("web_t", "s0:c3,c4");
    assert_eq!(labels(&fixture), label("web_t", "s0:c3,c4"));
    (fixture.spec.security.selinux, fixture.pod_selinux) = (None, None);
    (fixture.spec.security.privileged, fixture.pod_privileged) = (true, true);
    // Who is not confined still has the pod's files.
    assert_eq!(labels(&fixture), (label("spc_t", "s0").0, label("", own).1));
    (fixture.spec.security.privileged, fixture.pod_privileged) = (false, false);
    for namespaces in [
        Namespaces { pid: NamespaceMode::Node, ..Namespaces::default() },
        Namespaces { ipc: NamespaceMode::Node, ..Namespaces::default() },
    ] {
        fixture.namespaces = namespaces;
        assert_eq!(labels(&fixture), (label("spc_t", "s0").0, label("", own).1));
    }
    fixture.namespaces = Namespaces::default();
    // A label that would bring mount options along.
    fixture.spec.security.selinux = options("web_t", "s0\",upperdir=/");
    assert_eq!(
        fixture.error(),
        "SELinux label \"system_u:system_r:web_t:s0\\\",upperdir=/\" is not one that this host's policy knows; correct \
         selinux_options"
    );
}

#[test]
fn selinux_labels_are_those_that_the_kernel_takes() {
    let fixture = Fixture::new();
    fixture.sys(&[("fs/selinux/enforce", "1"), ("fs/selinux/context", "")]);
    fixture.generate().unwrap();
    let asked = std::fs::read(fixture.scratch.path().join("sys/fs/selinux/context")).unwrap();
    assert!(asked.starts_with(b"system_u:object_r:container_file_t:s0:c273,c615\0"), "{asked:?}");
    // A device that refuses every write stands for a policy that does not know the label.
    let context = fixture.scratch.path().join("sys/fs/selinux/context");
    std::fs::remove_file(&context).unwrap();
    std::os::unix::fs::symlink("/dev/full", &context).unwrap();
    assert!(fixture.error().contains("system_u:system_r:container_t"), "{}", fixture.error());
}

#[test]
fn what_this_host_cannot_do_is_left_out_with_a_word_about_it() {
    let mut fixture = Fixture::new();
    fixture.spec.resources = Resources {
        oom_score_adj: Some(-900),
        hugepage_limits: vec![HugepageLimit { page_size: "2MB".into(), limit_bytes: 0 }],
        ..Resources::default()
    };
    let spec = fixture.json();
    assert_eq!(spec["process"]["oomScoreAdj"], -900);
    assert_eq!(spec["linux"]["resources"]["hugepageLimits"], json!([{"pageSize": "2MB", "limit": 0}]));
    (fixture.host.oom_score_adj_min, fixture.host.huge_pages) = (100, false);
    let bundle = fixture.generate().unwrap();
    assert_eq!(
        bundle.warnings,
        ["oom_score_adj is 100 instead of -900: lowering it takes CAP_SYS_RESOURCE, which brigd lacks"]
    );
    let spec = serde_json::to_value(bundle.spec).unwrap();
    assert_eq!(spec["process"]["oomScoreAdj"], 100);
    assert_eq!(spec["linux"]["resources"].get("hugepageLimits"), None);
    fixture.spec.resources.hugepage_limits[0].limit_bytes = 1;
    assert_eq!(
        fixture.generate().unwrap().warnings[1],
        "huge pages are not limited: this host has no hugetlb controller"
    );
}

#[test]
fn devices_of_a_pod_with_a_user_namespace_are_bound_from_where_the_host_has_them() {
    let mut fixture = Fixture::new();
    fixture.user_ns = Some("/run/ns/user".into());
    fixture.spec.devices = vec![Device {
        host_path: "/dev/null".into(),
        container_path: "/dev/mine".into(),
        permissions: "rw".into(),
    }];
    let spec = fixture.json();
    assert_eq!(spec["linux"]["devices"], json!([]));
    let mount =
        spec["mounts"].as_array().unwrap().iter().find(|one| one["destination"] == "/dev/mine").unwrap();
    assert_eq!(mount["source"], "/dev/null");
    let rules = spec["linux"]["resources"]["devices"].as_array().unwrap();
    assert!(rules.contains(&json!({"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rw"})));
}

#[test]
fn devices_are_read_from_the_host_and_allowed_by_number() {
    let mut fixture = Fixture::new();
    let device = |host: &str, permissions: &str| Device {
        host_path: host.into(),
        container_path: "/dev/mine".into(),
        permissions: permissions.into(),
    };
    fixture.spec.devices = vec![device("/dev/null", "rw")];
    let spec = fixture.json();
    let node = &spec["linux"]["devices"][0];
    assert_eq!(
        (&node["path"], &node["type"], &node["major"], &node["minor"]),
        (&json!("/dev/mine"), &json!("c"), &json!(1), &json!(3))
    );
    let rules = spec["linux"]["resources"]["devices"].as_array().unwrap();
    assert_eq!(
        rules.last().unwrap(),
        &json!({"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rw"})
    );
    assert_eq!((&node["uid"], &node["gid"]), (&json!(0), &json!(0)));
    fixture.host.device_ownership = true;
    fixture.spec.security.run_as_user = Some(RunAsUser::Uid(1234));
    let owner = |fixture: &Fixture| {
        let node = fixture.json()["linux"]["devices"][0].clone();
        (node["uid"].clone(), node["gid"].clone())
    };
    assert_eq!(owner(&fixture), (json!(1234), json!(0)));
    fixture.spec.security.run_as_group = Some(567);
    assert_eq!(owner(&fixture), (json!(1234), json!(567)));
    fixture.spec.devices = vec![device("/dev/null", "rx")];
    assert_eq!(fixture.error(), "device \"/dev/null\" has permissions \"rx\", but only r, w and m exist");
    fixture.spec.devices = vec![device("/dev/no-such-device", "rw")];
    assert_eq!(fixture.error(), "device /dev/no-such-device");
    fixture.spec.devices = vec![device("/etc/passwd", "rw")];
    assert_eq!(
        fixture.error(),
        "device \"/etc/passwd\" is neither a character or block device nor a folder with some"
    );
}

#[test]
fn a_cgroup_parent_in_either_driver_form_and_no_other() {
    for (parent, expected) in [
        ("", Some("/brig/c1")),
        ("/kubepods/burstable/pod1", Some("/kubepods/burstable/pod1/c1")),
        ("kubepods-burstable-pod1.slice", Some("kubepods-burstable-pod1.slice:brig:c1")),
        ("/kubepods.slice/kubepods-pod1.slice", Some("kubepods-pod1.slice:brig:c1")),
        ("/kubepods/../..", None),
        ("kubepods/pod1", None),
        ("/a:b", None),
        ("/a\nb", None),
    ] {
        let got = cgroups_path(parent, "c1").ok();
        assert_eq!(got.as_deref(), expected.map(Path::new), "{parent:?}");
    }
}

#[test]
fn resources_keep_what_is_unset_unset_and_are_checked() {
    let empty = serde_json::to_value(resources(&Resources::default()).unwrap()).unwrap();
    assert_eq!(empty, json!({}));
    let full = Resources {
        cpu_period_us: Some(100_000),
        cpu_quota_us: Some(-1),
        cpu_shares: Some(512),
        memory_limit_bytes: Some(1 << 30),
        memory_swap_limit_bytes: Some(2 << 30),
        cpuset_cpus: "0-1,3".into(),
        hugepage_limits: vec![HugepageLimit { page_size: "2MB".into(), limit_bytes: 4 << 20 }],
        unified: BTreeMap::from([("memory.high".to_owned(), "1000".to_owned())]),
        ..Resources::default()
    };
    assert_eq!(
        serde_json::to_value(resources(&full).unwrap()).unwrap(),
        json!({
            "cpu": {"shares": 512, "quota": -1, "period": 100_000, "cpus": "0-1,3"},
            "memory": {"limit": 1 << 30, "swap": 2i64 << 30},
            "hugepageLimits": [{"pageSize": "2MB", "limit": 4 << 20}],
            "unified": {"memory.high": "1000"},
        })
    );
    for (bad, expected) in [
        (
            Resources { cpuset_cpus: "0;1".into(), ..Resources::default() },
            "resource cpuset_cpus \"0;1\" is not valid: a list such as 0-3,7 was expected",
        ),
        (
            Resources {
                memory_limit_bytes: Some(100),
                memory_swap_limit_bytes: Some(50),
                ..Resources::default()
            },
            "resource memory_swap_limit_in_bytes \"50\" is not valid: memory and swap together cannot be less than memory",
        ),
        (
            Resources {
                hugepage_limits: vec![HugepageLimit { page_size: "../2MB".into(), limit_bytes: 0 }],
                ..Resources::default()
            },
            "resource hugepage_limits \"../2MB=0\" is not valid: a page size such as 2MB was expected",
        ),
        (
            Resources {
                unified: BTreeMap::from([("../cpu.max".to_owned(), "1".to_owned())]),
                ..Resources::default()
            },
            "resource unified \"../cpu.max\" is not valid: the name of a cgroup v2 file was expected",
        ),
    ] {
        assert_eq!(resources(&bad).unwrap_err().to_string(), expected);
    }
}

#[test]
fn annotations_are_ours_and_what_the_handler_lets_through() {
    let mut fixture = Fixture::new();
    fixture.allowed = texts(&["ok.example/*", "exact", "org.systemd.property.*", "run.oci.*", "*"]);
    for key in
        ["org.systemd.property.ExecStop", "run.oci.hooks.stderr", "io.kubernetes.cri.sandbox-id", "bundle"]
    {
        fixture.pod_annotations.insert(key.to_owned(), "evil".to_owned());
    }
    fixture.image = json!({"Labels": {"exact": "from the image"}});
    let spec = fixture.json();
    let keys: Vec<&String> = spec["annotations"].as_object().unwrap().keys().collect();
    assert!(keys.iter().all(|key| key.starts_with("io.kubernetes.cri.")), "{keys:?}");
    assert_eq!(spec["annotations"]["io.kubernetes.cri.sandbox-id"], "11".repeat(32));
    fixture.allowed = texts(&["ok.example/*", "exact"]);
    fixture.pod_annotations.insert("ok.example/a".into(), "pod".into());
    fixture.pod_annotations.insert("other".into(), "pod".into());
    fixture.spec.annotations.insert("ok.example/a".into(), "container".into());
    let spec = fixture.json();
    assert_eq!(spec["annotations"]["ok.example/a"], "container");
    assert_eq!(spec["annotations"].get("other"), None);
    assert_eq!(spec["annotations"].get("exact"), None);
}

#[test]
fn stop_signals_parse_from_request_or_image_and_print_as_cri_names_them() {
    for (text, expected) in [
        ("SIGTERM", Some((15, "SIGTERM"))),
        ("usr1", Some((10, "SIGUSR1"))),
        ("9", Some((9, "SIGKILL"))),
        ("SIGRTMIN+3", Some((37, "SIGRTMIN+3"))),
        ("RTMIN", Some((34, "SIGRTMIN"))),
        ("SIGRTMAX-14", Some((50, "SIGRTMAX-14"))),
        ("SIGRTMAX", Some((64, "SIGRTMAX"))),
        ("SIGRTMIN+31", None),
        ("SIGRTMAX-40", None),
        ("0", None),
        ("65", None),
        ("-9", None),
        ("SIGNOPE", None),
        ("SIG", None),
    ] {
        let got = text.parse::<StopSignal>().ok().map(|signal| (signal.0, signal.to_string()));
        assert_eq!(got, expected.map(|(number, name)| (number, name.to_owned())), "{text}");
    }
    let mut fixture = Fixture::new();
    assert_eq!(fixture.generate().unwrap().stop_signal, StopSignal(15));
    fixture.image = json!({"StopSignal": "SIGQUIT"});
    assert_eq!(fixture.generate().unwrap().stop_signal, StopSignal(3));
    fixture.spec.stop_signal = Some("SIGINT".into());
    assert_eq!(fixture.generate().unwrap().stop_signal, StopSignal(2));
}

#[test]
fn namespaces_follow_the_modes_of_pod_and_container() {
    let kinds = |fixture: &Fixture| -> Vec<String> {
        let spec = fixture.json();
        let all = spec["linux"]["namespaces"].as_array().unwrap().iter();
        all.map(|ns| {
            format!("{}{}", ns["type"].as_str().unwrap(), if ns.get("path").is_some() { "=" } else { "" })
        })
        .collect()
    };
    let mut fixture = Fixture::new();
    fixture.spec.security.namespaces.pid = NamespaceMode::Container;
    assert_eq!(kinds(&fixture), ["mount", "network=", "ipc=", "uts=", "pid", "cgroup"]);
    fixture.spec.security.namespaces.pid = NamespaceMode::Target("c0".into());
    assert_eq!(kinds(&fixture), ["mount", "network=", "ipc=", "uts=", "pid=", "cgroup"]);
    fixture.spec.security.namespaces.pid = NamespaceMode::Node;
    fixture.namespaces.network = NamespaceMode::Node;
    fixture.namespaces.ipc = NamespaceMode::Node;
    assert_eq!(kinds(&fixture), ["mount", "cgroup"]);
}

/// Goal: what we generate is what other runtimes understand. Method: `runc run` of a static busybox that looks at itself,
/// in this test's own network and IPC namespaces; skipped where runc or busybox is not installed.
#[test]
fn privileged_runc_runs_a_generated_bundle_with_the_default_profile() {
    use std::process::Command;
    let runc = |args: &[&str]| Command::new("runc").args(args).output();
    if runc(&["--version"]).is_err() || !Path::new("/bin/busybox").exists() {
        return;
    }
    let mut fixture = Fixture::new();
    let bundle_dir = fixture.scratch.path().canonicalize().unwrap();
    let rootfs = bundle_dir.join("rootfs");
    std::fs::create_dir_all(rootfs.join("bin")).unwrap();
    std::fs::copy("/bin/busybox", rootfs.join("bin/busybox")).unwrap();
    let parent = format!("/brig-test-{}-runc", std::process::id());
    fixture.cgroup_parent = Box::leak(parent.into_boxed_str());
    fixture.namespaces.network = NamespaceMode::Node;
    fixture.namespaces.ipc = NamespaceMode::Node;
    fixture.spec.security.namespaces.pid = NamespaceMode::Container;
    fixture.spec.security.seccomp = SecurityProfile::RuntimeDefault;
    fixture.spec.security.no_new_privs = true;
    fixture.spec.resources =
        Resources { cpu_shares: Some(64), memory_limit_bytes: Some(64 << 20), ..Resources::default() };
    fixture.spec.command = texts(&["/bin/busybox", "sh", "-c"]);
    fixture.spec.args = texts(&[
        "bb=/bin/busybox; $bb id -u; $bb grep -E '^(Seccomp|NoNewPrivs|CapEff):' /proc/self/status; \
        $bb unshare -U $bb true 2>/dev/null || echo no user namespace; \
        $bb cat /proc/kcore | $bb wc -c; echo x 2>/dev/null >/proc/sys/kernel/hostname || echo read-only",
    ]);
    let mut spec = fixture.generate().unwrap().spec;
    // The pod's files are not there in this test.
    let mounts = spec.mounts_mut().as_mut().unwrap();
    mounts.retain(|mount| !mount.source().as_ref().is_some_and(|source| source.starts_with("/run/pod")));
    spec.save(bundle_dir.join("config.json")).unwrap();

    let root = bundle_dir.join("runc-root");
    let id = format!("brig-test-{}", std::process::id());
    let bundle = bundle_dir.to_str().unwrap();
    let output = runc(&["--root", root.to_str().unwrap(), "run", "--bundle", bundle, &id]).unwrap();
    let hierarchy = crate::sys::cgroup::Hierarchy::detect().unwrap();
    let path = crate::sys::cgroup::CgroupPath::new(Path::new(fixture.cgroup_parent)).unwrap();
    if let Ok(cgroup) = crate::sys::cgroup::Cgroup::open(&hierarchy, &path) {
        cgroup.remove().unwrap();
    }
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "0\nCapEff:\t00000000000005fb\nNoNewPrivs:\t1\nSeccomp:\t2\nno user namespace\n0\nread-only\n",
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn a_hardened_handler_tightens_the_spec_whatever_is_asked() {
    let mut fixture = Fixture::new();
    fixture.hardened =
        Some(Hardened { host_paths: vec![fixture.scratch.path().to_owned()], ..Hardened::default() });
    fixture.user_ns = Some("/run/ns/user".into());
    fixture.spec.security.seccomp = SecurityProfile::Unconfined;
    fixture.spec.security.capabilities.add = vec!["CAP_SETPCAP".into()];
    fixture.spec.mounts = vec![Mount {
        container_path: "/data".into(),
        source: MountSource::Host(fixture.scratch.path().to_owned()),
        readonly: false,
        recursive_read_only: false,
        selinux_relabel: false,
        propagation: Propagation::Private,
        uid_mappings: vec![],
        gid_mappings: vec![],
    }];
    let bundle = fixture.generate().unwrap();
    assert_eq!(bundle.spec.mounts().as_ref().unwrap().len(), bundle.mount_sources.len());
    let spec = serde_json::to_value(&bundle.spec).unwrap();
    assert_eq!(spec["process"]["noNewPrivileges"], true);
    assert_eq!(spec["process"]["rlimits"], json!([{"type": "RLIMIT_CORE", "soft": 0, "hard": 0}]));
    assert_eq!(spec["linux"]["seccomp"]["defaultAction"], "SCMP_ACT_ERRNO");
    assert_eq!(spec["linux"]["seccomp"]["architectures"].as_array().unwrap().len(), 1);
    assert_eq!(spec["linux"]["resources"]["pids"]["limit"], 1024);
    for (path, masked) in
        [("/proc/keys", true), ("/proc/cmdline", true), ("/proc/stat", false), ("/proc/self", false)]
    {
        assert_eq!(strings(&spec["linux"]["maskedPaths"]).contains(&path), masked, "{path}");
    }
    assert_eq!(spec["annotations"]["brig.sandbox/landlock"], "container");
    let bounding = spec["process"]["capabilities"]["bounding"].as_array().unwrap();
    assert_eq!(bounding.len(), 9, "{bounding:?}");
    let mounts = spec["mounts"].as_array().unwrap();
    let at = |place: &str| mounts.iter().find(|mount| mount["destination"] == place).unwrap();
    assert_eq!(at("/sys")["type"], "tmpfs");
    assert!(!strings(&at("/proc")["options"]).contains(&"subset=pid"));
    assert!(at("/data")["options"].as_array().unwrap().contains(&json!("ridmap")));
    assert_eq!(mounts.last().unwrap()["options"][0], "remount");
    let rules = spec["linux"]["resources"]["devices"].as_array().unwrap();
    assert!(rules.iter().all(|rule| rule["allow"] == false || rule["major"].is_i64()), "{rules:?}");
    fixture.hardened.as_mut().unwrap().proc = ProcView::Processes;
    let spec = fixture.json();
    let mounts = spec["mounts"].as_array().unwrap();
    let proc = mounts.iter().find(|mount| mount["destination"] == "/proc").unwrap();
    assert!(strings(&proc["options"]).contains(&"subset=pid"));
}

#[test]
fn a_profile_of_the_nodes_own_lies_above_the_hardened_one() {
    let mut fixture = Fixture::new();
    fixture.hardened = Some(Hardened::default());
    fixture.user_ns = Some("/run/ns/user".into());
    let own = r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": []}"#;
    std::fs::write(fixture.host.seccomp_root.join("own.json"), own).unwrap();
    fixture.spec.security.seccomp = SecurityProfile::Localhost("own.json".into());
    let spec = fixture.json();
    assert_eq!(spec["linux"]["seccomp"]["defaultAction"], "SCMP_ACT_ALLOW");
    let floor: Value =
        serde_json::from_str(spec["annotations"]["brig.sandbox/seccomp-floor"].as_str().unwrap()).unwrap();
    assert_eq!(floor["defaultAction"], "SCMP_ACT_ERRNO");
}

#[test]
fn a_handler_may_forbid_unconfined_and_bring_its_own_default_profile() {
    let mut fixture = Fixture::new();
    fixture.spec.security.seccomp = SecurityProfile::Unconfined;
    assert!(fixture.json()["linux"]["seccomp"].is_null());
    fixture.never_unconfined = true;
    assert_eq!(fixture.json()["linux"]["seccomp"]["defaultAction"], "SCMP_ACT_ERRNO");
    let path = fixture.scratch.path().join("default.json");
    std::fs::write(&path, r#"{"defaultAction": "SCMP_ACT_LOG", "syscalls": []}"#).unwrap();
    fixture.seccomp_profile = Some(path);
    assert_eq!(fixture.json()["linux"]["seccomp"]["defaultAction"], "SCMP_ACT_LOG");
}
