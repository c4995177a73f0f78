//! A cache continues only with the feed that it was made from.

#![cfg(all(feature = "memory", feature = "replay"))]

#[macro_use]
mod support;

use std::path::Path;
use std::sync::Arc;

use sluicegate::core::feed::FeedIdentity;
use sluicegate::core::meta::Meta;
use sluicegate::core::source::{CacheSource, DatabaseIdentity, Following};
use sluicegate::core::store::Expiry;
use sluicegate::core::verify::{RepairOptions, VerifyOptions, repair, verify};
use sluicegate::{
    CacheKey, CacheStore, Channel, Error, ErrorKind, Feed, PublishedClock, ReaderConfig, ReaderNode, Result, Writer,
    WriterConfig, WriterNode, open_feed,
};
use sluicegate_replay::MemoryFeed;
use support::{Kind, Notation, mutations};

on_every_store! {
    another_feed_is_refused_and_leaves_the_cache_to_its_writer
    an_adopted_cache_takes_all_of_the_new_feed
    another_database_of_the_feed_is_refused
    a_checkpoint_under_a_name_of_earlier_builds_is_found_once
    a_cache_of_an_earlier_build_is_of_the_feeds_of_which_it_has_a_checkpoint
}

fn feed(name: &str, lines: &[&str]) -> Arc<dyn Feed> {
    let identity = FeedIdentity::new(format!("mutations:{name}"));
    Arc::new(MemoryFeed::new(name, mutations(lines)).with_identity(identity))
}

fn node(store: &Arc<dyn CacheStore>, feed: Arc<dyn Feed>) -> WriterNode {
    WriterNode::new(store.clone(), feed).with_decoder(Arc::new(Notation))
}

async fn run(node: WriterNode) -> Result<()> {
    node.run(std::future::pending()).await.map(drop)
}

async fn clock(store: &Arc<dyn CacheStore>) -> PublishedClock {
    PublishedClock::from_bytes(&store.get(&CacheKey::Clock).await.unwrap().unwrap().value).unwrap()
}

async fn meta(store: &Arc<dyn CacheStore>) -> Meta {
    Meta::from_bytes(&store.get(&CacheKey::Meta).await.unwrap().unwrap().value).unwrap()
}

async fn rows(store: &Arc<dyn CacheStore>) -> Vec<(u64, String)> {
    let reader = ReaderNode::open(store.clone(), ReaderConfig::default()).await.unwrap();
    let answer = reader.changes(&[Channel::star()], &Default::default()).await.unwrap().answer();
    answer.rows.iter().map(|row| (row.id.sequence.0, row.entry.key().to_owned())).collect()
}

fn assert_refused(result: Result<()>, names: &[&str]) {
    let error = result.unwrap_err();
    let text = error.to_string();
    assert_eq!(error.kind(), ErrorKind::ConfigInvalid, "{text}");
    for name in names.iter().chain(&["--adopt", "namespace"]) {
        assert!(text.contains(name), "{name}: {text}");
    }
}

async fn another_feed_is_refused_and_leaves_the_cache_to_its_writer(kind: Kind) {
    let store = kind.fresh().await;
    let (one, other) = (feed("one", &["1 a +A", "2 b +A"]), feed("other", &["1 x +A", "2 y +A", "3 z +A"]));
    let mut writer = {
        let source = CacheSource { feed: one.identity(), database: DatabaseIdentity::default() };
        let following = Following::from(one.info().checkpoint_name()).with_source(source);
        Writer::alone(store.clone(), Arc::new(Notation), following, WriterConfig::default()).await.unwrap()
    };
    let before = clock(&store).await;
    assert_refused(run(node(&store, other)).await, &["mutations:one", "mutations:other"]);
    assert_eq!(clock(&store).await, before);
    // It was not fenced.
    writer.run(one.as_ref(), std::future::pending()).await.unwrap();
    assert_eq!(rows(&store).await, [(1, "a".to_owned()), (2, "b".to_owned())]);
    // A longer one of the same name is the same feed.
    run(node(&store, feed("one", &["1 a +A", "2 b +A", "3 c +A"]))).await.unwrap();
    assert_eq!(rows(&store).await.len(), 3);
}

