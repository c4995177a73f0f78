//! Finds the owners of the sequences that a document names.
//!
//! A document names the sequences of its earlier revisions, and its channel map those at which it
//! left channels. The feed may have left out these revisions. Mostly such a sequence is accounted
//! for because the revision, or its departure, is stored. But a marker may have released it, and a
//! user or another document may have it. The stored entries tell which. They are read once for a
//! document, not for each of its revisions. The owners of the last sequences are known in memory
//! ([`RecentOwners`]).

use std::collections::BTreeSet;
use std::fmt;
use std::hash::BuildHasher as _;

use quick_cache::UnitWeighter;
use quick_cache::unsync::{Cache, DefaultLifecycle};
use rustc_hash::{FxBuildHasher, FxHashSet};

use super::conflict::{Conflicts, slots_of};
use super::pointers::Pointers;
use super::{Writer, notices};
use crate::decode::{DecodedDocument, Departure};
use crate::document::{DocumentId, DocumentRef};
use crate::engine::departure_entry;
use crate::entry::ChangeEntry;
use crate::error::Result;
use crate::pointer::Pointer;
use crate::sequence::{Sequence, SequenceList, SequenceRange};

/// The maximum number of documents in the cache of look-ups.
const DOCUMENTS: usize = 32_768;

/// The limit for sequences in that cache, for each document. Others are looked up each time.
const SEQUENCES: usize = 64;

/// The distance from a shared sequence within which others are expected.
const SHARED_MARGIN: u64 = 10_000;

/// Sequences that several documents have.
///
/// A gateway that lost its counter allocates a range of sequences again. So others may be shared
/// between those that are known, and near them.
#[derive(Debug, Default)]
pub(super) struct SharedSequences {
    sequences: FxHashSet<Sequence>,
    /// The lowest and the highest.
    ends: Option<(Sequence, Sequence)>,
}

impl SharedSequences {
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.ends.is_none()
    }

    pub(super) fn contains(&self, sequence: Sequence) -> bool {
        self.sequences.contains(&sequence)
    }

    pub(super) fn insert(&mut self, sequence: Sequence) {
        let (lowest, highest) = self.ends.unwrap_or((sequence, sequence));
        self.ends = Some((lowest.min(sequence), highest.max(sequence)));
        self.sequences.insert(sequence);
    }

    /// Whether others are expected around `sequence`.
    pub(super) fn are_near(&self, sequence: Sequence) -> bool {
        let is_near = |(lowest, highest): (Sequence, Sequence)| {
            sequence.0 >= lowest.0.saturating_sub(SHARED_MARGIN) && sequence.0 <= highest.0.saturating_add(SHARED_MARGIN)
        };
        self.ends.is_some_and(is_near)
    }
}

/// For each recently used document, the sequences whose owner is known.
#[derive(Debug)]
pub(super) struct KnownSequences(Cache<DocumentId, SequenceList, UnitWeighter, FxBuildHasher>);

impl Default for KnownSequences {
    fn default() -> Self {
        let (weighter, lifecycle) = (UnitWeighter, DefaultLifecycle::default());
        KnownSequences(Cache::with(DOCUMENTS, DOCUMENTS as u64, weighter, FxBuildHasher, lifecycle))
    }
}

impl KnownSequences {
    fn contains(&self, document: DocumentRef<'_>, sequence: Sequence) -> bool {
        self.0.get(&document).is_some_and(|sequences| sequences.contains(&sequence))
    }

    /// Takes the sequences of a document that is applied, and that had been looked up.
    #[inline]
    pub(super) fn take(&mut self, document: &DecodedDocument, shared: &SharedSequences) {
        let is_removed = document.entry.channels().iter().any(|change| change.membership.is_removal());
        if is_removed || !document.departures.is_empty() || !shared.is_empty() || document.entry.is_low() {
            self.insert(document, is_removed, shared);
        }
    }

    fn insert(&mut self, document: &DecodedDocument, is_removed: bool, shared: &SharedSequences) {
        let (entry, id) = (&document.entry, document.entry.document());
        let is_low = entry.is_low();
        let is_checked = |sequence: Sequence| is_low || shared.are_near(sequence);
        let own = (is_removed || is_checked(entry.sequence())).then(|| entry.sequence());
        let departed = document.departures.iter().map(|departure| departure.sequence.number());
        let named = entry.supersedes().iter().map(|position| position.number());
        let sequences = own.into_iter().chain(departed).chain(named.filter(|sequence| is_checked(*sequence)));
        self.add(id, sequences);
    }

