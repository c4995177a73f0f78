//! Feeds written down and played back.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::StreamExt as _;
use parking_lot::Mutex;
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use sluicegate_core::decode::attributes;
use sluicegate_core::feed::{Datatype, FeedCapabilities, FeedInfo, MutationKind, PartitionPosition, PositionTracker};
use sluicegate_core::{ErrorKind, Feed, FeedEvent, FeedPosition, FeedStart, Mutation, PartitionId, PartitionSeqno, Result};
use sluicegate_replay::{Recorder, Recording, ReplayFeed, ReplayOptions};
use sluicegate_testkit::branching::{Act, BranchingFeed, Write as WriteAct};

fn info(partitions: u16) -> FeedInfo {
    let capabilities = FeedCapabilities { positions: true, snapshots: true, deletions: true, finite: false };
    FeedInfo { scheme: "some", name: "feed".to_owned(), partitions, capabilities }
}

async fn events(feed: &dyn Feed, start: FeedStart) -> Result<Vec<FeedEvent>> {
    let mut events = Vec::new();
    let mut stream = feed.open(start).await?;
    while let Some(batch) = stream.next().await {
        events.extend(batch?.events);
    }
    events.retain(|event| *event != FeedEvent::CaughtUp);
    Ok(events)
}

fn record(path: &Path, info: &FeedInfo, events: &[FeedEvent]) {
    let mut recorder = Recorder::create(path, info).unwrap();
    events.iter().for_each(|event| recorder.write(event).unwrap());
    recorder.finish().unwrap();
}

async fn played(path: &Path) -> Vec<FeedEvent> {
    events(&ReplayFeed::open(path, ReplayOptions::default()).await.unwrap(), FeedStart::Beginning).await.unwrap()
}

/// Values with and without attributes, JSON and not, whole and broken.
fn values() -> Vec<(u8, Vec<u8>)> {
    let bodies: [&[u8]; 12] = [
        b"",
        b"{}",
        br#"{"a": 1.0e3,"a":"\u0041","big":18446744073709551617}"#,
        b" {}",
        b"{}\n",
        b"{\"a\":\n1}",
        b"null",
        b"0",
        b"\"\xc3\xa9\"",
        b"\"\xff\"",
        b"{\"a\":",
        b"\0\xff\n",
    ];
    let mut values: Vec<(u8, Vec<u8>)> = Vec::new();
    for body in bodies {
        values.push((0, body.to_vec()));
        values.push((Datatype::JSON, body.to_vec()));
        values.push((Datatype::SNAPPY | Datatype::XATTR, body.to_vec()));
        // Is no section.
        values.push((Datatype::XATTR, body.to_vec()));
        let none: [(&str, &[u8]); 0] = [];
        values.push((Datatype::XATTR, attributes::encode(none, body).unwrap()));
        for content in bodies {
            let pairs = [("b", content), ("a", b"{\"x\":1}"), ("b", b"2"), ("\u{e9}", b"null")];
            values.push((Datatype::XATTR | Datatype::JSON, attributes::encode(pairs, body).unwrap()));
        }
        values.push((Datatype::XATTR, attributes::encode([(&b"\xff"[..], b"1")], body).unwrap()));
        // A pair without a name.
        let mut nameless = attributes::encode([("n", "1")], body).unwrap();
        nameless[8] = 0;
        values.push((Datatype::XATTR, nameless));
    }
    values
}

