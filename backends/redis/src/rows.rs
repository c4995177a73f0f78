//! What is remembered of blocks, so that a block need not be read before or after it is written.

use quick_cache::UnitWeighter;
use quick_cache::unsync::{Cache, DefaultLifecycle};
use rustc_hash::FxBuildHasher;
use sluicegate_core::batch::BlockDelta;
use sluicegate_core::block::{Block, BlockState};
use sluicegate_core::channel::ChannelMap;
use sluicegate_core::sequence::RangeSet;
use sluicegate_core::{BlockIndex, CacheKey, Channel};

/// The limit for blocks of which rows are remembered; some 120 bytes each.
const BLOCKS: usize = 65_536;

/// The limit for runs of unmarked blocks; some 20 bytes each, and 200 more for each channel.
const RUNS: usize = 1 << 18;

/// The limit for live rows remembered of a block.
pub(crate) const ROWS: usize = 8;

/// Live rows are looked for in so many sequences of a block at a time.
const WINDOW: u32 = 1_024;

/// Some live rows of one block.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rows {
    live: smallvec::SmallVec<[u32; ROWS]>,
    /// Whether there are others.
    has_more: bool,
    /// Whether some states may be superseded.
    has_marks: bool,
}

/// What is known of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Live {
    /// At least one row is live.
    Some,
    /// None is.
    None,
    /// Only the block itself can tell.
    Unknown,
}

impl Rows {
    /// Of a block of which nothing is known but that it is one.
    fn unknown() -> Self {
        Rows { has_marks: true, ..Rows::unmarked() }
    }

    /// Of a block of which it is known that nothing in it is superseded.
    fn unmarked() -> Self {
        Rows { has_more: true, ..Rows::default() }
    }

    pub(crate) fn of(block: &Block) -> Self {
        let mut rows = Rows { has_marks: block.live_count() < block.set_count(), ..Rows::default() };
        // The highest: those of the lowest sequences are superseded first.
        let mut from = block.capacity();
        while rows.live.len() < ROWS && from > 0 {
            let to = from;
            from = to.saturating_sub(WINDOW);
            let live: Vec<u32> = block.live(from, to).map(|(offset, _)| offset).collect();
            rows.live.extend(live.into_iter().rev().take(ROWS - rows.live.len()));
        }
        rows.has_more = block.live_count() as usize > rows.live.len();
        rows
    }

    /// States were appended, and none was looked at. A row may have been superseded before it came.
    fn record_append(&mut self, changes: &[(u32, BlockState)]) -> Live {
        let rows = || changes.iter().rev().filter(|(_, state)| state.is_live()).map(|(offset, _)| *offset);
        let known = if self.has_marks || has_marks(changes) { 0 } else { ROWS };
        let live: smallvec::SmallVec<[u32; ROWS]> = rows().take(known).collect();
        self.raised(changes, &live, rows().nth(known).is_some())
    }

    /// States were raised; `live` are those of its rows that were looked at and found live, and it has others that were not if `has_more`.
    fn raised(&mut self, changes: &[(u32, BlockState)], live: &[u32], has_more: bool) -> Live {
        self.has_more |= has_more;
        self.has_marks |= has_marks(changes);
        for offset in live {
            if !self.live.contains(offset) {
                if self.live.len() < ROWS { self.live.push(*offset) } else { self.has_more = true }
            }
        }
        if !self.live.is_empty() {
            let superseded = |offset: &u32| changes.iter().any(|(at, state)| at == offset && *state == BlockState::Superseded);
            self.live.retain(|offset| !superseded(offset));
        }
        match (self.live.is_empty(), self.has_more) {
            (false, _) => Live::Some,
            (true, false) => Live::None,
            (true, true) => Live::Unknown,
        }
    }
}

fn has_marks(changes: &[(u32, BlockState)]) -> bool {
    changes.iter().any(|(_, state)| *state == BlockState::Superseded)
}

/// Blocks in which nothing is superseded, in runs.
///
/// A cold start writes to all blocks of a bucket in turn, many more than [`KnownRows`] remembers
/// the rows of, and supersedes little.
#[derive(Debug, Default)]
struct Unmarked {
    blocks: ChannelMap<RangeSet>,
    /// The number of runs in all channels.
    runs: usize,
}

impl Unmarked {
    fn contains(&self, (channel, index): &(Channel, BlockIndex)) -> bool {
        self.blocks.get(channel).is_some_and(|blocks| blocks.contains(index.0))
    }

    fn insert(&mut self, place: &(Channel, BlockIndex), limit: usize) {
        if self.contains(place) {
            return;
        }
        let (channel, index) = place;
        if self.runs >= limit {
            // They are read again.
            *self = Unmarked::default();
        }
        let blocks = self.blocks.entry(channel.clone()).or_default();
        let before = blocks.ranges_len();
        blocks.insert(index.0, index.0);
        self.runs = self.runs + blocks.ranges_len() - before;
    }

