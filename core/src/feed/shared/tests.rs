use std::sync::Arc;

use async_trait::async_trait;
use futures::StreamExt as _;
use parking_lot::Mutex;

use super::*;
use crate::Result;
use crate::error::{Error, ErrorKind};
use crate::feed::position::{PositionTracker, SnapshotEnds};
use crate::feed::{Feed, FeedCapabilities, FeedInfo, FeedStream, Mutation};

const P: PartitionId = PartitionId(1);
const Q: PartitionId = PartitionId(2);

fn mutation(partition: PartitionId, seqno: u64, key: &str, collection: u32) -> FeedEvent {
    let mut mutation = Mutation::new(key.to_owned(), "");
    (mutation.partition, mutation.seqno, mutation.collection) = (partition, PartitionSeqno(seqno), collection);
    FeedEvent::Mutation(mutation)
}

fn advanced(partition: PartitionId, seqno: u64) -> FeedEvent {
    FeedEvent::SeqnoAdvanced { partition, seqno: PartitionSeqno(seqno) }
}

fn snapshot(partition: PartitionId, start: u64, end: u64) -> FeedEvent {
    FeedEvent::SnapshotStart { partition, start: PartitionSeqno(start), end: PartitionSeqno(end) }
}

fn rollback(partition: PartitionId, to: u64) -> FeedEvent {
    FeedEvent::Rollback { partition, to: PartitionSeqno(to) }
}

fn state(partition: PartitionId, log: &[(u64, u64)]) -> FeedEvent {
    FeedEvent::PartitionState { partition, uuid: log[0].0, failover_log: log.to_vec() }
}

fn territory(id: Option<&str>, collections: &[&str]) -> Territory {
    Territory::new(id.map(str::to_owned), Some(collections.iter().map(|name| (*name).to_owned()).collect()))
}

/// A position: partition, history, seqno.
fn at(places: &[(PartitionId, u64, u64)]) -> FeedStart {
    let place = |&(id, uuid, seqno): &(PartitionId, u64, u64)| (id, PartitionPosition { uuid, seqno, ..Default::default() });
    FeedStart::At(FeedPosition { partitions: places.iter().map(place).collect() })
}

fn share(start: &FeedStart, opened: &FeedStart) -> Share {
    Share::new(territory(Some("db1"), &["0x8"]), start, opened)
}

fn told(share: &mut Share, events: &[FeedEvent]) -> Vec<FeedEvent> {
    share.of(&FeedBatch { events: events.to_vec() }).events
}

#[test]
fn what_belongs_to_whom_is_in_the_key_and_the_collection() {
    let (db1, default) = (territory(Some("db1"), &["0x8", "_default._default"]), territory(Some("_default"), &["s.c"]));
    for (key, collection, is_db1, is_default) in [
        ("doc", 8, true, false),
        ("doc", 0, true, false),
        ("doc", 9, false, false),
        ("_sync:user:db1:bob", 0, true, false),
        ("_sync:role:db1:r", 1, true, false),
        ("_sync:user:db1:", 0, true, false),
        ("_sync:user:db10:bob", 0, false, false),
        ("_sync:user:bob", 0, false, true),
        ("_sync:user:", 0, false, true),
        ("_sync:m_db1:unusedSeq:7", 0, true, false),
        ("_sync:m_db10:unusedSeqs:7:9", 0, false, false),
        ("_sync:unusedSeqs:7:9", 0, false, true),
        ("_sync:m_db1:seq", 0, true, false),
        ("_sync:m_db10:seq", 0, false, false),
        ("_sync:seq", 0, false, true),
        ("_sync:seq", 1, false, true),
        ("_sync:m_db1:seqs", 0, false, false),
        ("_sync:syncInfo", 8, false, false),
    ] {
        let FeedEvent::Mutation(mutation) = mutation(P, 1, key, collection) else { panic!() };
        let owner = Owner::of(&mutation);
        assert_eq!((db1.has(&owner), default.has(&owner)), (is_db1, is_default), "{key} in {collection}");
    }
}

