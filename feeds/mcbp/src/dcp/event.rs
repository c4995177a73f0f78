//! What a stream delivers (protocol, section 4).

use bytes::{Buf as _, Bytes};

use crate::body::{Body, Field, Parts, Writer};
use crate::error::{Error, Result};
use crate::opcode::Opcode;
use crate::value::Datatype;

/// A document was written (protocol, section 4.3). Its compare-and-swap value and datatype are in the header.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mutation {
    /// Position in the vbucket.
    pub by_seqno: u64,
    /// The document's revision.
    pub rev_seqno: u64,
    /// The document's flags.
    pub flags: u32,
    /// When it expires, seconds since 1970; 0 for never.
    pub expiry: u32,
    /// How long it is locked, in seconds.
    pub lock_time: u32,
    /// How recently it was used; some old servers leave it out.
    pub nru: Option<u8>,
    /// The key, with the collection's number before it if the connection has collections.
    pub key: Bytes,
    /// The value, encoded as the datatype says.
    pub value: Bytes,
    /// What old servers add about conflict resolution (see [`ext_meta`]); usually empty.
    pub ext_meta: Bytes,
}

/// A document was deleted or has expired (protocol, sections 4.4 and 4.5).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removal {
    /// Position in the vbucket.
    pub by_seqno: u64,
    /// The document's revision.
    pub rev_seqno: u64,
    /// When, in seconds since 1970, in the form of the message that says it; 0 for a deletion that was not persisted yet.
    pub delete_time: Option<u32>,
    /// The key, with the collection's number before it if the connection has collections.
    pub key: Bytes,
    /// What is left of the value, usually nothing or attributes.
    pub value: Bytes,
    /// As in [`Mutation`]; only in the form without `delete_time`.
    pub ext_meta: Bytes,
}

flags! {
    /// What a snapshot is (protocol, section 4.2).
    MarkerFlags: u32 {
        /// From memory.
        MEMORY = 0x01,
        /// From disk.
        DISK = 0x02,
        /// Begins a checkpoint.
        CHECKPOINT = 0x04,
        /// Answer when all of it is processed.
        ACK = 0x08,
        /// Has the history of keys, not only their last state.
        HISTORY = 0x10,
        /// May contain a key more than once.
        DUPLICATE_KEYS = 0x20,
    }
}

/// A snapshot begins (protocol, section 4.2). Its start detects no gaps: it may lie below the first event, or at it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SnapshotMarker {
    /// Where it starts.
    pub start: u64,
    /// Its last position.
    pub end: u64,
    /// What it is.
    pub flags: MarkerFlags,
    /// What markers of version 2 say besides.
    pub detail: Option<MarkerDetail>,
}

/// What markers of version 2 say besides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MarkerDetail {
    /// 0 for version 2.0, 2 for version 2.2.
    pub version: u8,
    /// The last position that clients can see.
    pub max_visible_seqno: u64,
    /// The last durable write that is complete.
    pub high_completed_seqno: u64,
    /// What versions after 2.0 add, undecoded.
    pub rest: Bytes,
}

codes! {
    /// What must hold before a durable write holds (protocol, section 4.7).
    Durability: u8 {
        /// A majority has it in memory.
        Majority = 1,
        /// A majority has it in memory, the active node on disk.
        MajorityAndPersistToActive = 2,
        /// A majority has it on disk.
        PersistToMajority = 3,
    }
}

codes! {
    /// Which end of a snapshot in the order of keys it is (protocol, section 4.13).
    OsoBoundary: u32 {
        /// It begins.
        Start = 1,
        /// It ends.
        End = 2,
    }
}

