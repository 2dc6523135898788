//! Who a container runs as, what it may do, and which namespaces it is in.

use std::path::PathBuf;

use brig::proto::v1::security_profile::ProfileType;
use brig::proto::v1::*;
use serde_json::json;

use super::{Check, Pod, Suite, run, security, spec};
use crate::fixture::image::{Entry, ImageBuilder};
use crate::fixture::node::put_image;

pub(super) const CHECKS: &[Check] = &[
    ("Security Context NamespaceOption runtime should support HostPID", host_pid),
    ("Security Context NamespaceOption runtime should support HostIpc is true", host_ipc),
    ("Security Context NamespaceOption runtime should support HostIpc is false", own_ipc),
    ("Security Context NamespaceOption runtime should support PodPID", pod_pid),
    ("Security Context NamespaceOption runtime should support ContainerPID", container_pid),
    ("Security Context bucket runtime should support SupplementalGroups", supplemental_groups),
    ("Security Context bucket runtime should support RunAsUser", run_as_user),
    ("Security Context bucket runtime should support RunAsUserName", run_as_username),
    ("Security Context bucket runtime should support RunAsGroup", run_as_group),
    (
        "Security Context bucket runtime should return error if RunAsGroup is set without RunAsUser",
        group_without_user,
    ),
    ("Security Context bucket runtime should support that ReadOnlyRootfs is false", writable_rootfs),
    ("Security Context bucket runtime should support that ReadOnlyRootfs is true", readonly_rootfs),
    ("Security Context bucket runtime should support Privileged is true", privileged),
    ("Security Context bucket runtime should support Privileged is false", unprivileged),
    ("Security Context bucket runtime should support adding capability", adding_capability),
    ("Security Context bucket runtime should support dropping capability", dropping_capability),
    ("Security Context bucket runtime should support adding ALL capabilities", adding_all),
    ("Security Context bucket runtime should support dropping ALL capabilities", dropping_all),
    ("Security Context bucket runtime should support MaskedPaths", masked_paths),
    ("Security Context bucket runtime should support ReadonlyPaths", readonly_paths),
    (
        "Security Context SupplementalGroupsPolicy when SupplementalGroupsPolicy=Merge (Default) if the container's primary UID belongs to some groups in the image, runtime should add SupplementalGroups to them",
        merged_groups,
    ),
    (
        "Security Context SupplementalGroupsPolicy when SupplementalGroupsPolicy=Strict even if the container's primary UID belongs to some groups in the image, runtime should not add SupplementalGroups to them",
        strict_groups,
    ),
    (
        "Security Context SeccompProfilePath should support seccomp unconfined on the container",
        seccomp_unconfined,
    ),
    (
        "Security Context SeccompProfilePath should support seccomp localhost profile on the container",
        seccomp_localhost,
    ),
    ("Security Context SeccompProfilePath should support seccomp default on the container", seccomp_default),
    ("Security Context SeccompProfilePath should support nil profile, which is unconfined", seccomp_unsaid),
    (
        "Security Context SeccompProfilePath runtime should not block setting host name with unconfined seccomp and SYS_ADMIN",
        hostname_unconfined,
    ),
    (
        "Security Context SeccompProfilePath runtime should support an seccomp profile that blocks setting hostname with SYS_ADMIN",
        hostname_blocked,
    ),
    (
        "Security Context SeccompProfilePath runtime should ignore a seccomp profile that blocks setting hostname when privileged",
        hostname_privileged,
    ),
    ("Security Context NoNewPrivs should not allow privilege escalation when true", no_new_privs),
    ("Security Context NoNewPrivs should allow privilege escalation when false", new_privs),
    (
        "Security Context UserNamespaces when Host idmap mount support is needed runtime should support NamespaceMode_POD",
        own_users,
    ),
    (
        "Security Context UserNamespaces when Host idmap mount support is not needed runtime should support NamespaceMode_NODE",
        host_users,
    ),
    (
        "Security Context UserNamespaces when Host idmap mount support is not needed runtime should fail if more than one mapping provided",
        two_mappings,
    ),
    (
        "Security Context UserNamespaces when Host idmap mount support is not needed runtime should fail if container ID 0 is not mapped",
        root_not_mapped,
    ),
    (
        "Security Context UserNamespaces when Host idmap mount support is not needed runtime should fail with NamespaceMode_CONTAINER",
        users_of_container,
    ),
    (
        "Security Context UserNamespaces when Host idmap mount support is not needed runtime should fail with NamespaceMode_TARGET",
        users_of_target,
    ),
];

