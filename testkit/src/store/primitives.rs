//! The six primitives.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::join_all;
use sluicegate_core::commit::update;
use sluicegate_core::store::{Expiry, Version};
use sluicegate_core::{BlockIndex, CacheKey, CacheStore, CollectionId, DocumentId, ErrorKind, Sequence};

use super::{NAMED, Store, set, some_keys};
use crate::expect::{Expect as _, refused};
use crate::sample::channel;

/// How large a value the suite writes at most, whatever the store takes.
const LARGEST_TRIED: usize = 32 << 20;

async fn insert(store: &dyn CacheStore, key: &CacheKey, value: impl Into<Bytes>) -> Version {
    store.insert(key, value.into(), Expiry::Never).await.must("insert")
}

async fn value(store: &dyn CacheStore, key: &CacheKey) -> Option<Bytes> {
    store.get(key).await.must("read").map(|document| document.value)
}

/// In a fresh store, no key holds anything.
pub async fn a_missing_document_reads_as_none(store: Store) {
    for key in some_keys() {
        assert_eq!(store.get(&key).await.must("read"), None, "{key}");
    }
}

/// Each kind of key holds a value of its own.
pub async fn an_inserted_document_reads_back(store: Store) {
    for key in some_keys() {
        insert(&*store, &key, format!("value of {key}")).await;
    }
    for key in some_keys() {
        assert_eq!(value(&*store, &key).await.must("be there"), format!("value of {key}"));
    }
}

/// `insert` and `replace` return the version that `get` finds.
pub async fn a_write_returns_the_version_that_a_read_finds(store: Store) {
    for key in some_keys() {
        let inserted = insert(&*store, &key, "one").await;
        assert_eq!(store.get(&key).await.must("read").must("be there").version, inserted, "{key}");
        let replaced = store.replace(&key, "two".into(), inserted, Expiry::Never).await.must("replace");
        assert_eq!(store.get(&key).await.must("read").must("be there").version, replaced, "{key}");
    }
}

/// `insert` never writes over a document.
pub async fn an_insert_over_a_document_is_refused(store: Store) {
    for key in some_keys() {
        insert(&*store, &key, "first").await;
        let before = store.get(&key).await.must("read");
        refused(store.insert(&key, "second".into(), Expiry::Never).await, ErrorKind::AlreadyExists, "a second insert");
        assert_eq!(store.get(&key).await.must("read"), before, "{key} must stay as it was");
    }
}

/// `replace` writes over the version it was given and no other.
pub async fn a_replace_needs_the_current_version(store: Store) {
    for key in some_keys() {
        let first = insert(&*store, &key, "1").await;
        let second = store.replace(&key, "2".into(), first, Expiry::Never).await.must("replace");
        refused(store.replace(&key, "3".into(), first, Expiry::Never).await, ErrorKind::Conflict, "a stale replace");
        assert_eq!(value(&*store, &key).await.must("be there"), "2");
        store.replace(&key, "4".into(), second, Expiry::Never).await.must("replace again");
        assert_eq!(value(&*store, &key).await.must("be there"), "4");
    }
}

/// `replace` makes no document.
pub async fn a_replace_of_a_missing_document_is_refused(store: Store) {
    let version = insert(&*store, &CacheKey::Writer, "somewhere else").await;
    for key in some_keys().into_iter().filter(|key| *key != CacheKey::Writer) {
        refused(store.replace(&key, "x".into(), version, Expiry::Never).await, ErrorKind::Conflict, "a replace of nothing");
        assert_eq!(value(&*store, &key).await, None);
    }
}

/// Also one that writes the same bytes.
pub async fn every_write_makes_a_new_version(store: Store) {
    let mut version = insert(&*store, &CacheKey::Writer, "same").await;
    let mut seen = vec![version];
    for _ in 0..50 {
        version = store.replace(&CacheKey::Writer, "same".into(), version, Expiry::Never).await.must("replace");
        assert!(!seen.contains(&version), "{version:?} came again");
        seen.push(version);
    }
}

/// Removed is as if never written; removing what is not there is no error.
pub async fn a_removed_document_is_gone(store: Store) {
    for key in some_keys() {
        store.remove(&key, None).await.must("remove what is not there");
        let version = insert(&*store, &key, "x").await;
        store.remove(&key, None).await.must("remove");
        assert_eq!(value(&*store, &key).await, None, "{key}");
        refused(store.replace(&key, "y".into(), version, Expiry::Never).await, ErrorKind::Conflict, "a replace of what is gone");
        insert(&*store, &key, "again").await;
    }
}

