//! Where entries lie that came from after a position of the feed: no I/O.

use std::collections::BTreeMap;

use crate::batch::{Checkpoint, Floor};
use crate::feed::{FeedPosition, PartitionId};

/// Floors that are remembered, at most.
const MOST: usize = 16;

/// Floors of some of the positions that the writer has come to, fewer the farther they are back.
#[derive(Clone, Debug, Default)]
pub(super) struct Floors {
    known: Vec<(u64, FeedPosition, Floor)>,
    count: u64,
}

impl Floors {
    /// What an earlier term has left.
    pub(super) fn of(checkpoint: &Checkpoint) -> Self {
        let mut floors = Floors::default();
        floors.remember(&checkpoint.position, checkpoint.floor);
        floors
    }

    /// A position is reached; all that comes from after it lies above the floor.
    pub(super) fn remember(&mut self, position: &FeedPosition, floor: Floor) {
        self.count += 1;
        self.known.push((self.count, position.clone(), floor));
        if self.known.len() > MOST {
            let places: Vec<u64> = self.known.iter().map(|(count, ..)| *count).collect();
            self.known.remove(least_missed(&places));
        }
    }

    fn newest(&self, is_early_enough: impl Fn(&FeedPosition) -> bool) -> Floor {
        let known = self.known.iter().rev().find(|(_, began, _)| is_early_enough(began));
        known.map_or_else(Floor::default, |(.., floor)| *floor)
    }

    /// Of all that came from after these places in these partitions.
    pub(super) fn after(&self, places: &BTreeMap<PartitionId, u64>) -> Floor {
        let at = |began: &FeedPosition, partition| began.partitions.get(partition).map_or(0, |at| at.seqno);
        self.newest(|began| places.iter().all(|(partition, after)| at(began, partition) <= *after))
    }

    /// Of all that came from after a position that was not reached in one go.
    pub(super) fn of_position(&self, position: &FeedPosition) -> Floor {
        let at = |partition: &PartitionId| position.partitions.get(partition).map_or(0, |at| at.seqno);
        self.newest(|began| began.partitions.iter().all(|(partition, began)| began.seqno <= at(partition)))
    }
}

/// Of ascending places, which one to forget so that fewer are left the farther they are back: its
/// neighbours are close to one another, as seen from the newest. The first and the newest stay, if
/// there are more than two.
fn least_missed(places: &[u64]) -> usize {
    let newest = places.last().copied().unwrap_or(0);
    let gap = |at: usize| u128::from(places[at + 1] - places[at - 1]);
    let age = |at: usize| u128::from(newest - places[at - 1]);
    let between = 1..places.len().saturating_sub(1);
    between.min_by(|a, b| (gap(*a) * age(*b)).cmp(&(gap(*b) * age(*a)))).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Sequence;
    use crate::feed::PartitionPosition;

    fn position(places: &[(u16, u64)]) -> FeedPosition {
        let at = |(id, seqno): &(u16, u64)| (PartitionId(*id), PartitionPosition { seqno: *seqno, ..Default::default() });
        FeedPosition { partitions: places.iter().map(at).collect() }
    }

    fn floor(stable: u64) -> Floor {
        Floor { stable: Sequence(stable), late: stable / 10 }
    }

    #[test]
    fn the_newest_floor_holds_of_which_nothing_is_before() {
        let mut floors = Floors::default();
        floors.remember(&position(&[(1, 5)]), floor(10));
        floors.remember(&position(&[(1, 9), (2, 4)]), floor(20));
        let after = |places: &[(u16, u64)]| floors.after(&places.iter().map(|(id, seqno)| (PartitionId(*id), *seqno)).collect());
        assert_eq!(after(&[(1, 9)]), floor(20));
        assert_eq!(after(&[(1, 8)]), floor(10));
        assert_eq!(after(&[(2, 3)]), floor(10), "of 2 there was nothing then");
        assert_eq!(after(&[(1, 9), (2, 3)]), floor(10));
        assert_eq!(after(&[(1, 4), (2, 9)]), Floor::default());
        assert_eq!(floors.of_position(&position(&[(1, 9), (2, 4)])), floor(20));
        assert_eq!(floors.of_position(&position(&[(1, 9)])), floor(10));
        assert_eq!(floors.of_position(&position(&[(2, 9)])), Floor::default());
    }

    #[test]
    fn the_last_floors_stay_and_of_the_others_some() {
        let mut floors = Floors::default();
        (1..=1_000).for_each(|n| floors.remember(&position(&[(1, n)]), floor(n)));
        let after = |seqno| floors.after(&[(PartitionId(1), seqno)].into()).stable.0;
        assert_eq!((floors.known.len(), after(1_000), after(999)), (MOST, 1_000, 999));
        assert!(after(990) > 975 && after(900) > 750 && after(500) > 100, "{floors:?}");
    }
}
