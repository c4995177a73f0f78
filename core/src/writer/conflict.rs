//! Documents whose sequence is accounted for already.
//!
//! That a sequence is accounted for does not mean that its document was delivered: a marker may
//! have released it, another document may name or have it, a principal may have used it. A gateway
//! that lost its counter allocates sequences again. So the entry that is stored under the sequence
//! is read, and only the same revision of the same document is a duplicate.

use std::collections::BTreeSet;
use std::sync::Arc;

use backon::Retryable as _;
use rustc_hash::{FxHashMap, FxHashSet};

use super::items::Item;
use super::named::Named;
use super::pointers::Pointers;
use super::purge::is_older;
use super::{Writer, backoff, inherited, log_retry, notices};
use crate::decode::{Decoded, DecodedDocument};
use crate::document::DocumentId;
use crate::entry::{ChangeEntry, Origin};
use crate::error::{Error, Result};
use crate::scan;
use crate::sequence::Sequence;

/// The findings about the documents of a feed batch whose sequences are accounted for.
#[derive(Debug, Default)]
pub(super) struct Conflicts {
    /// Entries by position, as far as they were looked up.
    entries: FxHashMap<Sequence, Option<Arc<ChangeEntry>>>,
    /// Indexes in the batch of the documents that are decided.
    resolved: FxHashSet<usize>,
    /// Positions that such documents were given.
    placed: FxHashSet<Sequence>,
    /// The later revision that supersedes each of these positions, if there is one.
    later: FxHashMap<Sequence, Arc<ChangeEntry>>,
    /// Purges in the batch.
    purges: FxHashMap<DocumentId, Vec<Origin>>,
    /// Positions where a killed writer may have left states, and has left none but those of this
    /// document's entry.
    alone: FxHashMap<Sequence, DocumentId>,
}

impl Conflicts {
    /// Whether it is a document that is new although its number was accounted for.
    pub(super) fn has_placed(&self, decoded: &Decoded) -> bool {
        matches!(decoded, Decoded::Document(document) if self.placed.contains(&document.entry.position()))
    }

    /// The later revision of a document that supersedes it already, if that has a lower sequence.
    /// Readers may hold rows from a higher sequence on, and would show the earlier revision.
    pub(super) fn later(&mut self, decoded: &Decoded) -> Option<Arc<ChangeEntry>> {
        let Decoded::Document(document) = decoded else { return None };
        let position = document.entry.position();
        self.later.remove(&position).filter(|later| later.position().rank() < position.rank())
    }

    /// Whether no states but those of `entry` are known to be stored at its position.
    pub(super) fn is_alone(&self, entry: &ChangeEntry) -> bool {
        self.alone.get(&entry.position()).is_some_and(|document| document.as_ref() == entry.document())
    }

    /// States that are not those of `entry` are known not to be stored at its position.
    pub(super) fn insert_alone(&mut self, entry: &ChangeEntry) {
        self.alone.insert(entry.position(), entry.document().into());
    }

    /// Makes an entry known that will be stored.
    pub(super) fn insert(&mut self, entry: ChangeEntry) {
        self.entries.insert(entry.position(), Some(Arc::new(entry)));
    }

    /// A document was applied: what was found at its position, and at those of its departures, may
    /// have changed.
    pub(super) fn applied(&mut self, document: &DecodedDocument) {
        let departed = document.departures.iter().map(|departure| departure.sequence);
        for position in departed.chain([document.entry.position()]) {
            self.entries.remove(&position);
        }
        if !self.alone.is_empty() {
            document.earlier().for_each(|position| drop(self.alone.remove(&position)));
        }
    }

    /// Forgets the entries with a sequence: they are looked up again. Those of documents that come
    /// later in the batch stay.
    pub(super) fn forget(&mut self, number: Sequence) {
        let placed = &self.placed;
        self.entries.retain(|position, _| position.number() != number || placed.contains(position));
    }
}

/// The decision for a document whose sequence is accounted for, given the entry at one position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Claim {
    /// The same revision.
    Duplicate,
    /// An earlier revision of a document that has the sequence already: it is not shown.
    Outdated,
    /// A later revision of the stored document.
    Newer,
    /// Another document is stored.
    Taken,
}

/// All positions of a number.
pub(super) fn slots_of(number: Sequence) -> impl Iterator<Item = Sequence> {
    (0..Sequence::SLOTS).map_while(move |slot| number.in_slot(slot))
}

