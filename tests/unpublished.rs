//! Entries of a commit that was cut off. They are stored and not published, and something else
//! accounts for their sequences before they come again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use sluicegate::batch::BlockDelta;
use sluicegate::block::{BlockState, codec_named};
use sluicegate::changes::{ChangesOptions, Delivery};
use sluicegate::feed::MutationKind;
use sluicegate::pointer::Supersession;
use sluicegate::verify::{Finding, Problem, RepairOptions, VerifyOptions, repair, verify};
use sluicegate::{
    BlockIndex, CacheKey, CacheStore, Channel, ErrorKind, FeedEvent, GatewayDecoder, Mutation, PartitionId, PartitionSeqno,
    ReaderConfig, ReaderNode, Result, Sequence, Writer, WriterConfig,
};
use sluicegate_replay::MemoryFeed;
use sluicegate_testkit::PausingFeed;
use sluicegate_testkit::fault::{CrashPoint, FaultStore, Faults, Step, When};
use sluicegate_testkit::plain::PlainStore;

/// Row of a channel: sequence, document, whether it was removed.
type Row = (u64, String, bool);

fn document(key: &str, generation: u64, sequence: u64, recent: &[u64], channels: &Value) -> Mutation {
    let revision = format!("{generation}-{sequence}");
    let metadata = json!({"rev": revision, "sequence": sequence, "recent_sequences": recent, "channels": channels});
    Mutation { cas: sequence << 16, ..Mutation::new(key.to_owned(), json!({"_sync": metadata}).to_string()) }
}

/// What the feed delivers before the crash, what it still delivers after it, and what the channel
/// `a` shows in the end. The event at `cut_off` is the one that is committed when the writer is
/// killed, and `before` is delivered before it comes again.
struct Case {
    name: &'static str,
    first: Vec<Mutation>,
    cut_off: Mutation,
    before: Vec<Mutation>,
    after: Vec<Mutation>,
    shown: Vec<Row>,
}

