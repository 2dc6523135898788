//! What containers of a pod have in common: its network, its names, its log folder.

use std::cell::Cell;

use brig::proto::v1::*;

use super::{Check, Pod, Suite, page, run};

pub(super) const CHECKS: &[Check] = &[
    ("Networking runtime should support networking runtime should support DNS config", dns),
    (
        "Networking runtime should support networking runtime should support port mapping with only container port",
        container_port,
    ),
    ("Multiple Containers when running multiple containers in a pod should support network", shared_network),
    ("Multiple Containers when running multiple containers in a pod should support container log", own_logs),
    (
        "Multiple Containers when running multiple containers in a pod should support container exec",
        own_execs,
    ),
];

#[test]
fn privileged_containers_of_a_pod_are_reached_at_one_address_and_keep_their_own_logs() {
    run(CHECKS);
}

const SERVE: &str = "mkdir /www; echo hello > /www/index.html; exec httpd -f -p 80 -h /www";

fn address(suite: &Suite, pod: &Pod) -> String {
    suite.node.pod_status(&pod.id).network.expect("network").ip
}

fn dns(suite: &Suite) {
    let pod = suite.pod_with(|config| {
        config.dns_config = Some(DnsConfig {
            servers: vec!["10.10.10.10".into()],
            searches: vec!["google.com".into()],
            options: vec!["ndots:8".into()],
        });
    });
    let id = suite.waiting(&pod, |_| {});
    let file = suite.node.output(&id, "cat /etc/resolv.conf");
    assert_eq!(file, "search google.com\nnameserver 10.10.10.10\noptions ndots:8\n");
}

fn container_port(suite: &Suite) {
    let pod = suite.pod_with(|config| {
        config.port_mappings = vec![PortMapping { container_port: 80, ..Default::default() }];
    });
    suite.running(&pod, SERVE, |_| {});
    assert_eq!(page(&format!("{}:80", address(suite, &pod))), "hello\n");
}

fn shared_network(suite: &Suite) {
    let pod = suite.pod();
    suite.running(&pod, SERVE, |_| {});
    let client = suite.waiting(&pod, |_| {});
    assert_eq!(page(&format!("{}:80", address(suite, &pod))), "hello\n");
    // The same server as its neighbour sees it.
    assert_eq!(suite.node.output(&client, "wget -qO - http://127.0.0.1:80/"), "hello\n");
}

fn own_logs(suite: &Suite) {
    let pod = suite.pod();
    let name = pod.config.metadata.as_ref().expect("metadata").name.clone();
    for text in ["httpd starts", "echo"] {
        let container = Cell::new(String::new());
        let id = suite.running(&pod, &format!("echo {text}"), |config| {
            container.set(config.metadata.as_ref().expect("metadata").name.clone());
        });
        suite.node.wait_exited(&id);
        assert_eq!(suite.node.log_lines(&name, &container.take()), [format!("stdout F {text}")]);
    }
}

fn own_execs(suite: &Suite) {
    let pod = suite.pod();
    let containers = [suite.waiting(&pod, |_| {}), suite.waiting(&pod, |_| {})];
    for (number, id) in containers.iter().enumerate() {
        suite.node.output(id, &format!("echo {number} > /own"));
    }
    for (number, id) in containers.iter().enumerate() {
        assert_eq!(suite.node.output(id, "cat /own").trim(), number.to_string());
    }
}
