//! The bandwidth annotations of a pod, read and checked.

use std::collections::BTreeMap;

/// To the pod.
const INGRESS: &str = "kubernetes.io/ingress-bandwidth";
/// From the pod.
const EGRESS: &str = "kubernetes.io/egress-bandwidth";
/// The bounds Kubernetes sets (`pkg/util/bandwidth`): 1k to 1P, in bits per second.
const BITS_MIN: u64 = 1_000;
const BITS_MAX: u64 = 1_000_000_000_000_000;

/// Limits in bits per second.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Bandwidth {
    pub ingress: Option<u64>,
    pub egress: Option<u64>,
}

/// An annotation that is no bandwidth.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum BandwidthError {
    #[error("annotation {key}: {value:?} is no quantity such as 10M or 1Gi")]
    NotAQuantity { key: &'static str, value: String },
    #[error("annotation {key}: {value:?} is outside 1k to 1P bits per second")]
    OutOfRange { key: &'static str, value: String },
}

impl Bandwidth {
    pub(super) fn of(annotations: &BTreeMap<String, String>) -> Result<Self, BandwidthError> {
        let read = |key: &'static str| match annotations.get(key) {
            None => Ok(None),
            Some(value) => {
                let value = value.clone();
                match quantity(&value) {
                    None => Err(BandwidthError::NotAQuantity { key, value }),
                    Some(bits) if (BITS_MIN as f64..=BITS_MAX as f64).contains(&bits) => {
                        Ok(Some(bits as u64))
                    }
                    Some(_) => Err(BandwidthError::OutOfRange { key, value }),
                }
            }
        };
        Ok(Self { ingress: read(INGRESS)?, egress: read(EGRESS)? })
    }
}

/// A Kubernetes quantity: decimal number, then a decimal exponent, or an SI or binary suffix.
fn quantity(text: &str) -> Option<f64> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    if number.is_empty() || number.len() > 32 || !number.bytes().any(|b| b.is_ascii_digit()) {
        return None;
    }
    let factor = match suffix {
        "n" => 1e-9,
        "u" => 1e-6,
        "m" => 1e-3,
        "" => 1.0,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "P" => 1e15,
        "E" => 1e18,
        "Ki" => 1024f64,
        "Mi" => 1024f64.powi(2),
        "Gi" => 1024f64.powi(3),
        "Ti" => 1024f64.powi(4),
        "Pi" => 1024f64.powi(5),
        "Ei" => 1024f64.powi(6),
        exponent => 10f64.powi(exponent.strip_prefix(['e', 'E'])?.parse::<i8>().ok()?.into()),
    };
    Some(number.parse::<f64>().ok()? * factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ingress(value: &str) -> Result<Option<u64>, BandwidthError> {
        Bandwidth::of(&[(INGRESS.to_owned(), value.to_owned())].into()).map(|b| b.ingress)
    }

    #[test]
    fn quantities_are_read_as_kubernetes_writes_them() {
        for (text, bits) in [
            ("10M", 10_000_000),
            ("1Gi", 1 << 30),
            ("1.5k", 1500),
            ("1e6", 1_000_000),
            ("2000", 2000),
            ("1P", BITS_MAX),
        ] {
            assert_eq!(ingress(text), Ok(Some(bits)), "{text}");
        }
        for text in ["", "M", "10MB", "-5M", "1e", "1e999", "NaN", "inf", "1..2", " 1M", "ten"] {
            assert!(matches!(ingress(text), Err(BandwidthError::NotAQuantity { .. })), "{text}");
        }
        for text in ["999", "0", "2P", "1E"] {
            assert!(matches!(ingress(text), Err(BandwidthError::OutOfRange { .. })), "{text}");
        }
        assert_eq!(Bandwidth::of(&BTreeMap::new()), Ok(Bandwidth::default()));
    }
}
