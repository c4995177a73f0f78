//! The cache store: six primitives, and what a backend may do better.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::BoxStream;

use crate::batch::{BatchRecord, BlockDelta, CommitReceipt, Publication, WriteBatch};
use crate::block::BlockCodec;
use crate::clock::PublishedClock;
use crate::commit;
use crate::entry::ChangeEntry;
use crate::error::Result;
use crate::key::CacheKey;
use crate::sequence::Sequence;

/// How many primitives the provided methods keep in flight at once.
pub(crate) const PARALLEL: usize = 64;

/// Tells one state of a document from the next. Opaque: only equality means something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Version(pub u64);

/// A value and the version it was read at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Versioned<T> {
    /// The value.
    pub value: T,
    /// Its version.
    pub version: Version,
}

/// A document to be written, and what must be there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// Its key.
    pub key: CacheKey,
    /// The version to be written over; `None` for a new document.
    pub expected: Option<Version>,
    /// The value.
    pub value: Bytes,
}

impl Write {
    /// Writes it by itself, for ever.
    ///
    /// # Errors
    /// As [`CacheStore::insert`] or [`CacheStore::replace`].
    pub async fn apply<S: CacheStore + ?Sized>(self, store: &S) -> Result<Version> {
        match self.expected {
            None => store.insert(&self.key, self.value, Expiry::Never).await,
            Some(expected) => store.replace(&self.key, self.value, expected, Expiry::Never).await,
        }
    }
}

/// How long a document is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expiry {
    /// Until it is removed.
    Never,
    /// At least so long.
    After(Duration),
}

/// What a store can do. The conformance suite checks that what is declared works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// `commit` is the engine's own, atomic or nearly so.
    pub native_commit: bool,
    /// [`CacheStore::wakes`] gives a stream.
    pub notify: bool,
    /// Expiry is honoured; otherwise documents are kept.
    pub expiry: bool,
    /// What was acknowledged is there after the process and the store restart.
    pub persistent: bool,
    /// Largest value, in bytes.
    pub max_value: usize,
}

/// What a store is.
#[derive(Clone, Debug)]
pub struct StoreInfo {
    /// The scheme of its URL.
    pub scheme: &'static str,
    /// Name for logs, without secrets.
    pub name: String,
    /// What it can do.
    pub capabilities: Capabilities,
}

