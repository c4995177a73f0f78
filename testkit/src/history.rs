//! Partitions that fail over, and how a stream of one goes on from history to history.

use std::collections::HashMap;

use sluicegate_core::feed::{PartitionPosition, common_point};
use sluicegate_core::{FeedEvent, Mutation, PartitionId, PartitionSeqno};

/// A partition of a producer: its mutations, and its histories.
#[derive(Debug)]
pub struct Partition {
    items: Vec<Mutation>,
    /// Identity of each history and where it begins, newest first. There is at least one.
    log: Vec<(u64, u64)>,
}

impl Partition {
    /// An empty one, in its first history.
    pub fn new(uuid: u64) -> Self {
        Partition { items: Vec::new(), log: vec![(uuid, 0)] }
    }

    /// The last seqno; 0 without mutations.
    pub fn high(&self) -> u64 {
        self.items.last().map_or(0, |item| item.seqno.0)
    }

    /// The mutations with a higher seqno.
    pub fn after(&self, seqno: u64) -> &[Mutation] {
        &self.items[self.items.partition_point(|item| item.seqno.0 <= seqno)..]
    }

    /// The last mutation of a key.
    pub fn newest(&self, collection: u32, key: &[u8]) -> Option<&Mutation> {
        self.items.iter().rev().find(|item| (item.collection, &item.key[..]) == (collection, key))
    }

    /// Adds a mutation with the next seqno.
    pub fn push(&mut self, mutation: Mutation) {
        self.items.push(Mutation { seqno: PartitionSeqno(self.high() + 1), ..mutation });
    }

    /// Loses what is after `keep`, and begins another history there.
    pub fn fail_over(&mut self, keep: u64, uuid: u64) {
        self.items.retain(|item| item.seqno.0 <= keep);
        self.log.retain(|(_, begin)| *begin <= keep);
        self.log.insert(0, (uuid, keep));
    }
}

/// How a stream is cut into snapshots, and what is left out of them.
pub trait Snapshots {
    /// How many mutations the next snapshot has, of those that are left.
    fn length(&mut self, rest: &[Mutation]) -> usize;

    /// Whether a mutation is delivered though its snapshot has a later one of the same key.
    fn delivers(&mut self, mutation: &Mutation) -> bool;
}

/// How far a stream is in one partition.
#[derive(Debug, Default)]
pub struct Place {
    at: PartitionPosition,
    /// What must have come before a rollback has ended.
    returning: Option<u64>,
    /// Whether the history has been told since the feed was opened.
    is_told: bool,
}

impl Place {
    /// A stream that goes on after `at`.
    pub fn new(at: PartitionPosition) -> Self {
        Place { at, returning: None, is_told: false }
    }

    /// Whether the stream is in a history that the partition has left.
    pub fn is_left(&self, partition: &Partition) -> bool {
        self.at.uuid != partition.log[0].0
    }

    /// What there is to tell of the partition next, a snapshot at most. If `alone`, nothing comes
    /// with the news of another history.
    pub fn next(
        &mut self,
        id: u16,
        partition: &Partition,
        caught_up: bool,
        alone: bool,
        snapshots: &mut impl Snapshots,
    ) -> Vec<FeedEvent> {
        let id = PartitionId(id);
        let mut out = Vec::new();
        let uuid = partition.log[0].0;
        let mut has_changed = false;
        if self.is_left(partition) {
            let common = if self.at.uuid == 0 {
                self.at.seqno
            } else {
                common_point(&self.at.failover_log, &partition.log, self.at.seqno)
            };
            // In the middle of a snapshot not all keys are as they were at any place.
            let is_inside = self.at.seqno < self.at.snapshot_end && common < self.at.snapshot_end;
            let goes_back = common < self.at.seqno || is_inside && self.at.seqno > 0;
            if goes_back {
                self.at.roll_back(self.at.last_end(common));
            }
            if goes_back || self.at.uuid != 0 && !caught_up {
                out.push(FeedEvent::Rollback { partition: id, to: PartitionSeqno(self.at.seqno) });
                self.returning = Some(0);
            }
            // Another history may have less: then less is waited for.
            self.returning = self.returning.map(|_| partition.high());
            (self.at.uuid, self.at.failover_log) = (uuid, partition.log.clone());
            (self.is_told, has_changed) = (false, true);
        }
        if !self.is_told {
            self.is_told = true;
            out.push(FeedEvent::PartitionState { partition: id, uuid, failover_log: partition.log.clone() });
        }
        if has_changed && alone {
            return out;
        }
        let rest = partition.after(self.at.seqno);
        let begun = rest.partition_point(|item| item.seqno.0 <= self.at.snapshot_end);
        let some = &rest[..snapshots.length(rest).max(begun)];
        if let (Some(first), Some(last)) = (some.first(), some.last()) {
            let (start, end) = (first.seqno, last.seqno);
            out.push(FeedEvent::SnapshotStart { partition: id, start, end });
            let document = |item: &Mutation| (item.collection, item.key.clone());
            let newest: HashMap<_, PartitionSeqno> = some.iter().map(|item| (document(item), item.seqno)).collect();
            let kept = some.iter().filter(|item| newest[&document(item)] == item.seqno || snapshots.delivers(item));
            out.extend(kept.cloned().map(FeedEvent::Mutation));
            self.at.begin_snapshot(start.0, end.0);
            self.at.seqno = end.0;
        }
        if self.returning.is_some_and(|goal| self.at.seqno >= goal) {
            self.returning = None;
            out.push(FeedEvent::RollbackEnded { partition: id });
        }
        out
    }

    /// Whether there is anything to tell.
    pub fn has_more(&self, partition: &Partition) -> bool {
        !self.is_told || self.is_left(partition) || self.at.seqno < partition.high() || self.returning.is_some()
    }
}
