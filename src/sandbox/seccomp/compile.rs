//! From verdicts to instructions.
//!
//! ```text
//! load arch ─▶ one test per architecture ─▶ load nr ─▶ search tree over ranges of numbers ─▶ RET
//!                                                                                        └▶ argument tests ─▶ RET
//! ```
//!
//! Numbers with equal unconditional verdicts merge into ranges, so an allow-list of 400 calls has some 60 leaves and any
//! call is decided after about seven comparisons. The program is written from its end to its start, because a classic
//! BPF jump only goes forward: when an instruction is written, the places it jumps to are known. A conditional jump
//! reaches 255 instructions; farther ones go by way of an unconditional jump.

use super::rules::{self, Condition, MachineVerdicts, Test, Verdict, Verdicts};
use super::{Machine, SeccompError, syscalls};
use crate::sys::bpf::{Insn, SECCOMP_INSNS_MAX};

/// BPF_LD | BPF_W | BPF_ABS and so on, linux/bpf_common.h.
pub(super) const LD_ABS: u16 = 0x20;
pub(super) const AND_K: u16 = 0x54;
pub(super) const JA: u16 = 0x05;
pub(super) const JEQ: u16 = 0x15;
pub(super) const JGT: u16 = 0x25;
pub(super) const JGE: u16 = 0x35;
pub(super) const RET: u16 = 0x06;

/// Offsets in `struct seccomp_data` (linux/seccomp.h).
pub(super) const OFFSET_NR: u32 = 0;
pub(super) const OFFSET_ARCH: u32 = 4;

/// Where an argument's low or high half lies. Both supported byte orders are little-endian.
fn offset_arg(index: u8, high: bool) -> u32 {
    16 + 8 * u32::from(index) + if high { 4 } else { 0 }
}

pub(super) fn ret(value: u32) -> Insn {
    Insn { code: RET, jt: 0, jf: 0, k: value }
}

pub(super) fn layout(verdicts: &Verdicts) -> Result<Vec<Insn>, SeccompError> {
    let mut code = Writer::default();
    let mut entries: Vec<(u32, Label)> = Vec::new();
    // x32 shares x86_64's architecture value and is told apart by the number, so the two make one section.
    for machine in [Machine::X86_64, Machine::X86, Machine::Aarch64, Machine::Arm] {
        let mut members =
            verdicts.machines.iter().filter(|one| one.machine.audit() == machine.audit()).peekable();
        if members.peek().is_none() {
            continue;
        }
        let ranges = ranges(machine, &members.collect::<Vec<_>>(), verdicts.default);
        let tree = code.tree(&ranges, verdicts.default);
        entries.push((machine.audit(), code.push(LD_ABS, OFFSET_NR, tree)));
    }
    let mut next = code.ret(rules::RET_KILL_PROCESS);
    // The native architecture is tested first, so it is written last.
    entries.sort_by_key(|(audit, _)| *audit == Machine::NATIVE.audit());
    for (audit, entry) in entries {
        next = code.branch(JEQ, audit, entry, next);
    }
    code.push(LD_ABS, OFFSET_ARCH, next);
    let mut insns = code.reversed;
    insns.reverse();
    if insns.len() > SECCOMP_INSNS_MAX { Err(SeccompError::TooLong(insns.len())) } else { Ok(insns) }
}

/// What a range of numbers leads to.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Leaf<'a> {
    Always(u32),
    Conditional { narrow: bool, alternatives: &'a [(Vec<Condition>, u32)] },
}

/// Ranges from their first number to the next range's; the first starts at 0 and the last has no end.
fn ranges<'a>(machine: Machine, members: &[&'a MachineVerdicts], default: u32) -> Vec<(u32, Leaf<'a>)> {
    let mut ranges: Vec<(u32, Leaf<'a>)> = Vec::new();
    let mut put = |from: u32, leaf: Leaf<'a>| {
        if ranges.last().is_some_and(|(start, _)| *start == from) {
            ranges.pop();
        }
        let same = matches!((ranges.last(), leaf), (Some((_, Leaf::Always(a))), Leaf::Always(b)) if *a == b);
        if !same {
            ranges.push((from, leaf));
        }
    };
    put(0, Leaf::Always(default));
    for member in members {
        let unknown_from = member.unknown_from.unwrap_or(u32::MAX);
        let beyond = |number: u32| if number >= unknown_from { rules::RET_ENOSYS } else { default };
        if member.machine == Machine::X32 {
            put(syscalls::X32_BIT, Leaf::Always(beyond(syscalls::X32_BIT)));
        }
        let mut unknown_put = member.unknown_from.is_none();
        for (number, verdict) in &member.calls {
            if !unknown_put && *number >= unknown_from {
                put(unknown_from, Leaf::Always(rules::RET_ENOSYS));
                unknown_put = true;
            }
            put(
                *number,
                match verdict {
                    Verdict::Always(action) => Leaf::Always(*action),
                    Verdict::Conditional(alternatives) => {
                        Leaf::Conditional { narrow: member.machine.narrow(), alternatives }
                    }
                },
            );
            put(number + 1, Leaf::Always(beyond(number + 1)));
        }
        if !unknown_put {
            put(unknown_from, Leaf::Always(rules::RET_ENOSYS));
        }
        if member.machine == Machine::X86_64 && !members.iter().any(|other| other.machine == Machine::X32) {
            put(syscalls::X32_BIT, Leaf::Always(rules::RET_KILL_PROCESS));
        }
    }
    // A tracer that cancels a call sets its number to -1; that belongs to no architecture in particular.
    if machine == Machine::X86_64 {
        put(u32::MAX, Leaf::Always(default));
    }
    ranges
}

