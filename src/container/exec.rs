//! ExecSync: one command inside a running container, its output and its exit code.

use std::sync::Arc;
use std::time::Duration;

use oci_spec::runtime::Spec;

use super::state::Request;
use super::{ContainerError, Containers, denied, monitor_error};
use crate::monitor::client::ExecOutput;
use crate::task::{blocking, expect_new_process};
use crate::units::Bytes;

/// Kept of each stream; the rest is read and dropped while the command goes on (CRI v1 ExecSyncResponse: 16 MB).
const OUTPUT_MAX: Bytes = Bytes::mib(16);

/// Kept of both streams together: the answer must fit into the 16 MiB message that the kubelet's client takes
/// (cri-client `maxMsgSize`), or the client gets an error and no output at all.
const ANSWER_MAX: usize = (16 << 20) - (4 << 10);

impl Containers {
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
        let path = self.bundle_dir(container.id()).join("config.json");
        let file = |source: std::io::Error| ContainerError::File {
            action: "read",
            path: path.clone(),
            source: Arc::new(source),
        };
        let read = {
            let path = path.clone();
            blocking(move || std::fs::read(path)).await.map_err(file)?
        };
        let spec: Spec = serde_json::from_slice(&read).map_err(|e| file(std::io::Error::other(e)))?;
        let mut process = spec.process().clone().unwrap_or_default();
        process.set_args(Some(command.to_vec())).set_terminal(Some(terminal));
        Ok(serde_json::to_string(&process).expect("an OCI process has only string keys"))
    }
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
