//! Clients at a container's own streams, the daemon's end: one [`AttachSession`] each.
//!
//! ```text
//!                    ┌▶ log
//! container ▶ monitor┼▶ pipe ▶ session ▶ client          output from now on; what was before is in the log
//!           ◀────────┴◀ pipe ◀ session ◀ client          input of all clients, as it comes
//! ```
//!
//! The monitor copies, so that several clients see the same, and so that none of them can hold up the container: what a
//! client does not take at once waits in a bounded buffer, and when that is full the client is cut. If this daemon ends,
//! its pipes break, and the monitor forgets its clients. That is no end of their input: only this daemon's word is.

use std::os::fd::OwnedFd;

use tokio::sync::watch;

use super::client::{ANSWER_WAIT, Monitor, MonitorError, unexpected};
use super::exec::{Streams, input_pipe, output_pipe};
use super::wire::{Attach, Reply, Request};

pub(crate) use super::client::AttachEnd;

/// A client at the streams of a container: our ends of its pipes, which do not block. Dropping it detaches, and is the end
/// of the client's input.
#[derive(Debug)]
pub(crate) struct AttachSession {
    pub stdin: Option<OwnedFd>,
    /// Of a container with a terminal all there is.
    pub stdout: Option<OwnedFd>,
    pub stderr: Option<OwnedFd>,
    pub control: AttachControl,
}

/// What there is about an attach besides bytes.
#[derive(Debug)]
pub(crate) struct AttachControl {
    monitor: Monitor,
    container: String,
    name: String,
    end: watch::Receiver<Option<AttachEnd>>,
}

impl Monitor {
    /// Attaches a client to a container that has not exited.
    pub(crate) async fn attach(&self, id: &str, streams: Streams) -> Result<AttachSession, MonitorError> {
        let line = self.line()?;
        let (stdin, monitor_stdin) = input_pipe(streams.stdin)?;
        let (stdout, monitor_stdout) = output_pipe(streams.stdout)?;
        let (stderr, monitor_stderr) = output_pipe(streams.stderr)?;
        let (name, end) = line.expect_attach()?;
        // From here on whatever goes wrong detaches.
        let control = AttachControl { monitor: self.clone(), container: id.to_owned(), name, end };
        let request = Request::Attach(Attach {
            attach: control.name.clone(),
            container: id.to_owned(),
            stdin: streams.stdin,
            stdout: streams.stdout,
            stderr: streams.stderr,
        });
        let ends: Vec<OwnedFd> =
            [monitor_stdin, monitor_stdout, monitor_stderr].into_iter().flatten().collect();
        match self.ask("attach", request, ends, ANSWER_WAIT).await? {
            (Reply::Done, _) => Ok(AttachSession { stdin, stdout, stderr, control }),
            (other, _) => Err(unexpected("attach", id, other)),
        }
    }
}

impl AttachControl {
    /// Returns when the monitor has ended the attach. Cancel-safe.
    pub(crate) async fn ended(&self) -> AttachEnd {
        let Ok(line) = self.monitor.line() else { return AttachEnd::Gone };
        line.wait("attach", &mut self.end.clone()).await.unwrap_or(AttachEnd::Gone)
    }

    /// Sets the size of the container's terminal; fails if it has none.
    pub(crate) async fn resize(&self, columns: u16, rows: u16) -> Result<(), MonitorError> {
        let request = Request::Resize { container: self.container.clone(), columns, rows };
        self.monitor.done("resize", &self.container, request, Vec::new()).await
    }

    /// The client has ended its input: what was written to the session's `stdin` is the last of it. Closes the input of
    /// a container that wants it once; a terminal stays open, it has no end but a hangup. Closing `stdin` says nothing.
    pub(crate) async fn finish_stdin(&self) {
        let request = Request::FinishStdin { attach: self.name.clone() };
        if let Err(error) = self.monitor.done("finish stdin", &self.container, request, Vec::new()).await {
            tracing::debug!(container = self.container, error = %crate::task::chain(&error), "cannot end the input of a client");
        }
    }
}

impl AttachControl {
    /// Goes without a word: this daemon ends, and its client has said no end. The monitor notices by our connection.
    pub(crate) fn leave(&self) {
        if let Ok(line) = self.monitor.line() {
            line.forget_attach(&self.name);
        }
    }
}

impl Drop for AttachControl {
    fn drop(&mut self) {
        let Ok(line) = self.monitor.line() else { return };
        if !line.forget_attach(&self.name) {
            return;
        }
        let (monitor, attach) = (self.monitor.clone(), std::mem::take(&mut self.name));
        // Without a runtime the connection ends soon, and with it the attach.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let request = Request::Detach { attach };
            runtime.spawn(async move { monitor.done("detach", "", request, Vec::new()).await.ok() });
        }
    }
}
