//! Pods and containers through the CRI, with every handler that is installed.

use std::collections::BTreeMap;

use brig::proto::v1::*;

use crate::fixture::node::{Node, Options, eventually, handlers, systemd_cgroups};

/// Runs `test` on a node per handler.
fn on_every_handler(test: impl Fn(&Node)) {
    for handler in handlers() {
        eprintln!("--- handler {handler}");
        test(&Node::with(Options { handler: handler.into(), ..Options::default() }));
    }
}

#[test]
fn privileged_a_pod_runs_a_container_and_keeps_its_log_and_exit_code() {
    on_every_handler(|node| {
        node.busybox();
        let config = node.pod_config("thread");
        let pod = node.run_pod(&config);
        let status = node.pod_status(&pod);
        assert_eq!(status.state(), PodSandboxState::SandboxReady);
        assert!(status.network.is_some_and(|network| !network.ip.is_empty()), "the pod has an address");
        let container = node.run_container(&pod, &config, "main", "echo out; echo err >&2; exit 7");
        let status = node.wait_exited(&container);
        assert_eq!((status.exit_code, status.reason.as_str()), (7, "Error"));
        assert!(status.created_at > 0 && status.started_at >= status.created_at);
        assert!(status.finished_at >= status.started_at);
        let mut lines = node.log_lines("thread", "main");
        lines.sort();
        assert_eq!(lines, ["stderr F err", "stdout F out"]);
        node.stop_pod(&pod);
        assert_eq!(node.pod_status(&pod).state(), PodSandboxState::SandboxNotready);
        node.remove_pod(&pod);
    });
}

#[test]
fn privileged_exec_sync_returns_output_and_exit_code() {
    on_every_handler(|node| {
        node.busybox();
        let config = node.pod_config("exec");
        let pod = node.run_pod(&config);
        let container = node.run_container(&pod, &config, "main", "sleep 1000");
        let answer = node.exec(&container, &["/bin/sh", "-c", "echo hello; echo oops >&2; exit 3"]);
        assert_eq!(answer.stdout, b"hello\n");
        assert_eq!(answer.stderr, b"oops\n");
        assert_eq!(answer.exit_code, 3);
        // A child in the background that holds the pipe open does not hang the call.
        let answer = node.exec(&container, &["/bin/sh", "-c", "sleep 1000 & echo done"]);
        assert_eq!((answer.stdout.as_slice(), answer.exit_code), (b"done\n".as_slice(), 0));
        let error = node.try_exec(&container, &["/bin/sleep", "1000"], 1).expect_err("the timeout strikes");
        assert_eq!(error.code(), tonic::Code::DeadlineExceeded, "{error}");
        assert_eq!(
            node.output(&container, "pgrep -f 'sleep 1000' | wc -l").trim().parse::<u32>().map(|n| n <= 3),
            Ok(true)
        );
        let error = node.try_exec(&container, &["/no/such/program"], 0);
        assert!(error.is_err() || error.is_ok_and(|answer| answer.exit_code != 0));
        node.stop_container(&container, 0);
        let status = node.wait_exited(&container);
        assert_eq!(status.exit_code, 137);
        let error = node.try_exec(&container, &["/bin/true"], 0).expect_err("not running");
        assert_eq!(error.code(), tonic::Code::FailedPrecondition, "{error}");
    });
}

#[test]
fn privileged_exec_output_beyond_16_mib_is_dropped_and_the_command_goes_on() {
    let node = Node::new();
    node.busybox();
    let config = node.pod_config("flood");
    let pod = node.run_pod(&config);
    let container = node.run_container(&pod, &config, "main", "sleep 1000");
    let answer =
        node.exec(&container, &["/bin/sh", "-c", "dd if=/dev/zero bs=1M count=40 2>/dev/null; exit 4"]);
    // The answer as a whole has to fit into the 16 MiB that the kubelet's client takes.
    assert!(answer.stdout.len() <= 16 << 20, "{}", answer.stdout.len());
    assert!(answer.stdout.len() > 15 << 20, "{}", answer.stdout.len());
    assert_eq!(answer.exit_code, 4);
}

