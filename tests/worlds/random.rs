//! Worlds from seeds.

use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use sluicegate::pointer::Supersession;
use sluicegate_testkit::{CrashPoint, Step, When};

use super::model::{DOCUMENTS, Event, Fault, PARTITIONS, Settings, Term, Then, World};

/// The steps at which a fault comes; some are more often chosen.
const STEPS: [Step; 13] = [
    Step::Intent,
    Step::SequenceDocuments,
    Step::SequenceDocuments,
    Step::Blocks,
    Step::Blocks,
    Step::Blocks,
    Step::Directories,
    Step::Pointers,
    Step::LatePages,
    Step::BatchRecord,
    Step::BatchRecord,
    Step::Checkpoint,
    Step::Clock,
];

/// What may happen in the worlds of a campaign, besides writes and killed writers.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Kind {
    /// Partitions fail over, and the gateway may lose its counter then.
    pub(crate) failovers: bool,
    /// Other programs write over documents.
    pub(crate) overwrites: bool,
    /// Writers are held, and go on while others are at work or after them.
    pub(crate) holds: bool,
}

/// Makes one world.
struct Maker {
    random: ChaCha8Rng,
    kind: Kind,
}

/// The world of a seed. Every other one has pointers.
pub(crate) fn world(seed: u64, kind: Kind) -> World {
    let mut maker = Maker { random: ChaCha8Rng::seed_from_u64(seed), kind };
    let supersession = if seed.is_multiple_of(2) { Supersession::Recents } else { Supersession::Pointers };
    World { settings: maker.settings(supersession), events: maker.events() }
}

impl Maker {
    fn settings(&mut self, supersession: Supersession) -> Settings {
        let random = &mut self.random;
        Settings {
            supersession,
            hold_first_read: random.random_bool(0.25),
            max_batch: *[1, 2, 4, 100].choose(random).unwrap(),
            max_in_flight: random.random_range(1..4) as usize,
            checkpoint_interval_ms: *[1, 100_000].choose(random).unwrap(),
            max_wait_ms: *[5_000, 1].choose(random).unwrap(),
            codec: if random.random_bool(0.3) { "log" } else { "two-bit" },
            leaves_out: random.random_bool(0.7),
            has_stays: random.random_bool(0.3),
        }
    }

    fn events(&mut self) -> Vec<Event> {
        let mut events = self.writes(5);
        if self.random.random_bool(0.7) {
            let seed = self.random.random_range(0..1_000);
            events.push(Event::Term(Term { seed, fault: Fault::Healthy, meanwhile: Vec::new(), rollbacks_first: true }));
        }
        for _ in 0..self.random.random_range(1..4) {
            events.extend(self.trouble());
            events.push(self.term());
            if self.kind.holds && self.random.random_bool(0.3) {
                events.push(Event::Resume);
            }
        }
        events.extend(self.trouble());
        if self.kind.holds {
            events.push(Event::Resume);
        }
        events
    }

    fn term(&mut self) -> Event {
        let mut meanwhile = if self.random.random_bool(0.5) { self.trouble() } else { Vec::new() };
        let fault = self.fault();
        if matches!(fault, Fault::Hold { then: Then::UntilResume | Then::IntoNext(_), .. }) {
            // The next writer could be at work before that.
            meanwhile.clear();
        }
        let (seed, rollbacks_first) = (self.random.random_range(0..1_000), self.random.random_bool(0.5));
        Event::Term(Term { seed, fault, meanwhile, rollbacks_first })
    }

    /// Some writes, fewer than `bound`.
    fn writes(&mut self, bound: u32) -> Vec<Event> {
        let count = self.random.random_range(0..bound);
        (0..count).map(|_| self.write()).collect()
    }

    fn write(&mut self) -> Event {
        let random = &mut self.random;
        match random.random_range(0..20) {
            0 if self.kind.overwrites => Event::Overwrite { document: random.random_range(0..DOCUMENTS) },
            1 => Event::Skip,
            2 => Event::Release { partition: random.random_range(0..PARTITIONS) },
            _ => Event::Write { document: random.random_range(0..DOCUMENTS), channels: random.random_range(0..4) },
        }
    }

    /// Perhaps failovers, and what is written after.
    fn trouble(&mut self) -> Vec<Event> {
        let (mut events, random) = (Vec::new(), &mut self.random);
        if self.kind.failovers && random.random_bool(0.7) {
            for _ in 0..random.random_range(1..3) {
                let partition = random.random_range(0..PARTITIONS);
                events.push(Event::FailOver { partition, lost: random.random_range(0..4) });
            }
            if random.random_bool(0.8) {
                events.push(Event::LoseCounter);
            }
        }
        events.extend(self.writes(4));
        events
    }

    fn fault(&mut self) -> Fault {
        let random = &mut self.random;
        let (step, nth) = (*STEPS.choose(random).unwrap(), random.random_range(1..6));
        match random.random_range(0..10) {
            0 => Fault::Healthy,
            1..4 if !self.kind.holds => {
                let when = *[When::Before, When::After, When::Unknown].choose(random).unwrap();
                Fault::Crash { from_take_over: random.random_bool(0.3), point: CrashPoint { step, when, nth } }
            }
            _ => {
                let then = match random.random_range(0..5) {
                    1 | 2 if self.kind.holds => Then::UntilResume,
                    3 | 4 if self.kind.holds => Then::IntoNext(random.random_range(0..200)),
                    _ => Then::Killed,
                };
                Fault::Hold { step, nth, all: random.random_bool(0.7), then }
            }
        }
    }
}
