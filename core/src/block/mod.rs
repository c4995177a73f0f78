//! Cache blocks: which sequences of a range are in a channel.
//!
//! Each sequence is in one of four states, two bits. Merging is bitwise OR, so it is commutative, idempotent, associative and
//! monotone: a mark may come before or after what it marks (cache format, "Block codecs").

mod codec;
#[cfg(test)]
mod tests;

use std::fmt;

pub use codec::{Adaptive, BlockCodec, ByteArray, CAPACITIES, InPlace, Log, TwoBit, codec_named};

use crate::key::BlockIndex;
use crate::sequence::{Sequence, SequenceRange};

/// State of one sequence in one channel. States only move up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum BlockState {
    /// Not in the channel, as far as is known.
    Absent = 0,
    /// In the channel.
    Present = 1,
    /// Leaves the channel.
    Removal = 2,
    /// The same document has a later row in the channel.
    Superseded = 3,
}

impl BlockState {
    /// The state of the two low bits.
    pub fn from_bits(bits: u8) -> BlockState {
        match bits & 3 {
            0 => BlockState::Absent,
            1 => BlockState::Present,
            2 => BlockState::Removal,
            _ => BlockState::Superseded,
        }
    }

    /// Whether a reader shows it.
    #[inline]
    pub fn is_live(self) -> bool {
        // One of the two bits.
        (self as u8 ^ self as u8 >> 1) & 1 == 1
    }
}

const PER_WORD: u32 = 32;
const LOW_BITS: u64 = 0x5555_5555_5555_5555;

/// How many states a block keeps as a list: a list costs 4 bytes an entry, words a quarter byte a sequence; and inserting into a
/// long list is slow.
fn longest_list(capacity: u32) -> usize {
    (capacity / 32).clamp(16, 256) as usize
}

/// One cache block in memory: two bits a sequence, or a sorted list while there are few.
#[derive(Clone, PartialEq, Eq)]
pub struct Block {
    capacity: u32,
    /// The number of live sequences.
    live: u32,
    states: States,
}

#[derive(Clone)]
enum States {
    /// `offset << 2 | state`, ascending by offset, absent ones left out.
    Sparse(Vec<u32>),
    /// Two bits an offset.
    Dense(Box<[u64]>),
}

impl PartialEq for States {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (States::Sparse(a), States::Sparse(b)) => a == b,
            (States::Dense(a), States::Dense(b)) => a == b,
            (States::Sparse(list), States::Dense(words)) | (States::Dense(words), States::Sparse(list)) => {
                set_bits(words) == list.len() as u32 && list.iter().all(|item| word_state(words, item >> 2) == (item & 3) as u8)
            }
        }
    }
}

impl Eq for States {}

fn set_bits(words: &[u64]) -> u32 {
    words.iter().map(|w| ((w | w >> 1) & LOW_BITS).count_ones()).sum()
}

fn live_bits(words: &[u64]) -> u32 {
    words.iter().map(|w| ((w ^ w >> 1) & LOW_BITS).count_ones()).sum()
}

fn word_state(words: &[u64], offset: u32) -> u8 {
    (words[(offset / PER_WORD) as usize] >> (2 * (offset % PER_WORD)) & 3) as u8
}

impl Block {
    /// An empty block for `capacity` sequences (at most 2^30).
    pub fn new(capacity: u32) -> Self {
        Block { capacity: capacity.min(1 << 30), live: 0, states: States::Sparse(Vec::new()) }
    }

    /// The block whose states are `words`, two bits an offset from the lowest bit up; as a list if they are few.
    /// What lies outside the capacity is dropped.
    fn from_words(capacity: u32, mut words: Vec<u64>) -> Self {
        let mut block = Block::new(capacity);
        words.resize(block.capacity.div_ceil(PER_WORD) as usize, 0);
        let used = block.capacity % PER_WORD;
        if used > 0
            && let Some(last) = words.last_mut()
        {
            *last &= (1 << (2 * used)) - 1;
        }
        let set = set_bits(&words) as usize;
        block.live = live_bits(&words);
        block.states = States::Dense(words.into_boxed_slice());
        if set <= longest_list(capacity) {
            let mut list = Vec::with_capacity(set);
            list.extend(block.iter().map(|(offset, state)| offset << 2 | state as u32));
            block.states = States::Sparse(list);
        }
        block
    }

    /// How many sequences it covers.
    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    /// The block that holds `sequence`, and the offset in it.
    pub fn locate(sequence: Sequence, capacity: u32) -> (BlockIndex, u32) {
        let capacity = u64::from(capacity.max(1));
        (BlockIndex(sequence.0 / capacity), (sequence.0 % capacity) as u32)
    }

    /// The sequences that block `index` covers.
    pub fn range(index: BlockIndex, capacity: u32) -> SequenceRange {
        let capacity = u64::from(capacity.max(1));
        let first = index.0.saturating_mul(capacity);
        SequenceRange::new(first, first.saturating_add(capacity - 1)).unwrap_or(SequenceRange::one(Sequence(first)))
    }

    /// The state at `offset`; absent outside the capacity.
    pub fn get(&self, offset: u32) -> BlockState {
        if offset >= self.capacity {
            return BlockState::Absent;
        }
        BlockState::from_bits(match &self.states {
            States::Sparse(list) => match list.binary_search_by_key(&offset, |item| item >> 2) {
                Ok(i) => (list[i] & 3) as u8,
                Err(_) => 0,
            },
            States::Dense(words) => word_state(words, offset),
        })
    }

