//! Readers against each other and against the model: one that follows with small tails, one that follows with large tails, and one that has
//! just been opened must give the same answers at every moment, gaps and late entries included.

use std::sync::Arc;

use futures::StreamExt as _;
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use sluicegate_core::batch::BlockDelta;
use sluicegate_core::block::{BlockState, codec_named};
use sluicegate_core::changes::{Answer, ChangesOptions, Delivery, LateCursor};
use sluicegate_core::commit::read_clock;
use sluicegate_core::decode::MutationDecoder as _;
use sluicegate_core::store::Expiry;
use sluicegate_core::verify::{RepairOptions, VerifyOptions, repair, verify};
use sluicegate_core::{
    BlockIndex, CacheKey, CacheStore, ChangeEntry, Channel, CollectionId, Decoded, EntryFlags, ErrorKind, FeedEvent,
    GatewayDecoder, Membership, Mutation, ReaderConfig, ReaderNode, Sequence, Writer, WriterConfig,
};
use sluicegate_memory::MemoryStore;
use sluicegate_replay::synthetic::{Generated, Synthetic, SyntheticConfig};
use sluicegate_testkit::{FaultStore, Faults, Model, PlainStore};

const CHANNELS: u32 = 6;

fn load(seed: u64, gaps: f64) -> Generated {
    let mut config = SyntheticConfig::rough();
    (config.documents, config.channels, config.body, config.principals) = (40, CHANNELS, 8, 2);
    (config.out_of_order, config.late, config.late_by, config.gaps) = (12, 0.03, 40, gaps);
    (config.unused, config.unused_max, config.restart_every) = (0.02, 40, 0);
    Synthetic::new(config, seed).unwrap().generate(500)
}

async fn writer(store: &Arc<dyn CacheStore>) -> Writer {
    let config = r#"{"max_batch": 16, "max_pending": 15, "hold_first_read": false, "codec": "two-bit", "block_capacity": 64}"#;
    let decoder = Arc::new(GatewayDecoder::default());
    Writer::alone(store.clone(), decoder, "load", serde_json::from_str::<WriterConfig>(config).unwrap()).await.unwrap()
}

