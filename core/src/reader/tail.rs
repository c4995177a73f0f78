//! The newest rows of one channel, in memory.

use std::collections::{BTreeMap, VecDeque};
use std::hash::BuildHasher as _;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};

use hashbrown::HashTable;
use rustc_hash::FxBuildHasher;
use tokio::sync::Notify;

use crate::changes::Row;
use crate::document::DocumentRef;
use crate::entry::ChangeEntry;
use crate::sequence::Sequence;

/// The newest rows of a channel: ascending by sequence, one a document, complete from `valid_from` on.
///
/// While sequences are missing below high, a row whose document has a newer one above stable stays, as *shadowed*: a reader who sees only
/// what is stable needs it.
#[derive(Debug)]
pub(crate) struct Tail {
    rows: VecDeque<Row>,
    /// The newest sequence of each document, found by the document's hash.
    documents: HashTable<u64>,
    /// Newer sequence → the row of the same document that it shadows.
    shadows: BTreeMap<Sequence, Sequence>,
    /// It holds every row of the channel from here on.
    valid_from: Sequence,
    /// How many rows came for sequences below `valid_from`: they are not held, so nothing may be put below that was read before.
    refused: u64,
    snapshot: OnceLock<Arc<[Row]>>,
    /// Wakes who waits for the channel.
    pub(crate) changed: Arc<Notify>,
    /// The batch with which something last changed for readers.
    pub(crate) changed_at: u64,
    /// Whether what lay above stable when it was made has been read.
    pub(crate) ready: bool,
    /// When it was last read, in the node's own count.
    pub(crate) last_read: AtomicU64,
}

/// Some consecutive rows, as they were at one moment. Cheap to make and to clone; copies no rows.
#[derive(Clone, Debug)]
pub struct ChannelView {
    rows: Arc<[Row]>,
    start: usize,
    end: usize,
}

impl ChannelView {
    pub(crate) fn new(rows: Arc<[Row]>, start: usize, end: usize) -> Self {
        ChannelView { rows, start, end: end.max(start) }
    }

    /// The rows, ascending by sequence.
    #[inline]
    pub fn rows(&self) -> &[Row] {
        &self.rows[self.start..self.end]
    }
}

fn hash(document: DocumentRef<'_>) -> u64 {
    FxBuildHasher.hash_one(document)
}

impl Tail {
    /// An empty tail, complete from `valid_from` on because nothing is there yet.
    pub(crate) fn new(valid_from: Sequence) -> Self {
        Tail {
            rows: VecDeque::new(),
            documents: HashTable::new(),
            shadows: BTreeMap::new(),
            valid_from,
            refused: 0,
            snapshot: OnceLock::new(),
            changed: Arc::new(Notify::new()),
            changed_at: 0,
            ready: false,
            last_read: AtomicU64::new(0),
        }
    }

    pub(crate) fn valid_from(&self) -> Sequence {
        self.valid_from
    }

    pub(crate) fn refused(&self) -> u64 {
        self.refused
    }

    pub(crate) fn len(&self) -> usize {
        self.rows.len()
    }

    /// Bytes beyond the entries it shares with other channels.
    pub(crate) fn memory_bytes(&self) -> usize {
        size_of::<Self>() + self.rows.capacity() * size_of::<Row>() + self.documents.allocation_size()
    }

    fn position(&self, sequence: Sequence) -> Result<usize, usize> {
        self.rows.binary_search_by_key(&sequence, |row| row.sequence)
    }

    fn newest_of(&self, document: DocumentRef<'_>) -> Option<Sequence> {
        let same = |n: &u64| self.position(Sequence(*n)).is_ok_and(|at| self.rows[at].entry.document() == document);
        self.documents.find(hash(document), same).map(|n| Sequence(*n))
    }

    /// Whether the entry's document has a newer row.
    pub(crate) fn has_newer(&self, entry: &ChangeEntry) -> bool {
        self.newest_of(entry.document()).is_some_and(|newest| newest > entry.sequence())
    }

    /// Makes `sequence` the newest of its document, whose newest was `before`.
    fn set_newest(&mut self, document: DocumentRef<'_>, before: Option<Sequence>, now: Option<Sequence>) {
        let hash = hash(document);
        if let Some(before) = before
            && let Ok(found) = self.documents.find_entry(hash, |n| *n == before.0)
        {
            found.remove();
        }
        if let Some(now) = now {
            let rows = &self.rows;
            self.documents.insert_unique(hash, now.0, |n| {
                let at = rows.binary_search_by_key(&Sequence(*n), |row| row.sequence);
                at.map_or(0, |at| self::hash(rows[at].entry.document()))
            });
        }
    }

