//! Compiled programs against a plain reading of the profile.
//!
//! Goal: whatever the profile, the compiled program answers as the words at the top of `mod.rs` say. Method: random
//! profiles over a small set of calls, run in an interpreter for classic BPF, and compared with an evaluation that walks
//! the profile's rules one after the other and knows nothing of ranges, trees or jumps.

use oci_spec::runtime::LinuxSeccomp;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::compile::{AND_K, JA, JEQ, JGE, JGT, LD_ABS, OFFSET_ARCH, OFFSET_NR, RET};
use super::*;

/// What a filter sees.
#[derive(Debug, Clone, Copy)]
struct Call {
    nr: u32,
    arch: u32,
    args: [u64; 6],
}

impl Call {
    fn new(name: &str, machine: Machine, args: [u64; 6]) -> Self {
        let nr = syscalls::number(name, machine).unwrap();
        Self { nr, arch: machine.audit(), args }
    }

    fn word(&self, offset: u32) -> u32 {
        match offset {
            OFFSET_NR => self.nr,
            OFFSET_ARCH => self.arch,
            16..64 if offset.is_multiple_of(4) => {
                let arg = self.args[(offset as usize - 16) / 8];
                if offset.is_multiple_of(8) { arg as u32 } else { (arg >> 32) as u32 }
            }
            _ => panic!("load from offset {offset} outside struct seccomp_data"),
        }
    }
}

/// Runs a program; also returns how many instructions that took.
fn run(program: &[Insn], call: &Call) -> (u32, usize) {
    let (mut pc, mut a, mut steps) = (0usize, 0u32, 0);
    loop {
        let insn = program[pc];
        pc += 1;
        steps += 1;
        let jump = |taken: bool| usize::from(if taken { insn.jt } else { insn.jf });
        match insn.code {
            LD_ABS => a = call.word(insn.k),
            AND_K => a &= insn.k,
            JA => pc += insn.k as usize,
            JEQ => pc += jump(a == insn.k),
            JGT => pc += jump(a > insn.k),
            JGE => pc += jump(a >= insn.k),
            RET => return (insn.k, steps),
            code => panic!("instruction {code:#x}"),
        }
    }
}

/// The error number that a call of the native architecture, or of i386, fails with under `profile`; 0 where it is allowed.
pub(crate) fn decide(profile: &LinuxSeccomp, name: &str, i386: bool, args: &[u64]) -> u32 {
    let machine = if i386 { Machine::X86 } else { Machine::NATIVE };
    let mut all = [0; 6];
    all[..args.len()].copy_from_slice(args);
    match run(&compile(profile).unwrap().insns, &Call::new(name, machine, all)).0 {
        ALLOW => 0,
        errno if errno & 0xffff_0000 == 0x0005_0000 => errno & 0xffff,
        other => panic!("{name} is neither allowed nor refused: {other:#x}"),
    }
}

fn profile(value: Value) -> LinuxSeccomp {
    serde_json::from_value(value).unwrap()
}

fn verdict(value: &Value, call: &Call) -> u32 {
    run(&compile(&profile(value.clone())).unwrap().insns, call).0
}

const ERRNO_EPERM: u32 = 0x0005_0001;
const ALLOW: u32 = 0x7fff_0000;
const KILL_PROCESS: u32 = 0x8000_0000;
const ENOSYS: u32 = 0x0005_0026;

