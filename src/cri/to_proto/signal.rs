//! Signal names to the CRI's enum, which numbers signals in its own way.

use crate::proto::v1;

/// Linux's numbers, from the signals that are the same on every architecture Brig runs on; see signal(7).
const STANDARD: [v1::Signal; 31] = {
    use v1::Signal as S;
    [
        S::Sighup,
        S::Sigint,
        S::Sigquit,
        S::Sigill,
        S::Sigtrap,
        S::Sigabrt,
        S::Sigbus,
        S::Sigfpe,
        S::Sigkill,
        S::Sigusr1,
        S::Sigsegv,
        S::Sigusr2,
        S::Sigpipe,
        S::Sigalrm,
        S::Sigterm,
        S::Sigstkflt,
        S::Sigchld,
        S::Sigcont,
        S::Sigstop,
        S::Sigtstp,
        S::Sigttin,
        S::Sigttou,
        S::Sigurg,
        S::Sigxcpu,
        S::Sigxfsz,
        S::Sigvtalrm,
        S::Sigprof,
        S::Sigwinch,
        S::Sigio,
        S::Sigpwr,
        S::Sigsys,
    ]
};

/// SIGRTMIN and SIGRTMAX as programs see them: the C library keeps 32 and 33 for itself.
const RTMIN: i32 = 34;
const RTMAX: i32 = 64;

/// `SIGTERM`, `term`, `15`, `SIGRTMIN+3` and `RTMAX-1`, as image configs write them. `None` for anything else.
pub(super) fn by_name(name: &str) -> Option<v1::Signal> {
    let upper = name.trim().to_ascii_uppercase();
    if let Ok(number) = upper.parse::<i32>() {
        return by_number(number);
    }
    let bare = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(offset) = bare.strip_prefix("RTMIN") {
        return by_number(RTMIN.checked_add(signed_offset(offset, '+')?)?).filter(is_real_time);
    }
    if let Some(offset) = bare.strip_prefix("RTMAX") {
        return by_number(RTMAX.checked_sub(signed_offset(offset, '-')?)?).filter(is_real_time);
    }
    // Aliases (SIGIOT, SIGPOLL, SIGCLD) have numbers of their own in the enum and stay what they are called.
    v1::Signal::from_str_name(&format!("SIG{bare}"))
}

fn signed_offset(text: &str, sign: char) -> Option<i32> {
    if text.is_empty() {
        return Some(0);
    }
    let digits = text.strip_prefix(sign)?;
    digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok())?
}

fn is_real_time(signal: &v1::Signal) -> bool {
    i32::from(*signal) >= i32::from(v1::Signal::Sigrtmin)
}

fn by_number(number: i32) -> Option<v1::Signal> {
    match number {
        1..=31 => STANDARD.get(usize::try_from(number - 1).ok()?).copied(),
        // The enum's real-time signals are in the kernel's order, without a gap.
        RTMIN..=RTMAX => v1::Signal::try_from(i32::from(v1::Signal::Sigrtmin) + number - RTMIN).ok(),
        _ => None,
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
            ("SIGIOT", "SIGIOT"),
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
    fn numbers_and_names_agree() {
        for (number, name) in
            [(1, "SIGHUP"), (10, "SIGUSR1"), (12, "SIGUSR2"), (17, "SIGCHLD"), (29, "SIGIO")]
        {
            assert_eq!(by_number(number), by_name(name));
        }
    }
}
