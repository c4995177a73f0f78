//! Nodes that die, fail over, move; and connections on which something goes wrong.

mod common;

use std::collections::HashSet;
use std::time::Duration;

use common::{Client, Options, briefs, from, small};
use sluicegate_mcbp::config::ClusterMap;
use sluicegate_mcbp::hello::{Feature, GetClusterConfig};
use sluicegate_mcbp::{Command, Empty, Opcode, Reply, Request, Status};
use sluicegate_simulator::{Cluster, Load};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

async fn three() -> Cluster {
    small(|config| (config.nodes, config.vbuckets) = (3, 6)).await
}

fn options(name: &'static str) -> Options {
    let mut options = Options { name, ..Options::default() };
    options.features.extend([Feature::Duplex, Feature::ClusterMapNotification]);
    options
}

/// Documents that are in vbucket 0.
fn keys(cluster: &Cluster) -> impl Iterator<Item = String> {
    let names = (0..).map(|i| format!("key{i}"));
    let hashes: Vec<String> = names.take(200).filter(|key| cluster.vbucket_of(key.as_bytes()) == 0).collect();
    hashes.into_iter()
}

#[tokio::test]
async fn a_rebalance_ends_streams_and_pushes_the_map() {
    let cluster = three().await;
    let old = cluster.owner(0).unwrap();
    let new = (old + 2) % 3;
    let mut client = Client::dcp(&cluster, old, &options("old")).await;
    let log = client.stream(0, u64::MAX).await;
    cluster.rebalance(&[(0, new)]);
    let map = ClusterMap::parse(&client.pushed_map().await, "127.0.0.1").unwrap();
    assert_eq!(map.owner(0).map(|server| server.0), Some(new));
    assert_eq!(briefs(&client.until_end().await), ["end StateChanged"]);
    let refused = client.stream_request(0, from(0, 0, u64::MAX)).await.unwrap_err();
    assert_eq!(refused.0, Status::NotMyVbucket);
    let mut client = Client::dcp(&cluster, new, &options("new")).await;
    assert_eq!(client.stream(0, u64::MAX).await, log, "a vbucket that moves keeps its history");
}

#[tokio::test]
async fn a_failover_loses_what_the_replica_does_not_have() {
    let cluster = three().await;
    let owner = cluster.owner(0).unwrap();
    let replica = (owner + 1) % 3;
    let mut keys = keys(&cluster);
    let mut set = |count: usize| keys.by_ref().take(count).for_each(|key| assert!(cluster.set(key, "1").is_ok()));
    set(3);
    cluster.hold_replication(0, replica, true);
    set(2);
    let uuid = cluster.failover_log(0).newest().unwrap().vbucket_uuid;
    cluster.kill_node(owner);
    if let Ok(mut socket) = TcpStream::connect(cluster.addresses()[owner]).await {
        // It was accepted before the listener was gone, and is closed.
        assert!(matches!(socket.read(&mut [0; 1]).await, Ok(0) | Err(_)));
    }
    cluster.fail_over(owner, 1);
    assert_eq!(cluster.owner(0), Some(replica));
    assert_eq!(cluster.high_seqno(0), 3, "the replica had three, of five");
    let mut client = Client::dcp(&cluster, replica, &options("x")).await;
    let refused = client.stream_request(0, from(5, uuid, u64::MAX)).await.unwrap_err();
    assert_eq!(refused, (Status::Rollback, Reply::Rollback(3)));
    let log = client.stream_request(0, from(3, uuid, u64::MAX)).await.unwrap();
    assert_eq!(log.0.iter().map(|entry| entry.seqno).collect::<Vec<_>>(), [3, 0]);
    let json = common::plain_value(client.ask(Command::GetClusterConfig(GetClusterConfig::default())).await);
    let map = ClusterMap::parse(&json, "127.0.0.1").unwrap();
    assert_eq!(map.nodes.len(), 2);
    assert!(!cluster.connection_string().contains(&cluster.addresses()[owner].to_string()));
}

#[tokio::test]
async fn a_node_that_crashes_comes_back_with_what_was_on_disk() {
    let cluster = small(|config| (config.vbuckets, config.replicas) = (1, 0)).await;
    cluster.set("a", "1").unwrap();
    cluster.hold_persistence(0, 0, true);
    cluster.set("b", "2").unwrap();
    let mut client = Client::dcp(&cluster, 0, &options("x")).await;
    cluster.kill_node(0);
    assert!(client.is_closed().await);
    cluster.revive_node(0).await.unwrap();
    assert_eq!(cluster.high_seqno(0), 1);
    assert_eq!(cluster.failover_log(0).0.len(), 2);
    let mut client = Client::dcp(&cluster, 0, &options("x")).await;
    client.stream(0, 1).await;
    assert_eq!(briefs(&client.until_end().await), ["[1..1 5]", "a=1@1", "end Ok"]);
}

