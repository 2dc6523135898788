//! What a supervisor of processes needs: starting programs, hearing of their ends, being PID 1, its own memory.
#![expect(unsafe_code, reason = "posix_spawn(3), signalfd(2) and signal waits have no safe wrapper")]

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

/// A program to be started, with exactly these descriptors.
#[derive(Debug)]
pub(crate) struct Launch<'a> {
    /// The program's path and its arguments, `argv[0]` included.
    pub(crate) program: &'a OsStr,
    pub(crate) args: &'a [CString],
    pub(crate) stdin: BorrowedFd<'a>,
    pub(crate) stdout: BorrowedFd<'a>,
    pub(crate) stderr: BorrowedFd<'a>,
    /// Kept open under their own numbers.
    pub(crate) keep: &'a [BorrowedFd<'a>],
}

/// Starts a program by posix_spawn(3), which does not copy our memory. The child has the environment of this process,
/// no signal blocked and none ignored. Descriptors that are not named are closed by their close-on-exec flag.
///
/// The standard library would hand our blocked signals down and cannot keep other descriptors.
pub(crate) fn launch(launch: &Launch<'_>) -> io::Result<i32> {
    let program = CString::new(launch.program.as_bytes())?;
    let mut argv: Vec<*mut libc::c_char> = launch.args.iter().map(|arg| arg.as_ptr().cast_mut()).collect();
    argv.push(std::ptr::null_mut());
    let mut actions = Actions::new()?;
    for (target, fd) in [launch.stdin, launch.stdout, launch.stderr].into_iter().enumerate() {
        actions.dup2(fd, target as i32)?;
    }
    for fd in launch.keep {
        // The same number twice clears close-on-exec in the child only (glibc 2.29, POSIX issue 8).
        actions.dup2(*fd, fd.as_raw_fd())?;
    }
    let attributes = Attributes::new()?;
    let mut pid = 0;
    // SAFETY: program and arguments are NUL-terminated and alive, argv ends in a null pointer, actions and attributes
    // are initialised, and `environ` is not changed by anyone in this single-threaded process.
    let result = unsafe {
        libc::posix_spawn(
            &mut pid,
            program.as_ptr(),
            &actions.0,
            &attributes.0,
            argv.as_ptr(),
            environ.cast(),
        )
    };
    check_number(result)?;
    Ok(pid)
}

unsafe extern "C" {
    static environ: *const *const libc::c_char;
}

struct Actions(libc::posix_spawn_file_actions_t);

impl Actions {
    fn new() -> io::Result<Self> {
        let mut actions = std::mem::MaybeUninit::uninit();
        // SAFETY: init(3) initialises what it is given.
        check_number(unsafe { libc::posix_spawn_file_actions_init(actions.as_mut_ptr()) })?;
        // SAFETY: initialised by the call above, which succeeded.
        Ok(Self(unsafe { actions.assume_init() }))
    }

    fn dup2(&mut self, from: BorrowedFd<'_>, to: i32) -> io::Result<()> {
        // SAFETY: the object is initialised; the numbers are only used in the child.
        check_number(unsafe { libc::posix_spawn_file_actions_adddup2(&mut self.0, from.as_raw_fd(), to) })
    }
}

impl Drop for Actions {
    fn drop(&mut self) {
        // SAFETY: initialised in `new` and destroyed once.
        unsafe { libc::posix_spawn_file_actions_destroy(&mut self.0) };
    }
}

struct Attributes(libc::posix_spawnattr_t);

impl Attributes {
    /// No blocked signals, default actions for all.
    fn new() -> io::Result<Self> {
        let mut attributes = std::mem::MaybeUninit::uninit();
        // SAFETY: init(3) initialises what it is given.
        check_number(unsafe { libc::posix_spawnattr_init(attributes.as_mut_ptr()) })?;
        // SAFETY: initialised by the call above, which succeeded.
        let mut attributes = Self(unsafe { attributes.assume_init() });
        let (none, all) = (signals(&[]), every_signal());
        let flags = libc::POSIX_SPAWN_SETSIGMASK | libc::POSIX_SPAWN_SETSIGDEF;
        // SAFETY: the object and both sets are initialised and outlive the calls, which copy.
        unsafe {
            check_number(libc::posix_spawnattr_setsigmask(&mut attributes.0, &none))?;
            check_number(libc::posix_spawnattr_setsigdefault(&mut attributes.0, &all))?;
            check_number(libc::posix_spawnattr_setflags(&mut attributes.0, flags as libc::c_short))?;
        }
        Ok(attributes)
    }
}

