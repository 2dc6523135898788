//! The types a key can have: how each is read from TOML, refused, and written back.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use toml::de::DeValue;

use crate::units::Bytes;

/// A TOML value without its place in the file.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Literal {
    Text(String),
    Integer(i64),
    Bool(bool),
    List(Vec<Literal>),
    /// A kind no key has: float, date or table, by its TOML name.
    Other(&'static str),
}

impl From<&DeValue<'_>> for Literal {
    fn from(value: &DeValue<'_>) -> Self {
        match value {
            DeValue::String(text) => Self::Text(text.clone().into_owned()),
            DeValue::Integer(number) => {
                i64::from_str_radix(&number.as_str().replace('_', ""), number.radix())
                    .map_or(Self::Other("integer beyond 64 bits"), Self::Integer)
            }
            DeValue::Boolean(flag) => Self::Bool(*flag),
            DeValue::Array(items) => Self::List(items.iter().map(|item| item.get_ref().into()).collect()),
            other => Self::Other(other.type_str()),
        }
    }
}

impl fmt::Display for Literal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => f.write_str(&quoted(text)),
            Self::Integer(number) => write!(f, "{number}"),
            Self::Bool(flag) => write!(f, "{flag}"),
            Self::List(items) => {
                f.write_str("[")?;
                for (i, item) in items.iter().enumerate() {
                    write!(f, "{}{item}", if i > 0 { ", " } else { "" })?;
                }
                f.write_str("]")
            }
            Self::Other(kind) => write!(f, "({kind})"),
        }
    }
}

/// A type that a key can have.
pub(crate) trait Value: Sized + PartialOrd {
    /// Parses a value, or says what it must be, continuing "must be …".
    fn from_literal(literal: &Literal) -> Result<Self, String>;

    /// As it would be written in the file; [`Value::from_literal`] reads the same value back.
    fn to_toml(&self) -> String;
}

fn text_of<'a>(literal: &'a Literal, what: &str) -> Result<&'a str, String> {
    match literal {
        Literal::Text(text) => Ok(text),
        _ => Err(format!("{what}, in quotes")),
    }
}

