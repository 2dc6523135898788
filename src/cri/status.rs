//! Errors to gRPC statuses: the only place that knows gRPC codes.
//!
//! The chain of causes is printed here, once, joined by ": ".

use std::error::Error;

use tonic::{Code, Status};

use super::from_proto::BadRequest;
use crate::container::ContainerError;
use crate::container::bundle::BundleError;
use crate::id;
use crate::image::pull::{PullError, PullErrorKind};
use crate::image::reference::ReferenceError;
use crate::image::{FindError, LoadError, RootfsError, StoreError};
use crate::monitor::client::MonitorError;
use crate::network::NetworkError;
use crate::pod::PodError;
use crate::stream::{StreamError, TicketError};
use crate::task::chain;

/// What a client can tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The kubelet takes it that the object is gone for good.
    NotFound,
    /// The same request can never succeed.
    InvalidArgument,
    /// It may succeed once the state of something has changed.
    FailedPrecondition,
    AlreadyExists,
    /// Another process cannot be reached; a repeat may help.
    Unavailable,
    ResourceExhausted,
    /// The kubelet takes it that a probe's command ran out of time.
    DeadlineExceeded,
    Unimplemented,
    Internal,
    /// The kubelet prints the message without a code and looks for a sentinel at its start.
    Unknown,
}

impl Kind {
    fn code(self) -> Code {
        match self {
            Kind::NotFound => Code::NotFound,
            Kind::InvalidArgument => Code::InvalidArgument,
            Kind::FailedPrecondition => Code::FailedPrecondition,
            Kind::AlreadyExists => Code::AlreadyExists,
            Kind::Unavailable => Code::Unavailable,
            Kind::ResourceExhausted => Code::ResourceExhausted,
            Kind::DeadlineExceeded => Code::DeadlineExceeded,
            Kind::Unimplemented => Code::Unimplemented,
            Kind::Internal => Code::Internal,
            Kind::Unknown => Code::Unknown,
        }
    }
}

/// Bytes of a message. It travels percent-encoded in a header, and clients limit all headers together to 16 KiB or so.
const MESSAGE_BYTES_MAX: usize = 4096;

/// A status with a message of bounded length.
pub(crate) fn status(kind: Kind, message: impl Into<String>) -> Status {
    let mut message = message.into();
    if message.len() > MESSAGE_BYTES_MAX {
        message.truncate(message.floor_char_boundary(MESSAGE_BYTES_MAX));
        message.push('…');
    }
    Status::new(kind.code(), message)
}

/// The status of an error: `call.await.map_err(refused)`.
pub(crate) fn refused(error: impl Refusal) -> Status {
    let message = chain(&error);
    match error.sentinel() {
        Some(sentinel) => status(error.kind(), format!("{sentinel}: {message}")),
        None => status(error.kind(), message),
    }
}

/// An error that an RPC can end with.
pub(crate) trait Refusal: Error {
    fn kind(&self) -> Kind;

    /// A word that the kubelet looks for at the start of the message.
    fn sentinel(&self) -> Option<&'static str> {
        None
    }
}

impl Refusal for BadRequest {
    fn kind(&self) -> Kind {
        Kind::InvalidArgument
    }
}

impl Refusal for ReferenceError {
    fn kind(&self) -> Kind {
        Kind::InvalidArgument
    }
}

impl Refusal for id::FindError {
    fn kind(&self) -> Kind {
        match self {
            Self::NotFound { .. } => Kind::NotFound,
            Self::Ambiguous { .. } => Kind::InvalidArgument,
        }
    }
}

impl Refusal for PodError {
    fn kind(&self) -> Kind {
        match self {
            Self::Find(error) => error.kind(),
            Self::NoHandler { .. } | Self::NoUserNamespaces { .. } => Kind::InvalidArgument,
            Self::Denied { .. } | Self::NoRuntime { .. } => Kind::FailedPrecondition,
            Self::Exists { .. } | Self::Busy { .. } => Kind::AlreadyExists,
            Self::Forbidden { .. } => Kind::InvalidArgument,
            Self::Ids { .. } => Kind::ResourceExhausted,
            Self::File { source, .. } => of_io(source),
            Self::Container(error) => error.kind(),
            Self::Label { source, .. } => source.kind(),
            Self::Monitor { source, .. } => source.kind(),
            Self::Network { source, .. } => source.kind(),
            Self::BadResources { source, .. } => source.kind(),
            Self::Record { .. } | Self::Resources { .. } | Self::Stats { .. } => Kind::Internal,
        }
    }

