//! The reader: answers "what changed in these channels since?" from the store and from what it follows of it.

mod follow;
mod state;
mod subscribe;
mod tail;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::future::BoxFuture;
use rustc_hash::FxHashSet;
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

pub use subscribe::LateSubscription;
pub use tail::ChannelView;

use crate::batch::LateEntry;
use crate::block::{Block, BlockCodec, BlockState};
use crate::changes::{Answer, AnswerRow, ChangesOptions, Delivery, LateCursor, Row, Source, keep_newest, merge};
use crate::channel::{Channel, ChannelMap};
use crate::clock::PublishedClock;
use crate::commit::read_clock;
use crate::entry::ChangeEntry;
use crate::error::{Error, ErrorKind, Result};
use crate::key::CacheKey;
use crate::meta::Meta;
use crate::scan;
use crate::sequence::{RangeSet, Sequence, SequenceRange};
use crate::store::CacheStore;
use state::State;
use tail::Tail;

/// How a reader works. Times in milliseconds where the name says so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct ReaderConfig {
    /// Rows a channel's tail keeps whatever their age.
    pub tail_min: usize,
    /// Rows a channel's tail keeps at most (rows above stable come on top).
    pub tail_max: usize,
    /// How old a row above the minimum gets.
    pub tail_age_ms: u64,
    /// Channels with a tail, at most; those not read for longest go.
    pub max_channels: usize,
    /// How often the clock is looked at, at least, while the store wakes us.
    pub poll_max_ms: u64,
    /// How often it is looked at while it changes, where the store does not wake us.
    pub poll_min_ms: u64,
    /// How long the store may not answer before the node is offline.
    pub offline_after_ms: u64,
    /// Late entries kept in memory for late cursors; older ones are read from the store.
    pub late_kept: usize,
}

impl Default for ReaderConfig {
    fn default() -> Self {
        ReaderConfig {
            tail_min: 50,
            tail_max: 500,
            tail_age_ms: 60_000,
            max_channels: 50_000,
            poll_max_ms: 1_000,
            poll_min_ms: 5,
            offline_after_ms: 10_000,
            late_kept: 10_000,
        }
    }
}

impl ReaderConfig {
    /// Whether the values make sense together.
    ///
    /// # Errors
    /// `ConfigInvalid`, naming every one that does not.
    pub fn validate(&self) -> Result<()> {
        let mut wrong = Vec::new();
        if self.tail_min > self.tail_max {
            wrong.push(format!("tail_min is {}, must be at most tail_max, {}", self.tail_min, self.tail_max));
        }
        if self.poll_min_ms == 0 || self.poll_min_ms > self.poll_max_ms {
            wrong.push(format!("poll_min_ms is {}, must be from 1 to poll_max_ms, {}", self.poll_min_ms, self.poll_max_ms));
        }
        if self.max_channels == 0 {
            wrong.push("max_channels is 0, must be at least 1".to_owned());
        }
        if wrong.is_empty() { Ok(()) } else { Err(Error::config(wrong.join("; "))) }
    }
}

/// What a request may see: the clock at the moment it was made. All its channels see this one cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cut {
    /// The batch.
    pub batch: u64,
    /// Everything at or below is accounted for.
    pub stable: Sequence,
    /// Up to here every gap is old.
    pub settled: Sequence,
    /// Everything at or below is accounted for or missing.
    pub high: Sequence,
    /// How many late entries there were.
    pub late: LateCursor,
    /// Whether anything is missing.
    pub has_gaps: bool,
}

impl Cut {
    fn of(clock: &PublishedClock) -> Self {
        Cut {
            batch: clock.batch,
            stable: clock.stable,
            settled: clock.settled,
            high: clock.high,
            late: LateCursor(clock.late),
            has_gaps: clock.gaps > 0,
        }
    }

    /// The highest sequence shown in a delivery mode.
    pub fn position(&self, delivery: Delivery) -> Sequence {
        match delivery {
            Delivery::Strict => self.stable,
            Delivery::Eager => self.high,
            _ => self.settled,
        }
    }

    /// The low sequence to put into ids; zero while nothing is missing.
    pub fn low(&self) -> Sequence {
        if self.has_gaps { self.stable } else { Sequence::ZERO }
    }
}