    fn remove(&mut self, (channel, index): &(Channel, BlockIndex)) {
        let Some(blocks) = self.blocks.get_mut(channel) else { return };
        let before = blocks.ranges_len();
        blocks.remove(index.0, index.0);
        self.runs = self.runs + blocks.ranges_len() - before;
        if blocks.is_empty() {
            self.blocks.remove(channel);
        }
    }
}

/// What is known of the blocks of a cache. It is a hint: it may take a row for live that another
/// writer has superseded, or a commit while the block was being read. Then nobody is told that the
/// block is empty, and its channel's directory goes on to list it.
#[derive(Debug)]
pub(crate) struct KnownRows {
    /// Of the blocks that were written lately.
    rows: Cache<(Channel, BlockIndex), Rows, UnitWeighter, FxBuildHasher>,
    unmarked: Unmarked,
}

impl Default for KnownRows {
    fn default() -> Self {
        let rows = Cache::with(BLOCKS, BLOCKS as u64, UnitWeighter, FxBuildHasher, DefaultLifecycle::default());
        KnownRows { rows, unmarked: Unmarked::default() }
    }
}

fn place(delta: &BlockDelta) -> (Channel, BlockIndex) {
    (delta.channel.clone(), delta.index)
}

impl KnownRows {
    /// Whether the block is known to be one.
    pub(crate) fn contains(&self, delta: &BlockDelta) -> bool {
        let place = place(delta);
        self.unmarked.contains(&place) || self.rows.peek(&place).is_some()
    }

    /// The block was found to be one, or not to be there yet.
    pub(crate) fn found(&mut self, delta: &BlockDelta, is_new: bool) {
        self.insert(place(delta), if is_new { Rows::default() } else { Rows::unknown() });
    }

    /// The block was read.
    pub(crate) fn read(&mut self, delta: &BlockDelta, block: &Block) {
        self.insert(place(delta), Rows::of(block));
    }

    fn insert(&mut self, place: (Channel, BlockIndex), rows: Rows) {
        if rows.has_marks {
            self.unmarked.remove(&place);
        } else {
            self.unmarked.insert(&place, RUNS);
        }
        self.rows.insert(place, rows);
    }

    /// The document was written otherwise, if it is a block.
    pub(crate) fn forget(&mut self, key: &CacheKey) {
        if let CacheKey::Block(channel, index) = key {
            let place = (channel.clone(), *index);
            self.unmarked.remove(&place);
            self.rows.remove(&place);
        }
    }

    /// The delta was written; see [`Rows::raised`].
    pub(crate) fn raised(&mut self, delta: &BlockDelta, live: &[u32], has_more: bool) -> Live {
        let place = place(delta);
        if has_marks(&delta.changes) {
            self.unmarked.remove(&place);
        }
        match self.rows.get_mut(&place) {
            Some(mut rows) => rows.raised(&delta.changes, live, has_more),
            None => Rows::unknown().raised(&delta.changes, live, has_more),
        }
    }

