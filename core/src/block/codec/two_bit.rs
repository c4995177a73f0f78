//! Two bits a sequence.

use bytes::Bytes;

use super::super::{Block, States};
use super::{BlockCodec, InPlace, checked_capacity};
use crate::error::{Error, Result};

/// Two bits a sequence, four sequences a byte, the first in the highest bits. Zero bytes at the end are left out.
///
/// Where bits are counted from the highest bit of the first byte, as Redis does, the state of offset `n` is bits `2n` (its value 2) and
/// `2n + 1` (its value 1). So `SETBIT key 2n+1 1` raises to present, `SETBIT key 2n 1` to removal, both to superseded, and
/// `BITFIELD key GET u2 #n` reads the state; a value that was made so is a valid block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TwoBit {
    capacity: u32,
}

impl TwoBit {
    /// Its name in the `Meta` document.
    pub const NAME: &str = "two-bit";

    /// One that covers `capacity` sequences a block.
    ///
    /// # Errors
    /// `ConfigInvalid` outside [`CAPACITIES`](super::CAPACITIES).
    pub fn with_capacity(capacity: u32) -> Result<Self> {
        Ok(TwoBit { capacity: checked_capacity(Self::NAME, capacity)? })
    }
}

impl Default for TwoBit {
    fn default() -> Self {
        TwoBit { capacity: 40_000 }
    }
}

/// Turns the order of the four pairs in each byte around.
fn turn(word: u64) -> u64 {
    const NIBBLES: u64 = 0x0f0f_0f0f_0f0f_0f0f;
    const PAIRS: u64 = 0x3333_3333_3333_3333;
    let word = (word >> 4 & NIBBLES) | (word & NIBBLES) << 4;
    (word >> 2 & PAIRS) | (word & PAIRS) << 2
}

/// Bytes that the bitmap of `block` takes.
pub(super) fn bitmap_len(block: &Block) -> usize {
    let last = match &block.states {
        States::Sparse(list) => list.last().map(|item| item >> 2),
        States::Dense(words) => {
            words.iter().rposition(|word| *word != 0).map(|i| i as u32 * super::super::PER_WORD + words[i].ilog2() / 2)
        }
    };
    last.map_or(0, |last| last as usize / 4 + 1)
}

/// Appends the bitmap of `block`, which takes `length` bytes.
pub(super) fn push_bitmap(block: &Block, length: usize, out: &mut Vec<u8>) {
    let start = out.len();
    out.resize(start + length, 0);
    let out = &mut out[start..];
    match &block.states {
        States::Sparse(list) => {
            for item in list {
                let offset = item >> 2;
                if let Some(byte) = out.get_mut(offset as usize / 4) {
                    *byte |= ((item & 3) as u8) << (6 - 2 * (offset % 4));
                }
            }
        }
        States::Dense(words) => {
            let (whole, rest) = out.as_chunks_mut::<8>();
            for (out, word) in whole.iter_mut().zip(words) {
                *out = turn(*word).to_le_bytes();
            }
            if let Some(word) = words.get(whole.len()) {
                rest.copy_from_slice(&turn(*word).to_le_bytes()[..rest.len()]);
            }
        }
    }
}

/// The block whose bitmap `bytes` is; says what is wrong with it otherwise.
pub(super) fn read_bitmap(capacity: u32, bytes: &[u8]) -> Result<Block, String> {
    let longest = capacity.div_ceil(4) as usize;
    if bytes.len() > longest {
        return Err(format!("a bitmap has {} bytes, more than {longest}", bytes.len()));
    }
    let used = capacity as usize % 4;
    if bytes.len() == longest && used > 0 && bytes[longest - 1] & (0xff >> (2 * used)) != 0 {
        return Err(format!("a bitmap has a state outside the {capacity} sequences of its block"));
    }
    let (whole, rest) = bytes.as_chunks::<8>();
    let mut words = Vec::with_capacity(longest.div_ceil(8));
    words.extend(whole.iter().map(|bytes| turn(u64::from_le_bytes(*bytes))));
    if !rest.is_empty() {
        let mut padded = [0; 8];
        padded[..rest.len()].copy_from_slice(rest);
        words.push(turn(u64::from_le_bytes(padded)));
    }
    Ok(Block::from_words(capacity, words))
}

impl BlockCodec for TwoBit {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn capacity(&self) -> u32 {
        self.capacity
    }

    fn encode(&self, block: &Block) -> Bytes {
        debug_assert_eq!(block.capacity(), self.capacity, "a block of another codec");
        let mut out = Vec::new();
        push_bitmap(block, bitmap_len(block), &mut out);
        Bytes::from(out)
    }

    /// Takes a value with zero bytes at its end, too: a server may have made room ahead.
    fn decode(&self, bytes: &[u8]) -> Result<Block> {
        read_bitmap(self.capacity, bytes).map_err(|what| Error::corrupt(what).with_context("codec", Self::NAME))
    }

    fn in_place(&self) -> Option<InPlace> {
        Some(InPlace::Pairs)
    }
}
