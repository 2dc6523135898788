//! The registry client: from a reference to verified documents and streams of blobs.
//!
//! ```text
//! Session ── one per pull: hosts.toml and credentials as they are now
//!   └ Peer ── one per endpoint, in order: mirrors, then the server
//!       ├ Transport ── hyper and rustls with this endpoint's TLS settings, through a proxy if the environment names one
//!       └ Authorization ── learnt from the first 401, kept for the pull and no longer
//! ```
//!
//! It is a client of our own on hyper rather than the `oci-client` crate, because what operators write in containerd's
//! hosts.toml (a path prefix, headers, authorities, client certificates and `skip_verify` per host, mirrors in order
//! with capabilities, the `ns` parameter) cannot be told to that crate, and because which host sees a credential must
//! be decided in one place that can be read. It is also one HTTP stack less.
//!
//! What a registry may make us do is bounded: documents of 4 MiB, five redirects, a few retries, no byte for a minute.

pub(crate) mod platform;

pub(crate) mod manifest;

mod session;
pub(crate) use session::{Limits, RegistryConfig, Session};

mod blob;
pub(crate) use blob::Blob;

mod token;

mod transport;

mod proxy;
pub(crate) use proxy::Proxies;

pub(crate) mod auth;

pub(crate) mod hosts;

mod error;
pub(crate) use error::RegistryError;