#[test]
fn collections_are_known_by_name_once_the_feed_tells_it() {
    let mut share = Share::new(territory(None, &["s.c"]), &FeedStart::Beginning, &FeedStart::Beginning);
    let names =
        |names: &[(u32, &str)]| FeedEvent::CollectionNames(names.iter().map(|(id, name)| (*id, (*name).into())).collect());
    let (other, own) = (mutation(P, 1, "a", 8), mutation(P, 2, "a", 9));
    let got = told(&mut share, &[other.clone(), names(&[(8, "s.d"), (9, "s.c")]), own.clone()]);
    assert_eq!(got, [names(&[(9, "s.c")]), own]);
    // The collection was dropped and created again.
    let again = mutation(P, 3, "a", 12);
    assert_eq!(told(&mut share, &[names(&[(12, "s.c")]), again.clone()]), [names(&[(12, "s.c")]), again]);
}

#[test]
fn of_others_only_the_place_is_told_and_before_what_comes_after_it() {
    let mut share = share(&FeedStart::Beginning, &FeedStart::Beginning);
    let own = mutation(P, 3, "a", 8);
    let events = [mutation(P, 1, "x", 9), mutation(P, 2, "x", 9), own.clone(), mutation(P, 4, "x", 9), mutation(Q, 5, "x", 9)];
    assert_eq!(told(&mut share, &events), [own, advanced(P, 4), advanced(Q, 5)]);
    let events = [mutation(P, 5, "x", 9), snapshot(P, 6, 9), rollback(P, 5)];
    assert_eq!(told(&mut share, &events), [advanced(P, 5), snapshot(P, 6, 9), rollback(P, 5)]);
    // In an unordered snapshot, the events of others are not reported.
    let unordered = FeedEvent::Unordered { partition: P };
    let own = mutation(P, 9, "a", 8);
    let events = [unordered.clone(), mutation(P, 12, "x", 9), own.clone(), mutation(P, 7, "x", 9), advanced(P, 12)];
    assert_eq!(told(&mut share, &events), [unordered, own, advanced(P, 12)]);
}

#[test]
fn the_feed_is_opened_at_the_earliest_place_of_each_partition() {
    let (a, b) = (at(&[(P, 1, 10), (Q, 1, 20)]), at(&[(P, 1, 15), (Q, 1, 5)]));
    assert_eq!(earliest([&a, &b]), at(&[(P, 1, 10), (Q, 1, 5)]));
    assert_eq!(earliest([&a, &at(&[(P, 1, 11)])]), at(&[(P, 1, 10)]), "whoever has no place in a partition has none of it");
    assert_eq!(earliest([&a, &FeedStart::Beginning]), FeedStart::Beginning);
    assert_eq!(earliest([&at(&[(P, 1, 1)]), &at(&[(Q, 1, 1)])]), FeedStart::Beginning);
}

