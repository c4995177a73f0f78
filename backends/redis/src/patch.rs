//! What turns a stored block into the one that is to be stored, where that is shorter than the
//! block.
//!
//! In a first read every batch changes a few states in most blocks of the star channel.

use bytes::Bytes;
use parking_lot::Mutex;
use rustc_hash::FxHashMap;
use sluicegate_core::CacheKey;
use sluicegate_core::store::Version;

/// Shorter blocks are sent whole.
const WORTH: usize = 1 << 10;

/// The limit for the bytes of blocks that are remembered.
const MAX_BYTES: usize = 32 << 20;

/// How many bytes must agree where old and new bytes go on alike.
const AGREEING: usize = 8;

/// How far from a difference such bytes are looked for.
const WINDOW: usize = 8;

/// Long blocks as they were read, each until it is written over.
#[derive(Debug, Default)]
pub(crate) struct ReadBlocks(Mutex<Blocks>);

#[derive(Debug, Default)]
struct Blocks {
    /// Whether blocks are written over: a reader would keep them for nothing.
    is_writing: bool,
    stored: FxHashMap<(CacheKey, Version), Bytes>,
    bytes: usize,
}

impl ReadBlocks {
    /// Remembers a block that was read, if a block has been written over before.
    pub(crate) fn insert(&self, key: &CacheKey, version: Version, stored: &Bytes) {
        if !(WORTH..=MAX_BYTES).contains(&stored.len()) {
            return;
        }
        let mut blocks = self.0.lock();
        if !blocks.is_writing {
            return;
        }
        if blocks.bytes + stored.len() > MAX_BYTES {
            *blocks = Blocks { is_writing: true, ..Blocks::default() };
        }
        if blocks.stored.insert((key.clone(), version), stored.clone()).is_none() {
            blocks.bytes += stored.len();
        }
    }

    /// Forgets a block that is about to be written over, and returns it.
    pub(crate) fn take(&self, key: &CacheKey, version: Version) -> Option<Bytes> {
        let mut blocks = self.0.lock();
        blocks.is_writing = true;
        if blocks.stored.is_empty() {
            return None;
        }
        let stored = blocks.stored.remove(&(key.clone(), version))?;
        blocks.bytes -= stored.len();
        Some(stored)
    }
}

/// The pieces of which `new` consists: each has some bytes of `old`, and then some that follow
/// them, which may be none. Three numbers of four bytes, highest first, begin a piece: where its
/// bytes of `old` are, how many they are, and how many follow. `None` if that is longer than half
/// of `new`.
pub(crate) fn patch(old: &[u8], new: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    let (mut from, mut to) = (0, 0);
    while to < new.len() {
        let alike = old[from..].iter().zip(&new[to..]).take_while(|(a, b)| a == b).count();
        let literal = to + alike;
        let begin = from;
        (from, to) = (from + alike, literal);
        while to < new.len() {
            match agree(&old[from..], &new[to..]) {
                Some((skipped, written)) => {
                    (from, to) = (from + skipped, to + written);
                    break;
                }
                None => (from, to) = ((from + WINDOW).min(old.len()), (to + WINDOW).min(new.len())),
            }
        }
        for number in [begin, alike, to - literal] {
            out.extend_from_slice(&u32::try_from(number).ok()?.to_be_bytes());
        }
        out.extend_from_slice(&new[literal..to]);
        if out.len() > new.len() / 2 {
            return None;
        }
    }
    Some(out)
}

/// How many bytes of each are to be left out so that both go on alike, if it is few.
fn agree(old: &[u8], new: &[u8]) -> Option<(usize, usize)> {
    let is_alike = |(skipped, written): &(usize, usize)| {
        let [old, new] = [old.get(*skipped..skipped + AGREEING), new.get(*written..written + AGREEING)];
        old.is_some() && old == new
    };
    let replaced = (1..=WINDOW).map(|both| (both, both));
    let others = (0..=WINDOW).flat_map(|skipped| (0..=WINDOW).map(move |written| (skipped, written)));
    replaced.chain(others).find(is_alike)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn patched(old: &[u8], mut patch: &[u8]) -> Vec<u8> {
        let mut new = Vec::new();
        while !patch.is_empty() {
            let number = |at: usize| u32::from_be_bytes(patch[at..at + 4].try_into().unwrap()) as usize;
            let (begin, alike, literal) = (number(0), number(4), number(8));
            new.extend_from_slice(&old[begin..begin + alike]);
            new.extend_from_slice(&patch[12..12 + literal]);
            patch = &patch[12 + literal..];
        }
        new
    }

    proptest! {
        #[test]
        fn a_patch_makes_the_new_bytes_of_the_old_ones(
            old in prop::collection::vec(0u8..4, 0..3_000),
            edits in prop::collection::vec((any::<prop::sample::Index>(), 0usize..4, prop::collection::vec(any::<u8>(), 0..4)), 0..20),
        ) {
            let mut new = old.clone();
            for (place, removed, inserted) in edits {
                let at = place.index(new.len() + 1);
                let end = (at + removed).min(new.len());
                new.splice(at..end, inserted);
            }
            if let Some(patch) = patch(&old, &new) {
                prop_assert!(patch.len() <= new.len() / 2);
                prop_assert_eq!(patched(&old, &patch), new);
            }
        }
    }

    #[test]
    fn a_few_changes_of_a_long_block_are_short() {
        let old: Vec<u8> = (0..10_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let mut new = old.clone();
        for at in (0..40).map(|n| n * 250) {
            new[at] ^= 1;
        }
        assert!(patch(&old, &new).is_some_and(|patch| patch.len() <= 41 * 13 && patched(&old, &patch) == new));
        for at in (0..40).map(|n| n * 240) {
            new.splice(at..at + 1, [1, 2]);
        }
        assert!(patch(&old, &new).is_some_and(|patch| patch.len() <= 81 * 16 && patched(&old, &patch) == new));
        assert_eq!(patch(&old, &old[1..].iter().rev().copied().collect::<Vec<_>>()), None);
    }

    #[test]
    fn short_blocks_are_not_remembered_and_long_ones_until_they_are_written_over() {
        let (blocks, key, version) = (ReadBlocks::default(), CacheKey::Clock, Version(7));
        let long = Bytes::from(vec![0; WORTH]);
        blocks.insert(&key, version, &long);
        assert_eq!(blocks.take(&key, version), None, "nothing had been written over");
        blocks.insert(&key, version, &Bytes::from(vec![0; WORTH - 1]));
        assert_eq!(blocks.take(&key, version), None);
        blocks.insert(&key, version, &long);
        assert_eq!(blocks.take(&key, Version(8)), None);
        assert_eq!((blocks.take(&key, version), blocks.take(&key, version)), (Some(long), None));
        for n in 0..(MAX_BYTES / WORTH) as u64 + 10 {
            blocks.insert(&key, Version(n), &Bytes::from(vec![0; WORTH]));
        }
        assert!(blocks.0.lock().bytes <= MAX_BYTES);
    }
}
