//! Security contexts of pods and containers, which share most of their fields.

use std::collections::BTreeSet;
use std::path::PathBuf;

use super::{
    BadRequest, NAME_BYTES_MAX, PATH_BYTES_MAX, absolute, absolute_inside, at_most, enumerated, id, ids,
    name, some_id, text,
};
use crate::container::spec::{
    Capabilities, IdMapping, NamespaceMode, Namespaces, RunAsUser, Security, SecurityProfile, SelinuxOptions,
    SupplementalGroupsPolicy, UserNamespace,
};
use crate::proto::v1;

/// Groups that setgroups(2) takes, NGROUPS_MAX in linux/limits.h.
const GROUPS_MAX: usize = 65_536;

/// Every capability of Linux 6.12, see capabilities(7). The list last grew with 5.9.
const CAPABILITIES: [&str; 41] = [
    "CAP_AUDIT_CONTROL",
    "CAP_AUDIT_READ",
    "CAP_AUDIT_WRITE",
    "CAP_BLOCK_SUSPEND",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_KILL",
    "CAP_LEASE",
    "CAP_LINUX_IMMUTABLE",
    "CAP_MAC_ADMIN",
    "CAP_MAC_OVERRIDE",
    "CAP_MKNOD",
    "CAP_NET_ADMIN",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_RAW",
    "CAP_PERFMON",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYSLOG",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_CHROOT",
    "CAP_SYS_MODULE",
    "CAP_SYS_NICE",
    "CAP_SYS_PACCT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_WAKE_ALARM",
];

pub(super) fn of_pod(at: &str, asked: v1::LinuxSandboxSecurityContext) -> Result<Security, BadRequest> {
    #[expect(deprecated, reason = "older clients send seccomp_profile_path alone")]
    let seccomp_path = asked.seccomp_profile_path;
    let run_as_user = user(at, asked.run_as_user, String::new())?;
    Ok(Security {
        privileged: asked.privileged,
        namespaces: namespaces(at, Whose::Pod, asked.namespace_options)?,
        selinux: asked.selinux_options.map(|label| selinux(at, label)).transpose()?,
        run_as_group: group(at, asked.run_as_group, run_as_user.as_ref())?,
        run_as_user,
        supplemental_groups: groups(at, asked.supplemental_groups)?,
        supplemental_groups_policy: groups_policy(at, asked.supplemental_groups_policy)?,
        readonly_rootfs: asked.readonly_rootfs,
        seccomp: seccomp(at, asked.seccomp, seccomp_path)?,
        apparmor: apparmor(at, asked.apparmor, String::new())?,
        // What only containers have.
        capabilities: Capabilities::default(),
        no_new_privs: false,
        masked_paths: Vec::new(),
        readonly_paths: Vec::new(),
    })
}

pub(super) fn of_container(
    at: &str,
    asked: v1::LinuxContainerSecurityContext,
) -> Result<Security, BadRequest> {
    #[expect(deprecated, reason = "older clients send these two alone")]
    let (seccomp_path, apparmor_text) = (asked.seccomp_profile_path, asked.apparmor_profile);
    let run_as_user = user(at, asked.run_as_user, asked.run_as_username)?;
    let paths = |field: &str, paths: Vec<String>| -> Result<Vec<PathBuf>, BadRequest> {
        let path = |(i, path)| absolute_inside(format_args!("{at}.{field}[{i}]"), path);
        paths.into_iter().enumerate().map(path).collect()
    };
    Ok(Security {
        privileged: asked.privileged,
        capabilities: capabilities(at, asked.capabilities.unwrap_or_default())?,
        namespaces: namespaces(at, Whose::Container, asked.namespace_options)?,
        selinux: asked.selinux_options.map(|label| selinux(at, label)).transpose()?,
        run_as_group: group(at, asked.run_as_group, run_as_user.as_ref())?,
        run_as_user,
        supplemental_groups: groups(at, asked.supplemental_groups)?,
        supplemental_groups_policy: groups_policy(at, asked.supplemental_groups_policy)?,
        readonly_rootfs: asked.readonly_rootfs,
        no_new_privs: asked.no_new_privs,
        masked_paths: paths("masked_paths", asked.masked_paths)?,
        readonly_paths: paths("readonly_paths", asked.readonly_paths)?,
        seccomp: seccomp(at, asked.seccomp, seccomp_path)?,
        apparmor: apparmor(at, asked.apparmor, apparmor_text)?,
    })
}

