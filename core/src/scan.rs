//! Reading a channel from its directory, blocks and sequence documents.

#[cfg(feature = "runtime")]
use std::collections::BTreeMap;
use std::sync::Arc;

#[cfg(feature = "runtime")]
use bytes::Bytes;

#[cfg(feature = "runtime")]
use crate::batch::entry_states;
use crate::block::{Block, BlockCodec, BlockState};
use crate::channel::Channel;
use crate::collections::Collections;
use crate::directory::Directory;
use crate::document::CollectionId;
use crate::entry::ChangeEntry;
use crate::error::{Error, Result};
use crate::key::{BlockIndex, CacheKey};
use crate::retry;
use crate::sequence::{RangeSet, Sequence, SequenceRange};
use crate::store::CacheStore;
#[cfg(feature = "runtime")]
use crate::store::Versioned;

/// Sequence documents read at once.
pub(crate) const PAGE: usize = 512;

/// The directory of `channel`; an empty one if nothing is stored.
///
/// # Errors
/// `Corrupt`, naming the key, or what the store says.
pub async fn directory<S: CacheStore + ?Sized>(store: &S, channel: &Channel) -> Result<Directory> {
    let key = CacheKey::Directory(channel.clone());
    match store.get(&key).await? {
        Some(found) => Directory::from_bytes(&found.value, channel).map_err(|e| e.with_context("key", &key)),
        None => Ok(Directory::new(channel.clone())),
    }
}

/// One block of `channel`; an empty one if nothing is stored.
///
/// # Errors
/// As [`directory`].
pub async fn block<S: CacheStore + ?Sized>(
    store: &S,
    codec: &dyn BlockCodec,
    channel: &Channel,
    index: BlockIndex,
) -> Result<Block> {
    let key = CacheKey::Block(channel.clone(), index);
    match store.get(&key).await? {
        Some(found) => codec.decode(&found.value).map_err(|e| e.with_context("key", &key)),
        None => Ok(Block::new(codec.capacity())),
    }
}

/// What readers have been shown, by one clock.
#[derive(Clone, Copy, Debug)]
pub struct Shown<'a> {
    /// Everything at or below is stored, but for what is missing.
    pub stable: Sequence,
    /// Positions that are missing or given up. One of them may be stored in part: its commit is
    /// under way, or its writer has died. Nobody is shown it before it is announced.
    pub missing: &'a RangeSet,
}

/// The entries of `sequences`, each of which is said to be there; `None` for those that have been
/// withdrawn since. What is `missing` by now has been withdrawn, and may be stored again in part.
///
/// # Errors
/// `Corrupt` naming the first that is not there.
pub async fn entries<S: CacheStore + ?Sized>(
    store: &S,
    codec: &dyn BlockCodec,
    sequences: &[Sequence],
    missing: &RangeSet,
) -> Result<Vec<Option<Arc<ChangeEntry>>>> {
    let mut found = store.entries(sequences).await?;
    for (sequence, entry) in sequences.iter().zip(&mut found) {
        let is_missing = missing.contains(sequence.0);
        // 0 stands for one that nobody knows.
        if entry.is_none() && (*sequence == Sequence::ZERO || is_needed(store, codec, *sequence, is_missing).await?) {
            return Err(not_there(*sequence));
        }
        entry.take_if(|_| is_missing);
    }
    Ok(found)
}

/// Whether a document that is not there should be: a star channel shows it, and if it `is_missing`,
/// it is lost.
async fn is_needed<S: CacheStore + ?Sized>(
    store: &S,
    codec: &dyn BlockCodec,
    sequence: Sequence,
    is_missing: bool,
) -> Result<bool> {
    let mut is_owed = !is_missing;
    for star in stars(store).await? {
        is_owed = is_owed || is_lost(store, &star, sequence).await?;
    }
    Ok(is_owed && is_live_in_a_star(store, codec, sequence).await?)
}

/// Whether a repair found the document of a sequence, of the collection of this star channel, to be
/// lost.
async fn is_lost<S: CacheStore + ?Sized>(store: &S, star: &Channel, sequence: Sequence) -> Result<bool> {
    Ok(directory(store, star).await?.lost.contains(sequence.0))
}

