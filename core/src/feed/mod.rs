//! The change feed: what it delivers, and where to open it.

mod identity;
mod position;
#[cfg(feature = "runtime")]
mod shared;

use std::fmt;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use serde::{Deserialize, Serialize};

use crate::error::Result;

pub use identity::FeedIdentity;
pub use position::{Delivered, FeedPosition, PartitionPosition, PositionTracker, SnapshotEnds, begun_snapshot, common_point};
#[cfg(feature = "runtime")]
pub use shared::{SharedFeed, Strangers, Territory};

/// Number of a partition (vbucket): the unit of order in the feed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PartitionId(pub u16);

/// Position in one partition, as the feed numbers it. Nothing to do with [`Sequence`](crate::Sequence).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PartitionSeqno(pub u64);

/// What happened to a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MutationKind {
    /// Written.
    Mutation,
    /// Deleted; attributes may remain.
    Deletion,
    /// Deleted because its time was up.
    Expiration,
}

impl MutationKind {
    /// All of them, by number.
    pub const ALL: [MutationKind; 3] = [MutationKind::Mutation, MutationKind::Deletion, MutationKind::Expiration];

    /// Its name in recordings and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            MutationKind::Mutation => "mutation",
            MutationKind::Deletion => "deletion",
            MutationKind::Expiration => "expiration",
        }
    }
}

/// Bits that say how a value is encoded (protocol, section 1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Datatype(pub u8);

impl Datatype {
    /// The body is JSON.
    pub const JSON: u8 = 1;
    /// The whole value is Snappy-compressed.
    pub const SNAPPY: u8 = 2;
    /// The value begins with an attribute section.
    pub const XATTR: u8 = 4;

    /// Whether the value begins with an attribute section.
    pub fn has_attributes(self) -> bool {
        self.0 & Self::XATTR != 0
    }

    /// Whether the value is compressed.
    pub fn is_compressed(self) -> bool {
        self.0 & Self::SNAPPY != 0
    }
}

/// One event about one key, as the feed delivers it. `Debug` does not show the value.
#[derive(Clone, PartialEq, Eq)]
pub struct Mutation {
    /// What happened.
    pub kind: MutationKind,
    /// The partition it came in.
    pub partition: PartitionId,
    /// Its position in that partition.
    pub seqno: PartitionSeqno,
    /// The key.
    pub key: Bytes,
    /// The value as delivered: attribute section, if `datatype` says so, then the body.
    pub value: Bytes,
    /// Compare-and-swap value after the event.
    pub cas: u64,
    /// How the value is encoded.
    pub datatype: Datatype,
    /// The server's revision number of the key.
    pub rev_no: u64,
    /// The document's flags.
    pub flags: u32,
    /// When it expires, seconds since 1970; 0 for never.
    pub expiry: u32,
    /// The collection; 0 is the default one.
    pub collection: u32,
}

impl fmt::Debug for Mutation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Mutation { kind, partition, seqno, key, value, cas, datatype, rev_no, flags, expiry, collection } = self;
        f.debug_struct("Mutation")
            .field("kind", kind)
            .field("partition", partition)
            .field("seqno", seqno)
            .field("key", key)
            .field("value", &format_args!("{} bytes", value.len()))
            .field("cas", cas)
            .field("datatype", datatype)
            .field("rev_no", rev_no)
            .field("flags", flags)
            .field("expiry", expiry)
            .field("collection", collection)
            .finish()
    }
}

impl Mutation {
    /// A mutation of `key` with everything else at zero.
    pub fn new(key: impl Into<Bytes>, value: impl Into<Bytes>) -> Self {
        Mutation {
            kind: MutationKind::Mutation,
            partition: PartitionId(0),
            seqno: PartitionSeqno(0),
            key: key.into(),
            value: value.into(),
            cas: 0,
            datatype: Datatype(0),
            rev_no: 0,
            flags: 0,
            expiry: 0,
            collection: 0,
        }
    }

