//! Durable writes: begun, held up, committed, given up.

mod common;

use common::{Client, Options, briefs, from, small};
use sluicegate_mcbp::dcp::{GetAllVbSeqnos, StreamFilter, StreamRequest};
use sluicegate_mcbp::hello::Feature;
use sluicegate_mcbp::{Command, Reply, Request, Status, kv};
use sluicegate_simulator::{Cluster, Durability};

const BASE: [Feature; 5] =
    [Feature::Xerror, Feature::SelectBucket, Feature::Json, Feature::MutationSeqno, Feature::SyncReplication];

/// One vbucket on three nodes, all of which are to have a copy.
async fn three() -> Cluster {
    small(|config| (config.nodes, config.vbuckets, config.replicas) = (3, 1, 2)).await
}

fn set(key: &'static str, value: &'static str, level: Durability) -> Request {
    Request::new(Command::Set(kv::Store { flags: 0, expiry: 0, key: key.into(), value: value.into() })).with_durability(level)
}

fn replicas(cluster: &Cluster) -> Vec<usize> {
    (0..3).filter(|node| cluster.owner(0) != Some(*node)).collect()
}

/// What a stream from the beginning has: to a client that wants to be told of durable writes, or one that does not.
async fn stream(cluster: &Cluster, options: Options, has_sync_writes: bool) -> Vec<String> {
    let options = if has_sync_writes { options.control("enable_sync_writes", "true") } else { options };
    let mut client = Client::dcp(cluster, cluster.owner(0).unwrap(), &options).await;
    client.stream(0, cluster.high_seqno(0)).await;
    briefs(&client.until_end().await)
}

#[tokio::test]
async fn a_durable_write_is_answered_when_a_majority_has_it() {
    let cluster = three().await;
    let (owner, replicas) = (cluster.owner(0).unwrap(), replicas(&cluster));
    let mut client = Client::ready(&cluster, owner, &BASE).await;
    let stored = client.request(set("a", "1", Durability::Majority)).await;
    let Reply::Stored(kv::Stored { written: Some(written) }) = stored.reply else { panic!("{:?}", stored.reply) };
    assert_eq!((written.seqno, cluster.high_seqno(0)), (2, 2), "it began at 1");
    for (level, holds) in
        [(Durability::Majority, 0), (Durability::MajorityAndPersistToActive, 1), (Durability::PersistToMajority, 2)]
    {
        // One replica is enough; so is one disk of two.
        replicas.iter().for_each(|node| cluster.hold_replication(0, *node, holds == 0));
        cluster.hold_persistence(0, owner, holds == 1);
        replicas.iter().for_each(|node| cluster.hold_persistence(0, *node, holds == 2));
        client.send(&set("b", "2", level).with_opaque(77)).await;
        client.send(&Request::new(Command::Noop(sluicegate_mcbp::Empty {})).with_opaque(78)).await;
        let mut other = Client::ready(&cluster, owner, &BASE).await;
        let in_progress = async |other: &mut Client| other.ask(Command::Delete(kv::Key { key: "b".into() })).await.status;
        while in_progress(&mut other).await != Status::SyncWriteInProgress {}
        cluster.hold_replication(0, replicas[0], false);
        cluster.hold_persistence(0, owner, false);
        cluster.hold_persistence(0, replicas[1], false);
        for opaque in [77, 78] {
            let frame = client.frame().await.unwrap();
            assert_eq!((frame.header().opaque, frame.header().vbucket_or_status), (opaque, 0), "{level:?}: one after the other");
        }
    }
}

#[tokio::test]
async fn a_durable_write_that_is_given_up_leaves_what_was() {
    let cluster = three().await;
    cluster.set("a", "before").unwrap();
    cluster.hold_durable_writes(0, true);
    let mut client = Client::ready(&cluster, cluster.owner(0).unwrap(), &BASE).await;
    client.send(&set("a", "after", Durability::Majority).with_opaque(77)).await;
    let mut other = Client::ready(&cluster, cluster.owner(0).unwrap(), &BASE).await;
    while cluster.high_seqno(0) < 2 {
        other.round_trip().await;
    }
    let Reply::Document(document) = other.ask(Command::Get(kv::Key { key: "a".into() })).await.reply else { panic!() };
    assert_eq!(&document.value[..], b"before");
    assert_eq!(cluster.abort_durable_writes(0), 1);
    let frame = client.frame().await.unwrap();
    assert_eq!((frame.header().opaque, Status::from(frame.header().vbucket_or_status)), (77, Status::SyncWriteAmbiguous));
    let Reply::Document(document) = other.ask(Command::Get(kv::Key { key: "a".into() })).await.reply else { panic!() };
    assert_eq!(&document.value[..], b"before");
    assert_eq!(cluster.set("a", "free").unwrap().seqno, 4);
}

