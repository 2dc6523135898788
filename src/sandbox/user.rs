//! What a process is: user, groups, resource limits, scheduling, I/O priority, personality.

use rustix::process::{Gid, Pid, Resource, Rlimit, Uid, getrlimit, prlimit};

use super::error::{Attempt, Error};
use super::log;
use super::spec::{self, Process};
use crate::sys::process::Scheduling;

pub(super) fn resource(name: &str) -> Option<Resource> {
    Some(match name.strip_prefix("RLIMIT_")? {
        "CPU" => Resource::Cpu,
        "FSIZE" => Resource::Fsize,
        "DATA" => Resource::Data,
        "STACK" => Resource::Stack,
        "CORE" => Resource::Core,
        "RSS" => Resource::Rss,
        "NPROC" => Resource::Nproc,
        "NOFILE" => Resource::Nofile,
        "MEMLOCK" => Resource::Memlock,
        "AS" => Resource::As,
        "LOCKS" => Resource::Locks,
        "SIGPENDING" => Resource::Sigpending,
        "MSGQUEUE" => Resource::Msgqueue,
        "NICE" => Resource::Nice,
        "RTPRIO" => Resource::Rtprio,
        "RTTIME" => Resource::Rttime,
        _ => return None,
    })
}

/// Sets the limits of a process, `None` for the caller.
///
/// prlimit(2) on a process that has become another user needs CAP_SYS_RESOURCE. With it, the creator sets the limits
/// from outside, where they hold whatever the container's user namespace allows; without it, the process sets its own
/// while it is still root. A limit that cannot be raised is then set as high as it may be, with a warning, because the
/// process is not less confined than asked.
pub(super) fn set_rlimits(pid: Option<i32>, limits: &[spec::Rlimit]) -> Result<(), Error> {
    let pid = pid.and_then(Pid::from_raw);
    for limit in limits {
        let resource = resource(&limit.kind).expect("validation accepts known limits only");
        // RLIM_INFINITY is the largest number, which rustix spells None.
        let wanted = |value: u64| (value != u64::MAX).then_some(value);
        let new = Rlimit { current: wanted(limit.soft), maximum: wanted(limit.hard) };
        match prlimit(pid, resource, new) {
            Err(rustix::io::Errno::PERM | rustix::io::Errno::ACCESS) => {
                let ceiling = getrlimit(resource).maximum.unwrap_or(u64::MAX);
                let (soft, hard) = (limit.soft.min(ceiling), limit.hard.min(ceiling));
                log::warn(&format!(
                    "{} of {} cannot be raised without CAP_SYS_RESOURCE, set to {hard}",
                    limit.kind, limit.hard
                ));
                let clamped = Rlimit { current: wanted(soft), maximum: wanted(hard) };
                prlimit(pid, resource, clamped).attempt(|| format!("set {} to {soft}:{hard}", limit.kind))?;
            }
            result => {
                result.attempt(|| format!("set {} to {}:{}", limit.kind, limit.soft, limit.hard))?;
            }
        }
    }
    Ok(())
}

/// Whether limits are set from outside, see [`set_rlimits`].
pub(super) fn may_raise_limits() -> bool {
    use rustix::thread::{CapabilitySet, capabilities};
    capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_RESOURCE))
}

/// Sets groups, then the group, then the user of this process. Capabilities stay as keepcaps says.
pub(super) fn become_user(user: &spec::User) -> Result<(), Error> {
    let groups: Vec<Gid> = user.additional_gids.iter().map(|gid| Gid::from_raw(*gid)).collect();
    match rustix::thread::set_thread_groups(&groups) {
        // A user namespace whose setgroups file says "deny" has none to drop or to add (user_namespaces(7)).
        Err(rustix::io::Errno::PERM) if groups.is_empty() => {}
        result => result.attempt(|| format!("set the additional groups {:?}", user.additional_gids))?,
    }
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    rustix::thread::set_thread_res_gid(gid, gid, gid)
        .attempt(|| format!("become group {}; is it mapped in the user namespace?", user.gid))?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)
        .attempt(|| format!("become user {}; is it mapped in the user namespace?", user.uid))?;
    Ok(())
}

