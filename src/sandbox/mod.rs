//! The sandbox: Brig's OCI runtime, the binary `brig-sandbox`, runtime-spec 1.2 with runc's command line.
//!
//! Short-lived and single-threaded: a verb runs, changes the kernel's state and a small directory (`state.rs`), and
//! ends. `create` leaves the container's first process behind, which becomes a child of the nearest sub-reaper.
//!
//! # Reading order
//!
//! ```text
//! create   spec (read, check) → state (reserve) → create (prepare, clone3) ⇒ init → mounts, devices → launch
//! start    start ⇒ (init goes on) launch: seccomp, execve
//! exec     exec (prepare, clone) ⇒ join → launch
//! delete   delete → resources (cgroups) → hooks → state
//! ```
//!
//! | file | one idea |
//! | --- | --- |
//! | `args` | the command line |
//! | `spec` | config.json and what must hold in it |
//! | `state` | what is kept between verbs |
//! | `create`, `init`, `sync` | the two sides of making a container and what they tell each other |
//! | `mounts`, `cgroupfs`, `devices` | the container's files, by descriptor only |
//! | `launch`, `caps`, `user`, `lsm` | the last steps to the program, shared with `exec` |
//! | `landlock` | what a container may not do even to files that it reaches by mistake |
//! | `protect` | our own binary cannot be written to from inside |
//! | `cgroup`, `resources` | control groups |
//! | `seccomp` | system call filters |
//! | `hooks` | programs of the engine's at points of the lifecycle |
//! | `start run exec kill delete ps events update list features foreground` | the verbs |
//!
//! # Extensions of `create` and `run`
//!
//! `--rootfs-fd N`: the rootfs is the detached mount that descriptor N refers to, instead of `root.path`.
//! `--mount-fd I=N`, repeatable: the source of `mounts[I]` is the detached mount of descriptor N, instead of its
//! `source`. With both, a caller may run us in a mount namespace that has none of the host's paths. Attributes,
//! propagation and id mappings in the options of such a mount are applied as to any bind mount.
//!
//! The annotation `brig.sandbox/landlock`: `container` puts every process of the container into a Landlock domain
//! (`landlock.rs`), and `brig.sandbox/seccomp-floor` holds a seccomp profile in JSON that is loaded besides
//! `linux.seccomp`: of two filters the stricter verdict holds. Both need `process.noNewPrivileges`. The runtime
//! specification has no field for either.
//!
//! A caller that executes us from a read-only mount spares us the second execution that `protect.rs` explains.

mod args;
mod caps;
pub(crate) mod cgroup;
mod cgroupfs;
mod create;
mod delete;
mod devices;
mod error;
mod events;
mod exec;
mod features;
mod foreground;
mod hooks;
mod init;
mod kill;
mod landlock;
mod launch;
mod list;
mod log;
mod lsm;
mod mounts;
mod protect;
mod ps;
mod resources;
mod run;
pub(crate) mod seccomp;
mod spec;
mod start;
mod state;
mod sync;
mod update;
mod user;

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use args::{Line, Options, Verb};
use cgroup::Manager;
use error::Error;

/// Where containers are kept unless `--root` says otherwise: a tmpfs, for nothing of it outlives a reboot.
const DEFAULT_ROOT: &str = "/run/brig/sandbox";

/// The program `brig-sandbox`.
pub fn main() -> ExitCode {
    let (global, line) = args::parse(std::env::args_os().skip(1));
    // The descriptors that the caller meant for us or for the container; all others it merely forgot to close.
    let inherited = line.as_ref().map_or(Ok(Inherited::default()), |(_, options)| Inherited::new(options));
    if let Ok(inherited) = &inherited {
        // What cannot be closed is closed at execve(2) at the latest, by the same call's other mode.
        let _ = crate::sys::fd::close_all_but(3 + inherited.preserve, &inherited.given);
    }
    let opened = open_log(&global);
    let result = opened.and(inherited).and_then(|inherited| {
        let (verb, options) = line?;
        dispatch(Line { global, verb, options }, inherited.preserve)
    });
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            log::error(&error.chain());
            ExitCode::FAILURE
        }
    }
}

