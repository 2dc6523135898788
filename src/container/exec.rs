//! Commands inside a running container, and clients at its own streams.
//!
//! ExecSync waits for its command and keeps the output. Exec and Attach come in two steps, as the CRI has them: the check,
//! whose answer is an address, and the streams once a client comes there.

use std::sync::Arc;
use std::time::Duration;

use oci_spec::runtime::Spec;

use super::state::Request;
use super::{ContainerError, Containers, denied, monitor_error};
use crate::id::ContainerId;
use crate::monitor::attach::AttachSession;
use crate::monitor::client::ExecOutput;
use crate::monitor::exec::ExecSession;
use crate::task::expect_new_process;
use crate::units::Bytes;

pub(crate) use crate::monitor::exec::Streams;

/// Kept of each stream; the rest is read and dropped while the command goes on (CRI v1 ExecSyncResponse: 16 MB).
const OUTPUT_MAX: Bytes = Bytes::mib(16);

/// Kept of both streams together: the answer must fit into the 16 MiB message that the kubelet's client takes
/// (cri-client `maxMsgSize`), or the client gets an error and no output at all.
const ANSWER_MAX: usize = (16 << 20) - (4 << 10);

/// A command for a client with streams.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ExecOptions {
    pub command: Vec<String>,
    pub streams: Streams,
}

impl Containers {
    /// Whether a command could run now. Answers the whole id of the container.
    pub(crate) fn check_exec(&self, prefix: &str, options: &ExecOptions) -> Result<String, ContainerError> {
        let container = self.find(prefix)?;
        container.live().state.admit(Request::Exec).map_err(denied("exec in", container.id()))?;
        if options.command.is_empty() {
            return Err(ContainerError::EmptyCommand);
        }
        check_streams("exec in", container.id(), options.streams)?;
        Ok(container.id().to_string())
    }

    /// Whether a client could attach now. Answers the whole id of the container.
    ///
    /// CRI v1 AttachRequest: `tty` must match the container's. Its stdin is what it was created with; other runtimes
    /// throw away what is typed into a container without one.
    pub(crate) fn check_attach(&self, prefix: &str, streams: Streams) -> Result<String, ContainerError> {
        let container = self.find(prefix)?;
        container.live().state.admit(Request::Attach).map_err(denied("attach to", container.id()))?;
        check_streams("attach to", container.id(), streams)?;
        let (id, spec) = (container.id().to_string(), container.spec());
        if streams.terminal != spec.tty {
            return Err(ContainerError::OtherTerminal { id, asked: streams.terminal });
        }
        if streams.stdin && !spec.stdin {
            return Err(ContainerError::NoStdin { id });
        }
        Ok(id)
    }

    /// Starts a command for a client. Checks again: the client may have taken its time.
    pub(crate) async fn exec(&self, id: &str, options: ExecOptions) -> Result<ExecSession, ContainerError> {
        let container = self.find(&self.check_exec(id, &options)?)?;
        expect_new_process();
        let process = self.exec_process(&container, &options.command, options.streams.terminal).await?;
        let monitor = &container.placement.monitor;
        let started = monitor.exec(container.id().as_str(), process, options.streams).await;
        started.map_err(monitor_error("exec in", &container))
    }

    /// Attaches a client to the streams of the container's own process. Checks again, as [`Containers::exec`].
    pub(crate) async fn attach(&self, id: &str, streams: Streams) -> Result<AttachSession, ContainerError> {
        let container = self.find(&self.check_attach(id, streams)?)?;
        let monitor = &container.placement.monitor;
        let attached = monitor.attach(container.id().as_str(), streams).await;
        attached.map_err(monitor_error("attach to", &container))
    }

    /// Runs `command` and waits for it. A `timeout` of `None` waits for ever; when it strikes, every process of the
    /// command is killed and the error is [`ContainerError::ExecTimeout`].
    pub(crate) async fn exec_sync(
        &self,
        prefix: &str,
        command: Vec<String>,
        timeout: Option<Duration>,
    ) -> Result<ExecOutput, ContainerError> {
        if command.is_empty() {
            return Err(ContainerError::EmptyCommand);
        }
        let container = self.find(prefix)?;
        container.live().state.admit(Request::Exec).map_err(denied("exec in", container.id()))?;
        expect_new_process();
        let process = self.exec_process(&container, &command, false).await?;
        let monitor = &container.placement.monitor;
        let id = container.id().as_str();
        let output = monitor
            .exec_sync(id, process, timeout, OUTPUT_MAX)
            .await
            .map_err(monitor_error("exec in", &container))?;
        match (output.timed_out, timeout) {
            (true, Some(timeout)) => {
                Err(ContainerError::ExecTimeout { command, id: id.to_owned(), timeout_s: timeout.as_secs() })
            }
            _ => Ok(fitted(output, ANSWER_MAX)),
        }
    }

    /// The OCI process of an exec: the container's own user, environment, limits and profile with another command.
    ///
    /// Read from the bundle rather than kept: exec is rare and the environment can be large.
    async fn exec_process(
        &self,
        container: &Arc<super::Container>,
        command: &[String],
        terminal: bool,
    ) -> Result<String, ContainerError> {
        let spec: Spec = self.oci_config(container.id()).await?;
        let mut process = spec.process().clone().unwrap_or_default();
        process.set_args(Some(command.to_vec())).set_terminal(Some(terminal));
        let mut env = process.env().clone().unwrap_or_default();
        if terminal && !env.iter().any(|entry| entry.starts_with("TERM=")) {
            // As a container with a terminal has it, and as containerd does.
            env.push("TERM=xterm".to_owned());
            process.set_env(Some(env));
        }
        Ok(serde_json::to_string(&process).expect("an OCI process has only string keys"))
    }
}

/// CRI v1, ExecRequest and AttachRequest: one of stdin, stdout and stderr must be true; tty and stderr never both.
fn check_streams(verb: &'static str, id: &ContainerId, streams: Streams) -> Result<(), ContainerError> {
    let Streams { stdin, stdout, stderr, terminal } = streams;
    if !(stdin || stdout || stderr) {
        return Err(ContainerError::NoStreams { verb, id: id.to_string() });
    }
    if terminal && stderr {
        return Err(ContainerError::TerminalAndStderr { verb, id: id.to_string() });
    }
    Ok(())
}

/// Cuts the streams so that both fit into `max` bytes together: the longer one gives first.
fn fitted(mut output: ExecOutput, max: usize) -> ExecOutput {
    let (out, err) = (output.stdout.len(), output.stderr.len());
    if out + err > max {
        let shorter = out.min(err).min(max / 2);
        let longer = max - shorter;
        let (out, err) = if out >= err { (longer, shorter) } else { (shorter, longer) };
        output.stdout.truncate(out);
        output.stderr.truncate(err);
    }
    output
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_cut_to_what_one_answer_carries() {
        for (before, after) in
            [((3, 4), (3, 4)), ((20, 4), (6, 4)), ((4, 20), (4, 6)), ((20, 20), (5, 5)), ((20, 0), (10, 0))]
        {
            let output =
                ExecOutput { stdout: vec![0; before.0], stderr: vec![0; before.1], ..ExecOutput::default() };
            let output = fitted(output, 10);
            assert_eq!((output.stdout.len(), output.stderr.len()), after);
        }
    }
}