/// The star channels of all collections that have documents in the cache.
///
/// # Errors
/// `Corrupt`, naming the key, or what the store says.
pub async fn stars<S: CacheStore + ?Sized>(store: &S) -> Result<Vec<Channel>> {
    let key = CacheKey::Collections;
    let Some(found) = store.get(&key).await? else { return Ok(vec![Channel::star()]) };
    let known = Collections::from_bytes(&found.value).map_err(|e| e.with_context("key", &key))?;
    Ok(known.used().map(Channel::star_of).collect())
}

/// The state of a sequence in the star channel of `collection`. The star channel names every
/// sequence with a document of the collection, from the commit that stores it until it is
/// withdrawn, and those that a later revision of their document supersedes, whether they were
/// delivered or not.
///
/// # Errors
/// As [`directory`].
pub async fn star_state<S: CacheStore + ?Sized>(
    store: &S,
    codec: &dyn BlockCodec,
    collection: CollectionId,
    sequence: Sequence,
) -> Result<BlockState> {
    state(store, codec, Channel::shared_star(collection), sequence).await
}

/// The state of a position in a channel.
///
/// # Errors
/// As [`directory`].
pub async fn state<S: CacheStore + ?Sized>(
    store: &S,
    codec: &dyn BlockCodec,
    channel: &Channel,
    position: Sequence,
) -> Result<BlockState> {
    let (index, offset) = Block::locate(position, codec.capacity());
    Ok(block(store, codec, channel, index).await?.get(offset))
}

/// The states of a position in some channels.
///
/// # Errors
/// As [`directory`].
#[cfg(feature = "runtime")]
pub(crate) async fn states<S: CacheStore + ?Sized>(
    store: &S,
    codec: &dyn BlockCodec,
    channels: impl IntoIterator<Item = &Channel>,
    position: Sequence,
) -> Result<Vec<BlockState>> {
    let (index, offset) = Block::locate(position, codec.capacity());
    let keys: Vec<CacheKey> = channels.into_iter().map(|channel| CacheKey::Block(channel.clone(), index)).collect();
    let found = store.get_many(&keys).await?;
    let state = |(key, found): (&CacheKey, Option<Versioned<Bytes>>)| match found {
        Some(found) => codec.decode(&found.value).map(|block| block.get(offset)).map_err(|e| e.with_context("key", key)),
        None => Ok(BlockState::Absent),
    };
    keys.iter().zip(found).map(state).collect()
}

/// For each entry, whether states are stored at its position, in its channels, that are not its
/// own. Costs the blocks of these channels, each once.
///
/// # Errors
/// As [`directory`].
#[cfg(feature = "runtime")]
pub(crate) async fn have_other_states<S: CacheStore + ?Sized>(
    store: &S,
    codec: &dyn BlockCodec,
    entries: &[&ChangeEntry],
) -> Result<Vec<bool>> {
    let mut have_others = vec![false; entries.len()];
    let mut states = BTreeMap::<(&Channel, BlockIndex), Vec<(usize, u32, BlockState)>>::new();
    for (at, entry) in entries.iter().enumerate() {
        entry_states(entry, |change| {
            let (index, offset) = Block::locate(change.sequence, codec.capacity());
            states.entry((change.channel, index)).or_default().push((at, offset, change.state));
        });
    }
    let states: Vec<_> = states.into_iter().collect();
    for page in states.chunks(PAGE) {
        let keys: Vec<CacheKey> = page.iter().map(|((channel, index), _)| CacheKey::Block((*channel).clone(), *index)).collect();
        for ((key, found), (_, own)) in keys.iter().zip(store.get_many(&keys).await?).zip(page) {
            let Some(found) = found else { continue };
            let block = codec.decode(&found.value).map_err(|e| e.with_context("key", key))?;
            for (at, offset, own) in own {
                have_others[*at] |= block.get(*offset) as u8 & !(*own as u8) != 0;
            }
        }
    }
    Ok(have_others)
}

