//! `events`: resource usage as JSON lines, once or at intervals until the container stops.

use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use serde_json::{Value, json};

use super::error::{Attempt, Error};
use super::resources::Group;
use super::state::{Container, Status};

pub(super) fn events(root: &Path, id: &str, once: bool, interval: Duration) -> Result<(), Error> {
    let container = Container::load(root, id)?;
    if container.status() == Status::Stopped {
        return Err(Error::NotRunning(id.to_owned()));
    }
    let Some(group) = container.group()? else {
        return Err(Error::Unsupported("events without control groups".to_owned()));
    };
    if once {
        print(id, "stats", &Some(stats(&group)?));
        return Ok(());
    }
    let init = container.init()?;
    let mut oom_kills = group.cgroup.oom_kills().unwrap_or(0);
    loop {
        let mut wait = [PollFd::new(&init, PollFlags::IN)];
        let timeout = interval.try_into().ok();
        let ended = rustix::io::retry_on_intr(|| poll(&mut wait, timeout.as_ref()))
            .attempt(|| "wait for the container".to_owned())?;
        let now = group.cgroup.oom_kills().unwrap_or(oom_kills);
        if now > oom_kills {
            oom_kills = now;
            print(id, "oom", &None);
        }
        if ended > 0 {
            return Ok(());
        }
        print(id, "stats", &Some(stats(&group)?));
    }
}

fn print(id: &str, kind: &str, data: &Option<Value>) {
    let mut event = json!({"type": kind, "id": id});
    if let Some(data) = data {
        event["data"] = data.clone();
    }
    println!("{event}");
}

/// The document of runc's `events --stats`; a missing controller leaves its part out.
fn stats(group: &Group) -> Result<Value, Error> {
    let stats = group.cgroup.stats().map_err(|error| Error::Cgroup(Box::new(error)))?;
    let mut data = json!({});
    if let Some(cpu) = stats.cpu {
        data["cpu"] = json!({
            "usage": {"total": cpu.usage_ns, "kernel": cpu.system_ns, "user": cpu.user_ns},
            "throttling": {
                "periods": cpu.periods,
                "throttledPeriods": cpu.throttled_periods,
                "throttledTime": cpu.throttled_ns,
            },
        });
    }
    if let Some(memory) = stats.memory {
        data["memory"] = json!({
            "cache": memory.cache,
            "usage": {
                "usage": memory.usage,
                "limit": memory.limit.unwrap_or(u64::MAX),
                "max": memory.peak.unwrap_or(0),
                "failcnt": memory.limit_hits,
            },
            "raw": {
                "rss": memory.rss,
                "working_set": memory.working_set,
                "pgfault": memory.page_faults,
                "pgmajfault": memory.major_page_faults,
                "oom_kill": memory.oom_kills,
            },
        });
        if let Some(usage) = memory.swap_usage {
            data["memory"]["swap"] = json!({"usage": usage, "limit": memory.swap_limit.unwrap_or(u64::MAX)});
        }
    }
    if let Some(pids) = stats.pids {
        data["pids"] = json!({"current": pids.current, "limit": pids.limit.unwrap_or(0)});
    }
    let rows = |value: fn(&crate::sys::cgroup::DeviceIo) -> [(&'static str, u64); 2]| -> Vec<Value> {
        stats
            .io
            .iter()
            .flat_map(|io| {
                value(io).map(
                    |(op, value)| json!({"major": io.major, "minor": io.minor, "op": op, "value": value}),
                )
            })
            .collect()
    };
    data["blkio"] = json!({
        "ioServiceBytesRecursive": rows(|io| [("Read", io.read_bytes), ("Write", io.write_bytes)]),
        "ioServicedRecursive": rows(|io| [("Read", io.reads), ("Write", io.writes)]),
    });
    Ok(data)
}
