//! FlatBuffers, as far as system events need them (protocol, section 4.6): one table of numbers and names, without a schema compiler, whose
//! code would need `unsafe`. All numbers are little-endian; a field that is left out has its default.

use bytes::{BufMut as _, Bytes, BytesMut};

/// A table that is read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Table<'a> {
    bytes: &'a [u8],
    start: usize,
    len: usize,
    /// For each field where it is in the table; 0 if it is left out.
    slots: &'a [u8],
}

/// A field that is written.
#[derive(Clone, Copy, Debug)]
pub(super) enum Value<'a> {
    U64(u64),
    U32(u32),
    Bool(bool),
    Text(&'a [u8]),
}

/// So many bytes at a place.
fn at<const N: usize>(bytes: &[u8], place: usize) -> Option<[u8; N]> {
    bytes.get(place..)?.first_chunk().copied()
}

fn length(bytes: &[u8], place: usize) -> Option<usize> {
    Some(usize::from(u16::from_le_bytes(at(bytes, place)?)))
}

fn offset(bytes: &[u8], place: usize) -> Option<usize> {
    usize::try_from(u32::from_le_bytes(at(bytes, place)?)).ok()
}

impl<'a> Table<'a> {
    /// The root; none if the bytes have no such table in them.
    pub(super) fn root(bytes: &'a [u8]) -> Option<Table<'a>> {
        let start = offset(bytes, 0)?;
        let layout = i64::try_from(start).ok()? - i64::from(i32::from_le_bytes(at(bytes, start)?));
        let layout = usize::try_from(layout).ok()?;
        let (layout_len, len) = (length(bytes, layout)?, length(bytes, layout.checked_add(2)?)?);
        let slots = bytes.get(layout..layout.checked_add(layout_len)?)?.get(4..)?;
        bytes.get(start..start.checked_add(len)?)?;
        Some(Table { bytes, start, len, slots })
    }

    /// Where a field is; `Some(None)` if it is left out, none if it is not in the table.
    fn place(&self, slot: usize, size: usize) -> Option<Option<usize>> {
        let within = length(self.slots, slot * 2).unwrap_or(0);
        match within {
            0 => Some(None),
            _ if within + size <= self.len => Some(Some(self.start + within)),
            _ => None,
        }
    }

    fn number<const N: usize>(&self, slot: usize) -> Option<[u8; N]> {
        match self.place(slot, N)? {
            Some(place) => at(self.bytes, place),
            None => Some([0; N]),
        }
    }

    /// A number; none if the table is broken.
    pub(super) fn u64(&self, slot: usize) -> Option<u64> {
        self.number(slot).map(u64::from_le_bytes)
    }

    /// A number; none if the table is broken.
    pub(super) fn u32(&self, slot: usize) -> Option<u32> {
        self.number(slot).map(u32::from_le_bytes)
    }

    /// Yes or no; none if the table is broken.
    pub(super) fn bool(&self, slot: usize) -> Option<bool> {
        self.number::<1>(slot).map(|[byte]| byte != 0)
    }
}

/// A buffer whose root is a table of these fields, each at the slot of its place. Nothing for a field that is left out.
pub(super) fn table(fields: &[Option<Value<'_>>]) -> Bytes {
    // The layout comes first, then the table, its widest fields first so that all lie at multiples of their size, then texts.
    let layout = 4;
    let start = (layout + 4 + 2 * fields.len()).next_multiple_of(8) + 4;
    let size = |field: &Value<'_>| match field {
        Value::U64(_) => 8,
        Value::U32(_) | Value::Text(_) => 4,
        Value::Bool(_) => 1,
    };
    let mut order: Vec<(usize, Value<'_>)> =
        fields.iter().enumerate().filter_map(|(slot, field)| Some((slot, (*field)?))).collect();
    order.sort_by_key(|(slot, field)| (std::cmp::Reverse(size(field)), *slot));
    let len = 4 + order.iter().map(|(_, field)| size(field)).sum::<usize>();
    let mut slots = vec![0_u16; fields.len()];
    let (mut body, mut texts) = (BytesMut::new(), BytesMut::new());
    let texts_start = (start + len).next_multiple_of(4);
    for (slot, field) in &order {
        let within = 4 + body.len();
        slots[*slot] = within as u16;
        match field {
            Value::U64(number) => body.put_u64_le(*number),
            Value::U32(number) => body.put_u32_le(*number),
            Value::Bool(bit) => body.put_u8(u8::from(*bit)),
            Value::Text(text) => {
                body.put_u32_le((texts_start + texts.len() - start - within) as u32);
                texts.put_u32_le(text.len() as u32);
                texts.put_slice(text);
                texts.put_bytes(0, 4 - text.len() % 4);
            }
        }
    }
    let mut out = BytesMut::new();
    out.put_u32_le(start as u32);
    out.put_u16_le((4 + 2 * fields.len()) as u16);
    out.put_u16_le(len as u16);
    slots.iter().for_each(|slot| out.put_u16_le(*slot));
    out.put_bytes(0, start - out.len());
    out.put_i32_le((start - layout) as i32);
    out.extend_from_slice(&body);
    out.put_bytes(0, texts_start - out.len());
    out.extend_from_slice(&texts);
    out.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_what_is_left_out_has_its_default() {
        let bytes =
            table(&[Some(Value::U64(7 << 40)), None, Some(Value::Bool(true)), Some(Value::Text(b"name")), Some(Value::U32(9))]);
        let table = Table::root(&bytes).unwrap();
        assert_eq!((table.u64(0), table.u32(1), table.bool(2), table.u32(4)), (Some(7 << 40), Some(0), Some(true), Some(9)));
        assert_eq!((table.u32(5), table.bool(99)), (Some(0), Some(false)), "an older writer has fewer fields");
        let text = table.start + length(table.slots, 6).unwrap();
        let text = text + offset(&bytes, text).unwrap();
        assert_eq!((offset(&bytes, text), &bytes[text + 4..text + 9]), (Some(4), &b"name\0"[..]));
    }

    #[test]
    fn a_buffer_of_another_writer_is_read() {
        // Written by hand after the format's own description: the table before its layout, which lies after it.
        let mut bytes = vec![8, 0, 0, 0, 0, 0, 0, 0];
        bytes.extend((-16_i32).to_le_bytes());
        bytes.extend([0; 4]);
        bytes.extend(42_u64.to_le_bytes());
        bytes.extend([6, 0, 16, 0, 8, 0]);
        assert_eq!(Table::root(&bytes).unwrap().u64(0), Some(42));
    }

    #[test]
    fn broken_buffers_are_none_and_never_panic() {
        let good = table(&[Some(Value::U64(1)), Some(Value::U32(2)), Some(Value::Bool(true))]);
        for len in 0..good.len() {
            let table = Table::root(&good[..len]);
            assert!(table.is_none_or(|table| table.u64(0).is_some()), "{len}");
        }
        for place in 0..good.len() {
            for byte in [0, 1, 0x7f, 0x80, 0xff] {
                let mut bytes = good.to_vec();
                bytes[place] = byte;
                if let Some(table) = Table::root(&bytes) {
                    for slot in 0..9 {
                        let _ = (table.u64(slot), table.u32(slot), table.bool(slot));
                    }
                }
            }
        }
    }
}
