//! Reading and writing documents.

use bytes::BytesMut;
use sluicegate_mcbp::dcp::Durability;
use sluicegate_mcbp::hello::Feature;
use sluicegate_mcbp::kv::{Counter, Document, Stored, Written};
use sluicegate_mcbp::value::decompress;
use sluicegate_mcbp::{Command, Datatype, Opcode, Reply, Request, Response, Status, collections, kv};

use super::{MAX_VALUE, Session, done, respond};
use crate::bucket::{self, Arithmetic, Content, DocumentKey, Outcome, Write};
use crate::state::State;

/// The longest key without its collection's number, in bytes.
const MAX_KEY: usize = 250;

/// A durable write that was begun for a client.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waiting {
    opcode: Opcode,
    opaque: u32,
    /// Where it began.
    stored: bucket::Stored,
}

/// An expiry that says not to create a counter.
const DO_NOT_CREATE: u32 = u32::MAX;

impl Session {
    /// The answer to a command on one document; none for any other command.
    pub(super) fn answer_kv(&mut self, request: &Request, state: &mut State) -> Option<(Status, Reply)> {
        let opcode = request.command.opcode();
        let key = match &request.command {
            Command::Get(key) | Command::Delete(key) => &key.key,
            Command::Set(store) | Command::Add(store) | Command::Replace(store) => &store.key,
            Command::Append(extend) | Command::Prepend(extend) => &extend.key,
            Command::Increment(count) | Command::Decrement(count) => &count.key,
            Command::Touch(touch) => &touch.key,
            _ => return None,
        };
        let Ok((collection, key)) = self.split_key(key) else {
            return Some(self.refuse(opcode, Status::InvalidArguments, "the key is too long, or has no collection"));
        };
        if !state.is_active(request.vbucket, self.node) {
            return Some(self.not_my_vbucket(opcode, state));
        }
        let key = DocumentKey { collection, key: bytes::Bytes::copy_from_slice(&key) };
        match request.durability() {
            Ok(None) => (),
            Ok(Some(level)) => return Some(self.operate_durably(request, key, level, state)),
            Err(_) => return Some(self.refuse(opcode, Status::InvalidArguments, "the framing extras are malformed")),
        }
        Some(match self.operate(request, key, state) {
            Ok(reply) => (Status::Success, reply),
            Err(Status::UnknownCollection) => self.unknown(opcode, Status::UnknownCollection, state),
            Err(status) => self.refuse(opcode, status, "the operation was not done"),
        })
    }

    /// The collection and key of a document.
    pub(super) fn split_key(&self, key: &bytes::Bytes) -> Result<(u32, bytes::Bytes), Status> {
        let (collection, key) = match self.has(Feature::Collections) {
            true => collections::split_key(key.clone()).map_err(|_| Status::InvalidArguments)?,
            false => (collections::DEFAULT_COLLECTION, key.clone()),
        };
        if key.is_empty() || key.len() > MAX_KEY {
            return Err(Status::InvalidArguments);
        }
        Ok((collection, key))
    }

    fn operate(&self, request: &Request, key: DocumentKey, state: &mut State) -> Result<Reply, Status> {
        let (vbucket, cas, bucket) = (request.vbucket, request.cas, &mut state.bucket);
        let stored = match &request.command {
            Command::Get(_) => {
                let item = bucket.get(vbucket, &key)?;
                let (value, _) = self.readable(item.value.clone(), item.datatype);
                return Ok(Reply::Document(Document { flags: item.flags, key: bytes::Bytes::new(), value }));
            }
            Command::Delete(_) => bucket.delete(vbucket, key, cas)?,
            Command::Set(store) => bucket.store(vbucket, key, Write::Set, self.content(store, request)?, cas)?,
            Command::Add(store) => bucket.store(vbucket, key, Write::Add, self.content(store, request)?, cas)?,
            Command::Replace(store) => bucket.store(vbucket, key, Write::Replace, self.content(store, request)?, cas)?,
            Command::Append(extend) => bucket.extend(vbucket, key, &extend.value, false, cas)?,
            Command::Prepend(extend) => bucket.extend(vbucket, key, &extend.value, true, cas)?,
            Command::Increment(count) | Command::Decrement(count) => {
                let may_create = count.expiry != DO_NOT_CREATE;
                let change = Arithmetic {
                    delta: count.delta,
                    is_decrement: matches!(request.command, Command::Decrement(_)),
                    initial: may_create.then_some(count.initial),
                    expiry: if may_create { count.expiry } else { 0 },
                };
                let (stored, value) = bucket.count(vbucket, key, change)?;
                return Ok(Reply::Counter(Counter { written: self.written(&stored), value }));
            }
            Command::Touch(touch) => {
                bucket.touch(vbucket, key, touch.expiry)?;
                return Ok(done(request.command.opcode()).1);
            }
            _ => return Err(Status::UnknownCommand),
        };
        Ok(Reply::Stored(Stored { written: self.written(&stored) }))
    }

