//! The recorded feeds, played back.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use futures::StreamExt as _;
use sluicegate_core::feed::{FeedCapabilities, MutationKind, PositionTracker};
use sluicegate_core::{ErrorKind, Feed, FeedEvent, FeedPosition, FeedStart, Mutation, Registry, Result, Sequence};
use sluicegate_replay::{MemoryFeed, MutationsExt as _, Recording, ReplayFeed, ReplayOptions};

const SMALL: &str = "mutations-xattr33.ndjson.gz";

fn testdata(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/gateway").join(name)
}

async fn events(feed: &dyn Feed, start: FeedStart) -> Result<Vec<FeedEvent>> {
    let mut events = Vec::new();
    let mut stream = feed.open(start).await?;
    while let Some(batch) = stream.next().await {
        events.extend(batch?.events);
    }
    Ok(events)
}

fn mutations(events: &[FeedEvent]) -> Vec<Mutation> {
    events.iter().filter_map(|e| if let FeedEvent::Mutation(m) = e { Some(m.clone()) } else { None }).collect()
}

fn unpacked(name: &str) -> String {
    let mut text = String::new();
    flate2::read::GzDecoder::new(std::fs::File::open(testdata(name)).unwrap()).read_to_string(&mut text).unwrap();
    text
}

#[tokio::test]
async fn a_recording_is_delivered_whole_and_ends() {
    for (name, count, high) in [
        ("mutations.ndjson.gz", 38_510, 20_117),
        ("mutations-inline.ndjson.gz", 2_995, 1_564),
        (SMALL, 2_243, 0),
        ("hazards/mutations-skips.ndjson.gz", 2_017, 0),
    ] {
        let feed = ReplayFeed::open(testdata(name), ReplayOptions::default()).await.unwrap();
        let events = events(&feed, FeedStart::Beginning).await.unwrap();
        assert_eq!(events.len(), count + 1, "{name}");
        assert_eq!(events.last(), Some(&FeedEvent::CaughtUp));
        let mutations = mutations(&events);
        assert!(mutations.iter().map(|m| m.seqno.0).eq(1..=count as u64));
        let recording = Recording::read(testdata(name)).unwrap();
        assert_eq!(recording.mutations, mutations);
        let markers: Vec<_> = recording.markers.iter().map(|m| m.marker).collect();
        assert_eq!(markers, [1, 2, 3, 4, 5]);
        if high > 0 {
            assert_eq!(recording.marker(5).unwrap().high_seq, Sequence(high));
        }
    }
}

/// Attributes and body of a value. The gateway's bucket puts attributes in any order, the recording sorts them.
fn parts<'a>(mutation: &Mutation, value: &'a [u8]) -> (BTreeSet<&'a [u8]>, &'a [u8]) {
    let (mut pairs, mut rest) = (BTreeSet::new(), value);
    let mut take = |n: usize| {
        let taken;
        (taken, rest) = rest.split_at(n);
        taken
    };
    let length = |bytes: &[u8]| u32::from_be_bytes(bytes.try_into().unwrap()) as usize;
    if mutation.datatype.has_attributes() {
        let mut left = length(take(4));
        while left > 0 {
            let n = length(take(4));
            pairs.insert(take(n));
            left -= 4 + n;
        }
    }
    (pairs, rest)
}

#[test]
fn values_are_as_the_wire_had_them() {
    for set in ["", "-inline"] {
        let recording = Recording::read(testdata(&format!("mutations{set}.ndjson.gz"))).unwrap();
        let (mut same, mut unknown) = (0, 0);
        for line in unpacked(&format!("dcp-raw-sample{set}.ndjson.gz")).lines() {
            let raw: serde_json::Value = serde_json::from_str(line).unwrap();
            let mutation = &recording.mutations[raw["n"].as_u64().unwrap() as usize - 1];
            assert_eq!(mutation.key, raw["key"].as_str().unwrap());
            assert_eq!(mutation.cas.to_string(), raw["cas"].as_str().unwrap());
            assert_eq!(u64::from(mutation.datatype.0), raw["datatype"].as_u64().unwrap());
            assert_eq!(mutation.kind == MutationKind::Deletion, raw["op"] == "deletion");
            let wire = base64::engine::general_purpose::STANDARD.decode(raw["value_b64"].as_str().unwrap()).unwrap();
            if mutation.key.starts_with(b"_sync:rev:") || mutation.key.starts_with(b"_sync:rb:") {
                unknown += 1;
                continue;
            }
            assert_eq!(parts(mutation, &mutation.value), parts(mutation, &wire), "{line}");
            assert_eq!(mutation.value.len(), wire.len());
            same += 1;
        }
        assert!(same > 100 && unknown < 200, "{same} {unknown}");
    }
}