#[test]
fn privileged_stop_sends_the_stop_signal_and_kills_after_the_grace_period() {
    on_every_handler(|node| {
        node.busybox();
        let config = node.pod_config("stop");
        let pod = node.run_pod(&config);
        let polite = node.run_container(
            &pod,
            &config,
            "polite",
            "trap 'exit 9' TERM; echo up; while :; do sleep 0.05; done",
        );
        let stubborn = node.run_container(
            &pod,
            &config,
            "stubborn",
            "trap '' TERM; echo up; while :; do sleep 0.05; done",
        );
        for name in ["polite", "stubborn"] {
            eventually(|| (node.log_lines("stop", name) == ["stdout F up"]).then_some(()));
        }
        node.stop_container(&polite, 60);
        assert_eq!(node.status(&polite).exit_code, 9);
        node.stop_container(&stubborn, 1);
        assert_eq!(node.status(&stubborn).exit_code, 137);
        // Idempotent, for exited and for unknown containers.
        node.stop_container(&stubborn, 0);
        node.stop_container(&"0".repeat(64), 0);
        node.remove_container(&"0".repeat(64));
        node.stop_pod(&"0".repeat(64));
        node.remove_pod(&"0".repeat(64));
    });
}

#[test]
fn privileged_a_failed_start_is_exit_code_128_with_reason_start_error() {
    on_every_handler(|node| {
        node.busybox();
        let config = node.pod_config("nostart");
        let pod = node.run_pod(&config);
        let mut container = node.container_config("main", "");
        container.command = vec!["/no/such/program".into()];
        container.args.clear();
        // runc and our sandbox look the program up at create; either way the error names it.
        match node.try_create(&pod, &container, &config) {
            Err(error) => assert!(error.message().contains("/no/such/program"), "{error}"),
            Ok(id) => {
                let error = node.try_start(&id).expect_err("no such program");
                assert!(error.message().contains("/no/such/program"), "{error}");
                let status = node.status(&id);
                assert_eq!((status.exit_code, status.reason.as_str()), (128, "StartError"));
            }
        }
        assert_eq!(node.pod_status(&pod).state(), PodSandboxState::SandboxReady);
    });
}

#[test]
fn privileged_a_repeated_call_gets_the_same_answer_and_a_changed_one_is_refused() {
    let node = Node::new();
    node.busybox();
    let config = node.pod_config("again");
    let pod = node.run_pod(&config);
    assert_eq!(node.run_pod(&config), pod);
    let mut other = config.clone();
    other.labels.insert("changed".into(), "yes".into());
    assert_eq!(node.try_run_pod(&other).expect_err("same name").code(), tonic::Code::AlreadyExists);
    let container = node.container_config("main", "sleep 1000");
    let id = node.create(&pod, &container, &config);
    assert_eq!(node.create(&pod, &container, &config), id);
    let mut other = container.clone();
    other.args = vec!["changed".into()];
    let error = node.try_create(&pod, &other, &config).expect_err("same name");
    assert_eq!(error.code(), tonic::Code::AlreadyExists);
    node.stop_pod(&pod);
    let error = node.try_create(&pod, &node.container_config("late", "true"), &config).expect_err("stopped");
    assert_eq!(error.code(), tonic::Code::FailedPrecondition, "{error}");
}

#[test]
fn privileged_twenty_equal_calls_at_once_make_one_pod() {
    let node = Node::new();
    let config = node.pod_config("crowd");
    let ids: Vec<String> = node.call(async {
        let calls = (0..20).map(|_| {
            let (mut client, config) = (node.runtime.clone(), config.clone());
            async move {
                let request = RunPodSandboxRequest { config: Some(config), runtime_handler: String::new() };
                client.run_pod_sandbox(request).await.expect("the answer").into_inner().pod_sandbox_id
            }
        });
        futures_util::future::join_all(calls).await
    });
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    let list = node.call(node.runtime.clone().list_pod_sandbox(ListPodSandboxRequest::default()));
    assert_eq!(list.expect("the list").into_inner().items.len(), 1);
}

