//! Signal names to the CRI's enum, which numbers signals in its own way.

use crate::proto::v1;
use crate::sys::signal;

/// `SIGTERM`, `term`, `15`, `SIGRTMIN+3` and `RTMAX-1`. `None` for anything else.
pub(super) fn by_name(name: &str) -> Option<v1::Signal> {
    match signal::parse(name)? {
        // The enum's real-time signals are in the kernel's order, without a gap.
        number @ signal::RTMIN..=signal::RTMAX => {
            v1::Signal::try_from(i32::from(v1::Signal::Sigrtmin) + number - signal::RTMIN).ok()
        }
        number => v1::Signal::from_str_name(&signal::name(number)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_of_writing_a_signal_leads_to_the_enum() {
        for (text, name) in [
            ("SIGTERM", "SIGTERM"),
            ("term", "SIGTERM"),
            ("15", "SIGTERM"),
            ("9", "SIGKILL"),
            ("31", "SIGSYS"),
            // An alias leads to the usual name.
            ("SIGIOT", "SIGABRT"),
            ("29", "SIGIO"),
            ("SIGRTMIN", "SIGRTMIN"),
            ("34", "SIGRTMIN"),
            ("SIGRTMIN+3", "SIGRTMINPLUS3"),
            ("37", "SIGRTMINPLUS3"),
            ("rtmin+16", "SIGRTMAXMINUS14"),
            ("RTMAX-1", "SIGRTMAXMINUS1"),
            ("SIGRTMAX-15", "SIGRTMINPLUS15"),
            ("64", "SIGRTMAX"),
        ] {
            assert_eq!(by_name(text).map(|signal| signal.as_str_name()), Some(name), "{text}");
        }
        for bad in
            ["", "0", "32", "65", "SIGNOPE", "RTMIN+31", "RTMIN-1", "RTMAX-64", "RTMIN++1", "RUNTIME_DEFAULT"]
        {
            assert_eq!(by_name(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_enum_has_every_signal_that_a_program_can_be_sent() {
        for number in (1..=31).chain(signal::RTMIN..=signal::RTMAX) {
            assert!(by_name(&number.to_string()).is_some(), "{number}");
        }
    }
}