#[tokio::test]
async fn every_byte_of_a_mutation_is_kept() {
    let keys: [&[u8]; 5] = [b"k", b"", b"k\"\\\n\0", "k\u{e9}\u{1f980}".as_bytes(), b"\xff\xfe"];
    let kinds = [MutationKind::Mutation, MutationKind::Deletion, MutationKind::Expiration];
    let mut random = ChaCha8Rng::seed_from_u64(1);
    let mut seqno = 0;
    let written: Vec<FeedEvent> = values()
        .into_iter()
        .map(|(datatype, value)| {
            seqno += random.random_range(1..1_000_000_000_000_000);
            FeedEvent::Mutation(Mutation {
                kind: kinds[random.random_range(0..3)],
                partition: PartitionId(random.random_range(0..3000)),
                seqno: PartitionSeqno(seqno),
                key: keys[random.random_range(0..5)].to_vec().into(),
                value: value.into(),
                cas: random.random(),
                datatype: Datatype(datatype),
                rev_no: random.random(),
                flags: random.random(),
                expiry: random.random(),
                collection: random.random(),
            })
        })
        .collect();
    let folder = tempfile::tempdir().unwrap();
    for name in ["plain.ndjson", "compressed.ndjson.gz"] {
        let path = folder.path().join(name);
        record(&path, &info(3000), &written);
        let read = played(&path).await;
        assert_eq!(read.len(), written.len());
        for (read, written) in read.iter().zip(&written) {
            assert_eq!(read, written);
        }
    }
    let readable = std::fs::read_to_string(folder.path().join("plain.ndjson")).unwrap();
    let sorts = [r#""body":{}"#, r#""xattrs":{"b":0,"a":{"x":1}"#, r#""body_b64":"#, r#""value_b64":"#, r#""key_b64":"#];
    assert!(sorts.iter().all(|sort| readable.contains(sort)), "{readable}");
}

#[tokio::test]
async fn everything_else_that_a_feed_tells_is_kept() {
    let (partition, seqno) = (PartitionId(7), PartitionSeqno);
    let written = [
        FeedEvent::PartitionState { partition, uuid: u64::MAX, failover_log: vec![(u64::MAX, 5), (1, 0)] },
        FeedEvent::PartitionContext { partition, manifest_uid: u64::MAX - 1, purge_seqno: 3 },
        FeedEvent::SnapshotStart { partition, start: seqno(1), end: seqno(9) },
        FeedEvent::SeqnoAdvanced { partition, seqno: seqno(9) },
        FeedEvent::Rollback { partition, to: seqno(4) },
        FeedEvent::RollbackEnded { partition },
        FeedEvent::Unordered { partition },
        FeedEvent::PartitionState { partition, uuid: 2, failover_log: vec![] },
    ];
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("all.gz");
    record(&path, &info(8), &written);
    assert_eq!(played(&path).await, written);
    let feed = ReplayFeed::open(&path, ReplayOptions::default()).await.unwrap();
    let capabilities = FeedCapabilities { positions: true, snapshots: true, deletions: true, finite: true };
    assert_eq!((feed.info().partitions, feed.info().capabilities), (8, capabilities));
    assert_eq!(Recording::read(&path).unwrap_err().kind(), ErrorKind::Unsupported);
}

#[tokio::test]
async fn a_gateways_recording_recorded_again_is_the_same() {
    let testdata = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/gateway");
    let folder = tempfile::tempdir().unwrap();
    for name in ["mutations-inline.ndjson.gz", "mutations-xattr33.ndjson.gz"] {
        let feed = ReplayFeed::open(testdata.join(name), ReplayOptions::default()).await.unwrap();
        let before = events(&feed, FeedStart::Beginning).await.unwrap();
        let path = folder.path().join(name);
        record(&path, &feed.info(), &before);
        assert!(played(&path).await == before, "{name}");
    }
}

/// What somebody holds who has taken some events: each partition's mutations, by place.
fn held(events: &[FeedEvent]) -> BTreeMap<PartitionId, BTreeMap<u64, Mutation>> {
    let mut held: BTreeMap<_, BTreeMap<u64, Mutation>> = BTreeMap::new();
    for event in events {
        match event {
            FeedEvent::Mutation(mutation) => {
                held.entry(mutation.partition).or_default().insert(mutation.seqno.0, mutation.clone());
            }
            FeedEvent::Rollback { partition, to } => drop(held.entry(*partition).or_default().split_off(&(to.0 + 1))),
            _ => {}
        }
    }
    held
}

/// Wherever one stops, the rest is the end of what was recorded, partition by partition, and gives what all of it gives.
#[tokio::test]
async fn what_was_taken_back_is_taken_back_again_wherever_one_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let (mut rollbacks, mut again) = (0, 0);
    for seed in 0..60 {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let recorded = BranchingFeed::new(3, seed);
        let writes = |random: &mut ChaCha8Rng| -> Vec<Act> {
            let write = |n: u64| {
                Act::Write(WriteAct { collection: 0, key: format!("k{}", n % 12), value: Arc::new(move |_| n.to_string()) })
            };
            (0..random.random_range(5..30)).map(|_| write(random.random())).collect()
        };
        writes(&mut random).into_iter().for_each(|act| recorded.act(act));
        for _ in 0..3 {
            recorded.plan([Act::FailOver(PartitionId(random.random_range(0..3)), random.random_range(0..100))]);
            recorded.plan(writes(&mut random));
        }
        let all = events(&recorded, FeedStart::Beginning).await.unwrap();
        rollbacks += all.iter().filter(|event| matches!(event, FeedEvent::Rollback { .. })).count();
        let path = folder.path().join(format!("{seed}"));
        record(&path, &recorded.info(), &all);
        assert_eq!(played(&path).await, all, "seed {seed}");
        let feed = ReplayFeed::open(&path, ReplayOptions::default()).await.unwrap();
        let mut tracker = PositionTracker::default();
        for taken in 0..=all.len() {
            let rest = events(&feed, FeedStart::At(tracker.position())).await.unwrap();
            let what = format!("seed {seed}, after {taken} of {}", all.len());
            for id in (0..3).map(PartitionId) {
                let of_it = |events: &[FeedEvent]| -> Vec<FeedEvent> {
                    events.iter().filter(|event| event.partition() == Some(id)).cloned().collect()
                };
                let (rest, all, missing) = (of_it(&rest), of_it(&all), of_it(&all[taken..]));
                assert!(all.ends_with(&rest) && rest.len() >= missing.len(), "{what}: {rest:?} of {all:?}");
                again += rest.len() - missing.len();
            }
            assert_eq!(held(&[&all[..taken], &rest].concat()), held(&all), "{what}");
            if let Some(event) = all.get(taken) {
                tracker.observe(event);
            }
        }
    }
    assert!(rollbacks > 60 && again > 100, "{rollbacks} rollbacks, {again} events came again");
}