    /// Bytes it keeps in memory, for queue limits.
    pub fn memory_bytes(&self) -> usize {
        size_of::<Self>() + self.key.len() + self.value.len()
    }
}

/// One thing a feed delivers.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FeedEvent {
    /// A key was written, deleted or expired; see its `kind`.
    Mutation(Mutation),
    /// A snapshot of one partition begins: until `end`, order by seqno is all that is promised.
    SnapshotStart {
        /// The partition.
        partition: PartitionId,
        /// First seqno of the snapshot.
        start: PartitionSeqno,
        /// Last seqno of the snapshot.
        end: PartitionSeqno,
    },
    /// The producer took back everything of the partition after `to`. What of it holds all the same comes again, exactly as before; when
    /// all of it has, [`RollbackEnded`](FeedEvent::RollbackEnded) says so.
    ///
    /// Also told where the position does not change: whoever opened the feed at a position may hold more than it says, and the history after it is
    /// another one now.
    Rollback {
        /// The partition.
        partition: PartitionId,
        /// The last seqno that still holds. The feed goes on after it, and leaves out only changes of keys that have a later one.
        to: PartitionSeqno,
    },
    /// All that the partition held when it was opened again after its last [`Rollback`](FeedEvent::Rollback) has been delivered: what was taken
    /// back and has not come again since is gone.
    RollbackEnded {
        /// The partition.
        partition: PartitionId,
    },
    /// What follows comes in no order, up to the partition's next [`SeqnoAdvanced`](FeedEvent::SeqnoAdvanced), which says where it is then, or
    /// [`SnapshotStart`](FeedEvent::SnapshotStart), before which it has been given up (DCP: OSO snapshot). Until then the position stays where it was.
    Unordered {
        /// The partition.
        partition: PartitionId,
    },
    /// The position moves without an event about a key: what lies up to `seqno` concerns no one here.
    SeqnoAdvanced {
        /// The partition.
        partition: PartitionId,
        /// Where it is now.
        seqno: PartitionSeqno,
    },
    /// A partition's history is now this one (DCP: vbucket uuid). A feed with histories delivers it
    /// before anything else of a partition whenever it is opened, and after each
    /// [`Rollback`](FeedEvent::Rollback): without it, a lost history is not noticed.
    PartitionState {
        /// The partition.
        partition: PartitionId,
        /// Identity of its history.
        uuid: u64,
        /// Its histories: identity, and the seqno at which each begins; newest first (DCP: failover log). Empty where a feed has none.
        failover_log: Vec<(u64, u64)>,
    },
    /// What a producer is to be told when the partition is opened at its position; 0 for nothing.
    PartitionContext {
        /// The partition.
        partition: PartitionId,
        /// The last state of its collections that was seen (DCP: manifest uid).
        manifest_uid: u64,
        /// Up to where deletions may have been gone already when its snapshot was made (DCP: purge seqno).
        purge_seqno: u64,
    },
    /// The names of collections that were not reported yet: each number with `SCOPE.COLLECTION`.
    /// Comes before the documents of a collection, if at all.
    CollectionNames(Vec<(u32, Box<str>)>),
    /// Everything that existed when the feed was opened has been delivered.
    CaughtUp,
}

impl FeedEvent {
    /// The partition that it is about, if it is about one.
    pub fn partition(&self) -> Option<PartitionId> {
        match self {
            FeedEvent::Mutation(mutation) => Some(mutation.partition),
            FeedEvent::SnapshotStart { partition, .. }
            | FeedEvent::Rollback { partition, .. }
            | FeedEvent::RollbackEnded { partition }
            | FeedEvent::Unordered { partition }
            | FeedEvent::SeqnoAdvanced { partition, .. }
            | FeedEvent::PartitionState { partition, .. }
            | FeedEvent::PartitionContext { partition, .. } => Some(*partition),
            FeedEvent::CollectionNames(_) | FeedEvent::CaughtUp => None,
        }
    }
}

/// Some events, in the order of the feed.
#[derive(Clone, Debug, Default)]
pub struct FeedBatch {
    /// The events.
    pub events: Vec<FeedEvent>,
}