#[test]
fn privileged_containers_run_as_whom_where_and_with_what_they_ask_for() {
    run(CHECKS);
}

fn options(pid: NamespaceMode, ipc: NamespaceMode) -> NamespaceOption {
    NamespaceOption { pid: pid.into(), ipc: ipc.into(), ..Default::default() }
}

/// A waiting container in the namespaces of its pod.
fn waiting_in(suite: &Suite, pod: &Pod, options: &NamespaceOption) -> String {
    suite.waiting(pod, |config| security(config).namespace_options = Some(options.clone()))
}

/// The namespace `kind` that a container is in.
fn namespace(suite: &Suite, container: &str, kind: &str) -> String {
    suite.node.output(container, &format!("readlink /proc/self/ns/{kind}")).trim().to_owned()
}

fn host_namespace(kind: &str) -> String {
    std::fs::read_link(format!("/proc/self/ns/{kind}")).expect("our own").display().to_string()
}

fn host_pid(suite: &Suite) {
    let options = options(NamespaceMode::Node, NamespaceMode::Pod);
    let pod = suite.pod_in(&options);
    let a = waiting_in(suite, &pod, &options);
    let b = waiting_in(suite, &pod, &options);
    assert_eq!(namespace(suite, &a, "pid"), host_namespace("pid"));
    // The daemon, and the other container's process, by the pids that the host has for them.
    let brigd = suite.node.brigd_pid();
    assert_eq!(suite.node.output(&a, &format!("cat /proc/{brigd}/comm")).trim(), "brigd");
    let request = ContainerStatusRequest { container_id: b, verbose: true };
    let info = suite.node.call(suite.node.runtime.clone().container_status(request)).expect("the status");
    let info: serde_json::Value = serde_json::from_str(&info.into_inner().info["info"]).expect("JSON");
    let pid = info["pid"].as_u64().expect("a pid");
    assert_eq!(suite.node.output(&a, &format!("cat /proc/{pid}/comm")).trim(), "sleep");
}

fn host_ipc(suite: &Suite) {
    let options = options(NamespaceMode::Container, NamespaceMode::Node);
    let id = waiting_in(suite, &suite.pod_in(&options), &options);
    assert_eq!(namespace(suite, &id, "ipc"), host_namespace("ipc"));
}

fn own_ipc(suite: &Suite) {
    let options = options(NamespaceMode::Container, NamespaceMode::Pod);
    let id = waiting_in(suite, &suite.pod_in(&options), &options);
    assert_ne!(namespace(suite, &id, "ipc"), host_namespace("ipc"));
}

fn pod_pid(suite: &Suite) {
    let options = options(NamespaceMode::Pod, NamespaceMode::Pod);
    let pod = suite.pod_in(&options);
    let (a, b) = (waiting_in(suite, &pod, &options), waiting_in(suite, &pod, &options));
    assert_eq!(namespace(suite, &a, "pid"), namespace(suite, &b, "pid"));
    assert_ne!(namespace(suite, &a, "pid"), host_namespace("pid"));
    let first = suite.node.output(&a, "cat /proc/1/comm");
    assert_ne!(first.trim(), "sleep", "process 1 belongs to the pod and to no container");
}

fn container_pid(suite: &Suite) {
    let options = options(NamespaceMode::Container, NamespaceMode::Pod);
    let pod = suite.pod_in(&options);
    let (a, b) = (waiting_in(suite, &pod, &options), waiting_in(suite, &pod, &options));
    assert_ne!(namespace(suite, &a, "pid"), namespace(suite, &b, "pid"));
    assert_eq!(suite.node.output(&a, "cat /proc/1/comm").trim(), "sleep");
}

fn id(value: i64) -> Option<Int64Value> {
    Some(Int64Value { value })
}

fn supplemental_groups(suite: &Suite) {
    let said =
        suite.said(&suite.pod(), "id -G", |config| security(config).supplemental_groups = vec![1234, 5678]);
    let groups: Vec<_> = said.split_whitespace().collect();
    assert!(groups.contains(&"1234") && groups.contains(&"5678"), "{said}");
}

