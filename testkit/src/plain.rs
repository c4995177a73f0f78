//! The smallest store there is.

use std::collections::HashMap;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use sluicegate_core::store::{Capabilities, Expiry, StoreInfo, Version, Versioned};
use sluicegate_core::{CacheKey, CacheStore, Error, ErrorKind, Result};

/// A map behind a lock, with the six primitives and nothing else: so that everything provided is exercised. Also what to read before
/// writing a store.
#[derive(Debug, Default)]
pub struct PlainStore(Mutex<Documents>);

#[derive(Debug, Default)]
struct Documents {
    by_key: HashMap<CacheKey, Versioned<Bytes>>,
    last_version: u64,
}

impl PlainStore {
    /// Largest value.
    pub const MAX_VALUE: usize = 4 << 20;

    /// An empty store.
    pub fn new() -> Self {
        PlainStore::default()
    }

    /// The keys of all documents, counters included, in no order.
    pub fn keys(&self) -> Vec<CacheKey> {
        self.0.lock().by_key.keys().cloned().collect()
    }
}

impl Documents {
    fn version(&self, key: &CacheKey) -> Option<Version> {
        self.by_key.get(key).map(|document| document.version)
    }

    fn put(&mut self, key: &CacheKey, value: Bytes) -> Result<Version> {
        if value.len() > PlainStore::MAX_VALUE {
            return Err(Error::new(ErrorKind::TooLarge, "the value is over the limit").with_context("key", key));
        }
        self.last_version += 1;
        let version = Version(self.last_version);
        self.by_key.insert(key.clone(), Versioned { value, version });
        Ok(version)
    }

    fn expect(&self, key: &CacheKey, expected: Version) -> Result<()> {
        if self.version(key) == Some(expected) {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Conflict, "the document has another version or is gone").with_context("key", key))
    }
}

#[async_trait]
impl CacheStore for PlainStore {
    fn info(&self) -> StoreInfo {
        let capabilities = Capabilities {
            native_commit: false,
            notify: false,
            expiry: false,
            persistent: false,
            max_value: PlainStore::MAX_VALUE,
        };
        StoreInfo { scheme: "plain", name: "plain:".to_owned(), capabilities }
    }

    async fn get(&self, key: &CacheKey) -> Result<Option<Versioned<Bytes>>> {
        Ok(self.0.lock().by_key.get(key).cloned())
    }

    async fn insert(&self, key: &CacheKey, value: Bytes, _expiry: Expiry) -> Result<Version> {
        let mut documents = self.0.lock();
        if documents.version(key).is_some() {
            return Err(Error::new(ErrorKind::AlreadyExists, "there is such a document").with_context("key", key));
        }
        documents.put(key, value)
    }

    async fn replace(&self, key: &CacheKey, value: Bytes, expected: Version, _expiry: Expiry) -> Result<Version> {
        let mut documents = self.0.lock();
        documents.expect(key, expected)?;
        documents.put(key, value)
    }

    async fn remove(&self, key: &CacheKey, expected: Option<Version>) -> Result<()> {
        let mut documents = self.0.lock();
        expected.map_or(Ok(()), |expected| documents.expect(key, expected))?;
        documents.by_key.remove(key);
        Ok(())
    }

    async fn increment(&self, key: &CacheKey, by: u64) -> Result<u64> {
        let mut documents = self.0.lock();
        let now = match documents.by_key.get(key) {
            Some(document) => std::str::from_utf8(&document.value).ok().and_then(|text| text.parse().ok()),
            None => Some(0u64),
        };
        let now = now.ok_or_else(|| Error::corrupt("not a counter").with_context("key", key))?;
        let then = now.saturating_add(by);
        documents.put(key, Bytes::from(then.to_string()))?;
        Ok(then)
    }

    async fn ping(&self) -> Result<Duration> {
        Ok(Duration::ZERO)
    }
}