/// `remove` with a version takes that one away and no other.
pub async fn a_removal_with_a_version_needs_the_current_one(store: Store) {
    for key in some_keys() {
        let first = insert(&*store, &key, "1").await;
        let second = store.replace(&key, "2".into(), first, Expiry::Never).await.must("replace");
        refused(store.remove(&key, Some(first)).await, ErrorKind::Conflict, "a stale removal");
        assert_eq!(value(&*store, &key).await.must("be there"), "2");
        store.remove(&key, Some(second)).await.must("remove");
        refused(store.remove(&key, Some(second)).await, ErrorKind::Conflict, "a removal of what is gone");
    }
}

/// So that whoever read a document before its removal cannot write over its successor.
pub async fn versions_never_come_again_over_removals(store: Store) {
    let keys = [CacheKey::Writer, CacheKey::Sequence(Sequence(1)), CacheKey::Directory(channel("a"))];
    for key in keys {
        let mut seen: Vec<Version> = Vec::new();
        for round in 0..30 {
            let inserted = insert(&*store, &key, "same").await;
            for old in &seen {
                refused(store.replace(&key, "no".into(), *old, Expiry::Never).await, ErrorKind::Conflict, "an old version");
            }
            let replaced = store.replace(&key, "same".into(), inserted, Expiry::Never).await.must("replace");
            assert!(!seen.contains(&inserted) && !seen.contains(&replaced), "{key}: a version came again in round {round}");
            seen.extend([inserted, replaced]);
            store.remove(&key, (round % 2 == 0).then_some(replaced)).await.must("remove");
        }
    }
}

/// Read, add one, compare-and-swap: from many tasks.
pub async fn concurrent_replaces_lose_nothing(store: Store) {
    const TASKS: u64 = 8;
    const ROUNDS: u64 = 25;
    let tasks = (0..TASKS).map(|_| {
        let store = store.clone();
        tokio::spawn(async move {
            for _ in 0..ROUNDS {
                let added = update(&*store, &CacheKey::Writer, |stored| {
                    let now: u64 = stored.map_or(0, |bytes| String::from_utf8_lossy(bytes).parse().unwrap_or(0));
                    Ok(Some(Bytes::from((now + 1).to_string())))
                });
                added.await.must("add one");
            }
        })
    });
    for task in join_all(tasks).await {
        assert!(task.is_ok(), "a task failed: {task:?}");
    }
    assert_eq!(value(&*store, &CacheKey::Writer).await.must("be there"), (TASKS * ROUNDS).to_string());
}

/// Of many inserts of one key, one succeeds, and its value is the one that stays.
pub async fn concurrent_inserts_have_one_winner(store: Store) {
    for round in 0..20 {
        let key = CacheKey::Sequence(Sequence(round));
        let tasks = (0..8).map(|n| {
            let (store, key) = (store.clone(), key.clone());
            tokio::spawn(async move { store.insert(&key, format!("{n}").into(), Expiry::Never).await })
        });
        let mut winners = Vec::new();
        for (n, result) in join_all(tasks).await.into_iter().enumerate() {
            match result {
                Ok(Ok(_)) => winners.push(n.to_string()),
                Ok(Err(e)) => assert_eq!(e.kind(), ErrorKind::AlreadyExists, "{e:?}"),
                Err(e) => panic!("{e}"),
            }
        }
        assert_eq!(winners.len(), 1, "winners of {key}: {winners:?}");
        assert_eq!(value(&*store, &key).await.must("be there"), winners[0]);
    }
}

/// Of many removals of one version, one succeeds.
pub async fn concurrent_removals_have_one_winner(store: Store) {
    for _ in 0..20 {
        let version = insert(&*store, &CacheKey::Writer, "x").await;
        let tasks = (0..8).map(|_| {
            let store = store.clone();
            tokio::spawn(async move { store.remove(&CacheKey::Writer, Some(version)).await.is_ok() })
        });
        let won = join_all(tasks).await.into_iter().filter(|result| matches!(result, Ok(true))).count();
        assert_eq!(won, 1);
    }
}

