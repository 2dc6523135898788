//! RuntimeService, one function per RPC, in the order of `proto/runtime/v1/api.proto`.
//!
//! Each reads the request, makes one call down and shapes the answer; whatever is longer is a function below.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::stream::{self, BoxStream};
use futures_util::{Stream, StreamExt};
use ipnet::IpNet;
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::Services;
use super::chunks::{Chunks, chunks};
use super::filter;
use super::from_proto::{self, BadRequest, some_id};
use super::status::{Kind, refused, status};
use super::to_proto;
use crate::container::handler::Handler;
use crate::container::status::Phase;
use crate::container::{Container, Containers};
use crate::events::{Event, EventKind};
use crate::pod::Pod;
use crate::proto::v1::runtime_service_server::RuntimeService;
use crate::proto::v1::*;
use crate::task::{chain, detached};
use crate::units::UnixNanos;

type Answer<T> = Result<Response<T>, Status>;

/// Stats read at the same time: each reads a dozen small files, which is the kernel's work and not the disk's.
const STATS_AT_ONCE: usize = 8;

#[derive(Debug)]
pub(super) struct Runtime {
    all: Services,
    /// The server stops: calls without an end of their own end now.
    stopping: CancellationToken,
}

impl Runtime {
    pub(super) fn new(all: Services, stopping: CancellationToken) -> Self {
        Self { all, stopping }
    }

    fn containers(&self) -> &Containers {
        self.all.pods.containers()
    }
}

#[tonic::async_trait]
impl RuntimeService for Runtime {
    async fn version(&self, _: Request<VersionRequest>) -> Answer<VersionResponse> {
        Ok(Response::new(VersionResponse {
            version: "0.1.0".into(),
            runtime_name: "brig".into(),
            runtime_version: env!("CARGO_PKG_VERSION").into(),
            runtime_api_version: "v1".into(),
        }))
    }

    async fn run_pod_sandbox(&self, request: Request<RunPodSandboxRequest>) -> Answer<RunPodSandboxResponse> {
        let spec = from_proto::pod::pod_spec(request.into_inner()).map_err(refused)?;
        let id = self.all.pods.run(spec).await.map_err(refused)?;
        Ok(Response::new(RunPodSandboxResponse { pod_sandbox_id: id.to_string() }))
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<StopPodSandboxRequest>,
    ) -> Answer<StopPodSandboxResponse> {
        let id = pod_id(request.into_inner().pod_sandbox_id)?;
        self.all.pods.stop(&id).await.map_err(refused)?;
        Ok(Response::new(StopPodSandboxResponse {}))
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<RemovePodSandboxRequest>,
    ) -> Answer<RemovePodSandboxResponse> {
        let id = pod_id(request.into_inner().pod_sandbox_id)?;
        self.all.pods.remove(&id).await.map_err(refused)?;
        Ok(Response::new(RemovePodSandboxResponse {}))
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<PodSandboxStatusRequest>,
    ) -> Answer<PodSandboxStatusResponse> {
        let request = request.into_inner();
        let pod = self.all.pods.find(&pod_id(request.pod_sandbox_id)?).map_err(refused)?;
        let info = if request.verbose { info(&pod_info(&pod)) } else { BTreeMap::new() };
        Ok(Response::new(PodSandboxStatusResponse {
            status: Some(to_proto::pod_status(&pod.view())),
            info,
            containers_statuses: self.statuses_of(&pod),
            timestamp: UnixNanos::now().0,
        }))
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<ListPodSandboxRequest>,
    ) -> Answer<ListPodSandboxResponse> {
        let items = self.pods(request.into_inner().filter);
        Ok(Response::new(ListPodSandboxResponse { items }))
    }

    type StreamPodSandboxesStream = Chunks<StreamPodSandboxesResponse>;

    async fn stream_pod_sandboxes(
        &self,
        request: Request<StreamPodSandboxesRequest>,
    ) -> Answer<Self::StreamPodSandboxesStream> {
        let items = self.pods(request.into_inner().filter);
        Ok(Response::new(chunks(items, |pod_sandboxes| StreamPodSandboxesResponse { pod_sandboxes })))
    }

    async fn create_container(
        &self,
        request: Request<CreateContainerRequest>,
    ) -> Answer<CreateContainerResponse> {
        let request = request.into_inner();
        let pod = pod_id(request.pod_sandbox_id)?;
        let spec = from_proto::container::container_spec(request.config).map_err(refused)?;
        let found = self.all.pods.find(&pod).map_err(refused)?;
        from_proto::container::fits_pod(&spec, found.spec()).map_err(refused)?;
        let id = self.all.pods.create_container(&pod, spec).await.map_err(refused)?;
        Ok(Response::new(CreateContainerResponse { container_id: id.to_string() }))
    }

