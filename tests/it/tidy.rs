//! The architecture's rules as tests: who may call whom, where unsafe code and the wire's types may appear, and how the
//! repository looks. They read the sources as text, so they say nothing that a line of code does not show.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The modules of `lib.rs` from the outermost to the innermost. A module may name those after it, and of those before
/// it only what lies in a `spec` file: a parsed request is a value that is handed down.
const ORDER: [&str; 19] = [
    "cli",
    "daemon",
    "cri",
    "stream",
    "pod",
    "container",
    "image",
    "network",
    "events",
    "metrics",
    "stats",
    "monitor",
    "sandbox",
    "records",
    "task",
    "sys",
    "id",
    "units",
    "proto",
];

/// What may lie at the top of the repository, besides names that begin with a dot.
const TOP_LEVEL: [&str; 15] = [
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "Makefile",
    "README.md",
    "build.rs",
    "clippy.toml",
    "critest",
    "deny.toml",
    "deploy",
    "proto",
    "rustfmt.toml",
    "src",
    "target",
    "tests",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All files below a folder of the repository, by their path from its top.
fn files(folder: &str) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten() {
            let path = entry.expect("a folder of the repository can be read").path();
            if path.is_dir() {
                folders.push(path);
            } else if let Ok(text) = fs::read_to_string(&path) {
                let path = path.strip_prefix(root()).expect("it was found below the root");
                found.insert(path.to_owned(), text);
            }
        }
    }
    found
}

/// The Rust files below a folder.
fn sources(folder: &str) -> BTreeMap<PathBuf, String> {
    let mut files = files(folder);
    files.retain(|path, _| path.extension().is_some_and(|extension| extension == "rs"));
    assert!(!files.is_empty(), "no Rust file in {folder}");
    files
}

/// The lines that are code, numbered from 1: comments are left out, strings are not.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let lines = text.lines().enumerate().map(|(i, line)| (i + 1, line));
    lines.filter(|(_, line)| !line.trim_start().starts_with("//"))
}

/// Whether `word` stands in `line` with nothing of an identifier on either side.
fn has_word(line: &str, word: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        !line[..at].chars().next_back().is_some_and(part)
            && !line[at + word.len()..].chars().next().is_some_and(part)
    })
}

/// The module of `lib.rs` that a file belongs to; `None` for `lib.rs` and the binaries.
fn module(path: &Path) -> Option<String> {
    let name = path.strip_prefix("src").ok()?.components().next()?.as_os_str().to_str()?;
    let name = name.trim_end_matches(".rs");
    (!["lib", "bin"].contains(&name)).then(|| name.to_owned())
}

/// The paths after `crate::` in a text, as far as `module::item`; of a group every member.
fn crate_paths(text: &str) -> Vec<String> {
    let mut paths = Vec::new();
    for (at, matched) in text.match_indices("crate::") {
        let rest = &text[at + matched.len()..];
        let word = |text: &str| -> String {
            text.chars().take_while(|c| c.is_alphanumeric() || *c == '_' || *c == ':').collect()
        };
        match rest.strip_prefix('{') {
            None => paths.push(word(rest)),
            Some(group) => {
                // Members at depth one; what is nested belongs to the member before it.
                let mut depth = 1;
                let mut member = String::new();
                for c in group.chars() {
                    match c {
                        '{' => depth += 1,
                        '}' => depth -= 1,
                        ',' if depth == 1 => paths.push(word(std::mem::take(&mut member).trim())),
                        c if depth == 1 => member.push(c),
                        _ => {}
                    }
                    if depth == 0 {
                        break;
                    }
                }
                paths.push(word(member.trim()));
            }
        }
    }
    paths.retain(|path| !path.is_empty());
    paths
}

fn refuse(what: &str, found: Vec<String>) {
    assert!(found.is_empty(), "{what}:\n{}", found.join("\n"));
}

#[test]
fn every_module_has_its_place_in_the_order() {
    let modules: BTreeSet<_> = sources("src").keys().filter_map(|path| module(path)).collect();
    refuse(
        "modules without a place in ORDER of tests/it/tidy.rs",
        modules.into_iter().filter(|module| !ORDER.contains(&module.as_str())).collect(),
    );
}

