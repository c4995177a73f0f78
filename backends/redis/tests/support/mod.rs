//! Servers that the tests of one program share, and a namespace for each.

#![allow(dead_code, reason = "each test program uses some of it")]
#![allow(unused_imports, reason = "the same")]

mod disturb;
pub(crate) mod load;
pub(crate) mod proxy;
pub(crate) mod watch;

pub(crate) use disturb::{disturbed, some_moment};

use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use sluicegate_core::CacheStore;
use sluicegate_redis::RedisStore;
use sluicegate_test_servers::{RedisCluster, RedisServer};

pub(crate) fn server() -> &'static RedisServer {
    static SERVER: OnceLock<RedisServer> = OnceLock::new();
    SERVER.get_or_init(RedisServer::start)
}

pub(crate) fn cluster() -> &'static RedisCluster {
    static CLUSTER: OnceLock<RedisCluster> = OnceLock::new();
    CLUSTER.get_or_init(RedisCluster::start)
}

/// A namespace that nobody else uses.
pub(crate) fn namespace() -> String {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    format!("t{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

pub(crate) async fn fresh(url: String) -> Arc<dyn CacheStore> {
    let store = RedisStore::connect(&format!("{url}?namespace={}", namespace())).await;
    Arc::new(store.unwrap_or_else(|e| panic!("cannot open {url}: {e:?}")))
}

/// The store at `url`, which may have options.
pub(crate) async fn open(url: &str) -> Arc<RedisStore> {
    Arc::new(RedisStore::connect(url).await.unwrap_or_else(|e| panic!("cannot open {url}: {e:?}")))
}

/// Runs what blocks.
pub(crate) fn block<T>(work: impl FnOnce() -> T) -> T {
    tokio::task::block_in_place(work)
}

/// Waits until `done` says so.
pub(crate) async fn until(what: &str, mut done: impl AsyncFnMut() -> bool) {
    let start = std::time::Instant::now();
    while !done().await {
        assert!(start.elapsed() < std::time::Duration::from_secs(60), "not within a minute: {what}");
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
}

/// The rules that the README gives, with `>sesame` for the password: those of one server, and those that a Cluster needs besides.
pub(crate) fn rights() -> Vec<Vec<&'static str>> {
    let lines = include_str!("../../README.md").lines().filter_map(|line| line.strip_prefix("ACL SETUSER cache "));
    let rights: Vec<Vec<&str>> =
        lines.map(|line| line.split(' ').map(|word| if word == ">password" { ">sesame" } else { word }).collect()).collect();
    assert_eq!(rights.len(), 2, "the README gives both");
    rights
}
