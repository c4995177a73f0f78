//! The state of a document that a gateway keeps in its metadata.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};
use sluicegate_core::decode::{DecodedDocument, Departure};
use sluicegate_core::{ChangeEntry, Channel, CollectionId, Decoded, EntryFlags, Membership, Result, Sequence};

/// The list of recent sequences is trimmed at this length …
const MAX_RECENT: usize = 20;
/// … to this many.
const KEPT_RECENT: usize = 5;
/// The limit for former stays in one channel that are kept one by one.
const MAX_STAYS: usize = 5;

/// The state of a document in a channel that it is or was in.
#[derive(Clone, Debug, PartialEq)]
pub enum Standing {
    /// It is in it.
    Member,
    /// It left.
    Left {
        /// With the revision of this sequence.
        sequence: u64,
        /// Which revision that was.
        revision: String,
        /// Whether by being deleted.
        deletion: bool,
    },
}

impl Standing {
    /// The entry for a channel that was left, in the form of the metadata.
    pub(crate) fn left(sequence: u64, revision: Value, deletion: bool) -> Value {
        match deletion {
            true => json!({"seq": sequence, "rev": revision, "del": true}),
            false => json!({"seq": sequence, "rev": revision}),
        }
    }
}

/// A stay in a channel.
#[derive(Clone, Debug, PartialEq)]
pub struct Stay {
    channel: String,
    start: u64,
    end: Option<u64>,
}

/// A document as the gateway last wrote it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Kept {
    /// How many revisions it has had.
    pub generation: u64,
    /// The id of the last one.
    pub revision: String,
    /// Its sequence.
    pub sequence: u64,
    /// Sequences that its write allocated and did not use.
    pub unused: Vec<u64>,
    /// Sequences of the last revisions, and those that their writes did not use.
    pub recent: Vec<u64>,
    /// Recent sequences that the feed has not delivered: the gateway's cache has not seen them, so
    /// they are kept.
    pub untold: BTreeSet<u64>,
    /// The channels that it is or has been in.
    pub channels: BTreeMap<String, Standing>,
    /// The last stay in each channel.
    pub stays: Vec<Stay>,
    /// Those before it.
    pub former: Vec<Stay>,
    /// Whether the last revision is a tombstone.
    pub deleted: bool,
}

impl Kept {
    /// What the attribute `_sync` says; none if it is not as [`metadata`](Self::metadata) makes it.
    pub fn read(metadata: &[u8]) -> Option<Kept> {
        let metadata: Value = serde_json::from_slice(metadata).ok()?;
        let revision_of = |value: &Value| value["rev"]["rev"].as_str().or(value["rev"].as_str()).map(str::to_owned);
        let numbers = |name: &str| metadata[name].as_array().into_iter().flatten().filter_map(Value::as_u64).collect();
        let stays = |name: &str| {
            let stay = |stay: &Value| {
                Some(Stay {
                    channel: stay["name"].as_str()?.to_owned(),
                    start: stay["start"].as_u64()?,
                    end: stay["end"].as_u64(),
                })
            };
            metadata[name].as_array().into_iter().flatten().filter_map(stay).collect()
        };
        let standing = |(channel, value): (&String, &Value)| {
            let standing = match value {
                Value::Null => Standing::Member,
                left => Standing::Left {
                    sequence: left["seq"].as_u64()?,
                    revision: revision_of(left)?,
                    deletion: left["del"].as_bool().unwrap_or_default(),
                },
            };
            Some((channel.clone(), standing))
        };
        let revision = revision_of(&metadata)?;
        Some(Kept {
            generation: revision.split('-').next()?.parse().ok()?,
            revision,
            sequence: metadata["sequence"].as_u64()?,
            unused: numbers("unused_sequences"),
            recent: numbers("recent_sequences"),
            untold: BTreeSet::new(),
            channels: metadata["channels"].as_object()?.iter().map(standing).collect::<Option<_>>()?,
            stays: stays("channel_set"),
            former: stays("channel_set_history"),
            deleted: metadata["flags"].as_u64().unwrap_or_default() & 1 == 1,
        })
    }

    /// What a decoder must make of the document, for the [`Model`](crate::Model): without what it
    /// supersedes.
    ///
    /// # Errors
    /// `TooLarge` or `ConfigInvalid` for what cannot be the name of a channel.
    pub fn decoded(&self, collection: u32, id: &str) -> Result<Decoded> {
        let flags = if self.deleted { EntryFlags::DELETED } else { EntryFlags::default() };
        let collection = CollectionId(collection);
        let mut entry = ChangeEntry::new(Sequence(self.sequence), id, &self.revision, flags)?.with_collection(collection);
        let mut departures = Vec::new();
        for (name, standing) in &self.channels {
            let channel = Channel::new(name)?.in_collection(collection);
            let (sequence, revision, membership) = match standing {
                Standing::Member => (self.sequence, &self.revision, Membership::Present),
                Standing::Left { sequence, revision, deletion: false } => (*sequence, revision, Membership::Removed),
                Standing::Left { sequence, revision, deletion: true } => (*sequence, revision, Membership::RemovedByDeletion),
            };
            if sequence == self.sequence {
                entry = entry.with_channel(channel, membership);
            } else {
                let (sequence, revision) = (Sequence(sequence), revision.as_str().into());
                departures.push(Departure { sequence, revision, channel, membership, since: Sequence::ZERO });
            }
        }
        Ok(Decoded::Document(DecodedDocument { departures: departures.into(), ..entry.into() }))
    }

