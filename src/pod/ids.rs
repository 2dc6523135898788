//! Host ids for pods of hardened handlers: ranges of 65536, no two of which ever overlap.
//!
//! ```text
//! run directory/ids/1879048192 -> ID-OF-THE-POD      a symbolic link: made at once or not at all, and holds no file
//! ```
//!
//! A range is taken before the pod's record says so and given back after the record is gone, so that whatever a crash
//! leaves is a range too many and never one too few. A range whose pod cannot be read stays taken. The folder is empty
//! after a reboot, as is the table of pods. Nothing on any disk is owned by these ids: images and volumes are mapped.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::container::hardened::IDS_PER_POD;
use crate::id::PodId;

/// All ranges of this node.
#[derive(Debug)]
pub(crate) struct IdPool {
    dir: PathBuf,
    first: u32,
    pods: u32,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    /// Pods by the first id of their range; one from an earlier configuration may lie anywhere.
    by_first: BTreeMap<u32, String>,
    /// Where the search begins, so that a range rests before it is taken again.
    next: u32,
}

/// Why a pod gets no ids.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IdsError {
    #[error("all {0} ranges of ids are taken; raise runtime.id_pool_pods")]
    Exhausted(u32),
    #[error("cannot {action} {}", path.display())]
    File {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl IdPool {
    /// Reads which ranges an earlier daemon gave out. Blocking.
    pub(crate) fn open(dir: PathBuf, first: u32, pods: u32) -> Result<Self, IdsError> {
        let failed = |action, path: PathBuf| move |source| IdsError::File { action, path, source };
        std::fs::create_dir_all(&dir).map_err(failed("create directory", dir.clone()))?;
        let mut taken = Taken::default();
        for entry in std::fs::read_dir(&dir).map_err(failed("read", dir.clone()))? {
            let entry = entry.map_err(failed("read", dir.clone()))?;
            // What is not ours is left alone.
            let Ok(first) = entry.file_name().to_string_lossy().parse() else { continue };
            let pod = std::fs::read_link(entry.path()).map_err(failed("read", entry.path()))?;
            taken.by_first.insert(first, pod.to_string_lossy().into_owned());
        }
        Ok(Self { dir, first, pods, taken: Mutex::new(taken) })
    }

    /// A range for a pod: its first id. Blocking, for one link on a tmpfs.
    pub(crate) fn take(&self, pod: &PodId) -> Result<u32, IdsError> {
        let mut taken = self.lock();
        let slot = (0..self.pods)
            .map(|step| (taken.next + step) % self.pods)
            .find(|slot| is_free(&taken.by_first, self.first + slot * IDS_PER_POD))
            .ok_or(IdsError::Exhausted(self.pods))?;
        let first = self.first + slot * IDS_PER_POD;
        let path = self.dir.join(first.to_string());
        std::os::unix::fs::symlink(pod.as_str(), &path).map_err(|source| IdsError::File {
            action: "make the link",
            path,
            source,
        })?;
        taken.by_first.insert(first, pod.to_string());
        taken.next = (slot + 1) % self.pods;
        Ok(first)
    }

    /// Gives back what a pod has; one that has nothing is fine.
    pub(crate) fn give_back(&self, pod: &PodId) -> Result<(), IdsError> {
        self.retain(|owner| owner != pod.as_str())
    }

    /// Gives back the ranges of pods that are not among `known`.
    pub(crate) fn collect(&self, known: &HashSet<String>) -> Result<(), IdsError> {
        self.retain(|owner| known.contains(owner))
    }

    fn retain(&self, keep: impl Fn(&str) -> bool) -> Result<(), IdsError> {
        let mut taken = self.lock();
        let gone: Vec<u32> =
            taken.by_first.iter().filter(|(_, owner)| !keep(owner)).map(|(first, _)| *first).collect();
        for first in gone {
            let path = self.dir.join(first.to_string());
            match std::fs::remove_file(&path) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(IdsError::File { action: "remove", path, source });
                }
                _ => taken.by_first.remove(&first),
            };
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// No taken range begins less than a range's length before or after `first`.
fn is_free(taken: &BTreeMap<u32, String>, first: u32) -> bool {
    let least = first.saturating_sub(IDS_PER_POD - 1);
    taken.range(least..first + IDS_PER_POD).next().is_none()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pod(number: u8) -> PodId {
        format!("{number:02x}").repeat(32).parse().unwrap()
    }

    #[test]
    fn a_range_rests_before_it_is_taken_again_and_the_last_is_not_overrun() {
        let dir = tempfile::tempdir().unwrap();
        let pool = IdPool::open(dir.path().join("ids"), 100_000, 2).unwrap();
        assert_eq!(pool.take(&pod(1)).unwrap(), 100_000);
        pool.give_back(&pod(1)).unwrap();
        assert_eq!(pool.take(&pod(2)).unwrap(), 165_536);
        assert_eq!(pool.take(&pod(3)).unwrap(), 100_000);
        assert!(matches!(pool.take(&pod(4)), Err(IdsError::Exhausted(2))));
    }

    proptest! {
        /// Whatever is taken, given back, and forgotten by a restart with a range that has moved: no two pods overlap.
        #[test]
        fn no_two_pods_ever_share_an_id(steps in prop::collection::vec((0u8..3, 0u8..8, 0u32..200_000), 1..60)) {
            let dir = tempfile::tempdir().unwrap();
            let open = |shift: u32| IdPool::open(dir.path().join("ids"), 1 << 20 | shift, 4).unwrap();
            let mut pool = open(0);
            let mut model: BTreeMap<u8, u32> = BTreeMap::new();
            for (step, number, shift) in steps {
                match step {
                    0 if !model.contains_key(&number) => {
                        if let Ok(first) = pool.take(&pod(number)) {
                            for other in model.values() {
                                prop_assert!(first.abs_diff(*other) >= IDS_PER_POD);
                            }
                            model.insert(number, first);
                        }
                    }
                    1 => {
                        pool.give_back(&pod(number)).unwrap();
                        model.remove(&number);
                    }
                    _ => pool = open(shift),
                }
            }
        }
    }
}
