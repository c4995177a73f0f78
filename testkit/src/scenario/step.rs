//! The parts of a scenario, as data.

use sluicegate_core::SequenceRange;
use sluicegate_core::changes::{Delivery, SequenceId};
use sluicegate_core::decode::PrincipalKind;
use sluicegate_core::sequence::RangeSet;

/// One line of a file.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Line {
    /// The number of the line, from 1.
    pub(super) number: usize,
    pub(super) step: Step,
    /// The text of the line, and the expectation in it.
    pub(super) text: String,
    pub(super) expected: String,
    /// The peer's state, which is accepted, too: for a line that `ours` follows.
    pub(super) peer: Option<Vec<(StateKey, Value)>>,
}

/// The action or question of a line.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Step {
    New(Box<Settings>),
    Events(Vec<Event>),
    /// Milliseconds since the cache was made.
    At(u64),
    /// Milliseconds.
    Wait(u64),
    Restart,
    Fresh,
    Prune(usize),
    State(Vec<(StateKey, Value)>),
    Ask {
        client: Option<String>,
        question: Question,
        expected: Answered,
    },
    Follow {
        name: String,
        question: Question,
    },
    Next {
        name: String,
        rows: Rows,
    },
    Close(String),
    Poll {
        name: String,
        question: Question,
    },
    Waits(String),
    Returns {
        name: String,
        expected: Answered,
    },
    StatsBegin,
    Stats(Vec<(StatsKey, u64)>),
    Merge {
        low: u64,
        sources: Vec<MergeSource>,
        rows: Rows,
    },
    Id(IdCheck),
}

/// The settings of a cache. The product's default for those that are not given.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Settings {
    pub(super) max_wait: Option<u64>,
    pub(super) max_pending: Option<usize>,
    pub(super) skip_wait: Option<u64>,
    pub(super) initial: Option<u64>,
    pub(super) tail_min: Option<usize>,
    pub(super) tail_max: Option<usize>,
    pub(super) max_channels: Option<usize>,
    pub(super) late_kept: Option<usize>,
    /// Whether the whole cache is checked at the end.
    pub(super) verify: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            max_wait: None,
            max_pending: None,
            skip_wait: None,
            initial: None,
            tail_min: None,
            tail_max: None,
            max_channels: None,
            late_kept: None,
            verify: true,
        }
    }
}

/// An action of a gateway or another program.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Event {
    /// A document with these metadata.
    Document(Box<Document>),
    /// A write by a gateway, which keeps the metadata.
    Put(Put),
    /// A user or role.
    Principal {
        kind: PrincipalKind,
        name: String,
        /// `None` for the gateway's next one.
        sequence: Option<u64>,
        channels: Vec<String>,
    },
    Unused(SequenceRange),
    /// A document is removed from the bucket with all its attributes.
    Purge {
        id: String,
        collection: u32,
    },
    /// A sequence is allocated, and the feed delivers nothing for it: it was not used, or its
    /// document is only in the bucket.
    Allocated(u64),
}

impl Event {
    /// The collection of the document that it is about.
    pub(super) fn collection(&self) -> Option<u32> {
        match self {
            Event::Document(document) => Some(document.collection),
            Event::Put(put) => Some(put.collection),
            Event::Purge { collection, .. } => Some(*collection),
            Event::Principal { .. } | Event::Unused(_) | Event::Allocated(_) => None,
        }
    }
}

/// The metadata of a document, word for word.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Document {
    pub(super) id: String,
    pub(super) sequence: u64,
    pub(super) revision: String,
    pub(super) channels: Vec<String>,
    pub(super) left: Vec<Left>,
    /// In the order written; `None` if there is no list.
    pub(super) recent: Option<Vec<u64>>,
    pub(super) unused: Vec<u64>,
    /// It is a tombstone.
    pub(super) deleted: bool,
    /// The feed delivers it as a deletion.
    pub(super) deletion: bool,
    /// The metadata's CAS is that of the event.
    pub(super) same_cas: bool,
    /// The metadata's checksum is that of the body.
    pub(super) same_checksum: bool,
    /// The current version: source and value.
    pub(super) version: Option<(String, u64)>,
    pub(super) collection: u32,
}

/// A channel that a document has left.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Left {
    pub(super) channel: String,
    pub(super) sequence: u64,
    pub(super) revision: String,
    pub(super) by_deletion: bool,
}

/// A write by a gateway.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Put {
    pub(super) id: String,
    pub(super) deleted: bool,
    /// The channels it is in from now on; `None` for those before.
    pub(super) channels: Option<Vec<String>>,
    /// The feed leaves it out.
    pub(super) quiet: bool,
    pub(super) sequence: Option<u64>,
    /// Sequences that the write allocated and did not use.
    pub(super) unused: Vec<u64>,
    pub(super) collection: u32,
}

