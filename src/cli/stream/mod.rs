//! `brig exec`, `brig attach` and `brig port-forward`: clients of the daemon's streaming server, as kubectl is one.
//!
//! A call over gRPC gives a URL; whoever comes there first gets the streams. Exec and attach speak WebSocket
//! (`v5.channel.k8s.io`), a port-forward speaks SPDY, which alone can end one direction of one connection.

mod dial;
mod forward;
mod terminal;
mod tls;

use std::io::Write;
use std::os::fd::AsFd;
use std::process::ExitCode;

use clap::Args;
use hyper::body::Bytes;
use serde_json::Value;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::client::Client;
use super::error::CliError;
use super::{output, resolve, run};
use crate::proto::v1;
use crate::stream::websocket::{Channels, ERROR, RESIZE, Receiver, STDERR, STDIN, STDOUT, Sender};
use terminal::{Raw, Stop};

pub(super) use forward::{PortForwardArgs, port_forward};
pub(super) use tls::TlsArgs;

/// What exec and attach speak.
const PROTOCOL: &str = "v5.channel.k8s.io";

/// What is typed is sent at once, a file in pieces of this size.
const INPUT_BYTES: usize = 32 << 10;

/// Which of a client's own streams are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Args)]
pub(super) struct Interactive {
    /// Pass what comes on standard input on.
    #[arg(short = 'i', long)]
    pub stdin: bool,
    /// Use a terminal. With -i, yours becomes a window to it, keys like CTRL-C included.
    #[arg(short = 't', long)]
    pub tty: bool,
}

/// What to execute where.
#[derive(Debug, Args)]
pub(super) struct ExecArgs {
    #[command(flatten)]
    interactive: Interactive,
    /// Kill the command after so many seconds. Its output comes when it has ended; 0 is never.
    #[arg(long, default_value_t = 0, value_name = "SECONDS", conflicts_with_all = ["stdin", "tty"])]
    timeout: u32,
    #[command(flatten)]
    tls: TlsArgs,
    /// The container, or a pod with one container, by name, id or unique prefix of an id.
    container: String,
    /// The command and its arguments.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// What to attach to.
#[derive(Debug, Args)]
pub(super) struct AttachArgs {
    /// Pass what comes on standard input on to the container, which must have been made with one.
    #[arg(short = 'i', long)]
    stdin: bool,
    #[command(flatten)]
    tls: TlsArgs,
    /// The container, or a pod with one container, by name, id or unique prefix of an id.
    container: String,
}

/// Runs the command to its end and passes its output and exit code on.
pub(super) async fn exec(mut client: Client, args: ExecArgs) -> Result<ExitCode, CliError> {
    let container_id = resolve::container(&client, &args.container).await?;
    let what = CliError::refused(format!("execute in {}", args.container));
    if args.timeout > 0 {
        // Only this call can kill the command.
        let request = v1::ExecSyncRequest { container_id, cmd: args.command, timeout: args.timeout.into() };
        let answer = client.runtime.exec_sync(request).await.map_err(what)?.into_inner();
        output::write(&answer.stdout)?;
        std::io::stderr().lock().write_all(&answer.stderr).map_err(CliError::Output)?;
        return Ok(run::exit_code(answer.exit_code));
    }
    let Interactive { stdin, tty } = args.interactive.possible();
    let request = v1::ExecRequest { container_id, cmd: args.command, tty, stdin, stdout: true, stderr: !tty };
    let url = client.runtime.exec(request).await.map_err(what)?.into_inner().url;
    let session = Session::open(&url, &args.tls, Interactive { stdin, tty }).await?;
    Ok(run::exit_code(session.carry().await?.code()))
}

/// Shows what a container prints from now on, until it ends.
pub(super) async fn attach(client: Client, args: AttachArgs) -> Result<ExitCode, CliError> {
    let id = resolve::container(&client, &args.container).await?;
    let tty = has_terminal(&client, &id).await?;
    let session = attached(&client, &id, &args.tls, Interactive { stdin: args.stdin, tty }).await?;
    if tty && args.stdin {
        eprintln!("If you don't see a command prompt, try pressing enter.");
    }
    Ok(run::exit_code(session.carry().await?.code()))
}

/// The streams of a container's own process, from now on.
pub(super) async fn attached(
    client: &Client,
    id: &str,
    tls: &TlsArgs,
    interactive: Interactive,
) -> Result<Session, CliError> {
    let Interactive { stdin, tty } = interactive;
    let request = v1::AttachRequest { container_id: id.to_owned(), stdin, tty, stdout: true, stderr: !tty };
    let answer = client.runtime.clone().attach(request).await.map_err(CliError::refused("attach"))?;
    Session::open(&answer.into_inner().url, tls, interactive).await
}

/// Whether a container was made with a terminal: attach has to say the same.
async fn has_terminal(client: &Client, id: &str) -> Result<bool, CliError> {
    let request = v1::ContainerStatusRequest { container_id: id.to_owned(), verbose: true };
    let answer = client.runtime.clone().container_status(request).await;
    let info = answer.map_err(CliError::refused("look at the container"))?.into_inner().info;
    let info: Value = info.get("info").and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    Ok(info.pointer("/config/tty").and_then(Value::as_bool).unwrap_or(false))
}

impl Interactive {
    /// What of it can be had here. A terminal needs one on our side, as with kubectl.
    pub(super) fn possible(self) -> Self {
        let tty = self.tty && (!self.stdin || rustix::termios::isatty(std::io::stdin()));
        if self.tty && !tty {
            eprintln!("Unable to use a TTY - input is not a terminal or the right kind of file");
        }
        Self { stdin: self.stdin, tty }
    }
}

/// Why a session is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// The other side has ended, with this code; an attach always ends with 0.
    There(i32),
    /// This signal was sent to us.
    Signal(i32),
}

