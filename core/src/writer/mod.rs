//! The writer: feed → decode → sequence → batch → commit → publish.
//!
//! A thin shell around the pure [`Assembler`]: decoding and committing run as tasks of their own, so that a second core has work;
//! everything that decides happens on one task, in the order of the feed.

mod config;
mod floors;
mod pointers;
mod rollback;
mod withdrawal;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use backon::{ExponentialBuilder, Retryable};
use futures::future::BoxFuture;
use futures::stream::FuturesOrdered;
use futures::{FutureExt as _, StreamExt as _};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use crate::batch::{BatchRecord, CommitReceipt, Gap, Publication};
use crate::block::{Block, BlockCodec, codec_named};
use crate::channel::Channel;
use crate::clock::{Epoch, PublishedClock};
use crate::commit;
use crate::coordinate::next_epoch;
use crate::decode::{Decoded, MutationDecoder};
use crate::engine::{Assembler, Noted, Prepared, Sequencer, SkippedRange, WriterStats};
use crate::error::{Error, ErrorKind, Result};
use crate::feed::{Feed, FeedBatch, FeedEvent, FeedStart, PartitionId, PartitionSeqno, PositionTracker};
use crate::fenced::Fenced;
use crate::key::{BlockIndex, CacheKey};
use crate::meta::Meta;
use crate::pointer::{Pointer, Supersession};
use crate::scan;
use crate::sequence::{RangeSet, Sequence, SequenceRange};
use crate::store::{CacheStore, Versioned};
use crate::withdraw;

pub use config::WriterConfig;
use floors::Floors;
use pointers::{PointerCache, PointerReader};
use rollback::{Held, Rollbacks};

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

/// Empty blocks dropped from their directories at once, at most: all of them are read.
const DROP_AT_ONCE: usize = 1_024;

/// The writer of one cache, for one term. Exclusive: there is one task that drives it.
///
/// Made by [`Writer::take_over`]. Dropping it at any moment loses nothing: whoever takes over next goes on from the stored clock
/// and checkpoint.
#[derive(Debug)]
pub struct Writer {
    store: Arc<dyn CacheStore>,
    decoder: Arc<dyn MutationDecoder>,
    config: WriterConfig,
    codec: Arc<dyn BlockCodec>,
    assembler: Assembler,
    tracker: PositionTracker,
    resume: bool,
    has_positions: bool,
    began: Instant,
    checkpointed: Instant,
    /// Whether events were applied since the last checkpoint.
    dirty: bool,
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
    /// What came since the feed began to take back, and is not taken until no more rollbacks are waited for; and when that began.
    deferred: Vec<DecodedBatch>,
    deferred_since: Option<Instant>,
    /// Where entries lie that came from after a position: as the checkpoint said, and as this term has found.
    floors: Floors,
    /// All that earlier terms can have taken of the feed has come again.
    is_caught_up: bool,
    /// Feed batches whose pointers have begun to be read, and the last that was applied.
    begun: u64,
    /// Tells who watches; made when somebody asks.
    progress: Option<watch::Sender<WriterProgress>>,
}

#[derive(Debug)]
struct InFlight {
    commit: AbortOnDropHandle<Result<CommitReceipt>>,
    publication: Publication,
    bytes: usize,
}

struct Publishing {
    publish: BoxFuture<'static, Result<Versioned<PublishedClock>>>,
    bytes: usize,
    /// What it publishes.
    record: Arc<BatchRecord>,
}

impl std::fmt::Debug for Publishing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Publishing({} bytes)", self.bytes)
    }
}

/// A feed batch, decoded.
#[derive(Debug)]
struct DecodedBatch {
    items: Vec<Item>,
    bytes: usize,
    /// The how-manieth it is.
    number: u64,
    /// The stored pointers of its documents, if the writer keeps any.
    pointers: HashMap<Box<str>, Pointer>,
}

#[derive(Debug)]
enum Item {
    Decoded(PartitionId, PartitionSeqno, Decoded),
    Control(FeedEvent),
}

