//! How a stream's items look on the wire, as the connection has agreed.

use bytes::{BufMut as _, Bytes, BytesMut};
use sluicegate_mcbp::dcp::{Abort, Commit, Mutation, Prepare, Removal, SystemEvent};
use sluicegate_mcbp::value::{compress, decompress, join_attributes, split_attributes};
use sluicegate_mcbp::{Command, Datatype, HEADER_LEN, Header, Magic, Opcode, collections};

use super::MAX_VALUE;
use crate::bucket::{Item, Kind};

/// What values consist of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Values {
    /// All of it.
    #[default]
    Whole,
    /// No body, and the datatype of what is sent.
    None,
    /// No body, and the datatype the document has.
    NoneWithDatatype,
}

/// What a connection has agreed on, as far as items are concerned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Form {
    pub(crate) has_collections: bool,
    pub(crate) has_snappy: bool,
    pub(crate) forces_snappy: bool,
    pub(crate) has_xattrs: bool,
    pub(crate) values: Values,
    pub(crate) has_delete_times: bool,
    pub(crate) has_expirations: bool,
    /// Whether changes of collections are told with FlatBuffers.
    pub(crate) has_flat_events: bool,
}

/// Bytes of a mutation's extras.
const MUTATION_EXTRAS: usize = 31;

/// Bytes of a collection's number before a key.
fn id_len(collection: u32) -> usize {
    let bits = u32::BITS - collection.leading_zeros();
    bits.div_ceil(7).max(1) as usize
}

impl Form {
    /// Whether there is a message for an item: some changes of collections have only one with FlatBuffers.
    pub(crate) fn can_tell(&self, item: &Item) -> bool {
        self.has_flat_events || !matches!(&item.kind, Kind::System(change) if change.version == 2)
    }

    /// The message that a durable write is complete; none where a commit is told by what it has written, as from disk.
    pub(crate) fn completion(&self, item: &Item, prepared_seqno: u64, from_disk: bool) -> Option<Command> {
        let key = self.key(item);
        match item.kind {
            Kind::Abort => Some(Command::DcpAbort(Abort { prepared_seqno, abort_seqno: item.seqno, key })),
            _ if from_disk => None,
            _ => Some(Command::DcpCommit(Commit { prepared_seqno, commit_seqno: item.seqno, key })),
        }
    }

    fn key(&self, item: &Item) -> Bytes {
        match self.has_collections {
            true => collections::join_key(item.collection, &item.key),
            false => item.key.clone(),
        }
    }

    /// The message of an item, and its datatype. `from_disk`: deletions in memory do not say when.
    pub(crate) fn command(&self, item: &Item, from_disk: bool) -> (Command, Datatype) {
        if let Kind::System(change) = &item.kind {
            let mut event = SystemEvent {
                by_seqno: item.seqno,
                event: change.event,
                version: change.version,
                name: item.key.clone(),
                value: item.value.clone(),
            };
            if self.has_flat_events
                && let Ok(Some(change)) = event.change()
            {
                (event.version, event.value) = (2, change.encode_flat(&event.name));
            }
            return (Command::DcpSystemEvent(event), Datatype::default());
        }
        let key = self.key(item);
        let (value, datatype) = self.value(item);
        let (by_seqno, rev_seqno) = (item.seqno, item.rev);
        if item.kind == Kind::Mutation {
            let (flags, expiry) = (item.flags, item.time);
            let mutation = Mutation { by_seqno, rev_seqno, flags, expiry, nru: Some(0), key, value, ..Mutation::default() };
            return (Command::DcpMutation(mutation), datatype);
        }
        if let Kind::Prepare { level, is_deletion } = item.kind {
            let (flags, expiry, deleted) = (item.flags, if is_deletion { 0 } else { item.time }, u8::from(is_deletion));
            let (lock_time, nru, durability) = (0, 0, level);
            let prepare = Prepare { by_seqno, rev_seqno, flags, expiry, lock_time, nru, deleted, durability, key, value };
            return (Command::DcpPrepare(prepare), datatype);
        }
        let is_expiration = item.kind == Kind::Expiration && self.has_expirations;
        let time = if from_disk || item.kind == Kind::Expiration { item.time } else { 0 };
        let delete_time = (is_expiration || self.has_delete_times).then_some(time);
        let removal = Removal { by_seqno, rev_seqno, delete_time, key, value, ext_meta: Bytes::new() };
        let command = if is_expiration { Command::DcpExpiration(removal) } else { Command::DcpDeletion(removal) };
        (command, datatype)
    }

