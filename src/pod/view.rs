//! A pod as plain data for lists and statuses.

use super::Pod;
use super::status::PodView;

impl Pod {
    /// What is known at this moment, consistent in itself.
    pub(crate) fn view(&self) -> PodView {
        let live = self.live();
        PodView {
            id: self.id().clone(),
            spec: std::sync::Arc::clone(self.spec()),
            ready: live.state.is_ready(),
            created_at: self.saved.created_at,
            addresses: live.link.map(|link| link.addresses).unwrap_or_default(),
            netns: live.place.network_ns.clone(),
            monitor_pid: live.monitor.as_ref().and_then(|monitor| u32::try_from(monitor.pid()).ok()),
        }
    }
}
