//! One run of one plugin: environment and standard input in, standard output and exit code out, all of it bounded.

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;
use tokio::time::Instant;

use super::types::PluginError;

/// The most a plugin may print. A result for 256 addresses has about 40 KiB.
pub(super) const OUTPUT_BYTES_MAX: usize = 1 << 20;
/// What is kept of its complaints.
const COMPLAINT_BYTES_MAX: usize = 4 << 10;
/// How long output may still come after the plugin ended: something it left behind holds the pipe.
const DRAIN: Duration = Duration::from_secs(1);
/// For plugins that call others (iptables, ip); ours must not leak theirs.
const SEARCH_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Why a run failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExecError {
    #[error("no plugin {kind} in {dirs}; install it or change network.cni_bin_dirs")]
    Missing { kind: String, dirs: String },
    #[error("start plugin {}", .path.display())]
    Start {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("exchange data with plugin {}", .path.display())]
    Exchange {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("plugin {} printed more than {OUTPUT_BYTES_MAX} bytes and was killed", .path.display())]
    TooLarge { path: PathBuf },
    #[error("plugin {} did not end within {} s and was killed", .path.display(), .limit.as_secs())]
    TimedOut { path: PathBuf, limit: Duration },
    #[error("plugin {} failed, {error}", .path.display())]
    Plugin { path: PathBuf, error: PluginError },
    #[error("plugin {} ended with {status} and no CNI error; it wrote: {complaint}", .path.display())]
    Ended { path: PathBuf, status: ExitStatus, complaint: String },
}

/// What to run.
#[derive(Debug)]
pub(super) struct Run {
    pub path: PathBuf,
    /// `CNI_COMMAND` and its like; nothing else of our environment reaches the plugin.
    pub environment: Vec<(&'static str, OsString)>,
    pub stdin: Vec<u8>,
    pub limit: Duration,
}

/// Runs a plugin and returns what it printed. It and its children are killed when it is over time.
///
/// Dropping the future kills the plugin.
pub(super) async fn run(run: Run) -> Result<Vec<u8>, ExecError> {
    let Run { path, environment, stdin, limit } = run;
    let mut child = Command::new(&path)
        .env_clear()
        .env("PATH", SEARCH_PATH)
        .envs(environment)
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|source| ExecError::Start { path: path.clone(), source })?;
    let group = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
    // The leader is not reaped before this function ends well, so its number is still its own.
    let kill = || {
        if let Some(group) = group {
            // ESRCH: all of them are gone already.
            let _ = kill_process_group(group, Signal::KILL);
        }
    };
    let failed = |source| ExecError::Exchange { path: path.clone(), source };
    let mut input = child.stdin.take().expect("stdin is piped");
    let mut out = child.stdout.take().expect("stdout is piped");
    let mut err = child.stderr.take().expect("stderr is piped");
    let feed = async move {
        // A plugin need not read all of its input.
        let _ = input.write_all(&stdin).await;
    };
    tokio::pin!(feed);
    let (mut printed, mut complaint) = (Vec::new(), Vec::new());
    let (mut out_open, mut err_open, mut fed) = (true, true, false);
    let mut scratch = vec![0; 4096];
    let mut noise = [0; 4096];
    let mut until = Instant::now() + limit;
    let mut status = None;
    while status.is_none() || out_open || err_open {
        tokio::select! {
            () = &mut feed, if !fed => fed = true,
            read = out.read(&mut scratch), if out_open => match read.map_err(failed)? {
                0 => out_open = false,
                count if printed.len() + count > OUTPUT_BYTES_MAX => {
                    kill();
                    let _ = child.wait().await;
                    return Err(ExecError::TooLarge { path });
                }
                count => printed.extend_from_slice(&scratch[..count]),
            },
            read = err.read(&mut noise), if err_open => match read.map_err(failed)? {
                0 => err_open = false,
                count => {
                    let room = COMPLAINT_BYTES_MAX.saturating_sub(complaint.len());
                    complaint.extend_from_slice(&noise[..count.min(room)]);
                }
            },
            ended = child.wait(), if status.is_none() => {
                status = Some(ended.map_err(failed)?);
                until = until.min(Instant::now() + DRAIN);
            }
            () = tokio::time::sleep_until(until) => {
                if status.is_some() {
                    // The plugin has ended; whoever holds its pipes has nothing to say to us.
                    break;
                }
                kill();
                let _ = child.wait().await;
                return Err(ExecError::TimedOut { path, limit });
            }
        }
    }
    let status = status.expect("the loop ends with a status");
    if status.success() {
        return Ok(printed);
    }
    match serde_json::from_slice::<PluginError>(&printed) {
        Ok(error) => Err(ExecError::Plugin { path, error }),
        Err(_) => {
            let text = if complaint.is_empty() {
                &printed[..printed.len().min(COMPLAINT_BYTES_MAX)]
            } else {
                &complaint
            };
            let complaint = String::from_utf8_lossy(text).trim().to_owned();
            Err(ExecError::Ended { path, status, complaint })
        }
    }
}
