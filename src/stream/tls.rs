//! TLS of the streaming server: certificate, key and the authority that clients must be signed by, read again when the
//! files change. `brig`, its client, reads its files with the same two functions.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// Where the files are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TlsFiles {
    /// The server's certificate and those between it and its authority, PEM.
    pub cert: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
    /// Authorities of client certificates, PEM. `None` lets in clients without a certificate.
    pub client_ca: Option<PathBuf>,
}

/// Why TLS cannot be spoken with these files.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsError {
    #[error("cannot read {what} from {}", path.display())]
    Read {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: rustls_pki_types::pem::Error,
    },
    #[error("{} holds no certificate; it must be PEM", .0.display())]
    Empty(PathBuf),
    #[error("certificate {} and key {} cannot be used", cert.display(), key.display())]
    Pair {
        cert: PathBuf,
        key: PathBuf,
        #[source]
        source: rustls::Error,
    },
    #[error("{} cannot be used as an authority", path.display())]
    Authority {
        path: PathBuf,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// What tells one content of a file from another without reading it.
type Stamp = Vec<Option<(u64, u64, i64, i64)>>;

/// The configuration in force.
#[derive(Debug)]
pub(super) struct Tls {
    files: TlsFiles,
    current: Mutex<(Stamp, Arc<ServerConfig>)>,
}

impl Tls {
    /// Reads the files. Blocking.
    pub(super) fn open(files: TlsFiles) -> Result<Self, TlsError> {
        // Before the content, so that a change in between is seen next time.
        let stamp = stamp(&files);
        let config = Arc::new(read(&files)?);
        Ok(Self { files, current: Mutex::new((stamp, config)) })
    }

    /// The configuration of the files as they are now. Files that cannot be used are reported, and what was read
    /// before stays in force. Looks at the disk: three stat(2).
    pub(super) fn current(&self) -> Arc<ServerConfig> {
        let stamp = stamp(&self.files);
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.0 != stamp {
            match read(&self.files) {
                Ok(config) => {
                    tracing::info!(cert = %self.files.cert.display(), "reading the streaming server's certificate again");
                    *current = (stamp, Arc::new(config));
                }
                Err(error) => {
                    let error = crate::task::chain(&error);
                    tracing::warn!(%error, "the streaming server keeps its former certificate");
                    // Not tried again until the files change again.
                    current.0 = stamp;
                }
            }
        }
        Arc::clone(&current.1)
    }
}

fn stamp(files: &TlsFiles) -> Stamp {
    let of = |meta: Metadata| (meta.ino(), meta.size(), meta.mtime(), meta.mtime_nsec());
    let paths = [Some(&files.cert), Some(&files.key), files.client_ca.as_ref()];
    paths.into_iter().flatten().map(|path| path.metadata().ok().map(of)).collect()
}

fn read(files: &TlsFiles) -> Result<ServerConfig, TlsError> {
    let certificates = certificates("the certificate", &files.cert)?;
    let key = private_key(&files.key)?;
    let builder = match &files.client_ca {
        None => ServerConfig::builder().with_no_client_auth(),
        Some(path) => {
            let refused = |source| TlsError::Authority { path: path.clone(), source };
            let mut authorities = RootCertStore::empty();
            for certificate in self::certificates("the client authority", path)? {
                authorities.add(certificate).map_err(|error| refused(error.into()))?;
            }
            let verifier = WebPkiClientVerifier::builder(authorities.into()).build();
            ServerConfig::builder()
                .with_client_cert_verifier(verifier.map_err(|error| refused(error.into()))?)
        }
    };
    let mut config = builder.with_single_cert(certificates, key).map_err(|source| TlsError::Pair {
        cert: files.cert.clone(),
        key: files.key.clone(),
        source,
    })?;
    // An upgrade is HTTP/1.1's.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// All certificates of a PEM file, at least one. Blocking.
pub(crate) fn certificates(
    what: &'static str,
    path: &Path,
) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let error = |source| TlsError::Read { what, path: path.to_owned(), source };
    let all: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).map_err(error)?.collect();
    match all.map_err(error)? {
        none if none.is_empty() => Err(TlsError::Empty(path.to_owned())),
        all => Ok(all),
    }
}

/// The private key in a PEM file. Blocking.
pub(crate) fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_file(path).map_err(|source| TlsError::Read {
        what: "the private key",
        path: path.to_owned(),
        source,
    })
}
