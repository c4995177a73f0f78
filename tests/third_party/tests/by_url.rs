//! A program that links this crate opens its store and its feed by URL, beside those that it had.

use sluicegate::changes::ChangesOptions;
use sluicegate::{Channel, Sluicegate};
use third_party as _;

#[tokio::test]
async fn the_facade_opens_both_by_url() {
    let registry = sluicegate::registry().unwrap();
    let stores: Vec<_> = registry.stores().map(|store| store.scheme).collect();
    let feeds: Vec<_> = registry.feeds().map(|feed| feed.scheme).collect();
    assert_eq!((stores, feeds), (vec!["memory", "plainmap"], vec!["countdown", "replay", "synthetic"]));

    let url = "plainmap:?namespace=x";
    let mut cache = Sluicegate::builder().store(url).feed("countdown:100").start().await.unwrap();
    let cut = cache.caught_up().await.unwrap();
    let numbers = Channel::new("numbers").unwrap();
    let answer = cache.changes(&[numbers], &ChangesOptions::new()).await.unwrap();
    let sequences: Vec<u64> = answer.rows.iter().map(|row| row.entry.sequence().0).collect();
    assert_eq!((cut.stable.0, sequences), (100, (1..=100).collect()));
    assert_eq!(cache.store().info().name, "plainmap:x");
    cache.shutdown().await.unwrap();
}

#[tokio::test]
async fn what_they_do_not_know_is_refused_by_name() {
    let error = sluicegate::open_store("plainmap:?colour=red").await.unwrap_err().to_string();
    assert!(error.contains("`colour`"), "{error}");
    assert!(sluicegate::open_feed("countdown:ten").await.is_err());
}