fn run_as_user(suite: &Suite) {
    let id = suite.waiting(&suite.pod(), |config| security(config).run_as_user = id(1001));
    assert_eq!(suite.node.output(&id, "id -u"), "1001\n");
}

fn run_as_username(suite: &Suite) {
    let id = suite.waiting(&suite.pod(), |config| security(config).run_as_username = "nobody".into());
    assert_eq!(suite.node.output(&id, "id -nu"), "nobody\n");
}

fn run_as_group(suite: &Suite) {
    let said = suite.said(&suite.pod(), "echo $(id -u):$(id -g)", |config| {
        let security = security(config);
        (security.run_as_user, security.run_as_group) = (id(1001), id(1002));
    });
    assert_eq!(said, "1001:1002\n");
}

fn group_without_user(suite: &Suite) {
    let made = suite.created(&suite.pod(), "true", |config| security(config).run_as_group = id(1002));
    let error = made.expect_err("it is refused");
    assert!(error.message().contains("run_as_group"), "{error}");
}

fn writable_rootfs(suite: &Suite) {
    let id = suite.waiting(&suite.pod(), |_| {});
    assert_eq!(suite.node.output(&id, "echo hello > /file; cat /file"), "hello\n");
}

fn readonly_rootfs(suite: &Suite) {
    let id = suite.waiting(&suite.pod(), |config| security(config).readonly_rootfs = true);
    let error = suite.failing(&id, &["/bin/touch", "/file"]);
    assert!(error.contains("Read-only file system"), "{error}");
}

/// Makes a bridge, which only a privileged container may.
const BRIDGE: [&str; 3] = ["/bin/brctl", "addbr", "conformance0"];

fn privileged(suite: &Suite) {
    let id = suite.waiting(&suite.privileged_pod(), |config| security(config).privileged = true);
    assert_eq!(suite.node.exec(&id, &BRIDGE).exit_code, 0);
}

fn unprivileged(suite: &Suite) {
    let id = suite.waiting(&suite.pod(), |_| {});
    let error = suite.failing(&id, &BRIDGE);
    assert!(error.contains("Operation not permitted"), "{error}");
}

fn with_capabilities(suite: &Suite, add: &[&str], drop: &[&str]) -> String {
    let list = |names: &[&str]| names.iter().map(ToString::to_string).collect();
    let capabilities =
        Capability { add_capabilities: list(add), drop_capabilities: list(drop), ..Default::default() };
    suite.waiting(&suite.pod(), |config| security(config).capabilities = Some(capabilities))
}

/// The capabilities that a process of the container may have.
fn bounding(suite: &Suite, container: &str) -> u64 {
    let line = suite.node.output(container, "grep CapBnd /proc/self/status");
    u64::from_str_radix(line.split_whitespace().nth(1).expect("a number"), 16).expect("a number")
}

fn adding_capability(suite: &Suite) {
    let id = with_capabilities(suite, &["NET_ADMIN"], &[]);
    assert_eq!(suite.node.exec(&id, &BRIDGE).exit_code, 0);
}

fn dropping_capability(suite: &Suite) {
    const CHOWN: u64 = 1 << 0;
    let id = with_capabilities(suite, &[], &["CHOWN"]);
    let error = suite.failing(&id, &["/bin/chown", "nobody", "/etc/passwd"]);
    assert!(error.contains("Operation not permitted"), "{error}");
    let usual = bounding(suite, &suite.waiting(&suite.pod(), |_| {}));
    assert_eq!((bounding(suite, &id), usual & CHOWN), (usual & !CHOWN, CHOWN));
}

fn adding_all(suite: &Suite) {
    const SYS_ADMIN: u64 = 1 << 21;
    let seen = bounding(suite, &with_capabilities(suite, &["ALL"], &[]));
    let text = std::fs::read_to_string("/proc/self/status").expect("our status");
    let own = text.lines().find_map(|line| line.strip_prefix("CapBnd:")).expect("a line");
    assert_eq!(seen, u64::from_str_radix(own.trim(), 16).expect("a number"), "all that the daemon may give");
    assert_ne!(seen & SYS_ADMIN, 0);
}

fn dropping_all(suite: &Suite) {
    assert_eq!(bounding(suite, &with_capabilities(suite, &[], &["ALL"])), 0);
}