    /// The delta was appended to a block.
    pub(crate) fn record_append(&mut self, delta: &BlockDelta) -> Live {
        let place = place(delta);
        let has_marks = has_marks(&delta.changes);
        if let Some(mut rows) = self.rows.get_mut(&place) {
            let live = rows.record_append(&delta.changes);
            drop(rows);
            if has_marks {
                self.unmarked.remove(&place);
            }
            return live;
        }
        // Its rows are not remembered again. In a cold start, each block is written to so seldom
        // that they would be forgotten before they are used.
        if !has_marks && self.unmarked.contains(&place) {
            return Rows::unmarked().record_append(&delta.changes);
        }
        self.unmarked.remove(&place);
        Live::Unknown
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use BlockState::{Present, Removal, Superseded};

    #[test]
    fn what_is_appended_is_live_unless_something_may_have_superseded_it() {
        let mut rows = Rows::default();
        assert_eq!(rows.record_append(&[(1, Present), (2, Removal)]), Live::Some);
        assert_eq!(rows.record_append(&marks(&[1])), Live::Some);
        assert_eq!(rows.record_append(&[(3, Present)]), Live::Some, "2 is live");
        assert_eq!(rows.record_append(&marks(&[2])), Live::Unknown, "3 may have been superseded before");
        let mut marked = Rows::default();
        assert_eq!(marked.record_append(&marks(&[7])), Live::None);
        assert_eq!(marked.record_append(&[(7, Present)]), Live::Unknown);
        let mut many = Rows::default();
        let all: Vec<(u32, BlockState)> = (0..20).map(|offset| (offset, Present)).collect();
        assert_eq!(many.record_append(&all), Live::Some);
        assert_eq!(many.record_append(&marks(&(12..20).collect::<Vec<_>>())), Live::Unknown);
        assert_eq!(Rows::unknown().record_append(&[(1, Present)]), Live::Unknown);
    }

    #[test]
    fn a_block_without_marks_is_known_when_its_rows_are_forgotten() {
        let mut known = KnownRows::default();
        let one = delta(vec![(1, Present)]);
        assert_eq!(known.record_append(&one), Live::Unknown);
        known.found(&one, true);
        assert_eq!(known.record_append(&one), Live::Some);
        known.rows.clear();
        assert!(known.contains(&one));
        assert_eq!(known.record_append(&delta(vec![(2, Removal)])), Live::Some);
        assert_eq!(known.record_append(&delta(marks(&[2]))), Live::Unknown, "1 is not remembered");
        known.rows.clear();
        assert!(!known.contains(&one), "it has marks");
        known.read(&one, &Block::new(10));
        known.rows.clear();
        known.forget(&CacheKey::Block(one.channel.clone(), one.index));
        assert!(!known.contains(&one));
    }

    #[test]
    fn runs_of_unmarked_blocks_are_limited() {
        let mut unmarked = Unmarked::default();
        let place = |name: &str, index| (Channel::new(name).unwrap(), BlockIndex(index));
        for index in [0, 2, 0, 1, 9] {
            unmarked.insert(&place("a", index), 2);
        }
        assert_eq!(unmarked.runs, 2, "0 and 2 were forgotten when 1 came");
        unmarked.insert(&place("b", 4), 2);
        unmarked.remove(&place("a", 9));
        assert_eq!((unmarked.runs, unmarked.blocks.len()), (1, 1));
        assert!(unmarked.contains(&place("b", 4)) && !unmarked.contains(&place("b", 5)));
    }

    fn marks(offsets: &[u32]) -> Vec<(u32, BlockState)> {
        offsets.iter().map(|offset| (*offset, Superseded)).collect()
    }

    fn delta(changes: Vec<(u32, BlockState)>) -> BlockDelta {
        BlockDelta::new(Channel::new("a").unwrap(), BlockIndex(3), changes)
    }

    #[test]
    fn a_block_seen_from_its_beginning_is_known_to_be_empty() {
        let mut rows = Rows::default();
        assert_eq!(rows.raised(&[(1, Present), (2, Present)], &[1, 2], false), Live::Some);
        assert_eq!(rows.raised(&marks(&[1, 7]), &[], false), Live::Some);
        assert_eq!(rows.raised(&[(1, Present)], &[], false), Live::Some, "it came again, and was found superseded");
        assert_eq!(rows.raised(&marks(&[2]), &[], false), Live::None);
    }

    #[test]
    fn a_block_with_more_rows_than_are_remembered_is_asked_when_those_are_gone() {
        let mut rows = Rows::default();
        let live: Vec<u32> = (0..ROWS as u32).collect();
        assert_eq!(rows.raised(&[], &live, false), Live::Some);
        assert_eq!(rows.raised(&[(100, Present)], &[100], false), Live::Some);
        assert_eq!(rows.raised(&marks(&live), &[], false), Live::Unknown);
        let mut block = Block::new(200);
        block.raise(100, Present);
        rows = Rows::of(&block);
        assert_eq!(rows.raised(&marks(&[100]), &[], false), Live::None);
    }

    #[test]
    fn rows_that_were_not_looked_at_leave_doubt() {
        let mut rows = Rows::default();
        assert_eq!(rows.raised(&[(1, Present), (2, Present)], &[2], true), Live::Some);
        assert_eq!(rows.raised(&marks(&[2]), &[], false), Live::Unknown);
    }

    #[test]
    fn nothing_is_known_of_a_block_that_was_there_before_or_was_forgotten() {
        let mut known = KnownRows::default();
        let mark = delta(marks(&[5]));
        assert!(!known.contains(&mark));
        assert_eq!(known.raised(&mark, &[], false), Live::Unknown);
        known.found(&mark, false);
        assert!(known.contains(&mark));
        assert_eq!(known.raised(&mark, &[], false), Live::Unknown);
        known.read(&mark, &Block::new(10));
        assert_eq!(known.raised(&mark, &[], false), Live::None);
        known.forget(&CacheKey::Block(mark.channel.clone(), mark.index));
        assert_eq!(known.raised(&mark, &[], false), Live::Unknown);
        known.found(&mark, true);
        assert_eq!(known.raised(&mark, &[], false), Live::None);
    }
}
