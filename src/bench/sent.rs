//! How many bytes are sent to a store.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use parking_lot::Mutex;
use rustc_hash::FxHashSet;
use serde::Serialize;
use sluicegate_core::batch::{BatchRecord, BlockDelta, CommitReceipt, Entries, Publication, WriteBatch};
use sluicegate_core::block::Block;
use sluicegate_core::pointer::Pointer;
use sluicegate_core::store::{Expiry, StoreInfo, Version, Versioned, Write};
use sluicegate_core::{BlockCodec, BlockIndex, CacheKey, CacheStore, ChangeEntry, Channel, PublishedClock, Result, Sequence};

/// Bytes of one change in a block: the offset and the state.
const CHANGE: usize = 5;

/// A store that is measured, and how many bytes it was sent.
pub struct MeteredStore {
    store: Arc<dyn CacheStore>,
    sent: Option<Box<Sent>>,
}

type Sent = dyn Fn() -> u64 + Send + Sync;

impl MeteredStore {
    /// Opens the store at `url`. The bytes are those that the store itself counts: on Redis all
    /// commands, as they go over the wire. Others do not count.
    ///
    /// # Errors
    /// As [`open_store`](crate::open_store).
    pub async fn open(url: &str) -> Result<Self> {
        #[cfg(feature = "redis")]
        if matches!(
            sluicegate_core::registry::Location::parse(url)?.scheme(),
            "redis" | "rediss" | "redis+cluster" | "rediss+cluster"
        ) {
            let store = sluicegate_redis::RedisStore::connect(url).await?;
            let link = store.clone();
            return Ok(MeteredStore { store: Arc::new(store), sent: Some(Box::new(move || link.traffic().bytes)) });
        }
        Ok(MeteredStore { store: crate::open_store(url).await?, sent: None })
    }

    /// Counts the keys and values that `store` is handed. For a commit these are the sequence
    /// documents, the key of each block and its changes, and the key of each channel's counter;
    /// directories are the store's own work, and not counted. Counting takes time, a quarter of
    /// what a store in memory takes: so do not measure rates with it.
    pub fn counting(store: Arc<dyn CacheStore>) -> Self {
        let store = Arc::new(CountingStore { inner: store, bytes: AtomicU64::new(0), committed: Mutex::default() });
        let counting = store.clone();
        MeteredStore { store, sent: Some(Box::new(move || counting.bytes.load(Ordering::Relaxed))) }
    }

    /// The store.
    pub fn store(&self) -> Arc<dyn CacheStore> {
        self.store.clone()
    }

    /// How many bytes it was sent, if they are counted.
    pub fn sent(&self) -> Option<u64> {
        self.sent.as_ref().map(|sent| sent())
    }
}

impl fmt::Debug for MeteredStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MeteredStore").field("store", &self.store).field("sent", &self.sent()).finish()
    }
}

/// Passes everything on, and counts the bytes.
#[derive(Debug)]
struct CountingStore {
    inner: Arc<dyn CacheStore>,
    bytes: AtomicU64,
    /// The entries of commits that are not published yet, and the bytes of their documents: a
    /// record has the same entries.
    committed: Mutex<Vec<(Entries, usize)>>,
}

impl CountingStore {
    fn count(&self, bytes: usize) -> &dyn CacheStore {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.inner.as_ref()
    }
}

fn key_bytes(key: &CacheKey) -> usize {
    key.canonical("_cache").len()
}

/// Counts what is written to it.
struct Length(usize);

