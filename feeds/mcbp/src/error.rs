//! The one error type: what was wrong, in which message and where in it.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;

/// The result of anything here that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What a caller can act on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The bytes are no frames: where the next one begins is not known any more. Close the connection.
    Framing,
    /// A frame's content is not what its opcode asks for, or a text is not what it should be. The frames after it are intact.
    Malformed,
    /// Something is over a limit.
    TooLarge,
    /// Well formed, but not served here, for example a bucket without vbuckets.
    Unsupported,
    /// The other side did not prove who it is, or offers no acceptable way to prove who we are.
    Authentication,
    /// What was asked to be encoded has no encoding, or an option is wrong.
    Invalid,
}

/// An error with its kind, and the opcode and offset it concerns. Holds no key, value or secret.
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    message: Cow<'static, str>,
    opcode: Option<u8>,
    offset: Option<usize>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// An error of `kind`.
    #[cold]
    pub fn new(kind: ErrorKind, message: impl Into<Cow<'static, str>>) -> Self {
        Error(Box::new(Inner { kind, message: message.into(), opcode: None, offset: None, source: None }))
    }

    pub(crate) fn malformed(message: impl Into<Cow<'static, str>>) -> Self {
        Error::new(ErrorKind::Malformed, message)
    }

    pub(crate) fn invalid(message: impl Into<Cow<'static, str>>) -> Self {
        Error::new(ErrorKind::Invalid, message)
    }

    /// Names the message; the first name given stays.
    #[must_use]
    pub fn with_opcode(mut self, opcode: u8) -> Self {
        self.0.opcode.get_or_insert(opcode);
        self
    }

    /// Says where in the bytes given it was found; the first offset given stays.
    #[must_use]
    pub fn with_offset(mut self, offset: usize) -> Self {
        self.0.offset.get_or_insert(offset);
        self
    }

    /// Adds the cause.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// What a caller can act on.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The opcode of the message concerned, if it is one message.
    pub fn opcode(&self) -> Option<u8> {
        self.0.opcode
    }

    /// Where in the bytes given it was found, if that is known.
    pub fn offset(&self) -> Option<usize> {
        self.0.offset
    }

    /// Whether the connection cannot go on.
    pub fn is_fatal(&self) -> bool {
        self.0.kind == ErrorKind::Framing
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)?;
        match (self.0.opcode, self.0.offset) {
            (Some(opcode), Some(offset)) => write!(f, " (opcode {opcode:#04x}, offset {offset})"),
            (Some(opcode), None) => write!(f, " (opcode {opcode:#04x})"),
            (None, Some(offset)) => write!(f, " (offset {offset})"),
            (None, None) => Ok(()),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {self}", self.0.kind)?;
        let mut source = self.source();
        while let Some(cause) = source {
            write!(f, ": {cause}")?;
            source = cause.source();
        }
        Ok(())
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|source| source as &(dyn StdError + 'static))
    }
}
