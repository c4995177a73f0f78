//! Where a feed is, and where it can go back to. No I/O.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{FeedEvent, PartitionId, PartitionSeqno};

/// Seqnos at which snapshots of a partition ended, some of those that were taken: the farther back, the fewer.
///
/// Which are kept depends on their numbers only: for each of some powers of two, the last one
/// before the newest multiple of it. So two positions that are near one another in the same
/// partition mostly have an end in common that is not far back.
///
/// Only there nothing was left out: within a snapshot the producer leaves out changes of keys that have a later one in it. Whoever goes back to another
/// place may never get what was left out before it, if the later change is lost.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SnapshotEnds(Vec<u64>);

impl SnapshotEnds {
    /// Exponents of two: the last end before the newest multiple of each power is kept.
    const LEVELS: [u32; 9] = [0, 3, 6, 9, 12, 15, 18, 21, 24];

    /// The limit: that of each level, and the newest.
    const MOST: usize = Self::LEVELS.len() + 1;

    /// Remembers one; it must be above all others, and is left out otherwise.
    pub fn push(&mut self, seqno: u64) {
        if self.0.last().is_some_and(|last| *last >= seqno) {
            return;
        }
        self.0.push(seqno);
        if self.0.len() > Self::MOST {
            let kept = Self::LEVELS.map(|level| self.up_to((seqno >> level << level).saturating_sub(1)));
            self.0.retain(|end| *end == seqno || kept.contains(&Some(*end)));
        }
    }

    /// The newest up to `seqno`.
    pub fn up_to(&self, seqno: u64) -> Option<u64> {
        self.0.iter().rev().find(|end| **end <= seqno).copied()
    }

    /// Forgets those above `seqno`.
    pub fn forget_after(&mut self, seqno: u64) {
        self.0.retain(|end| *end <= seqno);
    }

    /// Forgets those for which `keeps` is false.
    #[cfg(feature = "runtime")]
    pub(crate) fn retain(&mut self, keeps: impl FnMut(&u64) -> bool) {
        self.0.retain(keeps);
    }

    /// The oldest after `seqno`.
    pub(crate) fn after(&self, seqno: u64) -> Option<u64> {
        self.0.iter().find(|end| **end > seqno).copied()
    }

