//! Ends a container whose monitor is gone: the OCI runtime is asked directly to kill and forget it.

use std::process::Stdio;
use std::sync::Arc;

use super::{Container, Containers};

impl Containers {
    /// Runs `RUNTIME delete --force ID`. Failures are logged: the caller has no other way either.
    pub(crate) async fn reclaim_unmonitored(&self, container: &Arc<Container>) {
        let handler = &container.placement.handler;
        let mut command = tokio::process::Command::new(&handler.path);
        command.arg("--root").arg(&handler.root).args(&handler.options);
        if handler.systemd_cgroup {
            command.arg("--systemd-cgroup");
        }
        command.args(["delete", "--force", container.id().as_str()]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
        let ran = tokio::time::timeout(self.0.settings.runtime_timeout, command.output()).await;
        match ran {
            Ok(Ok(output)) if output.status.success() => {}
            Ok(Ok(output)) => tracing::warn!(
                container = %container.id(),
                status = %output.status,
                message = %String::from_utf8_lossy(&output.stderr).trim(),
                "the runtime did not delete a container"
            ),
            Ok(Err(error)) => {
                tracing::warn!(runtime = %handler.path.display(), error = %error, "cannot run the runtime")
            }
            Err(_) => tracing::warn!(container = %container.id(), "the runtime did not answer in time"),
        }
    }
}
