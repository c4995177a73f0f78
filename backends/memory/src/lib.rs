#![doc = include_str!("../README.md")]

mod channels;
mod documents;
mod places;
mod sequences;
mod value;

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Weak};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use parking_lot::{Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};
use serde::Deserialize;
use sluicegate_core::batch::{BatchRecord, BlockDelta, CommitReceipt, Publication, WriteBatch, entry_marks, entry_states};
use sluicegate_core::commit::store_pointers;
use sluicegate_core::registry::{Location, Opening, StoreFactory};
use sluicegate_core::store::{Capabilities, Expiry, StoreInfo, Version, Versioned, Write};
use sluicegate_core::{
    BlockCodec, CacheKey, CacheStore, ChangeEntry, Channel, CollectionId, Error, ErrorKind, PublishedClock, Result, Sequence,
};
use tokio::sync::watch;
use tokio::time::Instant;

use channels::{Channels, Raising};
use documents::Documents;
use sequences::Sequences;
use value::Area;

/// Largest value that can be written as bytes.
const MAX_VALUE: usize = 20 << 20;

/// After how many entries a commit, or a read of many, lets others in.
const TURN: usize = 256;

/// A cache store in the memory of this process. A clone is another handle on the same store.
#[derive(Clone)]
pub struct MemoryStore(Arc<Inner>);

struct Inner {
    name: String,
    /// The last version given out. One for all keys: so no key ever sees a version twice, whatever is removed.
    versions: AtomicU64,
    sequences: RwLock<Sequences>,
    channels: RwLock<Channels>,
    documents: RwLock<Documents>,
    wake: watch::Sender<()>,
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        MemoryStore(Arc::new(Inner::new(String::new())))
    }

    /// The store of that name in this process: made if there is none, gone when its last handle is dropped.
    pub fn named(name: &str) -> Self {
        static NAMED: LazyLock<Mutex<HashMap<String, Weak<Inner>>>> = LazyLock::new(Mutex::default);
        let mut named = NAMED.lock();
        if let Some(inner) = named.get(name).and_then(Weak::upgrade) {
            return MemoryStore(inner);
        }
        named.retain(|_, inner| inner.strong_count() > 0);
        let inner = Arc::new(Inner::new(name.to_owned()));
        named.insert(name.to_owned(), Arc::downgrade(&inner));
        MemoryStore(inner)
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        MemoryStore::new()
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStore").field("name", &self.0.name).finish_non_exhaustive()
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl CacheStore for MemoryStore {
    fn info(&self) -> StoreInfo {
        StoreInfo {
            scheme: SCHEME,
            name: format!("{SCHEME}:{}", self.0.name),
            capabilities: Capabilities {
                native_commit: true,
                notify: true,
                expiry: true,
                persistent: false,
                max_value: MAX_VALUE,
            },
        }
    }

    async fn get(&self, key: &CacheKey) -> Result<Option<Versioned<Bytes>>> {
        Ok(self.0.get(key))
    }

    async fn insert(&self, key: &CacheKey, value: Bytes, expiry: Expiry) -> Result<Version> {
        self.0.write(key, value, expiry, |stored| match stored {
            None => Ok(()),
            Some(_) => Err(Error::new(ErrorKind::AlreadyExists, "there is such a document").with_operation("insert")),
        })
    }

    async fn replace(&self, key: &CacheKey, value: Bytes, expected: Version, expiry: Expiry) -> Result<Version> {
        self.0.write(key, value, expiry, |stored| check_version(stored, expected, "replace"))
    }

    async fn remove(&self, key: &CacheKey, expected: Option<Version>) -> Result<()> {
        self.0.change(key, |area| {
            if let Some(expected) = expected {
                check_version(area.version(key), expected, "remove").map_err(|e| e.with_context("key", key))?;
            }
            area.take(key);
            Ok(())
        })
    }

    async fn increment(&self, key: &CacheKey, by: u64) -> Result<u64> {
        self.0.change(key, |area| {
            let now = match area.read(key) {
                Some((stored, _)) => stored.number().map_err(|e| e.with_operation("increment").with_context("key", key))?,
                None => 0,
            };
            let then = now.saturating_add(by);
            if then != now {
                area.put(key, Bytes::from(then.to_string()), None, self.0.next_version());
            }
            Ok(then)
        })
    }

    async fn ping(&self) -> Result<Duration> {
        let start = std::time::Instant::now();
        drop(self.0.documents.read());
        Ok(start.elapsed())
    }

    async fn get_many(&self, keys: &[CacheKey]) -> Result<Vec<Option<Versioned<Bytes>>>> {
        Ok(keys.iter().map(|key| self.0.get(key)).collect())
    }

    async fn write_many(&self, writes: Vec<Write>) -> Vec<Result<Version>> {
        let mut written = Vec::with_capacity(writes.len());
        for write in writes {
            written.push(write.apply(self).await);
        }
        written
    }

    async fn entries(&self, sequences: &[Sequence]) -> Result<Vec<Option<Arc<ChangeEntry>>>> {
        let mut found = Vec::with_capacity(sequences.len());
        for some in sequences.chunks(TURN) {
            let stored = self.0.sequences.read();
            for sequence in some {
                found.push(stored.entry(*sequence)?);
            }
        }
        Ok(found)
    }

    async fn record(&self, number: u64, ring: u64) -> Result<Option<Arc<BatchRecord>>> {
        let key = CacheKey::Batch(number % ring.max(1));
        let record = self.0.documents.read().record(&key)?;
        Ok(record.filter(|record| record.number == number))
    }

    async fn merge_block(&self, delta: &BlockDelta, codec: &dyn BlockCodec) -> Result<u32> {
        self.0.channels.write().merge(delta, codec, self.0.next_version())
    }

    async fn commit(&self, batch: &WriteBatch) -> Result<CommitReceipt> {
        self.0.commit(batch)
    }

    async fn publish(&self, publication: &Publication, last: &Versioned<PublishedClock>) -> Result<Versioned<PublishedClock>> {
        store_pointers(self, publication, last).await?;
        let published = self.0.documents.write().publish(publication, last, self.0.next_version());
        if published.is_ok() {
            self.0.wake.send_replace(());
        }
        published
    }

    fn wakes(&self) -> Option<BoxStream<'static, ()>> {
        let wakes = futures::stream::unfold(self.0.wake.subscribe(), |mut wake| async move {
            wake.changed().await.ok()?;
            Some(((), wake))
        });
        Some(wakes.boxed())
    }

    async fn bytes_used(&self) -> Result<Option<u64>> {
        Ok(Some(self.0.memory_bytes() as u64))
    }
}

