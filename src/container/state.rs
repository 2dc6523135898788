//! The life of a container as pure functions: no clock, no lock, no file.
//!
//! ```text
//!             start            exit
//! Created ──────────▶ Running ──────▶ Exited ──remove──▶ (gone)
//!    │  └── start failed, killed before start ──▲
//!    └──────────────── monitor lost ────────────┘  (exit code 255)
//! ```
//!
//! States only move to the right: CRI clients rely on CREATED, RUNNING, EXITED being monotonic. A container whose
//! monitor is lost is Exited with code 255 and reason `Unknown`, never stuck.

use serde::{Deserialize, Serialize};

use crate::units::UnixNanos;

/// Where a container is in its life, with what is known there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum State {
    Created,
    Running { started_at: UnixNanos },
    Exited(Exit),
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Exit {
    /// `None` if it was never started.
    pub started_at: Option<UnixNanos>,
    pub finished_at: UnixNanos,
    /// 0 to 255; 128 + n for signal n.
    pub code: i32,
    pub reason: Reason,
    /// For the operator; empty when the code says it all.
    pub message: String,
}

/// Why a container is Exited, in the words the kubelet shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Reason {
    Completed,
    Error,
    /// CRI v1: reason MUST be `OOMKilled` when the container was ended by its memory limit.
    OomKilled,
    StartError,
    Unknown,
}

impl Reason {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Reason::Completed => "Completed",
            Reason::Error => "Error",
            Reason::OomKilled => "OOMKilled",
            Reason::StartError => "StartError",
            Reason::Unknown => "Unknown",
        }
    }
}

/// What is asked of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Request {
    Start,
    Stop,
    Remove,
    Exec,
    Attach,
    ReopenLog,
    Update,
}

/// The answer to an admissible request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Admission {
    Proceed,
    /// Proceed, but what runs must be killed first.
    KillFirst,
    /// Nothing to do; answer as if it had just been done.
    AlreadyDone,
}

/// Why a request is refused in this state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Denied {
    #[error("the container is running already")]
    AlreadyRunning,
    #[error("the container has exited; create a new one instead")]
    AlreadyExited,
    #[error("the container is created but not started")]
    NotStarted,
    #[error("the container has exited")]
    NotRunning,
}

impl State {
    /// Whether `request` may be carried out now.
    ///
    /// CRI v1: StopContainer "must not return an error if the container has already been stopped", RemoveContainer
    /// must forcibly remove a running container, StartContainer needs CREATED.
    pub(crate) fn admit(&self, request: Request) -> Result<Admission, Denied> {
        use Admission::{AlreadyDone, KillFirst, Proceed};
        match (request, self) {
            (Request::Start, State::Created) => Ok(Proceed),
            (Request::Start, State::Running { .. }) => Err(Denied::AlreadyRunning),
            (Request::Start, State::Exited(_)) => Err(Denied::AlreadyExited),
            (Request::Stop, State::Created | State::Running { .. }) => Ok(Proceed),
            (Request::Stop, State::Exited(_)) => Ok(AlreadyDone),
            (Request::Remove, State::Created | State::Running { .. }) => Ok(KillFirst),
            (Request::Remove, State::Exited(_)) => Ok(Proceed),
            (Request::Exec | Request::ReopenLog, State::Running { .. }) => Ok(Proceed),
            (Request::Exec | Request::ReopenLog, State::Created) => Err(Denied::NotStarted),
            // Whoever attaches before the start misses nothing.
            (Request::Attach | Request::Update, State::Created | State::Running { .. }) => Ok(Proceed),
            (Request::Exec | Request::Attach | Request::ReopenLog | Request::Update, State::Exited(_)) => {
                Err(Denied::NotRunning)
            }
        }
    }

    /// After a successful start. An exit that was seen first stays.
    #[must_use]
    pub(crate) fn started(self, at: UnixNanos) -> State {
        match self {
            State::Created => State::Running { started_at: at },
            State::Running { .. } | State::Exited(_) => self,
        }
    }

