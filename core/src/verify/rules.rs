//! What a block must say, as far as documents tell: the same for looking and for rebuilding. No
//! I/O.

use std::collections::BTreeMap;
use std::hash::{BuildHasher as _, RandomState};

use rustc_hash::FxHashMap;

use crate::block::{Block, BlockState};
use crate::channel::{Channel, ChannelMap};
use crate::document::DocumentRef;
use crate::entry::ChangeEntry;
use crate::key::BlockIndex;
use crate::sequence::Sequence;

/// What is known of one sequence in one channel, beside what the block says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    /// Whether there is a document that can be read.
    pub(super) document: bool,
    /// Whether the star channel names it, or cannot tell: it names every document there ever was.
    pub(super) named: bool,
    /// The state that its entry has by itself; absent if it is not in the channel.
    pub(super) own: BlockState,
    /// Whether a later row of its document supersedes it.
    pub(super) superseded: Superseded,
    /// Whether the block must know of it: it is published.
    pub(super) required: bool,
    /// Whether a document that is lost may have superseded it.
    pub(super) doubt: bool,
}

/// Whether a row is superseded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Superseded {
    No,
    /// By an entry above the clock's `marked`: its mark may be there or not.
    Maybe,
    Yes,
}

/// What is wrong with a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wrong {
    /// The block does not know the sequence.
    Forgotten,
    /// A removal as present, or the other way round.
    Kind,
    /// It is shown, and not in the channel, or was never stored at all.
    Stray,
    /// It is shown, and a later row of its document is there.
    Duplicate,
    /// It is the newest row of its document, and not shown.
    Hidden,
}

/// The state that is right where `stored` is there, and what is wrong with it. What cannot be told
/// from documents stays as it is.
pub(super) fn judge(stored: BlockState, known: Known) -> (BlockState, Option<Wrong>) {
    let Known { document, named, own, superseded, required, doubt } = known;
    let marked = superseded == Superseded::Yes;
    if !document {
        // A later entry may mark what never arrived, or what is lost.
        return match marked {
            true => (BlockState::Superseded, stored.is_live().then_some(Wrong::Duplicate)),
            false if stored.is_live() && required && !named => (BlockState::Absent, Some(Wrong::Stray)),
            false => (stored, None),
        };
    }
    if !own.is_live() {
        // Not in the channel, or a departure in the star channel. A mark there shows nothing.
        let right = if marked || stored == BlockState::Superseded { BlockState::Superseded } else { own };
        let wrong = match stored {
            BlockState::Present | BlockState::Removal => Some(Wrong::Stray),
            BlockState::Absent if own != BlockState::Absent && required => Some(Wrong::Forgotten),
            _ => None,
        };
        return (right, wrong);
    }
    let stays = stored == BlockState::Superseded && (doubt || superseded == Superseded::Maybe);
    let right = if marked || stays { BlockState::Superseded } else { own };
    let wrong = match stored {
        _ if stored == right => None,
        BlockState::Absent => required.then_some(Wrong::Forgotten),
        BlockState::Superseded => Some(Wrong::Hidden),
        _ if right == BlockState::Superseded => Some(Wrong::Duplicate),
        _ => Some(Wrong::Kind),
    };
    (right, wrong)
}

/// The marks that fall on the sequences of one block.
#[derive(Debug)]
pub(super) struct Marked {
    /// Those that must be there.
    pub(super) certain: Block,
    /// Those that may be there.
    pub(super) possible: Block,
}

impl Marked {
    pub(super) fn new(capacity: u32) -> Self {
        Marked { certain: Block::new(capacity), possible: Block::new(capacity) }
    }

    /// Whether the sequence at `offset` is superseded.
    pub(super) fn at(&self, offset: u32) -> Superseded {
        if self.certain.get(offset) != BlockState::Absent {
            Superseded::Yes
        } else if self.possible.get(offset) != BlockState::Absent {
            Superseded::Maybe
        } else {
            Superseded::No
        }
    }

    pub(super) fn add(&mut self, offset: u32, certain: bool) {
        let marks = if certain { &mut self.certain } else { &mut self.possible };
        marks.raise(offset, BlockState::Superseded);
    }
}