/// What a node has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ReaderStats {
    /// Channels asked for that the tail could answer.
    pub hits: u64,
    /// Channels asked for that needed blocks.
    pub misses: u64,
    /// Channels with a tail.
    pub channels: u64,
    /// Rows in them.
    pub rows: u64,
    /// Bytes of the tails, beyond the entries, which channels share.
    pub tail_bytes: u64,
    /// Tails let go for others.
    pub evicted: u64,
    /// Times everything in memory was given up because the ring had moved on.
    pub resyncs: u64,
}

/// A node that answers changes requests. Cheap to clone; all clones share their memory and one task that follows the clock,
/// which ends with the last clone.
#[derive(Clone, Debug)]
pub struct ReaderNode {
    node: Arc<Node>,
    _follower: Arc<AbortOnDropHandle<()>>,
}

#[derive(Debug)]
pub(crate) struct Node {
    store: Arc<dyn CacheStore>,
    config: ReaderConfig,
    codec: Arc<dyn BlockCodec>,
    ring: u64,
    state: parking_lot::RwLock<State>,
    /// Held by whoever catches up with the clock.
    following: tokio::sync::Mutex<()>,
    /// One fill a channel at a time.
    fills: parking_lot::Mutex<ChannelMap<Arc<tokio::sync::Mutex<()>>>>,
    cut: watch::Sender<Cut>,
    counters: state::Counters,
}

/// The rows of several channels since somewhere: views of one cut.
#[derive(Clone, Debug)]
pub struct Changes {
    cut: Cut,
    options: ChangesOptions,
    /// Where the request starts, and how far it may see.
    start: Sequence,
    channels: SmallVec<[(Channel, ChannelView); 1]>,
    /// Late rows below the start, by channel asked for; and where the late cursor stands after them.
    late: Vec<Vec<Row>>,
    late_cursor: LateCursor,
}

impl Changes {
    /// The cut it was made at.
    pub fn cut(&self) -> &Cut {
        &self.cut
    }

    /// The channels asked for and their rows since the start; neither filtered nor limited, late ones left out.
    pub fn channels(&self) -> &[(Channel, ChannelView)] {
        &self.channels
    }

    /// The rows of the first channel: all there is when one was asked for.
    #[inline]
    pub fn rows(&self) -> &[Row] {
        self.channels.first().map_or(&[], |(_, view)| view.rows())
    }

    /// The answer: channels merged, filtered, limited, with ids.
    pub fn answer(&self) -> Answer {
        let low = self.cut.low();
        let regular = self.channels.iter().map(|(channel, view)| Source::new(channel, view.rows()));
        let late = self.channels.iter().zip(&self.late).map(|((channel, _), rows)| Source::new(channel, rows));
        let merged = merge(late.chain(regular), low, self.options.active_only);
        let rows: Vec<AnswerRow> = match self.options.limit {
            Some(limit) => merged.take(limit).collect(),
            None => merged.collect(),
        };
        let mut answer = Answer::new(rows, self.options.since, low, self.late_cursor);
        if answer.last.sequence <= self.start && !self.late.is_empty() {
            // A late row does not take the client back.
            answer.last = self.options.since;
        }
        answer
    }
}

