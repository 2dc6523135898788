//! From our own types to the messages of the CRI, exact to the letter of version 1.
//!
//! What a client breaks on when it is missing (`image.image`, `image_ref`, `created_at`, see the kubelet's
//! `verifyContainerStatus`) cannot be missing in the views this reads.

mod image;
mod metrics;
mod signal;
mod stats;

use std::path::Path;

pub(crate) use image::{fs_usage, image};
pub(crate) use metrics::{container_metrics, metric_descriptors, pod_metrics};
pub(crate) use stats::{container_stats, pod_stats};

use crate::container::spec::{
    ContainerSpec, IdMapping, ImageSpec, Mount, MountSource, NamespaceMode, Namespaces, Propagation,
    Resources,
};
use crate::container::status::{ContainerView, Phase, UserIds};
use crate::pod::spec::PodIdentity;
use crate::pod::status::PodView;
use crate::proto::v1;

/// A pod in a list.
pub(crate) fn pod(view: &PodView) -> v1::PodSandbox {
    let spec = &view.spec;
    v1::PodSandbox {
        id: view.id.to_string(),
        metadata: Some(pod_metadata(&spec.identity)),
        state: pod_state(view).into(),
        created_at: view.created_at.0,
        labels: spec.labels.clone(),
        annotations: spec.annotations.clone(),
        runtime_handler: spec.handler.clone(),
    }
}

/// A pod in full.
pub(crate) fn pod_status(view: &PodView) -> v1::PodSandboxStatus {
    let spec = &view.spec;
    let mut addresses = view.addresses.iter().map(ToString::to_string);
    v1::PodSandboxStatus {
        id: view.id.to_string(),
        metadata: Some(pod_metadata(&spec.identity)),
        state: pod_state(view).into(),
        created_at: view.created_at.0,
        // Present and empty for a pod in the host's network, as clients look at `network.ip` without a check.
        network: Some(v1::PodSandboxNetworkStatus {
            ip: addresses.next().unwrap_or_default(),
            additional_ips: addresses.map(|ip| v1::PodIp { ip }).collect(),
        }),
        linux: Some(v1::LinuxPodSandboxStatus {
            namespaces: Some(v1::Namespace { options: Some(namespaces(spec.namespaces())) }),
        }),
        labels: spec.labels.clone(),
        annotations: spec.annotations.clone(),
        runtime_handler: spec.handler.clone(),
    }
}

pub(super) fn pod_state(view: &PodView) -> v1::PodSandboxState {
    if view.ready { v1::PodSandboxState::SandboxReady } else { v1::PodSandboxState::SandboxNotready }
}

fn pod_metadata(identity: &PodIdentity) -> v1::PodSandboxMetadata {
    v1::PodSandboxMetadata {
        name: identity.name.clone(),
        uid: identity.uid.clone(),
        namespace: identity.namespace.clone(),
        attempt: identity.attempt,
    }
}

fn namespaces(asked: &Namespaces) -> v1::NamespaceOption {
    let mode = |mode: &NamespaceMode| {
        i32::from(match mode {
            NamespaceMode::Pod => v1::NamespaceMode::Pod,
            NamespaceMode::Container => v1::NamespaceMode::Container,
            NamespaceMode::Node => v1::NamespaceMode::Node,
            NamespaceMode::Target(_) => v1::NamespaceMode::Target,
        })
    };
    v1::NamespaceOption {
        network: mode(&asked.network),
        pid: mode(&asked.pid),
        ipc: mode(&asked.ipc),
        target_id: match &asked.pid {
            NamespaceMode::Target(id) => id.clone(),
            NamespaceMode::Pod | NamespaceMode::Container | NamespaceMode::Node => String::new(),
        },
        userns_options: Some(match &asked.user {
            None => v1::UserNamespace { mode: v1::NamespaceMode::Node.into(), ..Default::default() },
            Some(user) => v1::UserNamespace {
                mode: v1::NamespaceMode::Pod.into(),
                uids: id_mappings(&user.uids),
                gids: id_mappings(&user.gids),
            },
        }),
    }
}

/// A container in a list.
pub(crate) fn container(view: &ContainerView) -> v1::Container {
    let spec = &view.spec;
    v1::Container {
        id: view.id.to_string(),
        pod_sandbox_id: view.pod_id.to_string(),
        metadata: Some(container_metadata(spec)),
        image: Some(image_spec(&spec.image)),
        image_ref: view.image_ref.clone(),
        state: container_state(view.state).into(),
        created_at: view.created_at.0,
        labels: spec.labels.clone(),
        annotations: spec.annotations.clone(),
        image_id: view.image_id.clone(),
    }
}

