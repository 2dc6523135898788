//! The last steps of a process on its way to being the container's program, common to `create` and `exec`.
//!
//! The order is dictated by the rights each step needs: labels and the standard streams while we are root on the host's
//! procfs, seccomp before the capabilities go unless no_new_privs makes it free, then bounding set, user,
//! capabilities, directory, and at the very end, with nothing of ours open, the program.

use std::ffi::CString;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, FileType, Mode, OFlags};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::process::DumpableBehavior;

use super::caps::Sets;
use super::error::{Attempt, Error};
use super::seccomp;
use super::spec::{Config, Personality, Process};
use super::{landlock, log, lsm};
use crate::sys::path::Proc;
use crate::sys::process::Program;
use crate::sys::{fd, pty, signal};

/// /etc/passwd of an image is read for one thing, the home directory.
const PASSWD_BYTES_MAX: u64 = 1 << 20;

/// unix(7): `sun_path` has 108 bytes, the last of which is NUL. A longer path is reached by its folder's descriptor.
const SOCKET_PATH_MAX: usize = 107;

/// What a process shall be confined by, prepared on the host's side.
#[derive(Debug)]
pub(super) struct Confinement {
    pub(super) process: Process,
    sets: Sets,
    seccomp: Option<seccomp::Program>,
    /// Where a filter that notifies sends its listener, and with which document: that is known once the process exists.
    pub(super) listener: Option<(OwnedFd, Vec<u8>)>,
    personality: Option<Personality>,
    /// Descriptors 3 and up that the program inherits.
    preserve_fds: u32,
    /// The process sets its resource limits itself.
    limit_itself: bool,
    floor: Floor,
}

/// What holds whatever else the config says; by annotations, because the runtime specification has no field for it.
#[derive(Debug, Default)]
struct Floor {
    landlock: bool,
    seccomp: Option<seccomp::Program>,
}

/// Annotation: a seccomp profile as `linux.seccomp` would have it.
const SECCOMP_FLOOR: &str = "brig.sandbox/seccomp-floor";

impl Floor {
    fn of(config: &Config, process: &Process) -> Result<Self, Error> {
        let seccomp = match config.annotations.get(SECCOMP_FLOOR) {
            Some(text) => {
                let profile = super::spec::parse(text.as_bytes(), format!("annotations[{SECCOMP_FLOOR:?}]"))?;
                Some(seccomp::compile(&profile).map_err(|error| Error::Seccomp(Box::new(error)))?)
            }
            None => None,
        };
        let floor = Self { landlock: landlock::wanted(config)?, seccomp };
        if (floor.landlock || floor.seccomp.is_some()) && !process.no_new_privileges {
            return Err(Error::invalid(
                "process.noNewPrivileges",
                false,
                "Landlock and a seccomp floor, which an annotation asks for, need it",
            ));
        }
        Ok(floor)
    }
}

impl Confinement {
    /// What `config` and `process` ask for, with the filters compiled and the agent of one that notifies connected.
    pub(super) fn prepare(
        config: &Config,
        process: Process,
        sets: Sets,
        preserve_fds: u32,
    ) -> Result<Self, Error> {
        if !sets.ignored.is_empty() {
            let left_out = sets.ignored.join(", ");
            log::warn(&format!("capabilities that this host cannot give are left out: {left_out}"));
        }
        let floor = Floor::of(config, &process)?;
        let profile = config.linux.seccomp.as_ref();
        let seccomp = profile.map(seccomp::compile).transpose();
        let seccomp = seccomp.map_err(|error| Error::Seccomp(Box::new(error)))?;
        let notifies = seccomp.as_ref().is_some_and(seccomp::Program::uses_notify);
        let agent = profile.and_then(|profile| profile.listener_path().as_ref()).filter(|_| notifies);
        let listener = agent.map(|path| connect(path)).transpose()?.map(|socket| (socket, Vec::new()));
        Ok(Self {
            sets,
            seccomp,
            listener,
            personality: config.linux.personality.clone(),
            preserve_fds,
            limit_itself: !super::user::may_raise_limits(),
            floor,
            process,
        })
    }
}

/// A process that has only the filter and execve(2) before it.
#[derive(Debug)]
pub(super) struct Launch {
    /// Loaded first, so that the other filter may forbid seccomp(2).
    floor: Option<seccomp::Program>,
    seccomp: Option<seccomp::Program>,
    listener: Option<(OwnedFd, Vec<u8>)>,
    path: CString,
    args: Vec<CString>,
    env: Vec<CString>,
}

/// Keeps processes of the container from ptracing us and from reading our descriptors through /proc: a process that is
/// not dumpable needs CAP_SYS_PTRACE in the host's user namespace (CVE-2016-9962). execve(2) makes it dumpable again.
pub(super) fn hide() -> Result<(), Error> {
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .attempt(|| "make the process non-dumpable".to_owned())
}

