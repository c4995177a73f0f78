//! What does not work, and what is said about it.

use futures::StreamExt as _;
use sluicegate_core::{ErrorKind, Feed as _, FeedEvent, FeedStart, PartitionId, Registry};
use sluicegate_dcp::DcpFeed;
use sluicegate_simulator::bucket::Content;
use sluicegate_simulator::{Cluster, ClusterConfig};

use crate::follower::url;
use crate::{Follower, cluster, keys, write};

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
    for name in ["shop.orders".to_owned(), format!("{orders:#x}")] {
        let mut follower = Follower::open(&cluster, &format!("collections={name}")).await;
        follower.catch_up().await;
        follower.has_exactly(keys("order-", 200));
    }
    let mut follower = Follower::open(&cluster, "scope=shop&until=now").await;
    while let Some(batch) = follower.next().await {
        batch.unwrap();
    }
    follower.has_exactly(keys("order-", 200).chain(keys("cart-", 200)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collection_may_come_in_the_order_of_keys() {
    let cluster = cluster(1, 100).await;
    cluster.create_scope("shop").unwrap();
    let orders = cluster.create_collection("shop", "orders", None).unwrap();
    let write = |key: &str| {
        cluster.write(orders, key.to_owned(), Content { value: "{}".into(), ..Content::default() }).unwrap();
    };
    let all: Vec<String> = keys("order-", 2_000).collect();
    (0..all.len()).for_each(|n| write(&all[n * 7919 % all.len()]));
    cluster.evict();
    for (options, is_ordered) in [("", true), ("&out_of_order=true", false)] {
        let options = format!("collections=shop.orders{options}");
        let mut follower = Follower::open(&cluster, &options).await;
        follower.until(|follower| follower.events > 100).await;
        // Nothing can be taken up in the middle, so it is taken up from the beginning.
        let in_between = follower.position();
        let moved = in_between.partitions.values().any(|at| at.seqno > 0);
        assert_eq!(moved, is_ordered, "{in_between:?}");
        let mut another = Follower::open_at(&cluster, &options, FeedStart::At(in_between)).await;
        for follower in [&mut follower, &mut another] {
            follower.catch_up().await;
            assert_eq!(follower.repeated == 0, is_ordered, "{}", follower.repeated);
        }
        follower.has_exactly(keys("order-", 2_000));
        if !is_ordered {
            another.has_exactly(keys("order-", 2_000));
        }
        let position = follower.position();
        assert_eq!(position.partitions[&PartitionId(0)].seqno, cluster.high_seqno(0));

        write("order-new");
        let mut third = Follower::open_at(&cluster, &options, FeedStart::At(position)).await;
        third.catch_up().await;
        third.has_exactly(std::iter::once("order-new".to_owned()));
        cluster.delete_from(orders, "order-new").unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_change_comes_of_a_bucket_that_keeps_them() {
    let mut config = ClusterConfig::default();
    (config.nodes, config.vbuckets, config.retains_history) = (2, 8, true);
    let cluster = Cluster::start(config).await.unwrap();
    let write_all = || (0..5).for_each(|_| write(&cluster, "again-", 40));
    write_all();
    cluster.evict();
    for (options, expected) in [("", 40), ("history=true", 200)] {
        let mut follower = Follower::open(&cluster, options).await;
        follower.catch_up().await;
        follower.has_exactly(keys("again-", 40));
        assert_eq!((follower.events, follower.repeated), (expected, 0), "{options}");
        // In the middle of them, too.
        let mut third = Follower::open(&cluster, options).await;
        third.until(|follower| follower.events > expected / 3).await;
        let (taken, position) = (third.events, third.position());
        let mut rest = Follower::open_at(&cluster, options, FeedStart::At(position)).await;
        rest.catch_up().await;
        assert_eq!((taken + rest.events, rest.rollbacks.len()), (expected, 0), "{options}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bucket_that_keeps_no_changes_is_told_with_the_option() {
    let cluster = cluster(8, 10).await;
    let feed = DcpFeed::connect(&url(&cluster, "history=true")).await.unwrap();
    let mut stream = feed.open(FeedStart::Beginning).await.unwrap();
    let error = stream.next().await.unwrap().unwrap_err();
    assert!(error.to_string().contains("change_streams=true") && !error.is_retryable(), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_names_of_collections_are_told_those_that_are_made_later_too() {
    let cluster = cluster(8, 10).await;
    cluster.create_scope("shop").unwrap();
    let orders = cluster.create_collection("shop", "orders", None).unwrap();
    let feed = DcpFeed::connect(&url(&cluster, "")).await.unwrap();
    let mut stream = feed.open(FeedStart::Beginning).await.unwrap();
    let (mut told, mut later) = (Vec::new(), None);
    while later.is_none_or(|later| !told.iter().any(|(id, _)| *id == later)) {
        for event in stream.next().await.unwrap().unwrap().events {
            match event {
                FeedEvent::CollectionNames(names) => told.extend(names),
                // The names came first.
                _ if later.is_none() => later = Some(cluster.create_collection("shop", "carts", None).unwrap()),
                _ => {}
            }
        }
    }
    told.sort();
    let name = |id: u32, name: &str| (id, Box::<str>::from(name));
    assert_eq!(told, [name(0, "_default._default"), name(orders, "shop.orders"), name(later.unwrap(), "shop.carts")]);
}

#[tokio::test]
async fn a_feed_is_of_its_bucket_and_not_of_another_one_of_that_name() {
    let cluster = cluster(8, 10).await;
    let of = async |options: &str| DcpFeed::connect(&url(&cluster, options)).await.unwrap().identity();
    let identity = of("").await;
    assert_eq!((identity.name(), identity.former_checkpoints()), ("dcp:default", &["dcps:default".to_owned()][..]));
    assert!(!identity.instance().is_empty() && of("buffer=100000").await.is_same(&identity));
    cluster.recreate_bucket();
    assert!(!of("").await.is_same(&identity));
}
