//! Sequences of earlier revisions that an entry supersedes.

use smallvec::SmallVec;
use thin_vec::ThinVec;

use crate::decode::metadata::Metadata;
use crate::entry::{ChangeEntry, Membership};
use crate::sequence::Sequence;

/// The limit for sequences that an entry supersedes as recent ones, and the limit for those at
/// which the document left channels. Sequences over a limit are accounted for without a mark.
const MAX_SUPERSEDED: usize = 1_000;

/// Collects the sequences that an entry supersedes.
pub(super) struct Superseded {
    /// Sequences of the document's last revisions, in order.
    recent: SmallVec<[Sequence; 24]>,
    /// Sequences at which the document left channels, if they are not among the recent ones.
    pub(super) departures: SmallVec<[Sequence; 8]>,
}

impl Superseded {
    #[inline]
    pub(super) fn recent(metadata: &Metadata<'_>) -> Self {
        let mut recent = SmallVec::new();
        for &n in &metadata.recent {
            // A higher one belongs to an earlier revision, too: gateways before 1.5 could give a
            // later revision a lower sequence. So does an unused one, if another node of the
            // gateway has used it after the counter was lost. Where nobody has, there is no row to
            // mark.
            if n != metadata.sequence && n > 0 {
                recent.push(Sequence(n));
            }
        }
        sort(&mut recent);
        Superseded { recent, departures: SmallVec::new() }
    }

    /// Adds them to the entry, and those over the limit, the oldest, to `accounted`.
    ///
    /// It is enough to mark the newest. The row to mark is that of the revision that was delivered
    /// last. It is older than all marked ones only if the feed left out all those revisions in a
    /// row.
    #[inline]
    pub(super) fn finish(mut self, entry: &mut ChangeEntry, accounted: &mut ThinVec<Sequence>) {
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

/// Where the document's earlier rows in a channel can be, relative to one of its rows.
pub(super) struct Reach {
    /// There is no row below this sequence that needs a mark; zero if that is not known.
    pub(super) since: u64,
    /// The sequence at which the document last left the channel before the row, if it is not among
    /// the recent ones.
    pub(super) departure: Option<u64>,
}

impl Reach {
    /// For the row at `row`, which is `membership` in `channel`.
    ///
    /// The document's rows in a channel are at the sequences of its stays there: from the start of
    /// a stay to its end, which is the removal. The row before this one need not be of the stay
    /// before: the feed may have left out whole stays. So every superseded sequence from the first
    /// known stay on is within reach. A mark at a sequence without a row does no harm.
    ///
    /// The row before may also be older than the recent sequences; then it is the end of a stay.
    /// Which of the recent sequences is that of the oldest revision is not known, because some may
    /// never have been used. So the latest end that is not among them is always taken.
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
