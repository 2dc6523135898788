//! The command line: runc's, read by a table.
//!
//! `brig-sandbox [global options] VERB [options] [ID] [arguments]`. An option is `--name value`, `--name=value` or
//! `-n value`; a switch may say `--name=false`. Options may also follow the id, except for `exec`, where everything
//! after the id belongs to the command.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use super::error::Error;

pub(super) const HELP: &str = "\
brig-sandbox: Brig's OCI runtime, with the command line of runc

usage: brig-sandbox [--root DIR] [--log FILE] [--log-format text|json] [--debug]
                    [--systemd-cgroup | --cgroup-manager cgroupfs|systemd|disabled] VERB …

  create  [-b DIR] [-f CONFIG] [--pid-file FILE] [--console-socket SOCKET] [--preserve-fds N] [--no-pivot]
          [--no-new-keyring] [--rootfs-fd N] [--mount-fd I=N]… ID
  start   ID
  run     [as create] [-d] [--keep] ID
  state   ID
  kill    [-a] ID [SIGNAL]
  delete  [-f] ID
  exec    [-d] [-t] [-p FILE] [-u UID[:GID]] [--cwd DIR] [-e NAME=VALUE]… [-c CAP]… [-g GID]… [--pid-file FILE]
          [--console-socket SOCKET] [--no-new-privs] [--preserve-fds N] [--ignore-paused] ID [COMMAND…]
  ps      [-f table|json] ID [PS OPTIONS…]
  events  [--stats] [--interval SECONDS] ID
  update  [-r FILE|-] [--memory BYTES] [--memory-swap BYTES] [--memory-reservation BYTES] [--cpu-shares N]
          [--cpu-quota N] [--cpu-period N] [--cpuset-cpus LIST] [--cpuset-mems LIST] [--pids-limit N]
          [--blkio-weight N] [--cpu-idle N] [--cpu-burst N] ID
  pause   ID
  resume  ID
  list    [-q] [-f table|json]
  spec    [-b DIR]
  features
";

/// Which set of options a verb takes: name, short letter, whether a value follows.
type Table = &'static [(&'static str, Option<u8>, bool)];

const GLOBAL: Table = &[
    ("root", None, true),
    ("log", None, true),
    ("log-format", None, true),
    ("log-level", None, true),
    ("systemd-cgroup", None, false),
    ("cgroup-manager", None, true),
    ("rootless", None, true),
    ("criu", None, true),
    ("debug", None, false),
    ("help", Some(b'h'), false),
    ("version", Some(b'v'), false),
];
const CREATE: Table = &[
    ("bundle", Some(b'b'), true),
    ("config", Some(b'f'), true),
    ("pid-file", None, true),
    ("console-socket", None, true),
    ("preserve-fds", None, true),
    ("no-pivot", None, false),
    ("no-new-keyring", None, false),
    ("no-subreaper", None, false),
    ("rootfs-fd", None, true),
    ("mount-fd", None, true),
    ("detach", Some(b'd'), false),
    ("keep", None, false),
];
const EXEC: Table = &[
    ("console-socket", None, true),
    ("cwd", None, true),
    ("env", Some(b'e'), true),
    ("tty", Some(b't'), false),
    ("user", Some(b'u'), true),
    ("additional-gids", Some(b'g'), true),
    ("process", Some(b'p'), true),
    ("detach", Some(b'd'), false),
    ("pid-file", None, true),
    ("process-label", None, true),
    ("apparmor", None, true),
    ("no-new-privs", None, false),
    ("cap", Some(b'c'), true),
    ("preserve-fds", None, true),
    ("ignore-paused", None, false),
    ("cgroup", None, true),
    ("no-subreaper", None, false),
];
const UPDATE: Table = &[
    ("resources", Some(b'r'), true),
    ("blkio-weight", None, true),
    ("cpu-period", None, true),
    ("cpu-quota", None, true),
    ("cpu-burst", None, true),
    ("cpu-shares", Some(b'c'), true),
    ("cpu-share", None, true),
    ("cpu-rt-period", None, true),
    ("cpu-rt-runtime", None, true),
    ("cpuset-cpus", None, true),
    ("cpuset-mems", None, true),
    ("kernel-memory", None, true),
    ("kernel-memory-tcp", None, true),
    ("memory", Some(b'm'), true),
    ("memory-reservation", None, true),
    ("memory-swap", None, true),
    ("pids-limit", None, true),
    ("cpu-idle", None, true),
];

