//! A document is purged and made anew, around a crash or a failover: nothing of before shows.

use std::sync::Arc;
use std::time::Duration;

use sluicegate::changes::{ChangesOptions, Delivery};
use sluicegate::feed::MutationKind;
use sluicegate::pointer::Supersession;
use sluicegate::verify::{RepairOptions, repair};
use sluicegate::{
    CacheStore, Channel, FeedBatch, FeedEvent, GatewayDecoder, Mutation, PartitionId, PartitionSeqno, ReaderConfig, ReaderNode,
    Writer, WriterConfig,
};
use sluicegate_replay::MemoryFeed;
use sluicegate_testkit::PausingFeed;
use sluicegate_testkit::fault::{CrashPoint, FaultStore, Faults};
use sluicegate_testkit::gateway::Kept;
use sluicegate_testkit::plain::PlainStore;

const BOTH: [Supersession; 2] = [Supersession::Recents, Supersession::Pointers];

/// The revisions of document `d` from when it is made until it is purged: CAS, sequence and channel
/// of each.
fn life(revisions: &[(u64, u64, &str)]) -> Vec<Mutation> {
    let mut kept = Kept::default();
    let write = |(cas, sequence, channel): &(u64, u64, &str)| {
        kept.write(&format!("x{sequence}"), *sequence, &[], &[(*channel).to_owned()], false, false);
        kept.mutation("d", cas << 16, sequence.to_string().as_bytes())
    };
    revisions.iter().map(write).collect()
}

fn purge(cas: u64) -> Mutation {
    Mutation { kind: MutationKind::Deletion, cas: cas << 16, ..Mutation::new("d", "") }
}

fn unused(sequence: u64) -> Mutation {
    Mutation::new(format!("_sync:unusedSeq:{sequence}"), "")
}

/// In the place of what the feed leaves out.
fn left_out() -> Mutation {
    Mutation::new("_sync:left out", "")
}

fn config(supersession: Supersession) -> WriterConfig {
    let mut config = WriterConfig::default().with_supersession(supersession);
    (config.gather_purges_ms, config.checkpoint_interval_ms, config.hold_first_read) = (0, 1, false);
    config
}

async fn writer(store: Arc<dyn CacheStore>, config: WriterConfig) -> sluicegate::Result<Writer> {
    Writer::alone(store, Arc::new(GatewayDecoder::default()), "purged", config).await
}

/// A writer is killed at `point`; whether it got there.
async fn killed(store: &Arc<PlainStore>, feed: &MemoryFeed, supersession: Supersession, point: CrashPoint) -> bool {
    let faulty = Arc::new(FaultStore::new(store.clone(), 1, Faults::none()));
    faulty.crash_at(point);
    if let Ok(mut writer) = writer(faulty.clone(), config(supersession)).await {
        let ended = writer.run(feed, std::future::pending()).await;
        assert!(ended.is_ok() || faulty.crashed(), "{ended:?}");
    }
    faulty.crashed()
}

/// The sequences of the rows of `a`, and of the star channel, once what is missing is given up.
async fn shown(store: &Arc<PlainStore>, supersession: Supersession) -> [Vec<u64>; 2] {
    let mut config = config(supersession);
    (config.max_wait_ms, config.skip_wait_ms) = (1, 1);
    let mut last = writer(store.clone(), config).await.unwrap();
    tokio::time::sleep(Duration::from_millis(10)).await;
    last.finish().await.unwrap();
    let reader = ReaderNode::open(store.clone(), ReaderConfig::default()).await.unwrap();
    let options = ChangesOptions::new().delivery(Delivery::Eager).active_only(true);
    let mut all = [Vec::new(), Vec::new()];
    for (channel, rows) in ["a", "*"].into_iter().zip(&mut all) {
        let answer = reader.changes(&[Channel::new(channel).unwrap()], &options).await.unwrap().answer();
        rows.extend(answer.rows.iter().map(|row| row.id.sequence.0));
    }
    all
}

fn points() -> impl Iterator<Item = CrashPoint> {
    (1..4).flat_map(|nth| CrashPoint::all(nth).chain(CrashPoint::occasional(nth)))
}

