//! The sequencer against a naive model of the rules, and against cases written as text.
//!
//! The cases are the files `sequencer/*.txt`: commands, `----`, what they print, an empty line. With
//! `SLUICEGATE_REGENERATE=1` the expected output is written anew; read the difference before it is kept.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sluicegate_core::batch::Gap;
use sluicegate_core::engine::{Arrival, Noted, PendingRun, Sequencer, SequencerConfig, SequencerState};
use sluicegate_core::sequence::RangeSet;
use sluicegate_core::{Sequence, SequenceRange};

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// The rules as they are written, one number at a time. No number is ever forgotten, no range ever made.
struct Model {
    config: SequencerConfig,
    next: u64,
    /// Arrived above `next`, with the time of arrival.
    pending: BTreeMap<u64, Duration>,
    /// The first new number of each pending element.
    elements: BTreeSet<u64>,
    /// Missing, with the time since when, and the time when they were put on the list.
    skipped: BTreeMap<u64, (Duration, Duration)>,
    abandoned: BTreeSet<u64>,
    noted: Vec<Noted>,
    /// Whether nothing is skipped for now.
    holds: bool,
}

impl Model {
    fn new(config: SequencerConfig) -> Self {
        Model {
            config,
            next: config.initial.0 + 1,
            pending: BTreeMap::new(),
            elements: BTreeSet::new(),
            skipped: BTreeMap::new(),
            abandoned: BTreeSet::new(),
            noted: Vec::new(),
            holds: config.holds,
        }
    }

    fn stable(&self) -> u64 {
        self.skipped.keys().next().map_or(self.next - 1, |oldest| oldest - 1)
    }

    fn settled(&self, now: Duration) -> u64 {
        let unsettled = self.skipped.iter().find(|(_, (missed, _))| now - *missed < self.config.max_wait);
        unsettled.map_or(self.next - 1, |(n, _)| n - 1)
    }

    fn gaps(&self, now: Duration) -> Vec<Gap> {
        let mut gaps: Vec<(u64, u64, Duration)> = Vec::new();
        for (n, (missed, _)) in &self.skipped {
            match gaps.last_mut() {
                Some((_, last, _)) if *last + 1 == *n => *last = *n,
                _ => gaps.push((*n, *n, *missed)),
            }
        }
        let gap = |(a, b, missed): (u64, u64, Duration)| {
            let age_ms = (now - missed).as_millis() as u64;
            Gap { range: SequenceRange::new(a, b).unwrap(), age_ms }
        };
        gaps.into_iter().map(gap).collect()
    }

    fn arrived(&mut self, s: u64, now: Duration) -> Arrival {
        if s <= self.config.initial.0 {
            return Arrival::BeforeStart;
        }
        if s < self.next {
            let late = self.skipped.remove(&s).is_some() || self.abandoned.remove(&s);
            return if late { Arrival::Late } else { Arrival::Duplicate };
        }
        if s > Sequence::MAX_NUMBER.0 {
            return Arrival::Implausible;
        }
        if self.pending.contains_key(&s) {
            return Arrival::Duplicate;
        }
        if s == self.next {
            self.next += 1;
            self.drain(now);
            return Arrival::InOrder;
        }
        self.pending.insert(s, now);
        self.elements.insert(s);
        if self.elements.len() > self.config.max_pending {
            self.drain(now);
        }
        Arrival::Pending
    }

    fn unused(&mut self, a: u64, b: u64, now: Duration) -> u64 {
        let mut new = 0;
        let mut first_new = None;
        for n in a.max(self.config.initial.0 + 1)..=b.min(Sequence::MAX_NUMBER.0) {
            if n < self.next {
                new += u64::from(self.skipped.remove(&n).is_some());
                self.abandoned.remove(&n);
            } else if let Entry::Vacant(free) = self.pending.entry(n) {
                free.insert(now);
                first_new = first_new.or(Some(n));
                new += 1;
            }
        }
        self.elements.extend(first_new);
        if a.max(self.next) <= b.min(Sequence::MAX_NUMBER.0) {
            self.drain(now);
        }
        new
    }

    fn drain(&mut self, now: Duration) {
        while let Some((&head, &since)) = self.pending.iter().next() {
            if head == self.next {
                self.pending.remove(&head);
                self.elements.remove(&head);
                self.next += 1;
            } else if self.holds {
                break;
            } else if self.elements.len() > self.config.max_pending || now - since >= self.config.max_wait {
                self.skip(head, since, now);
            } else {
                break;
            }
        }
    }

