//! The state of a document that a gateway keeps in its metadata.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

/// The list of recent sequences is trimmed at this length …
const MAX_RECENT: usize = 20;
/// … to this many.
const KEPT_RECENT: usize = 5;
/// The limit for former stays in one channel that are kept one by one.
const MAX_STAYS: usize = 5;

/// The state of a document in a channel that it is or was in.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Standing {
    Member,
    Left { sequence: u64, revision: String, deletion: bool },
}

impl Standing {
    /// The entry for a channel that was left, in the form of the metadata.
    pub(super) fn left(sequence: u64, revision: Value, deletion: bool) -> Value {
        match deletion {
            true => json!({"seq": sequence, "rev": revision, "del": true}),
            false => json!({"seq": sequence, "rev": revision}),
        }
    }
}

/// A stay in a channel.
#[derive(Clone, Debug)]
pub(super) struct Stay {
    channel: String,
    start: u64,
    end: Option<u64>,
}

/// A document as the gateway last wrote it.
#[derive(Clone, Debug, Default)]
pub(super) struct Kept {
    pub(super) generation: u64,
    pub(super) revision: String,
    pub(super) sequence: u64,
    pub(super) unused: Vec<u64>,
    pub(super) recent: Vec<u64>,
    /// Recent sequences that the feed has not delivered: the gateway's cache has not seen them, so
    /// they are kept.
    pub(super) untold: BTreeSet<u64>,
    pub(super) channels: BTreeMap<String, Standing>,
    /// The last stay in each channel.
    pub(super) stays: Vec<Stay>,
    /// Those before it.
    pub(super) former: Vec<Stay>,
    pub(super) deleted: bool,
}

impl Kept {
    /// The channels it is in.
    pub(super) fn members(&self) -> Vec<String> {
        let members = self.channels.iter().filter(|(_, standing)| **standing == Standing::Member);
        members.map(|(channel, _)| channel.clone()).collect()
    }

    /// The sequences it names.
    pub(super) fn numbers(&self) -> impl Iterator<Item = u64> + '_ {
        let left = self.channels.values().filter_map(|standing| match standing {
            Standing::Left { sequence, .. } => Some(*sequence),
            Standing::Member => None,
        });
        let stays = self.stays.iter().chain(&self.former).flat_map(|stay| [Some(stay.start), stay.end]).flatten();
        self.recent.iter().copied().chain(left).chain(stays).chain([self.sequence])
    }

    /// Applies a write of document `id`.
    pub(super) fn write(&mut self, id: &str, sequence: u64, unused: &[u64], members: &[String], deleted: bool, quiet: bool) {
        self.generation += 1;
        (self.revision, self.sequence, self.deleted) = (format!("{}-{id}", self.generation), sequence, deleted);
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
    pub(super) fn metadata(&self, revision: Value, cas: &str, checksum: &str) -> Value {
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
