//! One feed for several databases of a bucket. Each database gets its own events. The decisions are
//! made here, without I/O.

mod hub;

use std::collections::{BTreeMap, BTreeSet};

use crate::decode::databases::{DEFAULT_COLLECTION, DEFAULT_ID, Owner};
use crate::error::{Error, ErrorKind, Result};
use crate::feed::{FeedBatch, FeedEvent, FeedPosition, FeedStart, PartitionId, PartitionPosition, PartitionSeqno, common_point};

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
/// The feed may have to go back from there, to a place at which it left out nothing: so only such
/// places count that are known to be one for all databases. The snapshots of one database need not
/// be those of another: the feed was opened at another place, or without it.
fn place_for_all(places: &[&PartitionPosition]) -> Option<PartitionPosition> {
    let begin = |at: &PartitionPosition| at.failover_log.first().map_or(0, |(_, begin)| *begin);
    let first = places.iter().copied().min_by_key(|at| at.seqno)?;
    let is_alike = |at: &&PartitionPosition| {
        let snapshot = |at: &PartitionPosition| (at.uuid, at.snapshot_start, at.snapshot_end);
        snapshot(at) == snapshot(first) && at.snapshot_ends == first.snapshot_ends
    };
    if places.iter().all(is_alike) {
        return Some(first.clone());
    }
    let is_end = |seqno: u64| places.iter().all(|at| at.is_end(seqno));
    let pairs = places.iter().flat_map(|at| places.iter().map(move |other| (*at, *other)));
    let parted = pairs.filter(|(at, other)| at.uuid != other.uuid && at.uuid != 0 && other.uuid != 0);
    let common = parted.map(|(at, other)| common_point(&at.failover_log, &other.failover_log, at.seqno)).min();
    if let Some(common) = common.map(|common| common.min(first.seqno)) {
        // One of them is in a history that was left, and may have to go back. The feed is opened in
        // the history that they have in common, so it reports that to all.
        let ends = places.iter().flat_map(|at| at.ends()).filter(|end| *end <= common && is_end(*end));
        let last = ends.max().unwrap_or(0);
        let back = places.iter().map(|at| {
            let mut at = (*at).clone();
            at.roll_back(last);
            at
        });
        let mut place = back.min_by_key(begin)?;
        place.snapshot_ends.retain(|end| *end < last && is_end(*end));
        return Some(place);
    }
    let mut place = first.clone();
    place.snapshot_ends.retain(|end| is_end(*end));
    place.manifest_uid = places.iter().map(|at| at.manifest_uid).min()?;
    place.purge_seqno = places.iter().map(|at| at.purge_seqno).min()?;
    if !is_end(first.seqno) {
        // As if the feed had stopped within a snapshot: then it goes back farther if something up
        // to the snapshot's end is lost.
        let inside = places.iter().filter(|at| !at.is_end(first.seqno));
        place.snapshot_start = place.snapshot_ends.up_to(first.seqno).unwrap_or(0);
        place.snapshot_end = inside.map(|at| at.end_after(first.seqno)).max()?;
    }
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
    /// Partitions that were rolled back to before the database's position, and the seqno of the
    /// rollback. The next `PartitionState` decides whether the database is affected.
    undecided: BTreeMap<PartitionId, PartitionSeqno>,
    /// The positions with which this database began, where the feed was opened at another one. One
    /// is kept until the feed goes back to where this database left out nothing.
    began: BTreeMap<PartitionId, PartitionPosition>,
    /// Partitions that were rolled back to before the end of the snapshot of that position, and
    /// where to.
    back: BTreeMap<PartitionId, u64>,
    /// A partition of which the database needs events that the feed has passed.
    needs_earlier: Option<PartitionId>,
    /// How far partitions are beyond the last event that was delivered.
    passed: BTreeMap<PartitionId, PartitionSeqno>,
    told: Vec<FeedEvent>,
}