#[test]
fn calls_go_down_the_order_and_never_up() {
    let place = |module: &str| ORDER.iter().position(|known| *known == module);
    let mut found = Vec::new();
    for (path, text) in sources("src") {
        let Some(ours) = module(&path) else { continue };
        let text: String = code(&text).map(|(_, line)| format!("{line}\n")).collect();
        for used in crate_paths(&text) {
            let mut parts = used.split("::");
            let theirs = parts.next().unwrap_or_default();
            let is_spec = parts.next() == Some("spec");
            if let (Some(from), Some(to)) = (place(&ours), place(theirs))
                && to < from
                && !is_spec
            {
                found.push(format!("{}: crate::{used}", path.display()));
            }
        }
    }
    refuse("calls that go up", found);
}

#[test]
fn only_the_edges_name_the_types_of_the_wire() {
    let allowed = ["cri", "cli", "proto"];
    let mut found = Vec::new();
    for (path, text) in sources("src") {
        if module(&path).is_some_and(|module| allowed.contains(&module.as_str())) {
            continue;
        }
        for (number, line) in code(&text) {
            if ["tonic", "prost"].iter().any(|word| has_word(line, word)) || line.contains("crate::proto") {
                found.push(format!("{}:{number}: {}", path.display(), line.trim()));
            }
        }
    }
    refuse("proto or tonic outside of cri/, cli/ and proto.rs", found);
}

#[test]
fn the_helpers_have_no_async_runtime() {
    // The daemon's end of the monitor is async; it is what `monitor/mod.rs` compiles for the daemon alone. So are tests.
    let monitor = fs::read_to_string(root().join("src/monitor/mod.rs")).unwrap();
    let mut daemon_only = BTreeSet::new();
    let lines: Vec<_> = monitor.lines().collect();
    for pair in lines.windows(2) {
        if pair[0].trim() == r#"#[cfg(feature = "daemon")]"# || pair[0].contains("(test") {
            let name = pair[1].trim_end_matches(';').rsplit(' ').next().unwrap_or_default();
            daemon_only.insert(name.to_owned());
        }
    }
    let mut found = Vec::new();
    for (path, text) in sources("src") {
        let Some(ours) = module(&path) else { continue };
        let part = path.components().nth(2).map(|part| part.as_os_str().to_string_lossy().into_owned());
        let part = part.unwrap_or_default();
        let helper = match ours.as_str() {
            "sandbox" | "sys" => true,
            "monitor" => !daemon_only.contains(part.trim_end_matches(".rs")),
            _ => false,
        };
        if helper {
            let lines = code(&text).filter(|(_, line)| has_word(line, "tokio") || has_word(line, "async"));
            found.extend(lines.map(|(number, line)| format!("{}:{number}: {}", path.display(), line.trim())));
        }
    }
    refuse("tokio or async in a helper", found);
}

#[test]
fn unsafe_code_and_libc_are_in_sys_alone() {
    let mut found = Vec::new();
    for (path, text) in sources("src") {
        if module(&path).as_deref() == Some("sys") {
            continue;
        }
        for (number, line) in code(&text) {
            if has_word(line, concat!("un", "safe")) || line.contains(concat!("lib", "c::")) {
                found.push(format!("{}:{number}: {}", path.display(), line.trim()));
            }
        }
    }
    refuse("unsafe code or libc outside of sys/", found);
}

#[test]
fn every_file_says_what_it_is() {
    let mut found = Vec::new();
    for folder in ["src", "tests"] {
        for (path, text) in sources(folder) {
            if !text.starts_with("//!") {
                found.push(path.display().to_string());
            } else if text.starts_with("//! Stub") {
                found.push(format!("{} is a stub", path.display()));
            }
        }
    }
    refuse("files that do not open with //!", found);
}

