//! From the profile's rules to one verdict per system call and architecture. The rules of precedence are in `mod.rs`.

use std::collections::BTreeMap;

use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompOperator, LinuxSyscall,
};

use super::{Machine, SeccompError, syscalls};

/// What a filter returns, as the kernel encodes it (linux/seccomp.h).
pub(super) const RET_KILL_PROCESS: u32 = 0x8000_0000;
pub(super) const RET_KILL_THREAD: u32 = 0;
pub(super) const RET_TRAP: u32 = 0x0003_0000;
pub(super) const RET_ERRNO: u32 = 0x0005_0000;
pub(super) const RET_USER_NOTIF: u32 = 0x7fc0_0000;
pub(super) const RET_TRACE: u32 = 0x7ff0_0000;
pub(super) const RET_LOG: u32 = 0x7ffc_0000;
pub(super) const RET_ALLOW: u32 = 0x7fff_0000;

const EPERM: u32 = 1;
const ENOSYS: u32 = 38;
/// The kernel caps error numbers from filters here (`MAX_ERRNO`, linux/err.h).
const ERRNO_MAX: u32 = 4095;
/// Every Linux system call takes at most six arguments.
const ARGS_MAX: usize = 6;

/// One comparison of an argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Condition {
    pub(super) index: u8,
    pub(super) test: Test,
}

/// How an argument is compared, as unsigned numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Test {
    Ne(u64),
    Lt(u64),
    Le(u64),
    Eq(u64),
    Ge(u64),
    Gt(u64),
    /// `argument & mask == value & mask`.
    Masked {
        mask: u64,
        value: u64,
    },
}

/// What happens to one system call. The numbers are filter return values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    Always(u32),
    /// The first whose conditions all hold, else the default.
    Conditional(Vec<(Vec<Condition>, u32)>),
}

/// The verdicts of one architecture by system call number (x32's with their marker bit).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct MachineVerdicts {
    pub(super) machine: Machine,
    pub(super) calls: BTreeMap<u32, Verdict>,
    /// Numbers from here up are newer than the profile and get `ENOSYS`.
    pub(super) unknown_from: Option<u32>,
}

/// A whole profile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Verdicts {
    pub(super) default: u32,
    pub(super) machines: Vec<MachineVerdicts>,
}

/// `ERRNO(ENOSYS)`, for calls newer than the profile.
pub(super) const RET_ENOSYS: u32 = RET_ERRNO | ENOSYS;

pub(super) fn read(profile: &LinuxSeccomp) -> Result<Verdicts, SeccompError> {
    if profile.default_action() == LinuxSeccompAction::ScmpActNotify {
        return Err(SeccompError::NotifyDefault);
    }
    // The specification lets a profile give defaultErrnoRet whatever its default action; only some read it.
    let default_errno = match profile.default_action() {
        LinuxSeccompAction::ScmpActErrno | LinuxSeccompAction::ScmpActTrace => profile.default_errno_ret(),
        _ => None,
    };
    let default = ret_value("the default action", profile.default_action(), default_errno)?;
    let permissive = matches!(
        profile.default_action(),
        LinuxSeccompAction::ScmpActAllow | LinuxSeccompAction::ScmpActLog | LinuxSeccompAction::ScmpActTrace
    );

    let mut machines: Vec<Machine> = vec![Machine::NATIVE];
    for arch in profile.architectures().iter().flatten() {
        if let Some(machine) = machine(*arch)?
            && !machines.contains(&machine)
        {
            machines.push(machine);
        }
    }
    machines.sort();

    let rules: Vec<Rule<'_>> =
        profile.syscalls().iter().flatten().map(Rule::read).collect::<Result<Vec<_>, _>>()?;

    let machines = machines
        .into_iter()
        .map(|machine| {
            let mut verdicts = MachineVerdicts { machine, calls: BTreeMap::new(), unknown_from: None };
            let mut newest = None;
            for rule in &rules {
                for name in rule.names {
                    let number = syscalls::number(name, machine);
                    newest = newest.max(number.filter(|number| *number < NUMBERING_END | offset(machine)));
                    if rule.action != default {
                        verdicts.add(name, number, rule, default);
                    }
                }
            }
            // A profile that names no call of this architecture knows nothing about its age.
            verdicts.unknown_from = newest.filter(|_| !permissive).map(|newest| newest + 1);
            verdicts
        })
        .collect();
    Ok(Verdicts { default, machines })
}