/// The words of `mod.rs`, step by step.
fn expected(profile: &Value, call: &Call) -> u32 {
    let action = |action: &str, errno: Option<u64>| match action {
        "SCMP_ACT_ALLOW" => ALLOW,
        "SCMP_ACT_ERRNO" => 0x0005_0000 | errno.unwrap_or(1) as u32,
        "SCMP_ACT_TRACE" => 0x7ff0_0000 | errno.unwrap_or(1) as u32,
        "SCMP_ACT_KILL" => 0,
        "SCMP_ACT_KILL_PROCESS" => KILL_PROCESS,
        "SCMP_ACT_LOG" => 0x7ffc_0000,
        "SCMP_ACT_TRAP" => 0x0003_0000,
        other => panic!("{other}"),
    };
    let default_name = profile["defaultAction"].as_str().unwrap();
    let default = action(default_name, profile["defaultErrnoRet"].as_u64());
    let arches: Vec<&str> =
        profile["architectures"].as_array().unwrap().iter().map(|arch| arch.as_str().unwrap()).collect();
    let machine = match call.arch {
        0xc000_003e if call.nr == u32::MAX => return default,
        0xc000_003e if call.nr & 0x4000_0000 == 0 && call.nr < 0x8000_0000 => Machine::X86_64,
        0xc000_003e if arches.contains(&"SCMP_ARCH_X32") => Machine::X32,
        0x4000_0003 if arches.contains(&"SCMP_ARCH_X86") => Machine::X86,
        0xc000_00b7 if arches.contains(&"SCMP_ARCH_AARCH64") => Machine::Aarch64,
        0x4000_0028 if arches.contains(&"SCMP_ARCH_ARM") => Machine::Arm,
        _ => return KILL_PROCESS,
    };
    let narrow = matches!(machine, Machine::X86 | Machine::Arm);
    let holds = |arg: &Value| {
        let cut = |n: u64| if narrow { n & 0xffff_ffff } else { n };
        let have = cut(call.args[arg["index"].as_u64().unwrap() as usize]);
        let value = cut(arg["value"].as_u64().unwrap());
        match arg["op"].as_str().unwrap() {
            "SCMP_CMP_NE" => have != value,
            "SCMP_CMP_LT" => have < value,
            "SCMP_CMP_LE" => have <= value,
            "SCMP_CMP_EQ" => have == value,
            "SCMP_CMP_GE" => have >= value,
            "SCMP_CMP_GT" => have > value,
            "SCMP_CMP_MASKED_EQ" => have & value == arg["valueTwo"].as_u64().unwrap() & value,
            other => panic!("{other}"),
        }
    };
    let mut newest = None;
    let mut unconditional = None;
    let mut conditional = None;
    for rule in profile["syscalls"].as_array().unwrap() {
        let result = action(rule["action"].as_str().unwrap(), rule["errnoRet"].as_u64());
        let args = rule["args"].as_array().unwrap();
        let indices: Vec<u64> = args.iter().map(|arg| arg["index"].as_u64().unwrap()).collect();
        let repeated = (1..indices.len()).any(|i| indices[..i].contains(&indices[i]));
        for name in rule["names"].as_array().unwrap() {
            let name = name.as_str().unwrap();
            let number = syscalls::number(name, machine);
            newest = newest.max(number);
            if result == default {
                continue;
            }
            if number == Some(call.nr) {
                if args.is_empty() {
                    unconditional = unconditional.or(Some(result));
                } else if if repeated { args.iter().any(holds) } else { args.iter().all(holds) } {
                    conditional = conditional.or(Some(result));
                }
            }
            let carried =
                machine == Machine::X86 && call.nr == 102 && name == "socket" && call.args[0] as u32 == 1;
            let refuses = ((result & 0xffff_0000) as i32) < ((default & 0xffff_0000) as i32);
            if carried && (args.is_empty() || refuses) {
                conditional = conditional.or(Some(result));
            }
        }
    }
    let denies = !["SCMP_ACT_ALLOW", "SCMP_ACT_LOG", "SCMP_ACT_TRACE"].contains(&default_name);
    let beyond = if denies && newest.is_some_and(|newest| call.nr > newest) { ENOSYS } else { default };
    unconditional.or(conditional).unwrap_or(beyond)
}

const NAMES: [&str; 16] = [
    "read",
    "write",
    "openat",
    "open",
    "close",
    "socket",
    "socketcall",
    "clone",
    "clone3",
    "mmap",
    "mmap2",
    "personality",
    "ioctl",
    "fchmodat2",
    "execve",
    "a_call_of_the_future",
];
const ACTIONS: [&str; 7] = [
    "SCMP_ACT_ALLOW",
    "SCMP_ACT_ERRNO",
    "SCMP_ACT_TRACE",
    "SCMP_ACT_KILL",
    "SCMP_ACT_KILL_PROCESS",
    "SCMP_ACT_LOG",
    "SCMP_ACT_TRAP",
];
const OPS: [&str; 7] = [
    "SCMP_CMP_NE",
    "SCMP_CMP_LT",
    "SCMP_CMP_LE",
    "SCMP_CMP_EQ",
    "SCMP_CMP_GE",
    "SCMP_CMP_GT",
    "SCMP_CMP_MASKED_EQ",
];

/// Few distinct values, so that comparisons meet their equals and their neighbours in either half.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![
        prop::sample::select(vec![
            0,
            1,
            2,
            0xff,
            0xffff_ffff,
            1 << 32,
            (1 << 32) + 1,
            (2 << 32) | 1,
            u64::MAX
        ]),
        any::<u64>(),
    ]
}

