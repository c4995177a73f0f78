//! What the generator makes, judged by its bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use futures::StreamExt as _;
use serde_json::Value;
use sluicegate_core::feed::{Datatype, MutationKind, PositionTracker};
use sluicegate_core::sequence::RangeSet;
use sluicegate_core::{ErrorKind, Feed, FeedEvent, FeedStart, Mutation, Registry, Result, Sequence};
use sluicegate_replay::synthetic::{ExpectedRow, Generated, partition_of};
use sluicegate_replay::{Recording, Synthetic, SyntheticConfig, SyntheticFeed};

fn rough() -> SyntheticConfig {
    SyntheticConfig { documents: 300, channels: 50, min_channels: 0, ..SyntheticConfig::rough() }
}

fn generate(config: SyntheticConfig, seed: u64, events: usize) -> Generated {
    Synthetic::new(config, seed).unwrap().generate(events)
}

/// More documents, which keeps the metadata of each short.
fn rough_and_wide() -> SyntheticConfig {
    SyntheticConfig { documents: 1_500, ..rough() }
}

/// The gateway's metadata and the body.
fn document(mutation: &Mutation) -> Option<(Value, &[u8])> {
    if !mutation.datatype.has_attributes() {
        return None;
    }
    let value = &mutation.value;
    let length = |at: usize| u32::from_be_bytes(value[at..at + 4].try_into().unwrap()) as usize;
    let (end, pair) = (4 + length(0), 8 + length(4));
    assert_eq!((&value[8..14], value[pair - 1]), (b"_sync\0".as_slice(), 0));
    let second = &value[pair + 4..end];
    assert_eq!(length(pair), second.len());
    let version: Value = serde_json::from_slice(second[..second.len() - 1].strip_prefix(b"_vv\0").unwrap()).unwrap();
    let metadata: Value = serde_json::from_slice(&value[14..pair - 1]).unwrap();
    assert_eq!(version["cvCas"], metadata["cas"]);
    Some((metadata, &value[end..]))
}

fn numbers(list: &Value) -> Vec<u64> {
    list.as_array().map(|list| list.iter().map(|n| n.as_u64().unwrap()).collect()).unwrap_or_default()
}

fn is_own_write(mutation: &Mutation, metadata: &Value) -> bool {
    let hex: String = mutation.cas.to_le_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    metadata["cas"] == format!("0x{hex}")
}

/// Sequences that the feed accounts for.
fn accounted(mutations: &[Mutation]) -> RangeSet {
    let mut set = RangeSet::new();
    for mutation in mutations {
        let key = std::str::from_utf8(&mutation.key).unwrap();
        let mut add = |n: u64| set.insert(n, n);
        if let Some((metadata, _)) = document(mutation) {
            add(metadata["sequence"].as_u64().unwrap());
            numbers(&metadata["unused_sequences"]).into_iter().for_each(|n| _ = add(n));
        } else if mutation.kind == MutationKind::Deletion {
            assert!(mutation.value.is_empty());
        } else if let Some(n) = key.strip_prefix("_sync:unusedSeq:") {
            let n: u64 = n.parse().unwrap();
            assert_eq!(mutation.value, n.to_le_bytes().as_slice());
            add(n);
        } else if let Some(range) = key.strip_prefix("_sync:unusedSeqs:") {
            let (first, last) = range.split_once(':').unwrap();
            let (first, last): (u64, u64) = (first.parse().unwrap(), last.parse().unwrap());
            assert_eq!(mutation.value, [first.to_le_bytes(), last.to_le_bytes()].concat());
            set.insert(first, last);
        } else if key.starts_with("_sync:user:") || key.starts_with("_sync:role:") {
            let body: Value = serde_json::from_slice(&mutation.value).unwrap();
            assert!(key.ends_with(body["name"].as_str().unwrap()));
            add(body["sequence"].as_u64().unwrap());
        } else {
            assert!(key == "_sync:seq" || key.starts_with("_sync:rev:doc-"), "{key}");
        }
    }
    set
}

