//! CreateContainer: ContainerConfig to [`ContainerSpec`].

use std::collections::BTreeMap;

use super::{
    ARG_BYTES_MAX, BadRequest, absolute, absolute_inside, annotations, arguments, at_most, enumerated, image,
    labels, name, relative, resources, security, text,
};
use crate::container::spec::{ContainerSpec, Device, Mount, MountSource, Propagation, Resources};
use crate::pod::spec::PodSpec;
use crate::proto::v1;

/// Checks the config of a CreateContainer request.
pub(crate) fn container_spec(config: Option<v1::ContainerConfig>) -> Result<ContainerSpec, BadRequest> {
    let config = config.ok_or_else(|| BadRequest::missing("config"))?;
    if config.windows.is_some() {
        return Err(BadRequest::unsupported("config.windows", "this server runs Linux containers"));
    }
    let metadata = config.metadata.ok_or_else(|| BadRequest::missing("config.metadata"))?;
    let linux = config.linux.unwrap_or_default();
    let at = "config.linux.security_context";
    Ok(ContainerSpec {
        name: name("config.metadata.name", metadata.name)?,
        attempt: metadata.attempt,
        image: image::image_spec("config.image", config.image)?,
        command: arguments("config.command", config.command)?,
        args: arguments("config.args", config.args)?,
        working_dir: match config.working_dir {
            none if none.is_empty() => None,
            dir => {
                absolute("config.working_dir", dir.clone())?;
                Some(dir)
            }
        },
        envs: config.envs.into_iter().enumerate().map(environment).collect::<Result<_, _>>()?,
        mounts: config.mounts.into_iter().enumerate().map(mount).collect::<Result<_, _>>()?,
        devices: config.devices.into_iter().enumerate().map(device).collect::<Result<_, _>>()?,
        cdi_devices: cdi_devices(config.cdi_devices, &config.annotations)?,
        labels: labels("config.labels", config.labels)?,
        annotations: annotations("config.annotations", config.annotations)?,
        log_path: match config.log_path {
            none if none.is_empty() => None,
            path => Some(relative("config.log_path", path)?),
        },
        stdin: config.stdin,
        stdin_once: config.stdin_once,
        tty: config.tty,
        resources: linux
            .resources
            .map(|it| resources("config.linux.resources", it))
            .transpose()?
            .unwrap_or_default(),
        security: security::of_container(at, linux.security_context.unwrap_or_default())?,
        stop_signal: stop_signal(config.stop_signal)?,
    })
}

/// What can only be checked against the pod that the container is for.
pub(crate) fn fits_pod(spec: &ContainerSpec, pod: &PodSpec) -> Result<(), BadRequest> {
    // CRI v1 LinuxSandboxSecurityContext.privileged: it "MUST be true" for a privileged container.
    if spec.security.privileged && !pod.security.privileged {
        let field = "config.linux.security_context.privileged";
        return Err(BadRequest::needs(field, "a pod whose own security_context is privileged"));
    }
    if let Some(own) = &spec.security.namespaces.user
        && pod.security.namespaces.user.as_ref() != Some(own)
    {
        let field = "config.linux.security_context.namespace_options.userns_options";
        return Err(BadRequest::needs(field, "a pod with the same userns_options"));
    }
    if pod.security.namespaces.user.is_none()
        && let Some(i) = spec.mounts.iter().position(|mount| !mount.uid_mappings.is_empty())
    {
        let field = format!("config.mounts[{i}].uidMappings");
        return Err(BadRequest::needs(field, "a pod with a user namespace of its own"));
    }
    Ok(())
}

/// What UpdateContainerResources asks for.
pub(crate) fn container_update(
    request: v1::UpdateContainerResourcesRequest,
) -> Result<Resources, BadRequest> {
    if request.windows.is_some() {
        return Err(BadRequest::unsupported("windows", "this server runs Linux containers"));
    }
    resources("linux", request.linux.unwrap_or_default())
}

fn environment((i, env): (usize, v1::KeyValue)) -> Result<(String, String), BadRequest> {
    let at = format!("config.envs[{i}]");
    if env.key.is_empty() {
        return Err(BadRequest::missing(format_args!("{at}.key")));
    }
    let key = text(format_args!("{at}.key"), env.key, ARG_BYTES_MAX)?;
    if key.contains('=') {
        return Err(BadRequest::malformed(format_args!("{at}.key"), &key, "no \"=\" may be in it"));
    }
    // The kernel takes key, "=" and value as one string.
    let bytes_max = ARG_BYTES_MAX.saturating_sub(key.len() + 1);
    let field = format!("{at}.value");
    let value = String::from_utf8(env.value).map_err(|err| {
        BadRequest::malformed(&field, &String::from_utf8_lossy(err.as_bytes()), "must be UTF-8")
    })?;
    Ok((key, text(field, value, bytes_max)?))
}

