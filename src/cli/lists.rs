//! `brig pods`, `brig ps`, `brig images` and `brig stats`: lists of what there is.

use std::process::ExitCode;

use clap::Args;

use super::client::Client;
use super::error::CliError;
use super::output::{Cell, Format, Table};
use super::resolve;
use crate::proto::v1;

/// What `ps` shows.
#[derive(Debug, Args)]
pub(super) struct PsArgs {
    /// Also containers that are not running.
    #[arg(short, long)]
    all: bool,
    /// Only full ids, one a line.
    #[arg(short, long)]
    quiet: bool,
}

/// What `pods` shows.
#[derive(Debug, Args)]
pub(super) struct PodsArgs {
    /// Only full ids, one a line.
    #[arg(short, long)]
    quiet: bool,
}

/// What `stats` shows.
#[derive(Debug, Args)]
pub(super) struct StatsArgs {
    /// Only this container, by name, id or unique prefix of an id.
    container: Option<String>,
}

pub(super) async fn pods(mut client: Client, args: PodsArgs, format: Format) -> Result<ExitCode, CliError> {
    let request = v1::ListPodSandboxRequest { filter: None };
    let pods = client.runtime.list_pod_sandbox(request).await.map_err(CliError::refused("list pods"))?;
    let mut pods = pods.into_inner().items;
    pods.sort_by_key(|pod| std::cmp::Reverse(pod.created_at));
    let mut table = Table::new(&["ID", "NAME", "NAMESPACE", "ATTEMPT", "STATE", "AGE", "HANDLER"]);
    for pod in pods {
        if args.quiet {
            super::output::line(&pod.id)?;
            continue;
        }
        let state = pod_state(pod.state());
        let metadata = pod.metadata.unwrap_or_default();
        table.row(vec![
            Cell::id(&pod.id),
            Cell::text(metadata.name),
            Cell::text(metadata.namespace),
            Cell::new(metadata.attempt.to_string(), metadata.attempt),
            Cell::text(state),
            Cell::time(pod.created_at),
            Cell::text(match pod.runtime_handler.as_str() {
                "" => "(default)".to_owned(),
                name => name.to_owned(),
            }),
        ]);
    }
    if !args.quiet {
        table.print(format)?;
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn ps(client: Client, args: PsArgs, format: Format) -> Result<ExitCode, CliError> {
    let mut containers = resolve::containers(&client).await?;
    containers.sort_by_key(|container| std::cmp::Reverse(container.created_at));
    let mut table = Table::new(&["ID", "NAME", "ATTEMPT", "STATE", "AGE", "IMAGE", "POD"]);
    for container in containers {
        if !args.all && container.state() != v1::ContainerState::ContainerRunning {
            continue;
        }
        if args.quiet {
            super::output::line(&container.id)?;
            continue;
        }
        let state = container_state(container.state());
        let metadata = container.metadata.unwrap_or_default();
        let image = container.image.map(|image| image.image).unwrap_or_default();
        table.row(vec![
            Cell::id(&container.id),
            Cell::text(metadata.name),
            Cell::new(metadata.attempt.to_string(), metadata.attempt),
            Cell::text(state),
            Cell::time(container.created_at),
            if image.starts_with("sha256:") { Cell::id(&image) } else { Cell::text(image) },
            Cell::id(&container.pod_sandbox_id),
        ]);
    }
    if !args.quiet {
        table.print(format)?;
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn images(mut client: Client, format: Format) -> Result<ExitCode, CliError> {
    let request = v1::ListImagesRequest { filter: None };
    let images = client.images.list_images(request).await.map_err(CliError::refused("list images"))?;
    let mut table = Table::new(&["NAME", "ID", "SIZE", "PINNED"]);
    for image in images.into_inner().images {
        // An image with several names is several rows, as every other tool shows it.
        let names = if !image.repo_tags.is_empty() { &image.repo_tags } else { &image.repo_digests };
        let unnamed = ["<none>".to_owned()];
        for name in if names.is_empty() { &unnamed[..] } else { names } {
            table.row(vec![
                Cell::text(name),
                Cell::id(&image.id),
                Cell::bytes(image.size),
                Cell::new(if image.pinned { "yes" } else { "" }, image.pinned),
            ]);
        }
    }
    table.print(format)?;
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn stats(mut client: Client, args: StatsArgs, format: Format) -> Result<ExitCode, CliError> {
    let id = match &args.container {
        Some(name) => resolve::container(&client, name).await?,
        None => String::new(),
    };
    let filter = v1::ContainerStatsFilter { id, ..Default::default() };
    let request = v1::ListContainerStatsRequest { filter: Some(filter) };
    let stats = client
        .runtime
        .list_container_stats(request)
        .await
        .map_err(CliError::refused("read the statistics"))?;
    let mut table = Table::new(&["ID", "NAME", "CPU", "CPU TIME", "MEMORY", "WORKING SET", "DISK"]);
    for stats in stats.into_inner().stats {
        let attributes = stats.attributes.unwrap_or_default();
        let (cpu, memory) = (stats.cpu.unwrap_or_default(), stats.memory.unwrap_or_default());
        let value = |value: Option<v1::UInt64Value>| value.map(|value| value.value);
        table.row(vec![
            Cell::id(&attributes.id),
            Cell::text(attributes.metadata.map(|metadata| metadata.name).unwrap_or_default()),
            // A billionth of a core is the unit of usage_nano_cores.
            Cell::maybe(value(cpu.usage_nano_cores), |nano| {
                Cell::new(format!("{:.1}%", nano as f64 / 1e7), nano)
            }),
            Cell::maybe(value(cpu.usage_core_nano_seconds), |ns| {
                Cell::new(format!("{:.3}s", ns as f64 / 1e9), ns)
            }),
            Cell::maybe(value(memory.usage_bytes), Cell::bytes),
            Cell::maybe(value(memory.working_set_bytes), Cell::bytes),
            Cell::maybe(value(stats.writable_layer.and_then(|layer| layer.used_bytes)), Cell::bytes),
        ]);
    }
    table.print(format)?;
    Ok(ExitCode::SUCCESS)
}

/// The word for a container's state.
pub(super) fn container_state(state: v1::ContainerState) -> &'static str {
    match state {
        v1::ContainerState::ContainerCreated => "created",
        v1::ContainerState::ContainerRunning => "running",
        v1::ContainerState::ContainerExited => "exited",
        v1::ContainerState::ContainerUnknown => "unknown",
    }
}

/// The word for a pod's state.
pub(super) fn pod_state(state: v1::PodSandboxState) -> &'static str {
    match state {
        v1::PodSandboxState::SandboxReady => "ready",
        v1::PodSandboxState::SandboxNotready => "not ready",
    }
}