#[test]
fn where_one_was_in_a_history_that_another_knows_to_be_left_the_feed_is_opened_in_it() {
    let place = |log: &[(u64, u64)], seqno, complete: bool, ends: &[u64]| {
        position(log, seqno, if complete { seqno } else { seqno + 5 }, ends)
    };
    let opened = |a: &PartitionPosition, b: &PartitionPosition| {
        let start = |at: &PartitionPosition| FeedStart::At(FeedPosition { partitions: BTreeMap::from([(P, at.clone())]) });
        let FeedStart::At(opened) = earliest([&start(a), &start(b)]) else { panic!("at the beginning") };
        assert_eq!(earliest([&start(b), &start(a)]), FeedStart::At(opened.clone()));
        (opened.partitions[&P].uuid, opened.partitions[&P].seqno)
    };
    let (old, new) = (&[(1, 0)][..], &[(2, 8), (1, 0)][..]);
    // Both in one history.
    assert_eq!(opened(&place(old, 9, false, &[3]), &place(old, 6, false, &[3])), (1, 6));
    // One knows that history 1 was left at 8, and is behind the other, at its place, or ahead of
    // it.
    assert_eq!(opened(&place(old, 9, false, &[3, 5]), &place(new, 7, true, &[3])), (1, 3), "5 may be within a snapshot");
    assert_eq!(opened(&place(old, 9, false, &[3, 5]), &place(new, 7, true, &[3, 5])), (1, 5));
    assert_eq!(opened(&place(old, 8, true, &[3, 5]), &place(new, 8, true, &[3])), (1, 8));
    assert_eq!(opened(&place(old, 6, true, &[3, 5]), &place(new, 20, true, &[3, 12])), (1, 3));
    assert_eq!(opened(&place(old, 6, false, &[]), &place(new, 20, true, &[3, 12])), (1, 0));
    // History 1 was left at 5, and history 2 at 30.
    for (ends, last) in [(&[7][..], 0), (&[3, 7], 3)] {
        let places = [
            place(&[(2, 5), (1, 0)], 20, true, ends),
            place(old, 9, false, &[3, 7]),
            place(&[(3, 30), (2, 5), (1, 0)], 40, true, ends),
        ];
        for order in [[0, 1, 2], [1, 0, 2], [2, 1, 0]] {
            let place = place_for_all(&order.map(|at: usize| &places[at])).unwrap();
            assert_eq!((place.uuid, place.seqno), (1, last), "{order:?}");
        }
    }
}

/// A complete position in a history, or one within a snapshot that ends at `end`.
fn position(log: &[(u64, u64)], seqno: u64, end: u64, ends: &[u64]) -> PartitionPosition {
    let mut snapshot_ends = SnapshotEnds::default();
    ends.iter().for_each(|end| snapshot_ends.push(*end));
    let (uuid, failover_log) = (log[0].0, log.to_vec());
    PartitionPosition { uuid, seqno, snapshot_end: end, failover_log, snapshot_ends, ..Default::default() }
}

#[test]
fn the_feed_goes_back_only_to_where_nothing_was_left_out_for_any_database() {
    let log = &[(1, 0)][..];
    let [behind, whole] = [position(log, 3, 3, &[1, 2]), position(log, 4, 4, &[1])];
    for order in [[&behind, &whole], [&whole, &behind]] {
        // The snapshot of one database was 2 to 4: 3 lies within it.
        let place = place_for_all(&order).unwrap();
        assert_eq!((place.seqno, place.snapshot_start, place.snapshot_end), (3, 1, 4));
        assert_eq!(place.snapshot_ends, position(log, 3, 3, &[1]).snapshot_ends);
    }
    // Both are at 4, and one of them has read all of it as one snapshot.
    let [parts, one] = [position(log, 4, 4, &[2, 3]), position(log, 4, 4, &[])];
    for order in [[&parts, &one], [&one, &parts]] {
        let place = place_for_all(&order).unwrap();
        assert_eq!((place.seqno, place.snapshot_end, place.snapshot_ends.up_to(3)), (4, 4, None));
    }
    // All stopped within one snapshot: the feed goes on with it.
    let [first, second] = [position(log, 5, 9, &[2]), position(log, 7, 9, &[2])];
    assert_eq!(place_for_all(&[&second, &first]), Some(first));
}

#[test]
fn the_feed_is_opened_before_the_branch_of_a_history_that_the_others_do_not_know() {
    let branch = position(&[(2, 2), (1, 0)], 3, 3, &[1, 2]);
    let newest = position(&[(3, 1), (1, 0)], 3, 3, &[1]);
    for order in [[&branch, &newest], [&newest, &branch]] {
        let place = place_for_all(&order).unwrap();
        assert_eq!((place.uuid, place.seqno), (1, 1));
    }
}

