//! Hooks: programs of the engine's that run at fixed points of the lifecycle, with the state on their stdin.
//!
//! They get the environment of the hook and nothing else: neither ours nor the container's may reach a program that
//! runs with the host's privileges (CVE-2025-23266 was an LD_PRELOAD from the image).

use std::io::{Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::error::Error;
use super::spec::{Hook, StateDocument};

/// What is quoted of a failing hook's stderr.
const STDERR_BYTES_MAX: u64 = 4096;

/// Runs all hooks of one point in order and stops at the first failure.
pub(super) fn run(name: &'static str, hooks: &[Hook], state: &StateDocument<'_>) -> Result<(), Error> {
    if hooks.is_empty() {
        return Ok(());
    }
    let state = serde_json::to_vec(state).expect("a state has string keys only");
    for (index, hook) in hooks.iter().enumerate() {
        run_one(hook, &state).map_err(|why| Error::Hook { name, index, path: hook.path.clone(), why })?;
    }
    Ok(())
}

/// Runs all hooks of a point even if some fail: for poststop, where nothing is left to stop. Returns what failed.
pub(super) fn run_all(name: &'static str, hooks: &[Hook], state: &StateDocument<'_>) -> Vec<Error> {
    let state = serde_json::to_vec(state).expect("a state has string keys only");
    hooks
        .iter()
        .enumerate()
        .filter_map(|(index, hook)| {
            let path = hook.path.clone();
            run_one(hook, &state).err().map(|why| Error::Hook { name, index, path, why })
        })
        .collect()
}

fn run_one(hook: &Hook, state: &[u8]) -> Result<(), String> {
    let mut command = Command::new(&hook.path);
    if let Some((name, rest)) = hook.args.split_first() {
        command.arg0(name).args(rest);
    }
    command
        .env_clear()
        .envs(hook.env.iter().filter_map(|entry| entry.split_once('=')))
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| format!("cannot be executed: {error}"))?;
    let pidfd = Pid::from_raw(child.id() as i32)
        .ok_or_else(|| "has no pid".to_owned())
        .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).map_err(|error| error.to_string()))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A hook may end without reading; a state of more than a pipe's 64 KiB waits for it to read.
        let _ = stdin.write_all(state);
    }
    let deadline = hook.timeout.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let timeout = left.and_then(|left| left.try_into().ok());
        let mut wait = [PollFd::new(&pidfd, PollFlags::IN)];
        match poll(&mut wait, timeout.as_ref()) {
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(format!("cannot be waited for: {error}")),
            Ok(0) => {
                let _ = pidfd_send_signal(&pidfd, Signal::KILL);
                let _ = child.wait();
                return Err(format!("did not end within {} s", hook.timeout.unwrap_or_default()));
            }
            Ok(_) => break,
        }
    }
    let status = child.wait().map_err(|error| format!("cannot be waited for: {error}"))?;
    if status.success() {
        return Ok(());
    }
    let mut quoted = Vec::new();
    if let Some(stderr) = child.stderr.take() {
        // The hook has ended, but a child of it may hold the pipe open: take what is there.
        let _ = rustix::io::ioctl_fionbio(&stderr, true);
        let _ = stderr.take(STDERR_BYTES_MAX).read_to_end(&mut quoted);
    }
    let quoted = String::from_utf8_lossy(&quoted);
    let ending = match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with exit status {code}"),
        (None, signal) => format!("was killed by signal {}", signal.unwrap_or_default()),
    };
    Err(if quoted.trim().is_empty() { ending } else { format!("{ending}, stderr: {}", quoted.trim()) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::path::Path;

    fn run_shell(script: &str, timeout: Option<u64>) -> Result<(), String> {
        let hook = Hook {
            path: "/bin/sh".into(),
            args: vec!["sh".into(), "-c".into(), script.into()],
            env: vec!["A=b".into()],
            timeout,
        };
        let state = StateDocument {
            oci_version: "1.2.0",
            id: "c1",
            pid: Some(7),
            status: "created",
            bundle: Path::new("/b"),
            rootfs: None,
            created: None,
            annotations: &BTreeMap::new(),
        };
        run("poststart", &[hook], &state).map_err(|error| error.to_string())
    }

    #[test]
    fn a_hook_reads_the_state_and_sees_only_its_own_environment() {
        assert_eq!(
            run_shell("grep -q '\"id\":\"c1\"' && test \"$A\" = b && test -z \"$HOME\"", None),
            Ok(())
        );
    }

    #[test]
    fn a_failing_hook_is_named_with_its_words() {
        let error = run_shell("echo oops >&2; exit 3", None).unwrap_err();
        assert_eq!(error, "hook poststart[0] \"/bin/sh\" ended with exit status 3, stderr: oops");
    }

    #[test]
    fn a_hook_that_hangs_is_killed_after_its_timeout() {
        let error = run_shell("exec sleep 1000", Some(1)).unwrap_err();
        assert_eq!(error, "hook poststart[0] \"/bin/sh\" did not end within 1 s");
    }
}
