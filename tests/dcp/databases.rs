//! Several databases in one bucket, served by one process from one feed, in trouble: each cache
//! must answer what the bucket has.
//!
//! How many documents a database has, and which seeds: the environment variables
//! `SLUICEGATE_TEST_DOCUMENTS` and `SLUICEGATE_TEST_SEEDS`. See the README.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sluicegate::changes::{ChangesOptions, Delivery};
use sluicegate::core::batch::Checkpoint;
use sluicegate::core::engine::WriterStats;
use sluicegate::core::missing::LastBatch;
use sluicegate::core::verify::{VerifyOptions, verify};
use sluicegate::decode::GatewayOptions;
use sluicegate::feed::SharedFeed;
use sluicegate::pointer::Supersession;
use sluicegate::writer::Ended;
use sluicegate::{
    CacheKey, CacheStore, Channel, CollectionId, Feed, GatewayDecoder, PartitionId, ReaderConfig, ReaderNode, Result, Sequence,
    WriterConfig, WriterNode, WriterStatus,
};
use sluicegate_simulator::{Cluster, ClusterConfig};
use sluicegate_testkit::PausingFeed;
use sluicegate_testkit::model::AnswerRow;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use super::support::seeds::{are_usual, campaign};
use super::support::{Kind, on_every_store};
use super::traffic::{CHANNELS, Database, Manners, Traffic};
use super::{PASSWORD, clock, feed};

const VBUCKETS: u16 = 64;

/// Keys of each collection where nobody says how many.
const KEYS: usize = 40;

/// Longest time in which all is taken that there is.
const PATIENCE: Duration = Duration::from_secs(120);

/// The most sequences that may be missing where the server leaves out changes.
const MOST_MISSING: usize = 16;

/// Slots of the ring of batch records.
const RING: u64 = 16;

/// Collections of all databases.
const COLLECTIONS: usize = 5;

/// The writers of all databases in one process, and what they are doing.
struct Serving {
    statuses: Vec<watch::Receiver<WriterStatus>>,
    writers: Vec<AbortOnDropHandle<Result<Ended>>>,
}

impl Serving {
    /// Serves the databases from one feed.
    fn start(databases: &[Database], stores: &[Arc<dyn CacheStore>], feed: Arc<dyn Feed>, config: &WriterConfig) -> Self {
        let territories = databases.iter().map(|database| database.config.territory(database.name)).collect();
        let mut serving = Serving { statuses: Vec::new(), writers: Vec::new() };
        for ((shared, database), store) in SharedFeed::split(feed, territories).into_iter().zip(databases).zip(stores) {
            let decoder = database.config.decoder(database.name, &GatewayOptions::default()).unwrap();
            let node = WriterNode::new(store.clone(), Arc::new(shared))
                .with_decoder(Arc::new(GatewayDecoder::new(&decoder)))
                .with_database(database.config.identity(database.name))
                .with_config(config.clone());
            serving.statuses.push(node.status());
            serving.writers.push(AbortOnDropHandle::new(tokio::spawn(async move { node.run(std::future::pending()).await })));
        }
        serving
    }

    /// Waits until each writer has begun to write.
    async fn has_begun(&mut self) {
        for status in &mut self.statuses {
            status.wait_for(|status| status.takeovers > 0).await.unwrap();
        }
    }

    /// Waits until the feed has ended, and says what the writers have seen.
    async fn ended(&mut self) -> WriterStats {
        for writer in &mut self.writers {
            writer.await.unwrap().unwrap();
        }
        self.stats()
    }

    fn stats(&self) -> WriterStats {
        let mut sum = WriterStats::default();
        self.statuses.iter().for_each(|status| sum += status.borrow().stats);
        sum
    }
}

/// A bucket with its databases, and where their caches are.
struct Scene<'a> {
    cluster: &'a Cluster,
    traffic: Traffic<'a>,
    stores: Vec<Arc<dyn CacheStore>>,
    options: &'static str,
    /// Whether the server leaves out changes.
    leaves_out: bool,
    config: WriterConfig,
    stats: WriterStats,
}

/// How a bucket is followed.
#[derive(Clone, Copy, Debug)]
struct Way {
    /// More options of the feed's URL.
    options: &'static str,
    supersession: Supersession,
    manners: Manners,
}

