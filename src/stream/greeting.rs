//! Connections that have shown no token yet, which any process of this machine can make: who they are, and who of them gives
//! way when there are too many.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

/// Such connections at a time; each costs a descriptor and a few KiB. Our clients show their token within milliseconds, and
/// no more than the kubelet and an operator come at once.
const GREETINGS_MAX: usize = 256;

/// All connections of this kind. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Greetings(Arc<Mutex<Waiting>>);

#[derive(Debug, Default)]
struct Waiting {
    next: u64,
    /// By their numbers, which are in the order in which they came.
    all: BTreeMap<u64, CancellationToken>,
}

/// One of them, until it is dropped.
#[derive(Debug)]
pub(super) struct Greeting {
    number: u64,
    displaced: CancellationToken,
    all: Greetings,
}

impl Greetings {
    /// A new one. When there are too many, the oldest gives way: it has been silent longest, and with it out of the way a
    /// crowd of silent ones keeps nobody out, neither for long nor for short.
    pub(super) fn begin(&self) -> Greeting {
        let displaced = CancellationToken::new();
        let mut waiting = self.lock();
        if waiting.all.len() >= GREETINGS_MAX
            && let Some((_, oldest)) = waiting.all.pop_first()
        {
            oldest.cancel();
        }
        let number = waiting.next;
        waiting.next += 1;
        waiting.all.insert(number, displaced.clone());
        Greeting { number, displaced, all: self.clone() }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Greeting {
    /// Returns when this one has to give way. Cancel-safe.
    pub(super) async fn displaced(&self) {
        self.displaced.cancelled().await;
    }

    /// It has shown a token, and gives way to nobody.
    pub(super) fn over(&self) {
        self.all.lock().all.remove(&self.number);
    }
}

impl Drop for Greeting {
    fn drop(&mut self) {
        self.over();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_that_has_shown_no_token_gives_way() {
        let greetings = Greetings::default();
        let all: Vec<Greeting> = (0..GREETINGS_MAX).map(|_| greetings.begin()).collect();
        let displaced = || all.iter().filter(|greeting| greeting.displaced.is_cancelled()).count();
        assert_eq!(displaced(), 0);
        // The second has shown its token meanwhile, which makes room for one.
        all[1].over();
        let _one = greetings.begin();
        assert_eq!(displaced(), 0);
        let more = [greetings.begin(), greetings.begin()];
        assert_eq!(displaced(), 2);
        assert!([0, 2].iter().all(|at| all[*at].displaced.is_cancelled()));
        drop((all, more));
        assert_eq!(greetings.lock().all.len(), 1);
    }
}
