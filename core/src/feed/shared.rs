//! One feed for several databases of one bucket, each of which gets what is its own. What decides does no I/O.

mod hub;

use std::collections::{BTreeMap, BTreeSet};

use crate::decode::databases::{DEFAULT_COLLECTION, DEFAULT_ID, Owner};
use crate::feed::{FeedBatch, FeedEvent, FeedPosition, FeedStart, PartitionId, PartitionPosition, PartitionSeqno};

pub use hub::{SharedFeed, Strangers};

/// The part of a feed that belongs to one database: the documents of its collections, and its
/// users, roles, markers of unused sequences and counter, in any collection.
#[derive(Clone, Debug)]
pub struct Territory {
    /// None for the default one.
    metadata_id: Option<String>,
    /// None for all.
    collections: Option<BTreeSet<String>>,
    /// The numbers of those whose names were told, or that are given by number.
    numbers: BTreeSet<u32>,
}

impl Territory {
    /// That of the database with this metadata id (`None`, or `_default`, for the default one) and these collections, each as
    /// `scope.collection` or as a number such as `0x8`; `None` for all.
    pub fn new(metadata_id: Option<String>, collections: Option<BTreeSet<String>>) -> Self {
        let number = |name: &String| match name.as_str() {
            DEFAULT_COLLECTION => Some(0),
            name => u32::from_str_radix(name.strip_prefix("0x")?, 16).ok(),
        };
        let numbers = collections.iter().flatten().filter_map(number).collect();
        Territory { metadata_id: metadata_id.filter(|id| id != DEFAULT_ID), collections, numbers }
    }

    /// Whether it is what belongs to `owner`.
    fn has(&self, owner: &Owner<'_>) -> bool {
        match owner {
            Owner::Collection(number) => self.collections.is_none() || self.numbers.contains(number),
            Owner::Database(id) | Owner::Counter(id) => *id == self.metadata_id.as_deref().map(str::as_bytes),
            Owner::Nobody => false,
        }
    }

    /// Takes in what a collection is called; whether that is one of its own. One that was made anew under its name has another
    /// number, and both are.
    fn learn(&mut self, number: u32, name: &str) -> bool {
        let is_own = self.collections.as_ref().is_none_or(|collections| collections.contains(name));
        if is_own {
            self.numbers.insert(number);
        }
        is_own || self.numbers.contains(&number)
    }

    /// Its collections of which no number is known.
    fn unresolved(&self, told: &BTreeMap<u32, Box<str>>) -> Vec<&str> {
        let is_known =
            |name: &&str| **name == *DEFAULT_COLLECTION || name.starts_with("0x") || told.values().any(|told| **told == **name);
        self.collections.iter().flatten().map(String::as_str).filter(|name| !is_known(name)).collect()
    }
}

/// Where a feed must be opened so that nobody misses anything: in each partition, at the earliest of the positions.
fn earliest<'a>(starts: impl IntoIterator<Item = &'a FeedStart>) -> FeedStart {
    let mut earliest: Option<BTreeMap<PartitionId, PartitionPosition>> = None;
    for start in starts {
        let FeedStart::At(position) = start else { return FeedStart::Beginning };
        earliest = Some(match earliest {
            None => position.partitions.clone(),
            Some(earliest) => {
                // One that somebody has no position in is read from its beginning.
                let both = earliest.into_iter().filter_map(|(id, one)| Some((id, one, position.partitions.get(&id)?)));
                both.map(|(id, one, other)| (id, if other.seqno < one.seqno { other.clone() } else { one })).collect()
            }
        });
    }
    match earliest {
        Some(partitions) if !partitions.is_empty() => FeedStart::At(FeedPosition { partitions }),
        _ => FeedStart::Beginning,
    }
}

/// Up to where somebody had a partition already, when it was opened for all.
#[derive(Clone, Debug)]
struct Ahead {
    position: PartitionPosition,
    /// How far the feed has come: up to there, nothing comes again.
    passed: u64,
}

impl Ahead {
    /// Whether the position is one of the history with this log, newest first.
    fn is_of(&self, log: &[(u64, u64)]) -> bool {
        if self.position.uuid == 0 || log.is_empty() {
            return true;
        }
        match log.iter().position(|(uuid, _)| *uuid == self.position.uuid) {
            None => false,
            Some(0) => true,
            // It ends where the next one begins.
            Some(at) => self.position.seqno <= log[at - 1].1,
        }
    }
}

/// One database's share of a feed.
#[derive(Debug)]
struct Share {
    territory: Territory,
    ahead: BTreeMap<PartitionId, Ahead>,
    /// Partitions that were rolled back for this database alone: it is told so, and at last that this has ended.
    returning: BTreeSet<PartitionId>,
    unordered: BTreeSet<PartitionId>,
    /// How far partitions are beyond what was told.
    passed: BTreeMap<PartitionId, PartitionSeqno>,
    told: Vec<FeedEvent>,
}

