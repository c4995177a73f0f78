//! Finds the owners of the sequences that a document names.
//!
//! A document names the sequences of its earlier revisions, and its channel map those at which it
//! left channels. The feed may have left out these revisions. Mostly such a sequence is accounted
//! for because the revision, or its departure, is stored. But a marker may have released it, and a
//! user or another document may have it. The stored entries tell which. They are read once for a
//! document, not for each of its revisions.

use std::collections::BTreeSet;
use std::hash::BuildHasher as _;

use quick_cache::UnitWeighter;
use quick_cache::unsync::{Cache, DefaultLifecycle};
use rustc_hash::{FxBuildHasher, FxHashSet};

use super::conflict::{Conflicts, slots_of};
use super::pointers::Pointers;
use super::{Writer, notices};
use crate::decode::DecodedDocument;
use crate::document::{DocumentId, DocumentRef};
use crate::engine::departure_entry;
use crate::entry::ChangeEntry;
use crate::error::Result;
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
    /// The positions in slots that this term has assigned.
    assigned: FxHashSet<Sequence>,
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

    /// Whether this term has assigned the position, in a slot.
    pub(super) fn is_assigned(&self, position: Sequence) -> bool {
        self.assigned.contains(&position)
    }

    /// Whether others are expected around `sequence`.
    fn are_near(&self, sequence: Sequence) -> bool {
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

    /// Entries have been removed.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

/// Which document has each of the last sequences, as far as they are known.
///
/// A gateway that lost its counter allocates its last sequences again. If the feed leaves out a
/// revision with such a sequence, nothing tells that a second document has it but a later revision,
/// which names it. The row of the first document must not be marked then. Documents are told apart
/// by a hash: two that have the same are not told apart, one in 2^32.
#[derive(Debug)]
pub(super) struct RecentOwners {
    /// By the lowest bits of the sequence: 1 more than the other bits of the sequence, and the hash
    /// of the document. 0 if nothing is known. The operating system provides the memory as it is
    /// used.
    owners: Vec<u64>,
    /// Sequences whose owners are in the store: the last ones of former terms.
    stored: Option<SequenceRange>,
}

/// The bits of a sequence that select its place in [`RecentOwners`].
const RECENT_BITS: u32 = 20;

impl RecentOwners {
    /// `high` is the highest sequence that former terms have published, and `arrived` the highest
    /// that they have stored.
    pub(super) fn new(high: Sequence, arrived: Sequence) -> Self {
        let stored = SequenceRange::new(Sequence(high.0.saturating_sub(SHARED_MARGIN).max(1)), arrived);
        RecentOwners { owners: vec![0; 1 << RECENT_BITS], stored }
    }

    fn place(sequence: Sequence) -> usize {
        usize::try_from(sequence.0 & ((1 << RECENT_BITS) - 1)).unwrap_or_default()
    }

    /// 1 more than the bits of a sequence that do not select its place.
    fn lap(sequence: Sequence) -> u64 {
        ((sequence.0 >> RECENT_BITS) + 1) & u64::from(u32::MAX)
    }

    fn hash(document: DocumentRef<'_>) -> u64 {
        FxBuildHasher.hash_one(document) >> 32
    }

    /// Takes that a document has a sequence.
    #[inline]
    pub(super) fn insert(&mut self, sequence: Sequence, document: DocumentRef<'_>) {
        if sequence.slot() == 0 {
            self.owners[Self::place(sequence)] = Self::lap(sequence) << 32 | Self::hash(document);
        }
    }

    /// Takes that a document has the sequences at which it left channels.
    #[inline]
    pub(super) fn take_departures(&mut self, document: &DecodedDocument) {
        document.departures.iter().for_each(|departure| self.insert(departure.sequence, document.entry.document()));
    }

    /// Those of `sequences` that another document has, or may have: it is to be looked up.
    #[inline]
    fn of_others<'a>(&'a self, document: DocumentRef<'_>, sequences: &'a [Sequence]) -> impl Iterator<Item = Sequence> + 'a {
        let hash = if sequences.is_empty() { 0 } else { Self::hash(document) };
        sequences.iter().copied().filter(move |sequence| {
            let (known, lap) = (self.owners[Self::place(*sequence)], Self::lap(*sequence));
            if known >> 32 == lap {
                known != (lap << 32 | hash)
            } else {
                self.stored.is_some_and(|stored| stored.contains(*sequence))
            }
        })
    }
}

impl Writer {
    /// Another document has the sequence of this position, too.
    pub(super) fn share(&mut self, position: Sequence) {
        self.shared.insert(position.number());
        if position.slot() > 0 {
            self.shared.assigned.insert(position);
        }
        self.assembler.set_reused(true);
    }

    /// The sequences that a document names and that are to be looked up: they are accounted for or
    /// expected again, and their owner is not known. These are departures; sequences near shared
    /// ones; those that are expected again; those that another document has; and all that a
    /// document with a low sequence names. Some may be repeated.
    pub(super) fn uncertain<'a>(&'a self, document: &'a DecodedDocument) -> impl Iterator<Item = Sequence> + 'a {
        let (sequencer, id) = (self.assembler.sequencer(), document.entry.document());
        let departed = document.departures.iter().map(|departure| departure.sequence);
        let is_low = document.entry.is_low();
        let has_others = is_low || !self.shared.is_empty() || sequencer.has_readmitted();
        let superseded = if has_others { document.entry.supersedes() } else { &[] };
        let is_uncertain =
            move |sequence: &Sequence| is_low || self.shared.are_near(*sequence) || sequencer.is_readmitted(*sequence);
        let of_others = self.owners.of_others(id, document.entry.supersedes());
        let is_accounted = move |sequence: &Sequence| sequencer.is_accounted(*sequence);
        let is_expected = move |sequence: &Sequence| sequencer.is_readmitted(*sequence);
        let named = superseded.iter().copied().filter(is_uncertain).chain(of_others);
        let named = named.filter(move |sequence| is_accounted(sequence) || is_expected(sequence));
        departed.filter(is_accounted).chain(named).filter(move |sequence| {
            sequence.slot() == 0 && !sequencer.is_before_start(*sequence) && !self.known.contains(id, *sequence)
        })
    }

