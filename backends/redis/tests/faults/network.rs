//! A network that cuts, delays and swallows.

use std::sync::Arc;
use std::time::Duration;

use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use sluicegate_core::{CacheKey, CacheStore as _, ErrorKind, Status};
use sluicegate_test_servers::RedisServer;

use crate::pages::batch;
use crate::support::load::Load;
use crate::support::proxy::{Proxy, Way};
use crate::support::{block, disturbed, namespace, open, server, some_moment, until};

const OPTIONS: &str = "timeout_ms=250&connect_timeout_ms=250";

#[tokio::test(flavor = "multi_thread")]
async fn commits_keep_their_connections() {
    let server = block(RedisServer::start);
    let store = open(&server.url()).await;
    let received = || -> u64 {
        let stats = block(|| server.cli(&["INFO", "stats"]));
        let line = stats.lines().find_map(|line| line.strip_prefix("total_connections_received:"));
        line.expect("a count of connections").trim().parse().unwrap()
    };
    let before = received();
    for n in 0..20 {
        store.commit(&batch("d", &[8 + n])).await.unwrap();
    }
    assert_eq!(received(), before + 1, "but for the one that asks");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_network_costs_time_and_nothing_else() {
    for seed in 60..64 {
        let load = Arc::new(Load::new(seed, 400).await);
        let server = block(RedisServer::start);
        let proxy = Proxy::to(server.port()).await;
        let store = open(&format!("{}?{OPTIONS}", proxy.url())).await;
        let watched = open(&format!("{}?{OPTIONS}", proxy.url())).await;
        let mut choices = ChaCha8Rng::seed_from_u64(1_000 + seed);
        let terms = disturbed(load, store, watched, 60_000, 20, async |n, pause| {
            some_moment(pause).await;
            let way = if choices.random_bool(0.5) { Way::To } else { Way::From };
            match n % 5 {
                0 => proxy.cut(),
                1 | 2 => {
                    let cuts = proxy.cuts();
                    proxy.cut_after(choices.random_range(0..4_000), way);
                    until("the connections are cut", async || proxy.cuts() > cuts).await;
                }
                3 => proxy.delay(Duration::from_millis(choices.random_range(0..4))),
                _ => {
                    // Longer than an answer is waited for: what was sent before may have been executed.
                    proxy.silent(way, true);
                    tokio::time::sleep(Duration::from_millis(300)).await;
                    proxy.silent(way, false);
                }
            }
        })
        .await;
        proxy.delay(Duration::ZERO);
        assert_eq!(terms, 1, "it rides that out");
    }
}

/// The other end is gone and nobody says so: the next command gets a new connection.
#[tokio::test(flavor = "multi_thread")]
async fn a_silent_connection_is_given_up_after_a_timeout() {
    let proxy = Proxy::to(server().port()).await;
    let store = open(&format!("{}?{OPTIONS}&pool=1&namespace={}", proxy.url(), namespace())).await;
    store.increment(&CacheKey::Counter(sluicegate_core::Channel::star()), 1).await.unwrap();
    proxy.silent(Way::From, true);
    let key = CacheKey::Counter(sluicegate_core::Channel::star());
    let write = store.increment(&key, 1).await.unwrap_err();
    assert_eq!((write.kind(), write.status()), (ErrorKind::Timeout, Status::Indeterminate), "{write:?}");
    assert!(write.to_string().contains("timeout_ms"), "{write}");
    // No new connection can be made either.
    let read = store.get(&key).await.unwrap_err();
    assert_eq!(read.status(), Status::Temporary, "{read:?}");
    proxy.silent(Way::From, false);
    assert_eq!(store.increment(&key, 0).await.unwrap(), 2, "the write whose answer was swallowed had been executed");
}

/// Reading may be repeated, and nobody needs to be told.
#[tokio::test(flavor = "multi_thread")]
async fn a_read_survives_a_connection_that_was_cut_while_idle() {
    let proxy = Proxy::to(server().port()).await;
    let store = open(&format!("{}?namespace={}", proxy.url(), namespace())).await;
    for _ in 0..20 {
        proxy.cut();
        assert_eq!(store.get(&CacheKey::Meta).await.unwrap(), None);
        assert_eq!(store.get_many(&[CacheKey::Meta, CacheKey::Clock]).await.unwrap(), [None, None]);
    }
}
