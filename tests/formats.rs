//! Caches of every format version are read, checked, and continued.
//!
//! `testdata/formats/vN.json.gz` holds all documents of a small cache by their canonical keys,
//! `vN-building.json.gz` those of one that is being built, and `v3-log.json.gz` those of one whose
//! blocks a store has appended to. Those of an earlier version were written by the last build that
//! wrote it; those of this version are written by
//! `SLUICEGATE_WRITE_FORMAT=1 cargo test --test formats`.

#![cfg(all(feature = "memory", feature = "replay"))]

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use parking_lot::Mutex;
use sluicegate::changes::ChangesOptions;
use sluicegate::core::batch::Checkpoint;
use sluicegate::core::block::{Adaptive, Block, BlockCodec, BlockState, Log, codec_named};
use sluicegate::core::clock::FORMAT_VERSION;
use sluicegate::core::feed::{FeedCapabilities, FeedIdentity, FeedInfo};
use sluicegate::core::meta::Meta;
use sluicegate::core::source::{CacheSource, DatabaseIdentity, Following};
use sluicegate::core::verify::{VerifyOptions, verify};
use sluicegate::store::{Capabilities, Expiry, StoreInfo, Version, Versioned};
use sluicegate::{
    CacheKey, CacheStore, Channel, CollectionId, Error, ErrorKind, Feed, FeedBatch, FeedEvent, FeedStart, FeedStream,
    GatewayDecoder, Mutation, PartitionId, PartitionSeqno, PublishedClock, ReaderConfig, ReaderNode, Result, Writer,
    WriterConfig,
};
use sluicegate_memory::MemoryStore;
use sluicegate_replay::Recording;

const FEED: &str = "fixture";

/// The number of recorded events in a fixture, and in all after it was continued.
const HELD: usize = 300;
const ALL: usize = 600;

/// A store of six primitives that keeps documents by their canonical keys, so that a whole cache
/// can be dumped and loaded.
#[derive(Debug, Default)]
struct Shelf(Mutex<(BTreeMap<String, Versioned<Bytes>>, u64)>);

impl Shelf {
    fn change<T>(
        &self,
        key: &CacheKey,
        change: impl FnOnce(Option<&Versioned<Bytes>>) -> Result<(Option<Bytes>, T)>,
    ) -> Result<(T, Version)> {
        let (documents, last) = &mut *self.0.lock();
        let name = key.canonical("_cache");
        let (value, told) = change(documents.get(&name)).map_err(|e| e.with_context("key", key))?;
        *last += 1;
        let version = Version(*last);
        match value {
            Some(value) => drop(documents.insert(name, Versioned { value, version })),
            None => drop(documents.remove(&name)),
        }
        Ok((told, version))
    }

    /// The names and values of all blocks.
    fn blocks(&self) -> Vec<(String, Bytes)> {
        let shelf = self.0.lock();
        let blocks = shelf.0.iter().filter(|(name, _)| name.contains(":block["));
        blocks.map(|(name, found)| (name.clone(), found.value.clone())).collect()
    }

    /// Replaces each block by what it is in a store that appends to blocks: half of its states,
    /// and the others behind them.
    fn append_to_blocks(&self, codec: &dyn BlockCodec) {
        for (name, bytes) in self.blocks() {
            let states: Vec<(u32, BlockState)> = codec.decode(&bytes).unwrap().iter().collect();
            let (first, rest) = states.split_at(states.len() / 2);
            let mut block = Block::new(codec.capacity());
            for (offset, state) in first {
                block.raise(*offset, *state);
            }
            let appended = codec.encode_append(rest).unwrap();
            let value = [&codec.encode(&block)[..], &[0; 8], &appended].concat().into();
            self.0.lock().0.get_mut(&name).unwrap().value = value;
        }
    }

    /// All documents: text as it is, other values in hexadecimal.
    fn dump(&self) -> String {
        let text = |value: &Bytes| match std::str::from_utf8(value) {
            Ok(text) => text.to_owned(),
            Err(_) => value.iter().fold("hex:".to_owned(), |hex, byte| format!("{hex}{byte:02x}")),
        };
        let documents: BTreeMap<String, String> =
            self.0.lock().0.iter().map(|(key, found)| (key.clone(), text(&found.value))).collect();
        serde_json::to_string_pretty(&documents).unwrap()
    }
}

