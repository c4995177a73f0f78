//! One byte a sequence.

use bytes::Bytes;

use super::super::{Block, PER_WORD, States};
use super::{BlockCodec, InPlace, checked_capacity};
use crate::error::{Error, Result};

/// The seed format: exactly as many bytes as the block covers sequences, one byte each, of which the low two bits are the state
/// and the others zero.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ByteArray {
    capacity: u32,
}

/// Eight states, a byte each.
const STATES: u64 = 0x0303_0303_0303_0303;
/// How many bytes the states of a word take.
const BYTES: usize = PER_WORD as usize;

impl ByteArray {
    /// Its name in the `Meta` document.
    pub const NAME: &str = "bytes";

    /// One that covers `capacity` sequences a block.
    ///
    /// # Errors
    /// `ConfigInvalid` outside [`CAPACITIES`](super::CAPACITIES).
    pub fn with_capacity(capacity: u32) -> Result<Self> {
        Ok(ByteArray { capacity: checked_capacity(Self::NAME, capacity)? })
    }
}

impl Default for ByteArray {
    fn default() -> Self {
        ByteArray { capacity: 10_000 }
    }
}

/// The lowest 16 bits as eight bytes of two bits.
fn spread(pairs: u64) -> u64 {
    let pairs = pairs & 0xffff;
    let pairs = (pairs | pairs << 24) & 0x0000_00ff_0000_00ff;
    let pairs = (pairs | pairs << 12) & 0x000f_000f_000f_000f;
    (pairs | pairs << 6) & STATES
}

/// The inverse of [`spread`].
fn gather(bytes: u64) -> u64 {
    let pairs = (bytes | bytes >> 6) & 0x000f_000f_000f_000f;
    let pairs = (pairs | pairs >> 12) & 0x0000_00ff_0000_00ff;
    (pairs | pairs >> 24) & 0xffff
}

/// The states of a word, a byte each.
#[inline]
fn bytes_of(word: u64) -> [u8; BYTES] {
    let mut out = [0; BYTES];
    for (i, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        *out = spread(word >> (16 * i)).to_le_bytes();
    }
    out
}

/// The inverse of [`bytes_of`]; adds the bits that are part of no state to `foreign`.
#[inline]
fn word_of(bytes: &[u8; BYTES], foreign: &mut u64) -> u64 {
    let mut word = 0;
    for (i, eight) in bytes.as_chunks::<8>().0.iter().enumerate() {
        let eight = u64::from_le_bytes(*eight);
        *foreign |= eight & !STATES;
        word |= gather(eight & STATES) << (16 * i);
    }
    word
}

impl BlockCodec for ByteArray {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn capacity(&self) -> u32 {
        self.capacity
    }

    fn encode(&self, block: &Block) -> Bytes {
        debug_assert_eq!(block.capacity(), self.capacity, "a block of another codec");
        let mut out = vec![0u8; self.capacity as usize];
        match &block.states {
            States::Sparse(list) => {
                for item in list {
                    if let Some(byte) = out.get_mut((item >> 2) as usize) {
                        *byte = (item & 3) as u8;
                    }
                }
            }
            States::Dense(words) => {
                let (whole, rest) = out.as_chunks_mut::<BYTES>();
                for (out, word) in whole.iter_mut().zip(words) {
                    *out = bytes_of(*word);
                }
                if let Some(word) = words.get(whole.len()) {
                    rest.copy_from_slice(&bytes_of(*word)[..rest.len()]);
                }
            }
        }
        Bytes::from(out)
    }

    fn decode(&self, bytes: &[u8]) -> Result<Block> {
        if bytes.len() != self.capacity as usize {
            return Err(Error::corrupt(format!("a block has {} bytes instead of {}", bytes.len(), self.capacity))
                .with_context("codec", Self::NAME));
        }
        let mut foreign = 0u64;
        let (whole, rest) = bytes.as_chunks::<BYTES>();
        let mut words = Vec::with_capacity(bytes.len().div_ceil(BYTES));
        words.extend(whole.iter().map(|bytes| word_of(bytes, &mut foreign)));
        if !rest.is_empty() {
            let mut padded = [0; BYTES];
            padded[..rest.len()].copy_from_slice(rest);
            words.push(word_of(&padded, &mut foreign));
        }
        if foreign != 0 {
            return Err(Error::corrupt("a block has a byte that is no state").with_context("codec", Self::NAME));
        }
        Ok(Block::from_words(self.capacity, words))
    }

    fn in_place(&self) -> Option<InPlace> {
        Some(InPlace::Bytes)
    }
}
