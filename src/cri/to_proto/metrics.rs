//! Samples to the CRI's metrics.

use crate::container::status::ContainerView;
use crate::metrics::{BASE_LABELS, Kind, Metric, Sample};
use crate::pod::status::PodView;
use crate::proto::v1;
use crate::units::UnixNanos;

pub(crate) fn metric_descriptors() -> Vec<v1::MetricDescriptor> {
    let descriptor = |metric: &Metric| v1::MetricDescriptor {
        name: metric.name().into(),
        help: metric.help().into(),
        label_keys: BASE_LABELS.iter().chain(metric.own_labels()).map(ToString::to_string).collect(),
    };
    Metric::ALL.iter().map(descriptor).collect()
}

/// `cgroup` is the pod's. The pod's own samples have no container and no image.
pub(crate) fn pod_metrics(
    view: &PodView,
    cgroup: String,
    at: UnixNanos,
    samples: Vec<Sample>,
    containers: Vec<v1::ContainerMetrics>,
) -> v1::PodSandboxMetrics {
    let identity = &view.spec.identity;
    let base = [
        String::new(),
        cgroup,
        String::new(),
        view.id.to_string(),
        identity.namespace.clone(),
        identity.name.clone(),
    ];
    v1::PodSandboxMetrics {
        pod_sandbox_id: view.id.to_string(),
        metrics: metrics(&base, at, samples),
        container_metrics: containers,
    }
}

/// `cgroup` is the container's.
pub(crate) fn container_metrics(
    pod: &PodView,
    view: &ContainerView,
    cgroup: String,
    at: UnixNanos,
    samples: Vec<Sample>,
) -> v1::ContainerMetrics {
    let (identity, image) = (&pod.spec.identity, &view.spec.image);
    // As the pod's author wrote it, which is what people search for.
    let image =
        if image.user_specified_image.is_empty() { &image.image } else { &image.user_specified_image };
    let base = [
        view.spec.name.clone(),
        cgroup,
        image.clone(),
        view.id.to_string(),
        identity.namespace.clone(),
        identity.name.clone(),
    ];
    v1::ContainerMetrics { container_id: view.id.to_string(), metrics: metrics(&base, at, samples) }
}

fn metrics(base: &[String; BASE_LABELS.len()], at: UnixNanos, samples: Vec<Sample>) -> Vec<v1::Metric> {
    let metric = |sample: Sample| v1::Metric {
        name: sample.metric.name().into(),
        timestamp: at.0,
        metric_type: match sample.metric.kind() {
            Kind::Counter => v1::MetricType::Counter,
            Kind::Gauge => v1::MetricType::Gauge,
        }
        .into(),
        label_values: base.iter().cloned().chain(sample.labels).collect(),
        value: Some(v1::UInt64Value { value: sample.value }),
    };
    samples.into_iter().map(metric).collect()
}

#[cfg(test)]
mod tests {
    use super::super::tests::{container_view, pod_view};
    use super::*;

    #[test]
    fn a_metric_has_a_value_for_every_key_of_its_descriptor() {
        let at = UnixNanos(5);
        let sample = |metric, labels: &[&str], value| Sample {
            metric,
            labels: labels.iter().map(ToString::to_string).collect(),
            value,
        };
        let (pod, container) = (pod_view(), container_view());
        let own = vec![sample(Metric::CpuUsageSeconds, &["total"], 7), sample(Metric::MemoryRss, &[], 8)];
        let own = container_metrics(&pod, &container, "/pod/c".into(), at, own);
        let all = pod_metrics(
            &pod,
            "/pod".into(),
            at,
            vec![sample(Metric::NetworkReceiveBytes, &["eth0"], 9)],
            vec![own],
        );
        let labelled = |metric: &v1::Metric| {
            let descriptors = metric_descriptors();
            let descriptor = descriptors.iter().find(|it| it.name == metric.name).unwrap();
            assert_eq!(descriptor.label_keys.len(), metric.label_values.len());
            let pairs = descriptor.label_keys.iter().zip(&metric.label_values);
            let text: Vec<_> = pairs.map(|(key, value)| format!("{key}={value}")).collect();
            (metric.metric_type(), metric.timestamp, text.join(","), metric.value.unwrap().value)
        };
        let (id, name) = (&container.id, &container.spec.name);
        let image = &container.spec.image.user_specified_image;
        let identity = &pod.spec.identity;
        let place = format!("namespace={},pod={}", identity.namespace, identity.name);
        assert_eq!(
            all.container_metrics[0].metrics.iter().map(labelled).collect::<Vec<_>>(),
            [
                (
                    v1::MetricType::Counter,
                    5,
                    format!("container={name},id=/pod/c,image={image},name={id},{place},cpu=total"),
                    7
                ),
                (
                    v1::MetricType::Gauge,
                    5,
                    format!("container={name},id=/pod/c,image={image},name={id},{place}"),
                    8
                ),
            ]
        );
        assert_eq!(
            labelled(&all.metrics[0]),
            (
                v1::MetricType::Counter,
                5,
                format!("container=,id=/pod,image=,name={},{place},interface=eth0", pod.id),
                9
            )
        );
        assert_eq!(all.container_metrics[0].container_id, id.to_string());
    }
}