/// What marks are compared by: the hash of the document, and [`ChangeEntry::cas_of_revision`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Revision {
    pub(super) document: u64,
    pub(super) cas: u64,
}

impl Revision {
    pub(super) fn new(entry: &ChangeEntry, hasher: &RandomState) -> Self {
        Revision { document: hasher.hash_one(entry.document()), cas: entry.cas_of_revision() }
    }
}

/// Bits of a mark: the offset in its block, the document's hash, and whether the mark must exist.
const HASH_BITS: u32 = 40;

/// The mark that an entry makes, and the CAS of the entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Claim {
    bits: u64,
    cas: u64,
}

/// The marks that entries make on one block, with the document of each: 16 bytes per mark. Those
/// count that [`ChangeEntry::counts_on`] accepts.
#[derive(Clone, Debug, Default)]
struct Claims {
    marks: Vec<Claim>,
    /// This many are sorted and without duplicates.
    sorted: usize,
}

impl Claims {
    fn add(&mut self, mark: Claim) {
        self.marks.push(mark);
        if self.marks.len() >= 2 * self.sorted.max(16) {
            self.sort();
        }
    }

    fn sort(&mut self) {
        self.marks.sort_unstable();
        self.marks.dedup_by(|later, kept| {
            let is_same = later.bits == kept.bits;
            kept.cas = if is_same { wider_cas(later.cas, kept.cas) } else { kept.cas };
            is_same
        });
        self.sorted = self.marks.len();
    }

    /// Adds those of `other`; returns whether one was new.
    fn merge(&mut self, other: &Claims) -> bool {
        self.sort();
        let covers = |bits: u64, mark: &Claim| {
            let known = self.marks.binary_search_by_key(&bits, |known| known.bits).ok().map(|at| self.marks[at].cas);
            known.is_some_and(|cas| wider_cas(cas, mark.cas) == cas)
        };
        let is_new = |mark: &&Claim| !covers(mark.bits, mark) && !covers(mark.bits | 1, mark);
        let new: Vec<Claim> = other.marks.iter().filter(is_new).copied().collect();
        self.marks.extend_from_slice(&new);
        self.sort();
        !new.is_empty()
    }
}

/// The CAS of a mark that covers both: the higher one, or zero if one of them is not known.
fn wider_cas(a: u64, b: u64) -> u64 {
    if a == 0 || b == 0 { 0 } else { a.max(b) }
}

/// Marks of the entries seen so far, by marked block.
#[derive(Clone, Debug)]
pub(super) struct Marks {
    capacity: u32,
    blocks: BTreeMap<BlockIndex, ChannelMap<Claims>>,
}

impl Marks {
    pub(super) fn new(capacity: u32) -> Self {
        Marks { capacity, blocks: BTreeMap::new() }
    }

    /// Adds the mark of a revision.
    pub(super) fn add(&mut self, channel: &Channel, sequence: Sequence, by: Revision, certain: bool) {
        let (index, offset) = Block::locate(sequence, self.capacity);
        let bits = u64::from(offset) << (HASH_BITS + 1) | (by.document >> (64 - HASH_BITS)) << 1 | u64::from(certain);
        let mark = Claim { bits, cas: by.cas };
        let channels = self.blocks.entry(index).or_default();
        match channels.get_mut(channel) {
            Some(claims) => claims.add(mark),
            None => channels.entry(channel.clone()).or_default().add(mark),
        }
    }

    /// Adds those of `other`; returns whether one was new.
    pub(super) fn merge(&mut self, other: &Marks) -> bool {
        let mut any = false;
        for (index, channels) in &other.blocks {
            let blocks = self.blocks.entry(*index).or_default();
            for (channel, claims) in channels {
                any |= blocks.entry(channel.clone()).or_default().merge(claims);
            }
        }
        any
    }

    /// The highest block number on which marks fall.
    pub(super) fn highest(&self) -> Option<BlockIndex> {
        self.blocks.keys().next_back().copied()
    }