/// A commit with two revisions, a purge and a new document is cut off. Then the feed leaves out all
/// but the first revision and the purge, which is carried out before the document's next revision
/// comes.
#[tokio::test(start_paused = true)]
async fn what_was_stored_in_a_commit_that_was_cut_off_goes_with_the_purge() {
    let (old, new) = (life(&[(1, 1, "c"), (2, 2, "a")]), life(&[(4, 3, "b"), (6, 6, "c")]));
    let first = vec![old[0].clone(), old[1].clone(), purge(3), new[0].clone()];
    let second = vec![old[0].clone(), left_out(), purge(3), left_out(), unused(4), unused(5), new[1].clone()];
    let first = MemoryFeed::new("purged", first).with_batch(4).unwrap();
    for supersession in BOTH {
        let mut removals = 0;
        for point in points() {
            let store = Arc::new(PlainStore::new());
            if !killed(&store, &first, supersession, point).await {
                continue;
            }
            let feed = PausingFeed::new(Arc::new(MemoryFeed::new("purged", second.clone()).with_batch(1).unwrap()));
            let mut pause = feed.pause_at(7);
            let mut next = writer(store.clone(), config(supersession)).await.unwrap();
            let mut progress = next.progress();
            let running = tokio::spawn(async move { next.run(&feed, std::future::pending()).await.map(drop) });
            // It may go on after that, and there may be nothing to remove.
            if pause.reached().await {
                let removed = progress.wait_for(|progress| progress.stats.purged_entries > 0);
                removals += usize::from(tokio::time::timeout(Duration::from_secs(5), removed).await.is_ok());
            }
            pause.resume();
            running.await.unwrap().unwrap();
            let what = format!("{supersession:?}, {point}");
            assert_eq!(shown(&store, supersession).await, [vec![], vec![6]], "{what}");
            repair(store.as_ref(), &RepairOptions::default()).await.unwrap();
            assert_eq!(shown(&store, supersession).await, [vec![], vec![6]], "{what}, after a repair");
        }
        assert!(removals > 5, "{supersession:?}: only {removals} purges removed something");
    }
}

/// A replica has the same changes but the last, in smaller snapshots, and so delivers what the
/// first snapshot left out.
#[tokio::test(start_paused = true)]
async fn a_failover_that_brings_a_revision_from_before_a_purge_shows_nothing_of_it() {
    let (old, new) = (life(&[(1, 1, "a")]), life(&[(3, 2, "b")]));
    let partition = PartitionId(0);
    let at = |mutation: &Mutation, seqno| {
        FeedEvent::Mutation(Mutation { partition, seqno: PartitionSeqno(seqno), ..mutation.clone() })
    };
    let snapshot = |start, end| FeedEvent::SnapshotStart { partition, start: PartitionSeqno(start), end: PartitionSeqno(end) };
    let state = |log: &[(u64, u64)]| FeedEvent::PartitionState { partition, uuid: log[0].0, failover_log: log.to_vec() };
    let first = vec![state(&[(1, 0)]), snapshot(1, 4), at(&new[0], 3), at(&unused(3), 4)];
    let second = vec![
        FeedEvent::Rollback { partition, to: PartitionSeqno(0) },
        state(&[(2, 3), (1, 0)]),
        snapshot(1, 2),
        at(&old[0], 1),
        at(&purge(2), 2),
        snapshot(3, 3),
        at(&new[0], 3),
        snapshot(4, 4),
        at(&unused(4), 4),
        FeedEvent::RollbackEnded { partition },
    ];
    for supersession in BOTH {
        let store = Arc::new(PlainStore::new());
        let mut writer = writer(store.clone(), config(supersession)).await.unwrap();
        writer.process(FeedBatch { events: first.clone() }).await.unwrap();
        writer.flush().await.unwrap();
        writer.process(FeedBatch { events: second.clone() }).await.unwrap();
        writer.finish().await.unwrap();
        drop(writer);
        assert_eq!(shown(&store, supersession).await, [vec![], vec![2]], "{supersession:?}");
    }
}
