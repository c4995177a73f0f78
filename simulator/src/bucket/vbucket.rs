//! One vbucket: its history, its documents, and the copies that nodes have of it.

use std::collections::BTreeMap;

use rustc_hash::FxHashMap;
use sluicegate_mcbp::dcp::{FailoverEntry, FailoverLog, VbucketState};

use super::item::{DocumentKey, Item, Kind};

/// The longest failover log that is kept, in entries.
pub const MAX_FAILOVER_ENTRIES: usize = 25;

/// A vbucket. The history is one; a node's copy of it ends where that copy has come to.
#[derive(Clone, Debug)]
pub struct Vbucket {
    pub(super) items: Vec<Item>,
    latest: FxHashMap<DocumentKey, u64>,
    failover_log: FailoverLog,
    high_seqno: u64,
    purge_seqno: u64,
    memory_from: u64,
    branch: u64,
    changes: u64,
    /// The nodes that are to have a copy, the active one first.
    pub(super) chain: Vec<Option<usize>>,
    /// How many copies there are to be, with those that no node has any more.
    pub(super) width: usize,
    pub(super) copies: Vec<NodeCopy>,
    /// Durable writes that are not complete: where they began.
    pub(super) prepared: BTreeMap<DocumentKey, u64>,
    /// Where durable writes were committed or aborted, and where they had begun.
    pub(super) completed: BTreeMap<u64, u64>,
    /// Whether durable writes stay incomplete.
    pub(super) holds_prepared: bool,
}

/// What one node has of a vbucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeCopy {
    /// The node.
    pub node: usize,
    /// What the copy is.
    pub state: VbucketState,
    /// The last position it has.
    pub high_seqno: u64,
    /// The last position it has on disk.
    pub persisted_seqno: u64,
    /// Whether nothing more of the history arrives.
    pub is_replication_held: bool,
    /// Whether nothing more gets to disk.
    pub is_persistence_held: bool,
    /// Changes whenever the copy becomes something else.
    pub incarnation: u64,
}

impl Vbucket {
    /// An empty vbucket with one history, and copies on the nodes of `chain`, the active one first.
    pub fn new(vbucket_uuid: u64, chain: Vec<Option<usize>>) -> Self {
        let mut vbucket = Vbucket {
            items: Vec::new(),
            latest: FxHashMap::default(),
            failover_log: FailoverLog(vec![FailoverEntry { vbucket_uuid, seqno: 0 }]),
            high_seqno: 0,
            purge_seqno: 0,
            memory_from: 1,
            branch: 0,
            changes: 0,
            chain: Vec::new(),
            width: 0,
            copies: Vec::new(),
            prepared: BTreeMap::new(),
            completed: BTreeMap::new(),
            holds_prepared: false,
        };
        vbucket.set_chain(chain);
        vbucket
    }

    /// The last position.
    pub fn high_seqno(&self) -> u64 {
        self.high_seqno
    }

    /// The position up to which deletions may be gone.
    pub fn purge_seqno(&self) -> u64 {
        self.purge_seqno
    }

    /// The first position that is in memory; what is before it is on disk only, with the last change of each document.
    pub fn memory_from(&self) -> u64 {
        self.memory_from
    }

    /// The histories, newest first.
    pub fn failover_log(&self) -> &FailoverLog {
        &self.failover_log
    }

    /// The identity of the history that is being written.
    pub fn vbucket_uuid(&self) -> u64 {
        self.failover_log.newest().map_or(0, |entry| entry.vbucket_uuid)
    }

    /// Changes whenever positions are taken back.
    pub fn branch(&self) -> u64 {
        self.branch
    }

    /// Changes whenever anything does.
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// How many documents there are.
    pub fn num_documents(&self) -> usize {
        self.latest.values().filter(|seqno| self.item(**seqno).is_some_and(|item| !item.is_removal())).count()
    }

    /// The last change of a document, which may be its removal.
    pub fn find(&self, key: &DocumentKey) -> Option<&Item> {
        self.item(*self.latest.get(key)?)
    }

    /// The change at a position.
    pub fn item(&self, seqno: u64) -> Option<&Item> {
        self.after(seqno.checked_sub(1)?).first().filter(|item| item.seqno == seqno)
    }