#[tokio::test]
async fn the_rest_after_any_position_is_exact() {
    let recording = Recording::read(testdata(SMALL)).unwrap();
    let replay = ReplayFeed::open(testdata(SMALL), ReplayOptions::default().with_batch(100)).await.unwrap();
    let shuffled = recording.mutations.clone().shuffled_within(200, 11);
    let memory = MemoryFeed::new("shuffled", shuffled).with_batch(100).unwrap();
    let feeds: [(&dyn Feed, &[Mutation]); 2] = [(&replay, &recording.mutations), (&memory, memory.mutations())];
    for (feed, all) in feeds {
        let mut tracker = PositionTracker::default();
        for (index, mutation) in all.iter().enumerate() {
            tracker.observe(&FeedEvent::Mutation(mutation.clone()));
            if index % 97 == 0 || index + 2 >= all.len() {
                let rest = events(feed, FeedStart::At(tracker.position())).await.unwrap();
                assert_eq!(mutations(&rest), all[index + 1..], "after event {index}");
                assert_eq!(rest.last(), Some(&FeedEvent::CaughtUp));
            }
        }
        assert_eq!(mutations(&events(feed, FeedStart::At(FeedPosition::default())).await.unwrap()), all);
    }
}

#[tokio::test]
async fn a_position_says_nothing_about_partitions_it_does_not_name() {
    let recording = Recording::read(testdata(SMALL)).unwrap();
    let feed = ReplayFeed::open(testdata(SMALL), ReplayOptions::default()).await.unwrap();
    let (partition, at) = (recording.mutations[500].partition, recording.mutations[500].seqno);
    let mut tracker = PositionTracker::default();
    tracker.observe(&FeedEvent::Mutation(recording.mutations[500].clone()));
    let rest = mutations(&events(&feed, FeedStart::At(tracker.position())).await.unwrap());
    let expected = recording.mutations.iter().filter(|m| m.partition != partition || m.seqno > at);
    assert!(rest.iter().eq(expected));
}

#[tokio::test]
async fn a_marker_ends_the_feed_where_its_answers_ended() {
    let recording = Recording::read(testdata(SMALL)).unwrap();
    for marker in 1..=5 {
        let options = ReplayOptions::default().with_until_marker(marker);
        let feed = ReplayFeed::open(testdata(SMALL), options).await.unwrap();
        let delivered = mutations(&events(&feed, FeedStart::Beginning).await.unwrap());
        assert_eq!(delivered, recording.upto_marker(marker).unwrap());
        assert_eq!(delivered.len() as u64, recording.marker(marker).unwrap().after_n);
    }
    let feed = ReplayFeed::open(testdata(SMALL), ReplayOptions::default().with_until_marker(6)).await.unwrap();
    let error = events(&feed, FeedStart::Beginning).await.unwrap_err();
    assert!(error.to_string().contains("no marker 6"), "{error}");
    assert_eq!(recording.upto_marker(6).unwrap_err().kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn plain_and_compressed_files_are_told_apart_by_their_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let text = unpacked(SMALL);
    let plain = folder.path().join("plain.gz");
    std::fs::write(&plain, &text).unwrap();
    let compressed = folder.path().join("compressed");
    let mut bytes = Vec::new();
    // Files put one behind the other are one file to gzip.
    let half = text.lines().take(1000).map(|l| l.len() + 1).sum();
    for part in [&text[..half], &text[half..]] {
        let mut writer = flate2::write::GzEncoder::new(&mut bytes, flate2::Compression::fast());
        writer.write_all(part.as_bytes()).unwrap();
        writer.finish().unwrap();
    }
    std::fs::write(&compressed, &bytes).unwrap();
    let expected = Recording::read(testdata(SMALL)).unwrap();
    assert_eq!(Recording::read(plain).unwrap().mutations, expected.mutations);
    assert_eq!(Recording::read(compressed).unwrap().mutations, expected.mutations);
    for tiny in ["", "\n"] {
        std::fs::write(folder.path().join("tiny"), tiny).unwrap();
        let feed = ReplayFeed::open(folder.path().join("tiny"), ReplayOptions::default()).await.unwrap();
        assert_eq!(events(&feed, FeedStart::Beginning).await.unwrap(), [FeedEvent::CaughtUp]);
    }
}

#[tokio::test]
async fn damage_ends_the_feed_with_file_and_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("damaged");
    let text = unpacked(SMALL);
    let compressed = std::fs::read(testdata(SMALL)).unwrap();
    let mut flipped = compressed.clone();
    flipped[compressed.len() / 2] ^= 0xff;
    let mut garbled: Vec<&str> = text.lines().collect();
    garbled[700] = r#"{"n":701,"vb":"#;
    let cases: [(&str, Vec<u8>); 4] = [
        ("line 701", garbled.join("\n").into_bytes()),
        ("not a line of a recording", text.as_bytes()[..text.len() - 5].to_vec()),
        ("cut off", compressed[..compressed.len() / 2].to_vec()),
        ("line", flipped),
    ];
    for (complaint, bytes) in cases {
        std::fs::write(&path, bytes).unwrap();
        let feed = ReplayFeed::open(&path, ReplayOptions::default()).await.unwrap();
        let mut stream = feed.open(FeedStart::Beginning).await.unwrap();
        let mut failed = None;
        while let Some(batch) = stream.next().await {
            assert!(failed.is_none(), "an error ends the feed");
            failed = batch.err();
        }
        let error = failed.unwrap();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error:?}");
        let message = error.to_string();
        assert!(message.contains(complaint) && message.contains("damaged, line "), "{message}");
    }
}

