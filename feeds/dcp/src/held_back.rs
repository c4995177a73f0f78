//! Events of one vbucket that wait until they are on all disks (protocol, section 5.5). Pure.

use std::collections::VecDeque;

use sluicegate_core::FeedEvent;

/// What waits, in order.
#[derive(Clone, Debug, Default)]
pub(crate) struct HeldBack {
    waiting: VecDeque<Waiting>,
    /// The last seqno that was let through.
    delivered: u64,
    /// A rollback went on, and its end did not.
    is_returning: bool,
}

#[derive(Clone, Debug)]
struct Waiting {
    /// None if there is only something to tell with it.
    event: Option<FeedEvent>,
    /// What is given back to flow control with it.
    bytes: u64,
    /// Whether the vbucket is caught up with it.
    is_caught_up: bool,
}

/// What came free.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Freed {
    /// Bytes that came with it.
    pub(crate) bytes: u64,
    /// Whether the vbucket is caught up with it.
    pub(crate) is_caught_up: bool,
}

impl HeldBack {
    /// Begins after what was delivered.
    pub(crate) fn after(delivered: u64) -> Self {
        HeldBack { waiting: VecDeque::new(), delivered, is_returning: false }
    }

    /// Begins after a rollback of everything.
    pub(crate) fn after_rollback() -> Self {
        HeldBack { is_returning: true, ..HeldBack::after(0) }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Puts events that came with `bytes` at the end, and that the vbucket is caught up with them. A rollback removes what waits and
    /// is after it; it goes on only if something of that was let through.
    pub(crate) fn push(&mut self, events: impl Iterator<Item = FeedEvent>, mut bytes: u64, is_caught_up: bool) {
        for event in events {
            if let FeedEvent::Rollback { to, .. } = event {
                bytes += self.forget_after(to.0);
                if self.delivered <= to.0 {
                    continue;
                }
                (self.delivered, self.is_returning) = (to.0, true);
            }
            // The end of one that did not go on means nothing.
            if matches!(event, FeedEvent::RollbackEnded { .. }) && !std::mem::take(&mut self.is_returning) {
                continue;
            }
            self.waiting.push_back(Waiting { event: Some(event), bytes: 0, is_caught_up: false });
        }
        if is_caught_up || (bytes > 0 && self.waiting.is_empty()) {
            self.waiting.push_back(Waiting { event: None, bytes: 0, is_caught_up });
        }
        if let Some(last) = self.waiting.back_mut() {
            last.bytes += bytes;
        }
    }

    fn forget_after(&mut self, seqno: u64) -> u64 {
        let mut bytes = 0;
        let is_end = |waiting: &Waiting| matches!(waiting.event, Some(FeedEvent::RollbackEnded { .. }));
        self.is_returning |= self.waiting.iter().any(is_end);
        self.waiting.retain(|waiting| {
            let stays = waiting.event.as_ref().is_none_or(|event| {
                seqno_of(event).is_none_or(|at| at <= seqno)
                    && !matches!(event, FeedEvent::SnapshotStart { start, .. } if start.0 > seqno)
                    && !matches!(event, FeedEvent::RollbackEnded { .. })
            });
            bytes += if stays { 0 } else { waiting.bytes };
            stays
        });
        bytes
    }

    /// Lets through what is up to `limit`. What announces something goes with what it announces.
    pub(crate) fn free(&mut self, limit: u64, out: &mut Vec<FeedEvent>) -> Freed {
        let mut count = 0;
        for (place, waiting) in self.waiting.iter().enumerate() {
            match waiting.event.as_ref().map(seqno_of) {
                Some(Some(seqno)) if seqno > limit => break,
                Some(None) if matches!(waiting.event, Some(FeedEvent::SnapshotStart { .. })) => {}
                // It belongs to what is before it: to an announcement, or to what goes.
                Some(None) if matches!(waiting.event, Some(FeedEvent::PartitionContext { .. })) && count < place => {}
                _ => count = place + 1,
            }
        }
        let mut freed = Freed::default();
        for waiting in self.waiting.drain(..count) {
            freed.bytes += waiting.bytes;
            freed.is_caught_up |= waiting.is_caught_up;
            if let Some(event) = waiting.event {
                self.delivered = seqno_of(&event).unwrap_or(0).max(self.delivered);
                out.push(event);
            }
        }
        freed
    }

    /// Nothing that waits has bytes of a connection any more; how many it had.
    pub(crate) fn forget_bytes(&mut self) -> u64 {
        self.waiting.iter_mut().map(|waiting| std::mem::take(&mut waiting.bytes)).sum()
    }
}

fn seqno_of(event: &FeedEvent) -> Option<u64> {
    match event {
        FeedEvent::Mutation(mutation) => Some(mutation.seqno.0),
        FeedEvent::SeqnoAdvanced { seqno, .. } => Some(seqno.0),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use sluicegate_core::{Mutation, PartitionId, PartitionSeqno};

    use super::*;

    fn item(seqno: u64) -> FeedEvent {
        let mut mutation = Mutation::new("k", "");
        mutation.seqno = PartitionSeqno(seqno);
        FeedEvent::Mutation(mutation)
    }

    fn snapshot(start: u64, end: u64) -> FeedEvent {
        FeedEvent::SnapshotStart { partition: PartitionId(0), start: PartitionSeqno(start), end: PartitionSeqno(end) }
    }

    fn rollback(to: u64) -> FeedEvent {
        FeedEvent::Rollback { partition: PartitionId(0), to: PartitionSeqno(to) }
    }

    fn free(held: &mut HeldBack, limit: u64) -> (Vec<FeedEvent>, u64) {
        let mut out = Vec::new();
        let freed = held.free(limit, &mut out);
        (out, freed.bytes)
    }

    #[test]
    fn what_is_on_all_disks_goes_and_an_announcement_goes_with_its_item() {
        let mut held = HeldBack::after(0);
        held.push([snapshot(1, 3), item(1)].into_iter(), 10, false);
        held.push([item(3)].into_iter(), 10, false);
        held.push([snapshot(4, 9), item(5)].into_iter(), 10, true);
        assert_eq!(free(&mut held, 0), (vec![], 0));
        assert_eq!(free(&mut held, 4), (vec![snapshot(1, 3), item(1), item(3)], 20));
        let mut out = Vec::new();
        assert_eq!(held.free(5, &mut out), Freed { bytes: 10, is_caught_up: true });
        assert_eq!(out, [snapshot(4, 9), item(5)]);
        assert!(held.is_empty());
    }

    #[test]
    fn a_context_goes_with_what_is_before_it() {
        let context = |manifest_uid| FeedEvent::PartitionContext { partition: PartitionId(0), manifest_uid, purge_seqno: 0 };
        let mut held = HeldBack::after(0);
        held.push([snapshot(1, 3), context(1), item(1), context(2), snapshot(4, 9), context(3), item(4)].into_iter(), 10, false);
        assert_eq!(free(&mut held, 0).0, []);
        assert_eq!(free(&mut held, 1).0, [snapshot(1, 3), context(1), item(1), context(2)]);
        assert_eq!(free(&mut held, 4).0, [snapshot(4, 9), context(3), item(4)]);
    }

    #[test]
    fn what_is_taken_back_before_it_was_let_through_was_never_there() {
        let mut held = HeldBack::after(0);
        held.push([snapshot(1, 3), item(1), item(3)].into_iter(), 10, false);
        held.push([snapshot(4, 9), item(5), item(7)].into_iter(), 10, false);
        assert_eq!(free(&mut held, 3).0.len(), 3);
        held.push([rollback(3)].into_iter(), 0, false);
        assert_eq!(free(&mut held, 100), (vec![], 10));
        held.push([rollback(2)].into_iter(), 0, false);
        assert_eq!(free(&mut held, 0).0, [rollback(2)], "this was let through");
    }

    #[test]
    fn an_end_of_a_rollback_waits_for_what_comes_before_it_and_another_rollback_takes_its_place() {
        let ended = || FeedEvent::RollbackEnded { partition: PartitionId(0) };
        let mut held = HeldBack::after(9);
        held.push([rollback(3), item(4), ended()].into_iter(), 0, false);
        assert_eq!(free(&mut held, 3).0, [rollback(3)]);
        held.push([rollback(2), item(5), ended()].into_iter(), 0, false);
        assert_eq!(free(&mut held, 4).0, [rollback(2)]);
        assert_eq!(free(&mut held, 5).0, [item(5), ended()]);
        held.push([rollback(5), ended()].into_iter(), 0, false);
        assert_eq!(free(&mut held, 9).0, [], "nothing of it was let through");
    }

    #[test]
    fn bytes_without_events_are_given_back_too() {
        let mut held = HeldBack::after(0);
        held.push([item(1)].into_iter(), 5, false);
        held.push([].into_iter(), 7, false);
        assert_eq!(free(&mut held, 1).1, 12);
        held.push([item(2)].into_iter(), 5, false);
        assert_eq!((held.forget_bytes(), free(&mut held, 2)), (5, (vec![item(2)], 0)));
    }
}