/// An instruction already written: how many stand from it to the program's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Label(usize);

#[derive(Default)]
struct Writer {
    /// Last instruction first.
    reversed: Vec<Insn>,
    /// Where each return value was written last.
    returns: Vec<(u32, Label)>,
}

/// A conditional jump skips at most this many instructions (`__u8 jt, jf`). Two less, since writing one detour for each
/// branch moves the branch itself.
const REACH: usize = u8::MAX as usize - 2;

impl Writer {
    fn here(&self) -> Label {
        Label(self.reversed.len())
    }

    /// Instructions to skip from the next one to be written to `target`.
    fn distance(&self, target: Label) -> usize {
        self.reversed.len() - target.0
    }

    /// Writes an instruction without branches. It falls through to `next`, by a jump if that is not adjacent.
    fn push(&mut self, code: u16, k: u32, next: Label) -> Label {
        if self.distance(next) > 0 {
            self.jump(next);
        }
        self.reversed.push(Insn { code, jt: 0, jf: 0, k });
        self.here()
    }

    fn jump(&mut self, target: Label) -> Label {
        let k = u32::try_from(self.distance(target)).expect("programs have far fewer than 2^32 instructions");
        self.reversed.push(Insn { code: JA, jt: 0, jf: 0, k });
        self.here()
    }

    fn ret(&mut self, value: u32) -> Label {
        if let Some((_, label)) = self.returns.iter().find(|(known, _)| *known == value)
            && self.distance(*label) < REACH
        {
            return *label;
        }
        self.reversed.push(ret(value));
        let label = self.here();
        self.returns.retain(|(known, _)| *known != value);
        self.returns.push((value, label));
        label
    }

    fn branch(&mut self, code: u16, k: u32, yes: Label, no: Label) -> Label {
        let yes = if self.distance(yes) > REACH { self.jump(yes) } else { yes };
        let no = if self.distance(no) > REACH { self.jump(no) } else { no };
        let near =
            |distance: usize| u8::try_from(distance).expect("a detour is at most two instructions away");
        let (jt, jf) = (near(self.distance(yes)), near(self.distance(no)));
        self.reversed.push(Insn { code, jt, jf, k });
        self.here()
    }

    fn tree(&mut self, ranges: &[(u32, Leaf<'_>)], default: u32) -> Label {
        match ranges {
            [] => self.ret(default),
            [(_, Leaf::Always(value))] => self.ret(*value),
            [(_, Leaf::Conditional { narrow, alternatives })] => {
                self.alternatives(*narrow, alternatives, default)
            }
            _ => {
                let (left, right) = ranges.split_at(ranges.len() / 2);
                let above = self.tree(right, default);
                let below = self.tree(left, default);
                self.branch(JGE, right[0].0, above, below)
            }
        }
    }

    fn alternatives(&mut self, narrow: bool, alternatives: &[(Vec<Condition>, u32)], default: u32) -> Label {
        let mut next = self.ret(default);
        for (conditions, action) in alternatives.iter().rev() {
            let mut yes = self.ret(*action);
            for condition in conditions.iter().rev() {
                yes = self.condition(narrow, condition, yes, next);
            }
            next = yes;
        }
        next
    }

    fn condition(&mut self, narrow: bool, condition: &Condition, yes: Label, no: Label) -> Label {
        let Condition { index, test } = *condition;
        match test {
            Test::Eq(value) => self.equal(narrow, index, u64::MAX, value, yes, no),
            Test::Ne(value) => self.equal(narrow, index, u64::MAX, value, no, yes),
            Test::Masked { mask, value } => self.equal(narrow, index, mask, value, yes, no),
            Test::Gt(value) => self.greater(narrow, index, JGT, value, yes, no),
            Test::Le(value) => self.greater(narrow, index, JGT, value, no, yes),
            Test::Ge(value) => self.greater(narrow, index, JGE, value, yes, no),
            Test::Lt(value) => self.greater(narrow, index, JGE, value, no, yes),
        }
    }

    fn equal(&mut self, narrow: bool, index: u8, mask: u64, value: u64, yes: Label, no: Label) -> Label {
        let halves = |half: u64| half as u32;
        let low = self.equal_half(index, false, halves(mask), halves(value), yes, no);
        if narrow {
            low
        } else {
            self.equal_half(index, true, halves(mask >> 32), halves(value >> 32), low, no)
        }
    }

    fn equal_half(&mut self, index: u8, high: bool, mask: u32, value: u32, yes: Label, no: Label) -> Label {
        if mask == 0 {
            return yes;
        }
        let mut test = self.branch(JEQ, value, yes, no);
        if mask != u32::MAX {
            test = self.push(AND_K, mask, test);
        }
        self.push(LD_ABS, offset_arg(index, high), test)
    }

    fn greater(&mut self, narrow: bool, index: u8, code: u16, value: u64, yes: Label, no: Label) -> Label {
        let low = self.branch(code, value as u32, yes, no);
        let low = self.push(LD_ABS, offset_arg(index, false), low);
        if narrow {
            return low;
        }
        let same = self.branch(JEQ, (value >> 32) as u32, low, no);
        let high = self.branch(JGT, (value >> 32) as u32, yes, same);
        self.push(LD_ABS, offset_arg(index, true), high)
    }
}
