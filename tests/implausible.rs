//! Sequences and markers that no gateway gives out, from the feed to the answers: whatever the
//! writer knows of the counter, and wherever another writer takes over, ordinary documents are
//! shown in order.

#![cfg(all(feature = "memory", feature = "replay"))]

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use sluicegate::changes::{ChangesOptions, Delivery};
use sluicegate::core::engine::WriterStats;
use sluicegate::verify::{VerifyOptions, verify};
use sluicegate::{
    CacheStore, Channel, FeedEvent, GatewayDecoder, Mutation, PartitionId, ReaderConfig, ReaderNode, Sequence, Writer,
    WriterConfig,
};
use sluicegate_memory::MemoryStore;

/// Ordinary documents.
const LAST: u64 = 12;

/// Of them, how many come before what is implausible.
const BEFORE: u64 = 3;

/// What comes among ordinary documents.
#[derive(Clone, Copy, Debug)]
enum Odd {
    /// A document with this sequence.
    Document(u64),
    /// A marker of unused sequences.
    Marker(u64, u64),
}

/// What becomes of it.
#[derive(Clone, Copy, Debug)]
enum Fate {
    /// It is stored, and waits.
    Waits,
    /// It is refused.
    Refused,
}

const CASES: &[(Odd, Fate)] = &[
    (Odd::Document(1_000_000_000_000), Fate::Waits),
    (Odd::Document(1 << 63), Fate::Waits),
    (Odd::Document(u64::MAX - 1), Fate::Refused),
    (Odd::Marker(5, u64::MAX), Fate::Refused),
    (Odd::Marker(2, u64::MAX - 1), Fate::Refused),
    (Odd::Marker(u64::MAX, u64::MAX), Fate::Refused),
    (Odd::Marker(1 << 63, (1 << 63) + 100), Fate::Waits),
];

impl Odd {
    fn mutation(self) -> Mutation {
        match self {
            Odd::Document(sequence) => document("odd", sequence),
            Odd::Marker(first, last) => Mutation::new(format!("_sync:unusedSeqs:{first}:{last}"), ""),
        }
    }
}

fn document(key: &str, sequence: u64) -> Mutation {
    let metadata = json!({"rev": "1-a", "sequence": sequence, "recent_sequences": [sequence], "channels": {"A": null}});
    Mutation::new(key.to_owned(), json!({"_sync": metadata}).to_string())
}

/// What the feed delivers.
fn events(odd: Odd, counter: Option<u64>, in_first_read: bool) -> Vec<FeedEvent> {
    let mut mutations: Vec<Mutation> = (1..=BEFORE).map(|n| document(&format!("d{n}"), n)).collect();
    mutations.push(odd.mutation());
    mutations.extend(counter.map(|counter| Mutation::new("_sync:seq", counter.to_string())));
    mutations.extend((BEFORE + 1..=LAST).map(|n| document(&format!("d{n}"), n)));
    let of = |(n, mutation): (u64, Mutation)| {
        FeedEvent::Mutation(Mutation { cas: (n + 1) << 16, partition: PartitionId(1), ..mutation })
    };
    let mut events: Vec<FeedEvent> = (0..).zip(mutations).map(of).collect();
    let at = if in_first_read { events.len() } else { 2 };
    events.insert(at, FeedEvent::CaughtUp);
    events
}

async fn rows(reader: &ReaderNode, channel: Channel, delivery: Delivery) -> Vec<u64> {
    let options = ChangesOptions::new().delivery(delivery);
    let answer = reader.changes(&[channel], &options).await.unwrap().answer();
    answer.rows.iter().map(|row| row.id.sequence.0).collect()
}

/// That all ordinary documents are shown in order, and stable has passed them.
async fn assert_shown(store: &Arc<dyn CacheStore>, reader: &ReaderNode, what: &str) {
    let expected: Vec<u64> = (1..=LAST).collect();
    let opened = ReaderNode::open(store.clone(), ReaderConfig::default()).await.unwrap();
    for reader in [reader, &opened] {
        for channel in [Channel::new("A").unwrap(), Channel::star()] {
            for delivery in [Delivery::Strict, Delivery::Auto, Delivery::Eager] {
                assert_eq!(rows(reader, channel.clone(), delivery).await, expected, "{what}, {delivery:?}");
            }
        }
        let clock = reader.clock();
        let reached = [clock.stable, clock.settled, clock.high].map(|sequence| sequence.0);
        assert_eq!((reached, clock.gaps, clock.late), ([LAST; 3], 0, 0), "{what}");
    }
    let report = verify(store.as_ref(), &VerifyOptions::default()).await.unwrap();
    assert!(report.is_clean(), "{what}: {:#?}", report.findings);
    // It goes from one stored block to the next, not over all numbers between them.
    assert!((LAST..=LAST + 1).contains(&report.documents) && report.blocks <= 6, "{what}: {report:?}");
}