impl FeedBatch {
    /// Bytes it keeps in memory, for queue limits.
    pub fn memory_bytes(&self) -> usize {
        self.events
            .iter()
            .map(|event| match event {
                FeedEvent::Mutation(m) => m.memory_bytes(),
                FeedEvent::PartitionState { failover_log, .. } => size_of::<FeedEvent>() + size_of_val(&failover_log[..]),
                FeedEvent::CollectionNames(names) => {
                    size_of::<FeedEvent>() + size_of_val(&names[..]) + names.iter().map(|(_, name)| name.len()).sum::<usize>()
                }
                _ => size_of::<FeedEvent>(),
            })
            .sum()
    }
}

impl From<Vec<FeedEvent>> for FeedBatch {
    fn from(events: Vec<FeedEvent>) -> Self {
        FeedBatch { events }
    }
}

/// Where to open a feed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FeedStart {
    /// Everything there is, then everything new.
    Beginning,
    /// Only what is new.
    Now,
    /// What comes after a position this feed gave.
    At(FeedPosition),
}

/// What a feed can do. The conformance suite checks that what is declared works and what is not is refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FeedCapabilities {
    /// It can be opened at a position.
    pub positions: bool,
    /// It announces snapshots.
    pub snapshots: bool,
    /// It delivers deletions.
    pub deletions: bool,
    /// It ends by itself (a recording), rather than wait for more.
    pub finite: bool,
}

/// What a feed is.
#[derive(Clone, Debug)]
pub struct FeedInfo {
    /// The scheme of its URL.
    pub scheme: &'static str,
    /// Name that tells it from other feeds of the same scheme; part of the checkpoint's key.
    pub name: String,
    /// How many partitions it has.
    pub partitions: u16,
    /// What it can do.
    pub capabilities: FeedCapabilities,
}

impl FeedInfo {
    /// The name under which a writer keeps its checkpoint for this feed.
    pub fn checkpoint_name(&self) -> String {
        format!("{}:{}", self.scheme, self.name)
    }
}

/// What an open feed yields. It ends after the last event of a finite feed; an error ends it too.
pub type FeedStream = BoxStream<'static, Result<FeedBatch>>;

/// A source of mutations.
///
/// Contract: events of one partition come in the order of their seqno within a snapshot, unless [`Unordered`](FeedEvent::Unordered) was said before; partitions interleave at will; an event may
/// come again after a reopening, and none that comes after the position of [`FeedStart::At`] is left out, except those of a key that
/// has a later event (a server keeps only the last). All events of a key come in one partition. Each [`Rollback`](FeedEvent::Rollback) is followed by a
/// [`RollbackEnded`](FeedEvent::RollbackEnded) of its partition, or by another `Rollback` of it; what is taken back while the feed is closed is told when it is
/// opened at a position from before. The consumer takes a batch when it has room: an implementation must stop reading from its
/// producer rather than queue without limit. Dropping the stream closes the feed; nothing is lost by it, since whoever
/// opens it again does so at a position.
#[async_trait]
pub trait Feed: Send + Sync + fmt::Debug + 'static {
    /// What this feed is and can do.
    fn info(&self) -> FeedInfo;

    /// The identity of its source. It must differ between two feeds whose sequences are unrelated:
    /// a cache that was made from one refuses the other. Unless implemented, scheme and name.
    fn identity(&self) -> FeedIdentity {
        FeedIdentity::new(self.info().checkpoint_name())
    }

    /// Whether it leaves out mutations to which the gateway's counter has given sequences, for
    /// example those of other collections. The writer does not wait long for the sequences that are
    /// missing then.
    fn is_partial(&self) -> bool {
        false
    }

    /// Opens the feed. May be called again, for example after an error.
    ///
    /// # Errors
    /// `Unsupported` for a start that the capabilities exclude; `Unavailable` where the producer cannot be reached;
    /// `RolledBack` where it no longer knows the position.
    async fn open(&self, start: FeedStart) -> Result<FeedStream>;
}