/// Reading by 0 included.
pub async fn a_counter_begins_at_nothing_and_grows(store: Store) {
    let key = CacheKey::Counter(channel("a"));
    assert_eq!(store.increment(&key, 0).await.must("read a counter"), 0);
    assert_eq!(store.increment(&key, 1).await.must("count"), 1);
    assert_eq!(store.increment(&key, 41).await.must("count"), 42);
    assert_eq!(store.increment(&key, 0).await.must("read a counter"), 42);
    assert_eq!(store.increment(&key, 1 << 53).await.must("count far"), (1 << 53) + 42);
    assert_eq!(store.increment(&key, 1).await.must("count on"), (1 << 53) + 43);
}

/// Many counters are read at once through `get_many`.
pub async fn a_counter_reads_as_decimal_text(store: Store) {
    let key = CacheKey::Counter(channel("a"));
    assert_eq!(value(&*store, &key).await, None);
    store.increment(&key, 12_345).await.must("count");
    assert_eq!(value(&*store, &key).await.must("be there"), "12345");
    let before = store.get(&key).await.must("read");
    store.increment(&key, 1).await.must("count");
    let keys = [key, CacheKey::Counter(channel("b"))];
    let read = store.get_many(&keys).await.must("read both");
    assert_eq!(read[0].as_ref().map(|d| &d.value[..]), Some(&b"12346"[..]));
    assert_ne!(read[0], before);
    assert_eq!(read[1], None);
}

/// And different from the channel's other documents.
pub async fn counters_of_different_channels_are_different(store: Store) {
    for (by, name) in (1..).zip(["a", "b", "a:b", "*"]) {
        let key = CacheKey::Counter(channel(name));
        assert_eq!(store.increment(&key, by).await.must("count"), by);
        assert_eq!(value(&*store, &CacheKey::Directory(channel(name))).await, None);
        assert_eq!(value(&*store, &CacheKey::Block(channel(name), BlockIndex(0))).await, None);
    }
}

/// Though the channels have the same name.
pub async fn counters_of_different_collections_are_different(store: Store) {
    for (by, collection) in (1..).zip([CollectionId::DEFAULT].into_iter().chain(NAMED)) {
        let key = CacheKey::Counter(channel("a").in_collection(collection));
        assert_eq!(store.increment(&key, by).await.must("count"), by, "{key}");
        assert_eq!(value(&*store, &key).await.must("be there"), by.to_string(), "{key}");
    }
}

/// And each sees a value of its own.
pub async fn concurrent_increments_lose_nothing(store: Store) {
    let tasks = (0..8).map(|_| {
        let store = store.clone();
        tokio::spawn(async move {
            let key = CacheKey::Counter(channel("a"));
            let mut seen = Vec::new();
            for _ in 0..50 {
                seen.push(store.increment(&key, 1).await.must("count"));
            }
            seen
        })
    });
    let seen: Vec<u64> = join_all(tasks).await.into_iter().flat_map(|seen| seen.unwrap_or_default()).collect();
    assert_eq!(set(seen), set(1..=400));
}

/// Not text, not JSON, and possibly none at all.
pub async fn values_are_any_bytes(store: Store) {
    let all: Vec<u8> = (0..=255).collect();
    let values = [Vec::new(), vec![0], b"\r\n\0".to_vec(), all.repeat(5), "dö\u{1F600}".as_bytes().to_vec(), vec![0xff; 3]];
    for key in some_keys() {
        for bytes in &values {
            let version = insert(&*store, &key, bytes.clone()).await;
            assert_eq!(value(&*store, &key).await.must("be there"), *bytes, "{key}");
            store.replace(&key, "x".into(), version, Expiry::Never).await.must("replace");
            store.remove(&key, None).await.must("remove");
        }
    }
}

/// Each size up to the declared one (or 32 MiB, if the store takes more).
pub async fn values_up_to_the_limit_are_kept(store: Store) {
    let limit = store.info().capabilities.max_value.min(LARGEST_TRIED);
    for size in [1, 1000, 10_000, 100_000, 1_000_000, limit - 1, limit].into_iter().filter(|size| *size <= limit) {
        let bytes: Bytes = (0..size).map(|n| (n % 251) as u8).collect();
        insert(&*store, &CacheKey::Writer, bytes.clone()).await;
        let read = value(&*store, &CacheKey::Writer).await.must("be there");
        assert!(read == bytes, "{size} bytes came back as {} others", read.len());
        store.remove(&CacheKey::Writer, None).await.must("remove");
    }
}