#[test]
fn privileged_a_cancelled_call_runs_to_its_end() {
    let node = Node::new();
    let config = node.pod_config("cancel");
    node.call(async {
        let request = RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: String::new() };
        let mut client = node.runtime.clone();
        // Long enough to arrive, too short to be answered, or not: the outcome is the same.
        let _ =
            tokio::time::timeout(std::time::Duration::from_millis(2), client.run_pod_sandbox(request)).await;
    });
    let pod = node.run_pod(&config);
    let list = node.call(node.runtime.clone().list_pod_sandbox(ListPodSandboxRequest::default()));
    let items = list.expect("the list").into_inner().items;
    assert_eq!(items.iter().map(|item| item.id.as_str()).collect::<Vec<_>>(), [pod.as_str()]);
}

#[test]
fn privileged_lists_filter_by_state_label_and_id() {
    let node = Node::new();
    node.busybox();
    let mut first = node.pod_config("first");
    first.labels = BTreeMap::from([("app".to_owned(), "a".to_owned())]);
    let second = node.pod_config("second");
    let (a, b) = (node.run_pod(&first), node.run_pod(&second));
    let container = node.run_container(&b, &second, "main", "sleep 1000");
    let pods = |filter: PodSandboxFilter| -> Vec<String> {
        let request = ListPodSandboxRequest { filter: Some(filter) };
        let answer = node.call(node.runtime.clone().list_pod_sandbox(request)).expect("the list");
        answer.into_inner().items.into_iter().map(|pod| pod.id).collect()
    };
    let labels = BTreeMap::from([("app".to_owned(), "a".to_owned())]);
    assert_eq!(
        pods(PodSandboxFilter { label_selector: labels, ..Default::default() }),
        std::slice::from_ref(&a)
    );
    assert_eq!(
        pods(PodSandboxFilter { id: b[..12].to_owned(), ..Default::default() }),
        std::slice::from_ref(&b)
    );
    let running = ContainerStateValue { state: ContainerState::ContainerRunning as i32 };
    let filter = ContainerFilter { state: Some(running), pod_sandbox_id: b.clone(), ..Default::default() };
    let request = ListContainersRequest { filter: Some(filter) };
    let answer = node.call(node.runtime.clone().list_containers(request)).expect("the list").into_inner();
    assert_eq!(answer.containers.iter().map(|c| c.id.as_str()).collect::<Vec<_>>(), [container.as_str()]);
    node.stop_pod(&a);
    let ready = PodSandboxStateValue { state: PodSandboxState::SandboxReady as i32 };
    assert_eq!(pods(PodSandboxFilter { state: Some(ready), ..Default::default() }), [b]);
}

#[test]
fn privileged_a_memory_hog_is_reported_as_oom_killed() {
    on_every_handler(|node| {
        node.busybox();
        let config = node.pod_config("oom");
        let pod = node.run_pod(&config);
        let mut hog = node.container_config("hog", "exec dd if=/dev/zero of=/dev/null bs=200M count=10");
        let linux = hog.linux.get_or_insert_default();
        linux.resources = Some(LinuxContainerResources {
            memory_limit_in_bytes: 32 << 20,
            memory_swap_limit_in_bytes: 32 << 20,
            ..Default::default()
        });
        let id = node.create(&pod, &hog, &config);
        node.start(&id);
        let status = node.wait_exited(&id);
        assert_eq!((status.exit_code, status.reason.as_str()), (137, "OOMKilled"));
    });
}

