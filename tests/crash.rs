//! A writer is cut off at every step of commit and publish, or held there while another takes over: the cache must come out as if nothing had
//! happened. Everything runs from a seed, over the provided algorithms and a store that fails to order.

mod support;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use sluicegate_core::batch::Checkpoint;
use sluicegate_core::block::codec_named;
use sluicegate_core::decode::{Decoded, MutationDecoder};
use sluicegate_core::feed::{Feed, Mutation};
use sluicegate_core::pointer::Supersession;
use sluicegate_core::store::{Expiry, StoreInfo, Version, Versioned};
use sluicegate_core::{
    BlockCodec, CacheKey, CacheStore, Channel, DocumentId, ErrorKind, GatewayDecoder, PublishedClock, Result, Writer,
    WriterConfig,
};
use sluicegate_replay::MemoryFeed;
use sluicegate_replay::synthetic::{ExpectedRow, Generated, Synthetic, SyntheticConfig};
use sluicegate_testkit::{Content, CrashPoint, FaultStore, Faults, Follower, PausingFeed, PlainStore, Rows, Step};
use support::Kind;
use support::seeds::{channels, place, stars, with_named};

/// A store that refuses to let the clock go back, and knows what was written to it.
#[derive(Debug)]
struct WatchedStore {
    inner: Arc<dyn CacheStore>,
    clocks: Mutex<Vec<PublishedClock>>,
    keys: Mutex<HashSet<CacheKey>>,
    /// Whether answers come in the order in which writes were applied: over a network those to two writers need not.
    ordered: bool,
}

impl WatchedStore {
    async fn new(kind: Kind) -> Arc<Self> {
        let (inner, ordered): (Arc<dyn CacheStore>, _) = match kind {
            Kind::Memory => (Arc::new(PlainStore::new()), true),
            Kind::Redis => (kind.fresh().await, false),
        };
        Arc::new(WatchedStore { inner, clocks: Mutex::default(), keys: Mutex::default(), ordered })
    }

    fn watch(&self, key: &CacheKey, value: &Bytes) {
        if *key == CacheKey::Clock {
            let clock = PublishedClock::from_bytes(value).unwrap();
            let mut clocks = self.clocks.lock();
            if let Some(last) = clocks.last().filter(|_| self.ordered) {
                assert_eq!(clock.lost_since(last), None, "from {last:?} to {clock:?}");
            }
            clocks.push(clock);
        }
    }
}

#[async_trait]
impl CacheStore for WatchedStore {
    fn info(&self) -> StoreInfo {
        self.inner.info()
    }
    async fn get(&self, key: &CacheKey) -> Result<Option<Versioned<Bytes>>> {
        self.inner.get(key).await
    }
    async fn insert(&self, key: &CacheKey, value: Bytes, expiry: Expiry) -> Result<Version> {
        self.keys.lock().insert(key.clone());
        let version = self.inner.insert(key, value.clone(), expiry).await?;
        self.watch(key, &value);
        Ok(version)
    }
    async fn replace(&self, key: &CacheKey, value: Bytes, expected: Version, expiry: Expiry) -> Result<Version> {
        let version = self.inner.replace(key, value.clone(), expected, expiry).await?;
        self.watch(key, &value);
        Ok(version)
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
}

/// The gateway's decoder for documents that do not name their recent sequences: only pointers know what an entry supersedes.
#[derive(Debug, Default)]
struct Forgetful(GatewayDecoder);

impl MutationDecoder for Forgetful {
    fn decode(&self, mutation: &Mutation) -> Decoded {
        let mut decoded = self.0.decode(mutation);
        if let Decoded::Document(document) = &mut decoded {
            document.entry = document.entry.clone().with_supersedes([]);
        }
        decoded
    }
}

/// One whose blocks a store can append to, or one whose states it can raise where they lie.
fn codec(seed: u64) -> Arc<dyn BlockCodec> {
    codec_named(if (seed / 2).is_multiple_of(2) { "log" } else { "two-bit" }, 64).unwrap()
}

/// Small batches, small blocks, an early skipped list: so that few events reach every step often.
fn config(seed: u64) -> WriterConfig {
    let text = r#"{"max_batch": 8, "max_in_flight": 3, "max_pending": 12, "hold_first_read": false, "checkpoint_interval_ms": 1, "ring": 8,
        "block_capacity": 64, "give_up_after_ms": 2000}"#;
    let mut config: WriterConfig = serde_json::from_str(text).unwrap();
    config.codec = codec(seed).name().to_owned();
    config.list_changes = seed as usize % 5;
    // Independent of the crash point, of which there are 33.
    config.hold_first_read = (seed / 33).is_multiple_of(3);
    config.with_supersession(if seed.is_multiple_of(2) { Supersession::Recents } else { Supersession::Pointers })
}