fn reader_config(tail_min: usize, tail_max: usize) -> ReaderConfig {
    serde_json::from_str(&format!(r#"{{"tail_min": {tail_min}, "tail_max": {tail_max}, "max_channels": 4}}"#)).unwrap()
}

fn question(random: &mut ChaCha8Rng, high: u64) -> (Vec<Channel>, ChangesOptions) {
    let mut names: Vec<String> = (0..CHANNELS).map(|n| format!("ch{n}")).chain(["*".to_owned()]).collect();
    let mut channels = Vec::new();
    for _ in 0..random.random_range(1..4) {
        channels.push(Channel::new(&names.swap_remove(random.random_range(0..names.len()))).unwrap());
    }
    let mut options = ChangesOptions::new().since(random.random_range(0..=high)).active_only(random.random_bool(0.3));
    options.limit = random.random_bool(0.6).then(|| random.random_range(1..30));
    options.delivery = [Delivery::Strict, Delivery::Eager, Delivery::Auto][random.random_range(0..3)];
    (channels, options)
}

fn text(answer: &Answer) -> String {
    serde_json::to_string(answer).unwrap()
}

fn document(sequence: u64, key: &str) -> Decoded {
    document_of(CollectionId::DEFAULT, sequence, key)
}

/// A document in channel `a` of its collection.
fn document_of(collection: CollectionId, sequence: u64, key: &str) -> Decoded {
    let entry = ChangeEntry::new(Sequence(sequence), key, "1-a", EntryFlags::default()).unwrap();
    let entry = entry.with_channel(Channel::new("a").unwrap(), Membership::Present);
    Decoded::Document(entry.with_collection(collection).into())
}

/// Publishes these sequences of documents in channel `a`, with all that is missing in between given
/// up.
async fn with_given_up(store: &Arc<dyn CacheStore>, sequences: &[u64]) -> Writer {
    let config = r#"{"max_wait_ms": 1, "skip_wait_ms": 1, "codec": "two-bit", "block_capacity": 64}"#;
    let decoder = Arc::new(GatewayDecoder::default());
    let config = serde_json::from_str::<WriterConfig>(config).unwrap();
    let mut writer = Writer::alone(store.clone(), decoder, "load", config).await.unwrap();
    writer.process_decoded(sequences.iter().map(|n| document(*n, &format!("d{n}"))).collect()).await.unwrap();
    writer.finish().await.unwrap();
    while writer.clock().stable.0 < *sequences.last().unwrap() {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        writer.flush().await.unwrap();
    }
    writer
}

async fn shown(store: &Arc<dyn CacheStore>, options: &ChangesOptions) -> Result<Vec<u64>, ErrorKind> {
    let reader = ReaderNode::open(store.clone(), ReaderConfig::default()).await.unwrap();
    let changes = reader.changes(&[Channel::new("a").unwrap()], options).await.map_err(|e| e.kind())?;
    Ok(changes.answer().rows.iter().map(|row| row.id.sequence.0).collect())
}

/// A writer that dies while it commits what was given up leaves blocks that name a document which
/// is not there. Nobody was promised it, and the next writer takes it again.
#[tokio::test(start_paused = true)]
async fn what_was_given_up_and_is_committed_in_part_breaks_nothing() {
    let store: Arc<dyn CacheStore> = Arc::new(MemoryStore::new());
    drop(with_given_up(&store, &[1, 3, 4]).await);
    let codec = codec_named("two-bit", 64).unwrap();
    for channel in [Channel::star(), Channel::new("a").unwrap()] {
        let delta = BlockDelta::new(channel, BlockIndex(0), vec![(2, BlockState::Present)]);
        store.merge_block(&delta, codec.as_ref()).await.unwrap();
    }
    for options in [ChangesOptions::new(), ChangesOptions::new().limit(10), ChangesOptions::new().late(LateCursor(0))] {
        assert_eq!(shown(&store, &options).await.unwrap(), [1, 3, 4], "{options:?}");
    }

    let mut writer = writer(&store).await;
    writer.process_decoded(vec![document(2, "d2")]).await.unwrap();
    writer.flush().await.unwrap();
    assert_eq!(shown(&store, &ChangesOptions::new()).await.unwrap(), [1, 2, 3, 4]);
    assert!(verify(store.as_ref(), &VerifyOptions::default()).await.unwrap().is_clean());
}

/// What a repair found to be lost is given up too, so that a writer takes it again. It was
/// promised: who needs it is told.
#[tokio::test(start_paused = true)]
async fn what_is_lost_is_missed_until_it_comes_again() {
    let store: Arc<dyn CacheStore> = Arc::new(MemoryStore::new());
    drop(with_given_up(&store, &[1, 2, 3, 4]).await);
    store.remove(&CacheKey::Sequence(Sequence(2)), None).await.unwrap();
    // Out of the ring, as far as the repair can know.
    let clock = read_clock(store.as_ref()).await.unwrap().unwrap().value;
    for batch in 0..=clock.batch {
        let key = CacheKey::Batch(batch);
        if let Some(stored) = store.get(&key).await.unwrap() {
            let mut record = sluicegate_core::batch::BatchRecord::from_bytes(&stored.value).unwrap();
            record.entries = Default::default();
            store.replace(&key, record.to_bytes(), stored.version, Expiry::Never).await.unwrap();
        }
    }
    let report = repair(store.as_ref(), &RepairOptions::default()).await.unwrap();
    assert_eq!(report.lost().count(), 1, "{report:#?}");
    for options in [ChangesOptions::new(), ChangesOptions::new().limit(10)] {
        assert_eq!(shown(&store, &options).await, Err(ErrorKind::Corrupt), "{options:?}");
    }
    assert_eq!(shown(&store, &ChangesOptions::new().since(2)).await.unwrap(), [3, 4]);

    let mut writer = writer(&store).await;
    writer.process_decoded(vec![document(2, "d2")]).await.unwrap();
    writer.flush().await.unwrap();
    assert_eq!(shown(&store, &ChangesOptions::new()).await.unwrap(), [1, 2, 3, 4]);
    assert_eq!(writer.clock().late, 1);
}

#[tokio::test]
async fn who_names_no_channel_is_refused_at_once() {
    let store: Arc<dyn CacheStore> = Arc::new(MemoryStore::new());
    let _writer = writer(&store).await;
    let reader = ReaderNode::open(store, ReaderConfig::default()).await.unwrap();
    let waited = reader.wait_for_change(&[], &reader.cut()).await.unwrap_err();
    let followed = reader.follow(Vec::new(), ChangesOptions::new()).next().await.unwrap().unwrap_err();
    for error in [waited, followed] {
        assert!(error.kind() == ErrorKind::ConfigInvalid && error.to_string().contains("no channel is named"), "{error}");
    }
    assert_eq!(reader.changes(&[], &ChangesOptions::new()).await.unwrap().answer().rows.len(), 0);
}

/// Whoever waits for something else than a channel learns that the cache is gone, and does not wait
/// for ever.
#[tokio::test(start_paused = true)]
async fn whoever_waits_learns_that_the_reader_is_lost() {
    let store: Arc<dyn CacheStore> = Arc::new(MemoryStore::new());
    let _writer = writer(&store).await;
    let reader = ReaderNode::open(store.clone(), ReaderConfig::default()).await.unwrap();
    let mut late = reader.late_subscription();
    let waiting = {
        let (reader, mut late) = (reader.clone(), late.clone());
        tokio::spawn(async move {
            let batch = reader.wait_for_batch(99);
            let (batch, late) = tokio::join!(batch, late.next());
            [batch.map(drop), late.map(drop)]
        })
    };
    tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    store.remove(&CacheKey::Clock, None).await.unwrap();
    let told = tokio::time::timeout(std::time::Duration::from_secs(600), waiting).await.expect("they wait for ever").unwrap();
    let later = [reader.wait_for_batch(99).await.map(drop), late.next().await.map(drop)];
    for told in told.into_iter().chain(later) {
        let error = told.unwrap_err();
        assert!(error.kind() == ErrorKind::Corrupt && error.to_string().contains("clock is gone"), "{error}");
    }
    // What it had followed by then, it had followed.
    reader.wait_for_batch(reader.cut().batch).await.unwrap_err();
}

/// While the store does not answer, a batch may still come; a late entry is asked for again.
#[tokio::test(start_paused = true)]
async fn an_offline_reader_is_waited_for_and_comes_back() {
    let memory: Arc<dyn CacheStore> = Arc::new(MemoryStore::new());
    let mut writer = with_given_up(&memory, &[1, 3]).await;
    let faulty = Arc::new(FaultStore::new(memory.clone(), 1, Faults::none()));
    let reader = ReaderNode::open(faulty.clone(), ReaderConfig::default()).await.unwrap();
    let mut late = reader.late_subscription();
    let batch = writer.clock().batch + 1;
    let waiting = tokio::spawn({
        let reader = reader.clone();
        async move { reader.wait_for_batch(batch).await }
    });
    let mut broken = Faults::none();
    broken.fail_before = 1.0;
    faulty.set_faults(broken);
    tokio::time::sleep(std::time::Duration::from_secs(60)).await;
    assert!(late.next().await.unwrap_err().is_retryable());
    faulty.set_faults(Faults::none());
    writer.process_decoded(vec![document(2, "d2")]).await.unwrap();
    writer.flush().await.unwrap();
    assert!(waiting.await.unwrap().unwrap().batch >= batch);
    assert_eq!(late.next().await.unwrap()[0].sequence(), Sequence(2));
}

/// An answer does not end between documents that share a sequence, nor does what follows.
#[tokio::test]
async fn a_limit_does_not_part_documents_of_one_sequence() {
    let store: Arc<dyn CacheStore> = Arc::new(MemoryStore::new());
    let mut writer = writer(&store).await;
    let all = vec![document(1, "a"), document(1, "b"), document(2, "c")];
    writer.process_decoded(all).await.unwrap();
    writer.flush().await.unwrap();
    let reader = ReaderNode::open(store, ReaderConfig::default()).await.unwrap();
    let rows = reader.follow(vec![Channel::star()], ChangesOptions::new().limit(1));
    let keys: Vec<String> = rows.map(|row| row.unwrap().entry.key().to_owned()).collect().await;
    assert_eq!(keys, ["a", "b"]);
}

/// People are shown the number and the slot of a position; programs the number under which it lies.
#[tokio::test(start_paused = true)]
async fn what_is_wrong_with_a_position_is_told_by_number_and_slot() {
    let store: Arc<dyn CacheStore> = Arc::new(MemoryStore::new());
    let mut writer = writer(&store).await;
    writer.process_decoded(vec![document(1, "a"), document(1, "b"), document(1, "c")]).await.unwrap();
    writer.flush().await.unwrap();
    let position = Sequence(1).in_slot(2).unwrap();
    let raw = position.0.to_string();
    store.remove(&CacheKey::Sequence(position), None).await.unwrap();
    let reader = ReaderNode::open(store.clone(), ReaderConfig::default()).await.unwrap();
    let error = reader.changes(&[Channel::star()], &ChangesOptions::new()).await.unwrap_err().to_string();
    assert!(error.contains("_seq:[1 (slot 2)]") && !error.contains(&raw), "{error}");
    for channel in [Channel::star(), Channel::new("a").unwrap()] {
        let codec = codec_named("two-bit", 64).unwrap();
        let delta =
            BlockDelta::new(channel, BlockIndex(position.0 / 64), vec![((position.0 % 64) as u32 + 1, BlockState::Present)]);
        store.merge_block(&delta, codec.as_ref()).await.unwrap();
    }
    let report = verify(store.as_ref(), &VerifyOptions::default()).await.unwrap();
    assert!(!report.is_clean());
    let told: String = report.findings.iter().map(|finding| format!("{finding}\n")).collect();
    let next = position.next().0.to_string();
    assert!(told.contains("1 (slot 2)") && !told.contains(&format!("[{raw}]")) && !told.contains(&next), "{told}");
    let json = serde_json::to_string(&report).unwrap();
    assert!(json.contains(&format!("_cache:_seq:[{raw}]")), "{json}");
}

#[tokio::test]
async fn tails_and_blocks_give_the_same_answers_at_every_moment() {
    let mut asked = 0;
    for seed in 0..30 {
        let generated = load(seed, 0.01);
        let store: Arc<dyn CacheStore> = Arc::new(MemoryStore::new());
        let mut writer = writer(&store).await;
        let small = ReaderNode::open(store.clone(), reader_config(2, 3)).await.unwrap();
        let large = ReaderNode::open(store.clone(), reader_config(50, 500)).await.unwrap();
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut rest = &generated.mutations[..];
        while !rest.is_empty() {
            let (now, later) = rest.split_at(random.random_range(1..40).min(rest.len()));
            rest = later;
            writer.process(now.iter().cloned().map(FeedEvent::Mutation).collect::<Vec<_>>().into()).await.unwrap();
            writer.flush().await.unwrap();
            let fresh = ReaderNode::open(store.clone(), reader_config(50, 500)).await.unwrap();
            for reader in [&small, &large, &fresh] {
                reader.refresh().await.unwrap();
            }
            for _ in 0..6 {
                asked += 1;
                let (channels, options) = question(&mut random, fresh.cut().high.0);
                let mut answers = Vec::new();
                for reader in [&small, &large, &fresh] {
                    answers.push(reader.changes(&channels, &options).await.unwrap().answer());
                }
                let what = format!("seed {seed}, {channels:?}, {options:?}, {:?}", fresh.cut());
                assert_eq!(text(&answers[0]), text(&answers[2]), "small tails and none: {what}");
                assert_eq!(text(&answers[1]), text(&answers[2]), "large tails and none: {what}");
            }
        }
    }
    assert!(asked > 1_000, "{asked}");
}

#[tokio::test]
async fn answers_are_those_of_the_model() {
    for seed in 100..130 {
        let generated = load(seed, 0.0);
        let store: Arc<dyn CacheStore> = Arc::new(MemoryStore::new());
        let mut writer = writer(&store).await;
        let reader = ReaderNode::open(store.clone(), reader_config(5, 20)).await.unwrap();
        let (decoder, mut model) = (GatewayDecoder::default(), Model::new());
        for chunk in generated.mutations.chunks(23) {
            writer.process(chunk.iter().cloned().map(FeedEvent::Mutation).collect::<Vec<_>>().into()).await.unwrap();
            chunk.iter().for_each(|mutation| model.apply(&decoder.decode(mutation)));
        }
        writer.finish().await.unwrap();
        reader.refresh().await.unwrap();
        assert!(!reader.cut().has_gaps, "nothing is lost in this load");
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        for _ in 0..60 {
            let (channels, options) = question(&mut random, generated.high.0);
            let answer = reader.changes(&channels, &options).await.unwrap().answer();
            let ours: Vec<_> = answer
                .rows
                .iter()
                .map(|row| {
                    let removed: Vec<String> = row.removed.iter().map(|c| c.name().to_owned()).collect();
                    (row.id.sequence, row.entry.key().to_owned(), row.entry.revision().to_owned(), row.deleted, removed)
                })
                .collect();
            let expected = model.changes(&channels, options.since.sequence, options.limit, options.active_only);
            assert_eq!(ours, expected, "seed {seed}, {channels:?}, {options:?}");
        }
    }
}

/// Whatever comes late, a client that goes on from its last answer and its late cursor is told once.
#[tokio::test]
async fn a_client_with_a_late_cursor_is_told_everything_once() {
    let mut late = 0;
    for seed in 200..240 {
        let generated = load(seed, 0.0);
        let store: Arc<dyn CacheStore> = Arc::new(MemoryStore::new());
        let mut writer = writer(&store).await;
        let reader = ReaderNode::open(store.clone(), reader_config(5, 20)).await.unwrap();
        let mut subscription = reader.late_subscription();
        let mut options = ChangesOptions::new().delivery(Delivery::Eager).late(LateCursor(0));
        let mut told = std::collections::BTreeMap::new();
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        for chunk in generated.mutations.chunks(11) {
            writer.process(chunk.iter().cloned().map(FeedEvent::Mutation).collect::<Vec<_>>().into()).await.unwrap();
            writer.flush().await.unwrap();
            reader.refresh().await.unwrap();
            options.limit = random.random_bool(0.5).then(|| random.random_range(1..10));
            loop {
                let answer = reader.changes(&[Channel::star()], &options).await.unwrap().answer();
                for row in &answer.rows {
                    let before = told.insert(row.id.sequence, row.entry.clone());
                    assert_eq!(before, None, "seed {seed}: {row:?} was told before");
                }
                let done = answer.rows.is_empty() && Some(answer.late) == options.late;
                options.since = answer.last.sequence.into();
                options.late = Some(answer.late);
                if done {
                    break;
                }
            }
        }
        writer.finish().await.unwrap();
        reader.refresh().await.unwrap();
        options.limit = None;
        let rest = reader.changes(&[Channel::star()], &options).await.unwrap().answer();
        for row in &rest.rows {
            assert_eq!(told.insert(row.id.sequence, row.entry.clone()), None, "seed {seed}: {row:?} was told before");
        }
        let everything =
            reader.changes(&[Channel::star()], &ChangesOptions::new().delivery(Delivery::Eager)).await.unwrap().answer();
        for row in &everything.rows {
            assert!(told.contains_key(&row.id.sequence), "seed {seed}: {row:?} was never told");
        }
        let announced = writer.clock().late;
        late += announced;
        if announced > 0 {
            let entries = subscription.next().await.unwrap();
            assert_eq!(entries.len() as u64, announced, "seed {seed}");
            assert_eq!(subscription.cursor(), LateCursor(announced));
        }
    }
    assert!(late > 100, "only {late} entries came late");
}

#[tokio::test(start_paused = true)]
async fn who_waits_is_woken_by_its_own_channels_only() {
    let generated = load(7, 0.0);
    let store: Arc<dyn CacheStore> = Arc::new(MemoryStore::new());
    let mut writer = writer(&store).await;
    let reader = ReaderNode::open(store.clone(), ReaderConfig::default()).await.unwrap();
    let seen = reader.cut();
    let quiet = tokio::spawn({
        let reader = reader.clone();
        async move { reader.wait_for_change(&[Channel::new("nothing-here").unwrap()], &seen).await }
    });
    let busy = tokio::spawn({
        let reader = reader.clone();
        async move { reader.wait_for_change(&[Channel::star()], &seen).await }
    });
    tokio::task::yield_now().await;
    writer.process(generated.mutations.into_iter().map(FeedEvent::Mutation).collect::<Vec<_>>().into()).await.unwrap();
    writer.finish().await.unwrap();
    assert!(busy.await.unwrap().unwrap().batch > seen.batch);
    tokio::time::sleep(std::time::Duration::from_secs(60)).await;
    assert!(!quiet.is_finished());
    quiet.abort();
}

/// A channel of the same name in another collection wakes nobody, nor does that collection's star
/// channel.
#[tokio::test(start_paused = true)]
async fn who_waits_is_woken_by_the_channel_of_its_own_collection_only() {
    let store: Arc<dyn CacheStore> = Arc::new(MemoryStore::new());
    let mut writer = writer(&store).await;
    let reader = ReaderNode::open(store.clone(), ReaderConfig::default()).await.unwrap();
    let seen = reader.cut();
    let (of_8, of_9) = (CollectionId(8), CollectionId(9));
    let channels = [Channel::of(of_8, "a").unwrap(), Channel::star_of(of_8)];
    let wait = |channel: Channel| {
        let reader = reader.clone();
        tokio::spawn(async move { reader.wait_for_change(&[channel], &seen).await.unwrap() })
    };
    let waiting = channels.clone().map(wait);
    let busy = [of_9, CollectionId::DEFAULT].map(|collection| wait(Channel::of(collection, "a").unwrap()));
    let mut followed = reader.follow(vec![channels[0].clone()], ChangesOptions::new());
    let pause = std::time::Duration::from_secs(60);
    assert!(tokio::time::timeout(pause, followed.next()).await.is_err());
    for (sequence, collection) in [(1, of_9), (2, CollectionId::DEFAULT), (3, of_9)] {
        writer.process_decoded(vec![document_of(collection, sequence, "d")]).await.unwrap();
        writer.flush().await.unwrap();
    }
    for task in busy {
        assert!(task.await.unwrap().batch > seen.batch);
    }
    let next = tokio::time::timeout(pause, followed.next()).await;
    assert!(next.is_err(), "who follows is shown {next:?}");
    assert!(waiting.iter().all(|task| !task.is_finished()));
    let before = reader.cut();

    writer.process_decoded(vec![document_of(of_8, 4, "d")]).await.unwrap();
    writer.flush().await.unwrap();
    for task in waiting {
        assert!(task.await.unwrap().batch > before.batch);
    }
    let row = followed.next().await.unwrap().unwrap();
    assert_eq!((row.id.sequence, row.entry.collection()), (Sequence(4), of_8));
}

#[tokio::test(start_paused = true)]
async fn a_reader_goes_offline_with_its_store_and_comes_back() {
    let memory: Arc<dyn CacheStore> = Arc::new(MemoryStore::new());
    let writer = writer(&memory).await;
    let faulty = Arc::new(FaultStore::new(memory.clone(), 1, Faults::none()));
    let reader = ReaderNode::open(faulty.clone(), ReaderConfig::default()).await.unwrap();
    let options = ChangesOptions::new();
    reader.changes(&[Channel::star()], &options).await.unwrap();
    let mut broken = Faults::none();
    broken.fail_before = 1.0;
    faulty.set_faults(broken);
    tokio::time::sleep(std::time::Duration::from_secs(30)).await;
    let error = reader.changes(&[Channel::star()], &options).await.unwrap_err();
    assert!(error.is_retryable() && error.to_string().contains("offline"), "{error}");
    faulty.set_faults(Faults::none());
    tokio::time::sleep(std::time::Duration::from_secs(5)).await;
    reader.changes(&[Channel::star()], &options).await.unwrap();

    // A clock that goes back is no clock of this cache any more.
    let mut clock = writer.clock().clone();
    clock.cache = sluicegate_core::CacheId::random();
    let version = memory.get(&CacheKey::Clock).await.unwrap().unwrap().version;
    memory.replace(&CacheKey::Clock, clock.to_bytes(), version, sluicegate_core::store::Expiry::Never).await.unwrap();
    tokio::time::sleep(std::time::Duration::from_secs(5)).await;
    let error = reader.changes(&[Channel::star()], &options).await.unwrap_err();
    assert!(!error.is_retryable() && error.to_string().contains("another cache id"), "{error}");
}

/// Whoever read an older clock and was slow must not take the node back from a newer one.
#[tokio::test]
async fn of_two_who_catch_up_at_once_the_slower_does_not_take_the_node_back() {
    let generated = load(1, 0.0);
    let store: Arc<dyn CacheStore> = Arc::new(MemoryStore::new());
    let mut writer = writer(&store).await;
    let mut parts = generated.mutations.chunks(100);
    let mut publish = async || {
        let part = parts.next().unwrap();
        writer.process(part.iter().cloned().map(FeedEvent::Mutation).collect::<Vec<_>>().into()).await.unwrap();
        writer.flush().await.unwrap();
        writer.clock().batch
    };
    publish().await;
    let faulty = Arc::new(FaultStore::new(store.clone(), 0, Faults::none()));
    let config: ReaderConfig = serde_json::from_str(r#"{"poll_min_ms": 3600000, "poll_max_ms": 3600000}"#).unwrap();
    let reader = ReaderNode::open(faulty.clone(), config).await.unwrap();
    publish().await;
    // The first has read the clock and is held at the first record.
    let mut pause = faulty.pause_at(2);
    let refresh = |reader: &ReaderNode| {
        tokio::spawn({
            let reader = reader.clone();
            async move { reader.refresh().await.unwrap() }
        })
    };
    let first = refresh(&reader);
    assert!(pause.reached().await);
    let last = publish().await;
    let second = refresh(&reader);
    for _ in 0..1_000 {
        tokio::task::yield_now().await;
    }
    pause.resume();
    first.await.unwrap();
    assert_eq!(second.await.unwrap().batch, last);
    assert_eq!(reader.clock().batch, last);
}

/// The store goes back, and another writer has caught up before the reader looks again: the clock has not gone back, and all the same batches that
/// the reader takes for known are others.
#[tokio::test]
async fn a_reader_that_slept_while_the_store_went_back_finds_out() {
    for seed in 0..10 {
        let generated = load(300 + seed, 0.01);
        let plain = Arc::new(PlainStore::new());
        let store: Arc<dyn CacheStore> = plain.clone();
        let publish = async |some: &[Mutation], each: usize| {
            let mut writer = writer(&store).await;
            for chunk in some.chunks(each) {
                writer.process(chunk.iter().cloned().map(FeedEvent::Mutation).collect::<Vec<_>>().into()).await.unwrap();
                writer.flush().await.unwrap();
            }
        };
        publish(&generated.mutations[..100], 10).await;
        let keys = plain.keys();
        let kept: Vec<_> = keys.iter().cloned().zip(plain.get_many(&keys).await.unwrap()).collect();
        publish(&generated.mutations[100..200], 10).await;

        let asleep = serde_json::from_str(r#"{"poll_min_ms": 3600000, "poll_max_ms": 3600000}"#).unwrap();
        let reader = ReaderNode::open(store.clone(), asleep).await.unwrap();
        reader.changes(&[Channel::star()], &ChangesOptions::new()).await.unwrap();
        for key in plain.keys() {
            plain.remove(&key, None).await.unwrap();
        }
        for (key, document) in kept {
            plain.insert(&key, document.unwrap().value, Expiry::Never).await.unwrap();
        }
        // Another term, for the second writer's epoch is gone.
        publish(&[], 1).await;
        publish(&generated.mutations[100..], 7).await;

        let clock = read_clock(store.as_ref()).await.unwrap().unwrap().value;
        assert_eq!(clock.lost_since(&reader.clock()), None, "the clock does not tell");
        reader.refresh().await.unwrap();
        let error = reader.changes(&[Channel::star()], &ChangesOptions::new()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error:?}");
        assert!(error.to_string().contains("lost what it had acknowledged"), "{error}");
    }
}
