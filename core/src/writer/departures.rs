//! Departures whose sequence is accounted for already.
//!
//! A document's channel map names the sequences at which the document left channels. So the removal
//! from a channel is stored even if the feed leaves out the revision that left. Mostly such a
//! sequence is accounted for because the revision, or its departure, is stored. But a marker may
//! have released it, and a user or another document may have it. The stored entries tell which. They
//! are read once for a document, not for each of its revisions.

use std::collections::BTreeSet;

use quick_cache::UnitWeighter;
use quick_cache::unsync::{Cache, DefaultLifecycle};
use rustc_hash::FxBuildHasher;

use super::conflict::Conflicts;
use super::{Writer, notices};
use crate::decode::DecodedDocument;
use crate::document::{DocumentId, DocumentRef};
use crate::engine::departure_entry;
use crate::error::Result;
use crate::sequence::{Sequence, SequenceList};

/// The limit for documents whose departures are remembered. Those of others are read.
const DOCUMENTS: usize = 32_768;

/// Departures that are known to be stored: of the documents that were used last.
#[derive(Debug)]
pub(super) struct StoredDepartures(Cache<DocumentId, SequenceList, UnitWeighter, FxBuildHasher>);

impl Default for StoredDepartures {
    fn default() -> Self {
        let (weighter, lifecycle) = (UnitWeighter, DefaultLifecycle::default());
        StoredDepartures(Cache::with(DOCUMENTS, DOCUMENTS as u64, weighter, FxBuildHasher, lifecycle))
    }
}

impl StoredDepartures {
    /// Whether it is known that the document's entry with this sequence is stored, or will be with
    /// the next batch.
    fn contains(&self, document: DocumentRef<'_>, sequence: Sequence) -> bool {
        self.0.get(&document).is_some_and(|sequences| sequences.contains(&sequence))
    }

    /// Takes the departures of a document that is applied: its own, and those that its channel map
    /// remembers.
    #[inline]
    pub(super) fn take(&mut self, document: &DecodedDocument) {
        let is_removed = document.entry.channels().iter().any(|change| change.membership.is_removal());
        if is_removed || !document.departures.is_empty() {
            self.insert(document, is_removed);
        }
    }

    fn insert(&mut self, document: &DecodedDocument, is_removed: bool) {
        let own = is_removed.then(|| document.entry.sequence());
        let departed = document.departures.iter().map(|departure| departure.sequence.number());
        let id = document.entry.document();
        if let Some(known) = self.0.get(&id)
            && own.into_iter().chain(departed.clone()).all(|sequence| known.contains(&sequence))
        {
            return;
        }
        self.0.insert(id.into(), own.into_iter().chain(departed).collect());
    }

    /// Entries have been removed.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

impl Writer {
    /// The departures of a document whose sequence is accounted for, and that are not known to be
    /// stored.
    pub(super) fn uncertain_departures(&self, document: &DecodedDocument) -> impl Iterator<Item = Sequence> {
        let (sequencer, id) = (self.assembler.sequencer(), document.entry.document());
        document.departures.iter().map(|departure| departure.sequence).filter(move |sequence| {
            sequence.slot() == 0
                && sequencer.is_accounted(*sequence)
                && !sequencer.is_before_start(*sequence)
                && !self.departures.contains(id, *sequence)
        })
    }

    /// Gives departures of a document a position of their own if their sequence is accounted for by
    /// something else. Returns these positions.
    pub(super) async fn place_departures(
        &mut self,
        document: &mut DecodedDocument,
        conflicts: &mut Conflicts,
    ) -> Result<Vec<Sequence>> {
        let uncertain: BTreeSet<Sequence> = self.uncertain_departures(document).collect();
        let mut placed = Vec::new();
        for number in uncertain {
            let stored = self.entry_at(conflicts, number).await?;
            let is_own = |entry: &crate::ChangeEntry| entry.document() == document.entry.document();
            if !stored.is_some_and(|entry| is_own(&entry))
                && let Some(position) = self.place_departure(document, number, conflicts).await?
            {
                placed.push(position);
            }
        }
        Ok(placed)
    }

    /// Returns the position that a departure was given; `None` if it is stored, or cannot be.
    async fn place_departure(
        &mut self,
        document: &mut DecodedDocument,
        number: Sequence,
        conflicts: &mut Conflicts,
    ) -> Result<Option<Sequence>> {
        let Some(departure) = departure_entry(&document.entry, number, &document.departures) else { return Ok(None) };
        // What was looked up with the batch may be outdated by what came before in it.
        conflicts.forget(number);
        let Some(slot) = self.free_slot(&departure, conflicts).await? else { return Ok(None) };
        let departure = departure.with_slot(slot);
        self.assembler.count_conflict();
        notices::tell_conflict(&departure);
        let position = departure.position();
        if slot > 0 {
            self.shared_numbers.insert(number);
        }
        for departure in document.departures.iter_mut().filter(|departure| departure.sequence == number) {
            departure.sequence = position;
        }
        conflicts.insert(departure);
        Ok(Some(position))
    }

    /// The first slot in which a departure can be stored, or is expected; `None` if the document
    /// has an entry with its sequence, or if no slot is free.
    async fn free_slot(&mut self, departure: &crate::ChangeEntry, conflicts: &mut Conflicts) -> Result<Option<u8>> {
        let (number, mut free) = (departure.sequence(), None);
        for slot in 0..Sequence::SLOTS {
            let Some(position) = number.in_slot(slot) else { break };
            match self.entry_at(conflicts, position).await? {
                Some(stored) if stored.document() != departure.document() => {}
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
