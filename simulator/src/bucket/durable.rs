//! Durable writes of a vbucket: begun, and then committed or aborted (protocol, sections 4.7 to 4.9).

use bytes::Bytes;
use sluicegate_mcbp::Datatype;
use sluicegate_mcbp::dcp::Durability;

use super::item::{DocumentKey, Item, Kind};
use super::vbucket::Vbucket;

/// What has become of a durable write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is not complete.
    Pending,
    /// It holds, from this position on.
    Committed(u64),
    /// It was given up, or lost.
    Aborted,
}

impl Vbucket {
    /// Whether a durable write of a document is not complete.
    pub fn has_prepared(&self, key: &DocumentKey) -> bool {
        self.prepared.contains_key(key)
    }

    /// Whether enough nodes have copies for a majority of those that there are to be.
    pub fn can_be_durable(&self) -> bool {
        self.chain.iter().flatten().count() >= self.majority()
    }

    fn majority(&self) -> usize {
        self.width / 2 + 1
    }

    /// What has become of the durable write that began at `seqno`.
    pub fn outcome(&self, seqno: u64) -> Outcome {
        if self.prepared.values().any(|prepared| *prepared == seqno) {
            return Outcome::Pending;
        }
        match self.completed.iter().find(|(_, prepared)| **prepared == seqno) {
            Some((at, _)) if self.item(*at).is_some_and(|item| item.kind != Kind::Abort) => Outcome::Committed(*at),
            _ => Outcome::Aborted,
        }
    }

    /// Where the durable write began that was committed or aborted at `seqno`.
    pub fn prepared_of(&self, seqno: u64) -> Option<u64> {
        self.completed.get(&seqno).copied()
    }

    /// The last durable write that is complete, and the last that has begun: where they began.
    pub fn durable_seqnos(&self) -> (u64, u64) {
        let completed = self.completed.values().copied().max().unwrap_or(0);
        (completed, self.prepared.values().copied().max().unwrap_or(0).max(completed))
    }

    /// The last position up to `end` that readers may be told of: what is above it are durable writes that do not hold.
    pub fn visible_seqno(&self, end: u64) -> u64 {
        let hidden = self.between(0, end).iter().rev().zip((0..=end).rev());
        end - hidden.take_while(|(item, seqno)| item.seqno == *seqno && item.is_hidden()).count() as u64
    }

    /// Lets durable writes stay incomplete, or lets those be committed that may be.
    pub fn hold_prepared(&mut self, is_held: bool) {
        self.holds_prepared = is_held;
        self.follow();
    }

    /// Gives up the durable writes that are not complete; how many.
    pub fn abort_prepared(&mut self) -> usize {
        let prepared: Vec<u64> = self.prepared.values().copied().collect();
        for seqno in &prepared {
            let Some(index) = self.index_of(*seqno) else { continue };
            let (value, datatype) = (Bytes::new(), Datatype::default());
            let abort = Item { kind: Kind::Abort, value, datatype, ..self.items[index].clone() };
            self.complete(index, abort);
        }
        prepared.len()
    }

    /// Commits what enough copies have.
    pub(super) fn commit_what_holds(&mut self) {
        while !self.holds_prepared
            && let Some(index) = self.prepared.values().filter_map(|seqno| self.index_of(*seqno)).find(|index| self.holds(*index))
        {
            let prepare = &self.items[index];
            let kind = match prepare.kind {
                Kind::Prepare { is_deletion: true, .. } => Kind::Deletion,
                _ => Kind::Mutation,
            };
            let commit = Item { kind, ..prepare.clone() };
            self.complete(index, commit);
        }
    }

    /// Whether enough copies have the durable write at `index`.
    fn holds(&self, index: usize) -> bool {
        let Item { seqno, kind: Kind::Prepare { level, .. }, .. } = self.items[index] else { return false };
        let in_memory = self.copies.iter().filter(|copy| copy.high_seqno >= seqno).count();
        let on_disk = self.copies.iter().filter(|copy| copy.persisted_seqno >= seqno).count();
        let is_active_on_disk = self.active().is_some_and(|copy| copy.persisted_seqno >= seqno);
        match level {
            Durability::Majority => in_memory >= self.majority(),
            Durability::MajorityAndPersistToActive => in_memory >= self.majority() && is_active_on_disk,
            _ => on_disk >= self.majority(),
        }
    }

    /// Ends the durable write at `index` with `item`.
    fn complete(&mut self, index: usize, item: Item) {
        let prepared = self.items[index].seqno;
        self.prepared.remove(&item.name());
        let at = self.high_seqno() + 1;
        self.completed.insert(at, prepared);
        self.items[index].superseded_by = at;
        self.append(item);
    }
}
