//! `plainmap:`, documents in a sorted map, by the text of their keys.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use serde::Deserialize;
use sluicegate_core::registry::{Location, Opening, StoreFactory};
use sluicegate_core::store::{Capabilities, Expiry, StoreInfo, Version, Versioned};
use sluicegate_core::{CacheKey, CacheStore, Error, ErrorKind, Result};

const SCHEME: &str = "plainmap";
const MAX_VALUE: usize = 4 << 20;

/// The store.
#[derive(Debug)]
pub struct PlainMap {
    namespace: String,
    documents: Mutex<Documents>,
}

#[derive(Debug, Default)]
struct Documents {
    by_key: BTreeMap<String, Versioned<Bytes>>,
    last_version: u64,
}

impl PlainMap {
    /// An empty store whose keys begin with `namespace`.
    pub fn new(namespace: impl Into<String>) -> Self {
        PlainMap { namespace: namespace.into(), documents: Mutex::default() }
    }

    fn key(&self, key: &CacheKey) -> String {
        key.canonical(&self.namespace)
    }
}

impl Documents {
    fn put(&mut self, key: String, value: Bytes) -> Result<Version> {
        if value.len() > MAX_VALUE {
            return Err(Error::new(ErrorKind::TooLarge, "the value is over the limit").with_context("key", key));
        }
        self.last_version += 1;
        let version = Version(self.last_version);
        self.by_key.insert(key, Versioned { value, version });
        Ok(version)
    }

    fn expect(&self, key: &str, expected: Version) -> Result<()> {
        if self.by_key.get(key).is_some_and(|found| found.version == expected) {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Conflict, "the document has another version or is gone").with_context("key", key))
    }
}

#[async_trait]
impl CacheStore for PlainMap {
    fn info(&self) -> StoreInfo {
        let capabilities =
            Capabilities { native_commit: false, notify: false, expiry: false, persistent: false, max_value: MAX_VALUE };
        StoreInfo { scheme: SCHEME, name: format!("{SCHEME}:{}", self.namespace), capabilities }
    }

    async fn get(&self, key: &CacheKey) -> Result<Option<Versioned<Bytes>>> {
        Ok(self.documents.lock().by_key.get(&self.key(key)).cloned())
    }

    async fn insert(&self, key: &CacheKey, value: Bytes, _expiry: Expiry) -> Result<Version> {
        let (key, mut documents) = (self.key(key), self.documents.lock());
        if documents.by_key.contains_key(&key) {
            return Err(Error::new(ErrorKind::AlreadyExists, "there is such a document").with_context("key", key));
        }
        documents.put(key, value)
    }

    async fn replace(&self, key: &CacheKey, value: Bytes, expected: Version, _expiry: Expiry) -> Result<Version> {
        let (key, mut documents) = (self.key(key), self.documents.lock());
        documents.expect(&key, expected)?;
        documents.put(key, value)
    }

    async fn remove(&self, key: &CacheKey, expected: Option<Version>) -> Result<()> {
        let (key, mut documents) = (self.key(key), self.documents.lock());
        expected.map_or(Ok(()), |expected| documents.expect(&key, expected))?;
        documents.by_key.remove(&key);
        Ok(())
    }

    async fn increment(&self, key: &CacheKey, by: u64) -> Result<u64> {
        let (key, mut documents) = (self.key(key), self.documents.lock());
        let text = documents.by_key.get(&key).map_or(&b"0"[..], |found| &found.value);
        let now: Option<u64> = std::str::from_utf8(text).ok().and_then(|text| text.parse().ok());
        let then = now.ok_or_else(|| Error::corrupt("not a counter").with_context("key", &key))?.saturating_add(by);
        documents.put(key, then.to_string().into())?;
        Ok(then)
    }

    async fn ping(&self) -> Result<Duration> {
        Ok(Duration::ZERO)
    }
}

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Options {
    namespace: String,
}

impl Default for Options {
    fn default() -> Self {
        Options { namespace: "_cache".to_owned() }
    }
}

fn open(location: Location) -> Opening<dyn CacheStore> {
    Box::pin(async move {
        let options: Options = location.options()?;
        Ok(Arc::new(PlainMap::new(options.namespace)) as Arc<dyn CacheStore>)
    })
}

inventory::submit! {
    StoreFactory { scheme: SCHEME, about: "a third party's map; plainmap:?namespace=NAME", open }
}
