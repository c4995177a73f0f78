//! The newest rows of one channel, in memory.

use std::cmp::Ordering;
use std::collections::{BTreeMap, VecDeque};
use std::hash::BuildHasher as _;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering as AtomicOrdering};
use std::sync::{Arc, OnceLock};

use hashbrown::HashTable;
use rustc_hash::FxBuildHasher;
use tokio::sync::Notify;

use crate::changes::Row;
use crate::document::DocumentRef;
use crate::entry::ChangeEntry;
use crate::sequence::Sequence;

/// A row's place in its channel, see [`Sequence::rank`].
type Rank = (Sequence, u8);

fn newest_first(a: &Row, b: &Row) -> Ordering {
    if a.entry.is_newer_than(&b.entry) { Ordering::Less } else { Ordering::Greater }
}

/// The rows of one document, newest first, that some reader is shown. A reader that sees only
/// stable rows needs the newest row at or below stable.
fn shown_to_somebody(rows: &[Row], stable: Sequence) -> Vec<Rank> {
    let mut shown: Vec<Rank> = Vec::new();
    for row in rows {
        match shown.last() {
            Some(newer) if newer.0 <= stable => break,
            // A reader that sees this row sees the newer one, too.
            Some(newer) if *newer <= row.rank() => {}
            _ => shown.push(row.rank()),
        }
    }
    shown
}

/// The newest rows of a channel: ascending by sequence, one a document, complete from `valid_from` on.
///
/// While sequences are missing below high, a row whose document has a newer one above stable stays, as *shadowed*: a reader who sees only
/// what is stable needs it.
#[derive(Debug)]
pub(crate) struct Tail {
    rows: VecDeque<Row>,
    /// The position of each document's newest row, by the document's hash.
    documents: HashTable<u64>,
    /// Newer row → the row of the same document that it shadows.
    shadows: BTreeMap<Rank, Rank>,
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
    /// The number of requests and waiters that use it. It is not evicted while there are any.
    pins: Arc<AtomicUsize>,
}

/// Keeps a tail from being evicted.
#[derive(Debug)]
pub(crate) struct Pin {
    pins: Arc<AtomicUsize>,
    /// The number of the node's tails that have pins.
    pinned: Arc<AtomicUsize>,
}

