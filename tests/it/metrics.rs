//! Pod metrics through the RPCs, and what the daemon tells Prometheus about itself.

use std::collections::{BTreeMap, BTreeSet};

use brig::proto::v1::*;

use crate::fixture::node::{Node, Options, eventually, handlers};

/// What depends on the host: pressure and huge pages on its kernel, block devices on what is below its file systems.
const HOST_DEPENDS: [&str; 13] = [
    "container_blkio_device_usage_total",
    "container_fs_reads_bytes_total",
    "container_fs_reads_total",
    "container_fs_writes_bytes_total",
    "container_fs_writes_total",
    "container_hugetlb_max_usage_bytes",
    "container_hugetlb_usage_bytes",
    "container_pressure_cpu_stalled_seconds_total",
    "container_pressure_cpu_waiting_seconds_total",
    "container_pressure_io_stalled_seconds_total",
    "container_pressure_io_waiting_seconds_total",
    "container_pressure_memory_stalled_seconds_total",
    "container_pressure_memory_waiting_seconds_total",
];

fn list(node: &Node) -> Vec<PodSandboxMetrics> {
    let request = ListPodSandboxMetricsRequest::default();
    node.call(node.runtime.clone().list_pod_sandbox_metrics(request))
        .expect("metrics")
        .into_inner()
        .pod_metrics
}

/// By name; of several with one name the sum.
fn values(metrics: &[Metric]) -> BTreeMap<&str, u64> {
    let mut sums = BTreeMap::new();
    for metric in metrics {
        *sums.entry(metric.name.as_str()).or_default() += metric.value.expect("a value").value;
    }
    sums
}

#[test]
fn privileged_pod_metrics_say_what_a_container_is_allowed_and_uses() {
    for handler in handlers() {
        let node = Node::with(Options { handler: handler.into(), ..Options::default() });
        node.busybox();
        let config = node.pod_config("metrics");
        let pod = node.run_pod(&config);
        let mut container = node.container_config(
            "main",
            "ulimit -n 512; dd if=/dev/zero of=/file bs=1M count=4; nc -l -p 1 & sleep 1000 & while :; do :; done",
        );
        container.linux.as_mut().expect("linux").resources = Some(LinuxContainerResources {
            cpu_period: 100_000,
            cpu_quota: 20_000,
            cpu_shares: 512,
            memory_limit_in_bytes: 64 << 20,
            ..Default::default()
        });
        let id = node.create(&pod, &container, &config);
        node.start(&id);

        let descriptors = node
            .call(node.runtime.clone().list_metric_descriptors(ListMetricDescriptorsRequest {}))
            .expect("descriptors")
            .into_inner()
            .descriptors;
        assert_eq!(descriptors.len(), 56);

        // The processes are there before they have done what is waited for.
        let all = eventually(|| {
            let all = list(&node);
            let seen = values(&all.first()?.container_metrics.first()?.metrics);
            let busy =
                seen["container_cpu_usage_seconds_total"] > 0 && seen["container_cpu_cfs_periods_total"] > 0;
            (busy && seen["container_sockets"] == 1 && seen["container_fs_usage_bytes"] >= 4 << 20)
                .then_some(all)
        });
        assert_eq!(all.iter().map(|one| &one.pod_sandbox_id).collect::<Vec<_>>(), [&pod]);
        assert_eq!(all[0].container_metrics.len(), 1);
        assert_eq!(all[0].container_metrics[0].container_id, id);
        let (own, network) = (&all[0].container_metrics[0].metrics, &all[0].metrics);
        let seen = values(own);
        for (name, value) in [
            ("container_spec_cpu_period", 100_000),
            ("container_spec_cpu_quota", 20_000),
            ("container_spec_cpu_shares", 512),
            ("container_spec_memory_limit_bytes", 64 << 20),
            ("container_processes", 3),
            ("container_threads", 3),
            ("container_oom_events_total", 0),
            ("container_ulimits_soft", 512),
        ] {
            assert_eq!(seen[name], value, "{name}");
        }
        for name in
            ["usage_bytes", "working_set_bytes", "rss", "max_usage_bytes", "kernel_usage", "failures_total"]
        {
            let name = format!("container_memory_{name}");
            assert!((1..=64 << 20).contains(&seen[name.as_str()]), "{name} {}", seen[name.as_str()]);
        }
        assert!(seen["container_file_descriptors"] >= seen["container_processes"] * 3);
        assert!(seen["container_fs_limit_bytes"] > seen["container_fs_usage_bytes"]);
        assert!(seen["container_last_seen"] >= seen["container_start_time_seconds"]);
        let sent = values(network);
        assert!(sent.contains_key("container_network_transmit_packets_total"));

        let names: BTreeSet<_> = seen.keys().chain(sent.keys()).copied().collect();
        let missing: Vec<_> = descriptors
            .iter()
            .map(|descriptor| descriptor.name.as_str())
            .filter(|name| !names.contains(name) && !HOST_DEPENDS.contains(name))
            .collect();
        assert_eq!(missing, Vec::<&str>::new());
        for metric in own.iter().chain(network) {
            let descriptor = descriptors.iter().find(|one| one.name == metric.name).expect("a descriptor");
            assert_eq!(descriptor.label_keys.len(), metric.label_values.len(), "{}", metric.name);
            assert!(metric.timestamp > 0);
        }
        let labels = |metric: &Metric| metric.label_values[..6].to_vec();
        let cgroup = format!("/brig/{pod}");
        let [container, path, image, name, namespace, of_pod]: [String; 6] =
            labels(&own[0]).try_into().expect("six");
        assert_eq!(
            [container.as_str(), &image, &name, &namespace, &of_pod],
            ["main", &node.image, &id, "default", "metrics"]
        );
        assert!(path.starts_with(&cgroup) && path.contains(&id), "{path}");
        assert_eq!(labels(&network[0]), ["", &cgroup, "", &pod, "default", "metrics"]);

        let mut streamed = Vec::new();
        let request = StreamPodSandboxMetricsRequest::default();
        let mut stream = node
            .call(node.runtime.clone().stream_pod_sandbox_metrics(request))
            .expect("a stream")
            .into_inner();
        while let Some(chunk) = node.call(stream.message()).expect("a chunk") {
            streamed.extend(chunk.pod_sandbox_metrics.into_iter().map(|one| one.pod_sandbox_id));
        }
        assert_eq!(streamed, std::slice::from_ref(&pod));

        // What has ended uses nothing, and a pod that is stopped is not there any more.
        node.stop_container(&id, 0);
        let all = list(&node);
        assert_eq!((all.len(), all[0].container_metrics.len()), (1, 0));
        node.stop_pod(&pod);
        assert_eq!(list(&node), []);
    }
}