fn masked_paths(suite: &Suite) {
    let id = suite.waiting(&suite.pod(), |config| {
        security(config).masked_paths = vec!["/etc/group".into(), "/bin".into(), "/no/such/path".into()];
        // The shell is masked as well.
        config.command = vec!["/busybox".into(), "sleep".into(), "1000".into()];
        config.image = spec(&with_shell(suite));
    });
    let read = |path: &str| suite.node.exec(&id, &["/busybox", "cat", path]);
    assert_eq!(read("/etc/group").stdout, b"", "an empty file is in its place");
    assert_ne!(read("/etc/passwd").stdout, b"");
    assert_eq!(
        suite.node.exec(&id, &["/busybox", "ls", "/bin"]).stdout,
        b"",
        "an empty folder is in its place"
    );
}

/// An image with busybox beside /bin as well.
fn with_shell(suite: &Suite) -> String {
    let busybox = std::fs::read("/bin/busybox").expect("the package busybox-static is installed");
    let image = ImageBuilder::busybox().layer(&[Entry::file("busybox", busybox, 0o755)]).build();
    let name = put_image(&suite.node.registry, "shell", "latest", &image);
    suite.pull(&name).expect("the pull");
    name
}

fn readonly_paths(suite: &Suite) {
    let id = suite.waiting(&suite.pod(), |config| security(config).readonly_paths = vec!["/tmp".into()]);
    let error = suite.failing(&id, &["/bin/touch", "/tmp/file"]);
    assert!(error.contains("Read-only file system"), "{error}");
    suite.node.output(&id, "touch /file");
}

/// The groups that user 1000 of an image with groups of its own has, as its status and its processes say.
fn groups(suite: &Suite, policy: SupplementalGroupsPolicy) -> Vec<i64> {
    let users = [
        Entry::file("etc/passwd", "root:x:0:0::/:/bin/sh\ndefault-user:x:1000:1000::/:/bin/sh\n", 0o644),
        Entry::file(
            "etc/group",
            "root:x:0:\ndefault-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\n",
            0o644,
        ),
    ];
    let name =
        put_image(&suite.node.registry, "groups", "latest", &ImageBuilder::busybox().layer(&users).build());
    suite.pull(&name).expect("the pull");
    let container = suite.waiting(&suite.pod(), |config| {
        config.image = spec(&name);
        let security = security(config);
        (security.run_as_user, security.supplemental_groups) = (id(1000), vec![1234]);
        security.supplemental_groups_policy = policy.into();
    });
    let user = suite.node.status(&container).user.expect("a user").linux.expect("linux");
    assert_eq!((user.uid, user.gid), (1000, 1000));
    let mut groups = user.supplemental_groups;
    groups.sort_unstable();
    for command in ["id -G", "grep ^Groups: /proc/1/status | cut -d: -f2"] {
        let said = suite.node.output(&container, command);
        let mut seen: Vec<i64> = said.split_whitespace().map(|id| id.parse().expect("a number")).collect();
        seen.sort_unstable();
        assert_eq!(seen, groups, "{command}");
    }
    groups
}

fn merged_groups(suite: &Suite) {
    assert_eq!(groups(suite, SupplementalGroupsPolicy::Merge), [1000, 1234, 50000]);
}

fn strict_groups(suite: &Suite) {
    assert_eq!(groups(suite, SupplementalGroupsPolicy::Strict), [1000, 1234]);
}

fn with_seccomp(suite: &Suite, profile: Option<SecurityProfile>, capabilities: &[&str]) -> String {
    suite.waiting(&suite.pod(), |config| {
        let security = security(config);
        security.seccomp = profile;
        let add_capabilities = capabilities.iter().map(ToString::to_string).collect();
        security.capabilities = Some(Capability { add_capabilities, ..Default::default() });
    })
}

#[expect(clippy::unnecessary_wraps, reason = "as the field wants it")]
fn profile(kind: ProfileType) -> Option<SecurityProfile> {
    Some(SecurityProfile { profile_type: kind.into(), ..Default::default() })
}

/// A profile that allows everything but `calls`.
fn blocking(suite: &Suite, calls: &[&str]) -> Option<SecurityProfile> {
    let text = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{ "names": calls, "action": "SCMP_ACT_ERRNO" }],
    });
    let path: PathBuf = suite.node.dir.path().join(suite.name("profile"));
    std::fs::write(&path, text.to_string()).expect("the profile");
    let localhost_ref = path.display().to_string();
    Some(SecurityProfile { profile_type: ProfileType::Localhost.into(), localhost_ref })
}