    /// The list is in the order of its times.
    fn skip(&mut self, head: u64, since: Duration, now: Duration) {
        let (missed, listed) = self.skipped.values().next_back().map_or((since, now), |(m, l)| (since.max(*m), now.max(*l)));
        self.skipped.extend((self.next..head).map(|n| (n, (missed, listed))));
        self.noted.push(Noted::Skipped(SequenceRange::new(self.next, head - 1).unwrap()));
        self.next = head;
    }

    fn tick(&mut self, now: Duration) {
        self.drain(now);
        let old = |(_, (_, listed)): &(&u64, &(Duration, Duration))| now - *listed >= self.config.skip_wait;
        let given_up: Vec<u64> = self.skipped.iter().filter(old).map(|(n, _)| *n).collect();
        let mut run: Option<(u64, u64)> = None;
        for n in given_up {
            self.skipped.remove(&n);
            self.abandoned.insert(n);
            match &mut run {
                Some((_, last)) if *last + 1 == n => *last = n,
                _ => self.noted.extend(run.replace((n, n)).and_then(|(a, b)| SequenceRange::new(a, b)).map(Noted::Abandoned)),
            }
        }
        self.noted.extend(run.and_then(|(a, b)| SequenceRange::new(a, b)).map(Noted::Abandoned));
    }

    fn release(&mut self, now: Duration) {
        self.holds = false;
        let settled = now - self.config.max_wait;
        self.pending.values_mut().for_each(|since| *since = settled);
        self.drain(now);
    }

    fn end_of_feed(&mut self, now: Duration) {
        self.holds = false;
        let settled = now - self.config.max_wait;
        while let Some((&head, _)) = self.pending.iter().next() {
            self.skip(head, settled, now);
            self.drain(now);
        }
        for (missed, _) in self.skipped.values_mut() {
            *missed = settled.min(*missed);
        }
    }

    /// A restart where the checkpoint is as new as the clock: nothing changes but that what is missing was listed when it was missed.
    fn resume(&mut self, now: Duration) {
        for (missed, listed) in self.skipped.values_mut() {
            *listed = *missed;
        }
        self.drain(now);
    }
}

#[derive(Debug)]
enum Op {
    Arrived(u64),
    Unused(u64, u64),
    Tick,
    EndOfFeed,
    Release,
    Resume,
}

/// How a run behaves.
struct Profile {
    config: SequencerConfig,
    /// Of 1000 operations, so many are not the arrival of a number near `next`.
    odd: u64,
    /// How far ahead of `next` numbers arrive.
    spread: u64,
    /// The longest unused range.
    longest: u64,
    /// How much time passes at most between operations, in milliseconds.
    pace: u64,
}

fn pick<T: Copy>(rng: &mut ChaCha8Rng, choices: &[T]) -> T {
    choices[rng.next_u32() as usize % choices.len()]
}

fn profile(rng: &mut ChaCha8Rng) -> Profile {
    Profile {
        config: SequencerConfig {
            initial: Sequence(pick(rng, &[0, 0, 1, 1_000, Sequence::MAX_NUMBER.0 - 899])),
            max_wait: ms(pick(rng, &[0, 1, 20, 20, 1_000])),
            max_pending: pick(rng, &[0, 1, 3, 10, 100, 10_000]),
            skip_wait: ms(pick(rng, &[0, 30, 300, 300, 100_000])),
            // The model does not cover this; the text cases do.
            max_jump: 0,
            is_partial: false,
            holds: pick(rng, &[false, false, true]),
        },
        odd: pick(rng, &[10, 50, 200, 500]),
        spread: pick(rng, &[1, 2, 8, 20, 60]),
        longest: pick(rng, &[1, 3, 30]),
        pace: pick(rng, &[0, 1, 3, 30]),
    }
}

