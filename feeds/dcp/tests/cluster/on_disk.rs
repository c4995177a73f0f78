//! Events that wait until they are on all disks.

use sluicegate_core::ErrorKind;
use sluicegate_dcp::DcpFeed;
use sluicegate_simulator::{Cluster, ClusterConfig};

use crate::follower::url;
use crate::{Follower, cluster, keys, write};

const OPTIONS: &str = "mitigate_rollbacks=true&persistence_poll_ms=10";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_on_all_disks_arrives() {
    let cluster = cluster(64, 2_000).await;
    let mut follower = Follower::open(&cluster, OPTIONS).await;
    follower.catch_up().await;
    follower.has_exactly(keys("document-", 2_000));
    write(&cluster, "new-", 300);
    follower.has(keys("new-", 300)).await;
    let mut follower = Follower::open(&cluster, &format!("{OPTIONS}&until=now")).await;
    while let Some(batch) = follower.next().await {
        batch.unwrap();
    }
    assert!(follower.is_caught_up);
    follower.has_exactly(keys("document-", 2_000).chain(keys("new-", 300)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_on_a_disk_waits_and_the_rest_does_not() {
    let cluster = cluster(16, 100).await;
    let mut follower = Follower::open(&cluster, OPTIONS).await;
    follower.catch_up().await;
    let vbucket = cluster.vbucket_of(b"new-0000000");
    (0..3).for_each(|node| cluster.hold_persistence(vbucket, node, true));
    write(&cluster, "new-", 200);
    let waits = |key: &String| cluster.vbucket_of(key.as_bytes()) == vbucket;
    follower.has(keys("new-", 200).filter(|key| !waits(key))).await;
    follower.has_exactly(keys("document-", 100).chain(keys("new-", 200).filter(|key| !waits(key))));
    (0..3).for_each(|node| cluster.hold_persistence(vbucket, node, false));
    follower.has(keys("new-", 200)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_lost_before_it_was_on_all_disks_was_never_there() {
    let cluster = cluster(16, 0).await;
    write(&cluster, "old-", 200);
    let mut follower = Follower::open(&cluster, OPTIONS).await;
    follower.catch_up().await;
    let vbucket = cluster.vbucket_of(b"lost-0000000");
    let high = cluster.high_seqno(vbucket);
    (0..3).for_each(|node| cluster.hold_persistence(vbucket, node, true));
    write(&cluster, "lost-", 200);
    let waits = |key: &String| cluster.vbucket_of(key.as_bytes()) == vbucket;
    follower.has(keys("lost-", 200).filter(|key| !waits(key))).await;
    while follower.feed.status().vbuckets[usize::from(vbucket)].seqno < cluster.high_seqno(vbucket) {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    cluster.fail_over_vbucket(vbucket, high);
    (0..3).for_each(|node| cluster.hold_persistence(vbucket, node, false));
    write(&cluster, "new-", 200);
    follower.has(keys("new-", 200)).await;
    let kept = keys("lost-", 200).filter(|key| !waits(key));
    follower.has_exactly(keys("old-", 200).chain(keys("new-", 200)).chain(kept));
    assert_eq!(follower.rollbacks, []);
}

#[tokio::test]
async fn of_a_bucket_that_is_never_on_a_disk_it_cannot_be_wanted() {
    let mut config = ClusterConfig::default();
    (config.vbuckets, config.is_ephemeral) = (8, true);
    let cluster = Cluster::start(config).await.unwrap();
    let error = DcpFeed::connect(&url(&cluster, "mitigate_rollbacks=true")).await.unwrap_err();
    assert!(error.kind() == ErrorKind::ConfigInvalid && error.to_string().contains("leave mitigate_rollbacks out"), "{error}");
    write(&cluster, "some-", 20);
    let mut follower = Follower::open(&cluster, "").await;
    follower.catch_up().await;
    follower.has_exactly(keys("some-", 20));
}
