//! The feed takes back what it has delivered: the cache must come out as if only what survived had ever been there.

#![cfg(all(feature = "memory", feature = "replay"))]

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use sluicegate::changes::{ChangesOptions, Delivery};
use sluicegate::core::verify::{VerifyOptions, VerifyReport, verify};
use sluicegate::decode::{DecodedDocument, Departure, Invalid};
use sluicegate::pointer::Supersession;
use sluicegate::{
    CacheKey, CacheStore, ChangeEntry, Channel, CollectionId, Decoded, DocumentId, EntryFlags, ErrorKind, Feed, FeedBatch,
    FeedEvent, Membership, Mutation, MutationDecoder, PartitionId, PartitionSeqno, PublishedClock, ReaderConfig, ReaderNode,
    Result, Sequence, Writer, WriterConfig,
};
use sluicegate_memory::MemoryStore;
use sluicegate_testkit::branching::{Act, BranchingFeed, Look, Write};
use sluicegate_testkit::model::AnswerRow;
use sluicegate_testkit::observe::{Rows, rows};
use sluicegate_testkit::{CrashPoint, FaultStore, Faults, Model, PlainStore, Step, When};
use support::client::Client;
use support::seeds::{NAMED, are_usual, campaign_with_named as campaign, channels, place};

/// What a document's value holds: the metadata of a gateway, in short.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Metadata {
    sequence: u64,
    revision: String,
    channels: Vec<String>,
    /// The sequences of the revisions before.
    recent: Vec<u64>,
    /// Where it left channels before: sequence and revision.
    left: BTreeMap<String, (u64, String)>,
}

impl Metadata {
    fn of(mutation: &Mutation) -> Metadata {
        serde_json::from_slice(&mutation.value).unwrap()
    }
}

/// Understands these values.
#[derive(Debug, Default)]
struct Short;

impl MutationDecoder for Short {
    fn decode(&self, mutation: &Mutation) -> Decoded {
        let Ok(metadata) = serde_json::from_slice::<Metadata>(&mutation.value) else {
            return Decoded::Invalid(Invalid { reason: "no metadata".to_owned() });
        };
        let (own, collection) = (metadata.sequence, CollectionId(mutation.collection));
        let key = std::str::from_utf8(&mutation.key).unwrap();
        let mut entry = ChangeEntry::new(Sequence(own), key, &metadata.revision, EntryFlags::default())
            .unwrap()
            .with_collection(collection)
            .with_supersedes(metadata.recent.iter().copied().map(Sequence));
        for name in &metadata.channels {
            entry = entry.with_channel(Channel::new(name).unwrap(), Membership::Present);
        }
        let mut departures = Vec::new();
        for (name, (sequence, revision)) in &metadata.left {
            let channel = Channel::of(collection, name).unwrap();
            if *sequence == own {
                entry = entry.with_channel(channel, Membership::Removed);
            } else {
                let (sequence, revision) = (Sequence(*sequence), revision.as_str().into());
                let (membership, since) = (Membership::Removed, Sequence::ZERO);
                departures.push(Departure { sequence, revision, channel, membership, since });
            }
        }
        Decoded::Document(DecodedDocument { departures: departures.into(), ..entry.into() })
    }
}

const CHANNELS: [&str; 4] = ["a", "b", "c", "d"];
/// The star channel, too.
const ALL_CHANNELS: [&str; 5] = ["a", "b", "c", "d", "*"];
const PARTITIONS: u16 = 4;

/// A gateway: gives out sequences, and writes revisions of documents over what the server has of them.
#[derive(Debug, Default)]
struct Gateway {
    /// Of its world.
    seed: u64,
    last: Arc<Mutex<u64>>,
    revisions: u64,
}

