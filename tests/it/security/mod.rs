//! Every field of a security context, seen from inside a container, with every handler that is installed.
//!
//! Each test runs one pod per handler and many short containers in it: a container runs one line of shell, and what it
//! prints is what is compared. `refused` is for requests that must fail; it also proves that nothing of them is left.

mod confinement;
mod devices;
mod identity;
mod labels;
mod mounts;
mod namespaces;
mod resources;
mod userns;

use std::sync::atomic::{AtomicU32, Ordering};

use brig::proto::v1::*;

use crate::fixture::image::ImageBuilder;
use crate::fixture::node::{Node, Options, handlers, put_image, systemd_cgroups};

/// A running pod on a node.
struct Pod<'a> {
    node: &'a Node,
    id: String,
    config: PodSandboxConfig,
    number: AtomicU32,
}

/// Runs `test` on a node per handler with the busybox image pulled.
fn on_every_handler(test: impl Fn(&Node)) {
    for handler in handlers() {
        on_handler(handler, "", &test);
    }
}

fn on_handler(handler: &str, config: &str, test: impl Fn(&Node)) {
    eprintln!("--- handler {handler}");
    let node = Node::with(Options { handler: handler.into(), config: config.into() });
    node.busybox();
    test(&node);
}

/// The security context of a container, whatever is missing made.
fn context(config: &mut ContainerConfig) -> &mut LinuxContainerSecurityContext {
    config.linux.get_or_insert_default().security_context.get_or_insert_default()
}

fn pod_context(config: &mut PodSandboxConfig) -> &mut LinuxSandboxSecurityContext {
    config.linux.get_or_insert_default().security_context.get_or_insert_default()
}

impl<'a> Pod<'a> {
    fn new(node: &'a Node, name: &str) -> Self {
        Self::with(node, name, |_| {})
    }

    fn with(node: &'a Node, name: &str, edit: impl FnOnce(&mut PodSandboxConfig)) -> Self {
        let mut config = node.pod_config(name);
        edit(&mut config);
        let id = node.run_pod(&config);
        Self { node, id, config, number: AtomicU32::new(0) }
    }

    /// A container's configuration with a name that this pod has not had; its namespaces are those the pod shares.
    fn container(&self, command: &str) -> ContainerConfig {
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        let mut container = self.node.container_config(&format!("c{number}"), command);
        let pod = self.config.linux.clone().unwrap_or_default().security_context.unwrap_or_default();
        context(&mut container).namespace_options = pod.namespace_options;
        container
    }

    /// What `command` prints, in a container changed by `edit`; it must succeed.
    fn sh(&self, command: &str, edit: impl FnOnce(&mut ContainerConfig)) -> String {
        let (code, output) = self.try_sh(command, edit);
        assert_eq!(code, 0, "{command}: {output}");
        output
    }

    /// The exit code and what `command` prints.
    fn try_sh(&self, command: &str, edit: impl FnOnce(&mut ContainerConfig)) -> (i32, String) {
        let mut container = self.container(command);
        edit(&mut container);
        let name = container.metadata.as_ref().expect("a name").name.clone();
        let id = self.node.create(&self.id, &container, &self.config);
        self.node.start(&id);
        let status = self.node.wait_exited(&id);
        let lines = self.node.log_lines(&self.config.metadata.as_ref().expect("a name").name, &name);
        let text: Vec<&str> = lines.iter().map(|line| line.splitn(3, ' ').nth(2).unwrap_or("")).collect();
        self.node.remove_container(&id);
        (status.exit_code, text.join("\n"))
    }

    /// A running container.
    fn keep(&self, edit: impl FnOnce(&mut ContainerConfig)) -> String {
        let mut container = self.container("exec sleep 1000");
        edit(&mut container);
        let id = self.node.create(&self.id, &container, &self.config);
        self.node.start(&id);
        id
    }

    /// Why CreateContainer refuses; afterwards there is no container and no file of one.
    fn refused(&self, edit: impl FnOnce(&mut ContainerConfig)) -> String {
        let before = self.leftovers();
        let mut container = self.container("true");
        edit(&mut container);
        let error = self.node.try_create(&self.id, &container, &self.config).expect_err("a refusal");
        assert_eq!(self.leftovers(), before, "left behind by: {error}");
        error.message().to_owned()
    }

    fn leftovers(&self) -> Vec<String> {
        let list =
            self.node.call(self.node.runtime.clone().list_containers(ListContainersRequest::default()));
        let mut all: Vec<String> =
            list.expect("the list").into_inner().containers.into_iter().map(|one| one.id).collect();
        for dir in [self.node.run_dir().join("containers"), self.node.root().join("containers")] {
            let entries = std::fs::read_dir(&dir).into_iter().flatten().flatten();
            all.extend(entries.map(|entry| entry.path().display().to_string()));
        }
        all.sort();
        all
    }
}

/// Puts an image made by `build` from busybox on the node and returns its name.
fn image(node: &Node, name: &str, build: impl FnOnce(ImageBuilder) -> ImageBuilder) -> String {
    let image = build(ImageBuilder::busybox()).build();
    let name = put_image(&node.registry, &format!("test/{name}"), "latest", &image);
    let request = PullImageRequest {
        image: Some(ImageSpec { image: name.clone(), ..Default::default() }),
        ..Default::default()
    };
    node.call(node.images.clone().pull_image(request)).expect("the pull");
    name
}

fn of_image(name: &str) -> Option<ImageSpec> {
    Some(ImageSpec { image: name.into(), ..Default::default() })
}

fn bind(host: &std::path::Path, place: &str) -> Mount {
    Mount { container_path: place.into(), host_path: host.display().to_string(), ..Default::default() }
}

fn folder(node: &Node, name: &str) -> std::path::PathBuf {
    let path = node.dir.path().join(name);
    std::fs::create_dir_all(&path).unwrap();
    path
}