#[test]
fn privileged_limits_can_be_changed_while_the_container_runs() {
    on_every_handler(|node| {
        node.busybox();
        let config = node.pod_config("update");
        let pod = node.run_pod(&config);
        let id = node.run_container(&pod, &config, "main", "sleep 1000");
        let resources = LinuxContainerResources {
            memory_limit_in_bytes: 64 << 20,
            cpu_shares: 512,
            cpu_quota: 20_000,
            cpu_period: 100_000,
            ..Default::default()
        };
        let request = UpdateContainerResourcesRequest {
            container_id: id.clone(),
            linux: Some(resources.clone()),
            ..Default::default()
        };
        node.call(node.runtime.clone().update_container_resources(request)).expect("the update");
        let echoed = node.status(&id).resources.and_then(|r| r.linux).expect("resources");
        assert_eq!(echoed.memory_limit_in_bytes, 64 << 20);
        assert_eq!((echoed.cpu_shares, echoed.cpu_quota, echoed.cpu_period), (512, 20_000, 100_000));
    });
}

#[test]
fn privileged_the_log_moves_to_a_new_file_when_reopened() {
    on_every_handler(|node| {
        node.busybox();
        let config = node.pod_config("rotate");
        let pod = node.run_pod(&config);
        let id = node.run_container(
            &pod,
            &config,
            "main",
            "i=0; while :; do i=$((i+1)); echo $i; sleep 0.02; done",
        );
        let path = node.dir.path().join("logs/rotate/main/0.log");
        eventually(|| std::fs::metadata(&path).ok().filter(|m| m.len() > 100));
        let old = path.with_extension("old");
        std::fs::rename(&path, &old).expect("the rename");
        let request = ReopenContainerLogRequest { container_id: id.clone() };
        node.call(node.runtime.clone().reopen_container_log(request.clone())).expect("the reopen");
        assert!(path.exists(), "the new file is there when the call returns");
        let kept = std::fs::read(&old).expect("the old file");
        eventually(|| std::fs::metadata(&path).ok().filter(|m| m.len() > 100));
        assert_eq!(std::fs::read(&old).expect("the old file"), kept, "no byte goes to the old file");
        node.stop_container(&id, 0);
        std::fs::remove_file(&path).expect("the new file");
        node.call(node.runtime.clone().reopen_container_log(request)).expect_err("not running");
        assert!(!path.exists(), "no file is made for a container that does not run");
    });
}

#[test]
fn privileged_events_report_the_life_of_a_pod() {
    let node = Node::new();
    node.busybox();
    let config = node.pod_config("events");
    let mut stream = node
        .call(node.runtime.clone().get_container_events(GetEventsRequest {}))
        .expect("the stream")
        .into_inner();
    let pod = node.run_pod(&config);
    let id = node.run_container(&pod, &config, "main", "true");
    node.wait_exited(&id);
    node.remove_container(&id);
    node.remove_pod(&pod);
    let mut seen = Vec::new();
    while seen.len() < 8 {
        let event = node.call(stream.message()).expect("the stream").expect("an event");
        let who = if event.container_id == pod { "pod" } else { "container" };
        assert!(event.created_at > 0);
        // The kubelet learns from it whose event it is, and drops an event without it.
        let status = event.pod_sandbox_status.clone().expect("the pod's status");
        assert_eq!((status.id.as_str(), &*status.metadata.expect("metadata").uid), (&*pod, "uid-events"));
        if event.container_event_type() == ContainerEventType::ContainerDeletedEvent {
            assert!(event.containers_statuses.is_empty(), "only what is still there is listed");
            assert!(who == "container" || status.state == i32::from(PodSandboxState::SandboxNotready));
        }
        seen.push((who, event.container_event_type()));
    }
    use ContainerEventType::*;
    let of = |wanted: &str| -> Vec<_> {
        seen.iter().filter(|(who, _)| *who == wanted).map(|(_, kind)| *kind).collect()
    };
    let life = [ContainerCreatedEvent, ContainerStartedEvent, ContainerStoppedEvent, ContainerDeletedEvent];
    assert_eq!(of("container"), life);
    assert_eq!(of("pod"), life);
}