    fn sentinel(&self) -> Option<&'static str> {
        match self {
            Self::Container(error) => error.sentinel(),
            _ => None,
        }
    }
}

impl Refusal for ContainerError {
    fn kind(&self) -> Kind {
        match self {
            Self::Find(error) => error.kind(),
            Self::NoImage(_) => Kind::NotFound,
            Self::EmptyCommand
            | Self::RecursiveReadOnly { .. }
            | Self::Relabel { .. }
            | Self::NoStreams { .. }
            | Self::TerminalAndStderr { .. }
            | Self::OtherTerminal { .. } => Kind::InvalidArgument,
            Self::Target { .. } => Kind::FailedPrecondition,
            Self::Rootfs { source, .. } if matches!(**source, RootfsError::SubPath { .. }) => {
                Kind::InvalidArgument
            }
            Self::Denied { .. } | Self::NoLog { .. } | Self::NoStdin { .. } => Kind::FailedPrecondition,
            Self::Exists { .. } | Self::Busy { .. } => Kind::AlreadyExists,
            Self::ExecTimeout { .. } | Self::Unkillable { .. } => Kind::DeadlineExceeded,
            Self::File { source, .. } => of_io(source),
            Self::Monitor { source, .. } => source.kind(),
            Self::Bundle { source, .. } => source.kind(),
            Self::Image { source, .. } => source.kind(),
            Self::Rootfs { .. } | Self::Record { .. } | Self::Stats { .. } => Kind::Internal,
        }
    }

    /// The words of cri-api's `pkg/errors`.
    fn sentinel(&self) -> Option<&'static str> {
        match self {
            Self::RecursiveReadOnly { .. } => Some("RROUnsupported"),
            Self::Rootfs { source, .. } if matches!(**source, RootfsError::SubPath { .. }) => {
                Some("ImageVolumeMountFailed")
            }
            _ => None,
        }
    }
}

/// A bundle is made from the request, the image and what the host has; all but reading a file is the request's.
impl Refusal for BundleError {
    fn kind(&self) -> Kind {
        match self {
            Self::MountSource { source, .. }
            | Self::Device { source, .. }
            | Self::SeccompRead { source, .. } => of_io(source),
            _ => Kind::InvalidArgument,
        }
    }
}

impl Refusal for PullError {
    /// The client hides every code but Unknown from the kubelet's search for a sentinel.
    fn kind(&self) -> Kind {
        match PullError::kind(self) {
            PullErrorKind::Unavailable | PullErrorKind::Stalled | PullErrorKind::Unauthorized => {
                Kind::Unknown
            }
            PullErrorKind::NotFound | PullErrorKind::NoPlatform => Kind::NotFound,
            PullErrorKind::NoSpace => Kind::ResourceExhausted,
            PullErrorKind::Cancelled => Kind::Unavailable,
            PullErrorKind::Verification | PullErrorKind::BadLayer => Kind::FailedPrecondition,
            PullErrorKind::Local => Kind::Internal,
        }
    }

    /// `ErrRegistryUnavailable` of cri-api/pkg/errors.
    fn sentinel(&self) -> Option<&'static str> {
        match PullError::kind(self) {
            PullErrorKind::Unavailable | PullErrorKind::Stalled => Some("RegistryUnavailable"),
            _ => None,
        }
    }
}

impl Refusal for FindError {
    fn kind(&self) -> Kind {
        match self {
            Self::Ambiguous { .. } => Kind::InvalidArgument,
        }
    }
}

