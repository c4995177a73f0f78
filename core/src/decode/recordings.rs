//! The decoder against recordings of a real gateway's feed.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io::Read;
use std::path::Path;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use flate2::read::GzDecoder;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::databases::Databases;
use super::{Decoded, DecodedDocument, GatewayDecoder, MutationDecoder, attributes};
use crate::Channel;
use crate::batch::{entry_marks, entry_states};
use crate::block::BlockState;
use crate::entry::{ChangeEntry, ChannelChange, EntryFlags, Membership};
use crate::feed::{Datatype, Mutation, MutationKind, PartitionId, PartitionSeqno};
use crate::sequence::{RangeSet, Sequence};

/// The recordings, and how many live rows their channels have at the end.
const SETS: [(&str, usize); 4] =
    [("mutations", 19_465), ("mutations-inline", 1_556), ("mutations-xattr33", 1_221), ("hazards/mutations-skips", 1_124)];

fn read(name: &str) -> String {
    read_file(&format!("gateway/{name}.ndjson.gz"))
}

fn read_file(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata").join(name);
    let file = std::fs::File::open(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut text = String::new();
    GzDecoder::new(file).read_to_string(&mut text).unwrap();
    text
}

/// A line of a recording, or of a raw sample.
#[derive(Deserialize)]
struct Line {
    n: u64,
    #[serde(default)]
    vb: u16,
    op: String,
    key: String,
    cas: String,
    datatype: u8,
    #[serde(default)]
    coll: u32,
    #[serde(default)]
    xattrs: BTreeMap<String, Box<RawValue>>,
    body: Option<Box<RawValue>>,
    body_b64: Option<String>,
    value_b64: Option<String>,
}

impl Line {
    /// The lines that are events.
    fn parse_all(text: &str) -> Vec<Line> {
        let is_event = |line: &&str| !line.contains("\"marker\":") && !line.starts_with("{\"collections\":");
        text.lines().filter(is_event).map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn cas(&self) -> u64 {
        self.cas.parse().unwrap()
    }

    fn mutation(&self, partition: u16) -> Mutation {
        let body = match (&self.body, &self.body_b64) {
            (Some(body), _) => body.get().as_bytes().to_vec(),
            (None, Some(base64)) => BASE64_STANDARD.decode(base64).unwrap(),
            (None, None) => Vec::new(),
        };
        let datatype = Datatype(self.datatype);
        let value = match &self.value_b64 {
            Some(base64) => BASE64_STANDARD.decode(base64).unwrap(),
            None if datatype.has_attributes() => {
                attributes::encode(self.xattrs.iter().map(|(name, value)| (name, value.get())), &body).unwrap()
            }
            None => body,
        };
        let mut mutation = Mutation::new(self.key.clone(), value);
        mutation.kind = match self.op.as_str() {
            "mutation" => MutationKind::Mutation,
            "deletion" => MutationKind::Deletion,
            other => panic!("{other}"),
        };
        (mutation.partition, mutation.seqno) = (PartitionId(partition), PartitionSeqno(self.n));
        (mutation.cas, mutation.datatype, mutation.collection) = (self.cas(), datatype, self.coll);
        mutation
    }

    /// The gateway's metadata as a tree, unless another program wrote the document since.
    fn metadata(&self) -> Option<Value> {
        if self.key.starts_with("_sync:") {
            return None;
        }
        if let Some(attribute) = self.xattrs.get("_sync") {
            let metadata: Value = serde_json::from_str(attribute.get()).unwrap();
            let bytes = self.cas().to_le_bytes();
            let cas: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
            return (metadata["cas"] == format!("0x{cas}")).then_some(metadata);
        }
        let body: Value = serde_json::from_str(self.body.as_ref()?.get()).unwrap();
        body.get("_sync").cloned()
    }
}

/// A row: its channel, sequence, revision, and kind.
type Row = (String, u64, String, u8);

/// The rows that a document has in all channels, going by its metadata alone.
fn expected_rows(metadata: &Value) -> BTreeSet<Row> {
    let revision = |v: &Value| v.as_str().or_else(|| v["rev"].as_str()).unwrap().to_owned();
    let (sequence, own) = (metadata["sequence"].as_u64().unwrap(), revision(&metadata["rev"]));
    let mut rows = BTreeSet::from([("*".to_owned(), sequence, own.clone(), 0)]);
    for (channel, state) in metadata["channels"].as_object().into_iter().flatten() {
        rows.insert(if state.is_null() {
            (channel.clone(), sequence, own.clone(), 0)
        } else {
            let kind = if state["del"] == true { 2 } else { 1 };
            (channel.clone(), state["seq"].as_u64().unwrap(), revision(&state["rev"]), kind)
        });
    }
    rows
}

/// An event, and what it says about its document's rows, read another way.
struct Event {
    mutation: Mutation,
    expected: Option<(u64, BTreeSet<Row>)>,
}

impl Event {
    fn of(line: &Line) -> Self {
        let expected = line.metadata().map(|m| (m["sequence"].as_u64().unwrap(), expected_rows(&m)));
        Event { mutation: line.mutation(line.vb), expected }
    }
}

/// What a cache would hold, made with the rules of the batches.
#[derive(Default)]
struct Model {
    /// Sequences that need not arrive any more.
    accounted: HashSet<u64>,
    states: HashMap<(Channel, u64), u8>,
    entries: HashMap<u64, ChangeEntry>,
    /// The rows ever made for a document.
    rows: HashMap<String, Vec<(Channel, u64)>>,
    /// How many rows came only from a later revision's memory.
    departures: usize,
}

impl Model {
    fn document(&mut self, document: DecodedDocument) {
        let DecodedDocument { entry, unused, departures, .. } = document;
        self.accounted.extend(unused.iter().map(|s| s.0));
        let earlier: BTreeSet<Sequence> =
            entry.supersedes().iter().copied().chain(departures.iter().map(|d| d.sequence)).collect();
        for old in earlier {
            if !self.accounted.insert(old.0) {
                continue;
            }
            let left: Vec<_> = departures.iter().filter(|d| d.sequence == old).collect();
            let Some(first) = left.first() else { continue };
            let mut departed = ChangeEntry::new(old, entry.key(), &first.revision, EntryFlags::DEPARTURE)
                .unwrap()
                .with_supersedes(entry.supersedes().iter().copied().filter(|s| *s < old));
            for d in left {
                departed.push_channel(ChannelChange { channel: d.channel.clone(), membership: d.membership, since: d.since });
            }
            self.departures += 1;
            self.store(departed);
        }
        if self.accounted.insert(entry.sequence().0) {
            self.store(entry);
        }
    }

    fn store(&mut self, entry: ChangeEntry) {
        let rows = self.rows.entry(entry.key().to_owned()).or_default();
        let states = &mut self.states;
        entry_states(&entry, |change| {
            rows.push((change.channel.clone(), change.sequence.0));
            *states.entry((change.channel.clone(), change.sequence.0)).or_default() |= change.state as u8;
        });
        entry_marks(&entry, |change| {
            *states.entry((change.channel.clone(), change.sequence.0)).or_default() |= change.state as u8;
        });
        self.entries.insert(entry.sequence().0, entry);
    }

    fn live(&self, channel: &Channel, sequence: u64) -> Option<Row> {
        let state = self.states.get(&(channel.clone(), sequence))?;
        if *state == BlockState::Superseded as u8 {
            return None;
        }
        let entry = &self.entries[&sequence];
        let kind = entry.membership(channel).unwrap();
        assert_eq!(*state == BlockState::Removal as u8, kind.is_removal());
        Some((channel.name().to_owned(), sequence, entry.revision().to_owned(), kind as u8))
    }

    /// The rows of one document that are not superseded.
    fn live_rows_of(&self, document: &str) -> BTreeSet<Row> {
        let rows = self.rows.get(document).into_iter().flatten();
        rows.filter_map(|(channel, sequence)| self.live(channel, *sequence)).collect()
    }

    /// All rows that are not superseded, by document.
    fn live_rows(&self) -> BTreeSet<(String, Row)> {
        let live = self.states.keys().filter_map(|(channel, sequence)| {
            Some((self.entries.get(sequence)?.key().to_owned(), self.live(channel, *sequence)?))
        });
        live.collect()
    }
}

/// Which lines a server that keeps only the newest event of each key in every `window` events would deliver. (The recorder's bucket
/// delivers two events of one key in the wrong order now and then, a server does not.)
fn deduplicated(lines: &[Line], window: usize) -> Vec<&Line> {
    let mut kept = Vec::new();
    for lines in lines.chunks(window) {
        let mut newest: HashMap<&str, &Line> = HashMap::new();
        for line in lines {
            let kept = newest.entry(&line.key).or_insert(line);
            if line.cas() > kept.cas() {
                *kept = line;
            }
        }
        kept.extend(lines.iter().filter(|l| newest[l.key.as_str()].n == l.n));
    }
    kept
}

#[test]
fn the_live_rows_of_every_channel_are_those_of_the_documents_metadata() {
    for (name, count) in SETS {
        let lines = Line::parse_all(&read(name));
        let events: HashMap<u64, Event> = lines.iter().map(|l| (l.n, Event::of(l))).collect();
        for window in [1, 50, 1000, usize::MAX] {
            let decoder = GatewayDecoder::default();
            let mut model = Model::default();
            let mut latest: HashMap<&str, (u64, &BTreeSet<Row>)> = HashMap::new();
            for line in deduplicated(&lines, window) {
                let event = &events[&line.n];
                let decoded = decoder.decode(&event.mutation);
                let Some((sequence, rows)) = &event.expected else {
                    assert!(!matches!(decoded, Decoded::Document(_) | Decoded::Invalid(_)), "{name} {}: {decoded:?}", line.n);
                    continue;
                };
                let Decoded::Document(document) = decoded else { panic!("{name} {}: {decoded:?}", line.n) };
                assert_eq!(document.entry.sequence().0, *sequence);
                model.document(document);
                let newest = latest.entry(&line.key).or_insert((*sequence, rows));
                if *sequence > newest.0 {
                    *newest = (*sequence, rows);
                }
                // At every moment, not only at the end.
                assert_eq!(model.live_rows_of(&line.key), *newest.1, "{name}, windows of {window}, event {}", line.n);
            }
            let of = |(key, (_, rows)): (&&str, &(u64, &BTreeSet<Row>))| {
                rows.iter().map(|row| ((*key).to_owned(), row.clone())).collect::<Vec<_>>()
            };
            let live = model.live_rows();
            assert!(live == latest.iter().flat_map(of).collect(), "{name}, windows of {window}");
            assert_eq!(live.len(), count, "{name}, windows of {window}");
            assert!(model.departures > 0 || window < usize::MAX, "{name}");
            // Where nothing is left out, only a gateway that lost a write remembers a departure that never came.
            assert!(model.departures == 0 || window > 1 || name.starts_with("hazards/"), "{name}");
        }
    }
}

#[test]
fn every_sequence_that_the_gateway_allocated_is_accounted_for() {
    for (name, lost) in [("mutations", 0), ("mutations-inline", 0), ("mutations-xattr33", 0)] {
        let decoder = GatewayDecoder::default();
        let mut seen: BTreeSet<u64> = BTreeSet::new();
        for line in Line::parse_all(&read(name)) {
            match decoder.decode(&line.mutation(line.vb)) {
                Decoded::Document(d) | Decoded::Foreign(d) => {
                    seen.insert(d.entry.sequence().0);
                    seen.extend(d.unused.iter().copied().chain(d.earlier()).map(|s| s.0));
                }
                Decoded::Principal(p) => {
                    seen.insert(p.sequence.0);
                }
                Decoded::Unused(range) => seen.extend(range.first().0..=range.last().0),
                Decoded::Ignored(_) | Decoded::Counter(_) | Decoded::Purged(_) => {}
                Decoded::Invalid(invalid) => panic!("{name} {}: {invalid:?}", line.n),
            }
        }
        let last = *seen.last().unwrap();
        assert_eq!(last - seen.len() as u64, lost, "{name}");
    }
}

/// Ranges of all sequences that a decoder's output accounts for.
fn accounted_for(decoder: &GatewayDecoder, mutations: &[Mutation]) -> Vec<(u64, u64)> {
    let mut numbers = RangeSet::new();
    let mut add = |first: Sequence, last: Sequence| {
        numbers.insert(first.0, last.0);
    };
    for mutation in mutations {
        match decoder.decode(mutation) {
            Decoded::Document(d) | Decoded::Foreign(d) => {
                let others = d.unused.iter().copied().chain(d.earlier());
                others.chain([d.entry.sequence()]).for_each(|sequence| add(sequence, sequence));
            }
            Decoded::Principal(p) => add(p.sequence, p.sequence),
            Decoded::Unused(range) => add(range.first(), range.last()),
            Decoded::Ignored(_) | Decoded::Counter(_) | Decoded::Purged(_) => {}
            Decoded::Invalid(invalid) => panic!("{}: {invalid:?}", mutation.key.escape_ascii()),
        }
    }
    numbers.iter().collect()
}

#[test]
fn the_numbers_of_each_database_of_a_bucket_are_all_accounted_for_and_no_others() {
    #[derive(Deserialize)]
    struct First {
        collections: BTreeMap<u32, String>,
    }
    #[derive(Deserialize)]
    struct Marker {
        seqs: BTreeMap<String, u64>,
    }
    for name in ["default-id", "version-3.3"] {
        let text = read_file(&format!("databases/mutations-{name}.ndjson.gz"));
        let first: First = serde_json::from_str(text.lines().next().unwrap()).unwrap();
        let marker: Marker = serde_json::from_str(text.lines().last().unwrap()).unwrap();
        let mutations: Vec<Mutation> = Line::parse_all(&text).iter().map(|line| line.mutation(line.vb)).collect();
        let mut databases = Databases::new(first.collections);
        for mutation in &mutations {
            databases.observe(mutation);
        }
        let databases = databases.list();
        assert_eq!(databases.len(), marker.seqs.len(), "{name}");
        for database in databases {
            let decoder = GatewayDecoder::new(&database.options().unwrap());
            let high = marker.seqs[database.name.as_deref().unwrap()];
            assert_eq!(accounted_for(&decoder, &mutations), [(1, high)], "{name} {database:?}");
            let counter = database.counter_key();
            let counter = mutations.iter().rfind(|mutation| mutation.key == counter.as_bytes()).unwrap();
            assert_eq!(counter.value, high.to_string().as_bytes());
        }
    }
}

#[test]
fn events_as_delivered_decode_like_their_recorded_lines() {
    for (sample, recording) in [("dcp-raw-sample", "mutations"), ("dcp-raw-sample-inline", "mutations-inline")] {
        let lines: HashMap<u64, Line> = Line::parse_all(&read(recording)).into_iter().map(|l| (l.n, l)).collect();
        let decoder = GatewayDecoder::default();
        let mut documents = 0;
        for raw in Line::parse_all(&read(sample)) {
            let line = &lines[&raw.n];
            assert_eq!((&raw.key, &raw.cas), (&line.key, &line.cas));
            let decoded = decoder.decode(&raw.mutation(line.vb));
            assert_eq!(decoded, decoder.decode(&line.mutation(line.vb)), "{sample} {}", raw.n);
            documents += usize::from(matches!(decoded, Decoded::Document(_)));
        }
        assert!(documents > 50, "{sample}: {documents}");
    }
}

#[test]
fn a_cas_that_moved_alone_changes_nothing_and_another_body_does() {
    for (name, foreign) in [("mutations", 28), ("mutations-xattr33", 0), ("hazards/mutations-skips", 0)] {
        let decoder = GatewayDecoder::default();
        let mut counts = [0; 2];
        for line in Line::parse_all(&read(name)) {
            let mut mutation = line.mutation(line.vb);
            match decoder.decode(&mutation) {
                Decoded::Foreign(document) => {
                    counts[1] += 1;
                    assert!(document.entry.sequence() > Sequence::ZERO);
                }
                own @ Decoded::Document(_) => {
                    counts[0] += 1;
                    mutation.cas += 1;
                    assert_eq!(decoder.decode(&mutation), own, "{name} {}: as the gateway wrote it", line.n);
                    mutation.value = [&mutation.value[..], b" "].concat().into();
                    let Decoded::Document(own) = own else { unreachable!() };
                    match decoder.decode(&mutation) {
                        // It is not shown, so that it left channels is said apart.
                        Decoded::Foreign(mut foreign) => {
                            let left = foreign.departures.split_off(own.departures.len());
                            let removals = own.entry.channels().iter().filter(|change| change.membership.is_removal());
                            assert!(left.iter().map(|departure| &departure.channel).eq(removals.map(|change| &change.channel)));
                            assert!(left.iter().all(|departure| departure.sequence == own.entry.sequence()));
                            assert_eq!(foreign, own);
                        }
                        // A deletion has no body.
                        other => assert!(mutation.kind != MutationKind::Mutation && other == Decoded::Document(own)),
                    }
                }
                _ => {}
            }
        }
        assert!(counts[0] > 500, "{name}: {counts:?}");
        assert_eq!(counts[1], foreign, "{name}");
    }
}

#[test]
fn a_row_is_removed_where_the_channel_map_says_so() {
    let decoder = GatewayDecoder::default();
    let mut counts = [0; 3];
    for line in Line::parse_all(&read("mutations-xattr33")) {
        let Decoded::Document(document) = decoder.decode(&line.mutation(line.vb)) else { continue };
        for change in document.entry.channels() {
            counts[change.membership as usize] += 1;
            assert!(change.since <= document.entry.sequence() && change.since > Sequence::ZERO);
        }
    }
    assert!(counts[Membership::Removed as usize] > 100 && counts[Membership::RemovedByDeletion as usize] > 20, "{counts:?}");
}