/// And leaves what was there. (Not tried where the limit is over 32 MiB.)
pub async fn a_value_over_the_limit_is_refused(store: Store) {
    let limit = store.info().capabilities.max_value;
    if limit > LARGEST_TRIED {
        return;
    }
    let over = Bytes::from(vec![b'x'; limit + 1]);
    refused(store.insert(&CacheKey::Writer, over.clone(), Expiry::Never).await, ErrorKind::TooLarge, "a large insert");
    assert_eq!(value(&*store, &CacheKey::Writer).await, None);
    let version = insert(&*store, &CacheKey::Writer, "small").await;
    let result = store.replace(&CacheKey::Writer, over, version, Expiry::Never).await;
    refused(result, ErrorKind::TooLarge, "a large replace");
    assert_eq!(value(&*store, &CacheKey::Writer).await.must("be there"), "small");
}

async fn each_key_its_own_value(store: &Store, keys: Vec<CacheKey>) {
    for (n, key) in keys.iter().enumerate() {
        insert(&**store, key, n.to_string()).await;
    }
    let read = store.get_many(&keys).await.must("read all");
    for (n, (key, document)) in keys.iter().zip(read).enumerate() {
        assert_eq!(document.must("be there").value, n.to_string(), "{key:?} shares a document");
        assert_eq!(value(&**store, key).await.must("be there"), n.to_string(), "{key:?} shares a document");
    }
}

/// Whatever is in a name, it cannot be mistaken for another key.
pub async fn odd_channel_names_do_not_collide(store: Store) {
    let names = [
        "a",
        "A",
        "a ",
        " a",
        "a:b",
        "a%3Ab",
        "a%3ab",
        "a]",
        "a]:block[0",
        "[a]",
        "a:block[0]",
        "_seq",
        "_seq:[0]",
        "_meta",
        "_count",
        "_dir:[a]",
        "_stableSeq",
        "*",
        "**",
        "!",
        "%",
        "%25",
        "#",
        "{a}",
        "{}",
        "a\0",
        "a\nb",
        "a\r\nb",
        "a\tb",
        "\"",
        "\\",
        "'",
        "ü",
        "u\u{308}",
        "\u{1F600}",
        "日本語",
        "\u{202e}a",
        "a/b",
        "a?b=c",
        "~",
        "$1",
        "0",
        "00",
        "-1",
    ];
    let mut keys = Vec::new();
    for name in names.map(channel) {
        keys.extend([0, 1].map(|n| CacheKey::Block(name.clone(), BlockIndex(n))));
        keys.push(CacheKey::Directory(name.clone()));
        keys.push(CacheKey::Checkpoint(name.name().to_owned()));
    }
    keys.extend(
        (0..2).flat_map(|n| [CacheKey::Sequence(Sequence(n)), CacheKey::Batch(n), CacheKey::Late(n), CacheKey::Missing(n)]),
    );
    keys.extend([CacheKey::Meta, CacheKey::Clock, CacheKey::Writer, CacheKey::Intent]);
    each_key_its_own_value(&store, keys).await;
    for (n, name) in (1..).zip(names) {
        assert_eq!(store.increment(&CacheKey::Counter(channel(name)), n).await.must("count"), n, "{name:?} shares a counter");
    }
}

/// Names may be longer than keys.
pub async fn very_long_channel_names_do_not_collide(store: Store) {
    let long = |length: usize, end: &str| channel(&format!("{}{end}", "x".repeat(length - end.len())));
    let lengths = [150, 160, 170, 200, 240, 250, 251, 300, 1000, 4096];
    let mut keys = Vec::new();
    for name in lengths.into_iter().flat_map(|length| ["1", "2", ":"].map(|end| long(length, end))) {
        keys.extend([CacheKey::Block(name.clone(), BlockIndex(u64::MAX)), CacheKey::Directory(name)]);
    }
    each_key_its_own_value(&store, keys).await;
}

/// Nor with a name of the default collection that has a number in it.
pub async fn names_of_different_collections_do_not_collide(store: Store) {
    let default = ["a", "8:a", "8/a", "8", ":a", "9:a"].map(|name| (CollectionId::DEFAULT, name));
    let named = NAMED.map(|collection| ["a", "8:a", "9:a", ":a", "*"].map(|name| (collection, name)));
    let large = [80, 89, u32::MAX].map(|number| (CollectionId(number), "a"));
    let mut keys = Vec::new();
    for (collection, name) in default.into_iter().chain(named.into_iter().flatten()).chain(large) {
        let channel = channel(name).in_collection(collection);
        keys.extend([0, 1].map(|n| CacheKey::Block(channel.clone(), BlockIndex(n))));
        keys.push(CacheKey::Directory(channel));
        keys.push(CacheKey::Document(DocumentId::new(collection, name)));
    }
    each_key_its_own_value(&store, keys).await;
}

