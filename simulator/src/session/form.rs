//! How a stream's items look on the wire, as the connection has agreed.

use bytes::Bytes;
use sluicegate_mcbp::dcp::{Mutation, Removal, SystemEvent};
use sluicegate_mcbp::value::{compress, decompress, join_attributes, split_attributes};
use sluicegate_mcbp::{Command, Datatype, collections};

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
}

/// The longest value that is decompressed, in bytes.
const MAX_VALUE: usize = 21 << 20;

impl Form {
    /// The message of an item, and its datatype. `from_disk`: deletions in memory do not say when.
    pub(crate) fn command(&self, item: &Item, from_disk: bool) -> (Command, Datatype) {
        if let Kind::System(change) = &item.kind {
            let event = SystemEvent {
                by_seqno: item.seqno,
                event: change.event,
                version: change.version,
                name: item.key.clone(),
                value: item.value.clone(),
            };
            return (Command::DcpSystemEvent(event), Datatype::default());
        }
        let key = match self.has_collections {
            true => collections::join_key(item.collection, &item.key),
            false => item.key.clone(),
        };
        let (value, datatype) = self.value(item);
        let (by_seqno, rev_seqno) = (item.seqno, item.rev);
        if item.kind == Kind::Mutation {
            let (flags, expiry) = (item.flags, item.time);
            let mutation = Mutation { by_seqno, rev_seqno, flags, expiry, nru: Some(0), key, value, ..Mutation::default() };
            return (Command::DcpMutation(mutation), datatype);
        }
        let is_expiration = item.kind == Kind::Expiration && self.has_expirations;
        let time = if from_disk || item.kind == Kind::Expiration { item.time } else { 0 };
        let delete_time = (is_expiration || self.has_delete_times).then_some(time);
        let removal = Removal { by_seqno, rev_seqno, delete_time, key, value, ext_meta: Bytes::new() };
        let command = if is_expiration { Command::DcpExpiration(removal) } else { Command::DcpDeletion(removal) };
        (command, datatype)
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
