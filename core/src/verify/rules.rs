//! What a block must say, as far as documents tell: the same for looking and for rebuilding. No I/O.

use std::collections::BTreeMap;
use std::hash::{BuildHasher as _, RandomState};

use rustc_hash::FxHashMap;

use crate::block::{Block, BlockState};
use crate::channel::{Channel, ChannelMap};
use crate::document::DocumentRef;
use crate::key::BlockIndex;
use crate::sequence::Sequence;

/// What is known of one sequence in one channel, beside what the block says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    /// Whether there is a document that can be read.
    pub(super) document: bool,
    /// Whether the star channel names it, or cannot tell: it names every document there ever was.
    pub(super) named: bool,
    /// The state that its entry has by itself; absent if it is not in the channel.
    pub(super) own: BlockState,
    /// Whether a later row of its document supersedes it.
    pub(super) superseded: Superseded,
    /// Whether the block must know of it: it is published.
    pub(super) required: bool,
    /// Whether a document that is lost may have superseded it.
    pub(super) doubt: bool,
}

/// Whether a row is superseded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Superseded {
    No,
    /// By an entry above the clock's `marked`: its mark may be there or not.
    Maybe,
    Yes,
}

/// What is wrong with a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wrong {
    /// The block does not know the sequence.
    Forgotten,
    /// A removal as present, or the other way round.
    Kind,
    /// It is shown, and not in the channel, or was never stored at all.
    Stray,
    /// It is shown, and a later row of its document is there.
    Duplicate,
    /// It is the newest row of its document, and not shown.
    Hidden,
}

/// The state that is right where `stored` is there, and what is wrong with it. What cannot be told from documents stays as it is.
pub(super) fn judge(stored: BlockState, known: Known) -> (BlockState, Option<Wrong>) {
    let Known { document, named, own, superseded, required, doubt } = known;
    let marked = superseded == Superseded::Yes;
    if !document {
        // A later entry may mark what never arrived, or what is lost.
        return match marked {
            true => (BlockState::Superseded, stored.is_live().then_some(Wrong::Duplicate)),
            false if stored.is_live() && required && !named => (BlockState::Absent, Some(Wrong::Stray)),
            false => (stored, None),
        };
    }
    if !own.is_live() {
        // Not in the channel, or a departure in the star channel. A mark there shows nothing.
        let right = if marked || stored == BlockState::Superseded { BlockState::Superseded } else { own };
        let wrong = match stored {
            BlockState::Present | BlockState::Removal => Some(Wrong::Stray),
            BlockState::Absent if own != BlockState::Absent && required => Some(Wrong::Forgotten),
            _ => None,
        };
        return (right, wrong);
    }
    let stays = stored == BlockState::Superseded && (doubt || superseded == Superseded::Maybe);
    let right = if marked || stays { BlockState::Superseded } else { own };
    let wrong = match stored {
        _ if stored == right => None,
        BlockState::Absent => required.then_some(Wrong::Forgotten),
        BlockState::Superseded => Some(Wrong::Hidden),
        _ if right == BlockState::Superseded => Some(Wrong::Duplicate),
        _ => Some(Wrong::Kind),
    };
    (right, wrong)
}

/// The marks that fall on the sequences of one block.
#[derive(Debug)]
pub(super) struct Marked {
    /// Those that must be there.
    pub(super) certain: Block,
    /// Those that may be there.
    pub(super) possible: Block,
}

impl Marked {
    pub(super) fn new(capacity: u32) -> Self {
        Marked { certain: Block::new(capacity), possible: Block::new(capacity) }
    }

    /// Whether the sequence at `offset` is superseded.
    pub(super) fn at(&self, offset: u32) -> Superseded {
        if self.certain.get(offset) != BlockState::Absent {
            Superseded::Yes
        } else if self.possible.get(offset) != BlockState::Absent {
            Superseded::Maybe
        } else {
            Superseded::No
        }
    }

    pub(super) fn add(&mut self, offset: u32, certain: bool) {
        let marks = if certain { &mut self.certain } else { &mut self.possible };
        marks.raise(offset, BlockState::Superseded);
    }
}

/// Marks of entries that were met, on blocks that were not looked at yet.
#[derive(Debug)]
pub(super) struct Marks {
    capacity: u32,
    ahead: BTreeMap<BlockIndex, ChannelMap<Marked>>,
}

impl Marks {
    pub(super) fn new(capacity: u32) -> Self {
        Marks { capacity, ahead: BTreeMap::new() }
    }

    pub(super) fn add(&mut self, channel: &Channel, sequence: Sequence, certain: bool) {
        let (index, offset) = Block::locate(sequence, self.capacity);
        let channels = self.ahead.entry(index).or_default();
        match channels.get_mut(channel) {
            Some(marked) => marked.add(offset, certain),
            None => channels.entry(channel.clone()).or_insert(Marked::new(self.capacity)).add(offset, certain),
        }
    }

