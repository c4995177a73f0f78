//! What one batch writes, and what it publishes.

use std::collections::hash_map::Entry;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use rustc_hash::FxHashMap;
use serde::{Deserialize, Serialize};

use crate::block::{Block, BlockCodec, BlockState};
use crate::channel::{Channel, ChannelMap};
use crate::clock::{Epoch, PublishedClock, from_json, to_json};
use crate::decode::PrincipalKind;
use crate::engine::{ArrivedSet, SequencerState};
pub use crate::entries::Entries;
use crate::entry::ChangeEntry;
use crate::error::Result;
use crate::feed::FeedPosition;
use crate::key::{BlockIndex, CacheKey};
use crate::missing::MissingBase;
use crate::pointer::Pointer;
use crate::sequence::{RangeSet, Sequence, SequenceRange};

/// What a batch stores.
#[derive(Clone, Debug)]
pub struct WriteBatch {
    /// The writer's term.
    pub epoch: Epoch,
    /// How blocks are written.
    pub codec: Arc<dyn BlockCodec>,
    /// Entries that arrived.
    pub entries: Entries,
    /// Entries that stable has passed, whose predecessors are to be marked superseded.
    pub marks: Vec<Arc<ChangeEntry>>,
    /// A bound of the stable sequence that can be published while the batch is in flight: that of its own clock. Blocks wholly at or
    /// below it may be dropped from a directory by anyone, so what is added to them rewrites the directory always.
    pub stable: Sequence,
    /// Blocks that this writer knows to be in their directory.
    pub listed: Arc<ListedBlocks>,
}

impl WriteBatch {
    /// The changes of blocks, one delta a block.
    pub fn block_deltas(&self) -> Vec<BlockDelta> {
        let capacity = self.codec.capacity();
        let mut deltas: FxHashMap<(Channel, BlockIndex), BlockDelta> = FxHashMap::default();
        self.for_each_change(|change| {
            let (index, offset) = Block::locate(change.sequence, capacity);
            let delta = deltas.entry((change.channel.clone(), index)).or_insert_with(|| BlockDelta {
                channel: change.channel.clone(),
                index,
                changes: Vec::new(),
                adds_rows: false,
            });
            delta.changes.push((offset, change.state));
            delta.adds_rows |= change.own;
        });
        let mut deltas: Vec<BlockDelta> = deltas.into_values().collect();
        deltas.sort_unstable_by(|a, b| (&a.channel, a.index).cmp(&(&b.channel, b.index)));
        deltas
    }

    /// Calls `change` for every state the batch raises.
    #[inline]
    pub fn for_each_change<'a>(&'a self, mut change: impl FnMut(StateChange<'a>)) {
        for entry in &self.entries {
            entry_states(entry, &mut change);
        }
        for entry in &self.marks {
            entry_marks(entry, &mut change);
        }
    }
}

/// One state that is raised.
#[derive(Clone, Copy, Debug)]
pub struct StateChange<'a> {
    /// The channel.
    pub channel: &'a Channel,
    /// The position.
    pub sequence: Sequence,
    /// The state it is raised to.
    pub state: BlockState,
    /// Whether it is an entry's own, which must be found through the directory; otherwise it is a mark on what is superseded.
    pub own: bool,
}

/// The states that `entry` itself raises. A departure is superseded in the star channel from the start: so the star
/// channel's blocks know of every sequence document.
#[inline]
pub fn entry_states<'a>(entry: &'a ChangeEntry, mut change: impl FnMut(StateChange<'a>)) {
    let sequence = entry.position();
    let state = if entry.in_star() { BlockState::Present } else { BlockState::Superseded };
    change(StateChange { channel: entry.star(), sequence, state, own: true });
    for c in entry.channels() {
        let state = if c.membership.is_removal() { BlockState::Removal } else { BlockState::Present };
        change(StateChange { channel: &c.channel, sequence, state, own: true });
    }
}

/// The states that what `entry` supersedes gets.
#[inline]
pub fn entry_marks<'a>(entry: &'a ChangeEntry, mut change: impl FnMut(StateChange<'a>)) {
    let state = BlockState::Superseded;
    for &sequence in entry.supersedes() {
        if entry.in_star() {
            change(StateChange { channel: entry.star(), sequence, state, own: false });
        }
        for c in entry.channels() {
            if sequence.rank() >= c.since.rank() {
                change(StateChange { channel: &c.channel, sequence, state, own: false });
            }
        }
    }
}

/// The changes of one block.
#[derive(Clone, Debug)]
pub struct BlockDelta {
    /// The channel.
    pub channel: Channel,
    /// The block.
    pub index: BlockIndex,
    /// Offset in the block, and the state it is raised to. Offsets may repeat.
    pub changes: Vec<(u32, BlockState)>,
    /// Whether some are entries' own states, so that the block must be in the directory, rather than only marks on superseded ones.
    pub adds_rows: bool,
}

