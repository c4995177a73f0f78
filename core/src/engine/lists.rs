//! How batch records tell what is missing.

use std::time::Duration;

use super::sequencer::Sequencer;
use crate::clock::Epoch;
use crate::missing::{Missing, MissingBase, MissingList};

/// The default of the limit, see [`WriterConfig`](crate::WriterConfig).
pub(crate) const LIST_CHANGES: usize = 1_000;

/// What a record has of what is missing, and the list that is stored before it.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) missing: Missing,
    pub(super) base: Option<MissingBase>,
    /// What is missing after the batch. Later records are relative to it.
    pub(super) list: Option<MissingList>,
}

/// Decides when a new list is stored.
///
/// A record repeats all changes since the last list. A new one is due when the records since then
/// have repeated as many ranges as there are, and `limit` more. So lists and repeated changes cost
/// at most about twice what the best choice would.
#[derive(Debug)]
pub(super) struct Lists {
    limit: usize,
    /// The number of the last list.
    number: u64,
    /// When the list was made that records are relative to.
    base: Option<Duration>,
    /// Ranges in the records since then.
    repeated: usize,
}

impl Lists {
    /// The first list of a term comes after the list `number` of earlier terms.
    pub(super) fn after(number: u64, limit: usize) -> Self {
        Lists { limit, number, base: None, repeated: 0 }
    }

    /// What the next record of the term `epoch` has.
    pub(super) fn tell(&mut self, sequencer: &mut Sequencer, epoch: Epoch, now: Duration) -> Told {
        let all = sequencer.missing_ranges();
        let changes = self.base.map(|made| {
            let changed = sequencer.changed();
            let missing = sequencer.missing_within(&changed, now);
            let age_ms = u64::try_from(now.saturating_sub(made).as_millis()).unwrap_or(u64::MAX);
            (changed.ranges_len() + missing.ranges_len(), missing, MissingBase { epoch, list: self.number, age_ms, changed })
        });
        let (ranges, missing, base) = match changes {
            Some((ranges, missing, base)) if ranges < all => (ranges, missing, Some(base)),
            _ => (all, sequencer.missing(now), None),
        };
        if base.is_none() {
            self.base = None;
            sequencer.forget_changes();
        }
        self.repeated += ranges;
        let is_due = ranges > 0 && self.repeated > all + self.limit;
        let list = is_due.then(|| {
            self.number += 1;
            (self.base, self.repeated) = (Some(now), 0);
            sequencer.forget_changes();
            MissingList { epoch, number: self.number, missing: sequencer.missing(now) }
        });
        Told { missing, base, list }
    }
}

