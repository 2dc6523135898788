//! Which of an index's images runs here.
//!
//! Names and their order of preference are those of containerd's `platforms` package: `amd64` with micro-architecture
//! levels, then 386; `arm64`, then 32-bit arm from v8 down; `arm` from its own version down.

use std::fmt;

use serde::{Deserialize, Serialize};

/// An operating system and processor, as image indexes name them.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Platform {
    pub(crate) os: String,
    pub(crate) architecture: String,
    #[serde(default)]
    pub(crate) variant: String,
}

impl Platform {
    /// What this machine is.
    pub(crate) fn host() -> Self {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", amd64_level()),
            "x86" => ("386", ""),
            "aarch64" => ("arm64", "v8"),
            "arm" => ("arm", "v7"),
            "powerpc64" => ("ppc64le", ""),
            "loongarch64" => ("loong64", ""),
            other => (other, ""),
        };
        Self { os: "linux".to_owned(), architecture: architecture.to_owned(), variant: variant.to_owned() }
            .normalised()
    }

    /// One name for each thing: `x86_64` is amd64, `arm` is v7 unless it says otherwise, `arm64/v8` is arm64.
    pub(crate) fn normalised(&self) -> Self {
        let (os, architecture, variant) = (
            self.os.to_ascii_lowercase(),
            self.architecture.to_ascii_lowercase(),
            self.variant.to_ascii_lowercase(),
        );
        let (architecture, variant) = match (architecture.as_str(), variant.as_str()) {
            ("x86_64" | "x86-64" | "amd64", "v1" | "") => ("amd64", ""),
            ("x86_64" | "x86-64", variant) => ("amd64", variant),
            ("i386", _) => ("386", ""),
            ("aarch64" | "arm64", "8" | "v8" | "") => ("arm64", ""),
            ("aarch64", variant) => ("arm64", variant),
            ("armhf", _) | ("arm", "" | "7") => ("arm", "v7"),
            ("armel", _) | ("arm", "6") => ("arm", "v6"),
            ("arm", "5") => ("arm", "v5"),
            ("arm", "8") => ("arm", "v8"),
            (architecture, variant) => (architecture, variant),
        };
        Self { os, architecture: architecture.to_owned(), variant: variant.to_owned() }
    }

    /// How well an image for `other` suits this platform: 0 is best, `None` does not run.
    pub(crate) fn rank(&self, other: &Platform) -> Option<usize> {
        let (own, other) = (self.normalised(), other.normalised());
        if own.os != other.os {
            return None;
        }
        let level = |variant: &str, none: u32| match variant.strip_prefix('v') {
            _ if variant.is_empty() => Some(none),
            Some(number) => number.split('.').next()?.parse::<u32>().ok(),
            None => None,
        };
        // Lower levels run on higher ones, and the nearest is the best.
        let down = |from: u32, to: u32| from.checked_sub(to).map(|steps| steps as usize);
        match (own.architecture.as_str(), other.architecture.as_str()) {
            ("amd64", "amd64") => down(level(&own.variant, 1)?, level(&other.variant, 1)?),
            ("amd64", "386") => Some(100),
            ("arm", "arm") => down(level(&own.variant, 7)?, level(&other.variant, 7)?),
            ("arm64", "arm64") => down(level(&own.variant, 8)?, level(&other.variant, 8)?),
            ("arm64", "arm") => down(8, level(&other.variant, 7)?).map(|steps| 100 + steps),
            _ => (own == other).then_some(0),
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if self.variant.is_empty() { Ok(()) } else { write!(f, "/{}", self.variant) }
    }
}

/// The x86-64 micro-architecture level (psABI, "Micro-Architecture Levels"), by the features that tell them apart.
#[cfg(target_arch = "x86_64")]
fn amd64_level() -> &'static str {
    if !(std::is_x86_feature_detected!("sse4.2") && std::is_x86_feature_detected!("popcnt")) {
        return "";
    }
    if !(std::is_x86_feature_detected!("avx2")
        && std::is_x86_feature_detected!("bmi1")
        && std::is_x86_feature_detected!("bmi2")
        && std::is_x86_feature_detected!("fma")
        && std::is_x86_feature_detected!("lzcnt")
        && std::is_x86_feature_detected!("movbe"))
    {
        return "v2";
    }
    if !(std::is_x86_feature_detected!("avx512f")
        && std::is_x86_feature_detected!("avx512bw")
        && std::is_x86_feature_detected!("avx512cd")
        && std::is_x86_feature_detected!("avx512dq")
        && std::is_x86_feature_detected!("avx512vl"))
    {
        return "v3";
    }
    "v4"
}

#[cfg(not(target_arch = "x86_64"))]
fn amd64_level() -> &'static str {
    ""
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(text: &str) -> Platform {
        let mut parts = text.split('/').map(str::to_owned);
        Platform {
            os: parts.next().unwrap(),
            architecture: parts.next().unwrap(),
            variant: parts.next().unwrap_or_default(),
        }
    }

    #[test]
    fn the_nearest_platform_that_runs_is_the_best() {
        for (own, offered, best) in [
            (
                "linux/amd64/v3",
                &["linux/arm64", "linux/amd64", "linux/amd64/v2", "linux/amd64/v4"][..],
                Some(2),
            ),
            ("linux/amd64", &["linux/amd64/v2", "linux/386", "linux/amd64"], Some(2)),
            ("linux/amd64", &["windows/amd64", "linux/386"], Some(1)),
            ("linux/x86_64", &["linux/amd64"], Some(0)),
            ("linux/arm64", &["linux/arm/v7", "linux/arm64/v8"], Some(1)),
            ("linux/arm64", &["linux/arm/v6", "linux/arm/v7"], Some(1)),
            ("linux/arm64", &["linux/amd64"], None),
            ("linux/arm/v7", &["linux/arm/v8", "linux/arm/v5", "linux/arm/v6"], Some(2)),
            ("linux/arm/v6", &["linux/arm"], None),
            ("linux/s390x", &["linux/s390x"], Some(0)),
            ("linux/amd64", &["unknown/unknown"], None),
        ] {
            let own = platform(own);
            let ranked = offered
                .iter()
                .enumerate()
                .filter_map(|(at, text)| own.rank(&platform(text)).map(|rank| (rank, at)));
            assert_eq!(ranked.min().map(|(_, at)| at), best, "{own} of {offered:?}");
        }
    }

    #[test]
    fn the_host_runs_images_for_itself() {
        let host = Platform::host();
        assert_eq!(host.rank(&host), Some(0));
        assert_eq!(host.os, "linux");
    }
}