impl Inner {
    fn new(name: String) -> Self {
        Inner {
            name,
            versions: AtomicU64::new(0),
            sequences: RwLock::default(),
            channels: RwLock::default(),
            documents: RwLock::default(),
            wake: watch::Sender::new(()),
        }
    }

    fn next_version(&self) -> Version {
        Version(self.versions.fetch_add(1, Ordering::Relaxed) + 1)
    }

    /// What is held, by walking over it. An estimate: what the allocator adds is not known, and what changes meanwhile may be left out.
    fn memory_bytes(&self) -> usize {
        let mut sequences = self.sequences.read();
        let mut bytes = size_of::<Self>() + sequences.overhead_bytes();
        for page in 0.. {
            let Some(in_page) = sequences.page_bytes(page) else { break };
            bytes += in_page;
            RwLockReadGuard::bump(&mut sequences);
        }
        drop(sequences);
        let mut channels = self.channels.read();
        bytes += channels.overhead_bytes();
        for place in 0.. {
            let Some(in_channel) = channels.channel_bytes(place) else { break };
            bytes += in_channel;
            RwLockReadGuard::bump(&mut channels);
        }
        drop(channels);
        bytes + self.documents.read().memory_bytes()
    }

    /// Reads under the lock, and encodes after it.
    fn get(&self, key: &CacheKey) -> Option<Versioned<Bytes>> {
        let read = match key {
            CacheKey::Sequence(_) => self.sequences.read().read(key),
            CacheKey::Block(..) | CacheKey::Counter(_) | CacheKey::Directory(_) => self.channels.read().read(key),
            _ => self.documents.read().read(key),
        };
        read.map(|(stored, version)| Versioned { value: stored.encode(), version })
    }

