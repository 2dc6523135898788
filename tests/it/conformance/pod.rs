//! Pods, sysctls, and calls that may be repeated.

use std::collections::BTreeMap;

use brig::proto::v1::*;

use super::{Check, Suite, run, spec};

pub(super) const CHECKS: &[Check] = &[
    (
        "PodSandbox runtime should support basic operations on PodSandbox runtime should support preserving PodSandbox attributes",
        attributes,
    ),
    ("PodSandbox runtime should support sysctls should support safe sysctls", safe_sysctls),
    ("PodSandbox runtime should support sysctls should support unsafe sysctls", unsafe_sysctls),
    ("Idempotence StopPodSandbox should not return an error if not found", stop_unknown_pod),
    ("Idempotence StopPodSandbox should not return an error if already stopped", stop_pod_twice),
    ("Idempotence RemovePodSandbox should not return an error if not found", remove_unknown_pod),
    ("Idempotence StopContainer should not return an error if not found", stop_unknown_container),
    ("Idempotence StopContainer should not return an error if already stopped", stop_container_twice),
    ("Idempotence RemoveContainer should not return an error if not found", remove_unknown_container),
    ("Idempotence RemoveImage should not return an error if not found", remove_unknown_image),
];

#[test]
fn privileged_pods_keep_what_they_were_given_and_calls_can_be_repeated() {
    run(CHECKS);
}

fn attributes(suite: &Suite) {
    let labels = BTreeMap::from([("app".to_owned(), "web".to_owned())]);
    let annotations = BTreeMap::from([("note".to_owned(), "kept \"as\" it is".to_owned())]);
    let pod = suite.pod_with(|config| {
        (config.labels, config.annotations) = (labels.clone(), annotations.clone());
    });
    let status = suite.node.pod_status(&pod.id);
    assert_eq!((&status.labels, &status.annotations), (&labels, &annotations));
    assert_eq!(status.metadata, pod.config.metadata);
    assert!(status.created_at > 0);
    let filter = Some(PodSandboxFilter { id: pod.id.clone(), ..Default::default() });
    let list = suite.node.call(suite.node.runtime.clone().list_pod_sandbox(ListPodSandboxRequest { filter }));
    let item = list.expect("the list").into_inner().items.pop().expect("the pod");
    assert_eq!((item.labels, item.annotations, item.metadata), (labels, annotations, pod.config.metadata));
    assert_eq!(item.created_at, status.created_at);
}

fn sysctl(suite: &Suite, name: &str, value: &str) {
    let pod = suite.pod_with(|config| {
        config.linux.as_mut().expect("linux").sysctls = BTreeMap::from([(name.to_owned(), value.to_owned())]);
    });
    let id = suite.waiting(&pod, |_| {});
    let file = format!("cat /proc/sys/{}", name.replace('.', "/"));
    assert_eq!(suite.node.output(&id, &file).trim(), value);
}

fn safe_sysctls(suite: &Suite) {
    sysctl(suite, "kernel.shm_rmid_forced", "1");
}

fn unsafe_sysctls(suite: &Suite) {
    sysctl(suite, "fs.mqueue.msg_max", "100");
}

fn unknown() -> String {
    "0123456789abcdef".repeat(4)
}

fn stop_unknown_pod(suite: &Suite) {
    suite.node.stop_pod(&unknown());
}

fn stop_pod_twice(suite: &Suite) {
    let pod = suite.pod();
    suite.node.stop_pod(&pod.id);
    suite.node.stop_pod(&pod.id);
    assert_eq!(suite.node.pod_status(&pod.id).state(), PodSandboxState::SandboxNotready);
}

fn remove_unknown_pod(suite: &Suite) {
    suite.node.remove_pod(&unknown());
}

fn stop_unknown_container(suite: &Suite) {
    suite.node.stop_container(&unknown(), 1);
}

fn stop_container_twice(suite: &Suite) {
    let id = suite.waiting(&suite.pod(), |_| {});
    suite.node.stop_container(&id, 0);
    suite.node.stop_container(&id, 0);
    assert_eq!(suite.node.status(&id).state(), ContainerState::ContainerExited);
}

fn remove_unknown_container(suite: &Suite) {
    suite.node.remove_container(&unknown());
}

fn remove_unknown_image(suite: &Suite) {
    let request = RemoveImageRequest { image: spec("registry.example/never:seen") };
    suite.node.call(suite.node.images.clone().remove_image(request)).expect("RemoveImage");
}
