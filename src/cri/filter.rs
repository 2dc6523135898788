//! The filters of the list calls: all that is given must match, and an empty filter matches everything.
//!
//! Ids match by their beginning, because people abbreviate them; labels match exactly. A state that the CRI does not
//! know matches nothing rather than everything.

use std::collections::BTreeMap;

use super::to_proto::{container_state, pod_state};
use crate::container::status::{ContainerView, Phase};
use crate::pod::status::PodView;
use crate::proto::v1;

pub(crate) fn pod(filter: &v1::PodSandboxFilter, view: &PodView) -> bool {
    id(&filter.id, view.id.as_str())
        && filter.state.is_none_or(|wanted| wanted.state == i32::from(pod_state(view)))
        && labels(&filter.label_selector, &view.spec.labels)
}

pub(crate) fn container(filter: &v1::ContainerFilter, view: &ContainerView) -> bool {
    id(&filter.id, view.id.as_str())
        && id(&filter.pod_sandbox_id, view.pod_id.as_str())
        && filter.state.is_none_or(|wanted| wanted.state == i32::from(container_state(view.state)))
        && labels(&filter.label_selector, &view.spec.labels)
}

pub(crate) fn pod_stats(filter: &v1::PodSandboxStatsFilter, view: &PodView) -> bool {
    // A stopped pod uses nothing, and the kubelet asks only for what is there.
    view.ready && id(&filter.id, view.id.as_str()) && labels(&filter.label_selector, &view.spec.labels)
}

/// CRI v1: the stats "of all running containers".
pub(crate) fn container_stats(filter: &v1::ContainerStatsFilter, view: &ContainerView) -> bool {
    view.state == Phase::Running
        && id(&filter.id, view.id.as_str())
        && id(&filter.pod_sandbox_id, view.pod_id.as_str())
        && labels(&filter.label_selector, &view.spec.labels)
}

fn id(prefix: &str, id: &str) -> bool {
    id.starts_with(prefix)
}

fn labels(selector: &BTreeMap<String, String>, labels: &BTreeMap<String, String>) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

#[cfg(test)]
mod tests {
    use super::super::to_proto::tests::{container_view, pod_view};
    use super::*;

    #[test]
    fn pods_pass_when_everything_given_matches() {
        let ready = |ready: bool| {
            let state =
                if ready { v1::PodSandboxState::SandboxReady } else { v1::PodSandboxState::SandboxNotready };
            Some(v1::PodSandboxStateValue { state: state.into() })
        };
        let label = |value: &str| BTreeMap::from([("app".to_owned(), value.to_owned())]);
        let (long, longer) = ("1".repeat(64), "1".repeat(65));
        for (id, state, label_selector, passes) in [
            ("", None, BTreeMap::new(), true),
            ("111", None, BTreeMap::new(), true),
            (long.as_str(), ready(true), label("web"), true),
            (longer.as_str(), None, BTreeMap::new(), false),
            ("112", None, BTreeMap::new(), false),
            ("", ready(false), BTreeMap::new(), false),
            ("", Some(v1::PodSandboxStateValue { state: 9 }), BTreeMap::new(), false),
            ("", None, label("we"), false),
            ("111", ready(true), label("db"), false),
            ("", None, BTreeMap::from([("tier".to_owned(), String::new())]), false),
        ] {
            let filter = v1::PodSandboxFilter { id: id.into(), state, label_selector };
            assert_eq!(pod(&filter, &pod_view()), passes, "{filter:?}");
        }
    }

    #[test]
    fn containers_pass_by_pod_too() {
        let exited = Some(v1::ContainerStateValue { state: v1::ContainerState::ContainerExited.into() });
        let running = Some(v1::ContainerStateValue { state: v1::ContainerState::ContainerRunning.into() });
        for (id, pod_sandbox_id, state, passes) in [
            ("", "", None, true),
            ("22", "11", exited, true),
            ("22", "12", exited, false),
            ("11", "", None, false),
            ("", "", running, false),
        ] {
            let filter = v1::ContainerFilter {
                id: id.into(),
                state,
                pod_sandbox_id: pod_sandbox_id.into(),
                label_selector: BTreeMap::new(),
            };
            assert_eq!(container(&filter, &container_view()), passes, "{filter:?}");
        }
    }

    #[test]
    fn stats_are_of_what_runs() {
        let all = v1::ContainerStatsFilter::default();
        assert!(!container_stats(&all, &container_view()));
        assert!(container_stats(&all, &ContainerView { state: Phase::Running, ..container_view() }));
        let pods = v1::PodSandboxStatsFilter::default();
        assert!(pod_stats(&pods, &pod_view()));
        assert!(!pod_stats(&pods, &PodView { ready: false, ..pod_view() }));
    }
}
