//! One window: the blocks of one number in all channels, and the documents of its sequences.

use rustc_hash::FxHashMap;

use super::findings::{Finding, Problem};
use super::rules::{Known, Marked, Revision, Superseded, Wrong, judge};
use crate::block::{Block, BlockCodec, BlockState};
use crate::channel::{Channel, ChannelMap};
use crate::error::Error;
use crate::key::{BlockIndex, CacheKey};
use crate::sequence::{RangeSet, Sequence, SequenceRange};

/// What is stored of a block.
#[derive(Debug)]
pub(super) enum Stored {
    Missing,
    Unreadable(Error),
    Block(Block),
}

impl Stored {
    pub(super) fn of(bytes: Option<&[u8]>, codec: &dyn BlockCodec) -> Stored {
        match bytes.map(|bytes| codec.decode(bytes)) {
            None => Stored::Missing,
            Some(Ok(block)) => Stored::Block(block),
            Some(Err(e)) => Stored::Unreadable(e),
        }
    }

    /// Whether it names the sequence, or may have.
    fn may_name(&self, offset: u32) -> bool {
        !matches!(self, Stored::Block(block) if block.get(offset) == BlockState::Absent)
    }

    fn state(&self, offset: u32) -> BlockState {
        match self {
            Stored::Block(block) => block.get(offset),
            _ => BlockState::Absent,
        }
    }
}

/// One channel in the window.
#[derive(Debug)]
pub(super) struct Cell {
    /// What its block says; none until it was read.
    pub(super) stored: Option<Stored>,
    /// The states that the entries have by themselves.
    pub(super) own: Block,
    /// The marks that fall on them.
    pub(super) marked: Marked,
    /// Two rows of what seems to be one document, the one with the lower sequence first. Used only
    /// if nothing else tells which is superseded.
    pub(super) pairs: Vec<(Sequence, Sequence)>,
}

/// The blocks of one number.
#[derive(Debug)]
pub(super) struct Window {
    pub(super) index: BlockIndex,
    pub(super) range: SequenceRange,
    capacity: u32,
    pub(super) cells: ChannelMap<Cell>,
    /// Sequences whose documents were asked for, and those among them not read yet.
    asked: RangeSet,
    to_read: Vec<Sequence>,
    /// The revisions whose documents are readable, by offset.
    pub(super) documents: FxHashMap<u32, Revision>,
    /// Documents that cannot be.
    pub(super) broken: FxHashMap<Sequence, Finding>,
}

/// What is wrong with a block, and how it must be.
#[derive(Debug)]
pub(super) struct Verdict {
    pub(super) right: Block,
    /// Whether that must be written.
    pub(super) is_wrong: bool,
    pub(super) findings: Vec<Finding>,
    /// Sequences that it shows and whose documents cannot be read.
    pub(super) lost: Vec<Sequence>,
    /// Whether the channel's directory must list it.
    pub(super) is_needed: bool,
}

/// What a block is judged by, beside the documents.
#[derive(Clone, Copy, Debug)]
pub(super) struct Facts {
    /// Whether the directory lists it, as far as that can be read.
    pub(super) listed: bool,
    /// The channel is complete from here on.
    pub(super) valid_from: Sequence,
    /// Below it, a document that is lost may have superseded a row.
    pub(super) doubt: Sequence,
    /// Entries at or below it have their predecessors marked.
    pub(super) marked: Sequence,
    /// Whether the block must know of what is stored and not published, too. While commits are under way it need not; but what a
    /// writer has committed and not published yet may still be taken as it is, by a checkpoint that is ahead of the clock.
    pub(super) unpublished: bool,
}

impl Window {
    pub(super) fn new(index: BlockIndex, capacity: u32) -> Self {
        Window {
            index,
            range: Block::range(index, capacity),
            capacity,
            cells: ChannelMap::default(),
            asked: RangeSet::new(),
            to_read: Vec::new(),
            documents: FxHashMap::default(),
            broken: FxHashMap::default(),
        }
    }

    pub(super) fn offset(&self, sequence: Sequence) -> u32 {
        (sequence.0 - self.range.first().0) as u32
    }

    pub(super) fn sequence(&self, offset: u32) -> Sequence {
        Sequence(self.range.first().0 + u64::from(offset))
    }

    pub(super) fn cell(&mut self, channel: &Channel) -> &mut Cell {
        let capacity = self.capacity;
        self.cells.entry(channel.clone()).or_insert_with(|| Cell {
            stored: None,
            own: Block::new(capacity),
            marked: Marked::new(capacity),
            pairs: Vec::new(),
        })
    }

    /// Asks for documents.
    pub(super) fn ask(&mut self, sequences: impl IntoIterator<Item = Sequence>) {
        for sequence in sequences {
            if sequence > Sequence::ZERO && self.asked.insert(sequence.0, sequence.0) {
                self.to_read.push(sequence);
            }
        }
    }

    /// Asks for the documents of all sequences.
    pub(super) fn ask_all(&mut self) {
        let (first, last) = (self.range.first().0, self.range.last().0);
        self.ask((first..=last).map(Sequence));
    }

    /// What was asked for and not read, highest first.
    pub(super) fn take_asked(&mut self) -> Vec<Sequence> {
        let mut asked = std::mem::take(&mut self.to_read);
        asked.sort_unstable_by(|a, b| b.cmp(a));
        asked
    }

