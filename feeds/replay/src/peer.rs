//! The loads with which Sync Gateway's own cache benchmark measures it, so that rates can stand in one table.
//!
//! Both are simulated without a clock: the same [`PeerLoad`] always gives the same events in the same order.
//!
//! **`dcp`** ([`dcp_batches`]): 1,024 vbuckets, each with a writer of its own. A writer takes the next sequence of one counter, holds
//! it for a short pseudo-random while, and then writes its mutation: so about a thousand sequences are on their way at any time, and arrive
//! out of order across vbuckets. vBucket 520 holds each of its sequences far longer, which makes a sequencer wait, and at
//! last skip. It also carries the counter's document, once each time ten sequences are reserved. No sequence is lost.
//!
//! **`processEntry`** ([`entries`]): decoded entries without a feed. Each of some gateway nodes takes sequences from the counter ten
//! at a time: with one node they come in order, with more the nodes' batches interleave.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::Write as _;

use bytes::{Bytes, BytesMut};
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use sluicegate_core::entry::ChannelChange;
use sluicegate_core::feed::Datatype;
use sluicegate_core::{
    ChangeEntry, Channel, Decoded, EntryFlags, FeedBatch, FeedEvent, Membership, Mutation, PartitionId, PartitionSeqno, Sequence,
};

use crate::PARTITIONS;
use crate::text::{self, put_list};

/// Sequences a node reserves at a time.
const RESERVED: u64 = 10;
/// The counter stands at 1 before the load, so its first sequence is 2.
const FIRST: u64 = 2;
/// The vbucket that holds its sequences long, and carries the counter's document.
const HOLDING: u16 = 520;
/// The longest that any other writer holds a sequence, in rounds: while one of 1,024 writers waits this long, the others, who
/// wait half as long on average, write about 1,800 times.
const LONGEST_HOLD: u64 = 8;
/// Sequences that a rapidly updated document takes.
const RAPID: u64 = 5;

/// Which load. Start from the default, and set what differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerLoad {
    /// Documents written.
    pub documents: usize,
    /// Channels there are: `test-0`, `test-1`, …
    pub channels: usize,
    /// Channels of a document, taken in turn by each writer.
    pub channels_per_document: usize,
    /// `processEntry`: gateway nodes.
    pub nodes: usize,
    /// `dcp`: every second document of a vbucket took five sequences, of which the feed has only the last.
    pub rapid_updates: bool,
    /// `dcp`: how many documents others write while vbucket 520 holds one sequence; 0 to hold it no longer than others.
    pub hold: usize,
    /// Events, or entries, of a batch.
    pub batch: usize,
    /// What the order of events depends on.
    pub seed: u64,
}

impl Default for PeerLoad {
    /// A hundred thousand documents with one of 1,000 channels, from one node. The peer's vbucket 520 holds a sequence for 2 s, in
    /// which it writes about 80,000 documents at its best measured rate.
    fn default() -> Self {
        PeerLoad {
            documents: 100_000,
            channels: 1000,
            channels_per_document: 1,
            nodes: 1,
            rapid_updates: false,
            hold: 80_000,
            batch: 512,
            seed: 1,
        }
    }
}

impl PeerLoad {
    /// The channels of a writer's `k`th document, by number.
    fn channels_of(&self, k: u64) -> impl Iterator<Item = usize> + Clone + use<> {
        let total = self.channels.max(1);
        let per_document = self.channels_per_document.min(total);
        let first = k as usize % total * per_document;
        (first..first + per_document).map(move |n| n % total)
    }
}

/// The whole `dcp` load in memory.
pub fn dcp_batches(load: PeerLoad) -> Vec<FeedBatch> {
    dcp(load).collect()
}

/// The `dcp` load, a batch at a time. A batch's keys and values share one buffer.
pub fn dcp(load: PeerLoad) -> impl Iterator<Item = FeedBatch> + Send {
    let mut simulation = Dcp::new(load);
    std::iter::from_fn(move || simulation.batch())
}

/// What a writer holds: a document's sequences, and the moment of its write.
#[derive(Clone, Copy)]
struct Held {
    first: u64,
    last: u64,
    cas: u64,
}

/// One vbucket and its writer.
#[derive(Clone, Copy)]
struct Writer {
    /// Documents written.
    documents: u64,
    /// Events delivered; where the counter's document goes as well, it is more.
    seqno: u64,
    held: Option<Held>,
}

