//! Which devices a cgroup may open: OCI's rules as v1 writes or as a v2 eBPF program.
//!
//! Both versions mean the same: a default, and exceptions to it per device, as v1's kernel code keeps them. A rule for all
//! devices sets the default and forgets the exceptions; any other adds its access to an exception, or takes it away where
//! the rule agrees with the default.

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

use super::CgroupError;
use crate::sys::bpf::EInsn;

/// Bits of an access, as the kernel's `BPF_DEVCG_ACC_*` (linux/bpf.h).
const MKNOD: u8 = 1;
const READ: u8 = 2;
const WRITE: u8 = 4;
/// `BPF_DEVCG_DEV_*`.
const BLOCK: u8 = 1;
const CHAR: u8 = 2;

/// `None` is any number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Exception {
    kind: u8,
    major: Option<u32>,
    minor: Option<u32>,
    access: u8,
}

/// Rules, read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Policy {
    allow_by_default: bool,
    exceptions: Vec<Exception>,
}

impl Policy {
    /// Starts from "nothing is allowed".
    pub(super) fn read(rules: &[LinuxDeviceCgroup]) -> Result<Self, CgroupError> {
        let mut policy = Self { allow_by_default: false, exceptions: Vec::new() };
        for rule in rules {
            policy.add(rule)?;
        }
        Ok(policy)
    }

    fn add(&mut self, rule: &LinuxDeviceCgroup) -> Result<(), CgroupError> {
        let invalid =
            |value: String, why| CgroupError::Invalid { field: "linux.resources.devices", value, why };
        let number = |n: Option<i64>| match n {
            None | Some(-1) => Ok(None),
            Some(n) => {
                u32::try_from(n).map(Some).map_err(|_| invalid(n.to_string(), "a device number was expected"))
            }
        };
        let (major, minor) = (number(rule.major())?, number(rule.minor())?);
        let text = rule.access().as_deref().unwrap_or("rwm");
        let mut access = 0;
        for letter in text.chars() {
            access |= match letter {
                'r' => READ,
                'w' => WRITE,
                'm' => MKNOD,
                _ => return Err(invalid(text.to_owned(), "an access of r, w and m was expected")),
            };
        }
        let kinds: &[u8] = match rule.typ().unwrap_or(LinuxDeviceType::A) {
            LinuxDeviceType::A if major.is_none() && minor.is_none() && access == READ | WRITE | MKNOD => {
                self.allow_by_default = rule.allow();
                self.exceptions.clear();
                return Ok(());
            }
            LinuxDeviceType::A => &[BLOCK, CHAR],
            LinuxDeviceType::B => &[BLOCK],
            LinuxDeviceType::C | LinuxDeviceType::U => &[CHAR],
            LinuxDeviceType::P => return Err(invalid("p".to_owned(), "a FIFO is no device")),
        };
        for &kind in kinds {
            self.except(rule.allow(), Exception { kind, major, minor, access });
        }
        Ok(())
    }

    fn except(&mut self, allow: bool, new: Exception) {
        let same = |old: &Exception| (old.kind, old.major, old.minor) == (new.kind, new.major, new.minor);
        let found = self.exceptions.iter_mut().find(|old| same(old));
        match (allow == self.allow_by_default, found) {
            (false, Some(old)) => old.access |= new.access,
            (false, None) => self.exceptions.push(new),
            (true, Some(old)) => {
                old.access &= !new.access;
                self.exceptions.retain(|old| old.access != 0);
            }
            (true, None) => {}
        }
    }

    /// What to write, in order: `true` to `devices.allow`, `false` to `devices.deny`.
    pub(super) fn v1_writes(&self) -> Vec<(bool, String)> {
        let (all, each) = (self.allow_by_default, !self.allow_by_default);
        let number = |n: Option<u32>| n.map_or_else(|| "*".to_owned(), |n| n.to_string());
        let mut writes = vec![(all, "a".to_owned())];
        writes.extend(self.exceptions.iter().map(|one| {
            let kind = if one.kind == BLOCK { 'b' } else { 'c' };
            let access: String = [(READ, 'r'), (WRITE, 'w'), (MKNOD, 'm')]
                .into_iter()
                .filter_map(|(bit, letter)| (one.access & bit != 0).then_some(letter))
                .collect();
            (each, format!("{kind} {}:{} {access}", number(one.major), number(one.minor)))
        }));
        writes
    }