#[test]
fn privileged_a_daemon_that_stops_ends_streams_of_events() {
    let mut node = Node::new();
    let mut stream = node
        .call(node.runtime.clone().get_container_events(GetEventsRequest {}))
        .expect("the stream")
        .into_inner();
    node.stop_brigd();
    // In good order: an end and no broken connection, and nothing that the daemon had to wait for.
    assert!(node.call(stream.message()).expect("no error").is_none());
    assert!(!node.log().contains("calls still in progress were left"), "{}", node.log());
    node.restart_brigd();
}

#[test]
fn privileged_stats_count_what_a_container_uses() {
    on_every_handler(|node| {
        node.busybox();
        let config = node.pod_config("stats");
        let pod = node.run_pod(&config);
        let id = node.run_container(
            &pod,
            &config,
            "main",
            "dd if=/dev/zero of=/file bs=1M count=4; while :; do :; done",
        );
        let stats = eventually(|| {
            let request = ContainerStatsRequest { container_id: id.clone() };
            let answer =
                node.call(node.runtime.clone().container_stats(request)).expect("stats").into_inner();
            answer.stats.filter(|stats| {
                let cpu = stats.cpu.as_ref().and_then(|cpu| cpu.usage_core_nano_seconds.as_ref());
                let disk = stats.writable_layer.as_ref().and_then(|layer| layer.used_bytes.as_ref());
                cpu.is_some_and(|cpu| cpu.value > 0) && disk.is_some_and(|disk| disk.value >= 4 << 20)
            })
        });
        assert_eq!(stats.attributes.expect("attributes").id, id);
        assert!(stats.cpu.expect("cpu").timestamp > 0);
        assert!(stats.memory.expect("memory").working_set_bytes.expect("a value").value > 0);
        let request = PodSandboxStatsRequest { pod_sandbox_id: pod.clone() };
        let answer = node.call(node.runtime.clone().pod_sandbox_stats(request)).expect("stats").into_inner();
        let linux = answer.stats.expect("stats").linux.expect("linux");
        assert_eq!(linux.containers.len(), 1);
        let network = linux.network.expect("network").default_interface.expect("an interface");
        assert_eq!(network.name, "eth0");
    });
}

#[test]
fn privileged_containers_of_a_pod_share_what_the_pod_shares() {
    on_every_handler(|node| {
        node.busybox();
        let mut config = node.pod_config("share");
        let options = NamespaceOption { pid: NamespaceMode::Pod as i32, ..Default::default() };
        config.linux.as_mut().expect("linux").security_context.as_mut().expect("context").namespace_options =
            Some(options.clone());
        let pod = node.run_pod(&config);
        let with_pod_pid = |name: &str, command: &str| {
            let mut container = node.container_config(name, command);
            let context =
                container.linux.as_mut().expect("linux").security_context.as_mut().expect("context");
            context.namespace_options = Some(options.clone());
            let id = node.create(&pod, &container, &config);
            node.start(&id);
            id
        };
        let a = with_pod_pid("a", "touch /dev/shm/mark; exec sleep 12345");
        let b = with_pod_pid("b", "sleep 1000");
        eventually(|| {
            let list = node.output(&b, "ps; ls /dev/shm");
            (list.contains("sleep 12345") && list.contains("mark")).then_some(())
        });
        assert_eq!(node.output(&a, "hostname").trim(), "share");
        assert_eq!(node.output(&a, "cat /etc/hostname").trim(), "share");
        let (link_a, link_b) =
            (node.output(&a, "readlink /proc/self/ns/net"), node.output(&b, "readlink /proc/self/ns/net"));
        assert_eq!(link_a, link_b);
        let host = std::fs::read_link("/proc/self/ns/net").expect("our own");
        assert_ne!(link_a.trim(), host.to_string_lossy());
    });
}

