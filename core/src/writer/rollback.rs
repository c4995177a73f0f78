//! What a feed has taken back, until it is known what of it comes again: no I/O.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use hashbrown::{HashMap, HashSet};

use super::purge::seqno_of;
use crate::decode::{Decoded, DecodedDocument, Purged};
use crate::document::{DocumentId, DocumentRef};
use crate::entry::{ChangeEntry, Origin};
use crate::feed::{FeedPosition, PartitionId, PartitionPosition, PartitionSeqno};
use crate::sequence::{RangeSet, Sequence};
use crate::withdraw::{BySequence, Gone};

/// Duplicates that are remembered: a number may be given out again before the feed tells that its
/// first use is taken back.
const RECENT: usize = 10_000;

/// The position of an entry: its sequence and its slot, see [`Sequence::rank`].
type Rank = (Sequence, u8);

/// A decoded mutation that is not applied, or was not new.
#[derive(Clone, Debug)]
pub(super) struct Held {
    pub(super) partition: PartitionId,
    pub(super) seqno: PartitionSeqno,
    pub(super) decoded: Decoded,
    /// Where its partition was before it.
    pub(super) before: Option<PartitionPosition>,
}

impl Held {
    /// The number of its document's entry, if it is one.
    pub(super) fn sequence(&self) -> Option<Sequence> {
        document_of(&self.decoded).map(|document| document.entry.sequence())
    }
}

#[derive(Debug)]
struct Unresolved {
    /// What lies after it is to be looked for.
    after: u64,
    is_collected: bool,
    /// The lowest seqno to which it was taken back.
    to: PartitionSeqno,
    /// Where a restart would have gone on before the partition was first taken back. It goes on
    /// from there, so that the partition is taken back again.
    before: Option<PartitionPosition>,
}

/// The rollbacks that have not ended, the entries that they may withdraw, and what waits until that
/// is known.
#[derive(Debug, Default)]
pub(super) struct Rollbacks {
    partitions: BTreeMap<PartitionId, Unresolved>,
    /// Whether there ever was one.
    has_been: bool,
    candidates: BTreeMap<Rank, Arc<ChangeEntry>>,
    /// The candidates of each document.
    documents: HashMap<DocumentId, BTreeSet<Rank>>,
    /// The sequences that they supersede: some revisions may have been lost with them, without ever
    /// having come.
    named: RangeSet,
    /// In the order in which they came.
    held: Vec<Held>,
    /// The released mutations that are not applied yet: the partition, and its position before the
    /// mutation.
    released: VecDeque<(PartitionId, Option<PartitionPosition>)>,
    held_documents: HashSet<DocumentId>,
    /// Candidates whose document came again with the same number as something else: another
    /// revision, or the whole one of which only a departure was known.
    replaced: BTreeSet<Rank>,
    /// Those of `replaced` that are departures of which a confirmed later revision still tells,
    /// with the seqno of the first such revision.
    still_told: BTreeMap<Rank, PartitionSeqno>,
    recent: VecDeque<Held>,
}

impl Rollbacks {
    /// Whether nothing is taken back of which it is not known what comes again.
    #[inline]
    pub(super) fn is_idle(&self) -> bool {
        self.partitions.is_empty()
    }

    /// Whether that is so, and nothing waits.
    pub(super) fn is_settled(&self) -> bool {
        self.partitions.is_empty() && self.held.is_empty() && self.released.is_empty()
    }

    /// Whether there ever was a rollback.
    pub(super) fn have_been(&self) -> bool {
        self.has_been
    }

    /// Whether it is not so of a partition.
    pub(super) fn is_unresolved(&self, partition: PartitionId) -> bool {
        self.partitions.contains_key(&partition)
    }

    /// A partition, which is at `at`, is taken back to `to`. `purges` are the positions before the
    /// purges that are not carried out. Mutations and purges that waited are dropped, because they
    /// come again. A restart must still begin before them: the feed may go back less far then.
    pub(super) fn begin<'a>(
        &mut self,
        partition: PartitionId,
        to: PartitionSeqno,
        at: Option<PartitionPosition>,
        purges: impl Iterator<Item = (PartitionId, Option<&'a PartitionPosition>)>,
    ) {
        self.has_been = true;
        let mut restart = FeedPosition { partitions: at.into_iter().map(|at| (partition, at)).collect() };
        self.limit(&mut restart, purges.filter(|(id, _)| *id == partition));
        let before = restart.partitions.remove(&partition);
        let holds = |held: &Held| held.partition != partition || held.seqno <= to;
        self.held.retain(holds);
        self.recent.retain(holds);
        self.held_documents = self.held.iter().filter_map(|held| document(&held.decoded)).map(Into::into).collect();
        let stays = |number: &Rank, seqno: PartitionSeqno| {
            seqno <= to || self.candidates.get(number).is_none_or(|candidate| candidate.origin().partition != partition)
        };
        self.still_told.retain(|number, seqno| stays(number, *seqno));
        let new = || Unresolved { after: to.0, is_collected: false, to, before: None };
        let known = self.partitions.entry(partition).or_insert_with(new);
        (known.to, known.before) = (known.to.min(to), before);
        // What was found by then and has not come again is a candidate still; what has come since
        // up to `to` holds.
        known.after = if known.is_collected { to.0 } else { known.after.min(to.0) };
        known.is_collected = false;
    }