impl Item {
    /// Whether it is taken back with everything of the partition after `to`.
    fn is_void(&self, partition: PartitionId, to: PartitionSeqno) -> bool {
        match self {
            Item::Decoded(id, seqno, _) | Item::Control(FeedEvent::SeqnoAdvanced { partition: id, seqno }) => {
                *id == partition && *seqno > to
            }
            Item::Control(FeedEvent::SnapshotStart { partition: id, start, end }) => {
                *id == partition && *start >= to && *end > to
            }
            Item::Control(FeedEvent::RollbackEnded { partition: id }) => *id == partition,
            Item::Control(_) => false,
        }
    }
}

impl Writer {
    /// The writer of a cache that nobody else writes: begins the next term, whichever that is. For tools and tests; two of them fence one
    /// another. Whoever elects takes over with [`take_over`](Self::take_over).
    ///
    /// # Errors
    /// As there.
    pub async fn alone(
        store: Arc<dyn CacheStore>,
        decoder: Arc<dyn MutationDecoder>,
        feed: &str,
        config: WriterConfig,
    ) -> Result<Writer> {
        let epoch = next_epoch(store.as_ref()).await?;
        Writer::take_over(store, decoder, feed, epoch, config).await
    }

    /// Begins the term `epoch` over `store`, for the feed called `feed`: fences whoever wrote before, and finds out where to go on. Makes a new
    /// cache if there is none. May be repeated.
    ///
    /// # Errors
    /// `Fenced` if a later epoch is there; `ConfigInvalid`, `Corrupt`, or what the store says.
    pub async fn take_over(
        store: Arc<dyn CacheStore>,
        decoder: Arc<dyn MutationDecoder>,
        feed: &str,
        epoch: Epoch,
        config: WriterConfig,
    ) -> Result<Writer> {
        Writer::begin(store, decoder, feed, epoch, config).await.map_err(name_repair)
    }

