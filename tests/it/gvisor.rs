//! gVisor's `runsc` as a handler, where it is installed: what works of a pod's life. README.md lists what does not.

use crate::fixture::node::{Node, Options, runsc};
use brig::proto::v1::*;

#[test]
fn privileged_gvisor_runs_a_pod_with_our_network_logs_exec_and_stats() {
    let Some(config) = runsc() else {
        eprintln!("runsc is not installed; this test says nothing");
        return;
    };
    let node = Node::with(Options { handler: "runsc".into(), config });
    node.busybox();
    let config = node.pod_config("cell");
    let pod = node.run_pod(&config);
    let id = node.run_container(
        &pod,
        &config,
        "main",
        "dmesg | head -1; ip -o -4 addr; touch /ready; exec sleep 1000",
    );
    let deadline = std::time::Instant::now() + *crate::fixture::node::PATIENCE;
    while node.exec(&id, &["test", "-e", "/ready"]).exit_code != 0 {
        assert!(std::time::Instant::now() < deadline, "the container does not get ready");
    }
    // Its kernel is gVisor's, and its address is the pod's.
    let ip = node.pod_status(&pod).network.expect("a network").ip;
    let lines = node.log_lines("cell", "main");
    assert!(lines.iter().any(|line| line.contains("Starting gVisor")), "{lines:?}");
    assert!(lines.iter().any(|line| line.contains(&ip)), "{ip} is not in {lines:?}");
    assert_eq!(node.exec(&id, &["sh", "-c", "echo out; echo err >&2; exit 7"]).exit_code, 7);
    // Its kernel has the pod's name, and a command whose time is up ends in there.
    assert_eq!(node.output(&id, "hostname").trim(), config.hostname);
    let status = node.try_exec(&id, &["sleep", "4321"], 1).expect_err("a timeout");
    assert_eq!(status.code(), tonic::Code::DeadlineExceeded, "{}", status.message());
    assert_eq!(node.output(&id, "ps | grep -c '[s]leep 4321' || true").trim(), "0");
    let request = ContainerStatsRequest { container_id: id.clone() };
    let stats = node.call(node.runtime.clone().container_stats(request)).expect("stats").into_inner().stats;
    let memory = stats.and_then(|stats| stats.memory).and_then(|memory| memory.working_set_bytes);
    assert!(memory.is_some_and(|bytes| bytes.value > 1 << 20), "{memory:?}");
    // A second container of the pod has a kernel of its own and the pod's network.
    let second = node.run_container(&pod, &config, "second", "ip -o -4 addr; exit 3");
    assert_eq!(node.wait_exited(&second).exit_code, 3);
    assert!(node.log_lines("cell", "second").iter().any(|line| line.contains(&ip)));
    node.stop_container(&id, 1);
    assert_eq!(node.status(&id).state(), ContainerState::ContainerExited);
    // One that is created and never started goes away as well.
    node.create(&pod, &node.container_config("never", "true"), &config);
    node.remove_pod(&pod);
}