    /// What is to be looked for before anything else is taken, since what comes may be of any of
    /// its numbers, given out again: partitions, and the seqno after which.
    pub(super) fn wanted(&self) -> BTreeMap<PartitionId, u64> {
        let uncollected = self.partitions.iter().filter(|(_, unresolved)| !unresolved.is_collected);
        uncollected.map(|(partition, unresolved)| (*partition, unresolved.after)).collect()
    }

    /// How many entries may be withdrawn.
    pub(super) fn candidates(&self) -> usize {
        self.candidates.len()
    }

    /// All that was wanted and found.
    pub(super) fn found(&mut self, entries: Vec<Arc<ChangeEntry>>) {
        self.partitions.values_mut().for_each(|unresolved| unresolved.is_collected = true);
        for entry in entries {
            self.documents.entry(entry.document().into()).or_default().insert(entry.position().rank());
            name(&mut self.named, &entry);
            self.candidates.insert(entry.position().rank(), entry);
        }
        let (taken, recent): (VecDeque<Held>, VecDeque<Held>) = std::mem::take(&mut self.recent)
            .into_iter()
            .partition(|held| held.sequence().is_some_and(|number| self.candidates_of(number).next().is_some()));
        self.recent = recent;
        for held in taken {
            self.hold_unless_same(held);
        }
    }

    fn hold_unless_same(&mut self, held: Held) {
        if self.judge(held.partition, held.seqno, &held.decoded) {
            self.hold(held);
        }
    }

    /// Whether a mutation must wait; to be asked once, in the order of the feed. What comes again
    /// as it was, is no candidate any more, nor is what its document had before: it is what the
    /// document came from. It still waits if it tells of a departure that was stored with the
    /// origin of a later revision. If the later revision is withdrawn, the departure is withdrawn,
    /// too. This mutation then stores the departure again.
    pub(super) fn judge(&mut self, partition: PartitionId, seqno: PartitionSeqno, decoded: &Decoded) -> bool {
        if self.candidates.is_empty() && self.held.is_empty() {
            return false;
        }
        if let Some(DecodedDocument { entry, departures, .. }) = document_of(decoded) {
            let is_same = |candidate: &ChangeEntry| {
                // A write of another program keeps the metadata of the revision, at a seqno of its
                // own.
                let origin = Origin { partition, seqno, cas: entry.origin().cas };
                (candidate.origin().is_same(origin) || matches!(decoded, Decoded::Foreign(_)))
                    && (candidate.document(), candidate.revision()) == (entry.document(), entry.revision())
            };
            let same = self.candidates_of(entry.sequence()).find(|candidate| is_same(candidate)).cloned();
            if let Some(same) = same {
                self.confirm(&same);
                let is_departure =
                    |candidate: &Arc<ChangeEntry>| candidate.document() == entry.document() && !candidate.in_star();
                return departures.iter().any(|departure| self.candidates_of(departure.sequence.number()).any(is_departure));
            }
            let own = self.candidates_of(entry.sequence()).filter(|candidate| candidate.document() == entry.document());
            let replaced: Vec<Rank> = own.map(|candidate| candidate.position().rank()).collect();
            self.replaced.extend(replaced);
        }
        self.must_wait(decoded)
    }

    /// The candidates with a sequence.
    fn candidates_of(&self, number: Sequence) -> impl Iterator<Item = &Arc<ChangeEntry>> {
        self.candidates.range((number, 0)..=(number, u8::MAX)).map(|(_, candidate)| candidate)
    }

