//! From a feed's events to change entries.

pub mod attributes;
pub mod gateway;
mod interner;
mod json;
mod metadata;
#[cfg(test)]
mod recordings;

use std::fmt;

use bytes::Bytes;

pub use gateway::{GatewayDecoder, GatewayOptions};

use crate::channel::Channel;
use crate::entry::{ChangeEntry, Membership};
use crate::feed::Mutation;
use crate::sequence::{Sequence, SequenceList, SequenceRange};

/// Understands the values of one kind of feed.
///
/// A decoder has no state that matters: decoding the same mutation twice gives the same result, and mutations may be decoded in any
/// order and on any thread.
pub trait MutationDecoder: Send + Sync + fmt::Debug + 'static {
    /// What the mutation means. Must not fail on any input: what cannot be understood is [`Decoded::Invalid`].
    fn decode(&self, mutation: &Mutation) -> Decoded;
}

/// What a mutation means.
#[derive(Clone, Debug, PartialEq)]
pub enum Decoded {
    /// A document revision.
    Document(DecodedDocument),
    /// A user or role.
    Principal(Principal),
    /// Sequences that will never be used.
    Unused(SequenceRange),
    /// Not about the cache.
    Ignored(Ignored),
    /// It should have been about the cache, but cannot be understood.
    Invalid(Invalid),
}

/// A document revision.
#[derive(Clone, Debug, PartialEq)]
pub struct DecodedDocument {
    /// The entry. What it supersedes is accounted for by it: if such a sequence has not arrived, it will not.
    pub entry: ChangeEntry,
    /// Sequences that its write allocated and did not use.
    pub unused: SequenceList,
    /// Earlier sequences at which the document left channels, as its channel map remembers: for the case that the feed
    /// never delivers those revisions. Some are among the entry's superseded sequences. Others are older than what it names as
    /// superseded: they matter where a feed begins with what a server still has, one revision a document; they are
    /// accounted for as well, and need no marks.
    pub departures: Vec<Departure>,
}

impl DecodedDocument {
    /// Takes over what `stored`, an entry of one of this document's sequences, knows to be superseded. What a number stood for before a rollback
    /// is another revision.
    pub fn recall(&mut self, stored: &ChangeEntry) {
        if stored.document() != self.entry.document() {
            return;
        }
        if stored.sequence() == self.entry.sequence() && stored.revision() == self.entry.revision() {
            self.entry.recall(stored);
        }
        let same = |d: &&mut Departure| d.sequence == stored.sequence() && *d.revision == *stored.revision();
        for departure in self.departures.iter_mut().filter(same) {
            if let Some(known) = stored.channels().iter().find(|known| known.channel == departure.channel) {
                departure.since = departure.since.min(known.since);
            }
        }
    }
}

/// That a document left a channel at an earlier sequence.
#[derive(Clone, Debug, PartialEq)]
pub struct Departure {
    /// When.
    pub sequence: Sequence,
    /// The revision that left.
    pub revision: Box<str>,
    /// What it left.
    pub channel: Channel,
    /// How.
    pub membership: Membership,
    /// As [`ChannelChange::since`](crate::entry::ChannelChange::since).
    pub since: Sequence,
}

/// Whether a principal is a user or a role.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PrincipalKind {
    /// A user.
    User,
    /// A role.
    Role,
}

/// A user or role, whose document used up a sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Principal {
    /// The sequence.
    pub sequence: Sequence,
    /// User or role.
    pub kind: PrincipalKind,
    /// Its name.
    pub name: Box<str>,
    /// Its document as delivered, for whoever evaluates grants.
    pub document: Bytes,
}

/// Why a mutation is not about the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Ignored {
    /// The gateway's own bookkeeping.
    Internal,
    /// A document without the gateway's metadata.
    NoMetadata,
    /// The gateway's metadata, but another program wrote the document since: the gateway will import it.
    ForeignWrite,
    /// A deletion that carries nothing.
    Deletion,
}

/// Why a mutation cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid {
    /// What is wrong; never quotes the document's body.
    pub reason: String,
}
