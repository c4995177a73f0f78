//! The state of a bucket, without I/O: vbuckets with their histories, documents, collections.

pub mod durable;
pub mod identity;
pub mod item;
pub mod manifest;
pub mod rollback;
mod store;
pub mod vbucket;

use bytes::Bytes;
use sluicegate_mcbp::Datatype;
use sluicegate_mcbp::collections::DEFAULT_COLLECTION;
use sluicegate_mcbp::dcp::{self, SystemEventKind};

pub use durable::Outcome;
pub use identity::Identity;
pub use item::{DocumentKey, Item, Kind, SystemChange};
pub use manifest::Manifest;
pub use store::{Arithmetic, Content, Stored, Write};
pub use vbucket::{NodeCopy, Vbucket};

/// A bucket.
#[derive(Clone, Debug)]
pub struct Bucket {
    name: String,
    uuid: String,
    vbuckets: Vec<Vbucket>,
    manifest: Manifest,
    identity: Identity,
    memory_items: u64,
    changes: u64,
}

impl Bucket {
    /// An empty bucket of `vbuckets` vbuckets. `chain` says which nodes have copies of one, the active one first.
    pub fn new(
        name: impl Into<String>,
        vbuckets: u16,
        mut identity: Identity,
        chain: impl Fn(u16) -> Vec<Option<usize>>,
    ) -> Self {
        let uuid = identity.uuid();
        let vbuckets = (0..vbuckets).map(|id| Vbucket::new(identity.vbucket_uuid(), chain(id))).collect();
        Bucket { name: name.into(), uuid, vbuckets, manifest: Manifest::default(), identity, memory_items: u64::MAX, changes: 0 }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its identity: another one after it was flushed or created again.
    pub fn uuid(&self) -> &str {
        &self.uuid
    }

    /// How many vbuckets it has.
    pub fn num_vbuckets(&self) -> u16 {
        self.vbuckets.len() as u16
    }

    /// The vbuckets.
    pub fn vbuckets(&self) -> &[Vbucket] {
        &self.vbuckets
    }

    /// A vbucket.
    pub fn vbucket(&self, id: u16) -> Option<&Vbucket> {
        self.vbuckets.get(usize::from(id))
    }

    /// A vbucket, to change it.
    pub fn vbucket_mut(&mut self, id: u16) -> Option<&mut Vbucket> {
        self.vbuckets.get_mut(usize::from(id))
    }

    /// Changes whenever a document or a collection does.
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// The collections.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Where identities and times come from.
    pub fn identity(&mut self) -> &mut Identity {
        &mut self.identity
    }

    /// The time in seconds since 1970.
    pub fn now(&self) -> u64 {
        self.identity.now()
    }

    /// How many changes of a vbucket stay in memory; older ones are on disk only, once they are there.
    pub fn keep_in_memory(&mut self, items: u64) {
        self.memory_items = items;
    }

    /// The vbucket of a key, as clients compute it: bits of its CRC-32.
    pub fn vbucket_of(&self, key: &[u8]) -> u16 {
        ((crc32fast::hash(key) >> 16) & 0x7fff) as u16 % self.num_vbuckets()
    }

    /// Empties the bucket: all histories begin anew, and it has another identity. The collections stay, and are announced again.
    pub fn flush(&mut self) {
        let manifest = self.manifest.clone();
        self.recreate();
        for scope in manifest.scopes.iter().skip(1) {
            let change = dcp::Change::ScopeCreated { manifest_uid: manifest.uid, scope: scope.id };
            self.announce(SystemEventKind::CreateScope, &scope.name, scope.id, 0, &change);
        }
        let collections = manifest.scopes.iter().flat_map(|scope| scope.collections.iter().map(|there| (scope.id, there)));
        for (scope, there) in collections.filter(|(_, there)| there.id != DEFAULT_COLLECTION) {
            let (collection, max_ttl) = (there.id, there.max_ttl);
            let change = dcp::Change::CollectionCreated { manifest_uid: manifest.uid, scope, collection, max_ttl };
            self.announce(SystemEventKind::BeginCollection, &there.name, scope, collection, &change);
        }
        self.manifest = manifest;
    }

    /// Makes the bucket a new one of the same name: all histories begin anew, and it has another identity and no collections.
    pub fn recreate(&mut self) {
        self.uuid = self.identity.uuid();
        self.manifest = Manifest::default();
        for vbucket in &mut self.vbuckets {
            let mut empty = Vbucket::new(self.identity.vbucket_uuid(), Vec::new());
            empty.renew(vbucket);
            *vbucket = empty;
        }
    }

    /// A vbucket loses what is above `keep`, and begins a new history there.
    pub fn fail_over(&mut self, id: u16, keep: u64) {
        let uuid = self.identity.vbucket_uuid();
        if let Some(vbucket) = self.vbucket_mut(id) {
            let keep = keep.min(vbucket.high_seqno());
            vbucket.fail_over(uuid, keep);
        }
    }

    /// Creates a scope, and gives its number; none if there is one of this name.
    pub fn create_scope(&mut self, name: &str) -> Option<u32> {
        let scope = self.manifest.add_scope(name)?;
        let change = dcp::Change::ScopeCreated { manifest_uid: self.manifest.uid, scope };
        self.announce(SystemEventKind::CreateScope, name, scope, 0, &change);
        Some(scope)
    }

    /// Creates a collection, and gives its number; none if there is no such scope, or one of this name in it.
    pub fn create_collection(&mut self, scope: &str, name: &str, max_ttl: Option<u32>) -> Option<u32> {
        let (scope, collection) = self.manifest.add_collection(scope, name, max_ttl)?;
        let change = dcp::Change::CollectionCreated { manifest_uid: self.manifest.uid, scope, collection, max_ttl };
        self.announce(SystemEventKind::BeginCollection, name, scope, collection, &change);
        Some(collection)
    }

    /// Drops a collection with its documents; whether there was one.
    pub fn drop_collection(&mut self, collection: u32) -> bool {
        let Some(scope) = self.manifest.remove_collection(collection) else { return false };
        let change = dcp::Change::CollectionDropped { manifest_uid: self.manifest.uid, scope, collection };
        self.announce(SystemEventKind::EndCollection, "", scope, collection, &change);
        self.vbuckets.iter_mut().for_each(|vbucket| vbucket.drop_documents(collection));
        true
    }

    /// Drops a scope with its collections; whether there was one.
    pub fn drop_scope(&mut self, scope: u32) -> bool {
        let Some(there) = self.manifest.scopes.iter().find(|there| there.id == scope) else { return false };
        let collections: Vec<u32> = there.collections.iter().map(|collection| collection.id).collect();
        for collection in collections {
            self.drop_collection(collection);
        }
        let is_gone = self.manifest.remove_scope(scope);
        let change = dcp::Change::ScopeDropped { manifest_uid: self.manifest.uid, scope };
        self.announce(SystemEventKind::DropScope, "", scope, 0, &change);
        is_gone
    }

    /// Changes how long documents of a collection live at most; whether there is one.
    pub fn modify_collection(&mut self, collection: u32, max_ttl: Option<u32>) -> bool {
        let Some((scope, name)) = self.manifest.modify_collection(collection, max_ttl) else { return false };
        let change = dcp::Change::CollectionModified { manifest_uid: self.manifest.uid, scope, collection, max_ttl };
        self.announce(SystemEventKind::ModifyCollection, &name, scope, collection, &change);
        true
    }

    fn announce(&mut self, event: SystemEventKind, name: &str, scope: u32, collection: u32, change: &dcp::Change) {
        let (version, value) = change.encode();
        self.changes += 1;
        let (key, cas) = (Bytes::copy_from_slice(name.as_bytes()), self.identity.cas());
        for vbucket in &mut self.vbuckets {
            vbucket.append(Item {
                seqno: 0,
                superseded_by: 0,
                rev: 1,
                cas,
                collection,
                key: key.clone(),
                value: value.clone(),
                datatype: Datatype::default(),
                flags: 0,
                time: 0,
                kind: Kind::System(Box::new(SystemChange { event, version, scope })),
            });
        }
    }
}