impl io::Write for Length {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The length of the JSON of `value`, which is not kept: a store in memory never makes it, so it
/// must not stay with the entries.
fn json_bytes(value: &impl Serialize) -> usize {
    let mut length = Length(0);
    // Everything that is stored serializes, and counting cannot fail.
    let _ = serde_json::to_writer(&mut length, value);
    length.0
}

fn is_same(entries: &Entries, others: &Entries) -> bool {
    std::ptr::eq(&**entries, &**others)
}

impl CountingStore {
    fn commit_bytes(&self, batch: &WriteBatch) -> usize {
        let of_entry = |entry: &Arc<ChangeEntry>| (key_bytes(&CacheKey::Sequence(entry.position())), json_bytes(entry.as_ref()));
        let sizes = batch.entries.iter().map(of_entry);
        let (keys, documents) = sizes.fold((0, 0), |(keys, documents), (key, document)| (keys + key, documents + document));
        self.committed.lock().push((batch.entries.clone(), documents));
        let capacity = batch.codec.capacity();
        let (mut changes, mut of_blocks) = (0, 0);
        let mut blocks: FxHashSet<(&Channel, BlockIndex)> = FxHashSet::default();
        let mut channels: FxHashSet<&Channel> = FxHashSet::default();
        batch.for_each_change(|change| {
            changes += 1;
            let (index, _) = Block::locate(change.sequence, capacity);
            if blocks.insert((change.channel, index)) {
                of_blocks += key_bytes(&CacheKey::Block(change.channel.clone(), index));
                if channels.insert(change.channel) {
                    of_blocks += key_bytes(&CacheKey::Counter(change.channel.clone()));
                }
            }
        });
        keys + documents + of_blocks + changes * CHANGE
    }

    /// The bytes of the documents of a record's entries.
    fn documents_bytes(&self, entries: &Entries) -> usize {
        let mut committed = self.committed.lock();
        let known = committed.iter().find(|(others, _)| is_same(entries, others)).map(|(_, bytes)| *bytes);
        committed.retain(|(others, _)| !is_same(entries, others));
        drop(committed);
        known.unwrap_or_else(|| entries.iter().map(|entry| json_bytes(entry.as_ref())).sum())
    }

    fn publication_bytes(&self, publication: &Publication) -> usize {
        let Publication { pointers, record, ring, checkpoint, clock } = publication;
        let of_pointer = |pointer: &Pointer| key_bytes(&CacheKey::Document(pointer.document().into())) + pointer.to_bytes().len();
        let pointers: usize = pointers.iter().map(of_pointer).sum();
        let late: usize = record.late_pages().map(|(key, entries)| key_bytes(&key) + json_bytes(&entries)).sum();
        let rest = BatchRecord { entries: Entries::default(), ..BatchRecord::clone(record) };
        let entries = self.documents_bytes(&record.entries) + record.entries.len().saturating_sub(1);
        let of_record = key_bytes(&CacheKey::Batch(record.number % (*ring).max(1))) + rest.to_bytes().len() + entries;
        let checkpoint = checkpoint
            .as_ref()
            .map_or(0, |(feed, checkpoint)| key_bytes(&CacheKey::Checkpoint(feed.clone())) + checkpoint.to_bytes().len());
        pointers + late + of_record + checkpoint + key_bytes(&CacheKey::Clock) + clock.to_bytes().len()
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl CacheStore for CountingStore {
    fn info(&self) -> StoreInfo {
        self.inner.info()
    }

    async fn get(&self, key: &CacheKey) -> Result<Option<Versioned<Bytes>>> {
        self.count(key_bytes(key)).get(key).await
    }

    async fn insert(&self, key: &CacheKey, value: Bytes, expiry: Expiry) -> Result<Version> {
        self.count(key_bytes(key) + value.len()).insert(key, value, expiry).await
    }

    async fn replace(&self, key: &CacheKey, value: Bytes, expected: Version, expiry: Expiry) -> Result<Version> {
        self.count(key_bytes(key) + value.len()).replace(key, value, expected, expiry).await
    }

    async fn remove(&self, key: &CacheKey, expected: Option<Version>) -> Result<()> {
        self.count(key_bytes(key)).remove(key, expected).await
    }

    async fn increment(&self, key: &CacheKey, by: u64) -> Result<u64> {
        self.count(key_bytes(key)).increment(key, by).await
    }

    async fn ping(&self) -> Result<Duration> {
        self.inner.ping().await
    }

    async fn get_many(&self, keys: &[CacheKey]) -> Result<Vec<Option<Versioned<Bytes>>>> {
        self.count(keys.iter().map(key_bytes).sum()).get_many(keys).await
    }

    async fn write_many(&self, writes: Vec<Write>) -> Vec<Result<Version>> {
        self.count(writes.iter().map(|write| key_bytes(&write.key) + write.value.len()).sum()).write_many(writes).await
    }

    async fn entries(&self, sequences: &[Sequence]) -> Result<Vec<Option<Arc<ChangeEntry>>>> {
        let keys = sequences.iter().map(|sequence| key_bytes(&CacheKey::Sequence(*sequence)));
        self.count(keys.sum()).entries(sequences).await
    }

    async fn record(&self, number: u64, ring: u64) -> Result<Option<Arc<BatchRecord>>> {
        self.count(key_bytes(&CacheKey::Batch(number % ring.max(1)))).record(number, ring).await
    }

    async fn merge_block(&self, delta: &BlockDelta, codec: &dyn BlockCodec) -> Result<u32> {
        let key = CacheKey::Block(delta.channel.clone(), delta.index);
        self.count(key_bytes(&key) + delta.changes.len() * CHANGE).merge_block(delta, codec).await
    }

    async fn commit(&self, batch: &WriteBatch) -> Result<CommitReceipt> {
        self.count(self.commit_bytes(batch)).commit(batch).await
    }

    async fn publish(&self, publication: &Publication, last: &Versioned<PublishedClock>) -> Result<Versioned<PublishedClock>> {
        self.count(self.publication_bytes(publication)).publish(publication, last).await
    }

    fn wakes(&self) -> Option<BoxStream<'static, ()>> {
        self.inner.wakes()
    }

    async fn bytes_used(&self) -> Result<Option<u64>> {
        self.inner.bytes_used().await
    }
}

#[cfg(test)]
mod tests {
    use sluicegate_core::batch::Checkpoint;
    use sluicegate_core::block::TwoBit;
    use sluicegate_core::{CacheId, EntryFlags, Epoch, Membership};
    use sluicegate_memory::MemoryStore;

