//! One change of one document, or of the collections, as a vbucket's history keeps it.

use bytes::Bytes;
use sluicegate_mcbp::Datatype;
use sluicegate_mcbp::dcp::{Durability, SystemEventKind};

/// A document's name within its vbucket: its collection's number, and its key without it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DocumentKey {
    /// The collection's number.
    pub collection: u32,
    /// The key.
    pub key: Bytes,
}

/// What an [`Item`] is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The document was written.
    Mutation,
    /// The document was deleted.
    Deletion,
    /// The document has expired.
    Expiration,
    /// A durable write has begun, and does not hold yet: what it writes is the item's (protocol, section 4.7).
    Prepare {
        /// What must hold first.
        level: Durability,
        /// Whether it deletes.
        is_deletion: bool,
    },
    /// A durable write was given up (protocol, section 4.9).
    Abort,
    /// A collection or scope was created or dropped. The name is the item's key, the event's content its value.
    System(Box<SystemChange>),
}

/// What is particular to a change of collections (protocol, section 4.6).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SystemChange {
    /// What has happened.
    pub event: SystemEventKind,
    /// Layout of the value.
    pub version: u8,
    /// The scope concerned.
    pub scope: u32,
}

/// One change, at its position. The bytes of key and value are shared by whoever sends them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// Position in the vbucket, from 1.
    pub seqno: u64,
    /// The position of the change that has replaced this one; `u64::MAX` if none has.
    pub superseded_by: u64,
    /// How often the document was changed, this time included.
    pub rev: u64,
    /// Compare-and-swap value.
    pub cas: u64,
    /// Collection of the document, or the collection that a system event concerns.
    pub collection: u32,
    /// The key, without the collection's number; of a system event the name.
    pub key: Bytes,
    /// The value as stored: attributes and body, compressed if the datatype says so.
    pub value: Bytes,
    /// How the value is encoded.
    pub datatype: Datatype,
    /// The document's flags.
    pub flags: u32,
    /// Of a document when it expires, of a removal when it was removed: seconds since 1970; 0 for never.
    pub time: u32,
    /// What it is.
    pub kind: Kind,
}

impl Item {
    /// The document that is so from here on; none for a system event, and for a durable write that does not hold.
    pub fn document(&self) -> Option<DocumentKey> {
        (!self.is_system() && !self.is_hidden()).then(|| self.name())
    }

    /// Collection and key.
    pub fn name(&self) -> DocumentKey {
        DocumentKey { collection: self.collection, key: self.key.clone() }
    }

    /// Whether readers do not see it: a durable write that does not hold, or not yet.
    pub fn is_hidden(&self) -> bool {
        matches!(self.kind, Kind::Prepare { .. } | Kind::Abort)
    }

    /// Whether it is about collections, not about a document.
    pub fn is_system(&self) -> bool {
        matches!(self.kind, Kind::System(_))
    }

    /// Whether it leaves no document behind.
    pub fn is_removal(&self) -> bool {
        matches!(self.kind, Kind::Deletion | Kind::Expiration)
    }
}
