//! What happens to a feed on its way: other orders, repetitions, deduplication. All from a seed, so that a failure can be repeated.

use std::collections::{HashMap, VecDeque};

use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use sluicegate_core::{Mutation, PartitionId};

/// The most events that a simulated reconnection repeats.
pub(crate) const MAX_REPEATED: usize = 16;

/// Variations of a recorded feed that a server could have delivered as well. Play them back with
/// [`MemoryFeed`](crate::MemoryFeed), which numbers them anew.
pub trait MutationsExt {
    /// Partitions interleave differently: each event moves by less than `window` places, and within a partition the
    /// order stays.
    #[must_use]
    fn shuffled_within(self, window: usize, seed: u64) -> Self;

    /// After each event, with this probability, the last 1 to 16 events come again in their order, as after a reconnection.
    #[must_use]
    fn duplicated(self, probability: f64, seed: u64) -> Self;

    /// Of each run of `window` events only the newest one of a key stays, as a server keeps it: that of the highest CAS, and of equal
    /// ones the last. A window of 0 or 1 leaves everything.
    #[must_use]
    fn deduplicated(self, window: usize) -> Self;
}

impl MutationsExt for Vec<Mutation> {
    fn shuffled_within(self, window: usize, seed: u64) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let draw = |index| (index + random.random_range(0..window.max(1)), random.random::<u32>(), index);
        let mut order: Vec<(usize, u32, usize)> = (0..self.len()).map(draw).collect();
        order.sort_unstable();
        // Each partition keeps the places it drew, and fills them in its own order. Matching sorted places to sorted events
        // never lengthens the longest way.
        let mut queues: HashMap<PartitionId, VecDeque<Mutation>> = HashMap::new();
        let places: Vec<PartitionId> = order.iter().map(|(_, _, index)| self[*index].partition).collect();
        for mutation in self {
            queues.entry(mutation.partition).or_default().push_back(mutation);
        }
        places.iter().filter_map(|partition| queues.get_mut(partition)?.pop_front()).collect()
    }

    fn duplicated(self, probability: f64, seed: u64) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut out = Vec::with_capacity(self.len());
        for (index, mutation) in self.iter().enumerate() {
            out.push(mutation.clone());
            if random.random_bool(probability.clamp(0.0, 1.0)) {
                let again = random.random_range(1..=MAX_REPEATED).min(index + 1);
                out.extend_from_slice(&self[index + 1 - again..=index]);
            }
        }
        out
    }

    fn deduplicated(mut self, window: usize) -> Self {
        let mut keep = vec![true; self.len()];
        for (run, kept) in self.chunks(window.max(1)).zip(keep.chunks_mut(window.max(1))) {
            let mut newest: HashMap<_, usize> = HashMap::with_capacity(run.len());
            for (at, mutation) in run.iter().enumerate() {
                if let Some(other) = newest.insert((mutation.collection, &mutation.key), at) {
                    let older = if run[other].cas > mutation.cas { at } else { other };
                    kept[older] = false;
                    if older == at {
                        newest.insert((mutation.collection, &mutation.key), other);
                    }
                }
            }
        }
        let mut keep = keep.into_iter();
        self.retain(|_| keep.next().unwrap_or(true));
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sluicegate_core::PartitionSeqno;

    /// Events of 40 keys in 8 partitions, numbered by `seqno`.
    fn sample() -> Vec<Mutation> {
        let one = |n: u64| {
            let key = n * 7 % 40;
            let mut mutation = Mutation::new(format!("k{key}"), "");
            (mutation.partition, mutation.seqno) = (PartitionId((key % 8) as u16), PartitionSeqno(n));
            mutation
        };
        (0..1000).map(one).collect()
    }

    fn numbers(mutations: &[Mutation]) -> Vec<u64> {
        mutations.iter().map(|m| m.seqno.0).collect()
    }

    #[test]
    fn a_shuffle_moves_events_less_than_its_window_and_keeps_partitions_in_order() {
        for window in [0, 1, 2, 64] {
            let shuffled = sample().shuffled_within(window, 5);
            assert_eq!(shuffled, sample().shuffled_within(window, 5));
            let n = numbers(&shuffled);
            let farthest = n.iter().enumerate().map(|(place, n)| n.abs_diff(place as u64)).max();
            assert!(farthest < Some(window.max(1) as u64), "{farthest:?}");
            assert_eq!(n.is_sorted(), window < 2);
            for partition in 0..8 {
                let own = shuffled.iter().filter(|m| m.partition.0 == partition).map(|m| m.seqno);
                assert!(own.is_sorted());
            }
            let mut all = n;
            all.sort_unstable();
            assert_eq!(all, numbers(&sample()));
        }
        assert_ne!(sample().shuffled_within(64, 5), sample().shuffled_within(64, 6));
    }

    #[test]
    fn duplicates_repeat_the_last_events_in_order() {
        let duplicated = sample().duplicated(0.05, 3);
        assert_eq!(duplicated, sample().duplicated(0.05, 3));
        assert_eq!(sample().duplicated(0.0, 3), sample());
        let (mut next, mut repeated) = (0, 0);
        for pair in numbers(&duplicated).windows(2) {
            assert!(pair[1] == pair[0] + 1 || pair[1] + 16 > pair[0], "{pair:?}");
            next = next.max(pair[1]);
            repeated += u64::from(pair[1] < next || pair[0] == pair[1]);
        }
        assert_eq!(next, 999);
        assert!(repeated > 100, "{repeated}");
    }

    #[test]
    fn deduplication_keeps_the_last_event_of_a_key_in_each_window() {
        let kept = sample().deduplicated(50);
        assert_eq!(kept.len(), 20 * 40);
        for run in numbers(&kept).chunk_by(|a, b| a / 50 == b / 50) {
            // 50 events of 40 keys: the first ten keys come twice, and the later event stays.
            let first = run[0] / 50 * 50;
            assert_eq!(run, (first + 10..first + 50).collect::<Vec<_>>());
        }
        assert_eq!(sample().deduplicated(0), sample());
        assert_eq!(sample().deduplicated(1), sample());
    }
}
