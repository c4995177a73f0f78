//! Campaigns: one world after the other, each from a seed.

#![allow(dead_code, reason = "each test program uses some of it")]

use std::collections::BTreeMap;
use std::ops::Range;

use sluicegate::{Channel, CollectionId};

/// Worlds of seeds from here on have two named collections, with documents of the same keys and
/// channels of the same names. Those of lower seeds have the default collection only.
pub(crate) const NAMED: u64 = 1_000_000;

/// The collections that have documents in a world.
fn used(seed: u64) -> &'static [CollectionId] {
    if seed < NAMED { &[CollectionId::DEFAULT] } else { &[CollectionId(8), CollectionId(9)] }
}

/// The collection of a document, and the number in its key, which is unique in the collection.
pub(crate) fn place(seed: u64, document: usize) -> (CollectionId, usize) {
    let used = used(seed);
    (used[document % used.len()], document / used.len())
}

/// The channels of these names in each collection of a world. Where there are named collections,
/// the default one is asked, too: it must have nothing.
pub(crate) fn channels(seed: u64, names: &[&str]) -> Vec<Channel> {
    let others = used(seed).iter().copied().filter(|collection| !collection.is_default());
    let all = [CollectionId::DEFAULT].into_iter().chain(others);
    all.flat_map(|collection| names.iter().map(move |name| Channel::of(collection, name).unwrap())).collect()
}

/// The star channels of the collections that have documents.
pub(crate) fn stars(seed: u64) -> Vec<Channel> {
    used(seed).iter().copied().map(Channel::star_of).collect()
}

/// The seeds that `SLUICEGATE_TEST_SEEDS` names, as `FROM..TO`.
fn named_seeds() -> Option<Range<u64>> {
    let text = std::env::var("SLUICEGATE_TEST_SEEDS").ok()?;
    let parsed = text.split_once("..").and_then(|(from, to)| Some(from.parse().ok()?..to.parse().ok()?));
    Some(parsed.unwrap_or_else(|| panic!("SLUICEGATE_TEST_SEEDS is {text:?}; it must be FROM..TO")))
}

/// `usual`, and then a quarter as many that have named collections.
pub(crate) fn with_named(usual: Range<u64>) -> impl Iterator<Item = u64> + Clone + std::fmt::Debug {
    let count = (usual.end - usual.start) / 4;
    usual.chain(NAMED..NAMED + count)
}

/// Runs one world after the other and names those that fail; what the others came to, by name. The
/// seeds are `usual`, unless others are named.
pub(crate) async fn campaign<F>(usual: Range<u64>, one: impl Fn(u64) -> F) -> BTreeMap<String, u64>
where
    F: Future<Output = Vec<(String, u64)>> + Send + 'static,
{
    run(named_seeds().unwrap_or(usual), one).await
}

/// As [`campaign`], and usually a quarter as many worlds with named collections.
pub(crate) async fn campaign_with_named<F>(usual: Range<u64>, one: impl Fn(u64) -> F) -> BTreeMap<String, u64>
where
    F: Future<Output = Vec<(String, u64)>> + Send + 'static,
{
    match named_seeds() {
        Some(seeds) => run(seeds, one).await,
        None => run(with_named(usual), one).await,
    }
}

async fn run<F>(seeds: impl Iterator<Item = u64> + Clone + std::fmt::Debug, one: impl Fn(u64) -> F) -> BTreeMap<String, u64>
where
    F: Future<Output = Vec<(String, u64)>> + Send + 'static,
{
    let (mut sums, mut failed, mut count) = (BTreeMap::new(), Vec::new(), 0);
    for seed in seeds.clone() {
        count += 1;
        match tokio::spawn(one(seed)).await {
            Ok(counts) => counts.into_iter().for_each(|(name, count)| *sums.entry(name).or_default() += count),
            Err(_) => failed.push(seed),
        }
    }
    println!("seeds {seeds:?}: {sums:#?}");
    assert!(failed.is_empty(), "of {count} worlds {} failed, of seeds {failed:?}", failed.len());
    sums
}

/// Whether nobody has named others.
pub(crate) fn are_usual() -> bool {
    std::env::var_os("SLUICEGATE_TEST_SEEDS").is_none()
}
