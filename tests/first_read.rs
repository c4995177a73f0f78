//! The first read of a bucket that is there already: partition after partition, so that sequences
//! come in any order.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt as _;
use serde_json::json;
use sluicegate::changes::ChangesOptions;
use sluicegate::core::batch::Checkpoint;
use sluicegate::core::engine::PendingRun;
use sluicegate::core::verify::{VerifyOptions, verify};
use sluicegate::feed::{FeedIdentity, FeedInfo};
use sluicegate::reader::WhileBuilding;
use sluicegate::store::Expiry;
use sluicegate::{
    CacheKey, CacheStore, Channel, ErrorKind, Feed, FeedStart, FeedStream, GatewayDecoder, Mutation, PartitionId, PublishedClock,
    ReaderConfig, ReaderNode, Result, SequenceRange, Writer, WriterConfig,
};
use sluicegate_replay::MemoryFeed;
use sluicegate_testkit::plain::PlainStore;
use sluicegate_testkit::{CrashPoint, FaultStore, Faults, PausingFeed, Step, When};

/// Documents of so many partitions, each partition's after those of the one before. `is_left_out`
/// says which sequences never come.
fn bucket(documents: u64, partitions: u64, is_left_out: impl Fn(u64) -> bool) -> Vec<Mutation> {
    let mut mutations = Vec::new();
    for partition in 0..partitions {
        for sequence in (1..=documents).filter(|sequence| sequence % partitions == partition && !is_left_out(*sequence)) {
            let metadata = json!({"rev": "1-a", "sequence": sequence, "recent_sequences": [sequence], "channels": {"a": null}});
            let mutation = Mutation::new(format!("d{sequence}"), json!({"_sync": metadata}).to_string());
            mutations.push(Mutation { cas: sequence << 16, partition: PartitionId(partition as u16), ..mutation });
        }
    }
    mutations
}

fn feed(mutations: Vec<Mutation>) -> MemoryFeed {
    MemoryFeed::new("bucket", mutations).with_batch(10).unwrap()
}

/// A feed that waits for more at its end.
#[derive(Debug)]
struct Live(MemoryFeed);

#[async_trait]
impl Feed for Live {
    fn info(&self) -> FeedInfo {
        self.0.info()
    }
    fn identity(&self) -> FeedIdentity {
        self.0.identity()
    }
    async fn open(&self, start: FeedStart) -> Result<FeedStream> {
        Ok(self.0.open(start).await?.chain(futures::stream::pending()).boxed())
    }
}

async fn writer(store: &Arc<dyn CacheStore>, hold_first_read: bool) -> Writer {
    let mut config: WriterConfig = serde_json::from_value(json!({"max_batch": 20, "max_pending": 5})).unwrap();
    (config.checkpoint_interval_ms, config.hold_first_read) = (1, hold_first_read);
    Writer::alone(store.clone(), Arc::new(GatewayDecoder::default()), "bucket", config).await.unwrap()
}

fn store() -> Arc<dyn CacheStore> {
    Arc::new(PlainStore::new())
}

async fn reader(store: &Arc<dyn CacheStore>, while_building: WhileBuilding) -> ReaderNode {
    let mut config = ReaderConfig::default();
    config.while_building = while_building;
    ReaderNode::open(store.clone(), config).await.unwrap()
}

async fn rows(reader: &ReaderNode) -> Result<Vec<u64>> {
    let changes = reader.changes(&[Channel::new("a").unwrap()], &ChangesOptions::new()).await?;
    Ok(changes.answer().rows.iter().map(|row| row.id.sequence.0).collect())
}

#[tokio::test(start_paused = true)]
async fn nothing_is_late_or_skipped_in_whatever_order_sequences_come() {
    for (hold, is_late) in [(true, false), (false, true)] {
        let store = store();
        let mut writer = writer(&store, hold).await;
        writer.run(&feed(bucket(2_000, 64, |_| false)), std::future::pending()).await.unwrap();
        let (stats, clock) = (writer.stats(), writer.clock().clone());
        assert_eq!((stats.late > 0, stats.skipped > 0), (is_late, is_late), "hold_first_read {hold}");
        assert_eq!((clock.stable.0, clock.building), (2_000, None));
        let answer = rows(&reader(&store, WhileBuilding::Refuse).await).await.unwrap();
        assert_eq!(answer, (1..=2_000).collect::<Vec<_>>());
    }
}