    /// As [`take`](Self::take), for a document that is not shown. Nothing is stored under the other
    /// sequences that it names.
    pub(super) fn take_foreign(&mut self, document: &DecodedDocument) {
        if !document.departures.is_empty() {
            self.add(document.entry.document(), document.departures.iter().map(|departure| departure.sequence.number()));
        }
    }

    fn add(&mut self, id: DocumentRef<'_>, sequences: impl Iterator<Item = Sequence> + Clone) {
        if let Some(known) = self.0.get(&id)
            && sequences.clone().all(|sequence| known.contains(&sequence))
        {
            return;
        }
        let sequences: SequenceList = sequences.take(SEQUENCES).collect();
        if !sequences.is_empty() {
            self.0.insert(id.into(), sequences);
        }
    }

    /// The sequences that a document names are looked up again.
    pub(super) fn forget(&mut self, document: DocumentRef<'_>) {
        self.0.remove(&document);
    }

    /// Entries have been removed.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

/// Which document has each of the last sequences, as far as the writer knows.
///
/// A gateway that lost its counter allocates its last sequences again. If the feed leaves out a
/// revision with such a sequence, nothing tells that a second document has it but a later revision,
/// which names it. The row of the first document must not be marked then.
///
/// A direct-mapped table. It holds hashes of the documents: two documents with equal hashes, one
/// pair in 2^32, are taken for one. Sequences of 2^52 - 2^20 and above are not held.
pub(super) struct RecentOwners {
    /// By the lowest bits of the sequence. The upper half is the tag, 1 more than the other bits;
    /// the lower half is the hash. 0 if nothing is known. Pages are allocated on first use.
    pages: Vec<Option<Box<[u64; PAGE]>>>,
    /// Sequences whose owners are read from the store where they are not known.
    former: Option<SequenceRange>,
}

/// The bits of a sequence that select its place in [`RecentOwners`].
const INDEX_BITS: u32 = 20;

/// The places of a page.
const PAGE: usize = 4_096;

/// Sequences are far apart if their distance is so much on average: their places are in different
/// cache lines.
const SCATTERED: u64 = 16;

/// After a take-over, the owners of so many of the last sequences of former terms are read.
const FORMER: u64 = 10_000;

impl fmt::Debug for RecentOwners {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecentOwners").field("former", &self.former).finish_non_exhaustive()
    }
}

impl RecentOwners {
    /// The number of places. A later sequence takes the place of one that is so much lower.
    pub(super) const PLACES: u64 = 1 << INDEX_BITS;

    /// Nothing is known. `high` is the highest sequence that former terms have published.
    pub(super) fn after(high: Sequence) -> Self {
        let former = SequenceRange::new(Sequence(high.0.saturating_sub(FORMER).max(1)), high);
        RecentOwners { pages: vec![None; (1 << INDEX_BITS) / PAGE], former }
    }

    /// The index and the tag of a sequence; `None` for sequences that are too high, and positions
    /// in slots.
    #[inline]
    fn locate(sequence: Sequence) -> Option<(usize, u64)> {
        let (index, tag) = (sequence.0 & ((1 << INDEX_BITS) - 1), (sequence.0 >> INDEX_BITS) + 1);
        (tag <= u64::from(u32::MAX)).then_some((index as usize, tag))
    }

    #[inline]
    fn hash(document: DocumentRef<'_>) -> u64 {
        FxBuildHasher.hash_one(document) & u64::from(u32::MAX)
    }

    /// Records the document with this hash, as [`insert`](Self::insert).
    #[inline]
    pub(super) fn insert_hash(&mut self, sequence: Sequence, hash: u64) {
        let Some((index, tag)) = Self::locate(sequence) else { return };
        let page = self.pages[index / PAGE].get_or_insert_with(|| Box::new([0; PAGE]));
        let owner = &mut page[index % PAGE];
        if *owner >> 32 <= tag {
            *owner = tag << 32 | hash;
        }
    }