    async fn start_container(
        &self,
        request: Request<StartContainerRequest>,
    ) -> Answer<StartContainerResponse> {
        let (id, all) = (container_id(request.into_inner().container_id)?, self.containers().clone());
        detached(async move { all.start(&id).await }).await.map_err(refused)?;
        Ok(Response::new(StartContainerResponse {}))
    }

    async fn stop_container(&self, request: Request<StopContainerRequest>) -> Answer<StopContainerResponse> {
        let request = request.into_inner();
        let id = container_id(request.container_id)?;
        self.containers().stop(&id, from_proto::grace(request.timeout)).await.map_err(refused)?;
        Ok(Response::new(StopContainerResponse {}))
    }

    async fn remove_container(
        &self,
        request: Request<RemoveContainerRequest>,
    ) -> Answer<RemoveContainerResponse> {
        let id = container_id(request.into_inner().container_id)?;
        self.containers().remove(&id).await.map_err(refused)?;
        Ok(Response::new(RemoveContainerResponse {}))
    }

    async fn list_containers(
        &self,
        request: Request<ListContainersRequest>,
    ) -> Answer<ListContainersResponse> {
        let containers = self.listed(request.into_inner().filter);
        Ok(Response::new(ListContainersResponse { containers }))
    }

    type StreamContainersStream = Chunks<StreamContainersResponse>;

    async fn stream_containers(
        &self,
        request: Request<StreamContainersRequest>,
    ) -> Answer<Self::StreamContainersStream> {
        let items = self.listed(request.into_inner().filter);
        Ok(Response::new(chunks(items, |containers| StreamContainersResponse { containers })))
    }

    async fn container_status(
        &self,
        request: Request<ContainerStatusRequest>,
    ) -> Answer<ContainerStatusResponse> {
        let request = request.into_inner();
        let container = self.containers().find(&container_id(request.container_id)?).map_err(refused)?;
        let info = match request.verbose {
            true => info(&self.container_info(&container).await),
            false => BTreeMap::new(),
        };
        let status = Some(to_proto::container_status(&container.view()));
        Ok(Response::new(ContainerStatusResponse { status, info }))
    }

    async fn update_container_resources(
        &self,
        request: Request<UpdateContainerResourcesRequest>,
    ) -> Answer<UpdateContainerResourcesResponse> {
        let request = request.into_inner();
        let (id, all) = (container_id(request.container_id.clone())?, self.containers().clone());
        let change = from_proto::container::container_update(request).map_err(refused)?;
        detached(async move { all.update_resources(&id, change).await }).await.map_err(refused)?;
        Ok(Response::new(UpdateContainerResourcesResponse {}))
    }

    async fn reopen_container_log(
        &self,
        request: Request<ReopenContainerLogRequest>,
    ) -> Answer<ReopenContainerLogResponse> {
        let (id, all) = (container_id(request.into_inner().container_id)?, self.containers().clone());
        detached(async move { all.reopen_log(&id).await }).await.map_err(refused)?;
        Ok(Response::new(ReopenContainerLogResponse {}))
    }

    /// Not detached: a command without a timeout ends when its caller goes away.
    async fn exec_sync(&self, request: Request<ExecSyncRequest>) -> Answer<ExecSyncResponse> {
        let request = request.into_inner();
        let id = container_id(request.container_id)?;
        let (cmd, timeout) = from_proto::exec_sync(request.cmd, request.timeout).map_err(refused)?;
        let output = self.containers().exec_sync(&id, cmd, timeout).await.map_err(refused)?;
        let (stdout, stderr, exit_code) = (output.stdout, output.stderr, output.exit_code);
        Ok(Response::new(ExecSyncResponse { stdout, stderr, exit_code }))
    }

    async fn exec(&self, request: Request<ExecRequest>) -> Answer<ExecResponse> {
        let request = request.into_inner();
        let id = container_id(request.container_id.clone())?;
        let options = from_proto::exec(request).map_err(refused)?;
        let url = self.all.streams.exec(&id, options).map_err(refused)?;
        Ok(Response::new(ExecResponse { url }))
    }

