#![doc = include_str!("../README.md")]

pub mod backfill;
pub mod batch;
pub mod block;
pub mod changes;
pub mod channel;
pub mod clock;
pub mod collections;
pub mod commit;
pub mod coordinate;
pub mod decode;
pub mod directory;
pub mod document;
pub mod engine;
mod entries;
pub mod entry;
pub mod error;
pub mod feed;
#[cfg(feature = "runtime")]
mod fenced;
#[cfg(feature = "runtime")]
mod intent;
pub mod key;
pub mod meta;
pub mod missing;
#[cfg(feature = "runtime")]
pub mod node;
pub mod pointer;
#[cfg(feature = "runtime")]
pub mod reader;
pub mod registry;
mod retry;
pub mod scan;
pub mod sequence;
pub mod source;
pub mod store;
#[cfg(feature = "runtime")]
pub mod verify;
#[cfg(feature = "runtime")]
mod withdraw;
#[cfg(feature = "runtime")]
pub mod writer;

pub use backfill::BackfillSource;
pub use block::BlockCodec;
pub use channel::Channel;
pub use clock::{CacheId, Epoch, PublishedClock};
pub use coordinate::{AlwaysWriter, Candidate, Coordinator, Role};
pub use decode::{Decoded, GatewayDecoder, MutationDecoder};
pub use document::{CollectionId, DocumentId, DocumentRef};
pub use entry::{ChangeEntry, EntryFlags, Membership};
pub use error::{Error, ErrorKind, Result, Status};
pub use feed::{Feed, FeedBatch, FeedEvent, FeedPosition, FeedStart, FeedStream, Mutation, PartitionId, PartitionSeqno};
pub use key::{BlockIndex, CacheKey};
#[cfg(feature = "runtime")]
pub use node::{WriterNode, WriterStatus};
#[cfg(feature = "runtime")]
pub use reader::{ReaderConfig, ReaderNode};
pub use registry::Registry;
pub use sequence::{Sequence, SequenceRange};
pub use store::CacheStore;
#[cfg(feature = "runtime")]
pub use writer::{Writer, WriterConfig};
