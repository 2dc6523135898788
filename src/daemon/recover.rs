//! Takes up what an earlier daemon left: pods and containers as they are, unfinished work taken back.
//!
//! What cannot be read stays where it is and is reported. Records are in the run directory, so after a reboot there
//! are none: then everything below is a leftover, and the data directory and the network are cleaned of it.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::DaemonError;
use super::setup::Node;
use crate::container::record::ContainerRecord;
use crate::container::state::{Ended, State};
use crate::monitor::client::{ContainerStatus, Monitor, Status};
use crate::pod::Pod;
use crate::pod::record::PodRecord;
use crate::task::{blocking, chain};
use crate::units::UnixNanos;

/// Makes the tables agree with what runs.
pub(super) async fn recover(node: &Node) -> Result<(), DaemonError> {
    let pods = node.pod_records.read_all();
    let containers = node.container_records.read_all();
    for damage in pods.unreadable.iter().chain(&containers.unreadable) {
        tracing::error!(record = %damage, "a record cannot be read; it is kept, and what it speaks of is left alone");
    }
    let mut orphans: Vec<ContainerRecord> = Vec::new();
    let (mut by_pod, ids): (std::collections::HashMap<_, Vec<ContainerRecord>>, HashSet<_>) = {
        let ids = pods.values.iter().map(|record| record.saved.id.clone()).collect::<HashSet<_>>();
        let mut by_pod = std::collections::HashMap::<_, Vec<_>>::new();
        for record in containers.values {
            match ids.contains(&record.saved.pod) {
                true => by_pod.entry(record.saved.pod.clone()).or_default().push(record),
                false => orphans.push(record),
            }
        }
        (by_pod, ids)
    };
    for record in pods.values {
        let id = record.saved.id.clone();
        recover_pod(node, record, by_pod.remove(&id).unwrap_or_default()).await;
    }
    for record in orphans {
        tracing::warn!(container = %record.saved.id, pod = %record.saved.pod, "removing a container whose pod is gone");
        node.pods.containers().take_back(&record.saved).await;
    }
    let damaged = !pods.unreadable.is_empty() || !containers.unreadable.is_empty();
    if damaged {
        // What an unreadable record speaks of cannot be told from a leftover.
        tracing::warn!("leftovers are not collected while a record is unreadable");
        return Ok(());
    }
    collect_leftovers(node, &ids).await;
    Ok(())
}

async fn recover_pod(node: &Node, record: PodRecord, containers: Vec<ContainerRecord>) {
    let id = record.saved.id.clone();
    let connected = Monitor::connect(&node.pods.socket(&id)).await;
    let Some(state) = record.state else {
        tracing::info!(pod = %id, "taking back a pod whose run was not finished");
        node.pods.take_back_intent(&id, connected.ok().map(|(monitor, _)| monitor)).await;
        return;
    };
    let (monitor, status) = match connected {
        Ok((monitor, status)) => (Some(monitor), status),
        Err(error) => {
            if state.is_ready() {
                tracing::error!(pod = %id, error = %chain(&error), "the monitor of a pod is gone; ending the pod");
            }
            (None, Status::default())
        }
    };
    let pod = match node.pods.adopt(record, monitor.clone()) {
        Ok(pod) => pod,
        Err(error) => {
            tracing::error!(pod = %id, error = %chain(&error), "a pod cannot be taken up; its record is kept");
            return;
        }
    };
    let known: HashSet<_> = containers.iter().map(|record| record.saved.id.to_string()).collect();
    for record in containers {
        recover_container(node, &pod, record, &status).await;
    }
    match monitor {
        Some(monitor) => {
            for stray in status.containers.iter().filter(|container| !known.contains(&container.id)) {
                tracing::info!(pod = %id, container = %stray.id, "deleting a container without a record");
                monitor.delete(&stray.id).await.ok();
            }
            node.pods.watch(&pod, &monitor);
        }
        None if state.is_ready() => node.pods.lose_containers(&pod, "the monitor of the pod was gone").await,
        None => {}
    }
}

async fn recover_container(node: &Node, pod: &Arc<Pod>, mut record: ContainerRecord, status: &Status) {
    let containers = node.pods.containers();
    let id = record.saved.id.clone();
    let Some(state) = record.state.clone() else {
        tracing::info!(container = %id, "taking back a container whose creation was not finished");
        if let Some(monitor) = pod.live().monitor {
            monitor.delete(id.as_str()).await.ok();
        }
        containers.take_back(&record.saved).await;
        return;
    };
    let seen = status.containers.iter().find(|container| container.id == id.as_str());
    if let Some(ContainerStatus { started_at: Some(at), .. }) = seen {
        // A start that was answered by the monitor but not recorded.
        record.state = Some(state.clone().started(UnixNanos(*at)));
    }
    let container = containers.adopt(record, pod.any_placement());
    if state.is_exited() {
        return;
    }
    match seen {
        Some(ContainerStatus { exit: Some(exit), .. }) => {
            let ended = Ended::Process {
                code: exit.code,
                oom_killed: exit.oom_killed,
                at: UnixNanos(exit.finished_at),
            };
            containers.on_exit(&container, ended).await;
        }
        Some(_) => {}
        // Without a monitor the caller ends it.
        None if pod.live().monitor.is_none() => {}
        None => {
            let ended = Ended::Lost { message: "the monitor does not know it".into(), at: UnixNanos::now() };
            containers.on_exit(&container, ended).await;
        }
    }
    debug_assert!(!matches!(state, State::Exited(_)), "exited containers were returned above");
}

/// Removes what no record speaks of: half-made pods of before a reboot, their network, layers and directories.
async fn collect_leftovers(node: &Node, _recorded: &HashSet<crate::id::PodId>) {
    let pods = node.pods.list();
    let attached: Vec<_> = pods.iter().map(|pod| (pod.id().clone(), pod.live().link)).collect();
    for error in node.pods.network().gc(&attached).await.failures {
        tracing::warn!(error = %chain(&error), "cannot give back the network of a pod that is gone; the next start tries again");
    }
    let (store, ids) = (node.store.clone(), node.pods.containers().ids());
    if let Err(error) = blocking(move || store.gc(&ids)).await {
        tracing::warn!(error = %chain(&error), "cannot collect unused layers");
    }
    let run = node.config.server.run.clone();
    let pods: HashSet<String> = pods.iter().map(|pod| pod.id().to_string()).collect();
    let containers: HashSet<String> = node.pods.containers().ids().iter().map(ToString::to_string).collect();
    blocking(move || {
        remove_unknown(&run.join("pods"), &pods, "shm");
        remove_unknown(&run.join("containers"), &containers, "rootfs");
    })
    .await;
}

/// Removes the directories below `parent` that are not in `known`, unmounting `mount` in each first.
fn remove_unknown(parent: &Path, known: &HashSet<String>, mount: &str) {
    let Ok(entries) = std::fs::read_dir(parent) else { return };
    for entry in entries.flatten() {
        if known.contains(&*entry.file_name().to_string_lossy()) {
            continue;
        }
        let path: PathBuf = entry.path();
        rustix::mount::unmount(path.join(mount), rustix::mount::UnmountFlags::DETACH).ok();
        if let Err(error) = std::fs::remove_dir_all(&path) {
            tracing::warn!(path = %path.display(), error = %error, "cannot remove a leftover");
        }
    }
}
