//! What belongs to channels: blocks, directory and counter of each.

use std::sync::Arc;

use bytes::Bytes;
use sluicegate_core::batch::{BlockDelta, CommitReceipt, StateChange, WriteBatch};
use sluicegate_core::block::{Block, BlockState, codec_named};
use sluicegate_core::channel::ChannelMap;
use sluicegate_core::directory::Directory;
use sluicegate_core::store::Version;
use sluicegate_core::{BlockCodec, BlockIndex, CacheKey, Channel, Error, Result, Sequence};
use tokio::time::Instant;

use crate::places::Places;
use crate::value::{Area, Raw, Stored, map_bytes, number, ranges_bytes, shared_bytes};

/// All channels. One that was ever written to keeps its place.
#[derive(Debug)]
pub(crate) struct Channels {
    places: ChannelMap<usize>,
    /// The star channel is at place 0.
    channels: Vec<ChannelState>,
    /// Codecs that blocks were raised with. There is one in a cache.
    codecs: Vec<Arc<dyn BlockCodec>>,
    /// Whether the states of the last turn were in many different blocks, as in a cold start.
    is_scattered: bool,
}

/// Place of a codec in [`Channels::codecs`].
type CodecId = u32;

/// A commit raises states of many channels. The fields that this uses come first, in as few cache
/// lines as possible.
#[derive(Debug)]
#[repr(C, align(64))]
struct ChannelState {
    /// The last commit that raised something here.
    raised_by: u64,
    /// Index of the block used last.
    last: BlockIndex,
    /// Its place; no place if it is not there any more.
    last_place: u32,
    /// The number of writes of the directory by primitives, which may change what it lists.
    /// [`BlockCell::listed_at`] holds for this number.
    directory_writes: u32,
    blocks: Vec<BlockCell>,
    places: Places,
    channel: Channel,
    counter: Option<(Counter, Version)>,
    directory: Option<(DirectoryState, Version)>,
}

#[derive(Debug)]
enum Counter {
    Number(u64),
    Raw(Raw),
}

#[derive(Debug)]
enum DirectoryState {
    Native(Directory),
    Raw(Raw),
}

/// A block. It takes one cache line.
#[derive(Debug)]
#[repr(align(64))]
struct BlockCell {
    index: BlockIndex,
    version: Version,
    content: Content,
    /// What a native block is encoded with.
    codec: CodecId,
    /// The number of directory writes at which the directory is known to list this block;
    /// [`NOT_LISTED`] if that is not known.
    listed_at: u32,
    /// The last commit that had this block listed.
    listed_by: u64,
}

const _: () = assert!(size_of::<BlockCell>() == 64);

/// A turn is scattered if more than one lookup in so many is a miss. In the order of sequences
/// hardly any is a miss, and in a cold start nearly each one is.
const SCATTERED: usize = 4;

/// See [`ChannelState::last_place`].
const NO_PLACE: u32 = u32::MAX;

/// See [`BlockCell::listed_at`].
const NOT_LISTED: u32 = u32::MAX;

#[derive(Debug)]
enum Content {
    Native(Block),
    /// As it was written through a primitive, and not changed since.
    Raw(Box<Raw>),
}

/// A sequence's place in blocks. Several channels have it in turn.
#[derive(Clone, Copy, Debug)]
struct Located {
    sequence: Sequence,
    index: BlockIndex,
    offset: u32,
    /// Whether the block may be dropped from its directory at any time. Then adding to the block
    /// must rewrite the directory.
    is_droppable: bool,
}

impl Located {
    fn of(sequence: Sequence, capacity: u32, stable: Sequence) -> Self {
        let (index, offset) = Block::locate(sequence, capacity);
        Located { sequence, index, offset, is_droppable: Block::range(index, capacity).last() <= stable }
    }
}

