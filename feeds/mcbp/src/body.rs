//! What messages have in common: extras of fixed fields, then a key, then a value.

use std::fmt;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

use crate::error::{Error, Result};
use crate::frame::{HEADER_LEN, Header, Magic};
use crate::opcode::Opcode;
use crate::value::Datatype;

/// A body without its framing extras: extras, key, value. `Debug` leaves the bytes out.
#[derive(Clone, PartialEq, Eq)]
pub struct Parts {
    opcode: u8,
    extras_len: u8,
    key_len: u16,
    body: Bytes,
}

/// The content of a message: extras, key and value, with their meaning.
pub trait Body: Sized {
    /// Reads it.
    ///
    /// # Errors
    /// `Malformed` if the parts are not what the message consists of.
    fn decode(parts: Parts) -> Result<Self>;

    /// Writes extras, then key, then value.
    fn encode(&self, to: &mut Writer<'_>);
}

/// A field of fixed length. Reading asks for that many bytes; the caller has checked that they are there.
pub(crate) trait Field: Sized {
    /// Bytes of the field.
    const LEN: usize;
    /// Reads the field, and moves past it.
    fn read(from: &mut &[u8]) -> Self;
    /// Appends the field.
    fn write(&self, to: &mut BytesMut);
}

/// A key or value as a whole.
pub(crate) trait Part: Sized {
    /// Reads it; none if it is not one.
    fn take(bytes: Bytes) -> Option<Self>;
    /// Appends it.
    fn put(&self, to: &mut BytesMut);
}

/// Writes one frame behind what a buffer holds.
#[derive(Debug)]
pub struct Writer<'a> {
    out: &'a mut BytesMut,
    start: usize,
    header: Header,
    framing_len: usize,
    extras_len: usize,
    key_len: usize,
    refused: Option<&'static str>,
}

/// Bytes that must not be shown: `Debug` prints `***`.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(pub Bytes);

impl Parts {
    /// `body` is as long as both lengths together, at least.
    #[inline]
    pub(crate) fn new(opcode: u8, extras_len: u8, key_len: u16, body: Bytes) -> Self {
        Parts { opcode, extras_len, key_len, body }
    }

    /// Parts to be sent.
    ///
    /// # Errors
    /// `Invalid` if the extras are over 255 bytes or the key over 65535.
    pub fn from_slices(opcode: Opcode, extras: &[u8], key: &[u8], value: &[u8]) -> Result<Self> {
        let (Ok(extras_len), Ok(key_len)) = (extras.len().try_into(), key.len().try_into()) else {
            return Err(Error::invalid("extras are over 255 bytes, or a key is over 65535").with_opcode(opcode.code()));
        };
        Ok(Parts { opcode: opcode.code(), extras_len, key_len, body: [extras, key, value].concat().into() })
    }

    /// No extras, no key, and `value`.
    pub fn from_value(opcode: Opcode, value: impl Into<Bytes>) -> Self {
        Parts { opcode: opcode.code(), extras_len: 0, key_len: 0, body: value.into() }
    }

    /// What the message is.
    #[inline]
    pub fn opcode(&self) -> Opcode {
        self.opcode.into()
    }

    /// The extras.
    #[inline]
    pub fn extras(&self) -> &[u8] {
        &self.body[..usize::from(self.extras_len)]
    }

    /// Where the value begins.
    fn value_offset(&self) -> usize {
        usize::from(self.extras_len) + usize::from(self.key_len)
    }

    /// The key.
    pub fn key(&self) -> Bytes {
        self.body.slice(usize::from(self.extras_len)..self.value_offset())
    }

    /// The value.
    pub fn value(&self) -> Bytes {
        self.body.slice(self.value_offset()..)
    }

    /// Key and value.
    #[inline]
    pub fn into_key_and_value(mut self) -> (Bytes, Bytes) {
        self.body.advance(usize::from(self.extras_len));
        let key = match self.key_len {
            0 => Bytes::new(),
            n => self.body.split_to(usize::from(n)),
        };
        (key, self.body)
    }

    /// What follows the extras, and the length of the key in it: TAP has engine bytes before the key.
    pub(crate) fn into_rest(mut self) -> (usize, Bytes) {
        self.body.advance(usize::from(self.extras_len));
        (usize::from(self.key_len), self.body)
    }

