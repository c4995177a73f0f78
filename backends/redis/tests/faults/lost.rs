//! Servers that come back without what they acknowledged.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use sluicegate_core::batch::{BlockDelta, CommitReceipt, Publication, WriteBatch};
use sluicegate_core::changes::ChangesOptions;
use sluicegate_core::commit::read_clock;
use sluicegate_core::store::{Expiry, StoreInfo, Version, Versioned};
use sluicegate_core::{
    BlockCodec, CacheKey, CacheStore, ChangeEntry, Channel, Error, ErrorKind, PublishedClock, ReaderConfig, ReaderNode, Result,
    Sequence,
};
use sluicegate_test_servers::RedisServer;
use sluicegate_testkit::PausingFeed;
use tokio::sync::{Semaphore, watch};

use crate::DURABLE;
use crate::support::load::Load;
use crate::support::{block, open, until};

/// A writer must stop with it, and a reader must answer with it.
fn assert_lost(error: &Error) {
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error:?}");
    assert!(!error.is_retryable(), "{error:?}");
    let text = error.to_string();
    assert!(text.contains("lost what it had acknowledged"), "{text}");
    assert!(text.contains("again"), "it names what to do: {text}");
}

async fn assert_reader_lost(reader: &ReaderNode) {
    let _ = reader.refresh().await;
    assert_lost(&reader.changes(&[Channel::star()], &ChangesOptions::new()).await.unwrap_err());
}

async fn clock(store: &dyn CacheStore) -> PublishedClock {
    read_clock(store).await.unwrap().expect("there is a clock").value
}

fn copy(from: &Path, to: &Path) {
    for file in std::fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        let to = to.join(file.file_name());
        match file.file_type().unwrap().is_dir() {
            true => {
                std::fs::create_dir_all(&to).unwrap();
                copy(&file.path(), &to);
            }
            false => drop(std::fs::copy(file.path(), to).unwrap()),
        }
    }
}

