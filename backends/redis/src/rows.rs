//! Which rows of the blocks that were written lately are live: so that whether a block has become empty need not be asked each time.

use quick_cache::UnitWeighter;
use quick_cache::unsync::{Cache, DefaultLifecycle};
use rustc_hash::FxBuildHasher;
use sluicegate_core::batch::BlockDelta;
use sluicegate_core::block::{Block, BlockState};
use sluicegate_core::{BlockIndex, CacheKey, Channel};

/// Blocks remembered, at most; some 120 bytes each.
const BLOCKS: usize = 65_536;

/// Live rows remembered of a block, at most.
pub(crate) const ROWS: usize = 8;

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
        Rows { has_more: true, has_marks: true, ..Rows::default() }
    }

    pub(crate) fn of(block: &Block) -> Self {
        let mut rows = Rows { has_marks: block.live_count() < block.set_count(), ..Rows::default() };
        let mut live = block.live(0, block.capacity()).map(|(offset, _)| offset);
        rows.live.extend(live.by_ref().take(ROWS));
        rows.has_more = live.next().is_some();
        rows
    }

    /// States were appended, and none was looked at. A row may have been superseded before it came.
    fn appended(&mut self, changes: &[(u32, BlockState)]) -> Live {
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

/// The blocks that were written lately. What it says is a hint: it may take a row for live that another writer superseded.
#[derive(Debug)]
pub(crate) struct KnownRows(Cache<(Channel, BlockIndex), Rows, UnitWeighter, FxBuildHasher>);

impl Default for KnownRows {
    fn default() -> Self {
        KnownRows(Cache::with(BLOCKS, BLOCKS as u64, UnitWeighter, FxBuildHasher, DefaultLifecycle::default()))
    }
}

fn place(delta: &BlockDelta) -> (Channel, BlockIndex) {
    (delta.channel.clone(), delta.index)
}

impl KnownRows {
    /// Whether the block is known to be one.
    pub(crate) fn contains(&self, delta: &BlockDelta) -> bool {
        self.0.peek(&place(delta)).is_some()
    }

    /// The block was found to be one, or not to be there yet.
    pub(crate) fn found(&mut self, delta: &BlockDelta, is_new: bool) {
        self.0.insert(place(delta), if is_new { Rows::default() } else { Rows::unknown() });
    }

    /// The block was read.
    pub(crate) fn read(&mut self, delta: &BlockDelta, block: &Block) {
        self.0.insert(place(delta), Rows::of(block));
    }

    /// The document was written otherwise, if it is a block.
    pub(crate) fn forget(&mut self, key: &CacheKey) {
        if let CacheKey::Block(channel, index) = key {
            self.0.remove(&(channel.clone(), *index));
        }
    }

    /// The delta was written; see [`Rows::raised`].
    pub(crate) fn raised(&mut self, delta: &BlockDelta, live: &[u32], has_more: bool) -> Live {
        match self.0.get_mut(&place(delta)) {
            Some(mut rows) => rows.raised(&delta.changes, live, has_more),
            None => Rows::unknown().raised(&delta.changes, live, has_more),
        }
    }
}

impl KnownRows {
    /// The delta was appended to a block; `found` are its rows before, if it was not known.
    pub(crate) fn appended(&mut self, delta: &BlockDelta, found: Option<Rows>) -> Live {
        if let Some(mut rows) = self.0.get_mut(&place(delta)) {
            return rows.appended(&delta.changes);
        }
        let mut rows = found.unwrap_or_else(Rows::unknown);
        let live = rows.appended(&delta.changes);
        self.0.insert(place(delta), rows);
        live
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use BlockState::{Present, Removal, Superseded};

    #[test]
    fn what_is_appended_is_live_unless_something_may_have_superseded_it() {
        let mut rows = Rows::default();
        assert_eq!(rows.appended(&[(1, Present), (2, Removal)]), Live::Some);
        assert_eq!(rows.appended(&marks(&[1])), Live::Some);
        assert_eq!(rows.appended(&[(3, Present)]), Live::Some, "2 is live");
        assert_eq!(rows.appended(&marks(&[2])), Live::Unknown, "3 may have been superseded before");
        let mut marked = Rows::default();
        assert_eq!(marked.appended(&marks(&[7])), Live::None);
        assert_eq!(marked.appended(&[(7, Present)]), Live::Unknown);
        let mut many = Rows::default();
        let all: Vec<(u32, BlockState)> = (0..20).map(|offset| (offset, Present)).collect();
        assert_eq!(many.appended(&all), Live::Some);
        assert_eq!(many.appended(&marks(&(12..20).collect::<Vec<_>>())), Live::Unknown);
        assert_eq!(Rows::unknown().appended(&[(1, Present)]), Live::Unknown);
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
