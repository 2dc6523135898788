//! The OCI runtimes, through their command line: ours, and runc where it is installed, by the same tests.
//!
//! Goal: what the runtime specification promises holds for every runtime, and a hostile rootfs changes nothing on the
//! host. Method: a [`Bundle`] made from the static busybox, a shell script as the container's program, and exact
//! comparison of what it prints.

mod exec;
mod hostile;
mod lifecycle;
mod limits;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::{Value, json};

use crate::fixture::node::systemd_cgroups;

/// A runtime binary under test.
#[derive(Debug, Clone)]
struct Runtime {
    path: PathBuf,
}

/// Ours always, runc where it is installed.
fn runtimes() -> Vec<Runtime> {
    let mut all = vec![ours()];
    let path = std::env::var_os("PATH").unwrap_or_default();
    if let Some(path) = std::env::split_paths(&path).map(|dir| dir.join("runc")).find(|path| path.exists()) {
        all.push(Runtime { path });
    }
    all
}

fn ours() -> Runtime {
    // The Makefile names the installed form, built small and static; cargo alone uses its own.
    let path = std::env::var_os("BRIG_TEST_BIN_DIR").map_or_else(
        || env!("CARGO_BIN_EXE_brig-sandbox").into(),
        |dir| PathBuf::from(dir).join("brig-sandbox"),
    );
    Runtime { path }
}

/// A bundle with a busybox rootfs and a state root of its own; containers in it are deleted with it.
struct Bundle {
    dir: tempfile::TempDir,
    runtime: Runtime,
    id: String,
    config: Value,
}

impl Bundle {
    fn new(runtime: &Runtime) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let dir = tempfile::tempdir().unwrap();
        let rootfs = dir.path().join("rootfs");
        for name in ["bin", "proc", "sys", "dev", "etc", "tmp"] {
            fs::create_dir_all(rootfs.join(name)).unwrap();
        }
        fs::copy("/bin/busybox", rootfs.join("bin/busybox")).unwrap();
        for applet in
            ["sh", "cat", "echo", "id", "grep", "sleep", "ls", "stat", "pwd", "hostname", "true", "mknod"]
        {
            symlink("busybox", rootfs.join("bin").join(applet)).unwrap();
        }
        let id = format!("brigtest-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let mut bundle = Self { dir, runtime: runtime.clone(), id, config: base_config() };
        let path = if systemd_cgroups() { "brigtest.slice:brigtest:" } else { "/brigtest/" };
        bundle.config["linux"]["cgroupsPath"] = json!(format!("{path}{}", bundle.id));
        bundle
    }

    /// The container runs this shell script.
    fn script(mut self, script: &str) -> Self {
        self.config["process"]["args"] = json!(["/bin/sh", "-c", script]);
        self
    }

    fn with(mut self, change: impl FnOnce(&mut Value)) -> Self {
        change(&mut self.config);
        self
    }

    fn rootfs(&self) -> PathBuf {
        self.dir.path().join("rootfs")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, verb: &str) -> Command {
        let mut command = Command::new(&self.runtime.path);
        command.arg("--root").arg(self.path("state"));
        if systemd_cgroups() {
            command.arg("--systemd-cgroup");
        }
        command.arg(verb).stdin(Stdio::null());
        command
    }

    /// A verb with the id as its last argument.
    fn verb(&self, verb: &str, args: &[&str]) -> Output {
        self.command(verb).args(args).arg(&self.id).output().unwrap()
    }

    fn write_config(&self) {
        fs::write(self.path("config.json"), self.config.to_string()).unwrap();
    }

    /// Runs to the end in the foreground.
    fn run(&self) -> Output {
        self.write_config();
        self.command("run").arg("--bundle").arg(self.dir.path()).arg(&self.id).output().unwrap()
    }

    /// Runs to the end; what it printed, or everything it said on failure.
    fn stdout(&self) -> String {
        let output = self.run();
        assert!(output.status.success(), "{:?}: {}", self.runtime.path, text(&output.stderr));
        text(&output.stdout)
    }

    /// Creates with output into the file `out`, because the container outlives the verb.
    fn create(&self) -> Output {
        self.write_config();
        let out = fs::File::create(self.path("out")).unwrap();
        // Apart: runc warns about devices that systemd does not know.
        let errors = fs::File::create(self.path("errors")).unwrap();
        let status = self
            .command("create")
            .arg("--bundle")
            .arg(self.dir.path())
            .arg("--pid-file")
            .arg(self.path("pid"))
            .arg(&self.id)
            .stdout(out)
            .stderr(errors)
            .status()
            .unwrap();
        Output { status, stdout: Vec::new(), stderr: fs::read(self.path("errors")).unwrap() }
    }

    fn create_and_start(&self) {
        let output = self.create();
        assert!(output.status.success(), "{}", text(&output.stderr));
        let output = self.verb("start", &[]);
        assert!(output.status.success(), "{}", text(&output.stderr));
    }

    fn state(&self) -> Value {
        let output = self.verb("state", &[]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        let _ = self.command("delete").arg("--force").arg(&self.id).output();
        for entry in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            let _ = fs::remove_dir(entry.path().join("brigtest"));
        }
        let _ = fs::remove_dir("/sys/fs/cgroup/brigtest");
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// No cgroup of that container is left in any hierarchy.
fn has_cgroup(id: &str) -> bool {
    let relative = if systemd_cgroups() {
        PathBuf::from(format!("brigtest.slice/brigtest-{id}.scope"))
    } else {
        Path::new("brigtest").join(id)
    };
    let roots = fs::read_dir("/sys/fs/cgroup").unwrap().flatten().map(|entry| entry.path());
    roots.chain([PathBuf::from("/sys/fs/cgroup")]).any(|root| root.join(&relative).exists())
}

fn base_config() -> Value {
    let caps = ["CAP_CHOWN", "CAP_KILL", "CAP_SETUID", "CAP_SETGID", "CAP_MKNOD"];
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": ["/bin/true"],
            "env": ["PATH=/bin"],
            "cwd": "/",
            "capabilities": {"bounding": caps, "effective": caps, "permitted": caps},
            "noNewPrivileges": true,
        },
        "root": {"path": "rootfs"},
        "hostname": "inside",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
             "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
        ],
        "linux": {
            "namespaces": [
                {"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"},
            ],
            "maskedPaths": ["/proc/kcore", "/proc/acpi", "/proc/keys"],
            "readonlyPaths": ["/proc/sys"],
        },
    })
}
