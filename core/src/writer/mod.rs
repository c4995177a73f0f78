//! The writer: feed → decode → sequence → batch → commit → publish.
//!
//! A thin shell around the pure [`Assembler`]: decoding and committing run as tasks of their own,
//! so that a second core has work; everything that decides happens on one task, in the order of the
//! feed.

mod config;
mod conflict;
mod floors;
mod inherited;
mod intake;
mod intents;
mod items;
mod named;
mod notices;
mod output;
mod owners;
mod pointers;
mod purge;
mod rollback;
mod take_over;
mod withdrawal;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use backon::ExponentialBuilder;
use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::FuturesOrdered;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument as _;

use crate::block::BlockCodec;
use crate::channel::Channel;
use crate::clock::PublishedClock;
use crate::collections::Collections;
use crate::decode::MutationDecoder;
use crate::engine::{Assembler, WriterStats};
use crate::error::{Error, ErrorKind, Result};
use crate::feed::{Feed, FeedStart, PartitionId, PositionTracker};
use crate::key::{BlockIndex, CacheKey};
use crate::retry::log as log_retry;
use crate::sequence::{RangeSet, Sequence};
use crate::store::{CacheStore, Versioned};

pub use config::WriterConfig;
use floors::Floors;
use intents::Intents;
use items::{DecodedBatch, decode};
use output::{InFlight, Publishing};
use owners::{KnownSequences, RecentOwners, SharedSequences};
use pointers::PointerCache;
use purge::Purges;
use rollback::Rollbacks;

/// Why [`Writer::run`] returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The feed came to its end; nothing waits any longer.
    Feed,
    /// It was asked to stop. What is missing is still waited for by whoever goes on.
    Stopped,
}

/// How far a writer is, as it tells whoever watches it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct WriterProgress {
    /// The clock last published.
    pub clock: PublishedClock,
    /// What it has seen in its term.
    pub stats: WriterStats,
    /// How many arrived entries wait for a lower number.
    pub pending: usize,
    /// Bytes of feed events taken and not yet published.
    pub queued_bytes: usize,
}

/// Feed batches being decoded ahead of the one task that applies them.
const DECODE_AHEAD: usize = 8;

/// A large checkpoint is written once so many times its bytes of events have come.
const EVENTS_A_CHECKPOINT: usize = 10;

/// A large checkpoint is written after so many times the interval of checkpoints, however few
/// events have come.
const MAX_INTERVALS: u32 = 60;

/// A checkpoint below this size, in bytes, is written after each interval.
const SMALL_CHECKPOINT: usize = 64 << 10;

/// The writer of one cache, for one term. Exclusive: there is one task that drives it.
///
/// Made by [`Writer::take_over`]. Dropping it at any moment loses nothing: whoever takes over next
/// goes on from the stored clock and checkpoint.
#[derive(Debug)]
pub struct Writer {
    store: Arc<dyn CacheStore>,
    decoder: Arc<dyn MutationDecoder>,
    config: WriterConfig,
    codec: Arc<dyn BlockCodec>,
    assembler: Assembler,
    tracker: PositionTracker,
    /// Partitions of which the stored checkpoint has a history.
    recorded: BTreeSet<PartitionId>,
    /// Whether the feed has told the history of another one since.
    has_new_history: bool,
    resume: bool,
    has_positions: bool,
    /// How many partitions the feed has, if it announces snapshots.
    partitions: Option<u16>,
    began: Instant,
    checkpointed: Instant,
    /// Whether events were applied since the last checkpoint.
    dirty: bool,
    /// Bytes of events applied since the last checkpoint.
    bytes_since_checkpoint: usize,
    clock: Versioned<PublishedClock>,
    in_flight: VecDeque<InFlight>,
    publishing: Option<Publishing>,
    /// Bytes of events applied but not prepared; of events taken and not published.
    waiting_bytes: usize,
    queued_bytes: usize,
    /// Blocks in which nothing was live when they were last written, by their last sequence.
    emptied: BTreeMap<(Sequence, Channel), BlockIndex>,
    /// Drops some of them from their directories.
    dropping: Option<JoinHandle<()>>,
    /// Where documents have their newest rows, if the writer keeps pointers.
    pointers: Option<PointerCache>,
    /// What the feed took back, of which it is not known yet what comes again.
    rollbacks: Rollbacks,
    /// What came since the feed began to take back, and is not taken until no more rollbacks are
    /// waited for; and when that began.
    deferred: Vec<DecodedBatch>,
    deferred_since: Option<Instant>,
    /// Where entries lie that came from after a position: as the checkpoint said, and as this term
    /// has found.
    floors: Floors,
    /// When the feed had delivered all that was there when it was opened, which includes all that
    /// earlier terms can have taken of it.
    caught_up_at: Option<Instant>,
    /// Whether a batch was begun after `caught_up_at`. All that earlier terms can have taken is in
    /// this batch and those before it.
    has_committed_all: bool,
    /// Whether the term before ended without a checkpoint of all that it had committed.
    after_kill: bool,
    /// Feed batches whose pointers have begun to be read, and the last that was applied.
    begun: u64,
    /// Purged documents whose rows are not removed yet.
    purges: Purges,
    /// Whether every document has a pointer, so that purged ones are found by it.
    has_pointers: bool,
    /// Whether the cache may have documents of other collections as those of the default one.
    lacks_collections: bool,
    /// Sequences that more than one document has.
    shared: SharedSequences,
    /// Which document has each of the last sequences.
    owners: RecentOwners,
    /// Sequences that were looked up.
    known: KnownSequences,
    /// Commits in progress.
    intents: Arc<Intents>,
    /// Sequences under which the former term may have stored entries without publishing them.
    unpublished: RangeSet,
    /// Names of collections, as the feed has reported them.
    collections: Collections,
    /// The part of the list of collections that is known to be stored.
    registered: Arc<Mutex<Collections>>,
    /// Tells who watches; made when somebody asks.
    progress: Option<watch::Sender<WriterProgress>>,
    /// Logs, at the end of the term, how many lines were suppressed.
    _at_end: notices::TellAtEnd,
}