/// 0 is no seccomp, 2 a filter (proc_pid_status(5)).
fn seccomp_mode(suite: &Suite, container: &str) -> String {
    let line = suite.node.output(container, "grep ^Seccomp: /proc/self/status");
    line.split_whitespace().nth(1).expect("a number").to_owned()
}

fn seccomp_unconfined(suite: &Suite) {
    assert_eq!(seccomp_mode(suite, &with_seccomp(suite, profile(ProfileType::Unconfined), &[])), "0");
}

fn seccomp_default(suite: &Suite) {
    assert_eq!(seccomp_mode(suite, &with_seccomp(suite, profile(ProfileType::RuntimeDefault), &[])), "2");
}

fn seccomp_unsaid(suite: &Suite) {
    assert_eq!(seccomp_mode(suite, &with_seccomp(suite, None, &[])), "0");
}

fn seccomp_localhost(suite: &Suite) {
    let id = with_seccomp(suite, blocking(suite, &["chmod", "fchmodat"]), &[]);
    let error = suite.failing(&id, &["/bin/chmod", "400", "/"]);
    assert!(error.contains("Operation not permitted"), "{error}");
}

const RENAME: [&str; 2] = ["/bin/hostname", "ANewHostName"];

fn hostname_unconfined(suite: &Suite) {
    let id = with_seccomp(suite, profile(ProfileType::Unconfined), &["SYS_ADMIN"]);
    assert_eq!(suite.node.exec(&id, &RENAME).exit_code, 0);
}

fn hostname_blocked(suite: &Suite) {
    let id = with_seccomp(suite, blocking(suite, &["sethostname"]), &["SYS_ADMIN"]);
    let error = suite.failing(&id, &RENAME);
    assert!(error.contains("Operation not permitted"), "{error}");
}

fn hostname_privileged(suite: &Suite) {
    let profile = blocking(suite, &["sethostname"]);
    let id = suite.waiting(&suite.privileged_pod(), |config| {
        let security = security(config);
        (security.privileged, security.seccomp) = (true, profile);
    });
    assert_eq!(suite.node.exec(&id, &RENAME).exit_code, 0);
}

/// What a program that is set to run as root says of its effective user, started by user 1000.
fn escalates(suite: &Suite, no_new_privs: bool) -> Option<bool> {
    let program = setuid_program()?;
    let image = ImageBuilder::busybox().layer(&[Entry::file("euid", program, 0o4755)]).build();
    let name = put_image(&suite.node.registry, "setuid", "latest", &image);
    suite.pull(&name).expect("the pull");
    let container = suite.waiting(&suite.pod(), |config| {
        config.image = spec(&name);
        let security = security(config);
        (security.run_as_user, security.no_new_privs) = (id(1000), no_new_privs);
    });
    let flag = suite.node.output(&container, "grep ^NoNewPrivs: /proc/self/status");
    assert_eq!(flag.split_whitespace().nth(1), Some(if no_new_privs { "1" } else { "0" }));
    match suite.node.exec(&container, &["/euid"]).exit_code {
        0 => Some(true),
        1 => Some(false),
        other => panic!("exit code {other}"),
    }
}

/// The smallest static program whose exit code is 0 when its effective user is root, and 1 otherwise: busybox itself
/// gives such rights up. For x86-64; elsewhere the flag alone is looked at.
fn setuid_program() -> Option<Vec<u8>> {
    if !cfg!(target_arch = "x86_64") {
        return None;
    }
    const BASE: u64 = 0x40_0000;
    const HEADERS: u64 = 64 + 56;
    // mov eax, SYS_geteuid; syscall; xor edi, edi; test eax, eax; setne dil; mov eax, SYS_exit; syscall
    let code = [
        0xb8, 107, 0, 0, 0, 0x0f, 0x05, 0x31, 0xff, 0x85, 0xc0, 0x40, 0x0f, 0x95, 0xc7, 0xb8, 60, 0, 0, 0,
        0x0f, 0x05,
    ];
    let size = HEADERS + code.len() as u64;
    let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    // Executable for x86-64; one program header behind this one, no sections.
    for half in [2u16, 62] {
        elf.extend(half.to_le_bytes());
    }
    elf.extend(1u32.to_le_bytes());
    for word in [BASE + HEADERS, 64, 0] {
        elf.extend(word.to_le_bytes());
    }
    elf.extend(0u32.to_le_bytes());
    for half in [64u16, 56, 1, 64, 0, 0] {
        elf.extend(half.to_le_bytes());
    }
    // PT_LOAD, readable and executable.
    for half in [1u32, 5] {
        elf.extend(half.to_le_bytes());
    }
    for word in [0, BASE, BASE, size, size, 0x1000] {
        elf.extend(word.to_le_bytes());
    }
    elf.extend(code);
    Some(elf)
}

