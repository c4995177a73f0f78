//! The sequences that have arrived while the sequencer holds.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use roaring::RoaringTreemap;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::sequence::SequenceRange;

/// A set of sequences, as a compressed bitmap: a bit or less for each sequence between the lowest
/// and the highest, however they are spread.
///
/// Its stored form is the portable Roaring format of 64-bit sets, in base64.
#[derive(Clone, Default, PartialEq)]
pub struct ArrivedSet {
    set: RoaringTreemap,
    len: u64,
}

impl Eq for ArrivedSet {}

impl fmt::Debug for ArrivedSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.ranges()).finish()
    }
}

impl ArrivedSet {
    /// Whether there are none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many there are.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = u64> + '_ {
        self.set.iter()
    }

    /// The highest.
    pub fn last(&self) -> Option<u64> {
        self.set.max()
    }

    /// The highest up to `n`.
    pub fn last_up_to(&self, n: u64) -> Option<u64> {
        self.set.select(self.set.rank(n).checked_sub(1)?)
    }

    /// The one below which, from the highest on, there are `count` others.
    pub fn nth_from_last(&self, count: u64) -> Option<u64> {
        self.set.select(self.len.checked_sub(1)?.checked_sub(count)?)
    }

    /// Whether it has `n`.
    #[inline]
    pub fn contains(&self, n: u64) -> bool {
        self.len > 0 && self.set.contains(n)
    }

    /// How many are at `n` or above.
    pub fn count_from(&self, n: u64) -> u64 {
        n.checked_sub(1).map_or(self.len, |below| self.len - self.set.rank(below))
    }

    /// Adds `n`. Returns whether it is new.
    #[inline]
    pub fn insert(&mut self, n: u64) -> bool {
        let is_new = self.set.insert(n);
        self.len += u64::from(is_new);
        is_new
    }

    /// Removes `first..=last`. Returns how many were there.
    pub fn remove(&mut self, first: u64, last: u64) -> u64 {
        if self.is_empty() {
            return 0;
        }
        let removed = self.set.remove_range(first..=last);
        self.len -= removed;
        removed
    }

    /// Removes the consecutive sequences from `first` on, which must be the lowest if it is there.
    /// Returns the first that is not there.
    pub fn remove_run(&mut self, first: u64) -> u64 {
        if !self.contains(first) {
            return first;
        }
        let mut next = first;
        for n in &self.set {
            if n != next {
                break;
            }
            next += 1;
        }
        self.remove(first, next - 1);
        next
    }

    /// The ranges of consecutive sequences, in order.
    pub fn ranges(&self) -> impl Iterator<Item = SequenceRange> + '_ {
        self.ranges_within(0, u64::MAX)
    }

    /// The parts of `first..=last` that are there, in order.
    pub fn ranges_within(&self, first: u64, last: u64) -> impl Iterator<Item = SequenceRange> + '_ {
        let mut numbers = self.set.iter();
        numbers.advance_to(first);
        let mut numbers = numbers.take_while(move |n| *n <= last).peekable();
        std::iter::from_fn(move || {
            let first = numbers.next()?;
            let mut last = first;
            while let Some(next) = numbers.next_if(|n| *n == last + 1) {
                last = next;
            }
            SequenceRange::new(first, last)
        })
    }

    /// Bytes of its stored form before base64, which are about what it keeps in memory. 0 if it is
    /// empty: then it is not stored.
    pub fn stored_bytes(&self) -> usize {
        if self.is_empty() { 0 } else { self.set.serialized_size() }
    }
}

impl Extend<u64> for ArrivedSet {
    fn extend<I: IntoIterator<Item = u64>>(&mut self, numbers: I) {
        numbers.into_iter().for_each(|n| _ = self.insert(n));
    }
}

impl FromIterator<u64> for ArrivedSet {
    fn from_iter<I: IntoIterator<Item = u64>>(numbers: I) -> Self {
        let mut set = ArrivedSet::default();
        set.extend(numbers);
        set
    }
}

impl Serialize for ArrivedSet {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut bytes = Vec::with_capacity(self.stored_bytes());
        self.set.serialize_into(&mut bytes).map_err(serde::ser::Error::custom)?;
        serializer.serialize_str(&STANDARD.encode(bytes))
    }
}

impl<'de> Deserialize<'de> for ArrivedSet {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        let bytes = STANDARD.decode(text.as_bytes()).map_err(de::Error::custom)?;
        let set = RoaringTreemap::deserialize_from(&bytes[..]).map_err(de::Error::custom)?;
        let len = set.len();
        Ok(ArrivedSet { set, len })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(numbers: &[u64]) -> ArrivedSet {
        let mut set = ArrivedSet::default();
        set.extend(numbers.iter().copied());
        set
    }

    fn ranges(ranges: impl Iterator<Item = SequenceRange>) -> Vec<(u64, u64)> {
        ranges.map(|range| (range.first().0, range.last().0)).collect()
    }

    #[test]
    fn ranges_are_those_of_consecutive_sequences() {
        let set = set(&[3, 4, 5, 9, 1 << 32, (1 << 32) + 1, (1 << 32) - 1]);
        let high = ((1 << 32) - 1, (1 << 32) + 1);
        assert_eq!(ranges(set.ranges()), [(3, 5), (9, 9), high]);
        assert_eq!(ranges(set.ranges_within(4, 8)), [(4, 5)]);
        assert_eq!(ranges(set.ranges_within(5, 1 << 32)), [(5, 5), (9, 9), (high.0, 1 << 32)]);
        assert_eq!([0, 4, 6, 10, 1 << 33].map(|n| set.count_from(n)), [7, 6, 4, 3, 0]);
        assert_eq!(
            [2, 3, 8, 1 << 32, u64::MAX].map(|n| set.last_up_to(n)),
            [None, Some(3), Some(5), Some(1 << 32), Some(high.1)]
        );
        assert_eq!([0, 2, 3, 6, 7].map(|n| set.nth_from_last(n)), [Some(high.1), Some(high.0), Some(9), Some(3), None]);
    }

    #[test]
    fn a_run_is_removed_from_its_first_sequence_on() {
        let mut set = set(&[3, 4, 5, 9]);
        assert_eq!((set.remove_run(2), set.remove_run(3), set.len()), (2, 6, 1));
        assert_eq!((set.remove_run(9), set.is_empty()), (10, true));
    }

    #[test]
    fn the_stored_form_reads_back_and_has_a_bit_a_sequence() {
        for numbers in [vec![], vec![7], (1..100_000).filter(|n| n % 3 > 0).collect(), vec![1, u64::MAX]] {
            let set = set(&numbers);
            let text = serde_json::to_string(&set).unwrap();
            assert_eq!(serde_json::from_str::<ArrivedSet>(&text).unwrap(), set);
            assert!(text.len() < 2_000 + 100_000 / 8 * 4 / 3 * 2, "{}", text.len());
        }
        for damaged in ["1", "\"?\"", "\"AAAA\"", "\"AQAAAAAAAAAAAAAA\"", "\"//////////8=\""] {
            assert!(serde_json::from_str::<ArrivedSet>(damaged).is_err(), "{damaged}");
        }
    }
}