fn operation(rng: &mut ChaCha8Rng, profile: &Profile, model: &Model) -> Op {
    let (kind, a, b) = (rng.next_u64(), rng.next_u32() as u64, rng.next_u32() as u64);
    let near = |a: u64| model.next.saturating_add(a % (profile.spread * 2)).saturating_sub(profile.spread);
    if kind % 1000 >= profile.odd {
        // The product makes small distances likely.
        return Op::Arrived(model.next.saturating_add((a % profile.spread) * (b % profile.spread) / profile.spread));
    }
    match kind >> 32 & 31 {
        0..8 => Op::Arrived(near(a)),
        8..12 => Op::Unused(near(a), near(a).saturating_add(b % profile.longest)),
        12..15 => Op::Unused(model.next, model.next.saturating_add(b % profile.longest)),
        15..19 => {
            let from = model.skipped.keys().next().map_or(0, |first| first.saturating_add(a % profile.spread));
            Op::Arrived(model.skipped.range(from..).next().map_or(model.next, |(n, _)| *n))
        }
        19..21 => {
            let from = model.skipped.keys().next_back().map_or(model.next, |n| n.saturating_sub(b % 3));
            Op::Unused(from, from.saturating_add(a % profile.longest))
        }
        21..23 => Op::Arrived(model.abandoned.iter().next_back().copied().unwrap_or(0)),
        23 => Op::Unused(near(a).saturating_sub(b % 20), near(a)),
        24 => {
            // The model would skip every number below the highest one by one.
            let top = if model.next > Sequence::MAX_NUMBER.0 - 1_000 { Sequence::MAX_NUMBER.0 } else { 0 };
            Op::Arrived(pick(rng, &[0, 1, u64::MAX, top, profile.config.initial.0]))
        }
        25 if a % 50 == 0 => Op::EndOfFeed,
        26 if a % 8 == 0 => Op::Resume,
        27 if a % 16 == 0 => Op::Release,
        _ => Op::Tick,
    }
}

/// One run, compared with the model at every step; what differed, or how many operations it were.
fn run(seed: u64, operations: usize) -> Result<usize, String> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let profile = profile(&mut rng);
    let config = profile.config;
    let mut model = Model::new(config);
    let mut sequencer = Sequencer::new(config);
    // Late enough for every age there can be, so that the model may subtract.
    let mut now = ms(10_000_000);
    let mut high = 0;
    for step in 0..operations {
        if profile.pace > 0 && step % 4 == 0 {
            now += ms(u64::from(rng.next_u32()) % profile.pace);
        }
        let op = operation(&mut rng, &profile, &model);
        let fail = |what: &str, expected: &dyn std::fmt::Debug, got: &dyn std::fmt::Debug| {
            format!("seed {seed}, step {step}, {op:?} at {now:?} with {config:?}: {what} is {got:?} instead of {expected:?}")
        };
        macro_rules! same {
            ($what:expr, $expected:expr, $got:expr) => {
                let (expected, got) = (&$expected, &$got);
                if expected != got {
                    return Err(fail($what, expected, got));
                }
            };
        }
        match op {
            Op::Arrived(s) => {
                same!("the verdict", model.arrived(s, now), sequencer.arrived(Sequence(s), now));
            }
            Op::Unused(a, b) => {
                let Some(range) = SequenceRange::new(a, b) else { continue };
                same!("the number of new ones", model.unused(a, b, now), sequencer.unused(range, now));
            }
            Op::Tick => {
                model.tick(now);
                sequencer.tick(now);
            }
            Op::EndOfFeed => {
                model.end_of_feed(now);
                sequencer.end_of_feed(now);
            }
            Op::Release => {
                model.release(now);
                sequencer.release(now);
            }
            Op::Resume => {
                let config = SequencerConfig { holds: model.holds, ..config };
                let state = stored(&sequencer.state(now));
                sequencer =
                    Sequencer::resume(config, sequencer.high(), &sequencer.gaps(now), Some(sequencer.abandoned()), &state, now);
                model.resume(now);
            }
        }
        if !model.noted.is_empty() || step % 64 == 0 {
            same!("what was noted", std::mem::take(&mut model.noted), sequencer.take_noted());
        }
        same!("high", model.next - 1, sequencer.high().0);
        same!("stable", model.stable(), sequencer.stable().0);
        same!("the pending count", model.elements.len(), sequencer.pending_count());
        same!("the skipped count", model.skipped.len() as u64, sequencer.skipped_count());
        if sequencer.high().0 < high {
            return Err(fail("high", &high, &sequencer.high()));
        }
        high = sequencer.high().0;
        if step % 32 == 0 {
            same!("settled", model.settled(now), sequencer.settled(now).0);
        }
        if step % 256 == 0 || step + 1 == operations {
            same!("the gaps", model.gaps(now), sequencer.gaps(now));
            let state = sequencer.state(now);
            same!("next", model.next, state.next.0);
            let waiting = state.pending.iter().map(|run| run.range).chain(state.arrived.ranges());
            let mut pending = numbers(waiting);
            pending.sort_unstable();
            same!("the pending list", model.pending.keys().copied().collect::<Vec<_>>(), pending);
            if !model.holds {
                same!("what arrived while it held", 0, state.arrived.len());
            }
            same!(
                "the skipped list",
                model.skipped.keys().copied().collect::<Vec<_>>(),
                numbers(state.skipped.iter().map(|s| s.range))
            );
            let abandoned = numbers(state.abandoned.iter().filter_map(|(a, b)| SequenceRange::new(a, b)));
            same!("the abandoned", model.abandoned.iter().copied().collect::<Vec<_>>(), abandoned);
            if pending.first().is_some_and(|first| *first <= state.next.0) {
                return Err(fail("the pending list", &"above next", &state.pending));
            }
        }
    }
    Ok(operations)
}