    /// Whether there are any: there can be only for few documents.
    #[inline]
    pub(super) fn has_uncertain(&self, document: &DecodedDocument) -> bool {
        let has_others = !self.shared.is_empty() || self.assembler.sequencer().has_readmitted();
        let may_be = has_others || !document.departures.is_empty() || document.entry.is_low();
        let entry = &document.entry;
        (may_be || self.owners.of_others(entry.document(), entry.supersedes()).next().is_some())
            && self.uncertain(document).next().is_some()
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
        let may_be = self.clock.value.epoch.counter > 1 && self.caught_up_at.is_none();
        let pointer = may_be.then(|| pointers.get(&document.entry.document())).flatten();
        let row = pointer.and_then(|pointer| pointer.row(document.entry.star()));
        let earlier = row.filter(|row| *row < document.entry.sequence());
        let departed = if may_be { document.departures.as_slice() } else { &[] };
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
    ) -> Result<Vec<Sequence>> {
        let uncertain: BTreeSet<Sequence> = self.uncertain(document).collect();
        let mut placed = Vec::new();
        for sequence in uncertain {
            let stored = self.entry_at(conflicts, sequence).await?;
            let owner = stored.as_ref().map_or(document.entry.document(), |stored| stored.document());
            self.owners.insert(sequence, owner);
            // One that was stored, and not published before a crash, is still expected.
            let is_expected = self.assembler.sequencer().is_readmitted(sequence);
            let is_own = stored.as_ref().is_some_and(|stored| stored.document() == document.entry.document());
            match stored {
                Some(stored) if stored.document() != document.entry.document() => self.share(sequence),
                Some(stored) if !is_expected && is_of(&stored, sequence, document) => continue,
                Some(stored) if is_expected => document.recall_earlier(&stored),
                _ => {}
            }
            let position = self.place_departure(document, sequence, conflicts).await?;
            // A revision that is shown takes the place of its document's earlier one: that is not
            // expected any more.
            if is_shown && is_own && position.is_none() && document.entry.supersedes().contains(&sequence) {
                self.assembler.forget_readmitted(sequence);
            }
            placed.extend(position);
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
        let Some(slot) = self.free_slot(&departure, conflicts).await? else { return Ok(None) };
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

    /// The first slot in which a departure can be stored, or is expected; `None` if the document
    /// has an entry with its sequence, or if no slot is free.
    async fn free_slot(&mut self, departure: &ChangeEntry, conflicts: &mut Conflicts) -> Result<Option<u8>> {
        let (sequence, mut free) = (departure.sequence(), None);
        self.fetch(conflicts, slots_of(sequence).collect()).await?;
        for slot in 0..Sequence::SLOTS {
            let Some(position) = sequence.in_slot(slot) else { break };
            match self.entry_at(conflicts, position).await? {
                Some(stored) if stored.document() != departure.document() || stored.revision() != departure.revision() => {}
                // It was stored, and not published before a crash.
                Some(_) if self.assembler.sequencer().is_readmitted(position) => return Ok(Some(slot)),
                Some(_) => return Ok(None),
                None if free.is_none() && !self.is_named_by_another(departure, position).await? => free = Some(slot),
                None => {}
            }
        }
        if free.is_none() {
            self.assembler.count_invalid();
            notices::tell_full(departure);
        }
        Ok(free)
    }
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
    use crate::EntryFlags;

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

    #[test]
    fn sequences_of_others_are_those_another_is_known_to_have_and_stored_ones() {
        let mut owners = RecentOwners::new(Sequence(19_000), Sequence(20_000));
        let of_others = |owners: &RecentOwners, document: &str, sequences: &[u64]| -> Vec<u64> {
            let sequences: Vec<Sequence> = sequences.iter().copied().map(Sequence).collect();
            owners.of_others(document.into(), &sequences).map(|sequence| sequence.0).collect()
        };
        assert_eq!(of_others(&owners, "d", &[8_999, 9_000, 20_000, 20_001]), [9_000, 20_000]);
        owners.insert(Sequence(20_000), "d".into());
        owners.insert(Sequence(20_001), "e".into());
        assert_eq!(of_others(&owners, "d", &[20_000, 20_001]), [20_001]);
        assert_eq!(of_others(&owners, "e", &[20_000, 20_001]), [20_000]);
        // A later sequence with the same place.
        let later = 20_001 + (1 << RECENT_BITS);
        owners.insert(Sequence(later), "d".into());
        assert_eq!(of_others(&owners, "d", &[20_001, later]), [0; 0]);
        assert_eq!(of_others(&owners, "e", &[20_001, later]), [later]);
        let highest = Sequence::MAX_NUMBER.0;
        owners.insert(Sequence(highest), "d".into());
        owners.insert(Sequence(5).in_slot(1).unwrap(), "d".into());
        assert_eq!(of_others(&owners, "e", &[0, 5, highest]), [highest]);
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
