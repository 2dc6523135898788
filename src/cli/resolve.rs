//! From what the operator typed to an id: a full id, a unique prefix of one, or a name.
//!
//! An exact id wins over a name, a name over a prefix. Of several with one name the one that is alive wins, because
//! the others are its earlier attempts.

use super::client::Client;
use super::error::CliError;
use crate::proto::v1;

/// Something that can be named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) id: String,
    pub(super) name: String,
    /// Running, or ready.
    pub(super) alive: bool,
}

/// A pod or a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Target {
    Pod(String),
    Container(String),
}

/// The one candidate that `name` means; `Ok(None)` when there is none.
pub(super) fn pick(name: &str, candidates: &[Candidate]) -> Result<Option<String>, CliError> {
    if let Some(exact) = candidates.iter().find(|candidate| candidate.id == name) {
        return Ok(Some(exact.id.clone()));
    }
    let mut matches: Vec<_> = candidates.iter().filter(|candidate| candidate.name == name).collect();
    if matches.is_empty() && !name.is_empty() {
        matches = candidates.iter().filter(|candidate| candidate.id.starts_with(name)).collect();
    }
    if matches.len() > 1 {
        let alive: Vec<_> = matches.iter().copied().filter(|candidate| candidate.alive).collect();
        if alive.len() == 1 {
            matches = alive;
        }
    }
    match matches.as_slice() {
        [] => Ok(None),
        [one] => Ok(Some(one.id.clone())),
        many => Err(CliError::Ambiguous {
            name: name.to_owned(),
            candidates: many
                .iter()
                .map(|candidate| {
                    format!("{} ({})", candidate.id.get(..13).unwrap_or(&candidate.id), candidate.name)
                })
                .collect(),
        }),
    }
}

/// The container that `name` means; a pod's name or id means its only container.
pub(super) async fn container(client: &Client, name: &str) -> Result<String, CliError> {
    let containers = containers(client).await?;
    if let Some(id) = pick(name, &candidates_of(&containers))? {
        return Ok(id);
    }
    let pods = pods(client).await?;
    if let Some(pod) = pick(name, &pods)? {
        let inside: Vec<_> =
            containers.into_iter().filter(|container| container.pod_sandbox_id == pod).collect();
        match inside.as_slice() {
            [] => {}
            [one] => return Ok(one.id.clone()),
            _ => {
                let candidates = candidates_of(&inside).into_iter().map(|candidate| candidate.name).collect();
                return Err(CliError::Ambiguous { name: name.to_owned(), candidates });
            }
        }
    }
    Err(CliError::NotFound { kind: "container", name: name.to_owned(), list: "brig ps --all" })
}

/// The pod that `name` means.
pub(super) async fn pod(client: &Client, name: &str) -> Result<String, CliError> {
    match pick(name, &pods(client).await?)? {
        Some(id) => Ok(id),
        None => Err(CliError::NotFound { kind: "pod", name: name.to_owned(), list: "brig pods" }),
    }
}

/// The pod or container that `name` means. Where both have the name, the pod is meant: it holds the container.
pub(super) async fn target(client: &Client, name: &str) -> Result<Target, CliError> {
    let (pods, containers) = (pods(client).await?, candidates_of(&containers(client).await?));
    if let Some(id) = pick(name, &pods)? {
        return Ok(Target::Pod(id));
    }
    if let Some(id) = pick(name, &containers)? {
        return Ok(Target::Container(id));
    }
    Err(CliError::NotFound { kind: "pod or container", name: name.to_owned(), list: "brig ps --all" })
}

/// All containers, in any state.
pub(super) async fn containers(client: &Client) -> Result<Vec<v1::Container>, CliError> {
    let request = v1::ListContainersRequest { filter: None };
    let answer = client.runtime.clone().list_containers(request).await;
    Ok(answer.map_err(CliError::refused("list containers"))?.into_inner().containers)
}

async fn pods(client: &Client) -> Result<Vec<Candidate>, CliError> {
    let request = v1::ListPodSandboxRequest { filter: None };
    let answer = client.runtime.clone().list_pod_sandbox(request).await;
    let pods = answer.map_err(CliError::refused("list pods"))?.into_inner().items;
    let candidate = |pod: v1::PodSandbox| Candidate {
        alive: pod.state() == v1::PodSandboxState::SandboxReady,
        name: pod.metadata.map(|metadata| metadata.name).unwrap_or_default(),
        id: pod.id,
    };
    Ok(pods.into_iter().map(candidate).collect())
}

fn candidates_of(containers: &[v1::Container]) -> Vec<Candidate> {
    let candidate = |container: &v1::Container| Candidate {
        id: container.id.clone(),
        name: container.metadata.as_ref().map(|metadata| metadata.name.clone()).unwrap_or_default(),
        alive: container.state() == v1::ContainerState::ContainerRunning,
    };
    containers.iter().map(candidate).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(id: &str, name: &str, alive: bool) -> Candidate {
        Candidate { id: id.into(), name: name.into(), alive }
    }

    #[test]
    fn an_id_a_name_and_a_unique_prefix_are_found_in_this_order() {
        let all =
            [candidate("abc1", "web", true), candidate("abd2", "abc1", true), candidate("ffff", "db", true)];
        assert_eq!(pick("abc1", &all).unwrap().as_deref(), Some("abc1"));
        assert_eq!(pick("web", &all).unwrap().as_deref(), Some("abc1"));
        assert_eq!(pick("ff", &all).unwrap().as_deref(), Some("ffff"));
        assert_eq!(pick("nothing", &all).unwrap(), None);
        assert_eq!(pick("", &all).unwrap(), None);
        assert_eq!(
            pick("ab", &all).unwrap_err().to_string(),
            "\"ab\" could be any of abc1 (web), abd2 (abc1); use more of the id"
        );
    }

    #[test]
    fn of_several_attempts_the_living_one_is_meant() {
        let all =
            [candidate("a1", "web", false), candidate("b2", "web", true), candidate("c3", "web", false)];
        assert_eq!(pick("web", &all).unwrap().as_deref(), Some("b2"));
        assert!(pick("web", &[all[0].clone(), all[2].clone()]).is_err());
    }
}