/// One commit under way.
#[derive(Debug)]
pub(crate) struct Raising {
    /// Tells this commit from others.
    id: u64,
    version: Version,
    codec: CodecId,
    capacity: u32,
    stable: Sequence,
    /// The last sequence of which a state was raised.
    located: Located,
    /// Channels raised.
    touched: Vec<usize>,
    /// States to raise at the end of the turn.
    queued: Vec<LocatedChange>,
    /// The number of blocks that were looked up in this turn.
    lookups: usize,
    /// The number of those that were not the last ones of their channels.
    misses: usize,
    /// The first error of this turn.
    error: Option<Error>,
    /// Channel and number of each block whose listing must be looked at, and whether the block may
    /// be dropped from its directory.
    to_list: Vec<(usize, BlockIndex, bool)>,
    /// Channel and number of blocks that had nothing live at some moment.
    maybe_empty: Vec<(usize, BlockIndex)>,
}

/// A state to raise.
#[derive(Clone, Copy, Debug)]
struct LocatedChange {
    /// The channel.
    place: u32,
    /// The place of the block; found after the channel's.
    block: u32,
    index: BlockIndex,
    offset: u32,
    state: BlockState,
    /// Whether it is an entry's own.
    own: bool,
    is_droppable: bool,
}

impl Raising {
    /// Begins a commit. `version` is unused so far: it is the commit's identity too.
    pub(crate) fn new(channels: &mut Channels, batch: &WriteBatch, version: Version) -> Self {
        Raising {
            id: version.0,
            version,
            codec: channels.codec_id(&batch.codec),
            capacity: batch.codec.capacity().max(1),
            stable: batch.stable,
            located: Located::of(Sequence(0), batch.codec.capacity(), batch.stable),
            touched: Vec::with_capacity(batch.entries.len().min(1024)),
            to_list: Vec::new(),
            maybe_empty: Vec::new(),
            queued: Vec::new(),
            lookups: 0,
            misses: 0,
            error: None,
        }
    }

    /// What is written from now on gets this version.
    pub(crate) fn set_version(&mut self, version: Version) {
        self.version = version;
    }

    #[inline]
    fn locate(&mut self, sequence: Sequence) -> Located {
        if self.located.sequence != sequence {
            self.located = Located::of(sequence, self.capacity, self.stable);
        }
        self.located
    }
}

impl Default for Channels {
    fn default() -> Self {
        let star = Channel::star();
        Channels {
            places: ChannelMap::from_iter([(star.clone(), 0)]),
            channels: vec![ChannelState::new(star)],
            codecs: Vec::new(),
            is_scattered: false,
        }
    }
}

impl Channels {
    /// Raises a state, at the end of the turn at the latest. `is_star`: the channel is the star
    /// channel of the default collection.
    #[inline]
    pub(crate) fn raise(&mut self, raising: &mut Raising, change: StateChange<'_>, is_star: bool) {
        let StateChange { channel, sequence, state, own } = change;
        let place = if is_star { 0 } else { self.place(channel) } as u32;
        let Located { index, offset, is_droppable, .. } = raising.locate(sequence);
        let mut located = LocatedChange { place, block: 0, index, offset, state, own, is_droppable };
        if self.is_scattered {
            raising.queued.push(located);
            return;
        }
        located.block = self.find_block(raising, located);
        self.raise_located(raising, located);
    }

    /// Ends a turn: all of its states are raised.
    ///
    /// # Errors
    /// The first one, for a block that cannot be read. Other blocks are raised all the same.
    pub(crate) fn end_turn(&mut self, raising: &mut Raising) -> Result<()> {
        // States are queued if the last turn was scattered. Then channels, blocks and their states
        // are mostly not in the processor's caches. Each step loads one of these for the whole
        // turn, so that the processor waits for several of them at a time.
        let mut queued = std::mem::take(&mut raising.queued);
        for change in &mut queued {
            change.block = self.find_block(raising, *change);
        }
        for change in &queued {
            let at = &self.channels[change.place as usize];
            if let Content::Native(block) = &at.blocks[change.block as usize].content {
                block.touch(change.offset);
            }
        }
        for change in queued.drain(..) {
            self.raise_located(raising, change);
        }
        raising.queued = queued;
        self.is_scattered = raising.misses * SCATTERED > raising.lookups;
        (raising.lookups, raising.misses) = (0, 0);
        raising.error.take().map_or(Ok(()), Err)
    }