    /// The highest from `first` to `last`.
    pub(super) fn highest_within(&self, first: u64, last: u64) -> Option<u64> {
        self.blocks.range(BlockIndex(first)..=BlockIndex(last)).next_back().map(|(index, _)| index.0)
    }

    /// Takes the marks on the blocks of number `index` that count, given the revisions there. A
    /// position without a document may be marked by any document.
    pub(super) fn take(
        &mut self,
        index: BlockIndex,
        revisions: &FxHashMap<u32, Revision>,
        mut each: impl FnMut(&Channel, u32, bool),
    ) {
        for (channel, claims) in self.blocks.remove(&index).unwrap_or_default() {
            for Claim { bits, cas } in claims.marks {
                let (offset, hash) = ((bits >> (HASH_BITS + 1)) as u32, bits >> 1 & ((1 << HASH_BITS) - 1));
                let counts = |there: &Revision| there.document >> (64 - HASH_BITS) == hash && (cas == 0 || there.cas <= cas);
                if revisions.get(&offset).is_none_or(counts) {
                    each(&channel, offset, bits & 1 == 1);
                }
            }
        }
    }
}

/// How the sequence of a row compares to that of another row of its document in the channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Met {
    /// The first one met.
    First,
    /// A row with a higher sequence was seen.
    Below { other: Sequence },
    /// A row with a lower sequence was seen.
    Above { other: Sequence },
}

/// The newest row of each document in each channel, as far as they were met: 16 bytes a row. Of
/// those up to `marked`, if there is one: what is older than that must be marked.
///
/// Newest by sequence, until it is [known](Self::correct) otherwise: only the entries tell which
/// revision is later.
#[derive(Debug)]
pub(super) struct Newest {
    marked: Sequence,
    hasher: RandomState,
    rows: FxHashMap<u64, Sequence>,
}

impl Newest {
    pub(super) fn new(marked: Sequence, hasher: RandomState) -> Self {
        Newest { marked, hasher, rows: FxHashMap::default() }
    }

    /// Whether a row of the document was met in the channel.
    pub(super) fn knows(&self, channel: &Channel, document: DocumentRef<'_>) -> bool {
        self.rows.contains_key(&self.hasher.hash_one((channel.name(), document)))
    }

    /// Takes a row. Two documents may be taken for one, hardly ever: whoever relies on it compares
    /// them.
    pub(super) fn meet(&mut self, channel: &Channel, document: DocumentRef<'_>, sequence: Sequence) -> Met {
        let key = self.hasher.hash_one((channel.name(), document));
        let Some(known) = self.rows.get_mut(&key) else {
            self.rows.insert(key, sequence);
            return Met::First;
        };
        let before = *known;
        if before == sequence {
            return Met::First;
        }
        let is_below = sequence.rank() < before.rank();
        let (low, high) = if is_below { (sequence, before) } else { (before, sequence) };
        let is_marked = |position: Sequence| position.number() <= self.marked;
        *known = if is_marked(high) || !is_marked(low) { high } else { low };
        if is_below { Met::Below { other: before } } else { Met::Above { other: before } }
    }

