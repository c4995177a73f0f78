//! Reading and writing documents: as much as a test and a simulated server need.

use bytes::Bytes;

use crate::body::{Body, Parts, Writer};
use crate::error::Result;

bodies! {
    /// A key, and nothing else: GET, DELETE, SELECT_BUCKET.
    Key {
        key {
            /// The key, or name.
            key: Bytes
        }
    }

    /// What is written: SET, ADD, REPLACE.
    Store {
        extras {
            /// The document's flags.
            flags: u32,
            /// When it expires: seconds since 1970, or from now if at most 30 days; 0 for never.
            expiry: u32,
        }
        key {
            /// The key.
            key: Bytes
        }
        value {
            /// The value, encoded as the datatype says.
            value: Bytes
        }
    }

    /// What is added to a document: APPEND, PREPEND.
    Extend {
        key {
            /// The key.
            key: Bytes
        }
        value {
            /// The bytes to add.
            value: Bytes
        }
    }

    /// By how much a counter changes: INCREMENT, DECREMENT.
    Count {
        extras {
            /// By how much.
            delta: u64,
            /// Where it begins if it does not exist.
            initial: u64,
            /// When it expires, as in [`Store`]; `ffffffff`: do not create it.
            expiry: u32,
        }
        key {
            /// The key.
            key: Bytes
        }
    }

    /// When a document expires.
    Touch {
        extras {
            /// As in [`Store`].
            expiry: u32,
        }
        key {
            /// The key.
            key: Bytes
        }
    }

    /// Which statistics.
    Stat {
        key {
            /// The group; empty for the usual ones.
            group: Bytes
        }
        value {
            /// Details, of some groups.
            value: Bytes
        }
    }

    /// The name of a collection with its scope, or of a scope.
    Path {
        value {
            /// `scope.collection`, or `scope`.
            path: Bytes
        }
    }

    /// A document as it was read.
    Document {
        extras {
            /// Its flags.
            flags: u32,
        }
        key {
            /// Its key, if it was asked for.
            key: Bytes
        }
        value {
            /// Its value, encoded as the datatype says.
            value: Bytes
        }
    }

    /// One of the statistics.
    Statistic {
        key {
            /// Its name; empty at the end of the statistics.
            name: Bytes
        }
        value {
            /// Its value.
            value: Bytes
        }
    }

    /// The number of a collection or scope (protocol, section 3.4).
    Id {
        extras {
            /// The number of the collections manifest that says so.
            manifest_uid: u64,
            /// The number.
            id: u32,
        }
    }
}

/// Where a write is in its vbucket's history, if the connection has agreed on that feature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// Identity of the history.
    pub vbucket_uuid: u64,
    /// Position in it.
    pub seqno: u64,
}

/// A write was done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stored {
    /// Where it is, if the connection has agreed on that feature.
    pub written: Option<Written>,
}

/// What a counter is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counter {
    /// Where the write is, if the connection has agreed on that feature.
    pub written: Option<Written>,
    /// Its value.
    pub value: u64,
}

fn read_written(parts: &Parts) -> Result<Option<Written>> {
    let extras = parts.extras();
    match (extras.first_chunk(), extras.last_chunk(), extras.len()) {
        (_, _, 0) => Ok(None),
        (Some(uuid), Some(seqno), 16) => {
            Ok(Some(Written { vbucket_uuid: u64::from_be_bytes(*uuid), seqno: u64::from_be_bytes(*seqno) }))
        }
        _ => Err(parts.malformed("the answer to a write has 16 bytes of extras, or none")),
    }
}

fn put_written(written: Option<Written>, to: &mut Writer<'_>) {
    if let Some(Written { vbucket_uuid, seqno }) = written {
        to.field(&vbucket_uuid);
        to.field(&seqno);
    }
}

impl Body for Stored {
    fn decode(parts: Parts) -> Result<Self> {
        let written = read_written(&parts)?;
        if !parts.key().is_empty() || !parts.value().is_empty() {
            return Err(parts.malformed("the answer to a write has neither key nor value"));
        }
        Ok(Stored { written })
    }

    fn encode(&self, to: &mut Writer<'_>) {
        put_written(self.written, to);
    }
}

impl Body for Counter {
    fn decode(parts: Parts) -> Result<Self> {
        let written = read_written(&parts)?;
        match (parts.key().is_empty(), parts.value()[..].try_into()) {
            (true, Ok(value)) => Ok(Counter { written, value: u64::from_be_bytes(value) }),
            _ => Err(parts.malformed("a counter has 8 bytes of value and no key")),
        }
    }

    fn encode(&self, to: &mut Writer<'_>) {
        put_written(self.written, to);
        to.value(&self.value.to_be_bytes());
    }
}
