//! `update`: new limits for a container, from a document or from options; all of them or none.

use std::io::Read;
use std::path::Path;

use oci_spec::runtime::LinuxResources;
use serde_json::{Value, json};

use super::args::Options;
use super::error::{Attempt, Error};
use super::spec;
use super::state::{Container, Status};

/// A resources document has a few lines per device.
const RESOURCES_BYTES_MAX: u64 = 1 << 20;

pub(super) fn update(root: &Path, id: &str, options: &Options) -> Result<(), Error> {
    let resources = match options.path("resources") {
        Some(path) if path == Path::new("-") => {
            let mut bytes = Vec::new();
            std::io::stdin()
                .take(RESOURCES_BYTES_MAX)
                .read_to_end(&mut bytes)
                .attempt(|| "read the resources from stdin".to_owned())?;
            spec::parse(&bytes, "the resources on stdin")?
        }
        Some(path) => spec::parse(&spec::read_bounded(&path)?, path.display().to_string())?,
        None => from_options(options)?,
    };
    let container = Container::load(root, id)?;
    if container.status() == Status::Stopped {
        return Err(Error::NotRunning(id.to_owned()));
    }
    match container.group()? {
        Some(group) => group.apply(&resources),
        None => Err(Error::Unsupported("update without control groups".to_owned())),
    }
}

fn from_options(options: &Options) -> Result<LinuxResources, Error> {
    let mut document = json!({});
    let mut set = |section: &str, key: &str, value: Option<Value>| {
        if let Some(value) = value {
            document[section][key] = value;
        }
    };
    let signed = |name: &str| options.number::<i64>(name).map(|number| number.map(Value::from));
    let unsigned = |name: &str| options.number::<u64>(name).map(|number| number.map(Value::from));
    let text = |name: &str| options.text(name).map(|text| text.map(Value::from));
    let bytes = |name: &str| -> Result<Option<Value>, Error> {
        let Some(text) = options.text(name)? else { return Ok(None) };
        size(&text).map(|bytes| Some(bytes.into())).ok_or_else(|| {
            Error::Usage(format!(
                "--{name} {text:?} is not a size: a number with k, m or g, or -1 for no limit"
            ))
        })
    };
    set("memory", "limit", bytes("memory")?);
    set("memory", "swap", bytes("memory-swap")?);
    set("memory", "reservation", bytes("memory-reservation")?);
    set("cpu", "shares", unsigned("cpu-shares")?.or(unsigned("cpu-share")?));
    set("cpu", "quota", signed("cpu-quota")?);
    set("cpu", "period", unsigned("cpu-period")?);
    set("cpu", "burst", unsigned("cpu-burst")?);
    set("cpu", "idle", signed("cpu-idle")?);
    set("cpu", "realtimeRuntime", signed("cpu-rt-runtime")?);
    set("cpu", "realtimePeriod", unsigned("cpu-rt-period")?);
    set("cpu", "cpus", text("cpuset-cpus")?);
    set("cpu", "mems", text("cpuset-mems")?);
    set("pids", "limit", signed("pids-limit")?);
    set("blockIO", "weight", unsigned("blkio-weight")?);
    spec::parse(document.to_string().as_bytes(), "the options of update")
}

/// `100m` as bytes; -1 is no limit.
fn size(text: &str) -> Option<i64> {
    let lower = text.to_ascii_lowercase();
    let lower = lower.strip_suffix('b').unwrap_or(&lower);
    let (digits, shift) = match lower.as_bytes().last()? {
        b'k' => (&lower[..lower.len() - 1], 10),
        b'm' => (&lower[..lower.len() - 1], 20),
        b'g' => (&lower[..lower.len() - 1], 30),
        b't' => (&lower[..lower.len() - 1], 40),
        _ => (lower, 0),
    };
    let number: i64 = digits.parse().ok()?;
    if number < 0 { (number == -1 && shift == 0).then_some(-1) } else { number.checked_mul(1 << shift) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_binary_suffixes() {
        for (text, bytes) in [
            ("100", Some(100)),
            ("1k", Some(1024)),
            ("64M", Some(64 << 20)),
            ("1gb", Some(1 << 30)),
            ("-1", Some(-1)),
            ("-2", None),
            ("-1k", None),
            ("x", None),
            ("", None),
            ("9999999999t", None),
        ] {
            assert_eq!(size(text), bytes, "{text}");
        }
    }
}