    /// The highest block number on which marks fall.
    pub(super) fn highest(&self) -> Option<BlockIndex> {
        self.ahead.keys().next_back().copied()
    }

    /// The marks on the blocks of number `index`.
    pub(super) fn take(&mut self, index: BlockIndex) -> ChannelMap<Marked> {
        self.ahead.remove(&index).unwrap_or_default()
    }
}

/// How a row stands to another of its document in the channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Met {
    /// The first one met.
    First,
    /// There is a newer one.
    Older { than: Sequence },
    /// It is newer than one met before.
    Newer { than: Sequence },
}

/// The newest row of each document in each channel, as far as they were met: 16 bytes a row. Of those up to `marked`, if there is one: what is
/// older than that must be marked.
#[derive(Debug)]
pub(super) struct Newest {
    marked: Sequence,
    hasher: RandomState,
    rows: FxHashMap<u64, Sequence>,
}

impl Newest {
    pub(super) fn new(marked: Sequence) -> Self {
        Newest { marked, hasher: RandomState::new(), rows: FxHashMap::default() }
    }

    /// Whether a row of the document was met in the channel.
    pub(super) fn knows(&self, channel: &Channel, document: DocumentRef<'_>) -> bool {
        self.rows.contains_key(&self.hasher.hash_one((channel.name(), document)))
    }

    /// Takes a row. Two documents may be taken for one, hardly ever: whoever relies on it compares them.
    pub(super) fn meet(&mut self, channel: &Channel, document: DocumentRef<'_>, sequence: Sequence) -> Met {
        let key = self.hasher.hash_one((channel.name(), document));
        let Some(known) = self.rows.get_mut(&key) else {
            self.rows.insert(key, sequence);
            return Met::First;
        };
        let before = *known;
        if before == sequence {
            return Met::First;
        }
        let (low, high) = (before.min(sequence), before.max(sequence));
        *known = if high <= self.marked || low > self.marked { high } else { low };
        if sequence < before { Met::Older { than: before } } else { Met::Newer { than: before } }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATES: [BlockState; 4] = [BlockState::Absent, BlockState::Present, BlockState::Removal, BlockState::Superseded];

    fn every(mut check: impl FnMut(BlockState, Known)) {
        for stored in STATES {
            for own in STATES {
                for superseded in [Superseded::No, Superseded::Maybe, Superseded::Yes] {
                    for bits in 0..16 {
                        let [document, required, doubt, named] = [1, 2, 4, 8].map(|bit| bits & bit != 0);
                        let own = if document { own } else { BlockState::Absent };
                        check(stored, Known { document, named, own, superseded, required, doubt });
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_right_is_not_wrong_and_stays() {
        every(|stored, known| {
            let (right, wrong) = judge(stored, known);
            assert_eq!(judge(right, known), (right, None), "{stored:?} {known:?}");
            assert!(wrong.is_none() || right != stored, "{stored:?} {known:?}");
        });
    }

    #[test]
    fn what_is_lost_is_not_taken_back() {
        every(|stored, known| {
            let (right, _) = judge(stored, known);
            if !known.document && (known.named || !known.required) {
                assert!(right == stored || right == BlockState::Superseded && known.superseded == Superseded::Yes);
            }
        });
    }

    #[test]
    fn a_row_is_shown_again_only_if_nothing_can_have_superseded_it() {
        every(|stored, known| {
            let (right, wrong) = judge(stored, known);
            if stored == BlockState::Superseded && right != stored {
                assert!(known.document && known.own.is_live() && known.superseded == Superseded::No && !known.doubt);
                assert_eq!((right, wrong), (known.own, Some(Wrong::Hidden)));
            }
        });
    }

    #[test]
    fn of_two_rows_the_newer_marked_one_is_kept() {
        let (star, [a, b, c]) = (Channel::star(), [5, 7, 20].map(Sequence));
        for order in [[a, b, c], [c, b, a], [b, c, a], [a, c, b], [c, a, b], [b, a, c]] {
            let mut newest = Newest::new(Sequence(10));
            for sequence in order {
                newest.meet(&star, "d".into(), sequence);
            }
            assert_eq!(newest.meet(&star, "d".into(), Sequence(1)), Met::Older { than: b }, "{order:?}");
        }
        let mut newest = Newest::new(Sequence(10));
        assert_eq!(newest.meet(&star, "d".into(), a), Met::First);
        assert_eq!(newest.meet(&star, "e".into(), b), Met::First);
        assert_eq!(newest.meet(&star, "d".into(), c), Met::Newer { than: a });
        assert!(newest.knows(&star, "e".into()) && !newest.knows(&star, "f".into()));
    }
}