    /// The place of a block in its channel.
    #[inline]
    fn find_block(&mut self, raising: &mut Raising, change: LocatedChange) -> u32 {
        let at = &mut self.channels[change.place as usize];
        if at.raised_by != raising.id {
            at.raised_by = raising.id;
            raising.touched.push(change.place as usize);
        }
        raising.lookups += 1;
        if at.last == change.index && at.last_place != NO_PLACE {
            return at.last_place;
        }
        raising.misses += 1;
        at.find_block(change.index, raising)
    }

    #[inline]
    fn raise_located(&mut self, raising: &mut Raising, change: LocatedChange) {
        let LocatedChange { place, block, index, offset, state, own, is_droppable } = change;
        let at = &mut self.channels[place as usize];
        let cell = &mut at.blocks[block as usize];
        let left = match &mut cell.content {
            Content::Native(block) if cell.codec == raising.codec => {
                let before = block.raise(offset, state);
                if before as u8 | state as u8 != before as u8 {
                    cell.version = raising.version;
                }
                block.live_count()
            }
            _ => match raise_slowly(&self.codecs, &at.channel, cell, raising, offset, state) {
                Ok(live) => live,
                Err(e) => {
                    raising.error.get_or_insert(e);
                    return;
                }
            },
        };
        if left == 0 {
            raising.maybe_empty.push((place as usize, index));
        }
        let is_listed = cell.listed_at == at.directory_writes && cell.listed_at != NOT_LISTED;
        if own && (is_droppable || !is_listed) && cell.listed_by != raising.id {
            cell.listed_by = raising.id;
            raising.to_list.push((place as usize, index, is_droppable));
        }
    }

    /// Ends a commit: directories and counters.
    pub(crate) fn finish(&mut self, raising: Raising) -> Result<CommitReceipt> {
        for (place, index, is_droppable) in &raising.to_list {
            self.channels[*place].list(*index, *is_droppable, raising.version)?;
        }
        for place in &raising.touched {
            self.channels[*place].count(raising.version)?;
        }
        let mut emptied = raising.maybe_empty;
        emptied.sort_unstable();
        emptied.dedup();
        emptied.retain(|(place, index)| self.channels[*place].has_nothing_live(*index));
        let mut emptied: Vec<_> =
            emptied.into_iter().map(|(place, index)| (self.channels[place].channel.clone(), index)).collect();
        emptied.sort_unstable();
        Ok(CommitReceipt { emptied })
    }

    /// As the provided [`merge_block`](sluicegate_core::commit::merge_block).
    pub(crate) fn merge(&mut self, delta: &BlockDelta, codec: &dyn BlockCodec, version: Version) -> Result<u32> {
        let key = CacheKey::Block(delta.channel.clone(), delta.index);
        let (mut block, found) = match self.read(&key) {
            Some((Stored::Block(block, with), _)) if same_codec(&*with, codec) => (block, true),
            Some((stored, _)) => (codec.decode(&stored.encode()).map_err(|e| e.with_context("key", &key))?, true),
            None => (Block::new(codec.capacity()), false),
        };
        let changed = delta.apply(&mut block);
        let live = block.live_count();
        if changed || !found {
            let (content, codec) = match self.known_codec(codec) {
                Some(codec) => (Content::Native(block), codec),
                // Not a codec that could be asked again later.
                None => (Content::raw(codec.encode(&block), None), 0),
            };
            let place = self.place(&delta.channel);
            self.channels[place].put_block(delta.index, content, codec, version);
        }
        Ok(live)
    }

