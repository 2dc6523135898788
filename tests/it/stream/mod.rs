//! The streaming server as kubectl and crictl meet it, and `brig` on top of it.
//!
//! WebSocket is spoken by [`client`]; SPDY by [`spdy`], by crictl and critest, which share the Kubernetes' own client with
//! kubectl, and by `brig port-forward`. Everything runs with the bundled sandbox and, where it is installed, runc.

mod attach;
mod client;
mod exec;
mod forward;
mod leaks;
mod server;
mod spdy;
mod terminal;
mod tls;

use brig::proto::v1::*;

use crate::fixture::node::{Node, Options, handlers};

/// A node with one running container.
struct Ship {
    node: Node,
    config: PodSandboxConfig,
    pod: String,
    /// Empty if none was asked for.
    container: String,
}

impl Ship {
    /// A pod without containers.
    fn pod(handler: &str, name: &str) -> Self {
        Self::with(Options { handler: handler.into(), ..Options::default() }, name)
    }

    fn with(options: Options, name: &str) -> Self {
        let node = Node::with(options);
        node.busybox();
        let config = node.pod_config(name);
        let pod = node.run_pod(&config);
        Self { node, config, pod, container: String::new() }
    }

    /// A container that only waits.
    fn sleeping(handler: &str, name: &str) -> Self {
        Self::pod(handler, name).running("exec sleep 1000")
    }

    fn running(mut self, command: &str) -> Self {
        self.container = self.node.run_container(&self.pod, &self.config, "main", command);
        self
    }

    /// A container whose own process is at the end of streams.
    fn attachable(mut self, command: &str, tty: bool, stdin_once: bool) -> Self {
        let mut config = self.node.container_config("main", command);
        (config.tty, config.stdin, config.stdin_once) = (tty, true, stdin_once);
        self.container = self.node.create(&self.pod, &config, &self.config);
        self
    }

    fn start(&self) {
        self.node.start(&self.container);
    }

    /// The URL of an exec with the streams that `letters` has: `i`, `o`, `e`, and `t` for a terminal.
    fn exec_url(&self, letters: &str, command: &[&str]) -> String {
        self.try_exec_url(letters, command).expect("Exec")
    }

    fn try_exec_url(&self, letters: &str, command: &[&str]) -> Result<String, tonic::Status> {
        let has = |letter| letters.contains(letter);
        let request = ExecRequest {
            container_id: self.container.clone(),
            cmd: command.iter().map(ToString::to_string).collect(),
            tty: has('t'),
            stdin: has('i'),
            stdout: has('o'),
            stderr: has('e'),
        };
        self.node.call(self.node.runtime.clone().exec(request)).map(|answer| answer.into_inner().url)
    }

    fn attach_url(&self, letters: &str) -> String {
        self.try_attach_url(letters).expect("Attach")
    }

    fn try_attach_url(&self, letters: &str) -> Result<String, tonic::Status> {
        let has = |letter| letters.contains(letter);
        let request = AttachRequest {
            container_id: self.container.clone(),
            tty: has('t'),
            stdin: has('i'),
            stdout: has('o'),
            stderr: has('e'),
        };
        self.node.call(self.node.runtime.clone().attach(request)).map(|answer| answer.into_inner().url)
    }

    fn forward_url(&self, ports: &[i32]) -> String {
        self.try_forward_url(ports).expect("PortForward")
    }

    fn try_forward_url(&self, ports: &[i32]) -> Result<String, tonic::Status> {
        let request = PortForwardRequest { pod_sandbox_id: self.pod.clone(), port: ports.to_vec() };
        self.node.call(self.node.runtime.clone().port_forward(request)).map(|answer| answer.into_inner().url)
    }
}

/// Runs a test once with every handler.
fn with_handlers(test: impl Fn(&str)) {
    for handler in handlers() {
        eprintln!("--- {handler}");
        test(handler);
    }
}
