//! A memory store that counts, and that can be slow.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use sluicegate_core::batch::{BatchRecord, BlockDelta, CommitReceipt, Publication, WriteBatch};
use sluicegate_core::store::{Expiry, StoreInfo, Version, Versioned, Write};
use sluicegate_core::{BlockCodec, CacheKey, CacheStore, ChangeEntry, PublishedClock, Result, Sequence};
use sluicegate_memory::MemoryStore;

/// A memory store that counts the documents it is asked for, and takes so many times as long to commit.
#[derive(Debug)]
pub(super) struct ObservedStore {
    inner: MemoryStore,
    operations: AtomicU64,
    times_slower: u32,
}

impl ObservedStore {
    pub(super) fn new(times_slower: u32) -> Self {
        ObservedStore { inner: MemoryStore::new(), operations: AtomicU64::new(0), times_slower }
    }

    pub(super) fn operations(&self) -> u64 {
        self.operations.load(Ordering::Relaxed)
    }

    fn count(&self, operations: usize) -> &MemoryStore {
        self.operations.fetch_add(operations as u64, Ordering::Relaxed);
        &self.inner
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl CacheStore for ObservedStore {
    fn info(&self) -> StoreInfo {
        self.inner.info()
    }

    async fn get(&self, key: &CacheKey) -> Result<Option<Versioned<Bytes>>> {
        self.count(1).get(key).await
    }

    async fn insert(&self, key: &CacheKey, value: Bytes, expiry: Expiry) -> Result<Version> {
        self.count(1).insert(key, value, expiry).await
    }

    async fn replace(&self, key: &CacheKey, value: Bytes, expected: Version, expiry: Expiry) -> Result<Version> {
        self.count(1).replace(key, value, expected, expiry).await
    }

    async fn remove(&self, key: &CacheKey, expected: Option<Version>) -> Result<()> {
        self.count(1).remove(key, expected).await
    }

    async fn increment(&self, key: &CacheKey, by: u64) -> Result<u64> {
        self.count(1).increment(key, by).await
    }

    async fn ping(&self) -> Result<Duration> {
        self.count(1).ping().await
    }

    async fn get_many(&self, keys: &[CacheKey]) -> Result<Vec<Option<Versioned<Bytes>>>> {
        self.count(keys.len()).get_many(keys).await
    }

    async fn write_many(&self, writes: Vec<Write>) -> Vec<Result<Version>> {
        self.count(writes.len()).write_many(writes).await
    }

    async fn entries(&self, sequences: &[Sequence]) -> Result<Vec<Option<Arc<ChangeEntry>>>> {
        self.count(sequences.len()).entries(sequences).await
    }

    async fn record(&self, number: u64, ring: u64) -> Result<Option<Arc<BatchRecord>>> {
        self.count(1).record(number, ring).await
    }

    async fn merge_block(&self, delta: &BlockDelta, codec: &dyn BlockCodec) -> Result<u32> {
        self.count(1).merge_block(delta, codec).await
    }

    async fn commit(&self, batch: &WriteBatch) -> Result<CommitReceipt> {
        let begun = Instant::now();
        let receipt = self.count(batch.entries.len()).commit(batch).await;
        if self.times_slower > 1 {
            tokio::time::sleep(begun.elapsed() * (self.times_slower - 1)).await;
        }
        receipt
    }

    async fn publish(&self, publication: &Publication, last: &Versioned<PublishedClock>) -> Result<Versioned<PublishedClock>> {
        self.count(1).publish(publication, last).await
    }

    fn wakes(&self) -> Option<BoxStream<'static, ()>> {
        self.inner.wakes()
    }

    async fn bytes_used(&self) -> Result<Option<u64>> {
        self.count(1).bytes_used().await
    }
}