    /// Bytes of the channel at `place`: its name, blocks, directory and counter.
    pub(crate) fn channel_bytes(&self, place: usize) -> Option<usize> {
        let at = self.channels.get(place)?;
        let blocks = at.blocks.iter().map(|cell| match &cell.content {
            Content::Native(block) => block.memory_bytes() - size_of_val(block),
            Content::Raw(raw) => size_of_val(&**raw) + raw.bytes.len(),
        });
        let directory = match &at.directory {
            Some((DirectoryState::Native(directory), _)) => ranges_bytes(&directory.blocks),
            Some((DirectoryState::Raw(raw), _)) => raw.bytes.len(),
            None => 0,
        };
        let counter = match &at.counter {
            Some((Counter::Raw(raw), _)) => raw.bytes.len(),
            _ => 0,
        };
        let cells = at.blocks.capacity() * size_of::<BlockCell>() + at.places.memory_bytes();
        Some(shared_bytes(at.channel.name().len()) + cells + blocks.sum::<usize>() + directory + counter)
    }

    /// Bytes of all but the channels' contents.
    pub(crate) fn overhead_bytes(&self) -> usize {
        self.channels.capacity() * size_of::<ChannelState>() + map_bytes(&self.places)
    }

    fn codec_id(&mut self, codec: &Arc<dyn BlockCodec>) -> CodecId {
        let known = self.codecs.iter().position(|known| same_codec(&**known, &**codec));
        known.unwrap_or_else(|| {
            self.codecs.push(codec.clone());
            self.codecs.len() - 1
        }) as CodecId
    }

    fn known_codec(&mut self, codec: &dyn BlockCodec) -> Option<CodecId> {
        if let Some(id) = self.codecs.iter().position(|known| same_codec(&**known, codec)) {
            return Some(id as CodecId);
        }
        let named = codec_named(codec.name(), codec.capacity()).ok()?;
        Some(self.codec_id(&named))
    }

    #[inline]
    fn place(&mut self, channel: &Channel) -> usize {
        match self.places.get(channel) {
            Some(place) => *place,
            None => self.add(channel),
        }
    }

    #[cold]
    fn add(&mut self, channel: &Channel) -> usize {
        self.channels.push(ChannelState::new(channel.clone()));
        self.places.insert(channel.clone(), self.channels.len() - 1);
        self.channels.len() - 1
    }

    fn state(&self, channel: &Channel) -> Option<&ChannelState> {
        self.places.get(channel).map(|place| &self.channels[*place])
    }
}

/// Two codecs of one name and capacity write the same: that is what a cache's `Meta` document says of its codec.
fn same_codec(a: &dyn BlockCodec, b: &dyn BlockCodec) -> bool {
    a.name() == b.name() && a.capacity() == b.capacity()
}

/// Raises a state in a block that is not kept as this commit's codec has it; how many sequences are live then.
#[cold]
fn raise_slowly(
    codecs: &[Arc<dyn BlockCodec>],
    channel: &Channel,
    cell: &mut BlockCell,
    raising: &Raising,
    offset: u32,
    state: BlockState,
) -> Result<u32> {
    let bytes = match &cell.content {
        Content::Native(block) => Some(codecs[cell.codec as usize].encode(block)),
        Content::Raw(raw) => (!raw.is_over()).then(|| raw.bytes.clone()),
    };
    let mut block = match &bytes {
        Some(bytes) => codecs[raising.codec as usize]
            .decode(bytes)
            .map_err(|e| e.with_context("key", CacheKey::Block(channel.clone(), cell.index)))?,
        None => Block::new(raising.capacity),
    };
    let before = block.raise(offset, state);
    let live = block.live_count();
    if bytes.is_none() || before as u8 | state as u8 != before as u8 {
        (cell.content, cell.codec) = (Content::Native(block), raising.codec);
        cell.version = raising.version;
    }
    Ok(live)
}

