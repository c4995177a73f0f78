//! Taking in what the feed delivers.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use tokio::time::Instant;

use super::conflict::Conflicts;
use super::items::{DecodedBatch, Item, decode, refuse_collection};
use super::pointers::{PointerReader, Pointers};
use super::rollback::Held;
use super::{Writer, backoff, notices};
use crate::decode::Decoded;
use crate::document::CollectionId;
use crate::entry::Origin;
use crate::error::Result;
use crate::feed::{FeedBatch, FeedEvent, PartitionId, PartitionPosition, PartitionSeqno};
use crate::pointer::SequenceOwner;

/// The items of a feed batch, taken where they lie: they are large.
#[derive(Debug)]
struct Queue {
    items: Vec<Item>,
    /// The next one.
    at: usize,
}

/// What is known of a feed batch.
#[derive(Debug)]
struct Batch {
    pointers: Pointers,
    /// Whether all of it has waited for a rollback that has ended.
    is_released: bool,
    /// When this part of it is taken.
    now: Duration,
    /// Findings about documents whose numbers are accounted for; made when the first one comes.
    conflicts: Option<Conflicts>,
}

/// Why the items of a feed batch are not taken further for now.
enum Pause {
    /// There are no more.
    End,
    /// A batch is full, and must be launched first.
    Full,
    /// The next one may conflict with what is stored.
    Conflict,
    /// The history of a partition must be stored before something of the partition.
    NewHistory,
}