#[tokio::test]
async fn the_url_opens_it() {
    let registry = Registry::discover().unwrap();
    let open = async |rest: &str| registry.open_feed(&format!("replay:{}{rest}", testdata(SMALL).display())).await;
    let feed = open("?until_marker=2&batch=7").await.unwrap();
    let info = feed.info();
    assert_eq!((info.scheme, info.name.as_str(), info.partitions), ("replay", SMALL, 1024));
    let expected = FeedCapabilities { positions: true, snapshots: false, deletions: true, finite: true };
    assert_eq!(info.capabilities, expected);
    let first = feed.open(FeedStart::Beginning).await.unwrap().next().await.unwrap().unwrap();
    assert_eq!(first.events.len(), 7);
    let refused = feed.open(FeedStart::Now).await.map(|_| ()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unsupported);

    let error = open("?batch=0").await.unwrap_err().to_string();
    assert!(error.contains("batch=0"), "{error}");
    let error = open("?upto=0").await.unwrap_err().to_string();
    assert!(error.contains("`upto`"), "{error}");
    let error = open(".missing").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains(SMALL) && error.to_string().contains("check the path"), "{error}");
    assert_eq!(registry.open_feed("replay:").await.unwrap_err().kind(), ErrorKind::ConfigInvalid);
    let folder = format!("replay:{}", env!("CARGO_MANIFEST_DIR"));
    assert_eq!(registry.open_feed(&folder).await.unwrap_err().kind(), ErrorKind::ConfigInvalid);
}

#[tokio::test(start_paused = true)]
async fn a_rate_slows_the_file_down() {
    let options = ReplayOptions::default().with_rate(100).with_until_marker(1);
    let feed = ReplayFeed::open(testdata(SMALL), options).await.unwrap();
    let started = tokio::time::Instant::now();
    let count = mutations(&events(&feed, FeedStart::Beginning).await.unwrap()).len() as u64;
    let expected = Duration::from_millis(count * 10);
    assert!(started.elapsed().abs_diff(expected) < Duration::from_millis(50), "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_recording_can_be_begun_after_any_event_and_ended_with_any() {
    let whole = Recording::read(testdata(SMALL)).unwrap().mutations;
    for after in [0, 1, 700, whole.len() as u64, u64::MAX] {
        let feed = ReplayFeed::open(testdata(SMALL), ReplayOptions::default().with_after(after)).await.unwrap();
        let rest: Vec<Mutation> = whole.iter().filter(|m| m.seqno.0 > after).cloned().collect();
        assert_eq!(mutations(&events(&feed, FeedStart::Beginning).await.unwrap()), rest, "after {after}");
    }
    for until in [0, 1, 2, 700, whole.len() as u64, u64::MAX] {
        let feed = ReplayFeed::open(testdata(SMALL), ReplayOptions::default().with_after(1).with_until(until)).await.unwrap();
        let part: Vec<Mutation> = whole.iter().filter(|m| m.seqno.0 > 1 && m.seqno.0 <= until).cloned().collect();
        assert_eq!(mutations(&events(&feed, FeedStart::Beginning).await.unwrap()), part, "until {until}");
    }
}