    async fn attach(&self, request: Request<AttachRequest>) -> Answer<AttachResponse> {
        let request = request.into_inner();
        let streams = from_proto::attach(&request);
        let id = container_id(request.container_id)?;
        let url = self.all.streams.attach(&id, streams).map_err(refused)?;
        Ok(Response::new(AttachResponse { url }))
    }

    async fn port_forward(&self, request: Request<PortForwardRequest>) -> Answer<PortForwardResponse> {
        let request = request.into_inner();
        let ports = from_proto::ports(&request.port).map_err(refused)?;
        let id = pod_id(request.pod_sandbox_id)?;
        let url = self.all.streams.port_forward(&id, ports).map_err(refused)?;
        Ok(Response::new(PortForwardResponse { url }))
    }

    async fn container_stats(
        &self,
        request: Request<ContainerStatsRequest>,
    ) -> Answer<ContainerStatsResponse> {
        let id = container_id(request.into_inner().container_id)?;
        let container = self.containers().find(&id).map_err(refused)?;
        let usage = self.containers().stats(&container).await.map_err(refused)?;
        let stats = Some(to_proto::container_stats(&container.view(), &usage));
        Ok(Response::new(ContainerStatsResponse { stats }))
    }

    async fn list_container_stats(
        &self,
        request: Request<ListContainerStatsRequest>,
    ) -> Answer<ListContainerStatsResponse> {
        let stats = self.container_stats_of(request.into_inner().filter).await;
        Ok(Response::new(ListContainerStatsResponse { stats }))
    }

    type StreamContainerStatsStream = Chunks<StreamContainerStatsResponse>;

    async fn stream_container_stats(
        &self,
        request: Request<StreamContainerStatsRequest>,
    ) -> Answer<Self::StreamContainerStatsStream> {
        let items = self.container_stats_of(request.into_inner().filter).await;
        Ok(Response::new(chunks(items, |container_stats| StreamContainerStatsResponse { container_stats })))
    }

    async fn pod_sandbox_stats(
        &self,
        request: Request<PodSandboxStatsRequest>,
    ) -> Answer<PodSandboxStatsResponse> {
        let pod = self.all.pods.find(&pod_id(request.into_inner().pod_sandbox_id)?).map_err(refused)?;
        let stats = Some(self.stats_of_pod(&pod).await?);
        Ok(Response::new(PodSandboxStatsResponse { stats }))
    }

    async fn list_pod_sandbox_stats(
        &self,
        request: Request<ListPodSandboxStatsRequest>,
    ) -> Answer<ListPodSandboxStatsResponse> {
        let stats = self.pod_stats_of(request.into_inner().filter).await;
        Ok(Response::new(ListPodSandboxStatsResponse { stats }))
    }

    type StreamPodSandboxStatsStream = Chunks<StreamPodSandboxStatsResponse>;

    async fn stream_pod_sandbox_stats(
        &self,
        request: Request<StreamPodSandboxStatsRequest>,
    ) -> Answer<Self::StreamPodSandboxStatsStream> {
        let items = self.pod_stats_of(request.into_inner().filter).await;
        Ok(Response::new(chunks(items, |pod_sandbox_stats| StreamPodSandboxStatsResponse {
            pod_sandbox_stats,
        })))
    }

    async fn update_runtime_config(
        &self,
        request: Request<UpdateRuntimeConfigRequest>,
    ) -> Answer<UpdateRuntimeConfigResponse> {
        let subnets = pod_subnets(request.into_inner().runtime_config).map_err(refused)?;
        if !subnets.is_empty() {
            let told = self.all.pods.network().set_pod_cidr(&subnets).map_err(refused)?;
            tracing::info!(?subnets, ?told, "the cluster gave this node its pod subnets");
        }
        Ok(Response::new(UpdateRuntimeConfigResponse {}))
    }

    async fn status(&self, request: Request<StatusRequest>) -> Answer<StatusResponse> {
        let network = self.all.pods.network().status().await;
        let condition = |kind: &str, status, reason: String, message: String| RuntimeCondition {
            r#type: kind.into(),
            status,
            reason,
            message,
        };
        let conditions = vec![
            condition("RuntimeReady", true, String::new(), String::new()),
            condition("NetworkReady", network.ready, network.reason, network.message),
        ];
        Ok(Response::new(StatusResponse {
            status: Some(RuntimeStatus { conditions }),
            info: if request.into_inner().verbose { self.own_info() } else { BTreeMap::new() },
            runtime_handlers: self.handlers(),
            features: Some(RuntimeFeatures {
                supplemental_groups_policy: true,
                user_namespaces_host_network: true,
            }),
        }))
    }