#[tokio::test]
async fn a_flush_closes_connections_and_changes_the_bucket() {
    let cluster = small(|config| config.vbuckets = 1).await;
    cluster.set("a", "1").unwrap();
    let map = async |client: &mut Client| {
        let json = common::plain_value(client.ask(Command::GetClusterConfig(GetClusterConfig::default())).await);
        ClusterMap::parse(&json, "127.0.0.1").unwrap()
    };
    let mut client = Client::dcp(&cluster, 0, &options("x")).await;
    let before = map(&mut client).await;
    cluster.flush_bucket();
    assert!(client.is_closed().await);
    let mut client = Client::dcp(&cluster, 0, &options("x")).await;
    let after = map(&mut client).await;
    assert!(after.uuid != before.uuid && after.is_newer_than(before.revision));
    assert_eq!(cluster.high_seqno(0), 0);
}

#[tokio::test]
async fn planned_answers_are_given_once() {
    let cluster = three().await;
    let owner = cluster.owner(0).unwrap();
    let mut client = Client::dcp(&cluster, owner, &options("x")).await;
    cluster.refuse_stream(Some(0), Status::TemporaryFailure);
    cluster.refuse_stream(None, Status::NoMemory);
    for status in [Status::TemporaryFailure, Status::NoMemory] {
        assert_eq!(client.stream_request(0, from(0, 0, 9)).await.unwrap_err().0, status);
    }
    client.stream(0, u64::MAX).await;
}

#[tokio::test]
async fn frames_arrive_whole_however_they_are_cut() {
    let cluster = small(|config| config.vbuckets = 1).await;
    let mut load = Load::default();
    load.documents = 300;
    cluster.load(&load).unwrap();
    let mut whole = Client::dcp(&cluster, 0, &options("x")).await;
    whole.stream(0, 300).await;
    let expected = briefs(&whole.until_end().await);
    cluster.set_faults(|faults| faults.split_percent = 100);
    let mut client = Client::dcp(&cluster, 0, &options("y")).await;
    client.stream(0, 300).await;
    assert_eq!(briefs(&client.until_end().await), expected);
    assert_eq!(expected.len(), 302);
    cluster.set_faults(|faults| (faults.split_percent, faults.cut_after) = (0, Some(20_000)));
    let mut client = Client::dcp(&cluster, 0, &options("z")).await;
    client.stream(0, 300).await;
    let mut count = 0;
    while client.next().await.is_some() {
        count += 1;
    }
    assert!((1..300).contains(&count), "{count}");
}

#[tokio::test]
async fn a_connection_can_be_paused_silenced_and_dropped() {
    let cluster = small(|config| config.vbuckets = 1).await;
    let mut client = Client::dcp(&cluster, 0, &options("x")).await;
    let noop = || Request::new(Command::Noop(Empty {}));
    cluster.pause();
    client.send(&noop()).await;
    assert!(tokio::time::timeout(Duration::from_millis(50), client.frame()).await.is_err());
    cluster.resume();
    assert!(client.frame().await.is_some());
    cluster.set_faults(|faults| faults.unanswered = HashSet::from([Opcode::Noop]));
    client.send(&noop()).await;
    assert_eq!(client.control("set_priority", "low").await, Status::Success, "the one before it has no answer");
    cluster.set_faults(|faults| {
        faults.unanswered.clear();
        faults.delay = Duration::from_millis(1);
    });
    client.round_trip().await;
    cluster.drop_connections();
    assert!(client.is_closed().await);
    let mut client = Client::dcp(&cluster, 0, &options("x")).await;
    client.round_trip().await;
    drop(cluster);
    assert!(client.is_closed().await);
}

#[tokio::test]
async fn many_documents_arrive_each_once_from_all_nodes() {
    let cluster = small(|config| (config.nodes, config.vbuckets) = (3, 64)).await;
    let mut load = Load::default();
    load.documents = 20_000;
    cluster.load(&load).unwrap();
    let mut seen = HashSet::new();
    for node in 0..3 {
        let mut client = Client::dcp(&cluster, node, &options("x")).await;
        let mine: Vec<u16> = (0..64).filter(|vbucket| cluster.owner(*vbucket) == Some(node)).collect();
        for vbucket in &mine {
            client.stream(*vbucket, cluster.high_seqno(*vbucket)).await;
        }
        let mut open = mine.len();
        while open > 0 {
            match client.event().await {
                Command::DcpMutation(mutation) => assert!(seen.insert(mutation.key)),
                Command::DcpStreamEnd(_) => open -= 1,
                _ => (),
            }
        }
    }
    assert_eq!(seen.len(), 20_000);
}
