//! What the parts of the store have in common.

use std::sync::Arc;

use bytes::Bytes;
use sluicegate_core::batch::{BatchRecord, Checkpoint, LatePage};
use sluicegate_core::block::Block;
use sluicegate_core::store::Version;
use sluicegate_core::{BlockCodec, CacheKey, ChangeEntry, Error, PublishedClock, Result};
use tokio::time::Instant;

/// The keys behind one lock.
pub(crate) trait Area {
    /// The document at `key`, in a form that can leave the lock.
    fn read(&self, key: &CacheKey) -> Option<(Stored, Version)>;

    /// The version of the document at `key`.
    fn version(&self, key: &CacheKey) -> Option<Version>;

    /// Keeps `value` as it is until `deadline`, in place of what is there.
    fn put(&mut self, key: &CacheKey, value: Bytes, deadline: Option<Instant>, version: Version);

    /// Forgets what is there.
    fn take(&mut self, key: &CacheKey);
}

/// A document as it was written through a primitive.
#[derive(Clone, Debug)]
pub(crate) struct Raw {
    pub(crate) bytes: Bytes,
    pub(crate) deadline: Option<Instant>,
}

impl Raw {
    /// Whether its time is up.
    pub(crate) fn is_over(&self) -> bool {
        self.deadline.is_some_and(|deadline| deadline <= Instant::now())
    }
}

/// A stored document on its way out.
#[derive(Clone, Debug)]
pub(crate) enum Stored {
    Bytes(Bytes),
    Number(u64),
    Entry(Arc<ChangeEntry>),
    Block(Block, Arc<dyn BlockCodec>),
    Record(Arc<BatchRecord>),
    Late(Arc<LatePage>),
    Checkpoint(Arc<Checkpoint>),
    Clock(Arc<PublishedClock>),
}

impl Stored {
    /// Its canonical bytes.
    pub(crate) fn encode(self) -> Bytes {
        match self {
            Stored::Bytes(bytes) => bytes,
            Stored::Number(number) => Bytes::from(number.to_string()),
            Stored::Entry(entry) => entry.to_bytes(),
            Stored::Block(block, codec) => codec.encode(&block),
            Stored::Record(record) => record.to_bytes(),
            Stored::Late(page) => page.to_bytes(),
            Stored::Checkpoint(checkpoint) => checkpoint.to_bytes(),
            Stored::Clock(clock) => clock.to_bytes(),
        }
    }

    /// The counter that it is.
    pub(crate) fn number(self) -> Result<u64> {
        match self {
            Stored::Number(number) => Ok(number),
            other => number(&other.encode()),
        }
    }
}

/// Reads a counter: ASCII decimal, as it would be written.
pub(crate) fn number(bytes: &[u8]) -> Result<u64> {
    let number = std::str::from_utf8(bytes).ok().and_then(|text| text.parse::<u64>().ok());
    number.ok_or_else(|| Error::corrupt("not a counter"))
}
