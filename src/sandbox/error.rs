//! Every way in which a verb of the sandbox fails.

use std::io;

/// What [`super::main`] prints, with its chain of sources, on stderr and into the log.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// The command line cannot be understood.
    #[error("{0}; see `brig-sandbox --help`")]
    Usage(String),
    /// A field of config.json, or of a process or resources document, has a value that cannot be.
    #[error("{field} is {value}, but {limit}")]
    Invalid { field: String, value: String, limit: String },
    /// A JSON document cannot be read; the source says where.
    #[error("cannot read {what} as JSON")]
    Json {
        what: String,
        #[source]
        source: serde_json::Error,
    },
    /// The container id is taken.
    #[error("container with id {0} exists already; delete it first or choose another id")]
    Exists(String),
    /// There is no such container under this root. Callers look for "does not exist" in it.
    #[error("container {0} does not exist")]
    Missing(String),
    /// The verb does not fit the state.
    #[error("cannot {verb} container {id}: container is {status}; {remedy}")]
    State { verb: &'static str, id: String, status: &'static str, remedy: &'static str },
    /// Callers look for "container not running" to treat a kill as done.
    #[error("container not running: {0} has stopped")]
    NotRunning(String),
    /// A system call failed.
    #[error("cannot {attempted}")]
    Os {
        attempted: String,
        #[source]
        source: io::Error,
    },
    /// The first process of the container, or of an exec, reported this before it ended.
    #[error("{0}")]
    Init(String),
    /// The first process ended without a word.
    #[error("{0} ended during set-up ({1}); if a memory limit is set it may be too low")]
    InitDied(&'static str, String),
    /// A hook failed; the lifecycle stops here.
    #[error("hook {name}[{index}] {path:?} {why}")]
    Hook { name: &'static str, index: usize, path: std::path::PathBuf, why: String },
    /// The program to run is not there or not executable, in execvp(3)'s three flavours.
    #[error("exec: {program:?}: {why}")]
    Program { program: String, why: String },
    /// Asked for something this runtime does not do.
    #[error("{0} is not supported")]
    Unsupported(String),
    /// From the control groups.
    #[error("cannot set up control groups")]
    Cgroup(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// From the seccomp compiler.
    #[error("linux.seccomp cannot be compiled")]
    Seccomp(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl Error {
    pub(super) fn invalid(
        field: impl Into<String>,
        value: impl std::fmt::Debug,
        limit: impl Into<String>,
    ) -> Self {
        Self::Invalid { field: field.into(), value: format!("{value:?}"), limit: limit.into() }
    }

    /// The error and its sources, joined by ": ".
    pub(super) fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut next = std::error::Error::source(self);
        while let Some(source) = next {
            text.push_str(": ");
            text.push_str(&source.to_string());
            next = source.source();
        }
        text
    }
}

/// Says what was attempted when a system call fails.
pub(super) trait Attempt<T> {
    /// `attempted` completes "cannot …".
    fn attempt(self, attempted: impl FnOnce() -> String) -> Result<T, Error>;
}

impl<T, E: Into<io::Error>> Attempt<T> for Result<T, E> {
    fn attempt(self, attempted: impl FnOnce() -> String) -> Result<T, Error> {
        self.map_err(|source| Error::Os { attempted: attempted(), source: source.into() })
    }
}
