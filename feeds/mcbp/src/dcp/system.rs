//! Changes of collections and scopes (protocol, section 4.6).

use bytes::Bytes;

use super::flat::{Table, Value, table};
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
    /// A collection has other properties.
    CollectionModified {
        /// The manifest that says so.
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
    /// What it changes; none for events and versions that are not known here.
    ///
    /// # Errors
    /// `Malformed` if the value is not what event and version ask for.
    pub fn change(&self) -> Result<Option<Change>> {
        use SystemEventKind::*;
        let len = match (self.version, self.event) {
            (0, BeginCollection) | (0 | 1, EndCollection) => 16,
            (1, BeginCollection) => 20,
            (0 | 1, CreateScope | DropScope) => 12,
            (2, BeginCollection | EndCollection | CreateScope | DropScope | ModifyCollection) => {
                return self.flat_change().map(Some);
            }
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
        Ok(Some(Change::of(self.event, manifest_uid, scope, collection, max_ttl)))
    }

    /// What an event with FlatBuffers changes.
    fn flat_change(&self) -> Result<Change> {
        let read = || {
            let table = Table::root(&self.value)?;
            let (manifest_uid, scope) = (table.u64(0)?, table.u32(1)?);
            // Scopes have other fields here.
            let is_collection = !matches!(self.event, SystemEventKind::CreateScope | SystemEventKind::DropScope);
            let collection = if is_collection { table.u32(2)? } else { 0 };
            let has_ttl =
                matches!(self.event, SystemEventKind::BeginCollection | SystemEventKind::ModifyCollection) && table.bool(3)?;
            let max_ttl = if has_ttl { Some(table.u32(4)?) } else { None };
            Some(Change::of(self.event, manifest_uid, scope, collection, max_ttl))
        };
        read().ok_or_else(|| {
            Error::malformed("a system event's value is no such FlatBuffers table").with_opcode(Opcode::DcpSystemEvent.code())
        })
    }
}

impl Change {
    fn of(event: SystemEventKind, manifest_uid: u64, scope: u32, collection: u32, max_ttl: Option<u32>) -> Change {
        match event {
            SystemEventKind::BeginCollection => Change::CollectionCreated { manifest_uid, scope, collection, max_ttl },
            SystemEventKind::ModifyCollection => Change::CollectionModified { manifest_uid, scope, collection, max_ttl },
            SystemEventKind::EndCollection => Change::CollectionDropped { manifest_uid, scope, collection },
            SystemEventKind::CreateScope => Change::ScopeCreated { manifest_uid, scope },
            _ => Change::ScopeDropped { manifest_uid, scope },
        }
    }

    /// The number of the manifest that says so.
    pub fn manifest_uid(&self) -> u64 {
        match *self {
            Change::CollectionCreated { manifest_uid, .. }
            | Change::CollectionModified { manifest_uid, .. }
            | Change::CollectionDropped { manifest_uid, .. }
            | Change::ScopeCreated { manifest_uid, .. }
            | Change::ScopeDropped { manifest_uid, .. } => manifest_uid,
        }
    }

    /// The layout version and the value of the event that says so, as numbers. A modification has only FlatBuffers; its name is left
    /// out.
    pub fn encode(&self) -> (u8, Bytes) {
        let (manifest_uid, numbers) = match *self {
            Change::CollectionModified { .. } => return (2, self.encode_flat(b"")),
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

    /// The value of the event that says so with FlatBuffers, version 2. `name` is that of what is created or modified.
    pub fn encode_flat(&self, name: &[u8]) -> Bytes {
        let (number, name) = (|number| Some(Value::U32(number)), (!name.is_empty()).then_some(Value::Text(name)));
        let uid = Some(Value::U64(self.manifest_uid()));
        match *self {
            Change::CollectionCreated { scope, collection, max_ttl, .. }
            | Change::CollectionModified { scope, collection, max_ttl, .. } => {
                let has_ttl = max_ttl.map(|_| Value::Bool(true));
                table(&[uid, number(scope), number(collection), has_ttl, max_ttl.map(Value::U32), name])
            }
            Change::CollectionDropped { scope, collection, .. } => table(&[uid, number(scope), number(collection)]),
            Change::ScopeCreated { scope, .. } => table(&[uid, number(scope), name]),
            Change::ScopeDropped { scope, .. } => table(&[uid, number(scope)]),
        }
    }
}
