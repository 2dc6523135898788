//! The configuration: `/etc/brig/config.toml`, its drop-ins and the flags of `brigd`, merged and checked.
//!
//! No file is needed: every key has an embedded default. `config/keys.rs` declares the keys, `config/value.rs` the
//! types they can have, `config/source.rs` reads and merges. What comes out is a [`Config`] in which nothing can be
//! wrong any more; what a value means is decided by the module it is handed to.
//!
//! Order, later over earlier and key by key: embedded defaults, the file, drop-ins in the order of their names, flags.

mod keys;
mod source;
mod value;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use ipnet::IpNet;

pub(crate) use self::keys::{Handler, Images, Metrics, Network, Registries, Runtime, Server, Stream};
use self::keys::{Key, Table};
use self::source::{Origin, Sources};
pub(crate) use self::value::{CgroupDriver, Level, LogFormat, LogLevel, Proc, Program, Ulimit, UnixAddress};
use super::args::Args;

/// Where the file is unless `--config` names another.
pub(crate) const CONFIG_FILE: &str = "/etc/brig/config.toml";
/// The handler that is `brig-sandbox`.
pub(crate) const BUNDLED_HANDLER: &str = "brig";
/// The handler that is `brig-sandbox` for pods that nobody vouches for.
pub(crate) const HARDENED_HANDLER: &str = "brig-hardened";
/// The bundled OCI runtime's binary, beside `brigd`.
pub(crate) const BUNDLED_BINARY: &str = "brig-sandbox";
/// Handlers that exist without being declared.
const BUILT_IN_HANDLERS: [&str; 3] = [BUNDLED_HANDLER, HARDENED_HANDLER, "runc"];
/// A handler's name is a DNS label (Kubernetes RuntimeClass.handler, RFC 1123): at most 63 bytes.
const HANDLER_NAME_MAX: usize = 63;

/// All settings, checked.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Config {
    pub(crate) server: Server,
    pub(crate) runtime: Runtime,
    /// By name; `brig` and `runc` are always there, and so is `runtime.default_handler`.
    pub(crate) handlers: BTreeMap<String, Handler>,
    pub(crate) images: Images,
    pub(crate) registries: Registries,
    pub(crate) network: Network,
    pub(crate) metrics: Metrics,
    pub(crate) stream: Stream,
}

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error("cannot read the configuration {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{origin}: not valid TOML: {message}")]
    Syntax { origin: Origin, message: String },
    #[error("{origin}: {name} must be a table, as in [{name}]")]
    NotATable { origin: Origin, name: String },
    #[error("{origin}: unknown table [{name}]; the nearest known one is [{nearest}]")]
    UnknownTable { origin: Origin, name: String, nearest: String },
    #[error("{origin}: unknown key {key} in [{table}]; the nearest known one is {nearest}")]
    UnknownKey { origin: Origin, table: Box<str>, key: Box<str>, nearest: Box<str> },
    #[error("{origin}: handler name {name:?} must be 1 to 63 lower-case letters, digits and inner dashes")]
    HandlerName { origin: Origin, name: String },
    #[error("{origin}: {key} = {value} in [{table}] must be {must}")]
    BadValue { origin: Origin, table: Box<str>, key: Box<str>, value: Box<str>, must: Box<str> },
}

impl Config {
    /// What `brigd` with these flags runs with.
    ///
    /// # Errors
    /// The first thing that is wrong, with its place.
    pub(crate) fn load(args: &Args) -> Result<Self, ConfigError> {
        let mut sources = match &args.config {
            Some(path) => Sources::read(path, true)?,
            None => Sources::read(Path::new(CONFIG_FILE), false)?,
        };
        let text = |path: &PathBuf| path.to_string_lossy().into_owned();
        let flags = [
            ("root", "--root", args.root.as_ref().map(text)),
            ("run", "--run", args.run.as_ref().map(text)),
            ("listen", "--listen", args.listen.clone()),
            ("log_level", "--log-level", args.log_level.map(|level| level.as_str().to_owned())),
        ];
        for (key, flag, value) in flags {
            if let Some(value) = value {
                sources.set_flag("server", key, flag, value);
            }
        }
        Self::check(&sources)
    }