#[test]
fn the_same_seed_gives_the_same_feed_of_exactly_the_length_asked_for() {
    for events in [0, 1, 2, 9, 100, 1_999, 2_000, 2_001, 7_500] {
        let one = generate(rough(), 5, events);
        assert_eq!(one.mutations.len(), events);
        assert!(one.mutations.iter().map(|m| m.seqno.0).eq(1..=events as u64));
        let two = generate(rough(), 5, events);
        assert_eq!((one.mutations, one.truth, one.lost), (two.mutations, two.truth, two.lost));
    }
    assert_ne!(generate(rough(), 5, 100).mutations, generate(rough(), 6, 100).mutations);
    let endless: Vec<_> = Synthetic::new(rough(), 5).unwrap().take(3_000).collect();
    let beginning = Synthetic::new(rough(), 5).unwrap().with_limit(50_000).take(3_000);
    assert!(beginning.eq(endless));
}

#[test]
fn each_sequence_is_accounted_for_or_lost() {
    for seed in 0..3 {
        let generated = generate(rough_and_wide(), seed, 8_000);
        let mut set = accounted(&generated.mutations);
        assert_eq!(set.last(), Some(generated.high.0));
        assert!(generated.lost.count() > 5);
        for (first, last) in generated.lost.iter() {
            assert_eq!(set.remove(first, last), 0, "{first} to {last} are not lost");
            set.insert(first, last);
        }
        assert_eq!(set.iter().collect::<Vec<_>>(), [(1, generated.high.0)]);
        let smooth = generate(SyntheticConfig::default(), seed, 5_000);
        assert!(smooth.lost.is_empty());
    }
}

#[test]
fn the_truth_is_what_the_newest_metadata_say() {
    for seed in 0..3 {
        let generated = generate(rough_and_wide(), seed, 8_000);
        let mut newest: BTreeMap<String, (u64, Value)> = BTreeMap::new();
        for mutation in &generated.mutations {
            let Some((metadata, _)) = document(mutation).filter(|(metadata, _)| is_own_write(mutation, metadata)) else {
                continue;
            };
            let id = String::from_utf8(mutation.key.to_vec()).unwrap();
            let before = newest.entry(id).or_default();
            if mutation.cas > before.0 {
                *before = (mutation.cas, metadata);
            }
        }
        let mut truth: BTreeMap<String, Vec<ExpectedRow>> = BTreeMap::new();
        for (id, (_, metadata)) in newest {
            let row = |sequence: &Value, revision: &Value, removed, deleted| ExpectedRow {
                sequence: Sequence(sequence.as_u64().unwrap()),
                document: id.clone(),
                revision: revision["rev"].as_str().unwrap().to_owned(),
                removed,
                deleted,
            };
            let own = row(&metadata["sequence"], &metadata["rev"], false, metadata["flags"] == 1);
            truth.entry("*".to_owned()).or_default().push(own.clone());
            for (channel, left) in metadata["channels"].as_object().unwrap() {
                let row = if left.is_null() { own.clone() } else { row(&left["seq"], &left["rev"], true, left["del"] == true) };
                truth.entry(channel.clone()).or_default().push(row);
            }
        }
        truth.values_mut().for_each(|rows| rows.sort());
        assert_eq!(truth, generated.truth);
        let rows = || generated.truth.iter().filter(|(channel, _)| *channel != "*").flat_map(|(_, rows)| rows);
        for kind in [(false, false), (false, true), (true, false), (true, true)] {
            assert!(rows().filter(|row| (row.removed, row.deleted) == kind).count() > 2, "{kind:?}");
        }
    }
}

