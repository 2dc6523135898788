//! The connection to `brigd`: CRI and admin service over its unix socket.

use std::path::Path;

use tonic::transport::{Channel, Endpoint};

use super::error::CliError;
use crate::daemon::config::UnixAddress;
use crate::proto::admin::admin_client::AdminClient;
use crate::proto::v1::image_service_client::ImageServiceClient;
use crate::proto::v1::runtime_service_client::RuntimeServiceClient;

/// The limit of a message in either direction, as the kubelet's client has it (cri-client `maxMsgSize`).
const MESSAGE_BYTES_MAX: usize = 16 << 20;
/// An ExecSync answer carries up to 16 MiB of each stream.
const EXEC_BYTES_MAX: usize = 2 * (16 << 20) + 4096;

/// Clients of the three services on one connection. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Client {
    pub(super) runtime: RuntimeServiceClient<Channel>,
    pub(super) images: ImageServiceClient<Channel>,
    pub(super) admin: AdminClient<Channel>,
}

impl Client {
    /// Connects, or says why not and what to do.
    pub(super) async fn connect(address: &str) -> Result<Self, CliError> {
        let UnixAddress(path) = UnixAddress::parse(address)
            .map_err(|must| CliError::Address { address: address.to_owned(), must })?;
        let channel = Endpoint::from_shared(format!("unix://{}", path.display()))
            .map_err(|_| CliError::Address {
                address: address.to_owned(),
                must: "a unix:// address".to_owned(),
            })?
            .connect()
            .await
            .map_err(|_| CliError::Unreachable { address: address.to_owned(), why: remedy(&path) })?;
        Ok(Self {
            runtime: RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(EXEC_BYTES_MAX),
            images: ImageServiceClient::new(channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX),
            admin: AdminClient::new(channel),
        })
    }
}

/// What is wrong with the socket, found out by connecting plainly: tonic's error hides the cause.
fn remedy(path: &Path) -> String {
    match std::os::unix::net::UnixStream::connect(path).map_err(|err| err.kind()) {
        Err(std::io::ErrorKind::PermissionDenied) => "permission denied; run brig as root".to_owned(),
        Err(std::io::ErrorKind::NotFound) => {
            "there is no such socket; is brigd running? try `systemctl status brig`, or set BRIG_ADDRESS"
                .to_owned()
        }
        Err(std::io::ErrorKind::ConnectionRefused) => {
            "nothing listens there; brigd has ended: try `systemctl status brig`".to_owned()
        }
        Err(kind) => kind.to_string(),
        Ok(_) => "something listens there but it does not speak gRPC".to_owned(),
    }
}