impl ReaderNode {
    /// Opens the cache in `store` for reading. There must be one: a writer makes it.
    ///
    /// # Errors
    /// `NotFound` if the store holds no cache yet; `Corrupt` or `ConfigInvalid` if this build cannot read it.
    pub fn open(store: Arc<dyn CacheStore>, config: ReaderConfig) -> BoxFuture<'static, Result<Self>> {
        Box::pin(ReaderNode::open_and_follow(store, config))
    }

    async fn open_and_follow(store: Arc<dyn CacheStore>, config: ReaderConfig) -> Result<Self> {
        config.validate()?;
        let absent = || Error::new(ErrorKind::NotFound, "the store holds no cache yet; start a writer first");
        let meta = store.get(&CacheKey::Meta).await?.ok_or_else(absent)?;
        let meta = Meta::from_bytes(&meta.value).map_err(|e| e.with_context("key", CacheKey::Meta))?;
        let codec = meta.block_codec()?;
        // Before the clock is read, so that nothing published after it is missed.
        let wakes = store.wakes();
        let clock = read_clock(store.as_ref()).await?.ok_or_else(absent)?.value;
        let above = scan::stored_above(store.as_ref(), codec.as_ref(), clock.high).await?;
        let record = store.record(clock.batch, meta.ring).await?;
        let node = Arc::new(Node {
            cut: watch::Sender::new(Cut::of(&clock)),
            state: parking_lot::RwLock::new(State::new(clock, record.as_deref(), above)),
            following: tokio::sync::Mutex::default(),
            store,
            config,
            codec,
            ring: meta.ring,
            fills: parking_lot::Mutex::default(),
            counters: state::Counters::default(),
        });
        let follower = tokio::spawn(follow::follow(Arc::downgrade(&node), wakes));
        Ok(ReaderNode { node, _follower: Arc::new(AbortOnDropHandle::new(follower)) })
    }

    /// Waits until there is a cache in `store`, then opens it.
    ///
    /// # Errors
    /// As [`open`](Self::open), `NotFound` excepted.
    pub async fn open_when_ready(store: Arc<dyn CacheStore>, config: ReaderConfig) -> Result<Self> {
        loop {
            match ReaderNode::open(store.clone(), config.clone()).await {
                Err(e) if e.kind() == ErrorKind::NotFound => {
                    tokio::time::sleep(Duration::from_millis(config.poll_min_ms.max(1))).await;
                }
                opened => return opened,
            }
        }
    }

    /// What requests see at the moment.
    pub fn cut(&self) -> Cut {
        self.node.state.read().cut
    }

    /// The published clock as this node knows it.
    pub fn clock(&self) -> PublishedClock {
        self.node.state.read().clock.clone()
    }

    /// The lowest sequence that is missing and waited for, if any.
    pub fn oldest_skipped(&self) -> Option<Sequence> {
        let cut = self.cut();
        cut.has_gaps.then(|| cut.stable.next())
    }

    /// What the node has done.
    pub fn stats(&self) -> ReaderStats {
        let counters = &self.node.counters;
        let get = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let state = self.node.state.read();
        ReaderStats {
            hits: get(&counters.hits),
            misses: get(&counters.misses),
            channels: state.tails.len() as u64,
            rows: state.tails.values().map(|tail| tail.len() as u64).sum(),
            tail_bytes: state.tails.values().map(|tail| tail.memory_bytes() as u64).sum(),
            evicted: get(&counters.evicted),
            resyncs: get(&counters.resyncs),
        }
    }

    /// Waits until the node has followed the writer to `clock`'s batch.
    ///
    /// # Errors
    /// `Closed` if the node ends first.
    pub async fn wait_for_batch(&self, batch: u64) -> Result<Cut> {
        let mut cuts = self.node.cut.subscribe();
        let cut = cuts.wait_for(|cut| cut.batch >= batch).await;
        cut.map(|cut| *cut).map_err(|_| Error::new(ErrorKind::Closed, "the reader has been shut down"))
    }

    /// Looks at the clock now, rather than when the follower does; the cut after it.
    ///
    /// # Errors
    /// What the store says.
    pub fn refresh(&self) -> BoxFuture<'_, Result<Cut>> {
        Box::pin(async {
            self.node.catch_up().await?;
            Ok(self.cut())
        })
    }

    /// What is in memory for `channel` since `options.since`, if that is all there is to say; `None` if blocks must be read. Copies no rows and does no I/O.
    ///
    /// # Errors
    /// `Unavailable` or `Corrupt` when the node is offline.
    pub fn cached_changes(&self, channel: &Channel, options: &ChangesOptions) -> Result<Option<Changes>> {
        self.node.cached(std::slice::from_ref(channel), options)
    }

    /// The rows of `channels` since `options.since`: one cut for all, each document once a channel at its newest sequence.
    ///
    /// What the tails hold is answered from memory; below that, directory and blocks are read, and no more sequence documents
    /// than the limit needs. Cancel safe; may be repeated.
    ///
    /// # Errors
    /// `Unavailable` or `Corrupt` when the node is offline; `Corrupt`, naming the key, for what cannot be read.
    pub async fn changes(&self, channels: &[Channel], options: &ChangesOptions) -> Result<Changes> {
        if let Some(changes) = self.node.cached(channels, options)? {
            return Ok(changes);
        }
        self.changes_from_blocks(channels, options).await
    }

    fn changes_from_blocks<'a>(&'a self, channels: &'a [Channel], options: &'a ChangesOptions) -> BoxFuture<'a, Result<Changes>> {
        Box::pin(self.node.changes_from_blocks(channels, options))
    }

    /// Every entry of `channel` from after `since` on up to high, superseded ones included: raw, for inspection.
    ///
    /// # Errors
    /// As [`changes`](Self::changes).
    pub async fn change_log(&self, channel: &Channel, since: Sequence) -> Result<Vec<Arc<ChangeEntry>>> {
        let high = self.cut().high;
        let Some(range) = SequenceRange::new(since.next(), high) else { return Ok(Vec::new()) };
        scan::logged(self.node.store.as_ref(), self.node.codec.as_ref(), channel, range).await
    }

    /// Lets rows in memory go: at most `keep` a channel stay (rows above stable come on top). What goes is read from blocks again when asked for.
    pub fn prune(&self, keep: usize) -> usize {
        let mut state = self.node.state.write();
        let stable = state.clock.stable;
        state.tails.values_mut().map(|tail| tail.prune(keep, stable)).sum()
    }
}

