//! What `/proc` tells of the processes of a container. Blocking.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;

/// Counts over the processes of one container.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Processes {
    pub(crate) count: u64,
    /// `None` when there were too many to look at, or we may not.
    pub(crate) descriptors: Option<Descriptors>,
    /// Soft limit of open files of the first process; `None` once it has gone, or without a limit.
    pub(crate) open_files_max: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Descriptors {
    pub(crate) open: u64,
    /// Sockets among them.
    pub(crate) sockets: u64,
}

/// Open files that one look counts. Each costs a readlink(2) of about a microsecond; a container with more than this is
/// not worth a tenth of a second of every scrape, and half a count would be a wrong one.
const DESCRIPTORS_MAX: u64 = 100_000;

impl Processes {
    /// Looks at the processes `pids`; `first` is the container's own.
    pub(crate) fn read(pids: &[i32], first: Option<i32>) -> Self {
        let limits = first.and_then(|pid| fs::read_to_string(format!("/proc/{pid}/limits")).ok());
        Self {
            count: pids.len() as u64,
            descriptors: descriptors(pids),
            open_files_max: limits.and_then(|text| open_files(&text)),
        }
    }
}

fn descriptors(pids: &[i32]) -> Option<Descriptors> {
    let mut sum = Descriptors::default();
    for pid in pids {
        let entries = match fs::read_dir(format!("/proc/{pid}/fd")) {
            Ok(entries) => entries,
            // Processes come and go meanwhile.
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(_) => return None,
        };
        for entry in entries.flatten() {
            sum.open += 1;
            if sum.open > DESCRIPTORS_MAX {
                return None;
            }
            let socket = |target: std::path::PathBuf| target.as_os_str().as_bytes().starts_with(b"socket:");
            sum.sockets += u64::from(fs::read_link(entry.path()).is_ok_and(socket));
        }
    }
    Some(sum)
}

/// proc_pid_limits(5): the name in 26 columns, then soft limit, hard limit and unit.
fn open_files(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_files_and_sockets_of_a_process_are_counted() {
        let own = [std::process::id().cast_signed()];
        let before = descriptors(&own).unwrap();
        let pair = std::os::unix::net::UnixStream::pair().unwrap();
        let file = fs::File::open("/dev/null").unwrap();
        let after = descriptors(&own).unwrap();
        drop((pair, file));
        // Other tests of this process open files as well.
        assert!(
            after.sockets >= 2 && after.open >= before.open.min(after.open - 3) + 3,
            "{before:?} {after:?}"
        );
        assert_eq!(descriptors(&[i32::MAX]), Some(Descriptors::default()));
    }

    #[test]
    fn the_soft_limit_of_open_files_is_the_first_number() {
        let text = "Limit                     Soft Limit           Hard Limit           Units     \n\
                    Max processes             5                    6                    processes \n\
                    Max open files            1024                 524288               files     \n";
        assert_eq!(open_files(text), Some(1024));
        assert_eq!(
            open_files("Max open files            unlimited            unlimited            files \n"),
            None
        );
        assert_eq!(open_files(""), None);
    }
}
