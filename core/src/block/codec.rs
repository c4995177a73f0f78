//! How a block is written down.

mod adaptive;
mod byte_array;
mod log;
mod two_bit;

use std::fmt;
use std::ops::RangeInclusive;
use std::sync::Arc;

use bytes::Bytes;

pub use adaptive::Adaptive;
pub use byte_array::ByteArray;
pub use log::Log;
pub use two_bit::TwoBit;

use super::{Block, BlockState};
use crate::error::{Error, Result};

/// The capacities that a codec may have.
pub const CAPACITIES: RangeInclusive<u32> = 64..=1 << 22;

/// A way to write blocks. The codec's name and capacity are kept in the cache's `Meta` document.
pub trait BlockCodec: Send + Sync + fmt::Debug + 'static {
    /// Name in the `Meta` document.
    fn name(&self) -> &'static str;

    /// How many sequences a block covers.
    fn capacity(&self) -> u32;

    /// The stored bytes of `block`, which has this codec's capacity.
    fn encode(&self, block: &Block) -> Bytes;

    /// Reads stored bytes.
    ///
    /// # Errors
    /// `Corrupt` for bytes that neither [`encode`](Self::encode) nor appending what
    /// [`encode_append`](Self::encode_append) returns can have made; never a panic, and no
    /// allocation beyond one block.
    fn decode(&self, bytes: &[u8]) -> Result<Block>;

    /// How states lie, if a store may raise them in the stored bytes by itself. A block that a store made so, from nothing or from an encoded one,
    /// must decode. `None` where a block must be decoded and encoded anew.
    fn in_place(&self) -> Option<InPlace> {
        None
    }

    /// Encodes state changes so that a store can append them to a stored block. The stored bytes
    /// followed by these bytes decode to the block with each state raised, as by [`Block::raise`].
    /// These bytes also decode on their own, as the first of a block. Zero bytes before them change
    /// nothing. Offsets may repeat; absent states change nothing.
    ///
    /// `None` if the codec does not support appending: then a block must be decoded and encoded
    /// anew.
    fn encode_append(&self, _changes: &[(u32, BlockState)]) -> Option<Bytes> {
        None
    }
}

/// How a codec lays out states where each can be raised in place, by OR-ing bits into the stored bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum InPlace {
    /// A byte a state, in its two low bits. A block has exactly as many bytes as its capacity.
    Bytes,
    /// Four states a byte, the first in the highest bits. A block has at most the bytes it needs; zero bytes at its end may be left out.
    Pairs,
}

impl InPlace {
    /// The first of the two bits of the state of `offset`, the one of value 2. Bits are counted from the highest of the first byte.
    pub fn bit(self, offset: u32) -> u64 {
        match self {
            InPlace::Bytes => 8 * u64::from(offset) + 6,
            InPlace::Pairs => 2 * u64::from(offset),
        }
    }

    /// Bytes of a block of `capacity` sequences, at most.
    pub fn length(self, capacity: u32) -> u32 {
        match self {
            InPlace::Bytes => capacity,
            InPlace::Pairs => capacity.div_ceil(4),
        }
    }
}

/// The codec called `name`: `adaptive`, `bytes`, `log` or `two-bit`.
///
/// # Errors
/// `ConfigInvalid` for a name or capacity that this build does not know.
pub fn codec_named(name: &str, capacity: u32) -> Result<Arc<dyn BlockCodec>> {
    Ok(match name {
        Adaptive::NAME => Arc::new(Adaptive::with_capacity(capacity)?),
        ByteArray::NAME => Arc::new(ByteArray::with_capacity(capacity)?),
        Log::NAME => Arc::new(Log::with_capacity(capacity)?),
        TwoBit::NAME => Arc::new(TwoBit::with_capacity(capacity)?),
        _ => {
            return Err(Error::config(format!(
                "block codec `{name}` is not known; use one of: {}, {}, {}, {}",
                Adaptive::NAME,
                ByteArray::NAME,
                Log::NAME,
                TwoBit::NAME
            )));
        }
    })
}

fn checked_capacity(codec: &'static str, capacity: u32) -> Result<u32> {
    if CAPACITIES.contains(&capacity) {
        return Ok(capacity);
    }
    let (low, high) = (CAPACITIES.start(), CAPACITIES.end());
    Err(Error::config(format!("block codec `{codec}` cannot have a capacity of {capacity}; use {low} to {high}")))
}
