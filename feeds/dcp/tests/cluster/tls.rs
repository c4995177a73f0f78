//! Sessions over TLS. The simulated cluster has none, so that something in between takes it off.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::ServerConfig;
use sluicegate_mcbp::client::{ClientResult, ConnectOptions, Fault, Login, Session, Tls};
use sluicegate_mcbp::config::Address;
use sluicegate_mcbp::hello::Feature;
use sluicegate_mcbp::sasl::Password;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::cluster;

/// Takes TLS off in front of `behind`; the certificate is written to `file`.
async fn terminate(behind: SocketAddr, file: &Path) -> Address {
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    std::fs::write(file, cert.pem()).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::Pkcs8(signing_key.serialize_der().into());
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key)
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(mut near) = acceptor.accept(socket).await else { return };
                let mut far = TcpStream::connect(behind).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
            });
        }
    });
    Address { host: "localhost".to_owned(), port }
}

async fn session(node: &Address, tls: Tls, password: &str) -> ClientResult<Session> {
    let password = Password::new(password);
    let options = ConnectOptions {
        agent: "test".to_owned(),
        bucket: "default".to_owned(),
        login: Login::Password { user: "Administrator".to_owned(), password, allow_plain: false },
        tls: Some(tls),
        features: vec![Feature::SelectBucket, Feature::Xerror],
        connect_timeout: Duration::from_secs(20),
        answer_timeout: Duration::from_secs(20),
    };
    Session::open(node, &options).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_over_tls_trusts_whom_it_is_told_to() {
    let cluster = cluster(16, 10).await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("ca.pem");
    let node = terminate(cluster.addresses()[0], &file).await;
    let tls = Tls::new(Some(&file), None).unwrap();
    let mut session_over_tls = session(&node, tls.clone(), "password").await.unwrap();
    assert_eq!(session_over_tls.cluster_map().await.unwrap().unwrap().num_vbuckets(), 16);
    let error = session(&node, tls, "wrong").await.unwrap_err();
    assert_eq!(error.fault(), Fault::Authentication);
    let error = session(&node, Tls::new(None, None).unwrap(), "password").await.unwrap_err();
    assert!(error.to_string().contains("option ca"), "{error}");
    assert!(Tls::new(Some(Path::new("/nowhere/ca.pem")), None).unwrap_err().to_string().contains("/nowhere/ca.pem"));
}
