//! Takes up what an earlier daemon left: pods and containers as they are, unfinished work taken back.
//!
//! What cannot be read stays where it is and is reported. Records are in the run directory, so after a reboot there
//! are none: then everything below is a leftover, and the data directory and the network are cleaned of it.

use std::collections::HashSet;
use std::future::ready;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, StreamExt};

use super::DaemonError;
use super::setup::Node;
use crate::container::create::remove_bundle;
use crate::container::record::ContainerRecord;
use crate::container::state::Ended;
use crate::monitor::client::{ContainerStatus, Monitor, MonitorError, Status};
use crate::pod::Pod;
use crate::pod::record::PodRecord;
use crate::task::{blocking, chain};
use crate::units::UnixNanos;

/// Pods taken up at the same time: one whose monitor is slow must not hold the others.
const SIDE_BY_SIDE: usize = 16;

/// A monitor that does not answer is asked again this often: a machine that has just come back is busy.
const MONITOR_TRIES: u32 = 3;
const MONITOR_AGAIN: Duration = Duration::from_millis(500);

/// Makes the tables agree with what runs.
pub(super) async fn recover(node: &Node) -> Result<(), DaemonError> {
    let pods = node.pod_records.read_all();
    let containers = node.container_records.read_all();
    for damage in pods.unreadable.iter().chain(&containers.unreadable) {
        tracing::error!(record = %damage, "a record cannot be read; it is kept, and what it speaks of is left alone");
    }
    let mut orphans: Vec<ContainerRecord> = Vec::new();
    let mut by_pod = {
        let ids = pods.values.iter().map(|record| record.saved.id.clone()).collect::<HashSet<_>>();
        let mut by_pod = std::collections::HashMap::<_, Vec<_>>::new();
        for record in containers.values {
            match ids.contains(&record.saved.pod) {
                true => by_pod.entry(record.saved.pod.clone()).or_default().push(record),
                false => orphans.push(record),
            }
        }
        by_pod
    };
    // Of a pod that is left alone below too: its host ports still lead to it.
    let lives = pods.values.iter().filter(|record| record.state.is_some());
    let attached: Vec<_> = lives.map(|record| (record.saved.id.clone(), record.link.clone())).collect();
    let work = pods.values.into_iter().map(|record| {
        let containers = by_pod.remove(&record.saved.id).unwrap_or_default();
        recover_pod(node, record, containers)
    });
    let all_taken_up =
        stream::iter(work).buffer_unordered(SIDE_BY_SIDE).fold(true, |all, one| ready(all && one)).await;
    for record in orphans {
        tracing::warn!(container = %record.saved.id, pod = %record.saved.pod, "removing a container whose pod is gone");
        take_back(node, &record).await;
    }
    if let Err(error) = node.pods.network().adopt(&attached).await {
        tracing::error!(error = %chain(&error), "cannot learn again which pod has which address and host port");
    }
    let damaged = !all_taken_up || !pods.unreadable.is_empty() || !containers.unreadable.is_empty();
    if damaged {
        // What an unreadable record speaks of cannot be told from a leftover.
        tracing::warn!("leftovers are not collected while a record is unreadable");
        return Ok(());
    }
    collect_leftovers(node).await;
    check_networks(node);
    Ok(())
}

/// Says whether all that the record speaks of is in the tables or gone; if not, nothing may be taken for a leftover.
async fn recover_pod(node: &Node, record: PodRecord, containers: Vec<ContainerRecord>) -> bool {
    let id = record.saved.id.clone();
    let connected = match find_monitor(&node.pods.socket(&id)).await {
        Ok(connected) => connected,
        Err(error) => {
            // It may well run; ending its pod would be worse than not serving it.
            tracing::error!(pod = %id, error = %chain(&error), "a monitor does not answer; its pod is left alone");
            return false;
        }
    };
    if record.state.is_none() {
        tracing::info!(pod = %id, "taking back a pod whose run was not finished");
        node.pods.take_back_intent(&id, connected.map(|(monitor, _)| monitor)).await;
        return true;
    }
    let (monitor, status) =
        connected.map_or((None, Status::default()), |(monitor, status)| (Some(monitor), status));
    let pod = match node.pods.adopt(record, monitor.clone()) {
        Ok(pod) => pod,
        Err(error) => {
            tracing::error!(pod = %id, error = %chain(&error), "a pod cannot be taken up; its record is kept");
            return false;
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
                delete_unfinished(&monitor, &stray.id).await;
            }
            for exec in &status.execs {
                // Who asked for it lost its answer with the earlier daemon. One with streams is not among them: it goes
                // on, as when its client goes away.
                monitor.exec_kill(exec).await.ok();
            }
            node.pods.watch(&pod, &monitor);
        }
        None => node.pods.lose_containers(&pod, "the monitor of the pod was gone").await,
    }
    true
}

