//! `[metrics] listen`: the daemon's own metrics over HTTP, for Prometheus.
//!
//! Off unless configured. One path, one method, no body read: whoever can reach the port can ask, so every wait and every
//! number of things here has a bound.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use super::setup::Node;
use crate::container::status::Phase;
use crate::image::Store;
use crate::metrics::own::Own;
use crate::pod::Pods;
use crate::task::blocking;

/// Connections at a time: a Prometheus or two and somebody's curl. More wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 8;

/// How long a connection may take to send its request line and headers.
const HEADER_WAIT: Duration = Duration::from_secs(10);

/// A connection's life. Prometheus keeps its connection between scrapes; closing it now and then costs one handshake.
const CONNECTION_LIFE: Duration = Duration::from_secs(600);

/// After a failed accept, which is a lack of descriptors.
const ACCEPT_AGAIN: Duration = Duration::from_millis(200);

/// Why metrics cannot be served.
#[derive(Debug, thiserror::Error)]
#[error("cannot serve metrics on {address}; give [metrics] listen another address or leave it empty")]
pub(crate) struct ScrapeError {
    address: SocketAddr,
    #[source]
    source: io::Error,
}

/// Serves until the runtime ends.
pub(super) async fn serve(address: SocketAddr, node: &Node) -> Result<(), ScrapeError> {
    let listener = TcpListener::bind(address).await.map_err(|source| ScrapeError { address, source })?;
    let own = node.own.clone();
    own.collect(Box::new(State { pods: node.pods.clone(), store: node.store.clone() }));
    own.collect(Box::new(Process));
    tracing::info!(address = %listener.local_addr().unwrap_or(address), "serving metrics");
    tokio::spawn(accept(listener, own));
    Ok(())
}

async fn accept(listener: TcpListener, own: Own) {
    let seats = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let seat = Arc::clone(&seats).acquire_owned().await.expect("the semaphore is never closed");
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!(error = %error, "cannot accept a connection for metrics");
                tokio::time::sleep(ACCEPT_AGAIN).await;
                continue;
            }
        };
        let own = own.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| answer(own.clone(), request));
            let mut http = hyper::server::conn::http1::Builder::new();
            let connection = http
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_WAIT)
                .serve_connection(TokioIo::new(stream), service);
            // A client that goes away is no event.
            tokio::time::timeout(CONNECTION_LIFE, connection).await.ok();
            drop(seat);
        });
    }
}

async fn answer(own: Own, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let refused = |status: StatusCode| {
        let mut response = Response::new(Full::default());
        *response.status_mut() = status;
        response
    };
    if request.uri().path() != "/metrics" {
        return Ok(refused(StatusCode::NOT_FOUND));
    }
    if request.method() != Method::GET {
        let mut response = refused(StatusCode::METHOD_NOT_ALLOWED);
        response.headers_mut().insert(ALLOW, "GET".parse().expect("a valid header"));
        return Ok(response);
    }
    let mut response = Response::new(Full::from(blocking(move || own.text()).await));
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    response.headers_mut().insert(CONTENT_TYPE, kind.parse().expect("a valid header"));
    Ok(response)
}

/// What the tables hold.
#[derive(Debug)]
struct State {
    pods: Pods,
    store: Store,
}

impl Collector for State {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let pods: Vec<_> = self.pods.list().iter().map(|pod| pod.view()).collect();
        let ready = pods.iter().filter(|pod| pod.ready).count();
        let monitors = pods.iter().filter(|pod| pod.monitor_pid.is_some()).count();
        by_state(&mut encoder, "brig_pods", "Pods", &[("ready", ready), ("not_ready", pods.len() - ready)])?;
        gauge(&mut encoder, "brig_monitors", "Monitor processes that the daemon is connected to", monitors)?;
        let phases: Vec<_> =
            self.pods.containers().list().iter().map(|container| container.view().state).collect();
        let count = |wanted| phases.iter().filter(|phase| **phase == wanted).count();
        let states = [
            ("created", count(Phase::Created)),
            ("running", count(Phase::Running)),
            ("exited", count(Phase::Exited)),
        ];
        by_state(&mut encoder, "brig_containers", "Containers", &states)?;
        gauge(&mut encoder, "brig_images", "Images in the store", self.store.list().len())?;
        let bytes = self.store.usage().used_bytes.0;
        let help = "Space that images and writable layers take";
        let used = ConstGauge::new(i64::try_from(bytes).unwrap_or(i64::MAX));
        used.encode(encoder.encode_descriptor("brig_store", help, Some(&Unit::Bytes), MetricType::Gauge)?)
    }
}