    /// The same from the text of one file, named `path` in errors.
    #[cfg(test)]
    pub(crate) fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let mut sources = Sources::default();
        sources.merge(path, text)?;
        Self::check(&sources)
    }

    fn check(sources: &Sources) -> Result<Self, ConfigError> {
        refuse_unknown(sources)?;
        let declared = sources.tables.keys().filter_map(|name| name.strip_prefix("handlers."));
        let handlers = BUILT_IN_HANDLERS
            .into_iter()
            .chain(declared)
            .map(|name| Ok((name.to_owned(), read_handler(sources, name)?)))
            .collect::<Result<_, ConfigError>>()?;
        let config = Self {
            server: Server::read(&sources.table("server"))?,
            runtime: Runtime::read(&sources.table("runtime"))?,
            handlers,
            images: Images::read(&sources.table("images"))?,
            registries: Registries::read(&sources.table("registries"))?,
            network: Network::read(&sources.table("network"))?,
            metrics: Metrics::read(&sources.table("metrics"))?,
            stream: Stream::read(&sources.table("stream"))?,
        };
        config.check_together(sources)?;
        Ok(config)
    }

    /// What no key can tell alone.
    fn check_together(&self, sources: &Sources) -> Result<(), ConfigError> {
        let refuse =
            |table: &str, key: &str, must: &str| Err(sources.table(table).refuse(key, must.to_owned()));
        if !self.handlers.contains_key(&self.runtime.default_handler) {
            let known: Vec<_> = self.handlers.keys().map(String::as_str).collect();
            return refuse(
                "runtime",
                "default_handler",
                &format!("a declared handler: {}", known.join(", ")),
            );
        }
        if self.server.root == self.server.run {
            return refuse("server", "run", "another directory than root, because a reboot must empty it");
        }
        let name = &self.network.bridge;
        // As dev_valid_name() in the kernel's net/core/dev.c; IFNAMSIZ is 16 with the NUL.
        if name.len() > 15
            || matches!(name.as_str(), "." | "..")
            || name.contains(|c: char| "/: \t".contains(c))
        {
            return refuse(
                "network",
                "bridge",
                "an interface name of at most 15 bytes without / : or spaces",
            );
        }
        let v4 = self.network.subnets.iter().filter(|net| matches!(net, IpNet::V4(_))).count();
        let v6 = self.network.subnets.len() - v4;
        let fits = self.network.subnets.iter().all(|net| match net {
            IpNet::V4(net) => (8..=30).contains(&net.prefix_len()),
            IpNet::V6(net) => (32..=120).contains(&net.prefix_len()),
        });
        if v4 > 1 || v6 > 1 || v4 + v6 == 0 || !fits {
            return refuse(
                "network",
                "subnets",
                "one IPv4 network (/8 to /30), one IPv6 network (/32 to /120), or one of each",
            );
        }
        let ids_end = u64::from(self.runtime.id_pool_first) + u64::from(self.runtime.id_pool_pods) * 65_536;
        // Ids above are taken for negative numbers by many programs.
        if ids_end > 1 << 31 {
            return refuse("runtime", "id_pool_pods", "so few that the ids end below 2147483648");
        }
        // RFC 8200 section 5: no link may have less, and every IPv4 stack copes with it.
        if self.network.mtu != 0 && self.network.mtu < 1280 {
            return refuse("network", "mtu", "0 or from 1280 to 65535");
        }
        let Stream { tls_cert, tls_key, tls_client_ca, .. } = &self.stream;
        if tls_cert.is_none() != tls_key.is_none() {
            let missing = if tls_cert.is_none() { "tls_cert" } else { "tls_key" };
            return refuse("stream", missing, "set, because a certificate and its key go together");
        }
        if tls_client_ca.is_some() && tls_cert.is_none() {
            return refuse("stream", "tls_cert", "set, because tls_client_ca has no effect without TLS");
        }
        Ok(())
    }

    /// Every key with its value under a comment that says what it does, its unit, limits and default. Reading the
    /// result back gives the same configuration.
    pub(crate) fn to_toml(&self) -> String {
        let mut text = String::from(
            "# The configuration of brigd. Every key may be left out; then its default holds.\n",
        );
        print_table(&mut text, "server", &self.server);
        print_table(&mut text, "runtime", &self.runtime);
        for (name, handler) in &self.handlers {
            print_table(&mut text, &format!("handlers.{name}"), handler);
        }
        print_table(&mut text, "images", &self.images);
        print_table(&mut text, "registries", &self.registries);
        print_table(&mut text, "network", &self.network);
        print_table(&mut text, "metrics", &self.metrics);
        print_table(&mut text, "stream", &self.stream);
        text
    }
}

