//! What is within reach of a container, counted; and the table of `make isolation`.
//!
//! "Reached" is judged by comparison: the same call with the same senseless arguments was made without any confinement
//! before, as root. Where the answers differ and the container's is a refusal (`EPERM`, `EACCES`, `ENOSYS`, a signal), it
//! was stopped on the way; a call that this kernel does not have counts for nobody.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::attacks::ATTACKS;
use super::*;

/// Known bugs of the kernel by the entry point that they need, and how many of 100 need it: the public record of the
/// years 2016 to 2026 that gVisor's authors keep, sorted by us. The probe tries each entry, harmlessly.
const CLASSES: [(&str, u32, &str); 16] = [
    ("netadmin", 55, "nf_tables, qdiscs, xfrm: CAP_NET_ADMIN by a user namespace"),
    ("io_uring", 10, "io_uring_setup"),
    ("ktls", 8, "kernel TLS: setsockopt TCP_ULP"),
    ("userns-mount", 4, "mounts by a user namespace"),
    ("af_packet", 4, "AF_PACKET"),
    ("af_alg", 4, "AF_ALG"),
    ("core-syscall", 3, "futex, POSIX timers, waitid"),
    ("af_unix", 3, "AF_UNIX"),
    ("vsock", 2, "AF_VSOCK"),
    ("bpf", 1, "bpf"),
    ("rxrpc", 1, "AF_RXRPC"),
    ("pipe-splice", 1, "splice"),
    ("core-mm", 1, "madvise and page faults"),
    ("lsm", 1, "labels under /proc/self/attr"),
    ("kvm", 1, "/dev/kvm"),
    ("unclear", 1, "not told; counts as open"),
];

/// What the probe printed: kind and name to value.
type Findings = BTreeMap<(String, String), String>;

fn findings(text: &str) -> Findings {
    text.lines()
        .filter_map(|line| {
            let mut words = line.splitn(3, ' ');
            Some(((words.next()?.to_owned(), words.next()?.to_owned()), words.next()?.to_owned()))
        })
        .collect()
}

/// Without confinement, in PID and mount namespaces of its own so that nothing of the test's is in the way.
fn baseline() -> Findings {
    let output = Command::new("unshare")
        .args(["--net", "--mount", "--ipc", "--uts", "--pid", "--fork", "--mount-proc"])
        .arg(probe_path())
        .arg("reach")
        .output()
        .expect("unshare(1) runs");
    findings(&String::from_utf8_lossy(&output.stdout))
}

/// One column of the table.
struct Reach {
    syscalls: usize,
    families: usize,
    namespaces: usize,
    weight: u32,
    open: Vec<&'static str>,
    leaks: Findings,
}

/// Runs the probe in a container with the default profile and compares.
fn measure(arena: &Arena, baseline: &Findings) -> Reach {
    let run = |mode: &str| {
        let mut config = arena.container(&arena.plain_image(), &format!("exec probe {mode}"));
        security(&mut config).seccomp = Some(SecurityProfile {
            profile_type: security_profile::ProfileType::RuntimeDefault as i32,
            localhost_ref: String::new(),
        });
        match arena.run(&format!("probe-{mode}"), config) {
            Ran::Exited { code: 0, out } => findings(&out),
            Ran::Exited { code, out } => panic!("the probe ended with {code}: {out}"),
            Ran::Refused(message) => panic!("the probe was refused: {message}"),
        }
    };
    let reach = run("reach");
    assert!(reach.len() > 400, "the probe was cut off after {} findings", reach.len());
    let refused =
        |value: &str| value.starts_with("signal") || matches!(value, "errno1" | "errno13" | "errno38");
    let count = |kind: &str, counts: &dyn Fn(&str, &str) -> bool| {
        reach
            .iter()
            .filter(|((found, _), _)| found == kind)
            .filter(|(key, value)| counts(value, baseline.get(*key).map_or("", String::as_str)))
            .count()
    };
    let syscalls = count("syscall", &|value, free| {
        !matches!(free, "errno38" | "skipped" | "") && (value == free || !refused(value))
    });
    // No type of socket: the kernel was asked if it says EINVAL.
    let families = count("family", &|value, _| value == "errno22");
    let namespaces =
        count("namespace", &|value, _| value == "ok") + count("namespace-in-user", &|value, _| value == "ok");
    let open: Vec<_> = CLASSES
        .iter()
        .filter(|(name, ..)| reach[&("class".to_owned(), (*name).to_owned())] == "open")
        .collect();
    Reach {
        syscalls,
        families,
        namespaces,
        weight: open.iter().map(|(_, weight, _)| weight).sum(),
        open: open.iter().map(|(name, ..)| *name).collect(),
        leaks: run("leaks"),
    }
}

#[test]
fn the_weights_of_the_classes_add_up_to_a_hundred() {
    assert_eq!(CLASSES.iter().map(|(_, weight, _)| weight).sum::<u32>(), 100);
}

