//! Readers that are told, because they hardly look by themselves.

use std::sync::Arc;

use sluicegate_core::{CacheStore, ReaderConfig, ReaderNode};
use sluicegate_test_servers::RedisServer;
use sluicegate_testkit::PausingFeed;

use crate::support::load::Load;
use crate::support::proxy::{Proxy, Way};
use crate::support::{block, open, until};

/// One that looks every hour.
pub(crate) async fn sleeper(store: Arc<dyn CacheStore>) -> ReaderNode {
    let config: ReaderConfig = serde_json::from_str(r#"{"poll_min_ms": 3600000, "poll_max_ms": 3600000}"#).unwrap();
    ReaderNode::open(store, config).await.unwrap()
}

fn subscribers(server: &RedisServer) -> usize {
    block(|| server.cli(&["CLIENT", "LIST", "TYPE", "pubsub"])).lines().filter(|line| line.contains("sub=1")).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_hardly_looks_is_told_of_everything() {
    for seed in 120..122 {
        let load = Load::new(seed, 300).await;
        let server = block(RedisServer::start);
        let proxy = Proxy::to(server.port()).await;
        let store = open(&server.url()).await;
        let feed = PausingFeed::new(Arc::new(load.feed.clone()));
        let mut pauses: Vec<_> = [5, 10, 15, 20].into_iter().map(|at| feed.pause_at(at)).collect();
        let mut writer = load.writer(store.clone(), 60_000).await.unwrap();
        let mut progress = writer.progress();
        let writing = tokio::spawn(async move { writer.run(&feed, std::future::pending()).await });
        let reader = sleeper(open(&format!("{}?timeout_ms=250&connect_timeout_ms=250", proxy.url())).await).await;
        let mut batch = 0;
        for (n, mut pause) in pauses.drain(..).enumerate() {
            assert!(pause.reached().await);
            // What was taken is published, and the reader knows it.
            progress.wait_for(|p| p.clock.batch > batch && p.queued_bytes == 0).await.unwrap();
            batch = progress.borrow().clock.batch;
            until("the reader is told", async || reader.cut().batch >= batch).await;
            match n {
                0 => drop(block(|| server.cli(&["CLIENT", "KILL", "TYPE", "pubsub"]))),
                1 => proxy.cut(),
                2 => {
                    // Nobody says that the connection is gone.
                    proxy.silent(Way::From, true);
                    proxy.silent(Way::To, true);
                    let before = proxy.swallowed();
                    until("the reader asks whether it still lives", async || proxy.swallowed() > before).await;
                    proxy.silent(Way::From, false);
                    proxy.silent(Way::To, false);
                }
                _ => {}
            }
            pause.resume();
        }
        writing.await.unwrap().unwrap();
        let last = progress.borrow().clock.batch;
        until("the reader is told of the end", async || reader.cut().batch >= last).await;
        assert!(subscribers(&server) >= 1);
    }
}
