//! The reader: answers "what changed in these channels since?" from the store and from what it
//! follows of it.

mod config;
mod follow;
mod request;
mod state;
mod subscribe;
mod tail;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::future::BoxFuture;
use serde::Serialize;
use smallvec::SmallVec;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;
use tracing::{Instrument as _, Span};

pub use config::{ReaderConfig, WhileBuilding};
pub use subscribe::LateSubscription;
pub use tail::ChannelView;

use crate::block::BlockCodec;
use crate::changes::{Answer, AnswerRow, ChangesOptions, Delivery, LateCursor, Row, Source, merge};
use crate::channel::{Channel, ChannelMap};
use crate::clock::PublishedClock;
use crate::collections::Collections;
use crate::commit::read_clock;
use crate::entry::ChangeEntry;
use crate::error::{Error, ErrorKind, Result};
use crate::key::CacheKey;
use crate::meta::Meta;
use crate::missing::LastBatch;
use crate::scan;
use crate::sequence::{Sequence, SequenceRange};
use crate::store::CacheStore;
use state::{State, Status};

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

/// A node that answers changes requests. Cheap to clone; all clones share their memory and one task
/// that follows the clock, which ends with the last clone.
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
    followed: watch::Sender<Followed>,
    /// In which its lines are logged: that in which it was opened.
    span: Span,
    counters: state::Counters,
}

/// What those are told who wait for no channel.
#[derive(Debug)]
struct Followed {
    cut: Cut,
    status: Status,
}

fn closed(_: watch::error::RecvError) -> Error {
    Error::new(ErrorKind::Closed, "the reader has been shut down")
}

/// The rows of several channels since somewhere: views of one cut.
#[derive(Clone, Debug)]
pub struct Changes {
    cut: Cut,
    options: ChangesOptions,
    /// Where the request starts, and how far it may see.
    start: Sequence,
    channels: SmallVec<[(Channel, ChannelView); 1]>,
    /// Late rows below the start, by channel asked for; and where the late cursor stands after
    /// them.
    late: Vec<Vec<Row>>,
    late_cursor: LateCursor,
}

impl Changes {
    /// The cut it was made at.
    pub fn cut(&self) -> &Cut {
        &self.cut
    }

    /// The channels asked for and their rows since the start; neither filtered nor limited, late
    /// ones left out.
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
            Some(limit) => take_whole(merged, limit),
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

/// The first `limit` rows, and all others with the id of the last one: a client could not ask for
/// the rest of them. Documents share a sequence only if the gateway allocated it twice.
fn take_whole(rows: impl Iterator<Item = AnswerRow>, limit: usize) -> Vec<AnswerRow> {
    let mut taken: Vec<AnswerRow> = Vec::new();
    for row in rows {
        if taken.len() >= limit && taken.last().is_none_or(|last| last.id != row.id) {
            break;
        }
        taken.push(row);
    }
    taken
}

impl ReaderNode {
    /// Opens the cache in `store` for reading. There must be one: a writer makes it. What the node
    /// logs later is in the span in which it was opened.
    ///
    /// # Errors
    /// `NotFound` if the store holds no cache yet; `Corrupt` or `ConfigInvalid` if this build
    /// cannot read it.
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
        let state = match clock.building.filter(|_| config.while_building == WhileBuilding::Refuse) {
            // It begins when the cache is built. All entries are above high until then.
            Some(progress) => {
                follow::tell_building(progress);
                let mut state = State::new(PublishedClock::new(clock.cache).into(), Vec::new());
                state.status = Status::Building(progress);
                state
            }
            None => {
                let last = LastBatch::read(store.as_ref(), meta.ring, clock).await?;
                let above = scan::waiting_above(store.as_ref(), codec.as_ref(), last.clock.high).await?;
                State::new(last, above)
            }
        };
        let node = Arc::new(Node {
            followed: watch::Sender::new(Followed { cut: state.cut, status: state.status.clone() }),
            state: parking_lot::RwLock::new(state),
            following: tokio::sync::Mutex::default(),
            span: Span::current(),
            store,
            config,
            codec,
            ring: meta.ring,
            fills: parking_lot::Mutex::default(),
            counters: state::Counters::default(),
        });
        let follower = tokio::spawn(follow::follow(Arc::downgrade(&node), wakes).in_current_span());
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

