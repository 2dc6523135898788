//! AppArmor and SELinux: what the host has, and which labels a container gets.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::BundleError;
use crate::container::spec::{NamespaceMode, Namespaces, Security, SecurityProfile, SelinuxOptions};
use crate::id::PodId;

/// The AppArmor profile behind RuntimeDefault (`deploy/apparmor/brig-default`).
const DEFAULT_APPARMOR: &str = "brig-default";

/// Where the kernel tells about its security modules; `/sys`, or a tree that looks like it.
///
/// Looked at for every container: profiles are loaded and unloaded while the daemon runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SecurityModules {
    sys: PathBuf,
}

/// The SELinux labels of a container: of its process, and of the files it may touch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SelinuxLabels {
    pub(crate) process: String,
    /// Of its root, of the file systems that are made for it, and of volumes that are relabelled.
    pub(crate) mount: String,
}

/// What a container's labels take from its pod.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PodLabels<'a> {
    pub(crate) id: &'a PodId,
    pub(crate) namespaces: &'a Namespaces,
    /// For a container that does not say otherwise.
    pub(crate) options: Option<&'a SelinuxOptions>,
}

impl SecurityModules {
    pub(crate) fn of_host() -> Self {
        Self::at(Path::new("/sys"))
    }

    pub(crate) fn at(sys: &Path) -> Self {
        Self { sys: sys.to_owned() }
    }

    fn apparmor(&self) -> bool {
        let enabled = self.sys.join("module/apparmor/parameters/enabled");
        std::fs::read(enabled).is_ok_and(|text| text.starts_with(b"Y"))
    }

    /// Whether the profile behind RuntimeDefault is loaded; `None` where containers need none.
    pub(crate) fn has_default_profile(&self) -> io::Result<Option<bool>> {
        if self.apparmor_in_use() { self.has_profile(DEFAULT_APPARMOR).map(Some) } else { Ok(None) }
    }

    /// AppArmor is there and can be spoken to. In a container of another engine it often is there alone.
    fn apparmor_in_use(&self) -> bool {
        self.apparmor() && self.sys.join("kernel/security/apparmor").exists()
    }

    fn selinux(&self) -> bool {
        self.sys.join("fs/selinux/enforce").exists()
    }

    /// A line per profile, `name (mode)`.
    fn has_profile(&self, wanted: &str) -> io::Result<bool> {
        let text = std::fs::read_to_string(self.sys.join("kernel/security/apparmor/profiles"))?;
        Ok(text.lines().any(|line| line.rsplit_once(" (").is_some_and(|(name, _)| name == wanted)))
    }

    /// The profile of a container; `None` where it is not confined by AppArmor.
    ///
    /// RuntimeDefault is what silence means too, so it asks for nothing where there is no AppArmor; where there is, a
    /// missing profile is an error, because the pod counts on being confined.
    pub(super) fn apparmor_profile(&self, security: &Security) -> Result<Option<String>, BundleError> {
        let name = match &security.apparmor {
            SecurityProfile::Unconfined => return Ok(None),
            SecurityProfile::RuntimeDefault if security.privileged || !self.apparmor_in_use() => {
                return Ok(None);
            }
            SecurityProfile::RuntimeDefault => DEFAULT_APPARMOR,
            SecurityProfile::Localhost(name) if !self.apparmor() => {
                return Err(BundleError::NoAppArmor(name.clone()));
            }
            SecurityProfile::Localhost(name) => name.strip_prefix("localhost/").unwrap_or(name),
        };
        match self.has_profile(name) {
            Ok(true) if !name.is_empty() => Ok(Some(name.to_owned())),
            Ok(_) => Err(BundleError::AppArmorNotLoaded(name.to_owned())),
            Err(source) => Err(BundleError::AppArmorUnreadable { name: name.to_owned(), source }),
        }
    }