/// Every change comes that the bucket has: nothing that gateways and others do is left out.
const ALL_CHANGES: Way =
    Way { options: "&history=true", supersession: Supersession::Recents, manners: Manners { only_gateways: false } };

/// The server leaves out all but the last change of a key.
const LAST_CHANGES: Way = Way { options: "", supersession: Supersession::Pointers, manners: Manners { only_gateways: true } };

on_every_store! {
    several_databases_in_trouble_answer_what_the_bucket_has
    several_databases_of_whose_changes_some_are_left_out_answer_what_the_bucket_has
}

async fn several_databases_in_trouble_answer_what_the_bucket_has(kind: Kind) {
    let sums = campaign(1..4, move |seed| in_trouble(kind, way(ALL_CHANGES), seed)).await;
    let are_many = |name: &str| sums[name] > 10;
    assert!(!are_usual() || ["withdrawn", "conflicts", "purged entries", "foreign"].into_iter().all(are_many), "{sums:?}");
}

async fn several_databases_of_whose_changes_some_are_left_out_answer_what_the_bucket_has(kind: Kind) {
    let sums = campaign(1..3, move |seed| in_trouble(kind, way(LAST_CHANGES), seed)).await;
    assert!(!are_usual() || sums["withdrawn"] > 10 && sums["conflicts"] > 10, "{sums:?}");
}

/// With `SLUICEGATE_TEST_ALL_TRAFFIC`, also with traffic of which it is known that not all comes
/// out right.
fn way(way: Way) -> Way {
    if std::env::var_os("SLUICEGATE_TEST_ALL_TRAFFIC").is_some() { Way { manners: Manners::default(), ..way } } else { way }
}

/// Keys of each collection.
fn keys() -> usize {
    super::wanted(0).div_ceil(COLLECTIONS).max(KEYS)
}

async fn bucket(seed: u64) -> Cluster {
    let mut config = ClusterConfig::default();
    (config.nodes, config.vbuckets, config.replicas, config.seed) = (3, VBUCKETS, 1, seed);
    (config.memory_items, config.retains_history) = (50, true);
    (config.user, config.password) = ("gateway".to_owned(), sluicegate_simulator::Password::new(PASSWORD));
    Cluster::start(config).await.unwrap()
}

fn config(supersession: Supersession) -> WriterConfig {
    let text = r#"{"max_batch": 50, "max_wait_ms": 200, "checkpoint_interval_ms": 20, "gather_rollbacks_ms": 20, "list_changes": 5,
        "codec": "two-bit", "block_capacity": 256}"#;
    let mut config = serde_json::from_str::<WriterConfig>(text).unwrap().with_supersession(supersession);
    config.ring = RING;
    config
}

