//! The escape corpus: what a hostile image or pod can try, tried for real, with a look at the host afterwards.
//!
//! `attacks.rs` has one attack for every published way out of a running container that concerns us, `hardened.rs` what a
//! hardened handler refuses and gives, `table.rs` counts what is within reach and prints it all (`make isolation`). The
//! attacker's program is `tests/escape/probe.rs`, compiled here into a static binary.

mod attacks;
mod hardened;
mod table;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use brig::proto::v1::*;

use crate::fixture::image::{Entry, ImageBuilder};
use crate::fixture::node::{Node, Options, put_image};

/// The handlers of ours, on which every attack must fail.
const OURS: [&str; 2] = ["brig", "brig-hardened"];

/// What no container may see or change.
const SECRET: &str = "only-the-host-knows-this";

/// A node with one handler, a canary on the host, and a folder that pods may mount.
struct Arena {
    node: Node,
    scratch: tempfile::TempDir,
    /// The OCI runtime's binary, which an attack may try to overwrite.
    runtime: PathBuf,
}

/// How a container's life went.
enum Ran {
    Refused(String),
    Exited { code: i32, out: String },
}

impl Ran {
    /// Its output, if there was any.
    fn out(&self) -> &str {
        match self {
            Self::Refused(_) => "",
            Self::Exited { out, .. } => out,
        }
    }

    /// Fails if the container ran, successfully at that.
    fn must_not_succeed(&self, what: &str) -> Result<(), String> {
        match self {
            Self::Exited { code: 0, out } => Err(format!("{what} succeeded: {out}")),
            _ => Ok(()),
        }
    }
}

/// Where `name` is installed.
fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file())
}

impl Arena {
    fn new(handler: &str) -> Self {
        let scratch = tempfile::Builder::new().prefix("brig-escape-").tempdir().expect("a scratch directory");
        let path = scratch.path().display();
        for folder in ["canary", "volumes"] {
            std::fs::create_dir(scratch.path().join(folder)).expect("a folder");
        }
        std::fs::write(scratch.path().join("canary/file"), SECRET).expect("the canary");
        let mut config = format!("[handlers.brig-hardened]\nhost_paths = [\"{path}/volumes\"]\n");
        let mut runtime = std::env::var_os("BRIG_TEST_BIN_DIR").map_or_else(
            || PathBuf::from(env!("CARGO_BIN_EXE_brig-sandbox")),
            |dir| Path::new(&dir).join("brig-sandbox"),
        );
        if !OURS.contains(&handler) {
            // A copy, because it is to be attacked.
            runtime = scratch.path().join(handler);
            std::fs::copy(on_path(handler).expect("the runtime is installed"), &runtime).expect("a copy");
            config += &format!("[handlers.{handler}]\npath = \"{}\"\n", runtime.display());
        }
        if handler == "runsc" {
            config += "options = [\"--platform=ptrace\", \"--network=host\", \"--oci-seccomp\"]\nsystemd_cgroup = false\n";
        }
        let node = Node::with(Options { handler: handler.to_owned(), config });
        let arena = Self { node, scratch, runtime };
        arena.image("probe", |image| image);
        arena
    }

    fn canary(&self) -> PathBuf {
        self.scratch.path().join("canary")
    }

    /// Puts the canary back, so that one attack that succeeds is not counted for the next.
    fn restore(&self) {
        std::fs::remove_dir_all(self.canary()).ok();
        std::fs::create_dir(self.canary()).expect("a folder");
        std::fs::write(self.canary().join("file"), SECRET).expect("the canary");
    }

    fn volume(&self, name: &str) -> PathBuf {
        let path = self.scratch.path().join("volumes").join(name);
        std::fs::create_dir_all(&path).expect("a folder");
        path
    }

    /// Nothing was added to or changed in the canary.
    fn untouched(&self) -> Result<(), String> {
        let names: Vec<_> = std::fs::read_dir(self.canary())
            .expect("the canary")
            .map(|entry| entry.expect("an entry").file_name())
            .collect();
        let text = std::fs::read_to_string(self.canary().join("file")).unwrap_or_default();
        if names == ["file"] && text == SECRET {
            Ok(())
        } else {
            Err(format!("the canary has {names:?}, {text:?}"))
        }
    }