    /// The v2 program. Its context is `struct bpf_cgroup_dev_ctx`: access in the high and type in the low half of the first
    /// word, then major and minor (linux/bpf.h). It returns 1 to allow.
    pub(super) fn program(&self) -> Vec<EInsn> {
        // Registers: 2 type, 3 access, 4 major, 5 minor; 0 and 6 are for use in between.
        let mut code = vec![
            load(3, 0),
            alu(MOV_X, 2, 3, 0),
            alu(AND_K, 2, 0, 0xffff),
            alu(RSH_K, 3, 0, 16),
            load(4, 4),
            load(5, 8),
        ];
        for one in &self.exceptions {
            let mut test = vec![(2u8, i32::from(one.kind))];
            test.extend(one.major.map(|major| (4, major as i32)));
            test.extend(one.minor.map(|minor| (5, minor as i32)));
            // An allowing exception must cover all of the access asked for, a denying one any of it.
            let bits = if self.allow_by_default { one.access } else { !one.access & (READ | WRITE | MKNOD) };
            let tail = [
                alu(MOV_X, 6, 3, 0),
                alu(AND_K, 6, 0, i32::from(bits)),
                EInsn {
                    code: if self.allow_by_default { JEQ32_K } else { JNE32_K },
                    regs: 6,
                    off: 2,
                    imm: 0,
                },
                alu(MOV_K, 0, 0, i32::from(!self.allow_by_default)),
                EXIT,
            ];
            let mut left = test.len() + tail.len();
            for (register, value) in test {
                left -= 1;
                let off = i16::try_from(left).expect("an exception is at most eight instructions long");
                code.push(EInsn { code: JNE32_K, regs: register, off, imm: value });
            }
            code.extend(tail);
        }
        code.push(alu(MOV_K, 0, 0, i32::from(self.allow_by_default)));
        code.push(EXIT);
        code
    }
}

/// Opcodes, linux/bpf_common.h and linux/bpf.h; the 32-bit forms, so no sign of an immediate matters.
const MOV_K: u8 = 0xb4;
const MOV_X: u8 = 0xbc;
const AND_K: u8 = 0x54;
const RSH_K: u8 = 0x74;
const LDX_W: u8 = 0x61;
/// BPF_JMP32 (Linux 5.1).
const JEQ32_K: u8 = 0x16;
const JNE32_K: u8 = 0x56;
const EXIT: EInsn = EInsn { code: 0x95, regs: 0, off: 0, imm: 0 };

fn load(register: u8, off: i16) -> EInsn {
    EInsn { code: LDX_W, regs: register | 1 << 4, off, imm: 0 }
}

