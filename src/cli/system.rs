//! `brig status`, `brig version`, `brig config` and `brig teardown`: about the daemon itself.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::client::Client;
use super::error::CliError;
use super::inspect::info;
use super::output::{self, Cell, Format, Table};
use crate::daemon::args::Args as DaemonArgs;
use crate::daemon::config::Config;
use crate::proto::{admin, v1};

/// Which configuration to print.
#[derive(Debug, Args)]
pub(super) struct ConfigArgs {
    /// The embedded defaults alone.
    #[arg(long, conflicts_with_all = ["running", "file"])]
    default: bool,
    /// What the running daemon was started with.
    #[arg(long, conflicts_with = "file")]
    running: bool,
    /// What this file and the drop-ins beside it give, instead of /etc/brig/config.toml.
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
}

/// Prints every key with its value, unit, default and reason. Reads the files itself unless `--running` is given, so
/// that a configuration can be looked at before a daemon runs with it.
pub(super) async fn config(address: &str, args: ConfigArgs) -> Result<ExitCode, CliError> {
    let text = if args.running {
        let mut client = Client::connect(address).await?;
        let answer = client.admin.config(admin::ConfigRequest {}).await;
        answer.map_err(CliError::refused("read the configuration"))?.into_inner().toml
    } else if args.default {
        Config::default().to_toml()
    } else {
        Config::load(&DaemonArgs { config: args.file, ..DaemonArgs::default() })?.to_toml()
    };
    output::write(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

/// Fails when a condition is not met, so that scripts can wait for a node to become ready.
pub(super) async fn status(mut client: Client, format: Format) -> Result<ExitCode, CliError> {
    let what = || CliError::refused("read the status");
    let version = client.runtime.version(v1::VersionRequest::default()).await.map_err(what())?.into_inner();
    let status =
        client.runtime.status(v1::StatusRequest { verbose: true }).await.map_err(what())?.into_inner();
    let pods =
        client.runtime.list_pod_sandbox(v1::ListPodSandboxRequest { filter: None }).await.map_err(what())?;
    let pods = pods.into_inner().items;
    let ready = pods.iter().filter(|pod| pod.state() == v1::PodSandboxState::SandboxReady).count();
    let containers = super::resolve::containers(&client).await?;
    let running = containers.iter().filter(|it| it.state() == v1::ContainerState::ContainerRunning).count();
    let images = client.images.list_images(v1::ListImagesRequest { filter: None }).await.map_err(what())?;
    let images = images.into_inner().images.len();
    let disk = client.images.image_fs_info(v1::ImageFsInfoRequest {}).await.map_err(what())?.into_inner();
    let disk_bytes: u64 =
        disk.image_filesystems.iter().filter_map(|usage| usage.used_bytes).map(|bytes| bytes.value).sum();
    let conditions = status.status.map(|status| status.conditions).unwrap_or_default();
    let healthy = !conditions.is_empty() && conditions.iter().all(|condition| condition.status);
    let handlers: Vec<_> = status.runtime_handlers.iter().map(|handler| handler.name.clone()).collect();
    match format {
        Format::Json => output::json(&json!({
            "name": version.runtime_name,
            "version": version.runtime_version,
            "conditions": conditions.iter().map(|condition| json!({
                "type": condition.r#type,
                "status": condition.status,
                "reason": condition.reason,
                "message": condition.message,
            })).collect::<Vec<_>>(),
            "handlers": handlers,
            "pods": {"total": pods.len(), "ready": ready},
            "containers": {"total": containers.len(), "running": running},
            "images": {"total": images, "used_bytes": disk_bytes},
            "info": info(status.info),
        }))?,
        Format::Table => {
            let mut table = Table::new(&["WHAT", "STATE"]);
            let mut row = |what: &str, state: String| table.row(vec![Cell::text(what), Cell::text(state)]);
            row(&version.runtime_name, version.runtime_version);
            for condition in conditions {
                let state = match condition.status {
                    true => "yes".to_owned(),
                    false => format!("NO: {}: {}", condition.reason, condition.message),
                };
                row(&condition.r#type, state);
            }
            row(
                "handlers",
                handlers.into_iter().filter(|name| !name.is_empty()).collect::<Vec<_>>().join(", "),
            );
            row("pods", format!("{ready} ready of {}", pods.len()));
            row("containers", format!("{running} running of {}", containers.len()));
            row("images", format!("{images}, {}", crate::units::Bytes(disk_bytes)));
            table.print(format)?;
        }
    }
    Ok(if healthy { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Takes bridge and rules of the built-in network away, which otherwise stay for the next pod.
pub(super) async fn teardown(mut client: Client) -> Result<ExitCode, CliError> {
    let answer = client.admin.teardown(admin::TeardownRequest {}).await;
    answer.map_err(CliError::refused("remove the built-in network"))?;
    Ok(ExitCode::SUCCESS)
}

/// Our own version even when no daemon can be reached, which is then said and fails the command.
pub(super) async fn version(address: &str, format: Format) -> Result<ExitCode, CliError> {
    let ours = env!("CARGO_PKG_VERSION");
    let daemon = async {
        let mut client = Client::connect(address).await?;
        let answer = client.runtime.version(v1::VersionRequest::default()).await;
        Ok(answer.map_err(CliError::refused("ask for the version"))?.into_inner())
    }
    .await;
    match format {
        Format::Json => output::json(&json!({
            "client": ours,
            "server": daemon.as_ref().ok().map(|version: &v1::VersionResponse| json!({
                "name": version.runtime_name,
                "version": version.runtime_version,
                "api": version.runtime_api_version,
            })),
        }))?,
        Format::Table => {
            output::line(format!("brig {ours}"))?;
            if let Ok(version) = &daemon {
                let (name, number, api) =
                    (&version.runtime_name, &version.runtime_version, &version.runtime_api_version);
                output::line(format!("daemon: {name} {number}, CRI {api}"))?;
            }
        }
    }
    daemon.map(|_| ExitCode::SUCCESS)
}