    fn must_wait(&self, decoded: &Decoded) -> bool {
        let is_taken = |number: &Sequence| self.candidates_of(*number).next().is_some() || self.named.contains(number.0);
        match decoded {
            Decoded::Document(document) | Decoded::Foreign(document) => {
                let DecodedDocument { entry, unused, .. } = document;
                self.documents.contains_key(&entry.document())
                    || self.held_documents.contains(&entry.document())
                    || is_taken(&entry.sequence())
                    || unused.iter().any(is_taken)
                    || document.earlier().any(|number| is_taken(&number))
            }
            Decoded::Purged(Purged { document, .. }) => {
                self.documents.contains_key(document) || self.held_documents.contains(document)
            }
            Decoded::Principal(principal) => is_taken(&principal.sequence),
            Decoded::Unused(range) => {
                let (first, last) = (range.first(), range.last());
                self.candidates.range((first, 0)..=(last, u8::MAX)).next().is_some()
                    || self.named.within(first.0, last.0).next().is_some()
            }
            Decoded::Counter(_) | Decoded::Ignored(_) | Decoded::Invalid(_) => false,
        }
    }

    fn confirm(&mut self, confirmed_by: &ChangeEntry) {
        let document = confirmed_by.document();
        let Some(numbers) = self.documents.get_mut(&document) else { return };
        let is_newer = |number: &Rank| self.candidates.get(number).is_some_and(|other| other.is_newer_than(confirmed_by));
        let is_departure = |number: &Rank| self.candidates.get(number).is_some_and(|other| !other.in_star());
        let (replaced, confirmed): (Vec<Rank>, Vec<Rank>) =
            numbers.iter().filter(|number| !is_newer(number)).partition(|number| self.replaced.contains(number));
        let seqno = confirmed_by.origin().seqno;
        for number in replaced.into_iter().filter(is_departure) {
            let first = self.still_told.entry(number).or_insert(seqno);
            *first = seqno.min(*first);
        }
        for number in &confirmed {
            numbers.remove(number);
            self.candidates.remove(number);
        }
        if numbers.is_empty() {
            self.documents.remove(&document);
        }
    }

    /// Keeps a mutation until it is known what is withdrawn.
    pub(super) fn hold(&mut self, held: Held) {
        self.held_documents.extend(document(&held.decoded).map(Into::into));
        self.held.push(held);
    }

    /// A document came whose number is accounted for.
    pub(super) fn remember(&mut self, duplicate: Held) {
        if self.recent.len() >= RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(duplicate);
    }

    /// Forgets documents that came as duplicates and are purged.
    pub(super) fn forget(&mut self, is_purged: impl Fn(&ChangeEntry) -> bool) {
        self.recent.retain(|held| document_of(&held.decoded).is_none_or(|document| !is_purged(&document.entry)));
    }

    /// Nothing accounts for these numbers any more: what came of them as a duplicate is to be
    /// taken.
    pub(super) fn recall(&mut self, numbers: &[Sequence]) {
        let numbers: BTreeSet<Sequence> = numbers.iter().map(|position| position.number()).collect();
        let is_wanted = |held: &Held| held.sequence().is_some_and(|sequence| numbers.contains(&sequence));
        let (wanted, recent) = std::mem::take(&mut self.recent).into_iter().partition::<VecDeque<Held>, _>(is_wanted);
        self.recent = recent;
        // They came before whatever waits.
        let waiting = std::mem::take(&mut self.held);
        wanted.into_iter().chain(waiting).for_each(|held| self.hold(held));
    }

