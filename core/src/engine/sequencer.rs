//! Puts arriving sequence numbers in order (semantics, sections 1 and 2).

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::arrived::ArrivedSet;
use crate::batch::Gap;
use crate::clock::Progress;
use crate::missing::Missing;
use crate::sequence::{RangeSet, Sequence, SequenceRange};

/// How long the sequencer waits for a missing number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SequencerConfig {
    /// Numbers at or below it are never looked at.
    pub initial: Sequence,
    /// How long an arrived number waits for a missing lower one before that is put on the skipped
    /// list.
    pub max_wait: Duration,
    /// How many arrived numbers may wait (an unused range counts as one).
    pub max_pending: usize,
    /// How long a number stays on the skipped list before it is given up.
    pub skip_wait: Duration,
    /// The limit for missing sequences directly below one that arrived. A sequence farther up is
    /// implausible, and stays pending: see [`Sequencer::is_plausible`]. Zero for no limit.
    pub max_jump: u64,
    /// Whether the feed leaves out mutations to which the gateway's counter has given numbers. A
    /// missing number is then passed after `max_wait`, and not put on the skipped list: most will
    /// never arrive.
    pub is_partial: bool,
    /// Whether nothing is skipped at first: see [`Sequencer::hold`].
    pub holds: bool,
}

/// The default of [`SequencerConfig::max_jump`]: ten times what a gateway releases at once.
pub const MAX_JUMP: u64 = 100_000_000;

impl Default for SequencerConfig {
    fn default() -> Self {
        SequencerConfig {
            initial: Sequence::ZERO,
            max_wait: Duration::from_secs(5),
            max_pending: 10_000,
            skip_wait: Duration::from_secs(3600),
            max_jump: MAX_JUMP,
            is_partial: false,
            holds: false,
        }
    }
}

/// What became of a number that arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Arrival {
    /// At or below the initial sequence: not ours.
    BeforeStart,
    /// Accounted for already.
    Duplicate,
    /// It was the next one.
    InOrder,
    /// Some lower number has not arrived.
    Pending,
    /// High had passed it.
    Late,
    /// No gateway allocates a sequence that high.
    Implausible,
}

impl Arrival {
    /// Whether the number was not accounted for before.
    pub fn is_new(self) -> bool {
        matches!(self, Arrival::InOrder | Arrival::Pending | Arrival::Late)
    }
}

/// What the sequencer decided by itself, to be logged and counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Noted {
    /// High has passed a missing range.
    Skipped(SequenceRange),
    /// Stable has passed a missing range: it is given up.
    Abandoned(SequenceRange),
    /// High and stable have passed a missing range, since the feed is partial.
    Undelivered(SequenceRange),
    /// A sequence is implausibly far above all before it. High does not pass the range below it.
    Implausible(SequenceRange),
}

/// The sequencer's state in a form that can be stored: times are ages, in milliseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SequencerState {
    /// The lowest number not accounted for and not skipped.
    pub next: Sequence,
    /// What has arrived above it.
    pub pending: Vec<PendingRun>,
    /// Besides, single sequences that have arrived above it while the sequencer holds. Since format
    /// 3.
    #[serde(default, skip_serializing_if = "ArrivedSet::is_empty")]
    pub arrived: ArrivedSet,
    /// The skipped list.
    pub skipped: Vec<SkippedRange>,
    /// What has been given up.
    pub abandoned: RangeSet,
    /// The gateway's counter, as far as the feed has delivered it. Since format 3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counter: Option<Sequence>,
}

impl SequencerState {
    /// What of `range` is not accounted for.
    pub fn missing_in(&self, range: SequenceRange) -> RangeSet {
        let mut missing = RangeSet::new();
        missing.insert(range.first().0.max(self.next.0), range.last().0);
        for run in &self.pending {
            missing.remove(run.range.first().0, run.range.last().0);
        }
        for run in self.arrived.ranges_within(range.first().0, range.last().0) {
            missing.remove(run.first().0, run.last().0);
        }
        for skipped in self.skipped.iter().filter_map(|skip| skip.range.intersect(range)) {
            missing.insert(skipped.first().0, skipped.last().0);
        }
        missing
    }
}

/// Consecutive pending numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingRun {
    /// The numbers.
    pub range: SequenceRange,
    /// How many arrivals they are (an unused range is one).
    pub count: u64,
    /// For how long the first of them has waited.
    pub age_ms: u64,
}

/// A range on the skipped list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SkippedRange {
    /// What is missing.
    pub range: SequenceRange,
    /// For how long it has been missed.
    pub missed_ms: u64,
    /// For how long it has been on the list.
    pub listed_ms: u64,
}