impl Writer {
    /// Where the feed must be opened.
    pub fn start(&self) -> FeedStart {
        if self.resume { FeedStart::At(self.tracker.position()) } else { FeedStart::Beginning }
    }

    /// The clock last published.
    pub fn clock(&self) -> &PublishedClock {
        &self.clock.value
    }

    /// What it has seen.
    pub fn stats(&self) -> WriterStats {
        self.assembler.stats()
    }

    /// How far it is: told anew with each batch published, and now and then besides, while it runs.
    pub fn progress(&mut self) -> watch::Receiver<WriterProgress> {
        let now = self.progress_now();
        self.progress.get_or_insert_with(|| watch::Sender::new(now)).subscribe()
    }

    fn progress_now(&self) -> WriterProgress {
        WriterProgress {
            clock: self.clock.value.clone(),
            stats: self.stats(),
            pending: self.pending(),
            queued_bytes: self.queued_bytes,
        }
    }

    fn tell_progress(&self) {
        if let Some(progress) = &self.progress {
            progress.send_replace(self.progress_now());
        }
    }

    /// How many arrived entries wait for a lower number.
    pub fn pending(&self) -> usize {
        self.assembler.sequencer().pending_count()
    }

    /// Bytes of feed events taken and not yet published.
    pub fn queued_bytes(&self) -> usize {
        self.queued_bytes
    }