/// Closes every descriptor of this process but the standard streams, those to be preserved, and those it still needs.
///
/// The parent's own (its lock, its /proc) came along with the fork. A descriptor of a host directory that is open when
/// the working directory or the program is looked up is a way out (CVE-2024-21626).
fn close_the_rest(confinement: &Confinement, needed: &[u32]) -> Result<(), Error> {
    let mut keep = needed.to_vec();
    keep.extend(log::descriptor());
    keep.extend(confinement.listener.as_ref().map(|(socket, _)| socket.as_raw_fd() as u32));
    fd::close_all_but(3 + confinement.preserve_fds, &keep)
        .attempt(|| "close the descriptors of the host".to_owned())
}

/// Makes the calling process what `confinement` says. `pid` is its pid on the host.
///
/// Consumes everything that holds a descriptor of the host and closes all but `needed`; never returns to a frame that
/// owns another.
pub(super) fn settle(
    confinement: Confinement,
    proc: Proc,
    pid: i32,
    needed: &[u32],
) -> Result<Launch, Error> {
    let (apparmor, selinux) =
        (confinement.process.apparmor_profile.as_deref(), confinement.process.selinux_label.as_deref());
    lsm::apply(&proc, pid, apparmor, selinux)?;
    drop(proc);
    close_the_rest(&confinement, needed)?;
    let Confinement { process, sets, seccomp, listener, personality, preserve_fds, limit_itself, floor } =
        confinement;
    super::user::set_priorities(&process)?;
    if let Some(personality) = &personality {
        super::user::set_personality(personality)?;
    }
    super::user::own_stdio(&process.user)?;
    rustix::process::umask(Mode::from_raw_mode(process.user.umask.unwrap_or(0o022)));
    let mut seccomp = seccomp;
    let mut listener = listener;
    if process.no_new_privileges {
        rustix::thread::set_no_new_privs(true).attempt(|| "set no_new_privs".to_owned())?;
    } else if let Some(program) = seccomp.take() {
        // Without no_new_privs a filter needs CAP_SYS_ADMIN, which is about to go (seccomp(2)).
        load(&program, listener.take())?;
    }
    if limit_itself {
        super::user::set_rlimits(None, &process.rlimits)?;
    }
    // As root first: the image may have a working directory that its user cannot reach by itself.
    let entered = enter(&process.cwd);
    sets.apply_with_user(&process.user)?;
    // The change of user may have set the dumpable flag to what fs.suid_dumpable says.
    hide()?;
    match entered {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => enter(&process.cwd),
        result => result,
    }
    .attempt(|| format!("change to the working directory {}", process.cwd.display()))?;
    let mut env = process.env.clone();
    if !env.iter().any(|entry| entry.starts_with("HOME=")) {
        env.push(format!("HOME={}", home(process.user.uid)));
    }
    if floor.landlock {
        landlock::restrict()?;
    }
    let path = look_up(&process.args[0], &env)?;
    for number in 3..3 + preserve_fds {
        // A number that the caller did not open is simply not there.
        let _ = fd::keep_on_exec(number as i32);
    }
    let c_strings = |texts: &[String]| -> Vec<CString> {
        texts.iter().map(|text| CString::new(text.as_str()).expect("validation refuses NUL")).collect()
    };
    Ok(Launch {
        floor: floor.seccomp,
        seccomp,
        listener,
        path: CString::new(path.into_os_string().into_vec()).expect("validation refuses NUL"),
        args: c_strings(&process.args),
        env: c_strings(&env),
    })
}

impl Launch {
    /// Loads the filter, if it is still to be loaded, and executes. Returns only on failure, with the exit code a shell
    /// would use.
    pub(super) fn exec(self) -> (i32, Error) {
        let program = Program::new(&self.path, &self.args, &self.env);
        signal::reset();
        if let Some(filter) = &self.floor
            && let Err(error) = load(filter, None)
        {
            return (126, error);
        }
        if let Some(filter) = &self.seccomp
            && let Err(error) = load(filter, self.listener)
        {
            return (126, error);
        }
        let error = program.exec();
        let code = if error.kind() == io::ErrorKind::NotFound { 127 } else { 126 };
        (code, Error::Program { program: self.args[0].to_string_lossy().into_owned(), why: why(&error) })
    }
}

fn why(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "no such file or directory".to_owned(),
        io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        _ if error.raw_os_error() == Some(rustix::io::Errno::NOEXEC.raw_os_error()) => {
            "exec format error".to_owned()
        }
        _ => error.to_string(),
    }
}

fn load(program: &seccomp::Program, listener: Option<(OwnedFd, Vec<u8>)>) -> Result<(), Error> {
    let notify = program.load().attempt(|| "load the seccomp filter".to_owned())?;
    if let (Some(notify), Some((socket, document))) = (notify, listener) {
        send_fd(&socket, &notify, &document)
            .attempt(|| "send the seccomp listener to its agent".to_owned())?;
    }
    Ok(())
}

/// Sends a descriptor with some bytes: unix(7), `SCM_RIGHTS`.
pub(super) fn send_fd(socket: &OwnedFd, fd: &OwnedFd, bytes: &[u8]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [fd.as_fd()];
    assert!(control.push(SendAncillaryMessage::ScmRights(&fds)), "the buffer was sized for one descriptor");
    let iov = [IoSlice::new(bytes)];
    rustix::io::retry_on_intr(|| sendmsg(socket, &iov, &mut control, SendFlags::NOSIGNAL))?;
    Ok(())
}