/// A TOML basic string.
fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_control() => out.push_str(&format!("\\u{:04X}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

impl Value for String {
    fn from_literal(literal: &Literal) -> Result<Self, String> {
        let text = text_of(literal, "a text")?;
        if text.is_empty() || text.chars().any(char::is_control) {
            return Err("a text that is not empty and has no control characters".into());
        }
        Ok(text.to_owned())
    }

    fn to_toml(&self) -> String {
        quoted(self)
    }
}

impl Value for bool {
    fn from_literal(literal: &Literal) -> Result<Self, String> {
        match literal {
            Literal::Bool(flag) => Ok(*flag),
            _ => Err("true or false".into()),
        }
    }

    fn to_toml(&self) -> String {
        self.to_string()
    }
}

macro_rules! integer {
    ($($ty:ty),+) => {$(
        impl Value for $ty {
            fn from_literal(literal: &Literal) -> Result<Self, String> {
                match literal {
                    Literal::Integer(number) => <$ty>::try_from(*number).map_err(|_| {
                        format!("a whole number from {} to {}", <$ty>::MIN, <$ty>::MAX)
                    }),
                    _ => Err("a whole number, without quotes".into()),
                }
            }

            fn to_toml(&self) -> String {
                self.to_string()
            }
        }
    )+};
}

integer!(u32, i32);

impl<T: Value> Value for Vec<T> {
    fn from_literal(literal: &Literal) -> Result<Self, String> {
        /// No list of the configuration is sensibly longer; each item may cost a look at the disk per pull or pod.
        const ITEMS_MAX: usize = 256;
        match literal {
            Literal::List(items) if items.len() > ITEMS_MAX => {
                Err(format!("a list of at most {ITEMS_MAX} items"))
            }
            Literal::List(items) => items
                .iter()
                .map(|item| {
                    T::from_literal(item).map_err(|must| format!("a list whose every item is {must}"))
                })
                .collect(),
            _ => Err("a list, in square brackets".into()),
        }
    }

    fn to_toml(&self) -> String {
        format!("[{}]", self.iter().map(Value::to_toml).collect::<Vec<_>>().join(", "))
    }
}

impl Value for PathBuf {
    fn from_literal(literal: &Literal) -> Result<Self, String> {
        const MUST: &str = "an absolute path without `..`";
        let path = Path::new(text_of(literal, MUST)?);
        let plain = path.components().all(|part| !matches!(part, Component::ParentDir));
        if path.is_absolute() && plain { Ok(path.to_owned()) } else { Err(MUST.into()) }
    }

    fn to_toml(&self) -> String {
        // The file is UTF-8 and flags are checked, so no path here is anything else.
        quoted(&self.to_string_lossy())
    }
}

/// The empty text is `None`.
impl<T: Value> Value for Option<T> {
    fn from_literal(literal: &Literal) -> Result<Self, String> {
        match literal {
            Literal::Text(text) if text.is_empty() => Ok(None),
            other => T::from_literal(other).map(Some).map_err(|must| format!("{must}, or empty")),
        }
    }

    fn to_toml(&self) -> String {
        self.as_ref().map_or_else(|| quoted(""), Value::to_toml)
    }
}

impl Value for SocketAddr {
    fn from_literal(literal: &Literal) -> Result<Self, String> {
        const MUST: &str = "an IP address and a port, such as 127.0.0.1:9090 or [::1]:9090";
        text_of(literal, MUST)?.parse().map_err(|_| MUST.into())
    }

    fn to_toml(&self) -> String {
        quoted(&self.to_string())
    }
}

impl Value for IpNet {
    fn from_literal(literal: &Literal) -> Result<Self, String> {
        const MUST: &str =
            "a network such as 10.127.0.0/16 or fd62:7269:6700::/64, with no bit set after the prefix";
        let net: IpNet = text_of(literal, MUST)?.parse().map_err(|_| MUST)?;
        if net == net.trunc() { Ok(net) } else { Err(MUST.into()) }
    }

    fn to_toml(&self) -> String {
        quoted(&self.to_string())
    }
}

/// Numbers with a unit, largest unit first: `90s`, `1m30s`, `250ms`.
impl Value for Duration {
    fn from_literal(literal: &Literal) -> Result<Self, String> {
        const MUST: &str = "a duration such as \"90s\", \"1m30s\" or \"250ms\" (units h, m, s, ms)";
        parse_duration(text_of(literal, MUST)?).ok_or_else(|| MUST.into())
    }

    fn to_toml(&self) -> String {
        let units = [("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];
        let mut rest = self.as_millis();
        let mut text = String::new();
        for (unit, ms) in units {
            if rest >= ms {
                text.push_str(&format!("{}{unit}", rest / ms));
                rest %= ms;
            }
        }
        quoted(if text.is_empty() { "0s" } else { &text })
    }
}

fn parse_duration(text: &str) -> Option<Duration> {
    let mut ms: u64 = 0;
    let mut rest = text;
    let mut last_unit = u64::MAX;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let number: u64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let end = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let unit = match &rest[..end] {
            "h" => 3_600_000,
            "m" => 60_000,
            "s" => 1000,
            "ms" => 1,
            _ => return None,
        };
        if unit >= last_unit {
            return None;
        }
        last_unit = unit;
        ms = ms.checked_add(number.checked_mul(unit)?)?;
        rest = &rest[end..];
    }
    (last_unit != u64::MAX).then(|| Duration::from_millis(ms))
}

/// A number of bytes, or a number with a binary unit: `64 MiB`.
impl Value for Bytes {
    fn from_literal(literal: &Literal) -> Result<Self, String> {
        const MUST: &str = "a size such as \"64 MiB\" (units B, KiB, MiB, GiB, TiB) or a number of bytes";
        match literal {
            Literal::Integer(bytes) => u64::try_from(*bytes).map(Bytes).map_err(|_| MUST.into()),
            other => parse_bytes(text_of(other, MUST)?).ok_or_else(|| MUST.into()),
        }
    }

    fn to_toml(&self) -> String {
        let (mut value, mut unit) = (self.0, 0);
        while value != 0 && value % 1024 == 0 && unit + 1 < SIZE_UNITS.len() {
            value /= 1024;
            unit += 1;
        }
        quoted(&format!("{value} {}", SIZE_UNITS[unit]))
    }
}

const SIZE_UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];

fn parse_bytes(text: &str) -> Option<Bytes> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let number: u64 = text[..digits].parse().ok()?;
    let unit = text[digits..].trim_start();
    let power = SIZE_UNITS.iter().position(|known| *known == unit)?;
    number.checked_mul(1 << (10 * power)).map(Bytes)
}

/// How far a handler confines what it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd)]
pub(crate) enum Level {
    Standard,
    Hardened,
}

impl Value for Level {
    fn from_literal(literal: &Literal) -> Result<Self, String> {
        const MUST: &str = "\"standard\" or \"hardened\"";
        match text_of(literal, MUST)? {
            "standard" => Ok(Self::Standard),
            "hardened" => Ok(Self::Hardened),
            _ => Err(MUST.into()),
        }
    }

    fn to_toml(&self) -> String {
        quoted(match self {
            Self::Standard => "standard",
            Self::Hardened => "hardened",
        })
    }
}

/// A folder of the host; a component that is `{uid}` stands for the pod's own uid.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd)]
pub(crate) struct HostFolder(pub(crate) PathBuf);

impl Value for HostFolder {
    fn from_literal(literal: &Literal) -> Result<Self, String> {
        PathBuf::from_literal(literal).map(Self)
    }

    fn to_toml(&self) -> String {
        self.0.to_toml()
    }
}

/// A unix socket's path, written `unix:///path`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd)]
pub(crate) struct UnixAddress(pub(crate) PathBuf);

impl UnixAddress {
    /// Parses `unix:///path`.
    ///
    /// # Errors
    /// Says what the address must be, continuing "must be …".
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        /// unix(7): `sun_path` has 108 bytes, the last of which is NUL.
        const PATH_MAX: usize = 107;
        let must = || format!("unix:// and an absolute path of at most {PATH_MAX} bytes");
        let path = text.strip_prefix("unix://").ok_or_else(must)?;
        if path.len() > PATH_MAX {
            return Err(must());
        }
        PathBuf::from_literal(&Literal::Text(path.to_owned())).map(Self).map_err(|_| must())
    }
}