#[tokio::test(start_paused = true)]
async fn readers_refuse_requests_or_show_what_is_complete_until_the_cache_is_built() {
    let store = store();
    // Sequence 1 comes in the second partition, so nothing is complete before it.
    let bucket = feed(bucket(400, 4, |_| false));
    let paused = PausingFeed::new(Arc::new(bucket));
    let mut pause = paused.pause_at(25);
    let mut building = writer(&store, true).await;
    let running = tokio::spawn(async move { building.run(&paused, std::future::pending()).await.map(|_| building) });
    assert!(pause.reached().await);
    tokio::time::sleep(Duration::from_secs(60)).await;

    let refusing = reader(&store, WhileBuilding::Refuse).await;
    let error = rows(&refusing).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    let told = ["percent", "arrived", "expected"].map(|name| error.context(name).unwrap_or_default());
    assert_eq!(told, ["60", "240", "400"], "{error}");
    let showing = reader(&store, WhileBuilding::Show).await;
    assert_eq!(rows(&showing).await.unwrap(), [1, 2], "3 is of the last partition");

    let waiting = tokio::spawn({
        let refusing = refusing.clone();
        async move { refusing.ready().await.map(|cut| cut.stable.0) }
    });
    pause.resume();
    let writer = running.await.unwrap().unwrap();
    assert_eq!((writer.stats().late, writer.clock().building), (0, None));
    assert_eq!(waiting.await.unwrap().unwrap(), 400);
    for reader in [refusing, showing] {
        reader.wait_for_batch(writer.clock().batch).await.unwrap();
        assert_eq!(rows(&reader).await.unwrap(), (1..=400).collect::<Vec<_>>());
    }
}

#[tokio::test(start_paused = true)]
async fn a_writer_that_is_killed_in_the_first_read_is_followed_by_one_that_goes_on() {
    let store = store();
    let bucket = bucket(1_000, 16, |_| false);
    let (mut received, mut terms) = (0, 0);
    loop {
        terms += 1;
        let paused = PausingFeed::new(Arc::new(feed(bucket.clone())));
        let mut pause = paused.pause_at(15);
        let mut killed = writer(&store, true).await;
        let ended = tokio::select! {
            ended = killed.run(&paused, std::future::pending()) => { ended.unwrap(); true }
            // What has been read is stored, with a checkpoint.
            () = async { assert!(pause.reached().await); tokio::time::sleep(Duration::from_secs(5)).await } => false,
        };
        received += killed.stats().received;
        assert_eq!((killed.stats().late, killed.stats().skipped), (0, 0));
        if ended {
            assert_eq!((killed.clock().stable.0, killed.clock().building), (1_000, None));
            break;
        }
        assert!(killed.clock().building.is_some());
    }
    assert!(terms > 5 && received < 1_400, "{received} events in {terms} terms");
    assert_eq!(rows(&reader(&store, WhileBuilding::Refuse).await).await.unwrap(), (1..=1_000).collect::<Vec<_>>());
}

/// Documents that have left two channels, each with three sequences in a row.
fn moved(documents: u64, partitions: u64) -> Vec<Mutation> {
    let mutation = |n: u64| {
        let (first, partition) = (3 * n - 2, PartitionId((n % partitions) as u16));
        let left = |by: u64| json!({"seq": first + by, "rev": format!("{}-a", by + 1)});
        let metadata = json!({
            "rev": "3-a", "sequence": first + 2, "recent_sequences": [first, first + 1, first + 2],
            "channels": {"a": null, "x": left(0), "y": left(1)},
        });
        let mutation = Mutation::new(format!("d{n}"), json!({"_sync": metadata}).to_string());
        Mutation { cas: n << 16, partition, ..mutation }
    };
    let mut mutations: Vec<Mutation> = (1..=documents).map(mutation).collect();
    mutations.sort_by_key(|mutation| mutation.partition);
    mutations
}