/// What a feed delivers, and what a cache must answer after it.
struct Load {
    mutations: Vec<Mutation>,
    channels: Vec<Channel>,
    /// The star channels, in which all documents are.
    stars: Vec<Channel>,
    answers: BTreeMap<String, Rows>,
}

impl Load {
    /// The documents are in the collections of worlds of `seed`.
    fn of(generated: Generated, seed: u64) -> Load {
        let place = |id: &str| id.strip_prefix("doc-").map(|number| place(seed, number.parse().unwrap()));
        let key = |number: usize| format!("doc-{number}");
        let mut mutations = generated.mutations;
        for mutation in &mut mutations {
            let Some((collection, number)) = place(std::str::from_utf8(&mutation.key).unwrap()) else { continue };
            (mutation.collection, mutation.key) = (collection.0, key(number).into());
        }
        let names: Vec<&str> = generated.truth.keys().map(String::as_str).collect();
        let channels = channels(seed, &names);
        let answer = |channel: &Channel| {
            let row = |row: &ExpectedRow| {
                let (collection, number) = place(&row.document).unwrap();
                let document = DocumentId::new(collection, key(number)).as_ref().to_string();
                let shown = (row.sequence.0, document, row.revision.clone(), row.deleted, row.removed);
                (collection == channel.collection()).then_some(shown)
            };
            (channel.to_string(), generated.truth[channel.name()].iter().filter_map(row).collect())
        };
        let answers = channels.iter().map(answer).collect();
        Load { mutations, channels, stars: stars(seed), answers }
    }

    /// What a follower of all documents has been told in the end.
    fn everything(&self, content: &Content) -> Rows {
        self.stars.iter().flat_map(|star| content.answers[&star.to_string()].clone()).collect()
    }
}

fn load(seed: u64) -> Load {
    let mut config = SyntheticConfig::rough();
    (config.documents, config.channels, config.body, config.principals) = (25, 6, 8, 2);
    (config.out_of_order, config.late, config.late_by, config.gaps) = (10, 0.03, 30, 0.01);
    (config.unused, config.unused_max, config.restart_every, config.restart_repeats) = (0.02, 40, 60, 10);
    Load::of(Synthetic::new(config, seed).unwrap().generate(200), seed)
}

async fn writer(store: Arc<dyn CacheStore>, seed: u64) -> Result<Writer> {
    let decoder: Arc<dyn MutationDecoder> =
        if seed % 4 == 3 { Arc::new(Forgetful::default()) } else { Arc::new(GatewayDecoder::default()) };
    Writer::alone(store, decoder, "load", config(seed)).await
}

async fn run(store: Arc<dyn CacheStore>, feed: &dyn Feed, seed: u64) -> Result<()> {
    writer(store, seed).await?.run(feed, std::future::pending()).await.map(drop)
}

async fn content(store: &Arc<WatchedStore>, load: &Load, seed: u64) -> Content {
    let keys: Vec<CacheKey> = store.keys.lock().iter().cloned().collect();
    let store: Arc<dyn CacheStore> = store.clone();
    Content::read(&store, load.channels.iter().cloned(), &keys, codec(seed).as_ref()).await
}

async fn undisturbed(load: &Load, feed: &dyn Feed, seed: u64) -> Content {
    let store = WatchedStore::new(Kind::Memory).await;
    run(store.clone(), feed, seed).await.unwrap();
    let content = content(&store, load, seed).await;
    assert_eq!(content.answers, load.answers, "without any crash");
    content
}