#[tokio::test]
async fn a_position_in_a_history_that_was_not_recorded_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("one");
    let partition = PartitionId(0);
    let mut mutation = Mutation::new("k", "{}");
    mutation.seqno = PartitionSeqno(9);
    let state = FeedEvent::PartitionState { partition, uuid: 5, failover_log: vec![(5, 0)] };
    record(&path, &info(1), &[state, FeedEvent::Mutation(mutation)]);
    let feed = ReplayFeed::open(&path, ReplayOptions::default()).await.unwrap();
    let from = |uuid, seqno| {
        let at = PartitionPosition { uuid, seqno, ..PartitionPosition::default() };
        events(&feed, FeedStart::At(FeedPosition { partitions: BTreeMap::from([(partition, at)]) }))
    };
    assert_eq!(from(5, 8).await.unwrap().len(), 1);
    assert_eq!(from(5, 9).await.unwrap().len(), 0);
    let error = from(6, 8).await.unwrap_err();
    assert!(error.kind() == ErrorKind::RolledBack && error.to_string().contains("history 6 of partition 0"), "{error}");
}

/// What is written stays readable by others too.
#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Vec<u8>>>);

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn of_a_recording_that_was_cut_off_all_comes_that_was_flushed_and_then_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cut.gz");
    let out = Shared::default();
    let mut recorder = Recorder::new(out.clone(), &info(1), true).unwrap();
    for n in 1..=3 {
        let mut mutation = Mutation::new(format!("k{n}"), "{}");
        mutation.seqno = PartitionSeqno(n);
        recorder.write(&FeedEvent::Mutation(mutation)).unwrap();
    }
    recorder.flush().unwrap();
    recorder.write(&FeedEvent::Mutation(Mutation::new("lost", "{}"))).unwrap();
    std::fs::write(&path, &*out.0.lock()).unwrap();

    let options = ReplayOptions::default().with_batch(1);
    let mut stream = ReplayFeed::open(&path, options).await.unwrap().open(FeedStart::Beginning).await.unwrap();
    for n in 1..=3 {
        let batch = stream.next().await.unwrap().unwrap();
        assert!(matches!(&batch.events[..], [FeedEvent::Mutation(mutation)] if mutation.seqno.0 == n), "{batch:?}");
    }
    let error = stream.next().await.unwrap().unwrap_err();
    assert!(error.kind() == ErrorKind::Corrupt && error.to_string().contains("until=3 ends with what there is"), "{error}");
    for until in 0..=3 {
        let feed = ReplayFeed::open(&path, ReplayOptions::default().with_until(until)).await.unwrap();
        assert_eq!(events(&feed, FeedStart::Beginning).await.unwrap().len() as u64, until);
    }
}

