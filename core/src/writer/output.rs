//! Storing and publishing what was taken in.

use std::sync::Arc;

use backon::Retryable as _;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument as _;

use super::{Writer, backoff, log_retry, name_repair, task_failed};
use crate::batch::{BatchRecord, CommitReceipt, Entries, Publication, WriteBatch};
use crate::block::Block;
use crate::clock::PublishedClock;
use crate::collections::Collections;
use crate::commit;
use crate::engine::{MAX_MARKS, Prepared};
use crate::error::{Error, Result};
use crate::fenced::Fenced;
use crate::intent::Positions;
use crate::missing::MissingList;
use crate::store::Versioned;
use crate::withdraw;

/// Empty blocks dropped from their directories at once, at most: all of them are read.
const DROP_AT_ONCE: usize = 1_024;

#[derive(Debug)]
pub(super) struct InFlight {
    pub(super) commit: AbortOnDropHandle<Result<CommitReceipt>>,
    pub(super) publication: Publication,
    /// What is stored before it is published.
    pub(super) list: Option<MissingList>,
    pub(super) bytes: usize,
}

pub(super) struct Publishing {
    pub(super) publish: BoxFuture<'static, Result<Versioned<PublishedClock>>>,
    pub(super) bytes: usize,
    /// What it publishes.
    pub(super) record: Arc<BatchRecord>,
}

impl std::fmt::Debug for Publishing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Publishing({} bytes)", self.bytes)
    }
}

impl Writer {
    /// Prepares a batch and begins to commit it; with a checkpoint if asked and the feed has
    /// positions. A checkpoint may be asked for only if all events up to the tracker's positions
    /// are applied.
    pub(super) fn launch(&mut self, checkpoint: Option<()>) {
        let position = checkpoint.filter(|()| self.has_positions).map(|()| {
            let mut position = self.tracker.position();
            let is_reached = self.caught_up_at.is_some() && self.rollbacks.is_settled() && self.purges.due().is_none();
            self.rollbacks.limit(&mut position, self.purges.restart_positions());
            // Otherwise there are entries from after the position: those of an earlier term, or of
            // after what waits: mutations, and purges.
            let known = (!is_reached).then(|| self.floors.of_position(&position));
            (position, known)
        });
        let is_reached = position.as_ref().is_some_and(|(_, known)| known.is_none());
        if checkpoint.is_some() {
            self.checkpointed = Instant::now();
            self.dirty = false;
            self.bytes_since_checkpoint = 0;
        }
        if self.assembler.sequencer().holds() {
            self.assembler.set_delivered(self.partitions.and_then(|partitions| self.tracker.delivered(partitions)));
        }
        let Prepared { batch, late_marks, positions, list, mut publication } = self.assembler.prepare(position, self.now());
        if let Some((_, checkpoint)) = publication.checkpoint.as_ref().filter(|_| is_reached) {
            self.floors.remember(&checkpoint.position, checkpoint.floor);
        }
        if let Some(cache) = &self.pointers {
            publication.pointers = cache.of(batch.entries.iter().map(Arc::as_ref));
        }
        let (intents, number) = (self.intents.clone(), publication.record.number);
        let (store, policy) = (self.store.clone(), backoff(&self.config));
        let (collections, registered) = (self.unregistered_collections(), self.registered.clone());
        let (term, codec, is_confirmed) = (self.clock.value.epoch, self.codec.clone(), self.may_find_unpublished());
        self.has_committed_all |= self.caught_up_at.is_some();
        let commit = async move {
            intents.add(number, Positions::of(positions));
            let attempt = || async {
                // First: readers do not find an entry of a collection that is not registered.
                if let Some(collections) = &collections {
                    commit::register_collections(store.as_ref(), collections).await?;
                    registered.lock().merge(collections);
                }
                intents.store(store.as_ref(), number).await?;
                store.commit(&batch).await
            };
            let mut receipt = attempt.retry(policy).when(Error::is_retryable).notify(log_retry).await?;
            let fenced = Fenced { store: store.as_ref(), term, removes_unreadable: false };
            if is_confirmed {
                let attempt = || async { withdraw::confirm(fenced, codec.as_ref(), &batch.entries).await };
                attempt.retry(policy).when(Error::is_retryable).notify(log_retry).await?;
            }
            // After a rollback they may be many.
            for some in late_marks.chunks(MAX_MARKS) {
                let marking = WriteBatch { entries: Entries::default(), marks: some.to_vec(), ..batch.clone() };
                let attempt = || async {
                    fenced.check().await?;
                    store.commit(&marking).await
                };
                receipt.emptied.extend(attempt.retry(policy).when(Error::is_retryable).notify(log_retry).await?.emptied);
            }
            Ok(receipt)
        };
        let commit = tokio::spawn(commit.in_current_span());
        let bytes = std::mem::take(&mut self.waiting_bytes);
        self.in_flight.push_back(InFlight { commit: AbortOnDropHandle::new(commit), publication, list, bytes });
    }