impl Default for Config {
    fn default() -> Self {
        Self::check(&Sources::default()).expect("the embedded defaults are valid, which a test proves")
    }
}

impl Handler {
    /// The binary, if it is there and executable. `siblings` is the directory of `brigd`, `search_path` is `PATH`.
    /// Looks at the disk each time: a runtime may be installed while we run.
    pub(crate) fn locate(&self, siblings: &Path, search_path: &OsStr) -> Option<PathBuf> {
        let executable = |path: &PathBuf| {
            path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
        };
        match &self.path {
            Program::Default => Some(siblings.join(BUNDLED_BINARY)).filter(executable),
            Program::At(path) => Some(path.clone()).filter(executable),
            Program::OnPath(name) => {
                std::env::split_paths(search_path).map(|dir| dir.join(name)).find(executable)
            }
        }
    }

    /// As [`Handler::locate`], else where the binary would usually be, so that an error can name a path.
    pub(crate) fn usual_path(&self, siblings: &Path, search_path: &OsStr) -> PathBuf {
        self.locate(siblings, search_path).unwrap_or_else(|| match &self.path {
            Program::Default => siblings.join(BUNDLED_BINARY),
            Program::At(path) => path.clone(),
            Program::OnPath(name) => Path::new("/usr/bin").join(name),
        })
    }
}

/// A handler's table, with what its name alone decides.
fn read_handler(sources: &Sources, name: &str) -> Result<Handler, ConfigError> {
    let table = format!("handlers.{name}");
    let raw = sources.table(&table);
    let mut handler = Handler::read(&raw)?;
    if name == HARDENED_HANDLER {
        if raw.is_set("level") && handler.level != Level::Hardened {
            return Err(raw.refuse("level", "hardened for this handler; declare another one for less".into()));
        }
        handler.level = Level::Hardened;
    }
    let hardened = handler.level == Level::Hardened;
    if handler.path == Program::Default && name != BUNDLED_HANDLER && !hardened {
        handler.path = Program::OnPath(name.to_owned());
    }
    let bundled = match &handler.path {
        Program::Default => true,
        Program::At(path) => path.file_name().is_some_and(|file| file == BUNDLED_BINARY),
        Program::OnPath(program) => program == BUNDLED_BINARY,
    };
    if hardened && !bundled {
        return Err(raw.refuse("path", format!("empty or {BUNDLED_BINARY}, because the level is hardened")));
    }
    if hardened && handler.seccomp_profile.is_some() {
        return Err(raw.refuse("seccomp_profile", "empty, because the level is hardened".into()));
    }
    Ok(handler)
}

/// The tables with fixed names, and their keys.
fn known_tables() -> [(&'static str, &'static [Key]); 8] {
    [
        ("server", Server::KEYS),
        ("runtime", Runtime::KEYS),
        ("handlers.NAME", Handler::KEYS),
        ("images", Images::KEYS),
        ("registries", Registries::KEYS),
        ("network", Network::KEYS),
        ("metrics", Metrics::KEYS),
        ("stream", Stream::KEYS),
    ]
}