    /// Reads the places of up to `count` sequences if these are far apart. In a cold start the
    /// places are mostly not in the processor's caches. The processor waits for several of them at
    /// a time here, and for one at a time where they are written.
    pub(super) fn load(&self, count: usize, sequences: impl DoubleEndedIterator<Item = Sequence> + Clone) {
        let mut ends = sequences.clone();
        let (Some(first), Some(last)) = (ends.next(), ends.next_back()) else { return };
        if first.0.abs_diff(last.0) / SCATTERED < count as u64 {
            return;
        }
        for (index, _) in sequences.filter_map(Self::locate) {
            std::hint::black_box(self.pages[index / PAGE].as_ref().map(|page| page[index % PAGE]));
        }
    }

    /// Records the document that has a sequence, unless a later sequence is in its place.
    pub(super) fn insert(&mut self, sequence: Sequence, document: DocumentRef<'_>) {
        self.insert_hash(sequence, Self::hash(document));
    }

    /// Records the sequences at which a document left channels. Returns the document's hash. The
    /// caller inserts it at the document's position if the entry is stored.
    #[inline]
    pub(super) fn take(&mut self, document: &DecodedDocument) -> u64 {
        let hash = Self::hash(document.entry.document());
        document.departures.iter().for_each(|departure| self.insert_hash(departure.sequence, hash));
        hash
    }

    /// Whether another document is known to have the sequence, or `None` if no owner is known.
    #[inline]
    fn is_of_another(&self, sequence: Sequence, hash: u64) -> Option<bool> {
        let (index, tag) = Self::locate(sequence)?;
        let owner = self.pages[index / PAGE].as_ref()?[index % PAGE];
        (owner >> 32 == tag).then_some(owner != (tag << 32 | hash))
    }

    /// Those of `sequences` that another document has, or may have.
    #[inline]
    fn owned_by_others<'a>(
        &'a self,
        document: DocumentRef<'_>,
        sequences: &'a [Sequence],
    ) -> impl Iterator<Item = Sequence> + 'a {
        let hash = if sequences.is_empty() { 0 } else { Self::hash(document) };
        sequences.iter().copied().filter(move |sequence| self.may_be_of_another(*sequence, hash))
    }

    fn may_be_of_another(&self, sequence: Sequence, hash: u64) -> bool {
        let is_former = || self.former.is_some_and(|former| former.contains(sequence));
        self.is_of_another(sequence, hash).unwrap_or_else(is_former)
    }

    /// Those of the rows in a document's stored pointer that another document has, or may have: a
    /// writer that was killed may have stored the pointer and not published the row, and another
    /// document may have taken its sequence since.
    fn rows_of_others<'a>(&'a self, pointer: Option<&'a Pointer>) -> impl Iterator<Item = Sequence> + 'a {
        let hash = pointer.map_or(0, |pointer| Self::hash(pointer.document()));
        pointer.into_iter().flat_map(Pointer::rows).filter(move |row| self.may_be_of_another(*row, hash))
    }

    /// Leaves out of what `entry` says to be superseded the sequences that other documents are
    /// known to have. A pointer may name them: that of a commit that was cut off, whose entry
    /// another document's has replaced.
    pub(super) fn leave_out_others(&self, entry: &mut ChangeEntry) {
        if entry.supersedes().is_empty() {
            return;
        }
        let hash = Self::hash(entry.document());
        let is_others = |sequence: &Sequence| self.is_of_another(*sequence, hash) == Some(true);
        if entry.supersedes().iter().any(is_others) {
            let kept: Vec<Sequence> = entry.supersedes().iter().copied().filter(|sequence| !is_others(sequence)).collect();
            *entry = entry.clone().with_supersedes(kept);
        }
    }
}

impl Writer {
    /// Another document has the sequence of this position, too.
    pub(super) fn share(&mut self, position: Sequence) {
        self.shared.insert(position.number());
        self.assembler.set_reused(true);
    }