fn expect(found: Option<&Versioned<Bytes>>, version: Version) -> Result<()> {
    if found.is_some_and(|found| found.version == version) {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Conflict, "the document has another version or is gone"))
}

#[async_trait]
impl CacheStore for Shelf {
    fn info(&self) -> StoreInfo {
        let capabilities =
            Capabilities { native_commit: false, notify: false, expiry: false, persistent: false, max_value: 20 << 20 };
        StoreInfo { scheme: "shelf", name: "shelf:".to_owned(), capabilities }
    }

    async fn get(&self, key: &CacheKey) -> Result<Option<Versioned<Bytes>>> {
        Ok(self.0.lock().0.get(&key.canonical("_cache")).cloned())
    }

    async fn insert(&self, key: &CacheKey, value: Bytes, _expiry: Expiry) -> Result<Version> {
        let insert = |found: Option<&_>| match found {
            None => Ok((Some(value), ())),
            Some(_) => Err(Error::new(ErrorKind::AlreadyExists, "there is such a document")),
        };
        Ok(self.change(key, insert)?.1)
    }

    async fn replace(&self, key: &CacheKey, value: Bytes, expected: Version, _expiry: Expiry) -> Result<Version> {
        Ok(self.change(key, |found| expect(found, expected).map(|()| (Some(value), ())))?.1)
    }

    async fn remove(&self, key: &CacheKey, expected: Option<Version>) -> Result<()> {
        self.change(key, |found| expected.map_or(Ok(()), |expected| expect(found, expected)).map(|()| (None, ()))).map(drop)
    }

    async fn increment(&self, key: &CacheKey, by: u64) -> Result<u64> {
        let increment = |found: Option<&Versioned<Bytes>>| {
            let text = found.map_or("0", |found| std::str::from_utf8(&found.value).unwrap());
            let then = text.parse::<u64>().unwrap() + by;
            Ok((Some(Bytes::from(then.to_string())), then))
        };
        Ok(self.change(key, increment)?.0)
    }

    async fn ping(&self) -> Result<Duration> {
        Ok(Duration::ZERO)
    }
}

impl Shelf {
    /// The cache of a fixture.
    fn of(path: &Path) -> Arc<Self> {
        let mut text = String::new();
        flate2::read::GzDecoder::new(std::fs::File::open(path).unwrap()).read_to_string(&mut text).unwrap();
        let documents: BTreeMap<String, String> = serde_json::from_str(&text).unwrap();
        let byte = |digits: &[u8]| u8::from_str_radix(std::str::from_utf8(digits).unwrap(), 16).unwrap();
        let bytes = |text: String| match text.strip_prefix("hex:") {
            Some(hex) => hex.as_bytes().chunks(2).map(byte).collect::<Vec<_>>().into(),
            None => Bytes::from(text),
        };
        let versioned = |(at, (key, text)): (usize, (String, String))| {
            (key, Versioned { value: bytes(text), version: Version(at as u64 + 1) })
        };
        let last = documents.len() as u64;
        Arc::new(Shelf(Mutex::new((documents.into_iter().enumerate().map(versioned).collect(), last))))
    }
}

/// Small limits, so that a small cache has documents of each kind.
fn config() -> WriterConfig {
    serde_json::from_str(
        r#"{"max_batch":16,"ring":8,"max_in_flight":2,"list_changes":0,"block_capacity":64,"supersession":"pointers"}"#,
    )
    .unwrap()
}

/// Early builds of version 3 wrote new caches with the codec `adaptive`.
fn config_with(codec: &str) -> WriterConfig {
    let mut config = config();
    config.codec = codec.to_owned();
    config
}

/// The events of a recorded gateway, as builds of the version read them.
fn recorded(version: u32, count: usize) -> Vec<Mutation> {
    let recording = Recording::read("testdata/gateway/mutations-inline.ndjson.gz").unwrap();
    let mut events = recording.mutations[..count].to_vec();
    let late = events.remove(60);
    events.insert(180, late);
    if version >= 3 {
        // Batch records are relative to a list of what is missing.
        let mut nth = 0;
        events.retain(|_| {
            nth += 1;
            nth % 40 > 0
        });
    }
    if version >= 2 {
        // Version 1 has no collections.
        for mutation in &mut events {
            if !mutation.key.starts_with(b"_sync:") && mutation.partition.0 % 2 == 1 {
                mutation.collection = 8;
            }
        }
    }
    events
}

