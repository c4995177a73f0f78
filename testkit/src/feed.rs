//! What every feed must do, and a feed of given events.
//!
//! Each public function is one case. [`feed_conformance!`](crate::feed_conformance) makes a test of each.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use async_trait::async_trait;
use futures::StreamExt as _;
use sluicegate_core::feed::{FeedCapabilities, FeedInfo, MutationKind, PositionTracker};
use sluicegate_core::{
    Error, ErrorKind, Feed, FeedBatch, FeedEvent, FeedPosition, FeedStart, FeedStream, Mutation, PartitionId, PartitionSeqno,
    Result,
};

use crate::expect::{Expect as _, refused};

/// The feed a case works on.
pub type AFeed = Arc<dyn Feed>;

/// One test for each thing a [`Feed`] must do. The expression makes an `Arc` of a feed that has some events to deliver (a few batches and a
/// few partitions, if it can) and to which nothing is added while a case runs; it may `.await`. It is evaluated once a case. A feed that
/// waits for more must say [`CaughtUp`](FeedEvent::CaughtUp).
///
/// ```
/// # mod tests {
/// use sluicegate_core::Mutation;
/// use sluicegate_testkit::ListFeed;
///
/// sluicegate_testkit::feed_conformance!(std::sync::Arc::new(ListFeed::numbered((0..30).map(|n| Mutation::new(format!("k{n}"), "{}")))));
/// # }
/// ```
#[macro_export]
macro_rules! feed_conformance {
    ($make:expr) => {
        $crate::feed_cases! { case_tests!(feed, feed_of_a_case, $crate::feed::AFeed, $make) }
    };
}

/// The cases of the suite, handed to another macro after its arguments. Not for use by itself.
#[doc(hidden)]
#[macro_export]
macro_rules! feed_cases {
    ($then:ident! $arguments:tt) => {
        $crate::$then! { $arguments
            a_feed_says_what_it_is
            everything_comes_from_the_beginning
            a_partition_comes_in_the_order_of_its_seqnos
            a_rollback_comes_to_an_end
            a_history_is_told_before_anything_else
            an_event_keeps_to_what_is_declared
            a_feed_opens_again_and_gives_the_same
            a_dropped_stream_closes_the_feed
            an_empty_position_is_the_beginning
            a_position_gives_exactly_the_rest
            a_position_after_everything_gives_nothing
            opened_now_a_feed_gives_nothing_old
            positions_are_refused_unless_declared
        }
    };
}

#[doc(hidden)]
pub mod boxed {
    crate::feed_cases! { boxed_cases!(super::AFeed) }
}

/// A mutation by what must be the same each time.
type Seen = (PartitionId, PartitionSeqno, Vec<u8>);

fn mutations(batches: &[FeedBatch]) -> Vec<Seen> {
    let events = batches.iter().flat_map(|batch| &batch.events);
    let mutation = |event: &FeedEvent| match event {
        FeedEvent::Mutation(m) => Some((m.partition, m.seqno, m.key.to_vec())),
        _ => None,
    };
    events.filter_map(mutation).collect()
}

fn sorted(mut seen: Vec<Seen>) -> Vec<Seen> {
    seen.sort();
    seen
}

/// Reads until the feed has delivered what there is: to its end, or until it says that it has caught up.
async fn drain(feed: &AFeed, mut stream: FeedStream) -> Vec<FeedBatch> {
    let finite = feed.info().capabilities.finite;
    let mut batches = Vec::new();
    while let Some(batch) = stream.next().await {
        let batch = batch.must("deliver");
        let caught_up = batch.events.contains(&FeedEvent::CaughtUp);
        batches.push(batch);
        if caught_up && !finite {
            return batches;
        }
    }
    assert!(finite, "a feed that is not finite has ended");
    batches
}

async fn all(feed: &AFeed) -> Vec<FeedBatch> {
    let stream = feed.open(FeedStart::Beginning).await.must("open at the beginning");
    drain(feed, stream).await
}

/// Scheme, name and partitions.
pub async fn a_feed_says_what_it_is(feed: AFeed) {
    let info = feed.info();
    let valid = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "+-.".contains(c);
    assert!(!info.scheme.is_empty() && info.scheme.chars().all(valid), "scheme {:?}", info.scheme);
    assert!(!info.name.is_empty(), "the name is part of the checkpoint's key");
    assert!(info.partitions > 0);
}