#[tokio::test]
async fn a_crash_at_any_step_and_a_restart_give_the_cache_of_no_crash() {
    crash_everywhere(Kind::Memory, 1_053).await;
}

#[tokio::test]
async fn on_redis_a_crash_at_any_step_and_a_restart_give_the_cache_of_no_crash() {
    crash_everywhere(Kind::Redis, 108).await;
}

#[tokio::test]
async fn a_writer_held_anywhere_while_another_takes_over_does_no_harm() {
    hold_anywhere(Kind::Memory, 25).await;
}

#[tokio::test]
async fn on_redis_a_writer_held_anywhere_while_another_takes_over_does_no_harm() {
    hold_anywhere(Kind::Redis, 4).await;
}

#[tokio::test(start_paused = true)]
async fn a_store_that_fails_all_the_time_costs_time_and_nothing_else() {
    fail_all_the_time(Kind::Memory, 40).await;
}

#[tokio::test]
async fn on_redis_operations_that_fail_all_the_time_cost_time_and_nothing_else() {
    fail_all_the_time(Kind::Redis, 8).await;
}

/// The first one of a term, so that none of a writer was there when the next took over: it would be taken for what that one knows.
#[tokio::test]
async fn a_checkpoint_of_a_writer_that_was_held_is_refused_be_it_the_first() {
    let seed = 0;
    let generated = load(seed);
    let feed = MemoryFeed::new("load", generated.mutations.clone()).with_batch(8).unwrap();
    let reference = undisturbed(&generated, &feed, seed).await;
    let store = WatchedStore::new(Kind::Memory).await;
    let held = Arc::new(FaultStore::new(store.clone(), seed, Faults::none()));
    // The term begins with one write of it.
    let mut pause = held.pause_at_write(Step::Checkpoint, 2);
    let first = tokio::spawn({
        let feed = feed.clone();
        async move { run(held, &feed, seed).await }
    });
    assert!(pause.reached().await);
    drop(writer(store.clone(), seed).await.unwrap());
    pause.resume();
    assert_eq!(first.await.unwrap().unwrap_err().kind(), ErrorKind::Fenced);
    let (key, epoch) = (CacheKey::Checkpoint("load".to_owned()), store.clocks.lock().last().unwrap().epoch);
    let stored = store.get(&key).await.unwrap().unwrap();
    assert_eq!(Checkpoint::from_bytes(&stored.value).unwrap(), Checkpoint::beginning(epoch));
    run(store.clone(), &feed, seed).await.unwrap();
    assert_eq!(content(&store, &generated, seed).await, reference);
}

/// As many writers, each over its own load, are cut off at one step after another.
async fn crash_everywhere(kind: Kind, runs: u64) {
    let mut reached: BTreeMap<String, usize> = BTreeMap::new();
    let points: Vec<CrashPoint> = CrashPoint::all(1).chain(CrashPoint::occasional(1)).collect();
    for (seed, mut point) in with_named(0..runs).zip(points.clone().into_iter().cycle()) {
        let generated = load(seed);
        let feed = MemoryFeed::new("load", generated.mutations.clone()).with_batch(8).unwrap();
        let reference = undisturbed(&generated, &feed, seed).await;
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        // Other steps are not in every batch.
        let most = if Step::ALL.contains(&point.step) { 5 } else { 1 };
        point.nth = random.random_range(1..=most);
        let store = WatchedStore::new(kind).await;
        // Delays, so that batches in flight overtake one another.
        let mut delays = Faults::none();
        delays.delay = if seed % 8 < 4 { 0.0 } else { 0.1 };
        let faulty = Arc::new(FaultStore::new(store.clone(), seed, delays));
        faulty.crash_at(point);
        let watched: Arc<dyn CacheStore> = store.clone();
        let mut client = Follower::of(generated.stars.clone());
        let crashing = tokio::spawn({
            let (faulty, feed) = (faulty.clone(), feed.clone());
            async move { run(faulty, &feed, seed).await }
        });
        while !crashing.is_finished() {
            tokio::task::yield_now().await;
            if random.random_bool(0.05) {
                client.look(&watched).await.unwrap();
            }
        }
        let ended = crashing.await.unwrap();
        if faulty.crashed() {
            *reached.entry(format!("{:?} {:?}", point.step, point.when)).or_default() += 1;
            let error = ended.expect_err("a writer went on after its store was gone");
            assert_eq!(error.kind(), ErrorKind::Closed, "seed {seed}, {point}: {error:?}");
        } else {
            ended.unwrap();
        }
        client.look(&watched).await.unwrap();
        run(store.clone(), &feed, seed).await.unwrap();
        let after = content(&store, &generated, seed).await;
        assert_eq!(after, reference, "seed {seed}, {point}");
        client.look(&watched).await.unwrap();
        client.check(&generated.everything(&after), &format!("seed {seed}, {point}"));
    }
    println!("{runs} runs over the default collection; crashed at: {reached:#?}");
    let all: BTreeSet<String> = points.iter().map(|point| format!("{:?} {:?}", point.step, point.when)).collect();
    let missed: Vec<&String> = all.iter().filter(|point| !reached.contains_key(*point)).collect();
    // Few loads have late entries.
    let most = if runs < 1_000 { 3 } else { 0 };
    assert!(missed.len() <= most, "these points were not reached: {missed:?}");
}

