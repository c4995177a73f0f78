//! Durable writes: nothing of one comes before it holds, and nothing of one that is given up.

use sluicegate_core::FeedStart;
use sluicegate_simulator::{Cluster, Durability};

use crate::{Follower, cluster, keys};

/// Keys of one vbucket.
fn neighbours(cluster: &Cluster, vbucket: u16) -> impl Iterator<Item = String> {
    keys("key-", 10_000).filter(move |key| cluster.vbucket_of(key.as_bytes()) == vbucket)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_durable_write_comes_when_it_holds_and_not_before() {
    let cluster = cluster(16, 0).await;
    let mut follower = Follower::open(&cluster, "").await;
    follower.catch_up().await;
    let [pending, later, other] = <[String; 3]>::try_from(neighbours(&cluster, 3).take(3).collect::<Vec<_>>()).unwrap();
    cluster.hold_durable_writes(3, true);
    cluster.set_durably(pending.clone(), "{}", Durability::Majority).unwrap();
    // What comes after it shows that it did not.
    cluster.set(later.clone(), "{}").unwrap();
    follower.has([later.clone()].into_iter()).await;
    follower.has_exactly([later.clone()].into_iter());
    let position = follower.position();
    cluster.hold_durable_writes(3, false);
    follower.has([pending.clone()].into_iter()).await;
    assert_eq!(follower.events, 2, "it comes once");

    cluster.set(other.clone(), "{}").unwrap();
    let mut resumed = Follower::open_at(&cluster, "", FeedStart::At(position)).await;
    resumed.catch_up().await;
    resumed.has_exactly([pending, other].into_iter());
    assert_eq!(resumed.rollbacks, []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_durable_write_that_is_given_up_never_comes_and_what_was_stays() {
    let cluster = cluster(16, 0).await;
    let [kept, lost, later] = <[String; 3]>::try_from(neighbours(&cluster, 3).take(3).collect::<Vec<_>>()).unwrap();
    cluster.set(kept.clone(), "{}").unwrap();
    let mut follower = Follower::open(&cluster, "").await;
    follower.catch_up().await;
    cluster.hold_durable_writes(3, true);
    for key in [&kept, &lost] {
        cluster.set_durably(key.clone(), r#"{"lost":1}"#, Durability::PersistToMajority).unwrap();
    }
    assert_eq!(cluster.abort_durable_writes(3), 2);
    cluster.set(later.clone(), "{}").unwrap();
    follower.has([later.clone()].into_iter()).await;
    follower.has_exactly([kept, later].into_iter());
    assert_eq!(follower.events, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_complete_at_the_end_holds_nobody_up() {
    let cluster = cluster(16, 200).await;
    for vbucket in 0..16 {
        cluster.hold_durable_writes(vbucket, true);
        let key = neighbours(&cluster, vbucket).next().unwrap();
        cluster.set_durably(key, "{}", Durability::Majority).unwrap();
    }
    for options in ["until=now", "until=now&collections=_default._default"] {
        let mut follower = Follower::open(&cluster, options).await;
        while let Some(batch) = follower.next().await {
            batch.unwrap();
        }
        assert!(follower.is_caught_up);
        follower.has_exactly(keys("document-", 200));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_may_take_a_durable_write_back_that_was_complete() {
    let cluster = cluster(16, 0).await;
    let [first, durable, later] = <[String; 3]>::try_from(neighbours(&cluster, 3).take(3).collect::<Vec<_>>()).unwrap();
    cluster.set(first.clone(), "{}").unwrap();
    cluster.set_durably(durable.clone(), "{}", Durability::Majority).unwrap();
    let mut follower = Follower::open(&cluster, "").await;
    follower.has([durable.clone()].into_iter()).await;
    cluster.hold_durable_writes(3, true);
    // It began at 2, and was committed at 3.
    cluster.fail_over_vbucket(3, 2);
    follower.until(|follower| !follower.rollbacks.is_empty()).await;
    cluster.set(later.clone(), "{}").unwrap();
    follower.has([later.clone()].into_iter()).await;
    follower.has([first.clone()].into_iter()).await;
    follower.has_exactly([first.clone(), later.clone()].into_iter());
    cluster.hold_durable_writes(3, false);
    follower.has([durable.clone()].into_iter()).await;
    follower.has_exactly([first, durable, later].into_iter());
}
