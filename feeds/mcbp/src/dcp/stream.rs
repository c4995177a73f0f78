//! Connections and streams: opening, options, ending (protocol, sections 3 and 4).

use std::num::NonZeroU16;

use bytes::{BufMut as _, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use crate::body::Part;
use crate::error::{Error, Result};

flags! {
    /// What a DCP connection is for (protocol, section 3.1).
    OpenFlags: u32 {
        /// The server sends.
        PRODUCER = 0x001,
        /// With attributes.
        INCLUDE_XATTRS = 0x004,
        /// Without bodies.
        NO_VALUE = 0x008,
        /// Deletions say when.
        INCLUDE_DELETE_TIMES = 0x020,
        /// Without bodies, with the datatype they had: it may say `SNAPPY` of an empty value.
        NO_VALUE_WITH_UNDERLYING_DATATYPE = 0x040,
        /// Deletions keep the attributes that users have written.
        INCLUDE_DELETED_USER_XATTRS = 0x100,
        /// The first backfill has no deletions.
        SKIP_DELETES_IN_INITIAL_BACKFILL = 0x200,
    }
}

flags! {
    /// What a stream is to be (protocol, section 3.5).
    StreamFlags: u32 {
        /// Take the vbucket over. Not for clients.
        TAKEOVER = 0x01,
        /// End at what is on disk now.
        DISK_ONLY = 0x02,
        /// End at what there is now.
        TO_LATEST = 0x04,
        /// Without values; servers before 5.0.
        NO_VALUE = 0x08,
        /// Only from the active copy of the vbucket.
        ACTIVE_VB_ONLY = 0x10,
        /// The history must match, even at the start.
        STRICT_VBUUID = 0x20,
        /// Begin at what there is now.
        FROM_LATEST = 0x40,
        /// Do not roll back because deletions are gone.
        IGNORE_PURGED_TOMBSTONES = 0x80,
        /// Send what is in memory.
        CACHE_TRANSFER = 0x100,
    }
}

codes! {
    /// Why a stream is over (protocol, section 4.1).
    EndReason: u32 {
        /// Its end was reached.
        Ok = 0,
        /// It was closed by request.
        Closed = 1,
        /// The vbucket has moved or failed over.
        StateChanged = 2,
        /// The connection is going down.
        Disconnected = 3,
        /// The receiver was too slow.
        TooSlow = 4,
        /// The server could not read its disk.
        BackfillFailed = 5,
        /// The vbucket was rolled back on the node.
        Rollback = 6,
        /// All collections of the stream were dropped.
        FilterEmpty = 7,
        /// The user may not read it any more.
        LostPrivileges = 8,
    }
}

codes! {
    /// What a node's copy of a vbucket is (protocol, section 4.11).
    VbucketState: u8 {
        /// It takes writes.
        Active = 1,
        /// It follows the active one.
        Replica = 2,
        /// It is becoming active.
        Pending = 3,
        /// It is being removed.
        Dead = 4,
    }
}

bodies! {
    /// Makes a connection a DCP one (protocol, section 3.1).
    Open {
        extras {
            /// Nothing; 0.
            reserved: u32,
            /// What the connection is for.
            flags: OpenFlags,
        }
        key {
            /// Name of the connection, 1 to 200 bytes; the server closes an older one of the same name.
            name: Bytes
        }
        value {
            /// JSON of a consumer; empty for a producer.
            value: Bytes
        }
    }

    /// Asks a consumer to open a stream. Not for clients.
    AddStream {
        extras {
            /// As in a stream request.
            flags: StreamFlags,
        }
    }

    /// Sets an option of the connection (protocol, section 3.3).
    Control {
        key {
            /// The option.
            name: Bytes
        }
        value {
            /// Its value, as text.
            value: Bytes
        }
    }

    /// Opens a stream (protocol, section 3.5). The vbucket is in the header.
    StreamRequest {
        extras {
            /// What the stream is to be.
            flags: StreamFlags,
            /// Nothing; 0.
            reserved: u32,
            /// The last position that was processed.
            start: u64,
            /// Where to end, at least; the snapshot that has it is sent whole.
            end: u64,
            /// Identity of the history that `start` belongs to.
            vbucket_uuid: u64,
            /// Start of the snapshot that `start` lies in; not above `start`.
            snapshot_start: u64,
            /// End of that snapshot; not below `start`.
            snapshot_end: u64,
        }
        value {
            /// Empty, or a [`StreamFilter`] if the connection has collections. Its datatype stays 0.
            filter: Bytes
        }
    }

    /// A stream is over (protocol, section 4.1).
    StreamEnd {
        extras {
            /// Why.
            reason: EndReason,
        }
    }

    /// The state of a vbucket (protocol, section 4.11).
    SetVbucketState {
        extras {
            /// The state.
            state: VbucketState,
        }
    }

    /// Bytes were consumed (protocol, section 6).
    BufferAck {
        extras {
            /// Bytes since the last one, headers included.
            bytes: u32,
        }
    }

    /// What a refused stream request must take back (protocol, section 5.4).
    Rollback {
        value {
            /// The last position that still holds.
            seqno: u64
        }
    }

    /// What an accepted stream request, or one for the log, is answered (protocol, section 3.4).
    Histories {
        value {
            /// The vbucket's histories.
            log: FailoverLog
        }
    }
}

/// One history of a vbucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailoverEntry {
    /// Its identity.
    pub vbucket_uuid: u64,
    /// Where it begins.
    pub seqno: u64,
}