impl Gateway {
    /// A revision of a document in some channels. What it is based on is known when it is written.
    fn write(&mut self, document: usize, channels: Vec<String>) -> Act {
        self.revisions += 1;
        let (counter, revision) = (self.last.clone(), self.revisions);
        let value = move |known: Option<&Mutation>| {
            let mut counter = counter.lock();
            let before = known.map(Metadata::of).unwrap_or_default();
            // A gateway does not write a sequence that is not above the document's last.
            *counter = (*counter).max(before.sequence) + 1;
            let (sequence, revision) = (*counter, format!("{revision}-x"));
            let mut recent = before.recent;
            recent.extend(Some(before.sequence).filter(|before| *before > 0));
            let mut left = before.left;
            for channel in before.channels.iter().filter(|channel| !channels.contains(channel)) {
                left.insert(channel.clone(), (sequence, revision.clone()));
            }
            left.retain(|channel, _| !channels.contains(channel));
            let metadata = Metadata { sequence, revision, channels: channels.clone(), recent, left };
            serde_json::to_string(&metadata).unwrap()
        };
        let (collection, number) = place(self.seed, document);
        Act::Write(Write { collection: collection.0, key: format!("doc{number}"), value: Arc::new(value) })
    }

    fn some(&mut self, count: usize, documents: usize, random: &mut ChaCha8Rng) -> Vec<Act> {
        let mut acts = Vec::new();
        for _ in 0..count {
            let channels: Vec<String> = CHANNELS.iter().filter(|_| random.random_bool(0.4)).map(ToString::to_string).collect();
            acts.push(self.write(random.random_range(0..documents), channels));
        }
        acts
    }

    /// The counter was on the node that is gone, too: numbers that were lost are given out again.
    fn lose(&self) -> Act {
        let last = self.last.clone();
        let look = move |surviving: Vec<Mutation>| {
            *last.lock() = surviving.iter().map(|mutation| Metadata::of(mutation).sequence).max().unwrap_or(0);
        };
        Act::Look(Look(Arc::new(look)))
    }
}

/// A producer with its gateway, and everything that will happen to it, from a seed.
struct World {
    feed: BranchingFeed,
    gateway: Gateway,
    random: ChaCha8Rng,
    loses_counter: bool,
    /// Whether the first trouble comes while the feed is read for the first time.
    in_first_read: bool,
}

impl World {
    fn new(seed: u64) -> World {
        let loses_counter = seed.is_multiple_of(2);
        let feed = BranchingFeed::new(PARTITIONS, seed);
        World::of(if loses_counter { feed.telling_first() } else { feed }, loses_counter, seed)
    }

    /// A world whose gateway allocates sequences again, and whose feed may deliver them before it
    /// reports that their first use was lost.
    fn telling_late(seed: u64) -> World {
        World::of(BranchingFeed::new(PARTITIONS, seed), true, seed)
    }

    /// The same, where the first trouble comes after the first read.
    fn after_first_read(self) -> World {
        World { in_first_read: false, ..self }
    }

    fn of(feed: BranchingFeed, loses_counter: bool, seed: u64) -> World {
        let gateway = Gateway { seed, ..Gateway::default() };
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let in_first_read = is_in_first_read(seed);
        let mut world = World { feed, gateway, random: random.clone(), loses_counter, in_first_read };
        let count = random.random_range(10..80);
        for act in world.gateway.some(count, 12, &mut random) {
            world.feed.act(act);
        }
        world.random = random;
        world
    }

    fn config(&self, seed: u64) -> WriterConfig {
        config(seed, self.in_first_read)
    }

    fn fail_over(&mut self) -> Act {
        let partition = sluicegate::PartitionId(self.random.random_range(0..PARTITIONS));
        let percent = *[0, 30, 60, 80, 90, 95].choose(&mut self.random).unwrap();
        Act::FailOver(partition, percent)
    }

    /// Failovers, of one partition or of several, perhaps with the gateway's counter; and what is written after.
    fn trouble(&mut self) -> Vec<Act> {
        let mut acts = Vec::new();
        for _ in 0..self.random.random_range(1..4) {
            acts.push(self.fail_over());
        }
        if self.loses_counter && self.random.random_bool(0.8) {
            acts.push(self.gateway.lose());
        }
        let count = self.random.random_range(0..25);
        acts.extend(self.gateway.some(count, 12, &mut self.random));
        acts
    }