impl Drop for Attributes {
    fn drop(&mut self) {
        // SAFETY: initialised in `new` and destroyed once.
        unsafe { libc::posix_spawnattr_destroy(&mut self.0) };
    }
}

fn check_number(error: libc::c_int) -> io::Result<()> {
    if error == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(error)) }
}

fn signals(numbers: &[libc::c_int]) -> libc::sigset_t {
    let mut set = std::mem::MaybeUninit::uninit();
    // SAFETY: sigemptyset(3) initialises the set; the numbers are valid signals.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for number in numbers {
            libc::sigaddset(set.as_mut_ptr(), *number);
        }
        set.assume_init()
    }
}

fn every_signal() -> libc::sigset_t {
    let mut set = std::mem::MaybeUninit::uninit();
    // SAFETY: sigfillset(3) initialises the set.
    unsafe {
        libc::sigfillset(set.as_mut_ptr());
        set.assume_init()
    }
}

/// Blocks SIGCHLD and delivers it through a descriptor: signalfd(2), close-on-exec, non-blocking.
pub(crate) fn child_signals() -> io::Result<OwnedFd> {
    let set = signals(&[libc::SIGCHLD]);
    // SAFETY: the set is initialised and outlives the calls; signalfd with -1 makes a descriptor that only we know.
    unsafe {
        if libc::sigprocmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) < 0 {
            return Err(io::Error::last_os_error());
        }
        let fd = libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
        if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(OwnedFd::from_raw_fd(fd)) }
    }
}

/// The loop of PID 1 of a pod's PID namespace: reaps, ignores every signal, and once its parent is dead ends as soon as
/// nothing else is left in the namespace. Never returns, allocates nothing.
pub(crate) fn run_init() -> ! {
    // What is not blocked could end us: as PID 1 only signals from outside, but SIGTERM for the parent's death shall
    // be taken, not ignored as PID 1 does with unblocked ones that have no handler (pid_namespaces(7)).
    let all = every_signal();
    // SAFETY: plain system calls on numbers and an initialised set; closing every descriptor is fine because nothing
    // in this process uses one from here on, and it runs no destructors (it never returns).
    unsafe {
        libc::sigprocmask(libc::SIG_SETMASK, &all, std::ptr::null_mut());
        libc::prctl(libc::PR_SET_NAME, c"brig-init".as_ptr());
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM);
        // Last: the parent sees by a closed pipe that the death signal is set.
        libc::syscall(libc::SYS_close_range, 0u32, u32::MAX, 0u32);
    }
    let wanted = signals(&[libc::SIGCHLD, libc::SIGTERM]);
    // How often an orphaned init looks whether it is alone.
    let pause = libc::timespec { tv_sec: 1, tv_nsec: 0 };
    let mut orphaned = false;
    loop {
        // SAFETY: the set and the timeout are initialised; zeroes are a valid siginfo, which has a pid for
        // SIGTERM; the others take numbers.
        unsafe {
            while libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) > 0 {}
            // Nobody else in this namespace (kill(2), pid -1): what we were for is over.
            if orphaned && libc::kill(-1, 0) < 0 {
                libc::_exit(0);
            }
            let timeout = if orphaned { &raw const pause } else { std::ptr::null() };
            let mut info = std::mem::zeroed::<libc::siginfo_t>();
            // A sender of this namespace has a pid here. The kernel sends on the parent's death in the parent's name,
            // which has none.
            if libc::sigtimedwait(&wanted, &mut info, timeout) == libc::SIGTERM && info.si_pid() == 0 {
                orphaned = true;
            }
        }
    }
}

/// Gives memory that the allocator holds but nobody uses back to the kernel.
pub(crate) fn trim_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim(3) may be called at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_launched_program_gets_its_descriptors_and_no_blocked_signals() {
        let null = std::fs::File::open("/dev/null").unwrap();
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let script = format!(
            "grep -c '^SigBlk:.0*$' /proc/self/status; test -e /proc/self/fd/{}; echo $?",
            null.as_raw_fd()
        );
        let args = [c"sh".to_owned(), c"-c".to_owned(), CString::new(script).unwrap()];
        let pid = launch(&Launch {
            program: OsStr::new("/bin/sh"),
            args: &args,
            stdin: null.as_fd(),
            stdout: write.as_fd(),
            stderr: null.as_fd(),
            keep: &[null.as_fd()],
        })
        .unwrap();
        drop(write);
        let mut said = String::new();
        std::io::Read::read_to_string(&mut std::fs::File::from(read), &mut said).unwrap();
        assert_eq!(said, "1\n0\n");
        rustix::process::waitpid(rustix::process::Pid::from_raw(pid), rustix::process::WaitOptions::empty())
            .unwrap();
    }
}
