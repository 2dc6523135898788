//! The calls that the life of a pod does not need: lists as streams, statistics of many, configuration, the calls that
//! answer UNIMPLEMENTED. And pods on a network that a CNI configuration describes.

use brig::proto::v1::*;

use crate::fixture::node::{Node, Options, eventually, handlers, systemd_cgroups};

#[test]
fn privileged_stream_lists_hold_what_the_plain_lists_hold_and_end() {
    for handler in handlers() {
        let node = Node::with(Options { handler: handler.into(), ..Options::default() });
        node.busybox();
        let config = node.pod_config("stream");
        let pod = node.run_pod(&config);
        let id = node.run_container(&pod, &config, "main", "exec sleep 1000");
        let client = || node.runtime.clone();

        let mut pods = Vec::new();
        let mut stream = node
            .call(client().stream_pod_sandboxes(StreamPodSandboxesRequest::default()))
            .expect("a stream")
            .into_inner();
        while let Some(chunk) = node.call(stream.message()).expect("a chunk") {
            pods.extend(chunk.pod_sandboxes.into_iter().map(|pod| pod.id));
        }
        assert_eq!(pods, std::slice::from_ref(&pod));

        let mut containers = Vec::new();
        let mut stream = node
            .call(client().stream_containers(StreamContainersRequest::default()))
            .expect("a stream")
            .into_inner();
        while let Some(chunk) = node.call(stream.message()).expect("a chunk") {
            containers.extend(chunk.containers.into_iter().map(|container| container.id));
        }
        assert_eq!(containers, std::slice::from_ref(&id));

        let mut stats = Vec::new();
        let mut stream = node
            .call(client().stream_container_stats(StreamContainerStatsRequest::default()))
            .expect("a stream")
            .into_inner();
        while let Some(chunk) = node.call(stream.message()).expect("a chunk") {
            stats.extend(chunk.container_stats.into_iter().filter_map(|stats| Some(stats.attributes?.id)));
        }
        assert_eq!(stats, std::slice::from_ref(&id));

        let mut stats = Vec::new();
        let mut stream = node
            .call(client().stream_pod_sandbox_stats(StreamPodSandboxStatsRequest::default()))
            .expect("a stream")
            .into_inner();
        while let Some(chunk) = node.call(stream.message()).expect("a chunk") {
            stats.extend(chunk.pod_sandbox_stats.into_iter().filter_map(|stats| Some(stats.attributes?.id)));
        }
        assert_eq!(stats, std::slice::from_ref(&pod));

        let list =
            node.call(client().list_container_stats(ListContainerStatsRequest::default())).expect("the list");
        assert_eq!(list.into_inner().stats.len(), 1);
        let list = node
            .call(client().list_pod_sandbox_stats(ListPodSandboxStatsRequest::default()))
            .expect("the list");
        assert_eq!(list.into_inner().stats.len(), 1);

        let mut images = Vec::new();
        let mut stream = node
            .call(node.images.clone().stream_images(StreamImagesRequest::default()))
            .expect("a stream")
            .into_inner();
        while let Some(chunk) = node.call(stream.message()).expect("a chunk") {
            images.extend(chunk.images.into_iter().flat_map(|image| image.repo_tags));
        }
        assert_eq!(images, std::slice::from_ref(&node.image));
    }
}

