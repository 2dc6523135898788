//! What a foreign OCI runtime can do, by its own word: `RUNTIME features` of the runtime-spec (runc 1.1, crun 1.8).

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use tokio::process::Command;

use crate::container::handler::Features;

/// The start of the daemon waits for it; runc takes some 20 ms.
const WAIT: Duration = Duration::from_secs(2);

/// The part of the answer that concerns us.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Answer {
    mount_options: Vec<String>,
    linux: Linux,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Linux {
    mount_extensions: MountExtensions,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct MountExtensions {
    idmap: Extension,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Extension {
    enabled: bool,
}

/// What the bundled sandbox can do on this kernel.
pub(super) fn of_bundled() -> Features {
    let running = rustix::system::uname();
    // Before 5.19 overlayfs has no layers on idmapped mounts, so an image's files would belong to nobody in there.
    Features {
        recursive_read_only: true,
        user_namespaces: is_at_least(&running.release().to_string_lossy(), (5, 19)),
    }
}

/// A kernel's release is `6.12.3-cloud-amd64` or the like.
fn is_at_least(release: &str, least: (u32, u32)) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|digits| digits.parse::<u32>().ok());
    matches!((numbers.next(), numbers.next()), (Some(Some(major)), Some(Some(minor))) if (major, minor) >= least)
}

/// Asks the runtime. One that is missing, too old to be asked or too slow can do nothing special: claiming too much
/// breaks pods.
pub(super) async fn ask(runtime: &Path) -> Features {
    let output = Command::new(runtime)
        .arg("features")
        .current_dir("/")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .output();
    match tokio::time::timeout(WAIT, output).await {
        Ok(Ok(output)) if output.status.success() => parse(&output.stdout),
        _ => Features::default(),
    }
}

fn parse(text: &[u8]) -> Features {
    let Ok(answer) = serde_json::from_slice::<Answer>(text) else { return Features::default() };
    Features {
        recursive_read_only: answer.mount_options.iter().any(|option| option == "rro"),
        // Volumes of a pod with a user namespace come with mappings of their own.
        user_namespaces: answer.linux.mount_extensions.idmap.enabled,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runtime_can_do_what_it_says_and_no_more() {
        let both = br#"{"mountOptions":["ro","rro"],"linux":{"mountExtensions":{"idmap":{"enabled":true}}}}"#;
        assert_eq!(parse(both), Features { recursive_read_only: true, user_namespaces: true });
        let runc_1_1 = br#"{"ociVersionMin":"1.0.0","mountOptions":["rro"],"linux":{"namespaces":["user"]}}"#;
        assert_eq!(parse(runc_1_1), Features { recursive_read_only: true, user_namespaces: false });
        assert_eq!(parse(b"Incorrect Usage"), Features::default());
    }

    #[test]
    fn user_namespaces_want_layers_on_idmapped_mounts() {
        for (release, expected) in [
            ("6.12.3-cloud-amd64", true),
            ("5.19", true),
            ("5.18.99", false),
            ("7.0-rc1", true),
            ("odd", false),
        ] {
            assert_eq!(is_at_least(release, (5, 19)), expected, "{release}");
        }
    }

    #[tokio::test]
    async fn a_runtime_that_is_missing_can_do_nothing_special() {
        assert_eq!(ask(Path::new("/nonexistent/runtime")).await, Features::default());
    }
}