    /// The rows that a cache shows which saw nothing but what survived.
    fn expected(&self) -> BTreeMap<String, Rows> {
        let mut model = Model::new();
        for mutation in self.feed.surviving() {
            model.apply(&Short.decode(&mutation));
        }
        let rows = |channel: &Channel| {
            let rows = model.changes(std::slice::from_ref(channel), Sequence::ZERO, None, false).into_iter();
            let row = |(sequence, key, revision, deleted, removed): AnswerRow| {
                let document = DocumentId::new(channel.collection(), key).as_ref().to_string();
                (sequence.0, document, revision, deleted, !removed.is_empty())
            };
            rows.map(row).collect()
        };
        self.channels().iter().map(|channel| (channel.to_string(), rows(channel))).collect()
    }

    fn channels(&self) -> Vec<Channel> {
        channels(self.gateway.seed, &ALL_CHANNELS)
    }
}

fn config(seed: u64, in_first_read: bool) -> WriterConfig {
    let text = r#"{"max_batch": 8, "max_in_flight": 3, "max_pending": 12, "hold_first_read": false, "checkpoint_interval_ms": 1, "ring": 8, "gather_rollbacks_ms": 0,
        "codec": "two-bit", "block_capacity": 64, "give_up_after_ms": 2000}"#;
    let mut config: WriterConfig = serde_json::from_str(text).unwrap();
    config.list_changes = seed as usize % 5;
    config.hold_first_read = in_first_read;
    config.with_supersession(if seed % 4 < 2 { Supersession::Recents } else { Supersession::Pointers })
}

/// Whether a world's first trouble comes in the first read. Independent of the crash point, of
/// which there are 33, and of the rest of the world.
fn is_in_first_read(seed: u64) -> bool {
    (seed / 33).is_multiple_of(3)
}

async fn run(store: Arc<dyn CacheStore>, feed: &dyn Feed, config: WriterConfig) -> Result<u64> {
    let mut writer = Writer::alone(store, Arc::new(Short), "branching", config).await?;
    writer.run(feed, std::future::pending()).await?;
    Ok(writer.stats().withdrawn)
}

async fn answers(reader: &ReaderNode, channels: &[Channel]) -> BTreeMap<String, Rows> {
    let mut answers = BTreeMap::new();
    for channel in channels {
        let options = ChangesOptions::new().delivery(Delivery::Eager);
        let answer = reader.changes(std::slice::from_ref(channel), &options).await.unwrap().answer();
        answers.insert(channel.to_string(), rows(&answer));
    }
    answers
}

async fn opened(store: &Arc<dyn CacheStore>) -> ReaderNode {
    ReaderNode::open(store.clone(), ReaderConfig::default()).await.unwrap()
}

async fn checked(store: &Arc<dyn CacheStore>) -> VerifyReport {
    verify(store.as_ref(), &VerifyOptions::default().feed("branching")).await.unwrap()
}

#[track_caller]
fn assert_same(found: &BTreeMap<String, Rows>, expected: &BTreeMap<String, Rows>, what: &str) {
    for (channel, expected) in expected {
        let found = &found[channel];
        let lacks: Vec<_> = expected.iter().filter(|row| !found.contains(row)).collect();
        let more: Vec<_> = found.iter().filter(|row| !expected.contains(row)).collect();
        assert_eq!(found, expected, "{channel}: {what}: it lacks {lacks:?}, and has {more:?} instead");
    }
}

/// A reader that was there all the time answers as one that has just come, and both as the model; and the cache is sound.
async fn assert_settled(store: &Arc<dyn CacheStore>, reader: Option<&ReaderNode>, world: &World, what: &str) {
    let expected = world.expected();
    let channels = world.channels();
    assert_same(&answers(&opened(store).await, &channels).await, &expected, what);
    if let Some(reader) = reader {
        reader.refresh().await.unwrap();
        assert_same(&answers(reader, &channels).await, &expected, &format!("{what}: a reader that was there before"));
    }
    let report = checked(store).await;
    assert!(report.is_clean(), "{what}: {report:#?}");
}

fn store(seed: u64) -> Arc<dyn CacheStore> {
    if seed.is_multiple_of(3) { Arc::new(PlainStore::new()) } else { Arc::new(MemoryStore::new()) }
}

