//! Identifiers: what can be confused is a type.
//!
//! Pod and container ids are 64 lower-case hex digits from the kernel's random source, as every CRI server makes
//! them and as `crictl` abbreviates them. A [`Digest`] is checked when it is parsed, so it may be used in a file name
//! or a URL without another look.

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Why a text is not an identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// A pod or container id with a wrong length or alphabet.
    #[error("{kind} id {text:?} is not 64 lower-case hex digits")]
    NotHex { kind: &'static str, text: String },
    /// A digest that is not `sha256:` and 64 lower-case hex digits.
    #[error("digest {0:?} is not \"sha256:\" followed by 64 lower-case hex digits")]
    BadDigest(String),
}

/// A pod or container id.
pub(crate) trait HexId: FromStr + Eq + Hash {
    /// What it identifies, for messages.
    const KIND: &str;

    /// All 64 digits.
    fn digits(&self) -> &str;
}

/// Why a text leads to no pod or container.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FindError {
    #[error("no {kind} {wanted:?}")]
    NotFound { kind: &'static str, wanted: String },
    #[error("{kind} id {prefix:?} is ambiguous: {matches} {kind}s begin with it; give more digits")]
    Ambiguous { kind: &'static str, prefix: String, matches: usize },
}

impl FindError {
    pub(crate) fn not_found<Id: HexId>(wanted: &str) -> Self {
        Self::NotFound { kind: Id::KIND, wanted: wanted.to_owned() }
    }
}

/// What stands in `table` under the one id that is or begins with `prefix`.
pub(crate) fn find<'a, Id: HexId, T>(table: &'a HashMap<Id, T>, prefix: &str) -> Result<&'a T, FindError> {
    if let Ok(id) = prefix.parse::<Id>() {
        return table.get(&id).ok_or_else(|| FindError::not_found::<Id>(prefix));
    }
    let mut found = table.iter().filter(|(id, _)| !prefix.is_empty() && id.digits().starts_with(prefix));
    match (found.next(), found.count()) {
        (None, _) => Err(FindError::not_found::<Id>(prefix)),
        (Some((_, one)), 0) => Ok(one),
        (Some(_), more) => {
            Err(FindError::Ambiguous { kind: Id::KIND, prefix: prefix.to_owned(), matches: more + 1 })
        }
    }
}

fn is_hex64(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

macro_rules! hex_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// A new id from the kernel's random source.
            pub fn random() -> Self {
                let mut bytes = [0u8; 32];
                let mut filled = 0;
                while filled < bytes.len() {
                    // getrandom(2) with flags 0 fails only before the pool is seeded and then blocks instead.
                    filled += rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty())
                        .expect("getrandom(2) without flags blocks rather than fails");
                }
                Self(hex(&bytes))
            }

            /// All 64 digits.
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// The first 13 digits, as tables show them.
            pub fn short(&self) -> &str {
                &self.0[..13]
            }
        }

        impl HexId for $name {
            const KIND: &str = $kind;

            fn digits(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                if is_hex64(text) {
                    Ok(Self(text.to_owned()))
                } else {
                    Err(IdError::NotHex { kind: $kind, text: text.to_owned() })
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(text: String) -> Result<Self, IdError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

hex_id!(
    /// A pod (CRI's PodSandbox).
    PodId, "pod"
);
hex_id!(
    /// A container.
    ContainerId, "container"
);

/// The sha256 digest of a blob, manifest, config or uncompressed layer, in its canonical form.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(String);

impl Digest {
    /// From the 32 raw bytes.
    pub fn from_bytes(bytes: &[u8; 32]) -> Self {
        Self(format!("sha256:{}", hex(bytes)))
    }

    /// `sha256:` and 64 hex digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The 64 hex digits alone, safe as a file name.
    pub fn hex(&self) -> &str {
        &self.0["sha256:".len()..]
    }
}

impl FromStr for Digest {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        match text.strip_prefix("sha256:") {
            Some(rest) if is_hex64(rest) => Ok(Self(text.to_owned())),
            _ => Err(IdError::BadDigest(text.to_owned())),
        }
    }
}

impl TryFrom<String> for Digest {
    type Error = IdError;
    fn try_from(text: String) -> Result<Self, IdError> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> String {
        digest.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Lower-case hex.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a String cannot fail");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_ids_differ_and_parse() {
        let (a, b) = (PodId::random(), PodId::random());
        assert_ne!(a, b);
        assert_eq!(a.as_str().parse::<PodId>().as_ref(), Ok(&a));
        assert_eq!(a.short().len(), 13);
    }

    #[test]
    fn an_id_is_found_by_as_many_digits_as_tell_it_from_the_others() {
        let id = |start: &str| -> PodId { format!("{start:0<64}").parse().unwrap() };
        let table: HashMap<PodId, u8> = [(id("ab1"), 1), (id("ab2"), 2), (id("c"), 3)].into();
        for (wanted, found) in [("ab1", 1), ("c", 3), (id("ab2").as_str(), 2)] {
            assert_eq!(find(&table, wanted), Ok(&found), "{wanted}");
        }
        for wanted in ["", "d", "AB1", id("ab3").as_str()] {
            assert_eq!(find(&table, wanted), Err(FindError::not_found::<PodId>(wanted)), "{wanted}");
        }
        let ambiguous = find(&table, "ab").unwrap_err();
        assert_eq!(
            ambiguous.to_string(),
            "pod id \"ab\" is ambiguous: 2 pods begin with it; give more digits"
        );
    }

    #[test]
    fn a_digest_that_could_leave_its_directory_does_not_parse() {
        for bad in [
            "sha256:../../etc/passwd",
            "sha256:",
            "md5:00",
            &format!("sha256:{}", "A".repeat(64)),
            &"0".repeat(64),
        ] {
            assert_eq!(bad.parse::<Digest>(), Err(IdError::BadDigest(bad.to_owned())), "{bad}");
        }
        let good = Digest::from_bytes(&[0xab; 32]);
        assert_eq!(good.hex(), "ab".repeat(32));
    }
}