#[test]
fn a_lint_is_expected_with_a_reason_and_never_allowed() {
    let mut found = Vec::new();
    for folder in ["src", "tests"] {
        for (path, text) in sources(folder) {
            let patterns = [concat!("#[al", "low("), concat!("#![al", "low(")];
            let lines = code(&text).filter(|(_, line)| patterns.iter().any(|pattern| line.contains(pattern)));
            found.extend(lines.map(|(number, line)| format!("{}:{number}: {}", path.display(), line.trim())));
        }
    }
    refuse("use #[expect(lint, reason = \"…\")]", found);
}

#[test]
fn every_dependency_has_a_sentence_of_reason() {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let (mut in_dependencies, mut last, mut found) = (false, "", Vec::new());
    for line in manifest.lines() {
        if line.starts_with('[') {
            in_dependencies = line.ends_with("dependencies]");
        } else if in_dependencies && line.contains(" = ") && !last.starts_with("# ") {
            found.push(line.to_owned());
        }
        last = line;
    }
    refuse("dependencies without a comment on the line before", found);
}

#[test]
fn the_top_level_holds_what_the_map_names_and_nothing_else() {
    let names =
        fs::read_dir(root()).unwrap().map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
    let unknown = names.filter(|name| !name.starts_with('.') && !TOP_LEVEL.contains(&name.as_str()));
    refuse("files at the top level that have no place there", unknown.collect());
}

#[test]
fn nothing_names_a_developers_machine() {
    let patterns = [
        concat!("/ho", "me/"),
        concat!("/Us", "ers/"),
        concat!("/wo", "rk/wt"),
        concat!("/wo", "rk/main"),
        concat!("/wo", "rk/shared"),
        concat!("../sha", "red/"),
    ];
    let mut found = Vec::new();
    let folders = ["src", "tests", "deploy", "proto", ".ci", ".config", "critest"];
    let mut all: BTreeMap<_, _> = folders.iter().flat_map(|folder| files(folder)).collect();
    for name in ["Cargo.toml", "Makefile", "README.md", "build.rs", "deny.toml"] {
        all.insert(name.into(), fs::read_to_string(root().join(name)).unwrap_or_default());
    }
    for (path, text) in all {
        for (number, line) in text.lines().enumerate() {
            // The home of the user that tests put into images.
            let line = line.replace(concat!("/ho", "me/app"), "");
            if patterns.iter().any(|pattern| line.contains(pattern)) {
                found.push(format!("{}:{}: {}", path.display(), number + 1, line.trim()));
            }
        }
    }
    refuse("paths of a developer's machine", found);
}

#[test]
fn the_readme_points_at_files_that_exist() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let links = readme.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    let dead = links.filter(|link| !link.contains("://") && !root().join(link).exists()).map(str::to_owned);
    refuse("dead links in README.md", dead.collect());
}

#[test]
fn lines_of_scripts_and_texts_are_not_endless() {
    // rustfmt holds the sources to 110; what it does not see follows loosely.
    let mut found = Vec::new();
    for (path, text) in files("deploy").into_iter().chain(files("proto")) {
        let long =
            text.lines().enumerate().filter(|(_, line)| line.chars().count() > 160 && !line.starts_with('{'));
        let long = long.filter(|(_, line)| !line.starts_with("auth_files"));
        found.extend(long.map(|(number, _)| format!("{}:{}", path.display(), number + 1)));
    }
    refuse("lines beyond 160 characters", found);
}

#[test]
fn groups_of_imports_are_taken_apart() {
    let text = "use crate::{id::PodId, pod::{spec, run}};\nuse crate::sys::fd;\ncrate::units::Bytes(1)";
    assert_eq!(crate_paths(text), ["id::PodId", "pod::", "sys::fd", "units::Bytes"]);
    assert!(has_word("use tonic::x", "tonic") && !has_word("subtonic_x", "tonic"));
}

#[test]
fn the_map_lists_the_modules_in_the_order_in_which_they_may_call() {
    let map = fs::read_to_string(root().join("src/lib.rs")).expect("src/lib.rs");
    let listed: Vec<_> = map
        .lines()
        .filter_map(|line| line.trim_start_matches("pub ").strip_prefix("mod ")?.strip_suffix(';'))
        .collect();
    assert_eq!(listed, ORDER);
}