    use super::*;

    fn entry(sequence: u64, channels: &[&str]) -> Arc<ChangeEntry> {
        let entry = ChangeEntry::new(Sequence(sequence), &format!("d{sequence}"), "1-a", EntryFlags::default()).unwrap();
        let with = |entry: ChangeEntry, name: &&str| entry.with_channel(Channel::new(name).unwrap(), Membership::Present);
        Arc::new(channels.iter().fold(entry, with))
    }

    #[tokio::test]
    async fn what_is_committed_and_published_counts_by_its_keys_and_values() {
        let store = MeteredStore::counting(Arc::new(MemoryStore::new()));
        let (epoch, entries) = (Epoch { counter: 1, writer: 1 }, [entry(5, &["a", "b"]), entry(70, &["a"])]);
        let documents: usize = entries.iter().map(|entry| entry.to_bytes().len()).sum();
        let batch = WriteBatch {
            epoch,
            codec: Arc::new(TwoBit::with_capacity(64).unwrap()),
            entries: entries.into_iter().collect(),
            marks: Vec::new(),
            stable: Sequence(0),
            listed: Arc::default(),
        };
        store.store().commit(&batch).await.unwrap();
        let keys = [
            "_cache:_seq:[5]",
            "_cache:_seq:[70]",
            "_cache:[*]:block[0]",
            "_cache:[*]:block[1]",
            "_cache:[a]:block[0]",
            "_cache:[a]:block[1]",
            "_cache:[b]:block[0]",
            "_cache:_count:[*]",
            "_cache:_count:[a]",
            "_cache:_count:[b]",
        ];
        let committed = keys.concat().len() + documents + 5 * CHANGE;
        assert_eq!(store.sent(), Some(committed as u64));

        let mut record = BatchRecord::new(1, epoch);
        record.entries = batch.entries.clone();
        let (record, checkpoint, clock) =
            (Arc::new(record), Checkpoint::beginning(epoch), PublishedClock::new(CacheId::random()));
        let published = ["_cache:_batch:[1]", "_cache:_checkpoint:[f]", "_cache_stableSeq"].concat().len()
            + record.to_bytes().len()
            + checkpoint.to_bytes().len()
            + clock.to_bytes().len();
        let last = Versioned { value: clock.clone(), version: Version(0) };
        let checkpoint = Some(("f".to_owned(), checkpoint));
        // There is no clock to publish over; it was sent all the same.
        let publication = Publication { pointers: Vec::new(), record, ring: 128, checkpoint, clock };
        store.store().publish(&publication, &last).await.unwrap_err();
        assert_eq!(store.sent(), Some((committed + published) as u64));
    }
}
