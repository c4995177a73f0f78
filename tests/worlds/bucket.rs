//! A bucket with a gateway, and the answers that a cache of it must give.

use std::collections::BTreeMap;

use sluicegate::core::decode::attributes;
use sluicegate::feed::MutationKind;
use sluicegate::{Channel, Mutation, PartitionId, Sequence};
use sluicegate_testkit::Model;
use sluicegate_testkit::gateway::{Kept, is_gateways_write};
use sluicegate_testkit::history::Partition;
use sluicegate_testkit::model::AnswerRow;
use sluicegate_testkit::observe::Rows;

use super::model::{CHANNELS, DOCUMENTS, Event, PARTITIONS};

const OWN_BODY: &[u8] = br#"{"by":"the gateway"}"#;
const FOREIGN_BODY: &[u8] = br#"{"by":"another program"}"#;

/// The members of the metadata that list stays in channels.
const STAYS: [&str; 2] = ["channel_set", "channel_set_history"];

/// What the server and the gateway have.
#[derive(Debug)]
pub(crate) struct Bucket {
    pub(crate) partitions: Vec<Partition>,
    has_stays: bool,
    last_uuid: u64,
    last_cas: u64,
    /// The last sequence that the gateway allocated.
    counter: u64,
    revisions: u64,
}

impl Bucket {
    pub(crate) fn new(has_stays: bool) -> Bucket {
        let partitions = (1..=PARTITIONS).map(|uuid| Partition::new(uuid.into())).collect();
        Bucket { partitions, has_stays, last_uuid: PARTITIONS.into(), last_cas: 0, counter: 0, revisions: 0 }
    }

    /// Applies an event. Terms and held writers are none of the bucket's.
    pub(crate) fn apply(&mut self, event: &Event) {
        match event {
            Event::Write { document, channels } => self.write(*document, &names(*channels)),
            Event::Overwrite { document } => self.overwrite(*document),
            Event::Purge { document } => {
                if self.kept(*document).is_some() {
                    let purge = Mutation { kind: MutationKind::Deletion, ..Mutation::new(key(*document), "") };
                    self.put(document % PARTITIONS, purge);
                }
            }
            Event::Skip => self.counter += 1,
            Event::Release { partition } => {
                self.counter += 1;
                self.put(*partition, Mutation::new(format!("_sync:unusedSeq:{}", self.counter), ""));
            }
            Event::FailOver { partition, lost } => {
                let partition = &mut self.partitions[usize::from(*partition)];
                let is_purge = |mutation: &&Mutation| mutation.kind == MutationKind::Deletion;
                let last_purge = partition.after(0).iter().rev().find(is_purge).map_or(0, |purge| purge.seqno.0);
                self.last_uuid += 1;
                partition.fail_over(partition.high().saturating_sub(*lost).max(last_purge), self.last_uuid);
            }
            Event::LoseCounter => {
                let all = self.partitions.iter().flat_map(|partition| partition.after(0));
                self.counter = all.filter_map(kept).map(|kept| kept.sequence).max().unwrap_or(0);
            }
            Event::Term(_) | Event::Resume => {}
        }
    }

    fn put(&mut self, partition: u16, mutation: Mutation) {
        self.last_cas = self.next_cas();
        let mutation = Mutation { partition: PartitionId(partition), cas: self.last_cas, ..mutation };
        self.partitions[usize::from(partition)].push(mutation);
    }

    fn next_cas(&self) -> u64 {
        self.last_cas + (1 << 16)
    }

    fn newest(&self, document: u16) -> Option<&Mutation> {
        self.partitions[usize::from(document % PARTITIONS)].newest(0, key(document).as_bytes())
    }

    /// The last revision of a document, unless it was purged.
    fn kept(&self, document: u16) -> Option<Kept> {
        self.newest(document).and_then(kept)
    }

    fn write(&mut self, document: u16, channels: &[String]) {
        let mut kept = self.kept(document).unwrap_or_default();
        // A gateway does not write a sequence that is not above the document's last.
        self.counter = self.counter.max(kept.sequence) + 1;
        self.revisions += 1;
        kept.write(&format!("{}r{}", self.counter, self.revisions), self.counter, &[], channels, false, false);
        let mutation = kept.mutation(&key(document), self.next_cas(), OWN_BODY);
        let mutation = if self.has_stays { mutation } else { without_stays(mutation) };
        self.put(document % PARTITIONS, mutation);
    }

    fn overwrite(&mut self, document: u16) {
        let Some(known) = self.newest(document).filter(|known| known.kind == MutationKind::Mutation) else { return };
        let pairs = attributes::iter(&known.value).unwrap().map(|pair| pair.unwrap());
        let value = attributes::encode(pairs, FOREIGN_BODY).unwrap().into();
        let mutation = Mutation { value, ..known.clone() };
        self.put(document % PARTITIONS, mutation);
    }

    /// The gateway imports what other programs have written. The documents stay in their channels.
    pub(crate) fn import(&mut self) {
        for document in 0..DOCUMENTS {
            let Some(newest) = self.newest(document) else { continue };
            let Some(metadata) = attributes::find(&newest.value, "_sync").ok().flatten() else { continue };
            if !is_gateways_write(metadata, newest.cas, attributes::body(&newest.value).unwrap(), false) {
                let channels = self.kept(document).unwrap().members();
                self.write(document, &channels);
            }
        }
    }

    /// The rows of each channel, for what is in the bucket now.
    pub(crate) fn expected(&self) -> BTreeMap<String, Rows> {
        let mut model = Model::new();
        for document in 0..DOCUMENTS {
            if let Some(kept) = self.kept(document) {
                model.apply(&kept.decoded(0, &key(document)).unwrap());
            }
        }
        let row =
            |(sequence, key, revision, deleted, removed): AnswerRow| (sequence.0, key, revision, deleted, !removed.is_empty());
        let rows = |channel: Channel| {
            let rows = model.changes(std::slice::from_ref(&channel), Sequence::ZERO, None, false);
            (channel.to_string(), rows.into_iter().map(row).collect())
        };
        channels().map(rows).collect()
    }
}

/// The channels that are asked for.
pub(crate) fn channels() -> impl Iterator<Item = Channel> {
    CHANNELS.into_iter().map(|name| Channel::new(name).unwrap()).chain([Channel::star()])
}

fn names(bits: u8) -> Vec<String> {
    let named = CHANNELS.into_iter().enumerate().filter(|(at, _)| bits >> at & 1 == 1);
    named.map(|(_, name)| name.to_owned()).collect()
}

fn key(document: u16) -> String {
    format!("d{document}")
}

/// What the gateway keeps in a mutation; none for purges and markers.
fn kept(mutation: &Mutation) -> Option<Kept> {
    attributes::find(&mutation.value, "_sync").ok().flatten().and_then(Kept::read)
}

/// The mutation with the metadata of a gateway that lists no stays.
fn without_stays(mutation: Mutation) -> Mutation {
    let metadata = attributes::find(&mutation.value, "_sync").unwrap().unwrap();
    let mut metadata: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(metadata).unwrap();
    metadata.retain(|name, _| !STAYS.contains(&&name[..]));
    let metadata = serde_json::to_string(&metadata).unwrap();
    let value = attributes::encode([("_sync", metadata)], attributes::body(&mutation.value).unwrap()).unwrap();
    Mutation { value: value.into(), ..mutation }
}
