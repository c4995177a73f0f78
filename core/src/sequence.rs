//! Sequences, ranges of them, and sets of ranges.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

/// The lowest bit of the slot in a position.
const SLOT_SHIFT: u32 = 56;

/// The lowest position in a slot above 0.
const FIRST_SLOT: u64 = 15 << 60;

/// The number the gateway gave one revision: allocated once, cluster-wide, before the document was written.
///
/// 0 is never allocated; it means "before the first".
///
/// Also a *position*: where an entry is stored. It is the entry's sequence, unless another document
/// is stored there already: a gateway that lost its counter allocates sequences again. Then the
/// upper four bits are set, and the next four are the *slot*.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Sequence(pub u64);

impl Sequence {
    /// Before the first sequence.
    pub const ZERO: Sequence = Sequence(0);
    /// After every sequence.
    pub const MAX: Sequence = Sequence(u64::MAX);

    /// The highest sequence that can be stored. Higher ones are implausible, and refused.
    pub const MAX_NUMBER: Sequence = Sequence(FIRST_SLOT - 1);

    /// The highest number that has slots.
    pub(crate) const MAX_NUMBER_IN_SLOT: Sequence = Sequence((1 << SLOT_SHIFT) - 1);

    /// The limit for positions of one sequence.
    pub const SLOTS: u8 = 16;

    /// The lowest note: notes are above all slots, and nothing is stored at them.
    pub(crate) const FIRST_READMITTED: Sequence = Sequence(u64::MAX << SLOT_SHIFT);

    /// The position of an entry with this sequence in `slot`: the sequence itself in slot 0. Only
    /// sequences below 2^56 have other slots.
    pub fn in_slot(self, slot: u8) -> Option<Sequence> {
        match slot {
            0 => Some(self),
            1..Self::SLOTS if self <= Self::MAX_NUMBER_IN_SLOT => {
                Some(Sequence(FIRST_SLOT | u64::from(slot - 1) << SLOT_SHIFT | self.0))
            }
            _ => None,
        }
    }

    /// The position of the note that this sequence was readmitted, see
    /// [`Sequencer::readmit`](crate::engine::Sequencer::readmit).
    pub(crate) fn readmitted(self) -> Option<Sequence> {
        (self <= Self::MAX_NUMBER_IN_SLOT).then_some(Sequence(Self::FIRST_READMITTED.0 | self.0))
    }

    /// The number of a position.
    pub fn number(self) -> Sequence {
        if self.slot() == 0 { self } else { Sequence(self.0 & Self::MAX_NUMBER_IN_SLOT.0) }
    }

    /// The slot of a position.
    pub fn slot(self) -> u8 {
        if self.0 < FIRST_SLOT { 0 } else { (self.0 >> SLOT_SHIFT & 15) as u8 + 1 }
    }

    /// The order of positions: by sequence, then by slot.
    pub fn rank(self) -> (Sequence, u8) {
        (self.number(), self.slot())
    }

    /// The position as people are shown it: its number, and its slot if it is in one, as
    /// `1 (slot 2)`.
    pub fn shown(self) -> impl fmt::Display {
        fmt::from_fn(move |f| match self.slot() {
            0 => fmt::Display::fmt(&self, f),
            slot => write!(f, "{} (slot {slot})", self.number()),
        })
    }

    /// The following sequence; stays at the maximum.
    #[must_use]
    pub fn next(self) -> Sequence {
        Sequence(self.0.saturating_add(1))
    }

    /// The preceding sequence; stays at zero.
    #[must_use]
    pub fn previous(self) -> Sequence {
        Sequence(self.0.saturating_sub(1))
    }
}

impl From<u64> for Sequence {
    fn from(n: u64) -> Self {
        Sequence(n)
    }
}

impl fmt::Display for Sequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A short list of sequences, in line for the usual few.
pub type SequenceList = SmallVec<[Sequence; 2]>;

/// All sequences from `first` to `last`, both included. Never empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "(u64, u64)", into = "(u64, u64)")]
pub struct SequenceRange {
    first: Sequence,
    last: Sequence,
}

impl SequenceRange {
    /// From `first` to `last`, both included; `None` if that is empty.
    pub fn new(first: impl Into<Sequence>, last: impl Into<Sequence>) -> Option<Self> {
        let (first, last) = (first.into(), last.into());
        (first <= last).then_some(SequenceRange { first, last })
    }

    /// Just `sequence`.
    pub fn one(sequence: Sequence) -> Self {
        SequenceRange { first: sequence, last: sequence }
    }

    /// The lowest sequence in it.
    pub fn first(&self) -> Sequence {
        self.first
    }

    /// The highest sequence in it.
    pub fn last(&self) -> Sequence {
        self.last
    }