#[test]
fn privileged_a_pod_in_the_host_network_has_no_network_metrics() {
    let node = Node::new();
    let mut config = node.pod_config("host");
    let security = config.linux.as_mut().and_then(|linux| linux.security_context.as_mut()).expect("security");
    security.namespace_options.as_mut().expect("options").network = NamespaceMode::Node.into();
    let pod = node.run_pod(&config);
    let all = list(&node);
    assert_eq!((all[0].pod_sandbox_id.as_str(), all[0].metrics.len()), (pod.as_str(), 0));
}

/// The samples that the daemon serves, by name and labels as they stand in the text.
fn scrape(address: &str) -> BTreeMap<String, f64> {
    let (head, body) = http(address, "GET /metrics");
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    assert!(head.contains("content-type: application/openmetrics-text; version=1.0.0"), "{head}");
    assert!(body.ends_with("# EOF\n"), "{body}");
    let samples = body.lines().filter(|line| !line.starts_with('#'));
    samples
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').expect("a value");
            (name.to_owned(), value.parse().expect("a number"))
        })
        .collect()
}

fn http(address: &str, request: &str) -> (String, String) {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(address).expect("a connection");
    write!(stream, "{request} HTTP/1.1\r\nHost: brig\r\nConnection: close\r\n\r\n").expect("the request");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("the answer");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    (head.to_owned(), body.to_owned())
}

#[test]
fn privileged_the_daemon_tells_prometheus_what_it_does() {
    let config = "[metrics]\nlisten = \"127.0.0.1:0\"".to_owned();
    let node = Node::with(Options { config, ..Options::default() });
    let address = eventually(|| {
        let log = node.log();
        let line = log.lines().find(|line| line.contains("serving metrics"))?.to_owned();
        Some(line.split_once("address=")?.1.to_owned())
    });
    node.busybox();
    let config = node.pod_config("own");
    let pod = node.run_pod(&config);
    node.run_container(&pod, &config, "main", "exec sleep 1000");
    let request = ContainerStatusRequest { container_id: "0".repeat(64), verbose: false };
    node.call(node.runtime.clone().container_status(request)).expect_err("unknown");

    let seen = scrape(&address);
    for (name, value) in [
        (r#"brig_rpc_duration_seconds_count{method="RunPodSandbox"}"#, 1.0),
        (r#"brig_rpc_errors_total{method="ContainerStatus",code="NotFound"}"#, 1.0),
        (r#"brig_image_pull_duration_seconds_count{outcome="done"}"#, 1.0),
        (r#"brig_image_layers_total{source="registry"}"#, 1.0),
        (r#"brig_pods{state="ready"}"#, 1.0),
        (r#"brig_containers{state="running"}"#, 1.0),
        (r#"brig_containers{state="exited"}"#, 0.0),
        ("brig_monitors", 1.0),
        ("brig_images", 1.0),
    ] {
        assert_eq!(seen.get(name), Some(&value), "{name} in {seen:#?}");
    }
    let now =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a clock").as_secs_f64();
    for name in [
        "brig_image_pulled_bytes_total",
        "brig_store_bytes",
        "process_resident_memory_bytes",
        "process_open_fds",
    ] {
        assert!(seen[name] > 0.0, "{name}");
    }
    let age = now - seen["process_start_time_seconds"];
    assert!((-2.0..600.0).contains(&age), "started {age} s ago");

    // What the dashboard draws exists; series that begin with an event are drawn once it has happened.
    let known: BTreeSet<_> = seen.keys().map(|name| name.split('{').next().expect("a name")).collect();
    let dashboard = include_str!("../../deploy/grafana.json");
    let words = dashboard.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let drawn: BTreeSet<_> =
        words.filter(|word| word.starts_with("brig_") || word.starts_with("process_")).collect();
    assert!(drawn.len() > 12, "{drawn:?}");
    assert_eq!(drawn.difference(&known).collect::<Vec<_>>(), Vec::<&&str>::new());

    let (head, _) = http(&address, "GET /");
    assert!(head.starts_with("HTTP/1.1 404 "), "{head}");
    let (head, _) = http(&address, "DELETE /metrics");
    assert!(head.starts_with("HTTP/1.1 405 "), "{head}");
}
