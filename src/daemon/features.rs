//! What a foreign OCI runtime can do, by its own word: `RUNTIME features` of the runtime-spec (runc 1.1, crun 1.8), and
//! whether it is gVisor's, by `RUNTIME --version`.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use tokio::process::Command;

use crate::container::bundle::capabilities_but;
use crate::container::handler::Features;

/// The start of the daemon waits for it; runc takes some 20 ms.
const WAIT: Duration = Duration::from_secs(2);

/// What a gVisor that is too old to be asked does not know: CAP_PERFMON, CAP_BPF and CAP_CHECKPOINT_RESTORE, of Linux 5.8
/// and 5.9. Its sandbox does not start with a capability without a name (release 20221219, runsc/cmd/capability.go).
const UNKNOWN_TO_OLD_GVISOR: u64 = 0b111 << 38;

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
    capabilities: Vec<String>,
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
        ..Features::default()
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
    let output = |word: &str| {
        let output = Command::new(runtime)
            .arg(word)
            .current_dir("/")
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .output();
        async {
            match tokio::time::timeout(WAIT, output).await {
                Ok(Ok(output)) if output.status.success() => output.stdout,
                _ => Vec::new(),
            }
        }
    };
    let (features, version) = futures_util::future::join(output("features"), output("--version")).await;
    parse(&features, &version)
}

fn parse(features: &[u8], version: &[u8]) -> Features {
    let own_kernel = version.starts_with(b"runsc version ");
    let Ok(answer) = serde_json::from_slice::<Answer>(features) else {
        let unknown_capabilities = if own_kernel { UNKNOWN_TO_OLD_GVISOR } else { 0 };
        return Features { own_kernel, unknown_capabilities, ..Features::default() };
    };
    let known = &answer.linux.capabilities;
    Features {
        recursive_read_only: answer.mount_options.iter().any(|option| option == "rro"),
        // Volumes of a pod with a user namespace come with mappings of their own.
        user_namespaces: answer.linux.mount_extensions.idmap.enabled,
        own_kernel,
        // Who names none has not said.
        unknown_capabilities: if known.is_empty() { 0 } else { capabilities_but(known) },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runtime_can_do_what_it_says_and_no_more() {
        let rro = Features { recursive_read_only: true, ..Features::default() };
        let both = br#"{"mountOptions":["ro","rro"],"linux":{"mountExtensions":{"idmap":{"enabled":true}}}}"#;
        assert_eq!(parse(both, b"runc version 1.2.0"), Features { user_namespaces: true, ..rro });
        let runc_1_1 = br#"{"ociVersionMin":"1.0.0","mountOptions":["rro"],"linux":{"namespaces":["user"]}}"#;
        assert_eq!(parse(runc_1_1, b"runc version 1.1.5"), rro);
        assert_eq!(parse(b"Incorrect Usage", b""), Features::default());
    }

    #[test]
    fn a_runtime_is_not_asked_for_capabilities_that_it_does_not_know() {
        let one = br#"{"linux":{"capabilities":["CAP_CHOWN","CAP_DAC_READ_SEARCH"]}}"#;
        assert_eq!(parse(one, b"").unknown_capabilities, ((1 << 41) - 1) & !0b101);
        let gvisor = b"runsc version 0.0~20221219.0\nspec: 1.0.2-dev\n";
        let old = Features { own_kernel: true, unknown_capabilities: 0b111 << 38, ..Features::default() };
        assert_eq!(parse(b"", gvisor), old);
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
