//! A container as plain data for lists and statuses.

use super::Container;
use super::state::{Exit, State};
use super::status::{ContainerView, Phase, UserIds};
use crate::units::UnixNanos;

impl Container {
    /// What is known at this moment, consistent in itself.
    pub(crate) fn view(&self) -> ContainerView {
        let live = self.live();
        let saved = &self.saved;
        let zero = UnixNanos::default();
        let (state, started_at, finished_at, exit_code, reason, message) = match live.state {
            State::Created => (Phase::Created, zero, zero, 0, "", String::new()),
            State::Running { started_at } => (Phase::Running, started_at, zero, 0, "", String::new()),
            State::Exited(Exit { started_at, finished_at, code, reason, message }) => {
                (Phase::Exited, started_at.unwrap_or(zero), finished_at, code, reason.as_str(), message)
            }
        };
        ContainerView {
            id: saved.id.clone(),
            pod_id: self.placement.pod.clone(),
            spec: std::sync::Arc::clone(&saved.spec),
            state,
            created_at: saved.created_at,
            started_at,
            finished_at,
            exit_code,
            reason: reason.to_owned(),
            message,
            image_id: saved.image_id.to_string(),
            image_ref: saved.image_ref.clone(),
            image_name: saved.image_name.clone(),
            user: Some(UserIds {
                uid: saved.user.uid,
                gid: saved.user.gid,
                groups: saved.user.supplemental_groups.clone(),
            }),
            resources: live.resources,
            log_path: saved.log_path.clone(),
            stop_signal: saved.stop_signal.clone(),
            pid: live.pid.and_then(|pid| u32::try_from(pid).ok()),
            mounted_images: saved.mounted_images.clone(),
        }
    }
}
