//! A consumer that keeps the documents that hold, as a cache would.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::StreamExt as _;
use sluicegate_core::feed::{MutationKind, PositionTracker};
use sluicegate_core::{Feed as _, FeedBatch, FeedEvent, FeedPosition, FeedStart, FeedStream, PartitionId};
use sluicegate_dcp::DcpFeed;
use sluicegate_simulator::Cluster;

/// Longest time that something may take before it counts as hanging.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Follower {
    pub(crate) feed: DcpFeed,
    stream: FeedStream,
    tracker: PositionTracker,
    /// Documents by key, with partition and seqno.
    documents: BTreeMap<String, (PartitionId, u64)>,
    last: BTreeMap<PartitionId, u64>,
    /// Events that came after one of a higher seqno of their partition.
    pub(crate) repeated: usize,
    pub(crate) events: u64,
    /// Events of any kind that were taken.
    pub(crate) taken: u64,
    pub(crate) rollbacks: Vec<(PartitionId, u64)>,
    /// Partitions whose rollback has not ended.
    pub(crate) returning: BTreeSet<PartitionId>,
    pub(crate) is_caught_up: bool,
}

/// The URL of the cluster's bucket.
pub(crate) fn url(cluster: &Cluster, options: &str) -> String {
    let hosts = cluster.connection_string();
    format!("{}/default?user=Administrator&password=password&{options}", hosts.replace("couchbase:", "dcp:"))
}

impl Follower {
    pub(crate) async fn open(cluster: &Cluster, options: &str) -> Follower {
        Follower::open_at(cluster, options, FeedStart::Beginning).await
    }

    pub(crate) async fn open_at(cluster: &Cluster, options: &str, start: FeedStart) -> Follower {
        Follower::open_url(&url(cluster, options), start).await
    }

    pub(crate) async fn open_url(url: &str, start: FeedStart) -> Follower {
        let feed = DcpFeed::connect(url).await.unwrap();
        let tracker = match &start {
            FeedStart::At(position) => PositionTracker::new(position),
            _ => PositionTracker::default(),
        };
        let stream = feed.open(start).await.unwrap();
        Follower {
            feed,
            stream,
            tracker,
            documents: BTreeMap::new(),
            last: BTreeMap::new(),
            repeated: 0,
            events: 0,
            taken: 0,
            rollbacks: Vec::new(),
            returning: BTreeSet::new(),
            is_caught_up: false,
        }
    }

    /// The next batch, taken into account; none at the end.
    pub(crate) async fn next(&mut self) -> Option<sluicegate_core::Result<FeedBatch>> {
        let next = tokio::time::timeout(PATIENCE, self.stream.next()).await;
        let next = next.unwrap_or_else(|_| panic!("nothing comes any more: {:#?}", self.feed.status().counters));
        if let Some(Ok(batch)) = &next {
            self.taken += batch.events.len() as u64;
            for event in &batch.events {
                self.observe(event);
            }
        }
        next
    }

    fn observe(&mut self, event: &FeedEvent) {
        self.tracker.observe(event);
        match event {
            FeedEvent::Mutation(m) => {
                self.events += 1;
                let before = self.last.insert(m.partition, m.seqno.0);
                self.repeated += usize::from(before.is_some_and(|before| before >= m.seqno.0));
                let key = String::from_utf8(m.key.to_vec()).unwrap();
                match m.kind {
                    MutationKind::Mutation => drop(self.documents.insert(key, (m.partition, m.seqno.0))),
                    _ => drop(self.documents.remove(&key)),
                }
            }
            FeedEvent::Rollback { partition, to } => {
                self.rollbacks.push((*partition, to.0));
                self.returning.insert(*partition);
                self.last.insert(*partition, to.0);
                self.documents.retain(|_, (place, seqno)| place != partition || *seqno <= to.0);
            }
            FeedEvent::RollbackEnded { partition } => assert!(self.returning.remove(partition), "nothing was taken back"),
            FeedEvent::CaughtUp => {
                assert!(!self.is_caught_up, "it is said once");
                self.is_caught_up = true;
            }
            _ => {}
        }
    }

    pub(crate) async fn until(&mut self, mut is_enough: impl FnMut(&Follower) -> bool) {
        while !is_enough(self) {
            self.next().await.expect("the feed has ended").unwrap();
        }
    }

    pub(crate) async fn catch_up(&mut self) {
        self.until(|follower| follower.is_caught_up).await;
    }

    pub(crate) async fn catch_up_if_not(&mut self) {
        if !self.is_caught_up {
            self.catch_up().await;
        }
    }

    /// How many documents there are.
    pub(crate) fn len(&self) -> usize {
        self.documents.len()
    }

    /// Waits for documents.
    pub(crate) async fn has(&mut self, keys: impl Iterator<Item = String>) {
        for key in keys {
            self.until(|follower| follower.documents.contains_key(&key)).await;
        }
    }

    #[track_caller]
    pub(crate) fn has_exactly(&self, keys: impl Iterator<Item = String>) {
        let mut expected: Vec<String> = keys.collect();
        expected.sort();
        let lacks: Vec<&String> = expected.iter().filter(|key| !self.documents.contains_key(*key)).collect();
        let is_odd = |key: &&String| expected.binary_search(key).is_err();
        let odd: Vec<&String> = self.documents.keys().filter(is_odd).collect();
        assert!(
            lacks.is_empty() && odd.is_empty(),
            "lacks {} {:?}, has too much {} {:?}",
            lacks.len(),
            lacks.first(),
            odd.len(),
            odd.first()
        );
    }

    pub(crate) fn position(&self) -> FeedPosition {
        self.tracker.position()
    }
}