fn following() -> Following {
    let source = CacheSource { feed: FeedIdentity::new(FEED).with_instance("i"), database: DatabaseIdentity::default() };
    Following::from(FEED).with_source(source)
}

async fn write(store: Arc<dyn CacheStore>, version: u32, codec: &str, events: &[Mutation]) -> Writer {
    let mut writer = Writer::alone(store, Arc::new(GatewayDecoder::default()), following(), config_with(codec)).await.unwrap();
    let names = FeedEvent::CollectionNames(vec![(0, "_default._default".into()), (8, "s.c".into())]);
    if version >= 2 {
        writer.process(vec![names].into()).await.unwrap();
    }
    for part in events.chunks(100) {
        writer.process(part.iter().cloned().map(FeedEvent::Mutation).collect::<Vec<_>>().into()).await.unwrap();
        writer.finish().await.unwrap();
    }
    writer
}

async fn open(store: &Arc<dyn CacheStore>) -> ReaderNode {
    ReaderNode::open(store.clone(), ReaderConfig::default()).await.unwrap()
}

/// The answers of the cache for the star channel, and for one channel.
async fn answers(reader: &ReaderNode) -> Vec<String> {
    let known = reader.collections().await.unwrap();
    let mut answers = Vec::new();
    for name in ["*", "ch000", "ch001"] {
        let channels: Vec<Channel> = known.used().map(|id| Channel::of(id, name).unwrap()).collect();
        let answer = reader.changes(&channels, &ChangesOptions::new()).await.unwrap().answer();
        answers.push(serde_json::to_string(&answer).unwrap());
    }
    answers
}

async fn assert_clean(store: &Arc<dyn CacheStore>) {
    let options = {
        let mut options = VerifyOptions::default();
        options.feed = Some(FEED.to_owned());
        options
    };
    let report = verify(store.as_ref(), &options).await.unwrap();
    assert!(report.is_clean() && report.rows > 100, "{report:?}");
}

async fn stored<T>(store: &Arc<dyn CacheStore>, key: CacheKey, read: impl FnOnce(&[u8]) -> Result<T>) -> T {
    read(&store.get(&key).await.unwrap().unwrap().value).unwrap()
}

fn path(name: &str) -> PathBuf {
    PathBuf::from(format!("testdata/formats/{name}.json.gz"))
}

/// Writes a cache of this version down, if asked to. Each of these texts is in it.
fn write_down(shelf: &Shelf, name: &str, parts: &[&str]) {
    let dump = shelf.dump();
    for part in parts {
        assert!(dump.contains(part), "{part}");
    }
    if std::env::var_os("SLUICEGATE_WRITE_FORMAT").is_some() {
        let file = std::fs::File::create(path(name)).unwrap();
        let mut out = flate2::write::GzEncoder::new(file, flate2::Compression::best());
        std::io::Write::write_all(&mut out, dump.as_bytes()).unwrap();
        out.finish().unwrap();
    }
}

/// A feed of a bucket that is there already, vbucket by vbucket.
#[derive(Debug)]
struct Backfill {
    events: Vec<Mutation>,
    /// Whether that is all that the bucket has. Otherwise the feed does not go on after it.
    is_all: bool,
}

impl Backfill {
    /// The first `count` events. A few of them have the sequence of another document.
    fn new(count: usize) -> Self {
        let mut events = recorded(2, ALL);
        let mut twins: Vec<Mutation> = events.iter().filter(|event| event.key.starts_with(b"d")).step_by(50).cloned().collect();
        for (twin, seqno) in twins.iter_mut().zip(1..) {
            // No recorded document is in this vbucket.
            (twin.partition, twin.seqno) = (PartitionId(0), PartitionSeqno(seqno));
            twin.key = format!("twin{seqno}").into_bytes().into();
        }
        events.extend(twins);
        events.sort_by_key(|event| (event.partition, event.seqno));
        events.truncate(count);
        Backfill { events, is_all: count == usize::MAX }
    }
}

