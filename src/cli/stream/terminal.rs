//! The operator's own terminal: raw while a session lasts, and itself again on every way out.

use std::io::IsTerminal;
use std::sync::{Mutex, Once, PoisonError};

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::super::error::CliError;

/// The settings to go back to. Global, because a panic needs them too.
static FORMER: Mutex<Option<Termios>> = Mutex::new(None);

/// While this lives, keys are not for us: CTRL-C and CTRL-Z are bytes like others.
#[derive(Debug)]
pub(super) struct Raw(());

impl Raw {
    pub(super) fn enter() -> Result<Self, CliError> {
        let failed = |error: rustix::io::Errno| CliError::Local("set up the terminal", error.into());
        let former = tcgetattr(std::io::stdin()).map_err(failed)?;
        let mut raw = former.clone();
        raw.make_raw();
        *FORMER.lock().unwrap_or_else(PoisonError::into_inner) = Some(former);
        static HOOK: Once = Once::new();
        // A release build aborts at a panic, and nothing is dropped then.
        HOOK.call_once(|| {
            let report = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |panic| {
                restore();
                report(panic);
            }));
        });
        let entered = Self(());
        tcsetattr(std::io::stdin(), OptionalActions::Flush, &raw).map_err(failed)?;
        Ok(entered)
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        restore();
    }
}

fn restore() {
    let former = FORMER.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(former) = former {
        // A terminal that has been hung up needs no settings.
        tcsetattr(std::io::stdin(), OptionalActions::Now, &former).ok();
    }
}

/// Signals that end us, which come from outside while the terminal is raw. Left to themselves they would leave it so.
#[derive(Debug)]
pub(super) struct Stop([Signal; 4]);

impl Stop {
    const KINDS: [fn() -> SignalKind; 4] =
        [SignalKind::hangup, SignalKind::interrupt, SignalKind::quit, SignalKind::terminate];

    pub(super) fn listen() -> Result<Self, CliError> {
        let listen = |kind: fn() -> SignalKind| signal(kind());
        let [hangup, interrupt, quit, terminate] = Self::KINDS.map(listen);
        let failed = |error| CliError::Local("wait for signals", error);
        Ok(Self([
            hangup.map_err(failed)?,
            interrupt.map_err(failed)?,
            quit.map_err(failed)?,
            terminate.map_err(failed)?,
        ]))
    }

    /// The number of the first that comes.
    pub(super) async fn signal(&mut self) -> i32 {
        let [hangup, interrupt, quit, terminate] = &mut self.0;
        let which = tokio::select! {
            _ = hangup.recv() => 0,
            _ = interrupt.recv() => 1,
            _ = quit.recv() => 2,
            _ = terminate.recv() => 3,
        };
        Self::KINDS[which]().as_raw_value()
    }
}

/// Comes whenever the window has another size.
pub(super) fn changes() -> Result<Signal, CliError> {
    signal(SignalKind::window_change()).map_err(|error| CliError::Local("wait for signals", error))
}

/// Columns and rows of the window, by whichever of our streams is one.
pub(super) fn size() -> Option<(u16, u16)> {
    let size = if std::io::stdin().is_terminal() {
        tcgetwinsize(std::io::stdin())
    } else {
        tcgetwinsize(std::io::stdout())
    };
    size.ok().map(|size| (size.ws_col, size.ws_row))
}
