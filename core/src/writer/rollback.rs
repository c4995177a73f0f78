//! What a feed has taken back, until it is known what of it comes again: no I/O.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use crate::decode::{Decoded, DecodedDocument};
use crate::entry::{ChangeEntry, Origin};
use crate::feed::{FeedPosition, PartitionId, PartitionPosition, PartitionSeqno};
use crate::sequence::{RangeSet, Sequence};

/// Duplicates that are remembered: a number may be given out again before the feed tells that its first use is taken back.
const RECENT: usize = 10_000;

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
    /// Where the partition was before it was first taken back. A restart goes on from there, so that it is taken back again.
    before: Option<PartitionPosition>,
}

/// The rollbacks that have not ended, the entries that they may withdraw, and what waits until that is known.
#[derive(Debug, Default)]
pub(super) struct Rollbacks {
    partitions: BTreeMap<PartitionId, Unresolved>,
    candidates: BTreeMap<Sequence, Arc<ChangeEntry>>,
    /// The candidates of each document.
    documents: HashMap<Box<str>, BTreeSet<Sequence>>,
    /// What they say to be superseded: some of it may have been lost with them, without ever having come.
    named: RangeSet,
    /// In the order in which they came.
    held: Vec<Held>,
    held_documents: HashSet<Box<str>>,
    /// Candidates that came again as something else: another entry has the number now, or the whole one of which only a departure was known.
    replaced: BTreeSet<Sequence>,
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
        self.partitions.is_empty() && self.held.is_empty()
    }

    /// Whether it is not so of a partition.
    pub(super) fn is_unresolved(&self, partition: PartitionId) -> bool {
        self.partitions.contains_key(&partition)
    }

    /// A partition, which was at `before`, is taken back to `to`.
    pub(super) fn begin(&mut self, partition: PartitionId, to: PartitionSeqno, before: Option<PartitionPosition>) {
        let holds = |held: &Held| held.partition != partition || held.seqno <= to;
        self.held.retain(holds);
        self.recent.retain(holds);
        self.held_documents = self.held.iter().filter_map(|held| document(&held.decoded)).map(Into::into).collect();
        let unresolved = Unresolved { after: to.0, is_collected: false, before };
        let known = self.partitions.entry(partition).or_insert(unresolved);
        // What was found by then and has not come again is a candidate still; what has come since up to `to` holds.
        known.after = if known.is_collected { to.0 } else { known.after.min(to.0) };
        known.is_collected = false;
    }

    /// Whether entries must be looked for before anything else is taken: what comes may be of any of their numbers, given out again.
    pub(super) fn needs_search(&self) -> bool {
        self.partitions.values().any(|unresolved| !unresolved.is_collected)
    }

    /// What is to be looked for: partitions, and the seqno after which.
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
            self.documents.entry(entry.document().into()).or_default().insert(entry.sequence());
            name(&mut self.named, &entry);
            self.candidates.insert(entry.sequence(), entry);
        }
        let (taken, recent): (VecDeque<Held>, VecDeque<Held>) = std::mem::take(&mut self.recent)
            .into_iter()
            .partition(|held| held.sequence().is_some_and(|sequence| self.candidates.contains_key(&sequence)));
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

    /// Whether a mutation must wait; to be asked once, in the order of the feed. What comes again as it was, is no candidate any more, nor is what its document had before: it is
    /// what the document came from.
    pub(super) fn judge(&mut self, partition: PartitionId, seqno: PartitionSeqno, decoded: &Decoded) -> bool {
        if self.candidates.is_empty() && self.held.is_empty() {
            return false;
        }
        if let Some(DecodedDocument { entry, .. }) = document_of(decoded)
            && self.candidates.get(&entry.sequence()).is_some_and(|candidate| {
                candidate.origin() == Origin { partition, seqno }
                    && (candidate.document(), candidate.revision()) == (entry.document(), entry.revision())
            })
        {
            self.confirm(entry.document(), entry.sequence());
            return false;
        }
        if let Some(sequence) = document_of(decoded).map(|document| document.entry.sequence())
            && self.candidates.contains_key(&sequence)
        {
            self.replaced.insert(sequence);
        }
        self.must_wait(decoded)
    }

    fn must_wait(&self, decoded: &Decoded) -> bool {
        let is_taken = |number: &Sequence| self.candidates.contains_key(number) || self.named.contains(number.0);
        match decoded {
            Decoded::Document(DecodedDocument { entry, unused, departures }) => {
                self.documents.contains_key(entry.document())
                    || self.held_documents.contains(entry.document())
                    || is_taken(&entry.sequence())
                    || entry.supersedes().iter().any(is_taken)
                    || unused.iter().any(is_taken)
                    || departures.iter().any(|departure| is_taken(&departure.sequence))
            }
            Decoded::Principal(principal) => is_taken(&principal.sequence),
            Decoded::Unused(range) => {
                let (first, last) = (range.first(), range.last());
                self.candidates.range(first..=last).next().is_some() || self.named.within(first.0, last.0).next().is_some()
            }
            Decoded::Ignored(_) | Decoded::Invalid(_) => false,
        }
    }

    fn confirm(&mut self, document: &str, upto: Sequence) {
        let Some(numbers) = self.documents.get_mut(document) else { return };
        let replaced = &self.replaced;
        let confirmed: Vec<Sequence> = numbers.range(..=upto).filter(|number| !replaced.contains(number)).copied().collect();
        for number in &confirmed {
            numbers.remove(number);
            self.candidates.remove(number);
        }
        if numbers.is_empty() {
            self.documents.remove(document);
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

    /// Nothing accounts for these numbers any more: what came of them as a duplicate is to be taken.
    pub(super) fn recall(&mut self, numbers: &[Sequence]) {
        let numbers: BTreeSet<Sequence> = numbers.iter().copied().collect();
        let is_wanted = |held: &Held| held.sequence().is_some_and(|sequence| numbers.contains(&sequence));
        let (wanted, recent) = std::mem::take(&mut self.recent).into_iter().partition::<VecDeque<Held>, _>(is_wanted);
        self.recent = recent;
        // They came before whatever waits.
        let waiting = std::mem::take(&mut self.held);
        wanted.into_iter().chain(waiting).for_each(|held| self.hold(held));
    }

    /// All that the partition has was delivered: what of it is to be withdrawn.
    pub(super) fn end(&mut self, partition: PartitionId) -> Vec<Arc<ChangeEntry>> {
        self.partitions.remove(&partition);
        let (gone, left) = std::mem::take(&mut self.candidates)
            .into_iter()
            .partition(|(_, candidate)| candidate.origin().partition == partition);
        self.candidates = left;
        self.named = RangeSet::new();
        self.candidates.values().for_each(|entry| name(&mut self.named, entry));
        let gone: BTreeMap<Sequence, Arc<ChangeEntry>> = gone;
        for entry in gone.values() {
            self.documents.remove(entry.document());
            self.replaced.remove(&entry.sequence());
        }
        gone.into_values().collect()
    }

    /// What need not wait any longer, in the order in which it came.
    pub(super) fn release(&mut self) -> Vec<Held> {
        self.held_documents.clear();
        let mut released = Vec::new();
        for held in std::mem::take(&mut self.held) {
            if self.must_wait(&held.decoded) {
                self.hold(held);
            } else {
                released.push(held);
            }
        }
        released
    }

    /// Takes a position back to where a restart must go on: before what was taken back, and before what waits.
    pub(super) fn limit(&self, position: &mut FeedPosition) {
        let waiting = self.held.iter().rev().map(|held| (held.partition, &held.before));
        let unresolved = self.partitions.iter().map(|(partition, unresolved)| (*partition, &unresolved.before));
        for (partition, before) in waiting.chain(unresolved) {
            match before {
                Some(before) => drop(position.partitions.insert(partition, before.clone())),
                None => drop(position.partitions.remove(&partition)),
            }
        }
    }
}

fn name(named: &mut RangeSet, entry: &ChangeEntry) {
    for number in entry.supersedes() {
        named.insert(number.0, number.0);
    }
}

fn document_of(decoded: &Decoded) -> Option<&DecodedDocument> {
    match decoded {
        Decoded::Document(document) => Some(document),
        _ => None,
    }
}

fn document(decoded: &Decoded) -> Option<&str> {
    document_of(decoded).map(|document| document.entry.document())
}
