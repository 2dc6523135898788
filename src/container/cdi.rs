//! The Container Device Interface: files in which vendors say what a device of theirs needs in a container.
//!
//! This reads what the CDI specification says up to version 1.1 about devices, mounts, environment, groups and hooks.
//! `intelRdt` and `netDevices` are refused by name. The published crate would bring a JSON schema engine, regular
//! expressions and a deprecated YAML parser; what a runtime needs of it is this file.
//!
//! The folders are read for every container that names a device, so a changed file counts at once and there is nothing to
//! reload. Whoever may write there is trusted as root: hooks run on the host.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Hook, HookBuilder, Hooks};
use serde::Deserialize;
use yaml_rust2::{Yaml, YamlLoader};

/// A specification of a node with many GPUs is some 100 KiB.
const FILE_BYTES_MAX: u64 = 4 << 20;
/// Files of one folder; there is usually one per vendor.
const FILES_MAX: usize = 1024;
/// Aliases of YAML can make a small file a large document.
const YAML_NODES_MAX: usize = 1 << 20;
/// The versions of the specification whose words are read here.
const VERSIONS: [&str; 8] = ["0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0", "1.1.0"];

/// Why a device cannot be given to a container.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CdiError {
    #[error("CDI device {name:?} is in no specification in {dirs}{}", notes(.broken))]
    Unknown { name: String, dirs: String, broken: Vec<String> },
    #[error("CDI device {name:?} is in both {first} and {second}, and neither goes before the other; remove one", first = .first.display(), second = .second.display())]
    Twice { name: String, first: PathBuf, second: PathBuf },
    #[error("CDI device {name:?} of {path} asks for {what}, which is not supported", path = .path.display())]
    Unsupported { name: String, path: PathBuf, what: &'static str },
    #[error("CDI device {name:?} of {path} has a hook {hook:?}, which the OCI does not know", path = .path.display())]
    Hook { name: String, path: PathBuf, hook: String },
}

fn notes(broken: &[String]) -> String {
    if broken.is_empty() { String::new() } else { format!(" (not readable: {})", broken.join("; ")) }
}

/// What devices change about a container, in the order in which it is to be applied.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Edits {
    /// `NAME=value`.
    pub(crate) env: Vec<String>,
    pub(crate) devices: Vec<DeviceNode>,
    pub(crate) mounts: Vec<CdiMount>,
    pub(crate) hooks: Hooks,
    pub(crate) additional_gids: Vec<u32>,
}