impl Ended {
    /// As an exit code of ours.
    fn code(self) -> i32 {
        match self {
            Self::There(code) => code,
            Self::Signal(number) => 128 + number,
        }
    }
}

/// Streams that are open.
#[derive(Debug)]
pub(super) struct Session {
    interactive: Interactive,
    channels: Channels,
    stdin: Sender,
    resize: Sender,
    stdout: Receiver,
    stderr: Receiver,
    error: Receiver,
    /// What came before the first byte of output.
    early: Option<Bytes>,
}

impl Session {
    /// Comes with the URL, and returns when the other side is ready: the command runs, or output is not missed any more.
    async fn open(url: &str, tls: &TlsArgs, interactive: Interactive) -> Result<Self, CliError> {
        let io = dial::websocket(url, tls, PROTOCOL).await?;
        let (channels, receivers) =
            Channels::over(io, Role::Client, PROTOCOL, &[STDOUT, STDERR, ERROR]).await;
        let Ok([mut stdout, stderr, mut error]) = <[Receiver; 3]>::try_from(receivers) else {
            unreachable!("three inputs have three receivers")
        };
        let (stdin, resize) = (channels.sender(STDIN), channels.sender(RESIZE));
        // The first message on stdout is empty; a refusal comes on the error channel instead.
        let early = tokio::select! {
            biased;
            first = stdout.recv() => first.map(Ok),
            status = error.recv() => status.map(Err),
        };
        let early = match early {
            Some(Ok(first)) => Some(first),
            Some(Err(status)) => return Err(verdict(&status).err().unwrap_or(CliError::StreamBroken)),
            None => return Err(CliError::StreamBroken),
        };
        Ok(Self { interactive, channels, stdin, resize, stdout, stderr, error, early })
    }