async fn an_adopted_cache_takes_all_of_the_new_feed(kind: Kind) {
    let store = kind.fresh().await;
    run(node(&store, feed("one", &["1 a +A", "2 b +A"]))).await.unwrap();
    run(node(&store, feed("one", &["1 a +A", "2 b +A"]))).await.unwrap();
    let other = || feed("other", &["1 a +A", "2 b +A", "3 c +A"]);
    assert_refused(run(node(&store, other())).await, &[]);
    run(node(&store, other()).adopting(true)).await.unwrap();
    assert_eq!(rows(&store).await.len(), 3);
    // It is bound to the new feed from now on, with and without the option.
    run(node(&store, other())).await.unwrap();
    assert_refused(run(node(&store, feed("one", &["1 a +A"]))).await, &["mutations:one"]);
    // Back to the first: from its beginning, though its checkpoint is still there.
    run(node(&store, feed("one", &["1 a +A", "2 b +A", "3 c +A", "4 d +A"])).adopting(true)).await.unwrap();
    assert_eq!(rows(&store).await.len(), 4);
    let report = verify(store.as_ref(), &VerifyOptions::default()).await.unwrap();
    assert!(report.is_clean(), "{report:?}");
}

async fn another_database_of_the_feed_is_refused(kind: Kind) {
    let store = kind.fresh().await;
    let database = |id: &str| DatabaseIdentity { name: Some(id.to_owned()), metadata_id: Some(id.to_owned()), collections: None };
    run(node(&store, feed("f", &["1 a +A"])).with_database(database("db1"))).await.unwrap();
    assert_eq!(meta(&store).await.source.unwrap().database, database("db1"));
    assert_refused(run(node(&store, feed("f", &["1 a +A"])).with_database(database("db10"))).await, &["db1,", "db10,"]);
    assert_refused(run(node(&store, feed("f", &["1 a +A"]))).await, &["db1,", "default"]);
    // A name is for people.
    let renamed = DatabaseIdentity { name: Some("other".to_owned()), ..database("db1") };
    run(node(&store, feed("f", &["1 a +A"])).with_database(renamed.clone())).await.unwrap();
    assert_eq!(meta(&store).await.source.unwrap().database, renamed);
}

async fn a_checkpoint_under_a_name_of_earlier_builds_is_found_once(kind: Kind) {
    let store = kind.fresh().await;
    let of = |name: &'static str| Writer::alone(store.clone(), Arc::new(Notation), name, WriterConfig::default());
    let mut older = of("new:b").await.unwrap();
    older.run(feed("b", &["1 a +A"]).as_ref(), std::future::pending()).await.unwrap();
    let mut newer = of("old:b").await.unwrap();
    newer.run(feed("b", &["1 a +A", "2 b +A"]).as_ref(), std::future::pending()).await.unwrap();
    drop((older, newer));
    let position = of("old:b").await.unwrap().start();
    assert_ne!(position, of("new:b").await.unwrap().start());
    // As a build of format version 1 left it.
    let stored = store.get(&CacheKey::Meta).await.unwrap().unwrap();
    let meta = Meta { format: 1, source: None, ..meta(&store).await };
    store.replace(&CacheKey::Meta, meta.to_bytes(), stored.version, Expiry::Never).await.unwrap();

    let following = || {
        let feed = FeedIdentity::new("new:b").with_former_checkpoint("old:b");
        Following::from("new:b").with_source(CacheSource { feed, database: DatabaseIdentity::default() })
    };
    let take = || Writer::alone(store.clone(), Arc::new(Notation), following(), WriterConfig::default());
    assert_eq!(take().await.unwrap().start(), position);
    let stale = Writer::alone(store.clone(), Arc::new(Notation), "old:b", WriterConfig::default()).await.unwrap();
    assert_eq!(stale.start(), position);
    assert_eq!(take().await.unwrap().start(), position);
}

