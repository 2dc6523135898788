//! Tickets: what a URL of the streaming server stands for, once and for a minute.
//!
//! The kubelet asks for a URL over gRPC, where only root may ask, and whoever comes with the URL over HTTP is let in.
//! So a token is as good as root in that container: it is random, works once, and runs out.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

/// How long a URL waits for its client: the kubelet connects at once, and a human's proxy within seconds.
const VALID: Duration = Duration::from_secs(60);

/// Tickets that wait at the same time. Each is a gRPC call whose client has not connected yet.
const WAITING_MAX: usize = 1000;

/// Bytes of a token, beyond any guessing.
const TOKEN_BYTES: usize = 24;

type Token = [u8; TOKEN_BYTES];

/// Why there is no ticket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TicketError {
    #[error("{WAITING_MAX} streams wait for their clients already; try again within a minute")]
    Full,
    #[error("the kernel gives no random bytes")]
    NoRandomness,
}

#[derive(Debug)]
struct Ticket<T> {
    token: Token,
    until: Instant,
    what: T,
}

/// All tickets that nobody has come with yet.
#[derive(Debug)]
pub(super) struct Tickets<T>(Mutex<Vec<Ticket<T>>>);

impl<T> Default for Tickets<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T> Tickets<T> {
    /// Keeps `what` under a new token, which is returned as text that is safe in a URL.
    pub(super) fn issue(&self, what: T, now: Instant) -> Result<String, TicketError> {
        let mut token = Token::default();
        getrandom::fill(&mut token).map_err(|_| TicketError::NoRandomness)?;
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.retain(|ticket| ticket.until > now);
        if waiting.len() >= WAITING_MAX {
            return Err(TicketError::Full);
        }
        waiting.push(Ticket { token, until: now + VALID, what });
        Ok(URL_SAFE_NO_PAD.encode(token))
    }

    /// What `text` stands for, if it is a token that is still good; it is not good any more afterwards.
    ///
    /// Takes as long for a wrong token as for a used or expired one: every ticket is compared in full.
    pub(super) fn redeem(&self, text: &str, now: Instant) -> Option<T> {
        // What is not a token at all is compared as one that nobody has.
        let mut token = Token::default();
        let is_token = URL_SAFE_NO_PAD.decode_slice(text, &mut token) == Ok(TOKEN_BYTES);
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut found = None;
        for (at, ticket) in waiting.iter().enumerate() {
            let different = ticket.token.iter().zip(&token).fold(0, |sum, (a, b)| sum | (a ^ b));
            if std::hint::black_box(different) == 0 {
                found = Some(at);
            }
        }
        let ticket = waiting.swap_remove(found.filter(|_| is_token)?);
        (ticket.until > now).then_some(ticket.what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_works_once() {
        let (tickets, now) = (Tickets::default(), Instant::now());
        let (first, second) = (tickets.issue(1, now).unwrap(), tickets.issue(2, now).unwrap());
        assert_ne!(first, second);
        assert_eq!(tickets.redeem(&second, now), Some(2));
        assert_eq!(tickets.redeem(&second, now), None);
        assert_eq!(tickets.redeem(&first, now), Some(1));
    }

    #[test]
    fn a_token_runs_out_after_a_minute() {
        let (tickets, now) = (Tickets::default(), Instant::now());
        let token = tickets.issue("a", now).unwrap();
        assert_eq!(tickets.redeem(&token, now + VALID), None);
        let token = tickets.issue("b", now).unwrap();
        assert_eq!(tickets.redeem(&token, now + VALID - Duration::from_millis(1)), Some("b"));
    }

    #[test]
    fn what_is_no_token_is_not_found() {
        let (tickets, now) = (Tickets::default(), Instant::now());
        let token = tickets.issue((), now).unwrap();
        for wrong in ["", "x", "!!!", &token[1..], &format!("{token}A"), &"A".repeat(32)] {
            assert_eq!(tickets.redeem(wrong, now), None, "{wrong:?}");
        }
        assert_eq!(token.len(), 32);
        assert_eq!(tickets.redeem(&token, now), Some(()));
    }

    #[test]
    fn more_than_a_thousand_do_not_wait_and_expired_ones_make_room() {
        let (tickets, now) = (Tickets::default(), Instant::now());
        for number in 0..WAITING_MAX {
            tickets.issue(number, now).unwrap();
        }
        assert_eq!(tickets.issue(0, now), Err(TicketError::Full));
        assert!(tickets.issue(0, now + VALID).is_ok());
    }
}