#[test]
fn privileged_a_container_sees_its_own_part_of_the_cgroups_and_nothing_above() {
    on_every_handler(|node| {
        node.busybox();
        let config = node.pod_config("cgroups");
        let pod = node.run_pod(&config);
        let mut container = node.container_config("main", "exec sleep 1000");
        let linux = container.linux.get_or_insert_default();
        linux.resources =
            Some(LinuxContainerResources { memory_limit_in_bytes: 64 << 20, ..Default::default() });
        let id = node.create(&pod, &container, &config);
        node.start(&id);
        // proc_pid_mountinfo(5): the fourth field is the directory of the hierarchy that is mounted.
        let roots = "grep ' - cgroup' /proc/self/mountinfo | cut -d' ' -f4 | sort -u";
        assert_eq!(node.output(&id, roots), "/\n");
        let limit = "cd /sys/fs/cgroup; cat memory/memory.limit_in_bytes 2>/dev/null || cat memory.max";
        assert_eq!(node.output(&id, limit), "67108864\n");
        assert_eq!(
            node.output(&id, "find /sys/fs/cgroup -name 'brig*' -o -name '[0-9a-f]*[0-9a-f]' -type d"),
            ""
        );
        assert_eq!(node.output(&id, "cd /sys/fs/cgroup; mkdir memory/mine mine 2>/dev/null; echo $?"), "1\n");
    });
}

#[test]
fn privileged_a_pod_in_the_host_network_has_no_address_of_its_own() {
    on_every_handler(|node| {
        node.busybox();
        let mut config = node.pod_config("hostnet");
        config.hostname.clear();
        let options = NamespaceOption {
            network: NamespaceMode::Node as i32,
            pid: NamespaceMode::Container as i32,
            ..Default::default()
        };
        config.linux.as_mut().expect("linux").security_context.as_mut().expect("context").namespace_options =
            Some(options.clone());
        let pod = node.run_pod(&config);
        assert!(node.pod_status(&pod).network.is_none_or(|network| network.ip.is_empty()));
        let mut container = node.container_config("main", "sleep 1000");
        container
            .linux
            .as_mut()
            .expect("linux")
            .security_context
            .as_mut()
            .expect("context")
            .namespace_options = Some(options.clone());
        let id = node.create(&pod, &container, &config);
        node.start(&id);
        let host = std::fs::read_link("/proc/self/ns/net").expect("our own");
        assert_eq!(node.output(&id, "readlink /proc/self/ns/net").trim(), host.to_string_lossy());
    });
}

#[test]
fn privileged_a_daemon_that_was_killed_finds_everything_again() {
    for handler in handlers() {
        let mut node = Node::with(Options { handler: handler.into(), ..Options::default() });
        node.busybox();
        let config = node.pod_config("phoenix");
        let pod = node.run_pod(&config);
        let flag = node.dir.path().join("flag");
        std::fs::create_dir(&flag).expect("a directory");
        let mut waiting =
            node.container_config("waits", "until [ -e /flag/go ]; do sleep 0.02; done; echo went; exit 5");
        waiting.mounts = vec![Mount {
            container_path: "/flag".into(),
            host_path: flag.display().to_string(),
            ..Default::default()
        }];
        let waits = node.create(&pod, &waiting, &config);
        node.start(&waits);
        let runs = node.run_container(&pod, &config, "runs", "sleep 1000");
        let created = node.create(&pod, &node.container_config("created", "true"), &config);
        let address = node.pod_status(&pod).network.expect("network").ip;
        node.kill_brigd();
        std::fs::write(flag.join("go"), "").expect("the flag");
        // The exit happens while no daemon is there.
        let log = node.dir.path().join("logs/phoenix/waits/0.log");
        eventually(|| std::fs::read_to_string(&log).ok().filter(|text| text.contains("went")));
        node.restart_brigd();
        let status = node.wait_exited(&waits);
        assert_eq!((status.exit_code, status.reason.as_str()), (5, "Error"));
        assert_eq!(node.status(&runs).state(), ContainerState::ContainerRunning);
        assert_eq!(node.status(&created).state(), ContainerState::ContainerCreated);
        let status = node.pod_status(&pod);
        assert_eq!(status.state(), PodSandboxState::SandboxReady);
        assert_eq!(status.network.expect("network").ip, address);
        node.start(&created);
        assert_eq!(node.wait_exited(&created).exit_code, 0);
        assert_eq!(node.output(&runs, "echo alive"), "alive\n");
    }
}