/// Above every architecture's ordinary numbering and below arm's private calls.
const NUMBERING_END: u32 = 0x8000;

fn offset(machine: Machine) -> u32 {
    if machine == Machine::X32 { syscalls::X32_BIT } else { 0 }
}

/// A rule of the profile, checked.
struct Rule<'a> {
    names: &'a [String],
    /// Alternatives; each a conjunction. One empty conjunction is "always".
    when: Vec<Vec<Condition>>,
    action: u32,
}

impl<'a> Rule<'a> {
    fn read(syscall: &'a LinuxSyscall) -> Result<Self, SeccompError> {
        let first = || syscall.names().first().cloned().unwrap_or_default();
        if syscall.action() == LinuxSeccompAction::ScmpActNotify
            && let Some(name) = syscall.names().iter().find(|name| *name == "write" || *name == "sendmsg")
        {
            return Err(SeccompError::NotifyReserved(name.clone()));
        }
        let action = ret_value(&first(), syscall.action(), syscall.errno_ret())?;
        let conditions = syscall
            .args()
            .iter()
            .flatten()
            .map(|arg| condition(arg, &first()))
            .collect::<Result<Vec<_>, _>>()?;
        let repeated = conditions
            .iter()
            .enumerate()
            .any(|(i, one)| conditions[..i].iter().any(|other| other.index == one.index));
        let when = if repeated {
            conditions.into_iter().map(|condition| vec![condition]).collect()
        } else {
            vec![conditions]
        };
        Ok(Self { names: syscall.names(), when, action })
    }
}

impl MachineVerdicts {
    fn add(&mut self, name: &str, number: Option<u32>, rule: &Rule<'_>, default: u32) {
        if let Some(number) = number {
            for conditions in &rule.when {
                self.add_one(number, conditions.clone(), rule.action);
            }
        }
        if self.machine == Machine::X86
            && let Some((carrier, condition)) = carried(name)
        {
            let unconditional = rule.when.iter().any(Vec::is_empty);
            if unconditional || stricter(rule.action, default) {
                let number = syscalls::number(carrier, Machine::X86).expect("i386 has socketcall and ipc");
                self.add_one(number, vec![condition], rule.action);
            }
        }
    }

    fn add_one(&mut self, number: u32, conditions: Vec<Condition>, action: u32) {
        if conditions.is_empty() {
            let verdict = self.calls.entry(number).or_insert(Verdict::Always(action));
            if let Verdict::Conditional(_) = verdict {
                *verdict = Verdict::Always(action);
            }
            return;
        }
        match self.calls.entry(number).or_insert_with(|| Verdict::Conditional(Vec::new())) {
            Verdict::Always(_) => {}
            Verdict::Conditional(alternatives) => alternatives.push((conditions, action)),
        }
    }
}

/// The kernel's order of precedence among filters: the smaller signed action wins (seccomp(2)).
fn stricter(action: u32, than: u32) -> bool {
    ((action & 0xffff_0000) as i32) < ((than & 0xffff_0000) as i32)
}