impl Share {
    /// The share of a database that begins at `start`, of a feed that is opened at `opened`.
    fn new(territory: Territory, start: &FeedStart, opened: &FeedStart) -> Self {
        let (mut ahead, mut began) = (BTreeMap::new(), BTreeMap::new());
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
                    began.insert(*id, position.clone());
                }
            }
        }
        Share {
            territory,
            ahead,
            returning: BTreeSet::new(),
            unordered: BTreeSet::new(),
            undecided: BTreeMap::new(),
            began,
            back: BTreeMap::new(),
            needs_earlier: None,
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

    /// An error if the database needs events that the feed has passed. Then the feed must be opened
    /// again, and the database must not be given its part of the last batch.
    fn check(&self) -> Result<()> {
        let Some(partition) = self.needs_earlier else { return Ok(()) };
        let message = "the feed rolled back, and a database needs events that the feed had passed; all writers start again";
        let id = self.territory.metadata_id.as_deref().unwrap_or(DEFAULT_ID);
        Err(Error::new(ErrorKind::Unavailable, message).with_context("metadata_id", id).with_context("partition", partition.0))
    }

    fn take(&mut self, event: &FeedEvent) {
        self.decide(event);
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
                let is_ahead = |ahead: &Ahead| ahead.position.seqno > to.0 && ahead.position.uuid != 0;
                if self.undecided.contains_key(partition) || self.ahead.get(partition).is_some_and(is_ahead) {
                    let lowest = self.undecided.entry(*partition).or_insert(*to);
                    *lowest = *to.min(lowest);
                } else {
                    self.take_rollback(*partition, *to);
                }
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
                    self.rolled_back(*partition, to);
                }
                self.check_rollback(*partition, failover_log);
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

    /// Decides about rollbacks that were held back. If the partition's newest history is the one of
    /// the database's position, the database lost nothing: it had left the other history before. It
    /// must not be told of the rollback, because its checkpoints would then stay at that position
    /// and wait for a rollback that the feed does not report again.
    fn decide(&mut self, next: &FeedEvent) {
        if self.undecided.is_empty() {
            return;
        }
        if let FeedEvent::PartitionState { partition, failover_log, .. } = next
            && let Some(to) = self.undecided.get(partition)
            && let Some(ahead) = self.ahead.get_mut(partition)
            && failover_log.first().is_some_and(|(newest, _)| *newest == ahead.position.uuid)
        {
            ahead.passed = ahead.passed.min(to.0);
            self.undecided.remove(partition);
        }
        if matches!(next, FeedEvent::Rollback { .. } | FeedEvent::CollectionNames(_)) {
            return;
        }
        let is_next = |partition: &PartitionId| next.partition().is_none_or(|next| next == *partition);
        let decided: Vec<(PartitionId, PartitionSeqno)> =
            self.undecided.extract_if(.., |partition, _| is_next(partition)).collect();
        decided.into_iter().for_each(|(partition, to)| self.take_rollback(partition, to));
    }

    fn take_rollback(&mut self, partition: PartitionId, to: PartitionSeqno) {
        match self.ahead.get_mut(&partition) {
            // Events that come again are for this database, too.
            Some(ahead) if ahead.position.seqno > to.0 => drop(self.ahead.remove(&partition)),
            Some(ahead) => ahead.is_told = true,
            None => {}
        }
        self.rolled_back(partition, to);
        self.returning.remove(&partition);
        self.tell(partition, &FeedEvent::Rollback { partition, to });
    }

    /// The partition was rolled back, to a place up to which the feed delivers nothing again.
    fn rolled_back(&mut self, partition: PartitionId, to: PartitionSeqno) {
        if self.began.get(&partition).is_some_and(|began| began.snapshot_end > to.0) {
            self.back.insert(partition, to.0);
        }
    }

    /// Finds out whether the database lacks an event up to the place to which the partition was
    /// rolled back: its own snapshot left the event out, for a later one of the same key, which is
    /// lost. Every rollback is checked: the next history may have been left earlier than this one.
    fn check_rollback(&mut self, partition: PartitionId, failover_log: &[(u64, u64)]) {
        let Some(to) = self.back.remove(&partition) else { return };
        let Some(began) = self.began.get(&partition) else { return };
        let common = common_point(&began.failover_log, failover_log, began.snapshot_end);
        if common < began.snapshot_end && began.last_end(common) < to {
            self.needs_earlier = Some(partition);
        } else if began.is_end(to) {
            self.began.remove(&partition);
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