/// Whether the star channel of any collection shows a sequence.
pub(crate) async fn is_live_in_a_star<S: CacheStore + ?Sized>(
    store: &S,
    codec: &dyn BlockCodec,
    sequence: Sequence,
) -> Result<bool> {
    for star in stars(store).await? {
        if star_state(store, codec, star.collection(), sequence).await?.is_live() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Live rows of `channel` in `range`, lowest first, until `enough` says so after a page. Each with the state its block gives.
///
/// Costs the directory, the blocks that hold something live in the range, and the documents
/// returned; at most a page too many. A document above the stable sequence may not be there: its
/// commit has not ended, so it is left out. So is one that has been withdrawn, and whatever is
/// missing by the clock, unless it is lost.
///
/// # Errors
/// `Corrupt`, naming the key, or what the store says.
pub async fn live_rows<S: CacheStore + ?Sized>(
    store: &S,
    codec: &dyn BlockCodec,
    channel: &Channel,
    range: SequenceRange,
    page: usize,
    shown: Shown<'_>,
    mut enough: impl FnMut(&[(Arc<ChangeEntry>, BlockState)]) -> bool + Send,
) -> Result<Vec<(Arc<ChangeEntry>, BlockState)>> {
    let directory = directory(store, channel).await?;
    let mut slots = position_ranges(&directory, codec.capacity(), range).into_iter();
    let mut rows = Vec::new();
    let read = LiveRows { store, codec, channel, directory: &directory, page: page.clamp(1, PAGE), shown };
    let mut upto = range.last();
    if let Some(numbers) = slots.next()
        && !read.run(numbers, &mut rows, &mut enough).await?
    {
        upto = rows.last().map_or(upto, |(entry, _)| entry.sequence());
    }
    // Few entries are in slots. The positions of one sequence belong to the same rows.
    let in_order = rows.len();
    for positions in slots {
        let last = upto.in_slot(positions.last().slot()).map_or(positions.last(), |last| last.min(positions.last()));
        if let Some(positions) = SequenceRange::new(positions.first(), last) {
            read.run(positions, &mut rows, &mut |_| false).await?;
        }
    }
    if rows.len() > in_order {
        rows.sort_by_key(|(entry, _)| entry.position().rank());
    }
    Ok(rows)
}

/// The positions of the sequences in `range`, one range per slot, as far as the channel has blocks
/// there.
fn position_ranges(directory: &Directory, capacity: u32, range: SequenceRange) -> Vec<SequenceRange> {
    let last = directory.blocks.last().map_or(Sequence::ZERO, |index| Block::range(BlockIndex(index), capacity).last());
    let in_slot = |slot| {
        let end = range.last().min(if slot == 0 { Sequence::MAX_NUMBER } else { Sequence::MAX_NUMBER_IN_SLOT });
        SequenceRange::new(range.first().in_slot(slot)?, end.in_slot(slot)?)
    };
    (0..=last.slot()).filter_map(in_slot).collect()
}

/// Reading live rows of one channel.
struct LiveRows<'a, S: ?Sized> {
    store: &'a S,
    codec: &'a dyn BlockCodec,
    channel: &'a Channel,
    directory: &'a Directory,
    page: usize,
    shown: Shown<'a>,
}

impl<S: CacheStore + ?Sized> LiveRows<'_, S> {
    /// Reads the rows in `range`, until `enough` is true after a page; returns whether these are
    /// all.
    async fn run(
        &self,
        range: SequenceRange,
        rows: &mut Vec<(Arc<ChangeEntry>, BlockState)>,
        enough: &mut (impl FnMut(&[(Arc<ChangeEntry>, BlockState)]) -> bool + Send),
    ) -> Result<bool> {
        let LiveRows { store, codec, channel, directory, page, shown } = *self;
        let capacity = codec.capacity();
        let (first, _) = Block::locate(range.first(), capacity);
        let (last, _) = Block::locate(range.last(), capacity);
        let mut wanted: Vec<(Sequence, BlockState)> = Vec::new();
        for index in directory.blocks.within(first.0, last.0).flat_map(|(a, b)| a..=b) {
            let base = Block::range(BlockIndex(index), capacity);
            let Some(part) = base.intersect(range) else { continue };
            let block = block(store, codec, channel, BlockIndex(index)).await?;
            let offset = |s: Sequence| (s.0 - base.first().0) as u32;
            let mut live = block.live(offset(part.first()), offset(part.last()) + 1).peekable();
            while live.peek().is_some() {
                let room = page - wanted.len();
                wanted.extend(live.by_ref().take(room).map(|(at, state)| (Sequence(base.first().0 + u64::from(at)), state)));
                if wanted.len() == page {
                    read_page(store, codec, channel, &mut wanted, rows, shown).await?;
                    if enough(rows) {
                        return Ok(false);
                    }
                }
            }
        }
        read_page(store, codec, channel, &mut wanted, rows, shown).await?;
        Ok(true)
    }
}