#[test]
fn a_database_that_lacks_what_the_feed_has_passed_makes_the_feed_start_again() {
    let log = &[(1, 0)][..];
    let start = |at: PartitionPosition| FeedStart::At(FeedPosition { partitions: BTreeMap::from([(P, at)]) });
    // It has read 5 to 10 as one snapshot. The feed is opened at 3, and goes back to 6.
    let new = || share(&start(position(log, 10, 10, &[3, 4])), &start(position(log, 3, 3, &[])));
    let passed = [state(P, log), snapshot(P, 4, 6), mutation(P, 6, "a", 8), snapshot(P, 7, 12), mutation(P, 11, "b", 8)];
    for (branch, needs_earlier) in [(7, true), (10, false), (11, false)] {
        let mut share = new();
        told(&mut share, &passed);
        told(&mut share, &[rollback(P, 6), state(P, &[(2, branch), (1, 0)])]);
        assert_eq!(share.check().is_err(), needs_earlier, "history 1 was left at {branch}");
    }
    // It goes back to where the database left out nothing.
    let mut share = new();
    told(&mut share, &passed[..1]);
    told(&mut share, &[rollback(P, 3), state(P, &[(2, 3), (1, 0)])]);
    share.check().unwrap();
    // It goes back a second time, and less of the history of the database is left.
    let mut share = new();
    told(&mut share, &passed);
    told(&mut share, &[rollback(P, 6), state(P, &[(2, 10), (1, 0)])]);
    share.check().unwrap();
    told(&mut share, &[mutation(P, 8, "c", 8), rollback(P, 6), state(P, &[(3, 7), (1, 0)])]);
    assert!(share.check().is_err());
}

#[test]
fn a_database_that_stopped_within_a_snapshot_may_lack_what_it_left_out() {
    let log = &[(1, 0)][..];
    let start = |at: PartitionPosition| FeedStart::At(FeedPosition { partitions: BTreeMap::from([(P, at)]) });
    // It is at 8 of the snapshot 5 to 10. The feed is opened at 3, and delivers up to 9.
    let own = PartitionPosition { snapshot_start: 5, ..position(log, 8, 10, &[3, 4]) };
    let mut share = share(&start(own.clone()), &start(position(log, 3, 3, &[])));
    let mut tracker = PositionTracker::new(&FeedPosition { partitions: BTreeMap::from([(P, own)]) });
    let events = [state(P, log), snapshot(P, 4, 9), mutation(P, 5, "k", 8), mutation(P, 9, "a", 8)];
    told(&mut share, &events).iter().for_each(|event| tracker.observe(event));
    let at = tracker.at(P).unwrap();
    assert_eq!((at.seqno, at.last_end(9), at.end_after(9)), (9, 4, 10));
    told(&mut share, &[rollback(P, 9), state(P, &[(2, 9), (1, 0)])]);
    assert!(share.check().is_err());
}

#[test]
fn what_lies_before_its_own_place_does_not_come_again() {
    let mut share = share(&at(&[(P, 1, 10), (Q, 1, 3)]), &at(&[(P, 1, 4), (Q, 1, 3)]));
    let (eleventh, fourth) = (mutation(P, 11, "a", 8), mutation(Q, 4, "a", 8));
    let events = [
        state(P, &[(1, 0)]),
        snapshot(P, 5, 9),
        mutation(P, 5, "a", 8),
        advanced(P, 9),
        snapshot(P, 10, 12),
        mutation(P, 10, "x", 9),
        eleventh.clone(),
        fourth.clone(),
    ];
    assert_eq!(told(&mut share, &events), [state(P, &[(1, 0)]), snapshot(P, 10, 12), eleventh, fourth]);
}

#[test]
fn a_rollback_is_told_to_all_and_what_comes_again_to_those_who_had_it() {
    let mut share = share(&at(&[(P, 1, 10)]), &at(&[(P, 1, 4)]));
    let (third, ended) = (mutation(P, 3, "a", 8), FeedEvent::RollbackEnded { partition: P });
    let events = [rollback(P, 2), third.clone(), ended.clone(), FeedEvent::CaughtUp];
    assert_eq!(told(&mut share, &events), [rollback(P, 2), third, ended, FeedEvent::CaughtUp]);
    // A database without events after that position is told, too.
    let mut share = Share::new(territory(Some("db1"), &["0x8"]), &at(&[(P, 1, 10)]), &at(&[(P, 1, 4)]));
    assert_eq!(told(&mut share, &[rollback(P, 12), mutation(P, 9, "a", 8)]), [rollback(P, 12)]);
}

