//! A gateway has lost its counter and allocates sequences again, so two documents have one
//! sequence. The feed leaves out one of them, or rolls back; or the writer is killed.

use std::sync::Arc;

use serde_json::{Value, json};
use sluicegate::changes::{ChangesOptions, Delivery};
use sluicegate::core::decode::attributes;
use sluicegate::feed::MutationKind;
use sluicegate::pointer::Supersession;
use sluicegate::verify::{VerifyOptions, verify};
use sluicegate::{
    CacheStore, Channel, FeedBatch, FeedEvent, FeedStart, GatewayDecoder, Mutation, PartitionId, PartitionSeqno, ReaderConfig,
    ReaderNode, Writer, WriterConfig,
};
use sluicegate_testkit::fault::{CrashPoint, FaultStore, Faults, Step, When};
use sluicegate_testkit::gateway::Kept;
use sluicegate_testkit::plain::PlainStore;

const FEED: &str = "feed";

/// Row of a channel: sequence, document, whether it was removed.
type Row = (u64, String, bool);

/// A revision of a document, at a place of its partition.
fn revision(key: &str, generation: u64, sequence: u64, recent: &[u64], channels: &Value, at: (u16, u64)) -> Mutation {
    let revision = format!("{generation}-{sequence}");
    let metadata = json!({"rev": revision, "sequence": sequence, "recent_sequences": recent, "channels": channels});
    let (partition, seqno) = (PartitionId(at.0), PartitionSeqno(at.1));
    let value = json!({"_sync": metadata}).to_string();
    Mutation { partition, seqno, cas: at.1 << 16, ..Mutation::new(key.to_owned(), value) }
}

/// A partition has lost all it had.
fn lost(partition: u16) -> [FeedEvent; 2] {
    let partition = PartitionId(partition);
    [FeedEvent::Rollback { partition, to: PartitionSeqno(0) }, FeedEvent::RollbackEnded { partition }]
}

fn config(supersession: Supersession) -> WriterConfig {
    let text =
        r#"{"hold_first_read": false, "gather_rollbacks_ms": 0, "list_changes": 0, "codec": "two-bit", "block_capacity": 64}"#;
    serde_json::from_str::<WriterConfig>(text).unwrap().with_supersession(supersession)
}

async fn writer(store: Arc<dyn CacheStore>, supersession: Supersession) -> sluicegate::Result<Writer> {
    Writer::alone(store, Arc::new(GatewayDecoder::default()), FEED, config(supersession)).await
}

async fn rows(store: &Arc<dyn CacheStore>, channel: &str) -> Vec<Row> {
    let reader = ReaderNode::open(store.clone(), ReaderConfig::default()).await.unwrap();
    let options = ChangesOptions::new().delivery(Delivery::Strict);
    let answer = reader.changes(&[Channel::new(channel).unwrap()], &options).await.unwrap().answer();
    answer.rows.iter().map(|row| (row.id.sequence.0, row.entry.key().to_owned(), !row.removed.is_empty())).collect()
}

async fn assert_sound(store: &Arc<dyn CacheStore>) {
    let report = verify(store.as_ref(), &VerifyOptions::default().feed(FEED)).await.unwrap();
    assert!(report.is_clean(), "{:#?}", report.findings);
    let clock = report.clock.unwrap();
    assert_eq!((clock.gaps, clock.stable), (0, clock.high), "nothing is missing");
}

fn row(sequence: u64, key: &str, removed: bool) -> Row {
    (sequence, key.to_owned(), removed)
}

/// `e` has the sequence first, and is lost. Lower sequences are missing at that time. The sequence
/// must not become missing, because `d` has it.
#[tokio::test]
async fn a_sequence_stays_accounted_for_if_another_document_has_it_in_a_slot() {
    for supersession in [Supersession::Recents, Supersession::Pointers] {
        let store: Arc<dyn CacheStore> = Arc::new(PlainStore::new());
        let mut writer = writer(store.clone(), supersession).await.unwrap();
        let first =
            [revision("e", 1, 3, &[3], &json!({"a": null}), (0, 1)), revision("d", 1, 3, &[3], &json!({"a": null}), (1, 2))];
        writer.process(first.map(FeedEvent::Mutation).to_vec().into()).await.unwrap();
        writer.process(lost(0).to_vec().into()).await.unwrap();
        let lower = [(1, 3), (2, 4)].map(|(n, at)| revision(&format!("x{n}"), 1, n, &[n], &json!({"b": null}), (1, at)));
        writer.process(lower.map(FeedEvent::Mutation).to_vec().into()).await.unwrap();
        writer.finish().await.unwrap();
        assert_sound(&store).await;
        assert_eq!(rows(&store, "a").await, [row(3, "d", false)]);
    }
}