/// The writer would keep all entries in memory otherwise, up to the end of the first read.
#[tokio::test(start_paused = true)]
async fn marks_do_not_wait_in_a_first_read_that_goes_on_after_a_commit_was_cut_off() {
    let plain = Arc::new(PlainStore::new());
    let store: Arc<dyn CacheStore> = plain.clone();
    let bucket = moved(1_000, 16);
    let faulty = Arc::new(FaultStore::new(plain, 1, Faults::none()));
    faulty.crash_at(CrashPoint { step: Step::BatchRecord, when: When::Before, nth: 10 });
    let mut killed = writer(&(faulty as Arc<dyn CacheStore>), true).await;
    let cut_off = killed.run(&feed(bucket.clone()), std::future::pending()).await.unwrap_err();
    assert_eq!(cut_off.kind(), ErrorKind::Closed, "{cut_off:?}");
    drop(killed);

    let paused = PausingFeed::new(Arc::new(feed(bucket)));
    let mut pause = paused.pause_at(80);
    let mut next = writer(&store, true).await;
    let running = tokio::spawn(async move { next.run(&paused, std::future::pending()).await.map(|_| next) });
    assert!(pause.reached().await);
    tokio::time::sleep(Duration::from_secs(5)).await;
    let stored = store.get(&CacheKey::Checkpoint("bucket".to_owned())).await.unwrap().unwrap();
    let checkpoint = Checkpoint::from_bytes(&stored.value).unwrap();
    let (arrived, unmarked) = (checkpoint.sequencer.arrived.len(), checkpoint.unmarked.unwrap());
    assert!(arrived > 2_000, "the checkpoint has {arrived} sequences only");
    assert!(unmarked.len() < 300, "the marks of {} documents wait", unmarked.len());
    pause.resume();
    let next = running.await.unwrap().unwrap();
    assert_eq!((next.clock().stable.0, next.clock().gaps, next.clock().late), (3_000, 0, 0));
    let all: Vec<u64> = (1..=1_000).map(|n| 3 * n).collect();
    assert_eq!(rows(&reader(&store, WhileBuilding::Refuse).await).await.unwrap(), all);
    let report = verify(store.as_ref(), &VerifyOptions::default().feed("bucket")).await.unwrap();
    assert!(report.is_clean(), "{report:#?}");
}

/// Rewrites the checkpoint as a build of format version 2 has stored it: what has arrived is in
/// pending runs.
async fn as_version_2(store: &Arc<dyn CacheStore>) {
    let key = CacheKey::Checkpoint("bucket".to_owned());
    let stored = store.get(&key).await.unwrap().unwrap();
    let mut checkpoint = Checkpoint::from_bytes(&stored.value).unwrap();
    let arrived = std::mem::take(&mut checkpoint.sequencer.arrived);
    assert!(arrived.len() > 50, "{checkpoint:?}");
    let run = |range: SequenceRange| PendingRun { range, count: range.count(), age_ms: 0 };
    checkpoint.sequencer.pending.extend(arrived.ranges().map(run));
    checkpoint.sequencer.pending.sort_by_key(|run| run.range);
    checkpoint.unmarked = None;
    store.replace(&key, checkpoint.to_bytes(), stored.version, Expiry::Never).await.unwrap();
    let stored = store.get(&CacheKey::Clock).await.unwrap().unwrap();
    let clock = PublishedClock { format: 2, ..PublishedClock::from_bytes(&stored.value).unwrap() };
    store.replace(&CacheKey::Clock, clock.to_bytes(), stored.version, Expiry::Never).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_first_read_that_a_build_of_version_2_has_begun_goes_on() {
    let store = store();
    let mut bucket = bucket(400, 16, |_| false);
    // No two sequences in a row.
    bucket.sort_by_key(|mutation| mutation.partition.0 % 2);
    let paused = PausingFeed::new(Arc::new(feed(bucket.clone())));
    let mut pause = paused.pause_at(15);
    let mut killed = writer(&store, true).await;
    tokio::select! {
        ended = killed.run(&paused, std::future::pending()) => panic!("{ended:?}"),
        () = async { assert!(pause.reached().await); tokio::time::sleep(Duration::from_secs(5)).await } => {}
    }
    drop(killed);
    as_version_2(&store).await;
    let mut next = writer(&store, true).await;
    next.run(&feed(bucket), std::future::pending()).await.unwrap();
    assert_eq!((next.clock().stable.0, next.clock().gaps, next.clock().late), (400, 0, 0));
    assert_eq!(rows(&reader(&store, WhileBuilding::Refuse).await).await.unwrap(), (1..=400).collect::<Vec<_>>());
}

/// What the bucket does not have is waited for as long as usual after the feed has caught up, since
/// a gateway may just be writing it.
#[tokio::test(start_paused = true)]
async fn sequences_that_never_come_are_skipped_once_the_feed_has_caught_up() {
    let store = store();
    let left_out = Live(feed(bucket(200, 8, |sequence| sequence % 50 == 7)));
    let mut building = writer(&store, true).await;
    let progress = building.progress();
    let running = tokio::spawn(async move { building.run(&left_out, std::future::pending()).await });
    tokio::time::sleep(Duration::from_millis(4_900)).await;
    assert!(progress.borrow().clock.building.is_some());
    let waiting = reader(&store, WhileBuilding::Refuse).await;
    let cut = waiting.ready().await.unwrap();
    assert!(cut.has_gaps && cut.stable.0 == 6);
    assert_eq!(rows(&waiting).await.unwrap().len(), 196);
    let record = store.get(&CacheKey::Clock).await.unwrap().unwrap();
    assert!(!String::from_utf8_lossy(&record.value).contains("building"));
    running.abort();
}
