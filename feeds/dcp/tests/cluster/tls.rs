//! TLS: whom the feed trusts, and how it shows who it is.

use std::path::Path;

use sluicegate_core::{Error, ErrorKind, FeedStart};
use sluicegate_dcp::DcpFeed;
use sluicegate_simulator::certificates::Authority;
use sluicegate_simulator::{ClientCertificates, Cluster, ClusterConfig, Mechanism, TlsConfig};
use tempfile::TempDir;

use crate::follower::url;
use crate::{Follower, keys, load, revive, write};

/// An authority whose certificate is in a file, and room for other files.
struct Trust {
    authority: Authority,
    directory: TempDir,
}

impl Trust {
    fn new() -> Trust {
        let trust = Trust { authority: Authority::new("test").unwrap(), directory: tempfile::tempdir().unwrap() };
        std::fs::write(trust.path("ca.pem"), trust.authority.pem()).unwrap();
        trust
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join(name)
    }

    /// TLS of nodes that are certified for the loopback interface.
    fn tls(&self) -> TlsConfig {
        TlsConfig::new(self.authority.server(&["127.0.0.1", "::1", "localhost"]).unwrap())
    }

    /// The options for a certificate of `user`, of this authority.
    fn certificate_of(&self, user: &str, directory: &Path) -> String {
        let (certificate, key) = self.authority.client(user).unwrap().write_to(directory, user).unwrap();
        format!("client_cert={}&client_key={}", certificate.display(), key.display())
    }
}

async fn cluster_with(tls: TlsConfig, change: impl FnOnce(&mut ClusterConfig)) -> Cluster {
    let mut config = ClusterConfig::default();
    (config.nodes, config.vbuckets, config.tls) = (3, 16, Some(tls));
    change(&mut config);
    let cluster = Cluster::start(config).await.unwrap();
    load(&cluster, "document-", 200);
    cluster
}

/// The URL of the bucket over TLS.
fn over_tls(cluster: &Cluster, trust: &Trust, options: &str) -> String {
    let hosts = cluster.tls_connection_string().replace("couchbases:", "dcps:");
    format!("{hosts}/default?ca={}&{options}", trust.path("ca.pem").display())
}

const PASSWORD: &str = "user=Administrator&password=password";

async fn refused(url: &str) -> Error {
    let error = DcpFeed::connect(url).await.unwrap_err();
    assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
    error
}

/// Everything arrives by this URL.
async fn arrives(url: &str) {
    let mut follower = Follower::open_url(url, FeedStart::Beginning).await;
    follower.catch_up().await;
    follower.has_exactly(keys("document-", 200));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bucket_is_followed_over_tls_and_nodes_come_back_with_it() {
    let trust = Trust::new();
    let cluster = cluster_with(trust.tls(), |_| ()).await;
    let mut follower = Follower::open_url(&over_tls(&cluster, &trust, PASSWORD), FeedStart::Beginning).await;
    follower.catch_up().await;
    follower.has_exactly(keys("document-", 200));
    cluster.kill_node(1);
    revive(&cluster, 1).await;
    write(&cluster, "new-", 200);
    follower.has(keys("new-", 200)).await;
    let ports: Vec<String> = cluster.tls_addresses().iter().map(ToString::to_string).collect();
    let status = follower.feed.status();
    assert!(status.vbuckets.iter().all(|vbucket| vbucket.node.as_ref().is_some_and(|node| ports.contains(node))), "{status:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sealed_bytes_in_pieces_arrive_whole() {
    let trust = Trust::new();
    let cluster = cluster_with(trust.tls(), |_| ()).await;
    cluster.set_faults(|faults| faults.split_percent = 90);
    arrives(&over_tls(&cluster, &trust, PASSWORD)).await;
}

#[tokio::test]
async fn an_authority_that_is_not_trusted_is_told_with_the_option() {
    let (trust, other) = (Trust::new(), Trust::new());
    let cluster = cluster_with(trust.tls(), |_| ()).await;
    let wrong = over_tls(&cluster, &other, PASSWORD);
    let built_in = format!("{}/default?{PASSWORD}", cluster.tls_connection_string().replace("couchbases:", "dcps:"));
    for url in [wrong, built_in] {
        let error = refused(&url).await;
        assert!(error.to_string().contains("not trusted; name the file") && error.to_string().contains("(option ca)"), "{error}");
        assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::ConfigInvalid, false));
    }
}

