//! `brig stop` and `brig rm`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;

use super::client::Client;
use super::error::CliError;
use super::resolve::{self, Target};
use super::{output, run};
use crate::proto::v1;

/// What to stop.
#[derive(Debug, Args)]
pub(super) struct StopArgs {
    /// How long the stop signal may take before SIGKILL.
    #[arg(short, long, default_value_t = 10, value_name = "SECONDS")]
    time: u32,
    /// Pods or containers, by name, id or unique prefix of an id.
    #[arg(required = true)]
    names: Vec<String>,
}

/// What to remove.
#[derive(Debug, Args)]
pub(super) struct RmArgs {
    /// Also what is still running, killing it.
    #[arg(short, long)]
    force: bool,
    /// Pods or containers, by name, id or unique prefix of an id.
    #[arg(required = true)]
    names: Vec<String>,
}

pub(super) async fn stop(client: Client, args: StopArgs) -> Result<ExitCode, CliError> {
    for name in args.names {
        match resolve::target(&client, &name).await? {
            Target::Container(id) => stop_container(&client, &id, args.time).await?,
            Target::Pod(id) => stop_pod(&client, &id, args.time).await?,
        }
        output::line(name)?;
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn stop_container(client: &Client, id: &str, grace_s: u32) -> Result<(), CliError> {
    let request = v1::StopContainerRequest { container_id: id.to_owned(), timeout: grace_s.into() };
    client.runtime.clone().stop_container(request).await.map_err(CliError::refused("stop the container"))?;
    Ok(())
}

/// Stops the pod's containers with the grace period, side by side, then the pod, which itself would grant none.
pub(super) async fn stop_pod(client: &Client, id: &str, grace_s: u32) -> Result<(), CliError> {
    let inside =
        resolve::containers(client).await?.into_iter().filter(|container| container.pod_sandbox_id == id);
    let stops = inside.map(|container| async move { stop_container(client, &container.id, grace_s).await });
    futures_util::future::try_join_all(stops).await?;
    let request = v1::StopPodSandboxRequest { pod_sandbox_id: id.to_owned() };
    client.runtime.clone().stop_pod_sandbox(request).await.map_err(CliError::refused("stop the pod"))?;
    Ok(())
}

pub(super) async fn rm(client: Client, args: RmArgs) -> Result<ExitCode, CliError> {
    for name in args.names {
        let target = resolve::target(&client, &name).await?;
        let running = resolve::containers(&client).await?.into_iter().any(|container| {
            let meant = match &target {
                Target::Pod(id) => container.pod_sandbox_id == *id,
                Target::Container(id) => container.id == *id,
            };
            meant && container.state() == v1::ContainerState::ContainerRunning
        });
        if running && !args.force {
            return Err(CliError::Argument {
                option: "rm",
                value: name,
                must: "stopped first (`brig stop`), or removed with --force",
            });
        }
        match target {
            Target::Pod(id) => remove_pod(&client, &id).await?,
            Target::Container(container_id) => {
                let request = v1::RemoveContainerRequest { container_id };
                let removed = client.runtime.clone().remove_container(request).await;
                removed.map_err(CliError::refused("remove the container"))?;
            }
        }
        output::line(name)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Stops and removes a pod, and the logs of its containers when `brig run` made it: CRI leaves logs to the client.
pub(super) async fn remove_pod(client: &Client, id: &str) -> Result<(), CliError> {
    let mut runtime = client.runtime.clone();
    let request = v1::PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: false };
    let status = runtime.pod_sandbox_status(request).await.ok().and_then(|answer| answer.into_inner().status);
    let ours = status.is_some_and(|status| status.labels.contains_key(run::LABEL));
    let mut logs = Vec::new();
    if ours {
        for container in resolve::containers(client).await? {
            if container.pod_sandbox_id == id
                && let Some(status) = super::logs::status(client, &container.id).await?
                && !status.log_path.is_empty()
            {
                logs.push(PathBuf::from(status.log_path));
            }
        }
    }
    let request = v1::StopPodSandboxRequest { pod_sandbox_id: id.to_owned() };
    runtime.stop_pod_sandbox(request).await.map_err(CliError::refused("stop the pod"))?;
    let request = v1::RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() };
    runtime.remove_pod_sandbox(request).await.map_err(CliError::refused("remove the pod"))?;
    for log in logs {
        remove_log(&log);
    }
    Ok(())
}

/// Removes a log file and the pod's folder with it once that is empty. Nothing depends on it, so a failure is silent.
pub(super) fn remove_log(log: &Path) {
    let _ = std::fs::remove_file(log);
    if let Some(folder) = log.parent() {
        let _ = std::fs::remove_dir(folder);
    }
}
