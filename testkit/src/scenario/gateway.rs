//! A bucket, and a gateway that writes to it: turns a scenario's events into mutations of a feed.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use serde_json::{Map, Value, json};
use sluicegate_core::decode::PrincipalKind;
use sluicegate_core::feed::{Datatype, MutationKind};
use sluicegate_core::{Channel, CollectionId, DocumentId, Mutation, PartitionId, PartitionSeqno, Result, SequenceRange};

use super::step::{Document, Event, Put};
use crate::clear::Contents;
use crate::gateway::{Kept, Standing, checksum, text_of, with_attributes};

/// Partitions of the bucket: a few, so that each has several documents.
pub(super) const PARTITIONS: u16 = 16;

/// The CAS before the first write, and its step for each write.
const CAS: (u64, u64) = (1_795_307_729_798_168_576, 1 << 16);
const BODY: &[u8] = br#"{"x":1}"#;
const OTHER_BODY: &[u8] = br#"{"x":2}"#;

/// The names and numbers that a run has used, by which all its stored documents are found.
#[derive(Clone, Debug, Default)]
pub(super) struct Used {
    pub(super) collections: BTreeSet<u32>,
    pub(super) channels: BTreeSet<String>,
    pub(super) documents: BTreeSet<(u32, String)>,
    /// Sequences that may have entries.
    pub(super) sequences: BTreeSet<u64>,
}

impl Used {
    /// The contents of a cache of the feed with this checkpoint.
    pub(super) fn contents(&self, feed: String) -> Result<Contents> {
        let mut contents = Contents { feed, ..Contents::default() };
        for sequence in &self.sequences {
            contents.sequences.insert(*sequence, *sequence);
        }
        for collection in self.collections.iter().copied().chain([0]).map(CollectionId) {
            contents.channels.insert(Channel::star_of(collection));
            for name in &self.channels {
                contents.channels.insert(Channel::of(collection, name)?);
            }
        }
        let documents = self.documents.iter();
        contents.documents = documents.map(|(collection, id)| DocumentId::new(CollectionId(*collection), id.as_str())).collect();
        Ok(contents)
    }
}

/// The bucket.
#[derive(Debug, Default)]
pub(super) struct Gateway {
    /// The last sequence allocated.
    allocated: u64,
    writes: u64,
    documents: BTreeMap<(u32, String), Kept>,
    /// The CAS of each document's revisions, by sequence.
    written: BTreeMap<(u32, String), BTreeMap<u64, u64>>,
    used: Used,
}

impl Gateway {
    pub(super) fn new(initial: u64) -> Self {
        Gateway { allocated: initial, ..Gateway::default() }
    }

    pub(super) fn used(&self) -> &Used {
        &self.used
    }

    /// The mutation that the feed delivers for an event; `None` if it leaves the event out.
    pub(super) fn apply(&mut self, event: &Event) -> Option<Mutation> {
        match event {
            Event::Document(document) => Some(self.document(document)),
            Event::Put(put) => self.put(put),
            Event::Principal { kind, name, sequence, channels } => {
                let sequence = sequence.unwrap_or(self.allocated + 1);
                self.allocated = self.allocated.max(sequence);
                Some(self.principal(*kind, name, sequence, channels))
            }
            Event::Unused(range) => {
                self.allocated = self.allocated.max(range.last().0);
                Some(self.marker(*range))
            }
            Event::Purge { id, collection } => {
                self.documents.remove(&(*collection, id.clone()));
                self.written.remove(&(*collection, id.clone()));
                let mutation = Mutation { kind: MutationKind::Deletion, ..Mutation::new(id.clone(), Bytes::new()) };
                Some(self.delivered(Mutation { collection: *collection, ..mutation }))
            }
            Event::Allocated(number) => {
                self.allocated = self.allocated.max(*number);
                None
            }
        }
    }

    /// A write by a gateway.
    fn put(&mut self, put: &Put) -> Option<Mutation> {
        // Its unused sequences are below its own.
        let before = put.unused.iter().copied().fold(self.allocated, u64::max);
        let sequence = put.sequence.unwrap_or(before + 1);
        self.allocated = before.max(sequence);
        let cas = self.next_cas();
        let key = (put.collection, put.id.clone());
        let kept = self.documents.entry(key).or_default();
        let channels = match &put.channels {
            _ if put.deleted => Vec::new(),
            Some(channels) => channels.clone(),
            None => kept.members(),
        };
        kept.write(&put.id, sequence, &put.unused, &channels, put.deleted, put.quiet);
        let kept = kept.clone();
        if put.quiet {
            return None;
        }
        self.used.channels.extend(kept.channels.keys().cloned());
        self.used.sequences.extend(kept.numbers());
        let mutation = kept.mutation(&put.id, cas, BODY);
        Some(self.delivered(Mutation { cas, collection: put.collection, ..mutation }))
    }

