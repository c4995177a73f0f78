//! How a value stands on the wire: the attribute section, then the body.

use bytes::{BufMut, Bytes, BytesMut};
use sluicegate_core::{Error, ErrorKind, Result};

/// The value made of `attributes` and `body`: the section's length (not counting itself), the pairs, the body.
///
/// # Errors
/// `TooLarge` if the section does not fit its 32-bit length.
pub(crate) fn encode(attributes: &[(&str, &[u8])], body: &[u8]) -> Result<Bytes> {
    // A pair costs its own length field and two zero bytes.
    let section: usize = attributes.iter().map(|(key, value)| 4 + key.len() + value.len() + 2).sum();
    let length = u32::try_from(section).map_err(|_| Error::new(ErrorKind::TooLarge, "an attribute section is over 4 GiB"))?;
    let mut out = BytesMut::with_capacity(4 + section + body.len());
    out.put_u32(length);
    for (key, value) in attributes {
        put_pair(&mut out, key, value);
    }
    out.put_slice(body);
    Ok(out.freeze())
}

/// Appends one pair. The caller has seen to it that its length fits.
fn put_pair(out: &mut impl BufMut, key: &str, value: &[u8]) {
    out.put_u32((key.len() + value.len() + 2) as u32);
    out.put_slice(key.as_bytes());
    out.put_u8(0);
    out.put_slice(value);
    out.put_u8(0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_section_length_pairs_and_body() {
        let value = encode(&[("_sync", b"{}"), ("a", b"1")], b"{\"some\":\"body\"}").unwrap();
        let mut expected = vec![0, 0, 0, 21, 0, 0, 0, 9];
        expected.extend_from_slice(b"_sync\0{}\0");
        expected.extend_from_slice(&[0, 0, 0, 4]);
        expected.extend_from_slice(b"a\x001\0");
        expected.extend_from_slice(b"{\"some\":\"body\"}");
        assert_eq!(value, expected);
        assert_eq!(encode(&[], b"").unwrap(), [0, 0, 0, 0].as_slice());
    }
}
