//! What is checked, document by document.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::{Finding, Problem, VerifyReport, unreadable};
use crate::batch::{BatchRecord, Checkpoint, LATE_PAGE, LateEntry, LatePage};
use crate::block::{Block, BlockCodec, BlockState};
use crate::channel::{Channel, ChannelMap};
use crate::clock::PublishedClock;
use crate::directory::Directory;
use crate::entry::{ChangeEntry, Membership};
use crate::error::{ErrorKind, Result};
use crate::key::{BlockIndex, CacheKey};
use crate::meta::Meta;
use crate::scan;
use crate::sequence::{RangeSet, Sequence};
use crate::store::CacheStore;

/// One look at a cache.
pub(super) struct Verifier<'a> {
    pub(super) store: &'a dyn CacheStore,
    pub(super) codec: Arc<dyn BlockCodec>,
    pub(super) meta: Meta,
    pub(super) clock: PublishedClock,
    /// Sequences on the skipped list: one that comes just now may be stored in part.
    pub(super) unpublished: RangeSet,
    /// The directories of the channels known so far; none where it cannot be read.
    pub(super) directories: ChannelMap<Option<Directory>>,
    /// The same channels, in the order in which they were found.
    pub(super) channels: Vec<Channel>,
    pub(super) max_findings: usize,
    pub(super) report: VerifyReport,
}

/// The newest row of a document that was met in a channel.
struct Newest {
    sequence: Sequence,
    live: bool,
}