bodies! {
    /// A durable write has begun (protocol, section 4.7).
    Prepare {
        extras {
            /// Position in the vbucket.
            by_seqno: u64,
            /// The document's revision.
            rev_seqno: u64,
            /// The document's flags.
            flags: u32,
            /// When it expires, seconds since 1970; 0 for never.
            expiry: u32,
            /// How long it is locked, in seconds.
            lock_time: u32,
            /// How recently it was used.
            nru: u8,
            /// Not 0 if the write deletes.
            deleted: u8,
            /// What must hold before it holds.
            durability: Durability,
        }
        key {
            /// The key, with the collection's number before it if the connection has collections.
            key: Bytes
        }
        value {
            /// The value, encoded as the datatype says.
            value: Bytes
        }
    }

    /// A durable write holds (protocol, section 4.8).
    Commit {
        extras {
            /// Position of its [`Prepare`].
            prepared_seqno: u64,
            /// Position in the vbucket.
            commit_seqno: u64,
        }
        key {
            /// The key, with the collection's number before it if the connection has collections.
            key: Bytes
        }
    }

    /// A durable write was given up (protocol, section 4.9).
    Abort {
        extras {
            /// Position of its [`Prepare`].
            prepared_seqno: u64,
            /// Position in the vbucket.
            abort_seqno: u64,
        }
        key {
            /// The key, with the collection's number before it if the connection has collections.
            key: Bytes
        }
    }

    /// The position moves without an event (protocol, section 4.10).
    SeqnoAdvanced {
        extras {
            /// Position in the vbucket.
            by_seqno: u64,
        }
    }

    /// A replica has durable writes up to a number.
    SeqnoAcknowledged {
        extras {
            /// Position of the last one it has.
            prepared_seqno: u64,
        }
    }

    /// A snapshot in the order of keys begins or ends (protocol, section 4.13).
    OsoSnapshot {
        extras {
            /// Which.
            boundary: OsoBoundary,
        }
    }

    /// Documents from the cache of the other side (protocol, section 4.14).
    CacheTransfer {
        value {
            /// The documents, undecoded; see [`CacheTransfer::documents`].
            value: Bytes
        }
    }
}

/// One document of a [`CacheTransfer`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CachedDocument {
    /// Compare-and-swap value.
    pub cas: u64,
    /// Position in the vbucket.
    pub by_seqno: u64,
    /// The document's revision.
    pub rev_seqno: u64,
    /// The document's flags.
    pub flags: u32,
    /// When it expires, seconds since 1970; 0 for never.
    pub expiry: u32,
    /// How the value is encoded.
    pub datatype: Datatype,
    /// How hot the document is.
    pub hint: u8,
    /// The key.
    pub key: Bytes,
    /// The value.
    pub value: Bytes,
}

impl Body for Mutation {
    #[inline]
    fn decode(parts: Parts) -> Result<Self> {
        const WHAT: &str = "a mutation has 31 or 30 bytes of extras, and a value not shorter than its metadata";
        let mut extras = parts.extras();
        if !matches!(extras.len(), 30 | 31) {
            return Err(parts.malformed(WHAT));
        }
        let from = &mut extras;
        let by_seqno = u64::read(from);
        let rev_seqno = u64::read(from);
        let (flags, expiry, lock_time) = (u32::read(from), u32::read(from), u32::read(from));
        let meta_len = usize::from(u16::read(from));
        let nru = from.first().copied();
        let (key, value, ext_meta) = split_ext_meta(parts, meta_len, WHAT)?;
        Ok(Mutation { by_seqno, rev_seqno, flags, expiry, lock_time, nru, key, value, ext_meta })
    }

    fn encode(&self, to: &mut Writer<'_>) {
        to.field(&self.by_seqno);
        to.field(&self.rev_seqno);
        to.field(&self.flags);
        to.field(&self.expiry);
        to.field(&self.lock_time);
        to.length(self.ext_meta.len());
        to.extras(self.nru.as_slice());
        to.key(&self.key);
        to.value(&self.value);
        to.value(&self.ext_meta);
    }
}

