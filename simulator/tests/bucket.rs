//! The state of a bucket, without sockets.

use bytes::Bytes;
use sluicegate_mcbp::value::{Attribute, join_attributes};
use sluicegate_mcbp::{Datatype, Status};
use sluicegate_simulator::bucket::{Arithmetic, Bucket, Content, DocumentKey, Identity, Kind, Write};

fn bucket(seed: u64) -> Bucket {
    Bucket::new("b", 2, Identity::new(seed), |_| vec![Some(0), Some(1)])
}

fn key(key: &str) -> DocumentKey {
    DocumentKey { collection: 0, key: Bytes::copy_from_slice(key.as_bytes()) }
}

fn content(value: &str) -> Content {
    Content { value: Bytes::copy_from_slice(value.as_bytes()), ..Content::default() }
}

fn set(bucket: &mut Bucket, name: &str, value: &str) -> u64 {
    bucket.store(0, key(name), Write::Set, content(value), 0).unwrap().seqno
}

/// The keys and positions that a snapshot up to `end` from disk has.
fn snapshot(bucket: &Bucket, end: u64) -> Vec<(String, u64)> {
    let items = bucket.vbuckets()[0].after(0).iter().filter(|item| item.seqno <= end && item.superseded_by > end);
    items.map(|item| (String::from_utf8_lossy(&item.key).into_owned(), item.seqno)).collect()
}

#[test]
fn the_same_seed_gives_the_same_identities() {
    let run = |seed| {
        let mut bucket = bucket(seed);
        let stored = bucket.store(1, key("a"), Write::Set, content("1"), 0).unwrap();
        bucket.fail_over(1, 0);
        (bucket.uuid().to_owned(), stored, bucket.vbuckets()[1].failover_log().clone())
    };
    assert_eq!(run(7), run(7));
    assert_ne!(run(7), run(8));
}

#[test]
fn writes_ask_for_what_they_need() {
    let mut bucket = bucket(1);
    let store = |bucket: &mut Bucket, write, cas| bucket.store(0, key("a"), write, content("1"), cas);
    assert_eq!(store(&mut bucket, Write::Replace, 0), Err(Status::KeyNotFound));
    assert_eq!(store(&mut bucket, Write::Set, 9), Err(Status::KeyNotFound));
    let first = store(&mut bucket, Write::Add, 0).unwrap();
    assert_eq!(store(&mut bucket, Write::Add, 0), Err(Status::KeyExists));
    assert_eq!(store(&mut bucket, Write::Set, first.cas + 1), Err(Status::KeyExists));
    let second = store(&mut bucket, Write::Replace, first.cas).unwrap();
    assert!(second.cas > first.cas && second.seqno == 2);
    assert_eq!(bucket.delete(0, key("a"), first.cas), Err(Status::KeyExists));
    bucket.delete(0, key("a"), second.cas).unwrap();
    assert_eq!(bucket.get(0, &key("a")).err(), Some(Status::KeyNotFound));
    assert_eq!(store(&mut bucket, Write::Add, 0).unwrap().seqno, 4);
    assert_eq!(bucket.get(0, &key("a")).unwrap().rev, 4);
    assert_eq!(bucket.get(9, &key("a")).err(), Some(Status::NotMyVbucket));
    let elsewhere = DocumentKey { collection: 77, ..key("a") };
    assert_eq!(bucket.get(0, &elsewhere).err(), Some(Status::UnknownCollection));
}

#[test]
fn documents_are_extended_and_counted() {
    let mut bucket = bucket(1);
    assert_eq!(bucket.extend(0, key("a"), b"x", false, 0), Err(Status::NotStored));
    set(&mut bucket, "a", "b");
    bucket.extend(0, key("a"), b"c", false, 0).unwrap();
    bucket.extend(0, key("a"), b"a", true, 0).unwrap();
    assert_eq!(&bucket.get(0, &key("a")).unwrap().value[..], b"abc");
    let mut change = Arithmetic { delta: 5, is_decrement: false, initial: None, expiry: 0 };
    assert_eq!(bucket.count(0, key("n"), change), Err(Status::KeyNotFound));
    assert_eq!(bucket.count(0, key("a"), change), Err(Status::NotANumber));
    change.initial = Some(2);
    assert_eq!(bucket.count(0, key("n"), change).unwrap().1, 2);
    assert_eq!(bucket.count(0, key("n"), change).unwrap().1, 7);
    change.is_decrement = true;
    change.delta = 9;
    assert_eq!(bucket.count(0, key("n"), change).unwrap().1, 0);
}