    async fn checkpoint_container(
        &self,
        _: Request<CheckpointContainerRequest>,
    ) -> Answer<CheckpointContainerResponse> {
        Err(not_yet("CheckpointContainer", "no handler of this server can write checkpoints"))
    }

    type GetContainerEventsStream = BoxStream<'static, Result<ContainerEventResponse, Status>>;

    async fn get_container_events(
        &self,
        _: Request<GetEventsRequest>,
    ) -> Answer<Self::GetContainerEventsStream> {
        let stopping = self.stopping.clone().cancelled_owned();
        Ok(Response::new(events(self.all.clone()).take_until(stopping).boxed()))
    }

    async fn list_metric_descriptors(
        &self,
        _: Request<ListMetricDescriptorsRequest>,
    ) -> Answer<ListMetricDescriptorsResponse> {
        Ok(Response::new(ListMetricDescriptorsResponse { descriptors: to_proto::metric_descriptors() }))
    }

    async fn list_pod_sandbox_metrics(
        &self,
        _: Request<ListPodSandboxMetricsRequest>,
    ) -> Answer<ListPodSandboxMetricsResponse> {
        Ok(Response::new(ListPodSandboxMetricsResponse { pod_metrics: self.metrics().await }))
    }

    type StreamPodSandboxMetricsStream = Chunks<StreamPodSandboxMetricsResponse>;

    async fn stream_pod_sandbox_metrics(
        &self,
        _: Request<StreamPodSandboxMetricsRequest>,
    ) -> Answer<Self::StreamPodSandboxMetricsStream> {
        let items = self.metrics().await;
        Ok(Response::new(chunks(items, |pod_sandbox_metrics| StreamPodSandboxMetricsResponse {
            pod_sandbox_metrics,
        })))
    }

    async fn runtime_config(&self, _: Request<RuntimeConfigRequest>) -> Answer<RuntimeConfigResponse> {
        let driver =
            if self.all.about.systemd_cgroups { CgroupDriver::Systemd } else { CgroupDriver::Cgroupfs };
        let linux = Some(LinuxRuntimeConfiguration { cgroup_driver: driver.into() });
        Ok(Response::new(RuntimeConfigResponse { linux }))
    }

    async fn update_pod_sandbox_resources(
        &self,
        request: Request<UpdatePodSandboxResourcesRequest>,
    ) -> Answer<UpdatePodSandboxResourcesResponse> {
        let request = request.into_inner();
        let (id, pods) = (pod_id(request.pod_sandbox_id)?, self.all.pods.clone());
        let change = from_proto::pod::pod_update(request.overhead, request.resources).map_err(refused)?;
        let update = async move { pods.update_resources(&id, change.overhead, change.resources).await };
        detached(update).await.map_err(refused)?;
        Ok(Response::new(UpdatePodSandboxResourcesResponse {}))
    }
}

fn pod_id(id: String) -> Result<String, Status> {
    some_id("pod_sandbox_id", id).map_err(refused)
}

fn container_id(id: String) -> Result<String, Status> {
    some_id("container_id", id).map_err(refused)
}

fn not_yet(rpc: &str, instead: &str) -> Status {
    status(Kind::Unimplemented, format!("{rpc} is not implemented: {instead}"))
}

impl Runtime {
    fn pods(&self, filter: Option<PodSandboxFilter>) -> Vec<PodSandbox> {
        let filter = filter.unwrap_or_default();
        let views = self.all.pods.list().into_iter().map(|pod| pod.view());
        views.filter(|view| filter::pod(&filter, view)).map(|view| to_proto::pod(&view)).collect()
    }

    fn listed(&self, filter: Option<ContainerFilter>) -> Vec<crate::proto::v1::Container> {
        let filter = filter.unwrap_or_default();
        let views = self.containers().list().into_iter().map(|container| container.view());
        views.filter(|view| filter::container(&filter, view)).map(|view| to_proto::container(&view)).collect()
    }

    fn statuses_of(&self, pod: &Pod) -> Vec<ContainerStatus> {
        let containers = self.containers().of_pod(pod.id());
        containers.iter().map(|container| to_proto::container_status(&container.view())).collect()
    }

    /// One that cannot be read, usually because it has just ended, does not spoil the list.
    async fn container_stats_of(&self, filter: Option<ContainerStatsFilter>) -> Vec<ContainerStats> {
        let filter = filter.unwrap_or_default();
        let mut wanted = self.containers().list();
        wanted.retain(|container| filter::container_stats(&filter, &container.view()));
        self.stats_of(wanted).await
    }