async fn survives(mut world: World, seed: u64) -> u64 {
    let store = store(seed);
    if world.in_first_read {
        let trouble = world.trouble();
        world.feed.plan(trouble);
    }
    let mut withdrawn = run(store.clone(), &world.feed, world.config(seed)).await.unwrap();
    assert_settled(&store, None, &world, &format!("seed {seed}, before")).await;
    let reader = opened(&store).await;
    answers(&reader, &world.channels()).await;
    for round in 0..3 {
        let trouble = world.trouble();
        if world.random.random_bool(0.5) {
            // While nobody reads.
            trouble.into_iter().for_each(|act| world.feed.act(act));
        } else {
            world.feed.plan(trouble);
        }
        withdrawn += run(store.clone(), &world.feed, world.config(seed)).await.unwrap();
        assert_settled(&store, Some(&reader), &world, &format!("seed {seed}, round {round}")).await;
    }
    withdrawn
}

#[tokio::test]
async fn what_comes_out_is_what_a_cache_of_the_surviving_history_shows() {
    let sums =
        campaign(0..1_000, |seed| async move { vec![("withdrawn".to_owned(), survives(World::new(seed), seed).await)] }).await;
    assert!(!are_usual() || sums["withdrawn"] > 1_000, "{sums:?}");
}

#[tokio::test]
async fn numbers_that_come_again_before_their_loss_is_told_are_shown() {
    let one = |seed| async move { vec![("withdrawn".to_owned(), survives(World::telling_late(seed), seed).await)] };
    let sums = campaign(0..1_000, one).await;
    assert!(!are_usual() || sums["withdrawn"] > 1_000, "{sums:?}");
}

/// Gives up what is missing, so that all that is superseded is marked. A departure that a killed
/// writer stored in a first read marks nothing itself if the feed leaves out the revision that told
/// of it: the next revision does, once stable has passed that.
async fn give_up_missing(store: &Arc<dyn CacheStore>, mut config: WriterConfig, seed: u64) {
    (config.max_wait_ms, config.skip_wait_ms) = (1, 1);
    let mut writer = Writer::alone(store.clone(), Arc::new(Short), "branching", config).await.unwrap();
    tokio::time::sleep(Duration::from_millis(5)).await;
    writer.finish().await.unwrap();
    assert_eq!(writer.clock().gaps, 0, "seed {seed}");
}

/// The step at which the writer was cut off, if it was.
async fn is_cut_off(mut world: World, seed: u64) -> Option<String> {
    let points: Vec<CrashPoint> = CrashPoint::all(1).chain(CrashPoint::occasional(1)).collect();
    let mut point = points[seed as usize % points.len()];
    // A store of the six primitives does every step on its own.
    let store: Arc<dyn CacheStore> = Arc::new(PlainStore::new());
    let reader = if world.in_first_read {
        let trouble = world.trouble();
        world.feed.plan(trouble);
        None
    } else {
        run(store.clone(), &world.feed, world.config(seed)).await.unwrap();
        let reader = opened(&store).await;
        answers(&reader, &world.channels()).await;
        let trouble = world.trouble();
        trouble.into_iter().for_each(|act| world.feed.act(act));
        Some(reader)
    };
    point.nth = world.random.random_range(1..8);
    let faulty = Arc::new(FaultStore::new(store.clone(), seed, Faults::none()));
    faulty.crash_at(point);
    let what = format!("seed {seed}, {point}");
    let crashed = match run(faulty.clone(), &world.feed, world.config(seed)).await {
        Ok(_) => {
            assert!(!faulty.crashed() || point.when == When::After, "{what}");
            None
        }
        Err(e) => {
            assert_eq!(e.kind(), ErrorKind::Closed, "{what}: {e:?}");
            Some(format!("{:?} {:?}", point.step, point.when))
        }
    };
    if reader.is_none() {
        // While no writer runs.
        let trouble = world.trouble();
        trouble.into_iter().for_each(|act| world.feed.act(act));
    }
    run(store.clone(), &world.feed, world.config(seed)).await.unwrap();
    if reader.is_none() {
        give_up_missing(&store, world.config(seed), seed).await;
    }
    assert_settled(&store, reader.as_ref(), &world, &what).await;
    crashed
}

#[tokio::test]
async fn a_writer_cut_off_anywhere_in_a_rollback_leaves_nothing_behind() {
    let one = |seed| async move { is_cut_off(World::new(seed), seed).await.into_iter().map(|step| (step, 1)).collect() };
    let crashed = campaign(0..1_350, one).await;
    assert!(!are_usual() || crashed.len() >= 24, "{crashed:?}");
}