    /// After the process has ended. The first exit stays: a state never changes once it was visible.
    #[must_use]
    pub(crate) fn exited(self, ended: Ended) -> State {
        let started_at = match self {
            State::Exited(_) => return self,
            State::Created => None,
            State::Running { started_at } => Some(started_at),
        };
        let (code, reason, message, finished_at) = match ended {
            Ended::Process { code, oom_killed, at } => {
                let reason = match (oom_killed, code) {
                    (true, _) => Reason::OomKilled,
                    (false, 0) => Reason::Completed,
                    (false, _) => Reason::Error,
                };
                (code, reason, String::new(), at)
            }
            Ended::StartFailed { message, at } => (128, Reason::StartError, message, at),
            Ended::Lost { message, at } => (255, Reason::Unknown, message, at),
        };
        State::Exited(Exit { started_at, finished_at, code, reason, message })
    }

    pub(crate) fn is_exited(&self) -> bool {
        matches!(self, State::Exited(_))
    }
}

/// How an end was learnt of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ended {
    /// The monitor reaped the process.
    Process { code: i32, oom_killed: bool, at: UnixNanos },
    /// StartContainer failed: exit code 128, reason `StartError`.
    StartFailed { message: String, at: UnixNanos },
    /// Nobody knows: exit code 255, reason `Unknown`.
    Lost { message: String, at: UnixNanos },
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Step {
        Started(i64),
        Exited(i32, bool, i64),
        Lost(i64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            any::<i64>().prop_map(Step::Started),
            (0..256i32, any::<bool>(), any::<i64>()).prop_map(|(c, o, t)| Step::Exited(c, o, t)),
            any::<i64>().prop_map(Step::Lost),
        ]
    }

    fn rank(state: &State) -> u8 {
        match state {
            State::Created => 0,
            State::Running { .. } => 1,
            State::Exited(_) => 2,
        }
    }

    proptest! {
        /// The model is one number that may only grow, and an exit that is kept for ever.
        #[test]
        fn states_only_move_forward_and_the_first_exit_stays(steps in prop::collection::vec(step(), 0..12)) {
            let mut state = State::Created;
            let mut first_exit = None;
            for step in steps {
                let before = rank(&state);
                state = match step {
                    Step::Started(at) => state.started(UnixNanos(at)),
                    Step::Exited(code, oom_killed, at) => {
                        state.exited(Ended::Process { code, oom_killed, at: UnixNanos(at) })
                    }
                    Step::Lost(at) => state.exited(Ended::Lost { message: "gone".into(), at: UnixNanos(at) }),
                };
                prop_assert!(rank(&state) >= before);
                if let State::Exited(exit) = &state {
                    prop_assert_eq!(first_exit.get_or_insert_with(|| exit.clone()), exit);
                }
                prop_assert!(state.admit(Request::Stop).is_ok() && state.admit(Request::Remove).is_ok());
                prop_assert_eq!(state.admit(Request::Start).is_ok(), rank(&state) == 0);
                prop_assert_eq!(state.admit(Request::Exec).is_ok(), rank(&state) == 1);
                prop_assert_eq!(state.admit(Request::Attach).is_ok(), rank(&state) < 2);
            }
        }
    }

    #[test]
    fn reasons_follow_the_exit() {
        let running = State::Running { started_at: UnixNanos(5) };
        for (ended, code, reason) in [
            (Ended::Process { code: 0, oom_killed: false, at: UnixNanos(9) }, 0, Reason::Completed),
            (Ended::Process { code: 3, oom_killed: false, at: UnixNanos(9) }, 3, Reason::Error),
            (Ended::Process { code: 137, oom_killed: true, at: UnixNanos(9) }, 137, Reason::OomKilled),
            (Ended::StartFailed { message: "m".into(), at: UnixNanos(9) }, 128, Reason::StartError),
            (Ended::Lost { message: "m".into(), at: UnixNanos(9) }, 255, Reason::Unknown),
        ] {
            let State::Exited(exit) = running.clone().exited(ended) else { panic!("not exited") };
            assert_eq!((exit.code, exit.reason, exit.started_at), (code, reason, Some(UnixNanos(5))));
        }
    }
}