#[test]
fn privileged_a_pod_whose_monitor_was_killed_is_not_ready_and_can_be_removed() {
    on_every_handler(|node| {
        node.busybox();
        let config = node.pod_config("orphan");
        let pod = node.run_pod(&config);
        let id = node.run_container(&pod, &config, "main", "sleep 1000");
        let request = PodSandboxStatusRequest { pod_sandbox_id: pod.clone(), verbose: true };
        let info =
            node.call(node.runtime.clone().pod_sandbox_status(request)).expect("status").into_inner().info;
        let info: serde_json::Value = serde_json::from_str(&info["info"]).expect("JSON");
        let monitor = info["monitorPid"].as_u64().expect("the monitor's pid");
        std::process::Command::new("kill").args(["-9", &monitor.to_string()]).status().expect("kill(1) runs");
        let status = node.wait_exited(&id);
        assert_eq!((status.exit_code, status.reason.as_str()), (255, "Unknown"));
        eventually(|| (node.pod_status(&pod).state() == PodSandboxState::SandboxNotready).then_some(()));
    });
}

/// Ends brigd's connections to monitors, at both ends, as a message would that one of them does not understand.
fn break_connections(node: &Node) {
    use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
    let pid = i32::try_from(node.brigd_pid()).ok().and_then(Pid::from_raw).expect("a pid");
    let brigd = pidfd_open(pid, PidfdFlags::empty()).expect("brigd");
    let monitors = node.run_dir().join("monitors");
    let mut broken = 0;
    for entry in std::fs::read_dir(format!("/proc/{}/fd", node.brigd_pid())).expect("its files").flatten() {
        let number = entry.file_name().to_str().and_then(|name| name.parse().ok()).expect("a number");
        let Ok(file) = pidfd_getfd(&brigd, number, PidfdGetfdFlags::empty()) else { continue };
        let Ok(Some(peer)) = rustix::net::getpeername(&file) else { continue };
        let Ok(peer) = rustix::net::SocketAddrUnix::try_from(peer) else { continue };
        let path = peer.path_bytes().map(|path| String::from_utf8_lossy(path).into_owned());
        if path.is_some_and(|path| std::path::Path::new(&path).starts_with(&monitors)) {
            rustix::net::shutdown(&file, rustix::net::Shutdown::Both).expect("shut down");
            broken += 1;
        }
    }
    assert_eq!(broken, 1);
}

#[test]
fn privileged_a_connection_to_a_monitor_that_breaks_costs_no_container() {
    let mut node = Node::new();
    node.busybox();
    let config = node.pod_config("line");
    let pod = node.run_pod(&config);
    let stays = node.run_container(&pod, &config, "stays", "exec sleep 1000");
    let ends = node.run_container(&pod, &config, "ends", "while [ ! -e /go ]; do sleep 0.01; done; exit 7");
    // The connection of a daemon that has found its monitor again is to a path, by which this test knows it.
    node.kill_brigd();
    node.restart_brigd();
    for round in 0..3 {
        break_connections(&node);
        let mut tries = 0;
        let answer = eventually(|| {
            tries += 1;
            // What was in flight when it broke says so; the next waits for the new connection.
            node.try_exec(&stays, &["echo", "here"], 0).ok()
        });
        assert_eq!(answer.stdout, b"here\n");
        assert!(tries <= 2, "round {round} took {tries}");
    }
    assert_eq!(node.pod_status(&pod).state(), PodSandboxState::SandboxReady);
    node.output(&ends, "touch /go");
    assert_eq!(node.wait_exited(&ends).exit_code, 7);
    assert_eq!(node.status(&stays).state(), ContainerState::ContainerRunning);
    assert!(node.log().contains("the connection to a monitor broke and was made anew"));
}