struct Dcp {
    load: PeerLoad,
    random: ChaCha8Rng,
    writers: Vec<Writer>,
    /// Writers by the moment of their write; then by who came first.
    due: BinaryHeap<Reverse<(u64, u64, u16)>>,
    /// When the holding vbucket writes, in documents written by then.
    hold_until: Option<usize>,
    now: u64,
    turn: u64,
    next: u64,
    /// Up to where sequences are reserved.
    reserved: u64,
    started: usize,
    written: usize,
    counter_changed: bool,
    names: Vec<String>,
    json: Vec<u8>,
}

/// An event whose key and value are still ranges of the batch's buffer.
struct Laid {
    mutation: Mutation,
    key: std::ops::Range<usize>,
    value: std::ops::Range<usize>,
}

impl Dcp {
    fn new(load: PeerLoad) -> Self {
        let names = (0..load.channels.max(1)).map(|n| format!("test-{n}")).collect();
        let random = ChaCha8Rng::seed_from_u64(load.seed);
        let mut simulation = Dcp {
            load,
            random,
            writers: vec![Writer { documents: 0, seqno: 0, held: None }; usize::from(PARTITIONS)],
            due: BinaryHeap::with_capacity(usize::from(PARTITIONS)),
            hold_until: None,
            now: 0,
            turn: 0,
            next: FIRST,
            reserved: FIRST - 1,
            started: 0,
            written: 0,
            counter_changed: false,
            names,
            json: Vec::new(),
        };
        for partition in 0..PARTITIONS {
            simulation.take(partition);
        }
        simulation
    }

    /// The writer of `partition` takes its next sequences, unless all documents have theirs.
    fn take(&mut self, partition: u16) {
        if self.started == self.load.documents {
            return;
        }
        self.started += 1;
        self.turn += 1;
        let writer = &mut self.writers[usize::from(partition)];
        let count = if self.load.rapid_updates && writer.documents.is_multiple_of(2) { RAPID } else { 1 };
        let (first, last) = (self.next, self.next + count - 1);
        self.next += count;
        writer.held = Some(Held { first, last, cas: text::cas(last) });
        while self.reserved < last {
            self.reserved += RESERVED;
            self.counter_changed = true;
        }
        if partition == HOLDING && self.load.hold > 0 {
            self.hold_until = Some(self.written + self.load.hold);
        } else {
            let at = self.now + self.random.random_range(1..=LONGEST_HOLD);
            self.due.push(Reverse((at, self.turn, partition)));
        }
    }

    /// The partition that writes next.
    fn next_writer(&mut self) -> Option<u16> {
        if self.hold_until.is_some_and(|at| self.written >= at || self.due.is_empty()) {
            self.hold_until = None;
            return Some(HOLDING);
        }
        let Reverse((at, _, partition)) = self.due.pop()?;
        self.now = at;
        Some(partition)
    }

    fn batch(&mut self) -> Option<FeedBatch> {
        let size = self.load.batch.max(1);
        let expected = 320 + 64 * self.load.channels_per_document;
        let mut buffer = BytesMut::with_capacity(size * expected);
        let mut laid = Vec::with_capacity(size);
        while laid.len() < size {
            if std::mem::take(&mut self.counter_changed) {
                laid.push(self.lay_counter(&mut buffer));
                continue;
            }
            let Some(partition) = self.next_writer() else { break };
            let writer = &mut self.writers[usize::from(partition)];
            if let Some(held) = writer.held.take() {
                laid.push(self.lay_document(partition, held, &mut buffer));
                self.written += 1;
                self.take(partition);
            }
        }
        if laid.is_empty() {
            return None;
        }
        let buffer: Bytes = buffer.freeze();
        let event = |Laid { mut mutation, key, value }| {
            (mutation.key, mutation.value) = (buffer.slice(key), buffer.slice(value));
            FeedEvent::Mutation(mutation)
        };
        Some(FeedBatch { events: laid.into_iter().map(event).collect() })
    }

    fn lay_counter(&mut self, buffer: &mut BytesMut) -> Laid {
        let cas = text::cas(self.next);
        let start = buffer.len();
        buffer.extend_from_slice(b"_sync:seq2");
        let end = buffer.len();
        self.lay(HOLDING, cas, Datatype(0), start..end - 1, end - 1..end)
    }