    /// The sequences that a document names and that are to be looked up, some of them repeatedly:
    /// those that another document has or may have; and of those that are accounted for or expected
    /// again, and were not looked up before, departures, sequences near shared ones, those that are
    /// expected again, and all that a document with a low sequence names. Its pointer names some,
    /// too.
    pub(super) fn uncertain<'a>(
        &'a self,
        document: &'a DecodedDocument,
        pointers: &'a Pointers,
    ) -> impl Iterator<Item = Sequence> + 'a {
        let (sequencer, id, named) = (self.assembler.sequencer(), document.entry.document(), document.entry.supersedes());
        let departed = document.departures.iter().map(|departure| departure.sequence);
        let is_low = document.entry.is_low();
        let has_others = is_low || !self.shared.is_empty() || sequencer.has_readmitted();
        let is_uncertain =
            move |sequence: &Sequence| is_low || self.shared.are_near(*sequence) || sequencer.is_readmitted(*sequence);
        let is_accounted = move |sequence: &Sequence| sequencer.is_accounted(*sequence);
        let is_expected = move |sequence: &Sequence| sequencer.is_readmitted(*sequence);
        let near = if has_others { named } else { &[] }.iter().copied().filter(is_uncertain);
        let near = near.filter(move |sequence| is_accounted(sequence) || is_expected(sequence));
        let all = departed.filter(is_accounted).chain(near).filter(move |sequence| !self.known.contains(id, *sequence));
        all.chain(self.owners.owned_by_others(id, named))
            .chain(self.owners.rows_of_others(pointers.get(&id)))
            .filter(move |sequence| sequence.slot() == 0 && !sequencer.is_before_start(*sequence))
    }

    /// Whether there are any.
    #[inline]
    pub(super) fn has_uncertain(&self, document: &DecodedDocument, pointers: &Pointers) -> bool {
        let (entry, departures) = (&document.entry, &document.departures);
        if departures.is_empty() && entry.supersedes().is_empty() && pointers.is_empty() {
            return false;
        }
        let has_others = !self.shared.is_empty() || self.assembler.sequencer().has_readmitted();
        let may_be = has_others || !departures.is_empty() || entry.is_low() || !pointers.is_empty();
        (may_be || self.owners.owned_by_others(entry.document(), entry.supersedes()).next().is_some())
            && self.uncertain(document, pointers).next().is_some()
    }

    /// The sequences of departures that are taken as any other entries, where a killed writer may
    /// have left states.
    pub(super) fn departed_among_states<'a>(&'a self, document: &'a DecodedDocument) -> impl Iterator<Item = Sequence> + 'a {
        let departed = document.departures.iter().map(|departure| departure.sequence);
        let sequencer = self.assembler.sequencer();
        departed.filter(|sequence| !sequencer.is_accounted(*sequence) && self.may_have_states(*sequence))
    }

    /// Whether a former term may have stored entries that the feed has not delivered again.
    #[inline]
    pub(super) fn may_have_stored(&self) -> bool {
        self.clock.value.epoch.counter > 1 && self.caught_up_at.is_none()
    }

    /// The positions of an earlier revision of this document and of its departures, if a former
    /// term may have stored their entries and neither the last checkpoint nor the clock accounts
    /// for them. The document's pointer names the earlier revision. The feed may have left out that
    /// revision since, and the one that told of the departures. Only after a take-over.
    pub(super) fn stored_earlier<'a>(
        &'a self,
        document: &'a DecodedDocument,
        pointers: &Pointers,
    ) -> impl Iterator<Item = Sequence> + 'a {
        let may_be = self.may_have_stored();
        let pointer = may_be.then(|| pointers.get(&document.entry.document())).flatten();
        let row = pointer.and_then(|pointer| pointer.row(document.entry.star()));
        let earlier = row.filter(|row| *row < document.entry.sequence());
        let departed = if may_be { &document.departures[..] } else { &[] };
        let all = earlier.into_iter().chain(departed.iter().map(|departure| departure.sequence));
        all.filter(|position| position.slot() == 0 && !self.assembler.sequencer().is_accounted(*position))
    }

    /// Looks up what a document names. Departures get a position of their own if their sequence is
    /// accounted for by something else. Returns these positions.
    pub(super) async fn look_up_named(
        &mut self,
        document: &mut DecodedDocument,
        is_shown: bool,
        conflicts: &mut Conflicts,
        pointers: &Pointers,
    ) -> Result<Vec<Sequence>> {
        let uncertain: BTreeSet<Sequence> = self.uncertain(document, pointers).collect();
        let mut placed = Vec::new();
        for sequence in uncertain {
            let stored = self.entry_at(conflicts, sequence).await?;
            let owner = stored.as_ref().map_or(document.entry.document(), |stored| stored.document());
            self.owners.insert(sequence, owner);
            // One that was stored, and not published before a crash, is still expected.
            let is_expected = self.assembler.sequencer().is_readmitted(sequence);
            let is_own = stored.as_ref().is_some_and(|stored| stored.document() == document.entry.document());
            let is_missing = stored.is_none();
            match stored {
                Some(stored) if stored.document() != document.entry.document() => self.share(sequence),
                Some(stored) if !is_expected && is_of(&stored, sequence, document) => {
                    let tells = document.departures.iter().any(|departure| departure.sequence == sequence);
                    placed.extend((tells && tells_earlier(&document.entry, &stored)).then_some(sequence));
                    continue;
                }
                Some(stored) if is_expected => {
                    // The assembler does not know that this entry is stored.
                    if must_mark_higher(document, &stored) {
                        self.assembler.set_reused(true);
                    }
                    document.recall_earlier(&stored);
                }
                _ => {}
            }
            let position = self.place_departure(document, sequence, conflicts).await?;
            // A revision that is shown takes the place of its document's earlier one: that is not
            // expected any more.
            if is_shown && is_own && position.is_none() && document.entry.supersedes().contains(&sequence) {
                self.assembler.forget_readmitted(sequence);
            }
            if is_shown && is_expected && is_missing && document.entry.supersedes().contains(&sequence) {
                self.clear_row(document, sequence).await?;
            }
            placed.extend(position);
        }
        let departed: BTreeSet<Sequence> = self.departed_among_states(document).collect();
        for sequence in departed {
            if self.entry_at(conflicts, sequence).await?.is_none() {
                placed.extend(self.place_departure(document, sequence, conflicts).await?);
            }
        }
        Ok(placed)
    }

    /// Returns the position that a departure was given; `None` if no departure has this sequence,
    /// if it is stored already, or if no slot is free.
    async fn place_departure(
        &mut self,
        document: &mut DecodedDocument,
        sequence: Sequence,
        conflicts: &mut Conflicts,
    ) -> Result<Option<Sequence>> {
        // What it supersedes does not matter here: the assembler makes the entry that is stored.
        let departure = departure_entry(&document.entry, sequence, &document.departures, true);
        let Some(departure) = departure else { return Ok(None) };
        // What was looked up with the batch may be outdated by what came before in it.
        conflicts.forget(sequence);
        let slot = match self.room_for(&departure, conflicts).await? {
            Room::Free(slot) => slot,
            Room::Full => return Ok(None),
            // The sequence itself may have become free since: it must not be stored there, too.
            Room::Stored(position) => {
                let told = document.departures.iter_mut().filter(|departure| departure.sequence == sequence);
                told.for_each(|departure| departure.sequence = position);
                return Ok(None);
            }
        };
        if slot == 0 && !self.assembler.sequencer().is_accounted(sequence) {
            // It is stored as any other.
            return Ok(None);
        }
        let departure = departure.with_slot(slot);
        self.assembler.count_conflict();
        notices::tell_conflict(&departure);
        let position = departure.position();
        if slot > 0 {
            self.share(position);
        }
        for departure in document.departures.iter_mut().filter(|departure| departure.sequence == sequence) {
            departure.sequence = position;
        }
        conflicts.insert(departure);
        Ok(Some(position))
    }

    /// Where a departure can be stored, or is.
    async fn room_for(&mut self, departure: &ChangeEntry, conflicts: &mut Conflicts) -> Result<Room> {
        let (sequence, mut free) = (departure.sequence(), None);
        self.fetch(conflicts, slots_of(sequence).collect()).await?;
        for slot in 0..Sequence::SLOTS {
            let Some(position) = sequence.in_slot(slot) else { break };
            match self.entry_at(conflicts, position).await? {
                Some(stored) if stored.document() != departure.document() || stored.revision() != departure.revision() => {}
                // It was stored, and not published before a crash.
                Some(_) if self.assembler.sequencer().is_readmitted(position) => return Ok(Room::Free(slot)),
                Some(stored) if tells_earlier(departure, &stored) => return Ok(Room::Free(slot)),
                Some(_) => return Ok(Room::Stored(position)),
                None if free.is_some() => {}
                // A commit that was cut off may have stored states, and no document.
                None if self.may_have_states(position)
                    && self.remove_unpublished_states(&departure.clone().with_slot(slot), conflicts).await? => {}
                // It is stored as any other. Nothing accounts for its sequence, so no entry of this
                // term names it, and the states tell of others.
                None if slot == 0 && self.may_have_states(position) && !self.assembler.sequencer().is_accounted(position) => {
                    free = Some(slot);
                }
                None if self.is_named_by_another(departure, position).await? => {}
                None => free = Some(slot),
            }
        }
        if free.is_none() {
            self.assembler.count_invalid();
            notices::tell_full(departure);
        }
        Ok(free.map_or(Room::Full, Room::Free))
    }
}