/// A writer is held at some operation while another takes over, sixteen times a load.
async fn hold_anywhere(kind: Kind, loads: u64) {
    let (mut fenced, mut runs) = (0, 0);
    for seed in with_named(0..loads) {
        let generated = load(1_000 + seed);
        let feed = MemoryFeed::new("load", generated.mutations.clone()).with_batch(8).unwrap();
        let reference = undisturbed(&generated, &feed, seed).await;
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        for _ in 0..16 {
            runs += 1;
            let store = WatchedStore::new(kind).await;
            let held = Arc::new(FaultStore::new(store.clone(), seed, Faults::none()));
            let held_feed = PausingFeed::new(Arc::new(feed.clone()));
            let mut pause = match random.random_bool(0.3) {
                true => held_feed.pause_at(random.random_range(1..30)),
                false => held.pause_at(random.random_range(1..1_200)),
            };
            let first = tokio::spawn(async move { run(held, &held_feed, seed).await });
            let was_reached = tokio::select! {
                reached = pause.reached() => reached,
                () = async { while !first.is_finished() { tokio::task::yield_now().await } } => false,
            };
            // The second runs to some point, or to the end, before the first goes on.
            let second = tokio::spawn({
                let (store, feed) = (store.clone(), feed.clone());
                async move { run(store, &feed, seed).await }
            });
            for _ in 0..random.random_range(0..60) {
                tokio::task::yield_now().await;
            }
            pause.resume();
            let (first, second) = (first.await.unwrap(), second.await.unwrap());
            second.unwrap();
            if let Err(error) = first {
                assert_eq!(error.kind(), ErrorKind::Fenced, "seed {seed}: {error:?}");
                fenced += 1;
            } else {
                assert!(!was_reached || store.clocks.lock().len() > 1, "seed {seed}");
            }
            let after = content(&store, &generated, seed).await;
            assert_eq!(after, reference, "seed {seed}");
        }
    }
    println!("{runs} runs, {fenced} first writers fenced");
    assert!(fenced > runs / 4, "only {fenced} of {runs} first writers met the second");
}

/// Every kind of trouble, often, at every primitive.
async fn fail_all_the_time(kind: Kind, loads: u64) {
    for seed in with_named(0..loads) {
        let generated = load(2_000 + seed);
        let feed = MemoryFeed::new("load", generated.mutations.clone()).with_batch(8).unwrap();
        let reference = undisturbed(&generated, &feed, seed).await;
        let store = WatchedStore::new(kind).await;
        let faulty = Arc::new(FaultStore::new(store.clone(), seed, Faults::all(0.02)));
        let mut terms = 0;
        while let Err(error) = run(faulty.clone(), &feed, seed).await {
            terms += 1;
            assert!(error.is_retryable(), "seed {seed}: {error:?}");
            assert!(terms < 100, "seed {seed}: never got through: {error:?}");
        }
        assert_eq!(content(&store, &generated, seed).await, reference, "seed {seed}, {terms} terms");
    }
}