fn numbers(ranges: impl Iterator<Item = SequenceRange>) -> Vec<u64> {
    ranges.flat_map(|range| range.first().0..=range.last().0).collect()
}

/// As a checkpoint would bring it back.
fn stored(state: &SequencerState) -> SequencerState {
    serde_json::from_slice(&serde_json::to_vec(state).unwrap()).unwrap()
}

fn runs(seeds: std::ops::Range<u64>) {
    let operations = 800;
    for seed in seeds {
        if let Err(difference) = run(seed, operations) {
            panic!("{difference}");
        }
    }
}

/// Together three million operations; four tests, so that they run beside one another.
mod the_sequencer_decides_as_the_rules_say {
    #[test]
    fn first_quarter() {
        super::runs(0..940);
    }

    #[test]
    fn second_quarter() {
        super::runs(940..1_880);
    }

    #[test]
    fn third_quarter() {
        super::runs(1_880..2_820);
    }

    #[test]
    fn fourth_quarter() {
        super::runs(2_820..3_760);
    }
}

/// How many ranges it holds: the size of what there is to walk.
fn shape(sequencer: &Sequencer) -> (usize, usize, usize, usize) {
    let state = sequencer.state(ms(0));
    (state.pending.len(), state.skipped.len(), state.abandoned.ranges_len(), sequencer.pending_count())
}

#[test]
fn an_unused_range_costs_the_same_whatever_its_length() {
    let shapes = |length: u64| {
        let range = |from: u64| SequenceRange::new(from, from + length - 1).unwrap();
        let mut shapes = Vec::new();
        // Next in order; above a gap; straddling; over a gap that was skipped, and over one that was given up.
        let mut sequencer = Sequencer::new(SequencerConfig { max_pending: 0, max_jump: 0, ..SequencerConfig::default() });
        assert_eq!(sequencer.unused(range(1), ms(0)), length);
        assert_eq!(sequencer.high(), Sequence(length));
        shapes.push(shape(&sequencer));
        assert_eq!(sequencer.arrived(Sequence(2 * length + 1), ms(0)), Arrival::Pending);
        shapes.push(shape(&sequencer));
        assert_eq!(sequencer.skipped_count(), length);
        assert_eq!(sequencer.unused(range(length + 1), ms(0)), length);
        assert_eq!(sequencer.stable(), Sequence(2 * length + 1));
        shapes.push(shape(&sequencer));
        sequencer.arrived(Sequence(3 * length + 2), ms(0));
        sequencer.tick(Duration::from_secs(4000));
        shapes.push(shape(&sequencer));
        assert_eq!(sequencer.unused(range(2 * length + 2), ms(0)), 0);
        shapes.push(shape(&sequencer));
        let mut sequencer = Sequencer::new(SequencerConfig::default());
        assert_eq!(sequencer.unused(range(5), ms(0)), length);
        assert_eq!(sequencer.unused(range(6), ms(0)), 1);
        assert_eq!(sequencer.unused(range(5), ms(0)), 0);
        shapes.push(shape(&sequencer));
        for s in 1..5 {
            sequencer.arrived(Sequence(s), ms(0));
        }
        assert_eq!(sequencer.stable(), Sequence(length + 5));
        shapes.push(shape(&sequencer));
        shapes
    };
    let short = shapes(10);
    assert_eq!(short.iter().map(|(pending, skipped, abandoned, _)| pending + skipped + abandoned).max(), Some(1));
    assert_eq!(short, shapes(10_000_000));
    assert_eq!(short, shapes(1 << 50));
}

#[test]
fn ages_survive_a_restart_in_a_process_that_has_just_begun() {
    let mut sequencer = Sequencer::new(SequencerConfig::default());
    sequencer.arrived(Sequence(3), ms(0));
    sequencer.tick(ms(6_000));
    sequencer.arrived(Sequence(5), ms(6_000));
    let (state, gaps) = (stored(&sequencer.state(ms(7_000))), sequencer.gaps(ms(7_000)));
    let mut resumed = Sequencer::resume(SequencerConfig::default(), sequencer.high(), &gaps, None, &state, ms(0));
    assert_eq!(resumed.gaps(ms(0)), gaps);
    assert_eq!(resumed.settled(ms(0)), Sequence(3));
    assert_eq!(resumed.state(ms(0)).pending, state.pending);
    resumed.tick(ms(4_000));
    assert_eq!(resumed.high(), Sequence(5));
}

