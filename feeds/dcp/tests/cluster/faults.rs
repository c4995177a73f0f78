//! What goes wrong on the way.

use sluicegate_core::{Feed as _, FeedStart};
use sluicegate_dcp::{DcpFeed, VbucketState};
use sluicegate_mcbp::Datatype;
use sluicegate_simulator::bucket::Content;
use sluicegate_simulator::{EndReason, Opcode, Status};

use crate::follower::url;
use crate::{Follower, cluster, keys, write};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_in_pieces_arrive_whole() {
    let cluster = cluster(64, 2_000).await;
    cluster.set_faults(|faults| faults.split_percent = 90);
    let mut follower = Follower::open(&cluster, "").await;
    follower.catch_up().await;
    follower.has_exactly(keys("document-", 2_000));
    assert_eq!((follower.repeated, follower.feed.status().counters.connections), (0, 3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_are_cut_are_made_again_and_nothing_comes_twice() {
    let cluster = cluster(32, 2_000).await;
    cluster.set_faults(|faults| faults.cut_after = Some(100_000));
    let mut follower = Follower::open(&cluster, "buffer=65536").await;
    follower.catch_up().await;
    follower.has_exactly(keys("document-", 2_000));
    assert_eq!(follower.repeated, 0);
    assert!(follower.feed.status().counters.connection_errors > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_value_that_cannot_be_decompressed_stops_nothing() {
    let cluster = cluster(16, 0).await;
    write(&cluster, "old-", 200);
    let broken = || Content { value: "no Snappy".into(), datatype: Datatype::SNAPPY | Datatype::JSON, ..Content::default() };
    let key = "broken-0000000";
    cluster.write(0, key, broken()).unwrap();
    write(&cluster, "new-", 200);
    let all = || keys("old-", 200).chain(keys("broken-", 1)).chain(keys("new-", 200));
    let mut follower = Follower::open(&cluster, "").await;
    follower.catch_up().await;
    follower.has_exactly(all());
    assert_eq!((follower.repeated, follower.feed.status().counters.undecoded_values), (0, 1));
    assert_eq!(follower.feed.status().counters.connection_errors, 0);
    let position = follower.position();

    // Connections that break for another reason do not bring it again, nor does a restart.
    cluster.drop_connections();
    write(&cluster, "later-", 200);
    follower.has(keys("later-", 200)).await;
    assert_eq!((follower.repeated, follower.feed.status().counters.undecoded_values), (0, 1));
    let mut second = Follower::open_at(&cluster, "", FeedStart::At(position)).await;
    second.has(keys("later-", 200)).await;
    second.has_exactly(keys("later-", 200));
    assert_eq!(second.feed.status().counters.undecoded_values, 0);

    // A rollback past the value completes: the value comes again, and the events after it.
    let vbucket = cluster.vbucket_of(key.as_bytes());
    cluster.fail_over_vbucket(vbucket, cluster.high_seqno(vbucket) - 1);
    follower.until(|follower| !follower.rollbacks.is_empty()).await;
    follower.until(|follower| follower.returning.is_empty()).await;
    cluster.write(0, key, broken()).unwrap();
    write(&cluster, "last-", 200);
    follower.has(keys("last-", 200).chain(keys("broken-", 1)).chain(keys("new-", 200))).await;
    assert!(follower.feed.status().counters.undecoded_values >= 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_consumer_holds_the_server_back_and_gets_everything() {
    let cluster = cluster(64, 20_000).await;
    let mut follower = Follower::open(&cluster, "buffer=65536&until=now").await;
    // Each event takes over 300 bytes; a node sends its window, and at most one message more.
    let most = 3 * (65_536 / 300 + 1);
    let mut highest = 0;
    loop {
        let ahead = follower.feed.status().counters.events.saturating_sub(follower.taken);
        highest = highest.max(ahead);
        assert!(ahead <= most + 3 * 64, "{ahead} events wait");
        match follower.next().await {
            Some(batch) => drop(batch.unwrap()),
            None => break,
        }
    }
    follower.has_exactly(keys("document-", 20_000));
    assert!(highest > 0);
    assert!(follower.feed.status().counters.acknowledged_bytes > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_streams_are_asked_for_again() {
    let cluster = cluster(32, 500).await;
    let statuses = [
        Status::NotMyVbucket,
        Status::TemporaryFailure,
        Status::Busy,
        Status::NoMemory,
        Status::Internal,
        Status::Range,
        Status::KeyExists,
        Status::Other(0x7777),
        Status::AccessDenied,
    ];
    for (vbucket, status) in statuses.into_iter().enumerate() {
        cluster.refuse_stream(Some(vbucket as u16), status);
    }
    let mut follower = Follower::open(&cluster, "").await;
    follower.catch_up().await;
    follower.has_exactly(keys("document-", 500));
    let status = follower.feed.status();
    for vbucket in 0..9 {
        assert_eq!(status.vbuckets[vbucket].reopens, 1, "{:?}", status.vbuckets[vbucket]);
        assert_eq!(status.vbuckets[vbucket].state, VbucketState::Streaming);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_is_refused_for_good_ends_the_feed_with_the_reason() {
    let cluster = cluster(32, 500).await;
    (0..20).for_each(|_| cluster.refuse_stream(Some(7), Status::AccessDenied));
    let mut follower = Follower::open(&cluster, "").await;
    let error = loop {
        match follower.next().await.expect("an error") {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert!(error.to_string().contains("vbucket 7") && error.to_string().contains("roles"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_that_end_for_any_reason_are_opened_again() {
    let cluster = cluster(32, 500).await;
    let mut follower = Follower::open(&cluster, "").await;
    follower.catch_up().await;
    for (vbucket, code) in [0, 1, 2, 3, 4, 5, 6, 99].into_iter().enumerate() {
        cluster.end_streams(vbucket as u16, EndReason::from(code));
    }
    write(&cluster, "new-", 500);
    follower.has(keys("new-", 500)).await;
    follower.has_exactly(keys("document-", 500).chain(keys("new-", 500)));
    assert_eq!(follower.repeated, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silence_is_noticed_and_the_connection_made_again() {
    let cluster = cluster(16, 200).await;
    let mut follower = Follower::open(&cluster, "noop_interval=1").await;
    follower.catch_up().await;
    cluster.pause();
    while follower.feed.status().counters.connection_errors < 3 {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    cluster.resume();
    write(&cluster, "new-", 100);
    follower.has(keys("new-", 100)).await;
    follower.has_exactly(keys("document-", 200).chain(keys("new-", 100)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_never_comes_is_not_waited_for_for_ever() {
    let cluster = cluster(16, 200).await;
    cluster.set_faults(|faults| {
        faults.unanswered.insert(Opcode::DcpStreamRequest);
    });
    let feed = DcpFeed::connect(&url(&cluster, "timeout_ms=500")).await.unwrap();
    let stream = feed.open(FeedStart::Beginning).await.unwrap();
    while feed.status().counters.connection_errors == 0 {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    drop(stream);
}
