//! A store that counts its operations, and time that moves only on request.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use sluicegate_core::batch::{BatchRecord, BlockDelta, CommitReceipt, Publication, WriteBatch};
use sluicegate_core::store::{Expiry, StoreInfo, Version, Versioned, Write};
use sluicegate_core::{BlockCodec, CacheKey, CacheStore, ChangeEntry, Error, ErrorKind, PublishedClock, Result, Sequence};
use tokio::sync::Notify;

/// Turns of the runtime without an operation after which all tasks are idle. A task that wakes
/// another takes a few.
const QUIET_TURNS: u32 = 32;
/// The limit for an operation of the store, in real time.
const REAL_PATIENCE: Duration = Duration::from_secs(60);
/// The limit for an answer, in the time of the scenario.
const PATIENCE: Duration = Duration::from_secs(5);

/// Operations of a store.
#[derive(Debug, Default)]
struct Traffic {
    begun: AtomicU64,
    ended: AtomicU64,
    /// Notified when an operation ends, and periodically.
    moved: Notify,
}

/// An operation that ends when this is dropped.
struct UnderWay<'a>(&'a Traffic);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.ended.fetch_add(1, Ordering::Relaxed);
        self.0.moved.notify_waiters();
    }
}

impl Traffic {
    fn begin(&self) -> UnderWay<'_> {
        self.begun.fetch_add(1, Ordering::Relaxed);
        UnderWay(self)
    }
}

/// Forwards all operations, and counts them.
#[derive(Debug)]
struct Watched {
    store: Arc<dyn CacheStore>,
    traffic: Arc<Traffic>,
}

/// Waits for tasks without letting time pass.
#[derive(Clone, Debug, Default)]
pub(super) struct Pace {
    traffic: Arc<Traffic>,
}

impl Pace {
    /// The store to use instead of `store`, so that its operations are counted.
    pub(super) fn watch(&self, store: Arc<dyn CacheStore>) -> Arc<dyn CacheStore> {
        Arc::new(Watched { store, traffic: self.traffic.clone() })
    }

    /// Stops the automatic advance of time until the returned handle is dropped, and wakes a task
    /// that waits for an operation that does not end.
    pub(super) fn hold(&self) -> std::sync::mpsc::Sender<()> {
        let (release, held) = std::sync::mpsc::channel();
        let traffic = self.traffic.clone();
        // A paused clock does not advance automatically while a blocking task runs.
        tokio::task::spawn_blocking(move || {
            while held.recv_timeout(Duration::from_secs(1)) == Err(RecvTimeoutError::Timeout) {
                traffic.moved.notify_waiters();
            }
        });
        release
    }

    /// Waits until all tasks are idle at the current time.
    pub(super) async fn settle(&self) -> Result<()> {
        let mut waiting_since = None;
        let (mut quiet, mut seen) = (0, 0);
        while quiet < QUIET_TURNS {
            tokio::task::yield_now().await;
            let moved = self.traffic.moved.notified();
            let (ended, begun) = (self.traffic.ended.load(Ordering::Relaxed), self.traffic.begun.load(Ordering::Relaxed));
            if ended < begun {
                let since = *waiting_since.get_or_insert_with(Instant::now);
                if since.elapsed() > REAL_PATIENCE {
                    return Err(Error::new(ErrorKind::Timeout, "an operation of the store has not ended within a minute"));
                }
                moved.await;
            }
            quiet = if ended == begun && begun == seen { quiet + 1 } else { 0 };
            seen = begun;
        }
        Ok(())
    }

    /// The output of `future`. Time passes only while the future waits for it.
    pub(super) async fn drive<T>(&self, future: impl Future<Output = Result<T>>) -> Result<T> {
        let mut future = pin!(future);
        let (mut waited, mut step) = (Duration::ZERO, Duration::from_millis(1));
        loop {
            tokio::select! {
                biased;
                done = &mut future => return done,
                settled = self.settle() => settled?,
            }
            if waited >= PATIENCE {
                return Err(Error::new(ErrorKind::Timeout, "there was no result within five seconds of the scenario's time"));
            }
            tokio::time::advance(step).await;
            waited += step;
            step = (step * 2).min(Duration::from_millis(100));
        }
    }
}

#[async_trait]
impl CacheStore for Watched {
    fn info(&self) -> StoreInfo {
        self.store.info()
    }

    async fn get(&self, key: &CacheKey) -> Result<Option<Versioned<Bytes>>> {
        let _under_way = self.traffic.begin();
        self.store.get(key).await
    }

    async fn insert(&self, key: &CacheKey, value: Bytes, expiry: Expiry) -> Result<Version> {
        let _under_way = self.traffic.begin();
        self.store.insert(key, value, expiry).await
    }

    async fn replace(&self, key: &CacheKey, value: Bytes, expected: Version, expiry: Expiry) -> Result<Version> {
        let _under_way = self.traffic.begin();
        self.store.replace(key, value, expected, expiry).await
    }

    async fn remove(&self, key: &CacheKey, expected: Option<Version>) -> Result<()> {
        let _under_way = self.traffic.begin();
        self.store.remove(key, expected).await
    }

    async fn increment(&self, key: &CacheKey, by: u64) -> Result<u64> {
        let _under_way = self.traffic.begin();
        self.store.increment(key, by).await
    }

    async fn ping(&self) -> Result<Duration> {
        let _under_way = self.traffic.begin();
        self.store.ping().await
    }

    async fn get_many(&self, keys: &[CacheKey]) -> Result<Vec<Option<Versioned<Bytes>>>> {
        let _under_way = self.traffic.begin();
        self.store.get_many(keys).await
    }

    async fn write_many(&self, writes: Vec<Write>) -> Vec<Result<Version>> {
        let _under_way = self.traffic.begin();
        self.store.write_many(writes).await
    }

    async fn entries(&self, sequences: &[Sequence]) -> Result<Vec<Option<Arc<ChangeEntry>>>> {
        let _under_way = self.traffic.begin();
        self.store.entries(sequences).await
    }

    async fn record(&self, number: u64, ring: u64) -> Result<Option<Arc<BatchRecord>>> {
        let _under_way = self.traffic.begin();
        self.store.record(number, ring).await
    }

    async fn merge_block(&self, delta: &BlockDelta, codec: &dyn BlockCodec) -> Result<u32> {
        let _under_way = self.traffic.begin();
        self.store.merge_block(delta, codec).await
    }

    async fn commit(&self, batch: &WriteBatch) -> Result<CommitReceipt> {
        let _under_way = self.traffic.begin();
        self.store.commit(batch).await
    }

    async fn publish(&self, publication: &Publication, last: &Versioned<PublishedClock>) -> Result<Versioned<PublishedClock>> {
        let _under_way = self.traffic.begin();
        self.store.publish(publication, last).await
    }

    fn wakes(&self) -> Option<BoxStream<'static, ()>> {
        self.store.wakes()
    }

    async fn bytes_used(&self) -> Result<Option<u64>> {
        let _under_way = self.traffic.begin();
        self.store.bytes_used().await
    }
}