    fn contains(&self, seqno: u64) -> bool {
        self.0.binary_search(&seqno).is_ok()
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The last seqno up to `seqno` that both failover logs have in common, each newest first. `seqno`
/// is in the newest history of `ours`. 0 if they have none in common.
pub fn common_point(ours: &[(u64, u64)], theirs: &[(u64, u64)], seqno: u64) -> u64 {
    // Each history ends where the next newer one begins.
    let mut our_end = seqno;
    for &(uuid, begin) in ours {
        if begin <= our_end
            && let Some(place) = theirs.iter().position(|(their_uuid, _)| *their_uuid == uuid)
        {
            let their_end = place.checked_sub(1).map_or(u64::MAX, |newer| theirs[newer].1);
            return our_end.min(their_end);
        }
        our_end = our_end.min(begin);
    }
    0
}

/// Start and end of the snapshot in which a partition at `seqno` is when the snapshot `next`
/// begins. If the partition is within the one `before`, both count as one: what the former left out
/// is complete only where it ends. Of a snapshot of which nothing has come, nothing is left out.
pub fn begun_snapshot(seqno: u64, before: (u64, u64), next: (u64, u64)) -> (u64, u64) {
    let is_within = seqno > 0 && seqno >= before.0 && seqno != before.1;
    if is_within { (before.0.min(next.0), before.1.max(next.1)) } else { next }
}

/// Position of one partition.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PartitionPosition {
    /// Identity of the partition's history (DCP: vbucket uuid).
    pub uuid: u64,
    /// The last seqno whose effect is stored.
    pub seqno: u64,
    /// Start of the snapshot it lies in.
    pub snapshot_start: u64,
    /// End of the snapshot it lies in.
    pub snapshot_end: u64,
    /// The partition's histories as the feed last told them: identity, and the seqno at which each begins; newest first. With them a
    /// producer that has lost the newest history can be joined at the last place both know (protocol, section 5.4).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failover_log: Vec<(u64, u64)>,
    /// The last state of the partition's collections that was seen (DCP: manifest uid); 0 for none.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub manifest_uid: u64,
    /// Up to where deletions may have been gone already when the snapshot was made; 0 if that is not known. A producer that has
    /// removed more since must send everything again (protocol, section 5.3).
    #[serde(default, skip_serializing_if = "is_zero")]
    pub purge_seqno: u64,
    /// Where snapshots ended before that one.
    #[serde(default, skip_serializing_if = "SnapshotEnds::is_empty")]
    pub snapshot_ends: SnapshotEnds,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl PartitionPosition {
    /// Whether nothing of the snapshot it lies in is still to come.
    pub fn is_complete(&self) -> bool {
        self.seqno == self.snapshot_end
    }

    /// The last place up to `seqno`, and up to where it is, at which nothing was left out; 0 if none is known.
    pub fn last_end(&self, seqno: u64) -> u64 {
        if self.seqno <= seqno && self.is_complete() { self.seqno } else { self.snapshot_ends.up_to(seqno).unwrap_or(0) }
    }

    /// Whether `seqno` is known to be a place at which nothing was left out.
    pub(crate) fn is_end(&self, seqno: u64) -> bool {
        seqno == 0 || self.seqno == seqno && self.is_complete() || self.snapshot_ends.contains(seqno)
    }

    /// All known places at which nothing was left out.
    #[cfg(feature = "runtime")]
    pub(crate) fn ends(&self) -> impl Iterator<Item = u64> + '_ {
        self.snapshot_ends.0.iter().copied().chain(Some(self.seqno).filter(|_| self.is_complete()))
    }

    /// The first place after `seqno`, which is not one, at which nothing was left out.
    pub(crate) fn end_after(&self, seqno: u64) -> u64 {
        self.snapshot_ends.after(seqno).unwrap_or(self.snapshot_end)
    }

    /// A snapshot begins; see [`begun_snapshot`].
    pub fn begin_snapshot(&mut self, start: u64, end: u64) {
        if self.seqno > 0 && self.is_complete() {
            self.snapshot_ends.push(self.seqno);
        }
        (self.snapshot_start, self.snapshot_end) =
            begun_snapshot(self.seqno, (self.snapshot_start, self.snapshot_end), (start, end));
    }

    /// Takes everything after `to` back: histories that begin later are gone with it. If a snapshot
    /// did not end at `to`, the position is within that snapshot then.
    pub fn roll_back(&mut self, to: u64) {
        let (start, end) = if self.is_end(to) { (to, to) } else { (self.last_end(to), self.end_after(to)) };
        if !self.failover_log.is_empty() {
            self.failover_log.retain(|(_, begin)| *begin <= to);
            self.uuid = self.failover_log.first().map_or(0, |(uuid, _)| *uuid);
        }
        (self.seqno, self.snapshot_start, self.snapshot_end) = (to, start, end.max(to));
        (self.manifest_uid, self.purge_seqno) = (0, 0);
        self.snapshot_ends.forget_after(to);
    }
}

/// Where a feed can be opened again: everything at or before it need not come again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FeedPosition {
    /// By partition; a partition not named starts from its beginning.
    pub partitions: BTreeMap<PartitionId, PartitionPosition>,
}

/// How much of a feed has been delivered, in its own numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delivered {
    /// The seqnos of all partitions, added up.
    pub seqnos: u64,
    /// About what this sum will be when everything has been delivered.
    pub of: u64,
}

impl Delivered {
    /// What there will be if `count` has come with this share. `None` if nothing has come.
    pub fn whole_of(self, count: u64) -> Option<u64> {
        let whole = (u128::from(count) * u128::from(self.of)).checked_div(u128::from(self.seqnos))?;
        Some(u64::try_from(whole).unwrap_or(u64::MAX))
    }
}