#[tokio::test]
async fn a_file_that_is_there_is_not_written_over_and_only_the_owner_reads_a_new_one() {
    let folder = tempfile::tempdir().unwrap();
    let path: PathBuf = folder.path().join("there");
    std::fs::write(&path, "mine").unwrap();
    let error = Recorder::create(&path, &info(1)).unwrap_err();
    assert!(error.kind() == ErrorKind::AlreadyExists && error.to_string().contains("name another"), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), b"mine");
    let error = Recorder::create(&path.join("x"), &info(1)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    #[cfg(unix)]
    {
        let new = folder.path().join("new");
        record(&new, &info(1), &[]);
        let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(new).unwrap().permissions());
        assert_eq!(mode & 0o777, 0o600);
    }
}

#[tokio::test]
async fn lines_of_other_versions_and_in_the_wrong_place_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("wrong");
    let header = r#"{"recording":1,"feed":"some:feed","partitions":2}"#;
    for (text, complaint) in [
        (r#"{"recording":2,"feed":"f","partitions":2}"#.to_owned(), "version 2"),
        (format!("{header}\n{header}"), "first line"),
        (format!("{header}\n{}", r#"{"n":1,"event":"rollback","vb":2,"to":1}"#), "partition 2 is out of range; there are 2"),
        (format!("{header}\n{}", r#"{"n":1,"event":"rollforward","vb":1}"#), "not a line"),
        (format!("{header}\n{}", r#"{"event":"rollback_ended","vb":1}"#), "`n` is missing"),
        (format!("{header}\n{}", r#"{"n":1,"event":"history","vb":1,"uuid":"-1","log":[]}"#), "not a line"),
    ] {
        std::fs::write(&path, text).unwrap();
        let feed = ReplayFeed::open(&path, ReplayOptions::default()).await.unwrap();
        let error = events(&feed, FeedStart::Beginning).await.unwrap_err();
        assert!(error.kind() == ErrorKind::Corrupt && error.to_string().contains(complaint), "{complaint}: {error}");
    }
}

#[tokio::test]
async fn names_of_collections_come_again_wherever_it_is_gone_on() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("named");
    let names = |id: u32, name: &str| FeedEvent::CollectionNames(vec![(id, name.into())]);
    let mutation = |seqno: u64| {
        let mut mutation = Mutation::new("k", "");
        (mutation.seqno, mutation.collection) = (PartitionSeqno(seqno), 8);
        FeedEvent::Mutation(mutation)
    };
    let told = [names(0, "_default._default"), mutation(1), names(8, "s.c"), mutation(2)];
    record(&path, &info(1), &told);
    assert_eq!(played(&path).await, told);
    let feed = ReplayFeed::open(&path, ReplayOptions::default().with_after(1)).await.unwrap();
    assert_eq!(events(&feed, FeedStart::Beginning).await.unwrap(), [told[0].clone(), told[2].clone(), told[3].clone()]);
}