#[test]
fn a_position_in_a_slot_stays_expected_where_the_last_record_is_lost() {
    let position = Sequence(5).in_slot(2).unwrap();
    let mut sequencer = Sequencer::new(SequencerConfig::default());
    for s in 1..=7 {
        sequencer.arrived(Sequence(s), ms(0));
    }
    sequencer.readmit(position);
    let state = stored(&sequencer.state(ms(0)));
    let mut resumed = Sequencer::resume(SequencerConfig::default(), sequencer.high(), &[], None, &state, ms(0));
    assert_eq!(resumed.arrived_at(position, ms(0)), Arrival::Late);
}

#[test]
fn that_a_document_is_expected_outlasts_a_marker_for_its_sequence() {
    let config = SequencerConfig::default();
    let mut sequencer = Sequencer::new(config);
    for s in 1..=7 {
        sequencer.arrived(Sequence(s), ms(0));
    }
    sequencer.readmit(Sequence(5));
    let state = stored(&sequencer.state(ms(0)));
    let (high, abandoned) = (sequencer.high(), sequencer.abandoned().clone());
    for abandoned in [None, Some(&abandoned)] {
        let mut resumed = Sequencer::resume(config, high, &[], abandoned, &state, ms(0));
        assert_eq!(resumed.unused(range("5"), ms(0)), 0);
        assert_eq!(resumed.arrived(Sequence(5), ms(0)), Arrival::Duplicate, "another document that names it");
        assert!(resumed.is_accounted(Sequence(5)) && resumed.is_readmitted(Sequence(5)));
        assert_eq!(resumed.readmitted_in_slots().count(), 0);
        resumed.readmit(Sequence(5));
        assert_eq!(resumed.arrived_at(Sequence(5), ms(0)), Arrival::Late);
        assert!(!resumed.is_readmitted(Sequence(5)) && resumed.abandoned().is_empty());
    }
}

#[test]
fn nothing_is_skipped_while_the_sequencer_holds() {
    let mut sequencer = Sequencer::new(SequencerConfig { max_pending: 2, ..SequencerConfig::default() });
    sequencer.hold();
    for s in [9, 3, 5, 4, 1, 20, 1 << 40] {
        sequencer.arrived(Sequence(s), ms(0));
        sequencer.tick(ms(60_000));
    }
    let progress = sequencer.progress();
    assert_eq!((sequencer.high(), sequencer.skipped_count()), (Sequence(1), 0));
    assert_eq!((progress.arrived, progress.highest, progress.percent()), (7, Sequence(20), 35), "2^40 is implausible");
    assert_eq!(sequencer.arrived(Sequence(2), ms(60_000)), Arrival::InOrder);
    assert_eq!(sequencer.high(), Sequence(5));
    sequencer.release(ms(60_000));
    assert!(!sequencer.holds());
    let gaps: Vec<SequenceRange> = sequencer.gaps(ms(60_000)).iter().map(|gap| gap.range).collect();
    assert_eq!((sequencer.high(), gaps), (Sequence(20), vec![range("6-8"), range("10-19")]));
    assert_eq!(sequencer.settled(ms(60_000)), Sequence(20), "they have been missed for long");
    assert_eq!(sequencer.arrived(Sequence(7), ms(60_000)), Arrival::Late);
}

#[test]
fn only_what_is_missing_is_expected_again() {
    let mut sequencer = Sequencer::new(SequencerConfig { max_pending: 2, ..SequencerConfig::default() });
    for s in [1, 2, 5, 6, 7, 12, 14] {
        sequencer.arrived(Sequence(s), ms(0));
    }
    sequencer.readmit(Sequence(6));
    let positions = RangeSet::from(vec![(2, 20), (30, 30)]);
    let expected: Vec<(u64, u64)> = sequencer.expect_again(&positions).iter().collect();
    assert_eq!(expected, [(3, 4), (8, 11), (13, 13), (15, 20), (30, 30)], "6 was readmitted below high");
    let again: Vec<(u64, u64)> = sequencer.expect_again(&positions).iter().collect();
    assert_eq!(again, expected, "so it is for the next term");
    let is_expected: Vec<u64> = (0..40).filter(|s| sequencer.is_readmitted(Sequence(*s))).collect();
    assert_eq!(is_expected, [3, 4, 6, 8, 9, 10, 11, 13, 15, 16, 17, 18, 19, 20, 30]);
    // A marker accounts for one of them.
    sequencer.unused(range("3"), ms(0));
    assert!(sequencer.is_accounted(Sequence(3)) && sequencer.is_readmitted(Sequence(3)));
    sequencer.arrived_at(Sequence(4), ms(0));
    assert!(!sequencer.is_readmitted(Sequence(4)));
}