fn user(at: &str, uid: Option<v1::Int64Value>, username: String) -> Result<Option<RunAsUser>, BadRequest> {
    let (uid_field, name_field) = (format!("{at}.run_as_user"), format!("{at}.run_as_username"));
    match (uid, username) {
        (Some(_), username) if !username.is_empty() => Err(BadRequest::exclusive(uid_field, name_field)),
        (Some(uid), _) => Ok(Some(RunAsUser::Uid(id(uid_field, uid.value)?))),
        (None, username) if username.is_empty() => Ok(None),
        (None, username) => {
            let username = name(&name_field, username)?;
            if username.contains(':') {
                return Err(BadRequest::malformed(
                    name_field,
                    &username,
                    "must be a user's name without a group",
                ));
            }
            Ok(Some(RunAsUser::Name(username)))
        }
    }
}

/// The CRI text of `run_as_group`: without a user "the runtime MUST error".
fn group(at: &str, gid: Option<v1::Int64Value>, user: Option<&RunAsUser>) -> Result<Option<u32>, BadRequest> {
    let field = format!("{at}.run_as_group");
    match (gid, user) {
        (Some(_), None) => Err(BadRequest::needs(field, "run_as_user or run_as_username")),
        (gid, _) => gid.map(|gid| id(field, gid.value)).transpose(),
    }
}

fn groups(at: &str, gids: Vec<i64>) -> Result<Vec<u32>, BadRequest> {
    let field = format!("{at}.supplemental_groups");
    at_most(&field, &gids, GROUPS_MAX)?;
    ids(field, gids)
}

fn groups_policy(at: &str, policy: i32) -> Result<SupplementalGroupsPolicy, BadRequest> {
    Ok(match enumerated(format_args!("{at}.supplemental_groups_policy"), policy)? {
        v1::SupplementalGroupsPolicy::Merge => SupplementalGroupsPolicy::Merge,
        v1::SupplementalGroupsPolicy::Strict => SupplementalGroupsPolicy::Strict,
    })
}

fn selinux(at: &str, label: v1::SeLinuxOption) -> Result<SelinuxOptions, BadRequest> {
    let part = |field: &str, value| text(format_args!("{at}.selinux_options.{field}"), value, NAME_BYTES_MAX);
    Ok(SelinuxOptions {
        user: part("user", label.user)?,
        role: part("role", label.role)?,
        kind: part("type", label.r#type)?,
        level: part("level", label.level)?,
    })
}

fn capabilities(at: &str, asked: v1::Capability) -> Result<Capabilities, BadRequest> {
    let list = |field: &str, names: Vec<String>| {
        let mut seen = BTreeSet::new();
        let mut known = Vec::with_capacity(names.len().min(CAPABILITIES.len()));
        for (i, name) in names.into_iter().enumerate() {
            let known_name = capability(&name).ok_or_else(|| {
                let field = format!("{at}.capabilities.{field}[{i}]");
                BadRequest::malformed(field, &name, "must be \"ALL\" or a name from capabilities(7)")
            })?;
            if seen.insert(known_name) {
                known.push(known_name.to_owned());
            }
        }
        Ok(known)
    };
    Ok(Capabilities {
        add: list("add_capabilities", asked.add_capabilities)?,
        drop: list("drop_capabilities", asked.drop_capabilities)?,
        add_ambient: list("add_ambient_capabilities", asked.add_ambient_capabilities)?,
    })
}

/// The canonical name: upper case, with the prefix.
fn capability(name: &str) -> Option<&'static str> {
    let upper = name.to_ascii_uppercase();
    if upper == "ALL" {
        return Some("ALL");
    }
    let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
    CAPABILITIES.into_iter().find(|known| &known["CAP_".len()..] == bare)
}