#[async_trait]
impl Feed for Backfill {
    fn info(&self) -> FeedInfo {
        let capabilities = FeedCapabilities { positions: true, finite: true, ..FeedCapabilities::default() };
        FeedInfo { scheme: "fixture", name: FEED.to_owned(), partitions: 1_024, capabilities }
    }

    async fn open(&self, start: FeedStart) -> Result<FeedStream> {
        let positions = match start {
            FeedStart::At(position) => position.partitions,
            _ => BTreeMap::new(),
        };
        let is_new = |event: &&Mutation| positions.get(&event.partition).is_none_or(|at| event.seqno.0 > at.seqno);
        let mut events: Vec<FeedEvent> = self.events.iter().filter(is_new).cloned().map(FeedEvent::Mutation).collect();
        events.insert(0, FeedEvent::CollectionNames(vec![(0, "_default._default".into()), (8, "s.c".into())]));
        events.extend(self.is_all.then_some(FeedEvent::CaughtUp));
        let batches: Vec<Result<FeedBatch>> = events.chunks(100).map(|some| Ok(some.to_vec().into())).collect();
        let batches = futures::stream::iter(batches);
        if self.is_all {
            return Ok(batches.boxed());
        }
        Ok(batches.chain(futures::stream::pending()).boxed())
    }
}

