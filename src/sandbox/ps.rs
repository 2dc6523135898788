//! `ps`: the processes of a container, as pids or as the host's ps(1) shows them.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use super::error::{Attempt, Error};
use super::state::Container;

pub(super) fn ps(root: &Path, id: &str, json: bool, args: &[String]) -> Result<(), Error> {
    let container = Container::load(root, id)?;
    let pids: BTreeSet<i32> = match container.group()? {
        Some(group) => group.pids()?.into_iter().collect(),
        None => container.record.process.open().map(|_| container.record.process.pid).into_iter().collect(),
    };
    if json {
        println!("{}", serde_json::Value::from(pids.into_iter().collect::<Vec<_>>()));
        return Ok(());
    }
    let default = ["-ef".to_owned()];
    let args = if args.is_empty() { &default[..] } else { args };
    let output = Command::new("ps").args(args).output().attempt(|| format!("run ps {}", args.join(" ")))?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(Error::Usage(format!("ps {} failed: {words}", args.join(" "))));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    for line in select(&text, &pids)? {
        println!("{line}");
    }
    Ok(())
}

/// The header and the lines whose PID column names one of `pids`.
fn select<'a>(text: &'a str, pids: &BTreeSet<i32>) -> Result<Vec<&'a str>, Error> {
    let mut lines = text.lines();
    let header = lines.next().unwrap_or_default();
    let column = header
        .split_whitespace()
        .position(|name| name == "PID")
        .ok_or_else(|| Error::Usage("the ps options must leave the PID column".to_owned()))?;
    let ours = |line: &&str| {
        let pid = line.split_whitespace().nth(column).and_then(|pid| pid.parse().ok());
        pid.is_some_and(|pid| pids.contains(&pid))
    };
    Ok([header].into_iter().chain(lines.filter(ours)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_lines_of_the_container_are_shown() {
        let text = "UID  PID PPID CMD\nroot 1 0 init\nroot 12 1 sh 1\nroot 120 1 12\n";
        assert_eq!(select(text, &[12].into()).unwrap(), ["UID  PID PPID CMD", "root 12 1 sh 1"]);
        assert!(select("CMD\nsh\n", &[12].into()).is_err());
    }
}
