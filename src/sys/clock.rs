//! The system's clock, and what it shows as text.
//!
//! The helpers write times on every line of a log and have no use for time zones: a calendar in a dozen lines is less than
//! a crate for dates in each of them.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Time since the epoch.
pub(crate) fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// RFC 3339 in UTC with nine digits of a second: `2026-01-31T12:00:00.000000001Z`.
pub(crate) fn rfc3339(since_epoch: Duration) -> Timestamp {
    let (days, seconds) = (since_epoch.as_secs() / 86400, since_epoch.as_secs() % 86400);
    // Years that begin in March put the leap day at their end; 400 of them have 146 097 days.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let mut text = *b"0000-00-00T00:00:00.000000000Z";
    let mut put = |at: usize, digits: usize, mut value: u64| {
        for position in (at..at + digits).rev() {
            text[position] = b'0' + (value % 10) as u8;
            value /= 10;
        }
    };
    put(0, 4, year);
    put(5, 2, month);
    put(8, 2, day);
    put(11, 2, seconds / 3600);
    put(14, 2, seconds / 60 % 60);
    put(17, 2, seconds % 60);
    put(20, 9, u64::from(since_epoch.subsec_nanos()));
    Timestamp(text)
}

/// ASCII.
pub(crate) struct Timestamp(pub(crate) [u8; 30]);

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(std::str::from_utf8(&self.0).expect("digits and punctuation are UTF-8"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_print_in_utc_with_nine_digits() {
        for (seconds, nanos, expected) in [
            (0, 0, "1970-01-01T00:00:00.000000000Z"),
            (951_782_399, 999_999_999, "2000-02-28T23:59:59.999999999Z"),
            (951_782_400, 5, "2000-02-29T00:00:00.000000005Z"),
            (1_709_251_199, 0, "2024-02-29T23:59:59.000000000Z"),
            (1_798_761_599, 7, "2026-12-31T23:59:59.000000007Z"),
            (4_102_444_800, 0, "2100-01-01T00:00:00.000000000Z"),
            (4_107_542_400, 0, "2100-03-01T00:00:00.000000000Z"),
        ] {
            assert_eq!(rfc3339(Duration::new(seconds, nanos)).to_string(), expected);
        }
    }
}