impl BlockDelta {
    /// A delta whose present rows and removals are entries' own.
    pub fn new(channel: Channel, index: BlockIndex, changes: Vec<(u32, BlockState)>) -> Self {
        let adds_rows = changes.iter().any(|(_, state)| state.is_live());
        BlockDelta { channel, index, changes, adds_rows }
    }

    /// Raises the states in `block`; whether anything changed.
    pub fn apply(&self, block: &mut Block) -> bool {
        let mut changed = false;
        for &(offset, state) in &self.changes {
            let before = block.raise(offset, state);
            changed |= before as u8 | state as u8 != before as u8;
        }
        changed
    }
}

/// Which blocks a writer knows to be in their channel's directory. Only ever an optimization: a block that is not in it is looked up.
#[derive(Debug, Default)]
pub struct ListedBlocks(Mutex<ChannelMap<RangeSet>>);

impl ListedBlocks {
    /// Whether the block is known to be listed.
    pub fn contains(&self, channel: &Channel, index: BlockIndex) -> bool {
        self.0.lock().get(channel).is_some_and(|set| set.contains(index.0))
    }

    /// Remembers that it is listed.
    pub fn insert(&self, channel: &Channel, index: BlockIndex) {
        self.0.lock().entry(channel.clone()).or_default().insert(index.0, index.0);
    }

    /// Forgets it.
    pub fn remove(&self, channel: &Channel, index: BlockIndex) {
        if let Entry::Occupied(mut at) = self.0.lock().entry(channel.clone()) {
            at.get_mut().remove(index.0, index.0);
        }
    }
}

/// What a commit found out on the way.
#[derive(Clone, Debug, Default)]
pub struct CommitReceipt {
    /// Blocks in which nothing is live any more.
    pub emptied: Vec<(Channel, BlockIndex)>,
}

/// That a user's or role's document changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrincipalChange {
    /// The sequence it used up.
    #[serde(rename = "seq")]
    pub sequence: Sequence,
    /// User or role.
    pub kind: PrincipalKind,
    /// Its name.
    pub name: Box<str>,
}

/// One late entry: a number that high had passed before it arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(u64, Sequence)", into = "(u64, Sequence)")]
pub struct LateEntry {
    /// Its late number: its ordinal among the cache's late entries, from 1.
    pub number: u64,
    /// The entry's position.
    pub sequence: Sequence,
}

impl From<(u64, Sequence)> for LateEntry {
    fn from((number, sequence): (u64, Sequence)) -> Self {
        LateEntry { number, sequence }
    }
}

impl From<LateEntry> for (u64, Sequence) {
    fn from(late: LateEntry) -> Self {
        (late.number, late.sequence)
    }
}

/// How many late entries a page holds.
pub const LATE_PAGE: u64 = 256;

/// A page of late entries, append-only within an epoch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LatePage {
    /// The term of whoever wrote it last.
    pub epoch: Epoch,
    /// The entries, by number.
    pub entries: Vec<LateEntry>,
}

impl LatePage {
    /// The page that holds late number `number` (from 1).
    pub fn of(number: u64) -> u64 {
        number.saturating_sub(1) / LATE_PAGE
    }

    /// Adds `entries`, which are of this page and in order, in the term `epoch`. What is there of their numbers and above was announced and
    /// not published: it goes.
    pub fn append(&mut self, epoch: Epoch, entries: &[LateEntry]) {
        let first = entries.first().map_or(u64::MAX, |late| late.number);
        self.epoch = epoch;
        self.entries.retain(|late| late.number < first);
        self.entries.extend_from_slice(entries);
    }

    /// JSON.
    pub fn to_bytes(&self) -> Bytes {
        to_json(self)
    }

    /// Reads a stored page.
    ///
    /// # Errors
    /// `Corrupt` if it is none.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        from_json(bytes, "page of late entries")
    }
}

/// A missing range, and how long it has been missed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    /// What is missing.
    pub range: SequenceRange,
    /// For how long, in milliseconds, when this was written.
    pub age_ms: u64,
}

/// What one batch changed, for readers that follow the writer; kept in a short ring.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct BatchRecord {
    /// The batch.
    pub number: u64,
    /// The writer's term.
    pub epoch: Epoch,
    /// Entries it stored, in any order; some may be above the high sequence still. Those that are shown again in the place of what is gone
    /// are among them.
    pub entries: Entries,
    /// Entries it withdrew, because the feed took them back. Their numbers are among those given up, or as if they had never come.
    #[serde(default)]
    pub gone: Entries,
    /// Positions of departures among them that only make room for the whole revision of the same
    /// number: their block states stay. Since format 2.
    #[serde(default)]
    pub room: Vec<Sequence>,
    /// Late entries it announced.
    pub late: Vec<LateEntry>,
    /// Principals it saw.
    pub principals: Vec<PrincipalChange>,
    /// The whole skipped list after it. With a base, only the part in its `changed`.
    pub gaps: Vec<Gap>,
    /// All that has been given up by then, and has not come since. With a base, only the part in
    /// its `changed`.
    #[serde(default)]
    pub abandoned: RangeSet,
    /// The stored list of what was missing that this record is relative to. Since format 3.
    #[serde(default)]
    pub base: Option<MissingBase>,
}