    /// The busybox image with the probe in it, changed by `edit`, pulled; its name.
    fn image(&self, name: &str, edit: impl FnOnce(ImageBuilder) -> ImageBuilder) -> String {
        let builder = ImageBuilder::busybox().layer(&[Entry::file("bin/probe", probe().to_vec(), 0o755)]);
        let name =
            put_image(&self.node.registry, &format!("escape/{name}"), "latest", &edit(builder).build());
        let image = Some(ImageSpec { image: name.clone(), ..Default::default() });
        let request = PullImageRequest { image, ..Default::default() };
        self.node.call(self.node.images.clone().pull_image(request)).expect("the pull");
        name
    }

    fn plain_image(&self) -> String {
        format!("{}/escape/probe:latest", self.node.registry.host())
    }

    /// The configuration of a container that runs `command` with the shell.
    fn container(&self, image: &str, command: &str) -> ContainerConfig {
        let mut config = self.node.container_config("attack", command);
        config.image = Some(ImageSpec { image: image.to_owned(), ..Default::default() });
        config
    }

    /// Runs a pod with one container to its end and takes both away.
    fn run(&self, name: &str, config: ContainerConfig) -> Ran {
        let pod_config = self.node.pod_config(name);
        let pod = match self.node.try_run_pod(&pod_config) {
            Ok(pod) => pod,
            Err(status) => return Ran::Refused(status.message().to_owned()),
        };
        let ran = self.run_in(&pod, &pod_config, name, config);
        self.node.remove_pod(&pod);
        ran
    }

    fn run_in(&self, pod: &str, pod_config: &PodSandboxConfig, name: &str, config: ContainerConfig) -> Ran {
        let id = match self.node.try_create(pod, &config, pod_config) {
            Ok(id) => id,
            Err(status) => {
                // For the reader of a failure, and of `--nocapture`: a refusal may be for the wrong reason.
                eprintln!("{name}: {}", status.message());
                return Ran::Refused(status.message().to_owned());
            }
        };
        if let Err(status) = self.node.try_start(&id) {
            self.node.remove_container(&id);
            return Ran::Refused(status.message().to_owned());
        }
        let code = self.node.wait_exited(&id).exit_code;
        let container = config.metadata.map(|metadata| metadata.name).unwrap_or_default();
        let text = std::fs::read_to_string(
            self.node.dir.path().join("logs").join(name).join(container).join("0.log"),
        );
        self.node.remove_container(&id);
        let line = |line: &str| line.splitn(4, ' ').nth(3).unwrap_or("").to_owned();
        let out = text.unwrap_or_default().lines().map(line).collect::<Vec<_>>().join("\n");
        Ran::Exited { code, out }
    }
}

/// For a second container of a pod.
fn rename(config: &mut ContainerConfig, name: &str) {
    config.metadata = Some(ContainerMetadata { name: name.to_owned(), attempt: 0 });
    config.log_path = format!("{name}/0.log");
}

fn security(config: &mut ContainerConfig) -> &mut LinuxContainerSecurityContext {
    config.linux.get_or_insert_default().security_context.get_or_insert_default()
}

/// The attacker's program, compiled once per test run.
fn probe() -> &'static [u8] {
    static PROBE: OnceLock<Vec<u8>> = OnceLock::new();
    PROBE.get_or_init(|| std::fs::read(probe_path()).expect("the probe was compiled"))
}

fn probe_path() -> PathBuf {
    // The machines of tests/vm have no compiler, and bring it.
    if let Some(made) = std::env::var_os("BRIG_TEST_PROBE") {
        return made.into();
    }
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let (made, own) = (folder.join("probe"), folder.join(format!("probe-{}", std::process::id())));
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/escape/probe.rs");
    let modified = |path: &Path| path.metadata().and_then(|meta| meta.modified()).ok();
    if modified(&made) <= modified(&source) {
        let compiled = Command::new("rustc")
            .args(["--edition", "2024", "-O", "-C", "target-feature=+crt-static", "-C", "panic=abort", "-o"])
            .args([&own, &source])
            .status();
        assert!(compiled.expect("rustc runs").success(), "the probe does not compile");
        // Tests in other processes do the same at the same time; the last one's is as good.
        std::fs::rename(&own, &made).expect("the probe gets its name");
    }
    made
}
