//! Seccomp profiles from files: OCI's format, and Docker's superset of it that many of them are written in.
//!
//! Docker's rules can hold only for some capabilities, architectures or kernels (`includes`, `excludes`). Reading them as
//! plain OCI rules would allow everyone what was meant for `CAP_SYS_ADMIN`, so they are decided here.

use std::collections::HashSet;
use std::str::FromStr;

use oci_spec::runtime::{Capability, LinuxSeccomp};
use serde::Deserialize;
use serde_json::{Map, Value};

/// Docker's additions to a profile.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ArchMap {
    architecture: String,
    #[serde(default)]
    sub_architectures: Option<Vec<String>>,
}

/// Docker's additions to a rule.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct Filter {
    caps: Option<Vec<String>>,
    arches: Option<Vec<String>>,
    min_kernel: Option<String>,
}

/// Reads a profile for a container with these capabilities, on this machine's architecture and kernel.
pub(super) fn parse(
    text: &[u8],
    capabilities: &HashSet<Capability>,
) -> Result<LinuxSeccomp, serde_json::Error> {
    let mut profile: Map<String, Value> = serde_json::from_slice(text)?;
    if let Some(map) = profile.remove("archMap") {
        let map: Vec<ArchMap> = serde_json::from_value(map)?;
        let native = if cfg!(target_arch = "aarch64") { "SCMP_ARCH_AARCH64" } else { "SCMP_ARCH_X86_64" };
        if let Some(ours) = map.into_iter().find(|one| one.architecture == native) {
            let all = ours.sub_architectures.into_iter().flatten().chain([ours.architecture]);
            profile.insert("architectures".to_owned(), all.collect());
        }
    }
    if let Some(Value::Array(rules)) = profile.get_mut("syscalls") {
        let mut kept = Vec::with_capacity(rules.len());
        for mut rule in std::mem::take(rules) {
            if let Value::Object(fields) = &mut rule {
                let filter = |value: Option<Value>| match value {
                    None | Some(Value::Null) => Ok(None),
                    Some(value) => serde_json::from_value::<Filter>(value).map(Some),
                };
                let includes = filter(fields.remove("includes"))?.unwrap_or_default();
                let excludes = filter(fields.remove("excludes"))?.unwrap_or_default();
                if !includes.all_hold(capabilities) || excludes.any_holds(capabilities) {
                    continue;
                }
                // The oldest form has one name.
                if let Some(name) = fields.remove("name") {
                    fields.entry("names").or_insert_with(|| Value::Array(vec![name]));
                }
                if fields.get("args").is_some_and(Value::is_null) {
                    fields.remove("args");
                }
            }
            kept.push(rule);
        }
        *rules = kept;
    }
    serde_json::from_value(Value::Object(profile))
}

impl Filter {
    fn all_hold(&self, capabilities: &HashSet<Capability>) -> bool {
        self.caps.iter().flatten().all(|name| has(capabilities, name))
            && self
                .arches
                .as_ref()
                .is_none_or(|arches| arches.is_empty() || arches.iter().any(|arch| is_native(arch)))
            && self.min_kernel.as_ref().is_none_or(|least| kernel_is_at_least(least))
    }

    fn any_holds(&self, capabilities: &HashSet<Capability>) -> bool {
        self.caps.iter().flatten().any(|name| has(capabilities, name))
            || self.arches.iter().flatten().any(|arch| is_native(arch))
            || self.min_kernel.as_ref().is_some_and(|least| kernel_is_at_least(least))
    }
}

fn has(capabilities: &HashSet<Capability>, name: &str) -> bool {
    Capability::from_str(name.strip_prefix("CAP_").unwrap_or(name))
        .is_ok_and(|one| capabilities.contains(&one))
}

/// Docker names architectures as Go does.
fn is_native(arch: &str) -> bool {
    match arch {
        "amd64" | "x86_64" => cfg!(target_arch = "x86_64"),
        "arm64" | "aarch64" => cfg!(target_arch = "aarch64"),
        _ => false,
    }
}

fn kernel_is_at_least(least: &str) -> bool {
    let numbers = |text: &str| -> Option<(u32, u32)> {
        let mut parts = text.split(|c: char| !c.is_ascii_digit());
        Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
    };
    let running = rustix::system::uname();
    match (numbers(&running.release().to_string_lossy()), numbers(least)) {
        (Some(running), Some(least)) => running >= least,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCKER: &str = r#"{
        "defaultAction": "SCMP_ACT_ERRNO",
        "archMap": [
            {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]},
            {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"]}
        ],
        "syscalls": [
            {"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": null, "comment": "", "includes": {}, "excludes": {}},
            {"names": ["mount"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
            {"names": ["clone"], "action": "SCMP_ACT_ALLOW", "excludes": {"caps": ["CAP_SYS_ADMIN"]}},
            {"name": "chdir", "action": "SCMP_ACT_ALLOW"},
            {"names": ["s390_pci_mmio_read"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["s390x"]}},
            {"names": ["ptrace"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "4.8"}},
            {"names": ["future"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "99.0"}}
        ]
    }"#;

    #[test]
    fn rules_for_a_capability_are_not_for_everyone() {
        let names = |capabilities: &[Capability]| -> Vec<String> {
            let profile = parse(DOCKER.as_bytes(), &capabilities.iter().copied().collect()).unwrap();
            assert_eq!(profile.architectures().as_ref().unwrap().len(), 2);
            profile.syscalls().iter().flatten().flat_map(|rule| rule.names().clone()).collect()
        };
        assert_eq!(names(&[]), ["read", "clone", "chdir", "ptrace"]);
        assert_eq!(names(&[Capability::SysAdmin]), ["read", "mount", "chdir", "ptrace"]);
    }

    #[test]
    fn a_condition_of_an_unknown_kind_is_an_error() {
        let text = r#"{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [
            {"names": ["mount"], "action": "SCMP_ACT_ALLOW", "includes": {"moon": "full"}}]}"#;
        assert!(parse(text.as_bytes(), &HashSet::new()).is_err());
    }
}
