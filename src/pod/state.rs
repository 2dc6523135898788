//! The life of a pod as pure functions.
//!
//! ```text
//!         stop begins           network back, containers ended, monitor gone
//! Ready ──────────────▶ Stopping ──────────────────────────────▶ Stopped ──remove──▶ (gone)
//!   └───────────── monitor lost ───▲
//! ```
//!
//! CRI knows READY and NOTREADY only: everything after Ready is NOTREADY and no pod ever comes back. Stopping is kept
//! apart from Stopped because StopPodSandbox must go on reclaiming what an earlier call could not.

use serde::{Deserialize, Serialize};

/// Where a pod is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum State {
    Ready,
    Stopping,
    Stopped,
}

/// What is asked of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Request {
    CreateContainer,
    Stop,
    Remove,
    Update,
    PortForward,
}

/// The answer to an admissible request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Admission {
    Proceed,
    /// Stop first, then proceed.
    StopFirst,
    AlreadyDone,
}

/// Why a request is refused in this state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Denied {
    #[error("the pod was stopped; run a new one")]
    Stopped,
}

impl State {
    /// Whether `request` may be carried out now (CRI v1: StopPodSandbox and RemovePodSandbox are idempotent).
    pub(crate) fn admit(self, request: Request) -> Result<Admission, Denied> {
        use Admission::{AlreadyDone, Proceed, StopFirst};
        match (request, self) {
            (Request::CreateContainer | Request::Update | Request::PortForward, State::Ready) => Ok(Proceed),
            (
                Request::CreateContainer | Request::Update | Request::PortForward,
                State::Stopping | State::Stopped,
            ) => Err(Denied::Stopped),
            (Request::Stop, State::Ready | State::Stopping) => Ok(Proceed),
            (Request::Stop, State::Stopped) => Ok(AlreadyDone),
            (Request::Remove, State::Ready | State::Stopping) => Ok(StopFirst),
            (Request::Remove, State::Stopped) => Ok(Proceed),
        }
    }

    pub(crate) fn is_ready(self) -> bool {
        self == State::Ready
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_ready_pod_takes_containers_and_every_pod_can_be_stopped_and_removed() {
        for state in [State::Ready, State::Stopping, State::Stopped] {
            assert_eq!(state.admit(Request::CreateContainer).is_ok(), state.is_ready());
            assert!(state.admit(Request::Stop).is_ok());
            assert!(state.admit(Request::Remove).is_ok());
        }
        assert_eq!(State::Stopped.admit(Request::Stop), Ok(Admission::AlreadyDone));
        assert_eq!(State::Stopping.admit(Request::Stop), Ok(Admission::Proceed));
    }
}