impl Share {
    /// That of a database which wants to begin at `start`, of a feed that is opened at `opened`.
    fn new(territory: Territory, start: &FeedStart, opened: &FeedStart) -> Self {
        let mut ahead = BTreeMap::new();
        if let FeedStart::At(position) = start {
            let at = |id: &PartitionId| match opened {
                FeedStart::At(opened) => opened.partitions.get(id),
                _ => None,
            };
            for (id, position) in &position.partitions {
                let opened = at(id);
                if opened != Some(position) {
                    let passed = opened.map_or(0, |opened| opened.seqno);
                    ahead.insert(*id, Ahead { position: position.clone(), passed });
                }
            }
        }
        Share {
            territory,
            ahead,
            returning: BTreeSet::new(),
            unordered: BTreeSet::new(),
            passed: BTreeMap::new(),
            told: Vec::new(),
        }
    }

    /// Its part of a batch.
    fn of(&mut self, batch: &FeedBatch) -> FeedBatch {
        batch.events.iter().for_each(|event| self.take(event));
        for (partition, seqno) in std::mem::take(&mut self.passed) {
            self.told.push(FeedEvent::SeqnoAdvanced { partition, seqno });
        }
        FeedBatch { events: std::mem::take(&mut self.told) }
    }

    fn take(&mut self, event: &FeedEvent) {
        match event {
            FeedEvent::Mutation(mutation) => {
                let (partition, seqno) = (mutation.partition, mutation.seqno);
                if self.has_already(partition, seqno) {
                    return;
                }
                if self.territory.has(&Owner::of(mutation)) {
                    self.passed.remove(&partition);
                    self.told.push(event.clone());
                } else if !self.unordered.contains(&partition) {
                    self.passed.insert(partition, seqno);
                }
            }
            FeedEvent::SeqnoAdvanced { partition, seqno } => {
                self.unordered.remove(partition);
                if !self.has_already(*partition, *seqno) {
                    self.passed.remove(partition);
                    self.told.push(event.clone());
                }
            }
            FeedEvent::SnapshotStart { partition, end, .. } => {
                self.unordered.remove(partition);
                if self.ahead.get(partition).is_none_or(|ahead| end.0 > ahead.position.seqno) {
                    self.tell(*partition, event);
                }
            }
            FeedEvent::Rollback { partition, to } => {
                self.unordered.remove(partition);
                if self.ahead.get(partition).is_some_and(|ahead| ahead.position.seqno > to.0) {
                    // What comes again is for this database too.
                    self.ahead.remove(partition);
                }
                self.returning.remove(partition);
                self.tell(*partition, event);
            }
            FeedEvent::PartitionState { partition, failover_log, .. } => {
                if let Some(ahead) = self.ahead.get(partition)
                    && !ahead.is_of(failover_log)
                {
                    // The feed is not yet where this database's history was left, and so does not tell of it.
                    let to = PartitionSeqno(ahead.passed);
                    self.ahead.remove(partition);
                    self.returning.insert(*partition);
                    self.told.push(FeedEvent::Rollback { partition: *partition, to });
                }
                self.tell(*partition, event);
            }
            FeedEvent::RollbackEnded { partition } => {
                self.returning.remove(partition);
                self.tell(*partition, event);
            }
            FeedEvent::Unordered { partition } => {
                self.tell(*partition, event);
                self.unordered.insert(*partition);
            }
            FeedEvent::PartitionContext { partition, .. } => self.tell(*partition, event),
            FeedEvent::CollectionNames(names) => {
                let territory = &mut self.territory;
                let own: Vec<_> = names.iter().filter(|(number, name)| territory.learn(*number, name)).cloned().collect();
                if !own.is_empty() {
                    self.told.push(FeedEvent::CollectionNames(own));
                }
            }
            FeedEvent::CaughtUp => {
                // Nobody is ahead of what there is.
                self.ahead.clear();
                for partition in std::mem::take(&mut self.returning) {
                    self.tell(partition, &FeedEvent::RollbackEnded { partition });
                }
                self.told.push(event.clone());
            }
        }
    }

    /// Whether the database had this place when the feed was opened.
    fn has_already(&mut self, partition: PartitionId, seqno: PartitionSeqno) -> bool {
        let Some(ahead) = self.ahead.get_mut(&partition) else { return false };
        let has = seqno.0 <= ahead.position.seqno;
        if self.unordered.contains(&partition) {
            return has;
        }
        if has {
            ahead.passed = ahead.passed.max(seqno.0);
        } else {
            self.ahead.remove(&partition);
        }
        has
    }

    /// Tells of a partition; first, how far it is.
    fn tell(&mut self, partition: PartitionId, event: &FeedEvent) {
        if let Some(seqno) = self.passed.remove(&partition) {
            self.told.push(FeedEvent::SeqnoAdvanced { partition, seqno });
        }
        self.told.push(event.clone());
    }
}

#[cfg(test)]
mod tests;
