//! What can go wrong between a client and a node.

use std::error::Error as StdError;
use std::fmt;

use crate::config::Address;
use crate::status::{Failure, Status};
use crate::{Error, ErrorKind, Reply, Response};

/// The result of anything a session does.
pub type ClientResult<T, E = ClientError> = std::result::Result<T, E>;

/// What a caller can act on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// No connection could be made.
    Unreachable,
    /// No answer in time.
    Timeout,
    /// The other side has closed the connection, or it broke.
    Closed,
    /// What came is not what the protocol asks for.
    Protocol,
    /// User name or password are wrong, the certificate is nobody's, or no mechanism is acceptable.
    Authentication,
    /// The node's certificate is not to be trusted, or the node does not accept the client's.
    Certificate,
    /// The user may not do this; or, of a bucket, there may be none of this name.
    AccessDenied,
    /// There is no such bucket here.
    NoBucket,
    /// An option is wrong.
    Invalid,
    /// It works with no server of this kind.
    Unsupported,
    /// The request was refused with this status.
    Refused(Status),
}

/// An error with its [`Fault`], and the node it concerns. Holds no secret.
pub struct ClientError(Box<Inner>);

struct Inner {
    fault: Fault,
    message: String,
    node: Option<Address>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl ClientError {
    /// An error.
    pub fn new(fault: Fault, message: impl Into<String>) -> Self {
        ClientError(Box::new(Inner { fault, message: message.into(), node: None, source: None }))
    }

    /// Names the node; the first given stays.
    #[must_use]
    pub fn at(mut self, node: &Address) -> Self {
        self.0.node.get_or_insert_with(|| node.clone());
        self
    }

    /// Adds the cause.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// What a refused request says, in the server's words if it gives any.
    pub fn refused(what: &str, response: &Response) -> Self {
        let failure = match &response.reply {
            Reply::Failed(parts) => Failure::parse(&parts.value()),
            _ => Failure::default(),
        };
        let mut message = format!("{what} was refused: {:?} ({:#04x})", response.status, response.status.code());
        for said in [failure.context, failure.reference.map(|reference| format!("reference {reference}"))].into_iter().flatten() {
            message = format!("{message}; {said}");
        }
        ClientError::new(Fault::Refused(response.status), message)
    }

    /// What a caller can act on.
    pub fn fault(&self) -> Fault {
        self.0.fault
    }

    /// The node it concerns, if it is one.
    pub fn node(&self) -> Option<&Address> {
        self.0.node.as_ref()
    }

    /// Whether the same will most likely fail again, whatever is waited for.
    pub fn is_permanent(&self) -> bool {
        use Fault::*;
        match self.0.fault {
            Authentication | Certificate | AccessDenied | NoBucket | Invalid | Unsupported => true,
            Refused(status) => matches!(status, Status::InvalidArguments | Status::AccessDenied | Status::NotSupported),
            _ => false,
        }
    }
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0.node {
            Some(node) => write!(f, "{node}: {}", self.0.message),
            None => f.write_str(&self.0.message),
        }
    }
}

impl fmt::Debug for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {self}", self.0.fault)?;
        let mut source = self.source();
        while let Some(cause) = source {
            write!(f, ": {cause}")?;
            source = cause.source();
        }
        Ok(())
    }
}

impl StdError for ClientError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|source| source as &(dyn StdError + 'static))
    }
}

impl From<Error> for ClientError {
    fn from(error: Error) -> Self {
        let fault = match error.kind() {
            ErrorKind::Authentication => Fault::Authentication,
            ErrorKind::Invalid => Fault::Invalid,
            ErrorKind::Unsupported => Fault::Unsupported,
            _ => Fault::Protocol,
        };
        ClientError::new(fault, error.to_string()).with_source(error)
    }
}
