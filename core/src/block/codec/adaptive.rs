//! A list or a bitmap, whichever is shorter.

use bytes::Bytes;

use super::super::{Block, BlockState};
use super::two_bit::{bitmap_len, push_bitmap, read_bitmap};
use super::{BlockCodec, checked_capacity};
use crate::error::{Error, Result};

/// For many sparse channels: a block costs a byte or two a sequence that is in the channel, but never more than the bitmap.
///
/// The first byte says which of two forms follows; encoding takes the shorter, decoding either.
/// - 1, list: for each sequence that is not absent, ascending, `distance << 2 | state`, where distance counts the absent ones
///   before it, since the previous or the beginning. Each is written seven bits a byte, lowest first, the high bit set in all
///   bytes but its last; in no more bytes than needed.
/// - 2, bitmap: as [`TwoBit`](super::TwoBit).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Adaptive {
    capacity: u32,
}

const LIST: u8 = 1;
const BITMAP: u8 = 2;

impl Adaptive {
    /// Its name in the `Meta` document.
    pub const NAME: &str = "adaptive";

    /// One that covers `capacity` sequences a block.
    ///
    /// # Errors
    /// `ConfigInvalid` outside [`CAPACITIES`](super::CAPACITIES).
    pub fn with_capacity(capacity: u32) -> Result<Self> {
        Ok(Adaptive { capacity: checked_capacity(Self::NAME, capacity)? })
    }
}

impl Default for Adaptive {
    fn default() -> Self {
        Adaptive { capacity: 40_000 }
    }
}

/// The list of `block` behind the byte `kind`; `None` if a bitmap of `bitmap` bytes is shorter.
pub(super) fn short_list(block: &Block, kind: u8, bitmap: usize) -> Option<Vec<u8>> {
    // A list takes a byte an item at least, a bitmap a byte for four sequences.
    let may_be_shorter = block.set_count() as usize <= bitmap;
    let mut out = vec![kind];
    (may_be_shorter && push_list(block, bitmap, &mut out)).then_some(out)
}

/// Appends the list of `block`; stops and says so when it takes more than `longest` bytes.
fn push_list(block: &Block, longest: usize, out: &mut Vec<u8>) -> bool {
    let longest = out.len() + longest;
    let mut next = 0;
    for (offset, state) in block.iter() {
        push_item(offset - next, state, out);
        if out.len() > longest {
            return false;
        }
        next = offset + 1;
    }
    true
}

/// Appends one item of a list.
pub(super) fn push_item(distance: u32, state: BlockState, out: &mut Vec<u8>) {
    push_number(distance << 2 | state as u32, out);
}

/// Appends a number, seven bits a byte, lowest first, the high bit set in all bytes but its last.
pub(super) fn push_number(mut number: u32, out: &mut Vec<u8>) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Raises in `block` what `bytes` list; says what is wrong with them otherwise. With `may_follow`,
/// a zero byte begins a list, and the distances start again at 0.
pub(super) fn read_list(block: &mut Block, bytes: &[u8], may_follow: bool) -> Result<(), String> {
    let capacity = block.capacity();
    let mut next = 0u64;
    let mut item = 0u64;
    let mut shift = 0;
    for &byte in bytes {
        if byte == 0 && shift == 0 && may_follow {
            next = 0;
            continue;
        }
        // Four bytes hold the largest distance there can be, and one more does no harm to a `u64`.
        if shift > 28 || (byte == 0 && shift > 0) {
            return Err("a list has an item that is written too long".to_owned());
        }
        item |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 != 0 {
            shift += 7;
            continue;
        }
        let state = BlockState::from_bits((item & 3) as u8);
        let offset = next + (item >> 2);
        if state == BlockState::Absent || offset >= u64::from(capacity) {
            return Err(format!("a list has an item that is no state of its {capacity} sequences"));
        }
        block.raise(offset as u32, state);
        next = offset + 1;
        (item, shift) = (0, 0);
    }
    if shift > 0 { Err("a list ends within an item".to_owned()) } else { Ok(()) }
}

impl BlockCodec for Adaptive {
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
            let mut out = Vec::with_capacity(1 + bitmap);
            out.push(BITMAP);
            push_bitmap(block, bitmap, &mut out);
            out
        });
        Bytes::from(out)
    }

    fn decode(&self, bytes: &[u8]) -> Result<Block> {
        let read = match bytes.split_first() {
            Some((&LIST, list)) => {
                let mut block = Block::new(self.capacity);
                read_list(&mut block, list, false).map(|()| block)
            }
            Some((&BITMAP, bitmap)) => read_bitmap(self.capacity, bitmap),
            Some((kind, _)) => Err(format!("a block of unknown kind {kind}")),
            None => Err("a block without a byte".to_owned()),
        };
        read.map_err(|what| Error::corrupt(what).with_context("codec", Self::NAME))
    }
}
