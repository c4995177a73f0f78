//! Frames: the 24-byte header and the body behind it (protocol, section 1).

use std::fmt;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

use crate::body::Parts;
use crate::error::{Error, ErrorKind, Result};
use crate::framing::{FrameInfos, Kind, frame_infos};
use crate::opcode::Opcode;
use crate::value::Datatype;

/// Bytes of a header.
pub const HEADER_LEN: usize = 24;

/// The largest body taken unless the decoder is told otherwise: a document of 20 MiB, 1 MiB of system attributes, and a margin.
pub const DEFAULT_MAX_BODY: usize = 24 << 20;

/// Who sends a frame, and how its header is laid out (protocol, section 1.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Magic {
    /// A request with framing extras.
    FlexRequest = 0x08,
    /// A response with framing extras.
    FlexResponse = 0x18,
    /// A request; a server's DCP messages are requests too.
    Request = 0x80,
    /// A response, also a client's to a DCP message.
    Response = 0x81,
    /// A request of the server outside DCP.
    ServerRequest = 0x82,
    /// A client's reply to [`ServerRequest`](Magic::ServerRequest).
    ServerReply = 0x83,
}

/// A header as it was read, checked to be consistent with itself (protocol, section 1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Direction and layout.
    pub magic: Magic,
    /// What the message is.
    pub opcode: u8,
    /// Bytes of framing extras; 0 unless the magic is a flex one.
    pub framing_len: u8,
    /// Bytes of the key; at most 255 with a flex magic.
    pub key_len: u16,
    /// Bytes of the extras.
    pub extras_len: u8,
    /// How the value is encoded.
    pub datatype: Datatype,
    /// The vbucket of a request, the status of a response.
    pub vbucket_or_status: u16,
    /// Bytes of everything behind the header.
    pub body_len: u32,
    /// Chosen by who asks, repeated by who answers.
    pub opaque: u32,
    /// Compare-and-swap value.
    pub cas: u64,
}

/// A header and its body: framing extras, extras, key, value. `Debug` leaves the body out.
///
/// The body is a slice of the chunk that was read: one small frame kept for long keeps its whole chunk in memory.
#[derive(Clone, PartialEq, Eq)]
pub struct Frame {
    header: Header,
    body: Bytes,
}

/// Cuts a stream of bytes into frames.
#[derive(Clone, Copy, Debug)]
pub struct FrameDecoder {
    max_body: usize,
}

/// The whole frames of one chunk. After an error it ends.
#[derive(Clone)]
pub struct Frames {
    chunk: Bytes,
}

impl Magic {
    #[inline]
    const fn from_byte(byte: u8) -> Option<Magic> {
        Some(match byte {
            0x08 => Magic::FlexRequest,
            0x18 => Magic::FlexResponse,
            0x80 => Magic::Request,
            0x81 => Magic::Response,
            0x82 => Magic::ServerRequest,
            0x83 => Magic::ServerReply,
            _ => return None,
        })
    }

    /// Whether the header has room for framing extras.
    #[inline]
    pub const fn is_flex(self) -> bool {
        matches!(self, Magic::FlexRequest | Magic::FlexResponse)
    }

    /// Whether this is an answer, so that the header holds a status instead of a vbucket.
    #[inline]
    pub const fn is_response(self) -> bool {
        matches!(self, Magic::Response | Magic::FlexResponse | Magic::ServerReply)
    }
}

impl Header {
    /// Reads a header.
    ///
    /// # Errors
    /// `Framing` if the magic is unknown, or framing extras, extras and key are longer than the body.
    #[inline]
    pub fn parse(bytes: &[u8; HEADER_LEN]) -> Result<Header> {
        let Some(magic) = Magic::from_byte(bytes[0]) else { return Err(bad_magic(bytes[0])) };
        let (framing_len, key_len) = match magic.is_flex() {
            true => (bytes[2], u16::from(bytes[3])),
            false => (0, u16::from_be_bytes([bytes[2], bytes[3]])),
        };
        let header = Header {
            magic,
            opcode: bytes[1],
            framing_len,
            key_len,
            extras_len: bytes[4],
            datatype: Datatype(bytes[5]),
            vbucket_or_status: u16::from_be_bytes([bytes[6], bytes[7]]),
            body_len: body_len(bytes),
            opaque: u32::from_be_bytes([bytes[12], bytes[13], bytes[14], bytes[15]]),
            cas: u64::from_be_bytes([bytes[16], bytes[17], bytes[18], bytes[19], bytes[20], bytes[21], bytes[22], bytes[23]]),
        };
        if header.value_offset() > header.body_len {
            return Err(negative_value(header.opcode));
        }
        Ok(header)
    }

