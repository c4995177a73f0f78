//! Campaigns: one world after the other, each from a seed.

use std::collections::BTreeMap;
use std::ops::Range;

/// The seeds of a campaign: `usual`, or those that `SLUICEGATE_TEST_SEEDS` names, as `FROM..TO`.
fn seeds(usual: Range<u64>) -> Range<u64> {
    let Ok(text) = std::env::var("SLUICEGATE_TEST_SEEDS") else { return usual };
    let parsed = text.split_once("..").and_then(|(from, to)| Some(from.parse().ok()?..to.parse().ok()?));
    parsed.unwrap_or_else(|| panic!("SLUICEGATE_TEST_SEEDS is {text:?}; it must be FROM..TO"))
}

/// Runs one world after the other and names those that fail; what the others came to, by name.
pub(crate) async fn campaign<F>(usual: Range<u64>, one: impl Fn(u64) -> F) -> BTreeMap<String, u64>
where
    F: Future<Output = Vec<(String, u64)>> + Send + 'static,
{
    let (seeds, mut sums, mut failed) = (seeds(usual), BTreeMap::new(), Vec::new());
    for seed in seeds.clone() {
        match tokio::spawn(one(seed)).await {
            Ok(counts) => counts.into_iter().for_each(|(name, count)| *sums.entry(name).or_default() += count),
            Err(_) => failed.push(seed),
        }
    }
    println!("seeds {seeds:?}: {sums:#?}");
    assert!(failed.is_empty(), "of {} worlds {} failed, of seeds {failed:?}", seeds.end - seeds.start, failed.len());
    sums
}

/// Whether nobody has named others.
pub(crate) fn are_usual() -> bool {
    std::env::var_os("SLUICEGATE_TEST_SEEDS").is_none()
}