#[test]
fn a_rollback_to_the_history_of_a_database_takes_nothing_of_it_back() {
    // Another database is in history 1; this one has been in history 2 up to 30.
    let start = || share(&at(&[(P, 2, 30)]), &at(&[(P, 1, 10)]));
    let (log, another) = (state(P, &[(2, 5), (1, 0)]), state(P, &[(3, 5), (1, 0)]));
    let (sixth, last, ended) = (mutation(P, 6, "a", 8), mutation(P, 31, "b", 8), FeedEvent::RollbackEnded { partition: P });
    let events = [rollback(P, 5), log.clone(), sixth.clone(), last.clone(), ended.clone()];
    assert_eq!(told(&mut start(), &events), [log.clone(), last, ended]);
    let got = told(&mut start(), &[rollback(P, 8), rollback(P, 5), another.clone(), sixth.clone()]);
    assert_eq!(got, [rollback(P, 5), another.clone(), sixth.clone()], "it was in a third history");
    let got = told(&mut start(), &[rollback(P, 5), rollback(P, 40), another.clone(), sixth.clone()]);
    assert_eq!(got, [rollback(P, 5), another, sixth.clone()], "the second rollback is beyond the position of the database");
    let got = told(&mut start(), &[rollback(P, 5), sixth.clone(), log.clone()]);
    assert_eq!(got, [rollback(P, 5), sixth, log], "the feed does not tell the history");
    let got = told(&mut start(), &[rollback(P, 5), FeedEvent::CaughtUp]);
    assert_eq!(got, [rollback(P, 5), FeedEvent::CaughtUp]);
}

#[test]
fn a_history_that_was_left_after_the_place_of_opening_is_told_as_a_rollback() {
    // The histories: 1 up to 8, then 2. This database was in history 1 at 10; the feed was opened
    // at 4.
    let log = [(2, 8), (1, 0)];
    let mut left = share(&at(&[(P, 1, 10)]), &at(&[(P, 1, 4)]));
    let fifth = mutation(P, 5, "a", 8);
    let got = told(&mut left, &[state(P, &log), fifth.clone(), FeedEvent::CaughtUp]);
    let ended = FeedEvent::RollbackEnded { partition: P };
    assert_eq!(got, [rollback(P, 4), state(P, &log), fifth, ended, FeedEvent::CaughtUp]);
    // At the end of a history, and before it, it may hold what came after that.
    for seqno in [7, 8] {
        let mut left = share(&at(&[(P, 1, seqno)]), &at(&[(P, 2, 4)]));
        assert_eq!(told(&mut left, &[state(P, &log)]), [rollback(P, 4), state(P, &log)], "{seqno}");
        let mut is_told = share(&at(&[(P, 1, seqno)]), &at(&[(P, 2, 4)]));
        assert_eq!(told(&mut is_told, &[rollback(P, 8), state(P, &log)]), [rollback(P, 8), state(P, &log)], "{seqno}");
    }
    for (uuid, seqno) in [(2, 10), (0, 10)] {
        let mut same = share(&at(&[(P, uuid, seqno)]), &at(&[(P, 1, 4)]));
        assert_eq!(told(&mut same, &[state(P, &log), mutation(P, 5, "a", 8)]), [state(P, &log)], "{uuid} at {seqno}");
    }
}

#[test]
fn a_history_that_is_left_on_the_way_is_told_from_where_the_feed_is() {
    let mut share = share(&at(&[(P, 1, 10)]), &at(&[(P, 1, 4)]));
    let eighth = mutation(P, 8, "b", 8);
    let events =
        [state(P, &[(1, 0)]), mutation(P, 5, "a", 8), mutation(P, 7, "x", 9), state(P, &[(2, 8), (1, 0)]), eighth.clone()];
    let got = told(&mut share, &events);
    assert_eq!(got, [state(P, &[(1, 0)]), rollback(P, 7), state(P, &[(2, 8), (1, 0)]), eighth]);
}

