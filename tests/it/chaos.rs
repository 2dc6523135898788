//! Kills the daemon at arbitrary moments and proves that nothing is lost and nothing leaks.
//!
//! Method: several clients run whole lives of pods side by side; the daemon is killed with SIGKILL after a delay that
//! differs in every round, so each step of every verb is cut somewhere. After each restart what the daemon lists must
//! be usable: a Ready pod takes a container that runs to its end. At the end the fixture proves that no process,
//! mount, cgroup or file is left.

use std::time::Duration;

use brig::proto::v1::*;

use crate::fixture::node::{Node, PATIENCE};

/// Rounds of the short run in CI; `BRIG_CHAOS_ROUNDS` sets another number.
const ROUNDS: u32 = 12;

#[test]
fn privileged_a_daemon_killed_at_any_moment_loses_and_leaks_nothing() {
    let rounds = std::env::var("BRIG_CHAOS_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(ROUNDS);
    let mut node = Node::new();
    node.busybox();
    for round in 0..rounds {
        // 1 ms to about 120 ms in steps that do not repeat: a life takes some tens of milliseconds.
        let delay = Duration::from_micros(1000 + u64::from(round) * 37_700 % 120_000);
        churn(&mut node, round, delay);
        node.restart_brigd();
        survivors_are_usable(&node, round);
    }
}

/// Starts lives of pods on four connections and kills the daemon after `delay`.
fn churn(node: &mut Node, round: u32, delay: Duration) {
    let lives: Vec<_> = (0..4)
        .map(|lane| {
            let config = node.pod_config(&format!("chaos-{round}-{lane}"));
            let container = node.container_config("main", "echo alive; exec sleep 1000");
            (node.runtime.clone(), config, container)
        })
        .collect();
    let tasks: Vec<_> = lives
        .into_iter()
        .map(|(client, config, container)| node.spawn(life(client, config, container)))
        .collect();
    std::thread::sleep(delay);
    node.kill_brigd();
    for task in tasks {
        // Their calls fail when the daemon dies; only their end matters.
        let _ = node.call(task);
    }
}

async fn life(
    mut client: runtime_service_client::RuntimeServiceClient<tonic::transport::Channel>,
    config: PodSandboxConfig,
    container: ContainerConfig,
) -> Result<(), tonic::Status> {
    for attempt in 0..20 {
        let mut config = config.clone();
        config.metadata.as_mut().expect("metadata").attempt = attempt;
        let request = RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: String::new() };
        let pod = client.run_pod_sandbox(request).await?.into_inner().pod_sandbox_id;
        let request = CreateContainerRequest {
            pod_sandbox_id: pod.clone(),
            config: Some(container.clone()),
            sandbox_config: Some(config),
        };
        let id = client.create_container(request).await?.into_inner().container_id;
        client.start_container(StartContainerRequest { container_id: id.clone() }).await?;
        if attempt % 2 == 0 {
            client.stop_container(StopContainerRequest { container_id: id.clone(), timeout: 0 }).await?;
            client.remove_container(RemoveContainerRequest { container_id: id }).await?;
        }
        if attempt % 3 != 2 {
            client.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id: pod }).await?;
        }
    }
    Ok(())
}

/// Every Ready pod runs one more container; then all are removed.
fn survivors_are_usable(node: &Node, round: u32) {
    let list = node.call(node.runtime.clone().list_pod_sandbox(ListPodSandboxRequest::default()));
    for pod in list.expect("ListPodSandbox").into_inner().items {
        if pod.state() == PodSandboxState::SandboxReady {
            let name = pod.metadata.clone().expect("metadata").name;
            let config = node.pod_config(&name);
            let mut container = node.container_config(&format!("probe-{round}"), "exit 6");
            container.log_path.clear();
            let id = node.create(&pod.id, &container, &config);
            node.start(&id);
            assert_eq!(node.wait_exited(&id).exit_code, 6);
        }
        let request = RemovePodSandboxRequest { pod_sandbox_id: pod.id.clone() };
        node.call(node.runtime.clone().remove_pod_sandbox(request)).expect("a survivor can be removed");
    }
    let list = node.call(node.runtime.clone().list_containers(ListContainersRequest::default()));
    assert_eq!(list.expect("ListContainers").into_inner().containers, [], "within {:?}", *PATIENCE);
}