fn mount((i, asked): (usize, v1::Mount)) -> Result<Mount, BadRequest> {
    let at = format!("config.mounts[{i}]");
    let (path_field, image_field) = (format!("{at}.host_path"), format!("{at}.image"));
    // A message that was sent empty is the same as one that was not sent.
    let image = asked.image.filter(|image| *image != v1::ImageSpec::default());
    let source = match (asked.host_path, image) {
        (path, Some(_)) if !path.is_empty() => return Err(BadRequest::exclusive(path_field, image_field)),
        // The kubelet always says so; without it a client would believe that it can write there.
        (_, Some(_)) if !asked.readonly => return Err(BadRequest::needs(image_field, "readonly")),
        (_, Some(image)) => MountSource::Image {
            image: image::image_spec(&image_field, Some(image))?,
            sub_path: match asked.image_sub_path {
                none if none.is_empty() => None,
                path => Some(relative(format_args!("{at}.image_sub_path"), path)?),
            },
        },
        (_, None) if !asked.image_sub_path.is_empty() => {
            return Err(BadRequest::needs(format_args!("{at}.image_sub_path"), "image"));
        }
        (path, None) => MountSource::Host(absolute(path_field, path)?),
    };
    let propagation = match enumerated(format_args!("{at}.propagation"), asked.propagation)? {
        v1::MountPropagation::PropagationPrivate => Propagation::Private,
        v1::MountPropagation::PropagationHostToContainer => Propagation::HostToContainer,
        v1::MountPropagation::PropagationBidirectional => Propagation::Bidirectional,
    };
    if asked.recursive_read_only && !asked.readonly {
        return Err(BadRequest::needs(format_args!("{at}.recursive_read_only"), "readonly"));
    }
    if asked.recursive_read_only && propagation != Propagation::Private {
        return Err(BadRequest::needs(
            format_args!("{at}.recursive_read_only"),
            "propagation PROPAGATION_PRIVATE",
        ));
    }
    let container_path = absolute_inside(format_args!("{at}.container_path"), asked.container_path)?;
    if container_path.as_os_str() == "/" {
        let limit = "would hide the whole rootfs; mount below it";
        return Err(BadRequest::malformed(format_args!("{at}.container_path"), "/", limit));
    }
    let uid_mappings = security::mappings(&format!("{at}.uidMappings"), asked.uid_mappings)?;
    let gid_mappings = security::mappings(&format!("{at}.gidMappings"), asked.gid_mappings)?;
    if uid_mappings.is_empty() != gid_mappings.is_empty() {
        let (have, need) = if uid_mappings.is_empty() {
            ("gidMappings", "uidMappings")
        } else {
            ("uidMappings", "gidMappings")
        };
        return Err(BadRequest::needs(format_args!("{at}.{have}"), need));
    }
    Ok(Mount {
        container_path,
        readonly: asked.readonly,
        source,
        recursive_read_only: asked.recursive_read_only,
        selinux_relabel: asked.selinux_relabel,
        propagation,
        uid_mappings,
        gid_mappings,
    })
}

fn device((i, asked): (usize, v1::Device)) -> Result<Device, BadRequest> {
    let at = format!("config.devices[{i}]");
    let field = format!("{at}.permissions");
    let permissions = asked.permissions;
    let once = |c: char| permissions.matches(c).count() <= 1;
    let fits = !permissions.is_empty() && permissions.chars().all(|c| "rwm".contains(c) && once(c));
    if !fits {
        return Err(BadRequest::malformed(field, &permissions, "must be some of \"r\", \"w\" and \"m\""));
    }
    Ok(Device {
        host_path: absolute(format_args!("{at}.host_path"), asked.host_path)?,
        container_path: absolute_inside(format_args!("{at}.container_path"), asked.container_path)?,
        permissions,
    })
}

/// Devices by name, and those of annotations, in which older kubelets pass them on: a list separated by commas under any
/// name that begins with `cdi.k8s.io/`. A device that is named twice is one device.
fn cdi_devices(
    asked: Vec<v1::CdiDevice>,
    annotations: &BTreeMap<String, String>,
) -> Result<Vec<String>, BadRequest> {
    let fields = asked.into_iter().enumerate();
    let mut all: Vec<(String, String)> =
        fields.map(|(i, device)| (format!("config.CDI_devices[{i}].name"), device.name)).collect();
    for (key, value) in annotations.iter().filter(|(key, _)| key.starts_with("cdi.k8s.io/")) {
        let field = format!("config.annotations[{key:?}]");
        all.extend(value.split(',').map(|name| (field.clone(), name.trim().to_owned())));
    }
    let mut names: Vec<String> = Vec::with_capacity(all.len());
    for (field, name) in all {
        if !is_cdi_name(&name) {
            return Err(BadRequest::malformed(field, &name, "must be \"vendor/class=name\""));
        }
        if !names.contains(&name) {
            names.push(name);
        }
    }
    at_most("config.CDI_devices", &names, CDI_DEVICES_MAX)?;
    Ok(names)
}

