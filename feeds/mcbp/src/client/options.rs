//! How to connect to a node.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

use super::error::{ClientError, ClientResult, Fault};
use crate::hello::Feature;
use crate::sasl::Password;

/// How to connect to a node, whichever it is.
#[derive(Clone, Debug)]
pub struct ConnectOptions {
    /// Who connects, for the server's log.
    pub agent: String,
    /// The bucket to select.
    pub bucket: String,
    /// How to prove who connects.
    pub login: Login,
    /// TLS, if it is to be used.
    pub tls: Option<Tls>,
    /// Features to ask for; a server grants those that it has.
    pub features: Vec<Feature>,
    /// Longest wait for a connection, TLS included.
    pub connect_timeout: Duration,
    /// Longest wait for an answer.
    pub answer_timeout: Duration,
}

/// How to prove who connects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Login {
    /// By a name and a password.
    Password {
        /// The name.
        user: String,
        /// The password.
        password: Password,
        /// Whether the password may be sent as it is where there is no TLS, if the server offers nothing better.
        allow_plain: bool,
    },
    /// By the certificate that is part of TLS.
    Certificate,
    /// Not at all: old servers let anyone read the bucket `default`.
    Anonymous,
}

/// What to trust, and what to show, with TLS. `Debug` shows neither.
#[derive(Clone)]
pub struct Tls {
    config: Arc<ClientConfig>,
    has_certificate: bool,
}

impl Tls {
    /// Reads certificates: of the authorities to trust (instead of those built in), and the client's own with its key. Reads files, so
    /// it blocks.
    ///
    /// # Errors
    /// `Invalid`, naming the file that cannot be read or has no certificate or key in it.
    pub fn new(authorities: Option<&Path>, client: Option<(&Path, &Path)>) -> ClientResult<Tls> {
        let mut roots = RootCertStore::empty();
        match authorities {
            None => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
            Some(file) => {
                for certificate in certificates(file)? {
                    roots.add(certificate).map_err(|error| unusable(file, "certificate", error))?;
                }
            }
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| ClientError::new(Fault::Invalid, "TLS has no usable protocol version").with_source(error))?
            .with_root_certificates(roots);
        let config = match client {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let chain = certificates(certificate)?;
                let secret = PrivateKeyDer::from_pem_file(key).map_err(|error| unusable(key, "private key", error))?;
                builder.with_client_auth_cert(chain, secret).map_err(|error| unusable(key, "key of the certificate", error))?
            }
        };
        Ok(Tls { config: Arc::new(config), has_certificate: client.is_some() })
    }

    /// Whether it shows a certificate of the client.
    pub fn has_certificate(&self) -> bool {
        self.has_certificate
    }

    pub(super) fn config(&self) -> Arc<ClientConfig> {
        self.config.clone()
    }
}

fn certificates(file: &Path) -> ClientResult<Vec<CertificateDer<'static>>> {
    let read = || CertificateDer::pem_file_iter(file)?.collect::<Result<Vec<_>, _>>();
    let found = read().map_err(|error| unusable(file, "certificate", error))?;
    if found.is_empty() {
        return Err(ClientError::new(Fault::Invalid, format!("the file {} has no certificate (PEM) in it", file.display())));
    }
    Ok(found)
}

fn unusable(file: &Path, what: &str, error: impl std::error::Error + Send + Sync + 'static) -> ClientError {
    let message = format!("the file {} cannot be read, or holds no usable {what} (PEM)", file.display());
    ClientError::new(Fault::Invalid, message).with_source(error)
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("has_certificate", &self.has_certificate).finish_non_exhaustive()
    }
}