    async fn stats_of(&self, containers: Vec<Arc<Container>>) -> Vec<ContainerStats> {
        let read = stream::iter(containers).map(|container| async move {
            match self.containers().stats(&container).await {
                Ok(usage) => Some(to_proto::container_stats(&container.view(), &usage)),
                Err(error) => {
                    tracing::debug!(container = %container.id(), error = %error, "no stats");
                    None
                }
            }
        });
        read.buffered(STATS_AT_ONCE).filter_map(std::future::ready).collect().await
    }

    async fn pod_stats_of(&self, filter: Option<PodSandboxStatsFilter>) -> Vec<PodSandboxStats> {
        let filter = filter.unwrap_or_default();
        let mut wanted = self.all.pods.list();
        wanted.retain(|pod| filter::pod_stats(&filter, &pod.view()));
        let read = stream::iter(wanted).map(|pod| async move { self.stats_of_pod(&pod).await.ok() });
        read.buffered(STATS_AT_ONCE).filter_map(std::future::ready).collect().await
    }

    async fn stats_of_pod(&self, pod: &Arc<Pod>) -> Result<PodSandboxStats, Status> {
        let usage = self.all.pods.stats(pod).await.map_err(refused)?;
        let filter = ContainerStatsFilter::default();
        let mut running = self.containers().of_pod(pod.id());
        running.retain(|container| filter::container_stats(&filter, &container.view()));
        Ok(to_proto::pod_stats(&pod.view(), &usage, self.stats_of(running).await))
    }

    /// Of every pod that is ready. What has just ended is left out.
    async fn metrics(&self) -> Vec<PodSandboxMetrics> {
        let mut ready = self.all.pods.list();
        ready.retain(|pod| pod.view().ready);
        let read = stream::iter(ready).map(|pod| async move { self.metrics_of(&pod).await });
        read.buffered(STATS_AT_ONCE).collect().await
    }

    async fn metrics_of(&self, pod: &Arc<Pod>) -> PodSandboxMetrics {
        let view = pod.view();
        let mut containers = Vec::new();
        for container in self.containers().of_pod(pod.id()) {
            let own = container.view();
            if own.state != Phase::Running {
                continue;
            }
            match self.containers().metrics(&container).await {
                Ok(reading) => containers.push(to_proto::container_metrics(
                    &view,
                    &own,
                    Containers::cgroup_path(&container),
                    reading.at,
                    reading.samples(),
                )),
                Err(error) => tracing::debug!(container = %container.id(), error = %error, "no metrics"),
            }
        }
        let (at, samples) = (UnixNanos::now(), self.all.pods.metrics(pod).await);
        to_proto::pod_metrics(&view, pod.cgroup_path(), at, samples, containers)
    }