/// The process is held up until the server has sent all it may, a node is killed and started again,
/// vbuckets move, the process crashes, another takes over while it still writes, and a third of the
/// vbuckets lose changes: while it follows, and while there is none.
async fn in_trouble(kind: Kind, way: Way, seed: u64) -> Vec<(String, u64)> {
    let (keys, cluster, began) = (keys(), bucket(seed).await, Instant::now());
    cluster.set_faults(|faults| faults.split_percent = 10);
    let traffic = Traffic::new(&cluster, keys, way.manners, seed);
    let mut stores = Vec::new();
    for _ in &traffic.databases {
        stores.push(kind.fresh().await);
    }
    let (options, config) = (way.options, config(way.supersession));
    let (leaves_out, stats) = (!options.contains("history=true"), WriterStats::default());
    let mut scene = Scene { cluster: &cluster, traffic, stores, options, leaves_out, config, stats };
    let some = keys * 10;

    let slow = Arc::new(PausingFeed::new(scene.feed("config_poll_ms=50&buffer=65536").await));
    let mut held = slow.pause_at(3);
    let mut serving = scene.serve_from(slow);
    scene.traffic.act(some);
    assert!(held.reached().await, "the feed ended before it was held");
    scene.traffic.act(some);
    held.resume();

    cluster.kill_node(1);
    scene.traffic.act(some);
    cluster.revive_node(1).await.unwrap();
    scene.traffic.act(some / 2);
    let moves: Vec<(u16, usize)> = (0..VBUCKETS).step_by(5).map(|vbucket| (vbucket, usize::from(vbucket) % 3)).collect();
    cluster.rebalance(&moves);
    scene.traffic.act(some / 2);
    scene.everything_is_taken(&mut serving).await;

    let before = scene.traffic.positions(VBUCKETS);
    scene.traffic.act(some / 2);
    scene.everything_is_taken(&mut serving).await;
    scene.traffic.fail_over(0, &before);
    scene.traffic.act(some / 2);
    scene.crash(serving);

    let before = scene.traffic.positions(VBUCKETS);
    scene.traffic.act(some / 2);
    let mut serving = scene.serve("config_poll_ms=50").await;
    serving.has_begun().await;
    scene.traffic.act(some / 2);
    let mut other = scene.serve("config_poll_ms=50").await;
    other.has_begun().await;
    scene.traffic.act(some / 2);
    scene.crash(serving);
    scene.traffic.fail_over(1, &before);
    scene.traffic.act(some / 2);

    let before = scene.traffic.positions(VBUCKETS);
    scene.traffic.act(some / 2);
    scene.crash(other);
    scene.traffic.fail_over(2, &before);
    scene.traffic.act(some / 4);
    let wrote = began.elapsed();

    // What is given back is no use to a cache that has not been told yet of the loss of what had it
    // before.
    for is_last in [false, true] {
        if is_last {
            scene.traffic.finish();
        }
        let stats = scene.serve("until=now").await.ended().await;
        scene.stats += stats;
    }
    let took = began.elapsed();
    let rows = scene.assert_answers(&format!("{kind:?}, {way:?}, seed {seed}")).await;
    let WriterStats { received, withdrawn, conflicts, purged_entries, foreign, late, .. } = scene.stats;
    println!(
        "{kind:?}, seed {seed}: written within {wrote:.1?}, all stored within {took:.1?}, {rows} rows checked after {:.1?}; {:?}",
        began.elapsed(),
        scene.traffic.counts
    );
    let counts = [
        ("received", received),
        ("withdrawn", withdrawn),
        ("conflicts", conflicts),
        ("purged entries", purged_entries),
        ("foreign", foreign),
        ("late", late),
        ("rows", rows),
    ];
    counts.into_iter().map(|(name, count)| (name.to_owned(), count)).collect()
}

