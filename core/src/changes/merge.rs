//! One answer from the rows of several channels.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;
use std::sync::Arc;

use rustc_hash::FxHashMap;
use smallvec::SmallVec;

use super::answer::AnswerRow;
use super::id::SequenceId;
use crate::channel::Channel;
use crate::document::DocumentRef;
use crate::entry::{ChangeEntry, Membership};
use crate::sequence::Sequence;

/// One row of one channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Its sequence: the entry's, here so that a walk over rows does not visit every entry.
    pub sequence: Sequence,
    /// What happened.
    pub entry: Arc<ChangeEntry>,
    /// The document left the channel.
    pub removed: bool,
    /// The row shows a deletion: a tombstone that is in the channel, or a document that left it by being deleted.
    pub deleted: bool,
}

impl Row {
    /// The row of `entry` in a channel where it stands as `membership`.
    pub fn new(entry: Arc<ChangeEntry>, membership: Membership) -> Self {
        let deleted = match membership {
            Membership::Present => entry.is_deleted(),
            Membership::Removed => false,
            Membership::RemovedByDeletion => true,
        };
        Row { sequence: entry.sequence(), entry, removed: membership.is_removal(), deleted }
    }

    /// Its place among the rows of a channel: by sequence, then by slot.
    #[cfg(feature = "runtime")]
    pub(crate) fn rank(&self) -> (Sequence, u8) {
        (self.sequence, self.entry.position().slot())
    }

    /// The row of `entry` in `channel`, if it concerns that.
    pub fn in_channel(entry: &Arc<ChangeEntry>, channel: &Channel) -> Option<Self> {
        entry.membership(channel).map(|membership| Row::new(Arc::clone(entry), membership))
    }
}

/// Drops each row of a channel whose document has a newer row. The rows are in ascending order.
pub fn keep_newest(rows: &mut Vec<Row>) {
    let mut newest: FxHashMap<DocumentRef<'_>, usize> = FxHashMap::with_capacity_and_hasher(rows.len(), Default::default());
    let mut dropped: Vec<usize> = Vec::new();
    for (at, row) in rows.iter().enumerate() {
        newest
            .entry(row.entry.document())
            .and_modify(|known| {
                let is_newer = row.entry.is_newer_than(&rows[*known].entry);
                dropped.push(if is_newer { std::mem::replace(known, at) } else { at });
            })
            .or_insert(at);
    }
    if !dropped.is_empty() {
        dropped.sort_unstable();
        let (mut at, mut next) = (0, dropped.into_iter().peekable());
        rows.retain(|_| {
            let is_dropped = next.next_if_eq(&at).is_some();
            at += 1;
            !is_dropped
        });
    }
}

/// One channel's part of a request.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// The channel.
    pub channel: &'a Channel,
    /// Its rows: ascending by sequence, one a document.
    pub rows: &'a [Row],
    /// The sequence that granted the channel, while it is sent from its beginning: the rows below get ids `T:S`, and
    /// deletions and removals among them are left out. Else zero.
    pub triggered: Sequence,
}

impl<'a> Source<'a> {
    /// A channel outside any backfill.
    pub fn new(channel: &'a Channel, rows: &'a [Row]) -> Self {
        Source { channel, rows, triggered: Sequence::ZERO }
    }

    /// Says which sequence granted the channel.
    #[must_use]
    pub fn triggered_by(self, triggered: Sequence) -> Self {
        Source { triggered, ..self }
    }

    /// The first row that is to be sent, and its place in the order.
    fn head(&mut self) -> Option<Key> {
        while let Some(row) = self.rows.first() {
            let (sequence, slot) = (row.sequence, row.entry.position().slot());
            if sequence >= self.triggered {
                return Some(Key { major: sequence, plain: true, sequence, slot });
            }
            if !row.removed && !row.deleted {
                return Some(Key { major: self.triggered, plain: false, sequence, slot });
            }
            self.rows = &self.rows[1..];
        }
        None
    }
}

/// Merges channels: ascending by id, the rows of one id made one. See [`Merge`].
///
/// `low` is the low sequence that the ids carry, zero while nothing is skipped. With `active_only` a row is left out if it is deleted, or
/// removed from all its channels in the request. What is taken from the iterator is filtered already, so `take(limit)` is the limit.
pub fn merge<'a>(sources: impl IntoIterator<Item = Source<'a>>, low: Sequence, active_only: bool) -> Merge<'a> {
    let mut sources: Vec<Source<'a>> = sources.into_iter().collect();
    let heads = sources.iter_mut().enumerate().filter_map(|(index, source)| Some(Reverse((source.head()?, index)))).collect();
    Merge { sources, heads, low, active_only }
}

/// The rows of an answer, made one by one. Costs O(log channels) a row, copies no text, and looks at nothing behind what it has returned.
#[derive(Debug)]
pub struct Merge<'a> {
    sources: Vec<Source<'a>>,
    /// The place of each source's first row. Sources that are used up are left out.
    heads: BinaryHeap<Reverse<(Key, usize)>>,
    low: Sequence,
    active_only: bool,
}