    /// Up to where a lost document may have superseded rows of the channel: those below it are not shown again.
    pub(super) fn doubt(&self, channel: &Channel, is_required: impl Fn(Sequence) -> bool) -> Sequence {
        let broken = self.broken.keys().copied().max_by_key(|lost| lost.rank()).unwrap_or_default();
        let Some(stored) = self.cells.get(channel).and_then(|cell| cell.stored.as_ref()) else { return broken };
        let Stored::Block(block) = stored else { return broken };
        let named = block.iter().map(|(offset, state)| (self.sequence(offset), state));
        let is_lost = |(sequence, state): &(Sequence, BlockState)| {
            self.broken.contains_key(sequence)
                || state.is_live() && is_required(*sequence) && !self.documents.contains_key(&self.offset(*sequence))
        };
        named.filter(is_lost).map(|(sequence, _)| sequence).max_by_key(|lost| lost.rank()).unwrap_or_default()
    }

    /// Judges a block: `stored` may have been read later than what is in the cell.
    pub(super) fn judge(
        &self,
        channel: &Channel,
        stored: &Stored,
        facts: Facts,
        is_required: impl Fn(Sequence) -> bool,
        is_left_out: impl Fn(Sequence) -> bool,
    ) -> Verdict {
        let key = CacheKey::Block(channel.clone(), self.index);
        let mut verdict = Verdict {
            right: Block::new(self.capacity),
            is_wrong: false,
            findings: Vec::new(),
            lost: Vec::new(),
            is_needed: false,
        };
        let Some(cell) = self.cells.get(channel) else { return verdict };
        let named = match stored {
            Stored::Block(block) => block.iter().collect(),
            _ => Vec::new(),
        };
        let mut offsets: Vec<u32> =
            named.into_iter().chain(cell.own.iter()).chain(cell.marked.certain.iter()).map(|(at, _)| at).collect();
        let gone = !matches!(stored, Stored::Block(_)) && (facts.listed || !matches!(stored, Stored::Missing));
        if gone {
            // It may have shown what is lost: better asked for in vain than missed.
            offsets.extend(self.broken.keys().map(|sequence| self.offset(*sequence)));
        }
        offsets.sort_unstable();
        offsets.dedup();
        let star = self.cells.get(Channel::shared_star(channel.collection())).and_then(|cell| cell.stored.as_ref());
        let mut expected = 0;
        for offset in offsets {
            let sequence = self.sequence(offset);
            let (state, own) = (stored.state(offset), cell.own.get(offset));
            let document = self.documents.contains_key(&offset);
            let required = is_required(sequence) || facts.unpublished && document;
            if sequence.rank() < facts.valid_from.rank() {
                verdict.right.raise(offset, state);
                continue;
            }
            let superseded = cell.marked.at(offset);
            // Readers leave it out: nothing is lost with it.
            let is_left_out = !document && !self.broken.contains_key(&sequence) && is_left_out(sequence);
            let named = !is_left_out
                && (channel.is_star() || star.is_none_or(|star| star.may_name(offset)) || self.broken.contains_key(&sequence));
            let known = Known { document, named, own, superseded, required, doubt: sequence.rank() < facts.doubt.rank() };
            let (mut right, wrong) = judge(state, known);
            if gone && !document && required && !is_left_out && superseded != Superseded::Yes {
                right = BlockState::Present;
            }
            verdict.right.raise(offset, right);
            expected += u64::from(required && own != BlockState::Absent);
            if required && !document && right.is_live() {
                verdict.lost.push(sequence);
            }
            // A commit that was cut off may not have listed the block. If its rows are superseded,
            // no reader needs it.
            let may_be_live = own != BlockState::Absent && superseded != Superseded::Yes && self.range.last() > facts.marked;
            verdict.is_needed |= required && (right.is_live() || may_be_live);
            if let Some(wrong) = wrong.filter(|_| matches!(stored, Stored::Block(_))) {
                let (problem, detail) = told(wrong, sequence, state, right);
                verdict.findings.push(Finding { problem, key: key.clone(), detail });
            }
        }
        let missing = |detail: String| Finding { problem: Problem::Missing, key: key.clone(), detail };
        match stored {
            Stored::Unreadable(e) => verdict.findings.push(Finding::unreadable(key, e)),
            Stored::Missing if facts.listed => verdict.findings.push(missing("the channel's directory lists it".into())),
            Stored::Missing if expected > 0 => verdict.findings.push(missing(format!("{expected} entries belong into it"))),
            _ => {}
        }
        verdict.is_wrong = !verdict.findings.is_empty();
        verdict
    }
}

fn told(wrong: Wrong, sequence: Sequence, stored: BlockState, right: BlockState) -> (Problem, String) {
    let sequence = sequence.shown();
    match wrong {
        Wrong::Forgotten => {
            (Problem::WrongState, format!("it does not know {sequence}, which is {} in the channel", word(right)))
        }
        Wrong::Kind => {
            let (stored, right) = (word(stored), word(right));
            (Problem::WrongState, format!("it shows {sequence} as {stored}, by its entry it is {right}"))
        }
        Wrong::Stray => (Problem::StrayRow, format!("it shows {sequence}, which is not in the channel")),
        Wrong::Duplicate => (Problem::DuplicateRow, format!("it shows {sequence}, and a later row of its document is there")),
        Wrong::Hidden => (Problem::LostRow, format!("{sequence} is its document's newest row, and marked as superseded")),
    }
}

fn word(state: BlockState) -> &'static str {
    match state {
        BlockState::Absent => "absent",
        BlockState::Present => "present",
        BlockState::Removal => "a removal",
        BlockState::Superseded => "superseded",
    }
}