/// Delivers its batches each time it is opened, and records the positions of opening.
#[derive(Debug, Default)]
struct Listed {
    events: Vec<FeedEvent>,
    ends: bool,
    opened: Mutex<Vec<FeedStart>>,
}

#[async_trait]
impl Feed for Listed {
    fn info(&self) -> FeedInfo {
        let capabilities = FeedCapabilities { positions: true, snapshots: true, deletions: true, finite: self.ends };
        FeedInfo { scheme: "list", name: "l".to_owned(), partitions: 3, capabilities }
    }

    async fn open(&self, start: FeedStart) -> Result<FeedStream> {
        self.opened.lock().push(start);
        let batches = futures::stream::iter(self.events.clone()).map(|event| Ok(vec![event].into()));
        Ok(if self.ends { batches.boxed() } else { batches.chain(futures::stream::pending()).boxed() })
    }
}

async fn collected(stream: FeedStream) -> Vec<FeedEvent> {
    stream.map(|batch| batch.unwrap().events).concat().await
}

fn split(feed: Arc<Listed>) -> [SharedFeed; 2] {
    SharedFeed::split(feed, vec![territory(Some("db1"), &["0x8"]), territory(None, &["0x9"])]).try_into().unwrap()
}

#[tokio::test]
async fn one_feed_is_opened_once_for_all_and_each_gets_its_own() {
    let (a, b) = (mutation(P, 5, "a", 8), mutation(P, 6, "_sync:user:bob", 1));
    let stranger = mutation(P, 7, "_sync:m_db7:unusedSeq:1", 1);
    let events = vec![a.clone(), b.clone(), stranger, mutation(P, 8, "x", 12), mutation(P, 9, "y", 12)];
    let feed = Arc::new(Listed { events, ends: true, ..Default::default() });
    let [one, other] = split(feed.clone());
    let (first, second) = tokio::join!(one.open(at(&[(P, 1, 4)])), other.open(at(&[(P, 1, 5)])));
    let (first, second) = tokio::join!(collected(first.unwrap()), collected(second.unwrap()));
    let places = |from: u64| (from..=9).map(|seqno| advanced(P, seqno));
    assert_eq!(first, std::iter::once(a).chain(places(6)).collect::<Vec<_>>());
    assert_eq!(second, std::iter::once(b).chain(places(7)).collect::<Vec<_>>());
    assert_eq!(*feed.opened.lock(), [at(&[(P, 1, 4)])]);
    let strangers = one.strangers();
    assert_eq!(strangers.collections, BTreeMap::from([("0xc".to_owned(), 2)]));
    assert_eq!(strangers.databases, BTreeMap::from([("db7".to_owned(), 1)]));
}

/// Fails after its first batch.
#[derive(Debug)]
struct Failing;

#[async_trait]
impl Feed for Failing {
    fn info(&self) -> FeedInfo {
        Listed::default().info()
    }

    async fn open(&self, _start: FeedStart) -> Result<FeedStream> {
        let cause = std::io::Error::other("the cable is cut");
        let error = Error::new(ErrorKind::Unavailable, "the connection is lost").with_source(cause);
        Ok(futures::stream::iter([Ok(vec![mutation(P, 1, "a", 8)].into()), Err(error)]).boxed())
    }
}

#[tokio::test]
async fn an_error_of_the_feed_reaches_all_databases_and_one_of_them_is_told_its_cause() {
    let territories = vec![territory(Some("db1"), &["0x8"]), territory(None, &["0x9"])];
    let [one, other]: [SharedFeed; 2] = SharedFeed::split(Arc::new(Failing), territories).try_into().unwrap();
    let (first, second) = tokio::join!(one.open(FeedStart::Beginning), other.open(FeedStart::Beginning));
    let mut causes = Vec::new();
    for mut stream in [first.unwrap(), second.unwrap()] {
        let mut last = None;
        while let Some(batch) = stream.next().await {
            last = Some(batch);
        }
        let error = last.unwrap().unwrap_err();
        assert!(error.to_string().contains("the connection is lost") && error.is_retryable(), "{error}");
        causes.extend(std::error::Error::source(&error).map(ToString::to_string));
    }
    assert_eq!(causes, ["the cable is cut"]);
}

