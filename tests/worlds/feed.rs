//! The feed of a bucket to which things happen while it is read.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use async_trait::async_trait;
use futures::StreamExt as _;
use parking_lot::Mutex;
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use sluicegate::core::FeedStream;
use sluicegate::core::feed::{FeedCapabilities, FeedInfo};
use sluicegate::feed::MutationKind;
use sluicegate::{Feed, FeedBatch, FeedEvent, FeedStart, Mutation, PartitionId, Result};
use sluicegate_testkit::history::{Place, Snapshots};

use super::bucket::Bucket;
use super::model::{Event, PARTITIONS, Term};

/// The most events in a batch.
const MAX_BATCH: usize = 8;

/// The feed of one term. It ends when everything has happened and has been delivered.
#[derive(Debug)]
pub(crate) struct WorldFeed {
    bucket: Arc<Mutex<Bucket>>,
    seed: u64,
    meanwhile: Vec<Event>,
    rollbacks_first: bool,
    leaves_out: bool,
}

impl WorldFeed {
    pub(crate) fn new(bucket: Arc<Mutex<Bucket>>, term: &Term, leaves_out: bool) -> WorldFeed {
        let Term { seed, rollbacks_first, .. } = *term;
        WorldFeed { bucket, seed, meanwhile: term.meanwhile.clone(), rollbacks_first, leaves_out }
    }
}

#[async_trait]
impl Feed for WorldFeed {
    fn info(&self) -> FeedInfo {
        let capabilities = FeedCapabilities { positions: true, snapshots: true, deletions: true, finite: true };
        FeedInfo { scheme: "worlds", name: "worlds".to_owned(), partitions: PARTITIONS, capabilities }
    }

    async fn open(&self, start: FeedStart) -> Result<FeedStream> {
        let mut positions = match start {
            FeedStart::At(position) => position.partitions,
            FeedStart::Beginning | FeedStart::Now => BTreeMap::new(),
        };
        let place = |id| Place::new(positions.remove(&PartitionId(id)).unwrap_or_default());
        let reading = Reading {
            bucket: self.bucket.clone(),
            meanwhile: self.meanwhile.iter().cloned().collect(),
            rollbacks_first: self.rollbacks_first,
            places: (0..PARTITIONS).map(place).collect(),
            is_caught_up: false,
            cuts: RandomCuts { random: ChaCha8Rng::seed_from_u64(self.seed), leaves_out: self.leaves_out },
            waiting: VecDeque::new(),
        };
        let batches = futures::stream::unfold(reading, |mut reading| async move {
            tokio::task::yield_now().await;
            let batch = reading.next()?;
            Some((Ok(batch), reading))
        });
        Ok(batches.boxed())
    }
}

/// Snapshots of any length. Purges are always delivered.
#[derive(Debug)]
struct RandomCuts {
    random: ChaCha8Rng,
    leaves_out: bool,
}

impl Snapshots for RandomCuts {
    fn length(&mut self, rest: &[Mutation]) -> usize {
        if rest.is_empty() { 0 } else { self.random.random_range(1..=rest.len()) }
    }

    fn delivers(&mut self, mutation: &Mutation) -> bool {
        mutation.kind == MutationKind::Deletion || !self.leaves_out || self.random.random_bool(0.3)
    }
}

/// One reading of the feed.
#[derive(Debug)]
struct Reading {
    bucket: Arc<Mutex<Bucket>>,
    /// What is still to happen.
    meanwhile: VecDeque<Event>,
    rollbacks_first: bool,
    places: Vec<Place>,
    is_caught_up: bool,
    cuts: RandomCuts,
    /// Events that no batch has delivered yet.
    waiting: VecDeque<FeedEvent>,
}

impl Reading {
    fn next(&mut self) -> Option<FeedBatch> {
        let wanted = self.cuts.random.random_range(1..=MAX_BATCH);
        while self.waiting.len() < wanted && self.read() {}
        let count = wanted.min(self.waiting.len());
        (count > 0).then(|| self.waiting.drain(..count).collect::<Vec<_>>().into())
    }

    /// Adds what comes next to the events that wait; false at the end.
    fn read(&mut self) -> bool {
        let bucket = self.bucket.clone();
        let mut bucket = bucket.lock();
        let random = &mut self.cuts.random;
        loop {
            let places = self.places.iter().zip(&bucket.partitions).enumerate();
            let (mut more, mut left) = (Vec::new(), None);
            for (id, (place, partition)) in places.filter(|(_, (place, partition))| place.has_more(partition)) {
                more.push(id);
                left = left.or(place.is_left(partition).then_some(id));
            }
            let may_happen = more.is_empty() || random.random_bool(0.3);
            if may_happen
                && (self.is_caught_up || random.random_bool(0.5))
                && let Some(event) = self.meanwhile.pop_front()
            {
                bucket.apply(&event);
            } else if !more.is_empty() {
                let any = more[random.random_range(0..more.len())];
                let id = left.filter(|_| self.rollbacks_first).unwrap_or(any);
                let (place, partition) = (&mut self.places[id], &bucket.partitions[id]);
                let next = place.next(id as u16, partition, self.is_caught_up, self.rollbacks_first, &mut self.cuts);
                self.waiting.extend(next);
                return true;
            } else if !self.is_caught_up {
                self.is_caught_up = true;
                self.waiting.push_back(FeedEvent::CaughtUp);
                return true;
            } else if self.meanwhile.is_empty() {
                return false;
            }
        }
    }
}
