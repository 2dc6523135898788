//! UpdateContainerResources and ReopenContainerLog.

use std::sync::Arc;

use super::spec::Resources;
use super::state::Request;
use super::{ContainerError, Containers, bundle, denied, monitor_error};

impl Containers {
    /// Changes limits of a container: all of them or, on an error, none.
    pub(crate) async fn update_resources(
        &self,
        prefix: &str,
        change: Resources,
    ) -> Result<(), ContainerError> {
        let container = self.find(prefix)?;
        let _gate = container.gate.lock().await;
        // A removal may have come between.
        self.find(container.id().as_str())?;
        container.live().state.admit(Request::Update).map_err(denied("update", container.id()))?;
        let merged = container.live().resources.merged(change);
        let mut limits = bundle::resources(&merged).map_err(|source| ContainerError::Bundle {
            name: container.spec().name.clone(),
            source: Arc::new(source),
        })?;
        // A limit below what is in use would kill the container instead of being refused.
        if let Some(mut memory) = *limits.memory() {
            memory.set_check_before_update(Some(true));
            limits.set_memory(Some(memory));
        }
        let json = serde_json::to_string(&limits).expect("OCI resources have only string keys");
        let monitor = &container.placement.monitor;
        monitor.update(container.id().as_str(), json).await.map_err(monitor_error("update", &container))?;
        if let (Some(score), Some(pid)) = (merged.oom_score_adj, container.live().pid) {
            let path = format!("/proc/{pid}/oom_score_adj");
            if let Err(error) = std::fs::write(&path, score.to_string()) {
                tracing::warn!(container = %container.id(), score, error = %error, "cannot set oom_score_adj");
            }
        }
        container.lock().resources = merged;
        self.save(&container).await
    }

    /// Makes the monitor write to a new file at the log path. When it returns, no byte goes to the old file any more.
    pub(crate) async fn reopen_log(&self, prefix: &str) -> Result<(), ContainerError> {
        let container = self.find(prefix)?;
        let id = container.id();
        container.live().state.admit(Request::ReopenLog).map_err(denied("reopen the log of", id))?;
        let Some(path) = &container.saved.log_path else {
            return Err(ContainerError::NoLog { id: id.to_string() });
        };
        let log = super::create::open_log_directory(path).await?;
        let monitor = &container.placement.monitor;
        monitor.reopen_log(id.as_str(), log).await.map_err(monitor_error("reopen the log of", &container))
    }
}

impl Resources {
    /// These resources with what `change` sets replaced.
    pub(crate) fn merged(&self, change: Resources) -> Resources {
        let text = |new: String, old: &String| if new.is_empty() { old.clone() } else { new };
        let mut unified = self.unified.clone();
        unified.extend(change.unified);
        Resources {
            cpu_period_us: change.cpu_period_us.or(self.cpu_period_us),
            cpu_quota_us: change.cpu_quota_us.or(self.cpu_quota_us),
            cpu_shares: change.cpu_shares.or(self.cpu_shares),
            memory_limit_bytes: change.memory_limit_bytes.or(self.memory_limit_bytes),
            memory_swap_limit_bytes: change.memory_swap_limit_bytes.or(self.memory_swap_limit_bytes),
            oom_score_adj: change.oom_score_adj.or(self.oom_score_adj),
            cpuset_cpus: text(change.cpuset_cpus, &self.cpuset_cpus),
            cpuset_mems: text(change.cpuset_mems, &self.cpuset_mems),
            hugepage_limits: if change.hugepage_limits.is_empty() {
                self.hugepage_limits.clone()
            } else {
                change.hugepage_limits
            },
            unified,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_update_replaces_what_it_names_and_keeps_the_rest() {
        let old = Resources { cpu_shares: Some(2), cpuset_cpus: "0".into(), ..Resources::default() };
        let change =
            Resources { memory_limit_bytes: Some(1 << 20), cpu_shares: Some(4), ..Resources::default() };
        let expected = Resources {
            cpu_shares: Some(4),
            memory_limit_bytes: Some(1 << 20),
            cpuset_cpus: "0".into(),
            ..Resources::default()
        };
        assert_eq!(old.merged(change), expected);
    }
}
