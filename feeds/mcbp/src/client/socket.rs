//! Frames on a connection, read and written.

use std::io;
use std::time::Duration;

use bytes::{Buf as _, BytesMut};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::error::{ClientError, ClientResult, Fault};
use super::options::Tls;
use crate::config::Address;
use crate::frame::{FrameDecoder, Frames, HEADER_LEN};
use crate::{Message, Request, Response};

/// Bytes that one read takes at most, and what a buffer has that no large frame needs.
///
/// Keys and values of events are slices of such a buffer: nothing is copied, and whoever keeps one small value for long keeps up to this
/// much memory with it. Copy what is kept.
pub const READ_CHUNK: usize = 64 << 10;

/// Room below which a new buffer is taken rather than a few more bytes read.
const MIN_READ: usize = 4 << 10;

/// A connection, with or without TLS.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// Reads frames.
pub struct FrameReader {
    half: ReadHalf<Box<dyn Stream>>,
    buffer: BytesMut,
    decoder: FrameDecoder,
    /// Those that were read and not looked at.
    put_back: Option<Frames>,
}

/// Writes frames: they queue in a buffer until they are flushed.
pub struct FrameWriter {
    half: WriteHalf<Box<dyn Stream>>,
    buffer: BytesMut,
}

/// Connects.
///
/// # Errors
/// `Unreachable`, or `Timeout` after `timeout`.
pub(super) async fn connect(address: &Address, tls: Option<&Tls>, timeout: Duration) -> ClientResult<(FrameReader, FrameWriter)> {
    let connecting = async {
        let unreachable =
            |error: io::Error| ClientError::new(Fault::Unreachable, format!("cannot connect: {error}")).with_source(error);
        let tcp = TcpStream::connect((address.host.as_str(), address.port)).await.map_err(unreachable)?;
        if tcp.local_addr().ok() == tcp.peer_addr().ok() {
            // A port that nobody listens on may be the one that was chosen for this end.
            return Err(ClientError::new(Fault::Unreachable, "cannot connect: nobody listens there"));
        }
        tcp.set_nodelay(true).map_err(unreachable)?;
        let stream: Box<dyn Stream> = match tls {
            None => Box::new(tcp),
            Some(tls) => {
                let name = ServerName::try_from(address.host.clone()).map_err(|error| {
                    ClientError::new(Fault::Invalid, "the host's name cannot be that of a certificate").with_source(error)
                })?;
                Box::new(
                    TlsConnector::from(tls.config())
                        .connect(name, tcp)
                        .await
                        .map_err(|error| not_agreed(error, &address.host))?,
                )
            }
        };
        Ok::<_, ClientError>(stream)
    };
    match tokio::time::timeout(timeout, connecting).await {
        Ok(stream) => Ok(halves(stream?)),
        Err(_) => Err(ClientError::new(Fault::Timeout, format!("no connection within {timeout:?}"))),
    }
}

pub(super) fn halves(stream: Box<dyn Stream>) -> (FrameReader, FrameWriter) {
    let (read, write) = tokio::io::split(stream);
    let reader = FrameReader { half: read, buffer: BytesMut::new(), decoder: FrameDecoder::default(), put_back: None };
    (reader, FrameWriter { half: write, buffer: BytesMut::new() })
}

impl FrameReader {
    /// Waits for frames: all that have arrived entirely, one at least.
    ///
    /// Cancel safe: what has been read of a frame is kept.
    ///
    /// # Errors
    /// `Closed` if there will be no more; `Protocol` if the bytes are no frames. The connection is of no further use then.
    pub async fn read(&mut self) -> ClientResult<Frames> {
        if let Some(frames) = self.put_back.take() {
            return Ok(frames);
        }
        loop {
            let frames = self.decoder.frames(&mut self.buffer)?;
            if !frames.is_empty() {
                return Ok(frames);
            }
            self.make_room();
            match self.half.read_buf(&mut self.buffer).await {
                Ok(0) => return Err(ClientError::new(Fault::Closed, "the node has closed the connection")),
                Ok(_) => {}
                Err(error) => return Err(broken(error)),
            }
        }
    }

