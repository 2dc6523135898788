//! The gRPC edge: requests in, calls down, answers out. Nothing below knows protobuf or gRPC.
//!
//! ```text
//! runtime.rs     one short fn per RuntimeService RPC, in the order of the .proto file
//! image.rs       the same for ImageService
//! admin.rs       the same for Brig's own service
//! from_proto/    requests to our types; refuses what is malformed
//! to_proto/      our types to answers
//! filter.rs      the filters of the list calls
//! chunks.rs      the Stream* list calls
//! status.rs      errors to gRPC codes
//! trace.rs       a span around every call, and a net under it
//! socket.rs      the unix socket
//! ```
//!
//! A mutating call runs to its end even if the client goes away: the verbs in `pod/` and `container/` see to that
//! themselves, because calls of one to another need it too.

mod admin;
mod chunks;
mod filter;
mod from_proto;
mod image;
mod runtime;
mod socket;
mod status;
mod to_proto;
mod trace;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::UnixListener;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server as Grpc;

use crate::events::Bus;
use crate::image::Store;
use crate::image::pull::Puller;
use crate::metrics::own::Own;
use crate::pod::Pods;
use crate::proto::admin::admin_server::AdminServer;
use crate::proto::v1::image_service_server::ImageServiceServer;
use crate::proto::v1::runtime_service_server::RuntimeServiceServer;
use crate::stream::Streams;

/// Bytes of one message in either direction: what the kubelet's client accepts.
const MESSAGE_BYTES_MAX: usize = 16 << 20;
/// RPCs in progress on one connection. A kubelet has at most a few per pod; without a bound a client could make the
/// daemon hold any number of them.
const STREAMS_MAX: u32 = 2048;

/// What the calls work on. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Services {
    pub(crate) about: About,
    pub(crate) pods: Pods,
    pub(crate) store: Store,
    pub(crate) puller: Puller,
    pub(crate) bus: Bus,
    pub(crate) own: Own,
    pub(crate) streams: Streams,
}

/// What the daemon says of itself.
#[derive(Debug, Clone)]
pub(crate) struct About {
    /// The data directory.
    pub(crate) root: PathBuf,
    /// The run directory.
    pub(crate) run: PathBuf,
    /// The systemd cgroup driver instead of cgroupfs.
    pub(crate) systemd_cgroups: bool,
    /// The configuration in force.
    pub(crate) toml: String,
}

/// Why the daemon cannot serve.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServeError {
    #[error("another server answers on {}; stop it or give this one another --listen", .0.display())]
    InUse(PathBuf),
    #[error("cannot {action} {}", path.display())]
    Socket {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot serve gRPC")]
    Grpc(#[source] tonic::transport::Error),
}

/// A socket that listens; connections queue until [`Server::serve`].
#[derive(Debug)]
pub(crate) struct Server {
    listener: UnixListener,
    path: PathBuf,
    services: Services,
}

/// Listens on the unix socket `path`. A stale socket is replaced, one that answers is not.
///
/// Must be called within the async runtime.
pub(crate) fn bind(path: impl AsRef<Path>, services: Services) -> Result<Server, ServeError> {
    let path = path.as_ref().to_owned();
    Ok(Server { listener: socket::listen(&path)?, path, services })
}

impl Server {
    /// Answers calls until `stop`, then lets those in progress end for at most `grace`, and removes the socket.
    pub(crate) async fn serve(
        self,
        stop: impl Future<Output = ()> + Send + 'static,
        grace: Duration,
    ) -> Result<(), ServeError> {
        let Self { listener, path, services } = self;
        let endless = CancellationToken::new();
        let runtime = RuntimeServiceServer::new(runtime::Runtime::new(services.clone(), endless.clone()))
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let image = ImageServiceServer::new(image::Images::new(services.clone()))
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let router = Grpc::builder()
            .max_concurrent_streams(STREAMS_MAX)
            .layer(trace::TraceLayer { own: services.own.clone() })
            .add_service(runtime)
            .add_service(image)
            .add_service(AdminServer::new(admin::Operator::new(services)));

        let (stopping, stopped) = oneshot::channel();
        let stop = async move {
            stop.await;
            // Streams of events would hold a graceful end for ever.
            endless.cancel();
            // Nobody listens any more when serving has failed first.
            stopping.send(()).ok();
        };
        // A pull, say, may take longer than a stop.
        let out_of_patience = async move {
            match stopped.await {
                Ok(()) => tokio::time::sleep(grace).await,
                Err(_) => std::future::pending().await,
            }
        };
        let served = tokio::select! {
            served = router.serve_with_incoming_shutdown(socket::connections(listener), stop) => served.map_err(ServeError::Grpc),
            () = out_of_patience => {
                tracing::info!("calls still in progress were left after {grace:?}");
                Ok(())
            }
        };
        std::fs::remove_file(&path).ok();
        served
    }
}