/// Where a departure can be stored.
enum Room {
    /// In the first free slot, or in one in which it is expected.
    Free(u8),
    /// It is stored at this position.
    Stored(Sequence),
    /// No slot is free.
    Full,
}

/// Whether a departure is to be stored again, because a later mutation of its partition told of
/// `stored`. If that mutation is lost, the departure must stay; and this one may tell of more
/// channels, which the document had entered again since.
fn tells_earlier(departure: &ChangeEntry, stored: &ChangeEntry) -> bool {
    let (first, known) = (departure.origin(), stored.origin());
    !stored.in_star() && first.partition == known.partition && first.seqno < known.seqno
}

/// Whether a departure may have to mark a row with a higher sequence, in the channel that the
/// document left: the row of `stored`, an earlier revision, or of one that only `stored` names.
fn must_mark_higher(document: &DecodedDocument, stored: &ChangeEntry) -> bool {
    let DecodedDocument { entry, departures, .. } = document;
    let unnamed = stored.supersedes().iter().filter(|position| !entry.supersedes().contains(position));
    let highest_unnamed = unnamed.map(|position| position.rank()).max();
    let is_lower = |departure: &Departure| {
        let rank = departure.sequence.rank();
        let has_row = || stored.channels().iter().any(|change| change.channel == departure.channel);
        rank < stored.position().rank() && (highest_unnamed.is_some_and(|highest| highest > rank) || has_row())
    };
    departures.iter().any(is_lower)
}