impl Drop for Pin {
    fn drop(&mut self) {
        if self.pins.fetch_sub(1, AtomicOrdering::AcqRel) == 1 {
            self.pinned.fetch_sub(1, AtomicOrdering::AcqRel);
        }
    }
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
            pins: Arc::default(),
        }
    }

    /// Pins it. `pinned` counts the tails of the node that have pins.
    pub(crate) fn pin(&self, pinned: &Arc<AtomicUsize>) -> Pin {
        if self.pins.fetch_add(1, AtomicOrdering::AcqRel) == 0 {
            pinned.fetch_add(1, AtomicOrdering::AcqRel);
        }
        Pin { pins: self.pins.clone(), pinned: pinned.clone() }
    }

    pub(crate) fn is_pinned(&self) -> bool {
        self.pins.load(AtomicOrdering::Acquire) > 0
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

    fn find(&self, rank: Rank) -> Result<usize, usize> {
        self.rows.binary_search_by(|row| row.rank().cmp(&rank))
    }

    fn row(&self, rank: Rank) -> Option<&Row> {
        self.find(rank).ok().map(|at| &self.rows[at])
    }

    fn newest_of(&self, document: DocumentRef<'_>) -> Option<Rank> {
        let same = |n: &u64| self.row(Sequence(*n).rank()).is_some_and(|row| row.entry.document() == document);
        self.documents.find(hash(document), same).map(|n| Sequence(*n).rank())
    }

    /// Whether the entry's document has a newer row.
    pub(crate) fn has_newer(&self, entry: &ChangeEntry) -> bool {
        let newest = self.newest_of(entry.document()).and_then(|newest| self.row(newest));
        newest.is_some_and(|newest| newest.entry.is_newer_than(entry))
    }

    /// Makes `now` the newest row of its document; `before` was it.
    fn set_newest(&mut self, document: DocumentRef<'_>, before: Option<Rank>, now: Option<Rank>) {
        let hash = hash(document);
        if let Some(before) = before
            && let Ok(found) = self.documents.find_entry(hash, |n| Sequence(*n).rank() == before)
        {
            found.remove();
        }
        if let Some((sequence, slot)) = now {
            let rows = &self.rows;
            let position = sequence.in_slot(slot).unwrap_or(sequence);
            self.documents.insert_unique(hash, position.0, |n| {
                let at = rows.binary_search_by(|row| row.rank().cmp(&Sequence(*n).rank()));
                at.map_or(0, |at| self::hash(rows[at].entry.document()))
            });
        }
    }

    /// Inserts a row that is at or below high. If its document has a newer row at or below
    /// `stable`, the new row is not shown. If its document has an older row, that is removed, or
    /// shadowed while the new one is above `stable`.
    pub(crate) fn insert(&mut self, row: Row, stable: Sequence) {
        let newest = self.newest_of(row.entry.document());
        if row.sequence < self.valid_from {
            self.refused += 1;
            if newest.is_some() {
                self.drop_older(&row, newest);
            }
            return;
        }
        let Err(at) = self.find(row.rank()) else { return };
        let Some(newest) = newest else {
            let (entry, rank) = (row.entry.clone(), row.rank());
            self.snapshot.take();
            self.rows.insert(at, row);
            self.set_newest(entry.document(), None, Some(rank));
            return;
        };
        let known = self.rows_of(newest);
        let (document, rank) = (row.entry.clone(), row.rank());
        let mut all = known.clone();
        all.push(row.clone());
        all.sort_by(newest_first);
        let kept = shown_to_somebody(&all, stable);
        if !kept.contains(&rank) {
            return;
        }
        self.snapshot.take();
        self.rows.insert(at, row);
        self.replace_rows(document.document(), newest, &known, &kept);
    }

    /// The rows of a document, newest first: its newest, and those that it shadows.
    fn rows_of(&self, newest: Rank) -> Vec<Row> {
        let chain = std::iter::successors(Some(newest), |newer| self.shadows.get(newer).copied());
        chain.filter_map(|rank| self.row(rank).cloned()).collect()
    }

    /// Keeps the rows `kept` of a document, newest first, and removes the others; each shadows the
    /// next. `known` are its rows before, with this `newest`.
    fn replace_rows(&mut self, document: DocumentRef<'_>, newest: Rank, known: &[Row], kept: &[Rank]) {
        // While the row by which it is found is there.
        if kept.first() != Some(&newest) {
            self.set_newest(document, Some(newest), kept.first().copied());
        }
        for row in known {
            self.shadows.remove(&row.rank());
            if !kept.contains(&row.rank())
                && let Ok(at) = self.find(row.rank())
            {
                self.rows.remove(at);
            }
        }
        for pair in kept.windows(2) {
            self.shadows.insert(pair[0], pair[1]);
        }
    }

    /// Removes the rows that are older than a row below the tail.
    fn drop_older(&mut self, row: &Row, newest: Option<Rank>) {
        let Some(newest) = newest else { return };
        let known = self.rows_of(newest);
        let kept: Vec<Rank> = known.iter().filter(|known| !row.entry.is_newer_than(&known.entry)).map(Row::rank).collect();
        if kept.len() < known.len() {
            self.snapshot.take();
            self.replace_rows(row.entry.document(), newest, &known, &kept);
        }
    }

    /// Stable is `stable` now: rows shadowed by what it has passed go.
    pub(crate) fn settle(&mut self, stable: Sequence) {
        while let Some(first) = self.shadows.first_entry()
            && first.key().0 <= stable
        {
            let older = first.remove();
            self.snapshot.take();
            if let Ok(at) = self.find(older) {
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

    /// Removes the first row, and all others of its sequence.
    fn prune_first(&mut self) {
        let Some(sequence) = self.rows.front().map(|row| row.sequence) else { return };
        while let Some(row) = self.rows.front().filter(|row| row.sequence == sequence).cloned() {
            if self.newest_of(row.entry.document()) == Some(row.rank()) {
                self.set_newest(row.entry.document(), Some(row.rank()), None);
            }
            self.rows.pop_front();
        }
        self.valid_from = sequence.next();
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
            kept.iter().rev().filter(|row| row.sequence >= from).for_each(|row| self.insert(row.clone(), stable));
        }
    }

    /// The rows in `(since, cut]`, which the caller has checked to be within what the tail holds.
    pub(crate) fn view(&self, since: Sequence, cut: Sequence) -> ChannelView {
        let rows = self.snapshot.get_or_init(|| self.rows.iter().cloned().collect());
        if !self.shadows.is_empty() {
            let shadows = self.shadows.range(..=(cut, u8::MAX));
            let shadowed: std::collections::BTreeSet<Rank> = shadows.map(|(_, older)| *older).collect();
            let shown = |row: &&Row| row.sequence > since && row.sequence <= cut && !shadowed.contains(&row.rank());
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