fn seccomp(
    at: &str,
    profile: Option<v1::SecurityProfile>,
    older: String,
) -> Result<SecurityProfile, BadRequest> {
    let (field, profile) = match profile {
        // Kubelets before 1.27 sent both; the structured form is the newer one.
        Some(profile) => {
            let field = format!("{at}.seccomp");
            let profile = security_profile(&field, profile)?;
            (format!("{field}.localhost_ref"), profile)
        }
        None => {
            let field = format!("{at}.seccomp_profile_path");
            let profile = older_profile(&field, older)?.unwrap_or(SecurityProfile::Unconfined);
            (field, profile)
        }
    };
    if let SecurityProfile::Localhost(path) = &profile {
        absolute(field, path.clone())?;
    }
    Ok(profile)
}

/// Unlike seccomp, AppArmor is on when the request is silent: the CRI text calls `runtime/default` "equivalent to not
/// specifying a profile". On a host without AppArmor the default confines nothing.
fn apparmor(
    at: &str,
    profile: Option<v1::SecurityProfile>,
    older: String,
) -> Result<SecurityProfile, BadRequest> {
    match profile {
        Some(profile) => security_profile(&format!("{at}.apparmor"), profile),
        None => {
            let older = older_profile(&format!("{at}.apparmor_profile"), older)?;
            Ok(older.unwrap_or(SecurityProfile::RuntimeDefault))
        }
    }
}

/// A Localhost profile without a name must never mean "none" (CVE-2023-2431 was that).
fn security_profile(at: &str, profile: v1::SecurityProfile) -> Result<SecurityProfile, BadRequest> {
    use v1::security_profile::ProfileType;
    let kind = enumerated(format_args!("{at}.profile_type"), profile.profile_type)?;
    let field = format!("{at}.localhost_ref");
    let reference = text(&field, profile.localhost_ref, PATH_BYTES_MAX)?;
    match kind {
        ProfileType::RuntimeDefault | ProfileType::Unconfined if !reference.is_empty() => {
            Err(BadRequest::needs(field, "profile_type Localhost"))
        }
        ProfileType::RuntimeDefault => Ok(SecurityProfile::RuntimeDefault),
        ProfileType::Unconfined => Ok(SecurityProfile::Unconfined),
        ProfileType::Localhost if reference.is_empty() => Err(BadRequest::missing(field)),
        ProfileType::Localhost => Ok(SecurityProfile::Localhost(reference)),
    }
}

