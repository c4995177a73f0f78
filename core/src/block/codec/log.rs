//! A list or a bitmap, and what was appended to it.

use bytes::Bytes;

use super::super::{Block, BlockState};
use super::adaptive::{push_item, push_number, read_list, short_list};
use super::two_bit::{bitmap_len, push_bitmap, read_bitmap};
use super::{BlockCodec, checked_capacity};
use crate::error::{Error, Result};

/// As [`Adaptive`](super::Adaptive), and states can be appended: a store that can append to a value
/// need neither read nor lock a block to raise some of its states.
///
/// A block is written as one list, or as a bitmap where that is shorter. What is appended are more
/// lists; a state that several have is the OR of these.
/// - A list begins with a zero byte. Its items are those of [`Adaptive`](super::Adaptive): none of
///   them begins with a zero byte.
/// - A bitmap can only come first. It begins with a byte 2 and its length in bytes, written as an
///   item of a list is; then as [`TwoBit`](super::TwoBit).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    capacity: u32,
}

const LIST: u8 = 0;
const BITMAP: u8 = 2;

/// Bytes that the length of a bitmap takes, at most: that of the largest capacity has 21 bits.
const LENGTH_BYTES: usize = 3;

impl Log {
    /// Its name in the `Meta` document.
    pub const NAME: &str = "log";

    /// One that covers `capacity` sequences a block.
    ///
    /// # Errors
    /// `ConfigInvalid` outside [`CAPACITIES`](super::CAPACITIES).
    pub fn with_capacity(capacity: u32) -> Result<Self> {
        Ok(Log { capacity: checked_capacity(Self::NAME, capacity)? })
    }
}

impl Default for Log {
    fn default() -> Self {
        Log { capacity: 40_000 }
    }
}

/// Splits what begins with a length there; says what is wrong otherwise.
fn split_length(bytes: &[u8]) -> Result<(&[u8], &[u8]), String> {
    let mut length = 0;
    for (at, byte) in bytes.iter().take(LENGTH_BYTES).enumerate() {
        length |= usize::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            if *byte == 0 && at > 0 {
                break;
            }
            let rest = &bytes[at + 1..];
            let cut_short = || format!("a bitmap is cut short: {length} bytes are announced, and {} are there", rest.len());
            return rest.split_at_checked(length).ok_or_else(cut_short);
        }
    }
    Err("the length of a bitmap is written in more bytes than it needs, or is cut short".to_owned())
}

impl BlockCodec for Log {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn capacity(&self) -> u32 {
        self.capacity
    }

    fn encode(&self, block: &Block) -> Bytes {
        debug_assert_eq!(block.capacity(), self.capacity, "a block of another codec");
        let bitmap = bitmap_len(block);
        let out = short_list(block, LIST, bitmap).unwrap_or_else(|| {
            let mut out = Vec::with_capacity(1 + LENGTH_BYTES + bitmap);
            out.push(BITMAP);
            push_number(bitmap as u32, &mut out);
            push_bitmap(block, bitmap, &mut out);
            out
        });
        Bytes::from(out)
    }

    fn decode(&self, bytes: &[u8]) -> Result<Block> {
        let read = || {
            let (mut block, lists) = match bytes.split_first() {
                Some((&LIST, _)) => (Block::new(self.capacity), bytes),
                Some((&BITMAP, rest)) => {
                    let (bitmap, lists) = split_length(rest)?;
                    if lists.first().is_some_and(|first| *first != LIST) {
                        return Err("what follows a bitmap is no list".to_owned());
                    }
                    (read_bitmap(self.capacity, bitmap)?, lists)
                }
                Some((kind, _)) => return Err(format!("a block of unknown kind {kind}")),
                None => return Err("a block without a byte".to_owned()),
            };
            read_list(&mut block, lists, true).map(|()| block)
        };
        read().map_err(|what| Error::corrupt(what).with_context("codec", Self::NAME))
    }

    fn encode_append(&self, changes: &[(u32, BlockState)]) -> Option<Bytes> {
        let is_change = |(offset, state): &&(u32, BlockState)| *offset < self.capacity && *state != BlockState::Absent;
        let mut changes: Vec<(u32, BlockState)> = changes.iter().filter(is_change).copied().collect();
        changes.sort_by_key(|(offset, _)| *offset);
        let mut out = Vec::with_capacity(1 + 3 * changes.len());
        out.push(LIST);
        let mut next = 0;
        for of_offset in changes.chunk_by(|a, b| a.0 == b.0) {
            let offset = of_offset[0].0;
            let bits = of_offset.iter().fold(0, |bits, (_, state)| bits | *state as u8);
            push_item(offset - next, BlockState::from_bits(bits), &mut out);
            next = offset + 1;
        }
        Some(Bytes::from(out))
    }
}