    /// The error that they are not what the message consists of.
    #[cold]
    pub(crate) fn malformed(&self, what: &'static str) -> Error {
        let key = self.key_len;
        let value = self.body.len() - self.value_offset();
        let message = format!("{what}; it has {} bytes of extras, {key} of key and {value} of value", self.extras_len);
        Error::malformed(message).with_opcode(self.opcode)
    }
}

impl fmt::Debug for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value_len = self.body.len() - self.value_offset();
        write!(f, "Parts({:#04x}, {} + {} + {} bytes)", self.opcode, self.extras_len, self.key_len, value_len)
    }
}

impl Body for Parts {
    fn decode(parts: Parts) -> Result<Self> {
        Ok(parts)
    }

    fn encode(&self, to: &mut Writer<'_>) {
        to.extras(self.extras());
        to.key(&self.body[usize::from(self.extras_len)..self.value_offset()]);
        to.value(&self.body[self.value_offset()..]);
    }
}

impl<'a> Writer<'a> {
    pub(crate) fn begin(out: &'a mut BytesMut, header: Header, framing: &[u8]) -> Self {
        let start = out.len();
        out.put_bytes(0, HEADER_LEN);
        out.put_slice(framing);
        Writer { out, start, header, framing_len: framing.len(), extras_len: 0, key_len: 0, refused: None }
    }

    /// What the message is.
    pub fn opcode(&self) -> Opcode {
        self.header.opcode.into()
    }

    /// Appends to the extras.
    pub fn extras(&mut self, bytes: &[u8]) {
        self.extras_len += bytes.len();
        self.out.put_slice(bytes);
    }

    /// Appends a field to the extras.
    pub(crate) fn field<F: Field>(&mut self, field: &F) {
        self.extras_len += F::LEN;
        field.write(self.out);
    }

    /// Appends to the key.
    pub fn key(&mut self, bytes: &[u8]) {
        self.key_len += bytes.len();
        self.out.put_slice(bytes);
    }

    /// Appends to the value.
    pub fn value(&mut self, bytes: &[u8]) {
        self.out.put_slice(bytes);
    }

    pub(crate) fn key_part<P: Part>(&mut self, part: &P) {
        let before = self.out.len();
        part.put(self.out);
        self.key_len += self.out.len() - before;
    }

    pub(crate) fn value_part<P: Part>(&mut self, part: &P) {
        part.put(self.out);
    }

    /// Appends to the extras the length of something that follows elsewhere.
    pub(crate) fn length(&mut self, length: usize) {
        match u16::try_from(length) {
            Ok(length) => self.field(&length),
            Err(_) => self.refuse("metadata is over 65535 bytes"),
        }
    }

    /// Says that the message has no encoding.
    pub(crate) fn refuse(&mut self, why: &'static str) {
        self.refused = Some(why);
    }

    /// Completes the header; or, if the lengths have no encoding, takes the frame back.
    pub(crate) fn finish(self) -> Result<()> {
        let Writer { out, start, mut header, framing_len, extras_len, key_len, refused } = self;
        if let Some(why) = refused {
            out.truncate(start);
            return Err(Error::invalid(why).with_opcode(header.opcode));
        }
        let longest_key = if header.magic.is_flex() { usize::from(u8::MAX) } else { usize::from(u16::MAX) };
        let body_len = out.len() - start - HEADER_LEN;
        let (Ok(framing), Ok(extras), Ok(body), true) =
            (framing_len.try_into(), extras_len.try_into(), body_len.try_into(), key_len <= longest_key)
        else {
            out.truncate(start);
            let message = format!(
                "{framing_len} bytes of framing extras, {extras_len} of extras, {key_len} of key and {body_len} in all do not fit into a frame"
            );
            return Err(Error::invalid(message).with_opcode(header.opcode));
        };
        (header.framing_len, header.extras_len, header.key_len, header.body_len) = (framing, extras, key_len as u16, body);
        out[start..start + HEADER_LEN].copy_from_slice(&header.encode());
        Ok(())
    }
}

