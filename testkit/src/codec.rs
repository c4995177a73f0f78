//! A codec of small blocks.

use bytes::Bytes;
use sluicegate_core::block::{Block, BlockState};
use sluicegate_core::{BlockCodec, Error, Result};

/// One byte a sequence, in blocks as small as a test likes: so that few sequences are many blocks. No store knows it by name,
/// so it also shows what a store does with a codec of somebody else's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SmallBlocks(u32);

impl SmallBlocks {
    /// Blocks of `capacity` sequences.
    pub fn new(capacity: u32) -> Self {
        SmallBlocks(capacity.max(1))
    }
}

impl Default for SmallBlocks {
    fn default() -> Self {
        SmallBlocks::new(64)
    }
}

impl BlockCodec for SmallBlocks {
    fn name(&self) -> &'static str {
        "testkit-small"
    }

    fn capacity(&self) -> u32 {
        self.0
    }

    fn encode(&self, block: &Block) -> Bytes {
        Bytes::from_iter((0..self.0).map(|offset| block.get(offset) as u8))
    }

    fn decode(&self, bytes: &[u8]) -> Result<Block> {
        if bytes.len() != self.0 as usize || bytes.iter().any(|byte| *byte > 3) {
            return Err(Error::corrupt("not a small block"));
        }
        let mut block = Block::new(self.0);
        for (offset, byte) in (0..).zip(bytes) {
            block.raise(offset, BlockState::from_bits(*byte));
        }
        Ok(block)
    }
}