/// The monitor behind a socket; `None` if there is none any more.
async fn find_monitor(socket: &Path) -> Result<Option<(Monitor, Status)>, MonitorError> {
    let mut tries = 0;
    loop {
        let error = match Monitor::connect(socket).await {
            Ok(connected) => return Ok(Some(connected)),
            Err(MonitorError::Gone) => return Ok(None),
            Err(MonitorError::Connect { source, .. })
                if matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) =>
            {
                return Ok(None);
            }
            Err(error) => error,
        };
        tries += 1;
        if tries == MONITOR_TRIES {
            return Err(error);
        }
        tokio::time::sleep(MONITOR_AGAIN).await;
    }
}

async fn delete_unfinished(monitor: &Monitor, id: &str) {
    if let Err(error) = monitor.delete_unfinished(id).await {
        tracing::warn!(container = id, error = %chain(&error), "cannot delete an unfinished container");
    }
}

/// Says in the background what adopted pods' networks have lost. Host port rules that are missing are put back.
fn check_networks(node: &Node) {
    let pods = node.pods.clone();
    tokio::spawn(async move {
        for pod in pods.list() {
            let live = pod.live();
            let (Some(link), Some(monitor)) = (live.link, live.monitor) else { continue };
            let netns = PathBuf::from(format!("/proc/{}/ns/net", monitor.pid()));
            if let Err(error) = pods.network().check(pod.id(), &link, &netns).await {
                tracing::warn!(pod = %pod.id(), error = %chain(&error), "the network of a pod is damaged; run the pod anew");
            }
        }
    });
}

async fn take_back(node: &Node, record: &ContainerRecord) {
    if let Err(error) = node.pods.containers().take_back(&record.saved).await {
        tracing::error!(container = %record.saved.id, error = %chain(&error), "cannot take back a container");
    }
}

async fn recover_container(node: &Node, pod: &Arc<Pod>, mut record: ContainerRecord, status: &Status) {
    let containers = node.pods.containers();
    let id = record.saved.id.clone();
    let Some(state) = record.state.clone() else {
        tracing::info!(container = %id, "taking back a container whose creation was not finished");
        if let Some(monitor) = pod.live().monitor {
            delete_unfinished(&monitor, id.as_str()).await;
        }
        take_back(node, &record).await;
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
}

/// Removes what no record speaks of: half-made pods of before a reboot, their network, layers and directories.
async fn collect_leftovers(node: &Node) {
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
    if let Err(error) = node.pods.ids().collect(&pods) {
        tracing::warn!(error = %chain(&error), "cannot give back the ids of pods that are gone");
    }
    let containers: HashSet<String> = node.pods.containers().ids().iter().map(ToString::to_string).collect();
    blocking(move || {
        remove_unknown(&run.join("pods"), &pods, |path| {
            // Mounted here only for foreign runtimes.
            rustix::mount::unmount(path.join("shm"), rustix::mount::UnmountFlags::DETACH).ok();
            std::fs::remove_dir_all(path)
        });
        remove_unknown(&run.join("containers"), &containers, remove_bundle);
    })
    .await;
}

/// Removes the directories below `parent` that are not in `known`.
fn remove_unknown(parent: &Path, known: &HashSet<String>, remove: impl Fn(&Path) -> io::Result<()>) {
    let Ok(entries) = std::fs::read_dir(parent) else { return };
    for entry in entries.flatten() {
        if known.contains(&*entry.file_name().to_string_lossy()) {
            continue;
        }
        if let Err(error) = remove(&entry.path()) {
            tracing::warn!(path = %entry.path().display(), error = %error, "cannot remove a leftover");
        }
    }
}
