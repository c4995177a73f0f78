//! TLS of a node: its certificate, and what it asks of clients. The handshake is without I/O: bytes come in, bytes go out.

use std::io::{self, Read as _, Write as _};
use std::sync::Arc;

use bytes::{BufMut as _, BytesMut};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection};

use crate::certificates::Certified;

/// TLS of all nodes.
#[derive(Clone, Debug)]
pub struct TlsConfig {
    /// The nodes' certificate.
    pub server: Certified,
    /// What is asked of clients.
    pub clients: ClientCertificates,
}

/// What is asked of clients over TLS (protocol, section 2.2).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ClientCertificates {
    /// No certificate.
    #[default]
    Ignored,
    /// A certificate of this authority (PEM) may stand for the user whose name it has; without one a password does.
    Enabled(String),
    /// A certificate of this authority (PEM), of a user who is known.
    Mandatory(String),
}

impl TlsConfig {
    /// Nodes with this certificate, which ask nothing of clients.
    pub fn new(server: Certified) -> Self {
        TlsConfig { server, clients: ClientCertificates::Ignored }
    }

    pub(crate) fn is_certificate_mandatory(&self) -> bool {
        matches!(self.clients, ClientCertificates::Mandatory(_))
    }

    /// What connections are made with.
    pub(crate) fn server_config(&self) -> io::Result<Arc<ServerConfig>> {
        let wrong =
            |what: &str| io::Error::new(io::ErrorKind::InvalidInput, format!("the cluster's TLS: no usable {what} (PEM)"));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone());
        let builder = builder.with_safe_default_protocol_versions().map_err(io::Error::other)?;
        let builder = match &self.clients {
            ClientCertificates::Ignored => builder.with_no_client_auth(),
            ClientCertificates::Enabled(pem) | ClientCertificates::Mandatory(pem) => {
                let mut roots = RootCertStore::empty();
                for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
                    let certificate = certificate.map_err(|_| wrong("certificate of the clients' authority"))?;
                    roots.add(certificate).map_err(|_| wrong("certificate of the clients' authority"))?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                let verifier = if self.is_certificate_mandatory() { verifier } else { verifier.allow_unauthenticated() };
                let verifier = verifier.build().map_err(|_| wrong("certificate of the clients' authority"))?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let chain = CertificateDer::pem_slice_iter(self.server.certificate.as_bytes()).collect::<Result<Vec<_>, _>>();
        let chain = chain.map_err(|_| wrong("certificate of the nodes"))?;
        let key = PrivateKeyDer::from_pem_slice(self.server.key.as_bytes()).map_err(|_| wrong("key of the nodes"))?;
        Ok(Arc::new(builder.with_single_cert(chain, key).map_err(|_| wrong("pair of the nodes' certificate and key"))?))
    }
}

/// One connection's TLS.
#[derive(Debug)]
pub(crate) struct Tls {
    connection: ServerConnection,
    is_open: bool,
    /// What is to be sent.
    pub(crate) sealed: BytesMut,
}

/// What became of bytes that have arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Opened {
    /// The content is appended.
    Content,
    /// The handshake is over with these bytes, and the client has shown a certificate with this user's name, or none. The content is
    /// appended.
    Handshake(Option<String>),
}

impl Tls {
    pub(crate) fn new(config: Arc<ServerConfig>) -> io::Result<Tls> {
        let mut connection = ServerConnection::new(config).map_err(io::Error::other)?;
        // What is sealed is limited by whoever seals.
        connection.set_buffer_limit(None);
        Ok(Tls { connection, is_open: false, sealed: BytesMut::new() })
    }

    /// Takes bytes that have arrived, all of them, and appends their content.
    ///
    /// # Errors
    /// If the client does not keep to TLS, or is refused; what it is told about that is to be sent all the same.
    pub(crate) fn open(&mut self, mut arrived: &[u8], content: &mut BytesMut) -> io::Result<Opened> {
        let mut opened = Opened::Content;
        while !arrived.is_empty() {
            self.connection.read_tls(&mut arrived)?;
            let processed = self.connection.process_new_packets();
            self.collect()?;
            let len = processed.map_err(io::Error::other)?.plaintext_bytes_to_read();
            let before = content.len();
            content.put_bytes(0, len);
            self.connection.reader().read_exact(&mut content[before..])?;
            if !self.is_open && !self.connection.is_handshaking() {
                self.is_open = true;
                opened = Opened::Handshake(self.connection.peer_certificates().and_then(|chain| user(chain.first()?)));
            }
        }
        Ok(opened)
    }

    /// Takes `content` to be sent.
    pub(crate) fn seal(&mut self, content: &mut BytesMut) -> io::Result<()> {
        self.connection.writer().write_all(content)?;
        content.clear();
        self.collect()
    }

    fn collect(&mut self) -> io::Result<()> {
        while self.connection.wants_write() {
            self.connection.write_tls(&mut (&mut self.sealed).writer())?;
        }
        Ok(())
    }
}

/// The name in a client's certificate.
fn user(certificate: &CertificateDer<'_>) -> Option<String> {
    let certificate = webpki::EndEntityCert::try_from(certificate).ok()?;
    certificate.valid_dns_names().next().map(str::to_owned)
}
