//! Sequences that are allocated twice, or released and used. Each document is shown at its newest
//! revision, and nothing else is shown.

#[path = "support/seeds.rs"]
mod seeds;

use std::collections::BTreeMap;
use std::sync::Arc;

use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::json;
use sluicegate::changes::{ChangesOptions, Delivery};
use sluicegate::core::decode::attributes;
use sluicegate::core::store::Expiry;
use sluicegate::feed::MutationKind;
use sluicegate::pointer::Supersession;
use sluicegate::verify::{VerifyOptions, verify};
use sluicegate::{
    CacheKey, CacheStore, Channel, ErrorKind, GatewayDecoder, Mutation, PartitionId, ReaderConfig, ReaderNode, Result, Sequence,
    Writer, WriterConfig,
};
use sluicegate_replay::MemoryFeed;
use sluicegate_testkit::fault::{CrashPoint, FaultStore, Faults};
use sluicegate_testkit::gateway::Kept;
use sluicegate_testkit::plain::PlainStore;

use seeds::{are_usual, campaign_with_named as campaign, channels, place};

const CHANNELS: [&str; 3] = ["a", "b", "*"];

/// The state of a document in the gateway.
#[derive(Clone, Debug, Default)]
struct Document {
    sequence: u64,
    generation: u32,
    recent: Vec<u64>,
    channel: &'static str,
    /// The channel that it left, with the sequence and the revision.
    left: Option<(&'static str, u64, String)>,
}

/// The rows of each channel: sequence, document, revision.
type Shown = BTreeMap<String, Vec<(u64, String, String)>>;

/// A bucket whose gateways lose their counter now and then.
#[derive(Debug)]
struct World {
    seed: u64,
    rng: ChaCha8Rng,
    counter: u64,
    /// How many sequences are allocated and not used, now and then, besides one.
    gap: u64,
    /// Sequences that were allocated and used.
    used: Vec<u64>,
    cas: u64,
    /// By collection and key.
    documents: BTreeMap<(u32, String), Document>,
    events: Vec<Mutation>,
}

impl World {
    fn new(seed: u64, steps: usize, purges: bool) -> Self {
        World::with(seed, steps, purges, true)
    }

    fn with(seed: u64, steps: usize, purges: bool, reuse: bool) -> Self {
        World::sparse(seed, steps, purges, reuse, 0)
    }

    /// As [`with`](Self::with), where now and then `gap` sequences are allocated and not used.
    fn sparse(seed: u64, steps: usize, purges: bool, reuse: bool, gap: u64) -> Self {
        let rng = ChaCha8Rng::seed_from_u64(seed);
        let (used, documents, events) = (Vec::new(), BTreeMap::new(), Vec::new());
        let mut world = World { seed, rng, counter: 0, gap, used, cas: 1 << 40, documents, events };
        for _ in 0..steps {
            match world.rng.random_range(0..20) {
                0..12 => world.write(false),
                12..15 => world.write(reuse),
                15..18 => world.release(),
                18 if purges => world.purge(),
                _ => world.counter += 1 + gap,
            }
        }
        world
    }

    fn event(&mut self, mutation: Mutation) {
        self.cas += 1;
        let partition = mutation.key.iter().fold(0u16, |sum, byte| sum.wrapping_mul(7).wrapping_add(u16::from(*byte))) % 8;
        self.events.push(Mutation { cas: self.cas, partition: PartitionId(partition), ..mutation });
    }

    /// A write; with a sequence that was allocated before, if `again`.
    fn write(&mut self, again: bool) {
        let (collection, number) = place(self.seed, self.rng.random_range(0..6i32) as usize);
        let (collection, name) = (collection.0, format!("d{number}"));
        let known = self.documents.get(&(collection, name.clone())).cloned().unwrap_or_default();
        let sequence = match again && self.counter > 0 {
            true if self.gap > 0 => self.used.choose(&mut self.rng).copied().unwrap_or(1),
            true => self.rng.random_range(1..=self.counter),
            false => {
                self.counter += 1;
                self.used.push(self.counter);
                self.counter
            }
        };
        if known.recent.contains(&sequence) {
            return;
        }
        let mut recent = known.recent.clone();
        recent.push(sequence);
        let channel = if self.rng.random_bool(0.5) { "a" } else { "b" };
        let (generation, mut channels) = (known.generation + 1, serde_json::Map::new());
        let revision = format!("{generation}-{sequence}");
        channels.insert(channel.to_owned(), json!(null));
        let is_left = !known.channel.is_empty() && known.channel != channel;
        let left = if is_left { Some((known.channel, sequence, revision.clone())) } else { known.left };
        if let Some((name, sequence, revision)) = &left {
            channels.insert((*name).to_owned(), json!({"seq": sequence, "rev": revision}));
        }
        let metadata = json!({"rev": revision, "sequence": sequence, "recent_sequences": recent, "channels": channels});
        self.documents.insert((collection, name.clone()), Document { sequence, generation, recent, channel, left });
        self.event(Mutation { collection, ..Mutation::new(name, json!({"_sync": metadata}).to_string()) });
    }