/// Connects to a unix socket of the engine's, by its path on the host.
pub(super) fn connect(path: &Path) -> Result<OwnedFd, Error> {
    let attempted = || format!("connect to {}", path.display());
    let (mut short, mut folder) = (path.to_owned(), None);
    if path.as_os_str().len() > SOCKET_PATH_MAX
        && let (Some(parent), Some(name)) = (path.parent(), path.file_name())
    {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let open = rustix::fs::open(parent, flags, Mode::empty()).attempt(attempted)?;
        short = PathBuf::from(format!("/proc/self/fd/{}", open.as_raw_fd())).join(name);
        folder = Some(open);
    }
    let connected = std::os::unix::net::UnixStream::connect(short).map(OwnedFd::from).attempt(attempted);
    drop(folder);
    connected
}

/// chdir(2), and a look at where that led: a directory outside the root, reached through a descriptor that someone
/// forgot, makes getcwd(2) answer with "(unreachable)" (CVE-2024-21626).
fn enter(cwd: &Path) -> io::Result<()> {
    rustix::process::chdir(cwd)?;
    let now = rustix::process::getcwd(Vec::new())?;
    if !now.as_bytes().starts_with(b"/") {
        rustix::process::chdir(c"/")?;
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is outside the container's root"));
    }
    Ok(())
}

/// execvp(3)'s search, as the user that the process has become.
fn look_up(program: &str, env: &[String]) -> Result<PathBuf, Error> {
    let failed = |why: &str| Error::Program { program: program.to_owned(), why: why.to_owned() };
    let executable = |path: &Path| -> rustix::io::Result<()> {
        let stat = rustix::fs::stat(path)?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            return Err(rustix::io::Errno::ISDIR);
        }
        match rustix::fs::accessat(rustix::fs::CWD, path, Access::EXEC_OK, AtFlags::EACCESS) {
            // A filter that is loaded already may not know faccessat2; execve will tell.
            Err(rustix::io::Errno::NOSYS | rustix::io::Errno::PERM) => Ok(()),
            result => result,
        }
    };
    if program.contains('/') {
        return match executable(Path::new(program)) {
            Ok(()) => Ok(program.into()),
            Err(rustix::io::Errno::ISDIR) => Err(failed("is a directory")),
            Err(error) => Err(failed(&why(&error.into()))),
        };
    }
    let path = env.iter().rev().find_map(|entry| entry.strip_prefix("PATH=")).unwrap_or("");
    let mut denied = false;
    for dir in path.split(':').filter(|dir| !dir.is_empty()) {
        let candidate = Path::new(dir).join(program);
        match executable(&candidate) {
            Ok(()) => return Ok(candidate),
            Err(rustix::io::Errno::ACCESS) => denied = true,
            Err(_) => {}
        }
    }
    Err(failed(if denied { "permission denied" } else { "executable file not found in $PATH" }))
}

/// The home directory of the container's own /etc/passwd, or "/".
fn home(uid: u32) -> String {
    use io::Read;
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let Ok(file) = rustix::fs::open(c"/etc/passwd", flags, Mode::empty()) else { return "/".to_owned() };
    let mut bytes = Vec::new();
    let _ = std::fs::File::from(file).take(PASSWD_BYTES_MAX).read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes)
        .lines()
        .find_map(|line| {
            let fields: Vec<_> = line.split(':').collect();
            let home = fields.get(5).filter(|home| home.starts_with('/') && !home.contains('\0'))?;
            (fields.get(2)?.parse() == Ok(uid)).then(|| (*home).to_owned())
        })
        .unwrap_or_else(|| "/".to_owned())
}

/// Opens a terminal in the container's devpts, makes it the session's, puts it on the standard streams and sends the
/// master to the engine. Returns the slave.
pub(super) fn take_terminal(devpts: OwnedFd, process: &Process, console: &OwnedFd) -> Result<OwnedFd, Error> {
    let pty = pty::open(devpts).attempt(|| "open a terminal in the container's /dev/pts".to_owned())?;
    if let Some(size) = process.console_size {
        pty::set_size(&pty.slave, size.height, size.width)
            .attempt(|| "set the size of the terminal".to_owned())?;
    }
    rustix::fs::fchown(&pty.slave, Some(rustix::process::Uid::from_raw(process.user.uid)), None)
        .attempt(|| "give the terminal to the user".to_owned())?;
    send_fd(console, &pty.master, b"/dev/ptmx")
        .attempt(|| "send the terminal to the console socket".to_owned())?;
    rustix::process::ioctl_tiocsctty(&pty.slave)
        .attempt(|| "make the terminal the controlling one".to_owned())?;
    rustix::stdio::dup2_stdin(&pty.slave)
        .and_then(|()| rustix::stdio::dup2_stdout(&pty.slave))
        .and_then(|()| rustix::stdio::dup2_stderr(&pty.slave))
        .attempt(|| "put the terminal on the standard streams".to_owned())?;
    Ok(pty.slave)
}
