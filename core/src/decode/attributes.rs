//! Attribute sections: what a value begins with when its datatype says so.
//!
//! Layout: `u32be` length of the section, itself not counted; then, until that is used up, pairs of `u32be` length, name, `\0`,
//! value, `\0`. The body follows. Reading copies nothing, and allocates only to report an error.

use crate::error::{Error, Result};

/// Length of a length, in bytes.
const LENGTH: usize = 4;

/// The name and value of one attribute.
pub type Pair<'a> = (&'a [u8], &'a [u8]);

/// Iterates over the attributes of a value, in the order they are stored. After an error it ends.
#[derive(Clone, Debug)]
pub struct Attributes<'a> {
    rest: &'a [u8],
}

/// The attributes of `value`, which must have an attribute section.
///
/// # Errors
/// `Corrupt` if the section does not fit into the value.
#[inline]
pub fn iter(value: &[u8]) -> Result<Attributes<'_>> {
    Ok(Attributes { rest: split(value)?.0 })
}

/// The value of the attribute called `name`. What follows it in the section is not looked at.
///
/// # Errors
/// `Corrupt` if the section, up to that attribute, is malformed.
#[inline]
pub fn find<'a>(value: &'a [u8], name: &str) -> Result<Option<&'a [u8]>> {
    for pair in iter(value)? {
        let (found, content) = pair?;
        if found == name.as_bytes() {
            return Ok(Some(content));
        }
    }
    Ok(None)
}

/// The body of `value`: what follows the attribute section.
///
/// # Errors
/// `Corrupt` if the section does not fit into the value.
#[inline]
pub fn body(value: &[u8]) -> Result<&[u8]> {
    Ok(split(value)?.1)
}

/// Builds a value: an attribute section of `pairs`, then `body`.
///
/// # Errors
/// `TooLarge` if the section would exceed 4 GiB; `ConfigInvalid` if a name is empty or holds a zero byte.
pub fn encode<N: AsRef<[u8]>, V: AsRef<[u8]>>(pairs: impl IntoIterator<Item = (N, V)>, body: &[u8]) -> Result<Vec<u8>> {
    let too_large = || Error::new(crate::ErrorKind::TooLarge, "an attribute section is over 4 GiB");
    let mut out = vec![0; LENGTH];
    for (name, content) in pairs {
        let (name, content) = (name.as_ref(), content.as_ref());
        if name.is_empty() || name.contains(&0) {
            return Err(Error::config("an attribute's name must not be empty, nor hold a zero byte"));
        }
        let length = u32::try_from(name.len() + content.len() + 2).map_err(|_| too_large())?;
        out.extend_from_slice(&length.to_be_bytes());
        out.extend_from_slice(name);
        out.push(0);
        out.extend_from_slice(content);
        out.push(0);
    }
    let section = u32::try_from(out.len() - LENGTH).map_err(|_| too_large())?;
    out[..LENGTH].copy_from_slice(&section.to_be_bytes());
    out.extend_from_slice(body);
    Ok(out)
}

/// The section without its length, and the body.
#[inline]
fn split(value: &[u8]) -> Result<(&[u8], &[u8])> {
    take(value).ok_or_else(|| corrupt("an attribute section does not fit into its value"))
}

/// What a length announces, and what follows.
#[inline]
fn take(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<LENGTH>()?;
    rest.split_at_checked(usize::try_from(u32::from_be_bytes(*length)).ok()?)
}

#[cold]
fn corrupt(message: &'static str) -> Error {
    Error::corrupt(message)
}

impl<'a> Attributes<'a> {
    #[inline]
    fn pair(&mut self) -> Result<Pair<'a>> {
        let rest = std::mem::take(&mut self.rest);
        let (pair, rest) = take(rest).ok_or_else(|| corrupt("an attribute does not fit into its section"))?;
        let name_end = pair.iter().position(|b| *b == 0).ok_or_else(|| corrupt("an attribute's name has no end"))?;
        let (name, value) = (&pair[..name_end], &pair[name_end + 1..]);
        let Some((0, value)) = value.split_last() else {
            return Err(corrupt("an attribute's value has no end"));
        };
        if name.is_empty() {
            return Err(corrupt("an attribute has no name"));
        }
        self.rest = rest;
        Ok((name, value))
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = Result<Pair<'a>>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        (!self.rest.is_empty()).then(|| self.pair())
    }
}

impl std::iter::FusedIterator for Attributes<'_> {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;
    use proptest::prelude::*;

    #[test]
    fn a_section_is_laid_out_as_the_protocol_says() {
        let value = encode([("_sync", "{}"), ("a", "1")], b"body").unwrap();
        // The first pair takes 4 + 9 bytes, the second 4 + 4.
        let mut by_hand = vec![0, 0, 0, 21];
        by_hand.extend_from_slice(&[0, 0, 0, 9]);
        by_hand.extend_from_slice(b"_sync\0{}\0");
        by_hand.extend_from_slice(&[0, 0, 0, 4]);
        by_hand.extend_from_slice(b"a\x001\0body");
        assert_eq!(value, by_hand);
        assert_eq!(find(&value, "_sync").unwrap(), Some(&b"{}"[..]));
        assert_eq!(find(&value, "a").unwrap(), Some(&b"1"[..]));
        assert_eq!(find(&value, "b").unwrap(), None);
        assert_eq!(body(&value).unwrap(), b"body");
    }

    #[test]
    fn every_cut_of_a_section_is_an_error() {
        let value = encode([("_sync", "{}"), ("a", "1")], b"").unwrap();
        for end in 0..value.len() {
            assert_eq!(find(&value[..end], "b").unwrap_err().kind(), ErrorKind::Corrupt);
            assert_eq!(body(&value[..end]).unwrap_err().kind(), ErrorKind::Corrupt);
        }
    }

    #[test]
    fn malformed_pairs_are_errors_and_end_the_iteration() {
        let bad: [&[u8]; 6] = [
            b"\0\0\0\x03\0\0\0",
            b"\0\0\0\x04\0\0\0\0",
            b"\0\0\0\x04\0\0\0\x01a",
            b"\0\0\0\x06\0\0\0\x02a\0",
            b"\0\0\0\x06\0\0\0\x02\0\0",
            b"\0\0\0\x07\0\0\0\x03a\0b",
        ];
        for value in bad {
            let mut attributes = iter(value).unwrap();
            assert!(attributes.next().unwrap().is_err(), "{value:?}");
            assert!(attributes.next().is_none());
        }
        assert!(iter(b"\xff\xff\xff\xff").is_err());
    }

    #[test]
    fn what_cannot_be_written_is_refused() {
        assert!(encode([("", "1")], b"").is_err());
        assert!(encode([("a\0b", "1")], b"").is_err());
    }

    proptest! {
        #[test]
        fn what_was_encoded_reads_back(
            pairs in prop::collection::vec(("[a-z_]{1,8}", prop::collection::vec(1u8.., 0..40)), 0..6),
            content in prop::collection::vec(any::<u8>(), 0..20),
        ) {
            let value = encode(pairs.iter().map(|(n, v)| (n, v)), &content).unwrap();
            let read: Vec<_> = iter(&value).unwrap().map(Result::unwrap).map(|(n, v)| (n.to_vec(), v.to_vec())).collect();
            let written: Vec<_> = pairs.into_iter().map(|(n, v)| (n.into_bytes(), v)).collect();
            prop_assert_eq!(read, written);
            prop_assert_eq!(body(&value).unwrap(), &content[..]);
        }
    }
}
