//! Operations on documents.

use bytes::Bytes;
use sluicegate_mcbp::dcp::Durability;
use sluicegate_mcbp::value::{self, Attribute};
use sluicegate_mcbp::{Datatype, Status};

use super::item::{DocumentKey, Item, Kind};
use super::{Bucket, Vbucket};

/// The largest value, in bytes.
const MAX_VALUE: usize = 20 << 20;

/// Seconds up to which an expiry counts from now; a larger one counts from 1970.
const RELATIVE_EXPIRY: u32 = 30 * 24 * 3600;

/// When a write is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// In any case.
    Set,
    /// If there is no such document.
    Add,
    /// If there is one.
    Replace,
}

/// What is written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Content {
    /// Attributes and body, compressed if the datatype says so.
    pub value: Bytes,
    /// How the value is encoded.
    pub datatype: Datatype,
    /// The document's flags.
    pub flags: u32,
    /// When it expires: seconds since 1970, or from now if at most 30 days; 0 for never.
    pub expiry: u32,
    /// The compare-and-swap value, as of a document that came from another cluster; 0 for one that the server makes.
    pub cas: u64,
}

/// How a counter changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arithmetic {
    /// By how much.
    pub delta: u64,
    /// Whether it gets smaller; not below 0.
    pub is_decrement: bool,
    /// Where it begins if it does not exist; none: it must exist.
    pub initial: Option<u64>,
    /// When it expires if it is created, as in [`Content`].
    pub expiry: u32,
}

/// Where a write is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    /// The vbucket.
    pub vbucket: u16,
    /// The identity of its history.
    pub vbucket_uuid: u64,
    /// The position.
    pub seqno: u64,
    /// The compare-and-swap value.
    pub cas: u64,
}

/// Operations on documents; a compare-and-swap value of 0 is none.
impl Bucket {
    /// Reads a document. One that has expired is removed by this.
    ///
    /// # Errors
    /// `KeyNotFound`, `UnknownCollection`, or `NotMyVbucket` if there is no such vbucket.
    pub fn get(&mut self, vbucket: u16, key: &DocumentKey) -> Result<&Item, Status> {
        self.check(vbucket, key)?;
        self.live(vbucket, key).ok_or(Status::KeyNotFound)
    }

    /// Writes a document.
    ///
    /// # Errors
    /// `KeyExists`, `KeyNotFound`, `TooBig`, `SyncWriteInProgress` while a durable write of the document is not complete, and as
    /// [`get`](Bucket::get).
    pub fn store(&mut self, vbucket: u16, key: DocumentKey, write: Write, content: Content, cas: u64) -> Result<Stored, Status> {
        let content = self.may_store(vbucket, &key, write, content, cas)?;
        Ok(self.append(vbucket, key, content, Kind::Mutation))
    }

    /// Begins to write a document durably; the position is that of the beginning. What becomes of it: [`Vbucket::outcome`].
    ///
    /// # Errors
    /// `DurabilityInvalidLevel`, `DurabilityImpossible`, and as [`store`](Bucket::store).
    pub fn prepare(
        &mut self,
        vbucket: u16,
        key: DocumentKey,
        level: Durability,
        write: Write,
        content: Content,
        cas: u64,
    ) -> Result<Stored, Status> {
        let content = self.may_store(vbucket, &key, write, content, cas)?;
        self.may_be_durable(vbucket, level)?;
        Ok(self.append(vbucket, key, content, Kind::Prepare { level, is_deletion: false }))
    }

    /// Begins to delete a document durably, as [`prepare`](Bucket::prepare).
    ///
    /// # Errors
    /// As [`prepare`](Bucket::prepare) and [`delete`](Bucket::delete).
    pub fn prepare_delete(&mut self, vbucket: u16, key: DocumentKey, level: Durability, cas: u64) -> Result<Stored, Status> {
        let content = self.may_delete(vbucket, &key, cas)?;
        self.may_be_durable(vbucket, level)?;
        Ok(self.append(vbucket, key, content, Kind::Prepare { level, is_deletion: true }))
    }

    fn may_be_durable(&self, vbucket: u16, level: Durability) -> Result<(), Status> {
        if let Durability::Other(_) = level {
            return Err(Status::DurabilityInvalidLevel);
        }
        match self.vbucket(vbucket).is_some_and(Vbucket::can_be_durable) {
            true => Ok(()),
            false => Err(Status::DurabilityImpossible),
        }
    }

