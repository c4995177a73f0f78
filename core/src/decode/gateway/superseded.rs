//! Which rows of its document's earlier revisions a revision supersedes.

use smallvec::SmallVec;

use crate::decode::metadata::Metadata;
use crate::entry::{ChangeEntry, Membership};
use crate::sequence::{Sequence, SequenceList};

/// The most sequences that an entry supersedes because they are recent, and the most because channels were left there. What is over is
/// accounted for without a mark.
const MAX_SUPERSEDED: usize = 1_000;

/// Collects the sequences that an entry supersedes.
pub(super) struct Superseded {
    /// Those of the document's last revisions, in order.
    recent: SmallVec<[Sequence; 24]>,
    /// Where it left channels, if the recent ones do not say.
    pub(super) departures: SmallVec<[Sequence; 8]>,
}

impl Superseded {
    #[inline]
    pub(super) fn recent(metadata: &Metadata<'_>) -> Self {
        let mut recent = SmallVec::new();
        for &n in &metadata.recent {
            // One that is higher belongs to an earlier revision all the same: gateways before 1.5 could
            // give a later revision a lower sequence.
            if n != metadata.sequence && n > 0 && metadata.unused.binary_search(&n).is_err() {
                recent.push(Sequence(n));
            }
        }
        sort(&mut recent);
        Superseded { recent, departures: SmallVec::new() }
    }

    /// Gives them to the entry, and to `accounted` those over the limit: the oldest.
    ///
    /// To mark only the newest is enough: the row to be marked is that of the revision that the feed delivered last. It is older than all
    /// that are marked only if the feed has left out all those revisions, one after the other.
    #[inline]
    pub(super) fn finish(mut self, entry: &mut ChangeEntry, accounted: &mut SequenceList) {
        if self.recent.len() > MAX_SUPERSEDED {
            let excess = self.recent.len() - MAX_SUPERSEDED;
            accounted.extend(self.recent.drain(..excess));
        }
        if !self.departures.is_empty() {
            sort(&mut self.departures);
            let excess = self.departures.len().saturating_sub(MAX_SUPERSEDED);
            accounted.extend(self.departures.drain(..excess));
            self.recent.extend(self.departures);
            sort(&mut self.recent);
        }
        self.recent.iter().for_each(|sequence| entry.push_superseded(*sequence));
    }
}

#[inline]
fn sort<A: smallvec::Array<Item = Sequence>>(sequences: &mut SmallVec<A>) {
    // The gateway writes them sorted.
    if !sequences.is_sorted_by(|a, b| a < b) {
        sequences.sort_unstable();
        sequences.dedup();
    }
}

/// Where the document's earlier rows in one channel can be, seen from the row at some sequence.
pub(super) struct Reach {
    /// No row of it in that channel that needs a mark is below; zero if that is not known.
    pub(super) since: u64,
    /// Where the document last left the channel before the row, if its recent sequences do not say.
    pub(super) departure: Option<u64>,
}

impl Reach {
    /// For the row at `row`, which is `membership` in `channel`.
    ///
    /// Rows in a channel are at the sequences of the document's stays there: from each start to its end, which is the removal. The
    /// row before this one need not belong to the last stay but one: the feed may have left out whole stays. So everything back to
    /// the first known stay is within reach, if it is among the superseded; marking a sequence at which there is no row does no harm.
    ///
    /// The row before may also be older than the recent sequences: it is then the end of a stay. Which of the recent ones is the oldest revision
    /// cannot be told (some may never have been used), so the latest end that is not among them is taken in any case.
    #[inline]
    pub(super) fn new(metadata: &Metadata<'_>, channel: &[u8], membership: Membership, row: u64) -> Self {
        let (mut first_start, mut departure, mut known) = (u64::MAX, 0, false);
        for stay in metadata.last_stays.of(channel).chain(metadata.earlier_stays.of(channel)) {
            if stay.start > row {
                continue;
            }
            first_start = first_start.min(stay.start);
            known |= if membership == Membership::Present { stay.end == 0 } else { stay.end == row };
            if stay.end > departure && stay.end < row && !metadata.recent.contains(&stay.end) {
                departure = stay.end;
            }
        }
        Reach { since: if known { first_start } else { 0 }, departure: (departure > 0).then_some(departure) }
    }
}