/// The histories of a vbucket, newest first (protocol, section 3.4).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FailoverLog(pub Vec<FailoverEntry>);

impl FailoverLog {
    /// The history that is being written now.
    pub fn newest(&self) -> Option<FailoverEntry> {
        self.0.first().copied()
    }
}

impl Part for FailoverLog {
    fn take(bytes: Bytes) -> Option<Self> {
        let (entries, []) = bytes.as_chunks::<16>() else { return None };
        let entry = |entry: &[u8; 16]| {
            let both = u128::from_be_bytes(*entry);
            FailoverEntry { vbucket_uuid: (both >> 64) as u64, seqno: both as u64 }
        };
        Some(FailoverLog(entries.iter().map(entry).collect()))
    }

    fn put(&self, to: &mut BytesMut) {
        for entry in &self.0 {
            to.put_u64(entry.vbucket_uuid);
            to.put_u64(entry.seqno);
        }
    }
}

/// What a stream is to deliver, on a connection with collections (protocol, section 3.5).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StreamFilter {
    /// The number of the last collections manifest that was seen.
    pub manifest_uid: Option<u64>,
    /// The stream's number, from 1, if a vbucket may have several.
    pub stream_id: Option<u16>,
    /// Only these collections; all if there are none.
    pub collections: Vec<u32>,
    /// Only this scope. Not together with `collections`.
    pub scope: Option<u32>,
    /// The purge position of the snapshot that was last seen.
    pub purge_seqno: Option<u64>,
}

/// A filter as it is written: numbers as text, most of them hexadecimal.
#[derive(Deserialize, Serialize)]
struct FilterText {
    #[serde(skip_serializing_if = "Option::is_none")]
    uid: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sid: Option<NonZeroU16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    collections: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    scope: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    purge_seqno: Option<String>,
}

impl StreamFilter {
    /// The value of a stream request: JSON, or nothing for everything.
    ///
    /// # Errors
    /// `Invalid` for a scope together with collections, or stream number 0.
    pub fn encode(&self) -> Result<Bytes> {
        if *self == StreamFilter::default() {
            return Ok(Bytes::new());
        }
        if self.scope.is_some() && !self.collections.is_empty() {
            return Err(Error::invalid("a stream is limited to a scope or to collections, not both"));
        }
        if self.stream_id == Some(0) {
            return Err(Error::invalid("the numbers of streams begin at 1"));
        }
        let collections = || self.collections.iter().map(|id| format!("{id:x}")).collect();
        let text = FilterText {
            uid: self.manifest_uid.map(|uid| format!("{uid:x}")),
            sid: self.stream_id.and_then(NonZeroU16::new),
            collections: (!self.collections.is_empty()).then(collections),
            scope: self.scope.map(|id| format!("{id:x}")),
            purge_seqno: self.purge_seqno.map(|seqno| seqno.to_string()),
        };
        let text = serde_json::to_vec(&text).map_err(|error| Error::invalid("a stream filter has no JSON").with_source(error))?;
        Ok(text.into())
    }

    /// Reads the value of a stream request.
    ///
    /// # Errors
    /// `Malformed` if it is not such JSON, has none of the known keys, or has keys that exclude each other.
    pub fn parse(value: &[u8]) -> Result<StreamFilter> {
        if value.is_empty() {
            return Ok(StreamFilter::default());
        }
        let text: FilterText = serde_json::from_slice(value)
            .map_err(|error| Error::malformed("the value of a stream request is no stream filter").with_source(error))?;
        let filter = StreamFilter {
            manifest_uid: text.uid.map(|uid| number(&uid, 16)).transpose()?,
            stream_id: text.sid.map(NonZeroU16::get),
            collections: text.collections.iter().flatten().map(|id| number(id, 16)).collect::<Result<_>>()?,
            scope: text.scope.map(|id| number(&id, 16)).transpose()?,
            purge_seqno: text.purge_seqno.map(|seqno| number(&seqno, 10)).transpose()?,
        };
        if filter == StreamFilter::default() {
            return Err(Error::malformed("a stream filter has none of the known keys"));
        }
        if filter.scope.is_some() && !filter.collections.is_empty() {
            return Err(Error::malformed("a stream filter has both a scope and collections"));
        }
        Ok(filter)
    }
}

fn number<N: TryFrom<u64>>(text: &str, radix: u32) -> Result<N> {
    let number = u64::from_str_radix(text, radix).ok().and_then(|number| number.try_into().ok());
    number.ok_or_else(|| Error::malformed("a number of a stream filter is none, or too large"))
}