impl Verifier<'_> {
    fn found(&mut self, problem: Problem, key: CacheKey, detail: impl Into<String>) {
        self.push(Finding { problem, key, detail: detail.into() });
    }

    fn push(&mut self, finding: Finding) {
        // The same thing may be seen from several sides.
        if self.report.findings.contains(&finding) {
            return;
        }
        if self.report.findings.len() < self.max_findings.max(1) {
            self.report.findings.push(finding);
        } else {
            self.report.more_findings += 1;
        }
    }

    /// Whether readers were promised that everything about the entry is stored.
    fn is_promised(&self, sequence: Sequence) -> bool {
        sequence <= self.clock.high && !self.unpublished.contains(sequence.0)
    }

    pub(super) fn clock(&mut self) {
        let clock = self.clock.clone();
        let rules = [
            (clock.stable <= clock.settled, format!("stable is {}, above settled, {}", clock.stable, clock.settled)),
            (clock.settled <= clock.high, format!("settled is {}, above high, {}", clock.settled, clock.high)),
            (clock.marked <= clock.stable, format!("marked is {}, above stable, {}", clock.marked, clock.stable)),
            (clock.checkpoint <= clock.batch, format!("the checkpoint is of batch {}, after {}", clock.checkpoint, clock.batch)),
            (
                (clock.gaps == 0) == (clock.stable == clock.high),
                format!("{} sequences are missing between stable, {}, and high, {}", clock.gaps, clock.stable, clock.high),
            ),
        ];
        for (_, detail) in rules.into_iter().filter(|(holds, _)| !holds) {
            self.found(Problem::Contradiction, CacheKey::Clock, detail);
        }
    }

    /// The ring of batch records: what readers follow the writer by.
    pub(super) async fn records(&mut self) -> Result<()> {
        let ring = self.meta.ring.max(1);
        let last = self.clock.batch;
        let numbers: Vec<u64> = (last.saturating_sub(ring - 1).max(1)..=last).collect();
        for number in numbers {
            let key = CacheKey::Batch(number % ring);
            let Some(stored) = self.store.get(&key).await? else {
                self.found(Problem::Missing, key, format!("the record of batch {number} is not there"));
                continue;
            };
            let record = match BatchRecord::from_bytes(&stored.value) {
                Ok(record) => record,
                Err(e) => {
                    self.push(unreadable(key, &e));
                    continue;
                }
            };
            if record.number > last {
                // Announced, and not published yet.
                continue;
            }
            if record.number != number {
                self.found(Problem::Contradiction, key, format!("it holds batch {} in the place of {number}", record.number));
                continue;
            }
            if record.epoch.supersedes(self.clock.epoch) {
                let detail = format!("batch {number} is of epoch {}, after the clock's, {}", record.epoch, self.clock.epoch);
                self.found(Problem::Contradiction, key.clone(), detail);
            }
            if number == last {
                self.gaps(&key, &record);
            }
            // At or below high, the channels' blocks tell which documents must be there: what is superseded may be compacted away.
            let above = record.entries.iter().map(|entry| entry.sequence()).filter(|sequence| *sequence > self.clock.high);
            let above: Vec<Sequence> = above.collect();
            for page in above.chunks(scan::PAGE) {
                for (sequence, read) in self.read_entries(page).await? {
                    let key = CacheKey::Sequence(sequence);
                    match read {
                        Ok(Some(_)) => {}
                        Ok(None) => self.found(Problem::Missing, key, format!("batch {number} stored it, and it is not there")),
                        Err(e) => self.push(unreadable(key, &e)),
                    }
                }
            }
            self.entries_in_blocks(&record.entries, true).await?;
        }
        Ok(())
    }

    fn gaps(&mut self, key: &CacheKey, record: &BatchRecord) {
        let count: u64 = record.gaps.iter().map(|gap| gap.range.count()).sum();
        if count != self.clock.gaps {
            let detail = format!("{count} sequences are missing in it, {} by the clock", self.clock.gaps);
            self.found(Problem::Contradiction, key.clone(), detail);
        }
        let first = record.gaps.iter().map(|gap| gap.range.first()).min();
        if let Some(first) = first.filter(|first| *first != self.clock.stable.next()) {
            let detail = format!("the first missing sequence is {first}, and stable is {}", self.clock.stable);
            self.found(Problem::Contradiction, key.clone(), detail);
        }
        for gap in &record.gaps {
            self.unpublished.insert(gap.range.first().0, gap.range.last().0);
        }
    }

    pub(super) async fn late_pages(&mut self) -> Result<()> {
        if self.clock.late == 0 {
            return Ok(());
        }
        for page in 0..=LatePage::of(self.clock.late) {
            let key = CacheKey::Late(page);
            let Some(stored) = self.store.get(&key).await? else {
                self.found(Problem::Missing, key, format!("there have been {} late entries", self.clock.late));
                continue;
            };
            let entries = match LatePage::from_bytes(&stored.value) {
                Ok(page) => page.entries,
                Err(e) => {
                    self.push(unreadable(key, &e));
                    continue;
                }
            };
            let expected = page * LATE_PAGE + 1..=((page + 1) * LATE_PAGE).min(self.clock.late);
            let published: Vec<LateEntry> = entries.into_iter().filter(|late| late.number <= self.clock.late).collect();
            if !published.iter().map(|late| late.number).eq(expected.clone()) {
                let detail = format!("it does not hold the late numbers {} to {}, each once", expected.start(), expected.end());
                self.found(Problem::Contradiction, key.clone(), detail);
            }
            let sequences: Vec<Sequence> = published.iter().map(|late| late.sequence).collect();
            for (sequence, read) in self.read_entries(&sequences).await? {
                if let Ok(None) = read {
                    let detail = format!("{key} announces it as late, and it is not there");
                    self.found(Problem::Missing, CacheKey::Sequence(sequence), detail);
                }
            }
        }
        Ok(())
    }

    pub(super) async fn checkpoint(&mut self, feed: &str) -> Result<()> {
        let key = CacheKey::Checkpoint(feed.to_owned());
        let Some(stored) = self.store.get(&key).await? else {
            if self.clock.checkpoint > 0 {
                self.found(
                    Problem::Missing,
                    key,
                    format!("the clock says that there is one, of batch {}", self.clock.checkpoint),
                );
            }
            return Ok(());
        };
        let checkpoint = match Checkpoint::from_bytes(&stored.value) {
            Ok(checkpoint) => checkpoint,
            Err(e) => {
                self.push(unreadable(key, &e));
                return Ok(());
            }
        };
        // It is stored just before the clock, so it may be one batch ahead.
        let batch = self.clock.batch;
        if checkpoint.batch > batch + 1 {
            self.found(Problem::Contradiction, key.clone(), format!("it is of batch {}, the clock of {batch}", checkpoint.batch));
        }
        if checkpoint.batch < self.clock.checkpoint {
            let detail = format!("it is of batch {}, and one was stored with {}", checkpoint.batch, self.clock.checkpoint);
            self.found(Problem::Contradiction, key.clone(), detail);
        }
        if checkpoint.epoch.supersedes(self.clock.epoch) {
            let detail = format!("it is of epoch {}, after the clock's, {}", checkpoint.epoch, self.clock.epoch);
            self.found(Problem::Contradiction, key.clone(), detail);
        }
        let high = checkpoint.sequencer.next.previous();
        if checkpoint.batch <= batch && high > self.clock.high {
            let detail = format!("it accounts for everything up to {high}, the clock only up to {}", self.clock.high);
            self.found(Problem::Contradiction, key, detail);
        }
        Ok(())
    }

    /// Reads a channel's directory, once.
    pub(super) async fn know(&mut self, channel: &Channel) -> Result<()> {
        if self.directories.contains_key(channel) {
            return Ok(());
        }
        let directory = match scan::directory(self.store, channel).await {
            Ok(directory) => Some(directory),
            Err(e) if e.kind() == ErrorKind::Corrupt => {
                self.push(unreadable(CacheKey::Directory(channel.clone()), &e));
                None
            }
            Err(e) => return Err(e),
        };
        self.directories.insert(channel.clone(), directory);
        self.channels.push(channel.clone());
        Ok(())
    }

    /// The directory lists the block, or cannot be read.
    fn is_listed(&self, channel: &Channel, index: BlockIndex) -> bool {
        self.directories.get(channel).is_none_or(|d| d.as_ref().is_none_or(|d| d.blocks.contains(index.0)))
    }

    /// A stored block; `None` if there is none or it cannot be read, which is reported where it is `wanted`.
    async fn block(&mut self, channel: &Channel, index: BlockIndex, wanted: bool) -> Result<Option<Block>> {
        let key = CacheKey::Block(channel.clone(), index);
        let Some(stored) = self.store.get(&key).await? else {
            if wanted {
                self.found(Problem::Missing, key, "the channel's directory lists it");
            }
            return Ok(None);
        };
        match self.codec.decode(&stored.value) {
            Ok(block) => Ok(Some(block)),
            Err(e) => {
                if wanted {
                    self.push(unreadable(key, &e));
                }
                Ok(None)
            }
        }
    }

    /// Several sequence documents; each with its own error if it cannot be read.
    async fn read_entries(&self, sequences: &[Sequence]) -> Result<Vec<(Sequence, Result<Option<Arc<ChangeEntry>>>)>> {
        match self.store.entries(sequences).await {
            Ok(entries) => Ok(sequences.iter().copied().zip(entries.into_iter().map(Ok)).collect()),
            Err(e) if e.kind() == ErrorKind::Corrupt => {
                let mut read = Vec::with_capacity(sequences.len());
                for sequence in sequences {
                    let stored = self.store.get(&CacheKey::Sequence(*sequence)).await?;
                    let entry = stored.map(|stored| ChangeEntry::from_bytes(&stored.value).map(Arc::new));
                    read.push((*sequence, entry.transpose()));
                }
                Ok(read)
            }
            Err(e) => Err(e),
        }
    }

    /// Walks a channel's blocks and their entries.
    pub(super) async fn channel(&mut self, channel: &Channel) -> Result<()> {
        self.report.channels += 1;
        let Some(Some(directory)) = self.directories.get(channel) else { return Ok(()) };
        let blocks = directory.blocks.clone();
        if !blocks.is_empty() {
            let key = CacheKey::Counter(channel.clone());
            match self.store.increment(&key, 0).await {
                Ok(0) => self.found(Problem::NoCounter, key, "the channel has blocks, and its counter is 0"),
                Ok(_) => {}
                Err(e) if e.kind() == ErrorKind::Corrupt => self.push(unreadable(key, &e)),
                Err(e) => return Err(e),
            }
        }
        let hasher = RandomState::new();
        let mut newest: FxHashMap<u64, Newest> = FxHashMap::default();
        for index in blocks.iter().flat_map(|(a, b)| a..=b).map(BlockIndex) {
            let Some(block) = self.block(channel, index, true).await? else { continue };
            self.report.blocks += 1;
            let first = Block::range(index, self.codec.capacity()).first();
            let named: Vec<(Sequence, BlockState)> =
                block.iter().map(|(at, state)| (Sequence(first.0 + u64::from(at)), state)).collect();
            let mut entries = Vec::new();
            for page in named.chunks(scan::PAGE) {
                let sequences: Vec<Sequence> = page.iter().map(|(sequence, _)| *sequence).collect();
                for ((sequence, read), (_, state)) in self.read_entries(&sequences).await?.into_iter().zip(page) {
                    if let Some(entry) = self.entry(channel, index, sequence, *state, read) {
                        self.row(channel, &entry, *state, &hasher, &mut newest).await?;
                        entries.push(entry);
                    }
                }
            }
            // From the star channel all entries are seen, but those in blocks of it that show nothing any more.
            if channel.is_star() || !self.is_listed(&Channel::star(), index) {
                self.entries_in_blocks(&entries, false).await?;
            }
        }
        let mut lost: Vec<Sequence> =
            newest.into_values().filter(|n| !n.live && n.sequence <= self.clock.stable).map(|n| n.sequence).collect();
        lost.sort_unstable();
        for sequence in lost {
            let key = CacheKey::Block(channel.clone(), Block::locate(sequence, self.codec.capacity()).0);
            self.found(Problem::LostRow, key, format!("{sequence} is its document's newest row, and marked as superseded"));
        }
        Ok(())
    }

    /// Looks at one sequence that a block names, by itself.
    fn entry(
        &mut self,
        channel: &Channel,
        index: BlockIndex,
        sequence: Sequence,
        state: BlockState,
        read: Result<Option<Arc<ChangeEntry>>>,
    ) -> Option<Arc<ChangeEntry>> {
        let block = || CacheKey::Block(channel.clone(), index);
        let key = CacheKey::Sequence(sequence);
        self.report.rows += u64::from(state.is_live());
        let entry = match read {
            Ok(Some(entry)) => entry,
            // What is superseded may be compacted away, or never have arrived.
            Ok(None) if !state.is_live() || !self.is_promised(sequence) => return None,
            Ok(None) => {
                self.found(Problem::Missing, key, format!("{} shows it, and it is not there", block()));
                return None;
            }
            Err(e) => {
                if channel.is_star() || !self.is_listed(&Channel::star(), index) {
                    self.push(unreadable(key, &e));
                }
                return None;
            }
        };
        if channel.is_star() {
            self.report.documents += 1;
        }
        if entry.sequence() != sequence {
            self.found(Problem::Misplaced, key, format!("it is the entry of {}", entry.sequence()));
            return None;
        }
        match entry.membership(channel) {
            None if state.is_live() => {
                self.found(Problem::StrayRow, block(), format!("it shows {sequence}, whose entry is not in the channel"));
            }
            Some(membership) if state != expected(membership) && state != BlockState::Superseded => {
                let detail = format!("it shows {sequence} as {}, by its entry it is {}", word(state), word(expected(membership)));
                self.found(Problem::WrongState, block(), detail);
            }
            _ => {}
        }
        Some(entry)
    }

    /// Looks at one row of a channel beside the earlier ones of its document.
    async fn row(
        &mut self,
        channel: &Channel,
        entry: &ChangeEntry,
        state: BlockState,
        hasher: &RandomState,
        newest: &mut FxHashMap<u64, Newest>,
    ) -> Result<()> {
        if entry.membership(channel).is_none() {
            return Ok(());
        }
        let now = Newest { sequence: entry.sequence(), live: state.is_live() };
        let sequence = now.sequence;
        let Some(before) = newest.insert(hasher.hash_one(entry.document()), now) else { return Ok(()) };
        // Predecessors are marked when stable has passed an entry, and the clock says up to where they are.
        if !before.live || sequence > self.clock.marked {
            return Ok(());
        }
        let same = match self.store.entries(&[before.sequence]).await?.pop().flatten() {
            Some(other) => other.document() == entry.document(),
            None => false,
        };
        if same {
            let key = CacheKey::Block(channel.clone(), Block::locate(before.sequence, self.codec.capacity()).0);
            let detail = format!("it shows {} although {sequence} of the same document came after it", before.sequence);
            self.found(Problem::DuplicateRow, key, detail);
        }
        Ok(())
    }

    /// Looks whether the blocks of all their channels name these entries, and whether directories list those blocks.
    /// `published`: whether they are known to be stored whole.
    async fn entries_in_blocks(&mut self, entries: &[Arc<ChangeEntry>], published: bool) -> Result<()> {
        let capacity = self.codec.capacity();
        let mut wanted: FxHashMap<(Channel, BlockIndex), Vec<(u32, BlockState)>> = FxHashMap::default();
        let star = Channel::star();
        for entry in entries.iter().filter(|entry| published || self.is_promised(entry.sequence())) {
            let (index, offset) = Block::locate(entry.sequence(), capacity);
            let in_star = if entry.in_star() { BlockState::Present } else { BlockState::Superseded };
            wanted.entry((star.clone(), index)).or_default().push((offset, in_star));
            for change in entry.channels() {
                let state = expected(change.membership);
                wanted.entry((change.channel.clone(), index)).or_default().push((offset, state));
            }
        }
        let mut wanted: Vec<_> = wanted.into_iter().collect();
        wanted.sort_unstable_by(|((a, i), _), ((b, j), _)| (a, i).cmp(&(b, j)));
        for ((channel, index), states) in wanted {
            self.know(&channel).await?;
            let valid_from = self.directories.get(&channel).and_then(|d| d.as_ref()).map_or(Sequence::ZERO, |d| d.valid_from);
            let first = Block::range(index, capacity).first();
            let key = CacheKey::Block(channel.clone(), index);
            let listed = self.is_listed(&channel, index);
            // Where it is listed, the walk of the channel tells what is wrong with the block itself.
            let Some(block) = self.block(&channel, index, false).await? else {
                if !listed {
                    self.found(Problem::Missing, key, format!("{} entries belong into it", states.len()));
                }
                continue;
            };
            let mut shown = false;
            for (offset, state) in states {
                let sequence = Sequence(first.0 + u64::from(offset));
                if sequence < valid_from {
                    continue;
                }
                let stored = block.get(offset);
                shown |= stored.is_live();
                if stored == BlockState::Absent {
                    let detail = format!("it does not know {sequence}, which is {} in the channel", word(state));
                    self.found(Problem::WrongState, key.clone(), detail);
                }
            }
            if shown && !listed {
                let key = CacheKey::Directory(channel);
                self.found(Problem::UnlistedBlock, key, format!("it does not list block {}, which shows something", index.0));
            }
        }
        Ok(())
    }
}

/// The state of an entry's own row.
fn expected(membership: Membership) -> BlockState {
    if membership.is_removal() { BlockState::Removal } else { BlockState::Present }
}

fn word(state: BlockState) -> &'static str {
    match state {
        BlockState::Absent => "absent",
        BlockState::Present => "present",
        BlockState::Removal => "a removal",
        BlockState::Superseded => "superseded",
    }
}
