//! `brig check`: is this machine fit to run pods? Each line is ok, a warning or a failure, the latter with a remedy.
//!
//! Kernel features are found out by using them, not by reading version numbers: `check/probe.rs` does so in a process
//! of its own in fresh namespaces, which vanish with it. `check/machine.rs` looks at what can be read. Nothing is left
//! behind and nothing is changed.

mod machine;
mod probe;

use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use clap::Args;
use serde_json::json;
use tokio::process::Command;
use tokio::time::timeout;

use super::client::Client;
use super::error::CliError;
use super::output::{self, Format};
use crate::daemon::args::Args as DaemonArgs;
use crate::daemon::config::Config;
use crate::proto::v1;

/// A probe is a handful of system calls; one that takes longer hangs in the kernel.
const PROBE_TIMEOUT: Duration = Duration::from_secs(10);

/// How to check.
#[derive(Debug, Args)]
pub(super) struct CheckArgs {
    /// Check for this configuration instead of /etc/brig/config.toml.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Run one probe in this process and exit.
    #[arg(long, hide = true)]
    probe: Option<probe::Probe>,
}

/// How it stands with one thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Ok,
    Warn,
    Fail,
}

impl Verdict {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// One line of the result.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Finding {
    what: String,
    verdict: Verdict,
    /// What was found.
    detail: String,
    /// What to do about it; empty when there is nothing to do.
    remedy: String,
}

impl Finding {
    fn ok(what: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { what: what.into(), verdict: Verdict::Ok, detail: detail.into(), remedy: String::new() }
    }

    fn warn(what: impl Into<String>, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { what: what.into(), verdict: Verdict::Warn, detail: detail.into(), remedy: remedy.into() }
    }

    fn fail(what: impl Into<String>, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { what: what.into(), verdict: Verdict::Fail, detail: detail.into(), remedy: remedy.into() }
    }
}

/// Runs a probe when this process was started for one. Call before there is a second thread.
pub(super) fn run_if_probe(args: &CheckArgs) -> Option<ExitCode> {
    args.probe.map(|probe| match probe.run() {
        Ok(detail) => {
            println!("{detail}");
            ExitCode::SUCCESS
        }
        Err(err) => {
            println!("{err}");
            ExitCode::FAILURE
        }
    })
}

pub(super) async fn check(address: &str, args: CheckArgs, format: Format) -> Result<ExitCode, CliError> {
    let mut findings = Vec::new();
    let config = match Config::load(&DaemonArgs { config: args.config, ..DaemonArgs::default() }) {
        Ok(config) => {
            findings.push(Finding::ok("configuration", "valid"));
            config
        }
        Err(err) => {
            findings.push(Finding::fail(
                "configuration",
                err.to_string(),
                "correct the file; the rest is checked \
                 against the defaults",
            ));
            Config::default()
        }
    };
    findings.extend(machine::privileges());
    findings.push(machine::kernel());
    for probe in probe::Probe::ALL {
        findings.push(run_probe(probe).await?);
    }
    findings.extend(machine::cgroups());
    findings.extend(machine::security_modules());
    findings.extend(machine::binaries(&config, &siblings(), &std::env::var_os("PATH").unwrap_or_default()));
    findings.push(machine::cni(&config));
    findings.extend(machine::disk(&config));
    findings.push(daemon(address).await);

    match format {
        Format::Table => output::write(report(&findings).as_bytes())?,
        Format::Json => output::json(&json!(
            findings
                .iter()
                .map(|finding| json!({
                    "check": finding.what,
                    "result": finding.verdict.as_str(),
                    "found": finding.detail,
                    "remedy": finding.remedy,
                }))
                .collect::<Vec<_>>()
        ))?,
    }
    let failed = findings.iter().any(|finding| finding.verdict == Verdict::Fail);
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// A line for each finding, and its remedy on a line below it: remedies are too long for a column.
fn report(findings: &[Finding]) -> String {
    let width = findings.iter().map(|finding| finding.what.len()).max().unwrap_or(0);
    let mut text = String::new();
    for finding in findings {
        text.push_str(&format!(
            "{:<4}   {:<width$}   {}\n",
            finding.verdict.as_str(),
            finding.what,
            finding.detail
        ));
        if !finding.remedy.is_empty() {
            text.push_str(&format!("{:>width$}   remedy: {}\n", "", finding.remedy, width = width + 7));
        }
    }
    text
}

/// Where `brigd` and its helpers are: beside us.
fn siblings() -> PathBuf {
    let ours = std::env::current_exe().unwrap_or_default();
    ours.parent().unwrap_or(Path::new("/")).to_owned()
}

/// A probe in a process of its own, so that whatever it makes ends with it.
async fn run_probe(probe: probe::Probe) -> Result<Finding, CliError> {
    let fail = |source| CliError::Local("start a probe", source);
    let child = Command::new("/proc/self/exe")
        .args(["check", "--probe", probe.as_str()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(fail)?;
    let Ok(output) = timeout(PROBE_TIMEOUT, child.wait_with_output()).await else {
        let detail = format!("no answer within {} s", PROBE_TIMEOUT.as_secs());
        return Ok(probe.finding(false, detail));
    };
    let output = output.map_err(fail)?;
    let detail = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    Ok(probe.finding(output.status.success(), detail))
}

async fn daemon(address: &str) -> Finding {
    let what = "brigd";
    let mut client = match Client::connect(address).await {
        Ok(client) => client,
        Err(err) => return Finding::warn(what, err.to_string(), "start it: systemctl start brig, or brigd"),
    };
    match client.runtime.status(v1::StatusRequest { verbose: false }).await {
        Err(status) => Finding::fail(what, status.message(), "look into its log: journalctl -u brig"),
        Ok(answer) => {
            let conditions = answer.into_inner().status.map(|status| status.conditions).unwrap_or_default();
            match conditions.into_iter().find(|condition| !condition.status) {
                None => Finding::ok(what, format!("ready at {address}")),
                Some(condition) => {
                    let detail = format!("{} is false: {}", condition.r#type, condition.message);
                    Finding::warn(what, detail, "see `brig status`")
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_remedy_stands_below_its_finding() {
        let findings =
            [Finding::ok("pidfd", "works"), Finding::fail("overlayfs", "no such device", "modprobe overlay")];
        assert_eq!(
            report(&findings),
            "ok     pidfd       works\nfail   overlayfs   no such device\n                   remedy: modprobe overlay\n"
        );
    }
}
