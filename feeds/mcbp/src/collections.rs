//! Collections: their numbers before keys (protocol, section 8).

use bytes::{Buf as _, Bytes};

use crate::error::{Error, Result};

/// The number of the default collection.
pub const DEFAULT_COLLECTION: u32 = 0;

/// Bytes of the longest encoding.
const MAX_LEN: usize = 5;

/// Appends `id` as unsigned LEB128.
pub fn put_id(out: &mut Vec<u8>, mut id: u32) {
    while id >= 0x80 {
        out.push(id as u8 | 0x80);
        id >>= 7;
    }
    out.push(id as u8);
}

/// The number `bytes` begin with, and its length.
///
/// # Errors
/// `Malformed` if it has no end, more bytes than needed, or over 32 bits.
#[inline]
pub fn read_id(bytes: &[u8]) -> Result<(u32, usize)> {
    let mut id = 0_u64;
    for (i, byte) in bytes.iter().take(MAX_LEN).enumerate() {
        id |= u64::from(byte & 0x7f) << (7 * i);
        if byte & 0x80 == 0 {
            match u32::try_from(id) {
                Ok(id) if *byte != 0 || i == 0 => return Ok((id, i + 1)),
                _ => break,
            }
        }
    }
    Err(Error::malformed("a key does not begin with a collection's number; were collections agreed on?").with_offset(0))
}

/// The collection of a key on a connection with collections, and the key in it.
///
/// # Errors
/// As [`read_id`].
#[inline]
pub fn split_key(mut key: Bytes) -> Result<(u32, Bytes)> {
    let (id, len) = read_id(&key)?;
    key.advance(len);
    Ok((id, key))
}

/// A key as a connection with collections has it.
pub fn join_key(collection: u32, key: &[u8]) -> Bytes {
    let mut out = Vec::with_capacity(MAX_LEN + key.len());
    put_id(&mut out, collection);
    out.extend_from_slice(key);
    out.into()
}
