//! The conformance suite on a real server.

mod support;

mod single {
    sluicegate_testkit::store_conformance!(crate::support::fresh(crate::support::server().url()).await);
}

mod cluster {
    sluicegate_testkit::store_conformance!(crate::support::fresh(crate::support::cluster().url()).await);
}

use std::ops::RangeInclusive;
use std::sync::Arc;

use futures::future::try_join_all;
use sluicegate_core::batch::{Entries, WriteBatch};
use sluicegate_core::block::{Adaptive, BlockCodec, Log};
use sluicegate_core::{BlockIndex, CacheKey, CacheStore as _, ChangeEntry, Channel, EntryFlags, Epoch, Membership, Sequence};
use sluicegate_redis::RedisStore;
use sluicegate_test_servers::RedisServer;

/// Only what changes of a long block is sent, and a server that lost its scripts is sent the block.
#[tokio::test(flavor = "multi_thread")]
async fn a_few_changes_of_a_long_block_are_sent_as_such() {
    use sluicegate_core::store::Expiry;

    let store = RedisStore::connect(&support::server().url()).await.unwrap();
    let key = CacheKey::Block(Channel::new("a long block").unwrap(), BlockIndex(7));
    let mut bytes: Vec<u8> = (0..9_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let inserted = store.insert(&key, bytes.clone().into(), Expiry::Never).await.unwrap();
    // Nothing that was read before is remembered.
    store.replace(&key, bytes.clone().into(), inserted, Expiry::Never).await.unwrap();
    let forgets_scripts = 4_000;
    for at in (0..9_000).step_by(1_000) {
        if at == forgets_scripts {
            support::server().cli(&["SCRIPT", "FLUSH"]);
        }
        let found = store.get_many(std::slice::from_ref(&key)).await.unwrap().pop().flatten().unwrap();
        assert_eq!(found.value, bytes);
        bytes[at] ^= 1;
        bytes.insert(at + 500, 9);
        let before = store.traffic().bytes;
        let version = store.replace(&key, bytes.clone().into(), found.version, Expiry::Never).await.unwrap();
        let sent = store.traffic().bytes - before;
        // The first time the server does not know the script.
        assert!([0, forgets_scripts].contains(&at) || sent < 400, "{sent} bytes were sent to change two");
        let written = store.get(&key).await.unwrap().unwrap();
        assert_eq!((written.value, written.version), (bytes.clone().into(), version));
        // Another version is refused, and changes nothing.
        let error = store.replace(&key, vec![0; 9_000].into(), found.version, Expiry::Never).await.unwrap_err();
        assert_eq!(error.kind(), sluicegate_core::ErrorKind::Conflict);
        assert_eq!(store.get(&key).await.unwrap().unwrap().version, version);
    }
    store.remove(&key, None).await.unwrap();
}

/// Documents in ten channels, one after the other.
fn batch(codec: impl BlockCodec, sequences: RangeInclusive<u64>) -> WriteBatch {
    let entry = |sequence: u64| {
        let entry = ChangeEntry::new(Sequence(sequence), &format!("doc{sequence}"), "1-a", EntryFlags::default()).unwrap();
        Arc::new(entry.with_channel(Channel::new(&format!("c{}", sequence % 10)).unwrap(), Membership::Present))
    };
    WriteBatch {
        epoch: Epoch { counter: 1, writer: 1 },
        codec: Arc::new(codec),
        entries: Entries::from(sequences.map(entry).collect::<Vec<_>>()),
        marks: Vec::new(),
        stable: Sequence::ZERO,
        listed: Default::default(),
    }
}

/// Commits that are under way at a time do not repeat each other's changes of blocks and
/// directories.
#[tokio::test(flavor = "multi_thread")]
async fn commits_at_a_time_send_what_they_send_one_after_the_other() {
    // No other test may make this server forget scripts.
    let server = RedisServer::start();
    let sent = async |codec: &dyn Fn() -> Arc<dyn BlockCodec>, at_a_time: usize| {
        let store = support::open(&format!("{}?namespace={}", server.url(), support::namespace())).await;
        let listed = Arc::default();
        let of =
            |first: u64| WriteBatch { codec: codec(), listed: Arc::clone(&listed), ..batch(Log::default(), first..=first + 99) };
        // The server gets to know the scripts.
        store.commit(&of(0)).await.unwrap();
        let before = store.traffic().commands;
        let batches: Vec<WriteBatch> = (1..=16).map(|nth| of(100 * nth)).collect();
        for some in batches.chunks(at_a_time) {
            try_join_all(some.iter().map(|batch| store.commit(batch))).await.unwrap();
        }
        store.traffic().commands - before
    };
    // All in one block of each of eleven channels, and in a new one of each every second batch.
    let codecs: [&dyn Fn() -> Arc<dyn BlockCodec>; 2] =
        [&|| Arc::new(Adaptive::default()), &|| Arc::new(Log::with_capacity(200).unwrap())];
    for codec in codecs {
        let (least, together) = (sent(codec, 1).await, sent(codec, 8).await);
        assert!(together <= least + least / 10, "{:?}: {together} commands at a time, {least} one after the other", codec());
    }
}

async fn rows(store: &RedisStore, codec: &Log) -> Vec<u32> {
    let key = CacheKey::Block(Channel::star(), BlockIndex(0));
    let stored = store.get(&key).await.unwrap().unwrap();
    codec.decode(&stored.value).unwrap().iter().map(|(offset, _)| offset).collect()
}

/// A server may lose blocks that a store knows. Commits are under way at a time, and a client may
/// send a command twice.
#[tokio::test(flavor = "multi_thread")]
async fn a_block_that_was_removed_since_it_was_written_is_made_anew_by_all_commits_under_way() {
    let (server, codec) = (RedisServer::start(), Log::default());
    let store = support::open(&server.url()).await;
    store.commit(&batch(codec.clone(), 1..=100)).await.unwrap();
    let other = support::open(&server.url()).await;
    for round in 0..10u64 {
        other.remove(&CacheKey::Block(Channel::star(), BlockIndex(0)), None).await.unwrap();
        let first = 200 + 100 * round;
        let next = [first..=first + 19, first + 30..=first + 39, first..=first + 19].map(|of| batch(codec.clone(), of));
        try_join_all(next.iter().map(|batch| store.commit(batch))).await.unwrap();
        let (first, all) = (first as u32, rows(&store, &codec).await);
        assert_eq!(all, (first..first + 20).chain(first + 30..first + 40).collect::<Vec<_>>());
    }
}

/// Two writers that both make a block.
#[tokio::test(flavor = "multi_thread")]
async fn writers_that_make_a_block_at_a_time_have_all_their_rows_in_it() {
    let (server, codec) = (RedisServer::start(), Log::default());
    let stores = [support::open(&server.url()).await, support::open(&server.url()).await];
    for round in 0..20u64 {
        let first = round * 40_000;
        let batches = [first..=first + 9, first + 10..=first + 19].map(|of| batch(codec.clone(), of));
        try_join_all(stores.iter().zip(&batches).map(|(store, batch)| store.commit(batch))).await.unwrap();
        let key = CacheKey::Block(Channel::star(), BlockIndex(round));
        let stored = stores[0].get(&key).await.unwrap().unwrap();
        assert_eq!(codec.decode(&stored.value).unwrap().set_count(), 20, "round {round}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_block_that_has_got_long_is_encoded_anew() {
    let (server, codec) = (RedisServer::start(), Log::with_capacity(1_000).unwrap());
    let store = support::open(&server.url()).await;
    for round in 0..50 {
        // The same rows come again and again, as after a take-over.
        for first in [1, 101, 201] {
            store.commit(&batch(codec.clone(), first..=first + 99)).await.unwrap();
        }
        let stored = store.get(&CacheKey::Block(Channel::star(), BlockIndex(0))).await.unwrap().unwrap();
        assert!(stored.value.len() < 500, "{} bytes in round {round}", stored.value.len());
    }
    assert_eq!(rows(&store, &codec).await, (1..=300).collect::<Vec<_>>());
}