#[tokio::test]
async fn a_certificate_for_another_host_is_refused_with_both_names() {
    let trust = Trust::new();
    let tls = TlsConfig::new(trust.authority.server(&["elsewhere.example"]).unwrap());
    let cluster = cluster_with(tls, |_| ()).await;
    let error = refused(&over_tls(&cluster, &trust, PASSWORD)).await;
    assert!(error.to_string().contains("not for `127.0.0.1`"), "{error}");
    assert!(format!("{error:?}").contains("elsewhere.example"), "{error:?}");
}

#[tokio::test]
async fn a_certificate_whose_time_is_up_is_refused() {
    let trust = Trust::new();
    let tls = TlsConfig::new(trust.authority.expired_server(&["127.0.0.1"]).unwrap());
    let cluster = cluster_with(tls, |_| ()).await;
    let error = refused(&over_tls(&cluster, &trust, PASSWORD)).await;
    assert!(error.to_string().contains("has expired; give the node a new one"), "{error}");
    assert_eq!(error.kind(), ErrorKind::ConfigInvalid);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_may_have_to_show_a_certificate() {
    let (trust, other) = (Trust::new(), Trust::new());
    let directory = trust.directory.path();
    let tls = TlsConfig { clients: ClientCertificates::Mandatory(trust.authority.pem()), ..trust.tls() };
    let cluster = cluster_with(tls, |_| ()).await;
    arrives(&over_tls(&cluster, &trust, &trust.certificate_of("Administrator", directory))).await;

    let error = refused(&over_tls(&cluster, &trust, PASSWORD)).await;
    assert!(
        error.to_string().contains("wants a certificate of the client") && error.to_string().contains("client_key"),
        "{error}"
    );
    assert_eq!(error.kind(), ErrorKind::ConfigInvalid);

    let error = refused(&over_tls(&cluster, &trust, &other.certificate_of("Administrator", other.directory.path()))).await;
    assert!(error.to_string().contains("does not accept the client's certificate"), "{error}");
    assert_eq!(error.kind(), ErrorKind::ConfigInvalid);

    let error = refused(&over_tls(&cluster, &trust, &trust.certificate_of("nobody", directory))).await;
    assert!(error.to_string().contains("names no user of the cluster (option client_cert)"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_certificates_are_allowed_a_password_does_too() {
    let trust = Trust::new();
    let tls = TlsConfig { clients: ClientCertificates::Enabled(trust.authority.pem()), ..trust.tls() };
    let cluster = cluster_with(tls, |_| ()).await;
    arrives(&over_tls(&cluster, &trust, &trust.certificate_of("Administrator", trust.directory.path()))).await;
    arrives(&over_tls(&cluster, &trust, PASSWORD)).await;
    let error = refused(&over_tls(&cluster, &trust, &trust.certificate_of("nobody", trust.directory.path()))).await;
    assert!(error.to_string().contains("the client's certificate names no user"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_goes_as_it_is_only_over_tls_or_where_that_is_asked_for() {
    let trust = Trust::new();
    let cluster = cluster_with(trust.tls(), |config| config.mechanisms = vec![Mechanism::Plain]).await;
    let error = refused(&url(&cluster, "").replace("password=password", "password=hunter2")).await;
    assert!(error.to_string().contains("use TLS (dcps:), or set allow_plain=true"), "{error}");
    assert_eq!(error.kind(), ErrorKind::ConfigInvalid);
    arrives(&url(&cluster, "allow_plain=true")).await;
    arrives(&over_tls(&cluster, &trust, PASSWORD)).await;
}

#[tokio::test]
async fn a_password_that_is_wrong_over_tls_is_said_to_be_one() {
    let trust = Trust::new();
    let cluster = cluster_with(trust.tls(), |_| ()).await;
    let error = refused(&over_tls(&cluster, &trust, "user=Administrator&password=hunter2")).await;
    assert!(error.to_string().contains("check the options user and password"), "{error}");
}

#[tokio::test]
async fn files_that_hold_no_certificate_or_key_are_named() {
    let trust = Trust::new();
    let cluster = cluster_with(trust.tls(), |_| ()).await;
    let (certificate, key) = trust.authority.client("a").unwrap().write_to(trust.directory.path(), "a").unwrap();
    let pair = |certificate: &Path, key: &Path| format!("client_cert={}&client_key={}", certificate.display(), key.display());
    for (certificate, key, named) in [(&certificate, &certificate, "a.pem"), (&key, &key, "a.key")] {
        let error = refused(&over_tls(&cluster, &trust, &pair(certificate, key))).await;
        assert!(error.to_string().contains(named), "{error}");
        assert!(!format!("{error:?}").contains("BEGIN"), "{error:?}");
    }
}