impl Writer {
    /// Takes one feed batch, waiting while too much is in flight. For callers that have no
    /// [`Feed`](crate::Feed); `flush` when done.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub async fn process(&mut self, batch: FeedBatch) -> Result<()> {
        let bytes = batch.memory_bytes();
        self.queued_bytes += bytes;
        let items = decode(self.decoder.as_ref(), batch);
        self.accept(items, bytes).await
    }

    /// Takes mutations that are decoded already, waiting while too much is in flight. They have no
    /// position, so no checkpoints are stored from here on, and after a restart all must come
    /// again.
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

    pub(super) fn pointer_reader(&mut self) -> PointerReader {
        self.begun += 1;
        let store = self.pointers.is_some().then(|| self.store.clone());
        PointerReader::new(store, backoff(&self.config), self.begun)
    }

    /// Takes what came of the feed, or puts it off if a rollback is among it.
    pub(super) async fn apply(&mut self, decoded: DecodedBatch) -> Result<()> {
        if self.lacks_collections {
            decoded.items.iter().try_for_each(refuse_collection)?;
        }
        let is_rollback = |item: &Item| matches!(item, Item::Control(FeedEvent::Rollback { .. }));
        if !self.deferred.is_empty() || decoded.items.iter().any(is_rollback) {
            self.defer(decoded);
            return Ok(());
        }
        let mut ended = BTreeSet::new();
        self.apply_now(decoded, &mut ended).await?;
        self.applied(&ended).await
    }

    /// The feed's events are applied, and these partitions have delivered all they have.
    pub(super) async fn applied(&mut self, ended: &BTreeSet<PartitionId>) -> Result<()> {
        if !ended.is_empty() {
            self.end_rollbacks(ended).await?;
        }
        self.end_first_read();
        if self.is_checkpoint_due() {
            self.launch(Some(()));
        }
        Ok(())
    }

    pub(super) async fn apply_now(&mut self, decoded: DecodedBatch, ended: &mut BTreeSet<PartitionId>) -> Result<()> {
        let (number, bytes) = (decoded.number, decoded.bytes);
        self.take_batch(decoded, false, ended).await?;
        if let Some(cache) = &mut self.pointers {
            cache.used(number);
        }
        self.taken(bytes);
        Ok(())
    }

    /// Takes the mutations that no rollback keeps waiting any more, see [`Rollbacks::release`].
    ///
    /// [`Rollbacks::release`]: super::rollback::Rollbacks::release
    pub(super) async fn take_released(&mut self, decoded: DecodedBatch) -> Result<()> {
        // Later mutations have been applied since. A departure may have their origin, so it is
        // looked up again.
        for item in &decoded.items {
            if let Item::Decoded(_, _, Decoded::Document(document) | Decoded::Foreign(document)) = item {
                self.known.forget(document.entry.document());
            }
        }
        let bytes = decoded.bytes;
        self.take_batch(decoded, true, &mut BTreeSet::new()).await?;
        self.taken(bytes);
        Ok(())
    }

    async fn take_batch(&mut self, decoded: DecodedBatch, is_released: bool, ended: &mut BTreeSet<PartitionId>) -> Result<()> {
        self.owners.load(decoded.items.len(), decoded.items.iter().filter_map(Item::position));
        let mut queue = Queue { items: decoded.items, at: 0 };
        let mut batch = Batch { pointers: decoded.pointers, is_released, now: self.now(), conflicts: None };
        loop {
            match self.take_plain(&mut queue, &mut batch, ended) {
                Pause::End => return Ok(()),
                Pause::Full => {
                    self.launch_full().await?;
                    continue;
                }
                Pause::NewHistory => {
                    self.record_histories(&queue.items[queue.at..]).await?;
                    continue;
                }
                Pause::Conflict => {}
            }
            let at = queue.at;
            let conflicts = match &mut batch.conflicts {
                Some(conflicts) => conflicts,
                // What follows is looked up with it, unless some of that may have to wait.
                none => {
                    let all = &mut queue.items[at..];
                    let some = if batch.is_released || self.rollbacks.is_idle() { all } else { &mut all[..1] };
                    none.insert(self.resolve_conflicts(at, some, &batch.pointers).await?)
                }
            };
            queue.at += 1;
            if let Some(Item::Decoded(partition, seqno, one)) = queue.items.get_mut(at) {
                self.resolve_conflict(at, one, conflicts, &batch.pointers).await?;
                if let Some(later) = conflicts.later(one).filter(|later| later.sequence() <= self.assembler.clock().high) {
                    self.assembler.show_again(later);
                }
                batch.now = self.now();
                self.remember_duplicate(*partition, *seqno, one, &batch);
                self.take_one(*partition, *seqno, one, &mut batch);
            }
        }
    }

    /// Stores a checkpoint with the histories of the partitions that the feed has just begun to
    /// deliver. The feed tells that a history was lost only to one that has named it: a writer that
    /// takes over, and names none, would never learn that what is stored of it by then is gone.
    /// One checkpoint is for all histories that the `rest` of the feed batch tells of, up to a
    /// rollback.
    async fn record_histories(&mut self, rest: &[Item]) -> Result<()> {
        for item in rest.iter().take_while(|item| !matches!(item, Item::Control(FeedEvent::Rollback { .. }))) {
            if let Item::Control(event @ FeedEvent::PartitionState { partition, uuid, .. }) = item
                && *uuid != 0
                && self.recorded.insert(*partition)
            {
                self.tracker.observe(event);
            }
        }
        self.has_new_history = false;
        self.publish_with_checkpoint().await
    }

    /// Begins to commit a full batch as soon as there is room.
    async fn launch_full(&mut self) -> Result<()> {
        while self.in_flight.len() >= self.config.max_in_flight {
            self.settle().await?;
        }
        self.launch(None);
        Ok(())
    }

    /// Takes the items of a feed batch up to the first that may conflict with what is stored, which
    /// is left, or until a batch is full. Not async: the items would be copied into the future and
    /// out of it.
    fn take_plain(&mut self, queue: &mut Queue, batch: &mut Batch, ended: &mut BTreeSet<PartitionId>) -> Pause {
        while let Some(item) = queue.items.get_mut(queue.at) {
            if self.is_batch_full() {
                return Pause::Full;
            }
            if self.has_new_history && matches!(item, Item::Decoded(..)) {
                return Pause::NewHistory;
            }
            let waits = !batch.is_released && self.must_wait(item);
            if !waits && self.may_conflict(item, &batch.pointers) {
                return Pause::Conflict;
            }
            queue.at += 1;
            match item {
                Item::Decoded(partition, seqno, decoded) if waits => {
                    let (partition, seqno, decoded) = (*partition, *seqno, decoded.clone());
                    let before = self.tracker.at(partition).cloned();
                    self.rollbacks.hold(Held { partition, seqno, decoded, before });
                    self.tracker.advance(partition, seqno);
                }
                Item::Decoded(partition, seqno, one) => self.take_one(*partition, *seqno, one, batch),
                Item::Control(event) => self.control(event, ended),
            }
        }
        Pause::End
    }

    fn control(&mut self, event: &FeedEvent, ended: &mut BTreeSet<PartitionId>) {
        match event {
            FeedEvent::Rollback { partition, .. } => drop(ended.remove(partition)),
            FeedEvent::RollbackEnded { partition } if self.rollbacks.is_unresolved(*partition) => {
                ended.insert(*partition);
            }
            FeedEvent::PartitionState { partition, uuid, .. } if self.has_positions && *uuid != 0 => {
                self.has_new_history |= self.recorded.insert(*partition);
            }
            FeedEvent::CaughtUp => _ = self.caught_up_at.get_or_insert_with(Instant::now),
            FeedEvent::CollectionNames(names) => {
                for (collection, name) in names {
                    self.collections.name(CollectionId(*collection), name);
                }
            }
            _ => {}
        }
        self.tracker.observe(event);
    }

    /// Remembers a document whose position is still accounted for: a rollback may take that back.
    /// Must be called before [`take_one`](Self::take_one).
    fn remember_duplicate(&mut self, partition: PartitionId, seqno: PartitionSeqno, decoded: &Decoded, batch: &Batch) {
        if let Decoded::Document(document) = decoded
            && self.has_positions
            && self.assembler.sequencer().is_accounted(document.entry.position())
        {
            let released = batch.is_released.then(|| self.rollbacks.first_released()).flatten();
            let before = released.unwrap_or_else(|| self.tracker.at(partition).cloned());
            self.rollbacks.remember(Held { partition, seqno, decoded: decoded.clone(), before });
        }
    }

    /// Leaves of a document only an empty one, see [`Assembler::take`].
    ///
    /// [`Assembler::take`]: crate::engine::Assembler::take
    #[inline]
    fn take_one(&mut self, partition: PartitionId, seqno: PartitionSeqno, decoded: &mut Decoded, batch: &mut Batch) {
        let released = if batch.is_released { self.rollbacks.take_released() } else { None };
        if self.pointers.is_some() || matches!(decoded, Decoded::Purged(_)) {
            self.follow_purges(partition, seqno, decoded, batch, released);
        }
        self.tracker.advance(partition, seqno);
        if let Some(conflicts) = &mut batch.conflicts
            && let Decoded::Document(document) | Decoded::Foreign(document) = &*decoded
        {
            conflicts.applied(document);
        }
        match decoded {
            Decoded::Document(document) => {
                let (position, owner) = (document.entry.position(), self.owners.take(document));
                self.known.take(document, &self.shared);
                if self.assembler.take_document(document, batch.now) {
                    self.owners.insert_hash(position, owner);
                }
            }
            other => {
                if let Decoded::Foreign(document) = &*other {
                    self.owners.take(document);
                    self.known.take_foreign(document);
                }
                self.assembler.take(other, batch.now);
            }
        }
    }

    /// Takes a purge, or works out by its pointer what a document supersedes, and whether the feed
    /// has left out a purge. `released`: where its partition was before it, if it has waited for a
    /// rollback.
    fn follow_purges(
        &mut self,
        partition: PartitionId,
        seqno: PartitionSeqno,
        decoded: &mut Decoded,
        batch: &Batch,
        released: Option<Option<PartitionPosition>>,
    ) {
        // What a former term has stored may come again.
        let may_be_again = self.may_have_stored();
        if let Decoded::Purged(purged) = decoded {
            let origin = Origin { partition, seqno, cas: purged.cas };
            let before = released.unwrap_or_else(|| self.tracker.at(partition).cloned());
            self.purges.take(purged.clone(), origin, before, Instant::now());
        } else if let Some(cache) = &mut self.pointers {
            let is_placed = batch.conflicts.as_ref().is_some_and(|conflicts| conflicts.has_placed(decoded));
            let sequencer = self.assembler.sequencer();
            let owner = match decoded {
                _ if is_placed => SequenceOwner::Another,
                Decoded::Document(document) if may_be_again || sequencer.is_accounted(document.entry.position()) => {
                    SequenceOwner::Itself
                }
                _ => SequenceOwner::Nobody,
            };
            let is_made_anew = cache.follow(decoded, &batch.pointers, self.assembler.clock().batch + 1, owner);
            if let Decoded::Document(document) = decoded {
                self.owners.leave_out_others(&mut document.entry);
                if !is_made_anew {
                    self.purges.follow(document);
                } else {
                    let before = released.unwrap_or_else(|| self.tracker.at(partition).cloned());
                    if self.purges.take_made_anew(document, before, Instant::now()) {
                        self.assembler.count_purged();
                    }
                }
            }
        }
    }

    pub(super) fn taken(&mut self, bytes: usize) {
        self.dirty = true;
        self.waiting_bytes += bytes;
        self.bytes_since_checkpoint += bytes;
        notices::tell_noted(&self.assembler.take_noted());
    }

    /// Whether a mutation has to wait until a rollback has ended. Must be called once per mutation,
    /// in order.
    fn must_wait(&mut self, item: &Item) -> bool {
        match item {
            Item::Decoded(partition, seqno, decoded) if !self.rollbacks.is_idle() => {
                self.rollbacks.judge(*partition, *seqno, decoded)
            }
            _ => false,
        }
    }
}
