//! One feed for several databases of a bucket. Each database gets its own events. The decisions are
//! made here, without I/O.

mod hub;

use std::collections::{BTreeMap, BTreeSet};

use crate::decode::databases::{DEFAULT_COLLECTION, DEFAULT_ID, Owner};
use crate::feed::{FeedBatch, FeedEvent, FeedPosition, FeedStart, PartitionId, PartitionPosition, PartitionSeqno};

pub use hub::{SharedFeed, Strangers};

/// The part of a feed that belongs to one database: the documents of its collections, and its
/// users, roles, markers of unused sequences and counter, in any collection.
#[derive(Clone, Debug)]
pub struct Territory {
    /// `None` for the default one.
    metadata_id: Option<String>,
    /// `None` for all.
    collections: Option<BTreeSet<String>>,
    /// The numbers of the collections whose names were reported, or that are given by number.
    numbers: BTreeSet<u32>,
}

impl Territory {
    /// The territory of the database with this metadata id (`None`, or `_default`, for the default
    /// one) and these collections, each as `scope.collection` or as a number such as `0x8`; `None`
    /// for all.
    pub fn new(metadata_id: Option<String>, collections: Option<BTreeSet<String>>) -> Self {
        let number = |name: &String| match name.as_str() {
            DEFAULT_COLLECTION => Some(0),
            name => u32::from_str_radix(name.strip_prefix("0x")?, 16).ok(),
        };
        let numbers = collections.iter().flatten().filter_map(number).collect();
        Territory { metadata_id: metadata_id.filter(|id| id != DEFAULT_ID), collections, numbers }
    }

    /// Whether mutations of `owner` belong to it.
    fn has(&self, owner: &Owner<'_>) -> bool {
        match owner {
            Owner::Collection(number) => self.collections.is_none() || self.numbers.contains(number),
            Owner::Database(id) => *id == self.metadata_id.as_deref().map(str::as_bytes),
            Owner::Nobody => false,
        }
    }

    /// Takes the name of a collection; returns whether the collection is one of its own. A
    /// collection that was dropped and created again has a new number; both numbers are its own.
    fn learn(&mut self, number: u32, name: &str) -> bool {
        let is_own = self.collections.as_ref().is_none_or(|collections| collections.contains(name));
        if is_own {
            self.numbers.insert(number);
        }
        is_own || self.numbers.contains(&number)
    }

    /// Its collections whose numbers are not known.
    fn unresolved(&self, told: &BTreeMap<u32, Box<str>>) -> Vec<&str> {
        let is_known =
            |name: &&str| **name == *DEFAULT_COLLECTION || name.starts_with("0x") || told.values().any(|told| **told == **name);
        self.collections.iter().flatten().map(String::as_str).filter(|name| !is_known(name)).collect()
    }
}

/// The position at which a feed must be opened so that no database misses an event: in each
/// partition, the earliest, or one before it.
fn earliest<'a>(starts: impl IntoIterator<Item = &'a FeedStart>) -> FeedStart {
    let mut all: Option<BTreeMap<PartitionId, Vec<&PartitionPosition>>> = None;
    for start in starts {
        let FeedStart::At(position) = start else { return FeedStart::Beginning };
        all = Some(match all {
            None => position.partitions.iter().map(|(id, at)| (*id, vec![at])).collect(),
            Some(mut all) => {
                // A partition in which a database has no position is read from its beginning.
                all.retain(|id, places| {
                    position.partitions.get(id).is_some_and(|at| {
                        places.push(at);
                        true
                    })
                });
                all
            }
        });
    }
    let places = all.into_iter().flatten().filter_map(|(id, places)| Some((id, place_for_all(&places)?)));
    let partitions: BTreeMap<PartitionId, PartitionPosition> = places.collect();
    if partitions.is_empty() { FeedStart::Beginning } else { FeedStart::At(FeedPosition { partitions }) }
}