/// Also those beyond what a float or a signed integer holds.
pub async fn the_largest_numbers_are_ordinary_keys(store: Store) {
    let numbers = [0, 1, u64::from(u16::MAX) + 1, 1 << 32, (1 << 53) + 1, i64::MAX as u64 + 1, u64::MAX - 1, u64::MAX];
    let keys = numbers.into_iter().flat_map(|n| {
        [
            CacheKey::Sequence(Sequence(n)),
            CacheKey::Batch(n),
            CacheKey::Late(n),
            CacheKey::Missing(n),
            CacheKey::Block(channel("a"), BlockIndex(n)),
            CacheKey::Block(channel("*"), BlockIndex(n)),
        ]
    });
    each_key_its_own_value(&store, keys.collect()).await;
}

/// Bytes that are not what belongs at the key, or the same in another notation, stay as they were written.
pub async fn garbage_reads_back_byte_for_byte(store: Store) {
    let entry = crate::sample::entry(7, "doc", &["a"]).to_bytes();
    let spaced = [b" ", &entry[..], b"\n"].concat();
    let values = [&b"\0garbage"[..], b"{}", b"{\"seq\":", b"12", b"012", b"null", &entry, &spaced];
    for key in some_keys() {
        for bytes in values {
            insert(&*store, &key, bytes.to_vec()).await;
            assert_eq!(value(&*store, &key).await.must("be there"), bytes, "{key}");
            store.remove(&key, None).await.must("remove");
        }
    }
}

async fn gone(store: &Store, key: &CacheKey) -> bool {
    value(&**store, key).await.is_none()
}

/// A store that declares expiry lets a document go within ten times its time; one that does not keeps it.
pub async fn what_expires_is_kept_for_its_time_and_then_goes_if_declared(store: Store) {
    const TIME: Duration = Duration::from_secs(1);
    let start = Instant::now();
    for key in some_keys() {
        store.insert(&key, "short".into(), Expiry::After(TIME)).await.must("insert");
        let there = !gone(&store, &key).await;
        assert!(there || start.elapsed() >= TIME, "{key} went at once");
    }
    if !store.info().capabilities.expiry {
        tokio::time::sleep(TIME + TIME / 2).await;
        for key in some_keys() {
            assert!(!gone(&store, &key).await, "{key} went, and expiry is not declared");
        }
        return;
    }
    for key in some_keys() {
        while !gone(&store, &key).await {
            assert!(start.elapsed() < 10 * TIME, "{key} does not expire");
            tokio::time::sleep(TIME / 20).await;
        }
        insert(&*store, &key, "free again").await;
    }
}

/// What was to expire, and is then written with `Expiry::Never`, stays.
pub async fn a_write_without_expiry_takes_the_expiry_away(store: Store) {
    const TIME: Duration = Duration::from_secs(1);
    let (stays, goes) = (CacheKey::Writer, CacheKey::Checkpoint("f".to_owned()));
    let version = store.insert(&stays, "1".into(), Expiry::After(TIME)).await.must("insert");
    store.replace(&stays, "2".into(), version, Expiry::Never).await.must("replace in time");
    store.insert(&goes, "x".into(), Expiry::After(TIME)).await.must("insert");
    let start = Instant::now();
    while store.info().capabilities.expiry && !gone(&store, &goes).await && start.elapsed() < 10 * TIME {
        tokio::time::sleep(TIME / 20).await;
    }
    assert_eq!(value(&*store, &stays).await.must("be there"), "2");
}

/// Within the time of a case.
pub async fn a_ping_answers(store: Store) {
    let took = store.ping().await.must("answer");
    assert!(took < crate::case::PATIENCE, "{took:?}");
}

/// Scheme and name are there, and the limit is one that a cache can live with.
pub async fn the_description_is_filled_in(store: Store) {
    let info = store.info();
    let valid = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "+-.".contains(c);
    assert!(!info.scheme.is_empty() && info.scheme.chars().all(valid), "scheme {:?}", info.scheme);
    assert!(!info.name.is_empty());
    assert!(info.capabilities.max_value >= 1 << 20, "a batch record may take a megabyte");
}
