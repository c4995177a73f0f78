//! Every target with its seeds, with every cut of them, and with damage to them: always the same inputs, in well under a minute.

use std::num::NonZero;
use std::sync::Mutex;

use sluicegate_fuzz::mutate::Mutator;
use sluicegate_fuzz::{Target, targets, within};

/// Damaged inputs a target.
const INPUTS: usize = 20_000;

/// Seeds of a target that are cut at every length.
const CUT: usize = 20;

/// Says which input it was that did not go well.
struct Tell<'a>(&'static str, &'a [u8]);

impl Drop for Tell<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("target {}, input of {} bytes: \"{}\"", self.0, self.1.len(), self.1.escape_ascii());
        }
    }
}

fn check(target: Target, bytes: &[u8]) -> bool {
    let _tell = Tell(target.name, bytes);
    (target.check)(bytes)
}

fn run(target: Target) {
    let seeds = (target.seeds)();
    assert!(!seeds.is_empty(), "{} has no seeds", target.name);
    for seed in &seeds {
        assert!(check(target, seed), "{}: a seed does not decode: \"{}\"", target.name, seed.escape_ascii());
    }
    for seed in seeds.iter().step_by(seeds.len().div_ceil(CUT)) {
        for end in 0..seed.len() {
            check(target, &seed[..end]);
        }
    }
    let mut mutator = Mutator::new(1);
    let decoded = (0..INPUTS).filter(|_| check(target, &mutator.damaged(&seeds))).count();
    // Otherwise the damage is too great, or too small, to find anything.
    assert!((INPUTS / 200..INPUTS).contains(&decoded), "{}: {decoded} of {INPUTS} damaged inputs decode", target.name);
}

#[test]
fn whatever_bytes_a_decoder_gets_its_promises_hold() {
    let (left, broken) = (Mutex::new(targets()), Mutex::new(Vec::new()));
    let next = || left.lock().unwrap().pop();
    let find_broken = |target: Target| {
        if std::panic::catch_unwind(|| run(target)).is_err() {
            broken.lock().unwrap().push(target.name);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, NonZero::get) {
            scope.spawn(|| std::iter::from_fn(next).for_each(find_broken));
        }
    });
    assert_eq!(broken.into_inner().unwrap(), [""; 0], "what went wrong is above");
}

#[test]
fn targets_have_names_of_their_own() {
    let mut names: Vec<&str> = targets().iter().map(|target| target.name).collect();
    let all = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), all);
}

#[test]
fn what_is_held_at_a_time_counts_and_not_what_was_given_back() {
    assert_eq!(within(100, || (0..100_u8).map(|n| vec![n; 100].len()).sum::<usize>()), 10_000);
}

#[test]
#[should_panic(expected = "held 101 bytes; 100 are its limit")]
fn a_decoder_that_holds_too_much_is_found() {
    within(100, || vec![0_u8; 101]);
}
