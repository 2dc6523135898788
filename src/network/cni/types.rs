//! What plugins print: results (CNI 0.3.0 to 1.1.0) and errors, checked field by field.
//!
//! A plugin's output is input from outside: every complaint names the field and the value.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::{Map, Value};

/// Interfaces, and addresses, one result may have; a pod with more is a fault.
const ENTRIES_MAX: usize = 256;

/// The versions of the specification spoken here, oldest first. 0.3.0 and 0.3.1 print the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Version {
    V0_3_0,
    V0_3_1,
    V0_4_0,
    V1_0_0,
    V1_1_0,
}

impl Version {
    pub(super) const ALL: [Self; 5] = [Self::V0_3_0, Self::V0_3_1, Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::V0_3_0 => "0.3.0",
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    pub(super) fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|version| version.as_str() == text)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a result is none.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum ResultError {
    #[error("the result is no JSON: {0}")]
    NotJson(String),
    #[error("{field} of the result is {value}, expected {expected}")]
    Field { field: String, value: String, expected: &'static str },
    #[error("the result has no address for interface {0}")]
    NoAddress(String),
}

/// A checked result, in the form of the version that was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PluginResult {
    /// What the next plugin and DEL get as prevResult.
    pub json: Map<String, Value>,
    interfaces: Vec<(String, String)>,
    ips: Vec<(IpAddr, Option<usize>)>,
}

impl PluginResult {
    /// Reads what a plugin printed and gives it the form of `wanted`.
    pub(super) fn parse(text: &[u8], wanted: Version) -> Result<Self, ResultError> {
        let value: Value =
            serde_json::from_slice(text).map_err(|err| ResultError::NotJson(err.to_string()))?;
        let Value::Object(mut json) = value else { return Err(wrong("all", Some(&value), "an object")) };
        let stated = json.get("cniVersion");
        if stated.and_then(Value::as_str).and_then(Version::parse).is_none() {
            return Err(wrong("cniVersion", stated, "a version from 0.3.0 to 1.1.0"));
        }
        let interfaces = entries(&json, "interfaces")?;
        let interfaces: Vec<_> = (0..)
            .zip(interfaces)
            .map(|(at, entry)| {
                Ok((text_of(entry, "interfaces", at, "name")?, text_of(entry, "interfaces", at, "sandbox")?))
            })
            .collect::<Result<_, ResultError>>()?;
        let ips: Vec<_> = (0..)
            .zip(entries(&json, "ips")?)
            .map(|(at, entry)| {
                let field = format!("ips[{at}].address");
                let address = entry.get("address");
                let parsed = address.and_then(Value::as_str).and_then(|text| text.parse::<IpNet>().ok());
                let ip =
                    parsed.ok_or_else(|| wrong(&field, address, "an address with prefix length"))?.addr();
                if ip.is_unspecified() || ip.is_multicast() || ip.is_loopback() {
                    return Err(wrong(&field, address, "an address a pod can have"));
                }
                let index =
                    match entry.get("interface") {
                        None | Some(Value::Null) => None,
                        Some(value) => {
                            let index = value.as_u64().and_then(|n| usize::try_from(n).ok());
                            let known = index.filter(|index| *index < interfaces.len());
                            let expected = "the number of an entry of interfaces";
                            Some(known.ok_or_else(|| {
                                wrong(&format!("ips[{at}].interface"), Some(value), expected)
                            })?)
                        }
                    };
                Ok((ip, index))
            })
            .collect::<Result<_, ResultError>>()?;
        // Up to 0.4.0 every address says its IP version, from 1.0.0 none does; all else has one form.
        for (at, (ip, _)) in ips.iter().enumerate() {
            let entry = json.get_mut("ips").and_then(|list| list.get_mut(at)).and_then(Value::as_object_mut);
            let entry = entry.expect("it was just read");
            if wanted < Version::V1_0_0 {
                entry.insert("version".to_owned(), if ip.is_ipv4() { "4" } else { "6" }.into());
            } else {
                entry.remove("version");
            }
        }
        json.insert("cniVersion".to_owned(), wanted.as_str().into());
        Ok(Self { json, interfaces, ips })
    }

    /// The addresses of the pod's interface, in the plugin's order. An address without an interface counts.
    pub(super) fn addresses(&self, interface: &str) -> Result<Vec<IpAddr>, ResultError> {
        let inside = |at: usize| {
            let (name, sandbox) = &self.interfaces[at];
            name == interface && !sandbox.is_empty()
        };
        let ips: Vec<_> =
            self.ips.iter().filter(|(_, at)| at.is_none_or(inside)).map(|(ip, _)| *ip).collect();
        if ips.is_empty() {
            return Err(ResultError::NoAddress(interface.to_owned()));
        }
        Ok(ips)
    }
}

fn entries<'j>(
    json: &'j Map<String, Value>,
    field: &str,
) -> Result<Vec<&'j Map<String, Value>>, ResultError> {
    let list = match json.get(field) {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Array(list)) if list.len() <= ENTRIES_MAX => list,
        Some(Value::Array(list)) => {
            let value = format!("{} entries", list.len());
            return Err(ResultError::Field { field: field.to_owned(), value, expected: "at most 256" });
        }
        other => return Err(wrong(field, other, "a list")),
    };
    (0..)
        .zip(list)
        .map(|(at, entry): (usize, _)| {
            entry.as_object().ok_or_else(|| wrong(&format!("{field}[{at}]"), Some(entry), "an object"))
        })
        .collect()
}

