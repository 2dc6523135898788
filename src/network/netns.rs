//! Work inside another network namespace: one throwaway thread enters it and ends.
//!
//! A namespace is entered by a thread, not by the process, so no thread that others share ever changes its own. What
//! a thread opens inside (sockets) or reads there (`/proc/sys/net`) belongs to that namespace.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Why work inside a namespace could not begin.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NetnsError {
    #[error("open network namespace {}", .path.display())]
    Open {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("enter a network namespace")]
    Enter(#[source] io::Error),
    #[error("start a thread for work in a network namespace")]
    Thread(#[source] io::Error),
}

/// The namespace behind `path` (`/proc/PID/ns/net` or a file it is mounted on), kept alive by the descriptor.
pub(crate) fn open(path: &Path) -> Result<OwnedFd, NetnsError> {
    File::open(path).map(OwnedFd::from).map_err(|source| NetnsError::Open { path: path.to_owned(), source })
}

/// Runs `work` on a new thread inside `namespace` and waits for it. Costs about 0.05 ms.
///
/// # Panics
/// If `work` panics.
pub(crate) fn within<T: Send>(
    namespace: impl AsFd + Send,
    work: impl FnOnce() -> T + Send,
) -> Result<T, NetnsError> {
    std::thread::scope(|scope| {
        let inside = move || {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
                .map_err(|err| NetnsError::Enter(err.into()))?;
            Ok(work())
        };
        let thread = std::thread::Builder::new()
            .name("netns".to_owned())
            .spawn_scoped(scope, inside)
            .map_err(NetnsError::Thread)?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