/// Key, value, and the metadata at the end of the value.
#[inline]
fn split_ext_meta(parts: Parts, meta_len: usize, what: &'static str) -> Result<(Bytes, Bytes, Bytes)> {
    if meta_len == 0 {
        let (key, value) = parts.into_key_and_value();
        return Ok((key, value, Bytes::new()));
    }
    match parts.value().len().checked_sub(meta_len) {
        Some(value_len) => {
            let (key, mut value) = parts.into_key_and_value();
            let ext_meta = value.split_off(value_len);
            Ok((key, value, ext_meta))
        }
        None => Err(parts.malformed(what)),
    }
}

impl Body for Removal {
    fn decode(parts: Parts) -> Result<Self> {
        const WHAT: &str =
            "a deletion has 18 or 21 bytes of extras, an expiration 20 or 18, and a value not shorter than its metadata";
        let timed_len = timed_len(parts.opcode());
        let mut extras = parts.extras();
        let (is_timed, len) = (extras.len() == timed_len, extras.len());
        if !is_timed && len != 18 {
            return Err(parts.malformed(WHAT));
        }
        let from = &mut extras;
        let (by_seqno, rev_seqno) = (u64::read(from), u64::read(from));
        let (delete_time, meta_len) = match is_timed {
            true => (Some(u32::read(from)), 0),
            false => (None, usize::from(u16::read(from))),
        };
        let (key, value, ext_meta) = split_ext_meta(parts, meta_len, WHAT)?;
        Ok(Removal { by_seqno, rev_seqno, delete_time, key, value, ext_meta })
    }

    fn encode(&self, to: &mut Writer<'_>) {
        to.field(&self.by_seqno);
        to.field(&self.rev_seqno);
        match self.delete_time {
            Some(time) => {
                to.field(&time);
                to.extras(&[0][..timed_len(to.opcode()) - 20]);
                if !self.ext_meta.is_empty() {
                    to.refuse("a deletion or expiration says when it was, or has metadata, not both");
                }
            }
            None => to.length(self.ext_meta.len()),
        }
        to.key(&self.key);
        to.value(&self.value);
        if self.delete_time.is_none() {
            to.value(&self.ext_meta);
        }
    }
}

/// Bytes of the extras in the form that says when. A deletion has an unused byte at the end.
fn timed_len(opcode: Opcode) -> usize {
    if opcode == Opcode::DcpExpiration { 20 } else { 21 }
}

impl SnapshotMarker {
    /// The position below which deletions may be gone, from version 2.2 on.
    pub fn purge_seqno(&self) -> Option<u64> {
        self.rest_of_v2_2().map(|mut rest| u64::read(&mut rest))
    }

    /// The last durable write that has begun, from version 2.2 on.
    pub fn high_prepared_seqno(&self) -> Option<u64> {
        self.rest_of_v2_2().map(|rest| u64::read(&mut &rest[8..]))
    }

    fn rest_of_v2_2(&self) -> Option<&[u8]> {
        let detail = self.detail.as_ref()?;
        (detail.version == 2 && detail.rest.len() >= 16).then_some(&detail.rest[..])
    }
}

impl MarkerDetail {
    /// Version 2.0.
    pub fn v2_0(max_visible_seqno: u64, high_completed_seqno: u64) -> Self {
        MarkerDetail { version: 0, max_visible_seqno, high_completed_seqno, rest: Bytes::new() }
    }

    /// Version 2.2.
    pub fn v2_2(max_visible_seqno: u64, high_completed_seqno: u64, purge_seqno: u64, high_prepared_seqno: u64) -> Self {
        let rest = [purge_seqno.to_be_bytes(), high_prepared_seqno.to_be_bytes()].concat().into();
        MarkerDetail { version: 2, max_visible_seqno, high_completed_seqno, rest }
    }
}