/// A container in full.
pub(crate) fn container_status(view: &ContainerView) -> v1::ContainerStatus {
    let spec = &view.spec;
    v1::ContainerStatus {
        id: view.id.to_string(),
        metadata: Some(container_metadata(spec)),
        state: container_state(view.state).into(),
        created_at: view.created_at.0,
        started_at: view.started_at.0,
        finished_at: view.finished_at.0,
        exit_code: view.exit_code,
        // The kubelet copies it to the pod's status, where people read it; its request says the id.
        image: Some(v1::ImageSpec { image: view.image_name.clone(), ..image_spec(&spec.image) }),
        image_ref: view.image_ref.clone(),
        reason: view.reason.clone(),
        message: view.message.clone(),
        labels: spec.labels.clone(),
        annotations: spec.annotations.clone(),
        mounts: spec
            .mounts
            .iter()
            .map(|it| mount(it, view.mounted_images.get(&it.container_path).map(String::as_str)))
            .collect(),
        log_path: view.log_path.as_deref().map(text).unwrap_or_default(),
        resources: Some(v1::ContainerResources { linux: Some(resources(&view.resources)), windows: None }),
        image_id: view.image_id.clone(),
        user: view.user.as_ref().map(user),
        stop_signal: signal::by_name(&view.stop_signal).unwrap_or(v1::Signal::Sigterm).into(),
    }
}

pub(super) fn container_state(phase: Phase) -> v1::ContainerState {
    match phase {
        Phase::Created => v1::ContainerState::ContainerCreated,
        Phase::Running => v1::ContainerState::ContainerRunning,
        Phase::Exited => v1::ContainerState::ContainerExited,
    }
}

fn container_metadata(spec: &ContainerSpec) -> v1::ContainerMetadata {
    v1::ContainerMetadata { name: spec.name.clone(), attempt: spec.attempt }
}

/// As in the request.
fn image_spec(spec: &ImageSpec) -> v1::ImageSpec {
    v1::ImageSpec {
        image: spec.image.clone(),
        annotations: spec.annotations.clone(),
        user_specified_image: spec.user_specified_image.clone(),
        runtime_handler: spec.runtime_handler.clone(),
        image_ref: String::new(),
    }
}

fn mount(mount: &Mount, mounted_image: Option<&str>) -> v1::Mount {
    let (host_path, image, image_sub_path) = match &mount.source {
        MountSource::Host(path) => (text(path), None, String::new()),
        MountSource::Image { image, sub_path } => {
            let image_ref = mounted_image.unwrap_or_default().to_owned();
            let image = v1::ImageSpec { image_ref, ..image_spec(image) };
            (String::new(), Some(image), sub_path.as_deref().map(text).unwrap_or_default())
        }
    };
    v1::Mount {
        container_path: text(&mount.container_path),
        host_path,
        readonly: mount.readonly,
        selinux_relabel: mount.selinux_relabel,
        propagation: match mount.propagation {
            Propagation::Private => v1::MountPropagation::PropagationPrivate,
            Propagation::HostToContainer => v1::MountPropagation::PropagationHostToContainer,
            Propagation::Bidirectional => v1::MountPropagation::PropagationBidirectional,
        }
        .into(),
        uid_mappings: id_mappings(&mount.uid_mappings),
        gid_mappings: id_mappings(&mount.gid_mappings),
        recursive_read_only: mount.recursive_read_only,
        image,
        image_sub_path,
    }
}

fn id_mappings(mappings: &[IdMapping]) -> Vec<v1::IdMapping> {
    let one =
        |it: &IdMapping| v1::IdMapping { host_id: it.host, container_id: it.container, length: it.length };
    mappings.iter().map(one).collect()
}

fn user(ids: &UserIds) -> v1::ContainerUser {
    v1::ContainerUser {
        linux: Some(v1::LinuxContainerUser {
            uid: ids.uid.into(),
            gid: ids.gid.into(),
            supplemental_groups: ids.groups.iter().map(|&gid| gid.into()).collect(),
        }),
    }
}

/// `None` is 0 on the wire.
fn resources(it: &Resources) -> v1::LinuxContainerResources {
    let signed = |value: Option<u64>| i64::try_from(value.unwrap_or(0)).unwrap_or(i64::MAX);
    v1::LinuxContainerResources {
        cpu_period: signed(it.cpu_period_us),
        cpu_quota: it.cpu_quota_us.unwrap_or(0),
        cpu_shares: signed(it.cpu_shares),
        memory_limit_in_bytes: it.memory_limit_bytes.unwrap_or(0),
        oom_score_adj: it.oom_score_adj.unwrap_or(0).into(),
        cpuset_cpus: it.cpuset_cpus.clone(),
        cpuset_mems: it.cpuset_mems.clone(),
        hugepage_limits: it
            .hugepage_limits
            .iter()
            .map(|limit| v1::HugepageLimit { page_size: limit.page_size.clone(), limit: limit.limit_bytes })
            .collect(),
        unified: it.unified.clone(),
        memory_swap_limit_in_bytes: it.memory_swap_limit_bytes.unwrap_or(0),
    }
}

/// Every path we keep came in as UTF-8.
fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

#[cfg(test)]
pub(super) mod tests;