async fn a_cache_of_an_earlier_build_is_of_the_feeds_of_which_it_has_a_checkpoint(kind: Kind) {
    let store = kind.fresh().await;
    run(node(&store, feed("one", &["1 a +A", "2 b +A"]))).await.unwrap();
    let stored = store.get(&CacheKey::Meta).await.unwrap().unwrap();
    let former = Meta { format: 1, source: None, ..meta(&store).await };
    store.replace(&CacheKey::Meta, former.to_bytes(), stored.version, Expiry::Never).await.unwrap();

    let other = || feed("other", &["1 x +A", "2 y +A", "3 z +A"]);
    let before = clock(&store).await;
    assert_refused(run(node(&store, other())).await, &["mutations:other", "no checkpoint"]);
    let of_other = RepairOptions::default().feed("mutations:other");
    let refused = repair(store.as_ref(), &of_other).await.unwrap_err();
    assert!(refused.kind() == ErrorKind::ConfigInvalid && refused.to_string().contains("mutations:other"), "{refused}");
    assert_eq!((clock(&store).await, meta(&store).await.source), (before, None));
    run(node(&store, feed("one", &["1 a +A", "2 b +A", "3 c +A"]))).await.unwrap();
    assert_eq!(rows(&store).await.len(), 3);
    assert_eq!(meta(&store).await.source.unwrap().feed.name(), "mutations:one");

    let store = kind.fresh().await;
    run(node(&store, feed("one", &["1 a +A"]))).await.unwrap();
    let stored = store.get(&CacheKey::Meta).await.unwrap().unwrap();
    store.replace(&CacheKey::Meta, former.to_bytes(), stored.version, Expiry::Never).await.unwrap();
    run(node(&store, other()).adopting(true)).await.unwrap();
    assert_eq!(rows(&store).await.len(), 4, "1 of both feeds, and 2 and 3 of the adopted one");
}

async fn opened(path: &Path, options: &str) -> FeedIdentity {
    open_feed(&format!("replay:{}{options}", path.display())).await.unwrap().identity()
}

#[tokio::test]
async fn a_recording_is_its_file_and_its_first_event() {
    let line = |n: u64, key: &str| {
        format!("{{\"n\":{n},\"vb\":3,\"op\":\"mutation\",\"key\":\"{key}\",\"cas\":\"1\",\"datatype\":0}}\n")
    };
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let [one, other] = folders.each_ref().map(|folder| folder.path().join("rec.ndjson"));
    std::fs::write(&one, line(1, "a")).unwrap();
    std::fs::write(&other, line(1, "a")).unwrap();
    let identity = opened(&one, "").await;
    assert!(!identity.instance().is_empty() && !identity.is_same(&opened(&other, "").await));
    std::fs::write(&one, format!("{{\"marker\":1,\"phase\":\"begin\"}}\n{}{}", line(1, "a"), line(2, "b"))).unwrap();
    assert_eq!(opened(&one, "?until=1&rate=7").await, identity);
    std::fs::write(&one, line(1, "b")).unwrap();
    assert!(!opened(&one, "").await.is_same(&identity));
    std::fs::write(&one, "").unwrap();
    assert!(opened(&one, "").await.is_same(&identity));
}

#[tokio::test]
async fn a_made_up_feed_is_its_options_but_not_its_length() {
    let of = async |options: &str| Ok::<_, Error>(open_feed(&format!("synthetic:?{options}")).await?.identity());
    let identity = of("seed=1&events=10").await.unwrap();
    assert_eq!(of("seed=1&events=20&rate=5&batch=3").await.unwrap(), identity);
    for other in ["seed=2", "seed=1&documents=7"] {
        assert!(!of(other).await.unwrap().is_same(&identity), "{other}");
    }
}
