//! The one error type: what went wrong, whether trying again can help, and where it happened.

use std::error::Error as StdError;
use std::fmt;

/// The result of anything in Sluicegate that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What a caller can act on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// An option, URL or file is wrong; the message names it.
    ConfigInvalid,
    /// The backend does not do this; its capabilities say so.
    Unsupported,
    /// The thing named is not there.
    NotFound,
    /// An insert found the key taken.
    AlreadyExists,
    /// A compare-and-swap found another version.
    Conflict,
    /// The value or the request is over a limit.
    TooLarge,
    /// The other side asks us to slow down.
    RateLimited,
    /// The other side cannot be reached.
    Unavailable,
    /// No answer in time.
    Timeout,
    /// A writer of a later epoch has taken over; this one must stop.
    Fenced,
    /// The feed took back events it had delivered.
    RolledBack,
    /// The request reaches below what the cache still holds.
    TooOld,
    /// Stored bytes cannot be what was written there.
    Corrupt,
    /// The thing asked has been shut down.
    Closed,
    /// None of the above; a bug, or another program's.
    Unexpected,
}

/// Whether repeating can help.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Status {
    /// The same call will fail again.
    Permanent,
    /// The call did nothing, and may work later.
    Temporary,
    /// The call may or may not have been applied: repeat only what is idempotent.
    Indeterminate,
}

/// An error with its kind, its status, the operation and things it concerned.
///
/// `Display` never contains the source: walk [`source`](StdError::source) for the chain, so that a log shows each message once.
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    status: Status,
    operation: &'static str,
    message: String,
    next_step: &'static str,
    context: Vec<(&'static str, String)>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// An error of `kind`, with the status that kind usually has.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        let status = match kind {
            ErrorKind::RateLimited | ErrorKind::Unavailable => Status::Temporary,
            ErrorKind::Timeout => Status::Indeterminate,
            _ => Status::Permanent,
        };
        Error(Box::new(Inner {
            kind,
            status,
            operation: "",
            message: message.into(),
            next_step: "",
            context: Vec::new(),
            source: None,
        }))
    }

    /// A wrong option, URL or file.
    pub fn config(message: impl Into<String>) -> Self {
        Error::new(ErrorKind::ConfigInvalid, message)
    }

    /// Stored bytes that cannot be what was written there.
    pub fn corrupt(message: impl Into<String>) -> Self {
        Error::new(ErrorKind::Corrupt, message)
    }

    /// The same error, with another status.
    #[must_use]
    pub fn with_status(mut self, status: Status) -> Self {
        self.0.status = status;
        self
    }

    /// Names the operation that failed; the first name given stays.
    #[must_use]
    pub fn with_operation(mut self, operation: &'static str) -> Self {
        if self.0.operation.is_empty() {
            self.0.operation = operation;
        }
        self
    }

    /// Adds a thing the error concerns, for example its key. One that it has already is not added
    /// again.
    #[must_use]
    pub fn with_context(mut self, name: &'static str, value: impl fmt::Display) -> Self {
        let context = (name, value.to_string());
        if !self.0.context.contains(&context) {
            self.0.context.push(context);
        }
        self
    }

    /// Says what to do about it; the first that is said stays.
    #[must_use]
    pub fn with_next_step(mut self, next_step: &'static str) -> Self {
        if self.0.next_step.is_empty() {
            self.0.next_step = next_step;
        }
        self
    }

    /// A thing the error concerns, by its name, for example its key.
    pub fn context(&self, name: &str) -> Option<&str> {
        self.0.context.iter().find(|(known, _)| *known == name).map(|(_, value)| value.as_str())
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

    /// Whether repeating can help.
    pub fn status(&self) -> Status {
        self.0.status
    }

    /// The operation that failed; empty if none was named.
    pub fn operation(&self) -> &'static str {
        self.0.operation
    }

    /// Whether an **idempotent** operation may be tried again: the status is temporary or indeterminate.
    pub fn is_retryable(&self) -> bool {
        self.0.status != Status::Permanent
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.0.operation.is_empty() {
            write!(f, "{}: ", self.0.operation)?;
        }
        f.write_str(&self.0.message)?;
        if !self.0.context.is_empty() {
            f.write_str(" (")?;
            for (i, (name, value)) in self.0.context.iter().enumerate() {
                let comma = if i == 0 { "" } else { ", " };
                write!(f, "{comma}{name} {value}")?;
            }
            f.write_str(")")?;
        }
        if !self.0.next_step.is_empty() {
            write!(f, "; {}", self.0.next_step)?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}/{:?}: {self}", self.0.kind, self.0.status)?;
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
        self.0.source.as_deref().map(|s| s as &(dyn StdError + 'static))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_names_operation_and_context_and_leaves_the_source_to_the_chain() {
        let error = Error::new(ErrorKind::Unavailable, "connection refused")
            .with_operation("get")
            .with_context("key", "_cache:_meta")
            .with_context("backend", "redis")
            .with_source(std::io::Error::other("os error 111"));
        assert_eq!(error.to_string(), "get: connection refused (key _cache:_meta, backend redis)");
        assert_eq!(error.source().map(ToString::to_string).as_deref(), Some("os error 111"));
        assert_eq!((error.context("backend"), error.context("node")), (Some("redis"), None));
        let error = error.with_next_step("start it").with_next_step("do something else");
        assert!(error.to_string().ends_with("backend redis); start it"), "{error}");
        assert!(error.is_retryable());
    }

    #[test]
    fn a_fenced_writer_does_not_try_again() {
        assert!(!Error::new(ErrorKind::Fenced, "epoch 4 has taken over").is_retryable());
    }
}