/// Where a partition is opened that databases have at these places.
///
/// Where one of them was in a history that another knows to be left, the feed must find that out:
/// it is opened in that history, at a place before all of them at which nothing was left out. Then
/// the feed takes back what of that history is lost, and whoever is ahead of where it goes back to
/// is told. Of several such histories the oldest counts: it was left first.
fn place_for_all(places: &[&PartitionPosition]) -> Option<PartitionPosition> {
    let first = places.iter().min_by_key(|at| at.seqno)?;
    let knows = |at: &PartitionPosition, uuid: u64| at.failover_log.iter().skip(1).any(|(earlier, _)| *earlier == uuid);
    let is_left =
        |at: &PartitionPosition| at.uuid != 0 && places.iter().any(|other| other.uuid != at.uuid && knows(other, at.uuid));
    let left: Vec<&PartitionPosition> = places.iter().copied().filter(|at| is_left(at)).collect();
    let is_oldest = |at: &&&PartitionPosition| !left.iter().any(|other| other.uuid != at.uuid && knows(at, other.uuid));
    let Some(left) = left.iter().find(is_oldest) else { return Some((*first).clone()) };
    let mut place = (*left).clone();
    place.roll_back(places.iter().map(|at| at.last_end(first.seqno)).min()?);
    Some(place)
}

/// A database's position in a partition, if it is later than the position at which the feed was
/// opened.
#[derive(Clone, Debug)]
struct Ahead {
    position: PartitionPosition,
    /// How far the feed has come. Events up to there do not come again.
    passed: u64,
    /// The feed has told that something was taken back.
    is_told: bool,
}

impl Ahead {
    /// Whether the position is one of the newest history of this log, newest first. In one that was
    /// left, even before its end, the database may hold more than its position says.
    fn is_of(&self, log: &[(u64, u64)]) -> bool {
        self.position.uuid == 0 || log.first().is_none_or(|(newest, _)| *newest == self.position.uuid)
    }
}

/// One database's share of a feed.
#[derive(Debug)]
struct Share {
    territory: Territory,
    ahead: BTreeMap<PartitionId, Ahead>,
    /// Partitions that were rolled back for this database only: it is told of the rollback, and of
    /// its end.
    returning: BTreeSet<PartitionId>,
    unordered: BTreeSet<PartitionId>,
    /// How far partitions are beyond the last event that was delivered.
    passed: BTreeMap<PartitionId, PartitionSeqno>,
    told: Vec<FeedEvent>,
}

impl Share {
    /// The share of a database that begins at `start`, of a feed that is opened at `opened`.
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
                    ahead.insert(*id, Ahead { position: position.clone(), passed, is_told: false });
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
                match self.ahead.get_mut(partition) {
                    // Events that come again are for this database, too.
                    Some(ahead) if ahead.position.seqno > to.0 => drop(self.ahead.remove(partition)),
                    Some(ahead) => ahead.is_told = true,
                    None => {}
                }
                self.returning.remove(partition);
                self.tell(*partition, event);
            }
            FeedEvent::PartitionState { partition, failover_log, .. } => {
                if let Some(ahead) = self.ahead.get(partition)
                    && !ahead.is_told
                    && !ahead.is_of(failover_log)
                {
                    // The feed has not reached the place where the branch of this database was
                    // left, so it does not report a rollback.
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
                // No database is ahead of the end of the feed.
                self.ahead.clear();
                for partition in std::mem::take(&mut self.returning) {
                    self.tell(partition, &FeedEvent::RollbackEnded { partition });
                }
                self.told.push(event.clone());
            }
        }
    }

    /// Whether the database had this position when the feed was opened.
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

    /// Delivers an event of a partition; before it, how far the partition is.
    fn tell(&mut self, partition: PartitionId, event: &FeedEvent) {
        if let Some(seqno) = self.passed.remove(&partition) {
            self.told.push(FeedEvent::SeqnoAdvanced { partition, seqno });
        }
        self.told.push(event.clone());
    }
}

#[cfg(test)]
mod tests;