impl AsRef<Path> for UnixAddress {
    fn as_ref(&self) -> &Path {
        &self.0
    }
}

impl fmt::Display for UnixAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unix://{}", self.0.display())
    }
}

impl Value for UnixAddress {
    fn from_literal(literal: &Literal) -> Result<Self, String> {
        Self::parse(text_of(literal, "unix:// and an absolute path")?)
    }

    fn to_toml(&self) -> String {
        quoted(&self.to_string())
    }
}

/// Where a handler's binary is looked for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd)]
pub(crate) enum Program {
    /// Not said: see [`Handler::path`](super::Handler).
    Default,
    /// A name looked up in `PATH` each time it is needed.
    OnPath(String),
    At(PathBuf),
}

impl Value for Program {
    fn from_literal(literal: &Literal) -> Result<Self, String> {
        const MUST: &str = "an absolute path without `..`, or a bare name that is looked up in PATH";
        match text_of(literal, MUST)? {
            "" => Ok(Self::Default),
            name if !name.contains('/') && !name.starts_with('.') => Ok(Self::OnPath(name.to_owned())),
            _ => PathBuf::from_literal(literal).map(Self::At).map_err(|_| MUST.into()),
        }
    }

    fn to_toml(&self) -> String {
        match self {
            Self::Default => quoted(""),
            Self::OnPath(name) => quoted(name),
            Self::At(path) => path.to_toml(),
        }
    }
}