    /// How many sequences it holds (the whole of `u64` counts one less than it has).
    pub fn count(&self) -> u64 {
        (self.last.0 - self.first.0).saturating_add(1)
    }

    /// Whether `sequence` is in it.
    pub fn contains(&self, sequence: Sequence) -> bool {
        self.first <= sequence && sequence <= self.last
    }

    /// What is in both.
    pub fn intersect(&self, other: SequenceRange) -> Option<SequenceRange> {
        SequenceRange::new(self.first.max(other.first), self.last.min(other.last))
    }
}

impl fmt::Display for SequenceRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last { write!(f, "{}", self.first) } else { write!(f, "{}-{}", self.first, self.last) }
    }
}

impl SequenceRange {
    /// The range of positions as people are shown it: `3-5`, or `3-5 (slot 2)`.
    pub fn shown(self) -> impl fmt::Display {
        fmt::from_fn(move |f| match (self.first.slot(), self.last.slot()) {
            (0, 0) => fmt::Display::fmt(&self, f),
            (first, last) if first != last => write!(f, "{} to {}", self.first.shown(), self.last.shown()),
            (slot, _) => {
                write!(f, "{} (slot {slot})", SequenceRange { first: self.first.number(), last: self.last.number() })
            }
        })
    }
}

impl TryFrom<(u64, u64)> for SequenceRange {
    type Error = &'static str;
    fn try_from((first, last): (u64, u64)) -> Result<Self, Self::Error> {
        SequenceRange::new(first, last).ok_or("a range ends before it begins")
    }
}

impl From<SequenceRange> for (u64, u64) {
    fn from(range: SequenceRange) -> Self {
        (range.first.0, range.last.0)
    }
}

/// A set of numbers kept as disjoint, non-adjacent ranges. Every operation costs O(log n) in the number of *ranges*,
/// plus the ranges it removes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<(u64, u64)>", into = "Vec<(u64, u64)>")]
pub struct RangeSet {
    ranges: BTreeMap<u64, u64>,
}

impl RangeSet {
    /// The empty set.
    pub fn new() -> Self {
        RangeSet::default()
    }

    /// Whether it is empty.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// How many ranges it is made of.
    pub fn ranges_len(&self) -> usize {
        self.ranges.len()
    }

    /// How many numbers it holds.
    pub fn count(&self) -> u64 {
        self.ranges.iter().fold(0u64, |n, (a, b)| n.saturating_add((b - a).saturating_add(1)))
    }

    /// The range that holds `n`.
    pub fn range_of(&self, n: u64) -> Option<(u64, u64)> {
        let (&first, &last) = self.ranges.range(..=n).next_back()?;
        (n <= last).then_some((first, last))
    }

    /// Whether it holds `n`.
    pub fn contains(&self, n: u64) -> bool {
        self.range_of(n).is_some()
    }

    /// The lowest number in it.
    pub fn first(&self) -> Option<u64> {
        self.ranges.keys().next().copied()
    }

    /// The highest number in it.
    pub fn last(&self) -> Option<u64> {
        self.ranges.values().next_back().copied()
    }

    /// Adds `first..=last`; says whether anything was new. An empty range adds nothing.
    pub fn insert(&mut self, first: u64, last: u64) -> bool {
        if first > last {
            return false;
        }
        let (mut low, mut high) = (first, last);
        if let Some((&a, &b)) = self.ranges.range(..=first).next_back() {
            if b >= last {
                return false;
            }
            if b >= first || b + 1 == first {
                low = a;
            }
        }
        while let Some((&a, &b)) = self.ranges.range(low..=high.saturating_add(1)).next_back() {
            high = high.max(b);
            self.ranges.remove(&a);
            if a == low {
                break;
            }
        }
        self.ranges.insert(low, high);
        true
    }

    /// Takes `first..=last` out; says how many numbers that were in it left.
    pub fn remove(&mut self, first: u64, last: u64) -> u64 {
        if first > last {
            return 0;
        }
        let mut removed = 0u64;
        let mut put_back = None;
        if let Some((&a, &b)) = self.ranges.range(..first).next_back()
            && b >= first
        {
            self.ranges.insert(a, first - 1);
            removed = removed.saturating_add((b.min(last) - first).saturating_add(1));
            if b > last {
                put_back = Some((last + 1, b));
            }
        }
        while let Some((&a, &b)) = self.ranges.range(first..=last).next() {
            self.ranges.remove(&a);
            removed = removed.saturating_add((b.min(last) - a).saturating_add(1));
            if b > last {
                put_back = Some((last + 1, b));
            }
        }
        if let Some((a, b)) = put_back {
            self.ranges.insert(a, b);
        }
        removed
    }