    /// Follows `feed` until it ends, `stop` completes, or something cannot go on. Everything taken
    /// from the feed is stored and published before this returns `Ok`, and a checkpoint with it.
    ///
    /// Cancel safe in the sense of the cache: dropping the future loses nothing that the next
    /// writer would not find again; this `Writer` must then be dropped too.
    ///
    /// # Errors
    /// `Fenced` when another writer has taken over; the feed's errors, after what it delivered was
    /// stored; the store's, when they are permanent or lasted for `give_up_after_ms`.
    pub fn run<'a>(&'a mut self, feed: &'a dyn Feed, stop: impl Future<Output = ()> + Send + 'a) -> BoxFuture<'a, Result<Ended>> {
        self.run_until(feed, Box::pin(stop))
    }

    fn run_until<'a>(&'a mut self, feed: &'a dyn Feed, stop: BoxFuture<'a, ()>) -> BoxFuture<'a, Result<Ended>> {
        Box::pin(self.follow(feed, stop))
    }

    async fn follow(&mut self, feed: &dyn Feed, mut stop: BoxFuture<'_, ()>) -> Result<Ended> {
        let info = feed.info();
        self.has_positions = info.capabilities.positions;
        self.partitions = info.capabilities.snapshots.then_some(info.partitions);
        if !self.has_positions {
            self.resume = false;
        }
        let is_partial = self.config.partial_feed.unwrap_or_else(|| feed.is_partial());
        self.assembler.set_partial(is_partial);
        if is_partial {
            tracing::info!(
                feed = feed.info().name,
                max_wait_ms = self.config.max_wait_ms,
                "the feed is restricted: sequences that it does not deliver within max_wait_ms are taken for those of \
                 other collections; if it covers all collections of the database, set writer.partial_feed to false"
            );
        }
        if self.clock.value.batch == 0 && self.config.hold_first_read {
            self.assembler.hold();
            tracing::info!(
                feed = feed.info().name,
                "building a new cache: no sequence is skipped until the feed has delivered what is there, and readers refuse \
                 requests until then"
            );
        }
        if let Some(progress) = self.clock.value.building {
            tracing::info!(
                feed = feed.info().name,
                arrived = progress.arrived,
                "continuing to build the new cache; readers refuse requests until the feed has delivered what is there"
            );
        }
        // This may take long: a shared feed is opened when all databases have opened it.
        let opened = tokio::select! {
            biased;
            () = &mut stop => None,
            opened = feed.open(self.start()) => Some(opened),
        };
        let Some(opened) = opened else { return self.flush().await.map(|()| Ended::Stopped) };
        let mut stream = opened.map_err(|e| e.with_operation("open the feed"))?;
        let mut decoding = FuturesOrdered::new();
        let mut ticks = tokio::time::interval(Duration::from_millis((self.config.max_wait_ms / 2).clamp(1, 1_000)));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut ended = None;
        loop {
            if self.should_launch() {
                self.launch(None);
            }
            let reading = ended.is_none();
            if !reading && decoding.is_empty() {
                self.take_deferred().await?;
                break;
            }
            let gathered = self.deferred_since.unwrap_or(self.began) + Duration::from_millis(self.config.gather_rollbacks_ms);
            let is_deferring = self.deferred_since.is_some();
            let purge_due = self.purges.due().filter(|_| self.rollbacks.is_settled());
            let (is_purging, purge_at) = (purge_due.is_some(), purge_due.unwrap_or(self.began));
            let room_to_read = self.queued_bytes < self.config.max_queue_bytes && decoding.len() < DECODE_AHEAD;
            let room_to_apply = self.in_flight.len() < self.config.max_in_flight;
            tokio::select! {
                biased;
                () = &mut stop, if reading => ended = Some(Ok(Ended::Stopped)),
                settled = self.settle(), if self.is_busy() => settled?,
                next = stream.next(), if reading && room_to_read => match next {
                    Some(Ok(batch)) => {
                        let bytes = batch.memory_bytes();
                        self.queued_bytes += bytes;
                        let (decoder, reader) = (self.decoder.clone(), self.pointer_reader());
                        let decoded = async move { reader.read(decode(decoder.as_ref(), batch), bytes).await };
                        decoding.push_back(AbortOnDropHandle::new(tokio::spawn(decoded.in_current_span())));
                    }
                    Some(Err(e)) => ended = Some(Err(e)),
                    None => ended = Some(Ok(Ended::Feed)),
                },
                Some(decoded) = decoding.next(), if room_to_apply => self.apply(decoded.map_err(task_failed)??).await?,
                _ = ticks.tick() => self.tick(),
                () = tokio::time::sleep_until(gathered), if is_deferring => self.take_deferred().await?,
                () = tokio::time::sleep_until(purge_at), if is_purging => self.purge_due().await?,
            }
        }
        drop(stream);
        match ended {
            Some(Ok(Ended::Feed)) | None => self.finish().await.map(|()| Ended::Feed),
            Some(stopped) => self.flush().await.and(stopped),
        }
    }

    /// As [`flush`](Self::flush), where nothing more will come for now: what is missing is not
    /// waited for, but skipped at once.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub async fn finish(&mut self) -> Result<()> {
        let was_first_read = self.assembler.sequencer().holds();
        notices::tell_noted(&self.assembler.end_of_feed(self.now()));
        if was_first_read {
            self.tell_built();
        }
        self.flush().await
    }

    /// Stores and publishes everything applied so far, marks of superseded rows and a checkpoint
    /// included.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn flush(&mut self) -> BoxFuture<'_, Result<()>> {
        Box::pin(self.flush_all())
    }

    async fn flush_all(&mut self) -> Result<()> {
        let now = self.now();
        notices::tell_noted(&self.assembler.tick(now));
        self.purge().await?;
        // The batch stores how long sequences have been missing: it may be the last one for long.
        let sequencer = self.assembler.sequencer();
        self.dirty |= sequencer.pending_count() > 0 || sequencer.skipped_count() > 0;
        loop {
            while self.is_busy() {
                self.settle().await?;
            }
            if self.assembler.is_idle(self.now()) && !(self.dirty && self.has_positions) {
                return Ok(());
            }
            self.launch(Some(()));
        }
    }

    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    fn is_busy(&self) -> bool {
        self.publishing.is_some() || !self.in_flight.is_empty()
    }

    /// Whether as many entries, or memberships, are collected as a batch may have.
    fn is_batch_full(&self) -> bool {
        self.assembler.waiting() >= self.config.max_batch
            || self.assembler.waiting_memberships() >= self.config.max_batch_memberships
    }

    /// A full batch goes as soon as there is room; a smaller one when nothing else is under way, so
    /// that an idle writer adds no delay.
    fn should_launch(&mut self) -> bool {
        if self.in_flight.len() >= self.config.max_in_flight {
            return false;
        }
        if self.is_batch_full() {
            return true;
        }
        if self.is_busy() {
            return false;
        }
        let idle = self.assembler.is_idle(self.now());
        if idle {
            // What was applied needed no batch.
            self.queued_bytes -= std::mem::take(&mut self.waiting_bytes);
        }
        !idle
    }

    /// Ends the first read if the feed has delivered all that was there, and nothing is missing.
    /// Otherwise `max_wait` later: what a gateway was just writing comes by then.
    fn end_first_read(&mut self) {
        let Some(caught_up_at) = self.caught_up_at.filter(|_| self.assembler.sequencer().holds()) else { return };
        let is_complete = self.assembler.sequencer().pending_count() == 0;
        if is_complete || caught_up_at.elapsed() >= Duration::from_millis(self.config.max_wait_ms) {
            notices::tell_noted(&self.assembler.release(self.now()));
            self.tell_built();
        }
    }

    fn tell_built(&self) {
        tracing::info!(high = self.assembler.sequencer().high().0, "the new cache is built: readers answer requests");
        let stats = self.assembler.stats();
        if self.assembler.sequencer().is_untouched() && stats.received > 0 {
            tracing::warn!(
                events = stats.received,
                "none of the feed's events is a document of the gateway's database: see whether the bucket, the metadata id \
                 (decoder.metadata_id) and the collections are the gateway's"
            );
        }
    }

    fn tick(&mut self) {
        self.end_first_read();
        notices::tell_noted(&self.assembler.tick(self.now()));
        self.tell_progress();
        if self.dirty && self.in_flight.len() < self.config.max_in_flight && self.is_checkpoint_due() {
            self.launch(Some(()));
        }
    }

    /// Whether it is time for a checkpoint.
    fn is_checkpoint_due(&self) -> bool {
        let (elapsed, interval) = (self.checkpointed.elapsed(), Duration::from_millis(self.config.checkpoint_interval_ms));
        elapsed >= interval && {
            let bytes = self.assembler.checkpoint_bytes();
            is_checkpoint_worth_it(elapsed, interval, self.bytes_since_checkpoint, bytes)
        }
    }
}