async fn read_page<S: CacheStore + ?Sized>(
    store: &S,
    codec: &dyn BlockCodec,
    channel: &Channel,
    wanted: &mut Vec<(Sequence, BlockState)>,
    rows: &mut Vec<(Arc<ChangeEntry>, BlockState)>,
    shown: Shown<'_>,
) -> Result<()> {
    let sequences: Vec<Sequence> = wanted.iter().map(|(s, _)| *s).collect();
    for (entry, (sequence, state)) in store.entries(&sequences).await?.into_iter().zip(wanted.drain(..)) {
        let is_missing = shown.missing.contains(sequence.0);
        match entry {
            Some(_) if is_missing => {}
            Some(entry) => rows.push((entry, state)),
            None if sequence.number() > shown.stable
                || is_missing && !is_lost(store, Channel::shared_star(channel.collection()), sequence).await?
                || star_state(store, codec, channel.collection(), sequence).await? == BlockState::Absent => {}
            None => return Err(not_there(sequence)),
        }
    }
    Ok(())
}

/// A sequence document that a block names is not there. It may be one that comes just now, and was
/// announced after the clock was read, so the status is temporary: whoever tries again and still
/// misses it must not answer without it.
fn not_there(sequence: Sequence) -> Error {
    let error = Error::corrupt("a block names a sequence whose document is missing").with_status(crate::Status::Temporary);
    error.with_context("key", CacheKey::Sequence(sequence))
}

/// Every entry of `channel` in `range`, superseded ones included: in ascending order, and after
/// them those in slots. Missing documents are left out.
///
/// # Errors
/// As [`directory`].
pub async fn logged<S: CacheStore + ?Sized>(
    store: &S,
    codec: &dyn BlockCodec,
    channel: &Channel,
    range: SequenceRange,
) -> Result<Vec<Arc<ChangeEntry>>> {
    let mut all = Vec::new();
    for_each(store, codec, channel, range, |entry| {
        all.push(entry);
        Ok(())
    })
    .await?;
    Ok(all)
}

/// Calls `take` with what [`logged`] gives, entry by entry, until it fails.
///
/// # Errors
/// As [`directory`], and those of `take`.
pub async fn for_each<S: CacheStore + ?Sized>(
    store: &S,
    codec: &dyn BlockCodec,
    channel: &Channel,
    range: SequenceRange,
    mut take: impl FnMut(Arc<ChangeEntry>) -> Result<()> + Send,
) -> Result<()> {
    for_each_state(store, codec, channel, range, |entry, _| take(entry)).await
}

/// As [`for_each`], with the state that each entry has in the channel.
async fn for_each_state<S: CacheStore + ?Sized>(
    store: &S,
    codec: &dyn BlockCodec,
    channel: &Channel,
    range: SequenceRange,
    mut take: impl FnMut(Arc<ChangeEntry>, BlockState) -> Result<()> + Send,
) -> Result<()> {
    let directory = retry::read(|| directory(store, channel)).await?;
    for range in position_ranges(&directory, codec.capacity(), range) {
        let (first, _) = Block::locate(range.first(), codec.capacity());
        let (last, _) = Block::locate(range.last(), codec.capacity());
        for index in directory.blocks.within(first.0, last.0).flat_map(|(a, b)| a..=b) {
            let base = Block::range(BlockIndex(index), codec.capacity()).first();
            let block = retry::read(|| block(store, codec, channel, BlockIndex(index))).await?;
            let named = block.iter().map(|(at, state)| (Sequence(base.0 + u64::from(at)), state));
            let (named, states): (Vec<Sequence>, Vec<BlockState>) = named.filter(|(s, _)| range.contains(*s)).unzip();
            for (page, states) in named.chunks(PAGE).zip(states.chunks(PAGE)) {
                for (entry, state) in retry::read(|| store.entries(page)).await?.into_iter().zip(states) {
                    entry.map_or(Ok(()), |entry| take(entry, *state))?;
                }
            }
        }
    }
    Ok(())
}