    fn lay_document(&mut self, partition: u16, held: Held, buffer: &mut BytesMut) -> Laid {
        let k = self.writers[usize::from(partition)].documents;
        self.writers[usize::from(partition)].documents += 1;
        let mut json = std::mem::take(&mut self.json);
        json.clear();
        // Writing into memory cannot fail.
        let _ = write!(json, "key-{}-{}", k + 1, held.last);
        let key = buffer.len()..buffer.len() + json.len();
        buffer.extend_from_slice(&json);
        json.clear();
        self.metadata(k, held, &mut json);
        let value = buffer.len();
        let pair = json.len() + "_sync".len() + 2;
        buffer.extend_from_slice(&(pair as u32 + 4).to_be_bytes());
        buffer.extend_from_slice(&(pair as u32).to_be_bytes());
        buffer.extend_from_slice(b"_sync\0");
        buffer.extend_from_slice(&json);
        buffer.extend_from_slice(b"\0{\"some\":\"body\"}");
        self.json = json;
        self.lay(partition, held.cas, Datatype(Datatype::JSON | Datatype::XATTR), key, value..buffer.len())
    }

    fn lay(
        &mut self,
        partition: u16,
        cas: u64,
        datatype: Datatype,
        key: std::ops::Range<usize>,
        value: std::ops::Range<usize>,
    ) -> Laid {
        let writer = &mut self.writers[usize::from(partition)];
        writer.seqno += 1;
        let mut mutation = Mutation::new(Bytes::new(), Bytes::new());
        (mutation.partition, mutation.seqno) = (PartitionId(partition), PartitionSeqno(writer.seqno));
        (mutation.cas, mutation.datatype, mutation.rev_no) = (cas, datatype, 1);
        Laid { mutation, key, value }
    }

