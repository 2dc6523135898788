//! What the daemon counts about itself. Whoever has something to count holds a clone of [`Own`]; what is a state and not
//! a count is read when Prometheus asks, by the collectors that are added to the registry.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

/// The daemon's counters. Cheap to clone; all clones count together.
#[derive(Debug, Clone, Default)]
pub(crate) struct Own(Arc<Counts>);

#[derive(Debug)]
struct Counts {
    rpcs: Family<Method, Histogram, fn() -> Histogram>,
    refused: Family<Refusal, Counter>,
    pulls: Family<Outcome, Histogram, fn() -> Histogram>,
    pulls_joined: Counter,
    pulled_bytes: Counter,
    layers: Family<LayerSource, Counter>,
    recovery_seconds: Gauge<f64, std::sync::atomic::AtomicU64>,
    /// Locked while Prometheus reads.
    registry: Mutex<Registry>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Method {
    method: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Refusal {
    method: String,
    code: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LayerSource {
    source: &'static str,
}

/// How a call was answered.
#[derive(Debug)]
pub(crate) enum Answer {
    Done,
    /// With a gRPC code, one of seventeen words.
    Refused(String),
    /// Nobody serves the method.
    Unserved,
}

/// Where calls of a method that nobody serves are counted: their names come from the client, and each would be a time
/// series for ever.
const OTHER: &str = "other";

impl Own {
    /// An answered call; for a stream the time is up to its beginning.
    pub(crate) fn rpc(&self, method: &str, took: Duration, answer: Answer) {
        let method = if matches!(answer, Answer::Unserved) { OTHER } else { method }.to_owned();
        self.0.rpcs.get_or_create(&Method { method: method.clone() }).observe(took.as_secs_f64());
        let code = match answer {
            Answer::Done => return,
            Answer::Refused(code) => code,
            Answer::Unserved => "Unimplemented".to_owned(),
        };
        self.0.refused.get_or_create(&Refusal { method, code }).inc();
    }

    /// A pull that has ended; `outcome` is one of few words.
    pub(crate) fn pulled(&self, outcome: &'static str, took: Duration) {
        self.0.pulls.get_or_create(&Outcome { outcome }).observe(took.as_secs_f64());
    }

    /// A request that waits for a pull that was under way.
    pub(crate) fn pull_joined(&self) {
        self.0.pulls_joined.inc();
    }

    /// A layer of a pull: fetched, with the bytes that came, or found in the store.
    pub(crate) fn layer(&self, fetched: Option<u64>) {
        let source = if fetched.is_some() { "registry" } else { "store" };
        self.0.layers.get_or_create(&LayerSource { source }).inc();
        self.0.pulled_bytes.inc_by(fetched.unwrap_or(0));
    }

    /// How long it took to take up what an earlier daemon left.
    pub(crate) fn recovered(&self, took: Duration) {
        self.0.recovery_seconds.set(took.as_secs_f64());
    }

    /// Adds what is read whenever Prometheus asks.
    pub(crate) fn collect(&self, collector: Box<dyn Collector>) {
        self.registry().register_collector(collector);
    }

    /// Everything in the OpenMetrics text format. Blocking: collectors read files.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry())
            .expect("a String takes all that is written to it");
        text
    }

    fn registry(&self) -> std::sync::MutexGuard<'_, Registry> {
        self.0.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Counts {
    fn default() -> Self {
        let counts = Self {
            rpcs: Family::new_with_constructor(rpc_times),
            refused: Family::default(),
            pulls: Family::new_with_constructor(pull_times),
            pulls_joined: Counter::default(),
            pulled_bytes: Counter::default(),
            layers: Family::default(),
            recovery_seconds: Gauge::default(),
            registry: Mutex::default(),
        };
        let mut registry = Registry::default();
        registry.register_with_unit(
            "brig_rpc_duration",
            "Time until a call was answered, or a stream begun, by method",
            Unit::Seconds,
            counts.rpcs.clone(),
        );
        registry.register(
            "brig_rpc_errors",
            "Calls that were refused, by method and gRPC code",
            counts.refused.clone(),
        );
        registry.register_with_unit(
            "brig_image_pull_duration",
            "Time that pulls took, by outcome",
            Unit::Seconds,
            counts.pulls.clone(),
        );
        registry.register(
            "brig_image_pulls_joined",
            "Requests for a pull that was under way already",
            counts.pulls_joined.clone(),
        );
        registry.register_with_unit(
            "brig_image_pulled",
            "Compressed bytes of layers that came from registries",
            Unit::Bytes,
            counts.pulled_bytes.clone(),
        );
        registry.register(
            "brig_image_layers",
            "Layers of pulls, by where they were found",
            counts.layers.clone(),
        );
        registry.register_with_unit(
            "brig_recovery",
            "Time that the start took to take up the pods of an earlier daemon",
            Unit::Seconds,
            counts.recovery_seconds.clone(),
        );
        *counts.registry.lock().unwrap_or_else(PoisonError::into_inner) = registry;
        counts
    }
}

/// From half a millisecond, where lists are, to the two minutes after which the kubelet gives up.
fn rpc_times() -> Histogram {
    Histogram::new([
        0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0, 120.0,
    ])
}

/// From an image that is there already to a large one over a slow link.
fn pull_times() -> Histogram {
    Histogram::new([0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(own: &Own) -> Vec<String> {
        own.text().lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect()
    }

    #[test]
    fn calls_are_counted_by_method_and_refusals_by_code() {
        let own = Own::default();
        own.rpc("Version", Duration::from_millis(2), Answer::Done);
        own.clone().rpc("Version", Duration::from_millis(20), Answer::Refused("NotFound".into()));
        let lines = lines(&own);
        for line in [
            r#"brig_rpc_duration_seconds_sum{method="Version"} 0.022"#,
            r#"brig_rpc_duration_seconds_count{method="Version"} 2"#,
            r#"brig_rpc_duration_seconds_bucket{le="0.001",method="Version"} 0"#,
            r#"brig_rpc_duration_seconds_bucket{le="0.0025",method="Version"} 1"#,
            r#"brig_rpc_errors_total{method="Version",code="NotFound"} 1"#,
        ] {
            assert!(lines.iter().any(|seen| seen == line), "{line} in {lines:#?}");
        }
    }

    #[test]
    fn methods_that_nobody_serves_share_one_series() {
        let own = Own::default();
        for number in 0..100 {
            own.rpc(&format!("Made{number}Up"), Duration::ZERO, Answer::Unserved);
        }
        let lines = lines(&own);
        assert!(
            lines.contains(&r#"brig_rpc_errors_total{method="other",code="Unimplemented"} 100"#.to_owned())
        );
        assert!(!lines.iter().any(|line| line.contains("Made")), "{lines:#?}");
    }

    #[test]
    fn pulls_are_counted_by_outcome_and_layers_by_source() {
        let own = Own::default();
        own.pulled("done", Duration::from_secs(3));
        own.pull_joined();
        own.layer(Some(100));
        own.layer(Some(11));
        own.layer(None);
        own.recovered(Duration::from_millis(1500));
        let lines = lines(&own);
        for line in [
            r#"brig_image_pull_duration_seconds_count{outcome="done"} 1"#,
            "brig_image_pulls_joined_total 1",
            "brig_image_pulled_bytes_total 111",
            r#"brig_image_layers_total{source="registry"} 2"#,
            r#"brig_image_layers_total{source="store"} 1"#,
            "brig_recovery_seconds 1.5",
        ] {
            assert!(lines.iter().any(|seen| seen == line), "{line} in {lines:#?}");
        }
    }
}
