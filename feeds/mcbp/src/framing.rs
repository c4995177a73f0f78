//! Framing extras: what a flex frame says besides its command (protocol, section 1.3).

use bytes::{Buf as _, BufMut as _, BytesMut};

use crate::dcp::Durability;
use crate::error::{Error, Result};

/// Whose framing extras they are: the same number means different things.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Of a request.
    Request,
    /// Of a response.
    Response,
}

/// One framing extra.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FrameInfo<'a> {
    /// Run nothing of this connection at the same time.
    Barrier,
    /// What must hold before a write is answered.
    Durability {
        /// What must hold.
        level: Durability,
        /// How long that may take, in milliseconds; as long as the server lets it if none.
        timeout_ms: Option<u16>,
    },
    /// The stream a DCP message belongs to, if there are several per vbucket.
    StreamId(u16),
    /// How long the server worked, in microseconds.
    ServerDuration(u64),
    /// Anything else, by number.
    Other {
        /// Its number.
        id: u16,
        /// Its content.
        data: &'a [u8],
    },
}

/// Iterates over framing extras. After an error it ends.
#[derive(Clone, Debug)]
pub struct FrameInfos<'a> {
    kind: Kind,
    rest: &'a [u8],
}

/// Where an escape begins: the number is 15 and the byte that follows.
const ESCAPE: u16 = 15;

/// The framing extras in `bytes`.
pub fn frame_infos(kind: Kind, bytes: &[u8]) -> FrameInfos<'_> {
    FrameInfos { kind, rest: bytes }
}

/// Appends a framing extra.
///
/// # Errors
/// `Invalid` if the number or the length is over 270.
pub fn put_frame_info(out: &mut BytesMut, info: FrameInfo<'_>) -> Result<()> {
    match info {
        FrameInfo::Barrier => put(out, 0, &[]),
        FrameInfo::Durability { level, timeout_ms: None } => put(out, 1, &[level.code()]),
        FrameInfo::Durability { level, timeout_ms: Some(timeout) } => {
            let [high, low] = timeout.to_be_bytes();
            put(out, 1, &[level.code(), high, low])
        }
        FrameInfo::StreamId(id) => put(out, 2, &id.to_be_bytes()),
        FrameInfo::ServerDuration(micros) => {
            let encoded = (micros as f64 * 2.0).powf(1.0 / 1.74).round().min(f64::from(u16::MAX)) as u16;
            put(out, 0, &encoded.to_be_bytes())
        }
        FrameInfo::Other { id, data } => put(out, id, data),
    }
}

fn put(out: &mut BytesMut, id: u16, data: &[u8]) -> Result<()> {
    let too_long = || Error::invalid("a framing extra has a number or a length over 270");
    let length = u16::try_from(data.len()).map_err(|_| too_long())?;
    if id.max(length) > ESCAPE + 0xff {
        return Err(too_long());
    }
    out.put_u8(((id.min(ESCAPE) as u8) << 4) | length.min(ESCAPE) as u8);
    for number in [id, length] {
        if number >= ESCAPE {
            out.put_u8((number - ESCAPE) as u8);
        }
    }
    out.put_slice(data);
    Ok(())
}

impl<'a> FrameInfos<'a> {
    /// The stream a DCP message belongs to, if it says so.
    ///
    /// # Errors
    /// `Malformed` if the framing extras before it are.
    pub fn stream_id(self) -> Result<Option<u16>> {
        for info in self {
            if let FrameInfo::StreamId(id) = info? {
                return Ok(Some(id));
            }
        }
        Ok(None)
    }

    /// What must hold before a write is answered, if the request says so.
    ///
    /// # Errors
    /// `Malformed` if the framing extras before it are.
    pub fn durability(self) -> Result<Option<Durability>> {
        for info in self {
            if let FrameInfo::Durability { level, .. } = info? {
                return Ok(Some(level));
            }
        }
        Ok(None)
    }

    fn take(&mut self) -> Option<FrameInfo<'a>> {
        let mut rest = std::mem::take(&mut self.rest);
        let first = rest.try_get_u8().ok()?;
        let id = number(u16::from(first >> 4), &mut rest)?;
        let length = number(u16::from(first & 0xf), &mut rest)?;
        let (data, rest) = rest.split_at_checked(usize::from(length))?;
        self.rest = rest;
        Some(match (self.kind, id, data) {
            (Kind::Request, 0, []) => FrameInfo::Barrier,
            (Kind::Request, 1, &[level]) => FrameInfo::Durability { level: level.into(), timeout_ms: None },
            (Kind::Request, 1, &[level, high, low]) => {
                FrameInfo::Durability { level: level.into(), timeout_ms: Some(u16::from_be_bytes([high, low])) }
            }
            (Kind::Request, 2, &[high, low]) => FrameInfo::StreamId(u16::from_be_bytes([high, low])),
            (Kind::Response, 0, &[high, low]) => {
                let encoded = f64::from(u16::from_be_bytes([high, low]));
                FrameInfo::ServerDuration((encoded.powf(1.74) / 2.0).round() as u64)
            }
            _ => FrameInfo::Other { id, data },
        })
    }
}

/// The number that half a byte begins, with what follows an escape.
fn number(half: u16, rest: &mut &[u8]) -> Option<u16> {
    if half < ESCAPE {
        return Some(half);
    }
    Some(ESCAPE + u16::from(rest.try_get_u8().ok()?))
}

impl<'a> Iterator for FrameInfos<'a> {
    type Item = Result<FrameInfo<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        Some(self.take().ok_or_else(|| Error::malformed("a framing extra is cut short")))
    }
}

impl std::iter::FusedIterator for FrameInfos<'_> {}
