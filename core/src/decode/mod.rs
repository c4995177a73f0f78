//! From a feed's events to change entries.

pub mod attributes;
pub mod databases;
pub mod gateway;
mod interner;
mod json;
mod metadata;
mod provenance;
#[cfg(test)]
mod recordings;

use std::fmt;

use bytes::Bytes;
/// The lists of a [`DecodedDocument`]: mostly empty, and 8 bytes then. Made by `collect`, or by
/// `into` from a `Vec`.
pub use thin_vec::ThinVec;

pub use gateway::{GatewayDecoder, GatewayOptions};

use crate::channel::Channel;
use crate::document::DocumentId;
use crate::entry::{ChangeEntry, Membership};
use crate::feed::Mutation;
use crate::sequence::{Sequence, SequenceRange};

/// Understands the values of one kind of feed.
///
/// A decoder has no state that matters: decoding the same mutation twice gives the same result, and
/// mutations may be decoded in any order and on any thread.
pub trait MutationDecoder: Send + Sync + fmt::Debug + 'static {
    /// What the mutation means. Must not fail on any input: what cannot be understood is
    /// [`Decoded::Invalid`].
    fn decode(&self, mutation: &Mutation) -> Decoded;
}

/// What a mutation means.
#[derive(Clone, Debug, PartialEq)]
pub enum Decoded {
    /// A document revision.
    Document(DecodedDocument),
    /// A document that another program wrote after the gateway. Its revision is not shown: the
    /// gateway will import the write as a revision with a sequence of its own, unless it is
    /// configured not to. The metadata is still the gateway's: it accounts for its entry's
    /// sequence, and for all others as that of a [`Document`](Decoded::Document) does. An existing
    /// row stays.
    Foreign(DecodedDocument),
    /// A key was deleted with all its attributes: if it was a document, its rows are to be removed.
    /// Most such keys never were documents of the gateway.
    Purged(Purged),
    /// A user or role.
    Principal(Principal),
    /// Sequences that will never be used.
    Unused(SequenceRange),
    /// The gateway has allocated all sequences up to this one. It may have been written before
    /// documents that the feed has delivered already.
    Counter(Sequence),
    /// Not about the cache.
    Ignored(Ignored),
    /// It should have been about the cache, but cannot be understood.
    Invalid(Invalid),
}

/// A document revision.
#[derive(Clone, Debug, PartialEq)]
pub struct DecodedDocument {
    /// The entry. What it supersedes is accounted for by it: if such a sequence has not arrived, it
    /// will not.
    pub entry: ChangeEntry,
    /// Sequences that its write allocated and did not use.
    pub unused: ThinVec<Sequence>,
    /// Earlier sequences at which the document left channels, as its channel map remembers: for the
    /// case that the feed never delivers those revisions. Some are among the entry's superseded
    /// sequences. Others are older than what it names as superseded: they matter where a feed
    /// begins with what a server still has, one revision a document; they are accounted for as
    /// well, and need no marks.
    pub departures: ThinVec<Departure>,
    /// More sequences of its earlier revisions. They are accounted for as the superseded ones are,
    /// but are too many to mark: only the rows of the newest are marked. A row stays unmarked only
    /// if the feed left out all revisions between it and the oldest marked one.
    pub accounted: ThinVec<Sequence>,
    /// Whether the entry and the departures name all channels in which the document has been since
    /// it was created. If the cache has it in another channel, that is from before: the document
    /// was purged and made anew. False if the decoder does not know.
    pub names_all_channels: bool,
    /// The parts that were left out; `None` for nearly all documents.
    pub left_out: Option<Box<LeftOut>>,
}

/// Parts of a document that were left out. The document is shown without them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeftOut {
    /// The number of channels.
    pub channels: u64,
    /// The first few of these channels, each with the reason.
    pub named: Vec<String>,
    /// The number of earlier and unused sequences: nothing accounts for them.
    pub sequences: u64,
}

impl LeftOut {
    /// The limit for channels that are named.
    pub const NAMED: usize = 4;
}

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.channels > 0 {
            write!(f, "{} of its channels: {}", self.channels, self.named.join(", "))?;
            if self.channels > self.named.len() as u64 {
                f.write_str(" and others")?;
            }
        }
        if self.sequences > 0 {
            let and = if self.channels > 0 { "; " } else { "" };
            write!(f, "{and}{} of its earlier or unused sequences, because its lists of them are too long", self.sequences)?;
        }
        Ok(())
    }
}

/// A key that was deleted with all its attributes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Purged {
    /// The document, if the key was one.
    pub document: DocumentId,
    /// The CAS of the deletion; 0 if not known.
    pub cas: u64,
}

impl From<ChangeEntry> for DecodedDocument {
    fn from(entry: ChangeEntry) -> Self {
        DecodedDocument {
            entry,
            unused: ThinVec::new(),
            departures: ThinVec::new(),
            accounted: ThinVec::new(),
            names_all_channels: false,
            left_out: None,
        }
    }
}

impl DecodedDocument {
    /// Whether it has `channel`, or has left it. Not for star channels.
    pub fn names(&self, channel: &Channel) -> bool {
        self.entry.channels().iter().any(|change| change.channel == *channel)
            || self.departures.iter().any(|departure| departure.channel == *channel)
    }

    /// The sequences that it accounts for besides its own and the unused ones: those of its earlier
    /// revisions, whose rows will not come. Some may be repeated.
    pub fn earlier(&self) -> impl Iterator<Item = Sequence> {
        let departed = self.departures.iter().map(|departure| departure.sequence);
        self.entry.supersedes().iter().chain(&self.accounted).copied().chain(departed)
    }

    /// Takes over what `stored`, the entry of an earlier revision or of a departure, supersedes.
    /// The document's pointer does not name those rows any more, and the feed may have left out the
    /// revision that did.
    #[cfg(feature = "runtime")]
    pub(crate) fn recall_earlier(&mut self, stored: &ChangeEntry) {
        if stored.document() == self.entry.document() && !stored.is_newer_than(&self.entry) {
            self.entry.recall(stored);
            self.recall(stored);
        }
    }

    /// Takes over what `stored`, an entry of one of this document's sequences, knows to be
    /// superseded. What a number stood for before a rollback is another revision.
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
#[derive(Clone, PartialEq, Eq)]
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

impl fmt::Debug for Principal {
    /// Leaves out the document: that of a user has the hash of a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Principal { sequence, kind, name, document } = self;
        let mut debug = f.debug_struct("Principal");
        debug.field("sequence", sequence).field("kind", kind).field("name", name);
        debug.field("document", &format_args!("{} bytes", document.len())).finish()
    }
}

/// Why a mutation is not about the cache.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Ignored {
    /// The gateway's own bookkeeping.
    Internal,
    /// A document without the gateway's metadata.
    NoMetadata,
    /// A document without the gateway's metadata, but with a property of that name by another
    /// program.
    ForeignProperty,
    /// A deletion that is of no document.
    Deletion,
    /// A user, a role or a marker of unused sequences of the database with this metadata id.
    OtherDatabase(Box<str>),
    /// A document in the collection of this number, which is not one of the database.
    OtherCollection(u32),
}

/// Why a mutation cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid {
    /// What is wrong; never quotes the document's body.
    pub reason: String,
}
