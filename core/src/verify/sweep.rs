//! The channels: documents, blocks and directories, from the highest block number down. So the
//! target of a mark nearly always comes after the entry that makes it, and each document and each
//! block is read once. If a target came before, the walk is repeated, with such marks known from
//! the start: a later revision may have a lower sequence.

use std::collections::BTreeMap;
use std::hash::RandomState;
use std::sync::Arc;
use std::task::Poll;

use super::findings::{Action, Finding, Problem};
use super::pass::{Change, Document, Pass};
use super::pointers::Pointers;
use super::rules::{Marks, Met, Newest, Revision};
use super::window::{Facts, Stored, Window};
use crate::batch::{entry_marks, entry_states};
use crate::block::{Block, BlockState};
use crate::channel::{Channel, ChannelMap};
use crate::directory::Directory;
use crate::entry::ChangeEntry;
use crate::error::{ErrorKind, Result};
use crate::key::{BlockIndex, CacheKey};
use crate::scan;
use crate::sequence::{RangeSet, Sequence};

/// Blocks read at once.
const BLOCKS: usize = 64;

/// This many block numbers that no directory lists are checked in any case.
const FEW_BLOCKS: u64 = 1_024;

/// Whether other channels of the star channel's collection are among those that list a block.
fn others_list(star: &Channel, channels: &[Channel]) -> bool {
    channels.iter().any(|channel| channel.collection() == star.collection() && !channel.is_star())
}