/// Follows a feed's events and knows the position after them.
#[derive(Clone, Debug, Default)]
pub struct PositionTracker {
    partitions: Vec<Option<PartitionPosition>>,
    /// Those whose events come in no order just now.
    unordered: BTreeSet<PartitionId>,
}

impl PositionTracker {
    /// Starts at `position`.
    pub fn new(position: &FeedPosition) -> Self {
        let mut tracker = PositionTracker::default();
        for (id, at) in &position.partitions {
            tracker.entry(*id).clone_from(at);
        }
        tracker
    }

    fn entry(&mut self, id: PartitionId) -> &mut PartitionPosition {
        let index = usize::from(id.0);
        if self.partitions.len() <= index {
            self.partitions.resize_with(index + 1, || None);
        }
        self.partitions[index].get_or_insert_default()
    }

    /// The share of a feed with so many partitions that has been delivered. A partition whose first
    /// snapshot has not begun counts as the mean of the others, also if it is empty: it is not
    /// known how much it has.
    ///
    /// `None` if no snapshot has begun, or while a partition's events come in no order: it is not
    /// known then how many of them have come.
    pub fn delivered(&self, partitions: u16) -> Option<Delivered> {
        if !self.unordered.is_empty() {
            return None;
        }
        let (mut begun, mut seqnos, mut ends) = (0u64, 0u64, 0u64);
        for at in self.partitions.iter().flatten() {
            begun += u64::from(at.snapshot_end > 0);
            seqnos = seqnos.saturating_add(at.seqno);
            ends = ends.saturating_add(at.snapshot_end);
        }
        let unknown = u64::from(partitions).saturating_sub(begun).saturating_mul(ends.checked_div(begun)?);
        Some(Delivered { seqnos, of: ends.saturating_add(unknown) })
    }

    /// Takes the event at `seqno` of `partition` into account.
    #[inline]
    pub fn advance(&mut self, partition: PartitionId, seqno: PartitionSeqno) {
        if !self.unordered.is_empty() && self.unordered.contains(&partition) {
            return;
        }
        let at = self.entry(partition);
        at.seqno = at.seqno.max(seqno.0);
        at.snapshot_end = at.snapshot_end.max(at.seqno);
    }

    /// Takes one event into account.
    pub fn observe(&mut self, event: &FeedEvent) {
        match event {
            FeedEvent::Mutation(m) => self.advance(m.partition, m.seqno),
            FeedEvent::SnapshotStart { partition, start, end } => {
                self.unordered.remove(partition);
                self.entry(*partition).begin_snapshot(start.0, end.0);
            }
            FeedEvent::Rollback { partition, to } => {
                self.unordered.remove(partition);
                let at = self.entry(*partition);
                if to.0 < at.seqno {
                    at.roll_back(to.0);
                }
            }
            FeedEvent::Unordered { partition } => drop(self.unordered.insert(*partition)),
            FeedEvent::SeqnoAdvanced { partition, seqno } => {
                self.unordered.remove(partition);
                self.advance(*partition, *seqno);
            }
            FeedEvent::PartitionState { partition, uuid, failover_log } => {
                let at = self.entry(*partition);
                at.uuid = *uuid;
                at.failover_log.clone_from(failover_log);
            }
            FeedEvent::PartitionContext { partition, manifest_uid, purge_seqno } => {
                let at = self.entry(*partition);
                (at.manifest_uid, at.purge_seqno) = (*manifest_uid, *purge_seqno);
            }
            FeedEvent::RollbackEnded { .. } | FeedEvent::CollectionNames(_) | FeedEvent::CaughtUp => {}
        }
    }

    /// The position in one partition, if anything of it was observed.
    pub fn at(&self, partition: PartitionId) -> Option<&PartitionPosition> {
        self.partitions.get(usize::from(partition.0))?.as_ref()
    }

