//! How processes end: exit codes, the OOM killer's part in it, and killing a whole tree.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, kill_process, wait};

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct End {
    /// As a shell tells it: 128 + the signal if one ended it.
    pub(super) code: i32,
    /// 0 if none.
    pub(super) signal: i32,
}

impl From<WaitStatus> for End {
    fn from(status: WaitStatus) -> Self {
        match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => Self { code, signal: 0 },
            (None, Some(signal)) => Self { code: 128 + signal, signal },
            // waitpid(2) without WUNTRACED reports nothing else.
            (None, None) => Self { code: 255, signal: 0 },
        }
    }
}

/// A child that has ended, if there is one. Orphans of containers count: this process is their subreaper.
pub(super) fn next() -> Option<(i32, End)> {
    loop {
        // Not `waitpid(None, …)`: that waits for this process group alone, and containers lead their own.
        match wait(WaitOptions::NOHANG) {
            Ok(Some((pid, status))) => return Some((pid.as_raw_nonzero().get(), status.into())),
            Err(rustix::io::Errno::INTR) => {}
            // No child has ended, or there is none (ECHILD).
            Ok(None) | Err(_) => return None,
        }
    }
}

/// Counts what the OOM killer does in a container's cgroup.
#[derive(Debug)]
pub(super) struct OomWatch {
    file: PathBuf,
    before: u64,
    /// The same of the cgroup above, on v2, where a count holds for all below it and outlives them.
    above: Option<(PathBuf, u64)>,
}

impl OomWatch {
    /// Finds the cgroup of a process that lives. `None` if its memory is not accounted.
    pub(super) fn of(pid: i32) -> Option<Self> {
        let table = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        let file = counter_file(&table)?;
        let before = oom_kills(&file)?;
        let above = file.parent().and_then(Path::parent).map(|dir| dir.join("memory.events"));
        let above = above.and_then(|file| oom_kills(&file).map(|before| (file, before)));
        Some(Self { file, before, above })
    }

    /// Whether a process that ended like this was ended by the OOM killer. Asked before the cgroup is removed.
    ///
    /// Of a shell whose last child was killed the exit code is 137 too; one that goes on after it is not "OOM killed".
    ///
    /// The kernel counts before it sends the signal (mm/oom_kill.c), so the count is there when the end is seen. But systemd
    /// removes a scope as soon as it is empty, which may be before we look. Then the count above decides, which is the pod's:
    /// it is wrong only where the container was killed by somebody else after the OOM killer had been at a neighbour.
    pub(super) fn killed(&self, end: End) -> bool {
        const SIGKILL: i32 = 128 + 9;
        let rose = |file: &Path, before: u64| oom_kills(file).map(|now| now > before);
        let above = || self.above.as_ref().and_then(|(file, before)| rose(file, *before));
        end.code == SIGKILL && rose(&self.file, self.before).or_else(above).unwrap_or(false)
    }
}

/// From /proc/PID/cgroup (cgroups(7)): the v1 memory controller if it is mounted, else v2.
fn counter_file(table: &str) -> Option<PathBuf> {
    let entries = || {
        table.lines().filter_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            Some((fields.next()?, fields.next()?.trim_start_matches('/')))
        })
    };
    let v1 = entries().find(|(controllers, _)| controllers.split(',').any(|name| name == "memory"));
    match v1 {
        Some((_, path)) => Some(Path::new("/sys/fs/cgroup/memory").join(path).join("memory.oom_control")),
        None => {
            let (_, path) = entries().find(|(controllers, _)| controllers.is_empty())?;
            Some(Path::new("/sys/fs/cgroup").join(path).join("memory.events"))
        }
    }
}

/// The `oom_kill` line of memory.events or memory.oom_control.
fn oom_kills(file: &Path) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

/// Parent, session and start time (fields 4, 6 and 22 of proc_pid_stat(5)) of a process.
pub(super) fn stat(pid: i32) -> Option<(i32, i32, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may contain anything.
    let mut fields = text.rsplit_once(") ")?.1.split(' ');
    let parent = fields.nth(1)?.parse().ok()?;
    let session = fields.nth(1)?.parse().ok()?;
    let start = fields.nth(15)?.parse().ok()?;
    Some((parent, session, start))
}

/// Whether a child of ours with this pid lives or has not been reaped.
pub(super) fn is_our_child(pid: i32) -> bool {
    stat(pid).is_some_and(|(parent, ..)| u32::try_from(parent) == Ok(std::process::id()))
}

/// Kills a process, its descendants, and who else is in the session that it leads. Blocking, but only for the time
/// that it takes to read /proc.
pub(super) fn kill_tree(root: i32) {
    /// Each round stops who was started since the last; a fork bomb that outruns this ends with its cgroup.
    const ROUNDS: usize = 16;
    let signal = |pid: i32, signal| Pid::from_raw(pid).map(|pid| kill_process(pid, signal));
    signal(root, Signal::STOP);
    let mut tree = vec![root];
    for _ in 0..ROUNDS {
        let known = tree.len();
        let Ok(entries) = fs::read_dir("/proc") else { break };
        let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        for pid in pids {
            let Some((parent, session, _)) = stat(pid) else { continue };
            if !tree.contains(&pid) && (session == root || tree.contains(&parent)) {
                signal(pid, Signal::STOP);
                tree.push(pid);
            }
        }
        if tree.len() == known {
            break;
        }
    }
    for pid in tree {
        signal(pid, Signal::KILL);
    }
}

/// Whether the process is PID 1 of its PID namespace, whose end ends all others there.
pub(super) fn is_init(pid: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let levels = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    levels.is_some_and(|levels| levels.split_ascii_whitespace().skip(1).last() == Some("1"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_cgroup_is_found_on_v1_hybrid_and_v2() {
        for (table, file) in [
            (
                "12:cpu,cpuacct:/a\n9:memory:/pods/c\n0::/x\n",
                Some("/sys/fs/cgroup/memory/pods/c/memory.oom_control"),
            ),
            ("0::/pods/c\n", Some("/sys/fs/cgroup/pods/c/memory.events")),
            ("3:pids:/a\n", None),
            ("", None),
        ] {
            assert_eq!(counter_file(table), file.map(PathBuf::from), "{table}");
        }
    }

    #[test]
    fn a_scope_that_is_gone_already_is_judged_by_the_count_above_it() {
        let pod = tempfile::tempdir().unwrap();
        let scope = pod.path().join("c.scope");
        fs::create_dir(&scope).unwrap();
        let count = |dir: &Path, kills: u32| {
            fs::write(dir.join("memory.events"), format!("oom 9\noom_kill {kills}\noom_group_kill 0\n"))
                .unwrap();
        };
        count(pod.path(), 5);
        count(&scope, 0);
        let above = Some((pod.path().join("memory.events"), 5));
        let watch = OomWatch { file: scope.join("memory.events"), before: 0, above };
        let (killed, failed) = (End { code: 137, signal: 9 }, End { code: 1, signal: 0 });
        assert!(!watch.killed(killed));
        count(pod.path(), 6);
        assert!(!watch.killed(killed), "a neighbour's, as long as the own count can be read");
        fs::remove_dir_all(&scope).unwrap();
        assert!(watch.killed(killed));
        assert!(!watch.killed(failed));
    }

    #[test]
    fn stat_reads_a_process_with_any_name() {
        let own = i32::try_from(std::process::id()).unwrap();
        let (parent, _, start) = stat(own).unwrap();
        assert_eq!(parent, i32::try_from(std::os::unix::process::parent_id()).unwrap());
        assert!(start > 0);
    }
}