fn no_new_privs(suite: &Suite) {
    assert_ne!(escalates(suite, true), Some(true));
}

fn new_privs(suite: &Suite) {
    assert_ne!(escalates(suite, false), Some(false));
}

const OWN: IdMapping = IdMapping { host_id: 100_000, container_id: 0, length: 65_536 };

fn users(mode: NamespaceMode, mappings: &[IdMapping]) -> UserNamespace {
    UserNamespace { mode: mode.into(), uids: mappings.to_vec(), gids: mappings.to_vec() }
}

fn options_with(users: UserNamespace) -> NamespaceOption {
    NamespaceOption {
        pid: NamespaceMode::Container.into(),
        userns_options: Some(users),
        ..Default::default()
    }
}

fn has_user_namespaces(suite: &Suite) -> bool {
    let status = suite.node.call(suite.node.runtime.clone().status(StatusRequest::default()));
    let handlers = status.expect("Status").into_inner().runtime_handlers;
    let own = handlers.into_iter().find(|handler| handler.name == suite.node.handler).expect("the handler");
    own.features.is_some_and(|features| features.user_namespaces)
}

fn uid_map(suite: &Suite, container: &str) -> Vec<String> {
    let map = suite.node.output(container, "cat /proc/self/uid_map");
    map.split_whitespace().map(str::to_owned).collect()
}

fn own_users(suite: &Suite) {
    let options = options_with(users(NamespaceMode::Pod, &[OWN]));
    if !has_user_namespaces(suite) {
        // A handler that does not announce them is never given a pod that asks for them.
        let mut config = suite.node.pod_config(&suite.name("pod"));
        let linux = config.linux.as_mut().expect("linux");
        linux.security_context.as_mut().expect("a context").namespace_options = Some(options);
        let error = suite.node.try_run_pod(&config).expect_err("refused");
        assert_eq!(error.code(), tonic::Code::InvalidArgument, "{error}");
        return;
    }
    let id = waiting_in(suite, &suite.pod_in(&options), &options);
    assert_eq!(uid_map(suite, &id), ["0", "100000", "65536"]);
    assert_eq!(suite.node.output(&id, "touch /file; stat -c %u:%g /file /bin/busybox"), "0:0\n0:0\n");
}

fn host_users(suite: &Suite) {
    let options = options_with(users(NamespaceMode::Node, &[]));
    let id = waiting_in(suite, &suite.pod_in(&options), &options);
    let host = std::fs::read_to_string("/proc/self/uid_map").expect("our own");
    assert_eq!(uid_map(suite, &id), host.split_whitespace().collect::<Vec<_>>());
}

/// RunPodSandbox with these users fails and leaves no pod.
fn refuses(suite: &Suite, users: UserNamespace) {
    let mut config = suite.node.pod_config(&suite.name("refused"));
    let linux = config.linux.as_mut().expect("linux");
    linux.security_context.as_mut().expect("a context").namespace_options = Some(options_with(users));
    suite.node.try_run_pod(&config).expect_err("it is refused");
    let request = ListPodSandboxRequest::default();
    let list = suite.node.call(suite.node.runtime.clone().list_pod_sandbox(request)).expect("the list");
    assert!(list.into_inner().items.iter().all(|pod| pod.metadata != config.metadata));
}

fn two_mappings(suite: &Suite) {
    refuses(suite, users(NamespaceMode::Pod, &[OWN, IdMapping { host_id: 200_000, ..OWN }]));
}

fn root_not_mapped(suite: &Suite) {
    refuses(suite, users(NamespaceMode::Pod, &[IdMapping { container_id: 1, ..OWN }]));
}

fn users_of_container(suite: &Suite) {
    refuses(suite, users(NamespaceMode::Container, &[]));
}

fn users_of_target(suite: &Suite) {
    refuses(suite, users(NamespaceMode::Target, &[]));
}