/// Whether a checkpoint of `bytes` is written after `event_bytes` of events.
fn is_checkpoint_worth_it(elapsed: Duration, interval: Duration, event_bytes: usize, bytes: usize) -> bool {
    bytes < SMALL_CHECKPOINT
        || event_bytes >= bytes.saturating_mul(EVENTS_A_CHECKPOINT)
        || elapsed >= interval.saturating_mul(MAX_INTERVALS)
}

fn backoff(config: &WriterConfig) -> ExponentialBuilder {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(5))
        .with_max_delay(Duration::from_secs(2))
        .with_total_delay(Some(Duration::from_millis(config.give_up_after_ms)))
        .without_max_times()
        .with_jitter()
}

/// Says what to do about a stored document that is corrupt. The clock and the cache's description
/// cannot be repaired.
fn name_repair(error: Error) -> Error {
    let is_repairable = |key: &str| [CacheKey::Clock, CacheKey::Meta].iter().all(|fixed| key != fixed.to_string());
    if error.kind() == ErrorKind::Corrupt && error.context("key").is_some_and(is_repairable) {
        return error.with_next_step("run `sluicegate verify --repair`, then start the writer again");
    }
    error
}

fn task_failed(e: tokio::task::JoinError) -> Error {
    Error::new(ErrorKind::Unexpected, "a task of the writer failed").with_source(e)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_checkpoint_waits_for_many_events_but_not_for_ever() {
        let due =
            |seconds, events, bytes| is_checkpoint_worth_it(Duration::from_secs(seconds), Duration::from_secs(1), events, bytes);
        assert!(due(1, 0, SMALL_CHECKPOINT - 1));
        assert!(!due(59, 999_999, 100_000) && due(1, 1_000_000, 100_000) && due(60, 0, 100_000));
    }
}