/// The order of ids that carry the same low sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    major: Sequence,
    plain: bool,
    sequence: Sequence,
    /// Different documents with one sequence stay different rows.
    slot: u8,
}

impl<'a> Merge<'a> {
    /// Takes the lowest row, if it has the key `only` (or any).
    #[inline]
    fn take(&mut self, only: Option<Key>) -> Option<(Key, &'a Channel, &'a Row)> {
        let mut top = self.heads.peek_mut()?;
        let Reverse((key, index)) = *top;
        if only.is_some_and(|only| only != key) {
            return None;
        }
        let source = &mut self.sources[index];
        let (row, rest) = source.rows.split_first()?;
        source.rows = rest;
        match source.head() {
            Some(next) => top.0.0 = next,
            None => {
                PeekMut::pop(top);
            }
        }
        Some((key, source.channel, row))
    }
}

impl Iterator for Merge<'_> {
    type Item = AnswerRow;

    fn next(&mut self) -> Option<AnswerRow> {
        loop {
            let (key, channel, row) = self.take(None)?;
            let entry = &row.entry;
            let mut deleted = row.deleted;
            let mut all_removed = row.removed;
            let mut removed: SmallVec<[Channel; 1]> = SmallVec::new();
            if row.removed {
                removed.push(channel.clone());
            }
            while let Some((_, channel, row)) = self.take(Some(key)) {
                deleted |= row.deleted;
                all_removed &= row.removed;
                if row.removed {
                    removed.push(channel.clone());
                }
            }
            if self.active_only && (deleted || all_removed) {
                continue;
            }
            if removed.len() > 1 {
                removed.sort_unstable();
                removed.dedup();
            }
            let triggered = if key.plain { Sequence::ZERO } else { key.major };
            let id = SequenceId { low: self.low, triggered, sequence: key.sequence };
            return Some(AnswerRow { id, entry: Arc::clone(entry), deleted, removed });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::EntryFlags;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn channel(n: usize) -> Channel {
        Channel::new(&format!("ch{n}")).unwrap()
    }

    fn entry(sequence: u64, flags: EntryFlags, channels: &[(usize, Membership)]) -> Arc<ChangeEntry> {
        let entry = ChangeEntry::new(Sequence(sequence), &format!("d{sequence}"), "1-a", flags).unwrap();
        Arc::new(channels.iter().fold(entry, |entry, (n, membership)| entry.with_channel(channel(*n), *membership)))
    }

    fn rows(entries: &[Arc<ChangeEntry>], channel: &Channel) -> Vec<Row> {
        entries.iter().filter_map(|entry| Row::in_channel(entry, channel)).collect()
    }

    fn summary(rows: impl Iterator<Item = AnswerRow>) -> Vec<String> {
        let line = |row: AnswerRow| {
            let removed: Vec<&str> = row.removed.iter().map(Channel::name).collect();
            format!("{}{} {}", row.id, if row.deleted { " deleted" } else { "" }, removed.join(","))
        };
        rows.map(|row| line(row).trim_end().to_owned()).collect()
    }

    use Membership::{Present, Removed, RemovedByDeletion};

    #[test]
    fn a_document_in_one_channel_and_out_of_another_is_one_row_that_names_the_other() {
        let all = [
            entry(1, EntryFlags(0), &[(0, Present), (1, Removed)]),
            entry(2, EntryFlags(0), &[(1, Removed), (0, Removed)]),
            entry(3, EntryFlags::DELETED, &[(0, RemovedByDeletion), (1, Present)]),
            entry(4, EntryFlags::DELETED.with(EntryFlags::DEPARTURE), &[(1, Removed)]),
            entry(5, EntryFlags(0), &[(2, Present)]),
        ];
        let channels = [channel(1), channel(0)];
        let parts: Vec<Vec<Row>> = channels.iter().map(|c| rows(&all, c)).collect();
        let sources = || channels.iter().zip(&parts).map(|(c, r)| Source::new(c, r));
        assert_eq!(
            summary(merge(sources(), Sequence(0), false)),
            ["1 ch1", "2 ch0,ch1", "3 deleted ch0", "4 ch1"].map(str::to_owned)
        );
        assert_eq!(summary(merge(sources(), Sequence(0), true)), ["1 ch1"].map(str::to_owned));
        let star = rows(&all, &Channel::star());
        assert_eq!(summary(merge([Source::new(&Channel::star(), &star)], Sequence(0), false)), ["1", "2", "3 deleted", "5"]);
    }

    #[test]
    fn a_granted_channel_is_sent_before_the_rows_of_its_grant_without_removals() {
        let all = [
            entry(1, EntryFlags(0), &[(0, Present)]),
            entry(2, EntryFlags::DELETED, &[(0, Present)]),
            entry(3, EntryFlags(0), &[(0, Removed), (1, Present)]),
            entry(4, EntryFlags(0), &[(0, Present), (1, Present)]),
            entry(6, EntryFlags(0), &[(1, Present)]),
            entry(7, EntryFlags(0), &[(0, Removed), (1, Present)]),
            entry(8, EntryFlags(0), &[(0, Present)]),
        ];
        let (a, b) = (channel(0), channel(1));
        let (of_a, of_b) = (rows(&all, &a), rows(&all, &b));
        let sources = || [Source::new(&a, &of_a).triggered_by(Sequence(7)), Source::new(&b, &of_b)];
        let got = summary(merge(sources(), Sequence(0), false));
        assert_eq!(got, ["3", "4", "6", "7:1", "7:4", "7 ch0", "8"]);
        let got = summary(merge(sources(), Sequence(5), false));
        assert_eq!(got, ["3", "4", "5::6", "5:7:1", "5:7:4", "5::7 ch0", "5::8"]);
        let ids: Vec<SequenceId> = merge(sources(), Sequence(0), false).map(|row| row.id).collect();
        assert!(ids.is_sorted());
    }

    #[test]
    fn an_older_row_of_a_document_goes() {
        let make = |sequence: u64, document: &str| {
            Row::new(Arc::new(ChangeEntry::new(Sequence(sequence), document, "1-a", EntryFlags(0)).unwrap()), Present)
        };
        let mut rows = vec![make(1, "a"), make(2, "b"), make(3, "a"), make(4, "c"), make(5, "b"), make(6, "a")];
        keep_newest(&mut rows);
        assert_eq!(rows.iter().map(|r| r.sequence.0).collect::<Vec<_>>(), [4, 5, 6]);
        keep_newest(&mut rows);
        assert_eq!(rows.len(), 3);
    }

    #[test]
    fn the_top_of_u64_merges_like_any_other() {
        let all = [entry(u64::MAX - 1, EntryFlags(0), &[(0, Present)]), entry(u64::MAX, EntryFlags(0), &[(0, Present)])];
        let a = channel(0);
        let of_a = rows(&all, &a);
        let got = summary(merge([Source::new(&a, &of_a)], Sequence(0), false).take(2));
        assert_eq!(got, ["18446744073709551614", "18446744073709551615"]);
    }

    fn memberships() -> impl Strategy<Value = Vec<(usize, Membership)>> {
        let one =
            prop_oneof![2 => Just(None), 3 => Just(Some(Present)), 1 => Just(Some(Removed)), 1 => Just(Some(RemovedByDeletion))];
        prop::collection::vec(one, 12).prop_map(|list| list.into_iter().enumerate().filter_map(|(n, m)| Some((n, m?))).collect())
    }

    proptest! {
        #[test]
        fn a_merge_is_what_a_map_by_sequence_would_give(
            entries in prop::collection::btree_map(1u64..200, (memberships(), any::<bool>()), 0..60),
            asked in 0usize..12,
            active_only in any::<bool>(),
            limit in 0usize..40,
            low in 0u64..3,
        ) {
            let all: Vec<Arc<ChangeEntry>> = entries
                .iter()
                .map(|(s, (channels, deleted))| entry(*s, EntryFlags(u8::from(*deleted)), channels))
                .collect();
            let channels: Vec<Channel> = (0..asked).map(channel).collect();
            let mut model: BTreeMap<u64, (bool, Vec<String>, usize)> = BTreeMap::new();
            for (s, (memberships, tombstone)) in &entries {
                for (n, membership) in memberships.iter().filter(|(n, _)| *n < asked) {
                    let slot = model.entry(*s).or_default();
                    slot.0 |= *membership == RemovedByDeletion || (*membership == Present && *tombstone);
                    slot.2 += 1;
                    if *membership != Present {
                        slot.1.push(format!("ch{n}"));
                        slot.1.sort();
                    }
                }
            }
            let expected: Vec<(u64, bool, Vec<String>)> = model
                .into_iter()
                .filter(|(_, (deleted, removed, of))| !active_only || !(*deleted || removed.len() == *of))
                .map(|(s, (deleted, removed, _))| (s, deleted, removed))
                .take(limit)
                .collect();
            let parts: Vec<Vec<Row>> = channels.iter().map(|c| rows(&all, c)).collect();
            let sources = channels.iter().zip(&parts).map(|(c, r)| Source::new(c, r));
            let got: Vec<AnswerRow> = merge(sources, Sequence(low), active_only).take(limit).collect();
            prop_assert!(got.iter().all(|row| row.id.low == Sequence(low) && row.entry.sequence() == row.id.sequence));
            let got: Vec<(u64, bool, Vec<String>)> = got
                .into_iter()
                .map(|row| (row.id.sequence.0, row.deleted, row.removed.iter().map(|c| c.name().to_owned()).collect()))
                .collect();
            prop_assert_eq!(got, expected);
        }
    }
}
