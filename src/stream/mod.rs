//! Exec, attach and port-forward: what `kubectl` streams through the API server and the kubelet to this machine.
//!
//! ```text
//! Exec, Attach, PortForward (gRPC)        Streams::exec … keeps what was asked under a token and answers a URL
//! GET or POST /exec/TOKEN (HTTP)          server.rs redeems the token, handshake.rs agrees on a protocol, 101
//!   SPDY/3.1                              spdy/        a stream per direction, named by its headers
//!   WebSocket                             websocket/   a channel per direction, named by its number
//! exec.rs, attach.rs                      session.rs makes one shape of both; pump.rs moves the bytes
//! forward.rs                              a pair of streams per connection, opened inside the pod's network namespace
//! ```
//!
//! # Ends
//!
//! A client that goes away leaves its command running, as it does with other runtimes: the command sees the end of its
//! input, a broken pipe or a hangup, and may go on. A connection on which no data moves for `stream.idle_timeout` is
//! closed, which looks the same. Nothing here outlives its connection.
//!
//! # Bounds
//!
//! Tickets wait for a minute, at most [`ticket`] says how many. Connections are bounded by [`server`], those
//! without a token by [`greeting`]. Every queue between a pipe
//! and a socket is a few chunks long, so a slow client slows down its own command and nothing else.

mod attach;
mod exec;
mod forward;
mod greeting;
mod handshake;
mod idle;
mod pump;
mod server;
mod session;
pub(crate) mod spdy;
mod ticket;
pub(crate) mod tls;
pub(crate) mod websocket;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use crate::container::ContainerError;
use crate::container::exec::{ExecOptions, Streams as Wanted};
use crate::pod::{PodError, Pods};

pub(crate) use server::{ServerError, Settings, bind};
pub(crate) use ticket::TicketError;

use ticket::Tickets;

/// What a URL stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Task {
    Exec {
        container: String,
        options: ExecOptions,
    },
    Attach {
        container: String,
        streams: Wanted,
    },
    /// `ports` are those of the request; only WebSocket clients need them, SPDY clients name a port per stream.
    Forward {
        pod: String,
        ports: Vec<u16>,
    },
}

impl Task {
    fn verb(&self) -> &'static str {
        match self {
            Self::Exec { .. } => "exec",
            Self::Attach { .. } => "attach",
            Self::Forward { .. } => "portforward",
        }
    }
}

/// Why no URL was given out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StreamError {
    #[error(transparent)]
    Container(#[from] ContainerError),
    #[error(transparent)]
    Pod(#[from] PodError),
    #[error(transparent)]
    Ticket(#[from] TicketError),
}

/// The streaming server as the RPCs see it. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Streams(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    pods: Pods,
    tickets: Tickets<Task>,
    /// What clients reach us by, and whether with TLS.
    address: SocketAddr,
    tls: bool,
}

impl Streams {
    /// A URL to run a command in a container.
    pub(crate) fn exec(&self, container: &str, options: ExecOptions) -> Result<String, StreamError> {
        let container = self.0.pods.containers().check_exec(container, &options)?;
        self.url(Task::Exec { container, options })
    }

    /// A URL to the streams of a container's own process.
    pub(crate) fn attach(&self, container: &str, streams: Wanted) -> Result<String, StreamError> {
        let container = self.0.pods.containers().check_attach(container, streams)?;
        self.url(Task::Attach { container, streams })
    }

    /// A URL to connections to ports of a pod.
    pub(crate) fn port_forward(&self, pod: &str, ports: Vec<u16>) -> Result<String, StreamError> {
        let pod = self.0.pods.check_forward(pod)?;
        self.url(Task::Forward { pod, ports })
    }

    fn url(&self, task: Task) -> Result<String, StreamError> {
        let (scheme, verb) = (if self.0.tls { "https" } else { "http" }, task.verb());
        let token = self.0.tickets.issue(task, Instant::now())?;
        Ok(format!("{scheme}://{}/{verb}/{token}", self.0.address))
    }
}
