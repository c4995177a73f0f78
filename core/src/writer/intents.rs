//! Stores which entries are about to be stored, see [`Intent`].

use std::collections::VecDeque;

use parking_lot::Mutex;

use crate::clock::Epoch;
use crate::entry::ChangeEntry;
use crate::error::Result;
use crate::intent::{self, IntendedBatch, Intent, Positions};
use crate::sequence::RangeSet;
use crate::store::{CacheStore, Version};

/// The batches whose commits have begun and that are not published.
#[derive(Debug)]
pub(super) struct Intents {
    epoch: Epoch,
    batches: Mutex<VecDeque<IntendedBatch>>,
    stored: tokio::sync::Mutex<Stored>,
}

/// What is stored.
#[derive(Debug)]
struct Stored {
    version: Version,
    /// The last batch in it.
    last: u64,
}

impl Intents {
    /// Takes over the stored intent for the term `epoch`. Also returns the positions of batches after
    /// `published`.
    ///
    /// # Errors
    /// As [`intent::take_over`].
    pub(super) async fn take_over(store: &dyn CacheStore, epoch: Epoch, published: u64) -> Result<(Self, RangeSet)> {
        let (version, left) = intent::take_over(store, epoch, published).await?;
        let first = IntendedBatch { number: published + 1, positions: Positions::from(&left) };
        let batches = if left.is_empty() { VecDeque::new() } else { VecDeque::from([first]) };
        let stored = Stored { version, last: published };
        Ok((Intents { epoch, batches: Mutex::new(batches), stored: tokio::sync::Mutex::new(stored) }, left))
    }

    /// Adds a batch that is about to be committed. Must be called in the order of batches.
    pub(super) fn add<'a>(&self, number: u64, entries: impl Iterator<Item = &'a ChangeEntry>) {
        let positions = Positions::of(entries);
        if !positions.is_empty() {
            self.batches.lock().push_back(IntendedBatch { number, positions });
        }
    }

    /// Makes sure that batch `number` is in the store. Before this, its commit must not begin. May be
    /// repeated. Writes nothing if a later batch has been written with it, or if it has no entries.
    ///
    /// # Errors
    /// As [`intent::store`].
    pub(super) async fn store(&self, store: &dyn CacheStore, number: u64) -> Result<()> {
        let mut stored = self.stored.lock().await;
        if stored.last >= number {
            return Ok(());
        }
        let batches: Vec<IntendedBatch> = self.batches.lock().iter().cloned().collect();
        let last = batches.last().map_or(0, |batch| batch.number);
        if batches.iter().all(|batch| batch.number != number) {
            return Ok(());
        }
        let intent = Intent { epoch: self.epoch, batches };
        stored.version = intent::store(store, &intent, stored.version).await?;
        stored.last = last;
        Ok(())
    }

    /// Batches up to `number` have been published.
    pub(super) fn published(&self, number: u64) {
        self.batches.lock().retain(|batch| batch.number > number);
    }
}
