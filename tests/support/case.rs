//! A cache to be damaged, and what must come out of it.

#![allow(dead_code, reason = "each test program uses some of it")]

use std::sync::Arc;

use rand_chacha::ChaCha8Rng;
use sluicegate::core::commit::read_clock;
use sluicegate::core::pointer::Supersession;
use sluicegate::core::verify::{RepairOptions, RepairReport, VerifyOptions, VerifyReport, repair, verify};
use sluicegate::{CacheKey, CacheStore, Channel, Feed, GatewayDecoder, PublishedClock, Result, Writer, WriterConfig};
use sluicegate_memory::MemoryStore;
use sluicegate_replay::MemoryFeed;
use sluicegate_replay::synthetic::{Synthetic, SyntheticConfig};
use sluicegate_testkit::PlainStore;

use crate::damage::{self, CAPACITY, CODEC, Content, Target, copy};
use crate::seeds::{channels, place};

pub(crate) const FEED: &str = "mutations:load";

/// A cache of the first part of a feed, to be damaged; and what must come out of the whole feed.
pub(crate) struct Case {
    pub(crate) seed: u64,
    pub(crate) plain: PlainStore,
    pub(crate) keys: Vec<CacheKey>,
    pub(crate) channels: Vec<Channel>,
    pub(crate) feed: MemoryFeed,
    pub(crate) held: Content,
    pub(crate) whole: Content,
    pub(crate) ring: u64,
}

pub(crate) fn config(seed: u64, ring: u64) -> WriterConfig {
    let text = format!(
        r#"{{"max_batch": 8, "max_in_flight": 3, "max_pending": 12, "hold_first_read": false, "checkpoint_interval_ms": 1, "ring": {ring},
        "codec": "{CODEC}", "block_capacity": {CAPACITY}}}"#
    );
    let mut config: WriterConfig = serde_json::from_str(&text).unwrap();
    config.list_changes = seed as usize % 5;
    config.with_supersession(if seed.is_multiple_of(2) { Supersession::Recents } else { Supersession::Pointers })
}

pub(crate) async fn writer(store: Arc<dyn CacheStore>, seed: u64, ring: u64) -> Result<Writer> {
    Writer::alone(store, Arc::new(GatewayDecoder::default()), FEED, config(seed, ring)).await
}

pub(crate) async fn write(store: Arc<dyn CacheStore>, feed: &dyn Feed, seed: u64, ring: u64) -> Result<()> {
    writer(store, seed, ring).await?.run(feed, std::future::pending()).await.map(drop)
}

/// The feed of one seed, in the order of arrival; gaps and late entries in some. Its documents are
/// in the collections of worlds of the seed.
pub(crate) fn load(seed: u64) -> (MemoryFeed, MemoryFeed, Vec<Channel>) {
    let mut config = SyntheticConfig::rough();
    (config.documents, config.channels, config.body, config.principals) = (25, 6, 8, 2);
    (config.out_of_order, config.late, config.late_by) = (10, 0.03, 30);
    config.gaps = if seed.is_multiple_of(3) { 0.01 } else { 0.0 };
    (config.unused, config.unused_max, config.restart_every, config.restart_repeats) = (0.02, 40, 60, 10);
    let mut generated = Synthetic::new(config, seed).unwrap().generate(260);
    for mutation in &mut generated.mutations {
        let document = std::str::from_utf8(&mutation.key).unwrap().strip_prefix("doc-");
        let Some((collection, number)) = document.map(|number| place(seed, number.parse().unwrap())) else { continue };
        (mutation.collection, mutation.key) = (collection.0, format!("doc-{number}").into());
    }
    let part = generated.mutations.len() * 3 / 4;
    let feed = |events: &[_]| MemoryFeed::new("load", events.to_vec()).with_batch(8).unwrap();
    let names: Vec<&str> = generated.truth.keys().map(String::as_str).collect();
    let channels = channels(seed, &names);
    (feed(&generated.mutations[..part]), feed(&generated.mutations), channels)
}

impl Case {
    pub(crate) async fn new(seed: u64, ring: u64) -> Case {
        let (part, feed, channels) = load(seed);
        let store = Arc::new(PlainStore::new());
        write(store.clone(), &part, seed, ring).await.unwrap();
        let held = Content::of(store.clone(), &channels).await;
        let (plain, whole) = (PlainStore::new(), Arc::new(PlainStore::new()));
        copy(&store, &plain).await;
        copy(&store, whole.as_ref()).await;
        write(whole.clone(), &feed, seed, ring).await.unwrap();
        let whole = Content::of(whole, &channels).await;
        let mut keys = plain.keys();
        keys.sort_by_key(|key| key.to_string());
        Case { seed, plain, keys, channels, feed, held, whole, ring }
    }

    /// A copy of the cache, in one store or the other.
    pub(crate) async fn store(&self, native: bool) -> Arc<dyn CacheStore> {
        let store: Arc<dyn CacheStore> = if native { Arc::new(MemoryStore::new()) } else { Arc::new(PlainStore::new()) };
        copy(&self.plain, store.as_ref()).await;
        store
    }

    pub(crate) async fn content(&self, store: &Arc<dyn CacheStore>) -> Content {
        Content::of(store.clone(), &self.channels).await
    }

    pub(crate) async fn damage(
        &self,
        store: &dyn CacheStore,
        target: Target,
        times: usize,
        random: &mut ChaCha8Rng,
    ) -> Vec<String> {
        let mut done = Vec::new();
        for _ in 0..times {
            done.push(damage::damage(store, &self.keys, target, &self.held, random).await);
        }
        done
    }

    /// The whole feed, by another writer.
    pub(crate) async fn go_on(&self, store: &Arc<dyn CacheStore>) {
        write(store.clone(), &self.feed, self.seed, self.ring).await.unwrap();
    }

    pub(crate) fn last_record(&self, clock: &PublishedClock) -> CacheKey {
        CacheKey::Batch(clock.batch % self.ring)
    }
}

pub(crate) fn options() -> RepairOptions {
    RepairOptions::default().feed(FEED)
}

pub(crate) async fn repaired(store: &Arc<dyn CacheStore>) -> RepairReport {
    repair(store.as_ref(), &options()).await.unwrap()
}

pub(crate) async fn clock(store: &Arc<dyn CacheStore>) -> PublishedClock {
    read_clock(store.as_ref()).await.unwrap().unwrap().value
}

pub(crate) async fn checked(store: &Arc<dyn CacheStore>) -> VerifyReport {
    verify(store.as_ref(), &VerifyOptions::default().feed(FEED)).await.unwrap()
}

pub(crate) fn channel(name: &str) -> Channel {
    Channel::new(name).unwrap()
}

pub(crate) fn since(n: u64) -> sluicegate::changes::ChangesOptions {
    sluicegate::changes::ChangesOptions::new().since(n)
}
