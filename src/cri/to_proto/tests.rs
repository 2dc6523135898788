//! Whole messages, field by field: what the kubelet checks, and that nothing of a request is lost on the way back.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use super::*;
use crate::cri::from_proto;
use crate::pod::spec::PodSpec;
use crate::stats::{ContainerUsage, CpuUsage, MemoryUsage, PodUsage, Usage};
use crate::units::{Bytes, UnixNanos};

const POD: &str = "1111111111111111111111111111111111111111111111111111111111111111";
const CONTAINER: &str = "2222222222222222222222222222222222222222222222222222222222222222";

pub(crate) fn pod_view() -> PodView {
    PodView {
        id: POD.parse().unwrap(),
        spec: Arc::new(PodSpec {
            identity: PodIdentity {
                name: "web".into(),
                uid: "u".into(),
                namespace: "default".into(),
                attempt: 2,
            },
            handler: "runc".into(),
            labels: BTreeMap::from([("app".into(), "web".into())]),
            annotations: BTreeMap::from([("note".into(), " as is\n".into())]),
            ..PodSpec::default()
        }),
        ready: true,
        created_at: UnixNanos(5),
        addresses: vec!["10.88.0.2".parse().unwrap(), "fd00::2".parse().unwrap()],
        netns: None,
        monitor_pid: None,
    }
}

pub(crate) fn container_view() -> ContainerView {
    ContainerView {
        id: CONTAINER.parse().unwrap(),
        pod_id: POD.parse().unwrap(),
        spec: Arc::new(ContainerSpec {
            name: "main".into(),
            attempt: 1,
            image: ImageSpec {
                image: "sha256:aa".into(),
                user_specified_image: "busybox".into(),
                ..Default::default()
            },
            mounts: vec![Mount {
                container_path: PathBuf::from("/models"),
                source: MountSource::Image {
                    image: ImageSpec { image: "models:1".into(), ..Default::default() },
                    sub_path: Some(PathBuf::from("a")),
                },
                readonly: true,
                recursive_read_only: false,
                selinux_relabel: false,
                propagation: Propagation::Private,
                uid_mappings: vec![],
                gid_mappings: vec![],
            }],
            ..ContainerSpec::default()
        }),
        state: Phase::Exited,
        created_at: UnixNanos(5),
        started_at: UnixNanos(6),
        finished_at: UnixNanos(7),
        exit_code: 137,
        reason: "OOMKilled".into(),
        message: String::new(),
        image_id: "sha256:aa".into(),
        image_ref: "busybox@sha256:bb".into(),
        image_name: "busybox:1".into(),
        user: Some(UserIds { uid: 1000, gid: 2000, groups: vec![2000, 3000] }),
        resources: Resources {
            memory_limit_bytes: Some(-1),
            oom_score_adj: Some(-997),
            ..Resources::default()
        },
        log_path: Some(PathBuf::from("/var/log/pods/x/0.log")),
        stop_signal: "SIGRTMIN+3".into(),
        pid: None,
        mounted_images: BTreeMap::from([(PathBuf::from("/models"), "models@sha256:cc".to_owned())]),
    }
}

#[test]
fn a_pod_status_has_all_that_the_kubelet_checks() {
    let status = pod_status(&pod_view());
    assert_eq!(status.id, POD);
    assert_eq!(
        status.metadata,
        Some(v1::PodSandboxMetadata {
            name: "web".into(),
            uid: "u".into(),
            namespace: "default".into(),
            attempt: 2
        })
    );
    assert_eq!((status.state(), status.created_at), (v1::PodSandboxState::SandboxReady, 5));
    let network = status.network.unwrap();
    assert_eq!(network.ip, "10.88.0.2");
    assert_eq!(network.additional_ips, [v1::PodIp { ip: "fd00::2".into() }]);
    assert_eq!(status.annotations["note"], " as is\n");
    assert_eq!(status.runtime_handler, "runc");
    let options = status.linux.unwrap().namespaces.unwrap().options.unwrap();
    assert_eq!(options.userns_options.unwrap().mode(), v1::NamespaceMode::Node);
}

#[test]
fn a_stopped_pod_in_the_hosts_network_is_not_ready_and_has_no_address() {
    let view = PodView { ready: false, addresses: vec![], ..pod_view() };
    let status = pod_status(&view);
    assert_eq!(status.state(), v1::PodSandboxState::SandboxNotready);
    assert_eq!(status.network, Some(v1::PodSandboxNetworkStatus::default()));
    assert_eq!(pod(&view).state(), v1::PodSandboxState::SandboxNotready);
}

#[test]
fn a_container_status_has_all_that_the_kubelet_checks() {
    let status = container_status(&container_view());
    assert_eq!(status.state(), v1::ContainerState::ContainerExited);
    assert_eq!((status.created_at, status.started_at, status.finished_at), (5, 6, 7));
    assert_eq!((status.exit_code, status.reason.as_str()), (137, "OOMKilled"));
    let image = status.image.as_ref().unwrap();
    assert_eq!((image.image.as_str(), image.user_specified_image.as_str()), ("busybox:1", "busybox"));
    assert_eq!((status.image_ref.as_str(), status.image_id.as_str()), ("busybox@sha256:bb", "sha256:aa"));
    assert_eq!(status.stop_signal(), v1::Signal::Sigrtminplus3);
    assert_eq!(status.log_path, "/var/log/pods/x/0.log");
    let user = status.user.unwrap().linux.unwrap();
    assert_eq!((user.uid, user.gid, user.supplemental_groups), (1000, 2000, vec![2000, 3000]));
    let limits = status.resources.unwrap().linux.unwrap();
    assert_eq!((limits.memory_limit_in_bytes, limits.oom_score_adj, limits.cpu_shares), (-1, -997, 0));
    let mounted = &status.mounts[0];
    assert_eq!((mounted.container_path.as_str(), mounted.image_sub_path.as_str()), ("/models", "a"));
    let image = mounted.image.as_ref().unwrap();
    assert_eq!((image.image.as_str(), image.image_ref.as_str()), ("models:1", "models@sha256:cc"));
    let listed = container(&container_view());
    assert_eq!((listed.pod_sandbox_id.as_str(), listed.image_id.as_str()), (POD, "sha256:aa"));
    assert_eq!(listed.image.unwrap().image, "sha256:aa", "as it was asked for");
}

