//! Taking back what the feed has taken back (ARCHITECTURE.md, "Rollback"). The writer does nothing
//! else meanwhile.

use std::collections::BTreeSet;
use std::sync::Arc;

use backon::Retryable as _;
use tokio::time::Instant;

use super::conflict::slots_of;
use super::items::{DecodedBatch, Item};
use super::rollback::Held;
use super::{Writer, backoff, inherited, log_retry};
use crate::entry::ChangeEntry;
use crate::error::{Error, Result};
use crate::feed::{FeedEvent, PartitionId};
use crate::fenced::Fenced;
use crate::scan;
use crate::sequence::{Sequence, SequenceRange};
use crate::withdraw::{self, BySequence, Gone, Search};

/// Numbers that are looked at one by one, at most, for documents of which nothing else was stored.
const PROBED: u64 = 100_000;

impl Writer {
    pub(super) fn fenced(&self) -> Fenced<'_> {
        Fenced { store: self.store.as_ref(), term: self.clock.value.epoch, removes_unreadable: false }
    }

    /// Stores and publishes all that was applied.
    pub(super) async fn settle_all(&mut self) -> Result<()> {
        loop {
            while self.is_busy() {
                self.settle().await?;
            }
            if self.assembler.waiting() == 0 {
                return Ok(());
            }
            self.launch(None);
        }
    }

    /// Puts off what came. A node's partitions are taken back one after the other: it would take
    /// too long to search the cache for each.
    pub(super) fn defer(&mut self, decoded: DecodedBatch) {
        let DecodedBatch { items, bytes, number, pointers } = decoded;
        self.deferred_since.get_or_insert_with(Instant::now);
        self.deferred.push(DecodedBatch { items: Vec::with_capacity(items.len()), bytes, number, pointers });
        for item in items {
            if let Item::Control(FeedEvent::Rollback { partition, to }) = item {
                self.deferred.iter_mut().for_each(|batch| batch.items.retain(|item| !item.is_void(partition, to)));
                self.rollbacks.begin(partition, to, self.tracker.at(partition).cloned(), self.purges.restart_positions());
                self.purges.roll_back(partition, to);
            }
            if let Some(batch) = self.deferred.last_mut() {
                batch.items.push(item);
            }
        }
    }

    /// Takes what was put off, if anything was, now that it is known what the cache has of what was
    /// taken back.
    pub(super) async fn take_deferred(&mut self) -> Result<()> {
        if self.deferred.is_empty() {
            return Ok(());
        }
        self.deferred_since = None;
        self.search().await?;
        let mut ended = BTreeSet::new();
        for batch in std::mem::take(&mut self.deferred) {
            while self.in_flight.len() >= self.config.max_in_flight {
                self.settle().await?;
            }
            self.apply_now(batch, &mut ended).await?;
        }
        self.applied(&ended).await
    }

    /// Finds what may have to be withdrawn, of all partitions of which that is not known.
    async fn search(&mut self) -> Result<()> {
        self.settle_all().await?;
        let after = self.rollbacks.wanted();
        let limit = self.config.max_taken_back.saturating_sub(self.rollbacks.candidates());
        let (floor, late) = (self.floors.after(&after), self.assembler.clock().late);
        let search = Search { floor, late, probe: self.unaccounted(), limit, after };
        let (store, codec) = (self.store.as_ref(), self.codec.as_ref());
        let attempt = || async { search.run(store, codec).await };
        let found = attempt.retry(backoff(&self.config)).when(Error::is_retryable).notify(log_retry).await?;
        tracing::warn!(
            partitions = search.after.len(),
            entries = found.len(),
            "the feed rolled back: entries from after that may have to be withdrawn"
        );
        self.rollbacks.found(found);
        Ok(())
    }

    /// Numbers for which a writer that crashed in the middle of a commit may have stored something
    /// that nobody knows of.
    fn unaccounted(&self) -> Vec<SequenceRange> {
        let sequencer = self.assembler.sequencer();
        let state = sequencer.state(self.now());
        let last = state.pending.last().map_or(sequencer.high(), |run| run.range.last());
        let last = last.max(Sequence(state.arrived.last().unwrap_or_default()));
        let beyond = Sequence(last.0.saturating_add((self.config.max_batch * self.config.max_in_flight) as u64));
        let all = SequenceRange::new(sequencer.stable().next(), beyond);
        let mut missing = all.map(|all| state.missing_in(all)).unwrap_or_default();
        for (first, last) in state.abandoned.within(0, Sequence::FIRST_READMITTED.previous().0) {
            missing.insert(first, last);
        }
        // First those of which an entry is most likely stored: a commit of them was begun.
        let notes = state.abandoned.readmitted();
        let mut left = PROBED;
        let mut ranges = Vec::new();
        for (first, last) in notes.chain(missing.iter()) {
            if left == 0 {
                break;
            }
            let last = last.min(first.saturating_add(left - 1));
            left -= last - first + 1;
            ranges.extend(SequenceRange::new(first, last));
        }
        ranges
    }

    /// These partitions have delivered all they have: withdraws what they took back and have not
    /// brought again, then takes what waited for that.
    pub(super) async fn end_rollbacks(&mut self, ended: &BTreeSet<PartitionId>) -> Result<()> {
        // Everything that came again is stored, and nothing of it is under way.
        self.settle_all().await?;
        let gone = self.rollbacks.end(ended);
        if !gone.entries.is_empty() {
            self.withdraw(gone).await?;
        }
        let released = self.rollbacks.release();
        tracing::info!(partitions = ended.len(), waited = released.len(), "rollbacks have ended");
        if !released.is_empty() {
            let items =
                released.into_iter().map(|Held { partition, seqno, decoded, .. }| Item::Decoded(partition, seqno, decoded));
            let decoded = self.pointer_reader().read(items.collect(), 0).await?;
            self.take_released(decoded).await?;
        }
        self.dirty = true;
        Ok(())
    }

    /// Removes entries of purged documents.
    pub(super) async fn remove_purged(&mut self, gone: BySequence) -> Result<()> {
        let unpublished = &self.unpublished;
        self.assembler.purge(gone.values().cloned().collect(), |sequence| unpublished.contains(sequence.0));
        self.publish_with_checkpoint().await?;
        self.carry_out(gone.into()).await
    }

    /// The decision is published first: from then on it stands, and whoever takes over does what is
    /// left of it.
    async fn withdraw(&mut self, gone: Gone) -> Result<()> {
        let policy = backoff(&self.config);
        let (store, codec) = (self.store.clone(), self.codec.clone());
        let attempt = || async { withdraw::plan(store.as_ref(), codec.as_ref(), &gone).await };
        let (plan, stored) = attempt.retry(policy).when(Error::is_retryable).notify(log_retry).await?;
        tracing::warn!(entries = gone.entries.len(), restored = plan.restored.len(), "withdrawn: the feed took them back");
        let in_slots = self.used_in_slots(&plan.numbers, &gone).await?;
        let missing: Vec<Sequence> = plan.numbers.iter().copied().filter(|number| !in_slots.contains(number)).collect();
        // A killed writer of any term before may have stored these and not marked what they
        // supersede. What is gone was to mark that.
        let unmarked = stored.into_values().filter(|entry| !entry.supersedes().is_empty()).collect();
        let unmarked = inherited::without_others(store.as_ref(), policy, unmarked).await?;
        self.assembler.withdraw(gone.entries(), gone.room.iter().copied(), &missing);
        unmarked.into_iter().for_each(|entry| self.assembler.remember_unmarked(entry));
        self.rollbacks.recall(&plan.numbers);
        self.publish_with_checkpoint().await?;
        self.carry_out(gone).await
    }

    /// Those of `numbers` that entries in slots have which stay. These account for the numbers, and
    /// do not come again.
    async fn used_in_slots(&mut self, numbers: &[Sequence], gone: &Gone) -> Result<BTreeSet<Sequence>> {
        let shared = numbers.iter().copied().filter(|number| number.slot() == 0 && self.shared.contains(*number));
        let slots: Vec<Sequence> = shared.flat_map(|number| slots_of(number).skip(1)).collect();
        let mut used = BTreeSet::new();
        let (store, policy) = (self.store.clone(), backoff(&self.config));
        for page in slots.chunks(scan::PAGE) {
            let attempt = || async { store.entries(page).await };
            let found = attempt.retry(policy).when(Error::is_retryable).notify(log_retry).await?;
            let stays = |entry: &Arc<ChangeEntry>| !gone.entries.contains_key(&entry.position());
            used.extend(found.into_iter().flatten().filter(stays).map(|entry| entry.sequence()));
        }
        Ok(used)
    }

    /// Applies the announcement that all these are `gone`.
    async fn carry_out(&mut self, gone: Gone) -> Result<()> {
        self.known.clear();
        let (policy, codec) = (backoff(&self.config), self.codec.clone());
        let entries = gone.entries();
        let fenced = self.fenced();
        let attempt = || async { withdraw::hide(fenced, codec.as_ref(), &gone).await };
        let (restored, pointers) = attempt.retry(policy).when(Error::is_retryable).notify(log_retry).await?;
        // Readers may have looked in between.
        self.assembler.announce(entries.clone(), gone.room, restored);
        self.publish_with_checkpoint().await?;

        let fenced = self.fenced();
        let attempt = || async { withdraw::remove(fenced, &entries).await };
        attempt.retry(policy).when(Error::is_retryable).notify(log_retry).await?;
        if let Some(cache) = &mut self.pointers {
            let documents = entries.iter().map(|entry| entry.document().into()).collect();
            cache.replace(documents, pointers, self.clock.value.batch, self.begun);
        }
        Ok(())
    }

    /// With a checkpoint: an older one may have some of what is gone as pending.
    pub(super) async fn publish_with_checkpoint(&mut self) -> Result<()> {
        self.launch(Some(()));
        while self.is_busy() {
            self.settle().await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::{Decoded, Ignored};
    use crate::feed::PartitionSeqno;

    #[test]
    fn what_is_taken_back_before_it_was_taken_is_void() {
        let (partition, other) = (PartitionId(1), PartitionId(2));
        let seqno = PartitionSeqno;
        let mutation = |partition, at| Item::Decoded(partition, seqno(at), Decoded::Ignored(Ignored::Deletion));
        let snapshot = |start, end| Item::Control(FeedEvent::SnapshotStart { partition, start: seqno(start), end: seqno(end) });
        let state = FeedEvent::PartitionState { partition, uuid: 7, failover_log: Vec::new() };
        let void = [
            mutation(partition, 11),
            snapshot(10, 20),
            snapshot(15, 20),
            Item::Control(FeedEvent::SeqnoAdvanced { partition, seqno: seqno(11) }),
            Item::Control(FeedEvent::RollbackEnded { partition }),
        ];
        let kept = [
            mutation(partition, 10),
            mutation(other, 11),
            snapshot(1, 10),
            snapshot(1, 20),
            Item::Control(FeedEvent::SeqnoAdvanced { partition, seqno: seqno(10) }),
            Item::Control(FeedEvent::RollbackEnded { partition: other }),
            Item::Control(FeedEvent::Rollback { partition, to: seqno(20) }),
            Item::Control(state),
            Item::Control(FeedEvent::CaughtUp),
        ];
        assert!(void.iter().all(|item| item.is_void(partition, seqno(10))), "{void:?}");
        assert!(!kept.iter().any(|item| item.is_void(partition, seqno(10))), "{kept:?}");
    }
}