/// Panics after its first batch.
#[derive(Debug)]
struct Panicking;

#[async_trait]
impl Feed for Panicking {
    fn info(&self) -> FeedInfo {
        let mut info = Listed::default().info();
        info.capabilities.finite = true;
        info
    }

    async fn open(&self, _start: FeedStart) -> Result<FeedStream> {
        let batches = futures::stream::iter(0..2).map(|number| match number {
            0 => Ok(vec![mutation(P, 1, "a", 8)].into()),
            _ => panic!("a fault of the feed"),
        });
        Ok(batches.boxed())
    }
}

#[tokio::test]
async fn a_feed_that_panics_has_not_ended() {
    let territories = vec![territory(Some("db1"), &["0x8"]), territory(None, &["0x9"])];
    let [one, other]: [SharedFeed; 2] = SharedFeed::split(Arc::new(Panicking), territories).try_into().unwrap();
    let (first, second) = tokio::join!(one.open(FeedStart::Beginning), other.open(FeedStart::Beginning));
    for stream in [first.unwrap(), second.unwrap()] {
        let batches: Vec<Result<FeedBatch>> = stream.collect().await;
        let error = batches.last().unwrap().as_ref().unwrap_err();
        assert!(error.to_string().contains("panic") && error.is_retryable(), "{error}");
        assert_eq!(batches.iter().filter(|batch| batch.is_err()).count(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn one_that_opens_again_after_the_others_have_read_to_the_end_is_given_the_feed_alone() {
    let (a, b) = (mutation(P, 1, "a", 8), mutation(P, 2, "b", 9));
    let feed = Arc::new(Listed { events: vec![a.clone(), b], ends: true, ..Default::default() });
    let [one, other] = split(feed.clone());
    let (first, second) = tokio::join!(one.open(FeedStart::Beginning), other.open(FeedStart::Beginning));
    let (first, mut second) = (first.unwrap(), second.unwrap());
    // The other has taken all of it and does not know yet that it was all, when the store of the
    // first fails.
    while !matches!(second.next().await.unwrap().unwrap().events[..], [FeedEvent::Mutation(_)]) {}
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    drop(first);
    let opening = tokio::spawn({
        let one = one.clone();
        async move { collected(one.open(FeedStart::Beginning).await.unwrap()).await }
    });
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    assert!(second.next().await.is_none());
    let again = tokio::time::timeout(std::time::Duration::from_secs(60), opening).await.expect("it waits for the other").unwrap();
    assert_eq!(again, [a, advanced(P, 2)]);
    assert_eq!(feed.opened.lock().len(), 2);
    assert_eq!(one.strangers(), Strangers::default(), "what is the other's is nobody else's");
}

#[tokio::test]
async fn one_that_ends_ends_all_and_all_may_begin_again() {
    let feed = Arc::new(Listed { events: vec![mutation(P, 1, "a", 8)], ..Default::default() });
    let [one, other] = split(feed.clone());
    for round in 1..=3 {
        let (first, second) = tokio::join!(one.open(FeedStart::Beginning), other.open(FeedStart::Beginning));
        drop(first.unwrap());
        let mut second = second.unwrap();
        let error = loop {
            match second.next().await.unwrap() {
                Ok(_) => {}
                Err(error) => break error,
            }
        };
        assert!(error.kind() == ErrorKind::Unavailable && error.is_retryable(), "{error}");
        assert_eq!(feed.opened.lock().len(), round);
    }
    // A database that gave up before all handles were open is not waited for.
    let opening = tokio::spawn({
        let one = one.clone();
        async move { one.open(FeedStart::Beginning).await.map(drop) }
    });
    tokio::task::yield_now().await;
    opening.abort();
    assert!(opening.await.unwrap_err().is_cancelled());
    let (first, second) = tokio::join!(other.open(FeedStart::Beginning), one.open(FeedStart::Beginning));
    assert!(first.is_ok() && second.is_ok());
}
