//! exec: further processes.

use super::*;

#[test]
fn privileged_an_exec_has_its_own_user_directory_and_environment() {
    for runtime in runtimes() {
        let bundle = Bundle::new(&runtime).script("exec sleep 1000");
        bundle.create_and_start();
        let output = bundle
            .command("exec")
            .args(["--user", "1000:1001", "--cwd", "/tmp", "--env", "A=b"])
            .arg(&bundle.id)
            .args(["/bin/sh", "-c", "id -u; id -g; pwd; echo $A; grep CapInh /proc/self/status; exit 9"])
            .output()
            .unwrap();
        assert_eq!(text(&output.stdout), "1000\n1001\n/tmp\nb\nCapInh:\t0000000000000000\n", "{runtime:?}");
        assert_eq!(output.status.code(), Some(9), "{runtime:?}");
    }
}

#[test]
fn privileged_a_user_that_is_no_plain_number_is_refused() {
    let bundle = Bundle::new(&ours()).script("exec sleep 1000");
    bundle.create_and_start();
    for user in ["01", "+1", "1:", "root"] {
        let output =
            bundle.command("exec").args(["--user", user]).arg(&bundle.id).arg("id").output().unwrap();
        assert!(text(&output.stderr).contains("--user"), "{user}: {}", text(&output.stderr));
    }
}

#[test]
fn privileged_no_descriptor_is_a_way_out_by_the_working_directory() {
    let bundle = Bundle::new(&ours()).script("exec sleep 1000");
    bundle.create_and_start();
    for number in 3..32 {
        let cwd = format!("/proc/self/fd/{number}");
        let output =
            bundle.command("exec").args(["--cwd", &cwd]).arg(&bundle.id).arg("pwd").output().unwrap();
        assert!(!output.status.success(), "{cwd}: {}", text(&output.stdout));
        let create = Bundle::new(&ours()).script("pwd").with(|config| config["process"]["cwd"] = json!(cwd));
        assert!(!create.run().status.success(), "{cwd}");
    }
}

#[test]
fn privileged_nothing_of_the_host_is_open_in_the_container() {
    for runtime in runtimes() {
        let bundle = Bundle::new(&runtime).script("ls /proc/self/fd");
        // ls itself holds the directory open.
        assert_eq!(bundle.stdout(), "0\n1\n2\n3\n", "{runtime:?}");
    }
}