    /// The changes above a position, in order; those that were replaced are among them.
    pub fn after(&self, seqno: u64) -> &[Item] {
        // Positions are dense unless something was purged.
        let guess = usize::try_from(seqno).unwrap_or(usize::MAX).min(self.items.len());
        let is_exact = guess == 0 || self.items[guess - 1].seqno == seqno;
        let from = if is_exact { guess } else { self.items.partition_point(|item| item.seqno <= seqno) };
        &self.items[from..]
    }

    /// The changes above `after` and up to `end`, in order.
    pub fn between(&self, after: u64, end: u64) -> &[Item] {
        let items = self.after(after);
        &items[..items.partition_point(|item| item.seqno <= end)]
    }

    /// The last position above `after` and up to `end` of a change that readers see and that is `wanted`.
    pub fn last_seqno(&self, after: u64, end: u64, wanted: impl Fn(&Item) -> bool) -> Option<u64> {
        let is_seen = |item: &&Item| item.superseded_by > end && !item.is_hidden() && wanted(item);
        self.between(after, end).iter().rev().find(is_seen).map(|item| item.seqno)
    }

    /// The documents, without those removed.
    pub fn documents(&self) -> impl Iterator<Item = &Item> {
        self.items.iter().filter(|item| item.superseded_by == u64::MAX && item.kind == Kind::Mutation)
    }

    /// Appends a change; gives it its position and revision, and tells the copies. The position.
    pub fn append(&mut self, mut item: Item) -> u64 {
        self.high_seqno += 1;
        item.seqno = self.high_seqno;
        item.superseded_by = u64::MAX;
        if let Some(document) = item.document() {
            let before = self.latest.insert(document, item.seqno);
            if let Some(before) = before.and_then(|seqno| self.index_of(seqno)) {
                item.rev = item.rev.max(self.items[before].rev + 1);
                self.items[before].superseded_by = item.seqno;
            }
        }
        let (seqno, name) = (item.seqno, matches!(item.kind, Kind::Prepare { .. }).then(|| item.name()));
        if let Some(name) = name {
            let before = self.latest.get(&name).and_then(|seqno| self.item(*seqno));
            item.rev = item.rev.max(before.map_or(0, |before| before.rev) + 1);
            self.prepared.insert(name, seqno);
        }
        self.items.push(item);
        self.follow();
        seqno
    }

    /// Marks a collection's documents as replaced by the position of the event that dropped it.
    pub fn drop_documents(&mut self, collection: u32) {
        let (high, items) = (self.high_seqno, &mut self.items);
        self.latest.retain(|key, _| key.collection != collection);
        self.prepared.retain(|key, _| key.collection != collection);
        for item in items.iter_mut().filter(|item| item.collection == collection && !item.is_system()) {
            item.superseded_by = item.superseded_by.min(high);
        }
    }

    /// Begins a new history at `seqno`: what is above it is lost, on all copies.
    pub fn fail_over(&mut self, vbucket_uuid: u64, seqno: u64) {
        if seqno < self.high_seqno {
            self.truncate(seqno);
        }
        let log = &mut self.failover_log.0;
        log.retain(|entry| entry.seqno <= seqno);
        log.insert(0, FailoverEntry { vbucket_uuid, seqno });
        log.truncate(MAX_FAILOVER_ENTRIES);
        self.changes += 1;
    }

    /// Removes the deletions up to `seqno`, and what was replaced up to it.
    pub fn purge(&mut self, seqno: u64) {
        let seqno = seqno.min(self.high_seqno);
        let latest = &mut self.latest;
        self.items.retain(|item| {
            let is_gone = item.seqno <= seqno && (item.superseded_by <= seqno || item.is_removal() || item.kind == Kind::Abort);
            if is_gone
                && let Some(document) = item.document()
                && latest.get(&document) == Some(&item.seqno)
            {
                latest.remove(&document);
            }
            !is_gone
        });
        self.completed.retain(|completed, _| *completed > seqno);
        self.purge_seqno = self.purge_seqno.max(seqno);
        self.memory_from = self.memory_from.max(seqno + 1);
        self.changes += 1;
    }

    /// Lets everything that the active copy has on disk leave the memory.
    pub fn evict(&mut self) {
        self.evict_to(0);
    }

    /// As [`evict`](Self::evict), but keeps the last `keep` changes in memory.
    pub fn evict_to(&mut self, keep: u64) {
        let persisted = self.active().map_or(self.high_seqno, |copy| copy.persisted_seqno);
        let from = persisted.min(self.high_seqno.saturating_sub(keep)) + 1;
        self.memory_from = self.memory_from.max(from);
    }

