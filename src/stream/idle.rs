//! When data last moved for a client.
//!
//! Data is what a command, a container, a port or a person has said. What only keeps a connection alive, or is sent by the
//! transport of its own accord (SPDY's SETTINGS and PING, WebSocket's ping and pong), moves nothing: every client sends it
//! for as long as it lives, however long ago it was forgotten.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// The time of the last data of one client, to be told by all who move some. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Activity {
    begin: Instant,
    /// Milliseconds after `begin`.
    moved_ms: Arc<AtomicU64>,
}

impl Activity {
    /// The client has come just now.
    pub(super) fn begin() -> Self {
        Self { begin: Instant::now(), moved_ms: Arc::default() }
    }

    /// Data has moved, either way.
    pub(super) fn moved(&self) {
        // Two days in milliseconds are far below u64.
        self.moved_ms.store(self.begin.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    /// Returns when nothing has moved for `time`, and not before.
    pub(super) async fn idle_for(&self, time: Duration) {
        loop {
            let end = self.begin + Duration::from_millis(self.moved_ms.load(Ordering::Relaxed)) + time;
            if end <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(end).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn whatever_moves_puts_the_end_off() {
        let activity = Activity::begin();
        let (start, hour) = (Instant::now(), Duration::from_secs(3600));
        let move_twice = async {
            for _ in 0..2 {
                tokio::time::sleep(hour / 2).await;
                activity.clone().moved();
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = move_twice => unreachable!("pending"),
            () = activity.idle_for(hour) => assert_eq!(start.elapsed(), 2 * hour),
        }
    }
}