#[test]
fn nonsense_that_was_stored_neither_panics_nor_blocks() {
    let gap = |first: u64, last: u64| Gap { range: SequenceRange::new(first, last).unwrap(), age_ms: u64::MAX };
    let state: SequencerState = serde_json::from_str(
        r#"{"next":7,"pending":[{"range":[0,18446744073709551615],"count":18446744073709551615,"age_ms":1}],
            "skipped":[{"range":[0,18446744073709551615],"missed_ms":18446744073709551615,"listed_ms":0}],
            "abandoned":[[0,18446744073709551615]]}"#,
    )
    .unwrap();
    let config = SequencerConfig { initial: Sequence(5), ..SequencerConfig::default() };
    for high in [0, 5, 9, u64::MAX] {
        let gaps = [gap(8, 9), gap(0, 3), gap(0, u64::MAX), gap(7, 8), gap(u64::MAX, u64::MAX)];
        let mut sequencer = Sequencer::resume(config, Sequence(high), &gaps, None, &state, ms(0));
        for s in [0, 5, 6, 7, 8, 9, 10, u64::MAX - 1, u64::MAX] {
            sequencer.arrived(Sequence(s), ms(0));
        }
        sequencer.unused(SequenceRange::new(0, u64::MAX).unwrap(), ms(0));
        sequencer.tick(Duration::MAX);
        sequencer.end_of_feed(Duration::MAX);
        assert_eq!(sequencer.stable(), sequencer.high());
        assert_eq!((sequencer.pending_count(), sequencer.skipped_count()), (0, 0));
    }
}

/// Runs the commands of one text case.
struct Interpreter {
    config: SequencerConfig,
    sequencer: Sequencer,
    now: Duration,
    checkpoint: Option<SequencerState>,
}

impl Interpreter {
    fn new() -> Self {
        let config = SequencerConfig::default();
        Interpreter { config, sequencer: Sequencer::new(config), now: ms(0), checkpoint: None }
    }

    /// What a command prints.
    fn command(&mut self, line: &str) -> String {
        let mut words = line.split_whitespace();
        let mut out = String::new();
        match words.next().unwrap_or_default() {
            "new" => {
                for word in words {
                    let (name, value) = word.split_once('=').unwrap_or_else(|| panic!("{line}: name=value expected"));
                    let value: u64 = value.parse().unwrap_or_else(|e| panic!("{line}: {e}"));
                    match name {
                        "initial" => self.config.initial = Sequence(value),
                        "max_wait" => self.config.max_wait = ms(value),
                        "max_pending" => self.config.max_pending = value as usize,
                        "skip_wait" => self.config.skip_wait = ms(value),
                        "max_jump" => self.config.max_jump = value,
                        "partial" => self.config.is_partial = value > 0,
                        _ => panic!("{line}: no option {name}"),
                    }
                }
                self.sequencer = Sequencer::new(self.config);
            }
            "arrive" => {
                for range in words.map(range) {
                    for s in range.first().0..=range.last().0 {
                        let verdict = match self.sequencer.arrived(Sequence(s), self.now) {
                            Arrival::BeforeStart => "before the start",
                            Arrival::Duplicate => "duplicate",
                            Arrival::InOrder => "in order",
                            Arrival::Pending => "pending",
                            Arrival::Late => "late",
                            Arrival::Implausible => "implausible",
                        };
                        let _ = writeln!(out, "  {s} {verdict}");
                    }
                }
            }
            "counter" => {
                let counter = words.next().and_then(|n| n.parse().ok()).unwrap_or_else(|| panic!("{line}: a number expected"));
                self.sequencer.counter(Sequence(counter), self.now);
            }
            "unused" => {
                for range in words.map(range) {
                    let _ = writeln!(out, "  {range} has {} new", self.sequencer.unused(range, self.now));
                }
            }
            "at" => {
                self.now =
                    ms(words.next().and_then(|n| n.parse().ok()).unwrap_or_else(|| panic!("{line}: milliseconds expected")));
                self.sequencer.tick(self.now);
            }
            // Time passes, but the timer does not fire.
            "clock" => {
                self.now =
                    ms(words.next().and_then(|n| n.parse().ok()).unwrap_or_else(|| panic!("{line}: milliseconds expected")));
            }
            "end_of_feed" => self.sequencer.end_of_feed(self.now),
            "checkpoint" => {
                self.checkpoint = Some(stored(&self.sequencer.state(self.now)));
                let _ = writeln!(out, "  {}", serde_json::to_string(&self.checkpoint).unwrap());
            }
            // From the clock and the gaps as they are now, and the checkpoint as it was then, in a process that has just begun.
            "resume" => {
                let (high, gaps) = (self.sequencer.high(), self.sequencer.gaps(self.now));
                self.now = ms(0);
                let checkpoint = self.checkpoint.clone().unwrap_or_default();
                self.sequencer = Sequencer::resume(self.config, high, &gaps, None, &checkpoint, self.now);
            }
            _ => panic!("{line}: no such command"),
        }
        for noted in self.sequencer.take_noted() {
            let _ = match noted {
                Noted::Skipped(range) => writeln!(out, "  skipped {range}"),
                Noted::Abandoned(range) => writeln!(out, "  given up {range}"),
                Noted::Undelivered(range) => writeln!(out, "  not delivered {range}"),
                Noted::Implausible(range) => writeln!(out, "  implausible above {range}"),
            };
        }
        format!("{line}\n{out}  = {}\n", self.summary())
    }