    pub(super) fn index_of(&self, seqno: u64) -> Option<usize> {
        self.item(seqno)?;
        Some(self.items.len() - self.after(seqno).len() - 1)
    }

    fn truncate(&mut self, seqno: u64) {
        let until = self.items.partition_point(|item| item.seqno <= seqno);
        self.items.truncate(until);
        self.latest.clear();
        self.prepared.clear();
        self.completed.retain(|completed, _| *completed <= seqno);
        for item in &mut self.items {
            if item.superseded_by > seqno {
                item.superseded_by = u64::MAX;
                if matches!(item.kind, Kind::Prepare { .. }) {
                    self.prepared.insert(item.name(), item.seqno);
                }
                if let Some(document) = item.document() {
                    self.latest.insert(document, item.seqno);
                }
            }
        }
        self.high_seqno = seqno;
        self.memory_from = self.memory_from.min(seqno + 1);
        self.branch += 1;
        for copy in &mut self.copies {
            copy.high_seqno = copy.high_seqno.min(seqno);
            copy.persisted_seqno = copy.persisted_seqno.min(seqno);
        }
    }
}

/// Copies.
impl Vbucket {
    /// The nodes that are to have a copy, the active one first; none where no node has.
    pub fn chain(&self) -> &[Option<usize>] {
        &self.chain
    }

    /// The copies that nodes have.
    pub fn copies(&self) -> &[NodeCopy] {
        &self.copies
    }

    /// What a node has.
    pub fn copy(&self, node: usize) -> Option<&NodeCopy> {
        self.copies.iter().find(|copy| copy.node == node)
    }

    /// The active copy.
    pub fn active(&self) -> Option<&NodeCopy> {
        self.copies.iter().find(|copy| copy.state == VbucketState::Active)
    }

    /// Changes who has copies. A node that is new has everything at once; one that is not named has nothing any more.
    pub fn set_chain(&mut self, chain: Vec<Option<usize>>) {
        self.changes += 1;
        let mut copies = Vec::with_capacity(chain.len());
        for (place, node) in chain.iter().enumerate() {
            let Some(node) = *node else { continue };
            let state = if place == 0 { VbucketState::Active } else { VbucketState::Replica };
            let mut copy = self.copy(node).copied().unwrap_or(NodeCopy {
                node,
                state,
                high_seqno: self.high_seqno,
                persisted_seqno: self.high_seqno,
                is_replication_held: false,
                is_persistence_held: false,
                incarnation: self.changes,
            });
            if copy.state != state {
                (copy.state, copy.incarnation) = (state, self.changes);
            }
            copies.push(copy);
        }
        self.width = self.width.max(chain.len());
        (self.chain, self.copies) = (chain, copies);
        self.follow();
    }

    /// Takes the place of `old`: the same copies, which nobody can mistake for the old ones.
    pub(super) fn renew(&mut self, old: &Vbucket) {
        (self.branch, self.changes, self.holds_prepared) = (old.branch + 1, old.changes, old.holds_prepared);
        self.set_chain(old.chain.clone());
    }

    /// Holds back what reaches the disk of a node's copy, or lets it go on.
    pub fn hold_persistence(&mut self, node: usize, is_held: bool) {
        self.change_copy(node, |copy| copy.is_persistence_held = is_held);
    }

    /// Holds back what a replica receives, or lets it go on.
    pub fn hold_replication(&mut self, node: usize, is_held: bool) {
        self.change_copy(node, |copy| copy.is_replication_held = is_held);
    }

    fn change_copy(&mut self, node: usize, change: impl FnOnce(&mut NodeCopy)) {
        if let Some(copy) = self.copies.iter_mut().find(|copy| copy.node == node) {
            change(copy);
            self.follow();
        }
    }

    /// Lets the copies take what is not held back from them.
    pub(super) fn follow(&mut self) {
        self.changes += 1;
        for copy in &mut self.copies {
            if copy.state == VbucketState::Active || !copy.is_replication_held {
                copy.high_seqno = self.high_seqno;
            }
            if !copy.is_persistence_held {
                copy.persisted_seqno = copy.high_seqno;
            }
        }
        self.commit_what_holds();
    }
}
