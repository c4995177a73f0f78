//! A feed batch, decoded.

use super::notices::Notices;
use super::pointers::Pointers;
use crate::decode::{Decoded, Invalid, MutationDecoder};
use crate::entry::Origin;
use crate::error::{Error, Result};
use crate::feed::{FeedBatch, FeedEvent, PartitionId, PartitionSeqno};
use crate::sequence::Sequence;

/// A feed batch, decoded.
#[derive(Debug)]
pub(super) struct DecodedBatch {
    pub(super) items: Vec<Item>,
    pub(super) bytes: usize,
    /// Its ordinal, counted from 1.
    pub(super) number: u64,
    /// The stored pointers of its documents, if the writer keeps any.
    pub(super) pointers: Pointers,
}

#[derive(Debug)]
pub(super) enum Item {
    Decoded(PartitionId, PartitionSeqno, Decoded),
    Control(FeedEvent),
}

impl Item {
    /// The position of a document.
    pub(super) fn position(&self) -> Option<Sequence> {
        match self {
            Item::Decoded(_, _, Decoded::Document(document)) => Some(document.entry.position()),
            _ => None,
        }
    }

    /// Whether it is taken back with everything of the partition after `to`.
    pub(super) fn is_void(&self, partition: PartitionId, to: PartitionSeqno) -> bool {
        match self {
            Item::Decoded(id, seqno, ..) | Item::Control(FeedEvent::SeqnoAdvanced { partition: id, seqno }) => {
                *id == partition && *seqno > to
            }
            Item::Control(FeedEvent::SnapshotStart { partition: id, start, end }) => {
                *id == partition && *start >= to && *end > to
            }
            Item::Control(FeedEvent::RollbackEnded { partition: id }) => *id == partition,
            Item::Control(_) => false,
        }
    }
}

pub(super) fn decode(decoder: &dyn MutationDecoder, batch: FeedBatch) -> Vec<Item> {
    let mut notices = Notices::default();
    let item = |event| match event {
        FeedEvent::Mutation(mutation) => {
            let mut decoded = decoder.decode(&mutation);
            if let Decoded::Document(document) | Decoded::Foreign(document) = &mut decoded {
                let (partition, seqno, cas) = (mutation.partition, mutation.seqno, mutation.cas);
                document.entry.set_origin(Origin { partition, seqno, cas });
            }
            decoded = refuse_impossible_sequence(decoded);
            notices.tell(&mutation.key, &decoded);
            Item::Decoded(mutation.partition, mutation.seqno, decoded)
        }
        other => Item::Control(other),
    };
    let items = batch.events.into_iter().map(item).collect();
    notices.tell_more();
    items
}

/// Refuses a document of a named collection, for a cache that may have it as one of the default
/// collection: it would be shown twice, or not at all.
pub(super) fn refuse_collection(item: &Item) -> Result<()> {
    let Item::Decoded(_, _, Decoded::Document(document) | Decoded::Foreign(document)) = item else { return Ok(()) };
    let id = document.entry.document();
    if id.collection.is_default() {
        return Ok(());
    }
    let message = "the cache was made by a build that stored documents of all collections as those of the default one, and the \
                   feed has a document of a named collection";
    let next = "write a new cache, in another namespace, and remove this one";
    Err(Error::config(message).with_context("collection", id.collection).with_context("document", id.key).with_next_step(next))
}

/// Makes a document or principal invalid if its sequence is over [`Sequence::MAX_NUMBER`], for any
/// decoder. Positions above that are the writer's own.
fn refuse_impossible_sequence(decoded: Decoded) -> Decoded {
    let sequence = match &decoded {
        Decoded::Document(document) | Decoded::Foreign(document) => document.entry.position(),
        Decoded::Principal(principal) => principal.sequence,
        _ => return decoded,
    };
    if sequence <= Sequence::MAX_NUMBER {
        return decoded;
    }
    let reason = format!("its sequence {} is over the highest possible, {}", sequence.0, Sequence::MAX_NUMBER.0);
    Decoded::Invalid(Invalid { reason })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::{DecodedDocument, Principal, PrincipalKind};
    use crate::entry::{ChangeEntry, EntryFlags};

    #[test]
    fn a_sequence_over_the_highest_is_invalid_and_named() {
        let document = |n| {
            let entry = ChangeEntry::new(Sequence(n), "d", "1-a", EntryFlags::default()).unwrap();
            Decoded::Document(DecodedDocument::from(entry))
        };
        let principal = |n| {
            let (sequence, kind) = (Sequence(n), PrincipalKind::User);
            Decoded::Principal(Principal { sequence, kind, name: "u".into(), document: Default::default() })
        };
        let highest = Sequence::MAX_NUMBER.0;
        assert!(matches!(refuse_impossible_sequence(document(highest)), Decoded::Document(_)));
        assert!(matches!(refuse_impossible_sequence(principal(highest)), Decoded::Principal(_)));
        for n in [highest + 1, u64::MAX] {
            for decoded in [document(n), principal(n)] {
                let Decoded::Invalid(invalid) = refuse_impossible_sequence(decoded) else { panic!("{n}") };
                assert!(invalid.reason.contains(&n.to_string()), "{}", invalid.reason);
            }
        }
    }
}