    /// The channels it is in.
    pub fn members(&self) -> Vec<String> {
        let members = self.channels.iter().filter(|(_, standing)| **standing == Standing::Member);
        members.map(|(channel, _)| channel.clone()).collect()
    }

    /// The sequences it names.
    pub fn numbers(&self) -> impl Iterator<Item = u64> + '_ {
        let left = self.channels.values().filter_map(|standing| match standing {
            Standing::Left { sequence, .. } => Some(*sequence),
            Standing::Member => None,
        });
        let stays = self.stays.iter().chain(&self.former).flat_map(|stay| [Some(stay.start), stay.end]).flatten();
        self.recent.iter().copied().chain(left).chain(stays).chain([self.sequence])
    }

    /// Applies a write that makes a revision whose id ends in `digest`. With `quiet`, the feed does
    /// not tell of it.
    pub fn write(&mut self, digest: &str, sequence: u64, unused: &[u64], members: &[String], deleted: bool, quiet: bool) {
        self.generation += 1;
        (self.revision, self.sequence, self.deleted) = (format!("{}-{digest}", self.generation), sequence, deleted);
        self.move_to(members);
        if self.recent.len() >= MAX_RECENT {
            while self.recent.len() > KEPT_RECENT && self.recent.first().is_some_and(|first| !self.untold.contains(first)) {
                self.recent.remove(0);
            }
        }
        self.recent.extend(unused.iter().copied().chain([sequence]));
        self.recent.sort_unstable();
        self.recent.dedup();
        self.unused = unused.to_vec();
        if quiet {
            self.untold.extend(unused.iter().copied().chain([sequence]));
        } else {
            self.untold.clear();
        }
    }

    fn move_to(&mut self, members: &[String]) {
        for (channel, standing) in &mut self.channels {
            if *standing == Standing::Member && !members.contains(channel) {
                *standing = Standing::Left { sequence: self.sequence, revision: self.revision.clone(), deletion: self.deleted };
                for stay in self.stays.iter_mut().filter(|stay| stay.channel == *channel) {
                    stay.end = Some(self.sequence);
                }
            }
        }
        for channel in members {
            if self.channels.insert(channel.clone(), Standing::Member) == Some(Standing::Member) {
                continue;
            }
            let stay = Stay { channel: channel.clone(), start: self.sequence, end: None };
            match self.stays.iter_mut().find(|stay| stay.channel == *channel) {
                Some(last) => self.former.push(std::mem::replace(last, stay)),
                None => self.stays.push(stay),
            }
            self.merge_former(channel);
        }
    }

    /// Keeps the list of former stays short: the two oldest become one.
    fn merge_former(&mut self, channel: &str) {
        let of_channel: Vec<usize> = (0..self.former.len()).filter(|at| self.former[*at].channel == channel).collect();
        if let [oldest, second, ..] = of_channel[..]
            && of_channel.len() > MAX_STAYS
        {
            self.former[second].start = self.former[oldest].start;
            self.former.remove(oldest);
        }
    }

    /// The attribute `_sync`.
    pub fn metadata(&self, revision: Value, cas: &str, checksum: &str) -> Value {
        let mut metadata = Map::new();
        metadata.insert("rev".into(), revision);
        if self.deleted {
            metadata.insert("flags".into(), json!(1));
        }
        metadata.insert("sequence".into(), json!(self.sequence));
        if !self.unused.is_empty() {
            metadata.insert("unused_sequences".into(), json!(self.unused));
        }
        metadata.insert("recent_sequences".into(), json!(self.recent));
        let channels = self.channels.iter().map(|(channel, standing)| {
            let value = match standing {
                Standing::Member => Value::Null,
                Standing::Left { sequence, revision, deletion } => Standing::left(*sequence, json!({"rev": revision}), *deletion),
            };
            (channel.clone(), value)
        });
        metadata.insert("channels".into(), Value::Object(channels.collect()));
        metadata.insert("cas".into(), json!(cas));
        metadata.insert("value_crc32c".into(), json!(checksum));
        metadata.insert("channel_set".into(), stays(&self.stays));
        metadata.insert("channel_set_history".into(), stays(&self.former));
        Value::Object(metadata)
    }
}

fn stays(stays: &[Stay]) -> Value {
    let stay = |Stay { channel, start, end }: &Stay| match end {
        Some(end) => json!({"name": channel, "start": start, "end": end}),
        None => json!({"name": channel, "start": start}),
    };
    if stays.is_empty() { Value::Null } else { stays.iter().map(stay).collect() }
}