    /// Whether entries may be stored that are to be replaced. Earlier terms may have stored
    /// unpublished entries that do not come again unchanged: at first, all events that such a term
    /// had read come again; later, only events that were rolled back since can have such entries.
    /// In a rollback, this term itself stores some entries again.
    pub(super) fn may_find_unpublished(&self) -> bool {
        let are_earlier = self.clock.value.epoch.counter > 1;
        are_earlier && !self.has_committed_all || self.rollbacks.have_been()
    }

    /// The collections that this term has seen, in entries or by name, if some may not be
    /// registered in the store yet.
    fn unregistered_collections(&self) -> Option<Collections> {
        let mut wanted = self.collections.clone();
        for collection in self.assembler.collections() {
            wanted.add(*collection);
        }
        let is_new = self.registered.lock().clone().merge(&wanted);
        is_new.then_some(wanted)
    }

    /// Waits until one more batch is committed or published. Cancel safe: what it waits for stays
    /// in `self`.
    pub(super) async fn settle(&mut self) -> Result<()> {
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
            self.intents.published(record.number);
            self.drop_emptied();
            self.tell_progress();
        } else if let Some(front) = self.in_flight.front_mut() {
            let receipt = (&mut front.commit).await.map_err(task_failed)??;
            let Some(InFlight { publication, list, bytes, .. }) = self.in_flight.pop_front() else { return Ok(()) };
            for (channel, index) in receipt.emptied {
                let last = Block::range(index, self.codec.capacity()).last();
                self.emptied.insert((last, channel), index);
            }
            let record = publication.record.clone();
            let (store, last, policy) = (self.store.clone(), self.clock.clone(), backoff(&self.config));
            let publish = async move {
                let attempt = || async {
                    if let Some(list) = &list {
                        // If the store went back, its record may refer to the list that this one
                        // replaces.
                        commit::still_there(store.as_ref(), publication.clock.epoch, &last).await?;
                        list.store(store.as_ref()).await?;
                    }
                    store.publish(&publication, &last).await
                };
                attempt.retry(policy).when(Error::is_retryable).notify(log_retry).await
            };
            self.publishing = Some(Publishing { publish: publish.boxed(), bytes, record });
        }
        Ok(())
    }

    /// Takes blocks without anything live out of their directories, once every mark up to their end
    /// is stored (a restart finds unmarked entries through the star channel's directory). One lot
    /// at a time: two that write the same directory would be in each other's way.
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
        let dropping = async move {
            if let Err(e) = commit::drop_blocks(store.as_ref(), blocks, codec.as_ref()).await {
                tracing::warn!(blocks = count, error = ?e, "could not drop empty blocks from their directories");
            }
        };
        self.dropping = Some(tokio::spawn(dropping.in_current_span()));
    }
}
