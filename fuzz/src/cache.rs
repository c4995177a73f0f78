//! What the cache's own documents are, as a store returns them; and what clients of the cache say.

use std::sync::Arc;

use sluicegate_core::batch::{BatchRecord, Checkpoint, Floor, Gap, LateEntry, LatePage, PrincipalChange};
use sluicegate_core::block::{BlockState, codec_named};
use sluicegate_core::changes::SequenceId;
use sluicegate_core::clock::{Epoch, PublishedClock};
use sluicegate_core::decode::PrincipalKind;
use sluicegate_core::directory::Directory;
use sluicegate_core::engine::{ArrivedSet, PendingRun, SequencerState, SkippedRange};
use sluicegate_core::feed::{FeedPosition, PartitionPosition, PositionTracker};
use sluicegate_core::meta::Meta;
use sluicegate_core::missing::{Missing, MissingBase, MissingList};
use sluicegate_core::pointer::Pointer;
use sluicegate_core::registry::Location;
use sluicegate_core::{
    BlockCodec, BlockIndex, ChangeEntry, Channel, Decoded, GatewayDecoder, MutationDecoder as _, PartitionId, Sequence,
    SequenceRange,
};

use crate::testdata::mutations;
use crate::{Target, json_limit, presented, round_trip, within};

pub(crate) const TARGETS: &[Target] = &[
    Target { name: "entry", seeds: entry_seeds, check: entry },
    Target { name: "directory", seeds: directory_seeds, check: directory },
    Target { name: "batch-record", seeds: record_seeds, check: record },
    Target { name: "missing-list", seeds: missing_seeds, check: missing },
    Target { name: "late-page", seeds: late_page_seeds, check: late_page },
    Target { name: "checkpoint", seeds: checkpoint_seeds, check: checkpoint },
    Target { name: "feed-position", seeds: position_seeds, check: position },
    Target { name: "clock", seeds: clock_seeds, check: clock },
    Target { name: "pointer", seeds: pointer_seeds, check: pointer },
    Target { name: "meta", seeds: meta_seeds, check: meta },
    Target { name: "block-bytes", seeds: || block_seeds("bytes"), check: |bytes| block("bytes", bytes) },
    Target { name: "block-two-bit", seeds: || block_seeds("two-bit"), check: |bytes| block("two-bit", bytes) },
    Target { name: "block-adaptive", seeds: || block_seeds("adaptive"), check: |bytes| block("adaptive", bytes) },
    Target { name: "block-log", seeds: || block_seeds("log"), check: |bytes| block("log", bytes) },
    Target { name: "sequence-id", seeds: sequence_id_seeds, check: sequence_id },
    Target { name: "location", seeds: location_seeds, check: location },
];

fn channel() -> Channel {
    Channel::new("ABC").expect("a name")
}

fn entries() -> Vec<Arc<ChangeEntry>> {
    let decoder = GatewayDecoder::default();
    let entry = |mutation| match decoder.decode(&mutation) {
        Decoded::Document(document) => Some(Arc::new(document.entry)),
        _ => None,
    };
    mutations().into_iter().filter_map(entry).step_by(5).collect()
}

fn entry_seeds() -> Vec<Vec<u8>> {
    entries().iter().map(|entry| entry.to_bytes().to_vec()).collect()
}

fn entry(bytes: &[u8]) -> bool {
    round_trip(bytes, json_limit(bytes), ChangeEntry::from_bytes, ChangeEntry::to_bytes)
}

fn directory_seeds() -> Vec<Vec<u8>> {
    let mut directory = Directory::new(channel());
    let empty = directory.to_bytes();
    for index in [0, 1, 2, 9, 40, u64::MAX] {
        directory.list(BlockIndex(index));
    }
    vec![empty.to_vec(), directory.to_bytes().to_vec()]
}

fn directory(bytes: &[u8]) -> bool {
    round_trip(bytes, json_limit(bytes), |bytes| Directory::from_bytes(bytes, &channel()), Directory::to_bytes)
}

