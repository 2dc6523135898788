//! `brig inspect`: everything the daemon says about a pod, a container or an image, as JSON.
//!
//! Always with the verbose information, whose values are JSON texts and are shown as JSON. The documents follow the
//! CRI's field names.

use std::collections::BTreeMap;
use std::process::ExitCode;

use clap::Args;
use serde_json::{Map, Value, json};

use super::client::Client;
use super::error::CliError;
use super::lists::{container_state, pod_state};
use super::output;
use super::resolve::{self, Target};
use crate::proto::v1;

/// What to look at.
#[derive(Debug, Args)]
pub(super) struct InspectArgs {
    /// A pod, a container or an image, by name, id or unique prefix of an id.
    name: String,
}

pub(super) async fn inspect(client: Client, args: InspectArgs) -> Result<ExitCode, CliError> {
    let document = match resolve::target(&client, &args.name).await {
        Ok(Target::Pod(id)) => pod(client, id).await?,
        Ok(Target::Container(id)) => container(client, id).await?,
        Err(CliError::NotFound { .. }) => image(client, &args.name).await?,
        Err(err) => return Err(err),
    };
    output::json(&document)?;
    Ok(ExitCode::SUCCESS)
}

async fn pod(mut client: Client, id: String) -> Result<Value, CliError> {
    let request = v1::PodSandboxStatusRequest { pod_sandbox_id: id, verbose: true };
    let what = CliError::refused("read the pod's status");
    let answer = client.runtime.pod_sandbox_status(request).await.map_err(what)?.into_inner();
    let status = answer.status.ok_or(CliError::Incomplete("the pod's status"))?;
    let state = pod_state(status.state());
    let metadata = status.metadata.unwrap_or_default();
    let network = status.network.unwrap_or_default();
    let ips: Vec<_> = std::iter::once(network.ip)
        .chain(network.additional_ips.into_iter().map(|ip| ip.ip))
        .filter(|ip| !ip.is_empty())
        .collect();
    Ok(json!({
        "kind": "pod",
        "id": status.id,
        "name": metadata.name,
        "namespace": metadata.namespace,
        "uid": metadata.uid,
        "attempt": metadata.attempt,
        "state": state,
        "created_at": status.created_at,
        "ips": ips,
        "handler": status.runtime_handler,
        "labels": status.labels,
        "annotations": status.annotations,
        "containers": answer.containers_statuses.into_iter().map(container_document).collect::<Vec<_>>(),
        "info": info(answer.info),
    }))
}

async fn container(mut client: Client, id: String) -> Result<Value, CliError> {
    let request = v1::ContainerStatusRequest { container_id: id, verbose: true };
    let what = CliError::refused("read the container's status");
    let answer = client.runtime.container_status(request).await.map_err(what)?.into_inner();
    let mut document =
        container_document(answer.status.ok_or(CliError::Incomplete("the container's status"))?);
    document["info"] = info(answer.info);
    Ok(document)
}

fn container_document(status: v1::ContainerStatus) -> Value {
    let state = container_state(status.state());
    let stop_signal = status.stop_signal().as_str_name();
    let metadata = status.metadata.unwrap_or_default();
    let mount = |mount: v1::Mount| {
        json!({
            "container_path": mount.container_path,
            "host_path": mount.host_path,
            "readonly": mount.readonly,
            "image": mount.image.map(|image| image.image),
        })
    };
    let resources = status.resources.and_then(|resources| resources.linux).map(|linux| {
        json!({
            "cpu_period": linux.cpu_period,
            "cpu_quota": linux.cpu_quota,
            "cpu_shares": linux.cpu_shares,
            "memory_limit_in_bytes": linux.memory_limit_in_bytes,
            "memory_swap_limit_in_bytes": linux.memory_swap_limit_in_bytes,
            "oom_score_adj": linux.oom_score_adj,
            "cpuset_cpus": linux.cpuset_cpus,
            "cpuset_mems": linux.cpuset_mems,
            "unified": linux.unified,
        })
    });
    let user = status.user.and_then(|user| user.linux).map(
        |user| json!({"uid": user.uid, "gid": user.gid, "supplemental_groups": user.supplemental_groups}),
    );
    json!({
        "kind": "container",
        "id": status.id,
        "name": metadata.name,
        "attempt": metadata.attempt,
        "state": state,
        "created_at": status.created_at,
        "started_at": status.started_at,
        "finished_at": status.finished_at,
        "exit_code": status.exit_code,
        "reason": status.reason,
        "message": status.message,
        "image": status.image.map(|image| image.image),
        "image_ref": status.image_ref,
        "image_id": status.image_id,
        "labels": status.labels,
        "annotations": status.annotations,
        "mounts": status.mounts.into_iter().map(mount).collect::<Vec<_>>(),
        "log_path": status.log_path,
        "resources": resources,
        "user": user,
        "stop_signal": stop_signal,
    })
}

async fn image(mut client: Client, name: &str) -> Result<Value, CliError> {
    let spec = v1::ImageSpec { image: name.to_owned(), ..Default::default() };
    let request = v1::ImageStatusRequest { image: Some(spec), verbose: true };
    let nothing = || CliError::NotFound {
        kind: "pod, container or image",
        name: name.to_owned(),
        list: "brig pods; brig ps --all; brig images",
    };
    let answer = match client.images.image_status(request).await {
        // What is no reference either was a mistyped id.
        Err(status) if status.code() == tonic::Code::InvalidArgument => return Err(nothing()),
        answer => answer.map_err(CliError::refused("read the image's status"))?.into_inner(),
    };
    let image = answer.image.ok_or_else(nothing)?;
    Ok(json!({
        "kind": "image",
        "id": image.id,
        "names": image.repo_tags,
        "digests": image.repo_digests,
        "size": image.size,
        "uid": image.uid.map(|uid| uid.value),
        "username": image.username,
        "pinned": image.pinned,
        "info": info(answer.info),
    }))
}

/// Verbose information: values that are JSON become JSON.
pub(super) fn info(info: BTreeMap<String, String>) -> Value {
    let parsed = |text: String| serde_json::from_str(&text).unwrap_or(Value::String(text));
    Value::Object(Map::from_iter(info.into_iter().map(|(key, text)| (key, parsed(text)))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn information_that_is_json_is_shown_as_json() {
        let texts =
            BTreeMap::from([("a".to_owned(), "{\"b\":1}".to_owned()), ("c".to_owned(), "plain".to_owned())]);
        assert_eq!(info(texts), json!({"a": {"b": 1}, "c": "plain"}));
    }
}