#[test]
fn metadata_are_as_the_gateway_keeps_them() {
    let generated = generate(rough(), 1, 20_000);
    let mut before: BTreeMap<&[u8], (u64, Vec<u64>)> = BTreeMap::new();
    let (mut trimmed, mut foreign, mut with_unused, mut tombstones, mut former) = (0, 0, 0, 0, 0);
    for mutation in &generated.mutations {
        assert_eq!(mutation.partition, partition_of(&mutation.key));
        let Some((metadata, body)) = document(mutation) else { continue };
        let last = before.entry(&mutation.key).or_default();
        if !is_own_write(mutation, &metadata) {
            foreign += 1;
            continue;
        }
        if mutation.cas <= last.0 {
            continue;
        }
        let sequence = metadata["sequence"].as_u64().unwrap();
        let (recent, unused) = (numbers(&metadata["recent_sequences"]), numbers(&metadata["unused_sequences"]));
        assert!(recent.is_sorted_by(|a, b| a < b), "{recent:?}");
        assert_eq!(recent.last(), Some(&sequence));
        assert!(unused.iter().all(|n| recent.contains(n) && *n < sequence));
        let kept = recent.iter().filter(|n| last.1.contains(n)).count();
        assert!(recent.iter().filter(|n| !last.1.contains(n)).eq(unused.iter().chain([&sequence]).collect::<BTreeSet<_>>()));
        assert!(
            kept == last.1.len()
                || (last.1.len() >= 20 && kept == 5 && recent[..5] == last.1[last.1.len() - 5..])
                || !unused.is_empty()
        );
        trimmed += u64::from(kept < last.1.len());
        with_unused += u64::from(!unused.is_empty());

        let deleted = metadata["flags"] == 1;
        assert_eq!(deleted, mutation.kind == MutationKind::Deletion);
        assert_eq!(mutation.datatype, Datatype(if deleted { 4 } else { 5 }));
        assert_eq!(deleted, metadata["tombstoned_at"].is_u64());
        if deleted {
            assert_eq!((body, &metadata["value_crc32c"]), (b"".as_slice(), &Value::from("0x00000000")));
            tombstones += 1;
        }
        let channels = metadata["channels"].as_object().unwrap();
        if !deleted {
            let body: Value = serde_json::from_slice(body).unwrap();
            let members =
                channels.iter().filter(|(_, left)| left.is_null()).map(|(name, _)| name.as_str()).collect::<BTreeSet<_>>();
            let listed = body["channels"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
            assert_eq!(members, listed);
        }
        let stays = metadata["channel_set"].as_array().map(Vec::as_slice).unwrap_or_default();
        assert_eq!(stays.len(), channels.len());
        for stay in stays {
            let left = &channels[stay["name"].as_str().unwrap()];
            assert_eq!(stay["end"], left["seq"], "{metadata}");
            assert!(stay["start"].as_u64().unwrap() <= sequence);
        }
        for stay in metadata["channel_set_history"].as_array().unwrap_or(&Vec::new()) {
            assert!(stay["start"].as_u64() < stay["end"].as_u64() && channels.contains_key(stay["name"].as_str().unwrap()));
            former += 1;
        }
        let revisions = metadata["history"]["revs"].as_array().unwrap();
        assert_eq!(revisions.last().unwrap(), &metadata["rev"]["rev"]);
        assert!(revisions.len() <= 6 && numbers(&metadata["history"]["deleted"]).iter().all(|at| *at < revisions.len() as u64));
        *last = (mutation.cas, recent);
    }
    for count in [trimmed, foreign, with_unused, tombstones, former] {
        assert!(count > 20, "{trimmed} {foreign} {with_unused} {tombstones} {former}");
    }
}

#[test]
fn each_hazard_comes_when_asked_for_and_only_then() {
    let own_sequences = |config| {
        let documents = generate(config, 3, 10_000).mutations;
        let own = documents.iter().filter_map(|m| document(m).filter(|(metadata, _)| is_own_write(m, metadata)));
        own.map(|(metadata, _)| metadata["sequence"].as_u64().unwrap()).collect::<Vec<_>>()
    };
    let farthest = |sequences: &[u64]| {
        let mut high = 0;
        let behind = |n: &u64| {
            high = high.max(*n);
            high - n
        };
        sequences.iter().map(behind).max().unwrap()
    };
    let smooth = SyntheticConfig::default();
    assert!(own_sequences(smooth.clone()).is_sorted());
    let near = farthest(&own_sequences(SyntheticConfig { out_of_order: 100, ..smooth.clone() }));
    assert!((50..200).contains(&near), "{near}");
    let far = farthest(&own_sequences(SyntheticConfig { late: 0.01, late_by: 1_000, ..smooth.clone() }));
    assert!((1_000..2_500).contains(&far), "{far}");
    let repeated = |config| {
        let sequences = own_sequences(config);
        sequences.len() - sequences.iter().collect::<BTreeSet<_>>().len()
    };
    assert_eq!(repeated(SyntheticConfig { out_of_order: 100, ..smooth.clone() }), 0);
    assert!(repeated(SyntheticConfig { duplicates: 0.01, ..smooth.clone() }) > 300);
    let restarts = SyntheticConfig { restart_every: 1_000, restart_repeats: 50, ..smooth.clone() };
    assert!((300..500).contains(&repeated(restarts)));
    let released = generate(SyntheticConfig { unused: 0.05, unused_max: 5_000, ..smooth }, 3, 10_000);
    assert!(released.lost.is_empty());
    let ranges = released.mutations.iter().filter(|m| m.key.starts_with(b"_sync:unusedSeqs:")).count();
    assert!(ranges > 300 && released.high.0 > 100_000, "{ranges} {}", released.high);
}

#[test]
fn keys_fall_into_the_partitions_that_recordings_have() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/gateway/mutations.ndjson.gz");
    for mutation in Recording::read(file).unwrap().mutations {
        assert_eq!(mutation.partition, partition_of(&mutation.key));
    }
}

