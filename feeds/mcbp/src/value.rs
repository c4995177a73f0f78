//! Values: how they are encoded, compression, attributes (protocol, sections 1.4 and 8).

use bytes::{Buf as _, Bytes};

use crate::error::{Error, ErrorKind, Result};

flags! {
    /// How a value is encoded. Compression is outermost, then the attributes, then the body (protocol, section 1.4).
    Datatype: u8 {
        /// The body is JSON.
        JSON = 0x01,
        /// The whole value is Snappy-compressed.
        SNAPPY = 0x02,
        /// The value begins with attributes.
        XATTR = 0x04,
    }
}

/// The value and its datatype, uncompressed. An empty value stays as it is, whatever the datatype says of it.
///
/// # Errors
/// `TooLarge` if it says that it is over `max_len` bytes; nothing is allocated then. `Malformed` if it is not compressed correctly.
pub fn decompress(value: Bytes, datatype: Datatype, max_len: usize) -> Result<(Bytes, Datatype)> {
    if !datatype.contains(Datatype::SNAPPY) {
        return Ok((value, datatype));
    }
    let datatype = datatype.without(Datatype::SNAPPY);
    if value.is_empty() {
        return Ok((value, datatype));
    }
    let malformed = |error| Error::malformed("a value is not compressed as its datatype says").with_source(error);
    let len = snap::raw::decompress_len(&value).map_err(malformed)?;
    if len > max_len {
        let message = format!("a value of {} bytes is {len} uncompressed, over the limit of {max_len}", value.len());
        return Err(Error::new(ErrorKind::TooLarge, message));
    }
    // The format cannot shrink anything to less than a 64th or so; a larger claim is not worth its allocation.
    if len / 64 > value.len() {
        return Err(Error::malformed("a compressed value claims more bytes than it can hold"));
    }
    Ok((snap::raw::Decoder::new().decompress_vec(&value).map_err(malformed)?.into(), datatype))
}

/// The value, compressed.
///
/// # Errors
/// `Invalid` if it is too large for the format, 4 GiB.
pub fn compress(value: &[u8]) -> Result<Bytes> {
    let compressed = snap::raw::Encoder::new().compress_vec(value);
    Ok(compressed.map_err(|error| Error::invalid("a value cannot be compressed").with_source(error))?.into())
}

/// One attribute: its name, and its value, which is JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attribute {
    /// Its name. The server's own begin with `_`.
    pub name: Bytes,
    /// Its value.
    pub value: Bytes,
}

/// Iterates over a section of attributes. After an error it ends.
#[derive(Clone, Debug)]
pub struct Attributes {
    rest: Bytes,
}

/// The attributes of an uncompressed value that has them, and its body.
///
/// # Errors
/// `Malformed` if the section does not fit into the value.
pub fn split_attributes(mut value: Bytes) -> Result<(Attributes, Bytes)> {
    match value.try_get_u32().ok().and_then(|len| usize::try_from(len).ok()) {
        Some(len) if len <= value.len() => Ok((Attributes { rest: value.split_to(len) }, value)),
        _ => Err(Error::malformed("the attributes do not fit into their value").with_offset(0)),
    }
}

/// A value of `attributes` and a body.
///
/// # Errors
/// `Invalid` if a name is empty, holds a zero byte or is there twice, or the section is over 4 GiB.
pub fn join_attributes(attributes: &[Attribute], body: &[u8]) -> Result<Bytes> {
    let pair_len = |attribute: &Attribute| attribute.name.len() + attribute.value.len() + 2;
    let section_len: usize = attributes.iter().map(|attribute| 4 + pair_len(attribute)).sum();
    let section_len =
        u32::try_from(section_len).map_err(|_| Error::invalid("the attributes are over 4 GiB, the limit of their section"))?;
    let mut value = section_len.to_be_bytes().to_vec();
    for (i, attribute) in attributes.iter().enumerate() {
        let name = &attribute.name;
        if name.is_empty() || name.contains(&0) || attributes[..i].iter().any(|other| other.name == *name) {
            return Err(Error::invalid("an attribute's name is empty, holds a zero byte, or is there twice"));
        }
        value.extend_from_slice(&(pair_len(attribute) as u32).to_be_bytes());
        value.extend_from_slice(name);
        value.push(0);
        value.extend_from_slice(&attribute.value);
        value.push(0);
    }
    value.extend_from_slice(body);
    Ok(value.into())
}

impl Attributes {
    fn take(&mut self) -> Option<Attribute> {
        let mut rest = std::mem::take(&mut self.rest);
        let len = usize::try_from(rest.try_get_u32().ok()?).ok()?;
        if len > rest.len() {
            return None;
        }
        let mut pair = rest.split_to(len);
        let name_len = pair.iter().position(|byte| *byte == 0).filter(|len| *len > 0)?;
        let name = pair.split_to(name_len);
        pair.advance(1);
        let value_len = pair.len().checked_sub(1).filter(|len| pair[*len] == 0)?;
        pair.truncate(value_len);
        self.rest = rest;
        Some(Attribute { name, value: pair })
    }
}

impl Iterator for Attributes {
    type Item = Result<Attribute>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        Some(self.take().ok_or_else(|| Error::malformed("an attribute is not a length, a name, a zero, a value and a zero")))
    }
}

impl std::iter::FusedIterator for Attributes {}