/// A resource limit of containers: `nofile=1024:1048576`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd)]
pub(crate) struct Ulimit {
    /// As in the OCI runtime specification: `RLIMIT_NOFILE`.
    pub(crate) kind: String,
    pub(crate) soft: u64,
    pub(crate) hard: u64,
}

impl Value for Ulimit {
    fn from_literal(literal: &Literal) -> Result<Self, String> {
        /// getrlimit(2).
        const KINDS: [&str; 16] = [
            "as",
            "core",
            "cpu",
            "data",
            "fsize",
            "locks",
            "memlock",
            "msgqueue",
            "nice",
            "nofile",
            "nproc",
            "rss",
            "rtprio",
            "rttime",
            "sigpending",
            "stack",
        ];
        let must = || format!("name=soft:hard with soft at most hard and a name out of {}", KINDS.join(", "));
        let limit = |text: &str| match text {
            "unlimited" => Some(u64::MAX),
            number => number.parse().ok(),
        };
        let (name, limits) = text_of(literal, &must())?.split_once('=').ok_or_else(must)?;
        let (soft, hard) = limits.split_once(':').unwrap_or((limits, limits));
        match (KINDS.contains(&name), limit(soft), limit(hard)) {
            (true, Some(soft), Some(hard)) if soft <= hard => {
                Ok(Self { kind: format!("RLIMIT_{}", name.to_uppercase()), soft, hard })
            }
            _ => Err(must()),
        }
    }

    fn to_toml(&self) -> String {
        let limit = |n: u64| if n == u64::MAX { "unlimited".to_owned() } else { n.to_string() };
        let name = self.kind.trim_start_matches("RLIMIT_").to_lowercase();
        quoted(&format!("{name}={}:{}", limit(self.soft), limit(self.hard)))
    }
}

macro_rules! choice {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:literal),+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, clap::ValueEnum)]
        pub(crate) enum $name {
            $($(#[$variant_doc])* $variant),+
        }

        impl $name {
            /// The word in the configuration file.
            pub(crate) const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $text),+
                }
            }
        }

        impl Value for $name {
            fn from_literal(literal: &Literal) -> Result<Self, String> {
                let must = || format!("one of {}", [$($text),+].join(", "));
                match text_of(literal, &must())? {
                    $($text => Ok(Self::$variant),)+
                    _ => Err(must()),
                }
            }

            fn to_toml(&self) -> String {
                quoted(self.as_str())
            }
        }
    };
}

