//! TLS, with an authority of our own.

use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use sluicegate_core::{CacheKey, CacheStore as _, ErrorKind};
use sluicegate_redis::RedisStore;
use sluicegate_test_servers::{RedisServer, free_port};
use tempfile::TempDir;

use crate::support::load::Load;
use crate::support::{block, open};

/// An authority, and what it has certified.
struct Authority {
    directory: TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Authority {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let authority = Authority { directory: tempfile::tempdir().unwrap(), issuer };
        std::fs::write(authority.file("ca.pem"), authority.issuer.pem()).unwrap();
        authority
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Certificate and key of `host`.
    fn certify(&self, host: &str) -> (PathBuf, PathBuf) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![host.to_owned()]).unwrap();
        // Another name than the authority's: else it looks as if signed by itself.
        params.distinguished_name.push(DnType::CommonName, host);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let (certificate_file, key_file) = (self.file(&format!("{host}.pem")), self.file(&format!("{host}.key")));
        std::fs::write(&certificate_file, certificate.pem()).unwrap();
        std::fs::write(&key_file, key.serialize_pem()).unwrap();
        (certificate_file, key_file)
    }
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// A server, and its port for TLS.
fn server(authority: &Authority, clients: &str) -> (RedisServer, u16) {
    let port = free_port();
    let (certificate, key) = authority.certify("127.0.0.1");
    let server = RedisServer::with(&[
        "--save",
        "",
        "--tls-port",
        &port.to_string(),
        "--tls-cert-file",
        &text(&certificate),
        "--tls-key-file",
        &text(&key),
        "--tls-ca-cert-file",
        &text(&authority.file("ca.pem")),
        "--tls-auth-clients",
        clients,
    ]);
    (server, port)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_with_a_certificate_that_is_trusted_is_used() {
    let authority = Authority::new();
    let (_server, port) = block(|| server(&authority, "no"));
    let store = open(&format!("rediss://127.0.0.1:{port}?ca={}", text(&authority.file("ca.pem")))).await;
    let load = Load::new(100, 100).await;
    load.run(store.clone(), 1_000).await.unwrap();
    load.check(store.clone(), "over TLS").await;
    use futures::StreamExt as _;
    assert!(store.wakes().unwrap().next().await.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_is_not_trusted_is_refused() {
    let (authority, another) = (Authority::new(), Authority::new());
    let (_server, port) = block(|| server(&authority, "no"));
    let urls = [format!("rediss://127.0.0.1:{port}"), format!("rediss://127.0.0.1:{port}?ca={}", text(&another.file("ca.pem")))];
    for url in urls {
        let error = RedisStore::connect(&url).await.map(drop).expect_err(&url);
        assert_eq!(error.kind(), ErrorKind::ConfigInvalid, "{error:?}");
        assert!(error.to_string().contains("certificate") && error.to_string().contains("`ca`"), "{error}");
    }
    // Of the right authority, and for another host.
    let error = RedisStore::connect(&format!("rediss://localhost:{port}?ca={}", text(&authority.file("ca.pem")))).await.map(drop);
    assert_eq!(error.unwrap_err().kind(), ErrorKind::ConfigInvalid);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_shows_its_certificate() {
    let authority = Authority::new();
    let (_server, port) = block(|| server(&authority, "yes"));
    let url = format!("rediss://127.0.0.1:{port}?ca={}", text(&authority.file("ca.pem")));
    let error = RedisStore::connect(&url).await.map(drop).expect_err("without a certificate");
    assert!(error.to_string().contains("client_cert"), "{error:?}");
    let (certificate, key) = authority.certify("client");
    let store = open(&format!("{url}&client_cert={}&client_key={}", text(&certificate), text(&key))).await;
    assert_eq!(store.get(&CacheKey::Meta).await.unwrap(), None);
}