    /// Raises the state at `offset` by OR with `state`; says what it was before. Outside the capacity nothing happens.
    #[inline]
    pub fn raise(&mut self, offset: u32, state: BlockState) -> BlockState {
        if offset >= self.capacity || state == BlockState::Absent {
            return self.get(offset);
        }
        let before = match &mut self.states {
            States::Dense(words) => {
                let word = &mut words[(offset / PER_WORD) as usize];
                let shift = 2 * (offset % PER_WORD);
                let before = (*word >> shift & 3) as u8;
                *word |= (state as u64) << shift;
                before
            }
            States::Sparse(list) => {
                let before = match list.last() {
                    Some(last) if last >> 2 >= offset => match list.binary_search_by_key(&offset, |item| item >> 2) {
                        Ok(i) => {
                            let before = (list[i] & 3) as u8;
                            list[i] |= state as u32;
                            before
                        }
                        Err(i) => {
                            list.insert(i, offset << 2 | state as u32);
                            0
                        }
                    },
                    _ => {
                        list.push(offset << 2 | state as u32);
                        0
                    }
                };
                if list.len() > longest_list(self.capacity) {
                    self.make_dense();
                }
                before
            }
        };
        let (before, after) = (BlockState::from_bits(before), BlockState::from_bits(before | state as u8));
        self.live = self.live + u32::from(after.is_live()) - u32::from(before.is_live());
        before
    }

    /// Reads some of the memory that [`raise`](Self::raise) at `offset` will read, so that it is in
    /// the processor's cache then. Nothing else: for stores that raise states of many blocks.
    #[inline]
    pub fn touch(&self, offset: u32) {
        match &self.states {
            States::Sparse(list) => _ = std::hint::black_box(list.last().copied()),
            States::Dense(words) => _ = std::hint::black_box(words.get((offset / PER_WORD) as usize).copied()),
        }
    }

    #[cold]
    fn make_dense(&mut self) {
        if let States::Sparse(list) = &self.states {
            let mut words = vec![0u64; self.capacity.div_ceil(PER_WORD) as usize].into_boxed_slice();
            for item in list {
                let offset = item >> 2;
                words[(offset / PER_WORD) as usize] |= u64::from(item & 3) << (2 * (offset % PER_WORD));
            }
            self.states = States::Dense(words);
        }
    }

    /// Raises every state by the other block's.
    pub fn merge(&mut self, other: &Block) {
        match (&mut self.states, &other.states) {
            (States::Dense(mine), States::Dense(theirs)) if self.capacity == other.capacity => {
                for (a, b) in mine.iter_mut().zip(theirs.iter()) {
                    *a |= b;
                }
                self.live = live_bits(mine);
            }
            _ => {
                for (offset, state) in other.iter() {
                    self.raise(offset, state);
                }
            }
        }
    }

    /// Every sequence that is not absent, lowest first.
    pub fn iter(&self) -> impl Iterator<Item = (u32, BlockState)> + '_ {
        self.select(0, self.capacity, |word| (word | word >> 1) & LOW_BITS, |state| state != BlockState::Absent)
    }

    /// The live sequences with offset in `from..to`, lowest first.
    pub fn live(&self, from: u32, to: u32) -> impl Iterator<Item = (u32, BlockState)> + '_ {
        self.select(from, to, |word| (word ^ word >> 1) & LOW_BITS, BlockState::is_live)
    }

    fn select(
        &self,
        from: u32,
        to: u32,
        bits: fn(u64) -> u64,
        wanted: fn(BlockState) -> bool,
    ) -> impl Iterator<Item = (u32, BlockState)> + '_ {
        let to = to.min(self.capacity);
        let (list, words): (&[u32], &[u64]) = match &self.states {
            States::Sparse(list) => (list, &[]),
            States::Dense(words) => (&[], words),
        };
        let start = list.partition_point(|item| item >> 2 < from);
        let sparse = list[start..]
            .iter()
            .map(|item| (item >> 2, BlockState::from_bits((item & 3) as u8)))
            .take_while(move |(offset, _)| *offset < to)
            .filter(move |(_, state)| wanted(*state));
        let first_word = ((from / PER_WORD) as usize).min(words.len());
        let last_word = (to.div_ceil(PER_WORD) as usize).clamp(first_word, words.len());
        let dense = words[first_word..last_word].iter().enumerate().flat_map(move |(i, word)| {
            let base = (first_word + i) as u32 * PER_WORD;
            let mut left = bits(*word);
            let word = *word;
            std::iter::from_fn(move || {
                (left != 0).then(|| {
                    let shift = left.trailing_zeros();
                    left &= left - 1;
                    (base + shift / 2, BlockState::from_bits((word >> shift & 3) as u8))
                })
            })
        });
        sparse.chain(dense.filter(move |(offset, _)| (from..to).contains(offset)))
    }

    /// The number of live sequences. It is kept, not counted.
    #[inline]
    pub fn live_count(&self) -> u32 {
        self.live
    }

    /// How many sequences are not absent.
    pub fn set_count(&self) -> u32 {
        match &self.states {
            States::Sparse(list) => list.len() as u32,
            States::Dense(words) => set_bits(words),
        }
    }

    /// Bytes it keeps in memory.
    pub fn memory_bytes(&self) -> usize {
        size_of::<Self>()
            + match &self.states {
                States::Sparse(list) => list.capacity() * 4,
                States::Dense(words) => words.len() * 8,
            }
    }
}

impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Block({} of {}, {} live)", self.set_count(), self.capacity, self.live_count())
    }
}
