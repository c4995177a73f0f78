//! A store between the writer and the one that is measured: it counts and times.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use hdrhistogram::Histogram;
use parking_lot::Mutex;
use sluicegate::batch::{BatchRecord, BlockDelta, CommitReceipt, Publication, WriteBatch};
use sluicegate::commit::store_batch;
use sluicegate::store::{Expiry, StoreInfo, Version, Versioned, Write};
use sluicegate::{BlockCodec, CacheKey, CacheStore, ChangeEntry, Error, ErrorKind, PublishedClock, Result, Sequence};

/// The longest that can be told from longer ones, in nanoseconds: an hour.
const LONGEST: u64 = 3_600_000_000_000;

/// How long something took, each time, to three digits.
#[derive(Debug)]
pub(crate) struct Latency(Mutex<Histogram<u64>>);

impl Latency {
    pub(crate) fn new() -> Result<Self> {
        let histogram = Histogram::new_with_bounds(1, LONGEST, 3);
        let failed = |e| Error::new(ErrorKind::Unexpected, "a histogram cannot be made").with_source(e);
        Ok(Latency(Mutex::new(histogram.map_err(failed)?)))
    }

    pub(crate) fn record(&self, took: Duration) {
        self.0.lock().saturating_record(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
    }

    pub(crate) fn count(&self) -> u64 {
        self.0.lock().len()
    }

    pub(crate) fn quantile(&self, quantile: f64) -> Duration {
        Duration::from_nanos(self.0.lock().value_at_quantile(quantile))
    }

    pub(crate) fn max(&self) -> Duration {
        Duration::from_nanos(self.0.lock().max())
    }
}

/// What is found out about a store's calls.
#[derive(Debug)]
pub(crate) struct Calls {
    pub(crate) commit: Latency,
    pub(crate) publish: Latency,
    count: AtomicU64,
    failed: AtomicU64,
    /// When the last publication that had entries began.
    published: Mutex<Option<Instant>>,
}

impl Calls {
    pub(crate) fn new() -> Result<Self> {
        let (commit, publish) = (Latency::new()?, Latency::new()?);
        Ok(Calls { commit, publish, count: AtomicU64::new(0), failed: AtomicU64::new(0), published: Mutex::new(None) })
    }

    pub(crate) fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    pub(crate) fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    pub(crate) fn published(&self) -> Option<Instant> {
        *self.published.lock()
    }
}

/// Passes everything on. A commit that the store declares as its own is one call; otherwise it is the provided one, which is run here, so
/// that each of its calls is counted.
#[derive(Debug)]
pub(crate) struct TimedStore {
    inner: Arc<dyn CacheStore>,
    native_commit: bool,
    calls: Arc<Calls>,
}

impl TimedStore {
    pub(crate) fn new(inner: Arc<dyn CacheStore>, calls: Arc<Calls>) -> Self {
        TimedStore { native_commit: inner.info().capabilities.native_commit, inner, calls }
    }

    async fn call<T>(&self, call: impl Future<Output = Result<T>>) -> Result<T> {
        self.calls.count.fetch_add(1, Ordering::Relaxed);
        let result = call.await;
        if result.as_ref().is_err_and(is_failure) {
            self.calls.failed.fetch_add(1, Ordering::Relaxed);
        }
        result
    }
}

/// Finding another version, or a document where there was none, is an answer.
fn is_failure(error: &Error) -> bool {
    !matches!(error.kind(), ErrorKind::Conflict | ErrorKind::AlreadyExists)
}

async fn time<T>(latency: &Latency, work: impl Future<Output = Result<T>>) -> Result<T> {
    let begun = Instant::now();
    let result = work.await;
    if result.is_ok() {
        latency.record(begun.elapsed());
    }
    result
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl CacheStore for TimedStore {
    fn info(&self) -> StoreInfo {
        self.inner.info()
    }

    async fn get(&self, key: &CacheKey) -> Result<Option<Versioned<Bytes>>> {
        self.call(self.inner.get(key)).await
    }

    async fn insert(&self, key: &CacheKey, value: Bytes, expiry: Expiry) -> Result<Version> {
        self.call(self.inner.insert(key, value, expiry)).await
    }

    async fn replace(&self, key: &CacheKey, value: Bytes, expected: Version, expiry: Expiry) -> Result<Version> {
        self.call(self.inner.replace(key, value, expected, expiry)).await
    }

    async fn remove(&self, key: &CacheKey, expected: Option<Version>) -> Result<()> {
        self.call(self.inner.remove(key, expected)).await
    }

    async fn increment(&self, key: &CacheKey, by: u64) -> Result<u64> {
        self.call(self.inner.increment(key, by)).await
    }

    async fn ping(&self) -> Result<Duration> {
        self.call(self.inner.ping()).await
    }

    async fn get_many(&self, keys: &[CacheKey]) -> Result<Vec<Option<Versioned<Bytes>>>> {
        self.call(self.inner.get_many(keys)).await
    }

    async fn write_many(&self, writes: Vec<Write>) -> Vec<Result<Version>> {
        self.calls.count.fetch_add(1, Ordering::Relaxed);
        let written = self.inner.write_many(writes).await;
        if written.iter().any(|written| written.as_ref().is_err_and(is_failure)) {
            self.calls.failed.fetch_add(1, Ordering::Relaxed);
        }
        written
    }

    async fn entries(&self, sequences: &[Sequence]) -> Result<Vec<Option<Arc<ChangeEntry>>>> {
        self.call(self.inner.entries(sequences)).await
    }

    async fn record(&self, number: u64, ring: u64) -> Result<Option<Arc<BatchRecord>>> {
        self.call(self.inner.record(number, ring)).await
    }

    async fn merge_block(&self, delta: &BlockDelta, codec: &dyn BlockCodec) -> Result<u32> {
        self.call(self.inner.merge_block(delta, codec)).await
    }

    async fn commit(&self, batch: &WriteBatch) -> Result<CommitReceipt> {
        if self.native_commit {
            time(&self.calls.commit, self.call(self.inner.commit(batch))).await
        } else {
            time(&self.calls.commit, store_batch(self, batch)).await
        }
    }

    async fn publish(&self, publication: &Publication, last: &Versioned<PublishedClock>) -> Result<Versioned<PublishedClock>> {
        if !publication.record.entries.is_empty() {
            *self.calls.published.lock() = Some(Instant::now());
        }
        time(&self.calls.publish, self.call(self.inner.publish(publication, last))).await
    }

    fn wakes(&self) -> Option<BoxStream<'static, ()>> {
        self.inner.wakes()
    }

    async fn bytes_used(&self) -> Result<Option<u64>> {
        self.inner.bytes_used().await
    }
}