/// Whether `stored` is the entry of the document's revision that had `sequence`, as far as a
/// departure tells.
fn is_of(stored: &ChangeEntry, sequence: Sequence, document: &DecodedDocument) -> bool {
    let mut departures = document.departures.iter().filter(|departure| departure.sequence == sequence);
    departures.all(|departure| *departure.revision == *stored.revision())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Channel, EntryFlags};

    #[test]
    fn a_departure_marks_higher_rows_of_its_channel_that_nothing_else_is_known_to_mark() {
        let departure = |channel: &str, sequence| Departure {
            sequence: Sequence(sequence),
            revision: "1-a".into(),
            channel: Channel::new(channel).unwrap(),
            membership: crate::Membership::Removed,
            since: Sequence::ZERO,
        };
        let left =
            |channel, sequence| DecodedDocument { departures: [departure(channel, sequence)].into(), ..document(12, &[10]) };
        let stored = |channel: &str, superseded: &[u64]| {
            let entry = ChangeEntry::new(Sequence(10), "d", "2-b", EntryFlags::default()).unwrap();
            let entry = entry.with_supersedes(superseded.iter().map(|n| Sequence(*n)));
            entry.with_channel(Channel::new(channel).unwrap(), crate::Membership::Present)
        };
        assert!(must_mark_higher(&left("x", 5), &stored("x", &[])), "its own row");
        assert!(must_mark_higher(&left("x", 5), &stored("y", &[8])), "the row of one that only it names");
        assert!(!must_mark_higher(&left("x", 5), &stored("y", &[3])), "that is lower");
        assert!(!must_mark_higher(&left("x", 11), &stored("x", &[8])), "all are lower");
        let names_all = DecodedDocument { departures: [departure("x", 5)].into(), ..document(12, &[8, 10]) };
        assert!(!must_mark_higher(&names_all, &stored("y", &[8])), "the document names it itself");
    }

    fn document(sequence: u64, superseded: &[u64]) -> DecodedDocument {
        let entry = ChangeEntry::new(Sequence(sequence), "d", "1-a", EntryFlags::default()).unwrap();
        entry.with_supersedes(superseded.iter().map(|n| Sequence(*n))).into()
    }

    #[test]
    fn sequences_are_near_shared_ones_between_and_around_them() {
        let mut shared = SharedSequences::default();
        assert!(!shared.are_near(Sequence(5)));
        shared.insert(Sequence(50_000));
        shared.insert(Sequence(90_000));
        let near = [39_999, 40_000, 70_000, 100_000, 100_001].map(|n| shared.are_near(Sequence(n)));
        assert_eq!(near, [false, true, true, true, false]);
    }

    fn of_others(owners: &RecentOwners, document: &str, sequences: &[u64]) -> Vec<u64> {
        let sequences: Vec<Sequence> = sequences.iter().copied().map(Sequence).collect();
        owners.owned_by_others(document.into(), &sequences).map(|sequence| sequence.0).collect()
    }

    #[test]
    fn others_own_what_they_are_known_to_have_and_may_own_what_former_terms_stored() {
        let mut owners = RecentOwners::after(Sequence(20_000));
        assert_eq!(of_others(&owners, "d", &[9_999, 10_000, 20_000, 20_001]), [10_000, 20_000]);
        owners.insert(Sequence(20_000), "d".into());
        owners.insert(Sequence(20_001), "e".into());
        assert_eq!(of_others(&owners, "d", &[20_000, 20_001]), [20_001]);
        assert_eq!(of_others(&owners, "e", &[20_000, 20_001]), [20_000]);
        let mut entry = ChangeEntry::new(Sequence(20_009), "d", "3-c", EntryFlags::default()).unwrap();
        entry = entry.with_supersedes([9_999, 20_000, 20_001].map(Sequence));
        owners.leave_out_others(&mut entry);
        assert_eq!(entry.supersedes(), [9_999, 20_000].map(Sequence));
    }

    #[test]
    fn a_later_sequence_takes_the_place_of_an_earlier_one_and_not_the_other_way_round() {
        let mut owners = RecentOwners::after(Sequence::ZERO);
        let (earlier, later) = (5, 5 + (1 << INDEX_BITS));
        for _ in 0..2 {
            owners.insert(Sequence(earlier), "d".into());
            assert_eq!((of_others(&owners, "e", &[earlier]), of_others(&owners, "e", &[later])), (vec![earlier], vec![]));
        }
        for _ in 0..2 {
            owners.insert(Sequence(later), "d".into());
            assert_eq!((of_others(&owners, "e", &[earlier]), of_others(&owners, "e", &[later])), (vec![], vec![later]));
            owners.insert(Sequence(earlier), "d".into());
        }
    }

    #[test]
    fn the_highest_sequences_and_positions_in_slots_have_no_known_owner() {
        let mut owners = RecentOwners::after(Sequence::ZERO);
        let (highest, in_slot) = ((1 << 52) - (1 << INDEX_BITS) - 1, Sequence(5).in_slot(1).unwrap().0);
        for sequence in [highest, highest + 1, Sequence::MAX_NUMBER.0, in_slot] {
            owners.insert(Sequence(sequence), "d".into());
        }
        let all = [0, 5, highest, highest + 1, highest + (1 << 52), Sequence::MAX_NUMBER.0, in_slot];
        assert_eq!(of_others(&owners, "e", &all), [highest]);
        assert_eq!(of_others(&owners, "d", &all), [0; 0]);
    }

    #[test]
    fn sequences_of_a_document_are_remembered_where_others_are_shared() {
        let (mut known, mut shared) = (KnownSequences::default(), SharedSequences::default());
        known.take(&document(7, &[5]), &shared);
        assert!(!known.contains("d".into(), Sequence(5)));
        shared.insert(Sequence(6));
        known.take(&document(7, &[5]), &shared);
        assert!([5, 7].iter().all(|n| known.contains("d".into(), Sequence(*n))) && !known.contains("e".into(), Sequence(5)));
        known.take(&document(9, &[7]), &shared);
        assert!(known.contains("d".into(), Sequence(9)) && !known.contains("d".into(), Sequence(5)));
        known.clear();
        assert!(!known.contains("d".into(), Sequence(9)));
    }
}