fn cases() -> Vec<Case> {
    let other = |mutation: Mutation| Mutation { partition: PartitionId(1), ..mutation };
    let marker = || other(Mutation::new("_sync:unusedSeq:2", ""));
    let markers = || other(Mutation::new("_sync:unusedSeqs:2:3", ""));
    let user = || other(Mutation::new("_sync:user:u", r#"{"name":"u","sequence":2}"#));
    let names = || other(document("e", 2, 5, &[2, 5], &json!({"b": null})));
    let begun = || document("d", 1, 1, &[1], &json!({"a": null}));
    let entered = || document("x", 1, 2, &[2], &json!({"a": null}));
    let left = || document("d", 2, 2, &[1, 2], &json!({"a": {"seq": 2, "rev": "2-2"}}));
    let later = || document("d", 3, 4, &[1, 2, 4], &json!({"a": {"seq": 2, "rev": "2-2"}}));
    let row = |sequence, key: &str, removed| (sequence, key.to_owned(), removed);
    let document = |name, before: Vec<Mutation>| {
        let shown = vec![row(1, "d", false), row(2, "x", false)];
        Case { name, first: vec![begun()], cut_off: entered(), before, after: vec![entered()], shown }
    };
    let departure = |name, before: Vec<Mutation>| {
        let shown = vec![row(2, "d", true)];
        Case { name, first: vec![begun()], cut_off: left(), before, after: vec![later()], shown }
    };
    vec![
        document("a marker before a document", vec![marker()]),
        document("a range of markers before a document", vec![markers()]),
        document("a user before a document", vec![user()]),
        document("another document that names it", vec![names()]),
        document("nothing before a document", vec![]),
        departure("a marker before a departure", vec![marker()]),
        departure("a user before a departure", vec![user()]),
        departure("nothing before a departure", vec![]),
    ]
}

fn feed(events: &[&[Mutation]]) -> MemoryFeed {
    MemoryFeed::new("cut off", events.concat()).with_batch(1).unwrap()
}

async fn writer(store: Arc<dyn CacheStore>, supersession: Supersession) -> Result<Writer> {
    let config = WriterConfig::default().with_supersession(supersession).with_batch(2);
    Writer::alone(store, Arc::new(GatewayDecoder::default()), "cut off", config).await
}

async fn run(store: Arc<dyn CacheStore>, events: &[&[Mutation]], supersession: Supersession) -> Result<Writer> {
    let mut writer = writer(store, supersession).await?;
    writer.run(&feed(events), std::future::pending()).await?;
    Ok(writer)
}

/// A client of channel `a` that begins again where it was.
struct Client {
    reader: ReaderNode,
    options: ChangesOptions,
    told: BTreeSet<Row>,
}

impl Client {
    async fn new(store: &Arc<dyn CacheStore>) -> Client {
        let reader = ReaderNode::open(store.clone(), ReaderConfig::default()).await.unwrap();
        let options = ChangesOptions::new().delivery(Delivery::Eager).late(Default::default());
        let mut client = Client { reader, options, told: BTreeSet::new() };
        client.look().await;
        client
    }

    async fn look(&mut self) {
        self.reader.refresh().await.unwrap();
        let answer = self.reader.changes(&[Channel::new("a").unwrap()], &self.options).await.unwrap().answer();
        self.options.since = answer.last.sequence.into();
        self.options.late = Some(answer.late);
        let row = |row: &sluicegate::changes::AnswerRow| (row.id.sequence.0, row.entry.key().to_owned(), !row.removed.is_empty());
        self.told.extend(answer.rows.iter().map(row));
    }
}

/// What a reader that was just opened shows of channel `a` while the entry has not come again: at
/// least the documents of before, and nothing of what is missing.
async fn check_between(case: &Case, store: &Arc<dyn CacheStore>, what: &str) {
    let fresh = Client::new(store).await.told;
    let documents: BTreeSet<&String> = fresh.iter().map(|(_, key, _)| key).collect();
    assert!(documents.contains(&"d".to_owned()), "{what}: {fresh:?} before the entry comes again");
    assert!(fresh.iter().all(|row| *row == (1, "d".to_owned(), false) || case.shown.contains(row)), "{what}: {fresh:?}");
    let report = verify(store.as_ref(), &VerifyOptions::default()).await.unwrap();
    let is_unfinished = |detail: &str| detail.contains("it does not know");
    assert!(report.findings.iter().all(|finding| is_unfinished(&finding.detail)), "{what}: {:#?}", report.findings);
}

/// Kills a writer at a step, and compares what the next ones make of it. `is_killed_again`: the
/// next one is killed at the same step, and another one accounts for the sequence. Returns whether
/// the step was reached.
async fn check(case: &Case, point: CrashPoint, supersession: Supersession, is_killed_again: bool) -> bool {
    let what = format!("{}, {point}, {supersession:?}, killed again: {is_killed_again}", case.name);
    let store: Arc<dyn CacheStore> = Arc::new(PlainStore::new());
    drop(run(store.clone(), &[&case.first], supersession).await.unwrap());
    let mut client = Client::new(&store).await;

    let faulty = Arc::new(FaultStore::new(store.clone(), 1, Faults::none()));
    let mut killed = writer(faulty.clone(), supersession).await.unwrap();
    faulty.crash_at(point);
    let cut_off = std::slice::from_ref(&case.cut_off);
    let _ = killed.run(&feed(&[&case.first, cut_off]), std::future::pending()).await;
    let is_reached = faulty.crashed();
    drop(killed);
    client.look().await;

    if is_killed_again {
        let faulty = Arc::new(FaultStore::new(store.clone(), 2, Faults::none()));
        if let Ok(mut killed) = writer(faulty.clone(), supersession).await {
            faulty.crash_at(point);
            let _ = killed.run(&feed(&[&case.first, &case.before]), std::future::pending()).await;
        }
        client.look().await;
        drop(run(store.clone(), &[&case.first, &case.before], supersession).await.unwrap());
        client.look().await;
        check_between(case, &store, &what).await;
    }
    let all: [&[Mutation]; 3] = [&case.first, &case.before, &case.after];
    let last = run(store.clone(), &all, supersession).await.unwrap();
    client.look().await;

    assert!(!case.before.is_empty() || last.stats().conflicts == 0, "{what}: nothing else has its sequence");
    assert!(client.told.iter().all(|row| *row == (1, "d".to_owned(), false) || case.shown.contains(row)), "{what}");
    let told: Vec<&Row> = case.shown.iter().filter(|row| !client.told.contains(row)).collect();
    assert!(told.is_empty(), "{what}: the client was not told of {told:?}");
    let fresh = Client::new(&store).await.told;
    assert_eq!(fresh.into_iter().collect::<Vec<_>>(), case.shown, "{what}");
    let report = verify(store.as_ref(), &VerifyOptions::default()).await.unwrap();
    assert!(report.is_clean(), "{what}: {:#?}", report.findings);
    is_reached
}

#[tokio::test(start_paused = true)]
async fn an_entry_of_a_commit_that_was_cut_off_is_shown_although_its_sequence_is_accounted_for() {
    let points: Vec<CrashPoint> = (1..4).flat_map(CrashPoint::all).chain(CrashPoint::occasional(1)).collect();
    for case in cases() {
        for supersession in [Supersession::Recents, Supersession::Pointers] {
            let mut reached = BTreeSet::new();
            for point in &points {
                for is_killed_again in [false, true] {
                    if check(&case, *point, supersession, is_killed_again).await {
                        reached.insert(format!("{:?}", point.step));
                    }
                }
            }
            assert!(reached.len() >= 6, "{}: only these steps were reached: {reached:?}", case.name);
        }
    }
}

/// A writer that was deposed and does not know it must not store what the next term does not know
/// of.
#[tokio::test(start_paused = true)]
async fn a_deposed_writer_adds_no_more_batches() {
    let case = cases().remove(0);
    let store: Arc<dyn CacheStore> = Arc::new(PlainStore::new());
    let mut deposed = writer(store.clone(), Supersession::Recents).await.unwrap();
    drop(writer(store.clone(), Supersession::Recents).await.unwrap());
    let error = deposed.run(&feed(&[&case.first]), std::future::pending()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Fenced);
    assert!(store.entries(&[sluicegate::Sequence(1)]).await.unwrap()[0].is_none());
}

/// The next one has stored the document that the held one was about to store, and removed it.
/// `is_missing`: a lower sequence never comes. `is_first`: the held one is the first writer of the
/// cache.
async fn check_held_purge(points: &[(Step, u64)], supersession: Supersession, is_missing: bool, is_first: bool) {
    let what = format!("{supersession:?}, held at {points:?}, missing: {is_missing}, first: {is_first}");
    let of = |key: &str, sequence: u64| document(key, 1, sequence, &[sequence], &json!({"a": null}));
    let d = if is_missing { 3 } else { 2 };
    let (some, purge) = (vec![of("c", 1), of("d", d)], Mutation { kind: MutationKind::Deletion, ..Mutation::new("d", "") });
    let all = [some.clone(), vec![Mutation { cas: 4 << 16, ..purge }, of("e", d + 1)]].concat();
    let store: Arc<dyn CacheStore> = Arc::new(PlainStore::new());
    if !is_first {
        run(store.clone(), &[&some[..1]], supersession).await.unwrap();
    }
    let held = Arc::new(FaultStore::new(store.clone(), 1, Faults::none()));
    let mut pauses: Vec<_> = points.iter().map(|(step, nth)| held.pause_at_write(*step, *nth)).collect();
    let task = tokio::spawn({
        let (held, some) = (held.clone(), some.clone());
        async move { run(held, &[&some], supersession).await.map(drop) }
    });
    for pause in &mut pauses {
        assert!(pause.reached().await, "{what}");
    }
    // What is missing is still waited for when the purge is carried out.
    let waiting = PausingFeed::new(Arc::new(feed(&[&all])));
    let mut pause = waiting.pause_at(all.len() as u64);
    let mut next = writer(store.clone(), supersession).await.unwrap();
    let mut progress = next.progress();
    let running = tokio::spawn(async move { next.run(&waiting, std::future::pending()).await.map(drop) });
    assert!(pause.reached().await, "{what}");
    progress.wait_for(|progress| progress.stats.purged_entries > 0).await.unwrap();
    assert!(!is_missing || progress.borrow().clock.high.0 < d, "{what}");
    pause.resume();
    running.await.unwrap().unwrap();
    drop(pauses);
    assert_eq!(task.await.unwrap().unwrap_err().kind(), ErrorKind::Fenced, "{what}");
    run(store.clone(), &[&all, &[of("f", d + 2)]], supersession).await.unwrap();
    let check_rows = async |what: &str| {
        for channel in ["a", "*"] {
            let reader = ReaderNode::open(store.clone(), ReaderConfig::default()).await.unwrap();
            let options = ChangesOptions::new().delivery(Delivery::Eager);
            let answer = reader.changes(&[Channel::new(channel).unwrap()], &options).await.unwrap().answer();
            let rows: Vec<u64> = answer.rows.iter().map(|row| row.id.sequence.0).collect();
            assert_eq!(rows, [1, d + 1, d + 2], "{what}");
        }
    };
    check_rows(&what).await;
    // A check names the rows that the held writer added to blocks.
    let report = verify(store.as_ref(), &VerifyOptions::default()).await.unwrap();
    let is_stray = |finding: &Finding| match finding.problem {
        Problem::Missing => finding.key == CacheKey::Sequence(Sequence(d)),
        Problem::StrayRow => finding.detail.contains(&format!("it shows {d},")),
        _ => false,
    };
    assert!(report.findings.iter().all(is_stray), "{what}: {:#?}", report.findings);
    let report = repair(store.as_ref(), &RepairOptions::default()).await.unwrap();
    assert!(report.left.is_clean() && report.lost().count() == 0, "{what}: {report:#?}");
    check_rows(&format!("{what}, after a repair")).await;
}

#[tokio::test(start_paused = true)]
async fn a_writer_held_while_another_one_carries_out_a_purge_does_no_harm() {
    let documents = (Step::SequenceDocuments, 1);
    let [first, second] = [1, 2].map(|nth| (Step::Blocks, nth));
    for supersession in [Supersession::Recents, Supersession::Pointers] {
        for points in [&[documents][..], &[first], &[second], &[documents, first, second]] {
            for (is_missing, is_first) in [(false, false), (false, true), (true, false), (true, true)] {
                check_held_purge(points, supersession, is_missing, is_first).await;
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_list_of_commits_that_cannot_be_read_is_removed_by_a_repair() {
    use sluicegate::store::Expiry;
    let case = cases().remove(0);
    for garbage in ["{", r#"{"epoch":{"counter":9,"writer":1},"batches":[]}"#] {
        let store: Arc<dyn CacheStore> = Arc::new(PlainStore::new());
        drop(run(store.clone(), &[&case.first], Supersession::Recents).await.unwrap());
        let stored = store.get(&CacheKey::Intent).await.unwrap().unwrap();
        store.replace(&CacheKey::Intent, garbage.into(), stored.version, Expiry::Never).await.unwrap();
        let error = run(store.clone(), &[&case.first], Supersession::Recents).await.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Fenced), "{error:?}");
        let report = verify(store.as_ref(), &VerifyOptions::default()).await.unwrap();
        assert_eq!(report.findings.iter().map(|finding| &finding.key).collect::<Vec<_>>(), [&CacheKey::Intent]);
        let report = repair(store.as_ref(), &RepairOptions::default()).await.unwrap();
        assert!(report.left.is_clean(), "{:#?}", report.left.findings);
        let all: [&[Mutation]; 2] = [&case.first, &case.after];
        drop(run(store.clone(), &all, Supersession::Recents).await.unwrap());
    }
}

/// A commit stores blocks and entries at a time. The next writer is given a later revision only,
/// and stable does not pass that for long: readers would look for the entry of the earlier one.
#[tokio::test]
async fn a_row_whose_entry_was_not_stored_breaks_no_request() {
    for supersession in [Supersession::Recents, Supersession::Pointers] {
        let plain = Arc::new(PlainStore::new());
        let store: Arc<dyn CacheStore> = plain.clone();
        let in_a = json!({"a": null});
        let first = [document("x", 1, 1, &[1], &in_a), document("z", 1, 3, &[3], &in_a)];
        run(store.clone(), &[&first], supersession).await.unwrap();
        let faulty = Arc::new(FaultStore::new(plain, 1, Faults::none()));
        faulty.crash_at(CrashPoint { step: Step::SequenceDocuments, when: When::Before, nth: 1 });
        let killed = run(faulty, &[&first, &[document("d", 1, 2, &[2], &in_a)]], supersession).await.map(drop);
        assert_eq!(killed.unwrap_err().kind(), ErrorKind::Closed);
        // The rows that it has stored.
        let config = WriterConfig::default();
        let codec = codec_named(&config.codec, config.block_capacity).unwrap();
        for channel in [Channel::new("a").unwrap(), Channel::star()] {
            let delta = BlockDelta::new(channel, BlockIndex(0), vec![(2, BlockState::Present)]);
            store.merge_block(&delta, codec.as_ref()).await.unwrap();
        }
        // 4 is missing.
        let next = run(store.clone(), &[&first, &[document("d", 2, 5, &[2, 5], &in_a)]], supersession).await.unwrap();
        assert_eq!((next.clock().stable, next.clock().gaps), (Sequence(3), 1));
        let reader = ReaderNode::open(store.clone(), ReaderConfig::default()).await.unwrap();
        for (delivery, expected) in [(Delivery::Strict, &["x", "z"][..]), (Delivery::Eager, &["x", "z", "d"])] {
            let options = ChangesOptions::new().delivery(delivery);
            for channel in [Channel::new("a").unwrap(), Channel::star()] {
                let answer = reader.changes(&[channel], &options).await.unwrap().answer();
                let keys: Vec<&str> = answer.rows.iter().map(|row| row.entry.key()).collect();
                assert_eq!(keys, expected, "{supersession:?}, {delivery:?}");
            }
        }
    }
}

/// A commit that is cut off, and documents that come with its sequences after the vbucket has lost
/// it.
struct Reused {
    name: &'static str,
    base: Vec<Mutation>,
    cut_off: Vec<Mutation>,
    /// The partition that goes back, and to where.
    rollback: (u16, u64),
    after: Vec<Mutation>,
    /// What channel `a` shows.
    shown: Vec<Row>,
}

/// The mutation with its CAS as seqno of this partition.
fn at(partition: u16, mutation: Mutation) -> Mutation {
    Mutation { partition: PartitionId(partition), seqno: PartitionSeqno(mutation.cas >> 16), ..mutation }
}

fn reused() -> Vec<Reused> {
    let (a, b) = (json!({"a": null}), json!({"b": null}));
    let left = |rev: &str| json!({"a": {"seq": 3, "rev": rev}});
    let other = |n: u64| at(2, document(&format!("x{n}"), 1, n, &[n], &b));
    let marker = |n: u64| Mutation { cas: n << 16, ..Mutation::new(format!("_sync:unusedSeq:{n}"), "") };
    let row = |sequence, key: &str, removed| (sequence, key.to_owned(), removed);
    vec![
        Reused {
            name: "present, then removed",
            base: vec![at(1, document("d", 1, 1, &[1], &a)), other(2)],
            cut_off: vec![at(0, document("e", 1, 3, &[3], &a))],
            rollback: (0, 0),
            after: vec![at(1, document("d", 2, 3, &[1, 3], &left("2-3"))), other(4)],
            shown: vec![row(3, "d", true)],
        },
        Reused {
            name: "removed, then present",
            base: vec![at(0, document("e", 1, 1, &[1], &a)), other(2)],
            cut_off: vec![at(0, document("e", 2, 3, &[1, 3], &left("2-3")))],
            rollback: (0, 1),
            after: vec![at(1, document("d", 1, 3, &[3], &a)), other(4)],
            shown: vec![row(1, "e", false), row(3, "d", false)],
        },
        Reused {
            name: "a departure, then present",
            base: vec![at(0, document("e", 1, 1, &[1], &a)), other(2)],
            cut_off: vec![at(0, document("e", 3, 4, &[1, 3, 4], &json!({"a": {"seq": 3, "rev": "2-3"}, "b": null})))],
            rollback: (0, 1),
            after: vec![at(1, document("d", 1, 3, &[3], &a)), other(4)],
            shown: vec![row(1, "e", false), row(3, "d", false)],
        },
        Reused {
            name: "present, then a departure",
            base: vec![at(1, document("d", 1, 1, &[1], &a)), other(2)],
            cut_off: vec![at(0, document("e", 1, 3, &[3], &a))],
            rollback: (0, 0),
            after: vec![at(1, document("d", 3, 4, &[1, 3, 4], &json!({"a": {"seq": 3, "rev": "2-3"}, "b": null})))],
            shown: vec![row(3, "d", true)],
        },
        Reused {
            name: "present, then a departure that only the channels name",
            base: vec![at(1, document("d", 1, 1, &[1], &a)), other(2)],
            cut_off: vec![at(0, document("e", 1, 3, &[3], &a))],
            rollback: (0, 0),
            after: vec![at(1, document("d", 3, 4, &[1, 4], &json!({"a": {"seq": 3, "rev": "2-3"}, "b": null})))],
            shown: vec![row(3, "d", true)],
        },
        Reused {
            name: "the mark of a revision that did not come, then present",
            base: vec![other(1), at(2, marker(2)), at(2, marker(3)), other(4)],
            cut_off: vec![at(0, document("e", 2, 3, &[2, 3], &a))],
            rollback: (0, 0),
            after: vec![at(1, document("d", 1, 2, &[2], &a)), other(5)],
            shown: vec![row(2, "d", false)],
        },
        Reused {
            name: "present, then removed, after a marker",
            base: vec![at(1, document("d", 1, 1, &[1], &a)), other(2), at(2, marker(3)), other(4)],
            cut_off: vec![at(0, document("e", 1, 3, &[3], &a))],
            rollback: (0, 0),
            after: vec![at(1, document("d", 2, 3, &[1, 3], &left("2-3"))), other(5)],
            shown: vec![row(3, "d", true)],
        },
        Reused {
            name: "present, then removed, in a slot",
            base: vec![at(1, document("d", 1, 1, &[1], &a)), other(2), other(3)],
            cut_off: vec![at(0, document("e", 1, 3, &[3], &a))],
            rollback: (0, 0),
            after: vec![at(1, document("d", 2, 3, &[1, 3], &left("2-3"))), other(4)],
            shown: vec![row(3, "d", true)],
        },
        Reused {
            name: "removed, then present, in a slot",
            base: vec![at(0, document("e", 1, 1, &[1], &a)), other(2), other(3)],
            cut_off: vec![at(0, document("e", 2, 3, &[1, 3], &left("2-3")))],
            rollback: (0, 1),
            after: vec![at(1, document("d", 1, 3, &[3], &a)), other(4)],
            shown: vec![row(1, "e", false), row(3, "d", false)],
        },
        Reused {
            name: "removed after a marker, then present",
            base: vec![at(0, document("e", 1, 1, &[1], &a)), other(2), at(2, marker(3)), other(4)],
            cut_off: vec![at(0, document("e", 2, 3, &[1, 3], &left("2-3")))],
            rollback: (0, 1),
            after: vec![at(1, document("d", 1, 3, &[3], &a)), other(5)],
            shown: vec![row(1, "e", false), row(3, "d", false)],
        },
        Reused {
            name: "present, then a departure, in a slot",
            base: vec![at(1, document("d", 1, 1, &[1], &a)), other(2), other(3)],
            cut_off: vec![at(0, document("e", 1, 3, &[3], &a))],
            rollback: (0, 0),
            after: vec![at(1, document("d", 3, 4, &[1, 3, 4], &json!({"a": {"seq": 3, "rev": "2-3"}, "b": null})))],
            shown: vec![row(3, "d", true)],
        },
        Reused {
            name: "present, then made anew in another channel",
            base: vec![at(1, document("d", 1, 1, &[1], &a)), other(2)],
            cut_off: vec![at(0, document("e", 1, 3, &[3], &a))],
            rollback: (0, 0),
            after: vec![at(0, document("e", 2, 4, &[3, 4], &b))],
            shown: vec![row(1, "d", false)],
        },
        Reused {
            name: "present, then another document's in another channel",
            base: vec![at(1, document("d", 1, 1, &[1], &a)), other(2)],
            cut_off: vec![at(0, document("e", 1, 3, &[3], &a))],
            rollback: (0, 0),
            after: vec![at(1, document("f", 2, 4, &[3, 4], &b))],
            shown: vec![row(1, "d", false)],
        },
        Reused {
            name: "many of another channel",
            base: vec![other(1), other(2)],
            cut_off: (3..33).map(|n| at(0, document(&format!("e{n}"), 1, n, &[n], &a))).collect(),
            rollback: (0, 0),
            after: (3..33).map(other).chain([at(1, document("d", 1, 33, &[33], &a))]).collect(),
            shown: vec![row(33, "d", false)],
        },
    ]
}

/// The rows of channel `a` in pages of `limit`, up to the first page without a row.
async fn pages(store: &Arc<dyn CacheStore>, limit: usize) -> Vec<Row> {
    let reader = ReaderNode::open(store.clone(), ReaderConfig::default()).await.unwrap();
    let mut options = ChangesOptions::new().delivery(Delivery::Strict).limit(limit);
    let mut shown = Vec::new();
    loop {
        let answer = reader.changes(&[Channel::new("a").unwrap()], &options).await.unwrap().answer();
        if answer.rows.is_empty() {
            return shown;
        }
        shown.extend(answer.rows.iter().map(|row| (row.id.sequence.0, row.entry.key().to_owned(), !row.removed.is_empty())));
        options = options.since(answer.last.sequence);
    }
}

async fn process(writer: &mut Writer, mutations: Vec<Mutation>) -> Result<()> {
    writer.process(mutations.into_iter().map(FeedEvent::Mutation).collect::<Vec<_>>().into()).await?;
    writer.flush().await
}

#[tokio::test(start_paused = true)]
async fn what_a_killed_writer_left_hides_no_document_that_gets_its_sequence() {
    let open = async |store: Arc<dyn CacheStore>, supersession| {
        let text = r#"{"hold_first_read": false, "gather_rollbacks_ms": 0, "block_capacity": 64}"#;
        let config = serde_json::from_str::<WriterConfig>(text).unwrap().with_supersession(supersession);
        Writer::alone(store, Arc::new(GatewayDecoder::default()), "cut off", config).await.unwrap()
    };
    let mut commits_held = BTreeMap::new();
    for supersession in [Supersession::Recents, Supersession::Pointers] {
        let steps = [Step::SequenceDocuments, Step::Blocks, Step::BatchRecord];
        let held_at = steps.into_iter().flat_map(|step| (1..5).map(move |first| (step, first)));
        let worlds = held_at.flat_map(|held_at| (0..3).map(move |restarts| (held_at, restarts)));
        for (((step, first), restarts), case) in worlds.flat_map(|world| reused().into_iter().map(move |case| (world, case))) {
            let what = format!("{}, {supersession:?}, held at {step:?} {first}, {restarts} restarts", case.name);
            let Reused { base, cut_off, rollback, after, shown, .. } = case;
            let store: Arc<dyn CacheStore> = Arc::new(PlainStore::new());
            process(&mut open(store.clone(), supersession).await, base).await.unwrap();

            let held = Arc::new(FaultStore::new(store.clone(), 1, Faults::none()));
            let mut killed = open(held.clone(), supersession).await;
            let is_stored = async || {
                let sequences = cut_off.iter().map(|mutation| Sequence(mutation.cas >> 16));
                let positions = sequences.flat_map(|sequence| [sequence, sequence.in_slot(1).unwrap()]).collect::<Vec<_>>();
                let stored = store.entries(&positions).await.unwrap();
                let is_of = |key: &str| cut_off.iter().any(|mutation| *mutation.key == *key.as_bytes());
                stored.iter().flatten().any(|entry| is_of(entry.key()))
            };
            let pauses: Vec<_> = (first..=100).map(|nth| held.pause_at_write(step, nth)).collect();
            // The clock goes on when nothing else can.
            let waited = tokio::time::timeout(Duration::from_secs(1), process(&mut killed, cut_off.clone())).await;
            assert!(first > 1 || waited.is_err(), "{what}: the commit waits");
            *commits_held.entry((format!("{step:?}"), first)).or_insert(0) += u32::from(waited.is_err());
            drop(killed);
            drop(pauses);
            assert!(step != Step::SequenceDocuments || first > 1 || !is_stored().await, "{what}");

            let mut writer = open(store.clone(), supersession).await;
            let (partition, to) = (PartitionId(rollback.0), PartitionSeqno(rollback.1));
            let events = vec![FeedEvent::Rollback { partition, to }, FeedEvent::RollbackEnded { partition }, FeedEvent::CaughtUp];
            writer.process(events.into()).await.unwrap();
            writer.flush().await.unwrap();
            for nth in 0..restarts {
                writer = open(store.clone(), supersession).await;
                let elsewhere = at(2, document(&format!("z{nth}"), 1, 40 + nth, &[40 + nth], &json!({"z": null})));
                process(&mut writer, vec![elsewhere]).await.unwrap();
            }
            for mutation in after {
                process(&mut writer, vec![mutation]).await.unwrap();
            }
            writer.finish().await.unwrap();
            for limit in [1, 3, 100] {
                assert_eq!(pages(&store, limit).await, shown, "{what}, pages of {limit}");
            }
        }
    }
    // The third block is that of the marks of a late entry.
    let held = |step: Step, first| commits_held[&(format!("{step:?}"), first)];
    assert!(held(Step::Blocks, 3) > 0 && held(Step::BatchRecord, 2) > 0, "{commits_held:?}");
}