/// Yields to other tasks.
async fn yield_now() {
    let mut yielded = false;
    std::future::poll_fn(|context| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// What is known of a channel.
#[derive(Debug, Default)]
struct Seen {
    /// Its directory; none where it cannot be read.
    directory: Option<Directory>,
    /// Blocks that it must list; and those that it lists, and that are not there and need not be.
    needed: RangeSet,
    empty: RangeSet,
    /// Below it, a document that is lost may have superseded a row.
    doubt: Sequence,
    /// Whether a block was rebuilt.
    touched: bool,
}

/// What a walk must know from the start, from an earlier walk.
#[derive(Debug, Default)]
pub(super) struct Known {
    channels: Vec<Channel>,
    /// Marks on blocks that come before the entries that make them.
    marks: Option<Marks>,
    hasher: RandomState,
}

impl Known {
    /// Adds the findings of a walk; returns whether the walk must be repeated.
    pub(super) fn learn(&mut self, swept: Swept) -> bool {
        let Swept { channels, is_late, marks, .. } = swept;
        let is_late = is_late && channels.len() != self.channels.len();
        self.channels = channels;
        let are_new = match &mut self.marks {
            Some(known) => known.merge(&marks),
            None => self.marks.insert(marks).highest().is_some(),
        };
        is_late || are_new
    }
}

/// One walk over all channels.
#[derive(Debug)]
pub(super) struct Sweep<'p, 'a> {
    pass: &'p mut Pass<'a>,
    capacity: u32,
    /// The star channels.
    stars: Vec<Channel>,
    /// Block numbers to check.
    todo: RangeSet,
    seen: ChannelMap<Seen>,
    /// The same channels, in the order in which they were met.
    order: Vec<Channel>,
    /// Channels whose directory lists a block that was passed before they were met.
    late: Vec<Channel>,
    /// For each star channel whose directory is not reliable, the first block number for which it
    /// is not: a missing block may have been there.
    unreliable_from: ChannelMap<u64>,
    /// Marks on blocks that were not checked yet, and on those that were.
    marks: Marks,
    marks_missed: Marks,
    hasher: RandomState,
    newest: Newest,
    pointers: Pointers,
    lost: RangeSet,
    lost_above: RangeSet,
}

/// What a walk came to.
#[derive(Debug)]
pub(super) struct Swept {
    /// All channels met.
    channels: Vec<Channel>,
    /// Whether channels were found too late: some of their blocks were not checked.
    is_late: bool,
    /// Marks on blocks that were checked before the entries that make them.
    marks: Marks,
    /// Sequences that are lost, but for those of `lost_above`.
    pub(super) lost: RangeSet,
    /// Sequences above stable whose documents are broken. Readers take one that is not there for one that comes just now, and leave it
    /// out: so these documents must stay as they are.
    pub(super) lost_above: RangeSet,
}

impl<'p, 'a> Sweep<'p, 'a> {
    /// A walk with what `pass` knows. Of the channels in `known`, directories are looked at from the start.
    pub(super) async fn run(pass: &'p mut Pass<'a>, known: &Known) -> Result<Swept> {
        let capacity = pass.codec.capacity();
        let mut sweep = Sweep {
            capacity,
            stars: Vec::new(),
            todo: RangeSet::new(),
            seen: ChannelMap::default(),
            order: Vec::new(),
            late: Vec::new(),
            unreliable_from: ChannelMap::default(),
            marks: known.marks.clone().unwrap_or_else(|| Marks::new(capacity)),
            marks_missed: Marks::new(capacity),
            hasher: known.hasher.clone(),
            newest: Newest::new(pass.clock.marked, known.hasher.clone()),
            pointers: Pointers::default(),
            lost: RangeSet::new(),
            lost_above: RangeSet::new(),
            pass,
        };
        sweep.know_stars().await?;
        for channel in &known.channels {
            sweep.know(channel, None).await?;
        }
        sweep.extent().await?;
        while let Some(index) = sweep.next_index() {
            sweep.window(index).await?;
            // A store in memory is always ready: yield to others, such as a signal handler.
            yield_now().await;
        }
        for channel in sweep.order.clone() {
            sweep.directory(&channel).await?;
            sweep.counter(&channel).await?;
        }
        sweep.pointers.write(sweep.pass).await?;
        sweep.pass.report.channels = sweep.order.len() as u64;
        Ok(Swept {
            channels: sweep.order,
            is_late: !sweep.late.is_empty(),
            marks: sweep.marks_missed,
            lost: sweep.lost,
            lost_above: sweep.lost_above,
        })
    }

    /// The order in which blocks are checked, highest first: by number, then by slot.
    fn rank(&self, index: BlockIndex) -> (Sequence, u8) {
        Block::range(index, self.capacity).last().rank()
    }

    /// The numbers of the blocks that end in a slot.
    fn blocks_of_slot(&self, slot: u8) -> (u64, u64) {
        let block = |position| Block::locate(position, self.capacity).0.0;
        let first = Sequence::ZERO.in_slot(slot).map_or(0, block);
        let last = Sequence::ZERO.in_slot(slot + 1).map_or(block(Sequence::MAX), |next| block(next) - 1);
        (first, last)
    }

    /// Reads which star channels there are, and their directories.
    async fn know_stars(&mut self) -> Result<()> {
        self.stars = match scan::stars(self.pass.store).await {
            Ok(stars) => stars,
            Err(e) if e.kind() == ErrorKind::Corrupt => {
                self.pass.push(Finding::unreadable(CacheKey::Collections, &e));
                vec![Channel::star()]
            }
            Err(e) => return Err(e),
        };
        for star in self.stars.clone() {
            self.know(&star, None).await?;
        }
        Ok(())
    }

    /// The next block number to check: the highest that is left.
    fn next_index(&mut self) -> Option<BlockIndex> {
        let last = self.todo.last().max(self.marks.highest().map(|index| index.0))?;
        let slots = 0..=self.rank(BlockIndex(last)).1;
        let highest = slots.filter_map(|slot| {
            let (first, last) = self.blocks_of_slot(slot);
            let todo = self.todo.within(first, last).next_back().map(|(_, last)| last);
            todo.max(self.marks.highest_within(first, last))
        });
        let next = highest.map(BlockIndex).max_by_key(|index| self.rank(*index))?;
        self.todo.remove(next.0, next.0);
        Some(next)
    }

    /// Reads a channel's directory, once. `at`: the window in which it is met.
    async fn know(&mut self, channel: &Channel, at: Option<BlockIndex>) -> Result<()> {
        if self.seen.contains_key(channel) {
            return Ok(());
        }
        let directory = match scan::directory(self.pass.store, channel).await {
            Ok(directory) => Some(directory),
            Err(e) if e.kind() == ErrorKind::Corrupt => {
                self.pass.push(Finding::unreadable(CacheKey::Directory(channel.clone()), &e));
                None
            }
            Err(e) => return Err(e),
        };
        let at = at.map(|at| self.rank(at));
        for index in directory.iter().flat_map(|directory| directory.blocks.iter()).flat_map(|(first, last)| first..=last) {
            let rank = self.rank(BlockIndex(index));
            if at.is_none_or(|at| rank < at) {
                self.todo.insert(index, index);
            } else if at.is_some_and(|at| rank > at) && self.late.last() != Some(channel) {
                // The walk has passed these, and does not go back.
                self.late.push(channel.clone());
            }
        }
        self.seen.insert(channel.clone(), Seen { directory, ..Seen::default() });
        self.order.push(channel.clone());
        Ok(())
    }

    /// Finds the block numbers to check beside those that directories list, and the star channels
    /// whose directories are not reliable.
    ///
    /// A star channel's block without live rows need not be listed, so numbers that no directory
    /// lists are checked, too, unless that costs more than the listed ones.
    async fn extent(&mut self) -> Result<()> {
        let published: Vec<Sequence> = self.pass.published.batches.keys().copied().collect();
        for sequence in published {
            let (index, _) = Block::locate(sequence, self.capacity);
            self.todo.insert(index.0, index.0);
        }
        let (high, _) = Block::locate(self.pass.clock.high, self.capacity);
        let (_, last_of_numbers) = self.blocks_of_slot(0);
        let mut listed: Vec<(u64, u64)> = self.todo.within(0, last_of_numbers).collect();
        listed.push((high.0, high.0));
        listed.sort_unstable();
        let few = self.todo.count().saturating_mul(4).saturating_add(FEW_BLOCKS);
        let mut next = 0;
        for (first, last) in listed {
            if first.saturating_sub(next) <= few {
                self.todo.insert(next, first);
            }
            next = next.max(last.saturating_add(1));
        }
        let mut top = self.todo.within(0, last_of_numbers).next_back().map_or(0, |(_, last)| last);
        for star in self.stars.clone() {
            let directory = self.seen.get(&star).and_then(|seen| seen.directory.as_ref());
            if directory.is_some_and(|directory| !directory.blocks.is_empty()) {
                continue;
            }
            // Nothing is listed: either nothing was ever stored, or the directory is missing.
            while self.star_block_from(&star, top + 1, top + 1).await?.is_some() {
                top += 1;
                self.todo.insert(top, top);
            }
            self.find_slots(&star).await?;
            let mut first = None;
            for (a, b) in self.todo.iter() {
                first = self.star_block_from(&star, a, b).await?;
                if first.is_some() {
                    break;
                }
            }
            if first.is_some() || self.counted(&star).await? != Some(0) {
                self.unreliable_from.insert(star, first.unwrap_or(0));
            }
        }
        Ok(())
    }

    /// Finds the blocks in higher slots of a star channel whose directory is missing. They have the
    /// same numbers as those in the first slot. The slots of a number are used in order.
    async fn find_slots(&mut self, star: &Channel) -> Result<()> {
        let (_, last_of_numbers) = self.blocks_of_slot(0);
        let numbers: Vec<(u64, u64)> = self.todo.within(0, last_of_numbers).collect();
        for slot in 1..Sequence::SLOTS {
            let mut is_used = false;
            for (first, last) in &numbers {
                let (first, last) = (BlockIndex(*first), BlockIndex(*last));
                let ends = (Block::range(first, self.capacity).first(), Block::range(last, self.capacity).last());
                let (Some(first), Some(last)) = (ends.0.in_slot(slot), ends.1.in_slot(slot)) else { continue };
                let (first, last) = (Block::locate(first, self.capacity).0.0, Block::locate(last, self.capacity).0.0);
                if self.star_block_from(star, first, last).await?.is_some() {
                    is_used = true;
                    self.todo.insert(first, last);
                }
            }
            if !is_used {
                break;
            }
        }
        Ok(())
    }

    /// The first number from `first` to `last` for which a star channel has a block.
    async fn star_block_from(&self, star: &Channel, first: u64, last: u64) -> Result<Option<u64>> {
        let mut next = first;
        while next <= last {
            let some: Vec<u64> = (next..=last).take(BLOCKS).collect();
            let keys: Vec<CacheKey> = some.iter().map(|index| CacheKey::Block(star.clone(), BlockIndex(*index))).collect();
            let found = self.pass.get_many(&keys).await?;
            if let Some(at) = found.iter().position(Option::is_some) {
                return Ok(Some(some[at]));
            }
            next += BLOCKS as u64;
        }
        Ok(None)
    }

    /// A channel's counter; none if it cannot be read.
    async fn counted(&self, channel: &Channel) -> Result<Option<u64>> {
        match self.pass.store.increment(&CacheKey::Counter(channel.clone()), 0).await {
            Ok(count) => Ok(Some(count)),
            Err(e) if e.kind() == ErrorKind::Corrupt => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn lists(&self, channel: &Channel, index: BlockIndex) -> bool {
        let directory = self.seen.get(channel).and_then(|seen| seen.directory.as_ref());
        directory.is_some_and(|directory| directory.blocks.contains(index.0))
    }

    async fn window(&mut self, index: BlockIndex) -> Result<()> {
        let mut window = Window::new(index, self.capacity);
        let mut channels = self.stars.clone();
        channels.extend(self.order.iter().filter(|channel| !channel.is_star() && self.lists(channel, index)).cloned());
        let recorded = self.pass.published.batches.range(window.range.first()..=window.range.last());
        window.ask(recorded.map(|(sequence, _)| *sequence));
        while !channels.is_empty() {
            self.load(&mut window, &channels).await?;
            self.read_asked(&mut window).await?;
            if self.lacks_rows(&window) {
                window.ask_all();
                self.read_asked(&mut window).await?;
            }
            channels =
                window.cells.iter().filter(|(_, cell)| cell.stored.is_none()).map(|(channel, _)| channel.clone()).collect();
        }
        let Window { cells, documents, .. } = &mut window;
        self.marks.take(index, documents, |channel, offset, certain| {
            if let Some(cell) = cells.get_mut(channel) {
                cell.marked.add(offset, certain);
            }
        });
        self.settle(window).await
    }

    async fn read_asked(&mut self, window: &mut Window) -> Result<()> {
        for page in window.take_asked().chunks(scan::PAGE) {
            self.read(window, page).await?;
        }
        Ok(())
    }

    /// Whether the block of a star channel lacks a row that belongs into it. The store may have
    /// lost the block, and a later commit may have made it anew. Then the block may lack other
    /// rows, which nothing else names.
    fn lacks_rows(&self, window: &Window) -> bool {
        self.stars.iter().filter_map(|star| window.cells.get(star)).any(|cell| {
            let Some(Stored::Block(block)) = &cell.stored else { return false };
            let is_lacking = |(offset, _): (u32, BlockState)| {
                block.get(offset) == BlockState::Absent && self.pass.is_required(window.sequence(offset))
            };
            cell.own.iter().any(is_lacking)
        })
    }

    /// Reads the blocks of these channels, and asks for the documents of what they name.
    async fn load(&mut self, window: &mut Window, channels: &[Channel]) -> Result<()> {
        let index = window.index;
        for some in channels.chunks(BLOCKS) {
            for channel in some {
                self.know(channel, Some(index)).await?;
            }
            let keys: Vec<CacheKey> = some.iter().map(|channel| CacheKey::Block(channel.clone(), index)).collect();
            for (channel, found) in some.iter().zip(self.pass.get_many(&keys).await?) {
                let stored = match found.transpose() {
                    Ok(bytes) => Stored::of(bytes.as_deref(), self.pass.codec.as_ref()),
                    Err(e) => Stored::Unreadable(e),
                };
                if let Stored::Block(block) = &stored {
                    self.pass.report.blocks += 1;
                    self.pass.report.rows += u64::from(block.live_count());
                    let named: Vec<Sequence> = block.iter().map(|(offset, _)| window.sequence(offset)).collect();
                    window.ask(named);
                } else if channel.is_star() && self.may_be_lost(channel, &stored, index, others_list(channel, channels)) {
                    window.ask_all();
                }
                window.cell(channel).stored = Some(stored);
            }
        }
        Ok(())
    }

    /// Whether an unreadable block of a star channel may have named a row. `others`: whether other
    /// channels of the collection list theirs.
    fn may_be_lost(&self, star: &Channel, stored: &Stored, index: BlockIndex, others: bool) -> bool {
        matches!(stored, Stored::Unreadable(_))
            || others
            || self.lists(star, index)
            || self.unreliable_from.get(star).is_some_and(|first| *first <= index.0)
    }

    /// Reads documents, and takes down what follows from them.
    async fn read(&mut self, window: &mut Window, page: &[Sequence]) -> Result<()> {
        let mut entries = Vec::with_capacity(page.len());
        for (sequence, document) in self.pass.documents(page).await? {
            match document {
                Document::Entry(entry) => entries.push(entry),
                Document::Missing => {
                    let restored = if self.pass.term.is_some() { self.pass.restore(sequence).await? } else { None };
                    if restored.is_none()
                        && sequence.number() > self.pass.clock.high
                        && let Some(batch) = self.pass.published.batches.get(&sequence)
                    {
                        let detail = format!("batch {batch} stored it, and it is not there");
                        self.pass.found(Problem::Missing, CacheKey::Sequence(sequence), detail);
                    }
                    entries.extend(restored);
                }
                Document::Broken(finding) => {
                    self.pass.push(finding.clone());
                    let restored = if self.pass.term.is_some() { self.pass.restore(sequence).await? } else { None };
                    match restored {
                        Some(entry) => entries.push(entry),
                        None => drop(window.broken.insert(sequence, finding)),
                    }
                }
            }
        }
        self.pass.report.documents += entries.len() as u64;
        let first_met = |entry: &&Arc<ChangeEntry>| entry.in_star() && !self.newest.knows(entry.star(), entry.document());
        let documents = entries.iter().filter(first_met).map(|entry| entry.document()).collect();
        self.pointers.check(self.pass, documents).await?;
        for entry in entries {
            self.entry(window, &entry);
        }
        Ok(())
    }

    fn entry(&mut self, window: &mut Window, entry: &ChangeEntry) {
        let sequence = entry.position();
        let revision = Revision::new(entry, &self.hasher);
        window.documents.insert(window.offset(sequence), revision);
        entry_states(entry, |change| {
            let offset = window.offset(change.sequence);
            window.cell(change.channel).own.raise(offset, change.state);
        });
        if self.pass.published.given_up.contains(sequence.0) {
            // It comes just now, or has been withdrawn: it supersedes nothing yet, or no more.
            return;
        }
        let certain = sequence.number() <= self.pass.clock.marked;
        entry_marks(entry, |change| self.mark(window.index, change.channel, change.sequence, revision, certain));

        let star = entry.in_star().then(|| entry.star());
        for channel in star.into_iter().chain(entry.channels().iter().map(|change| &change.channel)) {
            let pair = match self.newest.meet(channel, entry.document(), sequence) {
                Met::First => continue,
                Met::Below { other } => (sequence, other),
                Met::Above { other } => (other, sequence),
            };
            window.cell(channel).pairs.push(pair);
        }
        if self.pass.is_required(sequence) {
            self.pointers.raise(entry);
        }
    }

    /// Records that a revision marks a row as superseded. `at`: the blocks that are being checked.
    fn mark(&mut self, at: BlockIndex, channel: &Channel, sequence: Sequence, by: Revision, certain: bool) {
        let (index, _) = Block::locate(sequence, self.capacity);
        let is_passed = self.rank(index) > self.rank(at);
        let marks = if is_passed { &mut self.marks_missed } else { &mut self.marks };
        marks.add(channel, sequence, by, certain);
    }

    /// Judges all blocks of the window, and rebuilds what is wrong.
    async fn settle(&mut self, mut window: Window) -> Result<()> {
        let mut channels: Vec<Channel> = window.cells.keys().cloned().collect();
        channels.sort_unstable();
        let mut lost: BTreeMap<Sequence, Channel> = BTreeMap::new();
        for channel in &channels {
            self.find_older(&mut window, channel).await?;
            let star = self.seen.get(Channel::shared_star(channel.collection())).and_then(|star| star.directory.as_ref());
            let known_lost = star.map(|star| star.lost.clone());
            let known_lost = known_lost.as_ref();
            let is_needed = |sequence: Sequence| self.pass.is_required(sequence) && !self.pass.is_left_out(sequence, known_lost);
            let doubt = window.doubt(channel, is_needed);
            let listed = self.lists(channel, window.index);
            let Some(seen) = self.seen.get_mut(channel) else { continue };
            seen.doubt = std::cmp::max_by_key(seen.doubt, doubt, |lost| lost.rank());
            let facts = Facts {
                listed,
                valid_from: seen.directory.as_ref().map_or(Sequence::ZERO, |directory| directory.valid_from),
                doubt: seen.doubt,
                marked: self.pass.clock.marked,
                unpublished: self.pass.term.is_some(),
            };
            self.settle_block(&window, channel, facts, known_lost, &mut lost).await?;
        }
        for (sequence, channel) in &lost {
            let is_broken = window.broken.contains_key(sequence);
            if !is_broken {
                let detail = format!("{} shows it, and it is not there", CacheKey::Block(channel.clone(), window.index));
                self.pass.found(Problem::Missing, CacheKey::Sequence(*sequence), detail);
            }
            let lost =
                if is_broken && sequence.number() > self.pass.clock.stable { &mut self.lost_above } else { &mut self.lost };
            lost.insert(sequence.0, sequence.0);
        }
        if self.pass.term.is_some() {
            for sequence in window.broken.keys().filter(|sequence| !lost.contains_key(sequence)) {
                self.remove_broken(*sequence).await?;
            }
        }
        Ok(())
    }

    /// Marks rows that no entry's own list names, and that are older than another of the same document all the same.
    async fn find_older(&mut self, window: &mut Window, channel: &Channel) -> Result<()> {
        let pairs = std::mem::take(&mut window.cell(channel).pairs);
        for (low, high) in pairs {
            if window.range.contains(low) {
                let offset = window.offset(low);
                let cell = window.cell(channel);
                if cell.marked.at(offset) == super::rules::Superseded::Yes || !cell.own.get(offset).is_live() {
                    continue;
                }
                if high.number() > self.pass.clock.marked {
                    cell.marked.add(offset, false);
                    continue;
                }
            }
            let both = self.pass.store.entries(&[low, high]).await?;
            let [Some(low), Some(high)] = &both[..] else { continue };
            // They are one document by their hashes only. And the later revision may have the lower
            // sequence.
            if low.document() != high.document() {
                continue;
            }
            let (older, newer) = if low.is_newer_than(high) { (high, low) } else { (low, high) };
            self.newest.correct(channel, newer.document(), newer.position());
            let (row, certain) = (older.position(), newer.sequence() <= self.pass.clock.marked);
            if window.range.contains(row) {
                let offset = window.offset(row);
                window.cell(channel).marked.add(offset, certain);
            } else {
                let newer = Revision::new(newer, &self.hasher);
                self.mark(window.index, channel, row, newer, certain);
            }
        }
        Ok(())
    }

    async fn settle_block(
        &mut self,
        window: &Window,
        channel: &Channel,
        facts: Facts,
        known_lost: Option<&RangeSet>,
        lost: &mut BTreeMap<Sequence, Channel>,
    ) -> Result<()> {
        let key = CacheKey::Block(channel.clone(), window.index);
        let Some(stored) = window.cells.get(channel).and_then(|cell| cell.stored.as_ref()) else { return Ok(()) };
        let pass = &mut *self.pass;
        let judge = |pass: &Pass<'_>, stored: &Stored| {
            let is_left_out = |sequence: Sequence| pass.is_left_out(sequence, known_lost);
            window.judge(channel, stored, facts, |sequence| pass.is_required(sequence), is_left_out)
        };
        let mut verdict = judge(pass, stored);
        let findings = std::mem::take(&mut verdict.findings);
        let first = findings.first().map(|finding| finding.detail.clone());
        findings.into_iter().for_each(|finding| pass.push(finding));
        let is_there = !matches!(stored, Stored::Missing);
        let mut rebuilt = false;
        if verdict.is_wrong && pass.term.is_some() && (is_there || verdict.right.set_count() > 0) {
            let (shared, codec) = (&*pass, pass.codec.clone());
            rebuilt = shared
                .rewrite(&key, |bytes| {
                    let now = Stored::of(bytes, codec.as_ref());
                    let now = judge(shared, &now);
                    Ok(if now.is_wrong { Change::Put(codec.encode(&now.right)) } else { Change::Keep })
                })
                .await?;
            if rebuilt {
                pass.did(Action::Rebuilt, key, format!("from the sequence documents: {}", first.unwrap_or_default()));
            }
        }
        for sequence in &verdict.lost {
            lost.entry(*sequence).or_insert_with(|| channel.clone());
        }
        if let Some(seen) = self.seen.get_mut(channel) {
            let index = window.index.0;
            seen.touched |= rebuilt;
            if verdict.is_needed {
                seen.needed.insert(index, index);
            } else if !is_there && verdict.right.set_count() == 0 && facts.listed {
                seen.empty.insert(index, index);
            }
        }
        Ok(())
    }

    /// Removes a document that cannot be read, and that nothing shows.
    async fn remove_broken(&mut self, sequence: Sequence) -> Result<()> {
        if self.pass.remove_broken(sequence).await? {
            let detail = if self.pass.is_required(sequence) {
                "nothing that is known shows it: later rows of its document are there"
            } else {
                "it was not published: it comes again"
            };
            self.pass.did(Action::Removed, CacheKey::Sequence(sequence), detail);
        }
        Ok(())
    }

    /// Looks whether the directory lists what it must, and rebuilds it if not. When all blocks are rebuilt: a directory that lists too
    /// little hides rows, and one that cannot be read does not.
    async fn directory(&mut self, channel: &Channel) -> Result<()> {
        let key = CacheKey::Directory(channel.clone());
        let Some(seen) = self.seen.get(channel) else { return Ok(()) };
        let mut unlisted = seen.needed.clone();
        for (first, last) in seen.directory.iter().flat_map(|directory| directory.blocks.iter()) {
            unlisted.remove(first, last);
        }
        if seen.directory.is_some() {
            for index in unlisted.iter().flat_map(|(first, last)| first..=last) {
                let detail = format!("it does not list block {index}, which shows something");
                self.pass.found(Problem::UnlistedBlock, key.clone(), detail);
            }
        }
        let is_wrong = seen.directory.is_none() || !unlisted.is_empty() || !seen.empty.is_empty();
        // A block that was empty and is not: whoever drops it by what it was must find another version, see `Directory`.
        if self.pass.term.is_none() || !(is_wrong || seen.touched) {
            return Ok(());
        }
        let first_generation = self.pass.clock.batch;
        let written = self.pass.rewrite(&key, |stored| {
            let mut directory = match stored.map(|bytes| Directory::from_bytes(bytes, channel)) {
                Some(Ok(directory)) => directory,
                // Above whatever it had: it grows at most once a batch and block.
                _ => {
                    let mut directory = Directory::new(channel.clone());
                    directory.generation = first_generation;
                    directory
                }
            };
            for (first, last) in seen.needed.iter() {
                directory.blocks.insert(first, last);
            }
            for (first, last) in seen.empty.iter() {
                directory.blocks.remove(first, last);
            }
            directory.generation += 1;
            Ok(Change::Put(directory.to_bytes()))
        });
        if written.await? && is_wrong {
            self.pass.did(Action::Rebuilt, key, "from the blocks that are there");
        }
        Ok(())
    }

    /// Looks whether a channel with blocks has a counter. It says only that the channel has changed, so any number above what it had will do.
    async fn counter(&mut self, channel: &Channel) -> Result<()> {
        let key = CacheKey::Counter(channel.clone());
        let Some(seen) = self.seen.get(channel) else { return Ok(()) };
        if seen.needed.is_empty() && seen.directory.as_ref().is_none_or(|directory| directory.blocks.is_empty()) {
            return Ok(());
        }
        match self.counted(channel).await? {
            Some(0) => self.pass.found(Problem::NoCounter, key.clone(), "the channel has blocks, and its counter is 0"),
            Some(_) => return Ok(()),
            None => self.pass.found(Problem::Unreadable, key.clone(), "not a counter"),
        }
        if self.pass.term.is_some() {
            self.pass.restart_counter(&key).await?;
            self.pass.did(Action::Rebuilt, key, "above the number of batches");
        }
        Ok(())
    }
}
