//! Reading and writing many documents, entries and records.

use std::sync::Arc;

use futures::future::join_all;
use sluicegate_core::batch::BatchRecord;
use sluicegate_core::store::{Expiry, Version, Versioned, Write};
use sluicegate_core::{CacheKey, ChangeEntry, Epoch, ErrorKind, Sequence};

use super::{Store, small, some_keys};
use crate::expect::{Expect as _, refused, refused_naming};
use crate::sample::{batch, channel, entry};

/// With repetitions, with keys that hold nothing, and with the versions that `get` tells.
pub async fn many_documents_come_in_the_order_asked(store: Store) {
    let keys = some_keys();
    for key in keys.iter().step_by(2) {
        store.insert(key, format!("{key}").into(), Expiry::Never).await.must("insert");
    }
    store.increment(&CacheKey::Counter(channel("a")), 3).await.must("count");
    let mut asked: Vec<CacheKey> = keys.iter().rev().chain(&keys).chain(&keys[3..5]).cloned().collect();
    asked.push(CacheKey::Counter(channel("a")));
    let read = store.get_many(&asked).await.must("read");
    assert_eq!(read.len(), asked.len());
    for (key, found) in asked.iter().zip(read) {
        assert_eq!(found, store.get(key).await.must("read"), "{key}");
    }
}

/// New documents and old ones, with the right version and with another: what becomes of one does not matter to the next.
pub async fn many_writes_are_as_single_ones(store: Store) {
    let keys: Vec<CacheKey> = (10..2010).map(|n| CacheKey::Sequence(Sequence(n))).chain(some_keys()).collect();
    let mut writes = Vec::new();
    for (n, key) in keys.iter().enumerate() {
        let stored = match n % 5 {
            0 | 4 => None,
            _ => Some(store.insert(key, format!("{key}").into(), Expiry::Never).await.must("insert")),
        };
        let expected = match n % 5 {
            0 | 1 => None,
            2 => stored,
            3 => stored.map(|Version(version)| Version(version.wrapping_add(1))),
            _ => Some(Version(7)),
        };
        writes.push(Write { key: key.clone(), expected, value: format!("{key} again").into() });
    }
    let written = store.write_many(writes).await;
    assert_eq!(written.len(), keys.len());
    for (n, (key, written)) in keys.iter().zip(written).enumerate() {
        let found = store.get(key).await.must("read");
        match n % 5 {
            0 | 2 => {
                let version = written.must("write");
                assert_eq!(found, Some(Versioned { value: format!("{key} again").into(), version }), "{key}");
            }
            rest => {
                let kind = if rest == 1 { ErrorKind::AlreadyExists } else { ErrorKind::Conflict };
                refused(written, kind, &key.to_string());
                assert_eq!(found.map(|found| found.value), (rest != 4).then(|| format!("{key}").into()), "{key}");
            }
        }
    }
    assert!(store.write_many(Vec::new()).await.is_empty());
}

/// An empty question has an empty answer.
pub async fn nothing_asked_is_nothing_read(store: Store) {
    assert!(store.get_many(&[]).await.must("read").is_empty());
    assert!(store.entries(&[]).await.must("read").is_empty());
}

/// More than any engine takes in one command.
pub async fn thousands_of_documents_in_one_read(store: Store) {
    let keys: Vec<CacheKey> = (0..5000).map(|n| CacheKey::Sequence(Sequence(n))).collect();
    let inserts = keys.iter().step_by(3).map(|key| store.insert(key, format!("{key}").into(), Expiry::Never));
    for inserted in join_all(inserts).await {
        inserted.must("insert");
    }
    let read = store.get_many(&keys).await.must("read");
    for (n, (key, found)) in keys.iter().zip(read).enumerate() {
        assert_eq!(found.map(|d| d.value), (n % 3 == 0).then(|| format!("{key}").into()), "{key}");
    }
}

/// With repetitions, and with sequences that are not there; whoever wrote them.
pub async fn entries_come_in_the_order_asked(store: Store) {
    let made: Vec<ChangeEntry> = (1..=2000).filter(|n| n % 7 != 0).map(|n| entry(n, &format!("d{n}"), &["a", "-b"])).collect();
    store.commit(&batch(&small(), made.iter().cloned())).await.must("commit");
    let mut asked: Vec<Sequence> = (0..2100).rev().map(Sequence).collect();
    asked.extend([5, 5, 6, u64::MAX].map(Sequence));
    let read = store.entries(&asked).await.must("read");
    assert_eq!(read.len(), asked.len());
    for (sequence, found) in asked.iter().zip(read) {
        let expected = made.iter().find(|entry| entry.sequence() == *sequence);
        assert_eq!(found.as_deref(), expected, "{sequence}");
    }
}

/// The same entry, whether it was committed or inserted.
pub async fn an_entry_written_as_bytes_is_an_entry(store: Store) {
    let made = entry(9, "dö\"c", &["a:[b]", "-ü"]).with_supersedes([Sequence(3), Sequence(5)]);
    store.insert(&CacheKey::Sequence(Sequence(9)), made.to_bytes(), Expiry::Never).await.must("insert");
    let read = store.entries(&[Sequence(9)]).await.must("read");
    assert_eq!(read[0].as_deref(), Some(&made));
}

/// And nothing is made up for it.
pub async fn a_corrupt_sequence_document_is_named(store: Store) {
    let key = CacheKey::Sequence(Sequence(77_777));
    store.insert(&key, "{\"seq\":77777".into(), Expiry::Never).await.must("insert");
    let result = store.entries(&[Sequence(1), Sequence(77_777)]).await;
    refused_naming(result, ErrorKind::Corrupt, "77777", "reading a corrupt sequence document");
    assert_eq!(store.entries(&[Sequence(1)]).await.must("read the others"), [None]);
}

fn record(number: u64) -> BatchRecord {
    let entries = [Arc::new(entry(number, "doc", &["a"]))].into_iter().collect();
    let epoch = Epoch { counter: 1, writer: 7 };
    BatchRecord { entries, ..BatchRecord::new(number, epoch) }
}

/// A slot of the ring that holds another record holds none.
pub async fn a_record_is_read_only_by_its_own_number(store: Store) {
    assert_eq!(store.record(5, 8).await.must("read"), None);
    store.insert(&CacheKey::Batch(5), record(13).to_bytes(), Expiry::Never).await.must("insert");
    assert_eq!(store.record(5, 8).await.must("read"), None);
    assert_eq!(store.record(21, 8).await.must("read"), None);
    assert_eq!(store.record(13, 8).await.must("read").as_deref(), Some(&record(13)));
    assert_eq!(store.record(13, 0).await.must("read with a ring of nothing"), None);
}

/// Rather than taken for missing.
pub async fn a_corrupt_record_is_named(store: Store) {
    let key = CacheKey::Batch(5);
    store.insert(&key, "{}".into(), Expiry::Never).await.must("insert");
    refused_naming(store.record(13, 8).await, ErrorKind::Corrupt, "_batch", "reading a corrupt record");
}