/// The i386 call that can carry `name`, and which first argument does so (linux/net.h, linux/ipc.h).
fn carried(name: &str) -> Option<(&'static str, Condition)> {
    let (carrier, call) = match name {
        "socket" => ("socketcall", 1),
        "bind" => ("socketcall", 2),
        "connect" => ("socketcall", 3),
        "listen" => ("socketcall", 4),
        "accept" => ("socketcall", 5),
        "getsockname" => ("socketcall", 6),
        "getpeername" => ("socketcall", 7),
        "socketpair" => ("socketcall", 8),
        "send" => ("socketcall", 9),
        "recv" => ("socketcall", 10),
        "sendto" => ("socketcall", 11),
        "recvfrom" => ("socketcall", 12),
        "shutdown" => ("socketcall", 13),
        "setsockopt" => ("socketcall", 14),
        "getsockopt" => ("socketcall", 15),
        "sendmsg" => ("socketcall", 16),
        "recvmsg" => ("socketcall", 17),
        "accept4" => ("socketcall", 18),
        "recvmmsg" => ("socketcall", 19),
        "sendmmsg" => ("socketcall", 20),
        "semop" => ("ipc", 1),
        "semget" => ("ipc", 2),
        "semctl" => ("ipc", 3),
        "semtimedop" => ("ipc", 4),
        "msgsnd" => ("ipc", 11),
        "msgrcv" => ("ipc", 12),
        "msgget" => ("ipc", 13),
        "msgctl" => ("ipc", 14),
        "shmat" => ("ipc", 21),
        "shmdt" => ("ipc", 22),
        "shmget" => ("ipc", 23),
        "shmctl" => ("ipc", 24),
        _ => return None,
    };
    // The high half of ipc's first argument is a version.
    let test = if carrier == "ipc" { Test::Masked { mask: 0xffff, value: call } } else { Test::Eq(call) };
    Some((carrier, Condition { index: 0, test }))
}

fn condition(arg: &LinuxSeccompArg, syscall: &str) -> Result<Condition, SeccompError> {
    let index = match u8::try_from(arg.index()) {
        Ok(index) if usize::from(index) < ARGS_MAX => index,
        _ => return Err(SeccompError::ArgumentIndex { syscall: syscall.to_owned(), index: arg.index() }),
    };
    let value = arg.value();
    let test = match arg.op() {
        LinuxSeccompOperator::ScmpCmpNe => Test::Ne(value),
        LinuxSeccompOperator::ScmpCmpLt => Test::Lt(value),
        LinuxSeccompOperator::ScmpCmpLe => Test::Le(value),
        LinuxSeccompOperator::ScmpCmpEq => Test::Eq(value),
        LinuxSeccompOperator::ScmpCmpGe => Test::Ge(value),
        LinuxSeccompOperator::ScmpCmpGt => Test::Gt(value),
        LinuxSeccompOperator::ScmpCmpMaskedEq => {
            Test::Masked { mask: value, value: arg.value_two().unwrap_or(0) & value }
        }
    };
    Ok(Condition { index, test })
}

/// `None` for "native", which is always there.
fn machine(arch: Arch) -> Result<Option<Machine>, SeccompError> {
    match arch {
        Arch::ScmpArchNative => Ok(None),
        Arch::ScmpArchX86_64 => Ok(Some(Machine::X86_64)),
        Arch::ScmpArchX86 => Ok(Some(Machine::X86)),
        Arch::ScmpArchX32 => Ok(Some(Machine::X32)),
        Arch::ScmpArchAarch64 => Ok(Some(Machine::Aarch64)),
        Arch::ScmpArchArm => Ok(Some(Machine::Arm)),
        other => Err(SeccompError::Architecture(other.to_string())),
    }
}

fn ret_value(syscall: &str, action: LinuxSeccompAction, errno: Option<u32>) -> Result<u32, SeccompError> {
    let base = match action {
        LinuxSeccompAction::ScmpActErrno | LinuxSeccompAction::ScmpActTrace => {
            let errno = errno.unwrap_or(EPERM);
            if errno > ERRNO_MAX {
                return Err(SeccompError::Errno { syscall: syscall.to_owned(), errno });
            }
            return Ok(errno | if action == LinuxSeccompAction::ScmpActErrno { RET_ERRNO } else { RET_TRACE });
        }
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => RET_KILL_THREAD,
        LinuxSeccompAction::ScmpActKillProcess => RET_KILL_PROCESS,
        LinuxSeccompAction::ScmpActTrap => RET_TRAP,
        LinuxSeccompAction::ScmpActNotify => RET_USER_NOTIF,
        LinuxSeccompAction::ScmpActLog => RET_LOG,
        LinuxSeccompAction::ScmpActAllow => RET_ALLOW,
    };
    match errno {
        Some(errno) => Err(SeccompError::ErrnoWithoutErrno {
            syscall: syscall.to_owned(),
            action: action.to_string(),
            errno,
        }),
        None => Ok(base),
    }
}
