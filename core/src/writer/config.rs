//! How a writer works.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::block::{Log, codec_named};
use crate::engine::{LIST_CHANGES, MAX_JUMP, SequencerConfig};
use crate::error::{Error, Result};
use crate::pointer::Supersession;
use crate::sequence::Sequence;

/// The limit for entries in commits in progress, whose positions are in one document.
const MAX_IN_PROGRESS: usize = 1 << 22;

/// How a writer works. Times in milliseconds where the name says so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct WriterConfig {
    /// Entries a batch, at most. The ring of batch records holds up to `ring` times as many.
    pub max_batch: usize,
    /// Memberships a batch: in how many channels its entries are, added up. A batch is cut after
    /// the entry with which it reaches this number. The memory of a batch follows its memberships.
    pub max_batch_memberships: usize,
    /// Batches being committed at the same time, at most.
    pub max_in_flight: usize,
    /// Bytes of feed events taken and not yet published, at most (one more feed batch may be on
    /// top).
    pub max_queue_bytes: usize,
    /// How long an arrived number waits for a missing lower one before that is skipped.
    pub max_wait_ms: u64,
    /// How many arrived numbers may wait.
    pub max_pending: usize,
    /// Whether nothing is skipped while a new cache is built, until the feed has delivered all that
    /// was there when it was opened. Its sequences come in any order. Readers refuse requests until
    /// then, see [`ReaderConfig::while_building`](crate::reader::ReaderConfig::while_building).
    pub hold_first_read: bool,
    /// How long a skipped number is waited for before it is given up.
    pub skip_wait_ms: u64,
    /// The limit for missing sequences directly below one that arrived; 0 for no limit. A sequence
    /// farther up is implausible, for example that of a document that was copied from another
    /// cluster with its metadata. It stays pending, and readers do not see it, until the gateway's
    /// counter has come near it. If the feed does not deliver the counter, it stays pending until
    /// more than `max_pending` are that high.
    pub max_jump: u64,
    /// Whether the feed leaves out mutations to which the gateway's counter has given numbers.
    /// Missing numbers are then passed after `max_wait_ms`, and not awaited for `skip_wait_ms`.
    /// Unless set, it is what [`Feed::is_partial`](crate::Feed::is_partial) says.
    pub partial_feed: Option<bool>,
    /// Numbers at or below it are not looked at.
    pub initial_sequence: u64,
    /// How often a checkpoint is stored.
    pub checkpoint_interval_ms: u64,
    /// How long a failing store is tried again before the writer stops.
    pub give_up_after_ms: u64,
    /// Entries that the feed may take back at a time: so many are kept in memory until it is known
    /// which of them come again.
    pub max_taken_back: usize,
    /// How long rollbacks of other partitions are waited for when one has come, to look once for
    /// what they took back, in milliseconds. Nothing of the feed is taken meanwhile.
    pub gather_rollbacks_ms: u64,
    /// The minimal time for which purges are collected after a search for documents of purged keys,
    /// in milliseconds. If searches take long, it is ten times as long as the last one.
    pub gather_purges_ms: u64,
    /// Slots of the ring of batch records, for a new cache.
    pub ring: u64,
    /// Batch records repeat what has changed of what is missing until they have repeated so many
    /// ranges more than there are. Then all of it is stored as a list, to which later records are
    /// relative.
    pub list_changes: usize,
    /// How earlier rows of a document are found.
    pub supersession: Supersession,
    /// Block codec, for a new cache.
    pub codec: String,
    /// Sequences a block, for a new cache.
    pub block_capacity: u32,
}

impl Default for WriterConfig {
    fn default() -> Self {
        WriterConfig {
            max_batch: 4_000,
            max_batch_memberships: 100_000,
            max_in_flight: 4,
            max_queue_bytes: 64 << 20,
            max_wait_ms: 5_000,
            max_pending: 10_000,
            hold_first_read: true,
            skip_wait_ms: 3_600_000,
            max_jump: MAX_JUMP,
            partial_feed: None,
            initial_sequence: 0,
            checkpoint_interval_ms: 1_000,
            give_up_after_ms: 60_000,
            max_taken_back: 1_000_000,
            gather_rollbacks_ms: 200,
            gather_purges_ms: 1_000,
            ring: 128,
            list_changes: LIST_CHANGES,
            supersession: Supersession::default(),
            codec: Log::NAME.to_owned(),
            block_capacity: 40_000,
        }
    }
}

impl WriterConfig {
    /// The same with another limit of queued bytes.
    #[must_use]
    pub fn with_queue_bytes(self, max_queue_bytes: usize) -> Self {
        WriterConfig { max_queue_bytes, ..self }
    }

    /// The same with another number of entries a batch.
    #[must_use]
    pub fn with_batch(self, max_batch: usize) -> Self {
        WriterConfig { max_batch, ..self }
    }

    /// The same with another way to find earlier rows.
    #[must_use]
    pub fn with_supersession(self, supersession: Supersession) -> Self {
        WriterConfig { supersession, ..self }
    }

    /// The same with another first sequence: those up to and including `initial` are not looked at.
    #[must_use]
    pub fn with_initial(self, initial: Sequence) -> Self {
        WriterConfig { initial_sequence: initial.0, ..self }
    }

    /// Whether the values make sense together.
    ///
    /// # Errors
    /// `ConfigInvalid`, naming every one that does not.
    pub fn validate(&self) -> Result<()> {
        let mut wrong = Vec::new();
        for (name, value) in [
            ("max_batch", self.max_batch as u64),
            ("max_batch_memberships", self.max_batch_memberships as u64),
            ("max_in_flight", self.max_in_flight as u64),
            ("max_queue_bytes", self.max_queue_bytes as u64),
            ("max_wait_ms", self.max_wait_ms),
            ("checkpoint_interval_ms", self.checkpoint_interval_ms),
        ] {
            if value == 0 {
                wrong.push(format!("{name} is 0, must be at least 1"));
            }
        }
        let in_progress = self.max_batch.saturating_mul(self.max_in_flight);
        if in_progress > MAX_IN_PROGRESS {
            wrong.push(format!("max_batch times max_in_flight is {in_progress}, must be at most {MAX_IN_PROGRESS}"));
        }
        if self.skip_wait_ms < self.max_wait_ms {
            wrong.push(format!("skip_wait_ms is {}, must be at least max_wait_ms, {}", self.skip_wait_ms, self.max_wait_ms));
        }
        if self.ring < 2 * self.max_in_flight as u64 {
            wrong.push(format!("ring is {}, must be at least twice max_in_flight, {}", self.ring, self.max_in_flight));
        }
        if let Err(e) = codec_named(&self.codec, self.block_capacity) {
            wrong.push(e.to_string());
        }
        if wrong.is_empty() { Ok(()) } else { Err(Error::config(wrong.join("; "))) }
    }

    pub(super) fn sequencer(&self, holds: bool) -> SequencerConfig {
        SequencerConfig {
            initial: Sequence(self.initial_sequence),
            max_wait: Duration::from_millis(self.max_wait_ms),
            max_pending: self.max_pending,
            skip_wait: Duration::from_millis(self.skip_wait_ms),
            max_jump: self.max_jump,
            is_partial: self.partial_feed.unwrap_or(false),
            holds,
        }
    }
}
