//! Certificates for tests: an authority, and servers and clients that it certifies. Made anew each time, and random.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
    date_time_ymd,
};

/// An authority that certifies servers and clients. `Debug` does not show its key.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key (PEM). `Debug` shows neither.
#[derive(Clone)]
pub struct Certified {
    /// The certificate.
    pub certificate: String,
    /// Its private key.
    pub key: String,
}

impl Authority {
    /// An authority of this name.
    ///
    /// # Errors
    /// If no key can be made.
    pub fn new(name: &str) -> io::Result<Authority> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().map_err(io::Error::other)?;
        Ok(Authority(CertifiedIssuer::self_signed(params, key).map_err(io::Error::other)?))
    }

    /// Its own certificate (PEM), for those who are to trust it.
    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// A server's certificate for these names and addresses.
    ///
    /// # Errors
    /// If one of them can be neither.
    pub fn server(&self, names: &[&str]) -> io::Result<Certified> {
        self.certify(params(names)?, ExtendedKeyUsagePurpose::ServerAuth)
    }

    /// As [`server`](Self::server), but its time was up long ago.
    ///
    /// # Errors
    /// As [`server`](Self::server).
    pub fn expired_server(&self, names: &[&str]) -> io::Result<Certified> {
        let mut params = params(names)?;
        (params.not_before, params.not_after) = (date_time_ymd(2001, 1, 1), date_time_ymd(2002, 1, 1));
        self.certify(params, ExtendedKeyUsagePurpose::ServerAuth)
    }

    /// A client's certificate. The cluster takes the user's name from its first DNS name.
    ///
    /// # Errors
    /// If the name cannot be a host's.
    pub fn client(&self, user: &str) -> io::Result<Certified> {
        self.certify(params(&[user])?, ExtendedKeyUsagePurpose::ClientAuth)
    }

    fn certify(&self, mut params: CertificateParams, purpose: ExtendedKeyUsagePurpose) -> io::Result<Certified> {
        params.extended_key_usages = vec![purpose];
        let key = KeyPair::generate().map_err(io::Error::other)?;
        let certificate = params.signed_by(&key, &self.0).map_err(io::Error::other)?;
        Ok(Certified { certificate: certificate.pem(), key: key.serialize_pem() })
    }
}

fn params(names: &[&str]) -> io::Result<CertificateParams> {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    CertificateParams::new(names).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))
}

impl Certified {
    /// Writes both into `directory`, as `NAME.pem` and `NAME.key`, and says where they are.
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn write_to(&self, directory: &Path, name: &str) -> io::Result<(PathBuf, PathBuf)> {
        let (certificate, key) = (directory.join(format!("{name}.pem")), directory.join(format!("{name}.key")));
        std::fs::write(&certificate, &self.certificate)?;
        std::fs::write(&key, &self.key)?;
        Ok((certificate, key))
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").finish_non_exhaustive()
    }
}

impl fmt::Debug for Certified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certified").finish_non_exhaustive()
    }
}