    /// What is stored by a write, if it may be done.
    fn may_store(
        &mut self,
        vbucket: u16,
        key: &DocumentKey,
        write: Write,
        content: Content,
        cas: u64,
    ) -> Result<Content, Status> {
        self.may_write(vbucket, key)?;
        if content.value.len() > MAX_VALUE {
            return Err(Status::TooBig);
        }
        let there = self.live(vbucket, key).map(|item| item.cas);
        match (write, there) {
            (Write::Add, Some(_)) => return Err(Status::KeyExists),
            (Write::Replace, None) => return Err(Status::KeyNotFound),
            (_, None) if cas != 0 => return Err(Status::KeyNotFound),
            (_, Some(there)) if cas != 0 && cas != there => return Err(Status::KeyExists),
            _ => (),
        }
        let max_ttl = self.manifest().collection(key.collection).and_then(|(_, collection)| collection.max_ttl);
        let expiry = limit(self.absolute(content.expiry), max_ttl, self.now());
        Ok(Content { expiry, ..content })
    }

    /// Deletes a document. The server's own attributes stay (protocol, section 8).
    ///
    /// # Errors
    /// `KeyNotFound`, `KeyExists` if the compare-and-swap value differs, and as [`get`](Bucket::get).
    pub fn delete(&mut self, vbucket: u16, key: DocumentKey, cas: u64) -> Result<Stored, Status> {
        let content = self.may_delete(vbucket, &key, cas)?;
        Ok(self.append(vbucket, key, content, Kind::Deletion))
    }

    /// What is left by a deletion, if it may be done.
    fn may_delete(&mut self, vbucket: u16, key: &DocumentKey, cas: u64) -> Result<Content, Status> {
        self.may_write(vbucket, key)?;
        let item = self.live(vbucket, key).ok_or(Status::KeyNotFound)?;
        if cas != 0 && cas != item.cas {
            return Err(Status::KeyExists);
        }
        let (value, datatype) = system_attributes(item);
        Ok(Content { value, datatype, expiry: self.now() as u32, ..Content::default() })
    }

    /// Deletes a document and leaves `content` in its place, as a client does that keeps attributes of deleted documents. There need be no document.
    ///
    /// # Errors
    /// As [`get`](Bucket::get).
    pub fn delete_with(&mut self, vbucket: u16, key: DocumentKey, content: Content) -> Result<Stored, Status> {
        self.may_write(vbucket, &key)?;
        let content = Content { expiry: self.now() as u32, ..content };
        Ok(self.append(vbucket, key, content, Kind::Deletion))
    }

    /// Appends to the body of a document, or prepends.
    ///
    /// # Errors
    /// `NotStored` if there is none, `KeyExists` if the compare-and-swap value differs, and as [`get`](Bucket::get).
    pub fn extend(&mut self, vbucket: u16, key: DocumentKey, more: &[u8], at_front: bool, cas: u64) -> Result<Stored, Status> {
        self.may_write(vbucket, &key)?;
        let item = self.live(vbucket, &key).ok_or(Status::NotStored)?;
        if cas != 0 && cas != item.cas {
            return Err(Status::KeyExists);
        }
        let (flags, expiry) = (item.flags, item.time);
        let (there, datatype) = value::decompress(item.value.clone(), item.datatype, MAX_VALUE).map_err(|_| Status::Internal)?;
        if there.len() + more.len() > MAX_VALUE {
            return Err(Status::TooBig);
        }
        let attributes_len = there.len() - body(&there, datatype).len();
        let mut value = there[..attributes_len].to_vec();
        let parts = if at_front { [more, &there[attributes_len..]] } else { [&there[attributes_len..], more] };
        value.extend_from_slice(&parts.concat());
        let datatype = datatype.without(Datatype::JSON);
        Ok(self.append(vbucket, key, Content { value: value.into(), datatype, flags, expiry, cas: 0 }, Kind::Mutation))
    }

    /// Changes a counter, and gives its value.
    ///
    /// # Errors
    /// `KeyNotFound` if it does not exist and must, `NotANumber` if it is none, and as [`get`](Bucket::get).
    pub fn count(&mut self, vbucket: u16, key: DocumentKey, change: Arithmetic) -> Result<(Stored, u64), Status> {
        self.may_write(vbucket, &key)?;
        let expiry = self.absolute(change.expiry);
        let (number, flags, expiry) = match (self.live(vbucket, &key), change.initial) {
            (None, None) => return Err(Status::KeyNotFound),
            (None, Some(initial)) => (initial, 0, expiry),
            (Some(item), _) => {
                let text = std::str::from_utf8(&item.value).ok();
                let before: u64 = text.and_then(|text| text.parse().ok()).ok_or(Status::NotANumber)?;
                let after = match change.is_decrement {
                    true => before.saturating_sub(change.delta),
                    false => before.wrapping_add(change.delta),
                };
                (after, item.flags, item.time)
            }
        };
        let value = Bytes::from(number.to_string());
        let content = Content { value, datatype: Datatype::JSON, flags, expiry, cas: 0 };
        Ok((self.append(vbucket, key, content, Kind::Mutation), number))
    }