    /// A marker that releases a sequence: one that was not allocated, or one that was.
    fn release(&mut self) {
        let number = match self.rng.random_bool(0.5) {
            true => self.counter + 1,
            false => self.rng.random_range(1..=self.counter.max(1)),
        };
        self.event(Mutation::new(format!("_sync:unusedSeq:{number}"), ""));
    }

    fn purge(&mut self) {
        let Some(document) = self.documents.keys().nth(self.rng.random_range(0..6)).cloned() else { return };
        self.documents.remove(&document);
        let (collection, name) = document;
        self.event(Mutation { kind: MutationKind::Deletion, collection, ..Mutation::new(name, "") });
    }

    /// Leaves out some events whose key has a later one, as servers do.
    fn leave_out(&mut self) {
        let document = |event: &Mutation| (event.collection, event.key.clone());
        let keys: Vec<_> = self.events.iter().map(document).collect();
        let mut at = 0..;
        let rng = &mut self.rng;
        self.events.retain(|_| {
            let at: usize = at.next().unwrap_or_default();
            !keys[at + 1..].contains(&keys[at]) || rng.random_bool(0.5)
        });
    }

    /// The events as a feed delivers them that leaves out some whose key has a later one. The
    /// others keep their places.
    fn delivered(&mut self, events: &[Mutation]) -> Vec<Mutation> {
        let document = |at: usize| (events[at].collection, &events[at].key);
        let is_last = |at: usize| !(at + 1..events.len()).any(|later| document(later) == document(at));
        let stays = |at: usize, rng: &mut ChaCha8Rng| is_last(at) || rng.random_bool(0.5);
        let left_out = |event: &Mutation| Mutation { partition: event.partition, ..Mutation::new("_sync:left out", "") };
        let event = |(at, event)| if stays(at, &mut self.rng) { Mutation::clone(event) } else { left_out(event) };
        events.iter().enumerate().map(event).collect()
    }

    fn channels(&self) -> Vec<Channel> {
        channels(self.seed, &CHANNELS)
    }

    fn expected(&self) -> Shown {
        let rows = |channel: &Channel| {
            let of_it = self.documents.iter().filter(|((collection, _), document)| {
                channel.collection().0 == *collection && (channel.is_star() || document.channel == channel.name())
            });
            let row = |((_, name), document): (&(u32, String), &Document)| {
                (document.sequence, name.clone(), format!("{}-{}", document.generation, document.sequence))
            };
            let mut rows: Vec<_> = of_it.map(row).collect();
            rows.sort_unstable();
            rows
        };
        self.channels().iter().map(|channel| (channel.to_string(), rows(channel))).collect()
    }
}

fn config(seed: u64) -> WriterConfig {
    let text = r#"{"max_batch": 4, "max_in_flight": 3, "max_pending": 12, "hold_first_read": false, "checkpoint_interval_ms": 1, "ring": 8,
        "codec": "two-bit", "block_capacity": 64, "give_up_after_ms": 2000}"#;
    let mut config: WriterConfig = serde_json::from_str(text).unwrap();
    config.list_changes = seed as usize % 5;
    config.hold_first_read = seed.is_multiple_of(3);
    config.with_supersession(if seed.is_multiple_of(2) { Supersession::Recents } else { Supersession::Pointers })
}

async fn run(store: Arc<dyn CacheStore>, feed: &MemoryFeed, seed: u64) -> Result<u64> {
    let mut writer = Writer::alone(store, Arc::new(GatewayDecoder::default()), "world", config(seed)).await?;
    writer.run(feed, std::future::pending()).await?;
    Ok(writer.stats().conflicts)
}

/// Gives up what is missing, so that all that is superseded is marked.
async fn give_up_missing(store: &Arc<dyn CacheStore>, seed: u64) {
    let mut config = config(seed);
    (config.max_wait_ms, config.skip_wait_ms) = (1, 1);
    let mut writer = Writer::alone(store.clone(), Arc::new(GatewayDecoder::default()), "world", config).await.unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    writer.finish().await.unwrap();
    let clock = writer.clock();
    assert_eq!((clock.gaps, clock.stable), (0, clock.high), "seed {seed}");
}