    /// Writes the header.
    #[inline]
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        let mut out = &mut bytes[..];
        out.put_u8(self.magic as u8);
        out.put_u8(self.opcode);
        match self.magic.is_flex() {
            true => out.put_slice(&[self.framing_len, self.key_len as u8]),
            false => out.put_u16(self.key_len),
        }
        out.put_u8(self.extras_len);
        out.put_u8(self.datatype.0);
        out.put_u16(self.vbucket_or_status);
        out.put_u32(self.body_len);
        out.put_u32(self.opaque);
        out.put_u64(self.cas);
        bytes
    }

    /// Where in the body the value begins.
    #[inline]
    const fn value_offset(&self) -> u32 {
        self.framing_len as u32 + self.extras_len as u32 + self.key_len as u32
    }
}

impl Frame {
    /// The header.
    #[inline]
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// What the message is.
    #[inline]
    pub fn opcode(&self) -> Opcode {
        self.header.opcode.into()
    }

    /// Bytes of header and body.
    #[inline]
    pub fn wire_len(&self) -> usize {
        HEADER_LEN + self.body.len()
    }

    /// Bytes to acknowledge when a client has consumed the frame: 0 for what flow control does not count (protocol, section 6).
    #[inline]
    pub fn flow_control_len(&self) -> usize {
        use Opcode::*;
        match self.opcode() {
            _ if self.header.magic.is_response() => 0,
            // Servers count two bytes more than they send.
            DcpPrepare => self.wire_len() + 2,
            DcpStreamEnd | DcpSnapshotMarker | DcpMutation | DcpDeletion | DcpExpiration | DcpFlush | DcpSetVbucketState
            | DcpSystemEvent | DcpCommit | DcpAbort | DcpSeqnoAdvanced | DcpOsoSnapshot | DcpCacheTransfer
            | DcpCacheTransferEnd => self.wire_len(),
            _ => 0,
        }
    }

    /// The framing extras, undecoded.
    pub fn framing(&self) -> Bytes {
        self.body.slice(..usize::from(self.header.framing_len))
    }

    /// The framing extras, one by one.
    pub fn frame_infos(&self) -> FrameInfos<'_> {
        let kind = if self.header.magic.is_response() { Kind::Response } else { Kind::Request };
        frame_infos(kind, &self.body[..usize::from(self.header.framing_len)])
    }

    /// The extras.
    pub fn extras(&self) -> Bytes {
        let start = usize::from(self.header.framing_len);
        self.body.slice(start..start + usize::from(self.header.extras_len))
    }

    /// The key.
    pub fn key(&self) -> Bytes {
        let end = self.header.value_offset() as usize;
        self.body.slice(end - usize::from(self.header.key_len)..end)
    }

    /// The value.
    pub fn value(&self) -> Bytes {
        self.body.slice(self.header.value_offset() as usize..)
    }

    /// Appends the frame: the bytes it was read from.
    pub fn encode(&self, out: &mut BytesMut) {
        out.reserve(self.wire_len());
        out.put_slice(&self.header.encode());
        out.put_slice(&self.body);
    }

    /// The header, the framing extras, and the rest of the body.
    #[inline]
    pub(crate) fn into_parts(self) -> (Header, Bytes, Parts) {
        let Frame { header, mut body } = self;
        let framing = match header.framing_len {
            0 => Bytes::new(),
            n => body.split_to(usize::from(n)),
        };
        (header, framing, Parts::new(header.opcode, header.extras_len, header.key_len, body))
    }
}

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Frame").field(&self.header).finish()
    }
}

impl Default for FrameDecoder {
    fn default() -> Self {
        FrameDecoder::new(DEFAULT_MAX_BODY)
    }
}