    fn change<T>(&self, key: &CacheKey, change: impl FnOnce(&mut dyn Area) -> T) -> T {
        match key {
            CacheKey::Sequence(_) => change(&mut *self.sequences.write()),
            CacheKey::Block(..) | CacheKey::Counter(_) | CacheKey::Directory(_) => change(&mut *self.channels.write()),
            _ => change(&mut *self.documents.write()),
        }
    }

    fn write(
        &self,
        key: &CacheKey,
        value: Bytes,
        expiry: Expiry,
        check: impl FnOnce(Option<Version>) -> Result<()>,
    ) -> Result<Version> {
        if value.len() > MAX_VALUE {
            let message = format!("a value of {} bytes is over the limit of {MAX_VALUE}", value.len());
            return Err(Error::new(ErrorKind::TooLarge, message).with_context("key", key));
        }
        // A wait that ends beyond what the clock can hold is no expiry.
        let deadline = match expiry {
            Expiry::Never => None,
            Expiry::After(time) => Instant::now().checked_add(time),
        };
        let version = self.change(key, |area| {
            check(area.version(key)).map_err(|e| e.with_context("key", key))?;
            let version = self.next_version();
            area.put(key, value, deadline, version);
            Ok::<_, Error>(version)
        })?;
        if *key == CacheKey::Clock {
            self.wake.send_replace(());
        }
        Ok(version)
    }

    fn commit(&self, batch: &WriteBatch) -> Result<CommitReceipt> {
        let mut sequences = self.sequences.write();
        for some in batch.entries.chunks(TURN) {
            let version = self.next_version();
            sequences.insert_all(some, version);
            RwLockWriteGuard::bump(&mut sequences);
        }
        drop(sequences);

        // Whoever gets a turn in between may write what this commit wrote already: so each turn has a version of its own, and
        // directories and counters follow when all blocks are raised, as in the provided algorithm.
        let star = Channel::shared_star(CollectionId::DEFAULT);
        let mut channels = self.channels.write();
        let mut raising = Raising::new(&mut channels, batch, self.next_version());
        for some in batch.entries.chunks(TURN) {
            for entry in some {
                entry_states(entry, |change| {
                    channels.raise(&mut raising, change, std::ptr::eq(change.channel, star));
                });
            }
            channels.end_turn(&mut raising)?;
            RwLockWriteGuard::bump(&mut channels);
            raising.set_version(self.next_version());
        }
        for some in batch.marks.chunks(TURN) {
            for entry in some {
                entry_marks(entry, |change| {
                    channels.raise(&mut raising, change, std::ptr::eq(change.channel, star));
                });
            }
            channels.end_turn(&mut raising)?;
            RwLockWriteGuard::bump(&mut channels);
            raising.set_version(self.next_version());
        }
        channels.finish(raising)
    }
}

fn check_version(stored: Option<Version>, expected: Version, operation: &'static str) -> Result<()> {
    match stored {
        Some(version) if version == expected => Ok(()),
        Some(_) => Err(Error::new(ErrorKind::Conflict, "the document has changed").with_operation(operation)),
        None => Err(Error::new(ErrorKind::Conflict, "the document is gone").with_operation(operation)),
    }
}

const SCHEME: &str = "memory";

inventory::submit! {
    StoreFactory { scheme: SCHEME, about: "in the memory of this process; memory:NAME is shared by name", open }
}

/// There are no options: any that is given is refused by name.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Options {}

fn open(location: Location) -> Opening<dyn CacheStore> {
    Box::pin(async move {
        let Options {} = location.options()?;
        let store = match location.rest().trim_start_matches('/') {
            "" => MemoryStore::new(),
            name => MemoryStore::named(name),
        };
        Ok(Arc::new(store) as Arc<dyn CacheStore>)
    })
}