/// The live rows of a reader, without removals.
async fn answers(store: &Arc<dyn CacheStore>, channels: &[Channel]) -> Shown {
    let reader = ReaderNode::open(store.clone(), ReaderConfig::default()).await.unwrap();
    let mut answers = BTreeMap::new();
    for channel in channels {
        let options = ChangesOptions::new().delivery(Delivery::Eager).active_only(true);
        let answer = reader.changes(std::slice::from_ref(channel), &options).await.unwrap().answer();
        let row = |row: &sluicegate::changes::AnswerRow| {
            (row.id.sequence.0, row.entry.key().to_owned(), row.entry.revision().to_owned())
        };
        let mut rows: Vec<_> = answer.rows.iter().map(row).collect();
        rows.sort_unstable();
        answers.insert(channel.to_string(), rows);
    }
    answers
}

async fn assert_right(store: &Arc<dyn CacheStore>, world: &World, what: &str) {
    assert_eq!(answers(store, &world.channels()).await, world.expected(), "{what}");
    let report = verify(store.as_ref(), &VerifyOptions::default()).await.unwrap();
    assert!(report.is_clean(), "{what}: {:#?}", report.findings);
}

/// Returns the numbers of conflicts and of purges.
async fn check(seed: u64) -> [u64; 2] {
    let world = World::new(seed, 60, true);
    let purges = world.events.iter().filter(|event| event.kind == MutationKind::Deletion).count();
    let store: Arc<dyn CacheStore> = Arc::new(PlainStore::new());
    let feed = MemoryFeed::new("world", world.events.clone()).with_batch(1 + seed as usize % 7).unwrap();
    let conflicts = run(store.clone(), &feed, seed).await.unwrap();
    assert_right(&store, &world, &format!("seed {seed}")).await;
    // All events again, to another writer that starts at the beginning.
    let mut writer = Writer::alone(store.clone(), Arc::new(GatewayDecoder::default()), "again", config(seed)).await.unwrap();
    writer.run(&feed, std::future::pending()).await.unwrap();
    assert_right(&store, &world, &format!("seed {seed}, again")).await;
    [conflicts, purges as u64]
}

/// Markers release sequences of revisions that the feed leaves out. It also leaves out purges.
#[tokio::test(start_paused = true)]
async fn each_document_is_shown_whatever_the_feed_leaves_out() {
    let one = |seed| async move {
        // That a purge was left out can be told by pointers only.
        let mut world = World::with(seed, 60, seed % 2 == 1, false);
        world.leave_out();
        let store: Arc<dyn CacheStore> = Arc::new(PlainStore::new());
        let feed = MemoryFeed::new("world", world.events.clone()).with_batch(1 + seed as usize % 7).unwrap();
        let conflicts = run(store.clone(), &feed, seed).await.unwrap();
        assert_right(&store, &world, &format!("seed {seed}")).await;
        vec![("conflicts".to_owned(), conflicts)]
    };
    let sums = campaign(0..400, one).await;
    assert!(!are_usual() || sums["conflicts"] > 100, "{sums:?}");
}

/// The feed leaves out revisions, and some of them have a sequence that another document has, too.
#[tokio::test(start_paused = true)]
async fn each_document_is_shown_whoever_has_the_sequences_of_what_the_feed_leaves_out() {
    let one = |seed| async move {
        // Sequences far from each other; and some that differ only in the highest bits.
        let gap = [0, 12_000, (1 << 20) - 1][seed as usize % 3];
        let mut world = World::sparse(seed, 60, false, true, gap);
        world.leave_out();
        let store: Arc<dyn CacheStore> = Arc::new(PlainStore::new());
        let mut conflicts = 0;
        // A writer that takes over does not know who has sequences far below the last.
        let writers = if gap > 0 { 1 } else { 1 + seed as usize / 2 % 3 };
        for nth in 1..=writers {
            let events = world.events[..world.events.len() * nth / writers].to_vec();
            let feed = MemoryFeed::new("world", events).with_batch(1 + seed as usize % 7).unwrap();
            conflicts += run(store.clone(), &feed, seed).await.unwrap();
        }
        assert_right(&store, &world, &format!("seed {seed}")).await;
        vec![("conflicts".to_owned(), conflicts)]
    };
    let sums = campaign(5000..5400, one).await;
    assert!(!are_usual() || sums["conflicts"] > 400, "{sums:?}");
}

