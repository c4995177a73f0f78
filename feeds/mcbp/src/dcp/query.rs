//! Where vbuckets are, without a stream (protocol, section 3.4).

use bytes::{BufMut as _, Bytes, BytesMut};

use crate::body::{Body, Field, Part, Parts, Writer};
use crate::dcp::stream::VbucketState;
use crate::error::Result;

/// Asks for the sequence numbers of all vbuckets of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GetAllVbSeqnos {
    /// Only vbuckets in this state; all that are not dead if it is not said.
    pub state: Option<VbucketState>,
    /// Of this collection only.
    pub collection: Option<u32>,
}

bodies! {
    /// Asks how far a vbucket is persisted. The vbucket is in the header.
    ObserveSeqno {
        value {
            /// Identity of its history.
            vbucket_uuid: u64
        }
    }

    /// The answer to [`GetAllVbSeqnos`].
    VbSeqnos {
        value {
            /// Each vbucket of the node with its last position, by number.
            seqnos: SeqnoList
        }
    }
}

/// Vbuckets with their last positions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SeqnoList(pub Vec<(u16, u64)>);

/// How far a vbucket is persisted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ObservedSeqno {
    /// The vbucket.
    pub vbucket: u16,
    /// Identity of the history it has now.
    pub vbucket_uuid: u64,
    /// The last position on disk.
    pub persisted: u64,
    /// The last position.
    pub current: u64,
    /// If the history asked for is over: its identity, and the last position known of it.
    pub failed_over: Option<(u64, u64)>,
}

impl Body for GetAllVbSeqnos {
    fn decode(parts: Parts) -> Result<Self> {
        let mut extras = parts.extras();
        if !matches!(extras.len(), 0 | 4 | 8) || !parts.key().is_empty() || !parts.value().is_empty() {
            return Err(parts.malformed("the request for sequence numbers has 0, 4 or 8 bytes of extras and nothing else"));
        }
        let mut number = || (!extras.is_empty()).then(|| u32::read(&mut extras));
        let state = number().unwrap_or(0);
        let collection = number();
        let Ok(state) = u8::try_from(state) else {
            return Err(parts.malformed("there is no such vbucket state"));
        };
        Ok(GetAllVbSeqnos { state: (state != 0).then(|| state.into()), collection })
    }

    fn encode(&self, to: &mut Writer<'_>) {
        if self.state.is_some() || self.collection.is_some() {
            to.field(&self.state.map_or(0, |state| u32::from(state.code())));
        }
        if let Some(collection) = self.collection {
            to.field(&collection);
        }
    }
}

impl Part for SeqnoList {
    fn take(bytes: Bytes) -> Option<Self> {
        let (entries, []) = bytes.as_chunks::<10>() else { return None };
        let entry = |entry: &[u8; 10]| {
            let from = &mut &entry[..];
            (u16::read(from), u64::read(from))
        };
        Some(SeqnoList(entries.iter().map(entry).collect()))
    }

    fn put(&self, to: &mut BytesMut) {
        for (vbucket, seqno) in &self.0 {
            to.put_u16(*vbucket);
            to.put_u64(*seqno);
        }
    }
}

impl Body for ObservedSeqno {
    fn decode(parts: Parts) -> Result<Self> {
        let value = parts.value();
        if !matches!((value.first(), value.len()), (Some(0), 27) | (Some(1), 43))
            || !parts.extras().is_empty()
            || !parts.key().is_empty()
        {
            return Err(parts.malformed("the answer to OBSERVE_SEQNO has 27 bytes of value in format 0, 43 in format 1"));
        }
        let mut from = &value[1..];
        let from = &mut from;
        Ok(ObservedSeqno {
            vbucket: u16::read(from),
            vbucket_uuid: u64::read(from),
            persisted: u64::read(from),
            current: u64::read(from),
            failed_over: (!from.is_empty()).then(|| (u64::read(from), u64::read(from))),
        })
    }

    fn encode(&self, to: &mut Writer<'_>) {
        to.value(&[u8::from(self.failed_over.is_some())]);
        to.value(&self.vbucket.to_be_bytes());
        for number in [self.vbucket_uuid, self.persisted, self.current] {
            to.value_part(&number);
        }
        if let Some((uuid, seqno)) = self.failed_over {
            to.value_part(&uuid);
            to.value_part(&seqno);
        }
    }
}
