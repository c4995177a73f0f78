//! What Redis says, as the project's errors.

use redis::{ErrorKind as Kind, RedisError};
use sluicegate_core::{Error, ErrorKind, Status};

use crate::line::is_answer;
use crate::link::Effect;

/// How a command failed.
#[derive(Clone, Debug)]
pub(crate) enum Failure {
    /// There is no connection: nothing was sent.
    Unreached(RedisError),
    /// It was sent, and no answer came: it may have been executed.
    Unanswered(RedisError),
    /// The server has answered, and has done nothing.
    Answered(RedisError),
    /// It was executed, and too few replicas have it.
    NotReplicated { have: i64, wanted: u32 },
}

impl Failure {
    /// A command whose answer is missing among others'.
    pub(crate) fn unanswered() -> Self {
        Failure::Unanswered((redis::ErrorKind::Client, "a command was not answered").into())
    }

    /// Whether another connection may do better: a server that has become a replica keeps the old ones, while its name may lead to the new master.
    pub(crate) fn needs_another_connection(&self) -> bool {
        match self {
            Failure::Unanswered(_) => true,
            Failure::Answered(error) => error.code() == Some("READONLY"),
            _ => false,
        }
    }

    /// Whether the server did not run a script that was sent by its hash: it does not know it, or
    /// the user may only send scripts whole.
    pub(crate) fn is_unknown_script(&self) -> bool {
        self.is_refused_hash() || matches!(self, Failure::Answered(error) if error.code() == Some("NOSCRIPT"))
    }

    /// Whether the user may not run scripts by their hashes.
    pub(crate) fn is_refused_hash(&self) -> bool {
        // What may not be done is named only in the text: the command, a key or a channel.
        let names_it = |detail: &str| detail.to_lowercase().contains("'evalsha'");
        matches!(self, Failure::Answered(error) if error.code() == Some("NOPERM") && error.detail().is_some_and(names_it))
    }

    /// Whether what the command writes may be there.
    pub(crate) fn may_have_written(&self) -> bool {
        matches!(self, Failure::Unanswered(_) | Failure::NotReplicated { .. })
    }
}

/// The error, with what can be done about it.
pub(crate) fn translate(failure: Failure, effect: Effect) -> Error {
    match failure {
        Failure::Unreached(error) => unreached(&error).with_source(error),
        // A server says only after the handshake that it wants a certificate.
        Failure::Unanswered(error) if error.to_string().contains("CertificateRequired") => unreached(&error).with_source(error),
        Failure::Unanswered(error) => unanswered(&error, effect).with_source(error),
        Failure::Answered(error) => answered(&error).with_source(error),
        Failure::NotReplicated { have, wanted } => {
            let message =
                format!("only {have} of {wanted} replicas have what was written (the option wait_replicas); are they running?");
            Error::new(ErrorKind::Unavailable, message).with_status(Status::Indeterminate)
        }
    }
}

const NO_NODE: &str = "no node of the cluster that could answer can be reached; are they running, and is each slot served?";

fn refused_login() -> Error {
    Error::config("the server wants a user name or password, or refused the one given; check them in the store's URL")
}

fn temporary(message: &str) -> Error {
    Error::new(ErrorKind::Unavailable, message)
}

fn answered(error: &RedisError) -> Error {
    if error.kind() == Kind::AuthenticationFailed {
        return refused_login();
    }
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

/// What went wrong with TLS. The client gives it as text only.
fn tls(error: &RedisError) -> Option<Error> {
    let text = format!("{error} {error:?}");
    if text.contains("CertificateRequired") || text.contains("HandshakeFailure") {
        return Some(Error::config(
            "the server wants a client's certificate; name the files in the options `client_cert` and `client_key`",
        ));
    }
    if text.contains("certificate") || text.contains("Certificate") || text.contains("UnknownCA") {
        let message = "a certificate is not accepted: the server's, unless the option `ca` names the file of the authority that signed it for this host, or ours";
        return Some(Error::config(message));
    }
    let is_other = text.contains("corrupt message") || text.contains("InvalidContentType");
    is_other.then(|| temporary("what answers does not speak TLS; use redis: instead of rediss:, or the port for TLS"))
}

fn unreached(error: &RedisError) -> Error {
    if let Some(error) = tls(error) {
        return error;
    }
    // Of a Cluster's nodes only the text says what each answered.
    let text = error.to_string();
    match error.kind() {
        Kind::AuthenticationFailed => refused_login(),
        _ if text.contains("AuthenticationFailed") || text.contains("NOAUTH") || text.contains("WRONGPASS") => refused_login(),
        _ if text.contains("cluster support disabled") => {
            Error::config("the server is no part of a Cluster; use redis:// or rediss://")
        }
        _ if text.contains("refused to switch database") => {
            Error::config("the server has no such database; see its setting `databases`, or leave the number out")
        }
        Kind::InvalidClientConfig => Error::config("the connection options are not possible"),
        Kind::ClusterConnectionNotFound => temporary(NO_NODE),
        Kind::Io if error.is_timeout() => temporary(
            "no connection in time (the option connect_timeout_ms); is the server running, is the address right, and does it speak TLS if and only if the URL begins with rediss?",
        ),
        Kind::Io => temporary("the server cannot be reached; is it running, and is the address right?"),
        _ if is_answer(error) => answered(error),
        _ => temporary("the connection was lost while it was made; the server may be starting or stopping"),
    }
}

fn unanswered(error: &RedisError, effect: Effect) -> Error {
    let status = if effect == Effect::Read { Status::Temporary } else { Status::Indeterminate };
    let made = if error.is_timeout() {
        Error::new(ErrorKind::Timeout, "no answer in time (the option timeout_ms)")
    } else if error.kind() == Kind::ClusterConnectionNotFound {
        temporary(NO_NODE)
    } else {
        Error::new(ErrorKind::Unavailable, "the connection was lost before the answer came")
    };
    made.with_status(status)
}