#[cfg(all(test, feature = "runtime"))]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use rand::{Rng as _, SeedableRng as _};
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::batch::BatchRecord;
    use crate::engine::SequencerConfig;
    use crate::missing::follow;
    use crate::sequence::{RangeSet, Sequence, SequenceRange};

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    /// The age of each skipped sequence, and what is given up.
    fn normal(missing: &Missing) -> (BTreeMap<u64, u64>, RangeSet) {
        let ages = missing.gaps.iter().flat_map(|gap| (gap.range.first().0..=gap.range.last().0).map(|n| (n, gap.age_ms)));
        (ages.collect(), missing.abandoned.clone())
    }

    fn act(sequencer: &mut Sequencer, now: Duration, random: &mut ChaCha8Rng) {
        let near = |random: &mut ChaCha8Rng, high: u64| Sequence((high + 8).saturating_sub(random.random_range(0..40)).max(1));
        let high = sequencer.high().0;
        let (sequence, slot) = (near(random, high), random.random_range(0..3));
        match random.random_range(0..12) {
            0..5 => _ = sequencer.arrived_at(sequence, now),
            5 => _ = sequencer.arrived_at(sequence.in_slot(slot).unwrap(), now),
            6 => _ = sequencer.unused(SequenceRange::new(sequence.0, sequence.0 + random.random_range(0..5)).unwrap(), now),
            7 => sequencer.readmit(sequence.in_slot(slot).unwrap()),
            8 => sequencer.forget_readmitted(sequence.in_slot(slot).unwrap()),
            9 => sequencer.withdraw(sequence),
            10 => {
                let mut positions = RangeSet::new();
                positions.insert(sequence.0, sequence.0 + 2);
                sequencer.expect_again(&positions);
            }
            _ => sequencer.tick(now),
        }
        if random.random_bool(0.002) {
            sequencer.end_of_feed(now);
        }
    }

    #[test]
    fn readers_know_what_is_missing_whenever_they_come() {
        let (mut lists, mut relative) = (0, 0);
        for seed in 0..300 {
            let mut random = ChaCha8Rng::seed_from_u64(seed);
            let (max_wait, skip_wait) = (ms(5), ms(40));
            let mut sequencer =
                Sequencer::new(SequencerConfig { max_wait, skip_wait, max_pending: 6, ..SequencerConfig::default() });
            let mut told = Lists::after(seed, seed as usize % 12);
            let (mut now, mut records) = (ms(0), Vec::new());
            // A follower that has read every record, one that reads several at once, and the places
            // of lists.
            let (mut follower, mut behind, mut places) = (Arc::default(), Arc::default(), [None, None]);
            for number in 1..60 {
                for _ in 0..random.random_range(0..8) {
                    now += ms(random.random_range(0..4));
                    act(&mut sequencer, now, &mut random);
                }
                let epoch = Epoch::default();
                let Told { missing, base, list } = told.tell(&mut sequencer, epoch, now);
                relative += usize::from(base.is_some());
                let record = Arc::new(BatchRecord {
                    gaps: missing.gaps,
                    abandoned: missing.abandoned,
                    base,
                    ..BatchRecord::new(number, epoch)
                });
                let true_one = sequencer.missing(now);
                if let Some(list) = list {
                    lists += 1;
                    let place = list.number as usize % 2;
                    // The last record refers to the other place.
                    places[place] = Some(list);
                }
                let list = record.base.as_ref().and_then(|base| places[base.list as usize % 2].as_ref());
                let known = record.missing(list).expect("the list is there");
                assert_eq!(normal(&known), normal(&true_one), "seed {seed}, batch {number}");
                follow(&mut follower, std::slice::from_ref(&record));
                assert_eq!(*follower, true_one.sequences(), "seed {seed}, batch {number}");
                records.push(record);
                if random.random_bool(0.2) {
                    follow(&mut behind, &std::mem::take(&mut records));
                    assert_eq!(*behind, true_one.sequences(), "seed {seed}, batch {number}");
                }
            }
        }
        assert!(lists > 500 && relative > 2_000, "{lists} lists, {relative} records relative to one");
    }

    #[test]
    fn what_was_given_up_costs_nothing_later() {
        let now = ms(0);
        let mut sequencer = Sequencer::new(SequencerConfig { skip_wait: ms(0), max_wait: ms(0), ..SequencerConfig::default() });
        for n in 1..=100_000 {
            sequencer.arrived(Sequence(2 * n), now);
        }
        sequencer.tick(now);
        assert_eq!(sequencer.missing_ranges(), 100_000);
        let mut lists = Lists::after(0, LIST_CHANGES);
        let (mut records, mut stored) = (0, 0);
        for n in 0..1_000 {
            // One of them comes in each batch.
            sequencer.arrived(Sequence(2 * n + 1), now);
            let Told { missing, base, list } = lists.tell(&mut sequencer, Epoch::default(), now);
            records += missing.ranges_len() + base.map_or(0, |base| base.changed.ranges_len());
            stored += list.map_or(0, |list| list.missing.ranges_len());
        }
        assert!(records < 500_000 && stored < 500_000, "{records} ranges in records, {stored} in lists");
    }
}
