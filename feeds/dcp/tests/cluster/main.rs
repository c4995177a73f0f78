//! The feed against a simulated cluster.

mod changes;
mod connect;
mod dns;
mod durable;
mod faults;
mod follower;
mod metrics;
mod on_disk;
mod resume;
mod tls;

use std::sync::Arc;

use sluicegate_simulator::{Cluster, ClusterConfig, Load};

use crate::follower::{Follower, url};

/// A cluster of three nodes.
async fn cluster(vbuckets: u16, documents: u64) -> Cluster {
    let mut config = ClusterConfig::default();
    (config.nodes, config.vbuckets) = (3, vbuckets);
    let cluster = Cluster::start(config).await.unwrap();
    load(&cluster, "document-", documents);
    cluster
}

fn load(cluster: &Cluster, prefix: &str, documents: u64) {
    let mut load = Load::default();
    (load.documents, load.value_len, load.prefix) = (documents, 300, prefix.to_owned());
    cluster.load(&load).unwrap();
}

/// Keys of documents that [`load`] or [`write`] has made.
fn keys(prefix: &str, documents: u64) -> impl Iterator<Item = String> {
    (0..documents).map(move |number| format!("{prefix}{number:07}"))
}

/// Writes documents one by one, so that they stay in memory.
fn write(cluster: &Cluster, prefix: &str, documents: u64) {
    for key in keys(prefix, documents) {
        cluster.set(key, r#"{"a":1}"#).unwrap();
    }
}

/// Starts a killed node again. Its port may be taken for a moment, by one of those who try to connect.
async fn revive(cluster: &Cluster, node: usize) {
    while let Err(error) = cluster.revive_node(node).await {
        assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse);
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

/// The cluster lives as long as the feed: a case of the suite gets only the feed.
#[derive(Debug)]
struct Kept {
    feed: sluicegate_dcp::DcpFeed,
    _cluster: Cluster,
}

#[async_trait::async_trait]
impl sluicegate_core::Feed for Kept {
    fn info(&self) -> sluicegate_core::feed::FeedInfo {
        self.feed.info()
    }

    async fn open(&self, start: sluicegate_core::FeedStart) -> sluicegate_core::Result<sluicegate_core::FeedStream> {
        self.feed.open(start).await
    }
}

async fn kept(options: &str) -> Arc<Kept> {
    let cluster = cluster(64, 1_000).await;
    write(&cluster, "later-", 300);
    for key in keys("later-", 50) {
        cluster.delete(key).unwrap();
    }
    let feed = sluicegate_dcp::DcpFeed::connect(&url(&cluster, options)).await.unwrap();
    Arc::new(Kept { feed, _cluster: cluster })
}

mod suite {
    sluicegate_testkit::feed_conformance!(crate::kept("").await);
}

mod suite_until_now {
    sluicegate_testkit::feed_conformance!(crate::kept("until=now").await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_documents_of_all_vbuckets_of_three_nodes_arrive() {
    let cluster = cluster(1024, 20_000).await;
    let mut follower = Follower::open(&cluster, "").await;
    follower.catch_up().await;
    follower.has_exactly(keys("document-", 20_000));
    assert_eq!(follower.repeated, 0);
    write(&cluster, "new-", 500);
    follower.has(keys("new-", 500)).await;
    let status = follower.feed.status();
    assert_eq!(status.vbuckets.len(), 1024);
    assert_eq!(status.counters.connections, 3, "{:?}", status.counters);
    assert!(status.vbuckets.iter().all(|vbucket| vbucket.last_error.is_none() && vbucket.node.is_some()));
}