    /// Changes when a document expires.
    ///
    /// # Errors
    /// As [`get`](Bucket::get).
    pub fn touch(&mut self, vbucket: u16, key: DocumentKey, expiry: u32) -> Result<Stored, Status> {
        self.may_write(vbucket, &key)?;
        let item = self.live(vbucket, &key).ok_or(Status::KeyNotFound)?;
        let (value, datatype, flags) = (item.value.clone(), item.datatype, item.flags);
        let expiry = self.absolute(expiry);
        Ok(self.append(vbucket, key, Content { value, datatype, flags, expiry, cas: 0 }, Kind::Mutation))
    }

    /// Removes all documents that have expired; how many.
    pub fn expire(&mut self) -> usize {
        let mut removed = 0;
        for vbucket in 0..self.num_vbuckets() {
            let now = self.now();
            let documents = self.vbuckets()[usize::from(vbucket)].documents();
            let expired = documents.filter(|item| has_expired(item, now)).filter_map(Item::document);
            for key in expired.collect::<Vec<_>>() {
                self.expire_one(vbucket, key);
                removed += 1;
            }
        }
        removed
    }

    fn check(&self, vbucket: u16, key: &DocumentKey) -> Result<(), Status> {
        if self.vbucket(vbucket).is_none() {
            return Err(Status::NotMyVbucket);
        }
        self.manifest().collection(key.collection).map(|_| ()).ok_or(Status::UnknownCollection)
    }

    fn may_write(&self, vbucket: u16, key: &DocumentKey) -> Result<(), Status> {
        self.check(vbucket, key)?;
        match self.vbucket(vbucket).is_some_and(|there| there.has_prepared(key)) {
            true => Err(Status::SyncWriteInProgress),
            false => Ok(()),
        }
    }

    /// The document, if it exists and has not expired.
    fn live(&mut self, vbucket: u16, key: &DocumentKey) -> Option<&Item> {
        let now = self.now();
        let item = self.vbucket(vbucket)?.find(key)?;
        if !item.is_removal() && has_expired(item, now) {
            self.expire_one(vbucket, key.clone());
        }
        self.vbucket(vbucket)?.find(key).filter(|item| !item.is_removal())
    }

    fn expire_one(&mut self, vbucket: u16, key: DocumentKey) {
        let Some(item) = self.vbucket(vbucket).and_then(|there| there.find(&key)) else { return };
        let (value, datatype) = system_attributes(item);
        let now = self.now() as u32;
        self.append(vbucket, key, Content { value, datatype, expiry: now, ..Content::default() }, Kind::Expiration);
    }

    fn absolute(&self, expiry: u32) -> u32 {
        if expiry == 0 || expiry > RELATIVE_EXPIRY { expiry } else { self.now() as u32 + expiry }
    }

    /// Appends a change; what expires, at an absolute time.
    fn append(&mut self, vbucket: u16, key: DocumentKey, content: Content, kind: Kind) -> Stored {
        self.changes += 1;
        let made = self.identity.cas();
        let Content { value, datatype, flags, expiry: time, cas } = content;
        let cas = if cas == 0 { made } else { cas };
        let DocumentKey { collection, key } = key;
        let item = Item { seqno: 0, superseded_by: 0, rev: 1, cas, collection, key, value, datatype, flags, time, kind };
        let memory_items = self.memory_items;
        let there: &mut Vbucket = &mut self.vbuckets[usize::from(vbucket)];
        let seqno = there.append(item);
        if memory_items < seqno {
            there.evict_to(memory_items);
        }
        Stored { vbucket, vbucket_uuid: there.vbucket_uuid(), seqno, cas }
    }
}

fn limit(expiry: u32, max_ttl: Option<u32>, now: u64) -> u32 {
    match max_ttl.filter(|ttl| *ttl > 0).map(|ttl| now as u32 + ttl) {
        Some(latest) if expiry == 0 || expiry > latest => latest,
        _ => expiry,
    }
}

fn has_expired(item: &Item, now: u64) -> bool {
    item.time != 0 && u64::from(item.time) <= now
}

/// The body of an uncompressed value.
fn body(value: &Bytes, datatype: Datatype) -> Bytes {
    if !datatype.contains(Datatype::XATTR) {
        return value.clone();
    }
    value::split_attributes(value.clone()).map_or_else(|_| value.clone(), |(_, body)| body)
}

/// What a removal leaves of a document: the attributes that are the server's own.
fn system_attributes(item: &Item) -> (Bytes, Datatype) {
    let none = (Bytes::new(), Datatype::default());
    if !item.datatype.contains(Datatype::XATTR) {
        return none;
    }
    let Ok((value, _)) = value::decompress(item.value.clone(), item.datatype, MAX_VALUE) else { return none };
    let Ok((attributes, _)) = value::split_attributes(value) else { return none };
    let kept: Vec<Attribute> = attributes.flatten().filter(|attribute| attribute.name.starts_with(b"_")).collect();
    match value::join_attributes(&kept, &[]) {
        Ok(value) if !kept.is_empty() => (value, Datatype::XATTR),
        _ => none,
    }
}
