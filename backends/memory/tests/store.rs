//! What the memory store does beyond what every store does.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use sluicegate_core::batch::{BatchRecord, Checkpoint, LatePage, Publication};
use sluicegate_core::block::TwoBit;
use sluicegate_core::commit::take_over;
use sluicegate_core::meta::Meta;
use sluicegate_core::store::Expiry;
use sluicegate_core::{CacheKey, CacheStore, Epoch, ErrorKind, PublishedClock, Registry};
use sluicegate_memory::MemoryStore;

#[tokio::test]
async fn a_name_is_one_store_as_long_as_somebody_holds_it() {
    let (first, second, other) = (MemoryStore::named("one"), MemoryStore::named("one"), MemoryStore::named("two"));
    first.insert(&CacheKey::Writer, "x".into(), Expiry::Never).await.unwrap();
    drop(first);
    assert!(second.get(&CacheKey::Writer).await.unwrap().is_some());
    assert!(other.get(&CacheKey::Writer).await.unwrap().is_none());
    drop(second);
    assert!(MemoryStore::named("one").get(&CacheKey::Writer).await.unwrap().is_none());
}

#[tokio::test]
async fn urls_open_fresh_and_named_stores() {
    let registry = Registry::discover().unwrap();
    let named = registry.open_store("memory:by-url").await.unwrap();
    named.insert(&CacheKey::Writer, "x".into(), Expiry::Never).await.unwrap();
    for (url, there) in [("memory:by-url", true), ("memory://by-url", true), ("memory:", false)] {
        let store = registry.open_store(url).await.unwrap();
        assert_eq!(store.get(&CacheKey::Writer).await.unwrap().is_some(), there, "{url}");
    }
    let error = registry.open_store("memory:?size=7").await.unwrap_err();
    assert!(error.kind() == ErrorKind::ConfigInvalid && error.to_string().contains("size"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn what_expires_goes_on_time() {
    let store = MemoryStore::new();
    store.insert(&CacheKey::Writer, "x".into(), Expiry::After(Duration::from_secs(60))).await.unwrap();
    store.insert(&CacheKey::Meta, "x".into(), Expiry::After(Duration::MAX)).await.unwrap();
    tokio::time::advance(Duration::from_secs(59)).await;
    assert!(store.get(&CacheKey::Writer).await.unwrap().is_some());
    tokio::time::advance(Duration::from_secs(1)).await;
    assert!(store.get(&CacheKey::Writer).await.unwrap().is_none());
    assert!(store.get(&CacheKey::Meta).await.unwrap().is_some());
}

#[tokio::test]
async fn a_refused_publication_writes_nothing_and_wakes_nobody() {
    let store = MemoryStore::new();
    let (mine, later) = (Epoch { counter: 1, writer: 1 }, Epoch { counter: 2, writer: 2 });
    let last = take_over(&store, mine, "feed", &Meta::new(&TwoBit::default(), 8, 0)).await.unwrap().clock;
    let checkpoint = |epoch| Checkpoint { batch: 1, late: 1, ..Checkpoint::beginning(epoch) };
    let key = CacheKey::Checkpoint("feed".to_owned());
    store.remove(&key, None).await.unwrap();
    store.insert(&key, checkpoint(later).to_bytes(), Expiry::Never).await.unwrap();
    let record = BatchRecord { late: vec![(1, 5.into()).into()], ..BatchRecord::new(1, mine) };
    let publication = Publication {
        pointers: Vec::new(),
        record: Arc::new(record),
        ring: 8,
        checkpoint: Some(("feed".to_owned(), checkpoint(mine))),
        clock: PublishedClock { late: 1, batch: 1, ..last.value.clone() },
    };
    let mut wakes = store.wakes().unwrap();
    assert_eq!(store.publish(&publication, &last).await.unwrap_err().kind(), ErrorKind::Fenced);
    for key in [CacheKey::Batch(1), CacheKey::Late(LatePage::of(1))] {
        assert!(store.get(&key).await.unwrap().is_none(), "{key}");
    }
    assert!(futures::poll!(wakes.next()).is_pending());
    drop(store);
    assert_eq!(wakes.next().await, None, "wakes end with the store");
}

#[tokio::test]
async fn what_is_removed_no_longer_counts_as_used() {
    let store = MemoryStore::new();
    let used = async || store.bytes_used().await.unwrap().unwrap();
    let empty = used().await;
    let keys = [CacheKey::Sequence(5.into()), CacheKey::Document("d".into()), CacheKey::Checkpoint("feed".to_owned())];
    for key in &keys {
        let before = used().await;
        store.insert(key, vec![b'x'; 100_000].into(), Expiry::Never).await.unwrap();
        assert!((100_000..110_000).contains(&(used().await - before)), "{key}");
    }
    for key in &keys {
        store.remove(key, None).await.unwrap();
    }
    assert!(used().await < empty + 10_000, "of {empty} bytes {} are left", used().await);
}