#[test]
fn documents_expire_when_the_clock_says_so() {
    let mut bucket = bucket(1);
    let timed = Content { expiry: 60, ..content("1") };
    bucket.store(0, key("a"), Write::Set, timed.clone(), 0).unwrap();
    bucket.store(0, key("b"), Write::Set, timed, 0).unwrap();
    bucket.touch(0, key("b"), 600).unwrap();
    bucket.identity().advance(59);
    assert_eq!(bucket.expire(), 0);
    bucket.identity().advance(1);
    assert_eq!(bucket.get(0, &key("a")).err(), Some(Status::KeyNotFound), "reading removes it");
    assert_eq!(bucket.expire(), 0);
    assert_eq!(bucket.vbuckets()[0].find(&key("a")).unwrap().kind, Kind::Expiration);
    bucket.identity().advance(600);
    assert_eq!(bucket.expire(), 1);
}

#[test]
fn a_removal_keeps_the_attributes_of_the_server() {
    let mut bucket = bucket(1);
    let attribute = |name: &'static str| Attribute { name: name.into(), value: "{}".into() };
    let value = join_attributes(&[attribute("_sync"), attribute("user")], b"body").unwrap();
    let content = Content { value, datatype: Datatype::XATTR, ..Content::default() };
    bucket.store(0, key("a"), Write::Set, content, 0).unwrap();
    bucket.delete(0, key("a"), 0).unwrap();
    let item = bucket.vbuckets()[0].find(&key("a")).unwrap();
    assert_eq!(item.value, join_attributes(&[attribute("_sync")], &[]).unwrap());
    assert_eq!((item.datatype, &item.kind), (Datatype::XATTR, &Kind::Deletion));
}

#[test]
fn a_failover_brings_back_what_the_lost_changes_had_replaced() {
    let mut bucket = bucket(1);
    for (name, value) in [("a", "1"), ("b", "2"), ("a", "3"), ("c", "4")] {
        set(&mut bucket, name, value);
    }
    assert_eq!(snapshot(&bucket, 4), [("b".to_owned(), 2), ("a".to_owned(), 3), ("c".to_owned(), 4)]);
    bucket.fail_over(0, 2);
    let vbucket = &bucket.vbuckets()[0];
    assert_eq!((vbucket.high_seqno(), vbucket.num_documents(), vbucket.branch()), (2, 2, 1));
    assert_eq!(snapshot(&bucket, 2), [("a".to_owned(), 1), ("b".to_owned(), 2)]);
    assert_eq!(&bucket.get(0, &key("a")).unwrap().value[..], b"1");
    let log = bucket.vbuckets()[0].failover_log().clone();
    assert_eq!(log.0.iter().map(|entry| entry.seqno).collect::<Vec<_>>(), [2, 0]);
    set(&mut bucket, "d", "5");
    bucket.fail_over(0, 1);
    let log = bucket.vbuckets()[0].failover_log();
    assert_eq!(log.0.iter().map(|entry| entry.seqno).collect::<Vec<_>>(), [1, 0], "a history above it never was");
}

#[test]
fn a_failover_log_does_not_grow_for_ever() {
    let mut bucket = bucket(1);
    for _ in 0..40 {
        let seqno = set(&mut bucket, "a", "1");
        bucket.fail_over(0, seqno);
    }
    assert_eq!(bucket.vbuckets()[0].failover_log().0.len(), 25);
}