fn gauge(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: usize) -> std::fmt::Result {
    let value = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
    value.encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)
}

fn by_state(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    what: &str,
    states: &[(&'static str, usize)],
) -> std::fmt::Result {
    let help = format!("{what} by state");
    let mut family = encoder.encode_descriptor(name, &help, None, MetricType::Gauge)?;
    for (state, count) in states {
        let value = ConstGauge::new(i64::try_from(*count).unwrap_or(i64::MAX));
        value.encode(family.encode_family(&[("state", *state)])?)?;
    }
    Ok(())
}

/// The daemon's process, under the names that Prometheus' own client libraries use.
#[derive(Debug)]
struct Process;

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        // What cannot be read is left out.
        let Some(seen) = Seen::now() else { return Ok(()) };
        let whole = |value: u64| ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
        for (name, help, value) in [
            ("process_resident_memory_bytes", "Resident memory of the daemon", seen.resident_bytes),
            ("process_virtual_memory_bytes", "Address space of the daemon", seen.virtual_bytes),
            ("process_open_fds", "Open file descriptors of the daemon", seen.open_fds),
            ("process_threads", "Threads of the daemon", seen.threads),
        ] {
            whole(value).encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)?;
        }
        if let Some(max) = rustix::process::getrlimit(rustix::process::Resource::Nofile).current {
            let help = "Soft limit of open file descriptors of the daemon";
            whole(max).encode(encoder.encode_descriptor(
                "process_max_fds",
                help,
                None,
                MetricType::Gauge,
            )?)?;
        }
        let cpu = ConstCounter::new(seen.cpu.as_secs_f64());
        let help = "Processor time of the daemon, user and system";
        cpu.encode(encoder.encode_descriptor("process_cpu_seconds", help, None, MetricType::Counter)?)?;
        let start = ConstGauge::new(seen.started_at.as_secs_f64());
        let help = "When the daemon started, since the epoch";
        start.encode(encoder.encode_descriptor(
            "process_start_time_seconds",
            help,
            None,
            MetricType::Gauge,
        )?)
    }
}

#[derive(Debug, PartialEq)]
struct Seen {
    resident_bytes: u64,
    virtual_bytes: u64,
    open_fds: u64,
    threads: u64,
    cpu: Duration,
    /// Since the epoch.
    started_at: Duration,
}

impl Seen {
    fn now() -> Option<Self> {
        let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
        let uptime = std::fs::read_to_string("/proc/uptime").ok()?;
        let uptime: f64 = uptime.split(' ').next()?.parse().ok()?;
        let booted = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .ok()?
            .checked_sub(Duration::from_secs_f64(uptime))?;
        let open_fds = std::fs::read_dir("/proc/self/fd").ok()?.count() as u64;
        Self::parse(&stat, booted, open_fds)
    }

    /// proc_pid_stat(5); fields are counted from 1, and the second may hold blanks and brackets.
    fn parse(stat: &str, booted: Duration, open_fds: u64) -> Option<Self> {
        let (_, after_name) = stat.rsplit_once(')')?;
        let fields: Vec<&str> = after_name.split_ascii_whitespace().collect();
        let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
        let ticks =
            |count: u64| Duration::from_millis(count * 1000 / rustix::param::clock_ticks_per_second());
        Some(Self {
            resident_bytes: number(24)? * rustix::param::page_size() as u64,
            virtual_bytes: number(23)?,
            open_fds,
            threads: number(20)?,
            cpu: ticks(number(14)? + number(15)?),
            started_at: booted + ticks(number(22)?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_is_read_from_its_stat_line_whatever_its_name_is() {
        let line = "12 (a b) c) S 1 1 1 0 -1 4194560 1 2 3 4 150 50 0 0 20 0 7 0 1000 4096000 25 18446744073709551615 1";
        let seen = Seen::parse(line, Duration::from_secs(100), 9).unwrap();
        let ticks = rustix::param::clock_ticks_per_second();
        assert_eq!(
            seen,
            Seen {
                resident_bytes: 25 * rustix::param::page_size() as u64,
                virtual_bytes: 4_096_000,
                open_fds: 9,
                threads: 7,
                cpu: Duration::from_millis(200_000 / ticks),
                started_at: Duration::from_secs(100) + Duration::from_millis(1_000_000 / ticks),
            }
        );
        assert_eq!(Seen::parse("12 (x", Duration::ZERO, 0), None);
        let now = Seen::now().unwrap();
        assert!(now.resident_bytes > 0 && now.threads > 0 && now.open_fds > 0, "{now:?}");
    }
}