/// Plays a case. After `cut` events another writer takes over, and gets all of them again.
async fn play(odd: Odd, fate: Fate, counter: Option<u64>, in_first_read: bool, cut: Option<usize>) -> WriterStats {
    let what = format!("{odd:?}, counter {counter:?}, in the first read: {in_first_read}, cut {cut:?}");
    let store: Arc<dyn CacheStore> = Arc::new(MemoryStore::new());
    let open = || Writer::alone(store.clone(), Arc::new(GatewayDecoder::default()), "feed", WriterConfig::default());
    let events = events(odd, counter, in_first_read);
    let mut writer = open().await.unwrap();
    let reader = ReaderNode::open(store.clone(), ReaderConfig::default()).await.unwrap();
    if let Some(cut) = cut {
        for event in &events[..cut] {
            writer.process(vec![event.clone()].into()).await.unwrap();
        }
        writer.flush().await.unwrap();
        writer = open().await.unwrap();
    }
    for (n, event) in events.iter().enumerate() {
        // No wait is long enough.
        if n + 1 == events.len() {
            tokio::time::advance(Duration::from_secs(24 * 3600)).await;
        }
        writer.process(vec![event.clone()].into()).await.unwrap();
    }
    // While the feed goes on, and at its end.
    writer.flush().await.unwrap();
    reader.refresh().await.unwrap();
    if !in_first_read {
        assert_shown(&store, &reader, &format!("{what}, before the end")).await;
    }
    writer.finish().await.unwrap();
    reader.refresh().await.unwrap();
    assert_shown(&store, &reader, &what).await;
    let last = Writer::alone(store.clone(), Arc::new(GatewayDecoder::default()), "feed", WriterConfig::default()).await.unwrap();
    assert_eq!(last.clock().high, Sequence(LAST), "{what}, after another take-over");
    let stats = writer.stats();
    if cut.is_none() {
        let counted = match fate {
            Fate::Waits => (1, 0),
            Fate::Refused => (0, 1),
        };
        assert_eq!((stats.implausible, stats.invalid), counted, "{what}: {stats:?}");
    }
    assert_eq!((stats.late, stats.skipped, stats.abandoned, stats.conflicts), (0, 0, 0, 0), "{what}: {stats:?}");
    stats
}

#[tokio::test(start_paused = true)]
async fn ordinary_documents_are_shown_in_order_beside_what_is_implausible() {
    for (odd, fate) in CASES {
        for counter in [None, Some(LAST)] {
            for in_first_read in [false, true] {
                play(*odd, *fate, counter, in_first_read, None).await;
                for cut in 0..=events(*odd, counter, in_first_read).len() {
                    play(*odd, *fate, counter, in_first_read, Some(cut)).await;
                }
            }
        }
    }
}

/// By the command, each named in the log with what to do.
#[cfg(feature = "cli")]
#[test]
fn what_is_implausible_is_counted_and_named_in_the_log() {
    let run = |args: &[&str]| {
        let output = sluicegate_test_servers::command(env!("CARGO_BIN_EXE_sluicegate")).args(args).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    };
    let folder = tempfile::tempdir().unwrap();
    for (number, (odd, fate)) in CASES.iter().enumerate() {
        for counter in [None, Some(LAST)] {
            let path = folder.path().join(format!("{number}-{}.ndjson", counter.is_some()));
            let line = |(n, event): (usize, FeedEvent)| {
                let FeedEvent::Mutation(mutation) = event else { return String::new() };
                let key = String::from_utf8_lossy(&mutation.key);
                let body: serde_json::Value = serde_json::from_slice(&mutation.value).unwrap_or_default();
                let cas = mutation.cas.to_string();
                let event = json!({
                    "n": n + 1, "vb": 1, "op": "mutation", "cas": cas, "datatype": 1, "coll": 0, "key": key, "body": body
                });
                format!("{event}\n")
            };
            let mutations = events(*odd, counter, false).into_iter().filter(|event| matches!(event, FeedEvent::Mutation(_)));
            std::fs::write(&path, mutations.enumerate().map(line).collect::<String>()).unwrap();
            let feed = format!("replay:{}", path.display());
            let (code, out, log) = run(&["run", "--feed", &feed, "--format", "json"]);
            assert_eq!(code, 0, "{odd:?}: {log}");
            let summary: serde_json::Value = serde_json::from_str(&out).unwrap();
            assert_eq!(summary["clock"]["stable"], LAST, "{odd:?}, {counter:?}: {summary}");
            let (named, count, part) = match (odd, fate) {
                (Odd::Document(n) | Odd::Marker(n, _), Fate::Waits) => (n.to_string(), "implausible", "implausibly high"),
                (Odd::Document(n), Fate::Refused) => (n.to_string(), "invalid", "cannot be understood"),
                (Odd::Marker(first, last), Fate::Refused) => (format!("{first}:{last}"), "invalid", "cannot be understood"),
            };
            assert_eq!(summary["writer"][count], 1, "{odd:?}, {counter:?}: {summary}");
            let line = log.lines().find(|line| line.contains(part)).unwrap_or_else(|| panic!("{odd:?}: no {part:?} in {log}"));
            assert!(line.contains(&named), "{odd:?}: {line}");
            let (code, out, error) = run(&["verify", "--feed", &feed]);
            assert!(code == 0 && out.contains("clean"), "{odd:?}: {out}{error}");
        }
    }
}
