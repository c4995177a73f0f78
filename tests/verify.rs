//! Each kind of damage to a cache is found, under the key where it is.

#![cfg(all(feature = "memory", feature = "replay"))]

mod support;

use std::sync::Arc;

use bytes::Bytes;
use sluicegate::block::{Block, BlockState, codec_named};
use sluicegate::changes::{ChangesOptions, Delivery};
use sluicegate::core::batch::{BatchRecord, Checkpoint, LatePage};
use sluicegate::core::directory::Directory;
use sluicegate::core::store::Expiry;
use sluicegate::core::verify::{Problem, RepairOptions, RepairReport, VerifyOptions, VerifyReport, repair, verify};
use sluicegate::pointer::Supersession;
use sluicegate::{
    BlockIndex, CacheKey, CacheStore, ChangeEntry, Channel, CollectionId, Decoded, DocumentId, Epoch, ErrorKind, Feed, FeedEvent,
    MutationDecoder as _, PublishedClock, ReaderConfig, ReaderNode, Sequence, Writer, WriterConfig, WriterNode,
};
use sluicegate_memory::MemoryStore;
use sluicegate_replay::MemoryFeed;
use sluicegate_testkit::{FaultStore, Faults, PlainStore};
use support::{Notation, mutations};

const FEED: &str = "mutations:first";
const CAPACITY: u32 = 64;

fn config() -> WriterConfig {
    let mut config = WriterConfig::default();
    (config.block_capacity, config.ring) = (CAPACITY, 8);
    config
}

async fn write(store: &Arc<dyn CacheStore>, feed: &str, lines: &[&str]) {
    let feed = Arc::new(MemoryFeed::new(feed, mutations(lines)));
    let node = WriterNode::new(store.clone(), feed).with_decoder(Arc::new(Notation)).with_config(config());
    node.run(std::future::pending()).await.unwrap();
}

/// A cache of two blocks in which everything occurs: several revisions, a removal, a gap, and a late entry.
async fn cache() -> Arc<dyn CacheStore> {
    let store: Arc<dyn CacheStore> = Arc::new(MemoryStore::new());
    let mut lines = vec!["1 a +A", "2 b +A +B", "3 a +A over 1", "4 c +B", "5 b +A -B over 2", "7 d +A", "9 e +B"];
    let more: Vec<String> = (10..90).map(|n| format!("{n} n{n} +A")).collect();
    lines.extend(more.iter().map(String::as_str));
    // With the first feed's name, so that its checkpoint is the newest.
    write(&store, "first", &lines).await;
    let all: Vec<&str> = lines.iter().copied().chain(["6 f +A +B"]).collect();
    write(&store, "first", &all).await;
    store
}

async fn checked(store: &Arc<dyn CacheStore>) -> VerifyReport {
    verify(store.as_ref(), &VerifyOptions::default().feed(FEED)).await.unwrap()
}

fn channel(name: &str) -> Channel {
    Channel::new(name).unwrap()
}

fn block_key(name: &str, index: u64) -> CacheKey {
    CacheKey::Block(channel(name), BlockIndex(index))
}

fn sequence_key(n: u64) -> CacheKey {
    CacheKey::Sequence(Sequence(n))
}

async fn overwrite(store: &Arc<dyn CacheStore>, key: &CacheKey, value: impl Into<Bytes>) {
    store.remove(key, None).await.unwrap();
    store.insert(key, value.into(), Expiry::Never).await.unwrap();
}

async fn stored(store: &Arc<dyn CacheStore>, key: &CacheKey) -> Bytes {
    store.get(key).await.unwrap().unwrap_or_else(|| panic!("{key} is not there")).value
}

/// Writes a block anew, with these states in place of what it says of some sequences.
async fn restate(store: &Arc<dyn CacheStore>, name: &str, index: u64, states: &[(u64, BlockState)]) {
    let key = block_key(name, index);
    let codec = codec_named(&config().codec, CAPACITY).unwrap();
    let old = codec.decode(&stored(store, &key).await).unwrap();
    let mut new = Block::new(CAPACITY);
    let offset = |n: u64| (n - index * u64::from(CAPACITY)) as u32;
    for (at, state) in old.iter().filter(|(at, _)| states.iter().all(|(n, _)| offset(*n) != *at)) {
        new.raise(at, state);
    }
    for (n, state) in states {
        new.raise(offset(*n), *state);
    }
    overwrite(store, &key, codec.encode(&new)).await;
}

#[track_caller]
fn assert_found(report: &VerifyReport, problem: Problem, key: &CacheKey) {
    let found = report.findings.iter().any(|finding| finding.problem == problem && finding.key == *key);
    assert!(found, "no {problem} at {key} in {:#?}", report.findings);
}

#[tokio::test]
async fn a_sound_cache_has_nothing_wrong() {
    let report = checked(&cache().await).await;
    assert!(report.is_clean(), "{:#?}", report.findings);
    // Six before the gap, one late, two after it, and eighty.
    assert_eq!((report.channels, report.documents), (3, 88));
    let clock = report.clock.unwrap();
    assert_eq!((clock.late, clock.gaps, clock.stable), (1, 1, Sequence(7)));
}

