//! How a block is written down.

mod adaptive;
mod byte_array;
mod two_bit;

use std::fmt;
use std::ops::RangeInclusive;
use std::sync::Arc;

use bytes::Bytes;

pub use adaptive::Adaptive;
pub use byte_array::ByteArray;
pub use two_bit::TwoBit;

use super::Block;
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
    /// `Corrupt` for bytes that [`encode`](Self::encode) cannot have made; never a panic, and no allocation beyond one block.
    fn decode(&self, bytes: &[u8]) -> Result<Block>;
}

/// The codec called `name`: `adaptive`, `bytes` or `two-bit`.
///
/// # Errors
/// `ConfigInvalid` for a name or capacity that this build does not know.
pub fn codec_named(name: &str, capacity: u32) -> Result<Arc<dyn BlockCodec>> {
    Ok(match name {
        Adaptive::NAME => Arc::new(Adaptive::with_capacity(capacity)?),
        ByteArray::NAME => Arc::new(ByteArray::with_capacity(capacity)?),
        TwoBit::NAME => Arc::new(TwoBit::with_capacity(capacity)?),
        _ => {
            return Err(Error::config(format!(
                "block codec `{name}` is not known; use one of: {}, {}, {}",
                Adaptive::NAME,
                ByteArray::NAME,
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
