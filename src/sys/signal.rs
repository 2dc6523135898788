//! Signals by name, sent by pidfd, and the dispositions a new program shall find.
#![expect(
    unsafe_code,
    reason = "signal masks, dispositions and pidfd_send_signal by number have no safe wrapper"
)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// The highest signal number of Linux on all our architectures (signal(7)).
pub(crate) const SIGNAL_MAX: i32 = 64;

/// Of two names for one number the usual one stands first.
const NAMES: [(&str, i32); 34] = [
    ("HUP", libc::SIGHUP),
    ("INT", libc::SIGINT),
    ("QUIT", libc::SIGQUIT),
    ("ILL", libc::SIGILL),
    ("TRAP", libc::SIGTRAP),
    ("ABRT", libc::SIGABRT),
    ("IOT", libc::SIGIOT),
    ("BUS", libc::SIGBUS),
    ("FPE", libc::SIGFPE),
    ("KILL", libc::SIGKILL),
    ("USR1", libc::SIGUSR1),
    ("SEGV", libc::SIGSEGV),
    ("USR2", libc::SIGUSR2),
    ("PIPE", libc::SIGPIPE),
    ("ALRM", libc::SIGALRM),
    ("TERM", libc::SIGTERM),
    ("STKFLT", libc::SIGSTKFLT),
    ("CHLD", libc::SIGCHLD),
    ("CLD", libc::SIGCHLD),
    ("CONT", libc::SIGCONT),
    ("STOP", libc::SIGSTOP),
    ("TSTP", libc::SIGTSTP),
    ("TTIN", libc::SIGTTIN),
    ("TTOU", libc::SIGTTOU),
    ("URG", libc::SIGURG),
    ("XCPU", libc::SIGXCPU),
    ("XFSZ", libc::SIGXFSZ),
    ("VTALRM", libc::SIGVTALRM),
    ("PROF", libc::SIGPROF),
    ("WINCH", libc::SIGWINCH),
    ("IO", libc::SIGIO),
    ("POLL", libc::SIGIO),
    ("PWR", libc::SIGPWR),
    ("SYS", libc::SIGSYS),
];

/// The real-time signals as programs see them: the C library keeps 32 and 33 for itself (signal(7)).
pub(crate) const RTMIN: i32 = 34;
pub(crate) const RTMAX: i32 = SIGNAL_MAX;

/// The number of a signal given as `15`, `TERM`, `sigterm`, `RTMIN+3` or `SIGRTMAX-1`.
pub(crate) fn parse(text: &str) -> Option<i32> {
    let upper = text.trim().to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Ok(number) = name.parse::<i32>() {
        return (1..=SIGNAL_MAX).contains(&number).then_some(number);
    }
    if let Some((_, number)) = NAMES.iter().find(|(known, _)| *known == name) {
        return Some(*number);
    }
    match name.strip_prefix("RTMIN") {
        Some(rest) => Some(RTMIN + offset(rest, '+')?),
        None => Some(RTMAX - offset(name.strip_prefix("RTMAX")?, '-')?),
    }
}

/// `+3` or `-3`, or nothing for 0.
fn offset(text: &str, sign: char) -> Option<i32> {
    if text.is_empty() {
        return Some(0);
    }
    let digits = text.strip_prefix(sign)?;
    let number = digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse::<i32>().ok())??;
    (number <= RTMAX - RTMIN).then_some(number)
}

/// The usual name of a signal, which [`parse`] knows. Kubernetes names the lower half of the real-time signals from RTMIN
/// and the upper from RTMAX.
#[cfg(any(feature = "daemon", test))]
pub(crate) fn name(number: i32) -> String {
    if let Some((name, _)) = NAMES.iter().find(|(_, known)| *known == number) {
        return format!("SIG{name}");
    }
    match number {
        RTMIN => "SIGRTMIN".to_owned(),
        RTMAX => "SIGRTMAX".to_owned(),
        35..=49 => format!("SIGRTMIN+{}", number - RTMIN),
        50..=63 => format!("SIGRTMAX-{}", RTMAX - number),
        _ => number.to_string(),
    }
}

/// Sends a signal to exactly the process that `pidfd` names; `ESRCH` once it has been reaped. Signal 0 only asks.
pub(crate) fn send(pidfd: impl AsFd, signal: i32) -> io::Result<()> {
    // SAFETY: a null siginfo means "as kill(2) would"; only numbers are passed.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_fd().as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Gives every signal its default action and unblocks all, as a container's first program expects.
///
/// Rust's start-up code ignores SIGPIPE, and ignored signals stay ignored across execve(2).
pub(crate) fn reset() {
    for signal in 1..=SIGNAL_MAX {
        // SAFETY: SIG_DFL installs no handler. KILL, STOP and the two that libc keeps answer EINVAL, which is fine.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    // SAFETY: the set is initialised by sigemptyset before it is used and outlives the call.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}

/// Blocks every signal and delivers them through a descriptor instead: signalfd(2), close-on-exec.
pub(crate) fn block_all_into_fd() -> io::Result<OwnedFd> {
    // SAFETY: the set is initialised by sigfillset before use; signalfd with -1 makes a new descriptor that only we
    // know.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        if libc::sigprocmask(libc::SIG_SETMASK, &raw const all, std::ptr::null_mut()) < 0 {
            return Err(io::Error::last_os_error());
        }
        let fd = libc::signalfd(-1, &raw const all, libc::SFD_CLOEXEC);
        if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(OwnedFd::from_raw_fd(fd)) }
    }
}

/// Takes one signal from [`block_all_into_fd`]'s descriptor; blocks until there is one.
pub(crate) fn take(signals: impl AsFd) -> io::Result<i32> {
    // struct signalfd_siginfo has 128 bytes and begins with the number (signalfd(2)).
    let mut info = [0u8; 128];
    match rustix::io::retry_on_intr(|| rustix::io::read(&signals, &mut info))? {
        128 => Ok(i32::from_ne_bytes([info[0], info[1], info[2], info[3]])),
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_parse_by_name_number_and_real_time_offset() {
        for (text, number) in [
            ("15", Some(15)),
            ("TERM", Some(15)),
            ("SIGterm", Some(15)),
            ("RTMIN+3", Some(37)),
            ("SIGRTMAX-2", Some(62)),
            ("RTMIN", Some(34)),
            ("SIGRTMAX", Some(64)),
            ("SIGIOT", Some(6)),
            (" 9 ", Some(9)),
            ("0", None),
            ("65", None),
            ("RTMIN+31", None),
            ("RTMIN+-3", None),
            ("RTMIN++3", None),
            ("RTMIN-3", None),
            ("RTMAX-31", None),
            ("-9", None),
            ("NOPE", None),
            ("SIG", None),
            ("", None),
        ] {
            assert_eq!(parse(text), number, "{text}");
        }
    }

    #[test]
    fn every_number_has_a_name_that_parses_as_it() {
        for number in 1..=SIGNAL_MAX {
            assert_eq!(parse(&name(number)), Some(number), "{}", name(number));
        }
        let names = [6, 15, 17, 29, 37, 50, 64].map(name);
        assert_eq!(
            names,
            ["SIGABRT", "SIGTERM", "SIGCHLD", "SIGIO", "SIGRTMIN+3", "SIGRTMAX-14", "SIGRTMAX"]
        );
    }
}