fn record_seeds() -> Vec<Vec<u8>> {
    let mut record = BatchRecord::new(9, Epoch { counter: 2, writer: 7 });
    let empty = record.to_bytes();
    record.entries = entries().into_iter().take(3).collect();
    record.late = vec![LateEntry { number: 1, sequence: Sequence(4) }];
    record.principals = vec![PrincipalChange { sequence: Sequence(5), kind: PrincipalKind::Role, name: "r".into() }];
    record.gaps = vec![Gap { range: SequenceRange::one(Sequence(8)), age_ms: 5 }];
    record.abandoned.insert(2, 3);
    let changed = vec![(2, 8)].into();
    let whole = record.to_bytes();
    record.base = Some(MissingBase { epoch: record.epoch, list: 3, age_ms: 4, changed });
    vec![empty.to_vec(), whole.to_vec(), record.to_bytes().to_vec()]
}

fn missing_seeds() -> Vec<Vec<u8>> {
    let gaps = vec![Gap { range: SequenceRange::one(Sequence(8)), age_ms: 5 }];
    let missing = Missing { gaps, abandoned: vec![(1, 3)].into() };
    vec![MissingList { epoch: Epoch::default(), number: 2, missing }.to_bytes().to_vec()]
}

fn missing(bytes: &[u8]) -> bool {
    round_trip(bytes, json_limit(bytes), MissingList::from_bytes, MissingList::to_bytes)
}

fn record(bytes: &[u8]) -> bool {
    round_trip(bytes, json_limit(bytes), BatchRecord::from_bytes, BatchRecord::to_bytes)
}

fn late_page_seeds() -> Vec<Vec<u8>> {
    let mut page = LatePage::default();
    page.append(Epoch::default(), &[1, 2].map(|number| LateEntry { number, sequence: Sequence(number) }));
    vec![page.to_bytes().to_vec()]
}

fn late_page(bytes: &[u8]) -> bool {
    round_trip(bytes, json_limit(bytes), LatePage::from_bytes, LatePage::to_bytes)
}

fn feed_position() -> FeedPosition {
    let mut at = PartitionPosition { uuid: 1, seqno: 20, snapshot_start: 10, snapshot_end: 30, ..PartitionPosition::default() };
    (at.manifest_uid, at.purge_seqno, at.failover_log) = (3, 5, vec![(1, 7), (2, 0)]);
    FeedPosition { partitions: [(PartitionId(0), PartitionPosition::default()), (PartitionId(1023), at)].into() }
}

fn checkpoint_seeds() -> Vec<Vec<u8>> {
    let range = SequenceRange::one(Sequence(12));
    let sequencer = SequencerState {
        next: Sequence(9),
        pending: vec![PendingRun { range, count: 1, age_ms: 5 }],
        arrived: ArrivedSet::default(),
        skipped: vec![SkippedRange { range: SequenceRange::one(Sequence(3)), missed_ms: 9, listed_ms: 4 }],
        abandoned: vec![(1, 2)].into(),
        counter: Some(Sequence(40)),
    };
    let (epoch, position) = (Epoch::default(), feed_position());
    let floor = Floor { stable: Sequence(7), late: 1 };
    let checkpoint = Checkpoint { batch: 3, late: 1, position, floor, sequencer, ..Checkpoint::beginning(epoch) };
    let mut building = checkpoint.clone();
    building.unmarked = Some([1, 7, 1 << 40].into_iter().collect());
    building.sequencer.arrived.extend((20..9_000).filter(|n| n % 3 > 0).chain([1 << 40]));
    [checkpoint, building].map(|checkpoint| checkpoint.to_bytes().to_vec()).into()
}

fn checkpoint(bytes: &[u8]) -> bool {
    round_trip(bytes, json_limit(bytes), Checkpoint::from_bytes, Checkpoint::to_bytes)
}

fn position_seeds() -> Vec<Vec<u8>> {
    let old = r#"{"3":{"uuid":99,"seqno":7,"snapshot_start":5,"snapshot_end":9}}"#;
    vec![serde_json::to_vec(&feed_position()).expect("it has string keys"), old.into(), b"{}".to_vec()]
}

fn position(bytes: &[u8]) -> bool {
    let encode = |position: &FeedPosition| serde_json::to_vec(position).expect("it has string keys");
    if !round_trip(bytes, json_limit(bytes), |bytes| serde_json::from_slice::<FeedPosition>(bytes), encode) {
        return false;
    }
    let position = serde_json::from_slice(bytes).expect("as before");
    // One place for each partition up to the highest of its 65536 numbers.
    let limit = json_limit(bytes) + (2 << 16) * size_of::<Option<PartitionPosition>>();
    assert_eq!(within(limit, || PositionTracker::new(&position)).position(), position);
    true
}

fn clock_seeds() -> Vec<Vec<u8>> {
    vec![PublishedClock::new("an id".into()).to_bytes().to_vec()]
}