/// Gives the standard streams to the container's user, so that it can open /dev/stdout again.
pub(super) fn own_stdio(user: &spec::User) -> Result<(), Error> {
    for stream in [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()] {
        let Ok(stat) = rustix::fs::fstat(stream) else { continue };
        // The host's /dev/null is everybody's.
        if stat.st_uid == user.uid || stat.st_rdev == rustix::fs::makedev(1, 3) {
            continue;
        }
        match rustix::fs::fchown(stream, Some(Uid::from_raw(user.uid)), None) {
            // The stream may be of a user that is not mapped, on a read-only mount, or of a kind without owners.
            Ok(()) | Err(rustix::io::Errno::PERM | rustix::io::Errno::INVAL | rustix::io::Errno::ROFS) => {}
            Err(error) => return Err(error).attempt(|| "give a standard stream to the user".to_owned()),
        }
    }
    Ok(())
}

pub(super) fn io_class(name: &str) -> Option<u32> {
    Some(match name {
        "IOPRIO_CLASS_RT" => 1,
        "IOPRIO_CLASS_BE" => 2,
        "IOPRIO_CLASS_IDLE" => 3,
        _ => return None,
    })
}

/// sched_setattr(2)'s numbers for the names of the runtime specification.
pub(super) fn scheduling(scheduler: &spec::Scheduler) -> Result<Scheduling, Error> {
    let policy = match scheduler.policy.as_str() {
        "SCHED_OTHER" => 0,
        "SCHED_FIFO" => 1,
        "SCHED_RR" => 2,
        "SCHED_BATCH" => 3,
        "SCHED_ISO" => 4,
        "SCHED_IDLE" => 5,
        "SCHED_DEADLINE" => 6,
        other => {
            return Err(Error::invalid("process.scheduler.policy", other, "see sched(7) for the policies"));
        }
    };
    let mut flags = 0;
    for flag in &scheduler.flags {
        flags |= match flag.as_str() {
            "SCHED_FLAG_RESET_ON_FORK" => 0x01,
            "SCHED_FLAG_RECLAIM" => 0x02,
            "SCHED_FLAG_DL_OVERRUN" => 0x04,
            "SCHED_FLAG_KEEP_POLICY" => 0x08,
            "SCHED_FLAG_KEEP_PARAMS" => 0x10,
            "SCHED_FLAG_UTIL_CLAMP_MIN" => 0x20,
            "SCHED_FLAG_UTIL_CLAMP_MAX" => 0x40,
            other => {
                return Err(Error::invalid(
                    "process.scheduler.flags",
                    other,
                    "see sched_setattr(2) for the flags",
                ));
            }
        };
    }
    if !(-20..=19).contains(&scheduler.nice) {
        return Err(Error::invalid("process.scheduler.nice", scheduler.nice, "the range is -20 to 19"));
    }
    let priority = u32::try_from(scheduler.priority).map_err(|_| {
        Error::invalid("process.scheduler.priority", scheduler.priority, "it must not be negative")
    })?;
    Ok(Scheduling {
        policy,
        flags,
        nice: scheduler.nice,
        priority,
        runtime_ns: scheduler.runtime,
        deadline_ns: scheduler.deadline,
        period_ns: scheduler.period,
        ..Scheduling::default()
    })
}

/// Scheduling policy and I/O priority of this process.
pub(super) fn set_priorities(process: &Process) -> Result<(), Error> {
    if let Some(scheduler) = &process.scheduler {
        crate::sys::process::set_scheduling(scheduling(scheduler)?)
            .attempt(|| format!("set the scheduler {}", scheduler.policy))?;
    }
    if let Some(priority) = &process.io_priority {
        let class = io_class(&priority.class).expect("validation accepts known classes only");
        crate::sys::process::set_io_priority(class, priority.priority as u32)
            .attempt(|| format!("set the I/O priority {} {}", priority.class, priority.priority))?;
    }
    Ok(())
}

/// The execution domain, personality(2).
pub(super) fn set_personality(personality: &spec::Personality) -> Result<(), Error> {
    let value = match personality.domain.as_str() {
        "LINUX" => 0x0000,
        "LINUX32" => 0x0008,
        other => {
            return Err(Error::invalid(
                "linux.personality.domain",
                other,
                "the domains are LINUX and LINUX32",
            ));
        }
    };
    if let Some(flag) = personality.flags.first() {
        return Err(Error::invalid("linux.personality.flags", flag, "no flags are defined"));
    }
    crate::sys::process::set_personality(value)
        .attempt(|| format!("set the personality {}", personality.domain))
}