/// `e` has the sequence first, and is lost. `d` has it in a slot, and left a channel with it. Then
/// another program writes over `d`: its metadata name the departure.
#[tokio::test]
async fn a_departure_is_stored_once_if_its_revision_is_in_a_slot() {
    for supersession in [Supersession::Recents, Supersession::Pointers] {
        let store: Arc<dyn CacheStore> = Arc::new(PlainStore::new());
        let mut writer = writer(store.clone(), supersession).await.unwrap();
        let mut kept = Kept::default();
        let mut next = |sequence, channels: &[&str], at| {
            let channels: Vec<String> = channels.iter().map(ToString::to_string).collect();
            kept.write("x", sequence, &[], &channels, false, false);
            let (partition, seqno, cas) = (PartitionId(1), PartitionSeqno(at), at << 16);
            Mutation { partition, seqno, cas, ..kept.mutation("d", cas, b"{}") }
        };
        let begun = next(1, &["a"], 1);
        let left = next(3, &["b"], 3);
        let last = next(4, &[], 7);
        let pairs = attributes::iter(&left.value).unwrap().map(|pair| pair.unwrap());
        let value = attributes::encode(pairs, br#"{"written":"by another program"}"#).unwrap().into();
        let foreign = Mutation { seqno: PartitionSeqno(5), cas: 5 << 16, value, ..left.clone() };
        let e = revision("e", 1, 3, &[3], &json!({"a": null}), (0, 2));
        writer.process([begun, e, left].map(FeedEvent::Mutation).to_vec().into()).await.unwrap();
        writer.process(lost(0).to_vec().into()).await.unwrap();
        let x = revision("x", 1, 2, &[2], &json!({"b": null}), (1, 6));
        writer.process([foreign, x, last].map(FeedEvent::Mutation).to_vec().into()).await.unwrap();
        writer.finish().await.unwrap();
        assert_sound(&store).await;
        assert_eq!(rows(&store, "a").await, [row(3, "d", true)]);
        assert_eq!(rows(&store, "b").await, [row(2, "x", false), row(4, "d", true)]);
    }
}

/// The feed left out the revision of `d` with the sequence of `e`. A later one names it, in the
/// batch of `e`, in another, or after a take-over.
#[tokio::test]
async fn a_document_stays_whose_sequence_a_later_revision_of_another_document_names() {
    for supersession in [Supersession::Recents, Supersession::Pointers] {
        for (are_batches, is_restarted) in [(false, false), (true, false), (true, true)] {
            let store: Arc<dyn CacheStore> = Arc::new(PlainStore::new());
            let mut writer = writer(store.clone(), supersession).await.unwrap();
            let in_a = json!({"a": null});
            let lower = [(1, 2), (2, 3)].map(|(n, at)| revision(&format!("x{n}"), 1, n, &[n], &json!({"b": null}), (1, at)));
            let mut first = [lower.as_slice(), &[revision("e", 1, 3, &[3], &in_a, (0, 1))]].concat();
            let mut second = vec![revision("d", 2, 4, &[3, 4], &in_a, (1, 9))];
            if !are_batches {
                first.append(&mut second);
            }
            process(&mut writer, &first).await.unwrap();
            if is_restarted {
                writer.flush().await.unwrap();
                writer = self::writer(store.clone(), supersession).await.unwrap();
            }
            process(&mut writer, &second).await.unwrap();
            writer.finish().await.unwrap();
            assert_sound(&store).await;
            assert_eq!(rows(&store, "a").await, [row(3, "e", false), row(4, "d", false)]);
        }
    }
}

/// `e` is published, and above the high sequence. Then the writer is killed: the checkpoint does
/// not know `e`. The next one is given `d` first, whose left-out revision had the sequence of `e`.
#[tokio::test]
async fn a_published_document_stays_that_the_checkpoint_does_not_know() {
    for supersession in [Supersession::Recents, Supersession::Pointers] {
        let store: Arc<dyn CacheStore> = Arc::new(PlainStore::new());
        let in_a = json!({"a": null});
        let e = || FeedEvent::Mutation(revision("e", 1, 5, &[5], &in_a, (0, 1)));
        let lower = |n| FeedEvent::Mutation(revision(&format!("x{n}"), 1, n, &[n], &json!({"b": null}), (1, n)));
        let mut first = writer(store.clone(), supersession).await.unwrap();
        first.process(vec![lower(1), lower(2)].into()).await.unwrap();
        first.flush().await.unwrap();
        first.process_decoded(Vec::new()).await.unwrap();
        first.process(vec![e()].into()).await.unwrap();
        first.flush().await.unwrap();
        drop(first);
        let mut second = writer(store.clone(), supersession).await.unwrap();
        assert_eq!(second.pending(), 0, "it is published, and the checkpoint is from before");
        let d = FeedEvent::Mutation(revision("d", 2, 6, &[5, 6], &in_a, (1, 9)));
        second.process(vec![d, e(), lower(3), lower(4)].into()).await.unwrap();
        second.finish().await.unwrap();
        assert_sound(&store).await;
        assert_eq!(rows(&store, "a").await, [row(5, "e", false), row(6, "d", false)]);
    }
}

/// As above, in one batch, where the later revision of `d` has a sequence that another document
/// has, so that what it names was looked up before `e` came.
#[tokio::test]
async fn a_document_stays_whose_sequence_is_named_by_what_conflicts_in_the_same_batch() {
    for supersession in [Supersession::Recents, Supersession::Pointers] {
        let store: Arc<dyn CacheStore> = Arc::new(PlainStore::new());
        let mut writer = writer(store.clone(), supersession).await.unwrap();
        let in_a = json!({"a": null});
        let x = revision("x", 1, 1, &[1], &in_a, (0, 1));
        process(&mut writer, std::slice::from_ref(&x)).await.unwrap();
        let e = revision("e", 1, 3, &[3], &in_a, (0, 2));
        let d = revision("d", 3, 1, &[2, 3, 1], &in_a, (1, 9));
        process(&mut writer, &[x, e, d]).await.unwrap();
        writer.finish().await.unwrap();
        assert_sound(&store).await;
        assert_eq!(rows(&store, "a").await, [row(1, "x", false), row(1, "d", false), row(3, "e", false)]);
    }
}

/// The feed left out the revision that left a channel. It has a lower sequence than the revision
/// before it.
#[tokio::test]
async fn a_row_is_superseded_by_a_removal_with_a_lower_sequence_that_the_feed_left_out() {
    for supersession in [Supersession::Recents, Supersession::Pointers] {
        let store: Arc<dyn CacheStore> = Arc::new(PlainStore::new());
        let mut writer = writer(store.clone(), supersession).await.unwrap();
        let all = [
            revision("d", 2, 3, &[1, 3], &json!({"a": null, "b": null}), (0, 1)),
            revision("d", 4, 4, &[1, 3, 2, 4], &json!({"a": {"seq": 2, "rev": "3-2"}, "b": null}), (0, 3)),
        ];
        for one in all {
            process(&mut writer, &[one]).await.unwrap();
            writer.flush().await.unwrap();
        }
        assert_sound(&store).await;
        assert_eq!(rows(&store, "a").await, [row(2, "d", true)]);
        assert_eq!(rows(&store, "b").await, [row(4, "d", false)]);
    }
}

/// A mutation that waited for a rollback is applied, and a checkpoint stored with it; then the
/// writer is killed. What waited behind it must come again.
#[tokio::test]
async fn a_writer_that_is_killed_after_a_rollback_goes_on_before_what_waited() {
    let (mut crashes, mut missed) = (0, Vec::new());
    for nth in 1..12 {
        let store: Arc<dyn CacheStore> = Arc::new(PlainStore::new());
        let faulty = Arc::new(FaultStore::new(store.clone(), nth, Faults::none()));
        let mut first = writer(faulty.clone(), Supersession::Recents).await.unwrap();
        let in_a = |key, sequence, at| revision(key, 1, sequence, &[sequence], &json!({"a": null}), at);
        let all = [in_a("e", 1, (0, 1)), in_a("f", 1, (2, 2)), in_a("g", 3, (2, 6))];
        first.process(all.map(FeedEvent::Mutation).to_vec().into()).await.unwrap();
        // They wait for the end of the rollback: `e`, which may be lost, has the first's sequence.
        let waits = [
            revision("d", 1, 1, &[1], &json!({"a": null}), (1, 3)),
            revision("d", 2, 2, &[1, 2], &json!({"a": null}), (1, 4)),
            revision("d", 3, 3, &[1, 2, 3], &json!({"a": null}), (1, 5)),
        ];
        let [rollback, ended] = lost(0);
        first.process(vec![rollback].into()).await.unwrap();
        first.process(waits.clone().map(FeedEvent::Mutation).to_vec().into()).await.unwrap();
        faulty.crash_at(CrashPoint { step: Step::Clock, when: When::After, nth });
        let outcome = async {
            first.process(vec![ended].into()).await?;
            first.finish().await
        };
        if outcome.await.is_err() {
            crashes += 1;
        }
        drop(first);
        // The feed continues where the checkpoint says.
        let mut second = writer(store.clone(), Supersession::Recents).await.unwrap();
        let FeedStart::At(position) = second.start() else { panic!("no checkpoint") };
        let at = position.partitions.get(&PartitionId(1)).map_or(0, |at| at.seqno);
        let rest = waits.into_iter().filter(|mutation| mutation.seqno.0 > at).map(FeedEvent::Mutation);
        second.process(FeedBatch::from(rest.collect::<Vec<_>>())).await.unwrap();
        second.finish().await.unwrap();
        let mut found = rows(&store, "a").await;
        found.sort_unstable();
        if found != [row(1, "f", false), row(3, "d", false), row(3, "g", false)] {
            missed.push((nth, found));
        }
    }
    assert!(crashes >= 3, "{crashes}");
    assert!(missed.is_empty(), "{missed:?}");
}

/// A commit is cut off. The next writer is given only a later revision of its document, and that is
/// lost: the rows that were not written are missing no longer.
#[tokio::test]
async fn a_revision_whose_commit_was_cut_off_is_shown_when_the_later_one_is_lost() {
    for supersession in [Supersession::Recents, Supersession::Pointers] {
        for point in CrashPoint::all(1).chain(CrashPoint::all(2)) {
            let store: Arc<dyn CacheStore> = Arc::new(PlainStore::new());
            let faulty = Arc::new(FaultStore::new(store.clone(), 1, Faults::none()));
            let first = revision("d", 1, 1, &[1], &json!({"a": null}), (0, 1));
            let others = [("e", 2, (1, 2)), ("f", 3, (1, 3))];
            let others = others.map(|(key, n, at)| revision(key, 1, n, &[n], &json!({"b": null}), at));
            faulty.crash_at(point);
            let cut_off = async {
                let mut writer = writer(faulty.clone(), supersession).await?;
                let all = [std::slice::from_ref(&first), &others].concat();
                writer.process(all.into_iter().map(FeedEvent::Mutation).collect::<Vec<_>>().into()).await?;
                writer.finish().await
            };
            // It may also end before the point comes.
            drop(cut_off.await);
            let mut writer = writer(store.clone(), supersession).await.unwrap();
            let later = revision("d", 2, 4, &[1, 4], &json!({"a": {"seq": 4, "rev": "2-4"}}), (0, 4));
            let left = [&others[..], &[later]].concat();
            writer.process(left.into_iter().map(FeedEvent::Mutation).collect::<Vec<_>>().into()).await.unwrap();
            let [rollback, ended] = lost(0);
            writer.process(vec![rollback, FeedEvent::Mutation(first), ended].into()).await.unwrap();
            writer.finish().await.unwrap();
            assert_eq!(rows(&store, "a").await, [row(1, "d", false)], "{point}");
            let report = verify(store.as_ref(), &VerifyOptions::default().feed(FEED)).await.unwrap();
            assert!(report.is_clean(), "{point}: {:#?}", report.findings);
        }
    }
}

/// The writer is killed in the middle of a rollback, after mutations of the new history have come.
/// The next one goes on in the history that was lost, so that the feed rolls back again.
#[tokio::test]
async fn a_writer_that_is_killed_in_a_rollback_is_told_of_it_again() {
    let (partition, old, new) = (PartitionId(0), 1, 2);
    let state = |uuid, log: &[(u64, u64)]| FeedEvent::PartitionState { partition, uuid, failover_log: log.to_vec() };
    let in_a = |generation, sequence, seqno| {
        FeedEvent::Mutation(revision("d", generation, sequence, &[sequence], &json!({"a": null}), (0, seqno)))
    };
    let purge = |seqno| {
        let mutation = revision("other", 1, 1, &[1], &json!({}), (0, seqno));
        FeedEvent::Mutation(Mutation { kind: MutationKind::Deletion, value: Default::default(), ..mutation })
    };
    for supersession in [Supersession::Recents, Supersession::Pointers] {
        let store: Arc<dyn CacheStore> = Arc::new(PlainStore::new());
        let mut first = writer(store.clone(), supersession).await.unwrap();
        let log = [(old, 0)];
        first.process(vec![state(old, &log), in_a(1, 1, 1), in_a(2, 2, 9)].into()).await.unwrap();
        let rollback = FeedEvent::Rollback { partition, to: PartitionSeqno(1) };
        let log = [(new, 1), (old, 0)];
        // The first mutation waits: the second revision may come again.
        first.process(vec![rollback, state(new, &log), in_a(2, 3, 2), purge(3)].into()).await.unwrap();
        first.finish().await.unwrap();
        drop(first);
        let second = writer(store.clone(), supersession).await.unwrap();
        let FeedStart::At(position) = second.start() else { panic!("no checkpoint") };
        let at = &position.partitions[&partition];
        assert_eq!((at.uuid, at.seqno), (old, 9), "{supersession:?}");
    }
}

/// A marker that releases these sequences.
fn released(sequences: &str, at: (u16, u64)) -> Mutation {
    let (partition, seqno) = (PartitionId(at.0), PartitionSeqno(at.1));
    Mutation { partition, seqno, cas: at.1 << 16, ..Mutation::new(format!("_sync:unusedSeqs:{sequences}"), "") }
}

async fn process(writer: &mut Writer, mutations: &[Mutation]) -> sluicegate::Result<()> {
    writer.process(mutations.iter().cloned().map(FeedEvent::Mutation).collect::<Vec<_>>().into()).await
}

/// Publishes these mutations. The writer ends before the next checkpoint.
async fn publish_and_die(mut writer: Writer, mutations: &[Mutation]) {
    // No checkpoints from here on.
    writer.process_decoded(Vec::new()).await.unwrap();
    process(&mut writer, mutations).await.unwrap();
    writer.flush().await.unwrap();
}

/// Commits `base`, then kills a writer of `cut_off` at many places, and gives the next writer each
/// of `then` in a batch of its own. Checks the rows of `channel` each time.
async fn check_cut_off(base: &[Mutation], cut_off: &Mutation, then: &[&[Mutation]], channel: &str, shown: &[Row]) {
    let mut crashes = 0;
    for supersession in [Supersession::Recents, Supersession::Pointers] {
        for (step, when) in [(Step::SequenceDocuments, When::After), (Step::Counters, When::After), (Step::Clock, When::Before)] {
            for nth in 1..6 {
                let store: Arc<dyn CacheStore> = Arc::new(PlainStore::new());
                let mut first = writer(store.clone(), supersession).await.unwrap();
                process(&mut first, base).await.unwrap();
                first.flush().await.unwrap();
                drop(first);
                let faulty = Arc::new(FaultStore::new(store.clone(), 1, Faults::none()));
                let mut killed = writer(faulty.clone(), supersession).await.unwrap();
                faulty.crash_at(CrashPoint { step, when, nth });
                let _ = process(&mut killed, std::slice::from_ref(cut_off)).await;
                if killed.flush().await.is_ok() {
                    continue;
                }
                drop(killed);
                crashes += 1;
                let mut next = writer(store.clone(), supersession).await.unwrap();
                for batch in then {
                    process(&mut next, batch).await.unwrap();
                }
                next.finish().await.unwrap();
                assert_eq!(rows(&store, channel).await, shown, "{supersession:?} {when:?} {step:?} {nth}");
                assert_sound(&store).await;
            }
        }
    }
    assert!(crashes >= 8, "{crashes}");
}

/// The entry of `x` is not published. In the batch in which `y` takes its place, it was looked up
/// before.
#[tokio::test]
async fn a_document_stays_that_replaces_an_entry_of_a_killed_writer() {
    let in_a = json!({"a": null});
    let z = |seqno| revision("z", 1, 4, &[4], &in_a, (0, seqno));
    let cut_off = revision("x", 1, 3, &[3], &in_a, (1, 3));
    let then = [z(4), revision("y", 1, 3, &[3], &in_a, (2, 5)), revision("x", 2, 5, &[3, 5], &in_a, (1, 6))];
    let shown = [row(3, "y", false), row(4, "z", false), row(5, "x", false)];
    check_cut_off(&[released("1:2", (0, 1)), z(2)], &cut_off, &[&then], "a", &shown).await;
}

/// The revision with which `x` left the channel is not published, and the feed leaves it out.
/// Another document names its sequence first.
#[tokio::test]
async fn a_departure_is_shown_whose_revision_a_killed_writer_did_not_publish() {
    let left = json!({"c": {"seq": 4, "rev": "2-4"}});
    let base = [released("1:2", (0, 1)), revision("x", 1, 3, &[3], &json!({"c": null}), (1, 2))];
    let cut_off = revision("x", 2, 4, &[3, 4], &left, (1, 3));
    let y = [revision("y", 2, 5, &[4, 5], &json!({"b": null}), (2, 4))];
    let later = [revision("x", 3, 6, &[3, 4, 6], &json!({"c": {"seq": 4, "rev": "2-4"}, "b": null}), (1, 5))];
    check_cut_off(&base, &cut_off, &[&y, &later], "c", &[row(4, "x", true)]).await;
}

/// The revision of `x` is not published, and the feed leaves it out. It has a sequence that was
/// allocated before, so its marks are stored with it: one is on the row of a document that comes.
#[tokio::test]
async fn marks_of_a_killed_writer_do_not_hide_a_document_that_comes() {
    let in_a = json!({"a": null});
    let base = ["v", "w"].map(|key| revision(key, 1, 1, &[1], &in_a, (0, 1)));
    let cut_off = revision("x", 2, 1, &[2, 1], &in_a, (1, 2));
    let y = [revision("y", 1, 2, &[2], &in_a, (2, 3))];
    let later = [revision("x", 3, 3, &[2, 1, 3], &in_a, (1, 4))];
    let shown = [row(1, "v", false), row(1, "w", false), row(2, "y", false), row(3, "x", false)];
    check_cut_off(&base, &cut_off, &[&y, &later], "a", &shown).await;
}

/// The revision of `x` is published, and marks a sequence that nothing else accounts for. The
/// checkpoint is from before it.
#[tokio::test]
async fn marks_that_the_checkpoint_does_not_know_do_not_hide_a_document_that_comes() {
    let in_a = json!({"a": null});
    let base = [revision("v", 1, 1, &[1], &in_a, (0, 1)), revision("w", 1, 1, &[1], &in_a, (0, 2)), released("2:5", (0, 3))];
    let x = [revision("x", 2, 1, &[7, 1], &in_a, (1, 4))];
    let y = [revision("y", 1, 7, &[7], &in_a, (2, 5)), released("6:6", (0, 6))];
    for supersession in [Supersession::Recents, Supersession::Pointers] {
        let store: Arc<dyn CacheStore> = Arc::new(PlainStore::new());
        let mut first = writer(store.clone(), supersession).await.unwrap();
        process(&mut first, &base).await.unwrap();
        first.flush().await.unwrap();
        publish_and_die(first, &x).await;
        let mut next = writer(store.clone(), supersession).await.unwrap();
        process(&mut next, &y).await.unwrap();
        process(&mut next, &x).await.unwrap();
        next.finish().await.unwrap();
        let shown = [row(1, "v", false), row(1, "w", false), row(1, "x", false), row(7, "y", false)];
        assert_eq!(rows(&store, "a").await, shown, "{supersession:?}");
        assert_sound(&store).await;
    }
}

/// The entry of `x` is published, with its pointer. The checkpoint is from before it, and `y` takes
/// its place. `x` comes again to the writer after the next.
#[tokio::test]
async fn a_pointer_is_taken_back_when_another_document_takes_the_place_of_its_row() {
    let in_a = json!({"a": null});
    let x = [revision("x", 1, 5, &[5], &in_a, (1, 2))];
    let y = [revision("y", 1, 5, &[5], &in_a, (2, 3)), released("1:4", (0, 1))];
    for supersession in [Supersession::Recents, Supersession::Pointers] {
        let store: Arc<dyn CacheStore> = Arc::new(PlainStore::new());
        let first = writer(store.clone(), supersession).await.unwrap();
        publish_and_die(first, &x).await;
        let mut next = writer(store.clone(), supersession).await.unwrap();
        process(&mut next, &y).await.unwrap();
        next.finish().await.unwrap();
        drop(next);
        let mut last = writer(store.clone(), supersession).await.unwrap();
        process(&mut last, &x).await.unwrap();
        last.finish().await.unwrap();
        assert_eq!(rows(&store, "a").await, [row(5, "y", false), row(5, "x", false)], "{supersession:?}");
        assert_sound(&store).await;
    }
}

/// The feed leaves out a revision that left channels, and its sequence is another document's: the
/// departure is in a slot. That document is purged. In a rollback, the revision comes as a whole.
#[tokio::test]
async fn a_departure_in_a_slot_gives_way_to_its_whole_revision() {
    let partition = PartitionId(0);
    let (both, left) = (json!({"a": null, "b": null}), |a: Value| json!({"a": a, "b": {"seq": 2, "rev": "2-2"}}));
    let first = revision("d", 1, 1, &[1], &both, (0, 1));
    let whole = revision("d", 2, 2, &[1, 2], &left(json!({"seq": 2, "rev": "2-2"})), (0, 2));
    let later = revision("d", 3, 3, &[1, 2, 3], &left(json!(null)), (0, 3));
    let other = revision("e", 1, 2, &[2], &json!({"c": null}), (1, 1));
    for supersession in [Supersession::Recents, Supersession::Pointers] {
        let store: Arc<dyn CacheStore> = Arc::new(PlainStore::new());
        let mut writer = writer(store.clone(), supersession).await.unwrap();
        process(&mut writer, &[other.clone(), first.clone(), later.clone()]).await.unwrap();
        writer.process(lost(1).into_iter().collect::<Vec<_>>().into()).await.unwrap();
        let back = FeedEvent::Rollback { partition, to: PartitionSeqno(1) };
        let [whole, later] = [&whole, &later].map(|mutation| FeedEvent::Mutation(mutation.clone()));
        writer.process(vec![back, whole, later, FeedEvent::RollbackEnded { partition }].into()).await.unwrap();
        writer.finish().await.unwrap();
        assert_eq!(rows(&store, "b").await, [row(2, "d", true)], "{supersession:?}");
        assert_eq!(rows(&store, "a").await, [row(3, "d", false)], "{supersession:?}");
        assert_sound(&store).await;
    }
}

/// The feed leaves out the first revision of `d`, whose sequence another document has. The next
/// writer is given it, and the later revision is a duplicate.
#[tokio::test]
async fn a_later_revision_supersedes_an_earlier_one_that_comes_to_the_next_writer() {
    let in_a = json!({"a": null});
    let other = [revision("v", 1, 1, &[1], &in_a, (0, 1)), released("2:2", (0, 2))];
    let (earlier, later) = (revision("d", 1, 1, &[1], &in_a, (1, 4)), revision("d", 2, 3, &[1, 3], &in_a, (1, 5)));
    let both = [Supersession::Recents, Supersession::Pointers].into_iter();
    for (supersession, is_killed) in both.flat_map(|one| [(one, false), (one, true)]) {
        let store: Arc<dyn CacheStore> = Arc::new(PlainStore::new());
        let mut first = writer(store.clone(), supersession).await.unwrap();
        process(&mut first, &other).await.unwrap();
        process(&mut first, std::slice::from_ref(&later)).await.unwrap();
        first.finish().await.unwrap();
        drop(first);
        // It reads the feed from the beginning.
        let mut next = writer(store.clone(), supersession).await.unwrap();
        process(&mut next, &other).await.unwrap();
        if is_killed {
            process(&mut next, std::slice::from_ref(&earlier)).await.unwrap();
            next.flush().await.unwrap();
            drop(next);
            next = writer(store.clone(), supersession).await.unwrap();
            process(&mut next, &other).await.unwrap();
        }
        process(&mut next, &[earlier.clone(), later.clone()]).await.unwrap();
        next.finish().await.unwrap();
        assert_eq!(rows(&store, "a").await, [row(1, "v", false), row(3, "d", false)], "{supersession:?} {is_killed}");
        assert_sound(&store).await;
    }
}

/// The pointer of `x` is published, and its entry replaced by that of `y`, because the checkpoint
/// is from before both.
#[tokio::test]
async fn a_pointer_supersedes_no_row_of_the_document_that_has_its_sequence_now() {
    for supersession in [Supersession::Recents, Supersession::Pointers] {
        let store: Arc<dyn CacheStore> = Arc::new(PlainStore::new());
        let in_a = json!({"a": null});
        let x = || revision("x", 1, 5, &[5], &in_a, (1, 2));
        let mut first = writer(store.clone(), supersession).await.unwrap();
        process(&mut first, &[revision("z", 1, 1, &[1], &in_a, (0, 1))]).await.unwrap();
        first.flush().await.unwrap();
        process(&mut first, &[x()]).await.unwrap();
        while first.clock().batch < 3 {
            tokio::task::yield_now().await;
            process(&mut first, &[]).await.unwrap();
        }
        drop(first);
        let mut second = writer(store.clone(), supersession).await.unwrap();
        process(&mut second, &[revision("y", 1, 5, &[5], &in_a, (2, 3))]).await.unwrap();
        process(&mut second, &[x()]).await.unwrap();
        process(&mut second, &[revision("x", 2, 6, &[5, 6], &in_a, (1, 4)), released("1:4", (0, 9))]).await.unwrap();
        second.finish().await.unwrap();
        assert_sound(&store).await;
        assert_eq!(rows(&store, "a").await, [row(1, "z", false), row(5, "y", false), row(6, "x", false)]);
    }
}

/// The pointer of `x` is published, and `y` takes the place of its entry. An earlier revision of `x`
/// comes in the batch of `y`, so the pointer is stored again. The next writer gets the latest one,
/// which does not name the replaced entry.
#[tokio::test]
async fn a_pointer_that_is_stored_again_supersedes_no_row_of_another_document() {
    for supersession in [Supersession::Recents, Supersession::Pointers] {
        let store: Arc<dyn CacheStore> = Arc::new(PlainStore::new());
        let in_a = json!({"a": null});
        let mut writer = writer(store.clone(), supersession).await.unwrap();
        process(&mut writer, &[released("1:1", (0, 1))]).await.unwrap();
        writer.flush().await.unwrap();
        publish_and_die(writer, &[revision("x", 2, 4, &[6, 4], &in_a, (1, 2))]).await;
        let mut second = self::writer(store.clone(), supersession).await.unwrap();
        let both = [revision("y", 1, 4, &[4], &in_a, (2, 3)), revision("x", 1, 6, &[6], &in_a, (1, 1))];
        process(&mut second, &[&both[..], &[released("2:3", (0, 4)), released("5:5", (0, 5))]].concat()).await.unwrap();
        second.flush().await.unwrap();
        drop(second);
        let mut third = self::writer(store.clone(), supersession).await.unwrap();
        process(&mut third, &[revision("x", 3, 7, &[6, 7], &in_a, (1, 6))]).await.unwrap();
        third.finish().await.unwrap();
        assert_eq!(rows(&store, "a").await, [row(4, "y", false), row(7, "x", false)], "{supersession:?}");
        assert_sound(&store).await;
    }
}

/// The revision of `x` is not published, and the feed leaves it out. The next one, which the feed
/// leaves out, too, left the channel with a lower sequence.
#[tokio::test]
async fn a_row_of_a_killed_writer_is_superseded_by_a_removal_with_a_lower_sequence() {
    let base = [released("1:2", (0, 1)), released("4:4", (0, 2))];
    let cut_off = revision("x", 1, 5, &[5], &json!({"c": null}), (1, 3));
    let later = [revision("x", 3, 6, &[5, 3, 6], &json!({"c": {"seq": 3, "rev": "2-3"}, "b": null}), (1, 4))];
    check_cut_off(&base, &cut_off, &[&later], "c", &[row(3, "x", true)]).await;
}

/// A sequence has 16 positions: the rest is left out, and told.
#[tokio::test]
async fn the_first_16_documents_of_one_sequence_are_shown() {
    for supersession in [Supersession::Recents, Supersession::Pointers] {
        let store: Arc<dyn CacheStore> = Arc::new(PlainStore::new());
        let mut writer = writer(store.clone(), supersession).await.unwrap();
        let all: Vec<Mutation> =
            (1..=18).map(|n| revision(&format!("d{n:02}"), 1, 1, &[1], &json!({"a": null}), (1, n))).collect();
        process(&mut writer, &all).await.unwrap();
        writer.finish().await.unwrap();
        let first: Vec<Row> = (1..=16).map(|n| row(1, &format!("d{n:02}"), false)).collect();
        assert_eq!(rows(&store, "a").await, first);
        assert_eq!((writer.stats().conflicts, writer.stats().invalid), (15, 2));
        assert_sound(&store).await;
    }
}

/// The marker is lost in a rollback, and then a document has the sequence that it had released.
#[tokio::test]
async fn a_document_is_shown_whose_sequence_a_lost_marker_had_released() {
    for supersession in [Supersession::Recents, Supersession::Pointers] {
        let store: Arc<dyn CacheStore> = Arc::new(PlainStore::new());
        let mut writer = writer(store.clone(), supersession).await.unwrap();
        let in_a = json!({"a": null});
        process(&mut writer, &[revision("e", 1, 1, &[1], &in_a, (1, 1)), released("2:3", (0, 1))]).await.unwrap();
        writer.flush().await.unwrap();
        writer.process(lost(0).to_vec().into()).await.unwrap();
        process(&mut writer, &[revision("d", 1, 3, &[3], &in_a, (0, 1)), revision("f", 1, 2, &[2], &in_a, (1, 2))])
            .await
            .unwrap();
        writer.finish().await.unwrap();
        assert_eq!(rows(&store, "a").await, [row(1, "e", false), row(2, "f", false), row(3, "d", false)]);
        assert_sound(&store).await;
    }
}

/// The later revision of `d` has a lower sequence, and is shown while the earlier one still waits.
/// A client that goes on from the later one is not shown the earlier one.
#[tokio::test]
async fn an_earlier_revision_that_waited_is_not_shown_after_a_later_one() {
    for supersession in [Supersession::Recents, Supersession::Pointers] {
        for is_opened_again in [false, true] {
            for delivery in [Delivery::Eager, Delivery::Strict, Delivery::Auto] {
                let store: Arc<dyn CacheStore> = Arc::new(PlainStore::new());
                let mut writer = writer(store.clone(), supersession).await.unwrap();
                let earlier = revision("d", 1, 20, &[20], &json!({"b": null}), (0, 2));
                let later = revision("d", 2, 6, &[6, 20], &json!({"b": {"seq": 6, "rev": "2-6"}}), (0, 3));
                process(&mut writer, &[released("1:5", (1, 1)), earlier, later]).await.unwrap();
                writer.flush().await.unwrap();
                let open = || ReaderNode::open(store.clone(), ReaderConfig::default());
                let mut reader = open().await.unwrap();
                let (mut options, mut told) = (ChangesOptions::new().delivery(delivery).limit(1), Vec::new());
                for nth in 0..4 {
                    reader.refresh().await.unwrap();
                    let answer = reader.changes(&[Channel::new("b").unwrap()], &options).await.unwrap().answer();
                    options = options.since(answer.last);
                    told.extend(answer.rows.iter().map(|row| (row.id.sequence.0, !row.removed.is_empty())));
                    if nth == 0 && is_opened_again {
                        reader = open().await.unwrap();
                    }
                    if nth == 1 {
                        process(&mut writer, &[released("7:19", (1, 4))]).await.unwrap();
                        writer.finish().await.unwrap();
                    }
                }
                assert_eq!(told, [(6, true)], "{supersession:?} {delivery:?} opened again: {is_opened_again}");
                assert_sound(&store).await;
            }
        }
    }
}

/// Two revisions tell of a departure that the feed left out, and the later one comes first. It is
/// lost: the departure stays, because the earlier revision tells of it.
#[tokio::test]
async fn a_departure_stays_as_long_as_a_revision_tells_of_it() {
    let partition = PartitionId(0);
    let back = |to| FeedEvent::Rollback { partition, to: PartitionSeqno(to) };
    let end = FeedEvent::RollbackEnded { partition };
    let left = json!({"seq": 2, "rev": "2-2"});
    let first = revision("d", 1, 1, &[1], &json!({"a": null, "b": null}), (0, 1));
    let earlier = revision("d", 3, 3, &[1, 2, 3], &json!({"a": left, "b": left}), (0, 3));
    // It has entered `b` again.
    let later = revision("d", 4, 4, &[1, 2, 3, 4], &json!({"a": left, "b": null}), (0, 4));
    let [first, earlier, later] = [first, earlier, later].map(FeedEvent::Mutation);
    for supersession in [Supersession::Recents, Supersession::Pointers] {
        // In the second case a writer that takes over is told of all of it anew.
        for is_restarted in [false, true] {
            let store: Arc<dyn CacheStore> = Arc::new(PlainStore::new());
            let mut term = writer(store.clone(), supersession).await.unwrap();
            term.process(vec![first.clone(), later.clone()].into()).await.unwrap();
            let again = if is_restarted {
                term.finish().await.unwrap();
                drop(term);
                term = writer(store.clone(), supersession).await.unwrap();
                vec![first.clone(), earlier.clone(), later.clone()]
            } else {
                vec![back(1), earlier.clone(), later.clone(), end.clone()]
            };
            term.process(again.into()).await.unwrap();
            term.process(vec![back(3), end.clone()].into()).await.unwrap();
            term.finish().await.unwrap();
            for channel in ["a", "b"] {
                assert_eq!(rows(&store, channel).await, [row(2, "d", true)], "{channel} {supersession:?} {is_restarted}");
            }
            assert_eq!(rows(&store, "*").await, [row(3, "d", false)], "{supersession:?} {is_restarted}");
            let report = verify(store.as_ref(), &VerifyOptions::default().feed(FEED)).await.unwrap();
            assert!(report.is_clean(), "{supersession:?} {is_restarted}: {:#?}", report.findings);
        }
    }
}