fn clock(bytes: &[u8]) -> bool {
    round_trip(bytes, json_limit(bytes), PublishedClock::from_bytes, PublishedClock::to_bytes)
}

fn pointer_seeds() -> Vec<Vec<u8>> {
    let mut pointer = Pointer::new("d");
    let empty = pointer.to_bytes();
    for entry in entries() {
        pointer.follow(&mut ChangeEntry::clone(&entry));
    }
    vec![empty.to_vec(), pointer.to_bytes().to_vec()]
}

fn pointer(bytes: &[u8]) -> bool {
    round_trip(bytes, json_limit(bytes), |bytes| Pointer::from_bytes(bytes, "d"), Pointer::to_bytes)
}

fn meta_seeds() -> Vec<Vec<u8>> {
    let codecs = ["bytes", "two-bit", "adaptive", "log"].map(|name| codec_named(name, 1_000).expect("a codec"));
    codecs.map(|codec| Meta::new(&*codec, 64, 1).to_bytes().to_vec()).to_vec()
}

fn meta(bytes: &[u8]) -> bool {
    if !round_trip(bytes, json_limit(bytes), Meta::from_bytes, Meta::to_bytes) {
        return false;
    }
    let meta = Meta::from_bytes(bytes).expect("as before");
    presented(meta.block_codec());
    true
}

const CAPACITIES: [u32; 4] = [64, 99, 1_000, 40_000];

fn codec(name: &str, which: u8) -> Arc<dyn BlockCodec> {
    codec_named(name, CAPACITIES[usize::from(which) % CAPACITIES.len()]).expect("a codec")
}

fn block_seeds(name: &str) -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for which in 0..3 {
        let codec = codec(name, which);
        let mut block = sluicegate_core::block::Block::new(codec.capacity());
        for (step, states) in [(31, 1), (7, 2), (1, 3)] {
            seeds.push([&[which][..], &codec.encode(&block)].concat());
            for offset in (0..codec.capacity()).step_by(step) {
                block.raise(offset, BlockState::from_bits(states));
            }
        }
        seeds.push([&[which][..], &codec.encode(&block)].concat());
    }
    seeds
}

/// Which capacity, and a block.
fn block(name: &str, bytes: &[u8]) -> bool {
    let Some((which, stored)) = bytes.split_first() else { return false };
    let codec = codec(name, *which);
    // A block in memory is a quarter of a byte a sequence or a short list; and it may be made from a copy, or grow by doubling.
    let limit = 4_096 + codec.capacity() as usize / 2;
    let Some(block) = presented(within(limit, || codec.decode(stored))) else { return false };
    assert_eq!(block.capacity(), codec.capacity());
    assert!(block.live(0, u32::MAX).count() as u32 == block.live_count() && block.iter().count() as u32 == block.set_count());
    assert!(codec.decode(&codec.encode(&block)).expect("what was encoded decodes") == block);
    true
}

fn sequence_id_seeds() -> Vec<Vec<u8>> {
    ["", "7", "9:7", "2::7", "2:9:7", "18446744073709551615", r#""2::7""#].map(Vec::from).to_vec()
}

/// As text and as JSON.
fn sequence_id(bytes: &[u8]) -> bool {
    let limit = json_limit(bytes);
    let print = |id: &SequenceId| id.canonical().to_string();
    let parse = |bytes: &[u8]| std::str::from_utf8(bytes).unwrap_or("no").parse::<SequenceId>().map(|id| id.canonical());
    let read = |bytes: &[u8]| serde_json::from_slice::<SequenceId>(bytes).map(|id| id.canonical());
    let write = |id: &SequenceId| serde_json::to_vec(id).expect("it has a text");
    round_trip(bytes, limit, parse, print) | round_trip(bytes, limit, read, write)
}

fn location_seeds() -> Vec<Vec<u8>> {
    ["memory:", "redis://user:secret@host:1/2?namespace=a&password=secret", "replay:a/b.gz?speed=1"].map(Vec::from).to_vec()
}

/// A store's or a feed's URL.
fn location(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    let Some(location) = presented(within(json_limit(bytes), || Location::parse(text))) else { return false };
    let again = Location::parse(&location.expose()).expect("what was a URL is one");
    assert_eq!((again.expose(), again.to_string()), (location.expose(), location.to_string()));
    presented(location.options::<std::collections::BTreeMap<String, String>>());
    true
}
