//! Batches are bounded: by entries, by memberships, and by how many are committed at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use serde_json::{Map, json};
use sluicegate::batch::{CommitReceipt, WriteBatch};
use sluicegate::store::{Expiry, StoreInfo, Version, Versioned};
use sluicegate::{CacheKey, CacheStore, GatewayDecoder, Mutation, Result, Writer, WriterConfig};
use sluicegate_replay::MemoryFeed;
use sluicegate_testkit::plain::PlainStore;

/// A store that counts the commits in progress, and their memberships.
#[derive(Debug, Default)]
struct CountingStore {
    inner: PlainStore,
    commits: AtomicUsize,
    most_commits: AtomicUsize,
    most_memberships: AtomicUsize,
}

#[async_trait]
impl CacheStore for CountingStore {
    fn info(&self) -> StoreInfo {
        self.inner.info()
    }
    async fn get(&self, key: &CacheKey) -> Result<Option<Versioned<Bytes>>> {
        self.inner.get(key).await
    }
    async fn insert(&self, key: &CacheKey, value: Bytes, expiry: Expiry) -> Result<Version> {
        self.inner.insert(key, value, expiry).await
    }
    async fn replace(&self, key: &CacheKey, value: Bytes, expected: Version, expiry: Expiry) -> Result<Version> {
        self.inner.replace(key, value, expected, expiry).await
    }
    async fn remove(&self, key: &CacheKey, expected: Option<Version>) -> Result<()> {
        self.inner.remove(key, expected).await
    }
    async fn increment(&self, key: &CacheKey, by: u64) -> Result<u64> {
        self.inner.increment(key, by).await
    }
    async fn ping(&self) -> Result<Duration> {
        self.inner.ping().await
    }
    async fn commit(&self, batch: &WriteBatch) -> Result<CommitReceipt> {
        let memberships = batch.entries.iter().map(|entry| entry.channels().len()).sum();
        self.most_memberships.fetch_max(memberships, Ordering::Relaxed);
        self.most_commits.fetch_max(self.commits.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
        let receipt = self.inner.commit(batch).await;
        self.commits.fetch_sub(1, Ordering::Relaxed);
        receipt
    }
}

/// Documents in so many channels each.
fn documents(channels: impl Iterator<Item = usize>) -> Vec<Mutation> {
    let document = |(number, channels): (u64, usize)| {
        let names: Map<_, _> = (0..channels).map(|channel| (format!("c{channel}"), json!(null))).collect();
        let metadata = json!({"rev": "1-a", "sequence": number, "recent_sequences": [number], "channels": names});
        Mutation { cas: number << 16, ..Mutation::new(format!("d{number}"), json!({"_sync": metadata}).to_string()) }
    };
    (1..).zip(channels).map(document).collect()
}

/// Writes all of them, which come in one feed batch. Returns the most memberships of a batch, and
/// the most commits at once.
async fn most(documents: Vec<Mutation>, config: &str) -> (usize, usize) {
    let store = Arc::new(CountingStore::default());
    let config: WriterConfig = serde_json::from_str(config).unwrap();
    let count = documents.len() as u64;
    let mut writer = Writer::alone(store.clone(), Arc::new(GatewayDecoder::default()), "documents", config).await.unwrap();
    let feed = MemoryFeed::new("documents", documents).with_batch(1_000).unwrap();
    writer.run(&feed, std::future::pending()).await.unwrap();
    assert_eq!((writer.clock().stable.0, writer.stats().cached), (count, count));
    (store.most_memberships.load(Ordering::Relaxed), store.most_commits.load(Ordering::Relaxed))
}

#[tokio::test]
async fn a_batch_is_cut_when_its_entries_are_in_many_channels() {
    let config = r#"{"max_batch_memberships": 1000, "max_in_flight": 3}"#;
    let (memberships, commits) = most(documents(std::iter::repeat_n(90, 300)), config).await;
    assert!((1_000..1_090).contains(&memberships), "{memberships}");
    assert!((2..=3).contains(&commits), "{commits} commits at once");
    let (memberships, _) = most(documents([3, 2_500, 4].into_iter()), config).await;
    assert_eq!(memberships, 2_503, "a document is in one batch");
}

#[tokio::test]
async fn one_large_batch_of_the_feed_is_not_committed_all_at_once() {
    let (_, commits) = most(documents(std::iter::repeat_n(1, 1_000)), r#"{"max_batch": 10, "max_in_flight": 2}"#).await;
    assert_eq!(commits, 2);
}

#[test]
fn more_entries_in_progress_than_their_list_can_name_are_refused() {
    let mut config = WriterConfig::default();
    (config.max_batch, config.max_in_flight) = (1 << 21, 3);
    let error = config.validate().unwrap_err().to_string();
    assert!(error.contains("max_batch times max_in_flight is 6291456, must be at most 4194304"), "{error}");
}