#[test]
fn a_created_container_has_neither_started_nor_finished_and_stops_by_sigterm() {
    let view = ContainerView {
        state: Phase::Created,
        started_at: UnixNanos(0),
        finished_at: UnixNanos(0),
        stop_signal: String::new(),
        log_path: None,
        ..container_view()
    };
    let status = container_status(&view);
    assert_eq!(status.state(), v1::ContainerState::ContainerCreated);
    assert_eq!((status.started_at, status.finished_at), (0, 0));
    assert_eq!(status.stop_signal(), v1::Signal::Sigterm);
    assert_eq!(status.log_path, "");
}

#[test]
fn namespaces_mounts_and_limits_come_back_as_they_were_asked_for() {
    let mapping = v1::IdMapping { host_id: 65_536, container_id: 0, length: 65_536 };
    let options = v1::NamespaceOption {
        network: v1::NamespaceMode::Node.into(),
        pid: v1::NamespaceMode::Container.into(),
        ipc: v1::NamespaceMode::Pod.into(),
        target_id: String::new(),
        userns_options: Some(v1::UserNamespace {
            mode: v1::NamespaceMode::Pod.into(),
            uids: vec![mapping],
            gids: vec![mapping],
        }),
    };
    let limits = v1::LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: 5_000,
        cpu_shares: 1024,
        memory_limit_in_bytes: 1 << 30,
        oom_score_adj: 1000,
        cpuset_cpus: "0-1".into(),
        cpuset_mems: "0".into(),
        hugepage_limits: vec![v1::HugepageLimit { page_size: "2MB".into(), limit: 4 << 20 }],
        unified: BTreeMap::from([("memory.high".into(), "100".into())]),
        memory_swap_limit_in_bytes: 1 << 31,
    };
    let asked = v1::Mount {
        container_path: "/data".into(),
        host_path: "/srv".into(),
        readonly: true,
        propagation: v1::MountPropagation::PropagationHostToContainer.into(),
        uid_mappings: vec![mapping],
        gid_mappings: vec![mapping],
        ..Default::default()
    };
    let config = v1::ContainerConfig {
        metadata: Some(v1::ContainerMetadata { name: "main".into(), attempt: 0 }),
        image: Some(v1::ImageSpec { image: "busybox".into(), ..Default::default() }),
        mounts: vec![asked.clone()],
        linux: Some(v1::LinuxContainerConfig {
            resources: Some(limits.clone()),
            security_context: Some(v1::LinuxContainerSecurityContext {
                namespace_options: Some(options.clone()),
                ..Default::default()
            }),
        }),
        ..Default::default()
    };
    let spec = from_proto::container::container_spec(Some(config)).unwrap();
    assert_eq!(namespaces(&spec.security.namespaces), options);
    assert_eq!(resources(&spec.resources), limits);
    assert_eq!(mount(&spec.mounts[0], None), asked);
}

#[test]
fn stats_carry_the_time_of_the_reading_and_leave_out_what_was_not_read() {
    let cgroup = Usage {
        at: UnixNanos(9),
        cpu: Some(CpuUsage { total_ns: 100, nano_cores: None, pressure: None }),
        memory: Some(MemoryUsage { usage: Bytes(10), working_set: Bytes(8), ..MemoryUsage::default() }),
        processes: Some(3),
        ..Usage::default()
    };
    let usage = ContainerUsage { cgroup: cgroup.clone(), writable_layer: None };
    let stats = container_stats(&container_view(), &usage);
    let (cpu, memory) = (stats.cpu.unwrap(), stats.memory.unwrap());
    assert_eq!((cpu.timestamp, memory.timestamp), (9, 9));
    assert_eq!(cpu.usage_core_nano_seconds, Some(v1::UInt64Value { value: 100 }));
    assert_eq!((cpu.usage_nano_cores, cpu.psi, memory.available_bytes), (None, None, None));
    assert_eq!((stats.swap, stats.io, stats.writable_layer), (None, None, None));
    assert_eq!(stats.attributes.unwrap().id, CONTAINER);

    let eth0 = crate::stats::InterfaceUsage { name: "eth0".into(), rx_bytes: 1, ..Default::default() };
    let pod = PodUsage { cgroup, network: Some(vec![eth0]) };
    let linux = pod_stats(&pod_view(), &pod, vec![]).linux.unwrap();
    assert_eq!(linux.process.unwrap().process_count, Some(v1::UInt64Value { value: 3 }));
    let network = linux.network.unwrap();
    assert_eq!(network.default_interface.unwrap().name, "eth0");
    assert_eq!(network.interfaces, []);
}
