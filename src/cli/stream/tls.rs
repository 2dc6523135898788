//! TLS to the daemon's streaming server, where its URLs begin with `https`: whom we trust, who we are, and what to do when
//! one side refuses the other.

use std::error::Error;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use hyper::http::uri::Authority;
use rustls::{AlertDescription, CertificateError, ClientConfig, RootCertStore};
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::super::error::CliError;
use crate::stream::tls::{TlsError, certificates, private_key};

/// The options are crictl's, and so is what they mean. They matter only where the server speaks TLS.
#[derive(Debug, Clone, Default, Args)]
pub(in crate::cli) struct TlsArgs {
    /// Authorities that the streaming server must have its certificate of, PEM, instead of this machine's own.
    #[arg(long, env = "BRIG_TLS_CA", value_name = "FILE", help_heading = HEADING)]
    tls_ca: Option<PathBuf>,
    /// A certificate to show, where the streaming server wants one, PEM.
    #[arg(long, env = "BRIG_TLS_CERT", value_name = "FILE", requires = "tls_key", help_heading = HEADING)]
    tls_cert: Option<PathBuf>,
    /// The private key of --tls-cert, PEM.
    #[arg(long, env = "BRIG_TLS_KEY", value_name = "FILE", requires = "tls_cert", help_heading = HEADING)]
    tls_key: Option<PathBuf>,
    /// What the streaming server's certificate is for, instead of the address in its URL.
    #[arg(
        long, env = "BRIG_TLS_SERVER_NAME", value_name = "NAME", visible_alias = "tls-sni", help_heading = HEADING
    )]
    tls_server_name: Option<String>,
}

const HEADING: &str = "Streams over TLS";

impl TlsArgs {
    /// Reads the files that are named, and shakes hands. Blocks for them, which nothing else waits for.
    pub(super) async fn connect(
        &self,
        stream: TcpStream,
        authority: &Authority,
    ) -> Result<TlsStream<TcpStream>, CliError> {
        let named = self.tls_server_name.as_deref().unwrap_or(authority.host());
        // A URL has the address in brackets if it is IPv6.
        let named = named.trim_start_matches('[').trim_end_matches(']');
        let name = ServerName::try_from(named.to_owned()).map_err(|_| CliError::Argument {
            option: "--tls-server-name",
            value: named.to_owned(),
            must: "a DNS name or an IP address",
        })?;
        let connector = TlsConnector::from(Arc::new(self.config()?));
        connector.connect(name, stream).await.map_err(|error| failed(authority, error))
    }

    fn config(&self) -> Result<ClientConfig, TlsError> {
        let mut roots = RootCertStore::empty();
        match &self.tls_ca {
            Some(path) => {
                for certificate in certificates("the authorities", path)? {
                    roots
                        .add(certificate)
                        .map_err(|error| TlsError::Authority { path: path.clone(), source: error.into() })?;
                }
            }
            // What cannot be read is missing then, and the server is not trusted.
            None => {
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            }
        }
        let builder = ClientConfig::builder().with_root_certificates(roots);
        match self.tls_cert.as_ref().zip(self.tls_key.as_ref()) {
            None => Ok(builder.with_no_client_auth()),
            Some((cert, key)) => {
                let (chain, private) = (certificates("the certificate", cert)?, private_key(key)?);
                builder.with_client_auth_cert(chain, private).map_err(|source| TlsError::Pair {
                    cert: cert.clone(),
                    key: key.clone(),
                    source,
                })
            }
        }
    }
}

/// An error of a connection to the streaming server, with a remedy if it is one of TLS. With TLS 1.3 a server may refuse our
/// certificate as late as at the first answer.
pub(super) fn failed(authority: &Authority, error: impl Error + Send + Sync + 'static) -> CliError {
    let address = authority.to_string();
    match tls_error(&error) {
        Some(source) => CliError::StreamTls { address, remedy: remedy(source), source: source.clone() },
        None => CliError::Dial { address, source: io::Error::other(error) },
    }
}

fn tls_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(tls) = error.downcast_ref() {
            return Some(tls);
        }
        // io::Error's source() is the source of what it wraps, and not what it wraps.
        let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        cause = match wrapped {
            Some(wrapped) => Some(wrapped),
            None => error.source(),
        };
    }
    None
}

fn remedy(error: &rustls::Error) -> &'static str {
    use AlertDescription as Alert;
    match error {
        rustls::Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => "say with --tls-server-name or BRIG_TLS_SERVER_NAME what its certificate is for",
        // A signature that does not fit is what an authority gets that was made anew under its former name.
        rustls::Error::InvalidCertificate(
            CertificateError::UnknownIssuer | CertificateError::BadSignature,
        ) => "name the authority of its certificate with --tls-ca or BRIG_TLS_CA",
        rustls::Error::InvalidCertificate(_) => {
            "give it another one as tls_cert in [stream] of its configuration"
        }
        rustls::Error::AlertReceived(Alert::CertificateRequired | Alert::HandshakeFailure) => {
            "it wants a certificate of one of its tls_client_ca in [stream]: show one with --tls-cert and --tls-key, or \
             BRIG_TLS_CERT and BRIG_TLS_KEY"
        }
        rustls::Error::AlertReceived(_) => {
            "it refuses our certificate: show one of its tls_client_ca in [stream] with --tls-cert and --tls-key, or \
             BRIG_TLS_CERT and BRIG_TLS_KEY"
        }
        _ => "its log may say more, at level debug",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_tls_is_found_within_others_and_has_a_remedy() {
        let authority = Authority::from_static("[::1]:80");
        let refused = rustls::Error::AlertReceived(AlertDescription::CertificateRequired);
        let error = failed(&authority, io::Error::other(io::Error::new(io::ErrorKind::InvalidData, refused)));
        assert!(error.to_string().contains("--tls-cert"), "{error}");
        assert_eq!(error.source().unwrap().to_string(), "received fatal alert: CertificateRequired");
        let error = failed(&authority, io::Error::from(io::ErrorKind::ConnectionRefused));
        assert!(matches!(error, CliError::Dial { .. }), "{error}");
    }
}