/// Calls `take` with every entry stored in `range`, live or not: those that the star channels'
/// blocks name.
///
/// A block may name an entry whose document is not there yet: its commit has not ended, so nobody was promised it. It is left out.
///
/// # Errors
/// As [`live_rows`], and those of `take`.
pub async fn for_each_stored<S: CacheStore + ?Sized>(
    store: &S,
    codec: &dyn BlockCodec,
    range: SequenceRange,
    mut take: impl FnMut(Arc<ChangeEntry>) -> Result<()> + Send,
) -> Result<()> {
    for star in retry::read(|| stars(store)).await? {
        for_each(store, codec, &star, range, &mut take).await?;
    }
    Ok(())
}

/// The entries above `high`, and for each the channels in which it is superseded already: a later
/// revision has a lower sequence.
///
/// # Errors
/// As [`directory`].
#[cfg(feature = "runtime")]
pub(crate) async fn waiting_above<S: CacheStore + ?Sized>(
    store: &S,
    codec: &dyn BlockCodec,
    high: Sequence,
) -> Result<Vec<(Arc<ChangeEntry>, Vec<Channel>)>> {
    let Some(range) = SequenceRange::new(high.next(), Sequence::MAX) else { return Ok(Vec::new()) };
    let mut above = Vec::new();
    for star in retry::read(|| stars(store)).await? {
        let take = |entry: Arc<ChangeEntry>, state| {
            // A departure is not in the star channel, where it is marked from the beginning.
            let is_superseded = state == BlockState::Superseded && entry.in_star();
            above.push((entry, if is_superseded { vec![star.clone()] } else { Vec::new() }));
            Ok(())
        };
        for_each_state(store, codec, &star, range, take).await?;
    }
    for (entry, superseded) in above.iter_mut().filter(|(_, superseded)| !superseded.is_empty()) {
        for change in entry.channels() {
            let state = retry::read(|| state(store, codec, &change.channel, entry.position())).await?;
            if state == BlockState::Superseded {
                superseded.push(change.channel.clone());
            }
        }
    }
    Ok(above)
}

/// The sequences that more than one document has: those of the entries in slots.
///
/// # Errors
/// As [`directory`].
#[cfg(feature = "runtime")]
pub(crate) async fn shared_numbers<S: CacheStore + ?Sized>(store: &S, codec: &dyn BlockCodec) -> Result<Vec<Sequence>> {
    let mut numbers = Vec::new();
    let Some(all) = SequenceRange::new(Sequence::ZERO, Sequence::MAX) else { return Ok(numbers) };
    for star in retry::read(|| stars(store)).await? {
        let directory = retry::read(|| directory(store, &star)).await?;
        for range in position_ranges(&directory, codec.capacity(), all).into_iter().skip(1) {
            let (first, _) = Block::locate(range.first(), codec.capacity());
            let (last, _) = Block::locate(range.last(), codec.capacity());
            for index in directory.blocks.within(first.0, last.0).flat_map(|(a, b)| a..=b) {
                let base = Block::range(BlockIndex(index), codec.capacity()).first();
                let block = retry::read(|| block(store, codec, &star, BlockIndex(index))).await?;
                let named = block.iter().map(|(at, _)| Sequence(base.0 + u64::from(at)));
                numbers.extend(named.filter(|position| range.contains(*position)).map(Sequence::number));
            }
        }
    }
    Ok(numbers)
}