choice!(
    /// How grave a message must be to be logged.
    LogLevel { Error = "error", Warn = "warn", Info = "info", Debug = "debug", Trace = "trace" }
);
choice!(
    /// What of /proc a hardened handler shows.
    Proc { Processes = "processes", Common = "common", Whole = "whole" }
);
choice!(
    /// How log lines look.
    LogFormat { Text = "text", Json = "json" }
);
choice!(
    /// Who makes cgroups.
    CgroupDriver {
        /// We write to the cgroup file system.
        Cgroupfs = "cgroupfs",
        /// systemd makes slices and scopes for us.
        Systemd = "systemd",
        /// See [`Runtime::cgroup_driver`](super::Runtime).
        Auto = "auto"
    }
);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(text: &str) -> Literal {
        Literal::Text(text.to_owned())
    }

    #[test]
    fn durations_have_units_in_falling_order() {
        for (written, ms) in
            [("0s", 0), ("250ms", 250), ("90s", 90_000), ("1m30s", 90_000), ("4h", 14_400_000)]
        {
            assert_eq!(Duration::from_literal(&text(written)), Ok(Duration::from_millis(ms)), "{written}");
        }
        for bad in
            ["", "5", "s", "1s1m", "1s1s", "-1s", "1.5s", "99999999999999999999s", "9223372036854775807h"]
        {
            assert!(Duration::from_literal(&text(bad)).is_err(), "{bad}");
        }
        assert!(Duration::from_literal(&Literal::Integer(5)).is_err());
    }

    #[test]
    fn sizes_have_binary_units() {
        assert_eq!(Bytes::from_literal(&text("64 MiB")), Ok(Bytes::mib(64)));
        assert_eq!(Bytes::from_literal(&text("64MiB")), Ok(Bytes::mib(64)));
        assert_eq!(Bytes::from_literal(&Literal::Integer(5)), Ok(Bytes(5)));
        for bad in ["", "64", "64 MB", "MiB", "-1 B", "99999999999 TiB"] {
            assert!(Bytes::from_literal(&text(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn paths_are_absolute_and_do_not_climb() {
        assert_eq!(PathBuf::from_literal(&text("/var/lib/brig")), Ok("/var/lib/brig".into()));
        for bad in ["", "var", "./var", "/var/../etc"] {
            assert!(PathBuf::from_literal(&text(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_socket_address_fits_into_sun_path() {
        let longest = format!("unix:///{}", "a".repeat(106));
        assert_eq!(UnixAddress::parse(&longest).unwrap().to_string(), longest);
        for bad in
            [&format!("{longest}a"), "/run/brig.sock", "unix://run/brig.sock", "tcp://1.2.3.4:5", "unix://"]
        {
            assert!(UnixAddress::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_program_is_a_name_or_an_absolute_path() {
        assert_eq!(Program::from_literal(&text("")), Ok(Program::Default));
        assert_eq!(Program::from_literal(&text("crun")), Ok(Program::OnPath("crun".into())));
        assert_eq!(Program::from_literal(&text("/usr/bin/crun")), Ok(Program::At("/usr/bin/crun".into())));
        for bad in ["bin/crun", "./crun", "../crun", ".."] {
            assert!(Program::from_literal(&text(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn ulimits_name_both_limits() {
        let nofile = Ulimit { kind: "RLIMIT_NOFILE".into(), soft: 1024, hard: u64::MAX };
        assert_eq!(Ulimit::from_literal(&text("nofile=1024:unlimited")), Ok(nofile.clone()));
        assert_eq!(nofile.to_toml(), "\"nofile=1024:unlimited\"");
        for bad in ["nofile", "nofile=2:1", "files=1:1", "nofile=", "nofile=-1"] {
            assert!(Ulimit::from_literal(&text(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_network_has_no_host_bits() {
        assert!(IpNet::from_literal(&text("10.1.0.0/16")).is_ok());
        for bad in ["10.1.0.1/16", "10.1.0.0", "10.1.0.0/33", "fd00::1/64"] {
            assert!(IpNet::from_literal(&text(bad)).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(ms in 0..u64::MAX / 4, bytes: u64, name in "[^\\p{C}]{1,20}") {
            fn back<T: Value>(value: &T) -> Result<T, String> {
                let written = value.to_toml();
                T::from_literal(&toml::de::DeValue::parse(&written).unwrap().get_ref().into())
            }
            let duration = Duration::from_millis(ms);
            prop_assert_eq!(back(&duration), Ok(duration));
            prop_assert_eq!(back(&Bytes(bytes)), Ok(Bytes(bytes)));
            prop_assert_eq!(back(&name), Ok(name.clone()));
        }

        #[test]
        fn no_text_makes_a_parser_panic(any in "\\PC*") {
            let literal = text(&any);
            let _ = (Duration::from_literal(&literal), Bytes::from_literal(&literal));
            let _ = (UnixAddress::from_literal(&literal), Ulimit::from_literal(&literal));
            let _ = (Program::from_literal(&literal), IpNet::from_literal(&literal));
        }
    }
}