/// The words of the deprecated fields; `None` when nothing is said.
fn older_profile(field: &str, words: String) -> Result<Option<SecurityProfile>, BadRequest> {
    let words = text(field, words, PATH_BYTES_MAX)?;
    match words.as_str() {
        "" => Ok(None),
        "runtime/default" | "docker/default" => Ok(Some(SecurityProfile::RuntimeDefault)),
        "unconfined" => Ok(Some(SecurityProfile::Unconfined)),
        other => match other.strip_prefix("localhost/") {
            Some(reference) if !reference.is_empty() => {
                Ok(Some(SecurityProfile::Localhost(reference.to_owned())))
            }
            _ => Err(BadRequest::malformed(
                field,
                other,
                "must be \"runtime/default\", \"docker/default\", \"unconfined\" or \"localhost/PROFILE\"",
            )),
        },
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Whose {
    Pod,
    Container,
}

fn namespaces(at: &str, whose: Whose, asked: Option<v1::NamespaceOption>) -> Result<Namespaces, BadRequest> {
    let Some(asked) = asked else { return Ok(Namespaces::default()) };
    let at = format!("{at}.namespace_options");
    let pod_or_node = |field: &str, mode: i32| {
        let field = format!("{at}.{field}");
        match enumerated(&field, mode)? {
            v1::NamespaceMode::Pod => Ok(NamespaceMode::Pod),
            v1::NamespaceMode::Node => Ok(NamespaceMode::Node),
            other => Err(BadRequest::malformed(field, other.as_str_name(), "must be POD or NODE")),
        }
    };
    let pid = {
        let field = format!("{at}.pid");
        match enumerated(&field, asked.pid)? {
            v1::NamespaceMode::Target if whose == Whose::Pod => {
                return Err(BadRequest::malformed(
                    field,
                    "TARGET",
                    "must be POD, CONTAINER or NODE for a pod",
                ));
            }
            v1::NamespaceMode::Target if asked.target_id.is_empty() => {
                return Err(BadRequest::missing(format_args!("{at}.target_id")));
            }
            v1::NamespaceMode::Target => {
                NamespaceMode::Target(some_id("namespace_options.target_id", asked.target_id)?)
            }
            _ if !asked.target_id.is_empty() => {
                return Err(BadRequest::needs(format_args!("{at}.target_id"), "pid TARGET"));
            }
            v1::NamespaceMode::Pod => NamespaceMode::Pod,
            v1::NamespaceMode::Container => NamespaceMode::Container,
            v1::NamespaceMode::Node => NamespaceMode::Node,
        }
    };
    Ok(Namespaces {
        network: pod_or_node("network", asked.network)?,
        pid,
        ipc: pod_or_node("ipc", asked.ipc)?,
        user: asked
            .userns_options
            .map_or(Ok(None), |user| user_namespace(&format!("{at}.userns_options"), user))?,
    })
}

fn user_namespace(at: &str, asked: v1::UserNamespace) -> Result<Option<UserNamespace>, BadRequest> {
    let field = format!("{at}.mode");
    match enumerated(&field, asked.mode)? {
        v1::NamespaceMode::Node => {
            if !asked.uids.is_empty() || !asked.gids.is_empty() {
                return Err(BadRequest::needs(format_args!("{at}.uids or {at}.gids"), "mode POD"));
            }
            Ok(None)
        }
        v1::NamespaceMode::Pod => {
            let uids = mappings(&format!("{at}.uids"), asked.uids)?;
            let gids = mappings(&format!("{at}.gids"), asked.gids)?;
            for (list, field) in [(&uids, "uids"), (&gids, "gids")] {
                let field = format!("{at}.{field}");
                match list.as_slice() {
                    [] => return Err(BadRequest::missing(field)),
                    [one] if one.container == 0 && one.host == 0 => {
                        let limit = "must not be 0: root of the pod would be root of the host";
                        return Err(BadRequest::malformed(format_args!("{field}[0].host_id"), "0", limit));
                    }
                    [one] if one.container == 0 => {}
                    [one] => {
                        let limit = "must be 0: a pod without root cannot be set up";
                        let field = format!("{field}[0].container_id");
                        return Err(BadRequest::malformed(field, &one.container.to_string(), limit));
                    }
                    more => {
                        return Err(BadRequest::TooMany { field, count: more.len(), count_max: 1 });
                    }
                }
            }
            if uids != gids {
                let value = format!("host_id {}, length {}", gids[0].host, gids[0].length);
                return Err(BadRequest::malformed(
                    format_args!("{at}.gids"),
                    &value,
                    "must be the same as uids",
                ));
            }
            Ok(Some(UserNamespace { uids, gids }))
        }
        other => Err(BadRequest::malformed(field, other.as_str_name(), "must be POD or NODE")),
    }
}

/// Mappings of the kernel's form, see user_namespaces(7): not empty, and no id beyond the last.
pub(super) fn mappings(at: &str, asked: Vec<v1::IdMapping>) -> Result<Vec<IdMapping>, BadRequest> {
    /// Lines that one write to uid_map takes, see user_namespaces(7).
    const LINES_MAX: usize = 340;
    at_most(at, &asked, LINES_MAX)?;
    let checked = |(i, v1::IdMapping { host_id, container_id, length }): (usize, v1::IdMapping)| {
        let limit = "must be at least 1, and no id may pass 4294967294";
        let fits = |first: u32| first.checked_add(length).is_some();
        if length == 0 || !fits(host_id) || !fits(container_id) {
            return Err(BadRequest::malformed(format_args!("{at}[{i}].length"), &length.to_string(), limit));
        }
        Ok(IdMapping { host: host_id, container: container_id, length })
    };
    asked.into_iter().enumerate().map(checked).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use v1::security_profile::ProfileType;

    const AT: &str = "config.linux.security_context";

    fn container(edit: impl FnOnce(&mut v1::LinuxContainerSecurityContext)) -> Result<Security, String> {
        let mut asked = v1::LinuxContainerSecurityContext::default();
        edit(&mut asked);
        of_container(AT, asked).map_err(|err| err.to_string())
    }

    #[test]
    fn silence_asks_for_no_seccomp_and_the_default_apparmor() {
        let expected = Security { apparmor: SecurityProfile::RuntimeDefault, ..Security::default() };
        assert_eq!(container(|_| {}), Ok(expected.clone()));
        assert_eq!(of_pod(AT, v1::LinuxSandboxSecurityContext::default()), Ok(expected));
    }

    #[test]
    fn a_user_has_a_number_or_a_name_and_a_group_needs_one_of_them() {
        let number = |value| Some(v1::Int64Value { value });
        assert_eq!(
            container(|c| (c.run_as_user, c.run_as_username) = (number(1), "www".into())),
            Err(format!("{AT}.run_as_user and {AT}.run_as_username are both set: set one of them"))
        );
        assert_eq!(
            container(|c| c.run_as_group = number(1)),
            Err(format!("{AT}.run_as_group is set: it needs run_as_user or run_as_username"))
        );
        assert_eq!(
            container(|c| c.run_as_user = number(1 << 32)),
            Err(format!("{AT}.run_as_user is 4294967296: must be 0 to 4294967294"))
        );
        let named = container(|c| (c.run_as_username, c.run_as_group) = ("www".into(), number(5))).unwrap();
        assert_eq!((named.run_as_user, named.run_as_group), (Some(RunAsUser::Name("www".into())), Some(5)));
        assert!(container(|c| c.run_as_username = "www:www".into()).is_err());
        assert!(
            container(|c| c.supplemental_groups = vec![1, -1])
                .unwrap_err()
                .contains("supplemental_groups[1]")
        );
    }

    #[test]
    fn capabilities_get_their_prefix_and_unknown_ones_are_refused() {
        let caps = |names: &[&str]| {
            let add_capabilities = names.iter().map(|&n| n.to_owned()).collect();
            container(|c| c.capabilities = Some(v1::Capability { add_capabilities, ..Default::default() }))
                .map(|security| security.capabilities.add)
        };
        assert_eq!(
            caps(&["net_admin", "CAP_NET_ADMIN", "Cap_Chown", "all"]),
            Ok(vec!["CAP_NET_ADMIN".into(), "CAP_CHOWN".into(), "ALL".into()])
        );
        for bad in ["", "CAP_", "CAP_ALL", "CAP_CAP_CHOWN", "NET ADMIN"] {
            let expected = format!(
                "{AT}.capabilities.add_capabilities[0] is {bad:?}: must be \"ALL\" or a name from capabilities(7)"
            );
            assert_eq!(caps(&[bad]), Err(expected));
        }
        assert!(CAPABILITIES.is_sorted());
    }

    #[test]
    fn both_forms_of_a_profile_are_understood_and_the_newer_one_wins() {
        let profile = |kind: ProfileType, reference: &str| {
            Some(v1::SecurityProfile { profile_type: kind.into(), localhost_ref: reference.into() })
        };
        let local = |path: &str| SecurityProfile::Localhost(path.into());
        for (new, old, expected) in [
            (None, "", SecurityProfile::Unconfined),
            (None, "unconfined", SecurityProfile::Unconfined),
            (None, "runtime/default", SecurityProfile::RuntimeDefault),
            (None, "docker/default", SecurityProfile::RuntimeDefault),
            (None, "localhost//p/s.json", local("/p/s.json")),
            (profile(ProfileType::RuntimeDefault, ""), "unconfined", SecurityProfile::RuntimeDefault),
            (profile(ProfileType::Localhost, "/p/s.json"), "", local("/p/s.json")),
        ] {
            #[expect(deprecated, reason = "the older form is what this tests")]
            let got = container(|c| (c.seccomp, c.seccomp_profile_path) = (new.clone(), old.into()));
            assert_eq!(got.unwrap().seccomp, expected, "{new:?} {old:?}");
        }
        for (new, old) in [
            (profile(ProfileType::Localhost, ""), ""),
            (profile(ProfileType::Localhost, "relative.json"), ""),
            (profile(ProfileType::Unconfined, "/p/s.json"), ""),
            (None, "localhost/"),
            (None, "localhost/relative.json"),
            (None, "default"),
        ] {
            #[expect(deprecated, reason = "the older form is what this tests")]
            let got = container(|c| (c.seccomp, c.seccomp_profile_path) = (new.clone(), old.into()));
            assert!(got.is_err(), "{new:?} {old:?}");
        }
        let named = container(|c| c.apparmor = profile(ProfileType::Localhost, "my-profile")).unwrap();
        assert_eq!(named.apparmor, local("my-profile"));
    }

    #[test]
    fn a_target_has_an_id_and_no_pod_has_a_target() {
        let options = |pid: v1::NamespaceMode, target: &str| v1::NamespaceOption {
            pid: pid.into(),
            target_id: target.into(),
            ..Default::default()
        };
        let target = namespaces(AT, Whose::Container, Some(options(v1::NamespaceMode::Target, "abc")));
        assert_eq!(target.unwrap().pid, NamespaceMode::Target("abc".into()));
        for (whose, pid, target) in [
            (Whose::Container, v1::NamespaceMode::Target, ""),
            (Whose::Container, v1::NamespaceMode::Pod, "abc"),
            (Whose::Pod, v1::NamespaceMode::Target, "abc"),
        ] {
            assert!(namespaces(AT, whose, Some(options(pid, target))).is_err());
        }
        let own_network =
            v1::NamespaceOption { network: v1::NamespaceMode::Container.into(), ..Default::default() };
        assert_eq!(
            namespaces(AT, Whose::Pod, Some(own_network)).unwrap_err().to_string(),
            format!("{AT}.namespace_options.network is \"CONTAINER\": must be POD or NODE")
        );
        let unknown = v1::NamespaceOption { ipc: 17, ..Default::default() };
        assert!(namespaces(AT, Whose::Pod, Some(unknown)).is_err());
    }

    #[test]
    fn a_user_namespace_has_one_mapping_the_same_for_users_and_groups() {
        let map = |host_id, container_id, length| v1::IdMapping { host_id, container_id, length };
        let userns = |mode: v1::NamespaceMode, uids: &[v1::IdMapping], gids: &[v1::IdMapping]| {
            let asked = v1::UserNamespace { mode: mode.into(), uids: uids.to_vec(), gids: gids.to_vec() };
            user_namespace("u", asked).map_err(|err| err.to_string())
        };
        let (pod, node) = (v1::NamespaceMode::Pod, v1::NamespaceMode::Node);
        let good = [map(65_536, 0, 65_536)];
        let expected = IdMapping { host: 65_536, container: 0, length: 65_536 };
        assert_eq!(
            userns(pod, &good, &good),
            Ok(Some(UserNamespace { uids: vec![expected], gids: vec![expected] }))
        );
        assert_eq!(userns(node, &[], &[]), Ok(None));
        for (mode, uids, gids, error) in [
            (node, &good[..], &good[..], "u.uids or u.gids is set: it needs mode POD"),
            (pod, &[], &good, "u.uids is required"),
            (pod, &good, &[], "u.gids is required"),
            (pod, &[good[0], good[0]], &good, "u.uids has 2 entries: at most 1 are allowed"),
            (
                pod,
                &good,
                &[map(1, 0, 65_536)],
                "u.gids is \"host_id 1, length 65536\": must be the same as uids",
            ),
            (
                pod,
                &[map(u32::MAX, 0, 1)],
                &good,
                "u.uids[0].length is \"1\": must be at least 1, and no id may pass 4294967294",
            ),
            (
                pod,
                &[map(1, 0, 0)],
                &good,
                "u.uids[0].length is \"0\": must be at least 1, and no id may pass 4294967294",
            ),
            (
                pod,
                &[map(0, 0, 65_536)],
                &[map(0, 0, 65_536)],
                "u.uids[0].host_id is \"0\": must not be 0: root of the pod would be root of the host",
            ),
            (v1::NamespaceMode::Container, &good, &good, "u.mode is \"CONTAINER\": must be POD or NODE"),
        ] {
            assert_eq!(userns(mode, uids, gids), Err(error.to_owned()));
        }
    }
}