#[test]
fn all_that_is_wrong_with_a_configuration_is_said_at_once() {
    let config =
        SyntheticConfig { gaps: 1.5, channels: 3, min_channels: 9, unused_max: 0, late: f64::NAN, ..SyntheticConfig::default() };
    let error = Synthetic::new(config, 1).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConfigInvalid);
    for word in ["gaps=1.5", "min_channels=9", "max_channels=4", "channels=3", "unused_max=0", "late=NaN"] {
        assert!(error.to_string().contains(word), "{error}");
    }
    SyntheticConfig::rough().validate().unwrap();
}

async fn events(feed: &dyn Feed, start: FeedStart, most: usize) -> Result<Vec<FeedEvent>> {
    let mut events = Vec::new();
    let mut stream = feed.open(start).await?;
    while events.len() < most
        && let Some(batch) = stream.next().await
    {
        events.extend(batch?.events);
    }
    Ok(events)
}

#[tokio::test]
async fn the_rest_after_any_position_is_exact() {
    for limit in [Some(3_000), None] {
        let feed = SyntheticFeed::new(rough(), 9, limit).unwrap().with_pace(0, 100).unwrap();
        let is_mutation = |event: &FeedEvent| matches!(event, FeedEvent::Mutation(_));
        let all: Vec<_> = events(&feed, FeedStart::Beginning, 3_001).await.unwrap();
        let all: Vec<_> = all.into_iter().filter(is_mutation).take(3_000).collect();
        let mut tracker = PositionTracker::default();
        for (index, event) in all.iter().enumerate() {
            tracker.observe(event);
            if index % 173 == 0 || index + 2 >= all.len() {
                let at = FeedStart::At(tracker.position());
                let rest = events(&feed, at, all.len() - index).await.unwrap();
                let rest = rest.into_iter().filter(is_mutation).take(all.len() - index - 1);
                assert!(rest.eq(all[index + 1..].iter().cloned()), "after event {index}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_url_opens_it() {
    let registry = Registry::discover().unwrap();
    let url = "synthetic:?events=500&seed=7&documents=50&channels=20&out_of_order=10&gaps=0.01&late=0.01&duplicates=0.01&unused=0.01&rate=100&batch=9";
    let feed = registry.open_feed(url).await.unwrap();
    let info = feed.info();
    assert_eq!((info.scheme, info.partitions, info.capabilities.finite), ("synthetic", 1024, true));
    assert_eq!(feed.open(FeedStart::Now).await.map(|_| ()).unwrap_err().kind(), ErrorKind::Unsupported);
    let started = tokio::time::Instant::now();
    let delivered = events(&*feed, FeedStart::Beginning, usize::MAX).await.unwrap();
    assert!(started.elapsed().abs_diff(Duration::from_secs(5)) < Duration::from_millis(50));
    assert_eq!((delivered.len(), delivered.last()), (501, Some(&FeedEvent::CaughtUp)));

    let endless = registry.open_feed("synthetic:").await.unwrap();
    assert!(!endless.info().capabilities.finite);
    assert_ne!(endless.info().name, info.name);
    let first = events(&*endless, FeedStart::Beginning, 10_000).await.unwrap();
    assert_eq!(first.iter().position(|event| *event == FeedEvent::CaughtUp), Some(0));

    for (url, complaint) in [
        ("synthetic:?evens=5", "`evens`"),
        ("synthetic:?gaps=2", "gaps=2"),
        ("synthetic:?batch=0", "batch=0"),
        ("synthetic:x", "`x`"),
    ] {
        let error = registry.open_feed(url).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConfigInvalid);
        assert!(error.to_string().contains(complaint), "{error}");
    }
}