/// Accounts for every sequence number: cached, unused, superseded, skipped or given up.
///
/// `next` never decreases, and every number below it is one of these. Every operation costs
/// O(log n) in the number of *ranges* held, amortized; a number in order costs O(1).
#[derive(Clone, Debug)]
pub struct Sequencer {
    config: SequencerConfig,
    next: u64,
    /// Runs of consecutive arrived numbers above `next`, by first number. Only the age of a run's
    /// first number matters: the rest of the run is released with it.
    pending: BTreeMap<u64, Run>,
    /// The number of arrivals in `pending`.
    pending_count: usize,
    /// Single numbers above `next` that have arrived while it holds. They come in any order, and
    /// there may be as many as a bucket has. Those in `pending` are not among them.
    arrived: ArrivedSet,
    /// By first number. Ranges are only ever added at the top, so they are in the order of their
    /// times too. All times held here are [`internal`].
    skipped: BTreeMap<u64, Skip>,
    skipped_count: u64,
    /// Every skipped range below this number is older than `max_wait`.
    settled_below: u64,
    /// Numbers that were given up, positions in slots that are expected, and notes of
    /// [readmitted](Self::readmit) numbers.
    abandoned: RangeSet,
    /// Whether `abandoned` has such notes.
    has_readmitted: bool,
    /// Where `skipped` and `abandoned` have changed since that was last forgotten. Notes count as
    /// their sequences, and the other way round.
    changed: RangeSet,
    noted: Vec<Noted>,
    /// The gateway's counter, as far as the feed has delivered it.
    counter: Option<Sequence>,
    /// The lowest implausible sequence that was noted.
    implausible: Option<u64>,
    /// Whether nothing is skipped for now.
    holds: bool,
}

#[derive(Clone, Copy, Debug)]
struct Run {
    last: u64,
    count: usize,
    since: Duration,
}

#[derive(Clone, Copy, Debug)]
struct Skip {
    last: u64,
    missed: Duration,
    listed: Duration,
}