    fn begin(
        store: Arc<dyn CacheStore>,
        decoder: Arc<dyn MutationDecoder>,
        feed: &str,
        epoch: Epoch,
        config: WriterConfig,
    ) -> BoxFuture<'_, Result<Writer>> {
        Box::pin(Writer::begin_term(store, decoder, feed, epoch, config))
    }

    async fn begin_term(
        store: Arc<dyn CacheStore>,
        decoder: Arc<dyn MutationDecoder>,
        feed: &str,
        epoch: Epoch,
        config: WriterConfig,
    ) -> Result<Writer> {
        config.validate()?;
        let created_at = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let new = Meta::new(codec_named(&config.codec, config.block_capacity)?.as_ref(), config.ring, created_at);
        let attempt = || async { commit::take_over(store.as_ref(), epoch, feed, &new).await };
        let taken = attempt.retry(backoff(&config)).when(Error::is_retryable).notify(log_retry).await?;
        let codec = taken.meta.block_codec()?;
        let fenced = Fenced { store: store.as_ref(), term: epoch, removes_unreadable: false };
        let attempt = || async { withdraw::finish(fenced, codec.as_ref(), &taken).await };
        let (gone, restored) = attempt.retry(backoff(&config)).when(Error::is_retryable).notify(log_retry).await?;

        // The checkpoint may be one batch ahead of the clock; then it knows what the clock does not.
        let clock = &taken.clock.value;
        let checkpoint = taken.checkpoint.as_ref();
        let ahead = checkpoint.filter(|c| c.batch > clock.batch);
        let gap = |s: &SkippedRange| Gap { range: s.range, age_ms: s.missed_ms };
        let (high, gaps, abandoned) = match (ahead.map(|c| &c.sequencer), &taken.record) {
            (Some(ahead), _) => (ahead.next.previous(), ahead.skipped.iter().map(gap).collect(), Some(&ahead.abandoned)),
            (None, Some(record)) => (clock.high, record.gaps.clone(), Some(&record.abandoned)),
            (None, None) if clock.gaps == 0 => (clock.high, Vec::new(), None),
            (None, None) => {
                tracing::warn!(batch = clock.batch, "the last batch record is gone: what was missing is announced again as late");
                // What came after the checkpoint comes again. What had come before it does not: nobody may wait for that.
                let missing = SequenceRange::new(clock.stable.next(), clock.high).map(|range| match checkpoint {
                    Some(checkpoint) => checkpoint.sequencer.missing_in(range),
                    None => RangeSet::from(vec![range.into()]),
                });
                let ranges = missing.iter().flat_map(RangeSet::iter).filter_map(|(first, last)| SequenceRange::new(first, last));
                (clock.high, ranges.map(|range| Gap { range, age_ms: 0 }).collect(), None)
            }
        };
        let state = checkpoint.map(|c| &c.sequencer);
        let sequencer = Sequencer::resume(config.sequencer(), high, &gaps, abandoned, state, Duration::ZERO);
        let late = checkpoint.map_or(0, |c| c.late);
        let mut last = clock.clone();
        last.batch = last.batch.max(checkpoint.map_or(0, |c| c.batch));
        let mut assembler = Assembler::new(sequencer, codec.clone(), taken.meta.ring, feed.to_owned(), last, late);

        assembler.announce(gone, restored);

        let unmarked = scan::stored_above(store.as_ref(), codec.as_ref(), clock.marked).await?;
        unmarked.into_iter().for_each(|entry| assembler.remember_unmarked(entry));

        let now = Instant::now();
        let pointers = (config.supersession == Supersession::Pointers).then(PointerCache::default);
        Ok(Writer {
            pointers,
            rollbacks: Rollbacks::default(),
            deferred: Vec::new(),
            deferred_since: None,
            floors: Floors::of(checkpoint),
            is_caught_up: false,
            begun: 0,
            tracker: checkpoint.map(|c| PositionTracker::new(&c.position)).unwrap_or_default(),
            resume: checkpoint.is_some(),
            has_positions: true,
            store,
            decoder,
            config,
            codec,
            assembler,
            began: now,
            checkpointed: now,
            dirty: false,
            clock: taken.clock,
            in_flight: VecDeque::new(),
            publishing: None,
            waiting_bytes: 0,
            queued_bytes: 0,
            emptied: BTreeMap::new(),
            dropping: None,
            progress: None,
        })
    }

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

    /// Follows `feed` until it ends, `stop` completes, or something cannot go on. Everything taken from the feed is stored
    /// and published before this returns `Ok`, and a checkpoint with it.
    ///
    /// Cancel safe in the sense of the cache: dropping the future loses nothing that the next writer would not find again; this `Writer` must
    /// then be dropped too.
    ///
    /// # Errors
    /// `Fenced` when another writer has taken over; the feed's errors, after what it delivered was stored; the store's, when they are
    /// permanent or lasted for `give_up_after_ms`.
    pub fn run<'a>(&'a mut self, feed: &'a dyn Feed, stop: impl Future<Output = ()> + Send + 'a) -> BoxFuture<'a, Result<Ended>> {
        self.run_until(feed, Box::pin(stop))
    }

    fn run_until<'a>(&'a mut self, feed: &'a dyn Feed, stop: BoxFuture<'a, ()>) -> BoxFuture<'a, Result<Ended>> {
        Box::pin(self.follow(feed, stop))
    }

    async fn follow(&mut self, feed: &dyn Feed, mut stop: BoxFuture<'_, ()>) -> Result<Ended> {
        self.has_positions = feed.info().capabilities.positions;
        if !self.has_positions {
            self.resume = false;
        }
        let mut stream = feed.open(self.start()).await.map_err(|e| e.with_operation("open the feed"))?;
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
                        decoding.push_back(AbortOnDropHandle::new(tokio::spawn(async move {
                            reader.read(decode(decoder.as_ref(), batch), bytes).await
                        })));
                    }
                    Some(Err(e)) => ended = Some(Err(e)),
                    None => ended = Some(Ok(Ended::Feed)),
                },
                Some(decoded) = decoding.next(), if room_to_apply => self.apply(decoded.map_err(task_failed)??).await?,
                _ = ticks.tick() => self.tick(),
                () = tokio::time::sleep_until(gathered), if is_deferring => self.take_deferred().await?,
            }
        }
        drop(stream);
        match ended {
            Some(Ok(Ended::Feed)) | None => self.finish().await.map(|()| Ended::Feed),
            Some(stopped) => self.flush().await.and(stopped),
        }
    }

    /// Takes one feed batch, waiting while too much is in flight. For callers that have no [`Feed`]; `flush` when done.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub async fn process(&mut self, batch: FeedBatch) -> Result<()> {
        let bytes = batch.memory_bytes();
        self.queued_bytes += bytes;
        let items = decode(self.decoder.as_ref(), batch);
        self.accept(items, bytes).await
    }

    /// Takes mutations that are decoded already, waiting while too much is in flight. They have no position, so no checkpoints are
    /// stored from here on, and after a restart all must come again.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub async fn process_decoded(&mut self, decoded: Vec<Decoded>) -> Result<()> {
        let bytes = decoded.len() * size_of::<Decoded>();
        self.queued_bytes += bytes;
        self.has_positions = false;
        let items = decoded.into_iter().map(|d| Item::Decoded(PartitionId(0), PartitionSeqno(0), d)).collect();
        self.accept(items, bytes).await
    }

    fn accept(&mut self, items: Vec<Item>, bytes: usize) -> BoxFuture<'_, Result<()>> {
        Box::pin(self.accept_items(items, bytes))
    }

    async fn accept_items(&mut self, items: Vec<Item>, bytes: usize) -> Result<()> {
        let decoded = self.pointer_reader().read(items, bytes).await?;
        while self.in_flight.len() >= self.config.max_in_flight
            || self.queued_bytes > self.config.max_queue_bytes && self.is_busy()
        {
            self.settle().await?;
        }
        self.apply(decoded).await?;
        self.take_deferred().await?;
        // Take what has finished meanwhile, without waiting for more.
        while self.is_busy()
            && let Some(settled) = self.settle().now_or_never()
        {
            settled?;
        }
        if self.should_launch() {
            self.launch(None);
        }
        Ok(())
    }

    /// As [`flush`](Self::flush), where nothing more will come for now: what is missing is not waited for, but skipped at once.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub async fn finish(&mut self) -> Result<()> {
        log_noted(&self.assembler.end_of_feed(self.now()));
        self.flush().await
    }

    /// Stores and publishes everything applied so far, marks of superseded rows and a checkpoint included.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn flush(&mut self) -> BoxFuture<'_, Result<()>> {
        Box::pin(self.flush_all())
    }

    async fn flush_all(&mut self) -> Result<()> {
        let now = self.now();
        log_noted(&self.assembler.tick(now));
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

    fn pointer_reader(&mut self) -> PointerReader {
        self.begun += 1;
        let store = self.pointers.is_some().then(|| self.store.clone());
        PointerReader::new(store, backoff(&self.config), self.begun)
    }

    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    fn is_busy(&self) -> bool {
        self.publishing.is_some() || !self.in_flight.is_empty()
    }

    /// A full batch goes as soon as there is room; a smaller one when nothing else is under way, so that an idle writer adds no delay.
    fn should_launch(&mut self) -> bool {
        if self.in_flight.len() >= self.config.max_in_flight {
            return false;
        }
        if self.assembler.waiting() >= self.config.max_batch {
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

    /// Takes what came of the feed, or puts it off if a rollback is among it.
    async fn apply(&mut self, decoded: DecodedBatch) -> Result<()> {
        let is_rollback = |item: &Item| matches!(item, Item::Control(FeedEvent::Rollback { .. }));
        if !self.deferred.is_empty() || decoded.items.iter().any(is_rollback) {
            self.defer(decoded);
            return Ok(());
        }
        let mut ended = BTreeSet::new();
        self.apply_now(decoded, &mut ended);
        self.applied(&ended).await
    }

    /// The feed's events are applied, and these partitions have delivered all they have.
    async fn applied(&mut self, ended: &BTreeSet<PartitionId>) -> Result<()> {
        if !ended.is_empty() {
            self.end_rollbacks(ended).await?;
        }
        if self.checkpointed.elapsed() >= Duration::from_millis(self.config.checkpoint_interval_ms) {
            self.launch(Some(()));
        }
        Ok(())
    }

    fn apply_now(&mut self, decoded: DecodedBatch, ended: &mut BTreeSet<PartitionId>) {
        for item in decoded.items {
            match item {
                Item::Decoded(partition, seqno, one) => {
                    if !self.rollbacks.is_idle() && self.is_held(partition, seqno, &one) {
                        self.tracker.advance(partition, seqno);
                        continue;
                    }
                    self.take_one(partition, seqno, one, &decoded.pointers);
                }
                Item::Control(event) => {
                    match event {
                        FeedEvent::Rollback { partition, .. } => drop(ended.remove(&partition)),
                        FeedEvent::RollbackEnded { partition } if self.rollbacks.is_unresolved(partition) => {
                            ended.insert(partition);
                        }
                        FeedEvent::CaughtUp => self.is_caught_up = true,
                        _ => {}
                    }
                    self.tracker.observe(&event);
                }
            }
        }
        if let Some(cache) = &mut self.pointers {
            cache.used(decoded.number);
        }
        self.taken(decoded.bytes);
    }

    /// Takes mutations that no rollback keeps waiting.
    fn take(&mut self, decoded: DecodedBatch) {
        for item in decoded.items {
            if let Item::Decoded(partition, seqno, one) = item {
                self.take_one(partition, seqno, one, &decoded.pointers);
            }
        }
        self.taken(decoded.bytes);
    }

    #[inline]
    fn take_one(
        &mut self,
        partition: PartitionId,
        seqno: PartitionSeqno,
        mut decoded: Decoded,
        pointers: &HashMap<Box<str>, Pointer>,
    ) {
        if let Decoded::Document(document) = &decoded
            && self.has_positions
            && self.assembler.sequencer().is_accounted(document.entry.sequence())
        {
            let before = self.tracker.at(partition).cloned();
            self.rollbacks.remember(Held { partition, seqno, decoded: decoded.clone(), before });
        }
        self.tracker.advance(partition, seqno);
        if let Some(cache) = &mut self.pointers {
            cache.follow(&mut decoded, pointers, self.assembler.clock().batch + 1, &Channel::star());
        }
        self.assembler.apply(decoded, self.now());
        // A feed batch may fill several of ours; they queue as in flight, and no more is applied until there is room.
        if self.assembler.waiting() >= self.config.max_batch {
            self.launch(None);
        }
    }

    fn taken(&mut self, bytes: usize) {
        self.dirty = true;
        self.waiting_bytes += bytes;
        log_noted(&self.assembler.take_noted());
    }

    /// Whether a mutation has to wait until a rollback has ended; then it does.
    fn is_held(&mut self, partition: PartitionId, seqno: PartitionSeqno, decoded: &Decoded) -> bool {
        let waits = self.rollbacks.judge(partition, seqno, decoded);
        if waits {
            let before = self.tracker.at(partition).cloned();
            self.rollbacks.hold(Held { partition, seqno, decoded: decoded.clone(), before });
        }
        waits
    }

    fn tick(&mut self) {
        log_noted(&self.assembler.tick(self.now()));
        self.tell_progress();
        let due = self.checkpointed.elapsed() >= Duration::from_millis(self.config.checkpoint_interval_ms);
        if due && self.dirty && self.in_flight.len() < self.config.max_in_flight {
            self.launch(Some(()));
        }
    }

    /// Prepares a batch and begins to commit it; with a checkpoint if asked and the feed has positions. Between feed
    /// batches only may a checkpoint be asked for.
    fn launch(&mut self, checkpoint: Option<()>) {
        let position = checkpoint.filter(|()| self.has_positions).map(|()| {
            let mut position = self.tracker.position();
            let is_reached = self.is_caught_up && self.rollbacks.is_settled();
            self.rollbacks.limit(&mut position);
            // Otherwise there are entries from after the position: those of an earlier term, or of after what waits.
            let known = (!is_reached).then(|| self.floors.of_position(&position));
            (position, known)
        });
        let is_reached = position.as_ref().is_some_and(|(_, known)| known.is_none());
        if checkpoint.is_some() {
            self.checkpointed = Instant::now();
            self.dirty = false;
        }
        let Prepared { batch, mut publication } = self.assembler.prepare(position, self.now());
        if let Some((_, checkpoint)) = publication.checkpoint.as_ref().filter(|_| is_reached) {
            self.floors.remember(&checkpoint.position, checkpoint.floor);
        }
        if let Some(cache) = &self.pointers {
            publication.pointers = cache.of(batch.entries.iter().map(Arc::as_ref));
        }
        let (store, policy) = (self.store.clone(), backoff(&self.config));
        let commit = tokio::spawn(async move {
            let attempt = || async { store.commit(&batch).await };
            attempt.retry(policy).when(Error::is_retryable).notify(log_retry).await
        });
        let bytes = std::mem::take(&mut self.waiting_bytes);
        self.in_flight.push_back(InFlight { commit: AbortOnDropHandle::new(commit), publication, bytes });
    }

    /// Waits until one more batch is committed or published. Cancel safe: what it waits for stays in `self`.
    async fn settle(&mut self) -> Result<()> {
        self.settle_one().await.map_err(name_repair)
    }

    async fn settle_one(&mut self) -> Result<()> {
        if let Some(publishing) = &mut self.publishing {
            let published = (&mut publishing.publish).await;
            let (bytes, record) = (publishing.bytes, publishing.record.clone());
            self.publishing = None;
            self.clock = published?;
            if let Some(cache) = &mut self.pointers {
                cache.published(record.number, record.entries.iter().map(|entry| entry.document().into()), self.begun);
            }
            self.queued_bytes -= bytes;
            self.assembler.published(&self.clock.value);
            self.drop_emptied();
            self.tell_progress();
        } else if let Some(front) = self.in_flight.front_mut() {
            let receipt = (&mut front.commit).await.map_err(task_failed)??;
            let Some(InFlight { publication, bytes, .. }) = self.in_flight.pop_front() else { return Ok(()) };
            for (channel, index) in receipt.emptied {
                let last = Block::range(index, self.codec.capacity()).last();
                self.emptied.insert((last, channel), index);
            }
            let record = publication.record.clone();
            let (store, last, policy) = (self.store.clone(), self.clock.clone(), backoff(&self.config));
            let publish = async move {
                let attempt = || async { store.publish(&publication, &last).await };
                attempt.retry(policy).when(Error::is_retryable).notify(log_retry).await
            };
            self.publishing = Some(Publishing { publish: publish.boxed(), bytes, record });
        }
        Ok(())
    }

    /// Takes blocks without anything live out of their directories, once every mark up to their end is stored (a restart finds unmarked
    /// entries through the star channel's directory). One lot at a time: two that write the same directory would be in each other's way.
    fn drop_emptied(&mut self) {
        if self.dropping.as_ref().is_some_and(|dropping| !dropping.is_finished()) {
            return;
        }
        let mut blocks = Vec::new();
        while blocks.len() < DROP_AT_ONCE
            && let Some(first) = self.emptied.first_entry()
            && first.key().0 <= self.clock.value.marked
        {
            let ((_, channel), index) = first.remove_entry();
            self.assembler.listed().remove(&channel, index);
            blocks.push((channel, index));
        }
        if blocks.is_empty() {
            return;
        }
        let (store, codec, count) = (self.store.clone(), self.codec.clone(), blocks.len());
        // Only an optimization for readers: not waited for, and tried again never.
        self.dropping = Some(tokio::spawn(async move {
            if let Err(e) = commit::drop_blocks(store.as_ref(), blocks, codec.as_ref()).await {
                tracing::warn!(blocks = count, error = ?e, "could not drop empty blocks from their directories");
            }
        }));
    }
}

fn decode(decoder: &dyn MutationDecoder, batch: FeedBatch) -> Vec<Item> {
    let item = |event| match event {
        FeedEvent::Mutation(mutation) => {
            let mut decoded = decoder.decode(&mutation);
            match &mut decoded {
                Decoded::Document(document) => document.entry.set_origin(mutation.partition, mutation.seqno),
                Decoded::Invalid(invalid) => {
                    tracing::warn!(key = %mutation.key.escape_ascii(), reason = %invalid.reason, "a mutation cannot be understood; left out");
                }
                _ => {}
            }
            Item::Decoded(mutation.partition, mutation.seqno, decoded)
        }
        other => Item::Control(other),
    };
    batch.events.into_iter().map(item).collect()
}

fn backoff(config: &WriterConfig) -> ExponentialBuilder {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(5))
        .with_max_delay(Duration::from_secs(2))
        .with_total_delay(Some(Duration::from_millis(config.give_up_after_ms)))
        .without_max_times()
        .with_jitter()
}

fn log_retry(error: &Error, after: Duration) {
    tracing::warn!(?error, ?after, "the store failed; trying again");
}

fn log_noted(noted: &[Noted]) {
    for note in noted {
        match note {
            Noted::Skipped(range) => tracing::info!(%range, "skipped: high passes, stable waits"),
            Noted::Abandoned(range) => tracing::warn!(%range, "given up: stable passes"),
        }
    }
}

/// Says what to do about a stored document that is corrupt. The clock and the cache's description cannot be repaired.
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
