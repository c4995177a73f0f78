//! Begins a term: completes what the previous writer left undone, and determines where to resume.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use backon::Retryable as _;
use futures::future::BoxFuture;
use tokio::time::Instant;

use super::floors::Floors;
use super::intents::Intents;
use super::owners::{KnownSequences, RecentOwners, SharedSequences};
use super::pointers::PointerCache;
use super::purge::Purges;
use super::rollback::Rollbacks;
use super::{Writer, WriterConfig, backoff, inherited, log_retry, name_repair, notices};
use crate::batch::Gap;
use crate::block::{BlockCodec, codec_named};
use crate::clock::{Epoch, Progress};
use crate::collections::Collections;
use crate::commit;
use crate::coordinate::next_epoch;
use crate::decode::MutationDecoder;
use crate::engine::{ArrivedSet, Assembler, Sequencer, SkippedRange};
use crate::entry::ChangeEntry;
use crate::error::{Error, Result};
use crate::feed::PositionTracker;
use crate::fenced::Fenced;
use crate::meta::Meta;
use crate::missing::{self, MissingBase};
use crate::pointer::Supersession;
use crate::scan;
use crate::sequence::{RangeSet, Sequence, SequenceRange};
use crate::source::Following;
use crate::store::CacheStore;
use crate::withdraw;

/// The limit for entries in slots that a term expects: more can only come of a damaged record.
const MAX_EXPECTED: u64 = 1_000_000;

/// A search for entries of former terms whose marks may not be written.
struct Search<'a> {
    high: Sequence,
    marked: Sequence,
    /// While a cache is built, marks do not wait for the stable sequence: how far it is, and the
    /// positions of the entries that were not marked at the checkpoint.
    building: Option<(Progress, &'a ArrivedSet)>,
}

/// What was found.
struct Stored {
    /// The owners of sequences, which the checkpoint does not all know.
    owners: RecentOwners,
    unmarked: Vec<Arc<ChangeEntry>>,
}

impl Search<'_> {
    async fn run(&self, store: &dyn CacheStore, codec: &dyn BlockCodec) -> Result<Stored> {
        let mut stored = Stored { owners: RecentOwners::after(self.high), unmarked: Vec::new() };
        let last = if self.building.is_some() { self.high } else { Sequence::MAX };
        if let Some(range) = SequenceRange::new(self.marked.next(), last) {
            scan::for_each_stored(store, codec, range, |entry| {
                stored.owners.insert(entry.position(), entry.document());
                if !entry.supersedes().is_empty() {
                    stored.unmarked.push(entry);
                }
                Ok(())
            })
            .await?;
        }
        if let Some((progress, unmarked)) = self.building {
            let remembered = Sequence(progress.highest.0.saturating_sub(RecentOwners::PLACES)).max(self.high);
            if let Some(range) = SequenceRange::new(remembered.next(), Sequence::MAX) {
                scan::for_each_stored(store, codec, range, |entry| {
                    stored.owners.insert(entry.position(), entry.document());
                    Ok(())
                })
                .await?;
            }
            let positions: Vec<Sequence> = unmarked.iter().map(Sequence).collect();
            for page in positions.chunks(scan::PAGE) {
                stored.unmarked.extend(store.entries(page).await?.into_iter().flatten());
            }
        }
        stored.unmarked.sort_by_key(|entry| entry.position().rank());
        stored.unmarked.dedup_by_key(|entry| entry.position());
        Ok(stored)
    }
}

impl Writer {
    /// The writer of a cache that nobody else writes: begins the next term, whichever that is. For
    /// tools and tests; two of them fence one another. Whoever elects takes over with
    /// [`take_over`](Self::take_over).
    ///
    /// # Errors
    /// As there.
    pub async fn alone(
        store: Arc<dyn CacheStore>,
        decoder: Arc<dyn MutationDecoder>,
        feed: impl Into<Following>,
        config: WriterConfig,
    ) -> Result<Writer> {
        let feed = feed.into();
        let epoch = next_epoch(store.as_ref()).await?;
        Writer::take_over(store, decoder, feed, epoch, config).await
    }