#[tokio::test]
async fn what_cannot_be_durable_is_refused() {
    let cluster = three().await;
    let mut client = Client::ready(&cluster, cluster.owner(0).unwrap(), &BASE).await;
    assert_eq!(client.request(set("a", "1", Durability::Other(9))).await.status, Status::DurabilityInvalidLevel);
    let touch = Request::new(Command::Touch(kv::Touch { expiry: 1, key: "a".into() })).with_durability(Durability::Majority);
    assert_eq!(client.request(touch).await.status, Status::NotSupported);
    let delete = Request::new(Command::Delete(kv::Key { key: "a".into() })).with_durability(Durability::Majority);
    assert_eq!(client.request(delete.clone()).await.status, Status::KeyNotFound);
    client.request(set("a", "1", Durability::Majority)).await;
    assert_eq!(client.request(delete).await.status, Status::Success);
    replicas(&cluster).into_iter().for_each(|node| cluster.fail_over(node, 0));
    assert_eq!(client.request(set("a", "1", Durability::Majority)).await.status, Status::DurabilityImpossible);
}

#[tokio::test]
async fn streams_tell_durable_writes_as_agreed() {
    let cluster = three().await;
    cluster.set("a", "1").unwrap();
    cluster.set_durably("b", "2", Durability::Majority).unwrap();
    cluster.hold_durable_writes(0, true);
    cluster.set_durably("c", "lost", Durability::Majority).unwrap();
    assert_eq!(cluster.abort_durable_writes(0), 1);
    cluster.set_durably("d", "pending", Durability::PersistToMajority).unwrap();
    let told = ["[1..6 5]", "a=1@1", "?b=2@2", "!b@3 of 2", "?c=lost@4", "xc@5 of 4", "?d=pending@6", "end Ok"];
    assert_eq!(stream(&cluster, Options::default(), true).await, told);
    // Whoever has no collections cannot be told a position without an item.
    assert_eq!(stream(&cluster, Options::default(), false).await, ["[1..3 5]", "a=1@1", "b=2@3", "end Ok"]);
    let positions = ["[1..6 5]", "\0a=1@1", "\0b=2@3", ">6", "end Ok"];
    assert_eq!(stream(&cluster, Options::with_collections(), false).await, positions);
    cluster.evict();
    let from_disk = ["[0..6 6]", "a=1@1", "b=2@3", "xc@5 of 4", "?d=pending@6", "end Ok"];
    assert_eq!(stream(&cluster, Options::default(), true).await, from_disk);
    assert_eq!(stream(&cluster, Options::default(), false).await, ["[0..3 6]", "a=1@1", "b=2@3", "end Ok"]);
    cluster.hold_durable_writes(0, false);
    assert_eq!(cluster.high_seqno(0), 7);
    let at_last = ["[0..7 6]", "a=1@1", "b=2@3", "d=pending@7", "end Ok"];
    assert_eq!(stream(&cluster, Options::default(), false).await, at_last);
}

#[tokio::test]
async fn the_last_position_that_is_told_is_one_that_is_delivered() {
    let cluster = three().await;
    cluster.set("a", "1").unwrap();
    cluster.hold_durable_writes(0, true);
    cluster.set_durably("b", "2", Durability::Majority).unwrap();
    let ask = || Command::GetAllVbSeqnos(GetAllVbSeqnos { state: None, collection: None });
    for (options, expected) in
        [(Options::with_collections(), 1), (Options::with_collections().control("enable_sync_writes", "true"), 2)]
    {
        let mut client = Client::dcp(&cluster, cluster.owner(0).unwrap(), &options).await;
        let Reply::VbSeqnos(list) = client.ask(ask()).await.reply else { panic!() };
        assert_eq!(list.seqnos.0, [(0, expected)]);
    }
}

#[tokio::test]
async fn a_failover_makes_a_durable_write_incomplete_again() {
    let cluster = three().await;
    cluster.set("a", "1").unwrap();
    cluster.set_durably("b", "2", Durability::Majority).unwrap();
    cluster.hold_durable_writes(0, true);
    cluster.fail_over_vbucket(0, 2);
    assert_eq!(stream(&cluster, Options::default(), true).await, ["[1..2 5]", "a=1@1", "?b=2@2", "end Ok"]);
    cluster.hold_durable_writes(0, false);
    assert_eq!(stream(&cluster, Options::default(), false).await, ["[1..3 5]", "a=1@1", "b=2@3", "end Ok"]);
}

#[tokio::test]
async fn durable_writes_of_some_collections_only_cannot_be_told() {
    let cluster = three().await;
    let options = Options::with_collections().control("enable_sync_writes", "true");
    let mut client = Client::dcp(&cluster, cluster.owner(0).unwrap(), &options).await;
    let filter = StreamFilter { collections: vec![0], ..StreamFilter::default() };
    let request = StreamRequest { filter: filter.encode().unwrap(), ..from(0, 0, 9) };
    assert_eq!(client.stream_request(0, request).await.unwrap_err().0, Status::NotSupported);
}