/// And it is something, each mutation once.
pub async fn everything_comes_from_the_beginning(feed: AFeed) {
    let seen = mutations(&all(&feed).await);
    assert!(!seen.is_empty(), "the suite needs a feed with something in it");
    let mut once = sorted(seen.clone());
    once.dedup();
    assert_eq!(once.len(), seen.len(), "something came twice in one pass");
}

/// Within its snapshot, if it announces any; over the whole pass otherwise.
pub async fn a_partition_comes_in_the_order_of_its_seqnos(feed: AFeed) {
    let mut last: BTreeMap<PartitionId, PartitionSeqno> = BTreeMap::new();
    let mut snapshots: BTreeMap<PartitionId, (PartitionSeqno, PartitionSeqno)> = BTreeMap::new();
    let mut unordered = BTreeSet::new();
    for event in all(&feed).await.into_iter().flat_map(|batch| batch.events) {
        match event {
            FeedEvent::SnapshotStart { partition, start, end } => {
                assert!(start <= end, "{partition:?}: a snapshot from {start:?} to {end:?}");
                snapshots.insert(partition, (start, end));
                unordered.remove(&partition);
            }
            FeedEvent::Unordered { partition } => drop(unordered.insert(partition)),
            FeedEvent::SeqnoAdvanced { partition, seqno } if unordered.remove(&partition) => drop(last.insert(partition, seqno)),
            FeedEvent::Mutation(m) if unordered.contains(&m.partition) => {}
            FeedEvent::Rollback { partition, to } => drop(last.insert(partition, to)),
            FeedEvent::Mutation(m) => {
                if let Some(before) = last.insert(m.partition, m.seqno) {
                    assert!(before < m.seqno, "{:?}: {:?} came after {before:?}", m.partition, m.seqno);
                }
                if let Some((start, end)) = snapshots.get(&m.partition) {
                    assert!(*start <= m.seqno && m.seqno <= *end, "{:?} is outside its snapshot", m.seqno);
                }
            }
            _ => {}
        }
    }
}

/// And nothing ends that did not begin: from the beginning, and from the end.
pub async fn a_rollback_comes_to_an_end(feed: AFeed) {
    let mut tracker = PositionTracker::default();
    let mut starts = vec![FeedStart::Beginning];
    if feed.info().capabilities.positions {
        let batches = all(&feed).await;
        for batch in &batches {
            batch.events.iter().for_each(|event| tracker.observe(event));
        }
        starts.push(FeedStart::At(tracker.position()));
    }
    for start in starts {
        let stream = feed.open(start).await.must("open");
        let mut returning = BTreeMap::new();
        for event in drain(&feed, stream).await.into_iter().flat_map(|batch| batch.events) {
            match event {
                FeedEvent::Rollback { partition, to } => drop(returning.insert(partition, to)),
                FeedEvent::RollbackEnded { partition } => {
                    assert!(returning.remove(&partition).is_some(), "{partition:?}: the end of no rollback");
                }
                _ => {}
            }
        }
        assert!(returning.is_empty(), "rollbacks without an end: {returning:?}");
    }
}

/// Of each partition of a feed that tells histories, whenever it is opened, and after a rollback:
/// from the beginning, and from the end.
pub async fn a_history_is_told_before_anything_else(feed: AFeed) {
    let batches = all(&feed).await;
    let mut tracker = PositionTracker::default();
    let mut partitions = BTreeSet::new();
    for event in batches.iter().flat_map(|batch| &batch.events) {
        tracker.observe(event);
        if let FeedEvent::PartitionState { partition, .. } = event {
            partitions.insert(*partition);
        }
    }
    if partitions.is_empty() {
        return;
    }
    let mut starts = vec![FeedStart::Beginning];
    if feed.info().capabilities.positions {
        starts.push(FeedStart::At(tracker.position()));
    }
    for start in starts {
        let stream = feed.open(start.clone()).await.must("open");
        let (mut told, mut current) = (BTreeSet::new(), BTreeSet::new());
        for event in drain(&feed, stream).await.into_iter().flat_map(|batch| batch.events) {
            let partition = match event {
                FeedEvent::PartitionState { partition, .. } => {
                    told.insert(partition);
                    current.insert(partition);
                    continue;
                }
                FeedEvent::Rollback { partition, .. } => {
                    current.remove(&partition);
                    continue;
                }
                FeedEvent::Mutation(m) => m.partition,
                FeedEvent::SnapshotStart { partition, .. }
                | FeedEvent::SeqnoAdvanced { partition, .. }
                | FeedEvent::Unordered { partition }
                | FeedEvent::RollbackEnded { partition } => partition,
                _ => continue,
            };
            assert!(current.contains(&partition), "{partition:?}: an event before its history, opened at {start:?}");
        }
        assert_eq!(told, partitions, "the partitions whose history was told, opened at {start:?}");
    }
}