    /// One entry per handler by name, and the default one once more under the empty name.
    fn handlers(&self) -> Vec<RuntimeHandler> {
        let pods = &self.all.pods;
        let entry = |name: &str, handler: &Handler| RuntimeHandler {
            name: name.to_owned(),
            features: Some(RuntimeHandlerFeatures {
                recursive_read_only_mounts: handler.features.recursive_read_only,
                user_namespaces: handler.features.user_namespaces,
            }),
        };
        let mut all: Vec<_> = pods.handlers().iter().map(|(name, handler)| entry(name, handler)).collect();
        if let Some(default) = pods.handlers().get(pods.default_handler()) {
            all.push(entry("", default));
        }
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    async fn container_info(&self, container: &Container) -> serde_json::Value {
        let view = container.view();
        serde_json::json!({
            "sandboxID": view.pod_id,
            "pid": view.pid,
            "cgroup": container.saved.cgroup,
            "privileged": view.spec.security.privileged,
            "config": *view.spec,
            "runtimeSpec": said(self.containers().oci_config::<serde_json::Value>(container.id()).await),
        })
    }

    /// `config.stateDir` is what critest looks at to learn which file system containers are on.
    fn own_info(&self) -> BTreeMap<String, String> {
        let about = &self.all.about;
        let config = serde_json::json!({ "stateDir": about.root, "runDir": about.run, "toml": about.toml });
        let handlers: serde_json::Map<_, _> = self
            .all
            .pods
            .handlers()
            .iter()
            .map(|(name, handler)| {
                let told = serde_json::json!({
                    "path": handler.path,
                    "level": handler.level(),
                    "installed": handler.path.exists(),
                });
                (name.clone(), told)
            })
            .collect();
        BTreeMap::from([
            ("config".to_owned(), config.to_string()),
            ("handlers".to_owned(), serde_json::Value::Object(handlers).to_string()),
        ])
    }
}

fn info(value: &serde_json::Value) -> BTreeMap<String, String> {
    BTreeMap::from([("info".to_owned(), value.to_string())])
}

fn pod_info(pod: &Pod) -> serde_json::Value {
    let (view, live) = (pod.view(), pod.live());
    serde_json::json!({
        "sandboxID": view.id,
        "pid": view.monitor_pid,
        "monitorPid": view.monitor_pid,
        "netns": view.netns,
        "handler": pod.handler.name,
        "privileged": view.spec.security.privileged,
        // As last told; `config` is what the pod was run with.
        "resources": live.resources,
        "overhead": live.overhead,
        "config": *view.spec,
        "runtimeSpec": said(pod.oci_config()),
    })
}

/// What could not be told is left out: the status matters more than the details.
fn said<T>(found: Result<T, impl std::error::Error>) -> Option<T> {
    found
        .inspect_err(|error| tracing::warn!(error = %chain(error), "a verbose status lacks its runtimeSpec"))
        .ok()
}

/// `10.1.0.0/24`, or one of each family joined by a comma.
fn pod_subnets(config: Option<RuntimeConfig>) -> Result<Vec<IpNet>, BadRequest> {
    let cidrs = config.and_then(|config| config.network_config).unwrap_or_default().pod_cidr;
    let each = cidrs.split(',').map(str::trim).filter(|cidr| !cidr.is_empty());
    each.map(|cidr| {
        cidr.parse().map_err(|_| {
            let limit = "must be a range of addresses such as \"10.1.0.0/24\"";
            BadRequest::malformed("runtime_config.network_config.pod_cidr", cidr, limit)
        })
    })
    .collect()
}

/// Events from now on. A client that falls too far behind is cut off, so that it knows to list again: silently skipping
/// would leave it with a wrong picture.
fn events(all: Services) -> impl Stream<Item = Result<ContainerEventResponse, Status>> + Send + 'static {
    let source = Some((all.bus.subscribe(), all));
    stream::unfold(source, |source| async move {
        let (mut receiver, all) = source?;
        match receiver.recv().await {
            Ok(event) => Some((Ok(event_response(&all, &event)), Some((receiver, all)))),
            Err(RecvError::Lagged(missed)) => {
                let message = format!("the client is too slow and has missed {missed} events; list again");
                Some((Err(status(Kind::ResourceExhausted, message)), None))
            }
            Err(RecvError::Closed) => None,
        }
    })
}

fn event_response(all: &Services, event: &Event) -> ContainerEventResponse {
    let containers = all.pods.containers().of_pod(&event.pod);
    ContainerEventResponse {
        container_id: event.id.clone(),
        container_event_type: match event.kind {
            EventKind::Created => ContainerEventType::ContainerCreatedEvent,
            EventKind::Started => ContainerEventType::ContainerStartedEvent,
            EventKind::Stopped => ContainerEventType::ContainerStoppedEvent,
            EventKind::Deleted => ContainerEventType::ContainerDeletedEvent,
        }
        .into(),
        created_at: event.at.0,
        // The kubelet drops an event without it, that of a removed pod too; a removed container is only missing below.
        pod_sandbox_status: all.pods.of_event(&event.pod).map(|pod| to_proto::pod_status(&pod.view())),
        containers_statuses: containers.iter().map(|it| to_proto::container_status(&it.view())).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pod_subnets_come_one_per_family() {
        let subnets = |pod_cidr: &str| {
            let network_config = Some(NetworkConfig { pod_cidr: pod_cidr.into() });
            pod_subnets(Some(RuntimeConfig { network_config })).map_err(|err| err.to_string())
        };
        assert_eq!(subnets(""), Ok(vec![]));
        let both = vec!["10.1.0.0/24".parse().unwrap(), "fd00:1::/64".parse().unwrap()];
        assert_eq!(subnets("10.1.0.0/24, fd00:1::/64"), Ok(both));
        assert_eq!(
            subnets("10.1.0.0"),
            Err("runtime_config.network_config.pod_cidr is \"10.1.0.0\": must be a range of addresses such as \
                 \"10.1.0.0/24\""
                .into())
        );
        assert_eq!(pod_subnets(None), Ok(vec![]));
    }
}
