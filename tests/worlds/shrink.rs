//! Finds a smaller world that fails in the same way.

use sluicegate_testkit::{CrashPoint, Step, When};

use super::model::{Event, Fault, Settings, Term, Then, World};

/// The most worlds that are tried.
const MAX_TRIES: usize = 2_000;

/// The smallest world that is found, by one change after the other.
pub(crate) fn shrink(mut world: World, fails: impl Fn(&World) -> bool) -> World {
    let mut tries = 0..MAX_TRIES;
    while let Some(smaller) = simpler(&world).into_iter().find(|other| tries.next().is_some() && fails(other)) {
        world = smaller;
    }
    world
}

/// The worlds that are simpler by one change. None of them can become this one again.
fn simpler(world: &World) -> Vec<World> {
    let World { settings, events } = world;
    let mut worlds = Vec::new();
    let mut replaced = |at: usize, by: &[Event]| {
        let mut events = events.clone();
        events.splice(at..=at, by.iter().cloned());
        worlds.push(World { settings: settings.clone(), events });
    };
    for at in 0..events.len() {
        replaced(at, &[]);
    }
    for (at, event) in events.iter().enumerate() {
        simpler_event(event).iter().for_each(|events| replaced(at, events));
    }
    for settings in simpler_settings(settings) {
        worlds.push(World { settings, events: events.clone() });
    }
    worlds
}

fn simpler_event(event: &Event) -> Vec<Vec<Event>> {
    match event {
        Event::Write { document, channels } if *channels > 1 => {
            (1..*channels).map(|channels| vec![Event::Write { document: *document, channels }]).collect()
        }
        Event::FailOver { partition, lost } if *lost > 1 => {
            vec![vec![Event::FailOver { partition: *partition, lost: lost - 1 }]]
        }
        Event::Term(term) => {
            let mut all: Vec<_> = simpler_terms(term).into_iter().map(|term| vec![Event::Term(term)]).collect();
            if !term.meanwhile.is_empty() {
                let before = term.meanwhile.iter().cloned();
                all.insert(0, before.chain([Event::Term(Term { meanwhile: Vec::new(), ..term.clone() })]).collect());
            }
            all
        }
        _ => Vec::new(),
    }
}

fn simpler_terms(term: &Term) -> Vec<Term> {
    let mut terms = Vec::new();
    for at in 0..term.meanwhile.len() {
        let mut meanwhile = term.meanwhile.clone();
        meanwhile.remove(at);
        terms.push(Term { meanwhile, ..term.clone() });
    }
    terms.extend(simpler_faults(&term.fault).into_iter().map(|fault| Term { fault, ..term.clone() }));
    if !term.rollbacks_first {
        terms.push(Term { rollbacks_first: true, ..term.clone() });
    }
    terms.extend((0..term.seed.min(3)).map(|seed| Term { seed, ..term.clone() }));
    terms
}

fn simpler_faults(fault: &Fault) -> Vec<Fault> {
    match *fault {
        Fault::Healthy => Vec::new(),
        Fault::Crash { .. } => vec![Fault::Healthy],
        Fault::Hold { step, nth, all, then } => {
            let thens: &[Then] = match then {
                Then::Killed => &[],
                Then::UntilResume => &[Then::Killed],
                Then::IntoNext(_) => &[Then::Killed, Then::UntilResume],
            };
            let held = thens.iter().map(|then| Fault::Hold { step, nth, all, then: *then });
            [Fault::Healthy].into_iter().chain(held).collect()
        }
    }
}

fn simpler_settings(settings: &Settings) -> Vec<Settings> {
    let simple = Settings::simple(settings.supersession);
    let all = [
        Settings { hold_first_read: simple.hold_first_read, ..settings.clone() },
        Settings { max_batch: simple.max_batch, ..settings.clone() },
        Settings { max_in_flight: simple.max_in_flight, ..settings.clone() },
        Settings { checkpoint_interval_ms: simple.checkpoint_interval_ms, ..settings.clone() },
        Settings { max_wait_ms: simple.max_wait_ms, ..settings.clone() },
        Settings { codec: simple.codec, ..settings.clone() },
        Settings { leaves_out: false, ..settings.clone() },
        Settings { has_stays: simple.has_stays, ..settings.clone() },
    ];
    all.into_iter().filter(|other| other != settings).collect()
}

/// A failure that depends on two events and one setting is found among others.
#[test]
fn a_failing_world_is_shrunk_to_what_makes_it_fail() {
    use sluicegate::pointer::Supersession;

    let write = |document| Event::Write { document, channels: 3 };
    let crash = Fault::Crash { from_take_over: true, point: CrashPoint { step: Step::Clock, when: When::After, nth: 2 } };
    let fault = Fault::Hold { step: Step::Blocks, nth: 2, all: true, then: Then::IntoNext(7) };
    let term = |fault, meanwhile| Event::Term(Term { seed: 77, fault, meanwhile, rollbacks_first: false });
    let simple = Settings::simple(Supersession::Pointers);
    let world = World {
        settings: Settings { max_batch: 2, max_in_flight: 3, has_stays: true, ..simple.clone() },
        events: vec![
            Event::Skip,
            write(0),
            term(crash, vec![write(1), write(2), Event::FailOver { partition: 1, lost: 3 }]),
            term(fault, vec![Event::LoseCounter]),
            Event::Resume,
        ],
    };
    let fails = |world: &World| {
        let has_held = |event: &Event| matches!(event, Event::Term(Term { fault: Fault::Hold { .. }, .. }));
        let has_second = |event: &Event| matches!(event, Event::Write { document: 1, .. });
        let is_in =
            |event: &Event| has_second(event) || matches!(event, Event::Term(term) if term.meanwhile.iter().any(has_second));
        world.events.iter().any(is_in) && world.events.iter().any(has_held) && world.settings.max_batch == 2
    };
    let fault = Fault::Hold { step: Step::Blocks, nth: 2, all: true, then: Then::Killed };
    let smallest = World {
        settings: Settings { max_batch: 2, leaves_out: false, ..simple },
        events: vec![
            Event::Write { document: 1, channels: 1 },
            Event::Term(Term { seed: 0, fault, meanwhile: Vec::new(), rollbacks_first: true }),
        ],
    };
    assert_eq!(shrink(world, fails), smallest);
}