impl Refusal for StoreError {
    fn kind(&self) -> Kind {
        match self {
            Self::Find(error) => error.kind(),
            Self::Io { source, .. } => of_io(source),
            Self::Document { .. } | Self::MissingConfig { .. } => Kind::FailedPrecondition,
            Self::Records(_) => Kind::Internal,
        }
    }
}

/// An archive is given by a person: whatever is wrong with it is wrong with the request.
impl Refusal for LoadError {
    fn kind(&self) -> Kind {
        Kind::InvalidArgument
    }
}

impl Refusal for NetworkError {
    fn kind(&self) -> Kind {
        match self {
            error if error.is_bad_request() => Kind::InvalidArgument,
            error if error.is_exhausted() => Kind::ResourceExhausted,
            Self::Config { .. } => Kind::InvalidArgument,
            Self::NotInitialized => Kind::FailedPrecondition,
            Self::Stopping => Kind::Unavailable,
            Self::Bandwidth(_) | Self::Builtin(_) | Self::Cni(_) => Kind::Internal,
        }
    }
}

impl Refusal for StreamError {
    fn kind(&self) -> Kind {
        match self {
            Self::Container(error) => error.kind(),
            Self::Pod(error) => error.kind(),
            Self::Ticket(TicketError::Full) => Kind::ResourceExhausted,
            Self::Ticket(TicketError::NoRandomness) => Kind::Internal,
        }
    }
}

impl Refusal for MonitorError {
    fn kind(&self) -> Kind {
        match self {
            Self::Gone | Self::Broken { .. } | Self::NoAnswer { .. } | Self::Connect { .. } => {
                Kind::Unavailable
            }
            Self::WrongState { .. } | Self::Unsupported { .. } => Kind::FailedPrecondition,
            Self::Invalid { .. } | Self::BadSignal(_) => Kind::InvalidArgument,
            Self::Timeout { .. } => Kind::DeadlineExceeded,
            Self::TooManySessions | Self::TooManyMounts { .. } => Kind::ResourceExhausted,
            // Including a container that the monitor lost: NotFound would tell the kubelet that it never was.
            _ => Kind::Internal,
        }
    }
}

/// A full disk and a path that is not there are not our fault.
fn of_io(error: &std::io::Error) -> Kind {
    use std::io::ErrorKind;
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::OutOfMemory => Kind::ResourceExhausted,
        ErrorKind::NotFound | ErrorKind::NotADirectory | ErrorKind::IsADirectory => Kind::FailedPrecondition,
        _ => Kind::Internal,
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::path::PathBuf;
    use std::sync::Arc;

    use super::*;
    use crate::id::{ContainerId, FindError, PodId};

    #[test]
    fn the_chain_of_causes_is_printed_once() {
        let source = Arc::new(io::Error::new(io::ErrorKind::NotFound, "no such file"));
        let error =
            ContainerError::File { action: "open the mount source", path: PathBuf::from("/x"), source };
        let status = refused(PodError::Container(error));
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert!(status.message().ends_with(": no such file"), "{status}");
        assert_eq!(status.message().matches("no such file").count(), 1);
    }

    #[test]
    fn what_the_kubelet_acts_upon_has_its_own_code() {
        let id = "x".to_owned();
        let (no_pod, no_container) =
            (FindError::not_found::<PodId>(&id), FindError::not_found::<ContainerId>(&id));
        let ambiguous = FindError::Ambiguous { kind: "container", prefix: id.clone(), matches: 2 };
        let timeout = ContainerError::ExecTimeout { command: vec![], id, timeout_s: 1 };
        for (status, code) in [
            (refused(PodError::Find(no_pod)), Code::NotFound),
            (refused(ContainerError::Find(no_container)), Code::NotFound),
            (refused(timeout), Code::DeadlineExceeded),
            (refused(ContainerError::Find(ambiguous)), Code::InvalidArgument),
        ] {
            assert_eq!(status.code(), code);
        }
    }

    #[test]
    fn a_message_stays_within_a_header() {
        let long = status(Kind::Internal, "é".repeat(4096));
        assert_eq!(long.message().len(), 4096 + '…'.len_utf8());
    }
}