    fn summary(&mut self) -> String {
        let (stable, settled, high) = (self.sequencer.stable(), self.sequencer.settled(self.now), self.sequencer.high());
        let mut out = format!("stable {stable} settled {settled} high {high}");
        let state = self.sequencer.state(self.now);
        if !state.pending.is_empty() {
            let runs: Vec<String> = state.pending.iter().map(|run| format!("{} for {} ms", run.range, run.age_ms)).collect();
            let _ = write!(out, "; {} pending: {}", self.sequencer.pending_count(), runs.join(", "));
        }
        if !state.skipped.is_empty() {
            let gaps: Vec<String> =
                self.sequencer.gaps(self.now).iter().map(|gap| format!("{} for {} ms", gap.range, gap.age_ms)).collect();
            let _ = write!(out, "; {} missing: {}", self.sequencer.skipped_count(), gaps.join(", "));
        }
        if !state.abandoned.is_empty() {
            let ranges: Vec<String> =
                state.abandoned.iter().filter_map(|(a, b)| SequenceRange::new(a, b)).map(|range| range.to_string()).collect();
            let _ = write!(out, "; given up: {}", ranges.join(", "));
        }
        out
    }
}

/// `7`, `7-9`, or `max`, the lowest number that is none.
fn range(word: &str) -> SequenceRange {
    let number = |text: &str| match text.strip_prefix("max") {
        Some("") => Sequence::MAX_NUMBER.0 + 1,
        Some(below) => {
            Sequence::MAX_NUMBER.0 + 1 - below.trim_start_matches('~').parse::<u64>().unwrap_or_else(|e| panic!("{word}: {e}"))
        }
        None => text.parse().unwrap_or_else(|e| panic!("{word}: {e}")),
    };
    let (first, last) = word.split_once('-').unwrap_or((word, word));
    SequenceRange::new(number(first), number(last)).unwrap_or_else(|| panic!("{word}: empty range"))
}

/// The file with the output that its commands have now.
fn interpret(text: &str) -> String {
    let mut interpreter = Interpreter::new();
    let mut out = String::new();
    for block in text.trim().split("\n\n") {
        let (input, _) = block.split_once("----").unwrap_or((block, ""));
        let input = input.trim();
        out.push_str(input);
        let commands: Vec<&str> = input.lines().filter(|line| !line.starts_with('#')).collect();
        if !commands.is_empty() {
            out.push_str("\n----");
            for line in commands {
                out.push('\n');
                out.push_str(interpreter.command(line).trim_end());
            }
        }
        out.push_str("\n\n");
    }
    format!("{}\n", out.trim_end())
}