    /// The set, with the numbers of the notes in it, see
    /// [`Sequencer::readmit`](crate::engine::Sequencer::readmit).
    #[cfg(feature = "runtime")]
    pub(crate) fn with_readmitted(&self) -> RangeSet {
        let mut all = self.clone();
        for (first, last) in self.readmitted() {
            all.insert(first, last);
        }
        all
    }

    /// The numbers of its notes.
    #[cfg(feature = "runtime")]
    pub(crate) fn readmitted(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let notes = self.within(Sequence::FIRST_READMITTED.0, Sequence::MAX.0);
        notes.map(|(first, last)| (first & Sequence::MAX_NUMBER_IN_SLOT.0, last & Sequence::MAX_NUMBER_IN_SLOT.0))
    }

    /// The ranges, lowest first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (u64, u64)> + '_ {
        self.ranges.iter().map(|(&a, &b)| (a, b))
    }

    /// The parts of the set inside `first..=last`, lowest first.
    pub fn within(&self, first: u64, last: u64) -> impl DoubleEndedIterator<Item = (u64, u64)> + '_ {
        let from = self.range_of(first).map_or(first, |(a, _)| a);
        self.ranges
            .range(from..=last.max(from))
            .filter(move |(a, b)| **b >= first && **a <= last)
            .map(move |(&a, &b)| (a.max(first), b.min(last)))
    }
}

impl From<Vec<(u64, u64)>> for RangeSet {
    fn from(ranges: Vec<(u64, u64)>) -> Self {
        let mut set = RangeSet::new();
        for (a, b) in ranges {
            set.insert(a, b);
        }
        set
    }
}

impl From<RangeSet> for Vec<(u64, u64)> {
    fn from(set: RangeSet) -> Self {
        set.iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn a_range_set_holds_what_a_plain_set_would(ops in prop::collection::vec((any::<bool>(), 0u64..120, 0u64..20), 0..200)) {
            let mut set = RangeSet::new();
            let mut model = BTreeSet::new();
            for (add, first, length) in ops {
                let last = first + length;
                let before = model.len() as u64;
                if add {
                    model.extend(first..=last);
                    prop_assert_eq!(set.insert(first, last), model.len() as u64 > before);
                } else {
                    model.retain(|n| *n < first || *n > last);
                    prop_assert_eq!(set.remove(first, last), before - model.len() as u64);
                }
                let all: Vec<u64> = set.iter().flat_map(|(a, b)| a..=b).collect();
                prop_assert_eq!(&all, &model.iter().copied().collect::<Vec<_>>());
                let inside: Vec<u64> = set.within(first, last).flat_map(|(a, b)| a..=b).collect();
                prop_assert_eq!(inside, model.range(first..=last).copied().collect::<Vec<_>>());
                prop_assert!(set.iter().zip(set.iter().skip(1)).all(|((_, b), (a, _))| b + 1 < a));
            }
        }
    }

    #[test]
    fn a_position_tells_number_and_slot() {
        for number in [0, 1, 77, (1 << 56) - 1] {
            for slot in 0..Sequence::SLOTS {
                let position = Sequence(number).in_slot(slot).unwrap();
                assert_eq!((position.number(), position.slot()), (Sequence(number), slot));
                assert!(slot > 0 || position == Sequence(number));
                let shown = if slot == 0 { number.to_string() } else { format!("{number} (slot {slot})") };
                assert_eq!(position.shown().to_string(), shown);
            }
            assert_eq!(Sequence(number).in_slot(Sequence::SLOTS), None);
        }
        for number in [1 << 56, 1 << 63, Sequence::MAX_NUMBER.0] {
            assert_eq!((Sequence(number).number(), Sequence(number).slot()), (Sequence(number), 0));
            assert_eq!((Sequence(number).in_slot(0), Sequence(number).in_slot(1)), (Some(Sequence(number)), None));
        }
    }

    #[test]
    fn a_range_of_positions_tells_its_slot_once() {
        let range = |first: u64, last: u64, slots: (u8, u8)| {
            let at = |number, slot| Sequence(number).in_slot(slot).unwrap();
            SequenceRange::new(at(first, slots.0), at(last, slots.1)).unwrap().shown().to_string()
        };
        assert_eq!([range(3, 5, (0, 0)), range(3, 5, (2, 2)), range(3, 3, (2, 2))], ["3-5", "3-5 (slot 2)", "3 (slot 2)"]);
        assert_eq!(range(5, 3, (0, 2)), "5 to 3 (slot 2)");
    }

    #[test]
    fn the_top_of_u64_is_an_ordinary_number() {
        let mut set = RangeSet::new();
        assert!(set.insert(u64::MAX, u64::MAX));
        assert!(set.insert(0, u64::MAX));
        assert_eq!(set.remove(5, u64::MAX), u64::MAX - 4);
        assert_eq!(set.iter().collect::<Vec<_>>(), [(0, 4)]);
    }
}