/// A record as it is written, but for its entries.
#[derive(Serialize)]
struct RestOfRecord<'a> {
    number: u64,
    epoch: Epoch,
    late: &'a [LateEntry],
    principals: &'a [PrincipalChange],
    gaps: &'a [Gap],
    #[serde(skip_serializing_if = "RangeSet::is_empty")]
    abandoned: &'a RangeSet,
    #[serde(skip_serializing_if = "Option::is_none")]
    base: Option<&'a MissingBase>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gone: Option<&'a Entries>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    room: &'a [Sequence],
}

impl BatchRecord {
    /// Its late entries, page by page.
    pub fn late_pages(&self) -> impl Iterator<Item = (CacheKey, &[LateEntry])> {
        let pages = self.late.chunk_by(|a, b| LatePage::of(a.number) == LatePage::of(b.number));
        pages.map(|entries| (CacheKey::Late(LatePage::of(entries[0].number)), entries))
    }

    /// The record of a batch that changed nothing.
    pub fn new(number: u64, epoch: Epoch) -> Self {
        BatchRecord {
            number,
            epoch,
            entries: Entries::default(),
            gone: Entries::default(),
            room: Vec::new(),
            late: Vec::new(),
            principals: Vec::new(),
            gaps: Vec::new(),
            abandoned: RangeSet::new(),
            base: None,
        }
    }

    /// JSON.
    pub fn to_bytes(&self) -> Bytes {
        let BatchRecord { number, epoch, entries, gone, room, late, principals, gaps, abandoned, base } = self;
        let gone = Some(gone).filter(|gone| !gone.is_empty());
        let (number, epoch) = (*number, *epoch);
        let rest = to_json(&RestOfRecord { number, epoch, late, principals, gaps, abandoned, base: base.as_ref(), gone, room });
        let entries = entries.joined();
        let mut out = Vec::with_capacity(entries.len() + rest.len() + 16);
        out.extend_from_slice(br#"{"entries":["#);
        out.extend_from_slice(entries);
        out.extend_from_slice(b"],");
        out.extend_from_slice(&rest[1..]);
        out.into()
    }

    /// Reads a stored record.
    ///
    /// # Errors
    /// `Corrupt` if it is none.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        from_json(bytes, "batch record")
    }
}

/// From where a writer goes on: a feed position, and the sequencer's state at that position.
///
/// It stands by itself: every effect before the position is stored, and it holds the late number, so that no announcement is lost with the clock.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// The term of whoever wrote it last.
    pub epoch: Epoch,
    /// The batch after which it was taken.
    pub batch: u64,
    /// The late number then.
    pub late: u64,
    /// Where to open the feed.
    pub position: FeedPosition,
    /// The sequencer at that position.
    pub sequencer: SequencerState,
    /// Where entries lie that came from after that position.
    #[serde(default)]
    pub floor: Floor,
    /// While a cache is built, the positions of entries whose marks were not written with this
    /// batch or an earlier one. Since format 3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unmarked: Option<ArrivedSet>,
}

/// A bound of what lies beyond a feed position: every entry that came from after it has a sequence above `stable`, or is a late one with a number above
/// `late`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Floor {
    /// A stable sequence.
    pub stable: Sequence,
    /// A late number.
    pub late: u64,
}

impl Checkpoint {
    /// The beginning of the feed. A term that finds no checkpoint leaves this one: a first checkpoint of a writer before it would otherwise be
    /// taken for its own.
    pub fn beginning(epoch: Epoch) -> Self {
        let (position, sequencer) = (FeedPosition::default(), SequencerState::default());
        Checkpoint { epoch, batch: 0, late: 0, position, sequencer, floor: Floor::default(), unmarked: None }
    }

    /// JSON.
    pub fn to_bytes(&self) -> Bytes {
        to_json(self)
    }

    /// Reads a stored checkpoint.
    ///
    /// # Errors
    /// `Corrupt` if it is none.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        from_json(bytes, "checkpoint")
    }
}

/// What is made visible after its batches are stored.
#[derive(Clone, Debug)]
pub struct Publication {
    /// Where the documents of the record's entries have their newest rows, if the writer keeps pointers. Written before all else, when
    /// this batch and all before it are stored: so whoever reads a pointer finds every entry that it has passed.
    pub pointers: Vec<Pointer>,
    /// The record, of the clock's batch number.
    pub record: Arc<BatchRecord>,
    /// Slots of the ring.
    pub ring: u64,
    /// The feed's name and the checkpoint, if one is due.
    pub checkpoint: Option<(String, Checkpoint)>,
    /// The clock after it.
    pub clock: PublishedClock,
}