impl Node {
    /// Answers from memory alone, if that is possible.
    fn cached(&self, channels: &[Channel], options: &ChangesOptions) -> Result<Option<Changes>> {
        let state = self.state.read();
        state.status.check()?;
        let cut = state.cut;
        if options.late.is_some_and(|late| late < cut.late) {
            return Ok(None);
        }
        let (start, position) = (options.since.start(cut.low()), cut.position(options.delivery));
        let mut views = SmallVec::new();
        for channel in channels {
            let Some(tail) = state.tails.get(channel).filter(|t| t.ready && t.valid_from() <= start.next()) else {
                return Ok(None);
            };
            tail.last_read.store(self.counters.reads.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
            views.push((channel.clone(), tail.view(start, position)));
        }
        drop(state);
        self.counters.hits.fetch_add(channels.len() as u64, Ordering::Relaxed);
        let late_cursor = options.late.unwrap_or(cut.late);
        Ok(Some(Changes { cut, options: options.clone(), start, channels: views, late: Vec::new(), late_cursor }))
    }

    async fn changes_from_blocks(&self, channels: &[Channel], options: &ChangesOptions) -> Result<Changes> {
        // A document that a block names but that is not there may be one whose commit is under way.
        let mut patience = [10, 50, 250].into_iter();
        loop {
            match self.try_from_blocks(channels, options).await {
                Err(e) if e.kind() == ErrorKind::Corrupt && e.is_retryable() => match patience.next() {
                    Some(ms) => tokio::time::sleep(Duration::from_millis(ms)).await,
                    None => return Err(e.with_status(crate::Status::Permanent)),
                },
                answered => return answered,
            }
        }
    }

    async fn try_from_blocks(&self, channels: &[Channel], options: &ChangesOptions) -> Result<Changes> {
        for channel in channels {
            self.ensure_tail(channel).await?;
        }
        // Only an unlimited read fills a tail, and only one at a time: whoever waited finds the tail filled.
        let fills = options.limit.is_none() && !options.active_only;
        let mut guards = Vec::new();
        if fills {
            let mut sorted: Vec<&Channel> = channels.iter().collect();
            sorted.sort_unstable();
            sorted.dedup();
            for channel in sorted {
                guards.push(self.fill_lock(channel).lock_owned().await);
            }
        }
        struct Part {
            channel: Channel,
            view: ChannelView,
            below: Option<(SequenceRange, u64)>,
        }
        let (cut, missing, withdrawals, start, parts) = {
            let state = self.state.read();
            state.status.check()?;
            let cut = state.cut;
            let (start, position) = (options.since.start(cut.low()), cut.position(options.delivery));
            let mut parts = Vec::with_capacity(channels.len());
            for channel in channels {
                let Some(tail) = state.tails.get(channel).filter(|tail| tail.ready) else {
                    // Evicted meanwhile: read all from blocks; rows above stable need the tail, so begin again.
                    return Err(Error::corrupt("a channel was let go while it was read").with_status(crate::Status::Temporary));
                };
                let below = SequenceRange::new(start.next(), tail.valid_from().previous().min(position));
                let view = tail.view(start.max(tail.valid_from().previous()), position);
                parts.push(Part { channel: channel.clone(), view, below: below.map(|range| (range, tail.refused())) });
            }
            (cut, state.missing.clone(), state.withdrawals, start.min(position), parts)
        };
        let mut views = SmallVec::new();
        for Part { channel, view, below } in parts {
            let Some((range, refused)) = below else {
                self.counters.hits.fetch_add(1, Ordering::Relaxed);
                views.push((channel, view));
                continue;
            };
            self.counters.misses.fetch_add(1, Ordering::Relaxed);
            // Documents that the tail shows at a newer sequence. Their rows below are filled into the tail all the same: who sees only what
            // is stable may need them.
            let newer: FxHashSet<&str> = view.rows().iter().map(|row| row.entry.document()).collect();
            let (rows, complete) = self.read_rows(&channel, range, options, (cut.stable, &missing), &newer).await?;
            if fills && complete {
                let mut state = self.state.write();
                let stable = state.clock.stable;
                if state.withdrawals == withdrawals
                    && let Some(tail) = state.tails.get_mut(&channel)
                    && tail.refused() == refused
                    && tail.valid_from() == range.last().next()
                {
                    tail.prepend(range.first(), &rows, self.config.tail_max, stable);
                }
            }
            let mut all = rows;
            all.retain(|row| !newer.contains(row.entry.document()));
            if complete {
                all.extend_from_slice(view.rows());
            }
            keep_newest(&mut all);
            let end = all.len();
            views.push((channel, ChannelView::new(all.into(), 0, end)));
        }
        drop(guards);
        let (late, late_cursor) = match options.late {
            Some(after) => self.late_rows(channels, after, &cut, start, options.limit).await?,
            None => (Vec::new(), cut.late),
        };
        Ok(Changes { cut, options: options.clone(), start, channels: views, late, late_cursor })
    }

    /// Live rows of a channel below its tail; and whether they are all, rather than as many as the limit needs, not counting
    /// documents that have `newer` rows. What is `missing` by the cut is left out: it has not been announced.
    async fn read_rows(
        &self,
        channel: &Channel,
        range: SequenceRange,
        options: &ChangesOptions,
        (promised, missing): (Sequence, &RangeSet),
        newer: &FxHashSet<&str>,
    ) -> Result<(Vec<Row>, bool)> {
        let limit = options.limit.unwrap_or(usize::MAX);
        let counts = |entry: &ChangeEntry, state: BlockState| {
            (!options.active_only || state == BlockState::Present && !entry.is_deleted())
                && !newer.contains(entry.document())
                && !missing.contains(entry.sequence().0)
        };
        let mut counted = (0, 0);
        let mut complete = true;
        let page = limit.saturating_add(limit / 8).clamp(16, scan::PAGE);
        let (store, codec) = (self.store.as_ref(), self.codec.as_ref());
        let found = scan::live_rows(store, codec, channel, range, page, promised, |rows| {
            counted.1 += rows[counted.0..].iter().filter(|(entry, state)| counts(entry, *state)).count();
            counted.0 = rows.len();
            complete = counted.1 < limit;
            !complete
        })
        .await?;
        let mut rows = Vec::with_capacity(found.len());
        for (entry, _) in found.into_iter().filter(|(entry, _)| !missing.contains(entry.sequence().0)) {
            match Row::in_channel(&entry, channel) {
                Some(row) => rows.push(row),
                None => {
                    tracing::warn!(%channel, sequence = %entry.sequence(), "a block names an entry that is not in its channel; left out");
                }
            }
        }
        Ok((rows, complete))
    }

    /// Late rows of each channel at or below `start`, in `(after, cut.late]`; no more late entries than `limit`. And the cursor after them.
    async fn late_rows(
        &self,
        channels: &[Channel],
        after: LateCursor,
        cut: &Cut,
        start: Sequence,
        limit: Option<usize>,
    ) -> Result<(Vec<Vec<Row>>, LateCursor)> {
        let mut late = self.late_entries(after, cut.late).await?;
        late.retain(|(_, entry)| entry.sequence() <= start && channels.iter().any(|channel| entry.membership(channel).is_some()));
        let mut rest = &late[..];
        loop {
            let (some, more) = rest.split_at(rest.len().min(limit.unwrap_or(usize::MAX)));
            let cursor = more.first().map_or(cut.late, |(next, _)| LateCursor(next.number - 1));
            let mut some = some.to_vec();
            some.sort_unstable_by_key(|(late, _)| late.sequence);
            some.dedup_by_key(|(late, _)| late.sequence);
            let mut rows = Vec::with_capacity(channels.len());
            for channel in channels {
                rows.push(self.newest_of_late(channel, &some, cut).await?);
            }
            // An answer without a row says that there is nothing more.
            if some.is_empty() || more.is_empty() || rows.iter().any(|rows| !rows.is_empty()) {
                return Ok((rows, cursor));
            }
            rest = more;
        }
    }

    /// The late entries that are the newest rows of their documents in `channel`: as its tail says; of what lies below that, its blocks.
    async fn newest_of_late(&self, channel: &Channel, late: &[(LateEntry, Arc<ChangeEntry>)], cut: &Cut) -> Result<Vec<Row>> {
        let (mut rows, valid_from, clock) = {
            let state = self.state.read();
            let tail = state.tails.get(channel);
            let newest = late.iter().filter(|(_, entry)| !tail.is_some_and(|tail| tail.has_newer(entry)));
            let rows: Vec<Row> = newest.filter_map(|(_, entry)| Row::in_channel(entry, channel)).collect();
            (rows, tail.map_or(cut.high.next(), |tail| tail.valid_from()), (state.clock.stable, state.clock.marked))
        };
        if rows.first().is_none_or(|row| row.entry.sequence() >= valid_from) {
            return Ok(rows);
        }
        let (store, codec, (stable, marked)) = (self.store.as_ref(), self.codec.as_ref(), clock);
        // Rows whose marks may not have been written yet.
        let unmarked = match SequenceRange::new(marked.next(), valid_from.previous()) {
            Some(range) => scan::live_rows(store, codec, channel, range, scan::PAGE, stable, |_| false).await?,
            None => Vec::new(),
        };
        let mut is_superseded = Vec::with_capacity(rows.len());
        let mut known = None;
        for row in &rows {
            let sequence = row.entry.sequence();
            let (index, offset) = Block::locate(sequence, codec.capacity());
            let block = match known.take().filter(|(known, _)| *known == index) {
                Some((_, block)) => block,
                None => scan::block(store, codec, channel, index).await?,
            };
            let is_newer = |entry: &ChangeEntry| entry.document() == row.entry.document() && entry.sequence() > sequence;
            let is_marked = sequence < valid_from && block.get(offset) == BlockState::Superseded;
            is_superseded.push(is_marked || unmarked.iter().any(|(entry, _)| is_newer(entry)));
            known = Some((index, block));
        }
        let mut is_superseded = is_superseded.into_iter();
        rows.retain(|_| !is_superseded.next().unwrap_or(false));
        Ok(rows)
    }

    fn fill_lock(&self, channel: &Channel) -> Arc<tokio::sync::Mutex<()>> {
        let mut fills = self.fills.lock();
        if fills.len() > 2 * self.config.max_channels {
            fills.retain(|_, lock| Arc::strong_count(lock) > 1);
        }
        fills.entry(channel.clone()).or_default().clone()
    }

    /// Makes a tail for `channel` if there is none: empty, but for what lies between stable and high.
    async fn ensure_tail(&self, channel: &Channel) -> Result<()> {
        if self.state.read().tails.get(channel).is_some_and(|tail| tail.ready) {
            return Ok(());
        }
        let _filling = self.fill_lock(channel).lock_owned().await;
        let (stable, high, missing) = {
            let mut state = self.state.write();
            state.status.check()?;
            if state.tails.get(channel).is_some_and(|tail| tail.ready) {
                return Ok(());
            }
            let evicted = state.evict(self.config.max_channels.saturating_sub(1));
            self.counters.evicted.fetch_add(evicted as u64, Ordering::Relaxed);
            let (stable, high) = (state.clock.stable, state.clock.high);
            let tail = Tail::new(stable.next());
            tail.last_read.store(self.counters.reads.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
            state.tails.insert(channel.clone(), tail);
            (stable, high, state.missing.clone())
        };
        let mut rows = Vec::new();
        if let Some(range) = SequenceRange::new(stable.next(), high) {
            let (store, codec) = (self.store.as_ref(), self.codec.as_ref());
            let found = scan::live_rows(store, codec, channel, range, scan::PAGE, stable, |_| false).await?;
            let known = found.iter().filter(|(entry, _)| !missing.contains(entry.sequence().0));
            rows.extend(known.filter_map(|(entry, _)| Row::in_channel(entry, channel)));
        }
        self.state.write().fill(channel, rows);
        Ok(())
    }
}