    /// Moves bytes until the other side has ended, or a signal asks us to.
    pub(super) async fn carry(self) -> Result<Ended, CliError> {
        let Self { interactive, channels, mut stdin, mut resize, mut stdout, mut stderr, mut error, early } =
            self;
        let raw = if interactive.tty && interactive.stdin { Some(Raw::enter()?) } else { None };
        let mut stop = Stop::listen()?;
        let input = async {
            if interactive.stdin {
                let mut typed = read_stdin();
                while let Some(piece) = typed.recv().await {
                    if stdin.send(piece).await.is_err() {
                        return;
                    }
                }
                stdin.finish().await.ok();
            }
        };
        let sizes = async {
            if !interactive.tty {
                return Ok(());
            }
            let mut changes = terminal::changes()?;
            loop {
                if let Some((columns, rows)) = terminal::size() {
                    let size = format!("{{\"Width\":{columns},\"Height\":{rows}}}");
                    if resize.send(size.into()).await.is_err() {
                        return Ok(());
                    }
                }
                changes.recv().await;
            }
        };
        let shown = async {
            if let Some(early) = early {
                show(std::io::stdout().lock(), &early)?;
            }
            let out = async {
                while let Some(piece) = stdout.recv().await {
                    show(std::io::stdout().lock(), &piece)?;
                }
                Ok(())
            };
            let err = async {
                while let Some(piece) = stderr.recv().await {
                    show(std::io::stderr().lock(), &piece)?;
                }
                Ok(())
            };
            let status = async {
                let mut status = Vec::new();
                while let Some(piece) = error.recv().await {
                    status.extend_from_slice(&piece);
                    status.truncate(STATUS_BYTES_MAX);
                }
                Ok::<_, CliError>(status)
            };
            let ((), (), status) = tokio::try_join!(out, err, status)?;
            verdict(&status).map(Ended::There)
        };
        let idle = async {
            let ((), sizes) = tokio::join!(input, sizes);
            match sizes {
                Ok(()) => std::future::pending().await,
                Err(error) => Err::<std::convert::Infallible, CliError>(error),
            }
        };
        let ended = tokio::select! {
            ended = shown => ended,
            signal = stop.signal() => Ok(Ended::Signal(signal)),
            failed = idle => failed.map(|never| match never {}),
        };
        // The error, if any, is printed after this, on a terminal that is itself again.
        drop(raw);
        channels.close().await;
        ended
    }
}

/// The longest status that is looked at.
const STATUS_BYTES_MAX: usize = 64 << 10;

fn show(mut to: impl Write, piece: &[u8]) -> Result<(), CliError> {
    to.write_all(piece).and_then(|()| to.flush()).map_err(CliError::Output)
}

/// The exit code in a `Status` of the Kubernetes API.
fn verdict(status: &[u8]) -> Result<i32, CliError> {
    if status.is_empty() {
        return Err(CliError::StreamBroken);
    }
    let status: Value =
        serde_json::from_slice(status).map_err(|_| CliError::Incomplete("a status of the stream"))?;
    if status["status"] == "Success" {
        return Ok(0);
    }
    let causes = status["details"]["causes"].as_array().map_or(&[][..], Vec::as_slice);
    let code =
        causes.iter().find(|cause| cause["reason"] == "ExitCode").and_then(|cause| cause["message"].as_str());
    match code.and_then(|code| code.parse().ok()) {
        Some(code) => Ok(code),
        None => Err(CliError::Stream(status["message"].as_str().unwrap_or("no reason was given").to_owned())),
    }
}

/// What comes on standard input. The thread that reads it cannot be called off, so it belongs to nobody: the end of the
/// process ends it.
fn read_stdin() -> tokio::sync::mpsc::Receiver<Bytes> {
    // A few pieces ahead of the network.
    let (sender, receiver) = tokio::sync::mpsc::channel(4);
    let read = move || {
        loop {
            let mut piece = Vec::with_capacity(INPUT_BYTES);
            let read =
                || rustix::io::read(std::io::stdin().as_fd(), rustix::buffer::spare_capacity(&mut piece));
            match rustix::io::retry_on_intr(read) {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
            if sender.blocking_send(piece.into()).is_err() {
                return;
            }
        }
    };
    // Without a thread there is no input, which the other side sees as its end.
    std::thread::Builder::new().name("stdin".to_owned()).spawn(read).ok();
    receiver
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_success_an_exit_code_or_a_message() {
        assert_eq!(verdict(br#"{"metadata":{},"status":"Success"}"#).unwrap(), 0);
        let failed = br#"{"status":"Failure","reason":"NonZeroExitCode","details":{"causes":[{"reason":"ExitCode","message":"42"}]}}"#;
        assert_eq!(verdict(failed).unwrap(), 42);
        let refused = verdict(br#"{"status":"Failure","message":"no such command"}"#).unwrap_err();
        assert_eq!(refused.to_string(), "no such command");
        assert!(matches!(verdict(b""), Err(CliError::StreamBroken)));
        assert!(verdict(b"{").is_err());
    }
}