/// Puts the files of a stopped server back to what they were.
fn restore(server: &RedisServer, backup: &Path) {
    for file in std::fs::read_dir(server.directory()).unwrap() {
        let path = file.unwrap().path();
        if path.is_dir() { std::fs::remove_dir_all(path).unwrap() } else { std::fs::remove_file(path).unwrap() }
    }
    copy(backup, server.directory());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_lost_everything_stops_writer_and_readers() {
    for seed in 30..34 {
        let load = Load::new(seed, 300).await;
        let mut server = block(RedisServer::start);
        let store = open(&server.url()).await;
        let feed = PausingFeed::new(Arc::new(load.feed.clone()));
        let mut pause = feed.pause_at(15);
        let mut writer = load.writer(store.clone(), 60_000).await.unwrap();
        let writing = tokio::spawn(async move { writer.run(&feed, std::future::pending()).await });
        assert!(pause.reached().await);
        until("something is published", async || clock(store.as_ref()).await.batch > 0).await;
        let reader = ReaderNode::open(store.clone(), ReaderConfig::default()).await.unwrap();
        reader.changes(&[Channel::star()], &ChangesOptions::new()).await.unwrap();
        block(|| server.restart());
        pause.resume();
        assert_lost(&writing.await.unwrap().unwrap_err());
        assert_reader_lost(&reader).await;
        // Over what the failed writer left, and with readers that see another cache.
        assert_eq!(load.finish(&load.feed, &(store.clone() as Arc<dyn CacheStore>), 60_000).await, 1);
        load.check(store, "the cache made anew").await;
        assert_reader_lost(&reader).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_comes_back_older_stops_writer_and_readers() {
    for seed in 40..44 {
        let load = Load::new(seed, 300).await;
        let mut server = block(|| RedisServer::with(&DURABLE));
        let store = open(&server.url()).await;
        let feed = PausingFeed::new(Arc::new(load.feed.clone()));
        let (mut first, mut second) = (feed.pause_at(10), feed.pause_at(20));
        let mut writer = load.writer(store.clone(), 60_000).await.unwrap();
        let writing = tokio::spawn(async move { writer.run(&feed, std::future::pending()).await });
        assert!(first.reached().await);
        until("something is published", async || clock(store.as_ref()).await.batch > 1).await;
        let backup = tempfile::tempdir().unwrap();
        block(|| server.kill());
        copy(server.directory(), backup.path());
        block(|| server.restart());
        let before = clock(store.as_ref()).await;
        first.resume();
        assert!(second.reached().await);
        until("more is published", async || clock(store.as_ref()).await.batch > before.batch).await;
        let reader = ReaderNode::open(store.clone(), ReaderConfig::default()).await.unwrap();
        block(|| server.kill());
        restore(&server, backup.path());
        block(|| server.restart());
        let restored = clock(store.as_ref()).await;
        second.resume();
        assert_lost(&writing.await.unwrap().unwrap_err());
        assert_reader_lost(&reader).await;
        assert_eq!(clock(store.as_ref()).await, restored, "nothing is published over the older state");
        let next: Arc<dyn CacheStore> = store.clone();
        assert_eq!(load.finish(&load.feed, &next, 60_000).await, 1);
        load.check(store.clone(), "the older state, gone on from").await;
    }
}

/// A Redis store whose commits and publications can be held, before and after them.
#[derive(Debug)]
struct Held {
    store: Arc<dyn CacheStore>,
    commits: Semaphore,
    publications: Semaphore,
    /// How many commits have begun, have ended, and how many publications have begun.
    counts: watch::Sender<(usize, usize, usize)>,
}

#[async_trait]
impl CacheStore for Held {
    fn info(&self) -> StoreInfo {
        self.store.info()
    }
    async fn get(&self, key: &CacheKey) -> Result<Option<Versioned<Bytes>>> {
        self.store.get(key).await
    }
    async fn insert(&self, key: &CacheKey, value: Bytes, expiry: Expiry) -> Result<Version> {
        self.store.insert(key, value, expiry).await
    }
    async fn replace(&self, key: &CacheKey, value: Bytes, expected: Version, expiry: Expiry) -> Result<Version> {
        self.store.replace(key, value, expected, expiry).await
    }
    async fn remove(&self, key: &CacheKey, expected: Option<Version>) -> Result<()> {
        self.store.remove(key, expected).await
    }
    async fn increment(&self, key: &CacheKey, by: u64) -> Result<u64> {
        self.store.increment(key, by).await
    }
    async fn ping(&self) -> Result<Duration> {
        self.store.ping().await
    }
    async fn entries(&self, sequences: &[Sequence]) -> Result<Vec<Option<Arc<ChangeEntry>>>> {
        self.store.entries(sequences).await
    }
    async fn merge_block(&self, delta: &BlockDelta, codec: &dyn BlockCodec) -> Result<u32> {
        self.store.merge_block(delta, codec).await
    }
    async fn commit(&self, batch: &WriteBatch) -> Result<CommitReceipt> {
        self.counts.send_modify(|counts| counts.0 += 1);
        let permit = self.commits.acquire().await.unwrap();
        let receipt = self.store.commit(batch).await?;
        permit.forget();
        self.counts.send_modify(|counts| counts.1 += 1);
        Ok(receipt)
    }
    async fn publish(&self, publication: &Publication, last: &Versioned<PublishedClock>) -> Result<Versioned<PublishedClock>> {
        self.counts.send_modify(|counts| counts.2 += 1);
        let permit = self.publications.acquire().await.unwrap();
        let published = self.store.publish(publication, last).await?;
        permit.forget();
        Ok(published)
    }
}

/// The clock is what the writer knows, and only the last commit is gone: nothing but its proof tells.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_is_lost_before_it_is_published_is_not_published() {
    for seed in 50..54 {
        let load = Load::new(seed, 300).await;
        let mut server = block(|| RedisServer::with(&DURABLE));
        let store = open(&server.url()).await;
        let gates = 5 + seed as usize % 4;
        let held = Arc::new(Held {
            store: store.clone(),
            commits: Semaphore::new(gates),
            publications: Semaphore::new(gates),
            counts: watch::Sender::default(),
        });
        let mut counts = held.counts.subscribe();
        let mut writer = load.writer(held.clone(), 60_000).await.unwrap();
        let feed = load.feed.clone();
        let writing = tokio::spawn(async move { writer.run(&feed, std::future::pending()).await });
        counts.wait_for(|(begun, ended, published)| *begun > gates && *ended == gates && *published == gates).await.unwrap();
        until("all are published", async || clock(store.as_ref()).await.batch == gates as u64).await;
        let backup = tempfile::tempdir().unwrap();
        block(|| server.kill());
        copy(server.directory(), backup.path());
        block(|| server.restart());
        let before = clock(store.as_ref()).await;
        held.commits.add_permits(100);
        counts.wait_for(|(_, ended, published)| *ended > gates && *published > gates).await.unwrap();
        block(|| server.kill());
        restore(&server, backup.path());
        block(|| server.restart());
        assert_eq!(clock(store.as_ref()).await, before, "as the writer left it");
        held.publications.add_permits(1);
        let error = writing.await.unwrap().unwrap_err();
        assert_lost(&error);
        assert!(error.to_string().contains("a commit is not there"), "{error}");
        assert_eq!(clock(store.as_ref()).await, before);
        let next: Arc<dyn CacheStore> = store.clone();
        assert_eq!(load.finish(&load.feed, &next, 60_000).await, 1);
        load.check(store, "gone on from what is there").await;
    }
}