#[test]
fn privileged_few_known_entry_points_of_the_kernel_are_within_reach() {
    let baseline = baseline();
    for (handler, weight_max, families_max) in [("brig", 20, 6), ("brig-hardened", 10, 4)] {
        let reach = measure(&Arena::new(handler), &baseline);
        assert!(reach.weight <= weight_max, "{handler}: {} of 100, {:?}", reach.weight, reach.open);
        assert!(reach.families <= families_max, "{handler}: {} families", reach.families);
        assert_eq!(reach.namespaces, 0, "{handler}");
        let writable =
            |name: &str| reach.leaks[&("count".to_owned(), format!("writable-in-{name}"))].as_str();
        assert_eq!(writable("sys"), "0", "{handler}");
        assert!(handler != "brig-hardened" || writable("proc") == "0", "{handler}: {}", writable("proc"));
        for secret in [
            "/proc/kcore",
            "/proc/keys",
            "/proc/sched_debug",
            "/dev/kmsg",
            "/dev/mem",
            "dmesg",
            "kallsyms-addresses",
        ] {
            assert_eq!(reach.leaks[&("readable".to_owned(), secret.to_owned())], "no", "{handler}: {secret}");
        }
    }
}

/// Printed by `make isolation`; it fails for nothing, so that what gets out of a foreign runtime is shown and not hidden.
#[test]
#[ignore = "a report of minutes: make isolation"]
fn privileged_isolation_table() {
    let baseline = baseline();
    let reachable = baseline
        .iter()
        .filter(|((kind, _), value)| kind == "syscall" && !matches!(value.as_str(), "errno38" | "skipped"))
        .count();
    println!("\nwithout confinement {reachable} system calls answer on this kernel\n");
    let handlers: Vec<&str> = OURS
        .into_iter()
        .chain(["runc", "runsc"].into_iter().filter(|name| on_path(name).is_some()))
        .collect();
    for name in ["runc", "runsc"] {
        if !handlers.contains(&name) {
            println!("{name} is not installed and left out");
        }
    }
    let mut rows: Vec<(String, Vec<String>)> = Vec::new();
    let mut put =
        |name: &str, column: usize, value: String| match rows.iter_mut().find(|(known, _)| known == name) {
            Some((_, values)) => values.push(value),
            None => rows.push((name.to_owned(), [vec![String::new(); column], vec![value]].concat())),
        };
    let mut got_out: Vec<String> = Vec::new();
    for (column, handler) in handlers.iter().enumerate() {
        let arena = Arena::new(handler);
        let reach = measure(&arena, &baseline);
        let leak = |kind: &str, name: &str| {
            reach.leaks.get(&(kind.to_owned(), name.to_owned())).cloned().unwrap_or_default()
        };
        put("system calls within reach", column, reach.syscalls.to_string());
        put("socket families within reach, of 46", column, reach.families.to_string());
        put("new namespaces, of 16 ways", column, reach.namespaces.to_string());
        put("known kernel bugs whose entry is within reach, of 100", column, reach.weight.to_string());
        for (name, weight, what) in CLASSES {
            let open = reach.open.contains(&name);
            put(&format!("  {what} ({weight})"), column, if open { "open" } else { "-" }.to_owned());
        }
        put("capabilities (CapBnd)", column, leak("status", "CapBnd").trim_start_matches('0').to_owned());
        put("no_new_privs", column, leak("status", "NoNewPrivs"));
        put(
            "root's id on the host",
            column,
            leak("status", "uid_map").split(',').nth(1).unwrap_or("?").to_owned(),
        );
        put("files of the host open for writing in /proc", column, leak("count", "writable-in-proc"));
        put("files of the host open for writing in /sys", column, leak("count", "writable-in-sys"));
        let readable =
            reach.leaks.iter().filter(|((kind, _), value)| kind == "readable" && *value == "yes").count();
        put("looks at the host that succeed, of 33", column, readable.to_string());
        let mut held = 0;
        for (name, reference, attack) in ATTACKS {
            // A panic is a call that did not even answer as it should.
            arena.restore();
            let outcome = catch_unwind(AssertUnwindSafe(|| attack(&arena)));
            let outcome = outcome.unwrap_or_else(|panic| {
                let text = panic.downcast_ref::<String>().cloned().unwrap_or_default();
                Err(format!("could not be tried: {text}"))
            });
            match outcome {
                Ok(()) => held += 1,
                Err(what) => got_out
                    .push(format!("{handler}: {name} ({reference}): {}", what.lines().next().unwrap_or(""))),
            }
        }
        put(&format!("attacks that fail, of {}", ATTACKS.len()), column, held.to_string());
    }
    print!("| | ");
    println!("{} |", handlers.join(" | "));
    println!("| --- |{}", " ---: |".repeat(handlers.len()));
    for (name, values) in &rows {
        println!("| {name} | {} |", values.join(" | "));
    }
    println!();
    for line in &got_out {
        println!("{line}");
    }
}
