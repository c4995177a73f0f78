//! What does not work, and what is said about it.

use sluicegate_core::{ErrorKind, Feed as _, FeedStart, Registry};
use sluicegate_dcp::DcpFeed;

use crate::follower::url;
use crate::{Follower, cluster, keys};

async fn refused(url: &str) -> sluicegate_core::Error {
    DcpFeed::connect(url).await.unwrap_err()
}

#[tokio::test]
async fn a_wrong_password_is_said_to_be_one() {
    let cluster = cluster(16, 10).await;
    let url = url(&cluster, "").replace("password=password", "password=hunter2");
    let error = refused(&url).await;
    assert_eq!(error.kind(), ErrorKind::ConfigInvalid);
    assert!(error.to_string().contains("check the options user and password"), "{error}");
    assert!(!format!("{error:?}").contains("hunter2"));
    assert!(!error.is_retryable());
}

#[tokio::test]
async fn a_bucket_that_is_not_there_is_named() {
    let cluster = cluster(16, 10).await;
    let error = refused(&url(&cluster, "").replace("/default", "/travel")).await;
    assert!(error.to_string().contains("`travel`"), "{error}");
    assert!(!error.is_retryable());
}

#[tokio::test]
async fn a_cluster_that_is_not_there_may_come() {
    let cluster = cluster(16, 10).await;
    let url = url(&cluster, "connect_timeout_ms=2000");
    (0..3).for_each(|node| cluster.kill_node(node));
    let error = refused(&url).await;
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.is_retryable() && error.to_string().contains("127.0.0.1"), "{error}");
}

#[tokio::test]
async fn a_collection_that_is_not_there_is_named() {
    let cluster = cluster(16, 10).await;
    let feed = DcpFeed::connect(&url(&cluster, "collections=_default.nothing")).await.unwrap();
    let error = feed.open(FeedStart::Beginning).await.err().unwrap();
    assert!(error.to_string().contains("_default.nothing"), "{error}");
}

#[tokio::test]
async fn the_registry_knows_both_schemes() {
    let cluster = cluster(16, 10).await;
    let registry = Registry::discover().unwrap();
    let feed = registry.open_feed(&url(&cluster, "")).await.unwrap();
    let info = feed.info();
    assert_eq!((info.checkpoint_name().as_str(), info.partitions), ("dcp:default", 16));
    assert!(registry.feeds().any(|feed| feed.scheme == "dcps"));
}

#[tokio::test]
async fn tls_where_there_is_none_is_said() {
    let cluster = cluster(16, 10).await;
    let error = refused(&url(&cluster, "connect_timeout_ms=2000").replace("dcp:", "dcps:")).await;
    assert!(error.to_string().contains("TLS"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_some_collections_arrive() {
    let cluster = cluster(16, 100).await;
    cluster.create_scope("shop").unwrap();
    let orders = cluster.create_collection("shop", "orders", None).unwrap();
    let carts = cluster.create_collection("shop", "carts", None).unwrap();
    for (collection, prefix) in [(orders, "order-"), (carts, "cart-")] {
        let mut load = sluicegate_simulator::Load::default();
        (load.documents, load.prefix, load.collection) = (200, prefix.to_owned(), collection);
        cluster.load(&load).unwrap();
    }
    let mut follower = Follower::open(&cluster, "collections=shop.orders").await;
    follower.catch_up().await;
    follower.has_exactly(keys("order-", 200));
    let mut follower = Follower::open(&cluster, "scope=shop&until=now").await;
    while let Some(batch) = follower.next().await {
        batch.unwrap();
    }
    follower.has_exactly(keys("order-", 200).chain(keys("cart-", 200)));
}
