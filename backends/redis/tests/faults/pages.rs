//! Pages of sequence documents that were appended to twice, by two, or by something else.

use std::sync::Arc;

use sluicegate_core::batch::{ListedBlocks, WriteBatch};
use sluicegate_core::block::codec_named;
use sluicegate_core::store::Expiry;
use sluicegate_core::{CacheKey, CacheStore, ChangeEntry, EntryFlags, Epoch, Error, ErrorKind, Sequence};
use sluicegate_test_servers::RedisServer;

use crate::support::{block, open};

/// One batch of the entries of these sequences, all of `document`.
pub(crate) fn batch(document: &str, sequences: &[u64]) -> WriteBatch {
    let entry = |n: &u64| Arc::new(ChangeEntry::new(Sequence(*n), document, "1-a", EntryFlags::default()).unwrap());
    WriteBatch {
        epoch: Epoch::default(),
        codec: codec_named("log", 64).unwrap(),
        entries: sequences.iter().map(entry).collect(),
        marks: Vec::new(),
        stable: Sequence::ZERO,
        listed: Arc::new(ListedBlocks::default()),
    }
}

/// The key of the page of sequences 8 to 15, and its length.
fn page(server: &RedisServer) -> (String, usize) {
    let keys = block(|| server.cli(&["--scan"]));
    let key = keys.lines().find(|key| key.ends_with(":_seq:[1]")).expect("a page").to_owned();
    let length = block(|| server.cli(&["STRLEN", &key])).trim().parse().unwrap();
    (key, length)
}

async fn document(store: &dyn CacheStore, sequence: u64) -> Result<Option<String>, Error> {
    let found = store.entries(&[Sequence(sequence)]).await?.pop().flatten();
    Ok(found.map(|entry| entry.key().to_owned()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_does_not_grow_by_commits_that_are_repeated() {
    let server = block(RedisServer::start);
    let store = open(&server.url()).await;
    store.commit(&batch("first", &[8, 9, 11])).await.unwrap();
    let (_, length) = page(&server);
    for _ in 0..3 {
        store.commit(&batch("second", &[8, 9, 11])).await.unwrap();
        // As after a restart.
        open(&server.url()).await.commit(&batch("third", &[9, 11])).await.unwrap();
        assert_eq!(page(&server).1, length);
    }
    for (sequence, expected) in [(8, Some("first")), (9, Some("first")), (10, None), (11, Some("first"))] {
        assert_eq!(document(&*store, sequence).await.unwrap().as_deref(), expected, "{sequence}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_writers_append_to_one_page_and_the_first_of_each_document_stays() {
    let server = block(RedisServer::start);
    let (one, other) = (open(&server.url()).await, open(&server.url()).await);
    one.commit(&batch("one", &[8, 10])).await.unwrap();
    other.commit(&batch("other", &[9, 10, 11])).await.unwrap();
    one.commit(&batch("one", &[11, 12])).await.unwrap();
    for (sequence, expected) in [(8, "one"), (9, "other"), (10, "one"), (11, "other"), (12, "one")] {
        assert_eq!(document(&*one, sequence).await.unwrap().as_deref(), Some(expected), "{sequence}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_record_is_named_until_it_is_removed_and_nothing_before_it_is_lost() {
    let server = block(RedisServer::start);
    let store = open(&server.url()).await;
    store.commit(&batch("d", &[8, 9])).await.unwrap();
    let (key, length) = page(&server);
    block(|| server.cli(&["APPEND", &key, "garbage that is no record"]));
    let named = |error: Error, sequence: u64| {
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error:?}");
        assert!(error.to_string().contains(&CacheKey::Sequence(Sequence(sequence)).to_string()), "{error}");
    };
    for sequence in [8, 9] {
        assert_eq!(document(&*store, sequence).await.unwrap().as_deref(), Some("d"));
    }
    named(document(&*store, 10).await.unwrap_err(), 10);
    named(store.commit(&batch("d", &[10])).await.unwrap_err(), 10);
    let ten = CacheKey::Sequence(Sequence(10));
    named(store.insert(&ten, "{}".into(), Expiry::Never).await.unwrap_err(), 10);
    store.remove(&ten, None).await.unwrap();
    assert_eq!(page(&server).1, length);
    store.commit(&batch("d", &[10])).await.unwrap();
    for sequence in [8, 9, 10] {
        assert_eq!(document(&*store, sequence).await.unwrap().as_deref(), Some("d"));
    }
}