/// Reads the backfill to its end, or until it does not go on.
async fn build(store: Arc<dyn CacheStore>, feed: &Backfill) -> Writer {
    let mut writer = Writer::alone(store, Arc::new(GatewayDecoder::default()), following(), config()).await.unwrap();
    let mut progress = writer.progress();
    let is_over = async {
        if feed.is_all {
            std::future::pending::<()>().await;
        }
        progress.wait_for(|progress| progress.stats.received == feed.events.len() as u64).await.unwrap();
    };
    writer.run(feed, is_over).await.unwrap();
    writer
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_of_this_version_can_be_written_down() {
    for (name, codec) in [("v3", Adaptive::NAME), ("v3-log", Log::NAME)] {
        let shelf = Arc::new(Shelf::default());
        write(shelf.clone(), FORMAT_VERSION, codec, &recorded(FORMAT_VERSION, HELD)).await;
        if codec == Log::NAME {
            shelf.append_to_blocks(codec_named(codec, config().block_capacity).unwrap().as_ref());
        }
        let missing = ["_cache:_missing:[0]", "_cache:_missing:[1]", r#"\"base\":"#];
        let codec = format!(r#"\"codec\":\"{codec}\""#);
        write_down(
            &shelf,
            name,
            &[&["_cache:_collections", "_cache:[8:*]:block[0]", "_cache:_intent", &codec][..], &missing].concat(),
        );
    }

    let shelf = Arc::new(Shelf::default());
    build(shelf.clone(), &Backfill::new(HELD)).await;
    write_down(&shelf, "v3-building", &[r#"\"arrived\":"#, r#"\"slot\":"#, r#"\"unmarked\":"#]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_of_version_3_that_is_being_built_is_gone_on_with() {
    let whole = Arc::new(MemoryStore::new()) as Arc<dyn CacheStore>;
    let all = Backfill::new(usize::MAX);
    build(whole.clone(), &all).await;
    let expected = answers(&open(&whole).await).await;

    let store = Shelf::of(&path("v3-building")) as Arc<dyn CacheStore>;
    let clock = stored(&store, CacheKey::Clock, PublishedClock::from_bytes).await;
    assert_eq!((clock.format, clock.building.is_some()), (3, true));
    let checkpoint = stored(&store, CacheKey::Checkpoint(FEED.to_owned()), Checkpoint::from_bytes).await;
    assert!(checkpoint.sequencer.arrived.len() > 100, "{:?}", checkpoint.sequencer);
    let refused = open(&store).await.changes(&[Channel::star()], &ChangesOptions::new()).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unavailable);

    let writer = build(store.clone(), &all).await;
    assert_eq!(writer.stats().received, (all.events.len() - HELD) as u64);
    assert_eq!((writer.clock().format, writer.clock().building), (FORMAT_VERSION, None));
    assert_eq!(answers(&open(&store).await).await, expected);
    assert_clean(&store).await;
}

async fn a_cache_is_read_and_gone_on_with(version: u32, name: &str) {
    let held = Arc::new(MemoryStore::new()) as Arc<dyn CacheStore>;
    let all = Arc::new(MemoryStore::new()) as Arc<dyn CacheStore>;
    write(held.clone(), version, Log::NAME, &recorded(version, HELD)).await;
    write(all.clone(), version, Log::NAME, &recorded(version, ALL)).await;
    let (expected, expected_then) = (answers(&open(&held).await).await, answers(&open(&all).await).await);

    let store = Shelf::of(&path(name)) as Arc<dyn CacheStore>;
    assert_eq!(stored(&store, CacheKey::Clock, PublishedClock::from_bytes).await.format, version);
    let reader = open(&store).await;
    assert_eq!(answers(&reader).await, expected);
    assert_clean(&store).await;

    // The feed continues at the position, and earlier events do not come again.
    let position = stored(&store, CacheKey::Checkpoint(FEED.to_owned()), Checkpoint::from_bytes).await.position;
    let rest: Vec<Mutation> = recorded(version, ALL)
        .into_iter()
        .filter(|mutation| position.partitions.get(&mutation.partition).is_none_or(|at| mutation.seqno.0 > at.seqno))
        .collect();
    assert!(rest.len() < ALL - HELD + 100, "{}", rest.len());
    let writer = write(store.clone(), version, Log::NAME, &rest).await;
    assert_eq!(writer.clock().format, FORMAT_VERSION);
    let meta = stored(&store, CacheKey::Meta, Meta::from_bytes).await;
    assert_eq!((meta.format, meta.source.as_ref()), (FORMAT_VERSION, following().source()));
    reader.wait_for_batch(writer.clock().batch).await.unwrap();
    assert_eq!(answers(&reader).await, expected_then, "the reader that was open all the time");
    assert_eq!(answers(&open(&store).await).await, expected_then);
    assert_clean(&store).await;
    if version >= 2 {
        assert_eq!(reader.collections().await.unwrap().find("s.c"), Some(CollectionId(8)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_of_version_1_is_read_and_gone_on_with() {
    a_cache_is_read_and_gone_on_with(1, "v1").await;
}

/// Version 1 stored the documents of all collections as those of the default one. Those of a named
/// collection would be shown twice, or in no collection of theirs.
#[tokio::test(flavor = "multi_thread")]
async fn a_cache_of_version_1_takes_no_documents_of_named_collections() {
    let store = Shelf::of(&path("v1")) as Arc<dyn CacheStore>;
    let before = answers(&open(&store).await).await;
    let mut mutation = recorded(1, ALL).pop().unwrap();
    assert!(mutation.key.starts_with(b"d"));
    mutation.collection = 8;
    // Also a writer that finds the cache upgraded.
    for _ in 0..2 {
        let mut writer = Writer::alone(store.clone(), Arc::new(GatewayDecoder::default()), following(), config()).await.unwrap();
        let refused = writer.process(vec![FeedEvent::Mutation(mutation.clone())].into()).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConfigInvalid);
        let told = format!("{refused:#} {refused:?}");
        assert!(told.contains("another namespace") && told.contains("collection 8"), "{told}");
    }
    assert_eq!(answers(&open(&store).await).await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_of_version_2_is_read_and_gone_on_with() {
    a_cache_is_read_and_gone_on_with(2, "v2").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_of_version_3_is_read_and_gone_on_with() {
    a_cache_is_read_and_gone_on_with(3, "v3").await;
    a_cache_is_read_and_gone_on_with(3, "v3-log").await;
    let codec = codec_named(Log::NAME, config().block_capacity).unwrap();
    let blocks = Shelf::of(&path("v3-log")).blocks();
    let is_appended = |bytes: &Bytes| codec.encode(&codec.decode(bytes).unwrap()).len() < bytes.len();
    assert!(blocks.len() > 100 && blocks.iter().all(|(_, bytes)| is_appended(bytes)), "{} blocks", blocks.len());
}
