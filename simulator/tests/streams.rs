//! Streams: snapshots from disk and memory, live changes, ends, resuming.

mod common;

use common::{Client, Options, briefs, from, small};
use sluicegate_mcbp::{Command, Opcode, Reply, Status};
use sluicegate_simulator::EndReason;

#[tokio::test]
async fn a_finite_stream_sends_what_is_in_memory_and_ends() {
    let cluster = small(|config| config.vbuckets = 1).await;
    for (key, value) in [("a", "1"), ("b", "2"), ("a", "3")] {
        cluster.set(key, value).unwrap();
    }
    cluster.delete("b").unwrap();
    let mut client = Client::dcp(&cluster, 0, &Options::default()).await;
    let log = client.stream(0, 4).await;
    assert_eq!(log, cluster.failover_log(0));
    assert_eq!(briefs(&client.until_end().await), ["[1..4 5]", "a=3@3", "-b@4", "end Ok"]);
}

#[tokio::test]
async fn what_left_the_memory_comes_from_disk_and_later_changes_live() {
    let cluster = small(|config| config.vbuckets = 1).await;
    for value in ["1", "2", "3"] {
        cluster.set("a", value).unwrap();
    }
    cluster.evict();
    cluster.set("b", "4").unwrap();
    let mut client = Client::dcp(&cluster, 0, &Options::default()).await;
    client.stream(0, u64::MAX).await;
    let mut events = Vec::new();
    for _ in 0..3 {
        events.push(client.event().await);
    }
    assert_eq!(briefs(&events), ["[0..4 6]", "a=3@3", "b=4@4"]);
    cluster.set("c", "5").unwrap();
    let events = [client.event().await, client.event().await];
    assert_eq!(briefs(&events), ["[5..5 5]", "c=5@5"]);
    cluster.end_streams(0, EndReason::TooSlow);
    assert_eq!(briefs(&client.until_end().await), ["end TooSlow"]);
}

#[tokio::test]
async fn a_stream_that_begins_at_its_end_is_over_at_once() {
    let cluster = small(|_| ()).await;
    let mut client = Client::dcp(&cluster, 0, &Options::default()).await;
    client.stream(3, 0).await;
    assert_eq!(briefs(&client.until_end().await), ["end Ok"]);
}

#[tokio::test]
async fn a_client_of_a_lost_history_must_roll_back() {
    let cluster = small(|config| config.vbuckets = 1).await;
    for value in ["1", "2", "3", "4"] {
        cluster.set("a", value).unwrap();
    }
    let uuid = cluster.failover_log(0).newest().unwrap().vbucket_uuid;
    let mut client = Client::dcp(&cluster, 0, &Options::default()).await;
    client.stream(0, u64::MAX).await;
    assert_eq!(briefs(&[client.event().await, client.event().await]), ["[1..4 5]", "a=4@4"]);
    cluster.fail_over_vbucket(0, 2);
    assert_eq!(briefs(&client.until_end().await), ["end Rollback"]);
    cluster.set("b", "new").unwrap();
    let refused = client.stream_request(0, from(4, uuid, u64::MAX)).await.unwrap_err();
    assert_eq!(refused, (Status::Rollback, Reply::Rollback(2)));
    let log = client.stream_request(0, from(2, uuid, u64::MAX)).await.unwrap();
    assert_eq!(log.0.len(), 2);
    assert_eq!(briefs(&[client.event().await, client.event().await]), ["[3..3 5]", "b=new@3"]);
}

#[tokio::test]
async fn a_closed_stream_ends_only_if_that_was_asked_for() {
    let cluster = small(|config| config.vbuckets = 1).await;
    let mut client = Client::dcp(&cluster, 0, &Options::default()).await;
    let close = || Command::DcpCloseStream(sluicegate_mcbp::Empty {});
    assert_eq!(client.ask(close()).await.status, Status::KeyNotFound);
    client.stream(0, u64::MAX).await;
    assert_eq!(client.stream_request(0, from(0, 0, 9)).await.unwrap_err().0, Status::KeyExists);
    assert_eq!(client.ask(close()).await.status, Status::Success);
    client.round_trip().await;
    assert!(client.pending.is_empty());
    assert_eq!(client.control("send_stream_end_on_client_close_stream", "true").await, Status::Success);
    client.stream(0, u64::MAX).await;
    assert_eq!(client.ask(close()).await.opcode, Opcode::DcpCloseStream);
    assert_eq!(briefs(&client.until_end().await), ["end Closed"]);
}
