//! Nodes that go and come, vbuckets that move.

use crate::{Follower, cluster, keys, revive, write};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_dies_and_comes_back_is_followed_again() {
    let cluster = cluster(64, 1_000).await;
    let mut follower = Follower::open(&cluster, "").await;
    follower.catch_up().await;
    cluster.kill_node(1);
    let elsewhere: Vec<String> = keys("during-", 200)
        .filter(|key| cluster.owner(cluster.vbucket_of(key.as_bytes())).is_some_and(|node| node != 1))
        .collect();
    for key in &elsewhere {
        cluster.set(key.clone(), "{}").unwrap();
    }
    follower.has(elsewhere.iter().cloned()).await;
    revive(&cluster, 1).await;
    write(&cluster, "after-", 300);
    follower.has(keys("after-", 300)).await;
    follower.has_exactly(keys("document-", 1_000).chain(elsewhere).chain(keys("after-", 300)));
    let status = follower.feed.status();
    assert!(status.vbuckets.iter().any(|vbucket| vbucket.reopens > 0 && vbucket.last_error.is_some()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vbuckets_are_followed_where_they_move() {
    let cluster = cluster(64, 1_000).await;
    let mut follower = Follower::open(&cluster, "").await;
    follower.until(|follower| follower.events > 100).await;
    for round in 0..3_u64 {
        let moves: Vec<(u16, usize)> = (0..64).map(|id| (id, (usize::from(id) + round as usize) % 3)).collect();
        cluster.rebalance(&moves);
        write(&cluster, &format!("round{round}-"), 200);
        follower.has(keys(&format!("round{round}-"), 200)).await;
    }
    follower.catch_up_if_not().await;
    let rounds = (0..3).flat_map(|round| keys(&format!("round{round}-"), 200).collect::<Vec<_>>());
    follower.has_exactly(keys("document-", 1_000).chain(rounds));
    assert_eq!((follower.repeated, follower.rollbacks.len()), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_failed_over_and_had_more_is_rolled_back() {
    let cluster = cluster(64, 0).await;
    write(&cluster, "old-", 2_000);
    let mut follower = Follower::open(&cluster, "").await;
    follower.catch_up().await;
    let owned: Vec<u16> = (0..64).filter(|id| cluster.owner(*id) == Some(2)).collect();
    cluster.fail_over(2, 3);
    follower.until(|follower| follower.rollbacks.len() >= owned.len()).await;
    write(&cluster, "new-", 500);
    follower.has(keys("new-", 500)).await;
    // Each vbucket has lost three positions, whose documents were all different.
    let total: u64 = (0..64).map(|id| cluster.high_seqno(id)).sum();
    follower.until(|follower| follower.len() as u64 == total).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_nodes_may_be_lost_and_come_back() {
    let cluster = cluster(32, 500).await;
    let mut follower = Follower::open(&cluster, "").await;
    follower.catch_up().await;
    (0..3).for_each(|node| cluster.kill_node(node));
    for node in 0..3 {
        revive(&cluster, node).await;
    }
    write(&cluster, "after-", 300);
    follower.has(keys("after-", 300)).await;
    follower.has_exactly(keys("document-", 500).chain(keys("after-", 300)));
}