/// Descriptors from our caller.
#[derive(Debug, Default)]
struct Inherited {
    /// As many from 3 up go to the container.
    preserve: u32,
    /// Those of `--rootfs-fd` and `--mount-fd`.
    given: Vec<u32>,
}

impl Inherited {
    fn new(options: &Options) -> Result<Self, Error> {
        /// Above what any caller passes; the kernel's own limit per process is a million.
        const PRESERVE_MAX: u32 = 1 << 16;
        let mut preserve: u32 = options.number("preserve-fds")?.unwrap_or(0);
        // sd_listen_fds(3): the caller was activated by a socket and hands it on.
        if let Some(count) = std::env::var("LISTEN_FDS").ok().and_then(|count| count.parse::<u32>().ok()) {
            preserve = preserve.max(count);
        }
        if preserve > PRESERVE_MAX {
            return Err(Error::Usage(format!("--preserve-fds {preserve}: the limit is {PRESERVE_MAX}")));
        }
        let mut given: Vec<u32> = options.number("rootfs-fd")?.into_iter().collect();
        given.extend(mount_fds(options)?.into_iter().map(|(_, number)| number as u32));
        Ok(Self { preserve, given })
    }
}

fn mount_fds(options: &Options) -> Result<Vec<(usize, i32)>, Error> {
    let parse = |text: &String| {
        let (index, number) = text.split_once('=')?;
        Some((index.parse().ok()?, number.parse().ok().filter(|number| *number >= 0)?))
    };
    options
        .texts("mount-fd")?
        .iter()
        .map(|text| parse(text).ok_or_else(|| Error::Usage(format!("--mount-fd {text:?} is not INDEX=FD"))))
        .collect()
}

fn open_log(global: &Options) -> Result<(), Error> {
    let json = match global.text("log-format")?.as_deref() {
        None | Some("text") => false,
        Some("json") => true,
        Some(other) => {
            return Err(Error::Usage(format!("--log-format {other:?}: the formats are text and json")));
        }
    };
    let debug = global.switch("debug");
    let Some(path) = global.path("log") else {
        log::set_up(log::Log { file: None, json, debug });
        return Ok(());
    };
    match OpenOptions::new().append(true).create(true).mode(0o644).open(&path) {
        Ok(file) => {
            log::set_up(log::Log { file: Some(file), json, debug });
            Ok(())
        }
        Err(source) => {
            log::set_up(log::Log { file: None, json, debug });
            Err(Error::Os { attempted: format!("open the log {}", path.display()), source })
        }
    }
}