    /// All that these partitions have was delivered: what of it is to be withdrawn.
    pub(super) fn end(&mut self, ended: &BTreeSet<PartitionId>) -> Gone {
        self.partitions.retain(|partition, _| !ended.contains(partition));
        let (gone, left) = std::mem::take(&mut self.candidates)
            .into_iter()
            .partition(|(_, candidate)| ended.contains(&candidate.origin().partition));
        self.candidates = left;
        self.named = RangeSet::new();
        self.candidates.values().for_each(|entry| name(&mut self.named, entry));
        let gone: BTreeMap<Rank, Arc<ChangeEntry>> = gone;
        let still_told: BTreeSet<Rank> = gone.keys().filter(|number| self.still_told.remove(number).is_some()).copied().collect();
        for entry in gone.values() {
            self.documents.remove(&entry.document());
            self.replaced.remove(&entry.position().rank());
        }
        let entries: BySequence = gone.into_values().map(|entry| (entry.position(), entry)).collect();
        let whole: HashSet<(DocumentRef<'_>, Sequence)> = self.held.iter().filter_map(whole_revision).collect();
        let named: HashSet<(DocumentRef<'_>, Sequence)> =
            entries.values().flat_map(|entry| entry.supersedes().iter().map(|position| (entry.document(), *position))).collect();
        // A revision need not name a departure that is older than what it supersedes.
        let tellers: HashSet<(DocumentRef<'_>, PartitionSeqno)> =
            entries.values().filter(|entry| entry.in_star()).map(|entry| (entry.document(), entry.origin().seqno)).collect();
        // A departure whose revision has come as a whole, while the later revision that told of it
        // stays: that came again, or none that is gone told of it. The revision need not get the
        // slot of a departure that is in one.
        let is_room = |entry: &ChangeEntry| {
            let (document, position) = (entry.document(), entry.position());
            let is_told_by_gone = || named.contains(&(document, position)) || tellers.contains(&(document, entry.origin().seqno));
            !entry.in_star()
                && position.slot() == 0
                && whole.contains(&(document, entry.sequence()))
                && (still_told.contains(&position.rank()) || !is_told_by_gone())
        };
        let room = entries.values().filter(|entry| is_room(entry)).map(|entry| entry.position()).collect();
        drop((named, tellers));
        Gone { entries, room }
    }

    /// The mutations that need not wait any longer, in the order in which they came. A restart
    /// begins before each of them until it is applied, which
    /// [`take_released`](Self::take_released) says.
    pub(super) fn release(&mut self) -> Vec<Held> {
        self.held_documents.clear();
        let mut released = Vec::new();
        for mut held in std::mem::take(&mut self.held) {
            if self.must_wait(&held.decoded) {
                self.hold(held);
            } else {
                self.released.push_back((held.partition, held.before.take()));
                released.push(held);
            }
        }
        released
    }

    /// Where the partition of the first of the released mutations was before it.
    pub(super) fn first_released(&self) -> Option<Option<PartitionPosition>> {
        self.released.front().map(|(_, before)| before.clone())
    }

    /// As [`first_released`](Self::first_released), of the mutation that is being applied.
    pub(super) fn take_released(&mut self) -> Option<Option<PartitionPosition>> {
        self.released.pop_front().map(|(_, before)| before)
    }

    /// Takes a position back to where a restart must go on: before what was taken back, before what
    /// waits, and before what has waited and is not applied. `purges` are the positions before the
    /// purges that are not carried out.
    ///
    /// A partition that is being taken back restarts at its place in the lost history, so that the
    /// feed takes it back again. Positions of the new history are ignored: from there, the feed
    /// would take nothing back.
    pub(super) fn limit<'a>(
        &self,
        position: &mut FeedPosition,
        purges: impl Iterator<Item = (PartitionId, Option<&'a PartitionPosition>)>,
    ) {
        let mut first: BTreeMap<PartitionId, Option<&PartitionPosition>> =
            self.partitions.iter().map(|(partition, unresolved)| (*partition, unresolved.before.as_ref())).collect();
        let held = self.held.iter().map(|held| (held.partition, held.before.as_ref()));
        let released = self.released.iter().map(|(partition, before)| (*partition, before.as_ref()));
        let mut take = |partition: PartitionId, before| {
            // A position of the new history: what comes after it comes again.
            let comes_again = |unresolved: &Unresolved| seqno_of(before) >= unresolved.to.0;
            if self.partitions.get(&partition).is_some_and(comes_again) {
                return;
            }
            let known = first.entry(partition).or_insert(before);
            if seqno_of(before) < seqno_of(*known) {
                *known = before;
            }
        };
        held.chain(released).for_each(|(partition, before)| take(partition, before));
        purges.for_each(|(partition, before)| take(partition, before));
        for (partition, before) in first {
            let is_beyond = |at: &PartitionPosition| at.seqno > seqno_of(before) || self.is_unresolved(partition);
            if !position.partitions.get(&partition).is_some_and(is_beyond) {
                continue;
            }
            match before {
                Some(before) => drop(position.partitions.insert(partition, before.clone())),
                // It is read from its beginning, in the oldest history that is known: so the feed
                // reports a rollback if what has come is lost.
                None => {
                    if let Entry::Occupied(mut at) = position.partitions.entry(partition) {
                        at.get_mut().roll_back(0);
                        if at.get().uuid == 0 {
                            at.remove();
                        }
                    }
                }
            }
        }
    }
}

/// The document and number of a revision that came as a whole.
fn whole_revision(held: &Held) -> Option<(DocumentRef<'_>, Sequence)> {
    match &held.decoded {
        Decoded::Document(document) => Some((document.entry.document(), document.entry.sequence())),
        _ => None,
    }
}

fn name(named: &mut RangeSet, entry: &ChangeEntry) {
    for number in entry.supersedes().iter().map(|position| position.number()) {
        named.insert(number.0, number.0);
    }
}

fn document_of(decoded: &Decoded) -> Option<&DecodedDocument> {
    match decoded {
        Decoded::Document(document) | Decoded::Foreign(document) => Some(document),
        _ => None,
    }
}

fn document(decoded: &Decoded) -> Option<DocumentRef<'_>> {
    document_of(decoded).map(|document| document.entry.document())
}

#[cfg(test)]
mod tests;