impl FrameDecoder {
    /// A decoder that refuses bodies of more than `max_body` bytes.
    pub const fn new(max_body: usize) -> Self {
        FrameDecoder { max_body }
    }

    /// The next frame, cut off the front of `buffer`; none if it is not there entirely. Nothing is copied.
    ///
    /// # Errors
    /// `Framing`, as [`Header::parse`] gives it; `TooLarge` if a body is over the limit. Both say so before the body is there, and
    /// leave the buffer as it was: the connection is of no further use.
    pub fn decode(&self, buffer: &mut BytesMut) -> Result<Option<Frame>> {
        let Some(bytes) = buffer.first_chunk::<HEADER_LEN>() else { return Ok(None) };
        let header = Header::parse(bytes)?;
        let Some(total) = self.total_len(bytes) else { return Err(self.over_limit(&header)) };
        if buffer.len() < total {
            return Ok(None);
        }
        let mut body = buffer.split_to(total).freeze();
        body.advance(HEADER_LEN);
        Ok(Some(Frame { header, body }))
    }

    /// All frames that `buffer` holds entirely, cut off its front. Cheaper than [`decode`](FrameDecoder::decode) for many small ones.
    ///
    /// # Errors
    /// As `decode`, if that is what the buffer begins with; what precedes a bad frame is delivered first.
    pub fn frames(&self, buffer: &mut BytesMut) -> Result<Frames> {
        let mut end = 0;
        while let Some(bytes) = buffer[end..].first_chunk::<HEADER_LEN>() {
            match self.total_len(bytes) {
                Some(total) if buffer.len() - end >= total => end += total,
                Some(_) => {
                    if end == 0 {
                        Header::parse(bytes)?;
                    }
                    break;
                }
                None if end == 0 => return Err(self.over_limit(&Header::parse(bytes)?)),
                None => break,
            }
        }
        Ok(Frames { chunk: if end == 0 { Bytes::new() } else { buffer.split_to(end).freeze() } })
    }

    /// Bytes of the frame; none if it is over the limit.
    #[inline]
    fn total_len(&self, bytes: &[u8; HEADER_LEN]) -> Option<usize> {
        let body = body_len(bytes) as usize;
        (body <= self.max_body).then(|| HEADER_LEN + body)
    }

    #[cold]
    fn over_limit(&self, header: &Header) -> Error {
        let message = format!("a body of {} bytes is over the limit of {}", header.body_len, self.max_body);
        Error::new(ErrorKind::TooLarge, message).with_opcode(header.opcode).with_offset(8)
    }
}

impl Frames {
    /// Whether there are none left.
    pub fn is_empty(&self) -> bool {
        self.chunk.is_empty()
    }

    /// Bytes of the frames that are left, headers included.
    pub fn remaining_bytes(&self) -> usize {
        self.chunk.len()
    }
}

impl Iterator for Frames {
    type Item = Result<Frame>;

    #[inline]
    fn next(&mut self) -> Option<Result<Frame>> {
        let header = match Header::parse(self.chunk.first_chunk::<HEADER_LEN>()?) {
            Ok(header) => header,
            Err(error) => {
                self.chunk.clear();
                return Some(Err(error));
            }
        };
        let total = HEADER_LEN + header.body_len as usize;
        let body = self.chunk.slice(HEADER_LEN..total);
        self.chunk.advance(total);
        Some(Ok(Frame { header, body }))
    }
}

impl std::iter::FusedIterator for Frames {}

impl fmt::Debug for Frames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Frames").field("bytes", &self.chunk.len()).finish()
    }
}

#[inline]
fn body_len(bytes: &[u8; HEADER_LEN]) -> u32 {
    u32::from_be_bytes([bytes[8], bytes[9], bytes[10], bytes[11]])
}

#[cold]
fn bad_magic(byte: u8) -> Error {
    let message = format!("a frame cannot begin with {byte:#04x}; does the port speak the binary protocol, and without TLS?");
    Error::new(ErrorKind::Framing, message).with_offset(0)
}

#[cold]
fn negative_value(opcode: u8) -> Error {
    Error::new(ErrorKind::Framing, "extras and key are longer than the body").with_opcode(opcode).with_offset(8)
}