    /// The gateway's metadata of a writer's `k`th document.
    fn metadata(&self, k: u64, held: Held, out: &mut Vec<u8>) {
        let channels = self.load.channels_of(k).map(|n| self.names[n].as_str());
        let (first, last) = (held.first, held.last);
        let revisions = last - first + 1;
        let _ = write!(out, r#"{{"rev":"{revisions}-abc","sequence":{last},"recent_sequences":["#);
        put_list(out, first..=last, |out, n| write!(out, "{n}"));
        out.extend_from_slice(br#"],"channels":{"#);
        put_list(out, channels.clone(), |out, name| write!(out, r#""{name}":null"#));
        out.extend_from_slice(br#"},"cas":""#);
        text::put_cas(out, held.cas);
        out.extend_from_slice(br#"","value_crc32c":"","channel_set":["#);
        put_list(out, channels.clone(), |out, name| write!(out, r#"{{"name":"{name}","start":{first}}}"#));
        out.extend_from_slice(br#"],"channel_set_history":null,"time_saved":""#);
        text::put_time(out, held.cas);
        out.extend_from_slice(br#"","history":{"revs":["#);
        put_list(out, 1..=revisions, |out, generation| write!(out, r#""{generation}-abc""#));
        out.extend_from_slice(br#"],"parents":["#);
        put_list(out, 0..revisions, |out, revision| write!(out, "{}", revision as i64 - 1));
        let _ = write!(out, r#"],"channelsMap":{{"{}":["#, revisions - 1);
        put_list(out, channels, |out, name| write!(out, r#""{name}""#));
        out.extend_from_slice(b"]}}}");
    }
}

/// The `processEntry` load, in batches.
///
/// # Panics
/// Never: the names it makes are valid.
pub fn entries(load: PeerLoad) -> Vec<Vec<Decoded>> {
    let channel = |n| Channel::new(&format!("test-{n}")).expect("a short name");
    let channels: Vec<Channel> = (0..load.channels.max(1)).map(channel).collect();
    let mut random = ChaCha8Rng::seed_from_u64(load.seed);
    /// A node: documents written, and what is left of its reserved sequences.
    #[derive(Clone)]
    struct Node {
        documents: u64,
        reserved: std::ops::Range<u64>,
    }
    let mut nodes = vec![Node { documents: 0, reserved: 0..0 }; load.nodes.max(1)];
    let (size, count) = (load.batch.max(1), nodes.len());
    let mut batches: Vec<Vec<Decoded>> = Vec::with_capacity(load.documents.div_ceil(size));
    let (mut next, mut running, mut until) = (FIRST, 0, 0);
    for written in 0..load.documents {
        // A node runs for a while, somewhere within its batch, and another one goes on.
        if written == until {
            running = random.random_range(0..count);
            until = written + random.random_range(1..=RESERVED as usize);
        }
        // What is reserved when the load ends is written rather than left: no sequence is lost.
        let left = (load.documents - written) as u64;
        let outstanding: u64 = nodes.iter().map(|node| node.reserved.end - node.reserved.start).sum();
        if outstanding == left {
            while nodes[running].reserved.is_empty() {
                running = (running + 1) % count;
            }
        } else if nodes[running].reserved.is_empty() {
            nodes[running].reserved = next..next + RESERVED.min(left - outstanding);
            next = nodes[running].reserved.end;
        }
        let node = &mut nodes[running];
        let Some(sequence) = node.reserved.next() else { break };
        node.documents += 1;
        let document = format!("key-{}-{sequence}", node.documents);
        let mut entry = ChangeEntry::new(Sequence(sequence), &document, "1-abc", EntryFlags::default())
            .expect("a short name")
            .with_origin(PartitionId(0), PartitionSeqno(written as u64 + 1));
        for n in load.channels_of(node.documents - 1) {
            let (channel, since) = (channels[n].clone(), Sequence(sequence));
            entry.push_channel(ChannelChange { channel, membership: Membership::Present, since });
        }
        let decoded = Decoded::Document(entry.into());
        match batches.last_mut() {
            Some(batch) if batch.len() < size => batch.push(decoded),
            _ => {
                let mut batch = Vec::with_capacity(size);
                batch.push(decoded);
                batches.push(batch);
            }
        }
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};
    use std::collections::BTreeSet;

    fn mutations(load: &PeerLoad) -> Vec<Mutation> {
        let mutation = |event| if let FeedEvent::Mutation(m) = event { m } else { panic!("{event:?}") };
        dcp(load.clone()).flat_map(|batch| batch.events).map(mutation).collect()
    }

    fn metadata(mutation: &Mutation) -> Value {
        let value = &mutation.value;
        let pair = u32::from_be_bytes(value[4..8].try_into().unwrap()) as usize;
        assert_eq!(u32::from_be_bytes(value[..4].try_into().unwrap()) as usize, pair + 4);
        assert_eq!(&value[8 + pair..], br#"{"some":"body"}"#);
        assert_eq!((&value[8..14], value[8 + pair - 1]), (b"_sync\0".as_slice(), 0));
        serde_json::from_slice(&value[14..8 + pair - 1]).unwrap()
    }

    fn is_counter(mutation: &Mutation) -> bool {
        mutation.key == "_sync:seq"
    }

    #[test]
    fn a_mutation_looks_as_the_peer_makes_it() {
        let load = PeerLoad { documents: 200_000, ..PeerLoad::default() };
        let all = mutations(&load);
        let late = all.iter().rev().find(|m| !is_counter(m) && m.partition.0 != HOLDING).unwrap();
        let data = metadata(late);
        let sequence = data["sequence"].as_u64().unwrap();
        let k = late.seqno.0 - 1;
        let channel = format!("test-{}", k % 1000);
        let mut cas = Vec::new();
        text::put_cas(&mut cas, late.cas);
        assert_eq!(late.key, format!("key-{}-{sequence}", k + 1));
        assert_eq!((late.datatype, late.rev_no), (Datatype(5), 1));
        let expected = json!({
            "rev": "1-abc", "sequence": sequence, "recent_sequences": [sequence], "channels": {channel.clone(): null},
            "cas": String::from_utf8(cas).unwrap(), "value_crc32c": "",
            "channel_set": [{"name": channel, "start": sequence}], "channel_set_history": null,
            "time_saved": data["time_saved"], "history": {"revs": ["1-abc"], "parents": [-1], "channelsMap": {"0": [channel]}},
        });
        assert_eq!(data, expected);
        assert!((355..=368).contains(&late.value.len()), "{}", late.value.len());
        let four = mutations(&PeerLoad { channels_per_document: 4, ..load });
        let late = four.iter().rev().find(|m| !is_counter(m) && m.partition.0 != HOLDING).unwrap();
        assert!((524..=552).contains(&late.value.len()), "{}", late.value.len());
    }

    #[test]
    fn every_sequence_comes_once_and_out_of_order_across_vbuckets_only() {
        let load = PeerLoad { documents: 60_000, hold: 15_000, batch: 100, ..PeerLoad::default() };
        let all = mutations(&load);
        assert_eq!(all, mutations(&load));
        assert_ne!(all, mutations(&PeerLoad { seed: 2, ..load }));
        let mut seqnos = vec![0; usize::from(PARTITIONS)];
        let (mut seen, mut high, mut displaced, mut held) = (BTreeSet::new(), 0, 0, 0);
        for mutation in &all {
            seqnos[usize::from(mutation.partition.0)] += 1;
            assert_eq!(mutation.seqno.0, seqnos[usize::from(mutation.partition.0)]);
            if is_counter(mutation) {
                assert_eq!((mutation.partition.0, &mutation.value[..]), (HOLDING, b"2".as_slice()));
                continue;
            }
            let sequence = metadata(mutation)["sequence"].as_u64().unwrap();
            assert!(seen.insert(sequence));
            let behind = u64::saturating_sub(high, sequence);
            if mutation.partition.0 == HOLDING {
                held = held.max(behind)
            } else {
                displaced = displaced.max(behind)
            }
            high = high.max(sequence);
        }
        assert!(seen.into_iter().eq(2..60_002));
        assert!((1024..4096).contains(&displaced), "{displaced}");
        assert!((15_000..20_000).contains(&held), "{held}");
        // The writers' first sequences are reserved in one go, and told once.
        let counters = all.iter().filter(|m| is_counter(m)).count();
        assert_eq!(counters, 6_000 - usize::from(PARTITIONS).div_ceil(10) + 1);
    }

    #[test]
    fn rapid_updates_take_five_sequences_every_second_time() {
        let load = PeerLoad { documents: 5_000, rapid_updates: true, ..PeerLoad::default() };
        let mut seen = BTreeSet::new();
        for mutation in mutations(&load).iter().filter(|m| !is_counter(m)) {
            let data = metadata(mutation);
            let recent: Vec<u64> = serde_json::from_value(data["recent_sequences"].clone()).unwrap();
            let rapid = mutation.partition.0 != HOLDING && mutation.seqno.0 % 2 == 1;
            if mutation.partition.0 != HOLDING {
                assert_eq!(recent.len(), if rapid { 5 } else { 1 });
            }
            assert_eq!(data["history"]["revs"].as_array().unwrap().len(), recent.len());
            assert_eq!(data["history"]["parents"][recent.len() - 1], recent.len() as i64 - 2);
            assert_eq!(recent.last(), Some(&data["sequence"].as_u64().unwrap()));
            assert!(recent.iter().all(|n| seen.insert(*n)));
        }
        let count = seen.len() as u64;
        assert!(seen.into_iter().eq(2..count + 2));
    }

    #[test]
    fn a_batch_is_one_allocation() {
        for batch in dcp(PeerLoad { documents: 2_000, batch: 64, ..PeerLoad::default() }) {
            let mut ends: Option<*const u8> = None;
            for event in &batch.events {
                let FeedEvent::Mutation(m) = event else { panic!() };
                assert!(ends.is_none_or(|end| end == m.key.as_ptr()), "key follows on what is before it");
                assert_eq!(m.key.as_ptr_range().end, m.value.as_ptr());
                ends = Some(m.value.as_ptr_range().end);
            }
            assert!(batch.events.len() <= 64);
        }
        assert!(dcp_batches(PeerLoad { documents: 0, ..PeerLoad::default() }).is_empty());
    }

    fn sequences(load: &PeerLoad) -> Vec<u64> {
        let sequence = |decoded| if let Decoded::Document(d) = decoded { d.entry.sequence().0 } else { panic!() };
        entries(load.clone()).into_iter().flatten().map(sequence).collect()
    }

    #[test]
    fn one_node_writes_in_order_and_four_interleave() {
        let one = PeerLoad { documents: 10_005, ..PeerLoad::default() };
        assert!(sequences(&one).into_iter().eq(2..10_007));
        let four = PeerLoad { nodes: 4, ..one };
        let interleaved = sequences(&four);
        assert_eq!(interleaved, sequences(&four));
        assert!(!interleaved.is_sorted());
        let displaced = interleaved.iter().enumerate().map(|(place, n)| n.abs_diff(place as u64 + 2)).max();
        assert!(Some(10) < displaced && displaced < Some(400), "{displaced:?}");
        let unique: BTreeSet<u64> = interleaved.into_iter().collect();
        assert!(unique.into_iter().eq(2..10_007));
    }

    #[test]
    fn an_entry_has_its_channels_in_turn() {
        let load = PeerLoad { documents: 600, channels: 10, channels_per_document: 4, batch: 100, ..PeerLoad::default() };
        let batches = entries(load);
        assert_eq!(batches.iter().map(Vec::len).collect::<Vec<_>>(), [100; 6]);
        let Decoded::Document(third) = &batches[0][2] else { panic!() };
        assert_eq!((third.entry.key(), third.entry.revision()), ("key-3-4", "1-abc"));
        let names: Vec<_> = third.entry.channels().iter().map(|c| c.channel.name().to_owned()).collect();
        assert_eq!(names, ["test-8", "test-9", "test-0", "test-1"]);
    }
}
