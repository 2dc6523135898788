//! create, start, state, kill, delete.

use super::*;

#[test]
fn privileged_a_container_goes_from_created_to_running_to_nothing() {
    for runtime in runtimes() {
        let bundle = Bundle::new(&runtime).script("echo started; exec sleep 1000");
        assert!(bundle.create().status.success());
        let state = bundle.state();
        assert_eq!((&state["status"], &state["id"]), (&json!("created"), &json!(bundle.id)), "{runtime:?}");
        assert_eq!(fs::read_to_string(bundle.path("pid")).unwrap(), state["pid"].to_string());
        assert_eq!(fs::read(bundle.path("out")).unwrap(), b"", "{runtime:?} ran before start");
        assert!(bundle.verb("start", &[]).status.success());
        assert_eq!(bundle.state()["status"], "running");
        let refused = bundle.verb("delete", &[]);
        assert!(!refused.status.success(), "{runtime:?} deleted a running container");
        assert!(bundle.verb("delete", &["--force"]).status.success());
        assert!(!bundle.verb("state", &[]).status.success());
        assert!(!has_cgroup(&bundle.id), "{runtime:?} left a cgroup");
        assert_eq!(fs::read_dir(bundle.path("state")).unwrap().count(), 0, "{runtime:?} left state");
    }
}

#[test]
fn privileged_the_exit_code_is_passed_on() {
    for runtime in runtimes() {
        assert_eq!(Bundle::new(&runtime).script("exit 7").run().status.code(), Some(7), "{runtime:?}");
    }
}

#[test]
fn privileged_what_cannot_be_executed_is_told_at_create() {
    for runtime in runtimes() {
        for (program, part) in
            [("nosuch", "executable file not found in $PATH"), ("/nosuch", "no such file or directory")]
        {
            let bundle = Bundle::new(&runtime).with(|config| config["process"]["args"] = json!([program]));
            let output = bundle.create();
            assert!(!output.status.success(), "{runtime:?}");
            assert!(text(&output.stderr).contains(part), "{runtime:?}: {}", text(&output.stderr));
            assert!(!has_cgroup(&bundle.id), "{runtime:?} left a cgroup");
        }
    }
}

#[test]
fn privileged_a_second_container_of_one_id_is_refused() {
    for runtime in runtimes() {
        let bundle = Bundle::new(&runtime).script("exec sleep 1000");
        assert!(bundle.create().status.success());
        assert!(!bundle.create().status.success(), "{runtime:?}");
        assert_eq!(bundle.state()["status"], "created", "{runtime:?}");
    }
}

#[test]
fn privileged_a_missing_container_is_said_not_to_exist() {
    for runtime in runtimes() {
        let bundle = Bundle::new(&runtime);
        for verb in ["state", "start", "delete", "kill"] {
            let output = bundle.verb(verb, &[]);
            assert_eq!(output.status.code(), Some(1), "{runtime:?} {verb}");
            assert!(
                text(&output.stderr).contains("does not exist"),
                "{runtime:?} {verb}: {}",
                text(&output.stderr)
            );
        }
        assert!(bundle.verb("delete", &["--force"]).status.success(), "{runtime:?}");
    }
}

#[test]
fn privileged_pause_holds_and_resume_lets_go() {
    let bundle = Bundle::new(&ours()).script("exec sleep 1000");
    bundle.create_and_start();
    assert!(bundle.verb("pause", &[]).status.success());
    assert_eq!(bundle.state()["status"], "paused");
    assert!(bundle.verb("resume", &[]).status.success());
    assert_eq!(bundle.state()["status"], "running");
    assert!(!bundle.verb("resume", &[]).status.success());
}

#[test]
fn privileged_hooks_run_in_order_with_the_state_on_stdin() {
    for runtime in runtimes() {
        let mut bundle = Bundle::new(&runtime).script("exit 0");
        let log = bundle.path("hooks");
        let hook = |name: &str| {
            let script = format!("echo {name} $(grep -o '\"id\":\"[^\"]*\"') >> {}", log.display());
            json!([{"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/bin:/usr/bin"]}])
        };
        bundle.config["hooks"] = json!({
            "prestart": hook("prestart"), "createRuntime": hook("createRuntime"),
            "poststart": hook("poststart"), "poststop": hook("poststop"),
        });
        assert!(bundle.run().status.success(), "{runtime:?}");
        let id = format!("\"id\":\"{}\"", bundle.id);
        let expected: String =
            ["prestart", "createRuntime", "poststart", "poststop"].map(|n| format!("{n} {id}\n")).concat();
        assert_eq!(fs::read_to_string(log).unwrap(), expected, "{runtime:?}");
    }
}

#[test]
fn privileged_a_failing_hook_undoes_the_create() {
    let bundle = Bundle::new(&ours()).with(|config| {
        config["hooks"] =
            json!({"createRuntime": [{"path": "/bin/sh", "args": ["sh", "-c", "echo no >&2; exit 3"]}]});
    });
    let output = bundle.create();
    let said = text(&output.stderr);
    assert!(said.contains("ended with exit status 3, stderr: no"), "{said}");
    assert!(!has_cgroup(&bundle.id));
    assert!(!bundle.verb("state", &[]).status.success());
}