impl Body for SnapshotMarker {
    fn decode(parts: Parts) -> Result<Self> {
        const WHAT: &str = "a snapshot marker has 20 bytes of extras, or 1 and at least 36 bytes of value, 52 in version 2.2";
        let mut value = parts.value();
        let is_valid = match parts.extras() {
            [2] => value.len() >= 52,
            [_] => value.len() >= 36,
            extras => extras.len() == 20 && value.is_empty(),
        };
        if !is_valid || !parts.key().is_empty() {
            return Err(parts.malformed(WHAT));
        }
        let mut from = if let [_] = parts.extras() { &value[..] } else { parts.extras() };
        let from = &mut from;
        let (start, end, flags) = (u64::read(from), u64::read(from), MarkerFlags::read(from));
        let detail = match parts.extras() {
            &[version] => {
                let (max_visible_seqno, high_completed_seqno) = (u64::read(from), u64::read(from));
                value.advance(36);
                Some(MarkerDetail { version, max_visible_seqno, high_completed_seqno, rest: value })
            }
            _ => None,
        };
        Ok(SnapshotMarker { start, end, flags, detail })
    }

    fn encode(&self, to: &mut Writer<'_>) {
        let Some(detail) = &self.detail else {
            to.field(&self.start);
            to.field(&self.end);
            to.field(&self.flags);
            return;
        };
        to.field(&detail.version);
        to.value_part(&self.start);
        to.value_part(&self.end);
        to.value(&self.flags.0.to_be_bytes());
        to.value_part(&detail.max_visible_seqno);
        to.value_part(&detail.high_completed_seqno);
        to.value(&detail.rest);
    }
}

impl CacheTransfer {
    /// The documents. After an error it ends.
    pub fn documents(&self) -> impl Iterator<Item = Result<CachedDocument>> + use<> {
        let mut rest = self.value.clone();
        std::iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            let document = CachedDocument::take(&mut rest);
            if document.is_none() {
                rest.clear();
            }
            Some(
                document.ok_or_else(|| {
                    Error::malformed("a cached document is cut short").with_opcode(Opcode::DcpCacheTransfer.code())
                }),
            )
        })
    }
}

impl CachedDocument {
    const HEAD: usize = 40;

    fn take(rest: &mut Bytes) -> Option<CachedDocument> {
        let mut head = rest.get(..Self::HEAD)?;
        let from = &mut head;
        let (cas, by_seqno, rev_seqno) = (u64::read(from), u64::read(from), u64::read(from));
        let value_len = usize::try_from(u32::read(from)).ok()?;
        let (flags, expiry) = (u32::read(from), u32::read(from));
        let key_len = usize::from(u16::read(from));
        let (datatype, hint) = (Datatype(u8::read(from)), u8::read(from));
        if rest.len() - Self::HEAD < key_len.checked_add(value_len)? {
            return None;
        }
        rest.advance(Self::HEAD);
        let (key, value) = (rest.split_to(key_len), rest.split_to(value_len));
        Some(CachedDocument { cas, by_seqno, rev_seqno, flags, expiry, datatype, hint, key, value })
    }
}

/// What old servers add about conflict resolution, entry by entry: number and content (protocol, section 4.3). Ends after an error.
pub fn ext_meta(bytes: &[u8]) -> impl Iterator<Item = Result<(u8, &[u8])>> {
    let mut rest = bytes.split_first().map_or(Some(&[][..]), |(version, rest)| (*version == 1).then_some(rest));
    std::iter::from_fn(move || {
        let from = rest?;
        if from.is_empty() {
            return None;
        }
        let entry = from.split_first_chunk::<3>().and_then(|(head, tail)| {
            let (content, tail) = tail.split_at_checked(usize::from(u16::from_be_bytes([head[1], head[2]])))?;
            rest = Some(tail);
            Some((head[0], content))
        });
        if entry.is_none() {
            rest = None;
        }
        Some(entry.ok_or_else(|| Error::malformed("metadata of a mutation is cut short")))
    })
}