fn refuse_unknown(sources: &Sources) -> Result<(), ConfigError> {
    let known = known_tables();
    for (name, table) in &sources.tables {
        if let Some(handler) = name.strip_prefix("handlers.") {
            let label = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
            let edges_ok = !handler.starts_with('-') && !handler.ends_with('-');
            if !(1..=HANDLER_NAME_MAX).contains(&handler.len()) || !handler.bytes().all(label) || !edges_ok {
                return Err(ConfigError::HandlerName {
                    origin: table.origin.clone(),
                    name: handler.to_owned(),
                });
            }
        }
        let shape = if name.starts_with("handlers.") { "handlers.NAME" } else { name };
        let Some((_, keys)) = known.iter().find(|(known, _)| *known == shape) else {
            let nearest = nearest(name, known.iter().map(|(known, _)| *known)).to_owned();
            return Err(ConfigError::UnknownTable {
                origin: table.origin.clone(),
                name: name.clone(),
                nearest,
            });
        };
        for (key, raw) in &table.keys {
            if keys.iter().any(|known| known.name == key) {
                continue;
            }
            // A key that is right but in the wrong table is the more helpful hint.
            let elsewhere = known.iter().find(|(_, keys)| keys.iter().any(|known| known.name == key));
            let nearest = match elsewhere {
                Some((table, _)) => format!("{key} in [{table}]").into(),
                None => nearest(key, keys.iter().map(|known| known.name)).into(),
            };
            let (origin, table, key) = (raw.origin.clone(), name.as_str().into(), key.as_str().into());
            return Err(ConfigError::UnknownKey { origin, table, key, nearest });
        }
    }
    Ok(())
}

/// The known word with the fewest edits (Levenshtein); the first of equals.
fn nearest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> &'a str {
    known.min_by_key(|known| edits(word, known)).expect("there is always a known word")
}

fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