/// The number of the term in the clock; 0 without a clock.
async fn term(store: &Arc<dyn CacheStore>) -> u64 {
    let clock = store.get(&CacheKey::Clock).await.unwrap();
    clock.map_or(0, |clock| PublishedClock::from_bytes(&clock.value).unwrap().epoch.counter)
}

/// Whether the writer that was held was fenced afterwards.
async fn is_held(mut world: World, seed: u64) -> bool {
    let store: Arc<dyn CacheStore> = Arc::new(PlainStore::new());
    if !world.in_first_read {
        run(store.clone(), &world.feed, world.config(seed)).await.unwrap();
    }
    let trouble = world.trouble();
    trouble.into_iter().for_each(|act| world.feed.act(act));
    let held = Arc::new(FaultStore::new(store.clone(), seed, Faults::none()));
    let mut pause = held.pause_at(world.random.random_range(1..400));
    let (feed, config) = (world.feed.clone(), world.config(seed));
    let first = tokio::spawn(async move { run(held, &feed, config).await });
    tokio::select! {
        _ = pause.reached() => {}
        () = async { while !first.is_finished() { tokio::task::yield_now().await } } => {}
    }
    let term_before = term(&store).await;
    let second = tokio::spawn({
        let (store, feed, config) = (store.clone(), world.feed.clone(), world.config(seed));
        async move { run(store, &feed, config).await }
    });
    for _ in 0..world.random.random_range(0..200) {
        tokio::task::yield_now().await;
    }
    pause.resume();
    let (first, second) = (first.await.unwrap(), second.await.unwrap());
    if let Err(e) = &first {
        assert_eq!(e.kind(), ErrorKind::Fenced, "seed {seed}: {e:?}");
    }
    if let Err(e) = second {
        // Only a writer that was held before it took its term may depose the second one.
        let terms = term(&store).await - term_before;
        assert_eq!((e.kind(), terms, first.is_ok()), (ErrorKind::Fenced, 2, true), "seed {seed}: {e:?}");
    }
    assert_settled(&store, None, &world, &format!("seed {seed}")).await;
    first.is_err()
}

#[tokio::test]
async fn a_writer_held_anywhere_in_a_rollback_while_another_takes_over_does_no_harm() {
    let one = |seed| async move { vec![("fenced".to_owned(), u64::from(is_held(World::new(seed), seed).await))] };
    let sums = campaign(0..400, one).await;
    assert!(!are_usual() || sums["fenced"] > 50, "{sums:?}");
}

#[tokio::test]
async fn a_writer_cut_off_leaves_nothing_behind_where_numbers_come_again_before_their_loss_is_told() {
    let one = |seed| async move {
        let crashed = is_cut_off(World::telling_late(seed), seed).await;
        crashed.into_iter().map(|step| (step, 1)).collect()
    };
    let crashed = campaign(0..600, one).await;
    assert!(!are_usual() || crashed.len() >= 20, "{crashed:?}");
}

#[tokio::test]
async fn a_writer_held_does_no_harm_where_numbers_come_again_before_their_loss_is_told() {
    let one = |seed| async move { vec![("fenced".to_owned(), u64::from(is_held(World::telling_late(seed), seed).await))] };
    let sums = campaign(0..400, one).await;
    assert!(!are_usual() || sums["fenced"] > 50, "{sums:?}");
}

/// A revision is rolled back, and then the one before it, which was in fewer channels; then a third
/// document gets the sequence of that.
#[tokio::test]
async fn no_mark_is_left_where_a_number_is_given_out_again() {
    for seed in [2934, 6164, 13082] {
        survives(World::new(seed).after_first_read(), seed).await;
    }
}

/// A writer that was held stores an entry that supersedes a sequence which another document has by
/// then.
#[tokio::test]
async fn what_a_deposed_writer_names_of_another_document_is_not_superseded() {
    is_held(World::new(21458).after_first_read(), 21458).await;
}

