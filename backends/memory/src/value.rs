//! What the parts of the store have in common.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use sluicegate_core::batch::{BatchRecord, Checkpoint, LatePage};
use sluicegate_core::block::Block;
use sluicegate_core::feed::PartitionPosition;
use sluicegate_core::sequence::RangeSet;
use sluicegate_core::store::Version;
use sluicegate_core::{BlockCodec, CacheKey, ChangeEntry, Error, PartitionId, PublishedClock, Result};
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

    /// Bytes it keeps in memory beyond its own size. The entries of a record are those of the sequence documents, and count there.
    pub(crate) fn memory_bytes(&self) -> usize {
        match self {
            Stored::Bytes(bytes) => bytes.len(),
            Stored::Number(_) => 0,
            Stored::Entry(entry) => shared_bytes(entry.memory_bytes()),
            Stored::Block(block, _) => block.memory_bytes() - size_of_val(block),
            Stored::Record(record) => {
                let lists = size_of_val(&*record.entries)
                    + size_of_val(&*record.late)
                    + size_of_val(&*record.principals)
                    + size_of_val(&*record.gaps);
                let changed = record.base.as_ref().map_or(0, |base| ranges_bytes(&base.changed));
                shared_bytes(size_of::<BatchRecord>() + lists + ranges_bytes(&record.abandoned) + changed)
            }
            Stored::Late(page) => shared_bytes(size_of::<LatePage>() + size_of_val(&*page.entries)),
            Stored::Checkpoint(checkpoint) => {
                let partitions = checkpoint.position.partitions.len() * size_of::<(PartitionId, PartitionPosition)>();
                let sequencer = &checkpoint.sequencer;
                let lists = size_of_val(&*sequencer.pending) + size_of_val(&*sequencer.skipped);
                let unmarked = checkpoint.unmarked.as_ref().map_or(0, |unmarked| unmarked.stored_bytes());
                let arrived = sequencer.arrived.stored_bytes() + unmarked;
                shared_bytes(size_of::<Checkpoint>() + partitions + lists + arrived + ranges_bytes(&sequencer.abandoned))
            }
            Stored::Clock(_) => shared_bytes(size_of::<PublishedClock>()),
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

/// Bytes of what is counted by references: with its two counts.
pub(crate) fn shared_bytes(content: usize) -> usize {
    content + 2 * size_of::<usize>()
}

/// Bytes of a map's own table: seven of eight places are used at most, and a place has a byte of its own.
pub(crate) fn map_bytes<K, V, S>(map: &HashMap<K, V, S>) -> usize {
    map.capacity() * 8 / 7 * (size_of::<(K, V)>() + 1)
}

/// Bytes of the ranges in a set.
pub(crate) fn ranges_bytes(set: &RangeSet) -> usize {
    set.ranges_len() * size_of::<(u64, u64)>()
}

/// Bytes of what a key names, beyond its own size; a channel's name is counted with the channel.
pub(crate) fn key_bytes(key: &CacheKey) -> usize {
    match key {
        CacheKey::Checkpoint(feed) => feed.len(),
        CacheKey::Document(id) => id.key.len(),
        _ => 0,
    }
}
