//! Expectations of a gateway's own tests, in every variation and on every store.

#![cfg(all(feature = "scenario", feature = "memory", feature = "redis"))]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::FutureExt as _;
use sluicegate::CacheStore;
use sluicegate_memory::MemoryStore;
use sluicegate_test_servers::RedisServer;
use sluicegate_testkit::scenario::{Disagreement, Scenario, Stores, Variation, find, judge};

/// Lines that are not right today, and why. One that becomes right fails the test until it is taken
/// out. The other lines of the file must be right.
const WRONG: &[(&str, usize, &str)] =
    &[("channel_cache/TestChannelCacheCurrentVersion.txt", 6, "it asks for a sequence that is pending, as 2 and 3 are missing")];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/scenarios")
}

fn scenarios() -> Vec<Scenario> {
    let files = find(&folder()).unwrap();
    files.iter().map(|file| Scenario::read(file).unwrap_or_else(|mistake| panic!("{mistake}"))).collect()
}

fn name(file: &Path) -> String {
    file.strip_prefix(folder()).unwrap().display().to_string()
}

fn is_wrong(name: &str) -> bool {
    WRONG.iter().any(|(wrong, ..)| *wrong == name)
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

#[test]
fn every_scenario_agrees_in_every_variation() {
    let stores = Stores::new(|| {
        let store: Arc<dyn CacheStore> = Arc::new(MemoryStore::new());
        std::future::ready(Ok(store)).boxed()
    });
    let report = judge(&scenarios(), &Variation::ALL, &stores, threads()).unwrap();
    let mut by_line: BTreeMap<(String, usize), Vec<&Disagreement>> = BTreeMap::new();
    for disagreement in &report.disagreements {
        by_line.entry((name(Path::new(&disagreement.file)), disagreement.line)).or_default().push(disagreement);
    }
    let wrong: BTreeSet<(String, usize)> = WRONG.iter().map(|(file, line, _)| ((*file).to_owned(), *line)).collect();
    let unexpected: Vec<_> = by_line.iter().filter(|(line, _)| !wrong.contains(*line)).collect();
    assert!(unexpected.is_empty(), "{unexpected:#?}");
    let right: Vec<_> = wrong.iter().filter(|line| !by_line.contains_key(*line)).collect();
    assert!(right.is_empty(), "right by now, or not there; take them out of the table: {right:#?}");
    assert!(report.notes.is_empty(), "{:?}", report.notes);
    assert!(report.files > 370 && report.runs > 2_400, "{report}");
}

/// Each file in one of its variations, so that each variation is run with files of each kind.
#[test]
fn every_scenario_agrees_on_a_server() {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let server = RedisServer::start();
    let url = server.url();
    let stores = Stores::new(move || {
        let url = format!("{url}?namespace=s{}", NEXT.fetch_add(1, Ordering::Relaxed));
        async move { sluicegate::open_store(&url).await }.boxed()
    });
    let stores = stores.cleared();
    let mut shares: BTreeMap<Variation, Vec<Scenario>> = BTreeMap::new();
    for (at, scenario) in scenarios().into_iter().enumerate().filter(|(_, scenario)| !is_wrong(&name(scenario.file()))) {
        let variations: Vec<Variation> =
            Variation::ALL.into_iter().filter(|variation| !scenario.leaves_out(*variation)).collect();
        shares.entry(variations[at % variations.len()]).or_default().push(scenario);
    }
    for (variation, scenarios) in shares {
        let report = judge(&scenarios, &[variation], &stores, 4 * threads()).unwrap();
        assert!(report.agrees(), "{report}");
    }
    assert_eq!(server.cli(&["DBSIZE"]).trim(), "0", "something is left of what was removed");
}
