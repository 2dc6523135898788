//! What can go wrong in a command, in one clear line with a remedy, and the exit code that follows.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use tonic::{Code, Status};

/// Why a command failed. Printed once, by [`super::main`].
#[derive(Debug, thiserror::Error)]
pub(super) enum CliError {
    #[error("the daemon's address must be {must}, not {address:?}; see --address and BRIG_ADDRESS")]
    Address { address: String, must: String },
    #[error("cannot reach brigd at {address}: {why}")]
    Unreachable { address: String, why: String },
    #[error("cannot {what}: {}", told(.status))]
    Refused { what: String, status: Box<Status> },
    #[error("no {kind} is called {name:?}; `{list}` lists them")]
    NotFound { kind: &'static str, name: String, list: &'static str },
    #[error("{name:?} could be any of {}; use more of the id", .candidates.join(", "))]
    Ambiguous { name: String, candidates: Vec<String> },
    #[error("{option} {value:?} must be {must}")]
    Argument { option: &'static str, value: String, must: &'static str },
    #[error("cannot {what} {}", .path.display())]
    File {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot write the output")]
    Output(#[source] io::Error),
    #[error("cannot {0}")]
    Local(&'static str, #[source] io::Error),
    #[error("cannot reach the streams of brigd at {address}")]
    Dial {
        address: String,
        #[source]
        source: io::Error,
    },
    #[error("cannot agree on TLS with the streams of brigd at {address}; {remedy}")]
    StreamTls {
        address: String,
        remedy: &'static str,
        #[source]
        source: rustls::Error,
    },
    #[error(transparent)]
    Tls(#[from] crate::stream::tls::TlsError),
    #[error("{0}")]
    Stream(String),
    #[error("lost the connection to brigd before the end was known; what ran in the pod may go on")]
    StreamBroken,
    #[error("cannot listen on {address}")]
    Listen {
        address: String,
        #[source]
        source: io::Error,
    },
    #[error("brigd's answer lacks {0}; are brig and brigd of the same version?")]
    Incomplete(&'static str),
    #[error(transparent)]
    Config(#[from] crate::daemon::config::ConfigError),
}

impl CliError {
    /// For `map_err` on a call; `what` continues "cannot …".
    pub(super) fn refused(what: impl Into<String>) -> impl FnOnce(Status) -> Self {
        let what = what.into();
        move |status| Self::Refused { what, status: Box::new(status) }
    }

    /// Whether the reader of our output has gone, as `brig ps | head` does. That is no failure of ours.
    pub(super) fn is_broken_pipe(&self) -> bool {
        matches!(self, Self::Output(err) if err.kind() == io::ErrorKind::BrokenPipe)
    }

    /// 125 as Docker and Podman have it for "the tool failed, not the command in the container".
    pub(super) fn exit_code(&self) -> ExitCode {
        ExitCode::from(125)
    }
}

/// The status as a fragment, with a remedy where the code alone suggests one.
fn told(status: &Status) -> String {
    let message = match status.message() {
        "" => status.code().description(),
        message => message,
    };
    match status.code() {
        Code::Unavailable => {
            format!("the connection to brigd broke ({message}); `journalctl -u brig` may say why")
        }
        Code::Unimplemented => format!("this brigd does not do that yet ({message})"),
        _ => message.to_owned(),
    }
}