/// The feed first leaves out the first revision, because a later one followed; then it delivers it,
/// to another term; then the later one is lost.
#[tokio::test]
async fn a_revision_that_was_left_out_and_came_later_is_shown_when_its_successor_is_lost() {
    let revision = |sequence: u64, recent: Vec<u64>| {
        let (revision, channels) = (format!("{sequence}-x"), vec!["a".to_owned()]);
        let metadata = Metadata { sequence, revision, channels, recent, left: BTreeMap::new() };
        let mut mutation = Mutation::new("doc", serde_json::to_string(&metadata).unwrap());
        (mutation.partition, mutation.seqno) = (PartitionId(0), PartitionSeqno(sequence));
        FeedEvent::Mutation(mutation)
    };
    let partition = PartitionId(0);
    let lost = [FeedEvent::Rollback { partition, to: PartitionSeqno(1) }, FeedEvent::RollbackEnded { partition }];
    let terms = [vec![revision(2, vec![1])], vec![revision(1, vec![]), revision(2, vec![1])], vec![], lost.into()];
    for seed in [0, 2] {
        let store = store(seed);
        for events in terms.clone() {
            let mut writer = Writer::alone(store.clone(), Arc::new(Short), "branching", config(seed, false)).await.unwrap();
            writer.process(FeedBatch::from(events)).await.unwrap();
            writer.finish().await.unwrap();
            let report = checked(&store).await;
            assert!(report.is_clean(), "{report:#?}");
        }
        for (channel, rows) in answers(&opened(&store).await, &channels(0, &ALL_CHANNELS)).await {
            let expected = ["a", "*"].contains(&&channel[..]).then(|| (1, "doc".to_owned(), "1-x".to_owned(), false, false));
            assert_eq!(rows, expected.into_iter().collect::<Rows>(), "{channel}");
        }
    }
}

/// A writer is killed after it has stored a revision that has left a channel, and before it has
/// published it. A later revision, in that channel again, comes next and is lost in a rollback. It
/// was to mark what the others supersede, too.
#[tokio::test]
async fn what_a_killed_writer_stored_is_marked_when_the_revision_after_it_is_lost() {
    let event = |document: &str, sequence: u64, channel: &str, recent: &[u64], left: &[(&str, u64)]| {
        let left = left.iter().map(|(name, at)| ((*name).to_owned(), (*at, format!("{at}-x")))).collect();
        let (revision, channels, recent) = (format!("{sequence}-x"), vec![channel.to_owned()], recent.to_vec());
        let metadata = Metadata { sequence, revision, channels, recent, left };
        let mut mutation = Mutation::new(document.to_owned(), serde_json::to_string(&metadata).unwrap());
        let partition = PartitionId(u16::from(document == "other"));
        (mutation.partition, mutation.seqno) = (partition, PartitionSeqno(sequence));
        FeedEvent::Mutation(mutation)
    };
    let partition = PartitionId(0);
    let (first, second) = (event("doc", 2, "c", &[], &[]), event("doc", 4, "a", &[2, 3], &[("c", 3)]));
    let third = event("doc", 5, "c", &[2, 3, 4], &[("a", 5)]);
    // Sequence 1 comes last, so stable passes nothing before.
    let other = event("other", 1, "b", &[], &[]);
    for seed in [0, 1, 2, 5] {
        let store = store(seed);
        let writer = |store| Writer::alone(store, Arc::new(Short), "branching", config(seed, false));
        let mut healthy = writer(store.clone()).await.unwrap();
        healthy.process(FeedBatch::from(vec![first.clone()])).await.unwrap();
        healthy.finish().await.unwrap();

        let faulty = Arc::new(FaultStore::new(store.clone(), seed, Faults::none()));
        let mut killed = writer(faulty.clone()).await.unwrap();
        faulty.crash_at(CrashPoint { step: Step::BatchRecord, when: When::Before, nth: 1 });
        let outcome = async {
            killed.process(FeedBatch::from(vec![second.clone()])).await?;
            killed.finish().await
        };
        assert_eq!(outcome.await.unwrap_err().kind(), ErrorKind::Closed);

        let mut next = writer(store.clone()).await.unwrap();
        let lost = FeedEvent::Rollback { partition, to: PartitionSeqno(2) };
        next.process(FeedBatch::from(vec![third.clone()])).await.unwrap();
        let again = vec![lost, second.clone(), FeedEvent::RollbackEnded { partition }, other.clone()];
        next.process(FeedBatch::from(again)).await.unwrap();
        next.finish().await.unwrap();
        let report = checked(&store).await;
        assert!(report.is_clean(), "seed {seed}: {report:#?}");
        let row = |document: &str, sequence: u64| (sequence, document.to_owned(), format!("{sequence}-x"), false, sequence == 3);
        let expected = BTreeMap::from([
            ("a", vec![row("doc", 4)]),
            ("b", vec![row("other", 1)]),
            ("c", vec![row("doc", 3)]),
            ("*", vec![row("other", 1), row("doc", 4)]),
        ]);
        for (channel, rows) in answers(&opened(&store).await, &channels(0, &ALL_CHANNELS)).await {
            assert_eq!(rows, expected.get(&channel[..]).cloned().unwrap_or_default(), "seed {seed}: {channel}");
        }
    }
}