#[test]
fn privileged_the_runtime_says_what_it_is_and_takes_its_configuration() {
    let mut node = Node::new();
    let version =
        node.call(node.runtime.clone().version(VersionRequest::default())).expect("Version").into_inner();
    assert_eq!((version.runtime_name.as_str(), version.runtime_api_version.as_str()), ("brig", "v1"));
    let request = StatusRequest { verbose: true };
    let status = node.call(node.runtime.clone().status(request)).expect("Status").into_inner();
    let conditions = status.status.expect("a status").conditions;
    assert_eq!(
        conditions.iter().map(|c| (c.r#type.as_str(), c.status)).collect::<Vec<_>>(),
        [("RuntimeReady", true), ("NetworkReady", true)]
    );
    let names: Vec<_> = status.runtime_handlers.iter().map(|handler| handler.name.as_str()).collect();
    assert!(names.contains(&"") && names.contains(&"brig"), "{names:?}");
    let info: serde_json::Value = serde_json::from_str(&status.info["config"]).expect("JSON");
    assert!(std::path::Path::new(info["stateDir"].as_str().expect("a path")).is_dir());
    let answer =
        node.call(node.runtime.clone().runtime_config(RuntimeConfigRequest {})).expect("RuntimeConfig");
    let driver = if systemd_cgroups() { CgroupDriver::Systemd } else { CgroupDriver::Cgroupfs };
    assert_eq!(answer.into_inner().linux.expect("linux").cgroup_driver(), driver);
    let network_config = Some(NetworkConfig { pod_cidr: "10.77.5.0/24".into() });
    let request = UpdateRuntimeConfigRequest { runtime_config: Some(RuntimeConfig { network_config }) };
    node.call(node.runtime.clone().update_runtime_config(request)).expect("UpdateRuntimeConfig");
    let pod = node.run_pod(&node.pod_config("cidr"));
    let ip = node.pod_status(&pod).network.expect("network").ip;
    assert!(ip.starts_with("10.77.5."), "{ip}");
    node.kill_brigd();
    node.restart_brigd();
    let pod = node.run_pod(&node.pod_config("again"));
    let ip = node.pod_status(&pod).network.expect("network").ip;
    assert!(ip.starts_with("10.77.5."), "kept over a restart: {ip}");
    let network_config = Some(NetworkConfig { pod_cidr: "10.77.5.0/99".into() });
    let request = UpdateRuntimeConfigRequest { runtime_config: Some(RuntimeConfig { network_config }) };
    let error = node.call(node.runtime.clone().update_runtime_config(request)).expect_err("no such prefix");
    assert_eq!(error.code(), tonic::Code::InvalidArgument);
}

#[test]
fn privileged_the_limits_of_a_whole_pod_can_be_changed() {
    let mut node = Node::new();
    node.busybox();
    let config = node.pod_config("resize");
    let pod = node.run_pod(&config);
    node.run_container(&pod, &config, "main", "exec sleep 1000");
    let resources = LinuxContainerResources { memory_limit_in_bytes: 128 << 20, ..Default::default() };
    let request = UpdatePodSandboxResourcesRequest {
        pod_sandbox_id: pod.clone(),
        resources: Some(resources),
        ..Default::default()
    };
    node.call(node.runtime.clone().update_pod_sandbox_resources(request)).expect("UpdatePodSandboxResources");
    let limits =
        ["memory/brig/{}/memory.limit_in_bytes", "brig/{}/memory.max", "brig.slice/brig-{}.slice/memory.max"];
    let limit = || {
        let read = limits.iter().find_map(|path| {
            std::fs::read_to_string(format!("/sys/fs/cgroup/{}", path.replace("{}", &pod))).ok()
        });
        read.expect("the pod's cgroup").trim().to_owned()
    };
    assert_eq!(limit(), (128 << 20).to_string());
    let overhead = LinuxContainerResources { memory_limit_in_bytes: 16 << 20, ..Default::default() };
    let request = UpdatePodSandboxResourcesRequest {
        pod_sandbox_id: pod.clone(),
        overhead: Some(overhead),
        ..Default::default()
    };
    node.call(node.runtime.clone().update_pod_sandbox_resources(request)).expect("UpdatePodSandboxResources");
    assert_eq!(limit(), (144 << 20).to_string(), "the containers' and the overhead");
    node.kill_brigd();
    node.restart_brigd();
    let request = PodSandboxStatusRequest { pod_sandbox_id: pod, verbose: true };
    let answer = node.call(node.runtime.clone().pod_sandbox_status(request)).expect("PodSandboxStatus");
    let info: serde_json::Value = serde_json::from_str(&answer.into_inner().info["info"]).expect("JSON");
    assert_eq!(info["resources"]["memory_limit_bytes"], 128 << 20, "{info:#}");
    assert_eq!(info["overhead"]["memory_limit_bytes"], 16 << 20, "{info:#}");
    let request = UpdatePodSandboxResourcesRequest { pod_sandbox_id: "0".repeat(64), ..Default::default() };
    let error = node.call(node.runtime.clone().update_pod_sandbox_resources(request)).expect_err("unknown");
    assert_eq!(error.code(), tonic::Code::NotFound);
}

#[test]
fn privileged_verbose_statuses_hold_the_oci_config() {
    for handler in handlers() {
        let node = Node::with(Options { handler: handler.into(), ..Options::default() });
        node.busybox();
        let mut config = node.pod_config("verbose");
        config.annotations.insert("example.com/key".into(), "value".into());
        let pod = node.run_pod(&config);
        let id = node.run_container(&pod, &config, "main", "readlink /proc/self/ns/net; exec sleep 1000");
        let spec_of = |info: std::collections::BTreeMap<String, String>| {
            let info: serde_json::Value = serde_json::from_str(&info["info"]).expect("JSON");
            info["runtimeSpec"].clone()
        };
        let network = |spec: &serde_json::Value| {
            let all = spec["linux"]["namespaces"].as_array().expect("namespaces").clone();
            all.into_iter().find(|one| one["type"] == "network").expect("a network namespace")
        };

        let request = ContainerStatusRequest { container_id: id.clone(), verbose: true };
        let spec = spec_of(
            node.call(node.runtime.clone().container_status(request)).expect("status").into_inner().info,
        );
        let written = node.run_dir().join("containers").join(&id).join("config.json");
        let written: serde_json::Value =
            serde_json::from_slice(&std::fs::read(written).expect("the bundle")).expect("JSON");
        assert_eq!(spec, written);
        assert_eq!(spec["process"]["args"][0], "/bin/sh");

        let of_pod = || {
            let request = PodSandboxStatusRequest { pod_sandbox_id: pod.clone(), verbose: true };
            spec_of(
                node.call(node.runtime.clone().pod_sandbox_status(request))
                    .expect("status")
                    .into_inner()
                    .info,
            )
        };
        let spec_of_pod = of_pod();
        assert_eq!(network(&spec_of_pod), network(&spec));
        assert_eq!(spec_of_pod["annotations"]["example.com/key"], "value");
        assert_eq!(spec_of_pod["hostname"], "verbose");
        assert_eq!(spec_of_pod.get("process"), None, "a pod has no process of its own: {spec_of_pod:#}");
        let path = network(&spec_of_pod)["path"].as_str().expect("a path").to_owned();
        let namespace = std::fs::read_link(path).expect("the namespace").display().to_string();
        let logged = eventually(|| node.log_lines("verbose", "main").first().cloned());
        assert_eq!(logged, format!("stdout F {namespace}"));
        node.stop_pod(&pod);
        assert_eq!(network(&of_pod()).get("path"), None, "what the monitor's pid means by then is not known");
    }
}

#[test]
fn privileged_what_is_not_there_yet_says_so() {
    let node = Node::new();
    let id = "0".repeat(64);
    let request = CheckpointContainerRequest { container_id: id, ..Default::default() };
    let error = node.call(node.runtime.clone().checkpoint_container(request)).expect_err("an error");
    assert_eq!(error.code(), tonic::Code::Unimplemented);
    assert!(!error.message().is_empty());
}

#[test]
fn privileged_a_cni_configuration_takes_over_without_a_restart() {
    let plugins = ["/usr/lib/cni", "/opt/cni/bin"]
        .into_iter()
        .find(|dir| std::path::Path::new(dir).join("bridge").exists());
    let Some(_) = plugins else {
        eprintln!("no CNI plugins are installed: not tried");
        return;
    };
    for handler in handlers() {
        let node = Node::with(Options { handler: handler.into(), ..Options::default() });
        node.busybox();
        let folder = node.dir.path().join("net.d");
        std::fs::create_dir_all(&folder).expect("the folder");
        let bridge = format!("c{}", &node.bridge[2..]);
        let conflist = serde_json::json!({
            "cniVersion": "1.0.0",
            "name": "test",
            "plugins": [{
                "type": "bridge",
                "bridge": bridge,
                "isGateway": true,
                "ipam": {
                    "type": "host-local",
                    "dataDir": node.dir.path().join("host-local"),
                    "ranges": [[{ "subnet": "10.99.0.0/24" }]],
                    "routes": [{ "dst": "0.0.0.0/0" }],
                },
            }],
        });
        std::fs::write(folder.join("10-test.conflist"), conflist.to_string()).expect("the configuration");
        let config = node.pod_config("cni");
        let pod = node.run_pod(&config);
        let ip = node.pod_status(&pod).network.expect("network").ip;
        assert!(ip.starts_with("10.99.0."), "{ip}");
        let id = node.run_container(&pod, &config, "main", "exec sleep 1000");
        assert!(node.output(&id, "ip -4 addr show eth0").contains(&ip));
        node.remove_pod(&pod);
        let kept = node.dir.path().join("host-local/test").join(&ip);
        assert!(!kept.exists(), "the address was given back");
        std::fs::write(folder.join("10-test.conflist"), "{ not JSON").expect("the configuration");
        let error = node.try_run_pod(&node.pod_config("broken")).expect_err("a broken configuration");
        assert!(error.message().contains("10-test.conflist"), "{error}");
        let list = node.call(node.runtime.clone().list_pod_sandbox(ListPodSandboxRequest::default()));
        assert_eq!(list.expect("the list").into_inner().items, []);
        std::process::Command::new("ip").args(["link", "delete", &bridge]).status().expect("ip(8) runs");
    }
}

#[test]
fn privileged_a_host_port_leads_to_its_pod_and_belongs_to_one_pod() {
    for handler in handlers() {
        let node = Node::with(Options { handler: handler.into(), ..Options::default() });
        node.busybox();
        let mut config = node.pod_config("web");
        // Free in this network namespace, which is ours, and different in each test process.
        let host_port = 20_000 + i32::try_from(std::process::id() % 20_000).expect("a small number");
        config.port_mappings = vec![PortMapping { container_port: 80, host_port, ..Default::default() }];
        let pod = node.run_pod(&config);
        node.run_container(
            &pod,
            &config,
            "main",
            "mkdir /www; echo hello > /www/index.html; exec httpd -f -p 80 -h /www",
        );
        let answer = hello_from(host_port);
        assert!(answer.starts_with("HTTP/1.1 200") || answer.starts_with("HTTP/1.0 200"), "{answer}");
        let mut other = node.pod_config("other");
        other.port_mappings = config.port_mappings.clone();
        let error = node.try_run_pod(&other).expect_err("the port is taken");
        assert!(error.message().contains(&host_port.to_string()), "{error}");
        node.remove_pod(&pod);
        let pod = node.run_pod(&other);
        node.remove_pod(&pod);
    }
}

#[test]
fn privileged_the_run_directory_can_be_passed_through_and_not_looked_into() {
    use std::os::unix::fs::PermissionsExt;
    let node = Node::new();
    node.busybox();
    let config = node.pod_config("modes");
    let id = node.run_container(&node.run_pod(&config), &config, "main", "exec sleep 1000");
    let mode = |path: &str| {
        let path = node.run_dir().join(path);
        path.metadata().unwrap_or_else(|error| panic!("{}: {error}", path.display())).permissions().mode()
            & 0o777
    };
    // The root of a user namespace, who owns nothing here, is on the way to a container's rootfs.
    assert_eq!(["", "containers"].map(mode), [0o711; 2]);
    assert_eq!(["pods", "monitors", "runtimes", "network", "records"].map(mode), [0o700; 5]);
    // A foreign runtime has the rootfs in there, whose setuid programs are not for the host's users.
    assert_eq!(mode(&format!("containers/{id}")), 0o700);
    assert_eq!(
        [format!("containers/{id}/config.json"), "brigd.lock".into()].each_ref().map(|it| mode(it)),
        [0o600; 2]
    );
}

#[test]
fn privileged_host_ports_stay_their_pods_when_the_daemon_starts_beside_an_unreadable_record() {
    let mut node = Node::new();
    node.busybox();
    let mut config = node.pod_config("web");
    let host_port = 20_000 + i32::try_from(std::process::id() % 20_000).expect("a small number");
    config.port_mappings = vec![PortMapping { container_port: 80, host_port, ..Default::default() }];
    let pod = node.run_pod(&config);
    let serve = "mkdir /www; echo hello > /www/index.html; exec httpd -f -p 80 -h /www";
    node.run_container(&pod, &config, "main", serve);
    hello_from(host_port);
    node.kill_brigd();
    node.plant_unreadable_record();
    node.restart_brigd();
    let mut other = node.pod_config("other");
    other.port_mappings = config.port_mappings.clone();
    let error = node.try_run_pod(&other).expect_err("the port is still taken");
    assert!(error.message().contains(&pod), "{error}");
    // The first pod of a new daemon makes the rules anew.
    node.run_pod(&node.pod_config("third"));
    hello_from(host_port);
}

/// What the pod behind a port of this host answers.
fn hello_from(host_port: i32) -> String {
    use std::io::{Read, Write};
    let port = u16::try_from(host_port).expect("a port");
    eventually(|| {
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).ok()?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        text.contains("hello").then_some(text)
    })
}