    /// The position after all events observed.
    pub fn position(&self) -> FeedPosition {
        let partitions = self.partitions.iter().enumerate();
        FeedPosition { partitions: partitions.filter_map(|(id, at)| Some((PartitionId(id as u16), at.clone()?))).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::feed::Mutation;

    #[test]
    fn a_snapshot_is_over_only_where_the_one_before_would_have_ended() {
        let mut at = PartitionPosition::default();
        at.begin_snapshot(1, 4);
        at.seqno = 4;
        at.begin_snapshot(5, 10);
        at.seqno = 8;
        at.begin_snapshot(9, 9);
        at.seqno = 9;
        assert!(!at.is_complete() && at.snapshot_start == 5 && at.last_end(9) == 4);
        // Not at the end of a snapshot, and at one.
        at.roll_back(6);
        assert_eq!((at.seqno, at.snapshot_start, at.snapshot_end), (6, 4, 10));
        at.begin_snapshot(7, 8);
        at.seqno = 8;
        assert!(!at.is_complete());
        at.roll_back(4);
        assert_eq!((at.seqno, at.snapshot_start, at.snapshot_end), (4, 4, 4));
    }

    #[test]
    fn a_partition_that_has_not_begun_counts_as_the_mean_of_the_others() {
        let mut tracker = PositionTracker::default();
        assert_eq!(tracker.delivered(4), None, "no snapshot has begun");
        for (id, end) in [(0, 100), (3, 300)] {
            tracker.entry(PartitionId(id)).begin_snapshot(0, end);
        }
        let none = Delivered { seqnos: 0, of: 800 };
        assert_eq!((tracker.delivered(4), none.whole_of(0)), (Some(none), None));
        tracker.advance(PartitionId(3), PartitionSeqno(80));
        let some = tracker.delivered(4).unwrap();
        assert_eq!((some, some.whole_of(50)), (Delivered { seqnos: 80, of: 800 }, Some(500)));
        let huge = Delivered { seqnos: 1, of: u64::MAX };
        assert_eq!(huge.whole_of(u64::MAX), Some(u64::MAX));
        tracker.observe(&FeedEvent::Unordered { partition: PartitionId(1) });
        assert_eq!(tracker.delivered(4), None, "it is not known how much of a partition has come");
        tracker.observe(&FeedEvent::SeqnoAdvanced { partition: PartitionId(1), seqno: PartitionSeqno(20) });
        assert_eq!(tracker.delivered(4), Some(Delivered { seqnos: 100, of: 560 }));
    }

    #[test]
    fn a_snapshot_of_which_nothing_has_come_does_not_count() {
        for (before, seqno) in [((0, 9), 0), ((5, 9), 4)] {
            let mut at = PartitionPosition { seqno, ..Default::default() };
            (at.snapshot_start, at.snapshot_end) = before;
            at.begin_snapshot(seqno, seqno + 2);
            assert_eq!((at.snapshot_start, at.snapshot_end), (seqno, seqno + 2));
        }
        assert_eq!(begun_snapshot(5, (5, 9), (6, 8)), (5, 9), "one event of it has come");
    }

    #[test]
    fn the_common_point_is_where_both_histories_part() {
        let ours = [(0xc, 50), (0xb, 20), (0xa, 0)];
        assert_eq!(common_point(&ours, &[(0xd, 30), (0xb, 20), (0xa, 0)], 60), 30);
        assert_eq!(common_point(&ours, &[(0xd, 70), (0xb, 20), (0xa, 0)], 60), 50);
        assert_eq!(common_point(&ours, &[(0xd, 10), (0xa, 0)], 60), 10);
        assert_eq!(common_point(&ours, &[(0xd, 90), (0xc, 50), (0xb, 20)], 60), 60);
        assert_eq!(common_point(&ours, &[(0xc, 50)], 60), 60);
        assert_eq!(common_point(&ours, &[(0xd, 30), (0xb, 20)], 25), 25);
        assert_eq!(common_point(&ours, &[(0xe, 0)], 60), 0);
        assert_eq!(common_point(&[], &[(0xe, 0)], 60), 0);
    }

    #[test]
    fn a_position_survives_json_and_names_only_partitions_that_were_seen() {
        let mut tracker = PositionTracker::default();
        let failover_log = vec![(99, 5), (98, 0)];
        tracker.observe(&FeedEvent::PartitionState { partition: PartitionId(3), uuid: 99, failover_log: failover_log.clone() });
        tracker.observe(&FeedEvent::SnapshotStart {
            partition: PartitionId(3),
            start: PartitionSeqno(5),
            end: PartitionSeqno(9),
        });
        let mut mutation = Mutation::new("k", "");
        (mutation.partition, mutation.seqno) = (PartitionId(3), PartitionSeqno(7));
        tracker.observe(&FeedEvent::Mutation(mutation));
        tracker.observe(&FeedEvent::PartitionContext { partition: PartitionId(3), manifest_uid: 4, purge_seqno: 6 });
        let position = tracker.position();
        let (snapshot_start, snapshot_end, manifest_uid, purge_seqno) = (5, 9, 4, 6);
        let expected = PartitionPosition {
            uuid: 99,
            seqno: 7,
            snapshot_start,
            snapshot_end,
            failover_log,
            manifest_uid,
            purge_seqno,
            ..PartitionPosition::default()
        };
        assert_eq!(position.partitions.iter().collect::<Vec<_>>(), [(&PartitionId(3), &expected)]);
        let json = serde_json::to_string(&position).unwrap();
        assert_eq!(serde_json::from_str::<FeedPosition>(&json).unwrap(), position);
        assert_eq!(PositionTracker::new(&position).position(), position);
    }

    #[test]
    fn a_rollback_takes_the_position_back() {
        let mut tracker = PositionTracker::default();
        let mut mutation = Mutation::new("k", "");
        mutation.seqno = PartitionSeqno(70);
        tracker.observe(&FeedEvent::Mutation(mutation));
        tracker.observe(&FeedEvent::PartitionContext { partition: PartitionId(0), manifest_uid: 4, purge_seqno: 60 });
        tracker.observe(&FeedEvent::Rollback { partition: PartitionId(0), to: PartitionSeqno(50) });
        let at = &tracker.position().partitions[&PartitionId(0)];
        assert_eq!((at.seqno, at.manifest_uid, at.purge_seqno), (50, 0, 0));
    }

    #[test]
    fn a_rollback_takes_back_the_histories_that_begin_after_it() {
        let partition = PartitionId(0);
        let mut tracker = PositionTracker::default();
        let failover_log = vec![(3, 60), (2, 40), (1, 0)];
        tracker.observe(&FeedEvent::PartitionState { partition, uuid: 3, failover_log });
        tracker.observe(&FeedEvent::SeqnoAdvanced { partition, seqno: PartitionSeqno(70) });
        tracker.observe(&FeedEvent::Rollback { partition, to: PartitionSeqno(50) });
        let at = &tracker.position().partitions[&partition];
        assert_eq!((at.uuid, at.seqno, &at.failover_log[..]), (2, 50, &[(2, 40), (1, 0)][..]));
    }

    #[test]
    fn a_position_without_a_failover_log_is_read_and_written_as_before() {
        let json = r#"{"3":{"uuid":99,"seqno":7,"snapshot_start":5,"snapshot_end":9}}"#;
        let position: FeedPosition = serde_json::from_str(json).unwrap();
        assert_eq!(position.partitions[&PartitionId(3)].failover_log, []);
        assert_eq!(serde_json::to_string(&position).unwrap(), json);
    }

    #[test]
    fn the_ends_of_complete_snapshots_are_places_to_go_back_to() {
        let partition = PartitionId(0);
        let mut tracker = PositionTracker::default();
        let snapshot =
            |start, end| FeedEvent::SnapshotStart { partition, start: PartitionSeqno(start), end: PartitionSeqno(end) };
        tracker.observe(&snapshot(0, 9));
        tracker.advance(partition, PartitionSeqno(9));
        tracker.observe(&snapshot(10, 20));
        tracker.advance(partition, PartitionSeqno(15));
        tracker.observe(&snapshot(16, 22));
        tracker.advance(partition, PartitionSeqno(22));
        let at = tracker.at(partition).unwrap().clone();
        assert_eq!([30, 22, 21, 9, 8].map(|seqno| at.last_end(seqno)), [22, 22, 9, 9, 0], "15 is in the middle of a snapshot");
        let json = serde_json::to_string(&at).unwrap();
        assert_eq!(serde_json::from_str::<PartitionPosition>(&json).unwrap(), at);
        tracker.observe(&FeedEvent::Rollback { partition, to: PartitionSeqno(9) });
        tracker.observe(&snapshot(10, 18));
        let at = tracker.at(partition).unwrap();
        assert_eq!([30, 9, 8].map(|seqno| at.last_end(seqno)), [9, 9, 0]);
    }

    #[test]
    fn the_position_stays_while_events_come_in_no_order() {
        let (partition, other) = (PartitionId(0), PartitionId(1));
        let mut tracker = PositionTracker::default();
        let seqno = |tracker: &PositionTracker, id| tracker.at(id).map_or(0, |at| at.seqno);
        tracker.observe(&FeedEvent::Unordered { partition });
        for n in [7, 2, 9] {
            tracker.advance(partition, PartitionSeqno(n));
            tracker.advance(other, PartitionSeqno(n));
        }
        assert_eq!((seqno(&tracker, partition), seqno(&tracker, other)), (0, 9));
        let mut given_up = tracker.clone();
        tracker.observe(&FeedEvent::SeqnoAdvanced { partition, seqno: PartitionSeqno(9) });
        tracker.advance(partition, PartitionSeqno(10));
        assert_eq!(seqno(&tracker, partition), 10);
        given_up.observe(&FeedEvent::SnapshotStart { partition, start: PartitionSeqno(0), end: PartitionSeqno(9) });
        given_up.advance(partition, PartitionSeqno(2));
        assert_eq!(seqno(&given_up, partition), 2);
    }

    #[test]
    fn of_many_ends_there_are_fewer_the_farther_they_are_back() {
        let mut ends = SnapshotEnds::default();
        (1..=100_000).for_each(|n| ends.push(n * 10));
        ends.push(7);
        assert!(ends.0.starts_with(&[786_430, 983_030, 999_420, 999_930]), "{ends:?}");
        assert!(ends.0.ends_with(&[999_990, 1_000_000]) && ends.0.len() <= SnapshotEnds::MOST, "{ends:?}");
        ends.forget_after(900_000);
        assert_eq!((ends.up_to(1_000_000), ends.up_to(786_429)), (Some(786_430), None));
    }

    #[test]
    fn two_that_stopped_near_one_another_have_an_end_in_common_that_is_near() {
        let (mut ends, mut all) = (SnapshotEnds::default(), Vec::new());
        let mut last = 0;
        for n in 0..20_000u64 {
            last += 1 + n * n % 17;
            ends.push(last);
            all.push(ends.clone());
        }
        for lag in [1, 4, 30, 200] {
            let mut back = 0;
            for (one, other) in all.iter().zip(&all[lag..]) {
                let newest = one.0.last().copied().unwrap_or(0);
                let common = one.0.iter().rev().find(|end| other.contains(**end));
                back += newest - common.copied().unwrap_or(0);
            }
            let (mean, apart) = (back / (all.len() - lag) as u64, lag as u64 * last / all.len() as u64);
            assert!(mean < 10 * apart, "{lag} ends, {apart}, apart: {mean} back");
        }
    }
}