fn claim(entry: &ChangeEntry, stored: &ChangeEntry) -> Claim {
    if stored.document() != entry.document() {
        return Claim::Taken;
    }
    if !stored.in_star() {
        // The departures of a revision that another program wrote over have the CAS of that write.
        // If the revision itself comes later, the program has restored the body.
        let (mine, others) = (entry.origin().cas, stored.origin().cas);
        return if others > 0 && mine > others { Claim::Newer } else { Claim::Duplicate };
    }
    if stored.revision() == entry.revision() {
        return Claim::Duplicate;
    }
    if entry.is_newer_than(stored) { Claim::Newer } else { Claim::Outdated }
}

impl Writer {
    /// Gives documents whose sequence is accounted for already a position of their own, and
    /// publishes that they may still come. Duplicates are left as they are. `first` is the index of
    /// the first item in its batch.
    pub(super) async fn resolve_conflicts(&mut self, first: usize, items: &mut [Item], pointers: &Pointers) -> Result<Conflicts> {
        let mut conflicts = Conflicts::default();
        let (mut accounted, mut wanted) = (Vec::new(), Vec::new());
        for (at, item) in items.iter().enumerate() {
            match item {
                Item::Decoded(_, _, Decoded::Document(document)) => {
                    accounted.extend(self.accounted(document).map(|number| (at, number)));
                    wanted.extend(self.named_positions(document, pointers));
                }
                Item::Decoded(_, _, Decoded::Foreign(document)) => wanted.extend(self.named_positions(document, pointers)),
                Item::Decoded(partition, seqno, Decoded::Purged(purged)) => {
                    let origin = Origin { partition: *partition, seqno: *seqno, cas: purged.cas };
                    conflicts.purges.entry(purged.document.clone()).or_default().push(origin);
                }
                _ => {}
            }
        }
        wanted.extend(accounted.iter().map(|(_, number)| *number));
        self.fetch(&mut conflicts, wanted).await?;
        self.look_for_states(&mut conflicts, items).await?;
        let mut positions = Vec::new();
        for (at, _) in accounted {
            if let Item::Decoded(_, _, Decoded::Document(document)) = &mut items[at] {
                conflicts.resolved.insert(first + at);
                positions.extend(self.place(document, &mut conflicts).await?);
            }
        }
        self.readmit(&positions).await?;
        Ok(conflicts)
    }

    /// Whether [`resolve_conflict`](Self::resolve_conflict) has something to do. That is rare,
    /// except after a take-over: for documents that have left channels, or that name one of the
    /// last sequences of former terms.
    #[inline]
    pub(super) fn may_conflict(&self, item: &Item, pointers: &Pointers) -> bool {
        match item {
            Item::Decoded(_, _, Decoded::Document(document)) => {
                // Most documents of a new bucket name nothing.
                self.accounted(document).is_some()
                    || self.may_have_states(document.entry.position())
                    || (document.earlier().next().is_some() || !pointers.is_empty()) && self.names_conflict(document, pointers)
            }
            Item::Decoded(_, _, Decoded::Foreign(document)) => self.names_conflict(document, pointers),
            _ => false,
        }
    }

    fn names_conflict(&self, document: &DecodedDocument, pointers: &Pointers) -> bool {
        !self.shared.is_empty() && self.names_shared(document)
            || self.has_uncertain(document, pointers)
            || self.departed_among_states(document).next().is_some()
            || self.may_have_stored() && self.stored_earlier(document, pointers).next().is_some()
    }