fn text_of(entry: &Map<String, Value>, list: &str, at: usize, key: &str) -> Result<String, ResultError> {
    match entry.get(key) {
        None | Some(Value::Null) => Ok(String::new()),
        Some(Value::String(text)) => Ok(text.clone()),
        other => Err(wrong(&format!("{list}[{at}].{key}"), other, "a text")),
    }
}

fn wrong(field: &str, value: Option<&Value>, expected: &'static str) -> ResultError {
    /// Enough to see what is wrong.
    const SHOWN_CHARS: usize = 80;
    let value = value.map_or_else(|| "missing".to_owned(), Value::to_string);
    ResultError::Field { field: field.to_owned(), value: value.chars().take(SHOWN_CHARS).collect(), expected }
}

/// What a plugin prints when it fails (specification, section 5, "Error").
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct PluginError {
    pub code: u32,
    #[serde(default)]
    pub msg: String,
    #[serde(default)]
    pub details: String,
}

impl fmt::Display for PluginError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "code {}: {}", self.code, self.msg)?;
        if self.details.is_empty() { Ok(()) } else { write!(f, " ({})", self.details) }
    }
}

/// What VERSION prints.
#[derive(Debug, Deserialize)]
pub(super) struct VersionAnswer {
    #[serde(rename = "supportedVersions", default)]
    pub supported: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"{"cniVersion":"0.4.0",
        "interfaces":[{"name":"br0"},{"name":"eth0","sandbox":"/ns"},{"name":"eth0"}],
        "ips":[{"version":"6","address":"fd00::5/64","interface":1},{"version":"4","address":"10.1.0.5/16"},
               {"version":"4","address":"10.1.0.6/16","interface":2}],
        "dns":{"x":1}}"#;

    #[test]
    fn a_result_is_carried_over_to_the_version_that_was_asked_for() {
        let new = PluginResult::parse(GOOD.as_bytes(), Version::V1_1_0).unwrap();
        assert_eq!(new.json["cniVersion"], "1.1.0");
        assert_eq!(new.json["ips"][0].get("version"), None);
        assert_eq!(new.json["dns"]["x"], 1);
        let old = PluginResult::parse(&serde_json::to_vec(&new.json).unwrap(), Version::V0_3_1).unwrap();
        assert_eq!(
            (old.json["ips"][0]["version"].as_str(), old.json["ips"][1]["version"].as_str()),
            (Some("6"), Some("4"))
        );
        let ips: Vec<_> = new.addresses("eth0").unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(ips, ["fd00::5", "10.1.0.5"]);
        // An address on no interface is the pod's, whatever its interface is called.
        assert_eq!(new.addresses("eth1").unwrap().len(), 1);
    }

    #[test]
    fn nonsense_is_named() {
        let error =
            |text: &str| PluginResult::parse(text.as_bytes(), Version::V1_0_0).unwrap_err().to_string();
        for (text, message) in [
            (r#"[]"#, "all of the result is [], expected an object"),
            (r#"{}"#, "cniVersion of the result is missing, expected a version from 0.3.0 to 1.1.0"),
            (
                r#"{"cniVersion":"9.9.9"}"#,
                "cniVersion of the result is \"9.9.9\", expected a version from 0.3.0 to 1.1.0",
            ),
            (r#"{"cniVersion":"1.0.0","ips":7}"#, "ips of the result is 7, expected a list"),
            (r#"{"cniVersion":"1.0.0","ips":[1]}"#, "ips[0] of the result is 1, expected an object"),
            (
                r#"{"cniVersion":"1.0.0","ips":[{"address":"10.1.0.5"}]}"#,
                "ips[0].address of the result is \"10.1.0.5\", expected an address with prefix length",
            ),
            (
                r#"{"cniVersion":"1.0.0","ips":[{"address":"0.0.0.0/0"}]}"#,
                "ips[0].address of the result is \"0.0.0.0/0\", expected an address a pod can have",
            ),
            (
                r#"{"cniVersion":"1.0.0","ips":[{"address":"10.1.0.5/8","interface":-1}]}"#,
                "ips[0].interface of the result is -1, expected the number of an entry of interfaces",
            ),
            (
                r#"{"cniVersion":"1.0.0","interfaces":[{"name":5}]}"#,
                "interfaces[0].name of the result is 5, expected a text",
            ),
        ] {
            assert_eq!(error(text), message);
        }
        assert!(
            error(r#"{"cniVersion":"1.0.0"} x"#).starts_with("the result is no JSON: trailing characters")
        );
        assert!(error("").starts_with("the result is no JSON: EOF"));
        let none = PluginResult::parse(br#"{"cniVersion":"1.0.0"}"#, Version::V1_0_0).unwrap();
        assert_eq!(
            none.addresses("eth0").unwrap_err().to_string(),
            "the result has no address for interface eth0"
        );
    }
}
