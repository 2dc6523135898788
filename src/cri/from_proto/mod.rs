//! From the messages of the CRI to our own types, refusing what does not fit.
//!
//! This is the only place that checks a request: what it returns cannot be wrong in itself, and nothing below looks
//! again. Every refusal names the field as the `.proto` file spells it, the value and the limit. Whether a thing
//! exists (an image, a pod, a path of the host) is not decided here.

pub(crate) mod container;
pub(crate) mod image;
pub(crate) mod pod;
mod resources;
mod security;

use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use crate::sys::sysctl::SysctlError;

pub(crate) use resources::resources;

use crate::container::exec::{ExecOptions, Streams};
use crate::proto::v1::{AttachRequest, ExecRequest};

/// Why a request is refused before anything has happened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadRequest {
    #[error("{field} is required")]
    Missing { field: String },
    /// `value` is quoted and shortened.
    #[error("{field} is {value}: {limit}")]
    Malformed { field: String, value: String, limit: &'static str },
    #[error("{field} is {value}: {why}")]
    Sysctl { field: String, value: String, why: SysctlError },
    #[error("{field} is {value}: must be {min} to {max}")]
    OutOfRange { field: String, value: i64, min: i64, max: i64 },
    #[error("{field} has {bytes} bytes: at most {bytes_max} are allowed")]
    TooLong { field: String, bytes: usize, bytes_max: usize },
    #[error("{field} has {count} entries: at most {count_max} are allowed")]
    TooMany { field: String, count: usize, count_max: usize },
    #[error("{field} contains a NUL byte: no text of a request may")]
    Nul { field: String },
    #[error("{field} and {other} are both set: set one of them")]
    Exclusive { field: String, other: String },
    #[error("{field} is set: it needs {needs}")]
    Needs { field: String, needs: &'static str },
    #[error("{field} is set: {reason}")]
    Unsupported { field: String, reason: &'static str },
}

impl BadRequest {
    fn missing(field: impl Display) -> Self {
        Self::Missing { field: field.to_string() }
    }

    pub(super) fn malformed(field: impl Display, value: &str, limit: &'static str) -> Self {
        Self::Malformed { field: field.to_string(), value: quoted(value), limit }
    }

    fn needs(field: impl Display, needs: &'static str) -> Self {
        Self::Needs { field: field.to_string(), needs }
    }

    fn exclusive(field: impl Display, other: impl Display) -> Self {
        Self::Exclusive { field: field.to_string(), other: other.to_string() }
    }

    fn unsupported(field: impl Display, reason: &'static str) -> Self {
        Self::Unsupported { field: field.to_string(), reason }
    }
}

/// How much of a value an error repeats: enough to find it, too little to fill a log.
const QUOTED_CHARS_MAX: usize = 128;

fn quoted(value: &str) -> String {
    match value.char_indices().nth(QUOTED_CHARS_MAX) {
        None => format!("{value:?}"),
        Some((end, _)) => format!("{:?}… ({} bytes)", &value[..end], value.len()),
    }
}

/// Bytes of a name, uid or namespace: a DNS subdomain, the longest name Kubernetes allows.
const NAME_BYTES_MAX: usize = 253;
/// Bytes of a label's key and value together; CRI-O has the same limit.
const LABEL_BYTES_MAX: usize = 4096;
/// Bytes of all annotations of one object. The API server allows 256 KiB; lists repeat them, so a hundred objects must
/// still fit a 16 MiB reply in the unary RPCs of older kubelets when they stay within the API server's limit.
const ANNOTATIONS_BYTES_MAX: usize = 2 << 20;
/// PATH_MAX without the terminating NUL, see limits.h(0p).
const PATH_BYTES_MAX: usize = 4095;
/// MAX_ARG_STRLEN (32 pages) without the terminating NUL: a longer argument or variable makes execve(2) fail.
const ARG_BYTES_MAX: usize = 128 * 1024 - 1;
/// The highest id: 4294967295 is "no change" to setuid(2) and chown(2).
const ID_MAX: i64 = u32::MAX as i64 - 1;
/// Ports of one PortForward; each takes two of the 256 channels that a WebSocket client can name.
const PORTS_MAX: usize = 127;

/// Text without NUL.
fn text(field: impl Display, value: String, bytes_max: usize) -> Result<String, BadRequest> {
    if value.len() > bytes_max {
        return Err(BadRequest::TooLong { field: field.to_string(), bytes: value.len(), bytes_max });
    }
    if value.contains('\0') {
        return Err(BadRequest::Nul { field: field.to_string() });
    }
    Ok(value)
}

/// A name that goes into messages, tables and file names of others: not empty, no slash, nothing unprintable.
fn name(field: impl Display, value: String) -> Result<String, BadRequest> {
    if value.is_empty() {
        return Err(BadRequest::missing(field));
    }
    let value = text(&field, value, NAME_BYTES_MAX)?;
    if value.contains(|c: char| c == '/' || c.is_control()) || value == "." || value == ".." {
        return Err(BadRequest::malformed(field, &value, "no slash and no control character may be in it"));
    }
    Ok(value)
}

/// An absolute path, kept as it is.
fn absolute(field: impl Display, value: String) -> Result<PathBuf, BadRequest> {
    if value.is_empty() {
        return Err(BadRequest::missing(field));
    }
    let value = text(&field, value, PATH_BYTES_MAX)?;
    if !value.starts_with('/') {
        return Err(BadRequest::malformed(field, &value, "must be an absolute path"));
    }
    Ok(PathBuf::from(value))
}

/// An absolute path in which every `..` has been applied to the text before it, as OCI runtimes do with paths inside
/// a rootfs.
fn absolute_inside(field: impl Display, value: String) -> Result<PathBuf, BadRequest> {
    let path = absolute(field, value)?;
    let mut clean = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(part) => clean.push(part),
            Component::ParentDir => {
                clean.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    Ok(clean)
}

/// A path below some folder: relative, and nothing in it climbs.
fn relative(field: impl Display, value: String) -> Result<PathBuf, BadRequest> {
    let value = text(&field, value, PATH_BYTES_MAX)?;
    let fits = Path::new(&value).components().all(|c| matches!(c, Component::Normal(_)));
    // Path::components drops a trailing slash, and the last component names a file.
    if value.is_empty() || !fits || value.ends_with('/') {
        return Err(BadRequest::malformed(field, &value, "must be a relative path without \"..\""));
    }
    Ok(PathBuf::from(value))
}

/// A user or group id.
fn id(field: impl Display, value: i64) -> Result<u32, BadRequest> {
    ranged(field, value, 0, ID_MAX).map(|id| u32::try_from(id).expect("ID_MAX is below u32::MAX"))
}

fn ids(field: impl Display, values: Vec<i64>) -> Result<Vec<u32>, BadRequest> {
    values.into_iter().enumerate().map(|(i, gid)| id(format_args!("{field}[{i}]"), gid)).collect()
}

fn ranged(field: impl Display, value: i64, min: i64, max: i64) -> Result<i64, BadRequest> {
    if (min..=max).contains(&value) {
        Ok(value)
    } else {
        Err(BadRequest::OutOfRange { field: field.to_string(), value, min, max })
    }
}

fn labels(
    field: impl Display,
    labels: BTreeMap<String, String>,
) -> Result<BTreeMap<String, String>, BadRequest> {
    for (key, value) in &labels {
        let bytes = key.len() + value.len();
        if bytes > LABEL_BYTES_MAX {
            let field = format!("{field}[{}]", quoted(key));
            return Err(BadRequest::TooLong { field, bytes, bytes_max: LABEL_BYTES_MAX });
        }
    }
    keyed_text(field, labels)
}

fn annotations(
    field: impl Display,
    notes: BTreeMap<String, String>,
) -> Result<BTreeMap<String, String>, BadRequest> {
    let bytes = notes.iter().map(|(key, value)| key.len() + value.len()).sum();
    if bytes > ANNOTATIONS_BYTES_MAX {
        return Err(BadRequest::TooLong {
            field: field.to_string(),
            bytes,
            bytes_max: ANNOTATIONS_BYTES_MAX,
        });
    }
    keyed_text(field, notes)
}

/// No empty key, no NUL in keys or values.
fn keyed_text(
    field: impl Display,
    map: BTreeMap<String, String>,
) -> Result<BTreeMap<String, String>, BadRequest> {
    for (key, value) in &map {
        if key.is_empty() {
            return Err(BadRequest::missing(format_args!("the key of an entry of {field}")));
        }
        if key.contains('\0') || value.contains('\0') {
            return Err(BadRequest::Nul { field: format!("{field}[{}]", quoted(key)) });
        }
    }
    Ok(map)
}

/// An enum's number as the generated type.
fn enumerated<E: TryFrom<i32>>(field: impl Display, number: i32) -> Result<E, BadRequest> {
    E::try_from(number).map_err(|_| {
        BadRequest::malformed(
            field,
            &number.to_string(),
            "is none of the enum's values in the CRI's version 1",
        )
    })
}

fn at_most<T>(field: impl Display, list: &[T], count_max: usize) -> Result<(), BadRequest> {
    if list.len() > count_max {
        return Err(BadRequest::TooMany { field: field.to_string(), count: list.len(), count_max });
    }
    Ok(())
}

/// Bytes of an id in a request. Ids have 64 digits and may be abbreviated, image ids carry `sha256:`.
const ID_BYTES_MAX: usize = 256;

/// An id or the beginning of one. Only the tables know whether it is anybody's.
pub(crate) fn some_id(field: &'static str, value: String) -> Result<String, BadRequest> {
    if value.is_empty() {
        return Err(BadRequest::missing(field));
    }
    text(field, value, ID_BYTES_MAX)
}

/// Load's `path`, on this host.
pub(crate) fn load_path(path: String) -> Result<PathBuf, BadRequest> {
    absolute("path", path)
}

/// StopContainer's `timeout`: seconds of grace. Nothing, and what is below nothing, kills at once.
///
/// An absurdly long grace is as good as for ever; it is cut to 68 years, which every timer can hold.
pub(crate) fn grace(timeout_s: i64) -> Duration {
    Duration::from_secs(u64::from(u32::try_from(timeout_s.clamp(0, i64::from(i32::MAX))).unwrap_or(0)))
}

/// ExecSync's command and `timeout`, where no timeout is 0.
pub(crate) fn exec_sync(
    cmd: Vec<String>,
    timeout_s: i64,
) -> Result<(Vec<String>, Option<Duration>), BadRequest> {
    let timeout_s = ranged("timeout", timeout_s, 0, i64::from(i32::MAX))?;
    Ok((command("cmd", cmd)?, (timeout_s > 0).then(|| grace(timeout_s))))
}

/// What Exec asks for. Which streams go together is the container's to say.
pub(crate) fn exec(request: ExecRequest) -> Result<ExecOptions, BadRequest> {
    let ExecRequest { container_id: _, cmd, tty: terminal, stdin, stdout, stderr } = request;
    Ok(ExecOptions { command: command("cmd", cmd)?, streams: Streams { stdin, stdout, stderr, terminal } })
}

/// Which streams Attach asks for.
pub(crate) fn attach(request: &AttachRequest) -> Streams {
    let AttachRequest { container_id: _, stdin, tty: terminal, stdout, stderr } = *request;
    Streams { stdin, stdout, stderr, terminal }
}

/// The ports of PortForward, which may be none: SPDY clients name them later.
pub(crate) fn ports(ports: &[i32]) -> Result<Vec<u16>, BadRequest> {
    let port = |(i, port): (usize, &i32)| {
        // In range, so it fits.
        ranged(format_args!("port[{i}]"), i64::from(*port), 1, i64::from(u16::MAX)).map(|port| port as u16)
    };
    if ports.len() > PORTS_MAX {
        return Err(BadRequest::TooMany { field: "port".into(), count: ports.len(), count_max: PORTS_MAX });
    }
    ports.iter().enumerate().map(port).collect()
}

/// A command to run: at least one word.
pub(crate) fn command(field: &'static str, words: Vec<String>) -> Result<Vec<String>, BadRequest> {
    if words.first().is_none_or(String::is_empty) {
        return Err(BadRequest::missing(format_args!("{field}[0]")));
    }
    arguments(field, words)
}

fn arguments(field: impl Display, words: Vec<String>) -> Result<Vec<String>, BadRequest> {
    words
        .into_iter()
        .enumerate()
        .map(|(i, word)| text(format_args!("{field}[{i}]"), word, ARG_BYTES_MAX))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_field_value_and_limit_and_repeats_only_the_start_of_a_long_value() {
        let short = absolute("config.log_directory", "logs".into()).unwrap_err();
        assert_eq!(short.to_string(), r#"config.log_directory is "logs": must be an absolute path"#);
        let long = absolute("x", "é".repeat(200)).unwrap_err().to_string();
        assert_eq!(long, format!("x is \"{}\"… (400 bytes): must be an absolute path", "é".repeat(128)));
    }

    #[test]
    fn relative_paths_cannot_climb() {
        for bad in ["", "/etc/passwd", "..", "a/../../b", "./a", "a/..", "a/"] {
            assert!(relative("p", bad.into()).is_err(), "{bad:?}");
        }
        assert_eq!(relative("p", "ctr/0.log".into()), Ok(PathBuf::from("ctr/0.log")));
        assert_eq!(relative("p", "a\0".into()), Err(BadRequest::Nul { field: "p".into() }));
    }

    #[test]
    fn paths_inside_a_rootfs_lose_their_dots() {
        for (given, clean) in
            [("/a/../b", "/b"), ("/../../etc", "/etc"), ("/a/./b//c/", "/a/b/c"), ("/..", "/")]
        {
            assert_eq!(absolute_inside("p", given.into()), Ok(PathBuf::from(clean)), "{given}");
        }
    }

    #[test]
    fn ids_end_one_before_the_value_that_means_no_change() {
        assert_eq!(id("u", 4_294_967_294), Ok(4_294_967_294));
        for bad in [-1, 4_294_967_295, i64::MIN, i64::MAX] {
            let expected =
                BadRequest::OutOfRange { field: "u".into(), value: bad, min: 0, max: 4_294_967_294 };
            assert_eq!(id("u", bad), Err(expected));
        }
    }

    #[test]
    fn a_label_may_have_4096_bytes_with_its_key_and_not_one_more() {
        let label = |bytes: usize| BTreeMap::from([("key".to_owned(), "v".repeat(bytes - 3))]);
        assert!(labels("config.labels", label(4096)).is_ok());
        assert_eq!(
            labels("config.labels", label(4097)).unwrap_err().to_string(),
            r#"config.labels["key"] has 4097 bytes: at most 4096 are allowed"#
        );
    }

    #[test]
    fn a_grace_below_nothing_kills_at_once_and_an_endless_one_fits_a_timer() {
        for (given, seconds) in [(i64::MIN, 0), (-1, 0), (0, 0), (30, 30), (i64::MAX, 2_147_483_647)] {
            assert_eq!(grace(given), Duration::from_secs(seconds));
        }
    }

    proptest::proptest! {
        /// Any text at all is either refused, by an error of bounded length, or free of what it must not have.
        #[test]
        fn no_text_slips_through_or_makes_us_panic(given in ".{0,300}", nul in proptest::bool::ANY) {
            let given = if nul { format!("{given}\0") } else { given };
            let checks = [
                name("f", given.clone()).map(PathBuf::from),
                absolute("f", format!("/{given}")),
                absolute_inside("f", format!("/{given}")),
                relative("f", given),
            ];
            for (i, checked) in checks.into_iter().enumerate() {
                match checked {
                    Ok(path) => {
                        proptest::prop_assert!(!nul);
                        let climbs = path.components().any(|part| part == Component::ParentDir);
                        // Absolute paths of the host are kept as they are.
                        proptest::prop_assert!(i == 1 || !climbs);
                    }
                    // Escapes take at most ten bytes for a character.
                    Err(error) => proptest::prop_assert!(error.to_string().len() < 10 * QUOTED_CHARS_MAX + 200),
                }
            }
        }
    }

    #[test]
    fn a_port_is_from_1_to_65535() {
        assert_eq!(ports(&[]), Ok(vec![]));
        assert_eq!(ports(&[1, 65535]), Ok(vec![1, 65535]));
        for wrong in [0, -1, 65536] {
            let refused = ports(&[80, wrong]).unwrap_err().to_string();
            assert_eq!(refused, format!("port[1] is {wrong}: must be 1 to 65535"));
        }
        assert!(matches!(ports(&[1; 128]), Err(BadRequest::TooMany { count: 128, .. })));
    }

    #[test]
    fn a_command_to_execute_has_a_first_word() {
        assert!(exec_sync(vec![], 0).is_err());
        assert!(exec_sync(vec![String::new()], 0).is_err());
        assert!(exec_sync(vec!["true".into()], -1).is_err());
        assert_eq!(exec_sync(vec!["true".into()], 0), Ok((vec!["true".into()], None)));
        assert_eq!(exec_sync(vec!["true".into()], 2).unwrap().1, Some(Duration::from_secs(2)));
    }
}
