//! Small random worlds: three documents, writers that are killed or held in the middle of their
//! work, and a bucket that loses mutations. Each is compared with what is right: the answers, what
//! a client is told that continues, and the cache's own rules.
//!
//! A world that fails is shrunk, and printed as Rust. `SLUICEGATE_TEST_SEEDS` names other seeds.

#[path = "worlds/bucket.rs"]
mod bucket;
#[path = "worlds/checks.rs"]
mod checks;
#[path = "support/client.rs"]
mod client;
#[path = "worlds/directed.rs"]
mod directed;
#[path = "worlds/feed.rs"]
mod feed;
#[path = "worlds/model.rs"]
mod model;
#[path = "worlds/random.rs"]
mod random;
#[path = "worlds/run.rs"]
mod run;
#[path = "support/seeds.rs"]
mod seeds;
#[path = "worlds/shrink.rs"]
mod shrink;

use std::collections::BTreeMap;
use std::ops::Range;

use model::World;
use random::Kind;
use run::{Counts, run};
use seeds::{are_usual, campaign};
use shrink::shrink;

/// The name under which writers keep their position in the feed.
const FEED: &str = "worlds";

/// Runs a world that must not fail. If it does, a smaller one that fails in the same way is shown.
#[track_caller]
fn assert_right(world: &World, what: &str) -> Counts {
    let failure = match run(world) {
        Ok(counts) => return counts,
        Err(failure) => failure,
    };
    let smallest = shrink(world.clone(), |other| run(other).is_err_and(|other| other.is_like(&failure)));
    let smallest_failure = run(&smallest).err().unwrap_or_else(|| failure.clone());
    panic!("{what}: {failure}\nThe smallest world: {}\nIts failure: {smallest_failure}", smallest.as_rust())
}

/// Runs the worlds of the seeds, and returns what happened in all of them.
async fn run_worlds(usual: Range<u64>, kind: Kind) -> BTreeMap<String, u64> {
    let one = move |seed| async move {
        // Each world has a runtime of its own, so that it is the same whatever ran before.
        let run = move || assert_right(&random::world(seed, kind), &format!("seed {seed}"));
        let outcome = tokio::task::spawn_blocking(run).await;
        let counts = outcome.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
        vec![("faults".to_owned(), counts.faults), ("resumed".to_owned(), counts.resumed)]
    };
    campaign(usual, one).await
}

#[tokio::test]
async fn killed_writers_and_failovers_with_lost_counters_change_no_answer() {
    let sums = run_worlds(0..1_000, Kind { failovers: true, ..Kind::default() }).await;
    assert!(!are_usual() || sums["faults"] > 800, "{sums:?}");
}

#[tokio::test]
async fn killed_writers_and_other_programs_change_no_answer() {
    let sums = run_worlds(0..1_000, Kind { overwrites: true, ..Kind::default() }).await;
    assert!(!are_usual() || sums["faults"] > 700, "{sums:?}");
}

#[tokio::test]
async fn held_writers_change_no_answer() {
    let sums = run_worlds(0..1_000, Kind { holds: true, ..Kind::default() }).await;
    assert!(!are_usual() || sums["faults"] > 600 && sums["resumed"] > 450, "{sums:?}");
}