    /// Gives frames back that were read and not looked at: the next [`read`](Self::read) returns them.
    pub(super) fn put_back(&mut self, frames: Frames) {
        self.put_back = Some(frames).filter(|frames| !frames.is_empty());
    }

    /// Room for the rest of the first frame, or for a chunk. A large frame gets its room as it arrives, not as it is announced.
    fn make_room(&mut self) {
        let held = self.buffer.len();
        let announced = match self.buffer.first_chunk::<HEADER_LEN>() {
            Some(header) => HEADER_LEN + u32::from_be_bytes([header[8], header[9], header[10], header[11]]) as usize,
            None => 0,
        };
        let missing = announced.saturating_sub(held);
        let room = self.buffer.capacity() - held;
        if room < missing.min(READ_CHUNK) || room < MIN_READ {
            self.buffer.reserve(missing.min(held).max(READ_CHUNK - held.min(READ_CHUNK / 2)));
        }
    }
}

impl FrameWriter {
    /// Queues a request.
    ///
    /// # Errors
    /// `Invalid` if it has no encoding.
    pub fn push(&mut self, request: &Request) -> ClientResult<()> {
        Ok(request.encode(&mut self.buffer)?)
    }

    /// Queues an answer.
    ///
    /// # Errors
    /// `Invalid` if it has no encoding.
    pub fn answer(&mut self, response: &Response) -> ClientResult<()> {
        Ok(response.encode(&mut self.buffer)?)
    }

    /// Queues any message.
    ///
    /// # Errors
    /// `Invalid` if it has no encoding.
    pub fn push_message(&mut self, message: &Message) -> ClientResult<()> {
        Ok(message.encode(&mut self.buffer)?)
    }

    /// Bytes that are not written yet.
    pub fn queued(&self) -> usize {
        self.buffer.len()
    }

    /// Writes what is queued.
    ///
    /// Cancel safe: what was not written stays queued.
    ///
    /// # Errors
    /// `Closed`; the connection is of no further use then.
    pub async fn flush(&mut self) -> ClientResult<()> {
        while self.buffer.has_remaining() {
            match self.half.write_buf(&mut self.buffer).await {
                Ok(0) => return Err(ClientError::new(Fault::Closed, "the node takes no more bytes")),
                Ok(_) => {}
                Err(error) => return Err(broken(error)),
            }
        }
        self.half.flush().await.map_err(broken)
    }
}

fn broken(error: io::Error) -> ClientError {
    if let Some(refused) = refused(&error) {
        return refused.with_source(error);
    }
    ClientError::new(Fault::Closed, format!("the connection broke: {error}")).with_source(error)
}

/// Why TLS was not agreed on, and what to do about it.
fn not_agreed(error: io::Error, host: &str) -> ClientError {
    use rustls::CertificateError::*;
    if let Some(refused) = refused(&error) {
        return refused.with_source(error);
    }
    let message = match tls_error(&error) {
        // An authority that was made anew with the same name does not match in its signature only.
        Some(rustls::Error::InvalidCertificate(UnknownIssuer | BadSignature)) => {
            "the node's certificate is of an authority that is not trusted; name the file with the authority's certificate (option ca)"
                .to_owned()
        }
        Some(rustls::Error::InvalidCertificate(NotValidForName | NotValidForNameContext { .. })) => {
            format!("the node's certificate is not for `{host}`; name the node as its certificate does, or give it one with this name")
        }
        Some(rustls::Error::InvalidCertificate(Expired | ExpiredContext { .. })) => {
            "the node's certificate has expired; give the node a new one, and look at this machine's clock".to_owned()
        }
        Some(rustls::Error::InvalidCertificate(_)) => {
            format!("{error}; look at the node's certificate, and at the one of its authority (option ca)")
        }
        _ => {
            let message = format!("TLS failed: {error}; is the port one with TLS?");
            return ClientError::new(Fault::Unreachable, message).with_source(error);
        }
    };
    ClientError::new(Fault::Certificate, message).with_source(error)
}

