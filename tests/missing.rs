//! Batch records that are relative to a list of what is missing.

#![cfg(all(feature = "memory", feature = "replay"))]

mod support;

use std::sync::Arc;

use sluicegate::changes::{ChangesOptions, Delivery};
use sluicegate::core::batch::BatchRecord;
use sluicegate::core::missing::MissingList;
use sluicegate::core::store::Expiry;
use sluicegate::core::verify::{Problem, RepairOptions, VerifyOptions, repair, verify};
use sluicegate::{
    CacheKey, CacheStore, Channel, ErrorKind, FeedEvent, PublishedClock, ReaderConfig, ReaderNode, Writer, WriterConfig,
};
use sluicegate_memory::MemoryStore;
use support::{Notation, mutations};

const RING: u64 = 8;

fn config() -> WriterConfig {
    let mut config = WriterConfig::default();
    (config.ring, config.list_changes, config.hold_first_read) = (RING, 0, false);
    config
}

async fn writer(store: &Arc<dyn CacheStore>) -> Writer {
    Writer::alone(store.clone(), Arc::new(Notation), "list", config()).await.unwrap()
}

/// Takes these documents in one batch, and skips what is missing.
async fn take(writer: &mut Writer, lines: &[String]) {
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    let events: Vec<FeedEvent> = mutations(&lines).into_iter().map(FeedEvent::Mutation).collect();
    writer.process(events.into()).await.unwrap();
    writer.finish().await.unwrap();
}

fn lines(sequences: impl Iterator<Item = u64>) -> Vec<String> {
    sequences.map(|n| format!("{n} d{n} +A")).collect()
}

/// A cache in which every third sequence of 100 is missing, and the key of the list.
async fn cache() -> (Arc<dyn CacheStore>, Writer, CacheKey) {
    let store: Arc<dyn CacheStore> = Arc::new(MemoryStore::new());
    let mut writer = writer(&store).await;
    for part in 0..10 {
        take(&mut writer, &lines((part * 10 + 1..=part * 10 + 10).filter(|n| n % 3 > 0))).await;
    }
    // Until the last record is relative to a list.
    for n in 101..110 {
        take(&mut writer, &lines(std::iter::once(n))).await;
        if let Some(base) = &last_record(&store).await.base {
            return (store, writer, MissingList::key(base.list));
        }
    }
    panic!("no record is relative to a list");
}

async fn last_record(store: &Arc<dyn CacheStore>) -> BatchRecord {
    let clock = store.get(&CacheKey::Clock).await.unwrap().unwrap();
    let batch = PublishedClock::from_bytes(&clock.value).unwrap().batch;
    (*store.record(batch, RING).await.unwrap().unwrap()).clone()
}

async fn keys(store: &Arc<dyn CacheStore>) -> Vec<String> {
    let reader = ReaderNode::open(store.clone(), ReaderConfig::default()).await.unwrap();
    let options = ChangesOptions::new().delivery(Delivery::Eager);
    let answer = reader.changes(&[Channel::new("A").unwrap()], &options).await.unwrap().answer();
    answer.rows.iter().map(|row| row.entry.key().to_owned()).collect()
}

#[tokio::test]
async fn a_record_has_only_what_has_changed_and_the_next_term_knows_the_rest() {
    let (store, mut former, key) = cache().await;
    let record = last_record(&store).await;
    assert!(record.gaps.len() < 5, "{record:?}");
    let list = MissingList::from_bytes(&store.get(&key).await.unwrap().unwrap().value).unwrap();
    let missing = record.missing(Some(&list)).unwrap();
    assert!(missing.gaps.len() > 30, "{missing:?}");
    // One comes.
    let before = keys(&store).await;
    take(&mut former, &lines(std::iter::once(51))).await;
    let mut then = before.clone();
    then.push("d51".to_owned());
    assert_eq!(sorted(keys(&store).await), sorted(then.clone()));
    // The next term takes another one, and knows which came before.
    let mut next = writer(&store).await;
    let clock = next.clock().clone();
    take(&mut next, &lines([51, 54].into_iter())).await;
    assert_eq!((next.stats().late, next.stats().duplicates, next.clock().gaps), (1, 1, clock.gaps - 1));
    then.push("d54".to_owned());
    assert_eq!(sorted(keys(&store).await), sorted(then));
    assert!(verify(store.as_ref(), &VerifyOptions::default()).await.unwrap().is_clean());
}

fn sorted(mut keys: Vec<String>) -> Vec<String> {
    keys.sort();
    keys
}

#[tokio::test]
async fn a_list_that_is_broken_or_gone_is_named_and_nothing_that_comes_is_lost() {
    for is_gone in [false, true] {
        let (store, former, key) = cache().await;
        drop(former);
        let before = keys(&store).await;
        store.remove(&key, None).await.unwrap();
        if !is_gone {
            store.insert(&key, "no list".into(), Expiry::Never).await.unwrap();
            let refused = ReaderNode::open(store.clone(), ReaderConfig::default()).await.unwrap_err();
            assert_eq!((refused.kind(), refused.context("key")), (ErrorKind::Corrupt, Some(key.to_string().as_str())));
            let refused = Writer::alone(store.clone(), Arc::new(Notation), "list", config()).await.unwrap_err();
            assert!(refused.to_string().contains("verify --repair"), "{refused}");
        }
        let report = verify(store.as_ref(), &VerifyOptions::default()).await.unwrap();
        let problem = if is_gone { Problem::Missing } else { Problem::Unreadable };
        let findings: Vec<_> = report.findings.iter().map(|finding| (finding.problem, finding.key.clone())).collect();
        assert_eq!(findings, [(problem, key)], "{:#?}", report.findings);
        repair(store.as_ref(), &RepairOptions::default()).await.unwrap();
        let mut next = writer(&store).await;
        take(&mut next, &lines([48, 51].into_iter())).await;
        let mut then = before;
        then.extend(["d48".to_owned(), "d51".to_owned()]);
        assert_eq!(sorted(keys(&store).await), sorted(then), "gone: {is_gone}");
        assert!(verify(store.as_ref(), &VerifyOptions::default()).await.unwrap().is_clean());
    }
}