fn rule() -> impl Strategy<Value = Value> {
    let arg = (0..6u64, number(), number(), prop::sample::select(OPS.to_vec())).prop_map(
        |(index, value, two, op)| json!({"index": index, "value": value, "valueTwo": two, "op": op}),
    );
    (
        prop::collection::vec(prop::sample::select(NAMES.to_vec()), 1..6),
        prop::sample::select(ACTIONS.to_vec()),
        prop::option::of(0..4095u32),
        prop_oneof![Just(Vec::new()), prop::collection::vec(arg, 0..4)],
    )
        .prop_map(|(names, action, errno, args)| {
            let mut rule = json!({"names": names, "action": action, "args": args});
            if ["SCMP_ACT_ERRNO", "SCMP_ACT_TRACE"].contains(&action)
                && let Some(errno) = errno
            {
                rule["errnoRet"] = json!(errno);
            }
            rule
        })
}

fn any_profile(rules: std::ops::Range<usize>) -> impl Strategy<Value = Value> {
    (
        prop::sample::select(ACTIONS.to_vec()),
        prop::option::of(1..200u32),
        prop::sample::subsequence(
            vec!["SCMP_ARCH_X86", "SCMP_ARCH_X32", "SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"],
            0..=4,
        ),
        prop::collection::vec(rule(), rules),
    )
        .prop_map(|(default, errno, mut arches, rules)| {
            arches.push("SCMP_ARCH_X86_64");
            let mut profile = json!({"defaultAction": default, "architectures": arches, "syscalls": rules});
            if ["SCMP_ACT_ERRNO", "SCMP_ACT_TRACE"].contains(&default)
                && let Some(errno) = errno
            {
                profile["defaultErrnoRet"] = json!(errno);
            }
            profile
        })
}

fn any_call() -> impl Strategy<Value = Call> {
    let machine = prop::sample::select(vec![
        Machine::X86_64,
        Machine::X86,
        Machine::X32,
        Machine::Aarch64,
        Machine::Arm,
    ]);
    let nr = prop_oneof![
        4 => prop::sample::select(NAMES.to_vec()).prop_map(Some),
        1 => Just(None),
    ];
    (machine, nr, prop_oneof![0..600u32, any::<u32>()], prop::array::uniform6(number())).prop_map(
        |(machine, name, nr, args)| {
            let nr = name.and_then(|name| syscalls::number(name, machine)).unwrap_or(nr);
            // The kernel hands 32-bit arguments on with zeros above.
            let args = if machine.narrow() { args.map(|arg| arg & 0xffff_ffff) } else { args };
            Call { nr, arch: machine.audit(), args }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(target_arch = "x86_64") { 400 } else { 0 }))]

    #[test]
    fn a_compiled_profile_answers_as_its_rules_read(
        value in any_profile(0..12),
        calls in prop::collection::vec(any_call(), 1..60),
    ) {
        let program = compile(&profile(value.clone())).unwrap();
        for call in calls {
            prop_assert_eq!(run(&program.insns, &call).0, expected(&value, &call), "{:x?} in {}", call, value);
        }
    }

    #[test]
    fn jumps_over_more_than_255_instructions_arrive(
        value in any_profile(60..90),
        calls in prop::collection::vec(any_call(), 1..30),
    ) {
        match compile(&profile(value.clone())) {
            Ok(program) => for call in calls {
                prop_assert_eq!(run(&program.insns, &call).0, expected(&value, &call), "{:x?} in {}", call, value);
            },
            Err(err) => prop_assert!(matches!(err, SeccompError::TooLong(_)), "{}", err),
        }
    }
}

#[test]
fn a_name_unknown_to_every_table_is_skipped() {
    let value = json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [
        {"names": ["a_call_of_the_future", "read"], "action": "SCMP_ACT_ALLOW"}]});
    assert_eq!(verdict(&value, &Call::new("read", Machine::NATIVE, [0; 6])), ALLOW);
}

#[test]
fn a_call_newer_than_the_profile_is_told_enosys_and_an_older_one_the_default() {
    let value = json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [
        {"names": ["clone3"], "action": "SCMP_ACT_ALLOW"}]});
    assert_eq!(verdict(&value, &Call::new("fchmodat2", Machine::NATIVE, [0; 6])), ENOSYS);
    assert_eq!(verdict(&value, &Call::new("execve", Machine::NATIVE, [0; 6])), ERRNO_EPERM);
    let open = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["clone3"], "action": "SCMP_ACT_ERRNO"}]});
    assert_eq!(verdict(&open, &Call::new("fchmodat2", Machine::NATIVE, [0; 6])), ALLOW);
}