/// Partitions, snapshots, deletions.
pub async fn an_event_keeps_to_what_is_declared(feed: AFeed) {
    let info = feed.info();
    let mut in_snapshot: BTreeMap<PartitionId, bool> = BTreeMap::new();
    for event in all(&feed).await.into_iter().flat_map(|batch| batch.events) {
        match event {
            FeedEvent::SnapshotStart { partition, .. } => {
                assert!(info.capabilities.snapshots, "a snapshot, and snapshots are not declared");
                in_snapshot.insert(partition, true);
            }
            FeedEvent::Unordered { partition } => {
                assert!(info.capabilities.snapshots, "something that has no order, and snapshots are not declared");
                in_snapshot.insert(partition, true);
            }
            FeedEvent::Mutation(m) => {
                assert!(m.partition.0 < info.partitions, "{:?} of {} partitions", m.partition, info.partitions);
                let deletion = matches!(m.kind, MutationKind::Deletion | MutationKind::Expiration);
                assert!(info.capabilities.deletions || !deletion, "a deletion, and deletions are not declared");
                let announced = in_snapshot.get(&m.partition).copied().unwrap_or(false);
                assert!(announced || !info.capabilities.snapshots, "a mutation outside any snapshot, and snapshots are declared");
            }
            _ => {}
        }
    }
}

/// The same mutations, in the same order within each partition.
pub async fn a_feed_opens_again_and_gives_the_same(feed: AFeed) {
    let first = mutations(&all(&feed).await);
    assert_eq!(sorted(mutations(&all(&feed).await)), sorted(first));
}

/// In the middle, and before the first batch; another stream has everything.
pub async fn a_dropped_stream_closes_the_feed(feed: AFeed) {
    let expected = sorted(mutations(&all(&feed).await));
    drop(feed.open(FeedStart::Beginning).await.must("open"));
    let mut stream = feed.open(FeedStart::Beginning).await.must("open");
    stream.next().await.must("have a batch").must("deliver");
    drop(stream);
    assert_eq!(sorted(mutations(&all(&feed).await)), expected);
}

/// A partition that a position does not name starts from its beginning.
pub async fn an_empty_position_is_the_beginning(feed: AFeed) {
    if feed.info().capabilities.positions {
        let stream = feed.open(FeedStart::At(FeedPosition::default())).await.must("open at an empty position");
        assert_eq!(sorted(mutations(&drain(&feed, stream).await)), sorted(mutations(&all(&feed).await)));
    }
}

/// After every number of batches (at most fifty places of a long feed): nothing is left out, and nothing comes again.
pub async fn a_position_gives_exactly_the_rest(feed: AFeed) {
    if !feed.info().capabilities.positions {
        return;
    }
    let everything = mutations(&all(&feed).await);
    let batches = all(&feed).await.len();
    for taken in (0..batches).step_by((batches / 50).max(1)) {
        let mut stream = feed.open(FeedStart::Beginning).await.must("open");
        let mut tracker = PositionTracker::default();
        for _ in 0..taken {
            // Batches may be cut differently each time, so that there are fewer.
            let Some(batch) = stream.next().await else { break };
            let batch = batch.must("deliver");
            batch.events.iter().for_each(|event| tracker.observe(event));
            if batch.events.contains(&FeedEvent::CaughtUp) {
                break;
            }
        }
        drop(stream);
        let position = tracker.position();
        let is_behind = |(partition, seqno, _): &Seen| {
            let at = position.partitions.get(partition);
            at.is_none_or(|at| seqno.0 > at.seqno)
        };
        let expected: Vec<Seen> = everything.iter().filter(|seen| is_behind(seen)).cloned().collect();
        let stream = feed.open(FeedStart::At(position)).await.must("open at a position it gave");
        assert_eq!(sorted(mutations(&drain(&feed, stream).await)), sorted(expected), "after {taken} batches");
    }
}