    /// Appends the message of a written document, if its value is sent as it is stored: most are, and there are many. False if nothing
    /// was appended.
    pub(crate) fn put_as_stored(&self, item: &Item, vbucket: u16, opaque: u32, out: &mut BytesMut) -> bool {
        let datatype = item.datatype;
        let is_as_stored = item.kind == Kind::Mutation
            && self.values == Values::Whole
            && !self.forces_snappy
            && (self.has_xattrs || !datatype.contains(Datatype::XATTR))
            && (self.has_snappy || !datatype.contains(Datatype::SNAPPY));
        if !is_as_stored {
            return false;
        }
        let id_len = if self.has_collections { id_len(item.collection) } else { 0 };
        let key_len = id_len + item.key.len();
        let body_len = MUTATION_EXTRAS + key_len + item.value.len();
        let header = Header {
            magic: Magic::Request,
            opcode: Opcode::DcpMutation.code(),
            framing_len: 0,
            key_len: key_len as u16,
            extras_len: MUTATION_EXTRAS as u8,
            datatype,
            vbucket_or_status: vbucket,
            body_len: body_len as u32,
            opaque,
            cas: item.cas,
        };
        out.reserve(HEADER_LEN + body_len);
        out.put_slice(&header.encode());
        out.put_u64(item.seqno);
        out.put_u64(item.rev);
        out.put_u32(item.flags);
        out.put_u32(item.time);
        // Neither locked nor with metadata; how recently it was used is not known.
        out.put_bytes(0, 7);
        if self.has_collections {
            let (mut id, mut rest) = ([0; 5], item.collection);
            for byte in &mut id[..id_len] {
                (*byte, rest) = (rest as u8 & 0x7f | 0x80, rest >> 7);
            }
            id[id_len - 1] &= 0x7f;
            out.put_slice(&id[..id_len]);
        }
        out.put_slice(&item.key);
        out.put_slice(&item.value);
        true
    }

    fn value(&self, item: &Item) -> (Bytes, Datatype) {
        let stored = item.datatype;
        let has_attributes = stored.contains(Datatype::XATTR);
        let drops_attributes = has_attributes && !self.has_xattrs;
        let drops_body = self.values != Values::Whole;
        let is_snappy = stored.contains(Datatype::SNAPPY);
        if item.value.is_empty() {
            return (Bytes::new(), if drops_body { self.bare(stored) } else { stored.without(Datatype::SNAPPY) });
        }
        if drops_body && (!has_attributes || drops_attributes) {
            return (Bytes::new(), self.bare(stored.without(Datatype::XATTR)));
        }
        if !drops_attributes && !drops_body && (is_snappy == self.has_snappy || !is_snappy) {
            return self.forced(item.value.clone(), stored);
        }
        let Ok((mut value, mut datatype)) = decompress(item.value.clone(), stored, MAX_VALUE) else {
            return (item.value.clone(), stored);
        };
        if has_attributes && let Ok((attributes, body)) = split_attributes(value.clone()) {
            if drops_attributes {
                (value, datatype) = (body, datatype.without(Datatype::XATTR));
            } else if drops_body {
                let attributes: Vec<_> = attributes.flatten().collect();
                value = join_attributes(&attributes, &[]).unwrap_or_default();
                datatype = match self.values {
                    Values::NoneWithDatatype => stored.without(Datatype::SNAPPY),
                    _ => Datatype::XATTR,
                };
            }
        }
        self.forced(value, datatype)
    }

    /// The datatype of an empty value.
    fn bare(&self, stored: Datatype) -> Datatype {
        if self.values == Values::NoneWithDatatype { stored } else { Datatype::default() }
    }

    fn forced(&self, value: Bytes, datatype: Datatype) -> (Bytes, Datatype) {
        if !self.forces_snappy || datatype.contains(Datatype::SNAPPY) {
            return (value, datatype);
        }
        match compress(&value) {
            Ok(compressed) if compressed.len() < value.len() => (compressed, datatype | Datatype::SNAPPY),
            _ => (value, datatype),
        }
    }
}

#[cfg(test)]
mod tests {
    use sluicegate_mcbp::Request;

    use super::*;

    #[test]
    fn a_document_sent_as_stored_has_the_bytes_of_its_message() {
        let item = |collection| Item {
            seqno: 7,
            superseded_by: u64::MAX,
            rev: 3,
            cas: 99,
            collection,
            key: "key".into(),
            value: "value".into(),
            datatype: Datatype::JSON,
            flags: 5,
            time: 1_800_000_000,
            kind: Kind::Mutation,
        };
        for has_collections in [false, true] {
            let form = Form { has_collections, ..Form::default() };
            for collection in [0, 1, 0x7f, 0x80, 0x3fff, 0x4000, 0xcafe_f00d, u32::MAX] {
                let item = item(collection);
                let (command, datatype) = form.command(&item, true);
                let request = Request::new(command).with_vbucket(9).with_opaque(77).with_cas(item.cas).with_datatype(datatype);
                let (mut expected, mut found) = (BytesMut::new(), BytesMut::new());
                request.encode(&mut expected).unwrap();
                assert!(form.put_as_stored(&item, 9, 77, &mut found));
                assert_eq!(found, expected, "collection {collection:#x}");
            }
        }
    }
}