/// What a node has said that does not take the client's certificate. With TLS 1.3 it says so only after the client has agreed.
fn refused(error: &io::Error) -> Option<ClientError> {
    use rustls::AlertDescription::*;
    let message = match tls_error(error)? {
        rustls::Error::AlertReceived(CertificateRequired) => {
            "the node wants a certificate of the client; name it and its key (options client_cert and client_key)".to_owned()
        }
        rustls::Error::AlertReceived(
            alert @ (BadCertificate
            | UnsupportedCertificate
            | CertificateRevoked
            | CertificateExpired
            | CertificateUnknown
            | UnknownCA
            | AccessDenied
            | DecryptError),
        ) => format!(
            "the node does not accept the client's certificate ({alert:?}); check the option client_cert, and which authority the cluster trusts for clients"
        ),
        _ => return None,
    };
    Some(ClientError::new(Fault::Certificate, message))
}

fn tls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

impl std::fmt::Debug for FrameReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FrameReader").field("buffered", &self.buffer.len()).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for FrameWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FrameWriter").field("queued", &self.buffer.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::{Command, dcp};

    fn mutation(value: usize, opaque: u32) -> Request {
        let value = Bytes::from(vec![opaque as u8; value]);
        Request::new(Command::DcpMutation(dcp::Mutation { key: "k".into(), value, nru: Some(0), ..Default::default() }))
            .with_opaque(opaque)
    }

    #[tokio::test]
    async fn frames_cut_anywhere_come_whole_and_in_order() {
        let sizes = [0, 1, 30, 70_000, 5, 200_000, 3, 65_536, 0, 0, 12];
        for cut in [1, 7, 23, 24, 25, 4_000, 65_536, 1_000_000] {
            let (near, mut far) = tokio::io::duplex(cut);
            let (mut reader, _writer) = halves(Box::new(near));
            let mut bytes = BytesMut::new();
            for (opaque, size) in (0..).zip(sizes) {
                mutation(size, opaque).encode(&mut bytes).unwrap();
            }
            let write = async move {
                far.write_all(&bytes).await.unwrap();
            };
            let read = async {
                let mut seen = Vec::new();
                loop {
                    match reader.read().await {
                        Ok(frames) => seen.extend(frames.map(|frame| Request::decode(frame.unwrap()).unwrap())),
                        Err(error) => {
                            assert_eq!(error.fault(), Fault::Closed);
                            return seen;
                        }
                    }
                }
            };
            let (seen, ()) = tokio::join!(read, write);
            let expected: Vec<_> = (0..).zip(sizes).map(|(opaque, size)| mutation(size, opaque)).collect();
            assert!(seen == expected, "cut {cut}");
        }
    }

    #[tokio::test]
    async fn an_announced_length_is_not_allocated_before_its_bytes_arrive() {
        let (near, mut far) = tokio::io::duplex(1 << 20);
        let (mut reader, _writer) = halves(Box::new(near));
        let mut header = [0; HEADER_LEN];
        (header[0], header[1]) = (0x80, 0x57);
        header[8..12].copy_from_slice(&(20_u32 << 20).to_be_bytes());
        far.write_all(&header).await.unwrap();
        far.write_all(&[0; 1000]).await.unwrap();
        drop(far);
        assert_eq!(reader.read().await.unwrap_err().fault(), Fault::Closed);
        assert!(reader.buffer.capacity() < 4 * READ_CHUNK, "{}", reader.buffer.capacity());
    }

    #[tokio::test]
    async fn other_protocols_are_told() {
        let (near, mut far) = tokio::io::duplex(100);
        let (mut reader, _writer) = halves(Box::new(near));
        far.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
        let error = reader.read().await.unwrap_err();
        assert_eq!(error.fault(), Fault::Protocol);
        assert!(error.to_string().contains("does the port speak"), "{error}");
    }
}