    /// A document with exactly these metadata.
    fn document(&mut self, document: &Document) -> Mutation {
        self.allocated = document.unused.iter().copied().chain([self.allocated, document.sequence]).max().unwrap_or_default();
        let cas = self.cas_of(document);
        self.documents.insert((document.collection, document.id.clone()), kept_of(document));
        let (kind, body): (_, &[u8]) = match document.deletion {
            true => (MutationKind::Deletion, b""),
            false => (MutationKind::Mutation, BODY),
        };
        let sum = checksum(body, document.deletion);
        let body = if document.same_checksum { body } else { OTHER_BODY };
        let version = document.version.as_ref().map(|(source, value)| (source, text_of(*value)));
        let mut metadata = Map::new();
        let revision = match &version {
            Some((source, value)) => json!({"rev": document.revision, "src": source, "ver": value}),
            None => json!(document.revision),
        };
        metadata.insert("rev".into(), revision);
        if document.deleted {
            metadata.insert("flags".into(), json!(1));
        }
        metadata.insert("sequence".into(), json!(document.sequence));
        if !document.unused.is_empty() {
            metadata.insert("unused_sequences".into(), json!(document.unused));
        }
        if let Some(recent) = &document.recent {
            metadata.insert("recent_sequences".into(), json!(recent));
        }
        let mut channels = Map::new();
        channels.extend(document.channels.iter().map(|channel| (channel.clone(), Value::Null)));
        channels.extend(
            document
                .left
                .iter()
                .map(|left| (left.channel.clone(), Standing::left(left.sequence, json!(left.revision), left.by_deletion))),
        );
        metadata.insert("channels".into(), Value::Object(channels));
        let cas_of = if document.same_cas { cas } else { cas - CAS.1 / 2 };
        metadata.insert("cas".into(), json!(text_of(cas_of)));
        metadata.insert("value_crc32c".into(), json!(sum));
        let version = version.map(|(source, value)| json!({"cvCas": text_of(cas_of), "src": source, "ver": value}));

        self.used.channels.extend(document.channels.iter().chain(document.left.iter().map(|left| &left.channel)).cloned());
        let numbers = document.recent.iter().flatten().chain(&document.unused).copied();
        self.used.sequences.extend(numbers.chain(document.left.iter().map(|left| left.sequence)).chain([document.sequence]));
        let mutation = with_attributes(&document.id, kind, &Value::Object(metadata), version.as_ref(), body);
        self.delivered(Mutation { cas, collection: document.collection, ..mutation })
    }

    fn principal(&mut self, kind: PrincipalKind, name: &str, sequence: u64, channels: &[String]) -> Mutation {
        let word = if kind == PrincipalKind::User { "user" } else { "role" };
        let granted: Map<String, Value> = channels.iter().map(|channel| (channel.clone(), json!(sequence))).collect();
        let body = json!({"name": name, "admin_channels": granted, "all_channels": {"!": 1}, "sequence": sequence});
        let mutation = Mutation::new(format!("_sync:{word}:{name}"), body.to_string());
        let cas = self.next_cas();
        self.delivered(Mutation { cas, datatype: Datatype(Datatype::JSON), ..mutation })
    }

    fn marker(&mut self, range: SequenceRange) -> Mutation {
        let (first, last) = (range.first().0, range.last().0);
        let mutation = match first == last {
            true => Mutation::new(format!("_sync:unusedSeq:{first}"), first.to_le_bytes().to_vec()),
            false => {
                Mutation::new(format!("_sync:unusedSeqs:{first}:{last}"), [first.to_le_bytes(), last.to_le_bytes()].concat())
            }
        };
        let cas = self.next_cas();
        self.delivered(Mutation { cas, ..mutation })
    }

    /// The CAS of a document with these metadata. The feed may deliver a revision late: one that
    /// does not name a higher sequence of its document was written before that sequence.
    fn cas_of(&mut self, document: &Document) -> u64 {
        let next = self.next_cas();
        let written = self.written.entry((document.collection, document.id.clone())).or_default();
        let recent = document.recent.as_deref().unwrap_or_default();
        let later = written.range(document.sequence + 1..).filter(|(sequence, _)| !recent.contains(sequence));
        let cas = later.map(|(_, cas)| cas - 1).min().unwrap_or(next);
        written.insert(document.sequence, cas);
        cas
    }