/// The verb, as named on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    Create,
    Start,
    Run,
    State,
    Kill,
    Delete,
    Exec,
    Ps,
    Events,
    Update,
    Pause,
    Resume,
    List,
    Spec,
    Features,
    Checkpoint,
    Restore,
}

const VERBS: [(&str, Verb, Table); 17] = [
    ("create", Verb::Create, CREATE),
    ("start", Verb::Start, &[]),
    ("run", Verb::Run, CREATE),
    ("state", Verb::State, &[]),
    ("kill", Verb::Kill, &[("all", Some(b'a'), false)]),
    ("delete", Verb::Delete, &[("force", Some(b'f'), false)]),
    ("exec", Verb::Exec, EXEC),
    ("ps", Verb::Ps, &[("format", Some(b'f'), true)]),
    ("events", Verb::Events, &[("stats", None, false), ("interval", None, true)]),
    ("update", Verb::Update, UPDATE),
    ("pause", Verb::Pause, &[]),
    ("resume", Verb::Resume, &[]),
    ("list", Verb::List, &[("format", Some(b'f'), true), ("quiet", Some(b'q'), false)]),
    ("spec", Verb::Spec, &[("bundle", Some(b'b'), true), ("rootless", None, false)]),
    ("features", Verb::Features, &[]),
    ("checkpoint", Verb::Checkpoint, &[]),
    ("restore", Verb::Restore, &[]),
];

/// Options and the words that are none.
#[derive(Debug, Default)]
pub(super) struct Options {
    values: BTreeMap<&'static str, Vec<OsString>>,
    pub(super) words: Vec<OsString>,
}

impl Options {
    pub(super) fn switch(&self, name: &str) -> bool {
        self.values.get(name).is_some_and(|values| values.last().is_some_and(|value| value != "false"))
    }
    pub(super) fn path(&self, name: &str) -> Option<PathBuf> {
        self.values.get(name)?.last().map(PathBuf::from)
    }
    pub(super) fn text(&self, name: &str) -> Result<Option<String>, Error> {
        let Some(value) = self.values.get(name).and_then(|values| values.last()) else { return Ok(None) };
        utf8(value).map(Some)
    }
    pub(super) fn texts(&self, name: &str) -> Result<Vec<String>, Error> {
        self.values.get(name).into_iter().flatten().map(utf8).collect()
    }
    pub(super) fn number<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>, Error> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        let number =
            text.parse().map_err(|_| Error::Usage(format!("--{name} {text:?} is not a number in range")))?;
        Ok(Some(number))
    }
    /// The container's id, the first word.
    pub(super) fn id(&self) -> Result<String, Error> {
        self.words
            .first()
            .map(utf8)
            .unwrap_or_else(|| Err(Error::Usage("a container id is missing".to_owned())))
    }
}

fn utf8(text: &OsString) -> Result<String, Error> {
    text.to_str().map(str::to_owned).ok_or_else(|| Error::Usage(format!("{text:?} is not UTF-8")))
}

/// A whole command line.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) global: Options,
    /// `None` only together with `--help` or `--version`.
    pub(super) verb: Option<Verb>,
    pub(super) options: Options,
}