    /// Inserts a row that is at or below high. Where its document has a newer row at or below `stable` it is not shown any more; where it
    /// has an older one, that goes, or is shadowed while the new one is above `stable`.
    pub(crate) fn insert(&mut self, row: Row, stable: Sequence) {
        let sequence = row.sequence;
        if sequence < self.valid_from {
            self.refused += 1;
            return;
        }
        let newest = self.newest_of(row.entry.document());
        if newest == Some(sequence) || newest.is_some_and(|n| n > sequence && n <= stable) {
            return;
        }
        let Err(at) = self.position(sequence) else { return };
        self.snapshot.take();
        match newest {
            Some(newest) if newest > sequence => {
                // Into the chain of shadows: below the lowest newer row of the document.
                let mut newer = newest;
                while let Some(older) = self.shadows.get(&newer).copied().filter(|older| *older > sequence) {
                    newer = older;
                }
                self.rows.insert(at, row);
                if let Some(older) = self.shadows.insert(newer, sequence) {
                    self.shadow(sequence, older, stable);
                }
            }
            _ => {
                let entry = row.entry.clone();
                self.rows.insert(at, row);
                self.set_newest(entry.document(), newest, Some(sequence));
                if let Some(older) = newest {
                    self.shadow(sequence, older, stable);
                }
            }
        }
    }

    fn shadow(&mut self, newer: Sequence, older: Sequence, stable: Sequence) {
        if newer > stable {
            self.shadows.insert(newer, older);
            return;
        }
        let mut next = Some(older);
        while let Some(older) = next {
            if let Ok(at) = self.position(older) {
                self.rows.remove(at);
            }
            next = self.shadows.remove(&older);
        }
    }

    /// Stable is `stable` now: rows shadowed by what it has passed go.
    pub(crate) fn settle(&mut self, stable: Sequence) {
        while let Some(first) = self.shadows.first_entry()
            && *first.key() <= stable
        {
            let older = first.remove();
            self.snapshot.take();
            if let Ok(at) = self.position(older) {
                self.rows.remove(at);
            }
        }
    }

    /// Whether it still has to be told when stable moves.
    pub(crate) fn is_unsettled(&self, stable: Sequence) -> bool {
        !self.shadows.is_empty() || self.rows.back().is_some_and(|row| row.sequence > stable)
    }

    /// Lets the oldest rows go until at most `max` are left; never any above `stable`.
    pub(crate) fn prune(&mut self, max: usize, stable: Sequence) -> usize {
        let mut pruned = 0;
        while self.rows.len() > max && self.rows.front().is_some_and(|row| row.sequence <= stable) {
            self.prune_first();
            pruned += 1;
        }
        pruned
    }

    /// Lets rows at or below `sequence` go while more than `min` are left.
    pub(crate) fn prune_aged(&mut self, min: usize, sequence: Sequence) {
        while self.rows.len() > min && self.rows.front().is_some_and(|row| row.sequence <= sequence) {
            self.prune_first();
        }
    }

    fn prune_first(&mut self) {
        let Some(row) = self.rows.front().cloned() else { return };
        if self.newest_of(row.entry.document()) == Some(row.sequence) {
            self.set_newest(row.entry.document(), Some(row.sequence), None);
        }
        self.rows.pop_front();
        self.valid_from = row.sequence.next();
        self.snapshot.take();
    }

    /// Puts rows that were read from blocks below the tail: everything in `[from, valid_from)`, ascending. Only the newest for which there
    /// is room.
    pub(crate) fn prepend(&mut self, from: Sequence, rows: &[Row], max: usize, stable: Sequence) {
        let below = &rows[..rows.partition_point(|row| row.sequence < self.valid_from)];
        let (left_out, kept) = below.split_at(below.len().saturating_sub(max.saturating_sub(self.rows.len())));
        let from = left_out.last().map_or(from, |row| row.sequence.next());
        if from < self.valid_from {
            self.valid_from = from;
            kept.iter().rev().for_each(|row| self.insert(row.clone(), stable));
        }
    }

    /// The rows in `(since, cut]`, which the caller has checked to be within what the tail holds.
    pub(crate) fn view(&self, since: Sequence, cut: Sequence) -> ChannelView {
        let rows = self.snapshot.get_or_init(|| self.rows.iter().cloned().collect());
        if !self.shadows.is_empty() {
            let shadowed: std::collections::BTreeSet<Sequence> = self.shadows.range(..=cut).map(|(_, older)| *older).collect();
            let shown = |row: &&Row| row.sequence > since && row.sequence <= cut && !shadowed.contains(&row.sequence);
            let rows: Arc<[Row]> = rows.iter().filter(shown).cloned().collect();
            let end = rows.len();
            return ChannelView::new(rows, 0, end);
        }
        let end = match rows.last() {
            Some(last) if last.sequence <= cut => rows.len(),
            _ => rows.partition_point(|row| row.sequence <= cut),
        };
        let start = match rows.first() {
            Some(first) if first.sequence > since => 0,
            _ => rows.partition_point(|row| row.sequence <= since),
        };
        ChannelView::new(rows.clone(), start, end)
    }
}