    fn next_cas(&self) -> u64 {
        CAS.0 + CAS.1 * (self.writes + 1)
    }

    /// Puts it at its place in the feed: all mutations of a key are in one partition, in ascending
    /// order.
    fn delivered(&mut self, mutation: Mutation) -> Mutation {
        self.writes += 1;
        let sum = mutation.key.iter().fold(mutation.collection, |sum, byte| sum.wrapping_mul(31).wrapping_add(u32::from(*byte)));
        let partition = PartitionId((sum % u32::from(PARTITIONS)) as u16);
        if !mutation.key.starts_with(b"_sync:") {
            self.used.collections.insert(mutation.collection);
            self.used.documents.insert((mutation.collection, String::from_utf8_lossy(&mutation.key).into_owned()));
        }
        let cas = if mutation.cas == 0 { CAS.0 + CAS.1 * self.writes } else { mutation.cas };
        Mutation { partition, seqno: PartitionSeqno(self.writes), cas, rev_no: self.writes, ..mutation }
    }
}

/// The state of a document with these metadata for the next write.
fn kept_of(document: &Document) -> Kept {
    let generation = document.revision.split('-').next().and_then(|text| text.parse().ok()).unwrap_or(1);
    let left = document.left.iter().map(|left| {
        let standing = Standing::Left { sequence: left.sequence, revision: left.revision.clone(), deletion: left.by_deletion };
        (left.channel.clone(), standing)
    });
    Kept {
        generation,
        revision: document.revision.clone(),
        sequence: document.sequence,
        recent: document.recent.clone().unwrap_or_else(|| vec![document.sequence]),
        channels: document.channels.iter().map(|channel| (channel.clone(), Standing::Member)).chain(left).collect(),
        deleted: document.deleted,
        ..Kept::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sluicegate_core::{Decoded, GatewayDecoder, MutationDecoder as _};

    fn put(id: &str, channels: &[&str]) -> Put {
        let channels = Some(channels.iter().map(|name| (*name).to_owned()).collect());
        Put { id: id.into(), deleted: false, channels, quiet: false, sequence: None, unused: Vec::new(), collection: 0 }
    }

    #[test]
    fn what_a_gateway_writes_is_understood_and_names_what_came_before() {
        let (mut gateway, decoder) = (Gateway::new(0), GatewayDecoder::default());
        let mut last = None;
        for write in [put("a", &["A", "B"]), Put { quiet: true, ..put("a", &["B"]) }, put("a", &["A"])] {
            last = gateway.apply(&Event::Put(write));
        }
        let Decoded::Document(document) = decoder.decode(&last.unwrap()) else { panic!("no document") };
        let entry = &document.entry;
        assert_eq!((entry.sequence().0, entry.revision()), (3, "3-a"));
        assert_eq!(entry.supersedes().iter().map(|s| s.0).collect::<Vec<_>>(), [1, 2]);
        let channels: Vec<_> = entry.channels().iter().map(|c| (c.channel.name(), c.membership.is_removal())).collect();
        assert_eq!(channels, [("A", false), ("B", true)]);

        let deletion = Put { deleted: true, ..put("a", &[]) };
        let Decoded::Document(document) = decoder.decode(&gateway.apply(&Event::Put(deletion)).unwrap()) else { panic!("none") };
        assert!(document.entry.is_deleted());
        assert_eq!(document.entry.revision(), "4-a");
        let retried = gateway.apply(&Event::Put(Put { unused: vec![5, 6], ..put("b", &["A"]) })).unwrap();
        let Decoded::Document(document) = decoder.decode(&retried) else { panic!("none") };
        assert_eq!((document.entry.sequence().0, document.unused.len()), (7, 2));
    }

    #[test]
    fn of_many_revisions_some_are_remembered_and_none_that_the_feed_left_out() {
        let mut gateway = Gateway::new(0);
        gateway.apply(&Event::Put(put("a", &["A"])));
        for _ in 0..30 {
            gateway.apply(&Event::Put(Put { quiet: true, ..put("a", &["A"]) }));
        }
        let kept = |gateway: &Gateway| gateway.documents[&(0, "a".to_owned())].recent.clone();
        assert_eq!(kept(&gateway).first(), Some(&2), "the feed has not told of it yet");
        for _ in 0..2 {
            gateway.apply(&Event::Put(put("a", &["A"])));
        }
        assert_eq!(kept(&gateway), [28, 29, 30, 31, 32, 33]);
    }
}
