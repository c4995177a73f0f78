//! Positions, rollbacks, new buckets.

use sluicegate_core::{FeedPosition, FeedStart, PartitionId};

use crate::{Follower, cluster, keys, load, write};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_position_gives_exactly_what_is_missing() {
    let cluster = cluster(64, 2_000).await;
    let mut first = Follower::open(&cluster, "").await;
    // In the middle of snapshots.
    first.until(|follower| follower.events >= 700).await;
    let position = first.position();
    let (seen, json) = (first.events, serde_json::to_string(&position).unwrap());
    drop(first);
    write(&cluster, "new-", 300);
    let position = serde_json::from_str(&json).unwrap();
    let mut second = Follower::open_at(&cluster, "", FeedStart::At(position)).await;
    second.catch_up().await;
    assert_eq!(second.events, 2_300 - seen);
    assert_eq!((second.rollbacks.len(), second.repeated), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn until_now_ends_with_what_there_was() {
    let cluster = cluster(64, 2_000).await;
    let mut follower = Follower::open(&cluster, "until=now").await;
    while let Some(batch) = follower.next().await {
        batch.unwrap();
    }
    assert!(follower.is_caught_up);
    follower.has_exactly(keys("document-", 2_000));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn from_now_on_nothing_old_arrives_and_everything_new() {
    let cluster = cluster(64, 2_000).await;
    let mut follower = Follower::open_at(&cluster, "", FeedStart::Now).await;
    write(&cluster, "new-", 200);
    follower.has(keys("new-", 200)).await;
    follower.has_exactly(keys("new-", 200));
    let rest = Follower::open_at(&cluster, "", FeedStart::At(follower.position()));
    let mut rest = rest.await;
    rest.catch_up().await;
    assert_eq!((rest.events, rest.rollbacks.len()), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_server_takes_back_while_we_follow_is_taken_back() {
    let cluster = cluster(16, 0).await;
    write(&cluster, "old-", 400);
    let mut follower = Follower::open(&cluster, "").await;
    follower.catch_up().await;
    write(&cluster, "lost-", 400);
    follower.has(keys("lost-", 400)).await;
    let vbucket = cluster.vbucket_of(b"lost-0000007");
    let lost: Vec<String> = keys("lost-", 400).filter(|key| cluster.vbucket_of(key.as_bytes()) == vbucket).collect();
    let keep = cluster.high_seqno(vbucket) - lost.len() as u64;
    cluster.fail_over_vbucket(vbucket, keep);
    follower.until(|follower| !follower.rollbacks.is_empty()).await;
    let (partition, to) = follower.rollbacks[0];
    assert_eq!(partition.0, vbucket);
    assert!(to <= keep, "{to} {keep}");
    follower.until(|follower| follower.returning.is_empty()).await;
    // All that it has come again by then, and nothing more is written.
    follower.has_exactly(keys("old-", 400).chain(keys("lost-", 400).filter(|key| !lost.contains(key))));
    write(&cluster, "new-", 400);
    follower.has(keys("new-", 400).chain(keys("old-", 400))).await;
    let kept = keys("lost-", 400).filter(|key| !lost.contains(key));
    follower.has_exactly(keys("new-", 400).chain(keys("old-", 400)).chain(kept));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_server_took_back_while_we_were_away_is_taken_back() {
    let cluster = cluster(16, 0).await;
    write(&cluster, "old-", 400);
    let mut follower = Follower::open(&cluster, "").await;
    follower.catch_up().await;
    follower.has_exactly(keys("old-", 400));
    let high = cluster.high_seqno(3);
    cluster.fail_over_vbucket(3, high - 2);
    let mut follower = Follower::open_at(&cluster, "", FeedStart::At(follower.position())).await;
    follower.catch_up().await;
    assert_eq!(follower.rollbacks.len(), 1);
    assert!(follower.rollbacks[0].1 <= high - 2, "{:?}", follower.rollbacks);
    // It is told again what it may not have any more.
    assert_eq!(follower.events, high - 2 - follower.rollbacks[0].1);
    follower.until(|follower| follower.returning.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_position_before_what_the_server_has_lost_is_told_too() {
    let cluster = cluster(16, 0).await;
    write(&cluster, "old-", 400);
    let mut follower = Follower::open(&cluster, "").await;
    follower.catch_up().await;
    let position = follower.position();
    drop(follower);
    write(&cluster, "lost-", 400);
    let high = position.partitions[&PartitionId(3)].seqno;
    assert!(cluster.high_seqno(3) > high + 1);
    // Who opened the feed there may have seen what is lost now.
    cluster.fail_over_vbucket(3, high + 1);
    let mut follower = Follower::open_at(&cluster, "until=now", FeedStart::At(position)).await;
    while let Some(batch) = follower.next().await {
        batch.unwrap();
    }
    assert_eq!(follower.rollbacks, [(PartitionId(3), high)]);
    assert!(follower.returning.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_emptied_bucket_is_taken_back_whole() {
    let cluster = cluster(16, 500).await;
    let mut follower = Follower::open(&cluster, "").await;
    follower.catch_up().await;
    cluster.flush_bucket();
    write(&cluster, "new-", 200);
    follower.has(keys("new-", 200)).await;
    follower.has_exactly(keys("new-", 200));
    // A node may ask for it before the map tells of the new bucket.
    let partitions: std::collections::BTreeSet<u16> = follower.rollbacks.iter().map(|(partition, _)| partition.0).collect();
    assert!(partitions.into_iter().eq(0..16) && follower.rollbacks.iter().all(|(_, to)| *to == 0), "{:?}", follower.rollbacks);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_position_of_a_bucket_that_was_created_again_is_rolled_back_to_zero() {
    let cluster = cluster(16, 500).await;
    let mut follower = Follower::open(&cluster, "").await;
    follower.catch_up().await;
    let position = follower.position();
    drop(follower);
    cluster.recreate_bucket();
    load(&cluster, "new-", 300);
    let mut follower = Follower::open_at(&cluster, "", FeedStart::At(position)).await;
    follower.catch_up().await;
    follower.has_exactly(keys("new-", 300));
    assert_eq!(follower.rollbacks.len(), 16);
    assert!(follower.rollbacks.iter().all(|(_, to)| *to == 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_position_below_what_was_purged_is_taken_back_to_the_beginning() {
    let cluster = cluster(16, 0).await;
    write(&cluster, "old-", 400);
    let mut follower = Follower::open(&cluster, "").await;
    follower.catch_up().await;
    let position = follower.position();
    drop(follower);
    let gone = keys("old-", 400).find(|key| cluster.vbucket_of(key.as_bytes()) == 3).unwrap();
    cluster.delete(gone.clone()).unwrap();
    cluster.purge(3, cluster.high_seqno(3));
    write(&cluster, "new-", 100);
    let mut follower = Follower::open_at(&cluster, "", FeedStart::At(position)).await;
    follower.catch_up().await;
    assert_eq!(follower.rollbacks, [(PartitionId(3), 0)], "only there deletions are gone");
    let again = keys("old-", 400).filter(|key| *key != gone && cluster.vbucket_of(key.as_bytes()) == 3);
    follower.has_exactly(again.chain(keys("new-", 100)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn inside_a_snapshot_what_was_purged_before_it_was_made_is_no_reason_to_go_back() {
    let cluster = cluster(1, 0).await;
    write(&cluster, "old-", 3_000);
    for key in keys("old-", 100) {
        cluster.delete(key).unwrap();
    }
    let purged = cluster.high_seqno(0);
    cluster.purge(0, purged);
    cluster.evict();
    let mut first = Follower::open(&cluster, "").await;
    first.until(|follower| follower.events >= 600).await;
    let position = first.position();
    let (seen, at) = (first.events, &position.partitions[&PartitionId(0)]);
    assert!(at.seqno < purged && at.purge_seqno == purged, "{at:?}");
    drop(first);
    let mut second = Follower::open_at(&cluster, "", FeedStart::At(position.clone())).await;
    second.catch_up().await;
    assert_eq!((second.events + seen, second.rollbacks.len()), (2_900, 0));

    // More is gone since then.
    cluster.set("one", "{}").unwrap();
    cluster.delete("one").unwrap();
    cluster.purge(0, cluster.high_seqno(0));
    let mut third = Follower::open_at(&cluster, "", FeedStart::At(position)).await;
    third.catch_up().await;
    assert_eq!(third.rollbacks, [(PartitionId(0), 0)]);
    third.has_exactly(keys("old-", 3_000).skip(100));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_manifest_of_collections_is_part_of_a_position() {
    let cluster = cluster(16, 0).await;
    cluster.create_scope("shop").unwrap();
    cluster.create_collection("shop", "orders", None).unwrap();
    write(&cluster, "old-", 200);
    let mut follower = Follower::open(&cluster, "").await;
    follower.catch_up().await;
    let json = serde_json::to_string(&follower.position()).unwrap();
    let position: FeedPosition = serde_json::from_str(&json).unwrap();
    assert!(position.partitions.values().all(|at| at.manifest_uid == 2), "{json}");
    drop(follower);
    write(&cluster, "new-", 100);
    let mut follower = Follower::open_at(&cluster, "", FeedStart::At(position.clone())).await;
    follower.catch_up().await;
    follower.has_exactly(keys("new-", 100));
    drop(follower);
    // The new bucket has no such manifest yet, and another history.
    cluster.recreate_bucket();
    write(&cluster, "anew-", 100);
    let mut follower = Follower::open_at(&cluster, "", FeedStart::At(position)).await;
    follower.catch_up().await;
    follower.has_exactly(keys("anew-", 100));
    assert_eq!(follower.rollbacks.len(), 16);
}