    /// The collections that have documents in the cache, and the names of collections, as stored
    /// now.
    ///
    /// # Errors
    /// `Corrupt`, naming the key, if the list cannot be read; what the store says.
    pub async fn collections(&self) -> Result<Collections> {
        let key = CacheKey::Collections;
        let Some(stored) = self.node.store.get(&key).await? else { return Ok(Collections::new()) };
        Collections::from_bytes(&stored.value).map_err(|e| e.with_context("key", &key))
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

    /// Waits until the cache is built, if the node refuses requests until then. Cancel safe.
    ///
    /// # Errors
    /// `Unavailable` or `Corrupt` when the node is offline; `Closed` if the node ends first.
    pub async fn ready(&self) -> Result<Cut> {
        let mut followed = self.node.followed.subscribe();
        let is_built = |followed: &Followed| !matches!(followed.status, Status::Building(_));
        let told = followed.wait_for(is_built).await.map_err(closed)?;
        told.status.check()?;
        Ok(told.cut)
    }

    /// Waits until the node has followed the writer to `clock`'s batch; also while the store does
    /// not answer.
    ///
    /// # Errors
    /// `Closed` if the node ends first; `Corrupt` if the store has lost what the node had followed.
    pub async fn wait_for_batch(&self, batch: u64) -> Result<Cut> {
        let mut followed = self.node.followed.subscribe();
        let is_lost = |followed: &Followed| matches!(followed.status, Status::Lost(_));
        let told = followed.wait_for(|followed| followed.cut.batch >= batch || is_lost(followed)).await.map_err(closed)?;
        if is_lost(&told) {
            told.status.check()?;
        }
        Ok(told.cut)
    }

    /// Looks at the clock now, rather than when the follower does; the cut after it.
    ///
    /// # Errors
    /// What the store says.
    pub fn refresh(&self) -> BoxFuture<'_, Result<Cut>> {
        Box::pin(async {
            self.node.catch_up().instrument(self.node.span.clone()).await?;
            Ok(self.cut())
        })
    }

    /// What is in memory for `channel` since `options.since`, if that is all there is to say;
    /// `None` if blocks must be read. Copies no rows and does no I/O.
    ///
    /// # Errors
    /// `Unavailable` when the cache is being built, see [`ReaderConfig::while_building`];
    /// `Unavailable` or `Corrupt` when the node is offline.
    pub fn cached_changes(&self, channel: &Channel, options: &ChangesOptions) -> Result<Option<Changes>> {
        self.node.cached(std::slice::from_ref(channel), options)
    }

    /// The rows of `channels` since `options.since`: one cut for all, each document once a channel
    /// at its newest sequence.
    ///
    /// What the tails hold is answered from memory; below that, directory and blocks are read, and
    /// no more sequence documents than the limit needs. Cancel safe; may be repeated.
    ///
    /// # Errors
    /// `Unavailable` when the cache is being built, see [`ReaderConfig::while_building`];
    /// `Unavailable` or `Corrupt` when the node is offline; `Corrupt`, naming the key, for what
    /// cannot be read.
    pub async fn changes(&self, channels: &[Channel], options: &ChangesOptions) -> Result<Changes> {
        if let Some(changes) = self.node.cached(channels, options)? {
            return Ok(changes);
        }
        self.changes_from_blocks(channels, options).await
    }

    /// As [`changes`](Self::changes), but waits until the cache is built. Cancel safe.
    ///
    /// # Errors
    /// `Unavailable` or `Corrupt` when the node is offline; `Corrupt`, naming the key, for what
    /// cannot be read.
    pub async fn changes_when_ready(&self, channels: &[Channel], options: &ChangesOptions) -> Result<Changes> {
        loop {
            self.ready().await?;
            match self.changes(channels, options).await {
                Err(e) if follow::is_building(&e) => {}
                changes => return changes,
            }
        }
    }

    fn changes_from_blocks<'a>(&'a self, channels: &'a [Channel], options: &'a ChangesOptions) -> BoxFuture<'a, Result<Changes>> {
        Box::pin(self.node.changes_from_blocks(channels, options).instrument(self.node.span.clone()))
    }

    /// Every entry of `channel` from after `since` on up to high, superseded ones included: raw,
    /// for inspection.
    ///
    /// # Errors
    /// As [`changes`](Self::changes).
    pub async fn change_log(&self, channel: &Channel, since: Sequence) -> Result<Vec<Arc<ChangeEntry>>> {
        let high = self.cut().high;
        let Some(range) = SequenceRange::new(since.next(), high) else { return Ok(Vec::new()) };
        scan::logged(self.node.store.as_ref(), self.node.codec.as_ref(), channel, range).await
    }

    /// Lets rows in memory go: at most `keep` a channel stay (rows above stable come on top). What
    /// goes is read from blocks again when asked for.
    pub fn prune(&self, keep: usize) -> usize {
        let mut state = self.node.state.write();
        let stable = state.clock.stable;
        state.tails.values_mut().map(|tail| tail.prune(keep, stable)).sum()
    }
}