impl BlockCell {
    fn new(index: BlockIndex, content: Content, codec: CodecId, version: Version) -> Self {
        BlockCell { index, version, content, codec, listed_at: NOT_LISTED, listed_by: 0 }
    }
}

impl Content {
    fn raw(bytes: Bytes, deadline: Option<Instant>) -> Self {
        Content::Raw(Box::new(Raw { bytes, deadline }))
    }
}

impl ChannelState {
    fn new(channel: Channel) -> Self {
        ChannelState {
            raised_by: 0,
            last: BlockIndex(0),
            last_place: NO_PLACE,
            directory_writes: 0,
            blocks: Vec::new(),
            places: Places::default(),
            channel,
            counter: None,
            directory: None,
        }
    }

    /// What blocks know of the directory does not hold any more.
    fn count_directory_write(&mut self) {
        self.directory_writes = self.directory_writes.saturating_add(1);
    }

    /// The place of a block, which is made if there is none.
    fn find_block(&mut self, index: BlockIndex, raising: &Raising) -> u32 {
        let place = self.places.get(index).unwrap_or_else(|| {
            let content = Content::Native(Block::new(raising.capacity));
            self.add_block(BlockCell::new(index, content, raising.codec, raising.version))
        });
        (self.last, self.last_place) = (index, place as u32);
        place as u32
    }

    fn add_block(&mut self, cell: BlockCell) -> usize {
        self.places.insert(cell.index, self.blocks.len());
        self.blocks.push(cell);
        self.blocks.len() - 1
    }

    fn block(&self, index: BlockIndex) -> Option<&BlockCell> {
        let cell = &self.blocks[self.places.get(index)?];
        match &cell.content {
            Content::Raw(raw) if raw.is_over() => None,
            _ => Some(cell),
        }
    }

    fn put_block(&mut self, index: BlockIndex, content: Content, codec: CodecId, version: Version) {
        match self.places.get(index) {
            Some(place) => {
                let cell = &mut self.blocks[place];
                (cell.content, cell.codec, cell.version) = (content, codec, version);
            }
            None => _ = self.add_block(BlockCell::new(index, content, codec, version)),
        }
    }

    fn take_block(&mut self, index: BlockIndex) {
        let Some(place) = self.places.remove(index) else { return };
        self.last_place = NO_PLACE;
        self.blocks.swap_remove(place);
        if let Some(moved) = self.blocks.get(place) {
            self.places.insert(moved.index, place);
        }
    }

    /// Whether a block that a commit has just raised has nothing live.
    fn has_nothing_live(&self, index: BlockIndex) -> bool {
        match self.block(index).map(|cell| &cell.content) {
            Some(Content::Native(block)) => block.live_count() == 0,
            // It was seen empty, and was not changed since.
            Some(Content::Raw(_)) => true,
            None => false,
        }
    }

    /// Puts a block that got rows into the directory.
    fn list(&mut self, index: BlockIndex, droppable: bool, version: Version) -> Result<()> {
        let stored = match self.directory.take_if(|(d, _)| matches!(d, DirectoryState::Raw(raw) if raw.is_over())) {
            Some(_) => None,
            None => self.directory.as_mut(),
        };
        match stored {
            Some((DirectoryState::Native(directory), at)) => {
                if directory.list(index) || droppable {
                    directory.generation += 1;
                    *at = version;
                }
            }
            Some((state @ DirectoryState::Raw(_), at)) => {
                let DirectoryState::Raw(raw) = &*state else { return Ok(()) };
                let mut directory = Directory::from_bytes(&raw.bytes, &self.channel)
                    .map_err(|e| e.with_context("key", CacheKey::Directory(self.channel.clone())))?;
                if directory.list(index) || droppable {
                    directory.generation += 1;
                    (*state, *at) = (DirectoryState::Native(directory), version);
                }
            }
            None => {
                let mut directory = Directory::new(self.channel.clone());
                directory.list(index);
                directory.generation += 1;
                self.directory = Some((DirectoryState::Native(directory), version));
            }
        }
        if let Some(place) = self.places.get(index) {
            self.blocks[place].listed_at = self.directory_writes;
        }
        Ok(())
    }