#[test]
fn the_cases_written_as_text_come_out_as_written() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sequencer");
    let regenerate = std::env::var_os("SLUICEGATE_REGENERATE").is_some_and(|value| value == "1");
    let mut files: Vec<_> = std::fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "txt"));
    files.sort();
    assert!(files.len() >= 15, "only {} cases in {}", files.len(), directory.display());
    let mut wrong = Vec::new();
    for path in files {
        let text = std::fs::read_to_string(&path).unwrap();
        let now = interpret(&text);
        if now == text {
            continue;
        }
        if regenerate {
            std::fs::write(&path, now).unwrap();
        } else {
            let line = text
                .lines()
                .zip(now.lines())
                .position(|(a, b)| a != b)
                .unwrap_or_else(|| text.lines().count().min(now.lines().count()));
            let (written, got) = (text.lines().nth(line).unwrap_or("nothing"), now.lines().nth(line).unwrap_or("nothing"));
            wrong.push(format!("{}:{}: written `{written}`, got `{got}`", path.display(), line + 1));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_is_withdrawn_is_new_if_it_comes_again() {
    let now = Duration::ZERO;
    let mut sequencer = Sequencer::new(SequencerConfig::default());
    for n in [1, 2, 3, 6, 7, 8] {
        sequencer.arrived(Sequence(n), now);
    }
    assert!(sequencer.is_accounted(Sequence(7)) && !sequencer.is_accounted(Sequence(4)));
    sequencer.withdraw(Sequence(2));
    sequencer.withdraw(Sequence(7));
    assert_eq!((sequencer.high(), sequencer.stable(), sequencer.pending_count()), (Sequence(3), Sequence(3), 2));
    assert!(sequencer.abandoned().contains(2) && !sequencer.is_accounted(Sequence(2)) && !sequencer.is_accounted(Sequence(7)));
    assert_eq!(sequencer.arrived(Sequence(2), now), Arrival::Late);
    assert_eq!(sequencer.arrived(Sequence(7), now), Arrival::Pending);
    for n in [4, 5] {
        sequencer.arrived(Sequence(n), now);
    }
    assert_eq!((sequencer.high(), sequencer.pending_count()), (Sequence(8), 0));
}

/// Also after a restart of a build of format version 2, which held all as pending runs.
#[test]
fn what_has_arrived_while_it_holds_is_accounted_for_after_a_restart() {
    for seed in 0..2_000 {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut number = |below: u64| random.next_u64() % below;
        let config = SequencerConfig { holds: true, max_pending: 5, ..SequencerConfig::default() };
        let mut sequencer = Sequencer::new(config);
        let base = [1, (1 << 16) - 30, (1 << 32) - 30][seed as usize % 3];
        for _ in 0..60 {
            let n = base + number(60);
            match number(8) {
                0..4 => _ = sequencer.arrived_at(Sequence(n), ms(0)),
                4 => _ = sequencer.unused(SequenceRange::new(Sequence(n).0, n + number(6)).unwrap(), ms(0)),
                5 => sequencer.withdraw(Sequence(n)),
                6 => sequencer.readmit(Sequence(n)),
                _ => sequencer.counter(Sequence(base + 1_000), ms(0)),
            }
        }
        let accounted =
            |sequencer: &Sequencer| (base..base + 70).map(|n| sequencer.is_accounted(Sequence(n))).collect::<Vec<_>>();
        let mut state = sequencer.state(ms(0));
        for is_former in [false, true] {
            if is_former {
                let runs = std::mem::take(&mut state.arrived);
                let run = |range: SequenceRange| PendingRun { range, count: range.count(), age_ms: 0 };
                state.pending.extend(runs.ranges().map(run));
            }
            let abandoned = Some(sequencer.abandoned());
            let resumed = Sequencer::resume(config, sequencer.high(), &[], abandoned, &state, ms(0));
            assert_eq!(accounted(&resumed), accounted(&sequencer), "seed {seed}, former: {is_former}");
            assert_eq!(resumed.progress().highest, sequencer.progress().highest, "seed {seed}, former: {is_former}");
        }
    }
}

#[test]
fn progress_does_not_look_at_each_implausible_sequence() {
    let config = SequencerConfig { holds: true, max_jump: 100, max_pending: 50, ..SequencerConfig::default() };
    let mut sequencer = Sequencer::new(config);
    let highest = |sequencer: &Sequencer| sequencer.progress().highest.0;
    sequencer.arrived(Sequence(90), ms(0));
    for n in 0..50 {
        sequencer.arrived(Sequence(1_000 + n), ms(0));
    }
    assert_eq!(highest(&sequencer), 90);
    sequencer.arrived(Sequence(1_050), ms(0));
    assert_eq!(highest(&sequencer), 1_000, "as many are there or above that the gap is real");
    sequencer.counter(Sequence(920), ms(0));
    assert_eq!(highest(&sequencer), 1_020);
}

#[test]
fn an_arrival_or_the_counter_tells_of_a_gateway_though_high_is_still_zero() {
    let fresh = || Sequencer::new(SequencerConfig { holds: true, ..SequencerConfig::default() });
    assert!(fresh().is_untouched());
    let (mut arrived, mut counted) = (fresh(), fresh());
    arrived.arrived(Sequence(2), ms(0));
    counted.counter(Sequence(0), ms(0));
    assert!(arrived.high() == Sequence::ZERO && !arrived.is_untouched() && !counted.is_untouched());
}