    /// Begins a durable write. It is answered when it is complete, which may be at once.
    fn operate_durably(&mut self, request: &Request, key: DocumentKey, level: Durability, state: &mut State) -> (Status, Reply) {
        let (opcode, vbucket, cas, bucket) = (request.command.opcode(), request.vbucket, request.cas, &mut state.bucket);
        let mut prepare =
            |write, store: &kv::Store| bucket.prepare(vbucket, key.clone(), level, write, self.content(store, request)?, cas);
        let begun = match &request.command {
            Command::Set(store) => prepare(Write::Set, store),
            Command::Add(store) => prepare(Write::Add, store),
            Command::Replace(store) => prepare(Write::Replace, store),
            Command::Delete(_) => bucket.prepare_delete(vbucket, key, level, cas),
            _ => return self.refuse(opcode, Status::NotSupported, "the simulator has no durable write of this kind"),
        };
        match begun {
            Ok(stored) => {
                self.waiting = Some(Waiting { opcode, opaque: request.opaque, stored });
                (Status::Success, done(opcode).1)
            }
            Err(Status::UnknownCollection) => self.unknown(opcode, Status::UnknownCollection, state),
            Err(status) => self.refuse(opcode, status, "the operation was not done"),
        }
    }

    /// Answers a durable write that is complete.
    pub(super) fn answer_durable(&mut self, state: &State, out: &mut BytesMut) {
        let Some(Waiting { opcode, opaque, stored }) = self.waiting else { return };
        let outcome = state.bucket.vbucket(stored.vbucket).map_or(Outcome::Aborted, |vbucket| vbucket.outcome(stored.seqno));
        let (status, reply, cas) = match outcome {
            Outcome::Pending => return,
            Outcome::Committed(seqno) => {
                let written = self.written(&bucket::Stored { seqno, ..stored });
                (Status::Success, Reply::Stored(Stored { written }), stored.cas)
            }
            Outcome::Aborted => {
                let (status, reply) = self.refuse(opcode, Status::SyncWriteAmbiguous, "the durable write was given up");
                (status, reply, 0)
            }
        };
        self.waiting = None;
        let datatype = if status == Status::Success { Datatype::default() } else { Datatype::JSON };
        respond(Response { opcode, status, opaque, cas, datatype, framing: bytes::Bytes::new(), reply }, out);
    }

    /// Compare-and-swap value and datatype of an answer about one document.
    pub(super) fn document_metadata(&self, request: &Request, state: &State) -> (u64, Datatype) {
        let key = match &request.command {
            Command::Get(key) | Command::Delete(key) => &key.key,
            Command::Set(store) | Command::Add(store) | Command::Replace(store) => &store.key,
            Command::Append(extend) | Command::Prepend(extend) => &extend.key,
            Command::Increment(count) | Command::Decrement(count) => &count.key,
            _ => return (0, Datatype::default()),
        };
        let Ok((collection, key)) = self.split_key(key) else { return (0, Datatype::default()) };
        let vbucket = state.bucket.vbucket(request.vbucket);
        let Some(item) = vbucket.and_then(|vbucket| vbucket.find(&DocumentKey { collection, key })) else {
            return (0, Datatype::default());
        };
        let is_read = matches!(request.command, Command::Get(_));
        (item.cas, if is_read { self.readable(item.value.clone(), item.datatype).1 } else { Datatype::default() })
    }

    /// What is to be stored; a body that looks like JSON is marked as such.
    fn content(&self, store: &kv::Store, request: &Request) -> Result<Content, Status> {
        let mut datatype = request.datatype;
        let may = |feature, bit| self.has(feature) || !datatype.contains(bit);
        if !may(Feature::Snappy, Datatype::SNAPPY) || !may(Feature::Xattr, Datatype::XATTR) || datatype.unknown().0 != 0 {
            return Err(Status::InvalidArguments);
        }
        let (plain, _) = decompress(store.value.clone(), datatype, MAX_VALUE).map_err(|_| Status::InvalidArguments)?;
        if !datatype.contains(Datatype::XATTR) && !datatype.contains(Datatype::JSON) && is_json(&plain) {
            datatype = datatype | Datatype::JSON;
        }
        // A copy: the request lies in a chunk with others, which would stay with it.
        let (value, flags, expiry) = (bytes::Bytes::copy_from_slice(&store.value), store.flags, store.expiry);
        Ok(Content { value, datatype, flags, expiry, cas: 0 })
    }

    /// A value as a reader of documents gets it: without attributes, and compressed only if it can read that.
    fn readable(&self, value: bytes::Bytes, datatype: Datatype) -> (bytes::Bytes, Datatype) {
        let has_attributes = datatype.contains(Datatype::XATTR);
        let (value, datatype) = match has_attributes || !self.has(Feature::Snappy) {
            true => match decompress(value.clone(), datatype, MAX_VALUE) {
                Ok(plain) => plain,
                Err(_) => (value, datatype),
            },
            false => (value, datatype),
        };
        let value = match sluicegate_mcbp::value::split_attributes(value.clone()) {
            Ok((_, body)) if has_attributes => body,
            _ => value,
        };
        let datatype = datatype.without(Datatype::XATTR);
        (value, if self.has(Feature::Json) { datatype } else { datatype.without(Datatype::JSON) })
    }

    fn written(&self, stored: &bucket::Stored) -> Option<Written> {
        let written = Written { vbucket_uuid: stored.vbucket_uuid, seqno: stored.seqno };
        self.has(Feature::MutationSeqno).then_some(written)
    }
}

/// Whether a body is JSON.
pub(crate) fn is_json(body: &[u8]) -> bool {
    serde_json::from_slice::<&serde_json::value::RawValue>(body).is_ok()
}