fn print_table<T: Table>(text: &mut String, name: &str, table: &T) {
    let mut line = |line: &str| {
        text.push_str(line);
        text.push('\n');
    };
    line("");
    for about in T::ABOUT {
        line(&format!("#{about}"));
    }
    line(&format!("[{name}]"));
    for (key, value) in T::KEYS.iter().zip(table.values()) {
        for reason in key.reason {
            line(&format!("#{reason}"));
        }
        let limits = key.limits.map_or_else(String::new, |(least, most)| format!("; from {least} to {most}"));
        line(&format!("# Unit: {}{limits}. Default: {}", key.unit, key.default));
        line(&format!("{} = {value}", key.name));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::units::Bytes;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(Path::new("/etc/brig/config.toml"), text)
    }

    fn refusal(text: &str) -> String {
        parse(text).expect_err(text).to_string()
    }

    #[test]
    fn no_file_is_needed() {
        let config = Config::default();
        assert_eq!(config.server.root, Path::new("/var/lib/brig"));
        assert_eq!(config.server.listen.0, Path::new("/run/brig/brig.sock"));
        assert_eq!(config.runtime.default_handler, "brig");
        assert_eq!(config.runtime.shm_size, Bytes::mib(64));
        assert_eq!(config.handlers.keys().collect::<Vec<_>>(), ["brig", "brig-hardened", "runc"]);
        assert_eq!(config.handlers["brig"].level, Level::Standard);
        assert_eq!(config.handlers["brig-hardened"].level, Level::Hardened);
        assert_eq!(config.handlers["brig-hardened"].path, Program::Default);
        assert_eq!(config.handlers["brig"].path, Program::Default);
        assert_eq!(config.handlers["runc"].path, Program::OnPath("runc".into()));
        assert_eq!(config.stream.idle_timeout, Duration::from_secs(4 * 3600));
        assert_eq!(config.metrics.listen, None);
    }

    #[test]
    fn the_printed_defaults_read_back_as_the_defaults() {
        let printed = Config::default().to_toml();
        assert_eq!(parse(&printed).unwrap(), Config::default());
        assert_eq!(parse("").unwrap(), Config::default());
    }

    #[test]
    fn the_installed_file_is_the_printed_defaults() {
        // `brig config --default > deploy/config.toml` makes it so again.
        assert_eq!(include_str!("../../deploy/config.toml"), Config::default().to_toml());
    }

    #[test]
    fn every_key_is_printed_with_unit_default_and_reason() {
        let printed = Config::default().to_toml();
        for (table, keys) in known_tables() {
            for key in keys {
                assert!(!key.unit.is_empty() && !key.reason.is_empty(), "{table}.{}", key.name);
                assert!(printed.contains(&format!("\n{} = ", key.name)), "{table}.{}", key.name);
                assert!(printed.contains(&format!("Default: {}\n", key.default)), "{table}.{}", key.name);
                for line in key.reason {
                    assert!(printed.contains(&format!("#{line}\n")), "{table}.{}", key.name);
                }
            }
        }
    }

    #[test]
    fn defaults_lie_within_their_limits() {
        for (table, keys) in known_tables() {
            for key in keys {
                // Written out, a default passes through the same checks as a value from a file.
                let table = table.replace("NAME", "brig");
                parse(&format!("[{table}]\n{} = {}", key.name, key.default)).unwrap();
            }
        }
    }

    #[test]
    fn an_unknown_key_is_refused_with_its_place_and_the_nearest_known_key() {
        assert_eq!(
            refusal("[server]\nroot = \"/r\"\n\n[images]\nparalel_layer = 2\n"),
            "/etc/brig/config.toml:5: unknown key paralel_layer in [images]; the nearest known one is parallel_layers"
        );
        assert_eq!(
            refusal("[images]\nshm_size = \"1 MiB\""),
            "/etc/brig/config.toml:2: unknown key shm_size in [images]; the nearest known one is shm_size in [runtime]"
        );
        assert_eq!(
            refusal("\n[netwrk]\n"),
            "/etc/brig/config.toml:2: unknown table [netwrk]; the nearest known one is [network]"
        );
        assert_eq!(
            refusal("[handlers.kata]\nbinary = \"x\""),
            "/etc/brig/config.toml:2: unknown key binary in [handlers.kata]; the nearest known one is path"
        );
    }

    #[test]
    fn a_bad_value_is_refused_with_its_place_and_the_limit() {
        for (text, message) in [
            ("[images]\nparallel_layers = 0", ":2: parallel_layers = 0 in [images] must be from 1 to 32"),
            (
                "[images]\nparallel_layers = \"3\"",
                ":2: parallel_layers = \"3\" in [images] must be a whole number, without quotes",
            ),
            (
                "[server]\nlog_level = \"loud\"",
                ":2: log_level = \"loud\" in [server] must be one of error, warn, info, debug, trace",
            ),
            (
                "[server]\nroot = \"data\"",
                ":2: root = \"data\" in [server] must be an absolute path without `..`",
            ),
            (
                "[stream]\nidle_timeout = \"500ms\"",
                ":2: idle_timeout = \"500ms\" in [stream] must be from \"1s\" to \"168h\"",
            ),
            (
                "[runtime]\ndefault_handler = \"kata\"",
                ":2: default_handler = \"kata\" in [runtime] must be a declared handler: brig, brig-hardened, runc",
            ),
            ("[network]\nmtu = 600", ":2: mtu = 600 in [network] must be 0 or from 1280 to 65535"),
            (
                "[network]\nbridge = \"a-name-that-is-too-long\"",
                ":2: bridge = \"a-name-that-is-too-long\" in [network] must be an interface name of at most 15 bytes \
                 without / : or spaces",
            ),
            ("images = 3", ":1: images must be a table, as in [images]"),
            ("[handlers]\nrunc = 3", ":2: handlers.runc must be a table, as in [handlers.runc]"),
            (
                "[handlers.Kata]\n",
                ":1: handler name \"Kata\" must be 1 to 63 lower-case letters, digits and inner dashes",
            ),
        ] {
            assert_eq!(refusal(text), format!("/etc/brig/config.toml{message}"));
        }
        assert!(refusal("[server]\nroot = \n").starts_with("/etc/brig/config.toml:2: not valid TOML: "));
    }

    #[test]
    fn subnets_are_at_most_one_of_each_family() {
        for good in ["\"10.0.0.0/24\"", "\"fd00::/64\"", "\"fd00::/64\", \"10.0.0.0/24\""] {
            parse(&format!("[network]\nsubnets = [{good}]")).unwrap();
        }
        for bad in
            ["", "\"10.0.0.0/24\", \"10.1.0.0/24\"", "\"10.0.0.0/31\"", "\"fd00::/128\"", "\"10.0.0.1/24\""]
        {
            assert!(parse(&format!("[network]\nsubnets = [{bad}]")).is_err(), "{bad}");
        }
    }

    #[test]
    fn drop_ins_win_key_by_key_in_the_order_of_their_names_and_flags_win_over_all() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.toml");
        std::fs::write(&file, "[server]\nlog_level = \"warn\"\nroot = \"/a\"\nrun = \"/b\"").unwrap();
        std::fs::create_dir(dir.path().join("config.d")).unwrap();
        for (name, text) in [
            ("20-b.toml", "[server]\nroot = \"/twenty\""),
            ("10-a.toml", "[server]\nroot = \"/ten\"\nlog_format = \"json\"\n[handlers.crun]"),
            ("30-not-toml.bak", "garbage"),
        ] {
            std::fs::write(dir.path().join("config.d").join(name), text).unwrap();
        }
        let args = Args { config: Some(file), run: Some("/flag".into()), ..Args::default() };
        let config = Config::load(&args).unwrap();
        assert_eq!(config.server.root, Path::new("/twenty"));
        assert_eq!(config.server.run, Path::new("/flag"));
        assert_eq!(config.server.log_level, LogLevel::Warn);
        assert_eq!(config.server.log_format, LogFormat::Json);
        assert_eq!(config.handlers["crun"].path, Program::OnPath("crun".into()));
    }

    #[test]
    fn a_named_file_must_exist_and_a_flag_is_checked_like_a_key() {
        let missing = Args { config: Some("/nowhere/config.toml".into()), ..Args::default() };
        assert!(matches!(Config::load(&missing), Err(ConfigError::Read { .. })));
        let args =
            Args { config: Some("/dev/null".into()), listen: Some("tcp://1:2".into()), ..Args::default() };
        assert_eq!(
            Config::load(&args).unwrap_err().to_string(),
            "flag --listen: listen = \"tcp://1:2\" in [server] must be unix:// and an absolute path of at most 107 bytes"
        );
    }

    #[test]
    fn a_handler_is_found_beside_us_on_the_path_or_where_it_says() {
        let dir = tempfile::tempdir().unwrap();
        for name in [BUNDLED_BINARY, "runc"] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        let config = Config::default();
        let nowhere = OsStr::new("");
        // Not executable yet.
        assert_eq!(config.handlers["brig"].locate(dir.path(), nowhere), None);
        for name in [BUNDLED_BINARY, "runc"] {
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
            std::fs::set_permissions(dir.path().join(name), mode).unwrap();
        }
        assert_eq!(
            config.handlers["brig"].locate(dir.path(), nowhere),
            Some(dir.path().join(BUNDLED_BINARY))
        );
        assert_eq!(config.handlers["runc"].locate(dir.path(), nowhere), None);
        assert_eq!(config.handlers["runc"].usual_path(dir.path(), nowhere), Path::new("/usr/bin/runc"));
        let found = config.handlers["runc"].locate(Path::new("/"), dir.path().as_os_str());
        assert_eq!(found, Some(dir.path().join("runc")));
    }

    #[test]
    fn edits_are_counted() {
        assert_eq!(edits("kitten", "sitting"), 3);
        assert_eq!(edits("", "abc"), 3);
        assert_eq!(edits("same", "same"), 0);
    }
}