fn alu(code: u8, to: u8, from: u8, imm: i32) -> EInsn {
    EInsn { code, regs: to | from << 4, off: 0, imm }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn policy(rules: serde_json::Value) -> Policy {
        let rules: Vec<LinuxDeviceCgroup> = serde_json::from_value(rules).unwrap();
        Policy::read(&rules).unwrap()
    }

    /// Runs the program for one request.
    fn allowed(code: &[EInsn], kind: u8, access: u8, major: u32, minor: u32) -> bool {
        let context = [u32::from(kind) | u32::from(access) << 16, major, minor];
        let mut regs = [0u32; 7];
        let mut pc = 0;
        loop {
            let insn = code[pc];
            pc += 1;
            let (to, from) = (usize::from(insn.regs & 15), usize::from(insn.regs >> 4));
            match insn.code {
                MOV_K => regs[to] = insn.imm as u32,
                MOV_X => regs[to] = regs[from],
                AND_K => regs[to] &= insn.imm as u32,
                RSH_K => regs[to] >>= insn.imm,
                LDX_W => regs[to] = context[insn.off as usize / 4],
                JEQ32_K if regs[to] == insn.imm as u32 => pc += insn.off as usize,
                JNE32_K if regs[to] != insn.imm as u32 => pc += insn.off as usize,
                JEQ32_K | JNE32_K => {}
                0x95 => return regs[0] == 1,
                code => panic!("{code:#x}"),
            }
        }
    }

    #[test]
    fn nothing_is_allowed_unless_a_rule_says_so() {
        let policy = policy(json!([
            {"allow": false, "access": "rwm"},
            {"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rw"},
            {"allow": true, "type": "c", "major": 1, "minor": 3, "access": "m"},
            {"allow": true, "type": "c", "major": 136, "access": "rw"},
            {"allow": true, "type": "b", "access": "m"},
        ]));
        assert_eq!(
            policy.v1_writes(),
            [
                (false, "a".to_owned()),
                (true, "c 1:3 rwm".to_owned()),
                (true, "c 136:* rw".to_owned()),
                (true, "b *:* m".to_owned()),
            ]
        );
        let code = policy.program();
        for (kind, access, major, minor, expected) in [
            (CHAR, READ, 1, 3, true),
            (CHAR, READ | WRITE | MKNOD, 1, 3, true),
            (CHAR, READ, 1, 5, false),
            (CHAR, WRITE, 136, 77, true),
            (CHAR, MKNOD, 136, 77, false),
            (BLOCK, MKNOD, 8, 0, true),
            (BLOCK, READ | MKNOD, 8, 0, false),
            (BLOCK, READ, 1, 3, false),
        ] {
            assert_eq!(
                allowed(&code, kind, access, major, minor),
                expected,
                "{kind} {access} {major}:{minor}"
            );
        }
    }

    #[test]
    fn a_privileged_container_opens_everything_but_what_is_denied_after() {
        let policy = policy(json!([
            {"allow": true, "access": "rwm"},
            {"allow": false, "type": "b", "major": 8, "minor": 0, "access": "w"},
        ]));
        let code = policy.program();
        assert!(allowed(&code, BLOCK, READ, 8, 0));
        assert!(!allowed(&code, BLOCK, READ | WRITE, 8, 0));
        assert!(allowed(&code, CHAR, READ | WRITE | MKNOD, 10, 200));
    }

    #[test]
    fn a_rule_that_is_no_device_is_refused_with_its_value() {
        let rules: Vec<LinuxDeviceCgroup> =
            serde_json::from_value(json!([{"allow": true, "type": "c", "access": "rx"}])).unwrap();
        assert_eq!(
            Policy::read(&rules).unwrap_err().to_string(),
            "linux.resources.devices \"rx\" is not valid: an access of r, w and m was expected"
        );
    }

    #[test]
    fn privileged_the_kernel_accepts_the_program_and_obeys_it() {
        use super::super::{Cgroup, CgroupPath, Hierarchy};
        use std::os::fd::AsFd;
        let hierarchy = Hierarchy::detect().unwrap();
        let path = CgroupPath::new(format!("/brig-test-{}/bpf", std::process::id()).as_ref()).unwrap();
        let cgroup = Cgroup::create(&hierarchy, &path).unwrap();
        if let Some(dir) = cgroup.v2_dir_fd().unwrap() {
            for default in [false, true] {
                let rules = json!([{"allow": default, "access": "rwm"},
                    {"allow": !default, "type": "c", "major": 1, "minor": 3, "access": "rwm"}]);
                crate::sys::bpf::replace_device_filter(dir.as_fd(), &policy(rules).program()).unwrap();
                // The first filter is gone when the second is there.
                assert_eq!(crate::sys::bpf::attached_device_filters(dir.as_fd()).unwrap().len(), 1);
            }
        }
        cgroup.remove().unwrap();
        cgroup.remove_empty_parents();
    }
}
