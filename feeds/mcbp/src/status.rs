//! How a request went.

use serde::Deserialize;

codes! {
    /// Status codes (protocol, section 2.8).
    Status: u16 {
        /// Done.
        Success = 0x00,
        /// There is no such key, stream or history.
        KeyNotFound = 0x01,
        /// There is such a key or stream already.
        KeyExists = 0x02,
        /// The value is too large.
        TooBig = 0x03,
        /// The request is malformed, or names an unknown option.
        InvalidArguments = 0x04,
        /// The document was not written.
        NotStored = 0x05,
        /// The document is no counter.
        NotANumber = 0x06,
        /// The vbucket is not here, or not in the state asked for.
        NotMyVbucket = 0x07,
        /// No bucket is selected, or there is none of this name.
        NoBucket = 0x08,
        /// The document is locked.
        Locked = 0x09,
        /// There is no such stream.
        DcpStreamNotFound = 0x0a,
        /// No stream has this opaque.
        DcpOpaqueNoMatch = 0x0b,
        /// Asked too much of the server; it would delay the answer.
        WouldThrottle = 0x0c,
        /// The node knows the bucket, and has no data of it.
        ConfigOnly = 0x0d,
        /// Authentication is out of date: connect again.
        AuthStale = 0x1f,
        /// Authentication has failed.
        AuthError = 0x20,
        /// Authentication goes on.
        AuthContinue = 0x21,
        /// A number is outside its range.
        Range = 0x22,
        /// The client must take back what it has above a sequence number.
        Rollback = 0x23,
        /// The user may not do this.
        AccessDenied = 0x24,
        /// The node is starting.
        NotInitialized = 0x25,
        /// Too much traffic.
        RateLimitedNetworkIngress = 0x30,
        /// Too much traffic.
        RateLimitedNetworkEgress = 0x31,
        /// Too many connections.
        RateLimitedMaxConnections = 0x32,
        /// Too many operations.
        RateLimitedMaxCommands = 0x33,
        /// A framing extra is unknown.
        UnknownFrameInfo = 0x80,
        /// The opcode is unknown.
        UnknownCommand = 0x81,
        /// No memory for this now.
        NoMemory = 0x82,
        /// Not supported here.
        NotSupported = 0x83,
        /// The server has failed inside.
        Internal = 0x84,
        /// The server is busy.
        Busy = 0x85,
        /// It may work later.
        TemporaryFailure = 0x86,
        /// There is no such collection, as far as the node knows.
        UnknownCollection = 0x88,
        /// The client knows a newer collections manifest than the node.
        ManifestAhead = 0x8b,
        /// There is no such scope, as far as the node knows.
        UnknownScope = 0x8c,
        /// A stream id is missing, or must not be given.
        DcpStreamIdInvalid = 0x8d,
        /// There is no such level of durability.
        DurabilityInvalidLevel = 0xa0,
        /// Too few nodes have a copy for this durability.
        DurabilityImpossible = 0xa1,
        /// The document has a durable write that is not complete yet.
        SyncWriteInProgress = 0xa2,
        /// Whether the durable write holds is not known.
        SyncWriteAmbiguous = 0xa3,
        /// The document has a durable write that is being made to hold again.
        SyncWriteReCommitInProgress = 0xa4,
    }
}

/// What to do about a status (protocol, section 2.8). What it means for one request is the caller's to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reaction {
    /// Go on.
    Continue,
    /// Take back what is above the sequence number that the response holds.
    RollBack,
    /// Fetch the cluster map, and ask the node that has the vbucket now.
    RefreshConfig,
    /// Ask another node.
    AnotherNode,
    /// Ask again later, and then later still.
    BackOff,
    /// Connect again.
    Reconnect,
    /// Report it: this request does not work, others may.
    Fail,
}

impl Status {
    /// Whether the value of the response is what was asked for, not the description of a failure.
    pub fn is_success_class(self) -> bool {
        matches!(self, Status::Success | Status::AuthContinue | Status::Rollback)
    }

    /// What to do about it; none for a code that only the server's [error map](crate::errormap) may explain.
    pub fn reaction(self) -> Option<Reaction> {
        use Status::*;
        Some(match self {
            Success | AuthContinue => Reaction::Continue,
            Rollback => Reaction::RollBack,
            NotMyVbucket => Reaction::RefreshConfig,
            ConfigOnly => Reaction::AnotherNode,
            WouldThrottle
            | NotInitialized
            | RateLimitedNetworkIngress
            | RateLimitedNetworkEgress
            | RateLimitedMaxConnections
            | RateLimitedMaxCommands
            | NoMemory
            | Internal
            | Busy
            | TemporaryFailure
            | UnknownCollection
            | ManifestAhead
            | UnknownScope
            | SyncWriteInProgress
            | SyncWriteReCommitInProgress => Reaction::BackOff,
            AuthStale => Reaction::Reconnect,
            Other(_) => return None,
            _ => Reaction::Fail,
        })
    }
}

/// What a failed response says besides its status (protocol, section 2.8).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Failure {
    /// What went wrong, in the server's words.
    pub context: Option<String>,
    /// Where to find it in the server's log.
    pub reference: Option<String>,
    /// The number of the collections manifest the node has, if a collection or scope is unknown to it.
    pub manifest_uid: Option<u64>,
}

impl Failure {
    /// Reads the value of a failed response. Whatever is no such text gives an empty description: it only explains.
    pub fn parse(value: &[u8]) -> Failure {
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Text {
            error: Words,
            manifest_uid: Option<String>,
        }
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Words {
            context: Option<String>,
            #[serde(rename = "ref")]
            reference: Option<String>,
        }
        let text: Text = serde_json::from_slice(value).unwrap_or_default();
        let manifest_uid = text.manifest_uid.and_then(|uid| u64::from_str_radix(&uid, 16).ok());
        Failure { context: text.error.context, reference: text.error.reference, manifest_uid }
    }
}
