//! A server that takes no writes for a while.

use std::sync::Arc;

use sluicegate_core::{CacheStore, Error, ErrorKind};
use sluicegate_test_servers::{RedisServer, free_port};
use sluicegate_testkit::PausingFeed;

use crate::support::load::Load;
use crate::support::{block, disturbed, open, until};

/// How often the server has refused a command with `code`.
fn refusals(server: &RedisServer, code: &str) -> u64 {
    let text = block(|| server.cli(&["INFO", "errorstats"]));
    let count = text.lines().find_map(|line| line.trim().strip_prefix(&format!("errorstat_{code}:count=")).map(str::to_owned));
    count.map_or(0, |count| count.parse().unwrap())
}

/// With `begin` the server takes no writes and says `code`, with `end` it takes them again.
async fn refuses(code: &str, begin: &[&str], end: &[&str], seed: u64, stops: impl Fn(Error)) {
    // It waits.
    let load = Arc::new(Load::new(seed, 400).await);
    let server = block(RedisServer::start);
    let (store, watched) = (open(&server.url()).await, open(&server.url()).await);
    let terms = disturbed(load.clone(), store, watched, 60_000, 4, async |_, pause| {
        let before = refusals(&server, code);
        block(|| server.cli(begin));
        pause.resume();
        until("the writer is refused", async || refusals(&server, code) >= before + 3).await;
        block(|| server.cli(end));
    })
    .await;
    assert_eq!(terms, 1);

    // It gives up, and the next goes on.
    block(|| server.cli(&["FLUSHALL"]));
    let store = open(&server.url()).await;
    let feed = PausingFeed::new(Arc::new(load.feed.clone()));
    let mut pause = feed.pause_at(10);
    let mut writer = load.writer(store.clone(), 200).await.unwrap();
    let writing = tokio::spawn(async move { writer.run(&feed, std::future::pending()).await });
    assert!(pause.reached().await);
    block(|| server.cli(begin));
    pause.resume();
    let error = writing.await.unwrap().unwrap_err();
    assert!(error.is_retryable(), "{error:?}");
    stops(error);
    block(|| server.cli(end));
    let next: Arc<dyn CacheStore> = store.clone();
    assert_eq!(load.finish(&load.feed, &next, 60_000).await, 1);
    load.check(store, "after a writer that gave up").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_server_is_waited_for() {
    let (full, wide) = (["CONFIG", "SET", "maxmemory", "1"], ["CONFIG", "SET", "maxmemory", "0"]);
    for seed in [70, 73] {
        refuses("OOM", &full, &wide, seed, |error| {
            assert_eq!(error.kind(), ErrorKind::RateLimited, "{error:?}");
            assert!(error.to_string().contains("maxmemory"), "{error}");
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_became_a_replica_is_waited_for() {
    let nobody = free_port().to_string();
    let (replica, master) = (["REPLICAOF", "127.0.0.1", &nobody], ["REPLICAOF", "NO", "ONE"]);
    for seed in [72, 75] {
        refuses("READONLY", &replica, &master, seed, |error| {
            assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
            assert!(error.to_string().contains("replica"), "{error}");
        })
        .await;
    }
}