    /// The positions that a document names and that are looked up.
    fn named_positions<'a>(
        &'a self,
        document: &'a DecodedDocument,
        pointers: &'a Pointers,
    ) -> impl Iterator<Item = Sequence> + 'a {
        let named = self.uncertain(document, pointers).chain(self.stored_earlier(document, pointers));
        named.chain(self.departed_among_states(document))
    }

    fn names_shared(&self, document: &DecodedDocument) -> bool {
        document.earlier().any(|number| self.shared.contains(number))
    }

    /// Resolves one document of the batch whose sequence may have been accounted for since.
    pub(super) async fn resolve_conflict(
        &mut self,
        at: usize,
        decoded: &mut Decoded,
        conflicts: &mut Conflicts,
        pointers: &Pointers,
    ) -> Result<()> {
        let is_shown = matches!(decoded, Decoded::Document(_));
        let (Decoded::Document(document) | Decoded::Foreign(document)) = decoded else { return Ok(()) };
        let positions = self.look_up_named(document, is_shown, conflicts, pointers).await?;
        self.readmit(&positions).await?;
        let earlier: BTreeSet<Sequence> = self.stored_earlier(document, pointers).collect();
        for position in earlier {
            if let Some(stored) = self.entry_at(conflicts, position).await? {
                document.recall_earlier(&stored);
            }
        }
        self.name_own(document, conflicts).await?;
        let Decoded::Document(document) = decoded else { return Ok(()) };
        let number = match self.accounted(document) {
            Some(number) => number,
            None if self.remove_unpublished_states(&document.entry, conflicts).await? => document.entry.sequence(),
            None => return Ok(()),
        };
        self.store_again(document, conflicts).await?;
        // A document before it in the batch may account for the sequence that it was given.
        let is_lost = self.assembler.sequencer().is_accounted(number)
            && document.entry.position() == number
            && conflicts.placed.remove(&number);
        if conflicts.resolved.contains(&at) && !is_lost {
            return Ok(());
        }
        // It was looked up before there was anything to find.
        conflicts.entries.remove(&number);
        let position = self.place(document, conflicts).await?;
        if is_lost && document.entry.position() != number {
            self.assembler.forget_readmitted(number);
        }
        self.readmit(position.as_slice()).await
    }

    /// A document's metadata name the sequences of its earlier revisions. If other documents have
    /// such a sequence, too, finds the position of the document's own revision. The channels that
    /// this revision left are known then.
    async fn name_own(&mut self, document: &mut DecodedDocument, conflicts: &mut Conflicts) -> Result<()> {
        let DecodedDocument { entry, departures, accounted, names_all_channels, .. } = document;
        let departed = departures.iter().map(|departure| departure.sequence);
        let mut shared: Vec<Sequence> = entry.supersedes().iter().copied().chain(departed).collect();
        shared.retain(|number| self.shared.contains(*number));
        shared.sort_unstable();
        shared.dedup();
        for number in shared {
            let (mut own, mut is_free, mut is_known) = (Vec::new(), false, false);
            self.fetch(conflicts, slots_of(number).collect()).await?;
            for slot in 0..Sequence::SLOTS {
                let Some(position) = number.in_slot(slot) else { break };
                match self.entry_at(conflicts, position).await? {
                    // The entry itself, or a later revision that has come already.
                    Some(found) if found.document() == entry.document() && !entry.is_newer_than(&found) => {}
                    Some(found) if found.document() == entry.document() => {
                        own.push(position);
                        // One that was stored, and not published before a crash, may not come.
                        let sequencer = self.assembler.sequencer();
                        let is_published =
                            if slot == 0 { sequencer.is_accounted(number) } else { !sequencer.is_readmitted(position) };
                        is_known |= found.in_star() && is_published;
                    }
                    Some(_) => {}
                    None => is_free |= slot == 0,
                }
            }
            if is_known {
                departures.retain(|departure| departure.sequence != number);
                *names_all_channels = false;
                // Another document may have had the sequence until a rollback.
                let sequencer = self.assembler.sequencer();
                if !sequencer.is_accounted(number) && !sequencer.is_readmitted(number) {
                    accounted.push(number);
                }
            }
            if is_free && own.is_empty() {
                own.push(number);
            }
            let others = entry.supersedes().iter().copied().filter(|other| *other != number && !own.contains(other));
            *entry = entry.clone().with_supersedes(others.chain(own.iter().copied()).collect::<Vec<_>>());
        }
        Ok(())
    }

    /// Stores the entry of a duplicate again if the stored one does not name the position of an
    /// earlier revision, whose sequence another document has or had. The earlier revision has moved
    /// in a rollback, or the feed has delivered it for the first time. Does nothing once commits
    /// are no longer confirmed: a commit does not replace a stored entry then.
    async fn store_again(&mut self, document: &mut DecodedDocument, conflicts: &mut Conflicts) -> Result<()> {
        let position = document.entry.position();
        let is_shared = |earlier: &&Sequence| self.shared.contains(earlier.number());
        let mut moved: Vec<Sequence> = document.entry.supersedes().iter().filter(is_shared).copied().collect();
        let is_confirmed = self.may_have_stored() || self.rollbacks.have_been();
        if moved.is_empty() || !is_confirmed || !self.assembler.sequencer().is_accounted(position) {
            return Ok(());
        }
        let Some(stored) = self.entry_at(conflicts, position).await? else { return Ok(()) };
        let is_same = stored.document() == document.entry.document() && stored.revision() == document.entry.revision();
        moved.retain(|earlier| !stored.supersedes().contains(earlier));
        self.fetch(conflicts, moved.clone()).await?;
        let is_own = |found: &Arc<ChangeEntry>| found.document() == stored.document();
        moved.retain(|earlier| conflicts.entries.get(earlier).and_then(Option::as_ref).is_some_and(is_own));
        if is_same && stored.in_star() && !moved.is_empty() {
            let mut entry = ChangeEntry::clone(&stored);
            moved.into_iter().for_each(|earlier| entry.push_superseded(earlier));
            // Another document may have one of the sequences by now.
            self.settle_all().await?;
            let kept = inherited::without_others(self.store.as_ref(), backoff(&self.config), vec![Arc::new(entry)]).await?;
            kept.into_iter().for_each(|kept| document.entry = Arc::unwrap_or_clone(kept));
            self.readmit(&[position]).await?;
        }
        Ok(())
    }

    /// The sequence of a document, if it is accounted for, or shared: then the document may be
    /// there, in a slot.
    #[inline]
    fn accounted(&self, document: &DecodedDocument) -> Option<Sequence> {
        let (sequencer, number) = (self.assembler.sequencer(), document.entry.sequence());
        let is_shared = !self.shared.is_empty() && self.shared.contains(number);
        // A readmission that was published before a crash makes it missing again. An entry that was
        // stored in a commit that was cut off is like a new one, as long as its sequence is
        // missing.
        let is_expected =
            || sequencer.has_readmitted() && sequencer.is_readmitted(number) && !self.unpublished.contains(number.0);
        let is_known = is_shared || sequencer.is_accounted(number) || is_expected();
        (is_known && !sequencer.is_before_start(number)).then_some(number)
    }

    /// Finds the entries at these positions, including those that are not stored yet.
    pub(super) async fn fetch(&mut self, conflicts: &mut Conflicts, mut positions: Vec<Sequence>) -> Result<()> {
        positions.sort_unstable();
        positions.dedup();
        let publishing = self.publishing.iter().map(|publishing| &publishing.record);
        let records = self.in_flight.iter().map(|in_flight| &in_flight.publication.record).chain(publishing);
        let waiting = records.flat_map(|record| record.entries.iter()).chain(self.assembler.entries());
        for entry in waiting {
            if positions.binary_search(&entry.position()).is_ok() {
                conflicts.entries.insert(entry.position(), Some(entry.clone()));
            }
        }
        positions.retain(|position| !conflicts.entries.contains_key(position));
        for page in positions.chunks(scan::PAGE) {
            let store = self.store.as_ref();
            let attempt = || async { store.entries(page).await };
            let found = attempt.retry(backoff(&self.config)).when(Error::is_retryable).notify(log_retry).await?;
            conflicts.entries.extend(page.iter().copied().zip(found));
        }
        Ok(())
    }

    pub(super) async fn entry_at(&mut self, conflicts: &mut Conflicts, position: Sequence) -> Result<Option<Arc<ChangeEntry>>> {
        if !conflicts.entries.contains_key(&position) {
            self.fetch(conflicts, vec![position]).await?;
        }
        Ok(conflicts.entries.get(&position).cloned().flatten())
    }

    /// Finds the position for a document whose sequence is accounted for or shared; `None` if it is
    /// a duplicate, or can be taken as any other.
    async fn place(&mut self, document: &mut DecodedDocument, conflicts: &mut Conflicts) -> Result<Option<Sequence>> {
        let number = document.entry.sequence();
        let is_shared = self.shared.contains(number);
        let (mut supersedes, mut free, mut later) = (None, None, None);
        if is_shared {
            self.fetch(conflicts, slots_of(number).collect()).await?;
        }
        for slot in 0..Sequence::SLOTS {
            let Some(position) = number.in_slot(slot) else { break };
            let Some(stored) = self.entry_at(conflicts, position).await? else {
                // A commit that was cut off may have stored states, and no document.
                if free.is_none()
                    && self.may_have_states(position)
                    && self.remove_unpublished_states(&document.entry.clone().with_slot(slot), conflicts).await?
                {
                    continue;
                }
                if free.is_none() {
                    match self.named(&document.entry, position).await? {
                        Named::Another => {}
                        Named::Nobody => free = Some(slot),
                        Named::Own(entry) => (free, later) = (Some(slot), Some(entry)),
                    }
                }
                // An entry may have been withdrawn, while others are still in higher slots.
                if free.is_some() && !is_shared {
                    break;
                }
                continue;
            };
            let is_gone = stored.document() == document.entry.document() && self.is_purged(&document.entry, &stored, conflicts);
            match if is_gone { Claim::Taken } else { claim(&document.entry, &stored) } {
                // An entry that was stored, and not published before a crash, is still expected.
                Claim::Duplicate if self.assembler.sequencer().is_readmitted(position) => {
                    if let Named::Own(entry) = self.named(&document.entry, position).await? {
                        later = Some(entry);
                    }
                    free = Some(slot);
                    break;
                }
                Claim::Duplicate | Claim::Outdated => {
                    document.entry = document.entry.clone().with_slot(slot);
                    return Ok(None);
                }
                Claim::Newer => supersedes = Some(position),
                Claim::Taken => {}
            }
        }
        let Some(slot) = free else {
            self.assembler.count_invalid();
            notices::tell_full(&document.entry);
            self.share(number);
            return Ok(None);
        };
        let mut entry = document.entry.clone().with_slot(slot);
        self.keep_earlier(&mut entry, conflicts).await?;
        supersedes.into_iter().for_each(|older| entry.push_superseded(older));
        let is_expected = slot == 0 && !self.assembler.sequencer().is_accounted(number);
        // An earlier revision of a document may come after a later one that names it.
        let is_late_revision = later.is_some() && slot == 0;
        if !is_expected && !is_late_revision {
            self.assembler.count_conflict();
            notices::tell_conflict(&entry);
        }
        let position = entry.position();
        if slot > 0 {
            self.share(position);
        }
        conflicts.entries.insert(position, Some(Arc::new(entry.clone())));
        conflicts.placed.insert(position);
        conflicts.later.extend(later.map(|later| (position, later)));
        document.entry = entry;
        Ok((!is_expected).then_some(position))
    }

    /// Leaves out of what an entry says to be superseded the numbers that later revisions of its
    /// document have by now.
    async fn keep_earlier(&mut self, entry: &mut ChangeEntry, conflicts: &mut Conflicts) -> Result<()> {
        if entry.supersedes().is_empty() {
            return Ok(());
        }
        self.fetch(conflicts, entry.supersedes().to_vec()).await?;
        let is_later = |position: &Sequence| match conflicts.entries.get(position) {
            Some(Some(found)) => found.document() == entry.document() && found.is_newer_than(entry),
            _ => false,
        };
        let kept: Vec<Sequence> = entry.supersedes().iter().copied().filter(|position| !is_later(position)).collect();
        if kept.len() < entry.supersedes().len() {
            *entry = entry.clone().with_supersedes(kept);
        }
        Ok(())
    }

    /// Whether the document of `stored` was purged since, and `entry` is of the document that was
    /// made anew.
    fn is_purged(&self, entry: &ChangeEntry, stored: &ChangeEntry, conflicts: &Conflicts) -> bool {
        let pending = self.purges.origins(entry.document());
        let in_batch = conflicts.purges.get(&DocumentId::from(entry.document()));
        let mut purges = pending.chain(in_batch.into_iter().flatten().copied());
        purges.any(|purge| is_older(stored, purge) && !is_older(entry, purge))
    }

    /// Publishes that entries may still come at these positions, so that they are new when they are
    /// applied, also after a crash in between.
    async fn readmit(&mut self, positions: &[Sequence]) -> Result<()> {
        if positions.is_empty() {
            return Ok(());
        }
        self.settle_all().await?;
        positions.iter().for_each(|position| self.assembler.readmit(*position));
        self.publish_with_checkpoint().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::EntryFlags;
    use crate::feed::{PartitionId, PartitionSeqno};

    #[test]
    fn only_the_same_revision_of_the_same_document_is_a_duplicate() {
        let entry = |document: &str, revision: &str, seqno| {
            let entry = ChangeEntry::new(Sequence(5), document, revision, EntryFlags::default()).unwrap();
            entry.with_origin(PartitionId(1), PartitionSeqno(seqno))
        };
        let came = entry("d", "2-b", 7);
        assert_eq!(claim(&came, &entry("d", "2-b", 3)), Claim::Duplicate);
        assert_eq!(claim(&came, &entry("d", "1-a", 3)), Claim::Newer);
        assert_eq!(claim(&came, &entry("d", "3-c", 9)), Claim::Outdated);
        assert_eq!(claim(&came, &entry("e", "2-b", 3)), Claim::Taken);
        let elsewhere = entry("d", "2-b", 3).with_collection(crate::CollectionId(8));
        assert_eq!(claim(&came, &elsewhere), Claim::Taken);
        let departure = |cas| ChangeEntry::new(Sequence(5), "d", "2-b", EntryFlags::DEPARTURE).unwrap().with_cas(cas);
        let came = came.with_cas(20);
        assert_eq!(claim(&came, &departure(0)), Claim::Duplicate, "a later revision told of it");
        assert_eq!(claim(&came, &departure(30)), Claim::Duplicate, "it came before");
        assert_eq!(claim(&came, &departure(10)), Claim::Newer, "the body was restored");
    }
}
