//! Keys that another program wrote, and servers that throw keys away.

use std::sync::Arc;

use futures::future::try_join_all;
use sluicegate_core::batch::BlockDelta;
use sluicegate_core::block::BlockState;
use sluicegate_core::changes::ChangesOptions;
use sluicegate_core::store::Expiry;
use sluicegate_core::{BlockIndex, CacheKey, CacheStore, Channel, Error, ErrorKind, ReaderConfig, ReaderNode, Sequence};
use sluicegate_test_servers::RedisServer;

use crate::login::captured;
use crate::pages::batch;
use crate::support::load::Load;
use crate::support::{block, open};

/// The Redis keys that end so.
fn keys(server: &RedisServer, end: &str) -> Vec<String> {
    let all = block(|| server.cli(&["--scan"]));
    all.lines().filter(|key| key.ends_with(end)).map(str::to_owned).collect()
}

/// Puts a set where a document was.
fn spoil(server: &RedisServer, key: &str) {
    block(|| {
        server.cli(&["DEL", key]);
        assert_eq!(server.cli(&["SADD", key, "a"]).trim(), "1");
    });
}

fn assert_names(error: &Error, key: &CacheKey) {
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error:?}");
    assert!(error.to_string().contains(&key.to_string()), "{error}");
    assert!(!error.is_retryable(), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_of_another_type_is_named_and_other_channels_go_on() {
    let load = Load::new(80, 200).await;
    let (one, other) = (Channel::new("ch0").unwrap(), Channel::new("ch1").unwrap());
    let block_zero = CacheKey::Block(one.clone(), BlockIndex(0));
    let everything = ChangesOptions::new();
    for (end, key) in [
        (":[ch0]:block[0]", block_zero.clone()),
        (":_dir:[ch0]", CacheKey::Directory(one.clone())),
        ("_stableSeq", CacheKey::Clock),
        (":_count:[ch0]", CacheKey::Counter(one.clone())),
        (":_commits", CacheKey::Writer),
        (":_seq:[0]", CacheKey::Writer),
    ] {
        let server = block(RedisServer::start);
        let store: Arc<dyn CacheStore> = open(&server.url()).await;
        load.run(store.clone(), 1_000).await.unwrap();
        let found = keys(&server, end);
        assert_eq!(found.len(), 1, "{end}: {found:?}");
        spoil(&server, &found[0]);
        let reader = ReaderNode::open(store.clone(), ReaderConfig::default()).await;
        let writing = load.writer(store.clone(), 1_000).await.err();
        match end {
            "_stableSeq" => {
                assert_names(&reader.unwrap_err(), &key);
                assert_names(&writing.unwrap(), &key);
            }
            ":[ch0]:block[0]" | ":_dir:[ch0]" => {
                let reader = reader.unwrap();
                assert_names(&reader.changes(std::slice::from_ref(&one), &everything).await.unwrap_err(), &key);
                reader.changes(std::slice::from_ref(&other), &everything).await.unwrap();
                let delta = BlockDelta::new(one.clone(), BlockIndex(0), vec![(0, BlockState::Present)]);
                let merged = store.merge_block(&delta, load.codec().as_ref()).await;
                if end.contains("block") {
                    assert_names(&merged.unwrap_err(), &key);
                }
            }
            ":_count:[ch0]" => {
                assert_names(&store.increment(&key, 1).await.unwrap_err(), &key);
                reader.unwrap().changes(&[one.clone(), other.clone()], &everything).await.unwrap();
            }
            ":_commits" => {
                // Only writers use it.
                reader.unwrap().changes(&[one.clone(), other.clone()], &everything).await.unwrap();
                // Another load, so that everything is written again.
                let error = Load::new(81, 200).await.run(store, 1_000).await.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Corrupt, "{error:?}");
                assert!(error.to_string().contains("_commits"), "{error}");
            }
            _ => {
                let key = CacheKey::Sequence(Sequence(1));
                assert_names(&store.entries(&[Sequence(1)]).await.unwrap_err(), &key);
                assert_names(&store.insert(&key, "x".into(), Expiry::Never).await.unwrap_err(), &key);
            }
        }
    }
}

#[tokio::test]
async fn blocks_that_are_gone_from_the_server_are_named() {
    let server = RedisServer::start();
    let (store, other) = (open(&server.url()).await, open(&server.url()).await);
    let (log, _guard) = captured();
    let batches = [batch("d", &[8, 9]), batch("e", &[10]), batch("f", &[11])];
    try_join_all(batches.iter().map(|batch| store.commit(batch))).await.unwrap();
    store.commit(&batch("g", &[12])).await.unwrap();
    assert!(!log.text().contains("gone from the server"), "{}", log.text());
    let key = CacheKey::Block(Channel::star(), BlockIndex(0));
    other.remove(&key, None).await.unwrap();
    store.commit(&batch("h", &[13])).await.unwrap();
    for part in ["gone from the server", &key.to_string(), "verify --repair"] {
        assert!(log.text().contains(part), "{part}: {}", log.text());
    }
}

#[tokio::test]
async fn a_server_that_may_evict_the_cache_is_warned_of() {
    for (policy, limit, warned) in [
        ("allkeys-lru", "100mb", true),
        ("noeviction", "100mb", false),
        ("volatile-lru", "100mb", false),
        ("allkeys-lru", "0", false),
    ] {
        let server = RedisServer::with(&["--save", "", "--maxmemory", limit, "--maxmemory-policy", policy]);
        let (log, _guard) = captured();
        open(&server.url()).await;
        let text = log.text();
        assert_eq!(text.contains("may evict"), warned, "{policy}, {limit}: {text}");
        assert_eq!(text.contains("noeviction"), warned, "{policy}, {limit}: {text}");
    }
}