/// A header whose lengths are not known yet.
pub(crate) fn unfinished(magic: Magic, opcode: u8, vbucket_or_status: u16, opaque: u32, cas: u64, datatype: Datatype) -> Header {
    Header { magic, opcode, framing_len: 0, key_len: 0, extras_len: 0, datatype, vbucket_or_status, body_len: 0, opaque, cas }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl Part for Secret {
    fn take(bytes: Bytes) -> Option<Self> {
        Some(Secret(bytes))
    }

    fn put(&self, to: &mut BytesMut) {
        to.put_slice(&self.0);
    }
}

impl Part for Bytes {
    #[inline]
    fn take(bytes: Bytes) -> Option<Self> {
        Some(bytes)
    }

    fn put(&self, to: &mut BytesMut) {
        to.put_slice(self);
    }
}

macro_rules! integers {
    ($($int:ty)*) => {$(
        impl Field for $int {
            const LEN: usize = size_of::<$int>();

            #[inline]
            fn read(from: &mut &[u8]) -> Self {
                let (bytes, rest) = from.split_first_chunk().expect("the length was checked");
                *from = rest;
                <$int>::from_be_bytes(*bytes)
            }

            #[inline]
            fn write(&self, to: &mut BytesMut) {
                to.put_slice(&self.to_be_bytes());
            }
        }
    )*};
}
integers!(u8 u16 u32 u64 i64);

/// A value that is one field.
macro_rules! field_parts {
    ($($field:ty)*) => {$(
        impl $crate::body::Part for $field {
            fn take(bytes: bytes::Bytes) -> Option<Self> {
                (bytes.len() == <$field as $crate::body::Field>::LEN).then(|| $crate::body::Field::read(&mut &bytes[..]))
            }

            fn put(&self, to: &mut bytes::BytesMut) {
                $crate::body::Field::write(self, to);
            }
        }
    )*};
}
field_parts!(u16 u64);

/// Messages whose extras are fixed fields, with or without a key and a value. What is not named must be empty.
macro_rules! bodies {
    ($(
        $(#[$meta:meta])*
        $name:ident {
            $(extras { $($(#[$extra_doc:meta])* $extra:ident: $extra_type:ty,)* })?
            $(key { $(#[$key_doc:meta])* $key:ident: $key_type:ty })?
            $(value { $(#[$value_doc:meta])* $value:ident: $value_type:ty })?
        }
    )*) => {$(
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct $name {
            $($($(#[$extra_doc])* pub $extra: $extra_type,)*)?
            $($(#[$key_doc])* pub $key: $key_type,)?
            $($(#[$value_doc])* pub $value: $value_type,)?
        }

        impl $crate::body::Body for $name {
            #[inline]
            #[allow(unused_mut, unused_variables, reason = "not every message has all three parts")]
            fn decode(parts: $crate::body::Parts) -> $crate::error::Result<Self> {
                const LEN: usize = 0 $($(+ <$extra_type as $crate::body::Field>::LEN)*)?;
                const KEYS: usize = 0 $(+ { let _ = stringify!($key); 1 })?;
                const VALUES: usize = 0 $(+ { let _ = stringify!($value); 1 })?;
                const WHAT: &str = concat!("the content is not that of ", stringify!($name));
                let mut extras = parts.extras();
                if extras.len() != LEN {
                    return Err(parts.malformed(WHAT));
                }
                $($(let $extra = <$extra_type as $crate::body::Field>::read(&mut extras);)*)?
                let whole = parts.clone();
                let (key, value) = parts.into_key_and_value();
                if (KEYS == 0 && !key.is_empty()) || (VALUES == 0 && !value.is_empty()) {
                    return Err(whole.malformed(WHAT));
                }
                $(let $key = <$key_type as $crate::body::Part>::take(key).ok_or_else(|| whole.malformed(WHAT))?;)?
                $(let $value = <$value_type as $crate::body::Part>::take(value).ok_or_else(|| whole.malformed(WHAT))?;)?
                Ok($name { $($($extra,)*)? $($key,)? $($value,)? })
            }

            fn encode(&self, to: &mut $crate::body::Writer<'_>) {
                let _ = &to;
                $($(to.field(&self.$extra);)*)?
                $(to.key_part(&self.$key);)?
                $(to.value_part(&self.$value);)?
            }
        }
    )*};
}

bodies! {
    /// A message without extras, key and value.
    Empty {}
}
