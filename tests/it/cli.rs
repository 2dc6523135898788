//! The operator's command line as an operator meets it: the binary `brig` against a daemon of its own.

use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::fixture::node::Node;

/// `brig` with nothing of this machine's settings.
fn brig() -> Command {
    let binary = std::env::var_os("BRIG_TEST_BIN_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_brig")), |dir| PathBuf::from(dir).join("brig"));
    let mut command = Command::new(binary);
    for name in ["ADDRESS", "TLS_CA", "TLS_CERT", "TLS_KEY", "TLS_SERVER_NAME"] {
        command.env_remove(format!("BRIG_{name}"));
    }
    command.stdin(Stdio::null());
    command
}

/// `brig` that talks to the node's daemon and keeps logs in its directory.
pub(crate) fn brig_on(node: &Node) -> Command {
    let mut command = brig();
    command
        .env("BRIG_ADDRESS", format!("unix://{}", node.run_dir().join("brig.sock").display()))
        .env("BRIG_LOG_DIR", node.dir.path().join("logs"));
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Exit code, stdout and stderr.
fn outcome(output: &Output) -> (Option<i32>, String, String) {
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

/// Runs a command that must succeed, and returns its stdout.
fn ok(node: &Node, args: &[&str]) -> String {
    let output = brig_on(node).args(args).output().expect("brig starts");
    assert!(output.status.success(), "brig {args:?}: {:?}", outcome(&output));
    text(&output.stdout)
}

fn json(node: &Node, args: &[&str]) -> Value {
    serde_json::from_str(&ok(node, &[&["--output", "json"], args].concat())).expect("JSON")
}

#[test]
fn without_a_daemon_the_error_says_so_in_one_line_with_a_remedy() {
    let output = brig().args(["--address", "unix:///nowhere/brig.sock", "ps"]).output().expect("brig starts");
    let message = "brig: cannot reach brigd at unix:///nowhere/brig.sock: there is no such socket; is brigd running? \
                   try `systemctl status brig`, or set BRIG_ADDRESS\n";
    assert_eq!(outcome(&output), (Some(125), String::new(), message.to_owned()));
    let output = brig().args(["--address", "tcp://1.2.3.4:5", "ps"]).output().expect("brig starts");
    assert_eq!(output.status.code(), Some(125));
    assert!(
        text(&output.stderr).contains("must be unix:// and an absolute path"),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let mut child = brig()
        .args(["completions", "bash"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("brig starts");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("brig ends");
    assert_eq!(outcome(&output), (Some(0), String::new(), String::new()));
}

#[test]
fn a_bad_configuration_is_refused_with_its_place() {
    let dir = tempfile::tempdir().expect("a scratch directory");
    let file = dir.path().join("config.toml");
    std::fs::write(&file, "[server]\nrot = \"/x\"\n").expect("a file");
    let output = brig().arg("config").arg("--file").arg(&file).output().expect("brig starts");
    let message =
        format!("brig: {}:2: unknown key rot in [server]; the nearest known one is root\n", file.display());
    assert_eq!(outcome(&output), (Some(125), String::new(), message));
}

#[test]
fn privileged_check_tries_every_feature_and_leaves_nothing() {
    // In namespaces of its own, where no other test makes mounts and links at the same time.
    let scratch = tempfile::tempdir().expect("a scratch directory");
    let look = "cat /proc/self/mounts; cut -d: -f1 /proc/self/net/dev";
    let script = format!("({look}) > before; \"$0\" \"$@\"; code=$?; ({look}) > after; exit $code");
    let output = Command::new("unshare")
        .args(["--net", "--mount", "--propagation", "private", "sh", "-c", &script])
        .arg(brig().get_program())
        .args(["--output", "json", "--address", "unix:///nowhere/brig.sock", "check"])
        .current_dir(scratch.path())
        .env_remove("BRIG_ADDRESS")
        .output()
        .expect("unshare(1) starts");
    let findings: Vec<Value> = serde_json::from_slice(&output.stdout).expect("JSON");
    for probe in
        ["namespaces", "mount-api", "overlayfs", "openat2", "pidfd", "seccomp", "bridge", "veth", "nftables"]
    {
        let finding = findings.iter().find(|finding| finding["check"] == probe);
        assert_eq!(
            finding.map(|finding| &finding["result"]),
            Some(&Value::from("ok")),
            "{probe}: {finding:?}"
        );
    }
    let failed = findings.iter().any(|finding| finding["result"] == "fail");
    assert_eq!(output.status.code(), Some(i32::from(failed)));
    let seen = |name: &str| std::fs::read_to_string(scratch.path().join(name)).expect("the tables");
    assert_eq!(seen("after"), seen("before"));
}

#[test]
fn privileged_run_follows_the_log_and_passes_the_exit_code_on() {
    let node = Node::new();
    let image = node.busybox();
    let output = brig_on(&node)
        .args(["run", "--rm", "--name", "hello", "--env", "WORD=there", &image])
        .args(["sh", "-c", "echo hello $WORD; echo oops >&2; exit 7"])
        .output()
        .expect("brig starts");
    assert_eq!(outcome(&output), (Some(7), "hello there\n".to_owned(), "oops\n".to_owned()));
    assert_eq!(json(&node, &["pods"]), Value::Array(Vec::new()));
    let logs = std::fs::read_dir(node.dir.path().join("logs")).map(Iterator::count).unwrap_or(0);
    assert_eq!(logs, 0, "--rm removes the log with the pod");
}

#[test]
fn privileged_a_signal_to_run_stops_the_container() {
    let node = Node::new();
    let image = node.busybox();
    let script = "trap 'echo bye; exit 3' TERM; echo up; while :; do sleep 0.05; done";
    let mut child = brig_on(&node)
        .args(["run", "--rm", &image, "sh", "-c", script])
        .stdout(Stdio::piped())
        .spawn()
        .expect("brig starts");
    let mut stdout = BufReader::new(child.stdout.take().expect("a pipe"));
    let mut line = String::new();
    stdout.read_line(&mut line).expect("the first line");
    assert_eq!(line, "up\n");
    let pid = Pid::from_child(&child);
    kill_process(pid, Signal::INT).expect("the signal");
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).expect("the rest");
    assert_eq!((rest.as_str(), child.wait().expect("brig ends").code()), ("bye\n", Some(3)));
}

#[test]
fn privileged_a_detached_pod_is_listed_looked_into_stopped_and_removed_by_name() {
    let node = Node::new();
    let image = node.busybox();
    let id =
        ok(&node, &["run", "-d", "--name", "web", &image, "sh", "-c", "echo 1; echo 2; echo 3; sleep 1000"]);
    let id = id.trim();
    let listed = json(&node, &["ps"]);
    assert_eq!(
        (&listed[0]["id"], &listed[0]["name"], &listed[0]["state"]),
        (&id.into(), &"web".into(), &"running".into())
    );
    assert_eq!(json(&node, &["pods"])[0]["state"], "ready");
    let document = json(&node, &["inspect", "web"]);
    assert_eq!((&document["kind"], &document["containers"][0]["id"]), (&"pod".into(), &id.into()));
    assert!(document["ips"][0].is_string(), "{document}");
    let document = json(&node, &["inspect", &id[..12]]);
    assert_eq!((&document["kind"], &document["state"]), (&"container".into(), &"running".into()));
    let output =
        brig_on(&node).args(["exec", "web", "sh", "-c", "echo in; exit 5"]).output().expect("brig starts");
    assert_eq!(outcome(&output), (Some(5), "in\n".to_owned(), String::new()));
    assert_eq!(json(&node, &["stats", "web"])[0]["id"], id);
    crate::fixture::node::eventually(|| {
        (ok(&node, &["logs", "--tail", "2", "web"]) == "2\n3\n").then_some(())
    });
    let output = brig_on(&node).args(["rm", "web"]).output().expect("brig starts");
    assert_eq!(output.status.code(), Some(125), "what runs is not removed without --force");
    assert_eq!(ok(&node, &["stop", "--time", "0", "web"]), "web\n");
    assert_eq!(json(&node, &["ps"]), Value::Array(Vec::new()));
    assert_eq!(json(&node, &["ps", "--all"])[0]["state"], "exited");
    assert_eq!(ok(&node, &["logs", "--follow", "web"]), "1\n2\n3\n", "a log of the past ends");
    assert_eq!(ok(&node, &["rm", "web"]), "web\n");
    assert_eq!(json(&node, &["ps", "--all"]), Value::Array(Vec::new()));
}

#[test]
fn privileged_images_are_pulled_listed_and_removed() {
    let node = Node::new();
    let name = node.image.clone();
    let id = ok(&node, &["pull", &name]);
    assert!(id.starts_with("sha256:"), "{id}");
    let listed = json(&node, &["images"]);
    assert_eq!((&listed[0]["id"], &listed[0]["name"]), (&id.trim().into(), &name.as_str().into()));
    assert_eq!(json(&node, &["inspect", &name])["kind"], "image");
    assert_eq!(ok(&node, &["rmi", &name]), format!("{name}\n"));
    assert_eq!(json(&node, &["images"]), Value::Array(Vec::new()));
    let output = brig_on(&node).args(["rmi", &name]).output().expect("brig starts");
    let message = format!("brig: no image is called {name:?}; `brig images` lists them\n");
    assert_eq!(outcome(&output), (Some(125), String::new(), message));
}

#[test]
fn privileged_status_says_ready_and_config_says_what_the_daemon_runs_with() {
    let node = Node::new();
    let status = json(&node, &["status"]);
    assert_eq!(status["name"], "brig");
    assert!(
        status["conditions"].as_array().is_some_and(|all| all.iter().all(|one| one["status"] == true)),
        "{status}"
    );
    let config = ok(&node, &["config", "--running"]);
    assert!(config.contains(&format!("\nbridge = \"{}\"\n", node.bridge)), "{config}");
    assert!(json(&node, &["version"])["server"]["version"].is_string());
}