#[test]
fn privileged_the_run_directory_may_vanish_as_in_a_reboot() {
    let mut node = Node::new();
    node.busybox();
    let config = node.pod_config("reboot");
    let pod = node.run_pod(&config);
    let id = node.run_container(&pod, &config, "main", "touch /file; sleep 1000");
    node.stop_container(&id, 0);
    node.stop_pod(&pod);
    node.kill_brigd();
    std::fs::remove_dir_all(node.run_dir()).expect("the run directory");
    // So do its cgroups, in every hierarchy, and systemd's units.
    if systemd_cgroups() {
        let stop = ["stop", &format!("brig-{pod}.slice")].map(str::to_owned);
        std::process::Command::new("systemctl").args(stop).status().expect("systemctl(1) runs");
    }
    for hierarchy in std::fs::read_dir("/sys/fs/cgroup").expect("cgroups").flatten() {
        let _ = std::fs::remove_dir(hierarchy.path().join("brig").join(&pod));
    }
    let _ = std::fs::remove_dir(std::path::Path::new("/sys/fs/cgroup/brig").join(&pod));
    node.restart_brigd();
    let list = node.call(node.runtime.clone().list_pod_sandbox(ListPodSandboxRequest::default()));
    assert_eq!(list.expect("the list").into_inner().items, []);
    let left = std::fs::read_dir(node.root().join("containers")).expect("the directory").count();
    assert_eq!(left, 0, "the writable layer was taken back");
    assert_ne!(node.run_pod(&config), pod);
}

#[test]
fn privileged_bad_requests_name_the_field_and_change_nothing() {
    let node = Node::new();
    node.busybox();
    let mut config = node.pod_config("bad");
    config.linux.as_mut().expect("linux").sysctls =
        BTreeMap::from([("kernel.shm_rmid_forced".to_owned(), "1\nkernel.core_pattern=x".to_owned())]);
    let error = node.try_run_pod(&config).expect_err("a line feed in a sysctl");
    assert_eq!(error.code(), tonic::Code::InvalidArgument, "{error}");
    assert!(error.message().contains("kernel.shm_rmid_forced"), "{error}");
    let mut config = node.pod_config("bad");
    config.log_directory = "relative/path".into();
    let error = node.try_run_pod(&config).expect_err("a relative path");
    assert_eq!(error.code(), tonic::Code::InvalidArgument, "{error}");
    assert!(error.message().contains("log_directory"), "{error}");
    let config = node.pod_config("bad");
    let pod = node.run_pod(&config);
    let mut container = node.container_config("main", "true");
    container.log_path = "../escape".into();
    let error = node.try_create(&pod, &container, &config).expect_err("an escaping log path");
    assert_eq!(error.code(), tonic::Code::InvalidArgument, "{error}");
    let mut container = node.container_config("main", "true");
    container.mounts = vec![Mount {
        container_path: "/data".into(),
        host_path: "/no/such/path".into(),
        ..Default::default()
    }];
    let error = node.try_create(&pod, &container, &config).expect_err("a missing host path");
    assert!(error.message().contains("/no/such/path"), "{error}");
    let request = ContainerStatusRequest { container_id: "0".repeat(64), verbose: false };
    let error = node.call(node.runtime.clone().container_status(request)).expect_err("unknown");
    assert_eq!(error.code(), tonic::Code::NotFound);
    let list = node.call(node.runtime.clone().list_containers(ListContainersRequest::default()));
    assert_eq!(list.expect("the list").into_inner().containers, []);
}
