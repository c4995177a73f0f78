//! A feed whose producer loses what it has delivered.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use async_trait::async_trait;
use futures::StreamExt as _;
use parking_lot::Mutex;
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use sluicegate_core::feed::{FeedCapabilities, FeedInfo};
use sluicegate_core::{Error, ErrorKind, Feed, FeedBatch, FeedEvent, FeedStart, FeedStream, Mutation, PartitionId, Result};

use crate::history::{Partition, Place, Snapshots};

/// What happens to the producer while its feed is read.
#[derive(Clone, Debug)]
pub enum Act {
    /// A key is written: what becomes of it is worked out from what the producer has of it then.
    Write(Write),
    /// A partition loses what it has after a place, given in percent of what it has.
    FailOver(PartitionId, u64),
    /// Somebody looks at everything that is there.
    Look(Look),
}

/// What somebody does who looks at everything that is there, in the order of the partitions.
#[derive(Clone)]
pub struct Look(pub Arc<dyn Fn(Vec<Mutation>) + Send + Sync>);

impl std::fmt::Debug for Look {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Look")
    }
}

/// From a key's last mutation, if there is one, to its next value.
pub type MakeValue = dyn Fn(Option<&Mutation>) -> String + Send + Sync;

/// Makes the next mutation of a key: the partition is given out, and the seqno.
#[derive(Clone)]
pub struct Write {
    /// The collection; 0 is the default one.
    pub collection: u32,
    /// The key.
    pub key: String,
    /// Given what is there: its value.
    pub value: Arc<MakeValue>,
}

impl std::fmt::Debug for Write {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Write({})", self.key)
    }
}

/// A finite feed of a producer with partitions that fail over: then it has lost the last of what it has delivered, and goes on with another history.
/// It can be opened at a position of a history that was left since, and says what is taken back. Within a snapshot it leaves out all but the last
/// change of a key.
#[derive(Clone, Debug)]
pub struct BranchingFeed(Arc<Mutex<Producer>>);

#[derive(Debug)]
struct Producer {
    partitions: Vec<Partition>,
    acts: VecDeque<Act>,
    random: ChaCha8Rng,
    last_uuid: u64,
    tells_first: bool,
}

impl BranchingFeed {
    /// An empty producer.
    pub fn new(partitions: u16, seed: u64) -> Self {
        let partitions: Vec<Partition> = (0..partitions.max(1)).map(|id| Partition::new(u64::from(id) + 1)).collect();
        let last_uuid = partitions.len() as u64;
        let random = ChaCha8Rng::seed_from_u64(seed);
        BranchingFeed(Arc::new(Mutex::new(Producer { partitions, acts: VecDeque::new(), random, last_uuid, tells_first: false })))
    }

    /// Makes it one that tells what is taken back before anything that was written after.
    #[must_use]
    pub fn telling_first(self) -> Self {
        self.0.lock().tells_first = true;
        self
    }

    /// Does something now.
    pub fn act(&self, act: Act) {
        self.0.lock().act(act);
    }

    /// What is to happen while the feed is read, a bit at a time.
    pub fn plan(&self, acts: impl IntoIterator<Item = Act>) {
        self.0.lock().acts.extend(acts);
    }

    /// Everything that the producer has, in the order of its partitions: of each key all changes that were not lost.
    pub fn surviving(&self) -> Vec<Mutation> {
        self.0.lock().surviving()
    }
}

impl Producer {
    fn surviving(&self) -> Vec<Mutation> {
        self.partitions.iter().flat_map(|partition| partition.after(0).to_vec()).collect()
    }

    fn act(&mut self, act: Act) {
        match act {
            Act::Write(Write { collection, key, value }) => {
                let count = self.partitions.len() as u64;
                let id = key.bytes().fold(7u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(byte))) % count;
                let partition = &mut self.partitions[id as usize];
                let value = value(partition.newest(collection, key.as_bytes()));
                partition.push(Mutation { partition: PartitionId(id as u16), collection, ..Mutation::new(key, value) });
            }
            Act::FailOver(id, percent) => {
                let Some(partition) = self.partitions.get_mut(usize::from(id.0)) else { return };
                let keep = partition.high() * percent.min(100) / 100;
                self.last_uuid += 1;
                partition.fail_over(keep, self.last_uuid);
            }
            Act::Look(Look(look)) => look(self.surviving()),
        }
    }
}

/// The end of a snapshot is where the seqno is a multiple of it, or the last one. So what is
/// delivered again is left out as before, but for what comes after a failover.
const SNAPSHOT: u64 = 6;

/// Snapshots of a fixed length, without any mutation that has a later one.
#[derive(Debug)]
struct Regular;

impl Snapshots for Regular {
    fn length(&mut self, rest: &[Mutation]) -> usize {
        rest.iter().position(|item| item.seqno.0.is_multiple_of(SNAPSHOT)).map_or(rest.len(), |last| last + 1)
    }

    fn delivers(&mut self, _: &Mutation) -> bool {
        false
    }
}

#[derive(Debug)]
struct Reading {
    producer: Arc<Mutex<Producer>>,
    places: Vec<Place>,
    is_caught_up: bool,
}

impl Reading {
    fn next(&mut self) -> Option<FeedBatch> {
        let producer = self.producer.clone();
        let mut producer = producer.lock();
        loop {
            let more: Vec<usize> =
                (0..self.places.len()).filter(|id| self.places[*id].has_more(&producer.partitions[*id])).collect();
            let acts_now = more.is_empty() || producer.random.random_bool(0.3);
            if acts_now
                && (self.is_caught_up || producer.random.random_bool(0.5))
                && let Some(act) = producer.acts.pop_front()
            {
                producer.act(act);
                continue;
            }
            if more.is_empty() && !self.is_caught_up {
                self.is_caught_up = true;
                return Some(vec![FeedEvent::CaughtUp].into());
            }
            if more.is_empty() && producer.acts.is_empty() {
                return None;
            }
            if more.is_empty() {
                continue;
            }
            let is_left = |id: &&usize| self.places[**id].is_left(&producer.partitions[**id]);
            let first = more.iter().find(is_left).copied().filter(|_| producer.tells_first);
            let id = first.unwrap_or_else(|| more[producer.random.random_range(0..more.len())]);
            let Producer { partitions, tells_first, .. } = &mut *producer;
            return Some(self.places[id].next(id as u16, &partitions[id], self.is_caught_up, *tells_first, &mut Regular).into());
        }
    }
}

#[async_trait]
impl Feed for BranchingFeed {
    fn info(&self) -> FeedInfo {
        let partitions = self.0.lock().partitions.len() as u16;
        let capabilities = FeedCapabilities { positions: true, snapshots: true, deletions: false, finite: true };
        FeedInfo { scheme: "branching", name: "branching".to_owned(), partitions, capabilities }
    }

    async fn open(&self, start: FeedStart) -> Result<FeedStream> {
        let mut positions = match start {
            FeedStart::Beginning => BTreeMap::new(),
            FeedStart::At(position) => position.partitions,
            FeedStart::Now => {
                return Err(Error::new(ErrorKind::Unsupported, "this feed begins at its beginning or at a position")
                    .with_operation("open"));
            }
        };
        let count = self.0.lock().partitions.len() as u16;
        let places = (0..count).map(|id| Place::new(positions.remove(&PartitionId(id)).unwrap_or_default())).collect();
        let reading = Reading { producer: self.0.clone(), places, is_caught_up: false };
        let batches = futures::stream::unfold(reading, |mut reading| async move {
            let batch = reading.next()?;
            Some((Ok(batch), reading))
        });
        Ok(batches.boxed())
    }
}
