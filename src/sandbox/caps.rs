//! Capabilities: five sets by name, applied around the change of user.

use rustix::thread::{
    CapabilitySet, CapabilitySets, capability_is_in_bounding_set, clear_ambient_capability_set,
    configure_capability_in_ambient_set, remove_capability_from_bounding_set, set_capabilities,
    set_keep_capabilities,
};

use super::error::{Attempt, Error};
use super::spec::{self, Capabilities};

/// capabilities(7), in the order of their numbers.
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// Every name, with its prefix.
pub(super) fn names() -> impl Iterator<Item = String> {
    NAMES.iter().map(|name| format!("CAP_{name}"))
}

/// The five sets, as the kernel will be asked for them.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Sets {
    bounding: CapabilitySet,
    effective: CapabilitySet,
    inheritable: CapabilitySet,
    permitted: CapabilitySet,
    ambient: CapabilitySet,
    /// What was asked for and cannot be given.
    pub(super) ignored: Vec<String>,
}

impl Sets {
    /// Without a document all sets are empty. A capability that is unknown, or missing in our own bounding set, cannot
    /// be given by anyone: it is left out and named in `ignored`.
    pub(super) fn new(wanted: Option<&Capabilities>) -> Self {
        Self::within(wanted, available())
    }

    fn within(wanted: Option<&Capabilities>, available: CapabilitySet) -> Self {
        let none = Capabilities::default();
        let wanted = wanted.unwrap_or(&none);
        let mut ignored = Vec::new();
        let mut set = |names: &[String]| {
            names.iter().fold(CapabilitySet::empty(), |set, name| match parse(name) {
                Some(bits) if bits.bits().count_ones() > 1 => set | (bits & available),
                Some(bit) if available.contains(bit) => set | bit,
                _ => {
                    if !ignored.contains(name) {
                        ignored.push(name.clone());
                    }
                    set
                }
            })
        };
        let (bounding, permitted) = (set(&wanted.bounding), set(&wanted.permitted));
        let (effective, inheritable) = (set(&wanted.effective) & permitted, set(&wanted.inheritable));
        // The kernel demands ambient ⊆ permitted ∩ inheritable (capabilities(7)).
        let ambient = set(&wanted.ambient) & permitted & inheritable;
        Self { bounding, effective, inheritable, permitted, ambient, ignored }
    }

    /// A process that joins a container gets no inheritable and so no ambient capabilities unless it asks for ambient
    /// ones: a program with inheritable file capabilities would otherwise gain them by being started (CVE-2022-29162).
    pub(super) fn for_exec(mut self) -> Self {
        self.inheritable = self.ambient;
        self
    }

    /// Drops the bounding set, becomes the user, and sets the other four. Needs CAP_SETPCAP for the first.
    pub(super) fn apply_with_user(&self, user: &spec::User) -> Result<(), Error> {
        for bit in available().iter().filter(|bit| !self.bounding.contains(*bit)) {
            remove_capability_from_bounding_set(bit)
                .attempt(|| format!("drop {bit:?} from the bounding set"))?;
        }
        // Otherwise the change to a user other than root would clear what is to be kept.
        set_keep_capabilities(true).attempt(|| "keep capabilities over the change of user".to_owned())?;
        super::user::become_user(user)?;
        set_keep_capabilities(false).attempt(|| "stop keeping capabilities".to_owned())?;
        let sets = CapabilitySets {
            effective: self.effective,
            permitted: self.permitted,
            inheritable: self.inheritable,
        };
        set_capabilities(None, sets).attempt(|| format!("set the capabilities {self:?}"))?;
        clear_ambient_capability_set().attempt(|| "clear the ambient capabilities".to_owned())?;
        for bit in self.ambient.iter() {
            configure_capability_in_ambient_set(bit, true).attempt(|| format!("make {bit:?} ambient"))?;
        }
        Ok(())
    }
}

/// One capability, or all for `ALL`.
fn parse(name: &str) -> Option<CapabilitySet> {
    let upper = name.to_ascii_uppercase();
    if upper == "ALL" || upper == "CAP_ALL" {
        return Some(CapabilitySet::from_bits_retain((1 << NAMES.len()) - 1));
    }
    let position = NAMES.iter().position(|known| Some(*known) == upper.strip_prefix("CAP_"))?;
    Some(CapabilitySet::from_bits_retain(1 << position))
}

/// Our own bounding set.
fn available() -> CapabilitySet {
    (0..NAMES.len())
        .map(|number| CapabilitySet::from_bits_retain(1 << number))
        .filter(|bit| capability_is_in_bounding_set(*bit).unwrap_or(false))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn what_the_host_lacks_is_left_out_and_named() {
        let host = CapabilitySet::CHOWN | CapabilitySet::KILL;
        let wanted = Capabilities {
            bounding: names(&["CAP_CHOWN", "CAP_SYS_ADMIN", "CAP_NONSENSE"]),
            permitted: names(&["CAP_CHOWN"]),
            effective: names(&["CAP_CHOWN", "CAP_KILL"]),
            inheritable: vec![],
            ambient: names(&["CAP_CHOWN"]),
        };
        let sets = Sets::within(Some(&wanted), host);
        assert_eq!(sets.bounding, CapabilitySet::CHOWN);
        assert_eq!(sets.effective, CapabilitySet::CHOWN);
        assert_eq!(sets.ambient, CapabilitySet::empty());
        assert_eq!(sets.ignored, names(&["CAP_SYS_ADMIN", "CAP_NONSENSE"]));
    }

    #[test]
    fn all_means_what_the_host_has() {
        let host = CapabilitySet::CHOWN | CapabilitySet::KILL;
        let wanted = Capabilities { bounding: names(&["ALL"]), ..Capabilities::default() };
        let sets = Sets::within(Some(&wanted), host);
        assert_eq!(sets.bounding, host);
        assert!(sets.ignored.is_empty());
    }

    #[test]
    fn an_exec_inherits_nothing_by_file_capabilities() {
        let all = names(&["CAP_CHOWN"]);
        let wanted = Capabilities {
            bounding: all.clone(),
            permitted: all.clone(),
            effective: all.clone(),
            inheritable: all,
            ambient: vec![],
        };
        assert_eq!(
            Sets::within(Some(&wanted), CapabilitySet::CHOWN).for_exec().inheritable,
            CapabilitySet::empty()
        );
    }
}