/// As above, and writers are killed. The next one is not given some of what its predecessor was.
#[tokio::test(start_paused = true)]
async fn each_document_is_shown_whoever_has_its_sequence_though_writers_are_killed() {
    let one = |seed| async move {
        let mut world = World::new(seed, 60, false);
        let (events, store) = (world.events.clone(), Arc::new(PlainStore::new()));
        let points: Vec<CrashPoint> = CrashPoint::all(1).chain(CrashPoint::occasional(1)).collect();
        let (mut crashes, mut conflicts) = (0, 0);
        for nth in 1..=4 {
            let delivered = world.delivered(&events[..events.len() * nth / 4]);
            let feed = MemoryFeed::new("world", delivered).with_batch(1 + seed as usize % 7).unwrap();
            let faulty = Arc::new(FaultStore::new(store.clone(), seed, Faults::none()));
            if nth < 4 {
                let point = points[world.rng.random_range(0..points.len())];
                faulty.crash_at(CrashPoint { nth: world.rng.random_range(1..6), ..point });
            }
            match run(faulty, &feed, seed).await {
                Ok(count) => conflicts += count,
                Err(e) => {
                    assert_eq!(e.kind(), ErrorKind::Closed, "seed {seed}: {e:?}");
                    crashes += 1;
                }
            }
        }
        let store: Arc<dyn CacheStore> = store;
        give_up_missing(&store, seed).await;
        assert_right(&store, &world, &format!("seed {seed}")).await;
        vec![("conflicts".to_owned(), conflicts), ("crashes".to_owned(), crashes)]
    };
    let sums = campaign(0..300, one).await;
    assert!(!are_usual() || sums["conflicts"] > 300 && sums["crashes"] > 300, "{sums:?}");
}

#[tokio::test(start_paused = true)]
async fn each_document_is_shown_at_its_newest_revision_whoever_else_has_its_sequence() {
    let one = |seed| async move {
        let [conflicts, purges] = check(seed).await;
        vec![("conflicts".to_owned(), conflicts), ("purges".to_owned(), purges)]
    };
    let sums = campaign(0..400, one).await;
    assert!(!are_usual() || sums["conflicts"] > 1_000 && sums["purges"] > 400, "{sums:?}");
}

/// Rare cases: a document that is purged and made anew has a lower sequence than before; takes one
/// that it had before; or one at which a purged document is marked as superseded.
#[tokio::test(start_paused = true)]
async fn a_document_is_shown_that_has_a_sequence_of_a_purged_one() {
    for seed in [605, 1607, 1639, 2079, 2959, 3433, 3679, 4067, 5021, 5439, 7935, 9037, 12739, 13015, 16053, 19521] {
        check(seed).await;
    }
}