fn dispatch(line: Line, preserve_fds: u32) -> Result<u8, Error> {
    let Line { global, verb, options } = line;
    let Some(verb) = verb else {
        if global.switch("version") {
            println!("brig-sandbox version {}\nspec: {}", env!("CARGO_PKG_VERSION"), spec::OCI_VERSION);
            return Ok(0);
        }
        print!("{}", args::HELP);
        return if global.switch("help") { Ok(0) } else { Err(Error::Usage("a verb is missing".to_owned())) };
    };
    let root = global.path("root").unwrap_or_else(|| DEFAULT_ROOT.into());
    // Relative to where the caller is, whatever we do later.
    let root = std::path::absolute(&root)
        .map_err(|source| Error::Os { attempted: format!("make {} absolute", root.display()), source })?;
    let json = |options: &Options| match options.text("format")?.as_deref() {
        None | Some("table") => Ok(false),
        Some("json") => Ok(true),
        Some(other) => Err(Error::Usage(format!("--format {other:?}: the formats are table and json"))),
    };
    match verb {
        Verb::Create | Verb::Run => {
            protect::ensure_read_only_self()?;
            let request = create::Request {
                root,
                manager: manager(&global)?,
                id: options.id()?,
                bundle: options.path("bundle").unwrap_or_else(|| PathBuf::from(".")),
                config: options.path("config"),
                pid_file: options.path("pid-file"),
                console_socket: options.path("console-socket"),
                console_fd: None,
                preserve_fds,
                pivot: !options.switch("no-pivot"),
                new_keyring: !options.switch("no-new-keyring"),
                rootfs_fd: options.number("rootfs-fd")?,
                mount_fds: mount_fds(&options)?,
            };
            if verb == Verb::Run {
                return run::run(request, options.switch("detach"), options.switch("keep"));
            }
            create::create(request).map(|_| 0)
        }
        Verb::Exec => {
            protect::ensure_read_only_self()?;
            exec::exec(exec::Request {
                root,
                id: options.id()?,
                process: options.path("process"),
                args: words(&options, 1)?,
                env: options.texts("env")?,
                cwd: options.path("cwd"),
                user: options.text("user")?,
                additional_gids: additional_gids(&options)?,
                caps: options.texts("cap")?,
                tty: options.switch("tty"),
                no_new_privileges: options.switch("no-new-privs"),
                apparmor: options.text("apparmor")?,
                selinux: options.text("process-label")?,
                detach: options.switch("detach"),
                pid_file: options.path("pid-file"),
                console_socket: options.path("console-socket"),
                preserve_fds,
                ignore_paused: options.switch("ignore-paused"),
            })
        }
        Verb::Start => start::start(&root, &options.id()?).map(|()| 0),
        Verb::State => state::print(&root, &options.id()?).map(|()| 0),
        Verb::Kill => {
            let signal = words(&options, 1)?.into_iter().next().unwrap_or_else(|| "TERM".to_owned());
            kill::kill(&root, &options.id()?, &signal, options.switch("all")).map(|()| 0)
        }
        Verb::Delete => delete::delete(&root, &options.id()?, options.switch("force")).map(|()| 0),
        Verb::Ps => ps::ps(&root, &options.id()?, json(&options)?, &words(&options, 1)?).map(|()| 0),
        Verb::Events => {
            let interval = options.text("interval")?.unwrap_or_else(|| "5".to_owned());
            let seconds = interval.trim_end_matches('s').parse().ok().filter(|seconds| *seconds > 0);
            let seconds = seconds
                .ok_or_else(|| Error::Usage(format!("--interval {interval:?} is no number of seconds")))?;
            events::events(&root, &options.id()?, options.switch("stats"), Duration::from_secs(seconds))
                .map(|()| 0)
        }
        Verb::Update => update::update(&root, &options.id()?, &options).map(|()| 0),
        Verb::Pause => kill::freeze(&root, &options.id()?, true).map(|()| 0),
        Verb::Resume => kill::freeze(&root, &options.id()?, false).map(|()| 0),
        Verb::List => {
            let format = match (options.switch("quiet"), json(&options)?) {
                (true, _) => list::Format::Ids,
                (false, true) => list::Format::Json,
                (false, false) => list::Format::Table,
            };
            list::list(&root, format).map(|()| 0)
        }
        Verb::Spec => {
            features::write_spec(&options.path("bundle").unwrap_or_else(|| PathBuf::from("."))).map(|()| 0)
        }
        Verb::Features => {
            features::print_features();
            Ok(0)
        }
        Verb::Checkpoint | Verb::Restore => Err(Error::Unsupported("checkpoint and restore".to_owned())),
    }
}

fn manager(global: &Options) -> Result<Manager, Error> {
    if global.switch("systemd-cgroup") {
        return Ok(Manager::Systemd);
    }
    match global.text("cgroup-manager")? {
        None => Ok(Manager::Cgroupfs),
        Some(name) => name.parse().map_err(|error| Error::Usage(format!("--cgroup-manager: {error}"))),
    }
}

/// The words from the given one on, as text.
fn words(options: &Options, from: usize) -> Result<Vec<String>, Error> {
    let text = |word: &std::ffi::OsString| {
        word.to_str().map(str::to_owned).ok_or_else(|| Error::Usage(format!("{word:?} is not UTF-8")))
    };
    options.words.iter().skip(from).map(text).collect()
}

fn additional_gids(options: &Options) -> Result<Vec<u32>, Error> {
    let parse = |text: &String| {
        text.parse().map_err(|_| Error::Usage(format!("--additional-gids {text:?} is not a group id")))
    };
    options.texts("additional-gids")?.iter().map(parse).collect()
}