    /// Sets this row as the newest of its document in the channel.
    pub(super) fn correct(&mut self, channel: &Channel, document: DocumentRef<'_>, sequence: Sequence) {
        self.rows.insert(self.hasher.hash_one((channel.name(), document)), sequence);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATES: [BlockState; 4] = [BlockState::Absent, BlockState::Present, BlockState::Removal, BlockState::Superseded];

    fn every(mut check: impl FnMut(BlockState, Known)) {
        for stored in STATES {
            for own in STATES {
                for superseded in [Superseded::No, Superseded::Maybe, Superseded::Yes] {
                    for bits in 0..16 {
                        let [document, required, doubt, named] = [1, 2, 4, 8].map(|bit| bits & bit != 0);
                        let own = if document { own } else { BlockState::Absent };
                        check(stored, Known { document, named, own, superseded, required, doubt });
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_right_is_not_wrong_and_stays() {
        every(|stored, known| {
            let (right, wrong) = judge(stored, known);
            assert_eq!(judge(right, known), (right, None), "{stored:?} {known:?}");
            assert!(wrong.is_none() || right != stored, "{stored:?} {known:?}");
        });
    }

    #[test]
    fn what_is_lost_is_not_taken_back() {
        every(|stored, known| {
            let (right, _) = judge(stored, known);
            if !known.document && (known.named || !known.required) {
                assert!(right == stored || right == BlockState::Superseded && known.superseded == Superseded::Yes);
            }
        });
    }

    #[test]
    fn a_row_is_shown_again_only_if_nothing_can_have_superseded_it() {
        every(|stored, known| {
            let (right, wrong) = judge(stored, known);
            if stored == BlockState::Superseded && right != stored {
                assert!(known.document && known.own.is_live() && known.superseded == Superseded::No && !known.doubt);
                assert_eq!((right, wrong), (known.own, Some(Wrong::Hidden)));
            }
        });
    }

    #[test]
    fn a_mark_counts_where_its_document_is_or_none() {
        let (star, [one, other]) = (Channel::star(), [1 << 40, 1 << 41].map(|document| Revision { document, cas: 0 }));
        let mut marks = Marks::new(64);
        for round in 0..40 {
            for (position, document) in [(70, one), (71, other), (72, other), (73, one)] {
                marks.add(&star, Sequence(position), document, round == 7);
            }
            marks.add(&star, Sequence(75), one, false);
        }
        marks.add(&star, Sequence(200), one, true);
        assert_eq!((marks.highest(), marks.highest_within(0, 2)), (Some(BlockIndex(3)), Some(1)));
        let (mut known, mut found) = (Marks::new(64), BTreeMap::new());
        assert!(known.merge(&marks) && !known.merge(&marks));
        let mut maybe = Marks::new(64);
        maybe.add(&star, Sequence(70), one, false);
        assert!(!known.merge(&maybe), "it must be there already");
        let documents = [(6, one), (7, one), (8, other)].into_iter().collect();
        known.take(BlockIndex(1), &documents, |_, offset, certain| *found.entry(offset).or_default() |= certain);
        let found: Vec<(u32, bool)> = found.into_iter().collect();
        assert_eq!(found, [(6, true), (8, true), (9, true), (11, false)], "7 is another document's");
        assert_eq!(known.highest_within(0, 2), None);
    }

    #[test]
    fn a_mark_does_not_count_where_a_later_revision_of_its_document_is() {
        let revision = |cas| Revision { document: 1 << 40, cas };
        let counts = |marking: &[u64], there: u64| {
            let (mut marks, mut counts) = (Marks::new(64), false);
            marking.iter().for_each(|cas| marks.add(&Channel::star(), Sequence(7), revision(*cas), true));
            let mut known = Marks::new(64);
            assert!(known.merge(&marks) && !known.merge(&marks));
            known.take(BlockIndex(0), &[(7, revision(there))].into_iter().collect(), |_, _, _| counts = true);
            counts
        };
        assert!(counts(&[20], 10) && counts(&[20], 20) && !counts(&[20], 30));
        assert!(counts(&[20, 40], 30) && counts(&[40, 20], 30));
        assert!(counts(&[0], 30) && counts(&[20, 0], 30) && counts(&[20], 0), "a CAS is not known");
    }

    #[test]
    fn of_two_rows_the_newer_marked_one_is_kept() {
        let (star, [a, b, c]) = (Channel::star(), [5, 7, 20].map(Sequence));
        for order in [[a, b, c], [c, b, a], [b, c, a], [a, c, b], [c, a, b], [b, a, c]] {
            let mut newest = Newest::new(Sequence(10), RandomState::new());
            for sequence in order {
                newest.meet(&star, "d".into(), sequence);
            }
            assert_eq!(newest.meet(&star, "d".into(), Sequence(1)), Met::Below { other: b }, "{order:?}");
        }
        let mut newest = Newest::new(Sequence(10), RandomState::new());
        assert_eq!(newest.meet(&star, "d".into(), a), Met::First);
        assert_eq!(newest.meet(&star, "e".into(), b), Met::First);
        assert_eq!(newest.meet(&star, "d".into(), c), Met::Above { other: a });
        assert!(newest.knows(&star, "e".into()) && !newest.knows(&star, "f".into()));
    }
}