/// The feed left out what the gateway wrote, for what another program wrote over it; and then the
/// gateway imports that.
#[tokio::test(start_paused = true)]
async fn that_a_document_left_a_channel_is_shown_where_another_program_has_written_since() {
    for supersession in [Supersession::Recents, Supersession::Pointers] {
        let (mut kept, mut events) = (Kept::default(), Vec::new());
        for (sequence, channels, is_foreign) in [(1, &["a", "b"][..], false), (2, &["b"], true), (3, &["b"], false)] {
            let channels: Vec<String> = channels.iter().map(ToString::to_string).collect();
            kept.write("x", sequence, &[], &channels, false, false);
            let (cas, body) = (sequence << 16, if is_foreign { "{}" } else { r#"{"written":"by the gateway"}"# });
            let mut mutation = kept.mutation("d", cas, body.as_bytes());
            if is_foreign {
                let pairs = attributes::iter(&mutation.value).unwrap().map(|pair| pair.unwrap());
                mutation.value = attributes::encode(pairs, br#"{"written":"by another program"}"#).unwrap().into();
            }
            events.push(Mutation { cas: cas + u64::from(is_foreign), ..mutation });
        }
        let store: Arc<dyn CacheStore> = Arc::new(PlainStore::new());
        let config = config(0).with_supersession(supersession);
        for count in 1..=events.len() {
            let feed = MemoryFeed::new("world", events[..count].to_vec());
            let decoder = Arc::new(GatewayDecoder::default());
            let mut writer = Writer::alone(store.clone(), decoder, "world", config.clone()).await.unwrap();
            writer.run(&feed, std::future::pending()).await.unwrap();
            let reader = ReaderNode::open(store.clone(), ReaderConfig::default()).await.unwrap();
            let answer = reader.changes(&[Channel::new("a").unwrap()], &ChangesOptions::new()).await.unwrap().answer();
            let rows: Vec<(u64, bool)> = answer.rows.iter().map(|row| (row.id.sequence.0, !row.removed.is_empty())).collect();
            assert_eq!(rows, if count == 1 { [(1, false)] } else { [(2, true)] }, "after {count} events");
            let report = verify(store.as_ref(), &VerifyOptions::default()).await.unwrap();
            assert!(report.is_clean(), "after {count} events: {:#?}", report.findings);
        }
    }
}

/// A mutation of document `d`.
fn mutation(kept: &Kept, cas: u64, body: &str) -> Mutation {
    Mutation { cas, ..kept.mutation("d", cas, body.as_bytes()) }
}

/// The first two answers of a reader that was just opened: the rows of a channel, each with its
/// sequence and whether it is a removal.
async fn rows(store: &Arc<dyn CacheStore>, channel: &str) -> [Vec<(u64, bool)>; 2] {
    let reader = ReaderNode::open(store.clone(), ReaderConfig::default()).await.unwrap();
    let mut answers = [Vec::new(), Vec::new()];
    for rows in &mut answers {
        let options = ChangesOptions::new().delivery(Delivery::Eager);
        let answer = reader.changes(&[Channel::new(channel).unwrap()], &options).await.unwrap().answer();
        *rows = answer.rows.iter().map(|row| (row.id.sequence.0, !row.removed.is_empty())).collect();
    }
    answers
}

/// Applies more and more of the events, each time with a new writer.
async fn apply(events: &[Mutation], supersession: Supersession) -> Arc<dyn CacheStore> {
    let store: Arc<dyn CacheStore> = Arc::new(PlainStore::new());
    for count in 1..=events.len() {
        let feed = MemoryFeed::new("world", events[..count].to_vec());
        let (decoder, config) = (Arc::new(GatewayDecoder::default()), config(0).with_supersession(supersession));
        let mut writer = Writer::alone(store.clone(), decoder, "world", config).await.unwrap();
        writer.run(&feed, std::future::pending()).await.unwrap();
    }
    let report = verify(store.as_ref(), &VerifyOptions::default()).await.unwrap();
    assert!(report.is_clean(), "{:#?}", report.findings);
    store
}

/// The feed left out what the gateway wrote, for what another program wrote over it; and then that
/// program restores the body.
#[tokio::test(start_paused = true)]
async fn a_revision_is_shown_whose_body_another_program_has_restored() {
    for supersession in [Supersession::Recents, Supersession::Pointers] {
        let (mut kept, own) = (Kept::default(), r#"{"written":"by the gateway"}"#);
        kept.write("x", 1, &[], &["a".to_owned(), "b".to_owned()], false, false);
        let first = mutation(&kept, 1 << 16, own);
        kept.write("x", 2, &[], &["b".to_owned()], false, false);
        let second = mutation(&kept, 2 << 16, own);
        let pairs = attributes::iter(&second.value).unwrap().map(|pair| pair.unwrap());
        let value = attributes::encode(pairs, br#"{"written":"by another program"}"#).unwrap().into();
        let foreign = Mutation { cas: second.cas + 1, value, ..second.clone() };
        let restored = Mutation { cas: second.cas + 2, ..second };
        let store = apply(&[first, foreign, restored], supersession).await;
        assert_eq!(rows(&store, "b").await, [[(2, false)], [(2, false)]]);
        assert_eq!(rows(&store, "*").await, [[(2, false)], [(2, false)]]);
        assert_eq!(rows(&store, "a").await, [[(2, true)], [(2, true)]]);
    }
}

/// The feed left out the revision that left the channel, and the next one has a lower sequence.
#[tokio::test(start_paused = true)]
async fn that_a_document_left_a_channel_is_shown_where_its_next_revision_has_a_lower_sequence() {
    for supersession in [Supersession::Recents, Supersession::Pointers] {
        let (mut kept, mut events) = (Kept::default(), Vec::new());
        for (cas, (sequence, channels)) in (1..).zip([(16, &["a", "b"][..]), (20, &["b"]), (10, &["b"])]) {
            let channels: Vec<String> = channels.iter().map(ToString::to_string).collect();
            kept.write("x", sequence, &[], &channels, false, false);
            events.push(mutation(&kept, cas << 16, "{}"));
        }
        events.remove(1);
        let store = apply(&events, supersession).await;
        assert_eq!(rows(&store, "a").await, [[(20, true)], [(20, true)]]);
        assert_eq!(rows(&store, "b").await, [[(10, false)], [(10, false)]]);
    }
}

/// The feed left out the revision that left the channel, and something else has its sequence.
#[tokio::test(start_paused = true)]
async fn that_a_document_left_a_channel_is_shown_where_its_sequence_was_accounted_for() {
    let marker = Mutation::new("_sync:unusedSeq:2", "");
    let user = Mutation::new("_sync:user:u", r#"{"name":"u","sequence":2}"#);
    let metadata = json!({"rev": "1-e", "sequence": 2, "recent_sequences": [2], "channels": {"a": null}});
    let other = Mutation { cas: 2 << 16, ..Mutation::new("e", json!({"_sync": metadata}).to_string()) };
    for (before, others) in [(marker, vec![]), (user, vec![]), (other, vec![(2, false)])] {
        for supersession in [Supersession::Recents, Supersession::Pointers] {
            let (mut kept, mut events) = (Kept::default(), Vec::new());
            for (sequence, channels) in [(1, &["a", "b"][..]), (2, &["b"]), (3, &["b"]), (4, &["b"])] {
                let channels: Vec<String> = channels.iter().map(ToString::to_string).collect();
                kept.write("x", sequence, &[], &channels, false, false);
                events.push(mutation(&kept, sequence << 16, "{}"));
            }
            events[1] = before.clone();
            let mut expected = vec![(2, true)];
            expected.splice(0..0, others.iter().copied());
            let restarted = apply(&events, supersession).await;
            let at_once: Arc<dyn CacheStore> = Arc::new(PlainStore::new());
            let (decoder, config) = (Arc::new(GatewayDecoder::default()), config(0).with_supersession(supersession));
            let mut writer = Writer::alone(at_once.clone(), decoder, "world", config).await.unwrap();
            writer.run(&MemoryFeed::new("world", events.clone()), std::future::pending()).await.unwrap();
            assert_eq!(writer.stats().conflicts, 1, "{:?}", before.key);
            for store in [restarted, at_once] {
                assert_eq!(rows(&store, "a").await, [expected.clone(), expected.clone()], "{:?}", before.key);
                assert_eq!(rows(&store, "b").await, [[(4, false)], [(4, false)]], "{:?}", before.key);
                let report = verify(store.as_ref(), &VerifyOptions::default()).await.unwrap();
                assert!(report.is_clean(), "{:?}: {:#?}", before.key, report.findings);
            }
        }
    }
}

/// The gateway lost its counter, allocated the sequence again at which the document left a
/// channel, and did not use it for the document's next revision, which was above. The feed left
/// out the revision that left the channel.
#[tokio::test(start_paused = true)]
async fn that_a_document_left_a_channel_is_shown_where_its_next_revision_names_that_sequence_as_unused() {
    let left = json!({"seq": 2, "rev": "2-b"});
    let lives = [(1, json!({"a": null, "b": null}), vec![1], vec![]), (3, json!({"a": left, "b": null}), vec![1, 2, 3], vec![2])];
    let events = lives.map(|(sequence, channels, recent, unused): (u64, _, Vec<u64>, Vec<u64>)| {
        let metadata = json!({"rev": format!("{sequence}-x"), "sequence": sequence, "recent_sequences": recent,
            "unused_sequences": unused, "channels": channels});
        Mutation { cas: sequence << 16, ..Mutation::new("d", json!({"_sync": metadata}).to_string()) }
    });
    for supersession in [Supersession::Recents, Supersession::Pointers] {
        let restarted = apply(&events, supersession).await;
        let at_once: Arc<dyn CacheStore> = Arc::new(PlainStore::new());
        let (decoder, config) = (Arc::new(GatewayDecoder::default()), config(0).with_supersession(supersession));
        let mut writer = Writer::alone(at_once.clone(), decoder, "world", config).await.unwrap();
        writer.run(&MemoryFeed::new("world", events.to_vec()), std::future::pending()).await.unwrap();
        for store in [restarted, at_once] {
            assert_eq!(rows(&store, "a").await, [[(2, true)], [(2, true)]]);
            assert_eq!(rows(&store, "b").await, [[(3, false)], [(3, false)]]);
        }
    }
}

/// A document that is purged and made anew twice, and the feed leaves out both purges. The channel
/// that it has again in its second life is not one of its third.
#[tokio::test(start_paused = true)]
async fn a_document_whose_purges_were_left_out_twice_is_only_where_it_was_made_anew_last() {
    let lives = [
        (1, "1-a", json!({"a": null}), vec![1]),
        (2, "1-b", json!({"b": null}), vec![2]),
        (3, "2-c", json!({"a": null, "b": {"seq": 3, "rev": "2-c"}}), vec![2, 3]),
        (4, "1-d", json!({"b": null}), vec![4]),
    ];
    let events = lives.map(|(sequence, revision, channels, recent)| {
        let metadata = json!({"rev": revision, "sequence": sequence, "recent_sequences": recent, "channels": channels});
        Mutation { cas: sequence << 16, ..Mutation::new("x", json!({"_sync": metadata}).to_string()) }
    });
    let store: Arc<dyn CacheStore> = Arc::new(PlainStore::new());
    let feed = MemoryFeed::new("world", events);
    run(store.clone(), &feed, 1).await.unwrap();
    assert_eq!(rows(&store, "a").await, [[], []]);
    assert_eq!(rows(&store, "b").await, [[(4, false)], [(4, false)]]);
    assert_eq!(rows(&store, "*").await, [[(4, false)], [(4, false)]]);
}

/// Two documents with one sequence: the gateway has lost its counter.
fn reused() -> [Mutation; 2] {
    ["x", "y"].map(|name| {
        let metadata = json!({"rev": "1-x", "sequence": 9, "recent_sequences": [9], "channels": {"c": null}});
        Mutation { cas: 9, ..Mutation::new(name, json!({"_sync": metadata}).to_string()) }
    })
}

/// The feed left out the revision that left the channel, and that has a lower sequence than the one
/// before.
#[tokio::test(start_paused = true)]
async fn that_a_document_left_a_channel_is_shown_where_it_had_a_higher_sequence_before() {
    for supersession in [Supersession::Recents, Supersession::Pointers] {
        let (mut kept, mut events) = (Kept::default(), reused().to_vec());
        for (cas, (sequence, channels)) in (1..).zip([(16, &["a", "b"][..]), (10, &["b"]), (20, &["b"])]) {
            let channels: Vec<String> = channels.iter().map(ToString::to_string).collect();
            kept.write("x", sequence, &[], &channels, false, false);
            events.push(mutation(&kept, cas << 16, "{}"));
        }
        events.remove(3);
        let store = apply(&events, supersession).await;
        assert_eq!(rows(&store, "a").await, [[(10, true)], [(10, true)]]);
        assert_eq!(rows(&store, "b").await, [[(20, false)], [(20, false)]]);
    }
}

/// The feed left out a revision of `e` with the sequence that `d` has, and `e` names it.
#[tokio::test(start_paused = true)]
async fn a_document_is_shown_whose_sequence_another_one_names() {
    for supersession in [Supersession::Recents, Supersession::Pointers] {
        let document = |name: &str, cas: u64, recent: &[u64]| {
            let metadata = json!({"rev": "1-x", "sequence": recent.last(), "recent_sequences": recent, "channels": {"a": null}});
            Mutation { cas, ..Mutation::new(name.to_owned(), json!({"_sync": metadata}).to_string()) }
        };
        let mut events = reused().to_vec();
        events.extend([document("d", 10, &[12]), document("e", 11, &[12, 13]), document("e", 12, &[12, 13, 14])]);
        let store = apply(&events, supersession).await;
        assert_eq!(rows(&store, "a").await, [[(12, false), (14, false)], [(12, false), (14, false)]]);
    }
}

/// A later revision with a lower sequence came before, and before a reader holds the channel.
#[tokio::test(start_paused = true)]
async fn who_follows_is_not_shown_an_earlier_revision_that_comes_after_a_later_one() {
    for supersession in [Supersession::Recents, Supersession::Pointers] {
        let document = |name: &str, cas: u64, recent: &[u64], revision: &str| {
            let metadata =
                json!({"rev": revision, "sequence": recent.last(), "recent_sequences": recent, "channels": {"a": null}});
            Mutation { cas, ..Mutation::new(name.to_owned(), json!({"_sync": metadata}).to_string()) }
        };
        let unused = |range: &str| Mutation::new(format!("_sync:unusedSeqs:{range}"), "");
        let mut events =
            vec![unused("1:9"), document("d", 20, &[20, 10], "2-b"), unused("11:19"), document("e", 5, &[21], "1-e")];
        let store: Arc<dyn CacheStore> = Arc::new(PlainStore::new());
        let (decoder, config) = (Arc::new(GatewayDecoder::default()), config(0).with_supersession(supersession));
        let mut writer = Writer::alone(store.clone(), decoder.clone(), "world", config.clone()).await.unwrap();
        writer.run(&MemoryFeed::new("world", events.clone()), std::future::pending()).await.unwrap();
        let reader = ReaderNode::open(store.clone(), ReaderConfig::default()).await.unwrap();
        let channel = [Channel::new("a").unwrap()];
        let ask = ChangesOptions::new().delivery(Delivery::Eager).since(Sequence(12));
        let first = reader.changes(&channel, &ask).await.unwrap().answer();
        assert_eq!(first.rows.len(), 1);
        // Another writer reads a copy of the feed that is older.
        events.push(document("d", 10, &[20], "1-a"));
        let mut writer = Writer::alone(store.clone(), decoder, "again", config).await.unwrap();
        writer.run(&MemoryFeed::new("again", events), std::future::pending()).await.unwrap();
        reader.refresh().await.unwrap();
        for options in [ask.clone(), ask.clone().late(first.late)] {
            let answer = reader.changes(&channel, &options).await.unwrap().answer();
            let shown: Vec<&str> = answer.rows.iter().map(|row| row.entry.revision()).collect();
            assert!(shown.contains(&"1-e") && !shown.contains(&"1-a"), "{shown:?}");
        }
    }
}

/// A document that was written before there were pointers has none.
#[tokio::test(start_paused = true)]
async fn purged_documents_are_found_after_the_setting_of_pointers_was_changed() {
    use Supersession::{Pointers, Recents};
    for settings in [&[Recents, Pointers][..], &[Pointers, Recents, Pointers]] {
        let (mut kept, mut events) = (Kept::default(), Vec::new());
        let store: Arc<dyn CacheStore> = Arc::new(PlainStore::new());
        for (sequence, supersession) in (1..).zip(settings) {
            kept.write("x", sequence, &[], &["a".to_owned()], false, false);
            events.push(mutation(&kept, sequence << 16, "{}"));
            if sequence as usize == settings.len() {
                events.pop();
                events.push(Mutation { kind: MutationKind::Deletion, cas: sequence << 16, ..Mutation::new("d", "") });
            }
            let feed = MemoryFeed::new("world", events.clone());
            let (decoder, config) = (Arc::new(GatewayDecoder::default()), config(0).with_supersession(*supersession));
            let mut writer = Writer::alone(store.clone(), decoder, "world", config).await.unwrap();
            writer.run(&feed, std::future::pending()).await.unwrap();
        }
        assert_eq!(rows(&store, "a").await, [[], []], "{settings:?}");
        let report = verify(store.as_ref(), &VerifyOptions::default()).await.unwrap();
        assert!(report.is_clean(), "{:#?}", report.findings);
    }
}

/// Number 16 is missing, so that 28 is above stable, and its mark waits.
#[tokio::test(start_paused = true)]
async fn a_reader_that_was_just_opened_shows_a_later_revision_with_a_lower_sequence() {
    for supersession in [Supersession::Recents, Supersession::Pointers] {
        let document = |cas: u64, sequence: u64, revision: &str| {
            let metadata =
                json!({"rev": revision, "sequence": sequence, "recent_sequences": [sequence], "channels": {"b": null}});
            Mutation { cas, ..Mutation::new("d", json!({"_sync": metadata}).to_string()) }
        };
        let unused = |range: &str| Mutation::new(format!("_sync:unusedSeqs:{range}"), "");
        let events = [unused("1:14"), unused("17:27"), document(10, 28, "1-a"), document(20, 15, "2-b")];
        let store: Arc<dyn CacheStore> = Arc::new(PlainStore::new());
        let (decoder, config) = (Arc::new(GatewayDecoder::default()), config(0).with_supersession(supersession));
        let mut writer = Writer::alone(store.clone(), decoder, "world", config).await.unwrap();
        writer.run(&MemoryFeed::new("world", events.to_vec()), std::future::pending()).await.unwrap();
        assert_eq!(rows(&store, "b").await, [[(15, false)], [(15, false)]]);
    }
}

/// Returns the number of writers that were cut off.
async fn check_with_faults(seed: u64) -> u64 {
    let world = World::new(seed, 60, true);
    let store: Arc<dyn CacheStore> = Arc::new(PlainStore::new());
    let faulty = Arc::new(FaultStore::new(store.clone(), seed, Faults::all(0.05)));
    let feed = MemoryFeed::new("world", world.events.clone()).with_batch(1 + seed as usize % 7).unwrap();
    let mut tries = 0;
    while let Err(error) = run(faulty.clone(), &feed, seed).await {
        assert!(error.is_retryable(), "seed {seed}: {error:?}");
        tries += 1;
        assert!(tries < 1_000, "seed {seed}: never got through: {error:?}");
    }
    assert_right(&store, &world, &format!("seed {seed}, {tries} tries")).await;
    tries
}

#[tokio::test(start_paused = true)]
async fn a_store_that_fails_all_the_time_changes_nothing_of_that() {
    let one = |seed| async move { vec![("terms".to_owned(), check_with_faults(seed).await)] };
    let sums = campaign(0..150, one).await;
    assert!(!are_usual() || sums["terms"] > 50, "{sums:?}");
}

/// A record that expects too many entries in slots is damaged: that is an error, not a loop over
/// them.
#[tokio::test(start_paused = true)]
async fn a_record_that_expects_too_many_entries_in_slots_is_corrupt() {
    let world = World::new(1, 20, false);
    let store: Arc<dyn CacheStore> = Arc::new(PlainStore::new());
    run(store.clone(), &MemoryFeed::new("world", world.events.clone()), 1).await.unwrap();
    for slot in 0..8 {
        let key = CacheKey::Batch(slot);
        let Some(stored) = store.get(&key).await.unwrap() else { continue };
        let mut record: serde_json::Value = serde_json::from_slice(&stored.value).unwrap();
        record["abandoned"] = json!([[15_u64 << 60, u64::MAX]]);
        store.replace(&key, record.to_string().into(), stored.version, Expiry::Never).await.unwrap();
    }
    let error = run(store, &MemoryFeed::new("world", world.events), 1).await.unwrap_err();
    assert!(error.kind() == ErrorKind::Corrupt && error.to_string().contains("slots"), "{error:?}");
}
