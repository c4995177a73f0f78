//! Publications that replicas must have.

use std::sync::Arc;

use sluicegate_core::{CacheStore, ErrorKind};
use sluicegate_test_servers::RedisServer;
use sluicegate_testkit::PausingFeed;

use crate::support::load::Load;
use crate::support::watch::Watcher;
use crate::support::{block, open, until};

async fn with_replica() -> (RedisServer, RedisServer) {
    let (master, replica) =
        block(|| (RedisServer::with(&["--save", "", "--repl-diskless-sync-delay", "0"]), RedisServer::start()));
    block(|| replica.cli(&["REPLICAOF", "127.0.0.1", &master.port().to_string()]));
    until("the replica is there", async || {
        block(|| replica.cli(&["INFO", "replication"])).contains("master_link_status:up")
            && block(|| master.cli(&["INFO", "replication"])).contains("state=online")
    })
    .await;
    (master, replica)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publication_waits_for_its_replica() {
    for seed in [110, 113] {
        let load = Arc::new(Load::new(seed, 300).await);
        let (master, replica) = with_replica().await;
        let url = format!("{}?wait_replicas=1&timeout_ms=1000", master.url());
        let store: Arc<dyn CacheStore> = open(&url).await;
        let feed = PausingFeed::new(Arc::new(load.feed.clone()));
        let mut pause = feed.pause_at(15);
        let watcher = Watcher::new(store.clone());

        // It stops, and the writer gives up.
        let mut writer = load.writer(store.clone(), 700).await.unwrap();
        let writing = tokio::spawn(async move { writer.run(&feed, std::future::pending()).await });
        assert!(pause.reached().await);
        replica.process().signal("STOP");
        pause.resume();
        let error = writing.await.unwrap().unwrap_err();
        assert!(error.is_retryable(), "{error:?}");
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
        assert!(error.to_string().contains("wait_replicas"), "{error}");

        // It stops, and is back before.
        let writing = tokio::spawn({
            let (load, store) = (load.clone(), store.clone());
            async move { load.run(store, 60_000).await }
        });
        until("a publication waits", async || block(|| master.cli(&["CLIENT", "LIST"])).contains("cmd=wait")).await;
        assert!(!writing.is_finished());
        replica.process().signal("CONT");
        writing.await.unwrap().unwrap();
        let content = load.check(store.clone(), "with a replica").await;
        watcher.end().await.check(&store, &content.answers["*"], "with a replica").await;

        // What was published is there without the master.
        drop(master);
        block(|| replica.cli(&["REPLICAOF", "NO", "ONE"]));
        load.check(open(&replica.url()).await, "the replica").await;
    }
}