/// A device node. What is `None` the host's node says.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct DeviceNode {
    pub(crate) path: PathBuf,
    #[serde(default)]
    pub(crate) host_path: Option<PathBuf>,
    #[serde(default, rename = "type")]
    pub(crate) kind: Option<String>,
    #[serde(default)]
    pub(crate) major: Option<i64>,
    #[serde(default)]
    pub(crate) minor: Option<i64>,
    #[serde(default)]
    pub(crate) file_mode: Option<u32>,
    #[serde(default)]
    pub(crate) permissions: Option<String>,
    #[serde(default)]
    pub(crate) uid: Option<u32>,
    #[serde(default)]
    pub(crate) gid: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct CdiMount {
    pub(crate) host_path: PathBuf,
    pub(crate) container_path: PathBuf,
    #[serde(default)]
    pub(crate) options: Vec<String>,
    #[serde(default, rename = "type")]
    pub(crate) kind: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct CdiHook {
    hook_name: String,
    path: PathBuf,
    #[serde(default)]
    args: Option<Vec<String>>,
    #[serde(default)]
    env: Option<Vec<String>>,
    #[serde(default)]
    timeout: Option<i64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct ContainerEdits {
    env: Vec<String>,
    device_nodes: Vec<DeviceNode>,
    mounts: Vec<CdiMount>,
    hooks: Vec<CdiHook>,
    additional_gids: Vec<u32>,
    intel_rdt: Option<serde_json::Value>,
    net_devices: Option<serde_json::Value>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Device {
    name: String,
    #[serde(default, rename = "annotations")]
    _annotations: BTreeMap<String, String>,
    #[serde(default)]
    container_edits: ContainerEdits,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Document {
    cdi_version: String,
    kind: String,
    #[serde(default, rename = "annotations")]
    _annotations: BTreeMap<String, String>,
    #[serde(default)]
    devices: Vec<Device>,
    #[serde(default)]
    container_edits: ContainerEdits,
}

/// One readable file.
struct Spec {
    path: PathBuf,
    /// Of its folder; the later one goes before.
    priority: usize,
    document: Document,
}

/// What the devices `names`, each `vendor/class=name`, need. Blocking.
///
/// # Errors
///
/// Every [`CdiError`]. A folder that is not there is empty; a file that cannot be read is only an error if a device is
/// missing.
pub(crate) fn edits(dirs: &[PathBuf], names: &[String]) -> Result<Edits, CdiError> {
    let mut all = Edits::default();
    if names.is_empty() {
        return Ok(all);
    }
    let mut broken = Vec::new();
    let specs: Vec<Spec> =
        dirs.iter().enumerate().flat_map(|(priority, dir)| read_folder(dir, priority, &mut broken)).collect();
    let mut begun: Vec<&Path> = Vec::new();
    for name in names {
        let (spec, device) = find(&specs, name)?.ok_or_else(|| CdiError::Unknown {
            name: name.clone(),
            dirs: dirs.iter().map(|dir| dir.display().to_string()).collect::<Vec<_>>().join(", "),
            broken: broken.clone(),
        })?;
        // What a file says about all of its devices is said once.
        if !begun.contains(&spec.path.as_path()) {
            begun.push(&spec.path);
            all.add(name, &spec.path, &spec.document.container_edits)?;
        }
        all.add(name, &spec.path, &device.container_edits)?;
    }
    Ok(all)
}

/// The device of the last folder that has it.
fn find<'a>(specs: &'a [Spec], name: &str) -> Result<Option<(&'a Spec, &'a Device)>, CdiError> {
    let Some((kind, wanted)) = name.split_once('=') else { return Ok(None) };
    let mut best: Option<(&Spec, &Device)> = None;
    for spec in specs.iter().filter(|spec| spec.document.kind == kind) {
        let Some(device) = spec.document.devices.iter().find(|device| device.name == wanted) else {
            continue;
        };
        if let Some((other, _)) = best.filter(|(other, _)| other.priority == spec.priority) {
            let (first, second) = (other.path.clone(), spec.path.clone());
            return Err(CdiError::Twice { name: name.to_owned(), first, second });
        }
        // Folders come in the order of their priority.
        best = Some((spec, device));
    }
    Ok(best)
}

impl Edits {
    fn add(&mut self, name: &str, path: &Path, more: &ContainerEdits) -> Result<(), CdiError> {
        for (asked, what) in [(&more.intel_rdt, "intelRdt"), (&more.net_devices, "netDevices")] {
            if asked.is_some() {
                return Err(CdiError::Unsupported { name: name.to_owned(), path: path.to_owned(), what });
            }
        }
        self.env.extend(more.env.iter().cloned());
        self.devices.extend(more.device_nodes.iter().cloned());
        self.mounts.extend(more.mounts.iter().cloned());
        self.additional_gids.extend(more.additional_gids.iter().copied());
        for hook in &more.hooks {
            let (list, made) = (self.list(&hook.hook_name), hook.to_oci());
            let Some(list) = list else {
                let (name, path, hook) = (name.to_owned(), path.to_owned(), hook.hook_name.clone());
                return Err(CdiError::Hook { name, path, hook });
            };
            list.push(made);
        }
        Ok(())
    }

    fn list(&mut self, hook: &str) -> Option<&mut Vec<Hook>> {
        let hooks = &mut self.hooks;
        let list = match hook {
            "prestart" => hooks.prestart_mut(),
            "createRuntime" => hooks.create_runtime_mut(),
            "createContainer" => hooks.create_container_mut(),
            "startContainer" => hooks.start_container_mut(),
            "poststart" => hooks.poststart_mut(),
            "poststop" => hooks.poststop_mut(),
            _ => return None,
        };
        Some(list.get_or_insert_default())
    }
}

impl CdiHook {
    fn to_oci(&self) -> Hook {
        let mut hook = HookBuilder::default().path(&self.path);
        if let Some(args) = &self.args {
            hook = hook.args(args.clone());
        }
        if let Some(env) = &self.env {
            hook = hook.env(env.clone());
        }
        if let Some(timeout) = self.timeout {
            hook = hook.timeout(timeout);
        }
        hook.build().expect("the path is set")
    }
}

fn read_folder(dir: &Path, priority: usize, broken: &mut Vec<String>) -> Vec<Spec> {
    let mut paths: Vec<PathBuf> = match std::fs::read_dir(dir) {
        Ok(entries) => entries.flatten().map(|entry| entry.path()).take(FILES_MAX).collect(),
        Err(err) if err.kind() == std::io::ErrorKind::NotFound => return Vec::new(),
        Err(err) => {
            broken.push(format!("{}: {err}", dir.display()));
            return Vec::new();
        }
    };
    // A file that is being written has another name until it is whole.
    paths.retain(|path| path.extension().is_some_and(|end| end == "json" || end == "yaml" || end == "yml"));
    paths.sort();
    let mut specs = Vec::with_capacity(paths.len());
    for path in paths {
        match read_file(&path) {
            Ok(document) => specs.push(Spec { path, priority, document }),
            Err(why) => broken.push(format!("{}: {why}", path.display())),
        }
    }
    specs
}

fn read_file(path: &Path) -> Result<Document, String> {
    let mut text = String::new();
    let file = crate::sys::fd::open_regular(path).map_err(|err| err.to_string())?;
    file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(|err| err.to_string())?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(format!("larger than {FILE_BYTES_MAX} bytes"));
    }
    let document: Document = if path.extension().is_some_and(|end| end == "json") {
        serde_json::from_str(&text).map_err(|err| err.to_string())?
    } else {
        let yaml = YamlLoader::load_from_str(&text).map_err(|err| err.to_string())?;
        let [one] = yaml.as_slice() else { return Err(format!("{} YAML documents, not one", yaml.len())) };
        let value = json(one, &mut YAML_NODES_MAX.clone())?;
        serde_json::from_value(value).map_err(|err| err.to_string())?
    };
    if !VERSIONS.contains(&document.cdi_version.as_str()) {
        return Err(format!("cdiVersion {:?} is none of {}", document.cdi_version, VERSIONS.join(", ")));
    }
    Ok(document)
}

fn json(yaml: &Yaml, left: &mut usize) -> Result<serde_json::Value, String> {
    use serde_json::Value;
    *left = left.checked_sub(1).ok_or("too many YAML nodes")?;
    Ok(match yaml {
        Yaml::Null => Value::Null,
        Yaml::Boolean(value) => (*value).into(),
        Yaml::Integer(value) => (*value).into(),
        Yaml::Real(text) | Yaml::String(text) => text.clone().into(),
        Yaml::Array(all) => all.iter().map(|one| json(one, left)).collect::<Result<Vec<_>, _>>()?.into(),
        Yaml::Hash(all) => {
            let pair = |(key, value): (&Yaml, &Yaml)| match key {
                Yaml::String(key) => Ok((key.clone(), json(value, left)?)),
                other => Err(format!("the key {other:?} is no text")),
            };
            Value::Object(all.iter().map(pair).collect::<Result<_, String>>()?)
        }
        Yaml::Alias(_) | Yaml::BadValue => return Err("a YAML alias to nothing".to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use rustix::fs::FileType;

    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        dir
    }

    fn ask(dirs: &[&tempfile::TempDir], names: &[&str]) -> Result<Edits, String> {
        let dirs: Vec<PathBuf> = dirs.iter().map(|dir| dir.path().to_owned()).collect();
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        edits(&dirs, &names).map_err(|err| err.to_string().replace(&format!("{}/", dirs[0].display()), ""))
    }

    #[test]
    fn a_pipe_in_a_folder_is_told_as_broken_and_not_waited_for() {
        let dir = folder(&[]);
        let pipe = dir.path().join("pipe.json");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, FileType::Fifo, rustix::fs::Mode::RUSR, 0).unwrap();
        let error = ask(&[&dir], &["vendor.example/gpu=0"]).unwrap_err();
        assert!(error.contains("pipe.json: not a regular file"), "{error}");
    }

    const GPU: &str = r#"
cdiVersion: "0.6.0"
kind: vendor.example/gpu
annotations: {note: "by the vendor"}
containerEdits:
  env: [DRIVER=1]
  hooks:
  - hookName: createContainer
    path: /usr/bin/vendor-hook
    args: [vendor-hook, ldconfig]
    timeout: 5
devices:
- name: "0"
  containerEdits:
    deviceNodes:
    - path: /dev/gpu0
      hostPath: /dev/null
      major: 0x1f
    mounts:
    - {hostPath: /usr/lib/vendor, containerPath: /usr/lib/vendor, options: [ro, nosuid, bind]}
    additionalGids: [44]
- name: all
  containerEdits: {env: ["GPUS=all"]}
"#;

    #[test]
    fn devices_of_one_file_bring_its_common_part_once_and_in_order() {
        let dir = folder(&[("gpu.yaml", GPU), ("notes.txt", "not a specification")]);
        let got = ask(&[&dir], &["vendor.example/gpu=all", "vendor.example/gpu=0"]).unwrap();
        assert_eq!(got.env, ["DRIVER=1", "GPUS=all"]);
        assert_eq!(got.additional_gids, [44]);
        assert_eq!((got.devices[0].path.to_str(), got.devices[0].major), (Some("/dev/gpu0"), Some(31)));
        assert_eq!(got.mounts[0].options, ["ro", "nosuid", "bind"]);
        let hooks = got.hooks.create_container().as_ref().unwrap();
        assert_eq!((hooks.len(), hooks[0].timeout()), (1, Some(5)));
        assert_eq!(ask(&[&dir], &[]), Ok(Edits::default()));
    }

    #[test]
    fn a_later_folder_goes_before_an_earlier_one_and_within_one_nothing_does() {
        let one = |value: &str| {
            format!(
                r#"{{"cdiVersion":"0.8.0","kind":"a.b/c","devices":[{{"name":"x","containerEdits":{{"env":["V={value}"]}}}}]}}"#
            )
        };
        let (first, second) = (folder(&[("a.json", &one("1"))]), folder(&[("z.json", &one("2"))]));
        assert_eq!(ask(&[&first, &second], &["a.b/c=x"]).unwrap().env, ["V=2"]);
        assert_eq!(ask(&[&second, &first], &["a.b/c=x"]).unwrap().env, ["V=1"]);
        std::fs::write(first.path().join("b.json"), one("3")).unwrap();
        assert_eq!(
            ask(&[&first], &["a.b/c=x"]).unwrap_err(),
            "CDI device \"a.b/c=x\" is in both a.json and b.json, and neither goes before the other; remove one"
        );
        assert_eq!(
            ask(&[&first, &second], &["a.b/c=x"]).unwrap_err(),
            ask(&[&first], &["a.b/c=x"]).unwrap_err()
        );
    }

    #[test]
    fn what_cannot_be_read_is_told_only_with_a_device_that_is_missing() {
        let dir = folder(&[
            ("gpu.yaml", GPU),
            ("new.json", r#"{"cdiVersion":"9.0.0","kind":"a.b/c"}"#),
            ("odd.json", r#"{"cdiVersion":"0.6.0","kind":"a.b/c","moon":1}"#),
            (
                "rdt.json",
                r#"{"cdiVersion":"0.7.0","kind":"a.b/r","devices":[{"name":"x","containerEdits":{"intelRdt":{}}}]}"#,
            ),
        ]);
        assert!(ask(&[&dir], &["vendor.example/gpu=0"]).is_ok());
        let why = ask(&[&dir], &["a.b/c=x"]).unwrap_err();
        assert!(
            why.contains("new.json: cdiVersion \"9.0.0\"") && why.contains("odd.json: unknown field `moon`"),
            "{why}"
        );
        let why = ask(&[&dir], &["a.b/r=x"]).unwrap_err();
        assert_eq!(why, "CDI device \"a.b/r=x\" of rdt.json asks for intelRdt, which is not supported");
    }
}
