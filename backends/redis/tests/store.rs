//! The conformance suite on a real server.

mod support;

mod single {
    sluicegate_testkit::store_conformance!(crate::support::fresh(crate::support::server().url()).await);
}

mod cluster {
    sluicegate_testkit::store_conformance!(crate::support::fresh(crate::support::cluster().url()).await);
}

/// Only what changes of a long block is sent, and a server that lost its scripts is sent the block.
#[tokio::test(flavor = "multi_thread")]
async fn a_few_changes_of_a_long_block_are_sent_as_such() {
    use sluicegate_core::store::Expiry;
    use sluicegate_core::{BlockIndex, CacheKey, CacheStore as _, Channel};

    let store = sluicegate_redis::RedisStore::connect(&support::server().url()).await.unwrap();
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

/// Commits that are under way at a time do not repeat each other's merges.
#[tokio::test(flavor = "multi_thread")]
async fn commits_at_a_time_send_what_they_send_one_after_the_other() {
    use futures::future::try_join_all;
    use sluicegate_core::batch::{Entries, WriteBatch};
    use sluicegate_core::block::Adaptive;
    use sluicegate_core::{CacheStore as _, ChangeEntry, Channel, EntryFlags, Epoch, Membership, Sequence};

    const BATCHES: u64 = 8;
    const ENTRIES: u64 = 100;

    let entry = |sequence: u64| {
        let entry = ChangeEntry::new(Sequence(sequence), &format!("doc{sequence}"), "1-a", EntryFlags::default()).unwrap();
        std::sync::Arc::new(entry.with_channel(Channel::new(&format!("c{}", sequence % 10)).unwrap(), Membership::Present))
    };
    // All are in the first block of each of eleven channels.
    let batch = |nth: u64| WriteBatch {
        epoch: Epoch { counter: 1, writer: 1 },
        codec: std::sync::Arc::new(Adaptive::default()),
        entries: Entries::from((nth * ENTRIES + 1..=(nth + 1) * ENTRIES).map(entry).collect::<Vec<_>>()),
        marks: Vec::new(),
        stable: Sequence::ZERO,
        listed: Default::default(),
    };
    // No other test may make this server forget scripts.
    let server = sluicegate_test_servers::RedisServer::start();
    let (mut sent, batches) = (Vec::new(), (0..=BATCHES).map(batch).collect::<Vec<_>>());
    for at_a_time in [1, BATCHES as usize] {
        let store = support::open(&format!("{}?namespace={}", server.url(), support::namespace())).await;
        // The server gets to know the scripts.
        store.commit(&batches[0]).await.unwrap();
        let before = store.traffic().commands;
        for some in batches[1..].chunks(at_a_time) {
            try_join_all(some.iter().map(|batch| store.commit(batch))).await.unwrap();
        }
        sent.push(store.traffic().commands - before);
    }
    let [least, sent] = sent[..] else { unreachable!() };
    assert!(sent <= least + least / 10, "{sent} commands were sent at a time, {least} one after the other");
}