    /// Begins the term `epoch` over `store`, for the feed called `feed`: fences whoever wrote
    /// before, and finds out where to go on. Makes a new cache if there is none. May be repeated.
    /// With no more than a name, it is not checked whether the cache was made from that feed.
    ///
    /// # Errors
    /// `Fenced` if a later epoch is there; `ConfigInvalid`, also if the cache was made from another
    /// feed; `Corrupt`, or what the store says.
    pub async fn take_over(
        store: Arc<dyn CacheStore>,
        decoder: Arc<dyn MutationDecoder>,
        feed: impl Into<Following>,
        epoch: Epoch,
        config: WriterConfig,
    ) -> Result<Writer> {
        Writer::begin(store, decoder, feed.into(), epoch, config).await.map_err(name_repair)
    }

    fn begin(
        store: Arc<dyn CacheStore>,
        decoder: Arc<dyn MutationDecoder>,
        feed: Following,
        epoch: Epoch,
        config: WriterConfig,
    ) -> BoxFuture<'static, Result<Writer>> {
        Box::pin(Writer::begin_term(store, decoder, feed, epoch, config))
    }

    async fn begin_term(
        store: Arc<dyn CacheStore>,
        decoder: Arc<dyn MutationDecoder>,
        feed: Following,
        epoch: Epoch,
        config: WriterConfig,
    ) -> Result<Writer> {
        config.validate()?;
        let created_at = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let mut new = Meta::new(codec_named(&config.codec, config.block_capacity)?.as_ref(), config.ring, created_at);
        new.has_pointers = config.supersession == Supersession::Pointers;
        let attempt = || async { commit::begin_term(store.as_ref(), epoch, &feed, &new).await };
        let taken = attempt.retry(backoff(&config)).when(Error::is_retryable).notify(log_retry).await?;
        let codec = taken.meta.block_codec()?;
        let fenced = Fenced { store: store.as_ref(), term: epoch, removes_unreadable: false };
        let attempt = || async { withdraw::finish(fenced, codec.as_ref(), &taken).await };
        let (gone, restored) = attempt.retry(backoff(&config)).when(Error::is_retryable).notify(log_retry).await?;

        // The checkpoint may be one batch ahead of the clock; then it knows what the clock does
        // not.
        let clock = &taken.clock.value;
        let checkpoint = &taken.checkpoint;
        let ahead = (checkpoint.batch > clock.batch).then_some(&checkpoint.sequencer);
        let gap = |s: &SkippedRange| Gap { range: s.range, age_ms: s.missed_ms };
        let (high, gaps, abandoned) = match (ahead, &taken.missing) {
            (Some(ahead), _) => (ahead.next.previous(), ahead.skipped.iter().map(gap).collect(), Some(&ahead.abandoned)),
            (None, Some(missing)) => (clock.high, missing.gaps.clone(), Some(&missing.abandoned)),
            (None, None) if clock.gaps == 0 => (clock.high, Vec::new(), None),
            (None, None) => {
                let base = taken.record.as_ref().and_then(|record| record.base.as_ref());
                missing::warn_gone(clock, taken.meta.ring, base.map(MissingBase::id));
                // What came after the checkpoint comes again. What had come before it does not:
                // nobody may wait for that.
                let missing =
                    SequenceRange::new(clock.stable.next(), clock.high).map(|range| checkpoint.sequencer.missing_in(range));
                let ranges = missing.iter().flat_map(RangeSet::iter).filter_map(|(first, last)| SequenceRange::new(first, last));
                (clock.high, ranges.map(|range| Gap { range, age_ms: 0 }).collect(), None)
            }
        };
        let sequencer_config = config.sequencer(clock.building.is_some());
        let sequencer = Sequencer::resume(sequencer_config, high, &gaps, abandoned, &checkpoint.sequencer, Duration::ZERO);
        let mut last = clock.clone();
        last.batch = last.batch.max(checkpoint.batch);
        let attempt = || async { Intents::take_over(store.as_ref(), epoch, clock.batch).await };
        let (intents, unpublished) = attempt.retry(backoff(&config)).when(Error::is_retryable).notify(log_retry).await?;
        let base = taken.record.as_ref().and_then(|record| record.base.as_ref());
        let last_list = base.map_or(0, |base| base.list);
        let mut assembler =
            Assembler::new(sequencer, codec.clone(), taken.meta.ring, feed.checkpoint().to_owned(), last, checkpoint.late)
                .with_lists(last_list, config.list_changes);

        assembler.announce(gone.entries(), gone.room, restored);
        let unpublished = assembler.expect_again(&unpublished);
        let sequencer = assembler.sequencer();
        let are_expected = sequencer.has_readmitted() || sequencer.readmitted_in_slots().next().is_some();
        let after_kill = are_expected || checkpoint.batch < clock.batch;

        let search = Search {
            high,
            marked: clock.marked,
            // What was published after the checkpoint, above high, comes again.
            building: clock.building.zip(checkpoint.unmarked.as_ref()),
        };
        if let Some((progress, unmarked)) = search.building {
            tracing::info!(
                arrived = progress.arrived,
                at_most = RecentOwners::PLACES,
                unmarked = unmarked.len(),
                "the first read of the feed goes on; before that, the newest stored entries are read, and those without marks"
            );
        }
        let attempt = || async { search.run(store.as_ref(), codec.as_ref()).await };
        let Stored { owners, unmarked } = attempt.retry(backoff(&config)).when(Error::is_retryable).notify(log_retry).await?;
        // An entry that was not published supersedes nothing before it comes again.
        let unmarked = unmarked.into_iter().filter(|entry| !assembler.sequencer().is_readmitted(entry.position())).collect();
        let unmarked = inherited::without_others(store.as_ref(), backoff(&config), unmarked).await?;
        unmarked.into_iter().for_each(|entry| assembler.remember_unmarked(entry));

        let attempt = || async { scan::shared_numbers(store.as_ref(), codec.as_ref()).await };
        let stored = attempt.retry(backoff(&config)).when(Error::is_retryable).notify(log_retry).await?;
        // Expected entries in slots may be stored and not listed yet.
        let expected = assembler.sequencer().readmitted_in_slots();
        let count = expected.fold(0, |count: u64, range| count.saturating_add(range.count()));
        if count > MAX_EXPECTED {
            let message = format!(
                "the last batch record or the checkpoint expects {count} entries in slots, over the limit of {MAX_EXPECTED}"
            );
            return Err(Error::corrupt(message));
        }
        let expected = assembler.sequencer().readmitted_in_slots();
        let positions = expected.flat_map(|range| range.first().0..=range.last().0);
        let mut shared = SharedSequences::default();
        let expected = positions.map(|position| Sequence(position).number());
        stored.into_iter().chain(expected).for_each(|sequence| shared.insert(sequence));
        assembler.set_reused(!shared.is_empty());

        let now = Instant::now();
        let pointers = (config.supersession == Supersession::Pointers).then(PointerCache::default);
        Ok(Writer {
            pointers,
            rollbacks: Rollbacks::default(),
            deferred: Vec::new(),
            deferred_since: None,
            floors: Floors::of(checkpoint),
            caught_up_at: None,
            has_committed_all: false,
            after_kill,
            begun: 0,
            purges: Purges::default(),
            has_pointers: taken.meta.has_pointers,
            lacks_collections: taken.meta.lacks_collections,
            shared,
            owners,
            known: KnownSequences::default(),
            intents: Arc::new(intents),
            unpublished,
            collections: Collections::new(),
            registered: Arc::default(),
            tracker: PositionTracker::new(&checkpoint.position),
            recorded: checkpoint.position.partitions.iter().filter(|(_, at)| at.uuid != 0).map(|(id, _)| *id).collect(),
            has_new_history: false,
            resume: !checkpoint.position.partitions.is_empty(),
            has_positions: true,
            partitions: None,
            store,
            decoder,
            config,
            codec,
            assembler,
            began: now,
            checkpointed: now,
            dirty: false,
            bytes_since_checkpoint: 0,
            clock: taken.clock,
            in_flight: VecDeque::new(),
            publishing: None,
            waiting_bytes: 0,
            queued_bytes: 0,
            emptied: BTreeMap::new(),
            dropping: None,
            progress: None,
            _at_end: notices::TellAtEnd,
        })
    }
}
