//! Stores which entries are about to be stored, see [`Intent`].

use parking_lot::Mutex;

use crate::clock::Epoch;
use crate::error::Result;
use crate::intent::{self, IntendedBatch, Intent, Positions};
use crate::sequence::RangeSet;
use crate::store::{CacheStore, Version};

/// The batches whose commits begin or have begun, and that are not published.
#[derive(Debug)]
pub(super) struct Intents {
    epoch: Epoch,
    batches: Mutex<Vec<Begun>>,
    /// The version of the stored intent.
    version: tokio::sync::Mutex<Version>,
}

#[derive(Debug)]
struct Begun {
    batch: IntendedBatch,
    is_stored: bool,
}

impl Intents {
    /// Takes over the stored intent for the term `epoch`. Also returns the positions of batches
    /// after `published`.
    ///
    /// # Errors
    /// As [`intent::take_over`].
    pub(super) async fn take_over(store: &dyn CacheStore, epoch: Epoch, published: u64) -> Result<(Self, RangeSet)> {
        let (version, left) = intent::take_over(store, epoch, published).await?;
        let batch = IntendedBatch { number: published + 1, positions: Positions::from(&left) };
        let batches = if left.is_empty() { Vec::new() } else { vec![Begun { batch, is_stored: true }] };
        Ok((Intents { epoch, batches: Mutex::new(batches), version: tokio::sync::Mutex::new(version) }, left))
    }

    /// Adds a batch that is about to be committed.
    pub(super) fn add(&self, number: u64, positions: Positions) {
        if !positions.is_empty() {
            let batch = IntendedBatch { number, positions };
            self.batches.lock().push(Begun { batch, is_stored: false });
        }
    }

    /// Makes sure that batch `number` is in the store: its commit must not begin before. May be
    /// repeated. Writes nothing if it has been written with another batch, or has no entries.
    ///
    /// # Errors
    /// As [`intent::store`].
    pub(super) async fn store(&self, store: &dyn CacheStore, number: u64) -> Result<()> {
        let mut version = self.version.lock().await;
        let batches: Vec<IntendedBatch> = {
            let batches = self.batches.lock();
            if batches.iter().all(|begun| begun.batch.number != number || begun.is_stored) {
                return Ok(());
            }
            batches.iter().map(|begun| begun.batch.clone()).collect()
        };
        let intent = Intent { epoch: self.epoch, batches };
        *version = intent::store(store, &intent, *version).await?;
        let is_in = |begun: &Begun| intent.batches.contains(&begun.batch);
        self.batches.lock().iter_mut().filter(|begun| is_in(begun)).for_each(|begun| begun.is_stored = true);
        Ok(())
    }

    /// Batches up to `number` have been published.
    pub(super) fn published(&self, number: u64) {
        self.batches.lock().retain(|begun| begun.batch.number > number);
    }
}