impl Scene<'_> {
    async fn feed(&self, options: &str) -> Arc<dyn Feed> {
        feed(self.cluster, &format!("{options}{}", self.options)).await
    }

    async fn serve(&self, options: &str) -> Serving {
        self.serve_from(self.feed(options).await)
    }

    fn serve_from(&self, feed: Arc<dyn Feed>) -> Serving {
        Serving::start(&self.traffic.databases, &self.stores, feed, &self.config)
    }

    /// The process is gone at once, whatever it was doing.
    fn crash(&mut self, serving: Serving) {
        self.stats += serving.stats();
        drop(serving);
    }

    /// Waits until all that the bucket has is taken and put away, purges and rollbacks carried out.
    async fn everything_is_taken(&self, serving: &mut Serving) {
        assert!(tokio::time::timeout(PATIENCE, self.take_everything(serving)).await.is_ok(), "not within {PATIENCE:?}");
    }

    async fn take_everything(&self, serving: &mut Serving) {
        let name = CacheKey::Checkpoint(self.feed("").await.info().checkpoint_name());
        for (store, status) in self.stores.iter().zip(&mut serving.statuses) {
            loop {
                status.borrow_and_update();
                let stored = store.get(&name).await.unwrap().unwrap();
                let position = Checkpoint::from_bytes(&stored.value).unwrap().position;
                let is_taken = |vbucket: u16| {
                    let at = position.partitions.get(&PartitionId(vbucket));
                    let newest = self.cluster.failover_log(vbucket).newest().map(|entry| entry.vbucket_uuid);
                    let high = self.cluster.high_seqno(vbucket);
                    high == 0 || at.is_some_and(|at| at.seqno == high && Some(at.uuid) == newest)
                };
                if (0..VBUCKETS).all(is_taken) {
                    break;
                }
                status.changed().await.unwrap();
            }
        }
    }

    /// That each database's answers are those of the model, and its cache is sound.
    async fn assert_answers(&self, what: &str) -> u64 {
        let mut rows = 0;
        for (number, (database, store)) in self.traffic.databases.iter().zip(&self.stores).enumerate() {
            let what = format!("{what}, database {}", database.name);
            let model = self.traffic.model(number);
            let reader = ReaderNode::open(store.clone(), ReaderConfig::default()).await.unwrap();
            let channel = |name: &str, number: u32| Channel::new(name).unwrap().in_collection(CollectionId(number));
            let names = || CHANNELS.iter().chain(["*"].iter());
            let each = |number: &u32| names().map(|name| vec![channel(name, *number)]).collect::<Vec<_>>();
            let last = clock(store).await;
            assert!(last.high.0 == self.traffic.top(number), "{what}: {last:?}");
            let gaps = LastBatch::read(store.as_ref(), RING, last.clone()).await.unwrap().missing.gaps;
            let missing: BTreeSet<u64> = gaps.iter().flat_map(|gap| gap.range.first().0..=gap.range.last().0).collect();
            // A revision that the feed left out may have a number that another document had, too,
            // until a failover. It is waited for.
            let most = if self.leaves_out { MOST_MISSING } else { 0 };
            let are_old = missing.is_disjoint(&self.traffic.last_revisions(number));
            assert!(missing.len() <= most && are_old, "{what}: {missing:?} are missing, {last:?}");
            let delivery = if last.stable == last.high { Delivery::Strict } else { Delivery::Eager };
            let mut asked: Vec<Vec<Channel>> = database.collections.iter().flat_map(each).collect();
            // Of several channels, and of one name in all collections.
            asked.extend(database.collections.iter().map(|number| vec![channel("a", *number), channel("b", *number)]));
            asked.extend(names().map(|name| database.collections.iter().map(|number| channel(name, *number)).collect()));
            for channels in asked {
                let expected = model.changes(&channels, Sequence::ZERO, None, false);
                let whole = asked_of(&reader, &channels, None, delivery).await;
                assert_same(&whole, &expected, &format!("{what}, {channels:?}"));
                let pages = asked_of(&reader, &channels, Some(7), delivery).await;
                assert_same(&pages, &expected, &format!("{what}, {channels:?}, in pages"));
                rows += whole.len() as u64;
            }
            let feed = self.feed("").await.info().checkpoint_name();
            let report = verify(store.as_ref(), &VerifyOptions::default().feed(feed)).await.unwrap();
            assert!(report.is_clean(), "{what}: {report:#?}");
        }
        rows
    }
}

/// The rows of an answer, whole or in pages. Documents with one sequence come in any order.
async fn asked_of(reader: &ReaderNode, channels: &[Channel], limit: Option<usize>, delivery: Delivery) -> Vec<AnswerRow> {
    let mut options = ChangesOptions::new().delivery(delivery);
    let mut rows = Vec::new();
    loop {
        let asked = if let Some(limit) = limit { options.clone().limit(limit) } else { options.clone() };
        let answer = reader.changes(channels, &asked).await.unwrap().answer();
        rows.extend(answer.rows.iter().map(|row| {
            let mut removed: Vec<String> = row.removed.iter().map(|channel| channel.name().to_owned()).collect();
            removed.sort_unstable();
            removed.dedup();
            let entry = &row.entry;
            (row.id.sequence, entry.key().to_owned(), entry.revision().to_owned(), row.deleted, removed)
        }));
        if limit.is_none() || answer.rows.is_empty() {
            break;
        }
        options = options.since(answer.last.sequence);
    }
    rows.sort_unstable();
    rows
}

#[track_caller]
fn assert_same(found: &[AnswerRow], expected: &[AnswerRow], what: &str) {
    let mut expected = expected.to_vec();
    expected.sort_unstable();
    let lacks: Vec<_> = expected.iter().filter(|row| !found.contains(row)).collect();
    let more: Vec<_> = found.iter().filter(|row| !expected.contains(row)).collect();
    assert!(found == expected, "{what}: it lacks {lacks:?}, and has {more:?} instead");
}