#[test]
fn conditions_on_one_argument_are_alternatives_and_on_several_all_must_hold() {
    let same = json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [
        {"names": ["personality"], "action": "SCMP_ACT_ALLOW", "args": [
            {"index": 0, "value": 0, "op": "SCMP_CMP_EQ"}, {"index": 0, "value": 8, "op": "SCMP_CMP_EQ"}]}]});
    let call = |first, second| Call::new("personality", Machine::NATIVE, [first, second, 0, 0, 0, 0]);
    for (first, result) in [(0, ALLOW), (8, ALLOW), (1, ERRNO_EPERM), (8 | 1 << 32, ERRNO_EPERM)] {
        assert_eq!(verdict(&same, &call(first, 0)), result, "{first:#x}");
    }
    let both = json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [
        {"names": ["personality"], "action": "SCMP_ACT_ALLOW", "args": [
            {"index": 0, "value": 0, "op": "SCMP_CMP_EQ"}, {"index": 1, "value": 8, "op": "SCMP_CMP_EQ"}]}]});
    for (first, second, result) in [(0, 8, ALLOW), (0, 0, ERRNO_EPERM), (8, 8, ERRNO_EPERM)] {
        assert_eq!(verdict(&both, &call(first, second)), result, "{first} {second}");
    }
}

#[test]
fn a_rule_without_conditions_beats_those_with_wherever_it_stands() {
    let with = json!({"names": ["personality"], "action": "SCMP_ACT_KILL_PROCESS", "args": [
        {"index": 0, "value": 0, "op": "SCMP_CMP_EQ"}]});
    let without = json!({"names": ["personality"], "action": "SCMP_ACT_ALLOW"});
    for rules in [json!([with, without]), json!([without, with])] {
        let value = json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": rules});
        assert_eq!(verdict(&value, &Call::new("personality", Machine::NATIVE, [0; 6])), ALLOW);
    }
}

#[test]
fn what_no_filter_can_express_is_refused_by_name() {
    let allow = |rule: Value| json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [rule]});
    for (value, text) in [
        (
            json!({"defaultAction": "SCMP_ACT_NOTIFY"}),
            "seccomp profile uses SCMP_ACT_NOTIFY as its default action, so nothing could ever answer",
        ),
        (
            json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_S390X"]}),
            "seccomp profile lists architecture SCMP_ARCH_S390X, which is not one of x86_64, x86, x32, aarch64 and arm",
        ),
        (
            allow(json!({"names": ["read"], "action": "SCMP_ACT_ALLOW", "errnoRet": 3})),
            "seccomp rule for read gives errnoRet 3, but its action SCMP_ACT_ALLOW returns no error number",
        ),
        (
            allow(json!({"names": ["read"], "action": "SCMP_ACT_ERRNO", "errnoRet": 4096})),
            "seccomp rule for read gives errnoRet 4096, which is above 4095",
        ),
        (
            allow(json!({"names": ["read"], "action": "SCMP_ACT_ALLOW",
                "args": [{"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}]})),
            "seccomp rule for read has a condition on argument 6, but a system call has arguments 0 to 5",
        ),
        (
            allow(json!({"names": ["write"], "action": "SCMP_ACT_NOTIFY"})),
            "seccomp profile uses SCMP_ACT_NOTIFY for write, which handing over the listener needs",
        ),
    ] {
        assert_eq!(compile(&profile(value)).unwrap_err().to_string(), text);
    }
}

#[test]
fn an_allow_list_of_every_call_is_small_and_decides_in_few_steps() {
    let names: Vec<&str> = syscalls::names().filter(|name| !name.starts_with('s')).collect();
    let value = json!({"defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": [{"names": names, "action": "SCMP_ACT_ALLOW"}]});
    let program = compile(&profile(value)).unwrap();
    assert!(program.len() < 600, "{}", program.len());
    for name in ["read", "openat", "clone3", "socket"] {
        let (_, steps) = run(&program.insns, &Call::new(name, Machine::NATIVE, [0; 6]));
        assert!(steps <= 14, "{name} takes {steps} steps");
    }
}

#[test]
fn only_a_profile_that_notifies_asks_for_a_listener() {
    let value = |action| json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir"], "action": action}]});
    assert!(compile(&profile(value("SCMP_ACT_NOTIFY"))).unwrap().uses_notify());
    assert!(!compile(&profile(value("SCMP_ACT_ERRNO"))).unwrap().uses_notify());
}

#[test]
fn privileged_a_loaded_filter_refuses_in_the_kernel_too() {
    let value = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["personality"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95,
         "args": [{"index": 0, "value": 0xffff_ffffu32, "op": "SCMP_CMP_EQ"}]},
        {"names": ["sethostname"], "action": "SCMP_ACT_ERRNO", "errnoRet": 99}]});
    let program = compile(&profile(value)).unwrap();
    // A filter stays with its thread, so it gets one of its own.
    let refused = std::thread::spawn(move || {
        assert!(program.load().unwrap().is_none());
        rustix::system::sethostname(b"").unwrap_err().raw_os_error()
    });
    assert_eq!(refused.join().unwrap(), 99);
}