/// A request for changes.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Question {
    pub(super) channels: Vec<String>,
    /// The collection, if there is one.
    pub(super) keyspace: Option<u32>,
    /// The user whose channels are requested; needs users.
    pub(super) user: Option<String>,
    pub(super) since: Option<SequenceId>,
    pub(super) limit: Option<usize>,
    pub(super) active: bool,
    /// Rows are compared by their versions, not their revisions.
    pub(super) versions: bool,
    pub(super) delivery: Delivery,
    pub(super) late: Option<u64>,
}

/// An expected answer.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Answered {
    pub(super) rows: Rows,
    /// The position of the client after it.
    pub(super) last: Option<String>,
}

/// The expected rows of an answer.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Rows {
    None,
    Count(usize),
    /// Documents, in order.
    Documents(Vec<String>),
    /// Sequences, in order.
    Sequences(Vec<u64>),
    /// Sequences in any order.
    Set(Vec<u64>),
    /// Rows, in order.
    Listed(Vec<Row>),
}

/// An expected row of an answer. A document or revision that is not given is not compared.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Row {
    pub(super) id: String,
    pub(super) document: Option<String>,
    pub(super) revision: Option<String>,
    pub(super) deleted: bool,
    /// Sorted.
    pub(super) removed: Vec<String>,
}

/// A value of the writer or the clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StateKey {
    Next,
    Stable,
    High,
    Settled,
    Pending,
    Skipped,
    Missing,
    Late,
    Abandoned,
    Duplicates,
    Unused,
    Cached,
    EverSkipped,
    Superseded,
    Principals,
    Ignored,
    Foreign,
    Invalid,
}

impl StateKey {
    /// Names and keys.
    pub(super) const ALL: [(&'static str, StateKey); 18] = [
        ("next", StateKey::Next),
        ("stable", StateKey::Stable),
        ("high", StateKey::High),
        ("settled", StateKey::Settled),
        ("pending", StateKey::Pending),
        ("skipped", StateKey::Skipped),
        ("missing", StateKey::Missing),
        ("late", StateKey::Late),
        ("abandoned", StateKey::Abandoned),
        ("dup", StateKey::Duplicates),
        ("unused", StateKey::Unused),
        ("cached", StateKey::Cached),
        ("everskipped", StateKey::EverSkipped),
        ("superseded", StateKey::Superseded),
        ("principals", StateKey::Principals),
        ("ignored", StateKey::Ignored),
        ("foreign", StateKey::Foreign),
        ("invalid", StateKey::Invalid),
    ];

    pub(super) fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, key)| *key == self).map_or("", |(name, _)| name)
    }
}

/// A value of the state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    Number(u64),
    Ranges(RangeSet),
}

impl std::fmt::Display for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Value::Number(number) => number.fmt(f),
            Value::Ranges(ranges) if ranges.is_empty() => f.write_str("-"),
            Value::Ranges(ranges) => {
                for (at, (first, last)) in ranges.iter().enumerate() {
                    let comma = if at == 0 { "" } else { "," };
                    match first == last {
                        true => write!(f, "{comma}{first}")?,
                        false => write!(f, "{comma}{first}-{last}")?,
                    }
                }
                Ok(())
            }
        }
    }
}

/// A value of a reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StatsKey {
    Hits,
    Misses,
    Rows,
    Channels,
    Evicted,
}

impl StatsKey {
    /// Names and keys.
    pub(super) const ALL: [(&'static str, StatsKey); 5] = [
        ("hits", StatsKey::Hits),
        ("misses", StatsKey::Misses),
        ("rows", StatsKey::Rows),
        ("channels", StatsKey::Channels),
        ("evicted", StatsKey::Evicted),
    ];

    pub(super) fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, key)| *key == self).map_or("", |(name, _)| name)
    }
}

/// One channel of a merge.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct MergeSource {
    pub(super) channel: String,
    /// The sequence that granted it; zero for none.
    pub(super) granted: u64,
    /// The sequence after which its rows begin.
    pub(super) start: u64,
}

/// A check of sequence ids.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum IdCheck {
    Parse {
        text: String,
        id: SequenceId,
    },
    Bad {
        text: String,
    },
    Print {
        id: SequenceId,
        text: String,
    },
    Json {
        id: SequenceId,
        json: String,
    },
    ReadJson {
        json: String,
        id: SequenceId,
    },
    /// Strictly ascending.
    Order(Vec<SequenceId>),
}