/// The time that the sequencer calculates with: so much later that a restored age can lie before
/// the caller's zero.
fn internal(now: Duration) -> Duration {
    now.saturating_add(Duration::from_secs(1 << 40))
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn sequence_is_too_high(s: u64) -> bool {
    s > Sequence::MAX_NUMBER.0
}

impl Sequencer {
    /// One to which nothing has arrived.
    pub fn new(config: SequencerConfig) -> Self {
        Sequencer {
            next: config.initial.0.saturating_add(1),
            config,
            pending: BTreeMap::new(),
            pending_count: 0,
            arrived: ArrivedSet::default(),
            skipped: BTreeMap::new(),
            skipped_count: 0,
            settled_below: 0,
            abandoned: RangeSet::new(),
            has_readmitted: false,
            changed: RangeSet::new(),
            noted: Vec::new(),
            counter: None,
            implausible: None,
            holds: config.holds,
        }
    }

    /// One that goes on where a published clock stands: everything up to `high` is accounted for
    /// except `gaps` (what of them is not between the initial sequence and `high` is ignored). What
    /// `checkpoint` knows as pending is stored and will not come again.
    ///
    /// `abandoned` is what had been given up by then. Where that is not known, a number that the
    /// checkpoint misses and the clock does not was resolved or given up in between, which cannot
    /// be told apart: it counts as given up. So if it comes again it is late once more, which
    /// repeats at worst; as a duplicate it could be lost.
    pub fn resume(
        config: SequencerConfig,
        high: Sequence,
        gaps: &[Gap],
        abandoned: Option<&RangeSet>,
        checkpoint: &SequencerState,
        now: Duration,
    ) -> Self {
        let at = internal(now);
        let since = |age_ms: u64| at.saturating_sub(Duration::from_millis(age_ms));
        let mut sequencer = Sequencer::new(config);
        let start = sequencer.next;
        sequencer.next = start.max(high.0.saturating_add(1));
        let below = |range: SequenceRange| SequenceRange::new(range.first().0.max(start), range.last().0.min(sequencer.next - 1));
        let mut missing: Vec<(SequenceRange, u64)> =
            gaps.iter().filter_map(|gap| Some((below(gap.range)?, gap.age_ms))).collect();
        missing.sort_unstable();
        if let Some(abandoned) = abandoned {
            sequencer.abandoned = abandoned.clone();
        } else {
            let given_up = checkpoint.abandoned.iter().filter_map(|(first, last)| SequenceRange::new(first, last));
            // Positions in slots, and notes, are kept whatever `high` is.
            let (in_slots, given_up): (Vec<SequenceRange>, Vec<SequenceRange>) =
                given_up.partition(|range| range.first().slot() > 0);
            let skipped = checkpoint.skipped.iter().map(|skip| skip.range);
            for range in given_up.into_iter().chain(skipped).filter_map(below).chain(in_slots) {
                sequencer.abandoned.insert(range.first().0, range.last().0);
            }
        }
        sequencer.update_has_readmitted();
        for (gap, age_ms) in missing {
            let (free, missed) = match sequencer.skipped.values().next_back() {
                Some(before) => (before.last.saturating_add(1), before.missed.max(since(age_ms))),
                None => (0, since(age_ms)),
            };
            if let Some(gap) = SequenceRange::new(gap.first().0.max(free), gap.last()) {
                let (first, last) = (gap.first().0, gap.last().0);
                sequencer.abandoned.remove(first, last);
                sequencer.skipped_count += gap.count();
                sequencer.skipped.insert(first, Skip { last, missed, listed: missed });
            }
        }
        sequencer.counter = checkpoint.counter;
        // A single sequence of a run is added to these.
        sequencer.arrived = checkpoint.arrived.clone();
        sequencer.arrived.remove(0, sequencer.next - 1);
        sequencer.arrived.remove(Sequence::MAX_NUMBER.0 + 1, u64::MAX);
        for run in &checkpoint.pending {
            let (first, last) = (run.range.first().0.max(sequencer.next), run.range.last().0.min(Sequence::MAX_NUMBER.0));
            if let Some(range) = SequenceRange::new(first, last) {
                let count = usize::try_from(run.count.min(range.count())).unwrap_or(usize::MAX).max(1);
                sequencer.add_pending(range, since(run.age_ms), count);
            }
        }
        if !sequencer.holds {
            sequencer.hold_no_longer(at);
        }
        sequencer.drain(at);
        sequencer
    }

    /// Its state, to be stored.
    pub fn state(&self, now: Duration) -> SequencerState {
        let now = internal(now);
        let ms = |at: Duration| milliseconds(now.saturating_sub(at));
        let range = |first: u64, last: u64| SequenceRange::new(first, last);
        SequencerState {
            next: Sequence(self.next),
            pending: self
                .pending
                .iter()
                .filter_map(|(&first, run)| {
                    Some(PendingRun { range: range(first, run.last)?, count: run.count as u64, age_ms: ms(run.since) })
                })
                .collect(),
            arrived: self.arrived.clone(),
            skipped: self
                .skipped
                .iter()
                .filter_map(|(&first, skip)| {
                    Some(SkippedRange { range: range(first, skip.last)?, missed_ms: ms(skip.missed), listed_ms: ms(skip.listed) })
                })
                .collect(),
            abandoned: self.abandoned.clone(),
            counter: self.counter,
        }
    }

    /// Every sequence at or below it is accounted for.
    pub fn stable(&self) -> Sequence {
        match self.skipped.keys().next() {
            Some(first) => Sequence(first - 1),
            None => self.high(),
        }
    }

    /// Every sequence at or below it is accounted for or skipped.
    pub fn high(&self) -> Sequence {
        Sequence(self.next - 1)
    }

    /// Up to here every gap is older than `max_wait`.
    pub fn settled(&mut self, now: Duration) -> Sequence {
        let now = internal(now);
        while let Some((&first, skip)) = self.skipped.range(self.settled_below..).next() {
            if now.saturating_sub(skip.missed) < self.config.max_wait {
                return Sequence(first - 1);
            }
            self.settled_below = skip.last.saturating_add(1);
        }
        self.high()
    }

    /// How many numbers are on the skipped list.
    pub fn skipped_count(&self) -> u64 {
        self.skipped_count
    }

    /// How many arrivals wait for a lower number.
    pub fn pending_count(&self) -> usize {
        self.pending_count.saturating_add(usize::try_from(self.arrived.len()).unwrap_or(usize::MAX))
    }

    /// Whether nothing has told of any number: nothing has arrived or is missing, and the gateway's
    /// counter is not known.
    pub fn is_untouched(&self) -> bool {
        self.high() <= self.config.initial && self.pending_count() == 0 && self.counter.is_none()
    }

    /// About how many bytes its stored [state](Self::state) has.
    pub fn state_bytes(&self) -> usize {
        // In base64; runs and skipped ranges are objects, ranges that were given up are pairs.
        let objects = self.pending.len() + self.skipped.len();
        self.arrived.stored_bytes() / 3 * 4 + 64 * objects + 24 * self.abandoned.ranges_len()
    }

    /// How many ranges the skipped list and what has been given up have.
    pub fn missing_ranges(&self) -> usize {
        self.skipped.len() + self.abandoned.ranges_len()
    }

    /// The skipped list, and what has been given up.
    pub fn missing(&self, now: Duration) -> Missing {
        Missing { gaps: self.gaps(now), abandoned: self.abandoned.clone() }
    }

    /// Where this has changed since [`forget_changes`](Self::forget_changes), with the notes there.
    pub fn changed(&self) -> RangeSet {
        let mut changed = self.changed.clone();
        if self.has_readmitted || self.changed.last() >= Some(Sequence::FIRST_READMITTED.0) {
            for (first, last) in self.changed.within(0, Sequence::MAX_NUMBER_IN_SLOT.0) {
                if let (Some(first), Some(last)) = (Sequence(first).readmitted(), Sequence(last).readmitted()) {
                    changed.insert(first.0, last.0);
                }
            }
        }
        changed
    }

    /// From here on, [`changed`](Self::changed) is relative to what is missing now.
    pub fn forget_changes(&mut self) {
        self.changed = RangeSet::new();
    }

    /// What is missing in `changed`.
    pub fn missing_within(&self, changed: &RangeSet, now: Duration) -> Missing {
        let now = internal(now);
        let mut missing = Missing::default();
        for (first, last) in changed.iter() {
            for (a, b) in self.abandoned.within(first, last) {
                missing.abandoned.insert(a, b);
            }
            let before = self.skipped.range(..first).next_back();
            for (a, skip) in before.into_iter().chain(self.skipped.range(first..=last)) {
                let range = SequenceRange::new((*a).max(first), skip.last.min(last));
                let age_ms = milliseconds(now.saturating_sub(skip.missed));
                missing.gaps.extend(range.map(|range| Gap { range, age_ms }));
            }
        }
        missing
    }

    fn abandon(&mut self, first: u64, last: u64) {
        if self.abandoned.insert(first, last) {
            self.has_changed(first, last);
        }
    }

    /// Takes numbers out of those given up. Returns how many.
    fn take_abandoned(&mut self, first: u64, last: u64) -> u64 {
        let taken = self.abandoned.remove(first, last);
        if taken > 0 {
            self.has_changed(first, last);
        }
        taken
    }

    /// A note says of its sequence that it is missing, so both have changed.
    fn has_changed(&mut self, first: u64, last: u64) {
        self.changed.insert(first, last);
        if first >= Sequence::FIRST_READMITTED.0 {
            self.changed.insert(first & Sequence::MAX_NUMBER_IN_SLOT.0, last & Sequence::MAX_NUMBER_IN_SLOT.0);
        }
    }

    /// What has been given up.
    pub fn abandoned(&self) -> &RangeSet {
        &self.abandoned
    }

    /// The skipped list.
    pub fn gaps(&self, now: Duration) -> Vec<Gap> {
        let now = internal(now);
        let gap = |(&first, skip): (&u64, &Skip)| {
            let age_ms = milliseconds(now.saturating_sub(skip.missed));
            Some(Gap { range: SequenceRange::new(first, skip.last)?, age_ms })
        };
        self.skipped.iter().filter_map(gap).collect()
    }

    /// Says whether the feed is partial, see [`SequencerConfig::is_partial`].
    pub fn set_partial(&mut self, is_partial: bool) {
        self.config.is_partial = is_partial;
    }

    /// What has been skipped and given up since this was last asked.
    pub fn take_noted(&mut self) -> Vec<Noted> {
        std::mem::take(&mut self.noted)
    }

    /// Skips nothing from here on, however long a number is missing and however many wait for it,
    /// until [`release`](Self::release). For a feed that delivers what is there already: its
    /// numbers come in any order.
    pub fn hold(&mut self) {
        self.holds = true;
    }

    /// Whether nothing is skipped for now.
    pub fn holds(&self) -> bool {
        self.holds
    }

    /// The feed has delivered what was there: what is missing below pending numbers is skipped at
    /// once. Later numbers are waited for as usual.
    pub fn release(&mut self, now: Duration) {
        let now = internal(now);
        let since = now.saturating_sub(self.config.max_wait);
        self.pending.values_mut().for_each(|run| run.since = since);
        self.hold_no_longer(since);
        self.drain(now);
    }

    /// From here on, what has arrived waits as usual: `since` that time.
    fn hold_no_longer(&mut self, since: Duration) {
        self.holds = false;
        let arrived = std::mem::take(&mut self.arrived);
        for run in arrived.ranges() {
            self.add_pending(run, since, usize::try_from(run.count()).unwrap_or(usize::MAX));
        }
    }

    /// The sequence before the first one of the cache.
    pub fn initial(&self) -> Sequence {
        self.config.initial
    }

    /// How many numbers have arrived, and the highest of them, as far as it is plausible.
    pub fn progress(&self) -> Progress {
        let plausible = self.pending.iter().rev().find(|(first, _)| self.is_plausible(Sequence(**first)));
        let single = match self.config.max_jump {
            0 => self.arrived.last(),
            max_jump => {
                let limit = self.next.max(self.counter.unwrap_or_default().0).saturating_add(max_jump);
                let near = self.arrived.last_up_to(limit);
                // As `has_many_from`.
                let far = self.arrived.nth_from_last(self.config.max_pending as u64).filter(|_| self.counter.is_none());
                near.max(far)
            }
        };
        let arrived = self.high().0.saturating_add(self.pending_count() as u64);
        let highest = plausible.map_or(self.high().0, |(_, run)| run.last).max(single.unwrap_or_default());
        Progress { arrived, highest: Sequence(highest), expected: None }
    }

    /// A number arrived: its document is there, or a newer revision says that it was superseded.
    #[inline]
    pub fn arrived(&mut self, sequence: Sequence, now: Duration) -> Arrival {
        let s = sequence.0;
        if s == self.next && !sequence_is_too_high(s) {
            self.next += 1;
            if !self.pending.is_empty() || !self.arrived.is_empty() {
                self.drain(internal(now));
            }
            return Arrival::InOrder;
        }
        self.arrived_out_of_order(s, now)
    }

    fn arrived_out_of_order(&mut self, s: u64, now: Duration) -> Arrival {
        if s <= self.config.initial.0 {
            return Arrival::BeforeStart;
        }
        if s < self.next {
            let known = self.remove_skipped(s, s) == 0 && self.take_abandoned(s, s) == 0;
            return if known { Arrival::Duplicate } else { Arrival::Late };
        }
        if sequence_is_too_high(s) {
            return Arrival::Implausible;
        }
        let now = internal(now);
        if self.holds {
            let is_new = !self.is_in_run(s) && self.arrived.insert(s);
            return if is_new { Arrival::Pending } else { Arrival::Duplicate };
        }
        if !self.add_one_pending(s, now) {
            return Arrival::Duplicate;
        }
        if self.pending_count > self.config.max_pending {
            self.drain(now);
        }
        Arrival::Pending
    }

    /// A document arrived at its position. A position in a slot must have been
    /// [readmitted](Self::readmit).
    #[inline]
    pub fn arrived_at(&mut self, position: Sequence, now: Duration) -> Arrival {
        if position.slot() == 0 {
            if self.has_readmitted {
                self.forget_readmitted(position);
            }
            return self.arrived(position, now);
        }
        self.arrived_in_slot(position)
    }

    /// As [`arrived_at`](Self::arrived_at), for a position in a slot above 0.
    pub(crate) fn arrived_in_slot(&mut self, position: Sequence) -> Arrival {
        if self.take_abandoned(position.0, position.0) == 0 {
            return Arrival::Duplicate;
        }
        if position.number() <= self.high() { Arrival::Late } else { Arrival::Pending }
    }

    /// Expects a document although its sequence is accounted for: another document has the
    /// sequence, or a marker released it. The position counts as given up until the document
    /// arrives, so the document is new even after a crash in between.
    ///
    /// After a restart, the marker may come again and account for the sequence before the document
    /// comes. So the readmission is also recorded in a note, which stays until the document
    /// arrives.
    pub fn readmit(&mut self, position: Sequence) {
        if position.slot() > 0 {
            self.abandon(position.0, position.0);
            return;
        }
        self.withdraw(position);
        if let Some(note) = position.readmitted() {
            self.has_readmitted = true;
            self.abandon(note.0, note.0);
        }
    }

    /// Expects entries again at those of these positions that are not accounted for. An earlier
    /// term may have stored them without publishing them: something else may account for their
    /// sequences before they come, and then they are no duplicates.
    ///
    /// Returns the sequences of those that can be taken as any other when they come: not those that
    /// were [readmitted](Self::readmit) below high. Positions in slots are expected already.
    pub fn expect_again(&mut self, positions: &RangeSet) -> RangeSet {
        let (mut expected, mut readmitted) = (RangeSet::new(), Vec::new());
        for (first, last) in positions.within(0, Sequence::MAX_NUMBER_IN_SLOT.0) {
            for (first, last) in self.missing_in(first, last) {
                expected.insert(first, last);
            }
        }
        for (first, last) in positions.within(0, Sequence::MAX_NUMBER_IN_SLOT.0) {
            let notes = (Sequence(first).readmitted(), Sequence(last).readmitted());
            let (Some(first), Some(last)) = notes else { continue };
            for (first, last) in self.abandoned.within(first.0, last.0) {
                let (first, last) = (first & Sequence::MAX_NUMBER_IN_SLOT.0, last & Sequence::MAX_NUMBER_IN_SLOT.0);
                readmitted.extend(self.abandoned.within(first, last.min(self.next - 1)));
            }
        }
        for (first, last) in expected.iter() {
            if let (Some(first), Some(last)) = (Sequence(first).readmitted(), Sequence(last).readmitted()) {
                self.abandon(first.0, last.0);
            }
        }
        self.update_has_readmitted();
        for (first, last) in readmitted {
            expected.remove(first, last);
        }
        expected
    }

    /// The parts of `first..=last` that are not accounted for.
    fn missing_in(&self, first: u64, last: u64) -> Vec<(u64, u64)> {
        let mut missing = RangeSet::new();
        let below = last.min(self.next - 1);
        for (first, last) in self.abandoned.within(first, below) {
            missing.insert(first, last);
        }
        let before = self.skipped.range(..first).next_back();
        for (a, skip) in before.into_iter().chain(self.skipped.range(first..).take_while(|(a, _)| **a <= below)) {
            missing.insert((*a).max(first), skip.last.min(below));
        }
        missing.insert(first.max(self.next), last);
        let before = self.pending.range(..first).next_back();
        for (a, run) in before.into_iter().chain(self.pending.range(first..).take_while(|(a, _)| **a <= last)) {
            missing.remove(*a, run.last);
        }
        for run in self.arrived.ranges_within(first, last) {
            missing.remove(run.first().0, run.last().0);
        }
        missing.iter().collect()
    }

    /// Whether any document that was readmitted in slot 0 has not arrived yet.
    #[inline]
    pub fn has_readmitted(&self) -> bool {
        self.has_readmitted
    }

    /// Whether a document that was readmitted at this position has not arrived yet.
    #[inline]
    pub fn is_readmitted(&self, position: Sequence) -> bool {
        let note = match position.slot() {
            0 if !self.has_readmitted => None,
            0 => position.readmitted(),
            _ => Some(position),
        };
        note.is_some_and(|note| self.abandoned.contains(note.0))
    }

    /// Ranges of positions in slots whose readmitted documents have not arrived yet.
    pub fn readmitted_in_slots(&self) -> impl Iterator<Item = SequenceRange> {
        let (first, last) = (Sequence::MAX_NUMBER.next(), Sequence::FIRST_READMITTED.previous());
        self.abandoned.within(first.0, last.0).filter_map(|(first, last)| SequenceRange::new(first, last))
    }

    /// Expects no document at this position any more.
    pub fn forget_readmitted(&mut self, position: Sequence) {
        let note = match position.slot() {
            0 if !self.has_readmitted => None,
            0 => position.readmitted(),
            _ => Some(position),
        };
        if let Some(note) = note
            && self.take_abandoned(note.0, note.0) > 0
        {
            self.update_has_readmitted();
        }
    }

    fn update_has_readmitted(&mut self) {
        self.has_readmitted = self.abandoned.last().is_some_and(|last| last >= Sequence::FIRST_READMITTED.0);
    }

    /// The gateway's counter is at `counter`: all sequences up to that are allocated.
    pub fn counter(&mut self, counter: Sequence, now: Duration) {
        self.counter = Some(counter);
        self.drain(internal(now));
    }

    /// Whether a sequence is plausible that has arrived while all from `next` on are missing. It is
    /// if no more than `max_jump` are missing, or if the gateway's counter has come near it. If the
    /// counter is not known, it is once so many sequences have arrived above the gap that the gap
    /// must be real.
    ///
    /// Otherwise a single document with metadata of another bucket would move high and stable far
    /// beyond every sequence to come, and all of those would be late.
    pub fn is_plausible(&self, number: Sequence) -> bool {
        let max_jump = self.config.max_jump;
        max_jump == 0
            || number.0.saturating_sub(self.next) <= max_jump
            || match self.counter {
                Some(counter) => number.0 <= counter.0.saturating_add(max_jump),
                None => self.has_many_from(number),
            }
    }

    /// Whether more than `max_pending` have arrived that are pending from `number` on.
    fn has_many_from(&self, number: Sequence) -> bool {
        let mut count = usize::try_from(self.arrived.count_from(number.0)).unwrap_or(usize::MAX);
        if count > self.config.max_pending {
            return true;
        }
        self.pending.range(number.0..).any(|(_, run)| {
            count += run.count;
            count > self.config.max_pending
        })
    }

    /// Notes once that a sequence is implausible.
    fn note_implausible(&mut self, first: u64) {
        if self.implausible != Some(first) {
            self.implausible = Some(first);
            self.noted.extend(SequenceRange::new(self.next, first - 1).map(Noted::Implausible));
        }
    }

    /// A range will never be used; how many of its numbers were not accounted for before.
    ///
    /// What of it lies below `next` leaves the skipped list, the rest counts as one arrival (the
    /// gateway ignores a range that straddles).
    pub fn unused(&mut self, range: SequenceRange, now: Duration) -> u64 {
        let now = internal(now);
        let first = range.first().0.max(self.config.initial.0.saturating_add(1));
        let last = range.last().0.min(Sequence::MAX_NUMBER.0);
        let mut new = 0;
        if first < self.next {
            let below = last.min(self.next - 1);
            new += self.remove_skipped(first, below);
            self.take_abandoned(first, below);
        }
        if let Some(rest) = SequenceRange::new(first.max(self.next), last) {
            new += self.add_pending(rest, now, 1);
            self.drain(now);
        }
        new
    }

    /// Whether a sequence is at or below the initial one, so that it is ignored.
    pub fn is_before_start(&self, sequence: Sequence) -> bool {
        sequence.number() <= self.config.initial
    }

    /// Whether a sequence is accounted for: by an entry, by a document or marker that names it, or
    /// by a principal.
    #[inline]
    pub fn is_accounted(&self, sequence: Sequence) -> bool {
        let s = sequence.0;
        if s >= self.next {
            return !(self.pending.is_empty() && self.arrived.is_empty()) && (self.arrived.contains(s) || self.is_in_run(s));
        }
        !self.is_skipped(s) && !self.abandoned.contains(s)
    }

    fn is_in_run(&self, s: u64) -> bool {
        self.pending.range(..=s).next_back().is_some_and(|(_, run)| run.last >= s)
    }

    fn is_skipped(&self, s: u64) -> bool {
        self.skipped.range(..=s).next_back().is_some_and(|(_, skip)| skip.last >= s)
    }

    /// A number that arrived is taken back, or nothing takes the place of its entry, which is gone.
    /// It counts as given up if high has passed it, otherwise as if it had not arrived. So it is
    /// new if it comes again.
    pub fn withdraw(&mut self, sequence: Sequence) {
        let s = sequence.0;
        if s <= self.config.initial.0 {
            return;
        }
        if s < self.next {
            if !self.is_skipped(s) {
                self.abandon(s, s);
            }
            return;
        }
        if self.arrived.remove(s, s) > 0 {
            return;
        }
        let Some((&first, &run)) = self.pending.range(..=s).next_back().filter(|(_, run)| run.last >= s) else { return };
        self.pending.remove(&first);
        self.pending_count -= run.count;
        // How many arrivals the parts are is not known where unused ranges are among them: as many
        // as there can be.
        let parts = [(first, s.checked_sub(1)), (s + 1, Some(run.last))];
        for range in parts.into_iter().filter_map(|(first, last)| SequenceRange::new(first, last?)) {
            let count = usize::try_from(range.count()).unwrap_or(usize::MAX).min(run.count);
            self.pending.insert(range.first().0, Run { last: range.last().0, count, since: run.since });
            self.pending_count += count;
        }
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Duration) {
        let now = internal(now);
        self.drain(now);
        while let Some((&first, &skip)) = self.skipped.iter().next() {
            if now.saturating_sub(skip.listed) < self.config.skip_wait {
                break;
            }
            self.skipped.remove(&first);
            self.has_changed(first, skip.last);
            self.skipped_count -= skip.last - first + 1;
            self.abandon(first, skip.last);
            self.noted.extend(SequenceRange::new(first, skip.last).map(Noted::Abandoned));
        }
    }

    /// The feed has ended: nothing pending waits any longer, what is missing below it is skipped at
    /// once, and everything that is missing counts as settled.
    pub fn end_of_feed(&mut self, now: Duration) {
        let now = internal(now);
        self.hold_no_longer(now);
        let settled = now.saturating_sub(self.config.max_wait);
        while let Some((&first, _)) = self.pending.iter().next() {
            if !self.is_plausible(Sequence(first)) {
                self.note_implausible(first);
                break;
            }
            self.skip_to(first, settled, now);
            self.drain(now);
        }
        for (&first, skip) in &mut self.skipped {
            if skip.missed > settled {
                skip.missed = settled;
                self.changed.insert(first, skip.last);
            }
        }
    }

    /// Adds what is not pending yet; how many numbers that was. One BTreeMap walk over the runs it
    /// swallows.
    fn add_pending(&mut self, range: SequenceRange, now: Duration, count: usize) -> u64 {
        let (mut first, mut last) = (range.first().0, range.last().0);
        if self.holds && first == last {
            return u64::from(!self.is_in_run(first) && self.arrived.insert(first));
        }
        let mut known = self.arrived.remove(first, last);
        let single = usize::try_from(known).unwrap_or(usize::MAX);
        let (added, mut count, mut since) = (count, single, now);
        if let Some((&a, run)) = self.pending.range(..=first).next_back()
            && run.last.saturating_add(1) >= first
        {
            if run.last >= last {
                return 0;
            }
            known += (run.last + 1).saturating_sub(first);
            first = a;
            since = run.since;
            count += run.count;
            self.pending_count -= run.count;
        }
        while let Some((&a, run)) = self.pending.range(first + 1..=last.saturating_add(1)).next() {
            known += (run.last.min(range.last().0) + 1).saturating_sub(a);
            last = last.max(run.last);
            count += run.count;
            self.pending_count -= run.count;
            self.pending.remove(&a);
        }
        let new = range.count() - known;
        count += if new > 0 { added } else { 0 };
        self.pending.insert(first, Run { last, count, since });
        self.pending_count += count;
        new
    }

    /// Adds a single number, as [`add_pending`](Self::add_pending) does; whether it was not
    /// pending.
    fn add_one_pending(&mut self, s: u64, now: Duration) -> bool {
        // One search finds the run that begins right above, and the one below.
        let mut runs = self.pending.range_mut(..=s + 1);
        let mut below = runs.next_back();
        let above = match &below {
            Some((first, above)) if **first == s + 1 => {
                let above = **above;
                below = runs.next_back();
                Some(above)
            }
            _ => None,
        };
        let (last, mut count) = above.map_or((s, 1), |above| (above.last, above.count + 1));
        match below {
            Some((_, below)) if below.last >= s => return false,
            Some((_, below)) if below.last + 1 == s => {
                count += below.count;
                *below = Run { last, count, since: below.since };
                if above.is_some() {
                    self.pending.remove(&(s + 1));
                }
            }
            _ => {
                if above.is_some() {
                    self.pending.remove(&(s + 1));
                }
                self.pending.insert(s, Run { last, count, since: now });
            }
        }
        self.pending_count += 1;
        true
    }

    fn drain(&mut self, now: Duration) {
        self.next = self.arrived.remove_run(self.next);
        while let Some((&first, &run)) = self.pending.iter().next() {
            if first <= self.next {
                self.pending.pop_first();
                self.pending_count -= run.count;
                self.next = self.arrived.remove_run(self.next.max(run.last + 1));
            } else if self.holds {
                break;
            } else if self.pending_count > self.config.max_pending || now.saturating_sub(run.since) >= self.config.max_wait {
                if !self.is_plausible(Sequence(first)) {
                    self.note_implausible(first);
                    break;
                }
                self.skip_to(first, run.since, now);
            } else {
                break;
            }
        }
    }

    fn skip_to(&mut self, first: u64, since: Duration, now: Duration) {
        let gap = SequenceRange::new(self.next, first.saturating_sub(1));
        if self.config.is_partial {
            self.noted.extend(gap.map(Noted::Undelivered));
        } else if let Some(gap) = gap {
            // Times must not go down along the list, see `settled`.
            let missed = self.skipped.values().next_back().map_or(since, |s| s.missed.max(since));
            let listed = self.skipped.values().next_back().map_or(now, |s| s.listed.max(now));
            self.skipped.insert(gap.first().0, Skip { last: gap.last().0, missed, listed });
            self.has_changed(gap.first().0, gap.last().0);
            self.skipped_count += gap.count();
            self.noted.push(Noted::Skipped(gap));
        }
        self.next = self.next.max(first);
    }

    fn remove_skipped(&mut self, first: u64, last: u64) -> u64 {
        let mut removed = 0;
        while let Some((&a, &skip)) = self.skipped.range(..=last).next_back() {
            if skip.last < first {
                break;
            }
            self.skipped.remove(&a);
            if skip.last > last {
                self.skipped.insert(last + 1, skip);
            }
            if a < first {
                self.skipped.insert(a, Skip { last: first - 1, ..skip });
            }
            self.has_changed(a.max(first), skip.last.min(last));
            removed += skip.last.min(last) - a.max(first) + 1;
        }
        self.skipped_count -= removed;
        removed
    }
}
