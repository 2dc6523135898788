//! Our own conformance tests: what the official suite, critest, demands, so that it is held where critest is not installed.
//!
//! [`SPECS`] in `specs.rs` has every spec of critest 1.36 by its name and says where it is checked: here, in another test
//! (which is not written again), or why not. A test of its own keeps that table honest. Here each spec is one function
//! under its name in the list `CHECKS` of its file; those of a list share a node, and those that can share a pod.

mod container;
mod image;
mod network;
mod pod;
mod security;
mod specs;

use std::cell::Cell;
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};

use brig::proto::v1::*;
use specs::{SPECS, Where};

use crate::fixture::image::{Entry, ImageBuilder};
use crate::fixture::node::{Node, Options, eventually, handlers, put_image};

/// A spec by the name that critest has for it, and its check.
type Check = (&'static str, fn(&Suite));

/// A node with its images, and names that are used once.
struct Suite {
    node: Node,
    used: Cell<u32>,
}

/// A pod and the configuration that its containers are created with.
struct Pod {
    id: String,
    config: PodSandboxConfig,
}

/// Does the checks of a list one after the other with each handler, and names all that fail.
fn run(checks: &[Check]) {
    let mut failed = Vec::new();
    for handler in handlers() {
        let suite = Suite::new(handler);
        for (spec, check) in checks {
            eprintln!("--- {handler}: {spec}");
            if catch_unwind(AssertUnwindSafe(|| check(&suite))).is_err() {
                failed.push(format!("{handler}: {spec}"));
            }
        }
    }
    assert_eq!(failed, Vec::<String>::new());
}

#[test]
fn every_spec_of_critest_is_checked_somewhere_or_has_a_reason() {
    let lists = [container::CHECKS, image::CHECKS, network::CHECKS, pod::CHECKS, security::CHECKS];
    let checks: Vec<_> = lists.concat().iter().map(|(spec, _)| *spec).collect();
    let here: BTreeSet<_> = checks.iter().copied().collect();
    assert_eq!(here.len(), checks.len(), "a spec is checked twice");
    let said: BTreeSet<_> =
        SPECS.iter().filter(|(_, place)| matches!(place, Where::Here)).map(|(spec, _)| *spec).collect();
    assert_eq!(said, here);
    for (spec, place) in SPECS {
        match place {
            Where::Here => {}
            Where::Test(file, test) => {
                let path = format!("{}/tests/it/{file}.rs", env!("CARGO_MANIFEST_DIR"));
                let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
                assert!(text.contains(&format!("fn {test}()")), "{spec}: no test {test} in {path}");
            }
            Where::Nowhere(reason) => assert!(!reason.is_empty(), "{spec}"),
        }
    }
    let names: BTreeSet<_> = SPECS.iter().map(|(spec, _)| *spec).collect();
    assert_eq!((names.len(), SPECS.len()), (137, 137), "critest has 137 specs where SELinux is off");
}

impl Suite {
    fn new(handler: &str) -> Self {
        let node = Node::with(Options { handler: handler.into(), ..Options::default() });
        node.busybox();
        Self { node, used: Cell::new(0) }
    }

    /// A name that no other check has.
    fn name(&self, what: &str) -> String {
        self.used.set(self.used.get() + 1);
        format!("{what}-{}", self.used.get())
    }

    fn pod(&self) -> Pod {
        self.pod_with(|_| {})
    }

    /// A pod as `change` makes of the usual one, which has a PID namespace for each container.
    fn pod_with(&self, change: impl FnOnce(&mut PodSandboxConfig)) -> Pod {
        let mut config = self.node.pod_config(&self.name("pod"));
        change(&mut config);
        Pod { id: self.node.run_pod(&config), config }
    }

    /// A pod with these namespaces.
    fn pod_in(&self, options: &NamespaceOption) -> Pod {
        self.pod_with(|config| {
            if options.network() == NamespaceMode::Node {
                config.hostname.clear();
            }
            let linux = config.linux.as_mut().expect("linux");
            linux.security_context.as_mut().expect("a context").namespace_options = Some(options.clone());
        })
    }

    fn privileged_pod(&self) -> Pod {
        self.pod_with(|config| {
            let linux = config.linux.as_mut().expect("linux");
            linux.security_context.as_mut().expect("a context").privileged = true;
        })
    }

    /// A running container that waits.
    fn waiting(&self, pod: &Pod, change: impl FnOnce(&mut ContainerConfig)) -> String {
        self.running(pod, "exec sleep 1000", change)
    }

    /// A started container that runs `command` with the shell, changed by `change`.
    fn running(&self, pod: &Pod, command: &str, change: impl FnOnce(&mut ContainerConfig)) -> String {
        let id = self.created(pod, command, change).expect("CreateContainer");
        self.node.start(&id);
        id
    }

    fn created(
        &self,
        pod: &Pod,
        command: &str,
        change: impl FnOnce(&mut ContainerConfig),
    ) -> Result<String, tonic::Status> {
        let mut config = self.node.container_config(&self.name("c"), command);
        change(&mut config);
        self.node.try_create(&pod.id, &config, &pod.config)
    }

    /// Runs `command` in a container of its own and returns what it wrote.
    fn said(&self, pod: &Pod, command: &str, change: impl FnOnce(&mut ContainerConfig)) -> String {
        let name = Cell::new(String::new());
        let id = self.running(pod, command, |config| {
            change(config);
            name.set(config.metadata.as_ref().expect("metadata").name.clone());
        });
        self.node.wait_exited(&id);
        let lines = self.node.log_lines(&pod.config.metadata.as_ref().expect("metadata").name, &name.take());
        lines.iter().filter_map(|line| line.split_once(" F ")).map(|(_, text)| format!("{text}\n")).collect()
    }

    /// Exit code and standard error of a command in a container.
    fn failing(&self, container: &str, command: &[&str]) -> String {
        let answer = self.node.exec(container, command);
        assert_ne!(answer.exit_code, 0, "{command:?}: {}", String::from_utf8_lossy(&answer.stdout));
        String::from_utf8_lossy(&answer.stderr).into_owned()
    }

    fn pull(&self, name: &str) -> Result<String, tonic::Status> {
        let request = PullImageRequest { image: spec(name), ..Default::default() };
        Ok(self.node.call(self.node.images.clone().pull_image(request))?.into_inner().image_ref)
    }

    fn image(&self, name: &str) -> Option<Image> {
        let request = ImageStatusRequest { image: spec(name), verbose: false };
        self.node
            .call(self.node.images.clone().image_status(request))
            .expect("ImageStatus")
            .into_inner()
            .image
    }

    fn images(&self) -> Vec<Image> {
        let request = ListImagesRequest::default();
        self.node.call(self.node.images.clone().list_images(request)).expect("ListImages").into_inner().images
    }

    fn remove_image(&self, name: &str) {
        let request = RemoveImageRequest { image: spec(name) };
        self.node.call(self.node.images.clone().remove_image(request)).expect("RemoveImage");
    }

    /// Puts an image into the registry that differs from all others by `mark`, and returns its name.
    fn put(&self, repository: &str, tag: &str, mark: &str) -> String {
        let image = ImageBuilder::new().layer(&[Entry::file("mark", mark, 0o644)]).build();
        put_image(&self.node.registry, repository, tag, &image)
    }
}

/// The security context of a container's configuration.
fn security(config: &mut ContainerConfig) -> &mut LinuxContainerSecurityContext {
    config.linux.as_mut().expect("linux").security_context.as_mut().expect("a context")
}

fn spec(name: &str) -> Option<ImageSpec> {
    Some(ImageSpec { image: name.into(), ..Default::default() })
}

/// A mount of a host's path.
fn bind(host_path: &std::path::Path, container_path: &str) -> Mount {
    Mount {
        host_path: host_path.display().to_string(),
        container_path: container_path.into(),
        ..Default::default()
    }
}

/// One request over HTTP/1.0; `None` while nobody answers.
fn get(address: &str) -> Option<String> {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(address).ok()?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    Some(text)
}

/// The body of the page at `address` once somebody serves it.
fn page(address: &str) -> String {
    eventually(|| get(address)?.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()))
}