#[tokio::test]
async fn what_is_no_cache_is_refused() {
    let error = verify(&MemoryStore::new(), &VerifyOptions::default()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn a_sequence_document_that_is_gone_is_found() {
    for n in [4, 6] {
        let store = cache().await;
        store.remove(&sequence_key(n), None).await.unwrap();
        assert_found(&checked(&store).await, Problem::Missing, &sequence_key(n));
    }
}

#[tokio::test]
async fn a_superseded_document_may_be_gone() {
    let store = cache().await;
    store.remove(&sequence_key(1), None).await.unwrap();
    let report = checked(&store).await;
    assert!(report.is_clean(), "{:#?}", report.findings);
}

/// Sequence 8, in A and B, is stored and shown in A only, and then its writer is gone; the feed goes on with a later revision, above a number that is missing.
async fn cut_off(later: &str) -> Arc<dyn CacheStore> {
    let store: Arc<dyn CacheStore> = Arc::new(MemoryStore::new());
    let lines = ["1 a +A", "2 b +B", "3 c +A +B", "4 d +A", "5 e +B", "6 f +A", "7 g +B"];
    write(&store, "first", &lines).await;
    let Decoded::Document(document) = Notation.decode(&mutations(&["8 x +A +B"])[0]) else { panic!() };
    store.insert(&sequence_key(8), document.entry.to_bytes(), Expiry::Never).await.unwrap();
    restate(&store, "A", 0, &[(8, BlockState::Present)]).await;
    write(&store, "first", &lines.into_iter().chain(["9 h +A", later]).collect::<Vec<_>>()).await;
    store
}

/// As ARCHITECTURE.md says under "Known limits".
#[tokio::test]
async fn what_a_cut_off_commit_left_out_is_named_until_stable_passes_the_later_revision() {
    let later = "12 x +A +B over 8";
    let store = cut_off(later).await;
    let report = checked(&store).await;
    let clock = report.clock.as_ref().unwrap();
    assert!(clock.stable < Sequence(12) && clock.high == Sequence(12), "{clock:?}");
    assert_found(&report, Problem::WrongState, &block_key("*", 0));
    assert_found(&report, Problem::WrongState, &block_key("B", 0));
    assert!(
        report.findings.len() == 2 && report.findings.iter().all(|f| f.detail.starts_with("it does not know 8")),
        "{report:#?}"
    );

    // The numbers that were missing come, after what was taken already.
    let lines = ["1 a +A"; 9].into_iter().chain([later, "10 z +A", "11 z +B over 10"]);
    write(&store, "first", &lines.collect::<Vec<_>>()).await;
    let report = checked(&store).await;
    assert!(report.is_clean() && report.clock.as_ref().unwrap().marked >= Sequence(12), "{report:#?}");
}

#[tokio::test]
async fn a_document_above_high_that_a_published_batch_stored_is_found_if_it_is_gone() {
    let store: Arc<dyn CacheStore> = Arc::new(MemoryStore::new());
    let feed = Arc::new(MemoryFeed::new("first", mutations(&["1 a +A", "3 b +A"])));
    let epoch = Epoch::default().successor(1);
    let mut writer = Writer::take_over(store.clone(), Arc::new(Notation), FEED, epoch, config()).await.unwrap();
    let batch = feed.mutations().iter().cloned().map(FeedEvent::Mutation).collect::<Vec<_>>();
    writer.process(batch.into()).await.unwrap();
    writer.flush().await.unwrap();
    let report = checked(&store).await;
    assert_eq!((report.is_clean(), report.clock.unwrap().high), (true, Sequence(1)));

    restate(&store, "A", 0, &[(3, BlockState::Absent)]).await;
    assert_found(&checked(&store).await, Problem::WrongState, &block_key("A", 0));
    store.remove(&sequence_key(3), None).await.unwrap();
    assert_found(&checked(&store).await, Problem::Missing, &sequence_key(3));
}

#[tokio::test]
async fn a_sequence_document_of_garbage_is_found_once() {
    let store = cache().await;
    overwrite(&store, &sequence_key(2), "{").await;
    let report = checked(&store).await;
    assert_found(&report, Problem::Unreadable, &sequence_key(2));
    assert_eq!(report.findings.iter().filter(|f| f.key == sequence_key(2)).count(), 1);
}

#[tokio::test]
async fn a_sequence_document_in_anothers_place_is_found() {
    let store = cache().await;
    let other = stored(&store, &sequence_key(4)).await;
    overwrite(&store, &sequence_key(3), other).await;
    assert_found(&checked(&store).await, Problem::Misplaced, &sequence_key(3));
}

#[tokio::test]
async fn a_block_that_forgot_a_row_is_found() {
    for (name, index, n) in [("B", 0, 4), ("A", 1, 70), ("A", 0, 1)] {
        let store = cache().await;
        restate(&store, name, index, &[(n, BlockState::Absent)]).await;
        assert_found(&checked(&store).await, Problem::WrongState, &block_key(name, index));
    }
}

#[tokio::test]
async fn a_row_of_the_wrong_kind_is_found() {
    for (name, n, state) in [("B", 5, BlockState::Present), ("B", 4, BlockState::Removal), ("*", 4, BlockState::Removal)] {
        let store = cache().await;
        restate(&store, name, 0, &[(n, state)]).await;
        assert_found(&checked(&store).await, Problem::WrongState, &block_key(name, 0));
    }
}

#[tokio::test]
async fn a_row_that_is_not_in_the_channel_is_found() {
    let store = cache().await;
    restate(&store, "B", 0, &[(7, BlockState::Present)]).await;
    assert_found(&checked(&store).await, Problem::StrayRow, &block_key("B", 0));
}

#[tokio::test]
async fn an_older_row_that_is_shown_beside_a_newer_one_is_found() {
    for name in ["A", "*"] {
        let store = cache().await;
        restate(&store, name, 0, &[(1, BlockState::Present)]).await;
        assert_found(&checked(&store).await, Problem::DuplicateRow, &block_key(name, 0));
    }
}

#[tokio::test]
async fn a_newest_row_that_is_not_shown_is_found() {
    for name in ["A", "*"] {
        let store = cache().await;
        restate(&store, name, 0, &[(3, BlockState::Superseded)]).await;
        assert_found(&checked(&store).await, Problem::LostRow, &block_key(name, 0));
    }
}

#[tokio::test]
async fn a_block_that_the_directory_does_not_list_is_found() {
    let store = cache().await;
    let key = CacheKey::Directory(channel("A"));
    let mut directory = Directory::from_bytes(&stored(&store, &key).await, &channel("A")).unwrap();
    assert!(directory.unlist(BlockIndex(0)));
    overwrite(&store, &key, directory.to_bytes()).await;
    assert_found(&checked(&store).await, Problem::UnlistedBlock, &key);

    store.remove(&key, None).await.unwrap();
    assert_found(&checked(&store).await, Problem::UnlistedBlock, &key);
}

#[tokio::test]
async fn a_block_of_the_star_channel_that_is_not_listed_is_found_through_the_others() {
    let store = cache().await;
    let key = CacheKey::Directory(Channel::star());
    let mut directory = Directory::from_bytes(&stored(&store, &key).await, &Channel::star()).unwrap();
    assert!(directory.unlist(BlockIndex(1)));
    overwrite(&store, &key, directory.to_bytes()).await;
    assert_found(&checked(&store).await, Problem::UnlistedBlock, &key);
}

#[tokio::test]
async fn directories_and_blocks_of_garbage_are_found() {
    for key in [CacheKey::Directory(channel("A")), block_key("B", 0), block_key("*", 1)] {
        let store = cache().await;
        overwrite(&store, &key, "garbage").await;
        assert_found(&checked(&store).await, Problem::Unreadable, &key);
    }
}

#[tokio::test]
async fn a_directory_of_another_channel_is_found() {
    let store = cache().await;
    let key = CacheKey::Directory(channel("A"));
    let other = stored(&store, &CacheKey::Directory(channel("B"))).await;
    overwrite(&store, &key, other).await;
    assert_found(&checked(&store).await, Problem::Unreadable, &key);
}

#[tokio::test]
async fn a_block_that_is_gone_is_found() {
    let store = cache().await;
    store.remove(&block_key("A", 1), None).await.unwrap();
    assert_found(&checked(&store).await, Problem::Missing, &block_key("A", 1));
}

/// The new blocks name only what came since. Some of the documents may be in no other channel.
#[tokio::test]
async fn rows_of_blocks_that_were_lost_and_made_anew_are_restored() {
    for (some, lost) in [(2, "*"), (1, "*"), (1, "A")] {
        restores_lost_blocks(some, lost).await;
    }
}

/// One document of `some` is in a channel.
async fn restores_lost_blocks(some: u64, lost: &str) {
    let store: Arc<dyn CacheStore> = Arc::new(MemoryStore::new());
    let lines: Vec<String> = (1..=60).map(|n| format!("{n} n{n}{}", if n % some == 0 { " +A" } else { "" })).collect();
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    // More batches than the ring has records.
    let config = config().with_batch(1);
    let write = async |lines: &[&str]| {
        let feed = Arc::new(MemoryFeed::new("first", mutations(lines)));
        let node = WriterNode::new(store.clone(), feed).with_decoder(Arc::new(Notation)).with_config(config.clone());
        node.run(std::future::pending()).await.unwrap();
    };
    write(&lines[..30]).await;
    store.remove(&block_key(lost, 0), None).await.unwrap();
    write(&lines).await;
    assert_found(&checked(&store).await, Problem::WrongState, &block_key(lost, 0));
    assert_clean(&repaired(&store).await.left, "repaired");
    assert_eq!((shown(&store, "*").await.len(), shown(&store, "A").await.len()), (60, 60 / some as usize));
}

#[tokio::test]
async fn a_channel_without_a_counter_is_found() {
    let store = cache().await;
    let key = CacheKey::Counter(channel("B"));
    store.remove(&key, None).await.unwrap();
    assert_found(&checked(&store).await, Problem::NoCounter, &key);
}

#[tokio::test]
async fn a_clock_that_contradicts_itself_or_the_last_record_is_found() {
    let spoil: [fn(&mut PublishedClock); 5] = [
        |clock| clock.stable = clock.high.next(),
        |clock| clock.marked = clock.stable.next(),
        |clock| clock.gaps = 0,
        |clock| clock.checkpoint = clock.batch + 1,
        |clock| clock.settled = clock.high.next(),
    ];
    for spoil in spoil {
        let store = cache().await;
        let mut clock = PublishedClock::from_bytes(&stored(&store, &CacheKey::Clock).await).unwrap();
        spoil(&mut clock);
        overwrite(&store, &CacheKey::Clock, clock.to_bytes()).await;
        assert_found(&checked(&store).await, Problem::Contradiction, &CacheKey::Clock);
    }
}

#[tokio::test]
async fn a_clock_or_description_that_is_gone_or_garbage_is_found() {
    for key in [CacheKey::Clock, CacheKey::Meta] {
        let store = cache().await;
        overwrite(&store, &key, "garbage").await;
        assert_found(&checked(&store).await, Problem::Unreadable, &key);
        store.remove(&key, None).await.unwrap();
        assert_found(&checked(&store).await, Problem::Missing, &key);
    }
}

#[tokio::test]
async fn a_batch_record_that_is_gone_wrong_or_garbage_is_found() {
    let store = cache().await;
    let clock = PublishedClock::from_bytes(&stored(&store, &CacheKey::Clock).await).unwrap();
    let key = CacheKey::Batch(clock.batch % config().ring);
    let record = BatchRecord::from_bytes(&stored(&store, &key).await).unwrap();

    overwrite(&store, &key, BatchRecord { number: record.number - 1, ..record.clone() }.to_bytes()).await;
    assert_found(&checked(&store).await, Problem::Contradiction, &key);
    overwrite(&store, &key, BatchRecord { gaps: Vec::new(), ..record }.to_bytes()).await;
    assert_found(&checked(&store).await, Problem::Contradiction, &key);
    overwrite(&store, &key, "garbage").await;
    assert_found(&checked(&store).await, Problem::Unreadable, &key);
    store.remove(&key, None).await.unwrap();
    assert_found(&checked(&store).await, Problem::Missing, &key);
}

#[tokio::test]
async fn a_late_page_that_is_gone_wrong_or_garbage_is_found() {
    let store = cache().await;
    let key = CacheKey::Late(0);
    let page = LatePage::from_bytes(&stored(&store, &key).await).unwrap();
    assert_eq!(page.entries.len(), 1);

    overwrite(&store, &key, LatePage { entries: Vec::new(), ..page }.to_bytes()).await;
    assert_found(&checked(&store).await, Problem::Contradiction, &key);
    overwrite(&store, &key, "garbage").await;
    assert_found(&checked(&store).await, Problem::Unreadable, &key);
    store.remove(&key, None).await.unwrap();
    assert_found(&checked(&store).await, Problem::Missing, &key);
}

#[tokio::test]
async fn a_checkpoint_that_is_gone_ahead_or_garbage_is_found() {
    let store = cache().await;
    let key = CacheKey::Checkpoint(FEED.to_owned());
    let checkpoint = Checkpoint::from_bytes(&stored(&store, &key).await).unwrap();

    overwrite(&store, &key, Checkpoint { batch: checkpoint.batch + 7, ..checkpoint.clone() }.to_bytes()).await;
    assert_found(&checked(&store).await, Problem::Contradiction, &key);
    let mut ahead = checkpoint.clone();
    ahead.sequencer.next = Sequence(1_000);
    overwrite(&store, &key, ahead.to_bytes()).await;
    assert_found(&checked(&store).await, Problem::Contradiction, &key);
    overwrite(&store, &key, Checkpoint { batch: 0, ..checkpoint }.to_bytes()).await;
    assert_found(&checked(&store).await, Problem::Contradiction, &key);
    overwrite(&store, &key, "garbage").await;
    assert_found(&checked(&store).await, Problem::Unreadable, &key);
    store.remove(&key, None).await.unwrap();
    assert_found(&checked(&store).await, Problem::Missing, &key);
}

#[tokio::test]
async fn findings_beyond_the_limit_are_counted() {
    let store = cache().await;
    for n in 20..30 {
        store.remove(&sequence_key(n), None).await.unwrap();
    }
    let report = verify(store.as_ref(), &VerifyOptions::default().max_findings(3)).await.unwrap();
    assert_eq!(report.findings.len(), 3);
    assert!(report.more_findings >= 7, "{}", report.more_findings);
}

async fn repaired(store: &Arc<dyn CacheStore>) -> RepairReport {
    repair(store.as_ref(), &RepairOptions::default().feed(FEED)).await.unwrap()
}

/// The rows of a reader that was just opened: sequence and document.
async fn shown(store: &Arc<dyn CacheStore>, name: &str) -> Vec<(u64, String)> {
    let reader = ReaderNode::open(store.clone(), ReaderConfig::default()).await.unwrap();
    let options = ChangesOptions::new().delivery(Delivery::Eager);
    let answer = reader.changes(&[channel(name)], &options).await.unwrap().answer();
    answer.rows.iter().map(|row| (row.entry.sequence().0, row.entry.key().to_owned())).collect()
}

#[track_caller]
fn assert_clean(report: &VerifyReport, what: &str) {
    assert!(report.is_clean() && report.clock.is_some(), "{what}: {:#?}", report.findings);
}

async fn assert_nothing_to_repair(store: &Arc<dyn CacheStore>, what: &str) {
    assert_clean(&checked(store).await, what);
    let report = repaired(store).await;
    assert!(report.repairs.is_empty() && report.epoch.is_none(), "{what}: {report:#?}");
}

async fn play(store: &Arc<dyn CacheStore>, feed: Arc<dyn Feed>, supersession: Supersession) {
    let node = WriterNode::new(store.clone(), feed).with_config(config().with_supersession(supersession));
    node.run(std::future::pending()).await.unwrap();
}

/// Gateways before 1.5 gave a later revision a lower sequence where two nodes wrote one document.
#[tokio::test]
async fn a_later_revision_with_a_lower_sequence_is_sound() {
    let file = concat!("replay:", env!("CARGO_MANIFEST_DIR"), "/testdata/reports/09-later-revision-lower-sequence.ndjson");
    for supersession in [Supersession::Recents, Supersession::Pointers] {
        let store: Arc<dyn CacheStore> = Arc::new(MemoryStore::new());
        play(&store, sluicegate::open_feed(file).await.unwrap(), supersession).await;
        let rows = [(1, "o1"), (2, "o2"), (3, "o3"), (4, "x"), (6, "y")].map(|(n, key)| (n, key.to_owned()));
        let report = verify(store.as_ref(), &VerifyOptions::default()).await.unwrap();
        assert_clean(&report, &format!("{supersession:?}"));
        let report = repair(store.as_ref(), &RepairOptions::default()).await.unwrap();
        assert!(report.repairs.is_empty(), "{supersession:?}: {report:#?}");
        for name in ["*", "A"] {
            assert_eq!(shown(&store, name).await, rows, "{supersession:?}, {name}");
        }
    }
}

/// A document in blocks 0 and 2, the later revision in block 0.
async fn upward(later: &str) -> Arc<dyn CacheStore> {
    let store: Arc<dyn CacheStore> = Arc::new(MemoryStore::new());
    let mut lines: Vec<String> = (1..=140).filter(|n| *n != 4).map(|n| format!("{n} n{n} +A")).collect();
    lines[128] = "130 x +A".to_owned();
    lines.push(later.to_owned());
    write(&store, "first", &lines.iter().map(String::as_str).collect::<Vec<_>>()).await;
    store
}

#[tokio::test]
async fn a_later_revision_in_a_lower_block_is_looked_for() {
    let store = upward("4 x +A over 130").await;
    let rows = shown(&store, "A").await;
    assert!(rows.contains(&(4, "x".to_owned())) && rows.len() == 139, "{rows:?}");
    assert_nothing_to_repair(&store, "as written").await;
    for name in ["*", "A"] {
        restate(&store, name, 2, &[(130, BlockState::Present)]).await;
        assert_found(&checked(&store).await, Problem::DuplicateRow, &block_key(name, 2));
        assert!(repaired(&store).await.left.is_clean());
        restate(&store, name, 0, &[(4, BlockState::Superseded)]).await;
        assert_found(&checked(&store).await, Problem::LostRow, &block_key(name, 0));
        assert!(repaired(&store).await.left.is_clean());
        store.remove(&block_key(name, 2), None).await.unwrap();
        assert_found(&checked(&store).await, Problem::Missing, &block_key(name, 2));
        assert!(repaired(&store).await.left.is_clean());
        assert_eq!(shown(&store, name).await, rows);
    }
}

#[tokio::test]
async fn an_earlier_revision_with_a_higher_number_is_found_though_no_list_names_it() {
    let store = upward("4 x +A").await;
    let report = checked(&store).await;
    assert_found(&report, Problem::DuplicateRow, &block_key("*", 2));
    assert_found(&report, Problem::DuplicateRow, &block_key("A", 2));
    assert_eq!(report.findings.len(), 2, "{report:#?}");
    assert!(repaired(&store).await.left.is_clean());
    assert!(shown(&store, "A").await.contains(&(4, "x".to_owned())));
}

/// Rewrites the document of a sequence so that it also supersedes these.
async fn naming(store: &Arc<dyn CacheStore>, n: u64, others: &[u64]) {
    let entry = ChangeEntry::from_bytes(&stored(store, &sequence_key(n)).await).unwrap();
    let all: Vec<Sequence> = entry.supersedes().iter().copied().chain(others.iter().copied().map(Sequence)).collect();
    overwrite(store, &sequence_key(n), entry.with_supersedes(all).to_bytes()).await;
}

#[tokio::test]
async fn what_another_documents_entry_names_is_not_superseded() {
    let store = cache().await;
    // Marks are written as far as stable is: nothing is missing any more.
    let missing = [&vec!["1 a +A"; 88][..], &["8 g +B"]].concat();
    write(&store, "first", &missing).await;
    let clock = || async { PublishedClock::from_bytes(&stored(&store, &CacheKey::Clock).await).unwrap() };
    assert_eq!(clock().await.marked, Sequence(89));
    let before = shown(&store, "*").await;
    // 80 lies in another block than 4 and 70, and in one with 70.
    naming(&store, 80, &[4, 10, 70]).await;
    assert_nothing_to_repair(&store, "80 names what others have").await;

    // A writer that takes over, and whose clock has not marked them.
    let changed = PublishedClock { marked: Sequence(7), ..clock().await };
    overwrite(&store, &CacheKey::Clock, changed.to_bytes()).await;
    write(&store, "first", &missing).await;
    assert_eq!(clock().await.marked, Sequence(89));
    assert_eq!(shown(&store, "*").await, before);
    assert_nothing_to_repair(&store, "a writer has taken over").await;

    // Rows that were marked by mistake are shown again.
    restate(&store, "*", 1, &[(70, BlockState::Superseded)]).await;
    assert_found(&checked(&store).await, Problem::LostRow, &block_key("*", 1));
    assert!(repaired(&store).await.left.is_clean());
    assert_eq!(shown(&store, "*").await, before);
}

#[tokio::test]
async fn what_was_stored_and_never_published_gives_way_to_what_comes() {
    let store: Arc<dyn CacheStore> = Arc::new(MemoryStore::new());
    let lines = ["1 a +A", "2 b +B", "3 c +A +B", "4 d +A"];
    write(&store, "first", &lines).await;
    let Decoded::Document(document) = Notation.decode(&mutations(&["5 lost +A -B over 2"])[0]) else { panic!() };
    store.insert(&sequence_key(5), document.entry.to_bytes(), Expiry::Never).await.unwrap();
    restate(&store, "*", 0, &[(5, BlockState::Present)]).await;
    restate(&store, "A", 0, &[(5, BlockState::Present)]).await;
    restate(&store, "B", 0, &[(5, BlockState::Removal)]).await;
    let all: Vec<&str> = lines.into_iter().chain(["5 e +B", "6 f +A"]).collect();
    write(&store, "first", &all).await;
    let rows = |rows: &[(u64, &str)]| rows.iter().map(|(n, key)| (*n, (*key).to_owned())).collect::<Vec<_>>();
    assert_eq!(shown(&store, "B").await, rows(&[(2, "b"), (3, "c"), (5, "e")]));
    assert_eq!(shown(&store, "A").await, rows(&[(1, "a"), (3, "c"), (4, "d"), (6, "f")]));
    assert_nothing_to_repair(&store, "5 is another's").await;
}

/// Numbers 3 and 70 are each of two documents: `d2` and `e2` lie in slots.
async fn sharing() -> Arc<dyn CacheStore> {
    let store: Arc<dyn CacheStore> = Arc::new(MemoryStore::new());
    let mut lines: Vec<String> = (1..=140).map(|n| format!("{n} n{n} +A")).collect();
    lines.extend(["3 d2 +A +B", "70 e2 +B", "150 f +B"].map(str::to_owned));
    write(&store, "first", &lines.iter().map(String::as_str).collect::<Vec<_>>()).await;
    store
}

#[tokio::test]
async fn documents_that_share_a_number_are_checked_and_repaired() {
    let in_slot = |n: u64| Sequence(n).in_slot(1).unwrap();
    let block = |name: &str, n: u64| CacheKey::Block(channel(name), Block::locate(in_slot(n), CAPACITY).0);
    let store = sharing().await;
    assert_nothing_to_repair(&store, "as written").await;
    let (star, a, b) = (shown(&store, "*").await, shown(&store, "A").await, shown(&store, "B").await);
    assert_eq!((star.len(), a.len(), b.len()), (143, 141, 3));
    let keys = [
        block("*", 3),
        block("A", 3),
        block("B", 3),
        block("*", 70),
        block("B", 70),
        CacheKey::Directory(Channel::star()),
        CacheKey::Directory(channel("B")),
        CacheKey::Sequence(in_slot(3)),
        CacheKey::Sequence(in_slot(70)),
    ];
    for key in keys {
        for gone in [false, true] {
            let store = sharing().await;
            match gone {
                true => store.remove(&key, None).await.unwrap(),
                false => overwrite(&store, &key, "garbage ".repeat(20)).await,
            }
            let what = format!("{key}, gone: {gone}");
            let report = checked(&store).await;
            assert!(report.findings.iter().any(|finding| finding.key == key), "{what}: {report:#?}");
            let report = repaired(&store).await;
            assert!(report.left.is_clean() && report.lost().count() == 0, "{what}: {report:#?}");
            for (name, rows) in [("*", &star), ("A", &a), ("B", &b)] {
                assert_eq!(shown(&store, name).await, *rows, "{what}, {name}");
            }
        }
    }
}

#[tokio::test]
async fn a_document_in_a_slot_that_is_lost_is_named() {
    let store = sharing().await;
    let key = CacheKey::Sequence(Sequence(3).in_slot(1).unwrap());
    // It leaves the ring.
    for n in 0..9 {
        let lines: Vec<String> = (151..=151 + n).map(|n| format!("{n} m{n} +C")).collect();
        let mut all: Vec<String> = (1..=140).map(|n| format!("{n} n{n} +A")).collect();
        all.extend(["3 d2 +A +B", "70 e2 +B", "150 f +B"].map(str::to_owned));
        all.extend(lines);
        write(&store, "first", &all.iter().map(String::as_str).collect::<Vec<_>>()).await;
    }
    let clock = checked(&store).await.clock.unwrap();
    assert_eq!(clock.late, 2, "what comes again is no news");
    overwrite(&store, &key, "garbage").await;
    assert_found(&checked(&store).await, Problem::Unreadable, &key);
    let report = repaired(&store).await;
    assert!(report.lost().count() == 1 && report.lost().all(|repair| repair.key == key), "{report:#?}");
    assert!(report.left.findings.iter().all(|finding| finding.key == key), "{report:#?}");
    // The document that shares its sequence is still shown.
    assert!(shown(&store, "C").await.len() == 9);
}

#[tokio::test]
async fn a_document_that_shares_a_number_is_superseded_by_its_own_revisions_only() {
    for supersession in [Supersession::Recents, Supersession::Pointers] {
        let store: Arc<dyn CacheStore> = Arc::new(MemoryStore::new());
        let lines = ["1 a +A", "2 b +A", "3 d1 +A", "3 d2 +A", "4 c +A", "5 d2 +A over 3", "6 d1 +B over 3", "7 d2 +A over 3,5"];
        for upto in 4..=lines.len() {
            let feed = Arc::new(MemoryFeed::new("first", mutations(&lines[..upto])));
            let config = config().with_supersession(supersession);
            let node = WriterNode::new(store.clone(), feed).with_decoder(Arc::new(Notation)).with_config(config);
            node.run(std::future::pending()).await.unwrap();
            let what = format!("{supersession:?}, {upto}");
            assert_nothing_to_repair(&store, &what).await;
            let mut newest = std::collections::BTreeMap::new();
            for line in &lines[..upto] {
                let Decoded::Document(document) = Notation.decode(&mutations(&[line])[0]) else { panic!() };
                newest.insert(document.entry.key().to_owned(), document.entry.sequence().0);
            }
            let mut rows: Vec<(u64, String)> = newest.into_iter().map(|(key, n)| (n, key)).collect();
            rows.sort_unstable();
            assert_eq!(shown(&store, "*").await, rows, "{what}");
        }
    }
}

/// Sequences that are far apart: those between them are not checked.
#[tokio::test]
async fn a_cache_of_few_numbers_far_apart_is_checked_at_once() {
    let few: Vec<u64> = vec![1, 2, 1_000_000_000_000];
    let sparse: Vec<u64> = (0..300).map(|n| 1 + n * 7_000_000_000).collect();
    for numbers in [few, sparse] {
        let store: Arc<dyn CacheStore> = Arc::new(MemoryStore::new());
        let lines: Vec<String> = numbers.iter().map(|n| format!("{n} n{n} +A")).collect();
        let feed = Arc::new(MemoryFeed::new("first", mutations(&lines.iter().map(String::as_str).collect::<Vec<_>>())));
        let mut config = config();
        config.max_jump = 0;
        let node = WriterNode::new(store.clone(), feed).with_decoder(Arc::new(Notation)).with_config(config);
        node.run(std::future::pending()).await.unwrap();
        let counted = FaultStore::new(store.clone(), 0, Faults::none());
        let report = verify(&counted, &VerifyOptions::default().feed(FEED)).await.unwrap();
        assert_clean(&report, "far apart");
        let clock = report.clock.unwrap();
        assert_eq!((clock.high.0, report.documents), (*numbers.last().unwrap(), numbers.len() as u64));
        assert!(counted.operations() < 2_000 + 30 * numbers.len() as u64, "{} operations", counted.operations());
        restate(&store, "A", clock.high.0 / u64::from(CAPACITY), &[(clock.high.0, BlockState::Superseded)]).await;
        assert_found(&checked(&store).await, Problem::LostRow, &block_key("A", clock.high.0 / u64::from(CAPACITY)));
        assert!(repaired(&store).await.left.is_clean());
    }
}

const DEFAULT: CollectionId = CollectionId::DEFAULT;
const FIRST: CollectionId = CollectionId(8);
const SECOND: CollectionId = CollectionId(9);

/// The feed of two collections with documents of the same keys, and channels of the same names.
fn of_two_collections() -> MemoryFeed {
    let mut lines: Vec<(CollectionId, String)> = [
        (FIRST, "1 x +A +B"),
        (SECOND, "2 x +A"),
        (SECOND, "3 y +A"),
        (FIRST, "4 x +A -B over 1"),
        (SECOND, "5 x +B -A over 2"),
        (FIRST, "6 y +A"),
        (SECOND, "7 z"),
    ]
    .map(|(collection, line)| (collection, line.to_owned()))
    .to_vec();
    lines.extend((8..90).map(|n| (if n % 2 == 0 { FIRST } else { SECOND }, format!("{n} n{} +A", n / 2))));
    let mutation = |(collection, line): (CollectionId, String)| {
        let mut mutation = mutations(&[&line]).remove(0);
        mutation.collection = collection.0;
        mutation
    };
    MemoryFeed::new("first", lines.into_iter().map(mutation).collect::<Vec<_>>())
}

async fn write_two_collections(store: &Arc<dyn CacheStore>, feed: MemoryFeed) {
    let config = config().with_supersession(Supersession::Pointers);
    let node = WriterNode::new(store.clone(), Arc::new(feed)).with_decoder(Arc::new(Notation)).with_config(config);
    node.run(std::future::pending()).await.unwrap();
}

/// What is shown of each channel: sequence, collection and key of the document, whether removed.
async fn shown_of_each(store: &Arc<dyn CacheStore>) -> Vec<(Channel, Vec<(u64, String, bool)>)> {
    let reader = ReaderNode::open(store.clone(), ReaderConfig::default()).await.unwrap();
    let mut all = Vec::new();
    for (collection, name) in [DEFAULT, FIRST, SECOND].into_iter().flat_map(|of| ["*", "A", "B"].map(|name| (of, name))) {
        let channel = Channel::of(collection, name).unwrap();
        let options = ChangesOptions::new().delivery(Delivery::Eager);
        let answer = reader.changes(std::slice::from_ref(&channel), &options).await.unwrap().answer();
        let row =
            |row: &sluicegate::changes::AnswerRow| (row.id.sequence.0, row.entry.document().to_string(), !row.removed.is_empty());
        all.push((channel, answer.rows.iter().map(row).collect()));
    }
    all
}

/// The documents of the cache that are of one collection.
async fn documents_of(store: &PlainStore, collection: CollectionId) -> Vec<(String, Bytes)> {
    let mut found = Vec::new();
    for key in store.keys() {
        let document = store.get(&key).await.unwrap().unwrap().value;
        let is_of_it = match &key {
            CacheKey::Block(channel, _) | CacheKey::Directory(channel) => channel.collection() == collection,
            // One that was only read may be stored as 0.
            CacheKey::Counter(channel) => channel.collection() == collection && document != "0",
            CacheKey::Document(id) => id.collection == collection,
            CacheKey::Sequence(_) => ChangeEntry::from_bytes(&document).is_ok_and(|entry| entry.collection() == collection),
            _ => false,
        };
        if is_of_it {
            found.push((key.to_string(), document));
        }
    }
    found.sort_unstable();
    found
}

/// What is of another collection stays as it is, byte for byte.
#[tokio::test]
async fn what_is_broken_in_one_collection_is_rebuilt_from_what_is_of_it() {
    let sound = async || {
        let plain = Arc::new(PlainStore::new());
        let store: Arc<dyn CacheStore> = plain.clone();
        write_two_collections(&store, of_two_collections()).await;
        (plain, store)
    };
    let (plain, store) = sound().await;
    assert_nothing_to_repair(&store, "as written").await;
    let (first, second) = (documents_of(&plain, FIRST).await, documents_of(&plain, SECOND).await);
    let shown = shown_of_each(&store).await;
    let rows = |collection: CollectionId, name: &str| {
        let channel = Channel::of(collection, name).unwrap();
        shown.iter().find(|(of, _)| *of == channel).map(|(_, rows)| rows.as_slice()).unwrap()
    };
    assert!(["*", "A", "B"].iter().all(|name| rows(DEFAULT, name).is_empty()), "{shown:?}");
    assert_eq!(rows(FIRST, "B"), [(4, "8/x".to_owned(), true)]);
    assert_eq!(rows(SECOND, "B"), [(5, "9/x".to_owned(), false)]);
    assert_eq!(rows(FIRST, "A")[..2], [(4, "8/x".to_owned(), false), (6, "8/y".to_owned(), false)]);
    assert_eq!(rows(SECOND, "A")[..2], [(3, "9/y".to_owned(), false), (5, "9/x".to_owned(), true)]);
    assert_eq!((rows(FIRST, "*").len(), rows(SECOND, "*").len()), (2 + 41, 3 + 41));

    let of = |name: &str, collection| Channel::of(collection, name).unwrap();
    let pairs = |collection| {
        [
            CacheKey::Block(of("A", collection), BlockIndex(0)),
            CacheKey::Block(of("A", collection), BlockIndex(1)),
            CacheKey::Block(of("B", collection), BlockIndex(0)),
            CacheKey::Block(of("*", collection), BlockIndex(0)),
            CacheKey::Directory(of("A", collection)),
            CacheKey::Directory(of("*", collection)),
            CacheKey::Document(DocumentId::new(collection, "x")),
            CacheKey::Document(DocumentId::new(collection, "n20")),
            sequence_key(if collection == FIRST { 4 } else { 5 }),
            sequence_key(if collection == FIRST { 40 } else { 41 }),
        ]
    };
    for (key, others) in pairs(FIRST).into_iter().zip(pairs(SECOND)) {
        let garbage = Some(Bytes::from("garbage ".repeat(20)));
        // A pointer that is gone cannot be told from one that never was.
        let gone = (!matches!(key, CacheKey::Document(_))).then_some(None);
        for damage in [garbage, Some(stored(&store, &others).await)].map(Some).into_iter().chain([gone]).flatten() {
            let (plain, store) = sound().await;
            let what = format!("{key}: {damage:?}");
            match damage {
                Some(value) => overwrite(&store, &key, value).await,
                None => store.remove(&key, None).await.unwrap(),
            }
            let report = checked(&store).await;
            assert!(report.findings.iter().any(|finding| finding.key == key), "{what}: {report:#?}");
            let report = repaired(&store).await;
            assert!(report.left.is_clean() && report.lost().count() == 0, "{what}: {report:#?}");
            assert!(report.repairs.iter().any(|repair| repair.key == key), "{what}: {report:#?}");
            assert_eq!(shown_of_each(&store).await, shown, "{what}");
            assert_eq!(documents_of(&plain, SECOND).await, second, "{what}");
            let keys = |documents: &[(String, Bytes)]| documents.iter().map(|(key, _)| key.clone()).collect::<Vec<_>>();
            assert_eq!(keys(&documents_of(&plain, FIRST).await), keys(&first), "{what}");
            assert_eq!(documents_of(&plain, DEFAULT).await, [], "{what}");

            // A later revision is shown in place of its own document's, and of no other's.
            let mut later = of_two_collections().mutations().to_vec();
            later.extend(mutations(&["90 x +B -A over 1,4"]));
            later.last_mut().unwrap().collection = FIRST.0;
            write_two_collections(&store, MemoryFeed::new("first", later)).await;
            assert_nothing_to_repair(&store, &what).await;
            for (before, after) in shown.iter().zip(shown_of_each(&store).await) {
                let mut expected = before.1.clone();
                expected.retain(|(_, document, _)| document != "8/x");
                if before.0.collection() == FIRST {
                    expected.push((90, "8/x".to_owned(), before.0.name() == "A"));
                }
                assert_eq!(after.1, expected, "{what}, {}", before.0);
            }
        }
    }
}