/// The position of someone who has caught up.
pub async fn a_position_after_everything_gives_nothing(feed: AFeed) {
    if feed.info().capabilities.positions {
        let mut tracker = PositionTracker::default();
        all(&feed).await.iter().flat_map(|batch| &batch.events).for_each(|event| tracker.observe(event));
        let stream = feed.open(FeedStart::At(tracker.position())).await.must("open at the end");
        assert_eq!(mutations(&drain(&feed, stream).await), []);
    }
}

/// Or says that it cannot be opened so.
pub async fn opened_now_a_feed_gives_nothing_old(feed: AFeed) {
    match feed.open(FeedStart::Now).await {
        Ok(stream) => assert_eq!(mutations(&drain(&feed, stream).await), []),
        Err(e) => assert_eq!(e.kind(), ErrorKind::Unsupported, "{e:?}"),
    }
}

/// Rather than ignored.
pub async fn positions_are_refused_unless_declared(feed: AFeed) {
    if !feed.info().capabilities.positions {
        refused(feed.open(FeedStart::At(FeedPosition::default())).await.map(drop), ErrorKind::Unsupported, "a position");
    }
}

/// A finite feed of given mutations.
#[derive(Clone, Debug)]
pub struct ListFeed {
    mutations: Vec<Mutation>,
    batch: usize,
    positions: bool,
}

impl ListFeed {
    /// Delivers `mutations` as they are, a few at a time. Their partitions and seqnos must be in order.
    pub fn new(mutations: impl IntoIterator<Item = Mutation>) -> Self {
        ListFeed { mutations: mutations.into_iter().collect(), batch: 8, positions: true }
    }

    /// As [`new`](Self::new), with partitions and seqnos given out: mutation `n` goes to partition `n % 4`.
    pub fn numbered(mutations: impl IntoIterator<Item = Mutation>) -> Self {
        ListFeed::new((0..).zip(mutations).map(|(n, mut mutation): (u64, Mutation)| {
            (mutation.partition, mutation.seqno) = (PartitionId((n % 4) as u16), PartitionSeqno(1 + n / 4));
            mutation
        }))
    }

    /// How many events a batch holds.
    #[must_use]
    pub fn with_batch(mut self, events: usize) -> Self {
        self.batch = events.max(1);
        self
    }

    /// Makes it one that cannot be opened at a position.
    #[must_use]
    pub fn without_positions(mut self) -> Self {
        self.positions = false;
        self
    }
}

#[async_trait]
impl Feed for ListFeed {
    fn info(&self) -> FeedInfo {
        let partitions = self.mutations.iter().map(|m| m.partition.0 + 1).max().unwrap_or(1);
        let capabilities = FeedCapabilities { positions: self.positions, snapshots: false, deletions: true, finite: true };
        FeedInfo { scheme: "list", name: "list".to_owned(), partitions, capabilities }
    }

    async fn open(&self, start: FeedStart) -> Result<FeedStream> {
        let wanted: Vec<Mutation> = match start {
            FeedStart::Beginning => self.mutations.clone(),
            FeedStart::Now => Vec::new(),
            FeedStart::At(_) if !self.positions => {
                return Err(Error::new(ErrorKind::Unsupported, "this list cannot be opened at a position").with_operation("open"));
            }
            FeedStart::At(position) => {
                let is_behind = |m: &&Mutation| position.partitions.get(&m.partition).is_none_or(|at| m.seqno.0 > at.seqno);
                self.mutations.iter().filter(is_behind).cloned().collect()
            }
        };
        let mut events: Vec<FeedEvent> = wanted.into_iter().map(FeedEvent::Mutation).collect();
        events.push(FeedEvent::CaughtUp);
        let batches: Vec<Result<FeedBatch>> = events.chunks(self.batch).map(|some| Ok(some.to_vec().into())).collect();
        Ok(futures::stream::iter(batches).boxed())
    }
}