/// Reads the global options alone as far as they go: an error later in the line shall still reach the log.
pub(super) fn parse(
    args: impl IntoIterator<Item = OsString>,
) -> (Options, Result<(Option<Verb>, Options), Error>) {
    let mut args: std::collections::VecDeque<OsString> = args.into_iter().collect();
    let mut global = Options::default();
    if let Err(error) = read(GLOBAL, &mut args, &mut global, true) {
        return (global, Err(error));
    }
    let Some(word) = args.pop_front() else {
        return (global, Ok((None, Options::default())));
    };
    let Some((_, verb, table)) = VERBS.iter().find(|(name, ..)| word == *name) else {
        let error = Error::Usage(format!("{word:?} is not a verb"));
        return (global, Err(error));
    };
    let mut options = Options::default();
    let stop = matches!(verb, Verb::Exec | Verb::Ps | Verb::Checkpoint | Verb::Restore);
    let result = read(table, &mut args, &mut options, stop);
    options.words.extend(args);
    (global, result.map(|()| (Some(*verb), options)))
}

/// Takes options off the front; stops at the first other word if `stop`, else collects such words too.
fn read(
    table: Table,
    args: &mut std::collections::VecDeque<OsString>,
    into: &mut Options,
    stop: bool,
) -> Result<(), Error> {
    while let Some(arg) = args.front() {
        let bytes = arg.as_bytes();
        if bytes == b"--" {
            args.pop_front();
            return Ok(());
        }
        if bytes.len() < 2 || bytes[0] != b'-' {
            if stop {
                return Ok(());
            }
            into.words.extend(args.pop_front());
            continue;
        }
        let (name, inline) = match bytes.iter().position(|b| *b == b'=') {
            Some(at) => (&bytes[..at], Some(OsString::from_vec(bytes[at + 1..].to_vec()))),
            None => (bytes, None),
        };
        // Go's flag package takes long names with one dash as well.
        let long = name.strip_prefix(b"--").unwrap_or(&name[1..]);
        let found = table.iter().find(|(known, short, _)| {
            long == known.as_bytes() || (name.len() == 2 && name[0] == b'-' && *short == Some(name[1]))
        });
        let Some((known, _, takes_value)) = found else {
            return Err(Error::Usage(format!("{:?} is not an option here", String::from_utf8_lossy(name))));
        };
        args.pop_front();
        let value = match (takes_value, inline) {
            (_, Some(value)) => value,
            (false, None) => OsString::from("true"),
            (true, None) => {
                args.pop_front().ok_or_else(|| Error::Usage(format!("--{known} needs a value")))?
            }
        };
        into.values.entry(known).or_default().push(value);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> Result<Line, Error> {
        let (global, rest) = parse(text.split_whitespace().map(OsString::from));
        rest.map(|(verb, options)| Line { global, verb, options })
    }

    #[test]
    fn global_options_stand_before_the_verb() {
        let line =
            line("--root /r --log=/l --log-format json --systemd-cgroup create -b /b --pid-file /p c1")
                .unwrap();
        assert_eq!(line.global.path("root"), Some("/r".into()));
        assert_eq!(line.global.path("log"), Some("/l".into()));
        assert!(line.global.switch("systemd-cgroup"));
        assert_eq!(line.verb, Some(Verb::Create));
        assert_eq!(line.options.path("bundle"), Some("/b".into()));
        assert_eq!(line.options.id().unwrap(), "c1");
    }

    #[test]
    fn the_command_of_exec_keeps_its_own_options() {
        let line = line("exec -t -e A=b --env=C=d c1 ls -l --force").unwrap();
        assert!(line.options.switch("tty"));
        assert_eq!(line.options.texts("env").unwrap(), ["A=b", "C=d"]);
        assert_eq!(line.options.words, ["c1", "ls", "-l", "--force"]);
    }

    #[test]
    fn options_may_follow_the_id() {
        let line = line("delete c1 --force").unwrap();
        assert!(line.options.switch("force"));
        assert_eq!(line.options.id().unwrap(), "c1");
    }

    #[test]
    fn what_is_unknown_or_incomplete_is_refused_by_name() {
        for (text, part) in [
            ("frobnicate", "\"frobnicate\" is not a verb"),
            ("create --nope c1", "\"--nope\" is not an option here"),
            ("create --bundle", "--bundle needs a value"),
            ("--root", "--root needs a value"),
        ] {
            let error = line(text).unwrap_err().to_string();
            assert!(error.starts_with(part), "{text}: {error}");
        }
        assert!(line("state").unwrap().options.id().is_err());
    }
}