    /// Adds one to the counter.
    fn count(&mut self, version: Version) -> Result<()> {
        let now = match &self.counter {
            Some((Counter::Number(n), _)) => *n,
            Some((Counter::Raw(raw), _)) if !raw.is_over() => {
                number(&raw.bytes).map_err(|e| e.with_context("key", CacheKey::Counter(self.channel.clone())))?
            }
            _ => 0,
        };
        self.counter = Some((Counter::Number(now.saturating_add(1)), version));
        Ok(())
    }
}

impl Area for Channels {
    fn read(&self, key: &CacheKey) -> Option<(Stored, Version)> {
        match key {
            CacheKey::Block(channel, index) => {
                let cell = self.state(channel)?.block(*index)?;
                let stored = match &cell.content {
                    Content::Native(block) => Stored::Block(block.clone(), self.codecs[cell.codec as usize].clone()),
                    Content::Raw(raw) => Stored::Bytes(raw.bytes.clone()),
                };
                Some((stored, cell.version))
            }
            CacheKey::Directory(channel) => match self.state(channel)?.directory.as_ref()? {
                (DirectoryState::Native(directory), version) => Some((Stored::Bytes(directory.to_bytes()), *version)),
                (DirectoryState::Raw(raw), version) => (!raw.is_over()).then(|| (Stored::Bytes(raw.bytes.clone()), *version)),
            },
            CacheKey::Counter(channel) => match self.state(channel)?.counter.as_ref()? {
                (Counter::Number(number), version) => Some((Stored::Number(*number), *version)),
                (Counter::Raw(raw), version) => (!raw.is_over()).then(|| (Stored::Bytes(raw.bytes.clone()), *version)),
            },
            _ => None,
        }
    }

    fn version(&self, key: &CacheKey) -> Option<Version> {
        match key {
            CacheKey::Block(channel, index) => self.state(channel)?.block(*index).map(|cell| cell.version),
            // Small documents: reading one is no dearer than a second way to look.
            _ => self.read(key).map(|(_, version)| version),
        }
    }

    fn put(&mut self, key: &CacheKey, value: Bytes, deadline: Option<Instant>, version: Version) {
        let (CacheKey::Block(channel, _) | CacheKey::Directory(channel) | CacheKey::Counter(channel)) = key else { return };
        let place = self.place(channel);
        let at = &mut self.channels[place];
        match key {
            CacheKey::Block(_, index) => at.put_block(*index, Content::raw(value, deadline), 0, version),
            CacheKey::Directory(_) => {
                at.count_directory_write();
                at.directory = Some((DirectoryState::Raw(Raw { bytes: value, deadline }), version));
            }
            _ => {
                // The canonical text of a number is kept as that number.
                let counter = match number(&value) {
                    Ok(n) if deadline.is_none() && n.to_string().as_bytes() == value => Counter::Number(n),
                    _ => Counter::Raw(Raw { bytes: value, deadline }),
                };
                at.counter = Some((counter, version));
            }
        }
    }

    fn take(&mut self, key: &CacheKey) {
        let (CacheKey::Block(channel, _) | CacheKey::Directory(channel) | CacheKey::Counter(channel)) = key else { return };
        let Some(place) = self.places.get(channel) else { return };
        let at = &mut self.channels[*place];
        match key {
            CacheKey::Block(_, index) => at.take_block(*index),
            CacheKey::Directory(_) => {
                at.count_directory_write();
                at.directory = None;
            }
            _ => at.counter = None,
        }
    }
}
