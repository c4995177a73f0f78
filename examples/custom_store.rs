//! A store of one's own: six primitives, and what it can do; the rest is provided. It is registered by hand and used by URL.
//!
//! This one is a list that is searched from end to end: as simple as a store can be, and slow. `sluicegate_testkit` has a suite
//! that says whether a store does what it must; `tests/third_party` shows how a crate submits its store, so that nobody registers it by hand.
//!
//! ```text
//! cargo run --example custom_store
//! ```

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use sluicegate::changes::ChangesOptions;
use sluicegate::registry::{Location, Opening, StoreFactory};
use sluicegate::store::{Capabilities, Expiry, StoreInfo, Version, Versioned};
use sluicegate::{CacheKey, CacheStore, Channel, Error, ErrorKind, Result, Sluicegate};

const MAX_VALUE: usize = 1 << 20;

#[derive(Debug, Default)]
struct ListStore(Mutex<Documents>);

#[derive(Debug, Default)]
struct Documents {
    list: Vec<(CacheKey, Versioned<Bytes>)>,
    /// Counts all writes: so that no version ever comes again.
    last: u64,
}

impl ListStore {
    /// Looks at one document and changes it, all under one lock: that makes each primitive linearizable.
    fn change<T>(
        &self,
        key: &CacheKey,
        change: impl FnOnce(Option<Versioned<Bytes>>) -> Result<(Change, T)>,
    ) -> Result<(T, Version)> {
        let Documents { list, last } = &mut *self.0.lock();
        let at = list.iter().position(|(k, _)| k == key);
        let (change, told) = change(at.map(|at| list[at].1.clone())).map_err(|e| e.with_context("key", key))?;
        if matches!(&change, Change::Put(value) if value.len() > MAX_VALUE) {
            return Err(Error::new(ErrorKind::TooLarge, "the value is over the limit").with_context("key", key));
        }
        if let (Some(at), Change::Put(_) | Change::Gone) = (at, &change) {
            list.swap_remove(at);
        }
        if let Change::Put(value) = change {
            *last += 1;
            list.push((key.clone(), Versioned { value, version: Version(*last) }));
        }
        Ok((told, Version(*last)))
    }
}

enum Change {
    Put(Bytes),
    Gone,
    Leave,
}

fn expect(found: Option<Versioned<Bytes>>, version: Version) -> Result<()> {
    if found.is_some_and(|found| found.version == version) {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Conflict, "the document has another version or is gone"))
}

#[async_trait]
impl CacheStore for ListStore {
    fn info(&self) -> StoreInfo {
        let capabilities =
            Capabilities { native_commit: false, notify: false, expiry: false, persistent: false, max_value: MAX_VALUE };
        StoreInfo { scheme: "list", name: "list:".to_owned(), capabilities }
    }

    async fn get(&self, key: &CacheKey) -> Result<Option<Versioned<Bytes>>> {
        Ok(self.change(key, |found| Ok((Change::Leave, found)))?.0)
    }

    async fn insert(&self, key: &CacheKey, value: Bytes, _expiry: Expiry) -> Result<Version> {
        let insert = |found: Option<_>| match found {
            None => Ok((Change::Put(value), ())),
            Some(_) => Err(Error::new(ErrorKind::AlreadyExists, "there is such a document")),
        };
        Ok(self.change(key, insert)?.1)
    }

    async fn replace(&self, key: &CacheKey, value: Bytes, expected: Version, _expiry: Expiry) -> Result<Version> {
        Ok(self.change(key, |found| expect(found, expected).map(|()| (Change::Put(value), ())))?.1)
    }

    async fn remove(&self, key: &CacheKey, expected: Option<Version>) -> Result<()> {
        let remove = |found| expected.map_or(Ok(()), |expected| expect(found, expected)).map(|()| (Change::Gone, ()));
        self.change(key, remove).map(drop)
    }

    async fn increment(&self, key: &CacheKey, by: u64) -> Result<u64> {
        let increment = |found: Option<Versioned<Bytes>>| {
            let text = found.map_or(Bytes::from_static(b"0"), |found| found.value);
            let now: Option<u64> = std::str::from_utf8(&text).ok().and_then(|text| text.parse().ok());
            let then = now.ok_or_else(|| Error::corrupt("not a counter"))?.saturating_add(by);
            Ok((Change::Put(then.to_string().into()), then))
        };
        Ok(self.change(key, increment)?.0)
    }

    async fn ping(&self) -> Result<Duration> {
        Ok(Duration::ZERO)
    }
}

fn open(_location: Location) -> Opening<dyn CacheStore> {
    Box::pin(async { Ok(Arc::new(ListStore::default()) as Arc<dyn CacheStore>) })
}

/// Every change there is, from a cache in the store at `url`.
async fn everything(url: &str, feed: &str) -> Result<Vec<String>> {
    let mut registry = sluicegate::registry()?;
    registry.register_store(StoreFactory { scheme: "list", about: "documents in a list, to show how a store is made", open })?;
    let mut cache = Sluicegate::builder().registry(registry).store(url).feed(feed).start().await?;
    cache.caught_up().await?;
    let answer = cache.changes(&[Channel::star()], &ChangesOptions::new()).await?;
    let name = cache.store().info().name;
    cache.shutdown().await?;
    println!("{name:8} {} rows, last_seq {}", answer.rows.len(), answer.last);
    Ok(answer.rows.iter().map(|row| format!("{} {}", row.id, row.entry.document())).collect())
}

#[tokio::main]
async fn main() -> Result<()> {
    let feed = "synthetic:?events=1000&documents=200&channels=10&out_of_order=20";
    println!("What changed, by a cache in each store, from the feed {feed}:");
    let (ours, memory) = (everything("list:", feed).await?, everything("memory:", feed).await?);
    if ours != memory || ours.is_empty() {
        return Err(Error::new(ErrorKind::Unexpected, "the stores do not give the same answer"));
    }
    println!("The answers are the same.");
    Ok(())
}
