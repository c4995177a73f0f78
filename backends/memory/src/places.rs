//! The places of a channel's blocks.

use rustc_hash::FxHashMap;
use sluicegate_core::BlockIndex;

use crate::value::map_bytes;

/// The table may be so many times as long as the number of blocks in it.
const SPREAD: usize = 4;

/// A shorter table is always allowed.
const SHORT: usize = 16;

const NONE: u32 = u32::MAX;

/// The place of each block, by its index.
///
/// The blocks of a channel mostly lie close together, so that a table costs less than a map, in
/// memory and in cache misses. Blocks far from the others are in a map.
#[derive(Debug, Default)]
pub(crate) struct Places {
    /// The index of the first block of the table.
    first: u64,
    table: Vec<u32>,
    /// The number of blocks in the table.
    used: usize,
    others: FxHashMap<BlockIndex, u32>,
}

impl Places {
    /// Where the table has a block, if it covers it.
    #[inline]
    fn at(&self, index: BlockIndex) -> Option<usize> {
        let at = index.0.wrapping_sub(self.first);
        (at < self.table.len() as u64).then_some(at as usize)
    }

    #[inline]
    pub(crate) fn get(&self, index: BlockIndex) -> Option<usize> {
        match self.at(index).map(|at| self.table[at]) {
            Some(place) if place != NONE => Some(place as usize),
            _ if self.others.is_empty() => None,
            _ => self.others.get(&index).map(|place| *place as usize),
        }
    }

    /// Sets the place of a block.
    ///
    /// # Panics
    /// If the place is `u32::MAX` or above: a channel would have that many blocks.
    pub(crate) fn insert(&mut self, index: BlockIndex, place: usize) {
        let place = u32::try_from(place).ok().filter(|place| *place != NONE).expect("fewer blocks than 2^32");
        if let Some(other) = self.others.get_mut(&index) {
            *other = place;
            return;
        }
        self.cover(index);
        match self.at(index) {
            Some(at) => {
                self.used += usize::from(self.table[at] == NONE);
                self.table[at] = place;
            }
            None => drop(self.others.insert(index, place)),
        }
    }

    /// Makes the table longer so that it has the block, unless it would be too long.
    fn cover(&mut self, index: BlockIndex) {
        let longest = (SPREAD * (self.used + 1)).max(SHORT) as u64;
        if self.table.is_empty() {
            self.first = index.0;
        }
        let end = self.first.saturating_add(self.table.len() as u64);
        if index.0 < self.first && end - index.0 <= longest {
            // Some in reserve: blocks may come in descending order.
            let reserve = (self.table.len() as u64 / 2).min(longest - (end - index.0)).min(index.0);
            let added = self.first - index.0 + reserve;
            self.table.splice(0..0, std::iter::repeat_n(NONE, added as usize));
            self.first -= added;
        } else if index.0 >= end && index.0 - self.first < longest {
            self.table.resize((index.0 - self.first) as usize + 1, NONE);
        }
    }

    pub(crate) fn remove(&mut self, index: BlockIndex) -> Option<usize> {
        match self.at(index).map(|at| &mut self.table[at]) {
            Some(place) if *place != NONE => {
                self.used -= 1;
                Some(std::mem::replace(place, NONE) as usize)
            }
            _ => self.others.remove(&index).map(|place| place as usize),
        }
    }

    /// Bytes of the table and the map.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.table.capacity() * size_of::<u32>() + map_bytes(&self.others)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn places_are_those_of_a_map_in_any_order() {
        let mut random = 7u64;
        let mut next = |below: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) % below
        };
        for round in 0..300 {
            let (mut places, mut model) = (Places::default(), BTreeMap::new());
            let base = [0, 1_000, u64::MAX / 40_000][round % 3];
            for place in 0..200 {
                let index = match next(8) {
                    0 => next(u64::MAX / 40_000),
                    1 => base.saturating_sub(place as u64),
                    _ => base.saturating_sub(next(40)) + next(2) * next(300),
                };
                if next(5) == 0 {
                    assert_eq!(places.remove(BlockIndex(index)), model.remove(&index));
                } else {
                    places.insert(BlockIndex(index), place);
                    model.insert(index, place);
                }
                let near = base.saturating_sub(50)..base.saturating_add(350);
                for index in near.chain(model.keys().copied()) {
                    assert_eq!(places.get(BlockIndex(index)), model.get(&index).copied(), "{index}");
                }
            }
        }
    }

    #[test]
    fn a_table_is_no_longer_than_its_blocks_allow() {
        let mut places = Places::default();
        for n in 0..1_000u64 {
            places.insert(BlockIndex(n * n * 1_000_000), n as usize);
            assert!(places.table.len() <= (SPREAD * (places.used + 1)).max(SHORT));
        }
        let mut descending = Places::default();
        for n in 0..1_000 {
            descending.insert(BlockIndex(5_000 - n), n as usize);
        }
        assert!(descending.others.is_empty() && descending.table.len() <= SPREAD * 1_001);
    }
}