/// A client that has seen everything learns by what comes next what each document is now; it cannot be told what is no more.
#[tokio::test]
async fn who_follows_is_told_once_what_is_shown_again() {
    let mut again = 0;
    for seed in (1..600).step_by(2).chain(NAMED..NAMED + 75) {
        let mut world = World::new(seed);
        let store = store(seed);
        run(store.clone(), &world.feed, world.config(seed)).await.unwrap();
        let reader = opened(&store).await;
        // What is late twice is told twice where pages end in between.
        let in_pages = seed.is_multiple_of(3);
        let limit = if in_pages { 3 } else { 1_000 };
        let channels = world.channels().into_iter();
        let mut clients: Vec<Client> = channels.map(|channel| Client::new(&reader, channel, limit)).collect();
        let mut known = Vec::new();
        for client in &mut clients {
            known.push(client.told().await.unwrap());
        }
        for round in 0..3 {
            let trouble = world.trouble();
            trouble.into_iter().for_each(|act| world.feed.act(act));
            run(store.clone(), &world.feed, world.config(seed)).await.unwrap();
            reader.refresh().await.unwrap();
            let expected = world.expected();
            for (client, known) in clients.iter_mut().zip(&mut known) {
                let what = format!("seed {seed}, round {round}, channel {}", client.channel());
                let told = client.told().await.unwrap();
                for (place, row) in told.iter().enumerate() {
                    assert!(in_pages || !told[..place].contains(row), "{what}: told twice: {row:?} in {told:?}");
                    again += usize::from(known.contains(row));
                }
                known.extend(told);
                for row in &expected[&client.channel().to_string()] {
                    let last = known.iter().rev().find(|other| other.1 == row.1);
                    let of_it: Vec<_> = known.iter().filter(|other| other.1 == row.1).collect();
                    assert_eq!(last, Some(row), "{what}: all it was told: {of_it:?}");
                }
            }
        }
    }
    println!("{again} rows were told again");
    assert!(again > 100, "{again}");
}

/// Every kind of trouble with the store, often, while the feed takes back.
#[tokio::test(start_paused = true)]
async fn a_store_that_fails_all_the_time_only_delays_a_rollback() {
    let mut withdrawn = 0;
    for seed in (0..200).chain(NAMED..NAMED + 50) {
        let mut world = World::new(seed);
        let store: Arc<dyn CacheStore> = Arc::new(PlainStore::new());
        run(store.clone(), &world.feed, world.config(seed)).await.unwrap();
        let reader = opened(&store).await;
        world.trouble().into_iter().for_each(|act| world.feed.act(act));
        let faulty = Arc::new(FaultStore::new(store.clone(), seed, Faults::all(0.02)));
        let mut terms = 0;
        loop {
            match run(faulty.clone(), &world.feed, world.config(seed)).await {
                Ok(count) => break withdrawn += count,
                Err(error) => assert!(error.is_retryable(), "seed {seed}: {error:?}"),
            }
            terms += 1;
            assert!(terms < 1_000, "seed {seed}: never got through");
        }
        assert_settled(&store, Some(&reader), &world, &format!("seed {seed}, {terms} terms")).await;
    }
    println!("{withdrawn} entries withdrawn");
    assert!(withdrawn > 200, "{withdrawn}");
}