/// The shared store behind writer and readers.
///
/// # Contract, for implementers
///
/// **Required**: six primitives on single documents, each linearizable on its key. A version differs from every version that the key had
/// before, also over a removal. An error of status `Indeterminate` means that a write may have been applied; every caller here
/// can live with that, and none with an `Ok` for a write that was not. Counters and documents do not share keys.
///
/// **Provided**: everything else, in terms of the six. Override what the engine does better; the meaning must stay what the provided method
/// does, which is what the conformance suite compares. All writes of `commit` may be repeated, interleaved with another
/// writer's, or cut short at any point, and must leave block states merged by OR and sequence documents as first written.
///
/// **Cancel safety**: dropping any of these futures may leave the write applied or not, never half a document.
#[async_trait]
pub trait CacheStore: Send + Sync + fmt::Debug + 'static {
    /// What this store is and can do.
    fn info(&self) -> StoreInfo;

    /// The document at `key`, if there is one.
    async fn get(&self, key: &CacheKey) -> Result<Option<Versioned<Bytes>>>;

    /// Writes a new document.
    ///
    /// # Errors
    /// `AlreadyExists` if there is one; `TooLarge` over the store's limit.
    async fn insert(&self, key: &CacheKey, value: Bytes, expiry: Expiry) -> Result<Version>;

    /// Writes over the document of version `expected`.
    ///
    /// # Errors
    /// `Conflict` if it has another version or is gone; `TooLarge` over the store's limit.
    async fn replace(&self, key: &CacheKey, value: Bytes, expected: Version, expiry: Expiry) -> Result<Version>;

    /// Removes a document, of version `expected` if given. A missing document is no error unless a version was given.
    ///
    /// # Errors
    /// `Conflict` if a version was given and the document has another or is gone.
    async fn remove(&self, key: &CacheKey, expected: Option<Version>) -> Result<()>;

    /// Adds to a counter, which begins at 0; the new value. By 0 it reads.
    async fn increment(&self, key: &CacheKey, by: u64) -> Result<u64>;

    /// A round trip, and how long it took.
    async fn ping(&self) -> Result<Duration>;

    /// The documents at several keys, in their order.
    async fn get_many(&self, keys: &[CacheKey]) -> Result<Vec<Option<Versioned<Bytes>>>> {
        let gets = keys.iter().map(|key| self.get(key)).collect::<Vec<_>>();
        futures::stream::iter(gets).buffered(PARALLEL).collect::<Vec<_>>().await.into_iter().collect()
    }

    /// Writes several documents, of different keys and for ever, each as [`insert`](Self::insert) or [`replace`](Self::replace) would; what became
    /// of each, in their order. They are written in any order, and one that fails keeps no other from being written.
    async fn write_many(&self, writes: Vec<Write>) -> Vec<Result<Version>> {
        let writes: Vec<_> = writes.into_iter().map(|write| write.apply(self)).collect();
        futures::stream::iter(writes).buffered(PARALLEL).collect().await
    }

    /// The change entries of several sequences, in their order.
    ///
    /// # Errors
    /// `Corrupt`, naming the key, if one cannot be read.
    async fn entries(&self, sequences: &[Sequence]) -> Result<Vec<Option<Arc<ChangeEntry>>>> {
        let keys: Vec<CacheKey> = sequences.iter().map(|s| CacheKey::Sequence(*s)).collect();
        let found = self.get_many(&keys).await?;
        let read = |(key, document): (&CacheKey, Option<Versioned<Bytes>>)| {
            let entry = document.map(|d| ChangeEntry::from_bytes(&d.value)).transpose();
            entry.map(|e| e.map(Arc::new)).map_err(|e| e.with_context("key", key))
        };
        keys.iter().zip(found).map(read).collect()
    }

    /// The record of batch `number`, if the ring of `ring` slots still holds it.
    ///
    /// # Errors
    /// `Corrupt`, naming the key, if it cannot be read.
    async fn record(&self, number: u64, ring: u64) -> Result<Option<Arc<BatchRecord>>> {
        let key = CacheKey::Batch(number % ring.max(1));
        let Some(found) = self.get(&key).await? else { return Ok(None) };
        let record = BatchRecord::from_bytes(&found.value).map_err(|e| e.with_context("key", &key))?;
        Ok((record.number == number).then(|| Arc::new(record)))
    }

    /// Raises the states of one block; how many of its sequences are live afterwards.
    ///
    /// # Errors
    /// `Corrupt`, naming the key, if the stored block cannot be read.
    async fn merge_block(&self, delta: &BlockDelta, codec: &dyn BlockCodec) -> Result<u32> {
        commit::merge_block(self, delta, codec).await
    }

    /// Stores what a batch found out: sequence documents and blocks, then directories and counters. Publishes nothing.
    /// May be repeated; after an error, and after any cut, repeating the whole of it is right.
    async fn commit(&self, batch: &WriteBatch) -> Result<CommitReceipt> {
        commit::store_batch(self, batch).await
    }

    /// Makes committed batches visible: late pages, batch record, checkpoint, and last the clock, over the clock `last` that the
    /// writer knows. The latest publication may be repeated, an older one not.
    ///
    /// # Errors
    /// `Fenced` if a later epoch wrote any of them.
    async fn publish(&self, publication: &Publication, last: &Versioned<PublishedClock>) -> Result<Versioned<PublishedClock>> {
        commit::publish(self, publication, last).await
    }

    /// A stream that yields when something may have been published. Only a hint: readers poll as well, so a lost one delays and never
    /// hides a change. `None` where the engine has no such thing.
    fn wakes(&self) -> Option<BoxStream<'static, ()>> {
        None
    }

    /// Bytes of memory or disk that the engine uses in all, as far as it can say; for comparing backends. What else is kept in the same
    /// engine counts as well. May take long: not for every request. `None` where the engine does not say.
    async fn bytes_used(&self) -> Result<Option<u64>> {
        Ok(None)
    }
}
