//! What Redis says, as the project's errors.

use redis::{ErrorKind as Kind, RedisError};
use sluicegate_core::{Error, ErrorKind, Status};

/// Whether an operation changes something: then it may have been applied although no answer came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    Read,
    Write,
}

/// The error, with what can be done about it.
pub(crate) fn translate(error: RedisError, effect: Effect) -> Error {
    let made = match error.kind() {
        Kind::AuthenticationFailed => refused_login(),
        Kind::InvalidClientConfig => Error::config("the connection options are not possible"),
        Kind::ClusterConnectionNotFound => {
            Error::new(ErrorKind::Unavailable, "no node of the cluster that could answer can be reached")
        }
        Kind::Io => io(&error, effect),
        _ => answered(&error),
    };
    made.with_source(error)
}

fn refused_login() -> Error {
    Error::config("the server wants a user name or password, or refused the one given; check them in the store's URL")
}

/// The server has answered, and has done nothing.
fn answered(error: &RedisError) -> Error {
    let temporary = |message: &str| Error::new(ErrorKind::Unavailable, message);
    match error.code() {
        Some("OOM") => {
            Error::new(ErrorKind::RateLimited, "the server has reached its maxmemory; raise it, or move something else away")
        }
        Some("NOAUTH" | "WRONGPASS") => refused_login(),
        Some("NOPERM") => {
            Error::config("the user may not do this; give it the cache's keys and commands (see the store's README)")
        }
        Some("WRONGTYPE") => {
            Error::corrupt("the key holds another type of value: another program wrote it; use a namespace of its own")
        }
        Some("READONLY") => temporary("the server takes no writes: it is a replica; give the master's address"),
        Some("MISCONF") => temporary("the server takes no writes, because it cannot save to its disk"),
        Some("NOREPLICAS") => temporary("the server takes no writes, because it has too few replicas"),
        Some("LOADING") => temporary("the server is loading its data"),
        Some("BUSY") => temporary("the server is busy with a script"),
        Some("MASTERDOWN" | "CLUSTERDOWN" | "TRYAGAIN" | "MOVED" | "ASK") => {
            temporary("the node that has this slot cannot answer; a failover or a move of slots may be under way")
        }
        _ => Error::new(ErrorKind::Unexpected, "the server refused the command"),
    }
}

fn io(error: &RedisError, effect: Effect) -> Error {
    if error.is_connection_refusal() {
        return Error::new(ErrorKind::Unavailable, "the server cannot be reached; is it running, and is the address right?");
    }
    let status = match effect {
        Effect::Read => Status::Temporary,
        Effect::Write => Status::Indeterminate,
    };
    let made = if error.is_timeout() {
        Error::new(ErrorKind::Timeout, "no answer in time (the option timeout_ms)")
    } else {
        Error::new(ErrorKind::Unavailable, "the connection was lost")
    };
    made.with_status(status)
}