#[test]
fn a_purge_takes_deletions_and_replaced_changes() {
    let mut bucket = bucket(1);
    for (name, value) in [("a", "1"), ("b", "2"), ("a", "3")] {
        set(&mut bucket, name, value);
    }
    bucket.delete(0, key("b"), 0).unwrap();
    set(&mut bucket, "c", "5");
    let vbucket = bucket.vbucket_mut(0).unwrap();
    vbucket.purge(4);
    assert_eq!((vbucket.purge_seqno(), vbucket.high_seqno()), (4, 5));
    assert!(vbucket.find(&key("b")).is_none());
    assert_eq!(snapshot(&bucket, 5), [("a".to_owned(), 3), ("c".to_owned(), 5)]);
    for (after, left) in [(0, 2), (2, 2), (3, 1), (4, 1), (5, 0), (9, 0)] {
        assert_eq!(bucket.vbuckets()[0].after(after).len(), left, "after {after}");
    }
}

#[test]
fn what_is_held_back_arrives_when_it_is_let_go() {
    let mut bucket = bucket(1);
    let vbucket = bucket.vbucket_mut(0).unwrap();
    vbucket.hold_persistence(0, true);
    vbucket.hold_replication(1, true);
    set(&mut bucket, "a", "1");
    let seqnos = |bucket: &Bucket| {
        let copy = |node| bucket.vbuckets()[0].copy(node).map(|copy| (copy.high_seqno, copy.persisted_seqno)).unwrap();
        [copy(0), copy(1)]
    };
    assert_eq!(seqnos(&bucket), [(1, 0), (0, 0)]);
    let vbucket = bucket.vbucket_mut(0).unwrap();
    vbucket.evict();
    assert_eq!(vbucket.memory_from(), 1, "what is not on disk stays in memory");
    vbucket.hold_persistence(0, false);
    vbucket.hold_replication(1, false);
    assert_eq!(seqnos(&bucket), [(1, 1), (1, 1)]);
}

#[test]
fn a_dropped_collection_takes_its_documents_along() {
    let mut bucket = bucket(1);
    let scope = bucket.create_scope("s").unwrap();
    let collection = bucket.create_collection("s", "c", Some(100)).unwrap();
    assert_eq!(bucket.create_collection("s", "c", None), None);
    assert_eq!(bucket.manifest().resolve("s.c"), Some(collection));
    let there = DocumentKey { collection, ..key("a") };
    bucket.store(0, there.clone(), Write::Set, content("1"), 0).unwrap();
    let expiry = bucket.get(0, &there).unwrap().time;
    assert_eq!(u64::from(expiry), bucket.now() + 100, "the collection limits how long they live");
    assert!(bucket.drop_scope(scope));
    assert_eq!(bucket.get(0, &there).err(), Some(Status::UnknownCollection));
    let vbucket = &bucket.vbuckets()[0];
    assert_eq!(vbucket.last_seqno(0, vbucket.high_seqno(), |item| !item.is_system()), None);
    assert_eq!(vbucket.high_seqno(), 5, "four events and a document");
}

#[test]
fn a_flush_keeps_collections_and_a_new_bucket_has_none() {
    let mut bucket = bucket(1);
    bucket.create_scope("s").unwrap();
    let collection = bucket.create_collection("s", "c", None).unwrap();
    set(&mut bucket, "a", "1");
    let before = (bucket.uuid().to_owned(), bucket.vbuckets()[0].vbucket_uuid());
    bucket.flush();
    assert_eq!(bucket.vbuckets()[0].high_seqno(), 2);
    assert_eq!(bucket.manifest().resolve("s.c"), Some(collection));
    assert_ne!(before, (bucket.uuid().to_owned(), bucket.vbuckets()[0].vbucket_uuid()));
    bucket.recreate();
    assert_eq!((bucket.vbuckets()[0].high_seqno(), bucket.manifest().resolve("s.c")), (0, None));
}

#[test]
fn keys_are_hashed_to_vbuckets_as_clients_do() {
    let bucket = Bucket::new("b", 1024, Identity::new(1), |_| vec![Some(0)]);
    for (key, vbucket) in [("hello", 528), ("", 0)] {
        assert_eq!(bucket.vbucket_of(key.as_bytes()), vbucket, "{key}");
    }
}
