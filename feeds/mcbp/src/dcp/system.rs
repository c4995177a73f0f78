//! Changes of collections and scopes (protocol, section 4.6).

use bytes::Bytes;

use crate::body::Field;
use crate::error::{Error, Result};
use crate::opcode::Opcode;

codes! {
    /// What has happened.
    SystemEventKind: u32 {
        /// A collection was created, or emptied.
        BeginCollection = 0,
        /// A collection was dropped.
        EndCollection = 1,
        /// A collection was emptied; only old servers.
        FlushCollection = 2,
        /// A scope was created.
        CreateScope = 3,
        /// A scope was dropped.
        DropScope = 4,
        /// A collection has other properties.
        ModifyCollection = 5,
    }
}

bodies! {
    /// Collections or scopes have changed. An unknown one still moves the position.
    SystemEvent {
        extras {
            /// Position in the vbucket.
            by_seqno: u64,
            /// What has happened.
            event: SystemEventKind,
            /// Layout of the value: 0, 1, or 2 for FlatBuffers.
            version: u8,
        }
        key {
            /// Name of the collection or scope, if it is created. Never with a collection's number before it.
            name: Bytes
        }
        value {
            /// Numbers, undecoded; see [`SystemEvent::change`].
            value: Bytes
        }
    }
}

/// What a [`SystemEvent`] changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Change {
    /// There is a new collection, or it is empty again.
    CollectionCreated {
        /// The manifest that says so; only the last event of one manifest has its number.
        manifest_uid: u64,
        /// Its scope.
        scope: u32,
        /// Its number.
        collection: u32,
        /// How long its documents live at most, in seconds; none if not limited.
        max_ttl: Option<u32>,
    },
    /// A collection is gone.
    CollectionDropped {
        /// The manifest that says so.
        manifest_uid: u64,
        /// Its scope.
        scope: u32,
        /// Its number.
        collection: u32,
    },
    /// There is a new scope.
    ScopeCreated {
        /// The manifest that says so.
        manifest_uid: u64,
        /// Its number.
        scope: u32,
    },
    /// A scope is gone.
    ScopeDropped {
        /// The manifest that says so.
        manifest_uid: u64,
        /// Its number.
        scope: u32,
    },
}

impl SystemEvent {
    /// What it changes; none for events and versions that are not known here, FlatBuffers among them.
    ///
    /// # Errors
    /// `Malformed` if the value has another length than event and version ask for.
    pub fn change(&self) -> Result<Option<Change>> {
        use SystemEventKind::*;
        let len = match (self.version, self.event) {
            (0, BeginCollection) | (0 | 1, EndCollection) => 16,
            (1, BeginCollection) => 20,
            (0 | 1, CreateScope | DropScope) => 12,
            _ => return Ok(None),
        };
        if self.value.len() != len {
            let message = format!("a system event has {} bytes of value instead of {len}", self.value.len());
            return Err(Error::malformed(message).with_opcode(Opcode::DcpSystemEvent.code()));
        }
        let mut from = &self.value[..];
        let from = &mut from;
        let (manifest_uid, scope) = (u64::read(from), u32::read(from));
        let mut number = || (!from.is_empty()).then(|| u32::read(from));
        let (collection, max_ttl) = (number().unwrap_or(0), number());
        Ok(Some(match self.event {
            BeginCollection => Change::CollectionCreated { manifest_uid, scope, collection, max_ttl },
            EndCollection => Change::CollectionDropped { manifest_uid, scope, collection },
            CreateScope => Change::ScopeCreated { manifest_uid, scope },
            _ => Change::ScopeDropped { manifest_uid, scope },
        }))
    }
}

impl Change {
    /// The layout version and the value of the event that says so.
    pub fn encode(&self) -> (u8, Bytes) {
        let (manifest_uid, numbers) = match *self {
            Change::CollectionCreated { manifest_uid, scope, collection, max_ttl } => {
                (manifest_uid, [Some(scope), Some(collection), max_ttl])
            }
            Change::CollectionDropped { manifest_uid, scope, collection } => {
                (manifest_uid, [Some(scope), Some(collection), None])
            }
            Change::ScopeCreated { manifest_uid, scope } | Change::ScopeDropped { manifest_uid, scope } => {
                (manifest_uid, [Some(scope), None, None])
            }
        };
        let mut value = manifest_uid.to_be_bytes().to_vec();
        for number in numbers.into_iter().flatten() {
            value.extend_from_slice(&number.to_be_bytes());
        }
        (u8::from(matches!(self, Change::CollectionCreated { max_ttl: Some(_), .. })), value.into())
    }
}