    /// The labels of a container; `None` on a host without SELinux.
    ///
    /// There, options that ask for confinement are refused. `spc_t` means "not confined", and pods of every cluster
    /// network ask for it everywhere.
    pub(crate) fn selinux_labels(
        &self,
        security: &Security,
        pod: PodLabels<'_>,
    ) -> Result<Option<SelinuxLabels>, BundleError> {
        let asked = security.selinux.clone().unwrap_or_default();
        if !self.selinux() {
            let confined =
                asked != SelinuxOptions::default() && asked.kind != "spc_t" && !security.privileged;
            let SelinuxOptions { user, role, kind, level } = asked;
            return if confined {
                Err(BundleError::NoSelinux([user, role, kind, level].join(":")))
            } else {
                Ok(None)
            };
        }
        let first =
            |texts: [&str; 3]| texts.into_iter().find(|text| !text.is_empty()).unwrap_or("").to_owned();
        let pods = pod.options.cloned().unwrap_or_default();
        let user = first([&asked.user, &pods.user, "system_u"]);
        let role = first([&asked.role, &pods.role, "system_r"]);
        // Who sees the host's processes or its shared memory is of no use without reaching for them; peers see it so too.
        let of_host = pod.namespaces.pid == NamespaceMode::Node || pod.namespaces.ipc == NamespaceMode::Node;
        let free = security.privileged || of_host;
        let kind = first([&asked.kind, &pods.kind, if free { "spc_t" } else { "container_t" }]);
        let own = categories(pod.id);
        let level = first([&asked.level, &pods.level, if free { "s0" } else { &own }]);
        // The files are the pod's all the same: its other containers may be confined.
        let files_level = first([&asked.level, &pods.level, &own]);
        let labels = SelinuxLabels {
            process: format!("{user}:{role}:{kind}:{level}"),
            mount: format!("{user}:object_r:container_file_t:{files_level}"),
        };
        self.check_label(&labels.process)?;
        self.check_label(&labels.mount)?;
        Ok(Some(labels))
    }

    /// The label of the files that a pod's containers share; `None` on a host without SELinux.
    pub(crate) fn pod_mount_label(&self, pod: PodLabels<'_>) -> Result<Option<String>, BundleError> {
        Ok(self.selinux_labels(&Security::default(), pod)?.map(|labels| labels.mount))
    }

    /// Whether the host's policy knows a label: its kernel says so. A label becomes a mount option too, so one with the
    /// characters that end an option never gets that far.
    fn check_label(&self, label: &str) -> Result<(), BundleError> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | ':' | ',' | '-');
        let unknown = |source| BundleError::SelinuxLabel { label: label.to_owned(), source };
        if !label.chars().all(plain) {
            return Err(unknown(io::Error::from(io::ErrorKind::InvalidInput)));
        }
        match OpenOptions::new().write(true).open(self.sys.join("fs/selinux/context")) {
            Ok(mut file) => file.write_all(&[label.as_bytes(), b"\0"].concat()).map_err(unknown),
            // A kernel that cannot be asked; what is wrong shows when the label is set.
            Err(_) => Ok(()),
        }
    }
}

/// Two categories that are a pod's own, so that pods cannot touch each other's files: one of the 523,776 pairs, told by
/// the pod's random id, so that nothing has to be kept for it.
fn categories(pod: &PodId) -> String {
    /// Categories of the policies of every distribution: c0 to c1023.
    const COUNT: u32 = 1024;
    let number = pod.as_str().bytes().take(8).filter_map(|digit| char::from(digit).to_digit(16));
    let number = number.fold(0u32, |number, digit| number << 4 | digit);
    // Two different ones: the second is at some distance from the first.
    let first = number % COUNT;
    let second = (first + 1 + (number / COUNT) % (COUNT - 1)) % COUNT;
    format!("s0:c{},c{}", first.min(second), first.max(second))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_has_two_categories_of_its_own() {
        let of =
            |digits: &str| categories(&format!("{digits}{}", "0".repeat(64 - digits.len())).parse().unwrap());
        assert_eq!(of("00000000"), "s0:c0,c1");
        assert_eq!(of("000003ff"), "s0:c0,c1023");
        assert_eq!(of("ffffffff"), of("ffffffff"));
        let mut seen = std::collections::HashSet::new();
        for n in 0..2000u32 {
            let text = of(&format!("{:08x}", n.wrapping_mul(0x9e37_79b9)));
            let (a, b) = text.strip_prefix("s0:c").unwrap().split_once(",c").unwrap();
            let (a, b): (u32, u32) = (a.parse().unwrap(), b.parse().unwrap());
            assert!(a < b && b < 1024, "{text}");
            seen.insert(text);
        }
        assert!(seen.len() > 1980, "{}", seen.len());
    }
}
