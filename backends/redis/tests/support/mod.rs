//! Servers that the tests of one program share, and a namespace for each.

#![allow(dead_code, reason = "each test program uses some of it")]

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
