//! Loads the AppArmor profile behind RuntimeDefault, where the host has AppArmor.
//!
//! Without it containers are refused rather than run unconfined, so a failure is said loudly and is no reason to stop: pods
//! that ask for another profile still run.

use std::io::{self, Write};
use std::process::{Command, Stdio};

use crate::container::bundle::SecurityModules;

/// The profile, as `make install` puts it into share/brig/apparmor too.
const PROFILE: &str = include_str!("../../deploy/apparmor/brig-default");
/// Debian, Ubuntu and openSUSE have it here.
const PARSER: &str = "apparmor_parser";

/// Loads the profile unless it is loaded. Blocking; takes a few milliseconds where there is something to do.
pub(super) fn ensure_default_profile(modules: &SecurityModules) {
    match load(modules, PARSER) {
        Ok(Loaded::Now) => tracing::info!("loaded the AppArmor profile of containers"),
        Ok(Loaded::Already | Loaded::NotNeeded) => {}
        Err(error) => tracing::error!(
            %error,
            "cannot load the AppArmor profile brig-default: containers that ask for no other are refused; \
             load deploy/apparmor/brig-default with apparmor_parser"
        ),
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Loaded {
    Now,
    Already,
    /// The host has no AppArmor.
    NotNeeded,
}

fn load(modules: &SecurityModules, parser: &str) -> io::Result<Loaded> {
    match modules.has_default_profile()? {
        None => return Ok(Loaded::NotNeeded),
        Some(true) => return Ok(Loaded::Already),
        Some(false) => {}
    }
    // sbin is in no service's PATH on some hosts.
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let mut child = Command::new(parser)
        .args(["--replace", "--skip-cache"])
        .env("PATH", path)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let written = child.stdin.take().expect("it is piped").write_all(PROFILE.as_bytes());
    let output = child.wait_with_output()?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        return Err(io::Error::other(format!("{parser} ended with {}: {}", output.status, text.trim())));
    }
    written.map(|()| Loaded::Now)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_profile_is_given_to_the_parser_where_apparmor_has_not_got_it() {
        let dir = tempfile::tempdir().unwrap();
        let sys = dir.path().join("sys");
        let modules = SecurityModules::at(&sys);
        let got = dir.path().join("got");
        let parser = dir.path().join("parser");
        let script = |code: u32| {
            format!(
                "#!/bin/sh\nif [ {code} = 0 ]; then cat >{}; else cat >&2; fi\nexit {code}\n",
                got.display()
            )
        };
        let write = |code| {
            std::fs::write(&parser, script(code)).unwrap();
            std::fs::set_permissions(&parser, std::fs::Permissions::from_mode(0o755)).unwrap();
        };
        write(0);
        let parser = parser.to_str().unwrap();
        assert_eq!(load(&modules, parser).unwrap(), Loaded::NotNeeded);
        for (file, text) in [
            ("module/apparmor/parameters/enabled", "Y\n"),
            ("kernel/security/apparmor/profiles", "other (enforce)\n"),
        ] {
            std::fs::create_dir_all(sys.join(file).parent().unwrap()).unwrap();
            std::fs::write(sys.join(file), text).unwrap();
        }
        assert_eq!(load(&modules, parser).unwrap(), Loaded::Now);
        assert_eq!(std::fs::read_to_string(&got).unwrap(), PROFILE);
        write(3);
        let why = load(&modules, parser).unwrap_err().to_string();
        assert!(why.contains("exit status: 3") && why.contains("brig-default"), "{why}");
        assert!(load(&modules, "/no/such/parser").is_err());
        std::fs::write(sys.join("kernel/security/apparmor/profiles"), "brig-default (enforce)\n").unwrap();
        assert_eq!(load(&modules, "/no/such/parser").unwrap(), Loaded::Already);
    }
}