/// More than any machine has of what one container can use.
const CDI_DEVICES_MAX: usize = 1024;

/// `vendor.example/class=name`, as the Container Device Interface qualifies names.
fn is_cdi_name(name: &str) -> bool {
    let word = |part: &str| {
        !part.is_empty()
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.' | b':'))
    };
    name.split_once('=').is_some_and(|(kind, device)| {
        word(device) && kind.split_once('/').is_some_and(|(vendor, class)| word(vendor) && word(class))
    })
}

/// The enum's names are ours, but for `SIGRTMINPLUS3` and `SIGRTMAXMINUS3`, which have an operator everywhere else.
fn stop_signal(number: i32) -> Result<Option<String>, BadRequest> {
    let signal: v1::Signal = enumerated("config.stop_signal", number)?;
    Ok(match signal {
        v1::Signal::RuntimeDefault => None,
        named => Some(named.as_str_name().replace("MINPLUS", "MIN+").replace("MAXMINUS", "MAX-")),
    })
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn config() -> v1::ContainerConfig {
        v1::ContainerConfig {
            metadata: Some(v1::ContainerMetadata { name: "web".into(), attempt: 1 }),
            image: Some(v1::ImageSpec { image: "busybox".into(), ..Default::default() }),
            ..Default::default()
        }
    }

    fn with(edit: impl FnOnce(&mut v1::ContainerConfig)) -> Result<ContainerSpec, String> {
        let mut config = config();
        edit(&mut config);
        container_spec(Some(config)).map_err(|err| err.to_string())
    }

    fn host_mount() -> v1::Mount {
        v1::Mount { container_path: "/data".into(), host_path: "/srv".into(), ..Default::default() }
    }

    fn mounted(edit: impl FnOnce(&mut v1::Mount)) -> Result<Mount, String> {
        let mut mount = host_mount();
        edit(&mut mount);
        with(|c| c.mounts = vec![mount]).map(|mut spec| spec.mounts.remove(0))
    }

    #[test]
    fn a_container_needs_a_name_and_an_image() {
        let spec = with(|_| {}).unwrap();
        assert_eq!((spec.name.as_str(), spec.attempt, spec.image.image.as_str()), ("web", 1, "busybox"));
        assert_eq!(container_spec(None).unwrap_err().to_string(), "config is required");
        assert_eq!(with(|c| c.metadata = None).unwrap_err(), "config.metadata is required");
        assert_eq!(with(|c| c.image = None).unwrap_err(), "config.image.image is required");
        assert_eq!(
            with(|c| c.metadata.as_mut().unwrap().name.clear()).unwrap_err(),
            "config.metadata.name is required"
        );
    }

    #[test]
    fn a_log_stays_in_the_pods_directory() {
        assert_eq!(
            with(|c| c.log_path = "web/1.log".into()).unwrap().log_path,
            Some(PathBuf::from("web/1.log"))
        );
        for bad in ["/etc/passwd", "../x", "a/../../x"] {
            assert_eq!(
                with(|c| c.log_path = bad.into()).unwrap_err(),
                format!("config.log_path is {bad:?}: must be a relative path without \"..\"")
            );
        }
    }

    #[test]
    fn the_environment_is_what_the_kernel_takes() {
        let env = |key: &str, value: &[u8]| {
            with(|c| c.envs = vec![v1::KeyValue { key: key.into(), value: value.to_vec() }])
                .map(|spec| spec.envs)
        };
        assert_eq!(env("A", b"b=c"), Ok(vec![("A".into(), "b=c".into())]));
        assert_eq!(env("", b"x").unwrap_err(), "config.envs[0].key is required");
        assert_eq!(env("A=B", b"x").unwrap_err(), "config.envs[0].key is \"A=B\": no \"=\" may be in it");
        assert_eq!(env("A", b"\xff").unwrap_err(), "config.envs[0].value is \"\u{fffd}\": must be UTF-8");
        assert_eq!(
            env("A", b"a\0b").unwrap_err(),
            "config.envs[0].value contains a NUL byte: no text of a request may"
        );
        assert!(env("A", &vec![b'x'; 131_069]).is_ok());
        assert_eq!(
            env("A", &vec![b'x'; 131_070]).unwrap_err(),
            "config.envs[0].value has 131070 bytes: at most 131069 are allowed"
        );
    }

    #[test]
    fn a_mount_comes_from_a_path_or_from_an_image() {
        let image = || Some(v1::ImageSpec { image: "data:1".into(), ..Default::default() });
        assert_eq!(mounted(|_| {}).unwrap().source, MountSource::Host("/srv".into()));
        let of_image = mounted(|m| {
            m.host_path.clear();
            m.image = image();
            m.image_sub_path = "a/b".into();
            m.readonly = true;
        })
        .unwrap();
        assert!(of_image.readonly);
        assert!(
            matches!(of_image.source, MountSource::Image { sub_path: Some(path), .. } if path == std::path::Path::new("a/b"))
        );
        assert_eq!(
            mounted(|m| m.image = image()).unwrap_err(),
            "config.mounts[0].host_path and config.mounts[0].image are both set: set one of them"
        );
        assert_eq!(mounted(|m| m.host_path.clear()).unwrap_err(), "config.mounts[0].host_path is required");
        assert_eq!(
            mounted(|m| m.image_sub_path = "a".into()).unwrap_err(),
            "config.mounts[0].image_sub_path is set: it needs image"
        );
        assert_eq!(
            mounted(|m| (m.host_path, m.image) = (String::new(), image())).unwrap_err(),
            "config.mounts[0].image is set: it needs readonly"
        );
        let outside = mounted(|m| {
            (m.host_path, m.image, m.image_sub_path) = (String::new(), image(), "../x".into());
            m.readonly = true;
        });
        assert!(outside.unwrap_err().contains("image_sub_path"));
    }

    #[test]
    fn mounts_are_absolute_and_their_flags_agree() {
        assert_eq!(
            mounted(|m| m.container_path = "/a/../data/".into()).unwrap().container_path,
            PathBuf::from("/data")
        );
        for (edit, error) in [
            (
                (|m| m.container_path = "data".into()) as fn(&mut v1::Mount),
                "container_path is \"data\": must be an absolute path",
            ),
            (
                |m| m.container_path = "/..".into(),
                "container_path is \"/\": would hide the whole rootfs; mount below it",
            ),
            (|m| m.host_path = "srv".into(), "host_path is \"srv\": must be an absolute path"),
            (|m| m.recursive_read_only = true, "recursive_read_only is set: it needs readonly"),
            (
                |m| (m.readonly, m.recursive_read_only, m.propagation) = (true, true, 1),
                "recursive_read_only is set: it needs propagation PROPAGATION_PRIVATE",
            ),
            (
                |m| m.propagation = 3,
                "propagation is \"3\": is none of the enum's values in the CRI's version 1",
            ),
            (
                |m| m.uid_mappings = vec![v1::IdMapping { host_id: 1, container_id: 0, length: 1 }],
                "uidMappings is set: it needs gidMappings",
            ),
        ] {
            assert_eq!(mounted(edit).unwrap_err(), format!("config.mounts[0].{error}"));
        }
    }

    #[test]
    fn devices_have_paths_and_some_permissions() {
        let device = |permissions: &str| {
            let device = v1::Device {
                container_path: "/dev/x".into(),
                host_path: "/dev/null".into(),
                permissions: permissions.into(),
            };
            with(|c| c.devices = vec![device])
        };
        assert_eq!(device("mrw").unwrap().devices[0].permissions, "mrw");
        for bad in ["", "x", "rr", "rwmx"] {
            assert_eq!(
                device(bad).unwrap_err(),
                format!("config.devices[0].permissions is {bad:?}: must be some of \"r\", \"w\" and \"m\"")
            );
        }
        let cdi = |name: &str| with(|c| c.cdi_devices = vec![v1::CdiDevice { name: name.into() }]);
        assert_eq!(cdi("vendor.com/gpu=0").unwrap().cdi_devices, ["vendor.com/gpu=0"]);
        for bad in ["", "gpu", "vendor/gpu", "vendor/=0", "a/b/c=0"] {
            assert!(cdi(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn stop_signals_get_their_usual_names() {
        let signal = |number: i32| with(|c| c.stop_signal = number).map(|spec| spec.stop_signal);
        for (number, name) in [
            (1, "SIGABRT"),
            (23, "SIGTERM"),
            (35, "SIGRTMIN"),
            (38, "SIGRTMIN+3"),
            (64, "SIGRTMAX-1"),
            (65, "SIGRTMAX"),
        ] {
            assert_eq!(signal(number), Ok(Some(name.to_owned())));
        }
        assert_eq!(signal(0), Ok(None));
        assert!(signal(66).is_err());
    }

    #[test]
    fn a_privileged_container_needs_a_privileged_pod() {
        let mut pod = PodSpec::default();
        let spec = with(|c| {
            c.linux.get_or_insert_default().security_context.get_or_insert_default().privileged = true;
        })
        .unwrap();
        assert_eq!(
            fits_pod(&spec, &pod).unwrap_err().to_string(),
            "config.linux.security_context.privileged is set: it needs a pod whose own security_context is privileged"
        );
        pod.security.privileged = true;
        assert_eq!(fits_pod(&spec, &pod), Ok(()));
    }
}
